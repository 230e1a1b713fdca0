//! podman on a node, with the CNI back end and directories of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use manx_tests::command;
use serde_json::Value;

use super::containerd::unmount_below;
use super::image::IMAGE;
use super::site::{Node, Site};
use super::{LOCAL, eventually, fetching};

/// podman's view of one node; its containers go with it.
#[derive(Debug)]
pub(crate) struct Podman {
    dir: PathBuf,
    netns: PathBuf,
}

/// A container that serves its own name on port 8080.
pub(crate) struct Container<'a> {
    pub(crate) ipv4: Ipv4Addr,
    name: String,
    podman: &'a Podman,
}

impl Podman {
    /// Loads the image.
    pub(crate) fn new(site: &Site, node: Node) -> Self {
        let agent = site.agent(node);
        let dir = site.dir(node).join("pm");
        fs::create_dir_all(&dir).unwrap();
        let config = format!(
            r#"[network]
network_backend = "cni"
network_config_dir = "{}"
cni_plugin_dirs = ["{}"]
default_network = "manx"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
[containers]
log_driver = "k8s-file"
"#,
            agent.cni_conf_dir().display(),
            agent.cni_bin_dir.display()
        );
        fs::write(dir.join("containers.conf"), config).unwrap();
        let this = Podman { dir, netns: agent.netns.path() };
        this.podman(&["load", "-i", site.image.to_str().unwrap()]).unwrap();
        this
    }

    /// Runs a container by this name.
    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> Container<'_> {
        let script = format!("echo {name} >/www/index.html; exec httpd -f -p 8080 -h /www");
        let mut all = vec!["run", "-d", "--name", name, "--network", "manx"];
        all.extend(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        all.extend(arguments);
        all.extend([IMAGE, "sh", "-c", &script]);
        self.podman(&all).unwrap();
        let ipv4 = self.address(name);
        let container = Container { ipv4, name: name.to_owned(), podman: self };
        eventually("its server answers", || container.fetch(LOCAL).is_some());
        container
    }

    /// Stops and starts a container: its attachment is made anew.
    pub(crate) fn restart(&self, container: &Container<'_>) {
        self.podman(&["restart", "-t", "0", &container.name]).unwrap();
        eventually("its server answers again", || container.fetch(LOCAL).is_some());
    }

    /// Removes a container.
    pub(crate) fn remove(&self, name: &str) {
        self.podman(&["rm", "-f", "-t", "0", name]).unwrap();
    }

    fn address(&self, name: &str) -> Ipv4Addr {
        let text = self.podman(&["inspect", name]).unwrap();
        let all: Value = serde_json::from_str(&text).unwrap();
        let network = &all[0]["NetworkSettings"]["Networks"]["manx"];
        network["IPAddress"].as_str().unwrap().parse().unwrap_or_else(|e| panic!("{e}: {network}"))
    }

    fn podman(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg("podman");
        for part in ["root", "runroot", "tmpdir"] {
            command.arg(format!("--{part}")).arg(self.dir.join(part));
        }
        command.args(["--storage-driver", "vfs"]).args(arguments);
        command.env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        command::output(&mut command)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(error) = self.podman(&["rm", "-a", "-f", "-t", "0"]) {
            eprintln!("while removing podman's containers: {error:#}");
        }
        unmount_below(&self.dir);
    }
}

impl Container<'_> {
    /// What a web server says to it; `None`: nothing.
    pub(crate) fn fetch(&self, server: SocketAddr) -> Option<String> {
        let arguments = ["exec", &self.name, "sh", "-c", &fetching(server)];
        self.podman.podman(&arguments).ok().map(|text| text.trim().to_owned())
    }
}
