//! ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2) -> model.
//!
//! What cannot be understood of a rule closes it, as the API's definition has it: an Accept then matches no traffic, a Deny
//! or a Pass denies all. Doubt about tier, priority or subject concerns every rule: none accepts, none passes on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;

use super::{Door, is_port_name, names, staged};
use crate::model::{
    Action, Direction, IpBlock, NamespaceScope, Order, Peer, PodSelector, Policy, PolicyId, PolicyKind, Port,
    Problem, Protocol, Rule, Tier,
};
use crate::selector::Selector;

/// The object as it is written. Fields that must be there are checked with the others, so that one slip does not hide the
/// next.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ClusterNetworkPolicy {
    /// Name, annotations, generation.
    pub metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    tier: Option<String>,
    priority: Option<i64>,
    subject: Option<Subject>,
    ingress: Option<Vec<RawRule>>,
    egress: Option<Vec<RawRule>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    namespaces: Option<LabelSelector>,
    pods: Option<Pods>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Pods {
    namespace_selector: Option<LabelSelector>,
    pod_selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RawRule {
    name: Option<String>,
    action: Option<String>,
    from: Option<Vec<RawPeer>>,
    to: Option<Vec<RawPeer>>,
    protocols: Option<Vec<RawProtocol>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPeer {
    namespaces: Option<LabelSelector>,
    pods: Option<Pods>,
    nodes: Option<LabelSelector>,
    networks: Option<Vec<String>>,
    domain_names: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawProtocol {
    tcp: Option<RawPorts>,
    udp: Option<RawPorts>,
    sctp: Option<RawPorts>,
    destination_named_port: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPorts {
    destination_port: Option<RawPort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RawPort {
    number: Option<i64>,
    range: Option<RawRange>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RawRange {
    start: Option<i64>,
    end: Option<i64>,
}

/// A ClusterNetworkPolicy. Problems within it are in [`Policy::problems`].
///
/// # Errors
/// It has no name.
pub fn cluster_network_policy(object: &ClusterNetworkPolicy) -> Result<Policy, Problem> {
    let kind = PolicyKind::ClusterNetworkPolicy;
    let (_, name) = names(kind.as_str(), &object.metadata, false)?;
    let mut door = Door { object: format!("{} {name}", kind.as_str()), problems: Vec::new() };
    let spec = &object.spec;

    let tier = match spec.tier.as_deref() {
        Some("Admin") => Tier::Admin,
        Some("Baseline") => Tier::Baseline,
        other => {
            let found = other.map_or("missing".into(), |other| format!("{other:?} is none"));
            door.refuse("spec.tier", format!("{found}: Admin or Baseline; until then an Admin that {DOUBT}"));
            Tier::Admin
        }
    };
    let priority = spec.priority.filter(|priority| (0..=1000).contains(priority));
    if priority.is_none() {
        let found = spec.priority.map_or("missing".into(), |other| format!("{other} is none"));
        door.refuse(
            "spec.priority",
            format!("{found}: a number from 0 to 1000; until then the policy {DOUBT}"),
        );
    }
    let subject = door.subject(spec.subject.as_ref());
    let doubtful = !door.problems.is_empty();

    let mut rules = |rules: &Option<Vec<RawRule>>, direction: Direction| {
        let rules = rules.as_deref().unwrap_or_default();
        let rules: Vec<Rule> = rules
            .iter()
            .enumerate()
            .map(|(i, raw)| {
                let mut rule =
                    door.cluster_rule(raw, direction, &format!("spec.{}[{i}]", direction.as_str()));
                rule.refused |= doubtful && rule.action != Action::Deny;
                rule
            })
            .collect();
        // "CNPs with no egress rules do not affect egress traffic."
        (!rules.is_empty()).then_some(rules)
    };
    let (ingress, egress) =
        (rules(&spec.ingress, Direction::Ingress), rules(&spec.egress, Direction::Egress));
    Ok(Policy {
        id: PolicyId { kind, namespace: None, name },
        tier,
        order: Order::new(f64::from(priority.and_then(|priority| i32::try_from(priority).ok()).unwrap_or(0))),
        generation: object.metadata.generation.unwrap_or(0),
        staged: staged(&object.metadata),
        subject: vec![subject],
        ingress,
        egress,
        problems: door.problems,
    })
}

/// What a policy does of which the frame is in doubt.
const DOUBT: &str = "accepts and passes nothing";

impl Door {
    /// What cannot be understood of it is left out, so that more pods are governed, by rules that then open nothing.
    fn subject(&mut self, subject: Option<&Subject>) -> PodSelector {
        match subject {
            Some(Subject { namespaces: Some(namespaces), pods: None }) => {
                let namespaces = self.selector(namespaces, "spec.subject.namespaces").0;
                PodSelector { namespaces: NamespaceScope::Matching(namespaces), pods: Selector::everything() }
            }
            Some(Subject { namespaces: None, pods: Some(pods) }) => self.pods(pods, "spec.subject.pods"),
            Some(Subject { .. }) | None => {
                let reason = format!(
                    "give namespaces or pods, and one of them; until then all pods are meant and it {DOUBT}"
                );
                self.refuse("spec.subject", reason);
                PodSelector::everything()
            }
        }
    }

    fn pods(&mut self, pods: &Pods, field: &str) -> PodSelector {
        let namespaces = match &pods.namespace_selector {
            Some(selector) => self.selector(selector, &format!("{field}.namespaceSelector")).0,
            None => Selector::everything(),
        };
        let selected = match &pods.pod_selector {
            Some(selector) => self.selector(selector, &format!("{field}.podSelector")).0,
            None => {
                self.refuse(format!("{field}.podSelector"), "missing: an empty one selects all pods");
                Selector::everything()
            }
        };
        PodSelector { namespaces: NamespaceScope::Matching(namespaces), pods: selected }
    }

    fn cluster_rule(&mut self, raw: &RawRule, direction: Direction, field: &str) -> Rule {
        let before = self.problems.len();
        let action = match raw.action.as_deref() {
            Some("Accept") => Action::Accept,
            Some("Deny") => Action::Deny,
            Some("Pass") => Action::Pass,
            other => {
                let found = other.map_or("missing".into(), |other| format!("unknown action {other:?}"));
                self.refuse(format!("{field}.action"), format!("{found}: Accept, Deny or Pass"));
                Action::Deny
            }
        };
        let (name, list, misplaced) = match direction {
            Direction::Ingress => ("from", &raw.from, &raw.to),
            Direction::Egress => ("to", &raw.to, &raw.from),
        };
        if misplaced.is_some() {
            self.refuse(field, format!("an {} rule says {name}", direction.as_str()));
        }
        let list = list.as_deref().unwrap_or_default();
        if list.is_empty() {
            self.refuse(format!("{field}.{name}"), "missing or empty: give at least one peer");
        }
        let peers: Vec<Peer> = list
            .iter()
            .enumerate()
            .flat_map(|(i, peer)| self.cluster_peer(peer, direction, &format!("{field}.{name}[{i}]")))
            .collect();
        let ports = raw.protocols.as_ref().map(|protocols| {
            if protocols.is_empty() {
                self.refuse(format!("{field}.protocols"), "empty: leave it out, or give at least one");
            }
            protocols
                .iter()
                .enumerate()
                .flat_map(|(i, protocol)| self.cluster_protocol(protocol, &format!("{field}.protocols[{i}]")))
                .collect::<Vec<_>>()
        });
        let named = ports.iter().flatten().any(|port| matches!(port, Port::Named(..)));
        if named && peers.iter().any(|peer| matches!(peer, Peer::Block(_) | Peer::Nodes(_))) {
            self.refuse(
                format!("{field}.protocols"),
                "nodes and networks have no named ports: give them a rule of their own",
            );
        }
        let refused = self.problems.len() > before;
        let effect = match action {
            Action::Accept | Action::Log => "this rule matches nothing",
            Action::Deny | Action::Pass => "this rule denies everything",
        };
        for problem in &mut self.problems[before..] {
            problem.reason = format!("{}; until then {effect}", problem.reason);
        }
        let name = raw.name.as_deref().map(Into::into);
        Rule { action, peers: Some(peers), ports, more: None, name, refused }
    }

    fn cluster_peer(&mut self, peer: &RawPeer, direction: Direction, field: &str) -> Vec<Peer> {
        let RawPeer { namespaces, pods, nodes, networks, domain_names } = peer;
        let given = [
            namespaces.is_some(),
            pods.is_some(),
            nodes.is_some(),
            networks.is_some(),
            domain_names.is_some(),
        ];
        if given.iter().filter(|given| **given).count() != 1 {
            self.refuse(field, "not exactly one kind of peer");
            return Vec::new();
        }
        if direction == Direction::Ingress && namespaces.is_none() && pods.is_none() {
            self.refuse(field, "an ingress peer is namespaces or pods");
            return Vec::new();
        }
        if let Some(selector) = namespaces {
            let namespaces = self.selector(selector, &format!("{field}.namespaces")).0;
            let namespaces = NamespaceScope::Matching(namespaces);
            return vec![Peer::Pods(PodSelector { namespaces, pods: Selector::everything() })];
        }
        if let Some(pods) = pods {
            return vec![Peer::Pods(self.pods(pods, &format!("{field}.pods")))];
        }
        if let Some(selector) = nodes {
            return vec![Peer::Nodes(self.selector(selector, &format!("{field}.nodes")).0)];
        }
        if domain_names.is_some() {
            self.refuse(format!("{field}.domainNames"), "names are not supported: give networks");
            return Vec::new();
        }
        let networks = networks.as_deref().unwrap_or_default();
        if networks.is_empty() {
            self.refuse(format!("{field}.networks"), "empty: give at least one address block");
        }
        networks
            .iter()
            .enumerate()
            .filter_map(|(i, text)| self.cidr(text, &format!("{field}.networks[{i}]")))
            .map(|cidr| Peer::Block(IpBlock { cidr, except: Vec::new() }))
            .collect()
    }

    fn cluster_protocol(&mut self, raw: &RawProtocol, field: &str) -> Vec<Port> {
        let with_ports = [(Protocol::Tcp, &raw.tcp), (Protocol::Udp, &raw.udp), (Protocol::Sctp, &raw.sctp)];
        let given: Vec<(Protocol, &RawPorts)> =
            with_ports.into_iter().filter_map(|(p, ports)| Some((p, ports.as_ref()?))).collect();
        match (given.as_slice(), &raw.destination_named_port) {
            ([(protocol, ports)], None) => {
                let field = format!("{field}.{}.destinationPort", protocol.lower());
                self.cluster_port(*protocol, ports.destination_port.as_ref(), &field).into_iter().collect()
            }
            // "Selects a destination port on a pod based on the ContainerPort name": of whatever protocol that is.
            ([], Some(name)) if is_port_name(name) => {
                Protocol::ALL.map(|protocol| Port::Named(protocol, name.as_str().into())).into()
            }
            ([], Some(name)) => {
                let reason =
                    format!("{name:?} is not a port name (1 to 15 of a-z, 0-9 and '-', a letter among them)");
                self.refuse(format!("{field}.destinationNamedPort"), reason);
                Vec::new()
            }
            _ => {
                self.refuse(field, "not exactly one of tcp, udp, sctp and destinationNamedPort");
                Vec::new()
            }
        }
    }

    fn cluster_port(&mut self, protocol: Protocol, port: Option<&RawPort>, field: &str) -> Option<Port> {
        let valid = |number: i64| u16::try_from(number).ok().filter(|number| *number > 0);
        match port {
            None => Some(Port::All(protocol)),
            Some(RawPort { number: Some(number), range: None }) => match valid(*number) {
                Some(number) => Some(Port::Range(protocol, number, number)),
                None => {
                    self.refuse(field, format!("port {number} is not between 1 and 65535"));
                    None
                }
            },
            Some(RawPort { number: None, range: Some(RawRange { start: Some(start), end: Some(end) }) }) => {
                match (valid(*start), valid(*end)) {
                    (Some(first), Some(last)) if first < last => Some(Port::Range(protocol, first, last)),
                    _ => {
                        let reason =
                            format!("{start} to {end} is no range of ports from 1 to 65535, start below end");
                        self.refuse(field, reason);
                        None
                    }
                }
            }
            Some(_) => {
                self.refuse(field, "not exactly one of number and range, which has start and end");
                None
            }
        }
    }
}
