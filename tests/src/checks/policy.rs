//! NetworkPolicy holds: what is allowed connects, what is denied times out, replies flow.

use std::time::Duration;

use anyhow::Result;

use super::PROBE_LIMIT;
use super::reach::is_first_tcp_port;
use crate::cluster;
use crate::lab::Lab;
use crate::probe::matrix::{self, Outcomes, Question};
use crate::probe::{Outcome, PORTS, Proto, client};
use crate::report::Report;
use crate::wait;

/// Denies all ingress of a namespace's pods.
pub const DENY_INGRESS: &str = "{podSelector: {}, policyTypes: [Ingress]}";
/// Allows ingress from pods of the same namespace with this label.
pub const FROM_ZONE: &str =
    "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {zone: east}}}]}]}";
/// Allows ingress from all pods of namespaces with this label.
pub const FROM_TEAM: &str =
    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: front}}}]}]}";
const TO_PORT: &str = "{podSelector: {}, ingress: [{ports: [{protocol: TCP, port: 8080}]}]}";
const TO_NAMED_PORT: &str = "{podSelector: {}, ingress: [{ports: [{protocol: TCP, port: http}]}]}";
const DENY_EGRESS: &str = "{podSelector: {}, policyTypes: [Egress]}";
const EGRESS_TO_PORT: &str = "{podSelector: {}, policyTypes: [Egress], egress: [\
    {to: [{namespaceSelector: {matchLabels: {team: back}}}], ports: [{protocol: TCP, port: 8080}]}]}";

/// Sender, receiver, question: is it to be answered?
type Expected = fn(&str, &str, &Question) -> bool;

struct Scenario {
    title: &'static str,
    /// Kubernetes namespace, name, spec.
    policies: &'static [(&'static str, &'static str, &'static str)],
    expected: Expected,
}

fn to_back(pod: &str) -> bool {
    pod.starts_with("back/")
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        title: "default deny of ingress",
        policies: &[("back", "deny", DENY_INGRESS)],
        expected: |_, to, _| !to_back(to),
    },
    Scenario {
        title: "allow by pod label",
        policies: &[("back", "deny", DENY_INGRESS), ("back", "allow", FROM_ZONE)],
        expected: |from, to, _| !to_back(to) || from == "back/web-1",
    },
    Scenario {
        title: "allow by namespace label",
        policies: &[("back", "deny", DENY_INGRESS), ("back", "allow", FROM_TEAM)],
        expected: |from, to, _| !to_back(to) || from.starts_with("front/"),
    },
    Scenario {
        title: "allow by port",
        policies: &[("back", "deny", DENY_INGRESS), ("back", "allow", TO_PORT)],
        expected: |_, to, question| !to_back(to) || is_first_tcp_port(question),
    },
    Scenario {
        title: "allow by named port",
        policies: &[("back", "deny", DENY_INGRESS), ("back", "allow", TO_NAMED_PORT)],
        expected: |_, to, question| !to_back(to) || is_first_tcp_port(question),
    },
    Scenario {
        title: "default deny of egress",
        policies: &[("front", "deny", DENY_EGRESS)],
        expected: |from, _, _| to_back(from),
    },
    Scenario {
        title: "allow egress by namespace label and port",
        policies: &[("front", "deny", DENY_EGRESS), ("front", "allow", EGRESS_TO_PORT)],
        expected: |from, to, question| to_back(from) || (to_back(to) && is_first_tcp_port(question)),
    },
    Scenario { title: "all policies removed", policies: &[], expected: |_, _, _| true },
];

/// See the module.
///
/// # Errors
/// When a policy cannot be written or a namespace not be entered.
pub fn check(lab: &Lab, report: &mut Report) -> Result<()> {
    for scenario in SCENARIOS {
        set(lab, scenario.policies)?;
        let (outcomes, _) = wait::until(Duration::from_secs(3), || {
            let outcomes = ask(lab)?;
            let right =
                outcomes.iter().all(|((from, to, q), o)| is_right((scenario.expected)(from, to, q), o));
            if right { Ok(outcomes) } else { Err(anyhow::Error::new(Wrong(outcomes))) }
        })
        .or_else(|error| match error.downcast::<Wrong>() {
            Ok(Wrong(outcomes)) => Ok((outcomes, Duration::ZERO)),
            Err(error) => Err(error),
        })?;
        judge(scenario, &outcomes, report);
        if scenario.title == "default deny of ingress" {
            node_reaches_its_pods(lab, report)?;
        }
    }
    Ok(())
}

/// Puts these policies, and no others, into the cluster.
///
/// # Errors
/// When they cannot be written.
pub fn set(lab: &Lab, policies: &[(&str, &str, &str)]) -> Result<()> {
    let objects: Result<Vec<_>> = policies
        .iter()
        .map(|(namespace, name, spec)| cluster::network_policy(namespace, name, spec))
        .collect();
    let objects = objects?;
    if objects.is_empty() {
        if lab.cluster.has("policies") { lab.cluster.remove("policies") } else { Ok(()) }
    } else {
        lab.cluster.put("policies", &objects)
    }
}

/// The outcomes of a scenario that has not come to hold yet.
#[derive(Debug)]
struct Wrong(Outcomes);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} outcomes, some of them wrong", self.0.len())
    }
}

impl std::error::Error for Wrong {}

fn ask(lab: &Lab) -> Result<Outcomes> {
    let mut questions = Question::usual();
    for v6 in [false, true] {
        questions.push(Question { proto: Proto::Tcp, v6, port: PORTS[1] });
    }
    matrix::ask(&lab.parties(), &questions, PROBE_LIMIT, |_, _| true)
}

fn is_right(expected: bool, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Answered(_) => expected,
        Outcome::TimedOut => !expected,
        // A denied probe is dropped without a word: a reset or an ICMP error is wrong either way.
        Outcome::Failed(_) => false,
    }
}

fn judge(scenario: &Scenario, outcomes: &Outcomes, report: &mut Report) {
    for expected in [true, false] {
        let asked: Vec<_> = outcomes
            .iter()
            .filter(|((from, to, q), _)| (scenario.expected)(from, to, q) == expected)
            .collect();
        if asked.is_empty() {
            continue;
        }
        let right = asked.iter().filter(|(_, outcome)| is_right(expected, outcome)).count();
        let wrong = asked.iter().find(|(_, outcome)| !is_right(expected, outcome));
        report.check(
            &format!(
                "{}: {}",
                scenario.title,
                if expected { "allowed connects and replies flow" } else { "denied times out" }
            ),
            right == asked.len(),
            match wrong {
                None => format!("{right} of {} probes", asked.len()),
                Some(((from, to, question), outcome)) => {
                    format!("{right} of {} probes; {from} to {to} {question} {outcome}", asked.len())
                }
            },
        );
    }
}

fn node_reaches_its_pods(lab: &Lab, report: &mut Report) -> Result<()> {
    let (mut asked, mut answered) = (0, 0);
    for pod in lab.pods.values().filter(|pod| pod.namespace == "back") {
        for v6 in [false, true] {
            let node = lab.netns(&pod.node);
            let outcome = client::probe(&node, Proto::Tcp, pod.address(v6), PORTS[0], PROBE_LIMIT)?;
            asked += 1;
            answered += usize::from(outcome.is_answered());
        }
    }
    report.check(
        "default deny of ingress: a node still reaches its own pods",
        asked > 0 && answered == asked,
        format_args!("{answered} of {asked} probes"),
    );
    Ok(())
}
