//! A process that outlives the handle: known by its id and its start time, so that a reused id is never mistaken for it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::wait;

/// How long a process may take to go after a signal that ends it.
const GRACE: Duration = Duration::from_secs(5);

/// A process that we started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub started: u64,
}

impl Process {
    /// The running process with this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_pid(pid: i32) -> Result<Self> {
        let started = start_time(pid).with_context(|| format!("no process {pid}"))?;
        Ok(Self { pid, started })
    }

    /// The process whose id a daemon has written into `file`, once it is there.
    ///
    /// # Errors
    /// When it is not there within a few seconds.
    pub fn from_pid_file(file: &std::path::Path) -> Result<Self> {
        let (process, _) = wait::until(GRACE, || {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("no pid file {}", file.display()))?;
            let pid =
                text.trim().parse().with_context(|| format!("{}: not a pid: {text:?}", file.display()))?;
            Self::from_pid(pid)
        })?;
        Ok(process)
    }

    /// Whether it still runs (a zombie does not).
    pub fn is_running(&self) -> bool {
        // A child of ours that has ended is reaped here; for anybody else's this fails and changes nothing.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        start_time(self.pid) == Some(self.started)
    }

    /// Sends `signal`, if it still runs.
    pub fn signal(&self, signal: Signal) {
        if self.is_running() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Sends `signal` and waits until the process is gone.
    ///
    /// # Errors
    /// When it is still there after five seconds, or half a minute if it has no choice: then it only waits for the kernel.
    pub fn end(&self, signal: Signal) -> Result<()> {
        self.signal(signal);
        let patience = if signal == Signal::SIGKILL { 6 * GRACE } else { GRACE };
        let gone = wait::until(patience, || if self.is_running() { Err(()) } else { Ok(()) });
        if gone.is_err() {
            bail!("process {} is still there {patience:?} after {signal}", self.pid);
        }
        Ok(())
    }

    /// SIGTERM, and SIGKILL when that is not heard.
    pub fn stop(&self) {
        if self.end(Signal::SIGTERM).is_err() {
            let _ = self.end(Signal::SIGKILL);
        }
    }

    /// Resident memory in kilobytes.
    pub fn resident_kb(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// User and system time used so far, in seconds.
    pub fn cpu_seconds(&self) -> Option<f64> {
        let fields = stat_fields(self.pid)?;
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(ticks as f64 / 100.0) // USER_HZ, fixed by the kernel's interface
    }
}

fn start_time(pid: i32) -> Option<u64> {
    let fields = stat_fields(pid)?;
    if fields.first()? == "Z" {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// The fields after the command name, which may itself hold spaces and parentheses.
fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_child_that_was_ended_is_not_running() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::from_pid(child.id() as i32).unwrap();
        assert!(process.is_running());
        process.end(Signal::SIGKILL).unwrap();
        assert!(!process.is_running());
        assert!(child.wait().is_err(), "it has been reaped already");
    }

    #[test]
    fn a_reused_id_is_another_process() {
        let me = Process::from_pid(std::process::id() as i32).unwrap();
        let earlier = Process { started: me.started - 1, ..me };
        assert!(me.is_running());
        assert!(!earlier.is_running());
    }
}
