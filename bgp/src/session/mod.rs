//! A peer's session: the state machine of RFC 4271 8 with its timers, OPEN negotiation and connection collision.
//! Takes events and `now`, leaves outputs in a list. Knows messages, nothing of routes or of bytes.
//!
//! A session owns one `Fsm`, and a second one while two connections compete (RFC 4271 6.8: "one FSM per
//! connection"). The comments name the RFC's events.

use std::time::Instant;

use crate::speaker::ConnId;
use crate::types::{Asn, RouterId};
use crate::wire::WireError;
use crate::wire::iana::{cease, error, fsm_error};
use crate::wire::message::{Message, Notification, Open, RouteRefresh};

mod collision;
mod fsm;
pub mod negotiate;
mod reason;
pub mod timers;

use collision::{Contender, Loser};
use fsm::Fsm;
pub use fsm::State;
pub use negotiate::{Negotiated, RestartFlags, Settings};
pub use reason::{Cause, Direction, Reason, TransportError};
use timers::{Backoff, Jitter};

/// What a session needs from around it while it handles an event.
pub struct Context<'a> {
    /// The time of the event.
    pub now: Instant,
    /// For timers.
    pub jitter: &'a mut Jitter,
    /// The number that the next connection gets.
    pub next_conn: &'a mut u64,
    /// What the event leads to, in order.
    pub out: &'a mut Vec<Output>,
}

impl Context<'_> {
    /// A connection number that was never used.
    pub fn new_conn(&mut self) -> ConnId {
        *self.next_conn += 1;
        ConnId(*self.next_conn)
    }
}

/// What a session wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Dial under this number.
    Dial(ConnId),
    /// Send what is queued, then close; also gives up a dial.
    Close(ConnId),
    /// Send a message.
    Send(ConnId, Outgoing),
    /// Established on this connection.
    Up(ConnId),
    /// No longer Established.
    Down(Down),
    /// Another state is shown.
    State {
        /// Before.
        from: State,
        /// Now.
        to: State,
    },
}

/// The messages that a session sends of its own accord.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// OPEN.
    Open(Box<Open>),
    /// KEEPALIVE.
    Keepalive,
    /// NOTIFICATION.
    Notification(Notification),
    /// ROUTE-REFRESH.
    RouteRefresh(RouteRefresh),
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// Not for good: the transport went away without a NOTIFICATION on either side, so that the peer may be restarting
    /// (RFC 4724 4.2), or with one that is no Hard Reset under the N bit (RFC 8538).
    Lost,
    /// For good: by configuration, with the link, or by NOTIFICATION otherwise.
    Ended,
}

/// What to do with a message that the session has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The session is Established: act upon the message.
    Deliver,
    /// Nothing is left to do.
    Consumed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Which {
    Primary,
    Second,
}

/// A peer's session.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    primary: Fsm,
    second: Option<Fsm>,
    /// AutomaticStart after a failure (IdleHoldTimer). `None` in Idle: waits for `start`.
    idle_until: Option<Instant>,
    backoff: Backoff,
    reason: Option<Reason>,
    since: Instant,
    shown: State,
    /// The peer's latest OPEN came in the form of RFC 9072.
    peer_is_extended: bool,
}

impl Session {
    /// A session in Idle that waits for `start`.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Session {
            settings,
            primary: Fsm::idle(),
            second: None,
            idle_until: None,
            backoff: Backoff::default(),
            reason: None,
            since: now,
            shown: State::Idle,
            peer_is_extended: false,
        }
    }

    /// The state to show: that of the connection which has come furthest.
    pub fn state(&self) -> State {
        self.second.as_ref().map_or(self.primary.state, |s| s.state.max(self.primary.state))
    }

    /// In Idle until somebody calls `start`.
    pub fn is_stopped(&self) -> bool {
        self.primary.state == State::Idle && self.idle_until.is_none()
    }

    /// When that state began.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Why it is not Established, or nothing.
    pub fn reason(&self) -> Option<&Reason> {
        self.reason.as_ref()
    }

    /// Notes why the session is down without being asked by an event: blocked or disabled by configuration.
    pub fn set_reason(&mut self, reason: Option<Reason>) {
        self.reason = reason;
    }

    /// What was agreed on, on the connection that is Established.
    pub fn negotiated(&self) -> Option<&Negotiated> {
        (self.primary.state == State::Established).then_some(self.primary.negotiated.as_deref()).flatten()
    }

    /// What the OPENs on a connection agreed on.
    pub fn negotiated_on(&self, conn: ConnId) -> Option<&Negotiated> {
        self.fsm(self.which(conn)?)?.negotiated.as_deref()
    }

    /// The Established connection.
    pub fn established(&self) -> Option<ConnId> {
        self.primary.conn.filter(|_| self.primary.state == State::Established)
    }

    /// Our side.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes our side for connections to come; the caller resets the session if it has to follow now.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Until when the peer may stay silent.
    pub fn hold_deadline(&self) -> Option<Instant> {
        self.primary.hold
    }

    /// When it dials again or leaves Idle.
    pub fn retry_deadline(&self) -> Option<Instant> {
        self.idle_until.or(self.primary.connect_retry)
    }

    /// ManualStart, AutomaticStart (events 1 and 3; 4 and 5 when passive). Forgets earlier failures when asked by hand.
    pub fn start(&mut self, cx: &mut Context<'_>, by_hand: bool) {
        if by_hand {
            self.backoff.clear();
        }
        if self.primary.state == State::Idle {
            self.idle_until = None;
            if self.settings.passive {
                self.primary = Fsm::listening(None);
            } else {
                self.dial(cx);
            }
        }
        self.show(cx);
    }

    /// ManualStop, AutomaticStop (events 2 and 8): Cease on what has sent an OPEN, as a Hard Reset where the N bit would
    /// make a mere pause of it (RFC 8538 4); stays in Idle until `start`.
    pub fn stop(&mut self, cx: &mut Context<'_>, cease: &Notification, reason: Reason) {
        self.halt(cx, cease, reason, Down::Ended);
    }

    fn halt(&mut self, cx: &mut Context<'_>, cease: &Notification, reason: Reason, how: Down) {
        let said = self.end_all(cx, cease, how);
        self.primary = Fsm::idle();
        self.idle_until = None;
        self.reason = Some(match &said {
            Some(notification) => reason.and_sent(notification),
            None => reason,
        });
        self.show(cx);
    }

    /// As `stop`, then starts again at once: an operator wants a new session and new routes.
    pub fn restart(&mut self, cx: &mut Context<'_>, cease: &Notification, reason: Reason) {
        self.stop(cx, cease, reason);
        self.start(cx, true);
    }

    /// As `restart`, but under the N bit both sides keep their routes meanwhile: the session changes, forwarding does not.
    pub fn renew(&mut self, cx: &mut Context<'_>, cease: &Notification, reason: Reason) {
        let how = self.how_it_ends();
        self.halt(cx, cease, reason, how);
        self.start(cx, true);
    }

    /// The transport is known to be dead before TCP finds out (link down). Closes without a word that nobody would hear.
    pub fn transport_dead(&mut self, cx: &mut Context<'_>, reason: Reason) {
        if let Some(second) = self.second.take() {
            close(cx, &second, None);
        }
        self.reason = Some(reason);
        if self.primary.is_connected() {
            close(cx, &self.primary, None);
            self.leave_established(cx, Down::Ended);
            self.listen_after_failure(cx);
        }
        self.show(cx);
    }

    /// BFD found the path to the peer dead (RFC 5882). The Cease (RFC 9384) reaches a peer that only the path back is missing to.
    pub fn path_down(&mut self, cx: &mut Context<'_>, cease: &Notification, reason: Reason) {
        if self.primary.state == State::Established {
            let said = self.end_all(cx, cease, Down::Ended);
            self.reason = Some(match &said {
                Some(notification) => reason.and_sent(notification),
                None => reason,
            });
            self.listen_after_failure(cx);
            self.show(cx);
        }
    }

    /// TcpConnectionConfirmed for an incoming connection (event 17). `None`: refused, since Idle refuses all.
    pub fn accepted(&mut self, cx: &mut Context<'_>) -> Option<ConnId> {
        if self.primary.state == State::Idle {
            return None;
        }
        let conn = cx.new_conn();
        if self.primary.conn.is_none() {
            self.primary = self.opened(cx, conn, false);
        } else {
            // One more connection beside the two: its dialler has given up the one before.
            if let Some(older) = self.second.take() {
                close(cx, &older, Some(&Notification::cease(cease::COLLISION)));
            }
            self.second = Some(self.opened(cx, conn, false));
        }
        self.show(cx);
        Some(conn)
    }

    /// Tcp_CR_Acked (event 16): the dial succeeded.
    pub fn connected(&mut self, cx: &mut Context<'_>, conn: ConnId) {
        if self.primary.state == State::Connect && self.primary.conn == Some(conn) {
            self.primary = self.opened(cx, conn, true);
            self.show(cx);
        }
    }

    /// TcpConnectionFails (event 18) while dialling: listen until the ConnectRetryTimer. (The RFC goes to Idle when DelayOpen
    /// is off, which with an automatic start differs in nothing but that the peer's own dial would be refused.)
    pub fn connect_failed(&mut self, cx: &mut Context<'_>, conn: ConnId, error: &TransportError) {
        if self.primary.state == State::Connect && self.primary.conn == Some(conn) {
            self.reason = Some(Reason::connect(error));
            self.promote_or_listen(cx);
            self.show(cx);
        }
    }

    /// TcpConnectionFails (event 18) on a connection that was up.
    pub fn closed(&mut self, cx: &mut Context<'_>, conn: ConnId, error: &TransportError) {
        match self.which(conn) {
            None => return,
            Some(Which::Second) => self.second = None,
            Some(Which::Primary) => match self.primary.state {
                State::Idle | State::Connect | State::Active | State::OpenSent => {
                    let text = format!("connection closed before the peer's OPEN: {error}");
                    self.reason = Some(Reason::new(Cause::TcpClosed, text));
                    self.promote_or_listen(cx);
                }
                State::OpenConfirm => {
                    let text = format!("connection closed in OpenConfirm: {error}");
                    self.reason = Some(Reason::new(Cause::TcpClosed, text));
                    self.hold_down_or_promote(cx);
                }
                State::Established => {
                    self.reason = Some(Reason::new(Cause::TcpLost, format!("connection lost: {error}")));
                    self.leave_established(cx, Down::Lost);
                    match self.second.take() {
                        Some(second) => self.primary = second,
                        None => self.listen_after_failure(cx),
                    }
                }
            },
        }
        self.show(cx);
    }

    /// A message came (events 19 and 21 to 27).
    pub fn message(&mut self, cx: &mut Context<'_>, conn: ConnId, message: &Message) -> Delivery {
        let Some(which) = self.which(conn) else {
            return Delivery::Consumed;
        };
        let delivery = match message {
            Message::Open(open) => {
                self.on_open(cx, which, open);
                Delivery::Consumed
            }
            Message::Keepalive => {
                self.on_keepalive(cx, which);
                Delivery::Consumed
            }
            Message::Notification(notification) => {
                self.on_notification(cx, which, notification);
                Delivery::Consumed
            }
            Message::Update(_) | Message::RouteRefresh(_) | Message::Ignored(_) => {
                if self.fsm_mut(which).state == State::Established {
                    let now = cx.now;
                    self.fsm_mut(which).restart_hold(now);
                    Delivery::Deliver
                } else {
                    self.unexpected(cx, which, "UPDATE or ROUTE-REFRESH");
                    Delivery::Consumed
                }
            }
        };
        self.show(cx);
        delivery
    }

    /// BGPHeaderErr, BGPOpenMsgErr, UpdateMsgErr (events 21, 22, 28): the bytes deserve a NOTIFICATION.
    pub fn malformed(&mut self, cx: &mut Context<'_>, conn: ConnId, bad: &WireError) {
        if let Some(which) = self.which(conn) {
            // Events 27 and 28 alike: what is wrong within an UPDATE matters only where one is expected.
            let of_routes = matches!(bad.notification.code, error::UPDATE | error::ROUTE_REFRESH);
            if of_routes && self.fsm_mut(which).state != State::Established {
                self.unexpected(cx, which, "UPDATE or ROUTE-REFRESH");
                return self.show(cx);
            }
            let reason = format!("malformed message: {} ({})", bad.reason, bad.notification);
            self.refuse(cx, which, &bad.notification, reason);
            self.show(cx);
        }
    }

    /// Timers whose time has come (events 9 to 13).
    pub fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        let due = |t: Option<Instant>| t.is_some_and(|t| t <= now);
        if due(self.idle_until) {
            self.start(cx, false);
            return;
        }
        for which in [Which::Primary, Which::Second] {
            let Some(fsm) = self.fsm(which) else { continue };
            // HoldTimer_Expires (event 10) first: the others make no difference to a session that is over.
            if due(fsm.hold) {
                let waited = match fsm.state {
                    State::OpenSent => "the peer's OPEN",
                    _ => "any message",
                };
                let expired = Notification::new(error::HOLD_TIMER, 0, []);
                self.refuse(cx, which, &expired, format!("hold timer expired waiting for {waited}"));
                continue;
            }
            // KeepaliveTimer_Expires (event 11).
            if due(fsm.keepalive) {
                let conn = fsm.conn.expect("a keepalive timer runs on a connection");
                cx.out.push(Output::Send(conn, Outgoing::Keepalive));
                let (jitter, fsm) = (&mut *cx.jitter, self.fsm_mut(which));
                fsm.restart_keepalive(now, jitter);
            }
            // DelayOpenTimer_Expires (event 12).
            let fsm = self.fsm(which).expect("nothing above ends it");
            if due(fsm.delay_open) {
                let conn = fsm.conn.expect("a delay-open timer runs on a connection");
                let outbound = fsm.outbound;
                self.send_open(cx, conn);
                *self.fsm_mut(which) = Fsm::open_sent(conn, outbound, cx.now);
            }
            // ConnectRetryTimer_Expires (event 9): in Connect the dial is given up and repeated.
            let fsm = self.fsm(which).expect("nothing above ends it");
            if due(fsm.connect_retry) {
                if let Some(dial) = fsm.conn {
                    cx.out.push(Output::Close(dial));
                    self.reason = Some(Reason::new(Cause::TcpTimeout, "connect: no answer"));
                }
                self.dial(cx);
            }
        }
        self.show(cx);
    }

    /// The earliest timer.
    pub fn deadline(&self) -> Option<Instant> {
        let second = self.second.as_ref().and_then(Fsm::deadline);
        [self.idle_until, self.primary.deadline(), second].into_iter().flatten().min()
    }

    /// BGPOpen (events 19 and 20), and OpenCollisionDump (event 23) for whoever loses.
    fn on_open(&mut self, cx: &mut Context<'_>, which: Which, open: &Open) {
        let fsm = self.fsm_mut(which);
        let delaying = fsm.delay_open.is_some();
        if fsm.state != State::OpenSent && !delaying {
            return self.unexpected(cx, which, "OPEN");
        }
        self.peer_is_extended = open.extended;
        let fsm = self.fsm_mut(which);
        let conn = fsm.conn.expect("messages come on connections");
        let contender = Contender { outbound: fsm.outbound };
        let negotiated = match negotiate::negotiate(&self.settings, open) {
            Ok(n) => n,
            Err(refusal) => {
                // With DelayOpen our OPEN precedes the NOTIFICATION, which the peer could not place otherwise.
                if delaying {
                    self.send_open(cx, conn);
                    self.fsm_mut(which).state = State::OpenSent;
                }
                return self.refuse(cx, which, &refusal.notification, refusal.reason);
            }
        };
        if !self.survives_collision(cx, which, contender, (open.router_id, open.asn)) {
            return;
        }
        // The survivor may have taken the primary's place.
        let which = self.which(conn).expect("the survivor is still ours");
        if delaying {
            self.send_open(cx, conn);
        }
        cx.out.push(Output::Send(conn, Outgoing::Keepalive));
        let now = cx.now;
        let (jitter, fsm) = (&mut *cx.jitter, self.fsm_mut(which));
        fsm.confirm(Box::new(negotiated), now, jitter);
    }

    /// RFC 4271 6.8, as soon as an OPEN tells the identifiers. The other connection counts from OpenSent on: with both
    /// identifiers known both sides judge alike, whichever OPEN they saw first.
    fn survives_collision(
        &mut self,
        cx: &mut Context<'_>,
        new: Which,
        contender: Contender,
        theirs: (RouterId, Asn),
    ) -> bool {
        let old = match new {
            Which::Primary => Which::Second,
            Which::Second => Which::Primary,
        };
        let Some(other) = self.fsm(old).filter(|o| o.is_connected()) else {
            return true;
        };
        let collision = Notification::cease(cease::COLLISION);
        if other.state == State::Established {
            // RFC 4724 4.2: a peer that does graceful restart and opens anew has lost its side of the old session. Not so
            // right after a simultaneous open, where the OPEN of the connection that lost may still be under way.
            let settled = cx.now.saturating_duration_since(self.since) >= timers::SETTLED_AFTER;
            let peer_restarts =
                settled && other.negotiated.as_ref().is_some_and(|n| n.graceful_restart.is_some());
            if !peer_restarts {
                let loser = self.second.take().expect("Established is the primary, the new one the second");
                close(cx, &loser, Some(&collision));
                return false;
            }
            let text = "peer opened a new session: it has restarted";
            self.reason = Some(Reason::new(Cause::PeerRestarted, text));
            close(cx, &self.primary, None);
            self.leave_established(cx, Down::Lost);
            self.primary = self.second.take().expect("the new one is the second");
            return true;
        }
        let ours = (self.settings.open.router_id, self.settings.open.asn);
        let loser = match collision::loser(Contender { outbound: other.outbound }, contender, ours, theirs) {
            Loser::Old => old,
            Loser::New => new,
        };
        match loser {
            Which::Second => {
                let second = self.second.take().expect("both were there");
                close(cx, &second, Some(&collision));
            }
            Which::Primary => {
                close(cx, &self.primary, Some(&collision));
                self.primary = self.second.take().expect("both were there");
            }
        }
        loser == old
    }

    /// KeepAliveMsg (event 26).
    fn on_keepalive(&mut self, cx: &mut Context<'_>, which: Which) {
        let now = cx.now;
        let fsm = self.fsm_mut(which);
        match fsm.state {
            State::Established => fsm.restart_hold(now),
            State::OpenConfirm => {
                fsm.restart_hold(now);
                fsm.state = State::Established;
                let conn = fsm.conn.expect("OpenConfirm has a connection");
                if which == Which::Second {
                    // The primary was still dialling or without a word: it has nothing to say any more.
                    close(cx, &self.primary, Some(&Notification::cease(cease::COLLISION)));
                    self.primary = self.second.take().expect("it has just sent a KEEPALIVE");
                }
                self.reason = None;
                // Up comes after the State output, which `show` gives: the state is told before its consequences.
                self.show(cx);
                cx.out.push(Output::Up(conn));
            }
            State::Idle | State::Active | State::Connect | State::OpenSent => {
                self.unexpected(cx, which, "KEEPALIVE");
            }
        }
    }

    /// NotifMsg, NotifMsgVerErr (events 25 and 24).
    fn on_notification(&mut self, cx: &mut Context<'_>, which: Which, notification: &Notification) {
        let reason = Reason::received(notification);
        let collision = (notification.code, notification.subcode) == (error::CEASE, cease::COLLISION);
        if collision && self.fsm_mut(which).state != State::Established {
            // The peer kept another connection, or is about to dial: no failure.
            close(cx, self.fsm(which).expect("it got a message"), None);
            match which {
                Which::Second => self.second = None,
                Which::Primary => {
                    self.reason = Some(reason);
                    self.promote_or_listen(cx);
                }
            }
            return;
        }
        let how = if notification.is_hard_reset() { Down::Ended } else { self.how_it_ends() };
        self.fail_as(cx, which, None, reason, how);
    }

    /// RFC 6608: the FSM error of the state; 5/0 before OPEN, which has no subcode of its own.
    fn unexpected(&mut self, cx: &mut Context<'_>, which: Which, what: &str) {
        let state = self.fsm_mut(which).state;
        let subcode = match state {
            State::Idle | State::Active | State::Connect => 0,
            State::OpenSent => fsm_error::OPEN_SENT,
            State::OpenConfirm => fsm_error::OPEN_CONFIRM,
            State::Established => fsm_error::ESTABLISHED,
        };
        let notification = Notification::new(error::FSM, subcode, []);
        self.refuse(cx, which, &notification, format!("unexpected {what} in {}", state.name()));
    }

    /// Gives a connection up for what the peer did, and says so to it.
    fn refuse(&mut self, cx: &mut Context<'_>, which: Which, notification: &Notification, text: String) {
        let reason = Reason::new(Reason::fault_of(notification), text).and_sent(notification);
        self.fail(cx, which, Some(notification), reason);
    }

    /// Gives a connection up. The primary's failure puts the session into Idle with a growing hold-down, unless the other
    /// connection can go on.
    fn fail(
        &mut self,
        cx: &mut Context<'_>,
        which: Which,
        notification: Option<&Notification>,
        reason: Reason,
    ) {
        let how = self.how_it_ends();
        self.fail_as(cx, which, notification, reason, how);
    }

    /// What an error means for the routes of the Established session (RFC 8538 4).
    fn how_it_ends(&self) -> Down {
        if self.primary.graceful_notification() { Down::Lost } else { Down::Ended }
    }

    fn fail_as(
        &mut self,
        cx: &mut Context<'_>,
        which: Which,
        notification: Option<&Notification>,
        reason: Reason,
        how: Down,
    ) {
        if which == Which::Second {
            let second = self.second.take().expect("it failed just now");
            close(cx, &second, notification);
            return;
        }
        self.reason = Some(reason);
        close(cx, &self.primary, notification);
        if self.primary.state == State::Established {
            self.leave_established(cx, how);
            if let Some(second) = self.second.take() {
                close(cx, &second, notification);
            }
        }
        self.hold_down_or_promote(cx);
    }

    fn hold_down_or_promote(&mut self, cx: &mut Context<'_>) {
        match self.second.take() {
            Some(second) => self.primary = second,
            None => {
                self.primary = Fsm::idle();
                self.idle_until = Some(cx.now + cx.jitter.apply(self.backoff.failed()));
            }
        }
    }

    fn promote_or_listen(&mut self, cx: &mut Context<'_>) {
        self.primary = match self.second.take() {
            Some(second) => second,
            None => {
                Fsm::listening(fsm::retry_at(&self.settings, cx.now, self.settings.connect_retry, cx.jitter))
            }
        };
    }

    /// Idle with an immediate AutomaticStart into Active: a peer that has restarted is let in at once, while our own dials
    /// back off.
    fn listen_after_failure(&mut self, cx: &mut Context<'_>) {
        let wait = self.backoff.failed();
        self.primary = Fsm::listening(fsm::retry_at(&self.settings, cx.now, wait, cx.jitter));
    }

    fn leave_established(&mut self, cx: &mut Context<'_>, how: Down) {
        if self.primary.state == State::Established {
            self.backoff.was_up_since(self.since, cx.now);
            cx.out.push(Output::Down(how));
        }
    }

    /// Ends all connections; gives what was said on the one that had come furthest.
    fn end_all(&mut self, cx: &mut Context<'_>, cease: &Notification, how: Down) -> Option<Notification> {
        let second = self.second.take();
        let mut said = None;
        for fsm in second.iter().chain([&self.primary]) {
            let hard = how == Down::Ended && fsm.graceful_notification();
            let notification = if hard { Notification::hard_reset(cease) } else { cease.clone() };
            close(cx, fsm, Some(&notification));
            if fsm.has_sent_open() {
                said = Some(notification);
            }
        }
        self.leave_established(cx, how);
        said
    }

    fn dial(&mut self, cx: &mut Context<'_>) {
        let conn = cx.new_conn();
        let retry = cx.now + cx.jitter.apply(self.settings.connect_retry);
        self.primary = Fsm::dialling(conn, retry);
        cx.out.push(Output::Dial(conn));
    }

    /// A TCP connection is there: OPEN goes out now or after DelayOpenTime.
    fn opened(&mut self, cx: &mut Context<'_>, conn: ConnId, outbound: bool) -> Fsm {
        match self.settings.delay_open {
            Some(delay) => Fsm::delaying_open(conn, outbound, cx.now + delay),
            None => {
                self.send_open(cx, conn);
                Fsm::open_sent(conn, outbound, cx.now)
            }
        }
    }

    /// Long parameters for a peer that writes them: RFC 9072 2 would have them where 255 octets are too few only, but some
    /// FRRs take nothing else once they are told to write them.
    fn send_open(&self, cx: &mut Context<'_>, conn: ConnId) {
        let open = Open { extended: self.peer_is_extended, ..self.settings.open.clone() };
        cx.out.push(Output::Send(conn, Outgoing::Open(Box::new(open))));
    }

    fn show(&mut self, cx: &mut Context<'_>) {
        let to = self.state();
        if to != self.shown {
            cx.out.push(Output::State { from: self.shown, to });
            self.shown = to;
            self.since = cx.now;
        }
    }

    fn which(&self, conn: ConnId) -> Option<Which> {
        if self.primary.conn == Some(conn) {
            return Some(Which::Primary);
        }
        self.second.as_ref().filter(|s| s.conn == Some(conn)).map(|_| Which::Second)
    }

    fn fsm(&self, which: Which) -> Option<&Fsm> {
        match which {
            Which::Primary => Some(&self.primary),
            Which::Second => self.second.as_ref(),
        }
    }

    fn fsm_mut(&mut self, which: Which) -> &mut Fsm {
        match which {
            Which::Primary => &mut self.primary,
            Which::Second => self.second.as_mut().expect("events name a machine that is there"),
        }
    }
}

/// Closes a machine's connection or dial, after a NOTIFICATION where our OPEN has gone before it.
fn close(cx: &mut Context<'_>, fsm: &Fsm, notification: Option<&Notification>) {
    let Some(conn) = fsm.conn else { return };
    if let Some(n) = notification.filter(|_| fsm.has_sent_open()) {
        cx.out.push(Output::Send(conn, Outgoing::Notification(n.clone())));
    }
    cx.out.push(Output::Close(conn));
}
