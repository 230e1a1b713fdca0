//! Peers and routes as the admin API shows them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ApiVersion, EpochSeconds, kind};

kind!(
    /// `kind` of [`PeerList`].
    PeerListKind = PeerList
);
kind!(
    /// `kind` of [`Peer`].
    PeerKind = Peer
);
kind!(
    /// `kind` of [`RouteList`].
    RouteListKind = RouteList
);
kind!(
    /// `kind` of [`RouteLookup`].
    RouteLookupKind = RouteLookup
);
kind!(
    /// `kind` of [`RouteExplanation`].
    RouteExplanationKind = RouteExplanation
);

/// All peers of this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerList {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `PeerList`.
    pub kind: PeerListKind,
    /// In the order of their addresses.
    pub items: Vec<PeerRow>,
    /// Ranges from which further ones may connect, by name.
    pub ranges: Vec<PeerRange>,
}

/// A peer in one line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerRow {
    /// The node that holds this session.
    pub node: String,
    /// The peer's address; of a peer by interface `ADDRESS%INTERFACE`, and the interface alone until it
    /// is found.
    pub address: String,
    /// The interface that it is named by, if it is.
    pub interface: Option<String>,
    /// Name of the BGPPeer object, or of the node that the mesh peers with.
    pub name: String,
    /// The AS that we speak as towards it.
    pub local_as: Option<u32>,
    /// Its AS; null until an OPEN has named it, if the configuration only says External.
    pub remote_as: Option<u32>,
    /// One of the six RFC 4271 names (Idle, Connect, Active, OpenSent, OpenConfirm, Established), or Disabled.
    pub state: String,
    /// When it entered this state.
    pub since: Option<EpochSeconds>,
    /// How often it left Established since the agent started.
    pub flaps: u64,
    /// Why it is not Established; null when it is.
    pub reason: Option<String>,
    /// The same as one of a fixed set of names, such as `tcp-refused` or `hold-timer`; null when it is Established.
    pub cause: Option<String>,
    /// Whether readiness waits for it.
    pub required: bool,
    /// BFD with it; null where it is not configured.
    pub bfd: Option<Bfd>,
    /// Counts for each family that the session carries; empty until it is Established.
    pub families: Vec<FamilyCounts>,
}

impl PeerRow {
    /// Whether routes flow.
    pub fn established(&self) -> bool {
        self.state == "Established"
    }
}

/// BFD (RFC 5880) with a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bfd {
    /// `AdminDown`, `Down`, `Init` or `Up`.
    pub state: String,
    /// The peer's, as it last said; null: it was not heard.
    pub remote_state: Option<String>,
    /// When it entered this state.
    pub since: Option<EpochSeconds>,
    /// Silence for so long takes it down, in milliseconds; null: the peer has not said how fast it sends.
    pub detection_time_ms: Option<u64>,
    /// So often we send, in milliseconds.
    pub interval_ms: Option<u64>,
    /// The peer gives up after so many missing packets.
    pub multiplier: u8,
    /// How often it left Up since the session began.
    pub flaps: u64,
    /// Why it is down; null when it is up.
    pub reason: Option<String>,
}

/// Prefixes of one family with one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyCounts {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Prefixes in the Adj-RIB-In, before filters.
    pub received: Option<u64>,
    /// Of these, let in by the import filters.
    pub accepted: Option<u64>,
    /// Of these, refused by the import filters.
    pub filtered: Option<u64>,
    /// Prefixes that we have sent and not withdrawn.
    pub advertised: Option<u64>,
}

/// A peer with all that is known of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `Peer`.
    pub kind: PeerKind,
    /// What the list shows of it.
    #[serde(flatten)]
    pub row: PeerRow,
    /// Its BGP identifier, from its OPEN.
    pub router_id: Option<String>,
    /// Our end of the TCP connection, `ADDRESS:PORT`.
    pub local_address: Option<String>,
    /// Its end of the TCP connection.
    pub remote_address: Option<String>,
    /// `Internal` or `External`.
    pub peer_type: Option<String>,
    /// What the configuration says.
    pub settings: PeerSettings,
    /// Hold time in force, seconds; 0: no hold timer.
    pub hold_time: Option<u64>,
    /// Keepalive interval in force, seconds.
    pub keepalive_time: Option<u64>,
    /// Next attempt to connect, if one is due.
    pub next_connect: Option<EpochSeconds>,
    /// Capabilities offered and received.
    pub capabilities: Vec<Advertised>,
    /// Messages since the agent started.
    pub messages: MessageCounts,
    /// The last NOTIFICATION of either side.
    pub last_notification: Option<Notification>,
}

/// A peer's configuration, as far as it explains what is seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerSettings {
    /// TCP port that we dial.
    pub port: Option<u16>,
    /// We wait for it to dial.
    pub passive: bool,
    /// Sessions are signed with TCP MD5; the key itself is shown nowhere.
    pub password: bool,
    /// Hops allowed to an external peer.
    pub ebgp_multihop: Option<u8>,
    /// GTSM (RFC 5082).
    pub ttl_security: bool,
    /// Families configured.
    pub families: Vec<String>,
    /// Names of the import filters, in order.
    pub import_filters: Vec<String>,
    /// Names of the export filters, in order.
    pub export_filters: Vec<String>,
    /// Prefix limit for each family.
    pub max_prefixes: Option<u64>,
    /// The peer is a client of ours (RFC 4456).
    pub route_reflector_client: bool,
}

/// A capability and who offered it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Advertised {
    /// Name, such as `4-octet AS` or `multiprotocol ipv6`.
    pub name: String,
    /// We offered it.
    pub sent: bool,
    /// The peer offered it; null while there is no session.
    pub received: Option<bool>,
}

/// Messages by type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageCounts {
    /// All messages sent.
    pub sent: Option<u64>,
    /// All messages received.
    pub received: Option<u64>,
    /// UPDATE messages sent.
    pub updates_sent: Option<u64>,
    /// UPDATE messages received.
    pub updates_received: Option<u64>,
    /// Messages sent: `open`, `update`, `notification`, `keepalive`, `route-refresh`.
    pub sent_by_type: BTreeMap<String, u64>,
    /// Messages received.
    pub received_by_type: BTreeMap<String, u64>,
}

/// A NOTIFICATION message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// `sent` or `received`.
    pub direction: String,
    /// Error code.
    pub code: u8,
    /// Error subcode.
    pub subcode: u8,
    /// Their names, and the peer's own words where it gave any (RFC 9003).
    pub text: String,
    /// When.
    pub at: Option<EpochSeconds>,
}

/// A range from which peers may connect that nobody has named (`peerRange`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerRange {
    /// Name of its BGPPeer; its peers are `NAME@ADDRESS`.
    pub name: String,
    /// The addresses that are taken.
    pub range: String,
    /// Peers of it that are known now.
    pub peers: u64,
    /// So many there may be at once.
    pub max_peers: u64,
    /// Connections refused because there were so many already.
    pub refused: u64,
}

/// Routes of a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteList {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `RouteList`.
    pub kind: RouteListKind,
    /// In the order of family, address and length; the best path of a prefix first.
    pub items: Vec<Route>,
    /// Routes that the peer told and that were refused when there were too many to remember each; null in other tables.
    pub unlisted: Option<u64>,
}

/// A path to a prefix.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// The prefix.
    pub prefix: String,
    /// Address of the peer that told us, or `local`; in `routes out`, where the advertised path came from.
    pub from: String,
    /// Name of that peer; null for a route of our own.
    pub peer: Option<String>,
    /// The path identifier of Add-Path (RFC 7911), where the session has it.
    pub path_id: Option<u32>,
    /// The BGP next hop; null for a route of our own.
    pub next_hop: Option<String>,
    /// Selected by the decision process.
    pub best: bool,
    /// As good as the best one and used beside it.
    pub multipath: bool,
    /// Kept over a restart of its peer (RFC 4724).
    pub stale: bool,
    /// Refused. By an import filter or a loop check: only the reason is kept, so that the attributes are unknown; or because it
    /// covers an address of a peer or of this node.
    pub filtered: bool,
    /// Traffic is discarded, as its peer has asked for and may (RFC 7999).
    pub blackhole: bool,
    /// AS_PATH, nearest AS first.
    pub as_path: Vec<AsPathItem>,
    /// `igp`, `egp` or `incomplete`.
    pub origin: Option<String>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF; null where the session carries none.
    pub local_pref: Option<u32>,
    /// Standard communities, `65001:7` or the well-known name.
    pub communities: Vec<String>,
    /// Large communities, `65001:1:2`.
    pub large_communities: Vec<String>,
    /// Extended communities, `rt:65001:7`.
    pub extended_communities: Vec<String>,
    /// ORIGINATOR_ID, of a reflected route.
    pub originator_id: Option<String>,
    /// CLUSTER_LIST, the last reflector first.
    pub cluster_list: Vec<String>,
    /// The import rule that let it in; null where the filters have changed since.
    pub accepted_by: Option<String>,
    /// The step of the decision process at which it lost; null for the best and its equals.
    pub lost_at: Option<String>,
    /// Where it stands in the kernel; null where that is not asked, as in `routes out`.
    pub fib: Option<FibState>,
    /// Why it lost, was refused, or is not in the kernel; null when there is nothing to explain.
    pub reason: Option<String>,
}

/// An element of an AS_PATH: a number, or the numbers of an AS_SET.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AsPathItem {
    /// An AS of an AS_SEQUENCE.
    Asn(u32),
    /// An AS_SET.
    Set(Vec<u32>),
}

/// A path and the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FibState {
    /// In the kernel.
    Installed,
    /// Selected, but not in the kernel.
    Missing,
    /// This node's own: nothing to install.
    Local,
    /// Not selected, so not to be installed.
    Unselected,
}

/// The kernel's answer for an address, and the route behind it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteLookup {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `RouteLookup`.
    pub kind: RouteLookupKind,
    /// What was asked.
    pub ip: String,
    /// The kernel route that matches; null: none.
    pub prefix: Option<String>,
    /// Its gateways; empty where the route leads straight to an interface or is not a forwarding one.
    pub next_hops: Vec<String>,
    /// Its interfaces, in the order of the next hops.
    pub interfaces: Vec<String>,
    /// Who put it there: `manx`, or the name or number of the kernel's route protocol.
    pub owner: Option<String>,
    /// The best BGP path for that prefix, if it is ours.
    pub route: Option<Route>,
}

/// Why a prefix is where it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteExplanation {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `RouteExplanation`.
    pub kind: RouteExplanationKind,
    /// What was asked.
    pub prefix: String,
    /// All paths, refused ones too, the best one first.
    pub paths: Vec<Route>,
    /// The filter rule that decided about the best path, such as `import filter racks#1 accept`.
    pub filter: Option<String>,
    /// What became of it towards each Established peer.
    pub exports: Vec<Export>,
    /// Where the prefix stands in the kernel.
    pub fib: Option<FibState>,
    /// Why it stands there; null when there is nothing to explain.
    pub reason: Option<String>,
}

/// What became of a prefix towards a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Export {
    /// The peer's name.
    pub peer: String,
    /// It is advertised.
    pub advertised: bool,
    /// The rule that decided, or the reason against it.
    pub reason: String,
}
