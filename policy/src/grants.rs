//! A policy rule taken apart into conjunctions, each of which one kernel rule can express: a condition on the other side's
//! address, a condition on the destination port, and whatever else Calico's rules ask. Knows nothing of who is in which
//! set.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::ir::{Member, SetKind};
use crate::model::{
    Conditions, Direction, Entity, Family, IcmpMatch, NamespaceScope, Peer, PodSelector, Policy, Port,
    PortRange, Protocol, Rule, Str, Which,
};
use crate::names::{describe_pods, set_suffix};

/// What a set holds; equal keys are one set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKey {
    /// The addresses of pods.
    Pods(PodSelector),
    /// Address and number of a named port, for each of these pods that has one.
    Ports(PodSelector, Protocol, Str),
    /// Address and number of a named port, for each endpoint of this node whose pod has one.
    LocalPorts(Protocol, Str),
    /// These blocks, all of one family, none of them a /0; sorted.
    Nets(Vec<IpNetwork>),
    /// The addresses of pods and the blocks of NetworkSets.
    Entities(PodSelector),
}

impl SetKey {
    /// The kernel's type for it.
    pub fn kind(&self) -> SetKind {
        match self {
            SetKey::Pods(_) => SetKind::Ip,
            SetKey::Ports(..) | SetKey::LocalPorts(..) => SetKind::IpPort,
            SetKey::Nets(_) | SetKey::Entities(_) => SetKind::Net,
        }
    }

    /// The families in which it exists: a list of blocks in its own only.
    pub fn exists_in(&self, family: Family) -> bool {
        match self {
            SetKey::Pods(_) | SetKey::Ports(..) | SetKey::LocalPorts(..) | SetKey::Entities(_) => true,
            SetKey::Nets(nets) => nets.first().is_some_and(|net| Family::of(net.ip()) == family),
        }
    }

    /// What never changes of its content.
    pub fn fixed_members(&self) -> impl Iterator<Item = Member> {
        let nets = match self {
            SetKey::Nets(nets) => nets.as_slice(),
            SetKey::Pods(_) | SetKey::Ports(..) | SetKey::LocalPorts(..) | SetKey::Entities(_) => &[],
        };
        nets.iter().map(|net| Member::Net(*net))
    }

    /// The family-independent part of its name in the kernel.
    pub fn suffix(&self) -> String {
        let mut parts = match self {
            SetKey::Pods(selector) => describe_pods(selector),
            SetKey::Ports(selector, protocol, name) => {
                let mut parts = describe_pods(selector);
                parts.extend([protocol.lower().to_string(), name.to_string()]);
                parts
            }
            SetKey::LocalPorts(protocol, name) => {
                vec!["local".to_string(), protocol.lower().to_string(), name.to_string()]
            }
            SetKey::Nets(nets) => nets.iter().map(ToString::to_string).collect(),
            SetKey::Entities(selector) => {
                let mut parts = vec!["entities".to_string()];
                parts.extend(describe_pods(selector));
                parts
            }
        };
        parts.insert(0, "set".into());
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        set_suffix(self.kind(), &parts)
    }
}

/// A condition on the other side's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerCondition {
    /// Everyone, in both families.
    Anyone,
    /// Anyone of one family: what a /0 says.
    AnyoneOf(Family),
    /// A member of this set.
    InSet(SetKey),
    /// In this block, and if there is a set, not in that.
    InBlock(IpNetwork, Option<SetKey>),
    /// Anyone of one family who is not in this set: a /0 with holes.
    NotInSet(Family, SetKey),
    /// Whatever the port condition says: its set names the peers already.
    ByPort,
}

/// A condition on protocol and destination port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortCondition {
    /// Everything, also what has no ports.
    Anything,
    /// All of a protocol.
    Protocol(Protocol),
    /// Ranges of a protocol: sorted, apart from each other, within the 15 slots of one rule.
    Ranges(Protocol, Vec<(u16, u16)>),
    /// Destination address, protocol and port are a member of this set.
    InSet(SetKey),
}

impl PeerCondition {
    fn exists_in(&self, family: Family) -> bool {
        match self {
            PeerCondition::Anyone | PeerCondition::ByPort => true,
            PeerCondition::AnyoneOf(own) | PeerCondition::NotInSet(own, _) => *own == family,
            PeerCondition::InBlock(net, _) => Family::of(net.ip()) == family,
            PeerCondition::InSet(key) => key.exists_in(family),
        }
    }

    fn set(&self) -> Option<&SetKey> {
        match self {
            PeerCondition::InSet(key)
            | PeerCondition::InBlock(_, Some(key))
            | PeerCondition::NotInSet(_, key) => Some(key),
            PeerCondition::Anyone
            | PeerCondition::AnyoneOf(_)
            | PeerCondition::InBlock(_, None)
            | PeerCondition::ByPort => None,
        }
    }
}

/// A further condition, as only Calico's rules have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extra {
    /// Only this family.
    Family(Family),
    /// The address of that side.
    Address(Which, PeerCondition),
    /// The address of that side is not in this set; holds in a family in which the set does not exist.
    NotIn(Which, SetKey),
    /// IP protocol number.
    Protocol(u8),
    /// Any other IP protocol number.
    NotProtocol(u8),
    /// ICMP of this family, of this type, or of any other with `negated`.
    Icmp {
        /// ICMP or ICMPv6.
        family: Family,
        /// Type and code.
        icmp: IcmpMatch,
        /// Anything but that.
        negated: bool,
    },
    /// The protocol is this and the source port in one of these ranges, or in none with `negated`.
    SourcePorts {
        /// Which.
        protocol: Protocol,
        /// Within the 15 slots of one rule.
        ranges: Vec<PortRange>,
        /// None of them.
        negated: bool,
    },
    /// The protocol is this and the destination port in none of these ranges, within the 15 slots of one rule.
    NotPorts(Protocol, Vec<PortRange>),
    /// Destination address, protocol and port are not a member of this set.
    NotInPorts(SetKey),
}

impl Extra {
    fn exists_in(&self, family: Family) -> bool {
        match self {
            Extra::Family(own) | Extra::Icmp { family: own, .. } => *own == family,
            Extra::Address(_, condition) => condition.exists_in(family),
            Extra::NotIn(..)
            | Extra::Protocol(_)
            | Extra::NotProtocol(_)
            | Extra::SourcePorts { .. }
            | Extra::NotPorts(..)
            | Extra::NotInPorts(_) => true,
        }
    }

    fn set(&self) -> Option<&SetKey> {
        match self {
            Extra::Address(_, condition) => condition.set(),
            Extra::NotIn(_, key) | Extra::NotInPorts(key) => Some(key),
            Extra::Family(_)
            | Extra::Protocol(_)
            | Extra::NotProtocol(_)
            | Extra::Icmp { .. }
            | Extra::SourcePorts { .. }
            | Extra::NotPorts(..) => None,
        }
    }
}

/// One conjunction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who.
    pub peer: PeerCondition,
    /// To which port.
    pub port: PortCondition,
    /// What else must hold.
    pub more: Vec<Extra>,
}

impl Grant {
    /// Does it say anything in this family?
    pub fn exists_in(&self, family: Family) -> bool {
        self.peer.exists_in(family) && self.more.iter().all(|extra| extra.exists_in(family))
    }

    /// Every set that it speaks of.
    pub fn sets(&self) -> impl Iterator<Item = &SetKey> {
        let port = match &self.port {
            PortCondition::InSet(key) => Some(key),
            PortCondition::Anything | PortCondition::Protocol(_) | PortCondition::Ranges(..) => None,
        };
        self.peer.set().into_iter().chain(port).chain(self.more.iter().filter_map(Extra::set))
    }
}

/// How many port slots one multiport match has.
pub const PORT_SLOTS: usize = 15;

/// Takes a rule apart: what it matches, whatever it then does. One that was refused matches nothing, or everything where it
/// denies.
pub fn grants(rule: &Rule, direction: Direction) -> Vec<Grant> {
    match rule.refused_matches() {
        Some(false) => return Vec::new(),
        Some(true) => {
            let (peer, port) = (PeerCondition::Anyone, PortCondition::Anything);
            return vec![Grant { peer, port, more: Vec::new() }];
        }
        None => {}
    }
    let mut grants = by_peer_and_port(rule, direction);
    if let Some(conditions) = &rule.more {
        for alternatives in extras(conditions, direction) {
            let narrowed = grants.iter().flat_map(|grant| {
                alternatives.iter().map(|more| {
                    let mut grant = grant.clone();
                    grant.more.extend(more.iter().cloned());
                    grant
                })
            });
            grants = narrowed.collect();
        }
    }
    grants
}

fn by_peer_and_port(rule: &Rule, direction: Direction) -> Vec<Grant> {
    let numeric = match &rule.ports {
        None => vec![PortCondition::Anything],
        Some(ports) => numeric_ports(ports),
    };
    let named: Vec<(Protocol, &Str)> = rule
        .ports
        .iter()
        .flatten()
        .filter_map(|port| match port {
            Port::Named(protocol, name) => Some((*protocol, name)),
            Port::All(_) | Port::Range(..) => None,
        })
        .collect();

    let mut grants = Vec::new();
    let more = Vec::new();
    let peers = match &rule.peers {
        None => vec![(PeerCondition::Anyone, None)],
        Some(peers) => peer_conditions(peers),
    };
    for (peer, selector) in peers {
        grants.extend(numeric.iter().map(|port| Grant {
            peer: peer.clone(),
            port: port.clone(),
            more: more.clone(),
        }));
        for (protocol, name) in &named {
            let (peer, key) = match (direction, &selector) {
                // The destination is the policed pod itself.
                (Direction::Ingress, _) => (peer.clone(), SetKey::LocalPorts(*protocol, (*name).clone())),
                (Direction::Egress, Some(selector)) => {
                    (PeerCondition::ByPort, SetKey::Ports(selector.clone(), *protocol, (*name).clone()))
                }
                (Direction::Egress, None) => {
                    (peer.clone(), SetKey::Ports(PodSelector::everything(), *protocol, (*name).clone()))
                }
            };
            grants.push(Grant { peer, port: PortCondition::InSet(key), more: more.clone() });
        }
    }
    grants
}

/// Every set that the rules of a policy speak of.
pub fn sets_of(policy: &Policy) -> Vec<SetKey> {
    let mut keys = Vec::new();
    for direction in Direction::ALL {
        for grant in policy.rules(direction).into_iter().flatten().flat_map(|rule| grants(rule, direction)) {
            keys.extend(grant.sets().cloned());
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

/// What a rule's further conditions ask: one list of alternatives for each, of which one must hold.
fn extras(conditions: &Conditions, direction: Direction) -> Vec<Vec<Vec<Extra>>> {
    let Conditions {
        family,
        protocol,
        not_protocol,
        icmp,
        not_icmp,
        any_of,
        none_of,
        source_ports,
        not_source_ports,
        not_ports,
    } = conditions;
    // Without the one ICMP or the other nothing has a type.
    let icmp_family = if *protocol == Some(58) { Family::Ipv6 } else { Family::Ipv4 };
    let typed = |icmp: &Option<IcmpMatch>, negated| {
        icmp.map(|icmp| Extra::Icmp { family: icmp_family, icmp, negated })
    };
    let mut all: Vec<Extra> = Vec::new();
    all.extend(family.map(Extra::Family));
    all.extend(typed(icmp, false));
    all.extend(typed(not_icmp, true));
    if icmp.is_none() && not_icmp.is_none() {
        all.extend(protocol.map(Extra::Protocol));
    }
    all.extend(not_protocol.map(Extra::NotProtocol));
    for (which, peer) in none_of {
        all.extend(none_of_peer(*which, peer));
    }
    if let Some((protocol, ranges)) = not_source_ports {
        all.extend(pieces(merged(ranges.clone())).into_iter().map(|ranges| Extra::SourcePorts {
            protocol: *protocol,
            ranges,
            negated: true,
        }));
    }
    all.extend(none_of_ports(not_ports, direction));

    let mut lists = vec![vec![all]];
    for (which, peers) in any_of {
        let conditions = peer_conditions(peers);
        lists.push(conditions.into_iter().map(|(peer, _)| vec![Extra::Address(*which, peer)]).collect());
    }
    if let Some((protocol, ranges)) = source_ports {
        let one = |ranges| vec![Extra::SourcePorts { protocol: *protocol, ranges, negated: false }];
        lists.push(pieces(merged(ranges.clone())).into_iter().map(one).collect());
    }
    lists
}

fn none_of_peer(which: Which, peer: &Peer) -> Vec<Extra> {
    peer_conditions(std::slice::from_ref(peer))
        .into_iter()
        .filter_map(|(condition, _)| match condition {
            PeerCondition::InSet(key) => Some(Extra::NotIn(which, key)),
            PeerCondition::InBlock(net, _) => Some(Extra::NotIn(which, SetKey::Nets(vec![net]))),
            // Of a family nobody is left.
            PeerCondition::AnyoneOf(Family::Ipv4) => Some(Extra::Family(Family::Ipv6)),
            PeerCondition::AnyoneOf(Family::Ipv6) => Some(Extra::Family(Family::Ipv4)),
            // Blocks with holes are Kubernetes', which has no negated peers.
            PeerCondition::NotInSet(..) | PeerCondition::Anyone | PeerCondition::ByPort => None,
        })
        .collect()
}

fn none_of_ports(ports: &[Port], direction: Direction) -> Vec<Extra> {
    let mut all = Vec::new();
    for condition in numeric_ports(ports) {
        match condition {
            PortCondition::Ranges(protocol, ranges) => all.push(Extra::NotPorts(protocol, ranges)),
            PortCondition::Protocol(protocol) => all.push(Extra::NotProtocol(protocol.number())),
            PortCondition::Anything | PortCondition::InSet(_) => {}
        }
    }
    for port in ports {
        if let Port::Named(protocol, name) = port {
            all.push(Extra::NotInPorts(match direction {
                Direction::Ingress => SetKey::LocalPorts(*protocol, name.clone()),
                Direction::Egress => SetKey::Ports(PodSelector::everything(), *protocol, name.clone()),
            }));
        }
    }
    all
}

/// One condition for each group of peers that a rule can ask for at once; with the selector where they are pods.
fn peer_conditions(peers: &[Peer]) -> Vec<(PeerCondition, Option<PodSelector>)> {
    let mut conditions = Vec::new();
    let mut plain: BTreeMap<Family, Vec<IpNetwork>> = BTreeMap::new();
    for peer in peers {
        match peer {
            Peer::Pods(selector) => {
                conditions
                    .push((PeerCondition::InSet(SetKey::Pods(selector.clone())), Some(selector.clone())));
            }
            Peer::Entities(selector) => {
                let set = SetKey::Entities(selector.clone());
                conditions.push((PeerCondition::InSet(set), Some(selector.clone())));
            }
            Peer::Nodes(labels) => {
                let namespaces = NamespaceScope::Named(Entity::NODES.into());
                let nodes = PodSelector { namespaces, pods: labels.clone() };
                conditions.push((PeerCondition::InSet(SetKey::Pods(nodes.clone())), Some(nodes)));
            }
            Peer::Block(block) if block.except.is_empty() => {
                plain.entry(Family::of(block.cidr.ip())).or_default().push(block.cidr);
            }
            // The holes are a set of this block's own: in a set shared with others a hole would shadow them.
            Peer::Block(block) => {
                let holes = SetKey::Nets(block.except.clone());
                let condition = match block.cidr.prefix() {
                    0 => PeerCondition::NotInSet(Family::of(block.cidr.ip()), holes),
                    _ => PeerCondition::InBlock(block.cidr, Some(holes)),
                };
                conditions.push((condition, None));
            }
        }
    }
    for (family, mut blocks) in plain {
        blocks.sort();
        blocks.dedup();
        let condition = if blocks.iter().any(|block| block.prefix() == 0) {
            // hash:net refuses a /0, and no address of the family is outside it.
            PeerCondition::AnyoneOf(family)
        } else if let [block] = blocks.as_slice() {
            PeerCondition::InBlock(*block, None)
        } else {
            PeerCondition::InSet(SetKey::Nets(blocks))
        };
        conditions.push((condition, None));
    }
    conditions
}

/// Numeric ports, merged and cut into pieces of one rule each. Named ones are not here.
fn numeric_ports(ports: &[Port]) -> Vec<PortCondition> {
    let mut conditions = Vec::new();
    for protocol in Protocol::ALL {
        if ports.contains(&Port::All(protocol)) {
            conditions.push(PortCondition::Protocol(protocol));
            continue;
        }
        let ranges = ports.iter().filter_map(|port| match port {
            Port::Range(p, first, last) if *p == protocol => Some((*first, *last)),
            Port::Range(..) | Port::All(_) | Port::Named(..) => None,
        });
        let pieces = pieces(merged(ranges.collect()));
        conditions.extend(pieces.into_iter().map(|piece| PortCondition::Ranges(protocol, piece)));
    }
    conditions
}

/// Cut into lists that one rule can hold.
fn pieces(ranges: Vec<PortRange>) -> Vec<Vec<PortRange>> {
    let mut pieces = Vec::new();
    let mut slots = PORT_SLOTS;
    for range in ranges {
        let cost = if range.0 == range.1 { 1 } else { 2 };
        if slots + cost > PORT_SLOTS {
            pieces.push(Vec::new());
            slots = 0;
        }
        slots += cost;
        pieces.last_mut().expect("the first range opens a piece").push(range);
    }
    pieces
}

/// Overlapping and adjacent ranges become one.
pub(crate) fn merged(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn multiport_has_15_slots_a_range_costs_2() {
        let singles: Vec<Port> =
            (0..16).map(|i| Port::Range(Protocol::Tcp, 100 + 2 * i, 100 + 2 * i)).collect();
        let pieces = numeric_ports(&singles);
        assert_eq!(pieces.len(), 2);
        let ranges: Vec<Port> =
            (0..8).map(|i| Port::Range(Protocol::Tcp, 100 + 10 * i, 105 + 10 * i)).collect();
        let pieces = numeric_ports(&ranges);
        let lengths: Vec<usize> = pieces
            .iter()
            .map(|p| match p {
                PortCondition::Ranges(_, ranges) => ranges.len(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(lengths, [7, 1], "seven ranges take 14 slots, an eighth does not fit");
    }

    #[test]
    fn overlapping_and_adjacent_ranges_become_one() {
        assert_eq!(merged(vec![(10, 20), (21, 30), (5, 12), (40, 40)]), [(5, 30), (40, 40)]);
        assert_eq!(merged(vec![(1, 65535), (65535, 65535)]), [(1, 65535)]);
    }

    #[test]
    fn a_port_given_whole_swallows_its_numbers() {
        let ports = numeric_ports(&[Port::Range(Protocol::Udp, 53, 53), Port::All(Protocol::Udp)]);
        assert_eq!(ports, [PortCondition::Protocol(Protocol::Udp)]);
    }
}
