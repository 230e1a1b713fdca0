//! What the agent reads from the API and what it writes there: one table, from which requests are made and against which
//! the RBAC manifests are checked.
//!
//! Least privilege follows from it: Secrets only in the agent's own namespace and by name, Leases only there, status
//! subresources instead of objects.

use crate::config;
use crate::source::Kind;

/// A resource that the agent lists and watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// What its objects are.
    pub what: What,
    /// Group and version under which it may be found; the first that the server has is read.
    pub apis: &'static [(&'static str, &'static str)],
    /// Plural name, as it stands in a path.
    pub plural: &'static str,
    /// Whose objects are read.
    pub scope: Scope,
    /// When it must be there.
    pub presence: Presence,
}

/// What the objects of a resource are to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// Objects that enter as updates.
    Objects(Kind),
    /// CustomResourceDefinitions, of which only the names matter: they tell when an optional kind appears or goes.
    Definitions,
}

/// Whose objects are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of the cluster.
    Cluster,
    /// In the agent's namespace, one by one, by name: those that something refers to.
    OwnNamespaceByName,
}

/// When a resource must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Every server has it; the source waits for it.
    Always,
    /// A custom resource. Where it is not installed there are none, and it is noticed when it appears.
    Installed,
    /// Needed only along with another kind that is installed.
    Along(Kind),
}

/// A resource that the agent writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// API group; empty: core.
    pub group: &'static str,
    /// Plural name, with `/status` where only the subresource is written.
    pub resource: &'static str,
    /// RBAC verbs.
    pub verbs: &'static [&'static str],
    /// Where.
    pub place: Place,
    /// What for.
    pub why: &'static str,
}

/// Where a resource is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Cluster-scoped objects, and Events, which live where the object is that they tell of: a ClusterRole.
    Cluster,
    /// A Role in the agent's namespace.
    OwnNamespace,
}

/// RBAC verbs that a [`Watched`] resource needs.
pub const WATCH_VERBS: &[&str] = &["get", "list", "watch"];

/// The group of NetworkPolicy's cluster-wide sisters.
const POLICY_GROUP: (&str, &str) = ("policy.networking.k8s.io", "v1alpha2");
/// Calico's kinds as its CRDs have them; else from its own API server.
pub const CALICO: &[(&str, &str)] = &[("crd.projectcalico.org", "v1"), ("projectcalico.org", "v3")];
const OURS: &[(&str, &str)] = &[(config::GROUP, config::VERSION)];

/// Everything that is read. Kinds that others refer to come first.
pub const WATCHED: &[Watched] = &[
    Watched {
        what: What::Definitions,
        apis: &[("apiextensions.k8s.io", "v1")],
        plural: "customresourcedefinitions",
        scope: Scope::Cluster,
        presence: Presence::Always,
    },
    ours(Kind::NetworkConfiguration, "networkconfigurations"),
    ours(Kind::BgpConfiguration, "bgpconfigurations"),
    ours(Kind::BgpFilter, "bgpfilters"),
    calico(Kind::CalicoBgpConfiguration, "bgpconfigurations"),
    calico(Kind::CalicoBgpFilter, "bgpfilters"),
    Watched { scope: Scope::OwnNamespaceByName, ..core(Kind::Secret, "secrets") },
    core(Kind::Node, "nodes"),
    ours(Kind::BgpPeer, "bgppeers"),
    calico(Kind::CalicoBgpPeer, "bgppeers"),
    core(Kind::Namespace, "namespaces"),
    core(Kind::Pod, "pods"),
    Watched { apis: &[("networking.k8s.io", "v1")], ..core(Kind::NetworkPolicy, "networkpolicies") },
    Watched {
        apis: &[POLICY_GROUP],
        presence: Presence::Installed,
        ..core(Kind::ClusterNetworkPolicy, "clusternetworkpolicies")
    },
    calico(Kind::CalicoNetworkPolicy, "networkpolicies"),
    calico(Kind::CalicoGlobalNetworkPolicy, "globalnetworkpolicies"),
    calico(Kind::NetworkSet, "networksets"),
    calico(Kind::GlobalNetworkSet, "globalnetworksets"),
    // Only Calico's rules ask for the labels of ServiceAccounts.
    Watched {
        presence: Presence::Along(Kind::CalicoNetworkPolicy),
        ..core(Kind::ServiceAccount, "serviceaccounts")
    },
    core(Kind::Service, "services"),
    Watched { apis: &[("discovery.k8s.io", "v1")], ..core(Kind::EndpointSlice, "endpointslices") },
];

/// Everything that is written.
pub const WRITTEN: &[Written] = &[
    Written {
        group: "",
        resource: "nodes/status",
        verbs: &["patch"],
        place: Place::Cluster,
        why: "condition NetworkUnavailable of this node",
    },
    Written {
        group: config::GROUP,
        resource: "bgpnodestates",
        verbs: &["get", "list", "watch", "create"],
        place: Place::Cluster,
        why: "the object that holds this node's state; the Lease's holder reads them all",
    },
    Written {
        group: config::GROUP,
        resource: "bgpnodestates/status",
        verbs: &["patch"],
        place: Place::Cluster,
        why: "this node's state",
    },
    Written {
        group: config::GROUP,
        resource: "bgppeers/status",
        verbs: &["patch"],
        place: Place::Cluster,
        why: "conditions and counts, by the holder of the Lease",
    },
    accepted(config::GROUP, "bgpconfigurations/status"),
    accepted(config::GROUP, "bgpfilters/status"),
    accepted(config::GROUP, "networkconfigurations/status"),
    accepted(POLICY_GROUP.0, "clusternetworkpolicies/status"),
    Written {
        group: "coordination.k8s.io",
        resource: "leases",
        verbs: &["get", "create", "update"],
        place: Place::OwnNamespace,
        why: "who writes cluster-wide status",
    },
    Written {
        group: "",
        resource: "events",
        verbs: &["create", "patch"],
        place: Place::Cluster,
        why: "Events on this node and its peers, on what of another network's objects is not done, and on policies, each in its namespace",
    },
];

const fn core(kind: Kind, plural: &'static str) -> Watched {
    Watched {
        what: What::Objects(kind),
        apis: &[("", "v1")],
        plural,
        scope: Scope::Cluster,
        presence: Presence::Always,
    }
}

const fn ours(kind: Kind, plural: &'static str) -> Watched {
    Watched { apis: OURS, presence: Presence::Installed, ..core(kind, plural) }
}

const fn calico(kind: Kind, plural: &'static str) -> Watched {
    Watched { apis: CALICO, presence: Presence::Installed, ..core(kind, plural) }
}

const fn accepted(group: &'static str, resource: &'static str) -> Written {
    let why = "condition Accepted, by the holder of the Lease";
    Written { group, resource, verbs: &["patch"], place: Place::Cluster, why }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_is_read_once() {
        let mut seen = BTreeSet::new();
        for watched in WATCHED {
            assert!(seen.insert(watched.what), "{watched:?}");
            assert!(!watched.apis.is_empty());
        }
    }

    #[test]
    fn nothing_is_written_but_status_and_what_is_ours() {
        for written in WRITTEN {
            let own = written.group == config::GROUP || written.place != Place::Cluster;
            let tells = written.resource == "events";
            assert!(own || tells || written.resource.ends_with("/status"), "{written:?}");
            assert!(!written.verbs.contains(&"delete"), "{written:?}");
        }
    }
}
