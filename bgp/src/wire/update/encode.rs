//! UPDATE messages from attributes and prefixes, as full as the peer takes them.
//!
//! The caller encodes an attribute set once for all peers with the same `EncodeContext`, then asks for messages until its
//! prefixes are used up. Each call writes one message, so that the caller can stop when its buffer is full enough.

use std::iter::Peekable;

use bytes::{BufMut, BytesMut};

use crate::types::{Family, PeerType};
use crate::wire::attribute::{AsPath, NextHop, PathAttributes};
use crate::wire::codec::EncodeContext;
use crate::wire::header::{self, MessageKind};
use crate::wire::iana::{attribute as code, flag};
use crate::wire::message::Nlri;
use crate::wire::nlri;

/// Why routes cannot be put on the wire for this peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EncodeError {
    /// Not even one prefix fits beside the attributes. The routes must be withdrawn instead (RFC 4271 leaves it open; a
    /// peer must not keep an older version of them).
    #[error("attributes of {octets} octets leave no room for a prefix in a message of {max}")]
    AttributesTooLong {
        /// What the attributes take.
        octets: usize,
        /// What the peer accepts as a whole message.
        max: usize,
    },
    /// IPv6 prefixes need an IPv6 next hop; IPv4 prefixes with one need RFC 8950 to have been negotiated.
    #[error("the next hop's family does not go with the prefix")]
    NextHopFamily,
}

/// A set of attributes as bytes, without next hop and prefixes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EncodedAttributes {
    bytes: Vec<u8>,
    /// Where NEXT_HOP goes: RFC 4271 5 asks for ascending type codes.
    next_hop_at: usize,
}

impl EncodedAttributes {
    /// Encodes for peers with this context.
    pub fn new(attributes: &PathAttributes, ctx: &EncodeContext) -> Self {
        let mut out = Vec::with_capacity(64);
        put(&mut out, flag::TRANSITIVE, code::ORIGIN, &[attributes.origin as u8]);
        put_as_path(&mut out, flag::TRANSITIVE, code::AS_PATH, &attributes.as_path, ctx.four_octet_as);
        let next_hop_at = out.len();
        put_rest(&mut out, attributes, ctx);
        EncodedAttributes { bytes: out, next_hop_at }
    }

    /// The octets of the attributes.
    pub fn octets(&self) -> usize {
        self.bytes.len()
    }
}

/// Appends one UPDATE that announces as many prefixes as fit, taken from `nlri`; gives their number.
/// Writes nothing when there are no prefixes. All prefixes must be of `family`.
///
/// # Errors
/// See `EncodeError`; nothing is written and no prefix is taken.
pub fn reach<I: Iterator<Item = Nlri>>(
    out: &mut BytesMut,
    ctx: &EncodeContext,
    attributes: &EncodedAttributes,
    next_hop: NextHop,
    family: Family,
    nlri: &mut Peekable<I>,
) -> Result<usize, EncodeError> {
    let Some(first) = nlri.peek() else { return Ok(0) };
    let add_path = ctx.add_path[family];
    let classic = match (family, next_hop) {
        (Family::Ipv4Unicast, NextHop::V4(address)) => Some(address),
        (Family::Ipv4Unicast, NextHop::V6 { .. }) if ctx.extended_next_hop => None,
        (Family::Ipv6Unicast, NextHop::V6 { .. }) => None,
        (Family::Ipv4Unicast, NextHop::V6 { .. }) | (Family::Ipv6Unicast, NextHop::V4(_)) => {
            return Err(EncodeError::NextHopFamily);
        }
    };
    // Header, two length fields, and either NEXT_HOP or MP_REACH_NLRI without prefixes.
    let overhead = header::LEN + 4 + if classic.is_some() { 7 } else { 4 + 5 + next_hop_octets(next_hop) };
    let needed = overhead + attributes.octets() + nlri::encoded_len(first, add_path);
    let max = ctx.max_len();
    if needed > max {
        return Err(EncodeError::AttributesTooLong { octets: attributes.octets(), max });
    }
    out.reserve(max);
    let start = header::begin(out, MessageKind::Update);
    out.put_u16(0);
    let length_at = out.len();
    out.put_u16(0);
    let (head, tail) = attributes.bytes.split_at(attributes.next_hop_at);
    let count = if let Some(address) = classic {
        out.put_slice(head);
        out.put_slice(&[flag::TRANSITIVE, code::NEXT_HOP, 4]);
        out.put_slice(&address.octets());
        out.put_slice(tail);
        set_length(out, length_at);
        fill(out, start + max, add_path, nlri)
    } else {
        // RFC 7606 5.1: MP_REACH_NLRI comes first.
        let mp = begin_mp(out, code::MP_REACH_NLRI, family);
        put_mp_next_hop(out, next_hop);
        out.put_u8(0);
        let count = fill(out, start + max - attributes.octets(), add_path, nlri);
        set_length(out, mp);
        out.put_slice(&attributes.bytes);
        set_length(out, length_at);
        count
    };
    header::finish(out, start);
    Ok(count)
}

/// Appends one UPDATE that withdraws as many prefixes as fit, taken from `nlri`; gives their number.
/// Writes nothing when there are no prefixes. All prefixes must be of `family`.
pub fn withdraw<I: Iterator<Item = Nlri>>(
    out: &mut BytesMut,
    ctx: &EncodeContext,
    family: Family,
    nlri: &mut Peekable<I>,
) -> usize {
    if nlri.peek().is_none() {
        return 0;
    }
    let max = ctx.max_len();
    out.reserve(max);
    let start = header::begin(out, MessageKind::Update);
    // Where IPv4 routes may have come in MP_REACH_NLRI (RFC 8950) they go in MP_UNREACH_NLRI.
    let classic = family == Family::Ipv4Unicast && !ctx.extended_next_hop;
    let count = if classic {
        let length_at = out.len();
        out.put_u16(0);
        let count = fill(out, start + max - 2, ctx.add_path[family], nlri);
        set_length(out, length_at);
        out.put_u16(0);
        count
    } else {
        out.put_u16(0);
        let length_at = out.len();
        out.put_u16(0);
        let mp = begin_mp(out, code::MP_UNREACH_NLRI, family);
        let count = fill(out, start + max, ctx.add_path[family], nlri);
        set_length(out, mp);
        set_length(out, length_at);
        count
    };
    header::finish(out, start);
    count
}

/// Appends the End-of-RIB marker of a family (RFC 4724 2).
pub fn end_of_rib(out: &mut BytesMut, family: Family) {
    let start = header::begin(out, MessageKind::Update);
    out.put_u16(0);
    let length_at = out.len();
    out.put_u16(0);
    if family != Family::Ipv4Unicast {
        let mp = begin_mp(out, code::MP_UNREACH_NLRI, family);
        set_length(out, mp);
        set_length(out, length_at);
    }
    header::finish(out, start);
}

/// Appends prefixes while they end at `limit` or before.
fn fill<I: Iterator<Item = Nlri>>(
    out: &mut BytesMut,
    limit: usize,
    add_path: bool,
    nlri: &mut Peekable<I>,
) -> usize {
    let mut count = 0;
    while let Some(next) = nlri.next_if(|n| out.len() + nlri::encoded_len(n, add_path) <= limit) {
        nlri::put(out, &next, add_path);
        count += 1;
    }
    count
}

/// Starts an MP attribute with a 2-octet length, which is legal whatever the size; gives the place of the length.
fn begin_mp(out: &mut BytesMut, code: u8, family: Family) -> usize {
    let (afi, safi) = family.afi_safi();
    out.put_slice(&[flag::OPTIONAL | flag::EXTENDED_LENGTH, code]);
    let length_at = out.len();
    out.put_u16(0);
    out.put_u16(afi);
    out.put_u8(safi);
    length_at
}

/// Sets a 2-octet length to what has been written after it.
fn set_length(out: &mut BytesMut, at: usize) {
    let len = u16::try_from(out.len() - at - 2).expect("messages stay within 65535 octets");
    out[at..at + 2].copy_from_slice(&len.to_be_bytes());
}

fn next_hop_octets(next_hop: NextHop) -> usize {
    match next_hop {
        NextHop::V4(_) => 4,
        NextHop::V6 { link_local: None, .. } => 16,
        NextHop::V6 { link_local: Some(_), .. } => 32,
    }
}

fn put_mp_next_hop(out: &mut BytesMut, next_hop: NextHop) {
    out.put_u8(u8::try_from(next_hop_octets(next_hop)).expect("at most 32"));
    match next_hop {
        NextHop::V4(address) => out.put_slice(&address.octets()),
        NextHop::V6 { global, link_local } => {
            out.put_slice(&global.octets());
            if let Some(link_local) = link_local {
                out.put_slice(&link_local.octets());
            }
        }
    }
}

/// Everything behind NEXT_HOP, in ascending type code.
fn put_rest(out: &mut Vec<u8>, attributes: &PathAttributes, ctx: &EncodeContext) {
    let internal = ctx.peer == PeerType::Internal;
    let optional_transitive = flag::OPTIONAL | flag::TRANSITIVE;
    if let Some(med) = attributes.med {
        put(out, flag::OPTIONAL, code::MED, &med.to_be_bytes());
    }
    if let Some(local_pref) = attributes.local_pref.filter(|_| internal) {
        put(out, flag::TRANSITIVE, code::LOCAL_PREF, &local_pref.to_be_bytes());
    }
    if attributes.atomic_aggregate {
        put(out, flag::TRANSITIVE, code::ATOMIC_AGGREGATE, &[]);
    }
    if let Some(aggregator) = attributes.aggregator {
        let id = aggregator.id.octets();
        if ctx.four_octet_as {
            put(out, optional_transitive, code::AGGREGATOR, &[aggregator.asn.0.to_be_bytes(), id].concat());
        } else {
            let asn = aggregator.asn.to_two_octets().to_be_bytes();
            put(out, optional_transitive, code::AGGREGATOR, &[&asn[..], &id].concat());
        }
    }
    if !attributes.communities.is_empty() {
        put_items(out, code::COMMUNITY, attributes.communities.iter().map(|c| c.to_be_bytes()));
    }
    if let Some(id) = attributes.originator_id.filter(|_| internal) {
        put(out, flag::OPTIONAL, code::ORIGINATOR_ID, &id.addr().octets());
    }
    if internal && !attributes.cluster_list.is_empty() {
        let list: Vec<u8> = attributes.cluster_list.iter().flat_map(|id| id.octets()).collect();
        put(out, flag::OPTIONAL, code::CLUSTER_LIST, &list);
    }
    if !attributes.extended_communities.is_empty() {
        put_items(
            out,
            code::EXTENDED_COMMUNITIES,
            attributes.extended_communities.iter().map(|c| c.to_be_bytes()),
        );
    }
    if !ctx.four_octet_as {
        put_as4(out, attributes);
    }
    // Unknown attributes may belong in front of this one; the order is a wish of RFC 4271 5, not a rule, but it is kept.
    let after_large = attributes.unknown.partition_point(|a| a.code < code::LARGE_COMMUNITY);
    put_unknown(out, &attributes.unknown[..after_large]);
    if !attributes.large_communities.is_empty() {
        let words = attributes.large_communities.iter().flat_map(|c| [c.global, c.local1, c.local2]);
        put_items(out, code::LARGE_COMMUNITY, words.map(u32::to_be_bytes));
    }
    put_unknown(out, &attributes.unknown[after_large..]);
}

/// RFC 6793 4.2.2: what the 2-octet forms cannot say. AS4_PATH never has confederation segments.
fn put_as4(out: &mut Vec<u8>, attributes: &PathAttributes) {
    let too_big = |asn: crate::types::Asn| asn.0 > u32::from(u16::MAX);
    let optional_transitive = flag::OPTIONAL | flag::TRANSITIVE;
    if attributes.as_path.iter().any(too_big) {
        let path = attributes.as_path.without_confed();
        put_as_path(out, optional_transitive, code::AS4_PATH, &path, true);
    }
    if let Some(aggregator) = attributes.aggregator.filter(|a| too_big(a.asn)) {
        let value = [aggregator.asn.0.to_be_bytes(), aggregator.id.octets()].concat();
        put(out, optional_transitive, code::AS4_AGGREGATOR, &value);
    }
}

/// RFC 4271 5: forwarded with the Partial bit, since this speaker did not understand them.
fn put_unknown(out: &mut Vec<u8>, unknown: &[crate::wire::attribute::UnknownAttribute]) {
    for attribute in unknown {
        put(out, attribute.flags & 0xe0 | flag::PARTIAL, attribute.code, &attribute.value);
    }
}

fn put_items<const N: usize>(out: &mut Vec<u8>, code: u8, items: impl Iterator<Item = [u8; N]>) {
    let value: Vec<u8> = items.flatten().collect();
    put(out, flag::OPTIONAL | flag::TRANSITIVE, code, &value);
}

fn put_as_path(out: &mut Vec<u8>, flags: u8, code: u8, path: &AsPath, four_octet: bool) {
    put_header(out, flags, code, path.encoded_len(four_octet));
    path.encode(out, four_octet);
}

fn put(out: &mut Vec<u8>, flags: u8, code: u8, value: &[u8]) {
    put_header(out, flags, code, value.len());
    out.extend_from_slice(value);
}

/// A value over 65535 octets gets a length that lies, but it never leaves: no message has room for it (`AttributesTooLong`).
fn put_header(out: &mut Vec<u8>, flags: u8, code: u8, len: usize) {
    match u8::try_from(len) {
        Ok(len) => out.extend_from_slice(&[flags, code, len]),
        Err(_) => {
            out.extend_from_slice(&[flags | flag::EXTENDED_LENGTH, code]);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
    }
}
