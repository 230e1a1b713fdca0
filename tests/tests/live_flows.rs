//! Flows that live when a policy change denies them end within a second and stay dead while both ends keep sending; flows that
//! stay allowed notice nothing. Real agents, real sockets, TCP and UDP, both families, translated ones too. Needs root.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use manx_tests::agent::built_binaries;
use manx_tests::command;
use manx_tests::netns::Netns;
use manx_tests::probe::duplex::{Duplex, Speech};
use manx_tests::scenario::rack::{Rack, World};
use serde_json::{Value, json};

/// What is promised.
const WITHIN: Duration = Duration::from_secs(1);
/// How long a dead flow is watched, and how long a flow that lives may be silent on a busy machine.
const WATCH: Duration = Duration::from_secs(2);

/// A flow and its story.
struct Told {
    name: String,
    flow: Duplex,
}

struct Stage {
    rack: Rack,
    world: World,
    next_port: u16,
}

impl Stage {
    fn new(name: &str, backend: &str) -> Self {
        let name = format!("{name}{}", std::process::id());
        let mut rack = Rack::up(&name, 2, backend, &built_binaries()).expect("the rack comes up");
        let world = World::new();
        rack.apply(&world).expect("the pods come up");
        Stage { rack, world, next_port: 7000 }
    }

    fn policy(&mut self, spec: &Value) {
        let metadata = json!({"name": "guard", "namespace": "x"});
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec,
        });
        self.world.objects.insert("NetworkPolicy/x/guard".to_owned(), object);
        self.rack.apply(&self.world).expect("the agents follow");
    }

    fn netns(&self, pod: &str) -> Netns {
        self.rack.pods[pod].netns.clone()
    }

    /// Flows of both protocols and families from one pod to another.
    fn open(&mut self, from: &str, to: &str) -> Vec<Told> {
        self.open_as(from, to, |address| address)
    }

    /// The same to what `service` makes of each address.
    fn open_as(&mut self, from: &str, to: &str, service: impl Fn(SocketAddr) -> SocketAddr) -> Vec<Told> {
        let mut flows = Vec::new();
        for speech in [Speech::Tcp, Speech::Udp] {
            for v6 in [false, true] {
                self.next_port += 1;
                let listens = SocketAddr::new(self.rack.pods[to].address(v6), self.next_port);
                let (near, far) = (self.netns(from), self.netns(to));
                let flow =
                    Duplex::open(speech, &near, &far, listens, service(listens)).expect("the flow opens");
                flows.push(Told { name: format!("{from} -> {to} {speech:?} v6={v6}"), flow });
            }
        }
        flows
    }
}

fn all_live(flows: &[Told]) {
    for told in flows {
        assert!(told.flow.is_alive(WATCH), "{} is silent", told.name);
    }
}

/// None hears anything from a second after `changed` on.
fn all_end(flows: &[Told], changed: Instant) {
    std::thread::sleep(WITHIN.saturating_sub(changed.elapsed()));
    let before: Vec<_> = flows.iter().map(|told| told.flow.heard()).collect();
    std::thread::sleep(WATCH);
    for (told, before) in flows.iter().zip(before) {
        assert_eq!(told.flow.heard(), before, "{} goes on", told.name);
    }
}

fn ingress(from: &Value) -> Value {
    let subject = json!({"matchLabels": {"pod": "a"}});
    json!({"podSelector": subject, "policyTypes": ["Ingress"], "ingress": [{"from": from}]})
}

fn namespace(name: &str) -> Value {
    json!({"namespaceSelector": {"matchLabels": {"ns": name}}})
}

fn a_denied_flow_ends_and_only_that_one(stage: &mut Stage) {
    let label_b = json!({"podSelector": {"matchLabels": {"pod": "b"}}});
    stage.policy(&ingress(&json!([label_b, namespace("y"), namespace("z")])));
    let to_cut = stage.open("x/b", "x/a");
    let by_label = stage.open("z/a", "x/a");
    // Of the same node, and of the other one; and what the isolated pod has opened itself.
    let stay: Vec<Told> = [("y/a", "x/a"), ("y/b", "x/a"), ("x/a", "x/b"), ("x/b", "y/a")]
        .into_iter()
        .flat_map(|(f, t)| stage.open(f, t))
        .collect();
    for flows in [&to_cut, &by_label, &stay] {
        all_live(flows);
    }

    stage.policy(&ingress(&json!([namespace("y"), namespace("z")])));
    all_end(&to_cut, Instant::now());
    all_live(&by_label);
    all_live(&stay);

    // No policy changes, only who is in a set.
    stage.world.namespaces.get_mut("z").expect("it is there").insert("ns".into(), "other".into());
    stage.rack.apply(&stage.world).expect("the agents follow");
    all_end(&by_label, Instant::now());
    all_live(&stay);

    // What is allowed again goes on where it can: datagrams do.
    let label_b = json!({"podSelector": {"matchLabels": {"pod": "b"}}});
    stage.policy(&ingress(&json!([label_b, namespace("y")])));
    for told in to_cut.iter().filter(|told| told.name.contains("Udp")) {
        assert!(told.flow.is_alive(WATCH), "{} was released and is silent", told.name);
    }
    all_live(&stay);
}

#[test]
fn kernel_a_denied_flow_ends_and_only_that_one_nft() {
    a_denied_flow_ends_and_only_that_one(&mut Stage::new("mxfn", "nft"));
}

#[test]
fn kernel_a_denied_flow_ends_and_only_that_one_legacy() {
    a_denied_flow_ends_and_only_that_one(&mut Stage::new("mxfl", "legacy"));
}

/// Egress isolation that comes, and the server goes on sending into what it takes for a live flow.
#[test]
fn kernel_a_flow_ends_when_its_opener_is_isolated() {
    let mut stage = Stage::new("mxfe", "nft");
    let from_a = stage.open("x/a", "y/b");
    let near = stage.open("x/a", "y/a");
    let stay = stage.open("y/a", "x/a");
    let subject = json!({"matchLabels": {"pod": "a"}});
    stage.policy(&json!({"podSelector": subject, "policyTypes": ["Egress"], "egress": []}));
    let changed = Instant::now();
    all_end(&from_a, changed);
    all_end(&near, changed);
    all_live(&stay);
}

/// Policy sees the pod behind a Service, and a client behind a masquerade by its own address: both ends of the entry count.
#[test]
fn kernel_a_translated_flow_ends() {
    let mut stage = Stage::new("mxft", "nft");
    stage.policy(&ingress(&json!([namespace("y")])));
    let node = stage.rack.node_of("x/a").agent.netns.clone();
    let server = stage.rack.pods["x/a"].clone();
    for (program, service, v6) in
        [("iptables-nft", "10.96.0.10", false), ("ip6tables-nft", "fd00:96::10", true)]
    {
        let to = server.address(v6);
        let rule = format!("{program} -t nat -A PREROUTING -d {service} -j DNAT --to-destination {to}");
        command::output(node.command("sh").arg("-c").arg(rule)).expect("translation is possible");
    }
    let service = |address: SocketAddr| {
        let ip = if address.is_ipv6() { "fd00:96::10" } else { "10.96.0.10" };
        SocketAddr::new(ip.parse().expect("an address"), address.port())
    };
    let through_service = stage.open_as("y/a", "x/a", service);
    let plain = stage.open("y/b", "x/a");
    all_live(&through_service);
    stage.policy(&ingress(&json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}}, "podSelector": {"matchLabels": {"pod": "b"}}}])));
    all_end(&through_service, Instant::now());
    all_live(&plain);
}

/// `policy diff` names the flows that would end, by what policy sees of them, and they live on.
#[test]
fn kernel_a_proposal_names_the_live_flows_that_it_would_end() {
    let mut stage = Stage::new("mxfd", "nft");
    stage.policy(&ingress(&json!([namespace("x"), namespace("y")])));
    let (cut, stay) = (stage.open("y/a", "x/a"), stage.open("x/b", "x/a"));
    let spec = ingress(&json!([namespace("x")]));
    let metadata = json!({"name": "guard", "namespace": "x"});
    let proposal = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec,
    });
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), proposal.to_string()).expect("it can be written");
    let agent = &stage.rack.node_of("x/a").agent;
    let diff = |format: &str| {
        let mut manxctl = std::process::Command::new(agent.bin_dir.join("manxctl"));
        manxctl
            .arg("--run-dir")
            .arg(agent.run_dir())
            .args(["-o", format, "policy", "diff", "-f"])
            .arg(file.path());
        let output = manxctl.output().expect("manxctl runs");
        assert_eq!(output.status.code(), Some(1), "something would be cut: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let found: Value = serde_json::from_str(&diff("json")).expect("a document");
    let ended = found["connections"].as_array().expect("a list");
    assert_eq!(ended.len(), cut.len(), "{found}");
    for flow in ended {
        assert_eq!(
            (&flow["source"]["pod"], &flow["destination"]["pod"]),
            (&json!("y/a"), &json!("x/a")),
            "{flow}"
        );
        assert_eq!((&flow["pod"], &flow["direction"]), (&json!("x/a"), &json!("ingress")), "{flow}");
        assert_eq!(flow["by"], "no policy allows it", "{flow}");
    }
    let protocols: Vec<_> =
        ["TCP", "UDP"].map(|p| ended.iter().filter(|flow| flow["protocol"] == p).count()).into();
    assert_eq!(protocols, [2, 2], "{found}");
    assert!(found["connectionsTried"].as_u64() >= Some(8), "{found}");
    let table = diff("table");
    assert!(table.contains("4 of ") && table.contains("live flows would be ended"), "{table}");
    all_live(&cut);
    all_live(&stay);
}

/// A client whose node hides its address on the way out is known to policy by its own: the entry's original direction tells.
#[test]
fn kernel_a_flow_that_leaves_under_the_nodes_address_ends() {
    let mut stage = Stage::new("mxfm", "nft");
    let node = stage.rack.node_of("x/a").agent.netns.clone();
    for program in ["iptables-nft", "ip6tables-nft"] {
        node.run(&format!("{program} -t nat -A POSTROUTING -o eth0 -j MASQUERADE"))
            .expect("translation is possible");
    }
    let hidden = stage.open("x/a", "y/b");
    let stay = stage.open("z/a", "y/b");
    let subject = json!({"matchLabels": {"pod": "a"}});
    stage.policy(
        &json!({"podSelector": subject, "policyTypes": ["Egress"], "egress": [{"to": [namespace("z")]}]}),
    );
    all_end(&hidden, Instant::now());
    all_live(&stay);
}
