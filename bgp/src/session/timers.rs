//! Times of a session: jitter, back-off after failures, and the constants with their reasons.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// Hold timer while waiting for the peer's OPEN (RFC 4271 8.2.2 suggests 4 minutes): long, since an OPEN may sit behind
/// a busy peer's start, and finite, so that a silent connection does not occupy the session for ever.
pub const OPEN_HOLD: Duration = Duration::from_secs(240);
/// Hold-down after the first failure. Doubles with each further one.
pub const BACKOFF_BASE: Duration = Duration::from_secs(1);
/// Hold-down never exceeds this: an operator who mended the far end should not have to wait longer.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A session that lasted so long clears the failures before it.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// A session that has been up for so long is no party to a simultaneous open any more: a new connection means a restart.
pub const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// Source of timer jitter: RFC 4271 10 wants intervals multiplied by a random 0.75 to 1.0, so that many speakers that
/// start together do not stay together.
#[derive(Debug)]
pub struct Jitter(SmallRng);

impl Jitter {
    /// The same seed gives the same sequence.
    pub fn new(seed: u64) -> Self {
        Jitter(SmallRng::seed_from_u64(seed))
    }

    /// Between three quarters of the interval and the whole.
    pub fn apply(&mut self, interval: Duration) -> Duration {
        interval.mul_f64(self.0.random_range(0.75..=1.0))
    }
}

/// Hold-down after failures: 1 s, 2 s, 4 s, ... 60 s (trap: a peer that refuses every OPEN must not be dialled in a loop).
#[derive(Debug, Default, Clone)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure and gives the time to wait, before jitter.
    pub fn failed(&mut self) -> Duration {
        let wait = BACKOFF_BASE.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures += 1;
        wait
    }

    /// A session ended that had been up since then: a long-lived one clears the count.
    pub fn was_up_since(&mut self, since: Instant, now: Instant) {
        if now.duration_since(since) >= STABLE_AFTER {
            self.failures = 0;
        }
    }

    /// Forgets all failures: an operator asked, or the configuration changed.
    pub fn clear(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_between_three_quarters_and_the_whole() {
        let mut jitter = Jitter::new(1);
        let all: Vec<f64> = (0..1000).map(|_| jitter.apply(Duration::from_secs(100)).as_secs_f64()).collect();
        assert!(all.iter().all(|s| (75.0..=100.0).contains(s)));
        assert!(all.iter().any(|s| *s < 80.0) && all.iter().any(|s| *s > 95.0));
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_and_a_stable_session_clears_it() {
        let mut b = Backoff::default();
        let seconds: Vec<u64> = (0..8).map(|_| b.failed().as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        #[expect(clippy::disallowed_methods, reason = "virtual time has to start somewhere")]
        let since = Instant::now();
        b.was_up_since(since, since + Duration::from_secs(59));
        assert_eq!(b.failed().as_secs(), 60);
        b.was_up_since(since, since + Duration::from_secs(60));
        assert_eq!(b.failed().as_secs(), 1);
    }
}
