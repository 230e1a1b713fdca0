//! The lab's fabric without Manx: BIRD stands in for the agent on every node, so that a fault of the lab is told from one of Manx.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use ipnetwork::IpNetwork;
use manx_tests::lab::{self, Lab};
use manx_tests::netns::{self, End, Netns};
use manx_tests::probe::server::Server;
use manx_tests::probe::stream::{Summary, UdpStream};
use manx_tests::probe::{FIRST_TTL, Outcome, PORTS, Proto, client};
use manx_tests::report::Ms;
use manx_tests::routers::bird::Bird;
use manx_tests::topology::{Machine, Role};
use manx_tests::wait;

const NAME: &str = "manx-fabric";
const LIMIT: Duration = Duration::from_secs(30);

struct Down;

impl Drop for Down {
    fn drop(&mut self) {
        lab::down(NAME).expect("the fabric can be removed");
    }
}

/// A node's BIRD: announces the pod CIDRs to the ToRs as the BGPPeer objects of the lab would have the agent do.
fn node_config(lab: &Lab, node: &Machine) -> String {
    let asn = node.asn.expect("a node has an AS");
    let (v4, v6) = (node.prefixes[0], node.prefixes[1]);
    let mut text = format!(
        "router id 10.99.0.{};\nprotocol device {{}}\n\
         protocol kernel {{ merge paths yes; ipv4 {{ export where source = RTS_BGP; }}; }}\n\
         protocol kernel {{ merge paths yes; ipv6 {{ export where source = RTS_BGP; }}; }}\n\
         protocol static {{ ipv4; route {v4} blackhole; }}\nprotocol static {{ ipv6; route {v6} blackhole; }}\n",
        asn % 250,
    );
    for (near, far) in lab.topology.uplinks(node.name) {
        let tor = lab.topology.machine(far.machine);
        let peer = tor.asn.expect("a ToR has an AS");
        let ends = |a: &dyn std::fmt::Display, b: &dyn std::fmt::Display| {
            format!("local {a} as {asn}; neighbor {b} as {peer}; connect retry time 2; connect delay time 1;")
        };
        let channel =
            |family| format!("{family} {{ import all; export where source ~ [ RTS_STATIC, RTS_BGP ]; }};");
        let four = ends(&near.v4.ip(), &far.v4.ip());
        if tor.role == Role::Bird {
            let six = ends(&near.v6.ip(), &far.v6.ip());
            let _ = writeln!(text, "protocol bgp {{ {four} {} }}", channel("ipv4"));
            let _ = writeln!(text, "protocol bgp {{ {six} {} }}", channel("ipv6"));
        } else {
            let _ = writeln!(text, "protocol bgp {{ {four} {} {} }}", channel("ipv4"), channel("ipv6"));
        }
    }
    text
}

/// A pod in place of many: the second host of each pod CIDR, behind the first, which is the node's.
fn attach_pod(lab: &Lab, node: &Machine, netns: &Netns) -> Netns {
    let pod = Netns::create(&format!("{NAME}-pod-{}", node.name)).unwrap();
    let hosts = |number| {
        let host = |p: &IpNetwork| format!("{}/{}", p.iter().nth(number).unwrap(), p.prefix());
        node.prefixes.iter().map(host).collect()
    };
    let (near, far) = (
        End { netns, interface: "pod", addresses: hosts(1) },
        End { netns: &pod, interface: "eth0", addresses: hosts(2) },
    );
    netns::connect(&near, &far).unwrap();
    for prefix in &node.prefixes {
        pod.ip(&format!("route add default via {}", prefix.iter().nth(1).unwrap())).unwrap();
    }
    assert_eq!(lab.topology.routers_between("outside", node.name), 3);
    pod
}

#[test]
fn the_fabric_routes_between_nodes_and_survives_a_shut_port() {
    let lab = Lab::fabric(NAME, Path::new("/nonexistent")).unwrap();
    let down = Down;
    let mut servers = Vec::new();
    for node in lab.topology.nodes() {
        let netns = lab.netns(node.name);
        Bird::new(netns.clone(), lab.dir().join(node.name)).start(&node_config(&lab, node)).unwrap();
        servers.push(Server::start(&attach_pod(&lab, node, &netns)).unwrap());
    }
    let pods: Vec<_> = lab.topology.nodes().flat_map(|node| node.prefixes.clone()).collect();
    let settled = wait::until(LIMIT, || {
        for (machine, router) in &lab.routers {
            let sessions = router.sessions().map_err(|e| format!("{e:#}"))?;
            if !sessions.iter().all(|s| s.is_established()) {
                return Err(format!("{machine}: {sessions:?}"));
            }
            let routes = router.routes().map_err(|e| format!("{e:#}"))?;
            if let Some(missing) = pods.iter().find(|p| !routes.contains_key(p)) {
                return Err(format!("{machine} lacks {missing}: {routes:?}"));
            }
        }
        Ok(())
    });
    let ((), took) = settled.unwrap();
    println!("settled after {}", Ms(took));
    assert_eq!(lab.routers["spine"].sessions().unwrap().len(), 4);
    assert_eq!(lab.routers["tor-a"].sessions().unwrap().len(), 6);
    assert_eq!(lab.routers["tor-b"].sessions().unwrap().len(), 4);

    let outside = lab.outside();
    for prefix in &pods {
        let host = prefix.iter().nth(2).unwrap();
        for proto in Proto::ALL {
            let outcome =
                client::probe(&outside.netns, proto, host, PORTS[0], Duration::from_secs(1)).unwrap();
            let Outcome::Answered(answer) = &outcome else { panic!("{proto} to {host}: {outcome}") };
            assert_eq!(answer.ttl.unwrap_or(FIRST_TTL - 3), FIRST_TTL - 3, "{proto} to {host}");
            assert!(answer.seen_as.is_none_or(|a| outside.addresses.contains(&a)), "{proto} to {host}");
        }
    }

    let host = pods[2].iter().nth(2).unwrap();
    // Six flows: both ToRs carry some of them.
    let start = |_| UdpStream::start(&outside.netns, host, PORTS[0], Duration::from_millis(5)).unwrap();
    let streams: Vec<_> = (0..6).map(start).collect();
    lab.netns("tor-a").ip("link set node-2 down").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let summaries: Vec<_> = streams.into_iter().map(|stream| stream.stop().unwrap()).collect();
    let summary = Summary::sum(&summaries);
    println!("{summary}");
    assert!(summary.longest_gap < Duration::from_secs(2), "{summary}");
    drop(servers);
    drop(down);
    assert!(netns::with_prefix(NAME).is_empty(), "nothing is left");
}
