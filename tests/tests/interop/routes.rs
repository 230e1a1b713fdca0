//! Routes over one session: both families, both directions, every attribute that means something, and their end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use manx_bgp::speaker::{AsPathItem, LocalRoute, Reset};
use manx_bgp::types::Asn;
use manx_bgp::wire::attribute::LargeCommunity;
use rstest::rstest;

use crate::eventually;
use crate::far::{Config, Far, Kind, Network, Seen, Session, config, network, session};
use crate::node::{AS, Manx, graceful, peer, prefix, speaker};
use crate::rack::{Over, Rack, address};

/// Beyond two octets: the OPEN says 23456 where an old speaker would look.
const BIG_AS: u32 = 4_200_000_001;
const BIG_FAR_AS: u32 = 4_200_065_010;

const OURS: [&str; 2] = ["10.200.0.0/24", "fd00:200::/64"];
const THEIRS: [&str; 2] = ["10.210.0.0/24", "fd00:210::/64"];

fn set<const N: usize>(words: [&str; N]) -> BTreeSet<String> {
    words.map(str::to_owned).into()
}

fn our_route(text: &str) -> LocalRoute {
    LocalRoute {
        communities: vec![64512 << 16 | 7],
        large_communities: vec![LargeCommunity { global: BIG_AS, local1: 1, local2: 2 }],
        med: Some(50),
        local_pref: Some(250),
        ..LocalRoute::new(prefix(text))
    }
}

fn their_route(text: &str) -> Network {
    Network { med: Some(70), community: Some("64999:9"), large_community: Some("65010:3:4"), ..network(text) }
}

/// The next hops of both families as member `n` gives them, without link-local ones.
fn is_of(n: u8, text: &str, next_hops: &BTreeSet<IpAddr>) -> bool {
    let over = if text.contains(':') { Over::V6 } else { Over::V4 };
    let is_link_local = |a: &IpAddr| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
    next_hops.iter().filter(|a| !is_link_local(a)).eq([&address(n, over)])
}

#[rstest]
fn one_external_session_carries_both_families_both_ways(
    #[values(Kind::Bird, Kind::Frr, Kind::Gobgp, Kind::Openbgpd)] kind: Kind,
    #[values(Over::V4, Over::V6)] over: Over,
) {
    let rack = Rack::new(2);
    let far = Far::start(
        &rack,
        2,
        kind,
        &Config {
            networks: THEIRS.map(their_route).to_vec(),
            ..config(BIG_FAR_AS, Session { over, graceful: true, ..session(BIG_AS) })
        },
    );
    let node = Manx::start(&rack, graceful(BIG_AS, false));
    node.set_peer(peer(2, over, BIG_FAR_AS));
    OURS.into_iter().for_each(|text| node.originate(our_route(text)));
    let manx = address(1, over);
    far.comes_up(manx);

    for text in OURS {
        let seen = far.learns(text);
        assert_eq!(seen.as_path, BIG_AS.to_string(), "{text}");
        assert!(is_of(1, text, &seen.next_hops), "{text}: {seen:?}");
        assert_eq!(seen.med, Some(50), "{text}");
        assert_ne!(seen.local_pref, Some(250), "LOCAL_PREF stays inside an AS");
        assert_eq!(seen.communities, set(["64512:7"]), "{text}");
        assert_eq!(seen.large_communities, set([&format!("{BIG_AS}:1:2")]), "{text}");
    }
    for text in THEIRS {
        let route = node.learns(text);
        assert_eq!(route.as_path, [AsPathItem::Asn(Asn(BIG_FAR_AS))]);
        assert!(is_of(2, text, &route.next_hop.into_iter().collect()), "{text}: {route:?}");
        assert_eq!((route.med, route.local_pref), (Some(70), Some(100)), "{text}");
        assert_eq!(route.communities, ["64999:9"]);
        assert_eq!(route.large_communities, ["65010:3:4"]);
    }
    for family in node.peer(2).families {
        assert!(family.end_of_rib_sent, "{family:?}");
        // FRR sends it to those only that do graceful restart.
        eventually(|| {
            if node.peer(2).families.iter().all(|f| f.end_of_rib_received) {
                Ok(())
            } else {
                Err(node.peer(2))
            }
        });
    }

    // Two sides that dial at once may lose a session before the one that stays.
    let flaps = node.peer(2).flaps;

    // RFC 2918, both ways.
    if kind != Kind::Gobgp {
        let sent = node.peer(2).messages.sent.update;
        far.refresh(manx);
        eventually(|| {
            let now = node.peer(2).messages.sent.update;
            if now >= sent + 2 {
                Ok(())
            } else {
                Err(format!("{now} UPDATEs sent, {sent} before the request"))
            }
        });
    }
    let received = node.peer(2).messages.received.update;
    node.with(|speaker, now| speaker.reset(now, "n2", Reset::SoftIn));
    eventually(|| {
        let now = node.peer(2).messages.received.update;
        // OpenBGPD 7.7 counts the requests and sends nothing, whoever asks.
        let asked =
            kind == Kind::Openbgpd && far.tells(manx).contains("Request                  2          2");
        if asked || now >= received + 2 {
            Ok(())
        } else {
            Err(format!("{now} UPDATEs received, {received} before; {}", far.tells(manx)))
        }
    });

    for text in OURS {
        assert!(far.route(text).is_some(), "a refresh takes nothing away");
        node.withdraw(prefix(text));
        far.loses(text);
    }
    assert!(far.is_up(manx));
    assert_eq!(node.peer(2).flaps, flaps);
    assert_eq!(node.peer(2).messages.faults, 0, "nothing malformed on the way");
}

/// RFC 4271 5.1.5: inside an AS LOCAL_PREF goes along and the path stays empty.
#[rstest]
fn one_internal_session_carries_both_families_both_ways(
    #[values(Kind::Bird, Kind::Frr, Kind::Gobgp, Kind::Openbgpd)] kind: Kind,
    #[values(Over::V4, Over::V6)] over: Over,
) {
    let rack = Rack::new(2);
    let networks = THEIRS.map(|text| Network { local_pref: Some(222), ..their_route(text) }).to_vec();
    let far = Far::start(&rack, 2, kind, &Config { networks, ..config(AS, Session { over, ..session(AS) }) });
    let node = Manx::start(&rack, speaker(AS));
    node.set_peer(peer(2, over, AS));
    OURS.into_iter().for_each(|text| node.originate(our_route(text)));
    for text in OURS {
        let Seen { as_path, next_hops, med, local_pref, .. } = far.learns(text);
        assert_eq!((as_path.as_str(), med, local_pref), ("", Some(50), Some(250)), "{text}");
        assert!(is_of(1, text, &next_hops), "{text}: {next_hops:?}");
    }
    for text in THEIRS {
        let route = node.learns(text);
        assert_eq!((route.as_path.len(), route.med, route.local_pref), (0, Some(70), Some(222)), "{text}");
        assert!(is_of(2, text, &route.next_hop.into_iter().collect()), "{text}: {route:?}");
    }
    for text in OURS {
        node.withdraw(prefix(text));
        far.loses(text);
    }
    assert_eq!(node.peer(2).messages.faults, 0);
}
