//! What the link under a peer tells: who is at the other end of an unnumbered one (RFC 4861), and whether the path works
//! (BFD, RFC 5882). The shell finds out, on a thread that never waits for routes; what follows from it is decided here.

use std::net::Ipv6Addr;
use std::time::Instant;

use crate::bfd::{BfdEnds, BfdStatus};
use crate::session::{Cause, Reason};
use crate::speaker::peer::Watch;
use crate::speaker::{Effect, PeerAddr, PeerTarget, Speaker};
use crate::wire::iana::cease;
use crate::wire::message::Notification;

/// Who was found on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Neighbor {
    /// This link-local address, on the interface of this index.
    Found(Ipv6Addr, u32),
    /// Nobody, for this reason; who was there before is not there any more.
    Gone(String),
}

impl Speaker {
    /// The answer to `Effect::Discover`, and each later change. Another neighbour than the present one is heeded only while
    /// there is no session with the present one: a second router on the link must not tear down what works.
    pub fn set_neighbor(&mut self, now: Instant, interface: &str, neighbor: &Neighbor) {
        for id in self.peers_on(interface) {
            let peer = self.peers[id as usize].as_mut().expect("named peers exist");
            match neighbor {
                Neighbor::Found(ip, ifindex) => {
                    let found = PeerAddr::new((*ip).into(), *ifindex);
                    if peer.remote == Some(found) || peer.session.established().is_some() {
                        continue;
                    }
                    peer.missing = format!("another neighbor on {interface}: {ip}");
                    self.unbind(now, id);
                    self.peers[id as usize].as_mut().expect("named peers exist").remote = Some(found);
                    self.bind(id);
                }
                Neighbor::Gone(reason) => {
                    peer.missing.clone_from(reason);
                    self.unbind(now, id);
                }
            }
            self.reconcile(now, id);
        }
        self.check_restart(now);
    }

    fn peers_on(&self, interface: &str) -> Vec<u32> {
        let wanted = |id: &u32| {
            self.peer(*id)
                .is_some_and(|p| matches!(&p.config.target, PeerTarget::Interface(name) if name == interface))
        };
        self.peer_ids().into_iter().filter(wanted).collect()
    }

    /// A peer of this interface is about to be added.
    pub(super) fn discover(&mut self, interface: String) {
        if self.peers_on(&interface).is_empty() {
            self.effects.push_back(Effect::Discover(interface, true));
        }
    }

    /// A peer of this interface has been removed.
    pub(super) fn stop_discovering(&mut self, interface: &str) {
        if self.peers_on(interface).is_empty() {
            self.effects.push_back(Effect::Discover(interface.to_owned(), false));
        }
    }

    /// Gives a peer the address where it is, unless another one has it.
    pub(super) fn bind(&mut self, id: u32) {
        let speaker_as = self.config.asn;
        let Some(remote) = self.peer(id).and_then(|p| p.remote) else { return };
        let holder = self.by_address.get(&remote).and_then(|holder| self.peer(*holder));
        let conflict =
            holder.map(|holder| format!("address {remote} belongs to peer {}", holder.config.name));
        let peer = self.peers[id as usize].as_mut().expect("looked at above");
        peer.conflict = conflict;
        if peer.conflict.is_none() {
            let options = peer.socket_options(speaker_as);
            self.by_address.insert(remote, id);
            self.rib.set_peer_address(remote.ip, true);
            self.effects.push_back(Effect::Listen(remote, Some(options)));
        }
    }

    /// Ends what there is with the neighbour that a peer had, which is not there any more.
    fn unbind(&mut self, now: Instant, id: u32) {
        let peer = self.peers[id as usize].as_mut().expect("callers have it from the index");
        let Some(remote) = peer.remote.take() else { return };
        let held = peer.conflict.take().is_none();
        // Without an address it is blocked: this ends the session and what watches over it.
        self.reconcile(now, id);
        if held {
            self.pass_address_on(now, remote);
        }
    }

    /// The address of a peer that has gone goes to the next one that wants it, if any.
    pub(super) fn pass_address_on(&mut self, now: Instant, remote: PeerAddr) {
        self.by_address.remove(&remote);
        let wants =
            |id: &u32| self.peer(*id).is_some_and(|p| p.conflict.is_some() && p.remote == Some(remote));
        let Some(heir) = self.peer_ids().into_iter().find(wants) else {
            self.rib.set_peer_address(remote.ip, false);
            self.effects.push_back(Effect::Listen(remote, None));
            return;
        };
        self.bind(heir);
        self.reconcile(now, heir);
    }

    // BFD.

    /// Brings BFD to what the configuration wants, once the session has shown between which addresses. It stays when the
    /// session goes: its state then tells whether the path is back.
    pub(super) fn watch(&mut self, id: u32) {
        let Some(peer) = self.peers[id as usize].as_mut() else { return };
        let Some(config) = peer.config.bfd else {
            let watch = peer.bfd.take();
            return self.end_watch(watch);
        };
        let known = peer.bfd.as_ref().map(|w| w.ends);
        let current = peer
            .endpoints
            .as_ref()
            .map(|e| BfdEnds { local: e.local.ip().to_canonical(), remote: PeerAddr::of(e.remote) });
        let Some(ends) = current.or(known) else { return };
        if known != Some(ends) {
            peer.bfd = Some(Watch { ends, status: None });
        }
        self.effects.push_back(Effect::Bfd(ends, config));
    }

    pub(super) fn end_watch(&mut self, watch: Option<Watch>) {
        if let Some(watch) = watch {
            self.effects.push_back(Effect::BfdEnd(watch.ends.remote));
        }
    }

    /// How BFD with a peer stands: told at each change, the latest of several. RFC 5882 4.2: the end of a path that was up ends
    /// the session, but not where the other side was shut by its administrator.
    pub fn bfd_changed(&mut self, now: Instant, remote: PeerAddr, status: BfdStatus) {
        let Some(id) = self.by_address.get(&remote).copied() else { return };
        let Some(peer) = self.peers[id as usize].as_mut() else { return };
        let Some(watch) = peer.bfd.as_mut().filter(|w| w.ends.remote == remote) else { return };
        let flaps = watch.status.as_ref().map_or(0, |s| s.flaps);
        let lost = status.flaps > flaps && !status.administrative;
        let why = status.reason.clone().unwrap_or_else(|| "the path was down for a moment".to_owned());
        watch.status = Some(status);
        if lost {
            let notification = Notification::cease(cease::BFD_DOWN);
            let reason = Reason::new(Cause::BfdDown, format!("BFD: {why}"));
            self.drive(now, id, |session, cx| session.path_down(cx, &notification, reason));
        }
    }
}
