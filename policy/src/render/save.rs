//! What `iptables-save` prints: our chains, and our jumps in the chains of others. Everything else is passed over, so that
//! foreign rules, and lines that some version adds, are no trouble.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{COMMENT_PREFIX, Line, LineHash, Reference, references};
use crate::drops::Reason;
use crate::ir::Table;
use crate::model::Family;
use crate::names::CHAIN_PREFIX;

/// What is ours in one family's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Our chains with their rules.
    pub chains: BTreeMap<(Table, String), Arc<[Line]>>,
    /// Our rules in other chains.
    pub hooks: Vec<SavedHook>,
}

/// A rule of ours in a chain that is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedHook {
    /// Which table.
    pub table: Table,
    /// Which chain.
    pub chain: String,
    /// Its place there, counted from 0.
    pub position: usize,
    /// The rule as printed.
    pub line: Line,
}

/// Reads the output of `iptables-save` or `ip6tables-save`, with or without counters.
pub fn parse(text: &str) -> Saved {
    let mut chains: BTreeMap<(Table, String), Vec<Line>> = BTreeMap::new();
    let mut hooks = Vec::new();
    let mut positions: BTreeMap<(Table, &str), usize> = BTreeMap::new();
    let mut table = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.as_str() == name.trim());
            continue;
        }
        let Some(table) = table else { continue };
        if let Some(declared) = line.strip_prefix(':') {
            let name = declared.split_ascii_whitespace().next().unwrap_or_default();
            if name.starts_with(CHAIN_PREFIX) {
                chains.entry((table, name.to_string())).or_default();
            }
            continue;
        }
        let Some((chain, spec)) = appended(line) else { continue };
        let line = Line { hash: LineHash::find(spec), spec: spec.into() };
        if chain.starts_with(CHAIN_PREFIX) {
            chains.entry((table, chain.to_string())).or_default().push(line);
            continue;
        }
        let position = positions.entry((table, chain)).or_insert(0);
        if is_ours(spec) {
            hooks.push(SavedHook { table, chain: chain.to_string(), position: *position, line });
        }
        *position += 1;
    }
    Saved { chains: chains.into_iter().map(|(key, lines)| (key, lines.into())).collect(), hooks }
}

/// What the rules of our chains have counted, from the output of `iptables-save -c`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    chains: BTreeMap<(Table, String), Vec<Counter>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counter {
    hash: LineHash,
    packets: u64,
    deed: Deed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Logs,
    Drops(Reason),
    Other,
}

/// A rule that drops, and how much it has dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropping<'a> {
    /// In which table.
    pub table: Table,
    /// In which chain.
    pub chain: &'a str,
    /// Which rule of it.
    pub hash: LineHash,
    /// Why it drops.
    pub reason: Reason,
    /// How many.
    pub packets: u64,
}

/// Names a rule of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleKey {
    /// Of which family's table.
    pub family: Family,
    /// In which table.
    pub table: Table,
    /// In which chain.
    pub chain: String,
    /// Which rule of it.
    pub hash: LineHash,
}

impl Counters {
    /// Packets that a rule has matched.
    pub fn packets(&self, key: &RuleKey) -> Option<u64> {
        let rules = self.chains.get(&(key.table, key.chain.clone()))?;
        rules.iter().find(|rule| rule.hash == key.hash).map(|rule| rule.packets)
    }

    /// Of a policy's chain: packets that its rules have matched, and those that came to its end.
    pub fn of_policy(&self, chain: &str) -> Option<(u64, u64)> {
        let rules = self.chains.get(&(Table::Filter, chain.to_string()))?;
        let (end, rules) = rules.split_last()?;
        // A rule that denies logs some of what it drops: those are counted where they are dropped.
        Some((
            rules.iter().filter(|rule| rule.deed != Deed::Logs).map(|rule| rule.packets).sum(),
            end.packets,
        ))
    }

    /// Every rule that drops.
    pub fn drops(&self) -> impl Iterator<Item = Dropping<'_>> {
        self.chains.iter().flat_map(|((table, chain), rules)| {
            rules.iter().filter_map(move |rule| match rule.deed {
                Deed::Drops(reason) => {
                    Some(Dropping { table: *table, chain, hash: rule.hash, reason, packets: rule.packets })
                }
                Deed::Logs | Deed::Other => None,
            })
        })
    }
}

/// Reads the output of `iptables-save -c`.
pub fn counters(text: &str) -> Counters {
    let mut counters = Counters::default();
    let mut table = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.as_str() == name.trim());
        }
        let Some(table) = table else { continue };
        let Some((counted, rest)) = line.strip_prefix('[').and_then(|line| line.split_once("] ")) else {
            continue;
        };
        let packets = counted.split_once(':').and_then(|(packets, _)| packets.parse().ok());
        let (Some(packets), Some((chain, spec))) = (packets, appended(rest)) else { continue };
        if chain.starts_with(CHAIN_PREFIX) {
            let rules = counters.chains.entry((table, chain.to_string())).or_default();
            rules.push(Counter { hash: LineHash::find(spec), packets, deed: deed(chain, spec) });
        }
    }
    counters
}

fn deed(chain: &str, spec: &str) -> Deed {
    if spec.contains("-j NFLOG") {
        Deed::Logs
    } else if spec.ends_with("-j DROP") {
        Deed::Drops(Reason::of(chain, spec))
    } else {
        Deed::Other
    }
}

/// `[12:345] -A CHAIN spec` -> chain and spec.
fn appended(line: &str) -> Option<(&str, &str)> {
    let line = match line.strip_prefix('[') {
        Some(counted) => counted.split_once("] ")?.1,
        None => line,
    };
    line.strip_prefix("-A ")?.split_once(' ')
}

/// It leads to a chain of ours, whoever put it there: while it stands, that chain cannot go.
fn is_ours(spec: &str) -> bool {
    spec.contains(&format!("--comment \"{COMMENT_PREFIX}"))
        || spec.contains(&format!("--comment {COMMENT_PREFIX}"))
        || references(spec).any(|reference| matches!(reference, Reference::Chain(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# Generated by iptables-save v1.8.9 (nf_tables)
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:MANX-FORWARD - [0:0]
:MANX-EMPTY - [0:0]
[7:420] -A FORWARD -j DOCKER
[0:0] -A FORWARD -m comment --comment "manx:abcdefghij pod traffic" -j MANX-FORWARD
-A MANX-FORWARD -i manx+ -m comment --comment "manx:bbbbbbbbbb egress" -j MANX-FROM
-A MANX-FORWARD -j LOG
# Table `filter' is incompatible, use 'nft' tool.
COMMIT
*nat
:MANX-NAT - [0:0]
COMMIT
"#;

    #[test]
    fn counters_are_found_by_rule_and_summed_by_policy() {
        let text = "*filter\n:MANX-PI-x - [0:0]\n[9:1] -A FORWARD -j X\n\
            [3:180] -A MANX-PI-x -m comment --comment \"manx:aaaaaaaaaa np a/b\" -g MANX-ALLOW\n\
            [1:60] -A MANX-PI-x -m comment --comment \"manx:bbbbbbbbbb np a/b\" -j NFLOG --nflog-group 77\n\
            [4:240] -A MANX-PI-x -m comment --comment \"manx:cccccccccc np a/b\" -j DROP\n\
            [7:420] -A MANX-PI-x -m comment --comment \"manx:dddddddddd np a/b\" -j RETURN\nCOMMIT\n";
        let counters = counters(text);
        assert_eq!(counters.of_policy("MANX-PI-x"), Some((7, 7)));
        let key = RuleKey {
            family: Family::Ipv4,
            table: Table::Filter,
            chain: "MANX-PI-x".into(),
            hash: LineHash::find("manx:cccccccccc"),
        };
        assert_eq!(counters.packets(&key), Some(4));
        assert_eq!(counters.of_policy("MANX-PI-y"), None);
    }

    #[test]
    fn foreign_rules_are_passed_over_and_ours_are_found_with_their_places() {
        let saved = parse(TEXT);
        let names: Vec<&str> = saved.chains.keys().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["MANX-EMPTY", "MANX-FORWARD"]);
        let lines = &saved.chains[&(Table::Filter, "MANX-FORWARD".to_string())];
        assert_eq!(lines.iter().map(|l| l.hash.is_some()).collect::<Vec<_>>(), [true, false]);
        assert_eq!(saved.hooks.len(), 1);
        assert_eq!((saved.hooks[0].chain.as_str(), saved.hooks[0].position), ("FORWARD", 1));
        assert_eq!(saved.hooks[0].line.hash, LineHash::find("manx:abcdefghij"));
    }
}
