//! Graceful restart (RFC 4724) in both roles.

use std::time::Duration;

use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::message::*;

use crate::bench::*;

const X: &str = "10.9.0.0/16";
const Y: &str = "10.8.0.0/16";

fn config(restarting: bool) -> SpeakerConfig {
    SpeakerConfig {
        graceful_restart: Some(GracefulRestartConfig {
            restart_time: secs(120),
            long_lived_time: None,
            restarting,
        }),
        ..SpeakerConfig::new(OUR_AS, id("10.0.0.1"))
    }
}

fn restarting() -> Bench {
    let mut b = Bench::with(config(true));
    b.peer(Bench::tor("a", "10.0.0.2"));
    b.peer(Bench::tor("b", "10.0.0.3"));
    b.originate("10.244.1.0/24");
    b
}

pub(crate) fn gr_of(messages: &[Message]) -> Option<GracefulRestart> {
    messages.iter().find_map(|m| match m {
        Message::Open(o) => o.capabilities.iter().find_map(|c| match c {
            Capability::GracefulRestart(gr) => Some(gr.clone()),
            _ => None,
        }),
        _ => None,
    })
}

fn end_of_ribs(updates: &[Update]) -> Vec<Family> {
    updates.iter().filter_map(|u| u.end_of_rib).collect()
}

fn announced(updates: &[Update]) -> Vec<String> {
    updates.iter().flat_map(|u| &u.reach).flat_map(|r| &r.nlri).map(|n| n.prefix.to_string()).collect()
}

#[test]
fn trap_4_r_and_f_are_set_in_a_restart_and_not_outside() {
    let mut b = restarting();
    let conn = b.accept("10.0.0.2").unwrap();
    let gr = gr_of(&b.messages(conn)).unwrap();
    assert!(gr.restarting && gr.restart_time == 120);
    assert_eq!(gr.families, [(Family::Ipv4Unicast, true), (Family::Ipv6Unicast, true)]);
    b.advance(secs(121));
    assert_eq!(b.restart_complete, Family::ALL);
    let conn = b.accept("10.0.0.3").unwrap();
    let gr = gr_of(&b.messages(conn)).unwrap();
    assert!(!gr.restarting);
    assert_eq!(gr.families, [(Family::Ipv4Unicast, false), (Family::Ipv6Unicast, false)]);

    let mut fresh = Bench::with(config(false));
    fresh.peer(Bench::tor("a", "10.0.0.2"));
    let conn = fresh.accept("10.0.0.2").unwrap();
    let gr = gr_of(&fresh.messages(conn)).unwrap();
    assert!(!gr.restarting && gr.families.iter().all(|(_, f)| !f));
    fresh.advance(secs(1000));
    assert!(fresh.restart_complete.is_empty(), "nobody restarted");
}

#[test]
fn trap_5_local_routes_are_advertised_at_once_and_only_the_sweep_is_deferred() {
    let mut b = restarting();
    let a = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", false, false, 120));
    let updates = b.updates(a);
    assert_eq!(announced(&updates), ["10.244.1.0/24"]);
    assert_eq!(end_of_ribs(&updates), [], "End-of-RIB waits for the end of our restart");
    b.announce(a, &[X], &attributes(&[65001]), "10.0.0.2");
    assert!(b.fib_log.is_empty() && b.restart_complete.is_empty());
}

#[test]
fn the_fib_is_told_once_all_peers_have_said_what_they_have_and_the_sweep_follows() {
    let mut b = restarting();
    let a = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", false, false, 120));
    let other = b.establish("10.0.0.3", open_gr(Asn(65002), "10.0.0.3", false, false, 120));
    b.messages(a);
    b.announce(a, &[X], &attributes(&[65001]), "10.0.0.2");
    for family in Family::ALL {
        b.end_of_rib(a, family);
    }
    assert!(b.fib_log.is_empty());
    assert!(b.view("b").graceful_restart.awaited && !b.view("a").graceful_restart.awaited);
    b.announce(other, &[X], &attributes(&[65002]), "10.0.0.3");
    b.end_of_rib(other, Family::Ipv4Unicast);
    // Not through one path first and through two later: what was right in the kernel is not rewritten.
    assert_eq!(b.fib_log, [(p(X), vec![ip("10.0.0.2"), ip("10.0.0.3")])]);
    assert_eq!(b.restart_complete, [Family::Ipv4Unicast]);
    assert_eq!(end_of_ribs(&b.updates(a)), [Family::Ipv4Unicast]);
    b.end_of_rib(other, Family::Ipv6Unicast);
    assert_eq!(b.restart_complete, Family::ALL);
    assert_eq!(end_of_ribs(&b.updates(a)), [Family::Ipv6Unicast]);
}

#[test]
fn restart_complete_comes_after_the_last_route_change_it_covers() {
    let mut b = restarting();
    let a = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", false, false, 120));
    let other = b.establish("10.0.0.3", open_gr(Asn(65002), "10.0.0.3", false, false, 120));
    b.announce(a, &[X], &attributes(&[65001]), "10.0.0.2");
    b.end_of_rib(a, Family::Ipv4Unicast);
    let mut out = bytes::BytesMut::new();
    manx_bgp::wire::end_of_rib(&mut out, Family::Ipv4Unicast);
    b.speaker.received(b.now, other, &out);
    // A shell that asks for effects first does not hear of it yet, and is called again for it.
    while let Some(effect) = b.speaker.poll_effect() {
        assert!(!matches!(effect, Effect::RestartComplete(_)));
    }
    assert!(b.speaker.poll_route_change().is_some());
    assert!(b.speaker.poll_route_change().is_none());
    assert!(b.speaker.poll_timeout().unwrap() <= b.now);
    b.speaker.handle_timeout(b.now);
    assert_eq!(b.speaker.poll_effect(), Some(Effect::RestartComplete(Family::Ipv4Unicast)));
}

#[test]
fn the_sweep_waits_for_the_answer_on_every_next_hop() {
    let mut b = restarting();
    b.resolve = None;
    let a = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", false, false, 120));
    let other = b.establish("10.0.0.3", open_gr(Asn(65002), "10.0.0.3", false, false, 120));
    b.announce(a, &[X], &attributes(&[65001]), "10.0.0.2");
    b.end_of_rib(a, Family::Ipv4Unicast);
    b.end_of_rib(other, Family::Ipv4Unicast);
    assert!(b.restart_complete.is_empty(), "the route is not eligible yet and would be swept");
    b.speaker.set_next_hop(b.now, ip("10.0.0.2"), UP);
    b.pump();
    assert_eq!(b.fib_log, [(p(X), vec![ip("10.0.0.2")])]);
    assert_eq!(b.restart_complete, [Family::Ipv4Unicast]);
}

#[test]
fn a_peer_that_never_comes_back_only_delays_to_the_deadline() {
    let mut b = restarting();
    let a = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", false, false, 120));
    b.announce(a, &[X], &attributes(&[65001]), "10.0.0.2");
    for family in Family::ALL {
        b.end_of_rib(a, family);
    }
    for _ in 0..4 {
        b.advance(secs(28));
        b.send(a, &Message::Keepalive);
    }
    assert!(b.restart_complete.is_empty() && b.fib.is_empty());
    b.advance(secs(9));
    assert_eq!(b.restart_complete, Family::ALL);
    assert_eq!(b.fib.len(), 1);
}

#[test]
fn disabled_blocked_and_removed_peers_are_not_awaited() {
    let mut b = restarting();
    let a = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", false, false, 120));
    for family in Family::ALL {
        b.end_of_rib(a, family);
    }
    assert!(b.restart_complete.is_empty());
    b.speaker.remove_peer(b.now, "b");
    b.pump();
    assert_eq!(b.restart_complete, Family::ALL);
}

#[test]
fn a_peer_that_restarts_as_well_is_not_awaited_to_the_end_or_both_would_wait_for_the_deadline() {
    let mut b = restarting();
    let a = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", true, true, 120));
    let other = b.establish("10.0.0.3", open_gr(Asn(65002), "10.0.0.3", true, true, 120));
    b.announce(a, &[X], &attributes(&[65001]), "10.0.0.2");
    b.send(a, &Message::Keepalive);
    assert!(b.restart_complete.is_empty(), "its first table is awaited, which its first KEEPALIVE follows");
    b.send(other, &Message::Keepalive);
    assert_eq!(b.restart_complete, Family::ALL);
    assert_eq!(b.fib.len(), 1);
}

#[test]
fn a_peer_without_graceful_restart_has_said_all_by_its_first_keepalive() {
    let mut b = restarting();
    b.speaker.remove_peer(b.now, "b");
    let a = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(a, &[X], &attributes(&[65001]), "10.0.0.2");
    assert!(b.restart_complete.is_empty());
    b.send(a, &Message::Keepalive);
    assert_eq!(b.restart_complete, Family::ALL);
    assert_eq!(b.fib.len(), 1);
}

#[test]
fn without_peers_the_deadline_decides() {
    let mut b = Bench::with(config(true));
    b.advance(secs(119));
    assert!(b.restart_complete.is_empty());
    b.advance(secs(2));
    assert_eq!(b.restart_complete, Family::ALL);
}

#[test]
fn learned_routes_wait_for_peers_too_in_our_restart() {
    let mut b = Bench::with(config(true));
    b.peer(Bench::tor("a", "10.0.0.2"));
    let all = vec![std::sync::Arc::new(manx_bgp::filter::Filter::accept_all("all"))];
    b.peer(PeerConfig { export: all, ..Bench::tor("b", "10.0.0.3") });
    let a = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", false, false, 120));
    let other = b.establish("10.0.0.3", open_gr(Asn(65002), "10.0.0.3", false, false, 120));
    b.announce(a, &[X], &attributes(&[65001]), "10.0.0.2");
    assert!(announced(&b.updates(other)).is_empty());
    let why = b.speaker.explain(p(X)).exports.into_iter().find(|e| e.peer == "b").unwrap();
    assert!(why.reason.starts_with("restart under way"));
    b.end_of_rib(a, Family::Ipv4Unicast);
    b.end_of_rib(other, Family::Ipv4Unicast);
    let updates = b.updates(other);
    assert_eq!(announced(&updates), [X]);
    assert_eq!(end_of_ribs(&updates), [Family::Ipv4Unicast], "after the routes");
    assert_eq!(updates.last().unwrap().end_of_rib, Some(Family::Ipv4Unicast));
}

fn helper() -> (Bench, ConnId) {
    let mut b = Bench::with(config(false));
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", false, false, 60));
    b.announce(conn, &[X, Y], &attributes(&[65001]), "10.0.0.2");
    for family in Family::ALL {
        b.end_of_rib(conn, family);
    }
    b.fib_log.clear();
    (b, conn)
}

fn lose(b: &mut Bench, conn: ConnId) {
    b.speaker.closed(b.now, conn, "connection reset by peer");
    b.pump();
}

#[test]
fn the_helper_keeps_routes_of_a_peer_that_dropped_tcp_until_its_end_of_rib() {
    let (mut b, conn) = helper();
    lose(&mut b, conn);
    assert!(b.fib_log.is_empty(), "the FIB does not notice");
    assert!(b.path(X, "10.0.0.2").unwrap().stale);
    let gr = b.view("tor").graceful_restart;
    assert_eq!(gr.helping_for, Some(60.0));
    let conn = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", true, true, 60));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    assert!(!b.path(X, "10.0.0.2").unwrap().stale && b.path(Y, "10.0.0.2").unwrap().stale);
    assert!(b.fib_log.is_empty());
    b.end_of_rib(conn, Family::Ipv4Unicast);
    assert_eq!(b.fib_log, [(p(Y), vec![])], "what was not said again goes");
    b.end_of_rib(conn, Family::Ipv6Unicast);
    assert_eq!(b.view("tor").graceful_restart.helping_for, None);
}

#[test]
fn the_helper_gives_up_after_the_peers_restart_time() {
    let (mut b, conn) = helper();
    lose(&mut b, conn);
    b.advance(secs(59));
    assert_eq!(b.fib.len(), 2);
    b.advance(secs(2));
    assert!(b.fib.is_empty() && b.routes().is_empty());
}

#[test]
fn trap_4_r_without_f_makes_the_helper_flush() {
    let (mut b, conn) = helper();
    lose(&mut b, conn);
    b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", true, false, 60));
    assert!(b.fib.is_empty());
}

#[test]
fn a_peer_that_comes_back_without_the_capability_is_flushed() {
    let (mut b, conn) = helper();
    lose(&mut b, conn);
    b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    assert!(b.fib.is_empty());
}

#[test]
fn trap_4_a_second_restart_inside_the_window_does_not_delete_stale_routes() {
    let (mut b, conn) = helper();
    lose(&mut b, conn);
    b.advance(secs(30));
    let conn = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", true, true, 60));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    lose(&mut b, conn);
    b.advance(secs(50));
    assert_eq!(b.fib.len(), 2, "each restart has its own restart time");
    // But not for ever: the upper bound counts from the first loss.
    for _ in 0..20 {
        let conn = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", true, true, 60));
        lose(&mut b, conn);
        b.advance(secs(20));
    }
    assert!(b.fib.is_empty());
}

#[test]
fn a_notification_ends_graceful_restart() {
    let (mut b, conn) = helper();
    b.send(conn, &Message::Notification(Notification::cease(4)));
    assert!(b.fib.is_empty());
    let (mut b, _) = helper();
    b.advance(secs(91));
    assert!(b.fib.is_empty(), "ours (hold timer expired) as well");
}

#[test]
fn without_the_capability_routes_go_with_the_session() {
    let mut b = Bench::with(config(false));
    b.peer(Bench::tor("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    lose(&mut b, conn);
    assert!(b.fib.is_empty());
}

#[test]
fn a_peer_that_opens_anew_beside_its_old_session_has_restarted() {
    let (mut b, old) = helper();
    b.advance(secs(5));
    // Its kernel has forgotten the old connection; ours has not noticed.
    let new = b.accept("10.0.0.2").unwrap();
    b.send(new, &Message::Open(open_gr(TOR_AS, "10.0.0.2", true, true, 60)));
    assert!(b.closed.contains(&old));
    assert_eq!(b.notification(old), None, "closed without a NOTIFICATION");
    b.send(new, &Message::Keepalive);
    assert_eq!(b.state("tor"), "Established");
    assert!(b.fib_log.is_empty() && b.path(X, "10.0.0.2").unwrap().stale);
}

#[test]
fn a_late_open_of_a_simultaneous_dial_is_no_restart() {
    let (mut b, old) = helper();
    let late = b.accept("10.0.0.2").unwrap();
    b.send(late, &Message::Open(open_gr(TOR_AS, "10.0.0.2", false, false, 60)));
    assert_eq!(b.notification(late), Some((6, 7)));
    assert!(!b.closed.contains(&old));
    assert_eq!((b.state("tor"), b.view("tor").flaps), ("Established", 0));
}

#[test]
fn stale_routes_end_with_the_configuration_that_kept_them() {
    let (mut b, conn) = helper();
    lose(&mut b, conn);
    b.peer(PeerConfig { graceful_restart: false, ..Bench::tor("tor", "10.0.0.2") });
    assert!(b.fib.is_empty());
    let (mut b, conn) = helper();
    lose(&mut b, conn);
    b.speaker.set_enabled(b.now, "tor", false, "");
    b.pump();
    assert!(b.fib.is_empty());
    let (mut b, conn) = helper();
    lose(&mut b, conn);
    b.speaker.remove_peer(b.now, "tor");
    b.pump();
    assert!(b.fib.is_empty());
}

#[test]
fn filters_may_change_while_the_peer_is_away() {
    let mut b = Bench::with(config(false));
    let all = std::sync::Arc::new(manx_bgp::filter::Filter::accept_all("all"));
    b.peer(PeerConfig { import: vec![all], ..Bench::tor("tor", "10.0.0.2") });
    let conn = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", false, false, 60));
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(b.path(X, "10.0.0.2").unwrap().accepted_by.as_deref(), Some("import filter all: all"));
    lose(&mut b, conn);
    b.peer(Bench::tor("tor", "10.0.0.2"));
    assert_eq!(b.path(X, "10.0.0.2").unwrap().accepted_by, None);
    let conn = b.establish("10.0.0.2", open_gr(TOR_AS, "10.0.0.2", true, true, 60));
    assert_eq!(b.path(X, "10.0.0.2").unwrap().accepted_by, None);
    b.announce(conn, &[X], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(b.path(X, "10.0.0.2").unwrap().accepted_by.as_deref(), Some("import default"));
}

#[test]
fn a_stale_route_forwards_like_any_other_and_loses_like_any_other() {
    let (mut b, conn) = helper();
    b.peer(Bench::tor("other", "10.0.0.3"));
    lose(&mut b, conn);
    let other = b.establish("10.0.0.3", open_gr(Asn(65002), "10.0.0.3", false, false, 60));
    b.announce(other, &[X], &attributes(&[65002]), "10.0.0.3");
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.2"), ip("10.0.0.3")]);
    b.advance(Duration::from_secs(61));
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.3")]);
}
