//! What the OPENs say, as the other side reads them, and sessions that do without something.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::BytesMut;
use manx_bgp::speaker::{AsPathItem, LocalRoute, SpeakerConfig};
use manx_bgp::types::{Asn, Family};
use manx_bgp::wire::message::{Capability, Open};
use rstest::rstest;

use crate::eventually;
use crate::far::{Config, Far, Kind, Network, Router, Session, config, network, session};
use crate::node::{AS, Manx, graceful, peer, prefix, speaker};
use crate::rack::{Over, Rack, address};

fn manx() -> std::net::IpAddr {
    address(1, Over::V4)
}

/// Each in its own words; what a daemon does not know it does not tell.
#[rstest]
#[case::bird(Kind::Bird, "enable extended messages on;", &[
    "AF announced: ipv4 ipv6", "Route refresh", "Extended message", "Restart time: 60", "AF supported: ipv4 ipv6",
    "4-octet AS numbers", "Enhanced refresh", "Hostname: manx-1",
])]
#[case::frr(Kind::Frr, "", &[
    "\"4byteAs\":\"advertisedAndReceived\"", "\"extendedMessage\":\"advertisedAndReceived\"",
    "\"routeRefresh\":\"advertisedAndReceivedNew\"", "\"enhancedRouteRefresh\":\"advertisedAndReceived\"",
    "\"ipv4Unicast\":{\"advertisedAndReceived\":true}", "\"ipv6Unicast\":{\"advertisedAndReceived\":true}",
    "\"rcvHostName\":\"manx-1\"", "\"gracefulRestart\":\"advertisedAndReceived\"",
])]
#[case::gobgp(Kind::Gobgp, "", &[
    "ipv4-unicast:\tadvertised and received", "ipv6-unicast:\tadvertised and received",
    "route-refresh:\tadvertised and received", "4-octet-as:\tadvertised and received",
    "graceful-restart:\tadvertised and received",
])]
#[case::openbgpd(Kind::Openbgpd, "", &[
    "IPv4 unicast", "IPv6 unicast", "4-byte AS numbers", "Route Refresh", "Enhanced Route Refresh", "Graceful Restart",
])]
fn capabilities_are_read_as_they_were_meant(
    #[case] kind: Kind,
    #[case] lines: &str,
    #[case] expected: &[&str],
) {
    let rack = Rack::new(2);
    let session = Session { graceful: true, lines: lines.into(), ..session(AS) };
    let far = Far::start(&rack, 2, kind, &config(65010, session));
    let node = Manx::start(&rack, SpeakerConfig { hostname: "manx-1".into(), ..graceful(AS, false) });
    node.set_peer(peer(2, Over::V4, 65010));
    node.comes_up(2);
    far.comes_up(manx());
    let told = match kind {
        // Its JSON is laid out for people.
        Kind::Frr => far.tells(manx()).split_whitespace().collect(),
        _ => far.tells(manx()),
    };
    // Only what it says of us.
    let of_us = match kind {
        Kind::Bird | Kind::Openbgpd => told.split_once("Neighbor capabilities").expect("it tells").1,
        Kind::Frr | Kind::Gobgp => &told,
    };
    let missing: Vec<_> = expected.iter().filter(|words| !of_us.contains(**words)).collect();
    assert!(missing.is_empty(), "{kind:?} does not say {missing:?}: {told}");
    let offered = node.peer(2).capabilities.into_iter().filter(|c| c.local && c.remote);
    let both: BTreeSet<String> = offered.map(|c| c.name).collect();
    assert!(both.len() >= 4, "{both:?}");
}

/// RFC 9072: BIRD has too long a name for the 255 octets of old. Ours is as long as DNS has them, and read to its 64th octet.
#[rstest]
#[case::bird(Kind::Bird, "advertise hostname on;", "Hostname: manx-of-a-long-name.manx-of-a-long-name")]
#[case::gobgp(Kind::Gobgp, "", "name: manx-of-a-long-name.manx-of-a-long-name")]
#[case::openbgpd(Kind::Openbgpd, "", "Graceful Restart: Timeout: 60")]
fn their_capabilities_come_in_the_extended_form_and_our_long_name_is_read(
    #[case] kind: Kind,
    #[case] lines: &str,
    #[case] says: &str,
) {
    let hostname = "manx-of-a-long-name.".repeat(13)[..253].to_owned();
    let rack = Rack::new(2);
    let mut config = config(65010, Session { lines: lines.into(), graceful: true, ..session(AS) });
    if kind == Kind::Bird {
        config.extra = format!("hostname \"{}\";", hostname.replace("manx", "bird"));
    }
    let far = Far::start(&rack, 2, kind, &config);
    let node = Manx::start(&rack, SpeakerConfig { hostname, ..graceful(AS, false) });
    node.set_peer(peer(2, Over::V4, 65010));
    node.comes_up(2);
    far.comes_up(manx());
    far.says(manx(), says);
    let both = |name: &str| node.peer(2).capabilities.iter().any(|c| c.name == name && c.local && c.remote);
    assert!(both("graceful restart") && (kind != Kind::Bird || both("fqdn")));
    assert_eq!(node.peer(2).messages.faults, 0);
}

/// RFC 9072 as we write it. Manx has nothing to say that is so long, so that its encoder is given some and this test is the
/// session: each takes the OPEN, and the session comes up.
#[rstest]
#[case::bird(Kind::Bird)]
#[case::frr(Kind::Frr)]
#[case::openbgpd(Kind::Openbgpd)]
fn our_extended_form_is_understood(#[case] kind: Kind) {
    let rack = Rack::new(2);
    let far = Far::start(&rack, 2, kind, &config(65010, Session { passive: true, ..session(AS) }));
    // Experimental ones (RFC 8810), which nobody knows.
    let unknown = [240, 241].map(|code| Capability::Unknown { code, value: vec![0; 200] });
    let known = [Capability::Multiprotocol(Family::Ipv4Unicast), Capability::FourOctetAs(Asn(AS))];
    let capabilities = known.into_iter().chain(unknown).collect();
    let open =
        Open { asn: Asn(AS), hold_time: 90, router_id: speaker(AS).router_id, capabilities, extended: false };
    let mut bytes = BytesMut::new();
    open.encode(&mut bytes);
    assert_eq!(bytes[28..30], [255, 255], "the lengths of old say that another one follows");
    let _stream = eventually(|| rack.netns(1).enter(|| introduce(&bytes)).unwrap());
    far.comes_up(manx());
}

/// An FRR that is told to write the extended form reads no other: it takes the octet behind the length for the mark of that
/// form whatever the length says, finds one octet too few, and refuses our first OPEN with 2/0. The next one is in its form.
#[test]
fn a_peer_that_writes_the_extended_form_gets_it() {
    let rack = Rack::new(2);
    let lines = "extended-optional-parameters".into();
    let far = Far::start(&rack, 2, Kind::Frr, &config(65010, Session { lines, ..session(AS) }));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(peer(2, Over::V4, 65010));
    node.comes_up(2);
    far.comes_up(manx());
    node.originate(LocalRoute::new(prefix("10.200.0.0/24")));
    far.learns("10.200.0.0/24");
}

/// Sends an OPEN to member 2 from our address, and a KEEPALIVE for one that comes back.
fn introduce(open: &[u8]) -> std::io::Result<TcpStream> {
    const KEEPALIVE: u8 = 4;
    let mut stream = TcpStream::connect((address(2, Over::V4), 179))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(open)?;
    let mut header = [0; 19];
    while header[18] != KEEPALIVE {
        stream.read_exact(&mut header)?;
        let length = u16::from_be_bytes([header[16], header[17]]);
        stream.read_exact(&mut vec![0; usize::from(length) - header.len()])?;
    }
    stream.write_all(&header)?;
    Ok(stream)
}

/// RFC 4271 4.2: neither side needs a KEEPALIVE to stay.
#[rstest]
#[case::bird(Kind::Bird)]
#[case::frr(Kind::Frr)]
fn a_hold_time_of_zero_switches_both_timers_off(#[case] kind: Kind) {
    let rack = Rack::new(3);
    let far = Far::start(&rack, 2, kind, &config(65010, Session { hold: 0, ..session(AS) }));
    // A session with the shortest hold time beside it tells when enough time has passed.
    let clock = Far::start(&rack, 3, Kind::Bird, &config(65020, Session { hold: 3, ..session(AS) }));
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(peer(2, Over::V4, 65010));
    node.set_peer(peer(3, Over::V4, 65020));
    node.originate(LocalRoute::new(prefix("10.200.0.0/24")));
    far.learns("10.200.0.0/24");
    node.comes_up(2);
    clock.comes_up(manx());
    assert_eq!((node.peer(2).timers.hold_time, node.peer(2).timers.keepalive), (None, None));
    let (quiet, flaps) = (node.peer(2).messages.received.keepalive, node.peer(2).flaps);
    let ticks = node.peer(3).messages.received.keepalive;
    eventually(|| {
        let now = node.peer(3).messages.received.keepalive;
        if now > ticks + 4 { Ok(()) } else { Err(now) }
    });
    assert_eq!(node.peer(2).messages.received.keepalive, quiet);
    assert_eq!(node.peer(2).flaps, flaps);
    assert!(far.is_up(manx()) && far.route("10.200.0.0/24").is_some());
}

/// RFC 6793 with a speaker of 2 octets: AS4_PATH tells what AS_PATH cannot.
#[test]
fn the_path_of_an_old_speaker_is_put_together() {
    const BIG: u32 = 4_200_000_001;
    let rack = Rack::new(2);
    let networks = vec![Network { prepend: Some(BIG), ..network("10.210.0.0/24") }, network("10.211.0.0/24")];
    let old = Session { lines: "enable as4 off;".into(), ..session(AS) };
    let far = Far::start(&rack, 2, Kind::Bird, &Config { networks, ..config(65010, old) });
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(peer(2, Over::V4, 65010));
    node.originate(LocalRoute::new(prefix("10.200.0.0/24")));
    assert_eq!(node.learns("10.210.0.0/24").as_path, [65010, BIG].map(|asn| AsPathItem::Asn(Asn(asn))));
    assert_eq!(node.learns("10.211.0.0/24").as_path, [AsPathItem::Asn(Asn(65010))]);
    assert_eq!(far.learns("10.200.0.0/24").as_path, AS.to_string());
    assert_eq!(node.peer(2).messages.faults, 0);
}

/// RFC 8654: a route whose communities alone are longer than 4096 octets, to a peer that takes it and to one that does not.
#[rstest]
#[case::bird(Kind::Bird, "enable extended messages on;")]
#[case::frr(Kind::Frr, "")]
fn long_attributes_travel_in_extended_messages(#[case] kind: Kind, #[case] lines: &str) {
    let rack = Rack::new(3);
    let far = Far::start(&rack, 2, kind, &config(65010, Session { lines: lines.into(), ..session(AS) }));
    let short = Far::start(&rack, 3, Kind::Bird, &config(65020, session(AS)));
    let node = Manx::start(&rack, speaker(AS));
    let communities: Vec<u32> = (0..1100).map(|n| 64999 << 16 | n).collect();
    node.originate(LocalRoute { communities, ..LocalRoute::new(prefix("10.200.0.0/24")) });
    node.originate(LocalRoute::new(prefix("10.201.0.0/24")));
    node.set_peer(peer(2, Over::V4, 65010));
    node.set_peer(peer(3, Over::V4, 65020));
    far.learns("10.200.0.0/24");
    // Neither prints so many: they are asked for the first and the last.
    for community in [0, 1099] {
        let shown = match &far.router {
            Router::Bird(bird) => bird.ask(&format!("show route where (64999,{community}) ~ bgp_community")),
            Router::Frr(frr) => frr.ask(&format!("show bgp ipv4 unicast community 64999:{community}")),
            _ => panic!("no case"),
        };
        let shown = shown.unwrap();
        assert!(shown.contains("10.200.0.0/24"), "{kind:?} lacks 64999:{community}: {shown}");
    }
    short.learns("10.201.0.0/24");
    assert_eq!(short.route("10.200.0.0/24"), None, "it does not fit, and the session lives");
    far.learns("10.201.0.0/24");
    assert!(short.is_up(manx()));
}
