//! The rooms of `manx-cni`, the plugin that attaches pods, and what the agent shares with it.
//!
//! ```text
//! main --> plugin --> spec (words of CNI) --> add | del | check | gc | status
//!                                               |
//!                        plan (pure: link operations as data) --> link, netns (netlink IO)
//!                        ipam (pure: which address)           --> store (tmpfs IO)
//! shared with the agent: node (node.json), store (attachments), agent (cni.sock), conflist, names
//! ```
//!
//! `spec`, `names`, `ipam` and `plan` are pure. Nothing here knows Kubernetes, tokio or the agent's insides.
//! `unsafe` is confined to [`detach`], which forks.

#![deny(unsafe_code)]

pub mod agent;
pub mod conflist;
pub mod ipam;
pub mod names;
pub mod node;
pub mod spec;
pub mod store;
