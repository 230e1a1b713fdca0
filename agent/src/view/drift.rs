//! Where the kernel's routes differ from what they should be.

use serde::{Deserialize, Serialize};

use super::{ApiVersion, kind};

kind!(
    /// `kind` of [`RouteDrift`].
    RouteDriftKind = RouteDrift
);

/// The Loc-RIB joined with the kernel's table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteDrift {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `RouteDrift`.
    pub kind: RouteDriftKind,
    /// This node.
    pub node: String,
    /// Prefixes that should be in the kernel.
    pub wanted: u64,
    /// Of these, those that are as they should be, or on their way.
    pub agreeing: u64,
    /// What differs, by prefix.
    pub items: Vec<DriftItem>,
}

/// A prefix that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriftItem {
    /// The prefix.
    pub prefix: String,
    /// In what way.
    pub drift: Drift,
    /// Where it should lead: `10.1.0.1 dev eth0`, or `blackhole`; empty where it should not be.
    pub wanted: Vec<String>,
    /// Where it leads; empty where it is not there.
    pub found: Vec<String>,
    /// Who did it, the owner in the way, or why it is refused; null: not known.
    pub reason: Option<String>,
}

/// In what way a route differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Drift {
    /// It should be there and is not.
    Missing,
    /// It leads elsewhere.
    Changed,
    /// It bears our protocol number, and nobody here wants it.
    Extra,
}
