//! The speakers under test, each configured for the same sessions: Manx, and Debian's BIRD, FRR and GoBGP.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::far::{Peer, Role};
use crate::agent::Agent;
use crate::cluster::Cluster;
use crate::netns::Netns;
use crate::process::Process;
use crate::routers::bird::Bird;
use crate::routers::frr::Frr;
use crate::routers::gobgp::Gobgp;

/// For what a speaker does by itself after a load.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// The AS of the speaker under test.
const AS: u32 = 65101;

/// Which speaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// manx-agent.
    Manx,
    /// Debian's BIRD 2.
    Bird,
    /// Debian's FRR: zebra and bgpd.
    Frr,
    /// Debian's GoBGP, which writes no kernel routes.
    Gobgp,
}

impl Kind {
    /// As it stands in a table.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Manx => "manx-agent",
            Kind::Bird => "BIRD 2",
            Kind::Frr => "FRR",
            Kind::Gobgp => "GoBGP",
        }
    }
}

/// What a speaker is to do.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its address and router id.
    pub address: Ipv4Addr,
    /// Whether it writes what it learns into the kernel.
    pub fib: bool,
    /// Its sessions; it is the side that dials.
    pub peers: Vec<Peer>,
}

/// A running speaker.
#[derive(Debug)]
pub struct Speaker(Vec<Process>);

impl Speaker {
    /// Starts one in `netns`, with its files in `dir`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(kind: Kind, netns: &Netns, dir: &Path, bin_dir: &Path, task: &Task) -> Result<Self> {
        let processes = match kind {
            Kind::Manx => manx(netns, dir, bin_dir, task).map(|process| vec![process]),
            Kind::Bird => {
                Bird::new(netns.clone(), dir.to_owned()).start(&bird(task)).map(|process| vec![process])
            }
            Kind::Frr => Frr::new(netns.clone(), dir.to_owned()).start(&frr(task)),
            Kind::Gobgp => {
                Gobgp::new(netns.clone(), dir.to_owned()).start(&gobgp(task)).map(|process| vec![process])
            }
        };
        processes.map(Speaker).with_context(|| kind.name())
    }

    /// User and system time of all its processes.
    pub fn cpu(&self) -> Option<Duration> {
        let seconds: Option<f64> = self.0.iter().map(Process::cpu_seconds).sum();
        seconds.map(Duration::from_secs_f64)
    }

    /// Waits until it has nothing to do.
    ///
    /// # Errors
    /// When it is never done.
    pub fn settle(&self) -> Result<()> {
        let end = Instant::now() + SETTLE_LIMIT;
        let mut before = None;
        loop {
            let cpu = self.cpu();
            if cpu == before {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("it is busy after {SETTLE_LIMIT:?}");
            }
            before = cpu;
            // A clock tick of CPU time is 10 ms.
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Resident memory of all its processes.
    pub fn resident_kb(&self) -> Option<u64> {
        self.0.iter().map(Process::resident_kb).sum()
    }

    /// Kills it.
    ///
    /// # Errors
    /// When a process stays.
    pub fn kill(self) -> Result<()> {
        self.0.iter().rev().try_for_each(|process| process.end(Signal::SIGKILL))
    }
}

fn manx(netns: &Netns, dir: &Path, bin_dir: &Path, task: &Task) -> Result<Process> {
    let cluster = Cluster::new(dir.join("manifests"))?;
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "bench", "annotations": {"manx.dev/asn": AS.to_string()}},
        "status": {"addresses": [{"type": "InternalIP", "address": task.address}]},
    });
    let all = json!({
        "apiVersion": "manx.dev/v1alpha1", "kind": "BGPFilter", "metadata": {"name": "all"},
        "spec": {"ipv4": [{"name": "all", "action": "Accept"}]},
    });
    let mut objects = vec![node, all];
    objects.extend(task.peers.iter().map(manx_peer));
    cluster.put("cluster", &objects)?;
    let mut extra = vec!["--enable".to_owned(), "bgp".to_owned()];
    extra.extend((!task.fib).then(|| "--no-fib".to_owned()));
    let agent = Agent {
        node: "bench".into(),
        netns: netns.clone(),
        bin_dir: bin_dir.to_owned(),
        manifests: cluster.dir().to_owned(),
        dir: dir.join("agent"),
        cni_bin_dir: PathBuf::from("/nonexistent"),
        extra,
    };
    agent.start()
}

fn manx_peer(peer: &Peer) -> Value {
    let (family, filters) = match peer.role {
        Role::Inject => ("ipv4", json!([])),
        Role::Monitor => ("ipv4", json!(["all"])),
        Role::Watch => ("ipv6", json!([])),
    };
    let bfd = if peer.role == Role::Watch { json!({}) } else { Value::Null };
    json!({
        "apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer",
        "metadata": {"name": format!("far-{}", peer.address)},
        "spec": {"peerIP": peer.address, "asNumber": peer.asn, "families": [family], "connectRetry": "1s",
                 "exportFilters": filters, "sourceAddress": "None", "bfd": bfd,
                 "maxPrefixes": {"limit": 10_000_000, "action": "Warn"}},
    })
}

fn bird(task: &Task) -> String {
    let mut text = format!("router id {};\nprotocol device {{}}\n", task.address);
    if task.fib {
        text.push_str("protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }\n");
    }
    for Peer { address, asn, role } in &task.peers {
        let channel = match role {
            Role::Inject => "ipv4 { import all; export none; };",
            Role::Monitor => "ipv4 { import none; export all; };",
            Role::Watch => "ipv6 { import none; export none; };",
        };
        let _ = writeln!(
            text,
            "protocol bgp {{ local as {AS}; neighbor {address} as {asn}; hold time 600; connect delay time 1; connect retry time 1; {channel} }}"
        );
    }
    text
}

fn frr(task: &Task) -> String {
    let mut text = format!(
        "router bgp {AS}\n bgp router-id {}\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n no bgp network import-check\n timers bgp 200 600\n",
        task.address
    );
    for Peer { address, asn, .. } in &task.peers {
        let _ = writeln!(text, " neighbor {address} remote-as {asn}\n neighbor {address} timers connect 1");
    }
    for (family, watched) in [("ipv4", false), ("ipv6", true)] {
        let _ = writeln!(text, " address-family {family} unicast");
        for peer in task.peers.iter().filter(|p| (p.role == Role::Watch) == watched) {
            let _ = writeln!(text, "  neighbor {} activate", peer.address);
        }
        text.push_str(" exit-address-family\n");
    }
    if !task.fib {
        text.insert_str(0, "bgp no-rib\n");
    }
    text
}

fn gobgp(task: &Task) -> String {
    let mut text = format!("[global.config]\n as = {AS}\n router-id = \"{}\"\n", task.address);
    for Peer { address, asn, role } in &task.peers {
        let family = if *role == Role::Watch { "ipv6" } else { "ipv4" };
        let _ = writeln!(
            text,
            "[[neighbors]]\n [neighbors.config]\n  neighbor-address = \"{address}\"\n  peer-as = {asn}\n \
             [neighbors.timers.config]\n  connect-retry = 1\n  idle-hold-time-after-reset = 1\n  hold-time = 600\n  keepalive-interval = 200\n \
             [[neighbors.afi-safis]]\n  [neighbors.afi-safis.config]\n   afi-safi-name = \"{family}-unicast\""
        );
    }
    text
}
