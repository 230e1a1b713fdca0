//! What is encoded is read back, whatever was negotiated; and messages are as full as they may be.

use bytes::BytesMut;
use manx_bgp::types::{Asn, Family, PeerType, RouterId};
use manx_bgp::wire::attribute::{AsPath, NextHop, PathAttributes};
use manx_bgp::wire::message::{Capability, Message, Nlri, Open, Update};
use manx_bgp::wire::{
    EncodeContext, EncodeError, EncodedAttributes, Framer, decode, end_of_rib, reach, withdraw,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::generate::{announcement, asn, capability, context, far_end, nlri};

/// Encodes all prefixes, in as many messages as it takes.
fn write(
    ctx: &EncodeContext,
    family: Family,
    next_hop: NextHop,
    attributes: &PathAttributes,
    prefixes: &[Nlri],
) -> Result<BytesMut, EncodeError> {
    let encoded = EncodedAttributes::new(attributes, ctx);
    let mut out = BytesMut::new();
    let mut prefixes = prefixes.iter().copied().peekable();
    while reach(&mut out, ctx, &encoded, next_hop, family, &mut prefixes)? > 0 {}
    Ok(out)
}

/// Reads all messages of the bytes, with their lengths.
fn read_all(bytes: &[u8], ctx: &EncodeContext) -> Vec<(usize, Update)> {
    let mut framer = Framer::new();
    if ctx.extended_message {
        framer.allow_extended_messages();
    }
    framer.push(bytes);
    let mut updates = Vec::new();
    while let Some(frame) = framer.next_frame().unwrap() {
        match decode(frame, &far_end(ctx)).unwrap() {
            Message::Update(update) => updates.push((frame.body.len() + 19, *update)),
            other => panic!("not an UPDATE: {other:?}"),
        }
    }
    assert_eq!(framer.buffered(), 0);
    updates
}

/// What of the attributes survives the way to this peer.
fn as_received(attributes: &PathAttributes, ctx: &EncodeContext) -> PathAttributes {
    let mut expected = attributes.clone();
    if ctx.peer == PeerType::External {
        expected.local_pref = None;
        expected.originator_id = None;
        expected.cluster_list.clear();
    }
    expected
}

/// Sequences that touch are one: the merge of AS_PATH and AS4_PATH does not keep where they were cut.
fn joined(path: &AsPath) -> String {
    path.to_string()
}

proptest! {
    #[test]
    fn announcements_are_read_back((ctx, family, next_hop, attributes, prefixes) in announcement(context(), 1500)) {
        let bytes = write(&ctx, family, next_hop, &attributes, &prefixes).unwrap();
        let updates = read_all(&bytes, &ctx);
        let expected = as_received(&attributes, &ctx);
        let mut seen = Vec::new();
        for (len, update) in updates {
            prop_assert!(len <= ctx.max_len());
            prop_assert!(update.faults.is_empty() && update.withdrawn.is_empty(), "{:?}", update.faults);
            prop_assert_eq!(update.reach.len(), 1);
            prop_assert_eq!((update.reach[0].family, update.reach[0].next_hop), (family, next_hop));
            let mut received = update.attributes.unwrap();
            prop_assert_eq!(joined(&received.as_path), joined(&expected.as_path));
            received.as_path = expected.as_path.clone();
            prop_assert_eq!(&received, &expected);
            seen.extend(update.reach.into_iter().flat_map(|r| r.nlri));
        }
        prop_assert_eq!(seen, prefixes);
    }

    #[test]
    fn withdrawals_are_read_back(
        (ctx, family, prefixes) in (context(), crate::generate::family())
            .prop_flat_map(|(ctx, family)| (Just(ctx), Just(family), nlri(family, ctx.add_path[family], 1500)))
    ) {
        let mut out = BytesMut::new();
        let mut left = prefixes.iter().copied().peekable();
        while withdraw(&mut out, &ctx, family, &mut left) > 0 {}
        let updates = read_all(&out, &ctx);
        prop_assert!(updates.iter().all(|(len, u)| *len <= ctx.max_len() && u.reach.is_empty() && u.end_of_rib.is_none()));
        let seen: Vec<_> = updates.into_iter().flat_map(|(_, u)| u.withdrawn).collect();
        prop_assert_eq!(seen, prefixes);
    }

    #[test]
    fn opens_are_read_back(
        asn in asn(), hold_time: u16, id in 1u32.., capabilities in vec(capability(), 0..12), extended: bool
    ) {
        let router_id = RouterId::new(id.into()).unwrap();
        let capabilities = std::iter::once(Capability::FourOctetAs(asn)).chain(capabilities).collect();
        let open = Open { asn, hold_time, router_id, capabilities, extended };
        let mut out = BytesMut::new();
        open.encode(&mut out);
        let mut framer = Framer::new();
        framer.push(&out);
        let frame = framer.next_frame().unwrap().unwrap();
        let ctx = crate::support::external();
        let Message::Open(seen) = decode(frame, &ctx).unwrap() else { panic!("an OPEN") };
        // It is also written where the other form has no room.
        prop_assert!(seen.extended || !extended);
        prop_assert_eq!(Open { extended: seen.extended, ..open }, seen);
    }
}

/// Attributes of little more than the mandatory ones.
fn plain(asns: &[u32]) -> PathAttributes {
    PathAttributes {
        origin: manx_bgp::wire::attribute::Origin::Igp,
        as_path: AsPath::sequence(asns.iter().copied().map(Asn)),
        med: None,
        local_pref: None,
        atomic_aggregate: false,
        aggregator: None,
        communities: Default::default(),
        extended_communities: vec![],
        large_communities: vec![],
        originator_id: None,
        cluster_list: vec![],
        unknown: vec![],
    }
}

fn blocks(count: u32) -> Vec<Nlri> {
    (0..count)
        .map(|i| {
            let prefix = std::net::IpAddr::V4((0x0a00_0000 + (i << 8)).into());
            Nlri { prefix: manx_bgp::types::Prefix::new(prefix, 24).unwrap(), path_id: 0 }
        })
        .collect()
}

#[test]
fn messages_are_filled_to_the_last_octet_that_fits() {
    let next_hop = NextHop::V4([192, 0, 2, 1].into());
    let ctx = EncodeContext::modern(PeerType::External);
    let bytes = write(&ctx, Family::Ipv4Unicast, next_hop, &plain(&[65001]), &blocks(5000)).unwrap();
    let lengths: Vec<_> = read_all(&bytes, &ctx).iter().map(|(len, _)| *len).collect();
    assert_eq!(lengths.len(), 5, "4051 octets for prefixes of 4 in each: {lengths:?}");
    assert!(lengths[..4].iter().all(|len| (4093..=4096).contains(len)), "{lengths:?}");
    let extended = EncodeContext { extended_message: true, ..ctx };
    let bytes = write(&extended, Family::Ipv4Unicast, next_hop, &plain(&[65001]), &blocks(5000)).unwrap();
    assert_eq!(read_all(&bytes, &extended).len(), 1);
}

#[test]
fn rfc4271_5_attributes_come_in_ascending_order_and_mp_reach_first() {
    let codes = |bytes: &[u8]| {
        let mut list = &bytes[23..];
        let mut codes = Vec::new();
        while let [flags, code, rest @ ..] = list {
            let (head, len) = match flags & 0x10 {
                0 => (1, usize::from(rest[0])),
                _ => (2, usize::from(u16::from_be_bytes([rest[0], rest[1]]))),
            };
            codes.push(*code);
            list = &rest[head + len..];
            if list.len() == 4 {
                break;
            }
        }
        codes
    };
    let mut attributes = plain(&[65001]);
    attributes.med = Some(1);
    attributes.communities = [7].into_iter().collect();
    let ctx = EncodeContext::modern(PeerType::External);
    let next_hop = NextHop::V4([192, 0, 2, 1].into());
    let classic = write(&ctx, Family::Ipv4Unicast, next_hop, &attributes, &blocks(1)).unwrap();
    assert_eq!(codes(&classic), [1, 2, 3, 4, 8]);
    let v6 = Nlri { prefix: "fd00::/24".parse().unwrap(), path_id: 0 };
    let next_hop = NextHop::V6 { global: "fd00::1".parse().unwrap(), link_local: None };
    let mp = write(&ctx, Family::Ipv6Unicast, next_hop, &attributes, &[v6]).unwrap();
    assert_eq!(codes(&mp), [14, 1, 2, 4, 8], "RFC 7606 5.1");
}

#[test]
fn attributes_that_leave_no_room_are_an_error_that_writes_nothing() {
    let mut attributes = plain(&[65001]);
    attributes.communities = (0..1020).collect();
    let ctx = EncodeContext::modern(PeerType::External);
    let next_hop = NextHop::V4([192, 0, 2, 1].into());
    let encoded = EncodedAttributes::new(&attributes, &ctx);
    let mut out = BytesMut::from(&b"before"[..]);
    let prefixes = blocks(2);
    let mut left = prefixes.iter().copied().peekable();
    let family = Family::Ipv4Unicast;
    let error = reach(&mut out, &ctx, &encoded, next_hop, family, &mut left).unwrap_err();
    assert_eq!(error, EncodeError::AttributesTooLong { octets: encoded.octets(), max: 4096 });
    assert_eq!((&out[..], left.count()), (&b"before"[..], 2));
    let extended = EncodeContext { extended_message: true, ..ctx };
    assert!(write(&extended, family, next_hop, &attributes, &prefixes).is_ok());
    attributes.communities = (0..20_000).collect();
    assert!(
        write(&extended, family, next_hop, &attributes, &prefixes).is_err(),
        "80,000 octets fit no message"
    );
}

#[test]
fn a_next_hop_that_does_not_go_with_the_family_is_an_error() {
    let ctx = EncodeContext::modern(PeerType::External);
    let v4 = NextHop::V4([192, 0, 2, 1].into());
    let v6 = NextHop::V6 { global: "fd00::1".parse().unwrap(), link_local: None };
    let prefix = Nlri { prefix: "fd00::/24".parse().unwrap(), path_id: 0 };
    let no = Err(EncodeError::NextHopFamily);
    assert_eq!(write(&ctx, Family::Ipv6Unicast, v4, &plain(&[]), &[prefix]), no);
    assert_eq!(write(&ctx, Family::Ipv4Unicast, v6, &plain(&[]), &blocks(1)), no, "RFC 8950 not negotiated");
}

#[test]
fn no_prefixes_no_message() {
    let ctx = EncodeContext::modern(PeerType::Internal);
    let next_hop = NextHop::V4([192, 0, 2, 1].into());
    assert!(write(&ctx, Family::Ipv4Unicast, next_hop, &plain(&[]), &[]).unwrap().is_empty());
    let mut out = BytesMut::new();
    assert_eq!(withdraw(&mut out, &ctx, Family::Ipv6Unicast, &mut std::iter::empty().peekable()), 0);
    assert!(out.is_empty());
}

#[test]
fn rfc4724_2_end_of_rib_is_read_back() {
    for family in Family::ALL {
        let mut out = BytesMut::new();
        end_of_rib(&mut out, family);
        let ctx = EncodeContext::modern(PeerType::External);
        assert_eq!(read_all(&out, &ctx)[0].1.end_of_rib, Some(family));
    }
}

#[test]
fn rfc6793_4_2_2_an_old_speaker_gets_as4_attributes_only_when_needed() {
    let old = EncodeContext { four_octet_as: false, ..EncodeContext::modern(PeerType::External) };
    let small = EncodedAttributes::new(&plain(&[65001, 65002]), &old);
    let big = EncodedAttributes::new(&plain(&[65001, 70000]), &old);
    assert_eq!(small.octets(), 4 + 3 + 6);
    assert_eq!(big.octets(), 4 + 3 + 6 + 3 + 10);
}
