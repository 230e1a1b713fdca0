//! What the kernel said of links, addresses and other owners' routes, and what follows from it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use prefix_trie::PrefixMap;
use smallvec::SmallVec;

use super::{Egress, Found};
use crate::kernel::Family;
use crate::kernel::fib::address;
use crate::kernel::fib::object::{Content, KernelObject};
use crate::kernel::fib::{KernelHop, KernelRoute, Neighbor, Neighbors, NextHop, PROTOCOL, TABLE_MAIN};
use crate::kernel::netlink::{Attrs, text, u32_at};

/// struct ifinfomsg and struct ifaddrmsg.
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Administratively up; with carrier.
const IFF_UP: u32 = 0x1;
const IFF_RUNNING: u32 = 0x40;
const IFF_LOWER_UP: u32 = 0x10000;
/// Gateways that lead to gateways: deeper than any sane table.
const MAX_DEPTH: usize = 4;
/// How many gateways are followed for one next hop, those in circles included.
const MAX_GATEWAYS: usize = 64;
/// How many neighbours one next hop is spread over at most.
const MAX_WAYS: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    name: String,
    up: bool,
    mtu: u32,
}

/// A route as it stands in the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    metric: u32,
    protocol: u8,
    way: Way,
}

/// Where it leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// By next hops of its own.
    Hops(SmallVec<[Hop; 1]>),
    /// By a nexthop object, whatever that is at the moment.
    Object(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hop {
    ifindex: u32,
    gateway: Option<IpAddr>,
    onlink: bool,
}

/// What a notification means to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// This link lost its carrier, was set down or is gone.
    pub(super) down: Option<u32>,
    /// Next hops may resolve otherwise, or this node's addresses are others.
    pub(super) relevant: bool,
    /// The kernel has done, or may have done, more than it said.
    pub(super) read_again: bool,
}

impl News {
    fn relevant(relevant: bool) -> Self {
        Self { relevant, ..Self::default() }
    }
}

type Routes = SmallVec<[Route; 1]>;

/// The kernel's tables at one moment.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Snapshot {
    links: BTreeMap<u32, Link>,
    /// Address with its prefix length, and its link. Link-local ones are left out: each pod's veth has one.
    addresses: BTreeSet<(IpNetwork, u32)>,
    objects: BTreeMap<u32, Object>,
    /// Main table, unicast, other owners'. The routes of a prefix are in order.
    ipv4: PrefixMap<Ipv4Network, Routes>,
    ipv6: PrefixMap<Ipv6Network, Routes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Object {
    Single(Hop),
    Group(SmallVec<[u32; 4]>),
    Other,
}

impl Snapshot {
    // What the kernel says.

    pub(super) fn add_link(&mut self, payload: &[u8]) -> News {
        let (Some(index), Some(flags)) = (u32_at(payload, 4), u32_at(payload, 8)) else {
            return News::default();
        };
        let up = flags & IFF_UP != 0 && flags & IFF_LOWER_UP != 0;
        let mut link = Link { name: String::new(), up, mtu: 0 };
        for (kind, value) in Attrs::new(payload.get(IFINFOMSG..).unwrap_or_default()) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = u32_at(value, 0).unwrap_or(0),
                _ => {}
            }
        }
        let old = self.links.insert(index, link.clone());
        let was_up = old.as_ref().is_some_and(|old| old.up);
        // A link that comes back counts even without an address: it may lead to a neighbour known by its link-local one.
        // Pods come, and that is no news: a veth without an address carries no next hop.
        let back = up && old.as_ref().is_some_and(|old| !old.up);
        let relevant = back || (self.carries(index) && old.as_ref() != Some(&link));
        let mut news = News { down: (was_up && !up).then_some(index), relevant, read_again: false };
        if !up {
            let carrier = flags & (IFF_RUNNING | IFF_LOWER_UP) != 0;
            let taken = self.take_from(index, flags & IFF_UP == 0, !carrier || flags & IFF_UP == 0);
            news.relevant |= taken || (was_up && self.carries(index));
            news.read_again = was_up && (taken || self.carries(index));
        }
        news
    }

    pub(super) fn remove_link(&mut self, payload: &[u8]) -> News {
        let Some(index) = u32_at(payload, 4) else { return News::default() };
        let Some(old) = self.links.remove(&index) else { return News::default() };
        let carried = self.carries(index);
        let taken = self.take_from(index, true, true);
        News { down: old.up.then_some(index), relevant: carried || taken, read_again: carried || taken }
    }

    /// What the kernel does without a word when a link goes: IPv4 routes all of whose next hops were there go when it is set
    /// down, nexthop objects also when it loses its carrier, and with them what used them.
    fn take_from(&mut self, link: u32, routes: bool, objects: bool) -> bool {
        let mut taken = false;
        if objects {
            let single = |object: &Object| matches!(object, Object::Single(hop) if hop.ifindex == link);
            let gone: Vec<u32> =
                self.objects.iter().filter(|(_, object)| single(object)).map(|(id, _)| *id).collect();
            for id in gone {
                taken |= self.remove_object(id).relevant;
            }
        }
        if routes {
            let there = |route: &Route| match &route.way {
                Way::Hops(hops) => hops.iter().all(|hop| hop.ifindex == link),
                Way::Object(_) => false,
            };
            taken |= take(&mut self.ipv4, there);
        }
        taken
    }

    pub(super) fn add_address(&mut self, payload: &[u8]) -> News {
        News::relevant(parse_address(payload).is_some_and(|address| self.addresses.insert(address)))
    }

    pub(super) fn remove_address(&mut self, payload: &[u8]) -> News {
        let gone = parse_address(payload).is_some_and(|address| self.addresses.remove(&address));
        // Routes that prefer it as their source go without a word.
        News { relevant: gone, read_again: gone, down: None }
    }

    /// `replace`: in place of another one.
    pub(super) fn add_route(&mut self, route: &KernelRoute, replace: bool) -> News {
        let Some(new) = other_owners(route) else { return News::default() };
        match route.prefix {
            IpNetwork::V4(prefix) => {
                let routes = self.ipv4.entry(prefix).or_default();
                let same = routes.iter().filter(|old| old.metric == new.metric).count();
                if replace && same == 1 {
                    routes.retain(|old| old.metric != new.metric);
                }
                // Of several it is the first one, which is not known here.
                News { relevant: insert(routes, new), read_again: replace && same > 1, down: None }
            }
            IpNetwork::V6(prefix) => {
                // Routes of one metric are one route with several next hops, told as a whole.
                let routes = self.ipv6.entry(prefix).or_default();
                let before = routes.clone();
                let same =
                    |old: &Route| old.metric == new.metric && (replace || old.protocol == new.protocol);
                let whole = replace || route.hops.iter().any(|hop| hop.gateway.is_some());
                routes.retain(|old| !(whole && same(old)));
                insert(routes, new);
                News::relevant(*routes != before)
            }
        }
    }

    pub(super) fn remove_route(&mut self, route: &KernelRoute) -> News {
        let Some(gone) = other_owners(route) else { return News::default() };
        let remove = |routes: &mut Routes| {
            let before = routes.len();
            routes.retain(|old| *old != gone);
            before != routes.len()
        };
        let found = match route.prefix {
            IpNetwork::V4(prefix) => self.ipv4.get_mut(&prefix).is_some_and(remove),
            IpNetwork::V6(prefix) => self.ipv6.get_mut(&prefix).is_some_and(remove),
        };
        match route.prefix {
            IpNetwork::V4(prefix) if self.ipv4.get(&prefix).is_some_and(|r| r.is_empty()) => {
                self.ipv4.remove(&prefix);
            }
            IpNetwork::V6(prefix) if self.ipv6.get(&prefix).is_some_and(|r| r.is_empty()) => {
                self.ipv6.remove(&prefix);
            }
            _ => {}
        }
        // Not as it is known here: a single next hop out of several.
        News { relevant: found, read_again: !found, down: None }
    }

    /// Anybody's: ours are needed to describe routes.
    pub(super) fn add_object(&mut self, object: KernelObject) -> News {
        let theirs = object.protocol != PROTOCOL;
        let new = match object.content {
            Content::Neighbor(Neighbor { gateway, ifindex, onlink }) => {
                Object::Single(Hop { ifindex, gateway: Some(gateway), onlink })
            }
            Content::Members(members) => Object::Group(members),
            Content::Strange if object.ifindex != 0 => {
                Object::Single(Hop { ifindex: object.ifindex, gateway: None, onlink: false })
            }
            Content::Strange => Object::Other,
        };
        let changed = self.objects.get(&object.id) != Some(&new);
        self.objects.insert(object.id, new);
        News::relevant(changed && theirs)
    }

    /// It goes out of its groups, and with it those that it leaves empty and the routes that used them.
    pub(super) fn remove_object(&mut self, id: u32) -> News {
        if self.objects.remove(&id).is_none() {
            return News::default();
        }
        let mut empty = Vec::new();
        for (group, object) in &mut self.objects {
            if let Object::Group(members) = object {
                members.retain(|member| *member != id);
                if members.is_empty() {
                    empty.push(*group);
                }
            }
        }
        let used = |route: &Route| route.way == Way::Object(id);
        let mut relevant = take(&mut self.ipv4, used);
        relevant |= take(&mut self.ipv6, used);
        for group in empty {
            relevant |= self.remove_object(group).relevant;
        }
        News::relevant(relevant)
    }

    /// Whether an address is on the link, or a route leads out of it.
    fn carries(&self, link: u32) -> bool {
        let on = |route: &Route| self.hops(route).any(|hop| hop.ifindex == link);
        self.addresses.iter().any(|(_, on)| *on == link)
            || self.ipv4.values().flatten().any(on)
            || self.ipv6.values().flatten().any(on)
    }

    // What differs.

    /// The links that were up before and are not in `new`.
    pub(super) fn gone_down(&self, new: &Snapshot) -> Vec<u32> {
        let up = |s: &Snapshot, index: &u32| s.links.get(index).is_some_and(|l| l.up);
        self.links.keys().filter(|i| up(self, i) && !up(new, i)).copied().collect()
    }

    /// Whether anything but the coming and going of pods is different.
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
            || self.objects != new.objects
            || carrying(self) != carrying(new)
    }

    // What follows.

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
        let (metric, _) = self.route_to(address)?;
        let (mut neighbors, mut gateways) = (Neighbors::new(), MAX_GATEWAYS);
        self.follow(address, MAX_DEPTH, &mut gateways, &mut neighbors);
        let connected = !neighbors.is_empty() && neighbors.iter().all(|n| n.gateway == address);
        neighbors.sort_unstable();
        neighbors.dedup();
        neighbors.truncate(MAX_WAYS);
        let metric = if connected { 0 } else { metric.max(1) };
        (!neighbors.is_empty()).then_some(Egress { neighbors, metric, connected })
    }

    /// Adds the neighbours by which packets for an address leave, those that its gateways resolve to where a route names
    /// no link.
    fn follow(&self, address: IpAddr, depth: usize, gateways: &mut usize, found: &mut Neighbors) {
        let Some((_, hops)) = self.route_to(address).filter(|_| depth > 0 && *gateways > 0) else { return };
        *gateways -= 1;
        for hop in hops {
            match hop.gateway {
                None => found.push(Neighbor { gateway: address, ifindex: hop.ifindex, onlink: false }),
                // A gateway is on-link by the kernel's own rule, on the very link that the route names.
                Some(gateway) if hop.ifindex != 0 => {
                    found.push(Neighbor { gateway, ifindex: hop.ifindex, onlink: hop.onlink });
                }
                Some(gateway) => self.follow(gateway, depth - 1, gateways, found),
            }
        }
    }

    /// The name of the link out of which a route for this very address leads, without a gateway.
    pub(super) fn host_route(&self, address: IpAddr) -> Option<String> {
        let routes = match address {
            IpAddr::V4(ip) => self.ipv4.get(&Ipv4Network::from(ip)),
            IpAddr::V6(ip) => self.ipv6.get(&Ipv6Network::from(ip)),
        };
        let hop = self.hops(routes?.first()?).find(|hop| hop.gateway.is_none() && hop.ifindex != 0)?;
        Some(self.name(hop.ifindex))
    }

    /// Routers that the default routes of the lowest metric lead to, of each family, with the name of their link; of links
    /// that are up.
    pub(super) fn default_gateways(&self) -> Vec<(Family, IpAddr, String)> {
        let find = |family| match family {
            Family::Ipv4 => {
                self.ipv4.iter().next().filter(|(prefix, _)| prefix.prefix() == 0).map(|(_, r)| r)
            }
            Family::Ipv6 => {
                self.ipv6.iter().next().filter(|(prefix, _)| prefix.prefix() == 0).map(|(_, r)| r)
            }
        };
        let mut found = Vec::new();
        for family in Family::BOTH {
            let ways = find(family).into_iter().flatten();
            let ways = ways.flat_map(|route| self.hops(route).map(move |hop| (route.metric, hop)));
            let ways: Vec<(u32, Hop)> = ways.filter(|(_, hop)| self.usable(hop)).collect();
            let best = ways.iter().map(|(metric, _)| *metric).min();
            for (_, hop) in ways.iter().filter(|(metric, _)| Some(*metric) == best) {
                let gateway = hop.gateway.map(|gateway| (family, gateway, self.name(hop.ifindex)));
                found.extend(gateway);
            }
        }
        found
    }

    pub(super) fn neighbor(&self, hop: NextHop) -> Option<Egress> {
        let up = self.links.get(&hop.ifindex).is_some_and(|l| l.up);
        up.then(|| Egress { neighbors: Neighbors::from_elem(hop.into(), 1), metric: 0, connected: true })
    }

    /// The usable ways of the best route of the longest match, with its metric; never a default route.
    fn route_to(&self, address: IpAddr) -> Option<(u32, SmallVec<[Hop; 1]>)> {
        let routes = match address {
            IpAddr::V4(a) => self.ipv4.get_lpm(&Ipv4Network::from(a)).filter(|(p, _)| p.prefix() > 0)?.1,
            IpAddr::V6(a) => self.ipv6.get_lpm(&Ipv6Network::from(a)).filter(|(p, _)| p.prefix() > 0)?.1,
        };
        // They are in the order of their metrics.
        routes.iter().find_map(|route| {
            let ways: SmallVec<[Hop; 1]> = self.hops(route).filter(|hop| self.usable(hop)).collect();
            (!ways.is_empty()).then_some((route.metric, ways))
        })
    }

    fn usable(&self, hop: &Hop) -> bool {
        self.links.get(&hop.ifindex).is_none_or(|link| link.up)
    }

    /// The ways out of a route, those of its object included.
    fn hops(&self, route: &Route) -> impl Iterator<Item = Hop> {
        let (own, object) = match &route.way {
            Way::Hops(hops) => (&hops[..], None),
            Way::Object(id) => (&[][..], Some(*id)),
        };
        own.iter().copied().chain(object.into_iter().flat_map(|id| self.object_hops(id)))
    }

    fn object_hops(&self, id: u32) -> SmallVec<[Hop; 1]> {
        let single = |id: &u32| match self.objects.get(id) {
            Some(Object::Single(hop)) => Some(*hop),
            _ => None,
        };
        match self.objects.get(&id) {
            Some(Object::Group(members)) => members.iter().filter_map(single).collect(),
            _ => single(&id).into_iter().collect(),
        }
    }

    pub(super) fn describe(&self, route: &KernelRoute) -> Found {
        let hops = match route.next_hop {
            Some(id) => self.object_hops(id),
            None => hops_of(route),
        };
        Found {
            prefix: Some(route.prefix),
            gateways: hops.iter().filter_map(|h| h.gateway).collect(),
            interfaces: hops.iter().filter(|h| h.ifindex != 0).map(|h| self.name(h.ifindex)).collect(),
            ifindexes: hops.iter().map(|h| h.ifindex).filter(|index| *index != 0).collect(),
            owner: owner(route.protocol),
        }
    }
}

/// Address with its prefix length, and its link.
fn parse_address(payload: &[u8]) -> Option<(IpNetwork, u32)> {
    let (length, link) = (*payload.get(1)?, u32_at(payload, 4)?);
    let (mut local, mut other) = (None, None);
    for (kind, value) in Attrs::new(payload.get(IFADDRMSG..)?) {
        match kind {
            IFA_LOCAL => local = address(value),
            IFA_ADDRESS => other = address(value),
            _ => {}
        }
    }
    // IFA_ADDRESS is the far end on a point-to-point link; IFA_LOCAL, where it is there, is ours.
    let net = IpNetwork::new(local.or(other)?, length).ok()?;
    (!link_local(net.ip())).then_some((net, link))
}

/// A route by which a next hop may resolve.
fn other_owners(route: &KernelRoute) -> Option<Route> {
    let ours = route.protocol == PROTOCOL;
    if ours || route.table != TABLE_MAIN || !route.unicast || link_local(route.prefix.ip()) {
        return None;
    }
    let way = route.next_hop.map_or_else(|| Way::Hops(hops_of(route)), Way::Object);
    Some(Route { metric: route.metric, protocol: route.protocol, way })
}

fn hops_of(route: &KernelRoute) -> SmallVec<[Hop; 1]> {
    let hop = |hop: &KernelHop| Hop { ifindex: hop.ifindex, gateway: hop.gateway, onlink: hop.onlink };
    route.hops.iter().map(hop).collect()
}

/// Keeps the order, so that it does not depend on that of the notifications. Whether it was not there.
fn insert(routes: &mut Routes, new: Route) -> bool {
    match routes.binary_search(&new) {
        Ok(_) => false,
        Err(at) => {
            routes.insert(at, new);
            true
        }
    }
}

/// Removes routes; whether there were any.
fn take<P: prefix_trie::Prefix + Clone>(
    table: &mut PrefixMap<P, Routes>,
    which: impl Fn(&Route) -> bool,
) -> bool {
    let concerned: Vec<P> =
        table.iter().filter(|(_, routes)| routes.iter().any(&which)).map(|(p, _)| p).collect();
    for prefix in &concerned {
        if let Some(routes) = table.get_mut(prefix) {
            routes.retain(|route| !which(route));
            if routes.is_empty() {
                table.remove(prefix);
            }
        }
    }
    !concerned.is_empty()
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

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn via(ways: &[(&str, u32)]) -> Neighbors {
        ways.iter()
            .map(|(g, ifindex)| Neighbor { gateway: ip(g), ifindex: *ifindex, onlink: false })
            .collect()
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
            next_hop: None,
            hops: hops
                .iter()
                .map(|(ifindex, g)| KernelHop {
                    ifindex: *ifindex,
                    gateway: g.map(ip),
                    weight: 0,
                    onlink: false,
                })
                .collect(),
        }
    }

    #[test]
    fn a_neighbour_on_a_connected_subnet_is_its_own_gateway() {
        let mut s = with_links(&[(2, true)]);
        s.add_route(&route("10.1.0.0/24", 0, 2, &[(2, None)]), false);
        assert_eq!(
            s.egress(ip("10.1.0.1")),
            Some(Egress { neighbors: via(&[("10.1.0.1", 2)]), metric: 0, connected: true })
        );
    }

    #[test]
    fn a_distant_next_hop_resolves_through_other_owners_routes_and_costs_their_metric() {
        let mut s = with_links(&[(2, true)]);
        s.add_route(&route("10.1.0.0/24", 0, 2, &[(2, None)]), false);
        s.add_route(&route("10.9.0.0/16", 20, 188, &[(2, Some("10.1.0.1"))]), false);
        let e = s.egress(ip("10.9.9.9")).unwrap();
        assert_eq!(e, Egress { neighbors: via(&[("10.1.0.1", 2)]), metric: 20, connected: false });
    }

    #[test]
    fn a_next_hop_behind_several_gateways_is_spread_over_those_whose_links_are_up() {
        let mut s = with_links(&[(2, true), (3, true), (4, false)]);
        let hops = [(2, Some("10.1.0.1")), (3, Some("10.2.0.1")), (4, Some("10.3.0.1"))];
        s.add_route(&route("10.9.0.0/16", 20, 188, &hops), false);
        s.add_route(&route("10.9.0.0/16", 30, 4, &[(2, Some("10.1.0.9"))]), false);
        let e = s.egress(ip("10.9.9.9")).unwrap();
        let both = via(&[("10.1.0.1", 2), ("10.2.0.1", 3)]);
        assert_eq!(e, Egress { neighbors: both, metric: 20, connected: false }, "not over the worse route");
        for down in [2, 3] {
            s.links.get_mut(&down).unwrap().up = false;
        }
        assert_eq!(s.egress(ip("10.9.9.9")), None);
        s.links.get_mut(&2).unwrap().up = true;
        assert_eq!(s.egress(ip("10.9.9.9")).unwrap().neighbors, via(&[("10.1.0.1", 2)]));
        // By a group of nexthop objects it is the same.
        for (id, gateway, ifindex) in [(7, "10.1.0.3", 2), (8, "10.1.0.4", 2)] {
            let hop = Hop { ifindex, gateway: Some(ip(gateway)), onlink: false };
            s.objects.insert(id, Object::Single(hop));
        }
        s.objects.insert(9, Object::Group([7, 8].into_iter().collect()));
        s.add_route(&KernelRoute { next_hop: Some(9), ..route("10.8.0.0/16", 20, 11, &[]) }, false);
        assert_eq!(s.egress(ip("10.8.0.1")).unwrap().neighbors, via(&[("10.1.0.3", 2), ("10.1.0.4", 2)]));
    }

    #[test]
    fn gateways_that_lead_to_gateways_are_followed_each_and_in_circles_for_a_few_steps_only() {
        let mut s = with_links(&[(2, true), (3, true)]);
        s.add_route(&route("10.1.0.0/24", 0, 2, &[(2, None)]), false);
        s.add_route(&route("10.2.0.0/24", 0, 2, &[(3, None)]), false);
        s.add_route(&route("10.7.0.0/16", 10, 188, &[(0, Some("10.1.0.1")), (0, Some("10.2.0.1"))]), false);
        s.add_route(&route("10.8.0.0/16", 20, 188, &[(0, Some("10.7.0.1")), (3, Some("10.2.0.9"))]), false);
        let e = s.egress(ip("10.8.9.9")).unwrap();
        let ways = via(&[("10.1.0.1", 2), ("10.2.0.1", 3), ("10.2.0.9", 3)]);
        assert_eq!(e, Egress { neighbors: ways, metric: 20, connected: false });

        s.add_route(&route("10.5.0.0/16", 10, 188, &[(0, Some("10.6.0.1")), (0, Some("10.6.0.2"))]), false);
        s.add_route(&route("10.6.0.0/16", 10, 188, &[(0, Some("10.5.0.1")), (0, Some("10.5.0.2"))]), false);
        assert_eq!(s.egress(ip("10.5.0.9")), None, "round and round");
        // As deep as is looked, and one deeper.
        for n in 1..=4 {
            let (net, gateway) = (format!("10.{}.0.0/16", 20 + n), format!("10.{}.0.1", 19 + n));
            s.add_route(&route(&net, 10, 188, &[(0, Some(&gateway))]), false);
        }
        s.add_route(&route("10.20.0.0/16", 10, 188, &[(2, Some("10.1.0.1"))]), false);
        assert_eq!(s.egress(ip("10.23.0.9")).unwrap().neighbors, via(&[("10.1.0.1", 2)]));
        assert_eq!(s.egress(ip("10.24.0.9")), None);

        let many: Vec<String> = (1..=40).map(|n| format!("10.1.0.{n}")).collect();
        let many: Vec<(u32, Option<&str>)> = many.iter().map(|gateway| (2, Some(gateway.as_str()))).collect();
        s.add_route(&route("10.10.0.0/16", 10, 188, &many), false);
        assert_eq!(s.egress(ip("10.10.0.1")).unwrap().neighbors.len(), MAX_WAYS);
    }

    #[test]
    fn a_next_hop_resolves_neither_through_a_default_route_nor_through_our_own() {
        let mut s = with_links(&[(2, true)]);
        s.add_route(&route("0.0.0.0/0", 0, 16, &[(2, Some("10.1.0.1"))]), false);
        s.add_route(&route("10.9.0.0/16", 77, PROTOCOL, &[(2, Some("10.1.0.1"))]), false);
        assert_eq!(s.egress(ip("10.9.9.9")), None);
    }

    #[test]
    fn the_gateways_of_the_node_are_those_of_its_best_default_routes_on_links_that_are_up() {
        let mut s = with_links(&[(2, true), (3, true), (4, false)]);
        assert_eq!(s.default_gateways(), []);
        s.add_route(&route("10.0.0.0/8", 0, 4, &[(2, Some("10.1.0.9"))]), false);
        s.add_route(&route("0.0.0.0/0", 200, 16, &[(2, Some("10.1.0.3"))]), false);
        s.add_route(&route("0.0.0.0/0", 50, 4, &[(4, Some("10.3.0.1"))]), false);
        s.add_route(&route("0.0.0.0/0", 77, PROTOCOL, &[(2, Some("10.1.0.4"))]), false);
        let hops = [(2, Some("10.1.0.1")), (3, Some("10.2.0.1"))];
        s.add_route(&route("0.0.0.0/0", 100, 4, &hops), false);
        s.add_route(&route("::/0", 1024, 9, &[(3, Some("fe80::1"))]), false);
        s.add_route(&route("::/0", 2048, 3, &[(2, None)]), false);
        let found: Vec<_> = s.default_gateways();
        let found: Vec<_> = found.iter().map(|(f, a, on)| (*f, a.to_string(), on.as_str())).collect();
        let gateway = |family, address: &str, on| (family, address.to_owned(), on);
        assert_eq!(
            found,
            [
                gateway(Family::Ipv4, "10.1.0.1", "eth2"),
                gateway(Family::Ipv4, "10.2.0.1", "eth3"),
                gateway(Family::Ipv6, "fe80::1", "eth3")
            ]
        );
    }

    #[test]
    fn a_link_that_is_down_leads_nowhere() {
        let mut s = with_links(&[(2, false), (3, true)]);
        s.add_route(&route("10.1.0.0/24", 0, 2, &[(2, None)]), false);
        assert_eq!(s.egress(ip("10.1.0.1")), None);
        s.add_route(&route("10.1.0.0/24", 100, 4, &[(3, None)]), false);
        assert_eq!(s.egress(ip("10.1.0.1")).unwrap().neighbors, via(&[("10.1.0.1", 3)]));
    }

    #[test]
    fn a_link_local_neighbour_is_as_reachable_as_its_link() {
        let s = with_links(&[(2, true), (3, false)]);
        let on = |ifindex| NextHop { gateway: ip("fe80::1"), ifindex };
        let there = Egress { neighbors: via(&[("fe80::1", 2)]), metric: 0, connected: true };
        assert_eq!(s.neighbor(on(2)), Some(there));
        assert_eq!((s.neighbor(on(3)), s.neighbor(on(4))), (None, None));
        assert_eq!(s.egress(ip("fe80::1")), None, "without its interface it is nowhere");
    }

    #[test]
    fn pods_that_come_and_go_are_no_news_but_uplinks_are() {
        let uplink = |up| {
            let mut s = with_links(&[(2, up), (3, true)]);
            s.addresses.insert(("10.1.0.2/24".parse().unwrap(), 2));
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
