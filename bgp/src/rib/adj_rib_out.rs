//! Adj-RIB-Out: what has been advertised to each peer and what is to be looked at again.
//!
//! A peer has two bits a prefix: "look at it again" and "it has been advertised". Bytes are made when the peer's socket
//! takes them, from the state of that moment (`group` makes them once for all peers that are told the same): prefixes with
//! the same attributes share UPDATEs, and a withdrawal is sent for exactly what was advertised.
//! (MinRouteAdvertisementInterval, RFC 4271 9.2.1.1, is 0 for that reason: a busy socket gathers changes by itself, and an
//! idle one need not wait.)

use bytes::BytesMut;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::rib::Rib;
use crate::rib::bitset::BitSet;
use crate::rib::export::ExportPolicy;
use crate::rib::group::{GroupId, Portion, Run};
use crate::rib::sources::SourceId;
use crate::types::{Family, PerFamily};
use crate::wire;
use crate::wire::message::{Nlri, RefreshKind, RouteRefresh};

/// So many prefixes are looked at for one portion of bytes: enough to pack well, few enough to stay near 64 kB.
const BATCH: usize = 1024;

/// A peer's side of the table.
#[derive(Debug)]
pub(super) struct AdjOut {
    pub(super) policy: ExportPolicy,
    pub(super) group: GroupId,
    families: PerFamily<Option<OutTable>>,
    /// `woken` holds it, or its bytes are being fetched.
    awake: bool,
}

#[derive(Debug, Default)]
struct OutTable {
    dirty: BitSet,
    /// Slots of which something has been advertised.
    advertised: BitSet,
    /// With Add-Path: the path identifiers advertised for each of those slots, in order.
    paths: Option<FxHashMap<u32, SmallVec<[u32; 4]>>>,
    cursor: u32,
    end_of_rib_sent: bool,
    refresh: Refresh,
}

/// Sending everything again between markers (RFC 7313 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Refresh {
    #[default]
    Idle,
    /// Begins after the End-of-RIB, or at once where that has been sent.
    Asked,
    /// The beginning has been marked.
    Sending,
}

/// Counts of a peer's advertised prefixes in a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SentCounts {
    pub(crate) advertised: usize,
    pub(crate) pending: usize,
    pub(crate) end_of_rib_sent: bool,
}

impl Rib {
    /// A session is up: everything is to be looked at for it, in the families given.
    pub(crate) fn open_adj_out(&mut self, id: u32, policy: ExportPolicy, families: PerFamily<bool>) {
        let at = id as usize;
        if self.adj_out.len() <= at {
            self.adj_out.resize_with(at + 1, || None);
        }
        let families = PerFamily::from_fn(|f| {
            let paths = policy.encode.add_path[f].then(FxHashMap::default);
            families[f].then(|| OutTable { paths, ..OutTable::default() })
        });
        self.add_path_targets += usize::from(sends_paths(&policy));
        let group = self.groups.join(&policy);
        self.adj_out[at] = Some(AdjOut { policy, group, families, awake: false });
        self.targets.push(id);
        for family in Family::ALL {
            self.mark_all_for(id, family);
        }
        // Even an empty table has an End-of-RIB to send.
        self.wake(id);
    }

    /// A session is over: what was advertised on it is forgotten.
    pub(crate) fn close_adj_out(&mut self, id: u32) {
        let Some(adj) = self.adj_out.get_mut(id as usize).and_then(Option::take) else {
            return;
        };
        self.targets.retain(|t| *t != id);
        self.groups.leave(adj.group);
        self.add_path_targets -= usize::from(sends_paths(&adj.policy));
        for family in Family::ALL {
            if let Some(table) = &adj.families[family] {
                for slot in table.advertised.iter() {
                    self.tables[family].released(slot);
                }
            }
        }
    }

    /// Changes how routes are judged for a peer with a session, and looks at all of them again. What was negotiated on the
    /// session does not change.
    pub(crate) fn update_export_policy(&mut self, id: u32, change: impl FnOnce(&mut ExportPolicy)) {
        if let Some(adj) = self.adj_out.get_mut(id as usize).and_then(Option::as_mut) {
            change(&mut adj.policy);
            let old = std::mem::replace(&mut adj.group, self.groups.join(&adj.policy));
            self.groups.leave(old);
            for family in Family::ALL {
                self.mark_all_for(id, family);
            }
        }
    }

    /// Whether what leads through this node is advertised as the last choice.
    pub(crate) fn set_draining(&mut self, draining: bool) {
        if std::mem::replace(&mut self.draining, draining) != draining {
            Family::ALL.into_iter().for_each(|f| self.mark_all(f));
        }
    }

    /// Everything of a family is sent again: the peer asked (RFC 2918), or an operator. A peer that knows the markers gets
    /// them around it, and forgets what is not between them.
    pub(crate) fn refresh_for(&mut self, id: u32, family: Family) {
        if !self.export_policy(id).is_some_and(|p| p.markers) {
            return self.mark_all_for(id, family);
        }
        if let Some(table) = self.out_table(id, family) {
            table.refresh = Refresh::Asked;
            self.wake(id);
        }
    }

    /// Everything of a family is looked at again.
    pub(crate) fn mark_all_for(&mut self, id: u32, family: Family) {
        let Some(out) = self.out_table(id, family) else { return };
        let mut table = std::mem::take(out);
        let policy = self.export_policy(id).expect("it has a table");
        for slot in 0..self.tables[family].slots() {
            let wanted = match table.paths {
                Some(_) => !self.tables[family].paths(slot).is_empty(),
                None => self.may_export_best(policy, family, slot),
            };
            if wanted || table.advertised.contains(slot) {
                table.dirty.insert(slot);
            }
        }
        let woken = !table.dirty.is_empty();
        *self.out_table(id, family).expect("it was there") = table;
        // After a deferral the End-of-RIB may be all that is left to send.
        if woken || !self.fib[family].deferring {
            self.wake(id);
        }
    }

    /// What every peer is told of a family may have changed.
    pub(super) fn mark_all(&mut self, family: Family) {
        self.groups.forget_portions();
        for target in self.targets.clone() {
            self.mark_all_for(target, family);
        }
    }

    /// A prefix changed: its best path, or with `only_add_path` another one. Every peer that is concerned has to look at it.
    pub(super) fn mark_for_targets(&mut self, family: Family, slot: u32, only_add_path: bool) {
        self.groups.forget_slot(family, slot);
        for i in 0..self.targets.len() {
            let id = self.targets[i];
            if self.concerns(id, family, slot, only_add_path) {
                self.out_table(id, family).expect("it is concerned").dirty.insert(slot);
                self.wake(id);
            }
        }
    }

    /// Whether a slot may have to be said or taken back to a peer. In a mesh, and by the default export, most of what is
    /// learned is nobody else's concern: looking at it once for each peer would cost more than learning it.
    fn concerns(&self, id: u32, family: Family, slot: u32, only_add_path: bool) -> bool {
        let Some(adj) = self.adj_out.get(id as usize).and_then(Option::as_ref) else { return false };
        let Some(table) = &adj.families[family] else { return false };
        if table.paths.is_some() {
            return true;
        }
        !only_add_path && (table.advertised.contains(slot) || self.may_export_best(&adj.policy, family, slot))
    }

    /// Peers that have something to be sent since they last had nothing.
    pub(crate) fn take_woken(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.woken)
    }

    fn wake(&mut self, id: u32) {
        if let Some(adj) = self.adj_out[id as usize].as_mut().filter(|a| !a.awake) {
            adj.awake = true;
            self.woken.push(id);
        }
    }

    fn out_table(&mut self, id: u32, family: Family) -> Option<&mut OutTable> {
        self.adj_out.get_mut(id as usize)?.as_mut()?.families[family].as_mut()
    }

    fn out_table_of(&self, id: u32, family: Family) -> Option<&OutTable> {
        self.adj_out.get(id as usize)?.as_ref()?.families[family].as_ref()
    }

    pub(super) fn advertised_to(&self, id: u32, family: Family, slot: u32) -> bool {
        self.out_table_of(id, family).is_some_and(|t| t.advertised.contains(slot))
    }

    /// Whether this path of a slot has been advertised to a peer with Add-Path.
    pub(super) fn path_advertised_to(&self, id: u32, family: Family, slot: u32, source: SourceId) -> bool {
        let paths = self.out_table_of(id, family).and_then(|t| t.paths.as_ref());
        paths.and_then(|p| p.get(&slot)).is_some_and(|ids| ids.contains(&source.outgoing_path_id()))
    }

    /// There is an address to give as next hop to a peer.
    pub(crate) fn has_own_next_hop(&self, id: u32, family: Family) -> bool {
        self.export_policy(id).is_some_and(|p| p.own[family].is_some())
    }

    /// Slots advertised to a peer.
    pub(super) fn advertised_slots(&self, id: u32, family: Family) -> Vec<u32> {
        self.out_table_of(id, family).map_or_else(Vec::new, |t| t.advertised.iter().collect())
    }

    pub(super) fn export_policy(&self, id: u32) -> Option<&ExportPolicy> {
        Some(&self.adj_out.get(id as usize)?.as_ref()?.policy)
    }

    /// Counts for display.
    pub(crate) fn sent(&self, id: u32, family: Family) -> SentCounts {
        self.out_table_of(id, family).map_or_else(SentCounts::default, |t| SentCounts {
            advertised: t.advertised.len(),
            pending: t.dirty.len(),
            end_of_rib_sent: t.end_of_rib_sent,
        })
    }

    /// Appends a portion of UPDATEs for a peer; gives their number. With 0 there is nothing to send, and the peer is named by
    /// `take_woken` when there is again.
    pub(crate) fn pull(&mut self, id: u32, out: &mut BytesMut) -> u64 {
        let mut messages = 0;
        for family in Family::ALL {
            messages += self.begin_refresh(id, family, out);
            while self.out_table(id, family).is_some_and(|t| !t.dirty.is_empty()) {
                messages += self.pull_batch(id, family, out);
                if messages > 0 {
                    return messages;
                }
            }
            // RFC 4724 2, trap 26: only after the initial dump has drained, and in a restart only after the
            // deferred routes have.
            let deferring = self.fib[family].deferring;
            if let Some(table) = self.out_table(id, family)
                && !table.end_of_rib_sent
                && !deferring
            {
                table.end_of_rib_sent = true;
                wire::end_of_rib(out, family);
                messages += 1;
            }
            messages += self.end_refresh(id, family, out);
        }
        if messages == 0
            && let Some(adj) = self.adj_out.get_mut(id as usize).and_then(Option::as_mut)
        {
            adj.awake = false;
        }
        messages
    }

    /// RFC 7313 4: no marker before the End-of-RIB.
    fn begin_refresh(&mut self, id: u32, family: Family, out: &mut BytesMut) -> u64 {
        let due = |t: &&mut OutTable| t.refresh == Refresh::Asked && t.end_of_rib_sent;
        let Some(table) = self.out_table(id, family).filter(due) else { return 0 };
        table.refresh = Refresh::Sending;
        RouteRefresh { family, kind: RefreshKind::Begin }.encode(out);
        self.mark_all_for(id, family);
        1
    }

    fn end_refresh(&mut self, id: u32, family: Family, out: &mut BytesMut) -> u64 {
        let due = |t: &&mut OutTable| t.refresh == Refresh::Sending && t.dirty.is_empty();
        let Some(table) = self.out_table(id, family).filter(due) else { return 0 };
        table.refresh = Refresh::Idle;
        RouteRefresh { family, kind: RefreshKind::End }.encode(out);
        1
    }

    fn pull_batch(&mut self, id: u32, family: Family, out: &mut BytesMut) -> u64 {
        let adj = self.adj_out[id as usize].as_mut().expect("the caller found its table");
        let group = adj.group;
        let mut table = adj.families[family].take().expect("the caller found it");
        let slots = table.next_batch();
        let portion = self.portion(group, family, slots);
        let me = SourceId(id);
        let (mut messages, withdraw) = match &mut table.paths {
            None => table.advertise_best(me, &portion, out),
            Some(_) => table.advertise_paths(me, &portion, out),
        };
        self.count_hits(group, family, &portion, me);
        let encode = self.export_policy(id).expect("the caller found its table").encode;
        let prefix = |slot| self.tables[family].prefix(slot);
        let mut nlri =
            withdraw.iter().map(|w| Nlri { prefix: prefix(w.slot), path_id: w.path_id }).peekable();
        while wire::withdraw(out, &encode, family, &mut nlri) > 0 {
            messages += 1;
        }
        for gone in withdraw.iter().filter(|w| w.last) {
            self.tables[family].released(gone.slot);
        }
        self.groups.keep(group, family, portion);
        self.adj_out[id as usize].as_mut().expect("nobody closed it meanwhile").families[family] =
            Some(table);
        messages
    }
}

fn sends_paths(policy: &ExportPolicy) -> bool {
    Family::ALL.into_iter().any(|f| policy.encode.add_path[f])
}

/// Something to be withdrawn.
struct Gone {
    slot: u32,
    path_id: u32,
    /// Nothing else of the slot is advertised any more.
    last: bool,
}

impl OutTable {
    /// The next slots to look at, ascending.
    fn next_batch(&mut self) -> Vec<u32> {
        let mut slots = Vec::new();
        while slots.len() < BATCH {
            let Some(slot) = self.dirty.next_from(self.cursor) else { break };
            self.dirty.remove(slot);
            self.cursor = slot + 1;
            slots.push(slot);
        }
        // From the front again: peers that are told the same look at the same slots together.
        if slots.len() < BATCH || self.dirty.is_empty() {
            self.cursor = 0;
        }
        slots
    }

    /// Appends what a portion announces, but for what the peer itself gave. The number of messages, and what is left to withdraw.
    fn advertise_best(&mut self, me: SourceId, portion: &Portion, out: &mut BytesMut) -> (u64, Vec<Gone>) {
        let mut messages = 0;
        let mut withdraw = Vec::new();
        let mut withhold = |advertised: &mut BitSet, slot| {
            if advertised.remove(slot) {
                withdraw.push(Gone { slot, path_id: 0, last: true });
            }
        };
        let mut take = |run: Run<'_>| {
            if run.from == me {
                run.entries.iter().for_each(|entry| withhold(&mut self.advertised, entry.slot));
                return;
            }
            out.extend_from_slice(run.bytes);
            messages += run.messages;
            for entry in run.entries {
                self.advertised.insert(entry.slot);
            }
        };
        match portion.whole_for(me) {
            Some(whole) => take(whole),
            None => portion.runs().for_each(take),
        }
        portion.silent.iter().for_each(|slot| withhold(&mut self.advertised, *slot));
        (messages, withdraw)
    }

    /// The same with Add-Path: each path is announced and withdrawn by its identifier.
    fn advertise_paths(&mut self, me: SourceId, portion: &Portion, out: &mut BytesMut) -> (u64, Vec<Gone>) {
        let mut messages = 0;
        let mut now: FxHashMap<u32, SmallVec<[u32; 4]>> = FxHashMap::default();
        for run in portion.runs().filter(|run| run.from != me) {
            out.extend_from_slice(run.bytes);
            messages += run.messages;
            for entry in run.entries {
                now.entry(entry.slot).or_default().push(entry.path_id);
            }
        }
        let known = self.paths.as_mut().expect("the caller looked");
        let mut withdraw = Vec::new();
        for slot in &portion.slots {
            let current = now.remove(slot).unwrap_or_default();
            let before = known.remove(slot).unwrap_or_default();
            let gone = before.iter().filter(|id| !current.contains(id));
            withdraw.extend(gone.map(|id| Gone { slot: *slot, path_id: *id, last: false }));
            if current.is_empty() {
                if self.advertised.remove(*slot) {
                    withdraw.last_mut().expect("what was advertised had a path").last = true;
                }
            } else {
                self.advertised.insert(*slot);
                known.insert(*slot, current);
            }
        }
        (messages, withdraw)
    }
}
