//! What should be in the kernel, what is there, and what is left to do: the FIB writer's books. Pure: time is a value.
//!
//! Each prefix has a desired and an actual route. Where they differ it is queued once, however often it changes
//! (last writer wins). What the kernel refuses waits with back-off and keeps its reason; the rest proceeds.

#[cfg(test)]
mod tests;

use std::time::Instant;

use ipnetwork::IpNetwork;
use rustc_hash::{FxHashMap, FxHashSet};

use super::intern::{Interner, RouteId};
use super::queue::Queue;
use super::route::Route;
use super::{Cause, FibStats, Repair, RouteState};
use crate::kernel::Family;
use crate::kernel::netlink::Refusal;

/// How many repairs are remembered by name.
const REMEMBERED: usize = 32;

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

    fn void(&self) -> bool {
        self.desired.is_none() && self.actual.is_none() && self.work == Work::None
    }
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

/// What the kernel holds of ours for a prefix.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held<'a> {
    Nothing,
    /// A route in a shape that we never write.
    Strange,
    Route(&'a Route),
}

#[derive(Debug)]
pub(super) struct Table {
    entries: FxHashMap<IpNetwork, Entry>,
    routes: Interner,
    queue: Queue,
    /// Prefixes where another owner's route stands beside ours at our metric.
    contested: FxHashSet<IpNetwork>,
    /// Prefixes that the kernel says exist though we do not know of them: to be looked at.
    conflicts: FxHashSet<IpNetwork>,
    /// What somebody took away and has not been put back yet.
    lost: FxHashMap<IpNetwork, Cause>,
    swept: [bool; 2],
    generation: u32,
    stats: FibStats,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            entries: FxHashMap::default(),
            routes: Interner::new(),
            queue: Queue::new(),
            contested: FxHashSet::default(),
            conflicts: FxHashSet::default(),
            lost: FxHashMap::default(),
            swept: [false; 2],
            generation: 0,
            stats: FibStats::default(),
        }
    }

    /// States what a prefix should be.
    pub(super) fn set(&mut self, prefix: IpNetwork, route: Option<&Route>) {
        let desired = route.map(|route| self.routes.intern(route));
        let entry = self.entries.entry(prefix).or_default();
        let before = *entry;
        entry.desired = desired;
        entry.inherited = false;
        if before.desired != desired {
            self.queue.forgive(prefix);
            forget(&mut self.lost, prefix);
        }
        settle(&mut self.queue, prefix, entry);
        count(&mut self.stats, prefix, before, *entry);
        if entry.void() {
            self.entries.remove(&prefix);
        }
        self.routes.release(before.desired);
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
        for prefix in self.select(family, which) {
            self.set(prefix, None);
        }
    }

    fn select(&self, family: Family, which: impl Fn(&Entry) -> bool) -> Vec<IpNetwork> {
        let of_family = self.entries.iter().filter(|(prefix, _)| Family::of_prefix(**prefix) == family);
        of_family.filter(|(_, entry)| which(entry)).map(|(prefix, _)| *prefix).collect()
    }

    /// Changes an entry that is there, queues it where it now differs, and forgets it where it is void. Returns what it
    /// was before.
    fn change(&mut self, prefix: IpNetwork, change: impl FnOnce(&mut Entry)) -> Option<Entry> {
        let entry = self.entries.get_mut(&prefix)?;
        let before = *entry;
        change(entry);
        settle(&mut self.queue, prefix, entry);
        count(&mut self.stats, prefix, before, *entry);
        if entry.void() {
            self.entries.remove(&prefix);
            forget(&mut self.lost, prefix);
        }
        Some(before)
    }

    /// Takes the next jobs, at most `max`; `put` writes each message.
    pub(super) fn next_batch(
        &mut self,
        max: usize,
        jobs: &mut Vec<Job>,
        mut put: impl FnMut(IpNetwork, Operation, Option<&Route>),
    ) {
        while jobs.len() < max {
            let Some(prefix) = self.queue.pop() else { return };
            let Some(entry) = self.entries.get_mut(&prefix) else { continue };
            let operation = match (entry.desired, entry.actual) {
                _ if entry.satisfied() => {
                    self.change(prefix, |entry| entry.work = Work::None);
                    continue;
                }
                (Some(_), None) => Operation::Add,
                // The kernel replaces the first route at a metric, whoever owns it: step aside instead.
                (Some(_), Some(_)) if holds(&self.contested, prefix) => Operation::Delete,
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

    /// Books the kernel's answers. `refusals` holds the refused ones by index, ascending.
    pub(super) fn complete(&mut self, jobs: &mut Vec<Job>, refusals: &[(usize, Refusal)], now: Instant) {
        let mut refusals = refusals.iter().peekable();
        for (index, job) in jobs.drain(..).enumerate() {
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
            // One that was being tried again has no time for its next try: it is as if it had never failed.
            self.queue.forgive(job.prefix);
            self.change(job.prefix, |entry| entry.work = Work::None);
            self.routes.release(job.route);
        }
    }

    fn written(&mut self, job: &Job) {
        self.queue.forgive(job.prefix);
        if job.operation == Operation::Delete {
            self.stats.deleted += 1;
        } else {
            self.stats.written += 1;
            if let Some(cause) = forget(&mut self.lost, job.prefix) {
                self.remember(Repair { prefix: job.prefix, cause });
            }
        }
        self.set_actual(job.prefix, job.route, |entry| entry.work = Work::None);
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
        self.queue.fail(job.prefix, reason, now);
        self.change(job.prefix, |entry| entry.work = Work::None);
    }

    /// Queues the refused items whose time has come; says when the next one's comes.
    pub(super) fn retry_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some(prefix) = self.queue.due(now) {
            self.queue_again(prefix);
        }
        self.queue.next_due()
    }

    /// Tries all refused items at once: something changed that may help.
    pub(super) fn retry_all(&mut self) {
        for (_, prefix) in self.queue.all_due() {
            self.queue_again(prefix);
        }
    }

    fn queue_again(&mut self, prefix: IpNetwork) {
        let Some(entry) = self.entries.get_mut(&prefix) else { return };
        if entry.work == Work::None && !entry.satisfied() {
            entry.work = Work::Queued;
            self.queue.push_write(prefix);
        }
    }

    /// Somebody made a change to a prefix at our metric: `held` is our route there now.
    pub(super) fn changed(&mut self, prefix: IpNetwork, held: Held, cause: Cause) {
        let known = self.entries.get(&prefix).copied();
        let actual = match held {
            Held::Nothing => None,
            Held::Strange => Some(RouteId::STRANGE),
            Held::Route(route) => Some(self.routes.intern(route)),
        };
        if known.map_or(actual.is_none(), |entry| entry.actual == actual) {
            return self.routes.release(actual);
        }
        match known {
            None => {
                // Found or made by somebody under our name: kept until the sweep, deleted after it.
                let inherited = !self.swept[Family::of_prefix(prefix) as usize];
                self.entries.insert(prefix, Entry { inherited, ..Entry::default() });
            }
            Some(entry) if entry.installed() => drop(self.lost.insert(prefix, cause)),
            Some(_) => {}
        }
        self.set_actual(prefix, actual, |_| {});
    }

    /// A look at a conflict found our own route there.
    pub(super) fn adopt(&mut self, prefix: IpNetwork, route: Option<&Route>) {
        self.queue.forgive(prefix);
        self.changed(prefix, route.map_or(Held::Strange, Held::Route), Cause::Resync);
        self.change(prefix, |_| {});
    }

    /// Whether `route` is all that we hold there; true where we hold nothing.
    pub(super) fn holds(&self, prefix: IpNetwork, route: Option<&Route>) -> bool {
        let Some(id) = self.entries.get(&prefix).and_then(|entry| entry.actual) else { return true };
        self.routes.get(id) == route
    }

    /// Another owner's route stands at our metric beside ours, or no longer does.
    pub(super) fn contest(&mut self, prefix: IpNetwork, present: bool) {
        if !present {
            self.contested.remove(&prefix);
            if self.queue.forgive(prefix).is_some() {
                self.change(prefix, |_| {});
            }
        } else if self.entries.get(&prefix).is_some_and(|entry| entry.actual.is_some()) {
            self.contested.insert(prefix);
        }
    }

    /// Whether any desired or actual route leaves by this link.
    pub(super) fn uses_link(&self, ifindex: u32) -> bool {
        self.routes.iter().any(|route| route.links().any(|link| link == ifindex))
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
        for prefix in self.select(family, |entry| entry.actual.is_some() && entry.seen != generation) {
            self.changed(prefix, Held::Nothing, cause.clone());
        }
    }

    /// Whether a family has prefixes that the kernel said exist though we do not hold them.
    pub(super) fn conflicting(&self, family: Family) -> bool {
        self.conflicts.iter().any(|prefix| Family::of_prefix(*prefix) == family)
    }

    pub(super) fn is_conflict(&self, prefix: IpNetwork) -> bool {
        self.conflicts.contains(&prefix)
    }

    /// Names the owner that stands in the way.
    pub(super) fn blame(&mut self, prefix: IpNetwork, reason: &str) {
        if self.queue.explain(prefix, reason) {
            self.stats.last_refusal = Some(format!("{prefix}: {reason}"));
        }
    }

    /// All conflicts of a family have been looked at.
    pub(super) fn conflicts_seen(&mut self, family: Family) {
        self.conflicts.retain(|prefix| Family::of_prefix(*prefix) != family);
    }

    pub(super) fn state(&self, prefix: IpNetwork) -> RouteState {
        let Some(entry) = self.entries.get(&prefix) else { return RouteState::Unknown };
        if let Some(failure) = self.queue.failure(prefix) {
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

    /// Whether a predecessor's routes are there that nobody has asked for.
    pub(super) fn inherited(&self) -> bool {
        self.entries.values().any(|entry| entry.inherited)
    }

    /// Nothing left to write but what waits after a refusal.
    pub(super) fn idle(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn stats(&self) -> FibStats {
        FibStats { queued: self.queue.len(), missing: self.queue.failures(), ..self.stats.clone() }
    }

    pub(super) fn stats_mut(&mut self) -> &mut FibStats {
        &mut self.stats
    }

    /// Takes over the reference that comes with `actual`.
    fn set_actual(&mut self, prefix: IpNetwork, actual: Option<RouteId>, change: impl FnOnce(&mut Entry)) {
        let before = self.change(prefix, |entry| {
            entry.actual = actual;
            change(entry);
        });
        let before = before.expect("an entry stays while its job is in flight, or was looked up just now");
        self.routes.release(before.actual);
        if actual.is_none() && !self.contested.is_empty() {
            self.contested.remove(&prefix);
        }
    }
}

/// Queues what differs; what failed waits for its time.
fn settle(queue: &mut Queue, prefix: IpNetwork, entry: &mut Entry) {
    if entry.work != Work::None {
        return;
    }
    if entry.satisfied() {
        queue.forgive(prefix);
    } else if queue.failure(prefix).is_none() {
        entry.work = Work::Queued;
        if entry.desired.is_some() {
            queue.push_write(prefix);
        } else {
            queue.push_delete(prefix);
        }
    }
}

fn count(stats: &mut FibStats, prefix: IpNetwork, before: Entry, after: Entry) {
    let installed = &mut stats.installed[Family::of_prefix(prefix) as usize];
    *installed = *installed + usize::from(after.installed()) - usize::from(before.installed());
}

/// Both are empty but in rare moments: not even the hash is worth computing then.
fn forget(lost: &mut FxHashMap<IpNetwork, Cause>, prefix: IpNetwork) -> Option<Cause> {
    if lost.is_empty() { None } else { lost.remove(&prefix) }
}

fn holds(contested: &FxHashSet<IpNetwork>, prefix: IpNetwork) -> bool {
    !contested.is_empty() && contested.contains(&prefix)
}
