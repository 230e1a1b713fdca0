//! The protective defaults, as named rules: what is refused on import and what is exported when no filter decides.
//!
//! Why they exist: a learned default route beats the host's own, a route that covers a next hop makes it recurse
//! through itself, a route for our own block steals our pods' traffic, and exporting what was learned leaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::types::Prefix;

/// Why the default refuses a route on import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum DefaultReject {
    /// 0.0.0.0/0 or ::/0.
    DefaultRoute,
    /// Loopback addresses.
    Loopback,
    /// Link-local addresses.
    LinkLocal,
    /// Multicast addresses.
    Multicast,
    /// Equal to, within or covering a prefix that this node originates.
    OwnBlock,
    /// Covers an address of this node.
    CoversNode,
    /// Covers the address of a peer.
    CoversPeer,
}

impl DefaultReject {
    /// The rule's name, for people.
    pub fn name(self) -> &'static str {
        match self {
            DefaultReject::DefaultRoute => "default: no default route",
            DefaultReject::Loopback => "default: no loopback",
            DefaultReject::LinkLocal => "default: no link-local",
            DefaultReject::Multicast => "default: no multicast",
            DefaultReject::OwnBlock => "default: overlaps an own block",
            DefaultReject::CoversNode => "default: covers an address of this node",
            DefaultReject::CoversPeer => "default: covers the address of a peer",
        }
    }

    /// Whether the rule depends on nothing but the prefix, so that the refusal is final.
    pub fn is_static(self) -> bool {
        matches!(
            self,
            DefaultReject::DefaultRoute
                | DefaultReject::Loopback
                | DefaultReject::LinkLocal
                | DefaultReject::Multicast
        )
    }
}

/// The part of the default import rules that depends on the prefix alone.
pub fn reject_by_kind(prefix: Prefix) -> Option<DefaultReject> {
    if prefix.len() == 0 {
        return Some(DefaultReject::DefaultRoute);
    }
    let within = |addr: IpAddr, len: u8| {
        Prefix::new(addr, len).expect("a constant with a legal length").contains(prefix)
    };
    match prefix {
        Prefix::V4(_) if within(Ipv4Addr::new(127, 0, 0, 0).into(), 8) => Some(DefaultReject::Loopback),
        Prefix::V4(_) if within(Ipv4Addr::new(169, 254, 0, 0).into(), 16) => Some(DefaultReject::LinkLocal),
        Prefix::V4(_) if within(Ipv4Addr::new(224, 0, 0, 0).into(), 4) => Some(DefaultReject::Multicast),
        Prefix::V6(_) if within(Ipv6Addr::LOCALHOST.into(), 128) => Some(DefaultReject::Loopback),
        Prefix::V6(_) if within(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10) => {
            Some(DefaultReject::LinkLocal)
        }
        Prefix::V6(_) if within(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8) => {
            Some(DefaultReject::Multicast)
        }
        _ => None,
    }
}

/// What must not be overrun by a learned route: own blocks, own addresses, peers' addresses.
#[derive(Clone, Debug, Default)]
pub struct Protected {
    own: PrefixSet,
    node: PrefixSet,
    peers: PrefixSet,
}

impl Protected {
    /// Adds or removes a block that this node originates. Whether anything changed.
    pub fn set_own(&mut self, prefix: Prefix, present: bool) -> bool {
        self.own.set(prefix, present)
    }

    /// Adds or removes an address of the node. Whether anything changed.
    pub fn set_node(&mut self, addr: IpAddr, present: bool) -> bool {
        self.node.set(host(addr), present)
    }

    /// Whether this is an address of the node.
    pub fn is_node(&self, addr: IpAddr) -> bool {
        self.node.has_within(host(addr))
    }

    /// Adds or removes the address of a peer. Whether anything changed.
    pub fn set_peer(&mut self, addr: IpAddr, present: bool) -> bool {
        self.peers.set(host(addr), present)
    }

    /// Which rule refuses the prefix.
    pub fn reject(&self, prefix: Prefix) -> Option<DefaultReject> {
        if self.own.has_within(prefix) || self.own.has_covering(prefix) {
            return Some(DefaultReject::OwnBlock);
        }
        if self.node.has_within(prefix) {
            return Some(DefaultReject::CoversNode);
        }
        self.peers.has_within(prefix).then_some(DefaultReject::CoversPeer)
    }
}

/// Prefixes that answer "does one lie within?" and "does one cover?" in logarithmic time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PrefixSet {
    prefixes: BTreeSet<Prefix>,
    /// How many prefixes there are of each length: the only lengths at which a covering one can be.
    lengths: BTreeMap<u8, usize>,
}

impl PrefixSet {
    fn set(&mut self, prefix: Prefix, present: bool) -> bool {
        if present {
            let new = self.prefixes.insert(prefix);
            if new {
                *self.lengths.entry(prefix.len()).or_default() += 1;
            }
            return new;
        }
        let gone = self.prefixes.remove(&prefix);
        if gone && let Some(n) = self.lengths.get_mut(&prefix.len()) {
            *n -= 1;
            if *n == 0 {
                self.lengths.remove(&prefix.len());
            }
        }
        gone
    }

    /// Prefixes sort by address, then length: what lies within `outer` begins at `outer` itself, without gaps.
    fn has_within(&self, outer: Prefix) -> bool {
        self.prefixes.range(outer..).next().is_some_and(|first| outer.contains(*first))
    }

    fn has_covering(&self, inner: Prefix) -> bool {
        self.lengths.keys().take_while(|len| **len <= inner.len()).any(|len| {
            Prefix::new(inner.addr(), *len).is_some_and(|shorter| self.prefixes.contains(&shorter))
        })
    }
}

fn host(addr: IpAddr) -> Prefix {
    Prefix::new(addr, if addr.is_ipv4() { 32 } else { 128 }).expect("a host length is legal")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    #[test]
    fn default_import_refuses_by_kind() {
        for (prefix, why) in [
            ("0.0.0.0/0", DefaultReject::DefaultRoute),
            ("::/0", DefaultReject::DefaultRoute),
            ("127.0.0.0/8", DefaultReject::Loopback),
            ("127.1.0.0/16", DefaultReject::Loopback),
            ("::1/128", DefaultReject::Loopback),
            ("169.254.3.0/24", DefaultReject::LinkLocal),
            ("fe80::/64", DefaultReject::LinkLocal),
            ("224.0.0.0/4", DefaultReject::Multicast),
            ("239.1.1.1/32", DefaultReject::Multicast),
            ("ff02::/16", DefaultReject::Multicast),
        ] {
            assert_eq!(reject_by_kind(p(prefix)), Some(why), "{prefix}");
        }
        assert_eq!(reject_by_kind(p("10.0.0.0/8")), None);
        assert_eq!(reject_by_kind(p("fd00::/8")), None);
    }

    #[test]
    fn default_import_refuses_what_equals_covers_or_lies_within_an_own_block() {
        let mut protected = Protected::default();
        assert!(protected.set_own(p("10.244.1.0/24"), true));
        assert!(!protected.set_own(p("10.244.1.0/24"), true));
        for hit in ["10.244.1.0/24", "10.244.0.0/16", "10.244.1.128/25", "10.244.1.7/32"] {
            assert_eq!(protected.reject(p(hit)), Some(DefaultReject::OwnBlock), "{hit}");
        }
        assert_eq!(protected.reject(p("10.244.2.0/24")), None);
        assert!(protected.set_own(p("10.244.1.0/24"), false));
        assert_eq!(protected.reject(p("10.244.1.0/24")), None);
    }

    #[test]
    fn default_import_refuses_what_covers_a_peer_or_the_node() {
        let mut protected = Protected::default();
        assert!(protected.set_node("10.1.0.11".parse().unwrap(), true));
        assert!(protected.set_node("fd00:1::11".parse().unwrap(), true));
        assert!(protected.set_peer("10.1.0.1".parse().unwrap(), true));
        assert!(protected.is_node("10.1.0.11".parse().unwrap()));
        assert!(!protected.is_node("10.1.0.1".parse().unwrap()));
        assert_eq!(protected.reject(p("10.1.0.0/24")), Some(DefaultReject::CoversNode));
        assert_eq!(protected.reject(p("10.1.0.0/29")), Some(DefaultReject::CoversPeer));
        assert_eq!(protected.reject(p("fd00:1::/64")), Some(DefaultReject::CoversNode));
        assert_eq!(protected.reject(p("10.1.0.16/28")), None);
        assert!(!protected.set_peer("10.1.0.1".parse().unwrap(), true));
        assert!(protected.set_peer("10.1.0.1".parse().unwrap(), false));
        assert_eq!(protected.reject(p("10.1.0.0/29")), None);
    }
}
