//! What RFC 5880 says of sessions, seen from both ends.

use std::time::Duration;

use manx_bgp::bfd::{BfdConfig, Diagnostic, Packet, State, Undeliverable};
use manx_bgp::speaker::PeerAddr;

use crate::path::*;

#[test]
fn two_ends_find_each_other_by_the_slow_start_and_then_agree_on_their_intervals() {
    let mut path = Path::new(fast(), fast());
    assert!(
        path.sent.iter().all(|(_, _, p)| p.desired_min_tx == ms(1000)),
        "6.8.3: a packet a second while not Up"
    );
    path.run(SETTLE);
    for side in [A, B] {
        let status = path.status(side);
        assert_eq!((status.state, status.remote_state), (State::Up, State::Up));
        assert_eq!((status.detection_time, status.tx_interval), (Some(ms(300)), ms(100)));
        assert_eq!((status.flaps, status.reason), (0, None));
    }
    assert!(path.sent.iter().any(|(_, _, p)| p.poll) && path.sent.iter().any(|(_, _, p)| p.final_));
    assert!(!path.sent.iter().any(|(_, _, p)| p.poll && p.final_), "6.5");
    let since = path.now;
    path.run(ms(10_000));
    assert!(path.sent.iter().filter(|(_, at, _)| *at > since).all(|(_, _, p)| !p.poll && !p.final_));
    let gaps = path.gaps(A, since);
    assert!(
        gaps.iter().all(|g| (ms(75)..=ms(100)).contains(g)),
        "6.8.7: jitter of a quarter at most: {gaps:?}"
    );
}

#[test]
fn a_cut_path_is_seen_within_the_detection_time() {
    for cut in [A, B] {
        let mut path = Path::up(fast(), fast());
        path.deaf[cut] = true;
        let took = path.until(cut, State::Down, ms(310));
        assert!(took >= ms(190), "{took:?}: not before three packets are missing");
        let status = path.status(cut);
        assert_eq!((status.flaps, status.administrative), (1, false));
        assert_eq!(status.reason.as_deref(), Some("detection time expired: no packet for 300 ms"));
        // The other one hears of it, since its side of the path works.
        path.until(1 - cut, State::Down, ms(20));
        let other = path.status(1 - cut);
        assert_eq!(other.reason.as_deref(), Some("peer signals down: control detection time expired"));
        path.deaf[cut] = false;
        path.until(cut, State::Up, ms(3000));
        assert_eq!(path.status(cut).reason, None);
    }
}

/// Trap 6: the REMOTE multiplier times the slower of our reception and its transmission.
#[test]
fn trap_6_the_detection_time_is_the_remote_multiplier_times_the_larger_interval() {
    let a = BfdConfig { min_tx: ms(50), min_rx: ms(400), multiplier: 2 };
    let b = BfdConfig { min_tx: ms(100), min_rx: ms(60), multiplier: 5 };
    let mut path = Path::up(a, b);
    assert_eq!(path.status(A).detection_time, Some(5 * ms(400)));
    assert_eq!(path.status(B).detection_time, Some(2 * ms(60)));
    assert_eq!((path.status(A).tx_interval, path.status(B).tx_interval), (ms(60), ms(400)));
    path.deaf[A] = true;
    let took = path.until(A, State::Down, ms(2010));
    assert!(took > ms(1590), "{took:?}");
}

#[test]
fn single_losses_do_not_take_a_session_down() {
    let mut path = Path::up(fast(), fast());
    path.lose_each = Some(3);
    path.run(Duration::from_secs(60));
    assert_eq!((path.state(A), path.state(B)), (State::Up, State::Up));
    assert_eq!((path.status(A).flaps, path.status(B).flaps), (0, 0));
}

/// Trap 6: an orderly exit says AdminDown, and the peer learns nothing about the path from it.
#[test]
fn trap_6_admin_down_is_no_dead_path() {
    let mut path = Path::up(fast(), fast());
    let now = path.now;
    path.end(A).admin_down(now, None);
    path.work();
    assert_eq!(path.sent.last().unwrap().2.diagnostic, Diagnostic::ADMINISTRATIVELY_DOWN);
    path.ends[A] = None;
    path.run(ms(100));
    let status = path.status(B);
    assert_eq!((status.state, status.remote_state), (State::Down, State::AdminDown));
    assert!(status.administrative, "{status:?}");
    assert_eq!(status.reason.as_deref(), Some("peer is administratively down"));
    // A successor with other discriminators is let in.
    path.start(A, fast(), 99);
    path.until(B, State::Up, ms(5000));
}

#[test]
fn a_peer_that_has_restarted_without_a_word_is_noticed_by_its_first_packet() {
    let mut path = Path::up(fast(), fast());
    path.start(A, fast(), 77);
    let took = path.until(B, State::Down, ms(310));
    assert!(took < ms(300), "{took:?}");
    assert_eq!(path.status(B).reason.as_deref(), Some("peer signals down: it has restarted"));
    assert!(!path.status(B).administrative);
    path.until(B, State::Up, ms(5000));
}

#[test]
fn admin_down_at_our_end_stays_and_discards_what_comes() {
    let mut path = Path::up(fast(), fast());
    let now = path.now;
    path.end(A).admin_down(now, Some(Path::peer_of(A)));
    path.run(Duration::from_secs(20));
    assert_eq!(path.state(A), State::AdminDown);
    assert_eq!(path.state(B), State::Down);
}

#[test]
fn intervals_change_on_a_session_that_is_up_without_taking_it_down() {
    let mut path = Path::up(fast(), fast());
    // Slower: the peer has to know before we slow down (6.8.3).
    path.set(A, BfdConfig { min_tx: ms(500), min_rx: ms(500), multiplier: 3 });
    path.run(Duration::from_secs(5));
    assert_eq!((path.status(A).tx_interval, path.status(B).detection_time), (ms(500), Some(ms(1500))));
    // And faster again.
    path.set(A, BfdConfig { min_tx: ms(20), min_rx: ms(100), multiplier: 3 });
    path.run(Duration::from_secs(5));
    assert_eq!((path.status(A).tx_interval, path.status(B).detection_time), (ms(100), Some(ms(300))));
    assert_eq!((path.status(A).flaps, path.status(B).flaps), (0, 0));
}

#[test]
fn new_ends_are_a_new_session() {
    let mut path = Path::up(fast(), fast());
    let ends = manx_bgp::bfd::BfdEnds { local: [10, 0, 0, 9].into(), remote: Path::peer_of(A) };
    let now = path.now;
    path.end(A).set(now, ends, fast());
    assert_eq!(path.state(A), State::Down);
    let again = manx_bgp::bfd::BfdEnds { local: [10, 0, 0, 9].into(), remote: Path::peer_of(A) };
    path.run(SETTLE);
    let now = path.now;
    path.end(A).set(now, again, fast());
    assert_eq!(path.state(A), State::Up, "the same ends leave it alone");
}

fn packet(your_discriminator: u32) -> Packet {
    Packet {
        diagnostic: Diagnostic::NONE,
        state: State::Down,
        poll: false,
        final_: false,
        control_plane_independent: false,
        demand: false,
        multiplier: 3,
        my_discriminator: 7,
        your_discriminator,
        desired_min_tx: ms(1000),
        required_min_rx: ms(100),
        required_min_echo_rx: ms(0),
    }
}

#[test]
fn packets_are_told_apart_by_discriminator_and_by_address() {
    let mut path = Path::up(fast(), fast());
    let ours = path.sent.iter().rfind(|(side, _, _)| *side == A).unwrap().2.my_discriminator;
    let now = path.now;
    let mut receive = |from: [u8; 4], your| path.end(A).receive(now, from.into(), 3, &packet(your).encode());
    assert_eq!(receive([10, 0, 0, 9], 0), Err(Undeliverable::NoSession), "a stranger");
    assert_eq!(receive([10, 0, 0, 2], 12_345), Err(Undeliverable::NoSession), "a number from a former life");
    assert_eq!(
        receive([10, 0, 0, 9], ours),
        Err(Undeliverable::WrongSender),
        "a stranger who has seen the number"
    );
    assert_eq!(receive([10, 0, 0, 2], ours), Ok(Path::peer_of(A)));
    assert_eq!(path.end(A).discarded(), 3);
    assert_eq!(path.state(A), State::Down, "the last one was heard");
}

#[test]
fn the_same_link_local_address_on_two_links_is_two_sessions() {
    let mut path = Path::new(fast(), fast());
    let now = path.now;
    let ip: std::net::IpAddr = "fe80::1".parse().unwrap();
    for ifindex in [3, 4] {
        let ends =
            manx_bgp::bfd::BfdEnds { local: "fe80::2".parse().unwrap(), remote: PeerAddr::new(ip, ifindex) };
        path.end(A).set(now, ends, fast());
    }
    assert_eq!(path.end(A).receive(now, ip, 4, &packet(0).encode()), Ok(PeerAddr::new(ip, 4)));
    let state = |path: &mut Path, ifindex| path.end(A).status(PeerAddr::new(ip, ifindex)).unwrap().state;
    assert_eq!((state(&mut path, 3), state(&mut path, 4)), (State::Down, State::Init));
    assert_eq!(path.end(A).receive(now, ip, 5, &packet(0).encode()), Err(Undeliverable::NoSession));
}

#[test]
fn a_peer_that_wants_no_packets_gets_none_but_the_answers_to_its_polls() {
    let mut path = Path::up(fast(), fast());
    let ours = path.sent.iter().rfind(|(side, _, _)| *side == A).unwrap().2.my_discriminator;
    path.ends[B] = None;
    let silent = Packet {
        state: State::Up,
        required_min_rx: ms(0),
        poll: true,
        desired_min_tx: ms(100),
        ..packet(ours)
    };
    let since = path.now;
    for _ in 0..20 {
        let now = path.now;
        path.end(A).receive(now, [10, 0, 0, 2].into(), 3, &silent.encode()).unwrap();
        path.run(ms(100));
    }
    let sent: Vec<_> = path.sent.iter().filter(|(_, at, _)| *at > since + ms(150)).collect();
    assert!(!sent.is_empty() && sent.iter().all(|(_, _, p)| p.final_), "{sent:?}");
    assert_eq!(path.state(A), State::Up);
}
