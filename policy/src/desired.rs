//! The rules that should be in the kernel, spelled: kept up to date chain by chain as the calculation changes. Knows what
//! should be, not what is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::calc::{Calc, Changes, dispatchable_on};
use crate::compile::{self, Layout, endpoint_chain};
use crate::ir::{Chain, Hook, Program, Rule, Table, Verdict};
use crate::model::{Direction, Family};
use crate::names::policy_chain;
use crate::render::{self, Line};

/// Names a chain.
pub type Key = (Table, String);

/// All chains of one family.
pub type Chains = BTreeMap<Key, Arc<[Line]>>;

/// The desired chains of both families, and which of them have changed since last asked.
#[derive(Debug)]
pub struct Desired {
    layout: Layout,
    interfaces: BTreeSet<String>,
    chains: [Chains; 2],
    changed: [BTreeSet<Key>; 2],
    /// Policy chains that stand closed in place of these, which the kernel refused, and its words.
    held: [BTreeMap<Key, Held>; 2],
    /// What nobody needs any more waits to be tidied away.
    lingers: bool,
    left: Left,
}

/// Stays as it is although nobody needs it.
#[derive(Debug, Default)]
struct Left {
    interfaces: BTreeSet<String>,
    chains: BTreeSet<Key>,
}

#[derive(Debug)]
struct Held {
    lines: Arc<[Line]>,
    reason: String,
}

impl Desired {
    /// With no endpoint: what closes every pod. `lingers`: what nobody needs any more stays until [`Desired::tidy`].
    pub fn new(layout: Layout, lingers: bool) -> Self {
        let chains = Family::ALL.map(|family| closing(&layout, family));
        Desired {
            layout,
            interfaces: BTreeSet::new(),
            chains,
            changed: Default::default(),
            held: Default::default(),
            lingers,
            left: Left::default(),
        }
    }

    /// What it was made with.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Our jumps in the built-in chains.
    pub fn hooks(&self) -> Vec<(Hook, Line)> {
        let hooks = self.layout.hooks();
        hooks.into_iter().map(|hook| (hook.clone(), render::line(hook.chain, &hook.rule))).collect()
    }

    /// The chains of a family.
    pub fn chains(&self, family: Family) -> &Chains {
        &self.chains[family as usize]
    }

    /// Chains that changed, appeared or went since the last call.
    pub fn take_changed(&mut self, family: Family) -> BTreeSet<Key> {
        std::mem::take(&mut self.changed[family as usize])
    }

    /// Puts closed chains in the place of these policy chains; those that are no more are passed over.
    pub fn hold(&mut self, family: Family, keys: Vec<Key>, reason: &str) {
        for key in keys {
            let Some(lines) = self.chains[family as usize].get_mut(&key) else { continue };
            let closed = vec![render::line(&key.1, &held_rule(lines))];
            let lines = std::mem::replace(lines, closed.into());
            let held = self.held[family as usize].entry(key.clone());
            held.or_insert(Held { lines, reason: String::new() }).reason = reason.to_string();
            self.changed[family as usize].insert(key);
        }
    }

    /// Puts back what stood there before.
    pub fn release(&mut self, family: Family, keys: Vec<Key>) {
        for key in keys {
            let Some(held) = self.held[family as usize].remove(&key) else { continue };
            self.chains[family as usize].insert(key.clone(), held.lines);
            self.changed[family as usize].insert(key);
        }
    }

    /// The chains that are held, with the kernel's words.
    pub fn held(&self, family: Family) -> impl Iterator<Item = (&Key, &str)> {
        self.held[family as usize].iter().map(|(key, held)| (key, held.reason.as_str()))
    }

    /// Follows the calculation.
    pub fn update(&mut self, changes: &Changes, calc: &Calc) {
        let mut interfaces: BTreeSet<&str> =
            changes.endpoints.values().flatten().map(String::as_str).collect();
        for id in changes.endpoints.keys() {
            interfaces.extend(calc.endpoints().get(id).map(|resolved| resolved.interface.as_str()));
        }
        let mut dispatch_changed = false;
        for interface in interfaces {
            match dispatchable_on(calc, interface) {
                Some(resolved) => {
                    self.left.interfaces.remove(interface);
                    dispatch_changed |= self.interfaces.insert(interface.to_string());
                    for family in Family::ALL {
                        for placed in self.layout.endpoint(family, resolved) {
                            self.set(family, &placed);
                        }
                    }
                }
                None if self.lingers => {
                    if self.interfaces.contains(interface) {
                        self.left.interfaces.insert(interface.to_string());
                    }
                }
                None => dispatch_changed |= self.forget(interface),
            }
        }
        if dispatch_changed {
            self.redispatch();
        }
        for id in &changes.policies {
            let policy = calc.active(id);
            for family in Family::ALL {
                let placed = policy.map(|policy| self.layout.policy(family, policy));
                for placed in placed.unwrap_or_default() {
                    self.set(family, &placed);
                }
            }
            for direction in Direction::ALL {
                if policy.is_none_or(|policy| policy.rules(direction).is_none()) {
                    self.leave((Table::Filter, policy_chain(id, direction)));
                }
            }
        }
    }

    /// How many interfaces and chains are there that nobody needs.
    pub fn left(&self) -> usize {
        self.left.interfaces.len() + self.left.chains.len()
    }

    /// Does away with them.
    pub fn tidy(&mut self) {
        let Left { interfaces, chains } = std::mem::take(&mut self.left);
        let mut dispatch_changed = false;
        for interface in interfaces {
            dispatch_changed |= self.forget(&interface);
        }
        if dispatch_changed {
            self.redispatch();
        }
        for key in chains {
            self.remove(&key);
        }
    }

    /// The chains of this interface go; whether it was led to.
    fn forget(&mut self, interface: &str) -> bool {
        for (table, kind) in [(Table::Filter, "FE"), (Table::Filter, "TE"), (Table::Raw, "SE")] {
            self.remove(&(table, endpoint_chain(kind, interface)));
        }
        self.interfaces.remove(interface)
    }

    /// Nobody needs this chain any more, unless it is one that stays a while.
    fn leave(&mut self, key: Key) {
        if !self.lingers {
            return self.remove(&key);
        }
        for family in Family::ALL {
            self.held[family as usize].remove(&key);
        }
        if self.chains.iter().any(|chains| chains.contains_key(&key)) {
            self.left.chains.insert(key);
        }
    }

    /// The trees are small and equal in both families: built anew, they change where an interface came or went.
    fn redispatch(&mut self) {
        let trees = self.layout.dispatch(&self.interfaces);
        let names: BTreeSet<&str> = trees.iter().map(|(_, chain)| chain.name.as_str()).collect();
        let gone: Vec<Key> = self.chains[0]
            .keys()
            .filter(|(_, name)| crate::compile::is_dispatch(name) && !names.contains(name.as_str()))
            .cloned()
            .collect();
        for key in &gone {
            self.remove(key);
        }
        for family in Family::ALL {
            for placed in &trees {
                self.set(family, placed);
            }
        }
    }

    fn set(&mut self, family: Family, (table, chain): &(Table, Chain)) {
        let key = (*table, chain.name.clone());
        self.left.chains.remove(&key);
        let lines = render::lines(chain);
        let chains = &mut self.chains[family as usize];
        if chains.get(&key).is_some_and(|known| render::same(known, &lines)) {
            return;
        }
        chains.insert(key.clone(), lines.into());
        self.held[family as usize].remove(&key);
        self.changed[family as usize].insert(key);
    }

    fn remove(&mut self, key: &Key) {
        for family in Family::ALL {
            self.held[family as usize].remove(key);
            if self.chains[family as usize].remove(key).is_some() {
                self.changed[family as usize].insert(key.clone());
            }
        }
    }
}

/// What stands in for a policy chain. One that only allows then allows nothing; where rules deny or pass, nobody knows what
/// they would have kept out: everything is.
fn held_rule(lines: &[Line]) -> Rule {
    let pass = format!("-g {}", compile::chain::PASS);
    let closes = lines.iter().any(|line| line.spec.ends_with("-j DROP") || line.spec.ends_with(&pass));
    let verdict = if closes { Verdict::Drop } else { Verdict::Return };
    let comment = "held back: the kernel refused this policy";
    Rule { matches: SmallVec::new(), verdict, comment: comment.into(), origin: None }
}

/// The program with those of its policy chains closed that the kernel has refused.
pub(crate) fn close_held(program: &mut Program, desired: &Desired) {
    for (key, held) in &desired.held[program.family as usize] {
        if let Some(chain) = program.chains.get_mut(key) {
            chain.rules = vec![held_rule(&held.lines)];
        }
    }
}

/// The chains that drop whatever comes from or goes to a pod interface.
pub fn closing(layout: &Layout, family: Family) -> Chains {
    let mut chains = layout.fixed(family);
    chains.extend(layout.dispatch(&BTreeSet::new()));
    chains
        .into_iter()
        .map(|(table, chain)| ((table, chain.name.clone()), render::lines(&chain).into()))
        .collect()
}
