//! In a chain with the reference plugins as neighbours, as a runtime would call them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use manx_cni::conflist;
use serde_json::{Value, json};

use crate::node::{Namespace, Node, Outcome, Pod, address, binary, tcp};

const BIN_DIR: &str = "/usr/lib/cni";

/// What libcni does with a list: each plugin gets the list's name and version, the result so far, and what its
/// capabilities ask for.
fn chain(node: &Node, verb: &str, pod: &Pod, plugins: &[Value], runtime: &Value) -> Value {
    let order: Vec<&Value> =
        if verb == "DEL" { plugins.iter().rev().collect() } else { plugins.iter().collect() };
    let mut result = Value::Null;
    for plugin in order {
        let kind = plugin["type"].as_str().unwrap();
        let mut conf = plugin.clone();
        conf["cniVersion"] = json!("1.0.0");
        conf["name"] = json!("manx");
        conf["runtimeConfig"] = runtime.clone();
        if !result.is_null() {
            conf["prevResult"] = result.clone();
        }
        let path: PathBuf = if kind == "manx" { binary() } else { Path::new(BIN_DIR).join(kind) };
        let outcome = node.call_binary(&path, verb, Some(pod), &conf);
        if verb == "ADD" {
            result = outcome.ok();
        } else {
            assert!(outcome.success, "{kind}: {outcome:?}");
        }
    }
    result
}

fn manx(node: &Node) -> Value {
    json!({ "type": "manx", "runDir": node.run_dir() })
}

#[test]
fn host_port_of_debians_portmap_works_from_outside() {
    let node = Node::new();
    let client = Namespace::new("client");
    node.ns.ip(&["link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", &client.0]);
    for (ns, device, address) in [(&node.ns, "up0", "192.0.2.1/24"), (&client, "eth0", "192.0.2.2/24")] {
        ns.ip(&["addr", "add", address, "dev", device]);
        ns.ip(&["link", "set", device, "up"]);
    }
    let pod = Pod::new("web");
    let plugins = [manx(&node), json!({ "type": "portmap", "capabilities": { "portMappings": true } })];
    // The case of keys is containerd's.
    let runtime = json!({ "portMappings": [{ "HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp" }] });
    let result = chain(&node, "ADD", &pod, &plugins, &runtime);
    assert_eq!(result["ips"].as_array().unwrap().len(), 2);

    let server = pod.ns.inside(|| TcpListener::bind("0.0.0.0:80").unwrap());
    let connect = || {
        client.inside(|| {
            let to = "192.0.2.1:8080".parse().unwrap();
            TcpStream::connect_timeout(&to, Duration::from_secs(5)).map(|s| s.local_addr().unwrap())
        })
    };
    let client_address = connect().unwrap();
    let (_, seen) = server.accept().unwrap();
    assert_eq!(seen, client_address, "the pod sees the client itself");

    let with_result = |plugins: &[Value]| -> Vec<Value> {
        let add = |plugin: &Value| {
            let mut plugin = plugin.clone();
            plugin["prevResult"] = result.clone();
            plugin
        };
        plugins.iter().map(add).collect()
    };
    // Not portmap's own: it looks for its IPv4 rule among those of IPv6 when a pod has both.
    chain(&node, "CHECK", &pod, &with_result(&plugins[..1]), &runtime);
    chain(&node, "DEL", &pod, &with_result(&plugins), &runtime);
    assert!(connect().is_err(), "the port is closed after DEL");
    assert_eq!(node.ns.links(), ["up0"]);
}

#[test]
fn bandwidth_finds_the_host_end_in_the_result() {
    let node = Node::new();
    let pod = Pod::new("web");
    let plugins = [manx(&node), json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } })];
    let runtime = json!({ "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000 } });
    let result = chain(&node, "ADD", &pod, &plugins, &runtime);
    let host = result["interfaces"][0]["name"].as_str().unwrap();
    let qdisc = node.ns.run("tc", &["qdisc", "show", "dev", host]);
    assert!(qdisc.contains("tbf") && qdisc.contains("8Mbit"), "{qdisc}");
    tcp(&node.ns, &pod.ns, &address(&result, true));

    // 8 Mbit/s are a megabyte a second: what is over the burst takes its time, and all of it arrives.
    const BYTES: usize = 1_000_000;
    let server = pod.ns.inside(|| TcpListener::bind("0.0.0.0:5001").unwrap());
    let to = SocketAddr::new(address(&result, true).parse().unwrap(), 5001);
    let begin = Instant::now();
    let sender = node.ns.inside(|| TcpStream::connect(to).unwrap());
    let sending = thread::spawn(move || (&sender).write_all(&vec![0; BYTES]).unwrap());
    let mut received = Vec::new();
    server.accept().unwrap().0.read_to_end(&mut received).unwrap();
    sending.join().unwrap();
    assert_eq!(received.len(), BYTES);
    assert!(begin.elapsed() > Duration::from_millis(700), "{:?}", begin.elapsed());
    chain(&node, "DEL", &pod, &plugins, &runtime);
    node.assert_nothing_left();
}

#[test]
fn tuning_may_follow() {
    let node = Node::new();
    let pod = Pod::new("web");
    let tuning =
        json!({ "type": "tuning", "mtu": 1400, "sysctl": { "net.ipv4.conf.IFNAME.arp_notify": "1" } });
    let plugins = [manx(&node), tuning];
    let result = chain(&node, "ADD", &pod, &plugins, &json!({}));
    assert_eq!(pod.ns.ip_json(&["link", "show", "eth0"])[0]["mtu"], 1400);
    let mut conf = node.conf(&json!({ "prevResult": result }));
    node.call("CHECK", Some(&pod), &conf).silent();
    conf["cniVersion"] = json!("1.1.0");
    node.call("CHECK", Some(&pod), &conf).silent();
    node.del(&pod);
    node.assert_nothing_left();
}

#[test]
fn what_came_before_stays_in_the_result() {
    let node = Node::new();
    let pod = Pod::new("web");
    let before = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "net0", "sandbox": pod.ns.path() }],
        "ips": [{ "address": "172.16.0.2/24", "interface": 0 }],
        "routes": [{ "dst": "172.16.0.0/12", "gw": "172.16.0.1" }],
        "dns": { "search": ["a.example"] },
    });
    let result = node.call("ADD", Some(&pod), &node.conf(&json!({ "prevResult": before }))).ok();
    let indices: Vec<_> =
        result["ips"].as_array().unwrap().iter().map(|ip| ip["interface"].clone()).collect();
    assert_eq!(indices, [json!(0), json!(2), json!(2)]);
    assert_eq!(result["interfaces"][0]["name"], "net0");
    assert_eq!(result["routes"][0], json!({ "dst": "172.16.0.0/12", "gw": "172.16.0.1" }));
    assert_eq!(result["dns"]["search"][0], "a.example");
}

#[test]
fn the_conflist_lists_what_debians_plugins_and_ours_report() {
    let text = conflist::conflist(Path::new("/run/manx"), Path::new(BIN_DIR));
    let list: Value = serde_json::from_str(&text).unwrap();
    let kinds: Vec<_> =
        list["plugins"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["manx", "portmap", "bandwidth"]);
    let ours = conflist::probe_versions(&binary()).unwrap();
    assert_eq!(ours, manx_cni::spec::VERSIONS);
    let mut others =
        ["portmap", "bandwidth"].map(|p| conflist::probe_versions(&Path::new(BIN_DIR).join(p)).unwrap());
    others.iter_mut().for_each(|o| o.sort());
    for version in list["cniVersions"].as_array().unwrap() {
        let version = version.as_str().unwrap().to_owned();
        assert!(ours.contains(&version) && others.iter().all(|o| o.contains(&version)), "{version}");
    }
    assert_eq!(list["cniVersion"], "1.0.0");
}

/// podman gives a name and no namespace; it needs `mac` in the result.
#[test]
fn podmans_call_is_understood() {
    let node = Node::new();
    let mut pod = Pod::new("web");
    pod.args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=x".to_owned();
    let conf = node.conf(&json!({ "runtimeConfig": { "ips": ["10.211.0.40"], "mac": "02:00:00:00:00:07" } }));
    let outcome: Outcome = node.call("ADD", Some(&pod), &conf);
    let result = outcome.ok();
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:07");
    assert_eq!(address(&result, true), "10.211.0.40");
    let attachment = &node.store().attachments().unwrap()[0];
    assert_eq!(
        (attachment.namespace.as_deref(), attachment.pod.as_deref(), attachment.uid.as_deref()),
        (None, Some("web"), None)
    );
}
