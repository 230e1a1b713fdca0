//! Hashed names within kernel limits: chains 28 bytes, sets 31, comments 255.
//!
//! A hash is taken over length-prefixed parts, so that ("a", "bc") and ("ab", "c") differ. Names depend on what is named
//! alone: a fresh process finds its predecessor's work under the same names.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::ir::SetKind;
use crate::model::{Direction, Family, IpBlock, NamespaceScope, PodSelector, PolicyId, PolicyKind};
use crate::selector::{Operator, Selector};

/// Longest chain name (XT_EXTENSION_MAXNAMELEN less its final NUL).
pub const MAX_CHAIN: usize = 28;
/// Longest set name (IPSET_MAXNAMELEN less its final NUL).
pub const MAX_SET: usize = 31;
/// Longest comment (XT_MAX_COMMENT_LEN less its final NUL).
pub const MAX_COMMENT: usize = 255;
/// How our chains begin.
pub const CHAIN_PREFIX: &str = "MANX-";

/// How our sets of a family begin.
pub fn set_prefix(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "manx4-",
        Family::Ipv6 => "manx6-",
    }
}

/// A set's full name from what [`set_suffix`] gave.
pub fn set_name(family: Family, suffix: &str) -> String {
    format!("{}{suffix}", set_prefix(family))
}

/// The family-independent part of a set's name: a letter for the kind and 80 bits of the content's description.
pub fn set_suffix(kind: SetKind, description: &[&str]) -> String {
    let letter = match kind {
        SetKind::Ip => 'p',
        SetKind::Net => 'n',
        SetKind::IpPort => 'q',
    };
    format!("{letter}-{}", hash(description, 16))
}

/// The chain of a policy in one direction.
pub fn policy_chain(policy: &PolicyId, direction: Direction) -> String {
    let direction = match direction {
        Direction::Ingress => "PI",
        Direction::Egress => "PE",
    };
    let kind = match policy.kind {
        PolicyKind::NetworkPolicy => "networkpolicy",
        PolicyKind::ClusterNetworkPolicy => "clusternetworkpolicy",
        PolicyKind::CalicoNetworkPolicy => "calico",
        PolicyKind::CalicoGlobalNetworkPolicy => "calico-global",
    };
    let namespace = policy.namespace.as_deref().unwrap_or("");
    format!("{CHAIN_PREFIX}{direction}-{}", hash(&[kind, namespace, &policy.name], 16))
}

/// Of a policy's chain, by its name; `None`: it is another chain.
pub fn policy_direction(chain: &str) -> Option<Direction> {
    match chain.strip_prefix(CHAIN_PREFIX)?.split_once('-')?.0 {
        "PI" => Some(Direction::Ingress),
        "PE" => Some(Direction::Egress),
        _ => None,
    }
}

/// Describes a pod selector without ambiguity, whatever its labels hold.
pub fn describe_pods(selector: &PodSelector) -> Vec<String> {
    let mut parts = Vec::new();
    match &selector.namespaces {
        NamespaceScope::Named(name) => parts.extend(["named".to_string(), name.to_string()]),
        NamespaceScope::Matching(selector) => {
            parts.push("matching".into());
            describe_selector(selector, &mut parts);
        }
    }
    parts.push("pods".into());
    describe_selector(&selector.pods, &mut parts);
    parts
}

fn describe_selector(selector: &Selector, parts: &mut Vec<String>) {
    parts.push(selector.requirements().len().to_string());
    for requirement in selector.requirements() {
        parts.push(requirement.key.to_string());
        let (operator, values) = match &requirement.operator {
            Operator::In(values) => ("in", values.as_slice()),
            Operator::NotIn(values) => ("notin", values.as_slice()),
            Operator::Exists => ("exists", [].as_slice()),
            Operator::DoesNotExist => ("absent", [].as_slice()),
            Operator::Like(part, text) => (part.as_str(), std::slice::from_ref(text)),
            Operator::NotLike(part, text) => {
                parts.push("not".into());
                (part.as_str(), std::slice::from_ref(text))
            }
        };
        parts.push(operator.into());
        parts.push(values.len().to_string());
        parts.extend(values.iter().map(|v| v.to_string()));
    }
}

/// A pod selector for people.
pub fn say_pods(selector: &PodSelector) -> String {
    let mut words = match (&selector.pods.is_everything(), &selector.pods) {
        (true, _) => "all pods".to_string(),
        (false, pods) => format!("pods with {pods}"),
    };
    match &selector.namespaces {
        NamespaceScope::Named(name) => _ = write!(words, " in namespace {name}"),
        NamespaceScope::Matching(s) if s.is_everything() => words.push_str(" in every namespace"),
        NamespaceScope::Matching(s) => _ = write!(words, " in namespaces with {s}"),
    }
    words
}

/// An address block for people.
pub fn say_block(block: &IpBlock) -> String {
    if block.except.is_empty() {
        return block.cidr.to_string();
    }
    let holes: Vec<String> = block.except.iter().map(ToString::to_string).collect();
    format!("{} except {}", block.cidr, holes.join(", "))
}

/// Can this stand as an interface in a rule and in a chain name?
pub fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Keeps a comment to printable ASCII without quotes or backslashes and to a length.
pub fn comment(text: &str, max: usize) -> String {
    text.chars()
        .map(|c| if c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\') || c == ' ' { c } else { '?' })
        .take(max)
        .collect()
}

/// `length` characters (5 bits each) of the SHA-256 over the length-prefixed parts.
pub fn hash(parts: &[&str], length: usize) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let digest = hasher.finalize();
    let bits =
        |at: usize| (0..5).fold(0, |value, i| value << 1 | (digest[(at + i) / 8] >> (7 - (at + i) % 8)) & 1);
    (0..length).map(|i| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[usize::from(bits(i * 5))])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_names_need_separators() {
        assert_ne!(hash(&["a", "bc"], 16), hash(&["ab", "c"], 16));
        let one = policy_chain(&PolicyId::network_policy("a", "bc"), Direction::Ingress);
        let other = policy_chain(&PolicyId::network_policy("ab", "c"), Direction::Ingress);
        assert_ne!(one, other);
    }

    #[test]
    fn names_stay_within_kernel_limits() {
        let long = "x".repeat(253);
        let chain = policy_chain(&PolicyId::network_policy(&long, &long), Direction::Egress);
        assert!(chain.len() <= MAX_CHAIN, "{chain}");
        for kind in [SetKind::Ip, SetKind::Net, SetKind::IpPort] {
            let set = set_name(Family::Ipv6, &set_suffix(kind, &[&long]));
            assert!(set.len() <= MAX_SET, "{set}");
        }
    }

    #[test]
    fn selectors_that_read_alike_are_described_apart() {
        let tricky = Selector::of_labels([("a", "b,c=d")]);
        let plain = Selector::of_labels([("a", "b"), ("c", "d")]);
        let pods = |pods| PodSelector { namespaces: NamespaceScope::Named("n".into()), pods };
        assert_ne!(describe_pods(&pods(tricky)), describe_pods(&pods(plain)));
    }
}
