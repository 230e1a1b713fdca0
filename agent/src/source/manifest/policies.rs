//! Policies of every kind, and Calico's sets of networks: decoded here, understood by the policy crate's own door.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1 as networking;
use manx_policy::k8s;
use manx_policy::model::{Labels, PodId, Policy, Problem};
use serde::de::DeserializeOwned;

use super::{Metadata, ReadResult, fault, faults, issue};
use crate::config::Issue;
use crate::source::decode::decode;
use crate::source::object::Object;
use crate::source::tree::Tree;

pub(super) fn network_policy(tree: &Tree) -> ReadResult {
    policy(tree, k8s::network_policy as fn(&networking::NetworkPolicy) -> _)
}

pub(super) fn cluster_network_policy(tree: &Tree) -> ReadResult {
    policy(tree, k8s::cluster_network_policy as fn(&k8s::ClusterNetworkPolicy) -> _)
}

pub(super) fn calico_network_policy(tree: &Tree) -> ReadResult {
    policy(tree, |raw: &k8s::CalicoPolicy| k8s::calico_policy(raw, true))
}

pub(super) fn calico_global_network_policy(tree: &Tree) -> ReadResult {
    policy(tree, |raw: &k8s::CalicoPolicy| k8s::calico_policy(raw, false))
}

pub(super) fn network_set(tree: &Tree, namespaced: bool) -> ReadResult {
    let (raw, _) = decode::<k8s::NetworkSet>(tree).map_err(|e| fault(&e))?;
    let (set, problems) = k8s::network_set(&raw, namespaced).map_err(|p| refused(tree, p))?;
    Ok((Object::NetworkSet(set), problems.iter().map(note).collect()))
}

/// Only the labels: Calico's rules can ask for them.
pub(super) fn service_account(tree: &Tree) -> ReadResult {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Raw {
        metadata: Metadata,
    }
    let (raw, _) = decode::<Raw>(tree).map_err(|e| fault(&e))?;
    let id = PodId::new(&raw.metadata.namespace(), &raw.metadata.name(tree)?);
    let labels: BTreeMap<String, String> = raw.metadata.labels.unwrap_or_default();
    Ok((Object::ServiceAccount(id, labels.iter().collect::<Labels>()), Vec::new()))
}

fn policy<R: DeserializeOwned>(
    tree: &Tree,
    understand: impl FnOnce(&R) -> Result<Policy, Problem>,
) -> ReadResult {
    let (raw, ignored) = decode::<R>(tree).map_err(|e| fault(&e))?;
    let mut policy = understand(&raw).map_err(|p| refused(tree, p))?;
    k8s::refuse_unknown(&mut policy, ignored.iter().map(|field| field.path.as_str()));
    let notes = policy.problems.iter().map(note).collect();
    Ok((Object::Policy(policy), notes))
}

fn refused(tree: &Tree, problem: Problem) -> Vec<super::Note> {
    faults(tree, &[issue(problem.field, problem.reason)])
}

fn note(problem: &Problem) -> Issue {
    issue(problem.field.clone(), problem.reason.clone())
}
