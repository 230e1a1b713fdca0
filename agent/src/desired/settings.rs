//! What is in force and where it comes from, setting by setting.
//!
//! Pure. A setting that is as it would be without any object is called default: of the Kubernetes API nobody can tell whether
//! a person wrote it or the server filled it in.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use manx_bgp::speaker::{MaxPrefixes, MaxPrefixesAction, PeerConfig, PeerTarget, RemoteAs};
use serde_json::{Value, json};

use super::precedence::{Heard, Voice};
use super::{PeerIntent, cluster_id_of, router_id_of};
use crate::config::{BgpConfiguration, GracefulRestart, Mesh, NetworkConfiguration};
use crate::source::Node;
use crate::view::Setting;

/// Where a setting comes from that no object has changed.
const DEFAULT: &str = "default";

/// Of the speaker.
pub(super) fn of_bgp(heard: &Heard<'_>, node: &Node) -> Vec<Setting> {
    let default = BgpConfiguration::default();
    let object = heard.configured_by.map(|voice| voice.object("BGPConfiguration", "default"));
    let from = |same: bool| match &object {
        Some(object) if !same => object.clone(),
        _ => DEFAULT.to_owned(),
    };
    let (bgp, default) = (heard.bgp, &default);
    let (asn, asn_from) = heard.asn(node);
    let annotation = |key: &str| format!("Node {}, annotation {key}", node.name);
    let router_id = match node.annotations.router_id {
        Some(_) => annotation("manx.dev/router-id"),
        None if node.internal_ips.iter().any(std::net::IpAddr::is_ipv4) => {
            format!("Node {}, InternalIP", node.name)
        }
        None => "a hash of the node's name".to_owned(),
    };
    let cluster_id = match (node.annotations.cluster_id, cluster_id_of(node)) {
        (Some(_), _) => annotation("manx.dev/route-reflector-cluster-id"),
        (None, Some(_)) => annotation("kube-router.io/rr.server"),
        (None, None) => DEFAULT.to_owned(),
    };
    let restart = |read: fn(&GracefulRestart) -> Value| {
        let of = |bgp: &BgpConfiguration| bgp.graceful_restart.as_ref().map(read);
        (json!(of(bgp)), from(of(bgp) == of(default)))
    };
    let services = (&bgp.service_advertisement, &default.service_advertisement);
    let rows = [
        ("asNumber", json!(asn.0), asn_from.unwrap_or_else(|| DEFAULT.to_owned())),
        ("routerID", json!(router_id_of(node).to_string()), router_id),
        ("clusterID", json!(cluster_id_of(node).map(|id| id.to_string())), cluster_id),
        ("nodeToNodeMesh", json!(mesh(bgp.mesh)), from(bgp.mesh == default.mesh)),
        ("listenPort", json!(bgp.listen_port), from(bgp.listen_port == default.listen_port)),
        (
            "multipath.maxPaths",
            json!(bgp.multipath.max_paths),
            from(bgp.multipath.max_paths == default.multipath.max_paths),
        ),
        (
            "multipath.asPathRelax",
            json!(bgp.multipath.as_path_relax),
            from(bgp.multipath.as_path_relax == default.multipath.as_path_relax),
        ),
        (
            "gracefulRestart.enabled",
            json!(bgp.graceful_restart.is_some()),
            from(bgp.graceful_restart.is_some() == default.graceful_restart.is_some()),
        ),
        with("gracefulRestart.restartTime", restart(|gr| time(gr.restart_time))),
        with(
            "gracefulRestart.longLivedTime",
            restart(|gr| time(gr.long_lived_time.unwrap_or(Duration::ZERO))),
        ),
        ("drain.delay", time(bgp.drain.delay), from(bgp.drain == default.drain)),
        (
            "serviceAdvertisement.clusterIPs",
            list(&services.0.cluster),
            from(services.0.cluster == services.1.cluster),
        ),
        (
            "serviceAdvertisement.externalIPs",
            list(&services.0.external),
            from(services.0.external == services.1.external),
        ),
        (
            "serviceAdvertisement.loadBalancerIPs",
            list(&services.0.load_balancer),
            from(services.0.load_balancer == services.1.load_balancer),
        ),
    ];
    rows.into_iter().map(setting).collect()
}

/// Of the network; an MTU that is left open is that of the uplinks.
pub(super) fn of_network(
    network: &NetworkConfiguration,
    there: bool,
    uplink_mtu: Option<u32>,
) -> Vec<Setting> {
    let default = NetworkConfiguration::default();
    let from = |same: bool| match there && !same {
        true => "NetworkConfiguration default".to_owned(),
        false => DEFAULT.to_owned(),
    };
    let mtu = match (network.mtu, uplink_mtu) {
        (Some(mtu), _) => (json!(mtu), from(false)),
        (None, Some(mtu)) => (json!(mtu), "the node's uplinks".to_owned()),
        (None, None) => (json!(super::DEFAULT_MTU), DEFAULT.to_owned()),
    };
    let exclude = network.egress_nat.as_ref().map(|nat| nat.exclude.clone()).unwrap_or_default();
    let pool = |pool: &crate::config::AddressPool| json!({"name": pool.name, "cidrs": list(&pool.cidrs)});
    let rows = [
        ("clusterCIDRs", list(&network.cluster_cidrs), from(network.cluster_cidrs == default.cluster_cidrs)),
        (
            "egressNat.mode",
            json!(if network.egress_nat.is_some() { "Masquerade" } else { "Off" }),
            from(network.egress_nat.is_none()),
        ),
        ("egressNat.excludeCIDRs", list(&exclude), from(exclude.is_empty())),
        (
            "addressPools",
            network.address_pools.iter().map(pool).collect(),
            from(network.address_pools.is_empty()),
        ),
        with("mtu", mtu),
    ];
    rows.into_iter().map(setting).collect()
}

/// Where each filter that there is comes from.
pub(super) fn filters(heard: &Heard<'_>) -> BTreeMap<String, String> {
    let from = |name: &str, voice: Voice| match voice {
        // Theirs has a name without the direction that is in ours.
        Voice::Calico => {
            let theirs = name.rsplit_once('-').map_or(name, |(theirs, _)| theirs);
            voice.object("BGPFilter", theirs)
        }
        Voice::Ours | Voice::KubeRouter => voice.object("BGPFilter", name),
    };
    heard.filters.iter().map(|(name, (_, voice))| ((*name).to_owned(), from(name, *voice))).collect()
}

/// Of one peer, as the speaker has it. A key is named by its Secret, never by its value.
pub fn of_peer(peer: &PeerIntent) -> Vec<Setting> {
    let config = &peer.config;
    let address = std::net::Ipv4Addr::UNSPECIFIED.into();
    let plain = PeerConfig::new("", address, RemoteAs::External);
    let origin = &peer.info.origin;
    let from = |same: bool| if same { DEFAULT.to_owned() } else { origin.clone() };
    let (target, value) = match &config.target {
        PeerTarget::Address(address) => ("peerIP", json!(address)),
        PeerTarget::Interface(name) => ("interface", json!(name)),
    };
    let remote_as = match config.remote_as {
        RemoteAs::Asn(asn) => ("asNumber", json!(asn.0)),
        RemoteAs::Internal => ("remoteAS", json!("Internal")),
        RemoteAs::External => ("remoteAS", json!("External")),
    };
    macro_rules! same {
        ($($field:ident),*) => { from(true $(&& config.$field == plain.$field)*) };
    }
    let source = match config.source {
        Some(source) => (json!(source), "the node's own address, or the object's".to_owned()),
        None => (Value::Null, "the kernel's choice".to_owned()),
    };
    let key = match &peer.info.secret {
        crate::api::bgp::SecretState::Unused => (Value::Null, DEFAULT.to_owned()),
        crate::api::bgp::SecretState::Found(place) => (json!(place), origin.clone()),
        crate::api::bgp::SecretState::Missing(why) => (json!(why), origin.clone()),
    };
    let names = |filters: &[std::sync::Arc<manx_bgp::filter::Filter>]| {
        json!(filters.iter().map(|f| f.name.clone()).collect::<Vec<_>>())
    };
    let bfd = config.bfd.map(
        |bfd| json!({"minTx": time(bfd.min_tx), "minRx": time(bfd.min_rx), "multiplier": bfd.multiplier}),
    );
    let limit = config.max_prefixes.map(limit_shown);
    let rows = [
        (target, value, origin.clone()),
        (remote_as.0, remote_as.1, origin.clone()),
        ("localASNumber", json!(config.local_as.map(|asn| asn.0)), same!(local_as)),
        ("port", json!(config.port), same!(port)),
        ("holdTime", time(config.hold_time.map_or(Duration::ZERO, |hold| hold.duration())), same!(hold_time)),
        ("keepaliveTime", json!(config.keepalive.map(time)), same!(keepalive)),
        ("connectRetry", time(config.connect_retry), same!(connect_retry)),
        ("passive", json!(config.passive), same!(passive)),
        with("sourceAddress", source),
        ("ebgpMultihop", json!(config.ebgp_multihop), same!(ebgp_multihop)),
        ("ttlSecurity", json!(config.ttl_security), same!(ttl_security)),
        ("families", list(&config.families), same!(families)),
        (
            "addPath",
            json!({"receive": config.add_path.receive, "send": config.add_path.send,
                   "sendMax": config.add_path.send_max}),
            same!(add_path),
        ),
        ("extendedNextHop", json!(config.offers_extended_next_hop()), same!(extended_next_hop)),
        ("nextHop", json!(format!("{:?}", config.next_hop).trim_end_matches('_')), same!(next_hop)),
        ("allowAsIn", json!(config.allow_as_in), same!(allow_as_in)),
        ("asOverride", json!(config.as_override), same!(as_override)),
        ("removePrivateAS", json!(config.remove_private_as), same!(remove_private_as)),
        ("blackhole", json!(config.blackhole), same!(blackhole)),
        ("routeReflectorClient", json!(config.route_reflector_client), same!(route_reflector_client)),
        with("password", key),
        ("bfd", json!(bfd), same!(bfd)),
        ("maxPrefixes", json!(limit), from(limit_is_default(config))),
        ("importFilters", names(&config.import), same!(import)),
        ("exportFilters", names(&config.export), same!(export)),
        ("required", json!(peer.info.required), from(peer.info.required)),
        ("shutdown", json!(config.shutdown), same!(shutdown)),
        ("gracefulRestart", json!(config.graceful_restart), DEFAULT.to_owned()),
    ];
    rows.into_iter().map(setting).collect()
}

/// As a BGPPeer spells it.
fn limit_shown(max: MaxPrefixes) -> Value {
    let (action, restart) = match max.action {
        MaxPrefixesAction::Warn => ("Warn", None),
        MaxPrefixesAction::Reject => ("Reject", None),
        MaxPrefixesAction::Disable { restart } => ("Disable", restart),
    };
    let mut shown = json!({"limit": max.limit, "action": action});
    if let Some(restart) = restart {
        shown["restartTime"] = time(restart);
    }
    shown
}

/// That of a BGPPeer that says nothing about it, or none as for the peers of the mesh.
fn limit_is_default(config: &PeerConfig) -> bool {
    config.max_prefixes.is_none_or(|max| max.limit == 10_000 && max.action == MaxPrefixesAction::Warn)
}

fn mesh(mesh: Mesh) -> &'static str {
    match mesh {
        Mesh::Auto => "Auto",
        Mesh::On => "On",
        Mesh::Off => "Off",
    }
}

fn setting((field, value, from): (&str, Value, String)) -> Setting {
    Setting { field: field.to_owned(), value, from }
}

fn with(field: &'static str, (value, from): (Value, String)) -> (&'static str, Value, String) {
    (field, value, from)
}

/// As it is written in an object.
fn time(time: Duration) -> Value {
    match time.subsec_millis() {
        0 => json!(format!("{}s", time.as_secs())),
        _ => json!(format!("{}ms", time.as_millis())),
    }
}

fn list<T: Display>(items: &[T]) -> Value {
    json!(items.iter().map(ToString::to_string).collect::<Vec<_>>())
}
