//! Policy scenarios on the real kernel: a file says what the cluster is, what changes, and who is to reach whom after each change;
//! real agents, the real plugin and real sockets show whether that is so.
//!
//! ```text
//! file.rs   scenarios as written            table.rs    the expected table, written by a person
//! rack.rs   standing nodes, agents, pods    station.rs  a pod's sockets
//! run.rs    plays a scenario, compares      sweep.rs    every question at once
//!                                           blame.rs    the rules that decided where that was wrong
//! ```
//! Nothing here computes what ought to be: no selector is evaluated, no oracle asked.

pub mod blame;
pub mod file;
pub mod rack;
pub mod run;
pub mod station;
pub mod sweep;
pub mod table;
