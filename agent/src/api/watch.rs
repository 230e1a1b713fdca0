//! `watch`: events as lines of JSON, for as long as somebody reads.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::server::{Api, Asked, Refusal, refuse};
use crate::view::{ErrorCode, Event, TOPICS};

#[derive(Deserialize)]
pub(super) struct WatchQuery {
    /// Topics, separated by commas; all if it is missing.
    only: Option<String>,
}

pub(super) async fn watch(
    State(api): State<Arc<Api>>,
    Asked(query): Asked<WatchQuery>,
) -> Result<Response, Refusal> {
    let topics: Option<Vec<String>> = query.only.map(|only| only.split(',').map(str::to_owned).collect());
    if let Some(odd) = topics.iter().flatten().find(|t| !TOPICS.contains(&t.as_str())) {
        let text = format!("{odd}: not something to watch; there are {}", TOPICS.join(", "));
        return Err(refuse(ErrorCode::BadRequest, text));
    }
    let reader = api.events.listen(topics, api.fib.clone());
    let lines = futures::stream::unfold(reader, |mut reader| async move {
        let line = line(&reader.next().await?);
        Some((Ok::<_, std::convert::Infallible>(line), reader))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn line(event: &Event) -> Bytes {
    let mut line = serde_json::to_vec(event).expect("an event is plain data");
    line.push(b'\n');
    line.into()
}
