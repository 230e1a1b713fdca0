//! BFD (RFC 5880, 5881) with BIRD and with FRR's bfdd, over IPv4 and IPv6.

use std::time::{Duration, Instant};

use manx_bgp::bfd::BfdConfig;
use manx_bgp::net::Shutdown;
use manx_bgp::speaker::{LocalRoute, PeerConfig};
use manx_tests::routers::Router as _;
use manx_tests::routers::bird::Bird;
use manx_tests::routers::frr::Frr;
use rstest::rstest;

use crate::eventually;
use crate::far::Kind;
use crate::node::{AS, Manx, graceful, peer, prefix};
use crate::rack::{Over, Rack, address};

const OURS: &str = "10.200.0.0/24";

/// A router with a BFD session to Manx.
enum Far {
    Bird(Bird),
    Frr(Frr),
}

impl Far {
    fn start(rack: &Rack, kind: Kind, over: Over) -> Far {
        let (netns, dir) = (rack.netns(2), rack.dir(2));
        match kind {
            Kind::Bird => {
                let bird = Bird::new(netns, dir);
                bird.start(&bird_config(over)).unwrap();
                Far::Bird(bird)
            }
            Kind::Frr => {
                let frr = Frr::new(netns, dir);
                frr.start(&frr_config(over)).unwrap();
                Far::Frr(frr)
            }
            Kind::Gobgp | Kind::Openbgpd => panic!("{kind:?} has no BFD"),
        }
    }

    /// What it says of its BFD sessions.
    fn bfd(&self) -> String {
        match self {
            Far::Bird(bird) => bird.ask("show bfd sessions").unwrap(),
            Far::Frr(frr) => frr.ask("show bfd peers").unwrap(),
        }
    }

    fn bfd_is_up(&self) -> bool {
        match self {
            Far::Bird(_) => self.bfd().contains(" Up "),
            Far::Frr(_) => self.bfd().contains("Status: up"),
        }
    }

    fn established(&self) -> bool {
        let sessions = match self {
            Far::Bird(bird) => bird.sessions().unwrap(),
            Far::Frr(frr) => frr.sessions().unwrap(),
        };
        sessions.iter().any(|s| s.is_established())
    }

    /// It has our route, stale or not.
    fn holds_ours(&self) -> bool {
        let routes = match self {
            Far::Bird(bird) => bird.routes().unwrap(),
            Far::Frr(frr) => frr.routes().unwrap(),
        };
        routes.contains_key(&OURS.parse().unwrap())
    }

    /// All that it says of its BGP session.
    fn bgp(&self) -> String {
        match self {
            Far::Bird(bird) => bird.ask("show protocols all s0").unwrap(),
            Far::Frr(frr) => frr.ask("show bgp neighbors").unwrap(),
        }
    }
}

fn bird_config(over: Over) -> String {
    format!(
        "router id 10.9.0.2;\nprotocol device {{}}\n\
         protocol bfd {{ interface \"*\" {{ min rx interval 100 ms; min tx interval 100 ms; multiplier 3; }}; }}\n\
         protocol static {{ ipv4; route 10.210.0.0/24 blackhole; }}\n\
         protocol bgp s0 {{ local {} as 65010; neighbor {} as {AS}; bfd graceful; graceful restart on;\n\
         connect delay time 1; connect retry time 1; error wait time 1, 2;\n\
         ipv4 {{ import all; export where source = RTS_STATIC; extended next hop on; }}; }}\n",
        address(2, over),
        address(1, over),
    )
}

/// Every daemon reads it, and one that does not know `bfd` must not find an `exit` behind it.
fn frr_config(over: Over) -> String {
    let manx = address(1, over);
    format!(
        "hostname n2\n\
         bfd\n profile fast\n  receive-interval 100\n  transmit-interval 100\n\
         router bgp 65010\n bgp router-id 10.9.0.2\n no bgp ebgp-requires-policy\n\
         \x20no bgp default ipv4-unicast\n no bgp network import-check\n\
         \x20bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n\
         \x20neighbor {manx} remote-as {AS}\n neighbor {manx} bfd profile fast\n\
         \x20neighbor {manx} timers connect 1\n neighbor {manx} capability extended-nexthop\n\
         \x20address-family ipv4 unicast\n  network 10.210.0.0/24\n  neighbor {manx} activate\n exit-address-family\n"
    )
}

fn watched(over: Over) -> PeerConfig {
    PeerConfig {
        bfd: Some(BfdConfig::default()),
        extended_next_hop: true,
        families: vec![manx_bgp::types::Family::Ipv4Unicast],
        ..peer(2, over, 65010)
    }
}

/// Both ends up, with routes both ways.
fn joined(rack: &Rack, kind: Kind, over: Over) -> (Far, Manx) {
    let far = Far::start(rack, kind, over);
    let node = begin(rack, over, false);
    both_up(&far, &node);
    node.learns("10.210.0.0/24");
    eventually(|| if far.holds_ours() { Ok(()) } else { Err(far.bgp()) });
    (far, node)
}

fn begin(rack: &Rack, over: Over, restarting: bool) -> Manx {
    let node = Manx::start(rack, graceful(AS, restarting));
    node.originate(LocalRoute::new(prefix(OURS)));
    node.set_peer(watched(over));
    node
}

fn both_up(far: &Far, node: &Manx) {
    node.comes_up(2);
    eventually(|| match node.peer(2).bfd {
        Some(bfd) if bfd.state == "Up" => Ok(()),
        bfd => Err(format!("{bfd:?}, there: {}", far.bfd())),
    });
    eventually(|| if far.bfd_is_up() { Ok(()) } else { Err(far.bfd()) });
}

#[rstest]
fn a_dead_path_is_seen_at_both_ends_within_some_detection_times(
    #[values(Kind::Bird, Kind::Frr)] kind: Kind,
    #[values(Over::V4, Over::V6)] over: Over,
) {
    let rack = Rack::new(2);
    let (far, node) = joined(&rack, kind, over);
    let bfd = node.peer(2).bfd.unwrap();
    assert_eq!(bfd.detection_time, Some(Duration::from_millis(300)), "{bfd:?}");
    let filter = if over == Over::V4 { "iptables" } else { "ip6tables" };
    // All of it, so that no other sign reaches either end first.
    for chain in ["INPUT -i", "OUTPUT -o"] {
        rack.netns(1).run(&format!("{filter} -A {chain} eth0 -j DROP")).unwrap();
    }
    let cut = Instant::now();
    node.goes_down(2, "BFD: detection time expired");
    let took = cut.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?} for a detection time of 300 ms");
    assert!(node.told(|t| t.removed.contains(&prefix("10.210.0.0/24"))), "its routes are gone at once");
    let says = match kind {
        Kind::Bird => "BFD session down",
        _ => "BFD",
    };
    eventually(|| {
        let (bgp, bfd) = (far.bgp(), far.bfd());
        if !far.bfd_is_up() && bgp.contains(says) { Ok(()) } else { Err(format!("{bgp}{bfd}")) }
    });
    rack.netns(1).run(&format!("{filter} -F")).unwrap();
    both_up(&far, &node);
    assert_eq!(node.peer(2).bfd.unwrap().flaps, 1);
}

/// Trap 7: BFD has a thread of its own, so that a speaker which is busy for many detection times takes nothing down.
#[test]
fn trap_7_bfd_is_not_starved_by_a_speaker_that_is_busy() {
    let rack = Rack::new(2);
    let (far, node) = joined(&rack, Kind::Bird, Over::V4);
    // Long intervals: this is about the threads of the speaker, not about how busy the machine is.
    let interval = Duration::from_secs(1);
    let bfd = BfdConfig { min_tx: interval, min_rx: interval, ..BfdConfig::default() };
    node.set_peer(PeerConfig { bfd: Some(bfd), ..watched(Over::V4) });
    eventually(|| match node.peer(2).bfd {
        Some(bfd) if bfd.detection_time == Some(3 * interval) => Ok(()),
        bfd => Err(bfd),
    });
    let flaps = (node.peer(2).flaps, node.peer(2).bfd.unwrap().flaps);
    node.with(move |_, _| std::thread::sleep(20 * interval));
    assert!(far.bfd_is_up() && far.established(), "{}{}", far.bfd(), far.bgp());
    let peer = node.peer(2);
    let bfd = peer.bfd.unwrap();
    assert_eq!((peer.state, bfd.state), ("Established", "Up"));
    assert_eq!((peer.flaps, bfd.flaps), flaps);
}

/// Trap 6: AdminDown goes out before the connections close, and helpers keep our routes until we are back.
#[rstest]
fn trap_6_an_orderly_restart_under_bfd_costs_no_route(#[values(Kind::Bird, Kind::Frr)] kind: Kind) {
    let rack = Rack::new(2);
    let (far, node) = joined(&rack, kind, Over::V4);
    node.stop(Shutdown::Silent);
    drop(node);
    eventually(|| if far.bfd_is_up() || far.established() { Err(far.bfd()) } else { Ok(()) });
    assert!(far.holds_ours(), "{}", far.bgp());
    let node = begin(&rack, Over::V4, true);
    both_up(&far, &node);
    assert!(far.holds_ours(), "{}", far.bgp());
}
