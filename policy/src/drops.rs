//! How a logged packet names the rule that dropped it (the NFLOG prefix, and back), and how much was dropped for which reason.
//!
//! A prefix is `manx:` and a hash of [`Point`]: it fits the kernel's 63 characters whatever names policies have, stays the
//! same over restarts, and tells nothing to whoever cannot ask the agent. The engine turns it back.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::compile::{CUT, DENIED, SYN_FIRST, chain, dispatched_part};
use crate::ir::Table;
use crate::model::{Direction, Family, PolicyId, Tier};
use crate::names::{hash, policy_direction};
use crate::render::LineHash;
use crate::render::save::Counters;

/// The NFLOG group of our log rules.
pub const NFLOG_GROUP: u16 = 77;
/// How our prefixes begin.
pub const PREFIX: &str = "manx:";
/// At most so many packets a second for each rule are logged, after a burst of [`BURST`].
pub const PER_SECOND: u16 = 10;
/// See [`PER_SECOND`].
pub const BURST: u16 = 20;

/// Where in our rules a packet is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// The pod whose chain it is, `NAMESPACE/NAME`; `None` in chains that pods share.
    pub pod: Option<String>,
    /// To the pod or from it; `None` where neither was asked.
    pub direction: Option<Direction>,
    /// The policy that decided, as people write it; `None`: no single one.
    pub policy: Option<String>,
    /// Its tier.
    pub tier: Option<Tier>,
    /// Which of its rules in this direction, counted from 0.
    pub rule: Option<usize>,
    /// The policies that isolate the pod in this direction, where none of them allows the packet; no part of the prefix.
    pub isolated_by: Vec<String>,
    /// What happened, in words: "denied by a rule", "no policy allows it", "its source address is not the pod's".
    pub reason: String,
}

/// The reason of a rule that logs and does no more.
pub const LOGGED: &str = "logged by a rule";

impl Point {
    /// What is logged here is dropped.
    pub fn drops(&self) -> bool {
        self.reason != LOGGED
    }
}

/// The prefix of packets that are logged here.
pub fn prefix(point: &Point) -> String {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let direction = point.direction.map_or("", Direction::as_str);
    let rule = point.rule.map(|rule| rule.to_string()).unwrap_or_default();
    let (pod, policy) = (text(&point.pod), text(&point.policy));
    format!("{PREFIX}{}", hash(&["log", &pod, direction, &policy, &rule, &point.reason], 16))
}

/// Why a rule drops, for whoever counts: a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A rule of a policy denies it.
    Denied,
    /// The pod is isolated and no policy allows it.
    Isolated,
    /// The pod's policy is not known, or not in force.
    Closed,
    /// The flow was cut by a change of policy.
    Cut,
    /// A TCP flow that does not begin with SYN.
    NotSyn,
    /// Conntrack makes no sense of it.
    Invalid,
    /// What no pod may send: tunnels, router advertisements, redirects.
    Forbidden,
    /// The source address is not the pod's.
    Spoofed,
    /// A pod interface that nobody has told us of.
    UnknownInterface,
    /// The filter table has not judged it: somebody has emptied it.
    Unjudged,
}

impl Reason {
    /// Of a rule of ours that drops, by its chain and its text.
    pub(crate) fn of(chain_name: &str, spec: &str) -> Self {
        let begins = |beginning| chain_name.starts_with(beginning);
        let invalid = spec.contains("--ctstate INVALID");
        if dispatched_part(chain_name).is_some() {
            Reason::UnknownInterface
        } else if policy_direction(chain_name).is_some() {
            Reason::Denied
        } else if begins("MANX-SE-") {
            Reason::Spoofed
        } else if [chain::GUARD, chain::FORWARD].contains(&chain_name) {
            Reason::Unjudged
        } else if invalid {
            Reason::Invalid
        } else if chain_name == chain::CHECK {
            Reason::Forbidden
        } else if spec.contains(CUT) {
            Reason::Cut
        } else if spec.contains(SYN_FIRST) {
            Reason::NotSyn
        } else if spec.contains(DENIED) {
            Reason::Isolated
        } else {
            Reason::Closed
        }
    }

    /// In metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Denied => "denied",
            Reason::Isolated => "isolated",
            Reason::Closed => "closed",
            Reason::Cut => "cut",
            Reason::NotSyn => "not-syn",
            Reason::Invalid => "invalid",
            Reason::Forbidden => "forbidden",
            Reason::Spoofed => "spoofed",
            Reason::UnknownInterface => "unknown-interface",
            Reason::Unjudged => "unjudged",
        }
    }
}

/// What drops are counted by: never by pod, so that there are as many as policies and no more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// The policy whose rule denies; `None`: no single one.
    pub policy: Option<PolicyId>,
    /// To a pod or from it; `None` where neither was asked.
    pub direction: Option<Direction>,
    /// Why.
    pub reason: Reason,
}

/// Adds up what rules count that come and go, and begin at zero again when they are written anew. What a rule has counted
/// between the last look at it and its end is lost.
#[derive(Debug, Default)]
pub struct Tally {
    seen: [FxHashMap<(Table, String, LineHash), u64>; 2],
    totals: BTreeMap<Kind, u64>,
}

impl Tally {
    /// Takes in one family's counters. `policies`: whose rules the chains are, see [`crate::Engine::policy_chains`]. Totals
    /// of policies that are no more are forgotten.
    pub fn take(
        &mut self,
        family: Family,
        counters: &Counters,
        policies: &BTreeMap<String, (PolicyId, Direction)>,
    ) {
        let before = std::mem::take(&mut self.seen[family as usize]);
        for rule in counters.drops() {
            let policy = policies.get(rule.chain);
            let key = (rule.table, rule.chain.to_string(), rule.hash);
            let known = before.get(&key).copied().unwrap_or(0);
            // Fewer than before: the rule was written anew.
            let new = rule.packets.checked_sub(known).unwrap_or(rule.packets);
            self.seen[family as usize].insert(key, rule.packets);
            if new > 0 {
                let direction = policy.map(|(_, direction)| *direction).or_else(|| direction_of(rule.chain));
                let kind = Kind { policy: policy.map(|(id, _)| id.clone()), direction, reason: rule.reason };
                *self.totals.entry(kind).or_default() += new;
            }
        }
        let known: BTreeSet<&PolicyId> = policies.values().map(|(id, _)| id).collect();
        self.totals.retain(|kind, _| kind.policy.as_ref().is_none_or(|id| known.contains(id)));
    }

    /// Packets dropped since the first look, by kind.
    pub fn totals(&self) -> &BTreeMap<Kind, u64> {
        &self.totals
    }
}

fn direction_of(chain_name: &str) -> Option<Direction> {
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| chain_name.starts_with(beginning));
    if begins(&["MANX-FE-", "MANX-SE-", "MANX-PE-", chain::FROM, chain::SPOOF, chain::CHECK]) {
        Some(Direction::Egress)
    } else if begins(&["MANX-TE-", "MANX-PI-", chain::TO]) {
        Some(Direction::Ingress)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_fits_the_kernel_and_tells_points_apart() {
        let point = Point {
            pod: Some("x".repeat(300)),
            direction: Some(Direction::Ingress),
            policy: Some("y".repeat(300)),
            tier: Some(Tier::Admin),
            rule: Some(7),
            isolated_by: vec!["a/b".into()],
            reason: "denied by a rule".into(),
        };
        assert!(prefix(&point).len() <= 63);
        assert_ne!(prefix(&point), prefix(&Point { rule: Some(8), ..point.clone() }));
        assert_eq!(prefix(&point), prefix(&Point { isolated_by: Vec::new(), ..point.clone() }));
        assert_ne!(prefix(&point), prefix(&Point { direction: Some(Direction::Egress), ..point.clone() }));
    }
    #[test]
    fn a_tally_adds_up_over_rules_that_are_written_anew() {
        let policy = PolicyId::network_policy("a", "b");
        let policies = BTreeMap::from([("MANX-PI-x".to_string(), (policy.clone(), Direction::Ingress))]);
        let text = |denied: u32, isolated: u32| {
            let rule = |packets: u32, chain: &str, words: &str| {
                format!("[{packets}:0] -A {chain} -m comment --comment \"manx:aaaaaaaaaa {words}\" -j DROP\n")
            };
            let rules = rule(denied, "MANX-PI-x", "np a/b denies")
                + &rule(isolated, "MANX-TE-manx0", "a/p ingress denied: no policy allows it");
            crate::render::save::counters(&format!("*filter\n{rules}COMMIT\n"))
        };
        let mut tally = Tally::default();
        let kind = |policy: Option<&PolicyId>, reason| Kind {
            policy: policy.cloned(),
            direction: Some(Direction::Ingress),
            reason,
        };
        for (denied, isolated) in [(0, 3), (4, 5), (1, 5)] {
            tally.take(Family::Ipv4, &text(denied, isolated), &policies);
        }
        tally.take(Family::Ipv6, &text(10, 0), &policies);
        let totals: Vec<_> = tally.totals().clone().into_iter().collect();
        assert_eq!(totals, [(kind(None, Reason::Isolated), 5), (kind(Some(&policy), Reason::Denied), 15)]);
        tally.take(Family::Ipv4, &text(1, 5), &BTreeMap::new());
        assert_eq!(tally.totals().len(), 1, "of a policy that is no more nothing is told");
    }
}
