//! What the engine tells people: which policies hold for a pod, their rules in words, figures and complaints. Plain data;
//! decides nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::SystemTime;

use serde::Serialize;

use crate::calc::Resolved;
use crate::compile::endpoint_chain;
use crate::desired::Desired;
use crate::ir::Table;
use crate::members::Members;
use crate::model::{
    Action, Conditions, Direction, Family, IcmpMatch, Peer, Pod, Policy, PolicyId, PolicyKind, Port,
    PortRange, Problem, Protocol, Rule, Tier, Which,
};
use crate::names::{policy_chain, say_block, say_pods, set_name};
use crate::render::{Reference, references};
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

/// A policy as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyStatus {
    /// Which.
    pub id: PolicyId,
    /// In which tier.
    pub tier: Tier,
    /// Where in its tier; `None`: it has no order, or goes last.
    pub order: Option<f64>,
    /// `metadata.generation`.
    pub generation: i64,
    /// Counted, not enforced.
    pub staged: bool,
    /// How many attachments of this node it governs.
    pub endpoints: usize,
    /// Rules for ingress and for egress; `None`: it does not speak of that direction.
    pub rules: [Option<usize>; 2],
    /// Since when this generation is in the kernel of this node.
    pub in_force_since: Option<SystemTime>,
    /// Why it is not.
    pub reason: Option<String>,
    /// What could not be understood.
    pub problems: Vec<Problem>,
}

impl PolicyStatus {
    pub(crate) fn new(
        policy: &Policy,
        endpoints: usize,
        in_force_since: Option<SystemTime>,
        reason: Option<String>,
    ) -> Self {
        let ordered = policy.id.kind != PolicyKind::NetworkPolicy;
        PolicyStatus {
            id: policy.id.clone(),
            tier: policy.tier,
            order: Some(policy.order.get()).filter(|order| ordered && order.is_finite()),
            generation: policy.generation,
            staged: policy.staged,
            endpoints,
            rules: Direction::ALL.map(|direction| policy.rules(direction).map(<[Rule]>::len)),
            in_force_since,
            reason,
            problems: policy.problems.clone(),
        }
    }
}

/// The chains of these attachments and of the policies that govern them, and the sets that those name.
pub(crate) fn render_pod(desired: &Desired, members: &Members, resolved: &[&Resolved]) -> String {
    let mut names = BTreeSet::new();
    for resolved in resolved {
        names.extend(["FE", "TE", "SE"].map(|kind| endpoint_chain(kind, &resolved.interface)));
        for direction in Direction::ALL {
            names.extend(resolved.access.policies(direction).iter().map(|g| policy_chain(&g.id, direction)));
        }
    }
    let mut text = String::new();
    for family in Family::ALL {
        let mut sets = BTreeSet::new();
        let _ = writeln!(text, "# {family:?}");
        for table in Table::ALL {
            let chains: Vec<_> = desired
                .chains(family)
                .iter()
                .filter(|((t, name), _)| *t == table && names.contains(name))
                .collect();
            if chains.is_empty() {
                continue;
            }
            let _ = writeln!(text, "*{}", table.as_str());
            for ((_, name), lines) in chains {
                let _ = writeln!(text, ":{name} - [0:0]");
                for line in lines.iter() {
                    let _ = writeln!(text, "-A {name} {}", line.spec);
                    sets.extend(references(&line.spec).filter_map(|reference| match reference {
                        Reference::Set(name) => Some(name.to_string()),
                        Reference::Chain(_) => None,
                    }));
                }
            }
        }
        for (_, set) in members.sets() {
            let name = set_name(family, &set.suffix);
            if sets.contains(&name) {
                let list: Vec<String> = set.members(family).iter().map(ToString::to_string).collect();
                let _ = writeln!(text, "# set {name} {}: {}", set.kind.as_str(), list.join(" "));
            }
        }
    }
    text
}

/// One direction of a pod: every policy that selects it, staged ones too.
pub(crate) fn direction(state: &State, pod: &Pod, direction: Direction) -> DirectionView {
    let labels = state.labels_of(pod);
    let mut selecting: Vec<&Policy> = state
        .policies()
        .map(|policy| &**policy)
        .filter(|p| !pod.host_network && p.rules(direction).is_some())
        .filter(|p| p.subject.iter().any(|s| state.selects(s, &pod.id.namespace, &labels)))
        .collect();
    selecting.sort_by_key(|p| (p.tier, p.order, p.id.clone()));
    DirectionView {
        isolated: selecting.iter().any(|p| !p.staged && p.tier == Tier::NetworkPolicy),
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
    match rule.refused_matches() {
        Some(false) => return "refused: opens nothing".into(),
        Some(true) => return "refused: denies everything".into(),
        None => {}
    }
    let verb = match rule.action {
        Action::Accept => "allow",
        Action::Deny => "deny",
        Action::Pass => "pass",
        Action::Log => "log",
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
    let more = rule.more.as_ref().map(|more| conditions_words(more)).unwrap_or_default();
    format!("{verb} {side} {peers} on {ports}{more}")
}

fn joined(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(" or ")
}

fn peer_words(peer: &Peer) -> String {
    match peer {
        Peer::Pods(selector) => say_pods(selector),
        Peer::Block(block) => say_block(block),
        Peer::Nodes(labels) if labels.is_everything() => "all nodes".into(),
        Peer::Nodes(labels) => format!("nodes with {labels}"),
        Peer::Entities(selector) => format!("{} and network sets like them", say_pods(selector)),
    }
}

/// What else a rule asks, each condition with a comma before it.
fn conditions_words(more: &Conditions) -> String {
    let mut words = Vec::new();
    words.extend(more.family.map(|family| format!("{family:?}")));
    words.extend(more.protocol.map(|number| format!("protocol {number}")));
    words.extend(more.not_protocol.map(|number| format!("not protocol {number}")));
    let icmp = |icmp: &IcmpMatch| match icmp.code {
        Some(code) => format!("ICMP {}/{code}", icmp.kind),
        None => format!("ICMP {}", icmp.kind),
    };
    words.extend(more.icmp.as_ref().map(icmp));
    words.extend(more.not_icmp.as_ref().map(|unwanted| format!("not {}", icmp(unwanted))));
    let side = |which: &Which| if *which == Which::Own { "the pod" } else { "the other" };
    for (which, peers) in &more.any_of {
        words.push(format!("{} is in {}", side(which), joined(peers.iter().map(peer_words))));
    }
    for (which, peer) in &more.none_of {
        words.push(format!("{} is not in {}", side(which), peer_words(peer)));
    }
    let ranges = |(protocol, ranges): &(Protocol, Vec<PortRange>)| {
        joined(ranges.iter().map(|(first, last)| port_words(&Port::Range(*protocol, *first, *last))))
    };
    words.extend(more.source_ports.as_ref().map(|wanted| format!("from {}", ranges(wanted))));
    words.extend(more.not_source_ports.as_ref().map(|unwanted| format!("not from {}", ranges(unwanted))));
    if !more.not_ports.is_empty() {
        words.push(format!("not on {}", joined(more.not_ports.iter().map(port_words))));
    }
    words.iter().map(|word| format!(", {word}")).collect()
}

fn port_words(port: &Port) -> String {
    match port {
        Port::All(protocol) => format!("all of {protocol}"),
        Port::Range(protocol, first, last) if first == last => format!("{first}/{protocol}"),
        Port::Range(protocol, first, last) => format!("{first}-{last}/{protocol}"),
        Port::Named(protocol, name) => format!("{name}/{protocol}"),
    }
}
