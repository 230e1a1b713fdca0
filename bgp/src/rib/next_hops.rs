//! Next hops behind small numbers, and what is known of each. In a cluster behind reflectors every route has one of its own,
//! so that what each takes counts.

use std::hash::{BuildHasher as _, Hash};

use hashbrown::HashTable;
use rustc_hash::{FxBuildHasher, FxHashMap};
use smallvec::SmallVec;

use crate::rib::chunks::Chunks;
use crate::speaker::{FibNextHop, NextHopState};
use crate::types::Family;
use crate::wire::attribute::NextHop;

/// An interned next hop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct NextHopId(u32);

impl NextHopId {
    /// Of locally originated routes.
    pub(crate) const LOCAL: NextHopId = NextHopId(u32::MAX);
}

/// All next hops in use and what is known of them.
#[derive(Debug, Default)]
pub(crate) struct NextHops {
    /// By next hop and gateway.
    index: HashTable<u32>,
    /// By gateway, the latest of its next hops, from which a chain leads to the others. Mostly it is the only one.
    gateways: HashTable<u32>,
    slots: Chunks<Slot>,
    free: Vec<u32>,
    /// Until the first answer: which table slots wait for it. Beyond `MAX_WAITING` all are looked at.
    waiting: FxHashMap<u32, Vec<(Family, u32)>>,
    tracking: Vec<(FibNextHop, bool)>,
}

#[derive(Debug)]
struct Slot {
    uses: u32,
    /// The next one in the chain of its gateway.
    sibling: Option<NextHopId>,
    hop: NextHop,
    /// Where packets go, and what is tracked.
    gateway: FibNextHop,
    state: Option<NextHopState>,
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

fn hash(key: impl Hash) -> u64 {
    FxBuildHasher.hash_one(key)
}

impl NextHops {
    /// The number of this next hop, used once more; its packets go to `gateway`.
    pub(crate) fn intern(&mut self, hop: NextHop, gateway: FibNextHop) -> NextHopId {
        let key = hash((hop, gateway));
        let slots = &mut self.slots;
        let same = |id: &u32| (slots[*id].hop, slots[*id].gateway) == (hop, gateway);
        if let Some(id) = self.index.find(key, same).copied() {
            slots[id].uses += 1;
            return NextHopId(id);
        }
        let sibling = self.gateways.find(hash(gateway), |id| slots[*id].gateway == gateway).copied();
        let state = sibling.and_then(|id| slots[id].state);
        let slot = Slot { uses: 1, sibling: sibling.map(NextHopId), hop, gateway, state };
        let id = match self.free.pop() {
            Some(id) => {
                slots[id] = slot;
                id
            }
            None => {
                slots.push(slot);
                u32::try_from(slots.len() - 1).expect("fewer than 2^32 next hops fit into memory")
            }
        };
        self.index.insert_unique(key, id, |id| hash((slots[*id].hop, slots[*id].gateway)));
        match sibling.and_then(|first| self.gateways.find_mut(hash(gateway), |id| *id == first)) {
            Some(first) => *first = id,
            None => {
                self.gateways.insert_unique(hash(gateway), id, |id| hash(slots[*id].gateway));
                self.tracking.push((gateway, true));
            }
        }
        NextHopId(id)
    }

    pub(crate) fn release(&mut self, id: NextHopId) {
        if id == NextHopId::LOCAL {
            return;
        }
        let slot = &mut self.slots[id.0];
        slot.uses -= 1;
        if slot.uses == 0 {
            slot.state = None;
            let key = hash((slot.hop, slot.gateway));
            self.waiting.remove(&id.0);
            if let Ok(entry) = self.index.find_entry(key, |other| *other == id.0) {
                entry.remove();
            }
            self.unchain(id);
            self.free.push(id.0);
        }
    }

    /// Takes a next hop out of the chain of its gateway, which is tracked no longer without any.
    fn unchain(&mut self, id: NextHopId) {
        let Slot { gateway, sibling: rest, .. } = self.slots[id.0];
        let first = self.first_of(gateway).expect("every hop is in the chain of its gateway");
        if first != id {
            let before = self.chain(first).find(|at| self.slots[at.0].sibling == Some(id));
            self.slots[before.expect("the chain leads to it").0].sibling = rest;
            return;
        }
        let slots = &self.slots;
        let Ok(mut entry) = self.gateways.find_entry(hash(gateway), |at| slots[*at].gateway == gateway)
        else {
            return;
        };
        match rest {
            Some(next) => *entry.get_mut() = next.0,
            None => {
                entry.remove();
                self.tracking.push((gateway, false));
            }
        }
    }

    fn first_of(&self, gateway: FibNextHop) -> Option<NextHopId> {
        let first = self.gateways.find(hash(gateway), |id| self.slots[*id].gateway == gateway);
        first.copied().map(NextHopId)
    }

    /// A next hop and those behind it in the chain of their gateway.
    fn chain(&self, first: NextHopId) -> impl Iterator<Item = NextHopId> + '_ {
        std::iter::successors(Some(first), |id| self.slots[id.0].sibling)
    }

    /// The next hop; `None` for local routes.
    pub(crate) fn get(&self, id: NextHopId) -> Option<NextHop> {
        (id != NextHopId::LOCAL).then(|| self.slots[id.0].hop)
    }

    /// What is known of it; local routes need nothing.
    pub(crate) fn state(&self, id: NextHopId) -> Option<NextHopState> {
        match id {
            NextHopId::LOCAL => Some(NextHopState::Reachable { metric: 0, connected: true }),
            id => self.slots[id.0].state,
        }
    }

    /// What the FIB needs; `None` for local routes.
    pub(crate) fn fib(&self, id: NextHopId) -> Option<FibNextHop> {
        (id != NextHopId::LOCAL).then(|| self.slots[id.0].gateway)
    }

    /// A slot has a path over this next hop: if nothing is known of it, the first answer is for that slot.
    pub(crate) fn wait(&mut self, id: NextHopId, family: Family, at: u32) {
        if id == NextHopId::LOCAL || self.slots[id.0].state.is_some() {
            return;
        }
        let waiting = self.waiting.entry(id.0).or_default();
        if waiting.len() <= MAX_WAITING {
            waiting.push((family, at));
        }
    }

    /// Notes what the shell found out.
    pub(crate) fn set_state(&mut self, gateway: FibNextHop, state: NextHopState) -> Answered {
        let mut answered = Answered::default();
        let mut next = self.first_of(gateway);
        while let Some(id) = next {
            let slot = &mut self.slots[id.0];
            let before = slot.state.replace(state);
            next = slot.sibling;
            let waiting = self.waiting.remove(&id.0).unwrap_or_default();
            if before.is_none() && waiting.len() <= MAX_WAITING {
                answered.slots.extend(waiting);
            } else if before != Some(state) {
                answered.hops.push(id);
            }
        }
        if self.waiting.is_empty() {
            self.waiting = FxHashMap::default();
        }
        answered
    }

    /// Some next hop has had no answer yet.
    pub(crate) fn any_unknown(&self) -> bool {
        self.gateways.iter().any(|id| self.slots[*id].state.is_none())
    }

    /// Next hops to start (`true`) or to stop watching, in order.
    pub(crate) fn take_tracking(&mut self) -> Vec<(FibNextHop, bool)> {
        std::mem::take(&mut self.tracking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            [(Family::Ipv4Unicast, 8), (Family::Ipv4Unicast, 7)],
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

    #[test]
    fn a_next_hop_leaves_the_chain_of_its_gateway_from_anywhere() {
        for leaver in 0..3 {
            let mut all = NextHops::default();
            let via = |n: u128| NextHop::V6 {
                global: "fd00::1".parse().unwrap(),
                link_local: Some(std::net::Ipv6Addr::from_bits(0xfe80 << 112 | n)),
            };
            let gateway = FibNextHop::from(global().addr());
            let ids: Vec<NextHopId> = (0..3).map(|n| all.intern(via(n), gateway)).collect();
            all.release(ids[leaver]);
            let mut told = all.set_state(gateway, UP).hops;
            told.extend(all.set_state(gateway, NextHopState::Unreachable).hops);
            told.sort_unstable();
            told.dedup();
            let rest: Vec<NextHopId> = ids.iter().copied().filter(|id| *id != ids[leaver]).collect();
            assert_eq!(told.as_slice(), rest, "{leaver}");
            rest.iter().for_each(|id| all.release(*id));
            assert_eq!(all.take_tracking(), [(gateway, true), (gateway, false)], "{leaver}");
        }
    }

    #[test]
    fn a_next_hop_takes_less_than_100_bytes() {
        assert!(size_of::<Slot>() + 2 * size_of::<u32>() * 16 / 7 <= 100, "{}", size_of::<Slot>());
    }
}
