//! The one door for the agent: cluster changes and kernel observations in, plans and explanations out.
//!
//! Pure: no process, no socket, no clock. The agent calls [`Engine::apply`] for every change, executes what
//! [`Engine::plan`] returns and reports back with [`Engine::applied`]; [`Engine::wants`] says what of the kernel must be read
//! before more can be planned.

use std::net::IpAddr;
use std::time::SystemTime;

use std::collections::{BTreeMap, BTreeSet};

use crate::calc::{Calc, Changes, Resolved};
use crate::compile::{Layout, Marks, policy_words};
use crate::desired::{Desired, Key, close_held};
use crate::diff::Proposal;
use crate::drops::{self, Point};
use crate::grants::sets_of;
use crate::ir::{Program, Table, Verdict};
use crate::kernel::Kernel;
use crate::live::{Judge, LiveFlow, Suspects};
use crate::model::{Direction, EndpointId, Family, PodId, Policy, PolicyId, Problem, Update};
use crate::names::{policy_chain, policy_direction, set_name};
use crate::plan::{Observed, Outcome, Plan, PlanId, StepResult, Wants};
use crate::quarantine::{Orders, Quarantine};
use crate::render::save;
use crate::state::State;
use crate::trace::{self, Explanation, Question};
use crate::verdict::{Flow, FlowVerdict, verdict};
use crate::view::render_pod;
pub use crate::view::{DirectionView, EndpointView, EngineStatus, PodPolicyView, PolicyStatus, PolicyView};

mod obstacle;

/// Where our jumps go in the built-in chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum JumpPosition {
    /// At the top: ours is the first word on pod traffic.
    #[default]
    Insert,
    /// At the end: the host's own rules come first, and what they accept escapes us. The guard is left out.
    Append,
}

/// What does not change while the agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// This node's name.
    pub node: String,
    /// All interfaces that begin so are pods': 1 to 13 bytes, as iptables takes a name of 15 bytes and a `+`.
    pub interface_prefix: String,
    /// Mark bits that are ours: four at least.
    pub mark_mask: u32,
    /// Where our jumps go.
    pub jumps: JumpPosition,
    /// Whether drops are logged to NFLOG group [`crate::drops::NFLOG_GROUP`].
    pub log_drops: bool,
    /// No pod gets the interface name of another that has gone, since names are made of attachments. Then nothing can come
    /// by the rules of a pod that has gone, and they stay until [`Engine::tidy`]: whoever adds rules within some 15 ms after
    /// others have been deleted waits in the kernel for the end of these, and a pod that starts would.
    pub names_are_unique: bool,
    /// Rules of one chain come in one transaction and those that they replace go in the next. For nf_tables: there the second
    /// family would wait for the end of what the first one deletes, as above.
    pub deletions_apart: bool,
}

impl EngineConfig {
    /// The defaults for a node.
    pub fn new(node: impl Into<String>) -> Self {
        EngineConfig {
            node: node.into(),
            interface_prefix: "manx".into(),
            mark_mask: 0x0f00_0000,
            jumps: JumpPosition::Insert,
            log_drops: true,
            names_are_unique: false,
            deletions_apart: false,
        }
    }
}

/// The configuration cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Too few mark bits.
    #[error(
        "mark mask {0:#010x} has fewer than four bits: give --mark-mask four bits that nothing else on this host uses"
    )]
    MarkMask(u32),
    /// A prefix that is empty, too long or not a part of an interface name.
    #[error("pod interface prefix {0:?}: give 1 to 13 letters, digits, '-', '_' or '.'")]
    InterfacePrefix(String),
}

/// Whether an endpoint's policy is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InForce {
    /// In force, the current one, since then.
    Since(SystemTime),
    /// Not (yet), and why: a sentence for the person who waits.
    Not(String),
}

/// A plan that the agent is executing.
#[derive(Debug)]
struct InFlight {
    id: PlanId,
    /// Of each step: whose it is, and which set it is about; `None`: it restores rules.
    steps: Vec<(Family, Option<String>)>,
    /// Chains that the plan touches.
    keys: [BTreeSet<Key>; 2],
}

/// Sets of one family that the kernel has refused. Each is tried once more when the rest has gone well, and then at every
/// audit; in between its policies are held.
#[derive(Debug, Default)]
struct Broken {
    /// By name, and the kernel's words.
    sets: BTreeMap<String, String>,
    /// Those that have been tried once more.
    tried: BTreeSet<String>,
    /// The last plan failed at a set: not the time to try again.
    fresh: bool,
}

/// The policy engine of one node.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    calc: Calc,
    desired: Desired,
    kernels: [Kernel; 2],
    in_sync: bool,
    /// The next plan does away with what nobody needs any more.
    tidying: bool,
    last_plan: PlanId,
    /// When the kernel was last read or written.
    last_seen: SystemTime,
    in_flight: Option<InFlight>,
    /// Endpoints whose current policy is in the kernel.
    since: BTreeMap<EndpointId, SystemTime>,
    /// The others.
    waiting: BTreeSet<EndpointId>,
    /// Policies that govern an endpoint here and whose current generation is in the kernel.
    policies_since: BTreeMap<PolicyId, SystemTime>,
    /// The others that govern one.
    policies_waiting: BTreeSet<PolicyId>,
    quarantines: [Quarantine; 2],
    broken: [Broken; 2],
    /// What failed last, until something of its family succeeds.
    failures: BTreeMap<Family, String>,
    suspects: Suspects,
    /// A policy's rules have changed and have not been planned yet.
    rules_wait: bool,
    /// Members of sets have, by anything but a policy.
    members_wait: bool,
}

impl Engine {
    /// An engine that knows nothing yet, neither of the cluster nor of the kernel.
    ///
    /// # Errors
    /// The configuration cannot work.
    pub fn new(config: EngineConfig) -> Result<Self, ConfigError> {
        let marks = Marks::new(config.mark_mask).ok_or(ConfigError::MarkMask(config.mark_mask))?;
        let prefix = config.interface_prefix.clone();
        let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if prefix.is_empty() || prefix.len() > 13 || !prefix.chars().all(valid) {
            return Err(ConfigError::InterfacePrefix(prefix));
        }
        let calc = Calc::new(&prefix);
        let layout =
            Layout { prefix, marks, guard: config.jumps == JumpPosition::Insert, log: config.log_drops };
        let desired = Desired::new(layout, config.names_are_unique);
        Ok(Engine {
            config,
            calc,
            desired,
            kernels: Family::ALL.map(Kernel::new),
            in_sync: false,
            tidying: false,
            last_plan: PlanId::default(),
            last_seen: SystemTime::UNIX_EPOCH,
            in_flight: None,
            since: BTreeMap::new(),
            waiting: BTreeSet::new(),
            policies_since: BTreeMap::new(),
            policies_waiting: BTreeSet::new(),
            quarantines: Default::default(),
            broken: Default::default(),
            failures: BTreeMap::new(),
            suspects: Suspects::everything(),
            rules_wait: false,
            members_wait: false,
        })
    }

    /// Is what has been applied so far to be planned and carried out before this? Rules change all at once and members one by
    /// one. While rules are on their way, members that changed after them (or before) would meet the wrong ones for the tens
    /// of milliseconds that a restore takes: a pod that moves from one set to another is in neither, or what no state of the
    /// cluster allows is open. Changes of policies may go in together, and so may those of pods and namespaces.
    pub fn must_go_first(&self, update: &Update) -> bool {
        self.in_sync && if update.is_of_policy() { self.members_wait } else { self.rules_wait }
    }

    /// Takes in a change of the cluster or of this node's attachments.
    pub fn apply(&mut self, update: Update) {
        let of_policy = update.is_of_policy();
        self.calc.apply(update);
        let changes = self.calc.take_changes();
        match self.calc.members_mut().take_moved() {
            Some(moved) => {
                self.members_wait |= !of_policy && !moved.is_empty();
                self.suspects.add(moved);
            }
            None => {
                self.members_wait |= !of_policy;
                self.suspects = Suspects::everything();
            }
        }
        for id in changes.endpoints.keys() {
            self.suspects.add(self.calc.endpoints().get(id).into_iter().flat_map(|r| r.addresses.clone()));
            self.since.remove(id);
            match self.calc.endpoints().contains_key(id) {
                true => _ = self.waiting.insert(id.clone()),
                false => _ = self.waiting.remove(id),
            }
        }
        for id in &changes.policies {
            self.policies_since.remove(id);
            match self.calc.active(id) {
                Some(_) => _ = self.policies_waiting.insert(id.clone()),
                None => _ = self.policies_waiting.remove(id),
            }
        }
        if !changes.policies.is_empty() {
            let governed = self
                .calc
                .endpoints()
                .iter()
                .filter(|(_, resolved)| changes.policies.iter().any(|policy| governs(resolved, policy)));
            for (id, addresses) in
                governed.map(|(id, r)| (id.clone(), r.addresses.clone())).collect::<Vec<_>>()
            {
                self.suspects.add(addresses);
                self.since.remove(&id);
                self.waiting.insert(id);
            }
        }
        self.desired.update(&changes, &self.calc);
        self.rules_wait |= self.mark_changed() && of_policy;
    }

    /// Have any chains changed?
    fn mark_changed(&mut self) -> bool {
        let mut any = false;
        for family in Family::ALL {
            let changed = self.desired.take_changed(family);
            any |= !changed.is_empty();
            self.kernels[family as usize].mark(changed);
        }
        any
    }

    /// The source has said that it is in sync: from now on the kernel is brought to the desired state and strangers among
    /// our names are swept. Before, only the closing dispatch is put where nothing is. It cannot be taken back.
    pub fn set_in_sync(&mut self, in_sync: bool) {
        self.in_sync |= in_sync;
    }

    /// How many interfaces, chains and sets stay in the kernel although nobody needs them.
    pub fn left(&self) -> usize {
        self.desired.left() + self.calc.members().idle()
    }

    /// The next plan does away with them.
    pub fn tidy(&mut self) {
        self.tidying = true;
    }

    /// What of the kernel must be read and given to [`Engine::observe`] before [`Engine::plan`] can go on.
    pub fn wants(&self) -> Wants {
        let [v4, v6] = &self.kernels;
        Wants {
            ipv4_rules: !v4.knows_rules(),
            ipv6_rules: !v6.knows_rules(),
            sets: !v4.knows_sets() || !v6.knows_sets(),
        }
    }

    /// The first set that has not as many members as it should, by what the kernel counts (its sets of our names). To be
    /// asked when nothing is left to plan; sets that the kernel has refused are passed over.
    pub fn miscounted(&self, counted: &BTreeMap<String, u32>) -> Option<String> {
        let sets = self.calc.members().all();
        let mut sets = sets.flat_map(|(_, set)| Family::ALL.map(|family| (family, set)));
        sets.find_map(|(family, set)| {
            let name = set_name(family, &set.suffix);
            let expected = set.key.exists_in(family) && self.kernels[family as usize].has_set(&set.suffix);
            let refused = self.broken[family as usize].sets.contains_key(&name);
            let found = counted.get(&name).map(|count| *count as usize);
            (expected && !refused && found != Some(set.count(family))).then_some(name)
        })
    }

    /// Takes in what the kernel holds: at start, after a failure, and whenever an audit has looked. Not while a plan is being
    /// executed: what was read would be half of one state and half of another.
    pub fn observe(&mut self, observed: Observed) {
        self.give_up_in_flight();
        if self.wants().is_empty() {
            // An audit, and not a look after a failure: the time to try again what was refused.
            for family in Family::ALL {
                self.broken[family as usize].tried.clear();
                self.mend_sets(family);
                let held = self.desired.held(family).map(|(key, _)| key.clone()).collect();
                self.quarantines[family as usize].retry(held);
            }
        }
        for (family, text) in observed.rules {
            let kernel = &mut self.kernels[family as usize];
            if kernel.observe_rules(save::parse(&text), self.desired.chains(family)) {
                // Somebody has been at our rules: nothing is certain until they are mended.
                self.waiting.extend(self.calc.endpoints().keys().cloned());
                self.since.clear();
                self.policies_waiting.extend(self.calc.active_policies().map(|policy| policy.id.clone()));
                self.policies_since.clear();
            }
        }
        if let Some(sets) = observed.sets {
            for kernel in &mut self.kernels {
                kernel.observe_sets(&sets);
            }
        }
        self.settle(observed.at);
    }

    /// The next steps. Before the source is in sync: only what closes the door where nothing stands yet.
    ///
    /// Call again after [`Engine::applied`]. A plan whose outcome was never reported makes its families uncertain: they are
    /// wanted again before anything more is planned for them.
    pub fn plan(&mut self) -> Plan {
        self.give_up_in_flight();
        (self.rules_wait, self.members_wait) = (false, false);
        let mut keys: [BTreeSet<Key>; 2] = Default::default();
        let mut steps = Vec::new();
        let tidies = self.in_sync && (!self.config.names_are_unique || std::mem::take(&mut self.tidying));
        let mut idle = Vec::new();
        if tidies {
            // Sets and the rules that name them go together.
            self.desired.tidy();
            self.mark_changed();
            idle = self.calc.members_mut().take_idle();
        }
        for family in Family::ALL {
            let kernel = &self.kernels[family as usize];
            if self.in_sync && kernel.knows_rules() && kernel.knows_sets() {
                self.desired.release(family, self.quarantines[family as usize].next_trial());
                self.hold_users_of_broken_sets(family);
            }
        }
        for (kernel, (family, keys)) in self.kernels.iter_mut().zip(Family::ALL.into_iter().zip(&mut keys)) {
            keys.clone_from(kernel.dirty());
            steps.extend(if self.in_sync {
                let broken = &self.broken[family as usize].sets;
                kernel.plan(&self.desired, self.calc.members_mut(), &idle, broken, &self.config)
            } else {
                kernel.close(&self.desired, self.config.jumps)
            });
        }
        if self.in_sync {
            self.calc.members_mut().looked_at();
        }
        if steps.is_empty() {
            self.settle(self.last_seen);
            return Plan::default();
        }
        self.last_plan.0 += 1;
        let kinds = steps.iter().map(|step| (step.family(), step.set().map(str::to_string)));
        self.in_flight = Some(InFlight { id: self.last_plan, steps: kinds.collect(), keys });
        // A change may have left an endpoint's rules as they were.
        self.settle(self.last_seen);
        Plan { id: self.last_plan, steps }
    }

    /// Reports what became of a plan. An outcome of any but the latest plan is too late and changes nothing.
    pub fn applied(&mut self, plan: PlanId, outcome: Outcome) {
        let Some(in_flight) = self.in_flight.take_if(|in_flight| in_flight.id == plan) else { return };
        let mut results = outcome.results.into_iter().chain(std::iter::repeat(StepResult::Skipped));
        let mut uncertain = BTreeSet::new();
        for (family, set) in &in_flight.steps {
            match results.next().expect("the chain has no end") {
                StepResult::Done if set.is_none() => self.quarantines[*family as usize].accepted(),
                StepResult::Done => {}
                StepResult::Failed(reason) => {
                    match set {
                        Some(set) => {
                            let broken = &mut self.broken[*family as usize];
                            broken.sets.insert(set.clone(), reason);
                            broken.fresh = true;
                        }
                        None => {
                            self.suspect(*family, &in_flight.keys[*family as usize], &reason);
                            self.failures.insert(*family, reason);
                        }
                    }
                    uncertain.insert(*family);
                }
                StepResult::Skipped => _ = uncertain.insert(*family),
            }
        }
        for family in Family::ALL {
            if uncertain.contains(&family) {
                self.kernels[family as usize].forget();
            } else if in_flight.steps.iter().any(|(done, _)| *done == family)
                && self.failures.remove(&family).is_some()
            {
                // It was not for the sets alone, or not at all: they may be tried once more.
                self.broken[family as usize].tried.clear();
            }
        }
        self.settle(outcome.at);
    }

    /// Whose flows may no longer be allowed, since the last call: ask after a plan has been applied, and judge those flows
    /// with [`Engine::judge`]. The first call after a start names everything: nobody knows what held before.
    pub fn take_suspects(&mut self) -> Suspects {
        std::mem::take(&mut self.suspects)
    }

    /// The kernel lacks what it takes to log: every rule goes in without its log from now on, those that it refused too.
    pub fn stop_logging(&mut self) {
        self.config.log_drops = false;
        let layout = Layout { log: false, ..self.desired.layout().clone() };
        let mut desired = Desired::new(layout, self.config.names_are_unique);
        let everything = Changes {
            endpoints: self.calc.endpoints().keys().map(|id| (id.clone(), None)).collect(),
            policies: self.calc.active_policies().map(|policy| policy.id.clone()).collect(),
        };
        desired.update(&everything, &self.calc);
        for family in Family::ALL {
            let former = self.desired.chains(family).keys().cloned();
            let keys = former.chain(desired.chains(family).keys().cloned()).collect();
            self.kernels[family as usize].mark(keys);
        }
        self.desired = desired;
        self.quarantines = Default::default();
    }

    /// All flows are suspect again: an audit.
    pub fn suspect_everything(&mut self) {
        self.suspects = Suspects::everything();
    }

    /// Has the source said that it is in sync?
    pub fn is_in_sync(&self) -> bool {
        self.in_sync
    }

    /// Judges live flows by what is in force. `own`: this node's addresses, to which a pod may always speak under
    /// NetworkPolicy.
    pub fn judge(&self, own: impl IntoIterator<Item = IpAddr>) -> Judge<'_> {
        Judge::new(&self.calc, own)
    }

    /// Is this flow still allowed? For many flows keep one [`Engine::judge`].
    pub fn still_allowed(&self, flow: &LiveFlow, own: impl IntoIterator<Item = IpAddr>) -> bool {
        self.judge(own).allows(flow)
    }

    /// Is the current policy of this endpoint in the kernel? `None`: no such endpoint.
    pub fn in_force(&self, endpoint: &EndpointId) -> Option<InForce> {
        let resolved = self.calc.endpoints().get(endpoint)?;
        Some(match self.since.get(endpoint) {
            Some(since) => InForce::Since(*since),
            None => {
                InForce::Not(self.obstacle(resolved).unwrap_or_else(|| "its rules are being written".into()))
            }
        })
    }

    /// What holds for a pod, wherever it runs. `None`: no such pod.
    pub fn policy_for(&self, namespace: &str, name: &str) -> Option<PodPolicyView> {
        let state = self.calc.state();
        let pod = state.pod(&PodId::new(namespace, name))?;
        let endpoints = state.endpoints_naming(&pod.id).filter_map(|e| {
            let (since, reason) = match self.in_force(&e.id)? {
                InForce::Since(since) => (Some(since), None),
                InForce::Not(reason) => (None, Some(reason)),
            };
            Some(EndpointView {
                interface: e.interface.clone(),
                addresses: e.addresses.to_vec(),
                in_force_since: since,
                reason,
            })
        });
        Some(PodPolicyView {
            pod: pod.id.to_string(),
            host_network: pod.host_network,
            ingress: crate::view::direction(state, pod, Direction::Ingress),
            egress: crate::view::direction(state, pod, Direction::Egress),
            endpoints: endpoints.collect(),
        })
    }

    /// The oracle's word on a flow, from the definition and not from the rules in the kernel.
    pub fn verdict(&self, flow: &Flow) -> FlowVerdict {
        verdict(self.calc.state(), flow)
    }

    /// Everything that one family's kernel should hold, to run packets through with [`crate::sim::run`]. Compiled anew: for
    /// people, not for the hot path.
    pub fn program(&self, family: Family) -> Program {
        let mut program = self.desired.layout().program(&self.calc.snapshot(), family);
        close_held(&mut program, &self.desired);
        program
    }

    /// What happens to a flow, rule by rule.
    ///
    /// # Errors
    /// Why that cannot be told, in words.
    pub fn explain(&self, question: &Question) -> Result<Explanation, String> {
        let rendered = |family| self.program(family);
        trace::explain(self.calc.state(), self.desired.layout(), &self.config.node, rendered, question)
    }

    /// A proposed change, to be compared with what is in force by whoever has the time. Takes a copy of the cluster.
    pub fn proposal(&self, proposed: Vec<Update>) -> Proposal {
        Proposal { state: self.calc.state().clone(), prefix: self.config.interface_prefix.clone(), proposed }
    }

    /// Every place in our rules where a packet is logged, by the prefix that it is logged with. Changes with the rules.
    pub fn log_points(&self) -> BTreeMap<String, Point> {
        let mut points = BTreeMap::new();
        let layout = self.desired.layout();
        for family in Family::ALL {
            let endpoints = self.calc.endpoints().values().flat_map(|r| layout.endpoint(family, r));
            let policies = self.calc.active_policies().flat_map(|policy| layout.policy(family, policy));
            for (_, chain) in endpoints.chain(policies) {
                for rule in chain.rules {
                    if let Verdict::Log(point) = rule.verdict {
                        points.insert(drops::prefix(&point), *point);
                    }
                }
            }
        }
        points
    }

    /// Whose rules the chains of policies are: for what their rules have counted.
    pub fn policy_chains(&self) -> BTreeMap<String, (PolicyId, Direction)> {
        let policies = self.calc.active_policies().filter(|policy| !policy.staged);
        let chains =
            policies.flat_map(|policy| Direction::ALL.map(|direction| (policy.id.clone(), direction)));
        chains.map(|(id, direction)| (policy_chain(&id, direction), (id, direction))).collect()
    }

    /// The rules and sets of one pod of this node as the kernel is told them, in the spelling of `iptables-save`. `None`: no
    /// such pod here.
    pub fn render(&self, namespace: &str, name: &str) -> Option<String> {
        let pod = PodId::new(namespace, name);
        let resolved: Vec<&Resolved> =
            self.calc.endpoints().values().filter(|resolved| resolved.pod == pod).collect();
        (!resolved.is_empty()).then(|| render_pod(&self.desired, self.calc.members(), &resolved))
    }

    /// Every policy: whom it governs here, and since when its current generation is in force.
    pub fn policies(&self) -> Vec<PolicyStatus> {
        let mut governed: BTreeMap<&PolicyId, BTreeSet<&EndpointId>> = BTreeMap::new();
        for (id, resolved) in self.calc.endpoints() {
            for (policy, _) in each_policy(resolved) {
                governed.entry(policy).or_default().insert(id);
            }
        }
        let status = |policy: &std::sync::Arc<Policy>| {
            let endpoints = governed.get(&policy.id).map_or(0, BTreeSet::len);
            let since = self.policies_since.get(&policy.id).copied();
            let reason = match (endpoints, since) {
                (_, Some(_)) => None,
                (0, None) => Some("it selects no pod of this node".to_string()),
                (_, None) => self.policy_obstacle(&policy.id),
            };
            PolicyStatus::new(policy, endpoints, since, reason)
        };
        let mut policies: Vec<&std::sync::Arc<Policy>> = self.calc.state().policies().collect();
        policies.sort_by_key(|policy| (policy.tier, policy.order, policy.id.clone()));
        policies.into_iter().map(status).collect()
    }

    /// The snapshot, for views.
    pub fn state(&self) -> &State {
        self.calc.state()
    }

    /// Figures and complaints.
    pub fn status(&self) -> EngineStatus {
        let failed = self.failures.iter().map(|(family, reason)| Problem {
            object: "kernel".into(),
            field: format!("{family:?}"),
            reason: reason.clone(),
        });
        let held = Family::ALL.into_iter().flat_map(|family| self.held(family));
        // Once its policies are held, they tell of it.
        let untold = |family: &Family| {
            self.broken[*family as usize].fresh || self.users_of_broken_sets(*family).is_empty()
        };
        let broken = Family::ALL.into_iter().filter(untold);
        let broken = broken.flat_map(|family| &self.broken[family as usize].sets).map(|(set, reason)| {
            Problem { object: "kernel".into(), field: format!("set {set}"), reason: reason.clone() }
        });
        let refused = self.calc.state().policies().flat_map(|policy| policy.problems.iter().cloned());
        let sizes: Vec<usize> = self.calc.members().sets().map(|(_, set)| set.len()).collect();
        EngineStatus {
            in_sync: self.in_sync,
            endpoints: self.calc.endpoints().len(),
            endpoints_in_force: self.since.len(),
            active_policies: self.calc.active_policies().len(),
            sets: sizes.len(),
            set_members: sizes.iter().sum(),
            problems: failed.chain(held).chain(broken).chain(refused).collect(),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The policies whose rules the kernel refuses.
    fn held(&self, family: Family) -> impl Iterator<Item = Problem> {
        self.desired.held(family).filter_map(move |((_, name), reason)| {
            let names = |policy: &&std::sync::Arc<Policy>| {
                Direction::ALL.into_iter().any(|direction| policy_chain(&policy.id, direction) == *name)
            };
            let policy = self.calc.active_policies().find(names)?;
            Some(Problem {
                object: policy_words(&policy.id),
                field: format!("{family:?}"),
                reason: format!("opens nothing, for the kernel refused its rules: {reason}"),
            })
        })
    }

    fn give_up_in_flight(&mut self) {
        if let Some(lost) = self.in_flight.take() {
            for (family, _) in lost.steps {
                self.kernels[family as usize].forget();
            }
        }
    }

    /// A set that cannot be as it should keeps its policies closed, and nothing else.
    fn hold_users_of_broken_sets(&mut self, family: Family) {
        if !std::mem::take(&mut self.broken[family as usize].fresh) {
            self.mend_sets(family);
        }
        for (key, reason) in self.users_of_broken_sets(family) {
            if !self.desired.held(family).any(|(held, _)| *held == key) {
                self.desired.hold(family, vec![key], &reason);
            }
        }
        self.kernels[family as usize].mark(self.desired.take_changed(family));
    }

    /// Gives the sets that the kernel has refused another chance, and their policies with them.
    fn mend_sets(&mut self, family: Family) {
        let Broken { sets, tried, .. } = &self.broken[family as usize];
        let chances: BTreeSet<String> = sets.keys().filter(|name| !tried.contains(*name)).cloned().collect();
        if chances.is_empty() {
            return;
        }
        let users = self.users_of_broken_sets(family).into_iter().map(|(key, _)| key).collect();
        let broken = &mut self.broken[family as usize];
        broken.sets.retain(|name, _| !chances.contains(name));
        broken.tried.extend(chances);
        self.desired.release(family, users);
        let kernel = &mut self.kernels[family as usize];
        kernel.compare_sets();
        kernel.mark(self.desired.take_changed(family));
    }

    fn users_of_broken_sets(&self, family: Family) -> Vec<(Key, String)> {
        let broken = &self.broken[family as usize].sets;
        let mut users = Vec::new();
        if broken.is_empty() {
            return users;
        }
        for policy in self.calc.active_policies() {
            let names = sets_of(policy).into_iter().map(|key| set_name(family, &key.suffix()));
            let Some(reason) = names.filter_map(|name| broken.get(&name)).next() else { continue };
            for direction in Direction::ALL {
                if policy.rules(direction).is_some() {
                    users.push(((Table::Filter, policy_chain(&policy.id, direction)), reason.clone()));
                }
            }
        }
        users
    }

    /// The kernel has refused a family's rules. Which of the policies in them is it?
    fn suspect(&mut self, family: Family, keys: &BTreeSet<Key>, reason: &str) {
        let policies = keys.iter().filter(|(_, name)| policy_direction(name).is_some()).cloned().collect();
        match self.quarantines[family as usize].refused(policies) {
            Orders::Hold(keys) => self.desired.hold(family, keys, reason),
            Orders::Release(keys) => self.desired.release(family, keys),
        }
        self.kernels[family as usize].mark(self.desired.take_changed(family));
    }

    /// Which of the waiting endpoints are in force by now?
    fn settle(&mut self, at: SystemTime) {
        self.last_seen = at;
        let ready: Vec<EndpointId> = self
            .waiting
            .iter()
            .filter(|id| {
                self.calc.endpoints().get(*id).is_some_and(|resolved| self.obstacle(resolved).is_none())
            })
            .cloned()
            .collect();
        for id in ready {
            self.waiting.remove(&id);
            self.since.insert(id, at);
        }
        let (waiting, ready) = std::mem::take(&mut self.policies_waiting)
            .into_iter()
            .partition(|id| self.policy_obstacle(id).is_some());
        self.policies_waiting = waiting;
        let ready: BTreeSet<PolicyId> = ready;
        self.policies_since.extend(ready.into_iter().map(|id| (id, at)));
    }
}

fn governs(resolved: &Resolved, policy: &PolicyId) -> bool {
    each_policy(resolved).any(|(id, _)| id == policy)
}

fn each_policy(resolved: &Resolved) -> impl Iterator<Item = (&PolicyId, Direction)> {
    let of = |direction| resolved.access.policies(direction).iter().map(move |g| (&g.id, direction));
    Direction::ALL.into_iter().flat_map(of)
}
