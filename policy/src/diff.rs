//! What a proposed change of policies would do: which flows of this node's pods it would cut, which it would open, and by
//! which rule.
//!
//! Both clusters, the present one and the proposed one, are calculated whole and asked alike; a [`Judge`] of each answers for
//! any flow, so that the same question can be put for every entry of conntrack. For people the flows are sampled: every pod
//! of this node against one of each kind of peer, on every port that a rule names, and one that none names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::calc::Calc;
use crate::live::{By, Judge, LiveFlow};
use crate::model::{Direction, Family, Payload, Peer, PodId, Policy, Port, Protocol, Update};
use crate::state::{State, Workload};

/// Flows that are looked at before the rest is left out.
const MAX_FLOWS: usize = 400_000;
/// A port that no rule names.
const UNNAMED_PORT: u16 = 61_347;

/// Present and proposed.
#[derive(Debug)]
pub struct Comparison {
    before: Calc,
    after: Calc,
    proposed: Vec<Policy>,
}

/// A change in what flows of one kind may do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Allowed now and then no more; else the other way round.
    pub cut: bool,
    /// Where the decision changes.
    pub direction: Direction,
    /// The pod of this node whose policy it is.
    pub pod: PodId,
    /// Who is on the other side, in words.
    pub peer: String,
    /// Protocol and destination port, or other words for what is carried.
    pub port: String,
    /// What would decide.
    pub by: String,
    /// One such flow.
    pub example: LiveFlow,
}

/// What would change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Sorted.
    pub changes: Vec<Change>,
    /// How many flows were looked at.
    pub flows: usize,
    /// There were more than were looked at.
    pub truncated: bool,
}

/// A flow that lives and would not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    /// Which end would deny it.
    pub direction: Direction,
    /// The pod of this node at that end.
    pub pod: PodId,
    /// What would decide.
    pub by: String,
}

/// Asks of live flows whether the proposal would end them.
#[derive(Debug)]
pub struct Cutter<'a> {
    before: Judge<'a>,
    after: Judge<'a>,
}

impl Cutter<'_> {
    /// `None`: it would live on, or is denied already.
    pub fn cut(&mut self, flow: &LiveFlow) -> Option<Cut> {
        let (resolved, direction, by) = self.after.denial(flow)?;
        let cut = || Cut { direction, pod: resolved.pod.clone(), by: by_words(&by) };
        self.before.allows(flow).then(cut)
    }
}

/// A cluster and updates of it that somebody thinks of.
#[derive(Debug)]
pub struct Proposal {
    /// The cluster as it is.
    pub state: State,
    /// How pod interfaces begin.
    pub prefix: String,
    /// What would change.
    pub proposed: Vec<Update>,
}

impl Proposal {
    /// Calculates both clusters whole: as long as a cold start, twice.
    pub fn calculate(self) -> Comparison {
        let calc = |more: &[Update]| {
            let mut calc = Calc::new(&self.prefix);
            self.state.updates().chain(more.iter().cloned()).for_each(|update| calc.apply(update));
            calc
        };
        let (before, after) = (calc(&[]), calc(&self.proposed));
        let policies = self.proposed.into_iter().filter_map(|update| match update {
            Update::SetPolicy(policy) => Some(policy),
            _ => None,
        });
        Comparison { before, after, proposed: policies.collect() }
    }
}

impl Changes {
    /// What would be cut first.
    fn sort(&mut self) {
        self.changes.sort_by(|a, b| b.cut.cmp(&a.cut).then_with(|| a.cmp(b)));
    }
}

impl Comparison {
    /// Would the change end a flow that lives now? Built once and asked for every entry of conntrack.
    pub fn cutter(&self, own: &[IpAddr]) -> Cutter<'_> {
        let (before, after) = self.judges(own);
        Cutter { before, after }
    }

    fn judges(&self, own: &[IpAddr]) -> (Judge<'_>, Judge<'_>) {
        (Judge::new(&self.before, own.iter().copied()), Judge::new(&self.after, own.iter().copied()))
    }

    /// What would change, on a sample of flows.
    pub fn changes(&self, own: &[IpAddr]) -> Changes {
        let (mut before, mut after) = self.judges(own);
        let state = self.after.state();
        let peers = representatives(state);
        let mut found = Changes::default();
        for (id, resolved) in self.after.endpoints() {
            if self.before.endpoints().get(id) == Some(resolved) && !self.touches(&resolved.access) {
                continue;
            }
            for direction in Direction::ALL {
                let ports = self.ports(id, direction);
                for ip in &resolved.addresses {
                    for (peer, other) in peers.iter().filter(|(_, other)| other.is_ipv4() == ip.is_ipv4()) {
                        // To itself a pod's packets do not leave it, and what its node sends is not policed.
                        let unpoliced = direction == Direction::Ingress && own.contains(other);
                        if resolved.addresses.contains(other) || unpoliced {
                            continue;
                        }
                        for payload in payloads(&ports, Family::of(*ip)) {
                            if found.flows == MAX_FLOWS {
                                found.truncated = true;
                                found.sort();
                                return found;
                            }
                            found.flows += 1;
                            let (source, destination) = match direction {
                                Direction::Ingress => (*other, *ip),
                                Direction::Egress => (*ip, *other),
                            };
                            let flow = LiveFlow { source, destination, payload };
                            let (was, is) = (
                                before.decide(resolved, direction, &flow),
                                after.decide(resolved, direction, &flow),
                            );
                            if was.allowed != is.allowed {
                                found.changes.push(Change {
                                    cut: was.allowed,
                                    direction,
                                    pod: resolved.pod.clone(),
                                    peer: peer.clone(),
                                    port: port_words(payload),
                                    by: by_words(&is.by),
                                    example: flow,
                                });
                            }
                        }
                    }
                }
            }
        }
        found.sort();
        found.changes.dedup_by(|a, b| {
            (a.cut, a.direction, &a.pod, &a.peer, &a.port, &a.by)
                == (b.cut, b.direction, &b.pod, &b.peer, &b.port, &b.by)
        });
        found
    }

    /// Does one of the proposed policies govern it, before or after?
    fn touches(&self, access: &crate::calc::Access) -> bool {
        Direction::ALL.into_iter().any(|direction| {
            access.policies(direction).iter().any(|g| self.proposed.iter().any(|policy| policy.id == g.id))
        })
    }

    /// Every port that a rule about this endpoint names, in either cluster, and one that none does.
    fn ports(&self, id: &crate::model::EndpointId, direction: Direction) -> BTreeSet<(Protocol, u16)> {
        let mut ports: BTreeSet<(Protocol, u16)> =
            Protocol::ALL.map(|protocol| (protocol, UNNAMED_PORT)).into();
        for calc in [&self.before, &self.after] {
            let Some(resolved) = calc.endpoints().get(id) else { continue };
            let policies = resolved.access.policies(direction).iter().filter_map(|g| calc.active(&g.id));
            for rule in policies.flat_map(|policy| policy.rules(direction).unwrap_or_default()) {
                let more = rule.more.iter().flat_map(|more| &more.not_ports);
                for port in rule.ports.iter().flatten().chain(more) {
                    match port {
                        Port::All(_) => {}
                        Port::Range(protocol, first, last) => {
                            ports.extend([(*protocol, *first), (*protocol, *last)]);
                        }
                        Port::Named(protocol, name) => {
                            let numbers = calc.state().pods().flat_map(|pod| pod.ports.iter());
                            let named = numbers.filter(|p| p.protocol == *protocol && p.name == *name);
                            ports.extend(named.map(|p| (*protocol, p.number)).take(8));
                        }
                    }
                }
            }
        }
        ports
    }
}

/// One of each kind of peer: of pods with the same namespace and labels, and of the blocks that rules name, and a stranger.
fn representatives(state: &State) -> Vec<(String, IpAddr)> {
    let mut peers: BTreeMap<(String, bool), IpAddr> = BTreeMap::new();
    let mut blocks = BTreeSet::new();
    for policy in state.policies() {
        for rule in Direction::ALL.into_iter().filter_map(|d| policy.rules(d)).flatten() {
            let more = rule.more.iter().flat_map(|more| more.any_of.iter().flat_map(|(_, peers)| peers));
            for peer in rule.peers.iter().flatten().chain(more) {
                if let Peer::Block(block) = peer {
                    blocks.insert(block.cidr);
                    blocks.extend(&block.except);
                }
            }
        }
    }
    let in_blocks = |ip: IpAddr| -> Vec<String> {
        blocks.iter().filter(|block| block.contains(ip)).map(ToString::to_string).collect()
    };
    for workload in state.workloads() {
        let kind = kind_of(&workload);
        for ip in &workload.addresses {
            let key = format!("{kind} {}", in_blocks(*ip).join(" "));
            peers.entry((key.trim_end().to_string(), ip.is_ipv4())).or_insert(*ip);
        }
    }
    for block in &blocks {
        peers.entry((format!("an address of {block}"), block.is_ipv4())).or_insert(block.ip());
    }
    // Documentation addresses (RFC 5737, RFC 3849): nobody's.
    for stranger in ["203.0.113.113", "2001:db8:ffff::113"] {
        let ip: IpAddr = stranger.parse().expect("an address");
        peers.entry(("anyone else".into(), ip.is_ipv4())).or_insert(ip);
    }
    peers.into_iter().map(|((words, _), ip)| (words, ip)).collect()
}

fn kind_of(workload: &Workload) -> String {
    let labels: Vec<String> = workload
        .labels
        .iter()
        .filter(|(key, _)| !key.starts_with('='))
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    let labels =
        if labels.is_empty() { "without labels".into() } else { format!("with {}", labels.join(",")) };
    match workload.id.namespace.as_ref() {
        crate::model::Entity::NODES => format!("node {}", workload.id.name),
        namespace => format!("pods {labels} in namespace {namespace}"),
    }
}

fn payloads(ports: &BTreeSet<(Protocol, u16)>, family: Family) -> impl Iterator<Item = Payload> + '_ {
    let kind = if family == Family::Ipv4 { 8 } else { 128 };
    let echo = Payload::Icmp { family, kind, code: 0 };
    ports.iter().map(|(protocol, port)| Payload::opening(*protocol, *port)).chain([echo])
}

fn port_words(payload: Payload) -> String {
    match payload {
        Payload::Ports { protocol, port: UNNAMED_PORT, .. } => format!("any other port/{protocol}"),
        Payload::Ports { protocol, port, .. } => format!("{port}/{protocol}"),
        Payload::Icmp { .. } => "ping".into(),
        Payload::Other(number) => format!("protocol {number}"),
    }
}

fn by_words(by: &By) -> String {
    match by {
        By::Rule(policy, index) => format!("{policy} rule {index}"),
        By::NoPolicy => "no policy".into(),
        By::Isolation => "no policy allows it".into(),
        By::OwnNode => "a pod always reaches its own node".into(),
        By::Closed(words) => (*words).to_string(),
    }
}
