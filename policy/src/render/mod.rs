//! IR -> iptables spelling, and what `iptables-save` prints back -> what of it is ours.
//!
//! A rendered rule carries a hash of its own text in its comment. Reading back compares those hashes only: iptables prints a
//! rule in its own words, and differently from version to version.

use std::fmt::Write as _;

use smallvec::smallvec;

use crate::drops::{self, BURST, NFLOG_GROUP, PER_SECOND};
use crate::ir::{Chain, ConnState, InterfaceMatch, Match, Rule, Side, Verdict};
use crate::model::{Family, Protocol};
use crate::names::{self, MAX_COMMENT};

pub mod restore;
pub mod save;

/// How our comments begin.
pub const COMMENT_PREFIX: &str = "manx:";

/// Length of the hash in a comment.
const HASH_LENGTH: usize = 10;

/// What tells one rendered rule from another; `None` for a rule without a hash of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineHash(Option<[u8; HASH_LENGTH]>);

impl LineHash {
    /// Out of the text of a rule.
    pub fn find(spec: &str) -> Self {
        let found = spec.find(COMMENT_PREFIX).map(|at| &spec.as_bytes()[at + COMMENT_PREFIX.len()..]);
        LineHash(found.and_then(|rest| rest.first_chunk()).copied())
    }

    /// Is it a hash of ours at all?
    pub fn is_some(self) -> bool {
        self.0.is_some()
    }
}

/// One rule as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Equal hashes: equal rules.
    pub hash: LineHash,
    /// What follows `-A CHAIN `.
    pub spec: Box<str>,
}

/// Spells a chain.
pub fn lines(chain: &Chain) -> Vec<Line> {
    chain.rules.iter().map(|rule| line(&chain.name, rule)).collect()
}

/// Spells one rule of a chain.
pub fn line(chain: &str, rule: &Rule) -> Line {
    let conditions = conditions(&rule.matches);
    let verdict = verdict(&rule.verdict);
    let hash = names::hash(&[chain, &conditions, &verdict, &rule.comment], HASH_LENGTH);
    let words = names::comment(&rule.comment, MAX_COMMENT - COMMENT_PREFIX.len() - HASH_LENGTH - 1);
    let spec = format!("{conditions}-m comment --comment \"{COMMENT_PREFIX}{hash} {words}\" {verdict}");
    let spec = spec.trim_end();
    Line { hash: LineHash(hash.as_bytes().first_chunk().copied()), spec: spec.into() }
}

/// What follows `-A CHAIN ` in a rule that logs and needs nothing else that a kernel may lack.
pub fn log_probe() -> String {
    let rule = Rule {
        matches: smallvec![Match::Seldom],
        verdict: Verdict::Log(Box::default()),
        comment: "can this kernel log?".into(),
        origin: None,
    };
    line("", &rule).spec.into()
}

/// Does a pair of line lists say the same?
pub fn same(a: &[Line], b: &[Line]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.hash.is_some() && a.hash == b.hash)
}

fn conditions(matches: &[Match]) -> String {
    let mut text = String::new();
    // iptables takes `-p` once; every condition that needs a protocol names the same one.
    let mut protocol_said = false;
    for condition in matches {
        if let Some(protocol) = protocol_text(condition)
            && !std::mem::replace(&mut protocol_said, true)
        {
            write!(text, "-p {protocol} ").expect("writing to a String succeeds");
        }
        let before = text.len();
        condition_text(condition, &mut text).expect("writing to a String succeeds");
        if text.len() > before {
            text.push(' ');
        }
    }
    text
}

/// The protocol that a condition speaks of, in the word or number that iptables prints.
fn protocol_text(condition: &Match) -> Option<String> {
    Some(match condition {
        Match::Protocol(58) | Match::Icmp { family: Family::Ipv6, .. } => "ipv6-icmp".into(),
        Match::Icmp { family: Family::Ipv4, .. } => "icmp".into(),
        Match::Protocol(number) => match Protocol::ALL.into_iter().find(|p| p.number() == *number) {
            Some(protocol) => protocol.lower().into(),
            None => number.to_string(),
        },
        Match::Ports { protocol, .. } => protocol.lower().into(),
        Match::TcpNotSyn => "tcp".into(),
        _ => return None,
    })
}

fn condition_text(condition: &Match, text: &mut String) -> std::fmt::Result {
    match condition {
        Match::In(interface) => write!(text, "-i {}", interface_text(interface)),
        Match::NotIn(interface) => write!(text, "! -i {}", interface_text(interface)),
        Match::Out(interface) => write!(text, "-o {}", interface_text(interface)),
        Match::NotOut(interface) => write!(text, "! -o {}", interface_text(interface)),
        Match::Address(Side::Source, net) => write!(text, "-s {net}"),
        Match::Address(Side::Destination, net) => write!(text, "-d {net}"),
        Match::Protocol(_) => Ok(()),
        Match::NotProtocol(number) => write!(text, "! -p {number}"),
        Match::Ports { protocol, side: Side::Destination, ranges, negated: false } if ranges.len() == 1 => {
            write!(text, "-m {} --dport {}", protocol.lower(), range_text(ranges[0]))
        }
        Match::Ports { side, ranges, negated, .. } => {
            let option = if *side == Side::Source { "--sports" } else { "--dports" };
            let list: Vec<String> = ranges.iter().map(|range| range_text(*range)).collect();
            write!(text, "-m multiport {}{option} {}", not(*negated), list.join(","))
        }
        Match::Set { name, side, negated } => {
            let side = match side {
                Side::Source => "src",
                Side::Destination => "dst",
            };
            write!(text, "-m set {}--match-set {name} {side}", not(*negated))
        }
        Match::PortSet { name, negated } => {
            write!(text, "-m set {}--match-set {name} dst,dst", not(*negated))
        }
        Match::State(states) => {
            let states: Vec<&str> = states.iter().map(|state| state_text(*state)).collect();
            write!(text, "-m conntrack --ctstate {}", states.join(","))
        }
        Match::TcpNotSyn => text.write_str("-m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN"),
        Match::Icmp { family, icmp, negated } => {
            let (module, option) = match family {
                Family::Ipv4 => ("icmp", "--icmp-type"),
                Family::Ipv6 => ("icmp6", "--icmpv6-type"),
            };
            write!(text, "-m {module} {}{option} {}", not(*negated), icmp.kind)?;
            icmp.code.map_or(Ok(()), |code| write!(text, "/{code}"))
        }
        Match::HopLimit(limit) => write!(text, "-m hl --hl-eq {limit}"),
        Match::Mark { value, mask, negated } => {
            write!(text, "-m mark {}--mark {value:#x}/{mask:#x}", not(*negated))
        }
        Match::FlowMark(bit) => write!(text, "-m connmark --mark {bit:#x}/{bit:#x}"),
        Match::Seldom => write!(text, "-m limit --limit {PER_SECOND}/sec --limit-burst {BURST}"),
    }
}

fn not(negated: bool) -> &'static str {
    if negated { "! " } else { "" }
}

fn interface_text(interface: &InterfaceMatch) -> String {
    format!("{}{}", interface.name, if interface.prefix { "+" } else { "" })
}

fn range_text((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}:{last}") }
}

fn state_text(state: ConnState) -> &'static str {
    match state {
        ConnState::New => "NEW",
        ConnState::Established => "ESTABLISHED",
        ConnState::Related => "RELATED",
        ConnState::Invalid => "INVALID",
        ConnState::Untracked => "UNTRACKED",
    }
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "-j ACCEPT".into(),
        Verdict::Drop => "-j DROP".into(),
        Verdict::Return => "-j RETURN".into(),
        Verdict::Jump(chain) => format!("-j {chain}"),
        Verdict::Goto(chain) => format!("-g {chain}"),
        Verdict::SetMark { value, mask } => format!("-j MARK --set-xmark {value:#x}/{mask:#x}"),
        Verdict::Count => String::new(),
        Verdict::Log(point) => {
            format!("-j NFLOG --nflog-group {NFLOG_GROUP} --nflog-prefix {}", drops::prefix(point))
        }
    }
}

/// The sets and chains of ours that a rule's text names.
pub fn references(spec: &str) -> impl Iterator<Item = Reference<'_>> {
    let words = spec.split_ascii_whitespace();
    words.clone().zip(words.skip(1)).filter_map(|(option, name)| match option {
        "--match-set" => Some(Reference::Set(name)),
        "-j" | "-g" if name.starts_with(names::CHAIN_PREFIX) => Some(Reference::Chain(name)),
        _ => None,
    })
}

/// What a rule depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference<'a> {
    /// A set by name.
    Set(&'a str),
    /// A chain by name.
    Chain(&'a str),
}
