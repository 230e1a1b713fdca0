//! From a change in the manifest directory to the kernel: a pod's label to a set member, a policy to a rule. Seen by asking the
//! kernel's own tools again and again; what one such look costs is printed beside.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Comparison, Sample};
use crate::agent::Agent;
use crate::cluster::{self, Cluster};
use crate::netns::{Guard, Netns};
use crate::wait;

const LIMIT: Duration = Duration::from_secs(10);
/// Pods elsewhere in the cluster, beside the one that changes.
const OTHERS: u32 = 1000;
const ADDRESS: &str = "10.200.9.9";

/// Changes a label and a policy there and back in each of `rounds` rounds and prints the table.
///
/// # Errors
/// When a change does not reach the kernel.
pub fn run(prefix: &str, bin_dir: &Path, rounds: u32) -> Result<()> {
    let _guard = Guard::new(prefix)?;
    let dir = tempfile::Builder::new().prefix(prefix).tempdir_in("/run")?;
    let netns = Netns::create(&format!("{prefix}host"))?;
    let cluster = write_cluster(dir.path())?;
    let plugins = dir.path().join("cni-bin");
    std::fs::create_dir_all(&plugins)?;
    std::fs::copy(crate::agent::binary(bin_dir, "manx-cni")?, plugins.join("manx"))?;
    let agent = Agent {
        node: "bench".into(),
        netns: netns.clone(),
        bin_dir: bin_dir.to_owned(),
        manifests: cluster.dir().to_owned(),
        dir: dir.path().join("agent"),
        cni_bin_dir: plugins,
        extra: vec!["--enable".into(), "policy,cni".into()],
    };
    let process = agent.start()?;
    let kubelet = crate::kubelet::Kubelet {
        netns: netns.clone(),
        cni_conf_dir: agent.cni_conf_dir(),
        cni_bin_dir: agent.cni_bin_dir,
        prefix: format!("{prefix}pod"),
        cluster: cluster.clone(),
    };
    wait::until(LIMIT, || if kubelet.is_configured() { Ok(()) } else { Err(()) })
        .map_err(|()| anyhow::anyhow!("the agent writes no conflist"))?;
    // The pod that the policies select: without one there is nothing to enforce.
    kubelet.run_pod(&crate::kubelet::PodSpec::new("default/web", "bench", &[("app", "web")]))?;

    let mut label = Comparison::new(&format!("A pod's label to the kernel, {OTHERS} pods in the cluster"), 1);
    let mut policy = Comparison::new(&format!("A policy to the kernel, {OTHERS} pods in the cluster"), 1);
    let member = || Ok(netns.run("ipset save")?.contains(&format!(" {ADDRESS}")));
    // Written port numbers are looked for, so that the layout of our chains does not matter.
    let rule = || Ok((netns.run("iptables-save")? + &netns.run("ipset save")?).contains("4711"));
    wait_for(&member, false)?;
    for round in 0..rounds {
        for (role, present) in [("client", true), ("other", false)] {
            let started = Instant::now();
            cluster.put("changing", &[other_pod("changing", ADDRESS, role)])?;
            wait_for(&member, present)?;
            label.add("manx, seen by ipset save", sample(started));
        }
        let started = Instant::now();
        member()?;
        label.add("one look", sample(started));

        for (port, present) in [(4711, true), (4712, false)] {
            let started = Instant::now();
            cluster.put("policy-port", &[port_policy(port)?])?;
            wait_for(&rule, present).with_context(|| format!("round {round}"))?;
            policy.add("manx, seen by iptables-save and ipset save", sample(started));
        }
        let started = Instant::now();
        rule()?;
        policy.add("one look", sample(started));
    }
    label.print();
    policy.print();
    process.end(Signal::SIGKILL)
}

fn sample(started: Instant) -> Sample {
    Sample { wall: started.elapsed(), ..Sample::default() }
}

fn wait_for(look: &dyn Fn() -> Result<bool>, present: bool) -> Result<()> {
    let end = Instant::now() + LIMIT;
    while look()? != present {
        if Instant::now() > end {
            bail!("the change is not in the kernel after {LIMIT:?}");
        }
    }
    Ok(())
}

fn other_pod(name: &str, address: &str, role: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {"role": role}},
           "spec": {"nodeName": "elsewhere", "containers": [{"name": "main", "image": "bench"}]},
           "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
}

fn port_policy(port: u16) -> Result<Value> {
    let spec = format!(
        "{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{role: client}}}}}}], \
         ports: [{{protocol: TCP, port: {port}}}]}}]}}"
    );
    cluster::network_policy("default", "port", &spec)
}

fn write_cluster(dir: &Path) -> Result<Cluster> {
    let cluster = Cluster::new(dir.join("manifests"))?;
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bench"},
               "spec": {"podCIDRs": ["10.200.0.0/24", "fd00:10:200::/64"]},
               "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}}),
        cluster::namespace("default", &[]),
    ];
    for number in 0..OTHERS {
        let address = format!("10.200.{}.{}", 10 + number / 250, 1 + number % 250);
        objects.push(other_pod(
            &format!("other{number}"),
            &address,
            if number % 2 == 0 { "client" } else { "other" },
        ));
    }
    cluster.put("cluster", &objects)?;
    cluster.put("changing", &[other_pod("changing", ADDRESS, "other")])?;
    cluster.put("policy-port", &[port_policy(4712)?])?;
    Ok(cluster)
}
