//! What holds after any history: the state depends on what is said now and not on how it came about, peers believe what
//! we think they believe, and nothing is left behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use manx_bgp::filter::*;
use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::attribute::*;
use manx_bgp::wire::message::*;
use proptest::prelude::*;

use crate::bench::*;

/// Peers that speak: two external ones of one AS, one of another, an internal one and a reflection client.
const SPEAKERS: [(&str, u32); 5] =
    [("10.0.0.2", 65001), ("10.0.0.3", 65001), ("10.0.0.4", 65002), ("10.0.0.5", 64512), ("10.0.0.6", 64512)];
/// Peers that only listen: an external one and a reflection client, both with everything exported.
const LISTENERS: [(&str, u32); 2] = [("10.0.0.8", 65008), ("10.0.0.9", 64512)];
const PREFIXES: [&str; 6] =
    ["10.9.0.0/16", "10.9.1.0/24", "10.8.0.0/16", "10.244.0.0/16", "fd09::/48", "fd08::/48"];

/// A route as a choice of small numbers: enough to make every step of the decision decide somewhere.
#[derive(Clone, Debug)]
struct Said {
    length: usize,
    origin: u8,
    med: u8,
    preference: u8,
    hop: u8,
    community: u8,
}

fn said() -> impl Strategy<Value = Said> {
    (1usize..3, 0u8..2, 0u8..3, 0u8..3, 0u8..3, 0u8..4).prop_map(
        |(length, origin, med, preference, hop, community)| Said {
            length,
            origin,
            med,
            preference,
            hop,
            community,
        },
    )
}

impl Said {
    fn attributes(&self, asn: u32) -> PathAttributes {
        let path: Vec<u32> = match asn {
            64512 => vec![65100; self.length - 1],
            asn => std::iter::once(asn).chain(vec![65100; self.length - 1]).collect(),
        };
        let mut set = attributes(&path);
        set.origin = if self.origin == 0 { Origin::Igp } else { Origin::Incomplete };
        set.med = (self.med > 0).then_some(self.med.into());
        set.local_pref = (asn == 64512).then(|| 100 + u32::from(self.preference) / 2);
        // NO_EXPORT, NO_ADVERTISE, GRACEFUL_SHUTDOWN or none.
        let known = [0xFFFF_FF01, 0xFFFF_FF02, 0xFFFF_0000];
        set.communities = known.get(usize::from(self.community)).into_iter().copied().collect();
        set
    }

    fn next_hop(&self, prefix: &str, from: &str) -> String {
        match (prefix.contains(':'), self.hop) {
            (false, 0) => from.to_owned(),
            (false, hop) => format!("10.0.0.{}", 100 + hop),
            (true, hop) => format!("fd00::{hop:x}2"),
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Announce(usize, usize, Said),
    Withdraw(usize, usize),
    NextHop(u8, u8),
    /// A session is lost and comes back.
    Flap(usize),
    ListenerFlap(usize),
    Originate(usize, bool),
    ExportFilter(usize, u8),
    Refresh(usize),
    MaxPaths(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let s = 0..SPEAKERS.len();
    let l = 0..LISTENERS.len();
    let x = 0..PREFIXES.len();
    prop_oneof![
        12 => (s.clone(), x.clone(), said()).prop_map(|(s, x, r)| Op::Announce(s, x, r)),
        5 => (s.clone(), x.clone()).prop_map(|(s, x)| Op::Withdraw(s, x)),
        3 => (1u8..3, 0u8..3).prop_map(|(h, m)| Op::NextHop(h, m)),
        1 => s.prop_map(Op::Flap),
        1 => l.clone().prop_map(Op::ListenerFlap),
        1 => (x, any::<bool>()).prop_map(|(x, on)| Op::Originate(x, on)),
        1 => (l.clone(), 0u8..3).prop_map(|(l, f)| Op::ExportFilter(l, f)),
        1 => l.prop_map(Op::Refresh),
        1 => (1usize..4).prop_map(Op::MaxPaths),
    ]
}

/// What a listener has in its table after all UPDATEs so far.
type Heard = BTreeMap<Prefix, (PathAttributes, NextHop)>;

struct World {
    b: Bench,
    speakers: Vec<ConnId>,
    listeners: Vec<ConnId>,
    heard: Vec<Heard>,
    hops: BTreeMap<u8, u8>,
}

fn listener_config(l: usize, filter: u8) -> PeerConfig {
    let rule = |name: &str, matches, action, set| Rule::new(name, matches, action, set);
    let nine = PrefixRange::new(p("10.9.0.0/16"), None, Some(32));
    let rules = match filter {
        0 => vec![rule("all", Match::default(), Action::Accept, Set::default())],
        1 => vec![
            rule("nine", Match { prefix: nine, ..Match::default() }, Action::Reject, Set::default()),
            rule("rest", Match::default(), Action::Accept, Set::default()),
        ],
        _ => vec![
            rule(
                "nine",
                Match { prefix: nine, ..Match::default() },
                Action::Accept,
                Set { med: Some(77), ..Set::default() },
            ),
            rule("rest", Match::default(), Action::Accept, Set { prepend: 1, ..Set::default() }),
        ],
    };
    let filter = Filter { name: "f".into(), ipv4: rules.clone(), ipv6: rules };
    let (address, asn) = LISTENERS[l];
    PeerConfig {
        remote_as: RemoteAs::Asn(Asn(asn)),
        export: vec![Arc::new(filter)],
        route_reflector_client: asn == 64512,
        ..Bench::tor(&format!("l{l}"), address)
    }
}

fn speaker_config(s: usize) -> PeerConfig {
    let (address, asn) = SPEAKERS[s];
    PeerConfig {
        remote_as: RemoteAs::Asn(Asn(asn)),
        route_reflector_client: s == 4,
        ..Bench::tor(&format!("s{s}"), address)
    }
}

impl World {
    fn new() -> Self {
        let mut b = Bench::new();
        for s in 0..SPEAKERS.len() {
            b.peer(speaker_config(s));
        }
        for l in 0..LISTENERS.len() {
            b.peer(listener_config(l, 0));
        }
        let speakers = SPEAKERS.iter().map(|(a, asn)| b.establish(a, open(Asn(*asn), a))).collect();
        let listeners = LISTENERS.iter().map(|(a, asn)| b.establish(a, open(Asn(*asn), a))).collect();
        World { b, speakers, listeners, heard: vec![Heard::new(); LISTENERS.len()], hops: BTreeMap::new() }
    }

    fn announce(&mut self, s: usize, x: usize, said: &Said) {
        let (from, asn) = SPEAKERS[s];
        let hop = said.next_hop(PREFIXES[x], from);
        self.b.announce(self.speakers[s], &[PREFIXES[x]], &said.attributes(asn), &hop);
    }

    fn next_hop(&mut self, hop: u8, metric: u8) {
        self.hops.insert(hop, metric);
        let state = match metric {
            0 => NextHopState::Unreachable,
            m => NextHopState::Reachable { metric: m.into(), connected: true },
        };
        let addr = ip(&format!("10.0.0.{}", 100 + hop));
        // The shell tells about what it was asked to watch.
        if self.b.tracked.contains_key(&addr.into()) {
            self.b.speaker.set_next_hop(self.b.now, addr, state);
            self.b.pump();
        }
    }

    /// Next hops that came into use since were answered with "up"; says what they are really.
    fn settle_next_hops(&mut self) {
        for (hop, metric) in self.hops.clone() {
            self.next_hop(hop, metric);
        }
    }

    fn flap(&mut self, address: &str, asn: u32, conn: ConnId) -> ConnId {
        self.b.speaker.closed(self.b.now, conn, "lost");
        self.b.pump();
        self.b.establish(address, open(Asn(asn), address))
    }

    fn listen(&mut self) {
        for l in 0..LISTENERS.len() {
            for update in self.b.updates(self.listeners[l]) {
                for nlri in &update.withdrawn {
                    let known = self.heard[l].remove(&nlri.prefix);
                    assert!(known.is_some(), "{} withdrawn and never advertised", nlri.prefix);
                }
                for reach in &update.reach {
                    for nlri in &reach.nlri {
                        let set = update.attributes.clone().expect("reach has attributes");
                        self.heard[l].insert(nlri.prefix, (set, reach.next_hop));
                    }
                }
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Announce(s, x, said) => {
                self.announce(*s, *x, said);
                self.settle_next_hops();
            }
            Op::Withdraw(s, x) => self.b.withdraw(self.speakers[*s], &[PREFIXES[*x]]),
            Op::NextHop(hop, metric) => self.next_hop(*hop, *metric),
            Op::Flap(s) => {
                let (address, asn) = SPEAKERS[*s];
                self.speakers[*s] = self.flap(address, asn, self.speakers[*s]);
            }
            Op::ListenerFlap(l) => {
                let (address, asn) = LISTENERS[*l];
                self.listen();
                self.heard[*l].clear();
                self.listeners[*l] = self.flap(address, asn, self.listeners[*l]);
            }
            Op::Originate(x, true) => self.b.originate(PREFIXES[*x]),
            Op::Originate(x, false) => {
                self.b.speaker.withdraw(self.b.now, p(PREFIXES[*x]));
                self.b.pump();
            }
            Op::ExportFilter(l, f) => self.b.peer(listener_config(*l, *f)),
            Op::Refresh(l) => {
                for family in Family::ALL {
                    let refresh = RouteRefresh { family, kind: RefreshKind::Request };
                    self.b.send(self.listeners[*l], &Message::RouteRefresh(refresh));
                }
            }
            Op::MaxPaths(n) => {
                let config = SpeakerConfig { max_paths: *n, ..SpeakerConfig::new(OUR_AS, id("10.0.0.1")) };
                self.b.speaker.configure(self.b.now, config);
                self.b.pump();
            }
        }
    }

    /// The FIB and the listeners hold what the tables say that they hold.
    fn check(&mut self) {
        self.listen();
        for x in PREFIXES {
            let told: Vec<_> = self.b.fib.get(&p(x)).cloned().unwrap_or_default();
            let wanted: Vec<_> = self.b.speaker.explain(p(x)).next_hops.iter().map(|h| h.gateway).collect();
            assert_eq!(told, wanted, "FIB of {x}");
        }
        for (l, heard) in self.heard.iter().enumerate() {
            let shown = self.b.speaker.routes(&RouteQuery::AdjRibOut(format!("l{l}")));
            let shown: BTreeMap<Prefix, _> = shown
                .into_iter()
                .map(|r| (r.prefix, (r.next_hop, r.med, r.as_path.len(), r.local_pref)))
                .collect();
            let heard: BTreeMap<Prefix, _> = heard
                .iter()
                .map(|(prefix, (set, hop))| {
                    let length = set.as_path.segments.iter().map(|s| s.asns.len()).sum::<usize>();
                    (*prefix, (Some(hop.addr()), set.med, length, set.local_pref))
                })
                .collect();
            assert_eq!(heard, shown, "what listener {l} heard");
        }
    }
}

fn loc_rib(b: &Bench) -> Vec<RouteView> {
    b.routes()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(48), ..ProptestConfig::default() })]

    #[test]
    fn peers_and_fib_believe_what_the_tables_say_after_any_history(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for (i, op) in ops.iter().enumerate() {
            world.apply(op);
            if i % 7 == 0 {
                world.check();
            }
        }
        world.check();
        // All goes: nothing is left in the tables, in the FIB and with the listeners.
        for s in 0..SPEAKERS.len() {
            world.b.speaker.remove_peer(world.b.now, &format!("s{s}"));
        }
        for x in PREFIXES {
            world.b.speaker.withdraw(world.b.now, p(x));
        }
        world.b.pump();
        world.check();
        prop_assert!(world.b.fib.is_empty() && world.b.tracked.is_empty());
        prop_assert!(world.heard.iter().all(BTreeMap::is_empty));
        for family in Family::ALL {
            prop_assert_eq!(world.b.speaker.table_size(family), (0, 0));
        }
    }

    #[test]
    fn the_table_depends_on_what_is_said_and_not_on_the_order(
        final_state in prop::collection::btree_map((0..SPEAKERS.len(), 0..PREFIXES.len()), said(), 1..20),
        noise in prop::collection::vec((0..SPEAKERS.len(), 0..PREFIXES.len(), said()), 0..20),
        order in any::<prop::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let entries: Vec<_> = final_state.into_iter().collect();
        let mut straight = World::new();
        for ((s, x), said) in &entries {
            straight.announce(*s, *x, said);
        }

        let mut crooked = World::new();
        for (s, x, said) in &noise {
            crooked.announce(*s, *x, said);
        }
        let mut shuffled = entries.clone();
        shuffled.rotate_left(order.index(entries.len()));
        if seed % 2 == 0 {
            shuffled.reverse();
        }
        for ((s, x), said) in &shuffled {
            crooked.announce(*s, *x, said);
            if seed % 3 == 0 {
                // Said twice.
                crooked.announce(*s, *x, said);
            }
        }
        for (s, x, _) in &noise {
            if !entries.iter().any(|(key, _)| key == &(*s, *x)) {
                crooked.b.withdraw(crooked.speakers[*s], &[PREFIXES[*x]]);
            }
        }
        prop_assert_eq!(loc_rib(&straight.b), loc_rib(&crooked.b));
        prop_assert_eq!(&straight.b.fib, &crooked.b.fib);
        straight.listen();
        crooked.listen();
        prop_assert_eq!(&straight.heard, &crooked.heard);
    }

    #[test]
    fn garbage_never_panics_and_never_gets_more_than_one_notification(
        portions in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..10),
        framed in any::<bool>(),
        established in any::<bool>(),
    ) {
        let mut b = Bench::new();
        b.peer(Bench::tor("tor", "10.0.0.2"));
        let conn = if established {
            b.establish("10.0.0.2", open(TOR_AS, "10.0.0.2"))
        } else {
            b.accept("10.0.0.2").expect("listening")
        };
        b.messages(conn);
        for portion in &portions {
            let mut bytes = Vec::new();
            if framed {
                bytes.extend_from_slice(&[0xff; 16]);
                bytes.extend_from_slice(&(19 + portion.len() as u16).to_be_bytes());
                bytes.push(portion.first().map_or(2, |k| k % 6));
            }
            bytes.extend_from_slice(portion);
            b.send_bytes(conn, &bytes);
        }
        let notifications =
            b.messages(conn).into_iter().filter(|m| matches!(m, Message::Notification(_))).count();
        prop_assert!(notifications <= 1);
        b.advance(secs(600));
    }
}

/// How many cases to try: `make soak` asks for more by PROPTEST_CASES.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").map_or(usual, |_| ProptestConfig::default().cases)
}
