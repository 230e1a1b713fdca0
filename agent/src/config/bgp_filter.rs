//! BGPFilter: ordered rules for routes, turned into the speaker's own filter.

use manx_bgp::filter::{Action, AsPathRegex, Filter, Match, Neighbor, PrefixRange, Rule, Set};
use manx_bgp::types::{Family, Prefix};
use manx_bgp::wire::attribute::LargeCommunity;
use manx_bgp::wire::community::{parse_extended, parse_large, parse_standard};
use schemars::JsonSchema;
use serde::Deserialize;

use super::issue::{Issue, Issues};
use super::values::{self, Scalar};

/// The fields as written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BgpFilterSpec {
    /// Rules for IPv4 routes; the first that matches decides.
    ipv4: Option<Vec<RuleSpec>>,
    /// Rules for IPv6 routes; the first that matches decides.
    ipv6: Option<Vec<RuleSpec>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuleSpec {
    /// How the rule is called in answers and metrics.
    #[serde(default)]
    name: Option<String>,
    /// Matches prefixes within this one.
    #[serde(default)]
    cidr: Option<String>,
    /// ...of this length at least.
    #[serde(default)]
    ge: Option<i64>,
    /// ...of this length at most.
    #[serde(default)]
    le: Option<i64>,
    /// Matches routes with all of these communities, such as 65001:7 or no-export.
    #[serde(default)]
    communities: Option<Vec<Scalar>>,
    /// Matches routes with all of these large communities, such as 65001:1:2.
    #[serde(default)]
    large_communities: Option<Vec<Scalar>>,
    /// Matches routes with all of these extended communities, such as rt:65001:7.
    #[serde(default)]
    extended_communities: Option<Vec<Scalar>>,
    /// Matches routes whose AS_PATH matches; `_` is a border between two AS numbers.
    #[serde(default)]
    as_path_regex: Option<String>,
    /// Matches routes whose next hop is this address, or within this prefix.
    #[serde(default)]
    next_hop: Option<String>,
    /// Matches routes of this neighbour: an address, a prefix or the name of a BGPPeer.
    #[serde(default)]
    neighbor: Option<String>,
    /// Accept or Reject.
    action: String,
    /// What to change of accepted routes.
    #[serde(default)]
    set: Option<SetSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SetSpec {
    /// LOCAL_PREF.
    local_pref: Option<i64>,
    /// MULTI_EXIT_DISC.
    med: Option<i64>,
    /// Prepend our AS so many times.
    prepend: Option<i64>,
    /// NEXT_HOP, of the rule's family.
    next_hop: Option<String>,
    /// Communities to add, of all kinds.
    add_communities: Option<Vec<Scalar>>,
    /// Communities to remove, of all kinds.
    remove_communities: Option<Vec<Scalar>>,
    /// Communities that replace those that are there; an empty list clears the standard ones.
    set_communities: Option<Vec<Scalar>>,
}

/// The validated object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpFilter {
    /// `metadata.name`.
    pub name: String,
    /// The rules, as the speaker applies them.
    pub filter: Filter,
}

impl BgpFilter {
    /// Validates.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn validate(name: &str, spec: &BgpFilterSpec) -> Result<Self, Vec<Issue>> {
        let mut issues = Issues::default();
        let name = issues.take("metadata.name", values::name(name)).unwrap_or_default();
        let mut rules = |family: Family, list: &Option<Vec<RuleSpec>>| -> Vec<Rule> {
            let list = list.as_deref().unwrap_or_default();
            list.iter()
                .enumerate()
                .map(|(i, raw)| rule(raw, family, &format!("spec.{family}[{i}]"), &mut issues))
                .collect()
        };
        let ipv4 = rules(Family::Ipv4Unicast, &spec.ipv4);
        let ipv6 = rules(Family::Ipv6Unicast, &spec.ipv6);
        issues.finish(BgpFilter { name: name.clone(), filter: Filter { name, ipv4, ipv6 } })
    }
}

fn rule(raw: &RuleSpec, family: Family, path: &str, issues: &mut Issues) -> Rule {
    let at = |field: &str| format!("{path}.{field}");
    let matches = Match {
        prefix: prefix_range(raw, family, path, issues),
        communities: list(&at("communities"), raw.communities.as_ref(), community, issues),
        large_communities: list(&at("largeCommunities"), raw.large_communities.as_ref(), large, issues),
        extended_communities: list(
            &at("extendedCommunities"),
            raw.extended_communities.as_ref(),
            extended,
            issues,
        ),
        as_path: raw.as_path_regex.as_deref().and_then(|re| {
            issues
                .take(at("asPathRegex"), AsPathRegex::new(re).map_err(|e| format!("{re}: {}", last_line(&e))))
        }),
        next_hop: raw.next_hop.as_deref().and_then(|text| issues.take(at("nextHop"), host_or_prefix(text))),
        neighbor: raw.neighbor.as_deref().and_then(|text| issues.take(at("neighbor"), neighbor(text))),
    };
    let action = match raw.action.as_str() {
        "Accept" => Action::Accept,
        "Reject" => Action::Reject,
        other => {
            issues.add(at("action"), format!("{other}: must be Accept or Reject"));
            Action::Reject
        }
    };
    let set = raw.set.as_ref().map(|s| changes(s, family, &at("set"), issues)).unwrap_or_default();
    if action == Action::Reject && !set.is_empty() {
        issues.add(at("set"), "a rejected route is not changed; leave it out, or accept");
    }
    match raw.name.as_deref().and_then(|n| issues.take(at("name"), values::name(n))) {
        Some(name) => Rule::new(name, matches, action, set),
        None => Rule::unnamed(matches, action, set),
    }
}

fn prefix_range(raw: &RuleSpec, family: Family, path: &str, issues: &mut Issues) -> Option<PrefixRange> {
    let Some(cidr) = &raw.cidr else {
        if raw.ge.is_some() || raw.le.is_some() {
            issues.add(path, "ge and le bound the lengths within cidr, which is not there");
        }
        return None;
    };
    let prefix = issues.take(format!("{path}.cidr"), values::prefix(cidr))?;
    if prefix.family() != family {
        issues.add(
            format!("{path}.cidr"),
            format!("{prefix}: not an {family} prefix; it belongs in the other list"),
        );
        return None;
    }
    let max = family.max_len();
    let mut bound = |field: &str, n: Option<i64>| {
        n.and_then(|n| issues.take(format!("{path}.{field}"), values::number_within(n, 0, i64::from(max))))
            .map(|n| n as u8)
    };
    let (ge, le) = (bound("ge", raw.ge), bound("le", raw.le));
    let range = PrefixRange::new(prefix, ge, le);
    if range.is_none() {
        let show = |n: Option<u8>| n.map_or("-".to_owned(), |n| n.to_string());
        let reason = format!(
            "{prefix} with ge {} and le {}: no prefix fits; {} <= ge <= le <= {max} must hold",
            show(ge),
            show(le),
            prefix.len()
        );
        issues.add(format!("{path}.cidr"), reason);
    }
    range
}

fn changes(raw: &SetSpec, family: Family, path: &str, issues: &mut Issues) -> Set {
    let at = |field: &str| format!("{path}.{field}");
    let mut number = |field: &str, n: Option<i64>, most: i64| {
        n.and_then(|n| issues.take(at(field), values::number_within(n, 0, most)))
    };
    let local_pref = number("localPref", raw.local_pref, i64::from(u32::MAX)).map(|n| n as u32);
    let med = number("med", raw.med, i64::from(u32::MAX)).map(|n| n as u32);
    let prepend = number("prepend", raw.prepend, 32).map_or(0, |n| n as u8);
    let next_hop = raw.next_hop.as_deref().and_then(|text| issues.take(at("nextHop"), values::address(text)));
    if let Some(ip) = next_hop
        && ip.is_ipv4() != (family == Family::Ipv4Unicast)
    {
        issues.add(at("nextHop"), format!("{ip}: not of the rule's family"));
    }
    let mut set = Set { local_pref, med, prepend, next_hop, ..Set::default() };
    let add = by_kind(&at("addCommunities"), raw.add_communities.as_ref(), issues);
    set.add_communities = add.standard;
    set.add_large_communities = add.large;
    set.add_extended_communities = add.extended;
    let remove = by_kind(&at("removeCommunities"), raw.remove_communities.as_ref(), issues);
    set.remove_communities = remove.standard;
    set.remove_large_communities = remove.large;
    set.remove_extended_communities = remove.extended;
    if raw.set_communities.is_some() {
        let all = by_kind(&at("setCommunities"), raw.set_communities.as_ref(), issues);
        set.set_communities = Some(all.standard);
        // An empty list clears the standard ones; the other kinds are replaced only by a list that names some.
        set.set_large_communities = (!all.large.is_empty()).then_some(all.large);
        set.set_extended_communities = (!all.extended.is_empty()).then_some(all.extended);
    }
    set
}

/// A list in which communities of all kinds may stand.
#[derive(Default)]
struct Communities {
    standard: Vec<u32>,
    large: Vec<LargeCommunity>,
    extended: Vec<u64>,
}

fn by_kind(path: &str, raw: Option<&Vec<Scalar>>, issues: &mut Issues) -> Communities {
    let mut sorted = Communities::default();
    for community in list(path, raw, either, issues) {
        match community {
            Community::Standard(c) => sorted.standard.push(c),
            Community::Large(c) => sorted.large.push(c),
            Community::Extended(c) => sorted.extended.push(c),
        }
    }
    sorted
}

fn list<T>(
    path: &str,
    raw: Option<&Vec<Scalar>>,
    parse: impl Fn(&str) -> Result<T, String>,
    issues: &mut Issues,
) -> Vec<T> {
    issues.each(path, raw.map(Vec::as_slice).unwrap_or_default(), |text| parse(&text.0))
}

enum Community {
    Standard(u32),
    Large(LargeCommunity),
    Extended(u64),
}

fn either(text: &str) -> Result<Community, String> {
    if let Some(c) = parse_extended(text) {
        return Ok(Community::Extended(c));
    }
    if text.matches(':').count() == 2 {
        return large(text).map(Community::Large);
    }
    community(text).map(Community::Standard)
}

/// A standard community: two numbers of 16 bits, or the name of a well-known one.
fn community(text: &str) -> Result<u32, String> {
    parse_standard(text).ok_or_else(|| {
        format!("{text}: must be a community such as 65001:7 (each half up to 65535), a large one such as 65001:1:2, an extended one such as rt:65001:7, or a well-known name such as no-export")
    })
}

fn large(text: &str) -> Result<LargeCommunity, String> {
    parse_large(text)
        .ok_or_else(|| format!("{text}: must be a large community, three numbers such as 65001:1:2"))
}

fn extended(text: &str) -> Result<u64, String> {
    parse_extended(text).ok_or_else(|| {
        format!(
            "{text}: must be an extended community such as rt:65001:7, soo:10.0.0.1:7 or 0x0002fde900000007"
        )
    })
}

fn host_or_prefix(text: &str) -> Result<Prefix, String> {
    if text.contains('/') {
        return values::prefix(text);
    }
    let ip = values::address(text)?;
    Ok(Prefix::new(ip, if ip.is_ipv4() { 32 } else { 128 }).expect("a full length is legal"))
}

/// A peer by address or range, else by name.
fn neighbor(text: &str) -> Result<Neighbor, String> {
    match host_or_prefix(text) {
        Ok(prefix) => Ok(Neighbor::Address(prefix)),
        Err(e) if text.contains('/') => Err(e),
        Err(_) => values::name(text).map(Neighbor::Name),
    }
}

/// A regex error draws the expression over several lines; the last one says what is wrong.
fn last_line(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn validate(spec: Value) -> Result<BgpFilter, Vec<Issue>> {
        BgpFilter::validate("racks", &serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn the_example_of_the_interface_is_understood() {
        let filter = validate(json!({"ipv4": [
            {"name": "only-pods", "cidr": "10.200.0.0/16", "ge": 24, "le": 28, "action": "Accept",
             "set": {"localPref": 200, "addCommunities": ["65001:7"]}},
            {"name": "rest", "action": "Reject"}
        ], "ipv6": []}))
        .unwrap()
        .filter;
        assert_eq!(filter.name, "racks");
        let first = &filter.ipv4[0];
        assert!(first.matches.prefix.unwrap().contains("10.200.4.0/26".parse().unwrap()));
        assert!(!first.matches.prefix.unwrap().contains("10.200.0.0/16".parse().unwrap()));
        assert_eq!(first.set.local_pref, Some(200));
        assert_eq!(first.set.add_communities, [65001 << 16 | 7]);
        assert_eq!(filter.ipv4[1].action, Action::Reject);
        assert_eq!(filter.ipv4[1].matches, Match::default());
    }

    #[test]
    fn every_condition_and_every_change_is_read() {
        let filter = validate(json!({"ipv6": [{
            "cidr": "fd00::/8", "le": 64, "communities": ["65001:7", "no-export"], "largeCommunities": ["1:2:3"],
            "extendedCommunities": ["rt:65001:7"],
            "asPathRegex": "^65001_", "nextHop": "fd00:1::/64", "neighbor": "fd00:1::1", "action": "Accept",
            "set": {"localPref": 1, "med": 2, "prepend": 3, "nextHop": "fd00::1", "addCommunities": ["1:2:3", "1:2", "soo:1:2"],
                    "removeCommunities": ["blackhole"], "setCommunities": []}
        }]}))
        .unwrap()
        .filter;
        let rule = &filter.ipv6[0];
        assert_eq!(rule.matches.communities, [65001 << 16 | 7, 0xffff_ff01]);
        assert_eq!(rule.matches.large_communities, [LargeCommunity { global: 1, local1: 2, local2: 3 }]);
        assert_eq!(rule.matches.neighbor, Some(Neighbor::Address("fd00:1::1/128".parse().unwrap())));
        assert_eq!(rule.set.prepend, 3);
        assert_eq!(rule.set.add_communities, [1 << 16 | 2]);
        assert_eq!(rule.set.add_large_communities.len(), 1);
        assert_eq!(rule.matches.extended_communities, [0x0002_fde9_0000_0007]);
        assert_eq!(rule.set.add_extended_communities, [0x0003_0001_0000_0002]);
        assert_eq!(rule.set.remove_communities, [0xffff_029a]);
        assert_eq!(rule.set.set_communities, Some(vec![]));
        assert_eq!(rule.set.set_large_communities, None);
    }

    #[rstest]
    #[case(json!({"action": "Deny"}), "spec.ipv4[0].action", "must be Accept or Reject")]
    #[case(json!({"action": "Accept", "ge": 24}), "spec.ipv4[0]", "cidr, which is not there")]
    #[case(json!({"action": "Accept", "cidr": "10.0.0.0/16", "ge": 28, "le": 24}), "spec.ipv4[0].cidr", "no prefix fits")]
    #[case(json!({"action": "Accept", "cidr": "10.0.0.0/16", "ge": 8}), "spec.ipv4[0].cidr", "no prefix fits")]
    #[case(json!({"action": "Accept", "cidr": "10.0.0.0/16", "le": 33}), "spec.ipv4[0].le", "from 0 to 32")]
    #[case(json!({"action": "Accept", "cidr": "fd00::/8"}), "spec.ipv4[0].cidr", "other list")]
    #[case(json!({"action": "Accept", "communities": ["65536:1"]}), "spec.ipv4[0].communities[0]", "up to 65535")]
    #[case(json!({"action": "Accept", "communities": ["1:2", "seven"]}), "spec.ipv4[0].communities[1]", "65001:7")]
    #[case(json!({"action": "Accept", "largeCommunities": ["1:2"]}), "spec.ipv4[0].largeCommunities[0]", "three numbers")]
    #[case(json!({"action": "Accept", "extendedCommunities": ["1:2"]}), "spec.ipv4[0].extendedCommunities[0]", "rt:65001:7")]
    #[case(json!({"action": "Accept", "asPathRegex": "("}), "spec.ipv4[0].asPathRegex", "unclosed group")]
    #[case(json!({"action": "Accept", "nextHop": "x"}), "spec.ipv4[0].nextHop", "must be an IPv4")]
    #[case(json!({"action": "Accept", "neighbor": "10.0.0.1/8"}), "spec.ipv4[0].neighbor", "10.0.0.0/8")]
    #[case(json!({"action": "Accept", "set": {"prepend": 33}}), "spec.ipv4[0].set.prepend", "from 0 to 32")]
    #[case(json!({"action": "Accept", "set": {"med": -1}}), "spec.ipv4[0].set.med", "from 0")]
    #[case(json!({"action": "Accept", "set": {"nextHop": "fd00::1"}}), "spec.ipv4[0].set.nextHop", "family")]
    #[case(json!({"action": "Reject", "set": {"med": 1}}), "spec.ipv4[0].set", "not changed")]
    fn what_is_wrong_is_named_with_its_remedy(#[case] rule: Value, #[case] path: &str, #[case] reason: &str) {
        let issues = validate(json!({"ipv4": [rule]})).unwrap_err();
        assert_eq!(issues.len(), 1, "{issues:?}");
        assert_eq!(issues[0].path, path);
        assert!(issues[0].reason.contains(reason), "{}", issues[0]);
    }
}
