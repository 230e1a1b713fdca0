//! Configuration and administration: what changes, and what of it has to disturb a session.

use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::filter::Filter;
use crate::rib::SourceId;
use crate::session::{Cause, Negotiated, Outgoing, Output, Reason, RestartFlags, Session, Settings};
use crate::speaker::effect::ConnId;
use crate::speaker::history::History;
use crate::speaker::input::canonical;
use crate::speaker::peer::Peer;
use crate::speaker::{
    Effect, PeerConfig, PeerTarget, Reset, Secret, SocketOptions, Speaker, SpeakerConfig, cease_for_change,
    identity,
};
use crate::types::{Family, PerFamily};
use crate::wire::iana::cease;
use crate::wire::message::{Notification, RefreshKind, RouteRefresh};

impl Speaker {
    /// Changes what the speaker is. A new AS, identifier, host name or restart time resets the sessions; multipath limits
    /// decide anew.
    pub fn configure(&mut self, now: Instant, config: SpeakerConfig) {
        let old = std::mem::replace(&mut self.config, config);
        if old == self.config {
            return;
        }
        let reflects_differently = old.cluster_id != self.config.cluster_id;
        self.rib.set_identity(identity(&self.config));
        if old.asn != self.config.asn {
            self.tell_ranges();
        }
        for id in self.peer_ids() {
            let settings = self.settings_of(self.peer(id).expect("named peers exist"));
            let peer = self.peers[id as usize].as_mut().expect("named peers exist");
            // The AS is in every AS_PATH that we send, also where a session has a local AS of its own.
            let reset = settings.needs_reset(peer.session.settings()) || old.asn != self.config.asn;
            peer.session.set_settings(settings);
            if reset {
                let reason = Reason::new(Cause::ConfigChanged, "our AS, identifier or capabilities changed");
                self.renew_session(now, id, reason);
            } else if reflects_differently {
                self.rib.update_export_policy(id, |_| {});
            }
        }
    }

    /// Adds a peer or changes it, disturbing the session as little as the change allows.
    pub fn set_peer(&mut self, now: Instant, mut config: PeerConfig) {
        if let PeerTarget::Address(ip) = &mut config.target {
            *ip = canonical(*ip);
        }
        // A timer of nothing would never let go of the processor.
        config.connect_retry = config.connect_retry.max(Duration::from_secs(1));
        config.keepalive = config.keepalive.map(|k| k.max(Duration::from_secs(1)));
        match self.by_name.get(&config.name).copied() {
            Some(id) if self.peer(id).is_some_and(|p| p.config.target == config.target) => {
                self.change_peer(now, id, config);
            }
            Some(id) => {
                // What an operator did by hand outlives a new address as it does any other change.
                let by_hand = self.peer(id).and_then(|p| p.admin_override.clone());
                let name = config.name.clone();
                self.end_peer(now, &name, Reason::new(Cause::ConfigChanged, "its address changed"));
                self.add_peer_with(now, config, by_hand);
            }
            None => self.add_peer(now, config),
        }
    }

    fn add_peer(&mut self, now: Instant, config: PeerConfig) {
        self.add_peer_with(now, config, None);
    }

    fn add_peer_with(&mut self, now: Instant, config: PeerConfig, by_hand: Option<Option<String>>) {
        let name = config.name.clone();
        let fresh = RestartFlags { restarting: self.restart.is_some(), preserved: PerFamily::both(false) };
        let settings = Settings::new(&self.config, &config, fresh);
        let mut peer = Peer::new(config, Session::new(settings, now));
        if let Some(history) = self.retired.take(&name) {
            peer.history = history;
        }
        peer.admin_override = by_hand;
        let id = self.free_peers.pop().unwrap_or_else(|| {
            self.peers.push(None);
            u32::try_from(self.peers.len() - 1).expect("fewer than 2^32 peers are configured")
        });
        if let PeerTarget::Interface(interface) = &peer.config.target {
            self.discover(interface.clone());
        }
        self.peers[id as usize] = Some(peer);
        self.by_name.insert(name, id);
        self.bind(id);
        self.reconcile(now, id);
    }

    fn change_peer(&mut self, now: Instant, id: u32, mut config: PeerConfig) {
        let speaker_as = self.config.asn;
        let peer = self.peers[id as usize].as_mut().expect("named peers exist");
        if peer.config == config {
            return;
        }
        // Filters that say the same keep their counters.
        keep_equal(&mut config.import, &peer.config.import);
        keep_equal(&mut config.export, &peer.config.export);
        let old_options = peer.socket_options(speaker_as);
        let old = std::mem::replace(&mut peer.config, config);
        let new = peer.config.clone();
        if old.shutdown != new.shutdown {
            peer.admin_override = None;
        }
        if old.max_prefixes != new.max_prefixes {
            peer.held = None;
        }
        let options = peer.socket_options(speaker_as);
        let settings = self.settings_of(self.peer(id).expect("named peers exist"));
        let peer = self.peers[id as usize].as_mut().expect("named peers exist");
        let wrong_as = peer.negotiated.as_ref().is_some_and(|n| {
            peer.session.established().is_some()
                && crate::session::negotiate::expects(&settings, n.remote_as).is_err()
        });
        let changed_key = peer.session.established().zip(changed_key(&old_options, &options));
        let reset = settings.needs_reset(peer.session.settings())
            || wrong_as
            || (options != old_options && changed_key.is_none())
            || (old.port, old.source) != (new.port, new.source);
        peer.session.set_settings(settings);
        if let Some(remote) = peer.remote.filter(|_| options != old_options && peer.conflict.is_none()) {
            self.effects.push_back(Effect::Listen(remote, Some(options)));
        }
        if !new.graceful_restart {
            self.stop_helping(id);
        }
        if reset {
            let reason = Reason::new(Cause::ConfigChanged, "configuration changed");
            // A peer that is not who it should be takes its routes along.
            match wrong_as {
                true => self.restart_session(now, id, &cease_for_change(), reason),
                false => self.renew_session(now, id, reason),
            }
        } else {
            if let Some((conn, key)) = changed_key {
                self.effects.push_back(Effect::ChangeKey(conn, key));
            }
            self.change_policy(now, id, &old, &new);
        }
        self.reconcile(now, id);
        self.watch(id);
        self.check_restart(now);
    }

    /// What a session that stays up has to follow.
    fn change_policy(&mut self, now: Instant, id: u32, old: &PeerConfig, new: &PeerConfig) {
        let import = (&old.import, old.allow_as_in, old.max_prefixes, old.blackhole)
            != (&new.import, new.allow_as_in, new.max_prefixes, new.blackhole);
        if import {
            self.rib.update_import_policy(SourceId(id), |p| {
                p.filters.clone_from(&new.import);
                p.allow_as_in = new.allow_as_in;
                p.blackhole = new.blackhole;
                p.max_prefixes = new.max_prefixes;
            });
            self.rib.forget_accepting_rules(SourceId(id));
            self.ask_again(now, id);
        }
        // What is here already is as much beyond a new limit as what comes.
        if let Some(limit) = new.max_prefixes.filter(|_| old.max_prefixes != new.max_prefixes) {
            let peer = self.peers[id as usize].as_mut().expect("named peers exist");
            peer.limit_told = PerFamily::both(false);
            for crossed in self.rib.enforce_limit(SourceId(id), limit) {
                self.on_limit(now, id, crossed);
            }
        }
        let client = old.route_reflector_client != new.route_reflector_client;
        let out = |c: &PeerConfig| (c.next_hop, c.as_override, c.remove_private_as, c.add_path.send_max);
        let export = old.export != new.export || out(old) != out(new);
        if export || client {
            self.rib.update_export_policy(id, |p| {
                p.filters.clone_from(&new.export);
                p.next_hop = new.next_hop;
                p.as_override = new.as_override;
                p.remove_private_as = new.remove_private_as;
                p.max_paths = new.add_path.send_max.map_or(0, NonZeroU8::get);
                p.client = new.route_reflector_client;
            });
        }
        if client {
            self.rib.set_client(SourceId(id), new.route_reflector_client);
        }
    }

    /// Cease (6/3, deconfigured) and forget the peer with all its routes.
    pub fn remove_peer(&mut self, now: Instant, name: &str) {
        self.end_peer(now, name, Reason::new(Cause::Deconfigured, "removed from the configuration"));
    }

    fn end_peer(&mut self, now: Instant, name: &str, reason: Reason) {
        let Some(id) = self.by_name.remove(name) else { return };
        let cease = Notification::cease(cease::PEER_DECONFIGURED);
        self.drive(now, id, |session, cx| session.stop(cx, &cease, reason));
        let mut peer = self.peers[id as usize].take().expect("named peers exist");
        self.retired.put(name.to_owned(), std::mem::replace(&mut peer.history, History::new()));
        self.free_peers.push(id);
        if let Some(at) = peer.scheduled {
            self.timers.remove(&(at, id));
        }
        // Also stale routes, if the session was down already.
        self.rib.forget_source(SourceId(id));
        self.end_watch(peer.bfd);
        if let Some(remote) = peer.remote.filter(|_| peer.conflict.is_none()) {
            self.pass_address_on(now, remote);
        }
        if let PeerTarget::Interface(interface) = peer.config.target {
            self.stop_discovering(&interface);
        }
        self.check_restart(now);
    }

    /// Resets a peer's session. Whether there is such a peer.
    pub fn reset(&mut self, now: Instant, peer: &str, how: Reset) -> bool {
        let Some(id) = self.by_name.get(peer).copied() else {
            return false;
        };
        match how {
            Reset::Hard => {
                let peer = self.peers[id as usize].as_mut().expect("named peers exist");
                peer.held = None;
                let cease = Notification::cease(cease::ADMINISTRATIVE_RESET);
                let reason = Reason::new(Cause::AdminReset, "reset by an operator");
                self.restart_session(now, id, &cease, reason);
            }
            Reset::SoftIn => self.ask_again(now, id),
            Reset::SoftOut => Family::ALL.into_iter().for_each(|f| self.rib.refresh_for(id, f)),
        }
        true
    }

    /// Takes a peer down (Cease 6/2 with `message`, RFC 9003) or lets it come up again, over its configuration and until
    /// that is changed. Whether there is such a peer.
    pub fn set_enabled(&mut self, now: Instant, peer: &str, enabled: bool, message: &str) -> bool {
        let Some(id) = self.by_name.get(peer).copied() else {
            return false;
        };
        let peer = self.peers[id as usize].as_mut().expect("named peers exist");
        peer.admin_override = Some((!enabled).then(|| message.to_owned()));
        if enabled {
            peer.held = None;
        }
        self.reconcile(now, id);
        // ManualStart ends a hold-down, too (RFC 4271 8.2.2, Idle).
        if enabled && self.peer(id).is_some_and(|p| p.blocked(self.down_text()).is_none()) {
            self.drive(now, id, |session, cx| session.start(cx, true));
        }
        true
    }

    /// Starts or stops a session as its configuration and circumstances want it.
    pub(super) fn reconcile(&mut self, now: Instant, id: u32) {
        let down = self.down_text().map(str::to_owned);
        let peer = self.peers[id as usize].as_mut().expect("callers have it from the index");
        match peer.blocked(down.as_deref()) {
            Some(blocked) => {
                self.drive(now, id, |session, cx| session.stop(cx, &blocked.cease, blocked.reason));
                // A session that was in Idle already has said nothing.
                self.record(now, id);
                // Nobody waits for it, and it does not come back for its routes.
                self.stop_helping(id);
                let peer = self.peers[id as usize].as_mut().expect("callers have it from the index");
                let watch = peer.bfd.take();
                self.end_watch(watch);
            }
            None if peer.session.is_stopped() => {
                peer.session.set_reason(None);
                self.drive(now, id, |session, cx| session.start(cx, true));
            }
            None => {}
        }
    }

    fn restart_session(&mut self, now: Instant, id: u32, cease: &Notification, reason: Reason) {
        let blocked = self.peer(id).is_none_or(|p| p.blocked(self.down_text()).is_some());
        self.stop_helping(id);
        if !blocked {
            self.drive(now, id, |session, cx| session.restart(cx, cease, reason));
        }
    }

    /// A new session for a change of configuration; forwarding goes on where both sides can.
    fn renew_session(&mut self, now: Instant, id: u32, reason: Reason) {
        let Some(peer) = self.peer(id) else { return };
        if peer.blocked(self.down_text()).is_some() {
            return self.stop_helping(id);
        }
        let graceful = peer.session.negotiated().is_some_and(Negotiated::graceful_notification);
        if !graceful {
            self.stop_helping(id);
        }
        self.drive(now, id, |session, cx| session.renew(cx, &cease_for_change(), reason));
    }

    /// All routes again, judged anew: by ROUTE-REFRESH, or by a new session with a peer that does not know it. (Kept copies
    /// of unfiltered routes would cost as much memory as the table.)
    fn ask_again(&mut self, now: Instant, id: u32) {
        let Some(peer) = self.peer(id) else { return };
        let (Some(conn), Some(n)) = (peer.session.established(), &peer.negotiated) else { return };
        if !n.route_refresh {
            let cease = Notification::cease(cease::ADMINISTRATIVE_RESET);
            let text = "routes are needed again and the peer has no route refresh";
            return self.restart_session(now, id, &cease, Reason::new(Cause::ConfigChanged, text));
        }
        // RFC 7313 4 keeps such a peer from answering before its End-of-RIB, and FRR 8 forgets the question then.
        let marks = n.enhanced_refresh && n.graceful_restart.is_some();
        let families: Vec<Family> = Family::ALL.into_iter().filter(|f| n.families[*f]).collect();
        for family in families {
            match &mut self.peers[id as usize] {
                Some(peer) if marks && !peer.end_of_rib[family] => peer.ask_after_end_of_rib[family] = true,
                _ => self.ask_for(now, id, conn, family),
            }
        }
    }

    /// Sends a ROUTE-REFRESH.
    pub(super) fn ask_for(&mut self, now: Instant, id: u32, conn: ConnId, family: Family) {
        let refresh = RouteRefresh { family, kind: RefreshKind::Request };
        self.drive(now, id, |_, cx| cx.out.push(Output::Send(conn, Outgoing::RouteRefresh(refresh))));
    }
}

/// The new key, if a key for another is all that changes. A session that is protected from now on, or no longer, starts
/// anew: what it was told without protection is not to be trusted.
fn changed_key(old: &SocketOptions, new: &SocketOptions) -> Option<Secret> {
    let rest = |o: &SocketOptions| SocketOptions { md5: None, ..o.clone() };
    let key = new.md5.clone().filter(|_| old.md5.is_some() && old.md5 != new.md5)?;
    (rest(old) == rest(new)).then_some(key)
}

fn keep_equal(new: &mut [Arc<Filter>], old: &[Arc<Filter>]) {
    for filter in new {
        if let Some(same) = old.iter().find(|o| ***o == **filter) {
            *filter = Arc::clone(same);
        }
    }
}
