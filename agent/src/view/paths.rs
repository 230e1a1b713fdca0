//! The paths of the admin API: HTTP/1.1 over the unix sockets of the run directory, `GET` answers JSON.
//!
//! | path | query | answers |
//! |---|---|---|
//! | [`STATUS`] | | [`Status`](super::Status) |
//! | [`EFFECTIVE`] | | [`Effective`](super::Effective) |
//! | [`PEERS`] | | [`PeerList`](super::PeerList) |
//! | [`PEERS`]`/{peer}` | | [`Peer`](super::Peer); the peer by address or by name |
//! | [`PEERS`]`/{peer}`[`PEER_HISTORY`] | | [`PeerHistory`](super::PeerHistory) |
//! | [`PEERS`]`/{peer}`[`PEER_WHY`] | | [`PeerDiagnosis`](super::PeerDiagnosis); also of an address that is no peer |
//! | POST [`PEERS`]`/{peer}`[`PEER_RESET`] | `how=hard\|soft\|in\|out` | [`PeerAction`](super::PeerAction) |
//! | POST [`PEERS`]`/{peer}`[`PEER_DISABLE`] | `message=` | [`PeerAction`](super::PeerAction) |
//! | POST [`PEERS`]`/{peer}`[`PEER_ENABLE`] | | [`PeerAction`](super::PeerAction) |
//! | [`ROUTES`] | `table=loc\|in\|out`, `peer=`, `rejected=true`, `best=true` | [`RouteList`](super::RouteList) |
//! | [`ROUTE_DRIFT`] | | [`RouteDrift`](super::RouteDrift) |
//! | [`ROUTE_GET`] | `ip=` | [`RouteLookup`](super::RouteLookup) |
//! | [`ROUTE_WHY`] | `prefix=` | [`RouteExplanation`](super::RouteExplanation) |
//! | [`NODE_DRAIN`] | | [`NodeDrain`](super::NodeDrain) |
//! | POST [`NODE_DRAIN`] | `delay=` seconds, `message=` | [`NodeDrain`](super::NodeDrain) |
//! | POST [`NODE_UNDRAIN`] | | [`NodeDrain`](super::NodeDrain) |
//! | [`WATCH`] | `only=peer,route,nextHop,repair,policy,config` | [`Event`](super::Event)s, a line each, without end |
//! | [`POLICY_FOR`] | `target=NAMESPACE/NAME\|IP` | [`PodPolicy`](super::PodPolicy) |
//! | [`POLICY_FOR`] | `target=NAMESPACE` | [`PodPolicyList`](super::PodPolicyList) |
//! | [`POLICIES`] | | [`PolicyList`](super::PolicyList) |
//! | [`POLICY_TRACE`] | `source=`, `destination=` | [`Verdict`](super::Verdict) |
//! | [`POLICY_RENDER`] | `pod=NAMESPACE/NAME` | [`PolicyRendering`](super::PolicyRendering) |
//! | POST [`POLICY_DIFF`], a manifest as its body | | [`PolicyDiff`](super::PolicyDiff); changes nothing and is answered on both sockets |
//! | [`DROPS`] | `pod=NAMESPACE/NAME`, `policy=` | [`DropList`](super::DropList) |
//! | [`DROPS`] | `follow=true`, `pod=NAMESPACE/NAME`, `policy=` | [`DropEvent`](super::DropEvent)s, a line each, without end |
//! | [`IPAM`] | | [`Ipam`](super::Ipam) |
//! | [`PODS`] | | [`PodList`](super::PodList) |
//!
//! What is marked POST changes something and is refused on [`READ_ONLY_SOCKET`]. Any other answer is an [`ApiError`](super::ApiError) with the status of its code.

/// Socket in the run directory that answers everything; mode 0600.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// Socket in the run directory that answers reads only; mode 0660.
pub const READ_ONLY_SOCKET: &str = "ro.sock";

/// The agent as a whole.
pub const STATUS: &str = "/v1/status";
/// What is in force, and where it comes from.
pub const EFFECTIVE: &str = "/v1/config/effective";
/// BGP peers; `/{peer}` below it is one of them, by address or by name.
pub const PEERS: &str = "/v1/peers";
/// Below a peer: what it needs, from its configuration up, and what of that is missing.
pub const PEER_WHY: &str = "/why";
/// Below a peer: what became of its sessions.
pub const PEER_HISTORY: &str = "/history";
/// Below a peer: end the session and begin anew, or (`how=in`, `how=out`, `how=soft`) only exchange routes again.
pub const PEER_RESET: &str = "/reset";
/// Below a peer: take it down with a message for the other side, over its configuration.
pub const PEER_DISABLE: &str = "/disable";
/// Below a peer: let it come up, over its configuration.
pub const PEER_ENABLE: &str = "/enable";
/// Routes: `table=loc` (the default), or `table=in` and `table=out` with `peer=`.
pub const ROUTES: &str = "/v1/routes";
/// Where the kernel's routes differ from what they should be.
pub const ROUTE_DRIFT: &str = "/v1/routes/drift";
/// The route that a packet to `ip=` takes.
pub const ROUTE_GET: &str = "/v1/routes/get";
/// Why the route for `prefix=` is what it is.
pub const ROUTE_WHY: &str = "/v1/routes/why";
/// What polices `target=`.
pub const POLICY_FOR: &str = "/v1/policy/for";
/// How far a drain of this node has come.
pub const NODE_DRAIN: &str = "/v1/node/drain";
/// Takes a drain back.
pub const NODE_UNDRAIN: &str = "/v1/node/undrain";
/// What happens from now on, as lines of JSON that do not end; `only=` names topics.
pub const WATCH: &str = "/v1/watch";
/// Every policy.
pub const POLICIES: &str = "/v1/policies";
/// What happens to a flow from `source=` to `destination=`.
pub const POLICY_TRACE: &str = "/v1/policy/trace";
/// The rules of `pod=`.
pub const POLICY_RENDER: &str = "/v1/policy/render";
/// What the objects in the body would change.
pub const POLICY_DIFF: &str = "/v1/policy/diff";
/// The latest packets that policy has dropped; with `follow=true` those to come, as lines of JSON that do not end.
pub const DROPS: &str = "/v1/drops";
/// Addresses of this node's pods.
pub const IPAM: &str = "/v1/ipam";
/// Pods attached to this node.
pub const PODS: &str = "/v1/pods";
