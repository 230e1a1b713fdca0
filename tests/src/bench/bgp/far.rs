//! The far side of a speaker under test: sessions that only inject, only count, or only watch for KEEPALIVEs. Routes are encoded
//! beforehand and counted in a bitmap, so that neither end is what is measured.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::table;
use crate::netns::Netns;

const OPEN: u8 = 1;
pub(super) const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const HEADER_LEN: usize = 19;

/// Of a session that injects or counts; it survives the longest load of the slowest speaker.
const HOLD_TIME: u16 = 600;
/// Ours are sent at least so often while something comes in.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
/// Of a session that watches: the shortest that there is, so that a KEEPALIVE is due every second.
const WATCH_HOLD_TIME: u16 = 3;
/// And this is when: a shorter load says nothing of punctuality.
pub(super) const KEEPALIVE_DUE: Duration = Duration::from_secs(1);
/// For one handshake, which waits for one round trip.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends routes.
    Inject,
    /// Counts the routes that it is sent.
    Monitor,
    /// Speaks IPv6, of which there is none, and measures how punctual KEEPALIVEs are.
    Watch,
}

/// One of the far side's sessions.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Where the speaker under test finds it.
    pub address: Ipv4Addr,
    /// Its AS.
    pub asn: u32,
    /// What it is for.
    pub role: Role,
}

/// Listens in `netns` on port 179 until the speaker under test has called every one of `peers`. Dialling is the other side's:
/// a speaker may or may not accept.
///
/// # Errors
/// When somebody is not called in time.
pub fn accept(netns: &Netns, peers: &[Peer], limit: Duration) -> Result<BTreeMap<Ipv4Addr, Session>> {
    let end = Instant::now() + limit;
    let listener = netns.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 179)))??;
    listener.set_nonblocking(true)?;
    let mut sessions = BTreeMap::new();
    let (established, arrivals) = mpsc::channel();
    let mut complaint = None;
    while sessions.len() < peers.len() {
        match listener.accept() {
            Ok((stream, _)) => {
                let IpAddr::V4(called) = stream.local_addr()?.ip() else { continue };
                let Some(peer) = peers.iter().find(|peer| peer.address == called).copied() else { continue };
                let established = established.clone();
                // A speaker may close a first connection and call again: each has a thread until it is up.
                std::thread::spawn(move || {
                    let _ = established.send(establish(&stream, peer).map(|()| (peer, stream)));
                });
            }
            Err(_) if Instant::now() > end => {
                let missing: Vec<_> =
                    peers.iter().map(|p| p.address).filter(|a| !sessions.contains_key(a)).collect();
                let complaint = complaint.unwrap_or_default();
                bail!("no session with {missing:?} within {limit:?}: {complaint}");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
        for arrival in arrivals.try_iter() {
            match arrival {
                Ok((peer, stream)) => {
                    sessions.insert(peer.address, Session::start(stream, peer.role)?);
                }
                Err(error) => complaint = Some(format!("{error:#}")),
            }
        }
    }
    Ok(sessions)
}

fn establish(mut stream: &TcpStream, peer: Peer) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HANDSHAKE_LIMIT))?;
    stream.write_all(&open(peer))?;
    loop {
        let mut header = [0; HEADER_LEN];
        stream.read_exact(&mut header)?;
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let mut body = vec![0; length.checked_sub(HEADER_LEN).context("a message shorter than its header")?];
        stream.read_exact(&mut body)?;
        match header[18] {
            OPEN => stream.write_all(&message(KEEPALIVE, &[]))?,
            KEEPALIVE => break,
            NOTIFICATION => bail!("the session was refused: NOTIFICATION {body:?}"),
            _ => {}
        }
    }
    stream.set_read_timeout(None)?;
    Ok(())
}

/// An established session.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stream: TcpStream,
    /// Who holds it writes whole messages.
    writing: Mutex<()>,
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// What a session has seen.
#[derive(Debug)]
struct Seen {
    /// How many routes are awaited, and when there were as many.
    awaited: Option<u32>,
    reached: Option<Instant>,
    held: u32,
    /// The last KEEPALIVE, and the longest time without one.
    keepalive: Instant,
    longest: Duration,
    /// Why the session is over.
    ended: Option<String>,
}

impl Session {
    fn start(stream: TcpStream, role: Role) -> Result<Self> {
        let seen = Seen {
            awaited: None,
            reached: None,
            held: 0,
            keepalive: Instant::now(),
            longest: Duration::ZERO,
            ended: None,
        };
        let shared = Arc::new(Shared {
            stream: stream.try_clone()?,
            writing: Mutex::new(()),
            seen: Mutex::new(seen),
            changed: Condvar::new(),
        });
        let mut threads = Vec::new();
        let reader = Arc::clone(&shared);
        threads.push(std::thread::spawn(move || {
            let end = reader.read(stream, role).err().map_or("the end".to_owned(), |e| format!("{e:#}"));
            lock(&reader.seen).ended = Some(end);
            reader.changed.notify_all();
        }));
        if role == Role::Watch {
            let ticker = Arc::clone(&shared);
            threads.push(std::thread::spawn(move || ticker.tick()));
        }
        Ok(Self { shared, threads })
    }

    /// Sends messages as they are.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        let _writing = lock(&self.shared.writing);
        (&self.shared.stream).write_all(bytes).context("the session is gone")
    }

    /// From now on [`Session::reached`] waits for this many routes.
    pub fn expect(&self, routes: u32) {
        let mut seen = lock(&self.shared.seen);
        seen.awaited = Some(routes);
        seen.reached = (seen.held == routes).then(Instant::now);
    }

    /// When the routes that are expected were there.
    ///
    /// # Errors
    /// When they are not there in time, or the session ends.
    pub fn reached(&self, limit: Duration) -> Result<Instant> {
        let end = Instant::now() + limit;
        let mut seen = lock(&self.shared.seen);
        loop {
            if let Some(reached) = seen.reached {
                return Ok(reached);
            }
            if let Some(why) = &seen.ended {
                bail!("the monitor's session ended with {} routes: {why}", seen.held);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the monitor holds {} routes, not {:?}, after {limit:?}", seen.held, seen.awaited);
            }
            (seen, _) = self.shared.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Begins to measure the time between KEEPALIVEs.
    pub fn watch(&self) {
        let mut seen = lock(&self.shared.seen);
        seen.keepalive = Instant::now();
        seen.longest = Duration::ZERO;
    }

    /// The longest time without a KEEPALIVE since [`Session::watch`], the one that still runs included.
    pub fn longest_silence(&self) -> Duration {
        let seen = lock(&self.shared.seen);
        seen.longest.max(seen.keepalive.elapsed())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.shared.stream.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Reads until the session ends.
    fn read(&self, mut stream: TcpStream, role: Role) -> Result<()> {
        let mut held = Held::default();
        let mut buffer = vec![0; 1 << 18];
        let (mut from, mut to) = (0, 0);
        let mut answered = Instant::now();
        loop {
            while let Some((kind, body)) = frame(&buffer[from..to])? {
                match (kind, role) {
                    (UPDATE, Role::Monitor) => {
                        held.update(body).context("an UPDATE that cannot be read")?;
                        self.counted(held.count());
                    }
                    (KEEPALIVE, _) => self.punctual(),
                    (NOTIFICATION, _) => bail!("NOTIFICATION {body:?}"),
                    _ => {}
                }
                from += HEADER_LEN + body.len();
            }
            if answered.elapsed() >= KEEPALIVE_EVERY {
                self.keepalive()?;
                answered = Instant::now();
            }
            buffer.copy_within(from..to, 0);
            (from, to) = (0, to - from);
            match stream.read(&mut buffer[to..])? {
                0 => bail!("the connection was closed"),
                length => to += length,
            }
        }
    }

    fn counted(&self, held: u32) {
        let mut seen = lock(&self.seen);
        seen.held = held;
        if seen.awaited == Some(held) && seen.reached.is_none() {
            seen.reached = Some(Instant::now());
            self.changed.notify_all();
        }
    }

    fn punctual(&self) {
        let mut seen = lock(&self.seen);
        seen.longest = seen.longest.max(seen.keepalive.elapsed());
        seen.keepalive = Instant::now();
    }

    /// Sends a KEEPALIVE, unless UPDATEs are on their way, which say the same.
    fn keepalive(&self) -> Result<()> {
        if let Ok(_writing) = self.writing.try_lock() {
            (&self.stream).write_all(&message(KEEPALIVE, &[]))?;
        }
        Ok(())
    }

    /// Three KEEPALIVEs in a hold time, until the session ends.
    fn tick(&self) {
        let pause = Duration::from_secs(u64::from(WATCH_HOLD_TIME)) / 3;
        let mut seen = lock(&self.seen);
        while seen.ended.is_none() {
            drop(seen);
            if self.keepalive().is_err() {
                return;
            }
            seen = lock(&self.seen);
            (seen, _) = self.changed.wait_timeout(seen, pause).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first whole message: its type and body.
fn frame(bytes: &[u8]) -> Result<Option<(u8, &[u8])>> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER_LEN) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    let body = length.checked_sub(HEADER_LEN).context("a message shorter than its header")?;
    Ok(rest.get(..body).map(|body| (header[18], body)))
}

/// The IPv4 routes that a monitor holds: a bit for each, see [`table::slot`].
#[derive(Debug, Default)]
pub(super) struct Held {
    bits: Vec<u64>,
    count: u32,
}

impl Held {
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Takes an UPDATE's body; `None` when its lengths disagree.
    pub(super) fn update(&mut self, body: &[u8]) -> Option<()> {
        let (withdrawn, rest) = sized(body)?;
        let (_attributes, nlri) = sized(rest)?;
        self.each(withdrawn, false)?;
        self.each(nlri, true)
    }

    fn each(&mut self, mut nlri: &[u8], announced: bool) -> Option<()> {
        while let Some((length, rest)) = nlri.split_first() {
            let (octets, rest) = rest.split_at_checked(usize::from(*length).div_ceil(8))?;
            let mut address = [0; 4];
            address.get_mut(..octets.len())?.copy_from_slice(octets);
            self.set(table::slot((address.into(), *length)), announced);
            nlri = rest;
        }
        Some(())
    }

    fn set(&mut self, slot: usize, held: bool) {
        let (word, bit) = (slot / 64, 1_u64 << (slot % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        if (self.bits[word] & bit != 0) != held {
            self.bits[word] ^= bit;
            self.count = if held { self.count + 1 } else { self.count - 1 };
        }
    }
}

/// A field behind its length of two octets, and what follows.
fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// A message of this type.
pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xff; 16];
    bytes.extend(u16::try_from(HEADER_LEN + body.len()).expect("less than 4096").to_be_bytes());
    bytes.push(kind);
    bytes.extend(body);
    bytes
}

fn open(peer: Peer) -> Vec<u8> {
    let (family, hold_time) = match peer.role {
        Role::Inject | Role::Monitor => (1, HOLD_TIME),
        Role::Watch => (2, WATCH_HOLD_TIME),
    };
    let mut capabilities = vec![1, 4, 0, family, 0, 1, 2, 0, 65, 4]; // one family, route refresh, 4-octet AS
    capabilities.extend(peer.asn.to_be_bytes());
    let mut body = vec![4];
    body.extend(u16::try_from(peer.asn).unwrap_or(23456).to_be_bytes());
    body.extend(hold_time.to_be_bytes());
    body.extend(peer.address.octets());
    let length = u8::try_from(capabilities.len()).expect("few capabilities");
    body.extend([length + 2, 2, length]);
    body.extend(capabilities);
    message(OPEN, &body)
}
