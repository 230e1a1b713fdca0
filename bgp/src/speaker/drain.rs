//! Draining the node: peers are asked first to prefer other ways (GRACEFUL_SHUTDOWN, RFC 8326), and the sessions end
//! afterwards with a Cease that says why (RFC 9003). A drained speaker stays down until it is undrained.
//!
//! ```text
//! Serving --drain--> Announced --(delay)--> Down --undrain--> Serving
//!    ^                   |
//!    +------undrain------+
//! ```

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::speaker::Speaker;

/// A drain under way or done.
#[derive(Debug)]
pub(super) struct Drain {
    since: Instant,
    delay: Duration,
    text: String,
    /// The delay is over: no session is allowed any more.
    down: bool,
}

impl Drain {
    fn deadline(&self) -> Instant {
        self.since + self.delay
    }
}

/// How far a drain has come.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainView {
    /// How long ago it was asked for.
    pub age: Duration,
    /// Seconds until the sessions end; `None`: they have.
    pub remaining: Option<f64>,
    /// What peers are told with the Cease.
    pub text: String,
}

impl Speaker {
    /// Advertises what leads through this node with GRACEFUL_SHUTDOWN and, to internal peers, LOCAL_PREF 0 at once; ends all
    /// sessions with Cease, Administrative Shutdown and `text` after `delay`. Routes that are only reflected lead elsewhere and
    /// stay as they are. Asked again, it takes the new text and counts the new delay from the first time.
    pub fn drain(&mut self, now: Instant, delay: Duration, text: &str) {
        let since = self.drain.as_ref().map_or(now, |d| d.since);
        let down = self.drain.as_ref().is_some_and(|d| d.down);
        self.drain = Some(Drain { since, delay, text: text.to_owned(), down });
        self.rib.set_draining(true);
        self.check_drain(now);
    }

    /// Takes a drain back: routes lose the tag, sessions come up again. Whether there was one.
    pub fn undrain(&mut self, now: Instant) -> bool {
        let Some(drain) = self.drain.take() else { return false };
        self.rib.set_draining(false);
        if drain.down {
            self.reconcile_all(now);
        }
        true
    }

    /// The drain that is under way or done.
    pub fn drain_view(&self, now: Instant) -> Option<DrainView> {
        self.drain.as_ref().map(|d| DrainView {
            age: now.saturating_duration_since(d.since),
            remaining: (!d.down).then(|| d.deadline().saturating_duration_since(now).as_secs_f64()),
            text: d.text.clone(),
        })
    }

    /// When the sessions have to end.
    pub(super) fn drain_deadline(&self) -> Option<Instant> {
        self.drain.as_ref().filter(|d| !d.down).map(Drain::deadline)
    }

    /// Ends the sessions once the delay is over.
    pub(super) fn check_drain(&mut self, now: Instant) {
        if let Some(drain) = self.drain.as_mut().filter(|d| !d.down && d.deadline() <= now) {
            drain.down = true;
            self.reconcile_all(now);
        }
    }

    /// What peers are told when nobody may have a session: the speaker stops, or the node is drained.
    pub(super) fn down_text(&self) -> Option<&str> {
        let drained = self.drain.as_ref().filter(|d| d.down).map(|d| d.text.as_str());
        self.stopping.as_deref().or(drained)
    }
}
