//! What addresses mean to this node: which ones a pod may have, which are advertised one by one, and which destinations
//! pods reach under their own address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use manx_bgp::types::Prefix;
use manx_cni::node::AddressPool;

use super::Desired;
use crate::source::Node;

/// Never a destination outside: link-local (RFC 3927, RFC 4291 2.5.6) and multicast (RFC 5771, RFC 4291 2.7).
const ON_LINK: [(IpAddr, u8); 4] = [
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
];

/// Translation of what pods of this node send out of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressIntent {
    /// Where pods send from.
    pub sources: BTreeSet<Prefix>,
    /// Destinations that see the pod's own address.
    pub inside: BTreeSet<Prefix>,
}

impl Desired {
    /// The addresses that pods of this node hold now.
    pub fn set_attached(&mut self, addresses: BTreeSet<IpAddr>) {
        self.attached = addresses;
    }

    /// Whether a pod of this node holds it by an attachment.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.attached.contains(&address)
    }

    /// Pod CIDRs, and one by one the fixed addresses that lie outside them. Only what the operator declared: else any
    /// tenant could put an address into BGP.
    pub(super) fn originated(&self, node: &Node) -> BTreeSet<Prefix> {
        let declared = |ip: &IpAddr| {
            self.network().address_pools.iter().flat_map(|pool| &pool.cidrs).any(|cidr| contains(*cidr, *ip))
        };
        let fixed = self.attached.iter().filter(|ip| !is_of(node, **ip) && declared(ip)).copied();
        node.pod_cidrs.iter().copied().map(Prefix::from).chain(fixed.map(single)).collect()
    }

    /// Ranges from which pods of any node may ask for fixed addresses.
    pub(super) fn pools(&self) -> Vec<AddressPool> {
        let pools = &self.network().address_pools;
        pools
            .iter()
            .map(|pool| AddressPool {
                name: pool.name.clone(),
                cidrs: pool.cidrs.iter().copied().map(IpNetwork::from).collect(),
            })
            .collect()
    }

    /// What to translate; `None`: nothing. Pod to pod and pod to node is never translated, whatever the configuration
    /// leaves out.
    pub fn egress_nat(&self) -> Option<EgressIntent> {
        let nat = self.network().egress_nat.as_ref()?;
        let node = self.this_node()?;
        let of_nodes = self.nodes.values().flat_map(|node| {
            let addresses = node.internal_ips.iter().chain(&node.external_ips).copied().map(single);
            node.pod_cidrs.iter().copied().map(Prefix::from).chain(addresses)
        });
        let pools = self.network().address_pools.iter().flat_map(|pool| &pool.cidrs);
        let declared = self.network().cluster_cidrs.iter().chain(&nat.exclude).chain(pools).copied();
        let on_link = ON_LINK.into_iter().filter_map(|(ip, len)| Prefix::new(ip, len));
        let fixed = self.attached.iter().filter(|ip| !is_of(node, **ip)).copied().map(single);
        Some(EgressIntent {
            sources: node.pod_cidrs.iter().copied().map(Prefix::from).chain(fixed).collect(),
            inside: of_nodes.chain(declared).chain(on_link).collect(),
        })
    }
}

/// Is it one of the node's own pod CIDRs?
fn is_of(node: &Node, ip: IpAddr) -> bool {
    node.pod_cidrs.iter().any(|cidr| cidr.contains(ip))
}

fn contains(prefix: Prefix, ip: IpAddr) -> bool {
    IpNetwork::from(prefix).contains(ip)
}

fn single(ip: IpAddr) -> Prefix {
    Prefix::from(IpNetwork::from(ip))
}
