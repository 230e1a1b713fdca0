//! The objects themselves: who owns each, what it should do and what the kernel has.

use smallvec::SmallVec;

use super::{Content, FIRST_ID, LAST_ID, Neighbor, NextHop, NextHopTable, Route, SetId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Nobody,
    Target(NextHop),
    Set(SetId),
}

#[derive(Debug)]
pub(super) struct Object {
    pub(super) owner: Owner,
    /// What it should do; `None`: what it does is as good as anything.
    pub(super) wanted: Option<Content>,
    /// What the kernel has; `None`: nothing.
    pub(super) actual: Option<Content>,
    /// Routes in the kernel that use it.
    pub(super) routes: usize,
    /// A predecessor's, not to be deleted before the sweep.
    pub(super) inherited: bool,
    pub(super) in_flight: bool,
}

impl Object {
    pub(super) fn new() -> Self {
        Self {
            owner: Owner::Nobody,
            wanted: None,
            actual: None,
            routes: 0,
            inherited: false,
            in_flight: false,
        }
    }

    /// One that nobody owns: a route still uses it, or it may be taken over.
    pub(super) fn stays(&self, swept: bool) -> bool {
        self.routes > 0 || (self.inherited && !swept)
    }

    /// It leads to this neighbor, or will; one of which nothing is wanted is what it is.
    pub(super) fn says(&self, neighbor: Neighbor) -> bool {
        self.wanted.as_ref().or(self.actual.as_ref()) == Some(&Content::Neighbor(neighbor))
    }

    pub(super) fn differs(&self) -> bool {
        self.wanted.is_some() && self.wanted != self.actual
    }
}

impl NextHopTable {
    /// The number, if it is in the kernel.
    pub(super) fn present(&self, id: u32) -> Option<u32> {
        self.objects[&id].actual.is_some().then_some(id)
    }

    pub(super) fn want(&mut self, id: u32, content: Option<Content>) {
        let object = self.objects.get_mut(&id).expect("an owned object is there");
        if object.wanted != content {
            object.wanted = content;
            self.failures.remove(&id);
        }
        if object.differs() && !self.failures.contains_key(&id) {
            self.work.insert(id);
        }
    }

    /// An orphan that says the same, or a new one.
    pub(super) fn own(&mut self, owner: Owner, content: Content) -> u32 {
        let alike = |id: &&u32| {
            let object = &self.objects[id];
            !object.in_flight && object.actual.as_ref() == Some(&content)
        };
        let orphan = self.orphans.iter().find(alike).copied();
        let id = orphan.unwrap_or_else(|| self.unused_id());
        self.orphans.remove(&id);
        let object = self.objects.entry(id).or_insert_with(Object::new);
        object.owner = owner;
        self.want(id, Some(content));
        id
    }

    pub(super) fn unused_id(&mut self) -> u32 {
        loop {
            let id = self.next_id;
            self.next_id = if id == LAST_ID { FIRST_ID } else { id + 1 };
            if !self.objects.contains_key(&id) && !self.taken.contains(&id) {
                return id;
            }
        }
    }

    pub(super) fn orphan(&mut self, id: u32) {
        let object = self.objects.get_mut(&id).expect("an owned object is there");
        object.owner = Owner::Nobody;
        object.wanted = None;
        self.failures.remove(&id);
        self.orphans.insert(id);
        self.work.insert(id);
    }

    /// Deletes what was inherited and is not needed, now and whenever it appears.
    pub(in crate::kernel::fib) fn sweep(&mut self) {
        self.swept = true;
        self.work.extend(&self.orphans);
    }

    pub(super) fn renumber(&mut self, id: u32) {
        let Some(object) = self.objects.remove(&id) else { return };
        self.work.remove(&id);
        self.orphans.remove(&id);
        self.failures.remove(&id);
        let owner = object.owner;
        let new = object.wanted.map(|wanted| self.own(owner, wanted));
        match owner {
            Owner::Nobody => {}
            Owner::Target(hop) => {
                let objects = &mut self.targets.get_mut(&hop).expect("an owner is there").objects;
                objects.retain(|object| *object != id);
                objects.extend(new);
            }
            Owner::Set(set) => self.set_mut(set).group = new,
        }
    }

    pub(super) fn set_actual(&mut self, id: u32, content: Option<Content>) {
        let object = self.objects.get_mut(&id).expect("the caller has seen it");
        let before = std::mem::replace(&mut object.actual, content);
        let came = before.is_none();
        let (owner, differs) = (object.owner, object.differs());
        if differs || owner == Owner::Nobody {
            self.work.insert(id);
        }
        // However it is known: the answer to the try that succeeded may have been lost.
        let recovered = !differs && self.failures.remove(&id).is_some();
        self.look_at_members(before.as_ref());
        if came || recovered {
            self.refresh_owner(owner);
        }
    }

    pub(super) fn refresh_owner(&mut self, owner: Owner) {
        match owner {
            Owner::Nobody => {}
            Owner::Target(hop) => self.refresh_all_of(hop),
            Owner::Set(set) => self.refresh_set(set),
        }
    }

    /// It is not in the kernel any more, and neither are the routes that used it.
    pub(super) fn vanish(&mut self, id: u32) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        let Some(gone) = object.actual.take() else { return };
        let owner = object.owner;
        if object.routes > 0 {
            self.vanished.push(id);
        }
        self.look_at_members(Some(&gone));
        self.failures.remove(&id);
        self.work.insert(id);
        self.refresh_owner(owner);
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.objects.remove(&id);
        self.orphans.remove(&id);
        self.failures.remove(&id);
    }

    /// Objects that went, with the routes that used them.
    pub(in crate::kernel::fib) fn take_vanished(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.vanished)
    }

    /// A route that a predecessor wrote with `object` is wanted with the next hops of `set`: is it this object?
    pub(super) fn take_over(&mut self, set: SetId, object: u32) {
        if !self.orphans.contains(&object) || self.objects[&object].in_flight {
            return;
        }
        let route = self.set(set).route.clone();
        let Route::Unicast { hops, backup } = &*route else { return };
        let members = match self.objects[&object].actual.clone() {
            Some(Content::Members(members)) => members,
            Some(Content::Neighbor(neighbor)) => {
                if let ([hop], None) = (&hops[..], backup)
                    && self.neighbors(*hop)[..] == [neighbor]
                {
                    self.adopt_target(*hop, neighbor, object);
                }
                return;
            }
            Some(Content::Strange) | None => return,
        };
        let ways = |hop: NextHop| self.neighbors(hop).into_iter().map(move |neighbor| (hop, neighbor));
        let mut alive: Vec<(NextHop, Neighbor)> = hops.iter().copied().flat_map(ways).collect();
        if alive.is_empty() {
            alive.extend(backup.iter().copied().flat_map(ways));
        }
        let mut found: SmallVec<[u32; 4]> = SmallVec::new();
        for (hop, neighbor) in &alive {
            let mine = |id: &&u32| match self.object_of(*hop, *neighbor) {
                Some(object) => object == **id,
                None => self.orphans.contains(*id) && self.objects[*id].says(*neighbor),
            };
            found.extend(members.iter().filter(|id| !found.contains(id)).find(mine).copied());
        }
        if found.len() != alive.len() || found.len() != members.len() {
            return;
        }
        for ((hop, neighbor), id) in alive.into_iter().zip(found) {
            self.adopt_target(hop, neighbor, id);
        }
        self.orphans.remove(&object);
        self.objects.get_mut(&object).expect("an orphan is there").owner = Owner::Set(set);
        self.set_mut(set).group = Some(object);
    }

    /// Its object that leads to this neighbor.
    fn object_of(&self, hop: NextHop, neighbor: Neighbor) -> Option<u32> {
        self.targets[&hop].objects.iter().copied().find(|id| self.objects[id].says(neighbor))
    }

    fn adopt_target(&mut self, hop: NextHop, neighbor: Neighbor, id: u32) {
        if self.object_of(hop, neighbor).is_none() {
            self.targets.get_mut(&hop).expect("a set's next hops are targets").objects.push(id);
            self.orphans.remove(&id);
            self.objects.get_mut(&id).expect("an orphan is there").owner = Owner::Target(hop);
        }
    }
}
