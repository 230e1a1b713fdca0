//! OpenBGPD as a peer, with its own table and none of the kernel's.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command;
use crate::netns::Netns;
use crate::process::Process;
use crate::wait;

/// Its unprivileged processes change their root to this directory.
const CHROOT: &str = "/run/openbgpd";
/// From start until the control socket answers.
const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// An OpenBGPD in a namespace.
#[derive(Clone, Debug)]
pub struct Openbgpd {
    netns: Netns,
    dir: PathBuf,
}

impl Openbgpd {
    /// The OpenBGPD of this namespace, with its files in `dir`.
    pub fn new(netns: Netns, dir: PathBuf) -> Self {
        Self { netns, dir }
    }

    /// Writes its configuration, to which the control socket is added, and starts it; back when it answers.
    ///
    /// # Errors
    /// When it does not answer; its log is `bgpd.log` beside the configuration.
    pub fn start(&self, config: &str) -> Result<Process> {
        std::fs::create_dir_all(&self.dir)?;
        std::fs::create_dir_all(CHROOT)?;
        let conf = self.dir.join("bgpd.conf");
        std::fs::write(&conf, format!("socket \"{}\"\n{config}", self.socket().display()))
            .with_context(|| format!("cannot write {}", conf.display()))?;
        // It refuses a configuration that others can read or write.
        command::output(command::words("chmod 600").arg(&conf))?;
        let log_file = self.dir.join("bgpd.log");
        let log = File::create(&log_file)?;
        let mut bgpd = self.netns.command("/usr/sbin/bgpd");
        bgpd.arg("-d").arg("-f").arg(&conf);
        let child = bgpd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let process = Process::from_pid(child.id().cast_signed())?;
        wait::until(STARTS_WITHIN, || self.ask("show summary terse"))
            .with_context(|| std::fs::read_to_string(&log_file).unwrap_or_default())?;
        Ok(process)
    }

    /// Asks `bgpctl`.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub fn ask(&self, words: &str) -> Result<String> {
        command::output(command::words("bgpctl -s").arg(self.socket()).args(words.split_whitespace()))
    }

    /// Asks `bgpctl -j`.
    ///
    /// # Errors
    /// When it does not answer, or not in JSON.
    pub fn ask_json(&self, words: &str) -> Result<Value> {
        let mut bgpctl = command::words("bgpctl -j -s");
        let answer = command::output(bgpctl.arg(self.socket()).args(words.split_whitespace()))?;
        serde_json::from_str(&answer).with_context(|| format!("bgpctl {words}: no JSON in {answer:?}"))
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("bgpd.sock")
    }
}
