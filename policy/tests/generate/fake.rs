//! A kernel made of text: executes steps as iptables-restore and ipset would, refuses what they would refuse, and reads its
//! rules back into IR, so that a packet can be run through it at any moment between two steps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use manx_policy::drops::{PREFIX, Point, prefix};
use manx_policy::ir::{
    Chain, ConnState, Hook, InterfaceMatch, Match, Member, Program, Rule, SetKind, Side, Table, Verdict,
};
use manx_policy::model::{Family, IcmpMatch, Protocol};
use manx_policy::names::set_prefix;
use manx_policy::plan::{Observed, ObservedSet, Step};

type Tables = BTreeMap<(Table, String), Vec<String>>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FakeKernel {
    tables: [Tables; 2],
    sets: BTreeMap<String, (SetKind, BTreeSet<Member>)>,
}

const BUILTIN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

impl FakeKernel {
    /// Executes a step.
    ///
    /// # Panics
    /// The real one would have refused it.
    pub(crate) fn execute(&mut self, step: &Step) {
        match step {
            Step::CreateSet { name, kind, .. } => {
                let set = self.sets.entry(name.clone()).or_insert((*kind, BTreeSet::new()));
                assert_eq!(set.0, *kind, "{name} exists with another type");
            }
            Step::AddMembers { set, members, kind, family } => {
                assert!(members.iter().all(|member| member.family() == *family), "{step:?}");
                let set = self.sets.get_mut(set).unwrap();
                assert_eq!(set.0, *kind);
                set.1.extend(members);
            }
            Step::DeleteMembers { set, members, .. } => {
                let set = self.sets.get_mut(set).unwrap();
                set.1.retain(|member| !members.contains(member));
            }
            Step::DestroySet { name, .. } => {
                let named = |spec: &String| spec.split(' ').any(|word| word == name);
                let used =
                    self.tables.iter().flat_map(|tables| tables.values()).flatten().find(|spec| named(spec));
                assert_eq!(used, None, "{name} is in use");
                self.sets.remove(name);
            }
            Step::Restore { family, text } => self.restore(*family, text),
        }
    }

    fn restore(&mut self, family: Family, text: &str) {
        let tables = &mut self.tables[family as usize];
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.as_str() == name);
                continue;
            }
            let here = table.unwrap();
            let chain = |name: &str| (here, name.to_string());
            if let Some(declared) = line.strip_prefix(':') {
                tables.insert(chain(declared.split(' ').next().unwrap()), Vec::new());
                continue;
            }
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            match words.as_slice() {
                ["COMMIT"] => {
                    check(tables, &self.sets);
                    table = None;
                }
                ["-A", name, spec] => rules(tables, chain(name)).push((*spec).into()),
                ["-I", name, rest] => {
                    let (index, spec) = rest.split_once(' ').unwrap();
                    rules(tables, chain(name)).insert(index.parse::<usize>().unwrap() - 1, spec.into());
                }
                ["-D", name, index] if index.parse::<usize>().is_ok() => {
                    rules(tables, chain(name)).remove(index.parse::<usize>().unwrap() - 1);
                }
                ["-D", name, spec] => {
                    let rules = rules(tables, chain(name));
                    let at = rules.iter().position(|rule| rule == spec).unwrap();
                    rules.remove(at);
                }
                ["-X", name] => {
                    assert_eq!(tables.remove(&chain(name)), Some(vec![]), "{name} is missing or not empty");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(table, None, "no COMMIT");
    }

    /// What its tools would print.
    pub(crate) fn observed(&self) -> Observed {
        let rules = Family::ALL.map(|family| {
            let mut text = String::new();
            for table in Table::ALL {
                text += &format!("*{}\n", table.as_str());
                let chains: Vec<_> =
                    self.tables[family as usize].iter().filter(|((t, _), _)| *t == table).collect();
                text.extend(chains.iter().map(|((_, name), _)| format!(":{name} - [0:0]\n")));
                for ((_, name), specs) in chains {
                    text.extend(specs.iter().map(|spec| format!("-A {name} {spec}\n")));
                }
                text += "COMMIT\n";
            }
            (family, text)
        });
        let sets = self.sets.iter().map(|(name, (kind, members))| ObservedSet {
            name: name.clone(),
            kind: Some(*kind),
            members: members.iter().copied().collect(),
        });
        Observed { at: SystemTime::UNIX_EPOCH, rules: rules.into(), sets: Some(sets.collect()) }
    }

    /// Its rules as a packet meets them.
    pub(crate) fn program(&self, family: Family) -> Program {
        let mut program =
            Program { family, hooks: Vec::new(), chains: BTreeMap::new(), sets: BTreeMap::new() };
        for ((table, name), specs) in &self.tables[family as usize] {
            let rules: Vec<Rule> = specs.iter().map(|spec| parse(spec)).collect();
            match BUILTIN.into_iter().find(|builtin| builtin == name) {
                Some(chain) => {
                    program.hooks.extend(rules.into_iter().map(|rule| Hook { table: *table, chain, rule }));
                }
                None => {
                    program.chains.insert((*table, name.clone()), Chain { name: name.clone(), rules });
                }
            }
        }
        for (name, (kind, members)) in
            self.sets.iter().filter(|(name, _)| name.starts_with(set_prefix(family)))
        {
            program.sets.insert(name.clone(), (*kind, members.iter().copied().collect()));
        }
        program
    }
}

fn rules(tables: &mut Tables, chain: (Table, String)) -> &mut Vec<String> {
    if BUILTIN.contains(&chain.1.as_str()) {
        return tables.entry(chain).or_default();
    }
    tables.get_mut(&chain).unwrap_or_else(|| panic!("no chain {chain:?}"))
}

/// What the kernel checks when a table is committed: every target and every set exists.
fn check(tables: &Tables, sets: &BTreeMap<String, (SetKind, BTreeSet<Member>)>) {
    for ((table, chain), specs) in tables {
        for spec in specs {
            let rule = parse(spec);
            if let Verdict::Jump(target) | Verdict::Goto(target) = &rule.verdict {
                assert!(tables.contains_key(&(*table, target.clone())), "{chain}: no chain {target}");
            }
            for condition in &rule.matches {
                if let Match::Set { name, .. } | Match::PortSet { name, .. } = condition {
                    assert!(sets.contains_key(name), "{chain}: no set {name}");
                }
            }
        }
    }
}

/// A rule's text back into IR, as iptables would understand it.
pub(crate) fn parse(spec: &str) -> Rule {
    let (before, rest) = spec.split_once(" --comment \"").unwrap();
    let (comment, after) = rest.split_once('"').unwrap();
    let (_hash, words) = comment.strip_prefix("manx:").unwrap().split_once(' ').unwrap();
    let text = format!("{before}{after}");
    let mut words_of: std::collections::VecDeque<&str> = text.split_ascii_whitespace().collect();
    let mut matches = Vec::new();
    let mut verdict = None;
    let mut negated = false;
    let mut protocol = None;
    while let Some(option) = words_of.pop_front() {
        let mut next = || words_of.pop_front().unwrap();
        match option {
            "!" => {
                negated = true;
                continue;
            }
            "-i" | "-o" => {
                let name = next();
                let interface =
                    InterfaceMatch { name: name.trim_end_matches('+').into(), prefix: name.ends_with('+') };
                matches.push(match (option, negated) {
                    ("-i", false) => Match::In(interface),
                    ("-i", true) => Match::NotIn(interface),
                    (_, false) => Match::Out(interface),
                    (_, true) => Match::NotOut(interface),
                });
            }
            "-s" => matches.push(Match::Address(Side::Source, next().parse().unwrap())),
            "-d" => matches.push(Match::Address(Side::Destination, next().parse().unwrap())),
            "-p" if negated => matches.push(Match::NotProtocol(next().parse().unwrap())),
            "-p" => {
                let name = next();
                protocol = Protocol::ALL.into_iter().find(|p| p.lower() == name);
                match (protocol, name) {
                    (Some(_), _) => {}
                    (None, "ipv6-icmp") => matches.push(Match::Protocol(58)),
                    (None, "icmp") => matches.push(Match::Protocol(1)),
                    // iptables prints and takes numbers where it has no name.
                    (None, number) => matches.push(Match::Protocol(number.parse().unwrap())),
                }
            }
            "-m" => _ = next(),
            "--dport" | "--dports" | "--sports" => {
                let ranges = next().split(',').map(|range| match range.split_once(':') {
                    Some((first, last)) => (first.parse().unwrap(), last.parse().unwrap()),
                    None => (range.parse().unwrap(), range.parse().unwrap()),
                });
                matches.push(Match::Ports {
                    protocol: protocol.unwrap(),
                    side: if option == "--sports" { Side::Source } else { Side::Destination },
                    ranges: ranges.collect(),
                    negated,
                });
            }
            "--match-set" => {
                let name = next().to_string();
                matches.push(match next() {
                    "src" => Match::Set { name, side: Side::Source, negated },
                    "dst" => Match::Set { name, side: Side::Destination, negated },
                    _ => Match::PortSet { name, negated },
                });
            }
            "--ctstate" => {
                let states = next().split(',').map(|state| match state {
                    "NEW" => ConnState::New,
                    "ESTABLISHED" => ConnState::Established,
                    "RELATED" => ConnState::Related,
                    "INVALID" => ConnState::Invalid,
                    _ => ConnState::Untracked,
                });
                matches.push(Match::State(states.collect()));
            }
            "--tcp-flags" => {
                assert_eq!((next(), next(), negated), ("FIN,SYN,RST,ACK", "SYN", true));
                matches.push(Match::TcpNotSyn);
            }
            "--icmp-type" | "--icmpv6-type" => {
                let family = if option == "--icmp-type" { Family::Ipv4 } else { Family::Ipv6 };
                matches.retain(|m| !matches!(m, Match::Protocol(1 | 58)));
                let said = next();
                let (kind, code) = said.split_once('/').map_or((said, None), |(k, c)| (k, Some(c)));
                let (kind, code) = (kind.parse().unwrap(), code.map(|code| code.parse().unwrap()));
                matches.push(Match::Icmp { family, icmp: IcmpMatch { kind, code }, negated });
            }
            "--limit" => {
                assert_eq!((next(), next(), next()), ("10/sec", "--limit-burst", "20"));
                matches.push(Match::Seldom);
            }
            "--hl-eq" => matches.push(Match::HopLimit(next().parse().unwrap())),
            "--mark" => {
                let (value, mask) = value_and_mask(next());
                matches.push(match text.contains("-m connmark") {
                    true => Match::FlowMark(value),
                    false => Match::Mark { value, mask, negated },
                });
            }
            "-j" => {
                verdict = Some(match next() {
                    "ACCEPT" => Verdict::Accept,
                    "DROP" => Verdict::Drop,
                    "RETURN" => Verdict::Return,
                    "MARK" => {
                        assert_eq!(next(), "--set-xmark");
                        let (value, mask) = value_and_mask(next());
                        Verdict::SetMark { value, mask }
                    }
                    "NFLOG" => {
                        assert_eq!((next(), next(), next()), ("--nflog-group", "77", "--nflog-prefix"));
                        printed(next())
                    }
                    chain => Verdict::Jump(chain.into()),
                });
            }
            "-g" => verdict = Some(Verdict::Goto(next().into())),
            other => panic!("{other} in {spec}"),
        }
        negated = false;
    }
    // `-p tcp` alone says the protocol and nothing more.
    let spoken = matches.iter().any(|m| matches!(m, Match::Ports { .. } | Match::TcpNotSyn));
    if let (Some(protocol), false) = (protocol, spoken) {
        matches.push(Match::Protocol(protocol.number()));
    }
    Rule {
        matches: matches.into(),
        verdict: verdict.unwrap_or(Verdict::Count),
        comment: words.into(),
        origin: None,
    }
}

/// Of what a rule logs, the kernel knows only the prefix.
fn printed(prefix: &str) -> Verdict {
    Verdict::Log(Box::new(Point { reason: prefix.into(), ..Point::default() }))
}

/// A program without what the kernel does not say again: points of the log by their prefix alone, conditions in no order,
/// no origin.
pub(crate) fn as_printed(program: &mut Program) {
    for rule in program.chains.values_mut().flat_map(|chain| &mut chain.rules) {
        rule.matches.sort();
        rule.origin = None;
        if let Verdict::Log(point) = &rule.verdict
            && !point.reason.starts_with(PREFIX)
        {
            rule.verdict = printed(&prefix(point));
        }
    }
}

fn value_and_mask(text: &str) -> (u32, u32) {
    let number = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let (value, mask) = text.split_once('/').unwrap();
    (number(value), number(mask))
}
