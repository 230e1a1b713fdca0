//! The path attributes of a received UPDATE: one pass over the list, each attribute judged by RFC 7606 3, 4 and 7.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::types::{Asn, Family, PeerType, RouterId};
use crate::wire::attribute::{
    Aggregator, AsPath, LargeCommunity, NextHop, Origin, PathAttributes, UnknownAttribute,
};
use crate::wire::codec::DecodeContext;
use crate::wire::error::WireError;
use crate::wire::iana::{attribute as code, error::UPDATE, flag, update_error};
use crate::wire::message::{Fault, FaultOutcome, Nlri, Reach};
use crate::wire::nlri;
use crate::wire::read::{exactly_u32, items};
use crate::wire::update::decode::fault;

use FaultOutcome::{AttributeDiscard, TreatAsWithdraw};

/// What the attribute list held, malformed attributes left out.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) mp_reach: Option<MpReach>,
    pub(super) mp_unreach: Option<MpUnreach>,
    pub(super) next_hop: Option<NextHop>,
    /// Some attribute besides MP_UNREACH_NLRI is there (RFC 7606 5.2).
    pub(super) other_than_mp_unreach: bool,
    pub(super) faults: Vec<Fault>,
    origin: Option<Origin>,
    as_path: Option<AsPath>,
    as4_path: Option<AsPath>,
    med: Option<u32>,
    local_pref: Option<u32>,
    atomic_aggregate: bool,
    aggregator: Option<Aggregator>,
    as4_aggregator: Option<Aggregator>,
    communities: smallvec::SmallVec<[u32; 2]>,
    extended_communities: Vec<u64>,
    large_communities: Vec<LargeCommunity>,
    originator_id: Option<RouterId>,
    cluster_list: Vec<Ipv4Addr>,
    unknown: Vec<UnknownAttribute>,
}

/// MP_REACH_NLRI.
pub(super) struct MpReach {
    /// NLRI were there, of whatever family.
    pub(super) has_nlri: bool,
    /// The prefixes, if their family is in use and there are any.
    pub(super) reach: Option<Reach>,
}

/// MP_UNREACH_NLRI.
pub(super) struct MpUnreach {
    /// `None` for a family that is not carried.
    pub(super) family: Option<Family>,
    pub(super) nlri: Vec<Nlri>,
}

/// How one attribute ends when it is not taken: RFC 7606 2.
enum Bad {
    /// The message is lost.
    Reset(WireError),
    /// Counted, and survived.
    Fault(FaultOutcome, &'static str),
}

type Judged<T> = Result<T, Bad>;

fn withdraw<T>(reason: &'static str) -> Judged<T> {
    Err(Bad::Fault(TreatAsWithdraw, reason))
}

fn discard<T>(reason: &'static str) -> Judged<T> {
    Err(Bad::Fault(AttributeDiscard, reason))
}

/// One attribute as it stands in the list.
struct Raw<'a> {
    flags: u8,
    code: u8,
    value: &'a [u8],
    /// Header and value, for the data of a NOTIFICATION.
    whole: &'a [u8],
}

/// Walks the list. Only session resets are errors.
pub(super) fn collect(mut list: &[u8], ctx: &DecodeContext) -> Result<Collected, WireError> {
    let mut collected = Collected::default();
    let mut seen = [0u64; 4];
    while !list.is_empty() {
        let Some((raw, rest)) = next(list) else {
            // RFC 7606 4: the lengths of the message are believed, the rest of the list is not.
            let code = list.get(1).copied().unwrap_or(0);
            collected.faults.push(fault(
                code,
                TreatAsWithdraw,
                "attribute is longer than what is left of the list",
            ));
            collected.other_than_mp_unreach = true;
            break;
        };
        list = rest;
        collected.other_than_mp_unreach |= raw.code != code::MP_UNREACH_NLRI;
        let (word, bit) = (usize::from(raw.code / 64), 1 << (raw.code % 64));
        let judged = if seen[word] & bit == 0 { collected.take(&raw, ctx) } else { duplicate(raw.code) };
        seen[word] |= bit;
        match judged {
            Ok(()) => {}
            Err(Bad::Fault(outcome, reason)) => collected.faults.push(fault(raw.code, outcome, reason)),
            Err(Bad::Reset(error)) => return Err(error),
        }
    }
    Ok(collected)
}

fn next(list: &[u8]) -> Option<(Raw<'_>, &[u8])> {
    let (&[flags, code], rest) = list.split_first_chunk()?;
    let (len, rest) = if flags & flag::EXTENDED_LENGTH != 0 {
        let (len, rest) = rest.split_first_chunk()?;
        (u16::from_be_bytes(*len).into(), rest)
    } else {
        let (len, rest) = rest.split_first()?;
        (usize::from(*len), rest)
    };
    let (value, rest) = rest.split_at_checked(len)?;
    let whole = &list[..list.len() - rest.len()];
    Some((Raw { flags, code, value, whole }, rest))
}

/// RFC 7606 3 g: the first one counts, but two MP attributes of a kind end the session.
fn duplicate(code: u8) -> Judged<()> {
    if matches!(code, code::MP_REACH_NLRI | code::MP_UNREACH_NLRI) {
        let error = WireError::new(UPDATE, update_error::ATTRIBUTE_LIST, [], "MP attribute occurs twice");
        return Err(Bad::Reset(error));
    }
    discard("attribute occurs again")
}

/// The Optional and Transitive bits that an attribute must have; `None` for those we do not know.
fn expected_flags(code: u8) -> Option<u8> {
    Some(match code {
        code::ORIGIN | code::AS_PATH | code::NEXT_HOP | code::LOCAL_PREF | code::ATOMIC_AGGREGATE => {
            flag::TRANSITIVE
        }
        code::MED
        | code::ORIGINATOR_ID
        | code::CLUSTER_LIST
        | code::MP_REACH_NLRI
        | code::MP_UNREACH_NLRI => flag::OPTIONAL,
        code::AGGREGATOR
        | code::COMMUNITY
        | code::EXTENDED_COMMUNITIES
        | code::AS4_PATH
        | code::AS4_AGGREGATOR
        | code::IPV6_EXTENDED_COMMUNITIES
        | code::LARGE_COMMUNITY => flag::OPTIONAL | flag::TRANSITIVE,
        _ => return None,
    })
}

impl Collected {
    /// Whether some fault turns the routes of the message into withdrawals.
    pub(super) fn treat_as_withdraw(&self) -> bool {
        self.faults.iter().any(|f| f.outcome == TreatAsWithdraw)
    }

    /// RFC 7606 3 d. LOCAL_PREF is not asked for: internal peers without it get the default.
    pub(super) fn require_mandatory(&mut self, classic: bool) {
        if self.treat_as_withdraw() {
            return;
        }
        let missing = [
            (code::ORIGIN, self.origin.is_none()),
            (code::AS_PATH, self.as_path.is_none()),
            (code::NEXT_HOP, classic && self.next_hop.is_none()),
        ];
        for (code, _) in missing.into_iter().filter(|(_, missing)| *missing) {
            self.faults.push(fault(code, TreatAsWithdraw, "mandatory attribute is missing"));
        }
    }

    fn take(&mut self, raw: &Raw<'_>, ctx: &DecodeContext) -> Judged<()> {
        let external = ctx.peer == PeerType::External;
        let value = raw.value;
        // What must be discarded whatever it says comes before any look at it.
        match raw.code {
            code::LOCAL_PREF | code::ORIGINATOR_ID | code::CLUSTER_LIST if external => {
                return discard("not taken from an external peer");
            }
            code::AS4_PATH | code::AS4_AGGREGATOR if ctx.four_octet_as => {
                return discard("not taken from a peer with 4-octet AS numbers");
            }
            _ => {}
        }
        let flags_are_wrong =
            expected_flags(raw.code).is_some_and(|expected| (raw.flags ^ expected) & 0xc0 != 0);
        if flags_are_wrong {
            // RFC 7606 3 c. The prefixes of an MP attribute are still needed, to be withdrawn.
            match raw.code {
                code::MP_REACH_NLRI => self.mp_reach = Some(mp_reach(raw, ctx)?),
                code::MP_UNREACH_NLRI => self.mp_unreach = Some(mp_unreach(raw, ctx)?),
                code::AS4_PATH | code::AS4_AGGREGATOR => return discard("attribute flags are wrong"),
                _ => {}
            }
            return withdraw("attribute flags are wrong");
        }
        match raw.code {
            code::ORIGIN => self.origin = Some(origin(value)?),
            code::AS_PATH => self.as_path = Some(as_path(value, ctx)?),
            code::NEXT_HOP => self.next_hop = Some(next_hop(value)?),
            code::MED => match exactly_u32(value) {
                Some(med) => self.med = Some(med),
                None => return withdraw("MULTI_EXIT_DISC is not 4 octets"),
            },
            code::LOCAL_PREF => match exactly_u32(value) {
                Some(local_pref) => self.local_pref = Some(local_pref),
                None => return withdraw("LOCAL_PREF is not 4 octets"),
            },
            code::ATOMIC_AGGREGATE => match value {
                [] => self.atomic_aggregate = true,
                _ => return discard("ATOMIC_AGGREGATE is not empty"),
            },
            code::AGGREGATOR => self.aggregator = Some(aggregator(value, ctx.four_octet_as)?),
            code::COMMUNITY => match items::<4>(value) {
                Some(list) => self.communities = sorted(list.iter().map(|c| u32::from_be_bytes(*c))),
                None => return withdraw("COMMUNITY is not a non-zero multiple of 4 octets"),
            },
            code::ORIGINATOR_ID => {
                match exactly_u32(value).and_then(|id| RouterId::new(Ipv4Addr::from_bits(id))) {
                    Some(id) => self.originator_id = Some(id),
                    None => return withdraw("ORIGINATOR_ID is not an identifier"),
                }
            }
            code::CLUSTER_LIST => match items::<4>(value) {
                Some(list) => self.cluster_list = list.iter().map(|id| Ipv4Addr::from(*id)).collect(),
                None => return withdraw("CLUSTER_LIST is not a non-zero multiple of 4 octets"),
            },
            code::MP_REACH_NLRI => {
                let mp = self.mp_reach.insert(mp_reach(raw, ctx)?);
                if mp.reach.as_ref().is_some_and(|reach| !usable(reach.next_hop)) {
                    return withdraw("next hop cannot be one");
                }
            }
            code::MP_UNREACH_NLRI => self.mp_unreach = Some(mp_unreach(raw, ctx)?),
            code::EXTENDED_COMMUNITIES => match items::<8>(value) {
                Some(list) => self.extended_communities = sorted(list.iter().map(|c| u64::from_be_bytes(*c))),
                None => return withdraw("EXTENDED_COMMUNITIES is not a non-zero multiple of 8 octets"),
            },
            code::AS4_PATH => match AsPath::decode(value, true) {
                // RFC 6793 6.
                Ok(path) => self.as4_path = Some(path),
                Err(reason) => return discard(reason),
            },
            code::AS4_AGGREGATOR => self.as4_aggregator = Some(aggregator(value, true)?),
            code::LARGE_COMMUNITY => match items::<12>(value) {
                Some(list) => self.large_communities = sorted(list.iter().map(large_community)),
                None => return withdraw("LARGE_COMMUNITY is not a non-zero multiple of 12 octets"),
            },
            code::IPV6_EXTENDED_COMMUNITIES if items::<20>(value).is_none() => {
                return withdraw("IPV6_EXTENDED_COMMUNITIES is not a non-zero multiple of 20 octets");
            }
            _ => return self.take_unknown(raw),
        }
        Ok(())
    }

    /// RFC 4271 5 and 6.3: unknown attributes travel on if they are optional and transitive, vanish if optional only;
    /// a well-known one that is unknown is an error that RFC 7606 leaves as it was.
    fn take_unknown(&mut self, raw: &Raw<'_>) -> Judged<()> {
        match (raw.flags & flag::OPTIONAL != 0, raw.flags & flag::TRANSITIVE != 0) {
            (true, true) => {
                let value = raw.value.into();
                self.unknown.push(UnknownAttribute { flags: raw.flags & 0xe0, code: raw.code, value });
            }
            (true, false) => {}
            (false, _) => {
                return Err(Bad::Reset(WireError::new(
                    UPDATE,
                    update_error::UNRECOGNIZED_WELL_KNOWN,
                    raw.whole,
                    "unknown attribute that claims to be well-known",
                )));
            }
        }
        Ok(())
    }

    /// The attributes of the announced prefixes, once the mandatory ones are known to be there.
    pub(super) fn into_attributes(mut self, faults: &mut Vec<Fault>) -> Option<PathAttributes> {
        let (as_path, aggregator) = self.merge_four_octet(faults)?;
        self.unknown.sort_unstable_by_key(|attribute| attribute.code);
        Some(PathAttributes {
            origin: self.origin?,
            as_path,
            med: self.med,
            local_pref: self.local_pref,
            atomic_aggregate: self.atomic_aggregate,
            aggregator,
            communities: self.communities,
            extended_communities: self.extended_communities,
            large_communities: self.large_communities,
            originator_id: self.originator_id,
            cluster_list: self.cluster_list,
            unknown: self.unknown,
        })
    }

    /// RFC 6793 4.2.3. From a peer with 4-octet AS numbers there is nothing to merge.
    fn merge_four_octet(&mut self, faults: &mut Vec<Fault>) -> Option<(AsPath, Option<Aggregator>)> {
        let as_path = self.as_path.take()?;
        let as4_path = self.as4_path.take();
        match (self.aggregator, self.as4_aggregator) {
            (Some(aggregator), Some(_)) if aggregator.asn != Asn::TRANS => {
                // Someone who knows only 2 octets has aggregated since: what the AS4 attributes say is out of date.
                faults.push(fault(code::AS4_AGGREGATOR, AttributeDiscard, "AGGREGATOR is newer"));
                return Some((as_path, Some(aggregator)));
            }
            (Some(_), Some(as4)) => self.aggregator = Some(as4),
            (_, None) | (None, Some(_)) => {}
        }
        let as_path = match &as4_path {
            Some(as4) => as_path.merge_as4(as4),
            None => as_path,
        };
        Some((as_path, self.aggregator))
    }
}

/// RFC 7606 7.1.
fn origin(value: &[u8]) -> Judged<Origin> {
    match value {
        [0] => Ok(Origin::Igp),
        [1] => Ok(Origin::Egp),
        [2] => Ok(Origin::Incomplete),
        [_] => withdraw("ORIGIN has an undefined value"),
        _ => withdraw("ORIGIN is not 1 octet"),
    }
}

/// RFC 7606 7.2; RFC 5065 5: an external peer's path has no confederation segments.
fn as_path(value: &[u8], ctx: &DecodeContext) -> Judged<AsPath> {
    match AsPath::decode(value, ctx.four_octet_as) {
        Ok(path) if ctx.peer == PeerType::External && path.has_confed() => {
            withdraw("AS_PATH of an external peer has confederation segments")
        }
        Ok(path) => Ok(path),
        Err(reason) => withdraw(reason),
    }
}

/// RFC 7606 7.3, and RFC 4271 6.3 for an address that cannot be a next hop: the routes are not used, the session stays.
fn next_hop(value: &[u8]) -> Judged<NextHop> {
    let Some(bits) = exactly_u32(value) else {
        return withdraw("NEXT_HOP is not 4 octets");
    };
    let next_hop = NextHop::V4(Ipv4Addr::from_bits(bits));
    if usable(next_hop) { Ok(next_hop) } else { withdraw("next hop cannot be one") }
}

/// RFC 7606 7.7, RFC 6793 6; AS 0 by RFC 7607 2.
fn aggregator(value: &[u8], four_octet: bool) -> Judged<Aggregator> {
    let (asn, id) = match *value {
        [a, b, c, d, ref id @ ..] if four_octet => (u32::from_be_bytes([a, b, c, d]), id),
        [a, b, ref id @ ..] if !four_octet => (u16::from_be_bytes([a, b]).into(), id),
        _ => return discard("AGGREGATOR has the wrong length"),
    };
    let Some(id) = exactly_u32(id) else {
        return discard("AGGREGATOR has the wrong length");
    };
    if asn == 0 {
        return discard("AGGREGATOR holds AS 0");
    }
    Ok(Aggregator { asn: Asn(asn), id: Ipv4Addr::from_bits(id) })
}

fn large_community(octets: &[u8; 12]) -> LargeCommunity {
    let word = |i: usize| u32::from_be_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
    LargeCommunity { global: word(0), local1: word(4), local2: word(8) }
}

/// Communities are sets: equal ones compare equal however the peer ordered them.
fn sorted<T: Ord, C: FromIterator<T> + AsMut<[T]> + Dedup>(list: impl Iterator<Item = T>) -> C {
    let mut list: C = list.collect();
    list.as_mut().sort_unstable();
    list.remove_repeated();
    list
}

/// `dedup` of the two vectors in use.
trait Dedup {
    fn remove_repeated(&mut self);
}

impl<T: PartialEq> Dedup for Vec<T> {
    fn remove_repeated(&mut self) {
        self.dedup();
    }
}

impl<T: PartialEq> Dedup for smallvec::SmallVec<[T; 2]> {
    fn remove_repeated(&mut self) {
        self.dedup();
    }
}

/// RFC 7606 5.3 and 7.11: an MP attribute whose NLRI cannot be located or read ends the session (RFC 4760 7).
fn broken<T>(raw: &Raw<'_>, reason: &'static str) -> Judged<T> {
    Err(Bad::Reset(WireError::new(UPDATE, update_error::OPTIONAL_ATTRIBUTE, raw.whole, reason)))
}

/// RFC 4760 3.
fn mp_reach(raw: &Raw<'_>, ctx: &DecodeContext) -> Judged<MpReach> {
    let &[afi_high, afi_low, safi, next_hop_len, ref rest @ ..] = raw.value else {
        return broken(raw, "MP_REACH_NLRI is too short");
    };
    let Some((next_hop, [_reserved, field @ ..])) = rest.split_at_checked(next_hop_len.into()) else {
        return broken(raw, "MP_REACH_NLRI ends within the next hop");
    };
    let has_nlri = !field.is_empty();
    let Some(family) = family_in_use(afi_high, afi_low, safi, ctx) else {
        return Ok(MpReach { has_nlri, reach: None });
    };
    let Some(next_hop) = mp_next_hop(next_hop, family, ctx) else {
        return broken(raw, "MP_REACH_NLRI next hop has the wrong length for its family");
    };
    let mut nlri = Vec::new();
    if nlri::decode(field, family, ctx.add_path[family], &mut nlri).is_err() {
        return broken(raw, "MP_REACH_NLRI prefixes cannot be read");
    }
    Ok(MpReach { has_nlri, reach: has_nlri.then_some(Reach { family, next_hop, nlri }) })
}

/// RFC 4760 4.
fn mp_unreach(raw: &Raw<'_>, ctx: &DecodeContext) -> Judged<MpUnreach> {
    let &[afi_high, afi_low, safi, ref field @ ..] = raw.value else {
        return broken(raw, "MP_UNREACH_NLRI is too short");
    };
    let Some(family) = family_in_use(afi_high, afi_low, safi, ctx) else {
        return Ok(MpUnreach { family: None, nlri: Vec::new() });
    };
    let mut nlri = Vec::new();
    if nlri::decode(field, family, ctx.add_path[family], &mut nlri).is_err() {
        return broken(raw, "MP_UNREACH_NLRI prefixes cannot be read");
    }
    Ok(MpUnreach { family: Some(family), nlri })
}

/// NLRI of a family that was not negotiated are not looked at (RFC 4760 6).
fn family_in_use(afi_high: u8, afi_low: u8, safi: u8, ctx: &DecodeContext) -> Option<Family> {
    Family::from_afi_safi(u16::from_be_bytes([afi_high, afi_low]), safi)
        .filter(|family| ctx.families[*family])
}

/// Next hop lengths of 4, 16 and 32 octets (RFC 4760 3, RFC 2545 3, RFC 8950 3).
fn mp_next_hop(octets: &[u8], family: Family, ctx: &DecodeContext) -> Option<NextHop> {
    if let (Family::Ipv4Unicast, Ok(address)) = (family, <[u8; 4]>::try_from(octets)) {
        return Some(NextHop::V4(address.into()));
    }
    if family == Family::Ipv4Unicast && !ctx.extended_next_hop {
        return None;
    }
    let ([global], second) = octets.as_chunks::<16>().0.split_at_checked(1)? else { return None };
    let global = Ipv6Addr::from(*global);
    let link_local = match (second, octets.len()) {
        ([], 16) => None,
        ([second], 32) => Some(Ipv6Addr::from(*second)).filter(Ipv6Addr::is_unicast_link_local),
        _ => return None,
    };
    // Without a global address some speakers send :: in its place.
    let global = link_local.filter(|_| global.is_unspecified()).unwrap_or(global);
    Some(NextHop::V6 { global, link_local })
}

/// Whether packets can be sent to it at all.
fn usable(next_hop: NextHop) -> bool {
    match next_hop {
        // 0.0.0.0/8, 127.0.0.0/8, and from 224.0.0.0 on: multicast, reserved, broadcast.
        NextHop::V4(a) => !matches!(a.octets()[0], 0 | 127 | 224..),
        NextHop::V6 { global, .. } => {
            !(global.is_unspecified() || global.is_loopback() || global.is_multicast())
        }
    }
}
