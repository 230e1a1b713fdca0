//! Routes: what is taken in, which path wins and why, what goes out and with which attributes.

use manx_bgp::filter::*;
use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::attribute::*;
use manx_bgp::wire::message::*;
use std::sync::Arc;

use crate::bench::*;

const NO_EXPORT: u32 = 0xFFFF_FF01;
const NO_ADVERTISE: u32 = 0xFFFF_FF02;
const GRACEFUL_SHUTDOWN: u32 = 0xFFFF_0000;

fn internal(name: &str, address: &str) -> PeerConfig {
    PeerConfig { remote_as: RemoteAs::Internal, ..Bench::tor(name, address) }
}

fn accept_all() -> Vec<Arc<Filter>> {
    vec![Arc::new(Filter::accept_all("all"))]
}

fn filter(name: &str, rules: Vec<Rule>) -> Vec<Arc<Filter>> {
    vec![Arc::new(Filter { name: name.into(), ipv4: rules.clone(), ipv6: rules })]
}

/// Announced prefixes of a list of UPDATEs, sorted.
fn announced(updates: &[Update]) -> Vec<String> {
    let mut all: Vec<String> =
        updates.iter().flat_map(|u| &u.reach).flat_map(|r| &r.nlri).map(|n| n.prefix.to_string()).collect();
    all.sort();
    all
}

fn withdrawn(updates: &[Update]) -> Vec<String> {
    let mut all: Vec<String> =
        updates.iter().flat_map(|u| &u.withdrawn).map(|n| n.prefix.to_string()).collect();
    all.sort();
    all
}

/// The UPDATE that announces a prefix, of those sent last.
fn update_for(b: &mut Bench, conn: ConnId, prefix: &str) -> (PathAttributes, NextHop) {
    let updates = b.updates(conn);
    let found = updates.iter().find_map(|u| {
        let reach = u.reach.iter().find(|r| r.nlri.iter().any(|n| n.prefix == p(prefix)))?;
        Some((u.attributes.clone()?, reach.next_hop))
    });
    found.unwrap_or_else(|| panic!("{prefix} not announced in {updates:?}"))
}

fn as_path(set: &PathAttributes) -> String {
    as_path_text(&set.as_path)
}

/// Two external ToRs in ASes 65001 and 65002 and a third party that hears what we pass on.
struct Two {
    b: Bench,
    one: ConnId,
    two: ConnId,
    third: ConnId,
}

fn two() -> Two {
    two_with(SpeakerConfig::new(OUR_AS, id("10.0.0.1")))
}

fn two_with(config: SpeakerConfig) -> Two {
    let mut b = Bench::with(config);
    for (name, address) in [("one", "10.0.0.2"), ("two", "10.0.0.3")] {
        b.peer(Bench::tor(name, address));
    }
    b.peer(PeerConfig { export: accept_all(), ..Bench::tor("third", "10.0.0.9") });
    let one = b.establish("10.0.0.2", open(Asn(65001), "10.0.0.2"));
    let two = b.establish("10.0.0.3", open(Asn(65002), "10.0.0.3"));
    let third = b.establish("10.0.0.9", open(Asn(65009), "10.0.0.9"));
    b.messages(third);
    Two { b, one, two, third }
}

fn hops(b: &Bench, prefix: &str) -> Vec<String> {
    b.fib.get(&p(prefix)).map_or_else(Vec::new, |h| h.iter().map(ToString::to_string).collect())
}

const X: &str = "10.9.0.0/16";

#[test]
fn a_learned_route_goes_to_the_fib_and_leaves_with_its_withdrawal() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &[X, "10.8.0.0/16"], &attributes(&[65001]), "10.0.0.2");
    b.announce(conn, &["fd09::/64"], &attributes(&[65001]), "fd00::2");
    assert_eq!(hops(&b, X), ["10.0.0.2"]);
    assert_eq!(hops(&b, "fd09::/64"), ["fd00::2"]);
    b.withdraw(conn, &[X]);
    assert_eq!(b.fib.keys().map(ToString::to_string).collect::<Vec<_>>(), ["10.8.0.0/16", "fd09::/64"]);
    let view = b.path("10.8.0.0/16", "10.0.0.2").unwrap();
    assert!(view.best && view.multipath && view.lost_at.is_none());
    assert_eq!((view.origin, view.local_pref, view.peer.as_deref()), (Some("igp"), Some(100), Some("tor")));
}

#[test]
fn equal_paths_through_different_ases_share_the_load_with_relax() {
    let Two { mut b, one, two, .. } = two();
    b.announce(one, &[X], &attributes(&[65001, 65100]), "10.0.0.2");
    b.announce(two, &[X], &attributes(&[65002, 65100]), "10.0.0.3");
    assert_eq!(hops(&b, X), ["10.0.0.2", "10.0.0.3"]);
    let loser = b.path(X, "10.0.0.3").unwrap();
    assert!(loser.multipath && !loser.best);
    assert_eq!(loser.lost_at, Some("f"));
    b.withdraw(one, &[X]);
    assert_eq!(hops(&b, X), ["10.0.0.3"]);
}

#[test]
fn without_relax_only_equal_as_paths_share_the_load() {
    let config = SpeakerConfig { as_path_relax: false, ..SpeakerConfig::new(OUR_AS, id("10.0.0.1")) };
    let Two { mut b, one, two, .. } = two_with(config);
    b.announce(one, &[X], &attributes(&[65001, 65100]), "10.0.0.2");
    b.announce(two, &[X], &attributes(&[65002, 65100]), "10.0.0.3");
    assert_eq!(hops(&b, X), ["10.0.0.2"]);
}

#[test]
fn max_paths_limits_the_next_hops_and_its_change_decides_anew() {
    let config = SpeakerConfig { max_paths: 1, ..SpeakerConfig::new(OUR_AS, id("10.0.0.1")) };
    let Two { mut b, one, two, .. } = two_with(config.clone());
    b.announce(two, &[X], &attributes(&[65002]), "10.0.0.3");
    b.announce(one, &[X], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(hops(&b, X), ["10.0.0.2"]);
    b.speaker.configure(b.now, SpeakerConfig { max_paths: 2, ..config });
    b.pump();
    assert_eq!(hops(&b, X), ["10.0.0.2", "10.0.0.3"]);
}

/// The path of "two" loses against that of "one" at this step.
fn loses_at(winner: &PathAttributes, loser: &PathAttributes, step: &str, words: &str) {
    for swap in [false, true] {
        let Two { mut b, one, two, .. } = two();
        let mut send = |which: bool| {
            if which {
                b.announce(one, &[X], winner, "10.0.0.2");
            } else {
                b.announce(two, &[X], loser, "10.0.0.3");
            }
        };
        send(swap);
        send(!swap);
        let lost = b.path(X, "10.0.0.3").unwrap();
        assert_eq!((lost.lost_at, lost.reason.as_deref()), (Some(step), Some(words)));
        assert!(b.path(X, "10.0.0.2").unwrap().best);
        assert_eq!(hops(&b, X), ["10.0.0.2"]);
    }
}

#[test]
fn rfc4271_9_1_2_2_a_shorter_as_path() {
    loses_at(&attributes(&[65001]), &attributes(&[65002, 65100]), "a", "AS path longer (2 > 1)");
}

#[test]
fn rfc4271_9_1_2_2_b_lower_origin() {
    let loser = PathAttributes { origin: Origin::Incomplete, ..attributes(&[65002]) };
    loses_at(&attributes(&[65001]), &loser, "b", "ORIGIN incomplete after igp");
}

#[test]
fn rfc4271_9_1_2_2_c_med_within_a_neighbour_as_only() {
    let with = |asn: u32, med: u32| PathAttributes { med: Some(med), ..attributes(&[asn, 65100]) };
    loses_at(&with(65100, 5), &with(65100, 6), "c", "MED 6 higher than of another path through AS 65100");
    let Two { mut b, one, two, .. } = two();
    b.announce(one, &[X], &with(65001, 50), "10.0.0.2");
    b.announce(two, &[X], &with(65002, 6), "10.0.0.3");
    assert!(b.path(X, "10.0.0.2").unwrap().best, "trap 20: MEDs of different ASes are not compared");
}

#[test]
fn rfc4271_9_1_2_2_d_external_before_internal_and_local_pref_before_all() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    b.peer(internal("rr", "10.0.0.3"));
    let tor = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let rr = b.establish("10.0.0.3", open(OUR_AS, "10.0.0.3"));
    b.announce(rr, &[X], &attributes(&[65001]), "10.0.0.3");
    b.announce(tor, &[X], &attributes(&[65001]), "10.0.0.2");
    let lost = b.path(X, "10.0.0.3").unwrap();
    assert_eq!((lost.lost_at, lost.reason.as_deref()), (Some("d"), Some("internal after external")));
    let preferred = PathAttributes { local_pref: Some(200), ..attributes(&[65001, 65001, 65001]) };
    b.announce(rr, &[X], &preferred, "10.0.0.3");
    let lost = b.path(X, "10.0.0.2").unwrap();
    assert_eq!(
        (lost.lost_at, lost.reason.as_deref()),
        (Some("preference"), Some("LOCAL_PREF lower (100 < 200)"))
    );
}

#[test]
fn rfc4271_9_1_2_2_e_lower_interior_cost() {
    let Two { mut b, one, two, .. } = two();
    b.announce(one, &[X], &attributes(&[65001]), "10.0.0.2");
    b.announce(two, &[X], &attributes(&[65002]), "10.0.0.3");
    let far = NextHopState::Reachable { metric: 10, connected: false };
    b.speaker.set_next_hop(b.now, ip("10.0.0.2"), far);
    b.pump();
    assert_eq!(hops(&b, X), ["10.0.0.3"]);
    let lost = b.path(X, "10.0.0.2").unwrap();
    assert_eq!((lost.lost_at, lost.reason.as_deref()), (Some("e"), Some("interior cost higher (10 > 0)")));
}

#[test]
fn rfc4271_9_1_2_2_f_lower_identifier_and_rfc4456_originator_id_in_its_place() {
    let mut b = Bench::new();
    b.peer(internal("a", "10.0.0.2"));
    b.peer(internal("b", "10.0.0.3"));
    let one = b.establish("10.0.0.2", open(OUR_AS, "10.0.0.2"));
    let two = b.establish("10.0.0.3", open(OUR_AS, "10.0.0.3"));
    b.announce(one, &[X], &attributes(&[65001]), "10.0.0.2");
    b.announce(two, &[X], &attributes(&[65001]), "10.0.0.3");
    assert!(b.path(X, "10.0.0.2").unwrap().best);
    let reflected = PathAttributes {
        originator_id: Some(id("1.1.1.1")),
        cluster_list: vec!["7.7.7.7".parse().unwrap()],
        ..attributes(&[65001])
    };
    b.announce(two, &[X], &reflected, "10.0.0.3");
    let lost = b.path(X, "10.0.0.2").unwrap();
    assert_eq!(
        (lost.lost_at, lost.reason.as_deref()),
        (Some("f"), Some("BGP identifier higher (10.0.0.2 > 1.1.1.1)"))
    );
    // Same originator by both ways: the shorter CLUSTER_LIST (RFC 4456 9), then g, the lower address.
    let longer = PathAttributes {
        cluster_list: vec!["7.7.7.7".parse().unwrap(), "8.8.8.8".parse().unwrap()],
        ..reflected.clone()
    };
    b.announce(one, &[X], &longer, "10.0.0.2");
    assert_eq!(b.path(X, "10.0.0.2").unwrap().lost_at, Some("cluster"));
    b.announce(one, &[X], &reflected, "10.0.0.2");
    assert_eq!(b.path(X, "10.0.0.3").unwrap().lost_at, Some("g"));
}

#[test]
fn locally_originated_wins_and_is_not_for_the_fib() {
    let mut b = Bench::new();
    b.peer(PeerConfig { import: accept_all(), ..Bench::tor("tor", "10.0.0.2") });
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(hops(&b, X), ["10.0.0.2"]);
    b.originate(X);
    assert!(b.fib.is_empty());
    assert_eq!(b.path(X, "10.0.0.2").unwrap().lost_at, Some("local"));
    b.speaker.withdraw(b.now, p(X));
    b.pump();
    assert_eq!(hops(&b, X), ["10.0.0.2"]);
}

#[test]
fn an_unreachable_next_hop_makes_a_path_ineligible_with_its_reason_kept() {
    let Two { mut b, one, two, third } = two();
    b.announce(one, &[X], &attributes(&[65001]), "10.0.0.2");
    b.announce(two, &[X], &attributes(&[65002, 65100]), "10.0.0.3");
    assert_eq!(as_path(&update_for(&mut b, third, X).0), "64512 65001");
    b.speaker.set_next_hop(b.now, ip("10.0.0.2"), NextHopState::Unreachable);
    b.pump();
    assert_eq!(hops(&b, X), ["10.0.0.3"]);
    let gone = b.path(X, "10.0.0.2").unwrap();
    assert_eq!((gone.lost_at, gone.reason.as_deref()), (None, Some("next hop is unreachable")));
    assert_eq!(as_path(&update_for(&mut b, third, X).0), "64512 65002 65100");
    b.speaker.set_next_hop(b.now, ip("10.0.0.3"), NextHopState::Unreachable);
    assert_eq!(withdrawn(&b.updates(third)), [X], "trap 18: empty selection must emit a withdraw");
    assert!(b.fib.is_empty());
    b.speaker.set_next_hop(b.now, ip("10.0.0.2"), UP);
    b.pump();
    assert_eq!(hops(&b, X), ["10.0.0.2"]);
}

#[test]
fn a_next_hop_is_tracked_while_a_path_uses_it() {
    let mut b = Bench::new();
    b.resolve = None;
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &[X, "10.8.0.0/16"], &attributes(&[65001]), "10.0.0.7");
    assert!(b.fib.is_empty());
    assert_eq!(b.path(X, "10.0.0.2").unwrap().reason.as_deref(), Some("next hop is being resolved"));
    b.speaker.set_next_hop(b.now, ip("10.0.0.7"), UP);
    b.pump();
    assert_eq!(hops(&b, X), ["10.0.0.7"]);
    b.resolve = Some(UP);
    b.withdraw(conn, &[X]);
    b.announce(conn, &["10.8.0.0/16"], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(b.tracked.keys().copied().collect::<Vec<_>>(), [ip("10.0.0.2").into()]);
    b.withdraw(conn, &["10.8.0.0/16"]);
    assert!(b.tracked.is_empty());
}

#[test]
fn trap_23_next_hop_changes_are_grouped() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let prefixes: Vec<String> = (0..250).map(|i| format!("10.9.{i}.0/24")).collect();
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    b.announce(conn, &prefixes, &attributes(&[65001]), "10.0.0.2");
    b.fib_log.clear();
    // The shell repeats itself with each netlink echo: nothing happens.
    for _ in 0..100 {
        b.speaker.set_next_hop(b.now, ip("10.0.0.2"), UP);
    }
    // It changes its mind between two looks: only the last word counts.
    b.speaker.set_next_hop(b.now, ip("10.0.0.2"), NextHopState::Unreachable);
    b.speaker.set_next_hop(b.now, ip("10.0.0.2"), UP);
    b.pump();
    assert!(b.fib_log.is_empty());
}

#[test]
fn an_attribute_change_replaces_the_path_and_tells_peers_once() {
    let Two { mut b, one, third, .. } = two();
    b.announce(one, &[X], &attributes(&[65001]), "10.0.0.2");
    b.messages(third);
    b.announce(one, &[X], &attributes(&[65001]), "10.0.0.2");
    assert!(b.updates(third).is_empty(), "the same again is no news");
    b.announce(one, &[X], &attributes(&[65001, 65100]), "10.0.0.2");
    assert_eq!(as_path(&update_for(&mut b, third, X).0), "64512 65001 65100");
    assert_eq!(b.fib_log.len(), 1, "the FIB does not care about attributes");
}

#[test]
fn prefixes_with_the_same_attributes_share_updates() {
    let Two { mut b, one, third, .. } = two();
    for i in 0..100 {
        let sets = [attributes(&[65001, 65100]), attributes(&[65001, 65200])];
        let prefix = format!("10.9.{i}.0/24");
        b.speaker.set_next_hop(b.now, ip("10.0.0.2"), UP);
        // No pump in between: the peer's socket is busy.
        let mut out = bytes::BytesMut::new();
        let ctx = manx_bgp::wire::EncodeContext::modern(PeerType::External);
        let encoded = manx_bgp::wire::EncodedAttributes::new(&sets[i % 2], &ctx);
        let mut nlri = [Nlri { prefix: p(&prefix), path_id: 0 }].into_iter().peekable();
        let hop = NextHop::V4("10.0.0.2".parse().unwrap());
        manx_bgp::wire::reach(&mut out, &ctx, &encoded, hop, Family::Ipv4Unicast, &mut nlri).unwrap();
        b.speaker.received(b.now, one, &out);
    }
    let updates = b.updates(third);
    assert_eq!(announced(&updates).len(), 100);
    assert_eq!(updates.len(), 2, "one UPDATE for each attribute set");
}

#[test]
fn a_change_that_is_taken_back_before_it_is_sent_is_never_seen() {
    let Two { mut b, one, third, .. } = two();
    b.announce(one, &["10.8.0.0/16"], &attributes(&[65001]), "10.0.0.2");
    b.messages(third);
    let mut out = bytes::BytesMut::new();
    let ctx = manx_bgp::wire::EncodeContext::modern(PeerType::External);
    let encoded = manx_bgp::wire::EncodedAttributes::new(&attributes(&[65001]), &ctx);
    let mut nlri = [Nlri { prefix: p(X), path_id: 0 }].into_iter().peekable();
    let hop = NextHop::V4("10.0.0.2".parse().unwrap());
    manx_bgp::wire::reach(&mut out, &ctx, &encoded, hop, Family::Ipv4Unicast, &mut nlri).unwrap();
    let mut nlri = [Nlri { prefix: p(X), path_id: 0 }].into_iter().peekable();
    manx_bgp::wire::withdraw(&mut out, &ctx, Family::Ipv4Unicast, &mut nlri);
    b.speaker.received(b.now, one, &out);
    assert!(b.updates(third).is_empty(), "a withdrawal is sent for what was advertised only");
}

#[test]
fn the_default_export_is_what_we_originate() {
    let mut b = Bench::new();
    b.peer(Bench::tor("a", "10.0.0.2"));
    b.peer(Bench::tor("b", "10.0.0.3"));
    let a = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let other = b.establish("10.0.0.3", open(Asn(65002), "10.0.0.3"));
    b.announce(a, &[X], &attributes(&[65001]), "10.0.0.2");
    b.originate("10.244.1.0/24");
    b.originate("fd00:244::/64");
    assert_eq!(announced(&b.updates(other)), ["10.244.1.0/24", "fd00:244::/64"]);
    let why = b.speaker.explain(p(X));
    let export = why.exports.iter().find(|e| e.peer == "b").unwrap();
    assert!(!export.advertised);
    assert_eq!(export.reason, "export default: only originated and reflected routes");
    b.speaker.withdraw(b.now, p("10.244.1.0/24"));
    assert_eq!(withdrawn(&b.updates(other)), ["10.244.1.0/24"]);
}

#[test]
fn originated_routes_carry_our_as_and_our_next_hop_in_both_families() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    b.speaker.originate(
        b.now,
        LocalRoute { med: Some(5), communities: vec![7, 3, 7], ..LocalRoute::new(p("10.244.1.0/24")) },
    );
    b.originate("fd00:244::/64");
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let updates = b.updates(conn);
    let v4 = updates.iter().find(|u| u.reach.iter().any(|r| r.family == Family::Ipv4Unicast)).unwrap();
    let set = v4.attributes.as_ref().unwrap();
    assert_eq!((as_path(set).as_str(), set.med, set.local_pref), ("64512", Some(5), None));
    assert_eq!(set.communities.as_slice(), [3, 7]);
    assert_eq!(v4.reach[0].next_hop, NextHop::V4("10.0.0.1".parse().unwrap()));
    let v6 = updates.iter().flat_map(|u| &u.reach).find(|r| r.family == Family::Ipv6Unicast).unwrap();
    let both =
        NextHop::V6 { global: "fd00::1".parse().unwrap(), link_local: Some("fe80::1".parse().unwrap()) };
    assert_eq!(v6.next_hop, both);
}

#[test]
fn trap_20_local_pref_is_for_internal_peers_and_ignored_from_external_ones() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    b.peer(PeerConfig { export: accept_all(), ..internal("in", "10.0.0.3") });
    let tor = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let inside = b.establish("10.0.0.3", open(OUR_AS, "10.0.0.3"));
    // An external peer that sends LOCAL_PREF anyway.
    let set = PathAttributes { local_pref: Some(999), med: Some(4), ..attributes(&[65001]) };
    b.announce(tor, &[X], &set, "10.0.0.2");
    assert_eq!(b.path(X, "10.0.0.2").unwrap().local_pref, Some(100));
    let (seen, _) = update_for(&mut b, inside, X);
    assert_eq!((seen.local_pref, seen.med, as_path(&seen).as_str()), (Some(100), Some(4), "65001"));
}

#[test]
fn trap_20_med_is_stripped_towards_external_peers() {
    let Two { mut b, one, third, .. } = two();
    let set = PathAttributes { med: Some(4), ..attributes(&[65001]) };
    b.announce(one, &[X], &set, "10.0.0.2");
    let (seen, next_hop) = update_for(&mut b, third, X);
    assert_eq!((seen.med, seen.local_pref), (None, None));
    assert_eq!(next_hop, NextHop::V4("10.0.0.1".parse().unwrap()), "next hop self by default");
}

#[test]
fn trap_20_internal_routes_are_not_passed_on_to_internal_peers() {
    let mut b = Bench::new();
    b.peer(PeerConfig { export: accept_all(), ..internal("a", "10.0.0.2") });
    b.peer(PeerConfig { export: accept_all(), ..internal("b", "10.0.0.3") });
    let a = b.establish("10.0.0.2", open(OUR_AS, "10.0.0.2"));
    let other = b.establish("10.0.0.3", open(OUR_AS, "10.0.0.3"));
    b.announce(a, &[X], &attributes(&[]), "10.0.0.2");
    assert_eq!(hops(&b, X), ["10.0.0.2"]);
    assert!(announced(&b.updates(other)).is_empty());
    let why = b.speaker.explain(p(X)).exports.into_iter().find(|e| e.peer == "b").unwrap();
    assert_eq!(why.reason, "internal route, and neither end is a reflection client");
}

#[test]
fn trap_21_reflection_sets_originator_and_cluster_and_keeps_the_next_hop() {
    let mut b = Bench::new();
    let client = |name, address| PeerConfig { route_reflector_client: true, ..internal(name, address) };
    b.peer(client("c1", "10.0.0.2"));
    b.peer(client("c2", "10.0.0.3"));
    b.peer(internal("rr", "10.0.0.4"));
    let c1 = b.establish("10.0.0.2", open(OUR_AS, "10.0.0.2"));
    let c2 = b.establish("10.0.0.3", open(OUR_AS, "10.0.0.3"));
    let rr = b.establish("10.0.0.4", open(OUR_AS, "10.0.0.4"));
    b.announce(c1, &[X], &attributes(&[]), "10.0.0.2");
    for conn in [c2, rr] {
        let (set, next_hop) = update_for(&mut b, conn, X);
        assert_eq!(set.originator_id, Some(id("10.0.0.2")));
        assert_eq!(set.cluster_list, ["10.0.0.1".parse::<std::net::Ipv4Addr>().unwrap()]);
        assert_eq!(next_hop, NextHop::V4("10.0.0.2".parse().unwrap()));
        assert_eq!(as_path(&set), "");
    }
    assert!(announced(&b.updates(c1)).is_empty(), "not back to where it came from");
    // From a non-client to clients only; ORIGINATOR_ID of somebody else stays.
    let set = PathAttributes {
        originator_id: Some(id("10.0.0.77")),
        cluster_list: vec!["10.0.0.4".parse().unwrap()],
        ..attributes(&[])
    };
    b.announce(rr, &["10.8.0.0/16"], &set, "10.0.0.77");
    let (seen, _) = update_for(&mut b, c1, "10.8.0.0/16");
    assert_eq!(seen.originator_id, Some(id("10.0.0.77")));
    assert_eq!(seen.cluster_list.len(), 2);
}

#[test]
fn trap_21_our_own_originator_id_and_cluster_are_dropped() {
    let mut b = Bench::new();
    b.peer(internal("rr", "10.0.0.4"));
    let rr = b.establish("10.0.0.4", open(OUR_AS, "10.0.0.4"));
    let mine = PathAttributes { originator_id: Some(id("10.0.0.1")), ..attributes(&[]) };
    b.announce(rr, &[X], &mine, "10.0.0.2");
    let clustered = PathAttributes { cluster_list: vec!["10.0.0.1".parse().unwrap()], ..attributes(&[]) };
    b.announce(rr, &["10.8.0.0/16"], &clustered, "10.0.0.2");
    assert!(b.fib.is_empty());
    let reasons: Vec<Option<String>> =
        b.speaker.routes(&RouteQuery::AdjRibIn("rr".into())).into_iter().map(|r| r.reason).collect();
    let expected = ["own cluster in CLUSTER_LIST", "own ORIGINATOR_ID"].map(|s| Some(s.to_owned()));
    assert_eq!(reasons, expected);
}

#[test]
fn trap_24_own_as_in_the_path_is_a_loop_unless_allowas_in_permits_it() {
    let mut b = Bench::new();
    let mut config = Bench::tor("tor", "10.0.0.2");
    b.peer(config.clone());
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &[X], &attributes(&[65001, 64512]), "10.0.0.2");
    let refused = b.path(X, "10.0.0.2").unwrap();
    assert!(refused.filtered && refused.reason.as_deref() == Some("own AS in AS_PATH"));
    b.messages(conn);
    config.allow_as_in = 1;
    b.peer(config);
    let asked: Vec<Message> = b.messages(conn);
    assert_eq!(asked.len(), 2, "a route refresh for each family: {asked:?}");
    b.announce(conn, &[X], &attributes(&[65001, 64512]), "10.0.0.2");
    assert_eq!(hops(&b, X), ["10.0.0.2"]);
    b.announce(conn, &[X], &attributes(&[65001, 64512, 64512]), "10.0.0.2");
    assert!(b.fib.is_empty(), "a refused route replaces the accepted one before it");
}

#[test]
fn trap_24_as_override_replaces_the_peers_as() {
    let Two { mut b, one, .. } = two();
    b.peer(PeerConfig { export: accept_all(), as_override: true, ..Bench::tor("same", "10.0.0.8") });
    let same = b.establish("10.0.0.8", open(Asn(65001), "10.0.0.8"));
    b.messages(same);
    b.announce(one, &[X], &attributes(&[65001, 65100]), "10.0.0.2");
    assert_eq!(as_path(&update_for(&mut b, same, X).0), "64512 64512 65100");
}

#[test]
fn local_as_is_prepended_in_both_directions() {
    let mut b = Bench::new();
    b.peer(PeerConfig { local_as: Some(Asn(65101)), ..Bench::tor("tor", "10.0.0.2") });
    b.peer(PeerConfig { export: accept_all(), ..internal("in", "10.0.0.3") });
    b.originate("10.244.1.0/24");
    let tor = b.accept("10.0.0.2").unwrap();
    assert!(matches!(b.messages(tor).as_slice(), [Message::Open(o)] if o.asn == Asn(65101)));
    b.send(tor, &Message::Open(open(TOR_AS, "10.0.0.2")));
    b.send(tor, &Message::Keepalive);
    assert_eq!(as_path(&update_for(&mut b, tor, "10.244.1.0/24").0), "65101 64512");
    let inside = b.establish("10.0.0.3", open(OUR_AS, "10.0.0.3"));
    b.messages(inside);
    b.announce(tor, &[X], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(as_path(&update_for(&mut b, inside, X).0), "65101 65001");
    b.announce(tor, &["10.8.0.0/16"], &attributes(&[65001, 65101]), "10.0.0.2");
    assert!(b.path("10.8.0.0/16", "10.0.0.2").unwrap().filtered, "the other AS is ours, too");
}

#[test]
fn well_known_communities_are_acted_on() {
    let mut b = Bench::new();
    b.peer(Bench::tor("one", "10.0.0.2"));
    b.peer(PeerConfig { export: accept_all(), ..Bench::tor("out", "10.0.0.3") });
    b.peer(PeerConfig { export: accept_all(), ..internal("in", "10.0.0.4") });
    let one = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let out = b.establish("10.0.0.3", open(Asn(65002), "10.0.0.3"));
    let inside = b.establish("10.0.0.4", open(OUR_AS, "10.0.0.4"));
    let with = |c: u32| PathAttributes { communities: [c].into_iter().collect(), ..attributes(&[65001]) };
    b.announce(one, &["10.9.1.0/24"], &with(NO_EXPORT), "10.0.0.2");
    b.announce(one, &["10.9.2.0/24"], &with(NO_ADVERTISE), "10.0.0.2");
    b.announce(one, &["10.9.3.0/24"], &with(GRACEFUL_SHUTDOWN), "10.0.0.2");
    assert_eq!(announced(&b.updates(out)), ["10.9.3.0/24"]);
    assert_eq!(announced(&b.updates(inside)), ["10.9.1.0/24", "10.9.3.0/24"]);
    assert_eq!(b.path("10.9.3.0/24", "10.0.0.2").unwrap().local_pref, Some(0));
    assert_eq!(b.path("10.9.1.0/24", "10.0.0.2").unwrap().communities, ["no-export"]);
}

#[test]
fn draining_lowers_local_pref_towards_internal_peers() {
    let mut b = Bench::new();
    b.peer(internal("in", "10.0.0.4"));
    let inside = b.establish("10.0.0.4", open(OUR_AS, "10.0.0.4"));
    b.originate("10.244.1.0/24");
    assert_eq!(update_for(&mut b, inside, "10.244.1.0/24").0.local_pref, Some(100));
    let drained = LocalRoute { communities: vec![GRACEFUL_SHUTDOWN], ..LocalRoute::new(p("10.244.1.0/24")) };
    b.speaker.originate(b.now, drained);
    assert_eq!(update_for(&mut b, inside, "10.244.1.0/24").0.local_pref, Some(0));
}

#[test]
fn trap_22_a_third_party_next_hop_on_the_shared_subnet_stays_with_auto() {
    let Two { mut b, one, .. } = two();
    for (name, address, mode) in
        [("auto", "10.0.0.7", NextHopMode::Auto), ("keep", "10.0.0.8", NextHopMode::Keep)]
    {
        b.peer(PeerConfig { export: accept_all(), next_hop: mode, ..Bench::tor(name, address) });
    }
    let auto = b.establish("10.0.0.7", open(Asn(65007), "10.0.0.7"));
    let keep = b.establish("10.0.0.8", open(Asn(65008), "10.0.0.8"));
    b.announce(one, &["10.9.1.0/24"], &attributes(&[65001]), "10.0.0.66");
    b.announce(one, &["10.9.2.0/24"], &attributes(&[65001]), "172.16.0.1");
    b.announce(one, &["10.9.3.0/24"], &attributes(&[65001]), "10.0.0.7");
    let hop = |updates: &[Update], prefix: &str| {
        let reach = updates.iter().flat_map(|u| &u.reach).find(|r| r.nlri[0].prefix == p(prefix)).unwrap();
        reach.next_hop.addr().to_string()
    };
    let seen = b.updates(auto);
    assert_eq!(hop(&seen, "10.9.1.0/24"), "10.0.0.66");
    assert_eq!(hop(&seen, "10.9.2.0/24"), "10.0.0.1", "not on the subnet: our own");
    assert_eq!(hop(&seen, "10.9.3.0/24"), "10.0.0.1", "never the peer itself");
    let seen = b.updates(keep);
    assert_eq!(hop(&seen, "10.9.2.0/24"), "172.16.0.1");
}

#[test]
fn our_own_address_as_next_hop_is_refused() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.speaker.set_local_addresses(b.now, vec![ip("192.168.7.1")]);
    for own in ["10.0.0.1", "192.168.7.1"] {
        b.announce(conn, &[X], &attributes(&[65001]), own);
        assert_eq!(b.path(X, "10.0.0.2").unwrap().reason.as_deref(), Some("next hop is our own address"));
        b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
        assert_eq!(hops(&b, X), ["10.0.0.2"]);
    }
}

#[test]
fn trap_27_the_default_import_refuses_what_would_hurt_the_node() {
    let mut b = Bench::new();
    b.speaker.set_local_addresses(b.now, vec![ip("192.168.7.1")]);
    b.originate("10.244.1.0/24");
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let refused = [
        ("0.0.0.0/0", "import default: no default route"),
        ("127.0.0.0/8", "import default: no loopback"),
        ("169.254.0.0/16", "import default: no link-local"),
        ("224.0.0.0/4", "import default: no multicast"),
        ("10.244.1.0/24", "import default: overlaps an own block"),
        ("10.244.0.0/16", "import default: overlaps an own block"),
        ("10.244.1.64/26", "import default: overlaps an own block"),
        ("192.168.0.0/16", "import default: covers an address of this node"),
        ("10.0.0.0/24", "import default: covers an address of this node"),
        ("10.0.0.2/31", "import default: covers the address of a peer"),
    ];
    for (prefix, why) in refused {
        b.announce(conn, &[prefix], &attributes(&[65001]), "10.0.0.2");
        let path = b.path(prefix, "10.0.0.2").unwrap();
        assert_eq!(path.reason.as_deref(), Some(why), "{prefix}");
        assert!(!path.best);
    }
    b.announce(conn, &["::/0"], &attributes(&[65001]), "fd00::2");
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(b.fib.len(), 1);
    let v4 = b.view("tor").families.into_iter().find(|f| f.family == Family::Ipv4Unicast).unwrap();
    assert_eq!((v4.received, v4.accepted, v4.filtered), (11, 1, 10));
}

#[test]
fn trap_27_a_filter_accepts_by_name_what_the_default_refuses() {
    let mut b = Bench::new();
    let range = PrefixRange::new(p("0.0.0.0/0"), None, None);
    let rule = Rule::new(
        "default-route",
        Match { prefix: range, ..Match::default() },
        Action::Accept,
        Set { local_pref: Some(200), ..Set::default() },
    );
    b.peer(PeerConfig { import: filter("uplink", vec![rule]), ..Bench::tor("tor", "10.0.0.2") });
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &["0.0.0.0/0", "127.0.0.0/8", X], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(b.fib.keys().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0/0", X]);
    assert_eq!(b.path("0.0.0.0/0", "10.0.0.2").unwrap().local_pref, Some(200));
    assert_eq!(b.path(X, "10.0.0.2").unwrap().local_pref, Some(100));
    let by = |b: &Bench, prefix: &str| b.path(prefix, "10.0.0.2").unwrap().accepted_by;
    assert_eq!(by(&b, "0.0.0.0/0").as_deref(), Some("import filter uplink: default-route"));
    assert_eq!(by(&b, X).as_deref(), Some("import default"));
    let hits: Vec<(String, String, u64)> = b
        .speaker
        .filter_rules()
        .into_iter()
        .filter(|r| r.family == Family::Ipv4Unicast)
        .map(|r| (r.filter, r.rule, r.hits))
        .collect();
    assert_eq!(hits, [("uplink".to_owned(), "default-route".to_owned(), 1)]);
}

#[test]
fn a_block_that_becomes_ours_takes_learned_routes_out_and_gives_them_back() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &["10.244.0.0/16"], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(hops(&b, "10.244.0.0/16"), ["10.0.0.2"]);
    b.originate("10.244.1.0/24");
    assert!(b.fib.is_empty());
    b.speaker.withdraw(b.now, p("10.244.1.0/24"));
    b.pump();
    assert_eq!(hops(&b, "10.244.0.0/16"), ["10.0.0.2"]);
}

#[test]
fn trap_18_denied_by_a_new_export_filter_is_withdrawn() {
    let Two { mut b, one, third, .. } = two();
    b.announce(one, &[X, "10.8.0.0/16"], &attributes(&[65001]), "10.0.0.2");
    b.messages(third);
    let reject = Rule::new(
        "not-nine",
        Match { prefix: PrefixRange::new(p(X), None, None), ..Match::default() },
        Action::Reject,
        Set::default(),
    );
    let accept = Rule::new(
        "rest",
        Match::default(),
        Action::Accept,
        Set { prepend: 2, add_communities: vec![9], ..Set::default() },
    );
    let config =
        PeerConfig { export: filter("new", vec![reject, accept]), ..Bench::tor("third", "10.0.0.9") };
    b.peer(config);
    let updates = b.updates(third);
    assert_eq!((withdrawn(&updates), announced(&updates)), (vec![X.to_owned()], vec!["10.8.0.0/16".into()]));
    let set = updates.iter().find_map(|u| u.attributes.clone()).unwrap();
    assert_eq!((as_path(&set).as_str(), set.communities.as_slice()), ("64512 64512 64512 65001", &[9][..]));
    assert_eq!(b.state("third"), "Established");
    let export = b.speaker.explain(p(X)).exports.into_iter().find(|e| e.peer == "third").unwrap();
    assert_eq!((export.advertised, export.reason.as_str()), (false, "export filter new: not-nine"));
}

#[test]
fn new_import_filters_ask_for_the_routes_again() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    b.messages(conn);
    let reject = Rule::new("none", Match::default(), Action::Reject, Set::default());
    b.peer(PeerConfig { import: filter("closed", vec![reject]), ..Bench::tor("tor", "10.0.0.2") });
    let asked: Vec<Family> = b
        .messages(conn)
        .into_iter()
        .filter_map(|m| match m {
            Message::RouteRefresh(r) => Some(r.family),
            _ => None,
        })
        .collect();
    assert_eq!(asked, Family::ALL);
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    assert!(b.fib.is_empty());
    assert_eq!(b.path(X, "10.0.0.2").unwrap().reason.as_deref(), Some("import filter closed: none"));
    b.withdraw(conn, &[X]);
    assert_eq!(b.path(X, "10.0.0.2"), None);
}

#[test]
fn without_route_refresh_a_new_import_filter_needs_a_new_session() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let mut theirs = open(TOR_AS, "10.0.0.2");
    theirs.capabilities.retain(|c| *c != Capability::RouteRefresh);
    let conn = b.establish("10.0.0.2", theirs);
    b.peer(PeerConfig { import: accept_all(), ..Bench::tor("tor", "10.0.0.2") });
    assert_eq!(b.notification(conn), Some((6, 4)));
}

#[test]
fn a_route_refresh_from_the_peer_sends_everything_again() {
    let mut b = Bench::new();
    b.originate("10.244.1.0/24");
    b.originate("fd00:244::/64");
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.messages(conn);
    let refresh = RouteRefresh { family: Family::Ipv6Unicast, kind: RefreshKind::Request };
    b.send(conn, &Message::RouteRefresh(refresh));
    assert_eq!(announced(&b.updates(conn)), ["fd00:244::/64"]);
    b.speaker.reset(b.now, "tor", Reset::SoftOut);
    assert_eq!(announced(&b.updates(conn)), ["10.244.1.0/24", "fd00:244::/64"]);
    assert_eq!(b.state("tor"), "Established");
}

#[test]
fn trap_14_treat_as_withdraw_still_withdraws_the_old_route() {
    let Two { mut b, one, third, .. } = two();
    b.announce(one, &[X], &attributes(&[65001]), "10.0.0.2");
    b.messages(third);
    // The same prefix with an ORIGIN of 9.
    let mut out = bytes::BytesMut::new();
    let ctx = manx_bgp::wire::EncodeContext::modern(PeerType::External);
    let encoded = manx_bgp::wire::EncodedAttributes::new(&attributes(&[65001]), &ctx);
    let mut nlri = [Nlri { prefix: p(X), path_id: 0 }].into_iter().peekable();
    let hop = NextHop::V4("10.0.0.2".parse().unwrap());
    manx_bgp::wire::reach(&mut out, &ctx, &encoded, hop, Family::Ipv4Unicast, &mut nlri).unwrap();
    // Header 19, withdrawn length 2, attribute length 2, then flags, code, length, value of ORIGIN.
    assert_eq!(&out[23..27], [0x40, 1, 1, 0]);
    out[26] = 9;
    b.send_bytes(one, &out);
    assert_eq!(b.state("one"), "Established");
    assert_eq!(withdrawn(&b.updates(third)), [X]);
    assert!(b.fib.is_empty());
    assert_eq!(b.view("one").messages.faults, 1);
}

#[test]
fn max_prefixes_warn_tells_once_and_takes_all() {
    let mut b = Bench::new();
    let max = MaxPrefixes { limit: 2, action: MaxPrefixesAction::Warn };
    b.peer(PeerConfig { max_prefixes: Some(max), ..Bench::tor("tor", "10.0.0.2") });
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    for i in 0..5 {
        b.announce(conn, &[&format!("10.9.{i}.0/24")], &attributes(&[65001]), "10.0.0.2");
    }
    assert_eq!(b.fib.len(), 5);
    let told = b.facts.iter().filter(|f| f.reason == "more than 2 ipv4 prefixes received").count();
    assert_eq!(told, 1);
}

#[test]
fn max_prefixes_reject_takes_no_more_than_the_limit() {
    let mut b = Bench::new();
    let max = MaxPrefixes { limit: 2, action: MaxPrefixesAction::Reject };
    b.peer(PeerConfig { max_prefixes: Some(max), ..Bench::tor("tor", "10.0.0.2") });
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    for i in 0..5 {
        b.announce(conn, &[&format!("10.9.{i}.0/24")], &attributes(&[65001]), "10.0.0.2");
    }
    assert_eq!(b.fib.len(), 2);
    assert_eq!(b.path("10.9.4.0/24", "10.0.0.2").unwrap().reason.as_deref(), Some("over the prefix limit"));
    // A known prefix may change, and room that is made is used.
    b.announce(conn, &["10.9.0.0/24"], &attributes(&[65001, 65100]), "10.0.0.2");
    assert_eq!(b.fib.len(), 2);
    b.withdraw(conn, &["10.9.0.0/24"]);
    b.announce(conn, &["10.9.4.0/24"], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(hops(&b, "10.9.4.0/24"), ["10.0.0.2"]);
    assert_eq!(b.state("tor"), "Established");
}

#[test]
fn max_prefixes_disable_ceases_with_6_1_and_stays_down_until_reset() {
    let mut b = Bench::new();
    let max = MaxPrefixes { limit: 2, action: MaxPrefixesAction::Disable };
    b.peer(PeerConfig { max_prefixes: Some(max), ..Bench::tor("tor", "10.0.0.2") });
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &["10.9.1.0/24", "10.9.2.0/24", "10.9.3.0/24"], &attributes(&[65001]), "10.0.0.2");
    let sent = b.messages(conn);
    let n = sent.iter().find_map(|m| match m {
        Message::Notification(n) => Some(n.clone()),
        _ => None,
    });
    // RFC 4486 4: AFI, SAFI, limit.
    assert_eq!(n, Some(Notification::new(6, 1, [0, 1, 1, 0, 0, 0, 2])));
    assert!(b.fib.is_empty() && b.routes().is_empty());
    b.advance(secs(100_000));
    assert_eq!(b.accept("10.0.0.2"), None);
    assert!(b.view("tor").reason.unwrap().starts_with("more than 2 ipv4 prefixes"));
    b.speaker.reset(b.now, "tor", Reset::Hard);
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
}

#[test]
fn a_limit_that_is_lowered_holds_for_what_is_here_already() {
    for action in [MaxPrefixesAction::Warn, MaxPrefixesAction::Reject, MaxPrefixesAction::Disable] {
        let mut b = Bench::new();
        let limited = |limit| PeerConfig {
            max_prefixes: Some(MaxPrefixes { limit, action }),
            ..Bench::tor("tor", "10.0.0.2")
        };
        b.peer(limited(5));
        let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
        for i in 0..5 {
            b.announce(conn, &[&format!("10.9.{i}.0/24")], &attributes(&[65001]), "10.0.0.2");
        }
        b.peer(limited(3));
        let (left, state) = match action {
            MaxPrefixesAction::Warn => (5, "Established"),
            MaxPrefixesAction::Reject => (3, "Established"),
            MaxPrefixesAction::Disable => (0, "Idle"),
        };
        assert_eq!((b.fib.len(), b.state("tor")), (left, state), "{action:?}");
        if action == MaxPrefixesAction::Reject {
            assert_eq!(
                b.path("10.9.4.0/24", "10.0.0.2").unwrap().reason.as_deref(),
                Some("over the prefix limit")
            );
            b.peer(limited(5));
            b.announce(conn, &["10.9.3.0/24", "10.9.4.0/24"], &attributes(&[65001]), "10.0.0.2");
            assert_eq!(b.fib.len(), 5);
        }
    }
}

#[test]
fn attributes_too_long_for_a_message_withdraw_what_the_peer_had() {
    let Two { mut b, one, third, .. } = two();
    b.announce(one, &[X], &attributes(&[65001]), "10.0.0.2");
    b.messages(third);
    // Fits our import, but not once our AS has been added.
    let mut huge = attributes(&[65001]);
    huge.communities = (0..1000).collect();
    b.announce(one, &[X], &huge, "10.0.0.2");
    assert_eq!(hops(&b, X), ["10.0.0.2"]);
    assert_eq!(announced(&b.updates(third)), [X]);
    let prepend = Rule::new("p", Match::default(), Action::Accept, Set { prepend: 50, ..Set::default() });
    b.peer(PeerConfig { export: filter("long", vec![prepend]), ..Bench::tor("third", "10.0.0.9") });
    assert_eq!(withdrawn(&b.updates(third)), [X]);
    assert_eq!(b.state("third"), "Established");
}

#[test]
fn trap_26_end_of_rib_comes_for_each_family_after_the_initial_dump() {
    let mut b = Bench::new();
    for i in 0..3000 {
        let prefix = format!("10.{}.{}.0/24", 100 + i / 256, i % 256);
        b.speaker.originate(b.now, LocalRoute::new(p(&prefix)));
    }
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let updates = b.updates(conn);
    assert_eq!(announced(&updates).len(), 3000);
    let ends: Vec<(usize, Family)> =
        updates.iter().enumerate().filter_map(|(i, u)| Some((i, u.end_of_rib?))).collect();
    let last = updates.len() - 1;
    assert_eq!(ends, [(last - 1, Family::Ipv4Unicast), (last, Family::Ipv6Unicast)]);
    b.originate("10.1.0.0/16");
    assert!(b.updates(conn).iter().all(|u| u.end_of_rib.is_none()), "once a session");
}

#[test]
fn keepalives_overtake_routes_that_are_not_encoded_yet() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.messages(conn);
    for i in 0..5000 {
        let prefix = format!("10.{}.{}.0/24", 100 + i / 256, i % 256);
        b.speaker.originate(b.now, LocalRoute::new(p(&prefix)));
    }
    // The socket is busy for half a minute: memory does not grow, and the KEEPALIVE comes first when it is free.
    b.now += secs(31);
    b.speaker.handle_timeout(b.now);
    let mut out = bytes::BytesMut::new();
    assert!(b.speaker.poll_transmit(conn, &mut out));
    assert_eq!((out.len(), out[18]), (19, 4));
}

#[test]
fn adj_rib_out_shows_what_the_peer_saw() {
    let Two { mut b, one, third, .. } = two();
    b.announce(one, &[X], &PathAttributes { med: Some(3), ..attributes(&[65001]) }, "10.0.0.2");
    b.messages(third);
    let out = b.speaker.routes(&RouteQuery::AdjRibOut("third".into()));
    assert_eq!(out.len(), 1);
    assert_eq!((out[0].prefix, out[0].next_hop, out[0].med), (p(X), Some(ip("10.0.0.1")), None));
    assert_eq!(out[0].as_path, [AsPathItem::Asn(OUR_AS), AsPathItem::Asn(Asn(65001))]);
    assert_eq!(b.speaker.routes(&RouteQuery::AdjRibOut("one".into())), []);
    assert_eq!(b.speaker.routes(&RouteQuery::AdjRibOut("nobody".into())), []);
    let counts = b.view("third").families.remove(0);
    assert_eq!((counts.advertised, counts.pending, counts.end_of_rib_sent), (1, 0, true));
}

#[test]
fn lookup_finds_the_longest_eligible_match() {
    let Two { mut b, one, two, .. } = two();
    b.announce(one, &["10.8.0.0/13"], &attributes(&[65001]), "10.0.0.2");
    b.announce(two, &[X], &attributes(&[65002]), "10.0.0.3");
    let found = b.speaker.lookup(ip("10.9.1.1")).unwrap();
    assert_eq!((found.prefix, found.next_hops[0].gateway), (p(X), ip("10.0.0.3")));
    b.speaker.set_next_hop(b.now, ip("10.0.0.3"), NextHopState::Unreachable);
    b.pump();
    assert_eq!(b.speaker.lookup(ip("10.9.1.1")).unwrap().prefix, p("10.8.0.0/13"));
    assert!(b.speaker.lookup(ip("11.0.0.1")).is_none());
}
