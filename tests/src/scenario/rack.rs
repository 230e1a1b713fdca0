//! The nodes on which scenarios run one after the other: namespaces around a router, each with the real agent, and pods attached
//! by the real plugin. What changes between scenarios are objects and pods; the nodes stand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::file::Labels;
use super::station::Station;
use super::table::Transport;
use crate::agent::{self, Agent};
use crate::cluster::Cluster;
use crate::kubelet::{Kubelet, Pod, PodSpec};
use crate::netns::{self, End, Netns};
use crate::process::Process;
use crate::wait;

/// The ports on which every pod answers.
pub const PORTS: [u16; 2] = [80, 81];
/// Begins the names of nodes among the stations.
const NODES: &str = "nodes/";
/// How long an agent may take from its start until it has written its conflist.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
/// How long a change may take from the files to the kernel. A machine with other work does it in less than a second.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);

/// What the cluster is to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// Labels by namespace.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Labels by `NAMESPACE/POD`.
    pub pods: BTreeMap<String, BTreeMap<String, String>>,
    /// All other objects, by `KIND/NAMESPACE/NAME` or `KIND/NAME`.
    pub objects: BTreeMap<String, Value>,
}

impl World {
    /// x, y and z with a, b and c in each.
    pub fn new() -> Self {
        let mut world = Self::default();
        for namespace in ["x", "y", "z"] {
            world.namespaces.insert(namespace.to_owned(), namespace_labels(namespace));
            for pod in ["a", "b", "c"] {
                world.pods.insert(format!("{namespace}/{pod}"), pod_labels(pod));
            }
        }
        world
    }
}

/// The labels with which a namespace begins.
pub fn namespace_labels(name: &str) -> BTreeMap<String, String> {
    [("kubernetes.io/metadata.name", name), ("ns", name)].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// The labels with which a pod begins.
pub fn pod_labels(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("pod".to_owned(), name.to_owned())])
}

/// Sets labels and takes those away that have no value.
pub fn relabel(labels: &mut BTreeMap<String, String>, changes: &Labels) {
    for (key, value) in changes {
        match value {
            Some(value) => _ = labels.insert(key.clone(), value.clone()),
            None => _ = labels.remove(key),
        }
    }
}

/// Standing nodes.
pub struct Rack {
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Pods by `NAMESPACE/POD`.
    pub pods: BTreeMap<String, Pod>,
    /// Their sockets.
    pub stations: BTreeMap<String, Station>,
    /// The manifest directory.
    pub cluster: Cluster,
    world: World,
    /// Counts the changes: each puts a pod of its number into the manifests, last of all.
    change: u32,
    _files: tempfile::TempDir,
    // Last: it ends the agents' namespaces.
    _guard: netns::Guard,
}

/// One node.
pub struct Node {
    /// Its agent.
    pub agent: Agent,
    /// Its kubelet.
    pub kubelet: Kubelet,
    /// The agent's process.
    pub process: Process,
    /// `nft` or `legacy`.
    pub backend: String,
}

impl Rack {
    /// Brings up so many nodes whose agents use this back end. `name` begins the name of every namespace.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn up(name: &str, nodes: u8, backend: &str, bin_dir: &Path) -> Result<Self> {
        let guard = netns::Guard::new(&format!("{name}-"))?;
        let files = tempfile::tempdir()?;
        let bin = files.path().join("bin");
        std::fs::create_dir_all(&bin)?;
        std::fs::copy(agent::binary(bin_dir, "manx-cni")?, bin.join("manx"))
            .context("cannot install manx-cni")?;
        let cluster = Cluster::new(files.path().join("manifests"))?;
        let router = machine(&format!("{name}-router"))?;
        let mut rack = Self {
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            stations: BTreeMap::new(),
            world: World::default(),
            change: 0,
            cluster,
            _files: files,
            _guard: guard,
        };
        for number in 1..=nodes {
            let node = format!("node-{number}");
            let netns = machine(&format!("{name}-{node}"))?;
            cable(&router, &netns, number)?;
            rack.cluster.put(&node, &[node_object(&node, number)])?;
            let dir = rack._files.path().join(&node);
            std::fs::create_dir_all(&dir)?;
            let extra = ["--enable", "policy,cni", "--iptables-backend", backend].map(str::to_owned);
            let agent = Agent {
                node: node.clone(),
                netns: netns.clone(),
                bin_dir: bin_dir.to_owned(),
                manifests: rack.cluster.dir().to_owned(),
                dir,
                cni_bin_dir: bin.clone(),
                extra: extra.into(),
            };
            let kubelet = Kubelet {
                netns,
                cni_conf_dir: agent.cni_conf_dir(),
                cni_bin_dir: bin.clone(),
                prefix: name.to_owned(),
                cluster: rack.cluster.clone(),
            };
            let process = agent.start()?;
            rack.nodes.insert(node, Node { agent, kubelet, process, backend: backend.to_owned() });
        }
        for node in rack.nodes.values() {
            node.wait_for_conflist()?;
        }
        Ok(rack)
    }

    /// The node on which a pod runs: a, b and c on different ones, as far as there are.
    pub fn node_of(&self, pod: &str) -> &Node {
        let (_, name) = pod.split_once('/').unwrap_or(("", pod));
        let letter = usize::from(name.bytes().next().unwrap_or(b'a').wrapping_sub(b'a'));
        let node = self.nodes.values().nth(letter % self.nodes.len());
        node.expect("a rack has a node")
    }

    /// Makes the cluster what it is to be, and returns when every agent has it in its kernel.
    ///
    /// # Errors
    /// When a pod cannot be attached or an agent does not follow.
    pub fn apply(&mut self, world: &World) -> Result<()> {
        let gone: Vec<String> = self.pods.keys().filter(|p| !world.pods.contains_key(*p)).cloned().collect();
        for name in gone {
            self.stations.remove(&name);
            let pod = self.pods.remove(&name).expect("it was listed");
            self.node_of(&name).kubelet.delete_pod(&pod)?;
        }
        let namespaces: Vec<Value> = world.namespaces.iter().map(|(name, labels)| {
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        }).collect();
        self.cluster.put("namespaces", &namespaces)?;
        for (name, labels) in &world.pods {
            if let Some(pod) = self.pods.get_mut(name) {
                if pod.labels != *labels {
                    pod.labels.clone_from(labels);
                    self.node_of(name).kubelet.update_pod(&self.pods[name])?;
                }
            } else {
                self.start_pod(name, labels)?;
            }
        }
        let objects: Vec<Value> =
            world.objects.values().map(|object| self.fill_in(object)).collect::<Result<_>>()?;
        self.cluster.put("objects", &objects)?;
        self.world = world.clone();
        self.wait_until_in_force()
    }

    /// Lets the nodes ask and answer like pods, as `nodes/NAME`.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn open_nodes(&mut self) -> Result<()> {
        for (number, (name, node)) in (1..).zip(&self.nodes) {
            let addresses = [node_address(number, false), node_address(number, true)];
            let station = Station::open(&node.agent.netns, &addresses, &PORTS)?;
            self.stations.insert(format!("{NODES}{name}"), station);
        }
        Ok(())
    }

    /// Ends that.
    pub fn close_nodes(&mut self) {
        self.stations.retain(|name, _| !name.starts_with(NODES));
    }

    /// Returns when every agent has read all files that were written before, and has all that follows in its kernel.
    ///
    /// # Errors
    /// When one has not in time; with what it says about itself.
    pub fn wait_until_in_force(&mut self) -> Result<()> {
        self.change += 1;
        let mark = format!("change-{}", self.change);
        self.cluster.put(
            "zz-change",
            &[json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": mark, "namespace": "manx-mark"},
                "spec": {"nodeName": "nowhere", "containers": []}, "status": {"phase": "Pending"},
            })],
        )?;
        for (name, node) in &self.nodes {
            let followed = wait::until(CHANGE_LIMIT, || node.in_force(&mark));
            if let Err(complaint) = followed {
                bail!(
                    "the agent of {name} does not follow after {CHANGE_LIMIT:?}: {complaint:#}\n{}",
                    node.last_words()
                );
            }
        }
        Ok(())
    }

    fn start_pod(&mut self, full_name: &str, labels: &BTreeMap<String, String>) -> Result<()> {
        let node = self.node_of(full_name);
        let ports: Vec<Value> = PORTS
            .iter()
            .flat_map(|port| {
                Transport::ALL.map(|transport| {
                    let name = format!("serve-{port}-{}", transport.as_str().to_lowercase());
                    json!({"name": name, "containerPort": port, "protocol": transport.as_str()})
                })
            })
            .collect();
        let mut spec = PodSpec::new(full_name, &node.agent.node, &[]);
        spec.labels.clone_from(labels);
        spec.containers = json!([{"name": "serve", "image": "scenario", "ports": ports}]);
        let pod = node.kubelet.run_pod(&spec)?;
        let station = Station::open(&pod.netns, &pod.addresses, &PORTS)?;
        self.stations.insert(full_name.to_owned(), station);
        self.pods.insert(full_name.to_owned(), pod);
        Ok(())
    }

    /// Puts the pods' addresses where an object speaks of them.
    fn fill_in(&self, object: &Value) -> Result<Value> {
        let mut text = object.to_string();
        for (name, pod) in &self.pods {
            for (digit, v6) in [("4", false), ("6", true)] {
                text = text.replace(&format!("${{{name}:{digit}}}"), &pod.address(v6).to_string());
            }
        }
        text = text.replace("${POD:4}", "10.200.0.0/16").replace("${POD:6}", "fd00:10:200::/48");
        if let Some(at) = text.find("${") {
            bail!(
                "an object speaks of a pod that is not there: {}",
                text[at..].chars().take(20).collect::<String>()
            );
        }
        Ok(serde_json::from_str(&text)?)
    }
}

impl Node {
    /// Returns when the agent has written its conflist.
    ///
    /// # Errors
    /// When it has not in time; with its last words.
    pub fn wait_for_conflist(&self) -> Result<()> {
        let ready = wait::until(AGENT_LIMIT, || match self.kubelet.is_configured() {
            true => Ok(()),
            false => Err(()),
        });
        if ready.is_err() {
            bail!("{} has written no conflist after {AGENT_LIMIT:?}\n{}", self.agent.node, self.last_words());
        }
        Ok(())
    }

    /// The end of the agent's log.
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.agent.log()).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(12).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn in_force(&self, mark: &str) -> Result<()> {
        let (status, _) = self.agent.ask(&format!("/v1/policy/for?target=manx-mark/{mark}"))?;
        if status != 200 {
            bail!("{mark} has not been read");
        }
        let (_, status) = self.agent.ask("/v1/status")?;
        if status["source"]["stale"] == json!(true) {
            bail!("the manifests: {}", status["source"]["errors"]);
        }
        let policy = &status["policy"];
        if policy["pending"] != json!(false) || policy["endpoints"] != policy["endpointsInForce"] {
            bail!("policy: {policy}");
        }
        Ok(())
    }
}

fn machine(name: &str) -> Result<Netns> {
    let netns = Netns::create(name)?;
    for scope in ["all", "default"] {
        netns.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
    }
    netns.sysctl("net.ipv4.ip_forward", "1")?;
    netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    Ok(netns)
}

/// Connects a node with the router, which knows where its pods are.
fn cable(router: &Netns, node: &Netns, number: u8) -> Result<()> {
    let port = format!("node-{number}");
    let end = |netns, interface, last: u8| End {
        netns,
        interface,
        addresses: vec![format!("10.99.{number}.{last}/31"), format!("fd00:99:{number}::{last}/127")],
    };
    netns::connect(&end(router, &port, 0), &end(node, "eth0", 1))?;
    node.ip(&format!("-4 route add default via 10.99.{number}.0"))?;
    node.ip(&format!("-6 route add default via fd00:99:{number}::"))?;
    router.ip(&format!("-4 route add 10.200.{number}.0/24 via 10.99.{number}.1"))?;
    router.ip(&format!("-6 route add fd00:10:200:{number}::/64 via fd00:99:{number}::1"))?;
    Ok(())
}

fn node_object(name: &str, number: u8) -> Value {
    let addresses = [format!("10.99.{number}.1"), format!("fd00:99:{number}::1")];
    let addresses = addresses.map(|address| json!({"type": "InternalIP", "address": address}));
    let cidrs = [format!("10.200.{number}.0/24"), format!("fd00:10:200:{number}::/64")];
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": {"addresses": addresses},
    })
}

/// The address of a node of a rack, which is also what its host-network pods have.
pub fn node_address(number: u8, v6: bool) -> IpAddr {
    let text = if v6 { format!("fd00:99:{number}::1") } else { format!("10.99.{number}.1") };
    text.parse().expect("an address of this plan")
}
