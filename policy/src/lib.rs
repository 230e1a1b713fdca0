//! Kubernetes network policy for one node: from cluster objects to iptables rules and ipsets, and back to words.
//!
//! ```text
//! k8s objects -> k8s -> model -> state -> calc -> compile -> ir -> render + plan -> steps for the agent
//!                                  |                          |
//!                               verdict  (must agree with)   sim
//! ```
//!
//! The whole crate is pure: no IO, no clock, no process. [`engine::Engine`] is the door.

#![forbid(unsafe_code)]

pub mod calc;
pub mod compile;
pub mod desired;
pub mod diff;
pub mod drops;
pub mod engine;
pub mod grants;
pub mod ir;
pub mod k8s;
pub mod kernel;
pub mod live;
pub mod members;
pub mod model;
pub mod names;
pub mod plan;
pub mod quarantine;
pub mod render;
pub mod selector;
pub mod sim;
pub mod state;
pub mod trace;
pub mod verdict;
pub mod view;

pub use engine::{Engine, EngineConfig};
