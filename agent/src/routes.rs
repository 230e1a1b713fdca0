//! From the Loc-RIB to the kernel routes that we own. Pure: what changed and what resolves go in, routes come out.
//!
//! Two kinds of route meet here. What the speaker learned is forwarded to BGP next hops, each of which is resolved once, by
//! the kernel's own routes, for all routes that use it; what this node originates is backed by a blackhole, so that a packet for an address that no pod holds
//! ends here instead of travelling back to the ToR and round again. Where both speak of one prefix, ours wins.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use manx_bgp::speaker::{FibNextHop, NextHopState, RouteChange};
use manx_bgp::types::Prefix;

use crate::kernel::fib::{Neighbors, NextHop, Route};
use crate::kernel::link::{Egress, LinksHandle};

/// The BGP next hops that the speaker wants watched, with what the kernel said last. One entry a next hop, however many
/// routes use it.
#[derive(Debug, Default)]
pub struct NextHops {
    tracked: BTreeMap<FibNextHop, Option<Egress>>,
    /// Of them, neighbours that do not answer BFD any more: no packet is handed to them, whatever routes say. Whoever is asked
    /// for anew has a session again, with BFD or without.
    dead: BTreeSet<FibNextHop>,
}

/// A next hop about which there is news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Which.
    pub hop: FibNextHop,
    /// For the speaker.
    pub state: NextHopState,
    /// For the FIB writer: where its packets leave now.
    pub neighbors: Neighbors,
}

impl NextHops {
    /// Begins to watch.
    pub fn track(&mut self, hop: FibNextHop, egress: Option<Egress>) -> NextHopState {
        let state = state(egress.as_ref());
        self.tracked.insert(hop, egress);
        self.dead.remove(&hop);
        state
    }

    /// BFD's word on a neighbour. Where packets for it leave now, if it is watched as a next hop and that is news.
    pub fn set_alive(&mut self, hop: FibNextHop, alive: bool) -> Option<Neighbors> {
        let egress = self.tracked.get(&hop)?.as_ref();
        let changed = if alive { self.dead.remove(&hop) } else { self.dead.insert(hop) };
        changed.then(|| neighbors(egress.filter(|_| alive)))
    }

    /// No route uses it any more.
    pub fn untrack(&mut self, hop: FibNextHop) {
        self.tracked.remove(&hop);
        self.dead.remove(&hop);
    }

    /// The kernel's links, addresses or routes changed: asks again for each next hop.
    pub fn refresh(&mut self, resolve: impl Fn(FibNextHop) -> Option<Egress>) -> Vec<Moved> {
        let mut moved = Vec::new();
        for (&hop, known) in &mut self.tracked {
            let egress = resolve(hop);
            if egress != *known {
                let alive = egress.as_ref().filter(|_| !self.dead.contains(&hop));
                moved.push(Moved { hop, state: state(egress.as_ref()), neighbors: neighbors(alive) });
                *known = egress;
            }
        }
        moved
    }
}

/// Where packets for a next hop of BGP leave.
pub fn egress(links: &LinksHandle, hop: FibNextHop) -> Option<Egress> {
    match hop.ifindex {
        0 => links.egress(hop.gateway),
        ifindex => links.neighbor(NextHop { gateway: hop.gateway, ifindex }),
    }
}

/// For the FIB writer.
pub fn neighbors(egress: Option<&Egress>) -> Neighbors {
    egress.map(|egress| egress.neighbors.clone()).unwrap_or_default()
}

fn state(egress: Option<&Egress>) -> NextHopState {
    match egress {
        Some(e) => NextHopState::Reachable { metric: e.metric, connected: e.connected },
        None => NextHopState::Unreachable,
    }
}

/// What each prefix should be in the kernel.
#[derive(Debug, Default)]
pub struct Routes {
    local: BTreeSet<IpNetwork>,
}

/// A prefix and what the kernel should hold for it; `None`: nothing of ours.
pub type Wanted = (IpNetwork, Option<Route>);

impl Routes {
    /// Sets what this node originates. Of the prefixes that it no longer does the speaker will say what else leads there.
    pub fn originate(&mut self, prefixes: &BTreeSet<Prefix>) -> Vec<Wanted> {
        let new: BTreeSet<IpNetwork> = prefixes.iter().map(|p| (*p).into()).collect();
        let gone = self.local.difference(&new).map(|p| (*p, None));
        let come = new.difference(&self.local).map(|p| (*p, Some(Route::Blackhole)));
        let wanted = gone.chain(come).collect();
        self.local = new;
        wanted
    }

    /// What Loc-RIB changes mean for the kernel.
    pub fn learned<'a>(
        &'a self,
        changes: impl IntoIterator<Item = RouteChange> + 'a,
    ) -> impl Iterator<Item = Wanted> + 'a {
        changes.into_iter().filter_map(move |change| {
            let prefix = IpNetwork::from(change.prefix);
            if self.local.contains(&prefix) {
                return None;
            }
            if change.blackhole {
                return Some((prefix, Some(Route::Blackhole)));
            }
            let route = Route::via(change.next_hops.iter().map(|hop| NextHop::from(*hop)));
            Some((prefix, route.map(|route| route.with_backup(change.backup.map(NextHop::from)))))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn egress(gateway: &str, ifindex: u32) -> Option<Egress> {
        let hop = NextHop { gateway: gateway.parse().unwrap(), ifindex };
        Some(Egress { neighbors: Neighbors::from_elem(hop.into(), 1), metric: 0, connected: true })
    }

    fn via(gateway: &str, ifindex: u32) -> Neighbors {
        neighbors(egress(gateway, ifindex).as_ref())
    }

    fn change(prefix: &str, gateways: &[&str]) -> RouteChange {
        let hop = |g: &&str| FibNextHop { gateway: g.parse().unwrap(), ifindex: 0 };
        let next_hops = gateways.iter().map(hop).collect();
        RouteChange { prefix: prefix.parse().unwrap(), next_hops, backup: None, blackhole: false }
    }

    fn ip(text: &str) -> FibNextHop {
        FibNextHop::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn what_a_peer_has_blackholed_is_discarded() {
        let discard = RouteChange { blackhole: true, ..change("192.0.2.1/32", &[]) };
        let wanted: Vec<_> = Routes::default().learned([discard]).collect();
        assert_eq!(wanted, [("192.0.2.1/32".parse().unwrap(), Some(Route::Blackhole))]);
    }

    #[test]
    fn an_own_prefix_stays_a_blackhole_whatever_bgp_says() {
        let mut routes = Routes::default();
        let own = BTreeSet::from(["10.200.1.0/24".parse().unwrap()]);
        let prefix: IpNetwork = "10.200.1.0/24".parse().unwrap();
        assert_eq!(routes.originate(&own), [(prefix, Some(Route::Blackhole))]);
        assert_eq!(routes.originate(&own), []);
        assert_eq!(routes.learned([change("10.200.1.0/24", &[])]).count(), 0);
        assert_eq!(routes.originate(&BTreeSet::new()), [(prefix, None)]);
        assert_eq!(routes.learned([change("10.200.1.0/24", &[])]).collect::<Vec<_>>(), [(prefix, None)]);
    }

    #[test]
    fn all_equal_next_hops_become_one_multipath_route() {
        let routes = Routes::default();
        let got: Vec<_> = routes.learned([change("10.200.2.0/24", &["10.2.0.1", "10.1.0.1"])]).collect();
        let Some(Route::Unicast { hops, backup: None }) = &got[0].1 else { panic!("{got:?}") };
        assert_eq!(hops.iter().map(|h| h.gateway.to_string()).collect::<Vec<_>>(), ["10.1.0.1", "10.2.0.1"]);
    }

    #[test]
    fn the_same_link_local_gateway_on_two_links_is_two_ways() {
        let on = |ifindex| FibNextHop { gateway: "fe80::1".parse().unwrap(), ifindex };
        let mut hops = NextHops::default();
        hops.track(on(3), egress("fe80::1", 3));
        hops.track(on(4), egress("fe80::1", 4));
        let change = RouteChange {
            prefix: "10.200.2.0/24".parse().unwrap(),
            next_hops: [on(3), on(4)].into_iter().collect(),
            backup: None,
            blackhole: false,
        };
        let wanted = Routes::default().learned([change]).next().unwrap().1.unwrap();
        assert_eq!(wanted.mentions().map(|hop| hop.ifindex).collect::<Vec<_>>(), [3, 4]);
        let moved = hops.refresh(|hop| (hop.ifindex == 4).then(|| egress("fe80::1", 4)).flatten());
        assert_eq!(
            moved.iter().map(|m| (m.hop, m.state)).collect::<Vec<_>>(),
            [(on(3), NextHopState::Unreachable)]
        );
    }

    #[test]
    fn nothing_is_handed_to_a_neighbour_that_does_not_answer_bfd_whatever_routes_say() {
        let mut hops = NextHops::default();
        hops.track(ip("10.1.0.1"), egress("10.1.0.1", 3));
        assert_eq!(hops.set_alive(ip("10.1.0.1"), false), Some(Neighbors::new()));
        assert_eq!(hops.set_alive(ip("10.1.0.1"), false), None, "no news");
        let moved = hops.refresh(|_| egress("10.1.0.1", 4));
        assert_eq!(moved[0].neighbors[..], []);
        assert_eq!(hops.set_alive(ip("10.1.0.1"), true), Some(via("10.1.0.1", 4)));
        // A neighbour that has a session again, without BFD this time, is asked for anew.
        assert_eq!(hops.set_alive(ip("10.1.0.1"), false), Some(Neighbors::new()));
        hops.track(ip("10.1.0.1"), egress("10.1.0.1", 4));
        assert_eq!(hops.refresh(|_| egress("10.1.0.1", 3))[0].neighbors, via("10.1.0.1", 3));
        assert_eq!(hops.set_alive(ip("10.1.0.9"), false), None, "no route leads there");
    }

    #[test]
    fn a_next_hop_is_asked_for_once_however_many_routes_use_it_and_news_is_told_once() {
        let mut hops = NextHops::default();
        assert_eq!(
            hops.track(ip("10.1.0.1"), egress("10.1.0.1", 3)),
            NextHopState::Reachable { metric: 0, connected: true }
        );
        assert_eq!(hops.refresh(|_| egress("10.1.0.1", 3)), []);
        let moved = hops.refresh(|_| egress("10.9.0.1", 7));
        assert_eq!((moved.len(), &moved[0].neighbors), (1, &via("10.9.0.1", 7)));
        let moved = hops.refresh(|_| None);
        assert_eq!((moved[0].state, moved[0].neighbors.len()), (NextHopState::Unreachable, 0));
        hops.untrack(ip("10.1.0.1"));
        assert_eq!(hops.refresh(|_| egress("10.1.0.1", 3)), []);
    }
}
