//! One speaker on a bench: the test is the shell and the far side, message by message, on a virtual clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use manx_bgp::bfd::{BfdConfig, BfdEnds};
use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::attribute::*;
use manx_bgp::wire::message::*;
use manx_bgp::wire::{self, DecodeContext, EncodeContext, EncodedAttributes, Framer};

pub(crate) const OUR_AS: Asn = Asn(64512);
pub(crate) const TOR_AS: Asn = Asn(65001);

/// Where virtual time begins.
#[expect(clippy::disallowed_methods, reason = "virtual time has to start somewhere")]
pub(crate) fn start() -> Instant {
    Instant::now()
}

pub(crate) fn p(s: &str) -> Prefix {
    s.parse().unwrap()
}

pub(crate) fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

pub(crate) fn id(s: &str) -> RouterId {
    RouterId::new(s.parse().unwrap()).unwrap()
}

pub(crate) fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// Attributes with an AS_PATH of one sequence.
pub(crate) fn attributes(path: &[u32]) -> PathAttributes {
    let mut as_path = AsPath::default();
    if !path.is_empty() {
        as_path
            .segments
            .push(Segment { kind: SegmentKind::Sequence, asns: path.iter().map(|a| Asn(*a)).collect() });
    }
    PathAttributes {
        origin: Origin::Igp,
        as_path,
        med: None,
        local_pref: None,
        atomic_aggregate: false,
        aggregator: None,
        communities: Default::default(),
        extended_communities: Vec::new(),
        large_communities: Vec::new(),
        originator_id: None,
        cluster_list: Vec::new(),
        unknown: Vec::new(),
    }
}

/// An OPEN as a modern router with graceful restart off sends it.
pub(crate) fn open(asn: Asn, router_id: &str) -> Open {
    Open {
        asn,
        hold_time: 90,
        router_id: id(router_id),
        capabilities: vec![
            Capability::Multiprotocol(Family::Ipv4Unicast),
            Capability::Multiprotocol(Family::Ipv6Unicast),
            Capability::RouteRefresh,
            Capability::FourOctetAs(asn),
        ],
        extended: false,
    }
}

/// The same with graceful restart of both families.
pub(crate) fn open_gr(
    asn: Asn,
    router_id: &str,
    restarting: bool,
    forwarding: bool,
    restart_time: u16,
) -> Open {
    let mut o = open(asn, router_id);
    o.capabilities.push(Capability::GracefulRestart(GracefulRestart {
        restarting,
        notification: false,
        restart_time,
        families: Family::ALL.iter().map(|f| (*f, forwarding)).collect(),
    }));
    o
}

/// The same where NOTIFICATIONs leave graceful restart on (N bit, RFC 8538).
pub(crate) fn open_n(asn: Asn, router_id: &str, forwarding: bool) -> Open {
    let mut o = open_gr(asn, router_id, false, forwarding, 60);
    for capability in &mut o.capabilities {
        if let Capability::GracefulRestart(gr) = capability {
            gr.notification = true;
        }
    }
    o
}

pub(crate) struct Bench {
    pub(crate) speaker: Speaker,
    pub(crate) now: Instant,
    pub(crate) dials: VecDeque<(ConnId, ConnectRequest)>,
    pub(crate) closed: Vec<ConnId>,
    pub(crate) facts: Vec<PeerFact>,
    pub(crate) listening_ranges: BTreeMap<Prefix, SocketOptions>,
    pub(crate) changed_keys: Vec<(ConnId, Secret)>,
    pub(crate) listening: BTreeMap<PeerAddr, SocketOptions>,
    /// Interfaces on which neighbours are looked for.
    pub(crate) discovering: BTreeSet<String>,
    pub(crate) bfd: BTreeMap<PeerAddr, (BfdEnds, BfdConfig)>,
    pub(crate) fib: BTreeMap<Prefix, Vec<IpAddr>>,
    /// Where traffic is discarded.
    pub(crate) discarded: BTreeSet<Prefix>,
    /// Every route change, in order.
    pub(crate) fib_log: Vec<(Prefix, Vec<IpAddr>)>,
    pub(crate) restart_complete: Vec<Family>,
    pub(crate) tracked: BTreeMap<FibNextHop, NextHopState>,
    /// What a next hop is answered with when it is first asked for; `None`: no answer yet.
    pub(crate) resolve: Option<NextHopState>,
    sent: BTreeMap<ConnId, BytesMut>,
    /// Connections whose far end takes no bytes for now.
    pub(crate) slow: BTreeSet<ConnId>,
    /// Our IPv4 address on connections to come.
    pub(crate) own_v4: Ipv4Addr,
    /// Connections on which the speaker sends path identifiers, and families.
    pub(crate) add_path: BTreeMap<ConnId, PerFamily<bool>>,
}

pub(crate) const UP: NextHopState = NextHopState::Reachable { metric: 0, connected: true };

impl Bench {
    /// AS 64512, 10.0.0.1.
    pub(crate) fn new() -> Self {
        Self::with(SpeakerConfig::new(OUR_AS, id("10.0.0.1")))
    }

    pub(crate) fn with(config: SpeakerConfig) -> Self {
        let now = start();
        Bench {
            speaker: Speaker::new(config, now),
            now,
            dials: VecDeque::new(),
            closed: Vec::new(),
            facts: Vec::new(),
            listening_ranges: BTreeMap::new(),
            changed_keys: Vec::new(),
            listening: BTreeMap::new(),
            discovering: BTreeSet::new(),
            bfd: BTreeMap::new(),
            fib: BTreeMap::new(),
            discarded: BTreeSet::new(),
            fib_log: Vec::new(),
            restart_complete: Vec::new(),
            tracked: BTreeMap::new(),
            resolve: Some(UP),
            sent: BTreeMap::new(),
            slow: BTreeSet::new(),
            own_v4: Ipv4Addr::new(10, 0, 0, 1),
            add_path: BTreeMap::new(),
        }
    }

    /// Drains what the speaker has to say, as a shell does.
    pub(crate) fn pump(&mut self) {
        loop {
            let mut idle = true;
            while let Some(change) = self.speaker.poll_route_change() {
                idle = false;
                let hops: Vec<IpAddr> = change.next_hops.iter().map(|h| h.gateway).collect();
                self.fib_log.push((change.prefix, hops.clone()));
                let was_there =
                    self.fib.remove(&change.prefix).is_some() | self.discarded.remove(&change.prefix);
                if change.blackhole {
                    assert!(hops.is_empty(), "{} is discarded and forwarded", change.prefix);
                    self.discarded.insert(change.prefix);
                } else if hops.is_empty() {
                    assert!(was_there, "{} removed but never there", change.prefix);
                } else {
                    self.fib.insert(change.prefix, hops);
                }
            }
            while let Some(effect) = self.speaker.poll_effect() {
                idle = false;
                match effect {
                    Effect::Connect(conn, request) => self.dials.push_back((conn, request)),
                    Effect::Close(conn) => {
                        self.drain(conn);
                        self.dials.retain(|(c, _)| *c != conn);
                        self.closed.push(conn);
                    }
                    Effect::Transmit(conn) if self.slow.contains(&conn) => {}
                    Effect::Transmit(conn) => self.drain(conn),
                    Effect::Listen(addr, Some(options)) => {
                        self.listening.insert(addr, options);
                    }
                    Effect::ChangeKey(conn, key) => self.changed_keys.push((conn, key)),
                    Effect::ListenRange(range, Some(options)) => {
                        self.listening_ranges.insert(range, options);
                    }
                    Effect::ListenRange(range, None) => {
                        self.listening_ranges.remove(&range);
                    }
                    Effect::Listen(addr, None) => {
                        self.listening.remove(&addr);
                    }
                    Effect::TrackNextHop(addr) => {
                        if let Some(state) = self.resolve {
                            self.tracked.insert(addr, state);
                            self.speaker.set_next_hop(self.now, addr, state);
                        }
                    }
                    Effect::UntrackNextHop(addr) => {
                        self.tracked.remove(&addr);
                    }
                    Effect::Discover(interface, on) => {
                        assert_eq!(self.discovering.contains(&interface), !on, "asked once, told once");
                        match on {
                            true => drop(self.discovering.insert(interface)),
                            false => drop(self.discovering.remove(&interface)),
                        }
                    }
                    Effect::Bfd(ends, config) => drop(self.bfd.insert(ends.remote, (ends, config))),
                    Effect::BfdEnd(remote) => drop(self.bfd.remove(&remote)),
                    Effect::RestartComplete(family) => self.restart_complete.push(family),
                    Effect::Peer(fact) => self.facts.push(fact),
                }
            }
            if idle {
                return;
            }
        }
    }

    fn drain(&mut self, conn: ConnId) {
        let out = self.sent.entry(conn).or_default();
        while self.speaker.poll_transmit(conn, out) {}
    }

    /// A slow far end takes everything that waits for it, and is slow no longer.
    pub(crate) fn catch_up(&mut self, conn: ConnId) {
        self.slow.remove(&conn);
        self.drain(conn);
        self.pump();
    }

    /// The bytes that the speaker has sent on a connection since the last look.
    pub(crate) fn taken(&mut self, conn: ConnId) -> Vec<u8> {
        self.pump();
        self.sent.remove(&conn).unwrap_or_default().to_vec()
    }

    /// What the speaker has sent on a connection since the last look.
    pub(crate) fn messages(&mut self, conn: ConnId) -> Vec<Message> {
        self.pump();
        let mut framer = Framer::new();
        framer.allow_extended_messages();
        framer.push(&self.sent.remove(&conn).unwrap_or_default());
        let mut all = Vec::new();
        // Internal: keeps LOCAL_PREF and reflection attributes for the test to see.
        let add_path = self.add_path.get(&conn).copied().unwrap_or_default();
        let ctx =
            DecodeContext { add_path, extended_next_hop: true, ..DecodeContext::modern(PeerType::Internal) };
        while let Some(frame) = framer.next_frame().expect("we frame our own messages right") {
            all.push(wire::decode(frame, &ctx).expect("we encode our own messages right"));
        }
        assert_eq!(framer.buffered(), 0, "half a message was sent");
        all
    }

    /// Only the UPDATEs among them.
    pub(crate) fn updates(&mut self, conn: ConnId) -> Vec<Update> {
        let updates = self.messages(conn).into_iter().filter_map(|m| match m {
            Message::Update(u) => Some(*u),
            _ => None,
        });
        updates.collect()
    }

    /// The NOTIFICATION among what was sent last, as (code, subcode).
    pub(crate) fn notification(&mut self, conn: ConnId) -> Option<(u8, u8)> {
        self.messages(conn).into_iter().find_map(|m| match m {
            Message::Notification(n) => Some((n.code, n.subcode)),
            _ => None,
        })
    }

    pub(crate) fn endpoints(&self, remote: IpAddr) -> Endpoints {
        let local = match remote {
            IpAddr::V4(_) => ip("10.0.0.1"),
            IpAddr::V6(_) => ip("fd00::1"),
        };
        Endpoints {
            local: SocketAddr::new(local, 179),
            remote: SocketAddr::new(remote, 40000),
            ifindex: 2,
            ipv4: Some(self.own_v4),
            ipv6: Some("fd00::1".parse().unwrap()),
            link_local: Some("fe80::1".parse().unwrap()),
            connected: true,
            subnets: [p("10.0.0.0/24"), p("fd00::/64")].into_iter().collect(),
        }
    }

    /// The dial that is waiting; panics if there is none.
    pub(crate) fn dial(&mut self) -> ConnId {
        self.pump();
        self.dials.pop_front().expect("a dial").0
    }

    /// The speaker dials and gets through.
    pub(crate) fn connect(&mut self, remote: &str) -> ConnId {
        let conn = self.dial();
        let endpoints = self.endpoints(ip(remote));
        self.speaker.connected(self.now, conn, endpoints);
        self.pump();
        conn
    }

    pub(crate) fn accept(&mut self, remote: &str) -> Option<ConnId> {
        let endpoints = self.endpoints(ip(remote));
        let conn = self.speaker.accepted(self.now, endpoints);
        self.pump();
        conn
    }

    pub(crate) fn send(&mut self, conn: ConnId, message: &Message) {
        let mut out = BytesMut::new();
        match message {
            Message::Open(o) => o.encode(&mut out),
            Message::Keepalive => wire::keepalive(&mut out),
            Message::Notification(n) => n.encode(&mut out),
            Message::RouteRefresh(r) => r.encode(&mut out),
            Message::Update(_) | Message::Ignored(_) => panic!("use announce, withdraw or end_of_rib"),
        }
        self.send_bytes(conn, &out);
    }

    pub(crate) fn send_bytes(&mut self, conn: ConnId, bytes: &[u8]) {
        self.speaker.received(self.now, conn, bytes);
        self.pump();
    }

    pub(crate) fn announce(&mut self, conn: ConnId, prefixes: &[&str], set: &PathAttributes, next_hop: &str) {
        let next_hop = match ip(next_hop) {
            IpAddr::V4(a) => NextHop::V4(a),
            IpAddr::V6(global) => NextHop::V6 { global, link_local: None },
        };
        self.announce_all(conn, prefixes, set, next_hop);
    }

    /// With a next hop of any form.
    pub(crate) fn announce_with(&mut self, conn: ConnId, prefix: &str, set: &PathAttributes, hop: NextHop) {
        self.announce_all(conn, &[prefix], set, hop);
    }

    fn announce_all(&mut self, conn: ConnId, prefixes: &[&str], set: &PathAttributes, next_hop: NextHop) {
        let family = p(prefixes[0]).family();
        let ctx = EncodeContext { extended_next_hop: true, ..EncodeContext::modern(PeerType::Internal) };
        let mut out = BytesMut::new();
        let mut nlri = prefixes.iter().map(|s| Nlri { prefix: p(s), path_id: 0 }).peekable();
        let encoded = EncodedAttributes::new(set, &ctx);
        while wire::reach(&mut out, &ctx, &encoded, next_hop, family, &mut nlri).unwrap() > 0 {}
        self.send_bytes(conn, &out);
    }

    pub(crate) fn withdraw(&mut self, conn: ConnId, prefixes: &[&str]) {
        let ctx = EncodeContext::modern(PeerType::External);
        let mut out = BytesMut::new();
        let mut nlri = prefixes.iter().map(|s| Nlri { prefix: p(s), path_id: 0 }).peekable();
        while wire::withdraw(&mut out, &ctx, p(prefixes[0]).family(), &mut nlri) > 0 {}
        self.send_bytes(conn, &out);
    }

    /// As a peer with Add-Path says it.
    pub(crate) fn announce_paths(
        &mut self,
        conn: ConnId,
        paths: &[(&str, u32)],
        set: &PathAttributes,
        next_hop: &str,
    ) {
        let ctx =
            EncodeContext { add_path: PerFamily::both(true), ..EncodeContext::modern(PeerType::Internal) };
        let IpAddr::V4(next_hop) = ip(next_hop) else { panic!("an IPv4 next hop for IPv4 prefixes") };
        let mut out = BytesMut::new();
        let mut nlri = paths.iter().map(|(s, path_id)| Nlri { prefix: p(s), path_id: *path_id }).peekable();
        let encoded = EncodedAttributes::new(set, &ctx);
        let (hop, family) = (NextHop::V4(next_hop), Family::Ipv4Unicast);
        while wire::reach(&mut out, &ctx, &encoded, hop, family, &mut nlri).unwrap() > 0 {}
        self.send_bytes(conn, &out);
    }

    pub(crate) fn withdraw_paths(&mut self, conn: ConnId, paths: &[(&str, u32)]) {
        let ctx =
            EncodeContext { add_path: PerFamily::both(true), ..EncodeContext::modern(PeerType::Internal) };
        let mut out = BytesMut::new();
        let mut nlri = paths.iter().map(|(s, path_id)| Nlri { prefix: p(s), path_id: *path_id }).peekable();
        while wire::withdraw(&mut out, &ctx, Family::Ipv4Unicast, &mut nlri) > 0 {}
        self.send_bytes(conn, &out);
    }

    pub(crate) fn end_of_rib(&mut self, conn: ConnId, family: Family) {
        let mut out = BytesMut::new();
        wire::end_of_rib(&mut out, family);
        self.send_bytes(conn, &out);
    }

    pub(crate) fn peer(&mut self, config: PeerConfig) {
        self.speaker.set_peer(self.now, config);
        self.pump();
    }

    /// An external peer at 10.0.0.2 in AS 65001, passive so that tests choose who connects.
    pub(crate) fn tor(name: &str, address: &str) -> PeerConfig {
        let mut config = PeerConfig::new(name, ip(address), RemoteAs::External);
        config.passive = true;
        config
    }

    /// Brings a configured peer up by an incoming connection with this OPEN.
    pub(crate) fn establish(&mut self, remote: &str, open: Open) -> ConnId {
        let conn = self.accept(remote).expect("the peer is configured and listening");
        self.send(conn, &Message::Open(open));
        self.send(conn, &Message::Keepalive);
        assert_eq!(self.state_at(remote), "Established");
        conn
    }

    /// Brings the peer that is being dialled up: AS 65001, its address as identifier.
    pub(crate) fn establish_by_dial(&mut self, remote: &str) -> ConnId {
        let conn = self.connect(remote);
        self.send(conn, &Message::Open(open(TOR_AS, remote)));
        self.send(conn, &Message::Keepalive);
        assert_eq!(self.state_at(remote), "Established");
        conn
    }

    pub(crate) fn view(&self, name: &str) -> PeerView {
        self.speaker.peer_view(self.now, name).expect("the peer is configured")
    }

    pub(crate) fn state(&self, name: &str) -> &'static str {
        self.view(name).state
    }

    fn state_at(&self, remote: &str) -> &'static str {
        let remote = ip(remote);
        self.speaker
            .peers(self.now)
            .into_iter()
            .find(|v| v.address == Some(remote.into()))
            .expect("configured")
            .state
    }

    /// Lets time pass, timer by timer.
    pub(crate) fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        self.pump();
        let mut steps = 0;
        while let Some(next) = self.speaker.poll_timeout().filter(|t| *t <= until) {
            self.now = self.now.max(next);
            self.speaker.handle_timeout(self.now);
            self.pump();
            steps += 1;
            assert!(steps < 1_000_000, "timers do not let time pass");
        }
        self.now = until;
    }

    pub(crate) fn originate(&mut self, prefix: &str) {
        self.speaker.originate(self.now, LocalRoute::new(p(prefix)));
        self.pump();
    }

    pub(crate) fn routes(&self) -> Vec<RouteView> {
        self.speaker.routes(&RouteQuery::LocRib)
    }

    /// The one path to a prefix that came from a peer.
    pub(crate) fn path(&self, prefix: &str, from: &str) -> Option<RouteView> {
        let from = ip(from);
        self.speaker.explain(p(prefix)).paths.into_iter().find(|r| r.from == Some(from))
    }
}
