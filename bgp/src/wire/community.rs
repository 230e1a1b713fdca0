//! Communities as numbers and as people write them: standard (RFC 1997), extended (RFC 4360), large (RFC 8092).

use std::net::Ipv4Addr;

use crate::wire::attribute::LargeCommunity;

/// Well-known communities that this speaker acts on.
pub mod well_known {
    /// RFC 8326: the route is about to go away.
    pub const GRACEFUL_SHUTDOWN: u32 = 0xFFFF_0000;
    /// RFC 9494: kept long after its speaker was lost.
    pub const LLGR_STALE: u32 = 0xFFFF_0006;
    /// RFC 9494: not to be kept long after its speaker was lost.
    pub const NO_LLGR: u32 = 0xFFFF_0007;
    /// RFC 7999: discard traffic to the prefix.
    pub const BLACKHOLE: u32 = 0xFFFF_029A;
    /// RFC 1997: not beyond the AS (or confederation).
    pub const NO_EXPORT: u32 = 0xFFFF_FF01;
    /// RFC 1997: to nobody.
    pub const NO_ADVERTISE: u32 = 0xFFFF_FF02;
    /// RFC 1997: not to external peers, confederation members included.
    pub const NO_EXPORT_SUBCONFED: u32 = 0xFFFF_FF03;
}

/// Number and name of each well-known community.
const NAMES: [(u32, &str); 7] = [
    (well_known::GRACEFUL_SHUTDOWN, "graceful-shutdown"),
    (well_known::LLGR_STALE, "llgr-stale"),
    (well_known::NO_LLGR, "no-llgr"),
    (well_known::BLACKHOLE, "blackhole"),
    (well_known::NO_EXPORT, "no-export"),
    (well_known::NO_ADVERTISE, "no-advertise"),
    (well_known::NO_EXPORT_SUBCONFED, "no-export-subconfed"),
];

/// RFC 4360 2: the route must not carry it into another AS.
const NON_TRANSITIVE: u64 = 0x40 << 56;
/// RFC 4360 3, RFC 5668: the types whose value is an administrator and a number.
const TWO_OCTET_AS: u64 = 0x00;
const IPV4_ADDRESS: u64 = 0x01;
const FOUR_OCTET_AS: u64 = 0x02;
/// RFC 4360 4 and 5: subtypes.
const KINDS: [(u64, &str); 2] = [(0x02, "rt"), (0x03, "soo")];

/// A standard community: the well-known name, or "65001:7".
pub fn standard_text(community: u32) -> String {
    match NAMES.iter().find(|(number, _)| *number == community) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("{}:{}", community >> 16, community & 0xffff),
    }
}

/// Reads what `standard_text` writes; names also with underscores and capitals.
pub fn parse_standard(text: &str) -> Option<u32> {
    let name = text.to_ascii_lowercase().replace('_', "-");
    if let Some((number, _)) = NAMES.iter().find(|(_, known)| *known == name) {
        return Some(*number);
    }
    let (high, low) = text.split_once(':')?;
    Some(u32::from(high.parse::<u16>().ok()?) << 16 | u32::from(low.parse::<u16>().ok()?))
}

/// A large community: "1:2:3" (RFC 8092 5).
pub fn large_text(c: &LargeCommunity) -> String {
    format!("{}:{}:{}", c.global, c.local1, c.local2)
}

/// Reads what `large_text` writes.
pub fn parse_large(text: &str) -> Option<LargeCommunity> {
    let mut numbers = text.split(':').map(|n| n.parse().ok());
    let (global, local1, local2) = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(LargeCommunity { global, local1, local2 })
}

/// An extended community: "rt:65001:7" (route target), "soo:10.0.0.1:7" (site of origin), or all of it as "0x" and 16 digits.
pub fn extended_text(community: u64) -> String {
    let kind = KINDS.iter().find(|(subtype, _)| *subtype == community >> 48 & 0xff);
    let Some((_, kind)) = kind else { return format!("{community:#018x}") };
    match community >> 56 {
        TWO_OCTET_AS => format!("{kind}:{}:{}", community >> 32 & 0xffff, community & 0xffff_ffff),
        IPV4_ADDRESS => {
            format!("{kind}:{}:{}", Ipv4Addr::from_bits((community >> 16) as u32), community & 0xffff)
        }
        FOUR_OCTET_AS => format!("{kind}:{}:{}", community >> 16 & 0xffff_ffff, community & 0xffff),
        _ => format!("{community:#018x}"),
    }
}

/// Reads what `extended_text` writes. An AS over 65535, and an address, leave 16 bits for the number behind them.
pub fn parse_extended(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16);
    }
    let (kind, value) = text.split_once(':')?;
    let (subtype, _) = KINDS.iter().find(|(_, name)| kind.eq_ignore_ascii_case(name))?;
    let (administrator, number) = value.split_once(':')?;
    let (kind, value) = if let Ok(address) = administrator.parse::<Ipv4Addr>() {
        (IPV4_ADDRESS, u64::from(address.to_bits()) << 16 | u64::from(number.parse::<u16>().ok()?))
    } else if let Ok(asn) = administrator.parse::<u16>() {
        (TWO_OCTET_AS, u64::from(asn) << 32 | u64::from(number.parse::<u32>().ok()?))
    } else {
        let asn: u32 = administrator.parse().ok()?;
        (FOUR_OCTET_AS, u64::from(asn) << 16 | u64::from(number.parse::<u16>().ok()?))
    };
    Some(kind << 56 | subtype << 48 | value)
}

/// Whether an extended community may be carried into another AS (RFC 4360 6).
pub fn is_transitive(extended: u64) -> bool {
    extended & NON_TRANSITIVE == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["65001:7", "0:0", "65535:65535", "no-export", "blackhole", "llgr-stale", "no-llgr"] {
            assert_eq!(standard_text(parse_standard(text).unwrap()), text);
        }
        for text in ["1:2:3", "4294967295:0:4294967295"] {
            assert_eq!(large_text(&parse_large(text).unwrap()), text);
        }
        for text in
            ["rt:65001:4000000000", "soo:10.0.0.1:7", "rt:4200000000:9", "0x4004fde84cbebc20", "rt:0:0"]
        {
            assert_eq!(extended_text(parse_extended(text).unwrap()), text);
        }
    }

    #[test]
    fn the_bytes_are_those_of_rfc4360() {
        assert_eq!(parse_extended("rt:65000:100"), Some(0x0002_fde8_0000_0064));
        assert_eq!(parse_extended("soo:10.0.0.1:1"), Some(0x0103_0a00_0001_0001));
        assert_eq!(parse_extended("RT:70000:1"), Some(0x0202_0001_1170_0001));
        assert_eq!(parse_standard("GRACEFUL_SHUTDOWN"), Some(0xffff_0000));
        assert!(is_transitive(0x0002_fde8_0000_0064) && !is_transitive(0x4004_fde8_0000_0000));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for text in ["65536:1", "1", "1:2:3", "", "seven"] {
            assert_eq!(parse_standard(text), None, "{text}");
        }
        for text in ["1:2", "1:2:3:4", "1:2:4294967296"] {
            assert_eq!(parse_large(text), None, "{text}");
        }
        for text in ["rt:65001", "rt:70000:65536", "rt:10.0.0.1:65536", "xx:1:2", "0x1", "1:2"] {
            assert_eq!(parse_extended(text), None, "{text}");
        }
    }
}
