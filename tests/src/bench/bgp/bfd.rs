//! The far end of a BFD session: answers by the book, and measures how punctual the packets of the speaker under test are.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use manx_bgp::bfd::{BfdConfig, BfdEnds, Packet, Sessions, State};

use crate::netns::Netns;

/// RFC 5881 4: control packets of single hop sessions go there, with TTL 255, from a port of this range.
const PORT: u16 = 3784;
const SOURCE_PORT: u16 = 49152;
const TTL: u32 = 255;
/// Packets are agreed to come so often; with jitter up to a quarter earlier (RFC 5880 6.8.7), never later.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);

/// A running far end.
#[derive(Debug)]
pub(super) struct Bfd {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    last: Option<Instant>,
    longest: Duration,
    /// How often the session left Up.
    flaps: u64,
}

impl Bfd {
    /// Answers at `local` in `netns` whoever speaks from `remote`.
    pub(super) fn start(netns: &Netns, local: Ipv4Addr, remote: Ipv4Addr) -> Result<Self> {
        let (inbox, outbox) = netns.enter(|| -> Result<_> {
            let inbox = UdpSocket::bind(SocketAddrV4::new(local, PORT))?;
            let outbox = UdpSocket::bind(SocketAddrV4::new(local, SOURCE_PORT))?;
            outbox.set_ttl(TTL)?;
            Ok((inbox, outbox))
        })??;
        let shared = Arc::new(Shared::default());
        let there = shared.clone();
        let thread = std::thread::spawn(move || there.run(&inbox, &outbox, local, remote));
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Begins to measure.
    pub(super) fn watch(&self) {
        let mut seen = self.shared.seen();
        seen.last = Some(Instant::now());
        seen.longest = Duration::ZERO;
        seen.flaps = 0;
    }

    /// How much later than agreed a packet came at most since [`Bfd::watch`]; `None`: the session was not Up all the time.
    pub(super) fn latest(&self) -> Option<Duration> {
        let seen = self.shared.seen();
        let running = seen.last.map_or(Duration::ZERO, |last| last.elapsed());
        (seen.flaps == 0).then(|| seen.longest.max(running).saturating_sub(INTERVAL))
    }

    /// It is Up.
    pub(super) fn is_up(&self) -> bool {
        self.shared.seen().last.is_some()
    }
}

impl Drop for Bfd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, inbox: &UdpSocket, outbox: &UdpSocket, local: Ipv4Addr, remote: Ipv4Addr) {
        let mut sessions = Sessions::new(1);
        let config = BfdConfig { min_tx: INTERVAL, min_rx: INTERVAL, multiplier: 3 };
        let ends = BfdEnds { local: local.into(), remote: std::net::IpAddr::from(remote).into() };
        sessions.set(Instant::now(), ends, config);
        let mut buffer = [0; 256];
        while !self.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            sessions.handle_timeout(now);
            while let Some((_, packet)) = sessions.poll_transmit(now) {
                let _ = outbox.send_to(&packet.encode(), SocketAddrV4::new(remote, PORT));
            }
            while let Some((_, status)) = sessions.poll_status() {
                let mut seen = self.seen();
                seen.flaps += u64::from(seen.last.is_some() && status.state != State::Up);
            }
            let left = sessions.poll_timeout().map_or(INTERVAL, |at| at.saturating_duration_since(now));
            let _ = inbox.set_read_timeout(Some(left.clamp(Duration::from_millis(1), INTERVAL)));
            let Ok((length, _)) = inbox.recv_from(&mut buffer) else { continue };
            let Ok(packet) = Packet::decode(&buffer[..length]) else { continue };
            let now = Instant::now();
            let mut seen = self.seen();
            if let Some(last) = seen.last {
                seen.longest = seen.longest.max(now - last);
            }
            if packet.state == State::Up {
                seen.last = Some(now);
            }
            drop(seen);
            // What is discarded is counted there, and makes the session fail.
            let _ = sessions.receive(now, remote.into(), 0, &buffer[..length]);
        }
    }
}
