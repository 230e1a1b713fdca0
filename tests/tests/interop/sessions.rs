//! Sessions: how they come up, what keeps them down, and what both sides say when they end.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use manx_bgp::net::Shutdown;
use manx_bgp::speaker::{PeerConfig, Secret};
use nix::sys::signal::Signal;
use rstest::rstest;

use crate::eventually;
use crate::far::{Config, Far, Kind, Session, config, session};
use crate::node::{AS, Manx, hold, peer, speaker};
use crate::rack::{Over, Rack, address};

const PASSWORD: &str = "cheese-and-onion";

/// The address of Manx.
fn manx() -> IpAddr {
    address(1, Over::V4)
}

/// RFC 2385 on dialled and accepted connections: one side is passive, so that the other has to dial.
#[rstest]
#[case::bird(Kind::Bird)]
#[case::frr(Kind::Frr)]
#[case::gobgp(Kind::Gobgp)]
#[case::openbgpd(Kind::Openbgpd)]
fn md5_protects_sessions_that_either_side_dials(#[case] kind: Kind) {
    let rack = Rack::new(3);
    let far = |n, passive, over| {
        let session = Session { over, password: Some(PASSWORD), passive, ..session(AS) };
        Far::start(&rack, n, kind, &config(65010, session))
    };
    let (dialled, dials) = (far(2, true, Over::V4), far(3, false, Over::V6));
    let node = Manx::start(&rack, speaker(AS));
    let password = Some(Secret(PASSWORD.into()));
    node.set_peer(PeerConfig { password: password.clone(), ..peer(2, Over::V4, 65010) });
    node.set_peer(PeerConfig { password, passive: true, ..peer(3, Over::V6, 65010) });
    node.comes_up(2);
    node.comes_up(3);
    dialled.comes_up(manx());
    dials.comes_up(address(1, Over::V6));
}

/// The kernel's counters tell who was refused: a wrong key on the first session, none at all on the second.
#[test]
fn a_wrong_or_missing_md5_key_keeps_the_session_down() {
    let rack = Rack::new(3);
    let session = Session { password: Some(PASSWORD), ..session(AS) };
    let wrong = Far::start(&rack, 2, Kind::Bird, &config(65010, session.clone()));
    let missing = Far::start(&rack, 3, Kind::Frr, &config(65010, session));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(PeerConfig { password: Some(Secret("another".into())), ..peer(2, Over::V4, 65010) });
    node.set_peer(peer(3, Over::V4, 65010));
    for (n, counter) in [(2, "TcpExtTCPMD5Failure"), (3, "TcpExtTCPMD5NotFound")] {
        eventually(|| if rack.counter(n, counter) >= 2 { Ok(()) } else { Err(format!("{n}: no {counter}")) });
    }
    assert!(!wrong.is_up(manx()) && !missing.is_up(manx()));
    // The right key needs no restart.
    node.set_peer(PeerConfig { password: Some(Secret(PASSWORD.into())), ..peer(2, Over::V4, 65010) });
    wrong.comes_up(manx());
}

/// A new key, without a new session of ours and without a restart of anybody: first here, then there, and the other way
/// round; of a session that we dial and of one that we accept. BIRD and FRR begin a session anew when their key changes.
#[rstest]
#[case::bird(Kind::Bird)]
#[case::frr(Kind::Frr)]
fn an_md5_key_changes_on_a_live_session(#[case] kind: Kind) {
    let rack = Rack::new(3);
    let far = |n, passive, over| {
        let session = Session { over, password: Some(PASSWORD), passive, hold: 3, ..session(AS) };
        let config = config(65010, session);
        (Far::start(&rack, n, kind, &config), config, address(1, over))
    };
    let mut fars = [far(2, true, Over::V4), far(3, false, Over::V6)];
    let node = Manx::start(&rack, speaker(AS));
    let set_key = |key: &str| {
        let password = Some(Secret(key.into()));
        node.set_peer(PeerConfig { password: password.clone(), ..peer(2, Over::V4, 65010) });
        node.set_peer(PeerConfig { password, passive: true, ..peer(3, Over::V6, 65010) });
    };
    set_key(PASSWORD);
    let both_up = |fars: &[(Far, Config, IpAddr)]| {
        for (far, _, manx) in fars {
            node.comes_up(far.n);
            far.comes_up(*manx);
        }
    };
    both_up(&fars);

    // With the new key on one side of a live session nothing gets through any more, and only the hold timer ends it.
    let facts = node.facts().len();
    set_key("first-new-key");
    let ended = |n: u8| move |fact: &&String| fact.starts_with(&format!("n{n}: Established"));
    eventually(|| {
        let new: Vec<String> = node.facts().split_off(facts);
        let ends: Vec<&String> = [2, 3].iter().filter_map(|n| new.iter().find(ended(*n))).collect();
        if ends.len() == 2 { Ok(()) } else { Err(new) }
    });
    let ends = node.facts().split_off(facts);
    let waited = |fact: &String| fact.contains("hold timer expired");
    assert!([2, 3].iter().all(|n| ends.iter().find(ended(*n)).is_some_and(waited)), "{ends:?}");
    assert!(rack.counter(1, "TcpExtTCPMD5Failure") > 0);
    for (far, config, manx) in &mut fars {
        far.change_key(&rack, config, *manx, "first-new-key");
    }
    both_up(&fars);

    // They first: they dial and are dialled with a key that is not ours yet.
    for (far, config, manx) in &mut fars {
        far.change_key(&rack, config, *manx, "second-new-key");
    }
    for (far, ..) in &fars {
        eventually(|| if node.peer(far.n).state == "Established" { Err("still up") } else { Ok(()) });
    }
    set_key("second-new-key");
    both_up(&fars);
}

/// RFC 5082.
#[rstest]
#[case::bird(Kind::Bird)]
#[case::frr(Kind::Frr)]
#[case::gobgp(Kind::Gobgp)]
#[case::openbgpd(Kind::Openbgpd)]
fn ttl_security_agrees(#[case] kind: Kind) {
    let rack = Rack::new(2);
    let far = Far::start(&rack, 2, kind, &config(65010, Session { ttl_security: true, ..session(AS) }));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(PeerConfig { ttl_security: true, ..peer(2, Over::V4, 65010) });
    node.comes_up(2);
    far.comes_up(manx());
}

#[test]
fn one_sided_ttl_security_keeps_the_session_down() {
    let rack = Rack::new(2);
    let far = Far::start(&rack, 2, Kind::Bird, &config(65010, session(AS)));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(PeerConfig { ttl_security: true, ..peer(2, Over::V4, 65010) });
    eventually(|| if rack.counter(1, "TcpExtTCPMinTTLDrop") >= 2 { Ok(()) } else { Err("nothing dropped") });
    assert!(!far.is_up(manx()));
}

/// RFC 9003, both ways.
#[rstest]
#[case::bird(Kind::Bird)]
#[case::frr(Kind::Frr)]
#[case::gobgp(Kind::Gobgp)]
#[case::openbgpd(Kind::Openbgpd)]
fn the_text_of_a_shutdown_is_shown_at_the_other_end(#[case] kind: Kind) {
    let rack = Rack::new(2);
    let far = Far::start(&rack, 2, kind, &config(65010, session(AS)));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(peer(2, Over::V4, 65010));
    node.comes_up(2);
    far.comes_up(manx());

    node.with(|speaker, now| speaker.set_enabled(now, "n2", false, "new cables"));
    match kind {
        Kind::Bird => far.logs(&rack, "bird.log", "Administrative shutdown: \"new cables\""),
        Kind::Frr => far.says(manx(), "new cables"),
        Kind::Gobgp => far.logs(&rack, "gobgp.log", "new cables"),
        Kind::Openbgpd => far.says(manx(), "new cables"),
    }
    node.with(|speaker, now| speaker.set_enabled(now, "n2", true, ""));
    far.comes_up(manx());
    node.comes_up(2);
    far.shut(manx(), "maintenance");
    node.goes_down(2, "maintenance");
}

/// And when the whole agent is drained.
#[test]
fn an_orderly_stop_says_why() {
    let rack = Rack::new(3);
    let bird = Far::start(&rack, 2, Kind::Bird, &config(65010, session(AS)));
    let frr = Far::start(&rack, 3, Kind::Frr, &config(65010, session(AS)));
    let node = Manx::start(&rack, speaker(AS));
    for n in [2, 3] {
        node.set_peer(peer(n, Over::V4, 65010));
        node.comes_up(n);
    }
    frr.comes_up(manx());
    bird.comes_up(manx());
    node.stop(Shutdown::Cease("node drained".into()));
    bird.logs(&rack, "bird.log", "Administrative shutdown: \"node drained\"");
    frr.says(manx(), "node drained");
}

/// The peer is stopped in its tracks: the hold timer ends the session on our side, and the NOTIFICATION is there when it wakes.
#[rstest]
#[case::bird(Kind::Bird)]
#[case::frr(Kind::Frr)]
fn a_silent_peer_is_given_up_when_the_hold_timer_expires(#[case] kind: Kind) {
    let rack = Rack::new(2);
    let far = Far::start(&rack, 2, kind, &config(65010, Session { hold: 3, ..session(AS) }));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(peer(2, Over::V4, 65010));
    node.comes_up(2);
    far.comes_up(manx());
    assert_eq!(node.peer(2).timers.hold_time, Some(3), "the smaller one");
    far.bgp.signal(Signal::SIGSTOP);
    node.goes_down(2, "hold timer expired");
    far.bgp.signal(Signal::SIGCONT);
    far.comes_up(manx());
    node.comes_up(2);
    match kind {
        Kind::Bird => far.logs(&rack, "bird.log", "Hold timer expired"),
        // On waking it finds its own timer expired before it reads ours.
        _ => far.says(manx(), "\"connectionsDropped\":1"),
    }
}

/// Trap 9: each side refuses the other's OPEN for ten seconds, and the kernel counts the connections that were made. A third
/// session with the shortest hold time that there is stays up meanwhile.
#[test]
fn a_wrong_as_is_refused_with_2_2_both_ways_and_not_dialled_in_a_loop() {
    let rack = Rack::new(4);
    let passive = Session { passive: true, ..session(AS) };
    let wrong_here = Far::start(&rack, 2, Kind::Bird, &config(65010, passive.clone()));
    let wrong_there =
        Far::start(&rack, 3, Kind::Bird, &config(65010, Session { remote_as: 64999, ..passive }));
    let lively = Far::start(&rack, 4, Kind::Frr, &config(65010, Session { hold: 3, ..session(AS) }));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(PeerConfig { hold_time: hold(3), ..peer(4, Over::V4, 65010) });
    node.comes_up(4);
    lively.comes_up(manx());
    let flaps = node.peer(4).flaps;
    let began = Instant::now();
    let before = rack.counter(1, "TcpActiveOpens");
    let connect_retry = Duration::from_secs(5);
    node.set_peer(PeerConfig { connect_retry, ..peer(2, Over::V4, 65999) });
    node.set_peer(PeerConfig { connect_retry, ..peer(3, Over::V4, 65010) });
    node.goes_down(2, "peer is AS 65010, configured is 65999");
    node.goes_down(3, "received OPEN Message Error/Bad Peer AS");
    wrong_here.logs(&rack, "bird.log", "Bad peer AS");
    wrong_there.logs(&rack, "bird.log", "Bad peer AS");
    while began.elapsed() < Duration::from_secs(10) {
        assert!(lively.is_up(manx()));
        std::thread::sleep(Duration::from_millis(200));
    }
    let dials = rack.counter(1, "TcpActiveOpens") - before;
    // Each waits 1, 2 and 4 seconds after an error, 5 where BIRD, which waits as well, closes the connection without a word,
    // all less a quarter at most: five dials. One more for the seconds that a busy machine adds to the ten.
    assert!((2..=12).contains(&dials), "{dials} connections in ten seconds");
    assert_eq!(node.peer(4).flaps, flaps);
}

/// RFC 4271 6.8: both sides dial at the same time, and once more after a reset; one connection is left each time.
/// (OpenBGPD takes no connections for half a minute after a reset.)
#[rstest]
#[case::bird(Kind::Bird)]
#[case::frr(Kind::Frr)]
#[case::gobgp(Kind::Gobgp)]
fn sides_that_dial_at_once_settle_on_one_connection(#[case] kind: Kind) {
    let rack = Rack::new(2);
    let far = Far::start(&rack, 2, kind, &config(65010, session(AS)));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(peer(2, Over::V4, 65010));
    node.comes_up(2);
    far.comes_up(manx());
    node.with(|speaker, now| speaker.reset(now, "n2", manx_bgp::speaker::Reset::Hard));
    node.comes_up(2);
    far.comes_up(manx());
    eventually(|| {
        let connections = rack.netns(1).run("ss -Htn state established").unwrap();
        if connections.lines().count() == 1 { Ok(()) } else { Err(connections) }
    });
}
