//! RFC 7606 in the codec: the rows of the table, and what does not fit into a row.

use crate::support::{TEN, attribute, external, hex, internal, mandatory, prefixes, read_update, update};
use manx_bgp::types::{Asn, Family, PerFamily};
use manx_bgp::wire::attribute::NextHop;
use manx_bgp::wire::message::{FaultOutcome, Notification};
use manx_bgp::wire::{DecodeContext, WireError};
use rstest::rstest;

use crate::table::{self, Outcome, Sender, VICTIM, VICTIM_V6};
use FaultOutcome::{AttributeDiscard, TreatAsWithdraw};

/// The mandatory attributes with one of them replaced, or one more.
fn with(flags: u8, code: u8, value: &[u8]) -> Vec<Vec<u8>> {
    let mut list: Vec<_> = mandatory().into_iter().filter(|a| a[1] != code).collect();
    list.push(attribute(flags, code, value));
    list
}

fn notification(result: Result<manx_bgp::wire::message::Update, WireError>) -> Notification {
    result.expect_err("a session reset").notification
}

const MP_REACH_V6: &str = "0002 01 10 fd000000000000000000000000000001 00 20 fd500000";

/// Each row of the table, as decoded: over TCP the same rows run against a whole speaker.
#[rstest]
#[case::external(Sender::External { asn: 65001 }, external())]
#[case::internal(Sender::Internal, internal())]
fn every_row_of_the_table_has_its_outcome(#[case] sender: Sender, #[case] ctx: DecodeContext) {
    let mut wrong = Vec::new();
    for row in table::rows() {
        let bytes = row.message(sender);
        let seen = match read_update(&bytes, &ctx) {
            Err(error) => {
                let Notification { code, subcode, data } = error.notification;
                // RFC 4271 6.3: these two show the attribute.
                if (code, subcode) == (3, 9) || (code, subcode) == (3, 2) {
                    assert!(bytes.windows(data.len().max(2)).any(|w| w == data), "{row:?}: {data:?}");
                }
                Outcome::Reset(code, subcode)
            }
            Ok(update) => {
                let withdrawn = prefixes(&update.withdrawn);
                let (v4, v6) = row.announces();
                let gone = |prefix: &str| withdrawn.iter().any(|w| w == prefix);
                let outcomes: Vec<_> = update.faults.iter().map(|f| f.outcome).collect();
                if outcomes.contains(&TreatAsWithdraw) {
                    assert!(update.reach.is_empty() && update.attributes.is_none(), "{row:?}");
                    assert!((!v4 || gone(VICTIM)) && (!v6 || gone(VICTIM_V6)), "{row:?}: {withdrawn:?}");
                    Outcome::Withdraw
                } else {
                    assert!(!update.reach.is_empty() && !gone(VICTIM), "{row:?}: {withdrawn:?}");
                    if outcomes.contains(&AttributeDiscard) { Outcome::Discard } else { Outcome::Ok }
                }
            }
        };
        if seen != row.expected(sender) {
            wrong.push(format!("{}: {seen:?}, expected {:?}", row.name, row.expected(sender)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[rstest]
#[case::as4_path(17, "0201 0000")]
#[case::as4_path_of_confederations_only(17, "0301 00010000")]
#[case::as4_aggregator(18, "0000")]
fn rfc6793_6_malformed_as4_attributes_from_an_old_speaker_are_discarded(
    #[case] code: u8,
    #[case] value: &str,
) {
    let old = DecodeContext { four_octet_as: false, ..external() };
    let mut attributes = with(0xc0, code, &hex(value));
    attributes[1] = attribute(0x40, 2, &hex("0201 fde9"));
    let update = read_update(&update(&[], &attributes, TEN), &old).unwrap();
    assert_eq!(update.reach.len(), 1);
    assert_eq!(update.attributes.unwrap().as_path.to_string(), "65001");
}

#[test]
fn s3g_of_repeated_attributes_the_first_counts() {
    let mut list = mandatory();
    list.push(attribute(0x80, 4, &[0, 0, 0, 5]));
    list.push(attribute(0x80, 4, &[0, 0, 0, 6]));
    list.push(attribute(0x40, 1, &[2]));
    let update = read_update(&update(&[], &list, TEN), &external()).unwrap();
    let attributes = update.attributes.unwrap();
    assert_eq!((attributes.med, attributes.origin as u8), (Some(5), 0));
    assert!(update.faults.iter().all(|f| f.outcome == AttributeDiscard) && update.faults.len() == 2);
}

#[test]
fn s5_2_broken_attributes_without_reachable_nlri_reset_the_session() {
    let only_withdrawn = update(TEN, &[attribute(0x40, 1, &[9])], &[]);
    assert_eq!(notification(read_update(&only_withdrawn, &external())), Notification::new(3, 1, []));
    let discard_is_no_reason = update(TEN, &[attribute(0x40, 6, &[9])], &[]);
    assert_eq!(prefixes(&read_update(&discard_is_no_reason, &external()).unwrap().withdrawn), ["10.0.0.0/8"]);
    let unreach = attribute(0xc0, 15, &hex("0002 01 20 fd500000"));
    let flags_alone = read_update(&update(&[], &[unreach], &[]), &external()).unwrap();
    assert_eq!(prefixes(&flags_alone.withdrawn), ["fd50::/32"], "MP_UNREACH_NLRI alone cannot hide others");
}

#[test]
fn rfc4271_5_unknown_transitive_attributes_are_kept_and_others_dropped() {
    let mut list = mandatory();
    list.push(attribute(0xcf, 99, &[1, 2]));
    list.push(attribute(0x80, 98, &[3]));
    list.push(attribute(0xe0, 35, &[0, 0, 0, 1]));
    let update = read_update(&update(&[], &list, TEN), &external()).unwrap();
    assert!(update.faults.is_empty());
    let unknown = update.attributes.unwrap().unknown;
    let seen: Vec<_> = unknown.iter().map(|a| (a.code, a.flags, a.value.len())).collect();
    assert_eq!(seen, [(35, 0xe0, 4), (99, 0xc0, 2)], "sorted by code, low flag bits cleared");
}

#[test]
fn rfc4271_4_3_extended_length_is_legal_on_short_attributes_and_low_flag_bits_mean_nothing() {
    let list = [
        attribute(0x5f, 1, &[0]),
        attribute(0x50, 2, &hex("0201 0000fde9")),
        attribute(0x47, 3, &[192, 0, 2, 1]),
    ];
    let update = read_update(&update(&[], &list, TEN), &external()).unwrap();
    assert!(update.faults.is_empty());
    assert_eq!(update.attributes.unwrap().as_path.first(), Some(Asn(65001)));
}

#[test]
fn rfc4271_4_3_a_prefix_both_withdrawn_and_announced_is_announced() {
    let mut list = mandatory();
    list.push(attribute(0x80, 14, &hex(MP_REACH_V6)));
    list.push(attribute(0x80, 15, &hex("0002 01 20 fd500000 20 fd510000")));
    let bytes = update(&[8, 10, 16, 11, 0], &list, TEN);
    let update = read_update(&bytes, &external()).unwrap();
    assert_eq!(prefixes(&update.withdrawn), ["11.0.0.0/16", "fd51::/32"]);
    assert_eq!(update.reach.len(), 2);
}

#[test]
fn rfc7911_path_identifiers_tell_withdrawn_from_announced() {
    let ctx = DecodeContext { add_path: PerFamily { ipv4: true, ipv6: false }, ..external() };
    let bytes = update(&[0, 0, 0, 1, 8, 10, 0, 0, 0, 2, 8, 10], &mandatory(), &[0, 0, 0, 2, 8, 10]);
    let update = read_update(&bytes, &ctx).unwrap();
    assert_eq!(update.withdrawn.iter().map(|n| n.path_id).collect::<Vec<_>>(), [1]);
    assert_eq!(update.reach[0].nlri[0].path_id, 2);
}

#[rstest]
#[case::ipv4(update(&[], &[], &[]), Family::Ipv4Unicast)]
#[case::ipv6(update(&[], &[attribute(0x80, 15, &[0, 2, 1])], &[]), Family::Ipv6Unicast)]
#[case::ipv4_in_mp_unreach(update(&[], &[attribute(0x90, 15, &[0, 1, 1])], &[]), Family::Ipv4Unicast)]
fn rfc4724_2_end_of_rib(#[case] bytes: Vec<u8>, #[case] family: Family) {
    let seen = read_update(&bytes, &external()).unwrap();
    assert_eq!(seen.end_of_rib, Some(family));
    assert!(seen.withdrawn.is_empty() && seen.reach.is_empty() && seen.faults.is_empty());
    let neither = DecodeContext { families: PerFamily::both(false), ..external() };
    assert_eq!(
        read_update(&bytes, &neither).unwrap().end_of_rib,
        None,
        "not for a family that is not in use"
    );
}

#[test]
fn an_empty_mp_unreach_beside_other_things_is_no_end_of_rib() {
    let unreach = attribute(0x80, 15, &[0, 2, 1]);
    let withdrawn = read_update(&update(TEN, std::slice::from_ref(&unreach), &[]), &external()).unwrap();
    assert_eq!(withdrawn.end_of_rib, None);
    let attributes = [unreach, attribute(0x40, 1, &[0])];
    assert_eq!(read_update(&update(&[], &attributes, &[]), &external()).unwrap().end_of_rib, None);
    let foreign = update(&[], &[attribute(0x80, 15, &[0, 1, 128])], &[]);
    assert_eq!(read_update(&foreign, &external()).unwrap(), Default::default());
}

#[test]
fn rfc4760_6_families_not_in_use_are_skipped_and_the_rest_is_used() {
    let mut list = mandatory();
    list.push(attribute(
        0x80,
        14,
        &hex("0001 80 0c 0000000000000000c0000201 00 70 ffffff00000000000000000a01"),
    ));
    let mixed = read_update(&update(&[], &list, TEN), &external()).unwrap();
    assert_eq!(mixed.reach.len(), 1);
    let only_v6 = DecodeContext { families: PerFamily { ipv4: false, ipv6: true }, ..external() };
    let mut list = mandatory();
    list.push(attribute(0x80, 14, &hex(MP_REACH_V6)));
    let update = read_update(&update(&[8, 11], &list, TEN), &only_v6).unwrap();
    assert_eq!(prefixes(&update.reach[0].nlri), ["fd50::/32"]);
    assert!(update.withdrawn.is_empty() && update.reach.len() == 1);
}

#[test]
fn rfc2545_3_a_next_hop_of_32_octets_keeps_the_link_local_address() {
    let both = "0002 01 20 fd000000000000000000000000000001 fe800000000000000000000000000009 00 20 fd500000";
    let no_global =
        "0002 01 20 00000000000000000000000000000000 fe800000000000000000000000000009 00 20 fd500000";
    let link_local_only = "0002 01 10 fe800000000000000000000000000009 00 20 fd500000";
    let link_local = "fe80::9".parse().unwrap();
    for (value, expected) in [
        (both, NextHop::V6 { global: "fd00::1".parse().unwrap(), link_local: Some(link_local) }),
        (no_global, NextHop::V6 { global: link_local, link_local: Some(link_local) }),
        (link_local_only, NextHop::V6 { global: link_local, link_local: None }),
    ] {
        let mut list = mandatory();
        list.push(attribute(0x80, 14, &hex(value)));
        assert_eq!(read_update(&update(&[], &list, &[]), &external()).unwrap().reach[0].next_hop, expected);
    }
}

#[test]
fn rfc8950_ipv4_prefixes_may_have_an_ipv6_next_hop_once_negotiated() {
    let ctx = DecodeContext { extended_next_hop: true, ..external() };
    let mut list: Vec<_> = mandatory().into_iter().filter(|a| a[1] != 3).collect();
    list.push(attribute(0x80, 14, &hex("0001 01 10 fe800000000000000000000000000009 00 08 0a")));
    let update = read_update(&update(&[], &list, &[]), &ctx).unwrap();
    assert_eq!(prefixes(&update.reach[0].nlri), ["10.0.0.0/8"]);
    assert_eq!(update.reach[0].next_hop.addr().to_string(), "fe80::9");
}

#[test]
fn ipv4_prefixes_in_mp_reach_with_an_ipv4_next_hop_are_accepted() {
    let mut list: Vec<_> = mandatory().into_iter().filter(|a| a[1] != 3).collect();
    list.push(attribute(0x80, 14, &hex("0001 01 04 c0000209 00 08 0a")));
    let update = read_update(&update(&[], &list, &[]), &external()).unwrap();
    assert_eq!(update.reach[0].next_hop.addr().to_string(), "192.0.2.9");
}

#[test]
fn rfc6793_4_2_3_as_path_and_as4_path_are_merged_from_an_old_speaker() {
    let old = DecodeContext { four_octet_as: false, ..external() };
    let list = [
        attribute(0x40, 1, &[0]),
        attribute(0x40, 2, &hex("0203 fde9 5ba0 5ba0")),
        attribute(0x40, 3, &[192, 0, 2, 1]),
        attribute(0xc0, 7, &hex("5ba0 0a000001")),
        attribute(0xc0, 17, &hex("0202 00010000 00020000")),
        attribute(0xc0, 18, &hex("00020000 0a000002")),
    ];
    let merged = read_update(&update(&[], &list, TEN), &old).unwrap();
    let attributes = merged.attributes.unwrap();
    assert_eq!(attributes.as_path.to_string(), "65001 65536 131072");
    let aggregator = attributes.aggregator.unwrap();
    assert_eq!((aggregator.asn, aggregator.id.to_string()), (Asn(131_072), "10.0.0.2".into()));

    let mut list = list;
    list[3] = attribute(0xc0, 7, &hex("fde9 0a000001"));
    let newer = read_update(&update(&[], &list, TEN), &old).unwrap();
    let attributes = newer.attributes.unwrap();
    assert_eq!(
        attributes.as_path.to_string(),
        "65001 23456 23456",
        "an AGGREGATOR without AS_TRANS makes both void"
    );
    assert_eq!(attributes.aggregator.unwrap().asn, Asn(65001));
}

#[test]
fn communities_are_sets() {
    let mut list = mandatory();
    list.push(attribute(0xc0, 8, &hex("fde90007 fde90001 fde90007")));
    list.push(attribute(
        0xc0,
        32,
        &hex("0000000200000000000000000000000100000000000000000000000200000000 00000000"),
    ));
    let attributes = read_update(&update(&[], &list, TEN), &external()).unwrap().attributes.unwrap();
    assert_eq!(attributes.communities.as_slice(), [0xfde9_0001, 0xfde9_0007]);
    assert_eq!(attributes.large_communities.iter().map(|c| c.global).collect::<Vec<_>>(), [1, 2]);
}

#[rstest]
#[case::bird(
    "005302000000394001010040020a02020000fde9fa56ea014003040a090001c00804fde90007c010080002fde900000009c0200c0000fde900
     00000100000002100a32",
    "10.50.0.0/16 via 10.9.0.1 path 65001 4200000001"
)]
#[case::bird_ipv6(
    "005b0200000044900e003300020120fd000009000000000000000000000001fe80000000000000608a1afffe83f8ab0020fd50000040fd510000
     000000014001010040020602010000fde9",
    "fd50::/32 fd51:0:0:1::/64 via fd00:9::1 path 65001"
)]
#[case::frr_with_an_extended_length_as_path(
    "003a020000001c400101005002000602010000fde94003040a09000180040400000000100a3c180a3d00",
    "10.60.0.0/16 10.61.0.0/24 via 10.9.0.1 path 65001"
)]
#[case::frr_aggregate(
    "0044020000002a400101005002000602010000fde94003040a09000180040400000000400600c007080000fde9000000000f0a3c",
    "10.60.0.0/15 via 10.9.0.1 path 65001"
)]
#[case::gobgp_ipv6(
    "0041020000002a4001010240020602010000fde9800e1a00020110fd0000090000000000000000000000010020fd980000",
    "fd98::/32 via fd00:9::1 path 65001"
)]
fn updates_as_other_daemons_send_them(#[case] rest: &str, #[case] expected: &str) {
    let bytes = [vec![0xff; 16], hex(rest)].concat();
    let update = read_update(&bytes, &external()).unwrap();
    assert!(update.faults.is_empty(), "{:?}", update.faults);
    let reach = &update.reach[0];
    let path = &update.attributes.unwrap().as_path;
    let seen = format!("{} via {} path {path}", prefixes(&reach.nlri).join(" "), reach.next_hop.addr());
    assert_eq!(seen, expected);
}
