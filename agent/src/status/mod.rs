//! What the agent writes to the Kubernetes API: its node's condition and state, Events, and, while it holds the Lease, the
//! status of cluster-wide objects.
//!
//! Nothing in the agent waits for it, and nothing depends on it: a server that is away costs a stale status and no more.
//!
//! ```text
//! views, facts, health --> node_state --+--> PATCH nodes/status, bgpnodestates/status
//!                                       +--> events ------> POST, PATCH events
//! lease (who) --> verdict (what) ----------> PATCH bgppeers/status, ...
//! ```

pub mod events;
pub mod lease;
pub mod node_state;
mod verdict;
mod writer;

pub use writer::{Settings, Timing, run};
