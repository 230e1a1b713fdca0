//! What the holder of the Lease writes into the status of objects: whether this version does what they say, and how many
//! nodes have a peer.
//!
//! Pure: objects as the server has them in, patches out. An object whose status is right already is left alone.

use std::collections::HashMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::node_state::condition;
use crate::crd::status::{ACCEPTED, Condition, NodeStateStatus};
use crate::source::Kind;
use crate::source::kube::judge;
use crate::source::kube::kinds::{WATCHED, Watched, What};
use crate::view::EpochSeconds;

/// Kinds whose objects get a status, with the group, version and plural name of their resource.
pub(super) const JUDGED: &[(Kind, &str, &str)] = &[
    (Kind::BgpPeer, "manx.dev/v1alpha1", "bgppeers"),
    (Kind::BgpFilter, "manx.dev/v1alpha1", "bgpfilters"),
    (Kind::BgpConfiguration, "manx.dev/v1alpha1", "bgpconfigurations"),
    (Kind::NetworkConfiguration, "manx.dev/v1alpha1", "networkconfigurations"),
    (Kind::ClusterNetworkPolicy, "policy.networking.k8s.io/v1alpha2", "clusternetworkpolicies"),
];

/// Calico's kinds that are read for BGP, with the plural names of their resources. They have no status: Events tell.
pub(super) const FOREIGN: &[(Kind, &str)] = &[
    (Kind::CalicoBgpPeer, "bgppeers"),
    (Kind::CalicoBgpFilter, "bgpfilters"),
    (Kind::CalicoBgpConfiguration, "bgpconfigurations"),
];

/// The paths under which a policy may be, by what a problem calls it (`Calico NetworkPolicy shop/web`); none for another
/// object.
pub(super) fn paths(object: &str) -> Vec<String> {
    let Some((kind, id)) = object.rsplit_once(' ') else { return Vec::new() };
    let known = WATCHED.iter().find(|watched| match watched.what {
        What::Objects(known) => known.is_policy() && known.as_str() == kind,
        What::Definitions => false,
    });
    let Some(Watched { apis, plural, .. }) = known else { return Vec::new() };
    let place = match id.split_once('/') {
        Some((namespace, name)) => format!("namespaces/{namespace}/{plural}/{name}"),
        None => format!("{plural}/{id}"),
    };
    apis.iter().map(|(group, version)| format!("/apis/{group}/{version}/{place}")).collect()
}

/// How many nodes have a peer, and how many of them an Established session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    nodes: i64,
    established: i64,
}

/// Peers of all nodes, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(HashMap<String, Count>);

impl Counts {
    /// Takes a node's BGPNodeState.
    pub(super) fn add(&mut self, state: &NodeStateStatus) {
        let mut here: HashMap<&str, bool> = HashMap::new();
        for peer in &state.peers {
            // Peers that came from a range bear its name in front of their address.
            let name = peer.name.split('@').next().unwrap_or_default();
            *here.entry(name).or_default() |= peer.state == "Established";
        }
        for (name, up) in here {
            let count = self.0.entry(name.to_owned()).or_default();
            count.nodes += 1;
            count.established += i64::from(up);
        }
    }
}

/// The patch that makes an object's status right; `None`: it is.
pub(super) fn patch(kind: Kind, object: &Value, counts: &Counts, now: EpochSeconds) -> Option<Value> {
    let (ok, reason, message) = match judge(kind, object) {
        Ok(notes) if notes.is_empty() => (true, "Accepted", "everything that it says is done".to_owned()),
        Ok(notes) => (false, "PartlySupported", notes.join("; ")),
        Err(faults) => (false, "Invalid", faults.join("; ")),
    };
    let generation = object["metadata"]["generation"].as_i64();
    let old: Vec<Condition> =
        serde_json::from_value(object["status"]["conditions"].clone()).unwrap_or_default();
    let before = old.iter().find(|c| c.kind == ACCEPTED);
    let new = condition(ACCEPTED, ok, reason, message, generation, before, now);
    let mut status = json!({});
    if before != Some(&new) {
        // A list is replaced as a whole: conditions of others stay in it.
        let others = old.iter().filter(|c| c.kind != ACCEPTED).cloned();
        status["conditions"] = json!(others.chain([new]).collect::<Vec<_>>());
    }
    if kind == Kind::BgpPeer {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let count = counts.0.get(name).copied().unwrap_or_default();
        for (field, number) in [("nodes", count.nodes), ("established", count.established)] {
            if object["status"][field].as_i64() != Some(number) {
                status[field] = json!(number);
            }
        }
    }
    let nothing = status.as_object().is_none_or(serde_json::Map::is_empty);
    (!nothing).then(|| json!({ "status": status }))
}

/// What of another network's object is not done; `None`: all of it is.
pub(super) fn not_done(kind: Kind, object: &Value) -> Option<String> {
    let notes = judge(kind, object).unwrap_or_else(|faults| faults);
    (!notes.is_empty()).then(|| notes.join("; "))
}

/// The Event that warns about an object. The same thing has the same name, whoever holds the Lease, so that it is said
/// once. Events on cluster-scoped objects live in namespace `default`.
pub(super) fn event(object: &Value, reason: &str, message: &str, at: &str) -> Value {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let namespace = object["metadata"]["namespace"].as_str();
    let uid = &object["metadata"]["uid"];
    let digest = Sha256::digest(format!("{} {uid} {message}", object["kind"]));
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    // Names end at 253 characters, messages at 1,024.
    let start: String = name.chars().take(253 - 1 - digest.len()).collect();
    let message: String = message.chars().take(1024).collect();
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": format!("{start}.{digest}"), "namespace": namespace.unwrap_or("default")},
        "involvedObject": {"apiVersion": object["apiVersion"], "kind": object["kind"], "namespace": namespace,
                           "name": name, "uid": uid},
        "reason": reason, "message": message, "type": "Warning", "count": 1,
        "firstTimestamp": at, "lastTimestamp": at,
        "source": {"component": "manx-agent"}, "reportingComponent": "manx.dev/agent",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::status::NodePeer;

    fn peer(spec: &Value) -> Value {
        json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer",
               "metadata": {"name": "tor-a", "generation": 3, "managedFields": []}, "spec": spec})
    }

    fn good() -> Value {
        peer(&json!({"peerIP": "192.0.2.1", "asNumber": 65001}))
    }

    #[test]
    fn a_good_object_is_accepted_once() {
        let mut object = good();
        let patch = super::patch(Kind::BgpPeer, &object, &Counts::default(), 0).unwrap();
        let condition = &patch["status"]["conditions"][0];
        assert_eq!((&condition["type"], &condition["status"]), (&json!("Accepted"), &json!("True")));
        assert_eq!(condition["observedGeneration"], json!(3));
        object["status"] = patch["status"].clone();
        assert_eq!(super::patch(Kind::BgpPeer, &object, &Counts::default(), 99), None);
    }

    #[test]
    fn a_bad_object_is_told_why_and_conditions_of_others_stay() {
        let mut object = peer(&json!({"peerIP": "nonsense", "asNumber": 65001}));
        object["status"]["conditions"] = json!([{"type": "Other", "status": "True", "reason": "X", "message": "",
                                                 "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let patch = super::patch(Kind::BgpPeer, &object, &Counts::default(), 0).unwrap();
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 2);
        assert_eq!(
            (&conditions[1]["status"], &conditions[1]["reason"]),
            (&json!("False"), &json!("Invalid"))
        );
        assert!(conditions[1]["message"].as_str().unwrap().contains("spec.peerIP"), "{conditions:?}");
    }

    #[test]
    fn what_calico_says_and_nobody_does_is_an_event_of_one_name() {
        let theirs = |spec: Value| {
            json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BGPPeer",
                                           "metadata": {"name": "tor-a", "uid": "u-1"}, "spec": spec})
        };
        let good = theirs(json!({"peerIP": "192.0.2.1", "asNumber": 65001}));
        assert_eq!(not_done(Kind::CalicoBgpPeer, &good), None);
        let more = theirs(json!({"peerIP": "192.0.2.1", "asNumber": 65001, "maxRestartTime": "1s"}));
        let message = not_done(Kind::CalicoBgpPeer, &more).unwrap();
        assert_eq!(message, "spec.maxRestartTime: has no equal here and is left out");
        let event = |message: &str, at: &str| super::event(&more, "NotSupported", message, at);
        let first = event(&message, "2026-01-01T00:00:00Z");
        assert_eq!(first["involvedObject"]["apiVersion"], "crd.projectcalico.org/v1");
        assert_eq!(first["metadata"]["namespace"], "default");
        assert_eq!(first["metadata"]["name"], event(&message, "later")["metadata"]["name"]);
        assert_ne!(first["metadata"]["name"], event("another", "")["metadata"]["name"]);
    }

    #[test]
    fn a_policy_is_found_by_what_a_problem_calls_it() {
        assert_eq!(
            paths("NetworkPolicy shop/web"),
            ["/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/web"]
        );
        assert_eq!(
            paths("Calico GlobalNetworkPolicy all"),
            ["crd.projectcalico.org/v1", "projectcalico.org/v3"]
                .map(|api| format!("/apis/{api}/globalnetworkpolicies/all"))
        );
        assert_eq!(paths("Node n1"), Vec::<String>::new());
    }

    #[test]
    fn nodes_and_sessions_of_a_peer_are_counted_by_node() {
        let mut counts = Counts::default();
        let state = |states: &[(&str, &str)]| NodeStateStatus {
            peers: states
                .iter()
                .map(|(name, state)| NodePeer {
                    name: (*name).into(),
                    state: (*state).into(),
                    ..NodePeer::default()
                })
                .collect(),
            ..NodeStateStatus::default()
        };
        counts.add(&state(&[("tor-a", "Established"), ("tor-a", "Idle")]));
        counts.add(&state(&[("tor-a@192.0.2.7", "Connect"), ("other", "Established")]));
        let patch = super::patch(Kind::BgpPeer, &good(), &counts, 0).unwrap();
        assert_eq!((&patch["status"]["nodes"], &patch["status"]["established"]), (&json!(2), &json!(1)));
    }
}
