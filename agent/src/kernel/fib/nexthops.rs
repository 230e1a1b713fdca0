//! Next hops, the sets of them that routes share, and the nexthop objects that stand for both in the kernel. Pure.
//!
//! ```text
//! route --> set { next hops, backup } --> group object --> members
//!             |  one next hop, no backup       ^ those that resolve, else the backup
//!             +--------------------> object of a next hop --> the neighbor that it resolves to
//! ```
//!
//! A next hop that moves or dies costs one object, and one group for each set that it is in, however many routes lead
//! there. Where the kernel has no such objects (before Linux 5.3) a set is spelled out in each of its routes, and a change
//! is a change of its routes; [`Form`] is what hides the difference from the rest.
//!
//! An object exists as long as a set needs it or a route in the kernel uses it: the kernel deletes routes together with
//! their object. What a predecessor left is taken over where it says what is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::message::{KernelRoute, Spelling};
use super::object::{Content, KernelObject};
use super::queue::backoff;
use super::route::{Neighbor, NextHop, Route};
use crate::kernel::netlink::Refusal;

/// The numbers of our objects.
pub(super) const FIRST_ID: u32 = 0x4d00_0000;
const LAST_ID: u32 = 0x4dff_ffff;

/// What the kernel holds for a prefix, or should hold, in four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form(u32);

impl Form {
    /// No route of ours.
    pub(super) const NOTHING: Self = Self(0);
    /// A route of ours in a shape that we never write.
    pub(super) const STRANGE: Self = Self(1);
    /// Drops.
    pub(super) const BLACKHOLE: Self = Self(2);
    /// From here on, and below the numbers of objects: next hops in the route itself.
    const FIRST_INLINE: u32 = 3;

    /// A route that uses a nexthop object.
    pub(super) fn object(id: u32) -> Self {
        debug_assert!((FIRST_ID..=LAST_ID).contains(&id));
        Self(id)
    }

    fn inline(at: usize) -> Self {
        let at = u32::try_from(at).ok().and_then(|at| at.checked_add(Self::FIRST_INLINE));
        Self(at.filter(|at| *at < FIRST_ID).expect("memory ends before 2^30 distinct lists of next hops"))
    }

    /// The object that it uses.
    pub(super) fn id(self) -> Option<u32> {
        (FIRST_ID..=LAST_ID).contains(&self.0).then_some(self.0)
    }

    fn inline_at(self) -> Option<usize> {
        (Self::FIRST_INLINE..FIRST_ID).contains(&self.0).then(|| (self.0 - Self::FIRST_INLINE) as usize)
    }
}

/// A route that is wanted somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SetId(std::num::NonZeroU32);

impl SetId {
    fn new(at: usize) -> Self {
        let number = u32::try_from(at + 1).ok().and_then(std::num::NonZeroU32::new);
        Self(number.expect("memory ends before 2^32 distinct routes"))
    }

    fn at(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[derive(Debug)]
struct Set {
    route: Arc<Route>,
    /// Prefixes that want it.
    uses: usize,
    /// Its own group.
    group: Option<u32>,
    /// What its routes look like; `NOTHING`: they cannot be written now.
    form: Form,
    /// Prefixes wait for a form.
    parked: bool,
}

#[derive(Debug, Default)]
struct Target {
    /// What it resolves to, if anybody has said.
    word: Option<Option<Neighbor>>,
    object: Option<u32>,
    sets: Vec<SetId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    Target(NextHop),
    Set(SetId),
}

#[derive(Debug)]
struct Object {
    owner: Owner,
    /// What it should do; `None`: what it does is as good as anything.
    wanted: Option<Content>,
    /// What the kernel has; `None`: nothing.
    actual: Option<Content>,
    /// Routes in the kernel that use it.
    routes: usize,
    /// A predecessor's, not to be deleted before the sweep.
    inherited: bool,
    in_flight: bool,
}

#[derive(Debug)]
struct Failure {
    reason: String,
    attempts: u32,
    retry_at: Instant,
}

/// What one message of an object batch is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ObjectOperation {
    /// Refused when anybody has the number.
    Create,
    /// Changes what is there, for all that use it.
    Replace,
    /// Nothing uses it any more.
    Delete,
}

/// One message of an object batch.
#[derive(Debug)]
pub(super) struct ObjectJob {
    pub(super) id: u32,
    pub(super) operation: ObjectOperation,
    /// What to write; `None` in a deletion.
    pub(super) content: Option<Content>,
}

#[derive(Debug)]
pub(super) struct NextHopTable {
    /// The kernel has nexthop objects.
    objects_in_use: bool,
    sets: Vec<Option<Set>>,
    free: Vec<SetId>,
    by_route: FxHashMap<Arc<Route>, SetId>,
    /// Most routes want what the one before wanted.
    latest: Option<SetId>,
    targets: FxHashMap<NextHop, Target>,
    objects: FxHashMap<u32, Object>,
    /// Objects of ours that nobody needs: to be taken over or deleted.
    orphans: BTreeSet<u32>,
    /// Numbers that somebody else uses.
    taken: FxHashSet<u32>,
    next_id: u32,
    /// Objects to look at: those that differ, and orphans.
    work: BTreeSet<u32>,
    failures: BTreeMap<u32, Failure>,
    /// Objects that the reading under way has not shown yet.
    unseen: BTreeSet<u32>,
    /// Objects that are gone, and with them the routes that used them.
    vanished: Vec<u32>,
    /// Sets that have a form now, or another one.
    reformed: Vec<SetId>,
    inlines: Inlines,
    swept: bool,
}

impl NextHopTable {
    pub(super) fn new() -> Self {
        Self {
            objects_in_use: true,
            sets: Vec::new(),
            free: Vec::new(),
            by_route: FxHashMap::default(),
            latest: None,
            targets: FxHashMap::default(),
            objects: FxHashMap::default(),
            orphans: BTreeSet::new(),
            taken: FxHashSet::default(),
            next_id: FIRST_ID,
            work: BTreeSet::new(),
            failures: BTreeMap::new(),
            unseen: BTreeSet::new(),
            vanished: Vec::new(),
            reformed: Vec::new(),
            inlines: Inlines::default(),
            swept: false,
        }
    }

    /// The kernel has no nexthop objects. To be said before anything is wanted.
    pub(super) fn without_objects(&mut self) {
        debug_assert!(self.sets.is_empty());
        self.objects_in_use = false;
    }

    pub(super) fn uses_objects(&self) -> bool {
        self.objects_in_use
    }

    /// Our objects in the kernel.
    pub(super) fn objects(&self) -> usize {
        self.objects.values().filter(|object| object.actual.is_some()).count()
    }

    // Sets.

    /// The number of a wanted route, used once more. `held` is what the kernel has there now: of several objects that a
    /// predecessor left alike it tells which one was meant.
    pub(super) fn intern(&mut self, route: &Route, held: Form) -> SetId {
        if let Some(latest) = self.latest
            && let Some(set) = &mut self.sets[latest.at()]
            && *set.route == *route
        {
            set.uses += 1;
            return latest;
        }
        let id = match self.by_route.get(route) {
            Some(id) => *id,
            None => self.create_set(route, held),
        };
        self.latest = Some(id);
        self.set_mut(id).uses += 1;
        id
    }

    fn create_set(&mut self, route: &Route, held: Form) -> SetId {
        let route = Arc::new(route.clone());
        let form = if *route == Route::Blackhole { Form::BLACKHOLE } else { Form::NOTHING };
        let set = Set { route: route.clone(), uses: 0, group: None, form, parked: false };
        let id = match self.free.pop() {
            Some(id) => {
                self.sets[id.at()] = Some(set);
                id
            }
            None => {
                self.sets.push(Some(set));
                SetId::new(self.sets.len() - 1)
            }
        };
        self.by_route.insert(route.clone(), id);
        for hop in route.mentions() {
            self.targets.entry(hop).or_default().sets.push(id);
        }
        if let Some(object) = held.id() {
            self.take_over(id, object);
        }
        for hop in route.mentions() {
            self.refresh_target(hop);
        }
        self.refresh_set(id);
        id
    }

    /// A prefix does not want it any more.
    pub(super) fn release(&mut self, id: Option<SetId>) {
        let Some(id) = id else { return };
        let set = self.set_mut(id);
        set.uses -= 1;
        if set.uses == 0 {
            self.drop_unused(id);
        }
    }

    fn drop_unused(&mut self, id: SetId) {
        let set = self.set(id);
        let group = set.group;
        if set.uses > 0 || group.is_some_and(|group| self.objects[&group].routes > 0) {
            return;
        }
        let set = self.sets[id.at()].take().expect("a set in use is there");
        self.by_route.remove(&set.route);
        self.inlines.let_go(set.form);
        self.free.push(id);
        if self.latest == Some(id) {
            self.latest = None;
        }
        if let Some(group) = group {
            self.orphan(group);
        }
        for hop in set.route.mentions() {
            let target = self.targets.get_mut(&hop).expect("a set's next hops are targets");
            target.sets.retain(|other| *other != id);
            self.refresh_target(hop);
        }
    }

    /// What routes of a set look like; `NOTHING`: they cannot be written now.
    pub(super) fn form(&self, id: SetId) -> Form {
        self.set(id).form
    }

    /// A prefix waits for the set to have a form.
    pub(super) fn park(&mut self, id: SetId) {
        self.set_mut(id).parked = true;
    }

    /// Why a set has no form: which next hop is the trouble, and what the kernel says.
    pub(super) fn reason(&self, id: SetId) -> (String, u32) {
        let set = self.set(id);
        let failure = set.route.mentions().find_map(|hop| {
            let object = self.targets.get(&hop)?.object?;
            Some((hop, self.failures.get(&object)?))
        });
        let group = || set.group.and_then(|group| self.failures.get(&group));
        match failure {
            Some((hop, failure)) => (format!("next hop {hop}: {}", failure.reason), failure.attempts),
            None => match (group(), set.route.mentions().next()) {
                (Some(failure), _) => {
                    (format!("the group of its next hops: {}", failure.reason), failure.attempts)
                }
                (None, Some(hop)) if self.neighbor(hop).is_none() => {
                    (format!("next hop {hop} does not resolve"), 0)
                }
                _ => ("its next hop is on its way into the kernel".to_owned(), 0),
            },
        }
    }

    /// Whether the two differ only in what they do when all next hops are gone.
    pub(super) fn forwards_alike(&self, set: SetId, held: Form) -> bool {
        let Some(held) = held.id().and_then(|id| self.objects.get(&id)) else { return false };
        let primary = |route: &Route| match route {
            Route::Unicast { hops, .. } => Some(hops.clone()),
            Route::Blackhole => None,
        };
        let wanted = primary(&self.set(set).route);
        match held.owner {
            Owner::Target(hop) => wanted.is_some_and(|hops| hops[..] == [hop]),
            Owner::Set(other) => wanted.is_some() && primary(&self.set(other).route) == wanted,
            Owner::Nobody => false,
        }
    }

    /// How a form is written.
    pub(super) fn spell(&self, form: Form) -> Option<Spelling<'_>> {
        match form {
            Form::NOTHING | Form::STRANGE => None,
            Form::BLACKHOLE => Some(Spelling::Blackhole),
            form => match form.inline_at() {
                Some(at) => Some(Spelling::Inline(self.inlines.get(at))),
                None => form.id().map(Spelling::Object),
            },
        }
    }

    /// The form of a route of ours in the kernel, held once.
    pub(super) fn read(&mut self, route: &KernelRoute) -> Form {
        let form = match (route.next_hop, route.as_inline()) {
            (Some(id), _) if self.objects.get(&id).is_some_and(|object| object.actual.is_some()) => {
                Form::object(id)
            }
            (Some(_), _) => Form::STRANGE,
            (None, _) if route.blackhole => Form::BLACKHOLE,
            (None, Some(hops)) => return self.inlines.intern(hops),
            (None, None) => Form::STRANGE,
        };
        self.hold(form);
        form
    }

    /// A route in the kernel has this form.
    pub(super) fn hold(&mut self, form: Form) {
        match form.id() {
            Some(id) => {
                if let Some(object) = self.objects.get_mut(&id) {
                    object.routes += 1;
                }
            }
            None => self.inlines.hold(form),
        }
    }

    /// A route in the kernel does not have it any more.
    pub(super) fn let_go(&mut self, form: Form) {
        let Some(id) = form.id() else { return self.inlines.let_go(form) };
        let Some(object) = self.objects.get_mut(&id) else { return };
        object.routes -= 1;
        if object.routes == 0 {
            match object.owner {
                Owner::Set(set) => self.drop_unused(set),
                Owner::Nobody => drop(self.work.insert(id)),
                Owner::Target(_) => {}
            }
        }
    }

    // Next hops.

    /// Where packets for a next hop leave; `None`: nowhere.
    pub(super) fn resolve(&mut self, hop: NextHop, neighbor: Option<Neighbor>) {
        let target = self.targets.entry(hop).or_default();
        if target.word.replace(neighbor) != Some(neighbor) {
            self.refresh_all_of(hop);
        }
    }

    /// Nobody resolves it any more.
    pub(super) fn forget(&mut self, hop: NextHop) {
        if let Some(target) = self.targets.get_mut(&hop) {
            target.word = None;
            self.refresh_all_of(hop);
        }
    }

    fn refresh_all_of(&mut self, hop: NextHop) {
        self.refresh_target(hop);
        let sets = self.targets.get(&hop).map_or_else(Vec::new, |target| target.sets.clone());
        for set in sets {
            self.refresh_set(set);
        }
    }

    fn neighbor(&self, hop: NextHop) -> Option<Neighbor> {
        match self.targets.get(&hop).and_then(|target| target.word) {
            Some(word) => word,
            None => (hop.ifindex != 0).then(|| hop.into()),
        }
    }

    /// Brings what its object should be in line with what is known of it.
    fn refresh_target(&mut self, hop: NextHop) {
        let neighbor = self.neighbor(hop);
        let Some(target) = self.targets.get_mut(&hop) else { return };
        if target.sets.is_empty() {
            let object = target.object.take();
            if target.word.is_none() {
                self.targets.remove(&hop);
            }
            if let Some(object) = object {
                self.orphan(object);
            }
            return;
        }
        if !self.objects_in_use {
            return;
        }
        let object = target.object;
        let content = neighbor.map(Content::Neighbor);
        match (object, content) {
            (Some(id), content) => self.want(id, content),
            (None, Some(content)) => {
                let id = self.own(Owner::Target(hop), content);
                self.targets.get_mut(&hop).expect("looked up just now").object = Some(id);
            }
            (None, None) => {}
        }
    }

    /// Brings a set's group and form in line with what its next hops have become.
    fn refresh_set(&mut self, id: SetId) {
        let route = self.set(id).route.clone();
        let Route::Unicast { hops, backup } = &*route else { return };
        if !self.objects_in_use {
            return self.refresh_inline(id, &route);
        }
        let form = match (&hops[..], backup) {
            ([hop], None) => self.targets[hop].object.and_then(|object| self.present(object)),
            _ => {
                let members = self.members(hops, *backup);
                let group = self.set(id).group;
                match (group, members.is_empty()) {
                    (Some(group), false) => self.want(group, Some(Content::Members(members))),
                    // Nothing better is known than what is there: its routes will be told to go where there is a way.
                    (Some(group), true) => self.want(group, None),
                    (None, false) => {
                        let group = self.own(Owner::Set(id), Content::Members(members));
                        self.set_mut(id).group = Some(group);
                    }
                    (None, true) => {}
                }
                self.set(id).group.and_then(|group| self.present(group))
            }
        };
        self.reform(id, form.map_or(Form::NOTHING, Form::object));
    }

    fn refresh_inline(&mut self, id: SetId, route: &Route) {
        let Route::Unicast { hops, backup } = route else { return };
        let mut ways: Neighbors = hops.iter().filter_map(|hop| self.neighbor(*hop)).collect();
        if ways.is_empty() {
            ways.extend(backup.and_then(|hop| self.neighbor(hop)));
        }
        ways.sort_unstable();
        ways.dedup();
        if !ways.is_empty() {
            let form = self.inlines.intern(ways);
            self.reform(id, form);
        }
    }

    /// The objects that a group should have: those of next hops that resolve and are in the kernel, else the backup's.
    fn members(&self, hops: &[NextHop], backup: Option<NextHop>) -> SmallVec<[u32; 4]> {
        let usable = |hop: &NextHop| {
            self.neighbor(*hop)?;
            self.targets[hop].object.and_then(|object| self.present(object))
        };
        let mut members: SmallVec<[u32; 4]> = hops.iter().filter_map(usable).collect();
        if members.is_empty() {
            members.extend(backup.as_ref().and_then(usable));
        }
        members.sort_unstable();
        members
    }

    fn reform(&mut self, id: SetId, form: Form) {
        let set = self.sets[id.at()].as_mut().expect("a set in use is there");
        let before = std::mem::replace(&mut set.form, form);
        if before == form {
            return self.inlines.let_go(before);
        }
        self.inlines.let_go(before);
        if form != Form::NOTHING && (set.parked || before != Form::NOTHING) {
            set.parked = false;
            self.reformed.push(id);
        }
    }

    // Objects.

    /// The number, if it is in the kernel.
    fn present(&self, id: u32) -> Option<u32> {
        self.objects[&id].actual.is_some().then_some(id)
    }

    fn want(&mut self, id: u32, content: Option<Content>) {
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
    fn own(&mut self, owner: Owner, content: Content) -> u32 {
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

    fn unused_id(&mut self) -> u32 {
        loop {
            let id = self.next_id;
            self.next_id = if id == LAST_ID { FIRST_ID } else { id + 1 };
            if !self.objects.contains_key(&id) && !self.taken.contains(&id) {
                return id;
            }
        }
    }

    fn orphan(&mut self, id: u32) {
        let object = self.objects.get_mut(&id).expect("an owned object is there");
        object.owner = Owner::Nobody;
        object.wanted = None;
        self.failures.remove(&id);
        self.orphans.insert(id);
        self.work.insert(id);
    }

    /// A route that a predecessor wrote with `object` is wanted with the next hops of `set`: is it this object?
    fn take_over(&mut self, set: SetId, object: u32) {
        if !self.orphans.contains(&object) || self.objects[&object].in_flight {
            return;
        }
        let route = self.set(set).route.clone();
        let Route::Unicast { hops, backup } = &*route else { return };
        let content = self.objects[&object].actual.clone();
        if let ([hop], None) = (&hops[..], backup) {
            if content.is_some() && content == self.neighbor(*hop).map(Content::Neighbor) {
                self.adopt_target(*hop, object);
            }
            return;
        }
        let Some(Content::Members(members)) = content else { return };
        let mut alive: Vec<NextHop> =
            hops.iter().copied().filter(|hop| self.neighbor(*hop).is_some()).collect();
        if alive.is_empty() {
            alive.extend(backup.filter(|hop| self.neighbor(*hop).is_some()));
        }
        let mut found: SmallVec<[u32; 4]> = SmallVec::new();
        for hop in &alive {
            let content = self.neighbor(*hop).map(Content::Neighbor);
            let mine = |id: &&u32| match self.targets[hop].object {
                Some(object) => object == **id,
                None => self.orphans.contains(*id) && self.objects[*id].actual == content,
            };
            found.extend(members.iter().filter(|id| !found.contains(id)).find(mine).copied());
        }
        if found.len() != alive.len() || found.len() != members.len() {
            return;
        }
        for (hop, id) in alive.into_iter().zip(found) {
            self.adopt_target(hop, id);
        }
        self.orphans.remove(&object);
        self.objects.get_mut(&object).expect("an orphan is there").owner = Owner::Set(set);
        self.set_mut(set).group = Some(object);
    }

    fn adopt_target(&mut self, hop: NextHop, id: u32) {
        let target = self.targets.get_mut(&hop).expect("a set's next hops are targets");
        if target.object.is_none() {
            target.object = Some(id);
            self.orphans.remove(&id);
            self.objects.get_mut(&id).expect("an orphan is there").owner = Owner::Target(hop);
        }
    }

    /// Deletes what was inherited and is not needed, now and whenever it appears.
    pub(super) fn sweep(&mut self) {
        self.swept = true;
        self.work.extend(&self.orphans);
    }

    /// Takes the next jobs: what has to be there before routes, members before groups, and what can go, groups first.
    pub(super) fn next_batch(&mut self, jobs: &mut Vec<ObjectJob>) {
        let mut deletes = Vec::new();
        for id in std::mem::take(&mut self.work) {
            let Some(object) = self.objects.get_mut(&id) else { continue };
            if object.in_flight {
                continue;
            }
            if object.owner == Owner::Nobody {
                let kept = object.routes > 0 || (object.inherited && !self.swept);
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

    /// Whether there are jobs.
    pub(super) fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    /// Books the kernel's answers. `refusals` holds the refused ones by index, ascending. What could not be written, in words.
    pub(super) fn complete(
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

    fn answered(&mut self, job: ObjectJob, refusal: Option<&Refusal>, now: Instant) {
        let id = job.id;
        match (job.operation, refusal.map(|refusal| refusal.errno)) {
            (ObjectOperation::Delete, None | Some(libc::ENOENT)) => {
                self.objects.get_mut(&id).expect("the caller has seen it").actual = None;
                self.work.insert(id);
            }
            (_, None) => {
                self.failures.remove(&id);
                self.set_actual(id, job.content);
            }
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
            }
        }
    }

    /// Puts jobs back whose fate is unknown. The caller reads the kernel's objects again.
    pub(super) fn give_back(&mut self, jobs: &mut Vec<ObjectJob>) {
        for job in jobs.drain(..) {
            if let Some(object) = self.objects.get_mut(&job.id) {
                object.in_flight = false;
                self.work.insert(job.id);
            }
        }
    }

    fn renumber(&mut self, id: u32) {
        let Some(object) = self.objects.remove(&id) else { return };
        self.work.remove(&id);
        self.orphans.remove(&id);
        self.failures.remove(&id);
        let owner = object.owner;
        let new = object.wanted.map(|wanted| self.own(owner, wanted));
        match owner {
            Owner::Nobody => {}
            Owner::Target(hop) => self.targets.get_mut(&hop).expect("an owner is there").object = new,
            Owner::Set(set) => self.set_mut(set).group = new,
        }
    }

    fn set_actual(&mut self, id: u32, content: Option<Content>) {
        let object = self.objects.get_mut(&id).expect("the caller has seen it");
        let came = object.actual.is_none();
        object.actual = content;
        let owner = object.owner;
        if object.differs() || owner == Owner::Nobody {
            self.work.insert(id);
        }
        if came {
            self.refresh_owner(owner);
        }
    }

    fn refresh_owner(&mut self, owner: Owner) {
        match owner {
            Owner::Nobody => {}
            Owner::Target(hop) => self.refresh_all_of(hop),
            Owner::Set(set) => self.refresh_set(set),
        }
    }

    /// It is not in the kernel any more, and neither are the routes that used it.
    fn vanish(&mut self, id: u32) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        if object.actual.take().is_none() {
            return;
        }
        if object.routes > 0 {
            self.vanished.push(id);
        }
        self.failures.remove(&id);
        self.work.insert(id);
        let owner = object.owner;
        self.refresh_owner(owner);
    }

    fn remove(&mut self, id: u32) {
        self.objects.remove(&id);
        self.orphans.remove(&id);
        self.failures.remove(&id);
    }

    /// Objects that went, with the routes that used them.
    pub(super) fn take_vanished(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.vanished)
    }

    /// Sets whose prefixes have to be looked at: those that have another form, or one again.
    pub(super) fn take_reformed(&mut self) -> Vec<SetId> {
        std::mem::take(&mut self.reformed)
    }

    // What the kernel says.

    pub(super) fn begin_read(&mut self) {
        self.unseen =
            self.objects.iter().filter(|(_, object)| object.actual.is_some()).map(|(id, _)| *id).collect();
        self.taken.clear();
    }

    /// A reading or a notification shows an object; `ours` by its protocol number. Whether it is not as it should be.
    pub(super) fn seen(&mut self, found: KernelObject, ours: bool) -> bool {
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
    pub(super) fn end_read(&mut self) -> usize {
        let gone = std::mem::take(&mut self.unseen);
        gone.iter().for_each(|id| self.vanish(*id));
        gone.len()
    }

    /// Somebody deleted it. Whether it was needed.
    pub(super) fn gone(&mut self, id: u32) -> bool {
        self.taken.remove(&id);
        let needed = self
            .objects
            .get(&id)
            .is_some_and(|object| object.actual.is_some() && object.owner != Owner::Nobody);
        self.vanish(id);
        needed
    }

    /// An object in words.
    pub(super) fn describe(&self, id: u32) -> String {
        match self.objects.get(&id).map(|object| object.owner) {
            Some(Owner::Target(hop)) => format!("nexthop object {id} for {hop}"),
            Some(Owner::Set(set)) => format!("nexthop group {id} for routes {}", self.set(set).route),
            _ => format!("nexthop object {id}"),
        }
    }

    /// Tries the refused objects whose time has come; says when the next one's comes.
    pub(super) fn retry_due(&mut self, now: Instant) -> Option<Instant> {
        let failing = self.failures.iter();
        self.work.extend(failing.filter(|(_, failure)| failure.retry_at <= now).map(|(id, _)| *id));
        self.failures.values().map(|failure| failure.retry_at).filter(|at| *at > now).min()
    }

    /// Tries all refused objects: something changed that may help.
    pub(super) fn retry_all(&mut self) {
        self.work.extend(self.failures.keys());
    }

    /// Whether any next hop leaves by this link.
    pub(super) fn uses_link(&self, ifindex: u32) -> bool {
        let on = |content: &Option<Content>| matches!(content, Some(Content::Neighbor(neighbor)) if neighbor.ifindex == ifindex);
        self.objects.values().any(|object| on(&object.wanted) || on(&object.actual))
            || self.inlines.iter().any(|neighbor| neighbor.ifindex == ifindex)
    }

    fn set(&self, id: SetId) -> &Set {
        self.sets[id.at()].as_ref().expect("a set in use is there")
    }

    fn set_mut(&mut self, id: SetId) -> &mut Set {
        self.sets[id.at()].as_mut().expect("a set in use is there")
    }

    /// Nothing is wanted, held or remembered but what was resolved.
    #[cfg(test)]
    pub(super) fn is_void(&self) -> bool {
        self.by_route.is_empty()
            && self.objects.is_empty()
            && self.failures.is_empty()
            && self.inlines.by_list.is_empty()
            && self.targets.values().all(|target| target.sets.is_empty() && target.object.is_none())
    }
}

impl Object {
    fn new() -> Self {
        Self {
            owner: Owner::Nobody,
            wanted: None,
            actual: None,
            routes: 0,
            inherited: false,
            in_flight: false,
        }
    }

    fn differs(&self) -> bool {
        self.wanted.is_some() && self.wanted != self.actual
    }
}

type Neighbors = SmallVec<[Neighbor; 1]>;

/// Lists of next hops that stand in routes themselves, by number.
#[derive(Debug, Default)]
struct Inlines {
    by_list: FxHashMap<Arc<Neighbors>, usize>,
    lists: Vec<(Arc<Neighbors>, usize)>,
    free: Vec<usize>,
}

impl Inlines {
    /// The number, held once more.
    fn intern(&mut self, list: Neighbors) -> Form {
        if let Some(&at) = self.by_list.get(&list) {
            self.lists[at].1 += 1;
            return Form::inline(at);
        }
        let list = Arc::new(list);
        let at = match self.free.pop() {
            Some(at) => {
                self.lists[at] = (list.clone(), 1);
                at
            }
            None => {
                self.lists.push((list.clone(), 1));
                self.lists.len() - 1
            }
        };
        self.by_list.insert(list, at);
        Form::inline(at)
    }

    fn hold(&mut self, form: Form) {
        if let Some(at) = form.inline_at() {
            self.lists[at].1 += 1;
        }
    }

    fn let_go(&mut self, form: Form) {
        let Some(at) = form.inline_at() else { return };
        let (list, holders) = &mut self.lists[at];
        *holders -= 1;
        if *holders == 0 {
            self.by_list.remove(list);
            self.free.push(at);
        }
    }

    fn get(&self, at: usize) -> &[Neighbor] {
        &self.lists[at].0
    }

    fn iter(&self) -> impl Iterator<Item = &Neighbor> {
        self.by_list.keys().flat_map(|list| list.iter())
    }
}
