//! Long-lived graceful restart (RFC 9494): routes of who stays away beyond the restart time are kept, and marked.

use std::time::Duration;

use manx_bgp::speaker::{GracefulRestartConfig, LocalRoute, SpeakerConfig};
use nix::sys::signal::Signal;
use rstest::rstest;

use crate::eventually;
use crate::far::{Config, Far, Kind, Session, config, network, session};
use crate::node::{AS, Manx, peer, prefix, speaker};
use crate::rack::{Over, Rack, address};

const OURS: [&str; 2] = ["10.200.0.0/24", "fd00:200::/64"];
const THEIRS: [&str; 2] = ["10.210.0.0/24", "fd00:210::/64"];

/// LLGR_STALE as BIRD, and as FRR and Manx spell it.
fn is_marked<'a>(communities: impl IntoIterator<Item = &'a String>) -> bool {
    communities.into_iter().any(|c| c == "65535:6" || c == "llgr-stale")
}

/// Three seconds of restart time, then a minute as the last choice.
fn long_lived(restarting: bool) -> SpeakerConfig {
    let graceful_restart = Some(GracefulRestartConfig {
        restart_time: Duration::from_secs(3),
        long_lived_time: Some(Duration::from_secs(60)),
        restarting,
    });
    SpeakerConfig { graceful_restart, ..speaker(AS) }
}

/// The same of the others: lines of the session, and others.
const BIRD: (&str, &str) = (
    "graceful restart time 3; long lived graceful restart on; long lived stale time 60;",
    "graceful restart wait 20;\n\
     protocol kernel { graceful restart; ipv4 { import none; export where source = RTS_BGP; }; }\n\
     protocol kernel { graceful restart; ipv6 { import none; export where source = RTS_BGP; }; }",
);
const FRR: (&str, &str) = (
    "",
    "router bgp 65010\n bgp graceful-restart restart-time 3\n bgp long-lived-graceful-restart stale-time 60",
);

#[rstest]
#[case::bird(Kind::Bird, BIRD)]
#[case::frr(Kind::Frr, FRR)]
fn routes_are_kept_and_marked_beyond_the_restart_time(
    #[case] kind: Kind,
    #[case] (lines, extra): (&str, &str),
) {
    let rack = Rack::new(2);
    let session = Session { graceful: true, lines: lines.into(), ..session(AS) };
    let networks = THEIRS.map(network).to_vec();
    let far = Far::start(&rack, 2, kind, &Config { networks, extra: extra.into(), ..config(65010, session) });
    let start = |restarting| {
        let node = Manx::start(&rack, long_lived(restarting));
        node.set_peer(peer(2, Over::V4, 65010));
        OURS.iter().for_each(|text| node.originate(LocalRoute::new(prefix(text))));
        node.comes_up(2);
        node
    };
    let ours = |marked: bool| {
        for text in OURS {
            eventually(|| match far.route(text) {
                Some(seen) if is_marked(&seen.communities) == marked && (marked || !seen.stale) => Ok(()),
                other => Err(format!("{other:?}; {}", far.tells(address(1, Over::V4)))),
            });
        }
    };
    let theirs = |node: &Manx, marked: bool| {
        for text in THEIRS {
            eventually(|| match node.learns(text) {
                route if is_marked(&route.communities) == marked && route.stale == marked => Ok(()),
                other => Err(format!("{other:?}; {:?}", node.facts())),
            });
        }
    };
    let node = start(false);
    ours(false);
    theirs(&node, false);
    eventually(|| {
        if node.peer(2).families.iter().all(|f| f.end_of_rib_received) { Ok(()) } else { Err(node.peer(2)) }
    });

    far.bgp.end(Signal::SIGKILL).unwrap();
    theirs(&node, true);
    far.start_again();
    node.comes_up(2);
    theirs(&node, false);
    assert!(node.told(|t| t.removed.is_empty()), "nothing was taken out of the FIB");

    ours(false);
    drop(node);
    ours(true);
    let node = start(true);
    ours(false);
    theirs(&node, false);
}
