//! Peers that send what they must not, or nothing, and those that are nobody's peer.

use std::net::SocketAddr;

use manx_bgp::wire::message::{Message, Notification};
use rstest::rstest;
use tokio::io::AsyncReadExt;

use crate::support::{Node, PATIENCE, RawPeer, asn, loopback, prefix};
use crate::table::message;

#[rstest]
#[case::not_bgp(31, b"GET / HTTP/1.1\r\n\r\n".to_vec(), (1, 1))]
#[case::a_length_beyond_4096(32, [&[0xff; 16][..], &[0x20, 0, 1]].concat(), (1, 2))]
#[case::an_unknown_type(33, message(9, &[]), (1, 3))]
#[case::another_version(34, message(1, &[5, 0xfd, 0xe9, 0, 90, 10, 0, 0, 1, 0]), (2, 1))]
#[case::another_as(35, message(1, &[4, 0x12, 0x34, 0, 90, 10, 0, 0, 1, 0]), (2, 2))]
#[case::no_identifier(36, message(1, &[4, 0xfe, 0x0c, 0, 90, 0, 0, 0, 0, 0]), (2, 3))]
#[case::a_hold_time_of_1(37, message(1, &[4, 0xfe, 0x0d, 0, 1, 10, 0, 0, 1, 0]), (2, 6))]
#[case::an_update_before_the_open(38, message(2, &[0, 0, 0, 0]), (5, 1))]
#[tokio::test]
async fn what_is_wrong_is_answered_with_its_notification(
    #[case] n: u8,
    #[case] bytes: Vec<u8>,
    #[case] (code, subcode): (u8, u8),
) {
    let node = Node::start(30 + 20 + (n - 30)).await;
    node.set_peer(node.passive_peer(n)).await;
    let mut raw = RawPeer::connect(n, node.listens).await;
    raw.send(&bytes).await;
    let Notification { code: got, subcode: got_subcode, .. } = raw.notification_and_end().await;
    assert_eq!((got, got_subcode), (code, subcode));
}

#[tokio::test]
async fn a_broken_update_resets_the_session_and_takes_its_routes_along() {
    let mut node = Node::start(60).await;
    node.set_peer(node.passive_peer(61)).await;
    let mut raw = RawPeer::connect(61, node.listens).await;
    raw.establish(90).await;
    let asn = asn(61).0.to_be_bytes();
    let attributes = [&[0x40, 1, 1, 0, 0x40, 2, 6, 2, 1][..], &asn, &[0x40, 3, 4, 10, 0, 0, 61]].concat();
    let announce = |nlri: &[u8]| {
        let len = u16::try_from(attributes.len()).unwrap().to_be_bytes();
        message(2, &[&[0, 0][..], &len, &attributes, nlri].concat())
    };
    raw.send(&announce(&[24, 20, 5, 0])).await;
    assert_eq!(node.routes().await[0].prefix, prefix("20.5.0.0/24"));
    raw.send(&announce(&[33, 20, 5, 0, 0, 0])).await;
    assert_eq!(node.routes().await[0].next_hops.len(), 0, "withdrawn");
    let notification = raw.notification_and_end().await;
    assert_eq!((notification.code, notification.subcode), (3, 10));
}

#[tokio::test]
async fn a_peer_that_sends_a_message_too_slowly_loses_its_session_to_the_hold_timer() {
    let node = Node::start(62).await;
    node.set_peer(node.passive_peer(63)).await;
    let mut raw = RawPeer::connect(63, node.listens).await;
    raw.establish(3).await;
    // One octet after the other of a message that never ends: bytes alone keep no session alive.
    let (mut reading, writing) = raw.stream.into_split();
    let trickle = async move {
        for octet in message(2, &[0; 4000]) {
            if writing.writable().await.is_err() || writing.try_write(&[octet]).is_err() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut received = Vec::new();
    tokio::select! {
        () = trickle => {}
        end = tokio::time::timeout(PATIENCE, reading.read_to_end(&mut received)) => { end.unwrap().unwrap(); }
    }
    assert!(received.ends_with(&message(3, &[4, 0])), "Hold Timer Expired is the last word");
}

#[tokio::test]
async fn a_stranger_is_refused_at_once_and_disturbs_nobody() {
    let mut node = Node::start(64).await;
    node.set_peer(node.passive_peer(65)).await;
    let mut raw = RawPeer::connect(65, node.listens).await;
    raw.establish(90).await;
    node.peer_enters("Established").await;
    for _ in 0..200 {
        let mut stranger = RawPeer::connect(66, node.listens).await;
        let mut nothing = Vec::new();
        // The end, or a reset if our bytes crossed it: never a byte.
        let _ = tokio::time::timeout(PATIENCE, stranger.stream.read_to_end(&mut nothing)).await.unwrap();
        assert!(nothing.is_empty());
    }
    node.originate([prefix("20.6.0.0/24")]).await;
    assert_eq!(raw.update().await.reach[0].nlri[0].prefix, prefix("20.6.0.0/24"));
}

/// Connections of a listener that somebody holds a descriptor of: those that are only the kernel's have no inode.
fn held(listener: SocketAddr) -> usize {
    let SocketAddr::V4(address) = listener else { panic!("{listener} is not of IPv4") };
    let ip = u32::from_ne_bytes(address.ip().octets());
    let local = format!("{ip:08X}:{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // 0A: the listener itself.
    rows.filter(|row| row[1] == local && row[3] != "0A" && row[9] != "0").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_strangers_cost_no_descriptors_and_no_keepalive() {
    let node = Node::start(120).await;
    node.set_peer(node.passive_peer(121)).await;
    let mut friend = RawPeer::connect(121, node.listens).await;
    friend.establish(3).await;
    let listens = node.listens;
    let crowd = tokio::spawn(async move {
        for _ in 0..100 {
            let wave = (0..100).map(|_| async move {
                let mut stranger = RawPeer::connect(122, listens).await;
                // The end, or a reset: never a byte.
                matches!(stranger.stream.read(&mut [0; 64]).await, Ok(0) | Err(_))
            });
            assert!(futures_all(wave).await);
        }
    });
    let mut keepalives = 0;
    while !crowd.is_finished() || keepalives == 0 {
        // Every message comes well within the hold time, or the far side would have given us up.
        match tokio::time::timeout(std::time::Duration::from_secs(3), friend.message()).await {
            Ok(Some(Message::Keepalive)) => {
                keepalives += 1;
                friend.send_keepalive().await;
            }
            Ok(Some(Message::Update(_))) => {}
            other => panic!("{other:?}"),
        }
    }
    crowd.await.unwrap();
    assert_eq!(held(listens), 1, "the friend's");
}

async fn futures_all(wave: impl Iterator<Item = impl Future<Output = bool> + Send + 'static>) -> bool {
    let tasks: Vec<_> = wave.map(tokio::spawn).collect();
    let mut all = true;
    for task in tasks {
        all &= task.await.unwrap();
    }
    all
}

#[tokio::test]
async fn a_peer_that_connects_again_and_again_holds_few_descriptors() {
    let node = Node::start(123).await;
    node.set_peer(node.passive_peer(124)).await;
    // None of them reads what it is told or closes its side.
    let mut open = Vec::new();
    for _ in 0..200 {
        open.push(RawPeer::connect(124, node.listens).await);
    }
    // The last one has its OPEN, so that the driver has seen them all.
    let mut last = open.pop().unwrap();
    assert!(matches!(last.message().await, Some(Message::Open(_))));
    // Two that compete, and eight on their way out. A socket goes with the last turn of the driver that speaks of it.
    let few = async {
        while held(node.listens) > 10 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(1), few)
        .await
        .expect("few are held, long before they time out");
    drop(open);
    last.establish_from_open().await;
}

#[tokio::test]
async fn a_peer_that_refuses_every_open_is_dialled_more_and_more_seldom() {
    let listener = tokio::net::TcpListener::bind(SocketAddr::new(loopback(126), 0)).await.unwrap();
    let node = Node::start(125).await;
    node.set_peer(node.peer(126, listener.local_addr().unwrap().port())).await;
    let mut dials = Vec::new();
    for _ in 0..4 {
        let (stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        dials.push(std::time::Instant::now());
        let mut raw = RawPeer::from_stream(126, stream);
        assert!(matches!(raw.message().await, Some(Message::Open(_))));
        raw.send(&message(3, &[2, 2])).await;
    }
    // 1 s, 2 s and 4 s, less a quarter of jitter at most.
    let waits: Vec<_> = dials.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
    for (wait, least) in waits.iter().zip([0.75, 1.5, 3.0]) {
        assert!(*wait >= least, "{waits:?}");
    }
}
