//! The wire codec against captured bytes, against the RFCs, against itself and against independent implementations.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod garbage;
mod generate;
mod messages;
mod oracles;
mod rfc7606;
mod roundtrip;
mod support;
#[path = "../rfc7606/mod.rs"]
mod table;
