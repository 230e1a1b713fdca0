//! The rendered rules in a real kernel: real iptables-restore and ipset, real sockets, against the oracle.
//!
//! Needs root, iptables, ipset and iproute2. Everything happens in network namespaces that the tests make and remove.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "the crate is pure, its kernel tests are not")]

#[path = "../generate/cluster.rs"]
mod cluster;

mod agent;
mod lab;
mod scenarios;
mod transitions;
