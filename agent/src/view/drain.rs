//! Taking a node out of routing and back in.

use serde::{Deserialize, Serialize};

use super::{ApiVersion, EpochSeconds, kind};

kind!(
    /// `kind` of [`NodeDrain`].
    NodeDrainKind = NodeDrain
);

/// How far a drain has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeDrain {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `NodeDrain`.
    pub kind: NodeDrainKind,
    /// This node.
    pub node: String,
    /// Where it stands.
    pub phase: DrainPhase,
    /// When the drain was ordered; null while serving.
    pub since: Option<EpochSeconds>,
    /// When the sessions end; null while serving and once they have.
    pub until: Option<EpochSeconds>,
    /// What peers are told with the Cease; null while serving.
    pub message: Option<String>,
    /// Peers of this node.
    pub peers: u64,
    /// Of these, those whose session is Established.
    pub established: u64,
}

/// Where a drain stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainPhase {
    /// None was ordered.
    #[default]
    Serving,
    /// Peers have been asked by GRACEFUL_SHUTDOWN (RFC 8326) to prefer other ways; sessions are still up.
    Draining,
    /// The sessions have ended with a Cease.
    Drained,
}
