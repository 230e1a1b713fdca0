//! The policy thread: owns the engine and the packet filter, so that neither BGP nor the API ever waits for
//! `iptables-restore`, and so that changes which arrive while one is being applied go in together with the next, policies and
//! whom they speak of one after the other.
//!
//! ```text
//! updates, questions -> inbox -> Engine::apply ... Engine::plan -> kernel -> Engine::applied -> answers
//! ```
//!
//! Decides nothing: the engine plans, the kernel room executes, this loop carries between them and keeps the pace:
//! back-off after a failure, an audit now and then. After a change is in force it has the flows looked for that may have lost
//! their permission, lets the engine judge them and has those ended that are denied ([`crate::flows`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use manx_policy::compile::Marks;
use manx_policy::drops::{self, Tally};
use manx_policy::engine::{Engine, InForce};
use manx_policy::model::{EndpointId, Update};
use manx_policy::plan::{Outcome, Plan, Step, StepResult, Wants};
use manx_policy::render::save::counters;
use tokio::sync::oneshot;

use crate::flows::{Flows, FlowsError, Found, Sentence};
use crate::health::Health;
use crate::kernel::iptables::Backend;
use crate::kernel::legacy_watch::{self, Disturbance};
use crate::kernel::nft_watch;
use crate::kernel::policy::PolicyKernel;
use crate::metrics::ApplyTimes;

/// First wait after a failed application; doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest wait between attempts: a host whose tools are mended is enforced again soon after.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often all tables are read and compared. Dumps cost tens of milliseconds, so this is rare.
const AUDIT: Duration = Duration::from_secs(30);
/// Between two searches for flows that a change has denied: each reads conntrack, which has a hundred thousand entries on a busy
/// node. What changes meanwhile is looked at together.
const LOOK_PACE: Duration = Duration::from_millis(100);
/// And so many times as long as the last search took: under constant change it must not eat a core.
const LOOK_SHARE: u32 = 4;
/// Between two looks at rules that a stranger has changed: each reads them all, and some strangers write all the time.
const MEND_PACE: Duration = Duration::from_millis(250);
/// The same where nobody knows whether the rules were ours: of iptables-legacy only the size of a table can be watched.
const DOUBT_PACE: Duration = Duration::from_secs(5);
/// How often the members of our sets are counted: so long, and no longer, is what a stranger opens by emptying a set open.
const COUNT_PACE: Duration = Duration::from_secs(1);
/// What pods that have gone leave behind is tidied away when no pod has come for so long,
const TIDY_PACE: Duration = Duration::from_millis(500);
/// or has lain there for so long,
const TIDY_LATEST: Duration = Duration::from_secs(3);
/// or is so much.
const MAX_LEFT: usize = 256;
/// How often the thread says that it lives while nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// At most so many times the changes that were found in the inbox are divided, so that policies and members go in one after
/// the other as they came. Who is further behind than that takes in all members first and then all policies.
const DIVISIONS: usize = 16;
/// At most so many plans in a row before the inbox is looked at again: more mean that the kernel never agrees with
/// what was written, which is a fault to report and retry slowly, not to spin on.
const PLANS_IN_A_ROW: usize = 8;

/// A question to the engine, with its answer built in.
type Ask = Box<dyn FnOnce(&Engine, &Kernel) + Send>;

enum Input {
    Updates(Vec<Update>),
    InSync,
    Confirm(EndpointId, oneshot::Sender<Confirmation>),
    Query(Ask),
    /// Flows that may have lost their permission.
    Found(Found),
    /// A stranger has changed our rules, or may have: to be looked at, so long after the last look for that reason.
    Disturbed(Duration),
    /// The thread ends and drops this.
    Stop(oneshot::Sender<()>),
}

/// The answer to a CNI ADD that waits: the policy is in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmation;

/// What the packet filter side has to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// `nft` or `legacy`.
    pub backend: Option<String>,
    /// The closing dispatch, or more, is in the kernel: no pod interface is open by omission.
    pub closed: bool,
    /// Why the last application failed; `None`: it did not.
    pub error: Option<String>,
    /// Packets dropped, as they were counted when the rules were last read.
    pub dropped: Arc<BTreeMap<drops::Kind, u64>>,
    /// A change waits to be applied.
    pub pending: bool,
    /// How often rules of ours were found changed by a stranger, and mended.
    pub repairs: u64,
    /// Why our rules go without their logs; `None`: they have them, as far as they are wanted.
    pub log_refused: Option<String>,
    /// When the kernel last took a change, and how long that took.
    pub last_applied: Option<(std::time::SystemTime, Duration)>,
}

/// The way to the policy thread. Clones share it.
#[derive(Clone)]
pub struct PolicyHandle {
    inbox: Sender<Input>,
}

impl PolicyHandle {
    /// Hands over changes; they are applied together with what else is waiting.
    pub fn update(&self, updates: Vec<Update>) {
        if !updates.is_empty() {
            self.send(Input::Updates(updates));
        }
    }

    /// The source is in sync: from now on the kernel follows the desired state.
    pub fn in_sync(&self) {
        self.send(Input::InSync);
    }

    /// Resolves once the current policy of this endpoint is in the kernel. Dropping it withdraws the question.
    pub fn confirm(&self, endpoint: EndpointId) -> oneshot::Receiver<Confirmation> {
        let (answer, question) = oneshot::channel();
        self.send(Input::Confirm(endpoint, answer));
        question
    }

    /// Asks the engine something; `None` when the thread is gone.
    pub async fn query<R: Send + 'static>(
        &self,
        f: impl FnOnce(&Engine, &Kernel) -> R + Send + 'static,
    ) -> Option<R> {
        let (answer, question) = oneshot::channel();
        self.send(Input::Query(Box::new(move |engine, kernel| {
            // Nobody waits any more: not worth a word.
            let _ = answer.send(f(engine, kernel));
        })));
        question.await.ok()
    }

    /// Ends the thread after what it is doing, and resolves then; the kernel keeps everything.
    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        self.send(Input::Stop(done));
        // A thread that has ended already has dropped the question.
        let _ = stopped.await;
    }

    /// A thread that has ended takes nothing more; its health check says so.
    fn send(&self, input: Input) {
        let _ = self.inbox.send(input);
    }
}

/// The policy thread or one of its helpers can't be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The thread that ends flows.
    #[error(transparent)]
    Flows(#[from] FlowsError),
    /// The thread that hears of strangers.
    #[error(transparent)]
    Watch(#[from] nft_watch::WatchError),
    /// The policy thread itself.
    #[error("no thread for policy: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts the thread in the network namespace of the caller. `times` is told what each change took; `notify` is called after
/// each change of the [`Kernel`].
///
/// It runs until it is told to stop or all handles are gone.
///
/// # Errors
/// A thread can't be started, or netlink can't be reached.
pub fn spawn(
    engine: Engine,
    kernel: PolicyKernel,
    health: Health,
    times: ApplyTimes,
    notify: impl Fn(&Kernel) + Send + 'static,
) -> Result<PolicyHandle, SpawnError> {
    let (inbox, outbox) = channel();
    let blocked = Marks::new(engine.config().mark_mask).expect("the engine checks its mask").blocked();
    let disturbed = inbox.clone();
    match kernel.backend() {
        Backend::Nft => nft_watch::spawn(move || disturbed.send(Input::Disturbed(MEND_PACE)).is_ok())?,
        Backend::Legacy => legacy_watch::spawn(move |what| {
            let pace = match what {
                Disturbance::Flushed => MEND_PACE,
                Disturbance::Resized => DOUBT_PACE,
            };
            disturbed.send(Input::Disturbed(pace)).is_ok()
        })?,
    }
    let answers = inbox.clone();
    let flows = Flows::spawn(blocked, move |found| {
        // The policy thread may be gone at the very end.
        let _ = answers.send(Input::Found(found));
    })?;
    let worker = Worker {
        engine,
        kernel,
        health,
        times,
        notify: Box::new(notify),
        shown: Kernel::default(),
        waiting: BTreeMap::new(),
        retry: RETRY_MIN,
        retry_at: None,
        audit_at: Instant::now() + AUDIT,
        tally: Tally::default(),
        flows,
        blocked,
        looking: false,
        look_at: Instant::now(),
        mend_at: None,
        count_at: Instant::now(),
        sweep_at: Some(Instant::now()),
        mended_at: Instant::now(),
        left_since: None,
        pod_at: Instant::now(),
    };
    std::thread::Builder::new().name("policy".into()).spawn(move || worker.run(&outbox))?;
    Ok(PolicyHandle { inbox })
}

struct Worker {
    engine: Engine,
    kernel: PolicyKernel,
    health: Health,
    times: ApplyTimes,
    notify: Box<dyn Fn(&Kernel) + Send>,
    shown: Kernel,
    /// Whom to tell once an endpoint's policy is in force.
    waiting: BTreeMap<EndpointId, Vec<oneshot::Sender<Confirmation>>>,
    retry: Duration,
    /// Set after a failure: nothing is tried before.
    retry_at: Option<Instant>,
    audit_at: Instant,
    /// What rules have dropped.
    tally: Tally,
    flows: Flows,
    /// The bit of blocked flows in conntrack's marks.
    blocked: u32,
    /// A search for flows is under way.
    looking: bool,
    /// No search before.
    look_at: Instant,
    /// A stranger has changed our rules: they are read again then.
    mend_at: Option<Instant>,
    /// The members of sets are counted then.
    count_at: Instant,
    /// The tables of the other back end are swept then; `None`: they have been.
    sweep_at: Option<Instant>,
    /// When they were last read for that reason.
    mended_at: Instant,
    /// Since when something has been left behind.
    left_since: Option<Instant>,
    /// When a pod last came.
    pod_at: Instant,
}

/// In which order the changes of one inbox go in.
struct Order {
    /// How often the kernel may be brought up to date before a change.
    divisions: usize,
    /// Changes of policies that go in after all others.
    policies: Vec<Update>,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<Input>) {
        self.shown.backend = Some(self.kernel.backend().to_string());
        loop {
            self.health.beat("policy", Instant::now());
            let tidy_at = self.tidy();
            self.apply();
            self.answer();
            let look_at = self.look();
            let count_at = self.retry_at.is_none().then_some(self.count_at);
            let until = [self.retry_at, look_at, self.mend_at, count_at, tidy_at]
                .into_iter()
                .flatten()
                .fold(self.audit_at, Instant::min);
            let wait = until.saturating_duration_since(Instant::now()).min(HEARTBEAT);
            let first = match inbox.recv_timeout(wait) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut order = Order { divisions: DIVISIONS, policies: Vec::new() };
            let mut questions = Vec::new();
            for input in first.into_iter().chain(inbox.try_iter()) {
                match input {
                    Input::Updates(updates) => {
                        updates.into_iter().for_each(|update| self.take(update, &mut order));
                    }
                    Input::InSync => self.engine.set_in_sync(true),
                    Input::Confirm(endpoint, answer) => {
                        self.pod_at = Instant::now();
                        self.waiting.entry(endpoint).or_default().push(answer);
                    }
                    Input::Query(ask) => questions.push(ask),
                    Input::Found(found) => self.judge(found),
                    Input::Disturbed(pace) => {
                        let earliest = (self.mended_at + pace).max(Instant::now());
                        self.mend_at = Some(self.mend_at.map_or(earliest, |at| at.min(earliest)));
                    }
                    Input::Stop(_done) => return,
                }
            }
            if order.policies.first().is_some_and(|update| self.engine.must_go_first(update)) {
                self.apply();
            }
            order.policies.into_iter().for_each(|update| self.engine.apply(update));
            // Who asks after a change hears of a kernel that has it, or why it has not.
            if !questions.is_empty() {
                self.apply();
                questions.into_iter().for_each(|ask| ask(&self.engine, &self.shown));
            }
        }
    }

    /// Takes in a change, after those before it are in the kernel if it must not be mixed with them.
    fn take(&mut self, update: Update, order: &mut Order) {
        if order.divisions == 0 && update.is_of_policy() {
            order.policies.push(update);
            return;
        }
        if self.engine.must_go_first(&update) {
            order.divisions = order.divisions.saturating_sub(1);
            self.apply();
        }
        self.engine.apply(update);
    }

    /// Brings the kernel to the engine's desired state, as far as it goes now.
    fn apply(&mut self) {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        let before = self.shown.clone();
        let outcome = self
            .mend(now)
            .and_then(|()| self.audit(now))
            .and_then(|()| self.converge())
            .and_then(|()| self.count(now));
        match outcome {
            Ok(()) => {
                self.retry = RETRY_MIN;
                self.shown.error = None;
                self.shown.closed = true;
                self.shown.pending = false;
                self.sweep_other_backend(now);
            }
            Err(reason) => {
                if self.shown.error.as_ref() != Some(&reason) {
                    tracing::warn!(%reason, "policy could not be applied, trying again");
                }
                self.shown.error = Some(reason);
                self.shown.pending = true;
                self.retry_at = Some(Instant::now() + self.retry);
                self.retry = (self.retry * 2).min(RETRY_MAX);
            }
        }
        if before != self.shown {
            (self.notify)(&self.shown);
        }
    }

    /// Does away with what is ours in the tables of the other back end, once pods are closed in those of this one or better
    /// off. What fails is tried again: what is there can only deny more than it should.
    fn sweep_other_backend(&mut self, now: Instant) {
        if self.sweep_at.is_none_or(|at| now < at) {
            return;
        }
        let backend = self.kernel.backend().other();
        match self.kernel.sweep_other_backend() {
            Ok(swept) => {
                self.sweep_at = None;
                if !swept.is_empty() {
                    tracing::info!(
                        swept = swept.join(", "),
                        "swept what was left in the tables of iptables-{backend}"
                    );
                }
            }
            Err(reason) => {
                self.sweep_at = Some(now + AUDIT);
                tracing::warn!(%reason, "rules of ours in the tables of iptables-{backend} cannot be swept, trying again");
            }
        }
    }

    /// Has done away with what pods have left behind, at a moment when no pod's start is held up by it. Returns when to ask
    /// again.
    fn tidy(&mut self) -> Option<Instant> {
        let left = self.engine.left();
        if left == 0 {
            self.left_since = None;
            return None;
        }
        let now = Instant::now();
        let since = *self.left_since.get_or_insert(now);
        let due = (since.max(self.pod_at) + TIDY_PACE).min(since + TIDY_LATEST);
        if now < due && left <= MAX_LEFT {
            return Some(due);
        }
        self.engine.tidy();
        self.left_since = None;
        None
    }

    /// Has the flows looked for that the last changes concern, once these are in the kernel. Returns when to ask again.
    fn look(&mut self) -> Option<Instant> {
        if self.looking || !self.engine.is_in_sync() || self.shown.error.is_some() {
            return None;
        }
        if Instant::now() < self.look_at {
            return Some(self.look_at);
        }
        let suspects = self.engine.take_suspects();
        if !suspects.is_empty() {
            self.looking = true;
            self.flows.look(suspects);
        }
        None
    }

    /// What was found is judged by what is desired now: a flow that is denied only by a change that is not in the kernel yet
    /// ends a moment earlier than it would.
    fn judge(&mut self, found: Found) {
        self.looking = false;
        self.look_at = Instant::now() + LOOK_PACE.max(found.took * LOOK_SHARE);
        if found.entries.is_empty() {
            return;
        }
        let mut judge = self.engine.judge(found.own);
        let sentence = Sentence::pass(found.entries, self.blocked, |entry| judge.allows(&entry.flow));
        if !sentence.is_empty() {
            self.flows.carry_out(sentence);
        }
    }

    /// Reads the rules when a stranger has changed them, and puts right what is wrong.
    fn mend(&mut self, now: Instant) -> Result<(), String> {
        if self.mend_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        self.mend_at = None;
        self.mended_at = now;
        self.observe(Wants { ipv4_rules: true, ipv6_rules: true, sets: false })?;
        let plans = self.shown.last_applied;
        self.converge()?;
        if plans != self.shown.last_applied {
            self.shown.repairs += 1;
            tracing::warn!(repairs = self.shown.repairs, "another program has changed our rules: mended");
        }
        Ok(())
    }

    /// Reads everything when an audit is due: rules and sets that somebody else changed come to light.
    fn audit(&mut self, now: Instant) -> Result<(), String> {
        if now < self.audit_at {
            return Ok(());
        }
        self.audit_at = now + AUDIT;
        // A flow may have begun by the old rules just while the table was read.
        self.engine.suspect_everything();
        self.observe(Wants { ipv4_rules: true, ipv6_rules: true, sets: true })
    }

    /// Sets tell nobody when somebody else changes them; their sizes do, for a millisecond's work.
    fn count(&mut self, now: Instant) -> Result<(), String> {
        if now < self.count_at {
            return Ok(());
        }
        self.count_at = now + COUNT_PACE;
        if !self.engine.is_in_sync() {
            return Ok(());
        }
        let counted = self.kernel.count_members().map_err(|e| e.to_string())?;
        let Some(set) = self.engine.miscounted(&counted) else { return Ok(()) };
        let plans = self.shown.last_applied;
        self.observe(Wants { sets: true, ..Wants::default() })?;
        self.converge()?;
        if plans != self.shown.last_applied {
            self.shown.repairs += 1;
            tracing::warn!(repairs = self.shown.repairs, set, "another program has changed our sets: mended");
        }
        // A flow may have begun by the set as it was.
        self.engine.suspect_everything();
        Ok(())
    }

    fn converge(&mut self) -> Result<(), String> {
        for _ in 0..PLANS_IN_A_ROW {
            let wants = self.engine.wants();
            if !wants.is_empty() {
                self.observe(wants)?;
            }
            let plan = self.engine.plan();
            if plan.is_empty() {
                return Ok(());
            }
            tracing::trace!(?plan, "policy plan");
            let started = Instant::now();
            let outcome = self.kernel.execute(&plan);
            let took = started.elapsed();
            self.times.observe(took);
            self.shown.last_applied = Some((outcome.at, took));
            let failure = outcome.results.iter().find_map(|r| match r {
                StepResult::Failed(reason) => Some(reason.clone()),
                StepResult::Done | StepResult::Skipped => None,
            });
            let of_sets = failed_at_sets_alone(&plan, &outcome);
            tracing::debug!(steps = plan.steps.len(), elapsed = ?took, failed = failure.is_some(), "policy plan executed");
            self.engine.applied(plan.id, outcome);
            if let Some(reason) = failure {
                // What a set's policies would open stays closed; the rest need not wait for it.
                if of_sets || self.goes_without_logs(&plan) {
                    continue;
                }
                return Err(reason);
            }
        }
        Err(format!("the kernel does not hold what was written to it, {PLANS_IN_A_ROW} times in a row"))
    }

    /// A kernel without NFLOG must not go without rules: finds out whether that was it. A failure costs the probe, all else
    /// nothing.
    fn goes_without_logs(&mut self, plan: &Plan) -> bool {
        let logs = |step: &Step| matches!(step, Step::Restore { text, .. } if text.contains("-j NFLOG"));
        let Some(step) = plan.steps.iter().find(|step| logs(step)) else { return false };
        let Err(reason) = self.kernel.can_log(step.family()) else { return false };
        tracing::warn!(%reason, "the kernel cannot log: rules go without");
        self.shown.log_refused =
            Some(format!("dropped packets are not logged, for the kernel refuses target NFLOG: {reason}"));
        self.engine.stop_logging();
        true
    }

    fn observe(&mut self, wants: Wants) -> Result<(), String> {
        let observed = self.kernel.observe(wants).map_err(|e| e.to_string())?;
        let policies = self.engine.policy_chains();
        for (family, text) in &observed.rules {
            self.tally.take(*family, &counters(text), &policies);
        }
        self.shown.dropped = Arc::new(self.tally.totals().clone());
        self.engine.observe(observed);
        Ok(())
    }

    /// Tells those that wait for an endpoint which is in force now; forgets those that have gone away.
    fn answer(&mut self) {
        let engine = &self.engine;
        self.waiting.retain(|endpoint, answers| {
            if matches!(engine.in_force(endpoint), Some(InForce::Since(_))) {
                for answer in answers.drain(..) {
                    let _ = answer.send(Confirmation);
                }
            }
            answers.retain(|a| !a.is_closed());
            !answers.is_empty()
        });
    }
}

/// Nothing failed but steps about sets.
fn failed_at_sets_alone(plan: &Plan, outcome: &Outcome) -> bool {
    let results = plan.steps.iter().zip(&outcome.results);
    let mut failed = results.filter(|(_, result)| matches!(result, StepResult::Failed(_)));
    failed.all(|(step, _)| step.set().is_some())
}
