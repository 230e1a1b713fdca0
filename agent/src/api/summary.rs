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
    now.network_missing = network_missing(api.policy.is_some(), api.bgp_enabled, &facts, &now.peers);
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
fn network_missing(policy: bool, bgp: bool, facts: &Facts, peers: &[PeerRow]) -> Option<String> {
    if let Some(reason) = &facts.cni_blocked {
        return Some(format!("pods cannot be attached: {reason}"));
    }
    if facts.conflist.is_none() {
        return Some("the CNI configuration is not written yet".to_owned());
    }
    if policy && (!facts.policy.closed || facts.policy.pending) {
        return Some("policy is not in the kernel yet".to_owned());
    }
    if bgp && facts.asn.is_none() {
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

    /// A node that has everything, with two required peers and one that nobody waits for.
    fn ready() -> Facts {
        let peer = |required| PeerInfo { required, ..PeerInfo::default() };
        let mut facts =
            Facts { conflist: Some("10-manx.conflist".into()), asn: Some(64512), ..Facts::default() };
        facts.policy.closed = true;
        facts.peers =
            [("a", true), ("b", true), ("extra", false)].map(|(n, r)| (n.to_owned(), peer(r))).into();
        facts
    }

    fn row(name: &str, state: &str) -> PeerRow {
        PeerRow { name: name.into(), state: state.into(), ..PeerRow::default() }
    }

    fn missing(facts: &Facts, peers: &[PeerRow]) -> String {
        network_missing(true, true, facts, peers).unwrap_or_default()
    }

    #[test]
    fn the_network_is_there_after_cni_policy_and_one_required_peer() {
        let up = [row("a", "Connect"), row("b", "Established")];
        assert_eq!(missing(&ready(), &up), "");
        for others in [vec![], vec![row("a", "Connect"), row("extra", "Established")]] {
            assert_eq!(missing(&ready(), &others), "no required peer is Established");
        }
        let without = |change: fn(&mut Facts)| {
            let mut facts = ready();
            change(&mut facts);
            missing(&facts, &up)
        };
        assert_eq!(without(|f| f.conflist = None), "the CNI configuration is not written yet");
        assert_eq!(without(|f| f.policy.pending = true), "policy is not in the kernel yet");
        assert_eq!(without(|f| f.policy.closed = false), "policy is not in the kernel yet");
        assert_eq!(without(|f| f.asn = None), "the speaker does not run yet");
        assert_eq!(without(|f| f.cni_blocked = Some("x".into())), "pods cannot be attached: x");
    }

    #[test]
    fn what_is_not_enabled_or_not_required_is_not_waited_for() {
        let mut facts = ready();
        (facts.policy.closed, facts.asn) = (false, None);
        facts.peers.clear();
        assert_eq!(network_missing(false, false, &facts, &[]), None);
    }
}
