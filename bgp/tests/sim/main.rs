//! The speaker as a whole, without sockets and on a virtual clock: one speaker against a scripted far side (`bench`), and
//! many speakers against each other (`net`). Tests of a trap bear its number and its sentence as name.
#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod add_path;
mod bench;
mod communities;
mod convergence;
mod drain;
mod extended_message;
mod fsm;
mod groups;
mod history;
mod link;
mod long_lived;
mod net;
mod notification;
mod properties;
mod ranges;
mod refresh;
mod restart;
mod routes;
mod scale;
mod session;
