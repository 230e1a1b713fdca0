//! Input for `iptables-restore --noflush`: only what changes, so that the counters of all other rules live on.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Line;
use crate::ir::Table;

/// Changes to the tables of one family.
#[derive(Debug, Default)]
pub struct Script {
    tables: BTreeMap<Table, TableScript>,
}

#[derive(Debug, Default)]
struct TableScript {
    /// `:CHAIN` creates a chain or empties it. All of them first: a rule may jump to any.
    declared: String,
    /// Rules within our chains.
    rules: String,
    /// Jumps in built-in chains.
    hooks: String,
    /// Chains that go, once nothing leads to them.
    deleted: String,
}

impl Script {
    /// Makes a chain hold exactly `new`. `old` is what it holds, `None` if it does not exist. Rules at its beginning and at
    /// its end that stay are not touched and keep their counters.
    pub fn chain(&mut self, table: Table, name: &str, old: Option<&[Line]>, new: &[Line]) {
        let script = self.tables.entry(table).or_default();
        let (head, tail) = old.map_or((0, 0), |old| common(old, new));
        let old_length = old.map_or(0, <[Line]>::len);
        if head + tail == 0 {
            put(&mut script.declared, format_args!(":{name} - [0:0]"));
            for line in new {
                put(&mut script.rules, format_args!("-A {name} {}", line.spec));
            }
            return;
        }
        for _ in head..old_length - tail {
            put(&mut script.rules, format_args!("-D {name} {}", head + 1));
        }
        for (index, line) in new.iter().enumerate().take(new.len() - tail).skip(head) {
            if tail == 0 {
                put(&mut script.rules, format_args!("-A {name} {}", line.spec));
            } else {
                put(&mut script.rules, format_args!("-I {name} {} {}", index + 1, line.spec));
            }
        }
    }

    /// Removes a chain. Emptied first, so that chains that name each other go in any order.
    pub fn remove_chain(&mut self, table: Table, name: &str) {
        let script = self.tables.entry(table).or_default();
        put(&mut script.declared, format_args!(":{name} - [0:0]"));
        put(&mut script.deleted, format_args!("-X {name}"));
    }

    /// Removes a jump of ours from a built-in chain; `spec` is what `iptables-save` printed.
    pub fn remove_hook(&mut self, table: Table, builtin: &str, spec: &str) {
        put(&mut self.tables.entry(table).or_default().hooks, format_args!("-D {builtin} {spec}"));
    }

    /// Puts a jump of ours into a built-in chain, at its top or at its end.
    pub fn add_hook(&mut self, table: Table, builtin: &str, line: &Line, at_top: bool) {
        let place = if at_top { format!("-I {builtin} 1") } else { format!("-A {builtin}") };
        put(&mut self.tables.entry(table).or_default().hooks, format_args!("{place} {}", line.spec));
    }

    /// The whole input; `None` if nothing changes.
    pub fn text(self) -> Option<String> {
        let mut text = String::new();
        for (table, script) in &self.tables {
            let TableScript { declared, rules, hooks, deleted } = script;
            put(&mut text, format_args!("*{}", table.as_str()));
            text.extend([declared.as_str(), rules, hooks, deleted]);
            put(&mut text, format_args!("COMMIT"));
        }
        (!text.is_empty()).then_some(text)
    }
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a String succeeds");
}

/// How many rules at the beginning and at the end stay as they are.
fn common(old: &[Line], new: &[Line]) -> (usize, usize) {
    let equal = |(a, b): &(&Line, &Line)| a.hash.is_some() && a.hash == b.hash;
    let head = old.iter().zip(new).take_while(equal).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(equal).count();
    (head, tail)
}
