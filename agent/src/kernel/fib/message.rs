//! Routes as rtnetlink spells them. Pure: bytes in, bytes out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::route::{NextHop, Route};
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
    pub(crate) fn put(self, batch: &mut Batch, flags: u16, prefix: IpNetwork, route: &Route) {
        let kind = match route {
            Route::Unicast(_) => RTN_UNICAST,
            Route::Blackhole => RTN_BLACKHOLE,
        };
        batch.message(RTM_NEWROUTE, flags, |m| {
            self.key(m, prefix, RT_SCOPE_UNIVERSE, kind);
            if let Route::Unicast(hops) = route {
                match &hops[..] {
                    [hop] => {
                        m.attr(RTA_OIF, &hop.ifindex.to_ne_bytes());
                        gateway(m, prefix, hop.gateway);
                    }
                    many => m.nest(RTA_MULTIPATH, |m| {
                        for hop in many {
                            // struct rtnexthop: length, flags, weight minus one, link.
                            m.length_prefixed([0, 0], |m| {
                                m.fixed(&hop.ifindex.to_ne_bytes());
                                gateway(m, prefix, hop.gateway);
                            });
                        }
                    }),
                }
            }
        });
    }

    /// Appends RTM_DELROUTE. It names the protocol and the metric, so that it never removes another owner's route.
    pub(crate) fn delete(self, batch: &mut Batch, prefix: IpNetwork) {
        batch.message(RTM_DELROUTE, 0, |m| self.key(m, prefix, RT_SCOPE_NOWHERE, RTN_UNSPEC));
    }

    /// Appends a dump request: our protocol only, filtered in the kernel, or every protocol.
    pub(crate) fn dump(self, batch: &mut Batch, family: Family, every_protocol: bool) {
        batch.message(RTM_GETROUTE, NLM_F_DUMP, |m| {
            let protocol = if every_protocol { 0 } else { self.protocol };
            m.fixed(&[family.number(), 0, 0, 0, self.short_table(), protocol, 0, 0, 0, 0, 0, 0]);
            m.attr(RTA_TABLE, &self.table.to_ne_bytes());
        });
    }

    fn key(self, m: &mut Batch, prefix: IpNetwork, scope: u8, kind: u8) {
        let family = Family::of_prefix(prefix).number();
        m.fixed(&[family, prefix.prefix(), 0, 0, self.short_table(), self.protocol, scope, kind, 0, 0, 0, 0]);
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

/// A route as the kernel tells it, in a dump or in a notification.
#[derive(Debug)]
pub(crate) struct KernelRoute {
    pub(crate) prefix: IpNetwork,
    pub(crate) protocol: u8,
    pub(crate) metric: u32,
    pub(crate) table: u32,
    pub(crate) blackhole: bool,
    pub(crate) unicast: bool,
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
        let mut single = KernelHop { ifindex: 0, gateway: None, weight: 0 };
        let mut this = Self {
            prefix: IpNetwork::new(destination, 0).ok()?,
            protocol,
            metric: 0,
            table: u32::from(table),
            blackhole: kind == RTN_BLACKHOLE,
            unicast: kind == RTN_UNICAST,
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
                _ => {}
            }
        }
        if this.hops.is_empty() && this.unicast {
            this.hops.push(single);
        }
        this.prefix = match destination {
            IpAddr::V4(ip) => IpNetwork::V4(Ipv4Network::new(ip, length).ok()?),
            IpAddr::V6(ip) => IpNetwork::V6(Ipv6Network::new(ip, length).ok()?),
        };
        Some(this)
    }

    /// The same as a route of ours; `None` when it has a shape that we never write.
    pub(crate) fn as_route(&self) -> Option<Route> {
        if self.blackhole {
            return Some(Route::Blackhole);
        }
        let hop = |hop: &KernelHop| {
            let gateway = hop.gateway?;
            (hop.weight == 0).then_some(NextHop { gateway, ifindex: hop.ifindex })
        };
        if !self.unicast {
            return None;
        }
        Route::via(self.hops.iter().map(hop).collect::<Option<Vec<_>>>()?)
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
        hops.push(KernelHop { ifindex, gateway, weight: bytes[3] });
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

    fn round_trip(prefix: &str, route: &Route) -> KernelRoute {
        let mut batch = Batch::new();
        OURS.put(&mut batch, 0, prefix.parse().unwrap(), route);
        let (header, payload) = Messages::new(batch.bytes()).next().unwrap();
        assert_eq!(header.kind, RTM_NEWROUTE);
        KernelRoute::parse(payload).unwrap()
    }

    fn hop(gateway: &str, ifindex: u32) -> NextHop {
        NextHop { gateway: gateway.parse().unwrap(), ifindex }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let cases = [
            ("10.1.0.0/26", Route::Blackhole),
            ("10.1.0.0/26", Route::via([hop("192.0.2.1", 3)]).unwrap()),
            ("10.1.0.0/26", Route::via([hop("fe80::1", 3)]).unwrap()),
            ("10.1.0.0/26", Route::via([hop("192.0.2.1", 3), hop("fe80::1", 4)]).unwrap()),
            ("2001:db8::/64", Route::via([hop("fe80::1", 3), hop("fe80::1", 4)]).unwrap()),
            ("0.0.0.0/0", Route::via([hop("192.0.2.1", 3)]).unwrap()),
        ];
        for (prefix, route) in cases {
            let read = round_trip(prefix, &route);
            assert_eq!(read.prefix.to_string(), prefix);
            assert_eq!((read.protocol, read.metric, read.table), (77, 77, 254));
            assert_eq!(read.as_route(), Some(route));
        }
    }

    #[test]
    fn next_hops_are_a_set() {
        let one = Route::via([hop("192.0.2.2", 3), hop("192.0.2.1", 3), hop("192.0.2.2", 3)]);
        assert_eq!(one, Route::via([hop("192.0.2.1", 3), hop("192.0.2.2", 3)]));
        assert_eq!(Route::via([]), None);
    }
}
