//! The kernel's interface addresses, by getifaddrs(3): the lookup for those who have no view of links of their own.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockaddrStorage;

use crate::net::{InterfaceAddresses, InterfaceLookup};
use crate::speaker::Endpoints;
use crate::types::Prefix;

/// Asks the kernel at each call. An address that no interface holds gives an empty answer.
pub fn system_interfaces() -> InterfaceLookup {
    Arc::new(|local| {
        let Ok(list) = getifaddrs() else { return InterfaceAddresses::default() };
        let addresses: Vec<Held> = list.filter_map(|entry| held(&entry)).collect();
        offered(&addresses, local)
    })
}

/// The link-local address of an interface.
pub(super) fn link_local_of(ifindex: u32) -> Option<Ipv6Addr> {
    let on_it = getifaddrs().ok()?.filter_map(|entry| held(&entry)).filter(|held| held.ifindex == ifindex);
    let mut link_local = on_it.filter_map(|held| match held.address {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(ip),
        _ => None,
    });
    link_local.next()
}

/// An address on an interface.
#[derive(Clone, Debug)]
struct Held {
    interface: String,
    ifindex: u32,
    address: IpAddr,
    prefix_len: u8,
}

fn held(entry: &nix::ifaddrs::InterfaceAddress) -> Option<Held> {
    let address = ip(entry.address.as_ref()?)?;
    let prefix_len = match ip(entry.netmask.as_ref()?)? {
        IpAddr::V4(mask) => mask.to_bits().count_ones(),
        IpAddr::V6(mask) => mask.to_bits().count_ones(),
    };
    let ifindex = if_nametoindex(entry.interface_name.as_str()).unwrap_or(0);
    let prefix_len = u8::try_from(prefix_len).expect("at most 128");
    Some(Held { interface: entry.interface_name.clone(), ifindex, address, prefix_len })
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    address
        .as_sockaddr_in()
        .map(|v4| v4.ip().into())
        .or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

/// What the interface with the local address offers; a link-local address names its interface by the scope.
fn offered(addresses: &[Held], local: SocketAddr) -> InterfaceAddresses {
    let scope = match local {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let ip = local.ip().to_canonical();
    let Some(holder) = addresses.iter().find(|h| h.address == ip && (scope == 0 || scope == h.ifindex))
    else {
        return InterfaceAddresses::default();
    };
    let mut offered = InterfaceAddresses { ifindex: holder.ifindex, ..InterfaceAddresses::default() };
    // The session's own address first, so that it is the one that is offered.
    let others = addresses.iter().filter(|h| h.interface == holder.interface && h.address != ip);
    for held in std::iter::once(holder).chain(others) {
        let is_link_local = matches!(held.address, IpAddr::V6(a) if a.is_unicast_link_local());
        match held.address {
            IpAddr::V6(a) if is_link_local => offered.link_local = offered.link_local.or(Some(a)),
            address if address.is_loopback() => continue,
            IpAddr::V4(a) => offered.ipv4 = offered.ipv4.or(Some(a)),
            IpAddr::V6(a) => offered.ipv6 = offered.ipv6.or(Some(a)),
        }
        if !is_link_local {
            let subnet =
                Prefix::new(held.address, held.prefix_len).expect("a netmask is no longer than its address");
            if !offered.subnets.contains(&subnet) {
                offered.subnets.push(subnet);
            }
        }
    }
    offered
}

/// Puts the two ends of a connection and the interface's addresses together.
pub(super) fn endpoints(local: SocketAddr, remote: SocketAddr, interface: InterfaceAddresses) -> Endpoints {
    let link_local = matches!(remote.ip(), IpAddr::V6(a) if a.is_unicast_link_local());
    Endpoints {
        local,
        remote,
        ifindex: interface.ifindex,
        ipv4: interface.ipv4,
        ipv6: interface.ipv6,
        link_local: interface.link_local,
        connected: link_local || interface.subnets.iter().any(|subnet| subnet.contains_addr(remote.ip())),
        subnets: interface.subnets,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Vec<Held> {
        [
            ("lo", 1, "127.0.0.1", 8),
            ("lo", 1, "::1", 128),
            ("eth0", 2, "10.1.0.10", 24),
            ("eth0", 2, "10.1.0.11", 24),
            ("eth0", 2, "fd00:1::11", 64),
            ("eth0", 2, "fe80::1", 64),
            ("eth1", 3, "fe80::1", 64),
        ]
        .map(|(interface, ifindex, address, prefix_len)| Held {
            interface: interface.into(),
            ifindex,
            address: address.parse().unwrap(),
            prefix_len,
        })
        .into()
    }

    #[test]
    fn the_sessions_own_address_is_the_one_offered() {
        let offered = offered(&addresses(), "10.1.0.11:179".parse().unwrap());
        assert_eq!((offered.ifindex, offered.ipv4), (2, Some([10, 1, 0, 11].into())));
        assert_eq!(offered.ipv6, Some("fd00:1::11".parse().unwrap()));
        assert_eq!(offered.link_local, Some("fe80::1".parse().unwrap()));
        let subnets: Vec<_> = offered.subnets.iter().map(Prefix::to_string).collect();
        assert_eq!(subnets, ["10.1.0.0/24", "fd00:1::/64"]);
    }

    #[test]
    fn a_link_local_address_is_told_by_its_scope() {
        let local = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 179, 0, 3);
        let offered = offered(&addresses(), local.into());
        assert_eq!((offered.ifindex, offered.ipv4, offered.ipv6), (3, None, None));
        let remote = "[fe80::2]:179".parse().unwrap();
        assert!(endpoints(local.into(), remote, offered).connected);
    }

    #[test]
    fn loopback_addresses_are_nobodys_next_hop() {
        let offered = offered(&addresses(), "127.0.0.1:179".parse().unwrap());
        assert_eq!((offered.ifindex, offered.ipv4, offered.ipv6), (1, None, None));
        assert!(offered.subnets.is_empty());
    }

    #[test]
    fn an_address_that_nobody_holds_offers_nothing() {
        assert_eq!(offered(&addresses(), "10.9.9.9:179".parse().unwrap()), InterfaceAddresses::default());
    }

    #[test]
    fn the_kernel_knows_its_loopback_interface() {
        assert_eq!(system_interfaces()("127.0.0.1:0".parse().unwrap()).ifindex, 1);
    }
}
