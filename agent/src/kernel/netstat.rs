//! Counters of TCP segments that were dropped before any socket saw them. They belong to the whole network namespace, so
//! that a peer can be named only by what else is known of it.

use std::collections::VecDeque;
use std::io;
use std::ops::Sub;
use std::time::{Duration, Instant};

/// How far back differences go: several attempts to connect at the usual five seconds.
const WINDOW: Duration = Duration::from_secs(60);
/// The thread's own view: counters belong to the namespace of whoever opens the file.
const PATH: &str = "/proc/thread-self/net/netstat";

/// Dropped segments since the namespace exists, or in between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// TCPMD5NotFound: without a signature, though we have a key for the sender.
    pub unsigned: u64,
    /// TCPMD5Unexpected: signed, though we have no key for the sender.
    pub signed: u64,
    /// TCPMD5Failure: signed with another key than ours.
    pub wrong_key: u64,
    /// TCPMinTTLDrop: from farther away than TTL security allows.
    pub too_far: u64,
}

impl Sub for Dropped {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Dropped {
            unsigned: self.unsigned.saturating_sub(earlier.unsigned),
            signed: self.signed.saturating_sub(earlier.signed),
            wrong_key: self.wrong_key.saturating_sub(earlier.wrong_key),
            too_far: self.too_far.saturating_sub(earlier.too_far),
        }
    }
}

/// Reads the counters.
///
/// # Errors
/// /proc is not there.
pub fn read() -> io::Result<Dropped> {
    Ok(parse(&std::fs::read_to_string(PATH)?))
}

/// Counters that this kernel does not have stay 0.
fn parse(text: &str) -> Dropped {
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (rows.next().unwrap_or_default(), rows.next().unwrap_or_default());
    let value = |wanted: &str| {
        let at = names.split(' ').position(|name| name == wanted)?;
        values.split(' ').nth(at)?.parse().ok()
    };
    Dropped {
        unsigned: value("TCPMD5NotFound").unwrap_or(0),
        signed: value("TCPMD5Unexpected").unwrap_or(0),
        wrong_key: value("TCPMD5Failure").unwrap_or(0),
        too_far: value("TCPMinTTLDrop").unwrap_or(0),
    }
}

/// Readings of the last minute.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<(Instant, Dropped)>);

impl Recent {
    /// Adds a reading.
    pub fn push(&mut self, now: Instant, reading: Dropped) {
        self.0.push_back((now, reading));
        // The newest of those that are too old stays: it is where the window begins.
        while self.0.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.0.pop_front();
        }
    }

    /// What was dropped within the window.
    pub fn dropped(&self) -> Dropped {
        match (self.0.front(), self.0.back()) {
            (Some((_, first)), Some((_, last))) => *last - *first,
            _ => Dropped::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name_wherever_they_stand() {
        let text = "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure\nTcpExt: 7 3 2 1\nIpExt: InOctets\nIpExt: 5\n";
        assert_eq!(parse(text), Dropped { unsigned: 3, signed: 2, wrong_key: 1, too_far: 0 });
        assert_eq!(parse("TcpExt: TCPMinTTLDrop\nTcpExt: 9\n").too_far, 9);
        assert_eq!(parse("TcpExt: TCPMD5NotFound\n"), Dropped::default());
        assert_eq!(parse(""), Dropped::default());
    }

    #[test]
    fn a_difference_reaches_back_a_minute_and_is_forgotten_then() {
        let mut recent = Recent::default();
        let start = Instant::now();
        let reading = |unsigned| Dropped { unsigned, ..Dropped::default() };
        assert_eq!(recent.dropped(), reading(0));
        for second in 0..=120u64 {
            // One segment a second, for half a minute.
            recent.push(start + Duration::from_secs(second), reading(100 + second.min(30)));
            if second == 40 {
                assert_eq!(recent.dropped(), reading(30));
            }
        }
        assert_eq!(recent.dropped(), reading(0));
        assert!(recent.0.len() <= 62, "{}", recent.0.len());
    }

    #[test]
    fn this_kernel_has_the_file() {
        assert!(read().is_ok());
    }
}
