//! The kinds of Kubernetes that we read. Of most we need little and decode just that; pods, namespaces and policies go
//! through the policy crate's own door.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1 as core;
use manx_bgp::types::Prefix;
use serde::Deserialize;

use super::{Metadata, ReadResult, fault, faults, issue};
use crate::config::NodeAnnotations;
use crate::source::decode::{DecodeError, decode};
use crate::source::object::{Endpoint, EndpointSlice, Node, Object, Secret, Service, ServiceKind};
use crate::source::tree::Tree;

pub(super) fn pod(tree: &Tree) -> ReadResult {
    let (raw, _) = decode::<core::Pod>(tree).map_err(|e| fault(&e))?;
    let pod = manx_policy::k8s::pod(&raw).map_err(|p| faults(tree, &[issue(p.field, p.reason)]))?;
    Ok((Object::Pod(pod), Vec::new()))
}

pub(super) fn namespace(tree: &Tree) -> ReadResult {
    let (raw, _) = decode::<core::Namespace>(tree).map_err(|e| fault(&e))?;
    let namespace =
        manx_policy::k8s::namespace(&raw).map_err(|p| faults(tree, &[issue(p.field, p.reason)]))?;
    Ok((Object::Namespace(namespace), Vec::new()))
}

#[derive(Deserialize)]
struct RawNode {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Option<RawNodeSpec>,
    #[serde(default)]
    status: Option<RawNodeStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    unschedulable: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNodeStatus {
    addresses: Option<Vec<RawNodeAddress>>,
}

#[derive(Deserialize)]
struct RawNodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

pub(super) fn node(tree: &Tree) -> ReadResult {
    let (raw, _) = decode::<RawNode>(tree).map_err(|e| fault(&e))?;
    let name = raw.metadata.name(tree)?;
    let spec = raw.spec.unwrap_or_default();
    let mut issues = Vec::new();

    let cidrs =
        spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().filter(|c| !c.is_empty()).collect());
    let mut pod_cidrs = Vec::new();
    for (i, text) in cidrs.iter().enumerate() {
        match text.parse::<IpNetwork>() {
            Ok(net) if text.contains('/') => pod_cidrs.push(Prefix::from(net).into()),
            _ => issues.push(issue(
                format!("spec.podCIDRs[{i}]"),
                format!("{text}: must be a prefix such as 10.244.1.0/24"),
            )),
        }
    }

    let (mut internal_ips, mut external_ips) = (Vec::new(), Vec::new());
    let addresses = raw.status.unwrap_or_default().addresses.unwrap_or_default();
    for (i, entry) in addresses.iter().enumerate() {
        let list = match entry.kind.as_str() {
            "InternalIP" => &mut internal_ips,
            "ExternalIP" => &mut external_ips,
            // Names: Hostname, InternalDNS, ExternalDNS.
            _ => continue,
        };
        match entry.address.parse::<IpAddr>() {
            Ok(ip) => list.push(ip),
            Err(_) => issues.push(issue(
                format!("status.addresses[{i}].address"),
                format!("{}: must be an IP address", entry.address),
            )),
        }
    }

    let raw_annotations = raw.metadata.annotations.unwrap_or_default();
    let notes = NodeAnnotations::unknown(&raw_annotations)
        .map(|key| issue(format!("metadata.annotations[{key}]"), "this version knows no such annotation"))
        .collect();
    let annotations = NodeAnnotations::parse(&raw_annotations).unwrap_or_else(|found| {
        issues.extend(found);
        NodeAnnotations::default()
    });
    if !issues.is_empty() {
        return Err(faults(tree, &issues));
    }
    let kube_router = crate::foreign::kube_router_node(&name, &raw_annotations).map(Box::new);
    let node = Node {
        name,
        kube_router,
        labels: raw.metadata.labels.unwrap_or_default(),
        annotations,
        pod_cidrs,
        internal_ips,
        external_ips,
        unschedulable: spec.unschedulable.unwrap_or(false),
    };
    Ok((Object::Node(node), notes))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSecret {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    data: Option<BTreeMap<String, ByteString>>,
    #[serde(default)]
    string_data: Option<BTreeMap<String, String>>,
}

pub(super) fn secret(tree: &Tree) -> ReadResult {
    // The decoder's words may quote the value; a secret's value must not reach a log or the status.
    let (raw, _) = decode::<RawSecret>(tree).map_err(|e| {
        fault(&DecodeError {
            reason: "must be text, under data in base64 (its value is not shown)".to_owned(),
            ..e
        })
    })?;
    let mut data: BTreeMap<_, _> = raw.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect();
    data.extend(raw.string_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes())));
    let secret = Secret { namespace: raw.metadata.namespace(), name: raw.metadata.name(tree)?, data };
    Ok((Object::Secret(secret), Vec::new()))
}

#[derive(Deserialize)]
struct RawService {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Option<RawServiceSpec>,
    #[serde(default)]
    status: Option<RawServiceStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    #[serde(rename = "externalTrafficPolicy")]
    external_traffic_policy: Option<String>,
    #[serde(rename = "internalTrafficPolicy")]
    internal_traffic_policy: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawServiceStatus {
    load_balancer: Option<RawLoadBalancer>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawLoadBalancer {
    ingress: Option<Vec<RawIngress>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawIngress {
    ip: Option<String>,
}

pub(super) fn service(tree: &Tree) -> ReadResult {
    let (raw, _) = decode::<RawService>(tree).map_err(|e| fault(&e))?;
    let spec = raw.spec.unwrap_or_default();
    let mut issues = Vec::new();
    let mut addresses = |path: &str, list: Vec<String>| -> BTreeSet<IpAddr> {
        let mut all = BTreeSet::new();
        // Headless Services say None.
        for (i, text) in list.iter().enumerate().filter(|(_, t)| !t.is_empty() && *t != "None") {
            match text.parse::<IpAddr>() {
                Ok(ip) => _ = all.insert(ip),
                Err(_) => {
                    issues.push(issue(format!("{path}[{i}]"), format!("{text}: must be an IP address")));
                }
            }
        }
        all
    };
    let cluster_ips = addresses(
        "spec.clusterIPs",
        spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.into_iter().collect()),
    );
    let external_ips = addresses("spec.externalIPs", spec.external_ips.unwrap_or_default());
    let ingress =
        raw.status.unwrap_or_default().load_balancer.unwrap_or_default().ingress.unwrap_or_default();
    let load_balancer_ips = addresses(
        "status.loadBalancer.ingress",
        ingress.into_iter().map(|i| i.ip.unwrap_or_default()).collect(),
    );
    let kind = match spec.kind.as_deref() {
        None | Some("ClusterIP") => ServiceKind::ClusterIp,
        Some("NodePort") => ServiceKind::NodePort,
        Some("LoadBalancer") => ServiceKind::LoadBalancer,
        Some("ExternalName") => ServiceKind::ExternalName,
        Some(other) => {
            issues.push(issue(
                "spec.type",
                format!("{other}: must be ClusterIP, NodePort, LoadBalancer or ExternalName"),
            ));
            ServiceKind::ClusterIp
        }
    };
    if !issues.is_empty() {
        return Err(faults(tree, &issues));
    }
    let service = Service {
        namespace: raw.metadata.namespace(),
        name: raw.metadata.name(tree)?,
        labels: raw.metadata.labels.unwrap_or_default(),
        kind,
        cluster_ips,
        external_ips,
        load_balancer_ips,
        external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
    };
    Ok((Object::Service(service), Vec::new()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpointSlice {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    address_type: Option<String>,
    #[serde(default)]
    endpoints: Option<Vec<RawEndpoint>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoint {
    #[serde(default)]
    addresses: Option<Vec<String>>,
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default)]
    conditions: Option<RawConditions>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

pub(super) fn endpoint_slice(tree: &Tree) -> ReadResult {
    let (raw, _) = decode::<RawEndpointSlice>(tree).map_err(|e| fault(&e))?;
    let names = raw.address_type.as_deref() == Some("FQDN");
    let mut issues = Vec::new();
    let mut endpoints = Vec::new();
    for (i, endpoint) in raw.endpoints.unwrap_or_default().into_iter().enumerate() {
        let mut addresses = Vec::new();
        for (j, text) in endpoint.addresses.unwrap_or_default().iter().enumerate().filter(|_| !names) {
            match text.parse() {
                Ok(ip) => addresses.push(ip),
                Err(_) => issues.push(issue(
                    format!("endpoints[{i}].addresses[{j}]"),
                    format!("{text}: must be an IP address"),
                )),
            }
        }
        let conditions = endpoint.conditions.unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        endpoints.push(Endpoint {
            addresses,
            node: endpoint.node_name,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
        });
    }
    if !issues.is_empty() {
        return Err(faults(tree, &issues));
    }
    let labels = raw.metadata.labels.as_ref();
    let slice = EndpointSlice {
        namespace: raw.metadata.namespace(),
        name: raw.metadata.name(tree)?,
        service: labels.and_then(|l| l.get("kubernetes.io/service-name")).cloned(),
        endpoints,
    };
    Ok((Object::EndpointSlice(slice), Vec::new()))
}
