//! The objects that a source delivers, as slim values of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use manx_bgp::types::Asn;

use manx_policy::model::{Entity, Labels, Namespace, Pod, PodId, Policy, PolicyKind};

use crate::config::{BgpConfiguration, BgpFilter, BgpPeer, NetworkConfiguration, NodeAnnotations};

/// Kinds of objects, in the order in which a batch delivers them: what others refer to comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `manx.dev` NetworkConfiguration.
    NetworkConfiguration,
    /// `manx.dev` BGPConfiguration.
    BgpConfiguration,
    /// `manx.dev` BGPFilter.
    BgpFilter,
    /// `projectcalico.org` BGPConfiguration.
    CalicoBgpConfiguration,
    /// `projectcalico.org` BGPFilter.
    CalicoBgpFilter,
    /// Secret.
    Secret,
    /// Node.
    Node,
    /// `manx.dev` BGPPeer.
    BgpPeer,
    /// `projectcalico.org` BGPPeer.
    CalicoBgpPeer,
    /// Namespace.
    Namespace,
    /// Pod.
    Pod,
    /// `networking.k8s.io` NetworkPolicy.
    NetworkPolicy,
    /// `policy.networking.k8s.io` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// `projectcalico.org` NetworkPolicy.
    CalicoNetworkPolicy,
    /// `projectcalico.org` GlobalNetworkPolicy.
    CalicoGlobalNetworkPolicy,
    /// `projectcalico.org` NetworkSet.
    NetworkSet,
    /// `projectcalico.org` GlobalNetworkSet.
    GlobalNetworkSet,
    /// ServiceAccount.
    ServiceAccount,
    /// Service.
    Service,
    /// `discovery.k8s.io` EndpointSlice.
    EndpointSlice,
}

impl Kind {
    /// As it stands in a manifest's `kind`, with a word before it where two groups have one of that name.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::NetworkConfiguration => "NetworkConfiguration",
            Kind::BgpConfiguration => "BGPConfiguration",
            Kind::BgpFilter => "BGPFilter",
            Kind::CalicoBgpConfiguration => "Calico BGPConfiguration",
            Kind::CalicoBgpFilter => "Calico BGPFilter",
            Kind::CalicoBgpPeer => "Calico BGPPeer",
            Kind::Secret => "Secret",
            Kind::Node => "Node",
            Kind::BgpPeer => "BGPPeer",
            Kind::Namespace => "Namespace",
            Kind::Pod => "Pod",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Kind::CalicoNetworkPolicy => "Calico NetworkPolicy",
            Kind::CalicoGlobalNetworkPolicy => "Calico GlobalNetworkPolicy",
            Kind::NetworkSet => "NetworkSet",
            Kind::GlobalNetworkSet => "GlobalNetworkSet",
            Kind::ServiceAccount => "ServiceAccount",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
        }
    }

    /// Whether objects of this kind say who may speak to whom.
    pub fn is_policy(self) -> bool {
        matches!(
            self,
            Kind::NetworkPolicy
                | Kind::ClusterNetworkPolicy
                | Kind::CalicoNetworkPolicy
                | Kind::CalicoGlobalNetworkPolicy
        )
    }

    /// Whether objects of this kind live in a namespace.
    pub fn namespaced(self) -> bool {
        match self {
            Kind::Secret
            | Kind::Pod
            | Kind::NetworkPolicy
            | Kind::CalicoNetworkPolicy
            | Kind::NetworkSet
            | Kind::ServiceAccount
            | Kind::Service
            | Kind::EndpointSlice => true,
            Kind::NetworkConfiguration
            | Kind::BgpConfiguration
            | Kind::BgpFilter
            | Kind::CalicoBgpConfiguration
            | Kind::CalicoBgpFilter
            | Kind::CalicoBgpPeer
            | Kind::Node
            | Kind::BgpPeer
            | Kind::ClusterNetworkPolicy
            | Kind::CalicoGlobalNetworkPolicy
            | Kind::GlobalNetworkSet
            | Kind::Namespace => false,
        }
    }
}

/// What makes two objects the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds without one.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind.as_str(), self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind.as_str(), self.name),
        }
    }
}

/// An object of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A node, this one or another.
    Node(Node),
    /// A namespace.
    Namespace(Namespace),
    /// A pod, on this node or on another.
    Pod(Pod),
    /// A policy of any kind. What could not be understood of it is in its `problems` and opens nothing.
    Policy(Policy),
    /// One of Calico's sets of networks.
    NetworkSet(Entity),
    /// A ServiceAccount with its labels.
    ServiceAccount(PodId, Labels),
    /// Passwords of BGP peers.
    Secret(Secret),
    /// A Service.
    Service(Service),
    /// Where a Service's endpoints are.
    EndpointSlice(EndpointSlice),
    /// Cluster-wide BGP settings.
    BgpConfiguration(BgpConfiguration),
    /// A BGP peer of some nodes.
    BgpPeer(Box<BgpPeer>),
    /// A route filter.
    BgpFilter(BgpFilter),
    /// Cluster-wide network settings.
    NetworkConfiguration(NetworkConfiguration),
    /// What another network's object says about BGP.
    Foreign(Foreign),
}

impl Object {
    /// What makes it this object.
    pub fn key(&self) -> ObjectKey {
        let cluster = |kind, name: &str| ObjectKey { kind, namespace: String::new(), name: name.to_owned() };
        let within = |kind, namespace: &str, name: &str| ObjectKey {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        match self {
            Object::Node(o) => cluster(Kind::Node, &o.name),
            Object::Namespace(o) => cluster(Kind::Namespace, &o.name),
            Object::Pod(o) => within(Kind::Pod, &o.id.namespace, &o.id.name),
            Object::Policy(o) => {
                let kind = match o.id.kind {
                    PolicyKind::NetworkPolicy => Kind::NetworkPolicy,
                    PolicyKind::ClusterNetworkPolicy => Kind::ClusterNetworkPolicy,
                    PolicyKind::CalicoNetworkPolicy => Kind::CalicoNetworkPolicy,
                    PolicyKind::CalicoGlobalNetworkPolicy => Kind::CalicoGlobalNetworkPolicy,
                };
                within(kind, o.id.namespace.as_deref().unwrap_or_default(), &o.id.name)
            }
            Object::NetworkSet(o) => match o.id.namespace.as_ref() {
                Entity::GLOBAL => cluster(Kind::GlobalNetworkSet, o.set_name()),
                namespace => within(Kind::NetworkSet, namespace, o.set_name()),
            },
            Object::ServiceAccount(id, _) => within(Kind::ServiceAccount, &id.namespace, &id.name),
            Object::Secret(o) => within(Kind::Secret, &o.namespace, &o.name),
            Object::Service(o) => within(Kind::Service, &o.namespace, &o.name),
            Object::EndpointSlice(o) => within(Kind::EndpointSlice, &o.namespace, &o.name),
            Object::BgpConfiguration(_) => cluster(Kind::BgpConfiguration, crate::config::SINGLETON),
            Object::BgpPeer(o) => cluster(Kind::BgpPeer, &o.name),
            Object::BgpFilter(o) => cluster(Kind::BgpFilter, &o.name),
            Object::NetworkConfiguration(_) => cluster(Kind::NetworkConfiguration, crate::config::SINGLETON),
            Object::Foreign(o) => cluster(o.kind, &o.name),
        }
    }
}

/// An object of Calico's, in our words.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreign {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// It is for the node of this name alone.
    pub node: Option<String>,
    /// The AS number that it names; what it leaves out, others may say.
    pub asn: Option<Asn>,
    /// What it says; nothing where it cannot be taken over.
    pub says: Vec<Object>,
}

/// What kube-router's annotations of a Node say, in our words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeRouter {
    /// `kube-router.io/node.asn`.
    pub asn: Option<Asn>,
    /// `kube-router.io/rr.server`: it reflects, with this cluster id.
    pub cluster_id: Option<Ipv4Addr>,
    /// Peers of this node.
    pub peers: Vec<BgpPeer>,
    /// What of it is not done.
    pub remarks: Vec<String>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What its `manx.dev/` annotations say.
    pub annotations: NodeAnnotations,
    /// What its annotations of kube-router say, where it has any.
    pub kube_router: Option<Box<KubeRouter>>,
    /// `spec.podCIDRs` (or `spec.podCIDR`), host bits cleared.
    pub pod_cidrs: Vec<IpNetwork>,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP, in order.
    pub external_ips: Vec<IpAddr>,
    /// `spec.unschedulable`: cordoned.
    pub unschedulable: bool,
}

/// A Secret. Its values never show themselves.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `data` and, over it, `stringData`.
    pub data: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("namespace", &self.namespace)
            .field("name", &self.name)
            .field("keys", &self.data.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// What a Service asks of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceKind {
    /// A cluster address, or none (headless).
    ClusterIp,
    /// And a port on every node.
    NodePort,
    /// And an address from outside.
    LoadBalancer,
    /// A name in DNS only.
    ExternalName,
}

/// A Service, as far as its addresses can be advertised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its type.
    pub kind: ServiceKind,
    /// `spec.clusterIPs` without `None`.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: BTreeSet<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`.
    pub load_balancer_ips: BTreeSet<IpAddr>,
    /// `externalTrafficPolicy: Local`: only nodes with an endpoint take traffic from outside.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
}

/// Where some endpoints of a Service are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of the Service, from the label `kubernetes.io/service-name`.
    pub service: Option<String>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses; names of `addressType: FQDN` are left out.
    pub addresses: Vec<IpAddr>,
    /// The node it is on.
    pub node: Option<String>,
    /// Takes new connections. Kubernetes: unknown counts as ready.
    pub ready: bool,
    /// Serves, also while it terminates; unknown: as `ready`.
    pub serving: bool,
    /// Is shutting down.
    pub terminating: bool,
}
