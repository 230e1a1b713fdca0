//! The cluster as policy sees it: slim, validated, shared by reference.
//!
//! Nothing here knows Kubernetes' wire shapes (that is `k8s`) nor how a rule is spelled for the kernel. A [`Policy`] is the
//! one shape for every kind: a NetworkPolicy is a policy of the tier of that name whose rules all accept; Calico's kinds
//! stand before and after it in the same tier; the tiers around it (Admin, Baseline) hold ClusterNetworkPolicies.

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

/// The label under which a pod's service account is found, by its name: no label of a real pod can be called so.
pub const SERVICE_ACCOUNT_LABEL: &str = "=serviceaccount";

impl Pod {
    /// The service account that it runs as, if its object says so.
    pub fn service_account(&self) -> Option<&Str> {
        self.labels.get(SERVICE_ACCOUNT_LABEL)
    }
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
    /// K8S_POD_NAMESPACE. `None`: the runtime is not Kubernetes' (podman gives a name alone); the attachment has the labels
    /// of the Pod of that name in `default`, if there is one.
    pub namespace: Option<String>,
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
    /// NetworkPolicies, and Calico's policies around them: final for the pods that one of them selects, but for what a rule
    /// passes on.
    NetworkPolicy,
    /// ClusterNetworkPolicy, tier Baseline: what holds where nothing else spoke.
    Baseline,
}

/// Where in its tier a policy is asked: lower goes first. Policies of one order go by name, for the definitions leave it open
/// and the answer must not depend on the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(i64);

impl Order {
    /// Of all NetworkPolicies, among which order means nothing: Calico's with less go before them, those with as much or
    /// more after.
    pub const NETWORK_POLICY: Order = Order(0x408f_4000_0000_0000);

    /// From a number; not-a-number goes last.
    pub fn new(order: f64) -> Self {
        let order = if order.is_nan() { f64::INFINITY } else { order + 0.0 };
        let bits = order.to_bits().cast_signed();
        // IEEE 754 numbers compare as their bits do, those below zero the other way round.
        Order(if bits < 0 { bits ^ i64::MAX } else { bits })
    }

    /// After everything that has a number.
    pub fn last() -> Self {
        Order::new(f64::INFINITY)
    }

    /// The number again.
    pub fn get(self) -> f64 {
        f64::from_bits((if self.0 < 0 { self.0 ^ i64::MAX } else { self.0 }).cast_unsigned())
    }
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
    /// Write the packet to the log and go on with the next rule.
    Log,
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

/// The kinds of policy objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum PolicyKind {
    /// networking.k8s.io/v1.
    NetworkPolicy,
    /// policy.networking.k8s.io/v1alpha2.
    ClusterNetworkPolicy,
    /// projectcalico.org/v3 NetworkPolicy.
    CalicoNetworkPolicy,
    /// projectcalico.org/v3 GlobalNetworkPolicy.
    CalicoGlobalNetworkPolicy,
}

impl PolicyKind {
    /// As comments and messages name it.
    pub fn as_str(self) -> &'static str {
        match self {
            PolicyKind::NetworkPolicy => "NetworkPolicy",
            PolicyKind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            PolicyKind::CalicoNetworkPolicy => "Calico NetworkPolicy",
            PolicyKind::CalicoGlobalNetworkPolicy => "Calico GlobalNetworkPolicy",
        }
    }
}

/// Which policy: unique over all kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    /// Kind of object.
    pub kind: PolicyKind,
    /// `None` for cluster-scoped kinds.
    pub namespace: Option<Str>,
    /// Name.
    pub name: Str,
}

impl PolicyId {
    /// A NetworkPolicy's.
    pub fn network_policy(namespace: &str, name: &str) -> Self {
        PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some(namespace.into()), name: name.into() }
    }
}

/// A NetworkPolicy as `NAMESPACE/NAME`; the others with their kind before it.
impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            PolicyKind::NetworkPolicy => "",
            PolicyKind::ClusterNetworkPolicy => "ClusterNetworkPolicy:",
            PolicyKind::CalicoNetworkPolicy | PolicyKind::CalicoGlobalNetworkPolicy => "Calico:",
        })?;
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
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
    /// Nodes by their labels: every address in their status.
    Nodes(Selector),
    /// Pods, and Calico's NetworkSets: what a Calico selector means.
    Entities(PodSelector),
}

/// Something that is no pod and that peers can select: a node, or one of Calico's sets of networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entity {
    /// See [`Entity::node`] and [`Entity::network_set`].
    pub id: PodId,
    /// Labels.
    pub labels: Labels,
    /// Addresses of its own.
    pub addresses: Addresses,
    /// Networks that it stands for; none a /0.
    pub nets: Arc<[IpNetwork]>,
}

impl Entity {
    /// The namespace in which nodes are entered: no name of a real one.
    pub const NODES: &'static str = "=nodes";
    /// The namespace of what belongs to none: GlobalNetworkSets.
    pub const GLOBAL: &'static str = "";

    /// How a node is entered.
    pub fn node(name: &str) -> PodId {
        PodId::new(Entity::NODES, name)
    }

    /// How a NetworkSet is entered, or a GlobalNetworkSet, which has no namespace. No pod is named so.
    pub fn network_set(namespace: Option<&str>, name: &str) -> PodId {
        PodId::new(namespace.unwrap_or(Entity::GLOBAL), &format!("=set/{name}"))
    }

    /// The name of a set of networks as its object has it.
    pub fn set_name(&self) -> &str {
        self.id.name.strip_prefix("=set/").unwrap_or(&self.id.name)
    }

    /// Can this be the name of a real namespace? Selectors of namespaces choose only among those.
    pub fn is_namespace(name: &str) -> bool {
        !name.is_empty() && name != Entity::NODES
    }
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

/// Which side of a flow, seen from the pod that is policed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// The policed pod.
    Own,
    /// Whom it speaks to.
    Other,
}

/// Ports from first to last, both included.
pub type PortRange = (u16, u16);

/// What Calico's rules can ask beyond peers and destination ports. All of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conditions {
    /// Only this family.
    pub family: Option<Family>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Not this IP protocol number.
    pub not_protocol: Option<u8>,
    /// ICMP type and code; of which ICMP, `protocol` says.
    pub icmp: Option<IcmpMatch>,
    /// Not this type (and code), but ICMP all the same.
    pub not_icmp: Option<IcmpMatch>,
    /// Each list: the address of that side is one of these.
    pub any_of: Vec<(Which, Vec<Peer>)>,
    /// The address of that side is not this.
    pub none_of: Vec<(Which, Peer)>,
    /// The protocol is this, and the source port in one of these.
    pub source_ports: Option<(Protocol, Vec<PortRange>)>,
    /// The protocol is this, and the source port in none of these.
    pub not_source_ports: Option<(Protocol, Vec<PortRange>)>,
    /// The destination port is none of these, which are all of one protocol, and the protocol is that.
    pub not_ports: Vec<Port>,
}

/// An ICMP type, and a code or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IcmpMatch {
    /// Type.
    pub kind: u8,
    /// Code; `None`: any.
    pub code: Option<u8>,
}

/// One rule of a policy. Each list is an OR; the lists and the further conditions are joined by AND.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// `None`: everyone.
    pub peers: Option<Vec<Peer>>,
    /// `None`: every protocol and port.
    pub ports: Option<Vec<Port>>,
    /// What else must hold.
    pub more: Option<Box<Conditions>>,
    /// The rule's own name, where its kind has one.
    pub name: Option<Str>,
    /// It could not be understood: where it would accept, it matches nothing; where it would deny or pass, it denies everything.
    /// The reasons are in [`Policy::problems`].
    pub refused: bool,
}

impl Rule {
    /// What it does where it matches: a refused Pass denies.
    pub fn effect(&self) -> Action {
        match self.action {
            Action::Pass if self.refused => Action::Deny,
            action => action,
        }
    }

    /// Of a refused rule, what it matches, all or nothing; `None`: the rule was understood.
    pub fn refused_matches(&self) -> Option<bool> {
        self.refused.then_some(match self.action {
            Action::Accept | Action::Log => false,
            Action::Deny | Action::Pass => true,
        })
    }
}

/// A policy of any kind, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which.
    pub id: PolicyId,
    /// In which tier it is asked.
    pub tier: Tier,
    /// Where in that tier.
    pub order: Order,
    /// `metadata.generation`.
    pub generation: i64,
    /// Annotation `manx.dev/staged: "true"`: counted and reported, not enforced.
    pub staged: bool,
    /// Whom it governs: the pods that one of these selects.
    pub subject: Vec<PodSelector>,
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
    /// A node or a set of networks appeared or changed.
    SetEntity(Entity),
    /// A node or a set of networks went.
    RemoveEntity(PodId),
    /// The labels of a service account, which Calico's rules can ask for: namespace, name, labels. Without labels it went.
    SetServiceAccount(PodId, Labels),
}

impl Update {
    /// Is it about a policy, and not about whom policies speak of?
    pub fn is_of_policy(&self) -> bool {
        matches!(self, Update::SetPolicy(_) | Update::RemovePolicy(_))
    }
}
