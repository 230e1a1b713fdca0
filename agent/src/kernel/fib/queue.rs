//! Which prefixes wait for the kernel, and which wait for another try. Pure: time is a value.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::books::Slot;

/// First wait after a refusal; doubles with each.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait between tries of one item. Events that may help (a link, an address, another owner's route going) try
/// at once, so this bounds only what nothing announces.
const LAST_RETRY: Duration = Duration::from_secs(15);
/// What the queues keep room for when they are empty.
const KEPT: usize = 4096;

/// How long to wait after so many refusals, at least one.
pub(super) fn backoff(attempts: u32) -> Duration {
    (FIRST_RETRY * 2u32.saturating_pow(attempts.min(16) - 1)).min(LAST_RETRY)
}

/// A refused item.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) attempts: u32,
    retry_at: Instant,
}

#[derive(Debug)]
pub(super) struct Queue {
    writes: VecDeque<Slot>,
    /// What forwards as it should and differs only in what it would do if that failed.
    refinements: VecDeque<Slot>,
    deletes: Deletes,
    failures: FxHashMap<Slot, Failure>,
    retries: BTreeSet<(Instant, Slot)>,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            writes: VecDeque::new(),
            refinements: VecDeque::new(),
            deletes: Deletes::new(),
            failures: FxHashMap::default(),
            retries: BTreeSet::new(),
        }
    }

    pub(super) fn push_write(&mut self, slot: Slot) {
        self.writes.push_back(slot);
    }

    pub(super) fn push_refinement(&mut self, slot: Slot) {
        self.refinements.push_back(slot);
    }

    /// `address`: that of an IPv4 prefix.
    pub(super) fn push_delete(&mut self, slot: Slot, address: Option<u32>) {
        self.deletes.push(slot, address);
    }

    /// Writes in the order of their arrival, which the kernel's trie likes, then deletes. What can wait comes last.
    pub(super) fn pop(&mut self) -> Option<Slot> {
        let popped = self.writes.pop_front().or_else(|| self.deletes.pop());
        let popped = popped.or_else(|| self.refinements.pop_front());
        if popped.is_none() && self.writes.capacity() > KEPT {
            self.writes.shrink_to(KEPT);
            self.refinements.shrink_to(KEPT);
            self.deletes.waiting.shrink_to(KEPT);
        }
        popped
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.writes.len() + self.refinements.len() + self.deletes.waiting.len()
    }

    pub(super) fn failure(&self, slot: Slot) -> Option<&Failure> {
        if self.failures.is_empty() { None } else { self.failures.get(&slot) }
    }

    pub(super) fn failures(&self) -> usize {
        self.failures.len()
    }

    /// Books a refusal; its time comes later, and later with each.
    pub(super) fn fail(&mut self, slot: Slot, reason: String, now: Instant) {
        let attempts = self.forgive(slot).map_or(0, |failure| failure.attempts) + 1;
        let retry_at = now + backoff(attempts);
        self.retries.insert((retry_at, slot));
        self.failures.insert(slot, Failure { reason, attempts, retry_at });
    }

    /// A better reason has been found.
    pub(super) fn explain(&mut self, slot: Slot, reason: &str) -> bool {
        let failure = self.failures.get_mut(&slot);
        failure.is_some_and(|failure| {
            failure.reason = reason.to_owned();
            true
        })
    }

    /// The kernel accepted it, or it is no longer wanted.
    pub(super) fn forgive(&mut self, slot: Slot) -> Option<Failure> {
        if self.failures.is_empty() {
            return None;
        }
        let failure = self.failures.remove(&slot)?;
        self.retries.remove(&(failure.retry_at, slot));
        Some(failure)
    }

    /// A refused item whose time has come. It stays on record, with its count of attempts, until it is forgiven.
    pub(super) fn due(&mut self, now: Instant) -> Option<Slot> {
        self.retries.first().filter(|(at, _)| *at <= now)?;
        self.retries.pop_first().map(|(_, slot)| slot)
    }

    /// When the next one's comes.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// All refused items, as if their time had come.
    pub(super) fn all_due(&mut self) -> BTreeSet<(Instant, Slot)> {
        std::mem::take(&mut self.retries)
    }
}

/// What is to be deleted. Prefixes that lie side by side make the kernel's IPv4 trie rebalance again and again when they go
/// one after the other, three times as slow as in random order; prefixes that come in no order go fastest as they come,
/// since that is mostly how they lie in memory, the kernel's and ours.
#[derive(Debug)]
struct Deletes {
    waiting: VecDeque<Slot>,
    /// The addresses that came last.
    last: [u32; Deletes::LAST],
    /// How many have come since nothing waited, and how many of them lie beside one that came just before.
    come: u32,
    beside: u32,
    random: u64,
}

impl Deletes {
    /// Compared with so many: several peers may withdraw in order at once.
    const LAST: usize = 4;
    /// Addresses from one prefix to the other that are side by side: 256 times a /24.
    const BESIDE: u32 = 1 << 16;

    fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            last: [0; Self::LAST],
            come: 0,
            beside: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    fn push(&mut self, slot: Slot, address: Option<u32>) {
        if self.waiting.is_empty() {
            (self.come, self.beside) = (0, 0);
        }
        self.waiting.push_back(slot);
        if let Some(address) = address {
            let beside = self.last.iter().any(|last| last.abs_diff(address) < Self::BESIDE);
            self.beside += u32::from(beside);
            self.last[self.come as usize % Self::LAST] = address;
            self.come += 1;
        }
    }

    fn pop(&mut self) -> Option<Slot> {
        if self.beside * 4 <= self.come {
            return self.waiting.pop_front();
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let index = self.random.checked_rem(self.waiting.len() as u64)?;
        self.waiting.swap_remove_back(index as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fib::books::Books;

    fn slots(count: u8) -> Vec<Slot> {
        let mut books = Books::default();
        let net = |i| ipnetwork::IpNetwork::new([10, i, 0, 0].into(), 16).unwrap();
        (0..count).map(|i| books.find_or_insert(net(i))).collect()
    }

    #[test]
    fn a_refused_item_waits_longer_each_time_up_to_a_bound() {
        let mut queue = Queue::new();
        let slot = slots(1)[0];
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..12 {
            queue.fail(slot, "no".to_owned(), now);
            assert_eq!(queue.due(now), None);
            let at = queue.next_due().unwrap();
            waits.push((at - now).as_millis());
            now = at;
            assert_eq!(queue.due(now), Some(slot));
        }
        assert_eq!(waits[..9], [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000]);
        assert_eq!(waits[11], 15_000);
        assert_eq!(queue.failure(slot).unwrap().attempts, 12);
        queue.forgive(slot);
        assert_eq!((queue.failures(), queue.next_due()), (0, None));
    }

    #[test]
    fn deletes_that_come_in_no_order_of_addresses_go_as_they_came_and_so_do_those_of_ipv6() {
        let mut queue = Queue::new();
        let all = slots(50);
        for (slot, number) in all.iter().zip(0_u32..) {
            queue.push_delete(*slot, Some(number.wrapping_mul(0x9e37_79b9)));
        }
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), all);
        all.iter().for_each(|slot| queue.push_delete(*slot, None));
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), all);
        // Three peers that withdraw in order at once are in order all the same.
        for (slot, number) in all.iter().zip(0_u32..) {
            queue.push_delete(*slot, Some(((number % 3) << 30) + ((number / 3) << 8)));
        }
        assert!(!std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>().is_sorted());
    }

    #[test]
    fn writes_come_in_order_before_deletes_in_any_order_and_what_can_wait_comes_last() {
        let mut queue = Queue::new();
        let all = slots(70);
        all[60..].iter().for_each(|slot| queue.push_refinement(*slot));
        // Side by side, as their addresses are.
        all[..50].iter().zip(0..).for_each(|(slot, at)| queue.push_delete(*slot, Some(at << 8)));
        all[50..60].iter().for_each(|slot| queue.push_write(*slot));
        let popped: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(popped[..10], all[50..60]);
        let mut deletes = popped[10..60].to_vec();
        assert!(!deletes.is_sorted());
        deletes.sort();
        assert_eq!(deletes, all[..50]);
        assert_eq!(popped[60..], all[60..]);
        assert!(queue.is_empty());
    }
}
