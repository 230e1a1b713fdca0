//! Who is in which set, kept up to date at a cost that follows the change.
//!
//! ```text
//! workload --labels--> anchors --> groups (one per distinct pod selector) --> sets (addresses, named ports)
//! namespace --labels--> scopes (one per distinct namespace selector) --^
//! ```
//! A workload that changes is compared only with the groups that one of its labels, its namespace or a scope of its namespace
//! points at. Members are counted: two pods may share an address for a while. Knows nothing of policies or of the kernel;
//! what entered or left a set since the last look is kept in the set's `flips`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use crate::grants::SetKey;
use crate::ir::{Member, SetKind};
use crate::model::{
    Addresses, EndpointId, Entity, Family, Labels, NamedPort, NamespaceScope, PodId, PodSelector, Protocol,
    Str,
};
use crate::selector::{Operator, Selector};
use crate::state::{State, Workload};

/// A set as it should be.
#[derive(Debug)]
pub struct DesiredSet {
    /// What it holds.
    pub key: SetKey,
    /// The family-independent part of its kernel name.
    pub suffix: String,
    /// Its kernel type.
    pub kind: SetKind,
    users: usize,
    members: FxHashMap<Member, u32>,
    /// How many of its blocks have which prefix length.
    lengths: BTreeMap<(Family, u8), usize>,
    /// What entered (false: was not in it) or left (true: was in it) since it was last taken.
    flips: FxHashMap<Member, bool>,
}

impl DesiredSet {
    /// Members of one family, sorted.
    pub fn members(&self, family: Family) -> Vec<Member> {
        let mut members: Vec<Member> =
            self.members.keys().filter(|m| m.family() == family).copied().collect();
        members.sort_unstable();
        members
    }

    /// How many of one family there are.
    pub fn count(&self, family: Family) -> usize {
        self.members.keys().filter(|m| m.family() == family).count()
    }

    /// Is it a member?
    pub fn contains(&self, member: &Member) -> bool {
        self.members.contains_key(member)
    }

    /// Would the kernel say that it matches? In a set of blocks an address does that lies in one of them.
    pub fn holds(&self, member: Member) -> bool {
        match (self.kind, member) {
            (SetKind::Net, Member::Ip(ip)) => self.lengths.keys().any(|(family, length)| {
                let net = (*family == Family::of(ip)).then(|| IpNetwork::new(ip, *length).ok()).flatten();
                let net = net.and_then(|net| IpNetwork::new(net.network(), *length).ok());
                net.is_some_and(|net| self.contains(&Member::Net(net)))
            }),
            _ => self.contains(&member),
        }
    }

    /// How many members, both families.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// No members.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn enter(&mut self, member: Member) -> bool {
        let count = self.members.entry(member).or_insert(0);
        *count += 1;
        if *count > 1 {
            return false;
        }
        if let Member::Net(net) = member {
            *self.lengths.entry((member.family(), net.prefix())).or_default() += 1;
        }
        self.flip(member, false)
    }

    fn leave(&mut self, member: Member) -> bool {
        let count = self.members.get_mut(&member).expect("what leaves a set has entered it");
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.members.remove(&member);
        if let Member::Net(net) = member {
            let key = (member.family(), net.prefix());
            let count = self.lengths.get_mut(&key).expect("counted when it entered");
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&key);
            }
        }
        self.flip(member, true)
    }

    fn flip(&mut self, member: Member, was_in: bool) -> bool {
        if self.flips.remove(&member).is_none() {
            self.flips.insert(member, was_in);
        }
        true
    }
}

/// Names a set within [`Members`]; never used again after the set is gone.
pub type SetId = u32;

/// Additions and deletions, each sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flips {
    /// What has entered.
    pub added: Vec<Member>,
    /// What has left.
    pub deleted: Vec<Member>,
}

type WorkloadId = u32;
type GroupId = u32;
type ScopeId = u32;

#[derive(Debug)]
struct Entry {
    id: PodId,
    labels: Labels,
    addresses: Addresses,
    ports: Arc<[NamedPort]>,
    nets: Arc<[IpNetwork]>,
    /// Sorted.
    groups: SmallVec<[GroupId; 4]>,
}

#[derive(Debug)]
struct Group {
    selector: PodSelector,
    /// Where its namespaces are chosen by labels.
    scope: Option<ScopeId>,
    members: FxHashSet<WorkloadId>,
    sets: SmallVec<[SetId; 2]>,
}

#[derive(Debug)]
struct Scope {
    selector: Selector,
    groups: BTreeSet<GroupId>,
}

/// What every workload in a group is certain to have, and by which its group is therefore found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Anchor {
    Label(Option<Str>, Str, Str),
    Key(Option<Str>, Str),
    Namespace(Str),
    Scope(ScopeId),
}

#[derive(Debug, Default)]
struct LocalPorts {
    addresses: Addresses,
    ports: Arc<[NamedPort]>,
}

/// The index. See the module's words.
#[derive(Debug, Default)]
pub struct Members {
    next: u32,
    workloads: FxHashMap<WorkloadId, Entry>,
    workload_ids: FxHashMap<PodId, WorkloadId>,
    by_namespace: FxHashMap<Str, FxHashSet<WorkloadId>>,
    by_label: FxHashMap<(Str, Str), FxHashSet<WorkloadId>>,
    groups: FxHashMap<GroupId, Group>,
    group_ids: FxHashMap<PodSelector, GroupId>,
    anchors: FxHashMap<Anchor, Vec<GroupId>>,
    scopes: FxHashMap<ScopeId, Scope>,
    scope_ids: FxHashMap<Selector, ScopeId>,
    /// For each namespace that has workloads: the scopes that contain it.
    scopes_of: FxHashMap<Str, BTreeSet<ScopeId>>,
    local: FxHashMap<EndpointId, LocalPorts>,
    sets: FxHashMap<SetId, DesiredSet>,
    set_ids: FxHashMap<SetKey, SetId>,
    touched: BTreeSet<SetId>,
    idle: BTreeSet<SetId>,
    /// Addresses that entered or left a set since last taken.
    moved: FxHashSet<IpAddr>,
    /// A set of networks did, too.
    moved_nets: bool,
}

impl Members {
    /// Someone needs this set. The first one makes it and fills it.
    pub fn want(&mut self, key: &SetKey, state: &State) {
        if let Some(id) = self.set_ids.get(key) {
            let set = self.sets.get_mut(id).expect("a set that has an id");
            set.users += 1;
            self.idle.remove(id);
            return;
        }
        let id = self.fresh();
        let mut set = DesiredSet {
            key: key.clone(),
            suffix: key.suffix(),
            kind: key.kind(),
            users: 1,
            members: FxHashMap::default(),
            lengths: BTreeMap::new(),
            flips: FxHashMap::default(),
        };
        for member in key.fixed_members() {
            set.enter(member);
        }
        match key {
            SetKey::Pods(selector) | SetKey::Entities(selector) | SetKey::Ports(selector, ..) => {
                let group_id = self.group(selector, state);
                let group = self.groups.get_mut(&group_id).expect("just found or made");
                group.sets.push(id);
                for workload in &group.members {
                    let entry = &self.workloads[workload];
                    contributions(key, entry.parts(), |member| _ = set.enter(member));
                }
            }
            SetKey::LocalPorts(..) => {
                for local in self.local.values() {
                    contributions(key, local.parts(), |member| _ = set.enter(member));
                }
            }
            SetKey::Nets(_) => {}
        }
        self.sets.insert(id, set);
        self.set_ids.insert(key.clone(), id);
        self.touched.insert(id);
    }

    /// One user less. A set without users is kept, and kept right, until [`Members::take_idle`]: it may be wanted again.
    pub fn unwant(&mut self, key: &SetKey) {
        let id = self.set_ids[key];
        let set = self.sets.get_mut(&id).expect("a set that has an id");
        set.users -= 1;
        if set.users == 0 {
            self.idle.insert(id);
        }
    }

    /// How many sets nobody wants.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Forgets the sets that nobody wants; returns their names' suffixes, sorted.
    pub fn take_idle(&mut self) -> Vec<String> {
        let mut suffixes = Vec::new();
        for id in std::mem::take(&mut self.idle) {
            let set = self.sets.remove(&id).expect("an idle set is a set");
            self.set_ids.remove(&set.key);
            self.touched.remove(&id);
            if let SetKey::Pods(selector) | SetKey::Entities(selector) | SetKey::Ports(selector, ..) =
                &set.key
            {
                self.release_group(selector, id);
            }
            suffixes.push(set.suffix);
        }
        suffixes.sort();
        suffixes
    }

    /// Every set that someone wants.
    pub fn sets(&self) -> impl Iterator<Item = (SetId, &DesiredSet)> {
        self.all().filter(|(_, set)| set.users > 0)
    }

    /// Those too that nobody wants any more and that are kept right until [`Members::take_idle`].
    pub fn all(&self) -> impl Iterator<Item = (SetId, &DesiredSet)> {
        self.sets.iter().map(|(id, set)| (*id, set))
    }

    /// One set.
    pub fn set(&self, id: SetId) -> Option<&DesiredSet> {
        self.sets.get(&id)
    }

    /// Sets that were made or whose members changed; ask each for its flips with [`Members::take_flips`].
    pub fn touched(&self) -> Vec<SetId> {
        self.touched.iter().copied().collect()
    }

    /// Both families have looked at the touched sets: only those whose flips one of them could not take stay touched.
    pub fn looked_at(&mut self) {
        let sets = &self.sets;
        self.touched.retain(|id| sets.get(id).is_some_and(|set| !set.flips.is_empty()));
    }

    /// What entered and left a set in one family since this was last asked.
    pub fn take_flips(&mut self, id: SetId, family: Family) -> Flips {
        let Some(set) = self.sets.get_mut(&id) else { return Flips::default() };
        let mut flips = Flips::default();
        set.flips.retain(|member, was_in| {
            if member.family() != family {
                return true;
            }
            if *was_in {
                flips.deleted.push(*member);
            } else {
                flips.added.push(*member);
            }
            false
        });
        set.flips.shrink_to(16);
        flips.added.sort_unstable();
        flips.deleted.sort_unstable();
        flips
    }

    /// Whose addresses entered or left any set since this was last asked; `None`: more than single addresses.
    pub fn take_moved(&mut self) -> Option<FxHashSet<IpAddr>> {
        let moved = std::mem::take(&mut self.moved);
        (!std::mem::take(&mut self.moved_nets)).then_some(moved)
    }

    /// The set that an equal key names, if anyone wants it.
    pub fn set_of(&self, key: &SetKey) -> Option<&DesiredSet> {
        self.sets.get(self.set_ids.get(key)?)
    }

    /// A workload appeared, changed or (`None`) went.
    pub fn set_workload(&mut self, id: &PodId, workload: Option<Workload>, state: &State) {
        let known = self.workload_ids.get(id).copied();
        match (known, workload) {
            (None, None) => {}
            (Some(number), None) => self.remove_workload(number),
            (Some(number), Some(workload)) => self.change_workload(number, workload, state),
            (None, Some(workload)) => self.add_workload(workload, state),
        }
    }

    /// A namespace's labels changed, or it became known or unknown.
    pub fn namespace_changed(&mut self, namespace: &Str, state: &State) {
        if !self.scopes_of.contains_key(namespace) {
            return;
        }
        let now: BTreeSet<ScopeId> = self
            .scopes
            .iter()
            .filter(|(_, scope)| in_scope(&scope.selector, namespace, state))
            .map(|(id, _)| *id)
            .collect();
        let before = self.scopes_of.insert(namespace.clone(), now.clone()).unwrap_or_default();
        let changed: Vec<ScopeId> = before.symmetric_difference(&now).copied().collect();
        let inhabitants: Vec<WorkloadId> =
            self.by_namespace.get(namespace).into_iter().flatten().copied().collect();
        for scope in changed {
            let joins = now.contains(&scope);
            for group in self.scopes[&scope].groups.clone() {
                for workload in &inhabitants {
                    if self.groups[&group].selector.pods.matches(&self.workloads[workload].labels) {
                        if joins { self.join(*workload, group) } else { self.part(*workload, group) }
                    }
                }
            }
        }
    }

    /// An endpoint's own addresses and named ports, for ingress rules that name ports; `None`: it went or is closed.
    pub fn set_local(&mut self, endpoint: &EndpointId, local: Option<(Addresses, Arc<[NamedPort]>)>) {
        let old = match local {
            Some((addresses, ports)) => self.local.insert(endpoint.clone(), LocalPorts { addresses, ports }),
            None => self.local.remove(endpoint),
        };
        let none = LocalPorts::default();
        let new = self.local.get(endpoint).unwrap_or(&none);
        let old = old.as_ref().unwrap_or(&none);
        let mut names: Vec<(Protocol, Str)> =
            old.ports.iter().chain(new.ports.iter()).map(|p| (p.protocol, p.name.clone())).collect();
        names.sort();
        names.dedup();
        for (protocol, name) in names {
            let key = SetKey::LocalPorts(protocol, name);
            let Some(id) = self.set_ids.get(&key) else { continue };
            let set = self.sets.get_mut(id).expect("a set that has an id");
            let mut flipped = false;
            contributions(&key, new.parts(), |member| flipped |= set.enter(member));
            contributions(&key, old.parts(), |member| flipped |= set.leave(member));
            if flipped {
                self.touched.insert(*id);
                self.moved.extend(old.addresses.iter().chain(&new.addresses));
            }
        }
    }

    fn add_workload(&mut self, workload: Workload, state: &State) {
        let number = self.fresh();
        let namespace = workload.id.namespace.clone();
        self.workload_ids.insert(workload.id.clone(), number);
        self.by_namespace.entry(namespace.clone()).or_default().insert(number);
        self.index_labels(number, &workload.labels);
        if !self.scopes_of.contains_key(&namespace) {
            let scopes = self.scopes.iter().filter(|(_, scope)| in_scope(&scope.selector, &namespace, state));
            let scopes = scopes.map(|(id, _)| *id).collect();
            self.scopes_of.insert(namespace, scopes);
        }
        let groups = self.groups_of(&workload.id.namespace, &workload.labels);
        let Workload { id, labels, addresses, ports, nets } = workload;
        self.workloads.insert(number, Entry { id, labels, addresses, ports, nets, groups: SmallVec::new() });
        for group in groups {
            self.join(number, group);
        }
    }

    fn change_workload(&mut self, number: WorkloadId, workload: Workload, state: &State) {
        let entry = &self.workloads[&number];
        let Entry { addresses, ports, nets, .. } = entry;
        if *addresses == workload.addresses && *ports == workload.ports && *nets == workload.nets {
            if entry.labels != workload.labels {
                self.relabel(number, &workload.labels);
            }
            return;
        }
        // Rare: a pod keeps its addresses and ports as a rule. The new one is counted before the old one is discounted, so
        // that what both have does not flip.
        let id = workload.id.clone();
        self.workload_ids.remove(&id);
        self.add_workload(workload, state);
        self.forget_workload(number);
    }

    fn relabel(&mut self, number: WorkloadId, labels: &Labels) {
        let entry = self.workloads.get_mut(&number).expect("a workload that has a number");
        let before = std::mem::replace(&mut entry.labels, labels.clone());
        let namespace = entry.id.namespace.clone();
        let old_groups = entry.groups.clone();
        self.unindex_labels(number, &before);
        self.index_labels(number, labels);
        let groups = self.groups_of(&namespace, labels);
        for group in &groups {
            if !old_groups.contains(group) {
                self.join(number, *group);
            }
        }
        for group in old_groups {
            if !groups.contains(&group) {
                self.part(number, group);
            }
        }
    }

    fn remove_workload(&mut self, number: WorkloadId) {
        let id = self.workloads[&number].id.clone();
        self.workload_ids.remove(&id);
        self.forget_workload(number);
    }

    fn forget_workload(&mut self, number: WorkloadId) {
        for group in self.workloads[&number].groups.clone() {
            self.part(number, group);
        }
        let entry = self.workloads.remove(&number).expect("a workload that has a number");
        self.unindex_labels(number, &entry.labels);
        let namespace = &entry.id.namespace;
        let inhabitants = self.by_namespace.get_mut(namespace).expect("its namespace has at least this one");
        inhabitants.remove(&number);
        if inhabitants.is_empty() {
            self.by_namespace.remove(namespace);
            self.scopes_of.remove(namespace);
        }
    }

    fn join(&mut self, workload: WorkloadId, group: GroupId) {
        let entry = self.workloads.get_mut(&workload).expect("a workload that has a number");
        let Err(at) = entry.groups.binary_search(&group) else { return };
        entry.groups.insert(at, group);
        let group = self.groups.get_mut(&group).expect("a group that has a number");
        group.members.insert(workload);
        for id in &group.sets {
            let set = self.sets.get_mut(id).expect("a group feeds sets that exist");
            let mut flipped = false;
            let key = set.key.clone();
            contributions(&key, entry.parts(), |member| flipped |= set.enter(member));
            if flipped {
                self.touched.insert(*id);
                self.moved.extend(&entry.addresses);
                self.moved_nets |= !entry.nets.is_empty();
            }
        }
    }

    fn part(&mut self, workload: WorkloadId, group: GroupId) {
        let entry = self.workloads.get_mut(&workload).expect("a workload that has a number");
        let Ok(at) = entry.groups.binary_search(&group) else { return };
        entry.groups.remove(at);
        let group = self.groups.get_mut(&group).expect("a group that has a number");
        group.members.remove(&workload);
        for id in &group.sets {
            let set = self.sets.get_mut(id).expect("a group feeds sets that exist");
            let mut flipped = false;
            let key = set.key.clone();
            contributions(&key, entry.parts(), |member| flipped |= set.leave(member));
            if flipped {
                self.touched.insert(*id);
                self.moved.extend(&entry.addresses);
                self.moved_nets |= !entry.nets.is_empty();
            }
        }
    }

    /// The groups that a workload belongs to.
    fn groups_of(&self, namespace: &Str, labels: &Labels) -> SmallVec<[GroupId; 4]> {
        let mut found = SmallVec::new();
        let mut look = |anchor: Anchor| {
            for id in self.anchors.get(&anchor).into_iter().flatten() {
                if self.in_group(&self.groups[id], namespace, labels) {
                    found.push(*id);
                }
            }
        };
        for (key, value) in labels.iter() {
            look(Anchor::Label(None, key.clone(), value.clone()));
            look(Anchor::Label(Some(namespace.clone()), key.clone(), value.clone()));
            look(Anchor::Key(None, key.clone()));
            look(Anchor::Key(Some(namespace.clone()), key.clone()));
        }
        look(Anchor::Namespace(namespace.clone()));
        for scope in self.scopes_of.get(namespace).into_iter().flatten() {
            look(Anchor::Scope(*scope));
        }
        found
    }

    fn in_group(&self, group: &Group, namespace: &Str, labels: &Labels) -> bool {
        let in_namespace = match (&group.selector.namespaces, group.scope) {
            (NamespaceScope::Named(name), _) => name == namespace,
            (NamespaceScope::Matching(_), scope) => {
                let scope = scope.expect("a group by namespace labels has a scope");
                self.scopes_of.get(namespace).is_some_and(|scopes| scopes.contains(&scope))
            }
        };
        in_namespace && group.selector.pods.matches(labels)
    }

    /// Finds or makes the group of a selector.
    fn group(&mut self, selector: &PodSelector, state: &State) -> GroupId {
        if let Some(id) = self.group_ids.get(selector) {
            return *id;
        }
        let id = self.fresh();
        let scope = match &selector.namespaces {
            NamespaceScope::Named(_) => None,
            NamespaceScope::Matching(namespaces) => Some(self.scope(namespaces, id, state)),
        };
        for anchor in anchors(selector, scope) {
            self.anchors.entry(anchor).or_default().push(id);
        }
        let group =
            Group { selector: selector.clone(), scope, members: FxHashSet::default(), sets: SmallVec::new() };
        let members: Vec<WorkloadId> = self
            .candidates(selector)
            .into_iter()
            .filter(|w| {
                let entry = &self.workloads[w];
                self.in_group(&group, &entry.id.namespace, &entry.labels)
            })
            .collect();
        self.groups.insert(id, group);
        self.group_ids.insert(selector.clone(), id);
        for workload in members {
            self.join(workload, id);
        }
        id
    }

    fn release_group(&mut self, selector: &PodSelector, set: SetId) {
        let id = self.group_ids[selector];
        let group = self.groups.get_mut(&id).expect("a group that has an id");
        group.sets.retain(|s| *s != set);
        if !group.sets.is_empty() {
            return;
        }
        let group = self.groups.remove(&id).expect("just looked at");
        self.group_ids.remove(selector);
        for workload in &group.members {
            let entry = self.workloads.get_mut(workload).expect("a member is a workload");
            entry.groups.retain(|g| *g != id);
        }
        for anchor in anchors(selector, group.scope) {
            if let Some(groups) = self.anchors.get_mut(&anchor) {
                groups.retain(|g| *g != id);
                if groups.is_empty() {
                    self.anchors.remove(&anchor);
                }
            }
        }
        if let Some(scope_id) = group.scope {
            let scope = self.scopes.get_mut(&scope_id).expect("a scope that a group has");
            scope.groups.remove(&id);
            if scope.groups.is_empty() {
                let scope = self.scopes.remove(&scope_id).expect("just looked at");
                self.scope_ids.remove(&scope.selector);
                for scopes in self.scopes_of.values_mut() {
                    scopes.remove(&scope_id);
                }
            }
        }
    }

    fn scope(&mut self, selector: &Selector, group: GroupId, state: &State) -> ScopeId {
        if let Some(id) = self.scope_ids.get(selector) {
            self.scopes.get_mut(id).expect("a scope that has an id").groups.insert(group);
            return *id;
        }
        let id = self.fresh();
        for (namespace, scopes) in &mut self.scopes_of {
            if in_scope(selector, namespace, state) {
                scopes.insert(id);
            }
        }
        self.scope_ids.insert(selector.clone(), id);
        self.scopes.insert(id, Scope { selector: selector.clone(), groups: BTreeSet::from([group]) });
        id
    }

    /// Workloads among which all of a new group's members are: the smallest bunch that an index offers.
    fn candidates(&self, selector: &PodSelector) -> Vec<WorkloadId> {
        let mut bunches: Vec<Vec<&FxHashSet<WorkloadId>>> = Vec::new();
        match &selector.namespaces {
            NamespaceScope::Named(name) => bunches.push(self.by_namespace.get(name).into_iter().collect()),
            NamespaceScope::Matching(_) => {}
        }
        for requirement in selector.pods.requirements() {
            if let Operator::In(values) = &requirement.operator {
                let label = |value: &Str| self.by_label.get(&(requirement.key.clone(), value.clone()));
                bunches.push(values.iter().filter_map(label).collect());
            }
        }
        match bunches.into_iter().min_by_key(|bunch| bunch.iter().map(|set| set.len()).sum::<usize>()) {
            Some(bunch) => bunch.into_iter().flatten().copied().collect(),
            None => self.workloads.keys().copied().collect(),
        }
    }

    fn index_labels(&mut self, workload: WorkloadId, labels: &Labels) {
        for pair in labels.iter() {
            self.by_label.entry(pair.clone()).or_default().insert(workload);
        }
    }

    fn unindex_labels(&mut self, workload: WorkloadId, labels: &Labels) {
        for pair in labels.iter() {
            if let Some(bearers) = self.by_label.get_mut(pair) {
                bearers.remove(&workload);
                if bearers.is_empty() {
                    self.by_label.remove(pair);
                }
            }
        }
    }

    fn fresh(&mut self) -> u32 {
        self.next =
            self.next.checked_add(1).expect("fewer than 2^32 workloads, groups and sets in one agent's life");
        self.next
    }
}

fn in_scope(selector: &Selector, namespace: &Str, state: &State) -> bool {
    if !Entity::is_namespace(namespace) {
        return false;
    }
    match state.namespace(namespace) {
        Some(known) => selector.matches(&known.labels),
        None => selector.matches_unknown_namespace(namespace),
    }
}

/// Where a group is found: under each value of its first `In`, else under a key that must be there, else under its
/// namespaces.
fn anchors(selector: &PodSelector, scope: Option<ScopeId>) -> Vec<Anchor> {
    let namespace = match &selector.namespaces {
        NamespaceScope::Named(name) => Some(name.clone()),
        NamespaceScope::Matching(_) => None,
    };
    let requirements = selector.pods.requirements();
    for requirement in requirements {
        if let Operator::In(values) = &requirement.operator {
            let label = |v: &Str| Anchor::Label(namespace.clone(), requirement.key.clone(), v.clone());
            return values.iter().map(label).collect();
        }
    }
    if let Some(requirement) = requirements.iter().find(|r| r.operator == Operator::Exists) {
        return vec![Anchor::Key(namespace, requirement.key.clone())];
    }
    match (namespace, scope) {
        (Some(name), _) => vec![Anchor::Namespace(name)],
        (None, Some(scope)) => vec![Anchor::Scope(scope)],
        (None, None) => unreachable!("a selector names a namespace or has a scope"),
    }
}

type Parts<'a> = (&'a [IpAddr], &'a [NamedPort], &'a [IpNetwork]);

impl Entry {
    fn parts(&self) -> Parts<'_> {
        (&self.addresses, &self.ports, &self.nets)
    }
}

impl LocalPorts {
    fn parts(&self) -> Parts<'_> {
        (&self.addresses, &self.ports, &[])
    }
}

/// What a workload brings into a set.
fn contributions(key: &SetKey, (addresses, ports, nets): Parts<'_>, mut give: impl FnMut(Member)) {
    match key {
        SetKey::Entities(_) => {
            addresses.iter().for_each(|ip| give(Member::Net(IpNetwork::from(*ip))));
            nets.iter().for_each(|net| give(Member::Net(*net)));
        }
        SetKey::Pods(_) => addresses.iter().for_each(|ip| give(Member::Ip(*ip))),
        SetKey::Ports(_, protocol, name) | SetKey::LocalPorts(protocol, name) => {
            for port in ports.iter().filter(|p| p.protocol == *protocol && p.name == *name) {
                addresses.iter().for_each(|ip| give(Member::IpPort(*ip, *protocol, port.number)));
            }
        }
        SetKey::Nets(_) => {}
    }
}
