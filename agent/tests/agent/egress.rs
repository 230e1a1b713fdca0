//! Where pods' packets go besides other pods: out of the cluster under the node's address, and to fixed addresses.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use manx_cni::store::Attachment;
use nix::sys::signal::Signal;
use serde_json::json;

use super::world::*;

const MASQUERADE: &str = "
apiVersion: manx.dev/v1alpha1
kind: NetworkConfiguration
metadata: {name: default}
spec: {egressNat: {mode: Masquerade, excludeCIDRs: [198.51.100.0/24]}}
";

const FAR_NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDRs: [10.200.2.0/24, 'fd00:200:2::/64']}
status: {addresses: [{type: InternalIP, address: 10.1.0.3}, {type: InternalIP, address: 'fd00:1::3'}]}
";

/// The world outside as pods see it: first two of another node and its pod, then one that is excluded, then strangers.
const INSIDE: [&str; 5] = ["10.1.0.3", "10.200.2.9", "fd00:1::3", "fd00:200:2::9", "198.51.100.1"];
const OUTSIDE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Where every address of the world answers.
const PORT: u16 = 8080;

/// A pod as the plugin wires it.
fn wire(node: &Node, attachment: &Attachment) -> Netns {
    let pod = Netns::new();
    let there = format!("/proc/{}/fd/{}", std::process::id(), pod.descriptor().as_raw_fd());
    let link = &attachment.interface;
    node.net.ip(&format!("link add {link} type veth peer name eth0 netns {there}"));
    node.net.ip(&format!("link set {link} address ee:ee:ee:ee:ee:ee addrgenmode none up"));
    node.net.address(link, "fe80::1/64");
    pod.ip("link set eth0 address 02:00:00:00:00:01 up");
    pod.ip("route add 169.254.1.1 dev eth0");
    pod.ip("neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0");
    for ip in &attachment.ips {
        let (length, gateway) = if ip.is_ipv4() { (32, "169.254.1.1") } else { (128, "fe80::1") };
        pod.address("eth0", &format!("{ip}/{length}"));
        pod.ip(&format!("route add default via {gateway} dev eth0"));
        node.net.ip(&format!("route add {ip} dev {link} metric 76 proto 77"));
        node.net.ip(&format!("neigh add {ip} lladdr 02:00:00:00:00:01 dev {link}"));
    }
    node.attach(attachment);
    pod
}

/// A wired node, the world behind its router, and a pod in it whose policy is in force.
fn world() -> (Node, Netns, Running, Netns) {
    let (node, tor) = Node::wired();
    for ip in INSIDE.iter().chain(&OUTSIDE) {
        tor.address("eth0", &format!("{ip}/{}", if ip.contains(':') { 128 } else { 32 }));
    }
    for (cidr, via) in [("10.200.1.0/24", "10.1.0.2"), ("fd00:200:1::/64", "fd00:1::2")] {
        tor.ip(&format!("route add {cidr} via {via}"));
    }
    for gateway in ["10.1.0.1", "fd00:1::1"] {
        node.net.ip(&format!("route add default via {gateway}"));
    }
    // A namespace keeps connections only once somebody asks for their state.
    for tool in ["iptables-nft", "ip6tables-nft"] {
        tor.sh(&format!("{tool} -A INPUT -m conntrack --ctstate NEW -j ACCEPT"));
    }
    tor.enter(|| {
        // One socket for both families, for as long as the test runs.
        let listener = TcpListener::bind(("::", PORT)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                answer(stream);
            }
        });
    });
    node.manifest("shop.yaml", SHOP);
    node.manifest("n2.yaml", FAR_NODE);
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let agent = node.start();
    let web = attachment("web", Some("u1"), 5);
    let pod = wire(&node, &web);
    eventually("its policy is in force", || {
        !node.json(&["pods"])["items"][0]["policyInForceSince"].is_null()
    });
    (node, tor, agent, pod)
}

/// Tells the client who it is.
fn answer(mut stream: TcpStream) {
    let seen = stream.peer_addr().unwrap().ip().to_canonical();
    let _ = stream.write_all(seen.to_string().as_bytes());
}

/// Under which address a pod is seen at `to`.
fn seen(pod: &Netns, to: &str) -> IpAddr {
    let to = SocketAddr::new(to.parse().unwrap(), PORT);
    pod.enter(move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.parse().unwrap()
    })
}

/// The address that the pod itself has, or the node towards its router, of the family of `to`.
fn address(of: &str, to: &str) -> IpAddr {
    let ip = match (of, to.contains(':')) {
        ("pod", false) => "10.200.1.5",
        ("pod", true) => "fd00:200:1::5",
        (_, false) => "10.1.0.2",
        (_, true) => "fd00:1::2",
    };
    ip.parse().unwrap()
}

fn conntrack(net: &Netns) -> String {
    net.sh("conntrack -L -f ipv4") + &net.sh("conntrack -L -f ipv6")
}

#[test]
fn pods_leave_under_their_own_address_unless_masquerading_is_asked_for() {
    let (node, _tor, _agent, pod) = world();
    for to in INSIDE.iter().chain(&OUTSIDE) {
        assert_eq!(seen(&pod, to), address("pod", to), "{to}");
    }
    assert!(!node.net.rules().contains("MASQUERADE"));
    assert_eq!(node.json(&["status"])["cni"]["egressNat"], "Off");
}

#[test]
fn masquerading_meets_strangers_and_never_pods_nodes_or_what_is_excluded() {
    let (node, tor, _agent, pod) = world();
    node.manifest("network.yaml", MASQUERADE);
    eventually("the rules are there", || node.net.rules().matches("--random-fully").count() == 2);
    for to in OUTSIDE {
        assert_eq!(seen(&pod, to), address("node", to), "{to}");
    }
    for to in INSIDE {
        assert_eq!(seen(&pod, to), address("pod", to), "{to}");
    }
    // The node itself, which is in no packet's POSTROUTING.
    let (here, there) = (conntrack(&node.net), conntrack(&tor));
    for to in INSIDE.iter().chain(&OUTSIDE) {
        let of = if OUTSIDE.contains(to) { "node" } else { "pod" };
        let (pod_ip, answers_to) = (address("pod", to), address(of, to));
        let sent = format!("src={pod_ip} dst={to} ");
        let line = here.lines().find(|l| l.contains(&sent)).unwrap_or_else(|| panic!("{sent}: {here}"));
        assert!(line.contains(&format!("src={to} dst={answers_to} ")), "{line}");
        assert!(there.contains(&format!("src={answers_to} dst={to} ")), "{to}: {there}");
    }
    assert_eq!(node.json(&["status"])["cni"]["egressNat"], "Masquerade");

    // A node that joins is inside from then on, and no rule is touched for it.
    let rules = node.net.rules();
    let counted =
        |text: &str| text.lines().filter(|l| l.starts_with("-A")).map(str::to_owned).collect::<Vec<_>>();
    node.manifest(
        "n3.yaml",
        &FAR_NODE.replace("n2", "n3").replace("10.1.0.3", "192.0.2.1").replace(":2", ":3"),
    );
    eventually("it is known", || node.net.sets().contains("add manx4-nat-inside 192.0.2.1"));
    assert_eq!(seen(&pod, "192.0.2.1"), address("pod", "192.0.2.1"));
    assert_eq!(counted(&node.net.rules()), counted(&rules));

    node.remove_manifest("network.yaml");
    eventually("nothing is left of it", || {
        !node.net.rules().contains("MANX-NAT") && !node.net.sets().contains("-nat-")
    });
    assert_eq!(seen(&pod, OUTSIDE[0]), address("pod", OUTSIDE[0]));
}

#[test]
fn masquerading_survives_the_agent_and_its_successor_writes_nothing_anew() {
    let (node, _tor, agent, pod) = world();
    node.manifest("network.yaml", MASQUERADE);
    eventually("the rules are there", || node.net.rules().matches("--random-fully").count() == 2);
    agent.stop(Signal::SIGKILL);
    assert_eq!(seen(&pod, OUTSIDE[0]), address("node", OUTSIDE[0]));
    let ear = Ear::filter(&node.net);
    let agent = node.start();
    eventually("it has looked", || node.json(&["status"])["cni"]["egressNat"] == "Masquerade");
    let heard = ear.heard();
    assert!(heard.iter().all(|line| !line.contains("MANX-NAT")), "{heard:?}");

    // What changed while no agent ran is made good.
    agent.stop(Signal::SIGTERM);
    node.remove_manifest("network.yaml");
    let _agent = node.start();
    eventually("it is gone", || !node.net.rules().contains("MANX-NAT") && !node.net.sets().contains("-nat-"));
}

#[test]
fn a_pod_with_a_fixed_address_is_advertised_alone_and_withdrawn_with_it() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    node.manifest("shop.yaml", SHOP);
    let pools = "{addressPools: [{name: fixed, cidrs: [10.250.0.0/24]}]}";
    node.manifest(
        "network.yaml",
        &format!(
            "apiVersion: manx.dev/v1alpha1\nkind: NetworkConfiguration\nmetadata: {{name: default}}\nspec: {pools}\n"
        ),
    );
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.250.0.5"));
    let bird = Bird::start(&tor, &[], "");
    let _agent = node.start();
    let config = std::fs::read_to_string(node.node_json()).unwrap();
    assert!(config.contains("10.250.0.0/24"), "{config}");
    node.established("tor");
    let mut web = attachment("web", Some("u1"), 5);
    web.ips = vec!["10.250.0.5".parse().unwrap()];
    node.attach(&web);
    eventually("BIRD has it", || bird.ask("show route 10.250.0.5/32").contains("node"));
    assert_eq!(node.json(&["route", "why", "10.250.0.5/32"])["fib"], "local");
    node.detach(&web);
    eventually("BIRD has it no more", || !bird.ask("show route 10.250.0.5/32").contains("node"));
    eventually("nor its blackhole", || node.net.route("10.250.0.5").is_none());
    assert_eq!(node.json(&["ipam"])["allocations"], json!([]));
}
