//! Who the server is and who we are: TLS, certificates, tokens, and what a pod finds of them.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use manx_tests::agent::{Agent, built_binaries};
use manx_tests::apiserver::ApiServer;
use manx_tests::apiserver::tls::{Authority, Certificate};
use manx_tests::netns::{Guard, Netns};
use manx_tests::process::Process;
use manx_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::follower::{Follower, LIMIT};
use super::{pod, populated};
use manx_agent::source::Kind;

fn loopback() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    (listener, url)
}

fn kubeconfig(file: &Path, url: &str, authority: &Path, user: &Value) {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": authority}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    replace(file, &config.to_string());
}

/// Whole, as kubelet and operators do.
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

fn holder(client: &Certificate) -> Value {
    json!({"client-certificate": client.certificate, "client-key": client.key})
}

#[test]
fn a_client_certificate_opens_the_door_and_what_is_wrong_with_certificates_is_told_until_it_is_mended() {
    let server = populated();
    let (authority, stranger) = (Authority::new().unwrap(), Authority::new().unwrap());
    let (listener, url) = loopback();
    let clients = authority.certificate();
    let _tls = server.serve_tls(listener, &authority.server().unwrap(), Some(&clients)).unwrap();
    let files = TempDir::new().unwrap();
    let file = files.path().join("kubeconfig");

    let client = holder(&authority.client().unwrap());
    kubeconfig(&file, &url, &stranger.certificate(), &client);
    let mut follower = Follower::by(&file, files);
    follower.until("a server whom nobody vouches for is told", |f| f.says("certificate"));
    assert!(!follower.in_sync);

    kubeconfig(&file, &url, &clients, &json!({}));
    follower.until("that the server wants a certificate is told", |f| f.says("CertificateRequired"));
    assert!(!follower.in_sync);

    kubeconfig(&file, &url, &clients, &client);
    follower.until("in sync", |f| f.in_sync);
    follower.until_equal(&server);
    assert!(follower.problems.is_empty(), "{:?}", follower.problems);
}

#[test]
fn a_token_that_a_program_gives_is_asked_for_again_when_it_is_not_taken_any_more() {
    let server = populated();
    server.set_token("first");
    let authority = Authority::new().unwrap();
    let (listener, url) = loopback();
    let _tls = server.serve_tls(listener, &authority.server().unwrap(), None).unwrap();
    let files = TempDir::new().unwrap();
    let (file, token, program) =
        (files.path().join("kubeconfig"), files.path().join("token"), files.path().join("login"));
    replace(&token, "first");
    let script = format!(
        "#!/bin/sh\nprintf '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{{\"token\":\"%s\"}}}}' \"$(cat {})\"\n",
        token.display()
    );
    replace(&program, &script);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let user = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": program,
                               "interactiveMode": "Never"}});
    kubeconfig(&file, &url, &authority.certificate(), &user);
    let mut follower = Follower::by(&file, files);
    follower.until("in sync", |f| f.in_sync);
    follower.until_equal(&server);

    replace(&token, "second");
    server.set_token("second");
    server.cut(manx_tests::apiserver::Cut::Break);
    server.set(pod("late", "n1", "web"));
    follower.until("late", |f| f.has(Kind::Pod, "late"));
    follower.until_equal(&server);
}

/// Puts a folder where a pod finds its service account, in a mount namespace of its own, and becomes the rest of the line.
const IN_A_POD: &str = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
                        mount --bind \"$0\" /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"";

fn knows(agent: &Agent, pod: &str) {
    let asked = || match agent.ask(&format!("/v1/policy/for?target=shop/{pod}")) {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    if let Err(complaint) = wait::until(LIMIT, asked) {
        panic!("{pod}: {complaint}\n{}", fs::read_to_string(agent.log()).unwrap_or_default());
    }
}

/// The agent itself, with nothing but what a pod has; its token and its server's certificate are exchanged under it.
#[test]
fn kernel_in_a_pod_the_service_account_is_enough_and_is_read_again_as_it_changes() {
    let server: ApiServer = populated();
    server.set_token("first");
    let prefix = format!("mxic{}-", std::process::id());
    let _guard = Guard::new(&prefix).unwrap();
    let netns = Netns::create(&format!("{prefix}node")).unwrap();
    let authority = Authority::new().unwrap();
    let bind = |port: u16| netns.enter(|| TcpListener::bind(("127.0.0.1", port))).unwrap().unwrap();
    let listener = bind(0);
    let port = listener.local_addr().unwrap().port();
    let tls = server.serve_tls(listener, &authority.server().unwrap(), None).unwrap();

    let files = TempDir::new().unwrap();
    let account = files.path().join("serviceaccount");
    fs::create_dir(&account).unwrap();
    replace(&account.join("token"), "first");
    replace(&account.join("namespace"), "manx-system");
    fs::copy(authority.certificate(), account.join("ca.crt")).unwrap();
    let agent = Agent {
        node: "n1".to_owned(),
        netns: netns.clone(),
        bin_dir: built_binaries(),
        manifests: files.path().join("none"),
        dir: files.path().to_owned(),
        cni_bin_dir: files.path().to_owned(),
        extra: Vec::new(),
    };
    let log = fs::File::create(agent.log()).unwrap();
    let mut command = netns.command("sh");
    command.arg("-c").arg(IN_A_POD).arg(&account).arg(built_binaries().join("manx-agent"));
    command.args(["--node-name", "n1", "--enable", "policy", "--run-dir"]).arg(agent.run_dir());
    command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", port.to_string());
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let mut child = command.spawn().unwrap();
    let process = Process::from_pid(i32::try_from(child.id()).unwrap()).unwrap();
    knows(&agent, "web");
    let (_, status) = agent.ask("/v1/status").unwrap();
    assert_eq!(
        (&status["source"]["kind"], &status["source"]["location"]),
        (&json!("kubernetes"), &json!(format!("https://127.0.0.1:{port}")))
    );

    replace(&account.join("token"), "second");
    server.set_token("second");
    server.cut(manx_tests::apiserver::Cut::Break);
    server.set(pod("after-the-token", "n1", "web"));
    knows(&agent, "after-the-token");

    // Another authority altogether, as when a cluster's CA is replaced.
    drop(tls);
    let other = Authority::new().unwrap();
    replace(&account.join("ca.crt"), &fs::read_to_string(other.certificate()).unwrap());
    let again = || netns.enter(|| TcpListener::bind(("127.0.0.1", port))).unwrap();
    let (listener, _) = wait::until(LIMIT, again).expect("the port is free again");
    let _tls = server.serve_tls(listener, &other.server().unwrap(), None).unwrap();
    server.set(pod("after-the-authority", "n1", "web"));
    knows(&agent, "after-the-authority");
    process.signal(Signal::SIGTERM);
    assert!(child.wait().unwrap().success());
}
