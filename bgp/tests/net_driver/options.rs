//! TCP MD5 and GTSM, on the loopback interface. A kernel without TCP MD5 must be named as the reason.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use manx_bgp::net::sockopt::{set_md5, set_min_ttl};
use manx_bgp::speaker::{PeerConfig, PeerRange, RemoteAs, Secret};
use socket2::{Domain, Socket, Type};
use tokio::time::timeout;

use crate::support::{Node, RawPeer, loopback, prefix};

/// A connection attempt that the kernel drops is seen by nothing happening.
const NOTHING_HAPPENS: Duration = Duration::from_millis(700);

fn socket(n: u8) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(loopback(n), 0).into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Whether the kernel has TCP MD5; if not, that is what the error says.
fn kernel_has_md5() -> bool {
    match set_md5(&socket(90), loopback(91), None, Some(b"key")) {
        Ok(()) => true,
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Unsupported);
            assert!(e.to_string().contains("CONFIG_TCP_MD5SIG"));
            false
        }
    }
}

fn with_key(config: PeerConfig, key: &str) -> PeerConfig {
    PeerConfig { password: Some(Secret(key.into())), ..config }
}

#[tokio::test]
async fn a_listener_takes_only_connections_with_the_right_key() {
    if !kernel_has_md5() {
        return;
    }
    let node = Node::start(81).await;
    node.set_peer(with_key(node.passive_peer(82), "right")).await;
    for key in [None, Some("wrong")] {
        let socket = socket(82);
        if let Some(key) = key {
            set_md5(&socket, node.listens.ip(), None, Some(key.as_bytes())).unwrap();
        }
        let attempt = timeout(NOTHING_HAPPENS, RawPeer::connect_with(82, socket, node.listens)).await;
        assert!(attempt.is_err(), "{key:?} is not answered");
    }
    let good = socket(82);
    set_md5(&good, node.listens.ip(), None, Some(b"right")).unwrap();
    let mut raw = RawPeer::connect_with(82, good, node.listens).await.unwrap();
    raw.establish(90).await;
}

#[tokio::test]
async fn a_changed_key_holds_for_the_next_connection_and_a_removed_one_for_none() {
    if !kernel_has_md5() {
        return;
    }
    let mut node = Node::start(83).await;
    node.set_peer(with_key(node.passive_peer(84), "old")).await;
    node.set_peer(with_key(node.passive_peer(84), "new")).await;
    let old = socket(84);
    set_md5(&old, node.listens.ip(), None, Some(b"old")).unwrap();
    assert!(timeout(NOTHING_HAPPENS, RawPeer::connect_with(84, old, node.listens)).await.is_err());
    let new = socket(84);
    set_md5(&new, node.listens.ip(), None, Some(b"new")).unwrap();
    let mut raw = RawPeer::connect_with(84, new, node.listens).await.unwrap();
    raw.establish(90).await;
    node.set_peer(node.passive_peer(84)).await;
    let notification = raw.notification_and_end().await;
    assert_eq!((notification.code, notification.subcode), (6, 6), "other configuration change");
    node.peer_enters("Active").await;
    RawPeer::connect(84, node.listens).await.establish(90).await;
}

/// Two peers from the range with its key; one without it and one from outside are not answered.
#[tokio::test]
async fn peers_come_from_a_listen_range_with_its_key() {
    if !kernel_has_md5() {
        return;
    }
    let node = Node::start(110).await;
    let template = with_key(PeerConfig::new("any", loopback(0), RemoteAs::External), "range");
    let range = PeerRange { name: "rack".into(), range: prefix("127.0.0.112/29"), max_peers: 8, template };
    node.handle.with(move |s, now| s.set_range(now, range)).await.unwrap();
    let mut sessions = Vec::new();
    for n in [112, 113] {
        let socket = socket(n);
        set_md5(&socket, node.listens.ip(), None, Some(b"range")).unwrap();
        let mut raw = RawPeer::connect_with(n, socket, node.listens).await.unwrap();
        raw.establish(90).await;
        sessions.push(raw);
    }
    let bare = timeout(NOTHING_HAPPENS, RawPeer::connect_with(114, socket(114), node.listens)).await;
    assert!(bare.is_err(), "no key, no answer");
    let mut outside = RawPeer::connect(111, node.listens).await;
    assert_eq!(outside.message().await, None, "the range ends before it");
    let names = node.handle.with(|s, now| s.peers(now).into_iter().map(|v| v.name).collect::<Vec<_>>()).await;
    assert_eq!(names.unwrap(), ["rack@127.0.0.112", "rack@127.0.0.113"]);
    // Another key for the range is one for the sessions that it has.
    node.handle
        .with(|s, now| {
            let template = with_key(PeerConfig::new("any", loopback(0), RemoteAs::External), "new");
            let range =
                PeerRange { name: "rack".into(), range: prefix("127.0.0.112/29"), max_peers: 8, template };
            s.set_range(now, range);
        })
        .await
        .unwrap();
    for raw in &mut sessions {
        set_md5(&raw.stream, node.listens.ip(), None, Some(b"new")).unwrap();
    }
    node.originate([prefix("20.1.0.0/24")]).await;
    for raw in &mut sessions {
        assert_eq!(raw.update().await.reach[0].nlri[0].prefix, prefix("20.1.0.0/24"));
    }
}

/// The session lasts while one side has the new key and the other the old one, and what is said then arrives after.
#[tokio::test]
async fn a_key_changes_on_both_sides_without_a_new_session() {
    if !kernel_has_md5() {
        return;
    }
    let (mut a, mut b) = (Node::start(101).await, Node::start(102).await);
    let of_a = PeerConfig {
        hold_time: manx_bgp::types::HoldTime::from_wire(90).unwrap(),
        ..a.peer(102, b.listens.port())
    };
    let of_b = PeerConfig { passive: true, hold_time: of_a.hold_time, ..b.peer(101, a.listens.port()) };
    a.set_peer(with_key(of_a.clone(), "old")).await;
    b.set_peer(with_key(of_b.clone(), "old")).await;
    a.peer_enters("Established").await;
    b.peer_enters("Established").await;
    a.set_peer(with_key(of_a, "new")).await;
    a.originate([prefix("20.1.0.0/24")]).await;
    let early = timeout(NOTHING_HAPPENS, b.routes()).await;
    assert!(early.is_err(), "signed with a key that is not known yet: {early:?}");
    b.set_peer(with_key(of_b, "new")).await;
    let change = b.routes().await.remove(0);
    assert_eq!(change.prefix, prefix("20.1.0.0/24"));
    for node in [&a, &b] {
        let flaps = node.handle.with(|s, now| s.peers(now).remove(0).flaps).await.unwrap();
        assert_eq!(flaps, 0);
    }
    // The next connection has the new key, too.
    a.handle.with(|s, now| s.reset(now, "peer-102", manx_bgp::speaker::Reset::Hard)).await.unwrap();
    a.peer_enters("Established").await;
}

#[tokio::test]
async fn two_speakers_with_the_same_key_establish() {
    if !kernel_has_md5() {
        return;
    }
    let (mut a, b) = (Node::start(85).await, Node::start(86).await);
    a.set_peer(with_key(a.peer(86, b.listens.port()), "s3cret")).await;
    b.set_peer(with_key(b.peer(85, a.listens.port()), "s3cret")).await;
    a.peer_enters("Established").await;
}

#[tokio::test]
async fn a_key_for_a_prefix_holds_for_all_its_addresses() {
    if !kernel_has_md5() {
        return;
    }
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::new(loopback(87), 0).into()).unwrap();
    set_md5(&listener, [127, 0, 0, 0].into(), Some(8), Some(b"range")).unwrap();
    listener.listen(8).unwrap();
    let at = listener.local_addr().unwrap().as_socket().unwrap();
    let good = socket(88);
    set_md5(&good, at.ip(), None, Some(b"range")).unwrap();
    RawPeer::connect_with(88, good, at).await.unwrap();
    let bare = timeout(NOTHING_HAPPENS, RawPeer::connect_with(89, socket(89), at)).await;
    assert!(bare.is_err(), "no key, no answer");
}

#[tokio::test]
async fn rfc5082_two_speakers_with_ttl_security_establish() {
    let (mut a, b) = (Node::start(92).await, Node::start(93).await);
    a.set_peer(PeerConfig { ttl_security: true, ..a.peer(93, b.listens.port()) }).await;
    b.set_peer(PeerConfig { ttl_security: true, ..b.peer(92, a.listens.port()) }).await;
    a.peer_enters("Established").await;
}

/// A socket that sends with this TTL, and takes only packets that no router has touched.
fn distant(n: u8, ttl: u32) -> Socket {
    let socket = socket(n);
    socket.set_ttl_v4(ttl).unwrap();
    set_min_ttl(&socket, false, 255).unwrap();
    socket
}

#[tokio::test]
async fn rfc5082_a_connection_from_further_away_is_not_answered() {
    let node = Node::start(94).await;
    node.set_peer(PeerConfig { ttl_security: true, ..node.passive_peer(95) }).await;
    let far = timeout(NOTHING_HAPPENS, RawPeer::connect_with(95, distant(95, 64), node.listens)).await;
    assert!(far.is_err(), "the SYN is not heard");
    let mut near = RawPeer::connect_with(95, distant(95, 255), node.listens).await.unwrap();
    near.establish(90).await;
}

#[tokio::test]
async fn rfc5082_beside_other_peers_a_session_from_further_away_does_not_come_up() {
    let mut node = Node::start(96).await;
    node.set_peer(PeerConfig { ttl_security: true, ..node.passive_peer(97) }).await;
    node.set_peer(node.passive_peer(98)).await;
    RawPeer::connect(98, node.listens).await.establish(90).await;
    node.peer_enters("Established").await;
    let mut far = RawPeer::connect_with(97, distant(97, 64), node.listens).await.unwrap();
    let up = async {
        far.establish(90).await;
        node.peer_enters("Established").await
    };
    assert!(timeout(NOTHING_HAPPENS, up).await.is_err());
}
