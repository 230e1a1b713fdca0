//! CNI ADD and DEL against Debian's `ptp` and `bridge` with `host-local` and against the floor, in the same rounds, in the
//! same namespace, one after the other and eight at a time.
//!
//! Manx's ADD includes the agent's word that the pod's policy is in the kernel; the others have none to wait for. CPU time is
//! that of the plugin's processes; what the agent spends on a pod is printed beside. The floor is what any plugin needs:
//! a static process that starts and ends (our own, asked for its version), and the same link, addresses and routes by the
//! same netlink batches; no addresses chosen or kept, nobody asked, and a DEL that waits for the kernel.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use manx_cni::plan::Wiring;
use manx_cni::{link, netns as pod_netns};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Comparison, time_all};
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
    for (dual_stack, at_once) in [(false, 1), (true, 1), (false, 8)] {
        let family = if dual_stack { "IPv4 and IPv6" } else { "IPv4" };
        let pace =
            if at_once == 1 { "one after the other".to_owned() } else { format!("{at_once} at a time") };
        let mut adding = Comparison::new(&format!("CNI ADD, {family}, {pace}"), pods);
        let mut deleting = Comparison::new(&format!("CNI DEL, {family}, {pace}"), pods);
        let _guard = Guard::new(prefix)?;
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in("/run")?;
        let host = Host::start(prefix, bin_dir, dir.path(), dual_stack, rounds * pods)?;
        for round in 0..rounds {
            let numbers = round * pods..(round + 1) * pods;
            let sandboxes: Vec<Netns> =
                numbers.clone().map(|n| Netns::sandbox(&format!("{prefix}pod{n}"))).collect::<Result<_>>()?;
            let work: Vec<(u32, &Netns)> = numbers.zip(&sandboxes).collect();
            let plugins = [
                ("ptp + host-local", host.reference("ptp", dir.path(), dual_stack)),
                ("bridge + host-local", host.reference("bridge", dir.path(), dual_stack)),
                ("floor", host.floor(dual_stack)),
                ("manx", host.manx()?),
            ];
            for turn in 0..plugins.len() {
                let (name, plugin) = &plugins[(turn + round as usize) % plugins.len()];
                for (verb, comparison) in [("ADD", &mut adding), ("DEL", &mut deleting)] {
                    let ((), sample) = time_all(|| {
                        each(&host.netns, at_once, &work, |number, sandbox| {
                            plugin.call(verb, number, sandbox)
                        })
                    })?;
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

/// Does all of the work in the host's namespace, so many at a time.
fn each(
    host: &Netns,
    at_once: u32,
    work: &[(u32, &Netns)],
    call: impl Fn(u32, &Netns) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicU32::new(0);
    let worker = || -> Result<()> {
        while let Some((number, sandbox)) = work.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            call(*number, sandbox)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(|| host.enter(worker)?)).collect();
        workers.into_iter().try_for_each(|w| w.join().expect("a worker does not panic"))
    })
}

/// A way to attach pods.
enum Plugin {
    /// A CNI plugin as a process.
    Process(Config),
    /// The netlink work alone, after a process that does nothing.
    Floor { process: PathBuf, dual_stack: bool },
}

impl Plugin {
    fn call(&self, verb: &str, number: u32, sandbox: &Netns) -> Result<()> {
        let (process, dual_stack) = match self {
            Plugin::Process(config) => return call(verb, config, number, sandbox),
            Plugin::Floor { process, dual_stack } => (process, *dual_stack),
        };
        let version = Command::new(process)
            .env_clear()
            .env("CNI_COMMAND", "VERSION")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        anyhow::ensure!(version.success(), "{} VERSION fails", process.display());
        let [high, low] = u16::try_from(number).context("few enough pods")?.to_be_bytes();
        let mut ips: Vec<IpAddr> = vec![[10, 202, high, low].into()];
        if dual_stack {
            ips.push([0xfd00, 0x10, 0x202, 0, 0, 0, 0, u16::from_be_bytes([high, low]) + 1].into());
        }
        let wiring = Wiring {
            interface: format!("floor{number}"),
            ifname: "eth0".to_owned(),
            mac: [2, 0, 0, 0, high, low],
            mtu: 1500,
            ips,
        };
        if verb == "DEL" {
            anyhow::ensure!(link::delete(&wiring.interface)?, "{} is not there", wiring.interface);
            return Ok(());
        }
        let netns = pod_netns::Netns::open(&sandbox.path())?;
        let ends = link::create(&wiring, &netns)?;
        Ok(link::set_up(&wiring, &netns, ends)?)
    }
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

    fn floor(&self, dual_stack: bool) -> Plugin {
        Plugin::Floor { process: self.plugins.join("manx"), dual_stack }
    }

    /// The configuration that the agent's conflist has for the plugin.
    fn manx(&self) -> Result<Plugin> {
        let dir = std::fs::read_dir(self.agent.cni_conf_dir())?;
        let file = dir.filter_map(|entry| Some(entry.ok()?.path())).find(|p| p.extension().is_some());
        let text = std::fs::read_to_string(file.context("no conflist")?)?;
        let conflist: Value = serde_json::from_str(&text)?;
        let mut config = conflist["plugins"][0].clone();
        config["cniVersion"] = conflist["cniVersion"].clone();
        config["name"] = conflist["name"].clone();
        Ok(Plugin::Process(Config { plugin: self.plugins.join("manx"), path: self.plugins.clone(), config }))
    }

    fn reference(&self, kind: &str, dir: &Path, dual_stack: bool) -> Plugin {
        let block = if kind == "ptp" { 203 } else { 204 };
        let mut ranges = vec![json!([{"subnet": format!("10.{block}.0.0/20")}])];
        let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
        if dual_stack {
            ranges.push(json!([{"subnet": format!("fd00:10:{block}::/64")}]));
            routes.push(json!({"dst": "::/0"}));
        }
        let mut config = json!({
            "cniVersion": "1.0.0", "name": kind, "type": kind,
            "ipam": {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": dir.join("host-local")},
        });
        if kind == "bridge" {
            config["bridge"] = json!("bench0");
            config["isGateway"] = json!(true);
        }
        Plugin::Process(Config { plugin: Path::new(REFERENCE).join(kind), path: REFERENCE.into(), config })
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
