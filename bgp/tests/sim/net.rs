//! Many speakers on one virtual clock. Connections are queues with a latency; a link can be cut (connections end at both
//! sides and dials fail) or fall silent (bytes vanish and nobody is told); a node can die and come back.
//!
//! What reaches a node at one instant is answered together, as the real driver writes after it has read from all its sockets;
//! links differ in whole milliseconds, so that in a large network much does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use manx_bgp::speaker::*;
use manx_bgp::types::*;
use smallvec::SmallVec;

use crate::bench::{UP, start};

/// A node number.
pub(crate) type N = usize;

pub(crate) struct Net {
    pub(crate) now: Instant,
    pub(crate) nodes: Vec<Node>,
    queue: BTreeMap<(Instant, u64), Event>,
    timers: BTreeSet<(Instant, N)>,
    /// Connections that have something to send at this instant.
    writable: BTreeSet<(N, ConnId)>,
    cut: BTreeSet<(N, N)>,
    silent: BTreeSet<(N, N)>,
    by_address: HashMap<IpAddr, N>,
    sequence: u64,
    pub(crate) latency: Duration,
    /// Of a thousand portions so many are lost and sent again; what follows on the connection waits for them.
    pub(crate) loss: u64,
    /// Each link takes up to so much longer, always the same.
    pub(crate) spread: Duration,
    /// When the last portion of a connection arrives.
    arrivals: HashMap<(N, ConnId), Instant>,
    random: u64,
    /// Bytes carried, and the BGP messages in them.
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
}

pub(crate) struct Node {
    pub(crate) speaker: Option<Speaker>,
    config: SpeakerConfig,
    /// Counts lives, so that events for a former one are not delivered.
    life: u64,
    links: HashMap<ConnId, Option<(N, ConnId)>>,
    timer: Option<Instant>,
    /// What the kernel holds: survives the agent.
    pub(crate) fib: BTreeMap<Prefix, SmallVec<[IpAddr; 1]>>,
    pub(crate) fib_writes: u64,
    pub(crate) restart_complete: BTreeSet<Family>,
    /// Written by the present life, if it has a former one to sweep up after.
    renewed: Option<BTreeSet<Prefix>>,
    pub(crate) flaps: u64,
}

enum Event {
    Dial { from: N, life: u64, conn: ConnId, to: IpAddr },
    Data { to: N, life: u64, conn: ConnId, bytes: Bytes },
    Closed { to: N, life: u64, conn: ConnId },
}

pub(crate) fn address(n: N) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0001 + n as u32)
}

pub(crate) fn name(n: N) -> String {
    format!("n{n:04}")
}

/// The pod block of a node.
pub(crate) fn block(n: N) -> Prefix {
    Prefix::new(Ipv4Addr::from_bits(0x0af0_0000 + ((n as u32) << 6)).into(), 26).unwrap()
}

fn key(a: N, b: N) -> (N, N) {
    (a.min(b), a.max(b))
}

/// How many messages (RFC 4271 4.1: length behind a marker of 16 octets) a speaker has put there; it puts whole ones.
fn messages_in(mut bytes: &[u8]) -> u64 {
    let mut messages = 0;
    while let Some(length) = bytes.get(16..18) {
        bytes = &bytes[usize::from(u16::from_be_bytes([length[0], length[1]])).max(19)..];
        messages += 1;
    }
    messages
}

impl Net {
    pub(crate) fn new() -> Self {
        Net {
            now: start(),
            nodes: Vec::new(),
            queue: BTreeMap::new(),
            timers: BTreeSet::new(),
            writable: BTreeSet::new(),
            cut: BTreeSet::new(),
            silent: BTreeSet::new(),
            by_address: HashMap::new(),
            sequence: 0,
            latency: Duration::from_millis(1),
            loss: 0,
            spread: Duration::ZERO,
            arrivals: HashMap::new(),
            random: 0x9e37_79b9_7f4a_7c15,
            bytes: 0,
            messages: 0,
        }
    }

    /// Adds a node of an AS that originates its block.
    pub(crate) fn add(&mut self, asn: Asn, adjust: impl FnOnce(&mut SpeakerConfig)) -> N {
        let n = self.nodes.len();
        let mut config = SpeakerConfig::new(asn, RouterId::new(address(n)).unwrap());
        config.seed = n as u64;
        adjust(&mut config);
        self.by_address.insert(address(n).into(), n);
        self.nodes.push(Node {
            speaker: Some(Speaker::new(config.clone(), self.now)),
            life: 0,
            links: HashMap::new(),
            timer: None,
            fib: BTreeMap::new(),
            fib_writes: 0,
            restart_complete: BTreeSet::new(),
            renewed: config.graceful_restart.as_ref().is_some_and(|gr| gr.restarting).then(BTreeSet::new),
            flaps: 0,
            config,
        });
        self.with(n, |s, now| s.originate(now, LocalRoute::new(block(n))));
        n
    }

    /// Runs something on a node's speaker, then does what it wants done.
    pub(crate) fn with(&mut self, n: N, f: impl FnOnce(&mut Speaker, Instant)) {
        let now = self.now;
        f(self.nodes[n].speaker.as_mut().expect("the node lives"), now);
        self.pump(n);
    }

    /// Configures both ends of a session.
    pub(crate) fn peer(&mut self, a: N, b: N, mut adjust: impl FnMut(N, &mut PeerConfig)) {
        for (me, other) in [(a, b), (b, a)] {
            let asn = self.nodes[other].config.asn;
            let mut config = PeerConfig::new(name(other), address(other).into(), RemoteAs::Asn(asn));
            adjust(me, &mut config);
            self.with(me, |s, now| s.set_peer(now, config));
        }
    }

    /// Cuts a link: connections end at both sides, dials fail.
    pub(crate) fn cut(&mut self, a: N, b: N) {
        self.cut.insert(key(a, b));
        for (me, other) in [(a, b), (b, a)] {
            let gone: Vec<ConnId> = self.nodes[me]
                .links
                .iter()
                .filter(|(_, far)| far.is_some_and(|(n, _)| n == other))
                .map(|(c, _)| *c)
                .collect();
            for conn in gone {
                self.nodes[me].links.remove(&conn);
                if self.nodes[me].speaker.is_some() {
                    self.with(me, |s, now| s.closed(now, conn, "link cut"));
                }
            }
        }
    }

    pub(crate) fn heal(&mut self, a: N, b: N) {
        self.cut.remove(&key(a, b));
        self.silent.remove(&key(a, b));
    }

    /// Bytes between the two vanish from now on.
    pub(crate) fn silence(&mut self, a: N, b: N) {
        self.silent.insert(key(a, b));
    }

    /// The process dies; its kernel resets its connections and keeps its routes.
    pub(crate) fn kill(&mut self, n: N) {
        let node = &mut self.nodes[n];
        node.speaker = None;
        node.life += 1;
        if let Some(at) = node.timer.take() {
            self.timers.remove(&(at, n));
        }
        let links = std::mem::take(&mut node.links);
        for (far, conn) in links.into_values().flatten() {
            self.close_later(far, conn);
        }
    }

    /// The process comes back as one that found its predecessor's routes, or as a fresh one.
    pub(crate) fn revive(&mut self, n: N, restarting: bool) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let mut config = node.config.clone();
        if let Some(gr) = &mut config.graceful_restart {
            gr.restarting = restarting;
        }
        node.restart_complete.clear();
        node.renewed = restarting.then(BTreeSet::new);
        if !restarting {
            node.fib.clear();
        }
        node.speaker = Some(Speaker::new(config, now));
        self.with(n, |s, now| s.originate(now, LocalRoute::new(block(n))));
    }

    fn close_later(&mut self, to: N, conn: ConnId) {
        let life = self.nodes[to].life;
        // Behind what is still under way on the connection.
        let at = self
            .arrivals
            .remove(&(to, conn))
            .map_or(self.now + self.latency, |last| last.max(self.now + self.latency));
        self.push_at(at, Event::Closed { to, life, conn });
    }

    fn push(&mut self, event: Event) {
        self.push_at(self.now + self.latency, event);
    }

    fn push_at(&mut self, at: Instant, event: Event) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    /// When a portion sent now gets to the far end: TCP keeps the order and repeats what is lost.
    fn arrival(&mut self, from: N, to: N, conn: ConnId) -> Instant {
        let (a, b) = key(from, to);
        let share = (a as u64 * 7919 + b as u64 * 104_729) % 1000;
        let spread = Duration::from_millis(self.spread.as_millis() as u64 * share / 1000);
        let mut at = self.now + self.latency + spread;
        if self.loss > 0 {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            if self.random % 1000 < self.loss {
                at += Duration::from_millis(200);
            }
        }
        let last = self.arrivals.entry((to, conn)).or_insert(at);
        *last = at.max(*last);
        *last
    }

    fn endpoints(&self, me: N, other: N) -> Endpoints {
        let v6 = |n: N| std::net::Ipv6Addr::from_bits(0xfd00 << 112 | (n as u128 + 1));
        Endpoints {
            local: SocketAddr::new(address(me).into(), 179),
            remote: SocketAddr::new(address(other).into(), 40000),
            ifindex: 2,
            ipv4: Some(address(me)),
            ipv6: Some(v6(me)),
            link_local: None,
            connected: true,
            subnets: ["10.0.0.0/12".parse().unwrap()].into_iter().collect(),
        }
    }

    fn pump(&mut self, n: N) {
        loop {
            let mut idle = true;
            let Some(speaker) = self.nodes[n].speaker.as_mut() else { return };
            let mut changes = Vec::new();
            while let Some(change) = speaker.poll_route_change() {
                changes.push(change);
            }
            let effect = speaker.poll_effect();
            for change in changes {
                idle = false;
                self.write_fib(n, &change);
            }
            if let Some(effect) = effect {
                idle = false;
                self.perform(n, effect);
            }
            if idle {
                break;
            }
        }
        let node = &mut self.nodes[n];
        let next = node.speaker.as_ref().and_then(Speaker::poll_timeout);
        if next != node.timer {
            if let Some(old) = std::mem::replace(&mut node.timer, next) {
                self.timers.remove(&(old, n));
            }
            if let Some(at) = next {
                self.timers.insert((at, n));
            }
        }
    }

    fn write_fib(&mut self, n: N, change: &RouteChange) {
        let node = &mut self.nodes[n];
        let hops: SmallVec<[IpAddr; 1]> = change.next_hops.iter().map(|h| h.gateway).collect();
        if let Some(renewed) = &mut node.renewed {
            renewed.insert(change.prefix);
        }
        // As the FIB writer does: what is right already is not written again.
        if hops.is_empty() {
            node.fib_writes += u64::from(node.fib.remove(&change.prefix).is_some());
        } else if node.fib.get(&change.prefix) != Some(&hops) {
            node.fib_writes += 1;
            node.fib.insert(change.prefix, hops);
        }
    }

    fn perform(&mut self, n: N, effect: Effect) {
        let life = self.nodes[n].life;
        match effect {
            Effect::Connect(conn, request) => {
                self.nodes[n].links.insert(conn, None);
                self.push(Event::Dial { from: n, life, conn, to: request.remote.ip() });
            }
            Effect::Close(conn) => {
                self.transmit(n, conn);
                if let Some(Some((far, far_conn))) = self.nodes[n].links.remove(&conn) {
                    self.close_later(far, far_conn);
                }
            }
            Effect::Transmit(conn) => {
                self.writable.insert((n, conn));
            }
            Effect::TrackNextHop(addr) => {
                let now = self.now;
                if let Some(s) = self.nodes[n].speaker.as_mut() {
                    s.set_next_hop(now, addr, UP);
                }
            }
            Effect::RestartComplete(family) => {
                let node = &mut self.nodes[n];
                node.restart_complete.insert(family);
                // The sweep: what the present life has not said is gone.
                if let Some(renewed) = &node.renewed {
                    let before = node.fib.len();
                    node.fib.retain(|p, _| p.family() != family || renewed.contains(p));
                    node.fib_writes += (before - node.fib.len()) as u64;
                }
            }
            Effect::Peer(fact) => self.nodes[n].flaps += u64::from(fact.from == "Established"),
            Effect::UntrackNextHop(_)
            | Effect::Listen(..)
            | Effect::ListenRange(..)
            | Effect::ChangeKey(..)
            | Effect::Discover(..)
            | Effect::Bfd(..)
            | Effect::BfdEnd(_) => {}
        }
    }

    /// Sends what the nodes have to say at this instant.
    fn flush(&mut self) {
        for (n, conn) in std::mem::take(&mut self.writable) {
            self.transmit(n, conn);
            self.pump(n);
        }
    }

    fn transmit(&mut self, n: N, conn: ConnId) {
        let mut out = BytesMut::new();
        while self.nodes[n].speaker.as_mut().is_some_and(|s| s.poll_transmit(conn, &mut out)) {}
        let Some(Some((far, far_conn))) = self.nodes[n].links.get(&conn).copied() else { return };
        if !out.is_empty() && !self.silent.contains(&key(n, far)) {
            self.bytes += out.len() as u64;
            self.messages += messages_in(&out);
            let life = self.nodes[far].life;
            let at = self.arrival(n, far, far_conn);
            self.push_at(at, Event::Data { to: far, life, conn: far_conn, bytes: out.freeze() });
        }
    }

    fn deliver(&mut self, event: Event) {
        match event {
            Event::Dial { from, life, conn, to } => {
                let wanted = self.nodes[from].life == life && self.nodes[from].links.contains_key(&conn);
                if !wanted {
                    return;
                }
                let target = self
                    .by_address
                    .get(&to)
                    .copied()
                    .filter(|t| self.nodes[*t].speaker.is_some() && !self.cut.contains(&key(from, *t)));
                let Some(to) = target else {
                    self.nodes[from].links.remove(&conn);
                    return self.with(from, |s, now| s.connect_failed(now, conn, "refused"));
                };
                if self.silent.contains(&key(from, to)) {
                    return;
                }
                let theirs = self.endpoints(to, from);
                let mut accepted = None;
                let now = self.now;
                if let Some(s) = self.nodes[to].speaker.as_mut() {
                    accepted = s.accepted(now, theirs);
                }
                if let Some(far) = accepted {
                    self.nodes[to].links.insert(far, Some((from, conn)));
                    self.nodes[from].links.insert(conn, Some((to, far)));
                }
                let ours = self.endpoints(from, to);
                self.with(from, |s, now| s.connected(now, conn, ours));
                self.pump(to);
                if accepted.is_none() {
                    self.close_later(from, conn);
                }
            }
            Event::Data { to, life, conn, bytes } => {
                if self.nodes[to].life == life && self.nodes[to].links.contains_key(&conn) {
                    self.with(to, |s, now| s.received(now, conn, &bytes));
                }
            }
            Event::Closed { to, life, conn } => {
                if self.nodes[to].life == life && self.nodes[to].links.remove(&conn).is_some() {
                    self.with(to, |s, now| s.closed(now, conn, "closed by the peer"));
                }
            }
        }
    }

    /// Lets everything happen until then.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timer = self.timers.first().copied();
            let next = event.into_iter().chain(timer.map(|(at, _)| at)).min();
            if !self.writable.is_empty() && next.is_none_or(|at| at > self.now) {
                self.flush();
                continue;
            }
            match (event, timer) {
                (Some(at), t) if at <= until && t.is_none_or(|(t, _)| at <= t) => {
                    self.now = self.now.max(at);
                    let (_, event) = self.queue.pop_first().expect("looked at above");
                    self.deliver(event);
                }
                (_, Some((at, n))) if at <= until => {
                    self.now = self.now.max(at);
                    self.with(n, |s, now| s.handle_timeout(now));
                }
                _ => break,
            }
        }
        self.now = until;
    }

    /// Runs until the condition holds, looking ten times a second; how long it took, `None` if it never did.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        mut holds: impl FnMut(&Net) -> bool,
    ) -> Option<Duration> {
        let began = self.now;
        while self.now - began < limit {
            if holds(self) {
                return Some(self.now - began);
            }
            self.run(Duration::from_millis(100));
        }
        holds(self).then(|| self.now - began)
    }

    /// Every node of `of` has a route to the block of every other one, through its owner and nothing else, and no other route.
    pub(crate) fn all_reach_exactly(&self, of: &[N]) -> bool {
        of.iter().all(|a| {
            let fib = &self.nodes[*a].fib;
            let others = of.iter().filter(|b| *b != a);
            fib.len() == of.len() - 1
                && others
                    .clone()
                    .all(|b| fib.get(&block(*b)).is_some_and(|hops| hops[..] == [IpAddr::from(address(*b))]))
                && self.nodes[*a]
                    .speaker
                    .as_ref()
                    .is_some_and(|s| s.table_size(Family::Ipv4Unicast).0 == of.len())
        })
    }

    /// Every living node of `of` has a route to the block of every other one.
    pub(crate) fn all_reach_all(&self, of: &[N]) -> bool {
        of.iter().all(|a| of.iter().all(|b| a == b || self.nodes[*a].fib.contains_key(&block(*b))))
    }
}
