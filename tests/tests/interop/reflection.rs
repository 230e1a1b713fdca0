//! Route reflection (RFC 4456), with Manx as the reflector and as a client.

use manx_bgp::speaker::{LocalRoute, PeerConfig};
use rstest::rstest;

use crate::far::{Config, Far, Kind, Session, config, network, session};
use crate::node::{AS, Manx, peer, prefix, speaker};
use crate::rack::{Over, Rack, address};

const THEIRS: [(&str, Over); 2] = [("10.210.0.0/24", Over::V4), ("fd00:210::/64", Over::V6)];
const OTHERS: [(&str, Over); 2] = [("10.220.0.0/24", Over::V4), ("fd00:220::/64", Over::V6)];

/// Two clients see each other's routes with the next hop of the other, its identifier and our cluster.
#[rstest]
#[case::bird_and_frr(Kind::Bird, Kind::Frr)]
#[case::gobgp_and_openbgpd(Kind::Gobgp, Kind::Openbgpd)]
fn clients_see_each_other(#[case] one: Kind, #[case] two: Kind) {
    let rack = Rack::new(3);
    let start = |n, kind, networks: [(&str, Over); 2]| {
        let networks = networks.map(|(text, _)| network(text)).to_vec();
        Far::start(&rack, n, kind, &Config { networks, ..config(AS, session(AS)) })
    };
    let (one, two) = (start(2, one, THEIRS), start(3, two, OTHERS));
    let node = Manx::start(
        &rack,
        manx_bgp::speaker::SpeakerConfig { cluster_id: Some([10, 9, 9, 9].into()), ..speaker(AS) },
    );
    for n in [2, 3] {
        node.set_peer(PeerConfig { route_reflector_client: true, ..peer(n, Over::V4, AS) });
    }
    for (far, source, networks) in [(&one, 3, OTHERS), (&two, 2, THEIRS)] {
        for (text, over) in networks {
            let seen = far.learns(text);
            assert_eq!(seen.originator, Some(address(source, Over::V4).to_string()), "{text}: {seen:?}");
            assert_eq!(seen.clusters, ["10.9.9.9"], "{text}: {seen:?}");
            assert!(seen.next_hops.contains(&address(source, over)), "{text}: {seen:?}");
            assert_eq!((seen.as_path.as_str(), seen.local_pref), ("", Some(100)), "{text}");
        }
    }
    // Between peers that are no clients nothing is passed on.
    for n in [2, 3] {
        node.set_peer(peer(n, Over::V4, AS));
    }
    for (text, _) in OTHERS {
        one.loses(text);
    }
}

/// A reflector of another make: Manx is its client, learns through it, and drops what comes back to itself.
#[rstest]
#[case::bird(Kind::Bird)]
#[case::frr(Kind::Frr)]
#[case::gobgp(Kind::Gobgp)]
#[case::openbgpd(Kind::Openbgpd)]
fn a_client_of_another_reflector_learns_through_it(#[case] kind: Kind) {
    let rack = Rack::new(3);
    let client = |to| Session { to, client: true, ..session(AS) };
    let reflector = Config { sessions: vec![client(1), client(3)], ..config(AS, session(AS)) };
    let far = Far::start(&rack, 2, kind, &reflector);
    let networks = THEIRS.map(|(text, _)| network(text)).to_vec();
    let other_client = Session { to: 2, ..session(AS) };
    let other = Far::start(&rack, 3, Kind::Bird, &Config { networks, ..config(AS, other_client) });
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(peer(2, Over::V4, AS));
    node.originate(LocalRoute::new(prefix("10.200.0.0/24")));
    for (text, over) in THEIRS {
        let route = node.learns(text);
        assert_eq!(route.originator_id.map(Into::into), Some(address(3, Over::V4)), "{route:?}");
        assert_eq!(route.cluster_list.len(), 1, "{route:?}");
        assert_eq!(route.next_hop, Some(address(3, over)), "{route:?}");
    }
    let seen = other.learns("10.200.0.0/24");
    assert_eq!(seen.originator, Some("10.9.0.1".to_owned()));
    assert!(seen.next_hops.contains(&address(1, Over::V4)));
    assert!(far.is_up(address(1, Over::V4)));
}
