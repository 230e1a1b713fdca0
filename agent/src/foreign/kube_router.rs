//! kube-router's annotations of Nodes.

use std::net::Ipv4Addr;

use serde_json::{Map, Value, json};

use super::{Translation, name, node_named};

const PREFIX: &str = "kube-router.io/";

pub(super) fn translate(objects: &[&Value], out: &mut Translation) {
    for node in objects.iter().filter(|o| o["kind"] == "Node" && o["apiVersion"] == "v1") {
        annotations(node, out);
    }
}

fn annotations(node: &Value, out: &mut Translation) {
    let all = node["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    let get =
        |key: &str| all.get(&format!("{PREFIX}{key}")).and_then(Value::as_str).filter(|t| !t.is_empty());
    let mut ours = Map::new();
    if let Some(asn) = get("node.asn") {
        ours.insert("manx.dev/asn".to_owned(), json!(asn));
    }
    if let Some(cluster) = get("rr.server") {
        match cluster.parse::<u32>().map(Ipv4Addr::from).or_else(|_| cluster.parse::<Ipv4Addr>()) {
            Ok(id) if !id.is_unspecified() => {
                ours.insert("manx.dev/route-reflector-cluster-id".to_owned(), json!(id.to_string()));
            }
            _ => out.remark(node, format!("{PREFIX}rr.server: {cluster} is no cluster id")),
        }
    }
    if !ours.is_empty() {
        out.objects.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name(node), "annotations": ours},
        }));
    }
    match get("peers") {
        Some(yaml) => peers_as_yaml(node, yaml, out),
        None => peers_as_lists(node, &get, out),
    }
    let known = [
        "node.asn",
        "rr.server",
        "peers",
        "peer.ips",
        "peer.asns",
        "peer.ports",
        "peer.passwords",
        "peer.localips",
    ];
    for key in all.keys().filter_map(|key| key.strip_prefix(PREFIX)).filter(|key| !known.contains(key)) {
        out.remark(node, format!("annotation {PREFIX}{key} has no equal here and is left out"));
    }
}

/// Lists with a place for each peer, apart by commas.
fn peers_as_lists<'a>(node: &Value, get: &impl Fn(&str) -> Option<&'a str>, out: &mut Translation) {
    let list =
        |key: &str| get(key).map(|t| t.split(',').map(str::trim).collect::<Vec<_>>()).unwrap_or_default();
    let (ips, asns) = (list("peer.ips"), list("peer.asns"));
    if ips.len() != asns.len() {
        return out.remark(
            node,
            format!("{} addresses and {} AS numbers of peers: not taken over", ips.len(), asns.len()),
        );
    }
    let (ports, passwords, locals) = (list("peer.ports"), list("peer.passwords"), list("peer.localips"));
    for (i, (ip, asn)) in ips.iter().zip(asns).enumerate() {
        let at = |list: &[&str]| list.get(i).copied().filter(|t| !t.is_empty()).map(str::to_owned);
        let peer = Peer {
            ip: (*ip).to_owned(),
            asn: asn.to_owned(),
            port: at(&ports),
            local: at(&locals),
            password: at(&passwords).is_some(),
        };
        peer.add(node, i, out);
    }
}

/// A list of objects, as newer versions have it.
fn peers_as_yaml(node: &Value, yaml: &str, out: &mut Translation) {
    let peers: Vec<Value> = match serde_saphyr::from_str(yaml) {
        Ok(peers) => peers,
        Err(_) => return out.remark(node, format!("{PREFIX}peers is no list: not taken over")),
    };
    for (i, peer) in peers.iter().enumerate() {
        let word = |field: &str| match &peer[field] {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(n) => Some(n.to_string()),
            _ => None,
        };
        let (Some(ip), Some(asn)) = (word("remoteip"), word("remoteasn")) else {
            out.remark(node, format!("{PREFIX}peers[{i}] has no remoteip or no remoteasn: not taken over"));
            continue;
        };
        let password = word("password").is_some();
        Peer { ip, asn, port: word("port"), local: word("localip"), password }.add(node, i, out);
    }
}

struct Peer {
    ip: String,
    asn: String,
    port: Option<String>,
    local: Option<String>,
    password: bool,
}

impl Peer {
    fn add(self, node: &Value, i: usize, out: &mut Translation) {
        let node_name = name(node);
        let number = |text: &str| text.parse::<u32>().ok();
        let port = self.port.as_deref().map(number);
        let (Ok(ip), Some(asn), Some(port)) = (
            self.ip.parse::<std::net::IpAddr>(),
            number(&self.asn),
            port.map_or(Some(None), |p| p.map(Some)),
        ) else {
            return out.remark(
                node,
                format!("peer {} with AS {} cannot be read: not taken over", self.ip, self.asn),
            );
        };
        let mut spec = Map::new();
        spec.insert("nodeSelector".to_owned(), node_named(node_name));
        spec.insert("peerIP".to_owned(), json!(ip.to_string()));
        spec.insert("asNumber".to_owned(), json!(asn));
        if let Some(port) = port {
            spec.insert("port".to_owned(), json!(port));
        }
        if let Some(local) = self.local {
            spec.insert("sourceAddress".to_owned(), json!(local));
        }
        let name = format!("{node_name}-{i}");
        if self.password {
            let secret = format!("bgp-{name}");
            spec.insert("password".to_owned(), json!({"secretKeyRef": {"name": secret, "key": "password"}}));
            out.by_hand(node, format!("the password of {ip} is in an annotation: put it into Secret {secret}, key password, in the namespace of Manx"));
        }
        out.object("BGPPeer", &name, spec);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::super::tests::import;
    use super::*;

    #[test]
    fn lists_become_peers_of_that_node_and_passwords_are_not_shown() {
        let (objects, remarks) = import(
            Origin::KubeRouter,
            r#"
apiVersion: v1
kind: Node
metadata:
  name: n1
  annotations:
    kube-router.io/node.asn: "64512"
    kube-router.io/rr.server: "42"
    kube-router.io/peer.ips: "10.1.0.1,10.2.0.1"
    kube-router.io/peer.asns: "65001, 65002"
    kube-router.io/peer.ports: "179,1179"
    kube-router.io/peer.passwords: "U2VzYW1l,"
    kube-router.io/path-prepend.as: "64512"
"#,
        );
        assert_eq!(
            objects[0]["metadata"]["annotations"],
            json!({"manx.dev/asn": "64512", "manx.dev/route-reflector-cluster-id": "0.0.0.42"})
        );
        assert_eq!(
            objects[1]["spec"]["password"],
            json!({"secretKeyRef": {"name": "bgp-n1-0", "key": "password"}})
        );
        assert_eq!(
            objects[2]["spec"],
            json!({"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "n1"}}, "peerIP": "10.2.0.1", "asNumber": 65002, "port": 1179})
        );
        assert!(!format!("{objects:?}{remarks:?}").contains("U2VzYW1l"));
        assert!(remarks.iter().any(|r| r.contains("path-prepend.as has no equal")), "{remarks:?}");
    }

    #[test]
    fn newer_annotations_are_yaml_and_broken_ones_are_told() {
        let (objects, remarks) = import(
            Origin::KubeRouter,
            r#"
apiVersion: v1
kind: Node
metadata:
  name: n1
  annotations:
    kube-router.io/peers: |
      - {remoteip: "fd00:1::1", remoteasn: 65001, localip: "fd00:1::2"}
      - {remoteip: 10.1.0.1}
"#,
        );
        assert_eq!((objects.len(), objects[0]["spec"]["sourceAddress"].as_str()), (1, Some("fd00:1::2")));
        assert!(remarks[0].contains("peers[1] has no remoteip or no remoteasn"));
    }
}
