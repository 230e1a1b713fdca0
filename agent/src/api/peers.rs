//! Peers: what they are, what became of their sessions, and the verbs that an operator has over them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use manx_bgp::speaker::{PeerView, Reset, Speaker};
use serde::Deserialize;

use super::bgp::{self, PeerInfo, address};
use super::server::{Answer, Api, Asked, Refusal, gone, refuse};
use super::why;
use crate::view::{self, Action, ErrorCode};

/// RFC 9003 2: what a Cease carries.
const MAX_MESSAGE: usize = 255;

/// The peer in a path.
pub(super) type Which = Result<Path<String>, PathRejection>;

pub(super) async fn list(State(api): State<Arc<Api>>) -> Answer<view::PeerList> {
    let facts = api.facts.get();
    let (mut peers, now) = api.peers().await?;
    peers.sort_by(|a, b| (a.address, &a.name).cmp(&(b.address, &b.name)));
    let (dropped, suspects) = (api.dropped.lately(), why::suspects(&peers, &facts));
    let none = PeerInfo::default();
    let items = api.with_context(now, |cx| {
        let row = |p: &PeerView| {
            let info = facts.info(&p.name).unwrap_or(&none);
            let row = bgp::peer_row(p, info, cx);
            match why::reason_below(p, info, dropped, suspects) {
                Some(reason) => {
                    let cause = Some("tcp-md5".to_owned());
                    view::PeerRow { reason: Some(reason.to_owned()), cause, ..row }
                }
                None => row,
            }
        };
        peers.iter().map(row).collect()
    });
    let ranges = api.bgp()?.with(|speaker, _| speaker.ranges()).await.map_err(gone)?;
    let ranges = ranges.iter().map(bgp::range).collect();
    Ok(Json(view::PeerList { items, ranges, ..Default::default() }))
}

pub(super) async fn show(State(api): State<Arc<Api>>, which: Which) -> Answer<view::Peer> {
    let which = named(which)?;
    let facts = api.facts.get();
    let (peers, now) = api.peers().await?;
    let found = find(&peers, &which)?;
    let info = facts.info(&found.name).cloned().unwrap_or_default();
    Ok(Json(api.with_context(now, |cx| bgp::peer(found, &info, cx))))
}

pub(super) async fn history(State(api): State<Arc<Api>>, which: Which) -> Answer<view::PeerHistory> {
    let which = named(which)?;
    let (peers, now) = api.peers().await?;
    let peer = find(&peers, &which).ok();
    // A peer that was removed is known by its name alone.
    let name = peer.map_or(which.clone(), |p| p.name.clone());
    let ask = move |speaker: &mut Speaker, now| speaker.history(now, &name);
    let history = api.bgp()?.with(ask).await.map_err(gone)?.ok_or_else(|| no_such_peer(&which))?;
    Ok(Json(api.with_context(now, |cx| bgp::history(&history, peer, cx))))
}

#[derive(Deserialize)]
pub(super) struct ResetQuery {
    #[serde(default)]
    how: How,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum How {
    #[default]
    Hard,
    Soft,
    In,
    Out,
}

pub(super) async fn reset(
    State(api): State<Arc<Api>>,
    which: Which,
    Asked(query): Asked<ResetQuery>,
) -> Answer<view::PeerAction> {
    let (how, action): (&[Reset], _) = match query.how {
        How::Hard => (&[Reset::Hard], Action::Reset),
        How::Soft => (&[Reset::SoftIn, Reset::SoftOut], Action::SoftReset),
        How::In => (&[Reset::SoftIn], Action::SoftResetIn),
        How::Out => (&[Reset::SoftOut], Action::SoftResetOut),
    };
    act(&api, which, action, None, move |speaker, now, name| {
        how.iter().all(|how| speaker.reset(now, name, *how))
    })
    .await
}

#[derive(Deserialize)]
pub(super) struct DisableQuery {
    #[serde(default)]
    message: String,
}

pub(super) async fn disable(
    State(api): State<Arc<Api>>,
    which: Which,
    Asked(query): Asked<DisableQuery>,
) -> Answer<view::PeerAction> {
    let message = query.message;
    if message.len() > MAX_MESSAGE {
        let text = format!("the message is {} bytes long: at most {MAX_MESSAGE} can be sent", message.len());
        return Err(refuse(ErrorCode::BadRequest, text));
    }
    let told = Some(message.clone()).filter(|m| !m.is_empty());
    act(&api, which, Action::Disable, told, move |speaker, now, name| {
        speaker.set_enabled(now, name, false, &message)
    })
    .await
}

pub(super) async fn enable(State(api): State<Arc<Api>>, which: Which) -> Answer<view::PeerAction> {
    act(&api, which, Action::Enable, None, |speaker, now, name| speaker.set_enabled(now, name, true, ""))
        .await
}

/// Does something to a peer and says how it stands then.
async fn act(
    api: &Api,
    which: Which,
    action: Action,
    message: Option<String>,
    verb: impl FnOnce(&mut Speaker, Instant, &str) -> bool + Send + 'static,
) -> Answer<view::PeerAction> {
    let which = named(which)?;
    let (peers, _) = api.peers().await?;
    let name = find(&peers, &which)?.name.clone();
    tracing::info!(peer = %name, ?action, "an operator's order");
    let order = move |speaker: &mut Speaker, now| {
        let done = verb(speaker, now, &name);
        speaker.peer_view(now, &name).filter(|_| done)
    };
    let after = api.bgp()?.with(order).await.map_err(gone)?.ok_or_else(|| no_such_peer(&which))?;
    Ok(Json(view::PeerAction {
        address: bgp::place(&after),
        name: after.name,
        action,
        message,
        state: after.state.to_owned(),
        reason: after.reason,
        ..Default::default()
    }))
}

impl Api {
    /// All peers, with the time at which they stand so.
    pub(super) async fn peers(&self) -> Result<(Vec<PeerView>, Instant), Refusal> {
        self.bgp()?.with(|speaker, now| (speaker.peers(now), now)).await.map_err(gone)
    }
}

pub(super) fn named(which: Which) -> Result<String, Refusal> {
    which.map(|Path(which)| which).map_err(|e| refuse(ErrorCode::BadRequest, e.body_text()))
}

/// A peer by its name or by its address.
pub(super) fn find<'a>(peers: &'a [PeerView], which: &str) -> Result<&'a PeerView, Refusal> {
    // However it is written: fd00:0::1 is fd00::1.
    let which_address = which.parse::<IpAddr>().map_or_else(|_| which.to_owned(), |ip| ip.to_string());
    let by_name = peers.iter().find(|p| p.name == which);
    let by_address = || peers.iter().find(|p| address(p).as_ref() == Some(&which_address));
    by_name.or_else(by_address).ok_or_else(|| no_such_peer(which))
}

pub(super) fn no_such_peer(which: &str) -> Refusal {
    refuse(ErrorCode::NotFound, format!("no peer of this node is called {which} or has that address"))
}
