//! The node agent's rooms, shared by `manx-agent`, `manxctl` and the tests.
//!
//! ```text
//! source -> desired -+-> bgp::Speaker -> routes -> kernel::fib
//!                    +-> policy (worker thread) -> kernel::{ipset, iptables}
//!                    +-> cni_config (node.json, conflist)
//!                    +-> egress_nat (its own thread)
//! api <- all of them, read only -> status (what is written to the Kubernetes API)
//! ```
//!
//! `desired`, `routes`, `config` and `delta` decide and are pure; `source`, `kernel`, `api` and `cni_server` are IO;
//! `run` joins them and does nothing else.
#![deny(unsafe_code)]

pub mod adopted;
pub mod api;
pub mod attachments;
pub mod cleanup;
pub mod cni_config;
pub mod cni_server;
pub mod config;
pub mod crd;
pub mod delta;
pub mod desired;
pub mod doctor;
pub mod drained;
pub mod drops;
pub mod egress_nat;
pub mod flows;
pub mod foreign;
pub mod health;
pub mod kernel;
pub mod leaks;
pub mod metrics;
pub mod options;
pub mod policy_worker;
pub mod prepare;
pub mod routes;
pub mod run;
pub mod sockets;
pub mod source;
pub mod status;
pub mod view;
pub mod web;
