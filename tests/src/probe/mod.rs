//! Real traffic between namespaces, and what the receiver saw of it.
//!
//! A thread enters a namespace only to make a socket: the socket stays there whoever uses it. So a matrix of hundreds of
//! probes runs in this process, without a process for each.

use std::fmt;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub mod client;
pub mod duplex;
pub mod matrix;
pub mod server;
pub mod stream;
pub mod torrent;

/// The ports that every pod listens on, TCP and UDP.
pub const PORTS: [u16; 2] = [8080, 9090];

/// The TTL (hop limit) that Linux sends with.
pub const FIRST_TTL: u8 = 64;

/// A number that no probe has had for minutes, as a source port or an ICMP identifier.
///
/// To a firewall that tracks connections a probe with the ports of an earlier one is no new flow but that one going on, and
/// tells nothing about the rules of today. The kernel's own choice of ports is random and hits an old one now and then.
pub fn fresh_number() -> u16 {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 50_000;
    let next = NEXT.get_or_init(|| {
        // Later runs begin further on: time passes 250 numbers a second, faster than a run uses them.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        AtomicU32::new(u32::try_from(now.as_millis() / 4 % u128::from(COUNT)).expect("less than 50,000"))
    });
    let number = next.fetch_add(1, Ordering::Relaxed) % COUNT + FIRST;
    u16::try_from(number).expect("less than 60,000")
}

/// What a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proto {
    /// Connect and read a line.
    Tcp,
    /// A datagram and its answer.
    Udp,
    /// ICMP echo.
    Ping,
}

impl Proto {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Ping];
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ping => "ping",
        })
    }
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Answered(Answer),
    /// Nothing came back: what a denied probe is expected to end in.
    TimedOut,
    /// Something came back that is no answer: a reset, an ICMP error, or no way to send at all.
    Failed(String),
}

/// What the other side said of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The sender's address as the receiver saw it; none for a ping, which the receiver's kernel answers.
    pub seen_as: Option<IpAddr>,
    /// TTL with which the probe reached the receiver (UDP), or with which the answer came back (ping).
    pub ttl: Option<u8>,
    /// From sending to answer.
    pub took: Duration,
}

impl Outcome {
    /// Whether it was answered.
    pub fn is_answered(&self) -> bool {
        matches!(self, Self::Answered(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(_) => f.write_str("answered"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}
