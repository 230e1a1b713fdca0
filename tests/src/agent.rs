//! The real agent in a node's namespace: started, asked (by `manxctl` and over HTTP), killed.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command;
use crate::netns::Netns;
use crate::process::Process;

/// Where the agent serves metrics and health; each node's namespace has a loopback of its own.
const METRICS: &str = "127.0.0.1:9474";

/// One node's agent and where its files are.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Name of its node.
    pub node: String,
    /// The node's namespace.
    pub netns: Netns,
    /// Where the release binaries are.
    pub bin_dir: PathBuf,
    /// Where cluster state is: the manifest directory, or a kubeconfig file.
    pub manifests: PathBuf,
    /// Its run directory, conflist directory and log are in here.
    pub dir: PathBuf,
    /// Where the CNI plugins are.
    pub cni_bin_dir: PathBuf,
    /// Further arguments.
    pub extra: Vec<String>,
}

impl Agent {
    /// `--run-dir`.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// `--cni-conf-dir`.
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.dir.join("net.d")
    }

    /// What it has said so far, over all its lives.
    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the binary is not there.
    pub fn start(&self) -> Result<Process> {
        let binary = self.binary("manx-agent")?;
        std::fs::create_dir_all(self.cni_conf_dir())?;
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut agent = self.netns.command(binary);
        let source = if self.manifests.is_file() { "--kubeconfig" } else { "--manifests" };
        agent.arg("--node-name").arg(&self.node).arg(source).arg(&self.manifests);
        agent.arg("--run-dir").arg(self.run_dir()).arg("--cni-conf-dir").arg(self.cni_conf_dir());
        agent.arg("--cni-bin-dir").arg(&self.cni_bin_dir).args(["--metrics-addr", METRICS]);
        agent.args(&self.extra);
        // A group of its own: an interrupt at the terminal is the lab's, not the agent's.
        agent.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = agent.spawn().with_context(|| format!("cannot start the agent of {}", self.node))?;
        Process::from_pid(i32::try_from(child.id()).context("a pid fits")?)
    }

    /// Removes with the agent's own `cleanup` what it has put into its namespace.
    ///
    /// # Errors
    /// When it refuses.
    pub fn cleanup(&self, force: bool) -> Result<String> {
        let mut cleanup = self.netns.command(self.binary("manx-agent")?);
        cleanup.arg("cleanup").arg("--run-dir").arg(self.run_dir());
        cleanup.arg("--cni-conf-dir").arg(self.cni_conf_dir());
        if force {
            cleanup.arg("--force");
        }
        command::output(&mut cleanup)
    }

    /// What `manxctl` prints for a person.
    ///
    /// # Errors
    /// When it cannot reach the agent.
    pub fn manxctl(&self, args: &[&str]) -> Result<String> {
        let mut manxctl = std::process::Command::new(self.binary("manxctl")?);
        command::output(manxctl.arg("--run-dir").arg(self.run_dir()).args(args))
    }

    /// What `manxctl -o json` prints.
    ///
    /// # Errors
    /// When it cannot reach the agent.
    pub fn manxctl_json(&self, args: &[&str]) -> Result<Value> {
        let mut manxctl = std::process::Command::new(self.binary("manxctl")?);
        command::json(manxctl.arg("--run-dir").arg(self.run_dir()).args(["-o", "json"]).args(args))
    }

    /// What the admin API answers at this path with its query: the status and the document.
    ///
    /// # Errors
    /// When the agent cannot be asked.
    pub fn ask(&self, path: &str) -> Result<(u16, Value)> {
        let mut stream = UnixStream::connect(self.run_dir().join("admin.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: manx\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("the admin API speaks HTTP")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status line")?;
        let body = serde_json::from_str(body).with_context(|| format!("{path} answered {answer}"))?;
        Ok((status, body))
    }

    /// Whether `/readyz` says so; else what it says instead.
    ///
    /// # Errors
    /// The status line and body, or why it cannot be asked.
    pub fn ready(&self) -> Result<()> {
        let answer = self.netns.enter(|| get("/readyz?verbose"))??;
        match answer.lines().next() {
            Some(status) if status.contains(" 200 ") => Ok(()),
            _ => bail!("{} is not ready: {}", self.node, answer.replace("\r\n", "\n")),
        }
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn metrics(&self) -> Result<String> {
        self.netns.enter(|| get("/metrics"))?
    }

    fn binary(&self, name: &str) -> Result<PathBuf> {
        binary(&self.bin_dir, name)
    }
}

/// A release binary, or what to do when it is not there.
///
/// # Errors
/// When it is not there.
pub fn binary(bin_dir: &Path, name: &str) -> Result<PathBuf> {
    let path = bin_dir.join(name);
    if !path.exists() {
        bail!("{} is not there: run `make build` first", path.display());
    }
    Ok(path)
}

/// Where a test finds the binaries: beside itself, where one build has made all; else the release binaries of `make build`.
///
/// # Panics
/// When the test is no file that cargo has made.
pub fn built_binaries() -> PathBuf {
    let test = std::env::current_exe().expect("a test is a file");
    let profile = test.ancestors().nth(2).expect("cargo puts tests into PROFILE/deps");
    let built = ["manx-agent", "manx-cni"].iter().all(|name| profile.join(name).exists());
    if built { profile.to_owned() } else { profile.with_file_name("release") }
}

fn get(path: &str) -> Result<String> {
    let address: SocketAddr = METRICS.parse().context("an address")?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
