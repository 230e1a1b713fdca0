//! Scalars that several objects share: durations, AS numbers, prefixes, communities.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use manx_bgp::types::{Asn, Prefix};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A scalar as it was written: `90s`, `65001:7` and `65001` are text here, whichever type YAML sees in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scalar(pub(super) String);

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Scalar {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }

    /// What the API server takes; where it takes a number, the kind's table of bounds says so.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string"})
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl Visitor<'_> for ScalarVisitor {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text or a number")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Scalar, E> {
                Ok(Scalar(v.to_owned()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Scalar, E> {
                Ok(Scalar(v.to_string()))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Scalar, E> {
                Ok(Scalar(v.to_string()))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Scalar, E> {
                Ok(Scalar(v.to_string()))
            }
        }
        d.deserialize_any(ScalarVisitor)
    }
}

/// Reads a duration as Kubernetes writes them: numbers with units `h`, `m`, `s`, `ms`, added up; `0` needs no unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text}: write a duration with its unit, such as 90s, 1m30s or 100ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return Err(wrong()),
        };
        rest = &rest[letters..];
        total = unit.checked_mul(number).and_then(|d| total.checked_add(d)).ok_or_else(wrong)?;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// A duration within bounds; what is out of them is told in their own words.
pub(super) fn duration_within(text: &Scalar, least: Duration, most: Duration) -> Result<Duration, String> {
    let d = duration(&text.0)?;
    if (least..=most).contains(&d) {
        return Ok(d);
    }
    Err(format!("{text}: must be from {} to {}", show(least), show(most)))
}

/// A duration in the shortest way to write it.
pub(super) fn show(d: Duration) -> String {
    match (d.as_secs(), d.subsec_millis()) {
        (s, 0) => format!("{s}s"),
        (0, ms) => format!("{ms}ms"),
        (s, ms) => format!("{s}s{ms}ms"),
    }
}

/// An AS number that a speaker can have: 0, AS_TRANS and the last numbers are reserved (RFC 7607, 6793, 7300).
pub(super) fn asn(text: &str) -> Result<Asn, String> {
    match text.parse() {
        Ok(n @ (0 | 23456 | 65535 | u32::MAX)) => Err(format!(
            "{n}: this AS number is reserved; use one of your own, or a private one from 64512 on"
        )),
        Ok(n) => Ok(Asn(n)),
        Err(_) => Err(format!("{text}: must be an AS number from 1 to 4294967294")),
    }
}

/// A number within bounds.
pub(super) fn number_within(value: i64, least: i64, most: i64) -> Result<i64, String> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{value}: must be from {least} to {most}"))
    }
}

/// An address and nothing else.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text}: must be an IPv4 or IPv6 address"))
}

/// A prefix, with its length written and no host bits set: 10.0.0.5/24 is more often a slip than a wish.
pub(super) fn prefix(text: &str) -> Result<Prefix, String> {
    let wrong = || format!("{text}: must be an IPv4 or IPv6 prefix, such as 10.200.0.0/16");
    if !text.contains('/') {
        return Err(wrong());
    }
    let net: IpNetwork = text.parse().map_err(|_| wrong())?;
    let prefix = Prefix::from(net);
    if prefix.addr() != net.ip() {
        return Err(format!("{text}: has bits set behind its length; {prefix} is the prefix"));
    }
    Ok(prefix)
}

/// A name that is not empty, not longer than Kubernetes allows, and harmless in logs and tables.
pub(super) fn name(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/');
    if !text.is_empty() && text.len() <= 253 && text.chars().all(legal) {
        return Ok(text.to_owned());
    }
    Err(format!("{}: must be 1 to 253 letters, digits, '-', '.' or '_'", text.escape_debug()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("90s", 90_000)]
    #[case("1m30s", 90_000)]
    #[case("100ms", 100)]
    #[case("1h", 3_600_000)]
    #[case("0", 0)]
    #[case("0s", 0)]
    fn durations_are_read_as_kubernetes_writes_them(#[case] text: &str, #[case] millis: u64) {
        assert_eq!(duration(text).unwrap(), Duration::from_millis(millis));
    }

    #[rstest]
    #[case("")]
    #[case("90")]
    #[case("s")]
    #[case("1.5s")]
    #[case("-1s")]
    #[case("5x")]
    #[case("99999999999s")]
    #[case("1s ")]
    fn what_is_not_a_duration_is_told_how_to_write_one(#[case] text: &str) {
        assert!(duration(text).unwrap_err().contains("such as 90s"), "{text}");
    }

    #[test]
    fn a_prefix_with_host_bits_names_the_one_that_is_meant() {
        assert!(prefix("10.0.0.5/24").unwrap_err().contains("10.0.0.0/24"));
        assert!(prefix("10.0.0.0").is_err());
        assert!(prefix("10.0.0.0/33").is_err());
        assert_eq!(prefix("fd00::/8").unwrap().to_string(), "fd00::/8");
    }

    #[rstest]
    #[case("0")]
    #[case("23456")]
    #[case("65535")]
    #[case("4294967295")]
    #[case("4294967296")]
    #[case("-1")]
    #[case("AS1")]
    fn reserved_and_impossible_as_numbers_are_refused(#[case] text: &str) {
        assert!(asn(text).is_err());
    }
}
