//! Nodes that find each other by what the API says: the mesh, reflectors by label, an AS of a node's own. Real agents on one
//! wire, each in a namespace, all reading the same test API server. Needs root.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use manx_tests::agent::{Agent, built_binaries};
use manx_tests::apiserver::{ApiServer, Extra};
use manx_tests::netns::{Guard, Netns};
use manx_tests::observe;
use manx_tests::process::Process;
use manx_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const NODES: u8 = 4;
const REFLECTOR: (&str, &str) = ("example.org/reflector", "yes");

/// Four nodes on one wire, `n1` to `n4`, at 10.88.0.1 and so on.
struct Site {
    server: Arc<ApiServer>,
    agents: BTreeMap<u8, Agent>,
    processes: BTreeMap<u8, Process>,
    _listeners: Vec<Extra>,
    _files: tempfile::TempDir,
    _guard: Guard,
}

impl Site {
    /// None of the agents runs yet.
    fn new(name: &str) -> Self {
        let prefix = format!("{name}{}-", std::process::id());
        let guard = Guard::new(&prefix).unwrap();
        let files = tempfile::tempdir().unwrap();
        let server = Arc::new(ApiServer::start().unwrap());
        let wire = Netns::create(&format!("{prefix}wire")).unwrap();
        wire.ip("link add br0 type bridge").unwrap();
        wire.ip("link set br0 up").unwrap();
        let (mut agents, mut listeners) = (BTreeMap::new(), Vec::new());
        for number in 1..=NODES {
            server.set(node(number, &[], &[]));
            let netns = Netns::create(&format!("{prefix}n{number}")).unwrap();
            netns.sysctl("net.ipv4.ip_forward", "1").unwrap();
            netns.ip(&format!("link add eth0 type veth peer name p{number} netns {}", wire.name())).unwrap();
            wire.ip(&format!("link set p{number} master br0 up")).unwrap();
            netns.ip(&format!("addr add 10.88.0.{number}/24 dev eth0")).unwrap();
            netns.ip("link set eth0 up").unwrap();
            let listener = netns.enter(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
            let dir = files.path().join(format!("n{number}"));
            std::fs::create_dir(&dir).unwrap();
            let kubeconfig = dir.join("kubeconfig");
            let url = format!("http://{}", listener.local_addr().unwrap());
            ApiServer::write_kubeconfig_for(&url, &kubeconfig, None).unwrap();
            listeners.push(server.serve_also(listener).unwrap());
            let agent = Agent {
                node: format!("n{number}"),
                netns,
                bin_dir: built_binaries(),
                manifests: kubeconfig,
                cni_bin_dir: dir.join("bin"),
                dir,
                extra: ["--enable", "bgp"].map(str::to_owned).into(),
            };
            agents.insert(number, agent);
        }
        let processes = BTreeMap::new();
        Site { server, agents, processes, _listeners: listeners, _files: files, _guard: guard }
    }

    fn start(&mut self, node: u8) {
        self.processes.insert(node, self.agents[&node].start().unwrap());
    }

    /// A condition of a Node.
    fn condition(&self, node: u8, kind: &str) -> Option<Value> {
        let node = self.server.get("v1", "Node", "", &format!("n{node}"))?;
        node["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind).cloned()
    }

    fn peers(&self, node: u8) -> Vec<Value> {
        let answer = self.agents[&node].ask("/v1/peers").map(|(_, answer)| answer).unwrap_or_default();
        answer["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until a node has these peers and no other, all of them Established.
    fn has_peers(&self, node: u8, expected: &[&str]) {
        self.eventually(&format!("n{node} has {expected:?}"), || {
            let peers = self.peers(node);
            let mut names: Vec<_> = peers.iter().map(|p| p["name"].as_str().unwrap_or_default()).collect();
            names.sort_unstable();
            let up = peers.iter().all(|p| p["state"] == "Established");
            if names == expected && up { Ok(()) } else { Err(format!("{peers:?}")) }
        });
    }

    /// Waits until the kernel of a node leads to the pods of another one by that node itself.
    fn leads(&self, from: u8, to: u8) {
        self.leads_by(from, to, to);
    }

    fn leads_by(&self, from: u8, to: u8, via: u8) {
        let (prefix, via) = (format!("10.244.{to}.0/24").parse().unwrap(), format!("10.88.0.{via}"));
        self.eventually(&format!("n{from} reaches {prefix} via {via}"), || {
            let routes = observe::routes(&self.agents[&from].netns).map_err(|e| e.to_string())?;
            let route = routes.get(&prefix).ok_or_else(|| format!("{:?}", routes.keys()))?;
            if route.via == [via.as_str()] { Ok(()) } else { Err(format!("{route:?}")) }
        });
    }

    fn eventually(&self, what: &str, look: impl FnMut() -> Result<(), String>) {
        if let Err(last) = wait::until(PATIENCE, look) {
            let logs: Vec<_> =
                self.agents.values().map(|a| std::fs::read_to_string(a.log()).unwrap_or_default()).collect();
            panic!("not within {PATIENCE:?}: {what}: {last}\n{}", logs.join("\n"));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for process in self.processes.values() {
            let _ = process.end(Signal::SIGKILL);
        }
    }
}

fn node(number: u8, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Value {
    let map = |pairs: &[(&str, &str)]| -> Value {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect()
    };
    json!({"apiVersion": "v1", "kind": "Node",
           "metadata": {"name": format!("n{number}"), "labels": map(labels), "annotations": map(annotations)},
           "spec": {"podCIDRs": [format!("10.244.{number}.0/24")]},
           "status": {"addresses": [{"type": "InternalIP", "address": format!("10.88.0.{number}")}]}})
}

fn reflectors(export: &[&str]) -> Value {
    json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer", "metadata": {"name": "rr"},
           "spec": {"peerSelector": {"matchLabels": {REFLECTOR.0: REFLECTOR.1}}, "routeReflectorClient": true,
                    "exportFilters": export}})
}

#[test]
fn kernel_a_mesh_becomes_reflectors_by_label_and_the_label_moves() {
    let mut site = Site::new("mxkn");
    (1..=NODES).for_each(|node| site.start(node));
    // No BGPPeer: everybody has everybody, and of each two one dials.
    site.has_peers(1, &["n2", "n3", "n4"]);
    site.has_peers(4, &["n1", "n2", "n3"]);
    for (from, to) in [(1, 4), (4, 1), (2, 3)] {
        site.leads(from, to);
    }

    // n1 reflects.
    site.server.set(node(1, &[REFLECTOR], &[]));
    site.server.set(reflectors(&[]));
    site.has_peers(1, &["rr@n2", "rr@n3", "rr@n4"]);
    for number in 2..=NODES {
        site.has_peers(number, &["rr@n1"]);
    }
    // What it reflects leads to the node itself, not to the reflector.
    for (from, to) in [(2, 3), (3, 2), (4, 1), (4, 3)] {
        site.leads(from, to);
    }

    // The label moves to n2.
    site.server.set(node(2, &[REFLECTOR], &[]));
    site.has_peers(3, &["rr@n1", "rr@n2"]);
    site.server.set(node(1, &[], &[]));
    for number in [1, 3, 4] {
        site.has_peers(number, &["rr@n2"]);
    }
    site.has_peers(2, &["rr@n1", "rr@n3", "rr@n4"]);
    for (from, to) in [(1, 3), (3, 1), (4, 1), (3, 4)] {
        site.leads(from, to);
    }

    // A node with an AS of its own has the reflector as external peer, which is then the way to it (nextHop: Self); that its
    // routes are passed on has to be said.
    site.server
        .set(json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPFilter", "metadata": {"name": "pods"},
        "spec": {"ipv4": [{"cidr": "10.244.0.0/16", "ge": 24, "le": 24, "action": "Accept"}]}}));
    site.server.set(reflectors(&["pods"]));
    site.server.set(node(4, &[], &[("manx.dev/asn", "65104")]));
    site.eventually("n4 speaks for AS 65104", || {
        let peers = site.peers(4);
        let found = peers.iter().any(|p| {
            p["name"] == "rr@n2"
                && p["localAs"] == 65104
                && p["remoteAs"] == 64512
                && p["state"] == "Established"
        });
        if found { Ok(()) } else { Err(format!("{peers:?}")) }
    });
    site.leads_by(3, 4, 2);

    // The cluster hears of it: the node's own state, and Events on the BGPPeer.
    site.eventually("n3's state names its reflector", || {
        let state = site.server.get("manx.dev/v1alpha1", "BGPNodeState", "", "n3").unwrap_or_default();
        let peer = &state["status"]["peers"][0];
        let right = peer["name"] == "rr@n2" && peer["state"] == "Established";
        if right { Ok(()) } else { Err(state.to_string()) }
    });
    let uid = site.server.get("manx.dev/v1alpha1", "BGPPeer", "", "rr").unwrap()["metadata"]["uid"].clone();
    let events = site.server.all("v1", "Event");
    let told = |e: &Value| {
        e["reason"] == "SessionEstablished"
            && e["involvedObject"]["name"] == "rr"
            && e["involvedObject"]["uid"] == uid
    };
    assert!(events.iter().any(told), "{events:?}");
}

#[test]
fn kernel_the_network_is_said_to_be_there_once_pods_their_policy_and_a_required_peer_are() {
    let mut site = Site::new("mxka");
    let label = |number: u8| format!("n{number}");
    for (number, other) in [(1, 2), (2, 1)] {
        site.server.set(node(number, &[("example.org/node", &label(number))], &[]));
        site.server.set(json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer", "metadata": {"name": format!("to-n{other}")},
            "spec": {"nodeSelector": {"matchLabels": {"example.org/node": label(number)}},
                     "peerIP": format!("10.88.0.{other}"), "remoteAS": "Internal", "connectRetry": "1s"}}));
    }
    let n1 = site.agents.get_mut(&1).unwrap();
    n1.extra = Vec::new();
    std::fs::create_dir(&n1.cni_bin_dir).unwrap();
    std::fs::copy(n1.bin_dir.join("manx-cni"), n1.cni_bin_dir.join("manx")).unwrap();
    site.start(1);
    site.eventually("nothing is missing but the peer", || {
        let checks = site.agents[&1].ready().expect_err("its peer does not run").to_string();
        let (ok, not) = (r#""ok":true"#, r#""ok":false"#);
        let all = [("source", ok), ("policy", ok), ("cni", ok), ("peers", not)];
        let found = all.iter().all(|(check, result)| checks.contains(&format!("\"{check}\":{{{result}")));
        if found { Ok(()) } else { Err(checks) }
    });
    site.eventually("its agent has had its chance to write", || {
        let state = site.server.get("manx.dev/v1alpha1", "BGPNodeState", "", "n1").unwrap_or_default();
        if state["status"]["drain"] == "Serving" { Ok(()) } else { Err(state.to_string()) }
    });
    assert!(site.agents[&1].cni_conf_dir().join("10-manx.conflist").exists());
    assert_eq!(site.condition(1, "NetworkUnavailable"), None);

    site.start(2);
    site.eventually("n1's network is there", || match site.condition(1, "NetworkUnavailable") {
        Some(condition) if condition["status"] == "False" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // One that attaches no pods says nothing of their network.
    site.has_peers(2, &["to-n1"]);
    assert_eq!(site.condition(2, "NetworkUnavailable"), None);
}
