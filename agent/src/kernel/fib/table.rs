//! What should be in the kernel, what is there, and what is left to do: the FIB writer's books. Pure: time is a value.
//!
//! Each prefix has a desired and an actual route. Where they differ it is queued once, however often it changes
//! (last writer wins). What the kernel refuses waits with back-off and keeps its reason; the rest proceeds.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use rustc_hash::{FxHashMap, FxHashSet};

use super::route::Route;
use super::{Cause, FibStats, Repair, RouteState};
use crate::kernel::Family;
use crate::kernel::netlink::Refusal;

/// First wait after a refusal; doubles with each.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait between tries of one item. Events that may help (a link, an address, another owner's route going) try
/// at once, so this bounds only what nothing announces.
const LAST_RETRY: Duration = Duration::from_secs(15);
/// How many repairs are remembered by name.
const REMEMBERED: usize = 32;

/// A distinct route, interned: a million prefixes share a few next-hop sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RouteId(u32);

impl RouteId {
    /// Something of ours with a shape that we never write. Equal to no desired route.
    const STRANGE: Self = Self(0);
}

#[derive(Debug)]
struct Slot {
    route: Option<Arc<Route>>,
    references: usize,
}

/// Routes by id and back, counted.
#[derive(Debug)]
struct Interner {
    ids: FxHashMap<Arc<Route>, RouteId>,
    slots: Vec<Slot>,
    free: Vec<RouteId>,
}

impl Interner {
    fn new() -> Self {
        let strange = Slot { route: None, references: 1 };
        Self { ids: FxHashMap::default(), slots: vec![strange], free: Vec::new() }
    }

    /// Takes a reference.
    fn intern(&mut self, route: &Route) -> RouteId {
        if let Some(&id) = self.ids.get(route) {
            self.slots[id.0 as usize].references += 1;
            return id;
        }
        let route = Arc::new(route.clone());
        let slot = Slot { route: Some(route.clone()), references: 1 };
        let id = if let Some(id) = self.free.pop() {
            self.slots[id.0 as usize] = slot;
            id
        } else {
            self.slots.push(slot);
            RouteId(u32::try_from(self.slots.len() - 1).expect("memory ends before 2^32 distinct routes"))
        };
        self.ids.insert(route, id);
        id
    }

    fn retain(&mut self, id: RouteId) -> RouteId {
        self.slots[id.0 as usize].references += 1;
        id
    }

    fn release(&mut self, id: Option<RouteId>) {
        let Some(id) = id.filter(|id| *id != RouteId::STRANGE) else { return };
        let slot = &mut self.slots[id.0 as usize];
        slot.references -= 1;
        if slot.references == 0 {
            let route =
                slot.route.take().expect("only the strange slot holds no route while it is referenced");
            self.ids.remove(&route);
            self.free.push(id);
        }
    }

    fn get(&self, id: RouteId) -> Option<&Route> {
        self.slots[id.0 as usize].route.as_deref()
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    desired: Option<RouteId>,
    actual: Option<RouteId>,
    /// Found in the kernel, said nothing about yet: stays until the sweep.
    inherited: bool,
    work: Work,
    /// The dump that saw it last.
    seen: u32,
}

/// Whether a prefix waits in a queue or in a batch: it is in at most one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Work {
    #[default]
    None,
    Queued,
    InFlight,
}

impl Entry {
    fn satisfied(&self) -> bool {
        self.inherited || self.desired == self.actual
    }

    fn installed(&self) -> bool {
        self.desired.is_some() && self.desired == self.actual
    }
}

/// A refused item.
#[derive(Debug)]
struct Failure {
    reason: String,
    attempts: u32,
    retry_at: Instant,
}

/// What one message of a batch is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Create; refused when anybody holds the prefix at our metric.
    Add,
    /// Put in place of what we hold there.
    Replace,
    /// Take away what we hold there.
    Delete,
}

/// One message of a batch.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) prefix: IpNetwork,
    pub(super) operation: Operation,
    /// The route to write; referenced until the job is completed.
    route: Option<RouteId>,
}

#[derive(Debug)]
pub(super) struct Table {
    entries: FxHashMap<IpNetwork, Entry>,
    routes: Interner,
    writes: VecDeque<IpNetwork>,
    deletes: Vec<IpNetwork>,
    failures: FxHashMap<IpNetwork, Failure>,
    retries: BTreeSet<(Instant, IpNetwork)>,
    /// Prefixes where another owner's route stands beside ours at our metric.
    contested: FxHashSet<IpNetwork>,
    /// Prefixes that the kernel says exist though we do not know of them: to be looked at.
    conflicts: FxHashSet<IpNetwork>,
    lost: FxHashMap<IpNetwork, Cause>,
    swept: [bool; 2],
    generation: u32,
    random: u64,
    stats: FibStats,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            entries: FxHashMap::default(),
            routes: Interner::new(),
            writes: VecDeque::new(),
            deletes: Vec::new(),
            failures: FxHashMap::default(),
            retries: BTreeSet::new(),
            contested: FxHashSet::default(),
            conflicts: FxHashSet::default(),
            lost: FxHashMap::default(),
            swept: [false; 2],
            generation: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            stats: FibStats::default(),
        }
    }

    /// States what a prefix should be.
    pub(super) fn set(&mut self, prefix: IpNetwork, route: Option<&Route>) {
        let desired = route.map(|route| self.routes.intern(route));
        let entry = self.entries.entry(prefix).or_default();
        let old = entry.desired;
        let before = *entry;
        entry.desired = desired;
        entry.inherited = false;
        let after = *entry;
        self.count(prefix, before, after);
        self.routes.release(old);
        if old != desired {
            self.forgive(prefix);
            self.lost.remove(&prefix);
        }
        self.settle(prefix);
    }

    /// Deletes what was inherited and never confirmed, now and whenever it appears.
    pub(super) fn sweep(&mut self, family: Family) {
        self.swept[family as usize] = true;
        self.disown(family, |entry| entry.inherited);
    }

    /// Forgets every wish and deletes all that is ours.
    pub(super) fn flush_all(&mut self) {
        for family in Family::BOTH {
            self.swept[family as usize] = true;
            self.disown(family, |_| true);
        }
    }

    fn disown(&mut self, family: Family, which: impl Fn(&Entry) -> bool) {
        let prefixes: Vec<IpNetwork> = self
            .entries
            .iter()
            .filter(|(prefix, entry)| Family::of_prefix(**prefix) == family && which(entry))
            .map(|(prefix, _)| *prefix)
            .collect();
        for prefix in prefixes {
            self.set(prefix, None);
        }
    }

    /// Queues what differs, forgets what is void.
    fn settle(&mut self, prefix: IpNetwork) {
        let Some(entry) = self.entries.get_mut(&prefix) else { return };
        if entry.work != Work::None {
            return;
        }
        if !entry.satisfied() {
            if self.failures.contains_key(&prefix) {
                return; // Its time comes.
            }
            entry.work = Work::Queued;
            if entry.desired.is_some() {
                self.writes.push_back(prefix);
            } else {
                self.deletes.push(prefix);
            }
        } else if entry.desired.is_none() && entry.actual.is_none() {
            self.entries.remove(&prefix);
            self.forgive(prefix);
            self.lost.remove(&prefix);
        }
    }

    /// Takes the next jobs, at most `max`; `put` writes each message.
    pub(super) fn next_batch(
        &mut self,
        max: usize,
        jobs: &mut Vec<Job>,
        mut put: impl FnMut(IpNetwork, Operation, Option<&Route>),
    ) {
        while jobs.len() < max {
            let Some(prefix) = self.writes.pop_front().or_else(|| self.pop_delete()) else { return };
            let Some(entry) = self.entries.get_mut(&prefix) else { continue };
            entry.work = Work::None;
            let contested = entry.actual.is_some() && self.contested.contains(&prefix);
            let operation = match (entry.desired, entry.actual) {
                _ if entry.satisfied() => {
                    self.settle(prefix);
                    continue;
                }
                (Some(_), None) => Operation::Add,
                // The kernel replaces the first route at a metric, whoever owns it: step aside instead.
                (Some(_), Some(_)) if contested => Operation::Delete,
                (Some(_), Some(_)) => Operation::Replace,
                (None, _) => Operation::Delete,
            };
            entry.work = Work::InFlight;
            let route = match (operation, entry.desired) {
                (Operation::Add | Operation::Replace, Some(id)) => Some(self.routes.retain(id)),
                _ => None,
            };
            put(prefix, operation, route.and_then(|id| self.routes.get(id)));
            jobs.push(Job { prefix, operation, route });
        }
    }

    /// Deletes in random order: neighbours in the trie make the kernel rebalance it again and again.
    fn pop_delete(&mut self) -> Option<IpNetwork> {
        if self.deletes.is_empty() {
            return None;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let index = (self.random % self.deletes.len() as u64) as usize;
        Some(self.deletes.swap_remove(index))
    }

    /// Books the kernel's answers. `refusals` holds the refused ones by index, ascending.
    pub(super) fn complete(&mut self, jobs: &mut Vec<Job>, refusals: &[(usize, Refusal)], now: Instant) {
        let mut refusals = refusals.iter().peekable();
        for (index, job) in jobs.drain(..).enumerate() {
            self.landed(job.prefix);
            match refusals.next_if(|(refused, _)| *refused == index) {
                None => self.written(&job),
                // Gone before we came: the same in the end.
                Some((_, refusal)) if job.operation == Operation::Delete && refusal.errno == libc::ESRCH => {
                    self.written(&job);
                }
                Some((_, refusal)) => self.refused(&job, refusal, now),
            }
        }
    }

    /// Puts jobs back whose fate is unknown. The caller reads the kernel's table again.
    pub(super) fn give_back(&mut self, jobs: &mut Vec<Job>) {
        for job in jobs.drain(..) {
            self.landed(job.prefix);
            self.routes.release(job.route);
            self.settle(job.prefix);
        }
    }

    fn landed(&mut self, prefix: IpNetwork) {
        let entry = self.entries.get_mut(&prefix).expect("an entry stays while its job is in flight");
        entry.work = Work::None;
    }

    fn written(&mut self, job: &Job) {
        self.set_actual(job.prefix, job.route);
        self.forgive(job.prefix);
        match job.operation {
            Operation::Delete => {
                self.stats.deleted += 1;
            }
            Operation::Add | Operation::Replace => {
                self.stats.written += 1;
                if let Some(cause) = self.lost.remove(&job.prefix) {
                    self.remember(Repair { prefix: job.prefix, cause });
                }
            }
        }
        self.settle(job.prefix);
    }

    fn remember(&mut self, repair: Repair) {
        if matches!(repair.cause, Cause::Link) {
            self.stats.reinstalled += 1;
            return;
        }
        self.stats.repairs += 1;
        if self.stats.recent_repairs.len() == REMEMBERED {
            self.stats.recent_repairs.pop_front();
        }
        self.stats.recent_repairs.push_back(repair);
    }

    fn refused(&mut self, job: &Job, refusal: &Refusal, now: Instant) {
        self.routes.release(job.route);
        self.stats.refusals += 1;
        let mut reason = refusal.to_string();
        if refusal.errno == libc::EEXIST {
            reason = "the kernel has a route for it at our metric that is not ours".to_owned();
            self.conflicts.insert(job.prefix);
        }
        self.stats.last_refusal = Some(format!("{}: {reason}", job.prefix));
        if self.entries.get(&job.prefix).is_none_or(Entry::satisfied) {
            return self.settle(job.prefix);
        }
        let attempts = self.failures.get(&job.prefix).map_or(0, |failure| failure.attempts) + 1;
        let wait = (FIRST_RETRY * 2u32.saturating_pow(attempts.min(16) - 1)).min(LAST_RETRY);
        self.forgive(job.prefix);
        let retry_at = now + wait;
        self.retries.insert((retry_at, job.prefix));
        self.failures.insert(job.prefix, Failure { reason, attempts, retry_at });
    }

    /// Queues the refused items whose time has come; says when the next one's comes.
    pub(super) fn retry_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some(&(at, prefix)) = self.retries.first() {
            if at > now {
                return Some(at);
            }
            self.retries.pop_first();
            self.queue_again(prefix);
        }
        None
    }

    /// Tries all refused items at once: something changed that may help.
    pub(super) fn retry_all(&mut self) {
        for (_, prefix) in std::mem::take(&mut self.retries) {
            self.queue_again(prefix);
        }
    }

    /// The failure stays on record, with its count of attempts, until the kernel accepts.
    fn queue_again(&mut self, prefix: IpNetwork) {
        let Some(entry) = self.entries.get_mut(&prefix) else { return };
        if entry.work == Work::None && !entry.satisfied() {
            entry.work = Work::Queued;
            self.writes.push_back(prefix);
        }
    }

    fn forgive(&mut self, prefix: IpNetwork) {
        if let Some(failure) = self.failures.remove(&prefix) {
            self.retries.remove(&(failure.retry_at, prefix));
        }
    }

    /// Somebody made a change to a prefix at our metric: `held` is our route there now, `None` when it is gone.
    pub(super) fn changed(&mut self, prefix: IpNetwork, held: Held, cause: Cause) {
        let entry = self.entries.get(&prefix).copied();
        let actual = match held {
            Held::Nothing if entry.is_none_or(|entry| entry.actual.is_none()) => return,
            Held::Nothing => None,
            Held::Strange => Some(RouteId::STRANGE),
            Held::Route(route) => {
                let id = self.routes.intern(route);
                if entry.is_some_and(|entry| entry.actual == Some(id)) {
                    return self.routes.release(Some(id));
                }
                Some(id)
            }
        };
        if entry.is_none() {
            // Found or made by somebody under our name: kept until the sweep, deleted after it.
            let inherited = !self.swept[Family::of_prefix(prefix) as usize];
            self.entries.insert(prefix, Entry { inherited, ..Entry::default() });
        }
        self.set_actual(prefix, actual);
        if entry.is_some_and(|entry| entry.installed()) {
            self.lost.insert(prefix, cause);
        }
        self.settle(prefix);
    }

    /// A look at a conflict found our own route there.
    pub(super) fn adopt(&mut self, prefix: IpNetwork, route: Option<&Route>) {
        self.forgive(prefix);
        self.changed(prefix, route.map_or(Held::Strange, Held::Route), Cause::Resync);
        self.settle(prefix);
    }

    /// Whether `route` is all that we hold there; true where we hold nothing.
    pub(super) fn holds(&self, prefix: IpNetwork, route: Option<&Route>) -> bool {
        let Some(id) = self.entries.get(&prefix).and_then(|entry| entry.actual) else { return true };
        self.routes.get(id) == route
    }

    /// Another owner's route stands at our metric beside ours, or no longer does.
    pub(super) fn contest(&mut self, prefix: IpNetwork, present: bool) {
        if present {
            if self.entries.get(&prefix).is_some_and(|entry| entry.actual.is_some()) {
                self.contested.insert(prefix);
            }
            return;
        }
        self.contested.remove(&prefix);
        if self.failures.contains_key(&prefix) {
            self.forgive(prefix);
            self.settle(prefix);
        }
    }

    /// Whether any desired or actual route leaves by this link.
    pub(super) fn uses_link(&self, ifindex: u32) -> bool {
        self.routes.slots.iter().filter_map(|slot| slot.route.as_deref()).any(|route| {
            let mut links = route.links();
            links.any(|link| link == ifindex)
        })
    }

    pub(super) fn begin_dump(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// A dump shows this of ours.
    pub(super) fn seen(&mut self, prefix: IpNetwork, route: Option<&Route>, cause: Cause) {
        self.changed(prefix, route.map_or(Held::Strange, Held::Route), cause);
        if let Some(entry) = self.entries.get_mut(&prefix) {
            entry.seen = self.generation;
        }
    }

    /// The dump of a family is complete: what it did not show is not there.
    pub(super) fn end_dump(&mut self, family: Family, cause: &Cause) {
        let generation = self.generation;
        let gone: Vec<IpNetwork> = self
            .entries
            .iter()
            .filter(|(prefix, entry)| {
                entry.actual.is_some() && entry.seen != generation && Family::of_prefix(**prefix) == family
            })
            .map(|(prefix, _)| *prefix)
            .collect();
        for prefix in gone {
            self.changed(prefix, Held::Nothing, cause.clone());
        }
    }

    /// Families with prefixes that the kernel said exist though we do not hold them.
    pub(super) fn conflicting(&self, family: Family) -> bool {
        self.conflicts.iter().any(|prefix| Family::of_prefix(*prefix) == family)
    }

    pub(super) fn is_conflict(&self, prefix: IpNetwork) -> bool {
        self.conflicts.contains(&prefix)
    }

    /// Names the owner that stands in the way.
    pub(super) fn blame(&mut self, prefix: IpNetwork, reason: String) {
        if let Some(failure) = self.failures.get_mut(&prefix) {
            self.stats.last_refusal = Some(format!("{prefix}: {reason}"));
            failure.reason = reason;
        }
    }

    /// All conflicts of a family have been looked at.
    pub(super) fn conflicts_seen(&mut self, family: Family) {
        self.conflicts.retain(|prefix| Family::of_prefix(*prefix) != family);
    }

    pub(super) fn state(&self, prefix: IpNetwork) -> RouteState {
        let Some(entry) = self.entries.get(&prefix) else { return RouteState::Unknown };
        if let Some(failure) = self.failures.get(&prefix) {
            let reason = failure.reason.clone();
            return RouteState::Missing { reason, attempts: failure.attempts };
        }
        match (entry.desired, self.lost.get(&prefix)) {
            _ if entry.inherited => RouteState::Inherited,
            _ if entry.installed() => RouteState::Installed,
            (None, _) => RouteState::Removing,
            (Some(_), Some(cause)) => {
                RouteState::Missing { reason: format!("{cause}, reinstalling"), attempts: 0 }
            }
            (Some(_), None) => RouteState::Pending,
        }
    }

    /// Nothing left to write but what waits after a refusal.
    pub(super) fn idle(&self) -> bool {
        self.writes.is_empty() && self.deletes.is_empty()
    }

    pub(super) fn inherited(&self) -> bool {
        self.entries.values().any(|entry| entry.inherited)
    }

    pub(super) fn stats(&self) -> FibStats {
        let queued = self.writes.len() + self.deletes.len();
        FibStats { queued, missing: self.failures.len(), ..self.stats.clone() }
    }

    pub(super) fn stats_mut(&mut self) -> &mut FibStats {
        &mut self.stats
    }

    /// Takes over the reference that comes with `actual`.
    fn set_actual(&mut self, prefix: IpNetwork, actual: Option<RouteId>) {
        let Some(entry) = self.entries.get_mut(&prefix) else {
            return self.routes.release(actual);
        };
        let before = *entry;
        entry.actual = actual;
        let after = *entry;
        self.count(prefix, before, after);
        self.routes.release(before.actual);
        if actual.is_none() {
            self.contested.remove(&prefix);
        }
    }

    fn count(&mut self, prefix: IpNetwork, before: Entry, after: Entry) {
        let installed = &mut self.stats.installed[Family::of_prefix(prefix) as usize];
        *installed = *installed + usize::from(after.installed()) - usize::from(before.installed());
    }
}

/// What the kernel holds of ours for a prefix.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held<'a> {
    Nothing,
    /// A route in a shape that we never write.
    Strange,
    Route(&'a Route),
}
