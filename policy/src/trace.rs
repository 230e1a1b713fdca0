//! What happens to a flow, step by step: the packet that opens it runs through the compiled rules of each node that polices
//! it, and every rule of a policy that was asked says what it did.
//!
//! On this node those are the rules that were rendered, held ones included. What another node does is compiled for that node
//! from what is known of the cluster, and marked computed: nobody here has seen that node's kernel.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::calc::from_scratch;
use crate::compile::Layout;
use crate::ir::{Program, Verdict};
use crate::model::{
    Action, Addresses, Direction, Endpoint, EndpointId, Entity, Family, Payload, Pod, PodId, PodRef,
    Protocol, Tier, Update,
};
use crate::render;
use crate::render::save::RuleKey;
use crate::sim::{self, Packet};
use crate::state::{State, claimed_pod};

/// One side of a flow as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A pod, by any of its addresses.
    Pod(PodId),
    /// An address, whosever it is.
    Address(IpAddr),
}

/// A flow as a person asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who opens it.
    pub source: Target,
    /// To whom.
    pub destination: Target,
    /// Protocol and destination port; `None`: an echo request of ICMP.
    pub port: ToPort,
}

type ToPort = Option<(Protocol, u16)>;

impl Question {
    /// From `A` and `B[:PORT[/PROTO]]`: NAMESPACE/NAME or an address, an IPv6 address with a port in brackets.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn parse(source: &str, destination: &str) -> Result<Self, String> {
        let (destination, port) = split_port(destination)?;
        Ok(Question { source: target(source)?, destination: target(destination)?, port })
    }
}

fn target(text: &str) -> Result<Target, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse() {
        return Ok(Target::Address(ip));
    }
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Target::Pod(PodId::new(namespace, name)))
        }
        _ => Err(format!("{text:?} is neither a pod (NAMESPACE/NAME) nor an address")),
    }
}

/// The target and what follows its colon.
fn split_port(text: &str) -> Result<(&str, ToPort), String> {
    let (target, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((_, "")) => return Ok((text, None)),
        Some((inside, rest)) => {
            let port = rest.strip_prefix(':').ok_or_else(|| format!("{rest:?} after the bracket"))?;
            (&text[..inside.len() + 2], port)
        }
        None if text.parse::<IpAddr>().is_ok() => return Ok((text, None)),
        None => match text.split_once(':') {
            Some(parts) => parts,
            None => return Ok((text, None)),
        },
    };
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let known = Protocol::ALL.into_iter().find(|known| known.lower() == protocol.to_ascii_lowercase());
    let protocol = known.ok_or_else(|| format!("{protocol:?}: tcp, udp or sctp"))?;
    let number = number.parse().ok().filter(|number| *number > 0);
    let number = number.ok_or_else(|| format!("{port:?}: a port is a number from 1 to 65535"))?;
    Ok((target, Some((protocol, number))))
}

/// What became of the flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Source and destination address that were used.
    pub addresses: (IpAddr, IpAddr),
    /// Every node that polices it lets it through.
    pub allowed: bool,
    /// In the order in which the packet meets them.
    pub steps: Vec<Step>,
}

/// What a rule or its end did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// On which node; `None`: nobody knows where the pod runs.
    pub node: Option<String>,
    /// From the pod or to it.
    pub direction: Direction,
    /// Of the policy.
    pub tier: Option<Tier>,
    /// As people write it; `None`: no policy's doing.
    pub policy: Option<String>,
    /// Which of its rules of this direction, counted from 0.
    pub rule: Option<usize>,
    /// What it did.
    pub result: StepResult,
    /// In words.
    pub reason: String,
    /// Compiled for another node, not read from this one.
    pub computed: bool,
    /// The kernel's rule, to find its counter; `None`: another node's, or no rule at all.
    pub counter: Option<RuleKey>,
}

/// What a step did with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum StepResult {
    /// Allowed in this direction.
    Allow,
    /// Dropped.
    Deny,
    /// Passed on to the next tier.
    Pass,
    /// Logged, and on.
    Log,
    /// No rule of the policy matched.
    NoMatch,
    /// Counted by a policy that is staged, and on.
    Staged,
}

impl fmt::Display for StepResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// How the interface to the rest of the world is called here; never a pod's.
const UPLINK: &str = "uplink";

/// Explains a flow. `rendered`: this node's program of a family.
///
/// # Errors
/// A pod is not known, has no address, or the ends have no family in common.
pub fn explain(
    state: &State,
    layout: &Layout,
    this_node: &str,
    rendered: impl Fn(Family) -> Program,
    question: &Question,
) -> Result<Explanation, String> {
    let source = side(state, this_node, &question.source)?;
    let destination = side(state, this_node, &question.destination)?;
    let (from, to) = source
        .addresses
        .iter()
        .find_map(|from| {
            let to = destination.addresses.iter().find(|to| to.is_ipv4() == from.is_ipv4())?;
            Some((*from, *to))
        })
        .ok_or("the two have no address family in common")?;
    if source.pod.is_some() && source.pod == destination.pod {
        return Ok(within(source.node, (from, to)));
    }
    let family = Family::of(from);
    let payload = match question.port {
        Some((protocol, port)) => Payload::opening(protocol, port),
        None => Payload::Icmp { family, kind: if from.is_ipv4() { 8 } else { 128 }, code: 0 },
    };

    let mut steps = Vec::new();
    let mut allowed = true;
    // One node after the other; both ends may be on the same one, where one run judges both directions.
    let same = source.node.is_some() && source.node == destination.node;
    let runs: Vec<(&Side, [bool; 2])> = match same {
        true => vec![(&source, [true, true])],
        false => vec![(&source, [true, false]), (&destination, [false, true])],
    };
    for (at, [egress, ingress]) in runs {
        let policed = (egress && source.pod.is_some()) || (ingress && destination.pod.is_some());
        if !policed || !allowed {
            continue;
        }
        let here = at.node.as_deref() == Some(this_node);
        let (program, names) = if here {
            (rendered(family), local_names(state))
        } else {
            let sides = [(egress, &source), (ingress, &destination)].into_iter().filter(|(meant, _)| *meant);
            let pods: Vec<&Pod> = sides.filter_map(|(_, side)| state.pod(side.pod.as_ref()?)).collect();
            elsewhere(state, layout, &pods, family)
        };
        let stands_here = |side: &Side| same || std::ptr::eq(side, at);
        // A node's own packets, and those for it, pass no interface.
        let interface = |side: &Side| match &side.pod {
            _ if !stands_here(side) => Some(UPLINK.into()),
            None if side.is_node => None,
            pod => Some(pod.as_ref().and_then(|pod| names.get(pod)).cloned().unwrap_or(UPLINK.into())),
        };
        let (input, output) = (interface(&source), interface(&destination));
        let from_node = input.is_none();
        let packet = Packet { input, output, payload, ..Packet::opening(from, to, Protocol::Tcp, 1) };
        let trace = sim::run(&program, &packet).map_err(|error| error.to_string())?;
        allowed &= trace.passed;
        let context = Context { node: at.node.clone(), program: &program, computed: !here };
        steps.extend(context.steps(&trace));
        if from_node {
            steps.push(Step {
                reason: "what a node itself sends to its pods is not policed".into(),
                ..context.step(Direction::Ingress, StepResult::Allow)
            });
        }
    }
    Ok(Explanation { addresses: (from, to), allowed, steps })
}

/// A pod speaks to its own address.
fn within(node: Option<String>, addresses: (IpAddr, IpAddr)) -> Explanation {
    let step = Step {
        node,
        direction: Direction::Egress,
        tier: None,
        policy: None,
        rule: None,
        result: StepResult::Allow,
        reason: "what a pod sends to its own addresses does not leave it, and no policy is asked (by way of a Service, policies are)"
            .into(),
        computed: false,
        counter: None,
    };
    Explanation { addresses, allowed: true, steps: vec![step] }
}

/// What is known of one side.
struct Side {
    /// The pod with an interface of its own that stands there.
    pod: Option<PodId>,
    /// On which node.
    node: Option<String>,
    /// The node itself, or a host-network pod on it.
    is_node: bool,
    addresses: Addresses,
}

fn side(state: &State, this_node: &str, target: &Target) -> Result<Side, String> {
    let (id, ip) = match target {
        Target::Pod(id) => (id.clone(), None),
        Target::Address(ip) => match holder(state, *ip) {
            Some(id) => (id, Some(*ip)),
            None => {
                let node = state
                    .entities()
                    .find(|entity| *entity.id.namespace == *Entity::NODES && entity.addresses.contains(ip));
                let node = node.map(|node| node.id.name.to_string());
                let is_node = node.is_some();
                return Ok(Side { pod: None, node, is_node, addresses: Addresses::from_slice(&[*ip]) });
            }
        },
    };
    let attached = state.endpoints_naming(&id).next().is_some();
    let pod = state.pod(&id);
    if pod.is_none() && !attached {
        return Err(format!("there is no pod {id}"));
    }
    let node = match (attached, pod) {
        (true, _) => Some(this_node.to_string()),
        (false, pod) => pod.and_then(|pod| pod.node.as_ref()).map(ToString::to_string),
    };
    if let Some(pod) = pod.filter(|pod| pod.host_network) {
        return Ok(Side { pod: None, node, is_node: true, addresses: pod.addresses.clone() });
    }
    let addresses = match (ip, state.workload(&id)) {
        (Some(ip), _) => Addresses::from_slice(&[ip]),
        (None, Some(workload)) => workload.addresses,
        (None, None) => Addresses::new(),
    };
    if addresses.is_empty() {
        return Err(format!("pod {id} has no address"));
    }
    Ok(Side { pod: Some(id), node, is_node: false, addresses })
}

/// The pod with an interface of its own that has an address: attachments of this node count before what a status says.
fn holder(state: &State, ip: IpAddr) -> Option<PodId> {
    let attached = state.endpoints().find(|endpoint| endpoint.addresses.contains(&ip)).map(claimed_pod);
    attached.or_else(|| {
        let pod = state.pods().find(|p| !p.finished && !p.host_network && p.addresses.contains(&ip));
        pod.map(|pod| pod.id.clone())
    })
}

fn local_names(state: &State) -> BTreeMap<PodId, String> {
    state.endpoints().map(|endpoint| (claimed_pod(endpoint), endpoint.interface.clone())).collect()
}

/// The rules that another node has for these pods of its, and what their interfaces are called in them.
fn elsewhere(
    state: &State,
    layout: &Layout,
    pods: &[&Pod],
    family: Family,
) -> (Program, BTreeMap<PodId, String>) {
    let mut there = state.clone();
    let ours: Vec<EndpointId> = state.endpoints().map(|endpoint| endpoint.id.clone()).collect();
    // As that node sees them: the pods of this one by their status.
    ours.into_iter().for_each(|id| there.apply(Update::RemoveEndpoint(id)));
    let mut names = BTreeMap::new();
    for (i, pod) in pods.iter().enumerate() {
        let interface = format!("{}{i}", layout.prefix);
        names.insert(pod.id.clone(), interface.clone());
        there.apply(Update::SetEndpoint(Endpoint {
            id: EndpointId {
                container_id: format!("{}/{}", pod.id.namespace, pod.id.name),
                ifname: String::new(),
            },
            interface,
            pod: Some(PodRef {
                namespace: Some(pod.id.namespace.to_string()),
                name: pod.id.name.to_string(),
                uid: None,
            }),
            addresses: pod.addresses.clone(),
        }));
    }
    (layout.program(&from_scratch(&there, &layout.prefix), family), names)
}

struct Context<'a> {
    node: Option<String>,
    program: &'a Program,
    computed: bool,
}

impl Context<'_> {
    fn counter(&self, step: &sim::Step) -> Option<RuleKey> {
        let chain = self.program.chains.get(&(step.table, step.chain.clone()))?;
        let hash = render::line(&chain.name, chain.rules.get(step.index)?).hash;
        let key = RuleKey { family: self.program.family, table: step.table, chain: chain.name.clone(), hash };
        (!self.computed).then_some(key)
    }

    fn step(&self, direction: Direction, result: StepResult) -> Step {
        Step {
            node: self.node.clone(),
            direction,
            tier: None,
            policy: None,
            rule: None,
            result,
            reason: String::new(),
            computed: self.computed,
            counter: None,
        }
    }

    /// What policies did, and what ended a direction where none did.
    fn steps(&self, trace: &sim::Trace) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut direction = Direction::Egress;
        let mut allowed_by_policy = false;
        for step in &trace.steps {
            if ["MANX-TO", "MANX-TE-", "MANX-PI-"].iter().any(|kind| step.chain.starts_with(kind))
                && direction == Direction::Egress
            {
                direction = Direction::Ingress;
                allowed_by_policy = false;
            }
            let counter = self.counter(step);
            if let Some(origin) = &step.origin {
                let result = match (origin.rule, origin.staged) {
                    // The packet that is logged is dropped by the next rule, which speaks for both.
                    (Some((_, Action::Deny)), false) if matches!(step.verdict, Verdict::Log(_)) => continue,
                    (_, true) => StepResult::Staged,
                    (Some((_, Action::Accept)), _) => StepResult::Allow,
                    (Some((_, Action::Deny)), _) => StepResult::Deny,
                    (Some((_, Action::Pass)), _) => StepResult::Pass,
                    (Some((_, Action::Log)), _) => StepResult::Log,
                    (None, _) => StepResult::NoMatch,
                };
                allowed_by_policy |= result == StepResult::Allow;
                steps.push(Step {
                    tier: Some(origin.tier),
                    policy: Some(origin.policy.to_string()),
                    rule: origin.rule.map(|(index, _)| index),
                    reason: step.comment.clone(),
                    counter,
                    ..self.step(direction, result)
                });
                continue;
            }
            let result = match &step.verdict {
                Verdict::Drop => StepResult::Deny,
                Verdict::Goto(chain)
                    if !allowed_by_policy
                        && [crate::compile::chain::EGRESS_OK, crate::compile::chain::ACCEPT]
                            .contains(&chain.as_str())
                        && ["MANX-FE-", "MANX-TE-"].iter().any(|kind| step.chain.starts_with(kind)) =>
                {
                    StepResult::Allow
                }
                _ => continue,
            };
            steps.push(Step { reason: step.comment.clone(), counter, ..self.step(direction, result) });
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_two_targets_a_port_and_a_protocol() {
        let pod = |namespace, name| Target::Pod(PodId::new(namespace, name));
        let ip = |text: &str| Target::Address(text.parse().expect("an address"));
        for (text, destination, port) in [
            ("b/web", pod("b", "web"), None),
            ("b/web:80", pod("b", "web"), Some((Protocol::Tcp, 80))),
            ("b/web:53/UDP", pod("b", "web"), Some((Protocol::Udp, 53))),
            ("10.0.0.1", ip("10.0.0.1"), None),
            ("10.0.0.1:8080/sctp", ip("10.0.0.1"), Some((Protocol::Sctp, 8080))),
            ("fd00::1", ip("fd00::1"), None),
            ("[fd00::1]", ip("fd00::1"), None),
            ("[fd00::1]:443", ip("fd00::1"), Some((Protocol::Tcp, 443))),
        ] {
            let expected = Question { source: pod("a", "client"), destination, port };
            assert_eq!(Question::parse("a/client", text), Ok(expected), "{text}");
        }
        for text in
            ["web", "b/web:0", "b/web:70000", "b/web:80/icmp", "[fd00::1]80", "a/b/c", "/web", "b/:80"]
        {
            assert!(Question::parse("a/client", text).is_err(), "{text}");
        }
    }
}
