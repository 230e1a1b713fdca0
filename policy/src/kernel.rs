//! What the kernel is known to hold, and the steps from there to what it should hold.
//!
//! A plan is taken to succeed when it is made; when the agent reports otherwise, or never reports, the family is forgotten
//! and must be read again before anything more is planned for it. So nobody ever builds on a guess.
//!
//! Order within a family, so that no packet is allowed that neither the old nor the new policy allows:
//! 1. sets that no rule knows yet are made and filled;
//! 2. sets of which no rule speaks that is about to go get their new members, and those of which no changing rule speaks at all
//!    lose their old ones thereafter: who moves from one to another is in both for a moment, and the first rule that matches
//!    is one of the old or one of the new;
//! 3. sets of which a rule speaks that is about to come lose their old members, which it must not find;
//! 4. the rules, each table in one transaction, or where a single policy changes in two ([`Script::chain_in_two`]);
//! 5. sets of which a rule has spoken that has gone lose their old members, and get their new ones, which it must not have found;
//! 6. sets that no rule knows any more are destroyed.
//!
//! Only 3 to 5 can drop what both policies allow, for the moment that one transaction takes, and only if the members of a set
//! change together with rules of which the old ones and the new ones speak of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::desired::{Chains, Desired, Key, closing};
use crate::engine::{EngineConfig, JumpPosition};
use crate::ir::{Member, SetKind, Table};
use crate::members::{Flips, Members};
use crate::model::Family;
use crate::names::{policy_direction, set_name, set_prefix};
use crate::plan::{ObservedSet, Step};
use crate::render::restore::Script;
use crate::render::save::{Saved, SavedHook};
use crate::render::{Line, Reference, references, same};

/// `maxelem` of our sets: a limit, not a reservation.
pub const MAX_ELEMENTS: u32 = 1 << 20;

#[derive(Debug)]
struct KernelSet {
    kind: Option<SetKind>,
    /// Read from the kernel and not compared yet; else what the calculation holds, less its flips.
    read: Option<Vec<Member>>,
}

/// One family's tables and sets as known.
#[derive(Debug)]
pub struct Kernel {
    family: Family,
    /// `None`: not known.
    chains: Option<Chains>,
    hooks: Vec<SavedHook>,
    /// The hooks are as they should be.
    hooked: bool,
    /// `None`: not known.
    sets: Option<BTreeMap<String, KernelSet>>,
    /// Every set must be compared, not only those that changed.
    compare_sets: bool,
    /// Chains that may differ from the desired ones.
    dirty: BTreeSet<Key>,
}

impl Kernel {
    /// Nothing is known.
    pub fn new(family: Family) -> Self {
        Kernel {
            family,
            chains: None,
            hooks: Vec::new(),
            hooked: false,
            sets: None,
            compare_sets: true,
            dirty: BTreeSet::new(),
        }
    }

    /// Are the tables known?
    pub fn knows_rules(&self) -> bool {
        self.chains.is_some()
    }

    /// Are the sets known?
    pub fn knows_sets(&self) -> bool {
        self.sets.is_some()
    }

    /// Something went wrong or is uncertain: look again.
    pub fn forget(&mut self) {
        *self = Kernel::new(self.family);
    }

    /// The tables as they are. Returns whether any of our chains is not as desired.
    pub fn observe_rules(&mut self, saved: Saved, desired: &Chains) -> bool {
        self.dirty = saved
            .chains
            .keys()
            .chain(desired.keys())
            .filter(|key| match (saved.chains.get(*key), desired.get(*key)) {
                (Some(found), Some(wanted)) => !same(found, wanted),
                _ => true,
            })
            .cloned()
            .collect();
        self.chains = Some(saved.chains);
        self.hooks = saved.hooks;
        self.hooked = false;
        !self.dirty.is_empty()
    }

    /// The sets as they are; those of the other family are passed over.
    pub fn observe_sets(&mut self, observed: &[ObservedSet]) {
        let own = observed.iter().filter(|set| set.name.starts_with(set_prefix(self.family)));
        let own =
            own.map(|set| (set.name.clone(), KernelSet { kind: set.kind, read: Some(set.members.clone()) }));
        self.sets = Some(own.collect());
        self.compare_sets = true;
    }

    /// These desired chains have changed.
    pub fn mark(&mut self, changed: BTreeSet<Key>) {
        self.dirty.extend(changed);
    }

    /// Look at every set in the next plan, not only at those that changed.
    pub fn compare_sets(&mut self) {
        self.compare_sets = true;
    }

    /// Chains that may not be as desired.
    pub fn dirty(&self) -> &BTreeSet<Key> {
        &self.dirty
    }

    /// Is there such a set?
    pub fn has_set(&self, suffix: &str) -> bool {
        self.sets.as_ref().is_some_and(|sets| sets.contains_key(&set_name(self.family, suffix)))
    }

    /// Before the source is in sync: the closing chains where there are none, and jumps to them where there are none. What
    /// an earlier agent left stays as it is.
    pub fn close(&mut self, desired: &Desired, jumps: JumpPosition) -> Vec<Step> {
        let Some(chains) = &mut self.chains else { return Vec::new() };
        let mut script = Script::default();
        for (key, lines) in closing(desired.layout(), self.family) {
            if !chains.contains_key(&key) {
                script.chain(key.0, &key.1, None, &lines);
                chains.insert(key.clone(), lines);
                self.dirty.insert(key);
            }
        }
        for (hook, line) in desired.hooks() {
            let leads = |found: &SavedHook| {
                let there = found.table == hook.table && found.chain == hook.chain;
                there && references(&found.line.spec).eq(references(&line.spec))
            };
            if !self.hooks.iter().any(leads) {
                script.add_hook(hook.table, hook.chain, &line, jumps == JumpPosition::Insert);
                let (table, chain) = (hook.table, hook.chain.to_string());
                self.hooks.push(SavedHook { table, chain, position: 0, line });
            }
        }
        self.restore(script).into_iter().collect()
    }

    /// The steps to what is desired. `idle`: suffixes of the sets that nobody wants any more. `broken`: sets that the kernel
    /// has refused, which are not touched.
    pub fn plan(
        &mut self,
        desired: &Desired,
        members: &mut Members,
        idle: &[String],
        broken: &BTreeMap<String, String>,
        config: &EngineConfig,
    ) -> Vec<Step> {
        if self.chains.is_none() || self.sets.is_none() {
            return Vec::new();
        }
        let changes = self.chain_changes(desired.chains(self.family));
        let chains = self.chains.as_ref().expect("known, as checked above");
        let spoken_of = SpokenOf {
            before: sets_spoken_of(&changes, chains),
            after: sets_spoken_of(&changes, desired.chains(self.family)),
        };
        let sets = self.set_changes(members, idle, broken, &spoken_of);

        let scripts = match config.deletions_apart && self.hooked {
            true => in_two(&changes),
            false => None,
        };
        let scripts = scripts.map(Vec::from).unwrap_or_else(|| {
            let mut script = Script::default();
            for (key, change) in &changes {
                match &change.new {
                    Some(new) => script.chain(key.0, &key.1, change.old.as_deref(), new),
                    None => script.remove_chain(key.0, &key.1),
                }
            }
            self.hook_changes(desired, config.jumps, &mut script);
            vec![script]
        });

        let chains = self.chains.as_mut().expect("known, as checked above");
        for (key, change) in changes {
            match change.new {
                Some(new) => _ = chains.insert(key, new),
                None => _ = chains.remove(&key),
            }
        }
        let mut steps = sets.before;
        steps.extend(scripts.into_iter().filter_map(|script| self.restore(script)));
        steps.extend(sets.after);
        steps
    }

    fn restore(&self, script: Script) -> Option<Step> {
        script.text().map(|text| Step::Restore { family: self.family, text })
    }

    fn chain_changes(&mut self, desired: &Chains) -> BTreeMap<Key, Change> {
        let chains = self.chains.as_ref().expect("the caller has checked");
        std::mem::take(&mut self.dirty)
            .into_iter()
            .map(|key| {
                let change = Change { old: chains.get(&key).cloned(), new: desired.get(&key).cloned() };
                (key, change)
            })
            .filter(|(_, change)| match (&change.old, &change.new) {
                (Some(old), Some(new)) => !same(old, new),
                (None, None) => false,
                _ => true,
            })
            .collect()
    }

    fn set_changes(
        &mut self,
        members: &mut Members,
        idle: &[String],
        broken: &BTreeMap<String, String>,
        spoken_of: &SpokenOf,
    ) -> SetSteps {
        let family = self.family;
        let sets = self.sets.as_mut().expect("the caller has checked");
        let mut steps = SetSteps::default();
        let candidates: Vec<_> =
            if self.compare_sets { members.all().map(|(id, _)| id).collect() } else { members.touched() };
        // By name: which steps there are, and in which order, must not depend on the order of arrival.
        let mut named: Vec<(String, u32)> = candidates
            .into_iter()
            .filter_map(|id| members.set(id).map(|set| (set, id)))
            .filter(|(set, _)| set.key.exists_in(family))
            .map(|(set, id)| (set_name(family, &set.suffix), id))
            .collect();
        named.sort();
        let wanted: BTreeSet<String> = named.iter().map(|(name, _)| name.clone()).collect();

        // A set that the kernel has refused is left as it is until an audit gives it another chance.
        for (name, id) in named.into_iter().filter(|(name, _)| !broken.contains_key(name)) {
            let flips = members.take_flips(id, family);
            let set = members.set(id).expect("named from it above");
            let kind = set.kind;
            let known = match sets.get_mut(&name) {
                Some(found) if found.kind != Some(kind) => {
                    // Not of our making. Where no rule speaks of it, it goes; else the kernel says so and we report it.
                    steps.create.push(Step::DestroySet { family, name: name.clone() });
                    None
                }
                known => known,
            };
            let Some(known) = known else {
                sets.insert(name.clone(), KernelSet { kind: Some(kind), read: None });
                steps.create.push(Step::CreateSet {
                    family,
                    name: name.clone(),
                    kind,
                    max_elements: MAX_ELEMENTS,
                });
                steps.create.extend(add(family, &name, kind, set.members(family)));
                continue;
            };
            let flips = match known.read.take() {
                None => flips,
                Some(read) => {
                    let read: FxHashSet<Member> = read.into_iter().collect();
                    let wanted = set.members(family);
                    let added = wanted.into_iter().filter(|m| !read.contains(m)).collect();
                    let mut deleted: Vec<Member> = read.into_iter().filter(|m| !set.contains(m)).collect();
                    deleted.sort_unstable();
                    Flips { added, deleted }
                }
            };
            let added = add(family, &name, kind, flips.added);
            let deleted = delete(family, &name, kind, flips.deleted);
            let (before, after) = (spoken_of.before.contains(&name), spoken_of.after.contains(&name));
            match (before, after) {
                (_, true) => steps.deleted.extend(deleted),
                (true, false) => steps.after.extend(deleted),
                (false, false) => steps.free_deleted.extend(deleted),
            }
            match before {
                true => steps.after.extend(added),
                false => steps.free_added.extend(added),
            }
        }

        let gone: Vec<String> = if self.compare_sets {
            sets.keys().filter(|name| !wanted.contains(*name)).cloned().collect()
        } else {
            idle.iter()
                .map(|suffix| set_name(family, suffix))
                .filter(|name| sets.contains_key(name))
                .collect()
        };
        for name in gone.into_iter().filter(|name| !broken.contains_key(name)) {
            sets.remove(&name);
            steps.after.push(Step::DestroySet { family, name });
        }
        self.compare_sets = false;
        let mut before = steps.create;
        before.extend(steps.free_added);
        before.extend(steps.free_deleted);
        before.extend(steps.deleted);
        SetSteps { before, after: steps.after, ..SetSteps::default() }
    }

    /// Each of our jumps exactly once, at its place; strangers with our names go.
    fn hook_changes(&mut self, desired: &Desired, jumps: JumpPosition, script: &mut Script) {
        if self.hooked {
            return;
        }
        let mut right = Vec::new();
        let mut missing = Vec::new();
        for (hook, line) in desired.hooks() {
            let found = self.hooks.iter().position(|found| {
                let there = found.table == hook.table && found.chain == hook.chain;
                let placed = jumps == JumpPosition::Append || found.position == 0;
                there && placed && found.line.hash == line.hash
            });
            match found {
                Some(at) => right.push(at),
                None => missing.push((hook, line)),
            }
        }
        for (_, stranger) in self.hooks.iter().enumerate().filter(|(at, _)| !right.contains(at)) {
            script.remove_hook(stranger.table, &stranger.chain, &stranger.line.spec);
        }
        for (hook, line) in missing {
            script.add_hook(hook.table, hook.chain, &line, jumps == JumpPosition::Insert);
        }
        self.hooks.clear();
        self.hooked = true;
    }
}

/// The scripts where no packet meets more than one changing chain in either direction: one that changes alone, or those of a
/// policy's two directions. With others between the steps it would meet the old of one and the new of another. `None` as well
/// where rules only come or only go.
fn in_two(changes: &BTreeMap<Key, Change>) -> Option<[Script; 2]> {
    let directions: BTreeSet<_> = changes.keys().map(|(_, name)| policy_direction(name)).collect();
    let apart = directions.len() == changes.len() && !directions.contains(&None);
    if changes.len() != 1 && !apart {
        return None;
    }
    let mut scripts = <[Script; 2]>::default();
    for ((table, name), change) in changes {
        let Change { old: Some(old), new: Some(new) } = change else { return None };
        if !Script::chain_in_two(&mut scripts, *table, name, old, new) {
            return None;
        }
    }
    (!scripts.iter().any(Script::is_empty)).then_some(scripts)
}

/// Sets on which the verdicts of changing chains depend.
struct SpokenOf {
    /// As they are.
    before: FxHashSet<String>,
    /// As they shall be.
    after: FxHashSet<String>,
}

/// The sets that changing chains speak of where `chains` are all that there are: their own and those of the chains that they lead
/// to.
fn sets_spoken_of(changes: &BTreeMap<Key, Change>, chains: &Chains) -> FxHashSet<String> {
    let mut sets = FxHashSet::default();
    let mut seen: FxHashSet<&str> = FxHashSet::default();
    let mut queue: Vec<&str> = changes.keys().map(|(_, name)| name.as_str()).collect();
    // A dispatch chain leads to every endpoint; it changes when an interface comes or goes, whose own chains change too.
    queue.retain(|name| !crate::compile::is_dispatch(name));
    while let Some(name) = queue.pop() {
        if !seen.insert(name) {
            continue;
        }
        let lines = Table::ALL.into_iter().filter_map(|table| chains.get(&(table, name.to_string())));
        for reference in lines.flat_map(|lines| lines.iter()).flat_map(|line| references(&line.spec)) {
            match reference {
                Reference::Set(set) => _ = sets.insert(set.to_string()),
                Reference::Chain(chain) => queue.push(chain),
            }
        }
    }
    sets
}

struct Change {
    old: Option<Arc<[Line]>>,
    new: Option<Arc<[Line]>>,
}

#[derive(Default)]
struct SetSteps {
    create: Vec<Step>,
    /// Of sets that no rule speaks of that is about to go.
    free_added: Vec<Step>,
    /// Of sets that no changing rule speaks of.
    free_deleted: Vec<Step>,
    deleted: Vec<Step>,
    before: Vec<Step>,
    after: Vec<Step>,
}

fn add(family: Family, set: &str, kind: SetKind, members: Vec<Member>) -> Option<Step> {
    (!members.is_empty()).then(|| Step::AddMembers { family, set: set.to_string(), kind, members })
}

fn delete(family: Family, set: &str, kind: SetKind, members: Vec<Member>) -> Option<Step> {
    (!members.is_empty()).then(|| Step::DeleteMembers { family, set: set.to_string(), kind, members })
}
