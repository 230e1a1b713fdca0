//! The node as a whole: draining it and taking that back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use manx_bgp::speaker::Speaker;
use serde::Deserialize;

use super::facts::epoch_now;
use super::server::{Answer, Api, Asked, Refusal, gone, refuse};
use crate::drained::Order;
use crate::view::{DrainPhase, ErrorCode, NodeDrain};

/// What peers are told where the operator says nothing.
const DEFAULT_MESSAGE: &str = "node drained";
/// RFC 9003 2: what a Cease carries.
const MAX_MESSAGE: usize = 255;
/// Longer than any maintenance window needs; keeps arithmetic with times from running over.
const MAX_DELAY: u64 = 86_400;

#[derive(Deserialize)]
pub(super) struct DrainQuery {
    /// Seconds; the configuration's if it is missing.
    delay: Option<u64>,
    message: Option<String>,
}

pub(super) async fn show(State(api): State<Arc<Api>>) -> Answer<NodeDrain> {
    api.drain_state().await
}

pub(super) async fn drain(State(api): State<Arc<Api>>, Asked(query): Asked<DrainQuery>) -> Answer<NodeDrain> {
    let handle = api.bgp()?;
    let message = query.message.filter(|m| !m.is_empty()).unwrap_or_else(|| DEFAULT_MESSAGE.to_owned());
    let delay = query.delay.unwrap_or_else(|| api.facts.with(|f| f.drain_delay.as_secs()));
    if message.len() > MAX_MESSAGE {
        let text = format!("the message is {} bytes long: at most {MAX_MESSAGE} can be sent", message.len());
        return Err(refuse(ErrorCode::BadRequest, text));
    }
    if delay > MAX_DELAY {
        let text = format!("a delay of {delay} s: at most a day ({MAX_DELAY} s)");
        return Err(refuse(ErrorCode::BadRequest, text));
    }
    // Given again, an order takes the new text and delay, and counts from the first time.
    let now = Instant::now();
    let before = handle.with(|speaker, now| speaker.drain_view(now)).await.map_err(gone)?;
    let since = before.map_or_else(epoch_now, |d| api.clock.at(now).saturating_sub(d.age).as_secs());
    let order = Order { since, delay, message: message.clone() };
    // First kept, then carried out: an agent that restarts in between finds it.
    api.drained.save(&order).map_err(|e| refuse(ErrorCode::Unavailable, format!("{e:#}")))?;
    tracing::info!(delay, %message, "the node is drained");
    let order = move |speaker: &mut Speaker, now| speaker.drain(now, Duration::from_secs(delay), &message);
    handle.with(order).await.map_err(gone)?;
    api.drain_state().await
}

pub(super) async fn undrain(State(api): State<Arc<Api>>) -> Answer<NodeDrain> {
    let handle = api.bgp()?;
    api.drained.clear().map_err(|e| refuse(ErrorCode::Unavailable, format!("{e:#}")))?;
    if handle.with(Speaker::undrain).await.map_err(gone)? {
        tracing::info!("the node serves again");
    }
    api.drain_state().await
}

impl Api {
    async fn drain_state(&self) -> Answer<NodeDrain> {
        let look = |speaker: &mut Speaker, now| (speaker.drain_view(now), speaker.peers(now), now);
        let (drain, peers, now) = self.bgp()?.with(look).await.map_err(gone)?;
        let now = self.clock.at(now);
        Ok(Json(NodeDrain {
            node: self.node.clone(),
            phase: match &drain {
                None => DrainPhase::Serving,
                Some(d) if d.remaining.is_some() => DrainPhase::Draining,
                Some(_) => DrainPhase::Drained,
            },
            since: drain.as_ref().map(|d| now.saturating_sub(d.age).as_secs()),
            until: drain
                .as_ref()
                .and_then(|d| d.remaining)
                .map(|s| (now + Duration::from_secs_f64(s)).as_secs()),
            message: drain.map(|d| d.text),
            peers: peers.len() as u64,
            established: peers.iter().filter(|p| p.state == "Established").count() as u64,
            ..Default::default()
        }))
    }
}

/// How far a drain has come, for the status.
pub(super) async fn phase(api: &Api) -> Result<DrainPhase, Refusal> {
    Ok(api.drain_state().await?.0.phase)
}
