//! Sessions and routes: with BIRD as the router at the other end, and between two agents.

use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;

use super::world::*;

/// A node with its router, Established.
fn with_bird(routes: &[&str]) -> (Node, Netns, Bird, Running) {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    let bird = Bird::start(&tor, routes, "");
    let agent = node.start();
    node.established("tor");
    (node, tor, bird, agent)
}

#[test]
fn own_pod_cidrs_are_advertised_and_backed_by_blackholes_of_protocol_and_metric_77() {
    let (node, _tor, bird, _agent) = with_bird(&[]);
    for prefix in ["10.200.1.0/24", "fd00:200:1::/64"] {
        let route = node.net.route(prefix).expect("it is there before the session is");
        assert_eq!((&route["type"], &route["metric"]), (&json!("blackhole"), &json!(77)), "{route}");
        eventually("BIRD has it", || {
            bird.ask(&format!("show route {prefix} all")).contains("BGP.as_path: 64512")
        });
        let why = node.json(&["route", "why", prefix]);
        assert_eq!(why["fib"], "local", "{why}");
        let export = &why["exports"][0];
        assert_eq!((&export["peer"], &export["advertised"]), (&json!("tor"), &json!(true)), "{why}");
    }
    node.manifest("node.yaml", &NODE.replace("10.200.1.0/24", "10.201.1.0/24"));
    eventually("BIRD has the other", || bird.ask("show route 10.201.1.0/24").contains("node"));
    eventually("and the first no more", || !bird.ask("show route 10.200.1.0/24").contains("node"));
    eventually("nor its blackhole", || node.net.route("10.200.1.0/24").is_none());
}

#[test]
fn learned_routes_are_protocol_and_metric_77_and_explained() {
    let (node, _tor, bird, _agent) = with_bird(&["10.200.7.0/24", "fd00:200:7::/64"]);
    for (prefix, gateway) in [("10.200.7.0/24", "10.1.0.1"), ("fd00:200:7::/64", "fd00:1::1")] {
        eventually("it is in the kernel", || node.net.route(prefix).is_some());
        let route = node.net.route(prefix).unwrap();
        assert_eq!((&route["gateway"], &route["metric"]), (&json!(gateway), &json!(77)), "{route}");
        eventually("it is known to be", || node.json(&["route", "why", prefix])["fib"] == "installed");
        let why = node.json(&["route", "why", prefix]);
        assert_eq!((&why["paths"][0]["from"], &why["reason"]), (&json!("10.1.0.1"), &json!(null)), "{why}");
        assert!(why["filter"].is_string(), "the rule that let it in: {why}");
        let inside = prefix.replace("/24", "").replace("/64", "").replace("7.0", "7.9");
        let lookup = node.json(&["route", "get", &inside]);
        assert_eq!(
            (&lookup["owner"], &lookup["prefix"], &lookup["nextHops"]),
            (&json!("manx"), &json!(prefix), &json!([gateway])),
            "{lookup}"
        );
        assert_eq!(lookup["route"]["from"], "10.1.0.1");
    }
    bird.announce(&["fd00:200:7::/64"]);
    eventually("a withdrawn route goes", || node.net.route("10.200.7.0/24").is_none());
    assert!(node.net.route("fd00:200:7::/64").is_some());
    assert_eq!(node.manxctl(&["route", "why", "10.200.7.0/24"]).code, 1);
}

#[test]
fn what_would_hurt_the_node_is_not_installed_and_route_why_says_why() {
    let bad = [
        ("0.0.0.0/0", "default route"),
        ("::/0", "default route"),
        ("10.200.1.0/24", "own block"),
        ("10.200.1.128/25", "own block"),
        ("10.200.0.0/16", "own block"),
        ("10.1.0.0/24", "covers"),
        ("10.1.0.2/32", "covers an address of this node"),
        ("fd00:1::/64", "covers"),
        ("127.5.0.0/16", "loopback"),
    ];
    let mut routes: Vec<_> = bad.iter().map(|(prefix, _)| *prefix).collect();
    routes.push("10.200.7.0/24");
    let (node, _tor, _bird, _agent) = with_bird(&routes);
    eventually("the good one is there", || node.net.route("10.200.7.0/24").is_some());
    // Loopback is not told by BIRD itself.
    for (prefix, reason) in bad.iter().filter(|(p, _)| !p.starts_with("127")) {
        eventually("it has been told", || {
            let why = node.json(&["route", "why", prefix]);
            why["paths"].as_array().unwrap().iter().any(|p| p["from"] == "10.1.0.1")
        });
        let why = node.json(&["route", "why", prefix]);
        let path = why["paths"].as_array().unwrap().iter().find(|p| p["from"] == "10.1.0.1").unwrap().clone();
        assert_eq!(path["best"], false, "{why}");
        assert!(path["reason"].to_string().contains(reason), "{prefix}: {why}");
        let shown = if *prefix == "0.0.0.0/0" || *prefix == "::/0" { "default" } else { prefix };
        match node.net.route(shown) {
            None => {}
            Some(route) => assert_eq!((*prefix, &route["type"]), ("10.200.1.0/24", &json!("blackhole"))),
        }
    }
    let rejected = node.json(&["routes", "in", "tor", "--rejected"]);
    assert!(rejected["items"].to_string().contains("default route"), "{rejected}");
}

#[test]
fn routes_of_others_are_left_alone_whatever_is_learned() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    node.net.ip("route add 10.200.7.0/24 via 10.1.0.99 proto static metric 10");
    node.net.ip("route add 10.200.8.0/24 dev eth0 proto bird metric 77");
    node.net.sh("iptables-nft -A FORWARD -s 10.200.9.0/24 -j ACCEPT");
    let theirs = || {
        let all = node.net.ip("route show");
        all.lines().filter(|l| !l.contains("proto 77")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = theirs();
    let bird = Bird::start(&tor, &["10.200.7.0/24", "10.200.8.0/24", "10.200.9.0/24"], "");
    let _agent = node.start();
    eventually("what is free is installed", || node.net.route("10.200.9.0/24").is_some());
    eventually("beside a better one of another's too", || node.net.route("10.200.7.0/24").is_some());
    assert_eq!(theirs(), before);
    // The same prefix at the same metric is taken: theirs stays, and ours says so.
    eventually("it says whose it is", || {
        let why = node.json(&["route", "why", "10.200.8.0/24"]);
        why["fib"] == "missing" && why["reason"].to_string().contains("protocol 12 holds it")
    });
    assert_eq!(node.json(&["route", "get", "10.200.7.5"])["owner"], "static");
    bird.announce(&[]);
    eventually("ours go", || node.net.route("10.200.9.0/24").is_none());
    assert_eq!(theirs(), before);
    assert!(node.net.rules().contains("-A FORWARD -s 10.200.9.0/24 -j ACCEPT"));
}

#[test]
fn a_link_that_goes_down_takes_its_next_hops_along_and_brings_them_back() {
    let (node, tor, _bird, _agent) = with_bird(&["10.200.7.0/24", "fd00:200:7::/64"]);
    let there = || node.net.route("10.200.7.0/24").is_some() && node.net.route("fd00:200:7::/64").is_some();
    eventually("learned", there);
    let flaps = node.peer("tor")["flaps"].as_u64().unwrap();
    tor.ip("link set eth0 down");
    eventually("the peer is told down", || {
        let peer = node.peer("tor");
        peer["state"] != "Established" && peer["reason"] == "interface went down"
    });
    assert_eq!(node.peer("tor")["flaps"].as_u64().unwrap(), flaps + 1);
    assert_eq!(node.peer("tor")["families"], json!([]));
    eventually("its routes are gone", || {
        node.net.route("10.200.7.0/24").is_none() && node.net.route("fd00:200:7::/64").is_none()
    });
    assert!(node.net.route("10.200.1.0/24").is_some(), "the own ones stay");
    assert_eq!(node.manxctl(&["peers"]).code, 0);
    assert_eq!(node.manxctl(&["peer", "show", "tor"]).code, 1);

    tor.ip("link set eth0 up");
    if !tor.ip("-6 addr show dev eth0").contains("fd00:1::1") {
        tor.address("eth0", "fd00:1::1/64");
    }
    node.established("tor");
    if !node.net.ip("-6 addr show dev eth0").contains("fd00:1::2") {
        node.net.address("eth0", "fd00:1::2/64");
    }
    eventually("learned again", there);
}

#[test]
fn an_address_that_comes_late_is_noticed() {
    let (node, tor) = Node::wired();
    node.net.ip("addr del 10.1.0.2/24 dev eth0");
    node.manifest("peer.yaml", PEER);
    let _bird = Bird::start(&tor, &["10.200.7.0/24"], "");
    let _agent = node.start();
    eventually("it says where it cannot listen", || {
        node.json(&["status"])["bgp"]["errors"].to_string().contains("10.1.0.2:179")
    });
    node.net.ip("addr add 10.1.0.2/24 dev eth0");
    node.established("tor");
    eventually("it listens", || {
        node.json(&["status"])["bgp"]["listening"].to_string().contains("10.1.0.2:179")
    });
    assert_eq!(node.json(&["status"])["bgp"]["errors"], json!([]));
}

#[test]
fn where_it_listens_no_more_is_not_shown_any_more() {
    let (node, _tor) = Node::wired();
    let _agent = node.start();
    let listening = || node.json(&["status"])["bgp"]["listening"].clone();
    eventually("it listens", || listening() == json!(["10.1.0.2:179", "[fd00:1::2]:179"]));
    let port = "---\napiVersion: manx.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {name: default}\nspec: {listenPort: 1179}\n";
    node.manifest("bgp.yaml", port);
    eventually("elsewhere, and only there", || listening() == json!(["10.1.0.2:1179", "[fd00:1::2]:1179"]));
}

const SECRET: &str = "
apiVersion: v1
kind: Secret
metadata: {name: tor, namespace: manx-system}
stringData: {password: s3cret}
";

#[test]
fn a_missing_secret_keeps_the_session_down_and_says_so_and_the_secret_is_never_shown() {
    let (node, tor) = Node::wired();
    let with_password = PEER.replace(
        "connectRetry: 1s",
        "connectRetry: 1s, holdTime: 6s, password: {secretKeyRef: {name: tor, key: password}}",
    );
    node.manifest("peer.yaml", &with_password);
    node.manifest("secret.yaml", &SECRET.replace("manx-system", "elsewhere"));
    let bird = Bird::start(&tor, &["10.200.7.0/24"], "password \"s3cret\";");
    let _agent = node.start_with(&["--log", "trace"]);
    node.settled();
    eventually("the peer says why", || {
        node.peer("tor")["reason"].to_string().contains("Secret manx-system/tor does not exist")
    });
    assert_ne!(node.peer("tor")["state"], "Established");
    assert!(!bird.ask("show protocols").contains("Established"));

    node.manifest("secret.yaml", SECRET);
    node.established("tor");
    assert_eq!(node.json(&["peer", "show", "tor"])["settings"]["password"], true);
    node.manifest("secret.yaml", &SECRET.replace("s3cret", "wr0ng"));
    // The key changes under the open connection: what the peer signs is dropped, and the hold time runs out.
    eventually("a wrong one ends the session", || node.peer("tor")["state"] != "Established");
    node.remove_manifest("secret.yaml");
    eventually("the peer says why again", || {
        node.peer("tor")["reason"].to_string().contains("does not exist")
    });
    for text in
        [node.log(), node.json(&["status"]).to_string(), node.json(&["peer", "show", "tor"]).to_string()]
    {
        assert!(!text.contains("s3cret") && !text.contains("wr0ng"), "a secret is shown");
    }
}

#[test]
fn a_peer_with_a_filter_that_does_not_exist_stays_down_and_one_that_accepts_by_name_lets_in() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", &PEER.replace("connectRetry: 1s", "connectRetry: 1s, importFilters: [racks]"));
    let _bird = Bird::start(&tor, &["0.0.0.0/0", "10.200.7.0/24", "10.200.8.0/24"], "");
    let _agent = node.start();
    eventually("it waits for its filter", || {
        node.peer("tor")["reason"].to_string().contains("BGPFilter racks does not exist")
    });
    let filter = |rules: &str| {
        format!(
            "apiVersion: manx.dev/v1alpha1\nkind: BGPFilter\nmetadata: {{name: racks}}\nspec: {{ipv4: [{rules}]}}\n"
        )
    };
    let default = "{name: the-default, cidr: 0.0.0.0/0, ge: 0, le: 0, action: Accept}";
    let seven = "{name: seven, cidr: 10.200.7.0/24, action: Accept, set: {localPref: 200, addCommunities: ['65001:7']}}";
    let rest = "{name: rest, action: Reject}";
    node.manifest("filter.yaml", &filter(&[default, seven, rest].join(", ")));
    node.established("tor");
    eventually("the default route by name", || node.net.route("default").is_some());
    eventually("and the seventh", || node.net.route("10.200.7.0/24").is_some());
    assert!(node.net.route("10.200.8.0/24").is_none());
    let seventh = node.json(&["route", "why", "10.200.7.0/24"]);
    assert_eq!(seventh["paths"][0]["localPref"], 200);
    assert_eq!(seventh["paths"][0]["communities"], json!(["65001:7"]));
    assert!(seventh["filter"].to_string().contains("seven"), "{seventh}");
    let eighth = node.json(&["route", "why", "10.200.8.0/24"]);
    assert!(eighth["paths"][0]["reason"].to_string().contains("rest"), "{eighth}");
    assert!(eighth["filter"].to_string().contains("rest"), "{eighth}");

    // A filter that changes asks the peer again: no reset, no restart.
    let flaps = node.peer("tor")["flaps"].clone();
    node.manifest("filter.yaml", &filter(rest));
    eventually("nothing is let in any more", || {
        node.net.route("default").is_none() && node.net.route("10.200.7.0/24").is_none()
    });
    node.manifest("filter.yaml", &filter("{name: all, cidr: 10.200.0.0/16, ge: 16, action: Accept}"));
    eventually("other ones are", || node.net.route("10.200.8.0/24").is_some());
    assert_eq!((&node.peer("tor")["flaps"], &node.peer("tor")["state"]), (&flaps, &json!("Established")));
}

#[test]
fn a_peer_that_is_shut_down_is_disabled_with_its_message_and_comes_back() {
    let (node, _tor, bird, _agent) = with_bird(&["10.200.7.0/24"]);
    eventually("learned", || node.net.route("10.200.7.0/24").is_some());
    node.manifest(
        "peer.yaml",
        &PEER.replace("connectRetry: 1s", "shutdown: {enabled: true, message: new optics}"),
    );
    eventually("Disabled", || node.peer("tor")["state"] == "Disabled");
    assert!(node.peer("tor")["reason"].to_string().contains("new optics"), "{}", node.peer("tor"));
    eventually("its routes go", || node.net.route("10.200.7.0/24").is_none());
    eventually("BIRD hears why", || {
        bird.log().contains("Administrative shutdown") && bird.log().contains("new optics")
    });
    node.manifest("peer.yaml", PEER);
    node.established("tor");
    eventually("learned again", || node.net.route("10.200.7.0/24").is_some());
}

#[test]
fn a_required_peer_that_is_down_fails_readiness_and_status() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", &PEER.replace("connectRetry: 1s", "connectRetry: 1s, required: true"));
    let _agent = node.start();
    eventually("readiness names it", || {
        let (line, body) = node.http("/readyz").unwrap();
        line.contains("503") && body.contains("tor")
    });
    assert_eq!(node.json(&["status"])["bgp"]["requiredDown"], json!(["tor"]));
    assert!(node.http("/livez").unwrap().0.contains("200"), "a router that is away is no reason to restart");
    let _bird = Bird::start(&tor, &[], "");
    node.established("tor");
    eventually("ready", || node.http("/readyz").unwrap().0.contains("200"));
    assert_eq!(node.json(&["status"])["bgp"]["requiredDown"], json!([]));
}

#[test]
fn a_peer_that_is_removed_gets_no_more_and_its_routes_go() {
    let (node, _tor, bird, _agent) = with_bird(&["10.200.7.0/24"]);
    eventually("learned", || node.net.route("10.200.7.0/24").is_some());
    node.remove_manifest("peer.yaml");
    eventually("its routes go", || node.net.route("10.200.7.0/24").is_none());
    eventually("it is told", || bird.log().contains("Peer de-configured") || bird.log().contains("shutdown"));
    assert_eq!(node.json(&["peers"])["items"], json!([]));
}

#[test]
fn no_fib_learns_and_says_why_nothing_is_in_the_kernel() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    let bird = Bird::start(&tor, &["10.200.7.0/24"], "");
    let _agent = node.start_with(&["--no-fib"]);
    node.established("tor");
    eventually("learned", || node.json(&["route", "why", "10.200.7.0/24"])["paths"] != json!([]));
    let why = node.json(&["route", "why", "10.200.7.0/24"]);
    assert_eq!(why["fib"], "missing");
    assert!(why["reason"].to_string().contains("--no-fib"), "{why}");
    assert_eq!(node.json(&["status"])["kernel"]["routesWanted"], json!(null));
    eventually("BIRD has ours", || bird.ask("show route 10.200.1.0/24").contains("node"));
    assert_eq!((node.net.routes("-4"), node.net.routes("-6")), (vec![], vec![]));
}

/// Two nodes on one wire, each with both Node objects and no BGPPeer.
fn mesh() -> (Node, Node) {
    let second = NODE
        .replace("n1", "n2")
        .replace("10.200.1.0", "10.200.2.0")
        .replace("200:1::", "200:2::")
        .replace("10.1.0.2", "10.1.0.3")
        .replace("fd00:1::2", "fd00:1::3");
    let (first, other) = (Node::bare("n1"), Node::bare("n2"));
    first.net.wire(&other.net, "eth0");
    for (node, last) in [(&first, 2), (&other, 3)] {
        node.net.address("eth0", &format!("10.1.0.{last}/24"));
        node.net.address("eth0", &format!("fd00:1::{last}/64"));
        node.manifest("nodes.yaml", &format!("{NODE}---{second}"));
    }
    (first, other)
}

#[test]
fn nodes_without_any_peer_object_make_a_mesh() {
    let (first, other) = mesh();
    let (_a, b) = (first.start(), other.start());
    first.established("n2");
    other.established("n1");
    for (node, prefix, gateway) in [
        (&first, "10.200.2.0/24", "10.1.0.3"),
        (&first, "fd00:200:2::/64", "fd00:1::3"),
        (&other, "10.200.1.0/24", "10.1.0.2"),
        (&other, "fd00:200:1::/64", "fd00:1::2"),
    ] {
        eventually("each has the other's prefixes", || {
            node.net.route(prefix).is_some_and(|r| r["gateway"] == gateway)
        });
    }
    // A restart of one costs the other nothing.
    let ear = Ear::routes(&first.net);
    b.stop(Signal::SIGTERM);
    eventually("the session is down", || first.peer("n2")["state"] != "Established");
    let _b = other.start();
    first.established("n2");
    assert_eq!(ear.heard(), Vec::<String>::new());

    // One declared peer anywhere, and the mesh is left.
    first.manifest("peer.yaml", PEER);
    eventually("no mesh", || first.json(&["peers"])["items"][0]["name"] == "tor");
    eventually("its routes go", || first.net.route("10.200.2.0/24").is_none());
}

#[test]
fn a_mesh_of_two_ases_works_over_a_router() {
    let (first, other) = mesh();
    for node in [&first, &other] {
        let nodes = std::fs::read_to_string(node.path("manifests/nodes.yaml")).unwrap();
        let annotated = nodes.replace("{name: n2,", "{name: n2, annotations: {manx.dev/asn: '64599'},");
        node.manifest("nodes.yaml", &annotated);
    }
    let (_a, _b) = (first.start(), other.start());
    first.established("n2");
    assert_eq!(first.peer("n2")["remoteAs"], 64599);
    assert_eq!(other.peer("n1")["localAs"], 64599);
    eventually("learned", || first.net.route("10.200.2.0/24").is_some());
}

#[test]
fn whoever_connects_from_a_range_is_a_peer_as_long_as_there_is_room() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", &PEER.replace("peerIP: 10.1.0.1", "peerRange: 10.1.0.0/24, maxPeers: 1"));
    let _agent = node.start();
    let range = || node.json(&["peers"])["ranges"][0].clone();
    eventually("the range is shown", || range()["name"] == "tor");
    assert_eq!((&range()["range"], &range()["peers"]), (&json!("10.1.0.0/24"), &json!(0)));
    let bird = Bird::start(&tor, &["10.200.7.0/24"], "strict bind yes;");
    node.established("tor@10.1.0.1");
    eventually("learned", || node.net.route("10.200.7.0/24").is_some());
    assert_eq!(range()["peers"], 1);
    assert_eq!(node.manxctl(&["peer", "show", "10.1.0.1"]).code, 0);

    tor.ip("addr add 10.1.0.7/24 dev eth0");
    let another = config(&[], "strict bind yes;").replace("id 10.1.0.1", "id 10.1.0.7");
    let _another = Bird::configured(&tor, &another.replace("local 10.1.0.1", "local 10.1.0.7"));
    eventually("one too many", || range()["refused"].as_u64() >= Some(1));
    assert_eq!((&range()["peers"], &node.peer("tor@10.1.0.1")["flaps"]), (&json!(1), &json!(0)));

    node.remove_manifest("peer.yaml");
    eventually("its peers go with it", || node.net.route("10.200.7.0/24").is_none());
    eventually("BIRD is told", || bird.log().contains("Peer de-configured"));
    assert_eq!(node.json(&["peers"])["items"], json!([]));
}

#[test]
fn a_stranger_that_connects_is_turned_away_and_the_node_does_not_mind() {
    let (node, tor, _bird, mut agent) = with_bird(&[]);
    tor.ip("addr add 10.1.0.9/24 dev eth0");
    let mut knock = Command::new("socat");
    knock.args(["-t", "2", "-", "TCP:10.1.0.2:179,bind=10.1.0.9"]);
    let answer = tor.output(&mut knock);
    assert_eq!(answer.stdout.len(), 0, "no OPEN for a stranger");
    assert!(agent.alive());
    assert_eq!(node.peer("tor")["state"], "Established");
}
