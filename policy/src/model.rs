//! The cluster as policy sees it: slim, validated, shared by reference.
//!
//! Nothing here knows Kubernetes' wire shapes (that is `k8s.rs`) nor how a rule is spelled for the kernel. A [`Policy`] is the
//! one shape for every kind: a NetworkPolicy is a policy of the tier of that name whose rules all accept; the tiers around
//! it (Admin, Baseline) differ in priority and in the actions that their rules may carry.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::Serialize;
use smallvec::SmallVec;

use crate::selector::Selector;

/// Text that many objects share; [`crate::state::State`] interns it.
pub type Str = Arc<str>;

/// Addresses of one pod: one for each family as a rule.
pub type Addresses = SmallVec<[IpAddr; 2]>;

/// IPv4 or IPv6: each has its own tables and sets in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both, in the order in which they are worked on.
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// The length in bits of a full address: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Family::Ipv4 => 32,
            Family::Ipv6 => 128,
        }
    }
}

/// The transport protocols that Kubernetes names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, protocol number 6.
    Tcp,
    /// UDP, protocol number 17.
    Udp,
    /// SCTP, protocol number 132.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// Upper case, as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }

    /// Lower case, as iptables and ipset write it.
    pub fn lower(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the first packet of a flow carries, as far as policies look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payload {
    /// A protocol with ports.
    Ports {
        /// Which.
        protocol: Protocol,
        /// Source port.
        source: u16,
        /// Destination port.
        port: u16,
        /// For TCP: SYN without ACK, FIN and RST.
        syn: bool,
    },
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp {
        /// Which of the two.
        family: Family,
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
    },
    /// Any other protocol by number.
    Other(u8),
}

/// The source port of flows of which nobody has said one: an ephemeral port.
pub const SOME_PORT: u16 = 49_152;

impl Payload {
    /// The packet that opens a flow to a port, from [`SOME_PORT`].
    pub fn opening(protocol: Protocol, port: u16) -> Self {
        Payload::Ports { protocol, source: SOME_PORT, port, syn: protocol == Protocol::Tcp }
    }

    /// The IP protocol number.
    pub fn protocol(self) -> u8 {
        match self {
            Payload::Ports { protocol, .. } => protocol.number(),
            Payload::Icmp { family: Family::Ipv4, .. } => 1,
            Payload::Icmp { family: Family::Ipv6, .. } => 58,
            Payload::Other(protocol) => protocol,
        }
    }

    /// Protocol and destination port, where there are ports.
    pub fn destination_port(self) -> Option<(Protocol, u16)> {
        match self {
            Payload::Ports { protocol, port, .. } => Some((protocol, port)),
            Payload::Icmp { .. } | Payload::Other(_) => None,
        }
    }
}

/// Labels of a pod or a namespace: sorted by key, keys unique. Pods of one deployment share one allocation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Labels(Arc<[(Str, Str)]>);

impl Labels {
    /// Sorts by key; of a key given twice the last value stays.
    pub fn new(pairs: impl IntoIterator<Item = (Str, Str)>) -> Self {
        let map: std::collections::BTreeMap<Str, Str> = pairs.into_iter().collect();
        Labels(map.into_iter().collect())
    }

    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&Str> {
        self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|at| &self.0[at].1)
    }

    /// All pairs, sorted by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &(Str, Str)> {
        self.0.iter()
    }

    /// Does anyone else hold this very allocation?
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// No label at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Labels::new(pairs.into_iter().map(|(k, v)| (Str::from(k.as_ref()), Str::from(v.as_ref()))))
    }
}

/// Namespace and name of a pod: what a person calls it. The uid tells successive pods of one name apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// Namespace.
    pub namespace: Str,
    /// Name.
    pub name: Str,
}

impl PodId {
    /// From two texts.
    pub fn new(namespace: &str, name: &str) -> Self {
        PodId { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A named container port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name that policies use.
    pub name: Str,
    /// Part of the key: `dns`/UDP and `dns`/TCP are two ports.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub number: u16,
}

/// A pod as policy needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub id: PodId,
    /// `metadata.uid`.
    pub uid: Str,
    /// Annotation `kubernetes.io/config.mirror`: the uid under which the kubelet started this static pod.
    pub mirror_hash: Option<Str>,
    /// Labels.
    pub labels: Labels,
    /// `spec.nodeName`.
    pub node: Option<Str>,
    /// Shares its node's addresses: never in a set, never isolated.
    pub host_network: bool,
    /// Phase Succeeded or Failed: its address may already be another's.
    pub finished: bool,
    /// Being deleted; still owns its address until CNI DEL.
    pub terminating: bool,
    /// `status.podIPs`, every one.
    pub addresses: Addresses,
    /// Named ports of all containers, restartable init containers included; sorted.
    pub ports: Arc<[NamedPort]>,
}

/// A namespace. The label `kubernetes.io/metadata.name` is always there: the API server sets it, `k8s.rs` adds it where a
/// file leaves it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: Str,
    /// Labels.
    pub labels: Labels,
}

/// The label that every namespace carries with its own name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Which attachment: what CNI calls it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME, the name inside the pod.
    pub ifname: String,
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// Whose attachment it is, as the CNI arguments say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID. Where it is given, a pod of the same name and another uid is a stranger.
    pub uid: Option<String>,
}

/// A pod interface of this node, taken from its CNI attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Which attachment.
    pub id: EndpointId,
    /// The host's end of the veth pair, for example `manx0123456789a`; at most 15 bytes.
    pub interface: String,
    /// `None`: no pod arguments. It then counts as a workload of namespace `default` named like its container id.
    pub pod: Option<PodRef>,
    /// The addresses that IPAM gave it: the truth, before and after `Pod.status` says so.
    pub addresses: Addresses,
}

/// Evaluation order of policies. NetworkPolicies lie between the two tiers of cluster administrators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Tier {
    /// ClusterNetworkPolicy, tier Admin: before all NetworkPolicies.
    Admin,
    /// networking.k8s.io/v1 NetworkPolicy: final for the pods that it selects.
    NetworkPolicy,
    /// ClusterNetworkPolicy, tier Baseline: what holds where nothing else spoke.
    Baseline,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Action {
    /// Allow, finally.
    Accept,
    /// Drop, finally.
    Deny,
    /// Skip the rest of this tier. Not an accept.
    Pass,
}

/// Traffic direction as seen from the pod that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    /// Lower case, as in the field names of a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

/// Which policy: unique over all kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    /// Tier, and by it the kind of object.
    pub tier: Tier,
    /// `None` for cluster-scoped kinds.
    pub namespace: Option<Str>,
    /// Name.
    pub name: Str,
}

impl PolicyId {
    /// A NetworkPolicy's.
    pub fn network_policy(namespace: &str, name: &str) -> Self {
        PolicyId { tier: Tier::NetworkPolicy, namespace: Some(namespace.into()), name: name.into() }
    }
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.tier, &self.namespace) {
            (_, Some(namespace)) => write!(f, "{namespace}/{}", self.name),
            (tier, None) => write!(f, "{tier:?}:{}", self.name),
        }
    }
}

/// Which namespaces a peer or a subject speaks of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceScope {
    /// One, by name: the policy's own.
    Named(Str),
    /// Those whose labels match.
    Matching(Selector),
}

/// Pods by their namespace and their labels. Equal ones share one set in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodSelector {
    /// In which namespaces.
    pub namespaces: NamespaceScope,
    /// Which of their pods.
    pub pods: Selector,
}

impl PodSelector {
    /// Every pod of every namespace.
    pub fn everything() -> Self {
        PodSelector {
            namespaces: NamespaceScope::Matching(Selector::everything()),
            pods: Selector::everything(),
        }
    }
}

/// An address block with holes. Normalised: no host bits anywhere; each hole lies strictly inside the block; sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// The block.
    pub cidr: IpNetwork,
    /// The holes, of this block alone.
    pub except: Vec<IpNetwork>,
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods, by every address that they have.
    Pods(PodSelector),
    /// Addresses, whosever they are.
    Block(IpBlock),
}

/// One entry of a rule's ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// All ports of a protocol.
    All(Protocol),
    /// From first to last, both included.
    Range(Protocol, u16, u16),
    /// Resolved on the destination pod; resolves to nothing: matches nothing.
    Named(Protocol, Str),
}

/// One rule of a policy. Each list is an OR; the two lists are joined by AND.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// `None`: everyone.
    pub peers: Option<Vec<Peer>>,
    /// `None`: every protocol and port.
    pub ports: Option<Vec<Port>>,
    /// The rule's own name, where its kind has one.
    pub name: Option<Str>,
    /// It could not be understood: it opens nothing. The reasons are in [`Policy::problems`].
    pub refused: bool,
}

/// A policy of any kind, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which.
    pub id: PolicyId,
    /// Within a tier lower goes first; 0 for NetworkPolicies, which have no order.
    pub priority: i32,
    /// `metadata.generation`.
    pub generation: i64,
    /// Annotation `manx.dev/staged: "true"`: counted and reported, not enforced.
    pub staged: bool,
    /// Whom it governs.
    pub subject: PodSelector,
    /// `Some`: it speaks of ingress; a NetworkPolicy then isolates its pods in that direction, also with no rule at all.
    pub ingress: Option<Vec<Rule>>,
    /// The same for egress.
    pub egress: Option<Vec<Rule>>,
    /// What could not be understood, if anything.
    pub problems: Vec<Problem>,
}

impl Policy {
    /// Its rules in one direction; `None` where it does not speak of it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Something in an object that we had to refuse. What it would have opened stays closed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Problem {
    /// For example `NetworkPolicy default/web`.
    pub object: String,
    /// For example `spec.ingress[0].ports[1].endPort`.
    pub field: String,
    /// What is wrong, and what is done about it.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.reason)
    }
}

/// One change of the cluster. Setting an object replaces what was known of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// A pod appeared or changed.
    SetPod(Pod),
    /// A pod went. With a uid, only that very pod: a successor of the same name stays.
    RemovePod(PodId, Option<Str>),
    /// A namespace appeared or changed.
    SetNamespace(Namespace),
    /// A namespace went.
    RemoveNamespace(Str),
    /// A policy appeared or changed.
    SetPolicy(Policy),
    /// A policy went.
    RemovePolicy(PolicyId),
    /// An attachment of this node appeared or changed.
    SetEndpoint(Endpoint),
    /// An attachment of this node went.
    RemoveEndpoint(EndpointId),
}
