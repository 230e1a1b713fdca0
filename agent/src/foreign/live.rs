//! Another network's objects for the running agent: the same translation as for `config import`, and what came of it validated
//! as our own objects are.
//!
//! Nothing here is a fault. What cannot be taken over says nothing, and the notes say so: half of it would be worse.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Origin, Translation, text, translate};
use crate::config::{BgpConfiguration, BgpFilter, BgpPeer, Issue, NodeAnnotations};
use crate::source::{Foreign, Kind, KubeRouter, Object};

/// What all annotations of kube-router begin with.
const KUBE_ROUTER: &str = "kube-router.io/";

/// One of Calico's objects, and what of it is not done.
pub(crate) fn calico_object(kind: Kind, name: &str, object: &Value) -> (Foreign, Vec<Issue>) {
    let translation = translate(Origin::Calico, std::slice::from_ref(object));
    let mut notes = notes(&translation);
    let spec = &object["spec"];
    let node = text(&spec["node"]).filter(|_| kind == Kind::CalicoBgpPeer).map(str::to_owned);
    let mut says = Vec::new();
    let mut asn = None;
    for translated in &translation.objects {
        match validated(translated) {
            Ok(object) => says.push(object),
            Err(faults) => notes.extend(faults.iter().map(not_taken)),
        }
    }
    for said in &mut says {
        match said {
            Object::BgpConfiguration(said) if !spec["asNumber"].is_null() => asn = Some(said.asn),
            // It names the node itself: whatever labels that has.
            Object::BgpPeer(peer) if node.is_some() => peer.node_selector = None,
            _ => {}
        }
    }
    (Foreign { kind, name: name.to_owned(), node, asn, says }, notes)
}

/// What kube-router's annotations of a Node say; `None`: it has none.
pub(crate) fn kube_router_node(name: &str, annotations: &BTreeMap<String, String>) -> Option<KubeRouter> {
    let theirs: BTreeMap<_, _> = annotations.iter().filter(|(key, _)| key.starts_with(KUBE_ROUTER)).collect();
    if theirs.is_empty() {
        return None;
    }
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": theirs}});
    let translation = translate(Origin::KubeRouter, &[node]);
    let mut out = KubeRouter::default();
    out.remarks.extend(translation.remarks.iter().filter(|r| !r.by_hand).map(|r| r.reason.clone()));
    for translated in &translation.objects {
        if translated["kind"] == "Node" {
            let ours =
                serde_json::from_value(translated["metadata"]["annotations"].clone()).unwrap_or_default();
            match NodeAnnotations::parse(&ours) {
                Ok(said) => (out.asn, out.cluster_id) = (said.asn, said.cluster_id),
                Err(faults) => out.remarks.extend(faults.iter().map(|fault| as_theirs(&fault.to_string()))),
            }
            continue;
        }
        match validated(translated) {
            Ok(Object::BgpPeer(peer)) => out.peers.push(BgpPeer { node_selector: None, ..*peer }),
            Ok(_) => {}
            Err(faults) => out.remarks.extend(faults.iter().map(|fault| not_taken(fault).to_string())),
        }
    }
    Some(out)
}

fn validated(translated: &Value) -> Result<Object, Vec<Issue>> {
    fn spec<S: DeserializeOwned>(translated: &Value) -> Result<S, Vec<Issue>> {
        serde_json::from_value(translated["spec"].clone())
            .map_err(|error| vec![Issue { path: "spec".to_owned(), reason: error.to_string() }])
    }
    let name = translated["metadata"]["name"].as_str().unwrap_or_default();
    match translated["kind"].as_str() {
        Some("BGPConfiguration") => {
            BgpConfiguration::validate(spec(translated)?).map(Object::BgpConfiguration)
        }
        Some("BGPFilter") => BgpFilter::validate(name, &spec(translated)?).map(Object::BgpFilter),
        _ => BgpPeer::validate(name, &spec(translated)?).map(|peer| Object::BgpPeer(Box::new(peer))),
    }
}

fn notes(translation: &Translation) -> Vec<Issue> {
    let note = |reason: &str| match reason.split_once(' ') {
        Some((field, rest)) if field.starts_with("spec.") => {
            Issue { path: field.trim_end_matches(':').to_owned(), reason: rest.to_owned() }
        }
        _ => Issue { path: "spec".to_owned(), reason: reason.to_owned() },
    };
    translation.remarks.iter().filter(|remark| !remark.by_hand).map(|remark| note(&remark.reason)).collect()
}

/// Who wrote `kube-router.io/node.asn` knows no annotation of ours.
fn as_theirs(fault: &str) -> String {
    fault
        .replace("manx.dev/asn", "kube-router.io/node.asn")
        .replace("manx.dev/route-reflector-cluster-id", "kube-router.io/rr.server")
}

/// Its paths are those of the translation, which nobody wrote.
fn not_taken(fault: &Issue) -> Issue {
    Issue { path: "spec".to_owned(), reason: format!("not taken over: as ours, {fault}") }
}

#[cfg(test)]
mod tests {
    use manx_bgp::types::Asn;

    use super::*;

    fn peer(spec: &Value) -> (Foreign, Vec<String>) {
        let object = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BGPPeer", "metadata": {"name": "x"},
                            "spec": spec});
        let (foreign, notes) = calico_object(Kind::CalicoBgpPeer, "x", &object);
        (foreign, notes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_peer_of_calico_says_what_one_of_ours_would() {
        let (foreign, notes) =
            peer(&json!({"peerIP": "10.0.0.9", "asNumber": 65001, "node": "n1", "maxRestartTime": "60s",
                                           "password": {"secretKeyRef": {"name": "bgp", "key": "k"}}}));
        let [Object::BgpPeer(said)] = foreign.says.as_slice() else { panic!("{foreign:?}") };
        assert_eq!((said.name.as_str(), said.node_selector.is_none()), ("x", true));
        assert_eq!(foreign.node.as_deref(), Some("n1"));
        // That a Secret must be copied is the session's to say, while it is true.
        assert_eq!(notes, ["spec.maxRestartTime: has no equal here and is left out"]);
    }

    #[test]
    fn what_cannot_be_taken_over_says_nothing_and_is_told() {
        let (foreign, notes) = peer(&json!({"peerSelector": "has(rr)", "asNumber": 1}));
        assert!(foreign.says.is_empty());
        assert!(notes[0].starts_with("spec: not taken over: spec.peerSelector goes with"), "{notes:?}");
        let (foreign, notes) = peer(&json!({"peerIP": "10.0.0.9", "asNumber": 0}));
        assert!(foreign.says.is_empty());
        assert!(notes[0].starts_with("spec: not taken over: as ours, spec.asNumber"), "{notes:?}");
        let (foreign, notes) = peer(&json!({"peerIP": "10.0.0.9", "asNumber": {"no": "number"}}));
        assert!(foreign.says.is_empty() && notes.len() == 1, "{notes:?}");
    }

    #[test]
    fn an_as_number_that_calico_leaves_out_is_not_said() {
        let configuration = |spec: Value| {
            let object = json!({"apiVersion": "projectcalico.org/v3", "kind": "BGPConfiguration",
                                "metadata": {"name": "default"}, "spec": spec});
            calico_object(Kind::CalicoBgpConfiguration, "default", &object).0
        };
        assert_eq!(configuration(json!({})).asn, None);
        assert_eq!(configuration(json!({"asNumber": 64512})).asn, Some(Asn(64512)));
    }

    #[test]
    fn annotations_of_kube_router_are_one_nodes_own() {
        let annotations = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(kube_router_node("n1", &annotations(&[("manx.dev/asn", "1")])), None);
        let said = kube_router_node(
            "n1",
            &annotations(&[
                ("kube-router.io/node.asn", "64999"),
                ("kube-router.io/rr.server", "42"),
                ("kube-router.io/peer.ips", "10.1.0.1"),
                ("kube-router.io/peer.asns", "65001"),
                ("kube-router.io/rr.client", "42"),
            ]),
        )
        .unwrap();
        assert_eq!((said.asn, said.cluster_id), (Some(Asn(64999)), Some("0.0.0.42".parse().unwrap())));
        assert_eq!((said.peers[0].name.as_str(), said.peers[0].node_selector.is_none()), ("n1-0", true));
        assert_eq!(said.remarks, ["annotation kube-router.io/rr.client has no equal here and is left out"]);
        let wrong = kube_router_node("n1", &annotations(&[("kube-router.io/node.asn", "0")])).unwrap();
        assert!(wrong.remarks[0].contains("[kube-router.io/node.asn]: 0"), "{:?}", wrong.remarks);
    }
}
