//! Flows between generated pods, this node and strangers, and what this node sees of them.

use std::net::IpAddr;

use manx_policy::compile::{Layout, Marks};
use manx_policy::ir::ConnState;
use manx_policy::model::{Endpoint, Family, Payload, Protocol, Update};
use manx_policy::sim::Packet;
use manx_policy::state::{Owner, State, claimed_pod};
use manx_policy::verdict::{End, Flow, Place};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::cluster::{
    ICMP_TYPES, PODS, PORTS, SOURCES, account, endpoint, entity, namespace, pod, pod_addresses, policy,
    protocol,
};

const NODE: &str = "node-1";
pub(crate) const NODE_ADDRESSES: [&str; 2] = ["172.16.0.1", "fd10::1"];

pub(crate) fn layout() -> Layout {
    Layout {
        prefix: "manx".into(),
        marks: Marks::new(0x0f00_0000).expect("four bits"),
        guard: true,
        log: true,
    }
}

/// A whole cluster as the updates that make it: namespaces, pods, attachments for about half of them, policies.
pub(crate) fn cluster() -> impl Strategy<Value = Vec<Update>> {
    let namespaces = vec(namespace(), 1..4);
    let policies = vec(policy(), 1..7);
    let others = (vec(entity(), 0..3), vec(account(), 0..2));
    let pods = vec((0..PODS).prop_flat_map(|i| (pod(i), option::weighted(0.7, endpoint(i)))), 2..PODS);
    (namespaces, pods, policies, others).prop_map(|(namespaces, pods, policies, (entities, accounts))| {
        let mut updates: Vec<Update> = namespaces.into_iter().map(Update::SetNamespace).collect();
        for (pod, endpoint) in pods {
            if let Some(mut endpoint) = endpoint {
                // Mostly the attachment of this very pod.
                if let Some(claim) = &mut endpoint.pod {
                    claim.namespace = Some(pod.id.namespace.to_string());
                }
                updates.push(Update::SetEndpoint(endpoint));
            }
            updates.push(Update::SetPod(pod));
        }
        updates.extend(entities.into_iter().map(Update::SetEntity));
        updates.extend(accounts.into_iter().map(|(id, labels)| Update::SetServiceAccount(id, labels)));
        updates.extend(policies.into_iter().map(Update::SetPolicy));
        updates
    })
}

/// One side of a flow: a pod's address, this node's or a stranger's.
pub(crate) fn address(v6: bool) -> impl Strategy<Value = IpAddr> {
    let family = usize::from(v6);
    let strangers: &[&str] =
        if v6 { &["2001:db8::7", "fd00:0:0:5::1"] } else { &["192.0.2.7", "10.0.1.200"] };
    prop_oneof![
        10 => (0..PODS).prop_map(move |i| pod_addresses(i)[family]),
        2 => select(strangers).prop_map(|text| text.parse().unwrap()),
        1 => Just(NODE_ADDRESSES[family].parse().unwrap()),
    ]
}

/// Source, destination and what the first packet carries.
pub(crate) type Wire = (IpAddr, IpAddr, Payload);

fn payload(v6: bool) -> impl Strategy<Value = Payload> {
    let family = if v6 { Family::Ipv6 } else { Family::Ipv4 };
    let ports =
        (protocol(), select(&SOURCES[..]), select(&PORTS[..])).prop_map(|(protocol, source, port)| {
            Payload::Ports { protocol, source, port, syn: protocol == Protocol::Tcp }
        });
    let icmp = (select(&ICMP_TYPES[..]), 0..3u8);
    prop_oneof![
        8 => ports,
        1 => icmp.prop_map(move |(kind, code)| Payload::Icmp { family, kind, code }),
        1 => select(&[4u8, 47, 112][..]).prop_map(Payload::Other),
    ]
}

pub(crate) fn wire_flow() -> impl Strategy<Value = Wire> {
    any::<bool>().prop_flat_map(|v6| (address(v6), address(v6), payload(v6)))
}

/// What the node sees of a flow: the packet that opens it and the oracle's view of it. `None`: no endpoint of this node
/// takes part.
pub(crate) fn seen_here(state: &State, (source, destination, payload): Wire) -> Option<(Packet, Flow, bool)> {
    let node = |ip: IpAddr| NODE_ADDRESSES.iter().any(|own| *own == ip.to_string());
    let owner = |ip: IpAddr| state.endpoints().find(|endpoint| endpoint.addresses.contains(&ip));
    let place = |ip: IpAddr| match owner(ip) {
        Some(endpoint) => Place::Pod(claimed_pod(endpoint), Some(NODE.into())),
        None if node(ip) => Place::Node(NODE.into()),
        None => Place::Elsewhere,
    };
    let (from, to) = (owner(source), owner(destination));
    if from.is_none() && to.is_none() {
        return None;
    }
    // Nothing on this node stops what the node itself sends, also to a pod that is not known; that one cannot answer.
    let unknown = !node(source)
        && [from, to].into_iter().flatten().any(|endpoint| matches!(state.owner(endpoint), Owner::Unknown));
    let interface = |endpoint: Option<&Endpoint>| endpoint.map_or("eth0".into(), |e| e.interface.clone());
    let packet = Packet {
        input: (!node(source)).then(|| interface(from)),
        output: (!node(destination)).then(|| interface(to)),
        state: ConnState::New,
        payload,
        ..Packet::opening(source, destination, Protocol::Tcp, 1)
    };
    let flow = Flow {
        source: End { ip: source, place: place(source) },
        destination: End { ip: destination, place: place(destination) },
        payload,
    };
    Some((packet, flow, unknown))
}
