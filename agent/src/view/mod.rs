//! What the agent tells about itself: the JSON of the admin API, which `manxctl` prints and scripts rely on.
//!
//! The shapes are a versioned contract (`apiVersion: manx.dev/v1`): times are seconds since the epoch, what is not
//! known is `null` and never left out, fields may be added and never change their meaning. This module knows shapes
//! only: neither where the values come from nor how they are printed. No secret has a place in it.

mod bgp;
mod doctor;
mod drain;
mod drift;
mod drops;
mod effective;
mod events;
mod history;
pub mod paths;
mod pods;
mod policy;
mod status;
mod why;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use bgp::{
    Advertised, AsPathItem, Bfd, Export, FamilyCounts, FibState, MessageCounts, Notification, Peer, PeerKind,
    PeerList, PeerListKind, PeerRange, PeerRow, PeerSettings, Route, RouteExplanation, RouteExplanationKind,
    RouteList, RouteListKind, RouteLookup, RouteLookupKind,
};
pub use doctor::{Check, CheckResult, Doctor, DoctorKind};
pub use drain::{DrainPhase, NodeDrain, NodeDrainKind};
pub use drift::{Drift, DriftItem, RouteDrift, RouteDriftKind};
pub use drops::{DropEvent, DropEventKind, DropList, DropListKind, DroppedPacket, Dropping, PacketEnd};
pub use effective::{Effective, EffectiveKind, EffectivePeer, NotInForce, Setting, Sourced};
pub use events::{Event, EventKind, Happening, TOPICS};
pub use history::{Action, PeerAction, PeerActionKind, PeerHistory, PeerHistoryKind, Transition};
pub use pods::{
    Allocation, Cooling, Direction, Ipam, IpamKind, Leaked, PodList, PodListKind, PodPolicy, PodPolicyKind,
    PodPolicyList, PodPolicyListKind, PodRow, Pool,
};
pub use policy::{
    FlowChange, LiveCut, PolicyDiff, PolicyDiffKind, PolicyList, PolicyListKind, PolicyRendering,
    PolicyRenderingKind, PolicyRow, Verdict, VerdictKind, VerdictStep,
};
pub use status::{
    BgpStatus, CniStatus, KernelStatus, PolicyStatus, SourceStatus, Status, StatusKind, StatusProblem,
};
pub use why::{PeerDiagnosis, PeerDiagnosisKind, Rung, RungResult};

/// Seconds since 1970-01-01 00:00 UTC.
pub type EpochSeconds = u64;

/// The version of every document: always `manx.dev/v1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApiVersion;

impl ApiVersion {
    /// As it stands in JSON.
    pub const TEXT: &str = "manx.dev/v1";
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ApiVersion::TEXT)
    }
}

impl Serialize for ApiVersion {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(ApiVersion::TEXT)
    }
}

impl<'de> Deserialize<'de> for ApiVersion {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        if text == ApiVersion::TEXT {
            return Ok(ApiVersion);
        }
        Err(serde::de::Error::custom(format!(
            "apiVersion {text} is not {}: use the manxctl of the agent's own version",
            ApiVersion::TEXT
        )))
    }
}

/// Makes the one-valued type of a document's `kind` field, so that it can be neither forgotten nor misspelt.
macro_rules! kind {
    ($(#[$doc:meta])* $name:ident = $text:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            /// The only value.
            #[default]
            $text,
        }
    };
}
pub(crate) use kind;

kind!(
    /// `kind` of [`ApiError`].
    ApiErrorKind = Error
);

/// The body of every answer that is not 200.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiError {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `Error`.
    pub kind: ApiErrorKind,
    /// What kind of no this is.
    pub code: ErrorCode,
    /// One sentence for a person: what is wrong and what to do.
    pub message: String,
}

impl ApiError {
    /// An error body.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ApiError { api_version: ApiVersion, kind: ApiErrorKind::Error, code, message: message.into() }
    }
}

/// Why a request was not answered with what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorCode {
    /// No such peer, prefix or pod. HTTP 404; `manxctl` exits with 1.
    NotFound,
    /// The request cannot be understood. HTTP 400; exit 2.
    BadRequest,
    /// Not on this socket. HTTP 403; exit 5.
    Forbidden,
    /// The agent cannot answer yet, or that part of it is switched off. HTTP 503; exit 3.
    Unavailable,
}

impl ErrorCode {
    /// The HTTP status that carries it.
    pub fn http_status(self) -> u16 {
        match self {
            ErrorCode::NotFound => 404,
            ErrorCode::BadRequest => 400,
            ErrorCode::Forbidden => 403,
            ErrorCode::Unavailable => 503,
        }
    }
}
