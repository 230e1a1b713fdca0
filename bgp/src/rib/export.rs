//! Whether a path goes out to a peer, and as what: the export rules, communities, filters, next hop and attributes.
//! What a peer is told depends on the path and on the policy alone; peers with the same policy are told the same.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::filter::{self, Action, Candidate, Filter, RuleRef};
use crate::rib::Rib;
use crate::rib::attributes::AttrId;
use crate::rib::decision::local_pref;
use crate::rib::next_hops::NextHopId;
use crate::rib::path::Path;
use crate::rib::sources::SourceId;
use crate::speaker::NextHopMode;
use crate::types::{Asn, Family, PeerType, PerFamily, Prefix, RouterId};
use crate::wire::EncodeContext;
use crate::wire::attribute::{NextHop, PathAttributes};
use crate::wire::community::{self, well_known};

/// What matters about a peer when routes go out.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// With Add-Path: at most so many paths of a prefix, the best ones; 0: all that are eligible.
    pub(crate) max_paths: u8,
    /// It knows the markers around a refresh (RFC 7313).
    pub(crate) markers: bool,
}

impl ExportPolicy {
    /// The policy of all peers that are told the same: what differs between them without making a difference is blank. Every
    /// field is named here, so that a new one cannot be forgotten: one that is missing leaks routes between peers.
    pub(super) fn shared_by_equals(&self) -> ExportPolicy {
        let ExportPolicy {
            name,
            address,
            peer_type,
            remote_as,
            local_as,
            as_override,
            remove_private_as,
            long_lived,
            client,
            next_hop,
            filters,
            own,
            shared,
            encode,
            max_paths,
            // They stand around what is told, not in it.
            markers: _,
        } = self;
        let mut rules =
            filters.iter().flat_map(|f| Family::ALL.into_iter().flat_map(|family| f.rules(family)));
        let asks_who = rules.any(|rule| rule.matches.neighbor.is_some());
        // A third-party next hop never is the peer itself.
        let asks_where = *next_hop == NextHopMode::Auto && *peer_type == PeerType::External;
        ExportPolicy {
            name: if asks_who { name.clone() } else { String::new() },
            address: if asks_who || asks_where { *address } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) },
            peer_type: *peer_type,
            remote_as: if *as_override || *remove_private_as { *remote_as } else { Asn(0) },
            local_as: *local_as,
            as_override: *as_override,
            remove_private_as: *remove_private_as,
            long_lived: *long_lived,
            client: *client,
            next_hop: *next_hop,
            filters: filters.clone(),
            own: *own,
            shared: shared.clone(),
            encode: *encode,
            max_paths: *max_paths,
            markers: false,
        }
    }

    /// Told the same by it. Equal filters that are not one and the same count apart.
    pub(super) fn same(&self, other: &ExportPolicy) -> bool {
        let one = |(a, b): (&Arc<Filter>, &Arc<Filter>)| Arc::ptr_eq(a, b);
        self == other && self.filters.iter().zip(&other.filters).all(one)
    }
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
    /// An IPv4 route with an IPv6 next hop that stays, to a peer that does not take those.
    NextHopFamily,
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
            Withheld::NextHopFamily => {
                "IPv4 route with an IPv6 next hop, which this peer does not take (RFC 8950)".to_owned()
            }
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
    /// The peer that gave the path: it alone is not told.
    pub(super) from: SourceId,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Local,
    /// Learned from an external peer.
    External,
    /// Learned from an internal peer and sent to an external one.
    Internal,
    /// From an internal to an internal peer; its source gives the ORIGINATOR_ID.
    Reflected,
}

impl ExportKey {
    /// The rule that accepted; `None`: the default did.
    pub(super) fn rule(&self) -> Option<RuleRef> {
        self.rule
    }
}

impl Rib {
    /// The paths of a slot that may go out on a session with this policy: the best one, with Add-Path more.
    pub(super) fn selected(&self, policy: &ExportPolicy, family: Family, slot: u32) -> SmallVec<[&Path; 4]> {
        let paths = self.tables[family].paths(slot);
        if !policy.encode.add_path[family] {
            return paths.first().filter(|p| p.is_best()).into_iter().collect();
        }
        match usize::from(policy.max_paths) {
            0 => self.facts().eligible(paths),
            count => self.facts().best_of(paths, count),
        }
    }

    /// Whether anything but a look at communities and filters could say no to a slot's best path.
    pub(super) fn may_export_best(&self, policy: &ExportPolicy, family: Family, slot: u32) -> bool {
        let Some(best) = self.tables[family].paths(slot).first().filter(|p| p.is_best()) else {
            return false;
        };
        match self.kind(policy, best) {
            Ok(Kind::Local | Kind::Reflected) => true,
            Ok(Kind::External | Kind::Internal) => !policy.filters.is_empty(),
            Err(_) => false,
        }
    }

    /// Whether a slot's best path goes to a peer, and what its attributes then depend on, for people: nothing is counted.
    pub(super) fn export_best(
        &self,
        policy: &ExportPolicy,
        id: u32,
        family: Family,
        slot: u32,
    ) -> Result<ExportKey, Withheld> {
        let best = self.tables[family].paths(slot).first().filter(|p| p.is_best()).ok_or(Withheld::NoPath)?;
        if self.sources.peer(best.source) == SourceId(id) {
            return Err(Withheld::LearnedFromIt);
        }
        let prefix = self.tables[family].prefix(slot);
        self.export(policy, family, best, |candidate| filter::preview(&policy.filters, prefix, candidate))
    }

    /// Whether a path goes out by a policy, and what its attributes then depend on. `judge` asks the filters.
    pub(super) fn export(
        &self,
        policy: &ExportPolicy,
        family: Family,
        path: &Path,
        judge: impl FnOnce(&Candidate<'_>) -> Option<RuleRef>,
    ) -> Result<ExportKey, Withheld> {
        let kind = self.kind(policy, path)?;
        if kind != Kind::Local && self.fib[family].deferring {
            return Err(Withheld::Deferred);
        }
        let attributes = self.attributes.shared(path.attributes);
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
        let next_hop = self.next_hops.get(path.next_hop);
        let rule = judge(&Candidate::new(attributes, next_hop, &policy.name, policy.address));
        match rule.map(|r| (r, r.get(&policy.filters, family))) {
            Some((r, rule)) if rule.action == Action::Reject => return Err(Withheld::Filter(r)),
            Some(_) => {}
            None if matches!(kind, Kind::Local | Kind::Reflected) => {}
            None => return Err(Withheld::Default),
        }
        let from = self.sources.peer(path.source);
        let key = ExportKey { attributes: path.attributes, next_hop: path.next_hop, rule, kind, from };
        let extended = policy.encode.extended_next_hop;
        match self.next_hop_for(policy, family, key) {
            Some(NextHop::V6 { .. }) if family == Family::Ipv4Unicast && !extended => {
                Err(Withheld::NextHopFamily)
            }
            Some(_) => Ok(key),
            None => Err(Withheld::NoOwnAddress),
        }
    }

    fn kind(&self, policy: &ExportPolicy, path: &Path) -> Result<Kind, Withheld> {
        let Some(source) = self.sources.get(path.source) else {
            return Ok(Kind::Local);
        };
        match (source.peer_type, policy.peer_type) {
            (PeerType::External, _) => Ok(Kind::External),
            (PeerType::Internal, PeerType::External) => Ok(Kind::Internal),
            (PeerType::Internal, PeerType::Internal) if source.client || policy.client => Ok(Kind::Reflected),
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
            (_, Kind::Reflected, _) | (NextHopMode::Keep, _, _) => Some(kept),
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
        let mut set = self.attributes.whole(key.attributes);
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
        if key.kind == Kind::Reflected {
            // RFC 4456 8.
            let source = self.sources.get(key.from).expect("a path's source outlives it");
            set.originator_id = set.originator_id.or_else(|| RouterId::new(source.router_id));
            set.cluster_list.insert(0, self.identity.cluster_id);
        }
        if let Some(rule) = key.rule {
            rule.get(&policy.filters, family)
                .set
                .apply(&mut set, policy.local_as.unwrap_or(self.identity.asn));
        }
        // After the filters, which have no say in it. A reflected route does not lead through this node.
        if self.draining && key.kind != Kind::Reflected {
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
