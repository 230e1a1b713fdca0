//! Loc-RIB: paths come and go, the decision follows, and whoever is concerned is marked: peers to be told, the FIB.

use std::cmp::Reverse;
use std::net::IpAddr;

use smallvec::SmallVec;

use crate::rib::Rib;
use crate::rib::attributes::AttrId;
use crate::rib::decision;
use crate::rib::next_hops::NextHopId;
use crate::rib::path::{Path, Verdict};
use crate::rib::sources::{Source, SourceId};
use crate::speaker::{FibNextHop, NextHopState, RouteChange};
use crate::types::{Family, Prefix};
use crate::wire::attribute::PathAttributes;

/// What a decision means to the outside; if it stays, nobody is told.
#[derive(PartialEq, Eq)]
pub(super) struct Selection {
    best: Option<Chosen>,
    forwarding: Forwarding,
    /// All eligible paths and what each costs to reach, where a peer with Add-Path wants to know.
    paths: SmallVec<[(Chosen, u32); 2]>,
}

/// A path as peers see it.
type Chosen = (SourceId, AttrId, NextHopId);

fn chosen(path: &Path) -> Chosen {
    (path.source, path.attributes, path.next_hop)
}

/// What becomes of packets for a prefix.
#[derive(PartialEq, Eq)]
pub(super) struct Forwarding {
    /// They go to one of these, sorted; none: they are for this node, for nobody, or discarded.
    pub(super) next_hops: SmallVec<[FibNextHop; 1]>,
    /// Where they go while the only next hop is out of reach, until a decision says more.
    pub(super) backup: Option<FibNextHop>,
    /// They are discarded (RFC 7999).
    pub(super) blackhole: bool,
}

impl Forwarding {
    fn is_none(&self) -> bool {
        self.next_hops.is_empty() && !self.blackhole
    }
}

impl Rib {
    /// Takes a source number into use.
    pub(crate) fn add_source(&mut self, id: SourceId, source: Source) {
        // Stale paths of the same peer may still be there, and their rank may have changed with it.
        if self.sources.set(id, source) {
            self.groups.forget_portions();
            self.redecide_all_of(id);
        }
    }

    /// A peer became our reflection client, or is it no longer: every peer may see its routes or lose them.
    pub(crate) fn set_client(&mut self, id: SourceId, client: bool) {
        if let Some(source) = self.sources.get_mut(id) {
            source.client = client;
            Family::ALL.into_iter().for_each(|f| self.mark_all(f));
        }
    }

    /// Forgets a peer with all its paths.
    pub(crate) fn forget_source(&mut self, id: SourceId) {
        if self.adj_in_of(id).is_some() {
            for family in Family::ALL {
                self.remove_all_of(id, family, false);
            }
        }
        self.close_adj_in(id);
    }

    /// Originates a route.
    pub(crate) fn originate(&mut self, prefix: Prefix, attributes: PathAttributes) {
        let attributes = self.attributes.intern(attributes);
        self.insert(prefix, Path::new(SourceId::LOCAL, attributes, NextHopId::LOCAL, None));
        self.protected_changed |= self.protected.set_own(prefix, true);
    }

    /// Stops originating a route.
    pub(crate) fn stop_originating(&mut self, prefix: Prefix) {
        self.remove(SourceId::LOCAL, prefix);
        self.protected_changed |= self.protected.set_own(prefix, false);
    }

    /// An address is one of the node's own, or is it no longer.
    pub(crate) fn set_node_address(&mut self, addr: IpAddr, present: bool) {
        self.protected_changed |= self.protected.set_node(addr, present);
    }

    /// An address is that of a peer, or is it no longer.
    pub(crate) fn set_peer_address(&mut self, addr: IpAddr, present: bool) {
        self.protected_changed |= self.protected.set_peer(addr, present);
    }

    /// Puts a path into the table, in place of an older one from the same source. The path's references are the table's now.
    pub(super) fn insert(&mut self, prefix: Prefix, mut path: Path) {
        let family = prefix.family();
        path.set_protected(!path.is_explicit() && self.protected.reject(prefix).is_some());
        let slot = self.tables[family].find_or_insert(prefix);
        self.next_hops.wait(path.next_hop, family, slot);
        let before = self.selection(family, slot);
        let paths = self.tables[family].paths_mut(slot);
        let was_empty = paths.is_empty();
        match paths.iter_mut().find(|p| p.source == path.source) {
            Some(old) => {
                let marks = |p: &Path| (p.is_explicit(), p.is_protected(), p.is_blackhole());
                let same = (old.attributes, old.next_hop, marks(old))
                    == (path.attributes, path.next_hop, marks(&path));
                if same {
                    // A peer that restarted says again what it said before: no news for anyone.
                    old.set_stale(false);
                    old.set_accepted_by(path.accepted_by());
                    self.sources.release(path.source);
                    self.attributes.release(path.attributes);
                    self.next_hops.release(path.next_hop);
                    return;
                }
                let replaced = std::mem::replace(old, path);
                self.sources.release(replaced.source);
                self.attributes.release(replaced.attributes);
                self.next_hops.release(replaced.next_hop);
            }
            None => {
                paths.push(path);
                if was_empty {
                    self.tables[family].occupy(slot);
                }
                let peer = self.sources.peer(path.source);
                let adj = self.adj_in_mut(peer);
                if !adj.has[family].insert(slot) {
                    adj.further[family] += 1;
                }
            }
        }
        self.decide_and_tell(family, slot, &before);
    }

    /// Takes a source's path away. Whether there was one.
    pub(super) fn remove(&mut self, source: SourceId, prefix: Prefix) -> bool {
        let family = prefix.family();
        match self.tables[family].find(prefix) {
            Some(slot) => self.remove_at(source, family, slot),
            None => false,
        }
    }

    pub(super) fn remove_at(&mut self, source: SourceId, family: Family, slot: u32) -> bool {
        let Some(at) = self.tables[family].paths(slot).iter().position(|p| p.source == source) else {
            return false;
        };
        let before = self.selection(family, slot);
        let paths = self.tables[family].paths_mut(slot);
        let gone = paths.swap_remove(at);
        let now_empty = paths.is_empty();
        let peer = self.sources.peer(source);
        let has_others = self.tables[family].paths(slot).iter().any(|p| self.sources.peer(p.source) == peer);
        let adj = self.adj_in_mut(peer);
        if has_others {
            adj.further[family] -= 1;
        } else {
            adj.has[family].remove(slot);
        }
        self.decide_and_tell(family, slot, &before);
        // After the comparison: until then the freed numbers must not name something else.
        self.sources.release(gone.source);
        self.attributes.release(gone.attributes);
        self.next_hops.release(gone.next_hop);
        if now_empty {
            let holders = self.holders(family, slot);
            self.tables[family].vacate(slot, holders);
        }
        true
    }

    /// Takes all paths of a peer in a family away, or only the stale ones.
    pub(crate) fn remove_all_of(&mut self, peer: SourceId, family: Family, only_stale: bool) {
        for slot in self.slots_of(peer, family) {
            let sources = &self.sources;
            let wanted = |p: &&Path| sources.peer(p.source) == peer && (p.is_stale() || !only_stale);
            let paths = self.tables[family].paths(slot).iter();
            let gone: SmallVec<[SourceId; 2]> = paths.filter(wanted).map(|p| p.source).collect();
            for source in gone {
                self.remove_at(source, family, slot);
            }
        }
    }

    /// The slots with paths of a peer.
    pub(super) fn slots_of(&self, peer: SourceId, family: Family) -> Vec<u32> {
        self.adj_in_of(peer).map_or_else(Vec::new, |adj| adj.has[family].iter().collect())
    }

    /// Lets something happen to each path of a peer that does not bear on the decision.
    pub(super) fn each_path_of(&mut self, peer: SourceId, family: Family, change: impl Fn(&mut Path)) {
        for slot in self.slots_of(peer, family) {
            let sources = &self.sources;
            let paths = self.tables[family].paths_mut(slot).iter_mut();
            paths.filter(|p| sources.peer(p.source) == peer).for_each(&change);
        }
    }

    /// The source may be restarting: its paths stay, marked (RFC 4724 4.2).
    pub(crate) fn mark_stale(&mut self, peer: SourceId, family: Family) {
        self.each_path_of(peer, family, |path| path.set_stale(true));
    }

    /// The shell's word on a next hop. Its paths are decided on at the next `settle`, all changed next hops in one pass.
    pub(crate) fn set_next_hop(&mut self, hop: FibNextHop, state: NextHopState) {
        let answered = self.next_hops.set_state(hop, state);
        self.answered_slots.extend(answered.slots);
        self.changed_hops.extend(answered.hops);
    }

    /// Next hops to start or to stop watching.
    pub(crate) fn take_tracking(&mut self) -> Vec<(FibNextHop, bool)> {
        self.next_hops.take_tracking()
    }

    /// Every next hop has had an answer.
    pub(crate) fn next_hops_known(&self) -> bool {
        !self.next_hops.any_unknown()
    }

    /// Decides anew where next hops or the protected prefixes changed: one pass over the tables for all changes together,
    /// since both come in bursts (a link, a restart) and touch many prefixes.
    pub(crate) fn settle(&mut self) {
        for (family, slot) in std::mem::take(&mut self.answered_slots) {
            self.redecide(family, slot);
        }
        if self.changed_hops.is_empty() && !self.protected_changed {
            return;
        }
        let hops = std::mem::take(&mut self.changed_hops);
        let protection = std::mem::take(&mut self.protected_changed);
        for family in Family::ALL {
            for slot in 0..self.tables[family].slots() {
                let paths = self.tables[family].paths(slot);
                if paths.is_empty() {
                    continue;
                }
                let mut concerned = paths.iter().any(|p| hops.contains(&p.next_hop));
                if protection && paths.iter().any(|p| !p.is_explicit()) {
                    let protected = self.protected.reject(self.tables[family].prefix(slot)).is_some();
                    concerned |= paths.iter().any(|p| !p.is_explicit() && p.is_protected() != protected);
                    for path in self.tables[family].paths_mut(slot).iter_mut().filter(|p| !p.is_explicit()) {
                        path.set_protected(protected);
                    }
                }
                if concerned {
                    self.redecide(family, slot);
                }
            }
        }
    }

    /// Decides a slot's paths again and tells whoever sees a difference.
    pub(super) fn redecide(&mut self, family: Family, slot: u32) {
        let before = self.selection(family, slot);
        self.decide_and_tell(family, slot, &before);
    }

    fn redecide_all_of(&mut self, source: SourceId) {
        for family in Family::ALL {
            for slot in self.slots_of(source, family) {
                self.redecide(family, slot);
            }
        }
    }

    pub(super) fn decide_and_tell(&mut self, family: Family, slot: u32, before: &Selection) {
        let facts = decision::Facts {
            attributes: &self.attributes,
            next_hops: &self.next_hops,
            sources: &self.sources,
            multipath: self.identity.multipath,
            local_as: self.identity.asn,
        };
        decision::decide(self.tables[family].paths_mut(slot), facts);
        let after = self.selection(family, slot);
        if after.forwarding != before.forwarding {
            self.fib[family].dirty.insert(slot);
        }
        if after.best != before.best {
            self.mark_for_targets(family, slot, false);
        } else if after.paths != before.paths {
            self.mark_for_targets(family, slot, true);
        }
    }

    pub(super) fn selection(&self, family: Family, slot: u32) -> Selection {
        let paths = self.tables[family].paths(slot);
        let facts = self.facts();
        let eligible = match self.add_path_targets {
            0 => SmallVec::new(),
            _ => facts.eligible(paths),
        };
        Selection {
            best: paths.first().filter(|p| p.is_best()).map(chosen),
            paths: eligible.into_iter().map(|p| (chosen(p), facts.metric(p))).collect(),
            forwarding: self.forwarding(family, slot),
        }
    }

    /// What becomes of packets for a slot's prefix.
    pub(super) fn forwarding(&self, family: Family, slot: u32) -> Forwarding {
        let paths = self.tables[family].paths(slot);
        if paths.first().is_some_and(|p| p.is_best() && p.is_blackhole()) {
            return Forwarding { next_hops: SmallVec::new(), backup: None, blackhole: true };
        }
        // Most prefixes have one path.
        if let [only] = &paths[..] {
            let hop = self.next_hops.fib(only.next_hop).filter(|_| only.is_multipath());
            let next_hops = hop.map_or_else(SmallVec::new, |hop| SmallVec::from_buf([hop]));
            return Forwarding { next_hops, backup: None, blackhole: false };
        }
        let used = paths.iter().filter(|p| p.is_multipath());
        let mut next_hops: SmallVec<[FibNextHop; 1]> =
            used.filter_map(|p| self.next_hops.fib(p.next_hop)).collect();
        if next_hops.len() > 1 {
            next_hops.sort_unstable();
            next_hops.dedup();
        }
        let backup = match next_hops[..] {
            [only] if paths.len() > 1 => self.runner_up(paths, only),
            _ => None,
        };
        Forwarding { next_hops, backup, blackhole: false }
    }

    /// The next hop of the path that came farthest in the decision among those that lead elsewhere.
    fn runner_up(&self, paths: &[Path], only: FibNextHop) -> Option<FibNextHop> {
        let lost = |p: &&Path| matches!(p.verdict(), Verdict::Lost(_)) && !p.is_blackhole();
        let elsewhere = paths.iter().filter(lost).filter_map(|p| {
            let hop = self.next_hops.fib(p.next_hop).filter(|hop| *hop != only)?;
            Some((p.verdict(), Reverse(p.source), hop))
        });
        elsewhere.max().map(|(_, _, hop)| hop)
    }

    /// Who believes in a slot: peers it was advertised to, and the FIB.
    fn holders(&self, family: Family, slot: u32) -> u32 {
        let peers = self.targets.iter().filter(|t| self.advertised_to(**t, family, slot)).count();
        peers as u32 + u32::from(self.fib[family].told.contains(slot))
    }

    /// The next change for the FIB.
    pub(crate) fn poll_route_change(&mut self) -> Option<RouteChange> {
        Family::ALL.into_iter().find_map(|family| self.poll_fib(family))
    }

    fn poll_fib(&mut self, family: Family) -> Option<RouteChange> {
        loop {
            let queue = &mut self.fib[family];
            if queue.deferring || queue.dirty.is_empty() {
                return None;
            }
            let Some(slot) = queue.dirty.next_from(queue.cursor) else {
                queue.cursor = 0;
                continue;
            };
            queue.dirty.remove(slot);
            queue.cursor = slot + 1;
            let forwarding = self.forwarding(family, slot);
            let prefix = self.tables[family].prefix(slot);
            let nothing = forwarding.is_none();
            let Forwarding { next_hops, backup, blackhole } = forwarding;
            let change = RouteChange { prefix, next_hops, backup, blackhole };
            if nothing {
                if self.fib[family].told.remove(slot) {
                    self.tables[family].released(slot);
                    return Some(change);
                }
            } else {
                self.fib[family].told.insert(slot);
                return Some(change);
            }
        }
    }

    /// No change of the family waits for the FIB.
    pub(crate) fn fib_is_drained(&self, family: Family) -> bool {
        self.fib[family].dirty.is_empty()
    }

    /// Holds learned routes of a family back from FIB and peers, or lets them go (RFC 4724 4.1).
    pub(crate) fn set_deferring(&mut self, family: Family, deferring: bool) {
        let was = std::mem::replace(&mut self.fib[family].deferring, deferring);
        if was && !deferring {
            self.mark_all(family);
        }
    }
}
