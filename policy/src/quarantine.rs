//! Finds the policies whose rules the kernel refuses, so that one of them does not keep all others out.
//!
//! A table is restored as a whole: one rule for which the kernel lacks a module spoils the lot. When a restore fails, every
//! policy chain in it is held back, closed, and the rest tried alone.
//!
//! ```text
//! Calm --refused--> Control: all suspects held --refused--> Calm (it is not the policies)
//!                        | accepted
//!                        v
//!                   Trials: release a group --accepted--> next group
//!                        ^       | refused: hold it again, try its halves; one alone stays held
//!                        +-------+
//! ```
//! Decides only who is held; knows nothing of what a chain holds.

use crate::desired::Key;

/// The search in one family.
#[derive(Debug, Default)]
pub struct Quarantine {
    stage: Stage,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Calm,
    Control(Vec<Key>),
    Trials {
        waiting: Vec<Vec<Key>>,
        running: Option<Vec<Key>>,
    },
}

/// What follows from a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Orders {
    /// Hold these back.
    Hold(Vec<Key>),
    /// Let these go: it was not for them.
    Release(Vec<Key>),
}

impl Quarantine {
    /// A restore was refused; these policy chains were in it.
    pub fn refused(&mut self, policies: Vec<Key>) -> Orders {
        match std::mem::take(&mut self.stage) {
            Stage::Control(suspects) => Orders::Release(suspects),
            Stage::Trials { mut waiting, running: Some(group) } => {
                if group.len() > 1 {
                    let (first, second) = group.split_at(group.len() / 2);
                    waiting.extend([first.to_vec(), second.to_vec()]);
                }
                self.stage = Stage::Trials { waiting, running: None };
                Orders::Hold(group)
            }
            Stage::Calm | Stage::Trials { running: None, .. } if policies.is_empty() => {
                Orders::Hold(policies)
            }
            // New suspects while old ones wait their turn: all of them are tried again.
            Stage::Trials { waiting, running: None } => {
                let suspects = waiting.into_iter().flatten().chain(policies.iter().cloned()).collect();
                self.stage = Stage::Control(suspects);
                Orders::Hold(policies)
            }
            Stage::Calm => {
                self.stage = Stage::Control(policies.clone());
                Orders::Hold(policies)
            }
        }
    }

    /// A restore was accepted.
    pub fn accepted(&mut self) {
        self.stage = match std::mem::take(&mut self.stage) {
            Stage::Calm => Stage::Calm,
            Stage::Control(suspects) => Stage::Trials { waiting: vec![suspects], running: None },
            Stage::Trials { waiting, .. } => Stage::Trials { waiting, running: None },
        };
    }

    /// Whom to release for the next restore.
    pub fn next_trial(&mut self) -> Vec<Key> {
        let Stage::Trials { waiting, running } = &mut self.stage else { return Vec::new() };
        match waiting.pop() {
            Some(group) => {
                *running = Some(group.clone());
                group
            }
            None => {
                self.stage = Stage::Calm;
                Vec::new()
            }
        }
    }

    /// Gives those who are held another chance: what the kernel lacked may have come.
    pub fn retry(&mut self, held: Vec<Key>) {
        if matches!(self.stage, Stage::Calm) && !held.is_empty() {
            self.stage = Stage::Trials { waiting: vec![held], running: None };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Table;

    fn keys(names: &[&str]) -> Vec<Key> {
        names.iter().map(|name| (Table::Filter, (*name).to_string())).collect()
    }

    #[test]
    fn one_bad_policy_among_many_is_found_by_halves_and_held_alone() {
        let mut quarantine = Quarantine::default();
        let all: Vec<String> = (0..64).map(|i| format!("p{i}")).collect();
        let all = keys(&all.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(quarantine.refused(all.clone()), Orders::Hold(all.clone()));
        quarantine.accepted();
        let mut held = all;
        let mut restores = 0;
        loop {
            let group = quarantine.next_trial();
            if group.is_empty() {
                break;
            }
            restores += 1;
            held.retain(|key| !group.contains(key));
            if group.iter().any(|(_, name)| name == "p37") {
                let Orders::Hold(again) = quarantine.refused(Vec::new()) else { panic!() };
                held.extend(again);
            } else {
                quarantine.accepted();
            }
        }
        assert_eq!(held, keys(&["p37"]));
        assert!(restores <= 13, "{restores} restores");
    }

    #[test]
    fn when_the_rest_is_refused_as_well_nobody_is_held() {
        let mut quarantine = Quarantine::default();
        quarantine.refused(keys(&["a", "b"]));
        assert_eq!(quarantine.refused(Vec::new()), Orders::Release(keys(&["a", "b"])));
        assert!(quarantine.next_trial().is_empty());
    }
}
