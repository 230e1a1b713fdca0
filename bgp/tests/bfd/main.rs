//! BFD on a virtual clock: two tables of sessions with a path between them that delays, loses, and is cut.
#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod path;
mod sessions;
