//! Pods, their addresses and their policy turned into the shapes of the admin API.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use manx_cni::store::{Attachment, Store, StoreError};
use manx_policy::engine::{DirectionView, Engine, InForce, PodPolicyView};
use manx_policy::model::{EndpointId, PodId};

use super::facts::epoch;
use crate::view::{self, EpochSeconds};

/// The answer to "what polices ...".
pub(super) enum PolicyFor {
    /// One pod.
    Pod(Box<view::PodPolicy>),
    /// All pods of a namespace.
    Namespace(view::PodPolicyList),
}

/// Looks for a pod by NAMESPACE/NAME or address, or for a namespace. An error is a sentence for the person who asked.
pub(super) fn policy_for(engine: &Engine, target: &str) -> Result<PolicyFor, String> {
    let one =
        |namespace: &str, name: &str| engine.policy_for(namespace, name).map(|v| Box::new(pod_policy(&v)));
    if let Some((namespace, name)) = target.split_once('/') {
        let found = one(namespace, name).ok_or_else(|| format!("there is no pod {target}"))?;
        return Ok(PolicyFor::Pod(found));
    }
    if let Ok(ip) = target.parse::<IpAddr>() {
        let holder = pod_of(engine, ip).ok_or_else(|| format!("{ip} is no pod's address"))?;
        let found =
            one(&holder.namespace, &holder.name).ok_or_else(|| format!("there is no pod {holder}"))?;
        return Ok(PolicyFor::Pod(found));
    }
    let mut here: Vec<&PodId> =
        engine.state().pods().map(|pod| &pod.id).filter(|id| &*id.namespace == target).collect();
    here.sort();
    let items: Vec<_> =
        here.into_iter().filter_map(|id| one(&id.namespace, &id.name)).map(|pod| *pod).collect();
    if items.is_empty() {
        return Err(format!(
            "there is no pod in namespace {target} (a pod is written NAMESPACE/NAME, or as an address)"
        ));
    }
    Ok(PolicyFor::Namespace(view::PodPolicyList { items, ..Default::default() }))
}

/// Whose address it is: what an attachment of this node holds counts before what a Pod's status says.
fn pod_of(engine: &Engine, ip: IpAddr) -> Option<PodId> {
    let state = engine.state();
    let attached = state.endpoints().find(|e| e.addresses.contains(&ip)).map(manx_policy::state::claimed_pod);
    let running = || state.pods().find(|p| !p.finished && !p.host_network && p.addresses.contains(&ip));
    attached.or_else(|| running().map(|p| p.id.clone()))
}

/// The same for many addresses at once; those of no pod are left out.
pub(super) fn of_addresses(engine: &Engine, wanted: &HashSet<IpAddr>) -> HashMap<IpAddr, String> {
    let state = engine.state();
    let running = state.pods().filter(|p| !p.finished && !p.host_network);
    let running = running.flat_map(|p| p.addresses.iter().map(move |ip| (*ip, &p.id)));
    let mut found: HashMap<IpAddr, String> =
        running.filter(|(ip, _)| wanted.contains(ip)).map(|(ip, id)| (ip, id.to_string())).collect();
    for endpoint in state.endpoints() {
        let pod = manx_policy::state::claimed_pod(endpoint).to_string();
        found.extend(endpoint.addresses.iter().filter(|ip| wanted.contains(ip)).map(|ip| (*ip, pod.clone())));
    }
    found
}

fn pod_policy(pod: &PodPolicyView) -> view::PodPolicy {
    let direction = |d: &DirectionView| view::Direction {
        isolated: d.isolated,
        policies: d.policies.iter().map(|p| p.name.clone()).collect(),
    };
    // In force once every interface of the pod is: the last one counts.
    let since: Option<Vec<_>> = pod.endpoints.iter().map(|e| e.in_force_since).collect();
    view::PodPolicy {
        pod: pod.pod.clone(),
        ingress: direction(&pod.ingress),
        egress: direction(&pod.egress),
        in_force_since: since.and_then(|s| s.into_iter().max()).map(epoch),
        ..Default::default()
    }
}

/// `manxctl pods`.
pub(super) fn list(attachments: &[Attachment], node: &str, engine: Option<&Engine>) -> view::PodList {
    let mut items: Vec<_> = attachments
        .iter()
        .map(|a| {
            let id = EndpointId { container_id: a.container_id.clone(), ifname: a.ifname.clone() };
            let since = match engine.and_then(|e| e.in_force(&id)) {
                Some(InForce::Since(at)) => Some(epoch(at)),
                Some(InForce::Not(_)) | None => None,
            };
            view::PodRow {
                namespace: a.namespace.clone(),
                name: a.pod.clone(),
                uid: a.uid.clone(),
                node: node.to_owned(),
                ips: a.ips.iter().map(ToString::to_string).collect(),
                interface: a.interface.clone(),
                container_id: a.container_id.clone(),
                policy_in_force_since: since,
            }
        })
        .collect();
    items.sort_by(|a, b| (&a.namespace, &a.name, &a.interface).cmp(&(&b.namespace, &b.name, &b.interface)));
    view::PodList { items, ..Default::default() }
}

/// `manxctl ipam`.
pub(super) fn ipam(store: &Store, cidrs: &[String], now: EpochSeconds) -> Result<view::Ipam, StoreError> {
    let cidrs: Vec<IpNetwork> = cidrs.iter().filter_map(|c| c.parse().ok()).collect();
    let pools = store
        .pools(&cidrs, now)?
        .into_iter()
        .map(|p| view::Pool {
            cidr: p.cidr.to_string(),
            total: p.total,
            used: p.used,
            cooling: p.cooling,
            free: p.free,
        })
        .collect();
    let mut held: Vec<(IpAddr, Attachment)> = Vec::new();
    for attachment in store.attachments()? {
        held.extend(attachment.ips.iter().map(|ip| (*ip, attachment.clone())));
    }
    held.sort_by_key(|(ip, _)| *ip);
    let allocations = held
        .into_iter()
        .map(|(ip, a)| view::Allocation {
            ip: ip.to_string(),
            namespace: a.namespace,
            pod: a.pod,
            container_id: a.container_id,
            ifname: a.ifname,
            since: Some(a.created),
        })
        .collect();
    let mut cooling: Vec<_> = store.resting(now)?;
    cooling.sort_by_key(|(ip, until)| (*until, *ip));
    let cooling =
        cooling.into_iter().map(|(ip, until)| view::Cooling { ip: ip.to_string(), until }).collect();
    let unfinished = store.unfinished()?.into_iter();
    let leaked = unfinished.flat_map(|(key, owned)| {
        owned.ips.into_iter().map(move |ip| view::Leaked {
            ip: ip.to_string(),
            container_id: key.container_id.clone(),
            ifname: key.ifname.clone(),
        })
    });
    Ok(view::Ipam { pools, allocations, cooling, leaked: leaked.collect(), ..Default::default() })
}
