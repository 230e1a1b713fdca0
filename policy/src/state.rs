//! The cluster snapshot: what is known of pods, namespaces, policies and this node's attachments.
//!
//! Updates of different objects commute; the latest of one object counts. Decides nothing about policy, only who is who:
//! which pod an attachment belongs to, and which addresses a pod has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::model::NamespaceScope;
use crate::model::{
    Addresses, Endpoint, EndpointId, Entity, Labels, NamedPort, Namespace, Pod, PodId, PodSelector, Policy,
    PolicyId, Str, Update,
};

/// Namespace of attachments that came without one.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Who an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// This pod.
    Pod(&'a Pod),
    /// An attachment without a namespace for which no Pod object exists: a workload without labels.
    Anonymous(PodId),
    /// The pod that the attachment names is not known (yet), or a stranger bears its name: closed.
    Unknown,
}

/// Somebody with addresses and labels who can be a peer: a pod that counts, or an attachment without pod arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Namespace and name.
    pub id: PodId,
    /// Labels; none for an attachment without pod arguments.
    pub labels: Labels,
    /// Sorted; may be empty.
    pub addresses: Addresses,
    /// Named ports.
    pub ports: Arc<[NamedPort]>,
    /// Networks that it stands for: those of a NetworkSet.
    pub nets: Arc<[IpNetwork]>,
}

/// All that is known, by name. Ordered, so that nothing that is printed depends on the order of arrival.
#[derive(Clone, Debug, Default)]
pub struct State {
    pods: BTreeMap<PodId, Pod>,
    namespaces: BTreeMap<Str, Namespace>,
    policies: BTreeMap<PolicyId, Arc<Policy>>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    /// Which attachments name which pod.
    endpoints_of: FxHashMap<PodId, BTreeSet<EndpointId>>,
    entities: BTreeMap<PodId, Entity>,
    /// Those that have labels.
    service_accounts: BTreeMap<PodId, Labels>,
    pool: Pool,
}

impl State {
    /// Takes a change in.
    pub fn apply(&mut self, update: Update) {
        match update {
            Update::SetPod(pod) => {
                let pod = self.pool.pod(pod);
                self.pods.insert(pod.id.clone(), pod);
            }
            Update::RemovePod(id, uid) => {
                if self.pods.get(&id).is_some_and(|pod| uid.is_none_or(|uid| uid == pod.uid)) {
                    self.pods.remove(&id);
                }
            }
            Update::SetNamespace(namespace) => {
                let name = self.pool.text(&namespace.name);
                let labels = self.pool.labels(&namespace.labels);
                self.namespaces.insert(name.clone(), Namespace { name, labels });
            }
            Update::RemoveNamespace(name) => {
                self.namespaces.remove(&name);
            }
            Update::SetPolicy(policy) => {
                self.policies.insert(policy.id.clone(), Arc::new(policy));
            }
            Update::RemovePolicy(id) => {
                self.policies.remove(&id);
            }
            Update::SetEndpoint(endpoint) => {
                self.forget_endpoint(&endpoint.id);
                self.endpoints_of.entry(claimed_pod(&endpoint)).or_default().insert(endpoint.id.clone());
                self.endpoints.insert(endpoint.id.clone(), endpoint);
            }
            Update::RemoveEndpoint(id) => self.forget_endpoint(&id),
            Update::SetEntity(entity) => _ = self.entities.insert(entity.id.clone(), entity),
            Update::RemoveEntity(id) => _ = self.entities.remove(&id),
            Update::SetServiceAccount(id, labels) => match labels.is_empty() {
                true => _ = self.service_accounts.remove(&id),
                false => _ = self.service_accounts.insert(id, labels),
            },
        }
    }

    fn forget_endpoint(&mut self, id: &EndpointId) {
        let Some(endpoint) = self.endpoints.remove(id) else { return };
        let pod = claimed_pod(&endpoint);
        if let Some(ids) = self.endpoints_of.get_mut(&pod) {
            ids.remove(id);
            if ids.is_empty() {
                self.endpoints_of.remove(&pod);
            }
        }
    }

    /// What makes a state like this one.
    pub fn updates(&self) -> impl Iterator<Item = Update> + '_ {
        let namespaces = self.namespaces.values().cloned().map(Update::SetNamespace);
        let pods = self.pods.values().cloned().map(Update::SetPod);
        let entities = self.entities.values().cloned().map(Update::SetEntity);
        let accounts = self.service_accounts.iter();
        let accounts = accounts.map(|(id, labels)| Update::SetServiceAccount(id.clone(), labels.clone()));
        let endpoints = self.endpoints.values().cloned().map(Update::SetEndpoint);
        let policies = self.policies.values().map(|policy| Update::SetPolicy((**policy).clone()));
        namespaces.chain(accounts).chain(pods).chain(entities).chain(endpoints).chain(policies)
    }

    /// Every pod, finished and host-network ones included, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// One pod.
    pub fn pod(&self, id: &PodId) -> Option<&Pod> {
        self.pods.get(id)
    }

    /// One namespace.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// Every policy, staged ones included, by name.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// One policy.
    pub fn policy(&self, id: &PolicyId) -> Option<&Arc<Policy>> {
        self.policies.get(id)
    }

    /// The attachments of this node.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values()
    }

    /// One attachment.
    pub fn endpoint(&self, id: &EndpointId) -> Option<&Endpoint> {
        self.endpoints.get(id)
    }

    /// The attachments that name this pod, whether or not they are really its.
    pub fn endpoints_naming(&self, pod: &PodId) -> impl Iterator<Item = &Endpoint> {
        self.endpoints_of.get(pod).into_iter().flatten().filter_map(|id| self.endpoints.get(id))
    }

    /// A node or a set of networks.
    pub fn entity(&self, id: &PodId) -> Option<&Entity> {
        self.entities.get(id)
    }

    /// Every node and every set of networks.
    pub fn entities(&self) -> impl Iterator<Item = &Entity> {
        self.entities.values()
    }

    /// The pods that run as a service account.
    pub fn pods_of_account<'a>(&'a self, account: &'a PodId) -> impl Iterator<Item = &'a Pod> {
        let first = PodId { namespace: account.namespace.clone(), name: "".into() };
        let own = move |pod: &&Pod| pod.service_account() == Some(&account.name);
        let here = move |(id, _): &(&PodId, &Pod)| id.namespace == account.namespace;
        self.pods.range(first..).take_while(here).map(|(_, pod)| pod).filter(own)
    }

    /// The labels by which policies select a pod: its own, and those of its service account under names that no label of a
    /// pod has.
    pub fn labels_of(&self, pod: &Pod) -> Labels {
        let account = pod.service_account().and_then(|name| {
            let id = PodId { namespace: pod.id.namespace.clone(), name: name.clone() };
            self.service_accounts.get(&id)
        });
        let Some(account) = account else { return pod.labels.clone() };
        let account = account.iter().map(|(key, value)| (account_label(key), value.clone()));
        Labels::new(pod.labels.iter().cloned().chain(account))
    }

    /// Whose attachment is it? By uid where the attachment carries one: the pod's own, or for static pods the hash under
    /// which the kubelet started them. By name only where it carries none.
    pub fn owner(&self, endpoint: &Endpoint) -> Owner<'_> {
        let id = claimed_pod(endpoint);
        let pod = self.pods.get(&id);
        match (&endpoint.pod, pod) {
            (None, Some(pod)) => Owner::Pod(pod),
            (None, None) => Owner::Anonymous(id),
            (Some(claim), Some(pod)) => match &claim.uid {
                None => Owner::Pod(pod),
                Some(uid) if **uid == *pod.uid || pod.mirror_hash.as_deref() == Some(uid) => Owner::Pod(pod),
                Some(_) => Owner::Unknown,
            },
            (Some(claim), None) if claim.namespace.is_none() && claim.uid.is_none() => Owner::Anonymous(id),
            (Some(_), None) => Owner::Unknown,
        }
    }

    /// The one of this name as a peer. `None`: unknown, finished (its address may be another's already) or a host-network pod
    /// (its address is the node's).
    ///
    /// The addresses are those of its attachments on this node where it has any, else what its status says.
    pub fn workload(&self, id: &PodId) -> Option<Workload> {
        if let Some(entity) = self.entities.get(id) {
            let Entity { id, labels, mut addresses, nets } = entity.clone();
            addresses.sort();
            addresses.dedup();
            return Some(Workload { id, labels, addresses, ports: Arc::default(), nets });
        }
        let pod = self.pods.get(id);
        let mut addresses = Addresses::new();
        let mut anonymous = false;
        for endpoint in self.endpoints_naming(id) {
            match self.owner(endpoint) {
                Owner::Pod(_) => {}
                Owner::Anonymous(_) => anonymous = true,
                Owner::Unknown => continue,
            }
            addresses.extend(endpoint.addresses.iter().copied());
        }
        let (labels, ports) = match pod {
            Some(pod) if pod.finished || pod.host_network => return None,
            Some(pod) => {
                if addresses.is_empty() {
                    addresses.clone_from(&pod.addresses);
                }
                (self.labels_of(pod), pod.ports.clone())
            }
            None if anonymous => (Labels::default(), Arc::default()),
            None => return None,
        };
        addresses.sort();
        addresses.dedup();
        Some(Workload { id: id.clone(), labels, addresses, ports, nets: Arc::default() })
    }

    /// Everyone who can be a peer, by name: pods, attachments without a pod, nodes, sets of networks.
    pub fn workloads(&self) -> impl Iterator<Item = Workload> {
        let anonymous = self.endpoints_of.keys().filter(|id| !self.pods.contains_key(*id));
        let names: BTreeSet<&PodId> = self.pods.keys().chain(anonymous).chain(self.entities.keys()).collect();
        names.into_iter().filter_map(|id| self.workload(id))
    }

    /// Does the selector choose a workload of this namespace with these labels?
    pub fn selects(&self, selector: &PodSelector, namespace: &str, labels: &Labels) -> bool {
        self.selects_namespace(&selector.namespaces, namespace) && selector.pods.matches(labels)
    }

    /// Does the scope contain this namespace? One that is not known counts by its name alone.
    pub fn selects_namespace(&self, scope: &NamespaceScope, namespace: &str) -> bool {
        match scope {
            NamespaceScope::Named(name) => **name == *namespace,
            NamespaceScope::Matching(_) if !Entity::is_namespace(namespace) => false,
            NamespaceScope::Matching(selector) => match self.namespaces.get(namespace) {
                Some(known) => selector.matches(&known.labels),
                None => selector.matches_unknown_namespace(namespace),
            },
        }
    }
}

/// Under which name a label of its service account is found at a pod.
pub fn account_label(key: &str) -> Str {
    format!("=sa/{key}").into()
}

/// The pod that an attachment names.
pub fn claimed_pod(endpoint: &Endpoint) -> PodId {
    match &endpoint.pod {
        Some(claim) => {
            let namespace = claim.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
            PodId::new(namespace, &claim.name)
        }
        None => PodId::new(DEFAULT_NAMESPACE, &endpoint.id.container_id),
    }
}

/// Shares equal texts and label sets between objects. What nobody uses any more is let go when the pool has doubled.
#[derive(Clone, Debug, Default)]
struct Pool {
    texts: FxHashSet<Str>,
    labels: FxHashSet<Labels>,
    ports: FxHashSet<Arc<[NamedPort]>>,
    sweep_at: usize,
}

impl Pool {
    fn text(&mut self, text: &Str) -> Str {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        self.texts.insert(text.clone());
        text.clone()
    }

    fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.labels.get(labels) {
            return known.clone();
        }
        let shared =
            Labels::new(labels.iter().map(|(k, v)| (self.text(k), self.text(v))).collect::<Vec<_>>());
        self.labels.insert(shared.clone());
        shared
    }

    fn ports(&mut self, ports: &Arc<[NamedPort]>) -> Arc<[NamedPort]> {
        if let Some(known) = self.ports.get(ports) {
            return known.clone();
        }
        self.ports.insert(ports.clone());
        ports.clone()
    }

    fn pod(&mut self, pod: Pod) -> Pod {
        self.sweep();
        Pod {
            // Pod names are their own: sharing them would only fill the pool.
            id: PodId { namespace: self.text(&pod.id.namespace), name: pod.id.name },
            labels: self.labels(&pod.labels),
            node: pod.node.as_ref().map(|node| self.text(node)),
            ports: self.ports(&pod.ports),
            ..pod
        }
    }

    fn sweep(&mut self) {
        let size = self.texts.len() + self.labels.len() + self.ports.len();
        if size < self.sweep_at.max(1024) {
            return;
        }
        self.labels.retain(|labels| labels.is_shared());
        self.ports.retain(|ports| Arc::strong_count(ports) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.sweep_at = 2 * (self.texts.len() + self.labels.len() + self.ports.len());
    }
}
