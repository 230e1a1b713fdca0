//! The event loop: one turn hears one thing, tells the speaker, and does what the speaker wants done.
//!
//! Fairness: timers are looked at before every turn, and a turn reads at most one buffer from one connection and writes a
//! few to one, so that neither a peer that floods nor one that takes everything keeps the others waiting.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::net::connection::{Connection, Phase, Written};
use crate::net::dial::{self, dial};
use crate::net::interfaces::{endpoints, link_local_of};
use crate::net::link;
use crate::net::listener::Listener;
use crate::net::outbox::Outbox;
use crate::net::sockopt;
use crate::net::{Command, Event, InterfaceLookup, NetConfig, Shutdown, now};
use crate::session::TransportError;
use crate::speaker::{
    ConnId, ConnectRequest, Effect, Endpoints, PeerAddr, Secret, SocketOptions, Speaker, SpeakerConfig,
};
use crate::types::Prefix;

/// Octets read from a connection in one turn.
const READ_BUFFER: usize = 64 * 1024;
/// Buffers of some 64 kB written to a connection in one turn.
const WRITES_A_TURN: usize = 4;
/// A peer has so long to take our last bytes and close its side.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// So many connections from one address may be on their way out; the oldest goes at once for a further one, so that a peer
/// that connects again and again and never closes its side holds few descriptors.
const MAX_CLOSING: usize = 8;
/// The whole of an orderly stop.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// So long a peer takes at most from the end of a connection to the beginning of its help: less than any detection time.
const HELPER_BEGINS: Duration = Duration::from_millis(100);
/// BFD's last words.
const LINK_STOP_DEADLINE: Duration = Duration::from_millis(500);
/// After so long without a look at the sockets of others it is taken: a task that never waits keeps its runtime from
/// asking the kernel.
const LOOK_UP: Duration = Duration::from_millis(1);
/// When the process or the host has no descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What a future has waited for.
enum Ready {
    Dialled(ConnId, io::Result<TcpStream>),
    Readable(ConnId),
    Writable(ConnId),
    CloseDeadline(ConnId),
    Accepted(SocketAddr, io::Result<(TcpStream, SocketAddr)>),
    Bind(SocketAddr),
    AcceptAgain(SocketAddr),
    /// Cancelled.
    Gone,
}

type Waiting = Pin<Box<dyn Future<Output = Ready> + Send>>;

struct Driver {
    speaker: Speaker,
    interfaces: InterfaceLookup,
    conns: HashMap<ConnId, Connection>,
    /// Where the agent wants to listen.
    listen: Vec<SocketAddr>,
    listeners: HashMap<SocketAddr, Listener>,
    /// What the sockets of each peer need, by its address.
    peers: HashMap<PeerAddr, SocketOptions>,
    /// And of those who come from a range, if they have none of their own.
    ranges: BTreeMap<Prefix, SocketOptions>,
    link: mpsc::UnboundedSender<link::Command>,
    /// Connections on their way out, by the peer's address, oldest first.
    closing: HashMap<IpAddr, VecDeque<ConnId>>,
    ready: FuturesUnordered<Waiting>,
    outbox: Outbox,
    read_buffer: Box<[u8]>,
    write_buffer: BytesMut,
    stopping: Option<Stopping>,
}

/// An orderly stop under way.
struct Stopping {
    deadline: Instant,
    done: oneshot::Sender<()>,
}

/// Runs until it is told to stop or all handles are gone. Gives whom to tell when the sockets are closed.
pub(super) async fn run(
    config: NetConfig,
    speaker: SpeakerConfig,
    (link, mut reports): (mpsc::UnboundedSender<link::Command>, mpsc::Receiver<link::Report>),
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<Event>,
) -> Option<oneshot::Sender<()>> {
    let mut driver = Driver {
        speaker: Speaker::new(speaker, now()),
        interfaces: config.interfaces,
        conns: HashMap::new(),
        listen: Vec::new(),
        listeners: HashMap::new(),
        peers: HashMap::new(),
        ranges: BTreeMap::new(),
        link,
        closing: HashMap::new(),
        ready: FuturesUnordered::new(),
        outbox: Outbox::default(),
        read_buffer: vec![0; READ_BUFFER].into_boxed_slice(),
        write_buffer: BytesMut::with_capacity(READ_BUFFER),
        stopping: None,
    };
    driver.set_listen(config.listen);
    // The agent has stopped listening to us: no event has to wait for it.
    let mut heard = true;
    let mut looked_up = now();
    loop {
        if now().duration_since(looked_up) >= LOOK_UP {
            tokio::task::yield_now().await;
            looked_up = now();
        }
        driver.obey();
        let events_wait = heard && driver.tell(&events);
        if let Some(stopping) = driver.stopping.take_if(|s| driver.conns.is_empty() || s.deadline <= now()) {
            driver.stop_link().await;
            return Some(stopping.done);
        }
        let deadline = driver.deadline();
        if deadline.is_some_and(|at| at <= now()) {
            driver.speaker.handle_timeout(now());
            continue;
        }
        let timer = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = timer => driver.speaker.handle_timeout(now()),
            command = commands.recv() => match command {
                Some(Command::Stop(Shutdown::Silent, done)) => {
                    driver.end_silently().await;
                    return Some(done);
                }
                Some(command) => driver.on_command(command),
                None => return None,
            },
            Some(report) = reports.recv() => driver.on_report(report),
            Some(ready) = driver.ready.next(), if !driver.ready.is_empty() => driver.on_ready(ready),
            room = events.reserve(), if events_wait => match room {
                Ok(room) => {
                    if let Some(event) = driver.outbox.next(&mut driver.speaker) {
                        room.send(event);
                    }
                }
                Err(_) => heard = false,
            },
        }
    }
}

impl Driver {
    /// When the next turn has to come at the latest.
    fn deadline(&self) -> Option<Instant> {
        self.speaker.poll_timeout().into_iter().chain(self.stopping.as_ref().map(|s| s.deadline)).min()
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Run(f) => {
                let answer = f(&mut self.speaker, now());
                self.obey();
                if let Some(answer) = answer {
                    answer();
                }
            }
            Command::Listen(listen) => self.set_listen(listen),
            Command::RefreshEndpoints => self.refresh_endpoints(),
            Command::Stop(Shutdown::Silent, _) => unreachable!("ends the loop"),
            Command::Stop(Shutdown::Cease(text), done) => {
                self.listeners.clear();
                self.speaker.shutdown(now(), &text);
                self.stopping = Some(Stopping { deadline: now() + STOP_DEADLINE, done });
            }
        }
    }

    /// What BFD and neighbour discovery have found.
    fn on_report(&mut self, report: link::Report) {
        match report {
            link::Report::Bfd(remote, status) => self.speaker.bfd_changed(now(), remote, status),
            link::Report::Neighbor(interface, neighbor) => {
                self.speaker.set_neighbor(now(), &interface, &neighbor);
            }
        }
    }

    fn order(&self, command: link::Command) {
        // The thread ends only with the driver.
        let _ = self.link.send(command);
    }

    /// Connections first: a helper that has begun to help takes BFD's end for part of our restart (FRR does, where our C bit is
    /// 0), while one that hears AdminDown first ends the session and drops our routes. Then AdminDown, well within the detection
    /// time, so that nobody takes an orderly end for a dead path.
    async fn end_silently(&mut self) {
        self.listeners.clear();
        self.conns.values_mut().for_each(Connection::close_our_side);
        if self.speaker.peers(now()).iter().any(|peer| peer.bfd.is_some()) {
            tokio::time::sleep(HELPER_BEGINS).await;
        }
        self.stop_link().await;
    }

    /// BFD's last words.
    async fn stop_link(&self) {
        let (done, stopped) = oneshot::channel();
        self.order(link::Command::Stop(done));
        let _ = tokio::time::timeout(LINK_STOP_DEADLINE, stopped).await;
    }

    fn on_ready(&mut self, ready: Ready) {
        match ready {
            Ready::Dialled(id, result) => self.dialled(id, result),
            Ready::Readable(id) => self.read(id),
            Ready::Writable(id) => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.waiting_to_write = false;
                    self.transmit(id);
                }
            }
            Ready::CloseDeadline(id) => drop(self.conns.remove(&id)),
            Ready::Accepted(at, result) => self.on_accept(at, result),
            Ready::Bind(at) => self.open_listener(at),
            Ready::AcceptAgain(at) => self.accept(at),
            Ready::Gone => {}
        }
    }

    /// Does all that the speaker wants done.
    fn obey(&mut self) {
        while let Some(effect) = self.speaker.poll_effect() {
            match effect {
                Effect::Connect(id, request) => self.start_dial(id, request),
                Effect::Close(id) => self.close(id),
                Effect::Transmit(id) => self.transmit(id),
                Effect::Listen(peer, options) => self.set_peer(peer, options),
                Effect::ListenRange(range, options) => self.set_range(range, options),
                Effect::ChangeKey(id, key) => self.change_key(id, &key),
                Effect::TrackNextHop(hop) => self.outbox.track(hop),
                Effect::UntrackNextHop(hop) => self.outbox.untrack(hop),
                Effect::RestartComplete(family) => self.outbox.restart_complete(family),
                Effect::Discover(interface, on) => self.order(link::Command::Discover(interface, on)),
                Effect::Bfd(ends, config) => self.order(link::Command::Bfd(ends, config)),
                Effect::BfdEnd(remote) => self.order(link::Command::BfdEnd(remote)),
                Effect::Peer(fact) => self.outbox.fact(fact),
            }
        }
    }

    /// Tells what there is to tell while there is room; whether something may be left.
    fn tell(&mut self, events: &mpsc::Sender<Event>) -> bool {
        while let Ok(room) = events.try_reserve() {
            match self.outbox.next(&mut self.speaker) {
                Some(event) => room.send(event),
                None => return false,
            }
        }
        true
    }

    // Connections.

    fn start_dial(&mut self, id: ConnId, request: ConnectRequest) {
        let conn = Connection::dialling();
        let dialling = async move { Ready::Dialled(id, dial(request).await) };
        self.ready.push(until(&conn.cancel, dialling));
        self.conns.insert(id, conn);
    }

    fn dialled(&mut self, id: ConnId, result: io::Result<TcpStream>) {
        if self.conns.remove(&id).is_none() {
            return;
        }
        let both_ends = |stream: TcpStream| {
            let ends = (stream.local_addr()?, stream.peer_addr()?);
            Ok((stream, ends))
        };
        match result.and_then(both_ends) {
            Ok((stream, (local, remote))) => {
                self.conns.insert(id, Connection::open(Arc::new(stream)));
                let endpoints = self.endpoints(local, remote);
                self.speaker.connected(now(), id, endpoints);
                self.wait_to_read(id);
            }
            Err(e) => self.speaker.connect_failed(now(), id, e),
        }
    }

    fn read(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(&id) else { return };
        let Some(stream) = &conn.stream else { return };
        match (stream.try_read(&mut self.read_buffer), conn.phase) {
            (Ok(0), Phase::Open) => self.broken(id, "peer closed the connection"),
            (Ok(n), Phase::Open) => {
                self.speaker.received(now(), id, &self.read_buffer[..n]);
                self.wait_to_read(id);
            }
            (Err(e), _) if e.kind() == io::ErrorKind::WouldBlock => self.wait_to_read(id),
            (Err(e), Phase::Open) => self.broken(id, e),
            // What comes after our last word is not read, only taken out of the way.
            (Ok(1..), Phase::Flushing | Phase::Draining) => self.wait_to_read(id),
            (Ok(0), Phase::Flushing) => {}
            (Ok(0), Phase::Draining) | (Err(_), _) | (Ok(_), Phase::Dialling) => drop(self.conns.remove(&id)),
        }
    }

    /// Moves bytes from the speaker to the socket until one of them has enough, or the turn is over.
    fn transmit(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.waiting_to_write || !matches!(conn.phase, Phase::Open | Phase::Flushing) {
            return;
        }
        let mut written = conn.write_pending();
        for _ in 0..WRITES_A_TURN {
            match written {
                Ok(Written::All) => {}
                Ok(Written::Blocked) => return self.wait_to_write(id),
                Err(e) => return self.broken(id, e),
            }
            let more = self.speaker.poll_transmit(id, &mut self.write_buffer);
            if !more && self.write_buffer.is_empty() {
                if conn.phase == Phase::Flushing {
                    conn.close_our_side();
                }
                return;
            }
            written = conn.write_all(&mut self.write_buffer);
        }
        // More tomorrow: the socket is asked again after the others had their turn.
        if let Err(e) = written {
            return self.broken(id, e);
        }
        self.wait_to_write(id);
    }

    /// The connection is lost.
    fn broken(&mut self, id: ConnId, error: impl Into<TransportError>) {
        let Some(conn) = self.conns.remove(&id) else { return };
        if conn.phase == Phase::Open {
            self.speaker.closed(now(), id, error);
        }
    }

    /// The speaker is done with a connection.
    fn close(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.phase == Phase::Dialling {
            self.conns.remove(&id);
            return;
        }
        conn.phase = Phase::Flushing;
        let deadline = async move {
            tokio::time::sleep(CLOSE_DEADLINE).await;
            Ready::CloseDeadline(id)
        };
        self.ready.push(until(&conn.cancel, deadline));
        self.transmit(id);
        self.bound_closing(id);
    }

    fn bound_closing(&mut self, id: ConnId) {
        let Some((_, remote)) = self.conns.get(&id).and_then(Connection::addresses) else { return };
        let conns = &self.conns;
        if self.closing.len() > 2 * conns.len() {
            self.closing.retain(|_, waiting| waiting.iter().any(|id| conns.contains_key(id)));
        }
        let waiting = self.closing.entry(remote.ip()).or_default();
        waiting.retain(|id| conns.contains_key(id));
        waiting.push_back(id);
        if waiting.len() > MAX_CLOSING {
            let oldest = waiting.pop_front().expect("it is longer than that");
            self.conns.remove(&oldest);
        }
    }

    fn change_key(&mut self, id: ConnId, key: &Secret) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (Some(stream), Some((_, remote))) = (&conn.stream, conn.addresses()) else { return };
        if let Err(e) = sockopt::set_md5(&**stream, remote.ip(), None, Some(&key.0)) {
            self.broken(id, dial::named("TCP MD5 key", &e));
        }
    }

    fn wait_to_read(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(&id) else { return };
        let Some(stream) = conn.stream.clone() else { return };
        let readable = async move {
            // An error shows itself when reading.
            let _ = stream.readable().await;
            Ready::Readable(id)
        };
        self.ready.push(until(&conn.cancel, readable));
    }

    fn wait_to_write(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(stream) = conn.stream.clone() else { return };
        conn.waiting_to_write = true;
        let writable = async move {
            let _ = stream.writable().await;
            Ready::Writable(id)
        };
        self.ready.push(until(&conn.cancel, writable));
    }

    // Listeners.

    fn set_listen(&mut self, listen: Vec<SocketAddr>) {
        self.listen = listen;
        self.follow_listen();
    }

    /// Listens where the agent wants it and, for peers by interface, at our link-local address on that link as well.
    fn follow_listen(&mut self) {
        let mut listen = self.listen.clone();
        let links: BTreeSet<u32> = self.peers.keys().map(|peer| peer.ifindex).filter(|i| *i != 0).collect();
        for ifindex in links {
            let Some(ip) = link_local_of(ifindex) else { continue };
            for port in self.listen.iter().map(SocketAddr::port).collect::<BTreeSet<u16>>() {
                let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
                if port != 0 && !self.listen.contains(&everywhere) {
                    listen.push(SocketAddrV6::new(ip, port, 0, ifindex).into());
                }
            }
        }
        self.listen_at(listen);
    }

    fn listen_at(&mut self, listen: Vec<SocketAddr>) {
        self.listeners.retain(|at, _| listen.contains(at));
        for at in listen {
            if let Entry::Vacant(new) = self.listeners.entry(at) {
                new.insert(Listener::new(at));
                self.open_listener(at);
            }
        }
    }

    fn open_listener(&mut self, at: SocketAddr) {
        let Some(listener) = self.listeners.get_mut(&at) else { return };
        match listener.open(&self.peers, &self.ranges) {
            Ok(local) => {
                let unprotected = listener.unprotected.clone();
                self.outbox
                    .listener(local, unprotected.first().map(|peer| format!("no TCP MD5 key for {peer}")));
                self.accept(at);
            }
            Err(reason) => {
                let (wait, cancel) = (listener.retry, listener.cancel.clone());
                self.outbox.listener(at, Some(reason));
                self.ready.push(until(&cancel, async move {
                    tokio::time::sleep(wait).await;
                    Ready::Bind(at)
                }));
            }
        }
    }

    fn accept(&mut self, at: SocketAddr) {
        let Some(listener) = self.listeners.get(&at) else { return };
        let Some(socket) = listener.socket.clone() else { return };
        self.ready.push(until(&listener.cancel, async move { Ready::Accepted(at, socket.accept().await) }));
    }

    fn on_accept(&mut self, at: SocketAddr, result: io::Result<(TcpStream, SocketAddr)>) {
        let Some(listener) = self.listeners.get(&at) else { return };
        match result {
            Ok((stream, remote)) => {
                // A stranger costs one look here; his socket closes as `stream` goes.
                let peer = PeerAddr::of(remote);
                let unprotected = listener.is_unprotected(peer);
                if let Some(options) = self.options_of(peer).filter(|_| !unprotected) {
                    let prepared = dial::apply(SockRef::from(&stream), remote.is_ipv6(), options);
                    if let (Ok(()), Ok(local)) = (prepared, stream.local_addr()) {
                        self.accepted(stream, local, remote);
                    }
                }
                self.accept(at);
            }
            // Gone before we looked; anything else is a lack of descriptors or memory that passes.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => self.accept(at),
            Err(_) => {
                let pause = async move {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    Ready::AcceptAgain(at)
                };
                self.ready.push(until(&listener.cancel, pause));
            }
        }
    }

    /// What the sockets of whoever is at that address need; `None`: a stranger.
    fn options_of(&self, remote: PeerAddr) -> Option<&SocketOptions> {
        let covering = self.ranges.iter().filter(|(range, _)| range.contains_addr(remote.ip));
        let range = || covering.max_by_key(|(range, _)| range.len()).map(|(_, options)| options);
        self.peers.get(&remote).or_else(range)
    }

    fn accepted(&mut self, stream: TcpStream, local: SocketAddr, remote: SocketAddr) {
        let endpoints = self.endpoints(local, remote);
        if let Some(id) = self.speaker.accepted(now(), endpoints) {
            self.conns.insert(id, Connection::open(Arc::new(stream)));
            self.wait_to_read(id);
        }
    }

    fn set_peer(&mut self, peer: PeerAddr, options: Option<SocketOptions>) {
        for listener in self.listeners.values_mut() {
            if let Err(reason) = listener.set_options(peer, options.as_ref()) {
                self.outbox.listener(listener.address, Some(reason));
            }
        }
        match options {
            Some(options) => self.peers.insert(peer, options),
            None => self.peers.remove(&peer),
        };
        if peer.ifindex != 0 {
            self.follow_listen();
        }
        for listener in self.listeners.values() {
            if let Err(reason) = listener.set_floor(&self.peers, &self.ranges) {
                self.outbox.listener(listener.address, Some(reason));
            }
        }
    }

    fn set_range(&mut self, range: Prefix, options: Option<SocketOptions>) {
        for listener in self.listeners.values_mut() {
            if let Err(reason) = listener.set_range(range, options.as_ref()) {
                self.outbox.listener(listener.address, Some(reason));
            }
        }
        match options {
            Some(options) => self.ranges.insert(range, options),
            None => self.ranges.remove(&range),
        };
        for listener in self.listeners.values() {
            if let Err(reason) = listener.set_floor(&self.peers, &self.ranges) {
                self.outbox.listener(listener.address, Some(reason));
            }
        }
    }

    // Interfaces.

    fn endpoints(&self, local: SocketAddr, remote: SocketAddr) -> Endpoints {
        endpoints(local, remote, (self.interfaces)(local))
    }

    fn refresh_endpoints(&mut self) {
        self.order(link::Command::LookAtLinks);
        self.follow_listen();
        let open = self.conns.iter().filter(|(_, conn)| conn.phase == Phase::Open);
        let all: Vec<_> = open.filter_map(|(id, conn)| Some((*id, conn.addresses()?))).collect();
        for (id, (local, remote)) in all {
            let endpoints = self.endpoints(local, remote);
            self.speaker.endpoints_changed(now(), id, endpoints);
        }
    }
}

/// A future that ends early, and lets go of its socket, when what it waits for is given up.
fn until(cancel: &CancellationToken, future: impl Future<Output = Ready> + Send + 'static) -> Waiting {
    let cancel = cancel.clone();
    Box::pin(async move { cancel.run_until_cancelled_owned(future).await.unwrap_or(Ready::Gone) })
}
