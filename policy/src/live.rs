//! Flows that live: is a flow that conntrack knows still allowed by what is in force now, and of which flows is that worth
//! asking after a change?
//!
//! ```text
//! Engine::take_suspects() -> Suspects     after a plan has been applied: whose flows may no longer be allowed
//! Engine::judge(own addresses) -> Judge   judges thousands of flows; microseconds each
//! LiveFlow::of_entry(original, reply)     what policy sees of a conntrack entry, translated ones too
//! Judge::allows(&flow)                    false: the flow must end
//! ```
//! The same question as the oracle's, answered from the incremental calculation instead of from the definition.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::calc::{Access, Calc, Resolved, dispatchable_on};
use crate::grants::{Grant, PeerCondition, PortCondition, grants};
use crate::ir::Member;
use crate::model::{Direction, Family, Payload, PolicyId, Protocol};
use crate::verdict::tunnels;

/// One direction of a conntrack entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol and what it tells flows apart by.
    pub transport: Transport,
}

/// What conntrack keeps of a packet besides its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A protocol with ports that policies know.
    Ports {
        /// Which.
        protocol: Protocol,
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP or ICMPv6: type and code.
    Icmp(u8, u8),
    /// Any other protocol by number.
    Other(u8),
}

/// A flow as policy sees it, in FORWARD: after destination and before source translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LiveFlow {
    /// Who opened it.
    pub source: IpAddr,
    /// To whom, really: the pod behind a Service.
    pub destination: IpAddr,
    /// The packet that opened it.
    pub payload: Payload,
}

impl LiveFlow {
    /// From both directions of a conntrack entry. The opener is the original direction's source; whom it reached is the
    /// reply's source, which differs from the original destination where that was translated.
    pub fn of_entry(original: &Tuple, reply: &Tuple) -> Self {
        let payload = match (original.transport, reply.transport) {
            (
                Transport::Ports { protocol, source, .. },
                Transport::Ports { source: reached, protocol: replied, .. },
            ) if protocol == replied => {
                Payload::Ports { protocol, source, port: reached, syn: protocol == Protocol::Tcp }
            }
            (Transport::Ports { protocol, source, destination }, _) => {
                Payload::Ports { protocol, source, port: destination, syn: protocol == Protocol::Tcp }
            }
            (Transport::Icmp(kind, code), _) => {
                Payload::Icmp { family: Family::of(original.source), kind, code }
            }
            (Transport::Other(protocol), _) => Payload::Other(protocol),
        };
        LiveFlow { source: original.source, destination: reply.source, payload }
    }
}

/// Whose flows may have lost their permission since this was last taken. Accumulates until then, so that nothing is lost
/// while plans fail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    everything: bool,
    addresses: BTreeSet<IpAddr>,
}

/// More addresses than this are not told apart: everything is suspect.
const MAX_SUSPECTS: usize = 1 << 16;

impl Suspects {
    /// All flows: at start, when nobody knows what was in force before.
    pub fn everything() -> Self {
        Suspects { everything: true, addresses: BTreeSet::new() }
    }

    /// Nobody is suspect.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.addresses.is_empty()
    }

    /// May this flow have lost its permission? Looks at its addresses alone.
    pub fn concerns(&self, flow: &LiveFlow) -> bool {
        self.everything || self.addresses.contains(&flow.source) || self.addresses.contains(&flow.destination)
    }

    pub(crate) fn add(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        if self.everything {
            return;
        }
        self.addresses.extend(addresses);
        if self.addresses.len() > MAX_SUSPECTS {
            *self = Suspects::everything();
        }
    }
}

/// Judges flows by what the calculation holds. Policies are prepared at first need and kept for the next flow.
#[derive(Debug)]
pub struct Judge<'a> {
    calc: &'a Calc,
    /// Addresses of this node's endpoints.
    endpoints: FxHashMap<IpAddr, &'a Resolved>,
    own: FxHashSet<IpAddr>,
    prepared: BTreeMap<(PolicyId, Direction), Rc<[Grant]>>,
}

impl<'a> Judge<'a> {
    /// For a calculation. `own`: the addresses of the node itself.
    pub fn new(calc: &'a Calc, own: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut endpoints = FxHashMap::default();
        for resolved in calc.endpoints().values() {
            let Some(resolved) = dispatchable_on(calc, &resolved.interface) else { continue };
            endpoints.extend(resolved.addresses.iter().map(|ip| (*ip, resolved)));
        }
        Judge { calc, endpoints, own: own.into_iter().collect(), prepared: BTreeMap::new() }
    }

    /// Would a packet that opens this flow now be let through by this node? Flows in which no endpoint of this node takes
    /// part, and those that the node itself opens, are nobody's business here.
    pub fn allows(&mut self, flow: &LiveFlow) -> bool {
        if self.own.contains(&flow.source) {
            return true;
        }
        let ends = [(flow.source, Direction::Egress), (flow.destination, Direction::Ingress)];
        ends.into_iter().all(|(ip, direction)| match self.endpoints.get(&ip) {
            Some(resolved) => self.direction_allows(resolved, direction, flow),
            None => true,
        })
    }

    fn direction_allows(&mut self, resolved: &Resolved, direction: Direction, flow: &LiveFlow) -> bool {
        if matches!(resolved.access, Access::Closed(_)) {
            return false;
        }
        if direction == Direction::Egress && tunnels(flow.payload) {
            return false;
        }
        let policies = resolved.access.policies(direction);
        if policies.is_empty() || (direction == Direction::Egress && self.own.contains(&flow.destination)) {
            return true;
        }
        policies.iter().any(|policy| {
            let grants = self.prepared(policy, direction);
            grants.iter().any(|grant| self.matches(grant, direction, flow))
        })
    }

    fn prepared(&mut self, id: &PolicyId, direction: Direction) -> Rc<[Grant]> {
        let key = (id.clone(), direction);
        if let Some(known) = self.prepared.get(&key) {
            return known.clone();
        }
        let policy = self.calc.active(id).expect("a policy that governs an endpoint is active");
        let rules = policy.rules(direction).unwrap_or_default();
        let grants: Rc<[Grant]> = rules.iter().flat_map(|rule| grants(rule, direction)).collect();
        self.prepared.insert(key, grants.clone());
        grants
    }

    fn matches(&self, grant: &Grant, direction: Direction, flow: &LiveFlow) -> bool {
        let other = match direction {
            Direction::Ingress => flow.source,
            Direction::Egress => flow.destination,
        };
        let in_set = |key, member| self.calc.members().set_of(key).is_some_and(|set| set.holds(member));
        let peer = match &grant.peer {
            PeerCondition::Anyone | PeerCondition::ByPort => true,
            PeerCondition::AnyoneOf(family) => Family::of(other) == *family,
            PeerCondition::InSet(key) => in_set(key, Member::Ip(other)),
            PeerCondition::InBlock(net, holes) => {
                net.contains(other) && !holes.as_ref().is_some_and(|key| in_set(key, Member::Ip(other)))
            }
            PeerCondition::NotInSet(family, key) => {
                Family::of(other) == *family && !in_set(key, Member::Ip(other))
            }
        };
        let port = match (&grant.port, flow.payload.destination_port()) {
            (PortCondition::Anything, _) => true,
            (PortCondition::Protocol(protocol), _) => protocol.number() == flow.payload.protocol(),
            (PortCondition::Ranges(protocol, ranges), Some((found, port))) => {
                *protocol == found && ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
            }
            (PortCondition::InSet(key), Some((protocol, port))) => {
                in_set(key, Member::IpPort(flow.destination, protocol, port))
            }
            (PortCondition::Ranges(..) | PortCondition::InSet(_), None) => false,
        };
        peer && port
    }
}
