//! The prefixes of one family and their paths. Prefixes have slot numbers, so that peers can refer to them in bit sets.
//!
//! An IPv4 prefix with one path costs 8 bytes of key, 24 of paths and about 8 of index.

use std::hash::{BuildHasher as _, Hash};
use std::net::IpAddr;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use crate::rib::chunks::Chunks;
use crate::rib::path::Path;
use crate::types::{Family, Ipv4Prefix, Ipv6Prefix, Prefix};

/// The paths of a prefix; most have one.
pub(crate) type Paths = SmallVec<[Path; 1]>;

/// A family's table.
pub(crate) struct Table {
    keys: Keys,
    paths: Chunks<Paths>,
    free: Vec<u32>,
    /// By slot: how many have still to be told that there are no paths any more; as far as it has ever been needed.
    untold: Vec<u32>,
    /// How many prefixes there are of each length: the only lengths to look at for a longest match.
    lengths: Vec<u32>,
}

enum Keys {
    V4(Index<Ipv4Prefix>),
    V6(Index<Ipv6Prefix>),
}

struct Index<K> {
    slots: HashTable<u32>,
    keys: Chunks<K>,
}

fn hash<K: Hash>(key: &K) -> u64 {
    FxBuildHasher.hash_one(key)
}

impl<K: Hash + Eq + Copy> Index<K> {
    fn new() -> Self {
        Index { slots: HashTable::new(), keys: Chunks::default() }
    }

    fn find(&self, key: K) -> Option<u32> {
        self.slots.find(hash(&key), |slot| self.keys[*slot] == key).copied()
    }

    fn insert(&mut self, slot: u32, key: K) {
        if (slot as usize) < self.keys.len() {
            self.keys[slot] = key;
        } else {
            self.keys.push(key);
        }
        let keys = &self.keys;
        self.slots.insert_unique(hash(&key), slot, |s| hash(&keys[*s]));
    }

    fn remove(&mut self, slot: u32) {
        let key = self.keys[slot];
        if let Ok(entry) = self.slots.find_entry(hash(&key), |s| *s == slot) {
            entry.remove();
        }
    }
}

impl Table {
    pub(crate) fn new(family: Family) -> Self {
        let keys = match family {
            Family::Ipv4Unicast => Keys::V4(Index::new()),
            Family::Ipv6Unicast => Keys::V6(Index::new()),
        };
        Table {
            keys,
            paths: Chunks::default(),
            free: Vec::new(),
            untold: Vec::new(),
            lengths: vec![0; usize::from(family.max_len()) + 1],
        }
    }

    /// The slot of a prefix that is in the table.
    pub(crate) fn find(&self, prefix: Prefix) -> Option<u32> {
        match (&self.keys, prefix) {
            (Keys::V4(index), Prefix::V4(p)) => index.find(p),
            (Keys::V6(index), Prefix::V6(p)) => index.find(p),
            _ => None,
        }
    }

    /// The slot of a prefix, made if need be. The prefix must be of the table's family.
    pub(crate) fn find_or_insert(&mut self, prefix: Prefix) -> u32 {
        if let Some(slot) = self.find(prefix) {
            return slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.paths.push(Paths::new());
            u32::try_from(self.paths.len() - 1).expect("fewer than 2^32 prefixes fit into memory")
        });
        match (&mut self.keys, prefix) {
            (Keys::V4(index), Prefix::V4(p)) => index.insert(slot, p),
            (Keys::V6(index), Prefix::V6(p)) => index.insert(slot, p),
            _ => unreachable!("callers choose the table by the prefix's family"),
        }
        self.lengths[usize::from(prefix.len())] += 1;
        slot
    }

    pub(crate) fn prefix(&self, slot: u32) -> Prefix {
        match &self.keys {
            Keys::V4(index) => Prefix::V4(index.keys[slot]),
            Keys::V6(index) => Prefix::V6(index.keys[slot]),
        }
    }

    pub(crate) fn paths(&self, slot: u32) -> &Paths {
        &self.paths[slot]
    }

    pub(crate) fn paths_mut(&mut self, slot: u32) -> &mut Paths {
        &mut self.paths[slot]
    }

    /// One more than the highest slot ever in use.
    pub(crate) fn slots(&self) -> u32 {
        self.paths.len() as u32
    }

    /// Slots that hold paths.
    pub(crate) fn occupied(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.slots()).filter(|slot| !self.paths[*slot].is_empty())
    }

    /// How many prefixes are in the table, those included that are only still to be withdrawn.
    pub(crate) fn len(&self) -> usize {
        self.paths.len() - self.free.len()
    }

    /// The last path of a slot is gone; `holders` peers (or the FIB) still believe in it. Freed when there are none.
    pub(crate) fn vacate(&mut self, slot: u32, holders: u32) {
        if holders == 0 {
            self.free(slot);
        } else {
            let at = slot as usize;
            if self.untold.len() <= at {
                self.untold.resize(at + 1, 0);
            }
            self.untold[at] = holders;
        }
    }

    /// A slot got paths again.
    pub(crate) fn occupy(&mut self, slot: u32) {
        if let Some(untold) = self.untold.get_mut(slot as usize) {
            *untold = 0;
        }
    }

    /// A holder has been told. Frees a vacant slot with the last one.
    pub(crate) fn released(&mut self, slot: u32) {
        if let Some(untold) = self.untold.get_mut(slot as usize).filter(|untold| **untold > 0) {
            *untold -= 1;
            if *untold == 0 {
                self.free(slot);
            }
        }
    }

    fn free(&mut self, slot: u32) {
        let len = self.prefix(slot).len();
        self.lengths[usize::from(len)] -= 1;
        match &mut self.keys {
            Keys::V4(index) => index.remove(slot),
            Keys::V6(index) => index.remove(slot),
        }
        self.paths[slot] = Paths::new();
        self.free.push(slot);
    }

    /// The longest prefix around an address whose slot satisfies `wanted`.
    pub(crate) fn longest_match(&self, addr: IpAddr, wanted: impl Fn(u32) -> bool) -> Option<u32> {
        (0..self.lengths.len()).rev().filter(|len| self.lengths[*len] > 0).find_map(|len| {
            let slot = self.find(Prefix::new(addr, len as u8)?)?;
            wanted(slot).then_some(slot)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rib::attributes::Attributes;
    use crate::rib::next_hops::NextHopId;
    use crate::rib::sources::SourceId;

    fn p(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    fn path() -> Path {
        let id = Attributes::default().intern(crate::rib::local_attributes());
        Path::new(SourceId::LOCAL, id, NextHopId::LOCAL, None)
    }

    #[test]
    fn a_prefix_with_one_path_costs_what_the_goal_of_150_bytes_a_route_allows() {
        // Index entry and control byte, at the worst load of the hash table; the rest of the goal is for attributes.
        let index = (size_of::<u32>() + 1) * 16 / 7;
        assert_eq!(size_of::<Paths>(), 24);
        assert!(size_of::<Ipv4Prefix>() + size_of::<Paths>() + index <= 48);
        assert!(size_of::<Ipv6Prefix>() + size_of::<Paths>() + index <= 64);
    }

    #[test]
    fn slots_are_reused_only_after_everybody_has_been_told() {
        let mut t = Table::new(Family::Ipv4Unicast);
        let a = t.find_or_insert(p("10.0.0.0/8"));
        assert_eq!(t.find_or_insert(p("10.0.0.0/8")), a);
        t.vacate(a, 2);
        t.released(a);
        assert_eq!(t.find(p("10.0.0.0/8")), Some(a));
        let b = t.find_or_insert(p("11.0.0.0/8"));
        assert_ne!(a, b);
        t.released(a);
        assert_eq!(t.find(p("10.0.0.0/8")), None);
        assert_eq!(t.find_or_insert(p("12.0.0.0/8")), a);
        assert_eq!(t.prefix(a), p("12.0.0.0/8"));
        assert_eq!(t.len(), 2);
    }

    #[test]
    fn a_prefix_that_comes_back_before_its_withdrawal_keeps_its_slot() {
        let mut t = Table::new(Family::Ipv6Unicast);
        let a = t.find_or_insert(p("fd00::/64"));
        t.vacate(a, 1);
        assert_eq!(t.find_or_insert(p("fd00::/64")), a);
        t.occupy(a);
        t.released(a);
        assert_eq!(t.find(p("fd00::/64")), Some(a));
    }

    #[test]
    fn the_longest_wanted_match_is_found() {
        let mut t = Table::new(Family::Ipv4Unicast);
        for s in ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"] {
            let slot = t.find_or_insert(p(s));
            t.paths_mut(slot).push(path());
        }
        let get = |addr: &str| {
            t.longest_match(addr.parse().unwrap(), |s| !t.paths(s).is_empty())
                .map(|s| t.prefix(s).to_string())
        };
        assert_eq!(get("10.1.2.3").unwrap(), "10.1.2.0/24");
        assert_eq!(get("10.1.3.3").unwrap(), "10.1.0.0/16");
        assert_eq!(get("11.1.3.3").unwrap(), "0.0.0.0/0");
        let not_24 = t.longest_match("10.1.2.3".parse().unwrap(), |s| t.prefix(s).len() != 24);
        assert_eq!(t.prefix(not_24.unwrap()), p("10.1.0.0/16"));
    }
}
