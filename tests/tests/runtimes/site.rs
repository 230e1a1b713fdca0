//! Two nodes on one cable, each with an agent of its own that installs the plugin; a node mesh between them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use manx_tests::agent::Agent;
use manx_tests::cluster::Cluster;
use manx_tests::netns::{self, End, Guard, Netns};
use manx_tests::process::Process;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{eventually, fetching, image};

/// A node of the site.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) ipv4: Ipv4Addr,
    number: u8,
}

pub(crate) const NODES: [Node; 2] = [
    Node { name: "n1", ipv4: Ipv4Addr::new(10, 61, 0, 1), number: 1 },
    Node { name: "n2", ipv4: Ipv4Addr::new(10, 61, 0, 2), number: 2 },
];

/// Debian's reference plugins that may follow ours.
const NEIGHBOURS: [&str; 3] = ["portmap", "bandwidth", "loopback"];

/// What pods and runtimes of a site share; goes nowhere by itself.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) cluster: Cluster,
}

/// Everything; removed on drop, also after a panic.
pub(crate) struct Site {
    shared: Shared,
    pub(crate) image: PathBuf,
    agents: Vec<(Agent, Process)>,
    plugin: PathBuf,
    // The order of removal: namespaces with their processes, then files.
    _guard: Guard,
    dir: TempDir,
}

impl std::ops::Deref for Site {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (agent, _) in &self.agents {
                let log = fs::read_to_string(agent.log()).unwrap_or_default();
                eprintln!("the agent of {} said:\n{log}", agent.node);
            }
        }
    }
}

impl Site {
    /// Brings it up; `name` tells sites of one process apart.
    pub(crate) fn new(name: &str) -> Self {
        let prefix = format!("manx-rt-{}-{name}", std::process::id());
        let guard = Guard::new(&prefix).unwrap();
        // Unix sockets have short names.
        let dir = tempfile::Builder::new().prefix("mrt").tempdir_in("/run").unwrap();
        let release = release_dir();
        let plugin = dir.path().join("manx-cni");
        fs::copy(release.join("manx-cni"), &plugin).expect("`make build` has made manx-cni");
        let cluster = Cluster::new(dir.path().join("manifests")).unwrap();
        let netns = NODES.map(|node| Netns::create(&format!("{prefix}-{}", node.name)).unwrap());
        let end = |i: usize| {
            let node = NODES[i];
            let addresses = vec![format!("{}/24", node.ipv4), format!("fd61::{}/64", node.number)];
            End { netns: &netns[i], interface: "eth0", addresses }
        };
        netns::connect(&end(0), &end(1)).unwrap();
        let objects = NODES.map(|node| {
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
                "spec": {"podCIDRs": [format!("10.62.{}.0/24", node.number), format!("fd62:{}::/64", node.number)]},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": node.ipv4.to_string()},
                    {"type": "InternalIP", "address": format!("fd61::{}", node.number)},
                ]},
            })
        });
        cluster.put("nodes", &objects).unwrap();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        cluster.put("namespaces", &[namespace]).unwrap();
        let mut site = Site {
            image: image::write(dir.path()),
            shared: Shared { cluster },
            agents: Vec::new(),
            plugin,
            _guard: guard,
            dir,
        };
        for (node, netns) in NODES.iter().zip(netns) {
            site.start_agent(*node, netns, &release);
        }
        site
    }

    /// What can be sent to another thread.
    pub(crate) fn shared(&self) -> Shared {
        self.shared.clone()
    }

    fn start_agent(&mut self, node: Node, netns: Netns, release: &Path) {
        let dir = self.dir(node);
        let bin = dir.join("bin");
        fs::create_dir_all(&bin).unwrap();
        for neighbour in NEIGHBOURS {
            fs::copy(Path::new("/usr/lib/cni").join(neighbour), bin.join(neighbour))
                .expect("the package containernetworking-plugins is installed");
        }
        let agent = Agent {
            node: node.name.to_owned(),
            netns,
            bin_dir: release.to_owned(),
            manifests: self.shared.cluster.dir().to_owned(),
            dir,
            cni_bin_dir: bin,
            extra: vec!["--cni-plugin".to_owned(), self.plugin.display().to_string()],
        };
        let process = agent.start().unwrap();
        self.agents.push((agent, process));
        self.wait_for_conflist(node);
    }

    fn wait_for_conflist(&self, node: Node) {
        eventually("pods can be attached", || {
            // Its exit status speaks of the peers as well, of which the first node has none yet.
            let agent = self.agent(node);
            let mut manxctl = Command::new(agent.bin_dir.join("manxctl"));
            let output =
                manxctl.arg("--run-dir").arg(agent.run_dir()).args(["status", "-o", "json"]).output();
            let status: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap_or_default();
            status["cni"]["ready"] == true && status["policy"]["pending"] == false
        });
    }

    /// The agent of a node is killed, and another one started.
    pub(crate) fn restart_agent(&mut self, node: Node) {
        let (agent, process) = &mut self.agents[usize::from(node.number) - 1];
        process.end(Signal::SIGKILL).unwrap();
        *process = agent.start().unwrap();
        self.wait_for_conflist(node);
    }

    /// Another file with the same content, as a new release is.
    pub(crate) fn replace_plugin(&self) {
        let new = self.plugin.with_extension("new");
        fs::copy(&self.plugin, &new).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &self.plugin).unwrap();
    }

    /// The identity of the plugin's file where the runtime finds it.
    pub(crate) fn installed_plugin(&self, node: Node) -> u64 {
        fs::metadata(self.agent(node).cni_bin_dir.join("manx")).unwrap().ino()
    }

    pub(crate) fn agent(&self, node: Node) -> &Agent {
        &self.agents[usize::from(node.number) - 1].0
    }

    /// Where a node's files are.
    pub(crate) fn dir(&self, node: Node) -> PathBuf {
        self.dir.path().join(node.name)
    }

    /// Fetches a page from the node itself; `None`: it does not come.
    pub(crate) fn fetch(&self, node: Node, server: SocketAddr) -> Option<String> {
        let shell = self.agent(node).netns.command("busybox").args(["sh", "-c", &fetching(server)]).output();
        let output = shell.unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// No link, address, route, rule or namespace of a pod.
    pub(crate) fn assert_nothing_left(&self, node: Node) {
        let agent = self.agent(node);
        let netns = &agent.netns;
        eventually("the agent has forgotten the pods", || {
            agent
                .manxctl_json(&["pods"])
                .is_ok_and(|pods| pods["items"].as_array().is_some_and(Vec::is_empty))
        });
        assert_eq!(agent.manxctl_json(&["ipam"]).unwrap()["allocations"], json!([]));
        let links = netns.ip("-br link").unwrap();
        assert!(!links.lines().any(|link| link.starts_with("manx")), "{links}");
        let routes = netns.ip("route").unwrap() + &netns.ip("-6 route").unwrap();
        assert!(!routes.contains("metric 76"), "{routes}");
        let pods =
            |rules: &str| rules.lines().any(|l| l.contains("-SE-manx") || l.contains("--to-destination"));
        eventually("the rules of the pods are gone", || {
            let rules =
                ["iptables-nft-save", "ip6tables-nft-save"].map(|save| netns.run(save).unwrap_or_default());
            rules.iter().all(|rules| !rules.is_empty() && !pods(rules))
        });
    }
}

impl Shared {
    /// Writes a Pod object; without addresses it has not started yet.
    pub(crate) fn put_pod(
        &self,
        node: Node,
        name: &str,
        uid: &str,
        labels: &[(&str, &str)],
        ips: &[impl Into<IpAddr> + Copy],
    ) {
        let labels: serde_json::Map<_, _> = labels.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": Into::<IpAddr>::into(*ip).to_string()})).collect();
        let phase = if ips.is_empty() { "Pending" } else { "Running" };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": uid, "labels": labels},
            "spec": {"nodeName": node.name, "containers": [{"name": "main", "image": image::IMAGE}]},
            "status": {"phase": phase, "podIPs": ips},
        });
        self.cluster.put(&format!("pod-{name}"), &[pod]).unwrap();
    }
}

/// Where the release binaries are, seen from a test's own place.
fn release_dir() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let target = here.ancestors().nth(3).expect("TARGET/PROFILE/deps/THIS");
    target.join("release")
}
