//! Add-Path (RFC 7911): several paths of a prefix on one session, in either direction.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;
use std::sync::Arc;

use manx_bgp::filter::*;
use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::message::*;

use crate::bench::*;

const X: &str = "10.9.0.0/16";
const Y: &str = "10.8.0.0/16";

fn accept_all() -> Vec<Arc<Filter>> {
    vec![Arc::new(Filter::accept_all("all"))]
}

fn open_with(asn: Asn, id: &str, mode: AddPathMode) -> Open {
    let mut o = open(asn, id);
    o.capabilities.push(Capability::AddPath(Family::ALL.map(|f| (f, mode)).to_vec()));
    o
}

fn receiving(name: &str, address: &str) -> PeerConfig {
    PeerConfig { add_path: AddPath { receive: true, ..AddPath::default() }, ..Bench::tor(name, address) }
}

fn sending(name: &str, address: &str) -> PeerConfig {
    PeerConfig {
        export: accept_all(),
        add_path: AddPath { send: true, ..AddPath::default() },
        ..Bench::tor(name, address)
    }
}

/// A peer that sends us several paths.
fn received() -> (Bench, ConnId) {
    let mut b = Bench::new();
    b.peer(receiving("tor", "10.0.0.2"));
    let conn = b.establish("10.0.0.2", open_with(TOR_AS, "10.0.0.2", AddPathMode::Send));
    (b, conn)
}

/// Three ToRs and a peer that takes several paths.
struct Sent {
    b: Bench,
    tors: [ConnId; 3],
    taker: ConnId,
    /// What the taker believes: prefix and path identifier to AS path.
    heard: BTreeMap<(String, u32), String>,
}

const TORS: [&str; 3] = ["10.0.0.2", "10.0.0.3", "10.0.0.4"];

fn sent(config: PeerConfig) -> Sent {
    let mut b = Bench::new();
    for (i, address) in TORS.iter().enumerate() {
        b.peer(Bench::tor(&format!("tor{i}"), address));
    }
    b.peer(config);
    let tors = [0, 1, 2].map(|i| b.establish(TORS[i], open(Asn(65001 + i as u32), TORS[i])));
    let taker = b.establish("10.0.0.9", open_with(Asn(65009), "10.0.0.9", AddPathMode::Receive));
    b.add_path.insert(taker, PerFamily::both(true));
    b.messages(taker);
    Sent { b, tors, taker, heard: BTreeMap::new() }
}

impl Sent {
    fn announce(&mut self, tor: usize, path: &[u32]) {
        self.b.announce(self.tors[tor], &[X], &attributes(path), TORS[tor]);
    }

    /// The AS paths that the taker has of X, sorted.
    fn paths(&mut self) -> Vec<String> {
        for update in self.b.updates(self.taker) {
            for gone in update.withdrawn {
                let known = self.heard.remove(&(gone.prefix.to_string(), gone.path_id));
                assert!(known.is_some(), "{gone:?} withdrawn and never advertised");
            }
            for nlri in update.reach.iter().flat_map(|r| &r.nlri) {
                let path = as_path_text(&update.attributes.as_ref().unwrap().as_path);
                self.heard.insert((nlri.prefix.to_string(), nlri.path_id), path);
            }
        }
        let mut paths: Vec<String> = self.heard.values().cloned().collect();
        paths.sort();
        paths
    }
}

#[test]
fn rfc7911_3_several_paths_of_one_peer_are_kept_apart_by_their_identifiers() {
    let (mut b, conn) = received();
    b.announce_paths(conn, &[(X, 1), (Y, 1)], &attributes(&[65001, 65100]), "10.0.0.2");
    b.announce_paths(conn, &[(X, 2)], &attributes(&[65001]), "10.0.0.22");
    b.announce_paths(conn, &[(X, 0)], &attributes(&[65001, 65100]), "10.0.0.23");
    let views = b.speaker.routes(&RouteQuery::AdjRibIn("tor".into()));
    let ids: Vec<_> = views.iter().map(|v| (v.prefix.to_string(), v.path_id, v.best)).collect();
    let view = |prefix: &str, id, best| (prefix.to_owned(), Some(id), best);
    assert_eq!(ids, [view(Y, 1, true), view(X, 0, false), view(X, 1, false), view(X, 2, true)]);
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.22")], "the decision is over all of them");
    // The same identifier again replaces, another one withdrawn says nothing about it.
    b.announce_paths(conn, &[(X, 2)], &attributes(&[65001, 65100, 65101]), "10.0.0.22");
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.2"), ip("10.0.0.23")], "equal paths of one peer share the load");
    b.withdraw_paths(conn, &[(X, 7)]);
    b.withdraw_paths(conn, &[(X, 1)]);
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.23")]);
    b.withdraw_paths(conn, &[(X, 0)]);
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.22")]);
    b.withdraw_paths(conn, &[(X, 2), (Y, 1)]);
    assert!(b.fib.is_empty());
    assert_eq!(b.speaker.table_size(Family::Ipv4Unicast), (0, 0), "and nothing is left behind");
}

#[test]
fn of_equal_paths_of_one_peer_the_lowest_identifier_is_best_whatever_the_order() {
    for order in [[3, 9, 5], [9, 5, 3], [5, 3, 9]] {
        let (mut b, conn) = received();
        for id in order {
            b.announce_paths(conn, &[(X, id)], &attributes(&[65001]), "10.0.0.2");
        }
        let paths = b.speaker.explain(p(X)).paths;
        let best = paths.iter().find(|v| v.best).unwrap();
        assert_eq!(best.path_id, Some(3));
        let lost = paths.iter().find(|v| v.path_id == Some(9)).unwrap();
        assert_eq!((lost.lost_at, lost.reason.as_deref()), (Some("path-id"), Some("path identifier higher")));
    }
}

#[test]
fn a_refused_path_leaves_the_others_of_its_prefix_alone() {
    let (mut b, conn) = received();
    b.announce_paths(conn, &[(X, 1)], &attributes(&[65001]), "10.0.0.2");
    b.announce_paths(conn, &[(X, 2)], &attributes(&[65001, 64512]), "10.0.0.22");
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.2")]);
    let refused: Vec<_> = b.speaker.explain(p(X)).paths.into_iter().filter(|v| v.filtered).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].path_id, refused[0].reason.as_deref()), (Some(2), Some("own AS in AS_PATH")));
    let family = |b: &Bench| b.view("tor").families[0].clone();
    assert_eq!((family(&b).accepted, family(&b).filtered), (1, 1));
    b.announce_paths(conn, &[(X, 1)], &attributes(&[65001, 64512]), "10.0.0.2");
    assert!(b.fib.is_empty());
    b.withdraw_paths(conn, &[(X, 1), (X, 2)]);
    assert_eq!((family(&b).accepted, family(&b).filtered), (0, 0));
}

#[test]
fn paths_count_against_the_prefix_limit_one_by_one() {
    let mut b = Bench::new();
    let limit = MaxPrefixes { limit: 3, action: MaxPrefixesAction::Reject };
    b.peer(PeerConfig { max_prefixes: Some(limit), ..receiving("tor", "10.0.0.2") });
    let conn = b.establish("10.0.0.2", open_with(TOR_AS, "10.0.0.2", AddPathMode::Both));
    for id in 0..100 {
        b.announce_paths(conn, &[(X, id)], &attributes(&[65001, 65100 + id]), "10.0.0.2");
    }
    assert_eq!(b.view("tor").families[0].accepted, 3, "one prefix is as much memory as its paths");
    b.withdraw_paths(conn, &[(X, 0)]);
    b.announce_paths(conn, &[(Y, 1)], &attributes(&[65001]), "10.0.0.2");
    assert_eq!(b.view("tor").families[0].accepted, 3);
}

#[test]
fn a_session_that_is_lost_takes_all_its_paths_and_graceful_restart_keeps_them() {
    let (mut b, conn) = received();
    b.announce_paths(conn, &[(X, 1), (X, 2)], &attributes(&[65001]), "10.0.0.2");
    b.speaker.closed(b.now, conn, "lost");
    b.pump();
    assert!(b.fib.is_empty());
    assert_eq!(b.speaker.table_size(Family::Ipv4Unicast).1, 0);

    let config = SpeakerConfig {
        graceful_restart: Some(GracefulRestartConfig {
            restart_time: secs(120),
            restarting: false,
            long_lived_time: None,
        }),
        ..SpeakerConfig::new(OUR_AS, id("10.0.0.1"))
    };
    let mut b = Bench::with(config);
    b.peer(receiving("tor", "10.0.0.2"));
    let theirs = |restarting| {
        let mut o = open_gr(TOR_AS, "10.0.0.2", restarting, restarting, 120);
        o.capabilities.push(Capability::AddPath(vec![(Family::Ipv4Unicast, AddPathMode::Send)]));
        o
    };
    let conn = b.establish("10.0.0.2", theirs(false));
    b.announce_paths(conn, &[(X, 1)], &attributes(&[65001]), "10.0.0.2");
    b.announce_paths(conn, &[(X, 2)], &attributes(&[65001]), "10.0.0.22");
    b.speaker.closed(b.now, conn, "lost");
    b.pump();
    assert_eq!(b.fib[&p(X)].len(), 2);
    let conn = b.establish("10.0.0.2", theirs(true));
    b.announce_paths(conn, &[(X, 2)], &attributes(&[65001]), "10.0.0.22");
    b.end_of_rib(conn, Family::Ipv4Unicast);
    assert_eq!(b.fib[&p(X)], [ip("10.0.0.22")], "the other identifier was not said again");
}

#[test]
fn rfc7911_2_all_eligible_paths_go_out_under_identifiers_that_stay() {
    let mut s = sent(sending("taker", "10.0.0.9"));
    s.announce(0, &[65001, 65100]);
    s.announce(1, &[65002, 65100]);
    assert_eq!(s.paths(), ["64512 65001 65100", "64512 65002 65100"]);
    let first = s.heard.clone();
    // A new best path adds itself and moves nobody.
    s.announce(2, &[65003]);
    assert_eq!(s.paths().len(), 3);
    assert!(first.iter().all(|(key, path)| s.heard.get(key) == Some(path)), "{first:?} {:?}", s.heard);
    let ids: BTreeSet<u32> = s.heard.keys().map(|(_, id)| *id).collect();
    assert_eq!(ids.len(), 3);
    // A change of one path is said of that path alone.
    s.announce(1, &[65002, 65101]);
    assert_eq!(s.paths(), ["64512 65001 65100", "64512 65002 65101", "64512 65003"]);
    // The best one goes: its identifier is withdrawn, and no other.
    s.b.withdraw(s.tors[2], &[X]);
    assert_eq!(s.paths(), ["64512 65001 65100", "64512 65002 65101"]);
    let shown = s.b.speaker.routes(&RouteQuery::AdjRibOut("taker".into()));
    let shown: BTreeSet<u32> = shown.iter().filter_map(|v| v.path_id).collect();
    assert_eq!(shown, s.heard.keys().map(|(_, id)| *id).collect());
    s.b.withdraw(s.tors[0], &[X]);
    s.b.withdraw(s.tors[1], &[X]);
    assert!(s.paths().is_empty());
}

#[test]
fn a_peer_with_add_path_never_gets_its_own_path_back_and_one_without_gets_the_best_only() {
    let both = PeerConfig {
        add_path: AddPath { receive: true, send: true, send_max: None },
        ..sending("taker", "10.0.0.9")
    };
    let mut s = sent(both);
    s.b.peer(PeerConfig { export: accept_all(), ..Bench::tor("plain", "10.0.0.8") });
    let plain = s.b.establish("10.0.0.8", open(Asn(65008), "10.0.0.8"));
    s.b.messages(plain);
    s.announce(0, &[65001, 65100]);
    s.announce(1, &[65002]);
    // The taker's capability was Receive: what it says carries no identifiers.
    s.b.announce(s.taker, &[X], &attributes(&[65009]), "10.0.0.9");
    assert_eq!(s.paths(), ["64512 65001 65100", "64512 65002"]);
    let last = s.b.updates(plain).into_iter().rfind(|u| !u.reach.is_empty()).unwrap();
    assert_eq!(last.reach[0].nlri, [Nlri { prefix: p(X), path_id: 0 }]);
}

#[test]
fn at_most_the_best_n_paths_go_out_where_a_limit_is_set_and_its_change_takes_effect() {
    let limited = |n: u8| PeerConfig {
        add_path: AddPath { receive: false, send: true, send_max: NonZeroU8::new(n) },
        ..sending("taker", "10.0.0.9")
    };
    let mut s = sent(limited(2));
    s.announce(0, &[65001, 65100, 65100]);
    s.announce(1, &[65002, 65100]);
    s.announce(2, &[65003]);
    assert_eq!(s.paths(), ["64512 65002 65100", "64512 65003"]);
    s.b.withdraw(s.tors[2], &[X]);
    assert_eq!(s.paths(), ["64512 65001 65100 65100", "64512 65002 65100"]);
    s.b.peer(limited(1));
    assert_eq!(s.paths(), ["64512 65002 65100"]);
    s.b.peer(limited(0));
    assert_eq!(s.paths(), ["64512 65001 65100 65100", "64512 65002 65100"]);
    assert_eq!(s.b.state("taker"), "Established", "a limit of our own needs no new session");
}

#[test]
fn ineligible_paths_and_those_that_a_filter_denies_do_not_go_out() {
    let reject = Rule::new(
        "not-65002",
        Match { as_path: Some(AsPathRegex::new("_65002_").unwrap()), ..Match::default() },
        Action::Reject,
        Set::default(),
    );
    let rest = Rule::new("rest", Match::default(), Action::Accept, Set::default());
    let filter = Filter { name: "f".into(), ipv4: vec![reject, rest], ipv6: Vec::new() };
    let mut s = sent(PeerConfig { export: vec![Arc::new(filter)], ..sending("taker", "10.0.0.9") });
    s.announce(0, &[65001]);
    s.announce(1, &[65002]);
    s.announce(2, &[65003]);
    assert_eq!(s.paths(), ["64512 65001", "64512 65003"]);
    let gone = FibNextHop { gateway: ip(TORS[2]), ifindex: 0 };
    s.b.speaker.set_next_hop(s.b.now, gone, NextHopState::Unreachable);
    s.b.pump();
    assert_eq!(s.paths(), ["64512 65001"]);
}

#[test]
fn rfc7911_3_a_refresh_sends_all_paths_again_under_the_same_identifiers() {
    let mut s = sent(sending("taker", "10.0.0.9"));
    s.announce(0, &[65001]);
    s.announce(1, &[65002]);
    s.paths();
    let before = std::mem::take(&mut s.heard);
    let refresh = RouteRefresh { family: Family::Ipv4Unicast, kind: RefreshKind::Request };
    s.b.send(s.taker, &Message::RouteRefresh(refresh));
    s.paths();
    assert_eq!(s.heard, before);
}
