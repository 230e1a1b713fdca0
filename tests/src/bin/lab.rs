//! `manx-lab`: brings up the lab, runs its checks, takes it down.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use manx_tests::checks::{self, routing};
use manx_tests::lab::{self, Lab, Source};
use manx_tests::probe::server::Server;
use manx_tests::report::{Ms, Report};
use manx_tests::{show, wait};
use tokio::signal::unix::{SignalKind, signal};

/// A small rack on this machine: three nodes, two ToRs, a spine and pods, each a network namespace.
#[derive(Parser)]
#[command(name = "manx-lab", version)]
struct Cli {
    /// Begins the names of all namespaces; two labs of different names stand side by side.
    #[arg(long, default_value = "manx-lab", global = true)]
    name: String,
    /// Where manx-agent, manxctl and manx-cni are; by default where this program is, or in `release` beside it.
    #[arg(long, value_name = "DIR", global = true)]
    bin_dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring it up and leave it standing.
    Up,
    /// Show and check the lab that stands.
    Check,
    /// Remove it; nothing happens when there is none.
    Down,
    /// Bring it up, show it, check it, remove it.
    All {
        /// Leave it standing.
        #[arg(long, conflicts_with = "source")]
        keep: bool,
        /// Where its agents read the cluster's state.
        #[arg(long, value_enum, default_value = "manifests")]
        source: Source,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    match cli.verb {
        Verb::Down => lab::down(&cli.name).map(|()| true),
        Verb::Check => Ok(check(&mut Lab::find(&cli.name)?)),
        Verb::Up => {
            remove_when_interrupted(&cli.name)?;
            let lab = up(cli, Source::Manifests)?;
            show::tables(&lab)?;
            hints(&lab);
            Ok(true)
        }
        Verb::All { keep, source } => {
            remove_when_interrupted(&cli.name)?;
            let removal = Removal { name: &cli.name, armed: !keep };
            let outcome = up(cli, source).map(|mut lab| check(&mut lab));
            // A lab that did not come up is a check that failed, and its last line is the same.
            let all_passed = outcome.unwrap_or_else(|error| {
                let mut report = Report::new();
                report.error("the lab comes up", &error);
                report.finish("lab");
                false
            });
            drop(removal);
            Ok(all_passed)
        }
    }
}

/// Removes the lab when it goes out of scope, by return, error or panic.
struct Removal<'a> {
    name: &'a str,
    armed: bool,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = lab::down(self.name)
        {
            eprintln!("while removing the lab: {error:#}");
        }
    }
}

fn up(cli: &Cli, source: Source) -> Result<Lab> {
    let started = std::time::Instant::now();
    let lab = Lab::up(&cli.name, &bin_dir(cli)?, source)?;
    println!("the lab is up after {}", Ms(started.elapsed()));
    for pod in lab.pods.values() {
        println!(
            "  {:16} on {} {:?}, ADD took {}",
            pod.full_name(),
            pod.node,
            pod.addresses,
            Ms(pod.add_took)
        );
    }
    match wait::until(routing::CONVERGED, || routing::converged(&lab)) {
        Ok(((), took)) => println!("sessions and routes are there {} later", Ms(took)),
        Err(complaint) => println!("not converged after {:?}: {complaint}", routing::CONVERGED),
    }
    Ok(lab)
}

/// Prints tables and check lines; whether all checks passed.
fn check(lab: &mut Lab) -> bool {
    let mut report = Report::new();
    if let Err(error) = try_check(lab, &mut report) {
        report.error("the lab can be looked at", &error);
    }
    report.finish("lab");
    report.failed() == 0
}

fn try_check(lab: &mut Lab, report: &mut Report) -> Result<()> {
    let mut netns: Vec<_> = lab.pods.values().map(|pod| pod.netns.clone()).collect();
    netns.push(lab.netns("outside"));
    let servers = netns.iter().map(Server::start).collect::<Result<Vec<_>>>()?;
    show::tables(lab)?;
    let open = show::reachability(lab, checks::PROBE_LIMIT)?;
    checks::run(lab, &open, report);
    drop(servers);
    Ok(())
}

fn hints(lab: &Lab) {
    let name = &lab.name;
    let dir = lab.dir().display().to_string();
    let pod = &lab.pods["front/client-1"].netns;
    let target = lab.pods["back/web-3"].address(false);
    println!("\nThe lab stands. Look around:");
    println!("  ip netns exec {} ping -c3 {target}", pod.name());
    println!("  ip -n {name}-node-2 route");
    println!("  {}/manxctl --run-dir {dir}/node-2/run routes", lab.agents["node-2"].bin_dir.display());
    println!("  birdc -s {dir}/tor-a/bird.ctl show route");
    println!("  vtysh --vty_socket /run/frr/{name}-tor-b -c 'show bgp summary'");
    println!("  edit {dir}/manifests/*.yaml, and see what changes");
    println!("  make lab-down");
}

fn bin_dir(cli: &Cli) -> Result<PathBuf> {
    if let Some(dir) = &cli.bin_dir {
        return dir.canonicalize().with_context(|| format!("no directory {}", dir.display()));
    }
    let here = std::env::current_exe()?.parent().context("a program lies in a directory")?.to_owned();
    let release = here.parent().map(|target| target.join("release"));
    Ok(release.filter(|dir| dir.is_dir()).unwrap_or(here))
}

/// An interrupt removes the lab before it ends the program.
fn remove_when_interrupted(name: &str) -> Result<()> {
    let name = name.to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = signals.0.recv() => {}
                _ = signals.1.recv() => {}
                _ = signals.2.recv() => {}
            }
        });
        eprintln!("interrupted: removing the lab");
        if let Err(error) = lab::down(&name) {
            eprintln!("while removing the lab: {error:#}");
        }
        std::process::exit(130);
    });
    Ok(())
}
