//! What happens on a node, line by line: the stream of `watch`.

use serde::{Deserialize, Serialize};

use super::{ApiVersion, EpochSeconds, StatusProblem, kind};

kind!(
    /// `kind` of [`Event`].
    EventKind = Event
);

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `Event`.
    pub kind: EventKind,
    /// This node.
    pub node: String,
    /// When.
    pub at: EpochSeconds,
    /// What happened: the fields of `type`.
    #[serde(flatten)]
    pub what: Happening,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Happening {
    /// The stream begins: what happens from here on is told.
    Start {
        /// The agent's version.
        version: String,
    },
    /// A session changed its state, or said something worth knowing in the state that it is in.
    Peer {
        /// The peer's name.
        peer: String,
        /// The state before.
        from: String,
        /// The state after.
        to: String,
        /// What kind of reason, such as `hold-timer`; null: progress.
        cause: Option<String>,
        /// The reason in words; null: progress.
        reason: Option<String>,
    },
    /// The best path or paths of a prefix changed.
    Route {
        /// The prefix.
        prefix: String,
        /// Where it leads now; empty: nowhere any more.
        next_hops: Vec<String>,
    },
    /// More routes changed than are told one by one.
    RoutesOmitted {
        /// How many.
        count: u64,
    },
    /// A BGP next hop can be reached, cannot, or is reached otherwise.
    NextHop {
        /// Its address.
        address: String,
        /// There is a way.
        reachable: bool,
    },
    /// A kernel route or nexthop object of ours that somebody else removed or changed was put back.
    Repair {
        /// The prefix; of an object, which it is and what it is for.
        prefix: String,
        /// Who or what had taken it.
        cause: String,
    },
    /// More repairs than are told one by one.
    RepairsOmitted {
        /// How many.
        count: u64,
    },
    /// The packet filter took a change, or refused it.
    Policy {
        /// It is in force.
        applied: bool,
        /// What it took, in milliseconds; null where it was refused.
        took: Option<u64>,
        /// Why it was refused.
        error: Option<String>,
    },
    /// Something is wrong with the configuration, or is not any more.
    Config {
        /// It was mended.
        solved: bool,
        /// What.
        problem: StatusProblem,
    },
    /// This reader was too slow.
    Missed {
        /// So many events were left out.
        count: u64,
    },
}

impl Happening {
    /// The name in `type`, where readers choose among types. Those that speak of omissions belong to what was omitted.
    pub fn topic(&self) -> &'static str {
        match self {
            Happening::Start { .. } => "start",
            Happening::Peer { .. } => "peer",
            Happening::Route { .. } | Happening::RoutesOmitted { .. } => "route",
            Happening::NextHop { .. } => "nextHop",
            Happening::Repair { .. } | Happening::RepairsOmitted { .. } => "repair",
            Happening::Policy { .. } => "policy",
            Happening::Config { .. } => "config",
            Happening::Missed { .. } => "missed",
        }
    }
}

/// What a reader can choose among; `start` and `missed` always come.
pub const TOPICS: [&str; 6] = ["peer", "route", "nextHop", "repair", "policy", "config"];
