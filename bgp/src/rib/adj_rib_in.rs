//! Adj-RIB-In: what a peer's UPDATE means for the table. Loops, filters and limits are judged here, once for all
//! prefixes of an UPDATE where they can be.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::filter::defaults::{DefaultReject, reject_by_kind};
use crate::filter::{self, Action, Candidate, Filter, RuleRef};
use crate::rib::Rib;
use crate::rib::attributes::AttrId;
use crate::rib::bitset::BitSet;
use crate::rib::path::{AcceptedBy, Path};
use crate::rib::refused::Refused;
use crate::rib::sources::SourceId;
use crate::speaker::{FibNextHop, MaxPrefixes, MaxPrefixesAction};
use crate::types::{Asn, Family, PeerType, PerFamily, Prefix};
use crate::wire::attribute::{NextHop, PathAttributes};
use crate::wire::community::well_known;
use crate::wire::message::{Nlri, Reach, Update};

/// What matters about a peer when its routes come in.
#[derive(Clone, Debug)]
pub(crate) struct ImportPolicy {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) peer_type: PeerType,
    pub(crate) remote_as: Asn,
    /// Our AS on this session, where it is not the speaker's.
    pub(crate) local_as: Option<Asn>,
    pub(crate) allow_as_in: u8,
    /// BLACKHOLE is honoured (RFC 7999).
    pub(crate) blackhole: bool,
    pub(crate) filters: Vec<Arc<Filter>>,
    pub(crate) max_prefixes: Option<MaxPrefixes>,
    /// Our address on the session: never a next hop that we could use (RFC 4271 6.3).
    pub(crate) own_address: IpAddr,
    /// NLRI carry path identifiers (RFC 7911).
    pub(crate) add_path: PerFamily<bool>,
    /// The interface that is shared with the peer; 0 if there is none.
    pub(crate) ifindex: u32,
    /// The session itself runs between link-local addresses.
    pub(crate) over_link_local: bool,
}

impl ImportPolicy {
    /// Where packets for a next hop go. Of a global and a link-local address (RFC 2545 3) the global one, whose way the kernel
    /// knows; on an unnumbered link it need not know any, so that there the link-local one on that link is right.
    fn gateway(&self, hop: NextHop) -> FibNextHop {
        let gateway = match hop {
            NextHop::V6 { link_local: Some(link_local), .. } if self.over_link_local => link_local.into(),
            hop => hop.addr(),
        };
        let scoped = matches!(gateway, IpAddr::V6(a) if a.is_unicast_link_local());
        FibNextHop { gateway, ifindex: if scoped { self.ifindex } else { 0 } }
    }

    /// RFC 7999 3.3: traffic is discarded only for a peer that may ask for it, and only for single addresses: whoever
    /// wants more than those gone withdraws the prefix. Anything else is a route like all others.
    fn discards(&self, attributes: &PathAttributes, prefix: Prefix) -> bool {
        self.blackhole
            && prefix.len() == prefix.family().max_len()
            && attributes.communities.contains(&well_known::BLACKHOLE)
    }
}

/// RFC 7999 3.2: the wish stays within the AS of those who agreed to it.
fn keep_within(set: &mut PathAttributes) {
    if let Err(at) = set.communities.binary_search(&well_known::NO_EXPORT) {
        set.communities.insert(at, well_known::NO_EXPORT);
    }
}

/// Why a route was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reject {
    /// A filter rule said so.
    Filter(RuleRef),
    /// A default rule said so, for good.
    Default(DefaultReject),
    /// Our AS is in the AS_PATH more often than allowed (RFC 4271 9.1.2).
    AsLoop,
    /// We originated it: ORIGINATOR_ID is ours (RFC 4456 8).
    OriginatorId,
    /// We reflected it: our cluster is in the CLUSTER_LIST (RFC 4456 8).
    ClusterLoop,
    /// Its next hop is an address of our own (RFC 4271 6.3 a).
    OwnNextHop,
    /// Over the prefix limit.
    MaxPrefixes,
}

impl Reject {
    /// The reason in words. `filters` is the list now in force; a rule that is gone since is named as such.
    pub(crate) fn describe(self, filters: &[Arc<Filter>], family: Family) -> String {
        match self {
            Reject::Filter(rule) => {
                let known = filters
                    .get(usize::from(rule.filter))
                    .is_some_and(|f| f.rules(family).len() > usize::from(rule.rule));
                match known {
                    true => format!("import {}", rule.describe(filters, family)),
                    false => "import filter, changed since".to_owned(),
                }
            }
            Reject::Default(rule) => format!("import {}", rule.name()),
            Reject::AsLoop => "own AS in AS_PATH".to_owned(),
            Reject::OriginatorId => "own ORIGINATOR_ID".to_owned(),
            Reject::ClusterLoop => "own cluster in CLUSTER_LIST".to_owned(),
            Reject::OwnNextHop => "next hop is our own address".to_owned(),
            Reject::MaxPrefixes => "over the prefix limit".to_owned(),
        }
    }
}

/// A peer's side of the table.
pub(super) struct AdjIn {
    pub(super) policy: Option<Box<ImportPolicy>>,
    /// Slots that hold a path of this peer.
    pub(super) has: PerFamily<BitSet>,
    /// Paths beyond the first of a slot, which only Add-Path brings.
    pub(super) further: PerFamily<usize>,
    refused: Refused,
}

impl AdjIn {
    /// Of the node itself.
    pub(super) fn local() -> Self {
        AdjIn {
            policy: None,
            has: PerFamily::from_fn(|_| BitSet::default()),
            further: PerFamily::both(0),
            refused: Refused::default(),
        }
    }

    /// How many routes count against the prefix limit: accepted and refused ones, but for those that the limit refused.
    /// With Add-Path each path is a route: a limit on prefixes would not bound the memory that a peer can take.
    fn held(&self, family: Family) -> usize {
        self.has[family].len() + self.further[family] + self.refused.within_limit(family)
    }
}

/// What a peer calls a route: the prefix, with Add-Path also an identifier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct RouteKey {
    pub(super) prefix: Prefix,
    pub(super) path_id: Option<u32>,
}

impl ImportPolicy {
    fn key(&self, nlri: Nlri) -> RouteKey {
        let path_id = self.add_path[nlri.prefix.family()].then_some(nlri.path_id);
        RouteKey { prefix: nlri.prefix, path_id }
    }
}

/// A prefix limit was crossed by an UPDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimitReached {
    pub(crate) family: Family,
    pub(crate) limit: u32,
    pub(crate) action: MaxPrefixesAction,
}

/// Counts of a peer's received prefixes in a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReceivedCounts {
    pub(crate) accepted: usize,
    pub(crate) filtered: usize,
    pub(crate) stale: usize,
}

impl Rib {
    /// Begins to take routes from a peer.
    pub(crate) fn open_adj_in(&mut self, id: SourceId, policy: ImportPolicy) {
        let at = id.0 as usize;
        if self.adj_in.len() <= at {
            self.adj_in.resize_with(at + 1, || None);
        }
        self.adj_in[at].get_or_insert_with(AdjIn::local).policy = Some(Box::new(policy));
        // Stale paths came in by the filters of another session.
        self.forget_accepting_rules(id);
    }

    /// Changes how a peer's further routes are judged, if it has a session.
    pub(crate) fn update_import_policy(&mut self, id: SourceId, change: impl FnOnce(&mut ImportPolicy)) {
        let adj = self.adj_in.get_mut(id.0 as usize).and_then(Option::as_mut);
        if let Some(policy) = adj.and_then(|a| a.policy.as_mut()) {
            change(policy);
        }
    }

    /// The filters changed: which rule let a path in is not known until the peer says the route again.
    pub(crate) fn forget_accepting_rules(&mut self, id: SourceId) {
        for family in Family::ALL {
            self.each_path_of(id, family, |path| path.set_accepted_by(AcceptedBy::UNKNOWN));
        }
    }

    /// Forgets a peer's refused prefixes of a family: its session is over, or it sends all again.
    pub(crate) fn forget_refused(&mut self, id: SourceId, family: Family) {
        if self.adj_in_of(id).is_some() {
            self.adj_in_mut(id).refused.clear(family);
        }
    }

    /// Forgets a peer altogether. Its paths must be gone.
    pub(super) fn close_adj_in(&mut self, id: SourceId) {
        if let Some(slot) = self.adj_in.get_mut(id.0 as usize) {
            *slot = None;
        }
        self.sources.forget(id);
    }

    pub(super) fn adj_in_of(&self, id: SourceId) -> Option<&AdjIn> {
        self.adj_in.get(id.0 as usize)?.as_ref()
    }

    pub(super) fn adj_in_mut(&mut self, id: SourceId) -> &mut AdjIn {
        self.adj_in[id.0 as usize].as_mut().expect("sources have an Adj-RIB-In while they are known")
    }

    /// Takes an UPDATE in. Gives the limits that it crossed; with `Disable` the rest of the UPDATE is not looked at.
    pub(crate) fn import(&mut self, id: SourceId, update: Update) -> Option<LimitReached> {
        // Taken out for the time being: the table changes while the policy is read.
        let policy = self.adj_in_mut(id).policy.take().expect("a session that is up has a policy");
        for nlri in &update.withdrawn {
            self.withdraw(id, policy.key(*nlri));
        }
        let crossed = match update.attributes {
            Some(attributes) if !update.reach.is_empty() => {
                self.import_reach(id, &policy, attributes, &update.reach)
            }
            _ => None,
        };
        self.adj_in_mut(id).policy = Some(policy);
        crossed
    }

    fn withdraw(&mut self, id: SourceId, key: RouteKey) {
        if !self.remove_route(id, key) {
            self.adj_in_mut(id).refused.withdraw(key);
        }
    }

    fn remove_route(&mut self, id: SourceId, key: RouteKey) -> bool {
        self.sources.find(id, key.path_id).is_some_and(|source| self.remove(source, key.prefix))
    }

    fn refuse(&mut self, id: SourceId, key: RouteKey, why: Reject) {
        // A route that is refused now takes the place of one that was accepted before.
        self.remove_route(id, key);
        self.adj_in_mut(id).refused.insert(key, why);
    }

    fn unrefuse(&mut self, id: SourceId, key: RouteKey) {
        self.adj_in_mut(id).refused.remove(key);
    }

    fn import_reach(
        &mut self,
        id: SourceId,
        policy: &ImportPolicy,
        attributes: PathAttributes,
        reach: &[Reach],
    ) -> Option<LimitReached> {
        let looped = self.loop_in(policy, &attributes);
        let attributes = prepare(policy, attributes);
        let mut crossed = None;
        for reach in reach {
            let hop = reach.next_hop.addr();
            let own_next_hop = hop == policy.own_address || self.protected.is_node(hop);
            let candidate = Candidate::new(&attributes, Some(reach.next_hop), &policy.name, policy.address);
            // Attributes as an accepting rule leaves them; prefixes of an UPDATE mostly meet the same rule.
            let mut last: Option<((Option<RuleRef>, bool), AttrId, NextHop)> = None;
            for nlri in &reach.nlri {
                let prefix = nlri.prefix;
                let key = policy.key(*nlri);
                if let Some(limit) = self.check_limit(id, policy, key) {
                    crossed = crossed.or(Some(limit));
                    match limit.action {
                        MaxPrefixesAction::Warn => {}
                        MaxPrefixesAction::Reject => {
                            self.refuse(id, key, Reject::MaxPrefixes);
                            continue;
                        }
                        MaxPrefixesAction::Disable { .. } => {
                            if let Some((_, attributes, _)) = last {
                                self.attributes.release(attributes);
                            }
                            return crossed;
                        }
                    }
                }
                if let Some(why) = looped.or(own_next_hop.then_some(Reject::OwnNextHop)) {
                    self.refuse(id, key, why);
                    continue;
                }
                let rule = filter::decide(&policy.filters, prefix, &candidate);
                let discard = policy.discards(&attributes, prefix);
                let refused = match rule.map(|r| (r, r.get(&policy.filters, reach.family).action)) {
                    Some((rule, Action::Reject)) => Some(Reject::Filter(rule)),
                    Some((_, Action::Accept)) => None,
                    None => reject_by_kind(prefix).map(Reject::Default),
                };
                if let Some(why) = refused {
                    self.refuse(id, key, why);
                    continue;
                }
                let (interned, next_hop) = match last {
                    Some((same, interned, next_hop)) if same == (rule, discard) => (interned, next_hop),
                    _ => {
                        if let Some((_, unused, _)) = last {
                            self.attributes.release(unused);
                        }
                        let (mut set, next_hop) = apply_rule(policy, &attributes, reach, rule);
                        if discard {
                            keep_within(&mut set);
                        }
                        let interned = self.attributes.intern(set);
                        last = Some(((rule, discard), interned, next_hop));
                        (interned, next_hop)
                    }
                };
                self.unrefuse(id, key);
                let source = self.sources.intern(id, key.path_id);
                self.attributes.retain(interned);
                let hop = self.next_hops.intern(next_hop, policy.gateway(next_hop));
                let mut path = Path::new(source, interned, hop, rule);
                path.set_blackhole(discard);
                self.insert(prefix, path);
            }
            if let Some((_, interned, _)) = last {
                self.attributes.release(interned);
            }
        }
        crossed
    }

    /// Loops are a matter of the attributes alone, the same for all prefixes of an UPDATE.
    fn loop_in(&self, policy: &ImportPolicy, attributes: &PathAttributes) -> Option<Reject> {
        let ours = |asn: &Asn| *asn == self.identity.asn || Some(*asn) == policy.local_as;
        let occurrences =
            attributes.as_path.segments.iter().flat_map(|s| &s.asns).filter(|a| ours(a)).count();
        if occurrences > usize::from(policy.allow_as_in) {
            return Some(Reject::AsLoop);
        }
        if attributes.originator_id == Some(self.identity.router_id) {
            return Some(Reject::OriginatorId);
        }
        attributes.cluster_list.contains(&self.identity.cluster_id).then_some(Reject::ClusterLoop)
    }

    /// A prefix that is new and beyond the limit. Warnings come once, when the limit is crossed.
    fn check_limit(&self, id: SourceId, policy: &ImportPolicy, key: RouteKey) -> Option<LimitReached> {
        let MaxPrefixes { limit, action } = policy.max_prefixes?;
        let family = key.prefix.family();
        let adj = self.adj_in_of(id)?;
        let held = adj.held(family);
        let beyond = match action {
            MaxPrefixesAction::Warn => held == limit as usize,
            MaxPrefixesAction::Reject | MaxPrefixesAction::Disable { .. } => held >= limit as usize,
        };
        let known = || match adj.refused.get(key) {
            Some(Reject::MaxPrefixes) => false,
            Some(_) => true,
            None => self.has_route(id, key),
        };
        (beyond && !known()).then_some(LimitReached { family, limit, action })
    }

    /// A route of a peer is in the table.
    fn has_route(&self, id: SourceId, key: RouteKey) -> bool {
        let table = &self.tables[key.prefix.family()];
        let (Some(slot), Some(source)) = (table.find(key.prefix), self.sources.find(id, key.path_id)) else {
            return false;
        };
        table.paths(slot).iter().any(|p| p.source == source)
    }

    /// After the limit has changed: what is held beyond it. With `Reject` that goes, the prefixes learned last before others.
    pub(crate) fn enforce_limit(&mut self, id: SourceId, limit: MaxPrefixes) -> Vec<LimitReached> {
        let MaxPrefixes { limit, action } = limit;
        let mut crossed = Vec::new();
        for family in Family::ALL {
            let Some(adj) = self.adj_in_of(id) else { continue };
            let excess = adj.held(family).saturating_sub(limit as usize);
            if excess == 0 {
                continue;
            }
            crossed.push(LimitReached { family, limit, action });
            if action == MaxPrefixesAction::Reject {
                for key in self.last_routes(id, family, excess) {
                    self.refuse(id, key, Reject::MaxPrefixes);
                }
            }
        }
        crossed
    }

    /// So many routes of a peer, from the end of the table.
    fn last_routes(&self, id: SourceId, family: Family, count: usize) -> Vec<RouteKey> {
        let table = &self.tables[family];
        let routes = self.slots_of(id, family).into_iter().rev().flat_map(|slot| {
            let prefix = table.prefix(slot);
            let own = table.paths(slot).iter().filter(|p| self.sources.peer(p.source) == id);
            own.map(move |p| RouteKey { prefix, path_id: self.sources.path_id(p.source) })
        });
        routes.take(count).collect()
    }

    /// Counts for display.
    pub(crate) fn received(&self, id: SourceId, family: Family) -> ReceivedCounts {
        let Some(adj) = self.adj_in_of(id) else {
            return ReceivedCounts::default();
        };
        let mut counts =
            ReceivedCounts { filtered: adj.refused.counted(family), ..ReceivedCounts::default() };
        for slot in adj.has[family].iter() {
            for path in self.tables[family].paths(slot).iter().filter(|p| self.sources.peer(p.source) == id) {
                counts.accepted += usize::from(!path.is_protected());
                counts.filtered += usize::from(path.is_protected());
                counts.stale += usize::from(path.is_stale());
            }
        }
        counts
    }

    /// A peer's refused routes with the reason in words, in order.
    pub(super) fn refused(&self, id: SourceId) -> Vec<(RouteKey, String)> {
        let Some(adj) = self.adj_in_of(id) else { return Vec::new() };
        let filters = adj.policy.as_ref().map_or(&[][..], |p| p.filters.as_slice());
        let mut all: Vec<_> =
            adj.refused.iter().map(|(key, why)| (key, why.describe(filters, key.prefix.family()))).collect();
        all.sort_unstable_by_key(|(key, _)| (key.prefix, key.path_id));
        all
    }

    /// How many refused routes of a peer are only counted.
    pub(crate) fn refused_beyond(&self, id: SourceId) -> usize {
        self.adj_in_of(id).map_or(0, |adj| adj.refused.beyond())
    }

    /// Which import rule let a path in.
    pub(super) fn accepted_by(&self, path: &Path, family: Family) -> Option<String> {
        let policy = self.adj_in_of(self.sources.peer(path.source))?.policy.as_ref()?;
        if path.accepted_by() == AcceptedBy::DEFAULT {
            return Some("import default".to_owned());
        }
        let rule = path.accepted_by().rule()?;
        Some(format!("import {}", rule.describe(&policy.filters, family)))
    }

    /// The refused routes of a peer to a prefix.
    pub(super) fn refusals(&self, id: SourceId, prefix: Prefix) -> Vec<(RouteKey, String)> {
        let Some(adj) = self.adj_in_of(id) else { return Vec::new() };
        let filters = adj.policy.as_ref().map_or(&[][..], |p| p.filters.as_slice());
        let mut all: Vec<_> =
            adj.refused.of(prefix).map(|(key, why)| (key, why.describe(filters, prefix.family()))).collect();
        all.sort_unstable_by_key(|(key, _)| key.path_id);
        all
    }
}

/// What every route of a peer goes through before the filters see it.
fn prepare(policy: &ImportPolicy, mut attributes: PathAttributes) -> PathAttributes {
    if policy.peer_type == PeerType::External {
        // RFC 4271 5.1.5: LOCAL_PREF from an external peer is ignored.
        attributes.local_pref = None;
        attributes.originator_id = None;
        attributes.cluster_list = Vec::<Ipv4Addr>::new();
        // RFC 8326 4: what is about to go away is the last choice.
        if attributes.communities.contains(&well_known::GRACEFUL_SHUTDOWN) {
            attributes.local_pref = Some(0);
        }
        // Internal peers must see the path as it would be had we still the other AS.
        if let Some(local_as) = policy.local_as {
            filter::prepend(&mut attributes.as_path, local_as);
        }
    }
    attributes
}

fn apply_rule(
    policy: &ImportPolicy,
    attributes: &PathAttributes,
    reach: &Reach,
    rule: Option<RuleRef>,
) -> (PathAttributes, NextHop) {
    let mut set = attributes.clone();
    let mut next_hop = reach.next_hop;
    if let Some(rule) = rule {
        let changes = &rule.get(&policy.filters, reach.family).set;
        changes.apply(&mut set, policy.remote_as);
        if let Some(addr) = changes.next_hop {
            next_hop = match addr {
                IpAddr::V4(a) => NextHop::V4(a),
                IpAddr::V6(a) => NextHop::V6 { global: a, link_local: None },
            };
        }
    }
    (set, next_hop)
}
