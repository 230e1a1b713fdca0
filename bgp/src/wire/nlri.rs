//! Prefixes on the wire (RFC 4271 4.3, RFC 4760 5, RFC 7911 3): the hot loop of decoding and encoding.

use bytes::{BufMut, BytesMut};

use crate::types::{Family, Ipv4Prefix, Ipv6Prefix, Prefix};
use crate::wire::message::Nlri;

/// A prefix length over 32 or 128, or a field that ends within a prefix (RFC 7606 5.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadNlri;

/// Appends all prefixes of the field to `out`, host bits cleared.
pub(crate) fn decode(
    field: &[u8],
    family: Family,
    add_path: bool,
    out: &mut Vec<Nlri>,
) -> Result<(), BadNlri> {
    // An estimate for routes of common length, so that the vector seldom grows.
    let (typical, entry): (usize, Entry) = match family {
        Family::Ipv4Unicast => (4, ipv4),
        Family::Ipv6Unicast => (7, ipv6),
    };
    out.reserve(field.len() / (typical + if add_path { 4 } else { 0 }));
    match (family, add_path) {
        (Family::Ipv4Unicast, false) => each(field, out, |b| ipv4(b).map(|(prefix, rest)| (prefix, 0, rest))),
        (Family::Ipv6Unicast, false) => each(field, out, |b| ipv6(b).map(|(prefix, rest)| (prefix, 0, rest))),
        (_, true) => each(field, out, |b| {
            let (id, rest) = b.split_first_chunk::<4>()?;
            let (prefix, rest) = entry(rest)?;
            Some((prefix, u32::from_be_bytes(*id), rest))
        }),
    }
}

type Entry = fn(&[u8]) -> Option<(Prefix, &[u8])>;

#[inline(always)]
fn each<'a>(
    mut field: &'a [u8],
    out: &mut Vec<Nlri>,
    entry: impl Fn(&'a [u8]) -> Option<(Prefix, u32, &'a [u8])>,
) -> Result<(), BadNlri> {
    while !field.is_empty() {
        let (prefix, path_id, rest) = entry(field).ok_or(BadNlri)?;
        out.push(Nlri { prefix, path_id });
        field = rest;
    }
    Ok(())
}

#[inline(always)]
fn ipv4(field: &[u8]) -> Option<(Prefix, &[u8])> {
    let (&len, rest) = field.split_first()?;
    let octets = usize::from(len.div_ceil(8));
    // Reading four octets and masking is cheaper than copying as many as there are; the end of the field is the exception.
    let bits = match rest.first_chunk::<4>() {
        Some(word) => u32::from_be_bytes(*word),
        None => u32::from_be_bytes(padded(rest)),
    };
    let prefix = Ipv4Prefix::from_bits(bits, len)?;
    Some((Prefix::V4(prefix), rest.get(octets..)?))
}

#[inline(always)]
fn ipv6(field: &[u8]) -> Option<(Prefix, &[u8])> {
    let (&len, rest) = field.split_first()?;
    let octets = usize::from(len.div_ceil(8));
    let bits = match rest.first_chunk::<16>() {
        Some(word) => u128::from_be_bytes(*word),
        None => u128::from_be_bytes(padded(rest)),
    };
    let prefix = Ipv6Prefix::from_bits(bits, len)?;
    Some((Prefix::V6(prefix), rest.get(octets..)?))
}

/// The last octets of a field, filled up with zeros. Shorter than N by the callers' checks.
fn padded<const N: usize>(rest: &[u8]) -> [u8; N] {
    let mut word = [0; N];
    word[..rest.len()].copy_from_slice(rest);
    word
}

/// Octets that `put` will write.
#[inline]
pub(crate) fn encoded_len(nlri: &Nlri, add_path: bool) -> usize {
    1 + usize::from(nlri.prefix.len().div_ceil(8)) + if add_path { 4 } else { 0 }
}

/// Appends one prefix.
#[inline]
pub(crate) fn put(out: &mut BytesMut, nlri: &Nlri, add_path: bool) {
    if add_path {
        out.put_u32(nlri.path_id);
    }
    let len = nlri.prefix.len();
    let octets = usize::from(len.div_ceil(8));
    match nlri.prefix {
        Prefix::V4(p) => {
            let [a, b, c, d] = p.addr().octets();
            out.put_slice(&[len, a, b, c, d][..=octets]);
        }
        Prefix::V6(p) => {
            let mut entry = [0; 17];
            entry[0] = len;
            entry[1..].copy_from_slice(&p.addr().octets());
            out.put_slice(&entry[..=octets]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(field: &[u8], family: Family, add_path: bool) -> Result<Vec<String>, BadNlri> {
        let mut out = Vec::new();
        decode(field, family, add_path, &mut out)?;
        Ok(out.iter().map(|n| format!("{}#{}", n.prefix, n.path_id)).collect())
    }

    #[test]
    fn rfc4271_4_3_trailing_bits_do_not_matter() {
        let field = [9, 10, 0xff, 0, 32, 192, 0, 2, 1];
        assert_eq!(
            read(&field, Family::Ipv4Unicast, false).unwrap(),
            ["10.128.0.0/9#0", "0.0.0.0/0#0", "192.0.2.1/32#0"]
        );
        assert_eq!(read(&[20, 0x20, 0x01, 0x0f], Family::Ipv6Unicast, false).unwrap(), ["2001::/20#0"]);
    }

    #[test]
    fn rfc7911_3_a_path_identifier_precedes_each_prefix() {
        let field = [0, 0, 0, 7, 8, 10, 0, 0, 1, 0, 0];
        assert_eq!(read(&field, Family::Ipv4Unicast, true).unwrap(), ["10.0.0.0/8#7", "0.0.0.0/0#256"]);
        assert_eq!(read(&field[..3], Family::Ipv4Unicast, true), Err(BadNlri));
        assert_eq!(read(&field[..4], Family::Ipv6Unicast, true), Err(BadNlri));
    }

    #[test]
    fn rfc7606_5_3_too_long_or_cut_prefixes_are_errors() {
        assert_eq!(read(&[33, 1, 2, 3, 4, 5], Family::Ipv4Unicast, false), Err(BadNlri));
        assert_eq!(read(&[24, 1, 2], Family::Ipv4Unicast, false), Err(BadNlri));
        assert_eq!(read(&[129; 40], Family::Ipv6Unicast, false), Err(BadNlri));
        assert_eq!(read(&[128; 16], Family::Ipv6Unicast, false), Err(BadNlri));
    }
}
