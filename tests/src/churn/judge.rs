//! Judges datagrams by time, from the definition: the oracle follows the changes one by one, and each datagram is held against
//! all states that may have been in force while it was on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use manx_policy::model::{Payload, PodId, Protocol, Update};
use manx_policy::state::State;
use manx_policy::verdict::{End, Flow, Place, verdict};

use super::crowd::{NODE, address, pod_id};

/// How long after it was taken a datagram may still be judged by the kernel of a machine that has other things to do.
const ON_ITS_WAY: Duration = Duration::from_millis(200);

/// Who speaks to whom, on which port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// Number of the sending pod.
    pub from: usize,
    /// Number of the pod it is for.
    pub to: usize,
    /// Destination port.
    pub port: u16,
    /// Family.
    pub v6: bool,
}

/// A datagram.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// What it carries.
    pub id: u64,
    /// Who and whom.
    pub pair: Pair,
    /// Just before it was sent.
    pub sent: Instant,
    /// When the kernel had taken it: on a busy machine its sender may have been put aside in between.
    pub taken: Instant,
    /// It came through.
    pub arrived: bool,
}

/// A change.
#[derive(Clone, Debug)]
pub struct Version {
    /// What changed.
    pub update: Update,
    /// When the policy thread was told.
    pub asked: Instant,
    /// By then it was in the kernel.
    pub in_force: Instant,
}

/// A datagram that no state explains.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// Which.
    pub probe: Probe,
    /// The last change that had been confirmed before it was sent, and the last that had been asked for, counted from 1.
    pub versions: (usize, usize),
    /// What was said of it by then, and by the changes since.
    pub story: Vec<String>,
}

/// Those that were wrongly let through or wrongly dropped. `watched`: all pods that speak or are spoken to.
pub fn judge(base: &[Update], versions: &[Version], probes: &[Probe], watched: &[usize]) -> Vec<Wrong> {
    let mut state = State::default();
    // Who has neither of the addresses has no part in the verdict.
    let watched: BTreeSet<PodId> = watched.iter().map(|i| pod_id(*i)).collect();
    let matters = |update: &Update| match update {
        Update::SetPod(pod) => watched.contains(&pod.id),
        Update::RemovePod(id, _) => watched.contains(id),
        Update::SetEndpoint(_) => false,
        _ => true,
    };
    base.iter().filter(|u| matters(u)).cloned().for_each(|update| state.apply(update));

    let mut waiting: Vec<(usize, usize, Probe)> = probes
        .iter()
        .map(|probe| {
            let first = versions.partition_point(|version| version.in_force <= probe.sent);
            let last = versions.partition_point(|version| version.asked <= probe.taken + ON_ITS_WAY);
            (first, last.max(first), *probe)
        })
        .collect();
    waiting.sort_by_key(|(first, ..)| std::cmp::Reverse(*first));
    let mut open: Vec<Judged> = Vec::new();
    let mut known: BTreeMap<Pair, bool> = BTreeMap::new();
    let mut wrong = Vec::new();
    for version in 0..=versions.len() {
        let changed = version.checked_sub(1).map(|index| &versions[index].update).filter(|u| matters(u));
        if let Some(update) = changed {
            state.apply(update.clone());
            known.retain(|pair, _| !concerns(update, pair));
        }
        let mut allowed = |pair: Pair| *known.entry(pair).or_insert_with(|| is_allowed(&state, pair));
        for judged in &mut open {
            if changed.is_some_and(|update| concerns(update, &judged.probe.pair)) {
                judged.hear(version, allowed(judged.probe.pair), changed);
            }
        }
        while let Some((_, last, probe)) = waiting.pop_if(|(first, ..)| *first == version) {
            let mut judged = Judged { first: version, last, probe, explained: false, story: Vec::new() };
            judged.hear(version, allowed(probe.pair), None);
            open.push(judged);
        }
        open.retain_mut(|judged| {
            let over = judged.last <= version;
            if over && !judged.explained {
                let versions = (judged.first, judged.last);
                wrong.push(Wrong { probe: judged.probe, versions, story: std::mem::take(&mut judged.story) });
            }
            !over
        });
    }
    wrong
}

struct Judged {
    first: usize,
    last: usize,
    probe: Probe,
    explained: bool,
    story: Vec<String>,
}

impl Judged {
    fn hear(&mut self, version: usize, allowed: bool, update: Option<&Update>) {
        self.explained |= allowed == self.probe.arrived;
        let what = update.map_or(String::new(), |update| format!(" by {update:?}"));
        self.story.push(format!("{version}: {}{what}", if allowed { "allowed" } else { "denied" }));
    }
}

/// May it change the verdict on this pair?
fn concerns(update: &Update, pair: &Pair) -> bool {
    let pods = || [pod_id(pair.from), pod_id(pair.to)];
    match update {
        Update::SetPod(pod) => pods().contains(&pod.id),
        Update::RemovePod(id, _) => pods().contains(id),
        Update::SetPolicy(policy) => policy
            .id
            .namespace
            .as_ref()
            .is_none_or(|namespace| pods().iter().any(|pod| pod.namespace == *namespace)),
        _ => true,
    }
}

fn is_allowed(state: &State, pair: Pair) -> bool {
    let end = |i: usize| {
        let id = pod_id(i);
        let place = match state.pod(&id) {
            Some(pod) => Place::Pod(id, pod.node.clone()),
            None => Place::Elsewhere,
        };
        End { ip: address(i, pair.v6), place }
    };
    let flow = Flow {
        source: end(pair.from),
        destination: end(pair.to),
        payload: Payload::opening(Protocol::Udp, pair.port),
    };
    // What another node enforces at its end is not done here.
    let decisions = verdict(state, &flow).decisions;
    decisions.iter().filter(|d| here(state, &d.pod)).all(|d| d.allowed)
}

fn here(state: &State, pod: &str) -> bool {
    let Some((namespace, name)) = pod.split_once('/') else { return false };
    state.pod(&PodId::new(namespace, name)).is_some_and(|pod| pod.node.as_deref() == Some(NODE))
}
