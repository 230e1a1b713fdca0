//! Carries out the policy engine's plans, and reads for it what the kernel holds. Decides nothing.

use std::collections::BTreeMap;
use std::thread;
use std::time::SystemTime;

use manx_policy::model::Family as PolicyFamily;
use manx_policy::plan::{Observed, Outcome, Plan, Step, StepResult, Wants};
use manx_policy::render;

use super::Family;
use super::cleanup;
use super::egress_nat;
use super::ipset::{IpsetError, Ipsets};
use super::iptables::{self, Backend, IptablesError, Restorer};

/// Bytes for `iptables-restore` up to which most of a change is the kernel's transaction, and not the reading of them.
const SMALL: usize = 32 << 10;
/// A chain to which nothing leads.
const PROBE: &str = "MANX-PROBE";
/// What begins the names of our sets, without the family's digit.
const SET_PREFIXES: [&str; 2] = ["manx4-", "manx6-"];

/// The packet filter of the namespace of the thread that opened it.
#[derive(Debug)]
pub struct PolicyKernel {
    backend: Backend,
    restorer: Restorer,
    sets: Ipsets,
}

/// The packet filter could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum PolicyKernelError {
    /// Rules.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    /// Sets.
    #[error(transparent)]
    Ipset(#[from] IpsetError),
}

impl PolicyKernel {
    /// Works in the tables of `backend`, and checks that both tools do.
    ///
    /// # Errors
    /// A tool, a kernel module or a privilege is missing.
    pub fn open(backend: Backend) -> Result<Self, PolicyKernelError> {
        let mut kernel = PolicyKernel { backend, restorer: Restorer::new(backend), sets: Ipsets::open()? };
        kernel.observe(Wants { ipv4_rules: true, ipv6_rules: true, sets: true })?;
        Ok(kernel)
    }

    /// The back end in use.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Takes what an agent that worked in the tables of the other back end has left there, but for egress NAT: the kernel
    /// goes through both, and those would judge by what held then. What went is told in words.
    ///
    /// # Errors
    /// The first that could not be done, in words.
    pub fn sweep_other_backend(&self) -> Result<Vec<String>, String> {
        let sweep = |family| {
            cleanup::remove_rules(self.backend.other(), family, |table| !egress_nat::is_table(table))
        };
        Family::BOTH.into_iter().filter_map(sweep).collect()
    }

    /// Reads what the engine wants to see.
    ///
    /// # Errors
    /// Something can't be read.
    pub fn observe(&mut self, wants: Wants) -> Result<Observed, PolicyKernelError> {
        let mut rules = Vec::new();
        for family in PolicyFamily::ALL {
            if wants.rules(family) {
                rules.push((family, iptables::save_counters(self.backend, family.into())?));
            }
        }
        let sets = match wants.sets {
            true => {
                let mut sets = self.sets.list(&SET_PREFIXES)?;
                sets.retain(|set| !egress_nat::is_ours(&set.name));
                Some(sets)
            }
            false => None,
        };
        Ok(Observed { at: SystemTime::now(), rules, sets })
    }

    /// How many members our sets have.
    ///
    /// # Errors
    /// They can't be read.
    pub fn count_members(&mut self) -> Result<BTreeMap<String, u32>, PolicyKernelError> {
        Ok(self.sets.count(&SET_PREFIXES)?)
    }

    /// Does this kernel take a rule that logs? Puts one where no packet comes by, and takes it away again.
    ///
    /// # Errors
    /// What the kernel says, where it takes the same chain without that rule.
    pub fn can_log(&self, family: PolicyFamily) -> Result<(), String> {
        let restore = |lines: &str| {
            let text = format!("*filter\n:{PROBE} - [0:0]\n{lines}COMMIT\n");
            iptables::restore(self.backend, family.into(), &text).map_err(|e| e.to_string())
        };
        let logs = restore(&format!("-A {PROBE} {}\n", render::log_probe()));
        let gone = restore(&format!("-F {PROBE}\n-X {PROBE}\n"));
        match (logs, gone) {
            (Err(reason), Ok(())) => Err(reason),
            (Ok(()), _) | (Err(_), Err(_)) => Ok(()),
        }
    }

    /// Carries out a plan: each family's steps in order until one fails; rules of the two families at the same time.
    ///
    /// Sets go through one socket and take microseconds; only the processes are worth running side by side. So the
    /// steps are cut at the restores: sets before them for both families, the restores together, sets after them.
    pub fn execute(&mut self, plan: &Plan) -> Outcome {
        let mut results = vec![StepResult::Skipped; plan.steps.len()];
        let mut queues: Vec<Vec<usize>> = PolicyFamily::ALL
            .map(|family| (0..plan.steps.len()).filter(|i| plan.steps[*i].family() == family).collect())
            .into();
        while queues.iter().any(|q| !q.is_empty()) {
            for queue in &mut queues {
                self.execute_sets(plan, queue, &mut results);
            }
            self.execute_restores(plan, &mut queues, &mut results);
        }
        Outcome { at: SystemTime::now(), results }
    }

    /// All steps of one family up to its next restore. A failure empties the queue: what follows stays skipped.
    fn execute_sets(&mut self, plan: &Plan, queue: &mut Vec<usize>, results: &mut [StepResult]) {
        let until =
            queue.iter().position(|i| matches!(plan.steps[*i], Step::Restore { .. })).unwrap_or(queue.len());
        for index in queue.drain(..until).collect::<Vec<_>>() {
            if let Err(e) = self.execute_set(&plan.steps[index]) {
                results[index] = StepResult::Failed(e.to_string());
                queue.clear();
                return;
            }
            results[index] = StepResult::Done;
        }
    }

    fn execute_set(&mut self, step: &Step) -> Result<(), IpsetError> {
        match step {
            Step::CreateSet { family, name, kind, max_elements } => {
                self.sets.create(name, *kind, (*family).into(), *max_elements)
            }
            Step::AddMembers { set, members, .. } => self.sets.add(set, members),
            Step::DeleteMembers { set, members, .. } => self.sets.delete(set, members),
            Step::DestroySet { name, .. } => self.sets.destroy(name),
            Step::Restore { .. } => unreachable!("restores are cut out before"),
        }
    }

    /// The restore that each family has come to: at the same time, unless they are small changes of nf_tables. There the kernel
    /// takes one transaction after the other, and a program that meets another's begins anew.
    fn execute_restores(&self, plan: &Plan, queues: &mut [Vec<usize>], results: &mut [StepResult]) {
        let restorer = &self.restorer;
        let heads: Vec<Option<usize>> = queues.iter().map(|q| q.first().copied()).collect();
        let restore = |head: Option<usize>| match head.map(|i| &plan.steps[i]) {
            Some(Step::Restore { family, text }) => Some(restorer.restore(Family::from(*family), text)),
            _ => None,
        };
        let length = |head: &usize| match &plan.steps[*head] {
            Step::Restore { text, .. } => text.len(),
            _ => 0,
        };
        let small = heads.iter().flatten().map(length).sum::<usize>() <= SMALL;
        let outcomes: Vec<_> = match self.backend == Backend::Nft && small {
            true => heads.iter().map(|head| restore(*head)).collect(),
            false => thread::scope(|scope| {
                let running = heads.iter().map(|head| head.map(|_| scope.spawn(move || restore(*head))));
                let running: Vec<_> = running.collect();
                let outcome =
                    |one: thread::ScopedJoinHandle<'_, _>| one.join().expect("restoring does not panic");
                running.into_iter().map(|one| one.and_then(outcome)).collect()
            }),
        };
        for ((queue, head), outcome) in queues.iter_mut().zip(heads).zip(outcomes) {
            let (Some(index), Some(outcome)) = (head, outcome) else { continue };
            queue.remove(0);
            results[index] = match outcome {
                Ok(()) => StepResult::Done,
                Err(e) => {
                    queue.clear();
                    StepResult::Failed(e.to_string())
                }
            };
        }
    }
}
