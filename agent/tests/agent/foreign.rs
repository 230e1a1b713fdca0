//! Objects of Calico's and annotations of kube-router: sessions by them, ours over them, and what is in force.

use super::world::*;

const THEIRS: &str = "
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: their-tor}
spec: {peerIP: 10.1.0.1, asNumber: 65001, node: n1, maxRestartTime: 60s}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: 64512, nodeToNodeMeshEnabled: false}
";

fn names(node: &Node) -> Vec<String> {
    node.peers().iter().filter_map(|peer| peer["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_peer_of_calicos_is_peered_with_until_one_of_ours_takes_its_place() {
    let (node, tor) = Node::wired();
    node.manifest("calico.yaml", THEIRS);
    let _bird = Bird::start(&tor, &["10.200.7.0/24"], "");
    let _agent = node.start();
    node.established("their-tor");
    eventually("its route is in the kernel", || node.net.route("10.200.7.0/24").is_some());
    let text = node.manxctl(&["config", "effective"]);
    assert_eq!(text.code, 0, "{}", text.err);
    for words in
        ["peer their-tor, from Calico BGPPeer their-tor", "spec.maxRestartTime: has no equal here", "mesh"]
    {
        assert!(text.out.to_lowercase().contains(&words.to_lowercase()), "{words}: {}", text.out);
    }
    let effective = node.json(&["config", "effective"]);
    assert_eq!(effective["kind"], "EffectiveConfiguration");
    let setting = |name: &str| {
        let all = effective["bgp"].as_array().unwrap();
        all.iter().find(|s| s["field"] == name).unwrap().clone()
    };
    assert_eq!(setting("nodeToNodeMesh")["value"], "Off");
    assert_eq!(setting("nodeToNodeMesh")["from"], "Calico BGPConfiguration default");
    assert_eq!(setting("asNumber")["from"], "Calico BGPConfiguration default");
    let errors = node.json(&["status"])["source"]["errors"].to_string();
    assert!(errors.contains("maxRestartTime") && errors.contains("calico.yaml"), "{errors}");

    node.manifest("ours.yaml", &PEER.replace("connectRetry", "holdTime: 30s, connectRetry"));
    eventually("ours takes its place", || names(&node) == ["tor"]);
    node.established("tor");
    let effective = node.json(&["config", "effective"]);
    assert_eq!(effective["unheard"][0]["object"], "Calico BGPPeer their-tor", "{effective}");
    let settings = effective["peers"][0]["settings"].as_array().unwrap();
    let hold = settings.iter().find(|s| s["field"] == "holdTime").unwrap();
    assert_eq!((hold["value"].as_str(), hold["from"].as_str()), (Some("30s"), Some("BGPPeer tor")));

    node.remove_manifest("ours.yaml");
    eventually("theirs is back", || names(&node) == ["their-tor"]);
    node.established("their-tor");
    node.manifest("calico.yaml", &THEIRS.replace("node: n1", "node: n2"));
    eventually("it is another node's", || names(&node).is_empty());
}

#[test]
fn annotations_of_kube_router_make_a_session_and_what_they_say_in_vain_is_told() {
    let (node, tor) = Node::wired();
    let annotations = "annotations: {kube-router.io/node.asn: '64512', kube-router.io/peer.ips: 10.1.0.1, \
                       kube-router.io/peer.asns: '65001', kube-router.io/rr.client: '42'}, labels";
    node.manifest("node.yaml", &NODE.replace("labels", annotations));
    let _bird = Bird::start(&tor, &["10.200.7.0/24"], "");
    let _agent = node.start();
    node.established("n1-0");
    let errors = node.json(&["status"])["bgp"]["errors"].to_string();
    assert!(errors.contains("kube-router.io/rr.client has no equal here"), "{errors}");
    assert_eq!(node.json(&["config", "effective"])["peers"][0]["from"], "annotations of kube-router (n1-0)");
    node.manifest("node.yaml", NODE);
    eventually("the peer goes with its annotation", || names(&node).is_empty());
}
