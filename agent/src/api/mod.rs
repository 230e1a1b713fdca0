//! The admin API: what `manxctl` and scripts read, over unix sockets in the run directory.
//!
//! `server` knows paths and status codes, `peers`, `why` and `routes` answer for theirs, `ladder` judges a peer, `events` and
//! `watch` tell what happens, `drops` what was dropped; `bgp` and `pods` turn the rooms' own
//! views into the documents of [`crate::view`]. What is shown is owned by the loops that decide; the few verbs of an
//! operator are passed on to them, and only where they came over `admin.sock`.

pub mod bgp;
pub mod clock;
mod drift;
mod drops;
mod effective;
pub mod events;
pub mod facts;
mod ladder;
mod node;
mod peers;
mod pods;
mod policy;
mod routes;
pub mod server;
pub mod summary;
mod watch;
pub mod why;
