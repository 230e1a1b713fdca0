//! From the monotonic times that the rooms keep to the epoch seconds that documents show.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A wall clock that was set by more than this is followed.
const STEP: Duration = Duration::from_secs(1);

/// One anchor for all conversions: the same event has the same time in each document, to the second, and a watch sees no
/// change where there is none.
#[derive(Debug)]
pub struct Clock(Mutex<(Instant, Duration)>);

impl Default for Clock {
    fn default() -> Self {
        Clock(Mutex::new((Instant::now(), wall())))
    }
}

impl Clock {
    /// The time since the epoch at a moment of the monotonic clock.
    pub fn at(&self, moment: Instant) -> Duration {
        self.convert(moment, Instant::now(), wall())
    }

    fn convert(&self, moment: Instant, now: Instant, wall: Duration) -> Duration {
        let mut anchor = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = after(*anchor, now);
        if expected.abs_diff(wall) > STEP {
            *anchor = (now, wall);
        }
        after(*anchor, moment)
    }
}

fn after((instant, epoch): (Instant, Duration), moment: Instant) -> Duration {
    let later = moment.saturating_duration_since(instant);
    (epoch + later).saturating_sub(instant.saturating_duration_since(moment))
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_keeps_its_second_while_the_clocks_drift_and_follows_a_clock_that_is_set() {
        let start = Instant::now();
        let clock = Clock(Mutex::new((start, Duration::from_millis(1_000_400))));
        let event = start + Duration::from_millis(1500);
        let at = |later: u64, wall: u64| {
            clock.convert(event, start + Duration::from_millis(later), Duration::from_millis(wall)).as_secs()
        };
        assert_eq!(at(2000, 1_002_400), 1001);
        assert_eq!(at(60_000, 1_060_900), 1001, "half a second off is the clock's own business");
        assert_eq!(at(60_000, 5_060_400), 5001, "the clock was set");
        assert_eq!(at(61_000, 5_061_400), 5001);
    }
}
