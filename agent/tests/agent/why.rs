//! `peer why` against real causes: each is made, and the rung that it breaks has to be the answer.

use serde_json::{Value, json};

use super::world::*;

/// The rungs that fail, and the whole document.
fn why(node: &Node, peer: &str) -> (Vec<String>, Value) {
    let document = node.json(&["peer", "why", peer]);
    let rungs = document["rungs"].as_array().cloned().unwrap_or_default();
    let failed = rungs.iter().filter(|r| r["result"] == "failed");
    (failed.map(|r| r["name"].as_str().unwrap().to_owned()).collect(), document)
}

fn eventually_why(node: &Node, peer: &str, rung: &str, answer: &str) {
    let mut last = Value::Null;
    let start = std::time::Instant::now();
    while start.elapsed() < PATIENCE {
        let (failed, document) = why(node, peer);
        if failed.first().is_some_and(|f| f == rung) && document["answer"].to_string().contains(answer) {
            assert!(document["remedy"].is_string(), "{document}");
            assert_eq!(node.manxctl(&["peer", "why", peer]).code, 1);
            return;
        }
        last = document;
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("{rung}: {answer} is not the answer: {last:#}");
}

fn fast(options: &str) -> String {
    PEER.replace("connectRetry: 1s", &format!("connectRetry: 1s{options}"))
}

#[test]
fn the_answer_climbs_with_the_fault_from_the_neighbour_to_the_open() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    let _agent = node.start();
    eventually_why(&node, "tor", "tcp", "refuses connections");
    assert_eq!(node.peer("tor")["cause"], "tcp-refused");

    tor.ip("addr del 10.1.0.1/24 dev eth0");
    node.net.ip("neigh flush dev eth0");
    eventually_why(&node, "10.1.0.1", "neighbour", "does not answer ARP");
    tor.ip("addr add 10.1.0.1/24 dev eth0");

    node.net.ip("link set eth0 down");
    eventually_why(&node, "tor", "route", "no route to 10.1.0.1");
    node.net.ip("link set eth0 up");

    // Another AS than the one that is expected.
    let _bird = Bird::start(&tor, &[], "");
    node.manifest("peer.yaml", &PEER.replace("65001", "65099"));
    eventually_why(&node, "tor", "open", "we refuse its OPEN");
    node.manifest("peer.yaml", PEER);
    node.established("tor");
    let (failed, document) = why(&node, "tor");
    assert_eq!((failed, &document["answer"]), (vec![], &json!(null)), "{document:#}");
    assert_eq!(document["rungs"].as_array().unwrap().len(), 13);
    assert_eq!(node.manxctl(&["peer", "why", "tor"]).code, 0);

    node.manxctl(&["peer", "disable", "tor", "--message", "optics"]);
    eventually_why(&node, "tor", "enabled", "optics");
}

#[test]
fn a_password_on_one_side_only_is_told_from_silence() {
    let (node, tor) = Node::wired();
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: tor, namespace: manx-system}\nstringData: {password: s3cret}\n";
    node.manifest("peer.yaml", &fast(", password: {secretKeyRef: {name: tor, key: password}}"));
    let bird = Bird::start(&tor, &[], "");
    let _agent = node.start();
    eventually_why(&node, "tor", "secret", "Secret manx-system/tor does not exist");
    node.manifest("secret.yaml", secret);
    eventually_why(&node, "tor", "tcp", "TCP-MD5: peer sends unsigned segments");
    eventually("the list says so", || node.peer("tor")["reason"] == "TCP-MD5: peer sends unsigned segments");
    assert_eq!(node.peer("tor")["cause"], "tcp-md5");
    drop(bird);

    let bird = Bird::start(&tor, &[], "password \"an0ther\";");
    eventually_why(&node, "tor", "tcp", "TCP-MD5: peer signs with another key");
    drop(bird);
    let _bird = Bird::start(&tor, &[], "password \"s3cret\";");
    node.established("tor");
    assert_eq!(node.peer("tor")["reason"], json!(null));
}

#[test]
fn an_address_that_is_no_peer_is_told_why_not() {
    let node = Node::alone();
    let elsewhere = PEER
        .replace("name: tor", "name: other")
        .replace("10.1.0.1", "10.2.0.1")
        .replace("connectRetry: 1s", "nodeSelector: {matchLabels: {rack: b}}");
    node.manifest("peer.yaml", PEER);
    node.manifest("other.yaml", &elsewhere);
    let _agent = node.start();
    let (failed, document) = why(&node, "10.1.0.9");
    assert_eq!((failed, &document["name"]), (vec!["selected".to_owned()], &json!(null)));
    assert_eq!(document["nearly"], json!(["BGPPeer tor names 10.1.0.1"]));
    let (_, document) = why(&node, "other");
    assert!(document["nearly"].to_string().contains("it wants rack=b, this node has rack=a"), "{document}");
    let answer = node.manxctl(&["peer", "why", "192.0.2.1"]);
    assert_eq!(answer.code, 1);
    assert!(answer.out.contains("no BGPPeer makes 192.0.2.1 a peer"), "{}", answer.out);
    assert_eq!(node.manxctl(&["peer", "why", "nobody"]).code, 1);
}
