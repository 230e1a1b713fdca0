//! The speaker's own view turned into the shapes of the admin API: names, addresses and times, joined with what the
//! kernel says about each prefix. Nothing is decided or guessed here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use manx_bgp::speaker as core;
use manx_bgp::types::PeerType;

use crate::view::{self, EpochSeconds, FibState};

/// What the conversions need besides the speaker's view.
pub struct Context<'a> {
    /// This node.
    pub node: &'a str,
    /// Now, since the epoch: for turning ages into times.
    pub now: Duration,
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
    /// The object that it comes from, such as `BGPPeer tor-a` or `Node n2`.
    pub origin: String,
    /// The address that we dial from; `None`: whichever the kernel takes.
    pub source: Option<IpAddr>,
    /// Its key.
    pub secret: SecretState,
    /// What else keeps it from being configured whole: filters that do not exist.
    pub missing: Vec<String>,
}

/// A peer's TCP MD5 key, without the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SecretState {
    /// The peer has none.
    #[default]
    Unused,
    /// Read from here.
    Found(String),
    /// Not to be had: why.
    Missing(String),
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
        address: place(peer),
        interface: peer.interface.clone(),
        name: peer.name.clone(),
        local_as: Some(peer.local_as.0),
        remote_as: peer.remote_as.map(|a| a.0),
        state: peer.state.to_owned(),
        since: Some(ago(cx.now, peer.age)),
        flaps: peer.flaps.into(),
        reason: peer.reason.clone().filter(|_| !established),
        cause: peer.cause.map(|c| c.name().to_owned()).filter(|_| !established),
        required: info.required,
        bfd: peer.bfd.as_ref().map(|b| bfd(b, cx)),
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
        remote_address: address(peer).filter(|_| established),
        peer_type: Some(match peer.peer_type {
            PeerType::Internal => "Internal".to_owned(),
            PeerType::External => "External".to_owned(),
        }),
        settings: info.settings.clone(),
        hold_time: established.then(|| peer.timers.hold_time.unwrap_or(0).into()),
        keepalive_time: peer.timers.keepalive.map(|s| s as u64).filter(|_| established),
        next_connect: peer.timers.retry_in.map(|s| (cx.now + Duration::from_secs_f64(s)).as_secs()),
        capabilities: peer.capabilities.iter().map(capability).collect(),
        messages: view::MessageCounts {
            sent: Some(peer.messages.sent.total()),
            received: Some(peer.messages.received.total()),
            updates_sent: Some(peer.messages.sent.update),
            updates_received: Some(peer.messages.received.update),
            sent_by_type: by_type(&peer.messages.sent),
            received_by_type: by_type(&peer.messages.received),
        },
        last_notification: peer.last_notification.as_ref().map(|n| notification(n, cx)),
        ..Default::default()
    }
}

/// `manxctl peer history`; `peer` is missing where it was removed from the configuration.
pub fn history(
    history: &core::HistoryView,
    peer: Option<&core::PeerView>,
    cx: &Context<'_>,
) -> view::PeerHistory {
    let transition = |t: &core::TransitionView| view::Transition {
        at: ago(cx.now, t.age),
        first_at: ago(cx.now, t.first_age),
        count: t.count,
        from: t.from.to_owned(),
        to: t.to.to_owned(),
        cause: t.cause.map(|c| c.name().to_owned()),
        reason: t.reason.clone(),
        notification: t.notification.as_ref().map(|n| notification(n, cx)),
    };
    view::PeerHistory {
        node: cx.node.to_owned(),
        name: history.name.clone(),
        address: peer.and_then(address),
        configured: history.configured,
        state: peer.map(|p| p.state.to_owned()),
        since: peer.map(|p| ago(cx.now, p.age)),
        flaps: history.flaps.into(),
        items: history.transitions.iter().map(transition).collect(),
        ..Default::default()
    }
}

/// `10.1.0.1`, or `fe80::1%eth1` for a peer by interface, once it is known.
pub(super) fn address(peer: &core::PeerView) -> Option<String> {
    let address = peer.address?;
    Some(match &peer.interface {
        Some(interface) => format!("{}%{interface}", address.ip),
        None => address.ip.to_string(),
    })
}

/// The same, and the interface alone while nobody has been found there.
pub(super) fn place(peer: &core::PeerView) -> String {
    address(peer).or_else(|| peer.interface.clone()).unwrap_or_default()
}

fn bfd(bfd: &core::BfdView, cx: &Context<'_>) -> view::Bfd {
    let millis = |time: Option<Duration>| time.map(|t| t.as_millis() as u64);
    view::Bfd {
        state: bfd.state.to_owned(),
        remote_state: bfd.remote_state.map(str::to_owned),
        since: bfd.age.map(|age| ago(cx.now, age)),
        detection_time_ms: millis(bfd.detection_time),
        interval_ms: millis(bfd.interval),
        multiplier: bfd.multiplier,
        flaps: bfd.flaps,
        reason: bfd.reason.clone(),
    }
}

/// A range in `manxctl peers`.
pub fn range(range: &core::RangeView) -> view::PeerRange {
    view::PeerRange {
        name: range.name.clone(),
        range: range.range.to_string(),
        peers: range.peers as u64,
        max_peers: range.max_peers as u64,
        refused: range.refused,
    }
}

fn notification(n: &core::NotificationView, cx: &Context<'_>) -> view::Notification {
    view::Notification {
        direction: n.direction.name().to_owned(),
        code: n.code,
        subcode: n.subcode,
        text: n.text.clone(),
        at: Some(ago(cx.now, n.age)),
    }
}

fn by_type(counts: &core::MessageCounts) -> BTreeMap<String, u64> {
    counts.by_type().into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect()
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
        path_id: path.path_id,
        next_hop: path.next_hop.map(|a| a.to_string()),
        best: path.best,
        multipath: path.multipath,
        stale: path.stale,
        filtered: path.filtered,
        blackhole: path.blackhole,
        as_path: path.as_path.iter().map(segment).collect(),
        origin: path.origin.map(str::to_owned),
        med: path.med,
        local_pref: path.local_pref,
        communities: path.communities.clone(),
        large_communities: path.large_communities.clone(),
        extended_communities: path.extended_communities.clone(),
        originator_id: path.originator_id.map(|id| id.to_string()),
        cluster_list: path.cluster_list.iter().map(ToString::to_string).collect(),
        accepted_by: path.accepted_by.clone(),
        lost_at: path.lost_at.map(str::to_owned),
        fib: None,
        reason: path.reason.clone(),
    }
}

/// `manxctl route why`.
pub fn explanation(e: &core::Explanation, cx: &Context<'_>) -> view::RouteExplanation {
    let paths: Vec<_> = e.paths.iter().map(|p| route(p, cx)).collect();
    let best = paths.iter().find(|p| p.best);
    // The rule that let the best path in; where there is none, the one that kept the first path out.
    let filter = match e.paths.iter().find(|p| p.best) {
        Some(best) => best.accepted_by.clone(),
        None => e.paths.iter().find(|p| p.filtered).and_then(|p| p.reason.clone()),
    };
    view::RouteExplanation {
        prefix: e.prefix.to_string(),
        fib: best.and_then(|p| p.fib),
        filter,
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

fn ago(now: Duration, age: Duration) -> EpochSeconds {
    now.saturating_sub(age).as_secs()
}

#[cfg(test)]
mod tests {
    use manx_bgp::types::Family;

    use super::*;

    fn path(prefix: &str, from: Option<&str>) -> core::RouteView {
        core::RouteView {
            prefix: prefix.parse().unwrap(),
            from: from.map(|a| a.parse().unwrap()),
            peer: from.map(|_| "tor".to_owned()),
            path_id: None,
            next_hop: from.map(|a| a.parse().unwrap()),
            best: false,
            multipath: false,
            stale: false,
            filtered: false,
            blackhole: false,
            as_path: Vec::new(),
            origin: Some("igp"),
            med: None,
            local_pref: Some(100),
            communities: Vec::new(),
            large_communities: Vec::new(),
            extended_communities: Vec::new(),
            originator_id: None,
            cluster_list: Vec::new(),
            lost_at: None,
            reason: None,
            accepted_by: None,
        }
    }

    fn explain(paths: Vec<core::RouteView>) -> view::RouteExplanation {
        let prefix = "10.9.0.0/16".parse().unwrap();
        let fib = |_| (FibState::Missing, Some("the kernel says no".to_owned()));
        let cx = Context { node: "n1", now: Duration::from_secs(1000), fib: &fib };
        explanation(&core::Explanation { prefix, paths, next_hops: Vec::new(), exports: Vec::new() }, &cx)
    }

    #[test]
    fn the_kernel_is_asked_about_selected_paths_only() {
        let best = core::RouteView { best: true, ..path("10.9.0.0/16", Some("10.1.0.1")) };
        let second = core::RouteView { multipath: true, ..best.clone() };
        let lost = core::RouteView {
            lost_at: Some("a"),
            reason: Some("longer AS_PATH".to_owned()),
            ..path("10.9.0.0/16", Some("10.1.0.3"))
        };
        let own = core::RouteView { best: true, ..path("10.9.0.0/16", None) };
        let states = |paths| explain(paths).paths.iter().map(|p| p.fib.unwrap()).collect::<Vec<_>>();
        assert_eq!(
            states(vec![best.clone(), core::RouteView { best: false, ..second }, lost.clone()]),
            [FibState::Missing, FibState::Missing, FibState::Unselected]
        );
        assert_eq!(states(vec![own]), [FibState::Local]);
        let why = explain(vec![best, lost]);
        assert_eq!(why.reason.as_deref(), Some("the kernel says no"));
        assert_eq!(why.paths[1].reason.as_deref(), Some("longer AS_PATH"));
    }

    #[test]
    fn the_filter_of_an_explanation_is_the_rule_that_let_the_best_path_in_or_kept_the_first_one_out() {
        let rule = |name: &str| Some(name.to_owned());
        let best = core::RouteView {
            best: true,
            accepted_by: rule("racks: seven"),
            ..path("10.9.0.0/16", Some("10.1.0.1"))
        };
        let refused = core::RouteView {
            filtered: true,
            reason: rule("racks: rest"),
            ..path("10.9.0.0/16", Some("10.1.0.3"))
        };
        assert_eq!(explain(vec![best, refused.clone()]).filter, rule("racks: seven"));
        assert_eq!(explain(vec![refused]).filter, rule("racks: rest"));
        assert_eq!(explain(vec![]).filter, None);
        let none = explain(vec![]);
        assert_eq!((none.fib, none.reason.is_some()), (None, true));
    }

    #[test]
    fn a_peer_that_is_down_shows_why_and_no_figures_of_a_session() {
        let view = core::PeerView {
            name: "tor".to_owned(),
            address: Some("10.1.0.1".parse::<std::net::IpAddr>().unwrap().into()),
            interface: None,
            bfd: None,
            local_as: manx_bgp::types::Asn(64512),
            remote_as: None,
            peer_type: PeerType::External,
            router_id: None,
            state: "Connect",
            age: Duration::from_secs(10),
            flaps: 2,
            reason: Some("connection refused".to_owned()),
            cause: None,
            last_notification: None,
            local_address: None,
            capabilities: Vec::new(),
            timers: core::TimersView { retry_in: Some(4.6), ..Default::default() },
            families: vec![core::FamilyView {
                family: Family::Ipv4Unicast,
                negotiated: true,
                received: 7,
                accepted: 7,
                filtered: 0,
                stale: 7,
                advertised: 3,
                pending: 0,
                end_of_rib_received: false,
                end_of_rib_sent: false,
                reason: None,
            }],
            graceful_restart: Default::default(),
            messages: Default::default(),
        };
        let fib = |_| (FibState::Missing, None);
        let cx = Context { node: "n1", now: Duration::from_secs(1000), fib: &fib };
        let shown = peer(&view, &PeerInfo::default(), &cx);
        assert_eq!((shown.row.since, shown.row.flaps, shown.row.remote_as), (Some(990), 2, None));
        assert_eq!(shown.row.reason.as_deref(), Some("connection refused"));
        assert!(shown.row.families.is_empty());
        assert_eq!((shown.hold_time, shown.keepalive_time, shown.next_connect), (None, None, Some(1004)));

        let up = core::PeerView { state: "Established", ..view };
        let shown = peer(&up, &PeerInfo::default(), &cx);
        assert_eq!(shown.row.reason, None, "what was is no trouble any more");
        assert_eq!(shown.row.families[0].received, Some(7));
        assert_eq!(shown.hold_time, Some(0), "none was negotiated");
    }
}
