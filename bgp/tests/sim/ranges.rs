//! Listen ranges: peers that come by themselves, and go.

use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::message::*;

use crate::bench::*;

const X: &str = "10.9.0.0/16";

fn range(name: &str, of: &str, max_peers: usize) -> PeerRange {
    PeerRange {
        name: name.into(),
        range: p(of),
        max_peers,
        template: PeerConfig::new("template", ip("0.0.0.0"), RemoteAs::External),
    }
}

fn set(b: &mut Bench, range: PeerRange) {
    b.speaker.set_range(b.now, range);
    b.pump();
}

fn rack() -> Bench {
    let mut b = Bench::new();
    set(&mut b, range("rack", "10.0.0.0/28", 2));
    b
}

fn names(b: &Bench) -> Vec<String> {
    b.speaker.peers(b.now).into_iter().map(|v| v.name).collect()
}

#[test]
fn whoever_connects_from_the_range_is_a_peer_and_nobody_else() {
    let mut b = rack();
    assert_eq!(names(&b), Vec::<String>::new());
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    assert_eq!((names(&b), b.fib.len()), (vec!["rack@10.0.0.2".to_owned()], 1));
    assert_eq!(b.accept("10.0.0.16"), None, "outside");
    assert!(b.dials.is_empty(), "nobody dials into a range");
}

#[test]
fn the_template_applies_and_its_as_is_asked_for() {
    let mut b = Bench::new();
    let mut rack = range("rack", "10.0.0.0/28", 10);
    rack.template.remote_as = RemoteAs::Asn(TOR_AS);
    rack.template.hold_time = HoldTime::from_wire(30).unwrap();
    rack.template.password = Some(Secret(b"key".to_vec()));
    set(&mut b, rack);
    assert_eq!(b.listening_ranges[&p("10.0.0.0/28")].md5, Some(Secret(b"key".to_vec())));
    assert_eq!(b.listening_ranges[&p("10.0.0.0/28")].ttl, Some(1));
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    assert_eq!(b.view("rack@10.0.0.2").timers.hold_time, Some(30));
    let wrong = b.accept("10.0.0.3").unwrap();
    b.send(wrong, &Message::Open(open(Asn(65009), "10.0.0.3")));
    assert_eq!(b.notification(wrong), Some((2, 2)));
}

#[test]
fn a_full_range_takes_no_more_and_counts_them() {
    let mut b = rack();
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.establish("10.0.0.3", open(TOR_AS, "10.0.0.3"));
    assert_eq!(b.accept("10.0.0.4"), None);
    let [view] = b.speaker.ranges().try_into().unwrap();
    assert_eq!((view.peers, view.max_peers, view.refused), (2, 2, 1));
    assert_eq!(names(&b).len(), 2);
}

#[test]
fn a_peer_that_has_gone_is_shown_for_a_while_and_then_forgotten_with_all_its_state() {
    let mut b = rack();
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.speaker.closed(b.now, conn, "connection reset by peer");
    b.pump();
    b.advance(secs(119));
    assert!(b.view("rack@10.0.0.2").reason.unwrap().contains("reset by peer"));
    b.advance(secs(2));
    assert_eq!(names(&b), Vec::<String>::new());
    assert!(b.listening.is_empty());
    // And may come again, as one that has never been here.
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.advance(secs(60));
    assert_eq!(names(&b).len(), 1);
}

#[test]
fn one_that_comes_back_in_time_stays() {
    let mut b = rack();
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.speaker.closed(b.now, conn, "connection reset by peer");
    b.advance(secs(60));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    for _ in 0..3 {
        b.advance(secs(60));
        b.send(conn, &Message::Keepalive);
    }
    assert_eq!(b.view("rack@10.0.0.2").flaps, 1);
}

#[test]
fn one_that_is_gone_makes_room_for_one_that_comes_but_not_while_it_is_held_down() {
    let mut b = rack();
    let gone = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.establish("10.0.0.3", open(TOR_AS, "10.0.0.3"));
    b.send(gone, &Message::Notification(Notification::cease(4)));
    assert_eq!(b.accept("10.0.0.4"), None, "10.0.0.2 is held down for its NOTIFICATION");
    b.advance(secs(2));
    assert!(b.accept("10.0.0.4").is_some());
    assert_eq!(names(&b), ["rack@10.0.0.3", "rack@10.0.0.4"]);
}

#[test]
fn a_peer_whose_routes_are_kept_is_not_forgotten_before_them() {
    let mut b = Bench::with(SpeakerConfig {
        graceful_restart: Some(GracefulRestartConfig {
            restart_time: secs(120),
            long_lived_time: None,
            restarting: false,
        }),
        ..SpeakerConfig::new(OUR_AS, id("10.0.0.1"))
    });
    set(&mut b, range("rack", "10.0.0.0/28", 1));
    let conn = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", false, false, 300));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    b.speaker.closed(b.now, conn, "connection reset by peer");
    b.advance(secs(299));
    assert_eq!((names(&b).len(), b.fib.len()), (1, 1));
    assert_eq!(b.accept("10.0.0.3"), None, "nor for another one");
    b.advance(secs(2));
    assert_eq!((names(&b).len(), b.fib.len()), (0, 0));
}

#[test]
fn the_narrowest_range_takes_a_peer_and_one_configured_by_address_comes_first() {
    let mut b = rack();
    set(&mut b, range("all", "10.0.0.0/8", 10));
    b.peer(Bench::tor("tor", "10.0.0.5"));
    for address in ["10.0.0.2", "10.0.0.5", "10.7.7.7"] {
        b.establish(address, open(TOR_AS, address));
    }
    assert_eq!(names(&b), ["all@10.7.7.7", "rack@10.0.0.2", "tor"]);
}

#[test]
fn peers_follow_a_changed_range_and_leave_with_a_removed_one() {
    let mut b = rack();
    let stays = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let leaves = b.establish("10.0.0.9", open(TOR_AS, "10.0.0.9"));
    set(&mut b, range("rack", "10.0.0.0/29", 2));
    assert_eq!(b.notification(leaves), Some((6, 3)));
    assert_eq!(b.view("rack@10.0.0.2").flaps, 0);
    assert_eq!(b.listening_ranges.keys().copied().collect::<Vec<_>>(), [p("10.0.0.0/29")]);
    b.speaker.remove_range(b.now, "rack");
    b.pump();
    assert_eq!(b.notification(stays), Some((6, 3)));
    assert!(names(&b).is_empty() && b.listening_ranges.is_empty());
    assert_eq!(b.accept("10.0.0.2"), None);
}

#[test]
fn a_range_without_its_secret_or_shut_down_lets_nobody_in() {
    let mut b = Bench::new();
    let mut rack = range("rack", "10.0.0.0/28", 2);
    rack.template.admin_blocked = Some("Secret rack does not exist".into());
    set(&mut b, rack.clone());
    assert_eq!(b.accept("10.0.0.2"), None);
    rack.template.admin_blocked = None;
    rack.template.shutdown = Some(String::new());
    set(&mut b, rack);
    assert_eq!(b.accept("10.0.0.2"), None);
    assert!(names(&b).is_empty(), "and nobody is remembered for it");
}

#[test]
fn strangers_without_end_fill_no_memory() {
    let mut b = rack();
    set(&mut b, range("rack", "10.0.0.0/8", 5));
    for i in 0..2000u32 {
        let from = std::net::Ipv4Addr::from_bits(0x0a01_0000 + i).to_string();
        if let Some(conn) = b.accept(&from) {
            b.send_bytes(conn, b"GET / HTTP/1.1\r\n\r\n garbage");
            b.messages(conn);
        }
        assert!(names(&b).len() <= 5);
        b.advance(std::time::Duration::from_millis(100));
    }
    assert!(b.speaker.ranges()[0].refused > 0);
}
