//! The admin API: what `manxctl` and scripts read, over unix sockets in the run directory.
//!
//! `server` knows paths and status codes, `peers` and `routes` answer for theirs; `bgp` and `pods` turn the rooms' own
//! views into the documents of [`crate::view`]. What is shown is owned by the loops that decide; the few verbs of an
//! operator are passed on to them, and only where they came over `admin.sock`.

pub mod bgp;
pub mod clock;
pub mod facts;
mod peers;
mod pods;
mod routes;
pub mod server;
