//! What agents write into `status`: of a kind's object by the holder of the Lease, of BGPNodeState by the node itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Type of the condition that every object of ours carries: whether this version does what it says.
pub const ACCEPTED: &str = "Accepted";

/// A condition, as Kubernetes' own kinds have them (`metav1.Condition`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    pub status: String,
    /// The generation of the object that it speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When the status last changed (RFC 3339).
    pub last_transition_time: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
}

/// Status of an object that is accepted or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectStatus {
    /// Accepted: whether this version does all that the object says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Status of a BGPPeer over all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerStatus {
    /// So many nodes have this peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i64>,
    /// Of these, so many with an Established session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub established: Option<i64>,
    /// Accepted: whether this version does all that the object says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Status of a BGPNodeState; written when something changes, at least 10 s apart. Holds no routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStateStatus {
    /// The node's AS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_number: Option<i64>,
    /// Its BGP identifier.
    #[serde(rename = "routerID", skip_serializing_if = "Option::is_none")]
    pub router_id: Option<String>,
    /// Version of its agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Serving, Draining or Drained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<String>,
    /// So many peers it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_count: Option<i64>,
    /// Of these, so many are Established.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub established_count: Option<i64>,
    /// Its peers, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<NodePeer>,
    /// Ready: as `/readyz` says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A peer of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePeer {
    /// Name of the BGPPeer, or of the node that the mesh peers with.
    pub name: String,
    /// Its address; of a peer by interface also the interface.
    pub address: String,
    /// Its AS, once it is known.
    #[serde(default, rename = "remoteAS", skip_serializing_if = "Option::is_none")]
    pub remote_as: Option<i64>,
    /// One of the six names of RFC 4271, or Disabled.
    pub state: String,
    /// When it entered this state (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Why it is not Established, or last was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// How often it left Established since the agent started.
    #[serde(default)]
    pub flaps: i64,
    /// Prefixes received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<i64>,
    /// Of these, accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<i64>,
    /// Prefixes advertised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertised: Option<i64>,
}
