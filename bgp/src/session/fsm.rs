//! One connection's finite state machine (RFC 4271 8): its state, its connection, its timers. What an event does is
//! decided by the session, which may own two of these while a collision lasts.
//!
//! ```text
//!            start                TCP up                 OPEN              KEEPALIVE
//!   Idle ----------> Connect ----------------> OpenSent ------> OpenConfirm ------> Established
//!     ^                 | dial failed  ^ accepted |  TCP lost
//!     |                 v              |          v
//!     +---- error ---- Active ---------+ <--------+
//! ```

use std::time::{Duration, Instant};

use crate::session::negotiate::{Negotiated, Settings};
use crate::session::timers::{Jitter, OPEN_HOLD};
use crate::speaker::ConnId;

/// The states of RFC 4271 8.2.2, in the order of progress.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum State {
    /// Refuses connections: stopped, blocked or held down after a failure.
    Idle,
    /// Listening, until the ConnectRetryTimer or the peer moves.
    Active,
    /// Dialling, and listening.
    Connect,
    /// Our OPEN is out.
    OpenSent,
    /// OPENs agree; waiting for the KEEPALIVE.
    OpenConfirm,
    /// Up.
    Established,
}

impl State {
    /// The name in RFC 4271.
    pub fn name(self) -> &'static str {
        match self {
            State::Idle => "Idle",
            State::Active => "Active",
            State::Connect => "Connect",
            State::OpenSent => "OpenSent",
            State::OpenConfirm => "OpenConfirm",
            State::Established => "Established",
        }
    }
}

/// The machine of one connection.
#[derive(Debug)]
pub(super) struct Fsm {
    pub(super) state: State,
    /// The dial in Connect, the connection from then on. In Active only while the DelayOpenTimer runs.
    pub(super) conn: Option<ConnId>,
    /// We dialled it.
    pub(super) outbound: bool,
    pub(super) connect_retry: Option<Instant>,
    pub(super) delay_open: Option<Instant>,
    pub(super) hold: Option<Instant>,
    pub(super) keepalive: Option<Instant>,
    pub(super) negotiated: Option<Box<Negotiated>>,
}

impl Fsm {
    pub(super) fn idle() -> Self {
        Fsm {
            state: State::Idle,
            conn: None,
            outbound: false,
            connect_retry: None,
            delay_open: None,
            hold: None,
            keepalive: None,
            negotiated: None,
        }
    }

    /// Active: waits for the peer; dials after `retry`, if at all.
    pub(super) fn listening(retry: Option<Instant>) -> Self {
        Fsm { state: State::Active, connect_retry: retry, ..Fsm::idle() }
    }

    /// Connect: dialling.
    pub(super) fn dialling(conn: ConnId, retry: Instant) -> Self {
        Fsm {
            state: State::Connect,
            conn: Some(conn),
            outbound: true,
            connect_retry: Some(retry),
            ..Fsm::idle()
        }
    }

    /// The TCP connection is there, our OPEN is sent: OpenSent.
    pub(super) fn open_sent(conn: ConnId, outbound: bool, now: Instant) -> Self {
        Fsm { state: State::OpenSent, conn: Some(conn), outbound, hold: Some(now + OPEN_HOLD), ..Fsm::idle() }
    }

    /// The TCP connection is there and DelayOpen is on: stays in Active until the peer's OPEN or the timer.
    pub(super) fn delaying_open(conn: ConnId, outbound: bool, until: Instant) -> Self {
        Fsm { state: State::Active, conn: Some(conn), outbound, delay_open: Some(until), ..Fsm::idle() }
    }

    /// A TCP connection is up on it (a dial is not one).
    pub(super) fn is_connected(&self) -> bool {
        self.conn.is_some() && self.state != State::Connect
    }

    /// Our OPEN has been sent, so that a NOTIFICATION may follow.
    pub(super) fn has_sent_open(&self) -> bool {
        self.state >= State::OpenSent
    }

    /// NOTIFICATIONs on it leave graceful restart on (RFC 8538).
    pub(super) fn graceful_notification(&self) -> bool {
        self.negotiated.as_ref().is_some_and(|n| n.graceful_notification())
    }

    /// OpenConfirm with the timers that were agreed on.
    pub(super) fn confirm(&mut self, negotiated: Box<Negotiated>, now: Instant, jitter: &mut Jitter) {
        self.state = State::OpenConfirm;
        self.delay_open = None;
        self.connect_retry = None;
        self.hold = negotiated.hold_time.map(|h| now + h.duration());
        self.keepalive = negotiated.keepalive.map(|k| now + jitter.apply(k));
        self.negotiated = Some(negotiated);
    }

    /// The peer has shown that it lives.
    pub(super) fn restart_hold(&mut self, now: Instant) {
        if let Some(hold) = self.negotiated.as_ref().and_then(|n| n.hold_time) {
            self.hold = Some(now + hold.duration());
        }
    }

    /// A KEEPALIVE was sent; the next one is due after a jittered interval.
    pub(super) fn restart_keepalive(&mut self, now: Instant, jitter: &mut Jitter) {
        let interval = self.negotiated.as_ref().and_then(|n| n.keepalive);
        self.keepalive = interval.map(|k: Duration| now + jitter.apply(k));
    }

    /// The earliest timer.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.connect_retry, self.delay_open, self.hold, self.keepalive].into_iter().flatten().min()
    }
}

/// When to dial again, unless the peer is passive.
pub(super) fn retry_at(
    settings: &Settings,
    now: Instant,
    wait: Duration,
    jitter: &mut Jitter,
) -> Option<Instant> {
    (!settings.passive).then(|| now + jitter.apply(wait))
}
