//! Calico's NetworkPolicy, GlobalNetworkPolicy and their sets of networks -> model.
//!
//! All of them are asked in the tier of NetworkPolicies: those of an order below 1000 before them, the others and those without
//! an order after them; what none of them decides is denied. What cannot be carried over is named and closes: an Allow then
//! matches nothing, a Deny or a Pass denies everything, and of a policy whose frame is in doubt nothing allows or passes.

use ipnetwork::IpNetwork;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::expression::{self, Alternatives, Literal};
use super::{Door, is_port_name, labels, names, staged};
use crate::model::{
    Action, Addresses, Conditions, Direction, Entity, Family, IcmpMatch, IpBlock, Labels,
    NAMESPACE_NAME_LABEL, NamespaceScope, Order, Peer, PodSelector, Policy, PolicyId, PolicyKind, Port,
    PortRange, Problem, Protocol, Rule, SERVICE_ACCOUNT_LABEL, Str, Tier, Which,
};
use crate::selector::{Operator, Requirement, Selector};
use crate::state::account_label;

/// The object as it is written, of either kind, in the shape of projectcalico.org/v3 and of crd.projectcalico.org/v1.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CalicoPolicy {
    /// Name, annotations, generation.
    pub metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    tier: Option<String>,
    order: Option<f64>,
    selector: Option<String>,
    namespace_selector: Option<String>,
    service_account_selector: Option<String>,
    types: Option<Vec<String>>,
    ingress: Option<Vec<RawRule>>,
    egress: Option<Vec<RawRule>>,
    do_not_track: Option<bool>,
    #[serde(rename = "preDNAT")]
    pre_dnat: Option<bool>,
    apply_on_forward: Option<bool>,
    /// Hints never change what is enforced.
    #[serde(rename = "performanceHints")]
    _performance_hints: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawRule {
    action: Option<String>,
    ip_version: Option<i64>,
    protocol: Option<IntOrString>,
    not_protocol: Option<IntOrString>,
    icmp: Option<RawIcmp>,
    #[serde(rename = "notICMP")]
    not_icmp: Option<RawIcmp>,
    source: Option<RawEntity>,
    destination: Option<RawEntity>,
    http: Option<IgnoredAny>,
    /// Words for people.
    #[serde(rename = "metadata")]
    _metadata: Option<RawMetadata>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RawMetadata {
    #[serde(rename = "annotations")]
    _annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RawIcmp {
    #[serde(rename = "type")]
    kind: Option<i64>,
    code: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawEntity {
    nets: Option<Vec<String>>,
    not_nets: Option<Vec<String>>,
    selector: Option<String>,
    not_selector: Option<String>,
    namespace_selector: Option<String>,
    ports: Option<Vec<IntOrString>>,
    not_ports: Option<Vec<IntOrString>>,
    service_accounts: Option<RawAccounts>,
    services: Option<IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RawAccounts {
    names: Option<Vec<String>>,
    selector: Option<String>,
}

/// A NetworkPolicy (`namespaced`) or a GlobalNetworkPolicy. Problems within it are in [`Policy::problems`].
///
/// # Errors
/// It has no name.
pub fn calico_policy(object: &CalicoPolicy, namespaced: bool) -> Result<Policy, Problem> {
    let kind =
        if namespaced { PolicyKind::CalicoNetworkPolicy } else { PolicyKind::CalicoGlobalNetworkPolicy };
    let (namespace, name) = names(kind.as_str(), &object.metadata, namespaced)?;
    let namespace = namespaced.then_some(namespace);
    let called = namespace.as_ref().map_or(name.to_string(), |namespace| format!("{namespace}/{name}"));
    let mut door = Door { object: format!("{} {called}", kind.as_str()), problems: Vec::new() };
    let spec = &object.spec;

    if let Some(tier) = spec.tier.as_deref().filter(|tier| !matches!(*tier, "" | "default")) {
        door.refuse("spec.tier", format!("{tier:?}: only tier default is known; {DOUBT}"));
    }
    for (field, set) in [
        ("doNotTrack", spec.do_not_track),
        ("preDNAT", spec.pre_dnat),
        ("applyOnForward", spec.apply_on_forward),
    ] {
        if set == Some(true) {
            door.refuse(
                format!("spec.{field}"),
                format!("not supported: there are no host endpoints; {DOUBT}"),
            );
        }
    }
    let subject = door.calico_subject(spec, namespace.as_ref());
    let (ingress, egress) = door.calico_types(spec);
    let doubtful = !door.problems.is_empty();

    let mut rules = |list: &Option<Vec<RawRule>>, direction: Direction| -> Vec<Rule> {
        list.iter()
            .flatten()
            .enumerate()
            .map(|(i, raw)| {
                let field = format!("spec.{}[{i}]", direction.as_str());
                let mut rule = door.calico_rule(raw, namespace.as_ref(), direction, &field);
                rule.refused |= doubtful && matches!(rule.action, Action::Accept | Action::Pass);
                rule
            })
            .collect()
    };
    let ingress = ingress.then(|| rules(&spec.ingress, Direction::Ingress));
    let egress = egress.then(|| rules(&spec.egress, Direction::Egress));
    Ok(Policy {
        id: PolicyId { kind, namespace, name },
        tier: Tier::NetworkPolicy,
        order: spec.order.map_or(Order::last(), Order::new),
        generation: object.metadata.generation.unwrap_or(0),
        staged: staged(&object.metadata),
        subject,
        ingress,
        egress,
        problems: door.problems,
    })
}

/// A set of networks as it is written: NetworkSet or GlobalNetworkSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NetworkSet {
    /// Name and labels.
    pub metadata: ObjectMeta,
    spec: NetworkSetSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NetworkSetSpec {
    nets: Option<Vec<String>>,
}

/// A NetworkSet (`namespaced`) or a GlobalNetworkSet. Networks that are none are left out, with a problem for each.
///
/// # Errors
/// It has no name.
pub fn network_set(object: &NetworkSet, namespaced: bool) -> Result<(Entity, Vec<Problem>), Problem> {
    let kind = if namespaced { "NetworkSet" } else { "GlobalNetworkSet" };
    let (namespace, name) = names(kind, &object.metadata, namespaced)?;
    let mut door = Door { object: format!("{kind} {name}"), problems: Vec::new() };
    let mut nets = Vec::new();
    for (i, text) in object.spec.nets.iter().flatten().enumerate() {
        nets.extend(door.calico_net(text, &format!("spec.nets[{i}]")).into_iter().flat_map(halves));
    }
    nets.sort();
    nets.dedup();
    let own = [(Str::from(NETWORK_SET_LABEL), Str::from(""))];
    let entity = Entity {
        id: Entity::network_set(namespaced.then_some(&*namespace), &name),
        labels: Labels::new(labels(&object.metadata).iter().cloned().chain(own)),
        addresses: Addresses::new(),
        nets: nets.into(),
    };
    Ok((entity, door.problems))
}

/// What every set of networks bears, and no pod.
const NETWORK_SET_LABEL: &str = "=networkset";
const DOUBT: &str = "the policy allows and passes nothing";
/// Labels that Calico puts on its endpoints.
const NAMESPACE: &str = "projectcalico.org/namespace";
const ACCOUNT: &str = "projectcalico.org/serviceaccount";
const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";
/// The label by which namespace and service account selectors ask for a name.
const NAME: &str = "projectcalico.org/name";

/// What a kernel set of blocks cannot hold whole.
fn halves(net: IpNetwork) -> Vec<IpNetwork> {
    if net.prefix() > 0 {
        return vec![net];
    }
    let halves = if net.is_ipv4() { ["0.0.0.0/1", "128.0.0.0/1"] } else { ["::/1", "8000::/1"] };
    halves.iter().map(|half| half.parse().expect("an address block")).collect()
}

impl Door {
    fn calico_subject(&mut self, spec: &Spec, namespace: Option<&Str>) -> Vec<PodSelector> {
        let given = [
            (&spec.selector, "spec.selector", pod_key as fn(&str) -> Key),
            (&spec.namespace_selector, "spec.namespaceSelector", namespace_key),
            (&spec.service_account_selector, "spec.serviceAccountSelector", account_key),
        ];
        if namespace.is_some() && spec.namespace_selector.is_some() {
            self.refuse("spec.namespaceSelector", format!("a NetworkPolicy stays in its namespace; {DOUBT}"));
        }
        let mut all: Keyed = vec![Vec::new()];
        for (text, field, key) in given {
            let Some(text) = text else { continue };
            if namespace.is_some() && field == "spec.namespaceSelector" {
                continue;
            }
            match expression::parse(text).and_then(|found| joined(&all, &found, key)) {
                Ok(narrower) => all = narrower,
                // More pods are governed, by rules that then allow nothing.
                Err(reason) => self.refuse(field, format!("{reason}; {DOUBT}")),
            }
        }
        let mut subject: Vec<PodSelector> =
            all.iter().flat_map(|conjunction| selectors(conjunction, namespace)).collect();
        // What has no namespace is no pod.
        subject.retain(|s| s.namespaces != NamespaceScope::Named(Entity::GLOBAL.into()));
        subject
    }

    fn calico_types(&mut self, spec: &Spec) -> (bool, bool) {
        let some = |rules: &Option<Vec<RawRule>>| rules.as_ref().is_some_and(|rules| !rules.is_empty());
        let types = spec.types.as_deref().unwrap_or_default();
        if types.is_empty() {
            let egress = some(&spec.egress);
            return (some(&spec.ingress) || !egress, egress);
        }
        let (mut ingress, mut egress) = (false, false);
        for (i, text) in types.iter().enumerate() {
            match text.to_ascii_lowercase().as_str() {
                "ingress" => ingress = true,
                "egress" => egress = true,
                _ => {
                    let reason =
                        format!("{text:?} is neither Ingress nor Egress; both directions are isolated");
                    self.refuse(format!("spec.types[{i}]"), reason);
                    (ingress, egress) = (true, true);
                }
            }
        }
        (ingress, egress)
    }

    fn calico_rule(
        &mut self,
        raw: &RawRule,
        namespace: Option<&Str>,
        direction: Direction,
        field: &str,
    ) -> Rule {
        let before = self.problems.len();
        let action = match raw.action.as_deref().unwrap_or_default().to_ascii_lowercase().as_str() {
            "allow" => Action::Accept,
            "deny" => Action::Deny,
            "pass" | "next-tier" => Action::Pass,
            "log" => Action::Log,
            other => {
                self.refuse(format!("{field}.action"), format!("{other:?}: Allow, Deny, Log or Pass"));
                Action::Deny
            }
        };
        if raw.http.is_some() {
            self.refuse(format!("{field}.http"), "HTTP is not looked into");
        }
        let mut more = Conditions::default();
        match raw.ip_version {
            None => {}
            Some(4) => more.family = Some(Family::Ipv4),
            Some(6) => more.family = Some(Family::Ipv6),
            Some(other) => self.refuse(format!("{field}.ipVersion"), format!("{other}: 4 or 6")),
        }
        let protocol = self.calico_protocol(raw.protocol.as_ref(), &format!("{field}.protocol"));
        more.not_protocol = self.calico_protocol(raw.not_protocol.as_ref(), &format!("{field}.notProtocol"));
        let with_ports = protocol.and_then(|p| Protocol::ALL.into_iter().find(|known| known.number() == p));
        if with_ports.is_none() {
            more.protocol = protocol;
        }
        more.icmp = self.calico_icmp(raw.icmp.as_ref(), protocol, &format!("{field}.icmp"));
        more.not_icmp = self.calico_icmp(raw.not_icmp.as_ref(), protocol, &format!("{field}.notICMP"));

        let empty = RawEntity::default();
        let (source, destination) =
            (raw.source.as_ref().unwrap_or(&empty), raw.destination.as_ref().unwrap_or(&empty));
        let (from, to) = match direction {
            Direction::Ingress => (Which::Other, Which::Own),
            Direction::Egress => (Which::Own, Which::Other),
        };
        self.calico_entity(source, namespace, from, &format!("{field}.source"), &mut more);
        self.calico_entity(destination, namespace, to, &format!("{field}.destination"), &mut more);

        let place = format!("{field}.source");
        let given = self.calico_source_ports(source.ports.as_deref(), with_ports, &format!("{place}.ports"));
        more.source_ports = given;
        more.not_source_ports =
            self.calico_source_ports(source.not_ports.as_deref(), with_ports, &format!("{place}.notPorts"));
        let place = format!("{field}.destination");
        let ports = destination.ports.as_deref();
        let mut ports = ports.map(|list| self.calico_ports(list, with_ports, &format!("{place}.ports")));
        if let Some(list) = destination.not_ports.as_deref() {
            more.not_ports = self.calico_ports(list, with_ports, &format!("{place}.notPorts"));
        }
        if ports.as_ref().is_none_or(Vec::is_empty) {
            ports = with_ports.map(|protocol| vec![Port::All(protocol)]);
        }
        // One list of peers stands in its usual place, where a named port can find whose it is.
        let at = more.any_of.iter().position(|(which, peers)| {
            *which == Which::Other && peers.iter().any(|peer| matches!(peer, Peer::Entities(_)))
        });
        let at = at.or_else(|| more.any_of.iter().position(|(which, _)| *which == Which::Other));
        let mut peers = at.map(|at| more.any_of.remove(at).1);
        match (protocol, more.not_protocol) {
            // Nothing is and is not of a protocol.
            (Some(wanted), Some(unwanted)) if wanted == unwanted => peers = Some(Vec::new()),
            (Some(_), Some(_)) => more.not_protocol = None,
            _ => {}
        }
        let effect = match action {
            Action::Accept | Action::Log => "this rule matches nothing",
            Action::Deny | Action::Pass => "this rule denies everything",
        };
        for problem in &mut self.problems[before..] {
            problem.reason = format!("{}; until then {effect}", problem.reason);
        }
        let refused = self.problems.len() > before;
        let more = (more != Conditions::default()).then(|| Box::new(more));
        Rule { action, peers, ports, more, name: None, refused }
    }

    /// Addresses of one side: selectors and nets must both hold where both are given.
    fn calico_entity(
        &mut self,
        raw: &RawEntity,
        namespace: Option<&Str>,
        which: Which,
        field: &str,
        more: &mut Conditions,
    ) {
        if raw.services.is_some() {
            self.refuse(format!("{field}.services"), "Services are not matched: select their pods");
        }
        let accounts = raw.service_accounts.as_ref();
        let restricted = raw.selector.is_some() || raw.not_selector.is_some() || accounts.is_some();
        if restricted || raw.namespace_selector.is_some() {
            match self.calico_peers(raw, namespace, field) {
                Ok(peers) => more.any_of.push((which, peers)),
                Err(problem) => self.problems.push(problem),
            }
        }
        if let Some(text) = raw.not_selector.as_deref() {
            match expression::parse(text).and_then(|found| joined(&vec![Vec::new()], &found, pod_key)) {
                Ok(all) => {
                    let unwanted = all.iter().flat_map(|conjunction| selectors(conjunction, None));
                    more.none_of.extend(unwanted.map(|selector| (which, Peer::Entities(selector))));
                }
                Err(reason) => self.refuse(format!("{field}.notSelector"), reason),
            }
        }
        let mut blocks = |list: &Option<Vec<String>>, name: &str| -> Option<Vec<Peer>> {
            let list = list.as_ref().filter(|list| !list.is_empty())?;
            let nets = list.iter().enumerate();
            let nets = nets.filter_map(|(i, text)| self.calico_net(text, &format!("{field}.{name}[{i}]")));
            Some(nets.map(|cidr| Peer::Block(IpBlock { cidr, except: Vec::new() })).collect())
        };
        if let Some(nets) = blocks(&raw.nets, "nets") {
            more.any_of.push((which, nets));
        }
        if let Some(nets) = blocks(&raw.not_nets, "notNets") {
            more.none_of.extend(nets.into_iter().map(|net| (which, net)));
        }
    }

    /// Without a namespaceSelector a NetworkPolicy's selectors stay in its namespace; a GlobalNetworkPolicy's go everywhere.
    fn calico_peers(
        &self,
        raw: &RawEntity,
        namespace: Option<&Str>,
        field: &str,
    ) -> Result<Vec<Peer>, Problem> {
        let refuse = |name: &str| {
            let (object, field) = (self.object.clone(), format!("{field}.{name}"));
            move |reason: String| Problem { object, field, reason }
        };
        let mut all: Keyed = vec![Vec::new()];
        let mut narrow = |text: Option<&str>, name: &str, key: fn(&str) -> Key| {
            let Some(text) = text else { return Ok(()) };
            let found = expression::parse(text).and_then(|found| joined(&all, &found, key));
            all = found.map_err(refuse(name))?;
            Ok(())
        };
        narrow(raw.selector.as_deref(), "selector", pod_key)?;
        let accounts = raw.service_accounts.as_ref();
        narrow(
            accounts.and_then(|accounts| accounts.selector.as_deref()),
            "serviceAccounts.selector",
            account_key,
        )?;
        let scope = raw.namespace_selector.as_deref().filter(|text| !text.trim().is_empty());
        match scope {
            // Whatever belongs to a namespace.
            Some(text) if text.trim() == "all()" => {
                narrow(Some("!global()"), "namespaceSelector", namespace_key)?;
            }
            scope => narrow(scope, "namespaceSelector", namespace_key)?,
        }
        if let Some(names) = accounts.and_then(|a| a.names.as_ref()).filter(|names| !names.is_empty()) {
            let names = Operator::In(names.iter().map(|name| name.as_str().into()).collect());
            let own = (Key::Pod(SERVICE_ACCOUNT_LABEL.into()), names);
            for conjunction in &mut all {
                conjunction.push(Condition::Label(own.0.clone(), own.1.clone()));
            }
        }
        let own = namespace.filter(|_| scope.is_none());
        let peers = all.iter().flat_map(|conjunction| selectors(conjunction, own));
        Ok(peers.map(Peer::Entities).collect())
    }

    /// A block, or an address alone.
    fn calico_net(&mut self, text: &str, field: &str) -> Option<IpNetwork> {
        match text.parse::<std::net::IpAddr>() {
            Ok(ip) => Some(IpNetwork::from(ip)),
            Err(_) => self.cidr(text, field),
        }
    }

    fn calico_protocol(&mut self, raw: Option<&IntOrString>, field: &str) -> Option<u8> {
        let number = match raw? {
            IntOrString::Int(number) => u8::try_from(*number).ok().filter(|number| *number > 0),
            IntOrString::String(name) => match name.to_ascii_lowercase().as_str() {
                "tcp" => Some(6),
                "udp" => Some(17),
                "icmp" => Some(1),
                "icmpv6" => Some(58),
                "sctp" => Some(132),
                "udplite" => Some(136),
                number => number.parse().ok().filter(|number| *number > 0),
            },
        };
        if number.is_none() {
            self.refuse(field, "TCP, UDP, SCTP, ICMP, ICMPv6, UDPLite or a number from 1 to 255");
        }
        number
    }

    fn calico_icmp(&mut self, raw: Option<&RawIcmp>, protocol: Option<u8>, field: &str) -> Option<IcmpMatch> {
        let raw = raw?;
        if !matches!(protocol, Some(1 | 58)) {
            self.refuse(field, "needs protocol ICMP or ICMPv6");
            return None;
        }
        let byte = |number: i64| u8::try_from(number).ok();
        match (raw.kind, raw.code) {
            (None, None) => None,
            (Some(kind), code) if byte(kind).is_some() && code.is_none_or(|code| byte(code).is_some()) => {
                Some(IcmpMatch { kind: byte(kind)?, code: code.and_then(byte) })
            }
            _ => {
                self.refuse(field, "a type from 0 to 254, and with it a code from 0 to 255");
                None
            }
        }
    }

    fn calico_source_ports(
        &mut self,
        list: Option<&[IntOrString]>,
        protocol: Option<Protocol>,
        field: &str,
    ) -> Option<(Protocol, Vec<PortRange>)> {
        let list = list.filter(|list| !list.is_empty())?;
        let ports = self.calico_ports(list, protocol, field);
        let ranges = ports.iter().filter_map(|port| match port {
            Port::Range(_, first, last) => Some((*first, *last)),
            Port::All(_) | Port::Named(..) => None,
        });
        let ranges: Vec<PortRange> = ranges.collect();
        if ranges.len() < ports.len() {
            self.refuse(field, "a source port is a number or a range: names are those of destination ports");
        }
        Some((protocol?, ranges))
    }

    fn calico_ports(&mut self, list: &[IntOrString], protocol: Option<Protocol>, field: &str) -> Vec<Port> {
        if list.is_empty() {
            return Vec::new();
        }
        let Some(protocol) = protocol else {
            self.refuse(field, "ports need protocol TCP, UDP or SCTP");
            return Vec::new();
        };
        let number = |text: &str| text.trim().parse::<u16>().ok();
        let mut ports = Vec::new();
        for (i, raw) in list.iter().enumerate() {
            let text = match raw {
                IntOrString::Int(number) => number.to_string(),
                IntOrString::String(text) => text.clone(),
            };
            let range = match text.split_once(':') {
                Some((first, last)) => number(first).zip(number(last)),
                None => number(&text).map(|port| (port, port)),
            };
            match range {
                Some((first, last)) if first <= last => ports.push(Port::Range(protocol, first, last)),
                None if is_port_name(&text.to_ascii_lowercase()) => {
                    ports.push(Port::Named(protocol, text.as_str().into()));
                }
                _ => {
                    let reason = format!("{text:?} is no port, no range such as 80:90 and no port's name");
                    self.refuse(format!("{field}[{i}]"), reason);
                }
            }
        }
        ports
    }
}

/// Whose label a selector asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Pod(Str),
    Namespace(Str),
    /// Not a label of anyone: each pod has it with this value.
    EveryPod(&'static str),
}

/// One condition of a conjunction.
#[derive(Clone, Debug)]
enum Condition {
    Label(Key, Operator),
    Namespaced(bool),
}

type Keyed = Vec<Vec<Condition>>;

/// In selectors of endpoints: labels of the pod, and those that Calico lends it.
fn pod_key(label: &str) -> Key {
    match label {
        NAMESPACE => Key::Namespace(NAMESPACE_NAME_LABEL.into()),
        ACCOUNT => Key::Pod(SERVICE_ACCOUNT_LABEL.into()),
        ORCHESTRATOR => Key::EveryPod("k8s"),
        label => match (label.strip_prefix("pcns."), label.strip_prefix("pcsa.")) {
            (Some(label), _) => namespace_key(label),
            (_, Some(label)) => account_key(label),
            (None, None) => Key::Pod(label.into()),
        },
    }
}

fn namespace_key(label: &str) -> Key {
    Key::Namespace(if label == NAME { NAMESPACE_NAME_LABEL.into() } else { label.into() })
}

fn account_key(label: &str) -> Key {
    Key::Pod(if label == NAME { SERVICE_ACCOUNT_LABEL.into() } else { account_label(label) })
}

fn joined(all: &Keyed, found: &Alternatives, key: fn(&str) -> Key) -> Result<Keyed, String> {
    if all.len().saturating_mul(found.len()) > expression::MAX_ALTERNATIVES {
        return Err(format!("more than {} alternatives", expression::MAX_ALTERNATIVES));
    }
    let condition = |literal: &Literal| match literal {
        Literal::Label(requirement) => Condition::Label(key(&requirement.key), requirement.operator.clone()),
        Literal::Namespaced(namespaced) => Condition::Namespaced(*namespaced),
    };
    let narrower = all.iter().flat_map(|conjunction| {
        found.iter().map(move |more| conjunction.iter().cloned().chain(more.iter().map(condition)).collect())
    });
    Ok(narrower.collect())
}

/// A conjunction as selectors: of what lives in namespaces, of what belongs to none, or both.
fn selectors(conjunction: &[Condition], own: Option<&Str>) -> Vec<PodSelector> {
    let (mut pods, mut namespaces) = (Vec::new(), Vec::new());
    let mut namespaced = None;
    for condition in conjunction {
        match condition {
            Condition::Namespaced(wanted) if namespaced.is_some_and(|known| known != *wanted) => {
                return Vec::new();
            }
            Condition::Namespaced(wanted) => namespaced = Some(*wanted),
            Condition::Label(Key::Pod(key), operator) => {
                pods.push(Requirement { key: key.clone(), operator: operator.clone() });
            }
            Condition::Label(Key::Namespace(key), operator) => {
                namespaces.push(Requirement { key: key.clone(), operator: operator.clone() });
            }
            Condition::Label(Key::EveryPod(value), operator) => {
                let asked = Requirement { key: "".into(), operator: operator.clone() };
                let holds = |labels: &[(&str, &str)]| {
                    Selector::new([asked.clone()]).matches(&labels.iter().copied().collect())
                };
                // Sets of networks have no such label.
                let operator = match (holds(&[("", *value)]), holds(&[])) {
                    (true, true) => continue,
                    (true, false) => Operator::DoesNotExist,
                    (false, true) => Operator::Exists,
                    (false, false) => return Vec::new(),
                };
                pods.push(Requirement { key: NETWORK_SET_LABEL.into(), operator });
            }
        }
    }
    let of_none = Selector::new(namespaces.clone()).matches(&Labels::default());
    let pods = Selector::new(pods);
    let mut found = Vec::new();
    if namespaced != Some(false) {
        if let Some(own) = own {
            let name = Operator::In(vec![own.clone()]);
            namespaces.push(Requirement { key: NAMESPACE_NAME_LABEL.into(), operator: name });
        }
        let scope = match namespaces.as_slice() {
            [Requirement { key, operator: Operator::In(names) }]
                if &**key == NAMESPACE_NAME_LABEL && names.len() == 1 =>
            {
                NamespaceScope::Named(names[0].clone())
            }
            _ => NamespaceScope::Matching(Selector::new(namespaces)),
        };
        found.push(PodSelector { namespaces: scope, pods: pods.clone() });
    }
    if namespaced != Some(true) && own.is_none() && of_none {
        found.push(PodSelector { namespaces: NamespaceScope::Named(Entity::GLOBAL.into()), pods });
    }
    found
}
