//! Graceful restart over NOTIFICATIONs and expired hold timers (N bit), and the Hard Reset that ends it (RFC 8538).

use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::iana::{cease, error};
use manx_bgp::wire::message::*;

use crate::bench::*;
use crate::restart::gr_of;

const X: &str = "10.9.0.0/16";

fn config() -> SpeakerConfig {
    SpeakerConfig {
        graceful_restart: Some(GracefulRestartConfig {
            restart_time: secs(120),
            long_lived_time: None,
            restarting: false,
        }),
        ..SpeakerConfig::new(OUR_AS, id("10.0.0.1"))
    }
}

/// A session under the N bit with a route.
fn session() -> (Bench, ConnId) {
    let mut b = Bench::with(config());
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open_n(TOR_AS, "10.0.0.2", false));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    b.messages(conn);
    b.fib_log.clear();
    (b, conn)
}

/// The NOTIFICATION that was sent last.
fn sent(b: &mut Bench, conn: ConnId) -> Notification {
    match b.messages(conn).pop() {
        Some(Message::Notification(n)) => n,
        other => panic!("{other:?}"),
    }
}

fn kept(b: &Bench) -> bool {
    b.path(X, "10.0.0.2").is_some_and(|route| route.stale) && b.fib_log.is_empty()
}

#[test]
fn the_n_bit_is_offered_with_graceful_restart() {
    let mut b = Bench::with(config());
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.accept("10.0.0.2").unwrap();
    assert!(gr_of(&b.messages(conn)).unwrap().notification);
}

#[test]
fn rfc8538_4_a_received_notification_keeps_the_routes() {
    let (mut b, conn) = session();
    b.send(conn, &Message::Notification(Notification::cease(cease::ADMINISTRATIVE_RESET)));
    assert!(kept(&b));
    b.advance(secs(61));
    assert!(b.fib.is_empty(), "but no longer than the peer's restart time");
}

#[test]
fn rfc8538_4_an_expired_hold_timer_and_an_error_of_the_peer_keep_the_routes() {
    let (mut b, conn) = session();
    b.advance(secs(91));
    assert_eq!(sent(&mut b, conn).code, error::HOLD_TIMER);
    assert!(kept(&b));
    let (mut b, conn) = session();
    b.send_bytes(conn, &[0; 19]);
    assert_eq!(sent(&mut b, conn).code, error::HEADER);
    assert!(kept(&b));
}

#[test]
fn rfc8538_4_a_received_hard_reset_drops_them() {
    let (mut b, conn) = session();
    let inner = Notification::cease_with_text(cease::ADMINISTRATIVE_SHUTDOWN, "bye");
    b.send(conn, &Message::Notification(Notification::hard_reset(&inner)));
    assert!(b.fib.is_empty());
    let reason = b.view("tor").reason.unwrap();
    assert!(reason.contains("Hard Reset (Cease/Administrative Shutdown): bye"), "{reason}");
}

#[test]
fn rfc8538_4_1_the_open_after_it_sets_f_without_r_and_the_one_after_that_does_not() {
    let (mut b, conn) = session();
    b.send(conn, &Message::Notification(Notification::cease(cease::ADMINISTRATIVE_RESET)));
    b.advance(secs(2));
    let conn = b.establish("10.0.0.2", open_n(TOR_AS, "10.0.0.2", true));
    let gr = gr_of(&b.messages(conn)).unwrap();
    assert!(!gr.restarting);
    assert_eq!(gr.families, [(Family::Ipv4Unicast, true), (Family::Ipv6Unicast, true)]);
    assert!(kept(&b), "the peer's F bit says that it forwards still");
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    b.end_of_rib(conn, Family::Ipv4Unicast);
    assert!(!b.path(X, "10.0.0.2").unwrap().stale && b.fib_log.is_empty());
    b.send(conn, &Message::Notification(Notification::hard_reset(&Notification::cease(4))));
    b.advance(secs(2));
    let conn = b.accept("10.0.0.2").unwrap();
    let gr = gr_of(&b.messages(conn)).unwrap();
    assert_eq!(gr.families, [(Family::Ipv4Unicast, false), (Family::Ipv6Unicast, false)]);
}

#[test]
fn rfc8538_4_1_a_peer_that_comes_back_without_f_is_flushed() {
    let (mut b, conn) = session();
    b.send(conn, &Message::Notification(Notification::cease(cease::ADMINISTRATIVE_RESET)));
    b.advance(secs(2));
    b.establish("10.0.0.2", open_n(TOR_AS, "10.0.0.2", false));
    assert!(b.fib.is_empty());
}

#[test]
fn rfc8538_5_what_is_meant_for_good_goes_as_a_hard_reset() {
    let hard = |act: &dyn Fn(&mut Bench), subcode: u8| {
        let (mut b, conn) = session();
        act(&mut b);
        b.pump();
        let n = sent(&mut b, conn);
        assert!(n.is_hard_reset(), "{n}");
        let inner = n.inner().unwrap();
        assert_eq!((inner.code, inner.subcode), (error::CEASE, subcode));
        assert!(b.fib.is_empty());
        inner
    };
    let inner = hard(&|b| assert!(b.speaker.set_enabled(b.now, "tor", false, "bye")), 2);
    assert_eq!(inner.text().as_deref(), Some("bye"));
    hard(&|b| b.speaker.drain(b.now, secs(0), "bye"), cease::ADMINISTRATIVE_SHUTDOWN);
    hard(&|b| b.speaker.remove_peer(b.now, "tor"), cease::PEER_DECONFIGURED);
    hard(&|b| assert!(b.speaker.reset(b.now, "tor", Reset::Hard)), cease::ADMINISTRATIVE_RESET);
    let limit = MaxPrefixes { limit: 0, action: MaxPrefixesAction::Disable { restart: None } };
    hard(
        &|b| b.peer(PeerConfig { max_prefixes: Some(limit), ..Bench::tor("tor", "10.0.0.2") }),
        cease::MAX_PREFIXES,
    );
}

#[test]
fn without_the_n_bit_of_the_peer_the_same_goes_as_it_is() {
    let mut b = Bench::with(config());
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", false, false, 60));
    b.speaker.set_enabled(b.now, "tor", false, "bye");
    assert_eq!(sent(&mut b, conn).subcode, cease::ADMINISTRATIVE_SHUTDOWN);
}

#[test]
fn a_change_of_configuration_interrupts_the_session_and_not_forwarding() {
    let (mut b, conn) = session();
    b.peer(PeerConfig { hold_time: HoldTime::from_wire(30).unwrap(), ..Bench::tor("tor", "10.0.0.2") });
    assert_eq!(sent(&mut b, conn), Notification::cease(cease::CONFIGURATION_CHANGE));
    assert!(kept(&b));
    let conn = b.establish("10.0.0.2", open_n(TOR_AS, "10.0.0.2", true));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    b.end_of_rib(conn, Family::Ipv4Unicast);
    assert_eq!(b.fib_log, []);
    // A peer that is not the one configured any more keeps nothing here.
    b.peer(PeerConfig { remote_as: RemoteAs::Asn(Asn(65009)), ..Bench::tor("tor", "10.0.0.2") });
    assert!(sent(&mut b, conn).is_hard_reset());
    assert!(b.fib.is_empty());
}
