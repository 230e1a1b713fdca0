//! The routers that this node's default routes lead to, for BGPPeers that name nobody else (`autoDiscover: DefaultGateway`).
//!
//! A default route that is being replaced is away for a moment, and a session is dear: who was a gateway stays one for a
//! while. Pure: time is a value.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use manx_bgp::types::Family;

/// How long a gateway stays after its default route has gone: longer than a network manager needs to put it back.
const LINGER: Duration = Duration::from_secs(5);

/// A next hop of a default route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// The family of the route.
    pub family: Family,
    /// Its address; of either family.
    pub address: IpAddr,
    /// The name of the link that it is on.
    pub interface: String,
}

impl Gateway {
    /// It has no address but on its link, as routers have that were learned by router advertisement.
    pub fn is_link_local(&self) -> bool {
        matches!(self.address, IpAddr::V6(address) if address.is_unicast_link_local())
    }

    /// What tells its peer from others of the same BGPPeer: the address, or the link where the address says nothing without it.
    pub fn suffix(&self) -> String {
        if self.is_link_local() { self.interface.clone() } else { self.address.to_string() }
    }
}

/// Those that are there, and those that went a moment ago.
#[derive(Debug, Default)]
pub struct Gateways {
    /// With the time to forget each that is not there.
    known: BTreeMap<Gateway, Option<Instant>>,
}

impl Gateways {
    /// Takes over what the kernel says now.
    pub fn see(&mut self, now: Instant, current: &BTreeSet<Gateway>) {
        for (gateway, forget_at) in &mut self.known {
            *forget_at = match current.contains(gateway) {
                true => None,
                false => Some(forget_at.unwrap_or(now + LINGER)),
            };
        }
        self.known.retain(|_, forget_at| forget_at.is_none_or(|at| now < at));
        for gateway in current {
            self.known.entry(gateway.clone()).or_default();
        }
    }

    /// Some have gone and are not forgotten yet: time has to be told by [`Self::see`].
    pub fn lingering(&self) -> bool {
        self.known.values().any(Option::is_some)
    }

    /// Who counts as a gateway.
    pub fn known(&self) -> BTreeSet<Gateway> {
        self.known.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(addresses: &[&str]) -> BTreeSet<Gateway> {
        let gateway = |address: &&str| Gateway {
            family: Family::Ipv4Unicast,
            address: address.parse().unwrap(),
            interface: "eth0".to_owned(),
        };
        addresses.iter().map(gateway).collect()
    }

    #[test]
    fn a_gateway_that_comes_back_in_time_was_never_away_and_one_that_does_not_is_forgotten() {
        let start = Instant::now();
        let mut gateways = Gateways::default();
        gateways.see(start, &set(&["10.0.0.1"]));
        gateways.see(start, &set(&[]));
        assert_eq!(gateways.known(), set(&["10.0.0.1"]));
        gateways.see(start + LINGER / 2, &set(&["10.0.0.1"]));
        gateways.see(start + LINGER, &set(&["10.0.0.1"]));
        assert_eq!(gateways.known(), set(&["10.0.0.1"]));
        gateways.see(start + LINGER, &set(&["10.0.0.2"]));
        assert_eq!(
            gateways.known(),
            set(&["10.0.0.1", "10.0.0.2"]),
            "both, until it is clear that one has gone"
        );
        gateways.see(start + LINGER + LINGER / 2, &set(&["10.0.0.2"]));
        assert_eq!(gateways.known(), set(&["10.0.0.1", "10.0.0.2"]), "its time runs from its going");
        gateways.see(start + LINGER * 2, &set(&["10.0.0.2"]));
        assert_eq!(gateways.known(), set(&["10.0.0.2"]));
    }

    #[test]
    fn a_link_local_gateway_is_known_by_its_link() {
        let mut gateway = set(&["10.0.0.1"]).pop_first().unwrap();
        assert_eq!(gateway.suffix(), "10.0.0.1");
        gateway.address = "fe80::1".parse().unwrap();
        assert_eq!(gateway.suffix(), "eth0");
    }
}
