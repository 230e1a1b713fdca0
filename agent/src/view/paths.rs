//! The paths of the admin API: HTTP/1.1 over the unix sockets of the run directory, `GET` answers JSON.
//!
//! | path | query | answers |
//! |---|---|---|
//! | [`STATUS`] | | [`Status`](super::Status) |
//! | [`PEERS`] | | [`PeerList`](super::PeerList) |
//! | [`PEERS`]`/{peer}` | | [`Peer`](super::Peer); the peer by address or by name |
//! | [`ROUTES`] | `table=loc\|in\|out`, `peer=`, `rejected=true`, `best=true` | [`RouteList`](super::RouteList) |
//! | [`ROUTE_GET`] | `ip=` | [`RouteLookup`](super::RouteLookup) |
//! | [`ROUTE_WHY`] | `prefix=` | [`RouteExplanation`](super::RouteExplanation) |
//! | [`POLICY_FOR`] | `target=NAMESPACE/NAME\|IP` | [`PodPolicy`](super::PodPolicy) |
//! | [`POLICY_FOR`] | `target=NAMESPACE` | [`PodPolicyList`](super::PodPolicyList) |
//! | [`IPAM`] | | [`Ipam`](super::Ipam) |
//! | [`PODS`] | | [`PodList`](super::PodList) |
//!
//! Any other answer is an [`ApiError`](super::ApiError) with the status of its code.

/// Socket in the run directory that answers everything; mode 0600.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// Socket in the run directory that answers reads only; mode 0660.
pub const READ_ONLY_SOCKET: &str = "ro.sock";

/// The agent as a whole.
pub const STATUS: &str = "/v1/status";
/// BGP peers; `/{peer}` below it is one of them, by address or by name.
pub const PEERS: &str = "/v1/peers";
/// Routes: `table=loc` (the default), or `table=in` and `table=out` with `peer=`.
pub const ROUTES: &str = "/v1/routes";
/// The route that a packet to `ip=` takes.
pub const ROUTE_GET: &str = "/v1/routes/get";
/// Why the route for `prefix=` is what it is.
pub const ROUTE_WHY: &str = "/v1/routes/why";
/// What polices `target=`.
pub const POLICY_FOR: &str = "/v1/policy/for";
/// Addresses of this node's pods.
pub const IPAM: &str = "/v1/ipam";
/// Pods attached to this node.
pub const PODS: &str = "/v1/pods";
