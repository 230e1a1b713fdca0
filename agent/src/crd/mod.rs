//! The CustomResourceDefinitions of our kinds, made from the raw types that `config` decodes.
//!
//! ```text
//! config::*Spec (names, types, descriptions) --schemars--> structural --+
//! status (what agents write) ------------------------------------------+--> CustomResourceDefinition
//! bounds (defaults, limits, CEL), one row a field ---------------------+
//! ```
//!
//! What the API server refuses is what `manxctl config validate` refuses, as far as CEL can say it: the tests feed one table of
//! objects to both. Only what needs a parser of our own (AS_PATH expressions, names of communities) is left to the agent.

mod bounds;
pub mod status;
mod structural;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use crate::config::{
    BgpConfigurationSpec, BgpFilterSpec, BgpPeerSpec, GROUP, NetworkConfigurationSpec, SINGLETON, VERSION,
};

/// A kind of ours as the API knows it.
struct Definition {
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static str,
    description: &'static str,
    /// There is one object, named `default`.
    singleton: bool,
    spec: Option<Value>,
    status: Value,
    bounds: Vec<bounds::Bound>,
    columns: &'static [Column],
}

/// A column of `kubectl get`: title, type, path, and whether only `-o wide` shows it.
type Column = (&'static str, &'static str, &'static str, bool);

const AGE: Column = ("Age", "date", ".metadata.creationTimestamp", false);

/// All definitions, in the order of their names.
pub fn definitions() -> Vec<Value> {
    kinds().iter().map(definition).collect()
}

fn kinds() -> [Definition; 5] {
    [
        Definition {
            kind: "BGPConfiguration",
            plural: "bgpconfigurations",
            singular: "bgpconfiguration",
            short: "mbgpconfig",
            description: "What holds for the BGP speakers of all nodes. There is one, named default.",
            singleton: true,
            spec: Some(structural::of::<BgpConfigurationSpec>()),
            status: structural::of::<status::ObjectStatus>(),
            bounds: bounds::bgp_configuration(),
            columns: &[
                ("AS", "integer", ".spec.asNumber", false),
                ("Mesh", "string", ".spec.nodeToNodeMesh", false),
                ("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status", false),
                AGE,
            ],
        },
        Definition {
            kind: "BGPFilter",
            plural: "bgpfilters",
            singular: "bgpfilter",
            short: "mbgpfilter",
            description: "Ordered rules for routes, named by the import and export filters of BGPPeers.",
            singleton: false,
            spec: Some(structural::of::<BgpFilterSpec>()),
            status: structural::of::<status::ObjectStatus>(),
            bounds: bounds::bgp_filter(),
            columns: &[
                ("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status", false),
                AGE,
            ],
        },
        Definition {
            kind: "BGPNodeState",
            plural: "bgpnodestates",
            singular: "bgpnodestate",
            short: "mbgpnode",
            description: "What a node's agent says of its speaker; written by that agent alone, named like the node.",
            singleton: false,
            spec: None,
            status: structural::of::<status::NodeStateStatus>(),
            bounds: bounds::bgp_node_state(),
            columns: &[
                ("AS", "integer", ".status.asNumber", false),
                ("Router-ID", "string", ".status.routerID", false),
                ("Peers", "integer", ".status.peerCount", false),
                ("Established", "integer", ".status.establishedCount", false),
                ("Drain", "string", ".status.drain", true),
                ("Version", "string", ".status.version", true),
                AGE,
            ],
        },
        Definition {
            kind: "BGPPeer",
            plural: "bgppeers",
            singular: "bgppeer",
            short: "mbgppeer",
            description: "A BGP neighbour of the nodes that its selector picks.",
            singleton: false,
            spec: Some(structural::of::<BgpPeerSpec>()),
            status: structural::of::<status::PeerStatus>(),
            bounds: bounds::bgp_peer(),
            columns: &[
                ("Peer", "string", ".spec.peerIP", false),
                ("AS", "integer", ".spec.asNumber", false),
                ("Nodes", "integer", ".status.nodes", false),
                ("Established", "integer", ".status.established", false),
                ("Interface", "string", ".spec.interface", true),
                ("Range", "string", ".spec.peerRange", true),
                ("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status", true),
                AGE,
            ],
        },
        Definition {
            kind: "NetworkConfiguration",
            plural: "networkconfigurations",
            singular: "networkconfiguration",
            short: "mnetconfig",
            description: "Address ranges, egress NAT and MTU of the whole cluster. There is one, named default.",
            singleton: true,
            spec: Some(structural::of::<NetworkConfigurationSpec>()),
            status: structural::of::<status::ObjectStatus>(),
            bounds: bounds::network_configuration(),
            columns: &[
                ("CIDRs", "string", ".spec.clusterCIDRs", false),
                ("NAT", "string", ".spec.egressNat.mode", false),
                ("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status", false),
                AGE,
            ],
        },
    ]
}

fn definition(kind: &Definition) -> Value {
    let plural = kind.plural;
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{GROUP}"),
            "labels": {"app.kubernetes.io/name": "manx", "app.kubernetes.io/part-of": "manx"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": kind.kind,
                "listKind": format!("{}List", kind.kind),
                "plural": plural,
                "singular": kind.singular,
                "shortNames": [kind.short],
                "categories": ["manx"],
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": kind.columns.iter().map(column).collect::<Vec<_>>(),
                "schema": {"openAPIV3Schema": schema(kind)},
            }],
        },
    })
}

fn column((name, kind, path, wide): &Column) -> Value {
    let mut column = json!({"name": name, "type": kind, "jsonPath": path});
    if *wide {
        column["priority"] = json!(1);
    }
    column
}

fn schema(kind: &Definition) -> Value {
    let mut schema = json!({
        "type": "object",
        "description": kind.description,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "status": kind.status,
        },
    });
    if let Some(spec) = &kind.spec {
        schema["properties"]["spec"] = spec.clone();
    }
    if kind.singleton {
        let message = format!("there is one object of this kind, and its name is {SINGLETON}");
        schema["x-kubernetes-validations"] =
            json!([{"rule": format!("self.metadata.name == '{SINGLETON}'"), "message": message}]);
    }
    for (path, bound) in &kind.bounds {
        structural::bind(&mut schema, path, bound);
    }
    schema
}
