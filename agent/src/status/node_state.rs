//! What a node says of itself: when its BGPNodeState is written, when its network is there, and what is worth an Event.
//!
//! Pure: rows of the agent's own views in, decisions out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use super::events::{About, Happening};
use crate::crd::status::{Condition, NodePeer, NodeStateStatus};
use crate::view::{EpochSeconds, PeerRow};

/// Writes are at least this far apart.
pub const APART: Duration = Duration::from_secs(10);
/// Numbers alone (prefixes) are written again after this time.
const NUMBERS: Duration = Duration::from_secs(300);

/// The node as it is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeNow {
    /// Its AS.
    pub asn: Option<u32>,
    /// Its BGP identifier.
    pub router_id: Option<String>,
    /// Serving, Draining or Drained.
    pub drain: String,
    /// Its peers.
    pub peers: Vec<PeerRow>,
    /// Why it is not ready, by check; empty: it is.
    pub not_ready: BTreeMap<&'static str, String>,
    /// What keeps the network from being there; `None`: it is, or was once.
    pub network_missing: Option<String>,
    /// Peers that are there by a BGPPeer of ours; sessions with others are the node's own affair.
    pub declared: BTreeSet<String>,
    /// What of the node's annotations for another network is not done.
    pub not_done: BTreeSet<String>,
    /// Policies of the cluster that cannot be understood, such as `NetworkPolicy shop/web`, and why.
    pub misunderstood: BTreeMap<String, String>,
}

/// A time as Kubernetes writes it.
pub fn rfc3339(at: EpochSeconds) -> String {
    let seconds = i64::try_from(at).unwrap_or(0);
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// The status of this node's BGPNodeState; `old`: the one written before, whose transition times live on.
pub fn status(node: &NodeNow, old: Option<&NodeStateStatus>, now: EpochSeconds) -> NodeStateStatus {
    let sum = |peer: &PeerRow, count: fn(&crate::view::FamilyCounts) -> Option<u64>| {
        let all: Option<u64> = peer.families.iter().map(count).sum();
        all.filter(|_| !peer.families.is_empty()).map(signed)
    };
    let peer = |row: &PeerRow| NodePeer {
        name: row.name.clone(),
        address: row.address.clone(),
        remote_as: row.remote_as.map(i64::from),
        state: row.state.clone(),
        since: row.since.map(rfc3339),
        last_error: row.reason.clone(),
        flaps: signed(row.flaps),
        received: sum(row, |f| f.received),
        accepted: sum(row, |f| f.accepted),
        advertised: sum(row, |f| f.advertised),
    };
    let mut peers: Vec<_> = node.peers.iter().map(peer).collect();
    peers.sort_by(|a, b| (&a.name, &a.address).cmp(&(&b.name, &b.address)));
    peers.dedup_by(|a, b| (&a.name, &a.address) == (&b.name, &b.address));
    let ready = node.not_ready.is_empty();
    let message = match ready {
        true => "every check passes".to_owned(),
        false => {
            node.not_ready.iter().map(|(check, why)| format!("{check}: {why}")).collect::<Vec<_>>().join("; ")
        }
    };
    let reason = if ready { "Ready" } else { "ChecksFail" };
    let before = old.and_then(|old| old.conditions.iter().find(|c| c.kind == "Ready"));
    NodeStateStatus {
        as_number: node.asn.map(i64::from),
        router_id: node.router_id.clone(),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        drain: Some(node.drain.clone()),
        peer_count: i64::try_from(peers.len()).ok(),
        established_count: i64::try_from(node.peers.iter().filter(|p| p.established()).count()).ok(),
        peers,
        conditions: vec![condition("Ready", ready, reason, message, None, before, now)],
    }
}

/// A condition whose transition time is that of its last change.
pub fn condition(
    kind: &str,
    ok: bool,
    reason: &str,
    message: String,
    generation: Option<i64>,
    before: Option<&Condition>,
    now: EpochSeconds,
) -> Condition {
    let status = if ok { "True" } else { "False" };
    let since = before.filter(|b| b.status == status).map(|b| b.last_transition_time.clone());
    Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        observed_generation: generation,
        last_transition_time: since.unwrap_or_else(|| rfc3339(now)),
        reason: reason.to_owned(),
        message,
    }
}

/// Whether to write now what differs from what was written.
pub fn due(
    written: Option<&(NodeStateStatus, Instant)>,
    status: &NodeStateStatus,
    tried: Option<Instant>,
    now: Instant,
) -> bool {
    let rested = |since: Instant, time| now.saturating_duration_since(since) >= time;
    if tried.is_some_and(|tried| !rested(tried, APART)) {
        return false;
    }
    match written {
        None => true,
        Some((old, at)) => {
            without_numbers(old) != without_numbers(status) || (old != status && rested(*at, NUMBERS))
        }
    }
}

/// What makes a transition: all but numbers and words.
fn without_numbers(status: &NodeStateStatus) -> NodeStateStatus {
    let mut status = status.clone();
    // Which state a peer that is down is in just now, say.
    status.conditions.iter_mut().for_each(|condition| condition.message.clear());
    for peer in &mut status.peers {
        (peer.received, peer.accepted, peer.advertised) = (None, None, None);
        // A peer that is dialled again and again moves through the states below Established: no transition to speak of.
        if !matches!(&*peer.state, "Established" | "Disabled") {
            "down".clone_into(&mut peer.state);
            peer.since = None;
        }
    }
    status
}

/// What has happened between two looks.
pub fn happenings(old: &NodeNow, new: &NodeNow) -> Vec<Happening> {
    let mut found = Vec::new();
    let before =
        |row: &PeerRow| old.peers.iter().find(|p| (&p.name, &p.address) == (&row.name, &row.address));
    for row in &new.peers {
        let was = before(row);
        let was_up = was.is_some_and(PeerRow::established);
        let lost = was.is_some_and(|was| row.flaps > was.flaps);
        // A range's peers bear its name in front.
        let object = row.name.split('@').next().unwrap_or_default();
        let about = match new.declared.contains(object) {
            true => About::Peer(object.to_owned()),
            false => About::Node,
        };
        if lost || (was_up && !row.established()) {
            let why = row.reason.as_deref().unwrap_or("it is back already");
            let message = format!("session of {} with {} was lost: {why}", row.node, row.address);
            found.push(Happening { about: about.clone(), warning: true, reason: "SessionDown", message });
        }
        if row.established() && (!was_up || lost) {
            let message = format!("session of {} with {} is Established", row.node, row.address);
            found.push(Happening { about, warning: false, reason: "SessionEstablished", message });
        }
    }
    found.extend(not_done(&old.not_done, new));
    if old.drain != new.drain {
        let message = format!("BGP is {}", new.drain);
        found.push(Happening { about: About::Node, warning: false, reason: "BGPDrain", message });
    }
    match (old.not_ready.is_empty(), new.not_ready.is_empty()) {
        (false, true) => found.push(Happening {
            about: About::Node,
            warning: false,
            reason: "NetworkReady",
            message: "every check of the agent passes".to_owned(),
        }),
        (true, false) => found.push(Happening {
            about: About::Node,
            warning: true,
            reason: "NetworkNotReady",
            message: new
                .not_ready
                .iter()
                .map(|(check, why)| format!("{check}: {why}"))
                .collect::<Vec<_>>()
                .join("; "),
        }),
        _ => {}
    }
    found
}

/// What is not done of the node's annotations and was not told before.
pub fn not_done<'a>(told: &'a BTreeSet<String>, new: &'a NodeNow) -> impl Iterator<Item = Happening> + 'a {
    new.not_done.difference(told).map(|message| Happening {
        about: About::Node,
        warning: true,
        reason: "NotSupported",
        message: message.clone(),
    })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, state: &str, flaps: u64) -> PeerRow {
        PeerRow { node: "n1".into(), name: name.into(), state: state.into(), flaps, ..PeerRow::default() }
    }

    fn node(peers: Vec<PeerRow>) -> NodeNow {
        NodeNow {
            drain: "Serving".into(),
            declared: peers.iter().map(|peer| peer.name.clone()).collect(),
            peers,
            ..NodeNow::default()
        }
    }

    fn reasons(old: &NodeNow, new: &NodeNow) -> Vec<&'static str> {
        happenings(old, new).iter().map(|h| h.reason).collect()
    }

    #[test]
    fn sessions_that_come_and_go_are_told() {
        let down = node(vec![row("a", "Connect", 0)]);
        let up = node(vec![row("a", "Established", 0)]);
        assert_eq!(reasons(&down, &up), ["SessionEstablished"]);
        assert_eq!(reasons(&up, &node(vec![row("a", "Idle", 1)])), ["SessionDown"]);
        assert!(reasons(&down, &node(vec![row("a", "Active", 0)])).is_empty());
        let back = node(vec![row("a", "Established", 1)]);
        assert_eq!(reasons(&up, &back), ["SessionDown", "SessionEstablished"]);
        assert!(reasons(&back, &back).is_empty());
    }

    #[test]
    fn a_session_that_no_peer_of_ours_declares_is_told_of_the_node() {
        let (down, mut up) = (node(vec![row("n2", "Connect", 0)]), node(vec![row("n2", "Established", 0)]));
        assert_eq!(happenings(&down, &up)[0].about, About::Peer("n2".into()));
        up.declared.clear();
        assert_eq!(happenings(&down, &up)[0].about, About::Node);
    }

    #[test]
    fn what_is_not_done_of_annotations_is_told_once() {
        let plain = node(vec![]);
        let mut annotated = plain.clone();
        annotated.not_done.insert("annotation kube-router.io/rr.client has no equal here".into());
        assert_eq!(reasons(&plain, &annotated), ["NotSupported"]);
        assert!(reasons(&annotated, &annotated).is_empty());
    }

    #[test]
    fn readiness_and_drain_are_told_of_the_node() {
        let ready = node(vec![]);
        let mut other = ready.clone();
        other.not_ready.insert("policy", "not in the kernel yet".into());
        assert_eq!(reasons(&ready, &other), ["NetworkNotReady"]);
        assert_eq!(reasons(&other, &ready), ["NetworkReady"]);
        let drained = NodeNow { drain: "Drained".into(), ..ready.clone() };
        assert_eq!(reasons(&ready, &drained), ["BGPDrain"]);
    }

    #[test]
    fn a_transition_is_written_at_once_and_the_next_one_ten_seconds_later() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let down = status(&node(vec![row("a", "Connect", 0)]), None, 100);
        assert!(due(None, &down, None, start));
        let written = Some((down.clone(), start));
        assert!(!due(written.as_ref(), &down, Some(start), at(60)));
        let up = status(&node(vec![row("a", "Established", 0)]), Some(&down), 110);
        assert!(!due(written.as_ref(), &up, Some(start), at(9)));
        assert!(due(written.as_ref(), &up, Some(start), at(10)));
        // Dialling again is none.
        let again = status(&node(vec![row("a", "Active", 0)]), Some(&down), 120);
        assert!(!due(written.as_ref(), &again, Some(start), at(60)));
    }

    #[test]
    fn numbers_alone_wait_longer() {
        let start = Instant::now();
        let old = status(&node(vec![row("a", "Established", 0)]), None, 100);
        let mut new = old.clone();
        new.peers[0].received = Some(7);
        let written = Some((old, start));
        assert!(!due(written.as_ref(), &new, Some(start), start + Duration::from_secs(299)));
        assert!(due(written.as_ref(), &new, Some(start), start + NUMBERS));
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let ready = status(&node(vec![]), None, 100);
        let later = status(&node(vec![]), Some(&ready), 200);
        assert_eq!(later.conditions[0].last_transition_time, "1970-01-01T00:01:40Z");
        let mut not = node(vec![]);
        not.not_ready.insert("cni", "waits".into());
        let not = status(&not, Some(&later), 300);
        assert_eq!(not.conditions[0].last_transition_time, "1970-01-01T00:05:00Z");
        assert_eq!((&*not.conditions[0].status, &*not.conditions[0].message), ("False", "cni: waits"));
    }
}
