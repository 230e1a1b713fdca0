//! What has to be written, in which order, and what becomes of it.

use std::time::Instant;

use rustc_hash::FxHashSet;

use super::objects::Owner;
use super::{Content, Failure, NextHopTable};
use crate::kernel::fib::queue::backoff;
use crate::kernel::netlink::Refusal;

/// What one message of an object batch is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernel::fib) enum ObjectOperation {
    /// Refused when anybody has the number.
    Create,
    /// Changes what is there, for all that use it.
    Replace,
    /// Nothing uses it any more.
    Delete,
}

/// One message of an object batch.
#[derive(Debug)]
pub(in crate::kernel::fib) struct ObjectJob {
    pub(in crate::kernel::fib) id: u32,
    pub(in crate::kernel::fib) operation: ObjectOperation,
    /// What to write; `None` in a deletion.
    pub(in crate::kernel::fib) content: Option<Content>,
}

impl NextHopTable {
    /// Takes the next jobs: what has to be there before routes, members before groups, and what can go, groups first.
    pub(in crate::kernel::fib) fn next_batch(&mut self, jobs: &mut Vec<ObjectJob>) {
        let mut deletes = Vec::new();
        let in_use = self.members_in_use();
        for id in std::mem::take(&mut self.work) {
            let Some(object) = self.objects.get_mut(&id) else { continue };
            if object.in_flight {
                continue;
            }
            if object.owner == Owner::Nobody {
                let kept = object.stays(self.swept) || in_use.contains(&id);
                if object.actual.is_none() {
                    self.remove(id);
                } else if !kept {
                    object.in_flight = true;
                    deletes.push(ObjectJob { id, operation: ObjectOperation::Delete, content: None });
                }
                continue;
            }
            if !object.differs() {
                continue;
            }
            let operation = match object.actual {
                None => ObjectOperation::Create,
                Some(_) => ObjectOperation::Replace,
            };
            object.in_flight = true;
            jobs.push(ObjectJob { id, operation, content: object.wanted.clone() });
        }
        // Single ones before groups: a group that is refused now is tried again as soon as its members are there.
        jobs.sort_by_key(|job| matches!(job.content, Some(Content::Members(_))));
        deletes.sort_by_key(|job| {
            let object = &self.objects[&job.id];
            !matches!(object.actual, Some(Content::Members(_)))
        });
        jobs.append(&mut deletes);
    }

    /// Members of groups that stay though nobody owns them. The kernel takes a member out of its groups when it goes, and with
    /// the last one the group and its routes; so they wait for the group.
    pub(super) fn members_in_use(&self) -> FxHashSet<u32> {
        let groups = self.orphans.iter().filter_map(|id| self.objects.get(id));
        let staying = groups.filter(|group| group.in_flight || group.stays(self.swept));
        staying.filter_map(|group| group.actual.as_ref()).flat_map(Content::members).copied().collect()
    }

    /// A group is gone, or another: of its members some may go as well now.
    pub(super) fn look_at_members(&mut self, group: Option<&Content>) {
        let members = group.into_iter().flat_map(Content::members);
        self.work.extend(members.filter(|member| self.orphans.contains(member)));
    }

    /// Whether there are jobs.
    pub(in crate::kernel::fib) fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    /// Books the kernel's answers. `refusals` holds the refused ones by index, ascending. What could not be written, in words.
    pub(in crate::kernel::fib) fn complete(
        &mut self,
        jobs: &mut Vec<ObjectJob>,
        refusals: &[(usize, Refusal)],
        now: Instant,
    ) -> Vec<String> {
        let mut failed = Vec::new();
        let mut refusals = refusals.iter().peekable();
        for (index, job) in jobs.drain(..).enumerate() {
            let refusal = refusals.next_if(|(refused, _)| *refused == index).map(|(_, refusal)| refusal);
            if let Some(object) = self.objects.get_mut(&job.id) {
                object.in_flight = false;
                let id = job.id;
                self.answered(job, refusal, now);
                let failure = self.failures.get(&id).filter(|_| refusal.is_some());
                failed.extend(failure.map(|failure| format!("{}: {}", self.describe(id), failure.reason)));
            }
        }
        failed
    }

    pub(super) fn answered(&mut self, job: ObjectJob, refusal: Option<&Refusal>, now: Instant) {
        let id = job.id;
        match (job.operation, refusal.map(|refusal| refusal.errno)) {
            (ObjectOperation::Delete, None | Some(libc::ENOENT)) => {
                let object = self.objects.get_mut(&id).expect("the caller has seen it");
                let gone = object.actual.take();
                self.work.insert(id);
                self.look_at_members(gone.as_ref());
            }
            (_, None) => self.set_actual(id, job.content),
            // Somebody has our number: we take another.
            (ObjectOperation::Create, Some(libc::EEXIST)) => {
                self.taken.insert(id);
                self.renumber(id);
            }
            (ObjectOperation::Replace, Some(libc::ENOENT)) => self.vanish(id),
            (_, Some(_)) => {
                let reason = refusal.map(ToString::to_string).unwrap_or_default();
                let attempts = self.failures.get(&id).map_or(0, |failure| failure.attempts) + 1;
                let retry_at = now + backoff(attempts);
                self.failures.insert(id, Failure { reason, attempts, retry_at });
                let owner = self.objects.get(&id).map(|object| object.owner).filter(|_| attempts == 1);
                if let Some(owner) = owner {
                    self.refresh_owner(owner);
                }
            }
        }
    }

    /// Puts jobs back whose fate is unknown. The caller reads the kernel's objects again.
    pub(in crate::kernel::fib) fn give_back(&mut self, jobs: &mut Vec<ObjectJob>) {
        for job in jobs.drain(..) {
            if let Some(object) = self.objects.get_mut(&job.id) {
                object.in_flight = false;
                self.work.insert(job.id);
            }
        }
    }

    /// Tries the refused objects whose time has come; says when the next one's comes.
    pub(in crate::kernel::fib) fn retry_due(&mut self, now: Instant) -> Option<Instant> {
        let failing = self.failures.iter();
        self.work.extend(failing.filter(|(_, failure)| failure.retry_at <= now).map(|(id, _)| *id));
        self.failures.values().map(|failure| failure.retry_at).filter(|at| *at > now).min()
    }

    /// Tries all refused objects: something changed that may help.
    pub(in crate::kernel::fib) fn retry_all(&mut self) {
        self.work.extend(self.failures.keys());
    }
}
