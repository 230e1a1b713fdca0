//! What ships for Prometheus and Grafana asks for nothing that the agent does not export, and what it exports is documented.

use std::collections::{BTreeMap, BTreeSet};

use super::world::*;

/// Packets have to be dropped before it is there; `tests/tests/drops.rs` sees it with its labels.
const AFTER_DROPS: &str = "manx_policy_drops_total";

/// Words of a text that begin like our metrics.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    words.filter(|w| w.starts_with("manx_")).map(str::to_owned).collect()
}

/// A metric's type and the names of its labels.
type Shape = (String, BTreeSet<String>);

/// The table of `docs/operations.md`.
fn documented() -> BTreeMap<String, Shape> {
    let rows = include_str!("../../../docs/operations.md").lines().filter_map(|l| l.strip_prefix("| `manx_"));
    rows.map(|row| {
        let mut cells = row.split(" | ");
        let name = format!("manx_{}", cells.next().unwrap().trim_end_matches('`'));
        let (name, labels) = name.split_once('{').unwrap_or((&name, ""));
        let labels = labels.trim_end_matches('}').split(',').filter(|l| !l.is_empty());
        (name.to_owned(), (cells.next().unwrap().to_owned(), labels.map(str::to_owned).collect()))
    })
    .collect()
}

/// What a scrape in the classic format holds; the labels are those of a family's first sample.
fn exported(scrape: &str) -> BTreeMap<String, Shape> {
    let types = scrape.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' '));
    let sample = |name: &str| {
        scrape.lines().filter(|l| !l.starts_with('#')).find_map(|l| {
            let rest = l.strip_prefix(name)?;
            let rest = ["_sum", "_bucket", "_count", ""].iter().find_map(|s| rest.strip_prefix(s))?;
            let labels = rest.strip_prefix('{').map_or("", |r| r.split_once("} ").map_or("", |(l, _)| l));
            Some(labels.split(',').filter_map(|l| Some(l.split_once('=')?.0.to_owned())).collect())
        })
    };
    types.map(|(name, kind)| (name.to_owned(), (kind.to_owned(), sample(name).unwrap_or_default()))).collect()
}

#[test]
fn alerts_and_dashboard_ask_only_for_metrics_that_are_exported_and_all_of_these_are_documented() {
    let asked: BTreeSet<String> = metrics(include_str!("../../../manifests/monitoring/alerts.yaml"))
        .union(&metrics(include_str!("../../../manifests/monitoring/dashboard.json")))
        .cloned()
        .collect();
    assert!(asked.contains("manx_bgp_session_up") && asked.len() > 15, "{asked:?}");
    let mut documented = documented();
    let (drops, labels) = documented.remove(AFTER_DROPS).expect("it is documented");
    assert_eq!((drops.as_str(), labels.len()), ("counter", 5));

    let (node, tor) = Node::wired();
    // Metrics of a family are there once something has happened of which they tell.
    node.manifest("peer.yaml", &PEER.replace("connectRetry", "bfd: {}, connectRetry"));
    let _bird = Bird::start(&tor, &["10.200.7.0/24"], "");
    let _agent = node.start();
    node.established("tor");
    assert_eq!(node.manxctl(&["peer", "reset", "tor"]).code, 0);
    let mut seen = BTreeMap::new();
    eventually("everything that is documented is exported", || {
        seen = exported(&node.scrape_as("text/plain"));
        documented.keys().all(|name| seen.contains_key(name))
    });
    assert_eq!(seen, documented, "as docs/operations.md has it");
    let scrape = metrics(&node.http("/metrics").unwrap().1);
    let missing: Vec<_> =
        asked.iter().filter(|name| !scrape.contains(*name) && *name != AFTER_DROPS).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
