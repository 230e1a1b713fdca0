//! Long-lived graceful restart (RFC 9494): after the restart time routes stay as the last choice.

use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::message::*;

use crate::bench::*;

const X: &str = "10.9.0.0/16";
const Y: &str = "10.8.0.0/16";
const LLGR_STALE: u32 = 0xFFFF_0006;
const NO_LLGR: u32 = 0xFFFF_0007;
const HOUR: u32 = 3600;

fn config() -> SpeakerConfig {
    SpeakerConfig {
        graceful_restart: Some(GracefulRestartConfig {
            restart_time: secs(120),
            long_lived_time: Some(secs(u64::from(2 * HOUR))),
            restarting: false,
        }),
        ..SpeakerConfig::new(OUR_AS, id("10.0.0.1"))
    }
}

/// Graceful restart of 60 s and long-lived graceful restart of an hour, with the F bits of either.
fn open_long(asn: Asn, router_id: &str, forwarding: bool, long_forwarding: bool) -> Open {
    let mut o = open_gr(asn, router_id, false, forwarding, 60);
    let families = Family::ALL.iter().map(|f| (*f, long_forwarding, HOUR)).collect();
    o.capabilities.push(Capability::LongLivedGracefulRestart(families));
    o
}

fn lose(b: &mut Bench, conn: ConnId) {
    b.speaker.closed(b.now, conn, "connection reset by peer");
    b.pump();
}

/// A ToR with X, and with Y that must not be kept for long.
fn session() -> (Bench, ConnId) {
    let mut b = Bench::with(config());
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open_long(TOR_AS, "10.0.0.2", false, false));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    let mut never = attributes(&[65001]);
    never.communities = [NO_LLGR].into_iter().collect();
    b.announce(conn, &[Y], &never, "10.0.0.2");
    (b, conn)
}

/// The same with the ToR gone for longer than its restart time.
fn long_lived() -> Bench {
    let (mut b, conn) = session();
    lose(&mut b, conn);
    b.advance(secs(61));
    b
}

#[test]
fn the_capability_says_for_how_long_peers_should_keep_our_routes() {
    let mut b = Bench::with(config());
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.accept("10.0.0.2").unwrap();
    let Message::Open(open) = b.messages(conn).remove(0) else { panic!() };
    let expected = Family::ALL.iter().map(|f| (*f, false, 2 * HOUR)).collect();
    assert!(open.capabilities.contains(&Capability::LongLivedGracefulRestart(expected)));
}

#[test]
fn rfc9494_4_2_after_the_restart_time_routes_stay_as_long_lived_and_those_with_no_llgr_go() {
    let (mut b, conn) = session();
    lose(&mut b, conn);
    b.advance(secs(59));
    assert_eq!(b.path(X, "10.0.0.2").unwrap().communities, Vec::<String>::new());
    assert_eq!(b.view("tor").graceful_restart.helping_for, Some(1.0));
    b.advance(secs(2));
    assert_eq!(b.path(X, "10.0.0.2").unwrap().communities, ["llgr-stale"]);
    assert_eq!(b.fib.keys().copied().collect::<Vec<_>>(), [p(X)], "it forwards, and Y does not");
    let gr = b.view("tor").graceful_restart;
    assert_eq!((gr.helping_for, gr.long_lived_for), (None, Some(3599.0)), "the smaller of both times");
    b.advance(secs(3600));
    assert!(b.fib.is_empty() && b.routes().is_empty());
    assert_eq!(b.view("tor").graceful_restart.long_lived_for, None);
}

#[test]
fn rfc9494_4_3_a_long_lived_stale_route_is_the_last_choice() {
    let mut b = long_lived();
    b.peer(Bench::tor("other", "10.0.0.3"));
    let other = b.establish("10.0.0.3", open(Asn(65002), "10.0.0.3"));
    b.announce(other, &[X], &attributes(&[65002, 65003, 65004]), "10.0.0.3");
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.3")], "however long its AS_PATH is");
    assert_eq!(b.path(X, "10.0.0.2").unwrap().lost_at, Some("llgr"));
    b.withdraw(other, &[X]);
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.2")]);
}

#[test]
fn rfc9494_4_6_only_peers_with_the_capability_are_told_and_they_see_the_community() {
    let (mut b, conn) = session();
    let all = std::sync::Arc::new(manx_bgp::filter::Filter::accept_all("all"));
    for (name, address) in [("with", "10.0.0.3"), ("without", "10.0.0.4")] {
        b.peer(PeerConfig { export: vec![all.clone()], ..Bench::tor(name, address) });
    }
    let with = b.establish("10.0.0.3", open_long(Asn(65003), "10.0.0.3", false, false));
    let without = b.establish("10.0.0.4", open(Asn(65004), "10.0.0.4"));
    b.messages(with);
    b.messages(without);
    lose(&mut b, conn);
    assert!(b.updates(with).is_empty(), "nobody hears of a restart");
    b.advance(secs(61));
    let told = b.updates(with).into_iter().find(|u| !u.reach.is_empty()).unwrap();
    assert_eq!(told.reach[0].nlri[0].prefix, p(X));
    assert_eq!(told.attributes.unwrap().communities.as_slice(), [LLGR_STALE]);
    let withdrawn: Vec<_> =
        b.updates(without).into_iter().flat_map(|u| u.withdrawn).map(|n| n.prefix).collect();
    assert_eq!(withdrawn.len(), 2, "X, which it may not see, and Y, which is gone: {withdrawn:?}");
}

#[test]
fn rfc9494_4_2_the_peers_return_with_f_makes_routes_fresh_as_it_says_them_and_end_of_rib_sweeps() {
    let mut b = long_lived();
    b.fib_log.clear();
    let conn = b.establish("10.0.0.2", open_long(TOR_AS, "10.0.0.2", true, true));
    assert!(b.path(X, "10.0.0.2").unwrap().stale);
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    let route = b.path(X, "10.0.0.2").unwrap();
    assert!(!route.stale && route.communities.is_empty());
    b.end_of_rib(conn, Family::Ipv4Unicast);
    assert_eq!(b.fib_log, [], "the FIB has noticed nothing");
    let mut b = long_lived();
    let conn = b.establish("10.0.0.2", open_long(TOR_AS, "10.0.0.2", true, true));
    b.end_of_rib(conn, Family::Ipv4Unicast);
    assert!(b.fib.is_empty());
}

#[test]
fn rfc9494_4_2_a_peer_that_comes_back_without_the_long_lived_f_bit_is_flushed() {
    let mut b = long_lived();
    b.establish("10.0.0.2", open_long(TOR_AS, "10.0.0.2", true, false));
    assert!(b.fib.is_empty());
}

#[test]
fn rfc9494_4_2_a_second_loss_does_not_start_the_stale_time_again() {
    let mut b = long_lived();
    b.advance(secs(1800));
    let conn = b.establish("10.0.0.2", open_long(TOR_AS, "10.0.0.2", true, true));
    // While the peer is there the bound on its restart counts, at most.
    assert_eq!(b.view("tor").graceful_restart.long_lived_for, Some(360.0));
    lose(&mut b, conn);
    assert_eq!(b.path(X, "10.0.0.2").unwrap().communities, ["llgr-stale"]);
    b.advance(secs(361));
    assert!(b.fib.is_empty());
}

#[test]
fn a_restart_time_of_0_goes_straight_to_long_lived() {
    let mut b = Bench::with(config());
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let mut theirs = open_long(TOR_AS, "10.0.0.2", false, false);
    for capability in &mut theirs.capabilities {
        if let Capability::GracefulRestart(gr) = capability {
            gr.restart_time = 0;
        }
    }
    let conn = b.establish("10.0.0.2", theirs);
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    lose(&mut b, conn);
    assert_eq!(b.path(X, "10.0.0.2").unwrap().communities, ["llgr-stale"]);
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.2")]);
}

#[test]
fn rfc9494_3_1_without_graceful_restart_or_without_our_own_time_nothing_is_kept_for_long() {
    let mut b = Bench::with(config());
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let mut theirs = open_long(TOR_AS, "10.0.0.2", false, false);
    theirs.capabilities.retain(|c| !matches!(c, Capability::GracefulRestart(_)));
    let conn = b.establish("10.0.0.2", theirs);
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    lose(&mut b, conn);
    assert!(b.fib.is_empty());

    let mut ours = config();
    ours.graceful_restart.as_mut().unwrap().long_lived_time = None;
    let mut b = Bench::with(ours);
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open_long(TOR_AS, "10.0.0.2", false, false));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    lose(&mut b, conn);
    b.advance(secs(61));
    assert!(b.fib.is_empty());
}

#[test]
fn an_administrator_ends_it() {
    let mut b = long_lived();
    assert!(b.speaker.set_enabled(b.now, "tor", false, ""));
    b.pump();
    assert!(b.fib.is_empty());
}
