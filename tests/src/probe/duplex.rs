//! A flow whose both ends send all the time, whatever they hear: what a policy change has to end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::Type;

use super::fresh_number;
use crate::netns::Netns;
use crate::scenario::station::{socket, unspecified};

/// Between two packets of one end.
const PACE: Duration = Duration::from_millis(10);
/// How long the first packet may take.
const FIRST: Duration = Duration::from_secs(5);

/// What a flow speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// A connection.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A running flow; it ends when it is dropped.
#[derive(Debug)]
pub struct Duplex {
    stop: Arc<AtomicBool>,
    /// Packets (or bytes) heard by the opener and by the other end.
    heard: [Arc<AtomicU64>; 2],
    threads: Vec<JoinHandle<()>>,
}

enum End {
    Udp(UdpSocket, SocketAddr),
    Tcp(TcpStream),
}

impl Duplex {
    /// Opens a flow from a namespace to a server on `listens` in another one, which is reached as `to` (the same, or an address that
    /// is translated to it).
    ///
    /// # Errors
    /// When the first packet does not come through.
    pub fn open(
        speech: Speech,
        from: &Netns,
        server: &Netns,
        listens: SocketAddr,
        to: SocketAddr,
    ) -> Result<Self> {
        let own = SocketAddr::new(unspecified(to.is_ipv6()), fresh_number());
        let ends = match speech {
            Speech::Udp => {
                let far = UdpSocket::from(server.enter(|| socket(listens, Type::DGRAM))??);
                let near = UdpSocket::from(from.enter(|| socket(own, Type::DGRAM))??);
                let mut peer = None;
                let started = Instant::now();
                while peer.is_none() && started.elapsed() < FIRST {
                    near.send_to(b"x", to)?;
                    std::thread::sleep(PACE);
                    peer = far.recv_from(&mut [0; 64]).ok();
                }
                let (_, peer) = peer.with_context(|| format!("{to} is not reached from {}", from.name()))?;
                [End::Udp(near, to), End::Udp(far, peer)]
            }
            Speech::Tcp => {
                let listener = server.enter(|| TcpListener::bind(listens))??;
                let near = from.enter(|| TcpStream::connect_timeout(&to, FIRST))?;
                let near = near.with_context(|| format!("{to} is not reached from {}", from.name()))?;
                let (far, _) = listener.accept()?;
                for stream in [&near, &far] {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                }
                [End::Tcp(near), End::Tcp(far)]
            }
        };
        let stop = Arc::new(AtomicBool::new(false));
        let heard = [0, 1].map(|_| Arc::new(AtomicU64::new(0)));
        let threads = ends
            .into_iter()
            .zip(&heard)
            .map(|(end, heard)| {
                let (stop, heard) = (Arc::clone(&stop), Arc::clone(heard));
                std::thread::spawn(move || end.talk(&stop, &heard))
            })
            .collect();
        Ok(Self { stop, heard, threads })
    }

    /// How much the opener and the other end have heard so far.
    pub fn heard(&self) -> [u64; 2] {
        [0, 1].map(|end| self.heard[end].load(Ordering::Relaxed))
    }

    /// Whether both ends hear something within `limit`.
    pub fn is_alive(&self, limit: Duration) -> bool {
        let before = self.heard();
        let started = Instant::now();
        while started.elapsed() < limit {
            let now = self.heard();
            if now[0] > before[0] && now[1] > before[1] {
                return true;
            }
            std::thread::sleep(PACE);
        }
        false
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl End {
    fn talk(mut self, stop: &AtomicBool, heard: &AtomicU64) {
        let mut buffer = [0; 4096];
        while !stop.load(Ordering::Relaxed) {
            // A full buffer, an ICMP error: the flow goes on.
            match &mut self {
                Self::Udp(socket, peer) => {
                    let _ = socket.send_to(b"x", *peer);
                    while let Ok((length, _)) = socket.recv_from(&mut buffer) {
                        heard.fetch_add(length as u64, Ordering::Relaxed);
                    }
                }
                Self::Tcp(stream) => {
                    let _ = stream.write(b"x");
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        heard.fetch_add(length as u64, Ordering::Relaxed);
                    }
                }
            }
            std::thread::sleep(PACE);
        }
    }
}
