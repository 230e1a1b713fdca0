//! The decision process (RFC 4271 9.1.2.2, RFC 4456 9): which of a prefix's paths is best, which forward beside it, and
//! what beat each of the others.
//!
//! Paths are eliminated from the whole set, step by lettered step. Comparing them in pairs would make the result depend
//! on the order of arrival, since MED compares only within a neighbour AS.

use std::cmp::Reverse;
use std::net::Ipv4Addr;

use smallvec::SmallVec;

use crate::rib::attributes::Attributes;
use crate::rib::next_hops::NextHops;
use crate::rib::path::{Path, Step, Verdict};
use crate::rib::sources::{Source, SourceId, Sources};
use crate::speaker::NextHopState;
use crate::types::{Asn, PeerType};
use crate::wire::attribute::{AsPath, Origin, PathAttributes, SegmentKind};
use crate::wire::community::well_known;

/// LOCAL_PREF of a route that has none (RFC 4271 leaves the number open; all implementations use this one).
pub(crate) const DEFAULT_LOCAL_PREF: u32 = 100;

/// How many paths may forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Multipath {
    /// At most so many, at least 1.
    pub(crate) max: usize,
    /// Different AS_PATHs of the same length are equal.
    pub(crate) relax: bool,
}

/// Everything that the numbers in a path stand for.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) attributes: &'a Attributes,
    pub(crate) next_hops: &'a NextHops,
    pub(crate) sources: &'a Sources,
    pub(crate) multipath: Multipath,
    pub(crate) local_as: Asn,
}

impl Facts<'_> {
    /// All attributes but ORIGINATOR_ID.
    fn set(&self, path: &Path) -> &PathAttributes {
        self.attributes.shared(path.attributes)
    }

    fn source(&self, path: &Path) -> &Source {
        self.sources.get(path.source).expect("a path's source outlives it")
    }

    /// Step f's key: the identifier of whoever brought the route into the AS.
    fn identifier(&self, path: &Path) -> Ipv4Addr {
        let originator = self.attributes.originator_id(path.attributes);
        originator.map_or_else(|| self.source(path).router_id, |id| id.addr())
    }

    /// Step e's key.
    pub(crate) fn metric(&self, path: &Path) -> u32 {
        match self.next_hops.state(path.next_hop) {
            Some(NextHopState::Reachable { metric, .. }) => metric,
            Some(NextHopState::Unreachable) | None => u32::MAX,
        }
    }

    /// The keys of the steps that leave exactly one path, for paths of peers.
    fn last_steps(&self, path: &Path) -> impl Ord + use<> {
        let address = self.source(path).address;
        let path_id = self.sources.path_id(path.source);
        (self.identifier(path), self.set(path).cluster_list.len(), address, path_id)
    }

    /// The eligible ones of paths that have been decided on: the best first, then in the order of the last steps.
    pub(crate) fn eligible<'p>(&self, paths: &'p [Path]) -> SmallVec<[&'p Path; 4]> {
        let eligible = |p: &&Path| matches!(p.verdict(), Verdict::Best | Verdict::Lost(_));
        let mut eligible: SmallVec<[&Path; 4]> = paths.iter().filter(eligible).collect();
        eligible.sort_by_cached_key(|p| {
            (!p.is_best(), (p.source != SourceId::LOCAL).then(|| self.last_steps(p)))
        });
        eligible
    }

    /// So many of the eligible ones: the best, then what would be best without it, and so on.
    pub(crate) fn best_of<'p>(&self, paths: &'p [Path], count: usize) -> SmallVec<[&'p Path; 4]> {
        let mut left = self.eligible(paths);
        let mut chosen = SmallVec::new();
        while chosen.len() < count && !left.is_empty() {
            let mut trial: SmallVec<[Path; 4]> = left.iter().map(|p| **p).collect();
            decide(&mut trial, *self);
            let best = left.iter().position(|p| p.source == trial[0].source).expect("one of them is best");
            chosen.push(left.remove(best));
        }
        chosen
    }

    fn excluded(&self, path: &Path) -> Option<Verdict> {
        if path.is_protected() {
            return Some(Verdict::Protected);
        }
        // What is discarded here needs no way to its next hop.
        if path.is_blackhole() {
            return None;
        }
        match self.next_hops.state(path.next_hop) {
            None => Some(Verdict::NextHopUnknown),
            Some(NextHopState::Unreachable) => Some(Verdict::NextHopUnreachable),
            Some(NextHopState::Reachable { .. }) => None,
        }
    }
}

/// LOCAL_PREF in effect.
pub(crate) fn local_pref(set: &PathAttributes) -> u32 {
    set.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)
}

/// 9.1.2.2 a: an AS_SET counts as one; confederation segments count nothing (RFC 5065 5.3).
pub(crate) fn as_path_length(path: &AsPath) -> usize {
    path.segments
        .iter()
        .map(|s| match s.kind {
            SegmentKind::Sequence => s.asns.len(),
            SegmentKind::Set => 1,
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
        })
        .sum()
}

/// The neighbour AS of step c: the first of the AS_PATH; our own for a route from within the AS.
pub(crate) fn neighbor_as(path: &AsPath, local_as: Asn) -> Asn {
    let first = path
        .segments
        .iter()
        .find(|s| !matches!(s.kind, SegmentKind::ConfedSequence | SegmentKind::ConfedSet));
    match first {
        Some(s) if s.kind == SegmentKind::Sequence => s.asns.first().copied().unwrap_or(local_as),
        _ => local_as,
    }
}

/// 9.1.2.2 b's order.
fn origin_rank(origin: Origin) -> u8 {
    origin as u8
}

/// Writes a verdict into every path; moves the best one to the front.
pub(crate) fn decide(paths: &mut [Path], facts: Facts<'_>) {
    let mut alive: SmallVec<[usize; 8]> = SmallVec::new();
    for (i, path) in paths.iter_mut().enumerate() {
        path.set_multipath(false);
        match facts.excluded(path) {
            Some(verdict) => path.set_verdict(verdict),
            None => {
                path.set_verdict(Verdict::Best);
                alive.push(i);
            }
        }
    }
    if alive.len() > 1 {
        eliminate(paths, &mut alive, facts);
    }
    if let Some(&best) = alive.first() {
        paths[best].set_multipath(true);
        paths.swap(0, best);
    }
}

fn eliminate(paths: &mut [Path], alive: &mut SmallVec<[usize; 8]>, facts: Facts<'_>) {
    keep_lowest(paths, alive, Step::Local, |p| p.source != SourceId::LOCAL);
    keep_lowest(paths, alive, Step::LongLivedStale, |p| {
        facts.set(p).communities.contains(&well_known::LLGR_STALE)
    });
    keep_lowest(paths, alive, Step::Preference, |p| Reverse(local_pref(facts.set(p))));
    keep_lowest(paths, alive, Step::AsPathLength, |p| as_path_length(&facts.set(p).as_path));
    keep_lowest(paths, alive, Step::Origin, |p| origin_rank(facts.set(p).origin));
    keep_lowest_med(paths, alive, facts);
    // Of this node there is one route to a prefix at most, so a local one is alone here.
    if alive.len() == 1 {
        return;
    }
    keep_lowest(paths, alive, Step::PeerType, |p| facts.source(p).peer_type == PeerType::Internal);
    keep_lowest(paths, alive, Step::InteriorCost, |p| facts.metric(p));

    let equal = alive.clone();
    keep_lowest(paths, alive, Step::Identifier, |p| facts.identifier(p));
    keep_lowest(paths, alive, Step::ClusterLength, |p| facts.set(p).cluster_list.len());
    keep_lowest(paths, alive, Step::PeerAddress, |p| facts.source(p).address);
    keep_lowest(paths, alive, Step::PathId, |p| facts.sources.path_id(p.source));
    mark_multipath(paths, equal, alive[0], facts);
}

fn keep_lowest<K: Ord>(
    paths: &mut [Path],
    alive: &mut SmallVec<[usize; 8]>,
    step: Step,
    key: impl Fn(&Path) -> K,
) {
    let Some(lowest) = alive.iter().map(|i| key(&paths[*i])).min() else {
        return;
    };
    alive.retain(|i| {
        let stays = key(&paths[*i]) == lowest;
        if !stays {
            paths[*i].set_verdict(Verdict::Lost(step));
        }
        stays
    });
}

/// Step c: a path goes if another one through the same neighbour AS has a lower MED. A missing MED is 0, the lowest.
fn keep_lowest_med(paths: &mut [Path], alive: &mut SmallVec<[usize; 8]>, facts: Facts<'_>) {
    let key = |path: &Path| {
        let set = facts.set(path);
        (neighbor_as(&set.as_path, facts.local_as), set.med.unwrap_or(0))
    };
    let keys: SmallVec<[(Asn, u32); 8]> = alive.iter().map(|i| key(&paths[*i])).collect();
    alive.retain(|i| {
        let (asn, med) = key(&paths[*i]);
        let beaten = keys.iter().any(|(other_as, other)| *other_as == asn && *other < med);
        if beaten {
            paths[*i].set_verdict(Verdict::Lost(Step::Med));
        }
        !beaten
    });
}

/// Paths equal to the best through step e forward with it; the surplus over the limit is dropped from the end of the order
/// of the remaining steps, so that the choice depends on nothing else.
fn mark_multipath(paths: &mut [Path], equal: SmallVec<[usize; 8]>, best: usize, facts: Facts<'_>) {
    if facts.multipath.max <= 1 {
        return;
    }
    let mut equal: SmallVec<[usize; 8]> = equal
        .into_iter()
        .filter(|i| paths[*i].is_blackhole() == paths[best].is_blackhole())
        .filter(|i| facts.multipath.relax || facts.set(&paths[*i]).as_path == facts.set(&paths[best]).as_path)
        .collect();
    equal.sort_by_key(|i| (*i != best, facts.last_steps(&paths[*i])));
    for i in equal.into_iter().take(facts.multipath.max) {
        paths[i].set_multipath(true);
    }
}
