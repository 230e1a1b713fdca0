//! Sessions: the state machine of RFC 4271 8 as the far side sees it.

use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::message::*;
use rstest::rstest;

use crate::bench::*;

fn active(name: &str, address: &str) -> PeerConfig {
    PeerConfig::new(name, ip(address), RemoteAs::External)
}

fn keepalives(messages: &[Message]) -> usize {
    messages.iter().filter(|m| **m == Message::Keepalive).count()
}

#[test]
fn a_session_comes_up_by_our_dial() {
    let mut b = Bench::new();
    b.peer(active("tor", "10.0.0.2"));
    assert_eq!(b.state("tor"), "Connect");
    let conn = b.connect("10.0.0.2");
    assert_eq!(b.state("tor"), "OpenSent");
    let sent = b.messages(conn);
    let [Message::Open(ours)] = sent.as_slice() else { panic!("one OPEN, got {sent:?}") };
    assert_eq!((ours.asn, ours.hold_time, ours.router_id), (OUR_AS, 90, id("10.0.0.1")));
    b.send(conn, &Message::Open(open(TOR_AS, "10.0.0.2")));
    assert_eq!(b.state("tor"), "OpenConfirm");
    assert_eq!(b.messages(conn), [Message::Keepalive]);
    b.send(conn, &Message::Keepalive);
    assert_eq!(b.state("tor"), "Established");
    let view = b.view("tor");
    assert_eq!((view.remote_as, view.reason, view.flaps), (Some(TOR_AS), None, 0));
    let path: Vec<&str> = b.facts.iter().map(|f| f.to).collect();
    assert_eq!(path, ["Connect", "OpenSent", "OpenConfirm", "Established"]);
}

#[test]
fn a_session_comes_up_by_the_peers_dial() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    assert_eq!(b.state("tor"), "Active");
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    assert!(b.dials.is_empty(), "a passive peer is never dialled");
}

#[test]
fn strangers_are_not_let_in() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    assert_eq!(b.accept("10.0.0.3"), None);
    assert!(b.accept("::ffff:10.0.0.2").is_some(), "a mapped address is the peer's own");
}

#[test]
fn bytes_may_come_in_any_portions() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.accept("10.0.0.2").unwrap();
    let mut bytes = bytes::BytesMut::new();
    open(TOR_AS, "10.0.0.2").encode(&mut bytes);
    manx_bgp::wire::keepalive(&mut bytes);
    for byte in bytes {
        b.send_bytes(conn, &[byte]);
    }
    assert_eq!(b.state("tor"), "Established");
}

/// RFC 9072: ours takes the long form for a peer that does, and for nobody else.
#[test]
fn an_open_is_answered_in_the_form_in_which_the_peer_writes_its_own() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let form = |b: &mut Bench, conn: ConnId| match b.messages(conn).as_slice() {
        [Message::Open(open)] => open.extended,
        other => panic!("{other:?}"),
    };
    for (theirs, ours) in [(true, false), (true, true), (false, true), (false, false)] {
        let conn = b.accept("10.0.0.2").unwrap();
        assert_eq!(form(&mut b, conn), ours, "theirs before was that form");
        b.send(conn, &Message::Open(Open { extended: theirs, ..open(TOR_AS, "10.0.0.2") }));
        b.send(conn, &Message::Keepalive);
        assert_eq!(b.state("tor"), "Established");
        b.speaker.reset(b.now, "tor", Reset::Hard);
        b.pump();
    }
}

#[test]
fn the_hold_timer_ends_a_silent_session_with_4_0() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.messages(conn);
    b.advance(secs(89));
    assert_eq!(b.state("tor"), "Established");
    // A third of 90 s, shortened by up to a quarter.
    assert!((2..=4).contains(&keepalives(&b.messages(conn))));
    b.advance(secs(2));
    assert_eq!(b.notification(conn), Some((4, 0)));
    assert_eq!(b.view("tor").flaps, 1);
    assert!(b.facts.iter().any(|f| f.from == "Established" && f.reason.contains("hold timer expired")));
}

#[test]
fn any_message_restarts_the_hold_timer() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    for i in 0..10 {
        b.advance(secs(60));
        match i % 3 {
            0 => b.send(conn, &Message::Keepalive),
            1 => b.announce(conn, &["10.9.0.0/16"], &attributes(&[65001]), "10.0.0.2"),
            _ => b.end_of_rib(conn, Family::Ipv6Unicast),
        }
    }
    assert_eq!((b.state("tor"), b.view("tor").flaps), ("Established", 0));
}

#[test]
fn trap_7_hold_time_0_switches_off_both_timers() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let mut theirs = open(TOR_AS, "10.0.0.2");
    theirs.hold_time = 0;
    let conn = b.establish("10.0.0.2", theirs);
    b.messages(conn);
    b.advance(secs(100_000));
    assert_eq!(b.state("tor"), "Established");
    assert_eq!(keepalives(&b.messages(conn)), 0);
    assert_eq!(b.view("tor").timers.hold_time, None);
}

#[test]
fn trap_7_our_own_hold_time_0_does_the_same() {
    let mut b = Bench::new();
    let mut config = Bench::tor("tor", "10.0.0.2");
    config.hold_time = None;
    b.peer(config);
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let sent = b.messages(conn);
    assert!(matches!(&sent[0], Message::Open(o) if o.hold_time == 0));
    b.advance(secs(100_000));
    assert_eq!(b.state("tor"), "Established");
}

#[test]
fn a_peer_that_never_sends_open_is_given_up_after_4_minutes() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.accept("10.0.0.2").unwrap();
    b.advance(secs(239));
    assert_eq!(b.state("tor"), "OpenSent");
    b.advance(secs(2));
    assert_eq!(b.notification(conn), Some((4, 0)));
}

#[rstest]
#[case::bad_peer_as(open(Asn(65009), "10.0.0.2"), (2, 2))]
#[case::hold_time_1(Open { hold_time: 1, ..open(TOR_AS, "10.0.0.2") }, (2, 6))]
#[case::hold_time_2(Open { hold_time: 2, ..open(TOR_AS, "10.0.0.2") }, (2, 6))]
fn a_bad_open_gets_its_notification(#[case] theirs: Open, #[case] expected: (u8, u8)) {
    let mut b = Bench::new();
    let mut config = Bench::tor("tor", "10.0.0.2");
    config.remote_as = RemoteAs::Asn(TOR_AS);
    b.peer(config);
    let conn = b.accept("10.0.0.2").unwrap();
    b.send(conn, &Message::Open(theirs));
    assert_eq!(b.notification(conn), Some(expected));
    assert!(b.closed.contains(&conn));
    assert_eq!(b.state("tor"), "Idle");
    assert!(b.view("tor").reason.is_some());
}

#[test]
fn unexpected_messages_get_the_fsm_error_of_their_state() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.accept("10.0.0.2").unwrap();
    b.send(conn, &Message::Keepalive);
    assert_eq!(b.notification(conn), Some((5, 1)));

    b.advance(secs(10));
    let conn = b.accept("10.0.0.2").unwrap();
    b.send(conn, &Message::Open(open(TOR_AS, "10.0.0.2")));
    b.announce(conn, &["10.9.0.0/16"], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(b.notification(conn), Some((5, 2)));

    b.advance(secs(10));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.send(conn, &Message::Open(open(TOR_AS, "10.0.0.2")));
    assert_eq!(b.notification(conn), Some((5, 3)));
}

#[test]
fn malformed_bytes_get_the_notification_that_the_rfc_names() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.send_bytes(conn, &[0; 19]);
    assert_eq!(b.notification(conn), Some((1, 1)));
    assert!(b.closed.contains(&conn));
    b.send_bytes(conn, &[0xff; 64]);
    assert_eq!(b.notification(conn), None, "nothing is said after the NOTIFICATION");
}

#[test]
fn trap_9_a_persistent_open_refusal_backs_off() {
    let mut b = Bench::new();
    b.peer(active("tor", "10.0.0.2"));
    let mut dials = 0;
    let until = b.now + secs(600);
    while b.now < until {
        b.advance(std::time::Duration::from_millis(100));
        while !b.dials.is_empty() {
            dials += 1;
            let conn = b.connect("10.0.0.2");
            b.send(conn, &Message::Notification(Notification::new(2, 2, [])));
        }
    }
    // 1, 2, 4, 8, 16, 32, then 60 s at most, each shortened by up to a quarter.
    assert!((10..=22).contains(&dials), "{dials} dials in ten minutes");
    assert_eq!(b.view("tor").reason.as_deref(), Some("received OPEN Message Error/Bad Peer AS"));
}

#[test]
fn during_the_hold_down_the_peers_connections_are_refused() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.accept("10.0.0.2").unwrap();
    b.send(conn, &Message::Notification(Notification::new(2, 2, [])));
    assert_eq!(b.accept("10.0.0.2"), None);
    b.advance(secs(2));
    assert!(b.accept("10.0.0.2").is_some());
}

#[test]
fn a_dial_that_fails_is_repeated_after_connect_retry_and_meanwhile_the_peer_may_connect() {
    let mut b = Bench::new();
    b.peer(active("tor", "10.0.0.2"));
    let conn = b.dial();
    b.speaker.connect_failed(b.now, conn, "refused");
    b.pump();
    assert_eq!(b.state("tor"), "Active");
    assert_eq!(b.view("tor").reason.as_deref(), Some("connect: refused"));
    b.advance(secs(3));
    assert!(b.dials.is_empty(), "connect retry is 5 s, at least 3.75 with jitter");
    b.advance(secs(2));
    assert_eq!(b.dials.len(), 1);
    let conn = b.dial();
    b.speaker.connect_failed(b.now, conn, "refused");
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
}

#[test]
fn a_dial_without_an_answer_is_given_up_and_repeated() {
    let mut b = Bench::new();
    b.peer(active("tor", "10.0.0.2"));
    let first = b.dial();
    b.advance(secs(5));
    assert!(b.closed.contains(&first));
    let second = b.dial();
    assert_ne!(first, second);
    // The late answer to the first is nobody's business.
    let endpoints = b.endpoints(ip("10.0.0.2"));
    b.speaker.connected(b.now, first, endpoints);
    assert_eq!(b.state("tor"), "Connect");
}

/// Both sides have dialled; ours is `out`, theirs `inc`. The peer's identifier decides.
fn collide(their_id: &str) -> (Bench, ConnId, ConnId) {
    let mut b = Bench::new();
    b.peer(active("tor", "10.0.0.2"));
    let inc = b.accept("10.0.0.2").unwrap();
    let out = b.connect("10.0.0.2");
    b.send(out, &Message::Open(open(TOR_AS, their_id)));
    (b, out, inc)
}

#[test]
fn trap_8_collision_compares_identifiers_higher_peer_keeps_its_own() {
    let (mut b, out, inc) = collide("10.0.0.2");
    assert_eq!(b.notification(out), Some((6, 7)));
    b.send(inc, &Message::Open(open(TOR_AS, "10.0.0.2")));
    b.send(inc, &Message::Keepalive);
    assert_eq!(b.state("tor"), "Established");
    assert_eq!(b.view("tor").flaps, 0);
}

#[test]
fn trap_8_collision_compares_identifiers_lower_peer_loses_its_own() {
    let (mut b, out, inc) = collide("9.0.0.2");
    assert_eq!(b.notification(inc), Some((6, 7)));
    b.send(out, &Message::Keepalive);
    assert_eq!(b.state("tor"), "Established");
}

#[test]
fn trap_8_an_established_session_wins() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let first = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let second = b.accept("10.0.0.2").unwrap();
    b.send(second, &Message::Open(open(TOR_AS, "10.0.0.2")));
    assert_eq!(b.notification(second), Some((6, 7)));
    b.send(first, &Message::Keepalive);
    assert_eq!((b.state("tor"), b.view("tor").flaps), ("Established", 0));
}

#[test]
fn the_dial_in_progress_is_dropped_when_the_peers_connection_is_up() {
    let mut b = Bench::new();
    b.peer(active("tor", "10.0.0.2"));
    let dial = b.dial();
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    assert!(b.closed.contains(&dial));
    let endpoints = b.endpoints(ip("10.0.0.2"));
    b.speaker.connected(b.now, dial, endpoints);
    b.send(conn, &Message::Keepalive);
    assert_eq!((b.state("tor"), b.view("tor").flaps), ("Established", 0));
}

#[test]
fn a_connection_beside_a_failed_dial_carries_on() {
    let mut b = Bench::new();
    b.peer(active("tor", "10.0.0.2"));
    let dial = b.dial();
    let inc = b.accept("10.0.0.2").unwrap();
    b.speaker.connect_failed(b.now, dial, "refused");
    b.send(inc, &Message::Open(open(TOR_AS, "10.0.0.2")));
    b.send(inc, &Message::Keepalive);
    assert_eq!(b.state("tor"), "Established");
}

#[test]
fn a_peer_that_connects_again_before_its_open_has_given_up_the_older_connection() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let one = b.accept("10.0.0.2").unwrap();
    let two = b.accept("10.0.0.2").unwrap();
    let three = b.accept("10.0.0.2").unwrap();
    assert!(b.closed.contains(&two));
    b.send(three, &Message::Open(open(TOR_AS, "10.0.0.2")));
    assert!(b.closed.contains(&one));
    b.send(three, &Message::Keepalive);
    assert_eq!(b.state("tor"), "Established");
}

#[test]
fn delay_open_waits_for_the_peers_open() {
    let mut b = Bench::new();
    let mut config = Bench::tor("tor", "10.0.0.2");
    config.delay_open = Some(secs(10));
    b.peer(config);
    let conn = b.accept("10.0.0.2").unwrap();
    assert_eq!(b.messages(conn), []);
    b.send(conn, &Message::Open(open(TOR_AS, "10.0.0.2")));
    assert!(matches!(b.messages(conn).as_slice(), [Message::Open(_), Message::Keepalive]));
    b.send(conn, &Message::Keepalive);
    assert_eq!(b.state("tor"), "Established");
}

#[test]
fn delay_open_ends_with_its_timer() {
    let mut b = Bench::new();
    let mut config = Bench::tor("tor", "10.0.0.2");
    config.delay_open = Some(secs(10));
    b.peer(config);
    let conn = b.accept("10.0.0.2").unwrap();
    b.advance(secs(11));
    assert!(matches!(b.messages(conn).as_slice(), [Message::Open(_)]));
    assert_eq!(b.state("tor"), "OpenSent");
}

#[test]
fn an_administrator_stops_with_a_text_and_starts_again() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.messages(conn);
    assert!(b.speaker.set_enabled(b.now, "tor", false, "rack power at 10:00"));
    let sent = b.messages(conn);
    let [Message::Notification(n)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!((n.code, n.subcode, n.text().as_deref()), (6, 2, Some("rack power at 10:00")));
    assert_eq!(b.state("tor"), "Disabled");
    assert_eq!(
        b.view("tor").reason.as_deref(),
        Some("administratively down by an operator: rack power at 10:00")
    );
    assert_eq!(b.accept("10.0.0.2"), None);
    b.advance(secs(3600));
    assert_eq!(b.state("tor"), "Disabled");
    assert!(b.speaker.set_enabled(b.now, "tor", true, ""));
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    assert!(!b.speaker.set_enabled(b.now, "nobody", true, ""));
}

#[test]
fn a_configured_shutdown_keeps_the_peer_down() {
    let mut b = Bench::new();
    let mut config = active("tor", "10.0.0.2");
    config.shutdown = Some(String::new());
    b.peer(config.clone());
    assert_eq!(b.state("tor"), "Disabled");
    b.pump();
    assert!(b.dials.is_empty());
    config.shutdown = None;
    b.peer(config);
    assert_eq!(b.state("tor"), "Connect");
}

#[test]
fn a_missing_secret_keeps_the_session_down_and_says_so() {
    let mut b = Bench::new();
    let mut config = active("tor", "10.0.0.2");
    config.admin_blocked = Some("secret manx-system/tor-a not found".into());
    b.peer(config.clone());
    assert_eq!((b.state("tor"), b.view("tor").reason.as_deref()), ("Idle", config.admin_blocked.as_deref()));
    assert_eq!(b.accept("10.0.0.2"), None);
    b.advance(secs(600));
    assert!(b.dials.is_empty());
    config.admin_blocked = None;
    config.password = Some(Secret(b"s3cret".to_vec()));
    b.peer(config);
    assert_eq!(b.dials[0].1.options.md5, Some(Secret(b"s3cret".to_vec())));
    assert_eq!(b.listening[&ip("10.0.0.2").into()].md5, Some(Secret(b"s3cret".to_vec())));
}

#[test]
fn hard_reset_sends_6_4_and_dials_again() {
    let mut b = Bench::new();
    b.peer(active("tor", "10.0.0.2"));
    let conn = b.establish_by_dial("10.0.0.2");
    assert!(b.speaker.reset(b.now, "tor", Reset::Hard));
    assert_eq!(b.notification(conn), Some((6, 4)));
    assert_eq!(b.state("tor"), "Connect");
}

#[test]
fn shutdown_ceases_all_sessions_with_the_text() {
    let mut b = Bench::new();
    b.peer(Bench::tor("a", "10.0.0.2"));
    b.peer(Bench::tor("b", "10.0.0.3"));
    let one = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let two = b.establish("10.0.0.3", open(TOR_AS, "10.0.0.3"));
    b.speaker.shutdown(b.now, "node drained");
    assert_eq!(b.notification(one), Some((6, 2)));
    assert_eq!(b.notification(two), Some((6, 2)));
    assert_eq!((b.state("a"), b.state("b")), ("Disabled", "Disabled"));
}

#[test]
fn a_removed_peer_gets_6_3_and_its_late_events_hurt_nobody() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &["10.9.0.0/16"], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(b.fib.len(), 1);
    b.messages(conn);
    b.speaker.remove_peer(b.now, "tor");
    assert_eq!(b.notification(conn), Some((6, 3)));
    assert!(b.fib.is_empty() && b.routes().is_empty());
    assert!(b.listening.is_empty());
    // Trap 19: events that were queued while the peer went away.
    b.announce(conn, &["10.9.0.0/16"], &attributes(&[65001]), "10.0.0.2");
    b.speaker.closed(b.now, conn, "reset");
    let endpoints = b.endpoints(ip("10.0.0.2"));
    b.speaker.connected(b.now, conn, endpoints.clone());
    b.speaker.connect_failed(b.now, conn, "late");
    b.speaker.endpoints_changed(b.now, conn, endpoints);
    b.speaker.link_down(b.now, 2);
    b.advance(secs(1000));
    assert!(b.routes().is_empty());
    // Another peer in the same place inherits nothing.
    b.peer(Bench::tor("next", "10.0.0.3"));
    b.establish("10.0.0.3", open(TOR_AS, "10.0.0.3"));
    assert!(b.routes().is_empty());
}

#[test]
fn two_peers_with_one_address_the_first_holds_it_and_the_second_says_so() {
    let mut b = Bench::new();
    b.peer(Bench::tor("a", "10.0.0.2"));
    b.peer(Bench::tor("b", "10.0.0.2"));
    assert_eq!(b.state("b"), "Idle");
    assert_eq!(b.view("b").reason.as_deref(), Some("address 10.0.0.2 belongs to peer a"));
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    assert_eq!(b.view("a").state, "Established");
    b.speaker.remove_peer(b.now, "a");
    b.pump();
    assert_eq!(b.state("b"), "Active");
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    assert_eq!(b.view("b").state, "Established");
}

#[test]
fn changes_that_need_no_reset_leave_the_session_alone() {
    let mut b = Bench::new();
    let mut config = Bench::tor("tor", "10.0.0.2");
    b.peer(config.clone());
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.messages(conn);
    config.connect_retry = secs(30);
    config.passive = false;
    config.next_hop = NextHopMode::Keep;
    config.remote_as = RemoteAs::Asn(TOR_AS);
    b.peer(config.clone());
    assert_eq!((b.state("tor"), b.notification(conn)), ("Established", None));
    config.remote_as = RemoteAs::Asn(Asn(65009));
    b.peer(config);
    assert_eq!(b.notification(conn), Some((6, 6)), "another AS is another peer");
    assert_ne!(b.state("tor"), "Established");
}

#[test]
fn new_timers_families_or_passwords_reset_the_session() {
    for change in [
        |c: &mut PeerConfig| c.hold_time = HoldTime::from_wire(30).unwrap(),
        |c: &mut PeerConfig| c.families = vec![Family::Ipv4Unicast],
        |c: &mut PeerConfig| c.password = Some(Secret(b"k".to_vec())),
        |c: &mut PeerConfig| c.ebgp_multihop = Some(3),
        |c: &mut PeerConfig| c.local_as = Some(Asn(65101)),
    ] {
        let mut b = Bench::new();
        let mut config = Bench::tor("tor", "10.0.0.2");
        b.peer(config.clone());
        let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
        change(&mut config);
        b.peer(config);
        assert_eq!(b.notification(conn), Some((6, 6)));
        b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    }
}

#[test]
fn another_key_changes_on_the_open_connection_and_on_the_listener() {
    let mut b = Bench::new();
    let key = |k: &str| Some(Secret(k.into()));
    b.peer(PeerConfig { password: key("old"), ..Bench::tor("tor", "10.0.0.2") });
    // Without a session there is nothing to spare: it starts anew with the new key.
    b.peer(PeerConfig { password: key("other"), ..Bench::tor("tor", "10.0.0.2") });
    assert_eq!(b.changed_keys, []);
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.peer(PeerConfig { password: key("new"), ..Bench::tor("tor", "10.0.0.2") });
    assert_eq!(b.changed_keys, [(conn, Secret(b"new".to_vec()))]);
    assert_eq!(b.listening[&ip("10.0.0.2").into()].md5, key("new"));
    assert_eq!((b.state("tor"), b.view("tor").flaps), ("Established", 0));
    b.peer(Bench::tor("tor", "10.0.0.2"));
    assert_eq!(b.notification(conn), Some((6, 6)), "no key any more is another session");
}

#[test]
fn a_new_as_or_identifier_resets_sessions_and_new_multipath_limits_do_not() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let mut config = SpeakerConfig::new(OUR_AS, id("10.0.0.1"));
    config.max_paths = 1;
    b.speaker.configure(b.now, config.clone());
    assert_eq!((b.state("tor"), b.notification(conn)), ("Established", None));
    config.asn = Asn(64999);
    b.speaker.configure(b.now, config);
    assert_eq!(b.notification(conn), Some((6, 6)));
    let conn = b.accept("10.0.0.2").unwrap();
    assert!(matches!(b.messages(conn).as_slice(), [Message::Open(o)] if o.asn == Asn(64999)));
}

#[rstest]
#[case::external(|_: &mut PeerConfig| {}, Some(1), None)]
#[case::multihop(|c: &mut PeerConfig| c.ebgp_multihop = Some(4), Some(4), None)]
#[case::gtsm(|c: &mut PeerConfig| c.ttl_security = true, Some(255), Some(255))]
#[case::internal(|c: &mut PeerConfig| c.remote_as = RemoteAs::Internal, None, None)]
#[case::own_as_number(|c: &mut PeerConfig| c.remote_as = RemoteAs::Asn(OUR_AS), None, None)]
fn trap_25_sockets_get_the_ttl_of_the_peers_distance(
    #[case] change: fn(&mut PeerConfig),
    #[case] ttl: Option<u8>,
    #[case] min_ttl: Option<u8>,
) {
    let mut b = Bench::new();
    let mut config = active("tor", "10.0.0.2");
    change(&mut config);
    b.peer(config);
    b.pump();
    let options = &b.dials[0].1.options;
    assert_eq!((options.ttl, options.min_ttl), (ttl, min_ttl));
    assert_eq!(b.listening[&ip("10.0.0.2").into()], *options, "the listener accepts with the same options");
}

#[test]
fn link_down_ends_direct_external_sessions_at_once() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let mut internal = Bench::tor("rr", "10.0.0.3");
    internal.remote_as = RemoteAs::Internal;
    b.peer(internal);
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.establish("10.0.0.3", open(OUR_AS, "10.0.0.3"));
    b.announce(conn, &["10.9.0.0/16"], &attributes(&[65001]), "10.0.0.2");
    b.speaker.link_down(b.now, 9);
    b.pump();
    assert_eq!(b.state("tor"), "Established");
    b.speaker.link_down(b.now, 2);
    b.pump();
    assert_eq!((b.state("tor"), b.state("rr")), ("Active", "Established"));
    assert!(b.fib.is_empty());
    assert_eq!(b.view("tor").reason.as_deref(), Some("interface went down"));
}

#[test]
fn a_lost_connection_lets_the_peer_back_in_at_once() {
    let mut b = Bench::new();
    b.peer(active("tor", "10.0.0.2"));
    let conn = b.establish_by_dial("10.0.0.2");
    b.speaker.closed(b.now, conn, "connection reset");
    b.pump();
    assert_eq!(b.state("tor"), "Active");
    assert_eq!(b.view("tor").reason.as_deref(), Some("connection lost: connection reset"));
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    assert_eq!(b.view("tor").flaps, 1);
}

#[test]
fn a_family_without_an_own_address_is_not_advertised_and_says_so() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    b.originate("10.244.1.0/24");
    b.originate("fd00:244:1::/64");
    let mut endpoints = b.endpoints(ip("10.0.0.2"));
    endpoints.ipv6 = None;
    let conn = b.speaker.accepted(b.now, endpoints).unwrap();
    b.send(conn, &Message::Open(open(TOR_AS, "10.0.0.2")));
    b.send(conn, &Message::Keepalive);
    let prefixes: Vec<String> = b
        .updates(conn)
        .iter()
        .flat_map(|u| &u.reach)
        .flat_map(|r| &r.nlri)
        .map(|n| n.prefix.to_string())
        .collect();
    assert_eq!(prefixes, ["10.244.1.0/24"]);
    let v6 = b.view("tor").families.into_iter().find(|f| f.family == Family::Ipv6Unicast).unwrap();
    assert_eq!(v6.reason.as_deref(), Some("not advertised: no ipv6 address on the session's interface"));
    // The address appears: no reset is needed.
    let endpoints = b.endpoints(ip("10.0.0.2"));
    b.speaker.endpoints_changed(b.now, conn, endpoints);
    let updates = b.updates(conn);
    assert!(updates.iter().flat_map(|u| &u.reach).any(|r| r.family == Family::Ipv6Unicast));
}
