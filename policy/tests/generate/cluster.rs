//! Small clusters, generated: few names and many coincidences, so that policies really meet pods.

use std::net::IpAddr;

use manx_policy::model::{
    Action, Addresses, Conditions, Endpoint, EndpointId, Entity, Family, IcmpMatch, IpBlock, Labels,
    NamedPort, Namespace, NamespaceScope, Order, Peer, Pod, PodId, PodRef, PodSelector, Policy, PolicyId,
    PolicyKind, Port, Protocol, Rule, SERVICE_ACCOUNT_LABEL, Str, Tier, Update, Which,
};
use manx_policy::selector::{Operator, Part, Requirement, Selector};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const NAMESPACES: [&str; 3] = ["default", "red", "blue"];
const KEYS: [&str; 3] = ["app", "tier", "env"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const ACCOUNTS: [&str; 2] = ["a", "b"];
pub(crate) const SOURCES: [u16; 4] = [53, 1024, 40_000, 65535];
pub(crate) const ICMP_TYPES: [u8; 3] = [3, 8, 128];
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

fn part() -> impl Strategy<Value = Part> {
    select(&[Part::Contains, Part::StartsWith, Part::EndsWith][..])
}

fn selector() -> impl Strategy<Value = Selector> {
    let values = || vec(select(&VALUES[..]).prop_map(Str::from), 1..3);
    let operator = prop_oneof![
        4 => values().prop_map(Operator::In),
        2 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
        1 => (part(), select(&VALUES[..])).prop_map(|(part, text)| Operator::Like(part, text.into())),
        1 => (part(), select(&VALUES[..])).prop_map(|(part, text)| Operator::NotLike(part, text.into())),
    ];
    let keys = prop_oneof![
        12 => select(&KEYS[..]),
        1 => Just(SERVICE_ACCOUNT_LABEL),
        1 => Just("=sa/app"),
    ];
    let requirement = (keys, operator).prop_map(|(key, operator)| Requirement { key: key.into(), operator });
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
    let labels = (labels(), option::weighted(0.3, select(&ACCOUNTS[..]))).prop_map(|(labels, account)| {
        let account = account.map(|account| (Str::from(SERVICE_ACCOUNT_LABEL), Str::from(account)));
        Labels::new(labels.iter().cloned().chain(account).collect::<Vec<_>>())
    });
    (select(&NAMESPACES[..]), labels, flags, status_addresses(i), named_ports(), uid, mirror).prop_map(
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
        // A name and no namespace, as podman has it.
        1 => Just(Some(("", None))),
        1 => Just(None),
    ];
    claim.prop_map(move |claim| {
        let name = format!("p{i}");
        Endpoint {
            id: EndpointId { container_id: name.clone(), ifname: "eth0".into() },
            interface: interface(i),
            pod: claim.map(|(namespace, uid)| PodRef {
                namespace: (!namespace.is_empty()).then(|| namespace.into()),
                name,
                uid: uid.map(Into::into),
            }),
            addresses: Addresses::from_slice(&pod_addresses(i)),
        }
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    let pods = pod_selector().prop_map(Peer::Pods);
    let block = |cidr: &'static str, holes: &'static [&'static str]| {
        vec(select(holes), 0..3).prop_map(move |except| {
            let mut except: Vec<_> = except.iter().map(|hole| hole.parse().unwrap()).collect();
            except.sort();
            except.dedup();
            Peer::Block(IpBlock { cidr: cidr.parse().unwrap(), except })
        })
    };
    let entities =
        (prop_oneof![4 => scope(), 1 => Just(NamespaceScope::Named(Entity::GLOBAL.into()))], selector());
    let entities = entities.prop_map(|(namespaces, pods)| Peer::Entities(PodSelector { namespaces, pods }));
    prop_oneof![
        5 => pods,
        2 => entities,
        1 => selector().prop_map(Peer::Nodes),
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

fn rule(actions: &'static [Action], calico: bool) -> impl Strategy<Value = Rule> {
    let lists = (option::weighted(0.8, vec(peer(), 1..4)), option::weighted(0.5, vec(port(), 1..5)));
    let more = option::weighted(0.6, conditions()).prop_map(move |more| more.filter(|_| calico));
    (select(actions), lists, more, prop::bool::weighted(0.05)).prop_map(
        |(action, (peers, ports), more, refused)| {
            let (ports, more) = agreeing(ports, more);
            Rule { action, peers, ports, more: more.map(Box::new), name: None, refused }
        },
    )
}

fn rules(actions: &'static [Action], calico: bool) -> impl Strategy<Value = Option<Vec<Rule>>> {
    option::weighted(0.7, vec(rule(actions, calico), 0..3))
}

/// Doors let only rules of one protocol ask for source ports or for ports that it must not be.
fn agreeing(ports: Option<Vec<Port>>, more: Option<Conditions>) -> (Option<Vec<Port>>, Option<Conditions>) {
    let Some(mut more) = more else { return (ports, None) };
    let said = more.source_ports.as_ref().map(|(protocol, _)| *protocol);
    let said = said.or(more.not_source_ports.as_ref().map(|(protocol, _)| *protocol));
    let said = said.or(more.not_ports.first().map(|port| match port {
        Port::All(protocol) | Port::Range(protocol, ..) | Port::Named(protocol, _) => *protocol,
    }));
    let Some(protocol) = said.filter(|_| more.protocol.is_none()) else {
        if more.protocol.is_some() {
            more.source_ports = None;
            more.not_source_ports = None;
            more.not_ports = Vec::new();
            more.not_protocol = None;
            return (None, Some(more));
        }
        return (ports, Some(more));
    };
    let one = |port: Port| match port {
        Port::All(_) => Port::All(protocol),
        Port::Range(_, first, last) => Port::Range(protocol, first, last),
        Port::Named(_, name) => Port::Named(protocol, name),
    };
    more.source_ports = more.source_ports.map(|(_, ranges)| (protocol, ranges));
    more.not_source_ports = more.not_source_ports.map(|(_, ranges)| (protocol, ranges));
    more.not_ports = more.not_ports.into_iter().map(one).collect();
    more.not_protocol = None;
    let ports = ports.unwrap_or_else(|| vec![Port::All(protocol)]);
    (Some(ports.into_iter().map(one).collect()), Some(more))
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let which = || select(&[Which::Own, Which::Other][..]);
    let ranges = || {
        vec((select(&SOURCES[..]), select(&SOURCES[..])), 1..3)
            .prop_map(|ranges| ranges.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect::<Vec<_>>())
    };
    let icmp =
        || (select(&ICMP_TYPES[..]), option::of(0..2u8)).prop_map(|(kind, code)| IcmpMatch { kind, code });
    let protocols = (
        option::weighted(0.2, select(&[1u8, 58, 112][..])),
        option::weighted(0.2, select(&[1u8, 6, 17, 58][..])),
        option::weighted(0.5, icmp()),
        option::weighted(0.3, icmp()),
    );
    let sides = (vec((which(), vec(peer(), 1..3)), 0..2), vec((which(), without_holes()), 0..3));
    let ports = (
        option::weighted(0.2, (protocol(), ranges())),
        option::weighted(0.2, (protocol(), ranges())),
        prop_oneof![3 => Just(Vec::new()), 1 => vec(port(), 1..4)],
    );
    let family = option::weighted(0.2, select(&Family::ALL[..]));
    (family, protocols, sides, ports).prop_map(
        |(
            family,
            (protocol, not_protocol, icmp, not_icmp),
            (any_of, none_of),
            (from, not_from, not_ports),
        )| {
            let typed = matches!(protocol, Some(1 | 58));
            Conditions {
                family,
                protocol,
                not_protocol,
                icmp: icmp.filter(|_| typed),
                not_icmp: not_icmp.filter(|_| typed),
                any_of,
                none_of,
                source_ports: from,
                not_source_ports: not_from,
                not_ports,
            }
        },
    )
}

fn without_holes() -> impl Strategy<Value = Peer> {
    peer().prop_map(|peer| match peer {
        Peer::Block(block) => Peer::Block(IpBlock { except: Vec::new(), ..block }),
        other => other,
    })
}

fn scope() -> impl Strategy<Value = NamespaceScope> {
    prop_oneof![
        select(&NAMESPACES[..]).prop_map(|n| NamespaceScope::Named(n.into())),
        selector().prop_map(NamespaceScope::Matching),
    ]
}

fn pod_selector() -> impl Strategy<Value = PodSelector> {
    (scope(), selector()).prop_map(|(namespaces, pods)| PodSelector { namespaces, pods })
}

/// A policy of any kind.
pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let who = || (0..4u8, prop::bool::weighted(0.1));
    let kubernetes = {
        let accept: &[Action] = &[Action::Accept];
        let subject = (select(&NAMESPACES[..]), selector());
        (who(), subject, rules(accept, false), rules(accept, false)).prop_map(
            |((number, staged), (namespace, pods), ingress, egress)| Policy {
                id: PolicyId::network_policy(namespace, &format!("policy-{number}")),
                tier: Tier::NetworkPolicy,
                order: Order::NETWORK_POLICY,
                generation: 1,
                staged,
                subject: vec![PodSelector { namespaces: NamespaceScope::Named(namespace.into()), pods }],
                ingress,
                egress,
                problems: Vec::new(),
            },
        )
    };
    let cluster = {
        let any: &[Action] = &[Action::Accept, Action::Deny, Action::Pass];
        let place = (select(&[Tier::Admin, Tier::Baseline][..]), 0..3u8);
        (who(), place, pod_selector(), rules(any, false), rules(any, false)).prop_map(
            |((number, staged), (tier, priority), subject, ingress, egress)| Policy {
                id: PolicyId {
                    kind: PolicyKind::ClusterNetworkPolicy,
                    namespace: None,
                    name: format!("policy-{number}").into(),
                },
                tier,
                order: Order::new(priority.into()),
                generation: 1,
                staged,
                subject: vec![subject],
                ingress,
                egress,
                problems: Vec::new(),
            },
        )
    };
    let calico = {
        let any: &[Action] = &[Action::Accept, Action::Deny, Action::Pass, Action::Log];
        let place =
            (option::of(select(&NAMESPACES[..])), select(&[-1.5, 10.0, 1000.0, 2e9, f64::INFINITY][..]));
        (who(), place, vec(pod_selector(), 1..3), rules(any, true), rules(any, true)).prop_map(
            |((number, staged), (namespace, order), subject, ingress, egress)| Policy {
                id: PolicyId {
                    kind: match namespace {
                        Some(_) => PolicyKind::CalicoNetworkPolicy,
                        None => PolicyKind::CalicoGlobalNetworkPolicy,
                    },
                    namespace: namespace.map(Into::into),
                    name: format!("policy-{number}").into(),
                },
                tier: Tier::NetworkPolicy,
                order: Order::new(order),
                generation: 1,
                staged,
                subject,
                ingress,
                egress,
                problems: Vec::new(),
            },
        )
    };
    prop_oneof![4 => kubernetes, 3 => cluster, 3 => calico]
}

/// A node, or a set of networks, in a namespace or in none.
pub(crate) fn entity() -> impl Strategy<Value = Entity> {
    let node = (0..2u8, labels(), prop::bool::ANY).prop_map(|(i, labels, both)| {
        let addresses = [format!("172.16.0.{}", i + 1), format!("fd10::{}", i + 1)];
        let addresses = addresses[..if both { 2 } else { 1 }].iter().map(|ip| ip.parse().unwrap()).collect();
        Entity { id: Entity::node(&format!("node-{i}")), labels, addresses, nets: [].into() }
    });
    let nets =
        vec(select(&["10.0.1.0/25", "10.0.0.0/8", "192.0.2.0/24", "fd00::/32", "2001:db8::7/128"][..]), 0..3);
    let set = (option::of(select(&NAMESPACES[..])), 0..2u8, labels(), nets).prop_map(
        |(namespace, i, labels, nets)| Entity {
            id: Entity::network_set(namespace, &format!("set-{i}")),
            labels,
            addresses: Addresses::new(),
            nets: nets.iter().map(|net| net.parse().unwrap()).collect(),
        },
    );
    prop_oneof![node, set]
}

/// The labels of a service account.
pub(crate) fn account() -> impl Strategy<Value = (PodId, Labels)> {
    (select(&NAMESPACES[..]), select(&ACCOUNTS[..]), labels())
        .prop_map(|(namespace, name, labels)| (PodId::new(namespace, name), labels))
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
        2 => entity().prop_map(Update::SetEntity),
        1 => entity().prop_map(|entity| Update::RemoveEntity(entity.id)),
        1 => account().prop_map(|(id, labels)| Update::SetServiceAccount(id, labels)),
        1 => i.prop_map(|i| Update::RemoveEndpoint(EndpointId {
            container_id: format!("p{i}"),
            ifname: "eth0".into(),
        })),
    ]
}
