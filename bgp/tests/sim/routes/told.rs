//! What is told to whom, with which attributes, and in how many messages.

use super::*;

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
    let (mut out, ctx) = announcement();
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
