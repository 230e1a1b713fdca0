//! An operator's orders: reset, disable, enable; what they leave in the peer's history, and over which socket they go.

use serde_json::{Value, json};

use super::world::*;

fn with_bird() -> (Node, Netns, Bird, Running) {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    let bird = Bird::start(&tor, &["10.200.7.0/24"], "");
    let agent = node.start();
    node.established("tor");
    eventually("learned", || node.net.route("10.200.7.0/24").is_some());
    (node, tor, bird, agent)
}

fn history(node: &Node) -> Vec<Value> {
    node.json(&["peer", "history", "tor"])["items"].as_array().unwrap().clone()
}

#[test]
fn a_peer_is_disabled_with_a_message_through_changes_of_its_manifest_until_it_is_enabled() {
    let (node, _tor, bird, _agent) = with_bird();
    let answer = node.manxctl(&["peer", "disable", "tor", "--message", "new optics at 3:00"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(answer.out.contains("disabled"), "{}", answer.out);
    let row = node.peer("tor");
    assert_eq!((&row["state"], &row["cause"]), (&json!("Disabled"), &json!("admin-down")));
    assert_eq!(row["reason"], "administratively down by an operator: new optics at 3:00");
    eventually("BIRD reads why", || bird.log().contains("new optics at 3:00"));
    eventually("its routes go", || node.net.route("10.200.7.0/24").is_none());

    node.manifest("peer.yaml", &PEER.replace("connectRetry: 1s", "connectRetry: 2s, holdTime: 30s"));
    node.manifest("other.yaml", &PEER.replace("name: tor", "name: other").replace("10.1.0.1", "10.1.0.77"));
    eventually("the change is in", || node.peer("other")["name"] == "other");
    assert_eq!(node.peer("tor")["state"], "Disabled", "a reload takes nothing back");

    assert_eq!(node.manxctl(&["peer", "enable", "10.1.0.1"]).code, 0);
    node.established("tor");
    let lines = history(&node);
    let down = lines.iter().find(|t| t["to"] == "Disabled").unwrap();
    assert_eq!((&down["from"], &down["cause"]), (&json!("Established"), &json!("admin-down")));
    let word = &down["notification"];
    assert_eq!((&word["direction"], &word["code"], &word["subcode"]), (&json!("sent"), &json!(6), &json!(2)));
    assert_eq!(lines.last().unwrap()["to"], "Established");
}

#[test]
fn a_reset_is_a_cease_of_its_own_and_a_soft_one_leaves_the_session_alone() {
    let (node, _tor, bird, _agent) = with_bird();
    let show = || node.json(&["peer", "show", "tor"]);
    for how in [&["--soft"][..], &["--soft", "in"], &["--soft", "out"]] {
        let answer = node.manxctl(&[&["peer", "reset", "tor"], how].concat());
        assert_eq!(answer.code, 0, "{}", answer.err);
    }
    eventually("asked twice", || show()["messages"]["sentByType"]["route-refresh"].as_u64() >= Some(2));
    assert_eq!(
        (node.peer("tor")["state"].clone(), node.peer("tor")["flaps"].clone()),
        (json!("Established"), json!(0))
    );

    assert_eq!(node.manxctl(&["peer", "reset", "tor"]).code, 0);
    eventually("down and up", || {
        node.peer("tor")["flaps"] == 1 && node.peer("tor")["state"] == "Established"
    });
    eventually("BIRD reads why", || bird.log().contains("Administrative reset"));
    assert!(history(&node).iter().any(|t| t["cause"] == "admin-reset"));
    assert_eq!(show()["lastNotification"]["text"], "Cease/Administrative Reset");
    eventually("learned again", || node.net.route("10.200.7.0/24").is_some());
}

#[test]
fn orders_go_over_the_admin_socket_only_and_once() {
    let (node, _tor, _bird, _agent) = with_bird();
    for verb in ["reset", "disable", "enable"] {
        let (status, body) = node.ask("ro.sock", "POST", &format!("/v1/peers/tor/{verb}"));
        assert!(status.contains("403") && body.contains("\"code\":\"Forbidden\""), "{verb}: {status} {body}");
        let (status, _) = node.ask("admin.sock", "GET", &format!("/v1/peers/tor/{verb}"));
        assert!(status.contains("405"), "{verb}: {status}");
        assert_eq!(node.manxctl(&["peer", verb, "nobody"]).code, 1);
        assert_eq!(node.manxctl(&["-w", "peer", verb, "tor"]).code, 2);
    }
    let long = "x".repeat(256);
    assert_eq!(node.manxctl(&["peer", "disable", "tor", "--message", &long]).code, 2);
    assert_eq!(node.peer("tor")["state"], "Established");
    assert_eq!(node.peer("tor")["flaps"], 0);
    // Who reads may read the history.
    let (status, body) = node.ask("ro.sock", "GET", "/v1/peers/tor/history");
    assert!(status.contains("200") && body.contains("PeerHistory"), "{status}");
    assert_eq!(node.manxctl(&["peer", "history", "nobody"]).code, 1);
}

#[test]
fn a_history_tells_a_refused_dial_from_a_lost_session_and_survives_the_peer() {
    let (node, _tor, bird, _agent) = with_bird();
    drop(bird);
    eventually("the port is closed", || node.peer("tor")["cause"] == "tcp-refused");
    let lines = history(&node);
    let lost = lines.iter().find(|t| t["from"] == "Established").unwrap();
    assert_eq!(lost["cause"], "tcp-lost", "{lines:?}");
    let text = node.manxctl(&["peer", "history", "tor"]).out;
    assert!(text.contains("Connection refused"), "{text}");
    node.remove_manifest("peer.yaml");
    eventually("gone", || node.json(&["peers"])["items"] == json!([]));
    let after = node.json(&["peer", "history", "tor"]);
    assert_eq!((&after["configured"], &after["state"]), (&json!(false), &json!(null)));
    assert!(after["items"].as_array().unwrap().iter().any(|t| t["cause"] == "deconfigured"));
}
