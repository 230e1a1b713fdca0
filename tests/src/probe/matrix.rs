//! Who reaches whom: every pair, both families, TCP, UDP and ping, all at once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;

use super::{Outcome, PORTS, Proto, client};
use crate::netns::Netns;

/// One who probes and is probed.
#[derive(Clone, Debug)]
pub struct Party {
    /// Its name in the table.
    pub name: String,
    /// Where it is.
    pub netns: Netns,
    /// Its addresses, one of each family.
    pub addresses: Vec<IpAddr>,
}

/// What is asked of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// Protocol.
    pub proto: Proto,
    /// IPv6 or IPv4.
    pub v6: bool,
    /// Port; 0 for ping.
    pub port: u16,
}

impl Question {
    /// TCP and UDP on the first port and ping, in both families.
    pub fn usual() -> Vec<Self> {
        let mut all = Vec::new();
        for v6 in [false, true] {
            for proto in Proto::ALL {
                all.push(Self { proto, v6, port: if proto == Proto::Ping { 0 } else { PORTS[0] } });
            }
        }
        all
    }
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.proto, if self.v6 { "6" } else { "4" })?;
        if self.port != 0 {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// Every probe's outcome by sender, receiver and question.
pub type Outcomes = BTreeMap<(String, String, Question), Outcome>;

/// Asks every question of every ordered pair that `wanted` picks; `limit` is the time of a probe that is not answered.
///
/// # Errors
/// When a namespace cannot be entered.
pub fn ask(
    parties: &[Party],
    questions: &[Question],
    limit: Duration,
    wanted: impl Fn(&Party, &Party) -> bool,
) -> Result<Outcomes> {
    let pairs: Vec<(&Party, &Party)> = parties
        .iter()
        .flat_map(|from| parties.iter().map(move |to| (from, to)))
        .filter(|(from, to)| from.name != to.name && wanted(from, to))
        .collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = pairs
            .into_iter()
            .map(|(from, to)| (from, to, scope.spawn(move || ask_pair(from, to, questions, limit))))
            .collect();
        let mut outcomes = Outcomes::new();
        for (from, to, thread) in threads {
            let answers = match thread.join() {
                Ok(answers) => answers?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            for (question, outcome) in questions.iter().zip(answers) {
                outcomes.insert((from.name.clone(), to.name.clone(), *question), outcome);
            }
        }
        Ok(outcomes)
    })
}

fn ask_pair(from: &Party, to: &Party, questions: &[Question], limit: Duration) -> Result<Vec<Outcome>> {
    from.netns.enter(|| {
        std::thread::scope(|scope| {
            // Threads made in here are in the same namespace, and unanswered questions wait side by side.
            let threads: Vec<_> = questions
                .iter()
                .map(|question| {
                    scope.spawn(move || match to.addresses.iter().find(|a| a.is_ipv6() == question.v6) {
                        Some(address) => client::probe_here(question.proto, *address, question.port, limit),
                        None => Outcome::Failed("no address of this family".into()),
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Outcome::Failed("the probe panicked".into())))
                .collect()
        })
    })
}
