//! A policy rule taken apart into conjunctions, each of which one kernel rule can express: a condition on the other side's
//! address and a condition on the destination port. Knows nothing of who is in which set.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::ir::{Member, SetKind};
use crate::model::{Direction, Family, Peer, PodSelector, Policy, Port, Protocol, Rule, Str};
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
}

impl SetKey {
    /// The kernel's type for it.
    pub fn kind(&self) -> SetKind {
        match self {
            SetKey::Pods(_) => SetKind::Ip,
            SetKey::Ports(..) | SetKey::LocalPorts(..) => SetKind::IpPort,
            SetKey::Nets(_) => SetKind::Net,
        }
    }

    /// The families in which it exists: a list of blocks in its own only.
    pub fn exists_in(&self, family: Family) -> bool {
        match self {
            SetKey::Pods(_) | SetKey::Ports(..) | SetKey::LocalPorts(..) => true,
            SetKey::Nets(nets) => nets.first().is_some_and(|net| Family::of(net.ip()) == family),
        }
    }

    /// What never changes of its content.
    pub fn fixed_members(&self) -> impl Iterator<Item = Member> {
        let nets = match self {
            SetKey::Nets(nets) => nets.as_slice(),
            SetKey::Pods(_) | SetKey::Ports(..) | SetKey::LocalPorts(..) => &[],
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

/// One conjunction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who.
    pub peer: PeerCondition,
    /// To which port.
    pub port: PortCondition,
}

impl Grant {
    /// Does it say anything in this family?
    pub fn exists_in(&self, family: Family) -> bool {
        match &self.peer {
            PeerCondition::Anyone | PeerCondition::ByPort => true,
            PeerCondition::AnyoneOf(own) | PeerCondition::NotInSet(own, _) => *own == family,
            PeerCondition::InBlock(net, _) => Family::of(net.ip()) == family,
            PeerCondition::InSet(key) => key.exists_in(family),
        }
    }
}

/// How many port slots one multiport match has.
pub const PORT_SLOTS: usize = 15;

/// Takes a rule apart. One that was refused opens nothing.
pub fn grants(rule: &Rule, direction: Direction) -> Vec<Grant> {
    if rule.refused {
        return Vec::new();
    }
    let numeric = numeric_ports(rule);
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
    for (peer, selector) in peer_conditions(rule) {
        grants.extend(numeric.iter().map(|port| Grant { peer: peer.clone(), port: port.clone() }));
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
            grants.push(Grant { peer, port: PortCondition::InSet(key) });
        }
    }
    grants
}

/// Every set that the rules of a policy speak of.
pub fn sets_of(policy: &Policy) -> Vec<SetKey> {
    let mut keys = Vec::new();
    for direction in Direction::ALL {
        for grant in policy.rules(direction).into_iter().flatten().flat_map(|rule| grants(rule, direction)) {
            match grant.peer {
                PeerCondition::InSet(key)
                | PeerCondition::InBlock(_, Some(key))
                | PeerCondition::NotInSet(_, key) => keys.push(key),
                PeerCondition::Anyone
                | PeerCondition::AnyoneOf(_)
                | PeerCondition::InBlock(_, None)
                | PeerCondition::ByPort => {}
            }
            match grant.port {
                PortCondition::InSet(key) => keys.push(key),
                PortCondition::Anything | PortCondition::Protocol(_) | PortCondition::Ranges(..) => {}
            }
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

/// One condition for each group of peers that a rule can ask for at once; with the selector where they are pods.
fn peer_conditions(rule: &Rule) -> Vec<(PeerCondition, Option<PodSelector>)> {
    let Some(peers) = &rule.peers else { return vec![(PeerCondition::Anyone, None)] };
    let mut conditions = Vec::new();
    let mut plain: BTreeMap<Family, Vec<IpNetwork>> = BTreeMap::new();
    for peer in peers {
        match peer {
            Peer::Pods(selector) => {
                conditions
                    .push((PeerCondition::InSet(SetKey::Pods(selector.clone())), Some(selector.clone())));
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
fn numeric_ports(rule: &Rule) -> Vec<PortCondition> {
    let Some(ports) = &rule.ports else { return vec![PortCondition::Anything] };
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
        let mut piece = Vec::new();
        let mut slots = 0;
        for range in merged(ranges.collect()) {
            let cost = if range.0 == range.1 { 1 } else { 2 };
            if slots + cost > PORT_SLOTS {
                conditions.push(PortCondition::Ranges(protocol, std::mem::take(&mut piece)));
                slots = 0;
            }
            slots += cost;
            piece.push(range);
        }
        if !piece.is_empty() {
            conditions.push(PortCondition::Ranges(protocol, piece));
        }
    }
    conditions
}

/// Overlapping and adjacent ranges become one.
fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
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
    use crate::model::Action;

    fn rule(ports: Vec<Port>) -> Rule {
        Rule { action: Action::Accept, peers: None, ports: Some(ports), name: None, refused: false }
    }

    #[test]
    fn multiport_has_15_slots_a_range_costs_2() {
        let singles: Vec<Port> =
            (0..16).map(|i| Port::Range(Protocol::Tcp, 100 + 2 * i, 100 + 2 * i)).collect();
        let pieces = numeric_ports(&rule(singles));
        assert_eq!(pieces.len(), 2);
        let ranges: Vec<Port> =
            (0..8).map(|i| Port::Range(Protocol::Tcp, 100 + 10 * i, 105 + 10 * i)).collect();
        let pieces = numeric_ports(&rule(ranges));
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
        let ports = numeric_ports(&rule(vec![Port::Range(Protocol::Udp, 53, 53), Port::All(Protocol::Udp)]));
        assert_eq!(ports, [PortCondition::Protocol(Protocol::Udp)]);
    }
}
