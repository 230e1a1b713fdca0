//! The kernel's doors: routes, links, packet filter, sets, sysctls. IO only: what should be there is decided elsewhere.
//!
//! ```text
//! netlink -+- conntrack flows that live: read, ended, marked
//!          +- fib      routes we own, written in bulk by a thread of its own
//!          +- link     links, addresses and other owners' routes, as a snapshot and events
//!          +- audit    our routes as they are, when somebody asks
//!          +- neighbour one on-link neighbour, when somebody asks
//!          +- ipset    sets, over a socket that stays open
//!          +- nft_watch  hears when a stranger changes our rules
//! iptables, sysctl, netstat   processes and /proc
//! policy               carries out the policy engine's plan over ipset and iptables
//! cleanup              finds and removes all of ours
//! ```
//!
//! Everything acts in the network namespace of the thread that opens it.

pub mod audit;
pub mod cleanup;
pub mod conntrack;
pub mod egress_nat;
pub mod fib;
pub mod ipset;
pub mod iptables;
pub mod legacy_watch;
pub mod link;
pub mod neighbour;
pub mod netlink;
pub mod netstat;
pub mod nflog;
pub mod nft_watch;
pub mod policy;
pub mod service_guard;
pub mod sysctl;

/// An address family of the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// AF_INET.
    Ipv4,
    /// AF_INET6.
    Ipv6,
}

impl Family {
    /// Both, in the order in which work is done.
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The family of an address.
    pub fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// The family of a prefix.
    pub fn of_prefix(prefix: ipnetwork::IpNetwork) -> Self {
        if prefix.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// AF_INET or AF_INET6, as it stands in netlink messages.
    pub fn number(self) -> u8 {
        match self {
            Self::Ipv4 => libc::AF_INET as u8,
            Self::Ipv6 => libc::AF_INET6 as u8,
        }
    }

    /// From AF_INET or AF_INET6.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::BOTH.into_iter().find(|family| family.number() == number)
    }
}

impl From<manx_bgp::types::Family> for Family {
    fn from(family: manx_bgp::types::Family) -> Self {
        match family {
            manx_bgp::types::Family::Ipv4Unicast => Self::Ipv4,
            manx_bgp::types::Family::Ipv6Unicast => Self::Ipv6,
        }
    }
}

impl From<Family> for manx_bgp::types::Family {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self::Ipv4Unicast,
            Family::Ipv6 => Self::Ipv6Unicast,
        }
    }
}

impl From<manx_policy::model::Family> for Family {
    fn from(family: manx_policy::model::Family) -> Self {
        match family {
            manx_policy::model::Family::Ipv4 => Self::Ipv4,
            manx_policy::model::Family::Ipv6 => Self::Ipv6,
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}
