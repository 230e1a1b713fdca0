//! What is taken in from a peer, what is refused, and how much of it.

use super::*;

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
fn trap_14_treat_as_withdraw_still_withdraws_the_old_route() {
    let Two { mut b, one, third, .. } = two();
    b.announce(one, &[X], &attributes(&[65001]), "10.0.0.2");
    b.messages(third);
    // The same prefix with an ORIGIN of 9.
    let (mut out, _) = announcement();
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
    let max = MaxPrefixes { limit: 2, action: MaxPrefixesAction::Disable { restart: None } };
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
fn max_prefixes_disable_with_a_restart_time_tries_again_after_it() {
    let mut b = Bench::new();
    let action = MaxPrefixesAction::Disable { restart: Some(secs(300)) };
    let max = MaxPrefixes { limit: 2, action };
    b.peer(PeerConfig { max_prefixes: Some(max), ..Bench::tor("tor", "10.0.0.2") });
    let too_many = ["10.9.1.0/24", "10.9.2.0/24", "10.9.3.0/24"];
    for _ in 0..2 {
        let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
        b.announce(conn, &too_many, &attributes(&[65001]), "10.0.0.2");
        assert_eq!(b.notification(conn), Some((6, 1)));
        b.advance(secs(299));
        assert_eq!((b.accept("10.0.0.2"), b.state("tor")), (None, "Idle"));
        let reason = b.view("tor").reason.unwrap();
        assert_eq!(reason, "more than 2 ipv4 prefixes received: stopped for 300 s or until reset");
        b.advance(secs(2));
    }
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &too_many[..2], &attributes(&[65001]), "10.0.0.2");
    assert_eq!((b.state("tor"), b.fib.len()), ("Established", 2));
    // A reset does not wait for it.
    b.announce(conn, &too_many[2..], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(b.state("tor"), "Idle");
    b.speaker.reset(b.now, "tor", Reset::Hard);
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.advance(secs(80));
    assert_eq!(b.state("tor"), "Established");
}

#[test]
fn a_limit_that_is_lowered_holds_for_what_is_here_already() {
    for action in
        [MaxPrefixesAction::Warn, MaxPrefixesAction::Reject, MaxPrefixesAction::Disable { restart: None }]
    {
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
            MaxPrefixesAction::Disable { .. } => (0, "Idle"),
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
