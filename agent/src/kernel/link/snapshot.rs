//! What the kernel said of links, addresses and other owners' routes, and what follows from it. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use prefix_trie::PrefixMap;

use super::{Egress, Found};
use crate::kernel::fib::address;
use crate::kernel::fib::{KernelRoute, NextHop, PROTOCOL, TABLE_MAIN};
use crate::kernel::netlink::{Attrs, text, u32_at};

/// struct ifinfomsg and struct ifaddrmsg.
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Administratively up, with carrier.
const IFF_UP: u32 = 0x1;
const IFF_LOWER_UP: u32 = 0x10000;
/// Gateways that lead to gateways: deeper than any sane table.
const MAX_DEPTH: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    name: String,
    up: bool,
    mtu: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    metric: u32,
    ifindex: u32,
    gateway: Option<IpAddr>,
}

/// The kernel's tables at one moment.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Snapshot {
    links: BTreeMap<u32, Link>,
    /// Address with its prefix length, and its link. Link-local ones are left out: each pod's veth has one.
    addresses: Vec<(IpNetwork, u32)>,
    ipv4: PrefixMap<Ipv4Network, Vec<Route>>,
    ipv6: PrefixMap<Ipv6Network, Vec<Route>>,
}

impl Snapshot {
    pub(super) fn add_link(&mut self, payload: &[u8]) {
        let (Some(index), Some(flags)) = (u32_at(payload, 4), u32_at(payload, 8)) else { return };
        let mut link =
            Link { name: String::new(), up: flags & IFF_UP != 0 && flags & IFF_LOWER_UP != 0, mtu: 0 };
        for (kind, value) in Attrs::new(payload.get(IFINFOMSG..).unwrap_or_default()) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = u32_at(value, 0).unwrap_or(0),
                _ => {}
            }
        }
        self.links.insert(index, link);
    }

    pub(super) fn add_address(&mut self, payload: &[u8]) {
        let (Some(length), Some(link)) = (payload.get(1), u32_at(payload, 4)) else { return };
        let (mut local, mut other) = (None, None);
        for (kind, value) in Attrs::new(payload.get(IFADDRMSG..).unwrap_or_default()) {
            match kind {
                IFA_LOCAL => local = address(value),
                IFA_ADDRESS => other = address(value),
                _ => {}
            }
        }
        // IFA_ADDRESS is the far end on a point-to-point link; IFA_LOCAL, where it is there, is ours.
        let net = local.or(other).and_then(|ip| IpNetwork::new(ip, *length).ok());
        if let Some(net) = net.filter(|net| !link_local(net.ip())) {
            self.addresses.push((net, link));
        }
    }

    pub(super) fn add_route(&mut self, route: &KernelRoute) {
        if route.protocol == PROTOCOL
            || route.table != TABLE_MAIN
            || !route.unicast
            || link_local(route.prefix.ip())
        {
            return;
        }
        let entries =
            route.hops.iter().map(|h| Route { metric: route.metric, ifindex: h.ifindex, gateway: h.gateway });
        match route.prefix {
            IpNetwork::V4(prefix) => self.ipv4.entry(prefix).or_default().extend(entries),
            IpNetwork::V6(prefix) => self.ipv6.entry(prefix).or_default().extend(entries),
        }
    }

    /// Called once all is there: order and the order of arrival become independent.
    pub(super) fn finish(&mut self) {
        self.addresses.sort_unstable();
    }

    /// The links that were up before and are not in `new`.
    pub(super) fn gone_down(&self, new: &Snapshot) -> Vec<u32> {
        let up = |s: &Snapshot, index: &u32| s.links.get(index).is_some_and(|l| l.up);
        self.links.keys().filter(|i| up(self, i) && !up(new, i)).copied().collect()
    }

    /// Whether anything but the coming and going of pods is different. A link that gets its carrier back counts even without
    /// an address: it may lead to a neighbour known by its link-local one.
    pub(super) fn relevant_change(&self, new: &Snapshot) -> bool {
        let carrying = |s: &Snapshot| -> Vec<(u32, Link)> {
            let holds = |index: &u32| s.addresses.iter().any(|(_, link)| link == index);
            s.links.iter().filter(|(index, _)| holds(index)).map(|(i, l)| (*i, l.clone())).collect()
        };
        let returned = |(index, link): (&u32, &Link)| !link.up && new.links.get(index).is_some_and(|l| l.up);
        self.links.iter().any(returned)
            || self.addresses != new.addresses
            || self.ipv4 != new.ipv4
            || self.ipv6 != new.ipv6
            || carrying(self) != carrying(new)
    }

    pub(super) fn addresses(&self) -> Vec<IpNetwork> {
        self.addresses.iter().map(|(net, _)| *net).collect()
    }

    pub(super) fn name(&self, link: u32) -> String {
        self.links.get(&link).map_or_else(|| format!("link {link}"), |l| l.name.clone())
    }

    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.links.values().map(|l| l.name.clone()).collect();
        names.sort_unstable();
        names
    }

    pub(super) fn mtu_of(&self, addresses: &[IpAddr]) -> Option<u32> {
        let holding = self.addresses.iter().filter(|(net, _)| addresses.contains(&net.ip()));
        holding.filter_map(|(_, link)| self.links.get(link)).map(|l| l.mtu).min()
    }

    pub(super) fn egress(&self, address: IpAddr) -> Option<Egress> {
        let first = self.route_to(address)?;
        let mut gateway = address;
        let mut route = first;
        for _ in 0..MAX_DEPTH {
            let Some(next) = route.gateway else {
                let connected = gateway == address;
                let metric = if connected { 0 } else { first.metric.max(1) };
                return Some(Egress { hop: NextHop { gateway, ifindex: route.ifindex }, metric, connected });
            };
            // A gateway is on-link by the kernel's own rule, on the very link that the route names.
            if route.ifindex != 0 {
                let hop = NextHop { gateway: next, ifindex: route.ifindex };
                return Some(Egress { hop, metric: first.metric.max(1), connected: false });
            }
            gateway = next;
            route = self.route_to(next)?;
        }
        None
    }

    pub(super) fn neighbor(&self, hop: NextHop) -> Option<Egress> {
        let up = self.links.get(&hop.ifindex).is_some_and(|l| l.up);
        up.then_some(Egress { hop, metric: 0, connected: true })
    }

    /// The best usable entry of the longest match; never a default route.
    fn route_to(&self, address: IpAddr) -> Option<Route> {
        let entries = match address {
            IpAddr::V4(a) => self.ipv4.get_lpm(&Ipv4Network::from(a)).filter(|(p, _)| p.prefix() > 0)?.1,
            IpAddr::V6(a) => self.ipv6.get_lpm(&Ipv6Network::from(a)).filter(|(p, _)| p.prefix() > 0)?.1,
        };
        let usable = |r: &&Route| self.links.get(&r.ifindex).is_none_or(|l| l.up);
        entries.iter().filter(usable).min_by_key(|r| (r.metric, r.ifindex, r.gateway)).copied()
    }

    pub(super) fn describe(&self, route: &KernelRoute) -> Found {
        Found {
            prefix: Some(route.prefix),
            gateways: route.hops.iter().filter_map(|h| h.gateway).collect(),
            interfaces: route.hops.iter().filter(|h| h.ifindex != 0).map(|h| self.name(h.ifindex)).collect(),
            ifindexes: route.hops.iter().map(|h| h.ifindex).filter(|index| *index != 0).collect(),
            owner: owner(route.protocol),
        }
    }
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    }
}

/// The names that iproute2 gives to RTPROT_ numbers.
fn owner(protocol: u8) -> String {
    match protocol {
        PROTOCOL => "manx",
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        9 => "ra",
        11 => "zebra",
        12 => "bird",
        16 => "dhcp",
        186 => "bgp",
        188 => "ospf",
        other => return other.to_string(),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fib::KernelHop;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn with_links(links: &[(u32, bool)]) -> Snapshot {
        let links =
            links.iter().map(|(i, up)| (*i, Link { name: format!("eth{i}"), up: *up, mtu: 1500 })).collect();
        Snapshot { links, ..Snapshot::default() }
    }

    fn route(prefix: &str, metric: u32, protocol: u8, hops: &[(u32, Option<&str>)]) -> KernelRoute {
        KernelRoute {
            prefix: prefix.parse().unwrap(),
            protocol,
            metric,
            table: TABLE_MAIN,
            blackhole: false,
            unicast: true,
            hops: hops
                .iter()
                .map(|(ifindex, g)| KernelHop { ifindex: *ifindex, gateway: g.map(ip), weight: 0 })
                .collect(),
        }
    }

    #[test]
    fn a_neighbour_on_a_connected_subnet_is_its_own_gateway() {
        let mut s = with_links(&[(2, true)]);
        s.add_route(&route("10.1.0.0/24", 0, 2, &[(2, None)]));
        let e = s.egress(ip("10.1.0.1")).unwrap();
        assert_eq!((e.hop.gateway, e.hop.ifindex, e.metric, e.connected), (ip("10.1.0.1"), 2, 0, true));
    }

    #[test]
    fn a_distant_next_hop_resolves_through_other_owners_routes_and_costs_their_metric() {
        let mut s = with_links(&[(2, true)]);
        s.add_route(&route("10.1.0.0/24", 0, 2, &[(2, None)]));
        s.add_route(&route("10.9.0.0/16", 20, 188, &[(2, Some("10.1.0.1"))]));
        let e = s.egress(ip("10.9.9.9")).unwrap();
        assert_eq!((e.hop.gateway, e.metric, e.connected), (ip("10.1.0.1"), 20, false));
    }

    #[test]
    fn a_next_hop_resolves_neither_through_a_default_route_nor_through_our_own() {
        let mut s = with_links(&[(2, true)]);
        s.add_route(&route("0.0.0.0/0", 0, 16, &[(2, Some("10.1.0.1"))]));
        s.add_route(&route("10.9.0.0/16", 77, PROTOCOL, &[(2, Some("10.1.0.1"))]));
        assert_eq!(s.egress(ip("10.9.9.9")), None);
    }

    #[test]
    fn a_link_that_is_down_leads_nowhere() {
        let mut s = with_links(&[(2, false), (3, true)]);
        s.add_route(&route("10.1.0.0/24", 0, 2, &[(2, None)]));
        assert_eq!(s.egress(ip("10.1.0.1")), None);
        s.add_route(&route("10.1.0.0/24", 100, 4, &[(3, None)]));
        assert_eq!(s.egress(ip("10.1.0.1")).unwrap().hop.ifindex, 3);
    }

    #[test]
    fn a_link_local_neighbour_is_as_reachable_as_its_link() {
        let s = with_links(&[(2, true), (3, false)]);
        let on = |ifindex| NextHop { gateway: ip("fe80::1"), ifindex };
        assert_eq!(s.neighbor(on(2)), Some(Egress { hop: on(2), metric: 0, connected: true }));
        assert_eq!((s.neighbor(on(3)), s.neighbor(on(4))), (None, None));
        assert_eq!(s.egress(ip("fe80::1")), None, "without its interface it is nowhere");
    }

    #[test]
    fn pods_that_come_and_go_are_no_news_but_uplinks_are() {
        let uplink = |up| {
            let mut s = with_links(&[(2, up), (3, true)]);
            s.addresses.push(("10.1.0.2/24".parse().unwrap(), 2));
            s
        };
        let mut with_pod = uplink(true);
        with_pod.links.insert(9, Link { name: "manx0123456789a".into(), up: true, mtu: 1500 });
        assert!(!uplink(true).relevant_change(&with_pod));
        assert!(uplink(true).relevant_change(&uplink(false)));
        assert_eq!(uplink(true).gone_down(&uplink(false)), [2]);
        assert_eq!(with_pod.gone_down(&uplink(true)), [9]);
    }

    #[test]
    fn an_unnumbered_link_that_comes_back_is_news() {
        assert!(with_links(&[(2, false)]).relevant_change(&with_links(&[(2, true)])));
        assert_eq!(with_links(&[(2, true)]).gone_down(&with_links(&[(2, false)])), [2]);
    }
}
