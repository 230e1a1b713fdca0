use std::time::Duration;

use manx_bgp::session::Direction;
use manx_bgp::speaker::{NotificationView, TimersView};
use manx_bgp::types::Asn;
use rstest::rstest;

use super::*;
use crate::kernel::neighbour::State;

fn peer(state: &'static str, cause: Option<Cause>, reason: &str) -> PeerView {
    PeerView {
        name: "tor".to_owned(),
        address: Some("10.1.0.1".parse::<IpAddr>().unwrap().into()),
        interface: None,
        local_as: Asn(64512),
        remote_as: None,
        peer_type: PeerType::External,
        router_id: None,
        state,
        age: Duration::from_secs(10),
        flaps: 0,
        reason: Some(reason.to_owned()),
        cause,
        last_notification: None,
        local_address: None,
        capabilities: Vec::new(),
        timers: TimersView::default(),
        families: Vec::new(),
        graceful_restart: Default::default(),
        messages: Default::default(),
        bfd: None,
    }
}

fn info() -> PeerInfo {
    PeerInfo {
        origin: "BGPPeer tor".to_owned(),
        source: Some("10.1.0.2".parse().unwrap()),
        ..PeerInfo::default()
    }
}

fn object(name: &str, address: &str, unmet: Option<&str>) -> PeerObject {
    PeerObject {
        name: name.to_owned(),
        target: address.to_owned(),
        address: address.parse().ok(),
        range: address.parse().ok().filter(|_| address.contains('/')),
        selector: "every node".to_owned(),
        unmet: unmet.map(str::to_owned),
    }
}

/// On the subnet, and answering.
fn healthy() -> Kernel {
    Kernel {
        source_present: Some(true),
        route: Some(Path { shown: "10.1.0.0/24 on eth0".to_owned(), gateway: None, ours: false }),
        neighbour: Some(Neighbour { state: State::Reachable, link_address: None }),
        next: Some("10.1.0.1".parse().unwrap()),
        ..Kernel::default()
    }
}

/// The first rung that fails, with what it says.
fn first(peer: &PeerView, info: &PeerInfo, kernel: &Kernel) -> Option<(String, String)> {
    let objects = [object("tor", "10.1.0.1", None)];
    let rungs = climb(&Evidence { peer, info, objects: &objects, kernel, asn: Some(64512) });
    assert_eq!(rungs.len(), 13, "always the whole ladder");
    let failed = rungs.into_iter().find(|r| r.result == RungResult::Failed)?;
    assert!(failed.remedy.is_some(), "what fails has a remedy: {failed:?}");
    Some((failed.name, failed.observed))
}

#[rstest]
#[case(Cause::TcpRefused, "tcp", "10.1.0.1 port 179 refuses")]
#[case(Cause::TcpTimeout, "tcp", "10.1.0.1 port 179 does not answer")]
#[case(Cause::TcpUnreachable, "tcp", "why")]
#[case(Cause::TcpClosed, "tcp", "why")]
#[case(Cause::TcpLost, "tcp", "why")]
#[case(Cause::InterfaceDown, "tcp", "why")]
#[case(Cause::OpenRefused, "open", "we refuse its OPEN: why")]
#[case(Cause::HoldTimer, "open", "why")]
#[case(Cause::BfdDown, "bfd", "why")]
#[case(Cause::PrefixLimit, "prefix-limit", "why")]
#[case(Cause::ConfigBlocked, "enabled", "why")]
fn each_cause_has_its_rung(#[case] cause: Cause, #[case] rung: &str, #[case] observed: &str) {
    // What stops a session by itself leaves it in Idle.
    let (name, text) = first(&peer("Idle", Some(cause), "why"), &info(), &healthy()).unwrap();
    // A BFD that is down says nothing of TCP, and comes where it stands.
    assert_eq!(name, rung);
    assert!(text.starts_with(observed), "{text}");
}

#[test]
fn the_lowest_rung_that_fails_is_the_answer() {
    let down = peer("Connect", Some(Cause::TcpTimeout), "connect: no answer");
    let no_secret =
        PeerInfo { secret: SecretState::Missing("Secret a/b does not exist".to_owned()), ..info() };
    let no_filter = PeerInfo { missing: vec!["BGPFilter racks does not exist".to_owned()], ..info() };
    let no_route = Kernel { route: None, next: None, neighbour: None, ..healthy() };
    let no_address = Kernel { source_present: Some(false), ..no_route.clone() };
    let silent =
        Kernel { neighbour: Some(Neighbour { state: State::Failed, link_address: None }), ..healthy() };
    let rung = |info: &PeerInfo, kernel: &Kernel| first(&down, info, kernel).unwrap().0;
    assert_eq!(rung(&no_secret, &no_address), "secret");
    assert_eq!(rung(&no_filter, &no_address), "filters");
    assert_eq!(rung(&info(), &no_address), "local-address");
    assert_eq!(rung(&info(), &no_route), "route");
    assert_eq!(rung(&info(), &silent), "neighbour");
    assert_eq!(rung(&info(), &healthy()), "tcp");
}

#[test]
fn an_external_peer_behind_a_router_needs_multihop() {
    let down = peer("Connect", Some(Cause::TcpTimeout), "connect: no answer");
    let routed = Path {
        shown: "10.1.0.0/24 on eth0".to_owned(),
        gateway: Some("10.9.0.1".parse().unwrap()),
        ours: false,
    };
    let kernel = Kernel { route: Some(routed), ..healthy() };
    assert!(first(&down, &info(), &kernel).unwrap().1.contains("through 10.9.0.1"));
    let mut multihop = info();
    multihop.settings.ebgp_multihop = Some(2);
    assert_eq!(first(&down, &multihop, &kernel).unwrap().0, "tcp");
}

#[test]
fn signatures_are_blamed_where_only_this_peer_can_be_meant() {
    let down = peer("Connect", Some(Cause::TcpTimeout), "connect: no answer");
    let mut signed = info();
    signed.settings.password = true;
    let unsigned = Dropped { unsigned: 4, ..Dropped::default() };
    let with = |dropped, with_key, without_key| Kernel {
        dropped,
        suspects: Suspects { with_key, without_key, near: 0 },
        ..healthy()
    };
    let (rung, text) = first(&down, &signed, &with(unsigned, 1, 0)).unwrap();
    assert_eq!(
        (rung.as_str(), text.as_str()),
        ("tcp", "TCP-MD5: peer sends unsigned segments (4 dropped within a minute)")
    );
    let wrong = Dropped { wrong_key: 2, unsigned: 1, ..Dropped::default() };
    assert!(first(&down, &signed, &with(wrong, 1, 3)).unwrap().1.contains("another key"));
    let theirs = Dropped { signed: 2, ..Dropped::default() };
    assert!(first(&down, &info(), &with(theirs, 0, 1)).unwrap().1.contains("no password is set here"));
    // Two peers that may be meant: said, and not pinned on one.
    let text = first(&down, &signed, &with(unsigned, 2, 0)).unwrap().1;
    assert!(text.contains("one of 2 peers"), "{text}");
    assert_eq!(signature_trouble(&down, true, &with(unsigned, 2, 0)), None);
    // What a peer with another setting does is not this one's fault.
    assert!(!first(&down, &info(), &with(unsigned, 1, 1)).unwrap().1.contains("MD5:"));
    // A peer whose OPEN has come has signed as it should.
    let up = peer("OpenConfirm", None, "");
    assert_eq!(signature_trouble(&up, true, &with(unsigned, 1, 0)), None);
}

#[test]
fn a_notification_is_shown_with_whom_to_ask() {
    let mut down = peer("Idle", Some(Cause::NotificationReceived), "received Cease");
    let last = |code, subcode| NotificationView {
        direction: Direction::Received,
        code,
        subcode,
        text: "Cease/Administrative Shutdown: rack B at 10:00".to_owned(),
        age: Duration::from_secs(3),
    };
    down.last_notification = Some(last(6, 2));
    let (rung, text) = first(&down, &info(), &healthy()).unwrap();
    assert_eq!(rung, "notification");
    assert!(text.contains("rack B at 10:00"));
    down.last_notification = Some(last(2, 2));
    assert_eq!(first(&down, &info(), &healthy()).unwrap().0, "open");
    // Once it is up again, what was is past.
    down.state = "Established";
    down.families = vec![family(true)];
    assert_eq!(first(&down, &info(), &healthy()), None);
}

fn family(negotiated: bool) -> manx_bgp::speaker::FamilyView {
    manx_bgp::speaker::FamilyView {
        family: manx_bgp::types::Family::Ipv4Unicast,
        negotiated,
        received: 0,
        accepted: 0,
        filtered: 0,
        stale: 0,
        advertised: 0,
        pending: 0,
        end_of_rib_received: false,
        end_of_rib_sent: false,
        reason: None,
    }
}

#[test]
fn bfd_that_is_asked_for_and_never_heard_is_named_while_the_session_is_up() {
    let mut up = peer("Established", None, "");
    up.families = vec![family(true)];
    let bfd = |state, remote_state| manx_bgp::speaker::BfdView {
        state,
        remote_state,
        age: None,
        detection_time: None,
        interval: None,
        multiplier: 3,
        flaps: 0,
        reason: None,
    };
    up.bfd = Some(bfd("Down", None));
    let (rung, text) = first(&up, &info(), &healthy()).unwrap();
    assert!(rung == "bfd" && text.starts_with("Down: nothing is heard"), "{rung}: {text}");
    up.bfd = Some(bfd("Up", Some("Up")));
    assert_eq!(first(&up, &info(), &healthy()), None);
}

#[test]
fn a_session_that_carries_nothing_is_no_success() {
    let mut up = peer("Established", None, "");
    up.families = vec![family(false)];
    let (rung, text) = first(&up, &info(), &healthy()).unwrap();
    assert_eq!((rung.as_str(), text.as_str()), ("families", "none in common: the peer does not offer ipv4"));
    up.families = vec![family(true), family(false)];
    assert_eq!(first(&up, &info(), &healthy()), None);
}

#[test]
fn a_passive_peer_that_never_came_is_waited_for() {
    let mut passive = info();
    passive.settings.passive = true;
    let waiting = peer("Active", None, "");
    assert!(first(&waiting, &passive, &healthy()).unwrap().1.starts_with("passive"));
    assert_eq!(first(&waiting, &info(), &healthy()), None, "nothing has been tried yet");
}

#[test]
fn disabled_is_the_answer_whatever_else_is_wrong() {
    let disabled = peer("Disabled", Some(Cause::AdminDown), "administratively down: optics");
    let kernel = Kernel { route: None, ..healthy() };
    assert_eq!(
        first(&disabled, &info(), &kernel).unwrap(),
        ("enabled".to_owned(), "administratively down: optics".to_owned())
    );
}

#[rstest]
#[case("10.1.0.9", &["BGPPeer tor names 10.1.0.1"])]
#[case("10.2.0.1", &["BGPPeer other names 10.2.0.1: it wants rack=b, this node has rack=a"])]
#[case("tor1", &["BGPPeer tor is written otherwise"])]
#[case("TOR", &["BGPPeer tor is written otherwise"])]
#[case("other", &["BGPPeer other names 10.2.0.1: it wants rack=b, this node has rack=a"])]
#[case("10.3.0.7", &["BGPPeer rack takes 10.3.0.0/24: that one has not connected, or not lately"])]
#[case("192.0.2.1", &[])]
fn what_nearly_is_a_peer_is_named_with_what_is_in_the_way(#[case] asked: &str, #[case] expected: &[&str]) {
    let objects = [
        object("tor", "10.1.0.1", None),
        object("other", "10.2.0.1", Some("it wants rack=b, this node has rack=a")),
        object("rack", "10.3.0.0/24", None),
    ];
    assert_eq!(nearly(asked, &objects), expected);
}
