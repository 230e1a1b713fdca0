//! The speaker's own view turned into the shapes of the admin API: names, addresses and times, joined with what the
//! kernel says about each prefix. Nothing is decided or guessed here.

use std::time::Duration;

use ipnetwork::IpNetwork;
use manx_bgp::speaker as core;
use manx_bgp::types::PeerType;

use crate::view::{self, EpochSeconds, FibState};

/// What the conversions need besides the speaker's view.
pub struct Context<'a> {
    /// This node.
    pub node: &'a str,
    /// Now, for turning ages into times.
    pub now: EpochSeconds,
    /// Where a prefix stands in the kernel, and why it is not there.
    pub fib: &'a dyn Fn(IpNetwork) -> (FibState, Option<String>),
}

/// The configuration of a peer, as far as the views show it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerInfo {
    /// Readiness waits for it.
    pub required: bool,
    /// Settings for `peer show`.
    pub settings: view::PeerSettings,
    /// Settings that are read but not acted on.
    pub unsupported: Vec<String>,
}

/// A line of `manxctl peers`.
pub fn peer_row(peer: &core::PeerView, info: &PeerInfo, cx: &Context<'_>) -> view::PeerRow {
    let established = peer.state == "Established";
    let counts = |f: &core::FamilyView| view::FamilyCounts {
        family: f.family.to_string(),
        received: Some(f.received),
        accepted: Some(f.accepted),
        filtered: Some(f.filtered),
        advertised: Some(f.advertised),
    };
    view::PeerRow {
        node: cx.node.to_owned(),
        address: peer.address.to_string(),
        name: peer.name.clone(),
        local_as: Some(peer.local_as.0),
        remote_as: peer.remote_as.map(|a| a.0),
        state: peer.state.to_owned(),
        since: Some(ago(cx.now, peer.age)),
        flaps: peer.flaps.into(),
        reason: peer.reason.clone().filter(|_| !established),
        required: info.required,
        families: peer.families.iter().filter(|f| established && f.negotiated).map(counts).collect(),
    }
}

/// `manxctl peer show`.
pub fn peer(peer: &core::PeerView, info: &PeerInfo, cx: &Context<'_>) -> view::Peer {
    let established = peer.state == "Established";
    let capability = |c: &core::CapabilityView| view::Advertised {
        name: c.name.clone(),
        sent: c.local,
        received: established.then_some(c.remote),
    };
    view::Peer {
        row: peer_row(peer, info, cx),
        router_id: peer.router_id.map(|id| id.to_string()),
        local_address: peer.local_address.map(|a| a.to_string()),
        remote_address: established.then(|| peer.address.to_string()),
        peer_type: Some(match peer.peer_type {
            PeerType::Internal => "Internal".to_owned(),
            PeerType::External => "External".to_owned(),
        }),
        settings: info.settings.clone(),
        hold_time: established.then(|| peer.timers.hold_time.unwrap_or(0).into()),
        keepalive_time: peer.timers.keepalive.map(|s| s as u64).filter(|_| established),
        next_connect: peer.timers.retry_in.map(|s| cx.now + s.round() as u64),
        capabilities: peer.capabilities.iter().map(capability).collect(),
        messages: view::MessageCounts {
            sent: Some(peer.messages.sent),
            received: Some(peer.messages.received),
            updates_sent: Some(peer.messages.updates_sent),
            updates_received: Some(peer.messages.updates_received),
        },
        unsupported: info.unsupported.clone(),
        ..Default::default()
    }
}

/// A path with its place in the kernel.
pub fn route(path: &core::RouteView, cx: &Context<'_>) -> view::Route {
    let mut out = advertised(path);
    let (state, reason) = if path.from.is_none() {
        (FibState::Local, None)
    } else if path.best || path.multipath {
        (cx.fib)(path.prefix.into())
    } else {
        (FibState::Unselected, None)
    };
    out.fib = Some(state);
    out.reason = out.reason.or(reason);
    out
}

/// A path as a peer was told it: the kernel has no part in that.
pub fn advertised(path: &core::RouteView) -> view::Route {
    let segment = |item: &core::AsPathItem| match item {
        core::AsPathItem::Asn(asn) => view::AsPathItem::Asn(asn.0),
        core::AsPathItem::Set(asns) => view::AsPathItem::Set(asns.iter().map(|a| a.0).collect()),
    };
    view::Route {
        prefix: path.prefix.to_string(),
        from: path.from.map_or_else(|| "local".to_owned(), |a| a.to_string()),
        peer: path.peer.clone(),
        next_hop: path.next_hop.map(|a| a.to_string()),
        best: path.best,
        multipath: path.multipath,
        stale: path.stale,
        filtered: path.filtered,
        as_path: path.as_path.iter().map(segment).collect(),
        origin: path.origin.map(str::to_owned),
        med: path.med,
        local_pref: path.local_pref,
        communities: path.communities.clone(),
        large_communities: path.large_communities.clone(),
        lost_at: path.lost_at.map(str::to_owned),
        fib: None,
        reason: path.reason.clone(),
    }
}

/// `manxctl route why`.
pub fn explanation(e: &core::Explanation, cx: &Context<'_>) -> view::RouteExplanation {
    let paths: Vec<_> = e.paths.iter().map(|p| route(p, cx)).collect();
    let best = paths.iter().find(|p| p.best);
    view::RouteExplanation {
        prefix: e.prefix.to_string(),
        fib: best.and_then(|p| p.fib),
        reason: match best {
            Some(best) => best.reason.clone(),
            None if paths.is_empty() => {
                Some("no path to this prefix has been received or originated".to_owned())
            }
            None => Some("no path is eligible; each one says why".to_owned()),
        },
        exports: e
            .exports
            .iter()
            .map(|x| view::Export {
                peer: x.peer.clone(),
                advertised: x.advertised,
                reason: x.reason.clone(),
            })
            .collect(),
        paths,
        ..Default::default()
    }
}

fn ago(now: EpochSeconds, age: Duration) -> EpochSeconds {
    now.saturating_sub(age.as_secs())
}
