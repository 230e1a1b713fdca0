//! Next hops, the sets of them that routes share, and the nexthop objects that stand for both in the kernel. Pure.
//!
//! ```text
//! route --> set { next hops, backup } --> group object --> members
//!             |  one next hop, no backup       ^ those of next hops that resolve, else of the backup
//!             +----> object of a next hop, one for each neighbor that it resolves to --> the neighbor
//! ```
//!
//! A next hop that moves or dies costs one object, and one group for each set that it is in, however many routes lead
//! there. Routes of a single next hop name its object while it resolves to one neighbor, and a group from the time on that
//! it first resolves to several: the kernel makes no group of an object, so that those routes are written once more. Where
//! the kernel has no such objects (before Linux 5.3) a set is spelled out in each of its routes, and a change is a change of
//! its routes; [`Form`] is what hides the difference from the rest.
//!
//! An object exists as long as a set needs it or a route in the kernel uses it: the kernel deletes routes together with
//! their object. What a predecessor left is taken over where it says what is needed.

mod form;
mod inlines;
mod jobs;
mod kernel;
mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::message::{KernelRoute, Spelling};
use super::object::Content;
use super::route::{Neighbor, Neighbors, NextHop, Route};
pub(super) use form::{Form, SetId};
use inlines::Inlines;
pub(super) use jobs::{ObjectJob, ObjectOperation};
use objects::{Object, Owner};

/// The numbers of our objects.
pub(super) const FIRST_ID: u32 = 0x4d00_0000;
const LAST_ID: u32 = 0x4dff_ffff;

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
    word: Option<Neighbors>,
    /// One for each neighbor; those of the last ones while it resolves to nothing.
    objects: SmallVec<[u32; 1]>,
    sets: Vec<SetId>,
}

#[derive(Debug)]
struct Failure {
    reason: String,
    attempts: u32,
    retry_at: Instant,
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
            let objects = &self.targets.get(&hop)?.objects;
            Some((hop, objects.iter().find_map(|object| self.failures.get(object))?))
        });
        let group = || set.group.and_then(|group| self.failures.get(&group));
        match failure {
            Some((hop, failure)) => (format!("next hop {hop}: {}", failure.reason), failure.attempts),
            None => match (group(), set.route.mentions().next()) {
                (Some(failure), _) => {
                    (format!("the group of its next hops: {}", failure.reason), failure.attempts)
                }
                (None, Some(hop)) if self.neighbors(hop).is_empty() => {
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
            Owner::Target(hop) => {
                wanted.is_some_and(|hops| hops[..] == [hop]) && self.targets[&hop].objects.len() == 1
            }
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

    /// Where packets for a next hop leave.
    pub(super) fn resolve(&mut self, hop: NextHop, neighbors: Neighbors) {
        let target = self.targets.entry(hop).or_default();
        if target.word.as_ref() != Some(&neighbors) {
            target.word = Some(neighbors);
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

    fn neighbors(&self, hop: NextHop) -> Neighbors {
        match self.targets.get(&hop).and_then(|target| target.word.as_ref()) {
            Some(word) => word.clone(),
            None => (hop.ifindex != 0).then(|| hop.into()).into_iter().collect(),
        }
    }

    /// Brings what its objects should be in line with what is known of it.
    fn refresh_target(&mut self, hop: NextHop) {
        let neighbors = self.neighbors(hop);
        let Some(target) = self.targets.get_mut(&hop) else { return };
        if target.sets.is_empty() {
            let objects = std::mem::take(&mut target.objects);
            if target.word.is_none() {
                self.targets.remove(&hop);
            }
            return objects.into_iter().for_each(|object| self.orphan(object));
        }
        if !self.objects_in_use {
            return;
        }
        let mut spare = std::mem::take(&mut target.objects);
        let mut objects: SmallVec<[u32; 1]> = SmallVec::new();
        if neighbors.is_empty() {
            // Nothing better is known than what they do.
            spare.iter().for_each(|id| self.want(*id, None));
            std::mem::swap(&mut objects, &mut spare);
        }
        // Who stays keeps its object, so that one neighbor of several that goes is one object that goes.
        let mut others: Neighbors = SmallVec::new();
        for neighbor in neighbors {
            match spare.iter().position(|id| self.objects[id].says(neighbor)) {
                Some(at) => {
                    let id = spare.remove(at);
                    self.want(id, Some(Content::Neighbor(neighbor)));
                    objects.push(id);
                }
                None => others.push(neighbor),
            }
        }
        for neighbor in others {
            let content = Content::Neighbor(neighbor);
            let id = match spare.pop() {
                Some(id) => {
                    self.want(id, Some(content));
                    id
                }
                None => self.own(Owner::Target(hop), content),
            };
            objects.push(id);
        }
        self.targets.get_mut(&hop).expect("looked up just now").objects = objects;
        spare.into_iter().for_each(|id| self.orphan(id));
    }

    /// Brings a set's group and form in line with what its next hops have become.
    fn refresh_set(&mut self, id: SetId) {
        let route = self.set(id).route.clone();
        let Route::Unicast { hops, backup } = &*route else { return };
        if !self.objects_in_use {
            return self.refresh_inline(id, &route);
        }
        let single = match (&hops[..], backup) {
            ([hop], None) => Some(*hop),
            _ => None,
        };
        let group = self.set(id).group;
        if group.is_some() || single.is_none_or(|hop| self.neighbors(hop).len() > 1) {
            let members = self.members(hops, *backup);
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
        }
        let group = self.set(id).group.and_then(|group| self.present(group));
        // Until the group is there, one of the neighbors is better than none.
        let one =
            || single.and_then(|hop| self.targets[&hop].objects.iter().find_map(|id| self.present(*id)));
        self.reform(id, group.or_else(one).map_or(Form::NOTHING, Form::object));
    }

    fn refresh_inline(&mut self, id: SetId, route: &Route) {
        let Route::Unicast { hops, backup } = route else { return };
        let mut ways: Neighbors = hops.iter().flat_map(|hop| self.neighbors(*hop)).collect();
        if ways.is_empty() {
            ways.extend(backup.iter().flat_map(|hop| self.neighbors(*hop)));
        }
        ways.sort_unstable();
        ways.dedup();
        if !ways.is_empty() {
            let form = self.inlines.intern(ways);
            self.reform(id, form);
        }
    }

    /// The objects that a group should have: those of next hops that resolve, are in the kernel and lead where they should,
    /// as far as the kernel has not refused that, else the backup's.
    fn members(&self, hops: &[NextHop], backup: Option<NextHop>) -> SmallVec<[u32; 4]> {
        let usable = |hop: NextHop| {
            let objects = (!self.neighbors(hop).is_empty()).then(|| &self.targets[&hop].objects[..]);
            let objects = objects.unwrap_or_default().iter().filter(|id| !self.failures.contains_key(*id));
            objects.filter_map(|object| self.present(*object))
        };
        let mut members: SmallVec<[u32; 4]> = hops.iter().copied().flat_map(usable).collect();
        if members.is_empty() {
            members.extend(backup.into_iter().flat_map(usable));
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

    /// Sets whose prefixes have to be looked at: those that have another form, or one again.
    pub(super) fn take_reformed(&mut self) -> Vec<SetId> {
        std::mem::take(&mut self.reformed)
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
            && self.inlines.iter().next().is_none()
            && self.targets.values().all(|target| target.sets.is_empty() && target.objects.is_empty())
    }
}
