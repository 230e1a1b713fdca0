//! Which prefixes wait for the kernel, and which wait for another try. Pure: time is a value.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use rustc_hash::FxHashMap;

/// First wait after a refusal; doubles with each.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait between tries of one item. Events that may help (a link, an address, another owner's route going) try
/// at once, so this bounds only what nothing announces.
const LAST_RETRY: Duration = Duration::from_secs(15);

/// A refused item.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) attempts: u32,
    retry_at: Instant,
}

#[derive(Debug)]
pub(super) struct Queue {
    writes: VecDeque<IpNetwork>,
    deletes: Vec<IpNetwork>,
    failures: FxHashMap<IpNetwork, Failure>,
    retries: BTreeSet<(Instant, IpNetwork)>,
    random: u64,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            writes: VecDeque::new(),
            deletes: Vec::new(),
            failures: FxHashMap::default(),
            retries: BTreeSet::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    pub(super) fn push_write(&mut self, prefix: IpNetwork) {
        self.writes.push_back(prefix);
    }

    pub(super) fn push_delete(&mut self, prefix: IpNetwork) {
        self.deletes.push(prefix);
    }

    /// Writes in the order of their arrival, which the kernel's trie likes, then deletes in random order: in order they
    /// make it rebalance again and again, three times as slow.
    pub(super) fn pop(&mut self) -> Option<IpNetwork> {
        if let Some(prefix) = self.writes.pop_front() {
            return Some(prefix);
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let index = self.random.checked_rem(self.deletes.len() as u64)?;
        Some(self.deletes.swap_remove(index as usize))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.writes.len() + self.deletes.len()
    }

    pub(super) fn failure(&self, prefix: IpNetwork) -> Option<&Failure> {
        if self.failures.is_empty() { None } else { self.failures.get(&prefix) }
    }

    pub(super) fn failures(&self) -> usize {
        self.failures.len()
    }

    /// Books a refusal; its time comes later, and later with each.
    pub(super) fn fail(&mut self, prefix: IpNetwork, reason: String, now: Instant) {
        let attempts = self.forgive(prefix).map_or(0, |failure| failure.attempts) + 1;
        let wait = (FIRST_RETRY * 2u32.saturating_pow(attempts.min(16) - 1)).min(LAST_RETRY);
        let retry_at = now + wait;
        self.retries.insert((retry_at, prefix));
        self.failures.insert(prefix, Failure { reason, attempts, retry_at });
    }

    /// A better reason has been found.
    pub(super) fn explain(&mut self, prefix: IpNetwork, reason: &str) -> bool {
        let failure = self.failures.get_mut(&prefix);
        failure.is_some_and(|failure| {
            failure.reason = reason.to_owned();
            true
        })
    }

    /// The kernel accepted it, or it is no longer wanted.
    pub(super) fn forgive(&mut self, prefix: IpNetwork) -> Option<Failure> {
        if self.failures.is_empty() {
            return None;
        }
        let failure = self.failures.remove(&prefix)?;
        self.retries.remove(&(failure.retry_at, prefix));
        Some(failure)
    }

    /// A refused item whose time has come. It stays on record, with its count of attempts, until it is forgiven.
    pub(super) fn due(&mut self, now: Instant) -> Option<IpNetwork> {
        self.retries.first().filter(|(at, _)| *at <= now)?;
        self.retries.pop_first().map(|(_, prefix)| prefix)
    }

    /// When the next one's comes.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// All refused items, as if their time had come.
    pub(super) fn all_due(&mut self) -> BTreeSet<(Instant, IpNetwork)> {
        std::mem::take(&mut self.retries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_item_waits_longer_each_time_up_to_a_bound() {
        let mut queue = Queue::new();
        let prefix = "10.0.0.0/8".parse().unwrap();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..12 {
            queue.fail(prefix, "no".to_owned(), now);
            assert_eq!(queue.due(now), None);
            let at = queue.next_due().unwrap();
            waits.push((at - now).as_millis());
            now = at;
            assert_eq!(queue.due(now), Some(prefix));
        }
        assert_eq!(waits[..9], [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000]);
        assert_eq!(waits[11], 15_000);
        assert_eq!(queue.failure(prefix).unwrap().attempts, 12);
        queue.forgive(prefix);
        assert_eq!((queue.failures(), queue.next_due()), (0, None));
    }

    #[test]
    fn writes_come_in_order_before_deletes_in_any_order() {
        let mut queue = Queue::new();
        let net = |i: u8| IpNetwork::new([10, i, 0, 0].into(), 16).unwrap();
        (0..50).for_each(|i| queue.push_delete(net(i)));
        (50..60).for_each(|i| queue.push_write(net(i)));
        let popped: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(popped[..10], (50..60).map(net).collect::<Vec<_>>()[..]);
        let mut deletes = popped[10..].to_vec();
        assert!(!deletes.is_sorted());
        deletes.sort();
        assert_eq!(deletes, (0..50).map(net).collect::<Vec<_>>());
        assert!(queue.is_empty());
    }
}
