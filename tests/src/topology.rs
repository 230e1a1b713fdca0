//! The lab's plan: who is connected to whom, every address, prefix and AS number. Data only.
//!
//! ```text
//!   outside  10.9.0.10, fd10:9::10            not part of the cluster
//!      |
//!    spine   AS 65000, BIRD
//!     /  \   10.0.0.2/31, 10.0.0.4/31
//!  tor-a  tor-b
//!  AS 65001 (BIRD)           AS 65002 (FRR)
//!  rack a: 10.1.0.0/24       rack b: 10.2.0.0/24
//!   |      \                  /      |
//! node-1    '---- node-2 ----'     node-3
//! AS 65101        AS 65102         AS 4200000103
//! ```
//!
//! A ToR's ports are routed: each rack's subnet is cut into a /31 and a /127 for each port, so that a port that loses its
//! carrier takes its BGP session with it at once, and so that two nodes of one rack meet through their ToR.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// All pod CIDRs of the cluster lie within these.
pub const CLUSTER_V4: &str = "10.200.0.0/16";
/// See [`CLUSTER_V4`].
pub const CLUSTER_V6: &str = "fd00:10:200::/48";

/// What a machine of the lab is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A cluster node: runs the agent and pods.
    Node,
    /// A router running BIRD.
    Bird,
    /// A router running FRR.
    Frr,
    /// A host that is no part of the cluster.
    Host,
}

/// A machine: a network namespace with a role.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name, also the name of its Node object.
    pub name: &'static str,
    /// What it is.
    pub role: Role,
    /// Its AS; none for a host.
    pub asn: Option<u32>,
    /// Router id and IPv4 loopback of a router.
    pub router_id: Option<Ipv4Addr>,
    /// The subnets that this machine answers for: a ToR its rack's, a node its pod CIDRs.
    pub prefixes: Vec<IpNetwork>,
}

/// One end of a cable.
#[derive(Clone, Debug)]
pub struct Port {
    /// Machine.
    pub machine: &'static str,
    /// Interface name on it: the name of the machine at the other end.
    pub interface: &'static str,
    /// Address and prefix length.
    pub v4: Ipv4Network,
    /// Address and prefix length.
    pub v6: Ipv6Network,
}

/// A cable between two machines. The first end is the one that is nearer to the spine.
#[derive(Clone, Debug)]
pub struct Cable(pub Port, pub Port);

/// A whole lab.
#[derive(Clone, Debug)]
pub struct Topology {
    /// In printing order.
    pub machines: Vec<Machine>,
    /// In the order of making.
    pub cables: Vec<Cable>,
}

impl Topology {
    /// Two racks, three nodes, the middle one in both racks.
    pub fn two_racks() -> Self {
        let machine = |name, role, asn, router_id: Option<[u8; 4]>, prefixes: &[&str]| Machine {
            name,
            role,
            asn,
            router_id: router_id.map(Ipv4Addr::from),
            prefixes: prefixes.iter().map(|text| text.parse().expect("a prefix of this plan")).collect(),
        };
        let cable = |up: &'static str, down: &'static str, v4: &str, v6: &str| {
            let v4: Ipv4Addr = v4.parse().expect("an address of this plan");
            let v6: Ipv6Addr = v6.parse().expect("an address of this plan");
            let port = |machine, interface, offset: u32| Port {
                machine,
                interface,
                v4: Ipv4Network::new(Ipv4Addr::from(u32::from(v4) + offset), 31).expect("31 is a length"),
                v6: Ipv6Network::new(Ipv6Addr::from(u128::from(v6) + u128::from(offset)), 127)
                    .expect("127 is a length"),
            };
            Cable(port(up, down, 0), port(down, up, 1))
        };
        Self {
            machines: vec![
                machine("outside", Role::Host, None, None, &[]),
                machine("spine", Role::Bird, Some(65000), Some([10, 0, 0, 1]), &[]),
                machine(
                    "tor-a",
                    Role::Bird,
                    Some(65001),
                    Some([10, 1, 0, 1]),
                    &["10.1.0.0/24", "fd10:1::/64"],
                ),
                machine(
                    "tor-b",
                    Role::Frr,
                    Some(65002),
                    Some([10, 2, 0, 1]),
                    &["10.2.0.0/24", "fd10:2::/64"],
                ),
                machine("node-1", Role::Node, Some(65101), None, &["10.200.1.0/26", "fd00:10:200:1::/64"]),
                machine("node-2", Role::Node, Some(65102), None, &["10.200.2.0/26", "fd00:10:200:2::/64"]),
                machine(
                    "node-3",
                    Role::Node,
                    Some(4_200_000_103),
                    None,
                    &["10.200.3.0/26", "fd00:10:200:3::/64"],
                ),
            ],
            cables: vec![
                cable("spine", "tor-a", "10.0.0.2", "fd10::2"),
                cable("spine", "tor-b", "10.0.0.4", "fd10::4"),
                cable("tor-a", "node-1", "10.1.0.2", "fd10:1::2"),
                cable("tor-a", "node-2", "10.1.0.4", "fd10:1::4"),
                cable("tor-b", "node-2", "10.2.0.2", "fd10:2::2"),
                cable("tor-b", "node-3", "10.2.0.4", "fd10:2::4"),
                Cable(
                    Port {
                        machine: "spine",
                        interface: "outside",
                        v4: "10.9.0.1/24".parse().expect("a network of this plan"),
                        v6: "fd10:9::1/64".parse().expect("a network of this plan"),
                    },
                    Port {
                        machine: "outside",
                        interface: "spine",
                        v4: "10.9.0.10/24".parse().expect("a network of this plan"),
                        v6: "fd10:9::10/64".parse().expect("a network of this plan"),
                    },
                ),
            ],
        }
    }

    /// The machine of this name.
    ///
    /// # Panics
    /// When the plan has none: names come from the plan.
    pub fn machine(&self, name: &str) -> &Machine {
        self.machines.iter().find(|m| m.name == name).expect("a machine of this plan")
    }

    /// The cluster nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|m| m.role == Role::Node)
    }

    /// The ToRs: routers with a node below them.
    pub fn tors(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|m| self.downlinks(m.name).any(|(_, down)| self.is_node(down.machine)))
    }

    /// The ports of a machine, each with the port at the other end of its cable.
    pub fn ports<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a Port, &'a Port)> {
        self.cables.iter().filter_map(move |Cable(up, down)| match name {
            _ if up.machine == name => Some((up, down)),
            _ if down.machine == name => Some((down, up)),
            _ => None,
        })
    }

    /// The ports of a machine that lead away from the spine.
    pub fn downlinks<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a Port, &'a Port)> {
        self.cables.iter().filter(move |c| c.0.machine == name).map(|Cable(up, down)| (up, down))
    }

    /// The ports of a machine that lead towards the spine.
    pub fn uplinks<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a Port, &'a Port)> {
        self.cables.iter().filter(move |c| c.1.machine == name).map(|Cable(up, down)| (down, up))
    }

    /// Whether this machine is a cluster node.
    pub fn is_node(&self, name: &str) -> bool {
        self.machine(name).role == Role::Node
    }

    /// The machine that this address belongs to.
    pub fn owner(&self, address: IpAddr) -> Option<&'static str> {
        let ports = self.cables.iter().flat_map(|Cable(a, b)| [a, b]);
        ports
            .into_iter()
            .find(|p| IpAddr::V4(p.v4.ip()) == address || p.v6.ip() == address)
            .map(|p| p.machine)
    }

    /// The machines on the shortest way from one to the other, both included.
    pub fn way(&self, from: &str, to: &str) -> Vec<&'static str> {
        let (from, to) = (self.machine(from).name, self.machine(to).name);
        let mut came_from: BTreeMap<&str, &'static str> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(here) = queue.pop_front() {
            if here == to {
                break;
            }
            for (_, there) in self.ports(here) {
                if there.machine != from && !came_from.contains_key(there.machine) {
                    came_from.insert(there.machine, here);
                    queue.push_back(there.machine);
                }
            }
        }
        let mut way = vec![to];
        while let Some(before) = came_from.get(way[way.len() - 1]) {
            way.push(before);
        }
        way.reverse();
        way
    }

    /// How many of the machines on the way from one to the other route, and so take one from the TTL: all but plain hosts.
    pub fn routers_between(&self, from: &str, to: &str) -> u8 {
        let routers = self.way(from, to).into_iter().filter(|m| self.machine(m).role != Role::Host).count();
        u8::try_from(routers).expect("a lab is small")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cable_has_its_own_addresses_and_the_ends_share_a_subnet() {
        let topology = Topology::two_racks();
        let mut seen = std::collections::BTreeSet::new();
        for Cable(a, b) in &topology.cables {
            assert!(a.v4.contains(b.v4.ip()) && a.v6.contains(b.v6.ip()), "{} - {}", a.machine, b.machine);
            for address in [a.v4.ip(), b.v4.ip()] {
                assert!(seen.insert(address), "{address} is there twice");
            }
        }
    }

    #[test]
    fn the_way_between_racks_passes_five_routers() {
        let topology = Topology::two_racks();
        assert_eq!(topology.way("node-1", "node-3"), ["node-1", "tor-a", "spine", "tor-b", "node-3"]);
        assert_eq!(topology.routers_between("node-1", "node-3"), 5);
        assert_eq!(topology.routers_between("node-1", "node-2"), 3);
        assert_eq!(topology.routers_between("node-2", "node-2"), 1);
        assert_eq!(topology.routers_between("outside", "node-2"), 3);
    }

    #[test]
    fn node_2_has_two_uplinks_and_the_others_one() {
        let topology = Topology::two_racks();
        let uplinks: Vec<usize> = topology.nodes().map(|n| topology.uplinks(n.name).count()).collect();
        assert_eq!(uplinks, [1, 2, 1]);
    }
}
