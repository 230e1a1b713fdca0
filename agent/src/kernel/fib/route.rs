//! What a route of ours is: next hops or a blackhole. Vocabulary of the FIB writer and of those who feed it.

use std::net::IpAddr;

use smallvec::SmallVec;

/// One way out: a gateway on a link. The gateway may be of the other family (RFC 8950: IPv4 over an IPv6 next hop).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHop {
    /// The neighbour, on-link on `ifindex`.
    pub gateway: IpAddr,
    /// The link's index in this namespace.
    pub ifindex: u32,
}

/// One or more distinct next hops in order: equal sets compare equal, and equal routes make equal messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHops(SmallVec<[NextHop; 1]>);

impl NextHops {
    /// Sorts and deduplicates; `None` when there is none.
    pub fn new(hops: impl IntoIterator<Item = NextHop>) -> Option<Self> {
        let mut hops: SmallVec<[NextHop; 1]> = hops.into_iter().collect();
        hops.sort_unstable();
        hops.dedup();
        (!hops.is_empty()).then_some(Self(hops))
    }
}

impl std::ops::Deref for NextHops {
    type Target = [NextHop];

    fn deref(&self) -> &[NextHop] {
        &self.0
    }
}

/// What the kernel does with packets for a prefix of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Route {
    /// Forwards over one of the next hops, chosen by flow, all of equal weight.
    Unicast(NextHops),
    /// Drops silently: our own block, where no pod holds the address.
    Blackhole,
}

impl Route {
    /// A unicast route; `None` without next hops.
    pub fn via(hops: impl IntoIterator<Item = NextHop>) -> Option<Self> {
        NextHops::new(hops).map(Self::Unicast)
    }

    /// The links it goes out of.
    pub fn links(&self) -> impl Iterator<Item = u32> {
        match self {
            Self::Unicast(hops) => &hops.0[..],
            Self::Blackhole => &[],
        }
        .iter()
        .map(|hop| hop.ifindex)
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blackhole => f.write_str("blackhole"),
            Self::Unicast(hops) => {
                for (i, hop) in hops.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}via {} on link {}", hop.gateway, hop.ifindex)?;
                }
                Ok(())
            }
        }
    }
}
