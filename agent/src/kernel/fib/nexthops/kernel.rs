//! What the kernel says of objects, in readings and in notifications.

use super::objects::{Object, Owner};
use super::{Content, FIRST_ID, LAST_ID, NextHopTable};
use crate::kernel::fib::object::KernelObject;

impl NextHopTable {
    pub(in crate::kernel::fib) fn begin_read(&mut self) {
        self.unseen =
            self.objects.iter().filter(|(_, object)| object.actual.is_some()).map(|(id, _)| *id).collect();
        self.taken.clear();
    }

    /// A reading or a notification shows an object; `ours` by its protocol number. Whether it is not as it should be.
    pub(in crate::kernel::fib) fn seen(&mut self, found: KernelObject, ours: bool) -> bool {
        let id = found.id;
        if !(FIRST_ID..=LAST_ID).contains(&id) {
            return false;
        }
        if !ours {
            // It has the number of one of ours only if that one is gone.
            self.taken.insert(id);
            let held = self.objects.contains_key(&id);
            self.vanish(id);
            self.renumber(id);
            return held;
        }
        self.unseen.remove(&id);
        let object = self.objects.entry(id).or_insert_with(|| {
            self.orphans.insert(id);
            Object { inherited: true, ..Object::new() }
        });
        let news = object.actual.as_ref() != Some(&found.content);
        if news {
            self.set_actual(id, Some(found.content));
        }
        news && self.objects.get(&id).is_some_and(Object::differs)
    }

    /// The reading is complete: what it did not show is not there. How many that are.
    pub(in crate::kernel::fib) fn end_read(&mut self) -> usize {
        let gone = std::mem::take(&mut self.unseen);
        gone.iter().for_each(|id| self.vanish(*id));
        gone.len()
    }

    /// Somebody deleted it. Whether it was needed.
    pub(in crate::kernel::fib) fn gone(&mut self, id: u32) -> bool {
        self.taken.remove(&id);
        let needed = self
            .objects
            .get(&id)
            .is_some_and(|object| object.actual.is_some() && object.owner != Owner::Nobody);
        self.vanish(id);
        needed
    }

    /// An object in words.
    pub(in crate::kernel::fib) fn describe(&self, id: u32) -> String {
        match self.objects.get(&id).map(|object| object.owner) {
            Some(Owner::Target(hop)) => format!("nexthop object {id} for {hop}"),
            Some(Owner::Set(set)) => format!("nexthop group {id} for routes {}", self.set(set).route),
            _ => format!("nexthop object {id}"),
        }
    }

    /// Whether any next hop leaves by this link.
    pub(in crate::kernel::fib) fn uses_link(&self, ifindex: u32) -> bool {
        let on = |content: &Option<Content>| matches!(content, Some(Content::Neighbor(neighbor)) if neighbor.ifindex == ifindex);
        self.objects.values().any(|object| on(&object.wanted) || on(&object.actual))
            || self.inlines.iter().any(|neighbor| neighbor.ifindex == ifindex)
    }
}
