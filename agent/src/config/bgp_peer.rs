//! BGPPeer: a neighbour of the nodes that its selector picks.

use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use manx_bgp::bfd::BfdConfig;
use manx_bgp::speaker::{AddPath, MaxPrefixes, MaxPrefixesAction, NextHopMode, RemoteAs};
use manx_bgp::types::{Asn, Family, HoldTime, Prefix};
use schemars::JsonSchema;
use serde::Deserialize;

use super::issue::{Issue, Issues};
use super::selector::{LabelSelector, LabelSelectorSpec};
use super::values::{self, Scalar};

/// The fields as written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BgpPeerSpec {
    /// The nodes that have this peer; every node where it is left out.
    node_selector: Option<LabelSelectorSpec>,
    /// Address of the peer. Exactly one of peerIP, interface, autoDiscover, peerRange and peerSelector names it.
    #[serde(rename = "peerIP")]
    peer_ip: Option<String>,
    /// Whoever connects from this prefix is a peer.
    peer_range: Option<String>,
    /// At most so many peers from peerRange at once; 100 where it is left out.
    max_peers: Option<i64>,
    /// The peers are the other nodes with these labels, and these nodes have those of nodeSelector as peers in turn: route
    /// reflectors, say. AS, port and who dials follow from the nodes.
    peer_selector: Option<LabelSelectorSpec>,
    /// The peer is whoever sends router advertisements on this interface.
    interface: Option<String>,
    /// DefaultGateway: the peer is the gateway of the node's default route.
    auto_discover: Option<String>,
    /// TCP port of the peer.
    port: Option<i64>,
    /// AS number of the peer. Exactly one of asNumber and remoteAS is there, with peerSelector neither.
    as_number: Option<Scalar>,
    /// Internal: the peer has our AS; External: any other.
    #[serde(rename = "remoteAS")]
    remote_as: Option<String>,
    /// Our AS towards this peer instead of the node's.
    #[serde(rename = "localASNumber")]
    local_as_number: Option<Scalar>,
    /// Hold time to offer: 0 (none), or whole seconds from 3s on.
    hold_time: Option<Scalar>,
    /// Keepalive interval; a third of the negotiated hold time where it is left out.
    keepalive_time: Option<Scalar>,
    /// Time between attempts to connect.
    connect_retry: Option<Scalar>,
    /// Never dial, only accept.
    passive: Option<bool>,
    /// Address to dial from: UseNodeIP, None (as the kernel chooses), or an address of the node.
    source_address: Option<String>,
    /// An external peer may be so many hops away.
    ebgp_multihop: Option<i64>,
    /// Refuse packets that have crossed a router (GTSM, RFC 5082).
    ttl_security: Option<bool>,
    /// Address families to negotiate: ipv4, ipv6.
    families: Option<Vec<String>>,
    /// Several paths of a prefix (Add-Path, RFC 7911).
    add_path: Option<AddPathSpec>,
    /// IPv4 routes with IPv6 next hops (RFC 8950).
    extended_next_hop: Option<bool>,
    /// Next hop of the routes that are passed on: Self, Keep or Auto.
    next_hop: Option<String>,
    /// Accept our own AS so many times in a received AS_PATH.
    allow_as_in: Option<i64>,
    /// Replace the peer's AS by ours in AS_PATHs sent to it.
    as_override: Option<bool>,
    /// Take private AS numbers out of AS_PATHs sent to it.
    #[serde(rename = "removePrivateAS")]
    remove_private_as: Option<bool>,
    /// Discard traffic to single addresses that the peer marks BLACKHOLE (RFC 7999).
    blackhole: Option<bool>,
    /// The peer is our reflection client (RFC 4456). With peerSelector: the nodes that it picks reflect what the others tell.
    route_reflector_client: Option<bool>,
    /// TCP MD5 key (RFC 2385); the session stays down while it cannot be found.
    password: Option<PasswordSpec>,
    /// Cap on received prefixes.
    max_prefixes: Option<MaxPrefixesSpec>,
    /// BFD (RFC 5880) with the peer; none where it is left out.
    bfd: Option<BfdSpec>,
    /// Names of BGPFilters for what the peer tells us, in order.
    import_filters: Option<Vec<String>>,
    /// Names of BGPFilters for what we tell the peer, in order.
    export_filters: Option<Vec<String>>,
    /// The node is not ready while this peer is down.
    required: Option<bool>,
    /// Administratively down.
    shutdown: Option<ShutdownSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AddPathSpec {
    /// Take several paths from the peer.
    receive: Option<bool>,
    /// Send several paths to the peer.
    send: Option<bool>,
    /// At most so many of a prefix; all that are eligible where it is left out.
    send_max: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PasswordSpec {
    /// A key of a Secret in the agent's namespace.
    secret_key_ref: SecretKeyRefSpec,
}

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SecretKeyRefSpec {
    /// Name of the Secret.
    name: String,
    /// Key in it.
    key: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MaxPrefixesSpec {
    /// So many prefixes.
    limit: Option<i64>,
    /// What happens beyond: Warn, Reject (keep the session, take no more) or Disable (end the session).
    action: Option<String>,
    /// With Disable: the session is tried again after this time; only after a reset where it is left out.
    restart_time: Option<Scalar>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct BfdSpec {
    /// Interval at which we send.
    min_tx: Option<Scalar>,
    /// Interval at which we can receive.
    min_rx: Option<Scalar>,
    /// So many missing packets end the session.
    multiplier: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct ShutdownSpec {
    /// Keep the session down.
    enabled: Option<bool>,
    /// What the peer's operator shall read (RFC 9003), at most 255 bytes.
    message: Option<String>,
}

/// The validated object. Where the speaker has a type for a setting, it is that type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpPeer {
    /// `metadata.name`.
    pub name: String,
    /// The nodes that peer with it; `None`: every node.
    pub node_selector: Option<LabelSelector>,
    /// How it is found.
    pub target: PeerTarget,
    /// Its TCP port.
    pub port: u16,
    /// Its AS; `None`: the peers are nodes, each with its own.
    pub remote_as: Option<RemoteAs>,
    /// Our AS towards it instead of the node's.
    pub local_as: Option<Asn>,
    /// Hold time to offer; `None`: no hold timer.
    pub hold_time: Option<HoldTime>,
    /// Keepalive interval; `None`: a third of the negotiated hold time.
    pub keepalive: Option<Duration>,
    /// Time between attempts to connect.
    pub connect_retry: Duration,
    /// Never dial, only accept.
    pub passive: bool,
    /// Which local address to dial from.
    pub source_address: SourceAddress,
    /// External peer up to so many hops away; `None`: directly connected.
    pub ebgp_multihop: Option<u8>,
    /// GTSM (RFC 5082).
    pub ttl_security: bool,
    /// Families to negotiate; never empty, no family twice.
    pub families: Vec<Family>,
    /// Add-Path (RFC 7911).
    pub add_path: AddPath,
    /// IPv4 routes with IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Next hop of routes that we pass on.
    pub next_hop: NextHopMode,
    /// Accept our own AS so many times in a received AS_PATH.
    pub allow_as_in: u8,
    /// Replace the peer's AS by ours in AS_PATHs sent to it.
    pub as_override: bool,
    /// Take private AS numbers out of AS_PATHs sent to it.
    pub remove_private_as: bool,
    /// Discard traffic to single addresses that it marks BLACKHOLE (RFC 7999).
    pub blackhole: bool,
    /// It is our reflection client (RFC 4456); of nodes: those that the selector picks have the others as clients.
    pub route_reflector_client: bool,
    /// Where the TCP MD5 key is; the session stays down while it cannot be found.
    pub password: Option<SecretKeyRef>,
    /// Cap on received prefixes.
    pub max_prefixes: MaxPrefixes,
    /// BFD, if wanted.
    pub bfd: Option<BfdConfig>,
    /// Names of BGPFilters for what it tells us, in order.
    pub import_filters: Vec<String>,
    /// Names of BGPFilters for what we tell it, in order.
    pub export_filters: Vec<String>,
    /// Readiness waits for it.
    pub required: bool,
    /// Administratively down, with a text for the peer (RFC 9003; may be empty).
    pub shutdown: Option<String>,
}

/// How a peer is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerTarget {
    /// `peerIP`: by its address.
    Address(IpAddr),
    /// `peerRange`: whoever connects from it, so many at once.
    Range {
        /// Where from.
        range: Prefix,
        /// So many at once; 1 to 10000.
        max_peers: usize,
    },
    /// `peerSelector`: the other nodes with these labels, and for those the nodes that the object is for.
    Nodes(LabelSelector),
    /// `interface`: whoever sends router advertisements there.
    Interface(String),
    /// `autoDiscover: DefaultGateway`: every gateway of the node's default routes, of the families that are carried.
    DefaultGateway,
}

/// Which local address to dial from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceAddress {
    /// The node's own address of the peer's family, if it has one.
    NodeIp,
    /// As the kernel chooses by its route to the peer.
    Kernel,
    /// This one.
    Address(IpAddr),
}

/// A key of a Secret in the agent's `--namespace`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    pub name: String,
    /// Key in it.
    pub key: String,
}

impl BgpPeer {
    /// Validates; the defaults fill what is not written.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn validate(name: &str, spec: &BgpPeerSpec) -> Result<Self, Vec<Issue>> {
        let mut issues = Issues::default();
        let issues = &mut issues;
        let name = issues.take("metadata.name", values::name(name)).unwrap_or_default();
        let node_selector = spec
            .node_selector
            .clone()
            .map(|selector| LabelSelector::validate(selector, "spec.nodeSelector", issues));
        let target = target(spec, issues);
        let of_nodes = spec.peer_selector.is_some();
        let remote_as = if of_nodes { None } else { remote_as(spec, issues) };
        if of_nodes {
            follows_from_nodes(spec, issues);
        }
        let local_as =
            spec.local_as_number.as_ref().and_then(|n| issues.take("spec.localASNumber", values::asn(&n.0)));
        let port = spec.port.map(|p| values::number_within(p, 1, 65535).map(|p| p as u16));
        let port = issues.or("spec.port", port, 179);

        let default_hold = HoldTime::from_wire(90).expect("90 s is a legal hold time");
        let hold_time = issues.or("spec.holdTime", spec.hold_time.as_ref().map(hold_time), default_hold);
        let keepalive = keepalive(spec.keepalive_time.as_ref(), hold_time, issues);
        let retry = spec
            .connect_retry
            .as_ref()
            .map(|t| values::duration_within(t, Duration::from_millis(100), Duration::from_secs(3600)));
        let connect_retry = issues.or("spec.connectRetry", retry, Duration::from_secs(5));

        let source = spec.source_address.as_deref().map(source_address);
        let source_address = issues.or("spec.sourceAddress", source, SourceAddress::NodeIp);
        if let (SourceAddress::Address(source), Some(PeerTarget::Address(peer))) = (source_address, &target)
            && source.is_ipv4() != peer.is_ipv4()
        {
            issues.add("spec.sourceAddress", format!("{source}: not of the same family as peerIP {peer}"));
        }
        let ebgp_multihop = spec
            .ebgp_multihop
            .and_then(|n| issues.take("spec.ebgpMultihop", values::number_within(n, 1, 255)))
            .map(|n| n as u8);
        let ttl_security = spec.ttl_security.unwrap_or(false);
        if ttl_security && ebgp_multihop.is_some_and(|hops| hops > 1) {
            issues.add(
                "spec.ttlSecurity",
                "true: cannot go with ebgpMultihop, which lets packets through that ttlSecurity stops; drop one",
            );
        }
        if let Some(PeerTarget::Interface(name)) = &target {
            if ebgp_multihop.is_some_and(|hops| hops > 1) {
                issues.add("spec.ebgpMultihop", format!("the peer is on {name}, one hop away; leave it out"));
            }
            if let SourceAddress::Address(source) = source_address {
                issues.add(
                    "spec.sourceAddress",
                    format!(
                        "{source}: a peer by interface is dialled from the link-local address; leave it out"
                    ),
                );
            }
        }
        let next_hop = spec.next_hop.as_deref().map(next_hop);
        let next_hop = issues.or("spec.nextHop", next_hop, NextHopMode::Self_);
        let allow_as_in = spec.allow_as_in.map(|n| values::number_within(n, 0, 10).map(|n| n as u8));
        let allow_as_in = issues.or("spec.allowAsIn", allow_as_in, 0);
        let route_reflector_client = spec.route_reflector_client.unwrap_or(false);
        if route_reflector_client && remote_as == Some(RemoteAs::External) {
            issues.add("spec.routeReflectorClient", "true: only internal peers are reflection clients");
        }
        let peer = BgpPeer {
            name,
            node_selector,
            // A missing target is an issue already, so that this stand-in never leaves this function.
            target: target.unwrap_or(PeerTarget::DefaultGateway),
            port,
            remote_as,
            local_as,
            hold_time,
            keepalive,
            connect_retry,
            passive: spec.passive.unwrap_or(false),
            source_address,
            ebgp_multihop,
            ttl_security,
            families: families(spec.families.as_deref(), issues),
            add_path: spec.add_path.as_ref().map(|a| add_path(a, issues)).unwrap_or_default(),
            extended_next_hop: spec.extended_next_hop.unwrap_or(false),
            next_hop,
            allow_as_in,
            as_override: spec.as_override.unwrap_or(false),
            remove_private_as: spec.remove_private_as.unwrap_or(false),
            blackhole: spec.blackhole.unwrap_or(false),
            route_reflector_client,
            password: spec.password.as_ref().map(|p| password(p, issues)),
            max_prefixes: max_prefixes(spec.max_prefixes.as_ref(), issues),
            bfd: spec.bfd.as_ref().map(|b| bfd(b, issues)),
            import_filters: filter_names("spec.importFilters", spec.import_filters.as_deref(), issues),
            export_filters: filter_names("spec.exportFilters", spec.export_filters.as_deref(), issues),
            required: spec.required.unwrap_or(true),
            shutdown: spec.shutdown.as_ref().and_then(|s| shutdown(s, issues)),
        };
        std::mem::take(issues).finish(peer)
    }
}

fn target(spec: &BgpPeerSpec, issues: &mut Issues) -> Option<PeerTarget> {
    const ONE_OF: &str =
        "exactly one of peerIP, interface, autoDiscover, peerRange and peerSelector names the peer";
    if spec.max_peers.is_some() && spec.peer_range.is_none() {
        issues.add("spec.maxPeers", "goes with peerRange only");
    }
    let BgpPeerSpec { peer_ip, interface: link, auto_discover, peer_range, peer_selector, .. } = spec;
    let there = [
        peer_ip.is_some(),
        link.is_some(),
        auto_discover.is_some(),
        peer_range.is_some(),
        peer_selector.is_some(),
    ];
    match there.iter().filter(|there| **there).count() {
        1 => {}
        count => {
            let which = if count == 0 { "none is there" } else { "more than one is there" };
            issues.add("spec", format!("{ONE_OF}: {which}"));
            return None;
        }
    }
    if let Some(ip) = peer_ip {
        return issues.take("spec.peerIP", peer_address(ip)).map(PeerTarget::Address);
    }
    if let Some(name) = link {
        return issues.take("spec.interface", interface(name)).map(PeerTarget::Interface);
    }
    if let Some(selector) = peer_selector {
        let selector = LabelSelector::validate(selector.clone(), "spec.peerSelector", issues);
        return Some(PeerTarget::Nodes(selector));
    }
    if let Some(range) = peer_range {
        let most = spec.max_peers.map(|n| values::number_within(n, 1, 10_000).map(|n| n as usize));
        let max_peers = issues.or("spec.maxPeers", most, 100);
        let range = issues.take("spec.peerRange", values::prefix(range))?;
        return Some(PeerTarget::Range { range, max_peers });
    }
    let how = auto_discover.as_deref().unwrap_or_default();
    if how != "DefaultGateway" {
        issues.add("spec.autoDiscover", format!("{how}: must be DefaultGateway"));
        return None;
    }
    Some(PeerTarget::DefaultGateway)
}

/// What both ends of a session between nodes know of each other is not to be said again.
fn follows_from_nodes(spec: &BgpPeerSpec, issues: &mut Issues) {
    for (field, there) in [
        ("spec.asNumber", spec.as_number.is_some()),
        ("spec.remoteAS", spec.remote_as.is_some()),
        ("spec.localASNumber", spec.local_as_number.is_some()),
    ] {
        if there {
            issues.add(field, "cannot go with peerSelector: the AS of each node is known; leave it out");
        }
    }
    if spec.port.is_some_and(|port| port != 179) {
        issues.add("spec.port", "cannot go with peerSelector: nodes listen on BGPConfiguration's listenPort");
    }
    if spec.passive == Some(true) {
        issues.add("spec.passive", "true: cannot go with peerSelector: of two nodes one dials; leave it out");
    }
    if spec.source_address.as_deref().is_some_and(|source| !matches!(source, "UseNodeIP" | "None")) {
        issues.add("spec.sourceAddress", "an address cannot go with peerSelector, as each node has its own");
    }
}

fn peer_address(text: &str) -> Result<IpAddr, String> {
    let ip = values::address(text)?;
    let usable = match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            return Err(format!("{ip}: a link-local address says nothing without its link; use interface"));
        }
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && ip.to_ipv4_mapped().is_none(),
    };
    if usable { Ok(ip) } else { Err(format!("{ip}: no peer can have this address")) }
}

fn interface(text: &str) -> Result<String, String> {
    // What the kernel accepts (dev_valid_name): 1 to 15 bytes, no slash, colon or white space, not . or ..
    let legal = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    if (1..=15).contains(&text.len()) && text.chars().all(legal) && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    Err(format!("{}: must be the name of an interface, at most 15 letters", text.escape_debug()))
}

fn remote_as(spec: &BgpPeerSpec, issues: &mut Issues) -> Option<RemoteAs> {
    match (&spec.as_number, spec.remote_as.as_deref()) {
        (Some(n), None) => issues.take("spec.asNumber", values::asn(&n.0)).map(RemoteAs::Asn),
        (None, Some("Internal")) => Some(RemoteAs::Internal),
        (None, Some("External")) => Some(RemoteAs::External),
        (None, Some(other)) => {
            issues.add(
                "spec.remoteAS",
                format!("{other}: must be Internal or External; a number goes into asNumber"),
            );
            None
        }
        (None, None) => {
            issues.add("spec", "exactly one of asNumber and remoteAS names the peer's AS: none is there");
            None
        }
        (Some(_), Some(_)) => {
            issues.add("spec", "exactly one of asNumber and remoteAS names the peer's AS: both are there");
            None
        }
    }
}

fn add_path(spec: &AddPathSpec, issues: &mut Issues) -> AddPath {
    let path = "spec.addPath.sendMax";
    let send = spec.send.unwrap_or(false);
    let send_max = spec.send_max.and_then(|n| issues.take(path, values::number_within(n, 1, 255)));
    if send_max.is_some() && !send {
        issues.add(path, "bounds what send sends, which is not on; set send: true or leave it out");
    }
    let send_max = send_max.and_then(|n| NonZeroU8::new(n as u8));
    AddPath { receive: spec.receive.unwrap_or(false), send, send_max }
}

fn hold_time(text: &Scalar) -> Result<Option<HoldTime>, String> {
    let wrong = || format!("{text}: must be 0 (no hold timer) or whole seconds from 3s to 65535s");
    let time = values::duration(&text.0)?;
    let seconds = u16::try_from(time.as_secs()).map_err(|_| wrong())?;
    if time.subsec_nanos() != 0 {
        return Err(wrong());
    }
    HoldTime::from_wire(seconds).map_err(|_| wrong())
}

/// Keepalives that come more rarely than the hold time would tear the session down again and again.
fn keepalive(text: Option<&Scalar>, hold: Option<HoldTime>, issues: &mut Issues) -> Option<Duration> {
    let text = text?;
    let path = "spec.keepaliveTime";
    let time = issues.take(path, values::duration(&text.0))?;
    match hold {
        None if time.is_zero() => None,
        None => {
            issues.add(path, format!("{text}: with holdTime 0 no keepalives are sent; leave it out"));
            None
        }
        Some(_) if time < Duration::from_secs(1) => {
            issues.add(path, format!("{text}: must be at least 1s"));
            None
        }
        Some(hold) if time >= hold.duration() => {
            issues.add(
                path,
                format!("{text}: must be less than holdTime {}s, a third of it as a rule", hold.seconds()),
            );
            None
        }
        Some(_) => Some(time),
    }
}

fn source_address(text: &str) -> Result<SourceAddress, String> {
    match text {
        "UseNodeIP" => Ok(SourceAddress::NodeIp),
        "None" => Ok(SourceAddress::Kernel),
        other => other
            .parse()
            .map(SourceAddress::Address)
            .map_err(|_| format!("{other}: must be UseNodeIP, None or an address of the node")),
    }
}

fn next_hop(text: &str) -> Result<NextHopMode, String> {
    match text {
        "Self" => Ok(NextHopMode::Self_),
        "Keep" => Ok(NextHopMode::Keep),
        "Auto" => Ok(NextHopMode::Auto),
        other => Err(format!("{other}: must be Self, Keep or Auto")),
    }
}

fn families(list: Option<&[String]>, issues: &mut Issues) -> Vec<Family> {
    let Some(list) = list else { return Family::ALL.to_vec() };
    let mut families = issues.each("spec.families", list, |f| match f.as_str() {
        "ipv4" => Ok(Family::Ipv4Unicast),
        "ipv6" => Ok(Family::Ipv6Unicast),
        other => Err(format!("{other}: must be ipv4 or ipv6")),
    });
    families.sort_unstable();
    families.dedup();
    if list.is_empty() {
        issues.add("spec.families", "[]: names no family; leave it out for both");
    }
    families
}

fn password(spec: &PasswordSpec, issues: &mut Issues) -> SecretKeyRef {
    let path = "spec.password.secretKeyRef";
    let name = issues.take(format!("{path}.name"), values::name(&spec.secret_key_ref.name));
    let key = issues.take(format!("{path}.key"), values::name(&spec.secret_key_ref.key));
    SecretKeyRef { name: name.unwrap_or_default(), key: key.unwrap_or_default() }
}

fn max_prefixes(spec: Option<&MaxPrefixesSpec>, issues: &mut Issues) -> MaxPrefixes {
    let limit = spec
        .and_then(|s| s.limit)
        .map(|n| values::number_within(n, 1, i64::from(u32::MAX)).map(|n| n as u32));
    let path = "spec.maxPrefixes.restartTime";
    let restart = spec
        .and_then(|s| s.restart_time.as_ref())
        .map(|time| values::duration_within(time, Duration::from_secs(1), Duration::from_secs(86_400)))
        .and_then(|time| issues.take(path, time));
    let action = spec.and_then(|s| s.action.as_deref()).map(|a| match a {
        "Warn" => Ok(MaxPrefixesAction::Warn),
        "Reject" => Ok(MaxPrefixesAction::Reject),
        "Disable" => Ok(MaxPrefixesAction::Disable { restart }),
        other => Err(format!("{other}: must be Warn, Reject or Disable")),
    });
    if restart.is_some() && !matches!(action, Some(Ok(MaxPrefixesAction::Disable { .. }))) {
        issues.add(path, "nothing is stopped that could be tried again; set action: Disable or leave it out");
    }
    MaxPrefixes {
        limit: issues.or("spec.maxPrefixes.limit", limit, 10_000),
        action: issues.or("spec.maxPrefixes.action", action, MaxPrefixesAction::Warn),
    }
}

fn bfd(spec: &BfdSpec, issues: &mut Issues) -> BfdConfig {
    let default = BfdConfig::default();
    let mut interval = |path: &str, text: Option<&Scalar>, default: Duration| {
        let time =
            text.map(|t| values::duration_within(t, Duration::from_millis(10), Duration::from_secs(60)));
        issues.or(path, time, default)
    };
    let min_tx = interval("spec.bfd.minTx", spec.min_tx.as_ref(), default.min_tx);
    let min_rx = interval("spec.bfd.minRx", spec.min_rx.as_ref(), default.min_rx);
    let multiplier = spec.multiplier.map(|n| values::number_within(n, 2, 255).map(|n| n as u8));
    BfdConfig { min_tx, min_rx, multiplier: issues.or("spec.bfd.multiplier", multiplier, default.multiplier) }
}

fn filter_names(path: &str, list: Option<&[String]>, issues: &mut Issues) -> Vec<String> {
    issues.each(path, list.unwrap_or_default(), |n| values::name(n))
}

fn shutdown(spec: &ShutdownSpec, issues: &mut Issues) -> Option<String> {
    let message = spec.message.clone().unwrap_or_default();
    // RFC 9003: the text has one octet for its length.
    if message.len() > 255 {
        issues.add("spec.shutdown.message", format!("{} bytes long: at most 255 can be sent", message.len()));
    }
    spec.enabled.unwrap_or(false).then_some(message)
}

#[cfg(test)]
mod tests;
