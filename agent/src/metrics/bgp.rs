//! The speaker: sessions, prefixes, messages, and why sessions changed.

use std::sync::atomic::AtomicU64;

use manx_bgp::net::BgpHandle;
use manx_bgp::speaker::{Counters, PeerView};
use manx_bgp::types::Family as AddressFamily;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::gauge;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    peer: String,
    asn: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PrefixLabels {
    peer: String,
    family: String,
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MessageLabels {
    peer: String,
    direction: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransitionLabels {
    peer: String,
    to: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotificationLabels {
    direction: &'static str,
    code: u8,
    subcode: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyLabels {
    family: String,
}

type Counts<L> = Family<L, Counter<u64, AtomicU64>>;

/// Asks the speaker once; a speaker that has stopped has no metrics.
pub(super) async fn register(registry: &mut Registry, handle: &BgpHandle) {
    let asked = handle.with(|speaker, now| {
        let tables = AddressFamily::ALL.map(|family| (family, speaker.table_size(family).0));
        (speaker.peers(now), speaker.counters(), tables, speaker.drain_view(now).is_some())
    });
    let Ok((peers, counters, tables, drained)) = asked.await else { return };
    sessions(registry, &peers);
    transitions(registry, &counters);
    let routes = Family::<FamilyLabels, Gauge>::default();
    for (family, prefixes) in tables {
        routes.get_or_create(&FamilyLabels { family: family.to_string() }).set(prefixes as i64);
    }
    registry.register("bgp_loc_rib_prefixes", "Prefixes in the Loc-RIB by family", routes);
    gauge(registry, "node_drained", "1 when the node is drained or being drained", drained);
}

fn sessions(registry: &mut Registry, peers: &[PeerView]) {
    let up = Family::<PeerLabels, Gauge>::default();
    let prefixes = Family::<PrefixLabels, Gauge>::default();
    let messages = Counts::<MessageLabels>::default();
    let bfd_up = Family::<PeerLabels, Gauge>::default();
    let bfd_flaps = Counts::<PeerLabels>::default();
    for peer in peers {
        let name = || peer.name.clone();
        let labels = PeerLabels { peer: name(), asn: peer.remote_as.map_or(0, |a| a.0) };
        up.get_or_create(&labels).set(i64::from(peer.state == "Established"));
        if let Some(bfd) = &peer.bfd {
            bfd_up.get_or_create(&labels).set(i64::from(bfd.state == "Up"));
            bfd_flaps.get_or_create(&labels).inc_by(bfd.flaps);
        }
        for family in &peer.families {
            let stages = [
                ("received", family.received),
                ("accepted", family.accepted),
                ("filtered", family.filtered),
                ("stale", family.stale),
                ("advertised", family.advertised),
            ];
            for (stage, count) in stages {
                let labels = PrefixLabels { peer: name(), family: family.family.to_string(), stage };
                prefixes.get_or_create(&labels).set(count as i64);
            }
        }
        let directions = [("received", &peer.messages.received), ("sent", &peer.messages.sent)];
        for (direction, counts) in directions {
            for (kind, count) in counts.by_type() {
                let labels = MessageLabels { peer: name(), direction, r#type: kind };
                messages.get_or_create(&labels).inc_by(count);
            }
        }
    }
    registry.register("bgp_session_up", "1 when the session is Established", up);
    registry.register(
        "bfd_session_up",
        "1 when BFD with the peer is Up; absent where it is not asked for",
        bfd_up,
    );
    registry.register("bfd_flaps", "How often BFD with the peer left Up", bfd_flaps);
    registry.register("bgp_prefixes", "Prefixes by peer, family and stage", prefixes);
    registry.register("bgp_messages", "Messages by peer, direction and type", messages);
}

fn transitions(registry: &mut Registry, counters: &Counters) {
    let transitions = Counts::<TransitionLabels>::default();
    for t in &counters.transitions {
        let reason = t.cause.map_or("none", |cause| cause.name());
        let labels = TransitionLabels { peer: t.peer.clone(), to: t.to, reason };
        transitions.get_or_create(&labels).inc_by(t.count);
    }
    let help = "Changes of a session's state by the state that they led to and by reason";
    registry.register("bgp_session_transitions", help, transitions);
    let notifications = Counts::<NotificationLabels>::default();
    for n in &counters.notifications {
        let labels = NotificationLabels { direction: n.direction.name(), code: n.code, subcode: n.subcode };
        notifications.get_or_create(&labels).inc_by(n.count);
    }
    registry.register("bgp_notifications", "NOTIFICATIONs by direction, code and subcode", notifications);
}
