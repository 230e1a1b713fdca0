//! Runs IR on a packet, hook by hook, as the kernel would; tells the verdict and every rule that spoke.
//!
//! Knows the order of tables in a hook, jumps, gotos and returns, marks and sets; knows nothing of policies. A chain or a
//! set that a rule names and that is not there is an error of whoever compiled: the kernel would have refused it.

use std::net::IpAddr;

use crate::ir::{Chain, ConnState, Match, Origin, Program, Rule, Side, Table, Verdict};
use crate::model::{Family, Payload, Protocol};

/// A packet on its way through the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The interface by which it came; `None`: this node sends it.
    pub input: Option<String>,
    /// The interface by which it will leave; `None`: it is for this node.
    pub output: Option<String>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, after translation.
    pub destination: IpAddr,
    /// What it carries.
    pub payload: Payload,
    /// What conntrack says.
    pub state: ConnState,
    /// IPv6 hop limit or IPv4 TTL.
    pub hop_limit: u8,
    /// The packet's mark on entry.
    pub mark: u32,
}

/// A rule that spoke: everything but conditions that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// In which table.
    pub table: Table,
    /// In which chain, a built-in one included.
    pub chain: String,
    /// Which rule of the chain, counted from 0; of a built-in chain only our hooks are known and counted.
    pub index: usize,
    /// What it does.
    pub verdict: Verdict,
    /// Its words.
    pub comment: String,
    /// Whose rule it is, where it is a policy's.
    pub origin: Option<Box<Origin>>,
}

/// The way of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// It gets through all of our rules.
    pub passed: bool,
    /// The mark that it then has.
    pub mark: u32,
    /// Every rule that spoke, in order.
    pub steps: Vec<Step>,
}

/// A rule names what does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    /// A jump to nowhere.
    #[error("chain {0} does not exist")]
    NoChain(String),
    /// A match with nothing.
    #[error("set {0} does not exist")]
    NoSet(String),
    /// Jumps in a circle.
    #[error("chains call each other without end")]
    Endless,
}

/// Runs a packet through every hook on its way.
///
/// # Errors
/// The program names a chain or set that it does not contain.
pub fn run(program: &Program, packet: &Packet) -> Result<Trace, SimError> {
    let mut run = Run { program, packet, mark: packet.mark, steps: Vec::new() };
    let hooks: &[(Table, &str)] = match (&packet.input, &packet.output) {
        (Some(_), Some(_)) => &[
            (Table::Raw, "PREROUTING"),
            (Table::Mangle, "PREROUTING"),
            (Table::Mangle, "FORWARD"),
            (Table::Filter, "FORWARD"),
            (Table::Mangle, "POSTROUTING"),
        ],
        (Some(_), None) => &[
            (Table::Raw, "PREROUTING"),
            (Table::Mangle, "PREROUTING"),
            (Table::Mangle, "INPUT"),
            (Table::Filter, "INPUT"),
        ],
        (None, _) => &[
            (Table::Raw, "OUTPUT"),
            (Table::Mangle, "OUTPUT"),
            (Table::Filter, "OUTPUT"),
            (Table::Mangle, "POSTROUTING"),
        ],
    };
    for (table, builtin) in hooks {
        if run.hook(*table, builtin)? == End::Dropped {
            return Ok(Trace { passed: false, mark: run.mark, steps: run.steps });
        }
    }
    Ok(Trace { passed: true, mark: run.mark, steps: run.steps })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The table has nothing against it: accepted, or no more rules.
    Passed,
    Dropped,
}

/// How a chain ended.
enum Exit {
    Returned,
    Ended(End),
}

const MAX_DEPTH: usize = 32;

struct Run<'a> {
    program: &'a Program,
    packet: &'a Packet,
    mark: u32,
    steps: Vec<Step>,
}

impl<'a> Run<'a> {
    fn hook(&mut self, table: Table, builtin: &str) -> Result<End, SimError> {
        let program = self.program;
        let hooks = program.hooks.iter().filter(|h| h.table == table && h.chain == builtin);
        for (index, hook) in hooks.enumerate() {
            if let Exit::Ended(end) =
                self.rules(table, builtin, index, std::slice::from_ref(&hook.rule), 0)?
            {
                return Ok(end);
            }
        }
        Ok(End::Passed)
    }

    fn chain(&mut self, table: Table, name: &str, depth: usize) -> Result<Exit, SimError> {
        if depth > MAX_DEPTH {
            return Err(SimError::Endless);
        }
        let chain: &'a Chain = self
            .program
            .chains
            .get(&(table, name.to_string()))
            .ok_or_else(|| SimError::NoChain(name.to_string()))?;
        self.rules(table, &chain.name, 0, &chain.rules, depth)
    }

    fn rules(
        &mut self,
        table: Table,
        chain: &str,
        first: usize,
        rules: &[Rule],
        depth: usize,
    ) -> Result<Exit, SimError> {
        for (index, rule) in rules.iter().enumerate() {
            if !self.holds(rule)? {
                continue;
            }
            self.steps.push(Step {
                table,
                chain: chain.to_string(),
                index: first + index,
                verdict: rule.verdict.clone(),
                comment: rule.comment.clone(),
                origin: rule.origin.clone(),
            });
            match &rule.verdict {
                Verdict::Accept => return Ok(Exit::Ended(End::Passed)),
                Verdict::Drop => return Ok(Exit::Ended(End::Dropped)),
                Verdict::Return => return Ok(Exit::Returned),
                Verdict::SetMark { value, mask } => self.mark = (self.mark & !mask) | value,
                Verdict::Count | Verdict::Log(_) => {}
                // What a goto leads to returns to our caller: our own end is its end.
                Verdict::Goto(next) => return self.chain(table, next, depth + 1),
                Verdict::Jump(next) => {
                    if let ended @ Exit::Ended(_) = self.chain(table, next, depth + 1)? {
                        return Ok(ended);
                    }
                }
            }
        }
        Ok(Exit::Returned)
    }

    fn holds(&self, rule: &Rule) -> Result<bool, SimError> {
        for condition in &rule.matches {
            if !self.matches(condition)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn matches(&self, condition: &Match) -> Result<bool, SimError> {
        let packet = self.packet;
        let input = packet.input.as_deref().unwrap_or("");
        let output = packet.output.as_deref().unwrap_or("");
        Ok(match condition {
            Match::In(interface) => interface.matches(input),
            Match::NotIn(interface) => !interface.matches(input),
            Match::Out(interface) => interface.matches(output),
            Match::NotOut(interface) => !interface.matches(output),
            Match::Address(side, net) => net.contains(self.address(*side)),
            Match::Protocol(number) => packet.payload.protocol() == *number,
            Match::NotProtocol(number) => packet.payload.protocol() != *number,
            Match::Ports { protocol: wanted, side, ranges, negated } => match packet.payload {
                Payload::Ports { protocol, source, port, .. } => {
                    let port = if *side == Side::Source { source } else { port };
                    let within = ranges.iter().any(|(first, last)| (*first..=*last).contains(&port));
                    protocol == *wanted && within != *negated
                }
                Payload::Icmp { .. } | Payload::Other(_) => false,
            },
            Match::Set { name, side, negated } => self.in_set(name, self.address(*side))? != *negated,
            Match::PortSet { name, negated } => match packet.payload {
                Payload::Ports { protocol, port, .. } => self.in_port_set(name, protocol, port)? != *negated,
                Payload::Icmp { .. } | Payload::Other(_) => *negated,
            },
            Match::State(states) => states.contains(&packet.state),
            Match::TcpNotSyn => {
                matches!(packet.payload, Payload::Ports { protocol: Protocol::Tcp, syn: false, .. })
            }
            Match::Icmp { family: wanted, icmp, negated } => match packet.payload {
                Payload::Icmp { family, kind, code } => {
                    let same = kind == icmp.kind && icmp.code.is_none_or(|wanted| code == wanted);
                    family == *wanted && same != *negated
                }
                Payload::Ports { .. } | Payload::Other(_) => false,
            },
            Match::Seldom => true,
            Match::HopLimit(limit) => packet.hop_limit == *limit,
            // Who asks, asks about a flow of which conntrack knows nothing yet.
            Match::FlowMark(_) => false,
            Match::Mark { value, mask, negated } => (self.mark & mask == *value) != *negated,
        })
    }

    fn address(&self, side: Side) -> IpAddr {
        match side {
            Side::Source => self.packet.source,
            Side::Destination => self.packet.destination,
        }
    }

    fn in_set(&self, name: &str, ip: IpAddr) -> Result<bool, SimError> {
        use crate::ir::Member;
        let (_, members) = self.program.sets.get(name).ok_or_else(|| SimError::NoSet(name.to_string()))?;
        Ok(members.binary_search(&Member::Ip(ip)).is_ok()
            || members.iter().any(|member| matches!(member, Member::Net(net) if net.contains(ip))))
    }

    fn in_port_set(&self, name: &str, protocol: Protocol, port: u16) -> Result<bool, SimError> {
        let (_, members) = self.program.sets.get(name).ok_or_else(|| SimError::NoSet(name.to_string()))?;
        let member = crate::ir::Member::IpPort(self.packet.destination, protocol, port);
        Ok(members.binary_search(&member).is_ok())
    }
}

impl Packet {
    /// The first packet of a flow.
    pub fn opening(source: IpAddr, destination: IpAddr, protocol: Protocol, port: u16) -> Self {
        Packet {
            input: None,
            output: None,
            source,
            destination,
            payload: Payload::opening(protocol, port),
            state: ConnState::New,
            hop_limit: 64,
            mark: 0,
        }
    }

    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(self.source)
    }
}
