//! Routes as rtnetlink spells them. Pure: bytes in, bytes out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use smallvec::SmallVec;

use super::object::RTNH_F_ONLINK;
use super::route::Neighbor;
use crate::kernel::Family;
use crate::kernel::netlink::{Attrs, Batch, NLM_F_DUMP, u16_at, u32_at};

pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
pub(crate) const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const RTN_UNSPEC: u8 = 0;
const RTN_UNICAST: u8 = 1;
const RTN_BLACKHOLE: u8 = 6;
const RT_SCOPE_UNIVERSE: u8 = 0;
/// In a delete: any scope.
const RT_SCOPE_NOWHERE: u8 = 255;
/// A cached clone, not a table entry.
const RTM_F_CLONED: u32 = 0x200;
/// `struct rtmsg`.
const RTMSG: usize = 12;

/// Whose route, where: the part of a route's key that is the same for all of ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ownership {
    pub(crate) protocol: u8,
    pub(crate) metric: u32,
    pub(crate) table: u32,
}

impl Ownership {
    /// Appends RTM_NEWROUTE.
    pub(crate) fn put(self, batch: &mut Batch, flags: u16, prefix: IpNetwork, route: &Spelling<'_>) {
        let kind = match route {
            Spelling::Object(_) | Spelling::Inline(_) => RTN_UNICAST,
            Spelling::Blackhole => RTN_BLACKHOLE,
        };
        let onlink = matches!(route, Spelling::Inline([Neighbor { onlink: true, .. }]));
        let route_flags = if onlink { RTNH_F_ONLINK } else { 0 };
        batch.message(RTM_NEWROUTE, flags, |m| {
            self.key(m, prefix, RT_SCOPE_UNIVERSE, kind, route_flags);
            match route {
                Spelling::Blackhole => {}
                Spelling::Object(id) => m.attr(RTA_NH_ID, &id.to_ne_bytes()),
                Spelling::Inline([hop]) => {
                    m.attr(RTA_OIF, &hop.ifindex.to_ne_bytes());
                    gateway(m, prefix, hop.gateway);
                }
                Spelling::Inline(many) => m.nest(RTA_MULTIPATH, |m| {
                    for hop in *many {
                        // struct rtnexthop: length, flags, weight minus one, link.
                        let flags = if hop.onlink { RTNH_F_ONLINK as u8 } else { 0 };
                        m.length_prefixed([flags, 0], |m| {
                            m.fixed(&hop.ifindex.to_ne_bytes());
                            gateway(m, prefix, hop.gateway);
                        });
                    }
                }),
            }
        });
    }

    /// Appends RTM_DELROUTE. It names the protocol and the metric, so that it never removes another owner's route.
    pub(crate) fn delete(self, batch: &mut Batch, prefix: IpNetwork) {
        batch.message(RTM_DELROUTE, 0, |m| self.key(m, prefix, RT_SCOPE_NOWHERE, RTN_UNSPEC, 0));
    }

    /// Appends a dump request: our protocol only, filtered in the kernel, or every protocol.
    pub(crate) fn dump(self, batch: &mut Batch, family: Family, every_protocol: bool) {
        batch.message(RTM_GETROUTE, NLM_F_DUMP, |m| {
            let protocol = if every_protocol { 0 } else { self.protocol };
            m.fixed(&[family.number(), 0, 0, 0, self.short_table(), protocol, 0, 0, 0, 0, 0, 0]);
            m.attr(RTA_TABLE, &self.table.to_ne_bytes());
        });
    }

    fn key(self, m: &mut Batch, prefix: IpNetwork, scope: u8, kind: u8, flags: u32) {
        let family = Family::of_prefix(prefix).number();
        m.fixed(&[family, prefix.prefix(), 0, 0, self.short_table(), self.protocol, scope, kind]);
        m.fixed(&flags.to_ne_bytes());
        match prefix {
            IpNetwork::V4(net) => m.attr(RTA_DST, &net.network().octets()),
            IpNetwork::V6(net) => m.attr(RTA_DST, &net.network().octets()),
        }
        m.attr(RTA_PRIORITY, &self.metric.to_ne_bytes());
        if self.short_table() == 0 {
            m.attr(RTA_TABLE, &self.table.to_ne_bytes());
        }
    }

    fn short_table(self) -> u8 {
        u8::try_from(self.table).unwrap_or(0)
    }
}

fn gateway(m: &mut Batch, prefix: IpNetwork, gateway: IpAddr) {
    match (prefix, gateway) {
        (IpNetwork::V4(_), IpAddr::V4(gateway)) => m.attr(RTA_GATEWAY, &gateway.octets()),
        (IpNetwork::V6(_), IpAddr::V6(gateway)) => m.attr(RTA_GATEWAY, &gateway.octets()),
        // struct rtvia: a gateway of the other family. The kernel takes it for IPv4 routes and refuses it for IPv6.
        (_, other) => {
            let mut via = Vec::with_capacity(18);
            via.extend_from_slice(&u16::from(Family::of(other).number()).to_ne_bytes());
            match other {
                IpAddr::V4(other) => via.extend_from_slice(&other.octets()),
                IpAddr::V6(other) => via.extend_from_slice(&other.octets()),
            }
            m.attr(RTA_VIA, &via);
        }
    }
}

/// How a route says where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling<'a> {
    /// Nowhere.
    Blackhole,
    /// By the number of a nexthop object.
    Object(u32),
    /// By itself; never empty.
    Inline(&'a [Neighbor]),
}

/// A route as the kernel tells it, in a dump or in a notification.
#[derive(Debug)]
pub(crate) struct KernelRoute {
    pub(crate) prefix: IpNetwork,
    pub(crate) protocol: u8,
    pub(crate) metric: u32,
    pub(crate) table: u32,
    pub(crate) blackhole: bool,
    pub(crate) unicast: bool,
    /// The nexthop object that it uses. Its neighbours are in `hops` too while net.ipv4.nexthop_compat_mode is 1.
    pub(crate) next_hop: Option<u32>,
    /// In the kernel's order; gateway absent where the destination is on-link.
    pub(crate) hops: Vec<KernelHop>,
}

/// One next hop as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelHop {
    pub(crate) ifindex: u32,
    pub(crate) gateway: Option<IpAddr>,
    /// Weight minus one.
    pub(crate) weight: u8,
    /// RTNH_F_ONLINK.
    pub(crate) onlink: bool,
}

impl KernelRoute {
    /// From the payload of RTM_NEWROUTE or RTM_DELROUTE; `None` for what is no table entry.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let header: &[u8; RTMSG] = payload.get(..RTMSG)?.try_into().ok()?;
        let [family, length, _, tos, table, protocol, _, kind, ..] = *header;
        let family = Family::from_number(family)?;
        if tos != 0 || u32_at(payload, 8)? & RTM_F_CLONED != 0 {
            return None;
        }
        let mut destination = match family {
            Family::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let onlink = u32_at(payload, 8)? & RTNH_F_ONLINK != 0;
        let mut single = KernelHop { ifindex: 0, gateway: None, weight: 0, onlink };
        let mut this = Self {
            prefix: IpNetwork::new(destination, 0).ok()?,
            protocol,
            metric: 0,
            table: u32::from(table),
            blackhole: kind == RTN_BLACKHOLE,
            unicast: kind == RTN_UNICAST,
            next_hop: None,
            hops: Vec::new(),
        };
        for (kind, value) in Attrs::new(&payload[RTMSG..]) {
            match kind {
                RTA_DST => destination = address(value)?,
                RTA_PRIORITY => this.metric = u32_at(value, 0)?,
                RTA_TABLE => this.table = u32_at(value, 0)?,
                RTA_OIF => single.ifindex = u32_at(value, 0)?,
                RTA_GATEWAY => single.gateway = Some(address(value)?),
                RTA_VIA => single.gateway = Some(address(value.get(2..)?)?),
                RTA_MULTIPATH => this.hops = multipath(value),
                RTA_NH_ID => this.next_hop = Some(u32_at(value, 0)?),
                _ => {}
            }
        }
        if this.hops.is_empty() && this.unicast && (this.next_hop.is_none() || single.ifindex != 0) {
            this.hops.push(single);
        }
        this.prefix = match destination {
            IpAddr::V4(ip) => IpNetwork::V4(Ipv4Network::new(ip, length).ok()?),
            IpAddr::V6(ip) => IpNetwork::V6(Ipv6Network::new(ip, length).ok()?),
        };
        Some(this)
    }

    /// The neighbours that it names itself, in order; `None` when it has a shape that we never write.
    pub(super) fn as_inline(&self) -> Option<SmallVec<[Neighbor; 1]>> {
        let neighbor = |hop: &KernelHop| {
            let KernelHop { ifindex, gateway, weight, onlink } = *hop;
            (weight == 0).then_some(Neighbor { gateway: gateway?, ifindex, onlink })
        };
        let found: Option<SmallVec<[Neighbor; 1]>> = self.hops.iter().map(neighbor).collect();
        let mut found = found.filter(|hops| self.unicast && !hops.is_empty())?;
        found.sort_unstable();
        Some(found)
    }
}

fn multipath(mut bytes: &[u8]) -> Vec<KernelHop> {
    let mut hops = Vec::new();
    while let (Some(length), Some(ifindex)) = (u16_at(bytes, 0), u32_at(bytes, 4)) {
        let length = length as usize;
        let Some(attrs) = bytes.get(8..length) else { break };
        let gateway = Attrs::new(attrs).find_map(|(kind, value)| match kind {
            RTA_GATEWAY => address(value),
            RTA_VIA => address(value.get(2..)?),
            _ => None,
        });
        let onlink = u32::from(bytes[2]) & RTNH_F_ONLINK != 0;
        hops.push(KernelHop { ifindex, gateway, weight: bytes[3], onlink });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

/// An address of either family, told by its length.
pub(crate) fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::Messages;

    const OURS: Ownership = Ownership { protocol: 77, metric: 77, table: 254 };

    fn round_trip(prefix: &str, route: &Spelling<'_>) -> KernelRoute {
        let mut batch = Batch::new();
        OURS.put(&mut batch, 0, prefix.parse().unwrap(), route);
        let (header, payload) = Messages::new(batch.bytes()).next().unwrap();
        assert_eq!(header.kind, RTM_NEWROUTE);
        KernelRoute::parse(payload).unwrap()
    }

    fn hop(gateway: &str, ifindex: u32, onlink: bool) -> Neighbor {
        Neighbor { gateway: gateway.parse().unwrap(), ifindex, onlink }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let cases = [
            ("10.1.0.0/26", vec![hop("192.0.2.1", 3, false)]),
            ("10.1.0.0/26", vec![hop("192.0.2.1", 3, true)]),
            ("10.1.0.0/26", vec![hop("fe80::1", 3, false)]),
            ("10.1.0.0/26", vec![hop("192.0.2.1", 3, true), hop("fe80::1", 4, false)]),
            ("2001:db8::/64", vec![hop("fe80::1", 3, false), hop("fe80::1", 4, false)]),
            ("0.0.0.0/0", vec![hop("192.0.2.1", 3, false)]),
        ];
        for (prefix, hops) in cases {
            let read = round_trip(prefix, &Spelling::Inline(&hops));
            assert_eq!(read.prefix.to_string(), prefix);
            assert_eq!((read.protocol, read.metric, read.table), (77, 77, 254));
            assert_eq!((read.as_inline().map(|hops| hops.to_vec()), read.next_hop), (Some(hops), None));
        }
        let read = round_trip("10.1.0.0/26", &Spelling::Object(0x4d00_0007));
        assert_eq!((read.next_hop, read.as_inline(), read.unicast), (Some(0x4d00_0007), None, true));
        let read = round_trip("10.1.0.0/26", &Spelling::Blackhole);
        assert_eq!((read.blackhole, read.as_inline()), (true, None));
    }
}
