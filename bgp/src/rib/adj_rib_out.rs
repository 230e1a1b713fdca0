//! Adj-RIB-Out: what may be advertised to a peer, with which attributes, and what has been.
//!
//! A peer has two bits a prefix: "look at it again" and "it has been advertised". Bytes are made when the peer's socket
//! takes them, from the state of that moment: prefixes with the same attributes share UPDATEs, and a withdrawal is sent for
//! exactly what was advertised. (MinRouteAdvertisementInterval, RFC 4271 9.2.1.1, is 0 for that reason: a busy socket
//! gathers changes by itself, and an idle one need not wait.)

use std::net::IpAddr;
use std::sync::Arc;

use bytes::BytesMut;
use smallvec::SmallVec;

use crate::filter::{self, Action, Candidate, Filter, RuleRef};
use crate::rib::Rib;
use crate::rib::bitset::BitSet;
use crate::rib::decision::local_pref;
use crate::rib::intern::{AttrId, NextHopId};
use crate::rib::path::{Path, SourceId};
use crate::speaker::NextHopMode;
use crate::types::{Asn, Family, PeerType, PerFamily, Prefix, RouterId};
use crate::wire::attribute::{NextHop, PathAttributes};
use crate::wire::community::{self, well_known};
use crate::wire::message::{Nlri, RefreshKind, RouteRefresh};
use crate::wire::{self, EncodeContext, EncodedAttributes};

/// So many prefixes are looked at for one portion of bytes: enough to pack well, few enough to stay near 64 kB.
const BATCH: usize = 1024;

/// What matters about a peer when routes go out.
#[derive(Clone, Debug)]
pub(crate) struct ExportPolicy {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) peer_type: PeerType,
    pub(crate) remote_as: Asn,
    /// Our AS on this session, where it is not the speaker's.
    pub(crate) local_as: Option<Asn>,
    pub(crate) as_override: bool,
    /// Private AS numbers are taken out.
    pub(crate) remove_private_as: bool,
    /// It understands LLGR_STALE (RFC 9494).
    pub(crate) long_lived: bool,
    /// It is our reflection client.
    pub(crate) client: bool,
    pub(crate) next_hop: NextHopMode,
    pub(crate) filters: Vec<Arc<Filter>>,
    /// Our own next hop for each family; without one the family is not advertised.
    pub(crate) own: PerFamily<Option<NextHop>>,
    /// The subnets that we share with the peer.
    pub(crate) shared: SmallVec<[Prefix; 2]>,
    pub(crate) encode: EncodeContext,
    /// It knows the markers around a refresh (RFC 7313).
    pub(crate) markers: bool,
}

/// Why a prefix is not advertised to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Withheld {
    /// No path is eligible.
    NoPath,
    /// Our restart is under way and the route is a learned one.
    Deferred,
    /// The best path came from this peer.
    LearnedFromIt,
    /// From an internal to an internal peer, and neither is a client (RFC 4271 9.2).
    NotReflected,
    /// NO_ADVERTISE.
    NoAdvertise,
    /// NO_EXPORT or NO_EXPORT_SUBCONFED.
    NoExport,
    /// LLGR_STALE, and the peer has no long-lived graceful restart (RFC 9494 4.6).
    LongLivedStale,
    /// We have no address of the family to give as next hop.
    NoOwnAddress,
    /// A filter rule said so.
    Filter(RuleRef),
    /// The default: only what this node originates, and what it reflects.
    Default,
}

impl Withheld {
    pub(crate) fn describe(self, filters: &[Arc<Filter>], family: Family) -> String {
        match self {
            Withheld::NoPath => "no eligible path".to_owned(),
            Withheld::Deferred => {
                "restart under way: learned routes wait for every peer's End-of-RIB".to_owned()
            }
            Withheld::LearnedFromIt => "learned from this peer".to_owned(),
            Withheld::NotReflected => "internal route, and neither end is a reflection client".to_owned(),
            Withheld::NoAdvertise => "community NO_ADVERTISE".to_owned(),
            Withheld::NoExport => "community NO_EXPORT".to_owned(),
            Withheld::LongLivedStale => {
                "community LLGR_STALE, and the peer has no long-lived graceful restart".to_owned()
            }
            Withheld::NoOwnAddress => format!("no {family} address on the session's interface"),
            Withheld::Filter(rule) => format!("export {}", rule.describe(filters, family)),
            Withheld::Default => "export default: only originated and reflected routes".to_owned(),
        }
    }
}

/// What the outgoing attributes depend on: equal keys, equal attributes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ExportKey {
    attributes: AttrId,
    next_hop: NextHopId,
    rule: Option<RuleRef>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Local,
    /// Learned from an external peer.
    External,
    /// Learned from an internal peer and sent to an external one.
    Internal,
    /// From an internal to an internal peer; the source gives the ORIGINATOR_ID.
    Reflected(SourceId),
}

impl ExportKey {
    /// The rule that accepted; `None`: the default did.
    pub(super) fn rule(&self) -> Option<RuleRef> {
        self.rule
    }
}

/// A peer's side of the table.
#[derive(Debug)]
pub(super) struct AdjOut {
    pub(super) policy: ExportPolicy,
    families: PerFamily<Option<OutTable>>,
    /// `woken` holds it, or its bytes are being fetched.
    awake: bool,
}

#[derive(Debug, Default)]
struct OutTable {
    dirty: BitSet,
    advertised: BitSet,
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
        let families = PerFamily::from_fn(|f| families[f].then(OutTable::default));
        self.adj_out[at] = Some(AdjOut { policy, families, awake: false });
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
        for family in Family::ALL {
            if let Some(table) = &adj.families[family] {
                for slot in table.advertised.iter() {
                    self.tables[family].released(slot);
                }
            }
        }
    }

    /// Changes how routes are judged for a peer with a session, and looks at all of them again.
    pub(crate) fn update_export_policy(&mut self, id: u32, change: impl FnOnce(&mut ExportPolicy)) {
        if let Some(adj) = self.adj_out.get_mut(id as usize).and_then(Option::as_mut) {
            change(&mut adj.policy);
            for family in Family::ALL {
                self.mark_all_for(id, family);
            }
        }
    }

    /// Whether what leads through this node is advertised as the last choice.
    pub(crate) fn set_draining(&mut self, draining: bool) {
        if std::mem::replace(&mut self.draining, draining) != draining {
            for target in self.targets.clone() {
                Family::ALL.into_iter().for_each(|f| self.mark_all_for(target, f));
            }
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
        for slot in 0..self.tables[family].slots() {
            if !self.tables[family].paths(slot).is_empty() || table.advertised.contains(slot) {
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

    /// A prefix changed: every peer has to look at it.
    pub(super) fn mark_for_targets(&mut self, family: Family, slot: u32) {
        for i in 0..self.targets.len() {
            let id = self.targets[i];
            if let Some(table) = self.out_table(id, family) {
                table.dirty.insert(slot);
                self.wake(id);
            }
        }
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

    pub(super) fn advertised_to(&self, id: u32, family: Family, slot: u32) -> bool {
        self.adj_out
            .get(id as usize)
            .and_then(Option::as_ref)
            .and_then(|a| a.families[family].as_ref())
            .is_some_and(|t| t.advertised.contains(slot))
    }

    /// There is an address to give as next hop to a peer.
    pub(crate) fn has_own_next_hop(&self, id: u32, family: Family) -> bool {
        self.export_policy(id).is_some_and(|p| p.own[family].is_some())
    }

    /// Slots advertised to a peer.
    pub(super) fn advertised_slots(&self, id: u32, family: Family) -> Vec<u32> {
        self.adj_out
            .get(id as usize)
            .and_then(Option::as_ref)
            .and_then(|a| a.families[family].as_ref())
            .map_or_else(Vec::new, |t| t.advertised.iter().collect())
    }

    pub(super) fn export_policy(&self, id: u32) -> Option<&ExportPolicy> {
        Some(&self.adj_out.get(id as usize)?.as_ref()?.policy)
    }

    /// Counts for display.
    pub(crate) fn sent(&self, id: u32, family: Family) -> SentCounts {
        let table =
            self.adj_out.get(id as usize).and_then(Option::as_ref).and_then(|a| a.families[family].as_ref());
        table.map_or_else(SentCounts::default, |t| SentCounts {
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
        let mut table = adj.families[family].take().expect("the caller found it");
        let mut announce: Vec<(ExportKey, u32)> = Vec::new();
        let mut withdraw: Vec<Nlri> = Vec::new();
        let mut withdrawn: Vec<u32> = Vec::new();
        let policy = self.export_policy(id).expect("the caller found its table");
        for _ in 0..BATCH {
            let Some(slot) = table.dirty.next_from(table.cursor) else {
                table.cursor = 0;
                break;
            };
            table.dirty.remove(slot);
            table.cursor = slot + 1;
            match self.export(policy, id, family, slot, filter::decide) {
                Ok(key) => announce.push((key, slot)),
                Err(_) if table.advertised.remove(slot) => {
                    withdraw.push(Nlri { prefix: self.tables[family].prefix(slot), path_id: 0 });
                    withdrawn.push(slot);
                }
                Err(_) => {}
            }
        }
        announce.sort_unstable();

        let mut messages = 0;
        let mut groups = announce.as_slice();
        while let Some((key, _)) = groups.first() {
            let same = groups.iter().take_while(|(k, _)| k == key).count();
            let (group, rest) = groups.split_at(same);
            groups = rest;
            let (attributes, next_hop) = self.transform(policy, family, *key);
            let encoded = EncodedAttributes::new(&attributes, &policy.encode);
            let mut nlri = group
                .iter()
                .map(|(_, slot)| Nlri { prefix: self.tables[family].prefix(*slot), path_id: 0 })
                .peekable();
            let fits = loop {
                match wire::reach(out, &policy.encode, &encoded, next_hop, family, &mut nlri) {
                    Ok(0) => break true,
                    Ok(_) => messages += 1,
                    // Attributes too long for a message, or a next hop that the peer cannot take for this family: the peer
                    // must not go on believing an older version.
                    Err(_) => break false,
                }
            };
            for (_, slot) in group {
                if fits {
                    table.advertised.insert(*slot);
                } else if table.advertised.remove(*slot) {
                    withdraw.push(Nlri { prefix: self.tables[family].prefix(*slot), path_id: 0 });
                    withdrawn.push(*slot);
                }
            }
        }
        let mut nlri = withdraw.into_iter().peekable();
        while wire::withdraw(out, &policy.encode, family, &mut nlri) > 0 {
            messages += 1;
        }
        for slot in withdrawn {
            self.tables[family].released(slot);
        }
        self.adj_out[id as usize].as_mut().expect("nobody closed it meanwhile").families[family] =
            Some(table);
        messages
    }

    /// Whether a slot's best path goes to a peer, and what its attributes then depend on. `judge` counts or previews.
    pub(super) fn export(
        &self,
        policy: &ExportPolicy,
        id: u32,
        family: Family,
        slot: u32,
        judge: impl Fn(&[Arc<Filter>], Prefix, &Candidate<'_>) -> Option<RuleRef>,
    ) -> Result<ExportKey, Withheld> {
        let best = self.tables[family].paths(slot).first().filter(|p| p.is_best()).ok_or(Withheld::NoPath)?;
        if best.source == SourceId(id) {
            return Err(Withheld::LearnedFromIt);
        }
        let kind = self.kind(policy, best)?;
        if kind != Kind::Local && self.fib[family].deferring {
            return Err(Withheld::Deferred);
        }
        let attributes = self.attributes.get(best.attributes);
        let has = |c: u32| attributes.communities.contains(&c);
        if has(well_known::NO_ADVERTISE) {
            return Err(Withheld::NoAdvertise);
        }
        if policy.peer_type == PeerType::External
            && (has(well_known::NO_EXPORT) || has(well_known::NO_EXPORT_SUBCONFED))
        {
            return Err(Withheld::NoExport);
        }
        if has(well_known::LLGR_STALE) && !policy.long_lived {
            return Err(Withheld::LongLivedStale);
        }
        let prefix = self.tables[family].prefix(slot);
        let next_hop = self.next_hops.get(best.next_hop);
        let candidate = Candidate::new(attributes, next_hop, &policy.name, policy.address);
        let rule = judge(&policy.filters, prefix, &candidate);
        match rule.map(|r| (r, r.get(&policy.filters, family))) {
            Some((r, rule)) if rule.action == Action::Reject => return Err(Withheld::Filter(r)),
            Some(_) => {}
            None if matches!(kind, Kind::Local | Kind::Reflected(_)) => {}
            None => return Err(Withheld::Default),
        }
        let key = ExportKey { attributes: best.attributes, next_hop: best.next_hop, rule, kind };
        match self.next_hop_for(policy, family, key) {
            Some(_) => Ok(key),
            None => Err(Withheld::NoOwnAddress),
        }
    }

    fn kind(&self, policy: &ExportPolicy, path: &Path) -> Result<Kind, Withheld> {
        let Some(source) = &self.sources[path.source.0 as usize] else {
            return Ok(Kind::Local);
        };
        match (source.peer_type, policy.peer_type) {
            (PeerType::External, _) => Ok(Kind::External),
            (PeerType::Internal, PeerType::External) => Ok(Kind::Internal),
            (PeerType::Internal, PeerType::Internal) if source.client || policy.client => {
                Ok(Kind::Reflected(path.source))
            }
            (PeerType::Internal, PeerType::Internal) => Err(Withheld::NotReflected),
        }
    }

    fn next_hop_for(&self, policy: &ExportPolicy, family: Family, key: ExportKey) -> Option<NextHop> {
        let own = policy.own[family];
        if let Some(addr) = key.rule.and_then(|r| r.get(&policy.filters, family).set.next_hop) {
            return Some(match addr {
                IpAddr::V4(a) => NextHop::V4(a),
                IpAddr::V6(a) => NextHop::V6 { global: a, link_local: None },
            });
        }
        let Some(received) = self.next_hops.get(key.next_hop) else {
            return own;
        };
        // The link-local address means something on the shared link only.
        let shared = policy.shared.iter().any(|s| s.contains_addr(received.addr()));
        let kept = match received {
            NextHop::V6 { global, .. } if !shared => NextHop::V6 { global, link_local: None },
            other => other,
        };
        match (policy.next_hop, key.kind, policy.peer_type) {
            (_, Kind::Local, _) => own,
            // RFC 4456 10: a reflector leaves the next hop alone.
            (_, Kind::Reflected(_), _) | (NextHopMode::Keep, _, _) => Some(kept),
            (NextHopMode::Self_, _, _) => own,
            (NextHopMode::Auto, _, PeerType::Internal) => Some(kept),
            // RFC 4271 5.1.3 2: third party on the shared subnet, but never the peer itself.
            (NextHopMode::Auto, _, PeerType::External) if shared && received.addr() != policy.address => {
                Some(kept)
            }
            (NextHopMode::Auto, _, PeerType::External) => own,
        }
    }

    /// The attributes and the next hop that the peer sees.
    pub(super) fn transform(
        &self,
        policy: &ExportPolicy,
        family: Family,
        key: ExportKey,
    ) -> (PathAttributes, NextHop) {
        let next_hop = self.next_hop_for(policy, family, key).expect("export withholds what has none");
        let mut set = self.attributes.get(key.attributes).clone();
        match policy.peer_type {
            PeerType::External => {
                // RFC 4271 5.1.4, trap 20: MED is for the neighbour that it was given by, not for the next one.
                if key.kind != Kind::Local {
                    set.med = None;
                }
                if policy.remove_private_as {
                    set.as_path.remove_private(policy.remote_as);
                }
                if policy.as_override {
                    set.as_path.replace(policy.remote_as, policy.local_as.unwrap_or(self.identity.asn));
                }
                set.extended_communities.retain(|c| community::is_transitive(*c));
                set.local_pref = None;
                set.originator_id = None;
                set.cluster_list.clear();
            }
            PeerType::Internal => {
                // RFC 8326 4: internal peers need the low preference spelt out.
                let shutdown = set.communities.contains(&well_known::GRACEFUL_SHUTDOWN);
                let own_default = if shutdown && key.kind == Kind::Local { 0 } else { local_pref(&set) };
                set.local_pref = Some(set.local_pref.unwrap_or(own_default));
            }
        }
        if let Kind::Reflected(source) = key.kind {
            // RFC 4456 8.
            let source = self.sources[source.0 as usize].as_ref().expect("a path's source outlives it");
            set.originator_id = set.originator_id.or_else(|| RouterId::new(source.router_id));
            set.cluster_list.insert(0, self.identity.cluster_id);
        }
        if let Some(rule) = key.rule {
            rule.get(&policy.filters, family)
                .set
                .apply(&mut set, policy.local_as.unwrap_or(self.identity.asn));
        }
        // After the filters, which have no say in it. A reflected route does not lead through this node.
        if self.draining && !matches!(key.kind, Kind::Reflected(_)) {
            if let Err(at) = set.communities.binary_search(&well_known::GRACEFUL_SHUTDOWN) {
                set.communities.insert(at, well_known::GRACEFUL_SHUTDOWN);
            }
            set.local_pref = set.local_pref.map(|_| 0);
        }
        if policy.peer_type == PeerType::External {
            let local_as = policy.local_as.filter(|a| *a != self.identity.asn);
            // Behind another AS of ours a private one is as private as a customer's.
            if !(policy.remove_private_as && local_as.is_some() && self.identity.asn.is_private()) {
                filter::prepend(&mut set.as_path, self.identity.asn);
            }
            if let Some(local_as) = local_as {
                filter::prepend(&mut set.as_path, local_as);
            }
        }
        (set, next_hop)
    }
}
