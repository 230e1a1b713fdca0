//! Nexthop objects as rtnetlink spells them (Linux 5.3, include/uapi/linux/nexthop.h). Pure: bytes in, bytes out.

use smallvec::SmallVec;

use super::message::address;
use super::route::Neighbor;
use crate::kernel::Family;
use crate::kernel::netlink::{Attrs, Batch, NLM_F_DUMP, u32_at};

pub(crate) const RTM_NEWNEXTHOP: u16 = 104;
pub(crate) const RTM_DELNEXTHOP: u16 = 105;
pub(crate) const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
/// `struct nhmsg`: family, scope, protocol, reserved, flags.
const NHMSG: usize = 8;
/// `struct nexthop_grp`: id, weight minus one (low and high byte), reserved.
const MEMBER: usize = 8;
/// The gateway is on the link whatever the routes say.
pub(super) const RTNH_F_ONLINK: u32 = 4;

/// What an object does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Content {
    /// Sends to one neighbour.
    Neighbor(Neighbor),
    /// Spreads flows over these objects by equal weights; ascending.
    Members(SmallVec<[u32; 4]>),
    /// Something that we never write.
    Strange,
}

impl Content {
    /// The objects that it spreads over; none of a single one.
    pub(super) fn members(&self) -> &[u32] {
        match self {
            Self::Members(members) => members,
            Self::Neighbor(_) | Self::Strange => &[],
        }
    }
}

/// Appends RTM_NEWNEXTHOP.
pub(super) fn put(batch: &mut Batch, flags: u16, protocol: u8, id: u32, content: &Content) {
    batch.message(RTM_NEWNEXTHOP, flags, |m| match content {
        Content::Neighbor(neighbor) => {
            let onlink = if neighbor.onlink { RTNH_F_ONLINK } else { 0 };
            header(m, Family::of(neighbor.gateway).number(), protocol, onlink);
            m.attr(NHA_ID, &id.to_ne_bytes());
            m.attr(NHA_OIF, &neighbor.ifindex.to_ne_bytes());
            match neighbor.gateway {
                std::net::IpAddr::V4(gateway) => m.attr(NHA_GATEWAY, &gateway.octets()),
                std::net::IpAddr::V6(gateway) => m.attr(NHA_GATEWAY, &gateway.octets()),
            }
        }
        Content::Members(members) => {
            header(m, 0, protocol, 0);
            m.attr(NHA_ID, &id.to_ne_bytes());
            m.nest(NHA_GROUP, |m| {
                for member in members {
                    m.fixed(&member.to_ne_bytes());
                    m.fixed(&[0; MEMBER - 4]);
                }
            });
        }
        Content::Strange => unreachable!("what is strange is never wanted"),
    });
}

/// Appends RTM_DELNEXTHOP. The kernel deletes the routes that use the object with it.
pub(crate) fn delete(batch: &mut Batch, id: u32) {
    batch.message(RTM_DELNEXTHOP, 0, |m| {
        m.fixed(&[0; NHMSG]);
        m.attr(NHA_ID, &id.to_ne_bytes());
    });
}

/// Appends a request for all objects.
pub(crate) fn dump(batch: &mut Batch) {
    batch.message(RTM_GETNEXTHOP, NLM_F_DUMP, |m| m.fixed(&[0; NHMSG]));
}

fn header(m: &mut Batch, family: u8, protocol: u8, flags: u32) {
    m.fixed(&[family, 0, protocol, 0]);
    m.fixed(&flags.to_ne_bytes());
}

/// An object as the kernel tells it, in a dump or in a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelObject {
    pub(crate) id: u32,
    pub(crate) protocol: u8,
    pub(crate) content: Content,
    /// The link of a single next hop; 0 for a group or a blackhole.
    pub(crate) ifindex: u32,
}

impl KernelObject {
    /// From the payload of RTM_NEWNEXTHOP or RTM_DELNEXTHOP.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let protocol = *payload.get(2)?;
        let flags = u32_at(payload, 4)?;
        let (mut id, mut ifindex, mut gateway, mut members) = (None, 0, None, None);
        for (kind, value) in Attrs::new(payload.get(NHMSG..)?) {
            match kind {
                NHA_ID => id = u32_at(value, 0),
                NHA_OIF => ifindex = u32_at(value, 0)?,
                NHA_GATEWAY => gateway = address(value),
                NHA_GROUP => members = Some(group(value)),
                _ => {}
            }
        }
        let content = match (members, gateway) {
            (Some(members), _) => members.map_or(Content::Strange, Content::Members),
            (None, Some(gateway)) if ifindex != 0 => {
                Content::Neighbor(Neighbor { gateway, ifindex, onlink: flags & RTNH_F_ONLINK != 0 })
            }
            _ => Content::Strange,
        };
        Some(Self { id: id?, protocol, content, ifindex })
    }
}

/// The members in order; `None` when they weigh differently.
fn group(bytes: &[u8]) -> Option<SmallVec<[u32; 4]>> {
    let mut members: SmallVec<[u32; 4]> = SmallVec::new();
    for member in bytes.chunks_exact(MEMBER) {
        if member[4..6] != [0, 0] {
            return None;
        }
        members.extend(u32_at(member, 0));
    }
    members.sort_unstable();
    Some(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::Messages;

    #[test]
    fn what_is_written_is_read_back() {
        let neighbor = |gateway: &str, onlink| {
            Content::Neighbor(Neighbor { gateway: gateway.parse().unwrap(), ifindex: 3, onlink })
        };
        for content in [
            neighbor("192.0.2.1", false),
            neighbor("192.0.2.1", true),
            neighbor("fe80::1", false),
            Content::Members([7, 9].into_iter().collect()),
        ] {
            let mut batch = Batch::new();
            put(&mut batch, 0, 77, 0x4d00_0001, &content);
            let (header, payload) = Messages::new(batch.bytes()).next().unwrap();
            assert_eq!(header.kind, RTM_NEWNEXTHOP);
            let read = KernelObject::parse(payload).unwrap();
            assert_eq!((read.id, read.protocol, &read.content), (0x4d00_0001, 77, &content));
        }
    }

    #[test]
    fn unequal_weights_are_strange() {
        assert_eq!(group(&[1, 0, 0, 0, 1, 0, 0, 0]), None);
        assert_eq!(KernelObject::parse(&[0; 7]), None, "cut short");
    }
}
