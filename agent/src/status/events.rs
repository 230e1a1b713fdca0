//! Events (`v1`) on this node and its peers: what a person would want to find under `kubectl describe`.
//!
//! Pure. The same thing again within ten minutes raises the count of the Event that is there; a bucket bounds how many are
//! written at all, so that a link that flaps does not fill the API server.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Within this time the same thing is the same Event.
const SAME: Duration = Duration::from_secs(600);
/// Events at once...
const BURST: f64 = 20.0;
/// ...and seconds for each further one.
const REFILL_SECONDS: f64 = 10.0;

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum About {
    /// This node.
    Node,
    /// The BGPPeer of this name.
    Peer(String),
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Happening {
    /// What it is about.
    pub about: About,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// One word, as in `SessionDown`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A new Event of this name.
    Create(String, Happening),
    /// The Event of this name happened so many times by now.
    Count(String, u64),
}

/// Remembers what was written.
#[derive(Debug)]
pub struct Recorder {
    /// Makes names unique among agents and their lives.
    prefix: String,
    known: HashMap<Happening, Known>,
    written: u64,
    tokens: f64,
    filled: Instant,
    /// Events that were not written, for want of tokens.
    pub dropped: u64,
}

#[derive(Debug)]
struct Known {
    name: String,
    count: u64,
    last: Instant,
}

impl Recorder {
    /// Nothing was written yet. `prefix`: begins the names of Events; a DNS label.
    pub fn new(prefix: String, now: Instant) -> Self {
        Recorder { prefix, known: HashMap::new(), written: 0, tokens: BURST, filled: now, dropped: 0 }
    }

    /// What to write about this, if anything.
    pub fn record(&mut self, now: Instant, happening: Happening) -> Option<Write> {
        self.known.retain(|_, known| now.saturating_duration_since(known.last) < SAME);
        let refill = now.saturating_duration_since(self.filled).as_secs_f64() / REFILL_SECONDS;
        self.tokens = (self.tokens + refill).min(BURST);
        self.filled = now;
        if self.tokens < 1.0 {
            self.dropped += 1;
            return None;
        }
        self.tokens -= 1.0;
        if let Some(known) = self.known.get_mut(&happening) {
            known.count += 1;
            known.last = now;
            return Some(Write::Count(known.name.clone(), known.count));
        }
        self.written += 1;
        let name = format!("{}.{:x}", self.prefix, self.written);
        self.known.insert(happening.clone(), Known { name: name.clone(), count: 1, last: now });
        Some(Write::Create(name, happening))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(peer: &str) -> Happening {
        Happening {
            about: About::Peer(peer.into()),
            warning: true,
            reason: "SessionDown",
            message: "hold timer expired".into(),
        }
    }

    #[test]
    fn the_same_again_is_counted() {
        let start = Instant::now();
        let mut recorder = Recorder::new("n1".into(), start);
        let create = |name: &str, peer| Some(Write::Create(name.into(), down(peer)));
        assert_eq!(recorder.record(start, down("a")), create("n1.1", "a"));
        assert_eq!(recorder.record(start, down("a")), Some(Write::Count("n1.1".into(), 2)));
        assert_eq!(recorder.record(start, down("b")), create("n1.2", "b"));
        let later = start + SAME;
        assert_eq!(recorder.record(later, down("a")), create("n1.3", "a"));
    }

    #[test]
    fn the_rate_is_bounded() {
        let start = Instant::now();
        let mut recorder = Recorder::new("n1".into(), start);
        let written = (0..100).filter(|i| recorder.record(start, down(&i.to_string())).is_some()).count();
        assert_eq!((written, recorder.dropped), (20, 80));
        assert_eq!(recorder.record(start + Duration::from_secs(9), down("x")), None);
        assert!(recorder.record(start + Duration::from_secs(10), down("x")).is_some());
    }
}
