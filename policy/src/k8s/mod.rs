//! Kubernetes objects -> model: parse at the door, keep the reason when something is refused.
//!
//! Knows the API types and what the API server's validation and defaulting do, because objects may come from plain files that
//! no API server has seen. A policy is never refused as a whole: what cannot be understood of it opens nothing, the pods
//! that it selects stay isolated, and [`Policy::problems`] says why.

mod calico;
mod cluster;
mod expression;

pub use calico::{CalicoPolicy, NetworkSet, calico_policy, network_set};
pub use cluster::{ClusterNetworkPolicy, cluster_network_policy};

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::model::{
    Action, Addresses, IpBlock, Labels, NAMESPACE_NAME_LABEL, NamedPort, Namespace, NamespaceScope, Order,
    Peer, Pod, PodId, PodSelector, Policy, PolicyId, PolicyKind, Port, Problem, Protocol, Rule,
    SERVICE_ACCOUNT_LABEL, Str, Tier,
};
use crate::selector::{Operator, Requirement, Selector};

/// Annotation by which a policy is counted and reported but not enforced.
pub const STAGED_ANNOTATION: &str = "manx.dev/staged";
/// Annotation by which a mirror pod tells the uid under which the kubelet started the static pod.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// A pod.
///
/// # Errors
/// It has no name, or an address, port or protocol that is none.
pub fn pod(object: &core::Pod) -> Result<Pod, Problem> {
    let (namespace, name) = names("Pod", &object.metadata, true)?;
    let refuse =
        |field: String, reason: String| Problem { object: format!("Pod {namespace}/{name}"), field, reason };
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();

    let mut addresses = Addresses::new();
    let listed = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str());
    let single = status.and_then(|s| s.pod_ip.as_deref());
    for text in listed.chain(single).filter(|text| !text.is_empty()) {
        let ip: IpAddr = text
            .parse()
            .map_err(|_| refuse("status.podIPs".into(), format!("{text:?} is not an IP address")))?;
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }

    let mut ports = Vec::new();
    let restartable = |c: &&core::Container| c.restart_policy.as_deref() == Some("Always");
    let init = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten().filter(restartable);
    for container in spec.into_iter().flat_map(|s| &s.containers).chain(init) {
        for port in container.ports.iter().flatten() {
            let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) else { continue };
            let field = || format!("spec.containers[{}].ports[{port_name}]", container.name);
            let protocol = protocol(port.protocol.as_deref()).map_err(|reason| refuse(field(), reason))?;
            let number = port_number(port.container_port).map_err(|reason| refuse(field(), reason))?;
            ports.push(NamedPort { name: port_name.into(), protocol, number });
        }
    }
    ports.sort();
    ports.dedup();

    let annotation = |key: &str| object.metadata.annotations.as_ref().and_then(|a| a.get(key));
    let account = spec.and_then(|s| s.service_account_name.as_deref()).filter(|name| !name.is_empty());
    let account = account.map(|name| (Str::from(SERVICE_ACCOUNT_LABEL), Str::from(name)));
    let phase = status.and_then(|s| s.phase.as_deref());
    Ok(Pod {
        id: PodId { namespace, name },
        uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
        mirror_hash: annotation(MIRROR_ANNOTATION).map(|hash| hash.as_str().into()),
        labels: Labels::new(labels(&object.metadata).iter().cloned().chain(account)),
        node: spec.and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty()).map(Str::from),
        host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        terminating: object.metadata.deletion_timestamp.is_some(),
        addresses,
        ports: ports.into(),
    })
}

/// A namespace; the label with its name is added where it is missing.
///
/// # Errors
/// It has no name.
pub fn namespace(object: &core::Namespace) -> Result<Namespace, Problem> {
    let (_, name) = names("Namespace", &object.metadata, false)?;
    let own = (Str::from(NAMESPACE_NAME_LABEL), name.clone());
    let labels = Labels::new(labels(&object.metadata).iter().cloned().chain([own]));
    Ok(Namespace { name, labels })
}

/// A NetworkPolicy. Problems within it are in [`Policy::problems`].
///
/// # Errors
/// It has no name.
pub fn network_policy(object: &networking::NetworkPolicy) -> Result<Policy, Problem> {
    let (namespace, name) = names("NetworkPolicy", &object.metadata, true)?;
    let mut door = Door { object: format!("NetworkPolicy {namespace}/{name}"), problems: Vec::new() };
    let empty = networking::NetworkPolicySpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);

    // A requirement that cannot be understood is left out: more pods are isolated, and since the whole policy then opens
    // nothing, none gets more than it should.
    let (pods, understood) = match &spec.pod_selector {
        None => (Selector::everything(), true),
        Some(selector) => door.selector(selector, "spec.podSelector"),
    };
    let (isolates_ingress, isolates_egress) = door.policy_types(spec);

    let ingress: Vec<_> =
        spec.ingress.iter().flatten().map(|r| (r.from.as_deref(), r.ports.as_deref())).collect();
    let egress: Vec<_> =
        spec.egress.iter().flatten().map(|r| (r.to.as_deref(), r.ports.as_deref())).collect();
    let mut rules = |list: &[RuleParts<'_>], direction: &str, peer_field: &str| -> Vec<Rule> {
        list.iter()
            .enumerate()
            .map(|(i, parts)| {
                door.rule(&namespace, *parts, &format!("spec.{direction}[{i}]"), peer_field, understood)
            })
            .collect()
    };
    let ingress = isolates_ingress.then(|| rules(&ingress, "ingress", "from"));
    let egress = isolates_egress.then(|| rules(&egress, "egress", "to"));

    Ok(Policy {
        id: PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some(namespace.clone()), name },
        tier: Tier::NetworkPolicy,
        order: Order::NETWORK_POLICY,
        generation: object.metadata.generation.unwrap_or(0),
        staged: staged(&object.metadata),
        subject: vec![PodSelector { namespaces: NamespaceScope::Named(namespace), pods }],
        ingress,
        egress,
        problems: door.problems,
    })
}

/// Fields of a policy's object that nobody knows, by their path. A slip must not open anything: `prot: 80` would mean every
/// port. The rule in which such a field stands is refused; one outside the rules leaves none that opens.
pub fn refuse_unknown<'a>(policy: &mut Policy, paths: impl IntoIterator<Item = &'a str>) {
    let isolating = policy.id.kind == PolicyKind::NetworkPolicy;
    for path in paths.into_iter().filter(|path| path.starts_with("spec.")) {
        let within = |direction: &str| -> Option<usize> {
            let rest = path.strip_prefix("spec.")?.strip_prefix(direction)?.strip_prefix('[')?;
            rest.split_once(']')?.0.parse().ok()
        };
        let rules = |list: &'_ mut Option<Vec<Rule>>, index: usize| {
            let rule = list.iter_mut().flatten().nth(index);
            rule.into_iter().for_each(|rule| rule.refused = true);
        };
        let effect = match (within("ingress"), within("egress")) {
            (Some(index), _) => {
                rules(&mut policy.ingress, index);
                "this rule opens nothing"
            }
            (_, Some(index)) => {
                rules(&mut policy.egress, index);
                "this rule opens nothing"
            }
            (None, None) => {
                if isolating {
                    policy.ingress.get_or_insert_default();
                    policy.egress.get_or_insert_default();
                }
                let all = policy.ingress.iter_mut().chain(&mut policy.egress).flatten();
                all.filter(|rule| rule.action != Action::Deny).for_each(|rule| rule.refused = true);
                if isolating {
                    "the policy isolates its pods and opens nothing"
                } else {
                    "the policy opens nothing"
                }
            }
        };
        let kind = policy.id.kind.as_str();
        let name = match &policy.id.namespace {
            Some(namespace) => format!("{namespace}/{}", policy.id.name),
            None => policy.id.name.to_string(),
        };
        policy.problems.push(Problem {
            object: format!("{kind} {name}"),
            field: path.to_owned(),
            reason: format!("a {kind} has no such field: {effect}"),
        });
    }
}

type RuleParts<'a> =
    (Option<&'a [networking::NetworkPolicyPeer]>, Option<&'a [networking::NetworkPolicyPort]>);

/// Collects what is refused of one object.
struct Door {
    object: String,
    problems: Vec<Problem>,
}

impl Door {
    fn refuse(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.problems.push(Problem {
            object: self.object.clone(),
            field: field.into(),
            reason: reason.into(),
        });
    }

    /// Which directions are isolated. Absent or empty: ingress always, egress only if there are egress rules, as the API
    /// server's defaulting has it.
    fn policy_types(&mut self, spec: &networking::NetworkPolicySpec) -> (bool, bool) {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        if types.is_empty() {
            return (true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()));
        }
        let (mut ingress, mut egress) = (false, false);
        for (i, policy_type) in types.iter().enumerate() {
            match policy_type.as_str() {
                "Ingress" => ingress = true,
                "Egress" => egress = true,
                other => {
                    self.refuse(
                        format!("spec.policyTypes[{i}]"),
                        format!("{other:?} is neither Ingress nor Egress; both directions are isolated"),
                    );
                    (ingress, egress) = (true, true);
                }
            }
        }
        (ingress, egress)
    }

    fn rule(
        &mut self,
        namespace: &Str,
        (peers, ports): RuleParts<'_>,
        field: &str,
        peer_field: &str,
        understood: bool,
    ) -> Rule {
        let before = self.problems.len();
        let peers = peers.filter(|list| !list.is_empty()).map(|list| {
            list.iter()
                .enumerate()
                .filter_map(|(i, peer)| self.peer(namespace, peer, &format!("{field}.{peer_field}[{i}]")))
                .collect()
        });
        let ports = ports.filter(|list| !list.is_empty()).map(|list| {
            list.iter()
                .enumerate()
                .filter_map(|(i, port)| self.port(port, &format!("{field}.ports[{i}]")))
                .collect()
        });
        let refused = !understood || self.problems.len() > before;
        Rule { action: Action::Accept, peers, ports, more: None, name: None, refused }
    }

    fn peer(&mut self, namespace: &Str, peer: &networking::NetworkPolicyPeer, field: &str) -> Option<Peer> {
        if let Some(block) = &peer.ip_block {
            if peer.pod_selector.is_some() || peer.namespace_selector.is_some() {
                self.refuse(field, "ipBlock stands alone: it may not be given together with a selector");
                return None;
            }
            return self.block(block, field).map(Peer::Block);
        }
        let namespaces = match &peer.namespace_selector {
            None => NamespaceScope::Named(namespace.clone()),
            Some(selector) => {
                NamespaceScope::Matching(self.selector(selector, &format!("{field}.namespaceSelector")).0)
            }
        };
        let pods = match (&peer.pod_selector, &peer.namespace_selector) {
            (None, None) => {
                self.refuse(field, "an empty peer: give ipBlock, podSelector or namespaceSelector");
                return None;
            }
            (None, Some(_)) => Selector::everything(),
            (Some(selector), _) => self.selector(selector, &format!("{field}.podSelector")).0,
        };
        Some(Peer::Pods(PodSelector { namespaces, pods }))
    }

    fn block(&mut self, block: &networking::IPBlock, field: &str) -> Option<IpBlock> {
        let cidr = self.cidr(&block.cidr, &format!("{field}.ipBlock.cidr"));
        let mut except = Vec::new();
        for (i, text) in block.except.iter().flatten().enumerate() {
            let field = format!("{field}.ipBlock.except[{i}]");
            let Some(hole) = self.cidr(text, &field) else { continue };
            let Some(cidr) = cidr else { continue };
            if hole.is_ipv4() != cidr.is_ipv4() || !cidr.contains(hole.ip()) || hole.prefix() <= cidr.prefix()
            {
                self.refuse(field, format!("{text} does not lie strictly inside {cidr}"));
                continue;
            }
            except.push(hole);
        }
        except.sort();
        except.dedup();
        cidr.map(|cidr| IpBlock { cidr, except })
    }

    /// A block without host bits: the API server takes 10.0.0.5/24 and means 10.0.0.0/24, but wants a prefix length.
    fn cidr(&mut self, text: &str, field: &str) -> Option<IpNetwork> {
        let parsed = text.contains('/').then(|| text.parse::<IpNetwork>().ok()).flatten();
        let Some(parsed) = parsed else {
            self.refuse(field, format!("{text:?} is not an address block such as 10.0.0.0/8 or fd00::/8"));
            return None;
        };
        IpNetwork::new(parsed.network(), parsed.prefix()).ok()
    }

    fn port(&mut self, port: &networking::NetworkPolicyPort, field: &str) -> Option<Port> {
        let protocol = match protocol(port.protocol.as_deref()) {
            Ok(protocol) => protocol,
            Err(reason) => {
                self.refuse(format!("{field}.protocol"), reason);
                return None;
            }
        };
        match (&port.port, port.end_port) {
            (None, None) => Some(Port::All(protocol)),
            (None, Some(_)) => {
                self.refuse(format!("{field}.endPort"), "endPort without port");
                None
            }
            (Some(IntOrString::String(_)), Some(_)) => {
                self.refuse(format!("{field}.endPort"), "endPort needs a numeric port, not a named one");
                None
            }
            (Some(IntOrString::String(name)), None) => {
                if !is_port_name(name) {
                    self.refuse(
                        format!("{field}.port"),
                        format!(
                            "{name:?} is not a port name (1 to 15 of a-z, 0-9 and '-', a letter among them)"
                        ),
                    );
                    return None;
                }
                Some(Port::Named(protocol, name.as_str().into()))
            }
            (Some(IntOrString::Int(first)), end) => {
                let last = end.unwrap_or(*first);
                let (first, last) = match (port_number(*first), port_number(last)) {
                    (Ok(first), Ok(last)) => (first, last),
                    (Err(reason), _) => {
                        self.refuse(format!("{field}.port"), reason);
                        return None;
                    }
                    (_, Err(reason)) => {
                        self.refuse(format!("{field}.endPort"), reason);
                        return None;
                    }
                };
                if last < first {
                    self.refuse(format!("{field}.endPort"), format!("endPort {last} is below port {first}"));
                    return None;
                }
                Some(Port::Range(protocol, first, last))
            }
        }
    }

    /// The selector of what could be understood, and whether that was all.
    fn selector(&mut self, selector: &LabelSelector, field: &str) -> (Selector, bool) {
        let before = self.problems.len();
        let labels = selector.match_labels.iter().flatten().map(|(key, value)| Requirement {
            key: key.as_str().into(),
            operator: Operator::In(vec![value.as_str().into()]),
        });
        let mut requirements: Vec<_> = labels.collect();
        for (i, expression) in selector.match_expressions.iter().flatten().enumerate() {
            match requirement(expression) {
                Ok(requirement) => requirements.push(requirement),
                Err(reason) => self.refuse(format!("{field}.matchExpressions[{i}]"), reason),
            }
        }
        (Selector::new(requirements), self.problems.len() == before)
    }
}

fn requirement(expression: &LabelSelectorRequirement) -> Result<Requirement, String> {
    let values: Vec<Str> = expression.values.iter().flatten().map(|v| v.as_str().into()).collect();
    let operator = match (expression.operator.as_str(), values.is_empty()) {
        ("In", false) => Operator::In(values),
        ("NotIn", false) => Operator::NotIn(values),
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        (operator @ ("In" | "NotIn"), true) => return Err(format!("{operator} needs values")),
        (operator @ ("Exists" | "DoesNotExist"), false) => return Err(format!("{operator} takes no values")),
        (other, _) => return Err(format!("unknown operator {other:?}")),
    };
    if expression.key.is_empty() {
        return Err("a requirement without a key".into());
    }
    Ok(Requirement { key: expression.key.as_str().into(), operator })
}

fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("unknown protocol {other:?}: TCP, UDP or SCTP")),
    }
}

fn port_number(number: i32) -> Result<u16, String> {
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or(format!("port {number} is not between 1 and 65535"))
}

/// IANA_SVC_NAME as the API server checks it: a number in quotes is not a name.
fn is_port_name(name: &str) -> bool {
    let allowed = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let dashes = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    (1..=15).contains(&name.len()) && allowed && !dashes && name.bytes().any(|b| b.is_ascii_lowercase())
}

fn staged(metadata: &ObjectMeta) -> bool {
    let annotations = metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(STAGED_ANNOTATION)).is_some_and(|value| value == "true")
}

fn labels(metadata: &ObjectMeta) -> Labels {
    metadata.labels.iter().flatten().collect()
}

fn names(kind: &str, metadata: &ObjectMeta, namespaced: bool) -> Result<(Str, Str), Problem> {
    let name = metadata.name.as_deref().filter(|name| !name.is_empty()).ok_or_else(|| Problem {
        object: kind.into(),
        field: "metadata.name".into(),
        reason: "missing".into(),
    })?;
    let namespace = if namespaced { metadata.namespace.as_deref().unwrap_or("default") } else { "" };
    Ok((Arc::from(namespace), Arc::from(name)))
}
