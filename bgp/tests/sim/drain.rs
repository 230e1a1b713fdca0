//! Draining: GRACEFUL_SHUTDOWN first (RFC 8326), a Cease with text (RFC 9003) after the delay, and the way back.

use manx_bgp::speaker::*;
use manx_bgp::wire::message::*;

use crate::bench::*;

const POD: &str = "10.244.1.0/24";
const GRACEFUL_SHUTDOWN: u32 = 0xFFFF_0000;

/// A node with a ToR at 10.0.0.2 and a neighbour in its own AS at 10.0.0.3.
fn node() -> (Bench, ConnId, ConnId) {
    let mut b = Bench::new();
    b.peer(Bench::tor("tor", "10.0.0.2"));
    b.peer(PeerConfig { remote_as: RemoteAs::Internal, ..Bench::tor("mate", "10.0.0.3") });
    b.originate(POD);
    let tor = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let mate = b.establish("10.0.0.3", open(OUR_AS, "10.0.0.3"));
    b.messages(tor);
    b.messages(mate);
    (b, tor, mate)
}

fn drain(b: &mut Bench, delay: u64, text: &str) {
    b.speaker.drain(b.now, secs(delay), text);
    b.pump();
}

fn undrain(b: &mut Bench) -> bool {
    let was = b.speaker.undrain(b.now);
    b.pump();
    was
}

#[test]
fn rfc8326_own_routes_are_tagged_at_once_and_internal_peers_see_local_pref_0() {
    let (mut b, tor, mate) = node();
    drain(&mut b, 30, "maintenance");
    let [update] = b.updates(tor).try_into().unwrap();
    assert_eq!(update.reach[0].nlri[0].prefix, p(POD));
    let set = update.attributes.unwrap();
    assert_eq!(set.communities.as_slice(), [GRACEFUL_SHUTDOWN]);
    assert_eq!(set.local_pref, None, "no LOCAL_PREF on an external session");
    let [update] = b.updates(mate).try_into().unwrap();
    let set = update.attributes.unwrap();
    assert_eq!((set.communities.as_slice(), set.local_pref), (&[GRACEFUL_SHUTDOWN][..], Some(0)));
    assert_eq!((b.state("tor"), b.state("mate")), ("Established", "Established"));
}

#[test]
fn rfc8326_the_receiver_gives_tagged_routes_local_pref_0() {
    let (mut b, tor, _) = node();
    let mut set = attributes(&[65001]);
    set.communities = [GRACEFUL_SHUTDOWN].into_iter().collect();
    b.announce(tor, &["10.9.0.0/16"], &set, "10.0.0.2");
    assert_eq!(b.path("10.9.0.0/16", "10.0.0.2").unwrap().local_pref, Some(0));
}

#[test]
fn after_the_delay_every_peer_gets_6_2_with_the_text_and_stays_down() {
    let (mut b, tor, mate) = node();
    drain(&mut b, 30, "maintenance");
    b.advance(secs(29));
    b.send(tor, &Message::Keepalive);
    b.send(mate, &Message::Keepalive);
    assert_eq!(b.speaker.drain_view(b.now).unwrap().remaining, Some(1.0));
    b.advance(secs(1));
    for conn in [tor, mate] {
        let last = b.messages(conn).pop();
        let Some(Message::Notification(n)) = last else { panic!("{last:?}") };
        assert_eq!(n.to_string(), "Cease/Administrative Shutdown: maintenance");
    }
    b.advance(secs(600));
    assert_eq!(b.accept("10.0.0.2"), None);
    assert_eq!(b.state("tor"), "Disabled");
    assert_eq!(b.view("tor").reason.as_deref(), Some("administratively down: maintenance"));
    assert_eq!(b.speaker.drain_view(b.now).unwrap().remaining, None);
}

#[test]
fn a_peer_that_is_added_or_enabled_while_the_node_is_drained_stays_down() {
    let (mut b, ..) = node();
    drain(&mut b, 0, "gone");
    b.peer(Bench::tor("new", "10.0.0.4"));
    assert!(b.speaker.set_enabled(b.now, "tor", true, ""));
    b.pump();
    assert_eq!((b.accept("10.0.0.4"), b.accept("10.0.0.2")), (None, None));
}

#[test]
fn undrain_before_the_delay_is_over_takes_the_tag_back_and_no_session_ends() {
    let (mut b, tor, mate) = node();
    drain(&mut b, 30, "maintenance");
    b.updates(tor);
    b.updates(mate);
    assert!(undrain(&mut b));
    let set = b.updates(tor).remove(0).attributes.unwrap();
    assert!(set.communities.is_empty());
    assert_eq!(b.updates(mate).remove(0).attributes.unwrap().local_pref, Some(100));
    b.advance(secs(60));
    assert_eq!(b.state("tor"), "Established");
    assert!(!undrain(&mut b), "there is nothing to take back any more");
}

#[test]
fn undrain_lets_sessions_come_up_again_without_the_tag() {
    let (mut b, ..) = node();
    drain(&mut b, 0, "gone");
    assert_eq!(b.state("tor"), "Disabled");
    undrain(&mut b);
    let tor = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let set = b.updates(tor).into_iter().find_map(|u| u.attributes).unwrap();
    assert!(set.communities.is_empty());
}

#[test]
fn asking_again_counts_the_new_delay_from_the_first_time() {
    let (mut b, ..) = node();
    drain(&mut b, 60, "slowly");
    b.advance(secs(20));
    drain(&mut b, 30, "faster");
    assert_eq!(b.speaker.drain_view(b.now).unwrap().remaining, Some(10.0));
    b.advance(secs(11));
    assert_eq!(b.view("tor").reason.as_deref(), Some("administratively down: faster"));
}

#[test]
fn a_session_that_comes_up_in_a_drain_is_told_tagged_routes_and_a_filter_cannot_hide_the_tag() {
    use manx_bgp::filter::*;
    let mut b = Bench::new();
    let mut plain = Filter::accept_all("plain");
    plain.ipv4[0].set.set_communities = Some(Vec::new());
    b.peer(PeerConfig { export: vec![std::sync::Arc::new(plain)], ..Bench::tor("tor", "10.0.0.2") });
    b.originate(POD);
    drain(&mut b, 600, "maintenance");
    let tor = b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"));
    let set = b.updates(tor).into_iter().find_map(|u| u.attributes).unwrap();
    assert_eq!(set.communities.as_slice(), [GRACEFUL_SHUTDOWN]);
}

#[test]
fn reflected_routes_do_not_lead_through_the_node_and_keep_their_preference() {
    let mut b = Bench::new();
    for (name, address) in [("a", "10.0.0.2"), ("b", "10.0.0.3")] {
        let internal = PeerConfig {
            remote_as: RemoteAs::Internal,
            route_reflector_client: true,
            ..Bench::tor(name, address)
        };
        b.peer(internal);
    }
    let from = b.establish("10.0.0.2", open(OUR_AS, "10.0.0.2"));
    let to = b.establish("10.0.0.3", open(OUR_AS, "10.0.0.3"));
    drain(&mut b, 600, "maintenance");
    b.announce(from, &["10.9.0.0/24"], &attributes(&[]), "10.0.0.2");
    let set = b.updates(to).into_iter().find_map(|u| u.attributes).unwrap();
    assert!(set.communities.is_empty());
    assert_eq!(set.local_pref, Some(100));
}
