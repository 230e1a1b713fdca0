//! Graceful restart as the helper: a peer that went away without a word (RFC 4724 4.2), or with one that is not final
//! (RFC 8538), keeps its routes for its restart time, and where both sides have agreed on it, as the last choice for much
//! longer (RFC 9494).
//!
//! ```text
//!            lost                restart time over            stale time over
//!   fresh ---------> stale -----------------------> long-lived ------------> gone
//!     ^                |  \--(not agreed on)----------------------------------^
//!     +--said again----+---------------------------------+
//! ```

use std::time::{Duration, Instant};

use crate::rib::SourceId;
use crate::session::{Down, Negotiated};
use crate::speaker::Speaker;
use crate::speaker::peer::Peer;
use crate::types::{Family, PerFamily};

/// However long a peer's restarts go on, what it has not said again by then is gone (RFC 4724 4.2 asks for an upper bound).
const STALE_LIMIT: Duration = Duration::from_secs(360);

/// Routes of a restarting peer are kept.
#[derive(Clone, Debug)]
pub(super) struct Helping {
    /// By family: how the routes are kept, if they are.
    pub(super) families: PerFamily<Option<Kept>>,
    /// The session ended under the N bit (RFC 8538): the peer keeps our routes as well, and counts on our F bit.
    pub(super) after_notification: bool,
    /// The first of the losses that have not been made good.
    since: Instant,
}

/// How a family's routes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Then they pass on to the next phase. After the peer's return, when what it has not said again goes.
    pub(super) until: Instant,
    /// As the last choice (RFC 9494).
    pub(super) long_lived: bool,
}

impl Helping {
    /// When the next family passes on to its next phase.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Family::ALL.into_iter().filter_map(|f| self.families[f]).map(|kept| kept.until).min()
    }

    /// Until when routes are kept without being depreferred, and as the last choice.
    pub(super) fn until(&self, long_lived: bool) -> Option<Instant> {
        let kept = Family::ALL.into_iter().filter_map(|f| self.families[f]);
        kept.filter(|k| k.long_lived == long_lived).map(|k| k.until).max()
    }

    fn is_over(&self) -> bool {
        self.families == PerFamily::both(None)
    }
}

impl Speaker {
    /// The session ended: its routes go, or stay as stale.
    pub(super) fn peer_is_gone(&mut self, now: Instant, id: u32, how: Down) {
        let peer = self.peers[id as usize].as_mut().expect("the caller has it");
        let before = peer.helping.take();
        let offered = peer.negotiated.as_ref().filter(|_| how == Down::Lost && peer.config.graceful_restart);
        // RFC 4724 would drop, at a second loss, what was stale from the first. A peer that crashes twice while it starts
        // has lost no forwarding by that; the upper bound counts from the first loss instead.
        let since = before.as_ref().map_or(now, |h| h.since);
        let families = PerFamily::from_fn(|family| {
            let n = offered?;
            // RFC 9494 4.2: a stale time that runs goes on.
            if let Some(kept) = before.as_ref().and_then(|h| h.families[family]).filter(|k| k.long_lived) {
                return Some(kept);
            }
            let restart = Duration::from_secs(n.graceful_restart.as_ref()?.restart_time.into());
            match n.forwarding_preserved(family).filter(|_| !restart.is_zero()) {
                Some(_) => {
                    let until = (now + restart).min(since + STALE_LIMIT);
                    Some(Kept { until, long_lived: false })
                }
                None => n.long_lived[family].map(|time| Kept { until: now + time, long_lived: true }),
            }
        });
        let after_notification = offered.is_some_and(Negotiated::graceful_notification);
        peer.helping = Some(Helping { families, after_notification, since }).filter(|h| !h.is_over());
        for family in Family::ALL {
            match families[family] {
                Some(kept) => {
                    self.rib.mark_stale(SourceId(id), family);
                    if kept.long_lived {
                        self.rib.mark_long_lived(SourceId(id), family);
                    }
                }
                None => self.rib.remove_all_of(SourceId(id), family, false),
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
        let mut lost = Vec::new();
        for family in Family::ALL {
            let Some(kept) = &mut helping.families[family] else { continue };
            let preserved = match kept.long_lived {
                false => n.forwarding_preserved(family) == Some(true),
                true => n.long_lived_preserved(family),
            };
            if preserved && n.families[family] {
                kept.until = match kept.long_lived {
                    false => (helping.since + STALE_LIMIT).max(now),
                    true => kept.until.min(now + STALE_LIMIT),
                };
            } else {
                helping.families[family] = None;
                lost.push(family);
            }
        }
        peer.helping = Some(helping).filter(|h| !h.is_over());
        for family in lost {
            self.rib.remove_all_of(SourceId(id), family, true);
        }
        self.renew_settings(id);
    }

    /// The peer has said everything: what is still stale is gone.
    pub(super) fn on_end_of_rib(&mut self, now: Instant, id: u32, family: Family) {
        let peer = self.peers[id as usize].as_mut().expect("it sent a message");
        peer.end_of_rib[family] = true;
        let was = peer.helping.as_mut().and_then(|h| h.families[family].take());
        peer.helping.take_if(|h| h.is_over());
        let ask = std::mem::take(&mut peer.ask_after_end_of_rib[family]);
        let conn = peer.session.established().filter(|_| ask);
        if was.is_some() {
            self.rib.remove_all_of(SourceId(id), family, true);
        }
        if let Some(conn) = conn {
            self.ask_for(now, id, conn, family);
        }
        self.check_restart(now);
    }

    /// Families whose time is over pass on: to long-lived stale, or away.
    pub(super) fn expire_helping(&mut self, now: Instant, id: u32) {
        let peer = self.peers[id as usize].as_mut().expect("the caller has it");
        let back = peer.session.established().is_some();
        let mut ended = Vec::new();
        for family in Family::ALL {
            let agreed = peer.negotiated.as_ref().and_then(|n| n.long_lived[family]);
            let Some(helping) = &mut peer.helping else { return };
            let Some(kept) = helping.families[family].filter(|k| k.until <= now) else { continue };
            let next = agreed
                .filter(|_| !back && !kept.long_lived)
                .map(|time| Kept { until: kept.until + time, long_lived: true });
            helping.families[family] = next;
            ended.push((family, next.is_some()));
        }
        let over = peer.helping.take_if(|h| h.is_over()).is_some();
        for (family, long_lived) in ended {
            match long_lived {
                true => self.rib.mark_long_lived(SourceId(id), family),
                false => self.rib.remove_all_of(SourceId(id), family, true),
            }
        }
        if over {
            self.renew_settings(id);
        }
    }

    /// Drops what is stale now.
    pub(super) fn stop_helping(&mut self, id: u32) {
        let helping = self.peers[id as usize].as_mut().and_then(|p| p.helping.take());
        if let Some(helping) = helping {
            for family in Family::ALL.into_iter().filter(|f| helping.families[*f].is_some()) {
                self.rib.remove_all_of(SourceId(id), family, true);
            }
            self.renew_settings(id);
        }
    }
}

/// The families that we still forward by, to be shown with F to a peer that counts on it.
pub(super) fn preserved(peer: &Peer) -> PerFamily<bool> {
    let kept = peer.helping.as_ref().filter(|h| h.after_notification);
    PerFamily::from_fn(|family| kept.is_some_and(|h| h.families[family].is_some()))
}
