//! A containerd of a node, with directories of its own, and a kubelet's calls to it.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use manx_tests::command;
use manx_tests::process::Process;

use super::cri::{self, Cri};
use super::image::IMAGE;
use super::site::{Node, Shared, Site};
use super::{LOCAL, eventually, fetching};

/// A daemon; it takes what it runs along when it goes.
pub(crate) struct Containerd {
    node: Node,
    dir: PathBuf,
    cri: Cri,
    process: Process,
    /// Namespaces of sandboxes that were there before: others' or left behind.
    strangers: Vec<String>,
}

/// A pod that it runs.
pub(crate) struct Pod {
    pub(crate) addresses: Vec<IpAddr>,
    name: String,
    sandbox: String,
    container: String,
    cri: Cri,
}

impl Containerd {
    /// Starts it in the node's network namespace and loads the image.
    pub(crate) fn start(site: &Site, node: Node) -> Self {
        let agent = site.agent(node);
        let dir = site.dir(node).join("cd");
        fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("sock");
        fs::write(dir.join("config.toml"), config(&dir, &agent.cni_bin_dir, &agent.cni_conf_dir())).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let strangers = sandboxes();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", agent.netns.path().display()));
        command.arg("containerd").arg("-c").arg(dir.join("config.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        #[expect(clippy::zombie_processes, reason = "its Process reaps it")]
        let child = command.spawn().expect("the package containerd is installed");
        let process = Process::from_pid(i32::try_from(child.id()).unwrap()).unwrap();
        let this = Containerd { node, dir, cri: Cri(socket.clone()), process, strangers };
        eventually("containerd is ready", || this.is_ready());
        let mut ctr = Command::new("ctr");
        ctr.arg("-a").arg(socket).args(["-n", "k8s.io", "image", "import"]).arg(&site.image);
        command::output(&mut ctr).unwrap();
        this
    }

    /// It says so itself, with the network that the conflist gives it.
    fn is_ready(&self) -> bool {
        let answer: Result<cri::StatusAnswer, _> = self.cri.call("Status", cri::Empty {});
        let conditions = answer.ok().and_then(|a| a.status).map(|s| s.conditions).unwrap_or_default();
        ["RuntimeReady", "NetworkReady"]
            .iter()
            .all(|kind| conditions.iter().any(|c| c.kind == *kind && c.status))
    }

    /// Runs a pod that serves its own name on port 8080, as kubelet would: the Pod object first, without an address.
    pub(crate) fn run(
        &self,
        site: &Shared,
        name: &str,
        labels: &[(&str, &str)],
        ports: &[(i32, i32)],
    ) -> Pod {
        self.run_with(site, name, labels, ports, "")
    }

    /// The same; `first` is what its shell does before all else.
    pub(crate) fn run_with(
        &self,
        site: &Shared,
        name: &str,
        labels: &[(&str, &str)],
        ports: &[(i32, i32)],
        first: &str,
    ) -> Pod {
        let uid = format!("uid-of-{name}");
        site.put_pod(self.node, name, &uid, labels, &[] as &[IpAddr]);
        let ports = ports.iter().map(|(host_port, container_port)| cri::PortMapping {
            protocol: 0,
            container_port: *container_port,
            host_port: *host_port,
        });
        let config = cri::SandboxConfig {
            metadata: Some(cri::Metadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: "default".to_owned(),
            }),
            hostname: name.to_owned(),
            port_mappings: ports.collect(),
            linux: Some(cri::LinuxSandbox::default()),
            ..cri::SandboxConfig::default()
        };
        let sandbox: cri::Id = self.ask("RunPodSandbox", cri::RunPodSandbox { config: Some(config.clone()) });
        let script = format!("{first}echo {name} >/www/index.html; exec httpd -f -p 8080 -h /www");
        let container: cri::Id = self.ask(
            "CreateContainer",
            cri::CreateContainer {
                sandbox: sandbox.id.clone(),
                config: Some(cri::ContainerConfig {
                    metadata: Some(cri::Named { name: "main".to_owned() }),
                    image: Some(cri::Named { name: IMAGE.to_owned() }),
                    command: ["sh", "-c", &script].map(str::to_owned).to_vec(),
                }),
                sandbox_config: Some(config),
            },
        );
        let _: cri::Empty = self.ask("StartContainer", cri::Id { id: container.id.clone() });
        let status: cri::SandboxStatusAnswer =
            self.ask("PodSandboxStatus", cri::Id { id: sandbox.id.clone() });
        let network = status.status.and_then(|s| s.network).expect("a sandbox has a network");
        let ips = [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        let addresses: Vec<IpAddr> = ips.map(|ip| ip.parse().unwrap()).collect();
        site.put_pod(self.node, name, &uid, labels, &addresses);
        let pod = Pod {
            addresses,
            name: name.to_owned(),
            sandbox: sandbox.id,
            container: container.id,
            cri: self.cri.clone(),
        };
        if first.is_empty() {
            eventually("its server answers", || pod.fetch(LOCAL).is_some());
        }
        pod
    }

    /// Deletes it as kubelet does, the object last.
    pub(crate) fn delete(&self, site: &Shared, pod: Pod) {
        let _: cri::Empty = self.ask("StopPodSandbox", cri::Id { id: pod.sandbox.clone() });
        let _: cri::Empty = self.ask("RemovePodSandbox", cri::Id { id: pod.sandbox });
        site.cluster.remove(&format!("pod-{}", pod.name)).unwrap();
    }

    fn ask<Q, A>(&self, method: &str, question: Q) -> A
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        match self.cri.call(method, question) {
            Ok(answer) => answer,
            Err(reason) => {
                let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(8).collect();
                panic!(
                    "{}: {reason}\n{}",
                    self.node.name,
                    end.into_iter().rev().collect::<Vec<_>>().join("\n")
                );
            }
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // What a failed test left running; each in a process of its own, which ends with its task.
        let mut ctr = Command::new("ctr");
        let list = ctr.arg("-a").arg(&self.cri.0).args(["-n", "k8s.io", "task", "list", "-q"]);
        for task in command::output(list).unwrap_or_default().lines() {
            let mut ctr = Command::new("ctr");
            let kill = ctr.arg("-a").arg(&self.cri.0).args(["-n", "k8s.io", "task", "rm", "-f", task]);
            if let Err(error) = command::output(kill) {
                eprintln!("while removing {task}: {error:#}");
            }
        }
        self.process.stop();
        unmount_below(&self.dir);
        for sandbox in sandboxes().iter().filter(|name| !self.strangers.contains(name)) {
            if let Err(error) = command::run(&format!("ip netns delete {sandbox}")) {
                eprintln!("{error:#}");
            }
        }
    }
}

impl Pod {
    /// Runs a line of shell in it; `None`: it fails.
    pub(crate) fn exec(&self, line: &str) -> Option<String> {
        let command = ["sh", "-c", line].map(str::to_owned).to_vec();
        let question = cri::ExecSync { container: self.container.clone(), command, timeout: 10 };
        let answer: cri::ExecAnswer = self.cri.call("ExecSync", question).ok()?;
        let text = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        (answer.exit_code == 0).then_some(text)
    }

    /// What a web server says to it; `None`: nothing.
    pub(crate) fn fetch(&self, server: SocketAddr) -> Option<String> {
        self.exec(&fetching(server))
    }
}

/// The network namespaces that containerd names, of all daemons of this machine.
fn sandboxes() -> Vec<String> {
    manx_tests::netns::with_prefix("cni-").iter().map(|netns| netns.name().to_owned()).collect()
}

/// Mounts and bound namespaces that a daemon leaves when it is stopped with something running.
pub(crate) fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let mut below: Vec<&str> = points.filter(|point| Path::new(point).starts_with(dir)).collect();
    // The innermost first.
    below.reverse();
    for point in below {
        if let Err(error) = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("while unmounting {point}: {error}");
        }
    }
}

fn config(dir: &Path, bin_dir: &Path, conf_dir: &Path) -> String {
    let (dir, bin_dir, conf_dir) = (dir.display(), bin_dir.display(), conf_dir.display());
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[grpc]
address = "{dir}/sock"
[ttrpc]
address = "{dir}/ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
disable_tcp_service = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{bin_dir}"
conf_dir = "{conf_dir}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
    )
}
