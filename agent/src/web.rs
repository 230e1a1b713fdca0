//! `/livez`, `/readyz` and `/metrics` over TCP: what a kubelet and Prometheus ask.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use axum::extract::{Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::api::server::Api;
use crate::health::Health;
use crate::metrics;

/// # Errors
/// The address is taken, or not of this host.
pub async fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| {
        format!("cannot serve metrics on {addr}: give --metrics-addr an address of this node that is free")
    })
}

/// Serves until the listener breaks.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: TcpListener, health: Health, api: Arc<Api>) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(health)
        .route("/metrics", get(scrape).with_state(api));
    Ok(axum::serve(listener, router).await?)
}

async fn live(State(health): State<Health>) -> Response {
    let stuck = health.stuck(Instant::now());
    match stuck.is_empty() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("stuck: {}\n", stuck.join(", "))).into_response(),
    }
}

#[derive(Deserialize)]
struct Verbose {
    verbose: Option<String>,
}

async fn ready(State(health): State<Health>, Query(query): Query<Verbose>) -> Response {
    let (ok, checks) = health.ready();
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if query.verbose.is_some() {
        return (status, Json(checks)).into_response();
    }
    let failed: Vec<_> =
        checks.iter().filter(|(_, c)| !c.ok).map(|(n, c)| format!("{n}: {}\n", c.observed)).collect();
    (status, if ok { "ok\n".to_owned() } else { failed.concat() }).into_response()
}

async fn scrape(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response {
    let format = metrics::Format::accepted(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()));
    match metrics::render(&api, format).await {
        Ok(text) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(e) => (StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")).into_response(),
    }
}
