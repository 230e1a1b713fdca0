//! Graceful restart as the restarting speaker (RFC 4724 4.1). The predecessor's routes are in the kernel; until every
//! peer has said what it has, or the time is over, nothing learned goes to the FIB or to peers, so that the kernel keeps
//! what is right and loses nothing that is only late. Local routes are advertised at once: they need no learning.
//!
//! ```text
//! Learning --(every awaited peer: End-of-RIB; every next hop answered | deadline)--> Telling --(FIB drained)--> Done
//! ```

use std::time::{Duration, Instant};

use crate::rib::Rib;
use crate::session::{Cause, RestartFlags, Settings};
use crate::speaker::peer::Peer;
use crate::speaker::{Effect, Speaker, helper};
use crate::types::{Family, PerFamily};

/// Our own restart.
#[derive(Debug)]
pub(super) struct Restart {
    began: Instant,
    deadline: Instant,
    phases: PerFamily<Phase>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Learning,
    /// Route changes are on their way to the FIB; the sweep may follow them.
    Telling,
    Done,
}

impl Restart {
    pub(super) fn new(now: Instant, restart_time: Duration) -> Self {
        Restart { began: now, deadline: now + restart_time, phases: PerFamily::both(Phase::Learning) }
    }

    pub(super) fn is_learning(&self, family: Family) -> bool {
        self.phases[family] == Phase::Learning
    }

    /// When something is to be done: the deadline, or at once if the FIB has been told and `RestartComplete` is due. (A
    /// shell that drains route changes after effects would not be told until the next event.)
    pub(super) fn timeout(&self, rib: &Rib) -> Option<Instant> {
        let told = |f| self.phases[f] == Phase::Telling && rib.fib_is_drained(f);
        let learning = Family::ALL.into_iter().any(|f| self.is_learning(f));
        if Family::ALL.into_iter().any(told) {
            return Some(self.began);
        }
        learning.then_some(self.deadline)
    }
}

impl Speaker {
    /// R and F as an OPEN sent now has to show them.
    fn restart_flags(&self, peer: &Peer) -> RestartFlags {
        RestartFlags { restarting: self.restart.is_some(), preserved: helper::preserved(peer) }
    }

    /// Our side of a peer's sessions to come.
    pub(super) fn settings_of(&self, peer: &Peer) -> Settings {
        Settings::new(&self.config, &peer.config, self.restart_flags(peer))
    }

    /// Our next OPEN to a peer shows what has changed.
    pub(super) fn renew_settings(&mut self, id: u32) {
        if let Some(settings) = self.peer(id).map(|p| self.settings_of(p)) {
            self.peers[id as usize].as_mut().expect("looked at above").session.set_settings(settings);
        }
    }

    /// Ends the deferral of families that have nothing more to wait for.
    pub(super) fn check_restart(&mut self, now: Instant) {
        let Some(restart) = &self.restart else { return };
        let over = restart.deadline <= now;
        let known = self.rib.next_hops_known();
        let learned = PerFamily::from_fn(|family| {
            restart.is_learning(family) && (over || (known && self.nobody_is_awaited(family)))
        });
        if learned == PerFamily::both(false) {
            return;
        }
        // What next hops came to is decided before the FIB hears of it.
        self.rib.settle();
        let restart = self.restart.as_mut().expect("looked at above");
        for family in Family::ALL.into_iter().filter(|f| learned[*f]) {
            restart.phases[family] = Phase::Telling;
            self.rib.set_deferring(family, false);
        }
    }

    /// `RestartComplete` for families whose route changes have all been fetched.
    pub(super) fn finish_restart(&mut self) {
        let Some(restart) = &mut self.restart else { return };
        for family in Family::ALL {
            if restart.phases[family] == Phase::Telling && self.rib.fib_is_drained(family) {
                restart.phases[family] = Phase::Done;
                self.effects.push_back(Effect::RestartComplete(family));
            }
        }
        if restart.phases == PerFamily::both(Phase::Done) {
            self.restart = None;
            // OPENs to come must not claim a restart: F=1 outside one is wrong.
            for id in self.peer_ids() {
                self.renew_settings(id);
            }
        }
    }

    /// RFC 4724 4.1: every peer's End-of-RIB. Without a single peer configured nobody can have said anything: then the
    /// deadline decides, since peers may be about to be configured.
    fn nobody_is_awaited(&self, family: Family) -> bool {
        let mut any = false;
        for peer in self.peers.iter().flatten() {
            any = true;
            if self.is_awaited(peer, family) {
                return false;
            }
        }
        any
    }

    /// Our restart waits for this peer.
    pub(super) fn is_awaited(&self, peer: &Peer, family: Family) -> bool {
        if !self.restart.as_ref().is_some_and(|r| r.is_learning(family)) {
            return false;
        }
        // An unnumbered neighbour that was not heard yet will be.
        let blocked = peer.blocked(self.down_text());
        let for_good = blocked.is_some_and(|b| b.reason.cause != Cause::NoNeighbor);
        if !peer.config.families.contains(&family) || for_good {
            return false;
        }
        if peer.session.established().is_none() {
            return true;
        }
        let n = peer.negotiated.as_ref().expect("an Established session has negotiated");
        // A peer that is restarting too may wait for our End-of-RIB before it sends its own, and one without graceful restart
        // need not send any. RFC 4724 4.1 excludes both at once; we give them until their first KEEPALIVE, which follows
        // their first table: a whole mesh that restarts together would otherwise sweep before it has learned anything.
        let says_no_end = n.graceful_restart.is_none() || n.peer_restarting();
        let silent = says_no_end && peer.keepalives > 0;
        n.families[family] && !peer.end_of_rib[family] && !silent
    }
}
