//! `drops`: which packets were dropped, by which rule of which policy, lately or from now on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use manx_policy::drops::Point;
use manx_policy::engine::Engine;
use serde::Deserialize;
use tokio::sync::broadcast::{self, error::RecvError};

use super::facts::{epoch, epoch_now};
use super::pods;
use super::server::{Api, Asked, Refusal, refuse};
use crate::drops::Dropped;
use crate::view::{
    ApiVersion, DropEvent, DropEventKind, DropList, DroppedPacket, Dropping, ErrorCode, PacketEnd,
};

/// Packets that are looked up together.
const BATCH: usize = 64;
/// How long what is known of the rules is believed: to list their places costs the policy thread milliseconds.
const BELIEVED: Duration = Duration::from_secs(1);
/// Places that are remembered beyond the rules that are in force: a packet may be told of after its rule has gone.
const REMEMBERED: usize = 16_384;
/// Between two questions to a policy thread that has no time.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
pub(super) struct DropsQuery {
    /// From now on, without end.
    #[serde(default)]
    follow: bool,
    /// Only packets of this pod.
    pod: Option<String>,
    /// Only those that this policy drops.
    policy: Option<String>,
}

impl DropsQuery {
    fn wants(&self, packet: &DroppedPacket) -> bool {
        let pods = [&packet.pod, &packet.source.pod, &packet.destination.pod];
        let pod = self.pod.is_none() || pods.contains(&&self.pod);
        let mut policies = packet.policy.iter().chain(&packet.isolated_by);
        pod && self.policy.as_ref().is_none_or(|wanted| policies.any(|policy| policy == wanted))
    }
}

pub(super) async fn drops(
    State(api): State<Arc<Api>>,
    Asked(query): Asked<DropsQuery>,
) -> Result<Response, Refusal> {
    api.policy()?;
    let Some(drops) = &api.drops else {
        return Err(refuse(ErrorCode::Unavailable, "drops are not logged on this node (--no-drop-log)"));
    };
    if let Some(problem) = drops.problem() {
        return Err(refuse(ErrorCode::Unavailable, problem));
    }
    let mut places = Places::default();
    if query.follow {
        let reader = Reader { news: drops.follow(), api, query, places, begun: false };
        let lines = futures::stream::unfold(reader, |mut reader| async move {
            let lines = reader.next().await?;
            Some((Ok::<_, std::convert::Infallible>(lines), reader))
        });
        return Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response());
    }
    let mut items = places.look_up(&api, &drops.recent()).await.ok_or_else(stopping)?;
    items.retain(|packet| query.wants(packet));
    Ok(Json(DropList { items, ..Default::default() }).into_response())
}

fn stopping() -> Refusal {
    refuse(ErrorCode::Unavailable, "the agent is stopping")
}

/// One who follows.
struct Reader {
    api: Arc<Api>,
    query: DropsQuery,
    news: broadcast::Receiver<Arc<Dropped>>,
    places: Places,
    begun: bool,
}

impl Reader {
    /// The next lines; `None`: the agent is stopping.
    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.begun, true) {
            return Some(self.lines(vec![Dropping::Start { at: epoch_now() }]));
        }
        loop {
            let mut what = Vec::new();
            let mut packets = Vec::new();
            match self.news.recv().await {
                Ok(packet) => packets.push(packet),
                Err(RecvError::Lagged(count)) => what.push(Dropping::Missed { count }),
                Err(RecvError::Closed) => return None,
            }
            while packets.len() < BATCH
                && let Ok(packet) = self.news.try_recv()
            {
                packets.push(packet);
            }
            let found = self.places.look_up(&self.api, &packets).await?;
            let wanted = found.into_iter().filter(|packet| self.query.wants(packet));
            what.extend(wanted.map(|packet| Dropping::Packet(Box::new(packet))));
            if !what.is_empty() {
                return Some(self.lines(what));
            }
        }
    }

    fn lines(&self, what: Vec<Dropping>) -> Bytes {
        let mut lines = Vec::new();
        for what in what {
            let node = self.api.node.clone();
            let event = DropEvent { api_version: ApiVersion, kind: DropEventKind::DropEvent, node, what };
            serde_json::to_writer(&mut lines, &event).expect("a dropped packet is plain data");
            lines.push(b'\n');
        }
        lines.into()
    }
}

/// What is known of the places in our rules where packets are logged.
#[derive(Default)]
struct Places {
    known: BTreeMap<String, Point>,
    asked: Option<Instant>,
}

impl Places {
    /// Names rules and pods. `None`: the agent is stopping.
    async fn look_up(&mut self, api: &Api, packets: &[Arc<Dropped>]) -> Option<Vec<DroppedPacket>> {
        let headers = packets.iter().filter_map(|packet| packet.headers);
        let addresses: HashSet<IpAddr> = headers.flat_map(|h| [h.source, h.destination]).collect();
        let stale = self.asked.is_none_or(|asked| asked.elapsed() > BELIEVED);
        let unknown = packets.iter().any(|packet| !self.known.contains_key(&packet.prefix));
        let list = stale || unknown;
        let (points, pods) = loop {
            let addresses = addresses.clone();
            let question = move |engine: &Engine, _: &_| {
                let points = list.then(|| engine.log_points());
                (points.unwrap_or_default(), pods::of_addresses(engine, &addresses))
            };
            match Api::ask_policy(api.policy.as_ref()?, question).await.ok()? {
                Some(answer) => break answer,
                None => tokio::time::sleep(PATIENCE).await,
            }
        };
        if list {
            self.asked = Some(Instant::now());
            if self.known.len() > REMEMBERED {
                self.known.clear();
            }
            self.known.extend(points);
        }
        Some(packets.iter().map(|packet| self.describe(packet, &pods)).collect())
    }

    fn describe(&self, packet: &Dropped, pods: &HashMap<IpAddr, String>) -> DroppedPacket {
        let point = self.known.get(&packet.prefix);
        let end = |address: Option<IpAddr>, port: Option<u16>| PacketEnd {
            address: address.map(|address| address.to_string()),
            port,
            pod: address.and_then(|address| pods.get(&address).cloned()),
        };
        let headers = packet.headers;
        let ports = headers.and_then(|headers| headers.ports);
        let source = end(headers.map(|h| h.source), ports.map(|(source, _)| source));
        let destination = end(headers.map(|h| h.destination), ports.map(|(_, destination)| destination));
        let direction = point.and_then(|point| point.direction);
        // The chain of a policy serves many pods: which one, the packet says.
        let pod = point.and_then(|point| point.pod.clone()).or_else(|| match direction? {
            manx_policy::model::Direction::Ingress => destination.pod.clone(),
            manx_policy::model::Direction::Egress => source.pod.clone(),
        });
        DroppedPacket {
            at: epoch(packet.at),
            result: if point.is_none_or(Point::drops) { "Drop" } else { "Log" }.to_owned(),
            direction: direction.map(|direction| direction.as_str().to_owned()),
            pod,
            source,
            destination,
            protocol: headers.map(|h| protocol(h.protocol)),
            policy: point.and_then(|point| point.policy.clone()),
            isolated_by: point.map(|point| point.isolated_by.clone()).unwrap_or_default(),
            tier: point.and_then(|point| point.tier).map(|tier| format!("{tier:?}")),
            rule: point.and_then(|point| point.rule).map(|rule| rule as u64),
            reason: point
                .map_or("by a rule that is no more, or of another agent", |point| point.reason.as_str())
                .to_owned(),
            in_interface: packet.input.clone(),
            out_interface: packet.output.clone(),
        }
    }
}

/// As documents name it.
pub(super) fn protocol(number: u8) -> String {
    match i32::from(number) {
        libc::IPPROTO_TCP => "TCP".to_owned(),
        libc::IPPROTO_UDP => "UDP".to_owned(),
        libc::IPPROTO_SCTP => "SCTP".to_owned(),
        libc::IPPROTO_ICMP => "ICMP".to_owned(),
        libc::IPPROTO_ICMPV6 => "ICMPv6".to_owned(),
        _ => number.to_string(),
    }
}
