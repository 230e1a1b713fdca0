//! Small clusters, generated: few names and many coincidences, so that policies really meet pods.

use std::net::IpAddr;

use manx_policy::model::{
    Action, Addresses, Endpoint, EndpointId, IpBlock, Labels, NamedPort, Namespace, NamespaceScope, Peer,
    Pod, PodId, PodRef, PodSelector, Policy, PolicyId, Port, Protocol, Rule, Str, Tier, Update,
};
use manx_policy::selector::{Operator, Requirement, Selector};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const NAMESPACES: [&str; 3] = ["default", "red", "blue"];
const KEYS: [&str; 3] = ["app", "tier", "env"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const PORT_NAMES: [&str; 2] = ["http", "dns"];
pub(crate) const PORTS: [u16; 8] = [53, 80, 81, 443, 4789, 8080, 1, 65535];

/// The addresses that stand in for pod number `i`.
pub(crate) fn pod_addresses(i: usize) -> [IpAddr; 2] {
    [
        format!("10.0.{}.{}", i % 2, 10 + i).parse().unwrap(),
        format!("fd00:0:0:{}::{:x}", i % 2, 16 + i).parse().unwrap(),
    ]
}

pub(crate) fn interface(i: usize) -> String {
    format!("manx{:011x}", i * 0x1234_5678)
}

pub(crate) fn labels() -> impl Strategy<Value = Labels> {
    vec((select(&KEYS[..]), select(&VALUES[..])), 0..3).prop_map(Labels::from_iter)
}

fn selector() -> impl Strategy<Value = Selector> {
    let values = || vec(select(&VALUES[..]).prop_map(Str::from), 1..3);
    let operator = prop_oneof![
        4 => values().prop_map(Operator::In),
        2 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    let requirement =
        (select(&KEYS[..]), operator).prop_map(|(key, operator)| Requirement { key: key.into(), operator });
    vec(requirement, 0..3).prop_map(Selector::new)
}

pub(crate) fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![3 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn named_ports() -> impl Strategy<Value = Vec<NamedPort>> {
    let port = (select(&PORT_NAMES[..]), protocol(), select(&PORTS[..]));
    vec(port.prop_map(|(name, protocol, number)| NamedPort { name: name.into(), protocol, number }), 0..4)
        .prop_map(|mut ports| {
            ports.sort();
            ports.dedup();
            ports
        })
}

/// Which addresses a pod's status lists: its own, another's, one family, none.
fn status_addresses(i: usize) -> impl Strategy<Value = Addresses> {
    let own = Addresses::from_slice(&pod_addresses(i));
    let v4 = Addresses::from_slice(&pod_addresses(i)[..1]);
    let v6 = Addresses::from_slice(&pod_addresses(i)[1..]);
    prop_oneof![
        6 => Just(own),
        1 => Just(v4),
        1 => Just(v6),
        1 => Just(Addresses::new()),
        1 => (0usize..8).prop_map(|other| Addresses::from_slice(&pod_addresses(other))),
    ]
}

pub(crate) fn pod(i: usize) -> impl Strategy<Value = Pod> {
    let flags = (prop::bool::weighted(0.07), prop::bool::weighted(0.07), prop::bool::weighted(0.1));
    let uid = select(&["u1", "u2"][..]);
    let mirror = option::weighted(0.1, select(&["u1", "u2"][..]));
    (select(&NAMESPACES[..]), labels(), flags, status_addresses(i), named_ports(), uid, mirror).prop_map(
        move |(namespace, labels, (host_network, finished, terminating), addresses, ports, uid, mirror)| {
            Pod {
                id: PodId::new(namespace, &format!("p{i}")),
                uid: uid.into(),
                mirror_hash: mirror.map(Into::into),
                labels,
                node: None,
                host_network,
                finished,
                terminating,
                addresses,
                ports: ports.into(),
            }
        },
    )
}

pub(crate) fn namespace() -> impl Strategy<Value = Namespace> {
    (select(&NAMESPACES[..]), labels()).prop_map(|(name, labels)| Namespace {
        name: name.into(),
        labels: Labels::new(
            labels
                .iter()
                .cloned()
                .chain([("kubernetes.io/metadata.name".into(), name.into())])
                .collect::<Vec<_>>(),
        ),
    })
}

/// An attachment of this node for pod number `i`, with or without pod arguments, of this or of another uid.
pub(crate) fn endpoint(i: usize) -> impl Strategy<Value = Endpoint> {
    let claim = prop_oneof![
        8 => (select(&NAMESPACES[..]), Just(Some("u1"))).prop_map(Some),
        2 => (select(&NAMESPACES[..]), Just(Some("u2"))).prop_map(Some),
        2 => (select(&NAMESPACES[..]), Just(None)).prop_map(Some),
        1 => Just(None),
    ];
    claim.prop_map(move |claim| {
        let name = format!("p{i}");
        Endpoint {
            id: EndpointId { container_id: name.clone(), ifname: "eth0".into() },
            interface: interface(i),
            pod: claim.map(|(namespace, uid)| PodRef {
                namespace: namespace.into(),
                name,
                uid: uid.map(Into::into),
            }),
            addresses: Addresses::from_slice(&pod_addresses(i)),
        }
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    let scope = prop_oneof![
        select(&NAMESPACES[..]).prop_map(|n| NamespaceScope::Named(n.into())),
        selector().prop_map(NamespaceScope::Matching),
    ];
    let pods =
        (scope, selector()).prop_map(|(namespaces, pods)| Peer::Pods(PodSelector { namespaces, pods }));
    let block = |cidr: &'static str, holes: &'static [&'static str]| {
        vec(select(holes), 0..3).prop_map(move |except| {
            let mut except: Vec<_> = except.iter().map(|hole| hole.parse().unwrap()).collect();
            except.sort();
            except.dedup();
            Peer::Block(IpBlock { cidr: cidr.parse().unwrap(), except })
        })
    };
    prop_oneof![
        5 => pods,
        1 => block("10.0.0.0/16", &["10.0.1.0/24", "10.0.0.12/32", "10.0.0.0/17"]),
        1 => block("10.0.1.0/24", &["10.0.1.8/29", "10.0.1.13/32"]),
        1 => block("0.0.0.0/0", &["10.0.0.0/16", "0.0.0.0/1", "192.0.2.0/24"]),
        1 => block("fd00::/16", &["fd00:0:0:1::/64", "fd00::10/127"]),
        1 => block("::/0", &["8000::/1", "fd00::/16"]),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let ends = (select(&PORTS[..]), select(&PORTS[..]));
    prop_oneof![
        1 => protocol().prop_map(Port::All),
        4 => (protocol(), ends).prop_map(|(p, (a, b))| Port::Range(p, a.min(b), a.max(b))),
        2 => (protocol(), select(&PORTS[..])).prop_map(|(p, a)| Port::Range(p, a, a)),
        3 => (protocol(), select(&PORT_NAMES[..])).prop_map(|(p, name)| Port::Named(p, name.into())),
    ]
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let lists = (option::weighted(0.8, vec(peer(), 1..4)), option::weighted(0.5, vec(port(), 1..5)));
    let rule = (lists, prop::bool::weighted(0.05)).prop_map(|((peers, ports), refused)| Rule {
        action: Action::Accept,
        peers,
        ports,
        name: None,
        refused,
    });
    option::weighted(0.7, vec(rule, 0..3))
}

pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let who = (select(&NAMESPACES[..]), 0..4u8, selector(), prop::bool::weighted(0.1));
    (who, rules(), rules()).prop_map(|((namespace, number, pods, staged), ingress, egress)| Policy {
        id: PolicyId {
            tier: Tier::NetworkPolicy,
            namespace: Some(namespace.into()),
            name: format!("policy-{number}").into(),
        },
        priority: 0,
        generation: 1,
        staged,
        subject: PodSelector { namespaces: NamespaceScope::Named(namespace.into()), pods },
        ingress,
        egress,
        problems: Vec::new(),
    })
}

/// How many pods a generated cluster has at most.
pub(crate) const PODS: usize = 8;

pub(crate) fn update() -> impl Strategy<Value = Update> {
    let i = 0..PODS;
    prop_oneof![
        6 => i.clone().prop_flat_map(pod).prop_map(Update::SetPod),
        2 => (select(&NAMESPACES[..]), i.clone(), option::of(select(&["u1", "u2"][..])))
            .prop_map(|(n, i, uid)| Update::RemovePod(PodId::new(n, &format!("p{i}")), uid.map(Into::into))),
        3 => namespace().prop_map(Update::SetNamespace),
        1 => select(&NAMESPACES[..]).prop_map(|n| Update::RemoveNamespace(n.into())),
        5 => policy().prop_map(Update::SetPolicy),
        2 => policy().prop_map(|policy| Update::RemovePolicy(policy.id)),
        4 => i.clone().prop_flat_map(endpoint).prop_map(Update::SetEndpoint),
        1 => i.prop_map(|i| Update::RemoveEndpoint(EndpointId {
            container_id: format!("p{i}"),
            ifname: "eth0".into(),
        })),
    ]
}
