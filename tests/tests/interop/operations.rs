//! What is done to a session and its routes on purpose: kept for long, ended for good, drained, taken from a range.

use std::net::IpAddr;
use std::time::Duration;

use manx_bgp::speaker::{
    GracefulRestartConfig, LocalRoute, PeerConfig, PeerRange, RemoteAs, Secret, SpeakerConfig,
};
use nix::sys::signal::Signal;

use crate::eventually;
use crate::far::{Config, Far, Kind, Session, config, network, session};
use crate::node::{AS, Manx, graceful, peer, prefix, speaker};
use crate::rack::{Over, Rack, address};

const OURS: &str = "10.200.0.0/24";
const THEIRS: &str = "10.100.0.0/16";

fn manx() -> IpAddr {
    address(1, Over::V4)
}

/// Graceful restart, and two hours as the last choice after it.
fn long_lived() -> SpeakerConfig {
    SpeakerConfig {
        graceful_restart: Some(GracefulRestartConfig {
            restart_time: Duration::from_secs(60),
            long_lived_time: Some(Duration::from_secs(7200)),
            restarting: false,
        }),
        ..speaker(AS)
    }
}

/// A BIRD that offers all that it has, restarts within two seconds and wants to be remembered for an hour.
fn bird() -> Config {
    let lines = " enable extended messages on;\n graceful restart time 2;\n long lived graceful restart on;\n \
                 long lived stale time 3600;\n";
    let session = Session { graceful: true, lines: lines.to_owned(), ..session(AS) };
    Config { networks: vec![network(THEIRS)], ..config(65010, session) }
}

/// RFC 9494: after BIRD's two seconds its route is the last choice, and fresh again when it is back.
#[test]
fn a_killed_bird_is_remembered_as_the_last_choice() {
    let rack = Rack::new(2);
    let far = Far::start(&rack, 2, Kind::Bird, &bird());
    let node = Manx::start(&rack, long_lived());
    node.set_peer(peer(2, Over::V4, 65010));
    node.learns(THEIRS);
    far.bgp.end(Signal::SIGKILL).unwrap();
    eventually(|| {
        let route = node.learns(THEIRS);
        if route.communities.contains(&"llgr-stale".to_owned()) { Ok(()) } else { Err(route) }
    });
    assert!(node.told(|told| told.removed.is_empty()), "the FIB keeps it all the while");
    far.start_again();
    eventually(|| {
        let route = node.learns(THEIRS);
        if route.communities.is_empty() && !route.stale { Ok(()) } else { Err(route) }
    });
    assert!(node.told(|told| told.removed.is_empty()));
}

/// RFC 8538 with FRR, whose administrative reset is a hard one: the reason comes inside it.
#[test]
fn a_shutdown_goes_to_frr_as_a_hard_reset_and_its_own_comes_as_one() {
    let rack = Rack::new(2);
    let theirs = Session { graceful: true, ..session(AS) };
    let far =
        Far::start(&rack, 2, Kind::Frr, &Config { networks: vec![network(THEIRS)], ..config(65010, theirs) });
    let node = Manx::start(&rack, graceful(AS, false));
    node.originate(LocalRoute::new(prefix(OURS)));
    node.set_peer(peer(2, Over::V4, 65010));
    node.learns(THEIRS);
    far.learns(OURS);
    node.with(|speaker, now| speaker.set_enabled(now, "n2", false, "new cables"));
    far.loses(OURS);
    node.with(|speaker, now| speaker.set_enabled(now, "n2", true, ""));
    far.learns(OURS);
    far.shut(manx(), "maintenance");
    node.goes_down(2, "Hard Reset");
    eventually(|| if node.explain(prefix(THEIRS)).paths.is_empty() { Ok(()) } else { Err("still kept") });
}

/// Drained, a node is the last choice first and gone after (RFC 8326, RFC 9003).
#[test]
fn bird_and_frr_see_a_drain() {
    let rack = Rack::new(3);
    let fars = [(2, Kind::Bird, 65010), (3, Kind::Frr, 65020)]
        .map(|(n, kind, asn)| Far::start(&rack, n, kind, &config(asn, session(AS))));
    let node = Manx::start(&rack, speaker(AS));
    node.originate(LocalRoute::new(prefix(OURS)));
    node.set_peer(peer(2, Over::V4, 65010));
    node.set_peer(peer(3, Over::V4, 65020));
    fars.iter().for_each(|far| drop(far.learns(OURS)));
    node.with(|speaker, now| speaker.drain(now, Duration::from_secs(3600), "new rack"));
    for far in &fars {
        eventually(|| {
            let route = far.learns(OURS);
            // FRR has a name for it, BIRD the number.
            let tagged = |c: &String| c == "65535:0" || c.eq_ignore_ascii_case("graceful-shutdown");
            if route.communities.iter().any(tagged) { Ok(()) } else { Err(route) }
        });
    }
    node.with(|speaker, now| speaker.drain(now, Duration::ZERO, "new rack"));
    fars.iter().for_each(|far| far.loses(OURS));
    fars[0].logs(&rack, "bird.log", "Administrative shutdown: \"new rack\"");
    fars[1].says(manx(), "new rack");
}

/// Two routers that nobody has named come from a range, under the key of the range.
#[test]
fn bird_and_frr_come_from_a_listen_range() {
    let rack = Rack::new(3);
    let fars = [(2, Kind::Bird), (3, Kind::Frr)].map(|(n, kind)| {
        Far::start(&rack, n, kind, &config(65010, Session { password: Some("of-the-rack"), ..session(AS) }))
    });
    let node = Manx::start(&rack, speaker(AS));
    let template = PeerConfig {
        password: Some(Secret("of-the-rack".into())),
        ..PeerConfig::new("any", manx(), RemoteAs::External)
    };
    let range = PeerRange { name: "rack".into(), range: prefix("10.9.0.0/24"), max_peers: 2, template };
    node.with(|speaker, now| speaker.set_range(now, range));
    fars.iter().for_each(|far| far.comes_up(manx()));
    let names = node.with(|speaker, now| speaker.peers(now).into_iter().map(|p| p.name).collect::<Vec<_>>());
    assert_eq!(names, ["rack@10.9.0.2", "rack@10.9.0.3"]);
}
