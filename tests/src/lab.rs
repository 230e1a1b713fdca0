//! The standing lab: its namespaces, routers, agents and pods; brought up, found again, taken down.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::agent::{self, Agent};
use crate::apiserver::{self, ApiServer};
use crate::cluster::{self, Cluster};
use crate::kubelet::{Kubelet, Pod, PodSpec};
use crate::netns::{self, End, Netns};
use crate::probe::matrix::Party;
use crate::process::Process;
use crate::routers::{Router, bird, frr};
use crate::topology::{Cable, Machine, Role, Topology};
use crate::wait;

/// How long an agent may take from its start until it has written its conflist.
const AGENT_LIMIT: Duration = Duration::from_secs(20);

/// Where agents find the API server, each on the loopback of its own namespace.
const API: &str = "127.0.0.1:6443";

/// A lab that stands.
pub struct Lab {
    /// Begins the name of every namespace; also the name of its directory under `/run`.
    pub name: String,
    /// The plan.
    pub topology: Topology,
    /// The manifest directory.
    pub cluster: Cluster,
    /// Agents by node.
    pub agents: BTreeMap<&'static str, Agent>,
    /// The agents' processes by node.
    pub processes: BTreeMap<String, Process>,
    /// Routers by machine.
    pub routers: BTreeMap<&'static str, Box<dyn Router>>,
    /// Pods by `NAMESPACE/NAME`.
    pub pods: BTreeMap<String, Pod>,
    /// Doors of the API server in the nodes' namespaces, where agents read that instead of the directory.
    doors: Vec<apiserver::Extra>,
}

/// Where the lab's agents read the cluster's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Source {
    /// The manifest directory.
    Manifests,
    /// An API server that holds the same; it goes with the program that brought up the lab.
    Api,
}

/// What is kept in the lab's directory so that a later command finds it again.
#[derive(Serialize, Deserialize)]
struct State {
    bin_dir: PathBuf,
    processes: BTreeMap<String, Process>,
    pods: BTreeMap<String, Pod>,
}

impl Lab {
    /// Brings up machines, cables, routers, agents and pods. What an earlier lab of this name left is removed first.
    ///
    /// # Errors
    /// When something does not come up; what is there stays for a look, until [`down`] removes it.
    pub fn up(name: &str, bin_dir: &Path, source: Source) -> Result<Self> {
        for binary in ["manx-agent", "manx-cni", "manxctl"] {
            agent::binary(bin_dir, binary)?;
        }
        let mut lab = Self::fabric(name, bin_dir)?;
        lab.install_plugin(bin_dir)?;
        if source == Source::Api {
            lab.serve_api()?;
        }
        lab.write_cluster()?;
        lab.start_agents()?;
        lab.save(bin_dir)?;
        for spec in pods() {
            lab.run_pod(&spec)?;
        }
        lab.save(bin_dir)?;
        Ok(lab)
    }

    /// Brings up machines, cables and routers only.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn fabric(name: &str, bin_dir: &Path) -> Result<Self> {
        down(name)?;
        let lab = Self::plan(name, bin_dir)?;
        lab.make_machines()?;
        lab.start_routers()?;
        Ok(lab)
    }

    /// Finds a lab that [`Lab::up`] left standing.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(name: &str) -> Result<Self> {
        let file = directory(name).join("state.json");
        let text = std::fs::read_to_string(&file).with_context(|| format!("no lab {name} stands"))?;
        let state: State = serde_json::from_str(&text).with_context(|| format!("{}", file.display()))?;
        let mut lab = Self::plan(name, &state.bin_dir)?;
        lab.processes = state.processes;
        lab.pods = state.pods;
        Ok(lab)
    }

    /// The namespace of a machine.
    pub fn netns(&self, machine: &str) -> Netns {
        Netns::named(&format!("{}-{machine}", self.name))
    }

    /// The kubelet of a node.
    pub fn kubelet(&self, node: &str) -> Kubelet {
        let agent = &self.agents[node];
        Kubelet {
            netns: agent.netns.clone(),
            cni_conf_dir: agent.cni_conf_dir(),
            cni_bin_dir: agent.cni_bin_dir.clone(),
            prefix: format!("{}-pod", self.name),
            cluster: self.cluster.clone(),
        }
    }

    /// Runs a pod and keeps it.
    ///
    /// # Errors
    /// As [`Kubelet::run_pod`].
    pub fn run_pod(&mut self, spec: &PodSpec) -> Result<&Pod> {
        let pod = self.kubelet(&spec.node).run_pod(spec)?;
        let name = pod.full_name();
        self.pods.insert(name.clone(), pod);
        Ok(&self.pods[&name])
    }

    /// Starts the agent of a node and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn start_agent(&mut self, node: &str) -> Result<Process> {
        let process = self.agents[node].start()?;
        self.processes.insert(node.to_owned(), process);
        Ok(process)
    }

    /// The pods as parties of a probe matrix.
    pub fn parties(&self) -> Vec<Party> {
        let party = |pod: &Pod| Party {
            name: pod.full_name(),
            netns: pod.netns.clone(),
            addresses: pod.addresses.clone(),
        };
        self.pods.values().map(party).collect()
    }

    /// The host outside the cluster as a party.
    pub fn outside(&self) -> Party {
        let addresses =
            self.topology.ports("outside").flat_map(|(near, _)| [near.v4.ip().into(), near.v6.ip().into()]);
        Party { name: "outside".into(), netns: self.netns("outside"), addresses: addresses.collect() }
    }

    /// Gives a node its default routes again, as its network configuration would after a link has come back.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn restore_default_routes(&self, node: &str) -> Result<()> {
        self.add_default_routes(self.topology.machine(node))
    }

    /// Where this lab's files are.
    pub fn dir(&self) -> PathBuf {
        directory(&self.name)
    }

    /// The lab as it will be, with nothing of it made yet but its directory.
    fn plan(name: &str, bin_dir: &Path) -> Result<Self> {
        let topology = Topology::two_racks();
        let dir = directory(name);
        let cluster = Cluster::new(dir.join("manifests"))?;
        let netns = |machine: &str| Netns::named(&format!("{name}-{machine}"));
        let mut lab = Self {
            name: name.to_owned(),
            agents: BTreeMap::new(),
            routers: BTreeMap::new(),
            processes: BTreeMap::new(),
            pods: BTreeMap::new(),
            doors: Vec::new(),
            cluster,
            topology,
        };
        for machine in &lab.topology.machines {
            let files = dir.join(machine.name);
            match machine.role {
                Role::Node => {
                    let agent = Agent {
                        node: machine.name.to_owned(),
                        netns: netns(machine.name),
                        bin_dir: bin_dir.to_owned(),
                        manifests: lab.cluster.dir().to_owned(),
                        dir: files,
                        cni_bin_dir: dir.join("cni-bin"),
                        extra: Vec::new(),
                    };
                    lab.agents.insert(machine.name, agent);
                }
                Role::Bird => {
                    lab.routers.insert(machine.name, Box::new(bird::Bird::new(netns(machine.name), files)));
                }
                Role::Frr => {
                    lab.routers.insert(machine.name, Box::new(frr::Frr::new(netns(machine.name), files)));
                }
                Role::Host => {}
            }
        }
        Ok(lab)
    }

    fn make_machines(&self) -> Result<()> {
        for machine in &self.topology.machines {
            let netns = Netns::create(&format!("{}-{}", self.name, machine.name))?;
            for scope in ["all", "default"] {
                netns.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
                // A switch port that is shut and opened again still has its addresses, and a node's should too.
                netns.sysctl(&format!("net.ipv6.conf.{scope}.keep_addr_on_down"), "1")?;
            }
            if machine.role != Role::Host {
                netns.sysctl("net.ipv4.ip_forward", "1")?;
                netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
                // Flows, not addresses, are spread over equal paths.
                netns.sysctl("net.ipv4.fib_multipath_hash_policy", "1")?;
                netns.sysctl("net.ipv6.fib_multipath_hash_policy", "1")?;
            }
            if machine.role == Role::Node {
                // As the init container sets it.
                netns.sysctl("net.ipv4.nexthop_compat_mode", "0")?;
            }
            if let Some(id) = machine.router_id {
                netns.ip(&format!("address add {id}/32 dev lo"))?;
            }
        }
        for Cable(a, b) in &self.topology.cables {
            let (near, far) = (self.netns(a.machine), self.netns(b.machine));
            netns::connect(
                &End {
                    netns: &near,
                    interface: a.interface,
                    addresses: vec![a.v4.to_string(), a.v6.to_string()],
                },
                &End {
                    netns: &far,
                    interface: b.interface,
                    addresses: vec![b.v4.to_string(), b.v6.to_string()],
                },
            )?;
        }
        for machine in &self.topology.machines {
            if matches!(machine.role, Role::Node | Role::Host) {
                self.add_default_routes(machine)?;
            }
        }
        Ok(())
    }

    /// Machines that are no routers reach the world through their ToRs, all of them alike.
    fn add_default_routes(&self, machine: &Machine) -> Result<()> {
        let netns = self.netns(machine.name);
        let (mut v4, mut v6) = (String::new(), String::new());
        for (near, far) in self.topology.uplinks(machine.name) {
            v4.push_str(&format!(" nexthop via {} dev {}", far.v4.ip(), near.interface));
            v6.push_str(&format!(" nexthop via {} dev {}", far.v6.ip(), near.interface));
        }
        netns.ip(&format!("-4 route replace default{v4}"))?;
        netns.ip(&format!("-6 route replace default{v6}"))?;
        Ok(())
    }

    fn start_routers(&self) -> Result<()> {
        for machine in &self.topology.machines {
            let files = self.dir().join(machine.name);
            match machine.role {
                Role::Bird => {
                    let config = bird::config(&self.topology, machine, &files.join("bird.log"));
                    bird::Bird::new(self.netns(machine.name), files).start(&config)?;
                }
                Role::Frr => {
                    let config = frr::config(&self.topology, machine);
                    frr::Frr::new(self.netns(machine.name), files).start(&config)?;
                }
                Role::Node | Role::Host => {}
            }
        }
        Ok(())
    }

    /// Puts the plugin where a runtime would find it, under the name that the conflist has for it.
    fn install_plugin(&self, bin_dir: &Path) -> Result<()> {
        let dir = self.dir().join("cni-bin");
        std::fs::create_dir_all(&dir)?;
        std::fs::copy(agent::binary(bin_dir, "manx-cni")?, dir.join("manx"))
            .context("cannot install manx-cni")?;
        Ok(())
    }

    /// An API server that follows the manifest directory, with a door in each node's namespace; agents find it there.
    fn serve_api(&mut self) -> Result<()> {
        let server = Arc::new(ApiServer::start()?);
        let kubeconfig = self.dir().join("kubeconfig");
        ApiServer::write_kubeconfig_for(&format!("http://{API}"), &kubeconfig, None)?;
        for agent in self.agents.values_mut() {
            let door =
                agent.netns.enter(|| TcpListener::bind(API))?.context("port 6443 of a node is taken")?;
            self.doors.push(server.serve_also(door)?);
            agent.manifests.clone_from(&kubeconfig);
        }
        self.cluster = self.cluster.clone().served_by(server);
        Ok(())
    }

    fn write_cluster(&self) -> Result<()> {
        for node in self.topology.nodes() {
            self.cluster.put(node.name, &[cluster::node(&self.topology, node.name)])?;
        }
        self.cluster.put("bgp", &{
            let mut objects = vec![cluster::bgp_configuration()];
            objects.extend(cluster::bgp_peers(&self.topology));
            objects
        })?;
        for (name, labels) in NAMESPACES {
            self.cluster.put(&format!("namespace-{name}"), &[cluster::namespace(name, labels)])?;
        }
        Ok(())
    }

    fn start_agents(&mut self) -> Result<()> {
        let nodes: Vec<&'static str> = self.agents.keys().copied().collect();
        for node in &nodes {
            self.start_agent(node)?;
        }
        for node in nodes {
            let kubelet = self.kubelet(node);
            let process = self.processes[node];
            let ready = wait::until(AGENT_LIMIT, || match kubelet.is_configured() {
                true => Ok(()),
                false if !process.is_running() => Err("has ended"),
                false => Err("has written no conflist"),
            });
            if let Err(complaint) = ready {
                let log = std::fs::read_to_string(self.agents[node].log()).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                bail!(
                    "the agent of {node} {complaint} after {AGENT_LIMIT:?}; it said:\n{}",
                    tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                );
            }
        }
        Ok(())
    }

    fn save(&self, bin_dir: &Path) -> Result<()> {
        let state =
            State { bin_dir: bin_dir.to_owned(), processes: self.processes.clone(), pods: self.pods.clone() };
        std::fs::write(self.dir().join("state.json"), serde_json::to_string_pretty(&state)?)?;
        Ok(())
    }
}

/// Removes a lab: its processes, namespaces and files. Nothing happens when there is none.
///
/// # Errors
/// When something cannot be removed; the rest is removed all the same.
pub fn down(name: &str) -> Result<()> {
    let removed = netns::remove_with_prefix(&format!("{name}-"));
    for dir in [directory(name), PathBuf::from("/run/frr").join(format!("{name}-tor-b"))] {
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
    }
    removed
}

fn directory(name: &str) -> PathBuf {
    PathBuf::from("/run").join(name)
}

/// The Kubernetes namespaces, with their labels.
const NAMESPACES: [(&str, &[(&str, &str)]); 2] =
    [("front", &[("team", "front")]), ("back", &[("team", "back")])];

/// Two pods on each node: a client in `front` and a web server in `back`; the one on node-1 is in another zone.
fn pods() -> Vec<PodSpec> {
    let mut pods = Vec::new();
    for number in 1..=3 {
        let node = format!("node-{number}");
        pods.push(PodSpec::new(&format!("front/client-{number}"), &node, &[("app", "client")]));
        let zone = if number == 1 { "east" } else { "west" };
        pods.push(PodSpec::new(&format!("back/web-{number}"), &node, &[("app", "web"), ("zone", zone)]));
    }
    pods
}
