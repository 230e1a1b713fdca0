//! The real plugin and the real kernel, in network namespaces that each test makes and removes. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod chain;
mod crash;
mod node;
mod verbs;
