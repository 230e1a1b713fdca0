//! Graceful restart (RFC 4724) in both roles: who is away keeps its routes, and a third router hears nothing of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use manx_bgp::net::Shutdown;
use manx_bgp::speaker::{LocalRoute, PeerConfig};
use manx_bgp::types::Family;
use nix::sys::signal::Signal;
use rstest::rstest;

use crate::eventually;
use crate::far::{Config, Far, Kind, Session, config, network, session};
use crate::node::{AS, Manx, graceful, hold, peer, prefix};
use crate::rack::{Over, Rack, address};

const OURS: [&str; 2] = ["10.200.0.0/24", "fd00:200::/64"];

fn to(member: u8, remote_as: u32) -> Session {
    Session { to: member, graceful: true, ..session(remote_as) }
}

fn manx() -> IpAddr {
    address(1, Over::V4)
}

/// Withdrawals that a BIRD has received, over all sessions and families.
fn withdrawals(bird: &Far) -> u64 {
    bird.bird().count("", "Import withdraws").unwrap()
}

/// A node with two ToRs, and a spine behind them.
struct Fabric {
    rack: Rack,
    bird: Far,
    frr: Far,
    spine: Far,
}

impl Fabric {
    fn start() -> Fabric {
        let rack = Rack::new(4);
        let tor = |asn| Config {
            sessions: vec![to(1, AS), to(4, 65030)],
            networks: vec![
                network(&format!("10.{}.0.0/16", asn - 64910)),
                network(&format!("fd00:{}::/64", asn - 64910)),
            ],
            ..config(asn, session(AS))
        };
        let bird = Far::start(&rack, 2, Kind::Bird, &tor(65010));
        let frr = Far::start(&rack, 3, Kind::Frr, &tor(65020));
        let sessions = vec![to(2, 65010), to(3, 65020)];
        let spine = Far::start(&rack, 4, Kind::Bird, &Config { sessions, ..config(65030, session(AS)) });
        Fabric { rack, bird, frr, spine }
    }

    /// A Manx that announces `routes` to both ToRs.
    fn node(&self, restarting: bool, routes: &[&str]) -> Manx {
        let node = Manx::start(&self.rack, graceful(AS, restarting));
        node.set_peer(peer(2, Over::V4, 65010));
        node.set_peer(peer(3, Over::V4, 65020));
        routes.iter().for_each(|text| node.originate(LocalRoute::new(prefix(text))));
        node
    }

    fn tors(&self) -> [&Far; 2] {
        [&self.bird, &self.frr]
    }

    /// Waits until the spine has a path from each ToR.
    fn spine_hears(&self, text: &str) {
        for session in ["s0", "s1"] {
            eventually(|| {
                let shown = self.spine.bird().ask(&format!("show route for {text} protocol {session}"));
                match shown {
                    Ok(shown) if shown.contains(text) => Ok(()),
                    other => Err(format!("no {text} over {session}: {other:?}")),
                }
            });
        }
    }

    /// Both ToRs hold our routes, and hold them as stale or not.
    fn hold_ours(&self, stale: bool) {
        for tor in self.tors() {
            for text in OURS {
                eventually(|| match tor.route(text) {
                    Some(seen) if seen.stale == stale => Ok(()),
                    other => Err(format!("{:?} {text}: {other:?}", tor.kind)),
                });
            }
        }
    }
}

/// Trap 3 and trap 4: replaced without a word, twice within the window, and finally come back with one route less.
#[test]
fn a_silent_restart_of_ours_is_not_seen_behind_the_tors() {
    let fabric = Fabric::start();
    let node = fabric.node(false, &OURS);
    fabric.hold_ours(false);
    for tor in fabric.tors() {
        eventually(|| {
            if node.peer(tor.n).families.iter().all(|f| f.end_of_rib_received) {
                Ok(())
            } else {
                Err(node.peer(tor.n))
            }
        });
    }
    // Over both: until then FRR may still change its mind between us and the way round by the spine.
    OURS.iter().for_each(|text| fabric.spine_hears(text));
    let before = withdrawals(&fabric.spine);

    node.stop(Shutdown::Silent);
    drop(node);
    fabric.hold_ours(true);
    // The first successor dies before its time: it has told its own routes and still waits for a peer that is not there.
    let updates = || fabric.bird.bird().count("s0", "Import updates").unwrap();
    let told_before = updates();
    let node = fabric.node(true, &OURS);
    node.set_peer(peer(5, Over::V4, 65050));
    eventually(|| if updates() == told_before + 2 { Ok(()) } else { Err(updates()) });
    for text in OURS {
        eventually(|| match fabric.frr.route(text) {
            Some(seen) if !seen.stale => Ok(()),
            other => Err(other),
        });
    }
    assert_eq!(node.told(|t| t.restart_complete.len()), 0);
    drop(node);
    fabric.hold_ours(true);

    let node = fabric.node(true, &OURS);
    fabric.hold_ours(false);
    eventually(|| {
        let complete = node.told(|t| t.restart_complete.clone());
        if complete == BTreeSet::from(Family::ALL) {
            Ok(())
        } else {
            Err(format!("{complete:?} {:?}", node.peer(2)))
        }
    });
    for text in ["10.100.0.0/16", "10.110.0.0/16"] {
        assert!(node.told(|t| t.fib.contains_key(&prefix(text))), "{text} is learned before the sweep");
    }
    let told = fabric.spine.tells(manx());
    assert_eq!(withdrawals(&fabric.spine), before, "the spine has heard of it: {told}");
    drop(node);

    // What does not come back is gone with End-of-RIB.
    let node = fabric.node(true, &OURS[..1]);
    for tor in fabric.tors() {
        tor.loses(OURS[1]);
        assert!(tor.route(OURS[0]).is_some());
    }
    drop(node);
}

/// Trap 3: with a Cease nobody helps.
#[test]
fn after_a_cease_the_routes_are_gone() {
    let fabric = Fabric::start();
    let node = fabric.node(false, &OURS);
    fabric.hold_ours(false);
    node.stop(Shutdown::Cease("drained".into()));
    for tor in fabric.tors() {
        OURS.iter().for_each(|text| tor.loses(text));
    }
}

/// RFC 8538: a NOTIFICATION that is no Hard Reset ends the session and nothing else, at both ends and behind them.
#[test]
fn a_session_is_renewed_under_the_n_bit_and_nobody_behind_it_hears_of_it() {
    const THEIRS: &str = "10.210.0.0/24";
    let rack = Rack::new(3);
    let sessions = vec![to(1, AS), to(3, 65020)];
    let frr = Config { sessions, networks: vec![network(THEIRS)], ..config(65010, session(AS)) };
    let far = Far::start(&rack, 2, Kind::Frr, &frr);
    let witness = Far::start(&rack, 3, Kind::Bird, &config(65020, to(2, 65010)));
    // An FRR that still reads its configuration may take a connection and say nothing on it.
    witness.comes_up(address(2, Over::V4));
    let node = Manx::start(&rack, graceful(AS, false));
    node.set_peer(peer(2, Over::V4, 65010));
    OURS.iter().for_each(|text| node.originate(LocalRoute::new(prefix(text))));
    node.learns(THEIRS);
    OURS.iter().for_each(|text| drop(witness.learns(text)));
    eventually(|| {
        if node.peer(2).families.iter().all(|f| f.end_of_rib_received) { Ok(()) } else { Err(node.peer(2)) }
    });
    let (flaps, before) = (node.peer(2).flaps, withdrawals(&witness));
    // Another hold time needs another session.
    node.set_peer(PeerConfig { hold_time: hold(30), ..peer(2, Over::V4, 65010) });
    eventually(|| match node.peer(2) {
        peer if peer.state == "Established" && peer.timers.hold_time == Some(30) => Ok(()),
        peer => Err(format!("{peer:?}; {:?}", node.facts())),
    });
    assert!(node.peer(2).flaps > flaps);
    for text in OURS {
        eventually(|| match far.route(text) {
            Some(seen) if !seen.stale => Ok(()),
            other => Err(format!("{text}: {other:?}; {}", far.tells(manx()))),
        });
    }
    assert_eq!(withdrawals(&witness), before, "{}", witness.tells(manx()));
    assert!(node.told(|t| t.removed.is_empty()), "{:?}", node.facts());
}

/// GoBGP and OpenBGPD help as well.
#[rstest]
#[case::gobgp(Kind::Gobgp)]
#[case::openbgpd(Kind::Openbgpd)]
fn other_helpers_keep_our_routes(#[case] kind: Kind) {
    let rack = Rack::new(2);
    let far = Far::start(&rack, 2, kind, &config(65010, to(1, AS)));
    let start = |restarting| {
        let node = Manx::start(&rack, graceful(AS, restarting));
        node.set_peer(peer(2, Over::V4, 65010));
        OURS.iter().for_each(|text| node.originate(LocalRoute::new(prefix(text))));
        node.comes_up(2);
        node
    };
    let node = start(false);
    OURS.iter().for_each(|text| drop(far.learns(text)));
    far.comes_up(manx());
    drop(node);
    eventually(|| if far.is_up(manx()) { Err("still up") } else { Ok(()) });
    OURS.iter().for_each(|text| assert!(far.route(text).is_some(), "{text} is kept"));
    let _node = start(true);
    far.comes_up(manx());
    for text in OURS {
        eventually(|| match far.route(text) {
            Some(seen) if !seen.stale => Ok(()),
            other => Err(format!("{text}: {other:?}")),
        });
    }
}

/// The peer's process is killed and comes back in recovery: its routes stay in our FIB and with whom we passed them on to.
#[rstest]
#[case::bird(Kind::Bird)]
#[case::frr(Kind::Frr)]
fn we_help_a_peer_that_restarts(#[case] kind: Kind) {
    const THEIRS: [&str; 2] = ["10.210.0.0/24", "fd00:210::/64"];
    let rack = Rack::new(3);
    let extra = match kind {
        Kind::Bird => {
            "graceful restart wait 20;\n\
             protocol kernel { graceful restart; ipv4 { import none; export where source = RTS_BGP; }; }\n\
             protocol kernel { graceful restart; ipv6 { import none; export where source = RTS_BGP; }; }"
        }
        _ => "",
    };
    let networks = THEIRS.map(network).to_vec();
    let far =
        Far::start(&rack, 2, kind, &Config { networks, extra: extra.into(), ..config(65010, to(1, AS)) });
    let witness = Far::start(&rack, 3, Kind::Bird, &config(65020, session(AS)));
    let node = Manx::start(&rack, graceful(AS, false));
    node.set_peer(peer(2, Over::V4, 65010));
    let all = vec![std::sync::Arc::new(manx_bgp::filter::Filter::accept_all("transit"))];
    node.set_peer(PeerConfig { export: all, ..peer(3, Over::V4, 65020) });
    node.originate(LocalRoute::new(prefix(OURS[0])));
    THEIRS.iter().for_each(|text| drop(witness.learns(text)));
    far.learns(OURS[0]);
    eventually(|| {
        if node.peer(2).families.iter().all(|f| f.end_of_rib_received) { Ok(()) } else { Err(node.peer(2)) }
    });

    far.bgp.end(Signal::SIGKILL).unwrap();
    for text in THEIRS {
        eventually(|| if node.learns(text).stale { Ok(()) } else { Err(text) });
    }
    far.start_again();
    node.comes_up(2);
    for text in THEIRS {
        eventually(|| if node.learns(text).stale { Err(text) } else { Ok(()) });
    }
    far.learns(OURS[0]);
    assert_eq!(withdrawals(&witness), 0);
    assert!(node.told(|t| t.removed.is_empty()), "nothing was taken out of the FIB");
}
