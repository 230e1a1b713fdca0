//! What `manxctl doctor` finds.

use serde::{Deserialize, Serialize};

use super::{ApiVersion, kind};

kind!(
    /// `kind` of [`Doctor`].
    DoctorKind = Doctor
);

/// All checks of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Doctor {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `Doctor`.
    pub kind: DoctorKind,
    /// The node's name, where the agent or its files say it.
    pub node: Option<String>,
    /// Nothing was found.
    pub healthy: bool,
    /// Every check, in a fixed order.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Its name, which stays the same.
    pub name: String,
    /// What came of it.
    pub result: CheckResult,
    /// What was observed.
    pub observed: String,
    /// What to do about it; null where nothing is to be done.
    pub remedy: Option<String>,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CheckResult {
    /// As it should be.
    Ok,
    /// Cannot be told from here: a tool is missing, or a privilege.
    Unknown,
    /// Works, but costs something or will hurt some day.
    Warning,
    /// Breaks the network.
    Problem,
}
