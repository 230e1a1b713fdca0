//! Route refresh (RFC 2918) and its markers (RFC 7313): what a peer does not say again between the beginning and the end
//! of a refresh is gone, so that both sides' tables agree afterwards whatever went wrong before.

use std::time::{Duration, Instant};

use crate::rib::SourceId;
use crate::speaker::Speaker;
use crate::types::{Family, PerFamily};
use crate::wire::message::{RefreshKind, RouteRefresh};

/// A refresh whose end does not come is taken as ended after so long (RFC 7313 4 asks for an upper bound): as generous as
/// the bound on a peer's restart, which moves the same routes.
const REFRESH_LIMIT: Duration = Duration::from_secs(360);

/// By when a refresh that has begun has to end.
pub(super) type Refreshing = PerFamily<Option<Instant>>;

impl Speaker {
    /// A ROUTE-REFRESH on an Established session.
    pub(super) fn on_refresh(&mut self, now: Instant, id: u32, message: RouteRefresh) {
        let RouteRefresh { family, kind } = message;
        let Some(peer) = self.peers[id as usize].as_mut() else { return };
        let Some(n) = peer.negotiated.as_ref().filter(|n| n.families[family]) else { return };
        match kind {
            RefreshKind::Request => self.rib.refresh_for(id, family),
            RefreshKind::Begin | RefreshKind::End if !n.enhanced_refresh => {}
            // RFC 7313 4: before its End-of-RIB a restarting peer cannot refresh anything.
            RefreshKind::Begin if n.graceful_restart.is_some() && !peer.end_of_rib[family] => {}
            RefreshKind::Begin => {
                peer.refreshing[family] = Some(now + REFRESH_LIMIT);
                self.rib.mark_stale(SourceId(id), family);
                self.rib.forget_refused(SourceId(id), family);
            }
            RefreshKind::End => self.end_refresh(id, family),
        }
    }

    /// Ends refreshes that take too long.
    pub(super) fn expire_refreshes(&mut self, now: Instant, id: u32) {
        for family in Family::ALL {
            let over = self.peer(id).and_then(|p| p.refreshing[family]).is_some_and(|limit| limit <= now);
            if over {
                let limit = REFRESH_LIMIT.as_secs();
                let reason = format!(
                    "the peer began to send its {family} routes again and did not end within {limit} s: the others are dropped"
                );
                self.tell(id, None, reason);
                self.end_refresh(id, family);
            }
        }
    }

    /// An end without a beginning means nothing.
    fn end_refresh(&mut self, id: u32, family: Family) {
        let Some(peer) = self.peers[id as usize].as_mut() else { return };
        if peer.refreshing[family].take().is_some() {
            self.rib.remove_all_of(SourceId(id), family, true);
        }
    }
}
