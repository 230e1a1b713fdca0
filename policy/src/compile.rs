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
//! * **Tiers**: Admin, then NetworkPolicy (with Calico's policies before and after), then Baseline. A rule that accepts sets
//!   ALLOW, one that passes sets PASS, either ends its tier; one that denies drops at once. The middle tier is final for
//!   endpoints that one of its policies governs, but for what a Calico rule passes on.
//! * **New TCP flows begin with SYN** at endpoints that any policy governs: a flow that was cut by a policy change
//!   must not come back through a packet in the other, allowed direction. At endpoints without policy nothing was cut, and
//!   conntrack may pick up what it has lost.
//! * **Cut flows without SYN** (UDP, SCTP, ICMP) bear a bit in conntrack's mark, which the agent sets; endpoints drop
//!   them in both directions, before anything is taken for established.
//! * **Source addresses are those of the packet in FORWARD**: after destination translation, before source translation. Service
//!   addresses are therefore never policed. kube-proxy's IPVS mode takes Service traffic past FORWARD, through INPUT and
//!   OUTPUT, and is not policed here; nor are host-network pods, which share their node's address and its privileges.
//! * **Tunnels out of pods** (VXLAN, Geneve, IPIP, IPv6 in IP, GRE) are dropped at every endpoint, isolated or not: what they
//!   carry would reach the far end of the tunnel with any source address, past everyone's ingress policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use smallvec::smallvec;

use crate::calc::{Access, Governing, Resolved, Snapshot};
use crate::drops::{LOGGED, Point};
use crate::grants::{Extra, Grant, PeerCondition, PortCondition, SetKey, grants};
use crate::ir::{Chain, ConnState, Hook, InterfaceMatch, Match, Origin, Program, Rule, Side, Table, Verdict};
use crate::model::{
    Action, Direction, Family, IcmpMatch, Policy, PolicyId, PolicyKind, PortRange, Protocol, Tier, Which,
};
use crate::names::{policy_chain, set_name};
use crate::verdict::{TUNNEL_PORTS, TUNNEL_PROTOCOLS};

/// How many interfaces a dispatch chain below the root may name before it becomes a branch.
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
    /// A policy rule skips the rest of its tier.
    pub const PASS: &str = "MANX-PASS";
    /// Egress is allowed.
    pub const EGRESS_OK: &str = "MANX-EGRESS-OK";
    /// The final accept.
    pub const ACCEPT: &str = "MANX-ACCEPT";
    /// Sets the unjudged bits.
    pub const MARK: &str = "MANX-MARK";
    /// Drops what still has one.
    pub const GUARD: &str = "MANX-GUARD";
}

/// In the comment of the rule that keeps a cut flow dead.
pub(crate) const CUT: &str = "cut by a policy change";
/// In the comment of the rule that wants a SYN first.
pub(crate) const SYN_FIRST: &str = "a TCP flow begins with SYN";
/// In the comment of the rule that ends an isolated pod's chain.
pub(crate) const DENIED: &str = "denied: ";

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

    /// The bit of conntrack's mark that blocks a flow in both directions. The same as `allow`, which no packet bears outside
    /// of our chains: who saves packets' marks into conntrack's (`CONNMARK --save-mark`) blocks nothing.
    pub fn blocked(&self) -> u32 {
        self.allow
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
    /// Whether drops are logged to our NFLOG group. What closes a node that knows nothing yet never is: it must not depend
    /// on what a kernel may lack.
    pub log: bool,
}

type Placed = (Table, Chain);

impl Layout {
    /// Our jumps in the built-in chains.
    pub fn hooks(&self) -> Vec<Hook> {
        // A jump that was put first is another rule than one that was put last, so that it moves when it is to be the other.
        let place = if self.guard { "" } else { ", after the host's own rules" };
        let hook = |table, chain, matches: Vec<Match>, to: &str, comment: &str| Hook {
            table,
            chain,
            rule: rule(matches, Verdict::Jump(to.into()), &format!("{comment}{place}")),
        };
        let mut hooks = vec![
            hook(Table::Filter, "FORWARD", vec![], chain::FORWARD, "pod traffic"),
            hook(Table::Filter, "INPUT", vec![self.pod_input()], chain::INPUT, "from pods to this node"),
            hook(
                Table::Raw,
                "PREROUTING",
                vec![self.pod_input()],
                chain::SPOOF,
                "pods use their own addresses",
            ),
        ];
        if self.guard {
            hooks.push(hook(Table::Mangle, "FORWARD", vec![], chain::MARK, "pod traffic is unjudged"));
            let unjudged = Match::Mark { value: 0, mask: self.marks.from | self.marks.to, negated: true };
            hooks.push(hook(Table::Mangle, "POSTROUTING", vec![unjudged], chain::GUARD, "still unjudged"));
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
        add(Table::Filter, chain::PASS, vec![rule([], mark(pass, pass), "a policy passes")]);
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
                let closed = |direction| {
                    let point = Point { direction: Some(direction), ..of_pod(resolved, why.as_str()) };
                    self.dropped(&[], &words, point)
                };
                (closed(Direction::Egress), closed(Direction::Ingress))
            }
            Access::Open { .. } => (self.egress(resolved), self.ingress(resolved)),
        };
        vec![
            (Table::Filter, Chain { name: endpoint_chain("FE", interface), rules: from }),
            (Table::Filter, Chain { name: endpoint_chain("TE", interface), rules: to }),
            (
                Table::Raw,
                Chain { name: endpoint_chain("SE", interface), rules: self.own_addresses(family, resolved) },
            ),
        ]
    }

    fn egress(&self, resolved: &Resolved) -> Vec<Rule> {
        let mut rules = vec![
            self.blocked_flow(),
            established(goto(chain::EGRESS_OK)),
            rule([], jump(chain::CHECK), "what no pod may send"),
        ];
        rules.extend(self.syn_first(resolved));
        rules.extend(self.policies(resolved, Direction::Egress, chain::EGRESS_OK));
        rules
    }

    fn ingress(&self, resolved: &Resolved) -> Vec<Rule> {
        let mut rules = vec![
            self.blocked_flow(),
            established(goto(chain::ACCEPT)),
            rule([Match::State(smallvec![ConnState::Invalid])], Verdict::Drop, "invalid"),
        ];
        rules.extend(self.syn_first(resolved));
        rules.extend(self.policies(resolved, Direction::Ingress, chain::ACCEPT));
        rules
    }

    /// At every endpoint, isolated or not: the rules that follow keep their places and counters when that changes.
    fn blocked_flow(&self) -> Rule {
        rule([Match::FlowMark(self.marks.blocked())], Verdict::Drop, CUT)
    }

    /// Asks the policies of one tier after the other until one decides.
    fn policies(&self, resolved: &Resolved, direction: Direction, allowed: &str) -> Vec<Rule> {
        let words = format!("{} {}", resolved.pod, direction.as_str());
        let mut rules = Vec::new();
        for governing in resolved.access.policies(direction).iter().filter(|g| g.staged) {
            let comment = format!("staged: {}", policy_words(&governing.id));
            rules.push(rule([], Verdict::Jump(policy_chain(&governing.id, direction)), &comment));
        }
        let tier = |tier| resolved.access.enforced(direction).filter(move |g| g.tier == tier);
        let [admin, default, baseline] =
            [Tier::Admin, Tier::NetworkPolicy, Tier::Baseline].map(|t| tier(t).collect::<Vec<_>>());
        if admin.is_empty() && default.is_empty() && baseline.is_empty() {
            rules.push(rule([], goto(allowed), &format!("{words} not isolated")));
            return rules;
        }
        let Marks { allow, pass, .. } = self.marks;
        let allowed = |comment: &str| {
            let is_allowed = Match::Mark { value: allow, mask: allow, negated: false };
            rule([is_allowed], goto(allowed), &format!("{words} {comment}"))
        };
        let clear = |comment| rule([], mark(0, allow | pass), comment);
        rules.push(clear("not allowed yet"));
        if !admin.is_empty() {
            rules.extend(admin.iter().map(|governing| self.ask(governing, direction)));
            rules.push(allowed("allowed by an admin"));
            rules.push(clear("on to the next tier"));
        }
        if !default.is_empty() {
            rules.extend(self.default_tier(&default, direction));
            rules.push(allowed("allowed"));
            // Only Calico's rules can pass traffic on from here.
            let passes = default.iter().any(|g| g.id.kind != PolicyKind::NetworkPolicy);
            let passed = Match::Mark { value: pass, mask: pass, negated: true };
            let closing: &[Match] = if passes { &[passed] } else { &[] };
            let reason = "no policy allows it";
            let isolated_by = default.iter().map(|governing| governing.id.to_string()).collect();
            let point = Point { direction: Some(direction), isolated_by, ..of_pod(resolved, reason) };
            rules.extend(self.dropped(closing, &format!("{words} {DENIED}{reason}"), point));
            if !passes {
                return rules;
            }
            rules.push(clear("on to the next tier"));
        }
        rules.extend(baseline.iter().map(|governing| self.ask(governing, direction)));
        let comment = if baseline.is_empty() { "not isolated" } else { "not denied" };
        let end = allowed(comment);
        rules.push(Rule { matches: smallvec![], ..end });
        rules
    }

    /// NetworkPolicies, and Calico's before and after them. A pod and its own node always reach each other under
    /// NetworkPolicy; what Calico's policies of lower order say comes before that.
    fn default_tier(&self, policies: &[&Governing], direction: Direction) -> Vec<Rule> {
        let Marks { allow, pass, from, to, .. } = self.marks;
        let first = policies.iter().position(|g| g.id.kind == PolicyKind::NetworkPolicy);
        let first = first.unwrap_or(policies.len());
        let mut rules: Vec<Rule> = policies.iter().map(|governing| self.ask(governing, direction)).collect();
        if direction == Direction::Egress {
            let for_this_node = Match::Mark { value: to, mask: from | to, negated: false };
            let undecided = Match::Mark { value: 0, mask: allow | pass, negated: false };
            let matches = if first == 0 { vec![for_this_node] } else { vec![for_this_node, undecided] };
            rules.insert(first, rule(matches, goto(chain::EGRESS_OK), "a pod always reaches its own node"));
        }
        rules
    }

    /// Asks a policy, unless one before it has decided.
    fn ask(&self, governing: &Governing, direction: Direction) -> Rule {
        let undecided = Match::Mark { value: 0, mask: self.marks.allow | self.marks.pass, negated: false };
        let verdict = Verdict::Jump(policy_chain(&governing.id, direction));
        rule([undecided], verdict, &policy_words(&governing.id))
    }

    /// The chains of one policy: one for each direction of which it speaks. They are shared by all endpoints that it
    /// governs.
    ///
    /// A staged policy's rules count what they match and return; its last rule counts what none of them matched.
    pub fn policy(&self, family: Family, policy: &Policy) -> Vec<Placed> {
        let mut chains = Vec::new();
        for direction in Direction::ALL {
            let Some(policy_rules) = policy.rules(direction) else { continue };
            let words = policy_words(&policy.id);
            let mut rules = Vec::new();
            let origin = |rule| {
                let Policy { id, tier, staged, .. } = policy;
                Some(Box::new(Origin { policy: id.clone(), tier: *tier, direction, rule, staged: *staged }))
            };
            for (index, policy_rule) in policy_rules.iter().enumerate() {
                let made = self.policy_rule(family, policy, direction, index, policy_rule);
                let origin = origin(Some((index, policy_rule.effect())));
                rules.extend(made.into_iter().map(|rule| Rule { origin: origin.clone(), ..rule }));
            }
            let end = match (policy.tier, policy.staged) {
                (Tier::NetworkPolicy, true) => "would not allow",
                (Tier::NetworkPolicy, false) => "allows no more",
                (Tier::Admin | Tier::Baseline, _) => "says no more",
            };
            let end = rule([], Verdict::Return, &format!("{words} {} {end}", direction.as_str()));
            rules.push(Rule { origin: origin(None), ..end });
            chains.push((Table::Filter, Chain { name: policy_chain(&policy.id, direction), rules }));
        }
        chains
    }

    /// One rule of a policy, as many kernel rules as it takes.
    fn policy_rule(
        &self,
        family: Family,
        policy: &Policy,
        direction: Direction,
        index: usize,
        policy_rule: &crate::model::Rule,
    ) -> Vec<Rule> {
        let name = policy_rule.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let words = format!("{} {} rule {index}{name}", policy_words(&policy.id), direction.as_str());
        let point = |reason: &str| Point {
            pod: None,
            direction: Some(direction),
            policy: Some(policy.id.to_string()),
            tier: Some(policy.tier),
            rule: Some(index),
            isolated_by: Vec::new(),
            reason: reason.into(),
        };
        let mut rules = Vec::new();
        for grant in grants(policy_rule, direction).iter().filter(|grant| grant.exists_in(family)) {
            let conditions = conditions(family, direction, grant);
            let comment = |verb: &str| format!("{words} {verb}");
            let one = |verdict, verb| vec![rule(conditions.iter().cloned(), verdict, &comment(verb))];
            rules.extend(match (policy_rule.effect(), policy.staged) {
                (Action::Accept, false) => one(goto(chain::ALLOW), "allows"),
                (Action::Pass, false) => one(goto(chain::PASS), "passes"),
                (Action::Deny, false) => {
                    self.dropped(&conditions, &comment("denies"), point("denied by a rule"))
                }
                (Action::Log, false) => {
                    let matches = conditions.iter().cloned().chain([Match::Seldom]);
                    let verdict = Verdict::Log(Box::new(point(LOGGED)));
                    vec![rule(matches, verdict, &comment("logs"))]
                }
                (Action::Accept, true) => one(Verdict::Return, "would allow"),
                (Action::Pass, true) => one(Verdict::Return, "would pass"),
                (Action::Deny, true) => one(Verdict::Return, "would deny"),
                (Action::Log, true) => one(Verdict::Count, "would log"),
            });
        }
        rules
    }

    /// Logs now and then, if there is a log, and drops.
    fn dropped(&self, matches: &[Match], comment: &str, point: Point) -> Vec<Rule> {
        let log = self.log.then(|| {
            let matches = matches.iter().cloned().chain([Match::Seldom]);
            rule(matches, Verdict::Log(Box::new(point)), comment)
        });
        log.into_iter().chain([rule(matches.iter().cloned(), Verdict::Drop, comment)]).collect()
    }

    /// A flow that was cut must not come back through a packet in the other, allowed direction.
    fn syn_first(&self, resolved: &Resolved) -> Vec<Rule> {
        let policed = Direction::ALL.into_iter().any(|direction| resolved.access.isolated(direction));
        if !policed {
            return Vec::new();
        }
        let matches = [Match::TcpNotSyn, Match::State(smallvec![ConnState::New])];
        self.dropped(&matches, SYN_FIRST, of_pod(resolved, SYN_FIRST))
    }

    /// A pod sends from its own addresses, and link-local to its node; an unspecified source only asks whether an address is
    /// free or reports multicast groups.
    fn own_addresses(&self, family: Family, resolved: &Resolved) -> Vec<Rule> {
        let mut rules = Vec::new();
        let mut from = |ip: IpAddr, prefix: u8, more: &[Match], comment: &str| {
            let net = IpNetwork::new(ip, prefix).expect("a prefix length of its family");
            let matches = [Match::Address(Side::Source, net)].into_iter().chain(more.iter().cloned());
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
        let point = Point {
            direction: Some(Direction::Egress),
            ..of_pod(resolved, "its source address is not the pod's")
        };
        rules.extend(self.dropped(&[], &format!("{} spoofs", resolved.pod), point));
        rules
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
    let kind = match policy.kind {
        PolicyKind::NetworkPolicy => "np",
        PolicyKind::ClusterNetworkPolicy => "cnp",
        PolicyKind::CalicoNetworkPolicy | PolicyKind::CalicoGlobalNetworkPolicy => "calico",
    };
    match &policy.namespace {
        Some(namespace) => format!("{kind} {namespace}/{}", policy.name),
        None => format!("{kind} {}", policy.name),
    }
}

const ICMP6: u8 = 58;

/// Grows one dispatch tree. Its root branches by the next character, and so does a chain with many interfaces; one with few
/// names them all. A root that named its first interfaces itself would have to be written anew when more come, and a pod's
/// start would wait for the end of its old rules; so it only ever grows.
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
        if names.len() <= FAN_OUT && depth > self.prefix.len() {
            rules.extend(names.iter().map(|interface| self.to_leaf(interface)));
        } else {
            let mut branches: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for interface in names {
                branches.entry(&interface[..interface.len().min(depth + 1)]).or_default().push(*interface);
            }
            for (beginning, interfaces) in branches {
                if beginning.len() == depth {
                    rules.extend(interfaces.iter().map(|interface| self.to_leaf(interface)));
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
    let own_side = match side {
        Side::Source => Side::Destination,
        Side::Destination => Side::Source,
    };
    let side_of = |which: &Which| if *which == Which::Own { own_side } else { side };
    let mut matches = address(family, side, &grant.peer);
    let port_set = |key: &SetKey, negated| Match::PortSet { name: set_name(family, &key.suffix()), negated };
    let ports = |protocol: &Protocol, side, ranges: &Vec<PortRange>, negated| Match::Ports {
        protocol: *protocol,
        side,
        ranges: ranges.clone(),
        negated,
    };
    match &grant.port {
        PortCondition::Anything => {}
        PortCondition::Protocol(protocol) => matches.push(Match::Protocol(protocol.number())),
        PortCondition::Ranges(protocol, ranges) => {
            matches.push(ports(protocol, Side::Destination, ranges, false));
        }
        PortCondition::InSet(key) => matches.push(port_set(key, false)),
    }
    for extra in &grant.more {
        match extra {
            Extra::Family(_) => {}
            Extra::Address(which, condition) => matches.extend(address(family, side_of(which), condition)),
            Extra::NotIn(_, key) if !key.exists_in(family) => {}
            Extra::NotIn(which, key) => matches.push(in_set(family, key, side_of(which), true)),
            Extra::Protocol(number) => matches.push(Match::Protocol(*number)),
            Extra::NotProtocol(number) => matches.push(Match::NotProtocol(*number)),
            Extra::Icmp { family, icmp, negated } => {
                matches.push(Match::Icmp { family: *family, icmp: *icmp, negated: *negated });
            }
            Extra::SourcePorts { protocol, ranges, negated } => {
                matches.push(ports(protocol, Side::Source, ranges, *negated));
            }
            Extra::NotPorts(protocol, ranges) => {
                matches.push(ports(protocol, Side::Destination, ranges, true));
            }
            Extra::NotInPorts(key) => matches.push(port_set(key, true)),
        }
    }
    // A condition on ports says the protocol already.
    if matches.iter().any(|m| matches!(m, Match::Ports { .. })) {
        matches.retain(|m| !matches!(m, Match::Protocol(_)));
    }
    matches
}

fn address(family: Family, side: Side, condition: &PeerCondition) -> Vec<Match> {
    let set = |key, negated| in_set(family, key, side, negated);
    match condition {
        PeerCondition::Anyone | PeerCondition::AnyoneOf(_) | PeerCondition::ByPort => vec![],
        PeerCondition::InSet(key) => vec![set(key, false)],
        PeerCondition::InBlock(net, None) => vec![Match::Address(side, *net)],
        PeerCondition::InBlock(net, Some(holes)) => vec![Match::Address(side, *net), set(holes, true)],
        PeerCondition::NotInSet(_, holes) => vec![set(holes, true)],
    }
}

fn in_set(family: Family, key: &SetKey, side: Side, negated: bool) -> Match {
    Match::Set { name: set_name(family, &key.suffix()), side, negated }
}

/// RFC 4861 wants hop limit 255 of neighbour discovery: nothing from beyond the link passes for it.
fn neighbour_discovery() -> Vec<Rule> {
    let mut rules = Vec::new();
    for (number, words) in
        [(133, "router solicitation"), (135, "neighbour solicitation"), (136, "neighbour advertisement")]
    {
        rules.push(rule([icmp6(number), Match::HopLimit(255)], Verdict::Accept, words));
    }
    for (number, words) in [(131, "multicast report"), (132, "multicast done"), (143, "multicast report v2")]
    {
        rules.push(rule([icmp6(number)], Verdict::Accept, words));
    }
    rules
}

/// What no pod may send, whatever its policies say.
fn forbidden(v6: bool) -> Vec<Rule> {
    let mut rules = vec![rule([Match::State(smallvec![ConnState::Invalid])], Verdict::Drop, "invalid")];
    if v6 {
        rules.push(rule([icmp6(134)], Verdict::Drop, "router advertisement from a pod"));
        rules.push(rule([icmp6(137)], Verdict::Drop, "redirect from a pod"));
    }
    let mut ports = TUNNEL_PORTS;
    ports.sort_unstable();
    let ports = ports.iter().map(|port| (*port, *port)).collect();
    let ports =
        Match::Ports { protocol: Protocol::Udp, side: Side::Destination, ranges: ports, negated: false };
    rules.push(rule([ports], Verdict::Drop, "tunnel from a pod"));
    for protocol in TUNNEL_PROTOCOLS {
        rules.push(rule([Match::Protocol(protocol)], Verdict::Drop, "tunnel from a pod"));
    }
    rules
}

fn icmp6(kind: u8) -> Match {
    Match::Icmp { family: Family::Ipv6, icmp: IcmpMatch { kind, code: None }, negated: false }
}

fn established(verdict: Verdict) -> Rule {
    let states = smallvec![ConnState::Related, ConnState::Established];
    rule([Match::State(states)], verdict, "established")
}

/// Where a packet of one pod is logged.
fn of_pod(resolved: &Resolved, reason: &str) -> Point {
    Point { pod: Some(resolved.pod.to_string()), reason: reason.into(), ..Point::default() }
}

fn rule(matches: impl IntoIterator<Item = Match>, verdict: Verdict, comment: &str) -> Rule {
    Rule { matches: matches.into_iter().collect(), verdict, comment: comment.into(), origin: None }
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
