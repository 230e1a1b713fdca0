//! Liveness and readiness: what `/livez` and `/readyz` say.
//!
//! Live means that the loops turn, and nothing else: a ToR that is away must not get the agent restarted. Ready means
//! that this node can carry pods: source in sync, policy in the kernel, required peers up, CNI configuration written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

/// A loop that has not turned for so long is stuck. Long against any single piece of work (an iptables-restore that
/// waits for the xtables lock, a full resync), short against the kubelet's patience.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// One readiness check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Passed.
    pub ok: bool,
    /// What was observed.
    pub observed: String,
}

/// Shared between the loops that report and the server that answers.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    beats: BTreeMap<&'static str, Instant>,
    checks: BTreeMap<&'static str, Check>,
}

impl Health {
    /// A loop says that it turned.
    pub fn beat(&self, loop_name: &'static str, now: Instant) {
        self.lock().beats.insert(loop_name, now);
    }

    /// Reports a check. A check is expected from the moment it was first reported.
    pub fn report(&self, check: &'static str, ok: bool, observed: impl Into<String>) {
        self.lock().checks.insert(check, Check { ok, observed: observed.into() });
    }

    /// The loops that have not turned for too long; empty means live.
    pub fn stuck(&self, now: Instant) -> Vec<&'static str> {
        let state = self.lock();
        let late = |at: &Instant| now.saturating_duration_since(*at) > STUCK_AFTER;
        state.beats.iter().filter(|(_, at)| late(at)).map(|(name, _)| *name).collect()
    }

    /// All checks, and whether every one passed.
    pub fn ready(&self) -> (bool, BTreeMap<&'static str, Check>) {
        let state = self.lock();
        let ok = !state.checks.is_empty() && state.checks.values().all(|c| c.ok);
        (ok, state.checks.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_has_reported_nothing_is_not_ready() {
        let health = Health::default();
        assert!(!health.ready().0);
        health.report("source", true, "in sync");
        assert!(health.ready().0);
        health.report("peers", false, "tor-a is in Connect");
        assert!(!health.ready().0);
        assert_eq!(health.ready().1["peers"].observed, "tor-a is in Connect");
    }

    #[test]
    fn liveness_looks_at_loops_and_never_at_peers() {
        let health = Health::default();
        let start = Instant::now();
        health.beat("run", start);
        health.report("peers", false, "down");
        assert!(health.stuck(start + Duration::from_secs(5)).is_empty());
        assert_eq!(health.stuck(start + Duration::from_secs(100)), ["run"]);
    }
}
