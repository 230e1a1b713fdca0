//! What ships for Prometheus and Grafana asks for nothing that the agent does not export.

use std::collections::BTreeSet;

use super::world::*;

/// Words of a text that begin like our metrics.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    words.filter(|w| w.starts_with("manx_")).map(str::to_owned).collect()
}

#[test]
fn alerts_and_dashboard_ask_only_for_metrics_that_the_agent_exports() {
    let asked: BTreeSet<String> = metrics(include_str!("../../../manifests/monitoring/alerts.yaml"))
        .union(&metrics(include_str!("../../../manifests/monitoring/dashboard.json")))
        .cloned()
        .collect();
    assert!(asked.contains("manx_bgp_session_up") && asked.len() > 15, "{asked:?}");
    let (node, tor) = Node::wired();
    // Metrics of a family are there once something has happened of which they tell.
    node.manifest("peer.yaml", &PEER.replace("connectRetry", "bfd: {}, connectRetry"));
    let _bird = Bird::start(&tor, &["10.200.7.0/24"], "");
    let _agent = node.start();
    node.established("tor");
    assert_eq!(node.manxctl(&["peer", "reset", "tor"]).code, 0);
    let exported = || {
        let text = node.http("/metrics").unwrap().1;
        metrics(&text.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect::<String>())
    };
    for name in &asked {
        eventually(&format!("{name} is exported"), || exported().contains(name));
    }
}
