//! Why a peer is where it is: the ladder from its configuration down to the wire.

use serde::{Deserialize, Serialize};

use super::{ApiVersion, EpochSeconds, kind};

kind!(
    /// `kind` of [`PeerDiagnosis`].
    PeerDiagnosisKind = PeerDiagnosis
);

/// The answer to `peer why`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerDiagnosis {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `PeerDiagnosis`.
    pub kind: PeerDiagnosisKind,
    /// This node.
    pub node: String,
    /// The peer as it was asked for.
    pub asked: String,
    /// Its name; null when it is no peer of this node.
    pub name: Option<String>,
    /// Its address; null when it is no peer of this node.
    pub address: Option<String>,
    /// As in the list of peers; null when it is no peer of this node.
    pub state: Option<String>,
    /// When it entered this state.
    pub since: Option<EpochSeconds>,
    /// What the first rung that failed has observed; null: none did.
    pub answer: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
    /// From the configuration upwards, always all of them.
    pub rungs: Vec<Rung>,
    /// BGPPeer objects that nearly make it a peer of this node, and what is in the way.
    pub nearly: Vec<String>,
}

/// One thing that a session needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rung {
    /// `selected`, `enabled`, `secret`, `filters`, `local-address`, `route`, `neighbour`, `tcp`, `open`, `families`,
    /// `notification`, `bfd` or `prefix-limit`.
    pub name: String,
    /// Whether it holds.
    pub result: RungResult,
    /// What was seen.
    pub observed: String,
    /// What to do; null where nothing has to be done.
    pub remedy: Option<String>,
}

/// Whether a rung holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RungResult {
    /// It does.
    Ok,
    /// It does not.
    Failed,
    /// Nothing is known of it, mostly because a rung below has failed.
    #[default]
    Unknown,
}
