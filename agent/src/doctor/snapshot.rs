//! What was observed of a node. What could not be looked at is `None`, never a guess.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::view::Status;

/// One node at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The node's name.
    pub node: Option<String>,
    /// The agent's status, or why it cannot be had.
    pub agent: Option<Result<Status, String>>,
    /// Settings by their names; absent: not in this kernel.
    pub sysctls: BTreeMap<String, String>,
    /// Interfaces, by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// Routes of the main table, both families; `None`: could not be read.
    pub routes: Option<Vec<Route>>,
    /// What `iptables-save` and its three sisters print, by back end and family, where rules are; `None`: no such program.
    pub filters: BTreeMap<&'static str, Option<String>>,
    /// Tables of nf_tables, such as `inet firewalld`; `None`: no `nft`.
    pub nft_tables: Option<Vec<String>>,
    /// What `nft list table` prints of kube-proxy's tables.
    pub nft_proxy: String,
    /// Programs that the agent runs, and whether they are there.
    pub tools: BTreeMap<&'static str, bool>,
    /// Parts of the kernel that are made of modules, and whether they are there.
    pub modules: BTreeMap<&'static str, bool>,
    /// Whether ufw is enabled in its configuration.
    pub ufw_enabled: bool,
    /// Names of configurations in the CNI directory, sorted; `None`: it is not there.
    pub conflists: Option<Vec<String>>,
    /// Whether the plugin lies where the runtime looks for it.
    pub plugin_installed: bool,
    /// MTU that pods get, by the agent's file.
    pub pod_mtu: Option<u32>,
    /// Pod CIDRs of this node, by the agent's file.
    pub pod_cidrs: Vec<IpNetwork>,
    /// First letters of pods' interfaces.
    pub pod_prefix: String,
    /// Who listens on TCP port 179: local address and program; `None`: `ss` cannot say.
    pub port_179: Option<Vec<(String, String)>>,
    /// Whether a socket takes a TCP MD5 key; the reason where not.
    pub md5: Option<Result<(), String>>,
    /// Whether the kernel has nexthop objects.
    pub next_hop_objects: Option<bool>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Up, with a carrier.
    pub up: bool,
    /// Its MTU.
    pub mtu: u32,
    /// Kind of a virtual one, such as `bridge` or `veth`; none of a real one.
    pub kind: Option<String>,
    /// The bridge or bond that it is a port of.
    pub master: Option<String>,
    /// Its addresses with their lengths.
    pub addresses: Vec<IpNetwork>,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub prefix: IpNetwork,
    /// `unicast`, `blackhole`, `unreachable`, `prohibit`.
    pub kind: String,
    /// Interfaces that it leads through.
    pub devices: Vec<String>,
    /// Who put it there, as `ip` names it.
    pub protocol: String,
}

impl Snapshot {
    /// A setting's value.
    pub fn sysctl(&self, name: &str) -> Option<&str> {
        self.sysctls.get(name).map(String::as_str)
    }

    /// The status of an agent that answers.
    pub fn status(&self) -> Option<&Status> {
        self.agent.as_ref()?.as_ref().ok()
    }

    /// Interfaces that carry traffic between nodes: up, with an address, neither loopback nor a pod's, nor a bridge's or a tunnel's.
    pub fn uplinks(&self) -> impl Iterator<Item = (&str, &Interface)> {
        let inner = ["bridge", "dummy", "tun", "ipip", "vxlan", "wireguard", "gre"];
        self.interfaces
            .iter()
            .filter(move |(name, i)| {
                let virtual_one = i.kind.as_deref().is_some_and(|k| inner.contains(&k));
                i.up && !i.addresses.is_empty() && *name != "lo" && !self.is_pods(name) && !virtual_one
            })
            .map(|(name, i)| (name.as_str(), i))
    }

    /// Whether an interface is the host end of a pod of ours.
    pub fn is_pods(&self, name: &str) -> bool {
        !self.pod_prefix.is_empty()
            && name
                .strip_prefix(self.pod_prefix.as_str())
                .is_some_and(|rest| rest.len() == 11 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    /// Whether an address is this node's own.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        self.interfaces.values().any(|i| i.addresses.iter().any(|a| a.ip() == ip))
    }

    /// The route that a packet to an address takes, by the longest prefix.
    pub fn route(&self, ip: IpAddr) -> Option<&Route> {
        self.routes.iter().flatten().filter(|r| r.prefix.contains(ip)).max_by_key(|r| r.prefix.prefix())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A healthy node with one uplink, one pod and routes to another node.
    pub(crate) fn healthy() -> Snapshot {
        let interface = |addresses: &[&str]| Interface {
            up: true,
            mtu: 1500,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ..Interface::default()
        };
        let route = |prefix: &str, kind: &str, device: &str, protocol: &str| Route {
            prefix: prefix.parse().unwrap(),
            kind: kind.to_owned(),
            devices: if device.is_empty() { Vec::new() } else { vec![device.to_owned()] },
            protocol: protocol.to_owned(),
        };
        let sysctls = [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.fib_multipath_hash_policy", "1"),
            ("net.ipv6.fib_multipath_hash_policy", "1"),
        ];
        Snapshot {
            node: Some("n1".to_owned()),
            agent: Some(Ok(Status {
                node: "n1".to_owned(),
                source: crate::view::SourceStatus { in_sync: true, ..Default::default() },
                bgp: Some(crate::view::BgpStatus {
                    node_addresses: vec!["10.1.0.11".to_owned()],
                    listening: vec!["10.1.0.11:179".to_owned()],
                    ..Default::default()
                }),
                ..Status::default()
            })),
            sysctls: sysctls.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            interfaces: [
                ("lo", interface(&["127.0.0.1/8"])),
                ("eth0", interface(&["10.1.0.11/24"])),
                ("manx0123456789a", interface(&[])),
            ]
            .map(|(name, i)| (name.to_owned(), i))
            .into(),
            routes: Some(vec![
                route("0.0.0.0/0", "unicast", "eth0", "static"),
                route("10.1.0.0/24", "unicast", "eth0", "kernel"),
                route("10.200.1.0/24", "blackhole", "", "77"),
                route("10.200.1.5/32", "unicast", "manx0123456789a", "77"),
                route("10.200.2.0/24", "unicast", "eth0", "77"),
            ]),
            filters: [("nft4", Some(String::new())), ("nft6", Some(String::new()))].into(),
            nft_tables: Some(Vec::new()),
            tools: [("iptables-nft-restore", true)].into(),
            modules: [("ip_set", true)].into(),
            conflists: Some(vec!["10-manx.conflist".to_owned()]),
            plugin_installed: true,
            pod_mtu: Some(1500),
            pod_cidrs: vec!["10.200.1.0/24".parse().unwrap()],
            pod_prefix: "manx".to_owned(),
            port_179: Some(vec![("10.1.0.11:179".to_owned(), "manx-agent".to_owned())]),
            md5: Some(Ok(())),
            next_hop_objects: Some(true),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_healthy_node_has_no_findings() {
        let doctor = crate::doctor::examine(&healthy());
        let odd: Vec<_> = doctor.checks.iter().filter(|c| c.result != crate::view::CheckResult::Ok).collect();
        assert!(odd.is_empty() && doctor.healthy, "{odd:#?}");
    }

    #[test]
    fn a_node_of_which_nothing_is_known_is_asked_about_and_nothing_panics() {
        let doctor = crate::doctor::examine(&Snapshot::default());
        assert!(doctor.checks.len() > 20);
    }

    #[test]
    fn uplinks_are_what_leads_to_other_nodes() {
        let mut node = healthy();
        let bridge = Interface { kind: Some("bridge".to_owned()), ..node.interfaces["eth0"].clone() };
        node.interfaces.insert("docker0".to_owned(), bridge);
        assert_eq!(node.uplinks().map(|(name, _)| name).collect::<Vec<_>>(), ["eth0"]);
    }
}
