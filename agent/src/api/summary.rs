//! The node in short, for those who are told from time to time instead of asking.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::bgp::PeerInfo;
use super::facts::Facts;
use super::peers;
use super::server::{Api, bgp_status};
use crate::health::Health;
use crate::status::node_state::NodeNow;
use crate::view::PeerRow;

/// How the node stands; `None`: it cannot be told now.
pub async fn node(api: &Arc<Api>, health: &Health) -> Option<NodeNow> {
    let facts = api.facts.get();
    let mut now = NodeNow { asn: facts.asn, router_id: facts.router_id.clone(), ..NodeNow::default() };
    "Serving".clone_into(&mut now.drain);
    if api.bgp_enabled && api.bgp.get().is_some() {
        now.drain = format!("{:?}", bgp_status(api, &facts).await.ok()?.drain);
        now.peers = peers::list(State(api.clone())).await.ok().map(|Json(list)| list.items)?;
    }
    let (_, checks) = health.ready();
    now.not_ready = checks
        .into_iter()
        .filter(|(_, check)| !check.ok)
        .map(|(name, check)| (name, check.observed))
        .collect();
    now.network_missing = network_missing(api, &facts, &now.peers);
    let declared = |(name, info): (&String, &PeerInfo)| {
        info.origin.starts_with("BGPPeer ").then(|| name.split('@').next().unwrap_or_default().to_owned())
    };
    now.declared = facts.peers.iter().chain(&facts.ranges).filter_map(declared).collect();
    let of_node = format!("Node {}", api.node);
    let not_done =
        facts.bgp_problems.iter().filter(|p| p.object.as_ref() == Some(&of_node) && facts.asn.is_some());
    now.not_done = not_done.map(|problem| problem.reason.clone()).collect();
    Some(now)
}

/// What pods still wait for on this node: CNI, the first policy, and of the required peers at least one.
fn network_missing(api: &Api, facts: &Facts, peers: &[PeerRow]) -> Option<String> {
    if let Some(reason) = &facts.cni_blocked {
        return Some(format!("pods cannot be attached: {reason}"));
    }
    if facts.conflist.is_none() {
        return Some("the CNI configuration is not written yet".to_owned());
    }
    if api.policy.is_some() && (!facts.policy.closed || facts.policy.pending) {
        return Some("policy is not in the kernel yet".to_owned());
    }
    if api.bgp_enabled && facts.asn.is_none() {
        return Some("the speaker does not run yet".to_owned());
    }
    let mut required = facts.peers.iter().filter(|(_, info)| info.required).peekable();
    let up = |name: &str| peers.iter().any(|peer| peer.name == name && peer.established());
    if required.peek().is_some() && !required.any(|(name, _)| up(name)) {
        return Some("no required peer is Established".to_owned());
    }
    None
}
