//! What the kernel is known to hold, and the steps from there to what it should hold.
//!
//! A plan is taken to succeed when it is made; when the agent reports otherwise, or never reports, the family is forgotten
//! and must be read again before anything more is planned for it. So nobody ever builds on a guess.
//!
//! Order within a family, so that no packet is allowed that neither the old nor the new policy allows:
//! 1. sets that no rule knows yet are made and filled;
//! 2. sets of which no changing rule speaks get their new members, all of them, and then lose their old ones: who moves from
//!    one to another is in both for a moment, and the first rule that matches is one of the old or one of the new;
//! 3. sets of which a changing rule speaks lose their old members: a rule that is about to come must not find them;
//! 4. the rules, each table in one transaction;
//! 5. sets of which a changed rule speaks get their new members: a rule that has gone must not have found them;
//! 6. sets that no rule knows any more are destroyed.
//!
//! Only 3 to 5 can drop what both policies allow, for the moment that one transaction takes, and only if members and rules
//! of one set change together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::desired::{Chains, Desired, Key, closing};
use crate::engine::JumpPosition;
use crate::ir::{Member, SetKind, Table};
use crate::members::{Flips, Members};
use crate::model::Family;
use crate::names::{set_name, set_prefix};
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
        self.restore(script)
    }

    /// The steps to what is desired. `idle`: suffixes of the sets that nobody wants any more. `broken`: sets that the kernel
    /// has refused, which are not touched.
    pub fn plan(
        &mut self,
        desired: &Desired,
        members: &mut Members,
        idle: &[String],
        broken: &BTreeMap<String, String>,
        jumps: JumpPosition,
    ) -> Vec<Step> {
        if self.chains.is_none() || self.sets.is_none() {
            return Vec::new();
        }
        let changes = self.chain_changes(desired.chains(self.family));
        let spoken_of = self.sets_spoken_of(&changes, desired.chains(self.family));
        let sets = self.set_changes(members, idle, broken, &spoken_of);

        let mut script = Script::default();
        for (key, change) in &changes {
            match &change.new {
                Some(new) => script.chain(key.0, &key.1, change.old.as_deref(), new),
                None => script.remove_chain(key.0, &key.1),
            }
        }
        self.hook_changes(desired, jumps, &mut script);

        let chains = self.chains.as_mut().expect("known, as checked above");
        for (key, change) in changes {
            match change.new {
                Some(new) => _ = chains.insert(key, new),
                None => _ = chains.remove(&key),
            }
        }
        let mut steps = sets.before;
        steps.extend(self.restore(script));
        steps.extend(sets.after);
        steps
    }

    fn restore(&self, script: Script) -> Vec<Step> {
        script.text().map(|text| Step::Restore { family: self.family, text }).into_iter().collect()
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

    /// The sets on which a changing chain's verdict depends, before or after: its own and those of the chains that it leads
    /// to.
    fn sets_spoken_of(&self, changes: &BTreeMap<Key, Change>, desired: &Chains) -> FxHashSet<String> {
        let chains = self.chains.as_ref().expect("the caller has checked");
        let mut sets = FxHashSet::default();
        let mut seen: FxHashSet<&str> = FxHashSet::default();
        let mut queue: Vec<&str> = changes.keys().map(|(_, name)| name.as_str()).collect();
        // A dispatch chain leads to every endpoint; it changes when an interface comes or goes, whose own chains change too.
        queue.retain(|name| !crate::compile::is_dispatch(name));
        while let Some(name) = queue.pop() {
            if !seen.insert(name) {
                continue;
            }
            for table in Table::ALL {
                let key = (table, name.to_string());
                let lines = [chains.get(&key), desired.get(&key)];
                for line in lines.into_iter().flatten().flat_map(|lines| lines.iter()) {
                    for reference in references(&line.spec) {
                        match reference {
                            Reference::Set(set) => _ = sets.insert(set.to_string()),
                            Reference::Chain(chain) => queue.push(chain),
                        }
                    }
                }
            }
        }
        sets
    }

    fn set_changes(
        &mut self,
        members: &mut Members,
        idle: &[String],
        broken: &BTreeMap<String, String>,
        spoken_of: &FxHashSet<String>,
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
            if spoken_of.contains(&name) {
                steps.deleted.extend(deleted);
                steps.after.extend(added);
            } else {
                steps.free_added.extend(added);
                steps.free_deleted.extend(deleted);
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

struct Change {
    old: Option<Arc<[Line]>>,
    new: Option<Arc<[Line]>>,
}

#[derive(Default)]
struct SetSteps {
    create: Vec<Step>,
    /// Of sets that no changing rule speaks of.
    free_added: Vec<Step>,
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
