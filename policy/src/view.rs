//! What the engine tells people: which policies hold for a pod, their rules in words, figures and complaints. Plain data;
//! decides nothing.

use std::time::SystemTime;

use serde::Serialize;

use crate::model::{Action, Direction, Peer, Pod, Policy, Port, Problem, Rule};
use crate::names::{say_block, say_pods};
use crate::state::State;

/// What holds for one pod, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodPolicyView {
    /// `namespace/name`.
    pub pod: String,
    /// Host-network pods are never policed.
    pub host_network: bool,
    /// To the pod.
    pub ingress: DirectionView,
    /// From the pod.
    pub egress: DirectionView,
    /// The pod's interfaces on this node.
    pub endpoints: Vec<EndpointView>,
}

/// One direction of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DirectionView {
    /// Some policy selects the pod in this direction.
    pub isolated: bool,
    /// Every policy that selects it, staged ones too, by name.
    pub policies: Vec<PolicyView>,
}

/// One policy's part in a direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyView {
    /// `namespace/name`.
    pub name: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// Reported, not enforced.
    pub staged: bool,
    /// The rules in words, in their order.
    pub rules: Vec<String>,
    /// What could not be understood.
    pub problems: Vec<Problem>,
}

/// One interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointView {
    /// Name on the host.
    pub interface: String,
    /// Addresses from the attachment.
    pub addresses: Vec<std::net::IpAddr>,
    /// Since when its current policy is in the kernel; `None`: it is not.
    pub in_force_since: Option<SystemTime>,
    /// Why it is not.
    pub reason: Option<String>,
}

/// Figures and complaints for the status page.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct EngineStatus {
    /// The source has said that it is in sync.
    pub in_sync: bool,
    /// Attachments of this node.
    pub endpoints: usize,
    /// Of those, how many have their current policy in the kernel.
    pub endpoints_in_force: usize,
    /// Policies that select a pod of this node.
    pub active_policies: usize,
    /// Sets desired, both families.
    pub sets: usize,
    /// Members of those sets.
    pub set_members: usize,
    /// Steps of the last outcome that failed, and everything in objects that was refused.
    pub problems: Vec<Problem>,
}

/// One direction of a pod: every policy that selects it, staged ones too.
pub(crate) fn direction(state: &State, pod: &Pod, direction: Direction) -> DirectionView {
    let selecting: Vec<&Policy> = state
        .policies()
        .map(|policy| &**policy)
        .filter(|p| !pod.host_network && p.rules(direction).is_some())
        .filter(|p| state.selects(&p.subject, &pod.id.namespace, &pod.labels))
        .collect();
    DirectionView {
        isolated: selecting.iter().any(|p| !p.staged && p.id.tier == crate::model::Tier::NetworkPolicy),
        policies: selecting.into_iter().map(|p| policy_view(p, direction)).collect(),
    }
}

fn policy_view(policy: &Policy, direction: Direction) -> PolicyView {
    let rules = policy.rules(direction).unwrap_or_default();
    PolicyView {
        name: policy.id.to_string(),
        generation: policy.generation,
        staged: policy.staged,
        rules: rules.iter().map(|rule| rule_words(rule, direction)).collect(),
        problems: policy.problems.clone(),
    }
}

/// A rule as a sentence.
pub fn rule_words(rule: &Rule, direction: Direction) -> String {
    if rule.refused {
        return "refused: opens nothing".into();
    }
    let verb = match rule.action {
        Action::Accept => "allow",
        Action::Deny => "deny",
        Action::Pass => "pass",
    };
    let (side, everyone) = match direction {
        Direction::Ingress => ("from", "everyone"),
        Direction::Egress => ("to", "everyone"),
    };
    let peers = match &rule.peers {
        None => everyone.to_string(),
        Some(peers) => joined(peers.iter().map(peer_words)),
    };
    let ports = match &rule.ports {
        None => "every port".to_string(),
        Some(ports) => joined(ports.iter().map(port_words)),
    };
    format!("{verb} {side} {peers} on {ports}")
}

fn joined(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(" or ")
}

fn peer_words(peer: &Peer) -> String {
    match peer {
        Peer::Pods(selector) => say_pods(selector),
        Peer::Block(block) => say_block(block),
    }
}

fn port_words(port: &Port) -> String {
    match port {
        Port::All(protocol) => format!("all of {protocol}"),
        Port::Range(protocol, first, last) if first == last => format!("{first}/{protocol}"),
        Port::Range(protocol, first, last) => format!("{first}-{last}/{protocol}"),
        Port::Named(protocol, name) => format!("{name}/{protocol}"),
    }
}
