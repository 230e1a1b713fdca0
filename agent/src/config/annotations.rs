//! What a Node's `manx.dev/` annotations say.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use manx_bgp::types::{Asn, RouterId};

use super::issue::{Issue, Issues};
use super::values;

/// What all our annotations begin with.
pub const PREFIX: &str = "manx.dev/";

/// Settings of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeAnnotations {
    /// `manx.dev/asn`: the node's AS, over BGPConfiguration.
    pub asn: Option<Asn>,
    /// `manx.dev/router-id`: its BGP identifier.
    pub router_id: Option<RouterId>,
    /// `manx.dev/route-reflector-cluster-id`: it reflects, with this cluster id (RFC 4456).
    pub cluster_id: Option<Ipv4Addr>,
}

impl NodeAnnotations {
    /// Reads them; other annotations are not ours to judge.
    pub fn parse(annotations: &BTreeMap<String, String>) -> Result<Self, Vec<Issue>> {
        let mut issues = Issues::default();
        let mut out = NodeAnnotations::default();
        for (key, value) in annotations {
            let path = format!("metadata.annotations[{key}]");
            match key.strip_prefix(PREFIX) {
                Some("asn") => out.asn = issues.take(path, values::asn(value)),
                Some("router-id") => out.router_id = issues.take(path, router_id(value)),
                Some("route-reflector-cluster-id") => {
                    out.cluster_id = issues.take(path, router_id(value)).map(RouterId::addr);
                }
                _ => {}
            }
        }
        issues.finish(out)
    }

    /// Keys that begin as ours do, but that this version does not know: a slip of the pen, or a newer version's.
    pub fn unknown(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = &str> {
        annotations.keys().map(String::as_str).filter(|key| {
            key.strip_prefix(PREFIX)
                .is_some_and(|k| !matches!(k, "asn" | "router-id" | "route-reflector-cluster-id"))
        })
    }
}

fn router_id(text: &str) -> Result<RouterId, String> {
    text.parse()
        .ok()
        .and_then(RouterId::new)
        .ok_or_else(|| format!("{text}: must be written like an IPv4 address and not be 0.0.0.0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_three_of_ours_are_read_and_others_left_alone() {
        let got = NodeAnnotations::parse(&annotations(&[
            ("manx.dev/asn", "4200000001"),
            ("manx.dev/route-reflector-cluster-id", "0.0.0.1"),
            ("manx.dev/router-id", "10.0.0.1"),
            ("node.alpha.kubernetes.io/ttl", "0"),
        ]))
        .unwrap();
        assert_eq!(got.asn, Some(Asn(4_200_000_001)));
        assert_eq!(got.router_id.unwrap().to_string(), "10.0.0.1");
        assert_eq!(got.cluster_id, Some(Ipv4Addr::new(0, 0, 0, 1)));
    }

    #[test]
    fn all_that_is_wrong_is_named_at_once() {
        let issues =
            NodeAnnotations::parse(&annotations(&[("manx.dev/asn", "0"), ("manx.dev/router-id", "0.0.0.0")]))
                .unwrap_err();
        assert_eq!(
            issues.iter().map(|i| i.path.as_str()).collect::<Vec<_>>(),
            ["metadata.annotations[manx.dev/asn]", "metadata.annotations[manx.dev/router-id]"]
        );
    }

    #[test]
    fn a_misspelt_one_is_noticed() {
        let all = annotations(&[("manx.dev/as-number", "1"), ("manx.dev/asn", "1"), ("other/asn", "1")]);
        assert_eq!(NodeAnnotations::unknown(&all).collect::<Vec<_>>(), ["manx.dev/as-number"]);
    }
}
