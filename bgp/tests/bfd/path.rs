//! The path, and the two ends on it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use manx_bgp::bfd::{BfdConfig, BfdEnds, BfdStatus, Packet, Sessions, State};
use manx_bgp::speaker::PeerAddr;

/// Side A or B, as an index.
pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;

/// Longer than anything here takes to come up: slow start is a packet a second.
pub(crate) const SETTLE: Duration = Duration::from_secs(6);

pub(crate) struct Path {
    pub(crate) now: Instant,
    pub(crate) ends: [Option<Sessions>; 2],
    flying: BTreeMap<(Instant, u64), (usize, Packet)>,
    sequence: u64,
    latency: Duration,
    /// Nothing arrives at this side.
    pub(crate) deaf: [bool; 2],
    /// Of so many packets each n-th is lost.
    pub(crate) lose_each: Option<u64>,
    /// What each side sent, and when.
    pub(crate) sent: Vec<(usize, Instant, Packet)>,
}

fn address(side: usize) -> IpAddr {
    [10, 0, 0, side as u8 + 1].into()
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn fast() -> BfdConfig {
    BfdConfig::default()
}

impl Path {
    /// Both sides want these.
    pub(crate) fn new(a: BfdConfig, b: BfdConfig) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a virtual clock has to begin somewhere")]
        let now = Instant::now();
        let mut path = Path {
            now,
            ends: [None, None],
            flying: BTreeMap::new(),
            sequence: 0,
            latency: ms(2),
            deaf: [false; 2],
            lose_each: None,
            sent: Vec::new(),
        };
        path.start(A, a, 1);
        path.start(B, b, 2);
        path
    }

    /// A process with sessions begins at one side.
    pub(crate) fn start(&mut self, side: usize, config: BfdConfig, seed: u64) {
        self.ends[side] = Some(Sessions::new(seed));
        self.set(side, config);
    }

    pub(crate) fn set(&mut self, side: usize, config: BfdConfig) {
        let ends = BfdEnds { local: address(side), remote: address(1 - side).into() };
        let now = self.now;
        self.end(side).set(now, ends, config);
        self.work();
    }

    pub(crate) fn end(&mut self, side: usize) -> &mut Sessions {
        self.ends[side].as_mut().unwrap()
    }

    pub(crate) fn peer_of(side: usize) -> PeerAddr {
        address(1 - side).into()
    }

    pub(crate) fn status(&mut self, side: usize) -> BfdStatus {
        self.end(side).status(Self::peer_of(side)).unwrap()
    }

    pub(crate) fn state(&mut self, side: usize) -> State {
        self.status(side).state
    }

    pub(crate) fn work(&mut self) {
        for side in [A, B] {
            let now = self.now;
            let Some(sessions) = self.ends[side].as_mut() else { continue };
            sessions.handle_timeout(now);
            while let Some((_, packet)) = sessions.poll_transmit(now) {
                self.sequence += 1;
                self.sent.push((side, now, packet));
                if self.lose_each.is_none_or(|n| !self.sequence.is_multiple_of(n)) {
                    self.flying.insert((now + self.latency, self.sequence), (1 - side, packet));
                }
            }
        }
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.work();
            let flying = self.flying.keys().next().map(|(at, _)| *at);
            let timers = self.ends.iter().flatten().filter_map(Sessions::poll_timeout);
            let Some(next) = flying.into_iter().chain(timers).min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            while let Some(entry) = self.flying.first_entry().filter(|e| e.key().0 <= self.now) {
                let (to, packet) = entry.remove();
                if let Some(sessions) = self.ends[to].as_mut().filter(|_| !self.deaf[to]) {
                    // What a former life of the receiver is meant for is discarded there.
                    let _ = sessions.receive(self.now, address(1 - to), 3, &packet.encode());
                }
            }
        }
        self.now = end;
    }

    pub(crate) fn up(a: BfdConfig, b: BfdConfig) -> Self {
        let mut path = Path::new(a, b);
        path.run(SETTLE);
        assert_eq!((path.state(A), path.state(B)), (State::Up, State::Up));
        path
    }

    /// How long until a side is in a state, in steps of a millisecond.
    pub(crate) fn until(&mut self, side: usize, state: State, limit: Duration) -> Duration {
        let start = self.now;
        while self.state(side) != state {
            assert!(self.now - start < limit, "{:?} not within {limit:?}: {:?}", state, self.status(side));
            self.run(ms(1));
        }
        self.now - start
    }

    /// Times between the packets of a side, but for answers to polls.
    pub(crate) fn gaps(&self, side: usize, since: Instant) -> Vec<Duration> {
        let times: Vec<Instant> = self
            .sent
            .iter()
            .filter(|(s, at, packet)| *s == side && *at >= since && !packet.final_)
            .map(|(_, at, _)| *at)
            .collect();
        times.windows(2).map(|w| w[1] - w[0]).collect()
    }
}
