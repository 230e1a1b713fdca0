//! A BGP-4 speaker: a pure protocol core (`wire`, `session`, `rib`, `filter`, `speaker`) and, behind the feature
//! `net`, the thin tokio shell that gives it sockets and a clock.
//!
//! ```text
//! bytes -> wire -> session -> Adj-RIB-In -> filter -> decision -> Loc-RIB -> filter -> Adj-RIB-Out -> wire -> bytes
//!                                                                   `-> route changes for the FIB
//! ```
//!
//! The core never asks the clock and never does IO: inputs and `now` go in, effects come out.
//! Unsafe code is in one file, `net/sockopt.rs`.
#![deny(unsafe_code)]

pub mod bfd;
pub mod discovery;
pub mod filter;
#[cfg(feature = "net")]
pub mod net;
mod rib;
pub mod session;
pub mod speaker;
pub mod types;
pub mod wire;
