//! The agent's parts alone: routing without policy and CNI; and its log for a machine to read.

use serde_json::Value;

use super::world::*;

#[test]
fn bgp_alone_routes_and_touches_neither_rules_nor_the_runtimes_configuration() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    // Somebody else's rules and chains, before and after.
    node.net.sh("iptables-nft -N THEIRS");
    node.net.sh("iptables-nft -A FORWARD -j THEIRS");
    let before = node.net.rules();
    let bird = Bird::start(&tor, &["10.200.7.0/24"], "");
    let agent = node.start_with(&["--enable", "bgp"]);
    node.established("tor");
    eventually("what BIRD says is in the kernel", || node.net.route("10.200.7.0/24").is_some());
    eventually("BIRD hears of the pod CIDR", || bird.ask("show route").contains("10.200.1.0/24"));
    let status = node.json(&["status"]);
    assert!(status["policy"].is_null() && status["cni"].is_null(), "{status}");
    eventually("ready with BGP alone", || {
        node.http("/readyz").is_some_and(|(status, _)| status.contains(" 200 "))
    });
    let stripped = |text: String| -> Vec<String> {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|l| l.split(" [").next().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(stripped(node.net.rules()), stripped(before));
    assert_eq!(node.net.sets(), "");
    assert!(!node.conflist().exists() && !node.node_json().exists());
    assert_eq!(agent.stop(nix::sys::signal::Signal::SIGTERM), Some(0));
}

#[test]
fn every_line_of_a_json_log_parses_and_says_when_how_bad_where_and_what() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    node.manifest("broken.yaml", "kind: [");
    let _bird = Bird::start(&tor, &["10.200.7.0/24"], "");
    let agent = node.start_with(&["--log-format", "json", "--log", "debug"]);
    eventually("it complains", || node.log().contains("broken.yaml"));
    node.manifest("broken.yaml", "");
    node.settled();
    node.established("tor");
    assert_eq!(agent.stop(nix::sys::signal::Signal::SIGTERM), Some(0));
    let log = node.log();
    let mut seen = Vec::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let time = line["timestamp"].as_str().unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{line}");
        assert!(["ERROR", "WARN", "INFO", "DEBUG"].contains(&line["level"].as_str().unwrap()), "{line}");
        assert!(line["target"].is_string() && line["fields"].is_object(), "{line}");
        seen.push((line["level"].clone(), line["fields"].clone()));
    }
    let has = |level: &str, message: &str, field: &str, value: &str| {
        seen.iter().any(|(l, f)| l == level && f["message"] == message && f[field] == value)
    };
    // Values are fields, not words of the message.
    assert!(has("WARN", "manifest problem", "file", "broken.yaml"), "{log}");
    assert!(has("INFO", "agent started", "node", "n1"), "{log}");
    assert!(has("INFO", "session changed", "to", "Established"), "{log}");
}
