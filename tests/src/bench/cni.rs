//! CNI ADD and DEL against Debian's `ptp` with `host-local`, in the same rounds, in the same namespace.
//!
//! Manx's ADD includes the agent's word that the pod's policy is in the kernel; ptp has none to wait for. CPU time is that of
//! the plugin's processes; what the agent spends on a pod is printed beside.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Comparison, time_children};
use crate::agent::Agent;
use crate::cluster::{self, Cluster};
use crate::netns::{Guard, Netns};
use crate::wait;

/// Debian's reference plugins.
const REFERENCE: &str = "/usr/lib/cni";
const LIMIT: Duration = Duration::from_secs(20);

/// Attaches and detaches `pods` pods with each plugin in each of `rounds` rounds and prints the tables.
///
/// # Errors
/// When a plugin fails.
pub fn run(prefix: &str, bin_dir: &Path, rounds: u32, pods: u32) -> Result<()> {
    for dual_stack in [false, true] {
        let family = if dual_stack { "IPv4 and IPv6" } else { "IPv4" };
        let mut adding = Comparison::new(&format!("CNI ADD, {family}, one after the other"), pods);
        let mut deleting = Comparison::new(&format!("CNI DEL, {family}, one after the other"), pods);
        let _guard = Guard::new(prefix)?;
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in("/run")?;
        let host = Host::start(prefix, bin_dir, dir.path(), dual_stack, rounds * pods)?;
        let reference = host.reference(dir.path(), dual_stack);
        for round in 0..rounds {
            let numbers = round * pods..(round + 1) * pods;
            let sandboxes: Vec<Netns> =
                numbers.clone().map(|n| Netns::sandbox(&format!("{prefix}pod{n}"))).collect::<Result<_>>()?;
            let manx = host.manx()?;
            let plugins = [("ptp + host-local", &reference), ("manx", &manx)];
            for turn in 0..plugins.len() {
                let (name, config) = plugins[(turn + round as usize) % plugins.len()];
                for (verb, comparison) in [("ADD", &mut adding), ("DEL", &mut deleting)] {
                    let ((), sample) = host.netns.enter(|| {
                        time_children(|| {
                            for (number, sandbox) in numbers.clone().zip(&sandboxes) {
                                call(verb, config, number, sandbox)?;
                            }
                            Ok(())
                        })
                    })??;
                    comparison.add(name, sample);
                }
            }
            for sandbox in &sandboxes {
                sandbox.remove()?;
            }
        }
        adding.print();
        deleting.print();
        host.stop()?;
    }
    Ok(())
}

/// A node with its agent.
struct Host {
    netns: Netns,
    agent: Agent,
    process: crate::process::Process,
    plugins: PathBuf,
}

/// What a call needs: the plugin, its configuration, where further plugins are.
struct Config {
    plugin: PathBuf,
    path: PathBuf,
    config: Value,
}

impl Host {
    fn start(prefix: &str, bin_dir: &Path, dir: &Path, dual_stack: bool, pods: u32) -> Result<Self> {
        let netns = Netns::sandbox(&format!("{prefix}host"))?;
        netns.sysctl("net.ipv4.ip_forward", "1")?;
        netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        let plugins = dir.join("cni-bin");
        std::fs::create_dir_all(&plugins)?;
        std::fs::copy(crate::agent::binary(bin_dir, "manx-cni")?, plugins.join("manx"))?;
        let cluster = Cluster::new(dir.join("manifests"))?;
        let mut cidrs = vec!["10.200.0.0/20"];
        if dual_stack {
            cidrs.push("fd00:10:200::/64");
        }
        let mut objects = vec![
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bench"},
                   "spec": {"podCIDRs": cidrs},
                   "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}}),
            cluster::namespace("default", &[]),
        ];
        for number in 0..pods {
            objects.push(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("pod{number}"), "namespace": "default", "uid": uid(number)},
                "spec": {"nodeName": "bench", "containers": [{"name": "main", "image": "bench"}]},
                "status": {"phase": "Pending"}}));
        }
        cluster.put("cluster", &objects)?;
        let agent = Agent {
            node: "bench".into(),
            netns: netns.clone(),
            bin_dir: bin_dir.to_owned(),
            manifests: cluster.dir().to_owned(),
            dir: dir.join("agent"),
            cni_bin_dir: plugins.clone(),
            extra: vec!["--enable".into(), "policy,cni".into()],
        };
        let process = agent.start()?;
        let host = Self { netns, agent, process, plugins };
        wait::until(LIMIT, || host.manx().map(drop)).context("the agent writes no conflist")?;
        Ok(host)
    }

    /// The configuration that the agent's conflist has for the plugin.
    fn manx(&self) -> Result<Config> {
        let dir = std::fs::read_dir(self.agent.cni_conf_dir())?;
        let file = dir.filter_map(|entry| Some(entry.ok()?.path())).find(|p| p.extension().is_some());
        let text = std::fs::read_to_string(file.context("no conflist")?)?;
        let conflist: Value = serde_json::from_str(&text)?;
        let mut config = conflist["plugins"][0].clone();
        config["cniVersion"] = conflist["cniVersion"].clone();
        config["name"] = conflist["name"].clone();
        Ok(Config { plugin: self.plugins.join("manx"), path: self.plugins.clone(), config })
    }

    fn reference(&self, dir: &Path, dual_stack: bool) -> Config {
        let mut ranges = vec![json!([{"subnet": "10.201.0.0/20"}])];
        let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
        if dual_stack {
            ranges.push(json!([{"subnet": "fd00:10:201::/64"}]));
            routes.push(json!({"dst": "::/0"}));
        }
        let config = json!({
            "cniVersion": "1.0.0", "name": "reference", "type": "ptp",
            "ipam": {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": dir.join("host-local")},
        });
        Config { plugin: Path::new(REFERENCE).join("ptp"), path: REFERENCE.into(), config }
    }

    fn stop(&self) -> Result<()> {
        let cpu = self.process.cpu_seconds().unwrap_or_default();
        let resident = self.process.resident_kb().unwrap_or_default();
        println!(
            "  the agent meanwhile: {:.0} ms CPU in all, {:.1} MB RSS",
            cpu * 1000.0,
            resident as f64 / 1024.0
        );
        self.process.end(Signal::SIGKILL)
    }
}

fn uid(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// Runs the plugin directly, as a runtime does, from a thread in the host's namespace.
fn call(verb: &str, config: &Config, number: u32, sandbox: &Netns) -> Result<()> {
    let container = format!("bench{number}");
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod{number};K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID={}",
        uid(number)
    );
    let mut child = Command::new(&config.plugin)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &container)
        .env("CNI_NETNS", sandbox.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", args)
        .env("CNI_PATH", &config.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", config.plugin.display()))?;
    let _ = child.stdin.take().expect("stdin is piped").write_all(config.config.to_string().as_bytes());
    let out = child.wait_with_output()?;
    if !out.status.success() {
        bail!("{} {verb}: {}", config.plugin.display(), String::from_utf8_lossy(&out.stdout).trim());
    }
    Ok(())
}
