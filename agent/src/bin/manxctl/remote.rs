//! `kubectl manx --node NODE …`, or `manxctl --node NODE …`: the same command in the agent's pod on that node, by `kubectl exec`.
//!
//! The pod's own manxctl answers, so that its version is the agent's; what it prints and how it ends is passed on.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::client::Failure;

/// By these labels the agents' pods are known; the DaemonSet has them.
const LABELS: &str = "app.kubernetes.io/name=manx,app.kubernetes.io/component=agent";
const CONTAINER: &str = "agent";

/// Whether we were called as kubectl calls its plugins.
pub(crate) fn is_plugin(program: Option<&OsStr>) -> bool {
    program.map(Path::new).and_then(Path::file_name).is_some_and(|name| name == "kubectl-manx")
}

/// Our arguments without those that say where the command is to run.
fn forwarded(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut out = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        if bytes == b"--node" || bytes == b"--namespace" {
            arguments.next();
        } else if !(bytes.starts_with(b"--node=") || bytes.starts_with(b"--namespace=")) {
            out.push(argument);
        }
    }
    out
}

/// The same with `-` for a file, which the command then reads from standard input.
fn from_stdin(arguments: Vec<OsString>, file: &Path) -> Vec<OsString> {
    let name = file.as_os_str().as_bytes();
    let replaced = |argument: OsString| match argument.as_bytes().strip_suffix(name) {
        Some(b"") => "-".into(),
        Some(option @ (b"--file=" | b"-f" | b"-f=")) => {
            let mut option = OsStr::from_bytes(option).to_owned();
            option.push("-");
            option
        }
        _ => argument,
    };
    arguments.into_iter().map(replaced).collect()
}

/// A file of the user's, who is here and not where the command runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LocalFile<'a> {
    /// It is written by a bundle; `None`: it gets a name of its own.
    Bundle(Option<&'a Path>),
    /// The command reads it.
    Input(&'a Path),
}

/// Runs the command that we were given on `node`.
pub(crate) fn run(node: &str, namespace: &str, file: Option<LocalFile<'_>>) -> Result<ExitCode, Failure> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| Failure::Usage(format!("{path}: {e}"))
    };
    let input = match file {
        Some(LocalFile::Input(path)) if path.as_os_str() != "-" => {
            Some((path, File::open(path).map_err(failed(path))?))
        }
        _ => None,
    };
    let pod = pod_of(node, namespace)?;
    let mut command = Command::new("kubectl");
    command.args([
        "--namespace",
        namespace,
        "exec",
        "--stdin",
        &pod,
        "--container",
        CONTAINER,
        "--",
        "manxctl",
    ]);
    match file {
        None | Some(LocalFile::Input(_)) => {
            let arguments = forwarded(std::env::args_os().skip(1));
            match input {
                Some((path, file)) => command.args(from_stdin(arguments, path)).stdin(file),
                None => command.args(arguments),
            };
        }
        Some(LocalFile::Bundle(file)) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let path =
                file.map_or_else(|| PathBuf::from(format!("manx-{node}-{now}.tar.gz")), Path::to_owned);
            command.args(["bundle", "-"]);
            if path.as_os_str() != "-" {
                command.stdout(Stdio::from(File::create(&path).map_err(failed(&path))?));
                eprintln!("writing {}", path.display());
            }
        }
    }
    let status = command.status().map_err(|e| no_kubectl(&e))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::from(3), ExitCode::from))
}

/// The agent's pod on a node.
fn pod_of(node: &str, namespace: &str) -> Result<String, Failure> {
    let out = Command::new("kubectl")
        .args(["--namespace", namespace, "get", "pods", "--output", "name", "--selector", LABELS])
        .arg(format!("--field-selector=spec.nodeName={node},status.phase=Running"))
        .output()
        .map_err(|e| no_kubectl(&e))?;
    if !out.status.success() {
        let words = String::from_utf8_lossy(&out.stderr);
        return Err(Failure::Unreachable(format!(
            "kubectl cannot list pods of {namespace}: {}",
            words.trim()
        )));
    }
    let names = String::from_utf8_lossy(&out.stdout).into_owned();
    names.lines().next().map(str::to_owned).ok_or_else(|| {
        Failure::Unreachable(format!(
            "no agent runs on node {node} in namespace {namespace}: kubectl -n {namespace} get pods -o wide; or name another --namespace"
        ))
    })
}

fn no_kubectl(error: &std::io::Error) -> Failure {
    Failure::Unreachable(format!("kubectl cannot be run: {error}; install it, or run manxctl on the node"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_run_is_not_passed_on() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let given = "peers -o json --node n1 --namespace=kube-system --run-dir /run/manx";
        assert_eq!(forwarded(words(given).into_iter()), words("peers -o json --run-dir /run/manx"));
        assert_eq!(forwarded(words("--node=n1 node drain").into_iter()), words("node drain"));
    }

    #[test]
    fn a_file_of_the_users_is_read_from_standard_input() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (given, expected) in [
            ("policy diff -f p.yaml -o json", "policy diff -f - -o json"),
            ("policy diff --file=p.yaml", "policy diff --file=-"),
            ("policy diff -fp.yaml", "policy diff -f-"),
            ("--run-dir /p.yaml policy diff --file p.yaml", "--run-dir /p.yaml policy diff --file -"),
        ] {
            assert_eq!(from_stdin(words(given), Path::new("p.yaml")), words(expected));
        }
    }

    #[test]
    fn kubectls_plugins_are_known_by_their_name() {
        assert!(is_plugin(Some(OsStr::new("/usr/bin/kubectl-manx"))));
        assert!(!is_plugin(Some(OsStr::new("manxctl"))) && !is_plugin(None));
    }
}
