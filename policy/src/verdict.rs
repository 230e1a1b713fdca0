//! The oracle: flow -> allow or deny, and by which rule, straight from the Kubernetes definition.
//!
//! Knows the model and the snapshot; must not know `calc.rs`, `compile.rs` or anything of iptables, against which it is
//! held. It looks at everything anew for each flow and is meant to be read beside the NetworkPolicy documentation.

use std::net::IpAddr;

use serde::Serialize;

use crate::model::{
    Action, Direction, IpBlock, Peer, Pod, PodId, Policy, PolicyId, Port, Protocol, Rule, Str, Tier,
};
use crate::state::State;

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
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
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

/// Judges a flow.
pub fn verdict(state: &State, flow: &Flow) -> FlowVerdict {
    let mut decisions = Vec::new();
    for direction in [Direction::Egress, Direction::Ingress] {
        let (this, other) = match direction {
            Direction::Egress => (&flow.source, &flow.destination),
            Direction::Ingress => (&flow.destination, &flow.source),
        };
        if let Place::Pod(id, node) = &this.place {
            let own_node = matches!((&other.place, node), (Place::Node(a), Some(b)) if a == b);
            let (allowed, reason) = decide(state, id, direction, flow, own_node);
            decisions.push(Decision { direction, pod: id.to_string(), allowed, reason });
        }
    }
    FlowVerdict { allowed: decisions.iter().all(|d| d.allowed), decisions }
}

fn decide(state: &State, id: &PodId, direction: Direction, flow: &Flow, own_node: bool) -> (bool, Reason) {
    let Some(pod) = state.pod(id) else { return (false, Reason::UnknownPod) };
    if direction == Direction::Egress && flow.protocol == Protocol::Udp && TUNNEL_PORTS.contains(&flow.port) {
        return (false, Reason::Tunnel);
    }
    if own_node {
        return (true, Reason::OwnNode);
    }
    if pod.host_network {
        return (true, Reason::NotIsolated);
    }
    let isolating: Vec<&Policy> = state
        .policies()
        .map(|policy| &**policy)
        .filter(|p| !p.staged && p.id.tier == Tier::NetworkPolicy && p.rules(direction).is_some())
        .filter(|p| state.selects(&p.subject, &pod.id.namespace, &pod.labels))
        .collect();
    if isolating.is_empty() {
        return (true, Reason::NotIsolated);
    }
    for policy in &isolating {
        for (index, rule) in policy.rules(direction).into_iter().flatten().enumerate() {
            if rule.action == Action::Accept && rule_allows(state, rule, direction, pod, flow) {
                return (true, Reason::Rule { policy: policy.id.to_string(), tier: policy.id.tier, index });
            }
        }
    }
    (false, Reason::Isolated { policies: names(&isolating) })
}

fn names(policies: &[&Policy]) -> Vec<String> {
    policies.iter().map(|p| PolicyId::to_string(&p.id)).collect()
}

/// "Each rule allows traffic which matches both the from [to] and ports sections."
fn rule_allows(state: &State, rule: &Rule, direction: Direction, pod: &Pod, flow: &Flow) -> bool {
    if rule.refused {
        return false;
    }
    let everyone = [None];
    let listed: Vec<Option<&Peer>>;
    let peers: &[Option<&Peer>] = match &rule.peers {
        None => &everyone,
        Some(peers) => {
            listed = peers.iter().map(Some).collect();
            &listed
        }
    };
    peers.iter().any(|peer| {
        let ip = match direction {
            Direction::Ingress => flow.source.ip,
            Direction::Egress => flow.destination.ip,
        };
        peer.is_none_or(|peer| peer_is(state, peer, ip))
            && ports_allow(state, rule, *peer, direction, pod, flow)
    })
}

fn peer_is(state: &State, peer: &Peer, ip: IpAddr) -> bool {
    match peer {
        Peer::Block(block) => in_block(block, ip),
        Peer::Pods(_) => state.pods().any(|pod| pod_is_peer(state, pod, Some(peer), ip)),
    }
}

fn in_block(block: &IpBlock, ip: IpAddr) -> bool {
    block.cidr.contains(ip) && !block.except.iter().any(|hole| hole.contains(ip))
}

/// Is this pod at that address, and among the peers (a block says nothing about pods, `None` is everyone)?
fn pod_is_peer(state: &State, pod: &Pod, peer: Option<&Peer>, ip: IpAddr) -> bool {
    let selected = match peer {
        Some(Peer::Pods(selector)) => state.selects(selector, &pod.id.namespace, &pod.labels),
        Some(Peer::Block(_)) | None => true,
    };
    selected && state.addresses(pod).contains(&ip)
}

fn ports_allow(
    state: &State,
    rule: &Rule,
    peer: Option<&Peer>,
    direction: Direction,
    pod: &Pod,
    flow: &Flow,
) -> bool {
    let Some(ports) = &rule.ports else { return true };
    let has = |pod: &Pod, protocol: Protocol, name: &Str| {
        pod.ports.iter().any(|p| p.protocol == protocol && p.name == *name && p.number == flow.port)
    };
    ports.iter().any(|port| match port {
        Port::All(protocol) => flow.protocol == *protocol,
        Port::Range(protocol, first, last) => {
            flow.protocol == *protocol && (*first..=*last).contains(&flow.port)
        }
        Port::Named(protocol, name) => {
            flow.protocol == *protocol
                && match direction {
                    Direction::Ingress => has(pod, *protocol, name),
                    Direction::Egress => state.pods().any(|destination| {
                        pod_is_peer(state, destination, peer, flow.destination.ip)
                            && has(destination, *protocol, name)
                    }),
                }
        }
    })
}
