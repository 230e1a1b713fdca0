//! `peer why`: gathers what the rooms know of a peer, for the ladder to climb.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use manx_bgp::speaker::{PeerAddr, PeerView};

use super::bgp::{self, PeerInfo};
use super::facts::Facts;
use super::ladder::{self, Evidence, Kernel, Path, Suspects};
use super::peers::{Which, find, named, no_such_peer};
use super::server::{Answer, Api, gone};
use crate::kernel::link::LinksHandle;
use crate::kernel::{neighbour, netstat};
use crate::view::{self, Rung, RungResult};

/// Counters of dropped segments, read again and again by the loop.
#[derive(Debug, Default)]
pub struct DroppedSegments(Mutex<netstat::Recent>);

impl DroppedSegments {
    /// Reads them.
    pub fn sample(&self, now: Instant) {
        // A namespace without /proc has no counters, and nothing else to tell of them.
        if let Ok(reading) = netstat::read() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(now, reading);
        }
    }

    pub(super) fn lately(&self) -> netstat::Dropped {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).dropped()
    }
}

pub(super) async fn why(State(api): State<Arc<Api>>, which: Which) -> Answer<view::PeerDiagnosis> {
    let asked = named(which)?;
    let facts = api.facts.get();
    let (peers, now) = api.peers().await?;
    let Ok(peer) = find(&peers, &asked) else {
        return not_a_peer(&api, asked, &facts);
    };
    let info = facts.info(&peer.name).cloned().unwrap_or_default();
    api.dropped.sample(Instant::now());
    let dropped = api.dropped.lately();
    let (links, address, source) = (api.links.clone(), peer.address, info.source);
    let kernel = match address {
        Some(address) => tokio::task::spawn_blocking(move || below_bgp(&links, address, source)).await,
        None => Ok(Kernel::default()),
    };
    let kernel = kernel.map_err(gone)?;
    let kernel = Kernel { dropped, suspects: suspects(&peers, &facts), ..kernel };
    let evidence =
        Evidence { peer, info: &info, objects: &facts.peer_objects, kernel: &kernel, asn: facts.asn };
    let rungs = ladder::climb(&evidence);
    let first = rungs.iter().find(|r| r.result == RungResult::Failed);
    let row = api.with_context(now, |cx| bgp::peer_row(peer, &info, cx));
    Ok(Json(view::PeerDiagnosis {
        node: api.node.clone(),
        asked,
        name: Some(row.name),
        address: Some(row.address),
        state: Some(row.state),
        since: row.since,
        answer: first.map(|r| r.observed.clone()),
        remedy: first.and_then(|r| r.remedy.clone()),
        rungs,
        ..Default::default()
    }))
}

/// Nobody's name and nobody's address is an error; an address is a fair question.
fn not_a_peer(api: &Api, asked: String, facts: &Facts) -> Answer<view::PeerDiagnosis> {
    let nearly = ladder::nearly(&asked, &facts.peer_objects);
    if nearly.is_empty() && asked.parse::<IpAddr>().is_err() {
        return Err(no_such_peer(&asked));
    }
    let answer = format!("no BGPPeer makes {asked} a peer of node {}", api.node);
    let remedy = match nearly.is_empty() {
        true => "add a BGPPeer with that peerIP, or mend the address",
        false => "compare with the objects that nearly do",
    };
    let selected = Rung {
        name: "selected".to_owned(),
        result: RungResult::Failed,
        observed: answer.clone(),
        remedy: Some(remedy.to_owned()),
    };
    Ok(Json(view::PeerDiagnosis {
        node: api.node.clone(),
        asked,
        answer: Some(answer),
        remedy: Some(remedy.to_owned()),
        rungs: vec![selected],
        nearly,
        ..Default::default()
    }))
}

/// Whom dropped segments may have come from.
pub(super) fn suspects(peers: &[PeerView], facts: &Facts) -> Suspects {
    let mut suspects = Suspects::default();
    let down = peers.iter().filter(|p| !["Established", "Disabled"].contains(&p.state));
    for info in down.filter_map(|p| facts.info(&p.name)) {
        suspects.with_key += usize::from(info.settings.password);
        suspects.without_key += usize::from(!info.settings.password);
        suspects.near += usize::from(info.settings.ttl_security);
    }
    suspects
}

/// The reason of a peer that is down, with what only the kernel knows.
pub(super) fn reason_below(
    peer: &PeerView,
    info: &PeerInfo,
    dropped: netstat::Dropped,
    suspects: Suspects,
) -> Option<&'static str> {
    let kernel = Kernel { dropped, suspects, ..Kernel::default() };
    let down = !["Established", "Disabled"].contains(&peer.state);
    down.then(|| ladder::signature_trouble(peer, info.settings.password, &kernel)).flatten()
}

/// Asks the kernel how packets get to the peer.
fn below_bgp(links: &LinksHandle, peer: PeerAddr, source: Option<IpAddr>) -> Kernel {
    let present = |source: IpAddr| links.addresses().iter().any(|net| net.ip() == source);
    let kernel = Kernel { source_present: source.map(present), ..Kernel::default() };
    if peer.ifindex != 0 {
        let route = Path { shown: "its interface".to_owned(), gateway: None, ours: false };
        let asked = neighbour::find(peer.ip, peer.ifindex);
        let error = asked.as_ref().err().map(ToString::to_string);
        let neighbour = asked.ok().flatten();
        return Kernel { route: Some(route), neighbour, next: Some(peer.ip), error, ..kernel };
    }
    let peer = peer.ip;
    let found = match links.lookup(peer) {
        Ok(Some(found)) => found,
        Ok(None) => return kernel,
        Err(e) => return Kernel { error: Some(e.to_string()), ..kernel },
    };
    let gateway = found.gateways.first().copied();
    let prefix = found.prefix.map_or_else(|| "its own route".to_owned(), |p| p.to_string());
    let on = found.interfaces.first().map_or(String::new(), |name| format!(" on {name}"));
    let route = Path { shown: format!("{prefix}{on}"), gateway, ours: found.owner == "manx" };
    let next = gateway.unwrap_or(peer);
    let asked = found.ifindexes.first().map(|index| neighbour::find(next, *index));
    let (neighbour, error) = match asked {
        Some(Ok(neighbour)) => (neighbour, None),
        Some(Err(e)) => (None, Some(e.to_string())),
        None => (None, None),
    };
    Kernel { route: Some(route), neighbour, next: Some(next), error, ..kernel }
}
