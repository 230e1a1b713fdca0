//! What happens, a line each: when, of what kind, what.

use manx_agent::view::{Event, Happening};

use crate::history::utc;
use crate::output::{Show, Style};
use crate::show::printable;
use crate::text::{GREEN, RED};

/// As wide as the longest topic.
const TOPIC: usize = 7;

impl Show for Event {
    fn text(&self, style: &Style) -> String {
        let (words, colour) = words(&self.what);
        let at = utc(self.at);
        // The day is known to who watches.
        let at = if style.wide { at.as_str() } else { at.split_once(' ').map_or(at.as_str(), |(_, t)| t) };
        let topic = format!("{:TOPIC$}", self.what.topic());
        let words = printable(&words);
        match colour.filter(|_| style.colour) {
            Some(colour) => format!("{at}  {topic}  \x1b[{colour}m{words}\x1b[0m"),
            None => format!("{at}  {topic}  {words}"),
        }
    }

    fn names(&self) -> Vec<String> {
        match &self.what {
            Happening::Peer { peer, .. } => vec![peer.clone()],
            Happening::Route { prefix, .. } | Happening::Repair { prefix, .. } => vec![prefix.clone()],
            Happening::NextHop { address, .. } => vec![address.clone()],
            Happening::Config { problem, .. } => {
                problem.object.clone().or_else(|| problem.file.clone()).into_iter().collect()
            }
            Happening::Start { .. }
            | Happening::RoutesOmitted { .. }
            | Happening::RepairsOmitted { .. }
            | Happening::Policy { .. }
            | Happening::Missed { .. } => Vec::new(),
        }
    }
}

fn words(what: &Happening) -> (String, Option<u8>) {
    match what {
        Happening::Start { version } => (format!("watching manx-agent {version}"), None),
        Happening::Peer { peer, from, to, reason, .. } => {
            let reason = reason.as_ref().map_or(String::new(), |r| format!(": {r}"));
            let colour = match (from.as_str(), to.as_str()) {
                (_, "Established") => Some(GREEN),
                ("Established", _) => Some(RED),
                _ => None,
            };
            (format!("{peer}: {from} -> {to}{reason}"), colour)
        }
        Happening::Route { prefix, next_hops } if next_hops.is_empty() => {
            (format!("{prefix} leads nowhere any more"), None)
        }
        Happening::Route { prefix, next_hops } => (format!("{prefix} via {}", next_hops.join(", ")), None),
        Happening::RoutesOmitted { count } => (format!("{count} more routes have changed"), None),
        Happening::NextHop { address, reachable: true } => {
            (format!("next hop {address} can be reached"), None)
        }
        Happening::NextHop { address, reachable: false } => {
            (format!("next hop {address} cannot be reached"), Some(RED))
        }
        Happening::Repair { prefix, cause } => (format!("{prefix} {cause}: put back"), Some(RED)),
        Happening::RepairsOmitted { count } => (format!("{count} more routes were put back"), Some(RED)),
        Happening::Policy { error: Some(error), .. } => (format!("not applied: {error}"), Some(RED)),
        Happening::Policy { took, .. } => {
            (format!("applied in {} ms", took.map_or("-".to_owned(), |t| t.to_string())), None)
        }
        Happening::Config { solved: true, problem } => (format!("mended: {problem}"), Some(GREEN)),
        Happening::Config { solved: false, problem } => (problem.to_string(), Some(RED)),
        Happening::Missed { count } => {
            (format!("{count} events left out: this reader is too slow"), Some(RED))
        }
    }
}
