//! Routes: the tables, one prefix and its reasons, one address and the kernel's answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use manx_bgp::speaker::{RouteQuery, Speaker};
use manx_bgp::types::Prefix;
use serde::Deserialize;

use super::bgp;
use super::peers::find;
use super::server::{Answer, Api, Asked, gone, refuse};
use crate::view::{self, ErrorCode};

#[derive(Deserialize)]
pub(super) struct RoutesQuery {
    #[serde(default)]
    table: Table,
    peer: Option<String>,
    #[serde(default)]
    rejected: bool,
    #[serde(default)]
    best: bool,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Table {
    #[default]
    Loc,
    In,
    Out,
}

pub(super) async fn routes(
    State(api): State<Arc<Api>>,
    Asked(query): Asked<RoutesQuery>,
) -> Answer<view::RouteList> {
    let handle = api.bgp()?;
    let rib = match (query.table, &query.peer) {
        (Table::Loc, _) => RouteQuery::LocRib,
        (_, None) => {
            return Err(refuse(ErrorCode::BadRequest, "tables in and out are those of a peer: name one"));
        }
        (table, Some(which)) => {
            let name = find(&api.peers().await?.0, which)?.name.clone();
            if table == Table::In { RouteQuery::AdjRibIn(name) } else { RouteQuery::AdjRibOut(name) }
        }
    };
    let ask = move |speaker: &mut Speaker, _| {
        let unlisted = match &rib {
            RouteQuery::AdjRibIn(peer) => Some(speaker.refused_beyond(peer) as u64),
            RouteQuery::LocRib | RouteQuery::AdjRibOut(_) => None,
        };
        (speaker.routes(&rib), unlisted)
    };
    let (paths, unlisted) = handle.with(ask).await.map_err(gone)?;
    let wanted = paths.iter().filter(|p| (!query.rejected || p.filtered) && (!query.best || p.best));
    let items = api.with_context(Instant::now(), |cx| {
        wanted
            .map(|p| if query.table == Table::Out { bgp::advertised(p) } else { bgp::route(p, cx) })
            .collect()
    });
    Ok(Json(view::RouteList { items, unlisted, ..Default::default() }))
}

#[derive(Deserialize)]
pub(super) struct IpQuery {
    ip: String,
}

pub(super) async fn route_get(
    State(api): State<Arc<Api>>,
    Asked(query): Asked<IpQuery>,
) -> Answer<view::RouteLookup> {
    let ip: IpAddr = query
        .ip
        .parse()
        .map_err(|_| refuse(ErrorCode::BadRequest, format!("{}: not an IP address", query.ip)))?;
    let links = api.links.clone();
    let found = tokio::task::spawn_blocking(move || links.lookup(ip))
        .await
        .map_err(gone)?
        .map_err(|e| refuse(ErrorCode::Unavailable, e.to_string()))?;
    let mut lookup = view::RouteLookup { ip: ip.to_string(), ..Default::default() };
    let Some(found) = found else { return Ok(Json(lookup)) };
    lookup.prefix = found.prefix.map(|p| p.to_string());
    lookup.next_hops = found.gateways.iter().map(ToString::to_string).collect();
    lookup.interfaces = found.interfaces;
    lookup.owner = Some(found.owner);
    if let (Some(handle), Some(prefix)) = (api.bgp.get(), found.prefix) {
        let why = handle.with(move |speaker, _| speaker.explain(Prefix::from(prefix))).await.map_err(gone)?;
        let best = why.paths.iter().find(|p| p.best);
        lookup.route = best.map(|p| api.with_context(Instant::now(), |cx| bgp::route(p, cx)));
    }
    Ok(Json(lookup))
}

#[derive(Deserialize)]
pub(super) struct PrefixQuery {
    prefix: String,
}

pub(super) async fn route_why(
    State(api): State<Arc<Api>>,
    Asked(query): Asked<PrefixQuery>,
) -> Answer<view::RouteExplanation> {
    let prefix: Prefix = query.prefix.parse().map_err(|_| {
        refuse(ErrorCode::BadRequest, format!("{}: not a prefix such as 10.0.0.0/24", query.prefix))
    })?;
    let why = api.bgp()?.with(move |speaker, _| speaker.explain(prefix)).await.map_err(gone)?;
    Ok(Json(api.with_context(Instant::now(), |cx| bgp::explanation(&why, cx))))
}
