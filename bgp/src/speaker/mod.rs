//! The one door between the protocol core and the shell: peers and RIB behind inputs and effects.
//!
//! The shell reports what happened (`connected`, `received`, `closed`, ...), then drains `poll_route_change`,
//! `poll_effect` and, for each connection that has something to say, `poll_transmit`; it calls
//! `handle_timeout` when `poll_timeout` has come. Nothing here blocks, sleeps or asks the clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Instant;

use bytes::BytesMut;
use rustc_hash::FxHashMap;

use crate::rib::{Identity, Rib, local_attributes};
use crate::session::timers::Jitter;
use crate::session::{Cause, Output, Reason};
use crate::types::{Family, PeerType, Prefix};
use crate::wire::iana::cease;
use crate::wire::message::Notification;

mod config;
mod drain;
mod effect;
mod helper;
mod history;
mod input;
mod link;
mod manage;
mod peer;
mod ranges;
mod refresh;
mod restart;
mod show;
mod view;

pub use config::*;
use drain::Drain;
pub use drain::DrainView;
pub use effect::*;
use history::{NotificationCounts, Retired};
use input::canonical;
pub use link::Neighbor;
use peer::{Conn, Peer};
use ranges::Range;
pub use ranges::{PeerRange, RangeView};
use restart::Restart;
pub use view::*;

/// A BGP speaker without sockets and without a clock.
pub struct Speaker {
    config: SpeakerConfig,
    rib: Rib,
    /// By number; numbers are used again, names of connections never are. 0 is this node in the RIB.
    peers: Vec<Option<Peer>>,
    by_name: BTreeMap<String, u32>,
    by_address: FxHashMap<PeerAddr, u32>,
    /// By name: where peers may come from that nobody has named.
    ranges: BTreeMap<String, Range>,
    conns: FxHashMap<ConnId, Conn>,
    next_conn: u64,
    jitter: Jitter,
    effects: VecDeque<Effect>,
    /// When to look at which peer; never later than its earliest timer.
    timers: BTreeSet<(Instant, u32)>,
    /// The node's addresses as the shell gave them.
    local_addresses: Vec<IpAddr>,
    /// How often an address of the node is known: from the shell and from each session that is up.
    local_uses: FxHashMap<IpAddr, u32>,
    /// Peer numbers to be used again.
    free_peers: Vec<u32>,
    restart: Option<Restart>,
    /// Of peers that were removed.
    retired: Retired,
    notifications: NotificationCounts,
    /// Set by `shutdown`: the text for the peers.
    stopping: Option<String>,
    drain: Option<Drain>,
    /// Reused for what sessions put out.
    scratch: Vec<Output>,
}

impl std::fmt::Debug for Speaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Speaker")
            .field("asn", &self.config.asn)
            .field("router_id", &self.config.router_id)
            .field("peers", &self.by_name.keys())
            .finish_non_exhaustive()
    }
}

impl Speaker {
    /// A speaker without peers and routes. With `graceful_restart.restarting` the restart window begins at `now`.
    pub fn new(config: SpeakerConfig, now: Instant) -> Self {
        let mut rib = Rib::new(identity(&config));
        let restart = config
            .graceful_restart
            .as_ref()
            .filter(|gr| gr.restarting)
            .map(|gr| Restart::new(now, gr.restart_time));
        if restart.is_some() {
            for family in Family::ALL {
                rib.set_deferring(family, true);
            }
        }
        Speaker {
            jitter: Jitter::new(config.seed),
            config,
            rib,
            peers: vec![None],
            by_name: BTreeMap::new(),
            by_address: FxHashMap::default(),
            ranges: BTreeMap::new(),
            conns: FxHashMap::default(),
            next_conn: 0,
            effects: VecDeque::new(),
            timers: BTreeSet::new(),
            local_addresses: Vec::new(),
            local_uses: FxHashMap::default(),
            free_peers: Vec::new(),
            restart,
            retired: Retired::default(),
            notifications: NotificationCounts::default(),
            stopping: None,
            drain: None,
            scratch: Vec::new(),
        }
    }

    /// Originates a route or changes the attributes of one.
    pub fn originate(&mut self, _now: Instant, route: LocalRoute) {
        let mut attributes = local_attributes();
        attributes.communities = route.communities.into_iter().collect();
        attributes.communities.sort_unstable();
        attributes.communities.dedup();
        attributes.large_communities = route.large_communities;
        attributes.large_communities.sort_unstable();
        attributes.large_communities.dedup();
        attributes.med = route.med;
        attributes.local_pref = route.local_pref;
        self.rib.originate(route.prefix, attributes);
    }

    /// Stops originating a route.
    pub fn withdraw(&mut self, _now: Instant, prefix: Prefix) {
        self.rib.stop_originating(prefix);
    }

    /// The answer to `Effect::TrackNextHop`, and each later change.
    pub fn set_next_hop(&mut self, now: Instant, hop: impl Into<FibNextHop>, state: NextHopState) {
        self.rib.set_next_hop(hop.into(), state);
        self.check_restart(now);
    }

    /// The node's own addresses: the default import rules refuse what covers one of them.
    pub fn set_local_addresses(&mut self, _now: Instant, addresses: Vec<IpAddr>) {
        // The new ones first, so that what stays is never missing.
        for addr in &addresses {
            self.use_local_address(*addr);
        }
        for addr in std::mem::replace(&mut self.local_addresses, addresses) {
            self.drop_local_address(addr);
        }
    }

    /// An interface went down: sessions of directly connected external peers on it end at once, without waiting for
    /// the hold timer (fast fall-over).
    pub fn link_down(&mut self, now: Instant, ifindex: u32) {
        let concerned: Vec<u32> = self
            .conns
            .values()
            .filter(|c| !c.closing)
            .filter(|c| {
                c.endpoints.as_ref().is_some_and(|e| e.connected && e.ifindex == ifindex && ifindex != 0)
            })
            .map(|c| c.peer)
            .collect::<BTreeSet<u32>>()
            .into_iter()
            .collect();
        for id in concerned {
            let direct = self.peer(id).is_some_and(|p| {
                let unnumbered = p.remote.is_some_and(|r| r.ifindex != 0);
                let external = p.peer_type(self.config.asn) == PeerType::External;
                unnumbered || (external && p.config.ebgp_multihop.is_none())
            });
            if direct {
                self.drive(now, id, |session, cx| {
                    session.transport_dead(cx, Reason::new(Cause::InterfaceDown, "interface went down"));
                });
            }
        }
    }

    /// Appends bytes for the connection, some 64 kB at most; `false` if there are none for now, and then
    /// `Effect::Transmit` tells when there are again. Also drains a connection that `Effect::Close` has named, which must
    /// be polled until `false`.
    pub fn poll_transmit(&mut self, conn: ConnId, out: &mut BytesMut) -> bool {
        let Some(c) = self.conns.get_mut(&conn) else {
            return false;
        };
        // KEEPALIVEs and NOTIFICATIONs go before UPDATEs that are not made yet.
        if !c.outbox.is_empty() {
            out.extend_from_slice(&c.outbox);
            c.outbox.clear();
            return true;
        }
        if c.closing {
            self.conns.remove(&conn);
            return false;
        }
        let id = c.peer;
        let Some(peer) = self.peers[id as usize].as_mut().filter(|p| p.session.established() == Some(conn))
        else {
            c.notified = false;
            return false;
        };
        let updates = self.rib.pull(id, out);
        peer.messages.sent.update += updates;
        if updates == 0 {
            c.notified = false;
        }
        updates > 0
    }

    /// The next thing to do or to tell.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if self.effects.is_empty() {
            self.rib.settle();
            for (hop, watch) in self.rib.take_tracking() {
                self.effects.push_back(match watch {
                    true => Effect::TrackNextHop(hop),
                    false => Effect::UntrackNextHop(hop),
                });
            }
            for id in self.rib.take_woken() {
                if let Some(conn) = self.peer(id).and_then(|p| p.session.established()) {
                    self.notify(conn);
                }
            }
            self.finish_restart();
        }
        self.effects.pop_front()
    }

    /// The next change for the FIB. Drain it before `poll_effect`: `RestartComplete` follows the last change it covers.
    pub fn poll_route_change(&mut self) -> Option<RouteChange> {
        self.rib.settle();
        self.rib.poll_route_change()
    }

    /// When `handle_timeout` wants to be called; may be early, never late.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timers = self.timers.first().map(|(at, _)| *at);
        let restart = self.restart.as_ref().and_then(|r| r.timeout(&self.rib));
        timers.into_iter().chain(restart).chain(self.drain_deadline()).min()
    }

    /// Lets timers expire.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut due = Vec::new();
        while let Some((at, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id));
            due.push(id);
        }
        for id in due {
            if let Some(peer) = self.peers[id as usize].as_mut() {
                peer.scheduled = None;
                self.expire_helping(now, id);
                self.expire_refreshes(now, id);
                self.expire_stop(now, id);
                self.drive(now, id, |session, cx| session.handle_timeout(cx));
                self.forget_absent(now, id);
            }
        }
        self.check_drain(now);
        self.check_restart(now);
    }

    /// Cease (6/2) with a text to all peers; they stay down.
    pub fn shutdown(&mut self, now: Instant, text: &str) {
        self.stopping = Some(text.to_owned());
        self.reconcile_all(now);
    }

    fn reconcile_all(&mut self, now: Instant) {
        for id in self.peer_ids() {
            self.reconcile(now, id);
        }
    }

    fn peer(&self, id: u32) -> Option<&Peer> {
        self.peers.get(id as usize)?.as_ref()
    }

    fn peer_ids(&self) -> Vec<u32> {
        self.by_name.values().copied().collect()
    }

    /// Says that a connection has bytes, unless that has been said.
    fn notify(&mut self, conn: ConnId) {
        if let Some(c) = self.conns.get_mut(&conn).filter(|c| !c.notified) {
            c.notified = true;
            self.effects.push_back(Effect::Transmit(conn));
        }
    }

    /// Remembers when to look at a peer next. An entry that is too early is left alone: it costs one look, while moving it
    /// at each message would cost more.
    fn schedule(&mut self, id: u32) {
        let Some(peer) = self.peers[id as usize].as_mut() else { return };
        let Some(next) = peer.deadline() else { return };
        if peer.scheduled.is_some_and(|at| at <= next) {
            return;
        }
        if let Some(old) = peer.scheduled.replace(next) {
            self.timers.remove(&(old, id));
        }
        self.timers.insert((next, id));
    }

    /// An address is the node's own for one more reason.
    fn use_local_address(&mut self, addr: IpAddr) {
        let addr = canonical(addr);
        if effect::is_link_local(addr) {
            // Another link's neighbour may have the same one.
            return;
        }
        let uses = self.local_uses.entry(addr).or_default();
        *uses += 1;
        if *uses == 1 {
            self.rib.set_node_address(addr, true);
        }
    }

    /// And for one reason less.
    fn drop_local_address(&mut self, addr: IpAddr) {
        let addr = canonical(addr);
        if effect::is_link_local(addr) {
            return;
        }
        let uses = self.local_uses.get_mut(&addr).expect("only what was used is dropped");
        *uses -= 1;
        if *uses == 0 {
            self.local_uses.remove(&addr);
            self.rib.set_node_address(addr, false);
        }
    }
}

fn identity(config: &SpeakerConfig) -> Identity {
    Identity::new(config.asn, config.router_id, config.cluster_id, config.max_paths, config.as_path_relax)
}

/// A Cease whose reason is the configuration (RFC 4486 4).
fn cease_for_change() -> Notification {
    Notification::cease(cease::CONFIGURATION_CHANGE)
}
