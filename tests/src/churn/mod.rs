//! Changes without end under traffic: is any packet ever wrongly allowed or wrongly denied?
//!
//! One node with the real policy thread and kernel; its pods are namespaces, the rest of the cluster is one namespace in which all
//! their addresses are at home. Datagrams fly between them, each a flow of its own, while labels, namespaces and policies change. When
//! all is over a judge goes through the changes again: a datagram is judged by every state that may have been in force while
//! it was on its way, from the latest that had been confirmed before it was sent to the latest that had been asked for shortly after.

pub mod crowd;
pub mod judge;
pub mod stage;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use manx_agent::policy_worker::PolicyHandle;
use manx_policy::model::Update;

use crowd::{Dice, LOCAL, Size};
use judge::{Probe, Version, Wrong};
use stage::Stage;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of the cluster.
    pub size: Size,
    /// Pods of the node that are namespaces and speak.
    pub speaking: usize,
    /// Pods of other nodes that speak.
    pub elsewhere: usize,
    /// Changes in a second.
    pub changes: u32,
    /// For how long.
    pub lasts: Duration,
    /// Of the dice.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Changes made.
    pub changes: usize,
    /// Datagrams sent, and of these those that arrived.
    pub sent: usize,
    /// See `sent`.
    pub arrived: usize,
    /// How long changes took until they were confirmed, sorted.
    pub confirmed: Vec<Duration>,
    /// Datagrams that no state explains.
    pub wrong: Vec<Wrong>,
}

/// Runs it in namespaces whose names begin with `prefix`.
///
/// # Errors
/// When the stage does not come up, or a change is never confirmed.
pub fn run(prefix: &str, plan: &Plan, backend: manx_agent::kernel::iptables::Backend) -> Result<Outcome> {
    let stage = Stage::up(prefix, plan.speaking, backend)?;
    let base: Vec<Update> = crowd::everything(plan.size).collect();
    stage.policy.update(base.clone());
    stage.policy.in_sync();
    for i in 0..LOCAL {
        confirmed(&stage.policy, i).recv(stage::PATIENCE).context("the first policies are not in force")?;
    }
    let watched: Vec<usize> = (0..plan.speaking).chain(LOCAL..LOCAL + plan.elsewhere).collect();
    let done = AtomicBool::new(false);
    let (versions, (probes, arrivals)) = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| stage.traffic(&watched, plan.speaking, &done));
        let versions = change(&stage.policy, plan, &watched);
        done.store(true, Ordering::Relaxed);
        (versions, traffic.join().expect("the traffic does not panic"))
    });
    let (versions, arrivals) = (versions?, arrivals?);
    let probes: Vec<Probe> =
        probes.into_iter().map(|p| Probe { arrived: arrivals.contains(&p.id), ..p }).collect();
    let mut confirmed: Vec<Duration> = versions.iter().map(|v| v.in_force - v.asked).collect();
    confirmed.sort();
    Ok(Outcome {
        changes: versions.len(),
        sent: probes.len(),
        arrived: probes.iter().filter(|p| p.arrived).count(),
        confirmed,
        wrong: judge::judge(&base, &versions, &probes, &watched),
    })
}

/// Makes changes at their pace and notes when each was asked for and when it was in the kernel.
fn change(policy: &PolicyHandle, plan: &Plan, watched: &[usize]) -> Result<Vec<Version>> {
    let mut dice = Dice(plan.seed);
    let pace = Duration::from_secs(1) / plan.changes;
    let (to, from) = std::sync::mpsc::channel::<(Update, Instant, Confirmed)>();
    std::thread::scope(|scope| {
        // Answers come in the order of the questions: one waits for them all.
        let collector = scope.spawn(move || -> Result<Vec<Version>> {
            let mut versions = Vec::new();
            for (update, asked, answer) in from {
                answer.recv(stage::PATIENCE).with_context(|| format!("never in force: {update:?}"))?;
                versions.push(Version { update, asked, in_force: Instant::now() });
            }
            Ok(versions)
        });
        let started = Instant::now();
        for turn in 0.. {
            let at = started + pace * turn;
            if at - started >= plan.lasts {
                break;
            }
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            let update = crowd::change(&mut dice, plan.size, watched);
            let asked = Instant::now();
            policy.update(vec![update.clone()]);
            // Any endpoint will do: who asks after a change is answered when it has been applied.
            let answer = confirmed(policy, LOCAL - 1);
            to.send((update, asked, answer)).context("a change was never in force")?;
        }
        drop(to);
        collector.join().expect("the collector does not panic")
    })
}

/// An answer to come.
pub struct Confirmed(tokio::sync::oneshot::Receiver<manx_agent::policy_worker::Confirmation>);

/// Asks to be told when all changes so far are in the kernel.
pub fn confirmed(policy: &PolicyHandle, endpoint: usize) -> Confirmed {
    Confirmed(policy.confirm(crowd::endpoint_id(endpoint)))
}

impl Confirmed {
    /// Waits for it.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn recv(self, patience: Duration) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let answer = runtime.block_on(async { tokio::time::timeout(patience, self.0).await });
        answer.context("no answer in time")?.context("the policy thread has ended")?;
        Ok(())
    }
}
