//! What should be in the kernel, what is there, and what is left to do: the FIB writer's books. Pure: time is a value.
//!
//! Each prefix has a desired and an actual route. Where they differ it is queued once, however often it changes
//! (last writer wins). What the kernel refuses waits with back-off and keeps its reason, what has no next hop now is parked
//! with its set; the rest proceeds.

#[cfg(test)]
mod tests;

use std::time::Instant;

use ipnetwork::IpNetwork;
use rustc_hash::{FxHashMap, FxHashSet};

use super::books::{Books, Flag, Record, Slot};
use super::message::{KernelRoute, Spelling};
use super::nexthops::{Form, NextHopTable, ObjectJob, SetId};
use super::object::KernelObject;
use super::queue::Queue;
use super::route::{Neighbors, NextHop, Route};
use super::{Cause, FibStats, Repair, RouteState};
use crate::kernel::Family;
use crate::kernel::netlink::Refusal;

/// How many repairs are remembered by name.
const REMEMBERED: usize = 32;
/// Of how many prefixes it is known who took them away; beyond that it is only known that somebody did.
const LOSSES: usize = 4096;

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
    slot: Slot,
    pub(super) operation: Operation,
    /// What to write, held until the job is completed; `NOTHING` in a deletion.
    form: Form,
}

/// Somebody took a route away, and it has not been put back yet.
#[derive(Debug)]
struct Loss {
    cause: Cause,
    at: Instant,
}

#[derive(Debug)]
pub(super) struct Table {
    books: Books,
    next_hops: NextHopTable,
    queue: Queue,
    /// Prefixes where another owner's route stands beside ours at our metric.
    contested: FxHashSet<IpNetwork>,
    /// Prefixes that the kernel says exist though we do not know of them: to be looked at.
    conflicts: FxHashSet<IpNetwork>,
    lost: FxHashMap<Slot, Loss>,
    parked: usize,
    swept: [bool; 2],
    stats: FibStats,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            books: Books::default(),
            next_hops: NextHopTable::new(),
            queue: Queue::new(),
            contested: FxHashSet::default(),
            conflicts: FxHashSet::default(),
            lost: FxHashMap::default(),
            parked: 0,
            swept: [false; 2],
            stats: FibStats::default(),
        }
    }

    /// The kernel has no nexthop objects. To be said before anything is wanted.
    pub(super) fn without_objects(&mut self) {
        self.next_hops.without_objects();
    }

    // What is wanted.

    /// States what a prefix should be.
    pub(super) fn set(&mut self, prefix: IpNetwork, route: Option<&Route>) {
        let slot = match route {
            Some(_) => self.books.find_or_insert(prefix),
            None => match self.books.find(prefix) {
                Some(slot) => slot,
                None => return,
            },
        };
        let record = self.books.record_mut(slot);
        let (before, actual) = (record.desired, record.actual);
        let desired = route.map(|route| self.next_hops.intern(route, actual));
        let record = self.books.record_mut(slot);
        record.desired = desired;
        record.mark(Flag::Inherited, false);
        if before != desired {
            record.mark(Flag::Taken, false);
            self.parked -= usize::from(record.is(Flag::Parked));
            record.mark(Flag::Parked, false);
            self.queue.forgive(slot);
            forget(&mut self.lost, slot);
        }
        self.settle(slot);
        self.next_hops.release(before);
        self.follow();
    }

    /// Where packets for next hops leave.
    pub(super) fn resolve(&mut self, hops: impl IntoIterator<Item = (NextHop, Neighbors)>) {
        hops.into_iter().for_each(|(hop, neighbors)| self.next_hops.resolve(hop, neighbors));
        self.follow();
    }

    /// Nobody resolves a next hop any more.
    pub(super) fn forget(&mut self, hop: NextHop) {
        self.next_hops.forget(hop);
        self.follow();
    }

    /// Deletes what was inherited and never confirmed, now and whenever it appears.
    pub(super) fn sweep(&mut self, family: Family) {
        self.disown(family, |record| record.is(Flag::Inherited));
    }

    /// Forgets every wish and deletes all that is ours.
    pub(super) fn flush_all(&mut self) {
        Family::BOTH.into_iter().for_each(|family| self.disown(family, |_| true));
    }

    fn disown(&mut self, family: Family, which: impl Fn(&Record) -> bool) {
        self.swept[family as usize] = true;
        for slot in self.books.select(family, which) {
            self.set(self.books.prefix(slot), None);
        }
        if self.swept == [true; 2] {
            self.next_hops.sweep();
        }
    }

    // What is to be done.

    /// Takes the next jobs on objects. They come before routes, which may need them.
    pub(super) fn next_objects(&mut self, jobs: &mut Vec<ObjectJob>) {
        self.next_hops.next_batch(jobs);
    }

    /// Books the kernel's answers to them.
    pub(super) fn complete_objects(
        &mut self,
        jobs: &mut Vec<ObjectJob>,
        refusals: &[(usize, Refusal)],
        now: Instant,
    ) {
        let failed = self.next_hops.complete(jobs, refusals, now);
        self.stats.refusals += failed.len() as u64;
        if let Some(last) = failed.into_iter().last() {
            self.stats.last_refusal = Some(last);
        }
        self.follow();
    }

    /// Puts jobs back whose fate is unknown. The caller reads the kernel's objects again.
    pub(super) fn give_back_objects(&mut self, jobs: &mut Vec<ObjectJob>) {
        self.next_hops.give_back(jobs);
    }

    /// Takes the next jobs, at most `max`; `put` writes each message.
    pub(super) fn next_batch(
        &mut self,
        max: usize,
        jobs: &mut Vec<Job>,
        mut put: impl FnMut(IpNetwork, Operation, Option<Spelling<'_>>),
    ) {
        while jobs.len() < max {
            let Some(slot) = self.queue.pop() else { return };
            let record = self.books.record_mut(slot);
            record.mark(Flag::Queued, false);
            let form = record.desired.map_or(Form::NOTHING, |set| self.next_hops.form(set));
            if let (true, Some(set)) = (form == Form::NOTHING, record.desired) {
                record.mark(Flag::Parked, true);
                self.parked += 1;
                self.next_hops.park(set);
                self.queue.forgive(slot);
                continue;
            }
            if record.is(Flag::Inherited) || form == record.actual {
                self.settle(slot);
                continue;
            }
            record.mark(Flag::InFlight, true);
            let held = record.actual != Form::NOTHING;
            let prefix = self.books.prefix(slot);
            let (operation, form) = match (form, held) {
                (Form::NOTHING, _) => (Operation::Delete, Form::NOTHING),
                (form, false) => (Operation::Add, form),
                // The kernel replaces the first route at a metric, whoever owns it: step aside instead.
                (_, true) if holds(&self.contested, prefix) => (Operation::Delete, Form::NOTHING),
                (form, true) => (Operation::Replace, form),
            };
            self.next_hops.hold(form);
            put(prefix, operation, self.next_hops.spell(form));
            jobs.push(Job { slot, operation, form });
        }
    }

    /// Books the kernel's answers. `refusals` holds the refused ones by index, ascending.
    pub(super) fn complete(&mut self, jobs: &mut Vec<Job>, refusals: &[(usize, Refusal)], now: Instant) {
        let mut refusals = refusals.iter().peekable();
        for (index, job) in jobs.drain(..).enumerate() {
            match refusals.next_if(|(refused, _)| *refused == index) {
                None => self.written(&job, now),
                // Gone before we came: the same in the end.
                Some((_, refusal)) if job.operation == Operation::Delete && refusal.errno == libc::ESRCH => {
                    self.written(&job, now);
                }
                Some((_, refusal)) => self.refused(&job, refusal, now),
            }
        }
    }

    /// Puts jobs back whose fate is unknown. The caller reads the kernel's table again.
    pub(super) fn give_back(&mut self, jobs: &mut Vec<Job>) {
        for job in jobs.drain(..) {
            // One that was being tried again has no time for its next try: it is as if it had never failed.
            self.queue.forgive(job.slot);
            self.next_hops.let_go(job.form);
            self.books.record_mut(job.slot).mark(Flag::InFlight, false);
            self.settle(job.slot);
        }
    }

    fn written(&mut self, job: &Job, now: Instant) {
        self.queue.forgive(job.slot);
        let record = self.books.record_mut(job.slot);
        record.mark(Flag::InFlight, false);
        if job.operation == Operation::Delete {
            self.stats.deleted += 1;
        } else {
            self.stats.written += 1;
            if record.is(Flag::Taken) {
                record.mark(Flag::Taken, false);
                self.stats.reinstalled += 1;
            }
            if let Some(loss) = forget(&mut self.lost, job.slot) {
                let what = self.books.prefix(job.slot).to_string();
                self.repaired(what, loss, now);
            }
        }
        self.set_actual(job.slot, job.form);
    }

    fn repaired(&mut self, what: String, loss: Loss, now: Instant) {
        self.stats.repairs += 1;
        if self.stats.recent_repairs.len() == REMEMBERED {
            self.stats.recent_repairs.pop_front();
        }
        let took = now.saturating_duration_since(loss.at);
        self.stats.recent_repairs.push_back(Repair { what, cause: loss.cause, at: loss.at, took });
    }

    fn refused(&mut self, job: &Job, refusal: &Refusal, now: Instant) {
        self.next_hops.let_go(job.form);
        self.stats.refusals += 1;
        let mut reason = refusal.to_string();
        let prefix = self.books.prefix(job.slot);
        if refusal.errno == libc::EEXIST {
            reason = "the kernel has a route for it at our metric that is not ours".to_owned();
            self.conflicts.insert(prefix);
        }
        self.stats.last_refusal = Some(format!("{prefix}: {reason}"));
        self.queue.fail(job.slot, reason, now);
        self.books.record_mut(job.slot).mark(Flag::InFlight, false);
        self.settle(job.slot);
    }

    /// Queues the refused items whose time has come; says when the next one's comes.
    pub(super) fn retry_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some(slot) = self.queue.due(now) {
            self.queue_again(slot);
        }
        self.next_hops.retry_due(now).into_iter().chain(self.queue.next_due()).min()
    }

    /// Tries all refused items at once: something changed that may help.
    pub(super) fn retry_all(&mut self) {
        self.next_hops.retry_all();
        for (_, slot) in self.queue.all_due() {
            self.queue_again(slot);
        }
    }

    /// A refused item is in the books until it is forgiven.
    fn queue_again(&mut self, slot: Slot) {
        let record = self.books.record_mut(slot);
        if !record.is_busy() {
            record.mark(Flag::Queued, true);
            self.queue.push_write(slot);
        }
    }

    // What the kernel says.

    /// Somebody made a change to a prefix at our metric: `held` is our route there now.
    pub(super) fn changed(
        &mut self,
        prefix: IpNetwork,
        held: Option<&KernelRoute>,
        cause: Cause,
        now: Instant,
    ) {
        let actual = held.map_or(Form::NOTHING, |route| self.next_hops.read(route));
        let known = self.books.find(prefix);
        let before = known.map_or(Form::NOTHING, |slot| self.books.record(slot).actual);
        if before == actual {
            return self.next_hops.let_go(actual);
        }
        let slot = known.unwrap_or_else(|| self.books.find_or_insert(prefix));
        let swept = self.swept[slot.family() as usize];
        let record = self.books.record_mut(slot);
        if known.is_none() {
            // Found or made by somebody under our name: kept until the sweep, deleted after it.
            record.mark(Flag::Inherited, !swept);
        } else if record.is(Flag::Installed) {
            if matches!(cause, Cause::Link) || self.lost.len() >= LOSSES {
                record.mark(Flag::Taken, true);
            } else {
                self.lost.insert(slot, Loss { cause, at: now });
            }
        }
        self.set_actual(slot, actual);
    }

    /// A look at a conflict found our own route there.
    pub(super) fn adopt(&mut self, route: &KernelRoute, now: Instant) {
        if let Some(slot) = self.books.find(route.prefix) {
            self.queue.forgive(slot);
            self.changed(route.prefix, Some(route), Cause::Resync, now);
            if let Some(slot) = self.books.find(route.prefix) {
                self.settle(slot);
            }
        }
    }

    /// Whether `route` is all that we hold there; true where we hold nothing.
    pub(super) fn holds(&mut self, route: &KernelRoute) -> bool {
        let Some(slot) = self.books.find(route.prefix) else { return true };
        let actual = self.books.record(slot).actual;
        let form = self.next_hops.read(route);
        self.next_hops.let_go(form);
        actual == Form::NOTHING || form == actual
    }

    /// Another owner's route stands at our metric beside ours, or no longer does.
    pub(super) fn contest(&mut self, prefix: IpNetwork, present: bool) {
        let known = self.books.find(prefix);
        if !present {
            self.contested.remove(&prefix);
            if let Some(slot) = known
                && self.queue.forgive(slot).is_some()
            {
                self.settle(slot);
            }
        } else if known.is_some_and(|slot| self.books.record(slot).actual != Form::NOTHING) {
            self.contested.insert(prefix);
        }
    }

    /// Whether any desired or actual route leaves by this link.
    pub(super) fn uses_link(&self, ifindex: u32) -> bool {
        self.next_hops.uses_link(ifindex)
    }

    /// The objects will be read.
    pub(super) fn begin_objects(&mut self) {
        self.next_hops.begin_read();
    }

    /// A reading or a notification shows an object.
    pub(super) fn object_seen(&mut self, found: KernelObject, ours: bool, cause: Cause, now: Instant) {
        let id = found.id;
        if self.next_hops.seen(found, ours) {
            self.object_repair(id, cause, now);
        }
        self.follow();
    }

    /// The reading is complete: what it did not show is not there, and its routes are not.
    pub(super) fn end_objects(&mut self) {
        self.next_hops.end_read();
        self.follow();
    }

    /// Somebody deleted an object.
    pub(super) fn object_gone(&mut self, id: u32, cause: Cause, now: Instant) {
        if self.next_hops.gone(id) {
            self.object_repair(id, cause, now);
        }
        self.follow();
    }

    /// It will be put right in this very turn.
    fn object_repair(&mut self, id: u32, cause: Cause, now: Instant) {
        if !matches!(cause, Cause::Link) {
            self.repaired(self.next_hops.describe(id), Loss { cause, at: now }, now);
        }
    }

    /// The routes of a family will be read.
    pub(super) fn begin_dump(&mut self, family: Family) {
        self.stats.resyncs += 1;
        self.books.clear(family, Flag::Seen);
    }

    /// A dump shows this of ours.
    pub(super) fn seen(&mut self, route: &KernelRoute, cause: Cause, now: Instant) {
        self.changed(route.prefix, Some(route), cause, now);
        if let Some(slot) = self.books.find(route.prefix) {
            self.books.record_mut(slot).mark(Flag::Seen, true);
        }
    }

    /// The dump of a family is complete: what it did not show is not there.
    pub(super) fn end_dump(&mut self, family: Family, cause: &Cause, now: Instant) {
        let gone = |record: &Record| record.actual != Form::NOTHING && !record.is(Flag::Seen);
        for slot in self.books.select(family, gone) {
            self.changed(self.books.prefix(slot), None, cause.clone(), now);
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
        if self.books.find(prefix).is_some_and(|slot| self.queue.explain(slot, reason)) {
            self.stats.last_refusal = Some(format!("{prefix}: {reason}"));
        }
    }

    /// All conflicts of a family have been looked at.
    pub(super) fn conflicts_seen(&mut self, family: Family) {
        self.conflicts.retain(|prefix| Family::of_prefix(*prefix) != family);
    }

    // What may be asked.

    pub(super) fn state(&self, prefix: IpNetwork, now: Instant) -> RouteState {
        let Some(slot) = self.books.find(prefix) else { return RouteState::Unknown };
        let record = self.books.record(slot);
        if let Some(failure) = self.queue.failure(slot) {
            let reason = failure.reason.to_string();
            return RouteState::Missing { reason, attempts: failure.attempts };
        }
        if record.is(Flag::Inherited) {
            return RouteState::Inherited;
        }
        let Some(set) = record.desired else { return RouteState::Removing };
        if record.is(Flag::Installed) {
            return RouteState::Installed;
        }
        if record.is(Flag::Parked) {
            let (reason, attempts) = self.next_hops.reason(set);
            return RouteState::Missing { reason, attempts };
        }
        let reason = match self.lost.get(&slot) {
            Some(Loss { cause, at }) => {
                let ago = now.saturating_duration_since(*at).as_secs();
                format!("{cause} {ago} s ago, reinstalling")
            }
            None if record.is(Flag::Taken) => format!("{}, reinstalling", Cause::Link),
            None => return RouteState::Pending,
        };
        RouteState::Missing { reason, attempts: 0 }
    }

    /// Whether a predecessor's routes are there that nobody has asked for.
    pub(super) fn inherited(&self) -> bool {
        Family::BOTH
            .into_iter()
            .any(|family| !self.books.select(family, |record| record.is(Flag::Inherited)).is_empty())
    }

    /// Nothing left to write but what waits after a refusal.
    pub(super) fn idle(&self) -> bool {
        self.queue.is_empty() && !self.next_hops.has_work()
    }

    /// Objects are to be written, before anything else.
    pub(super) fn has_objects(&self) -> bool {
        self.next_hops.has_work()
    }

    pub(super) fn stats(&self) -> FibStats {
        FibStats {
            queued: self.queue.len(),
            missing: self.queue.failures() + self.parked,
            objects: self.next_hops.uses_objects().then(|| self.next_hops.objects()),
            ..self.stats.clone()
        }
    }

    pub(super) fn stats_mut(&mut self) -> &mut FibStats {
        &mut self.stats
    }

    // The books.

    /// Takes over the hold on `actual`.
    fn set_actual(&mut self, slot: Slot, actual: Form) {
        let record = self.books.record_mut(slot);
        let before = std::mem::replace(&mut record.actual, actual);
        if actual == Form::NOTHING && !self.contested.is_empty() {
            let prefix = self.books.prefix(slot);
            self.contested.remove(&prefix);
        }
        self.settle(slot);
        self.next_hops.let_go(before);
    }

    /// Draws the conclusions from a record: counts it, queues it where desired and actual differ (what failed waits for its
    /// time), and forgets it where there is nothing to remember.
    fn settle(&mut self, slot: Slot) {
        let record = self.books.record_mut(slot);
        let form = record.desired.map_or(Form::NOTHING, |set| self.next_hops.form(set));
        let installed = form != Form::NOTHING && form == record.actual;
        if installed != record.is(Flag::Installed) {
            record.mark(Flag::Installed, installed);
            let count = &mut self.stats.installed[slot.family() as usize];
            *count = *count + usize::from(installed) - usize::from(!installed);
        }
        if record.is_busy() {
            return;
        }
        let waits = record.desired.is_some() && form == Form::NOTHING;
        if record.is(Flag::Parked) {
            if waits {
                return;
            }
            record.mark(Flag::Parked, false);
            self.parked -= 1;
        }
        if record.is(Flag::Inherited) || (form == record.actual && !waits) {
            self.queue.forgive(slot);
            if record.is_void() {
                forget(&mut self.lost, slot);
                self.books.remove(slot);
            }
        } else if self.queue.failure(slot).is_none() {
            record.mark(Flag::Queued, true);
            match record.desired {
                None => self.queue.push_delete(slot, self.books.ipv4_address(slot)),
                Some(set) if self.next_hops.forwards_alike(set, record.actual) => {
                    self.queue.push_refinement(slot);
                }
                Some(_) => self.queue.push_write(slot),
            }
        }
    }

    /// What became of next hops, for the prefixes concerned: routes that went with an object, sets that look different now.
    fn follow(&mut self) {
        let (gone, reformed) = (self.next_hops.take_vanished(), self.next_hops.take_reformed());
        if gone.is_empty() && reformed.is_empty() {
            return;
        }
        let gone: FxHashSet<Form> = gone.into_iter().map(Form::object).collect();
        let reformed: FxHashSet<SetId> = reformed.into_iter().collect();
        let concerned = |record: &Record| {
            (!gone.is_empty() && gone.contains(&record.actual))
                || record.desired.is_some_and(|set| reformed.contains(&set))
        };
        for family in Family::BOTH {
            for slot in self.books.select(family, concerned) {
                let record = self.books.record_mut(slot);
                if gone.contains(&record.actual) {
                    let installed = record.is(Flag::Installed);
                    record.mark(Flag::Taken, installed || record.is(Flag::Taken));
                    self.set_actual(slot, Form::NOTHING);
                } else {
                    self.settle(slot);
                }
            }
        }
    }
}

/// Empty but in rare moments: not even the hash is worth computing then.
fn forget(lost: &mut FxHashMap<Slot, Loss>, slot: Slot) -> Option<Loss> {
    if lost.is_empty() { None } else { lost.remove(&slot) }
}

fn holds(contested: &FxHashSet<IpNetwork>, prefix: IpNetwork) -> bool {
    !contested.is_empty() && contested.contains(&prefix)
}
