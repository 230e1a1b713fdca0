//! From the wire into the kernel: a session that announces many routes to the agent and, in the same rounds, to BIRD; the time
//! until the kernel holds them all, CPU time and memory. Also the agent's memory with nothing to do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::json;

use super::injector::{self, Injector};
use super::{Comparison, Sample, floor};
use crate::agent::Agent;
use crate::cluster::Cluster;
use crate::netns::{End, Guard, Netns, connect};
use crate::process::Process;
use crate::routers::bird::Bird;
use crate::wait;

const NEAR: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
const NEAR_AS: u32 = 65101;
const FAR_AS: u32 = 65001;
const LIMIT: Duration = Duration::from_secs(120);

/// Announces `count` routes in each of `rounds` rounds and prints the table.
///
/// # Errors
/// When somebody does not come up.
pub fn run(prefix: &str, bin_dir: &Path, rounds: u32, count: u32) -> Result<()> {
    let mut idle =
        Comparison::new("Memory with one peer and no routes; the time is from start to Established", 1);
    let mut filled = Comparison::new(&format!("{count} routes from the wire into the kernel"), count);
    let prefixes = floor::prefixes(count);
    let updates = injector::announce(&prefixes, FAR_AS, FAR);
    for round in 0..rounds {
        let _guard = Guard::new(prefix)?;
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in("/run")?;
        for who in if round % 2 == 0 { ["manx", "bird"] } else { ["bird", "manx"] } {
            let near = Netns::create(&format!("{prefix}{who}"))?;
            let far = Netns::create(&format!("{prefix}{who}-far"))?;
            connect(
                &End { netns: &near, interface: "near", addresses: vec![format!("{NEAR}/24")] },
                &End { netns: &far, interface: "far", addresses: vec![format!("{FAR}/24")] },
            )?;
            let started = Instant::now();
            let process = if who == "manx" {
                start_agent(&near, bin_dir, dir.path())?
            } else {
                start_bird(&near, dir.path())?
            };
            let listen = SocketAddr::new(IpAddr::V4(FAR), 179);
            let mut session = Injector::accept(&far, listen, FAR_AS, LIMIT)?;
            let name = if who == "manx" { "manx-agent" } else { "BIRD 2" };
            idle.add(name, Sample { wall: started.elapsed(), cpu: None, resident_kb: process.resident_kb() });
            filled.add(name, fill(&near, &process, &mut session, &updates, count)?);
            drop(session);
            process.end(Signal::SIGKILL)?;
        }
    }
    idle.print();
    filled.print();
    Ok(())
}

fn fill(
    netns: &Netns,
    process: &Process,
    session: &mut Injector,
    updates: &[u8],
    count: u32,
) -> Result<Sample> {
    let before = cpu(process);
    let started = Instant::now();
    session.send(updates)?;
    let full = netns.enter(|| {
        wait::until(LIMIT, || {
            let held = super::fib::kernel_prefixes().map_err(|e| format!("{e:#}"))?;
            if held >= count { Ok(()) } else { Err(format!("the kernel holds {held} of {count} routes")) }
        })
    })?;
    full.map_err(anyhow::Error::msg)?;
    let wall = started.elapsed();
    let spent = cpu(process).zip(before).map(|(after, before)| after.saturating_sub(before));
    Ok(Sample { wall, cpu: spent, resident_kb: process.resident_kb() })
}

fn cpu(process: &Process) -> Option<Duration> {
    process.cpu_seconds().map(Duration::from_secs_f64)
}

fn start_agent(netns: &Netns, bin_dir: &Path, dir: &Path) -> Result<Process> {
    let cluster = Cluster::new(dir.join("manifests"))?;
    cluster.put(
        "cluster",
        &[
            json!({"apiVersion": "v1", "kind": "Node",
                   "metadata": {"name": "bench", "annotations": {"manx.dev/asn": NEAR_AS.to_string()}},
                   "spec": {"podCIDRs": ["10.200.0.0/24"]},
                   "status": {"addresses": [{"type": "InternalIP", "address": NEAR.to_string()}]}}),
            json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer", "metadata": {"name": "far"},
                   "spec": {"peerIP": FAR.to_string(), "asNumber": FAR_AS, "families": ["ipv4"], "connectRetry": "1s",
                            "maxPrefixes": {"limit": 10_000_000, "action": "Warn"}}}),
        ],
    )?;
    let agent = Agent {
        node: "bench".into(),
        netns: netns.clone(),
        bin_dir: bin_dir.to_owned(),
        manifests: cluster.dir().to_owned(),
        dir: dir.join("agent"),
        cni_bin_dir: PathBuf::from("/nonexistent"),
        extra: vec!["--enable".into(), "bgp".into()],
    };
    agent.start()
}

fn start_bird(netns: &Netns, dir: &Path) -> Result<Process> {
    let config = format!(
        "router id {NEAR};\nprotocol device {{}}\n\
         protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}\n\
         protocol bgp {{ local {NEAR} as {NEAR_AS}; neighbor {FAR} as {FAR_AS}; connect delay time 1; connect retry time 1;\n\
         ipv4 {{ import all; export none; }}; }}\n"
    );
    Bird::new(netns.clone(), dir.join("bird")).start(&config).context("BIRD")
}
