//! `watch`: what happens is told as it happens, to all who listen.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use super::world::*;

/// A `manxctl watch -o json`, from its first line on.
struct Watch {
    child: Child,
    lines: Receiver<Value>,
}

impl Watch {
    fn new(node: &Node, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_manxctl"));
        command.arg("--run-dir").arg(node.run_dir()).args(["-o", "json", "watch"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        let watch = Watch { child, lines };
        assert_eq!(watch.next("the start")["type"], "start");
        watch
    }

    fn next(&self, what: &str) -> Value {
        self.lines.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{what}: {e}"))
    }

    /// The first event for which `wanted` holds; others may come before it.
    fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        std::iter::repeat_with(|| self.next(what)).find(|event| wanted(event)).unwrap()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sessions_routes_repairs_policy_and_faults_are_told_as_they_happen() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    let agent = node.start();
    let (all, configs) = (Watch::new(&node, &[]), Watch::new(&node, &["--only", "config"]));
    let bird = Bird::start(&tor, &["10.200.7.0/24"], "");
    let up = all.until("up", |e| e["type"] == "peer" && e["to"] == "Established");
    assert_eq!(
        (&up["apiVersion"], &up["kind"], &up["node"]),
        (&json!("manx.dev/v1"), &json!("Event"), &json!("n1"))
    );
    assert_eq!(
        (&up["peer"], &up["from"], &up["cause"]),
        (&json!("tor"), &json!("OpenConfirm"), &json!(null))
    );
    let route = all.until("learned", |e| e["type"] == "route");
    assert_eq!((&route["prefix"], &route["nextHops"]), (&json!("10.200.7.0/24"), &json!(["10.1.0.1"])));
    eventually("in the kernel", || node.net.route("10.200.7.0/24").is_some());

    node.net.ip("route del 10.200.7.0/24 proto 77");
    let repair = all.until("put back", |e| e["type"] == "repair");
    assert_eq!(repair["prefix"], "10.200.7.0/24");
    assert!(repair["cause"].as_str().unwrap().starts_with("removed by"), "{repair}");

    node.manifest("shop.yaml", &format!("{SHOP}---{POLICY}"));
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    node.attach(&attachment("web", Some("u1"), 5));
    assert_eq!(all.until("applied", |e| e["type"] == "policy")["applied"], true);

    node.manifest("bad.yaml", "kind: [");
    let fault = configs.next("the fault");
    assert_eq!((&fault["type"], &fault["solved"]), (&json!("config"), &json!(false)));
    assert_eq!(fault["problem"]["file"], "bad.yaml");
    node.remove_manifest("bad.yaml");
    assert_eq!(configs.next("mended")["solved"], true);

    drop(bird);
    let down = all.until("down", |e| e["type"] == "peer" && e["from"] == "Established");
    assert_eq!(down["cause"], "tcp-lost", "{down}");

    // With the agent goes the stream, and says so.
    drop(agent);
    let mut all = all;
    eventually("the watch ends", || all.child.try_wait().unwrap().is_some());
    assert_eq!(all.child.wait().unwrap().code(), Some(3));
}

#[test]
fn a_reader_that_does_not_read_blocks_nobody() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    let mut agent = node.start();
    let asleep = std::os::unix::net::UnixStream::connect(node.run_dir().join("ro.sock")).unwrap();
    std::io::Write::write_all(&mut &asleep, b"GET /v1/watch HTTP/1.1\r\nHost: manx\r\n\r\n").unwrap();
    // Far more than the ring and the socket's buffers hold.
    let routes: Vec<String> = (0..4000).map(|i| format!("10.{}.{}.0/24", 210 + i / 250, i % 250)).collect();
    let mut names: Vec<&str> = routes.iter().map(String::as_str).collect();
    names.truncate(3000);
    let bird = Bird::start(&tor, &names, "");
    node.established("tor");
    let installed = || node.json(&["status"])["kernel"]["routesInstalled"].as_u64();
    eventually("all in the kernel", || installed() >= Some(3000));
    bird.announce(&[]);
    eventually("and out again", || installed() < Some(10));
    assert!(agent.alive());
    drop(asleep);
    // Who asks for something that is not there is told what is.
    assert_eq!(node.manxctl(&["watch", "--only", "weather"]).code, 2);
    let (status, body) = node.ask("ro.sock", "GET", "/v1/watch?only=weather");
    assert!(status.contains("400") && body.contains("nextHop"), "{status} {body}");
}
