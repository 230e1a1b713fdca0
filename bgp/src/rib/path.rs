//! A path in the table: 16 bytes, everything bulky behind numbers; and why it is not chosen.

use crate::filter::RuleRef;
use crate::rib::attributes::AttrId;
use crate::rib::next_hops::NextHopId;
use crate::rib::sources::SourceId;

/// A path to a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Path {
    pub(crate) source: SourceId,
    pub(crate) attributes: AttrId,
    pub(crate) next_hop: NextHopId,
    flags: u8,
    verdict: Verdict,
    accepted_by: AcceptedBy,
}

/// Which import rule let a path in, in two bytes: 4 bits of filter, 12 of rule. What does not fit is not remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AcceptedBy(u16);

impl AcceptedBy {
    /// No rule decided, the default let it in.
    pub(crate) const DEFAULT: AcceptedBy = AcceptedBy(u16::MAX);
    /// Not known (any more).
    pub(crate) const UNKNOWN: AcceptedBy = AcceptedBy(u16::MAX - 1);

    /// A rule, or the default for `None`.
    pub(crate) fn new(rule: Option<RuleRef>) -> Self {
        match rule {
            None => AcceptedBy::DEFAULT,
            Some(RuleRef { filter: filter @ 0..15, rule: rule @ 0..4096 }) => AcceptedBy(filter << 12 | rule),
            Some(_) => AcceptedBy::UNKNOWN,
        }
    }

    /// The rule, if one decided and is remembered.
    pub(crate) fn rule(self) -> Option<RuleRef> {
        let known = self != AcceptedBy::DEFAULT && self != AcceptedBy::UNKNOWN;
        known.then_some(RuleRef { filter: self.0 >> 12, rule: self.0 & 0xfff })
    }
}

/// What the decision process made of a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Verdict {
    /// Chosen.
    Best,
    /// A default import rule refuses it for what is configured now.
    Protected,
    /// The shell has not answered yet.
    NextHopUnknown,
    /// RFC 4271 9.1.2: an unresolvable next hop excludes the route.
    NextHopUnreachable,
    /// Lost at this step.
    Lost(Step),
}

/// The steps of the decision process, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Step {
    /// A route of this node's own is there.
    Local,
    /// Long-lived stale paths come last (RFC 9494 4.3).
    LongLivedStale,
    /// Degree of preference (RFC 4271 9.1.1): LOCAL_PREF.
    Preference,
    /// 9.1.2.2 a: AS_PATH length.
    AsPathLength,
    /// b: ORIGIN.
    Origin,
    /// c: MULTI_EXIT_DISC within a neighbour AS.
    Med,
    /// d: external before internal.
    PeerType,
    /// e: interior cost.
    InteriorCost,
    /// f: BGP identifier, or ORIGINATOR_ID (RFC 4456 9).
    Identifier,
    /// CLUSTER_LIST length (RFC 4456 9), between f and g.
    ClusterLength,
    /// g: peer address.
    PeerAddress,
    /// Path identifier, of several paths of one peer (RFC 7911).
    PathId,
}

impl Step {
    /// The letter of RFC 4271 9.1.2.2, or a word for what has none.
    pub(crate) fn letter(self) -> &'static str {
        match self {
            Step::Local => "local",
            Step::LongLivedStale => "llgr",
            Step::Preference => "preference",
            Step::AsPathLength => "a",
            Step::Origin => "b",
            Step::Med => "c",
            Step::PeerType => "d",
            Step::InteriorCost => "e",
            Step::Identifier => "f",
            Step::ClusterLength => "cluster",
            Step::PeerAddress => "g",
            Step::PathId => "path-id",
        }
    }
}

const MULTIPATH: u8 = 1;
const STALE: u8 = 2;
const PROTECTED: u8 = 4;
const EXPLICIT: u8 = 8;
const BLACKHOLE: u8 = 16;

impl Path {
    /// A fresh path that nothing has been decided about. Where a filter rule accepted it the defaults have no say.
    pub(crate) fn new(
        source: SourceId,
        attributes: AttrId,
        next_hop: NextHopId,
        rule: Option<RuleRef>,
    ) -> Self {
        let flags = if rule.is_some() || source == SourceId::LOCAL { EXPLICIT } else { 0 };
        let accepted_by = AcceptedBy::new(rule);
        Path { source, attributes, next_hop, flags, verdict: Verdict::NextHopUnknown, accepted_by }
    }

    pub(crate) fn accepted_by(&self) -> AcceptedBy {
        self.accepted_by
    }

    pub(crate) fn set_accepted_by(&mut self, by: AcceptedBy) {
        self.accepted_by = by;
    }

    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
    }

    pub(crate) fn set_verdict(&mut self, verdict: Verdict) {
        self.verdict = verdict;
    }

    pub(crate) fn is_best(&self) -> bool {
        self.verdict == Verdict::Best
    }

    /// Forwards beside others, best included.
    pub(crate) fn is_multipath(&self) -> bool {
        self.flags & MULTIPATH != 0
    }

    pub(crate) fn set_multipath(&mut self, on: bool) {
        self.set_flag(MULTIPATH, on);
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.flags & STALE != 0
    }

    pub(crate) fn set_stale(&mut self, on: bool) {
        self.set_flag(STALE, on);
    }

    pub(crate) fn is_protected(&self) -> bool {
        self.flags & PROTECTED != 0
    }

    pub(crate) fn set_protected(&mut self, on: bool) {
        self.set_flag(PROTECTED, on);
    }

    pub(crate) fn is_explicit(&self) -> bool {
        self.flags & EXPLICIT != 0
    }

    /// Traffic to the prefix is to be discarded here (RFC 7999).
    pub(crate) fn is_blackhole(&self) -> bool {
        self.flags & BLACKHOLE != 0
    }

    pub(crate) fn set_blackhole(&mut self, on: bool) {
        self.set_flag(BLACKHOLE, on);
    }

    fn set_flag(&mut self, flag: u8, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_takes_16_bytes() {
        assert_eq!(size_of::<Path>(), 16);
    }

    #[test]
    fn the_accepting_rule_is_remembered_where_it_fits() {
        for (filter, rule) in [(0, 0), (14, 4095), (3, 7)] {
            let by = RuleRef { filter, rule };
            assert_eq!(AcceptedBy::new(Some(by)).rule(), Some(by));
        }
        for (filter, rule) in [(15, 0), (0, 4096)] {
            assert_eq!(AcceptedBy::new(Some(RuleRef { filter, rule })), AcceptedBy::UNKNOWN);
        }
        assert_eq!(AcceptedBy::new(None).rule(), None);
    }
}
