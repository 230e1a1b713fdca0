//! Graceful restart as the helper (RFC 4724 4.2): a peer that went away without a word keeps its routes for a while.

use std::time::{Duration, Instant};

use crate::rib::SourceId;
use crate::session::{Down, Negotiated};
use crate::speaker::Speaker;
use crate::types::{Family, PerFamily};

/// However long a peer's restarts go on, what it has not said again by then is gone (RFC 4724 4.2 asks for an upper bound).
const STALE_LIMIT: Duration = Duration::from_secs(360);

/// Routes of a restarting peer are kept.
#[derive(Clone, Debug)]
pub(super) struct Helping {
    /// Families with routes kept.
    pub(super) families: PerFamily<bool>,
    /// The session ended under the N bit (RFC 8538): the peer keeps our routes as well, and counts on our F bit.
    pub(super) after_notification: bool,
    /// The first of the losses that have not been made good.
    since: Instant,
    /// Then the stale routes go: at first the peer's restart time, after its return the upper bound.
    pub(super) deadline: Instant,
}

impl Speaker {
    /// The session ended: its routes go, or stay as stale.
    pub(super) fn peer_is_gone(&mut self, now: Instant, id: u32, how: Down) {
        let peer = self.peers[id as usize].as_mut().expect("the caller has it");
        let offered = peer.negotiated.as_ref().filter(|_| how == Down::Lost && peer.config.graceful_restart);
        let restart_time = offered
            .and_then(|n| n.graceful_restart.as_ref())
            .map(|gr| Duration::from_secs(gr.restart_time.into()))
            .filter(|t| !t.is_zero());
        let kept = PerFamily::from_fn(|f| {
            restart_time.is_some() && offered.is_some_and(|n| n.forwarding_preserved(f).is_some())
        });
        peer.helping = restart_time.map(|time| {
            // RFC 4724 would drop, at a second loss, what was stale from the first. A peer that crashes twice while it starts
            // has lost no forwarding by that; the upper bound counts from the first loss instead.
            let since = peer.helping.as_ref().map_or(now, |h| h.since);
            let after_notification = offered.is_some_and(Negotiated::graceful_notification);
            Helping {
                families: kept,
                after_notification,
                since,
                deadline: (now + time).min(since + STALE_LIMIT),
            }
        });
        for family in Family::ALL {
            if kept[family] {
                self.rib.mark_stale(SourceId(id), family);
            } else {
                self.rib.remove_all_of(SourceId(id), family, false);
            }
        }
        self.renew_settings(id);
    }

    /// The session is up again: families whose forwarding state the peer has lost are flushed at once, the others wait for
    /// End-of-RIB.
    pub(super) fn peer_is_back(&mut self, now: Instant, id: u32) {
        let peer = self.peers[id as usize].as_mut().expect("the caller has it");
        let Some(mut helping) = peer.helping.take() else { return };
        // F is for the OPEN that ends the interruption, not for later ones.
        helping.after_notification = false;
        let n = peer.negotiated.as_ref().expect("it has just come up");
        let lost = PerFamily::from_fn(|f| {
            helping.families[f] && !(n.families[f] && n.forwarding_preserved(f) == Some(true))
        });
        for family in Family::ALL {
            helping.families[family] &= !lost[family];
        }
        helping.deadline = (helping.since + STALE_LIMIT).max(now);
        if helping.families != PerFamily::both(false) {
            peer.helping = Some(helping);
        }
        for family in Family::ALL {
            if lost[family] {
                self.rib.remove_all_of(SourceId(id), family, true);
            }
        }
        self.renew_settings(id);
    }

    /// The peer has said everything: what is still stale is gone.
    pub(super) fn on_end_of_rib(&mut self, now: Instant, id: u32, family: Family) {
        let peer = self.peers[id as usize].as_mut().expect("it sent a message");
        peer.end_of_rib[family] = true;
        if let Some(helping) = &mut peer.helping
            && std::mem::take(&mut helping.families[family])
        {
            if helping.families == PerFamily::both(false) {
                peer.helping = None;
            }
            self.rib.remove_all_of(SourceId(id), family, true);
        }
        self.check_restart(now);
    }

    /// The peer's time is over.
    pub(super) fn expire_helping(&mut self, now: Instant, id: u32) {
        let peer = self.peers[id as usize].as_mut().expect("the caller has it");
        if peer.helping.as_ref().is_some_and(|h| h.deadline <= now) {
            self.stop_helping(id);
        }
    }

    /// Drops what is stale now.
    pub(super) fn stop_helping(&mut self, id: u32) {
        let helping = self.peers[id as usize].as_mut().and_then(|p| p.helping.take());
        if let Some(helping) = helping {
            for family in Family::ALL.into_iter().filter(|f| helping.families[*f]) {
                self.rib.remove_all_of(SourceId(id), family, true);
            }
            self.renew_settings(id);
        }
    }
}
