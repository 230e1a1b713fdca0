//! Which path wins, at which step the others lose, and what goes to the FIB.

use super::*;

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
