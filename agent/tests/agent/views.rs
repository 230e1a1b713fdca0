//! What the agent tells: the documents of `manxctl -o json`, exit codes, the sockets, health and metrics.

use std::process::Command;

use serde_json::{Value, json};

use super::world::*;

/// The document holds these fields, all of them, as null if they are not known.
fn has(document: &Value, fields: &[&str]) {
    let object = document.as_object().unwrap_or_else(|| panic!("no object: {document}"));
    for field in fields {
        assert!(object.contains_key(*field), "{field} is missing in {document}");
    }
}

fn is(document: &Value, kind: &str) {
    assert_eq!((&document["apiVersion"], &document["kind"]), (&json!("manx.dev/v1"), &json!(kind)));
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// A node with all there is to show.
fn full() -> (Node, Netns, Bird, Running) {
    let (node, tor) = Node::wired();
    node.manifest(
        "peer.yaml",
        &format!("{PEER}---{}", PEER.replace("name: tor", "name: dead").replace("10.1.0.1", "10.1.0.77")),
    );
    node.manifest("shop.yaml", &format!("{SHOP}---{POLICY}"));
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    node.attach(&attachment("web", Some("u1"), 5));
    let bird = Bird::start(&tor, &["10.200.7.0/24", "0.0.0.0/0"], "");
    let agent = node.start();
    node.established("tor");
    eventually("learned", || node.net.route("10.200.7.0/24").is_some());
    eventually("known", || node.json(&["route", "why", "10.200.7.0/24"])["fib"] == "installed");
    eventually("in force", || node.json(&["pods"])["items"][0]["policyInForceSince"].is_u64());
    (node, tor, bird, agent)
}

#[test]
fn every_document_has_its_fields_and_unknown_is_null() {
    let (node, _tor, _bird, _agent) = full();
    let status = node.json(&["status"]);
    is(&status, "Status");
    has(&status, &["node", "version", "source", "bgp", "policy", "cni", "kernel"]);
    has(&status["source"], &["kind", "inSync", "stale", "errors"]);
    assert_eq!(
        (&status["source"]["kind"], &status["version"]),
        (&json!("manifests"), &json!(env!("CARGO_PKG_VERSION")))
    );
    assert_eq!((&status["bgp"]["peers"], &status["bgp"]["established"]), (&json!(2), &json!(1)));
    assert_eq!(status["bgp"]["originated"], json!(["10.200.1.0/24", "fd00:200:1::/64"]));
    assert_eq!((&status["policy"]["policies"], &status["policy"]["backend"]), (&json!(1), &json!("nft")));
    assert_eq!(
        (&status["policy"]["endpoints"], &status["policy"]["endpointsInForce"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        (&status["kernel"]["routesWanted"], &status["kernel"]["routesInstalled"]),
        (&json!(3), &json!(3))
    );
    assert_eq!(status["cni"]["attachments"], 1);

    let peers = node.json(&["peers"]);
    is(&peers, "PeerList");
    let rows = peers["items"].as_array().unwrap();
    for row in rows {
        has(
            row,
            &[
                "node", "address", "name", "localAs", "remoteAs", "state", "since", "flaps", "reason",
                "families",
            ],
        );
        let states = ["Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established", "Disabled"];
        assert!(states.iter().any(|s| row["state"] == **s), "{row}");
        assert!(row["since"].as_u64().is_some_and(|s| s <= now() && s + 300 > now()), "{row}");
    }
    let tor = node.peer("tor");
    assert_eq!(
        (&tor["localAs"], &tor["remoteAs"], &tor["reason"]),
        (&json!(64512), &json!(65001), &json!(null))
    );
    assert_eq!(tor["families"].as_array().unwrap().len(), 2);
    has(&tor["families"][0], &["family", "received", "accepted", "filtered", "advertised"]);
    assert_eq!(
        (&tor["families"][0]["received"], &tor["families"][0]["accepted"], &tor["families"][0]["filtered"]),
        (&json!(2), &json!(1), &json!(1)),
        "{tor}"
    );
    let shown = node.json(&["peer", "show", "dead"]);
    is(&shown, "Peer");
    has(&shown, &["routerId", "localAddress", "holdTime", "messages", "capabilities", "settings"]);
    assert_eq!((&shown["routerId"], &shown["holdTime"]), (&json!(null), &json!(null)));

    let routes = node.json(&["routes"]);
    is(&routes, "RouteList");
    let fields = [
        "prefix",
        "from",
        "nextHop",
        "best",
        "multipath",
        "stale",
        "asPath",
        "origin",
        "med",
        "localPref",
        "communities",
        "lostAt",
        "fib",
        "reason",
    ];
    for route in routes["items"].as_array().unwrap() {
        has(route, &fields);
    }
    let find = |prefix: &str| {
        routes["items"]
            .as_array()
            .unwrap()
            .iter()
            .find(|r| r["prefix"] == prefix)
            .cloned()
            .unwrap_or_default()
    };
    let own = find("10.200.1.0/24");
    assert_eq!(
        (&own["from"], &own["fib"], &own["nextHop"]),
        (&json!("local"), &json!("local"), &json!(null))
    );
    let learned = find("10.200.7.0/24");
    assert_eq!((&learned["fib"], &learned["nextHop"]), (&json!("installed"), &json!("10.1.0.1")));
    assert_eq!((&learned["asPath"], &learned["origin"]), (&json!([65001]), &json!("igp")));
    assert_eq!(
        (&learned["best"], &learned["med"], &learned["lostAt"]),
        (&json!(true), &json!(null), &json!(null))
    );
    is(&node.json(&["routes", "in", "tor"]), "RouteList");
    let out = node.json(&["routes", "out", "10.1.0.1"]);
    assert_eq!(out["items"].as_array().unwrap().len(), 2, "{out}");
    has(&out["items"][0], &fields);

    let lookup = node.json(&["route", "get", "10.200.7.5"]);
    is(&lookup, "RouteLookup");
    has(&lookup, &["ip", "prefix", "nextHops", "owner", "route"]);
    has(&lookup["route"], &fields);
    let host = node.json(&["route", "get", "10.1.0.50"]);
    assert_eq!((&host["owner"], &host["route"]), (&json!("kernel"), &json!(null)), "{host}");

    let why = node.json(&["route", "why", "10.200.7.0/24"]);
    is(&why, "RouteExplanation");
    has(&why, &["prefix", "paths", "filter", "fib", "reason"]);

    let policy = node.json(&["policy", "for", "shop/web"]);
    is(&policy, "PodPolicy");
    has(&policy, &["pod", "ingress", "egress", "inForceSince"]);
    assert_eq!(policy["ingress"], json!({"isolated": true, "policies": ["shop/web"]}));
    assert_eq!(policy["egress"], json!({"isolated": false, "policies": []}));
    assert!(policy["inForceSince"].as_u64().is_some_and(|s| s <= now() && s + 300 > now()));
    assert_eq!(node.json(&["policy", "for", "10.200.1.5"])["pod"], "shop/web");
    assert_eq!(node.json(&["policy", "for", "fd00:200:1::5"])["pod"], "shop/web");
    is(&node.json(&["policy", "for", "shop"]), "PodPolicyList");

    let ipam = node.json(&["ipam"]);
    is(&ipam, "Ipam");
    assert_eq!(ipam["pools"].as_array().unwrap().len(), 2);
    has(&ipam["pools"][0], &["cidr", "total", "used", "cooling", "free"]);
    has(&ipam["allocations"][0], &["ip", "namespace", "pod", "containerId", "ifname", "since"]);
    assert_eq!((&ipam["cooling"], &ipam["leaked"]), (&json!([]), &json!([])));
    assert_eq!(
        (&ipam["allocations"][0]["ip"], &ipam["allocations"][0]["pod"]),
        (&json!("10.200.1.5"), &json!("web"))
    );

    let pods = node.json(&["pods"]);
    is(&pods, "PodList");
    has(
        &pods["items"][0],
        &["namespace", "name", "uid", "node", "ips", "interface", "containerId", "policyInForceSince"],
    );
    assert_eq!(pods["items"][0]["ips"], json!(["10.200.1.5", "fd00:200:1::5"]));
}

#[test]
fn exit_codes_are_0_yes_1_no_2_usage_3_unreachable() {
    let (node, _tor, _bird, agent) = full();
    for (line, code) in [
        ("peers", 0),
        ("peer show tor", 0),
        ("peer show 10.1.0.1", 0),
        ("peer show dead", 1),
        ("peer show nobody", 1),
        ("routes", 0),
        ("routes in nobody", 1),
        ("route get 10.200.7.5", 0),
        ("route get 203.0.113.1", 1),
        ("route get somewhere", 2),
        ("route why 10.200.7.0/24", 0),
        ("route why 0.0.0.0/0", 1),
        ("route why 192.0.2.0/24", 1),
        ("route why 10.0.0.0/99", 2),
        ("policy for shop/web", 0),
        ("policy for shop/nobody", 1),
        ("policy for 192.0.2.1", 1),
        ("policy for nowhere", 1),
        ("ipam", 0),
        ("pods", 0),
        ("tea", 2),
    ] {
        let words: Vec<_> = line.split(' ').collect();
        let answer = node.manxctl(&words);
        assert_eq!(answer.code, code, "{line}: {} {}", answer.out, answer.err);
    }
    drop(agent);
    assert_eq!(node.manxctl(&["status"]).code, 3);
    assert_eq!(Node::bare("n2").manxctl(&["peers"]).code, 3);
}

#[test]
fn parts_that_are_not_enabled_are_null_and_write_nothing() {
    let (node, _tor) = Node::wired();
    {
        let _agent = node.start_with(&["--enable", "bgp"]);
        node.settled();
        eventually("the blackhole", || node.net.route("10.200.1.0/24").is_some());
        let status = node.json(&["status"]);
        assert_eq!((&status["policy"], &status["cni"]), (&json!(null), &json!(null)));
        assert!(!node.net.rules().contains("MANX") && !node.run_dir().join("cni.sock").exists());
        assert!(!node.node_json().exists() && !node.conflist().exists());
        let answer = node.manxctl(&["pods"]);
        assert_eq!(answer.code, 3);
        assert!(answer.err.contains("not enabled"), "{}", answer.err);
        eventually("ready", || node.http("/readyz").unwrap().0.contains("200"));
    }
    node.cleanup(&["--force"]);
    {
        let _agent = node.start_with(&["--enable", "policy"]);
        node.settled();
        let status = node.json(&["status"]);
        assert_eq!((&status["bgp"], &status["cni"]), (&json!(null), &json!(null)));
        assert!(node.net.rules().contains("-i manx+"));
        assert_eq!(node.net.routes("-4").len(), 0);
        assert!(!node.run_dir().join("cni.sock").exists() && !node.node_json().exists());
        for command in [["peers"].as_slice(), &["routes"], &["route", "why", "10.0.0.0/8"]] {
            let answer = node.manxctl(command);
            assert_eq!(answer.code, 3, "{command:?}");
            assert!(answer.err.contains("not enabled"), "{}", answer.err);
        }
        assert_eq!(
            node.manxctl(&["route", "get", "10.1.0.50"]).code,
            0,
            "the kernel can be asked all the same"
        );
    }
    node.cleanup(&["--force"]);
    {
        let _agent = node.start_with(&["--enable", "cni"]);
        node.settled();
        assert!(node.node_json().exists() && node.conflist().exists());
        assert!(!node.net.rules().contains("MANX"));
        assert_eq!(node.net.routes("-4").len(), 0);
    }
}

#[test]
fn both_sockets_answer_reads_and_refuse_all_else_in_json() {
    let node = Node::alone();
    let _agent = node.start();
    for socket in ["admin.sock", "ro.sock"] {
        let (line, body) = node.ask(socket, "GET", "/v1/status");
        assert!(line.contains("200"), "{line}");
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["kind"], "Status");
        for (method, path, status, code) in [
            ("GET", "/v1/nothing", "404", "NotFound"),
            ("GET", "/v1/routes?table=teapot", "400", "BadRequest"),
            ("GET", "/v1/routes?best=perhaps", "400", "BadRequest"),
            ("GET", "/v1/routes?table=in", "400", "BadRequest"),
            ("GET", "/v1/routes/get", "400", "BadRequest"),
            ("GET", "/v1/routes/get?ip=x", "400", "BadRequest"),
            ("GET", "/v1/routes/why?prefix=x", "400", "BadRequest"),
            ("GET", "/v1/peers/%ff", "400", "BadRequest"),
            ("GET", "/v1/peers/nobody", "404", "NotFound"),
            ("GET", "/v1/policy/for", "400", "BadRequest"),
            ("POST", "/v1/status", "405", "BadRequest"),
            ("DELETE", "/v1/peers/tor", "405", "BadRequest"),
        ] {
            let (line, body) = node.ask(socket, method, path);
            assert!(line.contains(status), "{method} {path}: {line} {body}");
            let body: Value =
                serde_json::from_str(&body).unwrap_or_else(|e| panic!("{method} {path}: {e}: {body:?}"));
            is(&body, "Error");
            assert_eq!(body["code"], code, "{method} {path}");
            assert!(!body["message"].as_str().unwrap().is_empty());
        }
    }
}

#[test]
fn metrics_are_openmetrics_and_count_what_is_there() {
    let (node, _tor, _bird, _agent) = full();
    let (line, text) = node.http("/metrics").unwrap();
    assert!(line.contains("200"), "{line}");
    assert!(text.trim_end().ends_with("# EOF"), "{text}");
    for sample in [
        "manx_bgp_session_up{peer=\"tor\",asn=\"65001\"} 1",
        "manx_bgp_session_up{peer=\"dead\",asn=\"65001\"} 0",
        "manx_bgp_prefixes{peer=\"tor\",family=\"ipv4\",stage=\"accepted\"} 1",
        "manx_fib_routes{state=\"installed\"} 3",
        "manx_fib_repairs_total 0",
        "manx_bgp_session_transitions_total{peer=\"tor\",to=\"Established\",reason=\"none\"} 1",
        "manx_bgp_messages_total{peer=\"tor\",direction=\"received\",type=\"open\"} 1",
        "manx_bgp_messages_total{peer=\"dead\",direction=\"sent\",type=\"open\"} 0",
        "manx_bgp_loc_rib_prefixes{family=\"ipv6\"} 1",
        "manx_node_drained 0",
        "manx_policy_endpoints 1",
        "manx_policy_endpoints_in_force 1",
        "manx_config_stale 0",
    ] {
        assert!(text.contains(sample), "{sample} is not in:\n{text}");
    }
    assert!(!text.contains("10.200.7.0"), "no label holds a prefix");
    assert!(node.http("/livez").unwrap().0.contains("200"));
}

#[test]
fn promtool_finds_no_fault_with_the_metrics() {
    let (node, _tor, _bird, _agent) = full();
    // A NOTIFICATION, a flap and a repair, so that there is something of everything.
    assert_eq!(node.manxctl(&["peer", "reset", "tor"]).code, 0);
    eventually("down and up", || {
        node.peer("tor")["flaps"] == 1 && node.peer("tor")["state"] == "Established"
    });
    eventually("learned", || node.net.route("10.200.7.0/24").is_some());
    node.net.ip("route del 10.200.7.0/24 proto 77");
    eventually("repaired", || node.net.route("10.200.7.0/24").is_some());
    let text = node.scrape_as("text/plain");
    for sample in [
        "# TYPE manx_bgp_notifications_total counter",
        "manx_bgp_notifications_total{direction=\"sent\",code=\"6\",subcode=\"4\"} 1",
        "manx_bgp_session_transitions_total{peer=\"tor\",to=\"Idle\",reason=\"admin-reset\"} 1",
        "# TYPE manx_bgp_session_up gauge",
    ] {
        assert!(text.contains(sample), "{sample} is not in:\n{text}");
    }
    for line in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
        let counter = line.ends_with(" counter");
        let (name, _) = line.split_once(' ').unwrap();
        assert_eq!(name.ends_with("_total"), counter, "{line}");
    }
    // Debian's package prometheus has it; where it is not installed, the format was looked at above all the same.
    let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
    else {
        return;
    };
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && words.trim().is_empty(), "{words}");
}

#[test]
fn idle_and_half_said_connections_keep_nobody_waiting() {
    let node = Node::alone();
    let _agent = node.start();
    let sockets: Vec<_> = (0..50)
        .flat_map(|_| {
            ["ro.sock", "cni.sock"]
                .map(|s| std::os::unix::net::UnixStream::connect(node.run_dir().join(s)).unwrap())
        })
        .collect();
    assert_eq!(node.json(&["status"])["source"]["inSync"], true);
    drop(sockets);
}

#[test]
fn an_agent_out_of_descriptors_recovers() {
    let node = Node::alone();
    let mut command = Command::new("prlimit");
    let agent_command = node.agent_command();
    command.arg("--nofile=64:64").arg(agent_command.get_program()).args(agent_command.get_args());
    let mut agent = node.spawn(&mut command);
    node.settled();
    let hold: Vec<_> = (0..80)
        .flat_map(|_| {
            ["cni.sock", "ro.sock"].map(|s| std::os::unix::net::UnixStream::connect(node.run_dir().join(s)))
        })
        .collect();
    eventually("it has none left", || agent.descriptors() >= 63);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(agent.alive(), "{}", node.log());
    drop(hold);
    eventually("it answers again", || node.try_json(&["status"]).is_some());
    assert!(agent.alive(), "{}", node.log());
}
