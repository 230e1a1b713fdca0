//! `manx-bench`: side-by-side tables, every alternative in every round.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use manx_tests::bench;

/// Measures Manx beside the usual alternatives, in network namespaces of its own, in interleaved rounds.
#[derive(Parser)]
#[command(name = "manx-bench", version)]
struct Cli {
    /// What to measure; everything when nothing is named.
    #[arg(value_enum)]
    what: Vec<What>,
    /// How often each alternative has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Routes.
    #[arg(long, default_value_t = 100_000)]
    routes: u32,
    /// Pods a round.
    #[arg(long, default_value_t = 20)]
    pods: u32,
    /// Where manx-agent and manx-cni are; by default where this program is.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Routes a second into the kernel, against raw netlink.
    Fib,
    /// Routes from the wire into the kernel, against BIRD; memory.
    Routes,
    /// CNI ADD and DEL, against ptp + host-local.
    Cni,
    /// A label and a policy to the kernel.
    Policy,
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
    // The pid keeps two runs apart.
    let prefix = format!("manx-bench-{}-", std::process::id());
    let chosen = |what| cli.what.is_empty() || cli.what.contains(&what);
    println!("{} rounds; load {}", cli.rounds, std::fs::read_to_string("/proc/loadavg")?.trim());
    if chosen(What::Fib) {
        bench::fib::run(&prefix, cli.rounds, cli.routes)?;
    }
    if chosen(What::Routes) {
        bench::routes::run(&prefix, &bin_dir, cli.rounds, cli.routes)?;
    }
    if chosen(What::Cni) {
        bench::cni::run(&prefix, &bin_dir, cli.rounds, cli.pods)?;
    }
    if chosen(What::Policy) {
        bench::policy::run(&prefix, &bin_dir, cli.rounds)?;
    }
    Ok(())
}
