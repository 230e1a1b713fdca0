//! What comes in from the transport, and what sessions make of it.

use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Instant;

use smallvec::SmallVec;

use crate::rib::adj_rib_in::{ImportPolicy, LimitReached};
use crate::rib::export::ExportPolicy;
use crate::rib::{Source, SourceId};
use crate::session::{
    Cause, Context, Delivery, Direction, Down, Negotiated, Outgoing, Output, Reason, Session, State,
    TransportError,
};
use crate::speaker::effect::is_link_local;
use crate::speaker::history::DISABLED;
use crate::speaker::peer::{Conn, Held};
use crate::speaker::{
    ConnId, ConnectRequest, Effect, Endpoints, MaxPrefixesAction, PeerAddr, PeerConfig, PeerFact, Speaker,
};
use crate::types::{Asn, Family, PeerType, PerFamily, Prefix};
use crate::wire::attribute::NextHop;
use crate::wire::iana::{cease, error};
use crate::wire::message::{Capability, Message, Notification, Update};
use crate::wire::{self, DecodeContext};

/// So many closed connections of a peer may wait for their last words to be fetched.
const MAX_CLOSING: usize = 4;

impl Speaker {
    /// A connection came in. `None`: nobody is configured at that address, or the peer refuses it now; close it.
    pub fn accepted(&mut self, now: Instant, endpoints: Endpoints) -> Option<ConnId> {
        let remote = PeerAddr::of(endpoints.remote);
        let id = match self.by_address.get(&remote) {
            Some(id) => *id,
            // A range does not tell links apart.
            None if remote.ifindex != 0 => return None,
            None => self.welcome(now, remote.ip)?,
        };
        // The session answers with an OPEN, for which the connection has to be known.
        let next = ConnId(self.next_conn + 1);
        self.conns.insert(next, Conn::new(id, Some(endpoints)));
        let conn = self.drive(now, id, |session, cx| session.accepted(cx)).flatten();
        if conn.is_none() {
            self.conns.remove(&next);
        }
        conn
    }

    /// The dial of `Effect::Connect` succeeded.
    pub fn connected(&mut self, now: Instant, conn: ConnId, endpoints: Endpoints) {
        if let Some(c) = self.conns.get_mut(&conn) {
            c.endpoints = Some(endpoints);
            let id = c.peer;
            self.drive(now, id, |session, cx| session.connected(cx, conn));
        }
    }

    /// The dial of `Effect::Connect` failed.
    pub fn connect_failed(&mut self, now: Instant, conn: ConnId, error: impl Into<TransportError>) {
        if let Some(c) = self.conns.remove(&conn) {
            self.drive(now, c.peer, |session, cx| session.connect_failed(cx, conn, &error.into()));
        }
    }

    /// The peer closed the connection, or it broke. Not reported for connections that `Effect::Close` named.
    pub fn closed(&mut self, now: Instant, conn: ConnId, error: impl Into<TransportError>) {
        if let Some(c) = self.conns.remove(&conn) {
            self.drive(now, c.peer, |session, cx| session.closed(cx, conn, &error.into()));
        }
    }

    /// Bytes came in, in any portions.
    pub fn received(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) {
        let Some(c) = self.conns.get_mut(&conn).filter(|c| !c.closing) else { return };
        let id = c.peer;
        // Taken out while messages are acted upon, which may change the connection itself.
        let mut framer = std::mem::take(&mut c.framer);
        framer.push(bytes);
        let mut ctx = self.decode_context(id, conn);
        while self.conns.get(&conn).is_some_and(|c| !c.closing) {
            let decoded = match framer.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => wire::decode(frame, &ctx),
                Err(e) => Err(e),
            };
            match decoded {
                Ok(message) => {
                    let renegotiated = matches!(message, Message::Open(_));
                    self.on_message(now, id, conn, message);
                    if renegotiated {
                        ctx = self.decode_context(id, conn);
                        if self.takes_extended_messages(id, conn) {
                            framer.allow_extended_messages();
                        }
                    }
                }
                Err(e) => {
                    self.drive(now, id, |session, cx| session.malformed(cx, conn, &e));
                    break;
                }
            }
        }
        if let Some(c) = self.conns.get_mut(&conn) {
            c.framer = framer;
        }
        self.schedule(id);
    }

    /// The addresses of the interface under a connection changed: next hops of our own are sent anew.
    pub fn endpoints_changed(&mut self, _now: Instant, conn: ConnId, endpoints: Endpoints) {
        let Some(c) = self.conns.get_mut(&conn) else { return };
        c.endpoints = Some(endpoints.clone());
        let id = c.peer;
        let Some(peer) = self.peers[id as usize].as_mut().filter(|p| p.session.established() == Some(conn))
        else {
            return;
        };
        let extended = peer.negotiated.as_ref().is_some_and(|n| n.extended_next_hop);
        let (own, shared) = (own_next_hops(&endpoints, extended), shared_subnets(&endpoints));
        let ifindex = shared_link(&endpoints);
        let local = endpoints.local.ip();
        let old = peer.endpoints.replace(endpoints).map(|e| e.local.ip());
        self.use_local_address(local);
        old.into_iter().for_each(|addr| self.drop_local_address(addr));
        self.rib.update_import_policy(SourceId(id), |p| p.ifindex = ifindex);
        self.rib.update_export_policy(id, |p| {
            p.own = own;
            p.shared = shared;
        });
    }

    fn decode_context(&self, id: u32, conn: ConnId) -> DecodeContext {
        self.peer(id)
            .and_then(|p| p.session.negotiated_on(conn))
            .map_or_else(|| DecodeContext::modern(PeerType::External), Negotiated::decode_context)
    }

    /// RFC 8654 4: whoever has offered the capability takes long messages, from whomever they come.
    fn takes_extended_messages(&self, id: u32, conn: ConnId) -> bool {
        self.peer(id).is_some_and(|p| {
            p.session.negotiated_on(conn).is_some()
                && p.session.settings().open.capabilities.contains(&Capability::ExtendedMessage)
        })
    }

    fn on_message(&mut self, now: Instant, id: u32, conn: ConnId, message: Message) {
        let Some(peer) = self.peers[id as usize].as_mut() else { return };
        let was_up = peer.session.established() == Some(conn);
        let counts = &mut peer.messages.received;
        match &message {
            Message::Open(_) => counts.open += 1,
            Message::Update(_) => counts.update += 1,
            Message::Keepalive => counts.keepalive += 1,
            Message::RouteRefresh(_) | Message::Ignored(_) => counts.route_refresh += 1,
            Message::Notification(notification) => {
                counts.notification += 1;
                peer.history.notified(now, Direction::Received, notification);
                self.notifications.count(Direction::Received, notification);
            }
        }
        let delivery = self.drive(now, id, |session, cx| session.message(cx, conn, &message));
        match message {
            Message::Update(update) if delivery == Some(Delivery::Deliver) => {
                self.on_update(now, id, *update);
            }
            Message::RouteRefresh(refresh) if delivery == Some(Delivery::Deliver) => {
                self.on_refresh(now, id, refresh);
            }
            Message::Keepalive if was_up => {
                if let Some(peer) = self.peers[id as usize].as_mut() {
                    peer.keepalives += 1;
                    if peer.keepalives == 1 {
                        self.check_restart(now);
                    }
                }
            }
            _ => {}
        }
    }

    fn on_update(&mut self, now: Instant, id: u32, update: Update) {
        if let Some(peer) = self.peers[id as usize].as_mut() {
            peer.messages.faults += update.faults.len() as u64;
        }
        if let Some(family) = update.end_of_rib {
            return self.on_end_of_rib(now, id, family);
        }
        if let Some(crossed) = self.rib.import(SourceId(id), update) {
            self.on_limit(now, id, crossed);
        }
    }

    pub(super) fn on_limit(&mut self, now: Instant, id: u32, crossed: LimitReached) {
        let LimitReached { family, limit, action } = crossed;
        match action {
            MaxPrefixesAction::Warn => {
                self.tell(
                    id,
                    Some(Cause::PrefixLimit),
                    format!("more than {limit} {family} prefixes received"),
                );
            }
            MaxPrefixesAction::Reject => {
                if let Some(peer) = self.peers[id as usize].as_mut().filter(|p| !p.limit_told[family]) {
                    peer.limit_told[family] = true;
                    self.tell(
                        id,
                        Some(Cause::PrefixLimit),
                        format!("{family} prefixes beyond {limit} are refused"),
                    );
                }
            }
            MaxPrefixesAction::Disable { restart } => {
                let until = match restart {
                    Some(time) => format!("for {} s or until reset", time.as_secs()),
                    None => "until reset".to_owned(),
                };
                let reason = format!("more than {limit} {family} prefixes received: stopped {until}");
                if let Some(peer) = self.peers[id as usize].as_mut() {
                    let until = restart.map(|time| now + time);
                    peer.held = Some(Held { reason: reason.clone(), until });
                }
                // RFC 4486 4: the family and the limit.
                let (afi, safi) = family.afi_safi();
                let mut data = afi.to_be_bytes().to_vec();
                data.push(safi);
                data.extend_from_slice(&limit.to_be_bytes());
                let notification = Notification::new(error::CEASE, cease::MAX_PREFIXES, data);
                let reason = Reason::new(Cause::PrefixLimit, reason);
                self.drive(now, id, |session, cx| session.stop(cx, &notification, reason));
            }
        }
    }

    /// A stop for too many prefixes ends by itself, where it was for a time only.
    pub(super) fn expire_stop(&mut self, now: Instant, id: u32) {
        let Some(peer) = self.peers[id as usize].as_mut() else { return };
        if peer.held.as_ref().and_then(|held| held.until).is_some_and(|at| at <= now) {
            peer.held = None;
            self.reconcile(now, id);
        }
    }

    /// A prefix limit that does not end the session.
    pub(super) fn tell(&mut self, id: u32, cause: Option<Cause>, reason: String) {
        if let Some(peer) = self.peer(id) {
            let state = peer.session.state().name();
            let peer = peer.config.name.clone();
            let fact = PeerFact { peer, from: state, to: state, reason, cause };
            self.effects.push_back(Effect::Peer(fact));
        }
    }

    /// Lets a session handle an event and does what it wants done.
    pub(super) fn drive<R>(
        &mut self,
        now: Instant,
        id: u32,
        event: impl FnOnce(&mut Session, &mut Context<'_>) -> R,
    ) -> Option<R> {
        let mut out = std::mem::take(&mut self.scratch);
        let peer = self.peers.get_mut(id as usize)?.as_mut()?;
        let mut cx = Context { now, jitter: &mut self.jitter, next_conn: &mut self.next_conn, out: &mut out };
        let result = event(&mut peer.session, &mut cx);
        for output in out.drain(..) {
            self.apply(now, id, output);
        }
        self.scratch = out;
        self.note_presence(now, id);
        self.schedule(id);
        Some(result)
    }

    fn apply(&mut self, now: Instant, id: u32, output: Output) {
        match output {
            Output::Dial(conn) => {
                let peer = self.peer(id).expect("it has just dialled");
                let remote = peer.remote.expect("a peer without an address is blocked");
                let request = ConnectRequest {
                    remote: remote.socket(peer.config.port),
                    source: peer.config.source,
                    options: peer.socket_options(self.config.asn),
                };
                self.conns.insert(conn, Conn::new(id, None));
                self.effects.push_back(Effect::Connect(conn, request));
            }
            Output::Close(conn) => {
                if let Some(c) = self.conns.get_mut(&conn) {
                    c.closing = true;
                    if c.outbox.is_empty() {
                        self.conns.remove(&conn);
                    } else {
                        self.remember_last_words(id, conn);
                    }
                    self.effects.push_back(Effect::Close(conn));
                }
            }
            Output::Send(conn, message) => self.send(now, id, conn, &message),
            Output::Up(conn) => self.up(now, id, conn),
            Output::Down(how) => self.down(now, id, how),
            Output::State { to, .. } => self.record_state(now, id, to.name()),
        }
    }

    /// Notes the state that people see, where it is another than they saw before.
    pub(super) fn record(&mut self, now: Instant, id: u32) {
        let Some(peer) = self.peer(id) else { return };
        let shown = peer.state_name(self.down_text());
        if shown != peer.history.shown {
            self.record_state(now, id, shown);
        }
    }

    fn record_state(&mut self, now: Instant, id: u32, to: &'static str) {
        let stopping = self.down_text().map(str::to_owned);
        let peer = self.peers[id as usize].as_mut().expect("it has just changed state");
        let disabled =
            to == State::Idle.name() && peer.blocked(stopping.as_deref()).is_some_and(|b| b.disabled);
        let to = if disabled { DISABLED } else { to };
        let (from, reason) = (peer.history.shown, peer.session.reason().cloned());
        let fact = PeerFact {
            peer: peer.config.name.clone(),
            from,
            to,
            reason: reason.as_ref().map_or_else(|| "-".to_owned(), |r| r.text.clone()),
            cause: reason.as_ref().map(|r| r.cause),
        };
        peer.history.push(now, to, reason);
        self.effects.push_back(Effect::Peer(fact));
    }

    /// A closed connection is kept until its last words are fetched. Where a connection breaks before that nobody fetches
    /// them: of a peer that flaps only the latest few are kept.
    fn remember_last_words(&mut self, id: u32, conn: ConnId) {
        let Some(peer) = self.peers[id as usize].as_mut() else { return };
        peer.closing.push_back(conn);
        if peer.closing.len() > MAX_CLOSING {
            let oldest = peer.closing.pop_front().expect("it is longer than that");
            self.conns.remove(&oldest);
        }
    }

    fn send(&mut self, now: Instant, id: u32, conn: ConnId, message: &Outgoing) {
        let Some(c) = self.conns.get_mut(&conn) else { return };
        match message {
            Outgoing::Open(open) => open.encode(&mut c.outbox),
            Outgoing::Keepalive => wire::keepalive(&mut c.outbox),
            Outgoing::Notification(notification) => notification.encode(&mut c.outbox),
            Outgoing::RouteRefresh(refresh) => refresh.encode(&mut c.outbox),
        }
        if let Some(peer) = self.peers[id as usize].as_mut() {
            let counts = &mut peer.messages.sent;
            match message {
                Outgoing::Open(_) => counts.open += 1,
                Outgoing::Keepalive => counts.keepalive += 1,
                Outgoing::RouteRefresh(_) => counts.route_refresh += 1,
                Outgoing::Notification(notification) => {
                    counts.notification += 1;
                    peer.history.notified(now, Direction::Sent, notification);
                    self.notifications.count(Direction::Sent, notification);
                }
            }
        }
        self.notify(conn);
    }

    fn up(&mut self, now: Instant, id: u32, conn: ConnId) {
        let speaker_as = self.config.asn;
        let endpoints = self.conns.get(&conn).and_then(|c| c.endpoints.clone());
        let endpoints = endpoints.expect("messages came over the connection, so it has endpoints");
        let peer = self.peers[id as usize].as_mut().expect("it has just come up");
        let negotiated = peer.session.negotiated().expect("it has just come up").clone();
        let address = peer.remote.expect("a peer without an address is blocked");
        peer.end_of_rib = PerFamily::both(false);
        peer.limit_told = PerFamily::both(false);
        peer.refreshing = PerFamily::both(None);
        peer.ask_after_end_of_rib = PerFamily::both(false);
        peer.keepalives = 0;
        let source = Source {
            peer_type: negotiated.peer_type,
            router_id: negotiated.router_id.addr(),
            address,
            client: peer.config.route_reflector_client,
        };
        let import = import_policy(&peer.config, address.ip, speaker_as, &negotiated, &endpoints);
        let export = export_policy(&peer.config, address.ip, speaker_as, &negotiated, &endpoints);
        let local = endpoints.local.ip();
        peer.endpoints = Some(endpoints);
        let families = negotiated.families;
        peer.negotiated = Some(negotiated);
        self.rib.open_adj_in(SourceId(id), import);
        self.rib.add_source(SourceId(id), source);
        self.rib.open_adj_out(id, export, families);
        self.use_local_address(local);
        self.peer_is_back(now, id);
        self.watch(id);
        self.check_restart(now);
    }

    fn down(&mut self, now: Instant, id: u32, how: Down) {
        self.rib.close_adj_out(id);
        for family in Family::ALL {
            self.rib.forget_refused(SourceId(id), family);
        }
        let peer = self.peers[id as usize].as_mut().expect("it has just gone down");
        let endpoints = peer.endpoints.take();
        peer.refreshing = PerFamily::both(None);
        peer.ask_after_end_of_rib = PerFamily::both(false);
        peer.end_of_rib = PerFamily::both(false);
        self.peer_is_gone(now, id, how);
        endpoints.into_iter().for_each(|e| self.drop_local_address(e.local.ip()));
    }
}

fn import_policy(
    config: &PeerConfig,
    address: IpAddr,
    speaker_as: Asn,
    n: &Negotiated,
    endpoints: &Endpoints,
) -> ImportPolicy {
    ImportPolicy {
        name: config.name.clone(),
        address,
        peer_type: n.peer_type,
        remote_as: n.remote_as,
        local_as: config.local_as.filter(|a| *a != speaker_as),
        allow_as_in: config.allow_as_in,
        blackhole: config.blackhole,
        add_path: n.add_path_receive,
        filters: config.import.clone(),
        max_prefixes: config.max_prefixes,
        own_address: canonical(endpoints.local.ip()),
        ifindex: shared_link(endpoints),
        over_link_local: is_link_local(endpoints.remote.ip()),
    }
}

fn export_policy(
    config: &PeerConfig,
    address: IpAddr,
    speaker_as: Asn,
    n: &Negotiated,
    endpoints: &Endpoints,
) -> ExportPolicy {
    ExportPolicy {
        name: config.name.clone(),
        address,
        peer_type: n.peer_type,
        remote_as: n.remote_as,
        local_as: config.local_as.filter(|a| *a != speaker_as),
        as_override: config.as_override,
        remove_private_as: config.remove_private_as,
        long_lived: n
            .remote_capabilities
            .iter()
            .any(|c| matches!(c, Capability::LongLivedGracefulRestart(_))),
        client: config.route_reflector_client,
        next_hop: config.next_hop,
        filters: config.export.clone(),
        own: own_next_hops(endpoints, n.extended_next_hop),
        shared: shared_subnets(endpoints),
        encode: n.encode_context(),
        markers: n.enhanced_refresh,
        max_paths: config.add_path.send_max.map_or(0, NonZeroU8::get),
    }
}

/// Our addresses as next hops. The link-local one goes along on a shared link only (RFC 2545 3). Where the session runs over
/// IPv6 and both sides know RFC 8950, IPv4 routes have the IPv6 next hop too: there need not be any other.
fn own_next_hops(endpoints: &Endpoints, extended: bool) -> PerFamily<Option<NextHop>> {
    let (local_v4, local_v6) = match canonical(endpoints.local.ip()) {
        IpAddr::V4(a) => (Some(a), None),
        IpAddr::V6(a) => (None, Some(a)),
    };
    let link_local = endpoints.link_local.filter(|_| endpoints.connected);
    let ipv6 = endpoints.ipv6.or(local_v6).map(|global| NextHop::V6 { global, link_local });
    let ipv4 = match ipv6 {
        Some(next_hop) if extended && local_v6.is_some() => Some(next_hop),
        _ => endpoints.ipv4.or(local_v4).map(NextHop::V4),
    };
    PerFamily { ipv4, ipv6 }
}

/// The interface on which the peer is a neighbour; 0 where it is farther away.
fn shared_link(endpoints: &Endpoints) -> u32 {
    if endpoints.connected { endpoints.ifindex } else { 0 }
}

/// The subnets in which the peer can reach a third party by itself. Of the session's own family the peer's address has to
/// lie within; of the other one its address is not known, but it is on the link.
fn shared_subnets(endpoints: &Endpoints) -> SmallVec<[Prefix; 2]> {
    let remote = canonical(endpoints.remote.ip());
    let shared = |s: &Prefix| s.addr().is_ipv4() != remote.is_ipv4() || s.contains_addr(remote);
    endpoints.subnets.iter().copied().filter(|s| endpoints.connected && shared(s)).collect()
}

/// A dual-stack listener shows IPv4 peers as mapped addresses.
pub(super) fn canonical(addr: IpAddr) -> IpAddr {
    addr.to_canonical()
}
