//! Bidirectional forwarding detection (RFC 5880), single hop over UDP (RFC 5881): does the path to a peer work, answered in
//! fractions of a second. Pure: packets and `now` come in, packets, states and deadlines go out.
//!
//! `session` is one neighbour's state machine; this module is the table of them: whom a packet belongs to, discriminators,
//! and what is due. The sockets are in `net::bfd`.

pub mod packet;
pub mod session;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::session::timers::Jitter;
use crate::speaker::PeerAddr;

pub use packet::{Diagnostic, Discard, Packet, State};
pub use session::Session;

/// What we want of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BfdConfig {
    /// bfd.DesiredMinTxInterval: we do not want to send faster.
    pub min_tx: Duration,
    /// bfd.RequiredMinRxInterval: we do not want to receive faster. Not zero.
    pub min_rx: Duration,
    /// bfd.DetectMult: the peer gives up after so many missing packets; at least 1.
    pub multiplier: u8,
}

impl Default for BfdConfig {
    /// 100 ms both ways, three packets: a dead path is known after 300 ms.
    fn default() -> Self {
        BfdConfig { min_tx: Duration::from_millis(100), min_rx: Duration::from_millis(100), multiplier: 3 }
    }
}

/// Between which addresses a session runs: those of the BGP session that it watches over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BfdEnds {
    /// Ours.
    pub local: IpAddr,
    /// The peer's.
    pub remote: PeerAddr,
}

/// A session as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BfdStatus {
    /// Ours.
    pub state: State,
    /// The peer's, as it last said.
    pub remote_state: State,
    /// Since when it is in this state.
    pub since: Instant,
    /// Without a packet for so long it goes down; `None`: the peer was not heard yet.
    pub detection_time: Option<Duration>,
    /// So often we send, before jitter.
    pub tx_interval: Duration,
    /// Our multiplier.
    pub multiplier: u8,
    /// How often it left Up.
    pub flaps: u64,
    /// It left Up last because an administrator, ours or the peer's, wanted it: the path may be as good as before
    /// (RFC 5882 4.2).
    pub administrative: bool,
    /// Why it is down, where it was up before or cannot come up.
    pub reason: Option<String>,
}

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    sessions: BTreeMap<PeerAddr, (BfdEnds, Session)>,
    by_discriminator: FxHashMap<u32, PeerAddr>,
    next_discriminator: u32,
    jitter: Jitter,
    discarded: u64,
}

impl Sessions {
    /// None yet. The seed gives jitter and the first discriminator, which differ between processes: a peer must not take a
    /// successor's session for its predecessor's.
    pub fn new(seed: u64) -> Self {
        Sessions {
            sessions: BTreeMap::new(),
            by_discriminator: FxHashMap::default(),
            next_discriminator: (seed ^ seed >> 32) as u32,
            jitter: Jitter::new(seed),
            discarded: 0,
        }
    }

    /// Starts a session, or changes it. New ends are a new session: what was known of the old path says nothing of the new one.
    pub fn set(&mut self, now: Instant, ends: BfdEnds, config: BfdConfig) {
        match self.sessions.get_mut(&ends.remote) {
            Some((old, session)) if *old == ends => session.configure(now, config),
            _ => {
                self.remove(ends.remote);
                let discriminator = self.new_discriminator();
                self.by_discriminator.insert(discriminator, ends.remote);
                self.sessions.insert(ends.remote, (ends, Session::new(config, discriminator, now)));
            }
        }
    }

    /// Forgets a session without a word; see `admin_down`.
    pub fn remove(&mut self, remote: PeerAddr) {
        if let Some((_, session)) = self.sessions.remove(&remote) {
            self.by_discriminator.remove(&session.discriminator());
        }
    }

    /// Tells the peer of a session, or of all, that it ends by the will of an administrator; the packets are due at once.
    pub fn admin_down(&mut self, now: Instant, remote: Option<PeerAddr>) {
        for (key, (_, session)) in &mut self.sessions {
            if remote.is_none_or(|r| r == *key) {
                session.admin_down(now);
            }
        }
    }

    /// A datagram from this address; `ifindex` is the interface that it came in on. Its TTL was checked (RFC 5881 5).
    ///
    /// # Errors
    /// Why it was discarded.
    pub fn receive(
        &mut self,
        now: Instant,
        from: IpAddr,
        ifindex: u32,
        octets: &[u8],
    ) -> Result<PeerAddr, Undeliverable> {
        let result = self.deliver(now, from, ifindex, octets);
        self.discarded += u64::from(result.is_err());
        result
    }

    fn deliver(
        &mut self,
        now: Instant,
        from: IpAddr,
        ifindex: u32,
        octets: &[u8],
    ) -> Result<PeerAddr, Undeliverable> {
        let packet = Packet::decode(octets)?;
        let sender = PeerAddr::new(from, ifindex);
        // RFC 5880 6.3: by our discriminator once the peer knows it, by the addresses before. The address has to be right in
        // either case: another host on the link must not speak for the peer because it has seen a number.
        let key = match packet.your_discriminator {
            0 => sender,
            known => *self.by_discriminator.get(&known).ok_or(Undeliverable::NoSession)?,
        };
        if key != sender {
            return Err(Undeliverable::WrongSender);
        }
        let (_, session) = self.sessions.get_mut(&key).ok_or(Undeliverable::NoSession)?;
        session.receive(now, &packet);
        Ok(key)
    }

    /// The next packet that is due, and between which ends.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(BfdEnds, Packet)> {
        let jitter = &mut self.jitter;
        self.sessions.values_mut().find_map(|(ends, session)| {
            let packet = session.poll_transmit(now, jitter)?;
            Some((*ends, packet))
        })
    }

    /// The next session that stands otherwise than at the last call.
    pub fn poll_status(&mut self) -> Option<(PeerAddr, BfdStatus)> {
        self.sessions.iter_mut().find_map(|(remote, (_, session))| Some((*remote, session.poll_status()?)))
    }

    /// Something outside the session that people should see with it has changed: it is told once more.
    pub fn touch(&mut self, remote: PeerAddr) {
        if let Some((_, session)) = self.sessions.get_mut(&remote) {
            session.touch();
        }
    }

    /// How a session stands.
    pub fn status(&self, remote: PeerAddr) -> Option<BfdStatus> {
        self.sessions.get(&remote).map(|(_, session)| session.status())
    }

    /// When something is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sessions.values().filter_map(|(_, session)| session.poll_timeout()).min()
    }

    /// Lets detection times expire.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.sessions.values_mut().for_each(|(_, session)| session.handle_timeout(now));
    }

    /// Datagrams that were discarded.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    fn new_discriminator(&mut self) -> u32 {
        loop {
            self.next_discriminator = self.next_discriminator.wrapping_add(1);
            let candidate = self.next_discriminator;
            if candidate != 0 && !self.by_discriminator.contains_key(&candidate) {
                return candidate;
            }
        }
    }
}

/// Why a datagram changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undeliverable {
    /// The packet itself.
    #[error(transparent)]
    Packet(#[from] Discard),
    /// No session is configured with this sender, or its discriminator is from a former life.
    #[error("no session with the sender")]
    NoSession,
    /// The discriminator belongs to a session with another address.
    #[error("the discriminator belongs to another address")]
    WrongSender,
}
