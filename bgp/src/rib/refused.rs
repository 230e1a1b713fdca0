//! What a peer told us and we did not take, with the reason: 16 bytes for an IPv4 route without Add-Path, no attributes.
//!
//! A filter that refuses bounds what is accepted, so that something has to bound what is refused: beyond [`KEPT`] routes are
//! only counted.

use rustc_hash::FxHashMap;

use crate::rib::adj_rib_in::{Reject, RouteKey};
use crate::types::{Family, Ipv4Prefix, Ipv6Prefix, PerFamily, Prefix};

/// Refused routes of a peer that are remembered one by one: more than a rack, a data centre or a mistake of theirs brings, less
/// than the table of the Internet.
const KEPT: usize = 1 << 16;

/// Refused routes and why.
#[derive(Default)]
pub(super) struct Refused {
    ipv4: FxHashMap<Ipv4Prefix, Reject>,
    ipv6: FxHashMap<Ipv6Prefix, Reject>,
    /// Those with a path identifier.
    paths: FxHashMap<(Prefix, u32), Reject>,
    kept: PerFamily<Counts>,
    /// Refused when there were so many already. One that is told twice counts twice.
    beyond: PerFamily<usize>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    all: usize,
    /// Of those, refused by the prefix limit.
    over_limit: usize,
}

impl Counts {
    fn count(&mut self, why: Reject) {
        self.all += 1;
        self.over_limit += usize::from(why == Reject::MaxPrefixes);
    }

    fn discount(&mut self, why: Reject) {
        self.all -= 1;
        self.over_limit -= usize::from(why == Reject::MaxPrefixes);
    }
}

impl Refused {
    pub(super) fn insert(&mut self, key: RouteKey, why: Reject) {
        let family = key.prefix.family();
        let full = Family::ALL.iter().map(|family| self.kept[*family].all).sum::<usize>() >= KEPT;
        if full && self.get(key).is_none() {
            self.beyond[family] += 1;
            return;
        }
        let before = match (key.prefix, key.path_id) {
            (Prefix::V4(p), None) => self.ipv4.insert(p, why),
            (Prefix::V6(p), None) => self.ipv6.insert(p, why),
            (prefix, Some(id)) => self.paths.insert((prefix, id), why),
        };
        if let Some(before) = before {
            self.kept[family].discount(before);
        }
        self.kept[family].count(why);
    }

    /// It is refused no more. Whether it was known to be.
    pub(super) fn remove(&mut self, key: RouteKey) -> bool {
        let before = match (key.prefix, key.path_id) {
            // Mostly nothing is refused, and then nothing need be looked for.
            (Prefix::V4(p), None) if !self.ipv4.is_empty() => self.ipv4.remove(&p),
            (Prefix::V6(p), None) if !self.ipv6.is_empty() => self.ipv6.remove(&p),
            (_, None) => None,
            (prefix, Some(id)) => self.paths.remove(&(prefix, id)),
        };
        if let Some(before) = before {
            self.kept[key.prefix.family()].discount(before);
        }
        before.is_some()
    }

    /// The peer takes back a route that is not in the table: if it is not known here either, it was one of those beyond.
    pub(super) fn withdraw(&mut self, key: RouteKey) {
        if !self.remove(key) {
            let beyond = &mut self.beyond[key.prefix.family()];
            *beyond = beyond.saturating_sub(1);
        }
    }

    pub(super) fn get(&self, key: RouteKey) -> Option<Reject> {
        match (key.prefix, key.path_id) {
            (Prefix::V4(p), None) => self.ipv4.get(&p).copied(),
            (Prefix::V6(p), None) => self.ipv6.get(&p).copied(),
            (prefix, Some(id)) => self.paths.get(&(prefix, id)).copied(),
        }
    }

    /// Those of one prefix.
    pub(super) fn of(&self, prefix: Prefix) -> impl Iterator<Item = (RouteKey, Reject)> + '_ {
        let plain = RouteKey { prefix, path_id: None };
        let with_id = self.paths.iter().filter(move |((p, _), _)| *p == prefix);
        let with_id =
            with_id.map(|((prefix, id), why)| (RouteKey { prefix: *prefix, path_id: Some(*id) }, *why));
        self.get(plain).map(|why| (plain, why)).into_iter().chain(with_id)
    }

    /// How many count against the prefix limit: those that the limit itself refused do not, and those beyond take no memory.
    pub(super) fn within_limit(&self, family: Family) -> usize {
        self.kept[family].all - self.kept[family].over_limit
    }

    /// How many there are, about as many where they are more than are remembered.
    pub(super) fn counted(&self, family: Family) -> usize {
        self.kept[family].all + self.beyond[family]
    }

    /// How many are only counted.
    pub(super) fn beyond(&self) -> usize {
        Family::ALL.iter().map(|family| self.beyond[*family]).sum()
    }

    pub(super) fn clear(&mut self, family: Family) {
        match family {
            Family::Ipv4Unicast => self.ipv4 = FxHashMap::default(),
            Family::Ipv6Unicast => self.ipv6 = FxHashMap::default(),
        }
        self.paths.retain(|(prefix, _), _| prefix.family() != family);
        self.kept[family] = Counts::default();
        self.beyond[family] = 0;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (RouteKey, Reject)> + '_ {
        let plain = |prefix| RouteKey { prefix, path_id: None };
        let v4 = self.ipv4.iter().map(move |(p, why)| (plain(Prefix::V4(*p)), *why));
        let v6 = self.ipv6.iter().map(move |(p, why)| (plain(Prefix::V6(*p)), *why));
        let paths = self
            .paths
            .iter()
            .map(|((prefix, id), why)| (RouteKey { prefix: *prefix, path_id: Some(*id) }, *why));
        v4.chain(v6).chain(paths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize, path_id: Option<u32>) -> RouteKey {
        let address = std::net::Ipv4Addr::from(u32::try_from(number).unwrap() << 8);
        RouteKey { prefix: format!("{address}/24").parse().unwrap(), path_id }
    }

    #[test]
    fn what_is_refused_beyond_the_bound_is_counted_and_forgotten() {
        let mut refused = Refused::default();
        for number in 0..KEPT + 10 {
            refused.insert(key(number, None), Reject::AsLoop);
        }
        assert_eq!(
            (refused.iter().count(), refused.beyond(), refused.counted(Family::Ipv4Unicast)),
            (KEPT, 10, KEPT + 10)
        );
        refused.insert(key(3, None), Reject::MaxPrefixes);
        assert_eq!(
            (refused.get(key(3, None)), refused.beyond()),
            (Some(Reject::MaxPrefixes), 10),
            "a known one changes"
        );
        assert_eq!(refused.within_limit(Family::Ipv4Unicast), KEPT - 1);
        refused.withdraw(key(KEPT + 5, None));
        refused.withdraw(key(3, None));
        assert_eq!((refused.beyond(), refused.counted(Family::Ipv4Unicast)), (9, KEPT + 8));
        refused.clear(Family::Ipv4Unicast);
        assert_eq!((refused.iter().count(), refused.counted(Family::Ipv4Unicast)), (0, 0));
    }

    #[test]
    fn paths_of_a_prefix_are_told_apart_by_their_identifier() {
        let mut refused = Refused::default();
        for id in [None, Some(1), Some(2)] {
            refused.insert(key(7, id), Reject::AsLoop);
        }
        assert!(refused.remove(key(7, Some(1))) && !refused.remove(key(7, Some(1))));
        let mut left: Vec<_> = refused.of(key(7, None).prefix).map(|(key, _)| key.path_id).collect();
        left.sort_unstable();
        assert_eq!((left, refused.counted(Family::Ipv4Unicast)), (vec![None, Some(2)], 2));
    }
}
