//! Who writes cluster-wide status: the holder of one Lease (`coordination.k8s.io/v1`).
//!
//! Pure. Clocks of different nodes are never compared: a Lease that somebody else holds has expired when it has not changed
//! for its whole duration by our own clock. The holder stops before the others may begin.

use std::time::{Duration, Instant};

/// Name of the Lease.
pub const NAME: &str = "manx-status";

/// How the Lease is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// So long after its last renewal it is still held.
    pub duration: Duration,
    /// How often the holder renews it.
    pub renew: Duration,
    /// How often the others look; thousands of them do.
    pub look: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            duration: Duration::from_secs(60),
            renew: Duration::from_secs(15),
            look: Duration::from_secs(60),
        }
    }
}

/// A Lease as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `spec.holderIdentity`; empty: nobody.
    pub holder: String,
    /// `spec.leaseDurationSeconds`.
    pub duration: Duration,
    /// `spec.leaseTransitions`.
    pub transitions: i64,
    /// `metadata.resourceVersion`: moves with every renewal.
    pub version: String,
}

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// There is none: create it, held by us.
    Create,
    /// Replace the one of this version: renewed, or taken over.
    Update {
        /// Refused by the server if it has moved meanwhile.
        version: String,
        /// Counts the holders so far.
        transitions: i64,
        /// It was somebody else's.
        taken: bool,
    },
}

/// One candidate.
#[derive(Debug)]
pub struct Election {
    identity: String,
    timing: Timing,
    /// The Lease as it was when it last moved, and when we saw that.
    observed: Option<(Seen, Instant)>,
    /// Until when we may act as its holder.
    held_until: Option<Instant>,
}

impl Election {
    /// A candidate of this name.
    pub fn new(identity: &str, timing: Timing) -> Self {
        Election { identity: identity.to_owned(), timing, observed: None, held_until: None }
    }

    /// Until when we hold it; `None`: we do not.
    pub fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// When to look again.
    pub fn pause(&self) -> Duration {
        if self.held_until.is_some() { self.timing.renew } else { self.timing.look }
    }

    /// Judges the Lease as it is; `None`: there is none.
    pub fn look(&mut self, now: Instant, seen: Option<Seen>) -> Option<Act> {
        let Some(seen) = seen else {
            (self.observed, self.held_until) = (None, None);
            return Some(Act::Create);
        };
        let moved = self.observed.as_ref().is_none_or(|(old, _)| *old != seen);
        let since = match &self.observed {
            Some((_, since)) if !moved => *since,
            _ => now,
        };
        self.observed = Some((seen.clone(), since));
        let ours = seen.holder == self.identity;
        if !ours {
            self.held_until = None;
        }
        let expired = now.saturating_duration_since(since) >= seen.duration;
        (ours || seen.holder.is_empty() || expired).then_some(Act::Update {
            version: seen.version,
            transitions: seen.transitions + i64::from(!ours),
            taken: !ours,
        })
    }

    /// What was written is in force; `asked`: when it was sent. We stop a quarter before others may begin.
    pub fn written(&mut self, asked: Instant) {
        self.held_until = Some(asked + self.timing.duration * 3 / 4);
    }

    /// Writing failed, or nothing could be read: what we held stays ours until its time is over.
    pub fn failed(&mut self, now: Instant) {
        if self.held_until.is_some_and(|until| until <= now) {
            self.held_until = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(holder: &str, version: &str) -> Option<Seen> {
        let duration = 60 * SECOND;
        Some(Seen { holder: holder.into(), duration, transitions: 3, version: version.into() })
    }

    fn update(version: &str, transitions: i64, taken: bool) -> Option<Act> {
        Some(Act::Update { version: version.into(), transitions, taken })
    }

    #[test]
    fn a_lease_that_is_not_there_is_created() {
        let mut election = Election::new("n1", Timing::default());
        let start = Instant::now();
        assert_eq!(election.look(start, None), Some(Act::Create));
        assert_eq!(election.held_until(), None, "not before it is written");
        election.written(start);
        assert_eq!(election.held_until(), Some(start + 45 * SECOND));
    }

    #[test]
    fn another_ones_lease_is_left_alone_while_it_moves_and_taken_when_it_has_stood_still() {
        let mut election = Election::new("n1", Timing::default());
        let start = Instant::now();
        assert_eq!(election.look(start, seen("n2", "1")), None);
        assert_eq!(election.look(start + 59 * SECOND, seen("n2", "1")), None);
        assert_eq!(election.look(start + 60 * SECOND, seen("n2", "2")), None);
        assert_eq!(election.look(start + 119 * SECOND, seen("n2", "2")), None);
        assert_eq!(election.look(start + 120 * SECOND, seen("n2", "2")), update("2", 4, true));
    }

    #[test]
    fn a_lease_that_was_given_up_is_taken_at_once() {
        let mut election = Election::new("n1", Timing::default());
        assert_eq!(election.look(Instant::now(), seen("", "1")), update("1", 4, true));
    }

    #[test]
    fn the_holder_renews_and_stops_before_others_may_begin() {
        let mut election = Election::new("n1", Timing::default());
        let start = Instant::now();
        assert_eq!(election.look(start, seen("n1", "1")), update("1", 3, false));
        election.written(start);
        assert_eq!(election.pause(), 15 * SECOND);
        election.failed(start + 44 * SECOND);
        assert!(election.held_until().is_some());
        election.failed(start + 45 * SECOND);
        assert!(election.held_until().is_none());
    }

    #[test]
    fn a_holder_that_was_replaced_stops_at_once() {
        let mut election = Election::new("n1", Timing::default());
        let start = Instant::now();
        election.look(start, None);
        election.written(start);
        assert_eq!(election.look(start + SECOND, seen("n2", "5")), None);
        assert_eq!(election.held_until(), None);
    }
}
