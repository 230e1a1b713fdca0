//! `manx-bench`: side-by-side tables, every alternative in every round.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use manx_tests::bench;
use manx_tests::bench::bgp::{Kind, Run};
use manx_tests::netns;

/// Begins the name of every namespace, before the pid.
const PREFIX: &str = "manx-bench-";
/// Routes under a next hop that fails.
const FAILING: u32 = 300_000;
/// Routes of the big tables.
const MANY: u32 = 1_000_000;

/// Measures Manx beside the usual alternatives, in network namespaces of its own, in interleaved rounds.
///
/// One row alone, for instance a million routes through the RIB of Manx and BIRD, three times each:
///     manx-bench rib --routes 1000000 --rounds 3 --with manx,bird
#[derive(Parser)]
#[command(name = "manx-bench", version, verbatim_doc_comment)]
struct Cli {
    /// What to measure; everything when nothing is named.
    #[arg(value_enum)]
    what: Vec<What>,
    /// How often each alternative has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Routes of each row that asks for them; by default 100000, and for rib and fib a million as well.
    #[arg(long)]
    routes: Option<u32>,
    /// Pods a round.
    #[arg(long, default_value_t = 20)]
    pods: u32,
    /// The BGP speakers that take part.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "manx,bird,frr,gobgp")]
    with: Vec<Kind>,
    /// Those that need minutes take part there, too: FRR and GoBGP with a million routes, GoBGP with 200 sessions.
    #[arg(long, env = "MANX_BENCH_FULL")]
    full: bool,
    /// Where manx-agent and manx-cni are; by default where this program is.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Routes a second into the kernel by the FIB writer alone, against raw netlink.
    Writer,
    /// BGP: from session to session, no kernel routes; and their withdrawal.
    Rib,
    /// BGP: from the wire into the kernel and out again, beside raw netlink with the same routes.
    Fib,
    /// BGP: routes over 5000 next hops.
    NextHops,
    /// BGP: a next hop that fails under 300000 routes.
    Failover,
    /// BGP: 200 sessions.
    Sessions,
    /// BGP: two peers, 5000 routes: memory.
    Small,
    /// CNI ADD and DEL, against ptp + host-local.
    Cni,
    /// A label and a policy to the kernel; both, cold start, memory and a packet's cost in a cluster of 10,000 pods.
    Policy,
    /// A large cluster from the Kubernetes API: time, memory, CPU, and a label to the kernel.
    Kube,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let bin_dir = match &cli.bin_dir {
        Some(dir) => dir.clone(),
        None => std::env::current_exe()?.parent().context("a program lies in a directory")?.to_owned(),
    };
    sweep()?;
    // The pid keeps two runs apart.
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let chosen = |what| cli.what.is_empty() || cli.what.contains(&what);
    println!("{} rounds; load {}", cli.rounds, std::fs::read_to_string("/proc/loadavg")?.trim());
    let run =
        Run { prefix: prefix.clone(), bin_dir: bin_dir.clone(), rounds: cli.rounds, kinds: cli.with.clone() };
    let usual = cli.routes.unwrap_or(bench::USUAL_ROUTES);
    if chosen(What::Writer) {
        bench::fib::run(&prefix, cli.rounds, usual)?;
    }
    if chosen(What::Small) {
        bench::bgp::small(&run)?;
    }
    for (what, measure) in
        [(What::Rib, bench::bgp::rib as fn(&Run, u32) -> Result<()>), (What::Fib, bench::bgp::fib)]
    {
        if !chosen(what) {
            continue;
        }
        measure(&run, usual)?;
        if cli.routes.is_none() {
            let quick = |kind| matches!(kind, Kind::Manx | Kind::Bird);
            measure(&run.only(|kind| cli.full || quick(kind)), MANY)?;
        }
    }
    if chosen(What::NextHops) {
        bench::bgp::next_hops(&run, usual)?;
    }
    if chosen(What::Failover) {
        bench::bgp::failover(&run, cli.routes.unwrap_or(FAILING))?;
    }
    if chosen(What::Sessions) {
        bench::bgp::sessions(&run.only(|kind| cli.full || kind != Kind::Gobgp))?;
    }
    if chosen(What::Cni) {
        bench::cni::run(&prefix, &bin_dir, cli.rounds, cli.pods)?;
    }
    if chosen(What::Policy) {
        bench::policy::run(&prefix, &bin_dir, cli.rounds)?;
        bench::crowd::run(&prefix, cli.rounds)?;
        bench::crowd::memory(&prefix, &bin_dir)?;
    }
    if chosen(What::Kube) {
        bench::kube::run(&prefix, &bin_dir)?;
    }
    Ok(())
}

/// Removes what runs have left that were killed.
fn sweep() -> Result<()> {
    let gone = |name: &str| {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    for netns in netns::with_prefix(PREFIX) {
        if gone(netns.name()) {
            netns.remove()?;
        }
    }
    for entry in std::fs::read_dir("/run")? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(gone) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
