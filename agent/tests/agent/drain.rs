//! `node drain`: peers are asked to prefer other ways, then the sessions end, and a restart changes nothing about it.

use nix::sys::signal::Signal;
use serde_json::json;

use super::world::*;

fn with_bird() -> (Node, Netns, Bird, Running) {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    let bird = Bird::start(&tor, &["10.200.7.0/24"], "");
    let agent = node.start();
    node.established("tor");
    (node, tor, bird, agent)
}

fn tagged(bird: &Bird) -> bool {
    bird.ask("show route 10.200.1.0/24 all").contains("(65535,0)")
}

#[test]
fn a_drained_node_asks_first_then_ceases_and_stays_so_through_a_restart() {
    let (node, _tor, bird, agent) = with_bird();
    eventually("BIRD has ours", || bird.ask("show route 10.200.1.0/24").contains("10.200.1.0/24"));
    assert!(!tagged(&bird));
    let document = node.json(&["node", "drain", "--delay", "5m", "--message", "new disks"]);
    assert_eq!((&document["kind"], &document["phase"]), (&json!("NodeDrain"), &json!("draining")));
    let (since, until) = (document["since"].as_u64().unwrap(), document["until"].as_u64().unwrap());
    assert!((299..=301).contains(&(until - since)), "{document}");
    eventually("BIRD is asked", || tagged(&bird));
    assert_eq!(node.peer("tor")["state"], "Established");
    assert_eq!(node.json(&["status"])["bgp"]["drain"], "draining");
    assert_eq!(node.manxctl(&["status"]).code, 1);

    // With the delay cut short it is over, and -w sees it through.
    let watched =
        node.manxctl(&["-w=0.1s", "-o", "json", "node", "drain", "--delay", "0", "--message", "new disks"]);
    assert_eq!(watched.code, 0, "{}", watched.err);
    let last = watched.out.lines().last().unwrap().to_owned();
    assert!(last.contains("\"phase\":\"drained\"") && last.contains("\"established\":0"), "{last}");
    eventually("BIRD reads why", || bird.log().contains("new disks"));
    assert_eq!(node.peer("tor")["state"], "Disabled");
    assert_eq!(node.peer("tor")["reason"], "administratively down: new disks");

    // Whoever upgrades the agent meanwhile does not put the node back.
    assert_eq!(agent.stop(Signal::SIGTERM), Some(0));
    let agent = node.start();
    eventually("still drained", || node.json(&["status"])["bgp"]["drain"] == "drained");
    eventually("still down", || node.peer("tor")["state"] == "Disabled");
    assert!(!bird.ask("show protocols").contains("Established"));

    let document = node.json(&["node", "undrain"]);
    assert_eq!((&document["phase"], &document["since"]), (&json!("serving"), &json!(null)));
    node.established("tor");
    eventually("untagged", || {
        bird.ask("show route 10.200.1.0/24").contains("10.200.1.0/24") && !tagged(&bird)
    });
    assert_eq!(node.json(&["status"])["bgp"]["drain"], "serving");
    assert_eq!(agent.stop(Signal::SIGTERM), Some(0));
    let _agent = node.start();
    node.established("tor");
}

#[test]
fn a_stop_in_the_middle_of_a_drain_is_a_cease_and_no_graceful_restart() {
    let (node, _tor, bird, agent) = with_bird();
    assert_eq!(node.manxctl(&["node", "drain", "--delay", "5m", "--message", "going away"]).code, 0);
    assert_eq!(agent.stop(Signal::SIGTERM), Some(0));
    eventually("BIRD reads why", || bird.log().contains("going away"));
    eventually("and keeps nothing", || !bird.ask("show route 10.200.1.0/24").contains("10.200.1.0/24"));
}

#[test]
fn only_root_drains_and_anybody_may_look() {
    let (node, _tor, _bird, _agent) = with_bird();
    for path in ["/v1/node/drain", "/v1/node/undrain"] {
        let (status, body) = node.ask("ro.sock", "POST", path);
        assert!(status.contains("403") && body.contains("Forbidden"), "{path}: {status} {body}");
    }
    let (status, body) = node.ask("ro.sock", "GET", "/v1/node/drain");
    assert!(status.contains("200") && body.contains("serving"), "{status} {body}");
    assert_eq!(node.manxctl(&["node", "drain", "--message", &"x".repeat(256)]).code, 2);
    assert_eq!(node.manxctl(&["node", "drain", "--delay", "25h"]).code, 2);
    assert_eq!(node.json(&["status"])["bgp"]["drain"], "serving");
    // Taking back what was not ordered changes nothing.
    assert_eq!(node.manxctl(&["node", "undrain"]).code, 0);
    assert_eq!(node.peer("tor")["flaps"], 0);
}
