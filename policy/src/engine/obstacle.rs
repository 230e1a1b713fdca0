//! Why something is not in force yet: for the one who waits, in words, and for the engine, as the question whether anything is
//! left at all.

use super::{Engine, each_policy};
use crate::calc::{Access, Resolved};
use crate::compile::{dispatched_part, endpoint_chain};
use crate::desired::Key;
use crate::grants::sets_of;
use crate::model::{Direction, Family, Policy, PolicyId};
use crate::names::policy_chain;

impl Engine {
    /// What stands between a policy's rules and the kernel, in words.
    pub(super) fn policy_obstacle(&self, id: &PolicyId) -> Option<String> {
        let policy = self.calc.active(id)?;
        if !self.in_sync {
            return Some("the source is not in sync yet".into());
        }
        let chains = Direction::ALL.map(|direction| policy_chain(id, direction));
        for (family, kernel) in Family::ALL.into_iter().zip(&self.kernels) {
            if !kernel.knows_rules() || !kernel.knows_sets() {
                return Some(self.unknown_kernel(family));
            }
            let mut held = self.desired.held(family);
            if let Some((_, reason)) = held.find(|((_, held), _)| chains.contains(held)) {
                return Some(format!("the kernel refused it: {reason}"));
            }
            let in_flight = self.in_flight.iter().flat_map(|in_flight| &in_flight.keys[family as usize]);
            if kernel.dirty().iter().chain(in_flight).any(|(_, name)| chains.contains(name)) {
                return Some("its rules are being written".into());
            }
            let mut sets = sets_of(policy).into_iter().filter(|key| key.exists_in(family));
            if sets.any(|key| !kernel.has_set(&key.suffix())) {
                return Some("its sets are being written".into());
            }
        }
        None
    }

    fn unknown_kernel(&self, family: Family) -> String {
        let broken = &self.broken[family as usize];
        // What has just failed at a set is looked at again; until then that is the reason.
        let set = broken.sets.values().next().filter(|_| broken.fresh);
        match self.failures.get(&family).or(set) {
            Some(reason) => format!("the kernel refused: {reason}"),
            None => "the kernel's rules have not been read yet".into(),
        }
    }

    /// What stands between an endpoint's policy and the kernel, in words.
    pub(super) fn obstacle(&self, resolved: &Resolved) -> Option<String> {
        if let Access::Closed(why) = &resolved.access {
            return Some(format!("closed: {}", why.as_str()));
        }
        if !self.in_sync {
            return Some("the source is not in sync yet".into());
        }
        for (family, kernel) in Family::ALL.into_iter().zip(&self.kernels) {
            if !kernel.knows_rules() || !kernel.knows_sets() {
                return Some(self.unknown_kernel(family));
            }
            let held = |name: &str| self.desired.held(family).find(|((_, held), _)| held == name);
            for (policy, direction) in each_policy(resolved) {
                if let Some((_, reason)) = held(&policy_chain(policy, direction)) {
                    return Some(format!("the kernel refused policy {policy}: {reason}"));
                }
            }
            let in_flight = self.in_flight.iter().flat_map(|in_flight| &in_flight.keys[family as usize]);
            if kernel.dirty().iter().chain(in_flight).any(|key| self.concerns(key, resolved)) {
                return Some("its rules are being written".into());
            }
            let policies = each_policy(resolved).map(|(policy, _)| policy);
            let missing = |policy: &Policy| {
                let sets = sets_of(policy);
                sets.iter().any(|key| key.exists_in(family) && !kernel.has_set(&key.suffix()))
            };
            if policies.filter_map(|policy| self.calc.active(policy)).any(|policy| missing(policy)) {
                return Some("its sets are being written".into());
            }
        }
        None
    }

    /// Does what this chain holds matter to the endpoint?
    fn concerns(&self, (_, name): &Key, resolved: &Resolved) -> bool {
        if let Some(common) = dispatched_part(name) {
            let own = resolved.interface.strip_prefix(&self.config.interface_prefix);
            return own.is_some_and(|own| own.starts_with(common));
        }
        let own = |kind| *name == endpoint_chain(kind, &resolved.interface);
        let is_endpoint = ["MANX-FE-", "MANX-TE-", "MANX-SE-"].iter().any(|kind| name.starts_with(kind));
        let is_policy = ["MANX-PI-", "MANX-PE-"].iter().any(|kind| name.starts_with(kind));
        match (is_endpoint, is_policy) {
            (true, _) => own("FE") || own("TE") || own("SE"),
            (_, true) => Direction::ALL.into_iter().any(|direction| {
                resolved
                    .access
                    .policies(direction)
                    .iter()
                    .any(|governing| *name == policy_chain(&governing.id, direction))
            }),
            (false, false) => true,
        }
    }
}
