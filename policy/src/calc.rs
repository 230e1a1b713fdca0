//! What is in force on this node: which policies govern which endpoint, and through [`Members`] who is in which set.
//! Incremental: the cost of an update follows what it changes.
//!
//! [`from_scratch`] computes the same from a snapshot with plain loops; after any sequence of updates both agree. Knows
//! nothing of chains, rules or the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::grants::{SetKey, sets_of};
use crate::ir::Member;
use crate::members::Members;
use crate::model::{
    Addresses, Direction, EndpointId, Entity, Labels, NamedPort, NamespaceScope, Order, PodId, Policy,
    PolicyId, Str, Tier, Update,
};
use crate::names::is_interface_name;
use crate::state::{Owner, State, claimed_pod};

/// What holds for one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The host's end of its veth pair.
    pub interface: String,
    /// From the attachment.
    pub addresses: Addresses,
    /// The pod that the attachment names.
    pub pod: PodId,
    /// Whether anything may pass, and what decides.
    pub access: Access,
}

/// Closed, or governed by policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing passes.
    Closed(Closed),
    /// These policies speak, in the order in which they are asked.
    Open {
        /// To the pod.
        ingress: Vec<Governing>,
        /// From the pod.
        egress: Vec<Governing>,
    },
}

/// A policy in its place among those of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Governing {
    /// Where it is asked.
    pub tier: Tier,
    /// Where in that tier.
    pub order: Order,
    /// Which.
    pub id: PolicyId,
    /// Counted, not enforced.
    pub staged: bool,
}

impl Governing {
    fn new(policy: &Policy) -> Self {
        Governing { tier: policy.tier, order: policy.order, id: policy.id.clone(), staged: policy.staged }
    }
}

impl Access {
    /// The policies of a direction; none for a closed endpoint.
    pub fn policies(&self, direction: Direction) -> &[Governing] {
        match (self, direction) {
            (Access::Closed(_), _) => &[],
            (Access::Open { ingress, .. }, Direction::Ingress) => ingress,
            (Access::Open { egress, .. }, Direction::Egress) => egress,
        }
    }

    /// Some policy of whatever tier is enforced in this direction.
    pub fn isolated(&self, direction: Direction) -> bool {
        self.enforced(direction).next().is_some()
    }

    /// Those that are enforced.
    pub fn enforced(&self, direction: Direction) -> impl Iterator<Item = &Governing> {
        self.policies(direction).iter().filter(|policy| !policy.staged)
    }
}

/// Why an endpoint is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// No Pod object with the attachment's uid is known (yet).
    UnknownPod,
    /// Two attachments name the same interface.
    SharedInterface,
    /// Not an interface name that a rule can hold, or not one with our prefix.
    BadInterface,
}

impl Closed {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Closed::UnknownPod => "its pod is not known",
            Closed::SharedInterface => "two attachments name this interface",
            Closed::BadInterface => "the interface does not bear our prefix",
        }
    }
}

/// Everything in force, as plain data: for comparisons and for compiling a whole node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// By attachment.
    pub endpoints: BTreeMap<EndpointId, Resolved>,
    /// Policies that govern at least one endpoint.
    pub policies: BTreeMap<PolicyId, Arc<Policy>>,
    /// The sets that those policies speak of.
    pub sets: BTreeMap<SetKey, BTreeSet<Member>>,
}

/// What has changed since it was last taken.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Changes {
    /// Endpoints that appeared, changed or went; with the interface that each had before, if any.
    pub endpoints: BTreeMap<EndpointId, Option<String>>,
    /// Policies that began or ceased to govern, or whose content changed while they govern.
    pub policies: BTreeSet<PolicyId>,
}

#[derive(Debug)]
struct Active {
    policy: Arc<Policy>,
    users: usize,
}

/// The incremental calculation. Owns the snapshot of the cluster.
#[derive(Debug)]
pub struct Calc {
    prefix: String,
    state: State,
    members: Members,
    endpoints: BTreeMap<EndpointId, Resolved>,
    by_interface: BTreeMap<String, BTreeSet<EndpointId>>,
    by_namespace: BTreeMap<Str, BTreeSet<EndpointId>>,
    policies_of: BTreeMap<Str, BTreeSet<PolicyId>>,
    cluster_policies: BTreeSet<PolicyId>,
    active: BTreeMap<PolicyId, Active>,
    changes: Changes,
}

impl Calc {
    /// Nothing known. `prefix` is how pod interfaces begin.
    pub fn new(prefix: &str) -> Self {
        Calc {
            prefix: prefix.into(),
            state: State::default(),
            members: Members::default(),
            endpoints: BTreeMap::new(),
            by_interface: BTreeMap::new(),
            by_namespace: BTreeMap::new(),
            policies_of: BTreeMap::new(),
            cluster_policies: BTreeSet::new(),
            active: BTreeMap::new(),
            changes: Changes::default(),
        }
    }

    /// The cluster as known.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Who is in which set.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// To take from it what has changed.
    pub fn members_mut(&mut self) -> &mut Members {
        &mut self.members
    }

    /// By attachment.
    pub fn endpoints(&self) -> &BTreeMap<EndpointId, Resolved> {
        &self.endpoints
    }

    /// The attachments that name an interface: one, unless something is wrong.
    pub fn endpoints_on(&self, interface: &str) -> impl Iterator<Item = &Resolved> {
        self.by_interface.get(interface).into_iter().flatten().filter_map(|id| self.endpoints.get(id))
    }

    /// A policy, if it governs an endpoint of this node.
    pub fn active(&self, id: &PolicyId) -> Option<&Arc<Policy>> {
        self.active.get(id).map(|active| &active.policy)
    }

    /// Every policy that governs an endpoint of this node.
    pub fn active_policies(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.active.values().map(|active| &active.policy)
    }

    /// What has changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Everything in force.
    pub fn snapshot(&self) -> Snapshot {
        let sets = self.members.sets().map(|(_, set)| {
            let members = crate::model::Family::ALL.into_iter().flat_map(|family| set.members(family));
            (set.key.clone(), members.collect())
        });
        Snapshot {
            endpoints: self.endpoints.clone(),
            policies: self.active.iter().map(|(id, active)| (id.clone(), active.policy.clone())).collect(),
            sets: sets.collect(),
        }
    }

    /// Takes in a change.
    pub fn apply(&mut self, update: Update) {
        match update {
            Update::SetPod(pod) => {
                let id = pod.id.clone();
                if self.state.pod(&id) != Some(&pod) {
                    self.state.apply(Update::SetPod(pod));
                    self.pod_changed(&id);
                }
            }
            Update::RemovePod(id, uid) => {
                self.state.apply(Update::RemovePod(id.clone(), uid));
                self.pod_changed(&id);
            }
            Update::SetNamespace(namespace) => {
                let name = namespace.name.clone();
                self.state.apply(Update::SetNamespace(namespace));
                self.namespace_changed(&name);
            }
            Update::RemoveNamespace(name) => {
                self.state.apply(Update::RemoveNamespace(name.clone()));
                self.namespace_changed(&name);
            }
            Update::SetPolicy(policy) => self.set_policy(policy),
            Update::RemovePolicy(id) => self.remove_policy(&id),
            Update::SetEndpoint(endpoint) => {
                let id = endpoint.id.clone();
                if self.state.endpoint(&id) != Some(&endpoint) {
                    self.endpoint_changed(&id, Update::SetEndpoint(endpoint));
                }
            }
            Update::RemoveEndpoint(id) => self.endpoint_changed(&id.clone(), Update::RemoveEndpoint(id)),
            Update::SetEntity(entity) => {
                let id = entity.id.clone();
                self.state.apply(Update::SetEntity(entity));
                self.members.set_workload(&id, self.state.workload(&id), &self.state);
            }
            Update::RemoveEntity(id) => {
                self.state.apply(Update::RemoveEntity(id.clone()));
                self.members.set_workload(&id, self.state.workload(&id), &self.state);
            }
            Update::SetServiceAccount(id, labels) => {
                self.state.apply(Update::SetServiceAccount(id.clone(), labels));
                let pods: Vec<PodId> = self.state.pods_of_account(&id).map(|pod| pod.id.clone()).collect();
                for pod in pods {
                    self.pod_changed(&pod);
                }
            }
        }
    }

    fn pod_changed(&mut self, id: &PodId) {
        self.members.set_workload(id, self.state.workload(id), &self.state);
        let endpoints: Vec<EndpointId> = self.state.endpoints_naming(id).map(|e| e.id.clone()).collect();
        for endpoint in endpoints {
            self.refresh(&endpoint);
        }
    }

    fn namespace_changed(&mut self, name: &Str) {
        self.members.namespace_changed(name, &self.state);
        if !self.cluster_policies.is_empty() && Entity::is_namespace(name) {
            for endpoint in self.by_namespace.get(name).cloned().unwrap_or_default() {
                self.refresh(&endpoint);
            }
        }
    }

    fn endpoint_changed(&mut self, id: &EndpointId, update: Update) {
        let before = self.state.endpoint(id).map(|e| (claimed_pod(e), e.interface.clone()));
        self.state.apply(update);
        let after = self.state.endpoint(id).map(|e| (claimed_pod(e), e.interface.clone()));
        if let Some((pod, interface)) = &before {
            remove_from(&mut self.by_interface, interface, id);
            remove_from(&mut self.by_namespace, &pod.namespace, id);
        }
        if let Some((pod, interface)) = &after {
            self.by_interface.entry(interface.clone()).or_default().insert(id.clone());
            self.by_namespace.entry(pod.namespace.clone()).or_default().insert(id.clone());
        }
        self.refresh(id);
        let mut pods = BTreeSet::new();
        let mut neighbours = BTreeSet::new();
        for (pod, interface) in before.iter().chain(&after) {
            pods.insert(pod.clone());
            neighbours.extend(self.by_interface.get(interface).into_iter().flatten().cloned());
        }
        for pod in pods {
            self.members.set_workload(&pod, self.state.workload(&pod), &self.state);
        }
        for neighbour in neighbours {
            self.refresh(&neighbour);
        }
    }

    fn set_policy(&mut self, policy: Policy) {
        let id = policy.id.clone();
        if self.state.policy(&id).is_some_and(|known| **known == policy) {
            return;
        }
        let before = self.forget_subject(&id);
        self.state.apply(Update::SetPolicy(policy));
        let policy = self.state.policy(&id).expect("just set").clone();
        let scope = Reach::of(&policy);
        match &scope {
            Reach::Namespaces(namespaces) => {
                for namespace in namespaces {
                    self.policies_of.entry(namespace.clone()).or_default().insert(id.clone());
                }
            }
            Reach::Cluster => _ = self.cluster_policies.insert(id.clone()),
        }
        if let Some(active) = self.active.get_mut(&id) {
            let old = std::mem::replace(&mut active.policy, policy.clone());
            // First the new sets, so that those which both speak of stay.
            for key in sets_of(&policy) {
                self.members.want(&key, &self.state);
            }
            for key in sets_of(&old) {
                self.members.unwant(&key);
            }
            self.changes.policies.insert(id.clone());
        }
        self.retarget(&policy.id, &scope.and(before));
    }

    /// Takes a policy out of the index by subject; what it reached.
    fn forget_subject(&mut self, id: &PolicyId) -> Option<Reach> {
        let reach = Reach::of(self.state.policy(id)?);
        match &reach {
            Reach::Namespaces(namespaces) => {
                for namespace in namespaces {
                    remove_from(&mut self.policies_of, namespace, id);
                }
            }
            Reach::Cluster => _ = self.cluster_policies.remove(id),
        }
        Some(reach)
    }

    fn remove_policy(&mut self, id: &PolicyId) {
        let Some(reach) = self.forget_subject(id) else { return };
        self.state.apply(Update::RemovePolicy(id.clone()));
        self.retarget(id, &reach);
    }

    /// Decides anew, for this policy alone, which endpoints it governs.
    fn retarget(&mut self, id: &PolicyId, reach: &Reach) {
        let policy = self.state.policy(id).cloned();
        let candidates: Vec<EndpointId> = match reach {
            Reach::Namespaces(namespaces) => {
                let here = |namespace| self.by_namespace.get(namespace).into_iter().flatten().cloned();
                namespaces.iter().flat_map(here).collect()
            }
            Reach::Cluster => self.endpoints.keys().cloned().collect(),
        };
        for endpoint in candidates {
            let mut resolved = self.endpoints[&endpoint].clone();
            let Some(labels) = self.labels_of(&endpoint) else { continue };
            let Access::Open { ingress, egress } = &mut resolved.access else { continue };
            let governs = policy.as_ref().filter(|p| governs(&self.state, p, &resolved.pod, &labels));
            for (list, direction) in [(ingress, Direction::Ingress), (egress, Direction::Egress)] {
                list.retain(|other| other.id != *id);
                if let Some(policy) = governs.filter(|p| p.rules(direction).is_some()) {
                    let governing = Governing::new(policy);
                    let at = list.partition_point(|other| *other < governing);
                    list.insert(at, governing);
                }
            }
            self.replace(&endpoint, Some(resolved));
        }
    }

    /// The labels by which policies select an endpoint; `None`: its pod is not known or is never policed.
    fn labels_of(&self, endpoint: &EndpointId) -> Option<Labels> {
        match self.state.owner(self.state.endpoint(endpoint)?) {
            Owner::Pod(pod) if pod.host_network => None,
            Owner::Pod(pod) => Some(self.state.labels_of(pod)),
            Owner::Anonymous(_) => Some(Labels::default()),
            Owner::Unknown => None,
        }
    }

    /// Decides anew what holds for an endpoint.
    fn refresh(&mut self, id: &EndpointId) {
        let resolved = self.state.endpoint(id).map(|endpoint| {
            let pod = claimed_pod(endpoint);
            let shared = self.by_interface.get(&endpoint.interface).is_some_and(|ids| ids.len() > 1);
            let access = match closed(&self.state, endpoint, &self.prefix, shared) {
                Some(closed) => Access::Closed(closed),
                None => self.open(id, &pod),
            };
            let (interface, addresses) = (endpoint.interface.clone(), endpoint.addresses.clone());
            Resolved { interface, addresses, pod, access }
        });
        self.set_local(id, resolved.as_ref());
        self.replace(id, resolved);
    }

    fn open(&self, id: &EndpointId, pod: &PodId) -> Access {
        let (mut ingress, mut egress) = (Vec::new(), Vec::new());
        if let Some(labels) = self.labels_of(id) {
            let local = self.policies_of.get(&pod.namespace).into_iter().flatten();
            for policy in local.chain(&self.cluster_policies).filter_map(|id| self.state.policy(id)) {
                if !governs(&self.state, policy, pod, &labels) {
                    continue;
                }
                if policy.ingress.is_some() {
                    ingress.push(Governing::new(policy));
                }
                if policy.egress.is_some() {
                    egress.push(Governing::new(policy));
                }
            }
        }
        ingress.sort();
        egress.sort();
        Access::Open { ingress, egress }
    }

    fn set_local(&mut self, id: &EndpointId, resolved: Option<&Resolved>) {
        let local = resolved.filter(|r| matches!(r.access, Access::Open { .. })).map(|resolved| {
            let ports = match self.state.endpoint(id).map(|endpoint| self.state.owner(endpoint)) {
                Some(Owner::Pod(pod)) => pod.ports.clone(),
                Some(Owner::Anonymous(_) | Owner::Unknown) | None => Arc::<[NamedPort]>::default(),
            };
            (resolved.addresses.clone(), ports)
        });
        self.members.set_local(id, local);
    }

    /// Puts a new resolution in place of the old one and moves the policies' users along.
    fn replace(&mut self, id: &EndpointId, new: Option<Resolved>) {
        let old = self.endpoints.get(id).cloned();
        if old == new {
            return;
        }
        let before = policies_of(old.as_ref());
        let after = policies_of(new.as_ref());
        for policy in after.difference(&before) {
            self.use_policy(policy);
        }
        for policy in before.difference(&after) {
            self.disuse_policy(policy);
        }
        let first = self.changes.endpoints.entry(id.clone());
        first.or_insert_with(|| old.map(|old| old.interface));
        match new {
            Some(new) => _ = self.endpoints.insert(id.clone(), new),
            None => _ = self.endpoints.remove(id),
        }
    }

    fn use_policy(&mut self, id: &PolicyId) {
        if let Some(active) = self.active.get_mut(id) {
            active.users += 1;
            return;
        }
        let policy = self.state.policy(id).expect("only known policies govern").clone();
        for key in sets_of(&policy) {
            self.members.want(&key, &self.state);
        }
        self.active.insert(id.clone(), Active { policy, users: 1 });
        self.changes.policies.insert(id.clone());
    }

    fn disuse_policy(&mut self, id: &PolicyId) {
        let active = self.active.get_mut(id).expect("a policy with users is active");
        active.users -= 1;
        if active.users > 0 {
            return;
        }
        let active = self.active.remove(id).expect("just looked at");
        for key in sets_of(&active.policy) {
            self.members.unwant(&key);
        }
        self.changes.policies.insert(id.clone());
    }
}

/// The endpoint whose chains an interface gets: of several that name it, all closed, the first.
pub fn dispatchable_on<'a>(calc: &'a Calc, interface: &'a str) -> Option<&'a Resolved> {
    calc.endpoints_on(interface)
        .next()
        .filter(|resolved| resolved.access != Access::Closed(Closed::BadInterface))
}

/// The same as [`Calc::snapshot`] after any updates that led to this state, by plain loops.
pub fn from_scratch(state: &State, prefix: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for endpoint in state.endpoints() {
        let shared = state.endpoints().filter(|other| other.interface == endpoint.interface).count() > 1;
        let (pod, labels) = match state.owner(endpoint) {
            Owner::Pod(pod) => (pod.id.clone(), (!pod.host_network).then(|| state.labels_of(pod))),
            Owner::Anonymous(id) => (id, Some(Labels::default())),
            Owner::Unknown => (claimed_pod(endpoint), None),
        };
        let access = match closed(state, endpoint, prefix, shared) {
            Some(closed) => Access::Closed(closed),
            None => {
                let list = |direction| {
                    let mut list: Vec<Governing> = state
                        .policies()
                        .filter(|p| p.rules(direction).is_some())
                        .filter(|p| labels.as_ref().is_some_and(|labels| governs(state, p, &pod, labels)))
                        .map(|p| Governing::new(p))
                        .collect();
                    list.sort();
                    list
                };
                Access::Open { ingress: list(Direction::Ingress), egress: list(Direction::Egress) }
            }
        };
        let (interface, addresses) = (endpoint.interface.clone(), endpoint.addresses.clone());
        snapshot.endpoints.insert(endpoint.id.clone(), Resolved { interface, addresses, pod, access });
    }
    for resolved in snapshot.endpoints.values() {
        for id in policies_of(Some(resolved)) {
            let policy = state.policy(&id).expect("only known policies govern");
            snapshot.policies.insert(id, policy.clone());
        }
    }
    let keys: BTreeSet<SetKey> = snapshot.policies.values().flat_map(|policy| sets_of(policy)).collect();
    for key in keys {
        let members = members_of(&key, state, &snapshot);
        snapshot.sets.insert(key, members);
    }
    snapshot
}

fn members_of(key: &SetKey, state: &State, snapshot: &Snapshot) -> BTreeSet<Member> {
    match key {
        SetKey::Nets(nets) => nets.iter().map(|net| Member::Net(*net)).collect(),
        SetKey::Entities(selector) => state
            .workloads()
            .filter(|w| state.selects(selector, &w.id.namespace, &w.labels))
            .flat_map(|w| {
                let own: Vec<IpNetwork> = w.addresses.iter().map(|ip| IpNetwork::from(*ip)).collect();
                own.into_iter().chain(w.nets.to_vec())
            })
            .map(Member::Net)
            .collect(),
        SetKey::Pods(selector) => state
            .workloads()
            .filter(|w| state.selects(selector, &w.id.namespace, &w.labels))
            .flat_map(|w| w.addresses)
            .map(Member::Ip)
            .collect(),
        SetKey::Ports(selector, protocol, name) => state
            .workloads()
            .filter(|w| state.selects(selector, &w.id.namespace, &w.labels))
            .flat_map(|w| ports_of(&w.addresses, &w.ports, *protocol, name))
            .collect(),
        SetKey::LocalPorts(protocol, name) => state
            .endpoints()
            .filter(|endpoint| matches!(snapshot.endpoints[&endpoint.id].access, Access::Open { .. }))
            .filter_map(|endpoint| match state.owner(endpoint) {
                Owner::Pod(pod) => Some((endpoint, pod)),
                Owner::Anonymous(_) | Owner::Unknown => None,
            })
            .flat_map(|(endpoint, pod)| ports_of(&endpoint.addresses, &pod.ports, *protocol, name))
            .collect(),
    }
}

fn ports_of(
    addresses: &Addresses,
    ports: &[NamedPort],
    protocol: crate::model::Protocol,
    name: &Str,
) -> Vec<Member> {
    ports
        .iter()
        .filter(|p| p.protocol == protocol && p.name == *name)
        .flat_map(|p| addresses.iter().map(|ip| Member::IpPort(*ip, p.protocol, p.number)))
        .collect()
}

fn closed(state: &State, endpoint: &crate::model::Endpoint, prefix: &str, shared: bool) -> Option<Closed> {
    if !endpoint.interface.starts_with(prefix) || !is_interface_name(&endpoint.interface) {
        Some(Closed::BadInterface)
    } else if shared {
        Some(Closed::SharedInterface)
    } else if state.owner(endpoint) == Owner::Unknown {
        Some(Closed::UnknownPod)
    } else {
        None
    }
}

/// Does this policy choose this pod?
fn governs(state: &State, policy: &Policy, pod: &PodId, labels: &Labels) -> bool {
    policy.subject.iter().any(|subject| state.selects(subject, &pod.namespace, labels))
}

/// Where a policy's pods can be.
enum Reach {
    Namespaces(BTreeSet<Str>),
    Cluster,
}

impl Reach {
    fn of(policy: &Policy) -> Self {
        let named = policy.subject.iter().map(|subject| match &subject.namespaces {
            NamespaceScope::Named(namespace) => Some(namespace.clone()),
            NamespaceScope::Matching(_) => None,
        });
        named.collect::<Option<_>>().map_or(Reach::Cluster, Reach::Namespaces)
    }

    fn and(self, other: Option<Reach>) -> Self {
        match (self, other) {
            (own, None) => own,
            (Reach::Namespaces(mut own), Some(Reach::Namespaces(more))) => {
                own.extend(more);
                Reach::Namespaces(own)
            }
            (Reach::Cluster, _) | (_, Some(Reach::Cluster)) => Reach::Cluster,
        }
    }
}

fn policies_of(resolved: Option<&Resolved>) -> BTreeSet<PolicyId> {
    Direction::ALL
        .into_iter()
        .flat_map(|direction| resolved.map(|r| r.access.policies(direction)).unwrap_or_default())
        .map(|governing| governing.id.clone())
        .collect()
}

fn remove_from<K: Ord + Clone, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}
