//! Policy alone, beside a plugin that routes to pods (ptp): what this agent did not attach it finds by the kernel's routes, and
//! enforces for it. Needs root and Debian's plugins.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use manx_tests::agent::{Agent, built_binaries};
use manx_tests::cluster::{self, Cluster};
use manx_tests::netns::{Guard, Netns};
use manx_tests::probe::server::Server;
use manx_tests::probe::{Outcome, PORTS, Proto, client};
use manx_tests::process::Process;
use manx_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const IN_VAIN: Duration = Duration::from_millis(800);
const PLUGINS: &str = "/usr/lib/cni";

/// A node on which another plugin attaches the pods.
struct Stage {
    node: Netns,
    agent: Agent,
    cluster: Cluster,
    process: Option<Process>,
    files: tempfile::TempDir,
    prefix: String,
    _guard: Guard,
}

struct Pod {
    name: &'static str,
    netns: Netns,
    addresses: Vec<IpAddr>,
    _server: Server,
}

impl Stage {
    fn up(name: &str, interfaces: &str) -> Self {
        let prefix = format!("{name}{}-", std::process::id());
        let guard = Guard::new(&prefix).expect("namespaces can be made");
        let node = Netns::create(&format!("{prefix}node")).expect("a namespace");
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
        ] {
            node.sysctl(key, value).expect("it can be set");
        }
        let files = tempfile::tempdir().expect("a folder");
        let cluster = Cluster::new(files.path().join("manifests")).expect("a folder");
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
                            "spec": {"podCIDRs": ["10.200.1.0/24", "fd00:10:200:1::/64"]}});
        let shop = cluster::namespace("shop", &[]);
        cluster.put("cluster", &[object, shop]).expect("manifests can be written");
        let agent = Agent {
            node: "n1".to_owned(),
            netns: node.clone(),
            bin_dir: built_binaries(),
            manifests: cluster.dir().to_owned(),
            dir: files.path().to_owned(),
            cni_bin_dir: PathBuf::from(PLUGINS),
            extra: ["--enable", "policy", "--pod-interface-prefix", interfaces].map(str::to_owned).into(),
        };
        Stage { node, agent, cluster, process: None, files, prefix, _guard: guard }
    }

    fn start(&mut self) {
        self.process = Some(self.agent.start().expect("it starts"));
    }

    /// ADD by the other plugin, and the Pod object as the kubelet writes it afterwards.
    fn attach(&self, name: &'static str, plugin: &Value) -> Pod {
        let netns = Netns::sandbox(&format!("{}{name}", self.prefix)).expect("a namespace");
        let result = self.call("ADD", name, &netns, plugin);
        let ips = result["ips"].as_array().expect("a result has addresses");
        let addresses: Vec<IpAddr> =
            ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect();
        // The plugin leaves IPv6 addresses tentative for a second or two.
        let ready = || match netns.ip("-6 addr show dev eth0 tentative").unwrap_or_default().as_str() {
            "" => Ok(()),
            text => Err(text.to_owned()),
        };
        wait::until(PATIENCE, ready).expect("addresses are usable");
        let server = Server::start(&netns).expect("it answers");
        let pod = Pod { name, netns, addresses, _server: server };
        self.say(&pod);
        pod
    }

    fn say(&self, pod: &Pod) {
        let ips: Vec<_> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": "shop", "uid": format!("uid-{}", pod.name), "labels": {"app": pod.name}},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "podIP": pod.addresses[0], "podIPs": ips},
        });
        self.cluster.put(&format!("pod-{}", pod.name), &[object]).expect("manifests can be written");
    }

    fn call(&self, verb: &str, name: &str, netns: &Netns, plugin: &Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.0.0", "name": "theirs",
            "ipam": {"type": "host-local", "dataDir": self.files.path().join("ipam"),
                     "ranges": [[{"subnet": "10.200.1.0/24"}], [{"subnet": "fd00:10:200:1::/64"}]],
                     "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
        });
        for (key, value) in plugin.as_object().expect("a configuration") {
            conf[key] = value.clone();
        }
        let program = Path::new(PLUGINS).join(conf["type"].as_str().expect("a type"));
        let mut command = self.node.command(program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("c-{name}"))
            .env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", netns.path()).env("CNI_PATH", PLUGINS);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the plugin is there");
        child.stdin.take().expect("a pipe").write_all(conf.to_string().as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{verb} {name}: {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn policy(&self, name: &str, spec: &Value) {
        let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                            "metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        self.cluster.put(name, &[object]).expect("manifests can be written");
    }

    fn status(&self) -> Value {
        self.agent.ask("/v1/status").map(|(_, status)| status).unwrap_or_default()
    }

    fn eventually(&self, what: &str, condition: impl Fn() -> bool) {
        let looked = wait::until(PATIENCE, || if condition() { Ok(()) } else { Err(()) });
        let log = || std::fs::read_to_string(self.agent.log()).unwrap_or_default();
        assert!(looked.is_ok(), "not within {PATIENCE:?}: {what}\n{}\n{}", self.status(), log());
    }
}

fn open(from: &Netns, to: &Pod, limit: Duration) -> bool {
    to.addresses.iter().all(|ip| {
        let outcome = client::probe(from, Proto::Tcp, *ip, PORTS[0], limit).expect("it can be probed");
        matches!(outcome, Outcome::Answered(_))
    })
}

fn shut(from: &Netns, to: &Pod) -> bool {
    to.addresses.iter().all(|ip| {
        let outcome = client::probe(from, Proto::Tcp, *ip, PORTS[0], IN_VAIN).expect("it can be probed");
        !matches!(outcome, Outcome::Answered(_))
    })
}

#[test]
fn kernel_policy_alone_is_enforced_for_pods_that_a_routing_plugin_attached() {
    let mut stage = Stage::up("mxpo", "veth");
    let ptp = json!({"type": "ptp", "ipMasq": false});
    // One is there before the agent, the others come under it.
    let web = stage.attach("web", &ptp);
    stage.start();
    let (client, other) = (stage.attach("client", &ptp), stage.attach("other", &ptp));
    stage.eventually("its interfaces are found", || stage.status()["policy"]["endpointsInForce"] == 3);
    stage.eventually("everybody reaches web", || {
        open(&client.netns, &web, PATIENCE) && open(&other.netns, &web, PATIENCE)
    });

    let from = json!([{"podSelector": {"matchLabels": {"app": "client"}}}]);
    let only = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{"from": from}]});
    stage.policy("only-client", &only);
    stage.eventually("the policy shuts others out", || shut(&other.netns, &web));
    assert!(open(&client.netns, &web, PATIENCE));
    let verdict = stage
        .agent
        .ask("/v1/policy/trace?source=shop/other&destination=shop/web:8080/tcp")
        .expect("an answer");
    assert_eq!(verdict.1["verdict"], "Deny", "{}", verdict.1);

    // A restart keeps what is in force, all the time.
    let old = stage.process.take().expect("it runs");
    old.end(Signal::SIGTERM).expect("it ends");
    assert!(shut(&other.netns, &web) && open(&client.netns, &web, PATIENCE));
    stage.start();
    stage.eventually("it has found them again", || stage.status()["policy"]["endpointsInForce"] == 3);
    assert!(shut(&other.netns, &web) && open(&client.netns, &web, PATIENCE));

    // A pod sends under its own address only.
    let foreign = if web.addresses[0].is_ipv4() { "10.200.1.250" } else { "fd00:10:200:1::250" };
    client.netns.ip(&format!("addr add {foreign}/32 dev eth0")).expect("it is root in there");
    let spoofs = client.netns.run(&format!("ping -c 1 -W 1 -I {foreign} {}", web.addresses[0]));
    assert!(spoofs.is_err(), "a foreign source address gets through");

    // DEL and another ADD: a new interface under the old name.
    stage.call("DEL", "other", &other.netns, &ptp);
    stage.cluster.remove("pod-other").expect("it was there");
    stage.eventually("it is forgotten", || stage.status()["policy"]["endpoints"] == 2);
    assert!(stage.status()["cni"].is_null());
    // Nothing of the other plugin is ours to clean up.
    let last = stage.process.take().expect("it runs");
    last.end(Signal::SIGTERM).expect("it ends");
    stage.agent.cleanup(true).expect("it cleans up");
    assert!(open(&client.netns, &web, PATIENCE));
}

/// Nothing can be enforced by interface where packets come in by a bridge: that is said and not passed over.
#[test]
fn kernel_pods_of_a_bridge_are_named_as_out_of_reach() {
    let mut stage = Stage::up("mxpb", "veth");
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true});
    stage.start();
    let _web = stage.attach("web", &bridge);
    stage.eventually("it is named", || {
        let errors = stage.status()["kernel"]["errors"].to_string();
        errors.contains("Pod shop/web") && errors.contains("its policy is not enforced")
    });
}
