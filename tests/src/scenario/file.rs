//! Scenarios as they stand in a file: the world they need, the steps that change it, the table after each.
//!
//! Every scenario begins in the same world: the namespaces x, y and z (labels `ns: x`, ...), in each the pods a, b and c
//! (labels `pod: a`, ...), and every pod answers on the ports 80 and 81 of TCP, UDP and SCTP, which its containers name
//! `serve-80-tcp` and so on. Steps add to what the steps before them have made.
//!
//! `${x/a:4}` and `${x/a:6}` in an object stand for a pod's addresses, `${POD:4}` and `${POD:6}` for all of the cluster's.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::table::Table;

/// Labels by key; a key without a value is taken away.
pub type Labels = BTreeMap<String, Option<String>>;

/// A scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What is shown, as a sentence.
    pub title: String,
    /// What happens.
    pub steps: Vec<Step>,
}

/// A change of the world and what holds after it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// NetworkPolicies by `NAMESPACE/NAME`, as their `spec`; without one: deleted.
    pub policies: BTreeMap<String, Option<Value>>,
    /// ClusterNetworkPolicies by name, as their `spec`; without one: deleted.
    pub cluster: BTreeMap<String, Option<Value>>,
    /// Calico's policies, as their `spec`: a NetworkPolicy by `NAMESPACE/NAME`, a GlobalNetworkPolicy by name; without one:
    /// deleted.
    pub calico: BTreeMap<String, Option<Value>>,
    /// The nodes ask and answer like pods, as `nodes/node-1` and so on. x/a, y/a and z/a run on node-1 whatever the rack.
    pub nodes: bool,
    /// Any other objects, whole. One of the same kind, namespace and name is replaced.
    pub objects: Vec<Value>,
    /// Objects to delete, as `KIND/NAMESPACE/NAME` or `KIND/NAME`.
    pub delete: Vec<String>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// Labels of pods. A pod that is not there yet is started.
    pub pods: BTreeMap<String, Labels>,
    /// Pods that are deleted.
    pub gone: Vec<String>,
    /// What holds then.
    pub expect: Table,
}

/// Scenarios of which each is one rule: every peer with every port, for both directions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Product {
    peers: BTreeMap<String, PeerRow>,
    ports: BTreeMap<String, PortRow>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerRow {
    /// The rule's `from` or `to`; without one: the rule has none.
    peers: Option<Value>,
    /// Whom that lets through.
    who: String,
    /// Whom it lets through over IPv6 where that differs.
    who6: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortRow {
    ports: Option<Value>,
    /// What that lets through; nothing: no port at all.
    what: Option<String>,
}

/// Reads a file of scenarios.
///
/// # Errors
/// What in it cannot be read.
pub fn scenarios(path: &Path) -> Result<Vec<Scenario>> {
    read(path)
}

/// Reads a file of peers and ports and makes a scenario of every combination.
///
/// # Errors
/// What in it cannot be read.
pub fn combinations(path: &Path) -> Result<Vec<Scenario>> {
    let product: Product = read(path)?;
    let mut all = Vec::new();
    for (peer_name, peer) in &product.peers {
        for (port_name, port) in &product.ports {
            for (direction, side) in [("ingress", "from"), ("egress", "to")] {
                let mut rule = serde_json::Map::new();
                rule.extend(peer.peers.clone().map(|peers| (side.to_owned(), peers)));
                rule.extend(port.ports.clone().map(|ports| ("ports".to_owned(), ports)));
                let kind = if direction == "ingress" { "Ingress" } else { "Egress" };
                let spec = json!({
                    "podSelector": {"matchLabels": {"pod": "a"}},
                    "policyTypes": [kind],
                    direction: [rule],
                });
                let text = expected(direction == "ingress", peer, port.what.as_deref());
                let step = Step {
                    policies: BTreeMap::from([("x/only".to_owned(), Some(spec))]),
                    expect: Table::try_from(text)?,
                    ..Step::default()
                };
                let title = format!("{direction} of x/a: {peer_name}, {port_name}");
                all.push(Scenario { title, steps: vec![step] });
            }
        }
    }
    Ok(all)
}

/// The table of one rule at x/a: everything shut but what peers and ports let through.
fn expected(ingress: bool, peer: &PeerRow, what: Option<&str>) -> String {
    let pair = |other: &str| match ingress {
        true => format!("{other} -> x/a"),
        false => format!("x/a -> {other}"),
    };
    let mut text = format!("shut {}\n", pair("*"));
    let Some(what) = what else { return text };
    let what = if what == "all" { "" } else { what };
    for (who, family) in [(&peer.who, "v4"), (peer.who6.as_ref().unwrap_or(&peer.who), "v6")] {
        if who != "nobody" {
            text.push_str(&format!("open {} {what} {family}\n", pair(who)));
        }
    }
    text
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{}", path.display()))
}
