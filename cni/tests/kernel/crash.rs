//! SIGKILL at any moment of ADD and DEL: what is left is removed by DEL or repaired by the next ADD.
//!
//! `MANX_CRASH_ROUNDS` makes it a soak.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::node::{Node, Outcome, Pod, address, binary, eventually, feed, tcp};

fn rounds(default: u64) -> u64 {
    std::env::var("MANX_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Numbers that look random and are the same in every run (Numerical Recipes' generator).
fn noise(round: u64, below: u64) -> u64 {
    let mut x = round.wrapping_add(0x9e37_79b9_7f4a_7c15);
    for _ in 0..3 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    }
    (x >> 33) % below
}

/// Starts a verb and kills it after some microseconds.
fn killed(node: &Node, verb: &str, pod: &Pod, after: Duration) {
    let mut child = node.spawn(verb, pod, &node.conf(&json!({})));
    std::thread::sleep(after);
    drop(child.kill());
    child.wait().unwrap();
}

#[test]
fn add_that_was_killed_at_a_random_moment_is_undone_by_del() {
    let node = Node::new();
    let pod = Pod::new("web");
    for round in 0..rounds(50) {
        killed(&node, "ADD", &pod, Duration::from_micros(noise(round, 6000)));
        node.del(&pod);
        node.assert_nothing_left();
        assert_eq!(pod.ns.links(), [""; 0], "round {round}");
    }
}

#[test]
fn add_that_was_killed_is_repaired_by_the_next_add_or_was_complete() {
    let node = Node::new();
    let pod = Pod::new("web");
    for round in 0..rounds(50) {
        killed(&node, "ADD", &pod, Duration::from_micros(noise(round, 6000)));
        let again = node.call("ADD", Some(&pod), &node.conf(&json!({})));
        if !again.success {
            assert_eq!(again.error().0, 101, "round {round}: it was complete");
        }
        let attachments = node.store().attachments().unwrap();
        assert_eq!(attachments.len(), 1, "round {round}");
        tcp(&node.ns, &pod.ns, &attachments[0].ips[0].to_string());
        node.del(&pod);
        node.assert_nothing_left();
    }
}

#[test]
fn del_that_was_killed_is_finished_by_the_next_del() {
    let node = Node::new();
    let pod = Pod::new("web");
    for round in 0..rounds(50) {
        node.add(&pod);
        killed(&node, "DEL", &pod, Duration::from_micros(noise(round, 4000)));
        node.del(&pod);
        node.assert_nothing_left();
    }
}

#[test]
fn two_pods_never_have_one_address_whatever_is_killed() {
    let node = Node::with(&["10.211.0.0/29", "fd00:211::/64"]);
    let pods = [Pod::new("a"), Pod::new("b"), Pod::new("c")];
    for round in 0..rounds(50) {
        let victim = &pods[usize::try_from(round % 3).unwrap()];
        let verb = if noise(round, 2) == 0 { "ADD" } else { "DEL" };
        killed(&node, verb, victim, Duration::from_micros(noise(round, 5000)));
        for pod in &pods {
            let outcome = node.call("ADD", Some(pod), &node.conf(&json!({})));
            assert!(outcome.success || outcome.error().0 == 101, "round {round}: {outcome:?}");
        }
        let attachments = node.store().attachments().unwrap();
        let addresses: BTreeSet<_> = attachments.iter().flat_map(|a| a.ips.clone()).collect();
        assert_eq!((attachments.len(), addresses.len()), (3, 6), "round {round}");
        let mut inside = BTreeSet::new();
        for pod in &pods {
            let all = pod.ns.ip_json(&["addr", "show", "dev", "eth0", "scope", "global"]);
            let infos = all[0]["addr_info"].as_array().unwrap();
            // Addresses of other scopes are empty objects.
            let global = infos.iter().filter_map(|i| i["local"].as_str());
            inside.extend(global.map(|ip| ip.parse::<IpAddr>().unwrap()));
        }
        assert_eq!(inside, addresses, "round {round}");
        node.del(victim);
    }
    pods.iter().for_each(|pod| node.del(pod));
    node.assert_nothing_left();
}

/// strace(1) kills at the n-th system call, for every n from the first to the last of a whole ADD.
#[test]
fn add_that_was_killed_at_any_system_call_is_undone_by_del() {
    let node = Node::new();
    let pod = Pod::new("web");
    let mut calls = 0;
    for n in 1.. {
        let survived = killed_at(&node, "ADD", &pod, n);
        calls = n;
        node.del(&pod);
        node.assert_nothing_left();
        assert_eq!(pod.ns.links(), [""; 0], "call {n}");
        if survived {
            break;
        }
    }
    assert!(calls > 50, "an ADD of {calls} calls has not wired anything");
}

#[test]
fn add_that_was_killed_at_any_system_call_is_repaired_by_the_next_add() {
    let node = Node::new();
    let pod = Pod::new("web");
    // Prime to the others, to be different ones; every one of them is gone through by the test above.
    for n in (1..).step_by(3) {
        let survived = killed_at(&node, "ADD", &pod, n);
        let again = node.call("ADD", Some(&pod), &node.conf(&json!({})));
        if again.success {
            assert!(!survived, "call {n}");
            tcp(&node.ns, &pod.ns, &address(&again.ok(), false));
        } else {
            assert_eq!(again.error().0, 101, "call {n}");
        }
        node.del(&pod);
        if survived {
            break;
        }
    }
    node.assert_nothing_left();
}

#[test]
fn del_that_was_killed_at_any_system_call_is_finished_by_the_next_del() {
    let node = Node::new();
    let pod = Pod::new("web");
    for n in 1.. {
        node.add(&pod);
        let survived = killed_at(&node, "DEL", &pod, n);
        node.del(&pod);
        // The child that deletes the link goes on when its parent is killed.
        eventually("the end of the link", || node.ns.links().is_empty());
        node.assert_nothing_left();
        if survived {
            break;
        }
    }
}

/// `true`: there are not so many calls, and it ended by itself.
fn killed_at(node: &Node, verb: &str, pod: &Pod, n: usize) -> bool {
    // Of the plugin alone: nsenter is outside of strace.
    let mut command: Command = node.plugin(Path::new("strace"), verb, Some(pod));
    command
        .args(["-qq", "-o", "/dev/null", "-e", &format!("inject=all:signal=SIGKILL:when={n}")])
        .arg(binary());
    command.stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    feed(&mut child, &node.conf(&json!({})));
    Outcome::of(child).success
}
