//! Which address a pod gets: round robin over the ranges of a family, past what is held or cooling.
//!
//! Pure: what is held is asked from the caller, address by address, so that a choice costs one look at a node of few
//! pods and of thousands. Knows nothing of files, locks or containers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// A released address rests this long, in seconds, before another pod gets it: longer than peers, conntrack entries and
/// DNS answers remember the old one.
pub const COOL_DOWN: u64 = 30;

/// How an address stands at the time of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody's, for at least [`COOL_DOWN`].
    Free,
    /// Nobody's, since this time (epoch seconds).
    Cooling(u64),
    /// Some attachment's.
    Held,
}

/// The ranges of one family in a fixed order, without overlaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    ranges: Vec<Range>,
}

/// First and last usable address as numbers; `size` counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    v4: bool,
    first: u128,
    last: u128,
}

impl Pool {
    /// The ranges of `cidrs` that are of the family; ranges within others are left out.
    pub fn new(cidrs: &[IpNetwork], v4: bool) -> Self {
        let mut family: Vec<IpNetwork> = cidrs.iter().filter(|c| c.is_ipv4() == v4).copied().collect();
        // Wider first, so that what lies within another comes after it.
        family.sort_by_key(|c| (c.prefix(), c.network()));
        let mut kept: Vec<IpNetwork> = Vec::new();
        for cidr in family {
            if !kept.iter().any(|k| k.contains(cidr.network())) {
                kept.push(cidr);
            }
        }
        kept.sort_by_key(IpNetwork::network);
        Self { ranges: kept.into_iter().map(Range::usable).collect() }
    }

    /// No range of the family was given.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many addresses can be given to pods.
    pub fn total(&self) -> u128 {
        self.ranges.iter().fold(0, |sum: u128, r| sum.saturating_add(r.size()))
    }

    /// May `ip` be given to a pod from here?
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|r| r.contains(ip))
    }

    /// The address after `ip` in the order of the pool, round the end; the first one for what is not in the pool.
    pub fn after(&self, ip: Option<IpAddr>) -> Option<IpAddr> {
        let first = self.ranges.first()?;
        let Some((at, ip)) = ip.and_then(|ip| Some((self.ranges.iter().position(|r| r.contains(ip))?, ip)))
        else {
            return Some(first.address(first.first));
        };
        let range = &self.ranges[at];
        if number(ip) < range.last {
            return Some(range.address(number(ip) + 1));
        }
        let next = &self.ranges[(at + 1) % self.ranges.len()];
        Some(next.address(next.first))
    }

    /// The next address to give: the first free one after `last` (the one given before), or, when all free ones are
    /// cooling, the one that rests longest. `None`: every address is held.
    ///
    /// `standing` is asked at most once per address; `patience` bounds how many are asked before the caller is told by
    /// [`Choice::Unclear`] to come back with cheaper knowledge.
    pub fn choose(
        &self,
        last: Option<IpAddr>,
        patience: u128,
        mut standing: impl FnMut(IpAddr) -> Standing,
    ) -> Choice {
        let mut oldest: Option<(u64, IpAddr)> = None;
        let mut at = last;
        let total = self.total();
        let mut asked = 0;
        while asked < total {
            if asked == patience {
                return Choice::Unclear;
            }
            asked += 1;
            let Some(candidate) = self.after(at) else { break };
            match standing(candidate) {
                Standing::Free => return Choice::Address(candidate),
                Standing::Cooling(since) if oldest.is_none_or(|(s, _)| since < s) => {
                    oldest = Some((since, candidate));
                }
                Standing::Cooling(_) | Standing::Held => {}
            }
            at = Some(candidate);
        }
        match oldest {
            Some((_, address)) => Choice::Address(address),
            None => Choice::Exhausted,
        }
    }
}

/// What [`Pool::choose`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one.
    Address(IpAddr),
    /// Every address is held.
    Exhausted,
    /// Patience ran out first.
    Unclear,
}

impl Range {
    /// Without the network and broadcast address of an IPv4 subnet (RFC 3021 leaves /31 and /32 whole) and without the
    /// Subnet-Router anycast address of an IPv6 one (RFC 4291 section 2.6.1; RFC 6164 leaves /127 and /128 whole).
    fn usable(cidr: IpNetwork) -> Self {
        let (v4, host_bits) = match cidr {
            IpNetwork::V4(n) => (true, 32 - u32::from(n.prefix())),
            IpNetwork::V6(n) => (false, 128 - u32::from(n.prefix())),
        };
        let first = number(cidr.network());
        let last = match host_bits {
            128 => u128::MAX,
            bits => first + ((1_u128 << bits) - 1),
        };
        match (v4, host_bits) {
            (_, 0 | 1) => Self { v4, first, last },
            (true, _) => Self { v4, first: first + 1, last: last - 1 },
            (false, _) => Self { v4, first: first + 1, last },
        }
    }

    fn size(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.v4 && (self.first..=self.last).contains(&number(ip))
    }

    fn address(&self, number: u128) -> IpAddr {
        if self.v4 {
            let bits = u32::try_from(number).expect("a range of the family IPv4 holds 32-bit numbers");
            IpAddr::V4(Ipv4Addr::from_bits(bits))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(number))
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// How full a range is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// The range.
    pub cidr: IpNetwork,
    /// Addresses that pods can get.
    pub total: u128,
    /// Of these, held by an attachment.
    pub used: u128,
    /// Of these, released less than [`COOL_DOWN`] seconds ago.
    pub cooling: u128,
    /// The rest.
    pub free: u128,
}

/// Counts one range; `held` and `cooling` (address, since when) may hold addresses of other ranges.
pub fn usage(cidr: IpNetwork, held: &[IpAddr], cooling: &BTreeMap<IpAddr, u64>, now: u64) -> PoolUsage {
    let range = Range::usable(cidr);
    let count = |n: usize| n as u128;
    let used = count(held.iter().filter(|ip| range.contains(**ip)).count());
    let cooling = count(
        cooling
            .iter()
            .filter(|(ip, since)| is_cooling(**since, now) && range.contains(**ip) && !held.contains(ip))
            .count(),
    );
    let total = range.size();
    PoolUsage { cidr, total, used, cooling, free: total.saturating_sub(used).saturating_sub(cooling) }
}

/// Does an address that was released at `since` still rest? Not when the clock has been set back since.
pub fn is_cooling(since: u64, now: u64) -> bool {
    now.checked_sub(since).is_some_and(|rested| rested < COOL_DOWN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn nets(cidrs: &[&str]) -> Vec<IpNetwork> {
        cidrs.iter().map(|c| c.parse().unwrap()).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn all(pool: &Pool) -> Vec<String> {
        let mut out = Vec::new();
        let mut at = None;
        for _ in 0..pool.total() {
            at = pool.after(at);
            out.push(at.unwrap().to_string());
        }
        out
    }

    #[test]
    fn network_and_broadcast_of_an_ipv4_range_are_never_given() {
        assert_eq!(all(&Pool::new(&nets(&["10.0.0.8/30"]), true)), ["10.0.0.9", "10.0.0.10"]);
        assert_eq!(all(&Pool::new(&nets(&["10.0.0.8/31"]), true)), ["10.0.0.8", "10.0.0.9"]);
        assert_eq!(all(&Pool::new(&nets(&["10.0.0.8/32"]), true)), ["10.0.0.8"]);
    }

    #[test]
    fn the_subnet_router_anycast_address_is_never_given() {
        assert_eq!(all(&Pool::new(&nets(&["fd00::/126"]), false)), ["fd00::1", "fd00::2", "fd00::3"]);
        assert_eq!(all(&Pool::new(&nets(&["fd00::/127"]), false)), ["fd00::", "fd00::1"]);
    }

    #[test]
    fn several_ranges_of_a_family_follow_one_another_and_overlaps_count_once() {
        let pool = Pool::new(&nets(&["10.0.1.0/30", "10.0.0.0/30", "fd00::/64", "10.0.1.2/31"]), true);
        assert_eq!(all(&pool), ["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.0.1.2"]);
        assert_eq!(pool.after(Some(ip("10.0.1.2"))), Some(ip("10.0.0.1")));
    }

    #[test]
    fn the_widest_range_has_a_size() {
        assert_eq!(Pool::new(&nets(&["::/0"]), false).total(), u128::MAX);
        assert_eq!(Pool::new(&nets(&["0.0.0.0/0"]), true).total(), (1 << 32) - 2);
    }

    #[test]
    fn an_address_of_yesterdays_range_starts_from_the_beginning() {
        let pool = Pool::new(&nets(&["10.0.0.0/29"]), true);
        assert_eq!(pool.after(Some(ip("192.0.2.1"))), Some(ip("10.0.0.1")));
    }

    #[test]
    fn choice_is_round_robin() {
        let pool = Pool::new(&nets(&["10.0.0.0/29"]), true);
        let choice = pool.choose(Some(ip("10.0.0.3")), 100, |_| Standing::Free);
        assert_eq!(choice, Choice::Address(ip("10.0.0.4")));
    }

    #[test]
    fn a_cooling_address_is_given_only_when_nothing_is_free_and_then_the_oldest_first() {
        let pool = Pool::new(&nets(&["10.0.0.0/29"]), true);
        let standing = |free: Option<&str>| {
            let free = free.map(ip);
            move |a: IpAddr| match a {
                a if Some(a) == free => Standing::Free,
                a if a == ip("10.0.0.2") => Standing::Cooling(200),
                a if a == ip("10.0.0.5") => Standing::Cooling(100),
                _ => Standing::Held,
            }
        };
        let choose = |free| pool.choose(Some(ip("10.0.0.1")), 100, standing(free));
        assert_eq!(choose(Some("10.0.0.1")), Choice::Address(ip("10.0.0.1")));
        assert_eq!(choose(None), Choice::Address(ip("10.0.0.5")));
    }

    #[test]
    fn a_full_pool_is_exhausted_and_an_impatient_search_says_so() {
        let pool = Pool::new(&nets(&["10.0.0.0/24"]), true);
        assert_eq!(pool.choose(None, 1000, |_| Standing::Held), Choice::Exhausted);
        assert_eq!(pool.choose(None, 16, |_| Standing::Held), Choice::Unclear);
        assert_eq!(Pool::new(&[], true).choose(None, 1000, |_| Standing::Free), Choice::Exhausted);
    }

    #[test]
    fn usage_counts_only_what_lies_in_the_range() {
        let held = [ip("10.0.0.1"), ip("10.0.1.1"), ip("fd00::1")];
        let cooling = BTreeMap::from([(ip("10.0.0.2"), 95), (ip("10.0.0.3"), 10), (ip("10.0.1.2"), 95)]);
        let usage = usage("10.0.0.0/29".parse().unwrap(), &held, &cooling, 100);
        assert_eq!((usage.total, usage.used, usage.cooling, usage.free), (6, 1, 1, 4));
    }

    #[test]
    fn a_clock_that_was_set_back_ends_the_rest() {
        assert!(is_cooling(100, 129));
        assert!(!is_cooling(100, 130));
        assert!(!is_cooling(100, 50));
    }

    proptest! {
        /// Any mixture of takes and releases: never two owners, nothing outside the ranges, exhausted only when full,
        /// and no reuse within the cool-down while something else is free.
        #[test]
        fn no_address_ever_has_two_owners(ops in prop::collection::vec((any::<bool>(), 0_usize..20), 1..300)) {
            let pool = Pool::new(&nets(&["10.0.0.0/29", "10.0.9.0/30"]), true);
            let mut held: Vec<IpAddr> = Vec::new();
            let mut released: BTreeMap<IpAddr, u64> = BTreeMap::new();
            let mut last = None;
            for (now, (take, pick)) in (1000_u64..).step_by(3).zip(ops) {
                if take {
                    let standing = |a: IpAddr| match released.get(&a) {
                        _ if held.contains(&a) => Standing::Held,
                        Some(since) if is_cooling(*since, now) => Standing::Cooling(*since),
                        _ => Standing::Free,
                    };
                    match pool.choose(last, 1000, standing) {
                        Choice::Address(a) => {
                            prop_assert!(!held.contains(&a) && pool.contains(a));
                            let free = pool.total() as usize - held.len()
                                - released.iter().filter(|(a, s)| is_cooling(**s, now) && !held.contains(a)).count();
                            let rests = released.get(&a).is_some_and(|s| is_cooling(*s, now));
                            prop_assert!(!rests || free == 0);
                            held.push(a);
                            last = Some(a);
                        }
                        Choice::Exhausted => prop_assert_eq!(held.len() as u128, pool.total()),
                        Choice::Unclear => prop_assert!(false, "patience was enough"),
                    }
                } else if !held.is_empty() {
                    let a = held.swap_remove(pick % held.len());
                    released.insert(a, now);
                }
            }
            let distinct: BTreeSet<_> = held.iter().collect();
            prop_assert_eq!(distinct.len(), held.len());
        }
    }
}
