//! `routes --drift`: the Loc-RIB joined with the kernel's own table, read past the FIB writer's books.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use ipnetwork::IpNetwork;
use manx_bgp::speaker::{RouteChange, Speaker};

use super::server::{Answer, Api, gone, refuse};
use crate::kernel::audit::{self, Neighbour};
use crate::kernel::fib::{FibConfig, Ownership, POD_METRIC, RouteState};
use crate::kernel::link::LinksHandle;
use crate::kernel::netlink::NetlinkError;
use crate::routes;
use crate::view::{Drift, DriftItem, ErrorCode, RouteDrift};

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    Blackhole,
    /// Neighbours by address and link; sorted.
    Via(Vec<Neighbour>),
}

/// A route under our protocol number.
#[derive(Clone, Debug)]
struct Found {
    way: Way,
    /// Its metric is the one that we write.
    at_our_metric: bool,
}

pub(super) async fn drift(State(api): State<Arc<Api>>) -> Answer<RouteDrift> {
    let Some(fib) = api.fib.clone() else {
        return Err(refuse(ErrorCode::Unavailable, "this agent writes no routes (--no-fib)"));
    };
    let chosen = api.bgp()?.with(|speaker: &mut Speaker, _| speaker.forwarding()).await.map_err(gone)?;
    let own = api.facts.with(|f| f.originated.clone());
    let (links, node) = (api.links.clone(), api.node.clone());
    let read = move || -> Result<RouteDrift, NetlinkError> {
        let wanted = wanted(chosen, &own, &links);
        let found = kernel()?;
        let name = |link: u32| links.name(link);
        Ok(RouteDrift { node, ..compare(&wanted, found, &|prefix| fib.state(prefix), &name) })
    };
    let drift = tokio::task::spawn_blocking(read).await.map_err(gone)?;
    drift.map(Json).map_err(|e| refuse(ErrorCode::Unavailable, e.to_string()))
}

/// What the kernel should hold: ours first, then what was chosen and can be reached.
fn wanted(chosen: Vec<RouteChange>, own: &[String], links: &LinksHandle) -> BTreeMap<IpNetwork, Way> {
    let mut wanted = BTreeMap::new();
    for change in chosen {
        let hops = change.next_hops.iter().filter_map(|hop| routes::egress(links, *hop));
        let mut hops: Vec<_> =
            hops.flat_map(|e| e.neighbors).map(|neighbor| (neighbor.gateway, neighbor.ifindex)).collect();
        hops.sort_unstable();
        hops.dedup();
        let way = if change.blackhole { Way::Blackhole } else { Way::Via(hops) };
        if way != Way::Via(Vec::new()) {
            wanted.insert(change.prefix.into(), way);
        }
    }
    wanted.extend(own.iter().filter_map(|prefix| Some((prefix.parse().ok()?, Way::Blackhole))));
    wanted
}

/// What it does hold under our number, without the host routes of pods.
fn kernel() -> Result<BTreeMap<IpNetwork, Found>, NetlinkError> {
    let ours = FibConfig::default();
    let mut found = BTreeMap::new();
    let ownership = Ownership { protocol: ours.protocol, metric: ours.metric, table: ours.table };
    audit::read(ownership, |route, hops| {
        if route.metric != POD_METRIC {
            let way = if route.blackhole { Way::Blackhole } else { Way::Via(hops) };
            let at_our_metric = route.metric == ours.metric;
            found.insert(route.prefix, Found { way, at_our_metric });
        }
    })?;
    Ok(found)
}

fn compare(
    wanted: &BTreeMap<IpNetwork, Way>,
    mut found: BTreeMap<IpNetwork, Found>,
    state: &dyn Fn(IpNetwork) -> RouteState,
    name: &dyn Fn(u32) -> String,
) -> RouteDrift {
    let words = |way: &Way| match way {
        Way::Blackhole => vec!["blackhole".to_owned()],
        Way::Via(hops) => {
            hops.iter().map(|(gateway, link)| format!("{gateway} dev {}", name(*link))).collect()
        }
    };
    let mut items = Vec::new();
    for (prefix, way) in wanted {
        let there = found.remove(prefix);
        if there.as_ref().is_some_and(|f| f.way == *way && f.at_our_metric) {
            continue;
        }
        let state = state(*prefix);
        // What is being written is no fault.
        if state == RouteState::Pending {
            continue;
        }
        items.push(DriftItem {
            prefix: prefix.to_string(),
            drift: if there.is_some() { Drift::Changed } else { Drift::Missing },
            wanted: words(way),
            found: there.as_ref().map_or_else(Vec::new, |f| words(&f.way)),
            reason: reason(state),
        });
    }
    let agreeing = wanted.len() - items.len();
    for (prefix, found) in found {
        let state = state(prefix);
        // A predecessor's, until its peers have said all; ours, on its way out.
        if found.at_our_metric
            && matches!(state, RouteState::Inherited | RouteState::Removing | RouteState::Pending)
        {
            continue;
        }
        let foreign = "protocol 77 at another metric than ours: somebody else's, and never touched";
        items.push(DriftItem {
            prefix: prefix.to_string(),
            drift: Drift::Extra,
            wanted: Vec::new(),
            found: words(&found.way),
            reason: if found.at_our_metric { reason(state) } else { Some(foreign.to_owned()) },
        });
    }
    items.sort_by_key(|item| item.prefix.parse::<IpNetwork>().ok());
    RouteDrift { wanted: wanted.len() as u64, agreeing: agreeing as u64, items, ..Default::default() }
}

/// What the FIB writer knows of it.
fn reason(state: RouteState) -> Option<String> {
    match state {
        RouteState::Missing { reason, .. } => Some(reason),
        RouteState::Installed => Some("changed just now: it has not been noticed yet".to_owned()),
        RouteState::Unknown | RouteState::Pending | RouteState::Removing | RouteState::Inherited => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn via(gateway: &str) -> Way {
        Way::Via(vec![(gateway.parse().unwrap(), 3)])
    }

    fn ours(way: Way) -> Found {
        Found { way, at_our_metric: true }
    }

    #[test]
    fn what_is_missing_changed_or_nobodys_is_told_and_what_is_on_its_way_is_not() {
        let wanted = BTreeMap::from([
            (net("10.1.0.0/24"), via("10.0.0.1")),
            (net("10.2.0.0/24"), via("10.0.0.1")),
            (net("10.3.0.0/24"), via("10.0.0.1")),
            (net("10.4.0.0/24"), Way::Blackhole),
            (net("fd00:5::/64"), via("fd00::1")),
        ]);
        let found = BTreeMap::from([
            (net("10.1.0.0/24"), ours(via("10.0.0.1"))),
            (net("10.2.0.0/24"), ours(via("10.0.0.9"))),
            (net("10.8.0.0/24"), ours(Way::Blackhole)),
            (net("10.9.0.0/24"), ours(Way::Blackhole)),
            (net("10.10.0.0/24"), Found { way: Way::Blackhole, at_our_metric: false }),
        ]);
        let state = |prefix: IpNetwork| match prefix.to_string().as_str() {
            "10.4.0.0/24" => {
                RouteState::Missing { reason: "removed by ip 3 s ago, reinstalling".to_owned(), attempts: 0 }
            }
            "fd00:5::/64" => RouteState::Pending,
            "10.9.0.0/24" => RouteState::Inherited,
            _ => RouteState::Installed,
        };
        let drift = compare(&wanted, found, &state, &|link| format!("eth{link}"));
        assert_eq!((drift.wanted, drift.agreeing), (5, 2));
        let shown: Vec<_> = drift.items.iter().map(|i| (i.prefix.as_str(), i.drift)).collect();
        assert_eq!(
            shown,
            [
                ("10.2.0.0/24", Drift::Changed),
                ("10.3.0.0/24", Drift::Missing),
                ("10.4.0.0/24", Drift::Missing),
                ("10.8.0.0/24", Drift::Extra),
                ("10.10.0.0/24", Drift::Extra),
            ]
        );
        assert_eq!(drift.items[0].found, ["10.0.0.9 dev eth3"]);
        assert_eq!(drift.items[2].reason.as_deref(), Some("removed by ip 3 s ago, reinstalling"));
        assert!(drift.items[4].reason.as_ref().unwrap().contains("another metric"));
    }
}
