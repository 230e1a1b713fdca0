//! Traffic that goes on while something happens: numbered datagrams at a steady pace, echoed by the far side.
//!
//! A packet lost on either way is one that did not come back. The gap is the longest time between two that did.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

/// How long the last packets may take to come back.
const TAIL: Duration = Duration::from_millis(500);

/// What became of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Packets sent.
    pub sent: u64,
    /// Packets that did not come back.
    pub lost: u64,
    /// Longest time between two packets that came back.
    pub longest_gap: Duration,
}

impl Summary {
    /// Several streams as one: packets added up, the longest gap of all.
    pub fn sum(all: &[Self]) -> Self {
        all.iter().fold(Self::default(), |sum, one| Self {
            sent: sum.sent + one.sent,
            lost: sum.lost + one.lost,
            longest_gap: sum.longest_gap.max(one.longest_gap),
        })
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gap = crate::report::Ms(self.longest_gap);
        write!(f, "{} of {} packets lost, longest gap {gap}", self.lost, self.sent)
    }
}

/// A running UDP stream.
#[derive(Debug)]
pub struct UdpStream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<(u64, Duration)>,
}

impl UdpStream {
    /// Sends a numbered datagram from `from` to `to` every `pace`, until it is stopped.
    ///
    /// # Errors
    /// When the first one is not answered: then there is nothing to measure.
    pub fn start(from: &Netns, to: IpAddr, port: u16, pace: Duration) -> Result<Self> {
        let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let socket = from.enter(|| UdpSocket::bind((any, 0)))??;
        socket.connect((to, port))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send(b"first")?;
        socket
            .recv(&mut [0; 256])
            .with_context(|| format!("{} does not answer {} at all", to, from.name()))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;

        let stop = Arc::new(AtomicBool::new(false));
        let (far, near) = (socket.try_clone()?, socket);
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || send_until(&far, pace, &stopped));
        let stopped = Arc::clone(&stop);
        let receiver = std::thread::spawn(move || receive_until(&near, &stopped));
        Ok(Self { stop, sender, receiver })
    }

    /// Stops several at once, see [`Self::stop`].
    ///
    /// # Errors
    /// When a thread of a stream panicked.
    pub fn stop_all(streams: Vec<Self>) -> Result<Vec<Summary>> {
        for stream in &streams {
            stream.stop.store(true, Ordering::Relaxed);
        }
        streams.into_iter().map(Self::stop).collect()
    }

    /// Stops sending, waits for the last answers and says what was lost.
    ///
    /// # Errors
    /// When a thread of the stream panicked.
    pub fn stop(self) -> Result<Summary> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(sent) = self.sender.join() else { bail!("the sender of a stream panicked") };
        let Ok((received, longest_gap)) = self.receiver.join() else {
            bail!("the receiver of a stream panicked")
        };
        Ok(Summary { sent, lost: sent.saturating_sub(received), longest_gap })
    }
}

fn send_until(socket: &UdpSocket, pace: Duration, stopped: &AtomicBool) -> u64 {
    let started = Instant::now();
    let mut sent: u32 = 0;
    while !stopped.load(Ordering::Relaxed) {
        // A send that fails, as when no route is left, is a packet lost.
        let _ = socket.send(&sent.to_be_bytes());
        sent += 1;
        std::thread::sleep((started + pace * sent).saturating_duration_since(Instant::now()));
    }
    u64::from(sent)
}

fn receive_until(socket: &UdpSocket, stopped: &AtomicBool) -> (u64, Duration) {
    let mut seen = std::collections::HashSet::new();
    let mut longest = Duration::ZERO;
    let mut last = Instant::now();
    let mut ending: Option<Instant> = None;
    let mut buffer = [0; 256];
    loop {
        // Nothing, or an ICMP error that was reported to the socket: the stream goes on.
        if let Ok(4..) = socket.recv(&mut buffer) {
            let number = u32::from_be_bytes(buffer[..4].try_into().expect("four bytes"));
            if seen.insert(number) {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
        }
        if stopped.load(Ordering::Relaxed) {
            let end = *ending.get_or_insert_with(|| Instant::now() + TAIL);
            if Instant::now() >= end {
                return (seen.len() as u64, longest);
            }
        }
    }
}

/// A TCP connection that sends and reads back a line every `pace`.
#[derive(Debug)]
pub struct TcpFlow {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<(u64, Duration)>>,
}

impl TcpFlow {
    /// Connects from `from` to `to` and starts.
    ///
    /// # Errors
    /// When it cannot connect.
    pub fn start(from: &Netns, to: IpAddr, port: u16, pace: Duration) -> Result<Self> {
        let to = SocketAddr::new(to, port);
        let stream = from.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)))??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || exchange(stream, pace, &stopped));
        Ok(Self { stop, thread })
    }

    /// Ends it: how many lines went there and back, and the longest time that one took.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn stop(self) -> Result<(u64, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => result.context("the connection broke"),
            Err(_) => bail!("the thread of a TCP flow panicked"),
        }
    }
}

fn exchange(mut stream: TcpStream, pace: Duration, stopped: &AtomicBool) -> std::io::Result<(u64, Duration)> {
    // The greeting: our address as the far side sees it.
    let mut byte = [0; 1];
    while byte[0] != b'\n' {
        stream.read_exact(&mut byte)?;
    }
    let (mut exchanged, mut slowest) = (0, Duration::ZERO);
    let mut line = [0; 64];
    while !stopped.load(Ordering::Relaxed) {
        let started = Instant::now();
        stream.write_all(&[b'x'; 64])?;
        stream.read_exact(&mut line)?;
        exchanged += 1;
        slowest = slowest.max(started.elapsed());
        std::thread::sleep(pace.saturating_sub(started.elapsed()));
    }
    Ok((exchanged, slowest))
}
