//! What became of a peer's sessions, and the answers to an operator's orders.

use serde::{Deserialize, Serialize};

use super::{ApiVersion, EpochSeconds, Notification, kind};

kind!(
    /// `kind` of [`PeerHistory`].
    PeerHistoryKind = PeerHistory
);
kind!(
    /// `kind` of [`PeerAction`].
    PeerActionKind = PeerAction
);

/// The last transitions of a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerHistory {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `PeerHistory`.
    pub kind: PeerHistoryKind,
    /// This node.
    pub node: String,
    /// The peer's name.
    pub name: String,
    /// Its address; null when it is not configured any more.
    pub address: Option<String>,
    /// It is configured for this node.
    pub configured: bool,
    /// As in the list of peers; null when it is not configured any more.
    pub state: Option<String>,
    /// When it entered this state.
    pub since: Option<EpochSeconds>,
    /// How often it left Established since the agent started.
    pub flaps: u64,
    /// Oldest first. The rounds of vain attempts while a session is down are one line each, with their number.
    pub items: Vec<Transition>,
}

/// A change of state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transition {
    /// When; of several equal ones the last.
    pub at: EpochSeconds,
    /// Of several equal ones the first.
    pub first_at: EpochSeconds,
    /// How many there were.
    pub count: u64,
    /// The state before.
    pub from: String,
    /// The state after.
    pub to: String,
    /// What kind of reason, such as `tcp-refused`; null: progress.
    pub cause: Option<String>,
    /// The reason in words; null: progress.
    pub reason: Option<String>,
    /// The NOTIFICATION that went with it.
    pub notification: Option<Notification>,
}

/// What was done to a peer, and how it stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAction {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `PeerAction`.
    pub kind: PeerActionKind,
    /// The peer's name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// What was done.
    pub action: Action,
    /// The text for the other side.
    pub message: Option<String>,
    /// Its state right after.
    pub state: String,
    /// And the reason for it.
    pub reason: Option<String>,
}

/// An operator's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// The session was ended and begins anew.
    #[default]
    Reset,
    /// Routes are asked for and sent again.
    SoftReset,
    /// Routes are asked for again.
    SoftResetIn,
    /// Routes are sent again.
    SoftResetOut,
    /// Taken down, until it is enabled.
    Disable,
    /// Let come up.
    Enable,
}
