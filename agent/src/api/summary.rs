//! The node in short, for those who are told from time to time instead of asking.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::bgp::PeerInfo;
use super::facts::Facts;
use super::peers;
use super::server::{Api, bgp_status};
use crate::health::Health;
use crate::status::node_state::NodeNow;
use crate::view::{PeerRow, StatusProblem};

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
    now.misunderstood = misunderstood(&facts.source_problems);
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

/// Policies that cannot be understood, each with all that is wrong with it.
fn misunderstood(problems: &[StatusProblem]) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for problem in problems {
        let Some(object) = problem.object.as_ref().filter(|object| object.contains("NetworkPolicy ")) else {
            continue;
        };
        let reasons = found.entry(object.clone()).or_default();
        if !reasons.is_empty() {
            reasons.push_str("; ");
        }
        reasons.push_str(&problem.reason);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_with_a_policy_is_told_of_it_and_nothing_of_other_objects() {
        let problem = |object: Option<&str>, reason: &str| StatusProblem {
            object: object.map(str::to_owned),
            reason: reason.to_owned(),
            ..StatusProblem::default()
        };
        let problems = [
            problem(None, "the server is away"),
            problem(Some("Node n2"), "spec.podCIDRs[0]: not a block"),
            problem(Some("NetworkPolicy shop/web"), "spec.ingress[0]: one thing"),
            problem(Some("NetworkPolicy shop/web"), "spec.egress[0]: another"),
            problem(Some("Calico GlobalNetworkPolicy all"), "spec.selector: a third"),
        ];
        let expected = [
            ("Calico GlobalNetworkPolicy all", "spec.selector: a third"),
            ("NetworkPolicy shop/web", "spec.ingress[0]: one thing; spec.egress[0]: another"),
        ];
        assert_eq!(misunderstood(&problems), expected.map(|(o, r)| (o.to_owned(), r.to_owned())).into());
    }
}
