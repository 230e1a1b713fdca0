//! The kernel's routes read whole and at once, past the FIB writer's books: what is really there, for whoever compares.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Family;
use super::fib::object::{self, Content, KernelObject, RTM_NEWNEXTHOP};
use super::fib::{KernelRoute, Ownership, RTM_NEWROUTE};
use super::netlink::{Batch, Netlink, NetlinkError};

/// An on-link neighbour: its address and its link.
pub type Neighbour = (IpAddr, u32);

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
                    let neighbours = neighbours(&route, &objects);
                    each(&route, neighbours);
                }
            },
        )?;
    }
    Ok(())
}

/// The kernel names the neighbours of a nexthop object in the route too, or only there, as net.ipv4.nexthop_compat_mode says.
fn neighbours(route: &KernelRoute, objects: &BTreeMap<u32, Content>) -> Vec<Neighbour> {
    let single = |id: &u32| match objects.get(id) {
        Some(Content::Neighbor(neighbor)) => Some((neighbor.gateway, neighbor.ifindex)),
        // Groups hold no groups.
        Some(Content::Members(_) | Content::Strange) | None => None,
    };
    let mut found: Vec<_> = match route.next_hop.map(|id| (id, objects.get(&id))) {
        Some((_, Some(Content::Members(members)))) => members.iter().filter_map(single).collect(),
        Some((id, Some(_))) => single(&id).into_iter().collect(),
        Some((_, None)) | None => route.hops.iter().filter_map(|h| Some((h.gateway?, h.ifindex))).collect(),
    };
    found.sort_unstable();
    found.dedup();
    found
}

/// A kernel without nexthop objects has none.
fn objects(socket: &mut Netlink) -> Result<BTreeMap<u32, Content>, NetlinkError> {
    let mut objects = BTreeMap::new();
    let mut batch = Batch::new();
    object::dump(&mut batch);
    let asked = socket.dump(
        &mut batch,
        || "reading nexthop objects".to_owned(),
        |kind, payload| {
            if kind == RTM_NEWNEXTHOP {
                objects.extend(KernelObject::parse(payload).map(|object| (object.id, object.content)));
            }
        },
    );
    match asked {
        Err(NetlinkError::Refused { refusal, .. }) if refusal.errno == libc::EOPNOTSUPP => Ok(objects),
        other => other.map(|_| objects),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fib::Neighbor;

    #[test]
    fn a_group_leads_to_the_neighbours_of_its_members() {
        let hop = |last: u8| (IpAddr::from([10, 0, 0, last]), 3);
        let one = |last| {
            let (gateway, ifindex) = hop(last);
            Content::Neighbor(Neighbor { gateway, ifindex, onlink: false })
        };
        let group = Content::Members([7, 8, 99].into_iter().collect());
        let objects = BTreeMap::from([(7, one(2)), (8, one(1)), (9, group), (10, Content::Strange)]);
        let route = |next_hop| KernelRoute {
            prefix: "10.9.0.0/24".parse().unwrap(),
            protocol: 77,
            metric: 77,
            table: 254,
            blackhole: false,
            unicast: true,
            next_hop,
            hops: Vec::new(),
        };
        assert_eq!(neighbours(&route(Some(9)), &objects), [hop(1), hop(2)]);
        assert_eq!(neighbours(&route(Some(7)), &objects), [hop(2)]);
        for none in [Some(10), Some(11), None] {
            assert_eq!(neighbours(&route(none), &objects), []);
        }
    }
}
