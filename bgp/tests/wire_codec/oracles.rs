//! Independent implementations read what we write, and see what we meant.

use bgpkit_parser::models::{
    AsPathSegment, AsnLength, AttributeValue, BgpMessage, BgpUpdateMessage, CapabilityValue, NextHopAddress,
    ParamValue,
};
use bgpkit_parser::parser::bgp::messages::parse_bgp_message;
use bytes::{Bytes, BytesMut};
use manx_bgp::types::{Family, PeerType, RouterId};
use manx_bgp::wire::attribute::{AsPath, NextHop, PathAttributes, SegmentKind};
use manx_bgp::wire::message::{Capability, Nlri, Open};
use manx_bgp::wire::{EncodeContext, EncodedAttributes, end_of_rib, reach, withdraw};
use proptest::prelude::*;
use routecore::bgp::message::update::{SessionConfig, UpdateMessage};

use crate::generate::{announcement, context, family, nlri};

/// Contexts whose messages the oracles can read without a session of their own.
fn plain_context() -> impl Strategy<Value = EncodeContext> {
    context().prop_map(|ctx| EncodeContext {
        add_path: manx_bgp::types::PerFamily::both(false),
        extended_message: false,
        ..ctx
    })
}

fn bgpkit(bytes: &BytesMut, ctx: &EncodeContext) -> BgpUpdateMessage {
    let width = if ctx.four_octet_as { AsnLength::Bits32 } else { AsnLength::Bits16 };
    match parse_bgp_message(&mut Bytes::copy_from_slice(bytes), false, &width).unwrap() {
        BgpMessage::Update(update) => update,
        other => panic!("not an UPDATE: {other:?}"),
    }
}

/// The whole of an UPDATE as bgpkit-parser sees it, one line for each attribute.
fn lines(update: &BgpUpdateMessage) -> Vec<String> {
    let mut lines: Vec<String> = update
        .attributes
        .iter()
        .filter_map(|value| {
            Some(match value {
                AttributeValue::Origin(origin) => format!("origin {}", *origin as u8),
                AttributeValue::AsPath(path) => format!("path {}", bgpkit_path(path)),
                AttributeValue::As4Path(path) => format!("path4 {}", bgpkit_path(path)),
                AttributeValue::NextHop(address) => format!("next hop {address}"),
                AttributeValue::MultiExitDiscriminator(med) => format!("med {med}"),
                AttributeValue::LocalPreference(value) => format!("local-pref {value}"),
                AttributeValue::AtomicAggregate => "atomic".into(),
                AttributeValue::OriginatorId(id) => format!("originator {id}"),
                AttributeValue::Clusters(list) => format!("clusters {list:?}"),
                AttributeValue::LargeCommunities(list) => {
                    format!(
                        "large {:?}",
                        list.iter().map(|c| (c.global_admin, c.local_data)).collect::<Vec<_>>()
                    )
                }
                AttributeValue::MpReachNlri(nlri) => {
                    let next_hop = match nlri.next_hop.unwrap() {
                        NextHopAddress::Ipv4(a) => a.to_string(),
                        NextHopAddress::Ipv6(a) => a.to_string(),
                        NextHopAddress::Ipv6LinkLocal(a, b) => format!("{a} {b}"),
                        other => panic!("{other:?}"),
                    };
                    let prefixes: Vec<_> = nlri.prefixes.iter().map(|p| p.prefix.to_string()).collect();
                    format!("mp next hop {next_hop} {}", prefixes.join(" "))
                }
                _ => return None,
            })
        })
        .collect();
    lines.sort();
    lines
}

fn bgpkit_path(path: &bgpkit_parser::models::AsPath) -> String {
    path.iter_segments()
        .map(|segment| {
            let (name, asns) = match segment {
                AsPathSegment::AsSequence(asns) => ("seq", asns),
                AsPathSegment::AsSet(asns) => ("set", asns),
                other => panic!("{other:?}"),
            };
            format!("{name}{:?}", asns.iter().map(|a| a.to_u32()).collect::<Vec<_>>())
        })
        .collect()
}

fn path(path: &AsPath, four_octet: bool) -> String {
    path.segments
        .iter()
        .map(|segment| {
            let name = if segment.kind == SegmentKind::Set { "set" } else { "seq" };
            let asns = segment.asns.iter().map(|a| if four_octet { a.0 } else { a.to_two_octets().into() });
            format!("{name}{:?}", asns.collect::<Vec<_>>())
        })
        .collect()
}

/// What the oracle ought to see.
fn expected(
    ctx: &EncodeContext,
    family: Family,
    next_hop: NextHop,
    a: &PathAttributes,
    prefixes: &[Nlri],
) -> Vec<String> {
    let internal = ctx.peer == PeerType::Internal;
    let mut lines =
        vec![format!("origin {}", a.origin as u8), format!("path {}", path(&a.as_path, ctx.four_octet_as))];
    if !ctx.four_octet_as && a.as_path.iter().any(|asn| asn.0 > 65535) {
        lines.push(format!("path4 {}", path(&a.as_path, true)));
    }
    lines.extend(a.med.map(|med| format!("med {med}")));
    lines.extend(a.local_pref.filter(|_| internal).map(|value| format!("local-pref {value}")));
    lines.extend(a.atomic_aggregate.then(|| "atomic".into()));
    lines.extend(a.originator_id.filter(|_| internal).map(|id| format!("originator {id}")));
    if internal && !a.cluster_list.is_empty() {
        lines
            .push(format!("clusters {:?}", a.cluster_list.iter().map(|id| id.to_bits()).collect::<Vec<_>>()));
    }
    if !a.large_communities.is_empty() {
        let list: Vec<_> = a.large_communities.iter().map(|c| (c.global, [c.local1, c.local2])).collect();
        lines.push(format!("large {list:?}"));
    }
    let shown: Vec<_> = prefixes.iter().map(|n| n.prefix.to_string()).collect();
    match (family, next_hop) {
        (Family::Ipv4Unicast, NextHop::V4(address)) => lines.push(format!("next hop {address}")),
        (_, NextHop::V4(address)) => lines.push(format!("mp next hop {address} {}", shown.join(" "))),
        (_, NextHop::V6 { global, link_local: None }) => {
            lines.push(format!("mp next hop {global} {}", shown.join(" ")));
        }
        (_, NextHop::V6 { global, link_local: Some(second) }) => {
            lines.push(format!("mp next hop {global} {second} {}", shown.join(" ")));
        }
    }
    lines.sort();
    lines
}

proptest! {
    #[test]
    fn bgpkit_reads_our_announcements(
        (ctx, family, next_hop, attributes, mut prefixes) in announcement(plain_context(), 100)
    ) {
        // A leading zero octet makes bgpkit guess that there are path identifiers.
        prefixes.retain(|nlri| nlri.prefix.len() > 0);
        prop_assume!(!prefixes.is_empty());
        let mut out = BytesMut::new();
        let encoded = EncodedAttributes::new(&attributes, &ctx);
        let mut left = prefixes.iter().copied().peekable();
        let count = reach(&mut out, &ctx, &encoded, next_hop, family, &mut left).unwrap();
        let update = bgpkit(&out, &ctx);
        prop_assert_eq!(lines(&update), expected(&ctx, family, next_hop, &attributes, &prefixes[..count]));
        prop_assert!(!update.attributes.has_validation_warnings(), "{:?}", update.attributes.validation_warnings());
        if let (Family::Ipv4Unicast, NextHop::V4(_)) = (family, next_hop) {
            let seen: Vec<_> = update.announced_prefixes.iter().map(|p| p.prefix.to_string()).collect();
            let sent: Vec<_> = prefixes[..count].iter().map(|n| n.prefix.to_string()).collect();
            prop_assert_eq!(seen, sent);
        }
    }

    #[test]
    fn routecore_reads_our_announcements(
        // It does not know RFC 8950.
        (ctx, family, next_hop, attributes, prefixes) in announcement(
            plain_context().prop_map(|ctx| EncodeContext { extended_next_hop: false, ..ctx }), 100)
    ) {
        prop_assume!(!prefixes.is_empty());
        let mut out = BytesMut::new();
        let encoded = EncodedAttributes::new(&attributes, &ctx);
        let mut left = prefixes.iter().copied().peekable();
        let count = reach(&mut out, &ctx, &encoded, next_hop, family, &mut left).unwrap();
        let config = if ctx.four_octet_as { SessionConfig::modern() } else { SessionConfig::legacy() };
        let update = UpdateMessage::from_octets(&out[..], &config).unwrap();
        let seen: Vec<_> = update.announcements().unwrap().map(|nlri| nlri.unwrap().to_string()).collect();
        let sent: Vec<_> = prefixes[..count].iter().map(|n| n.prefix.to_string()).collect();
        prop_assert_eq!(seen, sent);
        prop_assert_eq!(update.multi_exit_disc().unwrap().map(|med| med.0), attributes.med);
        prop_assert_eq!(update.is_atomic_aggregate().unwrap(), attributes.atomic_aggregate);
        let communities = update.communities().unwrap().map_or(0, Iterator::count);
        prop_assert_eq!(communities, attributes.communities.len());
        let extended = update.ext_communities().unwrap().map_or(0, Iterator::count);
        prop_assert_eq!(extended, attributes.extended_communities.len());
    }

    #[test]
    fn routecore_reads_our_withdrawals(
        (ctx, family, prefixes) in (plain_context(), family())
            .prop_flat_map(|(ctx, family)| (Just(ctx), Just(family), nlri(family, false, 200)))
    ) {
        let mut out = BytesMut::new();
        let mut left = prefixes.iter().copied().peekable();
        prop_assume!(withdraw(&mut out, &ctx, family, &mut left) > 0);
        let update = UpdateMessage::from_octets(&out[..], &SessionConfig::modern()).unwrap();
        let seen: Vec<_> = update.withdrawals().unwrap().map(|nlri| nlri.unwrap().to_string()).collect();
        let sent: Vec<_> = prefixes.iter().take(seen.len()).map(|n| n.prefix.to_string()).collect();
        prop_assert_eq!(seen, sent);
    }
}

#[test]
fn routecore_takes_our_end_of_rib_for_one() {
    for family in Family::ALL {
        let mut out = BytesMut::new();
        end_of_rib(&mut out, family);
        let update = UpdateMessage::from_octets(&out[..], &SessionConfig::modern()).unwrap();
        assert!(update.is_eor().unwrap().is_some(), "{family}");
    }
}

#[test]
fn bgpkit_reads_our_open() {
    let open = Open {
        asn: manx_bgp::types::Asn(4_200_000_001),
        hold_time: 90,
        router_id: RouterId::new([10, 0, 0, 1].into()).unwrap(),
        capabilities: vec![
            Capability::Multiprotocol(Family::Ipv4Unicast),
            Capability::Multiprotocol(Family::Ipv6Unicast),
            Capability::FourOctetAs(manx_bgp::types::Asn(4_200_000_001)),
            Capability::RouteRefresh,
            Capability::ExtendedNextHop,
        ],
        extended: false,
    };
    let mut out = BytesMut::new();
    open.encode(&mut out);
    let message = parse_bgp_message(&mut out.freeze(), false, &AsnLength::Bits32).unwrap();
    let BgpMessage::Open(seen) = message else { panic!("not an OPEN: {message:?}") };
    assert_eq!((seen.version, seen.asn.to_u32(), seen.hold_time), (4, 23456, 90));
    assert_eq!(seen.bgp_identifier.to_string(), "10.0.0.1");
    let [parameter] = seen.opt_params.as_slice() else { panic!("one parameter: {:?}", seen.opt_params) };
    let ParamValue::Capacities(capabilities) = &parameter.param_value else { panic!("capabilities") };
    assert_eq!(capabilities.len(), 5);
    let asn = capabilities.iter().find_map(|c| match &c.value {
        CapabilityValue::FourOctetAs(four) => Some(four.asn),
        _ => None,
    });
    assert_eq!(asn, Some(4_200_000_001));
}
