//! Import and export policy: ordered rules that match a route, decide, and set attributes. Knows attributes and
//! prefixes; nothing of sessions or of the table. The protective defaults that apply when no rule decides are in
//! [`defaults`].
//!
//! ```text
//! route -> filter 1: rule, rule, ... -> filter 2: ... -> default of the direction
//!                first match decides
//! ```

use std::cell::OnceCell;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::{Asn, Family, Prefix};
use crate::wire::attribute::{AsPath, LargeCommunity, NextHop, PathAttributes, Segment, SegmentKind};

pub mod defaults;

/// A named list of rules for each family.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Filter {
    /// Name, as an operator refers to it.
    pub name: String,
    /// Rules for IPv4 prefixes, in order.
    pub ipv4: Vec<Rule>,
    /// Rules for IPv6 prefixes, in order.
    pub ipv6: Vec<Rule>,
}

impl Filter {
    /// The rules of a family.
    pub fn rules(&self, family: Family) -> &[Rule] {
        match family {
            Family::Ipv4Unicast => &self.ipv4,
            Family::Ipv6Unicast => &self.ipv6,
        }
    }

    /// A filter that accepts everything of both families: what a transit router would write.
    pub fn accept_all(name: impl Into<String>) -> Self {
        let rule = || vec![Rule::new("all", Match::default(), Action::Accept, Set::default())];
        Filter { name: name.into(), ipv4: rule(), ipv6: rule() }
    }
}

/// One rule: all given conditions must hold (an absent one always holds); then it decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Name for people; rules without one are called "#n", counted from 1.
    pub name: Option<String>,
    /// Conditions.
    pub matches: Match,
    /// The decision.
    pub action: Action,
    /// Changes to an accepted route.
    pub set: Set,
    hits: Counter,
}

impl Rule {
    /// A named rule.
    pub fn new(name: impl Into<String>, matches: Match, action: Action, set: Set) -> Self {
        Rule { name: Some(name.into()), matches, action, set, hits: Counter::default() }
    }

    /// A rule without a name.
    pub fn unnamed(matches: Match, action: Action, set: Set) -> Self {
        Rule { name: None, matches, action, set, hits: Counter::default() }
    }

    /// It has decided about so many more routes.
    pub(crate) fn count(&self, routes: u64) {
        self.hits.0.fetch_add(routes, Ordering::Relaxed);
    }

    /// How many routes it has decided.
    pub fn hits(&self) -> u64 {
        self.hits.0.load(Ordering::Relaxed)
    }
}

/// Accept or reject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The route goes on, with the rule's changes.
    Accept,
    /// The route ends here.
    Reject,
}

/// Conditions of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Match {
    /// The prefix lies in this range.
    pub prefix: Option<PrefixRange>,
    /// All of these communities are present.
    pub communities: Vec<u32>,
    /// All of these large communities are present.
    pub large_communities: Vec<LargeCommunity>,
    /// All of these extended communities are present.
    pub extended_communities: Vec<u64>,
    /// The AS_PATH, written as numbers with blanks between, matches.
    pub as_path: Option<AsPathRegex>,
    /// The next hop lies in this prefix.
    pub next_hop: Option<Prefix>,
    /// The peer that the route comes from (import) or goes to (export).
    pub neighbor: Option<Neighbor>,
}

/// A peer by name or by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Neighbor {
    /// The configured name.
    Name(String),
    /// Its address lies in this prefix.
    Address(Prefix),
}

/// A prefix list entry: within `prefix`, with a length between `ge` and `le`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixRange {
    prefix: Prefix,
    ge: u8,
    le: u8,
}

impl PrefixRange {
    /// As prefix lists have it: neither bound means exactly this prefix; `ge` alone reaches up to host routes; `le`
    /// alone starts at the prefix's own length. `None` unless length <= ge <= le <= 32 or 128.
    pub fn new(prefix: Prefix, ge: Option<u8>, le: Option<u8>) -> Option<Self> {
        let max = prefix.family().max_len();
        let (ge, le) = match (ge, le) {
            (None, None) => (prefix.len(), prefix.len()),
            (Some(ge), None) => (ge, max),
            (None, Some(le)) => (prefix.len(), le),
            (Some(ge), Some(le)) => (ge, le),
        };
        (prefix.len() <= ge && ge <= le && le <= max).then_some(PrefixRange { prefix, ge, le })
    }

    /// Whether a prefix is in the range.
    pub fn contains(&self, prefix: Prefix) -> bool {
        (self.ge..=self.le).contains(&prefix.len()) && self.prefix.contains(prefix)
    }
}

/// A regular expression over the AS_PATH as text: "65001 65002 {65003,65004}".
///
/// `_` stands for a boundary (start, end, blank, comma, brace), as on routers: `_65002_` finds an AS anywhere.
#[derive(Clone, Debug)]
pub struct AsPathRegex {
    source: String,
    regex: regex::Regex,
}

impl AsPathRegex {
    /// Compiles the expression.
    ///
    /// # Errors
    /// The expression is not one that the regex engine understands, or would need too much memory.
    pub fn new(source: &str) -> Result<Self, Box<regex::Error>> {
        let regex = regex::RegexBuilder::new(&source.replace('_', "(?:^|$|[ ,{}()])"))
            .size_limit(1 << 20)
            .build()
            .map_err(Box::new)?;
        Ok(AsPathRegex { source: source.to_owned(), regex })
    }

    /// Whether the path matches.
    pub fn is_match(&self, path: &AsPath) -> bool {
        self.regex.is_match(&as_path_text(path))
    }
}

impl PartialEq for AsPathRegex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for AsPathRegex {}

/// Changes that an accepting rule makes. Order: set, remove, add.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Set {
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// Repeat an AS so many times at the front of AS_PATH: ours on export, the neighbour's on import.
    pub prepend: u8,
    /// Next hop.
    pub next_hop: Option<IpAddr>,
    /// Replace all standard communities.
    pub set_communities: Option<Vec<u32>>,
    /// Remove these standard communities.
    pub remove_communities: Vec<u32>,
    /// Add these standard communities.
    pub add_communities: Vec<u32>,
    /// Replace all large communities.
    pub set_large_communities: Option<Vec<LargeCommunity>>,
    /// Remove these large communities.
    pub remove_large_communities: Vec<LargeCommunity>,
    /// Add these large communities.
    pub add_large_communities: Vec<LargeCommunity>,
    /// Replace all extended communities.
    pub set_extended_communities: Option<Vec<u64>>,
    /// Remove these extended communities.
    pub remove_extended_communities: Vec<u64>,
    /// Add these extended communities.
    pub add_extended_communities: Vec<u64>,
}

impl Set {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Set::default()
    }

    /// Applies all changes but the next hop's, which lives beside the attributes.
    pub fn apply(&self, attributes: &mut PathAttributes, prepend_as: Asn) {
        if let Some(v) = self.local_pref {
            attributes.local_pref = Some(v);
        }
        if let Some(v) = self.med {
            attributes.med = Some(v);
        }
        for _ in 0..self.prepend {
            prepend(&mut attributes.as_path, prepend_as);
        }
        if let Some(all) = &self.set_communities {
            attributes.communities = all.iter().copied().collect();
        }
        attributes.communities.retain(|c| !self.remove_communities.contains(c));
        attributes.communities.extend_from_slice(&self.add_communities);
        attributes.communities.sort_unstable();
        attributes.communities.dedup();
        if let Some(all) = &self.set_large_communities {
            attributes.large_communities.clone_from(all);
        }
        attributes.large_communities.retain(|c| !self.remove_large_communities.contains(c));
        attributes.large_communities.extend_from_slice(&self.add_large_communities);
        attributes.large_communities.sort_unstable();
        attributes.large_communities.dedup();
        if let Some(all) = &self.set_extended_communities {
            attributes.extended_communities.clone_from(all);
        }
        attributes.extended_communities.retain(|c| !self.remove_extended_communities.contains(c));
        attributes.extended_communities.extend_from_slice(&self.add_extended_communities);
        attributes.extended_communities.sort_unstable();
        attributes.extended_communities.dedup();
    }
}

/// Puts an AS in front of the path (RFC 4271 5.1.2 b): into the leading sequence, or a new one where there is none or
/// where it is full.
pub fn prepend(path: &mut AsPath, asn: Asn) {
    match path.segments.first_mut() {
        Some(first) if first.kind == SegmentKind::Sequence && first.asns.len() < 255 => {
            first.asns.insert(0, asn);
        }
        _ => path
            .segments
            .insert(0, Segment { kind: SegmentKind::Sequence, asns: std::iter::once(asn).collect() }),
    }
}

/// The path as text: sequences blank-separated, sets in braces, confederation sequences in parentheses.
pub fn as_path_text(path: &AsPath) -> String {
    let mut text = String::new();
    for segment in &path.segments {
        let (open, separator, close) = match segment.kind {
            SegmentKind::Sequence => ("", ' ', ""),
            SegmentKind::Set => ("{", ',', "}"),
            SegmentKind::ConfedSequence => ("(", ' ', ")"),
            SegmentKind::ConfedSet => ("({", ',', "})"),
        };
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(open);
        for (i, asn) in segment.asns.iter().enumerate() {
            if i > 0 {
                text.push(separator);
            }
            write!(text, "{asn}").expect("writing to a String cannot fail");
        }
        text.push_str(close);
    }
    text
}

/// The attributes of a route under judgement and who it is exchanged with; shared by all NLRI of an UPDATE.
pub struct Candidate<'a> {
    attributes: &'a PathAttributes,
    next_hop: Option<NextHop>,
    neighbor_name: &'a str,
    neighbor_address: IpAddr,
    as_path: OnceCell<String>,
}

impl<'a> Candidate<'a> {
    /// `next_hop` is `None` for a route of our own, which has none yet and matches no next-hop condition.
    pub fn new(
        attributes: &'a PathAttributes,
        next_hop: Option<NextHop>,
        neighbor_name: &'a str,
        neighbor_address: IpAddr,
    ) -> Self {
        Candidate { attributes, next_hop, neighbor_name, neighbor_address, as_path: OnceCell::new() }
    }

    fn satisfies(&self, prefix: Prefix, m: &Match) -> bool {
        m.prefix.is_none_or(|range| range.contains(prefix))
            && m.communities.iter().all(|c| self.attributes.communities.contains(c))
            && m.large_communities.iter().all(|c| self.attributes.large_communities.contains(c))
            && m.extended_communities.iter().all(|c| self.attributes.extended_communities.contains(c))
            && m.next_hop.is_none_or(|within| self.next_hop.is_some_and(|nh| within.contains_addr(nh.addr())))
            && match &m.neighbor {
                None => true,
                Some(Neighbor::Name(name)) => name == self.neighbor_name,
                Some(Neighbor::Address(within)) => within.contains_addr(self.neighbor_address),
            }
            && m.as_path.as_ref().is_none_or(|re| {
                re.regex.is_match(self.as_path.get_or_init(|| as_path_text(&self.attributes.as_path)))
            })
    }
}

/// Which rule decided: an index into the filter list and one into the filter's rules of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    /// Index of the filter.
    pub filter: u16,
    /// Index of the rule.
    pub rule: u16,
}

impl RuleRef {
    /// The rule itself, from the list that it was found in.
    pub fn get(self, filters: &[Arc<Filter>], family: Family) -> &Rule {
        &filters[usize::from(self.filter)].rules(family)[usize::from(self.rule)]
    }

    /// "filter: rule", for people.
    pub fn describe(self, filters: &[Arc<Filter>], family: Family) -> String {
        let filter = &filters[usize::from(self.filter)];
        match &filter.rules(family)[usize::from(self.rule)].name {
            Some(name) => format!("filter {}: {name}", filter.name),
            None => format!("filter {}: #{}", filter.name, self.rule + 1),
        }
    }
}

/// The first rule that matches, counted; `None` leaves the decision to the default of the direction.
pub fn decide(filters: &[Arc<Filter>], prefix: Prefix, candidate: &Candidate<'_>) -> Option<RuleRef> {
    let found = preview(filters, prefix, candidate)?;
    found.get(filters, prefix.family()).count(1);
    Some(found)
}

/// As [`decide`], without counting: for questions about what would happen.
pub fn preview(filters: &[Arc<Filter>], prefix: Prefix, candidate: &Candidate<'_>) -> Option<RuleRef> {
    for (f, filter) in filters.iter().enumerate() {
        for (r, rule) in filter.rules(prefix.family()).iter().enumerate() {
            if candidate.satisfies(prefix, &rule.matches) {
                return Some(RuleRef { filter: f as u16, rule: r as u16 });
            }
        }
    }
    None
}

/// A hit counter that does not take part in comparisons: two rules are equal when they decide equally.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Clone for Counter {
    fn clone(&self) -> Self {
        Counter(AtomicU64::new(self.0.load(Ordering::Relaxed)))
    }
}

impl PartialEq for Counter {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Counter {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::attribute::Origin;

    fn attributes(path: &[u32]) -> PathAttributes {
        let mut as_path = AsPath::default();
        for asn in path.iter().rev() {
            prepend(&mut as_path, Asn(*asn));
        }
        PathAttributes {
            origin: Origin::Igp,
            as_path,
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: Default::default(),
            extended_communities: Vec::new(),
            large_communities: Vec::new(),
            originator_id: None,
            cluster_list: Vec::new(),
            unknown: Vec::new(),
        }
    }

    fn p(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    fn range(s: &str, ge: Option<u8>, le: Option<u8>) -> Option<PrefixRange> {
        PrefixRange::new(p(s), ge, le)
    }

    fn rule(matches: Match, action: Action) -> Rule {
        Rule::unnamed(matches, action, Set::default())
    }

    #[test]
    fn a_prefix_range_without_bounds_is_exact() {
        let exact = range("10.0.0.0/8", None, None).unwrap();
        assert!(exact.contains(p("10.0.0.0/8")));
        assert!(!exact.contains(p("10.0.0.0/9")));
        let up_to = range("10.0.0.0/8", None, Some(16)).unwrap();
        assert!(up_to.contains(p("10.0.0.0/8")) && up_to.contains(p("10.3.0.0/16")));
        assert!(!up_to.contains(p("10.3.1.0/24")));
        let from = range("10.0.0.0/8", Some(24), None).unwrap();
        assert!(from.contains(p("10.3.1.1/32")) && !from.contains(p("10.3.0.0/16")));
        assert!(!from.contains(p("11.3.1.1/32")));
    }

    #[test]
    fn a_prefix_range_that_cannot_match_is_refused_at_the_door() {
        assert!(range("10.0.0.0/16", Some(8), None).is_none());
        assert!(range("10.0.0.0/16", Some(28), Some(24)).is_none());
        assert!(range("10.0.0.0/16", None, Some(33)).is_none());
    }

    #[test]
    fn first_match_decides_and_is_counted_once() {
        let filter = Arc::new(Filter {
            name: "racks".into(),
            ipv4: vec![
                rule(
                    Match { prefix: range("10.200.0.0/16", Some(24), Some(28)), ..Match::default() },
                    Action::Accept,
                ),
                rule(Match::default(), Action::Reject),
            ],
            ipv6: Vec::new(),
        });
        let filters = [filter];
        let attributes = attributes(&[65001]);
        let candidate = Candidate::new(&attributes, None, "tor", "10.0.0.1".parse().unwrap());
        let hit = decide(&filters, p("10.200.4.0/26"), &candidate).unwrap();
        assert_eq!((hit.filter, hit.rule), (0, 0));
        let miss = decide(&filters, p("10.201.4.0/26"), &candidate).unwrap();
        assert_eq!(miss.get(&filters, Family::Ipv4Unicast).action, Action::Reject);
        assert_eq!(miss.describe(&filters, Family::Ipv4Unicast), "filter racks: #2");
        assert_eq!(preview(&filters, p("10.200.4.0/26"), &candidate), Some(hit));
        assert_eq!(filters[0].ipv4.iter().map(Rule::hits).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(decide(&filters, p("fd00::/64"), &candidate), None);
    }

    #[test]
    fn as_path_expressions_see_boundaries_as_routers_do() {
        let path = attributes(&[65001, 165002, 65003]).as_path;
        let matches = |re: &str| AsPathRegex::new(re).unwrap().is_match(&path);
        assert!(matches("^65001_"));
        assert!(matches("_165002_"));
        assert!(!matches("_65002_"));
        assert!(matches("_65003$"));
        assert!(!matches("^$"));
        assert!(AsPathRegex::new("^$").unwrap().is_match(&AsPath::default()));
        assert!(AsPathRegex::new("(").is_err());
    }

    #[test]
    fn sets_are_written_in_braces() {
        let mut path = attributes(&[1]).as_path;
        path.segments.push(Segment { kind: SegmentKind::Set, asns: [Asn(2), Asn(3)].into_iter().collect() });
        assert_eq!(as_path_text(&path), "1 {2,3}");
    }

    #[test]
    fn a_full_segment_is_not_overfilled_by_prepending() {
        let mut path = AsPath::default();
        for _ in 0..256 {
            prepend(&mut path, Asn(7));
        }
        assert_eq!(path.segments.iter().map(|s| s.asns.len()).collect::<Vec<_>>(), [1, 255]);
    }

    #[test]
    fn changes_are_applied_in_order_and_communities_stay_sorted() {
        let mut a = attributes(&[65001]);
        a.communities = [1, 5].into_iter().collect();
        let set = Set {
            local_pref: Some(200),
            med: Some(7),
            prepend: 2,
            set_communities: Some(vec![9, 3]),
            remove_communities: vec![9],
            add_communities: vec![2, 3],
            ..Set::default()
        };
        set.apply(&mut a, Asn(64512));
        let extended = Set {
            set_extended_communities: Some(vec![9, 3]),
            remove_extended_communities: vec![9],
            add_extended_communities: vec![2, 3],
            ..Set::default()
        };
        extended.apply(&mut a, Asn(64512));
        assert_eq!(a.extended_communities, [2, 3]);
        assert_eq!(a.communities.as_slice(), [2, 3]);
        assert_eq!((a.local_pref, a.med), (Some(200), Some(7)));
        assert_eq!(as_path_text(&a.as_path), "64512 64512 65001");
        assert!(!set.is_empty() && Set::default().is_empty());
    }

    #[test]
    fn conditions_are_all_needed() {
        let mut a = attributes(&[65001]);
        a.communities = [7, 8].into_iter().collect();
        a.large_communities = vec![LargeCommunity { global: 1, local1: 2, local2: 3 }];
        a.extended_communities = vec![5, 6];
        let nh = Some(NextHop::V4("10.0.0.9".parse().unwrap()));
        let c = Candidate::new(&a, nh, "tor", "10.0.0.1".parse().unwrap());
        let yes = Match {
            communities: vec![7, 8],
            large_communities: a.large_communities.clone(),
            extended_communities: vec![6],
            next_hop: Some(p("10.0.0.0/24")),
            neighbor: Some(Neighbor::Address(p("10.0.0.1/32"))),
            as_path: Some(AsPathRegex::new("65001").unwrap()),
            ..Match::default()
        };
        assert!(c.satisfies(p("10.1.0.0/16"), &yes));
        for no in [
            Match { communities: vec![7, 9], ..yes.clone() },
            Match { extended_communities: vec![7], ..yes.clone() },
            Match { next_hop: Some(p("10.0.1.0/24")), ..yes.clone() },
            Match { neighbor: Some(Neighbor::Name("other".into())), ..yes.clone() },
            Match { prefix: range("10.1.0.0/17", None, None), ..yes },
        ] {
            assert!(!c.satisfies(p("10.1.0.0/16"), &no));
        }
    }

    #[test]
    fn equality_ignores_counters() {
        let filters = [Arc::new(Filter::accept_all("a"))];
        let a = attributes(&[]);
        decide(&filters, p("10.0.0.0/8"), &Candidate::new(&a, None, "x", "::1".parse().unwrap()));
        assert_eq!(*filters[0], Filter::accept_all("a"));
    }
}
