//! `manxctl` against an agent of a few lines: what it asks for, what it makes of the answer, and how it ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use manx_agent::view::{ApiError, ErrorCode, PeerList, PeerRow, Status, paths};
use rstest::rstest;
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Answers each connection on a socket with the next of these (the last one for ever), and tells what was asked.
fn agent(socket: &Path, answers: Vec<(u16, String)>) -> Receiver<String> {
    let listener = UnixListener::bind(socket).unwrap();
    let (asked, questions) = channel();
    std::thread::spawn(move || {
        let mut answers = answers.into_iter().peekable();
        let mut last = None;
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            _ = asked.send(line.trim_end().to_owned());
            while line != "\r\n" && !line.is_empty() {
                line.clear();
                reader.read_line(&mut line).unwrap();
            }
            last = answers.next().or(last);
            let (code, body) = last.as_ref().unwrap();
            let head = format!(
                "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            _ = reader.get_mut().write_all((head + body).as_bytes());
        }
    });
    questions
}

fn answering<T: Serialize>(code: u16, document: &T) -> (TempDir, Receiver<String>) {
    let dir = tempfile::tempdir().unwrap();
    let questions =
        agent(&dir.path().join(paths::ADMIN_SOCKET), vec![(code, serde_json::to_string(document).unwrap())]);
    (dir, questions)
}

fn manxctl(run_dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_manxctl"))
        .arg("--run-dir")
        .arg(run_dir)
        .args(args)
        .env_remove("MANX_RUN_DIR")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn healthy() -> Status {
    let mut status =
        Status { node: "n1".into(), version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    status.source.in_sync = true;
    status
}

#[rstest]
#[case(&["status"], "/v1/status")]
#[case(&["peers"], "/v1/peers")]
#[case(&["peer", "show", "10.0.1.1"], "/v1/peers/10.0.1.1")]
#[case(&["peer", "show", "fd00:1::1"], "/v1/peers/fd00%3A1%3A%3A1")]
#[case(&["routes"], "/v1/routes?table=loc")]
#[case(&["routes", "--best"], "/v1/routes?table=loc&best=true")]
#[case(&["routes", "--drift"], "/v1/routes/drift")]
#[case(&["peer", "why", "10.0.1.9"], "/v1/peers/10.0.1.9/why")]
#[case(&["peer", "history", "tor-a"], "/v1/peers/tor-a/history")]
#[case(&["watch", "--only", "peer,route"], "/v1/watch?only=peer%2Croute")]
#[case(&["routes", "in", "tor-a"], "/v1/routes?table=in&peer=tor-a")]
#[case(&["routes", "in", "tor-a", "--rejected"], "/v1/routes?table=in&peer=tor-a&rejected=true")]
#[case(&["routes", "out", "10.0.1.1"], "/v1/routes?table=out&peer=10.0.1.1")]
#[case(&["route", "get", "10.244.2.5"], "/v1/routes/get?ip=10.244.2.5")]
#[case(&["route", "why", "10.250.0.0/16"], "/v1/routes/why?prefix=10.250.0.0%2F16")]
#[case(&["route", "why", "10.250.0.7/16"], "/v1/routes/why?prefix=10.250.0.0%2F16")]
#[case(&["policy", "for", "shop/web"], "/v1/policy/for?target=shop%2Fweb")]
#[case(&["policy", "for", "fd00::2"], "/v1/policy/for?target=fd00%3A%3A2")]
#[case(&["policy", "for", "shop"], "/v1/policy/for?target=shop")]
#[case(&["ipam"], "/v1/ipam")]
#[case(&["pods"], "/v1/pods")]
fn each_command_asks_for_its_document(#[case] args: &[&str], #[case] target: &str) {
    let (dir, questions) = answering(404, &ApiError::new(ErrorCode::NotFound, "nothing here"));
    let output = manxctl(dir.path(), args);
    assert_eq!(questions.recv().unwrap(), format!("GET {target} HTTP/1.1"));
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(1), "manxctl: nothing here\n"));
}

#[test]
fn json_is_the_document() {
    let (dir, _questions) = answering(200, &healthy());
    let output = manxctl(dir.path(), &["status", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["apiVersion"], "manx.dev/v1");
    assert_eq!(document["kind"], "Status");
    assert_eq!(
        document["source"],
        json!({"kind": "", "location": "", "inSync": true, "stale": false, "errors": []})
    );
    assert_eq!(document["bgp"], Value::Null);
}

#[test]
fn yaml_and_names_are_there_too() {
    let list = PeerList {
        items: vec![PeerRow { address: "10.0.1.1".into(), state: "Active".into(), ..Default::default() }],
        ..Default::default()
    };
    let (dir, _questions) = answering(200, &list);
    assert_eq!(out(&manxctl(dir.path(), &["peers", "-o", "name"])), "10.0.1.1\n");
    let yaml = out(&manxctl(dir.path(), &["-o", "yaml", "peers"]));
    assert!(yaml.starts_with("apiVersion: manx.dev/v1\nkind: PeerList\n"), "{yaml}");
    assert!(yaml.contains("remoteAs: null"), "{yaml}");
}

#[test]
fn an_unhealthy_agent_is_a_no() {
    let (dir, _questions) = answering(200, &Status { source: Default::default(), ..healthy() });
    let output = manxctl(dir.path(), &["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(out(&output).contains("not in sync"));
}

#[rstest]
#[case(ErrorCode::NotFound, 1)]
#[case(ErrorCode::BadRequest, 2)]
#[case(ErrorCode::Unavailable, 3)]
#[case(ErrorCode::Forbidden, 5)]
fn a_refusal_decides_the_exit_status(#[case] code: ErrorCode, #[case] exit: i32) {
    let (dir, _questions) = answering(code.http_status(), &ApiError::new(code, "no, because"));
    let output = manxctl(dir.path(), &["pods", "-o", "json"]);
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(exit), "manxctl: no, because\n"));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&document["kind"], &document["message"]), (&json!("Error"), &json!("no, because")));
}

#[test]
fn without_an_agent_one_line_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let output = manxctl(dir.path(), &["status"]);
    let socket = dir.path().join("admin.sock");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        err(&output),
        format!(
            "manxctl: no agent at {}: no such socket; start manx-agent, or name its run directory with --run-dir\n",
            socket.display()
        )
    );
    assert_eq!(out(&output), "");

    drop(UnixListener::bind(&socket).unwrap());
    let output = manxctl(dir.path(), &["status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(err(&output).contains("nobody listens"), "{}", err(&output));
}

#[rstest]
#[case("not JSON at all")]
#[case("{\"apiVersion\":\"manx.dev/v9\",\"kind\":\"PodList\",\"items\":[]}")]
#[case("{\"apiVersion\":\"manx.dev/v1\",\"kind\":\"PeerList\",\"items\":[]}")]
fn an_answer_that_cannot_be_understood_is_told(#[case] body: &str) {
    let dir = tempfile::tempdir().unwrap();
    let _questions = agent(&dir.path().join(paths::ADMIN_SOCKET), vec![(200, body.to_owned())]);
    let output = manxctl(dir.path(), &["pods"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(err(&output).contains("cannot be understood"), "{}", err(&output));
}

#[test]
fn a_connection_that_breaks_off_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(paths::ADMIN_SOCKET)).unwrap();
    let hangs_up = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let output = manxctl(dir.path(), &["pods"]);
    hangs_up.join().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(err(&output).contains("broke off"), "{}", err(&output));
}

#[test]
fn the_socket_for_reading_serves_where_the_other_one_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let _questions = agent(
        &dir.path().join(paths::READ_ONLY_SOCKET),
        vec![(200, serde_json::to_string(&healthy()).unwrap())],
    );
    assert_eq!(manxctl(dir.path(), &["status"]).status.code(), Some(0));
}

#[test]
fn who_may_not_use_the_admin_socket_uses_the_one_for_reading() {
    const NOBODY: u32 = 65534;
    let root = nix::unistd::geteuid().is_root();
    let dir = tempfile::tempdir().unwrap();
    let (admin, read_only) = (dir.path().join(paths::ADMIN_SOCKET), dir.path().join(paths::READ_ONLY_SOCKET));
    let body = serde_json::to_string(&healthy()).unwrap();
    let _admin = agent(&admin, vec![(200, body.clone())]);
    let _read_only = agent(&read_only, vec![(200, body)]);
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(dir.path(), 0o755);
    mode(&admin, 0);
    if root {
        chown(&read_only, None, Some(NOBODY)).unwrap();
    }
    mode(&read_only, 0o660);
    // The build's own directory may be closed to others.
    let binary = dir.path().join("manxctl");
    fs::copy(env!("CARGO_BIN_EXE_manxctl"), &binary).unwrap();
    mode(&binary, 0o755);
    let run = || {
        let mut command = Command::new(&binary);
        command.arg("--run-dir").arg(dir.path()).arg("status");
        if root {
            // Root may connect to any socket, whatever its mode.
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output().unwrap()
    };
    let output = run();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));

    mode(&read_only, 0);
    let output = run();
    assert_eq!(output.status.code(), Some(5));
    let line = err(&output);
    assert!(
        line.contains("permission denied") && line.contains("ro.sock") && line.contains("run as root"),
        "{line}"
    );
}

#[rstest]
#[case(&[])]
#[case(&["nonsense"])]
#[case(&["route", "get", "10.0.0"])]
#[case(&["route", "why", "10.0.0.0/33"])]
#[case(&["status", "-o", "xml"])]
#[case(&["routes", "--best", "--rejected"])]
#[case(&["peer", "reset"])]
#[case(&["peer", "reset", "tor-a", "--soft", "sideways"])]
#[case(&["peer", "reset", "tor-a", "-w"])]
fn a_senseless_command_line_is_usage(#[case] args: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(manxctl(dir.path(), args).status.code(), Some(2));
}

#[test]
fn another_version_of_the_agent_is_a_warning_and_no_more() {
    let (dir, _questions) = answering(200, &Status { version: "9.9.9".into(), ..healthy() });
    let output = manxctl(dir.path(), &["version"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(out(&output).contains("9.9.9"));
    assert!(err(&output).contains("warning") && err(&output).contains("the agent is 9.9.9"));
}

#[test]
fn the_version_is_told_without_an_agent_too() {
    let dir = tempfile::tempdir().unwrap();
    let output = manxctl(dir.path(), &["version", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&document["client"], &document["agent"]), (&json!(env!("CARGO_PKG_VERSION")), &Value::Null));
}

#[test]
fn a_watch_writes_one_json_line_for_each_change() {
    let dir = tempfile::tempdir().unwrap();
    let list = |state: &str| {
        let row = PeerRow { state: state.into(), ..Default::default() };
        (200, serde_json::to_string(&PeerList { items: vec![row], ..Default::default() }).unwrap())
    };
    let answers = vec![list("Connect"), list("Connect"), list("Established")];
    let _questions = agent(&dir.path().join(paths::ADMIN_SOCKET), answers);
    let mut child = Command::new(env!("CARGO_BIN_EXE_manxctl"))
        .arg("--run-dir")
        .arg(dir.path())
        .args(["peers", "-o", "json", "-w=0.1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || {
        let document: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        document["items"][0]["state"].as_str().unwrap().to_owned()
    };
    assert_eq!([next(), next()], ["Connect", "Established"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn manifests_are_validated_without_an_agent() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good.yaml");
    let bad = dir.path().join("bad.yaml");
    fs::write(&good, "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n").unwrap();
    fs::write(
        &bad,
        "apiVersion: manx.dev/v1alpha1\nkind: BGPPeer\nmetadata: {name: tor-a}\nspec: {peerIP: 10.0.0.1, asNumber: 65001,\n  holdTime: 1s}\n",
    )
    .unwrap();
    let validate = |args: &[&str]| manxctl(dir.path(), &[&["config", "validate"], args].concat());
    let good = good.to_str().unwrap();

    let output = validate(&[good]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), "1 object, nothing wrong\n"));

    let output = validate(&[bad.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!(
        "{}:5: BGPPeer tor-a: spec.holdTime: 1s: must be 0 (no hold timer) or whole seconds from 3s to 65535s\n1 wrong\n",
        bad.display()
    );
    assert_eq!(out(&output), expected);

    let output = validate(&[dir.path().to_str().unwrap(), "-o", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&document["valid"], &document["objects"]), (&json!(false), &json!(1)));
    assert_eq!(document["errors"][0]["line"], 5);

    assert_eq!(validate(&["/nonexistent.yaml"]).status.code(), Some(2));
}

#[test]
fn manifests_are_validated_from_standard_input() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_manxctl"))
        .args(["config", "validate", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"kind: [\n").unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(text.starts_with("-:1: not YAML"), "{text}");
}

#[rstest]
#[case(&["completion", "bash"], "_manxctl")]
#[case(&["completion", "zsh"], "#compdef manxctl")]
#[case(&["man"], "MANXCTL POLICY FOR")]
fn pages_for_shells_and_readers(#[case] args: &[&str], #[case] contains: &str) {
    let dir = tempfile::tempdir().unwrap();
    let output = manxctl(dir.path(), args);
    assert_eq!(output.status.code(), Some(0));
    assert!(out(&output).contains(contains));
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_manxctl"))
        .arg("--run-dir")
        .arg(dir.path())
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
}

/// A `kubectl` that knows one pod and repeats what it is to run there.
fn kubectl(dir: &Path) {
    let script = "#!/bin/sh
case \"$*\" in
*' get pods '*nodeName=n1,*) echo pod/manx-agent-x ;;
*' get pods '*) ;;
*) printf '%s\\n' \"$*\"; case \"$*\" in *' -') cat ;; esac; exit 7 ;;
esac
";
    let path = dir.join("kubectl");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn with_kubectl(dir: &Path, program: &str, args: &[&str]) -> Output {
    let path = format!("{}:/usr/bin:/bin", dir.display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_manxctl"));
    command.arg0(program).args(args).env("PATH", path).env_remove("MANX_NAMESPACE").output().unwrap()
}

#[test]
fn another_nodes_agent_is_asked_in_its_own_pod() {
    let dir = tempfile::tempdir().unwrap();
    kubectl(dir.path());
    let out = with_kubectl(dir.path(), "kubectl-manx", &["--node", "n1", "peers", "-o", "json"]);
    assert_eq!(out.status.code(), Some(7), "the pod's answer is ours");
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "--namespace manx-system exec --stdin pod/manx-agent-x --container agent -- manxctl peers -o json\n"
    );
    let nobody = with_kubectl(dir.path(), "manxctl", &["peers", "--node=n2"]);
    assert_eq!(nobody.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no agent runs on node n2"));
    let nowhere = with_kubectl(dir.path(), "kubectl-manx", &["peers"]);
    assert_eq!(nowhere.status.code(), Some(2));
}

#[test]
fn a_bundle_of_another_node_is_written_here() {
    let dir = tempfile::tempdir().unwrap();
    kubectl(dir.path());
    let file = dir.path().join("x.tar.gz");
    with_kubectl(dir.path(), "kubectl-manx", &["--node", "n1", "bundle", file.to_str().unwrap()]);
    assert!(fs::read_to_string(&file).unwrap().ends_with("-- manxctl bundle -\n"));
}

#[test]
fn a_proposal_is_read_here_and_not_where_its_node_is() {
    let dir = tempfile::tempdir().unwrap();
    kubectl(dir.path());
    let file = dir.path().join("proposal.yaml");
    fs::write(&file, "kind: NetworkPolicy\n").unwrap();
    let given = ["--node", "n1", "policy", "diff", "-f", file.to_str().unwrap()];
    let out = with_kubectl(dir.path(), "kubectl-manx", &given);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.ends_with("-- manxctl policy diff -f -\nkind: NetworkPolicy\n"), "{said}");
    fs::remove_file(&file).unwrap();
    let missing = with_kubectl(dir.path(), "kubectl-manx", &given);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("proposal.yaml"));
}
