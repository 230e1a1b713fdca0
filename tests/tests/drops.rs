//! Dropped packets are told with the policy's name, and counted under it. Real agent, real packets, both families, both
//! directions. Needs root.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use manx_tests::agent::{binary, built_binaries};
use manx_tests::probe::fresh_number;
use manx_tests::scenario::rack::{Rack, World};
use manx_tests::scenario::station::{socket, unspecified};
use manx_tests::wait;
use serde_json::{Value, json};
use socket2::Type;

const PATIENCE: Duration = Duration::from_secs(30);

fn put(world: &mut World, kind: &str, name: &str, spec: &Value) {
    let (version, metadata, key) = match kind {
        "NetworkPolicy" => {
            ("networking.k8s.io/v1", json!({"name": name, "namespace": "x"}), format!("{kind}/x/{name}"))
        }
        _ => ("policy.networking.k8s.io/v1alpha2", json!({"name": name}), format!("{kind}/{name}")),
    };
    let object = json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec});
    world.objects.insert(key, object);
}

/// x/a hears nobody, x/b speaks to nobody, nobody speaks to z/c, and z/b does not speak to y.
fn stage(name: &str, backend: &str) -> Rack {
    let mut rack = Rack::up(&format!("{name}{}", std::process::id()), 1, backend, &built_binaries())
        .expect("the rack comes up");
    let mut world = World::new();
    let pod = |name: &str| json!({"matchLabels": {"pod": name}});
    let ns = |name: &str| json!({"matchLabels": {"ns": name}});
    put(&mut world, "NetworkPolicy", "deaf", &json!({"podSelector": pod("a"), "policyTypes": ["Ingress"]}));
    put(&mut world, "NetworkPolicy", "dumb", &json!({"podSelector": pod("b"), "policyTypes": ["Egress"]}));
    let subject = |namespace: &str, name: &str| json!({"pods": {"namespaceSelector": ns(namespace), "podSelector": pod(name)}});
    put(
        &mut world,
        "ClusterNetworkPolicy",
        "nobody-to-c",
        &json!({
            "tier": "Admin", "priority": 10, "subject": subject("z", "c"),
            "ingress": [{"name": "shut", "action": "Deny", "from": [{"namespaces": {}}]}],
        }),
    );
    put(
        &mut world,
        "ClusterNetworkPolicy",
        "b-not-to-y",
        &json!({
            "tier": "Baseline", "priority": 10, "subject": subject("z", "b"),
            "egress": [{"action": "Accept", "to": [{"namespaces": ns("x")}]}, {"action": "Deny", "to": [{"namespaces": ns("y")}]}],
        }),
    );
    rack.apply(&world).expect("the agent follows");
    rack
}

/// A `manxctl drops -f -o json`, from its first line on.
struct Follower {
    child: Child,
    lines: Receiver<Value>,
}

impl Follower {
    fn new(rack: &Rack, arguments: &[&str]) -> Self {
        let agent = &rack.node_of("x/a").agent;
        let mut command = std::process::Command::new(binary(&agent.bin_dir, "manxctl").expect("it is built"));
        command.arg("--run-dir").arg(agent.run_dir()).args(["-o", "json", "drops", "-f"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("manxctl starts");
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).expect("a document in each line"));
            }
        });
        let follower = Follower { child, lines };
        assert_eq!(follower.next()["type"], "start");
        follower
    }

    fn next(&self) -> Value {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    /// The line of the packet that went to this port.
    fn packet_to(&self, target: SocketAddr) -> Value {
        let to = json!({"address": target.ip().to_string(), "port": target.port()});
        let is_it = |line: &Value| {
            let end = &line["destination"];
            end["address"] == to["address"] && end["port"] == to["port"]
        };
        std::iter::repeat_with(|| self.next()).find(is_it).expect("it goes on until it is found")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One packet from a pod to a port of its own at another one; never mind an answer. The socket lives until the end of the test:
/// a connection that is closed asks no more.
fn send(rack: &Rack, from: &str, to: &str, kind: Type, v6: bool) -> (SocketAddr, socket2::Socket) {
    let target = SocketAddr::new(rack.pods[to].address(v6), fresh_number());
    let own = SocketAddr::new(unspecified(v6), fresh_number());
    let socket =
        rack.pods[from].netns.enter(|| socket(own, kind)).expect("a namespace").expect("a free port");
    if kind == Type::STREAM {
        // Under way, as it must be: nobody will answer.
        let _ = socket.connect(&target.into());
    } else {
        socket.send_to(b"x", &target.into()).expect("it can be sent");
    }
    (target, socket)
}

fn drops_are_told(name: &str, backend: &str) {
    let rack = stage(name, backend);
    let all = Follower::new(&rack, &[]);
    let one = Follower::new(&rack, &["--policy", "x/deaf"]);
    let mut sockets = Vec::new();
    let cases = [
        ("y/a", "x/a", "ingress", json!(null), json!(["x/deaf"]), "no policy allows it"),
        ("x/b", "y/a", "egress", json!(null), json!(["x/dumb"]), "no policy allows it"),
        ("y/a", "z/c", "ingress", json!("ClusterNetworkPolicy:nobody-to-c"), json!([]), "denied by a rule"),
        ("z/b", "y/a", "egress", json!("ClusterNetworkPolicy:b-not-to-y"), json!([]), "denied by a rule"),
    ];
    for (from, to, direction, policy, isolated_by, reason) in &cases {
        for (kind, protocol) in [(Type::STREAM, "TCP"), (Type::DGRAM, "UDP")] {
            for v6 in [false, true] {
                let (target, socket) = send(&rack, from, to, kind, v6);
                sockets.push(socket);
                let line = all.packet_to(target);
                let words = format!("{from} -> {to} {protocol} v6={v6}: {line}");
                assert_eq!(
                    (&line["apiVersion"], &line["kind"]),
                    (&json!("manx.dev/v1"), &json!("DropEvent")),
                    "{words}"
                );
                assert_eq!(
                    (&line["result"], &line["protocol"]),
                    (&json!("Drop"), &json!(protocol)),
                    "{words}"
                );
                assert_eq!((&line["direction"], &line["policy"]), (&json!(direction), policy), "{words}");
                assert_eq!((&line["isolatedBy"], &line["reason"]), (isolated_by, &json!(reason)), "{words}");
                assert_eq!(
                    (&line["source"]["pod"], &line["destination"]["pod"]),
                    (&json!(from), &json!(to)),
                    "{words}"
                );
                assert_eq!(line["pod"], json!(if *direction == "ingress" { to } else { from }), "{words}");
                let rule =
                    if policy.is_null() { json!(null) } else { json!(u8::from(*direction == "egress")) };
                assert_eq!(line["rule"], rule, "{words}");
                for interface in ["inInterface", "outInterface"] {
                    assert!(line[interface].as_str().is_some_and(|name| name.starts_with("manx")), "{words}");
                }
                if isolated_by == &json!(["x/deaf"]) {
                    assert_eq!(one.packet_to(target), line, "who asks for one policy hears of it");
                }
            }
        }
    }
    let agent = &rack.node_of("x/a").agent;
    let recent = agent.manxctl_json(&["drops", "--pod", "z/c"]).expect("the agent answers");
    let items = recent["items"].as_array().expect("a list");
    assert!(items.len() >= 4 && items.iter().all(|packet| packet["destination"]["pod"] == "z/c"), "{recent}");
    let table = agent.manxctl(&["-o", "wide", "drops"]).expect("the agent answers");
    assert!(table.contains("x/deaf") && table.contains("ClusterNetworkPolicy:b-not-to-y rule 1"), "{table}");
    if backend == "nft" {
        drops_are_counted(&rack);
    }
}

/// The counters of rules are read whenever rules are: here after a stranger has been at them.
fn drops_are_counted(rack: &Rack) {
    let agent = &rack.node_of("x/a").agent;
    agent.netns.run("iptables-nft -D MANX-FORWARD 2").expect("iptables works");
    let counted = |labels: &str| {
        let metrics = agent.metrics().ok()?;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("manx_policy_drops_total{") && line.contains(labels))?;
        line.rsplit(' ').next()?.parse::<u64>().ok()
    };
    for labels in [
        r#"kind="ClusterNetworkPolicy",namespace="",policy="nobody-to-c",direction="ingress",reason="denied""#,
        r#"kind="",namespace="",policy="",direction="ingress",reason="isolated""#,
    ] {
        let enough = wait::until(PATIENCE, || counted(labels).filter(|count| *count >= 4).ok_or(()));
        assert!(enough.is_ok(), "{labels}: {:?}", counted(labels));
    }
}

#[test]
fn kernel_dropped_packets_are_told_with_their_policy_nft() {
    drops_are_told("mxdn", "nft");
}

#[test]
fn kernel_dropped_packets_are_told_with_their_policy_legacy() {
    drops_are_told("mxdl", "legacy");
}
