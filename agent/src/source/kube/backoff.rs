//! How long to wait before the next try: longer each time, never all nodes at once. Pure.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(500);
/// The longest that we choose ourselves.
const CAP: Duration = Duration::from_secs(30);
/// The longest that a server may ask for.
const ASKED_CAP: Duration = Duration::from_secs(120);

/// Waits that double up to a cap, each with jitter.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    seed: u64,
    /// The first wait and the cap, divided by this: tests have less patience.
    haste: u32,
}

impl Backoff {
    /// `seed`: anything that differs between nodes.
    pub(super) fn new(seed: u64, haste: u32) -> Self {
        Backoff { failures: 0, seed: seed | 1, haste: haste.max(1) }
    }

    /// It failed: how long to wait. `asked`: what the server wants (Retry-After).
    pub(super) fn after_failure(&mut self, asked: Option<Duration>) -> Duration {
        let longest = FIRST.saturating_mul(1 << self.failures.min(10)).min(CAP) / self.haste;
        self.failures = self.failures.saturating_add(1);
        let own = longest.mul_f64(0.5 + self.chance() / 2.0);
        asked.map_or(own, |asked| asked.min(ASKED_CAP) + own)
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// From 0 to 1; xorshift64, for nothing but spreading load.
    pub(super) fn chance(&mut self) -> f64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over_after_success() {
        let mut backoff = Backoff::new(7, 1);
        let first = backoff.after_failure(None);
        assert!(first >= FIRST / 2 && first <= FIRST, "{first:?}");
        let later: Vec<_> = (0..40).map(|_| backoff.after_failure(None)).collect();
        assert!(later.iter().all(|wait| *wait <= CAP));
        assert!(later[20] >= CAP / 2);
        assert_ne!(later[20], later[21], "no jitter");
        backoff.reset();
        assert!(backoff.after_failure(None) <= FIRST);
    }

    #[test]
    fn what_the_server_asks_for_is_honoured_within_reason() {
        let mut backoff = Backoff::new(7, 1);
        assert!(backoff.after_failure(Some(Duration::from_secs(20))) >= Duration::from_secs(20));
        assert!(backoff.after_failure(Some(Duration::from_secs(86_400))) <= ASKED_CAP + CAP);
    }
}
