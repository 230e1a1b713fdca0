//! HTTP over the unix sockets: paths, queries and status codes. Asks each room for its own view and joins them.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use ipnetwork::IpNetwork;
use manx_bgp::net::BgpHandle;
use manx_cni::store::Store;
use manx_policy::engine::Engine;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::bgp::Context;
use super::clock::Clock;
use super::events::Events;
use super::facts::{Facts, SharedFacts, epoch, epoch_now};
use super::why::{self, DroppedSegments};
use super::{drift, drops, effective, node, peers, pods, policy, routes, watch};
use crate::drained::OrderFile;
use crate::drops::Drops;
use crate::kernel::Family;
use crate::kernel::fib::{FibHandle, RouteState};
use crate::kernel::link::LinksHandle;
use crate::kernel::sysctl;
use crate::metrics::{ApplyTimes, CniCounters};
use crate::policy_worker::{self, PolicyHandle};
use crate::view::{self, ApiError, EpochSeconds, ErrorCode, FibState, paths};

/// The policy thread answers in microseconds, unless it waits for iptables: then the answer does without it.
const POLICY_PATIENCE: Duration = Duration::from_secs(1);

/// What the API reads.
pub struct Api {
    /// This node.
    pub node: String,
    /// TCP segments that no socket saw.
    pub dropped: DroppedSegments,
    /// For times in documents.
    pub clock: Clock,
    /// When the agent started.
    pub started: EpochSeconds,
    /// What is followed: manifests or a server, and where it is.
    pub source: view::SourceStatus,
    /// Where an order to drain is kept.
    pub drained: OrderFile,
    /// What happens, for whoever watches.
    pub events: Events,
    /// What the run loop knows.
    pub facts: SharedFacts,
    /// The speaker, once it runs; never set where BGP is not enabled.
    pub bgp: OnceLock<BgpHandle>,
    /// BGP is enabled.
    pub bgp_enabled: bool,
    /// The policy thread, where policy is enabled.
    pub policy: Option<PolicyHandle>,
    /// Dropped packets, where they are logged.
    pub drops: Option<Drops>,
    /// The FIB writer, where routes are written.
    pub fib: Option<FibHandle>,
    /// The kernel's links and other owners' routes.
    pub links: LinksHandle,
    /// Attachments, where CNI is enabled.
    pub store: Option<Store>,
    /// What the plugin has asked.
    pub cni: CniCounters,
    /// How long the packet filter took for each change.
    pub applied: ApplyTimes,
}

pub(super) type Answer<T> = Result<Json<T>, Refusal>;

/// An error as it goes out.
pub(super) struct Refusal(ApiError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

pub(super) fn refuse(code: ErrorCode, message: impl Into<String>) -> Refusal {
    Refusal(ApiError::new(code, message))
}

/// A query, whose faults are told as everything else is: as a document.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let query = Query::try_from_uri(&parts.uri);
        query
            .map(|Query(asked)| Asked(asked))
            .map_err(|rejection| refuse(ErrorCode::BadRequest, rejection.body_text()))
    }
}

async fn not_allowed() -> Response {
    let text = "not with this method: what shows is read with GET, what changes is ordered with POST";
    let body = ApiError::new(ErrorCode::BadRequest, text);
    (StatusCode::METHOD_NOT_ALLOWED, Json(body)).into_response()
}

async fn forbidden() -> Refusal {
    refuse(ErrorCode::Forbidden, "this socket only reads: orders go over admin.sock, which is root's")
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Admin,
    /// Paths that show; those that change are refused.
    ReadOnly,
}

/// The paths of one socket.
pub fn router(api: Arc<Api>, access: Access) -> Router {
    let order = |verb: MethodRouter<Arc<Api>>| match access {
        Access::Admin => verb,
        Access::ReadOnly => post(forbidden),
    };
    let peer = |below: &str| format!("{}/{{peer}}{below}", paths::PEERS);
    Router::new()
        .route(paths::STATUS, get(status))
        .route(paths::EFFECTIVE, get(effective::effective))
        .route(paths::PEERS, get(peers::list))
        .route(&peer(""), get(peers::show))
        .route(&peer(paths::PEER_HISTORY), get(peers::history))
        .route(&peer(paths::PEER_WHY), get(why::why))
        .route(&peer(paths::PEER_RESET), order(post(peers::reset)))
        .route(&peer(paths::PEER_DISABLE), order(post(peers::disable)))
        .route(&peer(paths::PEER_ENABLE), order(post(peers::enable)))
        .route(paths::ROUTES, get(routes::routes))
        .route(paths::ROUTE_DRIFT, get(drift::drift))
        .route(paths::ROUTE_GET, get(routes::route_get))
        .route(paths::ROUTE_WHY, get(routes::route_why))
        .route(paths::NODE_DRAIN, get(node::show).merge(order(post(node::drain))))
        .route(paths::NODE_UNDRAIN, order(post(node::undrain)))
        .route(paths::WATCH, get(watch::watch))
        .route(paths::POLICY_FOR, get(policy_for))
        .route(paths::POLICIES, get(policy::list))
        .route(paths::POLICY_TRACE, get(policy::trace))
        .route(paths::POLICY_RENDER, get(policy::render))
        .route(paths::POLICY_DIFF, post(policy::diff))
        .route(paths::DROPS, get(drops::drops))
        .route(paths::IPAM, get(ipam))
        .route(paths::PODS, get(pod_list))
        .method_not_allowed_fallback(not_allowed)
        .fallback(|| async { refuse(ErrorCode::NotFound, "no such path: is manxctl newer than the agent?") })
        .with_state(api)
}

impl Api {
    pub(super) fn bgp(&self) -> Result<&BgpHandle, Refusal> {
        if !self.bgp_enabled {
            return Err(refuse(ErrorCode::Unavailable, "BGP is not enabled on this node (--enable)"));
        }
        self.bgp.get().ok_or_else(|| {
            refuse(ErrorCode::Unavailable, "the speaker waits for its source: see `manxctl status`")
        })
    }

    pub(super) fn policy(&self) -> Result<&PolicyHandle, Refusal> {
        self.policy
            .as_ref()
            .ok_or_else(|| refuse(ErrorCode::Unavailable, "policy is not enabled on this node (--enable)"))
    }

    /// Asks the policy thread; `None`: it is busy.
    pub(crate) async fn ask_policy<R: Send + 'static>(
        policy: &PolicyHandle,
        question: impl FnOnce(&Engine, &policy_worker::Kernel) -> R + Send + 'static,
    ) -> Result<Option<R>, PolicyGone> {
        match tokio::time::timeout(POLICY_PATIENCE, policy.query(question)).await {
            Ok(Some(answer)) => Ok(Some(answer)),
            Ok(None) => Err(PolicyGone),
            Err(_) => Ok(None),
        }
    }

    /// Where a selected prefix stands in the kernel, and why it is not there.
    fn fib_state(&self, prefix: IpNetwork) -> (FibState, Option<String>) {
        let Some(fib) = &self.fib else {
            return (FibState::Missing, Some("this agent writes no routes (--no-fib)".to_owned()));
        };
        match fib.state(prefix) {
            RouteState::Installed | RouteState::Inherited => (FibState::Installed, None),
            RouteState::Pending => (FibState::Missing, Some("on its way into the kernel".to_owned())),
            RouteState::Removing => (FibState::Missing, Some("on its way out of the kernel".to_owned())),
            RouteState::Missing { reason, attempts } => {
                (FibState::Missing, Some(format!("{reason} ({attempts} attempts)")))
            }
            RouteState::Unknown => (FibState::Missing, Some("its next hop does not resolve".to_owned())),
        }
    }

    pub(super) fn with_context<R>(&self, now: Instant, f: impl FnOnce(&Context<'_>) -> R) -> R {
        let fib = |prefix| self.fib_state(prefix);
        f(&Context { node: &self.node, now: self.clock.at(now), fib: &fib })
    }
}

/// The policy thread has ended.
pub(crate) struct PolicyGone;

pub(super) fn gone<E>(_: E) -> Refusal {
    refuse(ErrorCode::Unavailable, "the agent is stopping")
}

async fn status(State(api): State<Arc<Api>>) -> Answer<view::Status> {
    let facts = api.facts.get();
    let bgp = match api.bgp_enabled {
        true => Some(bgp_status(&api, &facts).await?),
        false => None,
    };
    let policy = match &api.policy {
        Some(policy) => {
            let unheard = api.drops.as_ref().and_then(Drops::problem);
            Some(policy_status(policy, &facts.policy, unheard).await?)
        }
        None => None,
    };
    Ok(Json(view::Status {
        node: api.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: Some(api.started),
        source: view::SourceStatus {
            kind: api.source.kind.clone(),
            location: api.source.location.clone(),
            in_sync: facts.in_sync,
            stale: facts.stale,
            errors: facts.source_problems.clone(),
        },
        bgp,
        policy,
        cni: api.store.as_ref().map(|_| view::CniStatus {
            ready: facts.cni_blocked.is_none(),
            reason: facts.cni_blocked.clone(),
            conflist: facts.conflist.clone(),
            pod_cidrs: facts.pod_cidrs.clone(),
            attachments: Some(facts.attachments),
            egress_nat: Some(if facts.egress_nat { "Masquerade" } else { "Off" }.to_owned()),
        }),
        kernel: kernel_status(&api, facts.kernel_problems),
        ..Default::default()
    }))
}

pub(super) async fn bgp_status(api: &Api, facts: &Facts) -> Result<view::BgpStatus, Refusal> {
    let deaf = facts.listeners.iter().filter_map(|(address, failed)| {
        let reason = failed.as_ref().map(|reason| format!("cannot listen on {address}: {reason}"))?;
        Some(view::StatusProblem { reason, ..Default::default() })
    });
    let mut status = view::BgpStatus {
        asn: facts.asn,
        router_id: facts.router_id.clone(),
        listening: facts.listeners.iter().filter(|(_, f)| f.is_none()).map(|(a, _)| a.to_string()).collect(),
        node_addresses: facts.node_addresses.clone(),
        originated: facts.originated.clone(),
        services: facts.services.clone(),
        restarting: facts.restarting,
        errors: facts.bgp_problems.iter().cloned().chain(deaf).collect(),
        ..Default::default()
    };
    if let Some(handle) = api.bgp.get() {
        let (peers, prefixes) =
            handle.with(|speaker, now| (speaker.peers(now), speaker.prefixes())).await.map_err(gone)?;
        let up = |name: &str| peers.iter().any(|p| p.name == name && p.state == "Established");
        status.drain = node::phase(api).await?;
        status.peers = Some(peers.len() as u64);
        status.established = Some(peers.iter().filter(|p| p.state == "Established").count() as u64);
        status.prefixes = Some(prefixes as u64);
        status.required_down = facts
            .peers
            .iter()
            .filter(|(name, info)| info.required && !up(name))
            .map(|(n, _)| n.clone())
            .collect();
    }
    Ok(status)
}

async fn policy_status(
    policy: &PolicyHandle,
    last: &policy_worker::Kernel,
    unheard: Option<String>,
) -> Result<view::PolicyStatus, Refusal> {
    let ask = |e: &Engine, k: &policy_worker::Kernel| (e.status(), e.state().policies().count(), k.clone());
    let Some((engine, policies, kernel)) = Api::ask_policy(policy, ask).await.map_err(gone)? else {
        let busy = "the kernel is being written to, or somebody else holds the lock of iptables".to_owned();
        return Ok(view::PolicyStatus {
            backend: last.backend.clone(),
            last_applied: last.last_applied.map(|(at, _)| epoch(at)),
            pending: true,
            errors: [Some(busy), last.error.clone(), last.log_refused.clone(), unheard]
                .into_iter()
                .flatten()
                .map(|reason| view::StatusProblem { reason, ..Default::default() })
                .collect(),
            ..Default::default()
        });
    };
    let object = |p: &manx_policy::model::Problem| view::StatusProblem {
        object: Some(p.object.clone()),
        reason: if p.field.is_empty() { p.reason.clone() } else { format!("{}: {}", p.field, p.reason) },
        ..Default::default()
    };
    let failed = [kernel.error, kernel.log_refused, unheard].into_iter().flatten();
    let failed = failed.map(|reason| view::StatusProblem { reason, ..Default::default() });
    Ok(view::PolicyStatus {
        backend: kernel.backend,
        policies: Some(policies as u64),
        endpoints: Some(engine.endpoints as u64),
        endpoints_in_force: Some(engine.endpoints_in_force as u64),
        last_applied: kernel.last_applied.map(|(at, _)| epoch(at)),
        pending: kernel.pending,
        errors: failed.chain(engine.problems.iter().map(object)).collect(),
    })
}

fn kernel_status(api: &Api, errors: Vec<view::StatusProblem>) -> view::KernelStatus {
    let Some(fib) = &api.fib else {
        return view::KernelStatus { errors, ..Default::default() };
    };
    let stats = fib.stats();
    let installed: usize = Family::BOTH.into_iter().map(|f| stats.installed(f)).sum();
    let refused = stats.last_refusal.clone().filter(|_| stats.missing > 0);
    let failed = refused.into_iter().chain(stats.last_error.clone());
    let compat_mode = sysctl::read(COMPAT_MODE).ok().and_then(|value| value.parse().ok());
    view::KernelStatus {
        routes_wanted: Some((installed + stats.missing) as u64),
        routes_installed: Some(installed as u64),
        repairs: Some(stats.repairs),
        next_hop_objects: stats.objects.map(|objects| objects as u64),
        next_hop_compat_mode: compat_mode.filter(|_| stats.objects.is_some()),
        notices: next_hop_notice(stats.objects, compat_mode).into_iter().collect(),
        errors: errors
            .into_iter()
            .chain(failed.map(|reason| view::StatusProblem { reason, ..Default::default() }))
            .collect(),
    }
}

/// Whether the kernel tells of each route whose nexthop object changes.
const COMPAT_MODE: &str = "net.ipv4.nexthop_compat_mode";

/// What a next hop that fails costs here, if it is more than it need be.
fn next_hop_notice(objects: Option<usize>, compat_mode: Option<u32>) -> Option<String> {
    match (objects, compat_mode) {
        (None, _) => Some(
            "this kernel has no nexthop objects (Linux 5.3 has): a next hop that changes is changed in each of its routes"
                .to_owned(),
        ),
        (Some(_), Some(1..)) => Some(format!(
            "{COMPAT_MODE} is not 0: a next hop that changes is told for each of its routes, about 0.6 ms a thousand"
        )),
        (Some(_), _) => None,
    }
}

#[derive(Deserialize)]
struct TargetQuery {
    target: String,
}

/// A pod by NAMESPACE/NAME or by address, or all pods of a namespace.
async fn policy_for(
    State(api): State<Arc<Api>>,
    Asked(query): Asked<TargetQuery>,
) -> Result<Response, Refusal> {
    let target = query.target;
    let ask = move |engine: &Engine, _: &policy_worker::Kernel| pods::policy_for(engine, &target);
    let answer = Api::ask_policy(api.policy()?, ask).await.map_err(gone)?;
    match answer.ok_or_else(|| refuse(ErrorCode::Unavailable, "policy is being written: ask again"))? {
        Ok(pods::PolicyFor::Pod(pod)) => Ok(Json(*pod).into_response()),
        Ok(pods::PolicyFor::Namespace(list)) => Ok(Json(list).into_response()),
        Err(message) => Err(refuse(ErrorCode::NotFound, message)),
    }
}

/// The addresses of this node's pods, where they can be read now.
pub(crate) async fn addresses(api: &Api) -> Option<view::Ipam> {
    let (store, cidrs) = (api.store.clone()?, api.facts.with(|f| f.pod_cidrs.clone()));
    let read = tokio::task::spawn_blocking(move || pods::ipam(&store, &cidrs, epoch_now()));
    read.await.ok()?.ok()
}

async fn ipam(State(api): State<Arc<Api>>) -> Answer<view::Ipam> {
    let store = api.store.clone().ok_or_else(cni_off)?;
    let cidrs = api.facts.get().pod_cidrs;
    let now = epoch_now();
    let ipam = tokio::task::spawn_blocking(move || pods::ipam(&store, &cidrs, now))
        .await
        .map_err(gone)?
        .map_err(|e| refuse(ErrorCode::Unavailable, e.to_string()))?;
    Ok(Json(ipam))
}

async fn pod_list(State(api): State<Arc<Api>>) -> Answer<view::PodList> {
    let store = api.store.clone().ok_or_else(cni_off)?;
    let attachments = tokio::task::spawn_blocking(move || store.attachments())
        .await
        .map_err(gone)?
        .map_err(|e| refuse(ErrorCode::Unavailable, e.to_string()))?;
    let node = api.node.clone();
    let attachments = Arc::new(attachments);
    let list = match &api.policy {
        Some(policy) => {
            let (attachments, node) = (attachments.clone(), node.clone());
            let ask = move |engine: &Engine, _: &policy_worker::Kernel| {
                pods::list(&attachments, &node, Some(engine))
            };
            Api::ask_policy(policy, ask).await.map_err(gone)?
        }
        None => None,
    };
    Ok(Json(list.unwrap_or_else(|| pods::list(&attachments, &node, None))))
}

fn cni_off() -> Refusal {
    refuse(ErrorCode::Unavailable, "CNI is not enabled on this node (--enable)")
}
