//! Where cluster state comes from: one stream of updates, whatever is behind it.
//!
//! A source sends batches of [`Update`]s. A batch is what became known at one moment (a directory read again, an event
//! of the Kubernetes API) and is applied as a whole. Everything that a source knows is sent once at the start, then
//! [`Update::InSync`]; after that only what changed. The state after any number of batches depends on what the source
//! holds, not on the order in which it changed.
//!
//! ```text
//! manifest_dir (files) --+
//!                        +--> Vec<Update> --> desired
//! kube (API)  -----------+
//! ```
//!
//! Objects are parsed here, at the door: behind it nobody sees YAML, JSON or Kubernetes' own types.

mod decode;
pub mod directory;
pub mod kube;
pub mod manifest;
pub mod manifest_dir;
mod object;
mod tree;

pub use object::{
    Endpoint, EndpointSlice, Foreign, Kind, KubeRouter, Node, Object, ObjectKey, Secret, Service, ServiceKind,
};

use std::sync::Arc;

/// One thing that became known.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The object is new or has changed.
    Set(Arc<Object>),
    /// The object is gone.
    Remove(ObjectKey),
    /// All that is wrong with the source at present; replaces what was reported before. Empty: nothing is wrong.
    Problems(Vec<Problem>),
    /// Everything has been read once. Sent once, never taken back: what cannot be read later is a problem that
    /// leaves the older version in force.
    InSync,
}

/// Something in a source that cannot be used as it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Name of the file within the manifest directory; `None`: the source as a whole, or no file.
    pub file: Option<String>,
    /// Line in the file, from 1.
    pub line: Option<u32>,
    /// The object, such as `BGPPeer tor-a`, where it is known.
    pub object: Option<String>,
    /// What is wrong and what to do about it; one line, without the values of secrets.
    pub reason: String,
    /// What follows from it, such as "what the file said before stays in force"; empty: nothing to add.
    pub effect: &'static str,
    /// What was said before stays in force, so that the state in force is older than what the source holds.
    pub stale: bool,
}

impl From<&Problem> for crate::view::StatusProblem {
    fn from(p: &Problem) -> Self {
        crate::view::StatusProblem {
            file: p.file.clone(),
            line: p.line,
            object: p.object.clone(),
            reason: match p.effect {
                "" => p.reason.clone(),
                effect => format!("{} ({effect})", p.reason),
            },
        }
    }
}
