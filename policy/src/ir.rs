//! What is meant, free of iptables spelling: tables, chains, rules, sets.
//!
//! `compile.rs` makes it, `render/` spells it, `sim.rs` runs it. A native nf_tables renderer can be put beside the iptables one
//! without touching what lies before.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use smallvec::SmallVec;

use crate::drops::Point;
use crate::model::{Action, Direction, Family, IcmpMatch, PolicyId, PortRange, Protocol, Tier};

/// The tables that we write to. Each is applied atomically, but not together with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Verdicts.
    Filter,
    /// The guard around the filter table.
    Mangle,
    /// Anti-spoofing, before conntrack.
    Raw,
}

impl Table {
    /// All, in the order in which they are written: a new pod's verdicts stand before its packets may enter, and the guard
    /// goes up only after the filter that satisfies it.
    pub const ALL: [Table; 3] = [Table::Filter, Table::Mangle, Table::Raw];

    /// As iptables names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Mangle => "mangle",
            Table::Raw => "raw",
        }
    }
}

/// Which address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Source.
    Source,
    /// Destination.
    Destination,
}

/// An interface, or all whose names begin so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceMatch {
    /// Name or beginning of a name.
    pub name: String,
    /// `name` is a beginning.
    pub prefix: bool,
}

impl InterfaceMatch {
    /// Is this interface meant?
    pub fn matches(&self, interface: &str) -> bool {
        if self.prefix { interface.starts_with(&self.name) } else { interface == self.name }
    }
}

/// Conntrack's view of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnState {
    /// The first of its flow.
    New,
    /// Of a flow that has been seen in both directions.
    Established,
    /// Belongs to another flow: an ICMP error, for example.
    Related,
    /// Conntrack makes no sense of it.
    Invalid,
    /// Exempt from conntrack: neighbour discovery, for example.
    Untracked,
}

/// One condition of a rule. All conditions of a rule must hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    /// Came in by this interface.
    In(InterfaceMatch),
    /// Came in by any other interface.
    NotIn(InterfaceMatch),
    /// Will leave by this interface.
    Out(InterfaceMatch),
    /// Will leave by any other interface.
    NotOut(InterfaceMatch),
    /// The address lies in a block. Never a /0: that is no condition.
    Address(Side, IpNetwork),
    /// IP protocol number.
    Protocol(u8),
    /// Any other IP protocol number.
    NotProtocol(u8),
    /// The protocol is this, and the port of that side is in one of the ranges, or with `negated` in none.
    Ports {
        /// A protocol with ports.
        protocol: Protocol,
        /// Whose port.
        side: Side,
        /// Both ends included; at most 15 slots, a range takes two.
        ranges: Vec<PortRange>,
        /// In none of them.
        negated: bool,
    },
    /// The address is a member of the set, or with `negated` is not.
    Set {
        /// Kernel name.
        name: String,
        /// Which address.
        side: Side,
        /// Not a member.
        negated: bool,
    },
    /// Destination address, protocol and destination port together are a member of the set, or with `negated` are not.
    PortSet {
        /// Kernel name.
        name: String,
        /// Not a member.
        negated: bool,
    },
    /// Conntrack state is one of these.
    State(SmallVec<[ConnState; 2]>),
    /// A TCP segment that does not open a connection (SYN set; ACK, FIN, RST clear would).
    TcpNotSyn,
    /// ICMP of this family, of this type (and code), or with `negated` of any other.
    Icmp {
        /// ICMP or ICMPv6.
        family: Family,
        /// Type and code.
        icmp: IcmpMatch,
        /// Of any other.
        negated: bool,
    },
    /// IPv6 hop limit.
    HopLimit(u8),
    /// Of the mark, the bits under `mask` equal `value`, or with `negated` do not.
    Mark {
        /// Wanted bits.
        value: u32,
        /// Looked-at bits.
        mask: u32,
        /// Anything but `value`.
        negated: bool,
    },
    /// Of the mark that conntrack keeps for the flow, this bit is set.
    FlowMark(u32),
    /// Not more often than [`crate::drops::PER_SECOND`].
    Seldom,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Leave the table, accepted.
    Accept,
    /// Gone, silently.
    Drop,
    /// Back to the chain that called (through gotos: the last that called by jump).
    Return,
    /// Call a chain of ours.
    Jump(String),
    /// Continue in a chain of ours, not to return here.
    Goto(String),
    /// Replace the bits under `mask` by those of `value`; go on.
    SetMark {
        /// New bits; none outside the mask.
        value: u32,
        /// Replaced bits.
        mask: u32,
    },
    /// Count, and go on.
    Count,
    /// Tell whoever listens to our NFLOG group; go on.
    Log(Box<Point>),
}

/// One rule: conditions, an action, and words for whoever reads the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// All must hold.
    pub matches: SmallVec<[Match; 3]>,
    /// What happens.
    pub verdict: Verdict,
    /// Policy and rule by name, or what the rule is for.
    pub comment: String,
    /// Whose rule it is, where it is a policy's.
    pub origin: Option<Box<Origin>>,
}

/// Where a kernel rule comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// Which policy.
    pub policy: PolicyId,
    /// Its tier.
    pub tier: Tier,
    /// Of which direction.
    pub direction: Direction,
    /// Which of its rules, counted from 0, and what that does; `None`: the end of the policy.
    pub rule: Option<(usize, Action)>,
    /// It only counts.
    pub staged: bool,
}

/// A chain of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// At most 28 bytes.
    pub name: String,
    /// In order; past the last one a packet returns.
    pub rules: Vec<Rule>,
}

/// A jump of ours in a built-in chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Which table.
    pub table: Table,
    /// `FORWARD`, `INPUT`, `PREROUTING`, `POSTROUTING`.
    pub chain: &'static str,
    /// The jump.
    pub rule: Rule,
}

/// What a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// `hash:ip`: addresses.
    Ip,
    /// `hash:net`: blocks, never a /0.
    Net,
    /// `hash:ip,port`: address, protocol and port.
    IpPort,
}

impl SetKind {
    /// The kernel's type name.
    pub fn as_str(self) -> &'static str {
        match self {
            SetKind::Ip => "hash:ip",
            SetKind::Net => "hash:net",
            SetKind::IpPort => "hash:ip,port",
        }
    }

    /// From the kernel's type name.
    pub fn parse(name: &str) -> Option<Self> {
        [SetKind::Ip, SetKind::Net, SetKind::IpPort].into_iter().find(|k| k.as_str() == name)
    }
}

/// One element of a set; which variant is told by the set's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// Of a [`SetKind::Ip`].
    Ip(IpAddr),
    /// Of a [`SetKind::Net`].
    Net(IpNetwork),
    /// Of a [`SetKind::IpPort`].
    IpPort(IpAddr, Protocol, u16),
}

impl Member {
    /// Into which family's set it belongs.
    pub fn family(&self) -> Family {
        match self {
            Member::Ip(ip) | Member::IpPort(ip, ..) => Family::of(*ip),
            Member::Net(net) => Family::of(net.ip()),
        }
    }
}

/// As `ipset` writes it.
impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Member::Ip(ip) => ip.fmt(f),
            Member::Net(net) => net.fmt(f),
            Member::IpPort(ip, protocol, port) => write!(f, "{ip},{}:{port}", protocol.lower()),
        }
    }
}

/// All that one family's kernel should hold, as `sim.rs` runs it and tests compare it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Which family.
    pub family: Family,
    /// Jumps in built-in chains.
    pub hooks: Vec<Hook>,
    /// Chains by table and name.
    pub chains: BTreeMap<(Table, String), Chain>,
    /// Sets by name.
    pub sets: BTreeMap<String, (SetKind, Vec<Member>)>,
}
