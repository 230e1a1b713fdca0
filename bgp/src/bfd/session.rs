//! One BFD session (RFC 5880 6.8) without sockets and without a clock, in the active role, asynchronous mode.
//!
//! ```text
//!            peer: Down             peer: Init or Up
//!   Down ------------------> Init ------------------> Up
//!    |  `---------- peer: Init -----------------------^ |
//!    ^                                                   |
//!    `---- detection time over | peer: Down, AdminDown ---'      AdminDown: `admin_down`, and nothing leads out of it
//! ```
//!
//! Intervals: while not Up a session does not ask for more than one packet a second (6.8.3); what it wants beyond that, and
//! each later change, is told to the peer by a Poll Sequence.

use std::time::{Duration, Instant};

use crate::bfd::packet::{Diagnostic, Packet, State};
use crate::bfd::{BfdConfig, BfdStatus};
use crate::session::timers::Jitter;

/// RFC 5880 6.8.3: no faster than this while the session is not Up.
const SLOW: Duration = Duration::from_secs(1);

/// A session. `bfd.*` of RFC 5880 6.8.1 is named in the comments.
#[derive(Debug)]
pub struct Session {
    config: BfdConfig,
    /// bfd.LocalDiscr.
    local_discriminator: u32,
    /// bfd.RemoteDiscr; 0: unknown.
    remote_discriminator: u32,
    /// bfd.SessionState.
    state: State,
    /// bfd.RemoteSessionState.
    remote_state: State,
    /// bfd.LocalDiag.
    diagnostic: Diagnostic,
    remote_diagnostic: Diagnostic,
    /// bfd.RemoteMinRxInterval: at first 1 µs, "as fast as you like".
    remote_min_rx: Duration,
    /// The peer's DesiredMinTxInterval and DetectMult, of its last packet.
    remote_min_tx: Duration,
    remote_multiplier: u8,
    /// bfd.RemoteDemandMode.
    remote_demand: bool,
    /// What our packets go by until a Poll Sequence has told the peer of something slower (6.8.3).
    tx_in_force: Duration,
    rx_in_force: Duration,
    polling: bool,
    /// An answer with F is due.
    answer: bool,
    detect_at: Option<Instant>,
    /// `None`: nothing is to be sent periodically.
    send_at: Option<Instant>,
    since: Instant,
    reason: Option<String>,
    flaps: u64,
    /// What made it leave Up last was the will of an administrator on either side.
    administrative: bool,
    /// Something of `status` is new.
    changed: bool,
}

impl Session {
    /// A session in Down that sends its first packet at once. `local_discriminator` is not 0 and unique on this system.
    pub fn new(config: BfdConfig, local_discriminator: u32, now: Instant) -> Self {
        Session {
            config,
            local_discriminator,
            remote_discriminator: 0,
            state: State::Down,
            remote_state: State::Down,
            diagnostic: Diagnostic::NONE,
            remote_diagnostic: Diagnostic::NONE,
            remote_min_rx: Duration::from_micros(1),
            remote_min_tx: Duration::ZERO,
            remote_multiplier: 0,
            remote_demand: false,
            tx_in_force: config.min_tx.max(SLOW),
            rx_in_force: config.min_rx,
            polling: false,
            answer: false,
            detect_at: None,
            send_at: Some(now),
            since: now,
            reason: None,
            flaps: 0,
            administrative: false,
            changed: false,
        }
    }

    /// Its discriminator.
    pub fn discriminator(&self) -> u32 {
        self.local_discriminator
    }

    /// Its state.
    pub fn state(&self) -> State {
        self.state
    }

    /// As it stands, for people.
    pub fn status(&self) -> BfdStatus {
        BfdStatus {
            state: self.state,
            remote_state: self.remote_state,
            since: self.since,
            detection_time: (self.remote_multiplier != 0).then(|| self.detection_time()),
            tx_interval: self.tx_interval(),
            multiplier: self.config.multiplier,
            flaps: self.flaps,
            administrative: self.administrative,
            reason: self.reason.clone(),
        }
    }

    /// Changes intervals and multiplier; the peer is told by a Poll Sequence (6.8.3).
    pub fn configure(&mut self, now: Instant, config: BfdConfig) {
        if self.config == config {
            return;
        }
        self.config = config;
        self.intervals_changed();
        // Also where the peer wants silence: a Poll Sequence is exempt.
        self.send_at = Some(now);
    }

    /// Takes the session down for good: the peer hears AdminDown, from which it concludes nothing about the path. The packet
    /// is due at once; the caller drops the session when it has been sent.
    pub fn admin_down(&mut self, now: Instant) {
        self.diagnostic = Diagnostic::ADMINISTRATIVELY_DOWN;
        self.enter(now, State::AdminDown, "administratively down", true);
        self.detect_at = None;
    }

    /// A packet for this session, already checked by `Packet::decode` and by its TTL (6.8.6 from "set bfd.RemoteDiscr" on).
    pub fn receive(&mut self, now: Instant, packet: &Packet) {
        let before = (self.remote_state, self.remote_multiplier, self.detection_time(), self.tx_interval());
        self.remote_discriminator = packet.my_discriminator;
        self.remote_state = packet.state;
        self.remote_diagnostic = packet.diagnostic;
        self.remote_demand = packet.demand;
        self.remote_min_tx = packet.desired_min_tx;
        self.remote_multiplier = packet.multiplier;
        let rx_changed = self.remote_min_rx != packet.required_min_rx;
        self.remote_min_rx = packet.required_min_rx;
        if packet.final_ && self.polling {
            self.polling = false;
            self.tx_in_force = self.desired_min_tx();
            self.rx_in_force = self.config.min_rx;
        }
        if self.state == State::AdminDown {
            return;
        }
        self.react(now);
        self.detect_at = match self.state {
            // 6.8.1: without a packet for a detection time the peer's discriminator is forgotten, in Down as well.
            State::Down | State::Init | State::Up => Some(now + self.detection_time()),
            State::AdminDown => None,
        };
        self.answer |= packet.poll;
        let after = (self.remote_state, self.remote_multiplier, self.detection_time(), self.tx_interval());
        self.changed |= before != after;
        if rx_changed || self.send_at.is_none() {
            self.reschedule(now);
        }
    }

    /// The state machine of 6.8.6.
    fn react(&mut self, now: Instant) {
        match (self.state, self.remote_state) {
            (State::Init | State::Up, State::AdminDown) => {
                self.diagnostic = Diagnostic::NEIGHBOR_SIGNALED_DOWN;
                self.enter(now, State::Down, "peer is administratively down", true);
            }
            (State::Down, State::Down) => self.enter(now, State::Init, "-", false),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.diagnostic = Diagnostic::NONE;
                self.enter(now, State::Up, "-", false);
            }
            (State::Up, State::Down) => {
                self.diagnostic = Diagnostic::NEIGHBOR_SIGNALED_DOWN;
                let why = self.remote_diagnostic;
                let reason = match why {
                    Diagnostic::NONE => "peer signals down: it has restarted".to_owned(),
                    why => format!("peer signals down: {}", why.text()),
                };
                self.enter(now, State::Down, &reason, false);
            }
            (State::AdminDown, _)
            | (State::Down, State::AdminDown | State::Up)
            | (State::Init, State::Down)
            | (State::Up, State::Init | State::Up) => {}
        }
    }

    fn enter(&mut self, now: Instant, to: State, reason: &str, administrative: bool) {
        let from = std::mem::replace(&mut self.state, to);
        if from == to {
            return;
        }
        self.since = now;
        if from == State::Up {
            self.flaps += 1;
            self.administrative = administrative;
        }
        match to {
            State::Up => self.reason = None,
            State::Init => {}
            State::Down | State::AdminDown => self.reason = Some(reason.to_owned()),
        }
        // What a packet would say has changed: it goes at once (6.8.7).
        self.send_at = Some(now);
        if (from == State::Up) != (to == State::Up) {
            self.intervals_changed();
        }
        self.changed = true;
    }

    /// 6.8.3: a slower transmission and a faster reception wait for the end of the Poll Sequence while the session is Up.
    fn intervals_changed(&mut self) {
        let (tx, rx) = (self.desired_min_tx(), self.config.min_rx);
        let up = self.state == State::Up;
        self.tx_in_force = if up { self.tx_in_force.min(tx) } else { tx };
        self.rx_in_force = if up { self.rx_in_force.max(rx) } else { rx };
        self.polling = up;
    }

    /// bfd.DesiredMinTxInterval.
    fn desired_min_tx(&self) -> Duration {
        match self.state {
            State::Up => self.config.min_tx,
            State::AdminDown | State::Down | State::Init => self.config.min_tx.max(SLOW),
        }
    }

    /// 6.8.2.
    fn tx_interval(&self) -> Duration {
        self.tx_in_force.max(self.remote_min_rx)
    }

    /// 6.8.4: the peer's multiplier times the slower of what we take and what it wants to send.
    fn detection_time(&self) -> Duration {
        u32::from(self.remote_multiplier) * self.rx_in_force.max(self.remote_min_tx)
    }

    /// The packet that is due, if one is.
    pub fn poll_transmit(&mut self, now: Instant, jitter: &mut Jitter) -> Option<Packet> {
        if std::mem::take(&mut self.answer) {
            // 6.5: F at once, whatever the transmit timer says, and never P in the same packet.
            return Some(Packet { poll: false, final_: true, ..self.packet() });
        }
        if self.send_at.is_none_or(|at| at > now) {
            return None;
        }
        let packet = self.packet();
        self.send_at = self.next(now, jitter);
        Some(packet)
    }

    /// When to send next. 6.8.7: nothing periodic to a peer that wants none.
    fn next(&self, now: Instant, jitter: &mut Jitter) -> Option<Instant> {
        if self.wants_silence() {
            return None;
        }
        let interval = self.tx_interval();
        // A peer that gives up after one missing packet must not miss it by jitter: 75 to 90 per cent then.
        let ceiling = if self.config.multiplier == 1 { interval.mul_f64(0.9) } else { interval };
        Some(now + jitter.apply(interval).min(ceiling))
    }

    fn wants_silence(&self) -> bool {
        let both_up = self.state == State::Up && self.remote_state == State::Up;
        self.remote_min_rx.is_zero() || (self.remote_demand && both_up && !self.polling)
    }

    /// The peer's wish for packets has changed: what was planned for a slower rhythm may be too late.
    fn reschedule(&mut self, now: Instant) {
        if self.wants_silence() && self.send_at != Some(now) {
            self.send_at = None;
            return;
        }
        let latest = now + self.tx_interval();
        self.send_at = Some(self.send_at.map_or(latest, |at| at.min(latest)));
    }

    fn packet(&self) -> Packet {
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: self.polling,
            final_: false,
            // This BFD ends with its process (trap: a C bit would promise that forwarding is watched beyond that).
            control_plane_independent: false,
            demand: false,
            multiplier: self.config.multiplier,
            my_discriminator: self.local_discriminator,
            your_discriminator: self.remote_discriminator,
            desired_min_tx: self.desired_min_tx(),
            required_min_rx: self.config.min_rx,
            required_min_echo_rx: Duration::ZERO,
        }
    }

    /// When `handle_timeout` or `poll_transmit` has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.send_at.into_iter().chain(self.detect_at).min()
    }

    /// Lets the detection time expire (6.8.4).
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.detect_at.is_none_or(|at| at > now) {
            return;
        }
        self.detect_at = None;
        let waited = self.detection_time();
        self.remote_discriminator = 0;
        self.remote_state = State::Down;
        self.remote_min_rx = Duration::from_micros(1);
        self.remote_demand = false;
        if matches!(self.state, State::Init | State::Up) {
            self.diagnostic = Diagnostic::DETECTION_TIME_EXPIRED;
            let reason = format!("detection time expired: no packet for {} ms", waited.as_millis());
            self.enter(now, State::Down, &reason, false);
        } else {
            self.reschedule(now);
        }
    }

    /// `poll_status` tells it once more.
    pub fn touch(&mut self) {
        self.changed = true;
    }

    /// How it stands, if that is another than at the last call.
    pub fn poll_status(&mut self) -> Option<BfdStatus> {
        std::mem::take(&mut self.changed).then(|| self.status())
    }
}
