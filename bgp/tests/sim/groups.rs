//! Update groups: what peers are told that share bytes is what each would be told alone, byte by byte.

use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::sync::Arc;

use manx_bgp::filter::*;
use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::message::*;
use proptest::prelude::*;

use crate::bench::*;

/// Peers that only speak: two external ones and a reflection client.
const FEEDERS: [(&str, u32); 3] = [("10.0.0.2", 65001), ("10.0.0.3", 65002), ("10.0.0.4", 64512)];
/// Peers that listen, and now and then speak.
const LISTENERS: [(&str, u32); 6] = [
    ("10.0.0.10", 65010),
    ("10.0.0.11", 65010),
    ("10.0.0.12", 65012),
    ("10.0.0.13", 64512),
    ("10.0.0.14", 64512),
    ("10.0.0.15", 64512),
];
const PREFIXES: [&str; 5] = ["10.9.0.0/16", "10.9.1.0/24", "10.8.0.0/16", "10.7.0.0/16", "10.6.0.0/16"];

/// The knobs of a listener as small numbers: most are like those of its neighbours.
#[derive(Clone, Copy, Debug)]
struct Knobs {
    filter: usize,
    next_hop: u8,
    flag: u8,
    add_path: u8,
    own: u8,
}

fn knobs() -> impl Strategy<Value = Knobs> {
    let mostly_0 = |n: u8| prop_oneof![4 => Just(0), 1 => 0..n];
    (0usize..4, mostly_0(3), mostly_0(5), mostly_0(3), mostly_0(2))
        .prop_map(|(filter, next_hop, flag, add_path, own)| Knobs { filter, next_hop, flag, add_path, own })
}

#[derive(Clone, Debug)]
enum Op {
    Announce { who: usize, prefix: usize, length: usize, community: usize },
    Withdraw { who: usize, prefix: usize },
    Join(usize),
    Leave(usize),
    Slow(usize, bool),
    Refresh(usize),
    Change(usize, Knobs),
    Originate(usize, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let who = 0..FEEDERS.len() + LISTENERS.len();
    let listener = 0..LISTENERS.len();
    let prefix = 0..PREFIXES.len();
    prop_oneof![
        12 => (who.clone(), prefix.clone(), 1usize..4, 0usize..4).prop_map(|(who, prefix, length, community)| {
            Op::Announce { who, prefix, length, community }
        }),
        4 => (who, prefix.clone()).prop_map(|(who, prefix)| Op::Withdraw { who, prefix }),
        3 => listener.clone().prop_map(Op::Join),
        1 => listener.clone().prop_map(Op::Leave),
        2 => (listener.clone(), any::<bool>()).prop_map(|(l, slow)| Op::Slow(l, slow)),
        1 => listener.clone().prop_map(Op::Refresh),
        2 => (listener, knobs()).prop_map(|(l, knobs)| Op::Change(l, knobs)),
        1 => (prefix, any::<bool>()).prop_map(|(prefix, on)| Op::Originate(prefix, on)),
    ]
}

fn filters() -> Vec<Filter> {
    let rule = |name: &str, matches, action, set| Rule::new(name, matches, action, set);
    let of = |rules: Vec<Rule>| Filter { name: "f".into(), ipv4: rules, ipv6: Vec::new() };
    let all = || rule("rest", Match::default(), Action::Accept, Set::default());
    let nine = Match { prefix: PrefixRange::new(p("10.9.0.0/16"), None, Some(32)), ..Match::default() };
    let one = manx_bgp::filter::Neighbor::Address(p("10.0.0.10/31"));
    let whom = Match { neighbor: Some(one), ..Match::default() };
    let prepend = Set { prepend: 2, med: Some(7), ..Set::default() };
    vec![
        of(vec![all()]),
        of(vec![rule("nine", nine, Action::Reject, Set::default()), all()]),
        of(vec![rule("whom", whom, Action::Accept, prepend), all()]),
        of(vec![rule("all", Match::default(), Action::Accept, Set { med: Some(1), ..Set::default() })]),
    ]
}

/// One speaker; where `alone`, every listener has filters of its own, so that no two share a group.
struct World {
    b: Bench,
    shared: Vec<Arc<Filter>>,
    alone: bool,
    conns: BTreeMap<usize, ConnId>,
    knobs: Vec<Knobs>,
}

impl World {
    fn new(knobs: &[Knobs], alone: bool) -> Self {
        let shared = filters().into_iter().map(Arc::new).collect();
        let mut world =
            World { b: Bench::new(), shared, alone, conns: BTreeMap::new(), knobs: knobs.to_vec() };
        for (i, (address, asn)) in FEEDERS.iter().enumerate() {
            world.b.peer(PeerConfig {
                remote_as: RemoteAs::Asn(Asn(*asn)),
                route_reflector_client: i == 2,
                ..Bench::tor(&format!("f{i}"), address)
            });
            let conn = world.b.establish(address, open(Asn(*asn), address));
            world.conns.insert(i, conn);
        }
        for l in 0..LISTENERS.len() {
            world.configure(l);
        }
        world
    }

    fn configure(&mut self, l: usize) {
        let (address, asn) = LISTENERS[l];
        let Knobs { filter, next_hop, flag, add_path, .. } = self.knobs[l];
        let filter = match self.alone {
            true => Arc::new(filters().swap_remove(filter)),
            false => Arc::clone(&self.shared[filter]),
        };
        let internal = asn == 64512;
        self.b.peer(PeerConfig {
            remote_as: RemoteAs::Asn(Asn(asn)),
            export: vec![filter],
            next_hop: [NextHopMode::Self_, NextHopMode::Keep, NextHopMode::Auto][usize::from(next_hop)],
            as_override: flag == 1,
            remove_private_as: flag == 2,
            route_reflector_client: internal && flag != 3,
            local_as: (!internal && flag == 4).then_some(Asn(65099)),
            add_path: AddPath {
                receive: false,
                send: add_path > 0,
                send_max: NonZeroU8::new(if add_path == 2 { 2 } else { 0 }),
            },
            ..Bench::tor(&format!("l{l}"), address)
        });
        // What is told to it may have needed a new session.
        let closed = &self.b.closed;
        self.conns.retain(|_, conn| !closed.contains(conn));
    }

    fn join(&mut self, l: usize) {
        if self.conns.contains_key(&(FEEDERS.len() + l)) {
            return;
        }
        let (address, asn) = LISTENERS[l];
        // The next hop that we give may differ by interface.
        self.b.own_v4 = [10, 0, 0, 1 + 200 * self.knobs[l].own].into();
        let mut theirs = open(Asn(asn), address);
        theirs.capabilities.push(Capability::AddPath(vec![(Family::Ipv4Unicast, AddPathMode::Receive)]));
        // After a reset it may be holding back.
        let Some(conn) = self.b.accept(address) else { return };
        self.b.send(conn, &Message::Open(theirs));
        self.b.send(conn, &Message::Keepalive);
        self.conns.insert(FEEDERS.len() + l, conn);
    }

    fn apply(&mut self, op: &Op) {
        let peers: Vec<(&str, u32)> = FEEDERS.iter().chain(&LISTENERS).copied().collect();
        match op {
            Op::Announce { who, prefix, length, community } => {
                let Some(conn) = self.conns.get(who).copied() else { return };
                let (address, asn) = peers[*who];
                let mut path = vec![65100; *length];
                path[0] = asn;
                let mut set = attributes(if asn == 64512 { &path[1..] } else { &path });
                set.communities =
                    [0xFFFF_FF01, 0xFFFF_FF02, 7].get(*community).into_iter().copied().collect();
                self.b.announce(conn, &[PREFIXES[*prefix]], &set, address);
            }
            Op::Withdraw { who, prefix } => {
                let Some(conn) = self.conns.get(who).copied() else { return };
                self.b.withdraw(conn, &[PREFIXES[*prefix]]);
            }
            Op::Join(l) => self.join(*l),
            Op::Leave(l) => {
                let Some(conn) = self.conns.remove(&(FEEDERS.len() + l)) else { return };
                self.b.slow.remove(&conn);
                self.b.speaker.closed(self.b.now, conn, "lost");
                self.b.pump();
            }
            Op::Slow(l, slow) => {
                let Some(conn) = self.conns.get(&(FEEDERS.len() + l)).copied() else { return };
                match slow {
                    true => drop(self.b.slow.insert(conn)),
                    false => self.b.catch_up(conn),
                }
            }
            Op::Refresh(l) => {
                let Some(conn) = self.conns.get(&(FEEDERS.len() + l)).copied() else { return };
                let refresh = RouteRefresh { family: Family::Ipv4Unicast, kind: RefreshKind::Request };
                self.b.send(conn, &Message::RouteRefresh(refresh));
            }
            Op::Change(l, knobs) => {
                self.knobs[*l] = *knobs;
                self.configure(*l);
            }
            Op::Originate(prefix, true) => self.b.originate(PREFIXES[*prefix]),
            Op::Originate(prefix, false) => {
                self.b.speaker.withdraw(self.b.now, p(PREFIXES[*prefix]));
                self.b.pump();
            }
        }
    }

    /// What each listener's connection has carried since the last look.
    fn bytes(&mut self) -> BTreeMap<usize, Vec<u8>> {
        let conns: Vec<(usize, ConnId)> = self.conns.iter().map(|(k, c)| (*k, *c)).collect();
        conns.into_iter().map(|(k, conn)| (k, self.b.taken(conn))).collect()
    }

    /// How often each rule has decided, over all filters that spell the same.
    fn hits(&self) -> BTreeMap<String, u64> {
        let mut hits = BTreeMap::new();
        for rule in self.b.speaker.filter_rules() {
            *hits.entry(rule.rule).or_default() += rule.hits;
        }
        hits.retain(|_, n| *n > 0);
        hits
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(64), ..ProptestConfig::default() })]

    #[test]
    fn trap_18_peers_that_share_bytes_are_told_what_each_would_be_told_alone(
        knobs in prop::collection::vec(knobs(), LISTENERS.len()),
        joined in prop::collection::vec(any::<bool>(), LISTENERS.len()),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut together = World::new(&knobs, false);
        let mut alone = World::new(&knobs, true);
        for world in [&mut together, &mut alone] {
            joined.iter().enumerate().filter(|(_, on)| **on).for_each(|(l, _)| world.join(l));
        }
        for (i, op) in ops.iter().enumerate() {
            together.apply(op);
            alone.apply(op);
            prop_assert_eq!(together.bytes(), alone.bytes(), "after {} operations, the last of them {:?}", i + 1, op);
        }
        for l in 0..LISTENERS.len() {
            together.apply(&Op::Slow(l, false));
            alone.apply(&Op::Slow(l, false));
        }
        prop_assert_eq!(together.bytes(), alone.bytes(), "when all have caught up");
    }
}

#[test]
fn a_rule_counts_every_peer_that_it_decided_for_although_it_was_asked_once() {
    let alike = Knobs { filter: 3, next_hop: 0, flag: 0, add_path: 0, own: 0 };
    let mut hits = Vec::new();
    for alone in [false, true] {
        let mut world = World::new(&[alike; LISTENERS.len()], alone);
        (0..LISTENERS.len()).for_each(|l| world.join(l));
        world.apply(&Op::Announce { who: 0, prefix: 0, length: 2, community: 3 });
        world.apply(&Op::Announce { who: FEEDERS.len(), prefix: 1, length: 2, community: 3 });
        hits.push(world.hits());
    }
    assert_eq!(hits[0], hits[1]);
    assert_eq!(hits[0]["all"], 6 + 5, "the second route not for the peer that gave it");
}

/// How many cases to try: `make soak` asks for more by PROPTEST_CASES.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").map_or(usual, |_| ProptestConfig::default().cases)
}
