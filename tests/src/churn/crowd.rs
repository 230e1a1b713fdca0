//! A large cluster as values: pods by the thousand, policies in their namespaces, changes without end. What a number stands for
//! never changes, so that a run can be told by its seed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use manx_policy::model::{
    Action, Addresses, Endpoint, EndpointId, Labels, NamedPort, Namespace, NamespaceScope, Order, Peer, Pod,
    PodId, PodRef, PodSelector, Policy, PolicyId, Port, Protocol, Rule, Tier, Update,
};
use manx_policy::selector::Selector;
use serde_json::{Value, json};

/// Namespaces, over which pods and policies are spread.
pub const NAMESPACES: usize = 50;
/// Pods of the node: the first ones.
pub const LOCAL: usize = 110;
/// The port that containers call `http`.
pub const HTTP: u16 = 8080;
/// Ports of which policies speak, and one of which none does.
pub const PORTS: [u16; 3] = [HTTP, 9090, 7777];
/// The node.
pub const NODE: &str = "node-0";

const COLORS: [&str; 3] = ["red", "green", "blue"];
const TEAMS: usize = 4;

/// How many of what.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Pods in the cluster.
    pub pods: usize,
    /// Policies in the cluster.
    pub policies: usize,
}

/// All objects of a cluster, in an order in which they can be applied.
pub fn everything(size: Size) -> impl Iterator<Item = Update> {
    let namespaces = (0..NAMESPACES).map(|i| namespace(i, i));
    let pods = (0..size.pods).map(|i| pod(i, i));
    let policies = (0..size.policies).map(|i| policy(i, i));
    namespaces.chain(pods).chain(policies).chain((0..LOCAL).map(|i| Update::SetEndpoint(endpoint(i))))
}

/// A pod's name.
pub fn pod_id(i: usize) -> PodId {
    PodId::new(&format!("ns-{}", i % NAMESPACES), &format!("pod-{i}"))
}

/// A pod, with the color of `turn`.
pub fn pod(i: usize, turn: usize) -> Update {
    let labels = [
        ("app", format!("app-{}", i % 7)),
        ("color", COLORS[turn % COLORS.len()].to_string()),
        ("pod-template-hash", format!("{:x}", i / 50)),
    ];
    Update::SetPod(Pod {
        id: pod_id(i),
        uid: format!("uid-{i}").into(),
        mirror_hash: None,
        labels: Labels::from_iter(labels.iter().map(|(k, v)| (*k, v))),
        node: Some(if i < LOCAL { NODE.into() } else { format!("node-{}", 1 + i % 90).into() }),
        host_network: false,
        finished: false,
        terminating: false,
        addresses: Addresses::from_iter([address(i, false), address(i, true)]),
        ports: [NamedPort { name: "http".into(), protocol: Protocol::Udp, number: HTTP }].into(),
    })
}

/// A pod's address of one family: 10.128.0.0/16 and fd00:128::/112.
pub fn address(i: usize, v6: bool) -> IpAddr {
    let n = i + 1;
    let text = if v6 { format!("fd00:128::{n:x}") } else { format!("10.128.{}.{}", n >> 8, n & 255) };
    text.parse().expect("an address of this plan")
}

/// A namespace, of the team of `turn`.
pub fn namespace(i: usize, turn: usize) -> Update {
    let team = format!("team-{}", turn % TEAMS);
    let labels = [("team", team), ("kubernetes.io/metadata.name", format!("ns-{i}"))];
    Update::SetNamespace(Namespace {
        name: format!("ns-{i}").as_str().into(),
        labels: Labels::from_iter(labels.iter().map(|(k, v)| (*k, v))),
    })
}

/// An attachment of the node.
pub fn endpoint(i: usize) -> Endpoint {
    let pod = pod_id(i);
    Endpoint {
        id: endpoint_id(i),
        interface: interface(i),
        pod: Some(PodRef {
            namespace: Some(pod.namespace.to_string()),
            name: pod.name.to_string(),
            uid: Some(format!("uid-{i}")),
        }),
        addresses: Addresses::from_iter([address(i, false), address(i, true)]),
    }
}

/// Names an attachment.
pub fn endpoint_id(i: usize) -> EndpointId {
    EndpointId { container_id: format!("{i:064x}"), ifname: "eth0".into() }
}

/// The node's end of a pod's link: spread like hashes.
pub fn interface(i: usize) -> String {
    format!("manx{:011x}", (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20)
}

/// A policy. Those of a namespace select all its pods or those of one app; they let in by color and team, and each fourth keeps in.
pub fn policy(i: usize, turn: usize) -> Update {
    let own = format!("ns-{}", i % NAMESPACES);
    let n = i / NAMESPACES;
    let color = |k: usize| Selector::of_labels([("color", COLORS[k % COLORS.len()])]);
    let team = |k: usize| Selector::of_labels([("team", format!("team-{}", k % TEAMS))]);
    let of_team = |t: usize, c: usize| {
        Peer::Pods(PodSelector { namespaces: NamespaceScope::Matching(team(t)), pods: color(c) })
    };
    let neighbours = Peer::Pods(PodSelector {
        namespaces: NamespaceScope::Named(own.as_str().into()),
        pods: Selector::everything(),
    });
    let rule = |peers, port| Rule {
        action: Action::Accept,
        peers: Some(peers),
        ports: Some(vec![port]),
        more: None,
        name: None,
        refused: false,
    };
    let named = Port::Named(Protocol::Udp, "http".into());
    let number = Port::Range(Protocol::Udp, PORTS[1], PORTS[1]);
    let everywhere = NamespaceScope::Matching(Selector::everything());
    let everyone_of = |c: usize| Peer::Pods(PodSelector { namespaces: everywhere.clone(), pods: color(c) });
    Update::SetPolicy(Policy {
        id: PolicyId::network_policy(&own, &format!("policy-{n}")),
        tier: Tier::NetworkPolicy,
        order: Order::NETWORK_POLICY,
        generation: turn as i64,
        staged: false,
        subject: vec![PodSelector {
            namespaces: NamespaceScope::Named(own.as_str().into()),
            pods: match n % 5 {
                0 => Selector::everything(),
                _ => Selector::of_labels([("app", format!("app-{}", (i + n) % 7))]),
            },
        }],
        ingress: Some(vec![
            rule(vec![of_team(turn, turn + n)], named.clone()),
            rule(vec![neighbours, of_team(turn + 1, n)], number.clone()),
        ]),
        egress: n.is_multiple_of(4).then(|| {
            let peers = vec![everyone_of(turn), everyone_of(turn + 1)];
            vec![rule(peers.clone(), named), rule(peers, number)]
        }),
        problems: Vec::new(),
    })
}

/// The same cluster as Kubernetes objects.
pub fn manifests(size: Size) -> Vec<Value> {
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
        "spec": {"podCIDRs": ["10.128.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]},
    })];
    for i in 0..NAMESPACES {
        let Update::SetNamespace(namespace) = namespace(i, i) else {
            unreachable!("a namespace was asked for")
        };
        let labels: BTreeMap<&str, &str> = namespace.labels.iter().map(|(k, v)| (&**k, &**v)).collect();
        let metadata = json!({"name": &*namespace.name, "labels": labels});
        objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }
    for i in 0..size.pods {
        let Update::SetPod(pod) = pod(i, i) else { unreachable!("a pod was asked for") };
        let labels: BTreeMap<&str, &str> = pod.labels.iter().map(|(k, v)| (&**k, &**v)).collect();
        let ports = json!([{"name": "http", "containerPort": HTTP, "protocol": "UDP"}]);
        let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        let (namespace, name) = (&*pod.id.namespace, &*pod.id.name);
        objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "uid": &*pod.uid, "labels": labels},
            "spec": {"nodeName": pod.node.as_deref(), "containers": [{"name": "main", "image": "crowd", "ports": ports}]},
            "status": {"phase": "Running", "podIPs": ips},
        }));
    }
    for i in 0..size.policies {
        objects.push(policy_object(i, i));
    }
    objects
}

/// What [`policy`] makes, as its spec says it.
fn policy_object(i: usize, turn: usize) -> Value {
    let n = i / NAMESPACES;
    let color = |k: usize| json!({"matchLabels": {"color": COLORS[k % COLORS.len()]}});
    let team = |k: usize| json!({"matchLabels": {"team": format!("team-{}", k % TEAMS)}});
    let of_team = |t: usize, c: usize| json!({"namespaceSelector": team(t), "podSelector": color(c)});
    let everyone_of = |c: usize| json!({"namespaceSelector": {}, "podSelector": color(c)});
    let named = json!([{"protocol": "UDP", "port": "http"}]);
    let number = json!([{"protocol": "UDP", "port": PORTS[1]}]);
    let subject = match n % 5 {
        0 => json!({}),
        _ => json!({"matchLabels": {"app": format!("app-{}", (i + n) % 7)}}),
    };
    let mut spec = json!({
        "podSelector": subject, "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [of_team(turn, turn + n)], "ports": &named},
            {"from": [{"podSelector": {}}, of_team(turn + 1, n)], "ports": &number},
        ],
    });
    if n.is_multiple_of(4) {
        let peers = [everyone_of(turn), everyone_of(turn + 1)];
        spec["policyTypes"] = json!(["Ingress", "Egress"]);
        spec["egress"] = json!([{"to": &peers, "ports": &named}, {"to": &peers, "ports": &number}]);
    }
    let metadata = json!({"namespace": format!("ns-{}", i % NAMESPACES), "name": format!("policy-{n}")});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
}

/// Pseudo-random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number, below `n`.
    pub fn roll(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % n as u64) as usize
    }
}

/// Any change: mostly of pods, of which every other one is among `watched`, now and then of a namespace's labels or of a policy.
pub fn change(dice: &mut Dice, size: Size, watched: &[usize]) -> Update {
    let turn = dice.roll(1 << 16);
    match dice.roll(20) {
        0 => namespace(dice.roll(NAMESPACES), turn),
        1 | 2 => policy(dice.roll(size.policies), turn),
        // Pods of the node stay; only what they are changes.
        3 => {
            let i = LOCAL + dice.roll(size.pods - LOCAL);
            if turn.is_multiple_of(2) { Update::RemovePod(pod_id(i), None) } else { pod(i, turn) }
        }
        k if k % 2 == 0 => pod(watched[dice.roll(watched.len())], turn),
        _ => pod(dice.roll(size.pods), turn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read from manifests and what is made of values is one cluster.
    #[test]
    fn manifests_say_what_the_values_say() {
        for i in [0, 1, 60, 210, 999] {
            let read = serde_json::from_value(policy_object(i, i)).expect("a NetworkPolicy");
            let Ok(mut read) = manx_policy::k8s::network_policy(&read) else { panic!("policy {i}") };
            let Update::SetPolicy(made) = policy(i, i) else { panic!("policy {i}") };
            read.generation = made.generation;
            assert_eq!(read, made);
        }
    }
}
