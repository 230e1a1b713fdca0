//! What is remembered of a peer's sessions: transitions with their causes, NOTIFICATIONs, counters.

use manx_bgp::session::{Cause, Direction};
use manx_bgp::speaker::*;
use manx_bgp::wire::message::*;

use crate::bench::*;

fn history(b: &Bench, name: &str) -> Vec<TransitionView> {
    b.speaker.history(b.now, name).unwrap().transitions
}

/// The last line: where from, where to, why.
fn last(b: &Bench, name: &str) -> (&'static str, &'static str, Option<Cause>) {
    let line = history(b, name).pop().unwrap();
    (line.from, line.to, line.cause)
}

#[test]
fn each_way_down_is_remembered_with_its_cause_and_its_notification() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    assert_eq!(last(&b, "tor"), ("OpenConfirm", "Established", None));

    b.advance(secs(100));
    let down = history(&b, "tor").into_iter().find(|t| t.from == "Established").unwrap();
    assert_eq!((down.to, down.cause), ("Idle", Some(Cause::HoldTimer)));
    let sent = down.notification.unwrap();
    assert_eq!((sent.direction, sent.code, sent.text.as_str()), (Direction::Sent, 4, "Hold Timer Expired"));

    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.send(conn, &Message::Notification(Notification::cease_with_text(2, "rack B at 10:00")));
    let line = history(&b, "tor").pop().unwrap();
    assert_eq!((line.to, line.cause), ("Idle", Some(Cause::NotificationReceived)));
    let received = line.notification.unwrap();
    assert_eq!((received.direction, received.code, received.subcode), (Direction::Received, 6, 2));
    assert_eq!(received.text, "Cease/Administrative Shutdown: rack B at 10:00");
    assert_eq!(b.view("tor").last_notification.unwrap().text, received.text);

    b.advance(secs(120));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.speaker.closed(b.now, conn, "connection reset");
    assert_eq!(last(&b, "tor").2, Some(Cause::TcpLost));
    assert_eq!(b.speaker.history(b.now, "tor").unwrap().flaps, 3);
}

#[test]
fn a_refused_open_names_itself_and_not_a_malformed_message() {
    let mut b = Bench::new();
    let mut config = Bench::tor("tor", "10.0.0.2");
    config.remote_as = RemoteAs::Asn(manx_bgp::types::Asn(65099));
    b.peer(config);
    let conn = b.accept("10.0.0.2").unwrap();
    b.send(conn, &Message::Open(open(TOR_AS, "10.0.0.2")));
    assert_eq!(b.view("tor").cause, Some(Cause::OpenRefused));
    let sent = b.view("tor").last_notification.unwrap();
    assert_eq!((sent.direction, sent.code, sent.subcode), (Direction::Sent, 2, 2));
}

#[test]
fn a_history_outlives_changes_of_its_peer_and_its_removal() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let mut config = Bench::tor("tor", "10.0.0.2");
    config.ebgp_multihop = Some(3);
    b.peer(config.clone());
    assert!(history(&b, "tor").iter().any(|t| t.cause == Some(Cause::ConfigChanged)));
    config.target = PeerTarget::Address(ip("10.0.0.3"));
    b.peer(config.clone());
    assert!(history(&b, "tor").iter().any(|t| t.to == "Established"), "a new address is the same peer");
    assert_eq!(b.view("tor").flaps, 1);
    b.speaker.remove_peer(b.now, "tor");
    let gone = b.speaker.history(b.now, "tor").unwrap();
    assert!(!gone.configured);
    assert_eq!(gone.transitions.last().unwrap().cause, Some(Cause::Deconfigured));
    b.peer(config);
    assert!(b.speaker.history(b.now, "tor").unwrap().configured);
    assert_eq!(b.view("tor").flaps, 1);
    assert_eq!(b.speaker.history(b.now, "nobody"), None);
}

#[test]
fn disabling_is_a_transition_also_of_a_session_that_was_down() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    b.speaker.set_enabled(b.now, "tor", false, "optics");
    assert_eq!(last(&b, "tor"), ("Active", "Disabled", Some(Cause::AdminDown)));
    b.speaker.set_enabled(b.now, "tor", true, "");
    assert_eq!(last(&b, "tor").1, "Active");
    assert_eq!(last(&b, "tor").0, "Disabled");

    // In the hold-down after a failure it is in Idle already, and says nothing more.
    let conn = b.accept("10.0.0.2").unwrap();
    b.send_bytes(conn, &[0; 19]);
    assert_eq!(b.state("tor"), "Idle");
    b.speaker.set_enabled(b.now, "tor", false, "optics");
    assert_eq!(last(&b, "tor"), ("Idle", "Disabled", Some(Cause::AdminDown)));
}

#[test]
fn what_an_operator_disabled_stays_so_through_changes_of_the_configuration() {
    let mut b = Bench::new();
    let mut config = Bench::tor("tor", "10.0.0.2");
    b.peer(config.clone());
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.speaker.set_enabled(b.now, "tor", false, "optics");
    config.ebgp_multihop = Some(3);
    b.peer(config.clone());
    config.target = PeerTarget::Address(ip("10.0.0.3"));
    b.peer(config.clone());
    assert_eq!(b.state("tor"), "Disabled");
    assert_eq!(b.view("tor").reason.as_deref(), Some("administratively down by an operator: optics"));
    // Only the setting that it overrides takes it back.
    config.shutdown = Some("planned".to_owned());
    b.peer(config.clone());
    assert_eq!(b.view("tor").reason.as_deref(), Some("administratively down: planned"));
    config.shutdown = None;
    b.peer(config);
    assert_eq!(b.state("tor"), "Active");
}

#[test]
fn messages_are_counted_by_type_and_notifications_by_name() {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &["10.9.0.0/16"], &attributes(&[65001]), "10.0.0.2");
    assert!(b.speaker.reset(b.now, "tor", Reset::Hard));
    b.messages(conn);
    let counts = b.view("tor").messages;
    assert_eq!((counts.received.open, counts.received.update, counts.received.keepalive), (1, 1, 1));
    assert_eq!((counts.sent.open, counts.sent.notification), (1, 1));
    assert_eq!(counts.received.total(), 3);
    assert_eq!(last(&b, "tor").1, "Active");
    let reset = history(&b, "tor").into_iter().rev().find(|t| t.to == "Idle").unwrap();
    assert_eq!(reset.cause, Some(Cause::AdminReset));
    let all = b.speaker.counters();
    let reset = NotificationCount { direction: Direction::Sent, code: 6, subcode: 4, count: 1 };
    assert_eq!(all.notifications, [reset]);
    let up = TransitionCount { peer: "tor".into(), to: "Established", cause: None, count: 1 };
    assert!(all.transitions.contains(&up), "{all:?}");
}
