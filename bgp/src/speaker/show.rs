//! Views: the state of peers and routes as data for people.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::bfd::{self, BfdConfig};
use crate::rib::SourceId;
use crate::rib::view::PeerName;
use crate::session::{Direction, State};
use crate::speaker::history::Transition;
use crate::speaker::peer::{Peer, Watch};
use crate::speaker::{
    BfdView, CapabilityView, Counters, Explanation, FamilyView, GracefulRestartView, HistoryView, Lookup,
    NotificationView, PeerTarget, PeerView, RemoteAs, RouteChange, RouteQuery, RouteView, RuleView, Speaker,
    TimersView, TransitionCount, TransitionView,
};
use crate::types::{Family, Prefix};
use crate::wire::message::{Capability, Notification};

impl Speaker {
    /// Prefixes in the Loc-RIB, both families.
    pub fn prefixes(&self) -> usize {
        Family::ALL.into_iter().map(|family| self.rib.prefixes(family)).sum()
    }

    /// All peers, by name.
    pub fn peers(&self, now: Instant) -> Vec<PeerView> {
        self.by_name
            .values()
            .filter_map(|id| Some((*id, self.peer(*id)?)))
            .map(|(id, p)| self.show(now, id, p))
            .collect()
    }

    /// One peer, by name.
    pub fn peer_view(&self, now: Instant, name: &str) -> Option<PeerView> {
        let id = *self.by_name.get(name)?;
        Some(self.show(now, id, self.peer(id)?))
    }

    /// What became of a peer's sessions; of one that was removed as long as it is remembered.
    pub fn history(&self, now: Instant, name: &str) -> Option<HistoryView> {
        let peer = self.by_name.get(name).and_then(|id| self.peer(*id));
        let history = peer.map(|p| &p.history).or_else(|| self.retired.get(name))?;
        let view = |t: &Transition| TransitionView {
            first_age: now.saturating_duration_since(t.first),
            age: now.saturating_duration_since(t.last),
            count: t.count,
            from: t.from,
            to: t.to,
            cause: t.reason.as_ref().map(|r| r.cause),
            reason: t.reason.as_ref().map(|r| r.text.clone()),
            notification: t
                .reason
                .as_ref()
                .and_then(|r| r.notification.as_ref())
                .map(|(direction, n)| notification(now, t.last, *direction, n)),
        };
        Some(HistoryView {
            name: name.to_owned(),
            configured: peer.is_some(),
            flaps: history.flaps,
            transitions: history.lines().map(view).collect(),
        })
    }

    /// What has been counted since the start, for metrics. Peers that were removed are left out.
    pub fn counters(&self) -> Counters {
        let mut transitions = Vec::new();
        for peer in self.peers.iter().flatten() {
            let counts = peer.history.transitions.iter();
            transitions.extend(counts.map(|(&(to, cause), &count)| {
                let peer = peer.config.name.clone();
                TransitionCount { peer, to, cause, count }
            }));
        }
        Counters { notifications: self.notifications.all(), transitions }
    }

    /// Routes, by prefix. Empty for a peer that is not configured.
    pub fn routes(&self, query: &RouteQuery) -> Vec<RouteView> {
        let name = |id| self.name_of(id);
        match query {
            RouteQuery::LocRib => self.rib.loc_rib_view(&name),
            RouteQuery::AdjRibIn(peer) => {
                let id = self.by_name.get(peer);
                id.map_or_else(Vec::new, |id| self.rib.adj_in_view(SourceId(*id), &name))
            }
            RouteQuery::AdjRibOut(peer) => {
                let id = self.by_name.get(peer);
                id.map_or_else(Vec::new, |id| self.rib.adj_out_view(*id, &name))
            }
        }
    }

    /// How many routes a peer has told us that were refused and are only counted, because they were too many.
    pub fn refused_beyond(&self, peer: &str) -> usize {
        self.by_name.get(peer).map_or(0, |id| self.rib.refused_beyond(SourceId(*id)))
    }

    /// Where each prefix leads that leads anywhere but here, in no order: what the FIB holds once it has been told all.
    pub fn forwarding(&self) -> Vec<RouteChange> {
        self.rib.forwarding_view()
    }

    /// Everything known about a prefix.
    pub fn explain(&self, prefix: Prefix) -> Explanation {
        let name = |id| self.name_of(id);
        let mut paths = self.rib.paths_view(prefix, &name);
        let refused =
            self.by_name.values().flat_map(|id| self.rib.refused_views(SourceId(*id), prefix, &name));
        paths.extend(refused);
        Explanation {
            prefix,
            paths,
            next_hops: self.rib.next_hops_of(prefix),
            exports: self.rib.exports_view(prefix, &name),
        }
    }

    /// Longest match among prefixes with an eligible path.
    pub fn lookup(&self, addr: IpAddr) -> Option<Lookup> {
        let (prefix, next_hops, route) = self.rib.longest_match(addr, &|id| self.name_of(id))?;
        Some(Lookup { prefix, next_hops, route })
    }

    /// Filter rules in use and how often each decided, by filter name. A filter shared by peers is counted once for all.
    pub fn filter_rules(&self) -> Vec<RuleView> {
        let mut filters = BTreeMap::new();
        for peer in self.peers.iter().flatten() {
            for filter in peer.config.import.iter().chain(&peer.config.export) {
                filters.entry((filter.name.clone(), std::sync::Arc::as_ptr(filter))).or_insert(filter);
            }
        }
        let mut views = Vec::new();
        for filter in filters.into_values() {
            for family in Family::ALL {
                for (i, rule) in filter.rules(family).iter().enumerate() {
                    let name = rule.name.clone().unwrap_or_else(|| format!("#{}", i + 1));
                    let filter = filter.name.clone();
                    views.push(RuleView { filter, rule: name, family, hits: rule.hits() });
                }
            }
        }
        views
    }

    /// Prefixes in the table of a family, and attribute sets shared by all: for metrics.
    pub fn table_size(&self, family: Family) -> (usize, usize) {
        (self.rib.prefixes(family), self.rib.attribute_sets())
    }

    fn name_of(&self, id: u32) -> Option<PeerName<'_>> {
        let peer = self.peer(id)?;
        Some(PeerName { name: &peer.config.name, address: peer.remote?.ip })
    }

    fn show(&self, now: Instant, id: u32, peer: &Peer) -> PeerView {
        let session = &peer.session;
        let state = session.state();
        let up = state == State::Established;
        let configured_as = match peer.config.remote_as {
            RemoteAs::Asn(asn) => Some(asn),
            RemoteAs::Internal => Some(peer.config.local_as.unwrap_or(self.config.asn)),
            RemoteAs::External => None,
        };
        PeerView {
            name: peer.config.name.clone(),
            address: peer.remote,
            interface: match &peer.config.target {
                PeerTarget::Interface(name) => Some(name.clone()),
                PeerTarget::Address(_) => None,
            },
            local_as: peer.config.local_as.unwrap_or(self.config.asn),
            remote_as: configured_as.or(peer.negotiated.as_ref().map(|n| n.remote_as)),
            peer_type: peer.peer_type(self.config.asn),
            router_id: peer.negotiated.as_ref().map(|n| n.router_id.addr()),
            state: peer.state_name(self.down_text()),
            age: now.saturating_duration_since(session.since()),
            flaps: peer.history.flaps,
            reason: session.reason().map(|r| r.text.clone()),
            cause: session.reason().map(|r| r.cause),
            last_notification: peer
                .history
                .last_notification
                .as_ref()
                .map(|(at, direction, n)| notification(now, *at, *direction, n)),
            local_address: peer.endpoints.as_ref().map(|e| e.local.ip()),
            capabilities: capabilities(peer, up),
            timers: timers(now, peer, up),
            families: Family::ALL
                .into_iter()
                .filter(|f| peer.config.families.contains(f))
                .map(|family| self.show_family(id, peer, family, up))
                .collect(),
            graceful_restart: self.show_graceful_restart(now, peer),
            messages: peer.messages.clone(),
            bfd: peer.config.bfd.map(|config| bfd(now, config, peer.bfd.as_ref())),
        }
    }

    fn show_family(&self, id: u32, peer: &Peer, family: Family, up: bool) -> FamilyView {
        let negotiated = up && peer.negotiated.as_ref().is_some_and(|n| n.families[family]);
        let received = self.rib.received(SourceId(id), family);
        let sent = self.rib.sent(id, family);
        let reason = match (up, negotiated) {
            (false, _) => None,
            (true, false) => Some("the peer did not offer this family".to_owned()),
            (true, true) if !self.rib.has_own_next_hop(id, family) => {
                Some(format!("not advertised: no {family} address on the session's interface"))
            }
            (true, true) => None,
        };
        FamilyView {
            family,
            negotiated,
            received: (received.accepted + received.filtered) as u64,
            accepted: received.accepted as u64,
            filtered: received.filtered as u64,
            stale: received.stale as u64,
            advertised: sent.advertised as u64,
            pending: sent.pending as u64,
            end_of_rib_received: peer.end_of_rib[family],
            end_of_rib_sent: sent.end_of_rib_sent,
            reason,
        }
    }

    fn show_graceful_restart(&self, now: Instant, peer: &Peer) -> GracefulRestartView {
        let remote = peer.negotiated.as_ref().and_then(|n| {
            n.remote_capabilities.iter().find_map(|c| match c {
                Capability::GracefulRestart(gr) => Some(gr.restart_time),
                _ => None,
            })
        });
        let kept_for = |long_lived| {
            let until = peer.helping.as_ref().and_then(|h| h.until(long_lived))?;
            Some(until.saturating_duration_since(now).as_secs_f64())
        };
        GracefulRestartView {
            local: self.config.graceful_restart.is_some() && peer.config.graceful_restart,
            remote: remote.is_some(),
            restart_time: remote,
            helping_for: kept_for(false),
            long_lived_for: kept_for(true),
            awaited: Family::ALL.into_iter().any(|f| self.is_awaited(peer, f)),
        }
    }
}

fn bfd(now: Instant, config: BfdConfig, watch: Option<&Watch>) -> BfdView {
    let status = watch.and_then(|w| w.status.as_ref());
    BfdView {
        state: status.map_or(bfd::State::Down, |s| s.state).name(),
        remote_state: status.map(|s| s.remote_state.name()),
        age: status.map(|s| now.saturating_duration_since(s.since)),
        detection_time: status.and_then(|s| s.detection_time),
        interval: status.map(|s| s.tx_interval),
        multiplier: config.multiplier,
        flaps: status.map_or(0, |s| s.flaps),
        reason: match status {
            Some(status) => status.reason.clone(),
            None => Some("waits for the BGP session, which tells the addresses".to_owned()),
        },
    }
}

fn notification(now: Instant, at: Instant, direction: Direction, n: &Notification) -> NotificationView {
    NotificationView {
        direction,
        code: n.code,
        subcode: n.subcode,
        text: n.to_string(),
        age: now.saturating_duration_since(at),
    }
}

fn timers(now: Instant, peer: &Peer, up: bool) -> TimersView {
    let session = &peer.session;
    let negotiated = session.negotiated();
    let left = |at: Option<Instant>| at.map(|t| t.saturating_duration_since(now).as_secs_f64());
    TimersView {
        hold_time: negotiated.and_then(|n| n.hold_time).map(|h| h.seconds()),
        keepalive: negotiated.and_then(|n| n.keepalive).map(|k| k.as_secs_f64()),
        connect_retry: peer.config.connect_retry.as_secs_f64(),
        hold_remaining: left(session.hold_deadline().filter(|_| up)),
        retry_in: left(session.retry_deadline()),
    }
}

/// Both sides' capabilities, ours first in our order, then what only the peer has.
fn capabilities(peer: &Peer, up: bool) -> Vec<CapabilityView> {
    let mut all: Vec<CapabilityView> = Vec::new();
    for capability in &peer.session.settings().open.capabilities {
        all.push(CapabilityView { name: capability_name(capability), local: true, remote: false });
    }
    let remote =
        peer.negotiated.as_ref().filter(|_| up).map_or(&[][..], |n| n.remote_capabilities.as_slice());
    for capability in remote {
        let name = capability_name(capability);
        match all.iter_mut().find(|c| c.name == name) {
            Some(known) => known.remote = true,
            None => all.push(CapabilityView { name, local: false, remote: true }),
        }
    }
    all
}

fn capability_name(capability: &Capability) -> String {
    match capability {
        Capability::Multiprotocol(family) => format!("multiprotocol {family}"),
        Capability::RouteRefresh => "route refresh".to_owned(),
        Capability::ExtendedNextHop => "extended next hop".to_owned(),
        Capability::ExtendedMessage => "extended message".to_owned(),
        Capability::GracefulRestart(_) => "graceful restart".to_owned(),
        Capability::FourOctetAs(_) => "4-octet AS".to_owned(),
        Capability::AddPath(_) => "add-path".to_owned(),
        Capability::EnhancedRouteRefresh => "enhanced route refresh".to_owned(),
        Capability::LongLivedGracefulRestart(_) => "long-lived graceful restart".to_owned(),
        Capability::Fqdn { .. } => "fqdn".to_owned(),
        Capability::Unknown { code, .. } => format!("code {code}"),
    }
}
