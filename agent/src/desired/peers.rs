//! Which peers this node has: the BGPPeer objects that select it, nodes by their labels, or the mesh of all nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use manx_bgp::filter::Filter;
use manx_bgp::speaker::{PeerConfig, PeerRange, RemoteAs, Secret};
use manx_bgp::types::Family;

use super::precedence::{Heard, HeardPeer};
use super::{Desired, Gateway, PeerIntent, RangeIntent, router_id_of};
use crate::api::bgp::{PeerInfo, SecretState};
use crate::config::{BgpPeer, Mesh, PeerTarget, SecretKeyRef, SourceAddress};
use crate::source::Node;
use crate::view::PeerSettings;

/// The peers of `node`.
pub(super) fn peers(
    desired: &Desired,
    heard: &Heard<'_>,
    node: &Node,
    local: &[IpNetwork],
) -> BTreeMap<String, PeerIntent> {
    let mut peers = BTreeMap::new();
    for said in heard.of(node) {
        let peer = said.peer;
        if let PeerTarget::Nodes(_) = peer.target {
            let others = desired.nodes.values().filter(|other| other.name != node.name);
            peers.extend(others.filter_map(|other| by_label(desired, heard, said, node, other, local)));
            continue;
        }
        let at = |name: String, address: IpAddr| PeerConfig {
            source: source(peer, address, node, local),
            ..PeerConfig::new(name, address, remote_as(peer))
        };
        // Its link has a link-local address, and that is the one to dial from.
        let on = |name: String, interface: &str| {
            PeerConfig::on_interface(name, interface.to_owned(), remote_as(peer))
        };
        let configs = match &peer.target {
            PeerTarget::Address(address) => vec![at(peer.name.clone(), *address)],
            PeerTarget::Interface(interface) => vec![on(peer.name.clone(), interface)],
            PeerTarget::DefaultGateway => {
                let gateways = gateways(desired, heard, node, peer);
                let config = |gateway: &Gateway| {
                    let name = format!("{}@{}", peer.name, gateway.suffix());
                    match gateway.is_link_local() {
                        true => on(name, &gateway.interface),
                        false => at(name, gateway.address),
                    }
                };
                gateways.map(config).collect()
            }
            PeerTarget::Range { .. } | PeerTarget::Nodes(_) => Vec::new(),
        };
        peers.extend(
            configs.into_iter().map(|config| (config.name.clone(), declared(desired, heard, said, config))),
        );
    }
    let mesh = match heard.bgp.mesh {
        Mesh::On => true,
        Mesh::Off => false,
        Mesh::Auto => !heard.any_of_ours(),
    };
    if mesh {
        let declared: BTreeSet<IpAddr> = peers.values().filter_map(|peer| address(&peer.config)).collect();
        let others = desired.nodes.values().filter(|n| n.name != node.name);
        let mesh = others.filter_map(|other| of_mesh(heard, node, other, local));
        // One session to each, and what an object says of it goes over the mesh.
        peers.extend(mesh.filter(|(_, peer)| address(&peer.config).is_none_or(|ip| !declared.contains(&ip))));
    }
    peers
}

fn address(config: &PeerConfig) -> Option<IpAddr> {
    match config.target {
        manx_bgp::speaker::PeerTarget::Address(address) => Some(address),
        manx_bgp::speaker::PeerTarget::Interface(_) => None,
    }
}

/// The AS of a peer that is no node.
fn remote_as(peer: &BgpPeer) -> RemoteAs {
    peer.remote_as.expect("a valid peer that is no node comes with its AS")
}

/// The ranges from which peers may connect to `node`, by name of their object.
pub(super) fn ranges(desired: &Desired, heard: &Heard<'_>, node: &Node) -> BTreeMap<String, RangeIntent> {
    let mut ranges = BTreeMap::new();
    for said in heard.of(node) {
        let peer = said.peer;
        if let PeerTarget::Range { range, max_peers } = peer.target {
            let anybody = PeerConfig::new(peer.name.clone(), range.addr(), remote_as(peer));
            let PeerIntent { config: template, mut info } = declared(desired, heard, said, anybody);
            (info.required, info.settings.passive) = (false, true);
            let config = PeerRange { name: peer.name.clone(), range, max_peers, template };
            ranges.insert(peer.name.clone(), RangeIntent { config, info });
        }
    }
    ranges
}

/// The BGPPeers of `node` that name the default gateway where there is none.
pub(super) fn without_gateway<'a>(
    desired: &Desired,
    heard: &'a Heard<'_>,
    node: &'a Node,
) -> Vec<&'a HeardPeer<'a>> {
    let selected = heard.of(node).filter(|said| said.peer.target == PeerTarget::DefaultGateway);
    selected.filter(|said| gateways(desired, heard, node, said.peer).next().is_none()).collect()
}

/// The gateways that a BGPPeer means: those of the families that it carries, but for whom another BGPPeer names.
fn gateways<'a>(
    desired: &'a Desired,
    heard: &'a Heard<'_>,
    node: &'a Node,
    peer: &'a BgpPeer,
) -> impl Iterator<Item = &'a Gateway> {
    let named = |gateway: &Gateway| {
        heard.of(node).any(|other| match &other.peer.target {
            PeerTarget::Address(address) => *address == gateway.address,
            PeerTarget::Interface(name) => gateway.is_link_local() && *name == gateway.interface,
            PeerTarget::Range { .. } | PeerTarget::Nodes(_) | PeerTarget::DefaultGateway => false,
        })
    };
    let carried = desired.gateways.iter().filter(|gateway| peer.families.contains(&gateway.family));
    carried.filter(move |gateway| !named(gateway))
}

/// A peer by its BGPPeer object.
fn declared(desired: &Desired, heard: &Heard<'_>, said: &HeardPeer<'_>, base: PeerConfig) -> PeerIntent {
    let peer = said.peer;
    let (password, secret) = match &peer.password {
        None => (None, SecretState::Unused),
        Some(key) => match secret(desired, key) {
            Ok(password) => (Some(password), SecretState::Found(place(desired, key))),
            Err(reason) => (None, SecretState::Missing(reason)),
        },
    };
    let mut missing = Vec::new();
    let import = filters(heard, &peer.import_filters, &mut missing);
    let export = filters(heard, &peer.export_filters, &mut missing);
    let mut blocked = missing.clone();
    if let SecretState::Missing(reason) = &secret {
        blocked.insert(0, reason.clone());
    }
    let config = PeerConfig {
        port: peer.port,
        local_as: peer.local_as,
        hold_time: peer.hold_time,
        keepalive: peer.keepalive,
        connect_retry: peer.connect_retry,
        passive: peer.passive,
        ebgp_multihop: peer.ebgp_multihop,
        ttl_security: peer.ttl_security,
        families: peer.families.clone(),
        add_path: peer.add_path,
        extended_next_hop: peer.extended_next_hop,
        next_hop: peer.next_hop,
        allow_as_in: peer.allow_as_in,
        as_override: peer.as_override,
        remove_private_as: peer.remove_private_as,
        blackhole: peer.blackhole,
        route_reflector_client: peer.route_reflector_client,
        password,
        bfd: peer.bfd,
        max_prefixes: Some(peer.max_prefixes),
        import,
        export,
        shutdown: peer.shutdown.clone(),
        graceful_restart: heard.bgp.graceful_restart.is_some(),
        admin_blocked: (!blocked.is_empty()).then(|| blocked.join("; ")),
        ..base
    };
    let info = PeerInfo {
        required: peer.required,
        settings: settings(&config),
        origin: said.object(),
        source: config.source,
        secret,
        missing,
    };
    PeerIntent { config, info }
}

/// The address to dial from, as the object wants it.
fn source(peer: &BgpPeer, address: IpAddr, node: &Node, local: &[IpNetwork]) -> Option<IpAddr> {
    match peer.source_address {
        SourceAddress::NodeIp => node_source(node, address, local),
        SourceAddress::Kernel => None,
        // Of gateways there may be some of either family.
        SourceAddress::Address(source) => Some(source).filter(|source| source.is_ipv4() == address.is_ipv4()),
    }
}

/// A session with another node by the labels of either; `None`: the object does not join these two.
fn by_label(
    desired: &Desired,
    heard: &Heard<'_>,
    said: &HeardPeer<'_>,
    node: &Node,
    other: &Node,
    local: &[IpNetwork],
) -> Option<(String, PeerIntent)> {
    let near = said.picks(node) && said.seeks(other);
    let far = said.seeks(node) && said.picks(other);
    if !near && !far {
        return None;
    }
    let peer = said.peer;
    let base = between_nodes(heard, node, other, local, format!("{}@{}", peer.name, other.name))?;
    let mut intent = declared(desired, heard, said, base.clone());
    let families = base.families.iter().copied().filter(|family| peer.families.contains(family));
    intent.config = PeerConfig {
        port: base.port,
        passive: base.passive,
        source: base.source.filter(|_| peer.source_address == SourceAddress::NodeIp),
        families: families.collect(),
        ebgp_multihop: peer.ebgp_multihop.or(base.ebgp_multihop).filter(|_| !peer.ttl_security),
        // Only internal peers are clients.
        route_reflector_client: peer.route_reflector_client
            && said.seeks(node)
            && !said.seeks(other)
            && heard.asn(node).0 == heard.asn(other).0,
        ..intent.config
    };
    if intent.config.families.is_empty() {
        return None;
    }
    intent.info.settings = settings(&intent.config);
    intent.info.source = intent.config.source;
    // Nodes come and go: who waits for them are those that look for them, not those that are looked for.
    intent.info.required &= near && !said.seeks(node);
    Some((intent.config.name.clone(), intent))
}

/// A session of the mesh.
fn of_mesh(
    heard: &Heard<'_>,
    node: &Node,
    other: &Node,
    local: &[IpNetwork],
) -> Option<(String, PeerIntent)> {
    let config = between_nodes(heard, node, other, local, other.name.clone())?;
    let info = PeerInfo {
        settings: settings(&config),
        origin: format!("Node {}", other.name),
        source: config.source,
        ..PeerInfo::default()
    };
    Some((other.name.clone(), PeerIntent { config, info }))
}

/// One session to another node, over the first family in which both have an address; it carries both families where
/// both nodes have both. The node with the lower BGP identifier waits for the other to dial, so that no two
/// connections ever cross. `None`: they have no family in common.
fn between_nodes(
    heard: &Heard<'_>,
    node: &Node,
    other: &Node,
    local: &[IpNetwork],
    name: String,
) -> Option<PeerConfig> {
    let family = |n: &Node, v4: bool| n.internal_ips.iter().copied().find(|ip| ip.is_ipv4() == v4);
    let both = |v4: bool| family(node, v4).is_some() && family(other, v4).is_some();
    let address = [true, false].into_iter().filter(|v4| both(*v4)).find_map(|v4| family(other, v4))?;
    let families = [(Family::Ipv4Unicast, true), (Family::Ipv6Unicast, false)];
    Some(PeerConfig {
        port: heard.bgp.listen_port,
        passive: router_id_of(node) < router_id_of(other),
        source: node_source(node, address, local),
        families: families.into_iter().filter(|(_, v4)| both(*v4)).map(|(f, _)| f).collect(),
        // Nodes of different ASes need not share a subnet.
        ebgp_multihop: (heard.asn(node).0 != heard.asn(other).0).then_some(64),
        graceful_restart: heard.bgp.graceful_restart.is_some(),
        ..PeerConfig::new(name, address, RemoteAs::Asn(heard.asn(other).0))
    })
}

/// The node's own address to dial from: the one on the peer's subnet where there is one, else the first of the family.
/// Only addresses that the kernel really has can be bound.
fn node_source(node: &Node, peer: IpAddr, local: &[IpNetwork]) -> Option<IpAddr> {
    let present = |ip: &IpAddr| local.iter().any(|net| net.ip() == *ip);
    let mut candidates = node
        .internal_ips
        .iter()
        .copied()
        .filter(|ip| ip.is_ipv4() == peer.is_ipv4() && present(ip))
        .peekable();
    let first = candidates.peek().copied();
    let on_subnet = |ip: &IpAddr| local.iter().any(|net| net.ip() == *ip && net.contains(peer));
    candidates.find(on_subnet).or(first)
}

fn place(desired: &Desired, key: &SecretKeyRef) -> String {
    format!("Secret {}/{}", desired.secrets_namespace, key.name)
}

fn secret(desired: &Desired, key: &SecretKeyRef) -> Result<Secret, String> {
    let place = || place(desired, key);
    let secret = desired
        .secrets
        .get(&key.name)
        .ok_or_else(|| format!("{} does not exist: the session stays down without its password", place()))?;
    let value = secret.data.get(&key.key).ok_or_else(|| format!("{} has no key {}", place(), key.key))?;
    match value.len() {
        1..=80 => Ok(Secret(value.clone())),
        n => Err(format!("{} key {}: {n} bytes, TCP MD5 takes 1 to 80", place(), key.key)),
    }
}

/// A filter that does not exist must not mean "no filter": the session waits for it.
fn filters(heard: &Heard<'_>, names: &[String], blocked: &mut Vec<String>) -> Vec<Arc<Filter>> {
    let mut found = Vec::new();
    for name in names {
        match heard.filters.get(name.as_str()) {
            Some((filter, _)) => found.push((*filter).clone()),
            None => blocked.push(format!("BGPFilter {name} does not exist")),
        }
    }
    found
}

fn settings(config: &PeerConfig) -> PeerSettings {
    PeerSettings {
        port: Some(config.port),
        passive: config.passive,
        password: config.password.is_some(),
        ebgp_multihop: config.ebgp_multihop,
        ttl_security: config.ttl_security,
        families: config.families.iter().map(ToString::to_string).collect(),
        import_filters: config.import.iter().map(|f| f.name.clone()).collect(),
        export_filters: config.export.iter().map(|f| f.name.clone()).collect(),
        max_prefixes: config.max_prefixes.map(|m| m.limit.into()),
        route_reflector_client: config.route_reflector_client,
    }
}
