//! One small record a prefix, a million of them: packed keys, records in slots, an index of slot numbers. Pure.
//!
//! A slot keeps its number as long as its prefix is in the books, so that queues and batches name prefixes by four bytes
//! and reach their record without a hash.

use std::hash::{BuildHasher, Hash};
use std::net::Ipv6Addr;

use hashbrown::HashTable;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use rustc_hash::FxBuildHasher;

use super::nexthops::{Form, SetId};
use crate::kernel::Family;

/// A prefix in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Slot(u32);

impl Slot {
    const IPV6: u32 = 1 << 31;

    fn new(family: Family, at: u32) -> Self {
        assert!(at < Self::IPV6, "memory ends before 2^31 prefixes");
        Self(if family == Family::Ipv6 { at | Self::IPV6 } else { at })
    }

    pub(super) fn family(self) -> Family {
        if self.0 & Self::IPV6 == 0 { Family::Ipv4 } else { Family::Ipv6 }
    }

    fn at(self) -> usize {
        (self.0 & !Self::IPV6) as usize
    }
}

/// What is known of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// What it should be.
    pub(super) desired: Option<SetId>,
    /// What the kernel holds.
    pub(super) actual: Form,
    length: u8,
    flags: u8,
}

/// Length of a slot that is free.
const FREE: u8 = 255;

/// Things that are so or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Flag {
    /// Found in the kernel, said nothing about yet: stays until the sweep.
    Inherited = 1,
    /// Waits in a queue.
    Queued = 2,
    /// In a batch whose answers are not here yet.
    InFlight = 4,
    /// Wanted, but its next hops have no object now: queued again when they have.
    Parked = 8,
    /// Went with a link or an object and has not been put back yet.
    Taken = 16,
    /// The dump under way has shown it.
    Seen = 32,
    /// As asked for; what the counters say.
    Installed = 64,
}

impl Record {
    pub(super) fn is(&self, flag: Flag) -> bool {
        self.flags & flag as u8 != 0
    }

    pub(super) fn mark(&mut self, flag: Flag, on: bool) {
        if on {
            self.flags |= flag as u8;
        } else {
            self.flags &= !(flag as u8);
        }
    }

    /// In a queue or in a batch: it is in at most one.
    pub(super) fn is_busy(&self) -> bool {
        self.is(Flag::Queued) || self.is(Flag::InFlight)
    }

    /// There is nothing to remember.
    pub(super) fn is_void(&self) -> bool {
        self.desired.is_none() && self.actual == Form::NOTHING && !self.is_busy()
    }
}

/// All prefixes of both families.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// By address as a number, which is hashed three times as fast.
    ipv4: Shelf<u32>,
    ipv6: Shelf<Ipv6Addr>,
}

impl Books {
    pub(super) fn find(&self, prefix: IpNetwork) -> Option<Slot> {
        let at = match prefix {
            IpNetwork::V4(net) => self.ipv4.find(net.ip().to_bits(), net.prefix()),
            IpNetwork::V6(net) => self.ipv6.find(net.ip(), net.prefix()),
        };
        at.map(|at| Slot::new(Family::of_prefix(prefix), at))
    }

    /// A new one is void.
    pub(super) fn find_or_insert(&mut self, prefix: IpNetwork) -> Slot {
        let at = match prefix {
            IpNetwork::V4(net) => self.ipv4.find_or_insert(net.ip().to_bits(), net.prefix()),
            IpNetwork::V6(net) => self.ipv6.find_or_insert(net.ip(), net.prefix()),
        };
        Slot::new(Family::of_prefix(prefix), at)
    }

    pub(super) fn record(&self, slot: Slot) -> &Record {
        match slot.family() {
            Family::Ipv4 => &self.ipv4.entries[slot.at()].1,
            Family::Ipv6 => &self.ipv6.entries[slot.at()].1,
        }
    }

    pub(super) fn record_mut(&mut self, slot: Slot) -> &mut Record {
        match slot.family() {
            Family::Ipv4 => &mut self.ipv4.entries[slot.at()].1,
            Family::Ipv6 => &mut self.ipv6.entries[slot.at()].1,
        }
    }

    pub(super) fn prefix(&self, slot: Slot) -> IpNetwork {
        const VALID: &str = "it came from a prefix";
        match slot.family() {
            Family::Ipv4 => {
                let (address, record) = &self.ipv4.entries[slot.at()];
                Ipv4Network::new((*address).into(), record.length).expect(VALID).into()
            }
            Family::Ipv6 => {
                let (address, record) = &self.ipv6.entries[slot.at()];
                Ipv6Network::new(*address, record.length).expect(VALID).into()
            }
        }
    }

    /// The address of an IPv4 prefix.
    pub(super) fn ipv4_address(&self, slot: Slot) -> Option<u32> {
        (slot.family() == Family::Ipv4).then(|| self.ipv4.entries[slot.at()].0)
    }

    /// Forgets a prefix; its number may be given to another.
    pub(super) fn remove(&mut self, slot: Slot) {
        match slot.family() {
            Family::Ipv4 => self.ipv4.remove(slot.at()),
            Family::Ipv6 => self.ipv6.remove(slot.at()),
        }
    }

    /// The prefixes of a family whose record is as `which` says.
    pub(super) fn select(&self, family: Family, which: impl Fn(&Record) -> bool) -> Vec<Slot> {
        let at = match family {
            Family::Ipv4 => self.ipv4.select(which),
            Family::Ipv6 => self.ipv6.select(which),
        };
        at.into_iter().map(|at| Slot::new(family, at)).collect()
    }

    /// Takes a flag away from every prefix of a family.
    pub(super) fn clear(&mut self, family: Family, flag: Flag) {
        match family {
            Family::Ipv4 => self.ipv4.entries.iter_mut().for_each(|(_, record)| record.mark(flag, false)),
            Family::Ipv6 => self.ipv6.entries.iter_mut().for_each(|(_, record)| record.mark(flag, false)),
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ipv4.index.len() + self.ipv6.index.len()
    }
}

/// The prefixes of one family.
#[derive(Debug)]
struct Shelf<A> {
    index: HashTable<u32>,
    entries: Vec<(A, Record)>,
    free: Vec<u32>,
}

impl<A> Default for Shelf<A> {
    fn default() -> Self {
        Self { index: HashTable::new(), entries: Vec::new(), free: Vec::new() }
    }
}

impl<A: Copy + Eq + Hash> Shelf<A> {
    fn find(&self, address: A, length: u8) -> Option<u32> {
        let is = |at: &u32| {
            let (found, record) = &self.entries[*at as usize];
            *found == address && record.length == length
        };
        self.index.find(hash(address, length), is).copied()
    }

    fn find_or_insert(&mut self, address: A, length: u8) -> u32 {
        if let Some(at) = self.find(address, length) {
            return at;
        }
        let entry = (address, Record { desired: None, actual: Form::NOTHING, length, flags: 0 });
        let at = match self.free.pop() {
            Some(at) => {
                self.entries[at as usize] = entry;
                at
            }
            None => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).expect("memory ends before 2^32 prefixes")
            }
        };
        let entries = &self.entries;
        self.index.insert_unique(hash(address, length), at, |at| {
            let (address, record) = &entries[*at as usize];
            hash(*address, record.length)
        });
        at
    }

    fn remove(&mut self, at: usize) {
        let (address, record) = &mut self.entries[at];
        let hash = hash(*address, record.length);
        record.length = FREE;
        record.flags = 0;
        let at = u32::try_from(at).expect("slots are numbered in 32 bits");
        if let Ok(found) = self.index.find_entry(hash, |other| *other == at) {
            found.remove();
        }
        self.free.push(at);
        if self.index.is_empty() {
            // Nothing is in the books: what a million prefixes took goes back.
            *self = Self::default();
        }
    }

    fn select(&self, which: impl Fn(&Record) -> bool) -> Vec<u32> {
        let entries = self.entries.iter().enumerate();
        let held = entries.filter(|(_, (_, record))| record.length != FREE && which(record));
        held.filter_map(|(at, _)| u32::try_from(at).ok()).collect()
    }
}

fn hash<A: Hash>(address: A, length: u8) -> u64 {
    FxBuildHasher.hash_one((address, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_takes_16_bytes_and_its_place_in_the_index() {
        assert_eq!(size_of::<(u32, Record)>(), 16);
        assert_eq!(size_of::<(Ipv6Addr, Record)>(), 28);
    }

    #[test]
    fn prefixes_are_found_again_until_they_are_removed_and_lengths_are_told_apart() {
        let mut books = Books::default();
        let all =
            ["10.0.0.0/8", "10.0.0.0/16", "0.0.0.0/0", "2001:db8::/32", "2001:db8::/64", "::/0"].map(net);
        let slots = all.map(|prefix| books.find_or_insert(prefix));
        for (prefix, slot) in all.into_iter().zip(slots) {
            assert_eq!((books.find(prefix), books.prefix(slot)), (Some(slot), prefix));
            assert_eq!(books.find_or_insert(prefix), slot);
            assert_eq!(slot.family(), Family::of_prefix(prefix));
        }
        books.remove(slots[1]);
        assert_eq!(books.find(all[1]), None);
        assert_eq!(books.select(Family::Ipv4, |_| true), [slots[0], slots[2]]);
        assert_eq!(books.find_or_insert(net("10.9.0.0/16")), slots[1], "the number is used again");
        assert_eq!(books.len(), 6);
    }

    #[test]
    fn flags_are_independent() {
        let mut books = Books::default();
        let slot = books.find_or_insert(net("10.0.0.0/8"));
        let record = books.record_mut(slot);
        record.mark(Flag::Queued, true);
        record.mark(Flag::Seen, true);
        assert!(record.is(Flag::Queued) && record.is(Flag::Seen) && !record.is(Flag::Parked));
        assert!(!record.is_void());
        books.clear(Family::Ipv4, Flag::Seen);
        assert!(books.record(slot).is(Flag::Queued) && !books.record(slot).is(Flag::Seen));
    }
}
