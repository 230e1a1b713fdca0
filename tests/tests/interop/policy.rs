//! Loops, overrides, limits and next hops: what is refused, what is let through, and what a third router makes of it.

use std::sync::Arc;

use manx_bgp::filter::Filter;
use manx_bgp::speaker::{MaxPrefixes, MaxPrefixesAction, NextHopMode, PeerConfig};
use rstest::rstest;

use crate::eventually;
use crate::far::{Config, Far, Kind, Network, Session, config, network, session};
use crate::node::{AS, Manx, peer, prefix, speaker};
use crate::rack::{Over, Rack, address};

fn manx() -> std::net::IpAddr {
    address(1, Over::V4)
}

/// A peer to which everything is passed on.
fn transit(n: u8, asn: u32) -> PeerConfig {
    PeerConfig { export: vec![Arc::new(Filter::accept_all("transit"))], ..peer(n, Over::V4, asn) }
}

/// RFC 4271 9.1.2: a path with our own AS in it has been here before.
#[rstest]
#[case::bird(Kind::Bird)]
#[case::frr(Kind::Frr)]
fn a_path_through_ourselves_is_refused_unless_allowed(#[case] kind: Kind) {
    let rack = Rack::new(2);
    let looping = |text| Network { prepend: Some(AS), ..network(text) };
    let networks = vec![looping("10.210.0.0/24"), looping("fd00:210::/64"), network("10.211.0.0/24")];
    let far = Far::start(&rack, 2, kind, &Config { networks, ..config(65010, session(AS)) });
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(peer(2, Over::V4, 65010));
    node.learns("10.211.0.0/24");
    eventually(|| {
        let counts: Vec<_> = node.peer(2).families.iter().map(|f| (f.received, f.filtered)).collect();
        if counts == [(2, 1), (1, 1)] { Ok(()) } else { Err(counts) }
    });
    let refused = node.explain(prefix("10.210.0.0/24"));
    let reason = refused.paths[0].reason.clone().unwrap_or_default();
    assert!(reason.contains("own AS in AS_PATH"), "{refused:?}");
    node.set_peer(PeerConfig { allow_as_in: 1, ..peer(2, Over::V4, 65010) });
    node.learns("10.210.0.0/24");
    node.learns("fd00:210::/64");
    assert!(far.is_up(manx()), "asking for the routes again took no new session");
    assert_eq!(node.peer(2).flaps, 0);
}

/// Trap 24, and RFC 4271 5.1.3 and 5.1.4: two racks of one AS, and what one sees of the other through Manx.
#[test]
fn a_third_router_sees_the_next_hop_the_path_and_the_med_that_it_should() {
    let rack = Rack::new(4);
    let networks = ["10.210.0.0/24", "fd00:210::/64"]
        .map(|text| Network { med: Some(70), community: Some("64999:9"), ..network(text) })
        .to_vec();
    let _source = Far::start(&rack, 2, Kind::Bird, &Config { networks, ..config(65010, session(AS)) });
    let same = Far::start(&rack, 3, Kind::Frr, &config(65010, session(AS)));
    let other = Far::start(&rack, 4, Kind::Gobgp, &config(65020, session(AS)));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(peer(2, Over::V4, 65010));
    node.set_peer(transit(3, 65010));
    node.set_peer(transit(4, 65020));
    for (text, over) in [("10.210.0.0/24", Over::V4), ("fd00:210::/64", Over::V6)] {
        let seen = other.learns(text);
        assert_eq!(seen.as_path, "64512 65010");
        assert_eq!(seen.med, None, "MED was for us");
        assert_eq!(seen.communities.len(), 1);
        assert!(seen.next_hops.contains(&address(1, over)), "{text}: {seen:?}");
        assert_eq!(same.route(text), None, "{text} carries the AS of the peer itself");
    }
    node.set_peer(PeerConfig { as_override: true, next_hop: NextHopMode::Auto, ..transit(3, 65010) });
    node.set_peer(PeerConfig { next_hop: NextHopMode::Keep, ..transit(4, 65020) });
    for (text, over) in [("10.210.0.0/24", Over::V4), ("fd00:210::/64", Over::V6)] {
        let seen = same.learns(text);
        assert_eq!(seen.as_path, "64512 64512");
        assert!(seen.next_hops.contains(&address(2, over)), "the third party on the switch: {seen:?}");
        eventually(|| {
            let seen = other.learns(text);
            if seen.next_hops.contains(&address(2, over)) { Ok(()) } else { Err(seen) }
        });
    }
}

/// RFC 1997: what BIRD puts on the routes on their way out is meant for us; FRR is the neighbour that must not hear of them.
#[test]
fn no_export_and_no_advertise_end_here() {
    let rack = Rack::new(3);
    let networks = vec![
        Network { community: Some("65535:65281"), ..network("10.210.0.0/24") },
        Network { community: Some("65535:65282"), ..network("10.211.0.0/24") },
        network("10.212.0.0/24"),
    ];
    let _source = Far::start(&rack, 2, Kind::Bird, &Config { networks, ..config(65010, session(AS)) });
    let far = Far::start(&rack, 3, Kind::Frr, &config(65020, session(AS)));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(peer(2, Over::V4, 65010));
    ["10.210.0.0/24", "10.211.0.0/24", "10.212.0.0/24"].iter().for_each(|text| drop(node.learns(text)));
    node.set_peer(transit(3, 65020));
    far.learns("10.212.0.0/24");
    assert_eq!(node.peer(3).families[0].advertised, 1);
    assert_eq!((far.route("10.210.0.0/24"), far.route("10.211.0.0/24")), (None, None));
}

#[test]
fn a_prefix_limit_warns_rejects_or_ends_the_session() {
    let rack = Rack::new(2);
    let networks: Vec<Network> = (0..5).map(|i| network(&format!("10.210.{i}.0/24"))).collect();
    let far = Far::start(&rack, 2, Kind::Bird, &Config { networks, ..config(65010, session(AS)) });
    let node = Manx::start(&rack, speaker(AS));
    let limited = |action| PeerConfig {
        max_prefixes: Some(MaxPrefixes { limit: 3, action }),
        ..peer(2, Over::V4, 65010)
    };
    let accepts = |count| {
        eventually(|| {
            let family = node.peer(2).families[0].clone();
            if (family.received, family.accepted) == (5, count) { Ok(()) } else { Err(family) }
        });
    };
    node.set_peer(limited(MaxPrefixesAction::Warn));
    node.goes_down(2, "more than 3 ipv4 prefixes");
    accepts(5);
    node.set_peer(limited(MaxPrefixesAction::Reject));
    accepts(3);
    node.set_peer(limited(MaxPrefixesAction::Disable { restart: None }));
    node.goes_down(2, "stopped until reset");
    far.logs(&rack, "bird.log", "Maximum number of prefixes reached");
    eventually(|| if far.is_up(manx()) { Err("it is up") } else { Ok(()) });
    node.set_peer(peer(2, Over::V4, 65010));
    accepts(5);
}

/// And theirs for us.
#[rstest]
#[case::bird(Kind::Bird, "import limit 3 action disable;")]
#[case::frr(Kind::Frr, "maximum-prefix 3")]
#[case::openbgpd(Kind::Openbgpd, "max-prefix 3")]
fn the_far_sides_prefix_limit_is_told(#[case] kind: Kind, #[case] limit: &str) {
    let rack = Rack::new(2);
    let _far = Far::start(&rack, 2, kind, &config(65010, Session { extra: limit.into(), ..session(AS) }));
    let node = Manx::start(&rack, speaker(AS));
    for i in 0..5 {
        node.originate(manx_bgp::speaker::LocalRoute::new(prefix(&format!("10.200.{i}.0/24"))));
    }
    node.set_peer(peer(2, Over::V4, 65010));
    node.goes_down(2, "received Cease/Maximum Number of Prefixes Reached");
}
