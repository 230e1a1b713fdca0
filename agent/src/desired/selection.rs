//! What each BGPPeer object has to do with this node, for the question why somebody is, or is not, a peer.

use std::net::IpAddr;

use manx_bgp::types::Prefix;

use super::precedence::{Heard, HeardPeer};
use crate::config::PeerTarget;
use crate::source::Node;

/// A BGPPeer object as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerObject {
    /// Its name.
    pub name: String,
    /// Whom it names: an address, an interface, the default gateway.
    pub target: String,
    /// The address, where it names one.
    pub address: Option<IpAddr>,
    /// The range, where it names one.
    pub range: Option<Prefix>,
    /// Its nodeSelector in words.
    pub selector: String,
    /// Why it does not select this node; `None`: it does.
    pub unmet: Option<String>,
}

/// All of them, by name.
pub(super) fn objects(heard: &Heard<'_>, node: &Node) -> Vec<PeerObject> {
    let object = |heard: &HeardPeer<'_>| {
        let peer = heard.peer;
        let (target, address) = match &peer.target {
            PeerTarget::Address(address) => (address.to_string(), Some(*address)),
            PeerTarget::Range { range, .. } => (format!("whoever connects from {range}"), None),
            PeerTarget::Nodes(selector) => match selector.to_string() {
                all if all.is_empty() => ("all other nodes".to_owned(), None),
                labels => (format!("nodes with {labels}"), None),
            },
            PeerTarget::Interface(name) => (format!("interface {name}"), None),
            PeerTarget::DefaultGateway => ("the default gateway".to_owned(), None),
        };
        let selector = peer.node_selector.as_ref();
        let words = selector.map(ToString::to_string).filter(|words| !words.is_empty());
        let range = match peer.target {
            PeerTarget::Range { range, .. } => Some(range),
            _ => None,
        };
        PeerObject {
            name: peer.name.clone(),
            target,
            address,
            range,
            selector: match (heard.only(), words) {
                (Some(only), _) => format!("node {only}"),
                (None, Some(words)) => format!("nodes with {words}"),
                (None, None) => "every node".to_owned(),
            },
            unmet: heard.unmet(node),
        }
    };
    heard.peers.iter().map(object).collect()
}
