//! Attribute sets behind small numbers: equal ones are stored once and counted.
//!
//! A reflected route differs from the next one in its ORIGINATOR_ID, and often in nothing else. So that a cluster behind
//! reflectors does not hold as many sets as it has nodes, those with an ORIGINATOR_ID are that and the number of the rest.

use std::hash::{BuildHasher as _, Hash};

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use crate::rib::chunks::Chunks;
use crate::types::RouterId;
use crate::wire::attribute::PathAttributes;

/// An interned attribute set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct AttrId(u32);

/// Set in the numbers that stand for an ORIGINATOR_ID and a set.
const REFLECTED: u32 = 1 << 31;

impl AttrId {
    fn reflected(self) -> Option<u32> {
        (self.0 & REFLECTED != 0).then_some(self.0 & !REFLECTED)
    }
}

/// All attribute sets in use.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    /// Sets without an ORIGINATOR_ID.
    sets: Counted<PathAttributes>,
    /// ORIGINATOR_IDs with the rest of their sets, each of which is one use of a set.
    reflected: Counted<(AttrId, RouterId)>,
}

impl Attributes {
    /// The number of this set, used once more.
    pub(crate) fn intern(&mut self, mut set: PathAttributes) -> AttrId {
        let originator = set.originator_id.take();
        let (rest, _) = self.sets.intern(set);
        assert!(rest < REFLECTED, "fewer than 2^31 attribute sets fit into memory");
        let Some(originator) = originator else { return AttrId(rest) };
        let (id, new) = self.reflected.intern((AttrId(rest), originator));
        if !new {
            self.sets.release(rest);
        }
        AttrId(id | REFLECTED)
    }

    /// The set but for its ORIGINATOR_ID, which is `None` here.
    pub(crate) fn shared(&self, id: AttrId) -> &PathAttributes {
        match id.reflected() {
            Some(at) => self.sets.get(self.reflected.get(at).0.0),
            None => self.sets.get(id.0),
        }
    }

    pub(crate) fn originator_id(&self, id: AttrId) -> Option<RouterId> {
        id.reflected().map(|at| self.reflected.get(at).1)
    }

    /// The set with all that belongs to it.
    pub(crate) fn whole(&self, id: AttrId) -> PathAttributes {
        PathAttributes { originator_id: self.originator_id(id), ..self.shared(id).clone() }
    }

    /// One more use.
    pub(crate) fn retain(&mut self, id: AttrId) {
        match id.reflected() {
            Some(at) => self.reflected.retain(at),
            None => self.sets.retain(id.0),
        }
    }

    /// One use less; the last one frees the set.
    pub(crate) fn release(&mut self, id: AttrId) {
        let set = match id.reflected() {
            Some(at) => self.reflected.release(at).map(|(rest, _)| rest.0),
            None => Some(id.0),
        };
        if let Some(set) = set {
            self.sets.release(set);
        }
    }

    /// How many sets are in use, those not counted again that differ in their ORIGINATOR_ID only.
    pub(crate) fn len(&self) -> usize {
        self.sets.index.len()
    }
}

/// Values behind numbers, each once and with the number of its uses.
#[derive(Debug)]
struct Counted<T> {
    index: HashTable<u32>,
    slots: Chunks<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    uses: u32,
    /// Kept, so that growing the index does not hash every value again.
    hash: u32,
    value: Option<T>,
}

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Counted { index: HashTable::new(), slots: Chunks::default(), free: Vec::new() }
    }
}

fn fold(hash: u64) -> u32 {
    (hash ^ (hash >> 32)) as u32
}

/// Spreads the stored half over the bits that the index looks at (the low ones and the top seven).
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl<T: Hash + Eq> Counted<T> {
    /// The number of a value, used once more; and whether it is new.
    fn intern(&mut self, value: T) -> (u32, bool) {
        let hash = fold(FxBuildHasher.hash_one(&value));
        let slots = &mut self.slots;
        let found = self.index.find(spread(hash), |id| {
            let slot = &slots[*id];
            slot.hash == hash && slot.value.as_ref() == Some(&value)
        });
        if let Some(id) = found {
            slots[*id].uses += 1;
            return (*id, false);
        }
        let slot = Slot { uses: 1, hash, value: Some(value) };
        let id = match self.free.pop() {
            Some(id) => {
                slots[id] = slot;
                id
            }
            None => {
                slots.push(slot);
                u32::try_from(slots.len() - 1).expect("fewer than 2^32 values fit into memory")
            }
        };
        self.index.insert_unique(spread(hash), id, |id| spread(slots[*id].hash));
        (id, true)
    }

    fn get(&self, id: u32) -> &T {
        self.slots[id].value.as_ref().expect("an id in use names a value")
    }

    fn retain(&mut self, id: u32) {
        self.slots[id].uses += 1;
    }

    /// One use less; gives the value back when that was the last one.
    fn release(&mut self, id: u32) -> Option<T> {
        let slot = &mut self.slots[id];
        slot.uses -= 1;
        if slot.uses > 0 {
            return None;
        }
        let hash = spread(slot.hash);
        let value = slot.value.take();
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
        self.free.push(id);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::attribute::Origin;

    pub(crate) fn set(med: u32) -> PathAttributes {
        PathAttributes {
            origin: Origin::Igp,
            as_path: Default::default(),
            med: Some(med),
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: Default::default(),
            extended_communities: Vec::new(),
            large_communities: Vec::new(),
            originator_id: None,
            cluster_list: Vec::new(),
            unknown: Vec::new(),
        }
    }

    #[test]
    fn equal_sets_share_a_number_until_the_last_use_ends() {
        let mut all = Attributes::default();
        let a = all.intern(set(1));
        assert_eq!(all.intern(set(1)), a);
        let b = all.intern(set(2));
        assert_ne!(a, b);
        assert_eq!(all.shared(b).med, Some(2));
        all.release(a);
        assert_eq!(all.shared(a).med, Some(1));
        all.release(a);
        assert_eq!(all.len(), 1);
        assert_eq!(all.intern(set(3)), a, "the number is free again");
        assert_eq!(all.shared(a).med, Some(3));
        assert_ne!(all.intern(set(1)), a);
    }

    #[test]
    fn many_sets_are_found_again() {
        let mut all = Attributes::default();
        let ids: Vec<AttrId> = (0..5000).map(|m| all.intern(set(m))).collect();
        for (m, id) in ids.iter().enumerate() {
            assert_eq!(all.intern(set(m as u32)), *id);
        }
        assert_eq!(all.len(), 5000);
    }

    #[test]
    fn sets_that_differ_in_their_originator_only_share_the_rest() {
        let from = |n: u32, med: u32| PathAttributes {
            originator_id: RouterId::new(std::net::Ipv4Addr::from_bits(n)),
            ..set(med)
        };
        let mut all = Attributes::default();
        let plain = all.intern(set(1));
        let ids: Vec<AttrId> = (1..=1000).map(|n| all.intern(from(n, 1))).collect();
        assert_eq!(all.len(), 1);
        assert_eq!(all.intern(from(7, 1)), ids[6]);
        assert_ne!(all.intern(from(7, 2)), ids[6]);
        assert_eq!(all.len(), 2);
        assert_eq!(all.whole(ids[6]), from(7, 1));
        assert_eq!(all.shared(ids[6]), &set(1));
        assert_eq!((all.originator_id(ids[6]), all.originator_id(plain)), (from(7, 1).originator_id, None));
        // The rest lives as long as any of them.
        all.release(plain);
        all.retain(ids[0]);
        all.release(ids[6]);
        ids.iter().for_each(|id| all.release(*id));
        assert_eq!((all.len(), all.whole(ids[0])), (2, from(1, 1)));
        all.release(ids[0]);
        assert_eq!(all.len(), 1);
        assert_eq!(
            {
                let id = all.intern(from(9, 3));
                all.whole(id)
            },
            from(9, 3),
            "numbers are used again"
        );
    }

    #[test]
    fn a_reflected_route_takes_24_bytes_beside_what_it_shares() {
        assert!(size_of::<Slot<(AttrId, RouterId)>>() <= 20);
    }
}
