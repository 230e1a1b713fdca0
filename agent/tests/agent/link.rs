//! Unnumbered links and BFD, with BIRD at the other end: what the kernel then holds, and what a restart costs.

use std::time::Duration;

use nix::sys::signal::Signal;
use rstest::rstest;

use super::world::*;

/// A router with two unnumbered links to the node.
const UNNUMBERED: &str = r#"
router id 10.1.0.1;
log stderr all;
protocol device { scan time 1; }
protocol kernel { merge paths yes limit 16; ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel { merge paths yes limit 16; ipv6 { import none; export where source = RTS_BGP; }; }
protocol static { ipv4; route 10.210.0.0/24 blackhole; }
protocol static { ipv6; route fd00:210::/64 blackhole; }
protocol radv { interface "u*" { min ra interval 3; max ra interval 5; default lifetime 0; }; }
protocol bfd { interface "u*" { min rx interval 100 ms; min tx interval 100 ms; multiplier 3; }; }
template bgp unnumbered {
  local as 65001;
  neighbor range fe80::/10 as 64512;
  bfd on;
  ipv4 { import all; export where source = RTS_STATIC; extended next hop on; };
  ipv6 { import all; export where source = RTS_STATIC; };
}
protocol bgp left from unnumbered { interface "u0"; dynamic name "left"; }
protocol bgp right from unnumbered { interface "u1"; dynamic name "right"; }
"#;

const LINKS: [&str; 2] = ["u0", "u1"];

fn peer(link: &str) -> String {
    format!(
        "
apiVersion: manx.dev/v1alpha1
kind: BGPPeer
metadata: {{name: {link}}}
spec: {{interface: {link}, remoteAS: External, connectRetry: 1s, bfd: {{}}}}
"
    )
}

/// A node with two links to one router and no address on them, both sessions up.
fn fabric() -> (Node, Netns, Bird, Running) {
    let (node, tor) = (Node::alone(), Netns::new());
    for link in LINKS {
        node.net.wire_as(link, &tor, link);
        node.manifest(&format!("{link}.yaml"), &peer(link));
    }
    // A pod's address here, a server's there.
    for address in ["10.200.1.9/32", "fd00:200:1::9/128"] {
        node.net.address("lo", address);
    }
    for address in ["10.210.0.1/32", "fd00:210::1/128"] {
        tor.address("lo", address);
    }
    let bird = Bird::configured(&tor, UNNUMBERED);
    let agent = node.start();
    LINKS.iter().for_each(|link| node.established(link));
    (node, tor, bird, agent)
}

/// The kernel's route for a prefix, with all its ways.
fn ways(net: &Netns, prefix: &str) -> String {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    net.ip(&format!("{family} route show {prefix}"))
}

fn eventually_goes(net: &Netns, prefix: &str, over: &[&str]) {
    let family = if prefix.contains(':') { "via fe80:" } else { "via inet6 fe80:" };
    let mut last = String::new();
    eventually(&format!("{prefix} goes over {over:?}"), || {
        last = ways(net, prefix);
        let used = LINKS.iter().filter(|link| last.contains(&format!("dev {link}")));
        last.matches(family).count() == over.len() && used.eq(over.iter())
    });
}

fn packets_flow(node: &Node) {
    for (from, to) in [("10.200.1.9", "10.210.0.1"), ("fd00:200:1::9", "fd00:210::1")] {
        node.net.sh(&format!("ping -c 3 -i 0.05 -W 5 -q -I {from} {to}"));
    }
}

#[test]
fn two_unnumbered_links_carry_both_families_as_equal_ways() {
    let (node, tor, bird, _agent) = fabric();
    for link in LINKS {
        let row = node.peer(link);
        let address = row["address"].as_str().unwrap();
        assert!(address.starts_with("fe80:") && address.ends_with(&format!("%{link}")), "{row}");
        assert_eq!(row["interface"], link);
        eventually("BFD is up", || node.peer(link)["bfd"]["state"] == "Up");
        assert_eq!(node.peer(link)["bfd"]["detectionTimeMs"], 300);
    }
    eventually("BIRD's BFD is up twice", || bird.ask("show bfd sessions").matches(" Up ").count() == 2);
    for prefix in ["10.210.0.0/24", "fd00:210::/64"] {
        eventually_goes(&node.net, prefix, &LINKS);
        eventually("it is known to be", || node.json(&["route", "why", prefix])["fib"] == "installed");
    }
    for prefix in ["10.200.1.0/24", "fd00:200:1::/64"] {
        eventually_goes(&tor, prefix, &LINKS);
    }
    packets_flow(&node);
    let metrics = node.http("/metrics").unwrap().1;
    assert!(metrics.contains(r#"manx_bfd_session_up{peer="u0",asn="65001"} 1"#), "{metrics}");

    // One link goes: the other one carries on, and says why the first does not.
    tor.ip("link set u0 down");
    eventually("the session falls with its link", || node.peer("u0")["state"] != "Established");
    eventually("and says so", || node.peer("u0")["reason"] == "interface u0 is down");
    for prefix in ["10.210.0.0/24", "fd00:210::/64"] {
        eventually_goes(&node.net, prefix, &["u1"]);
    }
    eventually_goes(&tor, "10.200.1.0/24", &["u1"]);
    packets_flow(&node);
    tor.ip("link set u0 up");
    node.established("u0");
    eventually_goes(&node.net, "10.210.0.0/24", &LINKS);
    packets_flow(&node);
}

#[test]
fn the_session_follows_a_neighbour_that_gets_another_address() {
    let (node, tor, _bird, _agent) = fabric();
    let before = node.peer("u0")["address"].clone();
    tor.ip("link set u0 down");
    tor.ip("link set u0 address 02:00:00:00:00:77");
    tor.ip("link set u0 up");
    eventually("it is found again", || {
        node.peer("u0")["address"] == "fe80::ff:fe00:77%u0" && node.peer("u0")["state"] == "Established"
    });
    assert_ne!(before, node.peer("u0")["address"]);
}

#[test]
fn an_interface_that_is_not_there_is_named_and_used_once_it_comes() {
    let (node, tor) = Node::wired();
    node.manifest("u0.yaml", &peer("u0"));
    let _agent = node.start();
    eventually("the reason is shown", || node.peer("u0")["reason"] == "there is no interface u0");
    assert_eq!(node.peer("u0")["cause"], "no-neighbor");
    node.net.wire_as("u0", &tor, "u0");
    eventually("it waits for the neighbour", || {
        node.peer("u0")["reason"] == "no router advertisement on u0 yet"
    });
    let _bird = Bird::configured(&tor, UNNUMBERED);
    node.established("u0");
}

/// A peer over IPv4 with BFD; `options` are BIRD's.
fn watched(options: &str) -> (Node, Netns, Bird, Running) {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", &PEER.replace("connectRetry: 1s", "connectRetry: 1s, bfd: {}"));
    let bgp = config(&["10.210.0.0/24"], &format!("{options}; graceful restart on;"));
    let bfd = "protocol bfd { interface \"*\" { min rx interval 100 ms; min tx interval 100 ms; }; }";
    let bird = Bird::configured(&tor, &format!("{bgp}{bfd}\n"));
    let agent = node.start();
    node.established("tor");
    eventually("BFD is up", || node.peer("tor")["bfd"]["state"] == "Up");
    eventually("the route is there", || node.net.route("10.210.0.0/24").is_some());
    eventually("and ours there", || holds(&bird));
    (node, tor, bird, agent)
}

/// BIRD has our route.
fn holds(bird: &Bird) -> bool {
    bird.ask("show route 10.200.1.0/24").contains("10.200.1.0/24")
}

#[test]
fn a_dead_path_is_seen_by_bfd_at_both_ends_and_named() {
    let (node, _tor, bird, _agent) = watched("bfd on");
    node.net.sh("iptables -I INPUT -i eth0 -j DROP");
    node.net.sh("iptables -I OUTPUT -o eth0 -j DROP");
    let took = eventually("BFD ends the session", || node.peer("tor")["state"] != "Established");
    assert!(took < Duration::from_secs(5), "{took:?}: ten times the detection time and more");
    eventually("the routes are gone", || node.net.route("10.210.0.0/24").is_none());
    eventually("BIRD's are as well", || !holds(&bird));
    let history = node.json(&["peer", "history", "tor"]);
    let lines = history["items"].as_array().unwrap();
    let lost = lines.iter().find(|l| l["from"] == "Established").unwrap();
    assert_eq!(lost["cause"], "bfd-down", "{lost}");
    assert!(lost["reason"].as_str().unwrap().starts_with("BFD: detection time expired"), "{lost}");
    assert!(node.peer("tor")["bfd"]["reason"].as_str().unwrap().contains("detection time expired"));
    node.net.sh("iptables -F");
    node.established("tor");
    eventually("BFD is up again", || node.peer("tor")["bfd"]["state"] == "Up");
    assert_eq!(node.peer("tor")["bfd"]["flaps"], 1);
}

/// Trap 6: AdminDown before an orderly exit; what a kill costs is in the documentation as these tests show it. `bfd graceful`
/// makes BIRD take a dead path for a restart, so that it keeps our routes either way.
#[rstest]
#[case::stopped(Signal::SIGTERM)]
#[case::killed(Signal::SIGKILL)]
fn trap_6_with_bfd_graceful_neither_a_stop_nor_a_kill_costs_a_route(#[case] signal: Signal) {
    let (node, _tor, bird, agent) = watched("bfd graceful");
    agent.stop(signal);
    eventually("BIRD's BFD is not up", || !bird.ask("show bfd sessions").contains(" Up "));
    assert!(holds(&bird), "{}", bird.ask("show protocols all node"));
    let _agent = node.start();
    node.established("tor");
    eventually("BFD is up", || node.peer("tor")["bfd"]["state"] == "Up");
    assert!(holds(&bird), "{}", bird.ask("show protocols all node"));
}
