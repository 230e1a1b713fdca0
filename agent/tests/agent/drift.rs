//! `routes --drift`: what differs between the Loc-RIB and the kernel, made with `ip` behind the agent's back.

use serde_json::{Value, json};

use super::world::*;

fn item(document: &Value, prefix: &str) -> Value {
    let items = document["items"].as_array().cloned().unwrap_or_default();
    items.into_iter().find(|i| i["prefix"] == prefix).unwrap_or_default()
}

#[test]
fn the_kernel_and_the_table_agree_until_somebody_meddles() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    // Somebody has a prefix of the peer's at our metric already.
    node.net.ip("route add 10.200.8.0/24 dev eth0 proto bird metric 77");
    let _bird = Bird::start(&tor, &["10.200.7.0/24", "10.200.8.0/24", "fd00:200:7::/64"], "");
    let _agent = node.start();
    eventually("learned", || {
        node.net.route("10.200.7.0/24").is_some() && node.net.route("fd00:200:7::/64").is_some()
    });
    eventually("the one in the way is told", || {
        let drift = node.json(&["routes", "--drift"]);
        let items = drift["items"].as_array().map_or(0, Vec::len);
        let held = item(&drift, "10.200.8.0/24");
        items == 1 && held["drift"] == "missing" && held["reason"].to_string().contains("holds it")
    });
    let drift = node.json(&["routes", "--drift"]);
    assert_eq!((&drift["apiVersion"], &drift["kind"]), (&json!("manx.dev/v1"), &json!("RouteDrift")));
    // Two of our own, three of the peer's.
    assert_eq!((&drift["wanted"], &drift["agreeing"]), (&json!(5), &json!(4)));
    assert_eq!(item(&drift, "10.200.8.0/24")["wanted"], json!(["10.1.0.1 dev eth0"]));
    let answer = node.manxctl(&["routes", "--drift"]);
    assert_eq!(answer.code, 1);
    assert!(answer.out.contains("4 of 5 prefixes") && answer.out.contains("MISSING"), "{}", answer.out);

    // Our number at another metric is somebody else's doing.
    node.net.ip("route add 10.99.0.0/16 via 10.1.0.1 proto 77 metric 20");
    let extra = item(&node.json(&["routes", "--drift"]), "10.99.0.0/16");
    assert_eq!((&extra["drift"], &extra["found"]), (&json!("extra"), &json!(["10.1.0.1 dev eth0"])));
    assert!(extra["reason"].to_string().contains("another metric"), "{extra}");
    node.net.ip("route del 10.99.0.0/16 proto 77");

    node.net.ip("route del 10.200.8.0/24 proto bird");
    eventually("nothing differs", || node.manxctl(&["routes", "--drift"]).code == 0);
    assert_eq!(node.json(&["routes", "--drift"])["items"], json!([]));

    // Pod routes are the plugin's and no drift.
    node.net.ip("route add 10.200.1.9/32 dev eth0 proto 77 metric 76");
    assert_eq!(node.manxctl(&["routes", "--drift"]).code, 0);
    assert_eq!(node.manxctl(&["routes", "in", "tor", "--drift"]).code, 2);
    assert_eq!(node.manxctl(&["routes", "--drift", "--best"]).code, 2);
}

#[test]
fn without_a_fib_there_is_nothing_to_compare() {
    let node = Node::alone();
    let _agent = node.start_with(&["--no-fib"]);
    node.settled();
    let answer = node.manxctl(&["routes", "--drift"]);
    assert_eq!(answer.code, 3);
    assert!(answer.err.contains("--no-fib"), "{}", answer.err);
}
