//! Several paths of a prefix on one session (RFC 7911).

use std::collections::BTreeSet;
use std::sync::Arc;

use manx_bgp::filter::Filter;
use manx_bgp::speaker::{AddPath, PeerConfig};
use rstest::rstest;

use crate::eventually;
use crate::far::{Config, Far, Kind, Session, config, network, session};
use crate::node::{AS, Manx, peer, prefix, speaker};
use crate::rack::{Over, Rack, address};

/// Of the family whose options GoBGP takes behind all others.
const SHARED: &str = "fd00:210::/64";

const BOTH: AddPath = AddPath { receive: true, send: true, send_max: None };

fn manx() -> std::net::IpAddr {
    address(1, Over::V4)
}

/// A router that originates the prefix, with sessions to these members.
fn source(rack: &Rack, n: u8, to: &[(u8, u32)]) -> Far {
    let sessions = to.iter().map(|(to, asn)| Session { to: *to, ..session(*asn) }).collect();
    let asn = 65000 + u32::from(n);
    let networks = vec![network(SHARED)];
    Far::start(rack, n, Kind::Bird, &Config { asn, sessions, networks, extra: String::new() })
}

/// The option in each one's own words.
const BIRD: &str = "add paths on;";
const FRR: &str = "addpath-tx-all-paths";
const GOBGP: &str = "   [neighbors.afi-safis.add-paths.config]\n    receive = true\n    send-max = 8\n";

#[rstest]
#[case::bird(Kind::Bird, BIRD)]
#[case::frr(Kind::Frr, FRR)]
#[case::gobgp(Kind::Gobgp, GOBGP)]
fn several_paths_go_to_a_peer_that_takes_them(#[case] kind: Kind, #[case] extra: &str) {
    let rack = Rack::new(4);
    let far = Far::start(&rack, 2, kind, &config(65010, Session { extra: extra.into(), ..session(AS) }));
    let sources = [3, 4].map(|n| source(&rack, n, &[(1, AS)]));
    let node = Manx::start(&rack, speaker(AS));
    let export = vec![Arc::new(Filter::accept_all("transit"))];
    node.set_peer(PeerConfig { add_path: BOTH, export, ..peer(2, Over::V4, 65010) });
    node.set_peer(peer(3, Over::V4, 65003));
    node.set_peer(peer(4, Over::V4, 65004));
    far.comes_up(manx());
    let expect = |paths: &[&str]| {
        let wanted: BTreeSet<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        eventually(|| {
            let held = far.paths(SHARED);
            if held == wanted { Ok(()) } else { Err(held) }
        });
    };
    expect(&["64512 65003", "64512 65004"]);
    // A withdrawal takes the one that it names.
    sources[0].bgp.end(nix::sys::signal::Signal::SIGKILL).unwrap();
    expect(&["64512 65004"]);
    assert_eq!(node.peer(2).messages.faults, 0);
    assert!(far.is_up(manx()));
}

#[rstest]
#[case::bird(Kind::Bird, BIRD)]
#[case::frr(Kind::Frr, FRR)]
#[case::gobgp(Kind::Gobgp, GOBGP)]
fn several_paths_come_from_a_peer_that_sends_them(#[case] kind: Kind, #[case] extra: &str) {
    let rack = Rack::new(4);
    let to_us = Session { extra: extra.into(), ..session(AS) };
    let from = |to| Session { to, ..session(65000 + u32::from(to)) };
    let sessions = vec![from(3), from(4), to_us];
    let far = Far::start(&rack, 2, kind, &Config { sessions, ..config(65010, session(AS)) });
    let sources = [3, 4].map(|n| source(&rack, n, &[(2, 65010)]));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(PeerConfig { add_path: BOTH, ..peer(2, Over::V4, 65010) });
    far.comes_up(manx());
    let expect = |wanted: &[u32]| {
        eventually(|| {
            let held = node.explain(prefix(SHARED)).paths;
            let ids: BTreeSet<_> = held.iter().map(|path| path.path_id).collect();
            let through: BTreeSet<String> =
                held.iter().map(|path| format!("{:?}", path.as_path.last())).collect();
            let right = wanted.iter().all(|asn| through.iter().any(|last| last.contains(&asn.to_string())));
            let apart = ids.len() == wanted.len() && !ids.contains(&None);
            if right && apart && held.len() == wanted.len() { Ok(()) } else { Err(held) }
        });
    };
    expect(&[65003, 65004]);
    sources[1].bgp.end(nix::sys::signal::Signal::SIGKILL).unwrap();
    expect(&[65003]);
    assert_eq!(node.peer(2).messages.faults, 0);
}
