//! Extended messages (RFC 8654): up to 65535 octets where they were agreed on, 4096 elsewhere.

use bytes::BytesMut;
use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::attribute::*;
use manx_bgp::wire::message::*;
use manx_bgp::wire::{self, EncodeContext, EncodedAttributes};

use crate::bench::*;

const X: &str = "10.9.0.0/16";

fn open_extended(asn: Asn, router_id: &str) -> Open {
    let mut o = open(asn, router_id);
    o.capabilities.push(Capability::ExtendedMessage);
    o
}

/// Attributes of some 6000 octets, more than a message without RFC 8654 holds.
fn long() -> PathAttributes {
    let mut set = attributes(&[65001]);
    set.large_communities =
        (0..500).map(|i| LargeCommunity { global: 65001, local1: 7, local2: i }).collect();
    set
}

fn update(set: &PathAttributes) -> BytesMut {
    let ctx = EncodeContext { extended_message: true, ..EncodeContext::modern(PeerType::External) };
    let mut out = BytesMut::new();
    let mut nlri = [Nlri { prefix: p(X), path_id: 0 }].into_iter().peekable();
    let encoded = EncodedAttributes::new(set, &ctx);
    let next_hop = NextHop::V4([10, 0, 0, 2].into());
    wire::reach(&mut out, &ctx, &encoded, next_hop, Family::Ipv4Unicast, &mut nlri).unwrap();
    out
}

#[test]
fn a_long_update_is_taken_and_passed_on_to_those_who_take_it() {
    let mut b = Bench::new();
    let all = std::sync::Arc::new(manx_bgp::filter::Filter::accept_all("all"));
    for (name, address) in [("from", "10.0.0.2"), ("long", "10.0.0.3"), ("short", "10.0.0.4")] {
        b.peer(PeerConfig { export: vec![all.clone()], ..Bench::tor(name, address) });
    }
    let from = b.establish("10.0.0.2", open_extended(TOR_AS, "10.0.0.2"));
    let to = b.establish("10.0.0.3", open_extended(Asn(65002), "10.0.0.3"));
    let short = b.establish("10.0.0.4", open(Asn(65003), "10.0.0.4"));
    b.announce(from, &[X], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(b.updates(short).iter().filter(|u| !u.reach.is_empty()).count(), 1);
    b.updates(to);
    b.send_bytes(from, &update(&long()));
    let [passed] = b.updates(to).try_into().unwrap();
    assert_eq!(passed.attributes.unwrap().large_communities.len(), 500);
    // RFC 8654 5: who cannot take the new version must not go on with the old one.
    let [withdrawn] = b.updates(short).try_into().unwrap();
    assert_eq!(withdrawn.withdrawn, [Nlri { prefix: p(X), path_id: 0 }]);
}

#[test]
fn many_prefixes_fill_messages_beyond_4096_octets_only_where_agreed() {
    for (extended, longest) in [(true, 4097..=65535), (false, 1000..=4096)] {
        let mut b = Bench::new();
        b.peer(Bench::tor("tor", "10.0.0.2"));
        for i in 0..1000u32 {
            let block =
                Prefix::new(std::net::Ipv4Addr::from_bits(0x0af4_0000 + (i << 8)).into(), 32).unwrap();
            b.speaker.originate(b.now, LocalRoute::new(block));
        }
        let theirs = if extended { open_extended } else { open };
        let conn = b.establish("10.0.0.2", theirs(TOR_AS, "10.0.0.2"));
        let most = b.updates(conn).iter().flat_map(|u| &u.reach).map(|r| r.nlri.len()).max().unwrap();
        // Five octets a prefix.
        assert!(longest.contains(&(most * 5)), "{most} prefixes in a message");
    }
}

#[test]
fn rfc8654_4_who_has_offered_takes_long_messages_even_from_a_peer_that_has_not() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.send_bytes(conn, &update(&long()));
    assert_eq!(b.state("tor"), "Established");
    assert_eq!(b.path(X, "10.0.0.2").unwrap().large_communities.len(), 500);
}

#[test]
fn rfc8654_4_an_open_stays_within_4096_octets() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.accept("10.0.0.2").unwrap();
    let mut header = vec![0xff; 16];
    header.extend_from_slice(&[0x10, 0x01, 1]);
    b.send_bytes(conn, &header);
    assert_eq!(b.notification(conn), Some((1, 2)));
}

#[test]
fn a_long_message_before_the_open_is_refused() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.accept("10.0.0.2").unwrap();
    b.send_bytes(conn, &update(&long()));
    assert_eq!(b.notification(conn), Some((1, 2)));
}
