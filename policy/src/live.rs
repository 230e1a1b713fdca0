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
use crate::grants::{Extra, Grant, PeerCondition, PortCondition, SetKey, grants};
use crate::ir::Member;
use crate::model::{
    Action, Direction, Family, Payload, PolicyId, PolicyKind, PortRange, Protocol, Tier, Which,
};
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
    prepared: BTreeMap<(PolicyId, Direction), Prepared>,
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
        self.denial(flow).is_none()
    }

    /// Which endpoint of this node would not let it through, in which direction and for what.
    pub fn denial(&mut self, flow: &LiveFlow) -> Option<(&'a Resolved, Direction, By)> {
        if self.own.contains(&flow.source) {
            return None;
        }
        let ends = [(flow.source, Direction::Egress), (flow.destination, Direction::Ingress)];
        ends.into_iter().find_map(|(ip, direction)| {
            let resolved = *self.endpoints.get(&ip)?;
            let decision = self.decide(resolved, direction, flow);
            (!decision.allowed).then_some((resolved, direction, decision.by))
        })
    }

    /// One endpoint's word on a flow from it or to it. Of the endpoint only its name counts: what holds for it is looked up.
    pub fn decide(&mut self, endpoint: &Resolved, direction: Direction, flow: &LiveFlow) -> Decision {
        let Some(resolved) = dispatchable_on(self.calc, &endpoint.interface) else {
            return Decision { allowed: false, by: By::Closed("it has no rules") };
        };
        if let Access::Closed(why) = resolved.access {
            return Decision { allowed: false, by: By::Closed(why.as_str()) };
        }
        if direction == Direction::Egress && tunnels(flow.payload) {
            return Decision { allowed: false, by: By::Closed("tunnels do not leave a pod") };
        }
        let to_node = direction == Direction::Egress && self.own.contains(&flow.destination);
        let mut skipped = None;
        let mut isolated = false;
        for governing in resolved.access.enforced(direction) {
            if skipped == Some(governing.tier) {
                continue;
            }
            match governing.tier {
                Tier::Baseline if isolated => break,
                Tier::NetworkPolicy if to_node && governing.id.kind == PolicyKind::NetworkPolicy => {
                    return Decision { allowed: true, by: By::OwnNode };
                }
                Tier::NetworkPolicy => isolated = true,
                Tier::Admin | Tier::Baseline => {}
            }
            let rules = self.prepared(&governing.id, direction);
            let mut rules = rules.iter();
            let rule = rules.find(|(_, _, grants)| grants.iter().any(|g| self.matches(g, direction, flow)));
            let by = |index: &usize| By::Rule(governing.id.clone(), *index);
            match rule {
                Some((index, Action::Accept, _)) => return Decision { allowed: true, by: by(index) },
                Some((index, Action::Deny, _)) => return Decision { allowed: false, by: by(index) },
                Some((_, Action::Pass, _)) => {
                    skipped = Some(governing.tier);
                    isolated = false;
                }
                Some((_, Action::Log, _)) | None => {}
            }
        }
        match (isolated, to_node) {
            (false, _) => Decision { allowed: true, by: By::NoPolicy },
            (true, true) => Decision { allowed: true, by: By::OwnNode },
            (true, false) => Decision { allowed: false, by: By::Isolation },
        }
    }

    fn prepared(&mut self, id: &PolicyId, direction: Direction) -> Prepared {
        let key = (id.clone(), direction);
        if let Some(known) = self.prepared.get(&key) {
            return known.clone();
        }
        let policy = self.calc.active(id).expect("a policy that governs an endpoint is active");
        let rules = policy.rules(direction).into_iter().flatten().enumerate();
        let rules = rules.filter(|(_, rule)| rule.action != Action::Log);
        let prepared: Prepared =
            rules.map(|(index, rule)| (index, rule.effect(), grants(rule, direction))).collect();
        self.prepared.insert(key, prepared.clone());
        prepared
    }

    fn matches(&self, grant: &Grant, direction: Direction, flow: &LiveFlow) -> bool {
        let (own, other) = match direction {
            Direction::Ingress => (flow.destination, flow.source),
            Direction::Egress => (flow.source, flow.destination),
        };
        let side = |which: &Which| if *which == Which::Own { own } else { other };
        let family = Family::of(other);
        let to_port = |protocol: &Protocol, ranges: &[PortRange], from: bool| match flow.payload {
            Payload::Ports { protocol: found, source, port, .. } if found == *protocol => {
                let port = if from { source } else { port };
                Some(ranges.iter().any(|(first, last)| (*first..=*last).contains(&port)))
            }
            Payload::Ports { .. } | Payload::Icmp { .. } | Payload::Other(_) => None,
        };
        let port = match &grant.port {
            PortCondition::Anything => true,
            PortCondition::Protocol(protocol) => protocol.number() == flow.payload.protocol(),
            PortCondition::Ranges(protocol, ranges) => to_port(protocol, ranges, false) == Some(true),
            PortCondition::InSet(key) => self.in_ports(key, flow),
        };
        let extra = |extra: &Extra| match extra {
            Extra::Family(wanted) => *wanted == family,
            Extra::Address(which, condition) => self.is_at(condition, side(which)),
            Extra::NotIn(which, key) => !self.in_set(key, side(which)),
            Extra::Protocol(number) => flow.payload.protocol() == *number,
            Extra::NotProtocol(number) => flow.payload.protocol() != *number,
            Extra::Icmp { family, icmp, negated } => match flow.payload {
                Payload::Icmp { family: found, kind, code } => {
                    let same = kind == icmp.kind && icmp.code.is_none_or(|wanted| wanted == code);
                    found == *family && same != *negated
                }
                Payload::Ports { .. } | Payload::Other(_) => false,
            },
            Extra::SourcePorts { protocol, ranges, negated } => {
                to_port(protocol, ranges, true) == Some(!negated)
            }
            Extra::NotPorts(protocol, ranges) => to_port(protocol, ranges, false) == Some(false),
            Extra::NotInPorts(key) => !self.in_ports(key, flow),
        };
        port && self.is_at(&grant.peer, other) && grant.more.iter().all(extra)
    }

    fn is_at(&self, condition: &PeerCondition, ip: IpAddr) -> bool {
        match condition {
            PeerCondition::Anyone | PeerCondition::ByPort => true,
            PeerCondition::AnyoneOf(family) => Family::of(ip) == *family,
            PeerCondition::InSet(key) => self.in_set(key, ip),
            PeerCondition::InBlock(net, holes) => {
                net.contains(ip) && !holes.as_ref().is_some_and(|holes| self.in_set(holes, ip))
            }
            PeerCondition::NotInSet(family, key) => Family::of(ip) == *family && !self.in_set(key, ip),
        }
    }

    fn in_set(&self, key: &SetKey, ip: IpAddr) -> bool {
        self.calc.members().set_of(key).is_some_and(|set| set.holds(Member::Ip(ip)))
    }

    fn in_ports(&self, key: &SetKey, flow: &LiveFlow) -> bool {
        flow.payload.destination_port().is_some_and(|(protocol, port)| {
            let member = Member::IpPort(flow.destination, protocol, port);
            self.calc.members().set_of(key).is_some_and(|set| set.holds(member))
        })
    }
}

/// Of each rule of a policy its place, what it does and what it matches.
type Prepared = Rc<[(usize, Action, Vec<Grant>)]>;

/// One direction's word on a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Let through.
    pub allowed: bool,
    /// What decided.
    pub by: By,
}

/// What decided a direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// A rule of a policy, counted from 0.
    Rule(PolicyId, usize),
    /// No policy has anything against it.
    NoPolicy,
    /// The pod is isolated and no policy allows it.
    Isolation,
    /// A pod always reaches its own node.
    OwnNode,
    /// Not a matter of policies.
    Closed(&'static str),
}
