//! Named network namespaces: made, entered, connected and removed.
//!
//! A namespace is a name under `/run/netns`, as `ip netns` has it, so that a person can look around in it with `ip netns exec`.
//! All names of one lab begin with its prefix: whatever was interrupted can be cleaned up by that prefix alone.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::command;
use crate::process::Process;

/// A network namespace by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Netns(String);

impl Netns {
    /// Makes a namespace with its loopback up and IPv6 duplicate address detection off (which would keep every new
    /// address unusable for a second or two).
    ///
    /// # Errors
    /// When a namespace of this name exists, or without the privilege to make one.
    pub fn create(name: &str) -> Result<Self> {
        let netns = Self::sandbox(name)?;
        for scope in ["all", "default"] {
            netns.sysctl(&format!("net.ipv6.conf.{scope}.accept_dad"), "0")?;
            netns.sysctl(&format!("net.ipv6.conf.{scope}.dad_transmits"), "0")?;
        }
        Ok(netns)
    }

    /// Makes a namespace with its loopback up and all else as the kernel has it: what a container runtime makes for a pod.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn sandbox(name: &str) -> Result<Self> {
        command::run(&format!("ip netns add {name}"))?;
        let netns = Self::named(name);
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The namespace of this name, which may or may not exist.
    pub fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    /// Runs `work` on a thread inside this namespace and returns what it returns.
    ///
    /// Sockets made in there stay in there whoever uses them later.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("no namespace {}", self.0))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET)?;
                Ok::<T, nix::Error>(work())
            });
            match thread.join() {
                Ok(result) => result.with_context(|| format!("cannot enter namespace {}", self.0)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).arg(program);
        command
    }

    /// Runs words separated by white space inside and returns what was printed.
    ///
    /// # Errors
    /// As [`command::output`].
    pub fn run(&self, line: &str) -> Result<String> {
        command::run(&format!("ip netns exec {} {line}", self.0))
    }

    /// Runs `ip` on this namespace, without entering it.
    ///
    /// # Errors
    /// As [`command::output`].
    pub fn ip(&self, line: &str) -> Result<String> {
        command::run(&format!("ip -n {} {line}", self.0))
    }

    /// Runs `ip -j` on this namespace and reads its JSON.
    ///
    /// # Errors
    /// As [`command::json`].
    pub fn ip_json(&self, line: &str) -> Result<serde_json::Value> {
        command::json(&mut command::words(&format!("ip -j -n {} {line}", self.0)))
    }

    /// Sets `net.…` inside.
    ///
    /// # Errors
    /// When this kernel has no such setting, or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = PathBuf::from("/proc/sys").join(key.replace('.', "/"));
        self.enter(|| std::fs::write(&path, value))?.with_context(|| format!("{}: {key}={value}", self.0))
    }

    /// The processes inside.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let pids = command::run(&format!("ip netns pids {}", self.0))?;
        Ok(pids.lines().filter_map(|line| Process::from_pid(line.trim().parse().ok()?).ok()).collect())
    }

    /// Ends every process inside and removes the namespace; nothing happens when it does not exist.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self) -> Result<()> {
        if !self.path().exists() {
            return Ok(());
        }
        for process in self.processes().unwrap_or_default() {
            process.end(Signal::SIGKILL)?;
        }
        command::run(&format!("ip netns del {}", self.0)).map(drop)
    }
}

/// All namespaces whose name begins with `prefix`.
pub fn with_prefix(prefix: &str) -> Vec<Netns> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Vec::new() };
    let mut found: Vec<Netns> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .map(Netns)
        .collect();
    found.sort();
    found
}

/// Removes all namespaces whose name begins with `prefix`, and the processes in them. Goes on after a failure.
///
/// # Errors
/// The first failure.
pub fn remove_with_prefix(prefix: &str) -> Result<()> {
    let mut outcome = Ok(());
    for netns in with_prefix(prefix) {
        let removed = netns.remove();
        if outcome.is_ok() {
            outcome = removed;
        }
    }
    outcome
}

/// One end of a link between two namespaces.
#[derive(Clone, Debug)]
pub struct End<'a> {
    /// Where it is.
    pub netns: &'a Netns,
    /// Its interface name.
    pub interface: &'a str,
    /// Its addresses with prefix length.
    pub addresses: Vec<String>,
}

/// Connects two namespaces with a veth pair, gives both ends their addresses and brings them up.
///
/// # Errors
/// When an interface of that name exists or an address is refused.
pub fn connect(a: &End<'_>, b: &End<'_>) -> Result<()> {
    command::run(&format!(
        "ip link add {} netns {} type veth peer name {} netns {}",
        a.interface,
        a.netns.name(),
        b.interface,
        b.netns.name()
    ))?;
    for end in [a, b] {
        for address in &end.addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            end.netns.ip(&format!("address add {address} dev {}{nodad}", end.interface))?;
        }
        end.netns.ip(&format!("link set {} up", end.interface))?;
    }
    Ok(())
}

/// Removes everything with its prefix when it goes out of scope, by return, error or panic.
#[derive(Debug)]
pub struct Guard {
    prefix: String,
}

impl Guard {
    /// Guards all namespaces whose name begins with `prefix`; those of an earlier, interrupted run go at once.
    ///
    /// # Errors
    /// When an old one cannot be removed.
    pub fn new(prefix: &str) -> Result<Self> {
        remove_with_prefix(prefix)?;
        Ok(Self { prefix: prefix.to_owned() })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = remove_with_prefix(&self.prefix) {
            eprintln!("while removing {}*: {error:#}", self.prefix);
        }
    }
}
