//! Update groups: peers that are told the same share the bytes. A portion of UPDATEs is encoded for the first peer that
//! asks for it and handed to the others as long as it is true.
//!
//! ```text
//! peer's dirty slots --> same slots as a portion kept, nothing changed since? --yes--> its bytes
//!                                     `--no--> encode, keep
//! ```
//!
//! Membership follows from the policy and nothing else. Each peer keeps its own books (`adj_rib_out`): one that is slow,
//! late or asks for everything again takes other portions than the rest, and is told exactly what it would be told alone.
//! Only what a peer gave itself is left out for it, which is why the messages of a portion have one source each.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::BytesMut;
use rustc_hash::FxHashMap;

use crate::filter::{self, Candidate, RuleRef};
use crate::rib::Rib;
use crate::rib::export::{ExportKey, ExportPolicy};
use crate::rib::sources::SourceId;
use crate::types::{Family, PerFamily};
use crate::wire::message::Nlri;
use crate::wire::{self, EncodedAttributes};

/// So many portions of a family are kept for peers that come a little later.
const KEPT: usize = 8;

/// A group's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GroupId(usize);

/// All groups with members.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: Vec<Option<Group>>,
}

#[derive(Debug)]
struct Group {
    policy: ExportPolicy,
    members: usize,
    portions: PerFamily<VecDeque<Portion>>,
}

/// What a batch of slots means to a policy: bytes, and which slots they announce.
#[derive(Debug)]
pub(super) struct Portion {
    /// The slots that were looked at, ascending.
    pub(super) slots: Vec<u32>,
    /// Those of which nothing is announced.
    pub(super) silent: Vec<u32>,
    bytes: BytesMut,
    entries: Vec<Entry>,
    runs: Vec<RunAt>,
    /// Rules that decided, whose path they decided about, how often.
    hits: FxHashMap<(RuleRef, SourceId), u64>,
}

/// A path that is announced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) slot: u32,
    pub(super) path_id: u32,
}

/// Messages whose paths all came from one source.
#[derive(Debug)]
struct RunAt {
    from: SourceId,
    bytes: Range<usize>,
    entries: Range<usize>,
    messages: u64,
}

/// The same, looked up.
pub(super) struct Run<'a> {
    pub(super) from: SourceId,
    pub(super) bytes: &'a [u8],
    pub(super) entries: &'a [Entry],
    pub(super) messages: u64,
}

impl Portion {
    pub(super) fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        self.runs.iter().map(|at| Run {
            from: at.from,
            bytes: &self.bytes[at.bytes.clone()],
            entries: &self.entries[at.entries.clone()],
            messages: at.messages,
        })
    }

    /// All of it, for a peer that gave none of it.
    pub(super) fn whole_for(&self, me: SourceId) -> Option<Run<'_>> {
        self.runs.iter().all(|run| run.from != me).then(|| Run {
            from: SourceId::LOCAL,
            bytes: &self.bytes,
            entries: &self.entries,
            messages: self.runs.iter().map(|run| run.messages).sum(),
        })
    }
}

impl Groups {
    /// The group of a policy, with one member more.
    pub(super) fn join(&mut self, policy: &ExportPolicy) -> GroupId {
        let policy = policy.shared_by_equals();
        let same = |g: &Option<Group>| g.as_ref().is_some_and(|g| g.policy.same(&policy));
        if let Some(at) = self.groups.iter().position(same) {
            self.groups[at].as_mut().expect("it was found").members += 1;
            return GroupId(at);
        }
        let group = Group { policy, members: 1, portions: PerFamily::from_fn(|_| VecDeque::new()) };
        match self.groups.iter().position(Option::is_none) {
            Some(at) => {
                self.groups[at] = Some(group);
                GroupId(at)
            }
            None => {
                self.groups.push(Some(group));
                GroupId(self.groups.len() - 1)
            }
        }
    }

    /// One member less.
    pub(super) fn leave(&mut self, id: GroupId) {
        let group = self.get_mut(id);
        group.members -= 1;
        if group.members == 0 {
            self.groups[id.0] = None;
        } else if group.members == 1 {
            group.portions = PerFamily::from_fn(|_| VecDeque::new());
        }
    }

    /// What a slot's paths mean has changed.
    pub(super) fn forget_slot(&mut self, family: Family, slot: u32) {
        for group in self.groups.iter_mut().flatten() {
            group.portions[family].retain(|p| p.slots.binary_search(&slot).is_err());
        }
    }

    /// What everything means may have changed.
    pub(super) fn forget_portions(&mut self) {
        for group in self.groups.iter_mut().flatten() {
            group.portions = PerFamily::from_fn(|_| VecDeque::new());
        }
    }

    /// Keeps a portion for the others.
    pub(super) fn keep(&mut self, id: GroupId, family: Family, portion: Portion) {
        let group = self.get_mut(id);
        if group.members > 1 {
            let kept = &mut group.portions[family];
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(portion);
        }
    }

    fn take(&mut self, id: GroupId, family: Family, slots: &[u32]) -> Option<Portion> {
        let kept = &mut self.get_mut(id).portions[family];
        let at = kept.iter().position(|p| p.slots == slots)?;
        kept.remove(at)
    }

    fn get_mut(&mut self, id: GroupId) -> &mut Group {
        self.groups[id.0].as_mut().expect("a group lives as long as it has members")
    }

    fn policy(&self, id: GroupId) -> &ExportPolicy {
        &self.groups[id.0].as_ref().expect("a group lives as long as it has members").policy
    }
}

impl Rib {
    /// What a batch of slots means to a group: kept from another peer, or made now. To be given back by `keep`.
    pub(super) fn portion(&mut self, group: GroupId, family: Family, slots: Vec<u32>) -> Portion {
        match self.groups.take(group, family, &slots) {
            Some(portion) => portion,
            None => self.encode(self.groups.policy(group), family, slots),
        }
    }

    /// Counts the decisions of export rules, as many as a peer's own look would have made.
    pub(super) fn count_hits(&self, group: GroupId, family: Family, portion: &Portion, me: SourceId) {
        let filters = &self.groups.policy(group).filters;
        for ((rule, _), count) in portion.hits.iter().filter(|((_, from), _)| *from != me) {
            rule.get(filters, family).count(*count);
        }
    }

    fn encode(&self, policy: &ExportPolicy, family: Family, slots: Vec<u32>) -> Portion {
        let mut portion = Portion {
            slots,
            silent: Vec::new(),
            bytes: BytesMut::new(),
            entries: Vec::new(),
            runs: Vec::new(),
            hits: FxHashMap::default(),
        };
        let mut announce: Vec<(ExportKey, u32, u32)> = Vec::with_capacity(portion.slots.len());
        for i in 0..portion.slots.len() {
            let slot = portion.slots[i];
            let prefix = self.tables[family].prefix(slot);
            let mut silent = true;
            for path in self.selected(policy, family, slot) {
                let judge = |candidate: &Candidate<'_>| {
                    let rule = filter::preview(&policy.filters, prefix, candidate);
                    if let Some(rule) = rule {
                        *portion.hits.entry((rule, self.sources.peer(path.source))).or_default() += 1;
                    }
                    rule
                };
                if let Ok(key) = self.export(policy, family, path, judge) {
                    announce.push((key, slot, path.source.outgoing_path_id()));
                    silent = false;
                }
            }
            if silent {
                portion.silent.push(slot);
            }
        }
        announce.sort_unstable();
        for group in announce.chunk_by(|(a, ..), (b, ..)| a == b) {
            self.encode_group(policy, family, group, &mut portion);
        }
        portion
    }

    /// The UPDATEs of paths with the same attributes and the same source.
    fn encode_group(
        &self,
        policy: &ExportPolicy,
        family: Family,
        group: &[(ExportKey, u32, u32)],
        portion: &mut Portion,
    ) {
        let key = group[0].0;
        let (attributes, next_hop) = self.transform(policy, family, key);
        let encoded = EncodedAttributes::new(&attributes, &policy.encode);
        let mut nlri = group
            .iter()
            .map(|(_, slot, path_id)| Nlri { prefix: self.tables[family].prefix(*slot), path_id: *path_id })
            .peekable();
        let start = portion.bytes.len();
        let mut messages = 0;
        let fits = loop {
            match wire::reach(&mut portion.bytes, &policy.encode, &encoded, next_hop, family, &mut nlri) {
                Ok(0) => break true,
                Ok(_) => messages += 1,
                // Attributes too long for a message, or a next hop that the peer cannot take for this family: the peer
                // must not go on believing an older version.
                Err(_) => break false,
            }
        };
        if !fits {
            portion.bytes.truncate(start);
            // With Add-Path another path of the slot may be announced: what counts then are the entries.
            if !policy.encode.add_path[family] {
                portion.silent.extend(group.iter().map(|(_, slot, _)| *slot));
            }
            return;
        }
        let first = portion.entries.len();
        portion
            .entries
            .extend(group.iter().map(|(_, slot, path_id)| Entry { slot: *slot, path_id: *path_id }));
        let bytes = start..portion.bytes.len();
        let entries = first..portion.entries.len();
        match portion.runs.last_mut() {
            Some(run) if run.from == key.from => {
                run.bytes.end = bytes.end;
                run.entries.end = entries.end;
                run.messages += messages;
            }
            _ => portion.runs.push(RunAt { from: key.from, bytes, entries, messages }),
        }
    }
}
