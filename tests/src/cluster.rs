//! The manifest directory: the cluster's state as ordinary Kubernetes objects in YAML files, each written whole by rename.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::topology::Topology;

/// A manifest directory that agents watch, or that an API server follows.
#[derive(Clone, Debug)]
pub struct Cluster {
    dir: PathBuf,
    server: Option<Arc<ApiServer>>,
}

impl Cluster {
    /// The cluster whose objects are in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir, server: None })
    }

    /// The same, with an API server that holds at any time what the files say.
    #[must_use]
    pub fn served_by(self, server: Arc<ApiServer>) -> Self {
        Self { server: Some(server), ..self }
    }

    /// Where the objects are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes objects into `NAME.yaml`, in place of what was there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&self, name: &str, objects: &[Value]) -> Result<()> {
        let mut text = String::new();
        for object in objects {
            text.push_str("---\n");
            text.push_str(&serde_saphyr::to_string(object).context("cannot write YAML")?);
        }
        self.put_text(name, &text)
    }

    /// Writes `NAME.yaml` as it stands.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_text(&self, name: &str, text: &str) -> Result<()> {
        let hidden = self.dir.join(format!(".{name}.new"));
        let file = self.file(name);
        std::fs::write(&hidden, text).with_context(|| format!("cannot write {}", hidden.display()))?;
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::rename(&hidden, &file).with_context(|| format!("cannot rename to {}", file.display()))?;
        self.server.as_ref().map_or(Ok(()), |server| server.replace(&before, text))
    }

    /// Removes `NAME.yaml`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, name: &str) -> Result<()> {
        let file = self.file(name);
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        self.server.as_ref().map_or(Ok(()), |server| server.replace(&before, ""))
    }

    /// Whether `NAME.yaml` is there.
    pub fn has(&self, name: &str) -> bool {
        self.file(name).exists()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.yaml"))
    }
}

/// The Node object of a node: pod CIDRs, every address, its AS.
pub fn node(topology: &Topology, name: &str) -> Value {
    let machine = topology.machine(name);
    let mut addresses = vec![json!({"type": "Hostname", "address": name})];
    for (near, _) in topology.uplinks(name) {
        addresses.push(json!({"type": "InternalIP", "address": near.v4.ip().to_string()}));
    }
    for (near, _) in topology.uplinks(name) {
        addresses.push(json!({"type": "InternalIP", "address": near.v6.ip().to_string()}));
    }
    let pod_cidrs: Vec<String> = machine.prefixes.iter().map(ToString::to_string).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            "annotations": {"manx.dev/asn": machine.asn.expect("a node of the plan has an AS number").to_string()},
        },
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs},
        "status": {"addresses": addresses},
    })
}

/// The BGPPeer objects of the lab: with a BIRD ToR a session for each family, with an FRR ToR one session for both.
pub fn bgp_peers(topology: &Topology) -> Vec<Value> {
    let mut peers = Vec::new();
    for node in topology.nodes() {
        for (_, tor) in topology.uplinks(node.name) {
            let machine = topology.machine(tor.machine);
            let peer = |suffix: &str, address: IpAddr, families: &[&str]| {
                json!({
                    "apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer",
                    "metadata": {"name": format!("{}-{}{suffix}", node.name, machine.name)},
                    "spec": {
                        "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": node.name}},
                        "peerIP": address.to_string(),
                        "asNumber": machine.asn.expect("a router of the plan has an AS number"),
                        "families": families,
                        "connectRetry": "5s",
                    },
                })
            };
            if machine.role == crate::topology::Role::Bird {
                peers.push(peer("-v4", tor.v4.ip().into(), &["ipv4"]));
                peers.push(peer("-v6", tor.v6.ip().into(), &["ipv6"]));
            } else {
                peers.push(peer("", tor.v4.ip().into(), &["ipv4", "ipv6"]));
            }
        }
    }
    peers
}

/// The cluster-wide BGP settings.
pub fn bgp_configuration() -> Value {
    json!({
        "apiVersion": "manx.dev/v1alpha1", "kind": "BGPConfiguration",
        "metadata": {"name": "default"},
        "spec": {"nodeToNodeMesh": "Auto", "multipath": {"maxPaths": 16, "asPathRelax": true},
                 "gracefulRestart": {"enabled": true, "restartTime": "120s"}},
    })
}

/// A Namespace with labels.
pub fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    let mut all = json!({"kubernetes.io/metadata.name": name});
    for (key, value) in labels {
        all[*key] = json!(value);
    }
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": all}})
}

/// A NetworkPolicy from its `spec`, written as YAML.
///
/// # Errors
/// When the text is not YAML.
pub fn network_policy(namespace: &str, name: &str, spec: &str) -> Result<Value> {
    let spec: Value =
        serde_saphyr::from_str(spec).with_context(|| format!("the spec of policy {name} is no YAML"))?;
    Ok(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_reads_back_as_kubernetes_yaml() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::new(dir.path().to_owned()).unwrap();
        let topology = Topology::two_racks();
        cluster.put("nodes", &[node(&topology, "node-2")]).unwrap();
        let text = std::fs::read_to_string(dir.path().join("nodes.yaml")).unwrap();
        let back: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        assert_eq!(back, [node(&topology, "node-2")]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the file is left");
    }

    #[test]
    fn bird_gets_a_session_for_each_family_and_frr_one_for_both() {
        let peers = bgp_peers(&Topology::two_racks());
        let names: Vec<&str> = peers.iter().map(|p| p["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "node-1-tor-a-v4",
                "node-1-tor-a-v6",
                "node-2-tor-a-v4",
                "node-2-tor-a-v6",
                "node-2-tor-b",
                "node-3-tor-b"
            ]
        );
    }
}
