//! `manx-agent`: command line, log, runtime. What the agent does is in `run`.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::{self, ExitCode};

use anyhow::Context;
use clap::{CommandFactory, Parser};
use manx_agent::options::{Cli, Command, LogFormat, Options};
use manx_agent::{cleanup, prepare, run};
use tracing_subscriber::EnvFilter;

// Gives memory back after a burst of routes, where the system's allocator keeps it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything fills memory: threads with a heap each would take 2 MiB for each small thing. Tables that fill all of
    // their pages are as fast with small ones. Where that is not allowed the process is larger, and that is all.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let cli = Cli::parse();
    let result = match (cli.command, cli.run) {
        (Some(command), _) => aside(&command),
        (None, Some(options)) => start(options),
        (None, None) => {
            let missing = clap::error::ErrorKind::MissingRequiredArgument;
            Cli::command().error(missing, "--node-name is required").exit()
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("manx-agent: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Other things than running.
fn aside(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Cleanup {
            force,
            run_dir,
            cni_conf_dir,
            cni_bin_dir,
            iproute2_dir,
            pod_interface_prefix,
        } => cleanup::run(
            *force,
            run_dir,
            cni_conf_dir,
            cni_bin_dir.as_deref(),
            iproute2_dir.as_deref(),
            pod_interface_prefix,
        ),
        Command::Prepare { enable, cni_plugin, cni_bin_dir, iproute2_dir } => {
            prepare::run(enable, cni_plugin.as_deref(), cni_bin_dir, iproute2_dir.as_deref())
        }
    }
}

fn start(options: Options) -> anyhow::Result<()> {
    give_memory_back();
    log(&options)?;
    // One thread is plenty here: BGP, routes, links and policy have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run::run(options))
}

/// How many milliseconds the allocator keeps pages that nothing is in.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

/// Has the allocator give pages back at once: after a burst of routes or objects that is a tenth to a quarter of what the
/// agent holds, and costs no time that could be measured. It reads its settings from the environment and before `main`, so
/// the program starts again in its own place, with the id that it has.
fn give_memory_back() {
    if std::env::var_os(PURGE_DELAY).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut again = process::Command::new(program);
    again.arg0(arguments.next().unwrap_or_default()).args(arguments).env(PURGE_DELAY, "0");
    // It returns only if that cannot be; then the agent is larger, and that is all.
    let _ = again.exec();
}

fn log(options: &Options) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&options.log)
        .with_context(|| format!("--log {}: not a filter such as `info` or `manx_bgp=debug`", options.log))?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr);
    match options.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
