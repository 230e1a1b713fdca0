//! What became of a peer's sessions: the last transitions with their reasons, and counts of all of them.
//!
//! A history belongs to the peer's name and outlives changes of its configuration. A peer that is away is dialled every few
//! seconds; those rounds are counted in the lines that are there, so that they never push out why the session was lost.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use crate::session::{Cause, Direction, Reason};
use crate::speaker::NotificationCount;
use crate::wire::iana;
use crate::wire::message::Notification;

/// Lines kept for each peer.
const LINES: usize = 64;
/// Histories kept of peers that are not configured any more.
const RETIRED: usize = 64;

/// The shown name of a peer that is administratively down.
pub(super) const DISABLED: &str = "Disabled";
const ESTABLISHED: &str = "Established";

/// A change of state, or a row of equal ones.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Transition {
    /// The first of the row.
    pub(super) first: Instant,
    /// The last of the row.
    pub(super) last: Instant,
    /// How many.
    pub(super) count: u64,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) reason: Option<Reason>,
}

/// A peer's past.
#[derive(Clone, Debug)]
pub(super) struct History {
    lines: VecDeque<Transition>,
    /// The state that was told last.
    pub(super) shown: &'static str,
    /// The last NOTIFICATION of either side.
    pub(super) last_notification: Option<(Instant, Direction, Notification)>,
    /// Transitions by the state they led to and by cause; as many entries as there are names, at most.
    pub(super) transitions: BTreeMap<(&'static str, Option<Cause>), u64>,
    /// Times that it left Established.
    pub(super) flaps: u32,
}

impl History {
    pub(super) fn new() -> Self {
        History {
            lines: VecDeque::new(),
            shown: "Idle",
            last_notification: None,
            transitions: BTreeMap::new(),
            flaps: 0,
        }
    }

    /// Oldest first, by their last occurrence.
    pub(super) fn lines(&self) -> impl Iterator<Item = &Transition> {
        self.lines.iter()
    }

    /// The state has become `to`.
    pub(super) fn push(&mut self, now: Instant, to: &'static str, reason: Option<Reason>) {
        let from = std::mem::replace(&mut self.shown, to);
        if from == ESTABLISHED {
            self.flaps += 1;
        }
        *self.transitions.entry((to, reason.as_ref().map(|r| r.cause))).or_default() += 1;
        let mut line = Transition { first: now, last: now, count: 1, from, to, reason };
        if let Some(at) = self.same_as(&line) {
            let before = self.lines.remove(at).expect("it was found there");
            line.first = before.first;
            line.count += before.count;
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// A NOTIFICATION has been sent or has come.
    pub(super) fn notified(&mut self, now: Instant, direction: Direction, notification: &Notification) {
        self.last_notification = Some((now, direction, notification.clone()));
    }

    /// The line that says the same, since the session was last up or disabled.
    fn same_as(&self, line: &Transition) -> Option<usize> {
        let landmark = |t: &Transition| [t.from, t.to].iter().any(|s| [ESTABLISHED, DISABLED].contains(s));
        if landmark(line) {
            return None;
        }
        let recent = self.lines.iter().enumerate().rev().take_while(|(_, t)| !landmark(t));
        let same = |t: &Transition| (t.from, t.to, &t.reason) == (line.from, line.to, &line.reason);
        recent.into_iter().find(|(_, t)| same(t)).map(|(at, _)| at)
    }
}

/// Histories of peers that were removed: a peer that comes back under its name gets its own again.
#[derive(Debug, Default)]
pub(super) struct Retired(VecDeque<(String, History)>);

impl Retired {
    pub(super) fn put(&mut self, name: String, history: History) {
        if self.0.len() == RETIRED {
            self.0.pop_front();
        }
        self.0.push_back((name, history));
    }

    pub(super) fn take(&mut self, name: &str) -> Option<History> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        self.0.remove(at).map(|(_, history)| history)
    }

    pub(super) fn get(&self, name: &str) -> Option<&History> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, history)| history)
    }
}

/// NOTIFICATIONs of all peers by direction, code and subcode. Codes without a name are counted under 0, so that a peer
/// cannot make entries at will.
#[derive(Debug, Default)]
pub(super) struct NotificationCounts(BTreeMap<(Direction, u8, u8), u64>);

impl NotificationCounts {
    pub(super) fn count(&mut self, direction: Direction, notification: &Notification) {
        let Notification { code, subcode, .. } = *notification;
        let code = iana::error_name(code).map_or(0, |_| code);
        let subcode = iana::subcode_name(code, subcode).map_or(0, |_| subcode);
        *self.0.entry((direction, code, subcode)).or_default() += 1;
    }

    pub(super) fn all(&self) -> Vec<NotificationCount> {
        let view = |(&(direction, code, subcode), &count): (&(Direction, u8, u8), &u64)| NotificationCount {
            direction,
            code,
            subcode,
            count,
        };
        self.0.iter().map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "virtual time has to start somewhere")]
    fn start() -> Instant {
        Instant::now()
    }

    fn refused() -> Option<Reason> {
        Some(Reason::new(Cause::TcpRefused, "connect: refused"))
    }

    #[test]
    fn a_day_of_vain_dials_leaves_the_loss_of_the_session_in_sight() {
        let mut history = History::new();
        let mut now = start();
        history.push(now, "Established", None);
        let lost = Some(Reason::new(Cause::HoldTimer, "hold timer expired"));
        history.push(now, "Idle", lost.clone());
        for _ in 0..10_000 {
            now += Duration::from_secs(5);
            history.push(now, "Connect", refused());
            now += Duration::from_secs(5);
            history.push(now, "Active", refused());
        }
        let lines: Vec<_> = history.lines().collect();
        assert_eq!(lines.len(), 5, "{lines:#?}");
        assert_eq!((lines[1].from, lines[1].to, &lines[1].reason), ("Established", "Idle", &lost));
        assert_eq!((lines[4].to, lines[4].count, lines[4].last), ("Active", 10_000, now));
        assert_eq!(history.flaps, 1);
        assert_eq!(history.transitions[&("Active", Some(Cause::TcpRefused))], 10_000);
    }

    #[test]
    fn a_peer_that_says_something_else_each_time_does_not_make_it_grow() {
        let mut history = History::new();
        let now = start();
        for i in 0..1000 {
            let state = if i % 2 == 0 { "Connect" } else { "Active" };
            history.push(now, state, Some(Reason::new(Cause::Malformed, i.to_string())));
        }
        assert_eq!(history.lines().count(), LINES);
        let mut retired = Retired::default();
        for i in 0..1000 {
            retired.put(i.to_string(), History::new());
        }
        assert_eq!(retired.0.len(), RETIRED);
        assert!(retired.take("999").is_some() && retired.take("999").is_none() && retired.get("0").is_none());
    }

    #[test]
    fn notifications_without_a_name_share_one_counter() {
        let mut counts = NotificationCounts::default();
        for code in 0..=255 {
            for subcode in 0..=255 {
                counts.count(Direction::Received, &Notification::new(code, subcode, []));
            }
        }
        assert!(counts.all().len() < 100);
        assert_eq!(counts.all().iter().map(|n| n.count).sum::<u64>(), 65_536);
        counts.count(Direction::Sent, &Notification::cease(4));
        let sent = NotificationCount { direction: Direction::Sent, code: 6, subcode: 4, count: 1 };
        assert!(counts.all().contains(&sent));
    }
}
