//! The FIB writer: routes here, the objects that they share in `objects`.

mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnetwork::IpNetwork;
use manx_agent::kernel::Family;
use manx_agent::kernel::fib::{Fib, FibConfig, FibHandle, Neighbor, Neighbors, NextHop, Route, RouteState};
use manx_agent::kernel::sysctl;

use crate::netns::{PATIENCE, RouteMonitor, eventually, ifindex, ip, ip_json, with_two_links, within};

/// What is promised for a route that somebody else removed.
const REPAIRED_WITHIN: Duration = Duration::from_secs(1);

fn spawn() -> FibHandle {
    let fib = Fib::spawn(FibConfig::default()).unwrap();
    settled(&fib);
    fib
}

/// As on a kernel before 5.3: each route names its neighbours itself.
fn spawn_plain() -> FibHandle {
    let fib = Fib::spawn(FibConfig { objects: false, ..FibConfig::default() }).unwrap();
    settled(&fib);
    fib
}

fn settled(fib: &FibHandle) {
    assert!(fib.wait_idle(PATIENCE), "{:?}", fib.stats());
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn via(hops: &[(&str, &str)]) -> Route {
    let hop = |(gateway, link): &(&str, &str)| NextHop {
        gateway: gateway.parse().unwrap(),
        ifindex: ifindex(link),
    };
    Route::via(hops.iter().map(hop)).unwrap()
}

fn set(fib: &FibHandle, prefix: &str, route: Option<Route>) {
    fib.set([(net(prefix), route)]);
    settled(fib);
}

/// 20.0.0.0/24 and those that follow.
fn prefixes(count: u32) -> impl Iterator<Item = IpNetwork> {
    (0..count).map(|i| IpNetwork::new((0x1400_0000 + (i << 8)).to_be_bytes().into(), 24).unwrap())
}

/// Prefix to what `ip route` says leads there, of one protocol; several entries at a prefix are joined by `|`.
fn kernel(family: Family, protocol: &str) -> BTreeMap<String, String> {
    let flag = if family == Family::Ipv4 { "-4" } else { "-6" };
    let mut routes: BTreeMap<String, String> = BTreeMap::new();
    for route in ip_json(&format!("{flag} route show table main proto {protocol}")) {
        let text = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let hop = |hop: &serde_json::Value| {
            let via = if hop["via"].is_object() { text(&hop["via"], "host") } else { text(hop, "gateway") };
            format!("{via}@{}", text(hop, "dev"))
        };
        let mut said = match (route["type"].as_str(), route["nexthops"].as_array()) {
            (Some(kind), _) if kind != "unicast" => kind.to_owned(),
            (_, Some(hops)) => hops.iter().map(hop).collect::<Vec<_>>().join(" "),
            _ => hop(&route),
        };
        said.push_str(&format!(" metric {}", route["metric"].as_u64().unwrap_or(0)));
        let at = routes.entry(text(&route, "dst")).or_default();
        if !at.is_empty() {
            at.push('|');
        }
        at.push_str(&said);
    }
    routes
}

fn ours(family: Family) -> BTreeMap<String, String> {
    kernel(family, "77")
}

fn one(family: Family, prefix: &str) -> String {
    ours(family).remove(prefix).unwrap_or_default()
}

fn missing(fib: &FibHandle, prefix: &str) -> Option<String> {
    match fib.state(net(prefix)) {
        RouteState::Missing { reason, .. } => Some(reason),
        _ => None,
    }
}

#[test]
fn routes_of_every_kind_are_written_with_our_protocol_and_metric() {
    for spawn in [spawn as fn() -> FibHandle, spawn_plain] {
        with_two_links(move || {
            let fib = spawn();
            fib.set([
                (net("10.1.0.0/24"), Some(via(&[("192.0.2.2", "v0")]))),
                (net("10.2.0.0/24"), Some(via(&[("192.0.2.2", "v0"), ("198.51.100.2", "v1")]))),
                (net("10.3.0.0/24"), Some(Route::Blackhole)),
                (net("10.4.0.0/24"), Some(via(&[("fe80::77", "v0")]))),
                (net("2001:db8:1::/64"), Some(via(&[("2001:db8:0:1::2", "v0")]))),
                (net("2001:db8:2::/64"), Some(via(&[("fe80::2", "v0"), ("fe80::2", "v1")]))),
                (net("2001:db8:3::/64"), Some(Route::Blackhole)),
            ]);
            settled(&fib);
            let v4 = [
                ("10.1.0.0/24", "192.0.2.2@v0 metric 77"),
                ("10.2.0.0/24", "192.0.2.2@v0 198.51.100.2@v1 metric 77"),
                ("10.3.0.0/24", "blackhole metric 77"),
                ("10.4.0.0/24", "fe80::77@v0 metric 77"),
            ];
            let v6 = [
                ("2001:db8:1::/64", "2001:db8:0:1::2@v0 metric 77"),
                ("2001:db8:2::/64", "fe80::2@v0 fe80::2@v1 metric 77"),
                ("2001:db8:3::/64", "blackhole metric 77"),
            ];
            let expected = |routes: &[(&str, &str)]| -> BTreeMap<String, String> {
                routes.iter().map(|(prefix, route)| ((*prefix).to_owned(), (*route).to_owned())).collect()
            };
            assert_eq!(ours(Family::Ipv4), expected(&v4));
            assert_eq!(ours(Family::Ipv6), expected(&v6));
            let stats = fib.stats();
            assert_eq!((stats.installed(Family::Ipv4), stats.installed(Family::Ipv6)), (4, 3));
            assert_eq!((stats.queued, stats.missing, stats.refusals), (0, 0, 0), "{stats:?}");
            assert_eq!(fib.state(net("10.1.0.0/24")), RouteState::Installed);
            assert_eq!(fib.state(net("10.99.0.0/24")), RouteState::Unknown);
        });
    }
}

/// Make before break: a third party that listens hears of replacements only.
#[test]
fn a_change_of_next_hops_is_never_a_deletion() {
    for spawn in [spawn as fn() -> FibHandle, spawn_plain] {
        with_two_links(move || {
            let fib = spawn();
            let v4 = |n: u32| match n {
                0 => via(&[("192.0.2.2", "v0")]),
                1 => via(&[("192.0.2.2", "v0"), ("198.51.100.2", "v1")]),
                2 => via(&[("198.51.100.2", "v1")]),
                3 => via(&[("192.0.2.3", "v0"), ("198.51.100.3", "v1"), ("192.0.2.4", "v0")]),
                _ => Route::Blackhole,
            };
            let v6 = |n: u32| match n {
                0 => via(&[("2001:db8:0:1::2", "v0")]),
                1 => via(&[("fe80::2", "v0"), ("2001:db8:0:2::2", "v1")]),
                2 => via(&[("fe80::2", "v1")]),
                3 => via(&[("fe80::3", "v0"), ("fe80::3", "v1"), ("fe80::4", "v1")]),
                _ => Route::Blackhole,
            };
            fib.set([(net("10.1.0.0/24"), Some(v4(0))), (net("2001:db8:1::/64"), Some(v6(0)))]);
            settled(&fib);
            let monitor = RouteMonitor::start();
            for n in [1, 2, 3, 4, 1, 3, 0, 4, 2, 3, 1] {
                fib.set([(net("10.1.0.0/24"), Some(v4(n))), (net("2001:db8:1::/64"), Some(v6(n)))]);
                settled(&fib);
                for (family, prefix, route) in
                    [(Family::Ipv4, "10.1.0.0/24", v4(n)), (Family::Ipv6, "2001:db8:1::/64", v6(n))]
                {
                    let found = one(family, prefix);
                    match &route {
                        Route::Blackhole => assert_eq!(found, "blackhole metric 77"),
                        Route::Unicast { hops, .. } => {
                            let said: Vec<_> = found.split(' ').filter(|hop| hop.contains('@')).collect();
                            assert_eq!(said.len(), hops.len(), "step {n}: {found}");
                            for hop in hops.iter() {
                                let link = if hop.ifindex == ifindex("v0") { "v0" } else { "v1" };
                                assert!(
                                    said.contains(&&*format!("{}@{link}", hop.gateway)),
                                    "step {n}: {found}"
                                );
                            }
                        }
                    }
                }
            }
            let heard = monitor.heard();
            assert!(heard.len() >= 22, "{heard:?}");
            let deletions: Vec<_> = heard.iter().filter(|line| line.starts_with("Deleted")).collect();
            assert!(deletions.is_empty(), "{deletions:?}");
        });
    }
}

/// Trap 2: a replacement at the same metric would clobber another owner's route.
#[test]
fn a_route_of_another_owner_at_our_metric_is_never_clobbered() {
    with_two_links(|| {
        for (family, prefix, gateway, other) in [
            (Family::Ipv4, "10.1.0.0/24", "192.0.2.2", "192.0.2.9"),
            (Family::Ipv6, "2001:db8:1::/64", "fe80::2", "fe80::9"),
        ] {
            ip(&format!("route add {prefix} via {other} dev v0 metric 77 proto static"));
            let fib = spawn();
            fib.set([(net(prefix), Some(via(&[(gateway, "v0")])))]);
            eventually("the owner in the way is named", || {
                missing(&fib, prefix).is_some_and(|reason| reason.contains("protocol 4"))
            });
            let theirs = format!("{other}@v0 metric 77");
            assert_eq!(kernel(family, "static").get(prefix), Some(&theirs));
            assert_eq!(one(family, prefix), "");

            set(&fib, prefix, None);
            assert_eq!(kernel(family, "static").get(prefix), Some(&theirs), "our withdrawal left it alone");

            fib.set([(net(prefix), Some(via(&[(gateway, "v0")])))]);
            eventually("refused again", || missing(&fib, prefix).is_some());
            ip(&format!("route del {prefix} metric 77 proto static"));
            within(REPAIRED_WITHIN, "ours goes in when theirs has gone", || {
                one(family, prefix) == format!("{gateway}@v0 metric 77")
            });
            eventually("and says so", || fib.state(net(prefix)) == RouteState::Installed);
        }
    });
}

#[test]
fn a_route_put_in_place_of_ours_is_left_alone_and_named() {
    with_two_links(|| {
        for (family, prefix, gateway, other) in [
            (Family::Ipv4, "10.1.0.0/24", "192.0.2.2", "192.0.2.9"),
            (Family::Ipv6, "2001:db8:1::/64", "fe80::2", "fe80::9"),
        ] {
            let fib = spawn();
            set(&fib, prefix, Some(via(&[(gateway, "v0")])));
            ip(&format!("route replace {prefix} via {other} dev v0 metric 77 proto static"));
            eventually("the other owner is named", || {
                missing(&fib, prefix).is_some_and(|reason| reason.contains("protocol 4"))
            });
            // Whatever we want now, theirs stays.
            set(&fib, prefix, Some(via(&[(gateway, "v0"), ("fe80::5", "v1")])));
            set(&fib, prefix, None);
            assert_eq!(kernel(family, "static").get(prefix), Some(&format!("{other}@v0 metric 77")));
            ip(&format!("route del {prefix} metric 77 proto static"));
        }
    });
}

#[test]
fn a_route_put_beside_ours_at_our_metric_survives_our_changes() {
    with_two_links(|| {
        let prefix = "10.1.0.0/24";
        let fib = spawn();
        set(&fib, prefix, Some(via(&[("192.0.2.2", "v0")])));
        ip(&format!("route prepend {prefix} via 192.0.2.9 dev v0 metric 77 proto static"));
        set(&fib, prefix, Some(via(&[("192.0.2.3", "v0")])));
        let theirs = "192.0.2.9@v0 metric 77".to_owned();
        eventually("theirs stays, ours waits", || missing(&fib, prefix).is_some());
        assert_eq!(kernel(Family::Ipv4, "static").get(prefix), Some(&theirs));
        ip(&format!("route del {prefix} metric 77 proto static"));
        within(REPAIRED_WITHIN, "ours returns", || one(Family::Ipv4, prefix) == "192.0.2.3@v0 metric 77");
    });
}

#[test]
fn a_route_that_somebody_removed_is_back_within_a_second_counted_and_named() {
    with_two_links(|| {
        let fib = spawn();
        let (v4, v6) = ("10.1.0.0/24", "2001:db8:1::/64");
        fib.set([
            (net(v4), Some(via(&[("192.0.2.2", "v0")]))),
            (net(v6), Some(via(&[("fe80::2", "v0"), ("fe80::2", "v1")]))),
        ]);
        settled(&fib);
        ip(&format!("route del {v4} proto 77"));
        within(REPAIRED_WITHIN, "IPv4 is back", || one(Family::Ipv4, v4) == "192.0.2.2@v0 metric 77");
        ip(&format!("-6 route del {v6} proto 77"));
        let whole = "fe80::2@v0 fe80::2@v1 metric 77";
        within(REPAIRED_WITHIN, "IPv6 is back", || one(Family::Ipv6, v6) == whole);
        eventually("both are counted", || fib.stats().repairs == 2);
        let stats = fib.stats();
        let repaired: Vec<_> = stats.recent_repairs.iter().map(|repair| repair.what.clone()).collect();
        assert_eq!(repaired, [v4, v6]);
        let cause = stats.recent_repairs[0].cause.to_string();
        assert!(cause.starts_with("removed by process "), "{cause}");
    });
}

#[test]
fn a_route_that_somebody_changed_is_put_right() {
    with_two_links(|| {
        let fib = spawn();
        let (v4, v6) = ("10.1.0.0/24", "2001:db8:1::/64");
        fib.set([
            (net(v4), Some(via(&[("192.0.2.2", "v0")]))),
            (net(v6), Some(via(&[("fe80::2", "v0"), ("fe80::2", "v1")]))),
        ]);
        settled(&fib);
        ip(&format!("route change {v4} via 192.0.2.3 dev v0 metric 77 proto 77"));
        within(REPAIRED_WITHIN, "the gateway is ours again", || {
            one(Family::Ipv4, v4) == "192.0.2.2@v0 metric 77"
        });
        // IPv6 allows to take one next hop out of a multipath route.
        ip(&format!("-6 route del {v6} via fe80::2 dev v1 proto 77 metric 77"));
        within(REPAIRED_WITHIN, "both next hops are there again", || {
            one(Family::Ipv6, v6) == "fe80::2@v0 fe80::2@v1 metric 77"
        });
        eventually("both are counted", || fib.stats().repairs == 2);
    });
}

/// Trap 1: the kernel deletes IPv4 routes of a link that goes down without a word.
#[test]
fn routes_that_a_link_took_along_return_with_it() {
    for spawn in [spawn as fn() -> FibHandle, spawn_plain] {
        with_two_links(move || {
            let fib = spawn();
            fib.set([
                (net("10.1.0.0/24"), Some(via(&[("192.0.2.2", "v0")]))),
                (net("10.2.0.0/24"), Some(via(&[("198.51.100.2", "v1")]))),
                (net("2001:db8:1::/64"), Some(via(&[("fe80::2", "v0")]))),
            ]);
            settled(&fib);
            ip("link set v0 down");
            eventually("it is noticed", || missing(&fib, "10.1.0.0/24").is_some());
            eventually("IPv6 too", || missing(&fib, "2001:db8:1::/64").is_some());
            assert_eq!(fib.state(net("10.2.0.0/24")), RouteState::Installed);
            assert_eq!(ours(Family::Ipv4).len(), 1);
            assert_eq!(fib.stats().installed(Family::Ipv4), 1);

            ip("link set v0 up");
            within(REPAIRED_WITHIN, "IPv4 returns", || {
                one(Family::Ipv4, "10.1.0.0/24") == "192.0.2.2@v0 metric 77"
            });
            eventually("IPv6 returns", || one(Family::Ipv6, "2001:db8:1::/64") == "fe80::2@v0 metric 77");
            eventually("all installed", || fib.stats().installed == [2, 1]);
            assert_eq!(fib.stats().repairs, 0, "nobody but the kernel did it");
        });
    }
}

/// Trap 1: the kernel drops notifications for which a socket has no room, and says ENOBUFS. What they told is found by reading.
#[test]
fn what_the_kernel_had_no_room_to_tell_is_found_by_reading() {
    with_two_links(|| {
        const N: usize = 3000;
        // As little as the kernel allows: a few messages.
        let fib = Fib::spawn(FibConfig { socket_buffer: 1, ..FibConfig::default() }).unwrap();
        settled(&fib);
        let route = via(&[("192.0.2.2", "v0")]);
        fib.set(prefixes(N as u32).map(|prefix| (prefix, Some(route.clone()))));
        settled(&fib);
        assert_eq!(fib.stats().overruns, 0, "what it does itself is not told");
        let written = fib.stats().written;
        let file = std::env::temp_dir().join(format!("manx-deletions-{}", std::process::id()));
        let lines: String =
            prefixes(N as u32).map(|prefix| format!("route del {prefix} proto 77\n")).collect();
        std::fs::write(&file, lines).unwrap();
        ip(&format!("-batch {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        eventually("messages are lost", || fib.stats().overruns > 0);
        eventually("all are back", || {
            fib.stats().installed(Family::Ipv4) == N && ip("route show proto 77").lines().count() == N
        });
        assert!(fib.stats().written >= written + N as u64, "{:?}", fib.stats());
    });
}

/// A multipath route stays when one of its links goes; what the kernel made of it is not taken for a change.
#[test]
fn a_multipath_route_outlives_one_of_its_links() {
    for spawn in [spawn as fn() -> FibHandle, spawn_plain] {
        with_two_links(move || {
            let fib = spawn();
            let (v4, v6) = ("10.1.0.0/24", "2001:db8:1::/64");
            fib.set([
                (net(v4), Some(via(&[("192.0.2.2", "v0"), ("198.51.100.2", "v1")]))),
                (net(v6), Some(via(&[("fe80::2", "v0"), ("fe80::2", "v1")]))),
            ]);
            settled(&fib);
            ip("link set v0 down");
            let before = fib.stats().resyncs;
            eventually("the tables are read again", || fib.stats().resyncs >= before + 2);
            for (flag, prefix) in [("-4", v4), ("-6", v6)] {
                let shown = ip(&format!("{flag} route show {prefix} proto 77"));
                assert!(shown.contains("dev v1"), "{shown}");
            }
            ip("link set v0 up");
            eventually("whole again", || {
                one(Family::Ipv4, v4) == "192.0.2.2@v0 198.51.100.2@v1 metric 77"
                    && one(Family::Ipv6, v6) == "fe80::2@v0 fe80::2@v1 metric 77"
                    && !ip("route show proto 77").contains("dead")
                    && fib.state(net(v4)) == RouteState::Installed
                    && fib.state(net(v6)) == RouteState::Installed
            });
        });
    }
}

/// Trap 4 and promise 2: a fresh process recognises its predecessor's work.
#[test]
fn a_successor_rewrites_nothing_that_is_right_and_sweeps_only_when_told() {
    for spawn in [spawn as fn() -> FibHandle, spawn_plain] {
        with_two_links(move || {
            let right: Vec<(IpNetwork, Option<Route>)> = vec![
                (net("10.1.0.0/24"), Some(via(&[("192.0.2.2", "v0"), ("198.51.100.2", "v1")]))),
                (net("10.3.0.0/24"), Some(Route::Blackhole)),
                (net("10.5.0.0/24"), Some(via(&[("fe80::2", "v0")]))),
                (net("2001:db8:1::/64"), Some(via(&[("fe80::2", "v0"), ("fe80::2", "v1")]))),
                (net("2001:db8:3::/64"), Some(Route::Blackhole)),
            ];
            {
                let first = spawn();
                first.set(right.clone());
                first.set([
                    (net("10.66.0.0/24"), Some(via(&[("192.0.2.2", "v0")]))),
                    (net("2001:db8:66::/64"), Some(via(&[("fe80::2", "v0")]))),
                ]);
                settled(&first);
            }
            assert_eq!(ours(Family::Ipv4).len(), 4, "routes stay when the writer ends");
            let monitor = RouteMonitor::start();
            let second = spawn();
            assert_eq!(second.state(net("10.66.0.0/24")), RouteState::Inherited);
            second.set(right);
            settled(&second);
            assert_eq!(monitor.heard(), Vec::<String>::new());
            assert_eq!(second.stats().written, 0);
            assert_eq!(second.stats().installed, [3, 2]);
            second.sweep(Family::Ipv4);
            settled(&second);
            let heard = monitor.heard();
            assert_eq!(heard.len(), 1, "{heard:?}");
            assert!(heard[0].starts_with("Deleted 10.66.0.0/24"), "{heard:?}");
            assert!(
                !one(Family::Ipv6, "2001:db8:66::/64").is_empty(),
                "the other family is not swept with it"
            );
            second.sweep(Family::Ipv6);
            settled(&second);
            assert_eq!(one(Family::Ipv6, "2001:db8:66::/64"), "");
        });
    }
}

#[test]
fn a_next_hop_that_cannot_be_used_keeps_its_reason_and_holds_nobody_up() {
    with_two_links(|| {
        let fib = spawn();
        fib.set([
            (net("10.1.0.0/24"), Some(via(&[("203.0.113.9", "v0")]))),
            (net("10.2.0.0/24"), Some(via(&[("192.0.2.2", "v0")]))),
            (
                net("10.4.0.0/24"),
                Route::via([NextHop { gateway: "192.0.2.2".parse().unwrap(), ifindex: 4000 }]),
            ),
        ]);
        settled(&fib);
        assert_eq!(one(Family::Ipv4, "10.2.0.0/24"), "192.0.2.2@v0 metric 77");
        let reason = missing(&fib, "10.1.0.0/24").unwrap();
        assert!(reason.contains("gateway") || reason.contains("unreachable"), "{reason}");
        assert!(missing(&fib, "10.4.0.0/24").is_some());
        assert_eq!(fib.stats().missing, 2);
        assert!(fib.stats().last_refusal.is_some());
        ip("addr add 203.0.113.1/24 dev v0");
        within(REPAIRED_WITHIN, "the new address lets it in", || {
            one(Family::Ipv4, "10.1.0.0/24") == "203.0.113.9@v0 metric 77"
        });
        set(&fib, "10.4.0.0/24", None);
        eventually("nothing is missing any more", || fib.stats().missing == 0);
    });
}

#[test]
fn pod_routes_and_other_metrics_of_our_protocol_are_not_ours_to_touch() {
    with_two_links(|| {
        ip("route add 10.7.0.1/32 dev v0 proto 77 metric 76");
        ip("-6 route add 2001:db8:7::1/128 dev v0 proto 77 metric 76");
        ip("route add 10.8.0.0/24 via 192.0.2.2 proto static metric 10");
        let fib = spawn();
        set(&fib, "10.7.0.1/32", Some(via(&[("192.0.2.2", "v0")])));
        set(&fib, "10.8.0.0/24", Some(via(&[("192.0.2.3", "v0")])));
        assert_eq!(kernel(Family::Ipv4, "static")["10.8.0.0/24"], "192.0.2.2@v0 metric 10");
        for family in Family::BOTH {
            fib.sweep(family);
        }
        fib.flush_all();
        settled(&fib);
        assert_eq!(ours(Family::Ipv4), BTreeMap::from([("10.7.0.1".to_owned(), "@v0 metric 76".to_owned())]));
        assert_eq!(ours(Family::Ipv6).len(), 1);
        assert_eq!(kernel(Family::Ipv4, "static")["10.8.0.0/24"], "192.0.2.2@v0 metric 10");
    });
}

/// Trap 31, and last writer wins: what changes while it waits is written once.
#[test]
fn tens_of_thousands_of_routes_come_change_and_go() {
    with_two_links(|| {
        const N: u32 = 20_000;
        let fib = spawn();
        let prefix = |i: u32| IpNetwork::new((0x0a00_0000 + (i << 8)).to_be_bytes().into(), 24).unwrap();
        let (a, b) = (via(&[("192.0.2.2", "v0")]), via(&[("198.51.100.2", "v1")]));
        fib.set((0..N).map(|i| (prefix(i), Some(a.clone()))));
        settled(&fib);
        assert_eq!(ip_json("route show proto 77").len(), N as usize);
        fib.set((0..N).map(|i| (prefix(i), Some(b.clone()))));
        fib.set((0..N).map(|i| (prefix(i), (i % 2 == 0).then(|| a.clone()))));
        fib.set((0..N).filter(|i| i % 4 == 1).map(|i| (prefix(i), Some(b.clone()))));
        settled(&fib);
        let shown = ip_json("route show proto 77");
        assert_eq!(shown.len(), N as usize * 3 / 4);
        let by_v1 = shown.iter().filter(|route| route["dev"] == "v1").count();
        assert_eq!(by_v1, N as usize / 4);
        assert_eq!(fib.stats().installed(Family::Ipv4), N as usize * 3 / 4);
        fib.flush_all();
        settled(&fib);
        assert_eq!(ip_json("route show proto 77").len(), 0);
        assert_eq!(fib.stats().installed(Family::Ipv4), 0);
        assert_eq!(fib.stats().refusals, 0);
    });
}

#[test]
fn a_stranger_under_our_name_is_swept_after_the_sweep_and_kept_before_it() {
    with_two_links(|| {
        let fib = spawn();
        ip("route add 10.1.0.0/24 via 192.0.2.2 proto 77 metric 77");
        eventually("it is seen", || fib.state(net("10.1.0.0/24")) == RouteState::Inherited);
        assert_eq!(ours(Family::Ipv4).len(), 1);
        fib.sweep(Family::Ipv4);
        settled(&fib);
        assert_eq!(ours(Family::Ipv4).len(), 0);
        ip("route add 10.2.0.0/24 via 192.0.2.2 proto 77 metric 77");
        within(REPAIRED_WITHIN, "it goes at once", || ours(Family::Ipv4).is_empty());
    });
}
