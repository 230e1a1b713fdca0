//! Route refresh (RFC 2918) and its markers (RFC 7313), in both directions.

use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::message::*;

use crate::bench::*;

const X: &str = "10.9.0.0/16";
const Y: &str = "10.8.0.0/16";
const V4: Family = Family::Ipv4Unicast;

fn enhanced(mut open: Open) -> Open {
    open.capabilities.push(Capability::EnhancedRouteRefresh);
    open
}

fn refresh(family: Family, kind: RefreshKind) -> Message {
    Message::RouteRefresh(RouteRefresh { family, kind })
}

/// Markers are offered along with graceful restart.
fn restartable() -> SpeakerConfig {
    let graceful_restart =
        Some(GracefulRestartConfig { restart_time: secs(120), long_lived_time: None, restarting: false });
    SpeakerConfig { graceful_restart, ..SpeakerConfig::new(OUR_AS, id("10.0.0.1")) }
}

fn bench() -> Bench {
    let mut b = Bench::with(restartable());
    b.peer(Bench::tor("tor", "10.0.0.2"));
    b.originate("10.244.1.0/24");
    b
}

/// A session with these capabilities over which X and Y came.
fn session(open: Open) -> (Bench, ConnId) {
    let mut b = bench();
    let conn = b.establish("10.0.0.2", open);
    b.announce(conn, &[X, Y], &attributes(&[65001]), "10.0.0.2");
    b.messages(conn);
    b.fib_log.clear();
    (b, conn)
}

fn modern() -> (Bench, ConnId) {
    session(enhanced(open(TOR_AS, "10.0.0.2")))
}

/// What was sent, in words: a marker, an announcement, an End-of-RIB.
fn story(messages: &[Message]) -> Vec<String> {
    let words = |m: &Message| match m {
        Message::RouteRefresh(r) => format!("{:?} {}", r.kind, r.family),
        Message::Update(u) => match u.end_of_rib {
            Some(family) => format!("end of rib {family}"),
            None => {
                let reach = u.reach.iter().flat_map(|r| &r.nlri).map(|n| format!("+{}", n.prefix));
                reach.chain(u.withdrawn.iter().map(|n| format!("-{}", n.prefix))).collect()
            }
        },
        other => format!("{other:?}"),
    };
    messages.iter().map(words).collect()
}

#[test]
fn rfc7313_4_a_request_is_answered_between_markers() {
    let (mut b, conn) = modern();
    b.send(conn, &refresh(V4, RefreshKind::Request));
    assert_eq!(story(&b.messages(conn)), ["Begin ipv4", "+10.244.1.0/24", "End ipv4"]);
    b.send(conn, &refresh(Family::Ipv6Unicast, RefreshKind::Request));
    assert_eq!(story(&b.messages(conn)), ["Begin ipv6", "End ipv6"], "nothing to say is said as well");
}

#[test]
fn a_soft_reset_out_is_a_refresh_that_nobody_asked_for() {
    let (mut b, conn) = modern();
    assert!(b.speaker.reset(b.now, "tor", Reset::SoftOut));
    let expected = ["Begin ipv4", "+10.244.1.0/24", "End ipv4", "Begin ipv6", "End ipv6"];
    assert_eq!(story(&b.messages(conn)), expected);
    assert_eq!(b.view("tor").flaps, 0);
}

#[test]
fn a_peer_without_the_capability_sees_no_markers() {
    let (mut b, conn) = session(open(TOR_AS, "10.0.0.2"));
    b.send(conn, &refresh(V4, RefreshKind::Request));
    assert_eq!(story(&b.messages(conn)), ["+10.244.1.0/24"]);
    b.send(conn, &refresh(V4, RefreshKind::Begin));
    b.send(conn, &refresh(V4, RefreshKind::End));
    assert_eq!(b.fib.len(), 2, "and its own mean nothing");
}

#[test]
fn rfc7313_4_no_marker_before_the_end_of_rib() {
    let mut b = Bench::with(SpeakerConfig {
        graceful_restart: Some(GracefulRestartConfig {
            restart_time: secs(120),
            long_lived_time: None,
            restarting: true,
        }),
        ..SpeakerConfig::new(OUR_AS, id("10.0.0.1"))
    });
    b.peer(Bench::tor("tor", "10.0.0.2"));
    b.peer(Bench::tor("late", "10.0.0.3"));
    b.originate("10.244.1.0/24");
    let conn = b.establish("10.0.0.2", enhanced(open_gr(TOR_AS, "10.0.0.2", false, false, 60)));
    b.messages(conn);
    b.send(conn, &refresh(V4, RefreshKind::Request));
    assert_eq!(story(&b.messages(conn)), Vec::<String>::new());
    for _ in 0..2 {
        b.advance(secs(61));
        b.send(conn, &Message::Keepalive);
    }
    let said = story(&b.messages(conn));
    let said: Vec<&str> =
        said.iter().map(String::as_str).filter(|s| s.contains("ipv4") || s.contains('+')).collect();
    assert_eq!(said, ["+10.244.1.0/24", "end of rib ipv4", "Begin ipv4", "+10.244.1.0/24", "End ipv4"]);
}

#[test]
fn rfc7313_4_what_is_not_said_again_is_gone_at_the_end() {
    let (mut b, conn) = modern();
    b.send(conn, &refresh(V4, RefreshKind::Begin));
    assert!(b.path(X, "10.0.0.2").unwrap().stale && b.fib_log.is_empty(), "it forwards meanwhile");
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    b.send(conn, &refresh(V4, RefreshKind::End));
    assert_eq!(b.fib_log, [(p(Y), vec![])]);
    assert!(!b.path(X, "10.0.0.2").unwrap().stale);
}

#[test]
fn a_refresh_of_one_family_leaves_the_other_alone() {
    let (mut b, conn) = modern();
    b.announce(conn, &["2001:db8::/32"], &attributes(&[65001]), "fd00::2");
    b.send(conn, &refresh(Family::Ipv6Unicast, RefreshKind::Begin));
    b.send(conn, &refresh(Family::Ipv6Unicast, RefreshKind::End));
    assert_eq!(b.fib.keys().copied().collect::<Vec<_>>(), [p(Y), p(X)]);
}

#[test]
fn refused_prefixes_are_counted_anew() {
    let (mut b, conn) = modern();
    b.announce(conn, &["127.0.0.0/8"], &attributes(&[65001]), "10.0.0.2");
    let filtered = |b: &Bench| b.view("tor").families[0].filtered;
    assert_eq!(filtered(&b), 1);
    b.send(conn, &refresh(V4, RefreshKind::Begin));
    b.announce(conn, &[X, Y], &attributes(&[65001]), "10.0.0.2");
    b.send(conn, &refresh(V4, RefreshKind::End));
    assert_eq!(filtered(&b), 0);
}

#[test]
fn an_end_without_a_beginning_means_nothing_and_a_second_beginning_begins_again() {
    let (mut b, conn) = modern();
    b.send(conn, &refresh(V4, RefreshKind::End));
    assert_eq!(b.fib.len(), 2);
    b.send(conn, &refresh(V4, RefreshKind::Begin));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    b.send(conn, &refresh(V4, RefreshKind::Begin));
    b.announce(conn, &[Y], &attributes(&[65001]), "10.0.0.2");
    b.send(conn, &refresh(V4, RefreshKind::End));
    assert_eq!(b.fib_log, [(p(X), vec![])]);
}

#[test]
fn rfc7313_4_a_refresh_that_does_not_end_is_ended_after_the_limit() {
    let (mut b, conn) = modern();
    b.send(conn, &refresh(V4, RefreshKind::Begin));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    for _ in 0..6 {
        assert_eq!(b.fib.len(), 2);
        b.advance(secs(60));
        b.send(conn, &Message::Keepalive);
    }
    assert_eq!(b.fib.keys().copied().collect::<Vec<_>>(), [p(X)]);
    assert!(b.facts.iter().any(|f| f.reason.contains("did not end within 360 s")));
    assert_eq!(b.state("tor"), "Established");
}

#[test]
fn rfc7313_4_a_beginning_before_the_peers_end_of_rib_is_ignored() {
    let mut b = Bench::with(SpeakerConfig {
        graceful_restart: Some(GracefulRestartConfig {
            restart_time: secs(120),
            long_lived_time: None,
            restarting: false,
        }),
        ..SpeakerConfig::new(OUR_AS, id("10.0.0.1"))
    });
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let theirs = enhanced(open_gr(TOR_AS, "10.0.0.2", true, true, 60));
    let conn = b.establish("10.0.0.2", theirs);
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    for _ in 0..2 {
        b.send(conn, &refresh(V4, RefreshKind::Begin));
        b.send(conn, &refresh(V4, RefreshKind::End));
        assert_eq!(b.fib.len(), 1);
    }
    b.end_of_rib(conn, V4);
    b.send(conn, &refresh(V4, RefreshKind::Begin));
    b.send(conn, &refresh(V4, RefreshKind::End));
    assert!(b.fib.is_empty());
}

#[test]
fn rfc7313_5_a_marker_of_the_wrong_length_gets_7_1() {
    let (mut b, conn) = modern();
    let mut bytes = vec![0xff; 16];
    bytes.extend_from_slice(&[0, 24, 5, 0, 1, 1, 1, 0]);
    b.send_bytes(conn, &bytes);
    assert_eq!(b.notification(conn), Some((7, 1)));
}

#[test]
fn a_soft_reset_in_asks_for_every_family_and_needs_no_new_session() {
    let (mut b, conn) = modern();
    assert!(b.speaker.reset(b.now, "tor", Reset::SoftIn));
    assert_eq!(story(&b.messages(conn)), ["Request ipv4", "Request ipv6"]);
    // The session ends in the middle of the answer: nothing of it is left behind.
    b.send(conn, &refresh(V4, RefreshKind::Begin));
    b.send(conn, &Message::Notification(Notification::cease(4)));
    assert!(b.fib.is_empty());
    b.advance(secs(2));
    let conn = b.establish("10.0.0.2", enhanced(open(TOR_AS, "10.0.0.2")));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    b.send(conn, &refresh(V4, RefreshKind::End));
    assert_eq!(b.fib.len(), 1);
}

/// Before it, such a peer must not answer, and FRR 8 forgets the question.
#[test]
fn rfc7313_4_routes_are_asked_for_again_only_after_the_peers_end_of_rib() {
    let mut b = bench();
    let conn = b.establish("10.0.0.2", enhanced(open_gr(TOR_AS, "10.0.0.2", false, false, 120)));
    b.messages(conn);
    b.peer(PeerConfig { allow_as_in: 1, ..Bench::tor("tor", "10.0.0.2") });
    let requests =
        |messages: &[Message]| messages.iter().filter(|m| **m == refresh(V4, RefreshKind::Request)).count();
    assert_eq!(requests(&b.messages(conn)), 0);
    b.end_of_rib(conn, V4);
    assert_eq!(requests(&b.messages(conn)), 1);
}

/// FRR waits with every answer for an End-of-RIB that it sends only where graceful restart is offered.
#[test]
fn markers_are_offered_only_along_with_graceful_restart() {
    let offered = |mut b: Bench| {
        b.peer(Bench::tor("tor", "10.0.0.2"));
        let conn = b.accept("10.0.0.2").expect("the peer is configured and listening");
        let messages = b.messages(conn);
        let Some(Message::Open(open)) = messages.first() else { panic!("{messages:?}") };
        open.capabilities.contains(&Capability::EnhancedRouteRefresh)
    };
    assert!(offered(Bench::with(restartable())));
    assert!(!offered(Bench::new()));
}
