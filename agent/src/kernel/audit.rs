//! The kernel's routes read whole and at once, past the FIB writer's books: what is really there, for whoever compares.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Family;
use super::fib::{KernelRoute, Ownership, RTM_NEWROUTE, address};
use super::netlink::{Attrs, Batch, NLM_F_DUMP, Netlink, NetlinkError, u32_at};

/// `struct rtmsg`.
const RTMSG: usize = 12;
const RTA_NH_ID: u16 = 30;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
/// `struct nhmsg`.
const NHMSG: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
/// `struct nexthop_grp`.
const MEMBER: usize = 8;

/// An on-link neighbour: its address and its link.
pub type Neighbour = (IpAddr, u32);

/// A nexthop object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Object {
    One(Neighbour),
    Group(Vec<u32>),
}

/// Reads the table of both families, in the network namespace of the calling thread, and hands over each route of our
/// protocol with the neighbours that it leads to, those of its nexthop object too; sorted. A table that changes meanwhile
/// may be told torn: whoever finds a fault looks again.
///
/// # Errors
/// The kernel cannot be asked.
pub(crate) fn read(
    ownership: Ownership,
    mut each: impl FnMut(&KernelRoute, Vec<Neighbour>),
) -> Result<(), NetlinkError> {
    let mut socket = Netlink::route()?;
    let objects = objects(&mut socket)?;
    for family in Family::BOTH {
        let mut batch = Batch::new();
        ownership.dump(&mut batch, family, false);
        socket.dump(
            &mut batch,
            || format!("reading {family} routes"),
            |kind, payload| {
                let route = Some(payload).filter(|_| kind == RTM_NEWROUTE).and_then(KernelRoute::parse);
                // A kernel that filters less than it is asked to tells others' routes as well.
                let ours = |r: &KernelRoute| r.table == ownership.table && r.protocol == ownership.protocol;
                if let Some(route) = route.filter(ours) {
                    let object = object_of(payload).and_then(|id| objects.get(&id));
                    let neighbours = neighbours(&route, object, &objects);
                    each(&route, neighbours);
                }
            },
        )?;
    }
    Ok(())
}

/// The object that a route uses. The kernel names its neighbours in the route too, or only there, as
/// net.ipv4.nexthop_compat_mode says.
fn object_of(payload: &[u8]) -> Option<u32> {
    let id = Attrs::new(payload.get(RTMSG..)?).find(|(kind, _)| *kind == RTA_NH_ID);
    id.and_then(|(_, value)| u32_at(value, 0))
}

fn neighbours(
    route: &KernelRoute,
    object: Option<&Object>,
    objects: &BTreeMap<u32, Object>,
) -> Vec<Neighbour> {
    let single = |id: &u32| match objects.get(id) {
        Some(Object::One(neighbour)) => Some(*neighbour),
        // Groups hold no groups.
        Some(Object::Group(_)) | None => None,
    };
    let mut found: Vec<_> = match object {
        Some(Object::One(neighbour)) => vec![*neighbour],
        Some(Object::Group(members)) => members.iter().filter_map(single).collect(),
        None => route.hops.iter().filter_map(|h| Some((h.gateway?, h.ifindex))).collect(),
    };
    found.sort_unstable();
    found.dedup();
    found
}

/// A kernel without nexthop objects has none.
fn objects(socket: &mut Netlink) -> Result<BTreeMap<u32, Object>, NetlinkError> {
    let mut objects = BTreeMap::new();
    let mut batch = Batch::new();
    batch.message(RTM_GETNEXTHOP, NLM_F_DUMP, |m| m.fixed(&[0; NHMSG]));
    let asked = socket.dump(
        &mut batch,
        || "reading nexthop objects".to_owned(),
        |kind, payload| {
            if kind == RTM_NEWNEXTHOP {
                objects.extend(parse_object(payload));
            }
        },
    );
    match asked {
        Err(NetlinkError::Refused { refusal, .. }) if refusal.errno == libc::EOPNOTSUPP => Ok(objects),
        other => other.map(|_| objects),
    }
}

/// `None` for a blackhole and for what leads to a link without a neighbour: we write neither.
fn parse_object(payload: &[u8]) -> Option<(u32, Object)> {
    let (mut id, mut link, mut gateway, mut members) = (None, 0, None, None);
    for (kind, value) in Attrs::new(payload.get(NHMSG..)?) {
        match kind {
            NHA_ID => id = u32_at(value, 0),
            NHA_OIF => link = u32_at(value, 0)?,
            NHA_GATEWAY => gateway = address(value),
            NHA_GROUP => {
                members = Some(value.chunks_exact(MEMBER).filter_map(|m| u32_at(m, 0)).collect());
            }
            _ => {}
        }
    }
    let object = match (members, gateway) {
        (Some(members), _) => Object::Group(members),
        (None, Some(gateway)) => Object::One((gateway, link)),
        (None, None) => return None,
    };
    Some((id?, object))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(header: usize, build: impl FnOnce(&mut Batch)) -> Vec<u8> {
        let mut batch = Batch::new();
        batch.message(RTM_NEWNEXTHOP, 0, |m| {
            m.fixed(&vec![0; header]);
            build(m);
        });
        // Behind `struct nlmsghdr`.
        batch.bytes()[16..].to_vec()
    }

    #[test]
    fn objects_and_groups_are_read_and_nonsense_is_not() {
        let one = payload(NHMSG, |m| {
            m.attr(NHA_ID, &7u32.to_ne_bytes());
            m.attr(NHA_OIF, &3u32.to_ne_bytes());
            m.attr(NHA_GATEWAY, &[10, 0, 0, 1]);
        });
        assert_eq!(parse_object(&one), Some((7, Object::One(("10.0.0.1".parse().unwrap(), 3)))));
        let group = payload(NHMSG, |m| {
            m.attr(NHA_ID, &9u32.to_ne_bytes());
            m.nest(NHA_GROUP, |m| {
                for id in [7u32, 8] {
                    m.fixed(&id.to_ne_bytes());
                    m.fixed(&[0; 4]);
                }
            });
        });
        assert_eq!(parse_object(&group), Some((9, Object::Group(vec![7, 8]))));
        let blackhole = payload(NHMSG, |m| m.attr(NHA_ID, &7u32.to_ne_bytes()));
        assert_eq!(parse_object(&blackhole), None);
        for length in 0..one.len() {
            let _ = parse_object(&one[..length]);
        }
        let route = payload(RTMSG, |m| m.attr(RTA_NH_ID, &9u32.to_ne_bytes()));
        assert_eq!((object_of(&route), object_of(&route[..4])), (Some(9), None));
    }

    #[test]
    fn a_group_leads_to_the_neighbours_of_its_members() {
        let hop = |last: u8| (IpAddr::from([10, 0, 0, last]), 3);
        let objects = BTreeMap::from([
            (7, Object::One(hop(2))),
            (8, Object::One(hop(1))),
            (9, Object::Group(vec![7, 8, 99])),
        ]);
        let mut header = vec![2, 24, 0, 0, 254, 77, 0, 1, 0, 0, 0, 0];
        header.extend(payload(0, |m| m.attr(1, &[10, 9, 0, 0])));
        let mut route = KernelRoute::parse(&header).unwrap();
        assert_eq!(neighbours(&route, objects.get(&9), &objects), [hop(1), hop(2)]);
        assert_eq!(neighbours(&route, objects.get(&7), &objects), [hop(2)]);
        route.hops.clear();
        assert_eq!(neighbours(&route, None, &objects), []);
    }
}
