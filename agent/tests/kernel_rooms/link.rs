//! Links, addresses and other owners' routes.

use std::net::IpAddr;

use manx_agent::kernel::fib::{Neighbors, NextHop};
use manx_agent::kernel::link::{self, Egress, LinkEvent, Links};
use manx_agent::kernel::sysctl;
use tokio::sync::mpsc::Receiver;

use crate::netns::{eventually, ifindex, in_namespace, ip, ip_json, run, with_two_links};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn hop(gateway: &str, link: &str) -> NextHop {
    NextHop { gateway: address(gateway), ifindex: ifindex(link) }
}

/// Where packets leave, as gateway and link each.
fn by(ways: &[(&str, &str)]) -> Neighbors {
    ways.iter().map(|(gateway, link)| hop(gateway, link).into()).collect()
}

fn wait_for(events: &mut Receiver<LinkEvent>, expected: LinkEvent) {
    eventually(&format!("{expected:?}"), || events.try_recv() == Ok(expected));
}

#[test]
fn a_namespace_where_nothing_is_can_be_followed() {
    in_namespace(|| {
        let (links, _events) = Links::spawn().unwrap();
        assert_eq!(links.egress(address("192.0.2.1")), None);
        assert_eq!(links.lookup(address("192.0.2.1")).unwrap(), None);
        assert_eq!(links.names(), ["lo"]);
    });
}

/// The main table is made with its first route; a host whose network is not configured yet has none.
#[test]
fn a_namespace_without_a_routing_table_can_be_followed() {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let (links, _events) = Links::spawn().unwrap();
        assert_eq!(links.egress(address("192.0.2.1")), None);
    });
    thread.join().unwrap();
}

#[test]
fn next_hops_resolve_by_other_owners_routes_only() {
    with_two_links(|| {
        ip("route add 203.0.113.0/24 via 192.0.2.9 metric 30 proto static");
        ip("route add default via 198.51.100.9");
        ip("route add 10.0.0.0/8 via 192.0.2.7 proto 77 metric 77");
        ip("-6 route add 2001:db8:9::/48 via fe80::9 dev v1 proto static metric 40");
        ip("-6 route add 2001:db8:77::/48 via fe80::9 dev v1 proto 77 metric 77");
        let (links, _events) = Links::spawn().unwrap();
        let near = Egress { neighbors: by(&[("192.0.2.77", "v0")]), metric: 0, connected: true };
        assert_eq!(links.egress(address("192.0.2.77")), Some(near));
        let far = Egress { neighbors: by(&[("192.0.2.9", "v0")]), metric: 30, connected: false };
        assert_eq!(links.egress(address("203.0.113.1")), Some(far));
        let far = Egress { neighbors: by(&[("fe80::9", "v1")]), metric: 40, connected: false };
        assert_eq!(links.egress(address("2001:db8:9::1")), Some(far));
        // Trap 22: through a BGP route, or through the default route, a next hop would resolve in a circle.
        assert_eq!(links.egress(address("10.1.1.1")), None);
        assert_eq!(links.egress(address("2001:db8:77::1")), None);
        assert_eq!(links.egress(address("8.8.8.8")), None);
    });
}

/// Trap 1: the kernel says nothing of the IPv4 routes that go with a link.
#[test]
fn a_link_that_goes_down_is_told_and_takes_its_routes_along() {
    with_two_links(|| {
        ip("route add 203.0.113.0/24 via 192.0.2.9 proto static");
        let (links, mut events) = Links::spawn().unwrap();
        assert!(links.egress(address("203.0.113.1")).is_some());
        let v0 = ifindex("v0");
        ip("link set v0 down");
        wait_for(&mut events, LinkEvent::LinkDown(v0));
        assert_eq!(links.egress(address("203.0.113.1")), None);
        assert_eq!(links.egress(address("192.0.2.2")), None);
        assert!(links.egress(address("198.51.100.2")).is_some());
        ip("link set v0 up");
        eventually("the subnet is back", || links.egress(address("192.0.2.2")).is_some());
        eventually("and is told", || events.try_recv() == Ok(LinkEvent::Changed));
        assert_eq!(links.egress(address("203.0.113.1")), None, "the kernel does not bring it back");
    });
}

#[test]
fn a_lost_carrier_is_a_link_that_is_down() {
    with_two_links(|| {
        let (links, mut events) = Links::spawn().unwrap();
        assert!(links.egress(address("192.0.2.2")).is_some());
        let v0 = ifindex("v0");
        ip("link set p0 down");
        wait_for(&mut events, LinkEvent::LinkDown(v0));
        assert_eq!(links.egress(address("192.0.2.2")), None);
        assert!(ip("route show 192.0.2.0/24").contains("linkdown"), "the kernel keeps the route");
        ip("link set p0 up");
        eventually("carrier again", || links.egress(address("192.0.2.2")).is_some());
    });
}

#[test]
fn addresses_and_routes_that_come_and_go_are_told() {
    with_two_links(|| {
        let (links, mut events) = Links::spawn().unwrap();
        ip("addr add 203.0.113.1/24 dev v0");
        wait_for(&mut events, LinkEvent::Changed);
        eventually("the address is known", || links.addresses().contains(&"203.0.113.1/24".parse().unwrap()));
        eventually("its subnet resolves", || links.egress(address("203.0.113.9")).is_some());
        ip("route add 10.0.0.0/8 via 203.0.113.9 proto static");
        eventually("the route resolves", || links.egress(address("10.0.0.1")).is_some());
        ip("route replace 10.0.0.0/8 via 203.0.113.8 proto static");
        let moved = Some(by(&[("203.0.113.8", "v0")]));
        eventually("elsewhere", || links.egress(address("10.0.0.1")).map(|egress| egress.neighbors) == moved);
        ip("addr del 203.0.113.1/24 dev v0");
        eventually("the subnet is gone", || links.egress(address("203.0.113.9")).is_none());
        ip("link set v0 mtu 1400");
        eventually("the MTU is known", || links.mtu_of(&[address("192.0.2.1")]) == Some(1400));
        assert_eq!(links.mtu_of(&[address("192.0.2.200")]), None);
    });
}

#[test]
fn the_kernel_is_asked_who_owns_the_way() {
    with_two_links(|| {
        ip(
            "route add 10.1.0.0/24 proto 77 metric 77 nexthop via 192.0.2.2 dev v0 nexthop via 198.51.100.2 dev v1",
        );
        ip("route add 10.2.0.0/24 via 192.0.2.2 proto static");
        ip("-6 route add 2001:db8:9::/48 via fe80::9 dev v1 proto 77 metric 77");
        let (links, _events) = Links::spawn().unwrap();
        let ours = links.lookup(address("10.1.0.9")).unwrap().unwrap();
        assert_eq!(ours.prefix, Some("10.1.0.0/24".parse().unwrap()));
        assert_eq!(ours.gateways, [address("192.0.2.2"), address("198.51.100.2")]);
        assert_eq!((ours.interfaces.join(" "), ours.owner.as_str()), ("v0 v1".to_owned(), "manx"));
        assert_eq!(links.lookup(address("10.2.0.9")).unwrap().unwrap().owner, "static");
        let near = links.lookup(address("192.0.2.9")).unwrap().unwrap();
        assert_eq!((near.owner.as_str(), near.gateways.len()), ("kernel", 0));
        let v6 = links.lookup(address("2001:db8:9::1")).unwrap().unwrap();
        assert_eq!((v6.owner.as_str(), v6.gateways), ("manx", vec![address("fe80::9")]));
        assert_eq!(links.lookup(address("10.9.0.1")).unwrap(), None);
    });
}

#[test]
fn a_link_is_deleted_with_its_peer() {
    with_two_links(|| {
        link::delete("v0").unwrap();
        let names: Vec<_> = ip_json("link").iter().map(|l| l["ifname"].to_string()).collect();
        assert!(!names.iter().any(|name| name == "\"v0\"" || name == "\"p0\""), "{names:?}");
    });
}

#[test]
fn settings_are_those_of_this_namespace() {
    in_namespace(|| {
        sysctl::write("net.ipv4.fib_multipath_hash_policy", "1").unwrap();
        let seen = run("cat", &["/proc/sys/net/ipv4/fib_multipath_hash_policy"]);
        assert_eq!(seen, "1\n");
        assert_eq!(sysctl::read("net.ipv4.fib_multipath_hash_policy").unwrap(), "1");
        let refused = sysctl::write("net.ipv4.ip_forward", "no number").unwrap_err();
        assert!(refused.to_string().contains("net.ipv4.ip_forward"), "{refused}");
    });
}

/// Other owners use nexthop objects too, and where net.ipv4.nexthop_compat_mode is 0 the kernel names their numbers only.
#[test]
fn next_hops_resolve_by_other_owners_objects() {
    for compat in ["0", "1"] {
        with_two_links(move || {
            sysctl::write("net.ipv4.nexthop_compat_mode", compat).unwrap();
            ip("nexthop add id 7 via 192.0.2.9 dev v0");
            ip("nexthop add id 8 group 7");
            ip("route add 10.7.0.0/16 nhid 8 proto static metric 5");
            let (links, _events) = Links::spawn().unwrap();
            let leads = |to: &str| links.egress(address(to)).map(|egress| egress.neighbors);
            assert_eq!(leads("10.7.1.1"), Some(by(&[("192.0.2.9", "v0")])));
            ip("nexthop replace id 7 via 198.51.100.9 dev v1");
            eventually("it has moved", || leads("10.7.1.1") == Some(by(&[("198.51.100.9", "v1")])));
            ip("nexthop add id 1291845633 via 192.0.2.2 dev v0 proto 77");
            ip("route add 10.1.0.0/24 nhid 1291845633 proto 77 metric 77");
            eventually("ours is described", || {
                let found = links.lookup(address("10.1.0.9")).unwrap().unwrap();
                found.gateways == [address("192.0.2.2")]
                    && found.interfaces == ["v0"]
                    && found.owner == "manx"
            });
            ip("link set p1 down");
            eventually("it went with its link", || leads("10.7.1.1").is_none());
            ip("link set p1 up");
            eventually("the subnet is back", || leads("198.51.100.3").is_some());
            assert_eq!(leads("10.7.1.1"), None, "the kernel does not bring it back");
        });
    }
}

/// What is known of other owners' routes follows each of theirs, and ends where a fresh reading would.
#[test]
fn other_owners_routes_are_followed_one_by_one() {
    with_two_links(|| {
        let (links, mut events) = Links::spawn().unwrap();
        let leads = |to: &str| links.egress(address(to)).map(|egress| egress.neighbors);
        ip("route add 10.0.0.0/8 via 192.0.2.9 proto static metric 20");
        wait_for(&mut events, LinkEvent::Changed);
        ip("route add 10.0.0.0/8 via 198.51.100.9 proto static metric 10");
        eventually("the better one counts", || leads("10.0.0.1") == Some(by(&[("198.51.100.9", "v1")])));
        ip("route replace 10.0.0.0/8 via 198.51.100.8 proto static metric 10");
        eventually("replaced", || leads("10.0.0.1") == Some(by(&[("198.51.100.8", "v1")])));
        ip("route del 10.0.0.0/8 metric 10");
        eventually("the other one again", || leads("10.0.0.1") == Some(by(&[("192.0.2.9", "v0")])));
        ip("-6 route add 2001:db8:9::/48 via fe80::8 dev v0 proto static metric 30");
        ip("-6 route append 2001:db8:9::/48 via fe80::9 dev v1 proto static metric 30");
        eventually("IPv6", || leads("2001:db8:9::1") == Some(by(&[("fe80::8", "v0"), ("fe80::9", "v1")])));
        ip("-6 route del 2001:db8:9::/48 via fe80::8 dev v0 metric 30");
        eventually("one of two", || leads("2001:db8:9::1") == Some(by(&[("fe80::9", "v1")])));
        ip("-6 route del 2001:db8:9::/48 metric 30");
        eventually("none", || leads("2001:db8:9::1").is_none());
        ip("route add 203.0.113.0/24 via 203.0.113.1 dev v1 onlink proto static");
        eventually("on the link by decree", || {
            links.egress(address("203.0.113.9")).is_some_and(|egress| egress.neighbors[0].onlink)
        });
    });
}

/// A route of another owner that spreads flows over several gateways, as each family and nexthop groups tell of it.
#[test]
fn next_hops_behind_several_gateways_resolve_to_all_of_them() {
    with_two_links(|| {
        ip(
            "route add 203.0.113.0/24 proto bird metric 30 nexthop via 192.0.2.9 dev v0 nexthop via 198.51.100.9 dev v1",
        );
        ip(
            "-6 route add 2001:db8:9::/48 proto bird metric 30 nexthop via fe80::8 dev v0 nexthop via fe80::9 dev v1",
        );
        ip("nexthop add id 7 via 192.0.2.7 dev v0");
        ip("nexthop add id 8 via 198.51.100.7 dev v1");
        ip("nexthop add id 9 group 7/8");
        ip("route add 10.9.0.0/16 nhid 9 proto zebra metric 20");
        let (links, _events) = Links::spawn().unwrap();
        let leads = |to: &str| links.egress(address(to)).map(|egress| egress.neighbors);
        assert_eq!(leads("203.0.113.1"), Some(by(&[("192.0.2.9", "v0"), ("198.51.100.9", "v1")])));
        assert_eq!(leads("2001:db8:9::1"), Some(by(&[("fe80::8", "v0"), ("fe80::9", "v1")])));
        assert_eq!(leads("10.9.1.1"), Some(by(&[("192.0.2.7", "v0"), ("198.51.100.7", "v1")])));
        ip("link set p1 down");
        eventually("one link is left", || leads("203.0.113.1") == Some(by(&[("192.0.2.9", "v0")])));
        eventually("in IPv6 too", || leads("2001:db8:9::1") == Some(by(&[("fe80::8", "v0")])));
        eventually("and of the group", || leads("10.9.1.1") == Some(by(&[("192.0.2.7", "v0")])));
    });
}
