//! What communities make this speaker do, and the knobs that change AS paths on their way out.

use manx_bgp::filter::*;
use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::attribute::*;
use manx_bgp::wire::community::{parse_extended, well_known};
use manx_bgp::wire::message::*;
use std::sync::Arc;

use crate::bench::*;

const X: &str = "10.9.0.0/16";

fn accept_all() -> Vec<Arc<Filter>> {
    vec![Arc::new(Filter::accept_all("all"))]
}

fn with(path: &[u32], communities: &[u32]) -> PathAttributes {
    PathAttributes { communities: communities.iter().copied().collect(), ..attributes(path) }
}

/// What the last UPDATEs on a connection say about a prefix; `None`: not announced.
fn said(b: &mut Bench, conn: ConnId, prefix: &str) -> Option<PathAttributes> {
    b.updates(conn).into_iter().find_map(|u| {
        let announced = u.reach.iter().any(|r| r.nlri.iter().any(|n| n.prefix == p(prefix)));
        u.attributes.filter(|_| announced)
    })
}

/// A ToR at 10.0.0.2, an external peer at 10.0.0.3 and an internal one at 10.0.0.4 that hear everything.
struct Three {
    b: Bench,
    tor: ConnId,
    out: ConnId,
    inside: ConnId,
}

fn three(tor: PeerConfig) -> Three {
    let mut b = Bench::new();
    b.peer(tor);
    b.peer(PeerConfig { export: accept_all(), ..Bench::tor("out", "10.0.0.3") });
    let inside =
        PeerConfig { export: accept_all(), remote_as: RemoteAs::Internal, ..Bench::tor("in", "10.0.0.4") };
    b.peer(inside);
    let tor = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let out = b.establish("10.0.0.3", open(Asn(65003), "10.0.0.3"));
    let inside = b.establish("10.0.0.4", open(OUR_AS, "10.0.0.4"));
    b.messages(out);
    b.messages(inside);
    Three { b, tor, out, inside }
}

#[test]
fn rfc7999_3_3_blackhole_is_honoured_for_single_addresses_of_a_permitted_peer() {
    let tor = PeerConfig { blackhole: true, ..Bench::tor("tor", "10.0.0.2") };
    let Three { mut b, tor, out, inside } = three(tor);
    let set = with(&[65001], &[well_known::BLACKHOLE]);
    b.announce(tor, &["192.0.2.7/32", "198.51.100.0/24"], &set, "10.0.0.2");
    b.announce(tor, &["2001:db8::7/128"], &set, "fd00::2");
    for discarded in ["192.0.2.7/32", "2001:db8::7/128"] {
        assert!(b.discarded.contains(&p(discarded)), "{discarded}");
        assert!(b.routes().iter().any(|r| r.prefix == p(discarded) && r.blackhole && r.best));
    }
    assert_eq!(b.fib.get(&p("198.51.100.0/24")).map(Vec::len), Some(1), "a network is forwarded as ever");
    // RFC 7999 3.2: it stays within the AS.
    let inner = said(&mut b, inside, "192.0.2.7/32").unwrap();
    assert_eq!(inner.communities.as_slice(), [well_known::BLACKHOLE, well_known::NO_EXPORT]);
    assert!(said(&mut b, out, "192.0.2.7/32").is_none());
    b.withdraw(tor, &["192.0.2.7/32"]);
    assert!(!b.discarded.contains(&p("192.0.2.7/32")));
}

#[test]
fn rfc7999_3_3_blackhole_of_a_peer_without_permission_is_a_community_like_others() {
    let Three { mut b, tor, out, .. } = three(Bench::tor("tor", "10.0.0.2"));
    let set = with(&[65001], &[well_known::BLACKHOLE]);
    b.announce(tor, &["192.0.2.7/32"], &set, "10.0.0.2");
    assert!(b.discarded.is_empty());
    assert_eq!(b.fib[&p("192.0.2.7/32")], [ip("10.0.0.2")]);
    assert_eq!(
        said(&mut b, out, "192.0.2.7/32").unwrap().communities.as_slice(),
        [well_known::BLACKHOLE],
        "and nothing is added to it"
    );
}

#[test]
fn blackhole_needs_no_reachable_next_hop_and_its_permission_can_be_taken_back() {
    let config = PeerConfig { blackhole: true, ..Bench::tor("tor", "10.0.0.2") };
    let Three { mut b, tor, .. } = three(config.clone());
    b.resolve = Some(NextHopState::Unreachable);
    let set = with(&[65001], &[well_known::BLACKHOLE]);
    b.announce(tor, &["192.0.2.7/32"], &set, "192.0.2.66");
    assert!(b.discarded.contains(&p("192.0.2.7/32")));
    b.messages(tor);
    b.peer(PeerConfig { blackhole: false, ..config });
    let asked = b.messages(tor).into_iter().filter(|m| matches!(m, Message::RouteRefresh(_))).count();
    assert_eq!(asked, 2, "its routes are judged anew");
    b.announce(tor, &["192.0.2.7/32"], &set, "192.0.2.66");
    assert!(b.discarded.is_empty() && b.fib.is_empty());
}

#[test]
fn a_blackhole_never_swallows_what_the_node_itself_serves() {
    let tor = PeerConfig { blackhole: true, ..Bench::tor("tor", "10.0.0.2") };
    let Three { mut b, tor, .. } = three(tor);
    b.originate("10.244.1.0/24");
    b.announce(tor, &["10.244.1.7/32"], &with(&[65001], &[well_known::BLACKHOLE]), "10.0.0.2");
    assert!(b.discarded.is_empty());
    let refused = b.path("10.244.1.7/32", "10.0.0.2").unwrap();
    assert_eq!(refused.reason.as_deref(), Some("import default: overlaps an own block"));
}

#[test]
fn rfc9494_4_3_a_long_lived_stale_path_is_the_last_choice() {
    let Three { mut b, tor, inside, .. } = three(Bench::tor("tor", "10.0.0.2"));
    let stale = PathAttributes { local_pref: Some(500), ..with(&[], &[well_known::LLGR_STALE]) };
    b.announce(inside, &[X], &stale, "10.0.0.4");
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.4")], "better than nothing");
    b.announce(tor, &[X], &attributes(&[65001, 65100, 65100]), "10.0.0.2");
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.2")]);
    let lost = b.path(X, "10.0.0.4").unwrap();
    assert_eq!(lost.lost_at, Some("llgr"));
    assert_eq!(lost.reason.as_deref(), Some("long-lived stale after one that is not"));
}

#[test]
fn rfc9494_4_6_a_long_lived_stale_path_goes_only_to_peers_that_understand_it() {
    let Three { mut b, tor, out, .. } = three(Bench::tor("tor", "10.0.0.2"));
    b.peer(PeerConfig { export: accept_all(), ..Bench::tor("llgr", "10.0.0.5") });
    let mut theirs = open(Asn(65005), "10.0.0.5");
    theirs.capabilities.push(Capability::LongLivedGracefulRestart(vec![(Family::Ipv4Unicast, false, 3600)]));
    let llgr = b.establish("10.0.0.5", theirs);
    b.announce(tor, &[X], &attributes(&[65001]), "10.0.0.2");
    assert!(said(&mut b, out, X).is_some() && said(&mut b, llgr, X).is_some());
    b.announce(tor, &[X], &with(&[65001], &[well_known::LLGR_STALE]), "10.0.0.2");
    let seen = said(&mut b, llgr, X).unwrap();
    assert_eq!(seen.communities.as_slice(), [well_known::LLGR_STALE]);
    let updates = b.updates(out);
    assert!(updates.iter().any(|u| u.withdrawn.iter().any(|n| n.prefix == p(X))), "{updates:?}");
    let why = b.speaker.explain(p(X)).exports.into_iter().find(|e| e.peer == "out").unwrap();
    assert_eq!(why.reason, "community LLGR_STALE, and the peer has no long-lived graceful restart");
}

#[test]
fn no_export_subconfed_stays_within_the_as() {
    let Three { mut b, tor, out, inside } = three(Bench::tor("tor", "10.0.0.2"));
    b.announce(tor, &[X], &with(&[65001], &[well_known::NO_EXPORT_SUBCONFED]), "10.0.0.2");
    assert!(said(&mut b, out, X).is_none() && said(&mut b, inside, X).is_some());
}

#[test]
fn rfc8326_graceful_shutdown_is_the_last_choice_as_soon_as_it_is_said() {
    let Three { mut b, tor, out, .. } = three(Bench::tor("tor", "10.0.0.2"));
    b.announce(tor, &[X], &attributes(&[65001]), "10.0.0.2");
    b.announce(out, &[X], &attributes(&[65003, 65100]), "10.0.0.3");
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.2")]);
    b.announce(tor, &[X], &with(&[65001], &[well_known::GRACEFUL_SHUTDOWN]), "10.0.0.2");
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.3")]);
    assert_eq!(b.path(X, "10.0.0.2").unwrap().local_pref, Some(0));
}

#[test]
fn rfc4360_6_extended_communities_leave_the_as_only_if_they_are_transitive() {
    let Three { mut b, tor, out, inside } = three(Bench::tor("tor", "10.0.0.2"));
    let (target, bandwidth) = (parse_extended("rt:65001:7").unwrap(), 0x4004_fde9_4cbe_bc20);
    let set = PathAttributes { extended_communities: vec![target, bandwidth], ..attributes(&[65001]) };
    b.announce(tor, &[X], &set, "10.0.0.2");
    assert_eq!(said(&mut b, inside, X).unwrap().extended_communities, [target, bandwidth]);
    assert_eq!(said(&mut b, out, X).unwrap().extended_communities, [target]);
    assert_eq!(b.path(X, "10.0.0.2").unwrap().extended_communities, ["rt:65001:7", "0x4004fde94cbebc20"]);
}

#[test]
fn trap_12_an_unknown_transitive_attribute_travels_on_with_partial_set() {
    let Three { mut b, tor, out, .. } = three(Bench::tor("tor", "10.0.0.2"));
    // Optional, transitive, with low bits that mean nothing and an extended length that a short value does not need.
    let attribute = [0xd5, 99, 0, 3, 1, 2, 3];
    let mut body = vec![0, 0, 0, 0];
    body.extend_from_slice(&[0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9, 0x40, 3, 4, 10, 0, 0, 2]);
    body.extend_from_slice(&attribute);
    let length = u16::try_from(body.len() - 4).unwrap();
    body[2..4].copy_from_slice(&length.to_be_bytes());
    body.extend_from_slice(&[16, 10, 9]);
    let mut message = vec![0xff; 16];
    message.extend_from_slice(&(19 + u16::try_from(body.len()).unwrap()).to_be_bytes());
    message.push(2);
    message.extend_from_slice(&body);
    b.send_bytes(tor, &message);
    let seen = said(&mut b, out, X).unwrap();
    assert_eq!(seen.unknown.len(), 1);
    assert_eq!(
        (seen.unknown[0].code, seen.unknown[0].flags, &*seen.unknown[0].value),
        (99, 0xe0, &[1, 2, 3][..])
    );
}

#[test]
fn trap_15_a_prefix_that_is_withdrawn_and_announced_at_once_is_announced_and_host_bits_are_no_other_prefix() {
    let Three { mut b, tor, .. } = three(Bench::tor("tor", "10.0.0.2"));
    // Withdrawn 10.9.0.0/16 with a host bit set, announced 10.9.0.0/16 with another trailing bit.
    let attributes = [0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9, 0x40, 3, 4, 10, 0, 0, 2];
    let mut body = vec![0, 3, 15, 10, 9];
    body.extend_from_slice(&[0, 20]);
    body.extend_from_slice(&attributes);
    body.extend_from_slice(&[15, 10, 8]);
    let mut message = vec![0xff; 16];
    message.extend_from_slice(&(19 + u16::try_from(body.len()).unwrap()).to_be_bytes());
    message.push(2);
    message.extend_from_slice(&body);
    b.send_bytes(tor, &message);
    assert_eq!(b.fib.keys().copied().collect::<Vec<_>>(), [p("10.8.0.0/15")]);
}

#[test]
fn trap_16_the_link_local_next_hop_of_a_32_octet_one_is_kept_for_the_shared_link() {
    let keep =
        PeerConfig { export: accept_all(), next_hop: NextHopMode::Keep, ..Bench::tor("keep", "10.0.0.8") };
    let Three { mut b, tor, .. } = three(Bench::tor("tor", "10.0.0.2"));
    b.peer(keep);
    let conn = b.establish("10.0.0.8", open(Asn(65008), "10.0.0.8"));
    b.messages(conn);
    let both = |global: &str| NextHop::V6 {
        global: global.parse().unwrap(),
        link_local: Some("fe80::2".parse().unwrap()),
    };
    b.announce_with(tor, "fd09::/48", &attributes(&[65001]), both("fd00::2"));
    b.announce_with(tor, "fd0a::/48", &attributes(&[65001]), both("2001:db8::2"));
    let reach: Vec<Reach> = b.updates(conn).into_iter().flat_map(|u| u.reach).collect();
    let hop = |prefix: &str| reach.iter().find(|r| r.nlri[0].prefix == p(prefix)).unwrap().next_hop;
    assert_eq!(hop("fd09::/48"), both("fd00::2"), "both are on the link");
    let global = NextHop::V6 { global: "2001:db8::2".parse().unwrap(), link_local: None };
    assert_eq!(hop("fd0a::/48"), global, "a link-local address means nothing elsewhere");
}

#[test]
fn private_as_numbers_are_taken_out_for_a_peer_that_wants_it() {
    let Three { mut b, tor, .. } = three(Bench::tor("tor", "10.0.0.2"));
    let plain =
        PeerConfig { export: accept_all(), remove_private_as: true, ..Bench::tor("plain", "10.0.0.6") };
    b.peer(plain.clone());
    b.peer(PeerConfig {
        local_as: Some(Asn(3)),
        name: "public".into(),
        target: PeerTarget::Address(ip("10.0.0.7")),
        ..plain
    });
    let plain = b.establish("10.0.0.6", open(Asn(65006), "10.0.0.6"));
    let public = b.establish("10.0.0.7", open(Asn(7), "10.0.0.7"));
    b.messages(plain);
    b.messages(public);
    b.announce(tor, &[X], &attributes(&[65001, 12, 65006, 4_200_000_007, 13]), "10.0.0.2");
    let path = |b: &mut Bench, conn| as_path_text(&said(b, conn, X).unwrap().as_path);
    assert_eq!(path(&mut b, plain), "64512 12 65006 13", "its own AS stays: it has to see the loop");
    assert_eq!(path(&mut b, public), "3 12 13", "ours is private, too, and the session has another");
}
