//! A large cluster from the Kubernetes API: how long until everything is known, what it costs to know it, and how long a change
//! takes from the server to the kernel.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use manx_agent::kernel::ipset::Ipsets;
use manx_policy::ir::Member;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::apiserver::ApiServer;
use crate::cluster::{self, Cluster};
use crate::kubelet::{Kubelet, PodSpec};
use crate::netns::{Guard, Netns};
use crate::process::Process;
use crate::wait;

const NODES: u32 = 5000;
const PODS: u32 = 10_000;
const POLICIES: u32 = 1000;
const NAMESPACES: u32 = 100;
/// For everything to be known, and for a change to be seen.
const LIMIT: Duration = Duration::from_secs(60);
/// For how long CPU time is taken.
const SPAN: Duration = Duration::from_secs(10);
/// Changes in each second of the busy span.
const RATE: u32 = 100;
/// Changes that are followed into the kernel.
const FOLLOWED: u32 = 1000;
/// A set tells nobody when it changes, so that it has to be looked at. A look takes some microseconds; so that it leaves the cores to those whose work is awaited.
const BETWEEN_LOOKS: Duration = Duration::from_micros(50);
const BETWEEN_CHANGES: Duration = Duration::from_millis(20);
const ADDRESS: &str = "10.199.9.9";

/// Starts an agent beside a server that holds all this, and prints what was measured.
///
/// # Errors
/// When the agent does not come up or a change does not reach the kernel.
pub fn run(prefix: &str, bin_dir: &Path) -> Result<()> {
    let _guard = Guard::new(prefix)?;
    let dir = tempfile::Builder::new().prefix(prefix).tempdir_in("/run")?;
    let netns = Netns::create(&format!("{prefix}host"))?;
    let server = Arc::new(ApiServer::start()?);
    fill(&server);
    let listener = netns.enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let kubeconfig = dir.path().join("kubeconfig");
    ApiServer::write_kubeconfig_for(&format!("http://{}", listener.local_addr()?), &kubeconfig, None)?;
    let _reached = server.serve_also(listener)?;

    let plugins = dir.path().join("cni-bin");
    std::fs::create_dir_all(&plugins)?;
    std::fs::copy(crate::agent::binary(bin_dir, "manx-cni")?, plugins.join("manx"))?;
    let agent = Agent {
        node: "node-0".into(),
        netns: netns.clone(),
        bin_dir: bin_dir.to_owned(),
        manifests: kubeconfig,
        dir: dir.path().join("agent"),
        cni_bin_dir: plugins,
        extra: Vec::new(),
    };
    let started = Instant::now();
    let process = agent.start()?;
    let in_sync = || match agent.ask("/v1/status") {
        Ok((_, status)) if status["source"]["inSync"] == json!(true) => Ok(()),
        Ok((_, status)) => Err(status["source"].to_string()),
        Err(error) => Err(error.to_string()),
    };
    wait::until(LIMIT, in_sync).map_err(|last| anyhow::anyhow!("not in sync: {last}"))?;
    let took = started.elapsed();

    let kubelet = Kubelet {
        netns: netns.clone(),
        cni_conf_dir: agent.cni_conf_dir(),
        cni_bin_dir: agent.cni_bin_dir.clone(),
        prefix: format!("{prefix}pod"),
        cluster: Cluster::new(dir.path().join("manifests"))?.served_by(server.clone()),
    };
    wait::until(LIMIT, || if kubelet.is_configured() { Ok(()) } else { Err(()) })
        .map_err(|()| anyhow::anyhow!("the agent writes no conflist"))?;
    kubelet.run_pod(&PodSpec::new("ns-0/web", "node-0", &[("app", "web")]))?;

    // At rest: what the start and the pod have set going is over.
    std::thread::sleep(Duration::from_secs(2));
    let resident = process.resident_kb().context("the agent runs")?;
    let idle = busy(&process, || std::thread::sleep(SPAN))?;
    let changing = busy(&process, || change(&server))?;
    let after = process.resident_kb().context("the agent runs")?;
    let latencies = follow(&server, &netns)?;
    process.end(Signal::SIGKILL)?;

    println!("\n== The Kubernetes API: {NODES} nodes, {PODS} pods, {POLICIES} policies");
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let ms = |at: f64| {
        let index = ((latencies.len() - 1) as f64 * at) as usize;
        format!("{:.1} ms", latencies[index].as_secs_f64() * 1e3)
    };
    let rows = [
        ("in sync after its start".to_owned(), format!("{:.2} s", took.as_secs_f64())),
        ("RSS".to_owned(), format!("{:.1} MB", resident as f64 / 1024.0)),
        (
            format!("RSS after {} changes", RATE * SPAN.as_secs() as u32),
            format!("{:.1} MB", after as f64 / 1024.0),
        ),
        ("CPU idle".to_owned(), format!("{:.2} %", idle * 100.0)),
        (format!("CPU at {RATE} changes a second"), format!("{:.2} %", changing * 100.0)),
        (format!("a pod's label to the kernel, p50 of {FOLLOWED}"), ms(0.5)),
        ("p99".to_owned(), ms(0.99)),
        ("longest".to_owned(), ms(1.0)),
    ];
    for (what, value) in rows {
        table.add_row([what, value]);
    }
    table.column_mut(1).into_iter().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    Ok(())
}

/// The part of one core that the agent takes meanwhile.
fn busy(process: &Process, work: impl FnOnce()) -> Result<f64> {
    let before = process.cpu_seconds().context("the agent runs")?;
    let started = Instant::now();
    work();
    Ok((process.cpu_seconds().context("the agent runs")? - before) / started.elapsed().as_secs_f64())
}

/// Pods that get another label, at an even pace.
fn change(server: &ApiServer) {
    let start = Instant::now();
    for number in 0..RATE * SPAN.as_secs() as u32 {
        let due = start + Duration::from_secs(1) * number / RATE;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut pod = pod(number % PODS);
        pod["metadata"]["labels"]["turn"] = json!((number / PODS % 2).to_string());
        pod["metadata"]["labels"]["role"] = json!(role(number));
        server.set(pod);
    }
}

/// A label that puts an address into a set and takes it out again, until the kernel itself says so.
fn follow(server: &ApiServer, netns: &Netns) -> Result<Vec<Duration>> {
    let changing = |role: &str| {
        let mut pod = pod(1);
        pod["metadata"]["name"] = json!("changing");
        pod["metadata"]["namespace"] = json!("ns-0");
        pod["metadata"]["labels"]["role"] = json!(role);
        pod["status"]["podIP"] = json!(ADDRESS);
        pod["status"]["podIPs"] = json!([{"ip": ADDRESS}]);
        pod
    };
    server.set(changing("client"));
    let found = wait::until(LIMIT, || {
        let saved = netns.run("ipset save").map_err(|e| e.to_string())?;
        let line = saved.lines().find(|l| l.starts_with("add ") && l.contains(&format!(" {ADDRESS}")));
        line.map(str::to_owned).ok_or_else(|| "no set has the address".to_owned())
    });
    let set = match found {
        Ok((line, _)) => line.split(' ').nth(1).unwrap_or_default().to_owned(),
        Err(last) => bail!("a pod's label is not in the kernel: {last}"),
    };
    let member = Member::Ip(ADDRESS.parse().context("an address")?);
    let mut latencies = netns.enter(|| -> Result<Vec<Duration>> {
        let mut sets = Ipsets::open()?;
        let mut latencies = Vec::new();
        for number in 0..FOLLOWED {
            let present = number % 2 == 1;
            let started = Instant::now();
            server.set(changing(if present { "client" } else { "other" }));
            while sets.contains(&set, &member)? != present {
                if started.elapsed() > LIMIT {
                    bail!("a change is not in the kernel after {LIMIT:?}");
                }
                std::thread::sleep(BETWEEN_LOOKS);
            }
            latencies.push(started.elapsed());
            // Each change for itself: those that come close together are applied together.
            std::thread::sleep(BETWEEN_CHANGES);
        }
        Ok(latencies)
    })??;
    latencies.sort();
    Ok(latencies)
}

fn fill(server: &ApiServer) {
    let mut all = vec![
        json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPConfiguration", "metadata": {"name": "default"},
               "spec": {"asNumber": 64512, "nodeToNodeMesh": "Off"}}),
        json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer", "metadata": {"name": "tor"},
               "spec": {"peerIP": "127.0.0.77", "asNumber": 65001, "passive": true, "required": false}}),
    ];
    all.extend((0..NAMESPACES).map(|i| cluster::namespace(&format!("ns-{i}"), &[("team", "bench")])));
    all.extend((0..NODES).map(node));
    all.extend((0..PODS).map(pod));
    all.extend((0..POLICIES).map(policy));
    server.set_all(all);
}

fn node(number: u32) -> Value {
    let (high, low) = (number / 250, number % 250);
    json!({"apiVersion": "v1", "kind": "Node",
           "metadata": {"name": format!("node-{number}"), "uid": format!("uid-node-{number}"), "labels": {
               "kubernetes.io/hostname": format!("node-{number}"), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
               "rack": format!("rack-{}", number / 40)},
               "managedFields": padding("kubelet", 10)},
           "spec": {"podCIDR": format!("10.{}.{low}.0/26", 100 + high),
                    "podCIDRs": [format!("10.{}.{low}.0/26", 100 + high), format!("fd00:10:{high:x}:{low:x}::/64")]},
           "status": {"addresses": [{"type": "InternalIP", "address": format!("192.{}.{}.1", 100 + high, low)},
                                    {"type": "Hostname", "address": format!("node-{number}")}],
                      "images": padding("image", 20), "conditions": padding("condition", 4)}})
}

fn pod(number: u32) -> Value {
    let node = number % NODES;
    let ip = format!("10.{}.{}.{}", 100 + node / 250, node % 250, 2 + number / NODES);
    json!({"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": format!("pod-{number}"), "namespace": format!("ns-{}", number % NAMESPACES),
               "uid": format!("3f1d0c6e-0000-4000-8000-{number:012}"),
               "labels": {"app": format!("app-{}", number % 50), "role": role(number),
                          "pod-template-hash": format!("{:x}", number % 997)},
               "managedFields": padding("manager", 8)},
           "spec": {"nodeName": format!("node-{node}"), "serviceAccountName": "default", "volumes": padding("volume", 2),
                    "containers": [{"name": "main", "image": "registry.example/app:1", "env": padding("variable", 10),
                                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
           "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "containerStatuses": padding("status", 2)}})
}

/// What real objects are full of and nobody here reads: some hundred bytes an entry.
fn padding(name: &str, entries: u32) -> Value {
    let entry = |i: u32| {
        json!({"name": format!("{name}-{i}"), "operation": "Update", "time": "2026-01-01T00:00:00Z",
               "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:a": {}, "f:b": {}}},
               "message": "something that is written again and again by one controller or another"})
    };
    (0..entries).map(entry).collect()
}

fn policy(number: u32) -> Value {
    // Ten of them select the pod on this node.
    let app = if number < 10 { "web".to_owned() } else { format!("app-{}", number % 50) };
    let namespace = if number < 10 { 0 } else { number % NAMESPACES };
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"name": format!("policy-{number}"), "namespace": format!("ns-{namespace}")},
           "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"],
                    "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}],
                                 "ports": [{"protocol": "TCP", "port": 8000 + number % 20}]}]}})
}

fn role(number: u32) -> &'static str {
    if number.is_multiple_of(2) { "client" } else { "other" }
}
