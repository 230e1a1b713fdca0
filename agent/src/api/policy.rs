//! Policies: the list, what happens to a flow, what a proposal would change, the rules of a pod.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use manx_policy::diff::{Comparison, Cut};
use manx_policy::engine::{Engine, PolicyStatus};
use manx_policy::live::LiveFlow;
use manx_policy::model::{Direction, Family, Payload, Problem};
use manx_policy::names::policy_chain;
use manx_policy::render::save::{Counters, counters};
use manx_policy::trace::{Explanation, Question};
use serde::Deserialize;

use super::drops::protocol;
use super::facts::epoch;
use super::pods;
use super::server::{Answer, Api, Asked, Refusal, gone, refuse};
use crate::desired::policy::update;
use crate::flows;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::iptables::{self, Backend};
use crate::kernel::netlink::NetlinkError;
use crate::policy_worker;
use crate::source::manifest;
use crate::view::{self, ErrorCode};

/// Live flows that are listed; more are counted.
const LISTED: usize = 10_000;

/// What `iptables-save -c` counts, by family; a family that could not be read is not there.
type Counted = BTreeMap<Family, Counters>;

fn busy() -> Refusal {
    refuse(ErrorCode::Unavailable, "policy is being written: ask again")
}

async fn ask<R: Send + 'static>(
    api: &Api,
    question: impl FnOnce(&Engine, &policy_worker::Kernel) -> R + Send + 'static,
) -> Result<R, Refusal> {
    Api::ask_policy(api.policy()?, question).await.map_err(gone)?.ok_or_else(busy)
}

/// The counters of our rules as they stand. Reads whole tables: for a person who asks, never on the way of a change.
async fn counted(backend: Option<String>) -> Counted {
    let known = [Backend::Nft, Backend::Legacy].into_iter();
    let Some(backend) = known.clone().find(|known| Some(known.to_string()) == backend) else {
        return Counted::new();
    };
    let read = tokio::task::spawn_blocking(move || {
        let read =
            |family: Family| Some((family, counters(&iptables::save_counters(backend, family.into()).ok()?)));
        Family::ALL.into_iter().filter_map(read).collect()
    });
    read.await.unwrap_or_default()
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Answer<view::PolicyList> {
    let (policies, backend) = ask(&api, |engine, kernel| (engine.policies(), kernel.backend.clone())).await?;
    let counted = counted(backend).await;
    let items = policies.iter().map(|policy| row(policy, &counted)).collect();
    Ok(Json(view::PolicyList { items, ..Default::default() }))
}

fn row(policy: &PolicyStatus, counted: &Counted) -> view::PolicyRow {
    let chains = Direction::ALL.map(|direction| policy_chain(&policy.id, direction));
    let mut totals: Option<(u64, u64)> = None;
    for (matched, unmatched) in
        counted.values().flat_map(|c| chains.iter().filter_map(|name| c.of_policy(name)))
    {
        let (a, b) = totals.unwrap_or_default();
        totals = Some((a + matched, b + unmatched));
    }
    let [ingress_rules, egress_rules] = policy.rules.map(|rules| rules.map(|rules| rules as u64));
    view::PolicyRow {
        kind: policy.id.kind.as_str().to_owned(),
        namespace: policy.id.namespace.as_ref().map(ToString::to_string),
        name: policy.id.name.to_string(),
        tier: format!("{:?}", policy.tier),
        order: policy.order,
        generation: policy.generation,
        staged: policy.staged,
        pods: policy.endpoints as u64,
        ingress_rules,
        egress_rules,
        in_force_since: policy.in_force_since.map(epoch),
        reason: policy.reason.clone(),
        matched: totals.map(|(matched, _)| matched),
        unmatched: totals.map(|(_, unmatched)| unmatched),
        errors: policy.problems.iter().map(problem).collect(),
    }
}

fn problem(problem: &Problem) -> view::StatusProblem {
    view::StatusProblem {
        object: Some(problem.object.clone()),
        reason: format!("{}: {}", problem.field, problem.reason),
        ..Default::default()
    }
}

#[derive(Deserialize)]
pub(super) struct TraceQuery {
    source: String,
    destination: String,
}

pub(super) async fn trace(
    State(api): State<Arc<Api>>,
    Asked(query): Asked<TraceQuery>,
) -> Answer<view::Verdict> {
    let question = Question::parse(&query.source, &query.destination)
        .map_err(|reason| refuse(ErrorCode::BadRequest, reason))?;
    let (explained, backend) =
        ask(&api, move |engine, kernel| (engine.explain(&question), kernel.backend.clone())).await?;
    let explained = explained.map_err(|reason| refuse(ErrorCode::NotFound, reason))?;
    let counted = counted(backend).await;
    Ok(Json(verdict(&explained, &counted)))
}

fn verdict(explained: &Explanation, counted: &Counted) -> view::Verdict {
    let step = |step: &manx_policy::trace::Step| {
        let key = step.counter.as_ref();
        view::VerdictStep {
            node: step.node.clone(),
            direction: step.direction.as_str().to_owned(),
            tier: step.tier.map(|tier| format!("{tier:?}")),
            policy: step.policy.clone(),
            rule: step.rule.map(|rule| rule as u64),
            result: step.result.to_string(),
            reason: step.reason.clone(),
            counter: key.and_then(|key| counted.get(&key.family)?.packets(key)),
            computed: step.computed,
        }
    };
    view::Verdict {
        source: explained.addresses.0.to_string(),
        destination: explained.addresses.1.to_string(),
        verdict: if explained.allowed { "Allow" } else { "Deny" }.to_owned(),
        steps: explained.steps.iter().map(step).collect(),
        ..Default::default()
    }
}

#[derive(Deserialize)]
pub(super) struct PodQuery {
    pod: String,
}

pub(super) async fn render(
    State(api): State<Arc<Api>>,
    Asked(query): Asked<PodQuery>,
) -> Answer<view::PolicyRendering> {
    let Some((namespace, name)) = query.pod.split_once('/') else {
        return Err(refuse(ErrorCode::BadRequest, "a pod is written NAMESPACE/NAME"));
    };
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    let text = ask(&api, move |engine, _| engine.render(&namespace, &name)).await?;
    let text =
        text.ok_or_else(|| refuse(ErrorCode::NotFound, format!("pod {} is not on this node", query.pod)))?;
    Ok(Json(view::PolicyRendering { pod: query.pod, text, ..Default::default() }))
}

/// The body is a manifest: the objects as they would be.
pub(super) async fn diff(State(api): State<Arc<Api>>, body: String) -> Answer<view::PolicyDiff> {
    let manifest = manifest::parse(&body).map_err(|faults| {
        let faults: Vec<String> = faults.iter().map(|fault| fault.reason.clone()).collect();
        refuse(ErrorCode::BadRequest, faults.join("; "))
    })?;
    let proposed: Vec<_> = manifest.objects.iter().filter_map(|found| update(&found.object)).collect();
    if proposed.is_empty() {
        return Err(refuse(ErrorCode::BadRequest, "there is no policy, pod or namespace in it"));
    }
    let node = api.node.clone();
    let (comparison, own) =
        ask(&api, move |engine, _| (engine.proposal(proposed), own_addresses(engine, &node))).await?;
    let calculate = move || {
        let comparison = comparison.calculate();
        let live = live_cuts(&comparison);
        (comparison.changes(&own), live)
    };
    let (found, live) = tokio::task::spawn_blocking(calculate).await.map_err(gone)?;
    let changes = found.changes.iter().map(|change| view::FlowChange {
        change: if change.cut { "cut" } else { "opened" }.to_owned(),
        direction: change.direction.as_str().to_owned(),
        pod: change.pod.to_string(),
        peer: change.peer.clone(),
        port: change.port.clone(),
        by: change.by.clone(),
        source: change.example.source.to_string(),
        destination: change.example.destination.to_string(),
    });
    let note = |note: &manifest::Note| view::StatusProblem {
        line: note.line,
        object: note.object.clone(),
        reason: note.reason.clone(),
        ..Default::default()
    };
    let mut errors: Vec<_> = manifest.notes.iter().map(note).collect();
    let read = live.is_ok();
    let mut live = live.unwrap_or_else(|error| {
        let reason = format!("live flows are not looked at: {error}");
        errors.push(view::StatusProblem { reason, ..Default::default() });
        LiveCuts::default()
    });
    let addresses = live.cuts.iter().flat_map(|(flow, _)| [flow.source, flow.destination]).collect();
    let pods = ask(&api, move |engine, _| pods::of_addresses(engine, &addresses)).await?;
    live.cuts.sort();
    Ok(Json(view::PolicyDiff {
        changes: changes.collect(),
        flows_tried: found.flows as u64,
        truncated: found.truncated,
        connections: live.cuts.iter().map(|(flow, cut)| live_cut(flow, cut, &pods)).collect(),
        connections_tried: read.then_some(live.tried),
        connections_omitted: live.omitted,
        errors,
        ..Default::default()
    }))
}

/// Live flows that a proposal would end.
#[derive(Default)]
struct LiveCuts {
    cuts: Vec<(LiveFlow, Cut)>,
    tried: u64,
    omitted: u64,
}

/// Asks of every entry of conntrack. Reads all of it: for a person who asks.
fn live_cuts(comparison: &Comparison) -> Result<LiveCuts, NetlinkError> {
    let found = RefCell::new(LiveCuts::default());
    let cutter = RefCell::new(comparison.cutter(&flows::own_addresses()));
    let mut conntrack = Conntrack::open()?;
    for family in crate::kernel::Family::BOTH {
        // No entry is kept as it came: what is wanted of it is taken here.
        conntrack.dump(family, |flow| {
            let mut found = found.borrow_mut();
            found.tried += 1;
            match cutter.borrow_mut().cut(flow) {
                Some(_) if found.cuts.len() == LISTED => found.omitted += 1,
                Some(cut) => found.cuts.push((*flow, cut)),
                None => {}
            }
            false
        })?;
    }
    Ok(found.into_inner())
}

fn live_cut(flow: &LiveFlow, cut: &Cut, pods: &HashMap<IpAddr, String>) -> view::LiveCut {
    let end = |address: IpAddr, port: Option<u16>| view::PacketEnd {
        address: Some(address.to_string()),
        port,
        pod: pods.get(&address).cloned(),
    };
    let (source, destination) = match flow.payload {
        Payload::Ports { source, port, .. } => (Some(source), Some(port)),
        Payload::Icmp { .. } | Payload::Other(_) => (None, None),
    };
    view::LiveCut {
        pod: cut.pod.to_string(),
        direction: cut.direction.as_str().to_owned(),
        source: end(flow.source, source),
        destination: end(flow.destination, destination),
        protocol: protocol(flow.payload.protocol()),
        by: cut.by.clone(),
    }
}

fn own_addresses(engine: &Engine, node: &str) -> Vec<IpAddr> {
    let node = engine.state().entity(&manx_policy::model::Entity::node(node));
    node.map(|node| node.addresses.to_vec()).unwrap_or_default()
}
