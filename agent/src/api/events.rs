//! Where events come together and readers hear them. Whoever tells never waits: a ring holds the latest, and a reader that
//! is slower loses the oldest and is told how many.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use manx_bgp::speaker::{PeerFact, RouteChange};
use tokio::sync::broadcast::{self, error::RecvError};

use super::facts::epoch_now;
use crate::kernel::fib::{FibHandle, FibStats};
use crate::policy_worker;
use crate::view::{ApiVersion, Event, EventKind, Happening, StatusProblem};

/// Events that a reader may be behind.
const RING: usize = 1024;
/// Route changes told one by one in each second; the rest is counted.
const ROUTES_A_SECOND: u64 = 100;
const SECOND: Duration = Duration::from_secs(1);
/// How often the repairs of the FIB writer are looked at, while somebody listens.
const LOOK: Duration = Duration::from_millis(250);

/// Tells all readers.
#[derive(Debug)]
pub struct Events {
    node: String,
    sender: broadcast::Sender<Event>,
    budget: Mutex<Budget>,
}

/// How many route changes may still be told in this second.
#[derive(Debug, Default)]
struct Budget {
    since: Option<Instant>,
    told: u64,
    omitted: u64,
}

impl Events {
    /// Nobody listens yet.
    pub fn new(node: &str) -> Self {
        Events { node: node.to_owned(), sender: broadcast::channel(RING).0, budget: Mutex::default() }
    }

    /// Whether there is anybody to tell.
    fn heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// A peer's session changed.
    pub fn peer(&self, fact: &PeerFact) {
        self.tell(|| Happening::Peer {
            peer: fact.peer.clone(),
            from: fact.from.to_owned(),
            to: fact.to.to_owned(),
            cause: fact.cause.map(|c| c.name().to_owned()),
            reason: fact.cause.map(|_| fact.reason.clone()),
        });
    }

    /// The best paths of some prefixes changed.
    pub fn routes(&self, now: Instant, changes: &[RouteChange]) {
        if !self.heard() {
            return;
        }
        self.flush(now);
        for change in changes {
            if !self.budget().take(now) {
                continue;
            }
            self.tell(|| Happening::Route {
                prefix: change.prefix.to_string(),
                next_hops: change.next_hops.iter().map(|hop| hop.gateway.to_string()).collect(),
            });
        }
    }

    /// Tells how many route changes were left out, once their second is over.
    pub fn flush(&self, now: Instant) {
        let omitted = self.budget().renew(now);
        if omitted > 0 {
            self.tell(|| Happening::RoutesOmitted { count: omitted });
        }
    }

    /// A next hop can be reached, or cannot.
    pub fn next_hop(&self, address: std::net::IpAddr, reachable: bool) {
        self.tell(|| Happening::NextHop { address: address.to_string(), reachable });
    }

    /// The packet filter took a change, or refused it; nothing if neither is news.
    pub fn policy(&self, before: &policy_worker::Kernel, after: &policy_worker::Kernel) {
        if let (Some(error), true) = (&after.error, before.error != after.error) {
            self.tell(|| Happening::Policy { applied: false, took: None, error: Some(error.clone()) });
        } else if let (Some((_, took)), true) =
            (after.last_applied, before.last_applied != after.last_applied)
        {
            let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.tell(|| Happening::Policy { applied: true, took: Some(took), error: None });
        }
    }

    /// What is wrong with the configuration now, and what was before.
    pub fn config(&self, before: &[StatusProblem], after: &[StatusProblem]) {
        let come = after.iter().filter(|p| !before.contains(p)).map(|p| (false, p));
        let gone = before.iter().filter(|p| !after.contains(p)).map(|p| (true, p));
        for (solved, problem) in come.chain(gone) {
            self.tell(|| Happening::Config { solved, problem: problem.clone() });
        }
    }

    /// A new reader, who hears what happens from now on.
    pub(super) fn listen(&self, topics: Option<Vec<String>>, fib: Option<FibHandle>) -> Reader {
        let repairs = fib.as_ref().map_or(0, |fib| fib.stats().repairs);
        let start = Happening::Start { version: env!("CARGO_PKG_VERSION").to_owned() };
        let waiting = VecDeque::from([event(&self.node, start)]);
        let node = self.node.clone();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Reader { node, events: self.sender.subscribe(), topics, fib, repairs, waiting, look }
    }

    fn tell(&self, what: impl FnOnce() -> Happening) {
        if self.heard() {
            // The last reader may have gone just now.
            let _ = self.sender.send(event(&self.node, what()));
        }
    }

    fn budget(&self) -> std::sync::MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn event(node: &str, what: Happening) -> Event {
    Event { api_version: ApiVersion, kind: EventKind::Event, node: node.to_owned(), at: epoch_now(), what }
}

impl Budget {
    /// Begins a new second where one is over; what the old one left out.
    fn renew(&mut self, now: Instant) -> u64 {
        if self.since.is_some_and(|since| now.saturating_duration_since(since) < SECOND) {
            return 0;
        }
        let omitted = self.omitted;
        *self = Budget { since: Some(now), ..Budget::default() };
        omitted
    }

    fn take(&mut self, now: Instant) -> bool {
        self.since.get_or_insert(now);
        if self.told < ROUTES_A_SECOND {
            self.told += 1;
            return true;
        }
        self.omitted += 1;
        false
    }
}

/// One who listens. Repairs are looked up here, since the FIB writer tells nobody.
pub(super) struct Reader {
    node: String,
    events: broadcast::Receiver<Event>,
    topics: Option<Vec<String>>,
    fib: Option<FibHandle>,
    /// How many repairs it knows of.
    repairs: u64,
    waiting: VecDeque<Event>,
    look: tokio::time::Interval,
}

impl Reader {
    /// The next line; `None`: the agent is stopping.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                if self.wants(&event) {
                    return Some(event);
                }
                continue;
            }
            tokio::select! {
                heard = self.events.recv() => match heard {
                    Ok(event) => self.waiting.push_back(event),
                    Err(RecvError::Lagged(count)) => {
                        self.waiting.push_back(event(&self.node, Happening::Missed { count }));
                    }
                    Err(RecvError::Closed) => return None,
                },
                _ = self.look.tick(), if self.fib.is_some() => {
                    let stats = self.fib.as_ref().map(FibHandle::stats).unwrap_or_default();
                    let news = repairs_since(&mut self.repairs, &stats);
                    self.waiting.extend(news.into_iter().map(|what| event(&self.node, what)));
                }
            }
        }
    }

    fn wants(&self, event: &Event) -> bool {
        let topic = event.what.topic();
        let always = ["start", "missed"].contains(&topic);
        always || self.topics.as_ref().is_none_or(|topics| topics.iter().any(|t| t == topic))
    }
}

/// The repairs since the last look, of which the writer remembers the latest.
fn repairs_since(known: &mut u64, stats: &FibStats) -> Vec<Happening> {
    let new = stats.repairs.saturating_sub(*known);
    *known = stats.repairs;
    let remembered = (stats.recent_repairs.len() as u64).min(new);
    let skip = stats.recent_repairs.len() - remembered as usize;
    let mut told: Vec<Happening> = Vec::new();
    if new > remembered {
        told.push(Happening::RepairsOmitted { count: new - remembered });
    }
    let latest = stats.recent_repairs.iter().skip(skip);
    told.extend(latest.map(|r| Happening::Repair { prefix: r.what.clone(), cause: r.cause.to_string() }));
    told
}

#[cfg(test)]
mod tests {
    use manx_bgp::speaker::FibNextHop;

    use super::*;
    use crate::kernel::fib::{Cause, Repair};

    fn changes(n: usize) -> Vec<RouteChange> {
        let hop = FibNextHop { gateway: "10.1.0.1".parse().unwrap(), ifindex: 0 };
        let prefix = |i: usize| format!("10.{}.{}.0/24", i / 256, i % 256).parse().unwrap();
        (0..n)
            .map(|i| RouteChange {
                prefix: prefix(i),
                next_hops: [hop].into_iter().collect(),
                backup: None,
                blackhole: false,
            })
            .collect()
    }

    /// All that waits for a reader.
    async fn drain(reader: &mut Reader) -> Vec<Happening> {
        let mut all = Vec::new();
        while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, reader.next()).await {
            all.push(event.what);
        }
        all
    }

    #[tokio::test]
    async fn a_burst_of_routes_is_told_in_part_and_counted_in_full() {
        let events = Events::new("n1");
        let start = Instant::now();
        events.routes(start, &changes(10));
        let mut reader = events.listen(None, None);
        events.routes(start, &changes(350));
        events.flush(start + Duration::from_millis(900));
        let told = drain(&mut reader).await;
        assert!(matches!(told[0], Happening::Start { .. }));
        assert_eq!(told.len(), 1 + 100, "what nobody heard is not counted against the others");
        events.flush(start + Duration::from_secs(1));
        events.flush(start + Duration::from_secs(2));
        assert_eq!(drain(&mut reader).await, [Happening::RoutesOmitted { count: 250 }]);
        events.routes(start + Duration::from_secs(3), &changes(1));
        assert_eq!(drain(&mut reader).await.len(), 1);
    }

    #[tokio::test]
    async fn a_reader_that_sleeps_loses_the_oldest_and_is_told_how_many() {
        let events = Events::new("n1");
        let mut reader = events.listen(None, None);
        for i in 0..RING + 76 {
            events.next_hop("10.1.0.1".parse().unwrap(), i % 2 == 0);
        }
        let told = drain(&mut reader).await;
        assert_eq!(told[1], Happening::Missed { count: 76 });
        assert_eq!(told.len(), 2 + RING);
    }

    #[tokio::test]
    async fn a_reader_hears_the_topics_that_it_chose() {
        let events = Events::new("n1");
        let mut reader = events.listen(Some(vec!["config".to_owned()]), None);
        let problem = |reason: &str| StatusProblem { reason: reason.to_owned(), ..Default::default() };
        events.next_hop("10.1.0.1".parse().unwrap(), true);
        events.config(&[problem("a"), problem("b")], &[problem("b"), problem("c")]);
        let told = drain(&mut reader).await;
        assert_eq!(
            told[1..],
            [
                Happening::Config { solved: false, problem: problem("c") },
                Happening::Config { solved: true, problem: problem("a") }
            ]
        );
    }

    #[test]
    fn repairs_are_told_once_and_those_beyond_memory_are_counted() {
        let repair = |i: u8| Repair {
            what: format!("10.0.{i}.0/24"),
            cause: Cause::Removed { by: "ip".to_owned() },
            at: Instant::now(),
            took: Duration::ZERO,
        };
        let mut known = 5;
        let mut stats = FibStats { repairs: 5, ..FibStats::default() };
        stats.recent_repairs = (0..5).map(repair).collect();
        assert_eq!(repairs_since(&mut known, &stats), []);
        stats.repairs = 7;
        stats.recent_repairs = (2..7).map(repair).collect();
        let told = repairs_since(&mut known, &stats);
        let cause = "removed by ip".to_owned();
        assert_eq!(told[1], Happening::Repair { prefix: "10.0.6.0/24".to_owned(), cause });
        assert_eq!(told.len(), 2);
        stats.repairs = 107;
        let told = repairs_since(&mut known, &stats);
        assert_eq!((told.len(), &told[0]), (6, &Happening::RepairsOmitted { count: 95 }));
    }
}
