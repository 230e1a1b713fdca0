//! Who is heard about BGP: our own objects, then Calico's, then kube-router's annotations of this node.
//!
//! Objects are heard as a whole. A configuration of ours leaves nothing for Calico's to say; a peer of the same name, or for the
//! same address on this node, is taken from whoever weighs more, and the other one is named with its reason. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use manx_bgp::filter::Filter;
use manx_bgp::types::Asn;

use crate::config::{BgpConfiguration, BgpPeer, PeerTarget};
use crate::source::{Foreign, Kind, Node, Object};

/// Whose word it is, the weightiest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Voice {
    /// A `manx.dev` object.
    Ours,
    /// A `projectcalico.org` object.
    Calico,
    /// An annotation of kube-router on this node.
    KubeRouter,
}

impl Voice {
    /// The object that says it, such as `Calico BGPPeer tor-a`.
    pub(super) fn object(self, kind: &str, name: &str) -> String {
        match self {
            Voice::Ours => format!("{kind} {name}"),
            Voice::Calico => format!("Calico {kind} {name}"),
            Voice::KubeRouter => format!("annotations of kube-router ({name})"),
        }
    }
}

/// All that is said, by whomever.
#[derive(Debug, Default)]
pub(super) struct Words {
    configuration: Option<BgpConfiguration>,
    peers: BTreeMap<String, BgpPeer>,
    filters: BTreeMap<String, Arc<Filter>>,
    foreign: BTreeMap<(Kind, String), Foreign>,
    foreign_filters: BTreeMap<String, Arc<Filter>>,
    /// What holds where nobody says anything.
    silence: BgpConfiguration,
}

/// What is heard of it on one node.
#[derive(Debug)]
pub(super) struct Heard<'a> {
    pub(super) bgp: &'a BgpConfiguration,
    /// Who says that; `None`: nobody.
    pub(super) configured_by: Option<Voice>,
    /// The AS number of all nodes, where anybody names it.
    asn: Option<(Asn, Voice)>,
    /// Peers of every node, by name.
    pub(super) peers: Vec<HeardPeer<'a>>,
    /// Filters by name.
    pub(super) filters: BTreeMap<&'a str, (&'a Arc<Filter>, Voice)>,
    pub(super) unheard: Vec<Unheard>,
}

/// A peer that is heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeardPeer<'a> {
    pub(super) peer: &'a BgpPeer,
    pub(super) voice: Voice,
    /// It is for the node of this name alone.
    only: Option<&'a str>,
}

/// What is said in vain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unheard {
    /// Which object.
    pub object: String,
    /// Who is heard instead, and why.
    pub because: String,
}

impl fmt::Display for Unheard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.because)
    }
}

impl Words {
    /// Takes in an object; one of another kind changes nothing.
    pub(super) fn set(&mut self, object: &Object) {
        match object {
            Object::BgpConfiguration(o) => self.configuration = Some(o.clone()),
            Object::BgpPeer(o) => drop(self.peers.insert(o.name.clone(), (**o).clone())),
            Object::BgpFilter(o) => keep(&mut self.filters, &o.name, &o.filter),
            Object::Foreign(o) => {
                self.foreign.insert((o.kind, o.name.clone()), o.clone());
                self.filters_of_foreign();
            }
            _ => {}
        }
    }

    /// Forgets one.
    pub(super) fn remove(&mut self, kind: Kind, name: &str) {
        match kind {
            Kind::BgpConfiguration => self.configuration = None,
            Kind::BgpPeer => drop(self.peers.remove(name)),
            Kind::BgpFilter => drop(self.filters.remove(name)),
            Kind::CalicoBgpConfiguration | Kind::CalicoBgpFilter | Kind::CalicoBgpPeer => {
                self.foreign.remove(&(kind, name.to_owned()));
                self.filters_of_foreign();
            }
            _ => {}
        }
    }

    /// An equal filter keeps its identity, and with it its counters.
    fn filters_of_foreign(&mut self) {
        let mut filters = std::mem::take(&mut self.foreign_filters);
        let mut said = BTreeSet::new();
        for filter in self.foreign.values().flat_map(|foreign| &foreign.says) {
            if let Object::BgpFilter(filter) = filter {
                said.insert(filter.name.clone());
                keep(&mut filters, &filter.name, &filter.filter);
            }
        }
        filters.retain(|name, _| said.contains(name));
        self.foreign_filters = filters;
    }

    /// What is heard on `node`.
    pub(super) fn hear<'a>(&'a self, node: &'a Node) -> Heard<'a> {
        let mut unheard = Vec::new();
        let (bgp, configured_by, asn) = self.configuration(node, &mut unheard);
        let ours = self.filters.iter().map(|(name, filter)| (name.as_str(), (filter, Voice::Ours)));
        let mut filters: BTreeMap<_, _> = ours.collect();
        for (name, filter) in &self.foreign_filters {
            if filters.contains_key(name.as_str()) {
                unheard.push(Unheard {
                    object: Voice::Calico.object("BGPFilter", name),
                    because: format!("BGPFilter {name} of manx.dev is heard instead"),
                });
            } else {
                filters.insert(name, (filter, Voice::Calico));
            }
        }
        let peers = self.peers(node, &mut unheard);
        Heard { bgp, configured_by, asn, peers, filters, unheard }
    }

    fn configuration(
        &self,
        node: &Node,
        unheard: &mut Vec<Unheard>,
    ) -> (&BgpConfiguration, Option<Voice>, Option<(Asn, Voice)>) {
        let foreign = self.foreign.values().find_map(|foreign| match foreign.says.first() {
            Some(Object::BgpConfiguration(said)) => Some((said, foreign.asn)),
            _ => None,
        });
        let found = match (&self.configuration, foreign) {
            (Some(ours), foreign) => {
                if foreign.is_some() {
                    unheard.push(Unheard {
                        object: Voice::Calico.object("BGPConfiguration", "default"),
                        because: "BGPConfiguration default of manx.dev is heard instead".to_owned(),
                    });
                }
                (ours, Some(Voice::Ours), Some((ours.asn, Voice::Ours)))
            }
            (None, Some((calicos, asn))) => {
                (calicos, Some(Voice::Calico), asn.map(|asn| (asn, Voice::Calico)))
            }
            (None, None) => (&self.silence, None, None),
        };
        let annotated = node.kube_router.as_ref().and_then(|said| said.asn);
        if let (Some(annotated), Some((asn, voice))) = (annotated, found.2) {
            unheard.push(Unheard {
                object: format!("Node {}, annotation kube-router.io/node.asn {annotated}", node.name),
                because: format!("{} says {asn}", voice.object("BGPConfiguration", "default")),
            });
        }
        found
    }

    fn peers<'a>(&'a self, node: &'a Node, unheard: &mut Vec<Unheard>) -> Vec<HeardPeer<'a>> {
        let ours = self.peers.values().map(|peer| HeardPeer { peer, voice: Voice::Ours, only: None });
        let calicos = self.foreign.values().flat_map(|foreign| {
            foreign.says.iter().filter_map(|said| match said {
                Object::BgpPeer(peer) => {
                    Some(HeardPeer { peer, voice: Voice::Calico, only: foreign.node.as_deref() })
                }
                _ => None,
            })
        });
        let annotated = node.kube_router.iter().flat_map(|said| &said.peers).map(|peer| HeardPeer {
            peer,
            voice: Voice::KubeRouter,
            only: Some(&node.name),
        });
        let mut by_name: BTreeMap<&str, HeardPeer<'a>> = BTreeMap::new();
        let mut addresses: BTreeMap<IpAddr, HeardPeer<'a>> = BTreeMap::new();
        // The weightiest voice comes first, so that whoever is there already is heard.
        for heard in ours.chain(calicos).chain(annotated) {
            let address = match heard.peer.target {
                PeerTarget::Address(address) if heard.selects(node) => Some(address),
                _ => None,
            };
            let named = by_name.get(heard.peer.name.as_str());
            let reached = address.and_then(|address| addresses.get(&address));
            if let Some(other) = named.or(reached).filter(|other| other.voice < heard.voice) {
                let why =
                    if named.is_some() { "has its name" } else { "names the same address on this node" };
                unheard.push(Unheard {
                    object: heard.object(),
                    because: format!("{} {why} and is heard instead", other.object()),
                });
                continue;
            }
            by_name.insert(&heard.peer.name, heard);
            if let Some(address) = address {
                addresses.entry(address).or_insert(heard);
            }
        }
        by_name.into_values().collect()
    }
}

impl Heard<'_> {
    /// The AS of a node, and who says so; `None`: nobody, it is the default.
    pub(super) fn asn(&self, node: &Node) -> (Asn, Option<String>) {
        if let Some(asn) = node.annotations.asn {
            return (asn, Some(format!("Node {}, annotation manx.dev/asn", node.name)));
        }
        if let Some((asn, voice)) = self.asn {
            return (asn, Some(voice.object("BGPConfiguration", "default")));
        }
        match node.kube_router.as_ref().and_then(|said| said.asn) {
            Some(asn) => (asn, Some(format!("Node {}, annotation kube-router.io/node.asn", node.name))),
            None => (self.bgp.asn, None),
        }
    }

    /// Whether a BGPPeer of ours is there for any node. Calico and kube-router mean their peers besides the mesh.
    pub(super) fn any_of_ours(&self) -> bool {
        self.peers.iter().any(|heard| heard.voice == Voice::Ours)
    }

    /// The peers that `node` has.
    pub(super) fn of<'b>(&'b self, node: &'b Node) -> impl Iterator<Item = &'b HeardPeer<'b>> {
        self.peers.iter().filter(|heard| heard.selects(node))
    }
}

impl HeardPeer<'_> {
    fn selects(&self, node: &Node) -> bool {
        self.unmet(node).is_none()
    }

    /// Why it is not for `node`, in words; `None`: it is. Nodes that it picks as peers have it as well, from the other end.
    pub(super) fn unmet(&self, node: &Node) -> Option<String> {
        self.unpicked(node).filter(|_| !self.seeks(node))
    }

    /// Whether it is for `node` by its nodeSelector.
    pub(super) fn picks(&self, node: &Node) -> bool {
        self.unpicked(node).is_none()
    }

    /// Whether `node` is one of the peers that it names by their labels.
    pub(super) fn seeks(&self, node: &Node) -> bool {
        matches!(&self.peer.target, PeerTarget::Nodes(selector) if selector.matches(&node.labels))
    }

    fn unpicked(&self, node: &Node) -> Option<String> {
        match self.only {
            Some(only) if only != node.name => Some(format!("it is for node {only}")),
            _ => self.peer.node_selector.as_ref().and_then(|selector| selector.unmet(&node.labels)),
        }
    }

    /// The node that it is for by name, if it is.
    pub(super) fn only(&self) -> Option<&str> {
        self.only
    }

    /// Which object says it.
    pub(super) fn object(&self) -> String {
        self.voice.object("BGPPeer", &self.peer.name)
    }
}

fn keep(filters: &mut BTreeMap<String, Arc<Filter>>, name: &str, filter: &Filter) {
    if filters.get(name).is_none_or(|have| **have != *filter) {
        filters.insert(name.to_owned(), Arc::new(filter.clone()));
    }
}
