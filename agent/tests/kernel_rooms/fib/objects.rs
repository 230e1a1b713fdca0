//! Nexthop objects and groups: what they follow, what takes them away, who else may touch them.

use super::*;

/// The objects of `ip nexthop`, as id to what they do; ids without the part that is the same for all.
fn objects() -> BTreeMap<u32, String> {
    let words = |object: &serde_json::Value| match object["group"].as_array() {
        Some(members) => {
            members.iter().map(|m| format!("{}", m["id"].as_u64().unwrap())).collect::<Vec<_>>().join("/")
        }
        None => format!("{}@{}", object["gateway"].as_str().unwrap(), object["dev"].as_str().unwrap()),
    };
    let shown = ip_json("nexthop show proto 77");
    shown.iter().map(|o| (u32::try_from(o["id"].as_u64().unwrap()).unwrap(), words(o))).collect()
}

fn far(last: u8) -> NextHop {
    NextHop { gateway: [10, 99, 0, last].into(), ifindex: 0 }
}

fn at(gateway: &str, link: &str) -> Neighbors {
    let neighbor = Neighbor { gateway: gateway.parse().unwrap(), ifindex: ifindex(link), onlink: false };
    [neighbor].into_iter().collect()
}

#[test]
fn one_object_a_next_hop_and_a_group_for_several_as_long_as_routes_need_them() {
    with_two_links(|| {
        ip("nexthop add id 7 via 192.0.2.7 dev v0");
        let fib = spawn();
        let (a, b) = (via(&[("192.0.2.2", "v0")]), via(&[("192.0.2.2", "v0"), ("fe80::2", "v1")]));
        fib.set(prefixes(100).map(|p| (p, Some(a.clone()))));
        fib.set(prefixes(200).skip(100).map(|p| (p, Some(b.clone()))));
        settled(&fib);
        let found = objects();
        let first = 0x4d00_0000;
        assert_eq!(found.keys().min(), Some(&first));
        let singles: Vec<_> = found.values().filter(|o| o.contains('@')).cloned().collect();
        assert_eq!((singles.len(), found.len()), (2, 3), "{found:?}");
        assert!(singles.contains(&"192.0.2.2@v0".to_owned()) && singles.contains(&"fe80::2@v1".to_owned()));
        assert_eq!(fib.stats().objects, Some(3));
        // An IPv6 route shares what it can use.
        set(&fib, "2001:db8:1::/64", Some(via(&[("fe80::2", "v1")])));
        assert_eq!(objects().len(), 3);
        fib.set(prefixes(200).map(|p| (p, None)));
        settled(&fib);
        assert_eq!(objects().into_values().collect::<Vec<_>>(), ["fe80::2@v1"]);
        fib.flush_all();
        settled(&fib);
        assert_eq!(objects(), BTreeMap::new());
        assert!(ip("nexthop show id 7").contains("192.0.2.7"), "another owner's is left alone");
    });
}

/// Trap 29: the kernel flushes objects with their link, and routes with them, and says nothing of IPv4.
#[test]
fn objects_that_a_lost_carrier_took_along_return_with_their_routes() {
    for compat in ["0", "1"] {
        with_two_links(move || {
            sysctl::write("net.ipv4.nexthop_compat_mode", compat).unwrap();
            let fib = spawn();
            let (single, both) =
                (via(&[("192.0.2.2", "v0")]), via(&[("192.0.2.2", "v0"), ("198.51.100.2", "v1")]));
            fib.set(prefixes(50).map(|p| (p, Some(single.clone()))));
            fib.set([
                (net("10.1.0.0/24"), Some(both)),
                (net("2001:db8:1::/64"), Some(via(&[("fe80::2", "v0")]))),
            ]);
            settled(&fib);
            let before = objects();
            ip("link set p0 down");
            eventually("it is noticed", || missing(&fib, "20.0.0.0/24").is_some());
            let reason = missing(&fib, "20.0.0.0/24").unwrap();
            assert!(reason.contains("next hop 192.0.2.2"), "{reason}");
            assert_eq!(fib.state(net("10.1.0.0/24")), RouteState::Installed);
            ip("link set p0 up");
            within(REPAIRED_WITHIN, "all are back", || fib.stats().installed == [51, 1]);
            assert_eq!(ip_json("route show proto 77").len(), 51);
            eventually("the group is whole", || objects() == before);
            assert_eq!(fib.stats().repairs, 0, "nobody but the kernel did it");
        });
    }
}

/// A next hop that moves or dies is news of one object, not of its routes.
#[test]
fn a_next_hop_that_moves_or_dies_is_no_change_of_routes() {
    with_two_links(|| {
        sysctl::write("net.ipv4.nexthop_compat_mode", "0").unwrap();
        let fib = spawn();
        fib.resolve([(far(1), at("192.0.2.2", "v0"))]);
        fib.resolve([(far(2), at("198.51.100.2", "v1"))]);
        let single = Route::via([far(1)]).unwrap();
        fib.set([
            (net("10.1.0.0/24"), Some(single.clone())),
            (net("10.2.0.0/24"), Route::via([far(1), far(2)])),
            (net("10.3.0.0/24"), Some(single.with_backup(Some(far(2))))),
        ]);
        settled(&fib);
        let leads = |to: &str| {
            let found = ip(&format!("route get {to}"));
            found.split_whitespace().skip_while(|w| *w != "via").nth(1).unwrap_or_default().to_owned()
        };
        assert_eq!([leads("10.1.0.1"), leads("10.3.0.1")], ["192.0.2.2", "192.0.2.2"]);
        let written = fib.stats().written;
        fib.resolve([(far(1), at("192.0.2.77", "v0"))]);
        settled(&fib);
        assert_eq!([leads("10.1.0.1"), leads("10.3.0.1")], ["192.0.2.77", "192.0.2.77"]);
        fib.resolve([(far(1), Neighbors::new())]);
        settled(&fib);
        assert_eq!([leads("10.2.0.1"), leads("10.3.0.1")], ["198.51.100.2", "198.51.100.2"]);
        fib.resolve([(far(1), at("192.0.2.2", "v0"))]);
        settled(&fib);
        assert_eq!([leads("10.1.0.1"), leads("10.3.0.1")], ["192.0.2.2", "192.0.2.2"]);
        assert_eq!(fib.stats().written, written, "no route was written again");
    });
}

/// One that is behind several gateways is a group of an object each; which of them there are is news of the group alone.
#[test]
fn a_next_hop_behind_several_gateways_is_spread_over_them() {
    for spawn in [spawn as fn() -> FibHandle, spawn_plain] {
        with_two_links(move || {
            let (a, b) = (at("192.0.2.2", "v0"), at("198.51.100.2", "v1"));
            let both: Neighbors = a.iter().chain(&b).copied().collect();
            let routes = || {
                [
                    (net("10.1.0.0/24"), Route::via([far(1)])),
                    (net("10.2.0.0/24"), Route::via([far(1), far(2)])),
                    (net("10.3.0.0/24"), Route::via([far(2)]).map(|r| r.with_backup(Some(far(1))))),
                ]
            };
            let leads = |prefix: &str| -> BTreeSet<String> {
                let shown = one(Family::Ipv4, prefix);
                shown.split(' ').filter(|word| word.contains('@')).map(str::to_owned).collect()
            };
            let ways = |ways: &[&str]| ways.iter().map(|way| (*way).to_owned()).collect::<BTreeSet<_>>();
            let [one_way, other, third] = ["192.0.2.2@v0", "198.51.100.2@v1", "192.0.2.3@v0"];
            let fib = spawn();
            fib.resolve([(far(1), a), (far(2), at("192.0.2.3", "v0"))]);
            fib.set(routes());
            settled(&fib);
            assert_eq!(leads("10.1.0.0/24"), ways(&[one_way]));
            fib.resolve([(far(1), both.clone())]);
            settled(&fib);
            assert_eq!(leads("10.1.0.0/24"), ways(&[one_way, other]));
            assert_eq!(leads("10.2.0.0/24"), ways(&[one_way, other, third]));
            assert_eq!(leads("10.3.0.0/24"), ways(&[third]));
            let written = fib.stats().written;
            fib.resolve([(far(1), b)]);
            settled(&fib);
            assert_eq!(leads("10.1.0.0/24"), ways(&[other]));
            fib.resolve([(far(1), both.clone()), (far(2), Neighbors::new())]);
            settled(&fib);
            for prefix in ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"] {
                assert_eq!(leads(prefix), ways(&[one_way, other]), "{prefix}");
            }
            if fib.stats().objects.is_some() {
                assert_eq!(fib.stats().written, written, "no route was written again");
            }
            // A successor finds it as it should be.
            drop(fib);
            let (shown, second) = (kernel(Family::Ipv4, "77"), spawn());
            second.resolve([(far(1), both), (far(2), Neighbors::new())]);
            second.set(routes());
            Family::BOTH.into_iter().for_each(|family| second.sweep(family));
            settled(&second);
            assert_eq!((second.stats().written, second.stats().deleted), (0, 0));
            assert_eq!(kernel(Family::Ipv4, "77"), shown);
        });
    }
}

/// The same where the kernel has no objects: the routes are written again.
#[test]
fn without_objects_routes_follow_their_next_hops_one_by_one() {
    with_two_links(|| {
        let fib = spawn_plain();
        assert_eq!(fib.stats().objects, None);
        fib.set([
            (net("10.1.0.0/24"), Route::via([far(1)])),
            (net("10.2.0.0/24"), Route::via([far(1), far(2)])),
        ]);
        settled(&fib);
        assert!(missing(&fib, "10.1.0.0/24").unwrap().contains("10.99.0.1 does not resolve"));
        fib.resolve([(far(1), at("192.0.2.2", "v0"))]);
        fib.resolve([(far(2), at("198.51.100.2", "v1"))]);
        settled(&fib);
        assert_eq!(one(Family::Ipv4, "10.1.0.0/24"), "192.0.2.2@v0 metric 77");
        assert_eq!(one(Family::Ipv4, "10.2.0.0/24"), "192.0.2.2@v0 198.51.100.2@v1 metric 77");
        fib.resolve([(far(1), Neighbors::new())]);
        settled(&fib);
        assert_eq!(one(Family::Ipv4, "10.2.0.0/24"), "198.51.100.2@v1 metric 77");
        assert_eq!(objects(), BTreeMap::new());
    });
}

/// The goal is 10 ms under 300,000 routes with net.ipv4.nexthop_compat_mode=0 on a quiet machine.
#[test]
fn a_failed_next_hop_under_many_routes_is_replaced_at_once() {
    with_two_links(|| {
        const N: u32 = 50_000;
        sysctl::write("net.ipv4.nexthop_compat_mode", "0").unwrap();
        let fib = spawn();
        fib.resolve([(far(1), at("192.0.2.2", "v0"))]);
        fib.resolve([(far(2), at("198.51.100.2", "v1"))]);
        let both = Route::via([far(1), far(2)]).unwrap();
        let backed = Route::via([far(1)]).unwrap().with_backup(Some(far(2)));
        fib.set(
            prefixes(N).enumerate().map(|(i, p)| (p, Some(if i % 2 == 0 { &both } else { &backed }.clone()))),
        );
        settled(&fib);
        let start = std::time::Instant::now();
        fib.resolve([(far(1), Neighbors::new())]);
        settled(&fib);
        let took = start.elapsed();
        println!("a failed next hop under {N} routes: {took:?}");
        for to in ["20.0.0.1", "20.0.1.1"] {
            assert!(ip(&format!("route get {to}")).contains("via 198.51.100.2"));
        }
        assert!(took < Duration::from_millis(200), "{took:?}");
    });
}

#[test]
fn an_object_that_somebody_deleted_or_changed_is_back_within_a_second_counted_and_named() {
    with_two_links(|| {
        let fib = spawn();
        let route = via(&[("192.0.2.2", "v0")]);
        fib.set(prefixes(1000).map(|p| (p, Some(route.clone()))));
        settled(&fib);
        let id = 0x4d00_0000;
        ip(&format!("nexthop del id {id}"));
        within(REPAIRED_WITHIN, "all routes are back", || ip_json("route show proto 77").len() == 1000);
        ip(&format!("nexthop replace id {id} via 192.0.2.9 dev v0 proto 77"));
        within(REPAIRED_WITHIN, "it leads where it should", || objects()[&id] == "192.0.2.2@v0");
        eventually("both are counted", || fib.stats().repairs == 2);
        let stats = fib.stats();
        assert!(stats.recent_repairs[0].what.contains("for 192.0.2.2"), "{stats:?}");
        assert!(stats.recent_repairs[0].cause.to_string().starts_with("removed by process "), "{stats:?}");
        assert_eq!(stats.installed(Family::Ipv4), 1000);
    });
}

/// Promise 2, with objects: a fresh process takes over what is right, whichever way dumps show it.
#[test]
fn a_successor_takes_over_objects_and_deletes_those_that_nobody_needs() {
    for compat in ["0", "1"] {
        with_two_links(move || {
            sysctl::write("net.ipv4.nexthop_compat_mode", compat).unwrap();
            let single = Route::via([far(1)]).unwrap();
            let wanted = || {
                let backed = single.clone().with_backup(Some(far(2)));
                let routes = [single.clone(), Route::via([far(1), far(2)]).unwrap(), backed];
                prefixes(90).enumerate().map(move |(i, p)| (p, Some(routes[i % 3].clone())))
            };
            let resolve = |fib: &FibHandle| {
                fib.resolve([(far(1), at("192.0.2.2", "v0"))]);
                fib.resolve([(far(2), at("fe80::2", "v1"))]);
            };
            {
                let first = spawn();
                resolve(&first);
                first.set(wanted());
                set(&first, "10.66.0.0/24", Some(via(&[("192.0.2.66", "v0")])));
            }
            let before = objects();
            assert_eq!(before.len(), 5, "{before:?}");
            let monitor = RouteMonitor::start();
            let second = spawn();
            resolve(&second);
            second.set(wanted());
            settled(&second);
            assert_eq!(objects(), before);
            assert_eq!((monitor.heard(), second.stats().written), (Vec::<String>::new(), 0));
            Family::BOTH.into_iter().for_each(|family| second.sweep(family));
            settled(&second);
            let heard = monitor.heard();
            assert!(heard.iter().all(|line| line.starts_with("Deleted 10.66.0.0/24")), "{heard:?}");
            let after = objects();
            assert_eq!(after.len(), 4, "{after:?}");
            assert!(after.iter().all(|(id, what)| before.get(id) == Some(what)));
        });
    }
}

#[test]
fn a_number_that_somebody_else_took_is_left_to_him() {
    with_two_links(|| {
        ip("nexthop add id 1291845632 via 192.0.2.9 dev v0 proto static");
        let fib = spawn();
        set(&fib, "10.1.0.0/24", Some(via(&[("192.0.2.2", "v0")])));
        assert_eq!(one(Family::Ipv4, "10.1.0.0/24"), "192.0.2.2@v0 metric 77");
        assert!(ip("nexthop show id 1291845632").contains("192.0.2.9"));
        fib.flush_all();
        settled(&fib);
        assert!(ip("nexthop show id 1291845632").contains("192.0.2.9"));
    });
}

#[test]
fn a_gateway_that_no_subnet_holds_is_reached_on_its_link() {
    for spawn in [spawn as fn() -> FibHandle, spawn_plain] {
        with_two_links(move || {
            let fib = spawn();
            let neighbor = Neighbor { onlink: true, ..at("203.0.113.7", "v0")[0] };
            fib.resolve([(far(1), Neighbors::from_elem(neighbor, 1))]);
            set(&fib, "10.1.0.0/24", Route::via([far(1)]));
            assert_eq!(one(Family::Ipv4, "10.1.0.0/24"), "203.0.113.7@v0 metric 77");
            drop(fib);
            let second = spawn();
            second.resolve([(far(1), Neighbors::from_elem(neighbor, 1))]);
            set(&second, "10.1.0.0/24", Route::via([far(1)]));
            assert_eq!(second.stats().written, 0, "known again");
        });
    }
}
