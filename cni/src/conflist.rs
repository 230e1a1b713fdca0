//! The network configuration list that the agent gives to the runtime: manx, then portmap and bandwidth where they are
//! installed.
//!
//! `cniVersions` holds only what every binary of the chain reports to VERSION: 1.1.0 alone breaks containerd 1.6 and
//! podman 4.3, and Debian's portmap and bandwidth stop at 1.0.0.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Name of the file in the runtime's configuration directory.
pub const FILE_NAME: &str = "10-manx.conflist";

/// Name of the plugin's binary, and its `type`.
pub const PLUGIN: &str = "manx";

/// Name of the network.
pub const NETWORK: &str = "manx";

/// The version that runtimes read which do not know `cniVersions`, if the chain speaks it.
const PREFERRED: &str = "1.0.0";

/// A plugin answers VERSION in milliseconds; one that hangs is not put into the chain.
const PATIENCE: Duration = Duration::from_secs(5);

/// One plugin of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of the binary.
    pub plugin: String,
    /// What it reports to VERSION.
    pub versions: Vec<String>,
}

/// The text for `run_dir`, with the plugins that `bin_dir` holds. A neighbour that does not answer VERSION is left out.
pub fn conflist(run_dir: &Path, bin_dir: &Path) -> String {
    let own = crate::spec::VERSIONS.iter().map(|v| (*v).to_owned()).collect();
    let mut chain = vec![Member { plugin: PLUGIN.to_owned(), versions: own }];
    for neighbour in ["portmap", "bandwidth"] {
        if let Ok(versions) = probe_versions(&bin_dir.join(neighbour)) {
            chain.push(Member { plugin: neighbour.to_owned(), versions });
        }
    }
    render(run_dir, &chain)
}

/// The text for a chain; versions in ascending order, those of the first member that all others have.
pub fn render(run_dir: &Path, chain: &[Member]) -> String {
    let mut versions: Vec<&str> = match chain.split_first() {
        Some((first, rest)) => first
            .versions
            .iter()
            .filter(|v| rest.iter().all(|member| member.versions.contains(v)))
            .map(String::as_str)
            .collect(),
        None => Vec::new(),
    };
    versions.sort_by_key(|v| ordinal(v));
    let version = versions.iter().rfind(|v| ordinal(v) <= ordinal(PREFERRED)).copied().unwrap_or(PREFERRED);
    let plugins: Vec<Value> = chain.iter().map(|member| plugin(run_dir, &member.plugin)).collect();
    let list = json!({ "cniVersion": version, "cniVersions": versions, "name": NETWORK, "plugins": plugins });
    let mut text = serde_json::to_string_pretty(&list).expect("a JSON value has a text");
    text.push('\n');
    text
}

fn plugin(run_dir: &Path, name: &str) -> Value {
    match name {
        "portmap" => json!({ "type": name, "capabilities": { "portMappings": true } }),
        "bandwidth" => json!({ "type": name, "capabilities": { "bandwidth": true } }),
        PLUGIN => json!({
            "type": name,
            "runDir": run_dir,
            "capabilities": { "ips": true, "mac": true, "io.kubernetes.cri.pod-annotations": true },
        }),
        _ => json!({ "type": name }),
    }
}

/// Asks a plugin which versions of CNI it speaks.
///
/// # Errors
/// It can't be run, fails, answers something else or nothing within five seconds.
pub fn probe_versions(binary: &Path) -> io::Result<Vec<String>> {
    let mut child = Command::new(binary)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        // libcni sends these, and old plugins insist on them.
        .envs(["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"].map(|name| (name, "dummy")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let question =
        child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(br#"{"cniVersion":"1.0.0"}"#));
    // A plugin need not read its input.
    if let Err(e) = question
        && e.kind() != io::ErrorKind::BrokenPipe
    {
        drop(child.kill());
        drop(child.wait());
        return Err(e);
    }
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let mut text = Vec::new();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_end(&mut text)?;
    }
    if !status.success() {
        return Err(io::Error::other(format!("VERSION failed: {status}")));
    }
    let answer: Value = serde_json::from_slice(&text)?;
    let versions = answer.get("supportedVersions").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(versions.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// 0.3.1 before 0.10.0.
fn ordinal(version: &str) -> Vec<u32> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(plugin: &str, versions: &[&str]) -> Member {
        Member { plugin: plugin.to_owned(), versions: versions.iter().map(|v| (*v).to_owned()).collect() }
    }

    #[test]
    fn only_versions_of_every_binary_are_listed() {
        let chain = [
            member("manx", crate::spec::VERSIONS),
            member("portmap", &["0.3.0", "0.3.1", "0.4.0", "1.0.0"]),
            member("bandwidth", &["0.3.1", "0.4.0", "1.0.0"]),
        ];
        insta::assert_snapshot!(render(Path::new("/run/manx"), &chain));
    }

    #[test]
    fn alone_it_lists_its_own_versions_and_stays_at_1_0_0() {
        let list: Value =
            serde_json::from_str(&render(Path::new("/r"), &[member("manx", crate::spec::VERSIONS)])).unwrap();
        assert_eq!(list["cniVersion"], "1.0.0");
        assert_eq!(list["cniVersions"], json!(crate::spec::VERSIONS));
    }

    #[test]
    fn an_old_neighbour_draws_the_version_down() {
        let chain = [member("manx", crate::spec::VERSIONS), member("portmap", &["0.4.0", "0.3.1"])];
        let list: Value = serde_json::from_str(&render(Path::new("/r"), &chain)).unwrap();
        assert_eq!(
            (&list["cniVersion"], &list["cniVersions"]),
            (&json!("0.4.0"), &json!(["0.3.1", "0.4.0"]))
        );
    }

    #[test]
    fn a_neighbour_that_is_not_installed_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let list: Value = serde_json::from_str(&conflist(Path::new("/run/manx"), dir.path())).unwrap();
        assert_eq!(list["plugins"].as_array().unwrap().len(), 1);
        assert_eq!(list["plugins"][0]["type"], "manx");
    }

    #[test]
    fn a_neighbour_that_fails_or_lies_is_no_version() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        assert!(probe_versions(&script("fails", "#!/bin/sh\nexit 1\n")).is_err());
        assert!(probe_versions(&script("babbles", "#!/bin/sh\necho hello\n")).is_err());
        assert!(probe_versions(&dir.path().join("absent")).is_err());
        let answers = "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}'\n";
        assert_eq!(probe_versions(&script("answers", answers)).unwrap(), ["1.0.0"]);
    }
}
