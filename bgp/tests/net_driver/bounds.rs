//! Who floods, who does not read, who does not listen: the others notice nothing, and nothing grows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use manx_bgp::types::{Family, PeerType, Prefix};
use manx_bgp::wire::attribute::{AsPath, NextHop, Origin, PathAttributes};
use manx_bgp::wire::message::{Message, Nlri};
use manx_bgp::wire::{EncodeContext, EncodedAttributes, reach};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Node, RawPeer, asn, blocks, prefix};

/// UPDATEs of peer N for the prefixes, all over next hop 10.0.VIA.N.
fn updates(n: u8, via: u8, prefixes: impl Iterator<Item = Prefix>) -> BytesMut {
    let attributes = PathAttributes {
        origin: Origin::Igp,
        as_path: AsPath::sequence([asn(n)]),
        med: None,
        local_pref: None,
        atomic_aggregate: false,
        aggregator: None,
        communities: Default::default(),
        extended_communities: vec![],
        large_communities: vec![],
        originator_id: None,
        cluster_list: vec![],
        unknown: vec![],
    };
    let ctx = EncodeContext::modern(PeerType::External);
    let encoded = EncodedAttributes::new(&attributes, &ctx);
    let next_hop = NextHop::V4([10, 0, via, n].into());
    let mut nlri = prefixes.map(|prefix| Nlri { prefix, path_id: 0 }).peekable();
    let mut out = BytesMut::new();
    while reach(&mut out, &ctx, &encoded, next_hop, Family::Ipv4Unicast, &mut nlri).unwrap() > 0 {}
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_floods_keeps_no_other_from_its_keepalives() {
    let mut node = Node::start(71).await;
    node.set_peer(node.passive_peer(72)).await;
    node.set_peer(node.passive_peer(73)).await;
    let mut quiet = RawPeer::connect(72, node.listens).await;
    quiet.establish(3).await;
    let mut noisy = RawPeer::connect(73, node.listens).await;
    noisy.establish(90).await;
    let flood = [updates(73, 1, blocks(5000)), updates(73, 2, blocks(5000))].concat();
    let (mut unread, mut writing) = noisy.stream.into_split();
    let flood = tokio::spawn(async move { while writing.write_all(&flood).await.is_ok() {} });
    let sink = tokio::spawn(async move { while matches!(unread.read(&mut [0; 4096]).await, Ok(1..)) {} });
    let events = tokio::spawn(async move {
        loop {
            node.event().await;
        }
    });
    // Longer than the hold time: what we say and what is said to us both have to get through.
    let end = Instant::now() + Duration::from_millis(4500);
    let mut keepalives = 0;
    while Instant::now() < end {
        match quiet.message().await.expect("the session stays") {
            Message::Keepalive => {
                keepalives += 1;
                quiet.send_keepalive().await;
            }
            Message::Update(update) => {
                assert!(update.reach.is_empty(), "learned routes are not passed on by default");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(keepalives >= 3, "one a second at least, {keepalives} seen");
    flood.abort();
    sink.abort();
    events.abort();
}

#[tokio::test]
async fn a_peer_that_does_not_read_gets_everything_once_it_does() {
    let node = Node::start(74).await;
    node.set_peer(node.passive_peer(75)).await;
    let mut raw = RawPeer::connect(75, node.listens).await;
    raw.establish(90).await;
    // Far more than the two socket buffers take, each prefix in attributes of its own.
    let prefixes: Vec<_> = blocks(60_000).collect();
    let routes = prefixes.clone();
    let originate = move |speaker: &mut manx_bgp::speaker::Speaker, now| {
        for (med, prefix) in routes.into_iter().enumerate() {
            let route = manx_bgp::speaker::LocalRoute {
                med: Some(u32::try_from(med).unwrap()),
                ..manx_bgp::speaker::LocalRoute::new(prefix)
            };
            speaker.originate(now, route);
        }
    };
    node.handle.with(originate).await.unwrap();
    // The driver waits for nobody.
    node.handle.with(|_, _| ()).await.unwrap();
    let mut seen = BTreeSet::new();
    while seen.len() < prefixes.len() {
        let update = raw.update().await;
        seen.extend(update.reach.iter().flat_map(|r| r.nlri.iter().map(|n| n.prefix)));
    }
    assert!(seen.into_iter().eq(prefixes));
}

#[tokio::test]
async fn changes_that_nobody_takes_stay_one_for_each_prefix() {
    let mut node = Node::start(76).await;
    node.set_peer(node.passive_peer(77)).await;
    let mut raw = RawPeer::connect(77, node.listens).await;
    raw.establish(90).await;
    // The next hops first, with a prefix each that keeps them in use, so that the routes count.
    let (count, rounds) = (40_000, 3);
    let mut sent = 0;
    for via in 0..rounds {
        let keeper = prefix(&format!("30.0.{via}.0/24"));
        raw.send(&updates(77, via, std::iter::once(keeper))).await;
        sent += 1;
        while node.routes().await[0].prefix != keeper {}
    }
    // Each round moves every route to another next hop.
    for via in 0..rounds {
        let round = updates(77, via, blocks(count));
        sent += messages_in(&round);
        raw.send(&round).await;
    }
    // Nobody takes events; the driver reads on until all is in.
    let received =
        |speaker: &mut manx_bgp::speaker::Speaker, now| speaker.peers(now)[0].messages.received.update;
    while node.handle.with(received).await.unwrap() < sent {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut told = 0;
    let mut last = BTreeMap::new();
    let settled: std::net::IpAddr = [10, 0, rounds - 1, 77].into();
    while last.len() < count as usize || last.values().any(|gateway| *gateway != settled) {
        let changes = node.routes().await;
        told += changes.len();
        last.extend(changes.into_iter().map(|change| (change.prefix, change.next_hops[0].gateway)));
    }
    // One for each prefix, and what had been told before the queue of 64 events of 512 changes was full.
    assert!(told <= count as usize + 65 * 512, "{told} changes told");
}

/// How many messages the bytes are.
fn messages_in(mut bytes: &[u8]) -> u64 {
    let mut count = 0;
    while let Some(frame) = manx_bgp::wire::header::frame(bytes, 4096).unwrap() {
        bytes = &bytes[19 + frame.body.len()..];
        count += 1;
    }
    count
}
