//! GoBGP as a peer: a speaker without a kernel table, told its routes by its command line.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::netns::Netns;
use crate::process::Process;
use crate::wait;

/// Its API, on the loopback of its namespace.
const API_PORT: &str = "50051";
/// From start until the API answers.
const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// A GoBGP in a namespace.
#[derive(Clone, Debug)]
pub struct Gobgp {
    netns: Netns,
    dir: PathBuf,
}

impl Gobgp {
    /// The GoBGP of this namespace, with its files in `dir`.
    pub fn new(netns: Netns, dir: PathBuf) -> Self {
        Self { netns, dir }
    }

    /// Writes its configuration (TOML) and starts it; back when it answers.
    ///
    /// # Errors
    /// When it does not answer; its log is `gobgp.log` beside the configuration.
    pub fn start(&self, config: &str) -> Result<Process> {
        std::fs::create_dir_all(&self.dir)?;
        let conf = self.dir.join("gobgp.toml");
        std::fs::write(&conf, config).with_context(|| format!("cannot write {}", conf.display()))?;
        let log = File::create(self.dir.join("gobgp.log"))?;
        let mut gobgpd = self.netns.command("gobgpd");
        gobgpd.arg("-f").arg(&conf).args([
            "--api-hosts",
            &format!("127.0.0.1:{API_PORT}"),
            "--pprof-disable",
        ]);
        let child = gobgpd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let process = Process::from_pid(child.id().cast_signed())?;
        wait::until(STARTS_WITHIN, || self.ask("global"))?;
        Ok(process)
    }

    /// Runs `gobgp` with these words.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub fn ask(&self, words: &str) -> Result<String> {
        self.netns.run(&format!("gobgp -p {API_PORT} {words}"))
    }

    /// Runs `gobgp -j` with these words.
    ///
    /// # Errors
    /// When it does not answer, or not in JSON.
    pub fn ask_json(&self, words: &str) -> Result<Value> {
        let answer = self.ask(&format!("-j {words}"))?;
        serde_json::from_str(&answer).with_context(|| format!("gobgp {words}: no JSON in {answer:?}"))
    }
}
