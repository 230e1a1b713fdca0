//! What the link under a peer tells: unnumbered peers, IPv4 routes over IPv6 next hops, and BFD.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use manx_bgp::bfd::{BfdConfig, BfdEnds, BfdStatus, State};
use manx_bgp::session::Cause;
use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::attribute::NextHop;
use manx_bgp::wire::message::*;

use crate::bench::*;

const X: &str = "10.9.0.0/16";
const Y: &str = "fd09::/48";

fn scoped(address: &str, ifindex: u32) -> SocketAddr {
    let IpAddr::V6(ip) = ip(address) else { panic!("{address} is not IPv6") };
    SocketAddrV6::new(ip, 40000, 0, ifindex).into()
}

fn unnumbered(name: &str, interface: &str) -> PeerConfig {
    PeerConfig { passive: true, ..PeerConfig::on_interface(name, interface, RemoteAs::External) }
}

fn found(address: &str, ifindex: u32) -> Neighbor {
    let IpAddr::V6(ip) = ip(address) else { panic!("{address} is not IPv6") };
    Neighbor::Found(ip, ifindex)
}

/// A link with nothing but link-local addresses on it, as the kernel shows it.
fn bare_link(remote: &str, ifindex: u32) -> Endpoints {
    Endpoints {
        local: scoped("fe80::1", ifindex),
        remote: scoped(remote, ifindex),
        ifindex,
        ipv4: None,
        ipv6: None,
        link_local: Some("fe80::1".parse().unwrap()),
        connected: true,
        subnets: Default::default(),
    }
}

impl Bench {
    fn neighbor(&mut self, interface: &str, neighbor: &Neighbor) {
        self.speaker.set_neighbor(self.now, interface, neighbor);
        self.pump();
    }

    fn accept_on(&mut self, remote: &str, ifindex: u32) -> Option<ConnId> {
        let conn = self.speaker.accepted(self.now, bare_link(remote, ifindex));
        self.pump();
        conn
    }

    /// A session over a bare link, with IPv4 routes over IPv6 next hops.
    fn establish_on(&mut self, remote: &str, ifindex: u32, asn: u32) -> ConnId {
        let conn = self.accept_on(remote, ifindex).expect("the neighbour is known");
        let mut open = open(Asn(asn), &format!("10.0.0.{ifindex}"));
        open.capabilities.push(Capability::ExtendedNextHop);
        self.send(conn, &Message::Open(open));
        self.send(conn, &Message::Keepalive);
        conn
    }

    fn next_hops(&self, prefix: &str) -> Vec<FibNextHop> {
        self.speaker.explain(p(prefix)).next_hops
    }

    fn bfd(
        &mut self,
        remote: PeerAddr,
        state: State,
        flaps: u64,
        administrative: bool,
        reason: Option<&str>,
    ) {
        let status = BfdStatus {
            state,
            remote_state: state,
            since: self.now,
            detection_time: Some(Duration::from_millis(300)),
            tx_interval: Duration::from_millis(100),
            multiplier: 3,
            flaps,
            administrative,
            reason: reason.map(str::to_owned),
        };
        self.speaker.bfd_changed(self.now, remote, status);
        self.pump();
    }
}

/// A next hop of 32 octets as FRR sends it on a link without global addresses.
fn both(address: &str) -> NextHop {
    let ip: std::net::Ipv6Addr = address.parse().unwrap();
    NextHop::V6 { global: ip, link_local: Some(ip) }
}

#[test]
fn a_peer_by_interface_waits_for_a_neighbour_and_follows_it() {
    let mut b = Bench::new();
    b.peer(unnumbered("left", "eth1"));
    b.peer(unnumbered("also-left", "eth1"));
    assert_eq!(b.discovering.iter().collect::<Vec<_>>(), ["eth1"]);
    let view = b.view("left");
    assert_eq!((view.state, view.address, view.interface.as_deref()), ("Idle", None, Some("eth1")));
    assert_eq!(view.cause, Some(Cause::NoNeighbor));
    assert!(b.accept_on("fe80::2", 3).is_none(), "nobody is known yet");

    b.neighbor("eth1", &found("fe80::2", 3));
    assert_eq!(b.listening.keys().copied().collect::<Vec<_>>(), [PeerAddr::new(ip("fe80::2"), 3)]);
    assert!(b.view("left").reason.unwrap().contains("belongs to peer also-left"), "one peer for a neighbour");
    b.speaker.remove_peer(b.now, "also-left");
    b.pump();
    assert_eq!(b.discovering.len(), 1, "the other one still wants it");
    assert!(b.accept_on("fe80::2", 4).is_none(), "the same address on another link is somebody else");
    b.establish_on("fe80::2", 3, 65001);
    assert_eq!(b.state("left"), "Established");
    assert_eq!(b.view("left").address.unwrap().to_string(), "fe80::2%3");

    // A second router on the link is not heeded while the session works.
    b.neighbor("eth1", &found("fe80::9", 3));
    assert_eq!(b.state("left"), "Established");

    b.neighbor("eth1", &Neighbor::Gone("interface eth1 is down".into()));
    let view = b.view("left");
    assert_eq!((view.state, view.reason.as_deref()), ("Idle", Some("interface eth1 is down")));
    assert!(b.listening.is_empty());
    // The link comes back under another index, with another router on it.
    b.neighbor("eth1", &found("fe80::9", 7));
    b.establish_on("fe80::9", 7, 65009);
    assert_eq!(b.state("left"), "Established");
    b.speaker.remove_peer(b.now, "left");
    b.pump();
    assert!(b.discovering.is_empty() && b.listening.is_empty());
}

#[test]
fn a_neighbour_that_changed_its_address_is_dialled_at_the_new_one() {
    let mut b = Bench::new();
    b.peer(PeerConfig { passive: false, ..unnumbered("tor", "eth1") });
    b.neighbor("eth1", &found("fe80::2", 3));
    let (conn, request) = b.dials.pop_front().unwrap();
    assert_eq!(request.remote, SocketAddrV6::new("fe80::2".parse().unwrap(), 179, 0, 3).into());
    b.neighbor("eth1", &found("fe80::3", 3));
    assert!(b.closed.contains(&conn), "the dial to the old one is given up");
    let (_, request) = b.dials.pop_front().unwrap();
    assert_eq!(request.remote.ip(), ip("fe80::3"));
    b.neighbor("eth1", &found("fe80::3", 3));
    assert!(b.dials.is_empty(), "what is known already is no news");
}

#[test]
fn only_the_configured_kind_of_as_is_let_in() {
    let mut b = Bench::new();
    b.peer(PeerConfig { remote_as: RemoteAs::Internal, ..unnumbered("tor", "eth1") });
    b.neighbor("eth1", &found("fe80::2", 3));
    let conn = b.establish_on("fe80::2", 3, 65001);
    assert_eq!(b.notification(conn), Some((2, 2)));
    assert_eq!(b.view("tor").cause, Some(Cause::OpenRefused));
}

/// Trap 16.
#[test]
fn trap_16_a_next_hop_of_32_octets_keeps_its_link_local_address_and_scope() {
    let mut b = Bench::new();
    b.peer(unnumbered("a", "eth1"));
    b.peer(unnumbered("b", "eth2"));
    b.peer(Bench::tor("numbered", "fd00::2"));
    // Routers often have the same link-local address on all their ports.
    b.neighbor("eth1", &found("fe80::2", 3));
    b.neighbor("eth2", &found("fe80::2", 4));
    let (on_a, on_b) = (b.establish_on("fe80::2", 3, 65001), b.establish_on("fe80::2", 4, 65002));
    for (conn, asn) in [(on_a, 65001), (on_b, 65002)] {
        b.announce_with(conn, X, &attributes(&[asn]), both("fe80::2"));
        let with_global =
            NextHop::V6 { global: "fd77::2".parse().unwrap(), link_local: Some("fe80::2".parse().unwrap()) };
        b.announce_with(conn, Y, &attributes(&[asn]), with_global);
    }
    let ways = [3, 4].map(|ifindex| FibNextHop { gateway: ip("fe80::2"), ifindex });
    assert_eq!(b.next_hops(X), ways, "IPv4 over both links");
    assert_eq!(b.next_hops(Y), ways, "the global address need not be reachable on an unnumbered link");
    assert_eq!(b.tracked.keys().copied().collect::<Vec<_>>(), ways);

    // One link goes: its way alone.
    b.speaker.set_next_hop(b.now, ways[0], NextHopState::Unreachable);
    b.pump();
    assert_eq!(b.next_hops(X), ways[1..]);

    // On a numbered link the global address says where to go, as other routes do.
    let conn = b.establish("fd00::2", open(Asn(65003), "10.0.0.2"));
    let shared =
        NextHop::V6 { global: "fd00::2".parse().unwrap(), link_local: Some("fe80::77".parse().unwrap()) };
    b.announce_with(conn, "fd10::/48", &attributes(&[65003]), shared);
    assert_eq!(b.next_hops("fd10::/48"), [FibNextHop::from(ip("fd00::2"))]);
}

#[test]
fn ipv4_routes_go_out_with_the_ipv6_next_hop_of_an_unnumbered_link() {
    let mut b = Bench::new();
    b.originate("10.200.0.0/24");
    b.originate("fd00:200::/64");
    b.peer(unnumbered("tor", "eth1"));
    b.neighbor("eth1", &found("fe80::2", 3));
    let conn = b.establish_on("fe80::2", 3, 65001);
    for family in Family::ALL {
        let shown = b.view("tor").families.into_iter().find(|f| f.family == family).unwrap();
        assert_eq!((shown.negotiated, shown.reason), (true, None));
    }
    let reached: Vec<Reach> = b.updates(conn).into_iter().flat_map(|u| u.reach).collect();
    assert_eq!(reached.iter().map(|r| r.family).collect::<Vec<_>>(), Family::ALL);
    assert!(reached.iter().all(|r| r.next_hop == both("fe80::1")), "{reached:?}");
    // Withdrawn in MP_UNREACH_NLRI, where IPv4 routes of such a session live.
    b.speaker.withdraw(b.now, p("10.200.0.0/24"));
    let gone: Vec<Nlri> = b.updates(conn).into_iter().flat_map(|u| u.withdrawn).collect();
    assert_eq!(gone.iter().map(|n| n.prefix).collect::<Vec<_>>(), [p("10.200.0.0/24")]);
}

#[test]
fn an_ipv6_next_hop_for_ipv4_is_taken_only_where_it_was_negotiated() {
    let mut b = Bench::new();
    let config = PeerConfig { extended_next_hop: true, ..Bench::tor("tor", "fd00::2") };
    b.peer(config);
    b.originate("10.200.0.0/24");
    let conn = b.establish("fd00::2", open(TOR_AS, "10.0.0.2"));
    let first =
        |b: &mut Bench, conn| b.updates(conn).into_iter().find_map(|u| u.reach.first().cloned()).unwrap();
    assert_eq!(first(&mut b, conn).next_hop, NextHop::V4([10, 0, 0, 1].into()), "the peer did not offer it");
    b.announce_with(conn, X, &attributes(&[65001]), both("fe80::2"));
    assert_eq!(b.notification(conn), Some((3, 9)), "and must not use it (RFC 7606 7.11)");

    b.advance(secs(120));
    let conn = b.accept("fd00::2").unwrap();
    let mut open = open(TOR_AS, "10.0.0.2");
    open.capabilities.push(Capability::ExtendedNextHop);
    b.send(conn, &Message::Open(open));
    b.send(conn, &Message::Keepalive);
    let global =
        NextHop::V6 { global: "fd00::1".parse().unwrap(), link_local: Some("fe80::1".parse().unwrap()) };
    assert_eq!(first(&mut b, conn).next_hop, global);
    b.announce_with(
        conn,
        X,
        &attributes(&[65001]),
        NextHop::V6 { global: "fd00::2".parse().unwrap(), link_local: None },
    );
    assert_eq!(b.next_hops(X), [FibNextHop::from(ip("fd00::2"))]);
    // Over an IPv4 session IPv4 next hops go on.
    b.peer(PeerConfig { extended_next_hop: true, ..Bench::tor("four", "10.0.0.3") });
    let conn = b.accept("10.0.0.3").unwrap();
    let mut open = crate::bench::open(Asn(65003), "10.0.0.3");
    open.capabilities.push(Capability::ExtendedNextHop);
    b.send(conn, &Message::Open(open));
    b.send(conn, &Message::Keepalive);
    assert_eq!(first(&mut b, conn).next_hop, NextHop::V4([10, 0, 0, 1].into()));
}

#[test]
fn a_route_whose_ipv6_next_hop_stays_is_withheld_from_a_peer_that_cannot_take_it() {
    let mut b = Bench::new();
    b.peer(unnumbered("tor", "eth1"));
    b.neighbor("eth1", &found("fe80::2", 3));
    let conn = b.establish_on("fe80::2", 3, 65001);
    let global = NextHop::V6 { global: "fd00::7".parse().unwrap(), link_local: None };
    b.announce_with(conn, X, &attributes(&[65001]), global);
    let all = vec![std::sync::Arc::new(manx_bgp::filter::Filter::accept_all("all"))];
    b.peer(PeerConfig { next_hop: NextHopMode::Keep, export: all, ..Bench::tor("plain", "10.0.0.3") });
    b.establish("10.0.0.3", open(Asn(65003), "10.0.0.3"));
    let export = b.speaker.explain(p(X)).exports.into_iter().find(|e| e.peer == "plain").unwrap();
    assert!(!export.advertised && export.reason.contains("RFC 8950"), "{export:?}");
}

#[test]
fn our_restart_waits_for_an_unnumbered_peer_that_was_not_heard_yet() {
    let mut config = SpeakerConfig::new(OUR_AS, id("10.0.0.1"));
    config.graceful_restart =
        Some(GracefulRestartConfig { restart_time: secs(120), restarting: true, long_lived_time: None });
    let mut b = Bench::with(config);
    b.peer(unnumbered("tor", "eth1"));
    b.advance(secs(5));
    assert!(b.restart_complete.is_empty(), "the routes that it gave our predecessor stay");
    b.neighbor("eth1", &found("fe80::2", 3));
    let conn = b.establish_on("fe80::2", 3, 65001);
    Family::ALL.into_iter().for_each(|f| b.end_of_rib(conn, f));
    b.send(conn, &Message::Keepalive);
    assert_eq!(b.restart_complete.len(), 2);
}

#[test]
fn the_session_of_an_unnumbered_peer_falls_with_its_link() {
    let mut b = Bench::new();
    b.peer(PeerConfig { remote_as: RemoteAs::Internal, ..unnumbered("tor", "eth1") });
    b.neighbor("eth1", &found("fe80::2", 3));
    b.establish_on("fe80::2", 3, OUR_AS.0);
    b.speaker.link_down(b.now, 3);
    b.pump();
    assert_ne!(b.state("tor"), "Established");
    assert_eq!(b.view("tor").cause, Some(Cause::InterfaceDown));
}

fn watched() -> PeerConfig {
    PeerConfig { bfd: Some(BfdConfig::default()), ..Bench::tor("tor", "10.0.0.2") }
}

#[test]
fn bfd_begins_with_the_session_and_its_end_ends_the_session_with_its_reason() {
    let mut b = Bench::new();
    b.peer(watched());
    assert!(b.bfd.is_empty(), "until there is a session nobody knows between which addresses");
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let remote = PeerAddr::from(ip("10.0.0.2"));
    let ends = BfdEnds { local: ip("10.0.0.1"), remote };
    assert_eq!(b.bfd[&remote], (ends, BfdConfig::default()));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    // The session does not wait for BFD.
    assert_eq!((b.state("tor"), b.view("tor").bfd.unwrap().state), ("Established", "Down"));
    b.bfd(remote, State::Up, 0, false, None);
    assert_eq!(b.view("tor").bfd.unwrap().state, "Up");

    b.bfd(remote, State::Down, 1, false, Some("detection time expired: no packet for 300 ms"));
    assert_eq!(b.notification(conn), Some((6, 10)), "RFC 9384");
    let view = b.view("tor");
    assert_eq!(view.cause, Some(Cause::BfdDown));
    assert_eq!(view.reason.as_deref(), Some("BFD: detection time expired: no packet for 300 ms"));
    assert!(b.fib.is_empty(), "its routes go at once: this is what BFD is for");
    assert!(b.bfd.contains_key(&remote), "BFD goes on and shows whether the path is back");
    // While BFD is down the session may come back.
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.bfd(remote, State::Up, 1, false, None);
    assert_eq!(b.state("tor"), "Established");
}

#[test]
fn a_flap_that_is_told_after_it_is_over_ends_the_session_all_the_same() {
    let mut b = Bench::new();
    b.peer(watched());
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.bfd(ip("10.0.0.2").into(), State::Up, 1, false, None);
    assert_eq!(b.view("tor").cause, Some(Cause::BfdDown));
}

/// Trap 6: RFC 5882 4.2.
#[test]
fn trap_6_a_peer_that_shuts_bfd_down_by_will_keeps_its_session() {
    let mut b = Bench::new();
    b.peer(watched());
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.bfd(ip("10.0.0.2").into(), State::Up, 0, false, None);
    b.bfd(ip("10.0.0.2").into(), State::Down, 1, true, Some("peer is administratively down"));
    assert_eq!(b.state("tor"), "Established");
    assert_eq!(b.view("tor").bfd.unwrap().reason.as_deref(), Some("peer is administratively down"));
}

#[test]
fn bfd_follows_the_configuration() {
    let mut b = Bench::new();
    b.peer(watched());
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let remote = PeerAddr::from(ip("10.0.0.2"));
    let slow = BfdConfig { min_tx: secs(1), ..BfdConfig::default() };
    b.peer(PeerConfig { bfd: Some(slow), ..watched() });
    assert_eq!(b.bfd[&remote].1, slow);
    assert_eq!(b.state("tor"), "Established", "the session is not disturbed");
    b.peer(PeerConfig { bfd: None, ..watched() });
    assert!(b.bfd.is_empty() && b.view("tor").bfd.is_none());
    b.peer(watched());
    assert_eq!(b.bfd.len(), 1);
    // Who may not have a session has no BFD either.
    b.speaker.set_enabled(b.now, "tor", false, "");
    b.pump();
    assert!(b.bfd.is_empty());
    b.speaker.set_enabled(b.now, "tor", true, "");
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    assert_eq!(b.bfd.len(), 1);
    b.speaker.remove_peer(b.now, "tor");
    b.pump();
    assert!(b.bfd.is_empty());
}
