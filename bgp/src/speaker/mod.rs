//! The one door between the protocol core and the shell: peers and RIB behind inputs and effects.
//!
//! The shell reports what happened (`connected`, `received`, `closed`, ...), then drains `poll_route_change`,
//! `poll_effect` and, for each connection that has something to say, `poll_transmit`; it calls
//! `handle_timeout` when `poll_timeout` has come. Nothing here blocks, sleeps or asks the clock.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Instant;

use bytes::BytesMut;

use crate::types::Prefix;

mod config;
mod effect;
mod view;

pub use config::*;
pub use effect::*;
pub use view::*;

/// A BGP speaker without sockets and without a clock.
#[derive(Debug)]
pub struct Speaker {
    config: SpeakerConfig,
    peers: BTreeMap<String, PeerConfig>,
    effects: VecDeque<Effect>,
}

impl Speaker {
    /// A speaker without peers and routes. With `graceful_restart.restarting` the restart window begins at `now`.
    pub fn new(config: SpeakerConfig, now: Instant) -> Self {
        let _ = now;
        Speaker { config, peers: BTreeMap::new(), effects: VecDeque::new() }
    }

    /// Changes what the speaker is. A new AS, identifier or host name resets the sessions; multipath limits decide anew.
    pub fn configure(&mut self, now: Instant, config: SpeakerConfig) {
        let _ = now;
        self.config = config;
    }

    /// The node's own addresses: the default import rules refuse what covers one of them.
    pub fn set_local_addresses(&mut self, now: Instant, addresses: Vec<IpAddr>) {
        let _ = (now, addresses);
    }

    /// Adds a peer or changes it, disturbing the session as little as the change allows.
    pub fn set_peer(&mut self, now: Instant, config: PeerConfig) {
        let _ = now;
        self.peers.insert(config.name.clone(), config);
    }

    /// Cease (6/3, deconfigured) and forget the peer with all its routes.
    pub fn remove_peer(&mut self, now: Instant, name: &str) {
        let _ = now;
        self.peers.remove(name);
    }

    /// Originates a route or changes the attributes of one.
    pub fn originate(&mut self, now: Instant, route: LocalRoute) {
        let _ = (now, route);
    }

    /// Stops originating a route.
    pub fn withdraw(&mut self, now: Instant, prefix: Prefix) {
        let _ = (now, prefix);
    }

    /// The answer to `Effect::TrackNextHop`, and each later change.
    pub fn set_next_hop(&mut self, now: Instant, addr: IpAddr, state: NextHopState) {
        let _ = (now, addr, state);
    }

    /// A connection came in. `None`: nobody is configured at that address, or the peer refuses it now; close it.
    pub fn accepted(&mut self, now: Instant, endpoints: Endpoints) -> Option<ConnId> {
        let _ = (now, endpoints);
        None
    }

    /// The dial of `Effect::Connect` succeeded.
    pub fn connected(&mut self, now: Instant, conn: ConnId, endpoints: Endpoints) {
        let _ = (now, conn, endpoints);
    }

    /// The dial of `Effect::Connect` failed.
    pub fn connect_failed(&mut self, now: Instant, conn: ConnId, reason: String) {
        let _ = (now, conn, reason);
    }

    /// Bytes came in, in any portions.
    pub fn received(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) {
        let _ = (now, conn, bytes);
    }

    /// The peer closed the connection, or it broke. Not reported for connections that `Effect::Close` named.
    pub fn closed(&mut self, now: Instant, conn: ConnId, reason: String) {
        let _ = (now, conn, reason);
    }

    /// The addresses of the interface under a connection changed: next hops of our own are sent anew.
    pub fn endpoints_changed(&mut self, now: Instant, conn: ConnId, endpoints: Endpoints) {
        let _ = (now, conn, endpoints);
    }

    /// An interface went down: sessions of directly connected external peers on it end at once, without waiting for
    /// the hold timer (fast fall-over).
    pub fn link_down(&mut self, now: Instant, ifindex: u32) {
        let _ = (now, ifindex);
    }

    /// Appends bytes for the connection, roughly 64 kB at most; `false` if there are none for now, and then
    /// `Effect::Transmit` tells when there are again. Also drains a connection that `Effect::Close` has named.
    pub fn poll_transmit(&mut self, conn: ConnId, out: &mut BytesMut) -> bool {
        let _ = (conn, out);
        false
    }

    /// The next thing to do or to tell.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The next change for the FIB. Drain it before `poll_effect`: `RestartComplete` follows the last change it covers.
    pub fn poll_route_change(&mut self) -> Option<RouteChange> {
        None
    }

    /// When `handle_timeout` wants to be called; may be early, never late.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Lets timers expire.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// Resets a peer's session. Whether there is such a peer.
    pub fn reset(&mut self, now: Instant, peer: &str, how: Reset) -> bool {
        let _ = (now, how);
        self.peers.contains_key(peer)
    }

    /// Takes a peer down (Cease 6/2 with `message`, RFC 9003) or lets it come up again, over its configuration and until
    /// that is changed. Whether there is such a peer.
    pub fn set_enabled(&mut self, now: Instant, peer: &str, enabled: bool, message: &str) -> bool {
        let _ = (now, enabled, message);
        self.peers.contains_key(peer)
    }

    /// Cease (6/2) with a text to all peers; they stay down.
    pub fn shutdown(&mut self, now: Instant, text: &str) {
        let _ = (now, text);
    }

    /// All peers, by name.
    pub fn peers(&self, now: Instant) -> Vec<PeerView> {
        let _ = now;
        Vec::new()
    }

    /// Routes, by prefix.
    pub fn routes(&self, query: &RouteQuery) -> Vec<RouteView> {
        let _ = query;
        Vec::new()
    }

    /// Everything known about a prefix.
    pub fn explain(&self, prefix: Prefix) -> Explanation {
        Explanation { prefix, paths: Vec::new(), next_hops: Vec::new(), exports: Vec::new() }
    }

    /// Longest match.
    pub fn lookup(&self, addr: IpAddr) -> Option<Lookup> {
        let _ = addr;
        None
    }

    /// Filter rules in use and how often each decided, by filter name.
    pub fn filter_rules(&self) -> Vec<RuleView> {
        Vec::new()
    }
}
