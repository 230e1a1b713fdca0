//! Two drivers with each other, and how a driver comes and goes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use manx_bgp::net::{self, Event, NetConfig, Shutdown};
use manx_bgp::speaker::SpeakerConfig;
use manx_bgp::types::RouterId;
use manx_bgp::wire::attribute::NextHop;

use crate::support::{Node, RawPeer, asn, interface_of, loopback, prefix};

/// Two nodes that know each other.
async fn pair(a: u8, b: u8) -> (Node, Node) {
    let (a, b) = (Node::start(a).await, Node::start(b).await);
    a.set_peer(a.peer(b.n, b.listens.port())).await;
    b.set_peer(b.peer(a.n, a.listens.port())).await;
    (a, b)
}

#[tokio::test]
async fn two_speakers_exchange_routes_of_both_families() {
    let (mut a, mut b) = pair(11, 12).await;
    a.originate([prefix("20.1.0.0/24"), prefix("fd20:1::/48")]).await;
    b.originate([prefix("20.2.0.0/24")]).await;
    a.peer_enters("Established").await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(b.routes().await);
    }
    seen.sort_by_key(|change| change.prefix);
    let shown: Vec<_> = seen.iter().map(|c| format!("{} via {}", c.prefix, c.next_hops[0].gateway)).collect();
    assert_eq!(shown, ["20.1.0.0/24 via 10.0.0.11", "fd20:1::/48 via fd00::11"]);
    assert_eq!(a.routes().await[0].next_hops[0].gateway.to_string(), "10.0.0.12");

    a.handle.send(|speaker, now| speaker.withdraw(now, prefix("20.1.0.0/24")));
    let gone = b.routes().await;
    assert_eq!((gone[0].prefix, gone[0].next_hops.len()), (prefix("20.1.0.0/24"), 0));
}

#[tokio::test]
async fn a_driver_that_stops_silently_comes_back_on_the_same_port() {
    let (mut a, b) = pair(13, 14).await;
    a.peer_enters("Established").await;
    let port = b.listens.port();
    b.handle.shutdown(Shutdown::Silent).await;
    let reason = a.peer_enters("Active").await;
    assert!(reason.starts_with("connection lost"), "{reason}");
    let b = Node::start_at(b.n, port).await;
    b.set_peer(b.peer(a.n, a.listens.port())).await;
    a.peer_enters("Established").await;
}

#[tokio::test]
async fn dropping_the_last_handle_closes_without_a_notification() {
    let mut node = Node::start(15).await;
    node.set_peer(node.passive_peer(16)).await;
    let mut raw = RawPeer::connect(16, node.listens).await;
    raw.establish(90).await;
    // By then our last KEEPALIVE is read; unread bytes would make the end a reset.
    node.peer_enters("Established").await;
    drop(node);
    while let Some(message) = raw.message().await {
        assert!(!matches!(message, manx_bgp::wire::message::Message::Notification(_)), "{message:?}");
    }
}

#[tokio::test]
async fn an_orderly_stop_tells_the_peer_why_even_if_it_has_not_read_for_a_while() {
    let node = Node::start(17).await;
    node.set_peer(node.passive_peer(18)).await;
    let mut raw = RawPeer::connect(18, node.listens).await;
    raw.establish(90).await;
    // Bytes that nobody will read any more must not turn the end into a reset.
    for _ in 0..100 {
        raw.send_keepalive().await;
    }
    let handle = node.handle.clone();
    let stop = tokio::spawn(async move { handle.shutdown(Shutdown::Cease("rack is moved".into())).await });
    let notification = raw.notification_and_end().await;
    assert_eq!(notification.to_string(), "Cease/Administrative Shutdown: rack is moved");
    drop(raw);
    stop.await.unwrap();
    assert!(node.handle.with(|_, _| ()).await.is_err(), "a stopped driver says so");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_peer_that_never_reads() {
    let node = Node::start(19).await;
    node.set_peer(node.passive_peer(20)).await;
    let mut raw = RawPeer::connect(20, node.listens).await;
    raw.establish(90).await;
    node.handle.shutdown(Shutdown::Cease("bye".into())).await;
    assert!(node.handle.with(|_, _| ()).await.is_err());
}

#[tokio::test]
async fn a_port_that_is_taken_is_reported_and_used_when_it_is_free() {
    let taken = std::net::TcpListener::bind("127.0.0.21:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = NetConfig { listen: vec![address], interfaces: Arc::new(|_| interface_of(21)), paths: None };
    let speaker = SpeakerConfig::new(asn(21), RouterId::new([10, 0, 0, 21].into()).unwrap());
    let (_handle, mut events) = net::spawn(config, speaker).unwrap();
    let Some(Event::ListenFailed { address: failed, reason }) = events.recv().await else {
        panic!("the port is taken")
    };
    assert_eq!(failed, address);
    assert!(reason.contains("taken by another program"), "{reason}");
    drop(taken);
    loop {
        match events.recv().await.unwrap() {
            Event::Listening(at) => return assert_eq!(at, address),
            Event::ListenFailed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn listeners_can_be_moved_while_sessions_stay() {
    let mut node = Node::start(22).await;
    node.set_peer(node.passive_peer(23)).await;
    let mut raw = RawPeer::connect(23, node.listens).await;
    raw.establish(90).await;
    node.handle.set_listen(vec![SocketAddr::new(loopback(24), 0)]);
    let moved = loop {
        if let Event::Listening(at) = node.event().await {
            break at;
        }
    };
    assert_eq!(moved.ip(), loopback(24));
    assert!(tokio::net::TcpStream::connect(node.listens).await.is_err(), "the old place is closed");
    node.originate([prefix("20.3.0.0/24")]).await;
    assert_eq!(raw.update().await.reach[0].nlri[0].prefix, prefix("20.3.0.0/24"));
}

#[tokio::test]
async fn changed_interface_addresses_are_advertised_as_the_new_next_hop() {
    let addresses = Arc::new(Mutex::new(interface_of(25)));
    let shared = addresses.clone();
    let config = NetConfig {
        listen: vec![SocketAddr::new(loopback(25), 0)],
        interfaces: Arc::new(move |_| shared.lock().unwrap().clone()),
        paths: None,
    };
    let speaker = SpeakerConfig::new(asn(25), RouterId::new([10, 0, 0, 25].into()).unwrap());
    let (handle, mut events) = net::spawn(config, speaker).unwrap();
    let Some(Event::Listening(listens)) = events.recv().await else { panic!("not listening") };
    let node = Node { n: 25, handle, events, listens };
    node.set_peer(node.passive_peer(26)).await;
    node.originate([prefix("20.4.0.0/24")]).await;
    let mut raw = RawPeer::connect(26, node.listens).await;
    raw.establish(90).await;
    let sent = |next_hop: [u8; 4]| NextHop::V4(next_hop.into());
    assert_eq!(raw.update().await.reach[0].next_hop, sent([10, 0, 0, 25]));
    addresses.lock().unwrap().ipv4 = Some([10, 9, 9, 9].into());
    node.handle.refresh_endpoints();
    assert_eq!(raw.update().await.reach[0].next_hop, sent([10, 9, 9, 9]));
}
