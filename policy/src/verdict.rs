//! The oracle: flow -> allow or deny, and by which rule, straight from the Kubernetes definition.
//!
//! Knows the model and the snapshot; must not know `calc.rs`, `compile.rs` or anything of iptables, against which it is
//! held. It looks at everything anew for each flow and is meant to be read beside the NetworkPolicy documentation.

use std::net::IpAddr;

use serde::Serialize;

use crate::model::{
    Action, Conditions, Direction, Entity, Family, IcmpMatch, IpBlock, NamedPort, Payload, Peer, PodId,
    Policy, PolicyKind, Port, PortRange, Protocol, Rule, Str, Tier, Which,
};
use crate::state::{State, Workload};

/// One side of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct End {
    /// The address in the packet, after destination and before source translation.
    pub ip: IpAddr,
    /// What stands there.
    pub place: Place,
}

/// What stands at one side of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A pod with an interface of its own, on this node (`None`: not known on which).
    Pod(PodId, Option<Str>),
    /// A node itself or a host-network pod on it.
    Node(Str),
    /// Anything else.
    Elsewhere,
}

/// The first packet of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who opens it.
    pub source: End,
    /// To whom.
    pub destination: End,
    /// What that packet carries.
    pub payload: Payload,
}

/// What decided in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Reason {
    /// Nobody's policy: the pod is not isolated in this direction.
    NotIsolated,
    /// A rule: its policy and its place in the list of rules of this direction.
    Rule {
        /// Name as a person writes it.
        policy: String,
        /// Tier of the policy.
        tier: Tier,
        /// Counted from 0.
        index: usize,
    },
    /// Isolated, and none of these policies allows it.
    Isolated {
        /// The policies that isolate the pod.
        policies: Vec<String>,
    },
    /// A pod and its own node always reach each other.
    OwnNode,
    /// The pod is not known: closed.
    UnknownPod,
    /// Encapsulated traffic does not leave a pod.
    Tunnel,
}

/// One direction's part of the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// At the source (egress) or at the destination (ingress).
    pub direction: Direction,
    /// The pod whose policy it is.
    pub pod: String,
    /// Allowed by this direction.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
}

/// The verdict on a flow: allowed if every direction that anyone polices allows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowVerdict {
    /// Allowed as a whole.
    pub allowed: bool,
    /// Egress at the source pod, then ingress at the destination pod, as far as there are such pods.
    pub decisions: Vec<Decision>,
}

/// UDP ports of encapsulations: VXLAN (IANA and Linux's own), Geneve.
pub const TUNNEL_PORTS: [u16; 3] = [4789, 8472, 6081];

/// IP protocols that encapsulate: IPv4, IPv6, GRE.
pub const TUNNEL_PROTOCOLS: [u8; 3] = [4, 41, 47];

/// Judges a flow.
pub fn verdict(state: &State, flow: &Flow) -> FlowVerdict {
    Oracle::new(state).verdict(flow)
}

/// Judges many flows of one state: everyone who can be a peer is listed once.
#[derive(Debug)]
pub struct Oracle<'a> {
    state: &'a State,
    workloads: Vec<Workload>,
}

impl<'a> Oracle<'a> {
    /// An oracle for this state.
    pub fn new(state: &'a State) -> Self {
        Oracle { state, workloads: state.workloads().collect() }
    }

    /// Judges a flow.
    pub fn verdict(&self, flow: &Flow) -> FlowVerdict {
        let mut decisions = Vec::new();
        for direction in [Direction::Egress, Direction::Ingress] {
            let (this, other) = match direction {
                Direction::Egress => (&flow.source, &flow.destination),
                Direction::Ingress => (&flow.destination, &flow.source),
            };
            if let Place::Pod(id, node) = &this.place {
                let own_node = matches!((&other.place, node), (Place::Node(a), Some(b)) if a == b);
                let (allowed, reason) = self.decide(id, direction, flow, own_node);
                decisions.push(Decision { direction, pod: id.to_string(), allowed, reason });
            }
        }
        FlowVerdict { allowed: decisions.iter().all(|d| d.allowed), decisions }
    }

    fn decide(&self, id: &PodId, direction: Direction, flow: &Flow, own_node: bool) -> (bool, Reason) {
        if direction == Direction::Egress && tunnels(flow.payload) {
            return (false, Reason::Tunnel);
        }
        let labels = match (self.state.pod(id), self.state.workload(id)) {
            (Some(pod), _) if pod.host_network => return (true, Reason::NotIsolated),
            (Some(pod), _) => self.state.labels_of(pod),
            (None, Some(workload)) => workload.labels,
            (None, None) => return (false, Reason::UnknownPod),
        };
        // What the node itself sends is never policed: nothing stands between it and its pods.
        if own_node && direction == Direction::Ingress {
            return (true, Reason::OwnNode);
        }
        let mut policies: Vec<&Policy> = self
            .state
            .policies()
            .map(|policy| &**policy)
            .filter(|p| !p.staged && p.rules(direction).is_some())
            .filter(|p| p.subject.iter().any(|s| self.state.selects(s, &id.namespace, &labels)))
            .collect();
        policies.sort_by_key(|p| (p.order, p.id.clone()));
        let tier = |tier| policies.iter().filter(move |p| p.tier == tier).copied();

        // "If Admin tier has made a final decision (Accept or Deny) on a connection, no further evaluation is done."
        if let Some(decided) = self.first_word(tier(Tier::Admin), direction, id, flow)
            && let Some(allowed) = decided.final_word()
        {
            return (allowed, decided.reason());
        }
        let isolating: Vec<&Policy> = tier(Tier::NetworkPolicy).collect();
        let network_policies =
            isolating.iter().position(|p| p.id.kind == PolicyKind::NetworkPolicy).unwrap_or(isolating.len());
        let (before, rest) = isolating.split_at(network_policies);
        let early = self.first_word(before.iter().copied(), direction, id, flow);
        let decided = match early {
            None if own_node && !isolating.is_empty() => return (true, Reason::OwnNode),
            None => self.first_word(rest.iter().copied(), direction, id, flow),
            decided => decided,
        };
        match decided {
            Some(decided) => {
                if let Some(allowed) = decided.final_word() {
                    return (allowed, decided.reason());
                }
            }
            None if isolating.is_empty() => {}
            None => {
                let policies = isolating.iter().map(|p| p.id.to_string()).collect();
                return (false, Reason::Isolated { policies });
            }
        }
        match self.first_word(tier(Tier::Baseline), direction, id, flow) {
            Some(decided) => (decided.final_word() != Some(false), decided.reason()),
            None => (true, Reason::NotIsolated),
        }
    }

    /// The first rule of these policies, in their order, that matches the flow.
    fn first_word<'p>(
        &self,
        policies: impl Iterator<Item = &'p Policy>,
        direction: Direction,
        pod: &PodId,
        flow: &Flow,
    ) -> Option<Word<'p>> {
        for policy in policies {
            for (index, rule) in policy.rules(direction).into_iter().flatten().enumerate() {
                if rule.action != Action::Log && self.rule_matches(rule, direction, pod, flow) {
                    return Some(Word { policy, index, action: rule.effect() });
                }
            }
        }
        None
    }

    /// "Each rule allows traffic which matches both the from \[to\] and ports sections." An absent section matches all.
    fn rule_matches(&self, rule: &Rule, direction: Direction, pod: &PodId, flow: &Flow) -> bool {
        if let Some(matches) = rule.refused_matches() {
            return matches;
        }
        let other = match direction {
            Direction::Ingress => flow.source.ip,
            Direction::Egress => flow.destination.ip,
        };
        let matches = |peer: Option<&Peer>| {
            peer.is_none_or(|peer| self.is_peer(peer, other))
                && self.ports_match(rule.ports.as_deref(), peer, direction, pod, flow)
        };
        let peers_and_ports = match &rule.peers {
            None => matches(None),
            Some(peers) => peers.iter().any(|peer| matches(Some(peer))),
        };
        peers_and_ports
            && rule.more.as_ref().is_none_or(|more| self.conditions_hold(more, direction, pod, flow))
    }

    fn conditions_hold(&self, more: &Conditions, direction: Direction, pod: &PodId, flow: &Flow) -> bool {
        let ends = (flow.source.ip, flow.destination.ip);
        let address = |which: &Which| match (which, direction) {
            (Which::Own, Direction::Egress) | (Which::Other, Direction::Ingress) => ends.0,
            (Which::Own, Direction::Ingress) | (Which::Other, Direction::Egress) => ends.1,
        };
        let protocol = flow.payload.protocol();
        let icmp = |wanted: &IcmpMatch| match flow.payload {
            Payload::Icmp { kind, code, .. } => {
                Some(kind == wanted.kind && wanted.code.is_none_or(|wanted| code == wanted))
            }
            Payload::Ports { .. } | Payload::Other(_) => None,
        };
        let source_port = |(wanted, ranges): &(Protocol, Vec<PortRange>)| match flow.payload {
            Payload::Ports { protocol, source, .. } if protocol == *wanted => {
                Some(ranges.iter().any(|(first, last)| (*first..=*last).contains(&source)))
            }
            Payload::Ports { .. } | Payload::Icmp { .. } | Payload::Other(_) => None,
        };
        let not_ports = more.not_ports.is_empty() || {
            let of_protocol = |port: &Port| match port {
                Port::All(p) | Port::Range(p, ..) | Port::Named(p, _) => p.number() == protocol,
            };
            more.not_ports.iter().all(of_protocol)
                && !self.ports_match(Some(&more.not_ports), None, direction, pod, flow)
        };
        more.family.is_none_or(|family| family == Family::of(ends.0))
            && more.protocol.is_none_or(|wanted| wanted == protocol)
            && more.not_protocol.is_none_or(|unwanted| unwanted != protocol)
            && more.icmp.as_ref().is_none_or(|wanted| icmp(wanted) == Some(true))
            && more.not_icmp.as_ref().is_none_or(|unwanted| icmp(unwanted) == Some(false))
            && more
                .any_of
                .iter()
                .all(|(which, peers)| peers.iter().any(|peer| self.is_peer(peer, address(which))))
            && !more.none_of.iter().any(|(which, peer)| self.is_peer(peer, address(which)))
            && more.source_ports.as_ref().is_none_or(|wanted| source_port(wanted) == Some(true))
            && more.not_source_ports.as_ref().is_none_or(|unwanted| source_port(unwanted) == Some(false))
            && not_ports
    }

    fn is_peer(&self, peer: &Peer, ip: IpAddr) -> bool {
        match peer {
            Peer::Block(block) => in_block(block, ip),
            Peer::Pods(_) | Peer::Nodes(_) | Peer::Entities(_) => {
                self.workloads.iter().any(|workload| self.stands_for(workload, Some(peer), ip))
            }
        }
    }

    /// Has this workload that address, and is it one of those whom the peer selects? A block, like no peer at all, selects
    /// by address alone.
    fn stands_for(&self, workload: &Workload, peer: Option<&Peer>, ip: IpAddr) -> bool {
        let selected = match peer {
            Some(Peer::Pods(selector)) => {
                self.state.selects(selector, &workload.id.namespace, &workload.labels)
            }
            Some(Peer::Entities(selector)) => {
                let selected = self.state.selects(selector, &workload.id.namespace, &workload.labels);
                if selected && workload.nets.iter().any(|net| net.contains(ip)) {
                    return true;
                }
                selected
            }
            Some(Peer::Nodes(labels)) => {
                *workload.id.namespace == *Entity::NODES && labels.matches(&workload.labels)
            }
            Some(Peer::Block(_)) | None => true,
        };
        selected && workload.addresses.contains(&ip)
    }

    fn ports_match(
        &self,
        ports: Option<&[Port]>,
        peer: Option<&Peer>,
        direction: Direction,
        pod: &PodId,
        flow: &Flow,
    ) -> bool {
        let Some(ports) = ports else { return true };
        let Some((found, number)) = flow.payload.destination_port() else { return false };
        let is = |protocol: &Protocol| *protocol == found;
        ports.iter().any(|port| match port {
            Port::All(protocol) => is(protocol),
            Port::Range(protocol, first, last) => is(protocol) && (*first..=*last).contains(&number),
            Port::Named(protocol, name) => {
                is(protocol) && self.names_port(name, (*protocol, number), peer, direction, pod, flow)
            }
        })
    }

    /// "Resolves on the destination pod": for ingress the policed pod itself, for egress whoever of the peers is there.
    fn names_port(
        &self,
        name: &Str,
        (protocol, number): (Protocol, u16),
        peer: Option<&Peer>,
        direction: Direction,
        pod: &PodId,
        flow: &Flow,
    ) -> bool {
        let has = |ports: &[NamedPort]| {
            ports.iter().any(|p| p.protocol == protocol && p.name == *name && p.number == number)
        };
        match direction {
            Direction::Ingress => self.state.pod(pod).is_some_and(|pod| has(&pod.ports)),
            Direction::Egress => {
                self.workloads.iter().any(|w| self.stands_for(w, peer, flow.destination.ip) && has(&w.ports))
            }
        }
    }
}

/// Does it carry other packets? Those would reach the far end with any source address, past everyone's ingress policy.
pub(crate) fn tunnels(payload: Payload) -> bool {
    match payload {
        Payload::Ports { protocol: Protocol::Udp, port, .. } => TUNNEL_PORTS.contains(&port),
        Payload::Ports { .. } | Payload::Icmp { .. } => false,
        Payload::Other(protocol) => TUNNEL_PROTOCOLS.contains(&protocol),
    }
}

/// A rule that matched.
struct Word<'a> {
    policy: &'a Policy,
    index: usize,
    action: Action,
}

impl Word<'_> {
    /// Allowed or denied; `None`: passed on.
    fn final_word(&self) -> Option<bool> {
        match self.action {
            Action::Accept => Some(true),
            Action::Deny => Some(false),
            Action::Pass | Action::Log => None,
        }
    }

    fn reason(&self) -> Reason {
        Reason::Rule { policy: self.policy.id.to_string(), tier: self.policy.tier, index: self.index }
    }
}

fn in_block(block: &IpBlock, ip: IpAddr) -> bool {
    block.cidr.contains(ip) && !block.except.iter().any(|hole| hole.contains(ip))
}
