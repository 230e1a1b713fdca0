//! Nodes (a driver and its events) and raw peers (a socket and the wire codec).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use manx_bgp::net::{self, BgpHandle, Event, InterfaceAddresses, NetConfig};
use manx_bgp::speaker::{LocalRoute, NextHopState, PeerConfig, RemoteAs, RouteChange, SpeakerConfig};
use manx_bgp::types::{Asn, Family, PeerType, Prefix, RouterId};
use manx_bgp::wire::message::{Capability, Message, Notification, Open, Update};
use manx_bgp::wire::{DecodeContext, Framer, decode, keepalive};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longer than anything that is waited for takes, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// 127.0.0.N.
pub(crate) fn loopback(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, n).into()
}

/// The AS of 127.0.0.N.
pub(crate) fn asn(n: u8) -> Asn {
    Asn(65000 + u32::from(n))
}

/// Next hops of 127.0.0.N: loopback addresses are refused as such.
pub(crate) fn interface_of(n: u8) -> InterfaceAddresses {
    InterfaceAddresses {
        ifindex: 1,
        ipv4: Some([10, 0, 0, n].into()),
        ipv6: Some(format!("fd00::{n}").parse().unwrap()),
        link_local: None,
        subnets: [Prefix::new([127, 0, 0, 0].into(), 8).unwrap()].into_iter().collect(),
    }
}

/// A driver that listens on 127.0.0.N.
pub(crate) struct Node {
    pub(crate) n: u8,
    pub(crate) handle: BgpHandle,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) listens: SocketAddr,
}

impl Node {
    pub(crate) async fn start(n: u8) -> Node {
        Node::start_at(n, 0).await
    }

    pub(crate) async fn start_at(n: u8, port: u16) -> Node {
        let config = NetConfig {
            listen: vec![SocketAddr::new(loopback(n), port)],
            interfaces: Arc::new(move |_| interface_of(n)),
            paths: None,
        };
        let router_id = RouterId::new([10, 0, 0, n].into()).unwrap();
        let (handle, mut events) = net::spawn(config, SpeakerConfig::new(asn(n), router_id)).unwrap();
        let listens = match timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
            Event::Listening(address) => address,
            other => panic!("not listening: {other:?}"),
        };
        Node { n, handle, events, listens }
    }

    /// The configuration of a peer at 127.0.0.N with a short hold time.
    pub(crate) fn peer(&self, n: u8, port: u16) -> PeerConfig {
        PeerConfig {
            port,
            source: Some(loopback(self.n)),
            connect_retry: Duration::from_secs(1),
            hold_time: manx_bgp::types::HoldTime::from_wire(9).unwrap(),
            ..PeerConfig::new(format!("peer-{n}"), loopback(n), RemoteAs::Asn(asn(n)))
        }
    }

    /// A peer that has to come to us.
    pub(crate) fn passive_peer(&self, n: u8) -> PeerConfig {
        PeerConfig { passive: true, ..self.peer(n, 1) }
    }

    pub(crate) async fn set_peer(&self, config: PeerConfig) {
        self.handle.with(move |speaker, now| speaker.set_peer(now, config)).await.unwrap();
    }

    pub(crate) async fn originate(&self, prefixes: impl IntoIterator<Item = Prefix>) {
        let routes: Vec<_> = prefixes.into_iter().map(LocalRoute::new).collect();
        let call = |speaker: &mut manx_bgp::speaker::Speaker, now| {
            for route in routes {
                speaker.originate(now, route);
            }
        };
        self.handle.with(call).await.unwrap();
    }

    /// The next event; next hops that are asked about are answered on the way.
    pub(crate) async fn event(&mut self) -> Event {
        let event =
            timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("the driver runs");
        if let Event::NextHops(hops) = &event {
            let reachable = NextHopState::Reachable { metric: 0, connected: true };
            for (hop, _) in hops.iter().copied().filter(|(_, watch)| *watch) {
                self.handle.send(move |speaker, now| speaker.set_next_hop(now, hop, reachable));
            }
        }
        event
    }

    /// Waits until a peer enters a state; gives the reason.
    pub(crate) async fn peer_enters(&mut self, state: &str) -> String {
        let entered = async {
            loop {
                if let Event::Peer(fact) = self.event().await
                    && fact.to == state
                {
                    return fact.reason;
                }
            }
        };
        timeout(PATIENCE, entered).await.expect("the state in time")
    }

    /// Waits for the next batch of route changes.
    pub(crate) async fn routes(&mut self) -> Vec<RouteChange> {
        loop {
            if let Event::Routes(changes) = self.event().await {
                return changes;
            }
        }
    }
}

/// A prefix from text.
pub(crate) fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// /24s from 20.0.0.0 on.
pub(crate) fn blocks(count: u32) -> impl Iterator<Item = Prefix> {
    (0..count).map(|i| Prefix::new(Ipv4Addr::from_bits(0x1400_0000 + (i << 8)).into(), 24).unwrap())
}

/// The far side as a socket: says what it is told to say.
pub(crate) struct RawPeer {
    pub(crate) n: u8,
    /// What its OPEN says; that of 127.0.0.N unless told otherwise.
    pub(crate) asn: Asn,
    pub(crate) stream: TcpStream,
    framer: Framer,
}

impl RawPeer {
    /// Connects from 127.0.0.N.
    pub(crate) async fn connect(n: u8, to: SocketAddr) -> RawPeer {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(loopback(n), 0).into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        RawPeer::connect_with(n, socket, to).await.unwrap()
    }

    pub(crate) async fn connect_with(n: u8, socket: Socket, to: SocketAddr) -> std::io::Result<RawPeer> {
        let stream = tokio::net::TcpSocket::from_std_stream(socket.into()).connect(to).await?;
        Ok(RawPeer { n, asn: asn(n), stream, framer: Framer::new() })
    }

    /// One that was dialled by us.
    pub(crate) fn from_stream(n: u8, stream: TcpStream) -> RawPeer {
        RawPeer { n, asn: asn(n), stream, framer: Framer::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next message; `None` when the connection has ended.
    pub(crate) async fn message(&mut self) -> Option<Message> {
        let ctx = DecodeContext::modern(PeerType::External);
        loop {
            if let Some(frame) = self.framer.next_frame().unwrap() {
                return Some(decode(frame, &ctx).unwrap());
            }
            let mut buffer = [0; 8192];
            let read =
                timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("bytes or an end in time");
            match read.expect("an orderly end, not a reset") {
                0 => return None,
                n => self.framer.push(&buffer[..n]),
            }
        }
    }

    /// The next message that is an UPDATE with something in it.
    pub(crate) async fn update(&mut self) -> Update {
        loop {
            match self.message().await.expect("an UPDATE") {
                Message::Update(update) if update.end_of_rib.is_none() => return *update,
                Message::Notification(notification) => panic!("{notification}"),
                _ => {}
            }
        }
    }

    /// All that comes until the end; the last message must be a NOTIFICATION.
    pub(crate) async fn notification_and_end(&mut self) -> Notification {
        let mut last = None;
        while let Some(message) = self.message().await {
            last = Some(message);
        }
        match last {
            Some(Message::Notification(notification)) => notification,
            other => panic!("the last message is {other:?}"),
        }
    }

    /// Our OPEN, with this hold time.
    pub(crate) fn open(&self, hold_time: u16) -> BytesMut {
        let open = Open {
            asn: self.asn,
            hold_time,
            router_id: RouterId::new([10, 0, 0, self.n].into()).unwrap(),
            capabilities: vec![
                Capability::Multiprotocol(Family::Ipv4Unicast),
                Capability::Multiprotocol(Family::Ipv6Unicast),
                Capability::FourOctetAs(self.asn),
            ],
            extended: false,
        };
        let mut out = BytesMut::new();
        open.encode(&mut out);
        out
    }

    /// Comes up: OPEN, their OPEN, KEEPALIVE, their KEEPALIVE.
    pub(crate) async fn establish(&mut self, hold_time: u16) {
        let open = self.open(hold_time);
        self.send(&open).await;
        loop {
            match self.message().await.expect("a session") {
                Message::Open(_) => self.send_keepalive().await,
                Message::Keepalive => return,
                other => panic!("{other:?}"),
            }
        }
    }

    /// The same after their OPEN has been read.
    pub(crate) async fn establish_from_open(&mut self) {
        let open = self.open(90);
        self.send(&open).await;
        self.send_keepalive().await;
        assert_eq!(self.message().await, Some(Message::Keepalive));
    }

    pub(crate) async fn send_keepalive(&mut self) {
        let mut out = BytesMut::new();
        keepalive(&mut out);
        self.send(&out).await;
    }
}
