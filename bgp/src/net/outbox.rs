//! What waits to be told to the agent, in less space than the history of it: only the last word on each next hop, the
//! latest facts, and route changes not at all, since the speaker keeps those.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use crate::net::{Event, MAX_BATCH};
use crate::speaker::{FibNextHop, PeerFact, Speaker};
use crate::types::Family;

/// Facts that wait; for logs, so that the oldest may go.
const MAX_FACTS: usize = 1024;

/// Events in waiting.
#[derive(Default)]
pub(super) struct Outbox {
    /// Next hops that the agent was told to watch.
    told: BTreeSet<FibNextHop>,
    /// What to tell about next hops: watch or not.
    tracking: BTreeMap<FibNextHop, bool>,
    /// The latest about each listener.
    listeners: BTreeMap<SocketAddr, Option<String>>,
    facts: VecDeque<PeerFact>,
    complete: Vec<Family>,
}

impl Outbox {
    pub(super) fn track(&mut self, hop: FibNextHop) {
        self.tracking.insert(hop, true);
    }

    pub(super) fn untrack(&mut self, hop: FibNextHop) {
        if self.told.contains(&hop) {
            self.tracking.insert(hop, false);
        } else {
            self.tracking.remove(&hop);
        }
    }

    pub(super) fn fact(&mut self, fact: PeerFact) {
        if self.facts.len() == MAX_FACTS {
            self.facts.pop_front();
        }
        self.facts.push_back(fact);
    }

    pub(super) fn restart_complete(&mut self, family: Family) {
        self.complete.push(family);
    }

    /// Listening works (`None`), or does not for this reason.
    pub(super) fn listener(&mut self, address: SocketAddr, failure: Option<String>) {
        self.listeners.insert(address, failure);
    }

    /// The next event, route changes taken from the speaker. `RestartComplete` waits until those are all out.
    pub(super) fn next(&mut self, speaker: &mut Speaker) -> Option<Event> {
        let hops: Vec<_> = std::iter::from_fn(|| self.tracking.pop_first()).take(MAX_BATCH).collect();
        for (hop, watch) in &hops {
            match watch {
                true => self.told.insert(*hop),
                false => self.told.remove(hop),
            };
        }
        if !hops.is_empty() {
            return Some(Event::NextHops(hops));
        }
        if let Some((address, failure)) = self.listeners.pop_first() {
            return Some(match failure {
                None => Event::Listening(address),
                Some(reason) => Event::ListenFailed { address, reason },
            });
        }
        if let Some(fact) = self.facts.pop_front() {
            return Some(Event::Peer(fact));
        }
        let changes: Vec<_> = std::iter::from_fn(|| speaker.poll_route_change()).take(MAX_BATCH).collect();
        if !changes.is_empty() {
            return Some(Event::Routes(changes));
        }
        self.complete.pop().map(Event::RestartComplete)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::speaker::SpeakerConfig;
    use crate::types::{Asn, RouterId};

    fn speaker() -> Speaker {
        let id = RouterId::new([10, 0, 0, 1].into()).unwrap();
        Speaker::new(SpeakerConfig::new(Asn(65001), id), crate::net::now())
    }

    fn drain(outbox: &mut Outbox) -> Vec<Event> {
        let mut speaker = speaker();
        std::iter::from_fn(|| outbox.next(&mut speaker)).collect()
    }

    #[test]
    fn only_the_last_word_on_a_next_hop_is_told() {
        let [a, b] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|a| FibNextHop::from(IpAddr::from(a)));
        let mut outbox = Outbox::default();
        for _ in 0..1000 {
            outbox.track(a);
            outbox.untrack(a);
        }
        outbox.track(b);
        assert_eq!(drain(&mut outbox), [Event::NextHops(vec![(b, true)])]);
        outbox.untrack(b);
        outbox.track(b);
        assert_eq!(
            drain(&mut outbox),
            [Event::NextHops(vec![(b, true)])],
            "the speaker waits for an answer to its last question"
        );
        outbox.untrack(b);
        outbox.track(a);
        assert_eq!(drain(&mut outbox), [Event::NextHops(vec![(a, true), (b, false)])]);
    }

    #[test]
    fn the_oldest_facts_go_when_nobody_takes_them() {
        let mut outbox = Outbox::default();
        for i in 0..MAX_FACTS + 5 {
            let peer = i.to_string();
            outbox.fact(PeerFact { peer, from: "Idle", to: "Connect", reason: "-".into(), cause: None });
        }
        let events = drain(&mut outbox);
        assert_eq!(events.len(), MAX_FACTS);
        assert!(matches!(&events[0], Event::Peer(fact) if fact.peer == "5"));
    }
}
