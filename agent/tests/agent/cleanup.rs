//! `manx-agent cleanup`: all of ours and nothing else.

use std::fs;

use nix::sys::signal::Signal;

use super::world::*;

/// What others have put beside ours, chosen to look alike.
fn strangers(node: &Node) {
    node.net.ip("route add 10.77.0.0/24 dev lo proto static metric 77");
    node.net.ip("route add blackhole 10.77.1.0/24 proto bird metric 77");
    node.net.ip("-6 route add fd00:77::/64 dev lo proto static metric 77");
    node.net.sh("iptables-nft -N KUBE-FORWARD");
    node.net.sh("iptables-nft -A FORWARD -m comment --comment notmanx:jump -j KUBE-FORWARD");
    node.net.sh("ip6tables-nft -A INPUT -s fd00:77::/64 -j ACCEPT");
    node.net.sh("ipset create manxish hash:ip");
    node.net.link("manxbridge");
}

fn theirs(node: &Node) -> String {
    // Counters move and empty tables of iptables-nft stay, both without meaning. Link-local addresses come when they
    // like, anycast ones with forwarding.
    let rules = node.net.rules();
    let rules = rules.lines().filter(|l| l.starts_with("-A") || l.starts_with("-N"));
    let routes = node.net.ip("-4 route show table all") + &node.net.ip("-6 route show table all");
    let routes = routes.lines().filter(|l| !l.contains("fe80") && !l.contains("anycast"));
    let text: String = rules.chain(routes).map(|l| format!("{l}\n")).collect();
    text + &node.net.sets() + &node.net.ip("-br link")
}

#[test]
fn cleanup_removes_all_of_ours_and_nothing_else() {
    let (node, tor) = Node::wired();
    strangers(&node);
    node.net.link("manx0123456789a");
    node.net.ip("link del manx0123456789a");
    let before = theirs(&node);
    node.manifest("peer.yaml", PEER);
    node.manifest("shop.yaml", &format!("{SHOP}---{POLICY}"));
    let nat = "apiVersion: manx.dev/v1alpha1\nkind: NetworkConfiguration\nmetadata: {name: default}\nspec: {egressNat: {mode: Masquerade}}\n";
    node.manifest("network.yaml", nat);
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let _bird = Bird::start(&tor, &["10.200.7.0/24", "fd00:200:7::/64"], "");
    let web = attachment("web", Some("u1"), 5);
    node.attach(&web);
    let agent = node.start_with(&[]);
    node.settled();
    eventually("routes, rules and sets are there", || {
        node.net.route("fd00:200:7::/64").is_some()
            && node.net.rules().contains(&web.interface)
            && node.net.sets().contains("manx4-")
            && node.net.rules().contains("MASQUERADE")
    });
    agent.stop(Signal::SIGTERM);

    let all = node.net.everything();
    let refused = node.cleanup(&[]);
    refused.complains(&["1 pod", &web.interface, "--force"]);
    assert_eq!(node.net.everything(), all, "refused means untouched");
    assert!(node.conflist().exists() && node.node_json().exists());

    let answer = node.cleanup(&["--force"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert_eq!(theirs(&node), before);
    assert!(!node.conflist().exists() && !node.node_json().exists() && !node.path("run/ipam").exists());
    for what in ["routes", "chains", "set manx4-", &web.interface, "10-manx.conflist"] {
        assert!(answer.out.contains(what), "{what} is not in: {}", answer.out);
    }

    // A second time there is nothing to do.
    let again = node.cleanup(&[]);
    assert_eq!((again.code, again.out.as_str()), (0, ""), "{}", again.err);
}

#[test]
fn cleanup_knows_pods_by_the_prefix_that_the_agent_was_given() {
    let node = Node::alone();
    let agent = node.start_with(&["--pod-interface-prefix", "px"]);
    node.settled();
    agent.stop(Signal::SIGTERM);
    node.net.link("px0123456789a");
    node.cleanup(&[]).complains(&["px0123456789a", "--force"]);
    let answer = node.cleanup(&["--force"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(!node.net.ip("-br link").contains("px0123456789a"));
}

#[test]
fn cleanup_of_a_namespace_that_never_had_an_agent_does_nothing() {
    let node = Node::bare("n1");
    strangers(&node);
    let before = theirs(&node);
    let answer = node.cleanup(&[]);
    assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{}", answer.err);
    assert_eq!(theirs(&node), before);
}

#[test]
fn cleanup_leaves_other_networks_configurations_and_the_run_directory_of_others() {
    let node = Node::alone();
    fs::create_dir(node.path("net.d")).unwrap();
    fs::write(node.path("net.d/99-other.conflist"), "{}").unwrap();
    node.start().stop(Signal::SIGTERM);
    fs::write(node.path("run/somebody.elses"), "x").unwrap();
    assert_eq!(node.cleanup(&[]).code, 0);
    assert!(node.path("net.d/99-other.conflist").exists());
    assert!(node.path("run/somebody.elses").exists());
    assert!(!node.conflist().exists());
}
