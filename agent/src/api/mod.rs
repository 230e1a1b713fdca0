//! The admin API: what `manxctl` and scripts read, over unix sockets in the run directory.
//!
//! `server` knows paths and status codes, `bgp` and `pods` turn the rooms' own views into the documents of
//! [`crate::view`]. Everything here reads; what it reads is owned by the loops that decide.

pub mod bgp;
pub mod facts;
mod pods;
pub mod server;
