//! Input for `iptables-restore --noflush`: only what changes, so that the counters of all other rules live on.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Line;
use crate::ir::Table;

/// Two lists of rules are compared rule by rule if that takes no more comparisons: some milliseconds.
const MAX_CELLS: usize = 1 << 20;

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
    /// Makes a chain hold exactly `new`. `old` is what it holds, `None` if it does not exist. Rules that stay are not touched
    /// and keep their counters.
    pub fn chain(&mut self, table: Table, name: &str, old: Option<&[Line]>, new: &[Line]) {
        let script = self.tables.entry(table).or_default();
        let old = old.unwrap_or_default();
        let kept = kept(old, new);
        if kept.is_empty() {
            put(&mut script.declared, format_args!(":{name} - [0:0]"));
            for line in new {
                put(&mut script.rules, format_args!("-A {name} {}", line.spec));
            }
            return;
        }
        // From the first rule to the last, so that all before the present place is as it shall be: it counts from 1.
        let (mut place, mut next_old, mut next_new) = (1, 0, 0);
        for (keep_old, keep_new) in kept.into_iter().chain([(old.len(), new.len())]) {
            for _ in next_old..keep_old {
                put(&mut script.rules, format_args!("-D {name} {place}"));
            }
            for line in &new[next_new..keep_new] {
                if keep_old == old.len() {
                    put(&mut script.rules, format_args!("-A {name} {}", line.spec));
                } else {
                    put(&mut script.rules, format_args!("-I {name} {place} {}", line.spec));
                }
                place += 1;
            }
            place += 1;
            (next_old, next_new) = (keep_old + 1, keep_new + 1);
        }
    }

    /// Makes a chain hold exactly `new` by two scripts: the first puts every new rule before those that it replaces, the second
    /// takes these away. Whatever a packet meets first in between is what the old list or the new one has for it: it has
    /// passed by all that both have before. Not done, and false: one of these rules does something and lets the packet go on.
    pub fn chain_in_two(
        [first, second]: &mut [Script; 2],
        table: Table,
        name: &str,
        old: &[Line],
        new: &[Line],
    ) -> bool {
        let [mut coming, mut going] = [String::new(), String::new()];
        let mut changed = Vec::new();
        // Where the next rule stands now, counted from 1, and where it will when all have gone.
        let (mut now, mut then, mut next_old, mut next_new) = (1, 1, 0, 0);
        for (keep_old, keep_new) in kept(old, new).into_iter().chain([(old.len(), new.len())]) {
            for line in &new[next_new..keep_new] {
                match next_old == old.len() {
                    true => put(&mut coming, format_args!("-A {name} {}", line.spec)),
                    false => put(&mut coming, format_args!("-I {name} {now} {}", line.spec)),
                }
                (now, then) = (now + 1, then + 1);
            }
            for _ in next_old..keep_old {
                put(&mut going, format_args!("-D {name} {then}"));
                now += 1;
            }
            changed.extend(&new[next_new..keep_new]);
            changed.extend(&old[next_old..keep_old]);
            (now, then) = (now + 1, then + 1);
            (next_old, next_new) = (keep_old + 1, keep_new + 1);
        }
        if !changed.into_iter().all(decides) {
            return false;
        }
        for (script, commands) in [(first, coming), (second, going)] {
            if !commands.is_empty() {
                script.tables.entry(table).or_default().rules += &commands;
            }
        }
        true
    }

    /// Does it change anything?
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
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

/// Does a rule end a packet's way through its chain, or leave no trace on it?
fn decides(line: &Line) -> bool {
    let Some((_, verdict)) = line.spec.rsplit_once('"') else { return false };
    let mut words = verdict.split_ascii_whitespace();
    match (words.next(), words.next()) {
        (None, None) | (Some("-g"), Some(_)) => true,
        (Some("-j"), Some(target)) => ["ACCEPT", "DROP", "RETURN", "NFLOG"].contains(&target),
        _ => false,
    }
}

/// Which rules stay, by their places in both lists, in order: of those between the ones that agree at the beginning and at
/// the end the longest common subsequence, unless there are so many that it would take longer than to write them anew.
fn kept(old: &[Line], new: &[Line]) -> Vec<(usize, usize)> {
    let equal = |(a, b): &(&Line, &Line)| a.hash.is_some() && a.hash == b.hash;
    let head = old.iter().zip(new).take_while(equal).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(equal).count();
    let (rows, columns) = (old.len() - tail - head, new.len() - tail - head);
    let mut kept: Vec<(usize, usize)> = (0..head).map(|at| (at, at)).collect();
    if rows * columns <= MAX_CELLS {
        // Of the lists from a row and a column on: how many rules they have in common.
        let width = columns + 1;
        let mut common = vec![0_u32; (rows + 1) * width];
        let same = |row: usize, column: usize| equal(&(&old[head + row], &new[head + column]));
        for row in (0..rows).rev() {
            for column in (0..columns).rev() {
                common[row * width + column] = match same(row, column) {
                    true => common[(row + 1) * width + column + 1] + 1,
                    false => common[(row + 1) * width + column].max(common[row * width + column + 1]),
                };
            }
        }
        let (mut row, mut column) = (0, 0);
        while row < rows && column < columns {
            if same(row, column) {
                kept.push((head + row, head + column));
                (row, column) = (row + 1, column + 1);
            } else if common[(row + 1) * width + column] >= common[row * width + column + 1] {
                row += 1;
            } else {
                column += 1;
            }
        }
    }
    kept.extend((0..tail).rev().map(|back| (old.len() - 1 - back, new.len() - 1 - back)));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Rule, Verdict};
    use crate::render::line;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn rules(names: &str) -> Vec<Line> {
        let rule = |name: char| Rule {
            matches: Default::default(),
            verdict: Verdict::Drop,
            comment: name.to_string(),
            origin: None,
        };
        names.chars().map(|name| line("C", &rule(name))).collect()
    }

    /// What becomes of the chain, by the names of its rules, and the commands that it took.
    fn carried_out(old: &str, new: &str) -> (String, Vec<String>) {
        let mut script = Script::default();
        script.chain(Table::Filter, "C", Some(&rules(old)), &rules(new));
        run(old, script)
    }

    fn run(old: &str, script: Script) -> (String, Vec<String>) {
        let text = script.text().unwrap_or_default();
        let commands: Vec<String> = text
            .lines()
            .filter(|line| !line.starts_with(['*']) && *line != "COMMIT")
            .map(String::from)
            .collect();
        let mut chain: Vec<char> = old.chars().collect();
        for command in &commands {
            let name = || command.split('"').nth(1).expect("a comment").chars().last().expect("a name");
            let words: Vec<&str> = command.split(' ').collect();
            let place = || words[2].parse::<usize>().expect("a place") - 1;
            match words[0] {
                ":C" => chain.clear(),
                "-A" => chain.push(name()),
                "-I" => chain.insert(place(), name()),
                "-D" => _ = chain.remove(place()),
                other => panic!("{other}"),
            }
        }
        (chain.into_iter().collect(), commands)
    }

    #[test]
    fn rules_between_two_new_ones_are_not_touched() {
        let (chain, commands) = carried_out("bdz", "abcdz");
        assert_eq!(chain, "abcdz");
        assert!(commands[0].starts_with("-I C 1 ") && commands[1].starts_with("-I C 3 "), "{commands:?}");
        assert_eq!(commands.len(), 2);
    }

    /// Rules are letters, and a packet is the set of those that match it: the first one decides.
    #[test]
    fn between_two_steps_every_packet_meets_what_the_old_list_or_the_new_one_has_for_it() {
        proptest!(|(old in vec(0..6_u8, 0..9), new in vec(0..6_u8, 0..9))| {
            let names = |list: &[u8]| list.iter().map(|n| char::from(b'a' + n)).collect::<String>();
            let (old, new) = (names(&old), names(&new));
            let mut scripts = <[Script; 2]>::default();
            prop_assert!(Script::chain_in_two(&mut scripts, Table::Filter, "C", &rules(&old), &rules(&new)));
            let [coming, going] = scripts;
            let (between, commands) = run(&old, coming);
            prop_assert!(!commands.iter().any(|command| command.starts_with("-D")));
            for packet in 0..1_u32 << 6 {
                let met = |list: &str| list.chars().find(|rule| packet >> (u32::from(*rule) - 97) & 1 == 1);
                prop_assert!([met(&old), met(&new)].contains(&met(&between)), "{old} {between} {new}");
            }
            let (after, commands) = run(&between, going);
            prop_assert!(commands.iter().all(|command| command.starts_with("-D")));
            prop_assert_eq!(after, new);
        });
    }

    #[test]
    fn a_rule_that_lets_its_packet_go_on_changes_in_one_step() {
        let rule = |verdict: Verdict, comment: &str| {
            line("C", &Rule { matches: Default::default(), verdict, comment: comment.into(), origin: None })
        };
        let goto = rule(Verdict::Goto("MANX-ALLOW".into()), "one");
        let mark = rule(Verdict::SetMark { value: 1, mask: 1 }, "two -g x");
        let jump = rule(Verdict::Jump("MANX-X".into()), "three");
        let count = rule(Verdict::Count, "four -j DROP");
        let in_two = |old: &Line, new: &Line| {
            let (old, new) = (std::slice::from_ref(old), std::slice::from_ref(new));
            Script::chain_in_two(&mut Default::default(), Table::Filter, "C", old, new)
        };
        assert!(in_two(&goto, &count) && in_two(&count, &goto));
        for other in [&mark, &jump] {
            assert!(!in_two(&goto, other) && !in_two(other, &goto));
        }
    }

    #[test]
    fn what_stays_is_not_written_again() {
        proptest!(|(old in vec(0..6_u8, 0..9), new in vec(0..6_u8, 0..9))| {
            let names = |list: &[u8]| list.iter().map(|n| char::from(b'a' + n)).collect::<String>();
            let (chain, commands) = carried_out(&names(&old), &names(&new));
            prop_assert_eq!(chain, names(&new));
            // By brute force: no common subsequence is longer.
            let longest = (0..1_u32 << old.len())
                .filter(|pick| {
                    let mut rest = new.iter();
                    let mut picked = old.iter().enumerate().filter(|(at, _)| pick >> at & 1 == 1);
                    picked.all(|(_, rule)| rest.any(|other| other == rule))
                })
                .map(|pick| pick.count_ones() as usize)
                .max();
            let longest = longest.expect("the empty one");
            if longest > 0 {
                prop_assert_eq!(commands.len(), old.len() + new.len() - 2 * longest);
            }
        });
    }
}
