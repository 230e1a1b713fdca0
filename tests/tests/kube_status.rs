//! What agents write to the API: their node's condition and state, Events, and the status of cluster-wide objects by one
//! of them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use manx_agent::source::kube::{self, Access, Api};
use manx_agent::status::lease::{self, NAME};
use manx_agent::status::node_state::NodeNow;
use manx_agent::status::{self, Settings, Timing};
use manx_agent::view::PeerRow;
use manx_tests::apiserver::ApiServer;
use manx_tests::wait;
use serde_json::{Value, json};
use tempfile::TempDir;

/// For anything to happen, on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(30);

const TIMING: Timing = Timing {
    look: Duration::from_millis(50),
    judge: Duration::from_millis(100),
    lease: lease::Timing {
        duration: Duration::from_secs(2),
        renew: Duration::from_millis(200),
        look: Duration::from_millis(200),
    },
};

/// An agent as far as it writes; gone when dropped.
struct Agent {
    node: Arc<Mutex<NodeNow>>,
    runtime: Option<tokio::runtime::Runtime>,
    _files: TempDir,
}

impl Agent {
    fn start(server: &ApiServer, name: &str) -> Self {
        let files = TempDir::new().unwrap();
        let file = files.path().join("kubeconfig");
        server.write_kubeconfig(&file, None).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let api = runtime.block_on(Api::new(Access::Kubeconfig(file))).unwrap();
        let node = Arc::new(Mutex::new(NodeNow {
            drain: "Serving".into(),
            network_missing: Some("no required peer is Established".into()),
            ..NodeNow::default()
        }));
        let settings =
            Settings { node: name.into(), namespace: "manx-system".into(), cni: true, timing: TIMING };
        let shown = node.clone();
        runtime.spawn(status::run(Arc::new(api), settings, move || {
            let now = shown.lock().unwrap().clone();
            async move { Some(now) }
        }));
        Agent { node, runtime: Some(runtime), _files: files }
    }

    fn is_now(&self, change: impl FnOnce(&mut NodeNow)) {
        change(&mut self.node.lock().unwrap());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    wait::until(LIMIT, || look().ok_or(what)).expect("it comes").0
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
           "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
}

fn peer(state: &str) -> PeerRow {
    PeerRow {
        node: "n1".into(),
        name: "tor-a".into(),
        address: "192.0.2.9".into(),
        state: state.into(),
        ..PeerRow::default()
    }
}

fn bgp_peer(name: &str, address: &str) -> Value {
    json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer", "metadata": {"name": name, "generation": 2},
           "spec": {"peerIP": address, "asNumber": 65001}})
}

fn conditions(server: &ApiServer, name: &str) -> Vec<Value> {
    let node = server.get("v1", "Node", "", name).unwrap();
    node["status"]["conditions"].as_array().cloned().unwrap_or_default()
}

fn holder(server: &ApiServer) -> Option<String> {
    let lease = server.get("coordination.k8s.io/v1", "Lease", "manx-system", NAME)?;
    Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())
}

#[test]
fn the_network_is_available_only_once_nothing_is_missing_and_stays_so() {
    let server = ApiServer::start().unwrap();
    server.set(node("n1"));
    let agent = Agent::start(&server, "n1");
    // Its state is written, so that it had its chance.
    until("a state", || server.get("manx.dev/v1alpha1", "BGPNodeState", "", "n1"));
    assert_eq!(conditions(&server, "n1").len(), 1);
    agent.is_now(|node| node.network_missing = None);
    until("the condition", || {
        let all = conditions(&server, "n1");
        all.iter().find(|c| c["type"] == "NetworkUnavailable" && c["status"] == "False").cloned()
    });
    assert_eq!(conditions(&server, "n1").len(), 2, "the kubelet's own conditions stay");
}

#[test]
fn a_node_writes_its_state_and_events_on_its_transitions() {
    let server = ApiServer::start().unwrap();
    server.set(node("n1"));
    let agent = Agent::start(&server, "n1");
    let state = || server.get("manx.dev/v1alpha1", "BGPNodeState", "", "n1");
    let first = until("a state", || state().filter(|s| !s["status"].is_null()));
    let owner = &first["metadata"]["ownerReferences"][0];
    let uid = server.get("v1", "Node", "", "n1").unwrap()["metadata"]["uid"].clone();
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Node"), &uid));
    server.set(bgp_peer("tor-a", "192.0.2.9"));
    let written = Instant::now();
    agent.is_now(|node| {
        node.asn = Some(65001);
        node.declared = ["tor-a".to_owned()].into();
        node.peers = vec![peer("Established")];
    });
    let event = until("an Event", || server.all("v1", "Event").pop());
    assert_eq!(
        (&event["reason"], &event["involvedObject"]["name"]),
        (&json!("SessionEstablished"), &json!("tor-a"))
    );
    let uid = server.get("manx.dev/v1alpha1", "BGPPeer", "", "tor-a").unwrap()["metadata"]["uid"].clone();
    assert_eq!(event["involvedObject"]["uid"], uid, "kubectl describe finds Events by the object's uid");
    let second = until("the next state", || state().filter(|s| s["status"]["asNumber"] == json!(65001)));
    assert!(written.elapsed() > Duration::from_secs(5), "ten seconds lie between writes");
    assert_eq!(second["status"]["establishedCount"], json!(1));
    assert_eq!(second["status"]["peers"][0]["name"], json!("tor-a"));
}

#[test]
fn one_of_two_agents_writes_cluster_wide_status_and_the_other_takes_over_when_it_goes() {
    let server = ApiServer::start().unwrap();
    for object in [node("n1"), node("n2"), bgp_peer("good", "192.0.2.1"), bgp_peer("bad", "nonsense")] {
        server.set(object);
    }
    server.set(json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPNodeState", "metadata": {"name": "n9"},
        "status": {"peers": [{"name": "good", "address": "192.0.2.1", "state": "Established", "flaps": 0}]}}));
    let mut agents = vec![("n1", Agent::start(&server, "n1")), ("n2", Agent::start(&server, "n2"))];
    let peer = |name: &str| server.get("manx.dev/v1alpha1", "BGPPeer", "", name).unwrap();
    let accepted = |name: &str| peer(name)["status"]["conditions"][0]["status"].clone();
    until("the verdicts", || (accepted("good") == "True" && accepted("bad") == "False").then_some(()));
    assert_eq!(
        (&peer("good")["status"]["nodes"], &peer("good")["status"]["established"]),
        (&json!(1), &json!(1))
    );
    assert!(peer("bad")["status"]["conditions"][0]["message"].as_str().unwrap().contains("peerIP"));

    // Nothing changes, so that nothing more is written, by either of them.
    let patches = server.requests("PATCH", "/apis/manx.dev/v1alpha1/bgppeers");
    let first = holder(&server).unwrap();
    let renewed = server.requests("PUT", "/apis/coordination.k8s.io");
    until("renewals", || (server.requests("PUT", "/apis/coordination.k8s.io") > renewed + 5).then_some(()));
    assert_eq!(server.requests("PATCH", "/apis/manx.dev/v1alpha1/bgppeers"), patches);
    assert_eq!(holder(&server), Some(first.clone()), "the holder stays");

    // It dies without a word.
    agents.retain(|(name, _)| *name != first);
    until("another holder", || holder(&server).filter(|now| *now != first));
    server.set(bgp_peer("late", "192.0.2.2"));
    until("its verdict", || (accepted("late") == "True").then_some(()));
    let lease = server.get("coordination.k8s.io/v1", "Lease", "manx-system", NAME).unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], json!(1));
}

#[test]
fn what_others_objects_say_in_vain_is_an_event_on_them_told_once_whoever_holds_the_lease() {
    let server = ApiServer::start().unwrap();
    for object in [node("n1"), node("n2")] {
        server.set(object);
    }
    server.set(
        json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BGPPeer", "metadata": {"name": "theirs"},
        "spec": {"peerIP": "192.0.2.9", "asNumber": 65001, "maxRestartTime": "60s"}}),
    );
    let agent = Agent::start(&server, "n1");
    let told = || -> Vec<Value> {
        server.all("v1", "Event").into_iter().filter(|e| e["reason"] == "NotSupported").collect()
    };
    let event = until("an Event", || told().pop());
    let object = &event["involvedObject"];
    assert_eq!(
        (&object["apiVersion"], &object["kind"], &object["name"], &event["type"]),
        (&json!("crd.projectcalico.org/v1"), &json!("BGPPeer"), &json!("theirs"), &json!("Warning"))
    );
    assert_eq!(event["message"], "spec.maxRestartTime: has no equal here and is left out");
    // A node tells of its own annotations, also of those that were there before its agent.
    agent.is_now(|node| node.not_done = ["annotation kube-router.io/rr.client".to_owned()].into());
    until("the node's Event", || {
        told()
            .into_iter()
            .find(|e| e["involvedObject"]["kind"] == "Node" && e["involvedObject"]["name"] == "n1")
    });
    let all = told().len();

    drop(agent);
    let posts = server.requests("POST", "/api/v1/namespaces/default/events");
    let _other = Agent::start(&server, "n2");
    until("another holder", || holder(&server).filter(|now| now == "n2"));
    until("its own attempt", || {
        (server.requests("POST", "/api/v1/namespaces/default/events") > posts).then_some(())
    });
    assert_eq!(told().len(), all, "the same thing has the same name");
}

#[test]
fn a_policy_that_cannot_be_understood_is_an_event_on_it_and_a_condition_where_its_kind_has_one() {
    let server = ApiServer::start().unwrap();
    server.set(node("n1"));
    server.set(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": {"podSelector": {},
        "ingress": [{"ports": [{"port": 80, "endPort": 70}]}]}}));
    server.set(json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "wall", "generation": 3}, "spec": {"tier": "Admin", "priority": 1001,
        "subject": {"namespaces": {}}, "egress": [{"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]}]}}));
    server.set(json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "theirs"}, "spec": {"selector": "role ="}}));
    let agent = Agent::start(&server, "n1");
    let reasons = [
        ("NetworkPolicy shop/web", "shop", "spec.ingress[0].ports[0].endPort: below port"),
        ("ClusterNetworkPolicy wall", "default", "spec.priority: 1001 is none"),
        ("Calico GlobalNetworkPolicy theirs", "default", "spec.selector: no value"),
    ];
    agent.is_now(|node| {
        node.misunderstood = reasons.map(|(object, _, reason)| (object.to_owned(), reason.to_owned())).into();
    });
    for (object, namespace, reason) in reasons {
        let event = until(object, || {
            let mut events = server.all("v1", "Event").into_iter();
            events.find(|e| e["reason"] == "NotUnderstood" && e["message"] == reason)
        });
        let about = &event["involvedObject"];
        let id = [&about["namespace"], &about["name"]].map(|word| word.as_str().unwrap_or_default());
        assert!(object.ends_with(id.join("/").trim_start_matches('/')), "{event}");
        assert!(object.contains(about["kind"].as_str().unwrap()), "{event}");
        assert_eq!((&event["metadata"]["namespace"], &event["type"]), (&json!(namespace), &json!("Warning")));
    }
    let condition = until("its condition", || {
        let policy =
            server.get("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", "", "wall").unwrap();
        policy["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Accepted").cloned()
    });
    assert_eq!((&condition["status"], &condition["observedGeneration"]), (&json!("False"), &json!(3)));
    assert!(condition["message"].as_str().unwrap().contains("spec.priority: 1001 is none"), "{condition}");
}

#[test]
fn a_server_that_refuses_is_tried_again() {
    let mut server = ApiServer::start().unwrap();
    server.set(node("n1"));
    server.refuse(6, 500, None);
    let agent = Agent::start(&server, "n1");
    agent.is_now(|node| node.network_missing = None);
    server.stop();
    server.come_back(None).unwrap();
    until("the condition", || {
        conditions(&server, "n1").into_iter().find(|c| c["type"] == "NetworkUnavailable")
    });
}

/// The rights that manifests give are made from this table: what is used must stand in it.
#[test]
fn what_agents_write_stands_in_the_table() {
    let server = ApiServer::start().unwrap();
    for object in [node("n1"), bgp_peer("good", "192.0.2.1")] {
        server.set(object);
    }
    let agent = Agent::start(&server, "n1");
    agent.is_now(|node| {
        node.network_missing = None;
        node.peers = vec![peer("Connect")];
    });
    until("the lease", || holder(&server));
    until("the verdict", || {
        let peer = server.get("manx.dev/v1alpha1", "BGPPeer", "", "good").unwrap();
        (!peer["status"]["conditions"].is_null()).then_some(())
    });
    until("the condition", || (conditions(&server, "n1").len() == 2).then_some(()));
    agent.is_now(|node| node.peers = vec![peer("Established")]);
    until("an Event", || server.all("v1", "Event").pop());
    for (method, verb) in [("POST", "create"), ("PUT", "update"), ("PATCH", "patch")] {
        for path in server.paths(method) {
            let allowed = kube::kinds::WRITTEN.iter().any(|written| {
                let (plural, sub) = written.resource.split_once('/').unwrap_or((written.resource, ""));
                let group = if written.group.is_empty() {
                    "/api/".to_owned()
                } else {
                    format!("/{}/", written.group)
                };
                path.contains(&group)
                    && path.split('/').any(|part| part == plural)
                    && path.ends_with("/status") == (sub == "status")
                    && written.verbs.contains(&verb)
            });
            assert!(allowed, "{method} {path}");
        }
    }
}
