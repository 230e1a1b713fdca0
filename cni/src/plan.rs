//! How a pod is wired, as data: the veth pair, then operations on its host end and on its pod end.
//!
//! ```text
//!  node: manx…  fe80::1/64          | pod: eth0  10.0.0.5/32  fd00::5/128  fe80::…/64
//!   10.0.0.5/32 dev manx… metric 76 |  169.254.1.1 dev eth0, default via 169.254.1.1, default via fe80::1
//!   neighbours of the pod's address | neighbours 169.254.1.1 and fe80::1, all permanent
//! ```
//!
//! Permanent neighbours instead of proxy ARP: that got no reply on a node without a default route and cost up to 727 ms on
//! the first packet. No duplicate address detection: it costs two seconds, and nobody else is on a veth. Pure; `link`
//! executes it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::spec::format_mac;

/// The pods' IPv4 gateway. On no interface: the neighbour entry is all it takes.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The pods' IPv6 gateway: a link-local address of every host end.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The MAC address of every host end: each is alone on its link.
pub const HOST_MAC: [u8; 6] = [0xee; 6];

/// Metric of the host routes to pods: before learned routes, which have 77.
pub const HOST_METRIC: u32 = 76;

/// Routing protocol of the host routes, `manx` in rt_protos.d.
pub const PROTOCOL: u8 = 77;

/// RTPROT_BOOT: routes inside the pod are like those an administrator adds.
const POD_PROTOCOL: u8 = 3;

/// RT_SCOPE_UNIVERSE and RT_SCOPE_LINK.
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;

/// What an attachment's link is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// Name of the host end.
    pub interface: String,
    /// Name of the pod end.
    pub ifname: String,
    /// MAC address of the pod end.
    pub mac: [u8; 6],
    /// Bytes, of both ends.
    pub mtu: u32,
    /// The pod's addresses, at most one of a family.
    pub ips: Vec<IpAddr>,
}

/// An operation on an interface that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// No link-local address by the kernel, whose detection of duplicates would delay.
    NoAutomaticAddress,
    /// The interface up.
    Up,
    /// The loopback interface up.
    LoopbackUp,
    /// IPv4 forwarding from this interface.
    ForwardV4,
    /// An address; IPv6 without detection of duplicates.
    Address {
        /// The address.
        ip: IpAddr,
        /// Its prefix length.
        prefix: u8,
    },
    /// A route, never over another one.
    Route(Route),
    /// A permanent neighbour.
    Neighbour {
        /// Its address.
        ip: IpAddr,
        /// Its MAC address.
        mac: [u8; 6],
    },
}

/// A route over the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Gateway; `None`: on the link.
    pub via: Option<IpAddr>,
    /// 0: the kernel's default.
    pub metric: u32,
    /// rtm_protocol.
    pub protocol: u8,
    /// rtm_scope.
    pub scope: u8,
}

/// A setting that only a file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Below `/proc/sys/net`.
    pub file: String,
    /// What it is to hold.
    pub value: &'static str,
    /// Not needed where the kernel has no such file.
    pub optional: bool,
}

impl Wiring {
    fn has_v6(&self) -> bool {
        self.ips.iter().any(IpAddr::is_ipv6)
    }

    /// What is done to the host end, in this order, when it exists.
    pub fn host(&self) -> Vec<Op> {
        let mut ops = vec![Op::NoAutomaticAddress, Op::Up, Op::ForwardV4];
        if self.has_v6() {
            ops.push(Op::Address { ip: GATEWAY_V6.into(), prefix: 64 });
        }
        for ip in &self.ips {
            ops.push(Op::Route(Route {
                dst: *ip,
                prefix: whole(*ip),
                via: None,
                metric: HOST_METRIC,
                protocol: PROTOCOL,
                scope: SCOPE_LINK,
            }));
            ops.push(Op::Neighbour { ip: *ip, mac: self.mac });
        }
        ops
    }

    /// What is done inside the pod's namespace, in this order.
    pub fn pod(&self) -> Vec<Op> {
        let mut ops = vec![Op::LoopbackUp, Op::NoAutomaticAddress, Op::Up];
        if self.has_v6() {
            ops.push(Op::Address { ip: link_local(self.mac).into(), prefix: 64 });
        }
        let route = |dst, prefix, via, scope| {
            Op::Route(Route { dst, prefix, via, metric: 0, protocol: POD_PROTOCOL, scope })
        };
        for ip in &self.ips {
            ops.push(Op::Address { ip: *ip, prefix: whole(*ip) });
            let gateway = gateway(*ip);
            ops.push(Op::Neighbour { ip: gateway, mac: HOST_MAC });
            match ip {
                IpAddr::V4(_) => {
                    ops.push(route(gateway, 32, None, SCOPE_LINK));
                    ops.push(route(Ipv4Addr::UNSPECIFIED.into(), 0, Some(gateway), SCOPE_UNIVERSE));
                }
                IpAddr::V6(_) => {
                    ops.push(route(Ipv6Addr::UNSPECIFIED.into(), 0, Some(gateway), SCOPE_UNIVERSE));
                }
            }
        }
        ops
    }

    /// Settings of the host end that only files have, to be made before it is up. A pod sends no router advertisement
    /// that the node would follow, whichever families it has.
    pub fn host_sysctls(&self) -> Vec<Sysctl> {
        let optional = !self.has_v6();
        let conf = |key: &str, value| Sysctl {
            file: format!("ipv6/conf/{}/{key}", self.interface),
            value,
            optional,
        };
        let mut out = vec![conf("accept_ra", "0")];
        if self.has_v6() {
            out.insert(0, conf("disable_ipv6", "0"));
            out.push(conf("forwarding", "1"));
        }
        out
    }

    /// Settings of the pod end: some runtimes begin with IPv6 off.
    pub fn pod_sysctls(&self) -> Vec<Sysctl> {
        let file = format!("ipv6/conf/{}/disable_ipv6", self.ifname);
        let on = Sysctl { file, value: "0", optional: false };
        if self.has_v6() { vec![on] } else { Vec::new() }
    }
}

/// The gateway of an address.
pub fn gateway(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

/// Prefix length of a single address: 32 or 128.
pub fn whole(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The link-local address of a MAC address, RFC 4291 appendix A.
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAutomaticAddress => f.write_str("addrgenmode none"),
            Self::Up => f.write_str("link up"),
            Self::LoopbackUp => f.write_str("loopback up"),
            Self::ForwardV4 => f.write_str("IPv4 forwarding on"),
            Self::Address { ip, prefix } => write!(f, "address {ip}/{prefix}"),
            Self::Route(Route { dst, prefix: 0, via: Some(via), .. }) => {
                write!(f, "{} default route via {via}", if dst.is_ipv4() { "IPv4" } else { "IPv6" })
            }
            Self::Route(Route { dst, prefix, .. }) => write!(f, "route {dst}/{prefix}"),
            Self::Neighbour { ip, mac } => write!(f, "neighbour {ip} at {}", format_mac(*mac)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wiring(ips: &[&str]) -> Wiring {
        Wiring {
            interface: "manxd887cd28687".to_owned(),
            ifname: "eth0".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1450,
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    fn script(ips: &[&str]) -> String {
        let wiring = wiring(ips);
        let line = |end: &str, ops: Vec<Op>| ops.iter().map(|op| format!("{end} {op}\n")).collect::<String>();
        let file = |sysctls: Vec<Sysctl>| {
            sysctls.iter().map(|s| format!("{}={}\n", s.file, s.value)).collect::<String>()
        };
        line("host", wiring.host())
            + &file(wiring.host_sysctls())
            + &line("pod", wiring.pod())
            + &file(wiring.pod_sysctls())
    }

    #[test]
    fn dual_stack_wiring() {
        insta::assert_snapshot!(script(&["10.0.0.5", "fd00::5"]));
    }

    #[test]
    fn ipv4_only_wiring_follows_no_router_advertisement_and_touches_no_other_ipv6_setting() {
        insta::assert_snapshot!(script(&["10.0.0.5"]));
    }

    #[test]
    fn host_routes_have_metric_76_and_protocol_77() {
        let routes: Vec<Route> = wiring(&["10.0.0.5", "fd00::5"])
            .host()
            .into_iter()
            .filter_map(|op| if let Op::Route(route) = op { Some(route) } else { None })
            .collect();
        assert_eq!(
            routes.iter().map(|r| (r.metric, r.protocol, r.via)).collect::<Vec<_>>(),
            [(76, 77, None); 2]
        );
    }

    #[test]
    fn link_local_address_is_the_modified_eui_64() {
        assert_eq!(link_local([0x02, 0x42, 0, 0, 0, 1]).to_string(), "fe80::42:ff:fe00:1");
    }
}
