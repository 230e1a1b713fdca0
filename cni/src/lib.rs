//! The rooms of `manx-cni`, the plugin that attaches pods, and what the agent shares with it.
//!
//! ```text
//! main -> plugin -> spec, json, environment, conf, result (words of CNI)      pure
//!                -> add, remove, check (the verbs)
//!                     plan (how a pod is wired), names, ipam (which address)     pure
//!                     link, observe over netlink; netns; store (tmpfs); detach   IO
//! shared with the agent: node (node.json), store (attachments), agent (cni.sock), conflist, names, sweep
//! ```
//!
//! Nothing here knows Kubernetes, tokio or the agent's insides. `unsafe` is confined to `detach`, which forks.

#![deny(unsafe_code)]

pub mod agent;
pub mod conf;
pub mod conflist;
pub mod environment;
pub mod ipam;
pub mod json;
pub mod link;
pub mod names;
pub mod netns;
pub mod node;
pub mod observe;
pub mod plan;
pub mod plugin;
pub mod reader;
pub mod result;
pub mod spec;
pub mod store;
pub mod sweep;

mod add;
mod check;
mod detach;
mod netlink;
mod remove;
