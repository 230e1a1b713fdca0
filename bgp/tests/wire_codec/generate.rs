//! Random values for the property tests: attribute sets, prefixes, next hops, contexts, capabilities.

use std::net::{Ipv4Addr, Ipv6Addr};

use manx_bgp::types::{Asn, Family, Ipv4Prefix, Ipv6Prefix, PeerType, PerFamily, Prefix, RouterId};
use manx_bgp::wire::attribute::{
    Aggregator, AsPath, LargeCommunity, NextHop, Origin, PathAttributes, Segment, SegmentKind,
    UnknownAttribute,
};
use manx_bgp::wire::message::{AddPathMode, Capability, GracefulRestart, Nlri};
use manx_bgp::wire::{DecodeContext, EncodeContext};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

pub(crate) fn asn() -> impl Strategy<Value = Asn> {
    prop_oneof![1u32..65536, 1u32..].prop_map(Asn)
}

pub(crate) fn as_path() -> impl Strategy<Value = AsPath> {
    let kind = prop_oneof![4 => Just(SegmentKind::Sequence), 1 => Just(SegmentKind::Set)];
    let segment = (kind, vec(asn(), 1..9)).prop_map(|(kind, asns)| Segment { kind, asns: asns.into() });
    vec(segment, 0..4).prop_map(|segments| AsPath { segments: segments.into() })
}

fn large_community() -> impl Strategy<Value = LargeCommunity> {
    any::<(u32, u32, u32)>().prop_map(|(global, local1, local2)| LargeCommunity { global, local1, local2 })
}

/// Codes that no decoder here or in the oracles gives a meaning to.
fn unknown() -> impl Strategy<Value = Vec<UnknownAttribute>> {
    btree_set(200u8..240, 0..3).prop_flat_map(|codes| {
        let each: Vec<_> = codes
            .into_iter()
            .map(|code| {
                vec(any::<u8>(), 0..300).prop_map(move |value| UnknownAttribute {
                    flags: 0xe0,
                    code,
                    value: value.into(),
                })
            })
            .collect();
        each
    })
}

/// Attribute sets as the RIB keeps them: communities sorted, unknown attributes by code and with Partial set.
pub(crate) fn attributes() -> impl Strategy<Value = PathAttributes> {
    let origin = prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)];
    let aggregator = option::of(
        (asn(), any::<u32>()).prop_map(|(asn, id)| Aggregator { asn, id: Ipv4Addr::from_bits(id) }),
    );
    let scalars =
        (origin, as_path(), option::of(any::<u32>()), option::of(any::<u32>()), any::<bool>(), aggregator);
    let communities =
        (btree_set(any::<u32>(), 0..6), btree_set(any::<u64>(), 0..4), btree_set(large_community(), 0..4));
    let reflection = (option::of(1u32..), vec(any::<u32>(), 0..4));
    (scalars, communities, reflection, unknown()).prop_map(|(scalars, communities, reflection, unknown)| {
        let (origin, as_path, med, local_pref, atomic_aggregate, aggregator) = scalars;
        PathAttributes {
            origin,
            as_path,
            med,
            local_pref,
            atomic_aggregate,
            aggregator,
            communities: communities.0.into_iter().collect(),
            extended_communities: communities.1.into_iter().collect(),
            large_communities: communities.2.into_iter().collect(),
            originator_id: reflection.0.and_then(|id| RouterId::new(Ipv4Addr::from_bits(id))),
            cluster_list: reflection.1.into_iter().map(Ipv4Addr::from_bits).collect(),
            unknown,
        }
    })
}

pub(crate) fn prefix(family: Family) -> BoxedStrategy<Prefix> {
    match family {
        Family::Ipv4Unicast => (any::<u32>(), 0u8..=32)
            .prop_map(|(bits, len)| Prefix::V4(Ipv4Prefix::from_bits(bits, len).unwrap()))
            .boxed(),
        Family::Ipv6Unicast => (any::<u128>(), 0u8..=128)
            .prop_map(|(bits, len)| Prefix::V6(Ipv6Prefix::from_bits(bits, len).unwrap()))
            .boxed(),
    }
}

pub(crate) fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Ipv4Unicast), Just(Family::Ipv6Unicast)]
}

/// Distinct prefixes, with path identifiers where `add_path`.
pub(crate) fn nlri(family: Family, add_path: bool, most: usize) -> impl Strategy<Value = Vec<Nlri>> {
    let id = if add_path { any::<u32>().boxed() } else { Just(0).boxed() };
    let one = (prefix(family), id).prop_map(|(prefix, path_id)| Nlri { prefix, path_id });
    btree_set(one, 0..=most).prop_map(|set| set.into_iter().collect())
}

pub(crate) fn next_hop(family: Family, extended: bool) -> BoxedStrategy<NextHop> {
    let v4 = (1u8..=223, any::<[u8; 3]>())
        .prop_filter("a usable next hop", |(a, _)| *a != 127)
        .prop_map(|(a, [b, c, d])| NextHop::V4(Ipv4Addr::new(a, b, c, d)));
    let link_local =
        option::of(any::<u64>().prop_map(|id| Ipv6Addr::from_bits((0xfe80u128 << 112) | u128::from(id))));
    let v6 = (any::<u64>(), link_local).prop_map(|(id, link_local)| NextHop::V6 {
        global: Ipv6Addr::from_bits((0x2001u128 << 112) | u128::from(id)),
        link_local,
    });
    match (family, extended) {
        (Family::Ipv4Unicast, false) => v4.boxed(),
        (Family::Ipv4Unicast, true) => prop_oneof![v4, v6].boxed(),
        (Family::Ipv6Unicast, _) => v6.boxed(),
    }
}

pub(crate) fn context() -> impl Strategy<Value = EncodeContext> {
    let peer = prop_oneof![Just(PeerType::External), Just(PeerType::Internal)];
    (peer, any::<[bool; 5]>()).prop_map(
        |(peer, [four_octet_as, ipv4, ipv6, extended_message, extended_next_hop])| EncodeContext {
            peer,
            four_octet_as,
            add_path: PerFamily { ipv4, ipv6 },
            extended_message,
            extended_next_hop,
        },
    )
}

/// What the far end of a session with this context decodes with.
pub(crate) fn far_end(ctx: &EncodeContext) -> DecodeContext {
    DecodeContext {
        peer: ctx.peer,
        families: PerFamily::both(true),
        four_octet_as: ctx.four_octet_as,
        add_path: ctx.add_path,
        extended_next_hop: ctx.extended_next_hop,
    }
}

pub(crate) fn decode_context() -> impl Strategy<Value = DecodeContext> {
    (context(), any::<[bool; 2]>())
        .prop_map(|(ctx, [ipv4, ipv6])| DecodeContext { families: PerFamily { ipv4, ipv6 }, ..far_end(&ctx) })
}

/// A message to a family, all that goes into it, and how.
pub(crate) fn announcement(
    context: impl Strategy<Value = EncodeContext>,
    most: usize,
) -> impl Strategy<Value = (EncodeContext, Family, NextHop, PathAttributes, Vec<Nlri>)> {
    (context, family()).prop_flat_map(move |(ctx, family)| {
        let prefixes = nlri(family, ctx.add_path[family], most);
        (Just(ctx), Just(family), next_hop(family, ctx.extended_next_hop), attributes(), prefixes)
    })
}

pub(crate) fn capability() -> impl Strategy<Value = Capability> {
    let mode = prop_oneof![Just(AddPathMode::Receive), Just(AddPathMode::Send), Just(AddPathMode::Both)];
    let restart = (any::<[bool; 2]>(), 0u16..4096, vec((family(), any::<bool>()), 0..3)).prop_map(
        |([restarting, notification], restart_time, families)| {
            Capability::GracefulRestart(GracefulRestart { restarting, notification, restart_time, families })
        },
    );
    let long_lived = vec((family(), any::<bool>(), 0u32..1 << 24), 0..3);
    prop_oneof![
        family().prop_map(Capability::Multiprotocol),
        Just(Capability::RouteRefresh),
        Just(Capability::ExtendedNextHop),
        Just(Capability::ExtendedMessage),
        restart,
        vec((family(), mode), 0..3).prop_map(Capability::AddPath),
        Just(Capability::EnhancedRouteRefresh),
        long_lived.prop_map(Capability::LongLivedGracefulRestart),
        ("[a-z]{0,20}", "[a-z.]{0,20}").prop_map(|(host, domain)| Capability::Fqdn { host, domain }),
        (130u8..=255, vec(any::<u8>(), 0..100)).prop_map(|(code, value)| Capability::Unknown { code, value }),
    ]
}
