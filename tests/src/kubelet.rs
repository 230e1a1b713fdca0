//! Plays kubelet and container runtime for one cluster: makes a pod's namespace, calls the real plugin as the agent's conflist
//! says, writes the Pod's status; and takes it all down again.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::netns::Netns;

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Node that it runs on.
    pub node: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Its `spec.containers`.
    pub containers: Value,
}

impl PodSpec {
    /// A pod of this name (`NAMESPACE/NAME`) on a node.
    pub fn new(pod: &str, node: &str, labels: &[(&str, &str)]) -> Self {
        let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            containers: json!([{
                "name": "main", "image": "lab",
                "ports": [{"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": 9090}],
            }]),
        }
    }
}

/// A pod that runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID of the Pod object.
    pub uid: String,
    /// Node that it runs on.
    pub node: String,
    /// Labels, as last written.
    pub labels: BTreeMap<String, String>,
    /// Its `spec.containers`.
    pub containers: Value,
    /// Its network namespace.
    pub netns: Netns,
    /// Id of its sandbox.
    pub container_id: String,
    /// Its addresses, from the plugin's result.
    pub addresses: Vec<IpAddr>,
    /// The node's end of its link, from the plugin's result.
    pub host_interface: String,
    /// How long ADD took.
    pub add_took: Duration,
}

impl Pod {
    /// `NAMESPACE/NAME`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its address of one family.
    ///
    /// # Panics
    /// When it has none: [`Kubelet::run_pod`] returns pods with both only.
    pub fn address(&self, v6: bool) -> IpAddr {
        let found = self.addresses.iter().copied().find(|a| a.is_ipv6() == v6);
        found.expect("a pod of the lab has an address of each family")
    }

    fn file(&self) -> String {
        format!("pod-{}-{}", self.namespace, self.name)
    }

    fn object(&self, running: bool) -> Value {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "uid": self.uid, "labels": self.labels},
            "spec": {"nodeName": self.node, "containers": self.containers},
            "status": {"phase": "Pending"},
        });
        if running {
            let ips: Vec<Value> = self.addresses.iter().map(|a| json!({"ip": a.to_string()})).collect();
            object["status"] =
                json!({"phase": "Running", "podIP": self.addresses[0].to_string(), "podIPs": ips});
        }
        object
    }
}

/// Kubelet and runtime of one node.
#[derive(Clone, Debug)]
pub struct Kubelet {
    /// The node's namespace.
    pub netns: Netns,
    /// Where the agent writes the conflist.
    pub cni_conf_dir: PathBuf,
    /// Where the plugins are, by type.
    pub cni_bin_dir: PathBuf,
    /// Begins the name of every pod's namespace.
    pub prefix: String,
    /// Where the cluster's objects are.
    pub cluster: Cluster,
}

impl Kubelet {
    /// Runs a pod: Pod object without an address, ADD, Pod object with its addresses and `Running`.
    ///
    /// # Errors
    /// When the plugin fails (its own words are in the error) or gives no address of a family.
    pub fn run_pod(&self, spec: &PodSpec) -> Result<Pod> {
        let netns = Netns::sandbox(&format!("{}-{}-{}", self.prefix, spec.namespace, spec.name))?;
        let mut pod = Pod {
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            uid: uuid()?,
            node: spec.node.clone(),
            labels: spec.labels.clone(),
            containers: spec.containers.clone(),
            netns,
            // containerd's ids are 64 hex digits.
            container_id: (uuid()? + &uuid()?).replace('-', ""),
            addresses: Vec::new(),
            host_interface: String::new(),
            add_took: Duration::ZERO,
        };
        self.cluster.put(&pod.file(), &[pod.object(false)])?;

        let started = Instant::now();
        let result = self.call("ADD", &pod, None)?;
        pod.add_took = started.elapsed();

        for ip in result["ips"].as_array().into_iter().flatten() {
            let text = ip["address"].as_str().unwrap_or_default();
            let network: IpNetwork =
                text.parse().with_context(|| format!("ADD gave the address {text:?}"))?;
            pod.addresses.push(network.ip());
        }
        let interfaces = result["interfaces"].as_array().into_iter().flatten();
        let host = interfaces.into_iter().find(|i| i["sandbox"].as_str().unwrap_or_default().is_empty());
        pod.host_interface = host.and_then(|i| i["name"].as_str()).unwrap_or_default().to_owned();
        let families = pod.addresses.iter().map(IpAddr::is_ipv6).collect::<std::collections::BTreeSet<_>>();
        if families.len() != 2 || pod.host_interface.is_empty() {
            bail!("ADD of {} gave no address of each family or no host interface: {result}", pod.full_name());
        }
        self.cluster.put(&pod.file(), &[pod.object(true)])?;
        Ok(pod)
    }

    /// Calls CHECK.
    ///
    /// # Errors
    /// When the plugin finds something amiss.
    pub fn check_pod(&self, pod: &Pod, result: &Value) -> Result<()> {
        self.call("CHECK", pod, Some(result)).map(drop)
    }

    /// Writes the Pod object again, for instance with other labels.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn update_pod(&self, pod: &Pod) -> Result<()> {
        self.cluster.put(&pod.file(), &[pod.object(true)])
    }

    /// Deletes a pod: DEL, its namespace, its object. Returns how long DEL took.
    ///
    /// # Errors
    /// When the plugin fails.
    pub fn delete_pod(&self, pod: &Pod) -> Result<Duration> {
        let started = Instant::now();
        self.call("DEL", pod, None)?;
        let took = started.elapsed();
        pod.netns.remove()?;
        self.cluster.remove(&pod.file())?;
        Ok(took)
    }

    /// Whether the agent has written a conflist.
    pub fn is_configured(&self) -> bool {
        self.conflist().is_ok()
    }

    /// The first conflist of the directory, as runtimes choose it.
    fn conflist(&self) -> Result<Value> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&self.cni_conf_dir)
            .with_context(|| format!("no {}", self.cni_conf_dir.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "conflist"))
            .collect();
        files.sort();
        let file =
            files.first().with_context(|| format!("no conflist in {}", self.cni_conf_dir.display()))?;
        let text = std::fs::read_to_string(file)?;
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))
    }

    /// Calls every plugin of the conflist in turn (backwards for DEL) and returns the last result.
    fn call(&self, verb: &str, pod: &Pod, prev_result: Option<&Value>) -> Result<Value> {
        let conflist = self.conflist()?;
        let mut plugins: Vec<&Value> = conflist["plugins"].as_array().into_iter().flatten().collect();
        if verb == "DEL" {
            plugins.reverse();
        }
        let mut result = prev_result.cloned().unwrap_or(Value::Null);
        for plugin in plugins {
            let mut config = plugin.clone();
            config["cniVersion"] = conflist["cniVersion"].clone();
            config["name"] = conflist["name"].clone();
            if !result.is_null() {
                config["prevResult"] = result.clone();
            }
            let answer = self.call_plugin(verb, pod, &config)?;
            if verb == "ADD" {
                result = answer;
            }
        }
        Ok(result)
    }

    fn call_plugin(&self, verb: &str, pod: &Pod, config: &Value) -> Result<Value> {
        let plugin = config["type"].as_str().context("a plugin of the conflist has no type")?;
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            pod.namespace, pod.name, pod.container_id, pod.uid
        );
        let mut child = self
            .netns
            .command(self.cni_bin_dir.join(plugin))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.container_id)
            .env("CNI_NETNS", pod.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", args)
            .env("CNI_PATH", &self.cni_bin_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run the plugin {plugin}"))?;
        // A plugin that ends without reading says why on its standard output; the broken pipe says nothing.
        let _ = child.stdin.take().expect("stdin is piped").write_all(config.to_string().as_bytes());
        let out = child.wait_with_output()?;
        let stdout = String::from_utf8_lossy(&out.stdout);
        if !out.status.success() {
            bail!(
                "{plugin} {verb} of {} ended with {}: {} {}",
                pod.full_name(),
                out.status,
                stdout.trim(),
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        if stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&stdout).with_context(|| format!("{plugin} {verb} printed no JSON: {stdout}"))
    }
}

fn uuid() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("no random uuid")?;
    Ok(text.trim().to_owned())
}
