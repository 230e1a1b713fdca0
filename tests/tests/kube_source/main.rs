//! The Kubernetes API as a source: whatever the server does, what the agent knows becomes what the server has.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod follower;
mod real;
mod tls;

use std::time::{Duration, Instant};

use manx_agent::source::Kind;
use manx_agent::source::kube::{self, Access, Settings, Timing};
use manx_tests::apiserver::{ApiServer, Cut};
use serde_json::json;
use tempfile::TempDir;

use follower::{Follower, TIMING, objects};

fn namespace(name: &str, team: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": team}}})
}

fn pod(name: &str, node: &str, label: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": label}},
           "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
           "status": {"phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}]}})
}

fn node(name: &str, rack: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"rack": rack}},
           "spec": {"podCIDRs": ["10.1.0.0/24"]},
           "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
}

fn policy(name: &str, app: &str) -> serde_json::Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "shop"},
           "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"]}})
}

fn filter(name: &str) -> serde_json::Value {
    json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPFilter", "metadata": {"name": name},
           "spec": {"ipv4": [{"action": "Accept"}]}})
}

fn peer(name: &str, rack: &str, secret: &str) -> serde_json::Value {
    json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer", "metadata": {"name": name},
           "spec": {"nodeSelector": {"matchLabels": {"rack": rack}}, "peerIP": "192.0.2.9", "asNumber": 65001,
                    "password": {"secretKeyRef": {"name": secret, "key": "password"}}}})
}

fn secret(namespace: &str, name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
           "data": {"password": "aHVudGVyMg=="}})
}

/// A server with something of each sort.
fn populated() -> ApiServer {
    let server = ApiServer::start().unwrap();
    for object in [
        namespace("shop", "red"),
        namespace("bank", "blue"),
        node("n1", "a"),
        node("n2", "b"),
        pod("web", "n1", "web"),
        pod("db", "n2", "db"),
        policy("closed", "db"),
        filter("racks"),
    ] {
        server.set(object);
    }
    server
}

#[test]
fn everything_is_known_before_it_is_in_sync_and_changes_follow() {
    let server = populated();
    let mut follower = Follower::in_sync(&server);
    assert_eq!(follower.objects.len(), objects(&server).len());
    server.set(pod("web", "n1", "other"));
    server.set(pod("new", "n1", "web"));
    server.remove("v1", "Pod", "shop", "db");
    follower.until_equal(&server);
    assert!(follower.problems.is_empty(), "{:?}", follower.problems);
}

#[test]
fn a_server_without_streaming_lists_is_read_in_pages_and_a_token_that_expires_begins_again() {
    let server = populated();
    server.set_streams(false);
    for i in 0..1200 {
        server.set(pod(&format!("p{i}"), "n2", "many"));
    }
    let mut follower = Follower::in_sync(&server);
    follower.until_equal(&server);
    // The history is gone, and every page token with it as soon as it is given out.
    server.compact();
    server.cut(Cut::Expire);
    server.set(pod("late", "n1", "web"));
    follower.until("late", |f| f.has(Kind::Pod, "late"));
    follower.until_equal(&server);
    assert_eq!(follower.removed, 0, "nothing was gone at the server");
}

#[test]
fn watches_that_end_break_or_expire_are_taken_up_where_they_were() {
    let server = populated();
    let mut follower = Follower::in_sync(&server);
    for (i, cut) in [Cut::End, Cut::Break, Cut::Expire].into_iter().enumerate() {
        server.cut(cut);
        server.set(namespace(&format!("ns{i}"), "red"));
        server.remove("v1", "Namespace", "", "bank");
        follower.until_equal(&server);
        server.set(namespace("bank", "blue"));
        follower.until_equal(&server);
    }
    server.cut(Cut::Break);
    server.set(pod("x", "n1", "web"));
    server.remove("v1", "Pod", "shop", "db");
    server.compact();
    follower.until_equal(&server);
}

#[test]
fn a_watch_that_goes_silent_is_given_up() {
    let server = populated();
    let files = TempDir::new().unwrap();
    let file = files.path().join("kubeconfig");
    server.write_kubeconfig(&file, None).unwrap();
    let mut follower = Follower::new(&server);
    // The same, with watches that are short.
    let timing = Timing { watch: Duration::from_secs(2), ..TIMING };
    let settings = Settings { node_name: "n1".into(), namespace: "manx-system".into(), timing };
    let spawned = follower.runtime.block_on(kube::spawn(Access::Kubeconfig(file), settings)).unwrap();
    follower.updates = spawned.1;
    follower.until("in sync", |f| f.in_sync);
    server.cut(Cut::Stall);
    server.set(pod("x", "n1", "web"));
    follower.until_equal(&server);
}

#[test]
fn refusals_and_requests_without_an_answer_cost_time_and_nothing_else() {
    let server = populated();
    server.refuse(40, 500, None);
    let mut follower = Follower::in_sync(&server);
    server.refuse(20, 429, Some(1));
    server.cut(Cut::End);
    server.set(pod("x", "n1", "web"));
    follower.until_equal(&server);
    server.hang(5);
    server.cut(Cut::Break);
    server.set(pod("y", "n1", "web"));
    follower.until_equal(&server);
}

#[test]
fn while_the_server_is_away_the_state_stays_and_says_that_it_is_old() {
    let mut server = populated();
    let mut follower = Follower::in_sync(&server);
    let before = follower.objects.clone();
    server.stop();
    follower.until("stale", Follower::stale);
    assert!(follower.says("onnect"), "{:?}", follower.problems);
    assert_eq!(follower.problems.len(), 1, "one reason, one problem: {:?}", follower.problems);
    assert_eq!(follower.objects, before);
    comes_back_changed(&mut server, &mut follower);
}

/// The server has changed while it was away; what is known follows.
fn comes_back_changed(server: &mut ApiServer, follower: &mut Follower) {
    server.set(pod("x", "n1", "web"));
    server.remove("v1", "Pod", "shop", "db");
    server.come_back(None).unwrap();
    follower.until("fresh", |f| !f.stale());
    follower.until_equal(server);
}

/// Waits are 300 times shorter than they are, so that twelve seconds hold as many attempts as an hour does.
#[test]
fn an_hour_without_the_server_costs_nothing_but_staleness() {
    const HASTE: u32 = 300;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut server = populated();
    let mut follower = Follower::hasty(&server, HASTE);
    follower.until("in sync", |f| f.in_sync);
    let (before, open) = (follower.objects.clone(), descriptors());
    server.stop();
    let away = Instant::now();
    let mut said = 0;
    while away.elapsed() < Duration::from_secs(3600) / HASTE {
        let problems = follower.problems.clone();
        follower.take(Duration::from_millis(100));
        said += usize::from(problems != follower.problems);
    }
    assert!(follower.stale() && follower.problems.len() == 1, "{:?}", follower.problems);
    assert_eq!((&follower.objects, follower.removed), (&before, 0));
    assert!(said <= 5, "said {said} times that nobody is there");
    assert!(descriptors() <= open + 10, "{} descriptors, {open} before", descriptors());
    comes_back_changed(&mut server, &mut follower);
}

#[test]
fn a_server_that_comes_back_with_a_shorter_history_is_read_again() {
    let mut server = populated();
    let mut follower = Follower::in_sync(&server);
    server.stop();
    server.remove("v1", "Pod", "shop", "db");
    server.come_back(Some(5)).unwrap();
    server.set(pod("after", "n1", "web"));
    follower.until_equal(&server);
    // And with one that is far ahead.
    server.stop();
    server.remove("v1", "Pod", "shop", "web");
    server.come_back(Some(90_000)).unwrap();
    follower.until_equal(&server);
    server.set(pod("later", "n1", "web"));
    follower.until_equal(&server);
}

#[test]
fn kinds_that_come_late_do_not_matter_to_the_others() {
    let server = populated();
    server.hold("pods");
    let mut follower = Follower::new(&server);
    server.set(namespace("new", "red"));
    server.set(pod("x", "n1", "web"));
    follower.until("the namespace", |f| f.has(Kind::Namespace, "new"));
    server.set(policy("p", "web"));
    follower.until("the policy", |f| f.has(Kind::NetworkPolicy, "p"));
    server.release();
    follower.until_equal(&server);
}

#[test]
fn kinds_that_are_not_installed_are_noticed_when_they_appear_and_when_they_go() {
    let server = populated();
    server.uninstall("manx.dev", "bgpfilters");
    server.uninstall("crd.projectcalico.org", "networkpolicies");
    server.uninstall("policy.networking.k8s.io", "clusternetworkpolicies");
    let mut follower = Follower::in_sync(&server);
    assert!(!follower.has(Kind::BgpFilter, "racks"));
    let asked = server.requests("GET", "/apis/manx.dev/v1alpha1/bgpfilters");
    assert_eq!(asked, 0, "the definitions say that there is none");
    server.install("manx.dev", "bgpfilters");
    server.set(filter("racks"));
    follower.until("the filter", |f| f.has(Kind::BgpFilter, "racks"));
    server.uninstall("manx.dev", "bgpfilters");
    follower.until("no filter", |f| !f.has(Kind::BgpFilter, "racks"));
    follower.until_equal(&server);
}

#[test]
fn without_the_right_to_read_definitions_kinds_are_asked_for_one_by_one() {
    let server = populated();
    server.forbid("customresourcedefinitions", true);
    server.uninstall("manx.dev", "bgpfilters");
    let mut follower = Follower::in_sync(&server);
    follower.until("the complaint", |f| f.says("customresourcedefinitions is forbidden"));
    server.install("manx.dev", "bgpfilters");
    server.set(filter("racks"));
    follower.until("the filter", |f| f.has(Kind::BgpFilter, "racks"));
}

#[test]
fn a_kind_that_may_not_be_read_keeps_the_source_out_of_sync_and_is_named() {
    let server = populated();
    server.forbid("networkpolicies", true);
    let mut follower = Follower::new(&server);
    follower.until("the complaint", |f| f.says("NetworkPolicy: http") && f.has(Kind::Pod, "web"));
    assert!(!follower.in_sync);
    server.forbid("networkpolicies", false);
    follower.until_equal(&server);
    assert!(follower.problems.is_empty(), "{:?}", follower.problems);
}

#[test]
fn secrets_are_read_by_name_and_only_those_that_peers_of_this_node_refer_to() {
    let server = populated();
    server.set(peer("ours", "a", "tor-a"));
    server.set(peer("theirs", "b", "tor-b"));
    for (namespace, name) in [("manx-system", "tor-a"), ("manx-system", "tor-b"), ("shop", "tor-a")] {
        server.set(secret(namespace, name));
    }
    let mut follower = Follower::in_sync(&server);
    let secrets = |f: &Follower| -> Vec<_> {
        f.objects.keys().filter(|k| k.kind == Kind::Secret).map(ToString::to_string).collect()
    };
    assert_eq!(secrets(&follower), ["Secret manx-system/tor-a"]);
    assert_eq!(server.requests("GET", "/api/v1/secrets"), 0, "never of the whole cluster");
    server.set(node("n1", "b"));
    follower.until("the other one", |f| secrets(f) == ["Secret manx-system/tor-b"]);
    server.remove("v1", "Secret", "manx-system", "tor-b");
    follower.until("none", |f| secrets(f).is_empty());
}

#[test]
fn calicos_bgp_kinds_are_followed_with_the_secrets_of_their_peers_and_what_is_not_done_is_told() {
    let server = populated();
    let theirs = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BGPPeer", "metadata": {"name": "theirs"},
        "spec": {"peerIP": "192.0.2.9", "asNumber": 65001, "nodeSelector": "rack == 'a'", "maxRestartTime": "60s",
                 "password": {"secretKeyRef": {"name": "bgp", "key": "password"}}}});
    server.set(theirs);
    server.set(secret("manx-system", "bgp"));
    let mut follower = Follower::in_sync(&server);
    assert!(follower.has(Kind::CalicoBgpPeer, "theirs") && follower.has(Kind::Secret, "bgp"));
    assert!(
        follower.says("Calico BGPPeer theirs") && follower.says("spec.maxRestartTime"),
        "{:?}",
        follower.problems
    );
    assert!(!follower.stale(), "what is not done is not old");
    // Their definitions go, and come again.
    server.uninstall("crd.projectcalico.org", "bgppeers");
    follower.until("gone", |f| !f.has(Kind::CalicoBgpPeer, "theirs") && !f.has(Kind::Secret, "bgp"));
    assert!(follower.problems.is_empty(), "{:?}", follower.problems);
    server.install("crd.projectcalico.org", "bgppeers");
    server.set(
        json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BGPPeer", "metadata": {"name": "again"},
        "spec": {"peerIP": "192.0.2.8", "asNumber": 65001}}),
    );
    follower.until("again", |f| f.has(Kind::CalicoBgpPeer, "again"));
    follower.until_equal(&server);
}

#[test]
fn a_token_that_is_replaced_is_read_again() {
    let server = populated();
    let files = TempDir::new().unwrap();
    let token = files.path().join("token");
    std::fs::write(&token, "old").unwrap();
    server.set_token("new");
    let mut follower = Follower::with_token(&server, Some(&token));
    follower.until("the complaint", |f| f.says("401"));
    std::fs::write(&token, "new").unwrap();
    follower.until_equal(&server);
}

#[test]
fn an_object_that_cannot_be_read_is_named_and_disturbs_nothing_else() {
    let server = populated();
    let mut bad = node("n3", "a");
    bad["spec"]["podCIDRs"] = json!(["nonsense"]);
    server.set(bad);
    let mut follower = Follower::in_sync(&server);
    assert!(follower.says("Node n3") && !follower.has(Kind::Node, "n3"), "{:?}", follower.problems);
    let mut bad = policy("broken", "web");
    bad["spec"]["podSelector"] = json!(5);
    server.set(bad);
    follower.until("a closed policy", |f| f.has(Kind::NetworkPolicy, "broken"));
    assert!(follower.says("NetworkPolicy shop/broken"), "{:?}", follower.problems);
    server.set(node("n3", "a"));
    server.set(policy("broken", "web"));
    follower.until_equal(&server);
    assert!(follower.problems.is_empty(), "{:?}", follower.problems);
}

/// Numbers for a seed, the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn whatever_happens_in_whatever_order_the_end_is_the_same() {
    for seed in [1, 2, 3] {
        let mut dice = Dice(seed);
        let mut server = populated();
        let mut follower = Follower::new(&server);
        // Histories that never overlap: one that has grown past our version while we were away looks like ours.
        let (mut low, mut high) = (500_000, 500_000);
        for _ in 0..60 {
            let name = format!("x{}", dice.roll(6));
            let word = format!("w{}", dice.roll(3));
            match dice.roll(22) {
                0..=2 => server.set(pod(&name, "n1", &word)),
                3 | 4 => _ = server.remove("v1", "Pod", "shop", &name),
                5 => server.set(namespace(&name, &word)),
                6 => _ = server.remove("v1", "Namespace", "", &name),
                7 => server.set(policy(&name, &word)),
                8 => _ = server.remove("networking.k8s.io/v1", "NetworkPolicy", "shop", &name),
                9 => server.set(node(&name, &word)),
                10 => server.cut(Cut::End),
                11 => server.cut(Cut::Break),
                12 => server.cut(Cut::Expire),
                13 => server.compact(),
                14 => server.refuse(3, 500, None),
                15 => server.hang(1),
                16 => server.hold("pods"),
                17 => server.release(),
                18 => {
                    let version = match dice.roll(3) {
                        0 => None,
                        1 => (low -= 10_000, Some(low)).1,
                        _ => (high += 10_000, Some(high)).1,
                    };
                    server.come_back(version).unwrap();
                }
                19 => {
                    server.uninstall("manx.dev", "bgpfilters");
                    server.install("manx.dev", "bgpfilters");
                }
                20 => server.set_streams(dice.roll(2) == 0),
                _ => follower.take(Duration::from_millis(dice.roll(50))),
            }
        }
        server.release();
        follower.until_equal(&server);
    }
}
