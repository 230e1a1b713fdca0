//! The driver on real sockets: loopback addresses 127.0.0.x, ports that the kernel chooses, the real clock.
#![cfg(feature = "net")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and these run on the real clock"
)]

mod bounds;
mod hostile;
mod interop;
mod options;
mod rfc7606;
mod sessions;
mod support;
#[path = "../rfc7606/mod.rs"]
mod table;
