//! What is in force -> IR: the chains, hooks and sets of one node.
//!
//! ```text
//! raw    PREROUTING  -i manx+ -> MANX-SPOOF ==> MANX-SE-<if>  own addresses RETURN, else DROP
//! mangle FORWARD     -> MANX-MARK        unjudged bits: FROM if it came from a pod, TO if it goes to one
//! filter FORWARD     -> MANX-FORWARD
//!                         -i manx+ -> MANX-FROM ==> MANX-FE-<if>   egress: clears FROM and returns, or DROP
//!                         -o manx+ -> MANX-TO   ==> MANX-TE-<if>   ingress: clears TO and accepts, or DROP
//!                         -i manx+ => MANX-ACCEPT
//! filter INPUT       -i manx+ -> MANX-INPUT -> MANX-FROM           the pod's own node
//! mangle POSTROUTING -> MANX-GUARD       an unjudged bit is left: DROP
//! ```
//! `->` is a jump, `=>` a goto; `==>` is a tree of gotos by interface name whose every table ends in DROP.
//!
//! * **Allowed** is never an early ACCEPT on the way from a pod: a policy rule that matches sets ALLOW and returns, so that
//!   traffic between two pods of one node is judged for egress and for ingress; the one final accept comes after both.
//! * **The guard.** When somebody flushes the filter table, nobody clears the unjudged bits and mangle POSTROUTING drops
//!   what pods send and get through this node. What the node itself sends never passes FORWARD, bears no bit and goes on.
//! * **A pod and its own node always reach each other** under NetworkPolicy. OUTPUT is not policed. In INPUT the bits say TO
//!   without FROM, a combination that forwarded traffic from a pod never has; egress policy then lets the packet by.
//!   Whatever arrives in INPUT is for an address of this very node, also after destination translation. Unknown interfaces,
//!   router advertisements, redirects, tunnels and packets that conntrack calls INVALID are dropped there too; what is let
//!   by is left to the host's own INPUT rules.
//! * **New TCP flows begin with SYN** at endpoints that are isolated in any direction: a flow that was cut by a policy change
//!   must not come back through a packet in the other, allowed direction. At endpoints without policy nothing was cut, and
//!   conntrack may pick up what it has lost.
//! * **Source addresses are those of the packet in FORWARD**: after destination translation, before source translation. Service
//!   addresses are therefore never policed. kube-proxy's IPVS mode takes Service traffic past FORWARD, through INPUT and
//!   OUTPUT, and is not policed here; nor are host-network pods, which share their node's address and its privileges.
//! * **Tunnels out of pods** (VXLAN, Geneve, IPIP, IPv6 in IP, GRE) are dropped at every endpoint, isolated or not: what they
//!   carry would reach the far end of the tunnel with any source address, past everyone's ingress policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use smallvec::smallvec;

use crate::calc::{Access, Resolved, Snapshot};
use crate::grants::{Grant, PeerCondition, PortCondition, SetKey, grants};
use crate::ir::{Chain, ConnState, Hook, InterfaceMatch, Match, Program, Rule, Side, Table, Verdict};
use crate::model::{Action, Direction, Family, Policy, PolicyId, Protocol, Tier};
use crate::names::{policy_chain, set_name};
use crate::verdict::{TUNNEL_PORTS, TUNNEL_PROTOCOLS};

/// How many entries a dispatch chain may have before it becomes a branch.
pub const FAN_OUT: usize = 16;

/// Chains that are there on every node, whatever is in force.
pub mod chain {
    /// Entry from filter FORWARD.
    pub const FORWARD: &str = "MANX-FORWARD";
    /// Entry from filter INPUT.
    pub const INPUT: &str = "MANX-INPUT";
    /// Root of the tree by incoming interface.
    pub const FROM: &str = "MANX-FROM";
    /// Root of the tree by outgoing interface.
    pub const TO: &str = "MANX-TO";
    /// Root of the anti-spoofing tree.
    pub const SPOOF: &str = "MANX-SPOOF";
    /// What no pod may send.
    pub const CHECK: &str = "MANX-CHECK";
    /// Neighbour discovery and multicast listeners.
    pub const NDP: &str = "MANX-NDP";
    /// A policy rule allows.
    pub const ALLOW: &str = "MANX-ALLOW";
    /// Egress is allowed.
    pub const EGRESS_OK: &str = "MANX-EGRESS-OK";
    /// The final accept.
    pub const ACCEPT: &str = "MANX-ACCEPT";
    /// Sets the unjudged bits.
    pub const MARK: &str = "MANX-MARK";
    /// Drops what still has one.
    pub const GUARD: &str = "MANX-GUARD";
}

/// The four bits that we use of the host's marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// A policy has allowed the packet in the direction that is being judged.
    pub allow: u32,
    /// A policy rule has passed the packet on to the next tier.
    pub pass: u32,
    /// It came from a pod, whose egress policy has not been asked yet.
    pub from: u32,
    /// It goes to a pod, whose ingress policy has not been asked yet; without `from`: it is for this node.
    pub to: u32,
    /// All bits that are ours.
    pub mask: u32,
}

impl Marks {
    /// The lowest four bits of the mask; `None` if it has fewer.
    pub fn new(mask: u32) -> Option<Self> {
        let mut bits = (0..32).map(|i| 1u32 << i).filter(|bit| mask & bit != 0);
        Some(Marks { allow: bits.next()?, pass: bits.next()?, from: bits.next()?, to: bits.next()?, mask })
    }
}

/// What compilation depends on besides what is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How pod interfaces begin.
    pub prefix: String,
    /// Mark bits.
    pub marks: Marks,
    /// Whether the guard around the filter table is up.
    pub guard: bool,
}

type Placed = (Table, Chain);

impl Layout {
    /// Our jumps in the built-in chains.
    pub fn hooks(&self) -> Vec<Hook> {
        let hook = |table, chain, matches, to: &str, comment: &str| Hook {
            table,
            chain,
            rule: Rule { matches, verdict: Verdict::Jump(to.into()), comment: comment.into() },
        };
        let mut hooks = vec![
            hook(Table::Filter, "FORWARD", smallvec![], chain::FORWARD, "pod traffic"),
            hook(Table::Filter, "INPUT", smallvec![self.pod_input()], chain::INPUT, "from pods to this node"),
            hook(
                Table::Raw,
                "PREROUTING",
                smallvec![self.pod_input()],
                chain::SPOOF,
                "pods use their own addresses",
            ),
        ];
        if self.guard {
            hooks.push(hook(Table::Mangle, "FORWARD", smallvec![], chain::MARK, "pod traffic is unjudged"));
            let unjudged = Match::Mark { value: 0, mask: self.marks.from | self.marks.to, negated: true };
            hooks.push(hook(
                Table::Mangle,
                "POSTROUTING",
                smallvec![unjudged],
                chain::GUARD,
                "still unjudged",
            ));
        }
        hooks
    }

    /// The chains that do not depend on what is in force.
    pub fn fixed(&self, family: Family) -> Vec<Placed> {
        let Marks { allow, pass, from, to, mask } = self.marks;
        let v6 = family == Family::Ipv6;
        let mut chains = Vec::new();
        let mut add = |table, name: &str, rules| chains.push((table, Chain { name: name.into(), rules }));

        add(
            Table::Filter,
            chain::FORWARD,
            vec![
                rule([self.pod_input()], jump(chain::FROM), "egress policy"),
                rule([self.pod_output()], jump(chain::TO), "ingress policy"),
                rule([self.pod_output()], Verdict::Drop, "no verdict on ingress"),
                rule([self.pod_input()], goto(chain::ACCEPT), "allowed"),
            ],
        );
        let mut input = Vec::new();
        if v6 {
            input.push(rule([Match::Protocol(ICMP6)], jump(chain::NDP), "neighbour discovery"));
        }
        input.push(rule([], mark(to, mask), "for this node"));
        input.push(rule([], jump(chain::FROM), "egress policy"));
        input.push(rule([], mark(0, mask), "left to the rules of the host"));
        add(Table::Filter, chain::INPUT, input);
        if v6 {
            add(Table::Filter, chain::NDP, neighbour_discovery());
        }
        add(Table::Filter, chain::CHECK, forbidden(v6));
        add(Table::Filter, chain::ALLOW, vec![rule([], mark(allow, allow), "a policy allows")]);
        add(Table::Filter, chain::EGRESS_OK, vec![rule([], mark(0, from | allow | pass), "egress allowed")]);
        add(
            Table::Filter,
            chain::ACCEPT,
            vec![
                rule([], mark(0, to | allow | pass), "judged"),
                rule([], Verdict::Accept, "allowed in both directions"),
            ],
        );
        if self.guard {
            add(
                Table::Mangle,
                chain::MARK,
                vec![
                    rule([self.pod_input(), Match::NotOut(self.pods())], mark(from, mask), "egress unjudged"),
                    rule([Match::NotIn(self.pods()), self.pod_output()], mark(to, mask), "ingress unjudged"),
                    rule([self.pod_input(), self.pod_output()], mark(from | to, mask), "both unjudged"),
                ],
            );
            add(Table::Mangle, chain::GUARD, vec![rule([], Verdict::Drop, "no verdict of the filter table")]);
        }
        chains
    }

    /// The trees that lead from an interface to its endpoint's chains.
    pub fn dispatch(&self, interfaces: &BTreeSet<String>) -> Vec<Placed> {
        let mut chains = Vec::new();
        for (table, root, leaf) in [
            (Table::Filter, chain::FROM, "FE"),
            (Table::Filter, chain::TO, "TE"),
            (Table::Raw, chain::SPOOF, "SE"),
        ] {
            let side = if leaf == "TE" { Match::Out } else { Match::In };
            let names: Vec<&str> = interfaces.iter().map(String::as_str).collect();
            let mut tree = Tree { root, leaf, side, prefix: &self.prefix, chains: Vec::new() };
            tree.grow(&names, self.prefix.len());
            chains.extend(tree.chains.into_iter().map(|chain| (table, chain)));
        }
        chains
    }

    /// The chains of one endpoint.
    pub fn endpoint(&self, family: Family, resolved: &Resolved) -> Vec<Placed> {
        let interface = &resolved.interface;
        let (from, to) = match &resolved.access {
            Access::Closed(why) => {
                let words = format!("{} closed: {}", resolved.pod, why.as_str());
                (vec![rule([], Verdict::Drop, &words)], vec![rule([], Verdict::Drop, &words)])
            }
            Access::Open { .. } => (self.egress(resolved), self.ingress(resolved)),
        };
        vec![
            (Table::Filter, Chain { name: endpoint_chain("FE", interface), rules: from }),
            (Table::Filter, Chain { name: endpoint_chain("TE", interface), rules: to }),
            (
                Table::Raw,
                Chain { name: endpoint_chain("SE", interface), rules: own_addresses(family, resolved) },
            ),
        ]
    }

    fn egress(&self, resolved: &Resolved) -> Vec<Rule> {
        let Marks { from, to, .. } = self.marks;
        let mut rules =
            vec![established(goto(chain::EGRESS_OK)), rule([], jump(chain::CHECK), "what no pod may send")];
        rules.extend(syn_first(resolved));
        if resolved.access.isolated(Direction::Egress) {
            let for_this_node = Match::Mark { value: to, mask: from | to, negated: false };
            rules.push(rule([for_this_node], goto(chain::EGRESS_OK), "a pod always reaches its own node"));
            rules.extend(self.policies(resolved, Direction::Egress, chain::EGRESS_OK));
        } else {
            rules.push(rule([], goto(chain::EGRESS_OK), &format!("{} egress not isolated", resolved.pod)));
        }
        rules
    }

    fn ingress(&self, resolved: &Resolved) -> Vec<Rule> {
        let mut rules = vec![
            established(goto(chain::ACCEPT)),
            rule([Match::State(smallvec![ConnState::Invalid])], Verdict::Drop, "invalid"),
        ];
        rules.extend(syn_first(resolved));
        if resolved.access.isolated(Direction::Ingress) {
            rules.extend(self.policies(resolved, Direction::Ingress, chain::ACCEPT));
        } else {
            rules.push(rule([], goto(chain::ACCEPT), &format!("{} ingress not isolated", resolved.pod)));
        }
        rules
    }

    /// Asks the policies one after the other until one allows; then `allowed`, else dropped.
    fn policies(&self, resolved: &Resolved, direction: Direction, allowed: &str) -> Vec<Rule> {
        let Marks { allow, pass, .. } = self.marks;
        let is = |value| Match::Mark { value, mask: allow, negated: false };
        let mut rules = vec![rule([], mark(0, allow | pass), "not allowed yet")];
        for policy in resolved.access.policies(direction) {
            let verdict = Verdict::Jump(policy_chain(policy, direction));
            rules.push(rule([is(0)], verdict, &policy_words(policy)));
        }
        rules.push(rule(
            [is(allow)],
            goto(allowed),
            &format!("{} {} allowed", resolved.pod, direction.as_str()),
        ));
        let words = format!("{} {} denied: no policy allows it", resolved.pod, direction.as_str());
        rules.push(rule([], Verdict::Drop, &words));
        rules
    }

    /// The chains of one policy: one for each direction of which it speaks. They are shared by all endpoints that it
    /// governs.
    pub fn policy(&self, family: Family, policy: &Policy) -> Vec<Placed> {
        let mut chains = Vec::new();
        for direction in Direction::ALL {
            let Some(policy_rules) = policy.rules(direction) else { continue };
            let words = policy_words(&policy.id);
            let mut rules = Vec::new();
            for (index, policy_rule) in policy_rules.iter().enumerate() {
                let comment = format!("{words} {} rule {index}", direction.as_str());
                if policy_rule.action != Action::Accept {
                    continue; // A NetworkPolicy knows no other; nothing but NetworkPolicies governs.
                }
                for grant in grants(policy_rule, direction).iter().filter(|grant| grant.exists_in(family)) {
                    rules.push(rule(conditions(family, direction, grant), goto(chain::ALLOW), &comment));
                }
            }
            rules.push(rule([], Verdict::Return, &format!("{words} {} allows no more", direction.as_str())));
            chains.push((Table::Filter, Chain { name: policy_chain(&policy.id, direction), rules }));
        }
        chains
    }

    /// Everything of one family at once.
    pub fn program(&self, snapshot: &Snapshot, family: Family) -> Program {
        let interfaces =
            snapshot.endpoints.values().filter(|r| dispatchable(r)).map(|r| r.interface.clone()).collect();
        let mut chains = self.fixed(family);
        chains.extend(self.dispatch(&interfaces));
        for resolved in snapshot.endpoints.values().filter(|r| dispatchable(r)) {
            chains.extend(self.endpoint(family, resolved));
        }
        for policy in snapshot.policies.values() {
            chains.extend(self.policy(family, policy));
        }
        let sets = snapshot.sets.iter().filter(|(key, _)| key.exists_in(family)).map(|(key, members)| {
            let members = members.iter().filter(|m| m.family() == family).copied().collect();
            (set_name(family, &key.suffix()), (key.kind(), members))
        });
        Program {
            family,
            hooks: self.hooks(),
            chains: chains.into_iter().map(|(table, chain)| ((table, chain.name.clone()), chain)).collect(),
            sets: sets.collect(),
        }
    }

    fn pods(&self) -> InterfaceMatch {
        InterfaceMatch { name: self.prefix.clone(), prefix: true }
    }

    fn pod_input(&self) -> Match {
        Match::In(self.pods())
    }

    fn pod_output(&self) -> Match {
        Match::Out(self.pods())
    }
}

/// Has this endpoint chains of its own? One whose interface no rule can name has not: it falls to the DROP at a tree's end.
pub fn dispatchable(resolved: &Resolved) -> bool {
    resolved.access != Access::Closed(crate::calc::Closed::BadInterface)
}

/// The chain of an endpoint: `FE` from it, `TE` to it, `SE` its addresses.
pub fn endpoint_chain(kind: &str, interface: &str) -> String {
    format!("MANX-{kind}-{interface}")
}

/// Is it the name of a chain of a dispatch tree?
pub fn is_dispatch(name: &str) -> bool {
    dispatched_part(name).is_some()
}

/// For a chain of a dispatch tree: what the interfaces that it leads to have in common after the prefix.
pub fn dispatched_part(name: &str) -> Option<&str> {
    if [chain::FROM, chain::TO, chain::SPOOF].contains(&name) {
        return Some("");
    }
    [chain::FROM, chain::TO, chain::SPOOF].iter().find_map(|root| name.strip_prefix(root)?.strip_prefix('-'))
}

/// How comments name a policy.
pub fn policy_words(policy: &PolicyId) -> String {
    let kind = match policy.tier {
        Tier::Admin => "admin",
        Tier::NetworkPolicy => "np",
        Tier::Baseline => "baseline",
    };
    match &policy.namespace {
        Some(namespace) => format!("{kind} {namespace}/{}", policy.name),
        None => format!("{kind} {}", policy.name),
    }
}

const ICMP6: u8 = 58;

/// Grows one dispatch tree. A chain with few interfaces names them all; one with many branches by their next character.
struct Tree<'a> {
    root: &'a str,
    leaf: &'a str,
    side: fn(InterfaceMatch) -> Match,
    prefix: &'a str,
    chains: Vec<Chain>,
}

impl Tree<'_> {
    /// `names` are sorted and agree in their first `depth` bytes. Returns the name of the chain made.
    fn grow(&mut self, names: &[&str], depth: usize) -> String {
        let common = names.first().map_or("", |name| &name[self.prefix.len()..depth]);
        let name = if common.is_empty() { self.root.to_string() } else { format!("{}-{common}", self.root) };
        let mut rules = Vec::new();
        if names.len() <= FAN_OUT {
            rules.extend(names.iter().map(|interface| self.to_leaf(interface)));
        } else {
            let mut branches: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for interface in names {
                branches.entry(&interface[..interface.len().min(depth + 1)]).or_default().push(*interface);
            }
            for (beginning, interfaces) in branches {
                if beginning.len() == depth {
                    rules.extend(interfaces.iter().map(|interface| self.to_leaf(interface)));
                } else if let [interface] = interfaces.as_slice() {
                    rules.push(self.to_leaf(interface));
                } else {
                    let branch = self.grow(&interfaces, depth + 1);
                    let all = (self.side)(InterfaceMatch { name: beginning.to_string(), prefix: true });
                    rules.push(rule([all], Verdict::Goto(branch), "pods by interface"));
                }
            }
        }
        rules.push(rule([], Verdict::Drop, "unknown pod interface"));
        self.chains.push(Chain { name: name.clone(), rules });
        name
    }

    fn to_leaf(&self, interface: &str) -> Rule {
        let exactly = (self.side)(InterfaceMatch { name: interface.to_string(), prefix: false });
        rule([exactly], Verdict::Goto(endpoint_chain(self.leaf, interface)), "pod")
    }
}

/// One kernel rule's conditions for a grant.
fn conditions(family: Family, direction: Direction, grant: &Grant) -> Vec<Match> {
    let side = match direction {
        Direction::Ingress => Side::Source,
        Direction::Egress => Side::Destination,
    };
    let set = |key: &SetKey, negated| Match::Set { name: set_name(family, &key.suffix()), side, negated };
    let mut matches = match &grant.peer {
        PeerCondition::Anyone | PeerCondition::AnyoneOf(_) | PeerCondition::ByPort => vec![],
        PeerCondition::InSet(key) => vec![set(key, false)],
        PeerCondition::InBlock(net, None) => vec![Match::Address(side, *net)],
        PeerCondition::InBlock(net, Some(holes)) => vec![Match::Address(side, *net), set(holes, true)],
        PeerCondition::NotInSet(_, holes) => vec![set(holes, true)],
    };
    match &grant.port {
        PortCondition::Anything => {}
        PortCondition::Protocol(protocol) => matches.push(Match::Protocol(protocol.number())),
        PortCondition::Ranges(protocol, ranges) => matches.push(Match::Ports(*protocol, ranges.clone())),
        PortCondition::InSet(key) => matches.push(Match::PortSet(set_name(family, &key.suffix()))),
    }
    matches
}

/// A pod sends from its own addresses, and link-local to its node; an unspecified source only asks whether an address is
/// free or reports multicast groups.
fn own_addresses(family: Family, resolved: &Resolved) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut from = |ip: IpAddr, prefix: u8, more: &[Match], comment: &str| {
        let net = IpNetwork::new(ip, prefix).expect("a prefix length of its family");
        let matches: Vec<Match> =
            [Match::Address(Side::Source, net)].into_iter().chain(more.iter().cloned()).collect();
        rules.push(rule(matches, Verdict::Return, comment));
    };
    for ip in resolved.addresses.iter().filter(|ip| Family::of(**ip) == family) {
        from(*ip, family.bits(), &[], &resolved.pod.to_string());
    }
    match family {
        Family::Ipv4 => {}
        Family::Ipv6 => {
            from(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10, &[], "link-local");
            let unspecified = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            from(unspecified, 128, &[Match::Protocol(ICMP6)], "duplicate address detection");
        }
    }
    rules.push(rule([], Verdict::Drop, &format!("{} spoofs", resolved.pod)));
    rules
}

/// RFC 4861 wants hop limit 255 of neighbour discovery: nothing from beyond the link passes for it.
fn neighbour_discovery() -> Vec<Rule> {
    let mut rules = Vec::new();
    for (icmp6, words) in
        [(133, "router solicitation"), (135, "neighbour solicitation"), (136, "neighbour advertisement")]
    {
        rules.push(rule([Match::Icmp6(icmp6), Match::HopLimit(255)], Verdict::Accept, words));
    }
    for (icmp6, words) in [(131, "multicast report"), (132, "multicast done"), (143, "multicast report v2")] {
        rules.push(rule([Match::Icmp6(icmp6)], Verdict::Accept, words));
    }
    rules
}

/// What no pod may send, whatever its policies say.
fn forbidden(v6: bool) -> Vec<Rule> {
    let mut rules = vec![rule([Match::State(smallvec![ConnState::Invalid])], Verdict::Drop, "invalid")];
    if v6 {
        rules.push(rule([Match::Icmp6(134)], Verdict::Drop, "router advertisement from a pod"));
        rules.push(rule([Match::Icmp6(137)], Verdict::Drop, "redirect from a pod"));
    }
    let mut ports = TUNNEL_PORTS;
    ports.sort_unstable();
    let ports = ports.iter().map(|port| (*port, *port)).collect();
    rules.push(rule([Match::Ports(Protocol::Udp, ports)], Verdict::Drop, "tunnel from a pod"));
    for protocol in TUNNEL_PROTOCOLS {
        rules.push(rule([Match::Protocol(protocol)], Verdict::Drop, "tunnel from a pod"));
    }
    rules
}

fn established(verdict: Verdict) -> Rule {
    let states = smallvec![ConnState::Related, ConnState::Established];
    rule([Match::State(states)], verdict, "established")
}

fn syn_first(resolved: &Resolved) -> Option<Rule> {
    let isolated = Direction::ALL.into_iter().any(|direction| resolved.access.isolated(direction));
    let matches = [Match::TcpNotSyn, Match::State(smallvec![ConnState::New])];
    isolated.then(|| rule(matches, Verdict::Drop, "a TCP flow begins with SYN"))
}

fn rule(matches: impl IntoIterator<Item = Match>, verdict: Verdict, comment: &str) -> Rule {
    Rule { matches: matches.into_iter().collect(), verdict, comment: comment.into() }
}

fn jump(chain: &str) -> Verdict {
    Verdict::Jump(chain.into())
}

fn goto(chain: &str) -> Verdict {
    Verdict::Goto(chain.into())
}

fn mark(value: u32, mask: u32) -> Verdict {
    Verdict::SetMark { value, mask }
}
