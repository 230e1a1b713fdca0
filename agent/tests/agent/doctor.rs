//! `manxctl doctor` on a node that somebody has broken, with an agent and without.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use serde_json::Value;

use super::world::*;

fn doctor(node: &Node) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_manxctl"));
    command.arg("--run-dir").arg(node.run_dir()).args(["-o", "json", "doctor"]);
    command.arg("--cni-conf-dir").arg(node.path("net.d")).arg("--cni-bin-dir").arg(node.path("bin"));
    let answer: Answer = node.net.output(&mut command).into();
    (
        answer.code,
        serde_json::from_str(&answer.out).unwrap_or_else(|e| panic!("{e}: {} {}", answer.out, answer.err)),
    )
}

#[track_caller]
fn check(found: &Value, name: &str, result: &str, observed: &str) {
    let checks = found["checks"].as_array().unwrap();
    let check =
        checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no check {name}: {found}"));
    assert_eq!(check["result"], result, "{check}");
    assert!(check["observed"].as_str().unwrap().contains(observed), "{check}");
    assert_eq!(check["remedy"].is_string(), result == "problem" || result == "warning", "{check}");
}

#[test]
fn what_is_broken_on_the_host_is_found_and_what_is_mended_is_not() {
    let (node, _tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    fs::create_dir_all(node.path("bin")).unwrap();
    fs::write(node.path("bin/manx"), "").unwrap();
    let _agent = node.start();
    eventually("the pod CIDR has its route", || node.net.route("10.200.1.0/24").is_some());
    let (_, found) = doctor(&node);
    assert_eq!((found["kind"].as_str(), found["node"].as_str()), (Some("Doctor"), Some("n1")));
    for name in [
        "forwarding",
        "rp_filter",
        "forward-policy",
        "cni-configuration",
        "cni-plugin",
        "port-179",
        "node-addresses",
        "pod-cidrs",
        "service-targets",
        "tcp-md5",
        "nexthop-objects",
    ] {
        check(&found, name, "ok", "");
    }

    let other = |line: &str| node.net.sh(line);
    other("iptables-nft -P FORWARD DROP");
    other("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.all.rp_filter=1");
    // Trap 30: they belong to the whole namespace, and start like this.
    other("sysctl -qw net.ipv4.fib_multipath_hash_policy=0 net.ipv4.nexthop_compat_mode=1");
    node.net.ip("link add uplink2 type veth peer name uplink2p");
    node.net.ip("link set uplink2p up");
    node.net.ip("link set uplink2 up");
    node.net.ip("addr add 10.2.0.2/24 dev uplink2");
    node.net.ip("link add cni0 type bridge");
    node.net.ip("addr add 10.200.1.1/24 dev cni0");
    fs::write(node.path("net.d/05-other.conflist"), "{}").unwrap();
    fs::remove_file(node.path("bin/manx")).unwrap();
    other("iptables-nft -t nat -N KUBE-SEP-A");
    other(
        "iptables-nft -t nat -A KUBE-SEP-A -p tcp -m comment --comment shop/web:http -j DNAT --to-destination 10.200.1.77:80",
    );
    let (code, found) = doctor(&node);
    assert_eq!((code, &found["healthy"]), (1, &Value::Bool(false)));
    check(&found, "forwarding", "problem", "net.ipv4.ip_forward = 0");
    check(&found, "rp_filter", "problem", "uplink2");
    check(&found, "multipath-hash", "warning", "net.ipv4.fib_multipath_hash_policy = 0");
    check(&found, "nexthop-compat-mode", "warning", "net.ipv4.nexthop_compat_mode = 1");
    check(&found, "forward-policy", "problem", "iptables-nft");
    check(&found, "cni-configuration", "problem", "05-other.conflist");
    check(&found, "cni-plugin", "problem", "manx is not in");
    check(&found, "pod-cidrs", "problem", "cni0 has 10.200.1.1/24");
    check(&found, "service-targets", "problem", "10.200.1.77 of shop/web:http: blackhole 10.200.1.0/24");

    other("iptables-nft -P FORWARD ACCEPT");
    other("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=2");
    other("sysctl -qw net.ipv4.fib_multipath_hash_policy=1 net.ipv6.fib_multipath_hash_policy=1");
    other("sysctl -qw net.ipv4.nexthop_compat_mode=0");
    other("iptables-nft -t nat -F KUBE-SEP-A");
    node.net.ip("link del cni0");
    fs::remove_file(node.path("net.d/05-other.conflist")).unwrap();
    let (_, found) = doctor(&node);
    for name in [
        "forwarding",
        "rp_filter",
        "multipath-hash",
        "nexthop-compat-mode",
        "forward-policy",
        "cni-configuration",
        "pod-cidrs",
        "service-targets",
    ] {
        check(&found, name, "ok", "");
    }
}

#[test]
fn without_an_agent_the_host_is_examined_all_the_same() {
    let (node, _tor) = Node::wired();
    node.net.sh("ip6tables-nft -P FORWARD DROP");
    let _other = node.net.enter(|| TcpListener::bind("0.0.0.0:179").unwrap());
    let (code, found) = doctor(&node);
    assert_eq!(code, 1);
    check(&found, "agent", "problem", "no agent at");
    check(&found, "forward-policy", "problem", "ip6tables-nft");
    check(&found, "port-179", "problem", "on 0.0.0.0:179");
}
