//! From cluster objects to what this node should be doing: the speaker, its peers, the prefixes it originates, the
//! addresses that pods get.
//!
//! Pure. Objects come in one at a time and in any order; the intents depend on the objects that are there, never on
//! the order. Pods, namespaces and policies are only passed on: the policy engine keeps a state of its own.
//!
//! ```text
//! Update -> Desired -+-> bgp(local addresses)  -> BgpIntent
//!                    +-> node(uplink MTU)      -> NodeIntent
//!                    +-> egress_nat()          -> EgressIntent
//! Update -> policy::update                      -> manx_policy::Update
//! ```

mod addresses;
mod gateways;
mod peers;
pub mod policy;
mod precedence;
mod selection;
mod services;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;
use manx_bgp::speaker::{PeerConfig, PeerRange};
use manx_bgp::types::{Asn, Prefix, RouterId};
use manx_cni::node::AddressPool;
pub use selection::PeerObject;
use sha2::{Digest, Sha256};

use crate::api::bgp::PeerInfo;
use crate::config::{GracefulRestart, NetworkConfiguration};
use crate::source::{Kind, Node, Object, ObjectKey, Secret};
use crate::view::{Setting, StatusProblem};
use precedence::{HeardPeer, Words};

pub use addresses::EgressIntent;
pub use gateways::{Gateway, Gateways};
pub use precedence::Unheard;
pub use settings::of_peer;

/// MTU of pod interfaces while no uplink is known: what Ethernet carries.
const DEFAULT_MTU: u32 = 1500;

/// The cluster's objects, as far as routing and addresses depend on them.
#[derive(Debug)]
pub struct Desired {
    node_name: String,
    secrets_namespace: String,
    nodes: BTreeMap<String, Node>,
    words: Words,
    secrets: BTreeMap<String, Secret>,
    network: Option<NetworkConfiguration>,
    /// What holds without one.
    no_network: NetworkConfiguration,
    /// Addresses that pods of this node hold.
    attached: BTreeSet<IpAddr>,
    /// Routers that default routes of this node lead to.
    gateways: BTreeSet<Gateway>,
    services: services::Services,
}

/// What the speaker should be and do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BgpIntent {
    /// The speaker; `None`: the source holds no Node object of this node, so that there is nothing to say.
    pub speaker: Option<SpeakerIntent>,
    /// Its peers, by name.
    pub peers: BTreeMap<String, PeerIntent>,
    /// Ranges from which peers may come that nobody has named, by name of their object.
    pub ranges: BTreeMap<String, RangeIntent>,
    /// The BGPPeer objects that there are, those of other nodes too.
    pub objects: Vec<PeerObject>,
    /// Prefixes that this node originates, each backed by a blackhole route.
    pub originate: BTreeSet<Prefix>,
    /// Service addresses that this node takes traffic for. No route backs them: what of them exists is translated before a
    /// route is looked for, and a blackhole would keep the node itself from connecting to them.
    pub services: BTreeSet<Prefix>,
    /// Service ranges: what comes for an address in them and is not translated has nowhere to go.
    pub service_ranges: BTreeSet<Prefix>,
    /// How long peers have to find other ways when the node is drained.
    pub drain_delay: Duration,
    /// Where to listen.
    pub listen: BTreeSet<SocketAddr>,
    /// The node's own addresses: prefixes that cover one of them are not let in by default.
    pub addresses: Vec<IpAddr>,
    /// The InternalIPs of the Node object, whether the kernel has them or not.
    pub node_addresses: Vec<IpAddr>,
    /// Names of required BGPPeers that have nobody to name at the moment.
    pub absent: Vec<String>,
    /// What is in force of the speaker's settings, and where it comes from.
    pub settings: Vec<Setting>,
    /// Where each filter that there is comes from, by name.
    pub filters: BTreeMap<String, String>,
    /// What is said in vain, since a weightier object says it.
    pub unheard: Vec<Unheard>,
    /// What is wrong with the objects that this came from.
    pub problems: Vec<StatusProblem>,
}

impl BgpIntent {
    /// Whether connections are to be taken at `address`; the kernel chooses the port where 0 is asked for.
    pub fn listens_on(&self, address: SocketAddr) -> bool {
        self.listen.contains(&address) || self.listen.contains(&SocketAddr::new(address.ip(), 0))
    }
}

/// What the speaker itself should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeakerIntent {
    /// AS of this node.
    pub asn: Asn,
    /// BGP identifier.
    pub router_id: RouterId,
    /// Reflection cluster.
    pub cluster_id: Option<Ipv4Addr>,
    /// At most so many equal paths.
    pub max_paths: usize,
    /// Equal across neighbour ASes.
    pub as_path_relax: bool,
    /// Graceful restart, unless it is off.
    pub graceful_restart: Option<GracefulRestart>,
}

/// A peer and what the views say of its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerIntent {
    /// For the speaker.
    pub config: PeerConfig,
    /// For people.
    pub info: PeerInfo,
}

/// A range of peers and what the views say of their configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct RangeIntent {
    /// For the speaker.
    pub config: PeerRange,
    /// For people; readiness waits for none of them.
    pub info: PeerInfo,
}

/// What the CNI plugin should give to pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIntent {
    /// Ranges of this node's pod addresses.
    pub pod_cidrs: Vec<IpNetwork>,
    /// MTU of pod interfaces, bytes.
    pub mtu: u32,
    /// Ranges outside them from which a pod may ask for a fixed address.
    pub pools: Vec<AddressPool>,
}

impl Desired {
    /// Nothing known yet.
    pub fn new(node_name: impl Into<String>, secrets_namespace: impl Into<String>) -> Self {
        Desired {
            node_name: node_name.into(),
            secrets_namespace: secrets_namespace.into(),
            nodes: BTreeMap::new(),
            words: Words::default(),
            secrets: BTreeMap::new(),
            network: None,
            no_network: NetworkConfiguration::default(),
            attached: BTreeSet::new(),
            gateways: BTreeSet::new(),
            services: services::Services::default(),
        }
    }

    /// Takes in an object. Whether any intent depends on it: kinds that matter to others only are ignored, and those change most
    /// often by far.
    pub fn set(&mut self, object: &Object) -> bool {
        match object {
            Object::Node(o) => {
                let mut node = o.clone();
                // Of other nodes only their AS matters.
                if let Some(said) = node.kube_router.as_mut().filter(|_| o.name != self.node_name) {
                    (said.peers, said.remarks) = (Vec::new(), Vec::new());
                }
                self.nodes.insert(node.name.clone(), node);
            }
            Object::Secret(o) if o.namespace == self.secrets_namespace => {
                self.secrets.insert(o.name.clone(), o.clone());
            }
            Object::Service(o) => self.services.set_service(o),
            Object::EndpointSlice(o) => self.services.set_slice(&self.node_name, o),
            Object::NetworkConfiguration(o) => self.network = Some(o.clone()),
            Object::BgpConfiguration(_) | Object::BgpPeer(_) | Object::BgpFilter(_) | Object::Foreign(_) => {
                self.words.set(object);
            }
            Object::Secret(_)
            | Object::Namespace(_)
            | Object::Pod(_)
            | Object::Policy(_)
            | Object::NetworkSet(_)
            | Object::ServiceAccount(..) => return false,
        }
        true
    }

    /// Forgets an object. Whether any intent depends on it.
    pub fn remove(&mut self, key: &ObjectKey) -> bool {
        match key.kind {
            Kind::Node => drop(self.nodes.remove(&key.name)),
            Kind::Secret if key.namespace == self.secrets_namespace => drop(self.secrets.remove(&key.name)),
            Kind::Service => self.services.remove_service(&key.namespace, &key.name),
            Kind::EndpointSlice => self.services.remove_slice(&key.namespace, &key.name),
            Kind::NetworkConfiguration => self.network = None,
            Kind::BgpConfiguration
            | Kind::BgpPeer
            | Kind::BgpFilter
            | Kind::CalicoBgpConfiguration
            | Kind::CalicoBgpPeer
            | Kind::CalicoBgpFilter => self.words.remove(key.kind, &key.name),
            Kind::Secret
            | Kind::Namespace
            | Kind::Pod
            | Kind::NetworkPolicy
            | Kind::ClusterNetworkPolicy
            | Kind::CalicoNetworkPolicy
            | Kind::CalicoGlobalNetworkPolicy
            | Kind::NetworkSet
            | Kind::GlobalNetworkSet
            | Kind::ServiceAccount => return false,
        }
        true
    }

    /// Who the gateways of this node's default routes are.
    pub fn set_gateways(&mut self, gateways: BTreeSet<Gateway>) {
        self.gateways = gateways;
    }

    /// This node's object.
    pub fn this_node(&self) -> Option<&Node> {
        self.nodes.get(&self.node_name)
    }

    /// What the speaker should be, given the addresses with their subnets that the kernel has on this node's interfaces.
    pub fn bgp(&self, local: &[IpNetwork]) -> BgpIntent {
        let Some(node) = self.this_node() else {
            return BgpIntent { problems: vec![self.no_node()], ..BgpIntent::default() };
        };
        let heard = self.words.hear(node);
        let orphans = peers::without_gateway(self, &heard, node);
        let listen = node.internal_ips.iter().map(|ip| SocketAddr::new(*ip, heard.bgp.listen_port)).collect();
        let absent = orphans.iter().filter(|heard| heard.peer.required).map(|heard| heard.peer.name.clone());
        let remarks = node.kube_router.iter().flat_map(|said| &said.remarks);
        let not_done = remarks.map(|reason| StatusProblem {
            object: Some(format!("Node {}", node.name)),
            reason: reason.clone(),
            ..StatusProblem::default()
        });
        BgpIntent {
            speaker: Some(SpeakerIntent {
                asn: heard.asn(node).0,
                router_id: router_id_of(node),
                cluster_id: cluster_id_of(node),
                max_paths: heard.bgp.multipath.max_paths,
                as_path_relax: heard.bgp.multipath.as_path_relax,
                graceful_restart: heard.bgp.graceful_restart,
            }),
            peers: peers::peers(self, &heard, node, local),
            ranges: peers::ranges(self, &heard, node),
            objects: selection::objects(&heard, node),
            originate: self.originated(node),
            services: self.services.advertised(&heard.bgp.service_advertisement, node),
            service_ranges: heard.bgp.service_advertisement.all().collect(),
            drain_delay: heard.bgp.drain.delay,
            listen,
            addresses: local.iter().map(|net| net.ip()).collect(),
            node_addresses: node.internal_ips.clone(),
            absent: absent.collect(),
            settings: settings::of_bgp(&heard, node),
            filters: settings::filters(&heard),
            unheard: heard.unheard.clone(),
            problems: orphans.iter().map(|heard| no_gateway(heard)).chain(not_done).collect(),
        }
    }

    /// What is in force of the network's settings, and where it comes from.
    pub fn network_settings(&self, uplink_mtu: Option<u32>) -> Vec<Setting> {
        settings::of_network(self.network(), self.network.is_some(), uplink_mtu)
    }

    fn network(&self) -> &NetworkConfiguration {
        self.network.as_ref().unwrap_or(&self.no_network)
    }

    /// What pods get; `None`: this node has no pod CIDR (yet).
    pub fn node(&self, uplink_mtu: Option<u32>) -> Option<NodeIntent> {
        let node = self.this_node().filter(|n| !n.pod_cidrs.is_empty())?;
        let mtu = self.network().mtu.or(uplink_mtu).unwrap_or(DEFAULT_MTU);
        Some(NodeIntent { pod_cidrs: node.pod_cidrs.clone(), mtu, pools: self.pools() })
    }

    fn no_node(&self) -> StatusProblem {
        StatusProblem {
            object: Some(format!("Node {}", self.node_name)),
            reason: "there is no such object in the source: no pod CIDR, no AS, no address; add it, or mend --node-name"
                .to_owned(),
            ..StatusProblem::default()
        }
    }
}

fn no_gateway(heard: &HeardPeer<'_>) -> StatusProblem {
    let peer = heard.peer;
    let families: Vec<_> = peer.families.iter().map(ToString::to_string).collect();
    StatusProblem {
        object: Some(heard.object()),
        reason: format!(
            "spec.autoDiscover: this node has no default route ({}) with a gateway that is not a peer by another BGPPeer: there \
             is no session; add the route, or name the peer by peerIP or interface",
            families.join(", ")
        ),
        ..StatusProblem::default()
    }
}

/// The annotation, else the IPv4 InternalIP, else a hash of the node's name.
fn router_id_of(node: &Node) -> RouterId {
    let ipv4 = node.internal_ips.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => RouterId::new(*ip),
        IpAddr::V6(_) => None,
    });
    node.annotations.router_id.or(ipv4).unwrap_or_else(|| hashed_router_id(&node.name))
}

/// The annotation, else kube-router's.
fn cluster_id_of(node: &Node) -> Option<Ipv4Addr> {
    node.annotations.cluster_id.or_else(|| node.kube_router.as_ref().and_then(|said| said.cluster_id))
}

fn hashed_router_id(name: &str) -> RouterId {
    let hash = Sha256::digest(name.as_bytes());
    // The lowest bit is set, so that it is never 0 (RFC 6286).
    RouterId::new(Ipv4Addr::new(hash[0], hash[1], hash[2], hash[3] | 1)).expect("not zero")
}

#[cfg(test)]
mod precedence_tests;
#[cfg(test)]
mod tests;
