//! Stopping, dying and starting again: what stays in the kernel and what is rewritten.

use nix::sys::signal::Signal;
use serde_json::json;

use super::world::*;

/// A node that has all there is: a router with learned routes of both families, a policed pod with its host route.
fn busy() -> (Node, Netns, Bird) {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    node.manifest("shop.yaml", &format!("{SHOP}---{POLICY}"));
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    node.manifest("client.yaml", &pod("client", "u2", "{role: client}", "10.200.9.9"));
    node.attach(&attachment("web", Some("u1"), 5));
    let link = attachment("web", None, 5).interface;
    node.net.ip(&format!("link set {link} up"));
    node.net.ip(&format!("route add 10.200.1.5/32 dev {link} proto 77 metric 76"));
    let bird = Bird::start(&tor, &["10.200.7.0/24", "fd00:200:7::/64"], "");
    (node, tor, bird)
}

fn in_place(node: &Node) {
    node.settled();
    node.established("tor");
    for prefix in ["10.200.1.0/24", "fd00:200:1::/64", "10.200.7.0/24", "fd00:200:7::/64"] {
        eventually(&format!("{prefix} is there"), || node.net.route(prefix).is_some());
    }
    eventually("the pod's policy is in force", || {
        node.json(&["pods"])["items"][0]["policyInForceSince"].is_u64()
    });
}

#[test]
fn sigterm_leaves_routes_and_rules_and_a_restart_rewrites_nothing() {
    let (node, _tor, bird) = busy();
    let agent = node.start_with(&[]);
    in_place(&node);
    let before = node.net.everything();

    let (routes, filter) = (Ear::routes(&node.net), Ear::filter(&node.net));
    assert_eq!(agent.stop(Signal::SIGTERM), Some(0));
    assert_eq!(node.net.everything(), before, "after SIGTERM");
    assert!(!bird.log().contains("Received: "), "no NOTIFICATION: {}", bird.log());

    let _agent = node.start_with(&[]);
    in_place(&node);
    eventually("the restart is over", || node.json(&["status"])["bgp"]["restarting"] == false);
    assert_eq!(routes.heard(), Vec::<String>::new(), "no route was written");
    assert_eq!(filter.heard(), Vec::<String>::new(), "no rule was written");
    assert_eq!(node.net.everything(), before, "after the restart");
}

#[test]
fn sigkill_under_a_change_is_made_good_by_the_next_agent() {
    let (node, _tor, bird) = busy();
    let agent = node.start_with(&[]);
    in_place(&node);
    agent.stop(Signal::SIGKILL);
    // While nobody looked: a route less, another policy, a pod less.
    bird.announce(&["10.200.8.0/24", "fd00:200:7::/64"]);
    node.manifest("shop.yaml", &format!("{SHOP}---{}", POLICY.replace("port: 80", "port: 8443")));
    node.manifest("other.yaml", &pod("other", "u3", "{role: web}", "10.200.1.6"));
    node.detach(&attachment("web", Some("u1"), 5));
    node.attach(&attachment("other", Some("u3"), 6));
    assert!(node.net.route("10.200.7.0/24").is_some());

    let _agent = node.start_with(&[]);
    node.settled();
    eventually("the new route", || node.net.route("10.200.8.0/24").is_some());
    eventually("the old one is swept", || node.net.route("10.200.7.0/24").is_none());
    eventually("the new policy", || node.net.rules().contains("8443"));
    let (old, new) = (attachment("web", None, 5).interface, attachment("other", None, 6).interface);
    eventually("the old pod's rules are gone", || !node.net.rules().contains(&old));
    assert!(node.net.rules().contains(&new));
    assert!(node.net.route("10.200.1.5").is_some(), "a host route goes with its attachment, by the plugin");
}

/// The allocator is told before the program begins, and so by the program itself, in the same process.
#[test]
fn memory_that_is_free_goes_back_at_once() {
    let (node, _tor) = Node::wired();
    let agent = node.start_with(&[]);
    node.settled();
    assert!(agent.environment().iter().any(|v| v == "MIMALLOC_PURGE_DELAY=0"), "{:?}", agent.environment());
    assert_eq!(agent.stop(Signal::SIGTERM), Some(0));
}

#[test]
fn sigint_stops_like_sigterm() {
    let node = Node::alone();
    let agent = node.start();
    let before = node.net.everything();
    assert_eq!(agent.stop(Signal::SIGINT), Some(0));
    assert_eq!(node.net.everything(), before);
}

#[test]
fn a_change_that_is_being_written_when_sigterm_comes_is_written_to_its_end() {
    let gate = Gate::new();
    let node = Node::alone();
    node.manifest("shop.yaml", SHOP);
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let agent = node.spawn(gate.guard(&mut node.agent_command()));
    node.settled();
    gate.shut();
    node.attach(&attachment("web", Some("u1"), 5));
    gate.knocked();
    agent.signal(Signal::SIGTERM);
    eventually("it is stopping", || node.log().contains("stopping"));
    gate.open();
    agent.stop(Signal::SIGTERM);
    assert!(node.net.rules().contains(&attachment("web", None, 5).interface));
}

#[test]
fn a_packet_filter_that_hangs_does_not_keep_the_agent_from_stopping() {
    let gate = Gate::new();
    let node = Node::alone();
    node.manifest("shop.yaml", SHOP);
    let agent = node.spawn(gate.guard(&mut node.agent_command()));
    node.settled();
    gate.shut();
    node.attach(&attachment("web", Some("u1"), 5));
    gate.knocked();
    let start = std::time::Instant::now();
    assert_eq!(agent.stop(Signal::SIGTERM), Some(0));
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    gate.open();
}

#[test]
fn policy_that_the_kernel_refuses_is_told_tried_again_and_never_confirmed() {
    let gate = Gate::new();
    let node = Node::alone();
    node.manifest("shop.yaml", SHOP);
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let _agent = node.spawn(gate.guard(&mut node.agent_command()));
    node.settled();
    gate.breaks();
    node.attach(&attachment("web", Some("u1"), 5));
    eventually("the status says so", || {
        let policy = &node.json(&["status"])["policy"];
        policy["pending"] == true && policy["errors"].to_string().contains("the gate is broken")
    });
    eventually("readiness says so", || {
        let (line, body) = node.http("/readyz").unwrap();
        line.contains("503") && body.contains("the gate is broken")
    });
    assert_eq!(node.json(&["pods"])["items"][0]["policyInForceSince"], json!(null));
    assert_eq!(node.manxctl(&["status"]).code, 1);
    gate.mended();
    eventually("in force after all", || node.json(&["pods"])["items"][0]["policyInForceSince"].is_u64());
    eventually("healthy", || node.http("/readyz").unwrap().0.contains("200"));
    assert_eq!(node.json(&["status"])["policy"]["errors"], json!([]));
}

#[test]
fn without_a_closing_dispatch_no_pod_can_be_attached() {
    let gate = Gate::new();
    gate.shut();
    let node = Node::alone();
    let _agent = node.spawn(gate.guard(&mut node.agent_command()));
    gate.knocked();
    eventually("in sync", || node.try_json(&["status"]).is_some_and(|s| s["source"]["inSync"] == true));
    eventually("the status says why", || {
        let cni = node.json(&["status"])["cni"].clone();
        cni["ready"] == false && cni["reason"].to_string().contains("closing dispatch")
    });
    assert!(!node.node_json().exists() && !node.conflist().exists());
    let (line, body) = node.http("/readyz").unwrap();
    assert!(line.contains("503") && !body.contains("policy: applied"), "{body}");
    gate.open();
    eventually("now it can", || node.node_json().exists() && node.conflist().exists());
    assert!(node.net.rules().contains("-i manx+"));
}
