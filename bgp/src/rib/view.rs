//! The table as people see it: paths with the reasons that the decision kept.

use std::net::IpAddr;

use crate::filter::{self, Candidate};
use crate::rib::Rib;
use crate::rib::adj_rib_in::RouteKey;
use crate::rib::decision::{as_path_length, local_pref, neighbor_as};
use crate::rib::loc_rib::Forwarding;
use crate::rib::path::{Path, Step, Verdict};
use crate::rib::sources::SourceId;
use crate::speaker::{AsPathItem, ExportView, FibNextHop, RouteChange, RouteView};
use crate::types::{Family, PeerType, Prefix};
use crate::wire::attribute::{NextHop, Origin, PathAttributes, SegmentKind};
use crate::wire::community::{extended_text, large_text, standard_text};

/// How a peer is called.
pub(crate) struct PeerName<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: IpAddr,
}

impl Rib {
    /// All paths of a prefix: best first, then by verdict and peer address.
    pub(crate) fn paths_view<'a>(
        &self,
        prefix: Prefix,
        name: &impl Fn(u32) -> Option<PeerName<'a>>,
    ) -> Vec<RouteView> {
        let family = prefix.family();
        self.tables[family].find(prefix).map_or_else(Vec::new, |slot| self.slot_view(family, slot, name))
    }

    /// The whole Loc-RIB, by prefix.
    pub(crate) fn loc_rib_view<'a>(&self, name: &impl Fn(u32) -> Option<PeerName<'a>>) -> Vec<RouteView> {
        let mut all = Vec::new();
        for family in Family::ALL {
            for slot in self.by_prefix(family, self.tables[family].occupied().collect()) {
                all.extend(self.slot_view(family, slot, name));
            }
        }
        all
    }

    /// What was accepted from a peer, by prefix, then what was refused.
    pub(crate) fn adj_in_view<'a>(
        &self,
        id: SourceId,
        name: &impl Fn(u32) -> Option<PeerName<'a>>,
    ) -> Vec<RouteView> {
        let mut all = Vec::new();
        for family in Family::ALL {
            for slot in self.by_prefix(family, self.slots_of(id, family)) {
                let own = |p: &&Path| self.sources.peer(p.source) == id;
                let mut paths: Vec<&Path> = self.tables[family].paths(slot).iter().filter(own).collect();
                paths.sort_by_key(|p| self.sources.path_id(p.source));
                all.extend(paths.into_iter().map(|path| self.path_view(family, slot, path, name)));
            }
        }
        let refused = self.refused(id).into_iter();
        all.extend(refused.map(|(key, why)| refused_view(key, name(id.0), why)));
        all
    }

    /// What has been advertised to a peer, by prefix, as it saw it.
    pub(crate) fn adj_out_view<'a>(
        &self,
        id: u32,
        name: &impl Fn(u32) -> Option<PeerName<'a>>,
    ) -> Vec<RouteView> {
        let Some(policy) = self.export_policy(id) else {
            return Vec::new();
        };
        let mut all = Vec::new();
        for family in Family::ALL {
            for slot in self.by_prefix(family, self.advertised_slots(id, family)) {
                let prefix = self.tables[family].prefix(slot);
                for path in self.selected(policy, family, slot) {
                    let add_path = policy.encode.add_path[family];
                    let told = !add_path || self.path_advertised_to(id, family, slot, path.source);
                    let judge =
                        |candidate: &Candidate<'_>| filter::preview(&policy.filters, prefix, candidate);
                    // What cannot be exported any more is about to be withdrawn.
                    let (true, Ok(key)) = (told, self.export(policy, family, path, judge)) else { continue };
                    let (set, next_hop) = self.transform(policy, family, key);
                    let mut view = self.path_view(family, slot, path, name);
                    describe_attributes(&mut view, &set);
                    view.next_hop = Some(next_hop.addr());
                    view.path_id = add_path.then(|| path.source.outgoing_path_id());
                    if policy.peer_type == PeerType::External {
                        view.local_pref = None;
                    }
                    all.push(view);
                }
            }
        }
        all
    }

    /// Why a peer's routes to a prefix were refused, as routes without attributes.
    pub(crate) fn refused_views<'a>(
        &self,
        id: SourceId,
        prefix: Prefix,
        name: &impl Fn(u32) -> Option<PeerName<'a>>,
    ) -> Vec<RouteView> {
        let refused = self.refusals(id, prefix).into_iter();
        refused.map(|(key, why)| refused_view(key, name(id.0), why)).collect()
    }

    /// What the FIB was told of a prefix, or would be.
    pub(crate) fn next_hops_of(&self, prefix: Prefix) -> Vec<FibNextHop> {
        let family = prefix.family();
        let slot = self.tables[family].find(prefix);
        slot.map_or_else(Vec::new, |slot| self.forwarding(family, slot).next_hops.into_vec())
    }

    /// Where each prefix leads that leads anywhere but here: what the FIB holds once all changes have been told.
    pub(crate) fn forwarding_view(&self) -> Vec<RouteChange> {
        let mut all = Vec::new();
        for family in Family::ALL {
            for slot in self.tables[family].occupied() {
                let Forwarding { next_hops, backup, blackhole } = self.forwarding(family, slot);
                if blackhole || !next_hops.is_empty() {
                    all.push(RouteChange {
                        prefix: self.tables[family].prefix(slot),
                        next_hops,
                        backup,
                        blackhole,
                    });
                }
            }
        }
        all
    }

    /// What became of a prefix towards each peer with a session.
    pub(crate) fn exports_view<'a>(
        &self,
        prefix: Prefix,
        name: &impl Fn(u32) -> Option<PeerName<'a>>,
    ) -> Vec<ExportView> {
        let family = prefix.family();
        let Some(slot) = self.tables[family].find(prefix) else {
            return Vec::new();
        };
        let mut exports: Vec<ExportView> = Vec::new();
        for id in &self.targets {
            let (Some(policy), Some(peer)) = (self.export_policy(*id), name(*id)) else { continue };
            let mut rule = None;
            let result = self.export_best(policy, *id, family, slot);
            if let Ok(key) = &result {
                rule = key.rule();
            }
            let reason = match (result, rule) {
                (Err(why), _) => why.describe(&policy.filters, family),
                (Ok(_), Some(rule)) => format!("export {}", rule.describe(&policy.filters, family)),
                (Ok(_), None) => "export default: originated and reflected routes".to_owned(),
            };
            let advertised = self.advertised_to(*id, family, slot);
            exports.push(ExportView { peer: peer.name.to_owned(), advertised, reason });
        }
        exports.sort_by(|a, b| a.peer.cmp(&b.peer));
        exports
    }

    /// The longest match with an eligible path.
    pub(crate) fn longest_match<'a>(
        &self,
        addr: IpAddr,
        name: &impl Fn(u32) -> Option<PeerName<'a>>,
    ) -> Option<(Prefix, Vec<FibNextHop>, RouteView)> {
        let family = match addr {
            IpAddr::V4(_) => Family::Ipv4Unicast,
            IpAddr::V6(_) => Family::Ipv6Unicast,
        };
        let table = &self.tables[family];
        let slot = table.longest_match(addr, |s| table.paths(s).first().is_some_and(Path::is_best))?;
        let view = self.path_view(family, slot, &table.paths(slot)[0], name);
        Some((table.prefix(slot), self.forwarding(family, slot).next_hops.into_vec(), view))
    }

    fn by_prefix(&self, family: Family, mut slots: Vec<u32>) -> Vec<u32> {
        slots.sort_by_key(|slot| self.tables[family].prefix(*slot));
        slots
    }

    fn slot_view<'a>(
        &self,
        family: Family,
        slot: u32,
        name: &impl Fn(u32) -> Option<PeerName<'a>>,
    ) -> Vec<RouteView> {
        let paths = self.tables[family].paths(slot);
        let mut order: Vec<&Path> = paths.iter().collect();
        order.sort_by_key(|p| {
            (!p.is_best(), !p.is_multipath(), self.source_address(p), self.sources.path_id(p.source))
        });
        order.into_iter().map(|p| self.path_view(family, slot, p, name)).collect()
    }

    fn source_address(&self, path: &Path) -> Option<IpAddr> {
        self.sources.get(path.source).map(|s| s.address.ip)
    }

    fn path_view<'a>(
        &self,
        family: Family,
        slot: u32,
        path: &Path,
        name: &impl Fn(u32) -> Option<PeerName<'a>>,
    ) -> RouteView {
        let table = &self.tables[family];
        let best = table.paths(slot).first().filter(|p| p.is_best());
        let source = self.sources.peer(path.source);
        let peer = if source == SourceId::LOCAL { None } else { name(source.0) };
        let mut view = RouteView {
            prefix: table.prefix(slot),
            from: self.source_address(path),
            peer: peer.map(|p| p.name.to_owned()),
            path_id: self.sources.path_id(path.source),
            next_hop: self.next_hops.get(path.next_hop).map(NextHop::addr),
            best: path.is_best(),
            multipath: path.is_multipath(),
            stale: path.is_stale(),
            filtered: path.is_protected(),
            blackhole: path.is_blackhole(),
            accepted_by: self.accepted_by(path, family),
            ..empty_view(table.prefix(slot))
        };
        describe_attributes(&mut view, &self.attributes.whole(path.attributes));
        (view.lost_at, view.reason) = match path.verdict() {
            Verdict::Best => (None, None),
            Verdict::Protected => {
                let rule = self.protected.reject(table.prefix(slot));
                let rule = rule.map_or("default: not any more", |r| r.name());
                (None, Some(format!("import {rule}")))
            }
            Verdict::NextHopUnknown => (None, Some("next hop is being resolved".to_owned())),
            Verdict::NextHopUnreachable => (None, Some("next hop is unreachable".to_owned())),
            Verdict::Lost(step) => {
                let why =
                    best.map_or_else(|| "to a path that has gone".to_owned(), |b| self.why(step, path, b));
                (Some(step.letter()), Some(why))
            }
        };
        view
    }

    /// The step in words, with the values that decided.
    fn why(&self, step: Step, loser: &Path, best: &Path) -> String {
        let (l, b) = (self.attributes.shared(loser.attributes), self.attributes.shared(best.attributes));
        match step {
            Step::Local => "originated here".to_owned(),
            Step::LongLivedStale => "long-lived stale after one that is not".to_owned(),
            Step::Preference => format!("LOCAL_PREF lower ({} < {})", local_pref(l), local_pref(b)),
            Step::AsPathLength => {
                format!("AS path longer ({} > {})", as_path_length(&l.as_path), as_path_length(&b.as_path))
            }
            Step::Origin => format!("ORIGIN {} after {}", origin_name(l.origin), origin_name(b.origin)),
            Step::Med => {
                // The path that beat it need not be the best one: MED compares within a neighbour AS.
                let asn = neighbor_as(&l.as_path, self.identity.asn);
                format!("MED {} higher than of another path through AS {asn}", l.med.unwrap_or(0))
            }
            Step::PeerType => "internal after external".to_owned(),
            Step::InteriorCost => {
                let facts = self.facts();
                format!("interior cost higher ({} > {})", facts.metric(loser), facts.metric(best))
            }
            Step::Identifier => {
                format!("BGP identifier higher ({} > {})", self.identifier(loser), self.identifier(best))
            }
            Step::ClusterLength => {
                format!("CLUSTER_LIST longer ({} > {})", l.cluster_list.len(), b.cluster_list.len())
            }
            Step::PeerAddress => "peer address higher".to_owned(),
            Step::PathId => "path identifier higher".to_owned(),
        }
    }

    fn identifier(&self, path: &Path) -> String {
        let id = self.attributes.originator_id(path.attributes).map(|id| id.addr());
        let id = id.or_else(|| self.sources.get(path.source).map(|s| s.router_id));
        id.map_or_else(|| "-".to_owned(), |id| id.to_string())
    }
}

fn empty_view(prefix: Prefix) -> RouteView {
    RouteView {
        prefix,
        from: None,
        peer: None,
        path_id: None,
        next_hop: None,
        best: false,
        multipath: false,
        stale: false,
        filtered: false,
        blackhole: false,
        as_path: Vec::new(),
        origin: None,
        med: None,
        local_pref: None,
        communities: Vec::new(),
        large_communities: Vec::new(),
        extended_communities: Vec::new(),
        originator_id: None,
        cluster_list: Vec::new(),
        lost_at: None,
        reason: None,
        accepted_by: None,
    }
}

fn refused_view(key: RouteKey, peer: Option<PeerName<'_>>, why: String) -> RouteView {
    RouteView {
        path_id: key.path_id,
        from: peer.as_ref().map(|p| p.address),
        peer: peer.map(|p| p.name.to_owned()),
        filtered: true,
        reason: Some(why),
        ..empty_view(key.prefix)
    }
}

fn describe_attributes(view: &mut RouteView, set: &PathAttributes) {
    view.as_path = set
        .as_path
        .segments
        .iter()
        .flat_map(|s| match s.kind {
            SegmentKind::Sequence | SegmentKind::ConfedSequence => {
                s.asns.iter().map(|a| AsPathItem::Asn(*a)).collect::<Vec<_>>()
            }
            SegmentKind::Set | SegmentKind::ConfedSet => vec![AsPathItem::Set(s.asns.to_vec())],
        })
        .collect();
    view.origin = Some(origin_name(set.origin));
    view.med = set.med;
    view.local_pref = Some(local_pref(set));
    view.communities = set.communities.iter().map(|c| standard_text(*c)).collect();
    view.large_communities = set.large_communities.iter().map(large_text).collect();
    view.extended_communities = set.extended_communities.iter().map(|c| extended_text(*c)).collect();
    view.originator_id = set.originator_id.map(|id| id.addr());
    view.cluster_list.clone_from(&set.cluster_list);
}

fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::Igp => "igp",
        Origin::Egp => "egp",
        Origin::Incomplete => "incomplete",
    }
}
