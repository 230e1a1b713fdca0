//! The image: what `Dockerfile` copies is built by it, what the manifests call is in it, and the versions that it pins can be had.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The instructions, each on one line, comments left out.
fn instructions() -> Vec<String> {
    let text = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.join("\n").replace("\\\n", " ").lines().map(str::to_owned).collect()
}

fn all(instruction: &str) -> Vec<Vec<String>> {
    let words = |line: String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    instructions().into_iter().map(words).filter(|w| w.first().is_some_and(|w| w == instruction)).collect()
}

/// The words behind each `flag` of the build stage's `cargo build`.
fn built(flag: &str) -> BTreeSet<String> {
    let run = &all("RUN")[0];
    run.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].clone()).collect()
}

#[test]
fn what_is_copied_into_the_image_is_what_the_build_stage_makes() {
    for (package, source) in [("manx-agent", "agent"), ("manx-cni", "cni")] {
        assert!(built("--package").contains(package));
        assert!(root().join(source).join("Cargo.toml").exists(), "{package} lies in {source}");
    }
    let run = all("RUN")[0].join(" ");
    let copies = all("COPY");
    let taken: BTreeSet<_> = copies
        .iter()
        .filter(|words| words[1] == "--from=build")
        .flat_map(|words| &words[2..words.len() - 1])
        .map(|path| path.strip_prefix("/out/").unwrap_or_else(|| panic!("{path}: made by nobody")).to_owned())
        .collect();
    assert_eq!(taken, built("--bin"), "each binary that is built, and no other");
    for binary in &taken {
        assert!(run.contains(&format!("target/$host/release/{binary}")), "{binary} is put into /out");
    }
    assert!(run.contains("+crt-static") && run.contains("--locked"), "{run}");
    // The whole tree goes in: but for what would be large or would make each build a new one.
    let ignored = fs::read_to_string(root().join(".dockerignore")).unwrap();
    assert!(ignored.lines().any(|l| l == "target") && ignored.lines().any(|l| l == ".git"), "{ignored}");
}

#[test]
fn the_manifests_call_what_the_image_holds() {
    let binaries = all("COPY").into_iter().filter(|words| words[1] == "--from=build");
    let files: BTreeSet<String> = binaries
        .flat_map(|words| {
            let to = words.last().unwrap().clone();
            let names = words[2..words.len() - 1].to_vec();
            names.into_iter().map(move |from| match to.strip_suffix('/') {
                Some(dir) => format!("{dir}/{}", from.rsplit('/').next().unwrap()),
                None => to.clone(),
            })
        })
        .collect();
    let daemonset = fs::read_to_string(root().join("manifests/base/daemonset.yaml")).unwrap();
    for called in ["/usr/libexec/manx/manx-cni", "/usr/bin/manx-agent"] {
        assert!(files.contains(called), "{called}: {files:?}");
    }
    assert!(daemonset.contains("value: /usr/libexec/manx/manx-cni}"));
    assert!(
        daemonset.contains("command: [manx-agent]") && daemonset.contains("command: [manx-agent, prepare]")
    );
    // kubectl-manx runs itself in the container.
    assert!(files.contains("/usr/bin/manxctl"));
    assert!(instructions().iter().any(|line| line == "RUN ln -s manxctl /usr/bin/kubectl-manx"));
}

#[test]
fn the_toolchain_of_the_image_is_one_that_builds_this() {
    let image = all("FROM")[0][1].clone();
    let version = image.strip_prefix("rust:").and_then(|tag| tag.split('-').next()).unwrap().to_owned();
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let least = workspace.lines().find_map(|l| l.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    let number = |text: &str| text.split('.').map(|part| part.parse().unwrap()).collect::<Vec<u32>>();
    assert!(number(&version) >= number(least), "{image} is older than {least}");
}

/// Package and version of each pin.
fn pins() -> Vec<(String, String)> {
    let words = instructions().into_iter().find(|line| line.contains("apt-get install")).unwrap();
    let pins: Vec<_> = words
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(package, version)| (package.to_owned(), version.to_owned()))
        .collect();
    let names: BTreeSet<_> = pins.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        BTreeSet::from(["iproute2", "ipset", "iptables", "kmod", "nftables"]),
        "each tool has its version"
    );
    pins
}

/// Asks the archive that this machine knows, where that is the image's.
#[test]
fn the_versions_that_are_pinned_are_in_debians_archive() {
    let release =
        all("FROM")[1][1].strip_prefix("debian:").and_then(|t| t.split('-').next()).unwrap().to_owned();
    let here = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !here.lines().any(|line| line == format!("VERSION_CODENAME={release}")) {
        eprintln!("SKIPPED: this is no Debian {release}, whose archive the image is made from");
        return;
    }
    for (package, version) in pins() {
        let known = Command::new("apt-cache").args(["madison", &package]).output();
        let known = known.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
        if known.trim().is_empty() {
            eprintln!("SKIPPED: {package}: apt knows no archive here (apt-get update?)");
            continue;
        }
        let there = known.lines().any(|line| line.split('|').nth(1).is_some_and(|v| v.trim() == version));
        assert!(there, "{package}={version} is not in the archive, which has:\n{known}");
    }
}
