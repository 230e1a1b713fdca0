use std::sync::Arc;

use serde_json::{Value, json};

use super::tests::{desired, node, peer};
use super::*;
use crate::config::{BgpConfiguration, BgpFilter};
use crate::foreign;

const CALICO: &str = "crd.projectcalico.org/v1";

fn calico(kind: Kind, name: &str, spec: &Value) -> Object {
    let word = kind.as_str().trim_start_matches("Calico ");
    let object = json!({"apiVersion": CALICO, "kind": word, "metadata": {"name": name}, "spec": spec});
    Object::Foreign(foreign::calico_object(kind, name, &object).0)
}

fn ours(spec: Value) -> Object {
    let spec = serde_json::from_value(spec).unwrap();
    Object::BgpConfiguration(BgpConfiguration::validate(spec).unwrap())
}

fn annotated(name: &str, address: &str, pairs: &[(&str, &str)]) -> Object {
    let pairs = pairs.iter().map(|(key, value)| (format!("kube-router.io/{key}"), (*value).to_owned()));
    let said = foreign::kube_router_node(name, &pairs.collect());
    Object::Node(Node { kube_router: said.map(Box::new), ..node(name, &[address], &[]) })
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: String::new(), name: name.to_owned() }
}

fn unheard(intent: &BgpIntent) -> Vec<String> {
    intent.unheard.iter().map(ToString::to_string).collect()
}

fn asn(d: &Desired) -> (u32, String) {
    let intent = d.bgp(&[]);
    let setting = intent.settings.iter().find(|s| s.field == "asNumber").unwrap();
    assert_eq!(setting.value, json!(intent.speaker.as_ref().unwrap().asn.0));
    (intent.speaker.unwrap().asn.0, setting.from.clone())
}

#[test]
fn the_as_is_our_annotations_else_ours_else_calicos_else_kube_routers() {
    let plain = annotated("n1", "10.0.0.1", &[("node.asn", "64999")]);
    let mut d = desired([plain.clone()]);
    assert_eq!(asn(&d), (64999, "Node n1, annotation kube-router.io/node.asn".to_owned()));
    // A configuration of Calico's that names no AS leaves it to others.
    d.set(&calico(Kind::CalicoBgpConfiguration, "default", &json!({"listenPort": 178})));
    assert_eq!(asn(&d).0, 64999);
    d.set(&calico(Kind::CalicoBgpConfiguration, "default", &json!({"asNumber": 64800})));
    assert_eq!(asn(&d), (64800, "Calico BGPConfiguration default".to_owned()));
    d.set(&ours(json!({"asNumber": 64700})));
    assert_eq!(asn(&d), (64700, "BGPConfiguration default".to_owned()));
    assert_eq!(
        unheard(&d.bgp(&[])),
        [
            "Calico BGPConfiguration default: BGPConfiguration default of manx.dev is heard instead",
            "Node n1, annotation kube-router.io/node.asn 64999: BGPConfiguration default says 64700",
        ]
    );
    let Object::Node(mut own) = plain else { unreachable!() };
    own.annotations.asn = Some(Asn(64600));
    d.set(&Object::Node(own));
    assert_eq!(asn(&d), (64600, "Node n1, annotation manx.dev/asn".to_owned()));
    // And back, as they go.
    d.set(&annotated("n1", "10.0.0.1", &[]));
    d.remove(&key(Kind::BgpConfiguration, "default"));
    assert_eq!(asn(&d).0, 64800);
    d.remove(&key(Kind::CalicoBgpConfiguration, "default"));
    assert_eq!(asn(&d), (64512, "default".to_owned()));
}

#[test]
fn nodes_of_the_mesh_know_each_others_annotated_as() {
    let one = annotated("n1", "10.0.0.1", &[("node.asn", "64901")]);
    let other =
        annotated("n2", "10.0.0.2", &[("node.asn", "64902"), ("peer.ips", "10.9.9.9"), ("peer.asns", "1")]);
    let intent = desired([one, other]).bgp(&[]);
    assert_eq!(intent.peers.keys().collect::<Vec<_>>(), ["n2"]);
    assert_eq!(intent.peers["n2"].config.remote_as, manx_bgp::speaker::RemoteAs::Asn(Asn(64902)));
}

#[test]
fn a_peer_is_taken_from_the_weightiest_who_names_it_or_its_address() {
    let mut d = desired([annotated(
        "n1",
        "10.0.0.1",
        &[("peer.ips", "10.1.0.1,10.1.0.2,10.1.0.3"), ("peer.asns", "65001,65002,65003")],
    )]);
    let from = |d: &Desired| {
        let intent = d.bgp(&[]);
        intent.peers.values().map(|p| (p.config.name.clone(), p.info.origin.clone())).collect::<Vec<_>>()
    };
    let own = |name: &str, origin: &str| (name.to_owned(), origin.to_owned());
    assert_eq!(from(&d)[0], own("n1-0", "annotations of kube-router (n1-0)"));
    d.set(&calico(
        Kind::CalicoBgpPeer,
        "tor",
        &json!({"peerIP": "10.1.0.1", "asNumber": 65011, "node": "n1"}),
    ));
    d.set(&calico(
        Kind::CalicoBgpPeer,
        "far",
        &json!({"peerIP": "10.1.0.2", "asNumber": 65012, "node": "n2"}),
    ));
    d.set(&calico(Kind::CalicoBgpPeer, "n1-2", &json!({"peerIP": "10.1.0.9", "asNumber": 65013})));
    assert_eq!(
        from(&d),
        [
            own("n1-1", "annotations of kube-router (n1-1)"),
            own("n1-2", "Calico BGPPeer n1-2"),
            own("tor", "Calico BGPPeer tor"),
        ]
    );
    assert_eq!(
        unheard(&d.bgp(&[])),
        [
            "annotations of kube-router (n1-0): Calico BGPPeer tor names the same address on this node and is heard instead",
            "annotations of kube-router (n1-2): Calico BGPPeer n1-2 has its name and is heard instead",
        ]
    );
    let far = d.bgp(&[]).objects.into_iter().find(|o| o.name == "far").unwrap();
    assert_eq!((far.selector.as_str(), far.unmet.as_deref()), ("node n2", Some("it is for node n2")));
    d.set(&peer("tor", "{peerIP: 10.1.0.5, asNumber: 65021}"));
    d.set(&peer("mine", "{peerIP: 10.1.0.9, asNumber: 65022}"));
    assert_eq!(
        from(&d),
        [
            own("mine", "BGPPeer mine"),
            // Nobody else names these addresses any more.
            own("n1-0", "annotations of kube-router (n1-0)"),
            own("n1-1", "annotations of kube-router (n1-1)"),
            own("n1-2", "annotations of kube-router (n1-2)"),
            own("tor", "BGPPeer tor"),
        ]
    );
    d.remove(&key(Kind::BgpPeer, "tor"));
    d.remove(&key(Kind::BgpPeer, "mine"));
    assert_eq!(from(&d)[2], own("tor", "Calico BGPPeer tor"));
    d.remove(&key(Kind::CalicoBgpPeer, "tor"));
    assert_eq!(from(&d)[0], own("n1-0", "annotations of kube-router (n1-0)"));
}

#[test]
fn peers_of_others_leave_the_mesh_standing_as_their_authors_meant_it() {
    let other = Object::Node(node("n2", &["10.0.0.2"], &[]));
    let mut d = desired([Object::Node(node("n1", &["10.0.0.1"], &[])), other]);
    d.set(&calico(Kind::CalicoBgpPeer, "tor", &json!({"peerIP": "10.1.0.1", "asNumber": 65011})));
    assert_eq!(d.bgp(&[]).peers.keys().collect::<Vec<_>>(), ["n2", "tor"]);
    d.set(&calico(Kind::CalicoBgpConfiguration, "default", &json!({"nodeToNodeMeshEnabled": false})));
    assert_eq!(d.bgp(&[]).peers.keys().collect::<Vec<_>>(), ["tor"]);
    d.set(&ours(json!({"nodeToNodeMesh": "Enabled"})));
    assert_eq!(d.bgp(&[]).peers.keys().collect::<Vec<_>>(), ["n2", "tor"]);
}

#[test]
fn a_filter_of_calicos_is_used_by_its_peer_and_keeps_its_counters_while_it_is_equal() {
    let filter = |cidr: &str| {
        let rule = json!({"action": "Accept", "cidr": cidr, "matchOperator": "In"});
        calico(Kind::CalicoBgpFilter, "racks", &json!({"importV4": [rule]}))
    };
    let mut d = desired([Object::Node(node("n1", &["10.0.0.1"], &[]))]);
    let spec = json!({"peerIP": "10.1.0.1", "asNumber": 65011, "filters": ["racks"]});
    d.set(&calico(Kind::CalicoBgpPeer, "tor", &spec));
    let blocked = |d: &Desired| d.bgp(&[]).peers["tor"].config.admin_blocked.clone();
    assert_eq!(
        blocked(&d).unwrap(),
        "BGPFilter racks-import does not exist; BGPFilter racks-export does not exist"
    );
    d.set(&filter("10.0.0.0/8"));
    assert_eq!(blocked(&d), None);
    let import = |d: &Desired| d.bgp(&[]).peers["tor"].config.import[0].clone();
    let first = import(&d);
    d.set(&filter("10.0.0.0/8"));
    assert!(Arc::ptr_eq(&first, &import(&d)));
    d.set(&filter("10.0.0.0/9"));
    assert!(!Arc::ptr_eq(&first, &import(&d)));
    assert_eq!(d.bgp(&[]).filters["racks-import"], "Calico BGPFilter racks");
    let spec = serde_json::from_value(json!({"ipv4": [{"action": "Reject"}]})).unwrap();
    d.set(&Object::BgpFilter(BgpFilter::validate("racks-import", &spec).unwrap()));
    assert_eq!(d.bgp(&[]).filters["racks-import"], "BGPFilter racks-import");
    assert_eq!(
        unheard(&d.bgp(&[])),
        ["Calico BGPFilter racks-import: BGPFilter racks-import of manx.dev is heard instead"]
    );
    d.remove(&key(Kind::CalicoBgpFilter, "racks"));
    assert_eq!(blocked(&d).unwrap(), "BGPFilter racks-export does not exist");
}

#[test]
fn what_is_not_done_of_this_nodes_annotations_is_told_and_of_others_not() {
    let here = annotated("n1", "10.0.0.1", &[("rr.server", "7"), ("rr.client", "42")]);
    let there = annotated("n2", "10.0.0.2", &[("rr.client", "42")]);
    let intent = desired([here, there]).bgp(&[]);
    let problems: Vec<_> = intent.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["Node n1: annotation kube-router.io/rr.client has no equal here and is left out"]);
    assert_eq!(intent.speaker.unwrap().cluster_id, Some("0.0.0.7".parse().unwrap()));
}

#[test]
fn every_setting_of_a_peer_says_where_it_comes_from() {
    let mut d = desired([Object::Node(node("n1", &["10.0.0.1"], &[]))]);
    d.set(&peer(
        "tor",
        "{peerIP: 10.1.0.1, asNumber: 65001, holdTime: 30s, families: [ipv4], maxPrefixes: {limit: 10000},
          required: false, bfd: {}, password: {secretKeyRef: {name: s, key: k}}}",
    ));
    let intent = d.bgp(&[]);
    let settings = of_peer(&intent.peers["tor"]);
    let changed: Vec<_> =
        settings.iter().filter(|s| s.from == "BGPPeer tor").map(|s| s.field.as_str()).collect();
    assert_eq!(changed, ["peerIP", "asNumber", "holdTime", "families", "password", "bfd", "required"]);
    let value = |field: &str| settings.iter().find(|s| s.field == field).unwrap().value.clone();
    assert_eq!((value("holdTime"), value("connectRetry")), (json!("30s"), json!("5s")));
    assert_eq!(value("nextHop"), json!("Self"));
    // Says where the key should be; its value has no place here.
    assert!(value("password").as_str().unwrap().contains("Secret manx-system/s does not exist"));
}
