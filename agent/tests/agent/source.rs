//! The manifest directory as the agent's only source: what is read, when, and what happens while it cannot be.

use serde_json::json;

use super::world::*;

const BROKEN: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: [\n";

#[test]
fn an_unreadable_manifest_at_start_keeps_everything_closed_and_out_of_sync() {
    let (node, _tor) = Node::wired();
    node.manifest("a.yaml", BROKEN);
    let _agent = node.start_with(&[]);
    eventually("the closing dispatch", || node.net.rules().contains("-i manx+"));
    eventually("the problem is told", || {
        node.try_json(&["status"]).is_some_and(|s| s["source"]["errors"][0]["file"] == "a.yaml")
    });
    let status = node.json(&["status"]);
    assert_eq!(status["source"]["inSync"], false);
    assert!(status["source"]["errors"][0]["line"].as_u64().is_some(), "{status}");
    assert!(status["source"]["errors"][0]["reason"].as_str().is_some_and(|r| !r.is_empty()), "{status}");
    // Nothing but the closing dispatch, and no permission to attach pods.
    assert_eq!((node.net.routes("-4"), node.net.routes("-6")), (vec![], vec![]));
    assert_eq!(node.net.sets(), "");
    assert!(!node.node_json().exists() && !node.conflist().exists());
    let (line, body) = node.http("/readyz").unwrap();
    assert!(line.contains("503") && body.contains("source"), "{line} {body}");
    assert_eq!(node.manxctl(&["status"]).code, 1);

    node.manifest("a.yaml", SHOP);
    eventually("in sync", || node.json(&["status"])["source"]["inSync"] == true);
    eventually("the blackhole", || node.net.route("10.200.1.0/24").is_some());
    eventually("pods can be attached", || node.node_json().exists() && node.conflist().exists());
    eventually("ready", || node.http("/readyz").unwrap().0.contains("200"));
}

#[test]
fn before_the_source_is_in_sync_the_kernel_gets_the_closing_dispatch_and_nothing_else() {
    let (node, _tor) = Node::wired();
    node.net.sh("sysctl -q -w net.ipv4.ip_forward=0");
    node.manifest("a.yaml", BROKEN);
    let _agent = node.start_with(&[]);
    eventually("the closing dispatch", || node.net.rules().contains("-i manx+"));
    eventually("the problem is told", || {
        node.try_json(&["status"]).is_some_and(|s| s["source"]["errors"][0]["file"] == "a.yaml")
    });
    assert_eq!(node.net.sh("sysctl -n net.ipv4.ip_forward").trim(), "0");
}

#[test]
fn a_manifest_that_becomes_unreadable_keeps_what_it_said_before() {
    let (node, _tor) = Node::wired();
    node.manifest("shop.yaml", &format!("{SHOP}---{}", pod("web", "u1", "{role: web}", "10.200.1.5")));
    node.manifest("policy.yaml", POLICY);
    let _agent = node.start();
    let before = node.net.everything();
    node.manifest("policy.yaml", BROKEN);
    node.manifest("node.yaml", BROKEN);
    eventually("both are told", || {
        let errors = node.json(&["status"])["source"]["errors"].clone();
        ["node.yaml", "policy.yaml"].iter().all(|f| errors.to_string().contains(f))
    });
    let status = node.json(&["status"]);
    assert_eq!((&status["source"]["inSync"], &status["source"]["stale"]), (&json!(true), &json!(true)));
    assert_eq!(node.net.everything(), before);
    assert_eq!(node.json(&["policy", "for", "shop/web"])["ingress"]["policies"], json!(["shop/web"]));
    eventually("still ready, and says what it serves", || {
        let (line, body) = node.http("/readyz?verbose").unwrap();
        line.contains("200") && body.contains("older version")
    });

    node.manifest("node.yaml", NODE);
    node.manifest("policy.yaml", POLICY);
    eventually("over", || node.json(&["status"])["source"]["stale"] == false);
    assert_eq!(node.json(&["status"])["source"]["errors"], json!([]));
}

#[test]
fn each_problem_of_a_manifest_is_logged_once() {
    let node = Node::alone();
    node.manifest("a.yaml", BROKEN);
    let _agent = node.start_with(&[]);
    eventually("told", || node.log().contains("a.yaml"));
    node.manifest("b.yaml", BROKEN);
    eventually("told", || node.log().contains("b.yaml"));
    let count = |file: &str| node.log().lines().filter(|l| l.contains(file) && l.contains("WARN")).count();
    eventually("both counted", || count("b.yaml") >= 1);
    assert_eq!((count("a.yaml"), count("b.yaml")), (1, 1), "{}", node.log());
}

#[test]
fn changes_take_effect_within_a_second() {
    let (node, _tor) = Node::wired();
    node.manifest("shop.yaml", SHOP);
    node.manifest("policy.yaml", POLICY);
    let client = |labels: &str| pod("client", "u2", labels, "10.200.9.9");
    node.manifest("client.yaml", &client("{role: other}"));
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let _agent = node.start();
    node.attach(&attachment("web", Some("u1"), 5));
    eventually("the pod's policy is in force", || {
        node.json(&["pods"])["items"][0]["policyInForceSince"].is_u64()
    });
    assert!(!node.net.sets().contains("10.200.9.9"));

    // The best of a few: this machine has other things to do as well.
    let best = |change: &dyn Fn(), seen: &dyn Fn() -> bool, back: &dyn Fn()| {
        (0..5)
            .map(|_| {
                change();
                let took = eventually("the change is in the kernel", seen);
                back();
                eventually("the change is taken back", || !seen());
                took
            })
            .min()
            .unwrap()
    };
    let label = best(
        &|| node.manifest("client.yaml", &client("{role: client}")),
        &|| node.net.sets().contains("10.200.9.9"),
        &|| node.manifest("client.yaml", &client("{role: other}")),
    );
    let cidr = best(
        &|| node.manifest("node.yaml", &NODE.replace("10.200.1.0/24", "10.200.1.0/24, 10.201.1.0/24")),
        &|| node.net.route("10.201.1.0/24").is_some(),
        &|| node.manifest("node.yaml", NODE),
    );
    let policy = best(
        &|| node.manifest("policy.yaml", &POLICY.replace("port: 80", "port: 8443")),
        &|| node.net.rules().contains("8443"),
        &|| node.manifest("policy.yaml", POLICY),
    );
    for (what, took) in [("label", label), ("pod CIDR", cidr), ("policy", policy)] {
        assert!(took < A_SECOND, "{what}: {took:?}");
    }
}

#[test]
fn the_same_object_in_two_files_names_both_and_the_first_name_wins() {
    let (node, _tor) = Node::wired();
    node.manifest("z.yaml", &NODE.replace("10.200.1.0/24", "10.250.1.0/24"));
    let _agent = node.start();
    assert!(node.net.route("10.200.1.0/24").is_some() && node.net.route("10.250.1.0/24").is_none());
    let errors = node.json(&["status"])["source"]["errors"].to_string();
    assert!(errors.contains("node.yaml") && errors.contains("z.yaml"), "{errors}");
}

#[test]
fn a_node_without_its_object_says_so_and_starts_when_it_comes() {
    let (node, _tor) = Node::wired();
    node.remove_manifest("node.yaml");
    node.manifest("shop.yaml", SHOP);
    let _agent = node.start_with(&[]);
    eventually("in sync", || node.try_json(&["status"]).is_some_and(|s| s["source"]["inSync"] == true));
    eventually("both sides say why", || {
        let status = node.json(&["status"]);
        status["bgp"]["errors"].to_string().contains("Node n1") && status["cni"]["ready"] == false
    });
    let (line, body) = node.http("/readyz").unwrap();
    assert!(line.contains("503") && body.contains("n1"), "{body}");
    assert_eq!(node.manxctl(&["peers"]).code, 3);

    node.manifest("node.yaml", NODE);
    node.settled();
    eventually("the blackhole", || node.net.route("10.200.1.0/24").is_some());
    assert_eq!(node.json(&["status"])["bgp"]["errors"], json!([]));
    eventually("ready", || node.http("/readyz").unwrap().0.contains("200"));

    node.remove_manifest("node.yaml");
    eventually("its prefixes are withdrawn", || node.net.route("10.200.1.0/24").is_none());
    eventually("it says so again", || {
        node.json(&["status"])["bgp"]["errors"].to_string().contains("Node n1")
    });
    node.manifest("node.yaml", NODE);
    eventually("and takes it up again", || node.net.route("10.200.1.0/24").is_some());
}
