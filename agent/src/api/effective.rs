//! What is in force and where it comes from: the intent that the speaker was given, with its objects' names.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::server::Api;
use crate::desired::{self, PeerIntent};
use crate::view::{Effective, EffectivePeer, NotInForce, Setting, Sourced};

pub(super) async fn effective(State(api): State<Arc<Api>>) -> Json<Effective> {
    let facts = api.facts.get();
    let intent = &facts.intent;
    let named = intent.peers.iter().map(|(name, peer)| document(name, peer, None));
    let ranges = intent.ranges.iter().map(|(name, range)| {
        let peer = PeerIntent { config: range.config.template.clone(), info: range.info.clone() };
        let first = Setting {
            field: "peerRange".to_owned(),
            value: range.config.range.to_string().into(),
            from: range.info.origin.clone(),
        };
        document(name, &peer, Some(first))
    });
    let elsewhere = intent.objects.iter().filter_map(|object| {
        let reason = object.unmet.clone()?;
        Some(NotInForce { object: format!("BGPPeer {}", object.name), reason })
    });
    let unheard = intent.unheard.iter();
    let filters = intent.filters.iter();
    Json(Effective {
        node: api.node.clone(),
        bgp: intent.settings.clone(),
        network: facts.network.clone(),
        peers: named.chain(ranges).collect(),
        filters: filters.map(|(name, from)| Sourced { name: name.clone(), from: from.clone() }).collect(),
        elsewhere: elsewhere.collect(),
        unheard: unheard
            .map(|u| NotInForce { object: u.object.clone(), reason: u.because.clone() })
            .collect(),
        problems: facts.source_problems.iter().chain(&facts.bgp_problems).cloned().collect(),
        ..Effective::default()
    })
}

/// Whom a range lets in is known by the range alone.
fn document(name: &str, peer: &PeerIntent, range: Option<Setting>) -> EffectivePeer {
    let mut settings = desired::of_peer(peer);
    if let Some(range) = range {
        settings[0] = range;
    }
    EffectivePeer {
        name: name.to_owned(),
        from: peer.info.origin.clone(),
        settings,
        blocked: peer.config.admin_blocked.clone(),
    }
}
