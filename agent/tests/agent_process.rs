//! The real `manx-agent` and `manxctl` in throwaway network namespaces, held to the sentences of their documentation.
//!
//! Nothing here looks into the agent: it is observed with `ip`, `iptables-save`, `nft`, `ipset` and BIRD, and asked with
//! `manxctl` and over its sockets. Needs root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
