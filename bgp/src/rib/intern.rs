//! Path attributes and next hops behind small numbers: equal ones are stored once and counted.

use std::hash::BuildHasher as _;

use hashbrown::HashTable;
use rustc_hash::{FxBuildHasher, FxHashMap};
use smallvec::SmallVec;

use crate::rib::chunks::Chunks;
use crate::speaker::{FibNextHop, NextHopState};
use crate::types::Family;
use crate::wire::attribute::{NextHop, PathAttributes};

/// An interned attribute set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct AttrId(u32);

/// An interned next hop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct NextHopId(u32);

impl NextHopId {
    /// Of locally originated routes.
    pub(crate) const LOCAL: NextHopId = NextHopId(u32::MAX);
}

/// All attribute sets in use.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    index: HashTable<u32>,
    sets: Chunks<AttributeSlot>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct AttributeSlot {
    uses: u32,
    /// Kept, so that growing the index does not hash every set again.
    hash: u32,
    set: Option<PathAttributes>,
}

fn fold(hash: u64) -> u32 {
    (hash ^ (hash >> 32)) as u32
}

/// Spreads the stored half over the bits that the index looks at (the low ones and the top seven).
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Attributes {
    /// The number of this set, used once more.
    pub(crate) fn intern(&mut self, set: PathAttributes) -> AttrId {
        let hash = fold(FxBuildHasher.hash_one(&set));
        let sets = &mut self.sets;
        let found = self.index.find(spread(hash), |id| {
            let slot = &sets[*id];
            slot.hash == hash && slot.set.as_ref() == Some(&set)
        });
        if let Some(id) = found {
            sets[*id].uses += 1;
            return AttrId(*id);
        }
        let slot = AttributeSlot { uses: 1, hash, set: Some(set) };
        let id = match self.free.pop() {
            Some(id) => {
                sets[id] = slot;
                id
            }
            None => {
                sets.push(slot);
                u32::try_from(sets.len() - 1).expect("fewer than 2^32 attribute sets fit into memory")
            }
        };
        self.index.insert_unique(spread(hash), id, |id| spread(sets[*id].hash));
        AttrId(id)
    }

    /// The set.
    pub(crate) fn get(&self, id: AttrId) -> &PathAttributes {
        self.sets[id.0].set.as_ref().expect("an id in use names a set")
    }

    /// One more use.
    pub(crate) fn retain(&mut self, id: AttrId) {
        self.sets[id.0].uses += 1;
    }

    /// One use less; the last one frees the set.
    pub(crate) fn release(&mut self, id: AttrId) {
        let slot = &mut self.sets[id.0];
        slot.uses -= 1;
        if slot.uses == 0 {
            slot.set = None;
            let hash = spread(slot.hash);
            if let Ok(entry) = self.index.find_entry(hash, |other| *other == id.0) {
                entry.remove();
            }
            self.free.push(id.0);
        }
    }

    /// How many sets are in use.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }
}

/// All next hops in use and what is known of them.
#[derive(Debug, Default)]
pub(crate) struct NextHops {
    by_key: FxHashMap<(NextHop, FibNextHop), u32>,
    by_gateway: FxHashMap<FibNextHop, SmallVec<[u32; 1]>>,
    hops: Vec<NextHopSlot>,
    free: Vec<u32>,
    tracking: Vec<(FibNextHop, bool)>,
}

#[derive(Debug, Clone)]
struct NextHopSlot {
    uses: u32,
    hop: NextHop,
    /// Where packets go, and what is tracked.
    gateway: FibNextHop,
    state: Option<NextHopState>,
    /// Until the first answer: which slots wait for it. Beyond `MAX_WAITING` all are looked at.
    waiting: Vec<(Family, u32)>,
}

/// What an answer about a next hop means for the table.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    /// Only these slots, which came since the question.
    pub(crate) slots: Vec<(Family, u32)>,
    /// All slots with paths over these.
    pub(crate) hops: SmallVec<[NextHopId; 1]>,
}

/// So many slots are remembered for a next hop that has had no answer.
const MAX_WAITING: usize = 1024;

impl NextHops {
    /// The number of this next hop, used once more; its packets go to `gateway`.
    pub(crate) fn intern(&mut self, hop: NextHop, gateway: FibNextHop) -> NextHopId {
        if let Some(id) = self.by_key.get(&(hop, gateway)) {
            self.hops[*id as usize].uses += 1;
            return NextHopId(*id);
        }
        let siblings = self.by_gateway.entry(gateway).or_default();
        let state = siblings.first().and_then(|s| self.hops[*s as usize].state);
        let slot = NextHopSlot { uses: 1, hop, gateway, state, waiting: Vec::new() };
        let id = match self.free.pop() {
            Some(id) => {
                self.hops[id as usize] = slot;
                id
            }
            None => {
                self.hops.push(slot);
                u32::try_from(self.hops.len() - 1).expect("fewer than 2^32 next hops fit into memory")
            }
        };
        if siblings.is_empty() {
            self.tracking.push((gateway, true));
        }
        siblings.push(id);
        self.by_key.insert((hop, gateway), id);
        NextHopId(id)
    }

    pub(crate) fn release(&mut self, id: NextHopId) {
        if id == NextHopId::LOCAL {
            return;
        }
        let slot = &mut self.hops[id.0 as usize];
        slot.uses -= 1;
        if slot.uses == 0 {
            let (hop, gateway) = (slot.hop, slot.gateway);
            slot.state = None;
            slot.waiting = Vec::new();
            self.by_key.remove(&(hop, gateway));
            self.free.push(id.0);
            let siblings = self.by_gateway.get_mut(&gateway).expect("every hop is listed by its gateway");
            siblings.retain(|s| *s != id.0);
            if siblings.is_empty() {
                self.by_gateway.remove(&gateway);
                self.tracking.push((gateway, false));
            }
        }
    }

    /// The next hop; `None` for local routes.
    pub(crate) fn get(&self, id: NextHopId) -> Option<NextHop> {
        (id != NextHopId::LOCAL).then(|| self.hops[id.0 as usize].hop)
    }

    /// What is known of it; local routes need nothing.
    pub(crate) fn state(&self, id: NextHopId) -> Option<NextHopState> {
        match id {
            NextHopId::LOCAL => Some(NextHopState::Reachable { metric: 0, connected: true }),
            id => self.hops[id.0 as usize].state,
        }
    }

    /// What the FIB needs; `None` for local routes.
    pub(crate) fn fib(&self, id: NextHopId) -> Option<FibNextHop> {
        (id != NextHopId::LOCAL).then(|| self.hops[id.0 as usize].gateway)
    }

    /// A slot has a path over this next hop: if nothing is known of it, the first answer is for that slot.
    pub(crate) fn wait(&mut self, id: NextHopId, family: Family, at: u32) {
        if id == NextHopId::LOCAL {
            return;
        }
        let slot = &mut self.hops[id.0 as usize];
        if slot.state.is_none() && slot.waiting.len() <= MAX_WAITING {
            slot.waiting.push((family, at));
        }
    }

    /// Notes what the shell found out.
    pub(crate) fn set_state(&mut self, gateway: FibNextHop, state: NextHopState) -> Answered {
        let mut answered = Answered::default();
        let Some(ids) = self.by_gateway.get(&gateway) else {
            return answered;
        };
        for id in ids {
            let slot = &mut self.hops[*id as usize];
            let before = slot.state.replace(state);
            let waiting = std::mem::take(&mut slot.waiting);
            if before.is_none() && waiting.len() <= MAX_WAITING {
                answered.slots.extend(waiting);
            } else if before != Some(state) {
                answered.hops.push(NextHopId(*id));
            }
        }
        answered
    }

    /// Some next hop has had no answer yet.
    pub(crate) fn any_unknown(&self) -> bool {
        self.by_gateway.values().any(|ids| self.hops[ids[0] as usize].state.is_none())
    }

    /// Next hops to start (`true`) or to stop watching, in order.
    pub(crate) fn take_tracking(&mut self) -> Vec<(FibNextHop, bool)> {
        std::mem::take(&mut self.tracking)
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
        assert_eq!(all.get(b).med, Some(2));
        all.release(a);
        assert_eq!(all.get(a).med, Some(1));
        all.release(a);
        assert_eq!(all.len(), 1);
        assert_eq!(all.intern(set(3)), a, "the number is free again");
        assert_eq!(all.get(a).med, Some(3));
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

    fn global() -> NextHop {
        NextHop::V6 { global: "fd00::1".parse().unwrap(), link_local: None }
    }

    fn link_local(ifindex: u32) -> FibNextHop {
        FibNextHop { gateway: "fe80::1".parse().unwrap(), ifindex }
    }

    const UP: NextHopState = NextHopState::Reachable { metric: 0, connected: true };

    #[test]
    fn a_next_hop_is_tracked_by_gateway_from_first_to_last_use() {
        let mut all = NextHops::default();
        let both =
            NextHop::V6 { global: "fd00::1".parse().unwrap(), link_local: Some("fe80::1".parse().unwrap()) };
        let gateway = FibNextHop::from(global().addr());
        let a = all.intern(global(), gateway);
        let b = all.intern(both, gateway);
        assert_ne!(a, b);
        assert_eq!(all.take_tracking(), [(gateway, true)]);
        assert!(all.any_unknown());
        all.wait(a, Family::Ipv4Unicast, 7);
        all.wait(b, Family::Ipv4Unicast, 8);
        let first = all.set_state(gateway, UP);
        assert_eq!(
            first.slots,
            [(Family::Ipv4Unicast, 7), (Family::Ipv4Unicast, 8)],
            "only those that waited"
        );
        assert!(first.hops.is_empty());
        assert_eq!(all.set_state(gateway, NextHopState::Unreachable).hops.len(), 2);
        assert_eq!(all.set_state(gateway, UP).hops.len(), 2);
        assert!(!all.any_unknown());
        assert!(all.set_state(gateway, UP).hops.is_empty(), "no news is no change");
        all.release(a);
        assert!(all.take_tracking().is_empty());
        assert_eq!(all.intern(global(), gateway), a);
        assert_eq!(all.state(a), Some(UP), "a sibling knows already");
        all.release(a);
        all.release(b);
        assert_eq!(all.take_tracking(), [(gateway, false)]);
    }

    #[test]
    fn a_gateway_on_two_interfaces_is_two_next_hops() {
        let mut all = NextHops::default();
        let (on_3, on_4) = (all.intern(global(), link_local(3)), all.intern(global(), link_local(4)));
        assert_ne!(on_3, on_4);
        assert_eq!(all.fib(on_3).unwrap(), link_local(3));
        (0..=MAX_WAITING as u32).for_each(|slot| all.wait(on_3, Family::Ipv6Unicast, slot));
        let answered = all.set_state(link_local(3), UP);
        assert_eq!(answered.hops.as_slice(), [on_3], "too many waited to remember each");
        assert_eq!((all.state(on_3), all.state(on_4)), (Some(UP), None));
    }
}
