//! The kernel rooms against a real kernel, each test in a network namespace of its own, observed with `ip`,
//! `iptables-save` and `ipset`, never with our own word. Needs root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cleanup;
mod fib;
mod ipset;
mod iptables;
mod link;
mod netns;
mod policy;
