//! What a route of ours is: next hops or a blackhole. Vocabulary of the FIB writer and of those who feed it.

use std::net::IpAddr;

use smallvec::SmallVec;

/// What a route is forwarded to, by name. Where packets for it leave is said apart, with
/// [`FibHandle::resolve`](super::FibHandle::resolve), once for all routes that name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHop {
    /// The router's address, of either family (RFC 8950: IPv4 over an IPv6 next hop).
    pub gateway: IpAddr,
    /// The link that it is a neighbour on, by its index in this namespace; such a next hop needs no resolution. 0: it may
    /// be anywhere.
    pub ifindex: u32,
}

impl From<manx_bgp::speaker::FibNextHop> for NextHop {
    fn from(hop: manx_bgp::speaker::FibNextHop) -> Self {
        Self { gateway: hop.gateway, ifindex: hop.ifindex }
    }
}

impl std::fmt::Display for NextHop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.ifindex {
            0 => write!(f, "{}", self.gateway),
            link => write!(f, "{} on link {link}", self.gateway),
        }
    }
}

/// A router on a link of ours: where packets for a next hop leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbor {
    /// Its address. The family may differ from the next hop's and from the route's.
    pub gateway: IpAddr,
    /// The link, never 0.
    pub ifindex: u32,
    /// It is to be found on the link though no subnet says so (RTNH_F_ONLINK).
    pub onlink: bool,
}

impl From<NextHop> for Neighbor {
    /// Of a next hop that names its link.
    fn from(hop: NextHop) -> Self {
        Self { gateway: hop.gateway, ifindex: hop.ifindex, onlink: false }
    }
}

impl std::fmt::Display for Neighbor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "via {} on link {}", self.gateway, self.ifindex)
    }
}

/// Where packets for a next hop leave: over one of these, chosen by flow. Distinct and in order; none: nowhere.
pub type Neighbors = SmallVec<[Neighbor; 1]>;

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
    /// Forwards.
    Unicast {
        /// Over one of these, chosen by flow, all of equal weight. Those that do not resolve are left out.
        hops: NextHops,
        /// Over this one while none of `hops` resolves. All routes with the same pair turn to it at once.
        backup: Option<NextHop>,
    },
    /// Drops silently: our own block, where no pod holds the address.
    Blackhole,
}

impl Route {
    /// A unicast route; `None` without next hops.
    pub fn via(hops: impl IntoIterator<Item = NextHop>) -> Option<Self> {
        NextHops::new(hops).map(|hops| Self::Unicast { hops, backup: None })
    }

    /// The same with another way for the time when none of its next hops resolves.
    #[must_use]
    pub fn with_backup(self, other: Option<NextHop>) -> Self {
        match self {
            Self::Unicast { hops, .. } => {
                let backup = other.filter(|other| !hops.contains(other));
                Self::Unicast { hops, backup }
            }
            Self::Blackhole => Self::Blackhole,
        }
    }

    /// Every next hop that it speaks of, the backup last.
    pub fn mentions(&self) -> impl Iterator<Item = NextHop> {
        let (hops, backup) = match self {
            Self::Unicast { hops, backup } => (&hops.0[..], *backup),
            Self::Blackhole => (&[][..], None),
        };
        hops.iter().copied().chain(backup)
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blackhole => f.write_str("blackhole"),
            Self::Unicast { hops, backup } => {
                for (i, hop) in hops.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}via {hop}")?;
                }
                backup.map_or(Ok(()), |hop| write!(f, ", else via {hop}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(last: u8) -> NextHop {
        NextHop { gateway: [192, 0, 2, last].into(), ifindex: 3 }
    }

    #[test]
    fn next_hops_are_a_set() {
        let one = Route::via([hop(2), hop(1), hop(2)]);
        assert_eq!(one, Route::via([hop(1), hop(2)]));
        assert_eq!(Route::via([]), None);
    }

    #[test]
    fn a_backup_is_another_way() {
        let route = Route::via([hop(1)]).unwrap();
        assert_eq!(route.clone().with_backup(Some(hop(1))), route);
        let backed = route.with_backup(Some(hop(2)));
        assert_eq!(backed.mentions().collect::<Vec<_>>(), [hop(1), hop(2)]);
        assert_eq!(backed.to_string(), "via 192.0.2.1 on link 3, else via 192.0.2.2 on link 3");
    }
}
