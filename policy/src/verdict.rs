//! The oracle: flow -> allow or deny, and by which rule, straight from the Kubernetes definition.
//!
//! Knows the model and the snapshot; must not know `calc.rs`, `compile.rs` or anything of iptables, against which it is
//! held. It looks at everything anew for each flow and is meant to be read beside the NetworkPolicy documentation.

use std::net::IpAddr;

use serde::Serialize;

use crate::model::{
    Action, Direction, IpBlock, NamedPort, Payload, Peer, PodId, Policy, Port, Protocol, Rule, Str, Tier,
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
            (Some(pod), _) => pod.labels.clone(),
            (None, Some(workload)) => workload.labels,
            (None, None) => return (false, Reason::UnknownPod),
        };
        if own_node {
            return (true, Reason::OwnNode);
        }
        let isolating: Vec<&Policy> = self
            .state
            .policies()
            .map(|policy| &**policy)
            .filter(|p| !p.staged && p.id.tier == Tier::NetworkPolicy && p.rules(direction).is_some())
            .filter(|p| self.state.selects(&p.subject, &id.namespace, &labels))
            .collect();
        if isolating.is_empty() {
            return (true, Reason::NotIsolated);
        }
        for policy in &isolating {
            for (index, rule) in policy.rules(direction).into_iter().flatten().enumerate() {
                if rule.action == Action::Accept && self.rule_allows(rule, direction, id, flow) {
                    return (
                        true,
                        Reason::Rule { policy: policy.id.to_string(), tier: policy.id.tier, index },
                    );
                }
            }
        }
        (false, Reason::Isolated { policies: isolating.iter().map(|p| p.id.to_string()).collect() })
    }

    /// "Each rule allows traffic which matches both the from \[to\] and ports sections." An absent section matches all.
    fn rule_allows(&self, rule: &Rule, direction: Direction, pod: &PodId, flow: &Flow) -> bool {
        if rule.refused {
            return false;
        }
        let other = match direction {
            Direction::Ingress => flow.source.ip,
            Direction::Egress => flow.destination.ip,
        };
        let allows = |peer: Option<&Peer>| {
            peer.is_none_or(|peer| self.is_peer(peer, other))
                && self.ports_allow(rule, peer, direction, pod, flow)
        };
        match &rule.peers {
            None => allows(None),
            Some(peers) => peers.iter().any(|peer| allows(Some(peer))),
        }
    }

    fn is_peer(&self, peer: &Peer, ip: IpAddr) -> bool {
        match peer {
            Peer::Block(block) => in_block(block, ip),
            Peer::Pods(_) => self.workloads.iter().any(|workload| self.stands_for(workload, Some(peer), ip)),
        }
    }

    /// Has this workload that address, and is it one of those whom the peer selects? A block, like no peer at all, selects
    /// by address alone.
    fn stands_for(&self, workload: &Workload, peer: Option<&Peer>, ip: IpAddr) -> bool {
        let selected = match peer {
            Some(Peer::Pods(selector)) => {
                self.state.selects(selector, &workload.id.namespace, &workload.labels)
            }
            Some(Peer::Block(_)) | None => true,
        };
        selected && workload.addresses.contains(&ip)
    }

    fn ports_allow(
        &self,
        rule: &Rule,
        peer: Option<&Peer>,
        direction: Direction,
        pod: &PodId,
        flow: &Flow,
    ) -> bool {
        let Some(ports) = &rule.ports else { return true };
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

fn in_block(block: &IpBlock, ip: IpAddr) -> bool {
    block.cidr.contains(ip) && !block.except.iter().any(|hole| hole.contains(ip))
}
