//! What the speaker shows of itself: owned, serialisable data, with every decision's reason as it was kept.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::Serialize;

use crate::session::{Cause, Direction};
use crate::speaker::effect::{FibNextHop, PeerAddr};
use crate::types::{Asn, Family, PeerType, Prefix};

/// A peer as it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerView {
    /// Configured name.
    pub name: String,
    /// Its address; `None`: nobody was found on its interface yet.
    pub address: Option<PeerAddr>,
    /// The interface by which it is named, if it is.
    pub interface: Option<String>,
    /// Our AS towards it.
    pub local_as: Asn,
    /// Its AS: configured, or learned from its last OPEN where only the kind is configured.
    pub remote_as: Option<Asn>,
    /// Internal or external.
    pub peer_type: PeerType,
    /// Its BGP identifier, from its last OPEN.
    pub router_id: Option<Ipv4Addr>,
    /// One of the six names of RFC 4271 8, or "Disabled".
    pub state: &'static str,
    /// How long it has been in that state.
    pub age: Duration,
    /// How often it left Established.
    pub flaps: u32,
    /// Why it is not Established, or why it last left; `None`: no trouble yet.
    pub reason: Option<String>,
    /// What kind of reason that is.
    pub cause: Option<Cause>,
    /// The last NOTIFICATION of either side.
    pub last_notification: Option<NotificationView>,
    /// Our end of the session's connection.
    pub local_address: Option<IpAddr>,
    /// Capabilities by name and by side.
    pub capabilities: Vec<CapabilityView>,
    /// Timers in force.
    pub timers: TimersView,
    /// What is carried, by family.
    pub families: Vec<FamilyView>,
    /// Graceful restart as it concerns this peer.
    pub graceful_restart: GracefulRestartView,
    /// Messages of this session and its predecessors.
    pub messages: MessagesView,
    /// BFD, where it is configured.
    pub bfd: Option<BfdView>,
}

/// BFD with a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BfdView {
    /// "AdminDown", "Down", "Init" or "Up" (RFC 5880).
    pub state: &'static str,
    /// The peer's, as it last said; `None`: it was not heard.
    pub remote_state: Option<&'static str>,
    /// How long it has been in that state.
    pub age: Option<Duration>,
    /// Silence for so long takes it down.
    pub detection_time: Option<Duration>,
    /// So often we send, before jitter.
    pub interval: Option<Duration>,
    /// The peer gives up after so many missing packets.
    pub multiplier: u8,
    /// How often it left Up.
    pub flaps: u64,
    /// Why it is down.
    pub reason: Option<String>,
}

/// A capability and who offered it; in force when both did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CapabilityView {
    /// Name with its parameter, e.g. "multiprotocol ipv4".
    pub name: String,
    /// We offered it.
    pub local: bool,
    /// The peer offered it.
    pub remote: bool,
}

/// Timers of a session, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TimersView {
    /// Negotiated hold time; `None`: switched off or not negotiated yet.
    pub hold_time: Option<u16>,
    /// Keepalive interval before jitter.
    pub keepalive: Option<f64>,
    /// Configured time between attempts to connect.
    pub connect_retry: f64,
    /// Until the hold timer expires.
    pub hold_remaining: Option<f64>,
    /// Until the next attempt to connect, or the end of the hold-down after a failure.
    pub retry_in: Option<f64>,
}

/// A family of a session.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyView {
    /// Which one.
    pub family: Family,
    /// Both sides offered it on the session that is up.
    pub negotiated: bool,
    /// Prefixes received: accepted and filtered.
    pub received: u64,
    /// Prefixes in the table, those that lost or are ineligible included.
    pub accepted: u64,
    /// Prefixes that a filter or a loop check refused.
    pub filtered: u64,
    /// Of the accepted ones, those kept from before the peer's restart.
    pub stale: u64,
    /// Prefixes advertised to it.
    pub advertised: u64,
    /// Prefixes still to be looked at for sending.
    pub pending: u64,
    /// End-of-RIB has come.
    pub end_of_rib_received: bool,
    /// Our End-of-RIB has gone out.
    pub end_of_rib_sent: bool,
    /// Why nothing of it is advertised, e.g. no address of the family on the interface.
    pub reason: Option<String>,
}

/// Graceful restart towards a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GracefulRestartView {
    /// We offer it.
    pub local: bool,
    /// The peer offered it in its last OPEN.
    pub remote: bool,
    /// The peer's restart time in seconds.
    pub restart_time: Option<u16>,
    /// The peer is gone and its routes are kept for so many more seconds.
    pub helping_for: Option<f64>,
    /// Its routes are kept as the last choice (RFC 9494) for so many more seconds.
    pub long_lived_for: Option<f64>,
    /// Our own restart still waits for this peer's End-of-RIB.
    pub awaited: bool,
}

/// Message counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessagesView {
    /// Messages received.
    pub received: MessageCounts,
    /// Messages sent.
    pub sent: MessageCounts,
    /// Malformed attributes survived (RFC 7606).
    pub faults: u64,
}

/// Messages in one direction, by type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageCounts {
    /// OPEN.
    pub open: u64,
    /// UPDATE.
    pub update: u64,
    /// NOTIFICATION.
    pub notification: u64,
    /// KEEPALIVE.
    pub keepalive: u64,
    /// ROUTE-REFRESH, those of unknown kinds and families included.
    pub route_refresh: u64,
}

impl MessageCounts {
    /// Of all types.
    pub fn total(&self) -> u64 {
        self.by_type().into_iter().map(|(_, count)| count).sum()
    }

    /// With the names of the types.
    pub fn by_type(&self) -> [(&'static str, u64); 5] {
        [
            ("open", self.open),
            ("update", self.update),
            ("notification", self.notification),
            ("keepalive", self.keepalive),
            ("route-refresh", self.route_refresh),
        ]
    }
}

/// A NOTIFICATION that went over a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NotificationView {
    /// Whose.
    pub direction: Direction,
    /// Error code.
    pub code: u8,
    /// Error subcode.
    pub subcode: u8,
    /// Their names, and the text for the operator where there was one (RFC 9003).
    pub text: String,
    /// How long ago.
    pub age: Duration,
}

/// What became of a peer's sessions.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryView {
    /// Peer name.
    pub name: String,
    /// It is still configured.
    pub configured: bool,
    /// How often it left Established.
    pub flaps: u32,
    /// Oldest first.
    pub transitions: Vec<TransitionView>,
}

/// A change of state, or a row of equal ones while a session was down.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TransitionView {
    /// How long ago the first of the row was.
    pub first_age: Duration,
    /// How long ago the last of the row was.
    pub age: Duration,
    /// How many there were.
    pub count: u64,
    /// The state before.
    pub from: &'static str,
    /// The state after.
    pub to: &'static str,
    /// What kind of reason; `None`: progress needs none.
    pub cause: Option<Cause>,
    /// The reason in words.
    pub reason: Option<String>,
    /// The NOTIFICATION that went with it.
    pub notification: Option<NotificationView>,
}

/// What has been counted since the speaker started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// NOTIFICATIONs of all peers.
    pub notifications: Vec<NotificationCount>,
    /// Changes of state of each peer.
    pub transitions: Vec<TransitionCount>,
}

/// How often a NOTIFICATION was sent or came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotificationCount {
    /// Whose.
    pub direction: Direction,
    /// Error code; 0: one without a name.
    pub code: u8,
    /// Error subcode; 0: none, or one without a name.
    pub subcode: u8,
    /// How often.
    pub count: u64,
}

/// How often a peer came into a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransitionCount {
    /// Peer name.
    pub peer: String,
    /// The state.
    pub to: &'static str,
    /// Why; `None`: progress needs no reason.
    pub cause: Option<Cause>,
    /// How often.
    pub count: u64,
}

/// Which routes to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteQuery {
    /// All paths of all prefixes, best first.
    LocRib,
    /// Paths accepted from the peer of that name, then those refused (`filtered` set, without attributes).
    AdjRibIn(String),
    /// What has been advertised to the peer of that name, with the attributes that it saw.
    AdjRibOut(String),
}

/// A path.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteView {
    /// Its prefix.
    pub prefix: Prefix,
    /// The peer's address; `None`: originated here.
    pub from: Option<IpAddr>,
    /// The peer's name.
    pub peer: Option<String>,
    /// Path identifier (RFC 7911), as the peer gave it or, of an advertised route, as we give it.
    pub path_id: Option<u32>,
    /// Next hop; `None`: local or refused.
    pub next_hop: Option<IpAddr>,
    /// Chosen as best.
    pub best: bool,
    /// Forwards beside the best.
    pub multipath: bool,
    /// Kept from before its peer's restart.
    pub stale: bool,
    /// Traffic to it is discarded here (RFC 7999).
    pub blackhole: bool,
    /// Refused on import; only the reason was kept.
    pub filtered: bool,
    /// AS_PATH, nearest first.
    pub as_path: Vec<AsPathItem>,
    /// "igp", "egp" or "incomplete"; `None` when refused.
    pub origin: Option<&'static str>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF in effect.
    pub local_pref: Option<u32>,
    /// Standard communities, "65001:7" or the well-known name.
    pub communities: Vec<String>,
    /// Large communities, "1:2:3".
    pub large_communities: Vec<String>,
    /// Extended communities, "rt:65001:7", or as one hexadecimal number.
    pub extended_communities: Vec<String>,
    /// ORIGINATOR_ID.
    pub originator_id: Option<Ipv4Addr>,
    /// CLUSTER_LIST.
    pub cluster_list: Vec<Ipv4Addr>,
    /// The step that beat it: "local", "llgr" (RFC 9494), "preference", "a" to "g" of RFC 4271 9.1.2.2, "cluster" (RFC 4456 9),
    /// "path-id" (RFC 7911).
    pub lost_at: Option<&'static str>,
    /// Why it lost, is not eligible or was refused.
    pub reason: Option<String>,
    /// The import rule that let it in; `None` for a local or refused route, and while filters have changed and the peer has
    /// not said the route again.
    pub accepted_by: Option<String>,
}

/// An AS_PATH element: a number, or a set in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AsPathItem {
    /// Of a sequence.
    Asn(Asn),
    /// A set.
    Set(Vec<Asn>),
}

/// Everything known about a prefix.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The prefix asked for.
    pub prefix: Prefix,
    /// Its paths, best first, then those refused on import.
    pub paths: Vec<RouteView>,
    /// What the FIB was told; empty: nothing.
    pub next_hops: Vec<FibNextHop>,
    /// What became of it towards each established peer.
    pub exports: Vec<ExportView>,
}

/// What became of a prefix towards a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportView {
    /// Peer name.
    pub peer: String,
    /// It is advertised.
    pub advertised: bool,
    /// The rule that decided, or the reason against it.
    pub reason: String,
}

/// The longest match for an address.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lookup {
    /// The matching prefix, the longest with an eligible path.
    pub prefix: Prefix,
    /// Where packets go; empty: delivered here.
    pub next_hops: Vec<FibNextHop>,
    /// The best path.
    pub route: RouteView,
}

/// A filter rule and how often it decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleView {
    /// Filter name.
    pub filter: String,
    /// Rule name, or "#n" counted from 1.
    pub rule: String,
    /// Family of the rule.
    pub family: Family,
    /// Routes that it decided.
    pub hits: u64,
}
