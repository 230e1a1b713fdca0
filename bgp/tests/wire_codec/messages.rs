//! Framing, OPEN, NOTIFICATION and ROUTE-REFRESH: captured bytes, and the errors that RFC 4271 6.1 and 6.2 name.

use crate::support::{external, hex, message, read};
use bytes::BytesMut;
use manx_bgp::types::{Asn, Family};
use manx_bgp::wire::message::{
    AddPathMode, Capability, GracefulRestart, Message, Notification, Open, RefreshKind, RouteRefresh,
};
use manx_bgp::wire::{Framer, MessageKind, keepalive};
use rstest::rstest;

const BIRD_OPEN: &str =
    "ffffffffffffffffffffffffffffffff00450104fde900f00a0900012802260104000100010104000200010200060040
    0a0078000101000002010041040000fde946004700";
const FRR_OPEN: &str = "ffffffffffffffffffffffffffffffff007c0104fde900b40a0900015f0206010400010001020601040002000102028000
    0202020002024600020641040000fde902020600020a450800010101000201010209490705746f722d6200020c400ac07800010100000201000210
    470e0001018000000000020180000000";
const GOBGP_OPEN: &str =
    "ffffffffffffffffffffffffffffffff00410104fde9005a0a0900012402220200490402766d000104000100010104000
    2000141040000fde90506000100010002";

fn open(bytes: &[u8]) -> Result<Open, Notification> {
    match read(bytes, &external()) {
        Ok(Message::Open(open)) => Ok(open),
        Ok(other) => panic!("not an OPEN: {other:?}"),
        Err(error) => Err(error.notification),
    }
}

/// Version 4, AS 65001, hold time 90, identifier 10.0.0.1, and whatever follows the fixed part.
fn open_with(parameters: &[u8]) -> Vec<u8> {
    message(1, &[&[4, 0xfd, 0xe9, 0, 90, 10, 0, 0, 1], parameters].concat())
}

#[test]
fn an_open_of_bird_one_parameter_with_many_capabilities() {
    let open = open(&hex(BIRD_OPEN)).unwrap();
    assert_eq!((open.asn, open.hold_time, open.router_id.to_string()), (Asn(65001), 240, "10.9.0.1".into()));
    let restart = GracefulRestart {
        restart_time: 120,
        families: vec![(Family::Ipv4Unicast, false), (Family::Ipv6Unicast, false)],
        ..GracefulRestart::default()
    };
    assert_eq!(
        open.capabilities,
        [
            Capability::Multiprotocol(Family::Ipv4Unicast),
            Capability::Multiprotocol(Family::Ipv6Unicast),
            Capability::RouteRefresh,
            Capability::ExtendedMessage,
            Capability::GracefulRestart(restart),
            Capability::FourOctetAs(Asn(65001)),
            Capability::EnhancedRouteRefresh,
            Capability::LongLivedGracefulRestart(vec![]),
        ]
    );
}

#[test]
fn an_open_of_frr_one_parameter_for_each_capability() {
    let open = open(&hex(FRR_OPEN)).unwrap();
    assert_eq!(open.capabilities.len(), 11);
    for expected in [
        Capability::AddPath(vec![
            (Family::Ipv4Unicast, AddPathMode::Receive),
            (Family::Ipv6Unicast, AddPathMode::Receive),
        ]),
        Capability::Fqdn { host: "tor-b".into(), domain: String::new() },
        Capability::GracefulRestart(GracefulRestart {
            restarting: true,
            notification: true,
            restart_time: 120,
            families: vec![(Family::Ipv4Unicast, false), (Family::Ipv6Unicast, false)],
        }),
        Capability::LongLivedGracefulRestart(vec![
            (Family::Ipv4Unicast, true, 0),
            (Family::Ipv6Unicast, true, 0),
        ]),
        Capability::Unknown { code: 128, value: vec![] },
    ] {
        assert!(open.capabilities.contains(&expected), "{expected:?} in {:?}", open.capabilities);
    }
}

#[test]
fn an_open_of_gobgp_with_extended_next_hop() {
    let open = open(&hex(GOBGP_OPEN)).unwrap();
    assert!(open.capabilities.contains(&Capability::ExtendedNextHop));
    assert!(open.capabilities.contains(&Capability::Fqdn { host: "vm".into(), domain: String::new() }));
}

#[test]
fn what_we_send_like_bird_is_what_bird_sends() {
    let bytes = hex(BIRD_OPEN);
    let mut out = BytesMut::new();
    open(&bytes).unwrap().encode(&mut out);
    assert_eq!(out, bytes);
}

#[test]
fn rfc6793_the_as_is_that_of_the_capability() {
    let mut sent = open(&hex(BIRD_OPEN)).unwrap();
    sent.asn = Asn(4_200_000_001);
    sent.capabilities = vec![Capability::FourOctetAs(sent.asn)];
    let mut out = BytesMut::new();
    sent.encode(&mut out);
    assert_eq!(&out[20..22], 23456u16.to_be_bytes(), "AS_TRANS in the old field");
    assert_eq!(open(&out).unwrap(), sent);
}

#[test]
fn rfc9072_more_than_255_octets_take_the_extended_form() {
    let mut sent = open(&hex(BIRD_OPEN)).unwrap();
    for code in 200..210 {
        sent.capabilities.push(Capability::Unknown { code, value: vec![code; 60] });
    }
    let mut out = BytesMut::new();
    sent.encode(&mut out);
    assert_eq!(out[28..30], [255, 255]);
    assert_eq!(open(&out).unwrap(), Open { extended: true, ..sent });
}

/// RFC 9072 2: 255, 255, the length of all parameters in two octets, and each parameter with two octets of length; here one
/// for each capability, as FRR writes them with `extended-optional-parameters`.
#[test]
fn rfc9072_2_the_extended_form_is_legal_for_few_parameters() {
    let body = "04 fde9 00b4 0a000002 ff ff 0017 02 0006 0104 00010001 02 0002 0200 02 0006 4104 0000fde9";
    let seen = open(&message(1, &hex(body))).unwrap();
    let capabilities = vec![
        Capability::Multiprotocol(Family::Ipv4Unicast),
        Capability::RouteRefresh,
        Capability::FourOctetAs(Asn(65001)),
    ];
    assert_eq!((seen.extended, &seen.capabilities), (true, &capabilities));
    // Ours puts all into one parameter.
    let mut out = BytesMut::new();
    seen.encode(&mut out);
    let ours = "04 fde9 00b4 0a000002 ff ff 0011 02 000e 0104 00010001 0200 4104 0000fde9";
    assert_eq!(out, message(1, &hex(ours)));
    assert_eq!(open(&out).unwrap(), seen);
}

#[test]
fn rfc9072_2_the_extended_form_is_told_by_the_type_whatever_the_length_octet_says() {
    let parameters = [7, 255, 0, 9, 2, 0, 6, 65, 4, 0, 1, 0, 0];
    assert_eq!(open(&open_with(&parameters)).unwrap().asn, Asn(65536));
    // A real parameter list of 255 octets is not the extended form.
    let mut plain = vec![255, 2, 253, 200, 251];
    plain.extend_from_slice(&[0; 251]);
    assert_eq!(open(&open_with(&plain)).unwrap().capabilities.len(), 1);
}

#[rstest]
#[case::rfc4271_6_2_version("05 fde9 005a 0a000001 00", (2, 1, "0004"))]
#[case::rfc7607_as_0("04 0000 005a 0a000001 00", (2, 2, ""))]
#[case::rfc7607_as_0_in_the_capability("04 fde9 005a 0a000001 08 02 06 41 04 00000000", (2, 2, ""))]
#[case::rfc6286_identifier_0("04 fde9 005a 00000000 00", (2, 3, ""))]
#[case::rfc4271_6_2_unknown_parameter("04 fde9 005a 0a000001 04 01 02 0000", (2, 4, ""))]
#[case::parameters_shorter_than_their_length("04 fde9 005a 0a000001 08 02 02 0200", (2, 0, ""))]
#[case::octets_after_the_parameters("04 fde9 005a 0a000001 00 00", (2, 0, ""))]
#[case::parameter_longer_than_the_list("04 fde9 005a 0a000001 04 02 06 0200", (2, 0, ""))]
#[case::rfc5492_capability_longer_than_the_parameter("04 fde9 005a 0a000001 05 02 03 41 04 00", (2, 0, ""))]
#[case::rfc6793_capability_of_wrong_length("04 fde9 005a 0a000001 06 02 04 41 02 fde9", (2, 0, "4102fde9"))]
#[case::rfc4760_capability_of_wrong_length("04 fde9 005a 0a000001 07 02 05 01 03 000101", (2, 0, "0103000101"))]
#[case::rfc9072_cut_length("04 fde9 005a 0a000001 ff ff 00", (2, 0, ""))]
#[case::rfc9072_length_beyond_the_message("04 fde9 005a 0a000001 ff ff 0009 02", (2, 0, ""))]
fn an_open_that_cannot_be_accepted(#[case] body: &str, #[case] (code, subcode, data): (u8, u8, &str)) {
    assert_eq!(open(&message(1, &hex(body))).unwrap_err(), Notification::new(code, subcode, hex(data)));
}

#[rstest]
#[case::rfc7911_4_unknown_mode(69, "00010104")]
#[case::rfc7911_4_cut(69, "000101")]
#[case::rfc4724_cut(64, "0078 0001")]
#[case::rfc2918_with_a_value(2, "00")]
#[case::rfc8654_with_a_value(6, "00")]
#[case::rfc8950_other_families_only(5, "0001 0080 0002")]
#[case::rfc9494_cut(71, "0001 01 80")]
#[case::host_name_longer_than_its_capability(73, "0961")]
#[case::multicast_is_not_carried(1, "0001 0002")]
fn rfc5492_4_a_capability_that_makes_no_sense_counts_as_not_sent(#[case] code: u8, #[case] value: &str) {
    let value = hex(value);
    let len = u8::try_from(value.len()).unwrap();
    let bytes = open_with(&[&[len + 4, 2, len + 2, code, len], &value[..]].concat());
    assert_eq!(open(&bytes).unwrap().capabilities, [Capability::Unknown { code, value }]);
}

#[test]
fn capabilities_skip_families_that_are_not_carried() {
    let capability = [64, 10, 0x80, 120, 0, 1, 128, 0x80, 0, 2, 1, 0x80];
    let bytes = open_with(&[&[14, 2, 12][..], &capability].concat());
    let expected = GracefulRestart {
        restarting: true,
        notification: false,
        restart_time: 120,
        families: vec![(Family::Ipv6Unicast, true)],
    };
    assert_eq!(open(&bytes).unwrap().capabilities, [Capability::GracefulRestart(expected)]);
}

#[test]
fn long_names_are_cut_to_what_the_capability_can_say() {
    let mut sent = open(&hex(BIRD_OPEN)).unwrap();
    sent.capabilities = vec![Capability::Fqdn { host: "ä".repeat(200), domain: "d".repeat(300) }];
    let mut out = BytesMut::new();
    sent.encode(&mut out);
    let expected = Capability::Fqdn { host: "ä".repeat(63), domain: "d".repeat(126) };
    assert_eq!(open(&out).unwrap().capabilities, [expected]);
}

#[rstest]
#[case::rfc4271_6_1_marker("00ffffffffffffffffffffffffffffff0013 04", (1, 1, ""))]
#[case::marker_wrong_before_the_header_is_whole("ffff00", (1, 1, ""))]
#[case::rfc4271_6_1_shorter_than_a_header("ffffffffffffffffffffffffffffffff0012 04", (1, 2, "0012"))]
#[case::longer_than_4096("ffffffffffffffffffffffffffffffff1001 02", (1, 2, "1001"))]
#[case::open_too_short("ffffffffffffffffffffffffffffffff001c 01", (1, 2, "001c"))]
#[case::update_too_short("ffffffffffffffffffffffffffffffff0016 02", (1, 2, "0016"))]
#[case::notification_too_short("ffffffffffffffffffffffffffffffff0014 03", (1, 2, "0014"))]
#[case::keepalive_with_a_body("ffffffffffffffffffffffffffffffff0014 04", (1, 2, "0014"))]
#[case::route_refresh_too_short("ffffffffffffffffffffffffffffffff0016 05", (1, 2, "0016"))]
#[case::rfc4271_6_1_unknown_type("ffffffffffffffffffffffffffffffff0013 06", (1, 3, "06"))]
#[case::type_0("ffffffffffffffffffffffffffffffff0013 00", (1, 3, "00"))]
fn a_header_that_cannot_be_accepted(#[case] bytes: &str, #[case] (code, subcode, data): (u8, u8, &str)) {
    let mut framer = Framer::new();
    framer.push(&hex(bytes));
    let error = framer.next_frame().unwrap_err();
    assert_eq!(error.notification, Notification::new(code, subcode, hex(data)));
}

#[test]
fn rfc8654_4_longer_messages_once_negotiated_but_not_open() {
    let long = message(2, &[0; 5000]);
    let mut framer = Framer::new();
    framer.allow_extended_messages();
    framer.push(&long);
    assert_eq!(framer.next_frame().unwrap().unwrap().body.len(), 5000);
    framer.push(&message(1, &[0; 5000]));
    assert_eq!(framer.next_frame().unwrap_err().notification.subcode, 2);
}

#[test]
fn a_framer_gives_the_same_messages_however_the_bytes_arrive() {
    let mut stream = hex(BIRD_OPEN);
    stream.extend(message(4, &[]));
    stream.extend(hex(FRR_OPEN));
    for portion in [1, 7, 19, 20, 500] {
        let mut framer = Framer::new();
        let mut kinds = Vec::new();
        for bytes in stream.chunks(portion) {
            framer.push(bytes);
            while let Some(frame) = framer.next_frame().unwrap() {
                kinds.push((frame.kind, frame.body.len()));
            }
        }
        let expected = [(MessageKind::Open, 50), (MessageKind::Keepalive, 0), (MessageKind::Open, 105)];
        assert_eq!(kinds, expected, "in portions of {portion}");
        assert_eq!(framer.buffered(), 0);
    }
}

#[test]
fn keepalive_is_a_header_alone() {
    let mut out = BytesMut::new();
    keepalive(&mut out);
    assert_eq!(out, message(4, &[]));
    assert_eq!(read(&out, &external()).unwrap(), Message::Keepalive);
}

#[test]
fn a_notification_keeps_unknown_codes_and_is_cut_to_4096_octets() {
    let sent = Notification::new(77, 3, vec![9; 5000]);
    let mut out = BytesMut::new();
    sent.encode(&mut out);
    assert_eq!(out.len(), 4096);
    let Message::Notification(back) = read(&out, &external()).unwrap() else { panic!("not a NOTIFICATION") };
    assert_eq!((back.code, back.subcode, back.data.len()), (77, 3, 4075));
}

#[rstest]
#[case(RefreshKind::Request, 0)]
#[case(RefreshKind::Begin, 1)]
#[case(RefreshKind::End, 2)]
fn route_refresh_in_its_three_kinds(#[case] kind: RefreshKind, #[case] subtype: u8) {
    for (family, afi) in [(Family::Ipv4Unicast, 1), (Family::Ipv6Unicast, 2)] {
        let sent = RouteRefresh { family, kind };
        let mut out = BytesMut::new();
        sent.encode(&mut out);
        assert_eq!(out, message(5, &[0, afi, subtype, 1]));
        assert_eq!(read(&out, &external()).unwrap(), Message::RouteRefresh(sent));
    }
}

#[test]
fn rfc7313_5_unknown_subtypes_are_ignored_and_markers_of_wrong_length_are_answered() {
    assert!(matches!(read(&message(5, &[0, 1, 3, 1]), &external()), Ok(Message::Ignored(_))));
    assert!(matches!(read(&message(5, &[0, 1, 0, 128]), &external()), Ok(Message::Ignored(_))));
    let long = message(5, &[0, 1, 1, 1, 9]);
    assert_eq!(read(&long, &external()).unwrap_err().notification, Notification::new(7, 1, long));
    let with_orf = message(5, &[0, 1, 0, 1, 1, 64, 0, 0]);
    assert!(matches!(read(&with_orf, &external()), Ok(Message::RouteRefresh(_))));
}
