//! The resources that the server knows, as paths and kinds.

/// One resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty: core.
    pub group: &'static str,
    /// Its version.
    pub version: &'static str,
    /// `kind` of its objects.
    pub kind: &'static str,
    /// Plural name, as in a path.
    pub plural: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// A custom resource, there only while its definition is.
    pub custom: bool,
}

const fn of(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    custom: bool,
) -> Resource {
    Resource { group, version, kind, plural, namespaced, custom }
}

/// All of them.
pub const RESOURCES: &[Resource] = &[
    of("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", false, false),
    of("", "v1", "Node", "nodes", false, false),
    of("", "v1", "Namespace", "namespaces", false, false),
    of("", "v1", "Pod", "pods", true, false),
    of("", "v1", "Secret", "secrets", true, false),
    of("", "v1", "Service", "services", true, false),
    of("", "v1", "ServiceAccount", "serviceaccounts", true, false),
    of("", "v1", "Event", "events", true, false),
    of("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true, false),
    of("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true, false),
    of("coordination.k8s.io", "v1", "Lease", "leases", true, false),
    of("policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies", false, true),
    of("manx.dev", "v1alpha1", "NetworkConfiguration", "networkconfigurations", false, true),
    of("manx.dev", "v1alpha1", "BGPConfiguration", "bgpconfigurations", false, true),
    of("manx.dev", "v1alpha1", "BGPFilter", "bgpfilters", false, true),
    of("manx.dev", "v1alpha1", "BGPPeer", "bgppeers", false, true),
    of("manx.dev", "v1alpha1", "BGPNodeState", "bgpnodestates", false, true),
    of("crd.projectcalico.org", "v1", "BGPConfiguration", "bgpconfigurations", false, true),
    of("crd.projectcalico.org", "v1", "BGPFilter", "bgpfilters", false, true),
    of("crd.projectcalico.org", "v1", "BGPPeer", "bgppeers", false, true),
    of("crd.projectcalico.org", "v1", "NetworkPolicy", "networkpolicies", true, true),
    of("crd.projectcalico.org", "v1", "GlobalNetworkPolicy", "globalnetworkpolicies", false, true),
    of("crd.projectcalico.org", "v1", "NetworkSet", "networksets", true, true),
    of("crd.projectcalico.org", "v1", "GlobalNetworkSet", "globalnetworksets", false, true),
];

impl Resource {
    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Name of its definition.
    pub fn definition(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }
}

/// The resource of an object that says what it is.
pub fn of_object(api_version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.kind == kind && r.api_version() == api_version)
}

/// A path taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// What is asked for.
    pub resource: &'static Resource,
    /// In this namespace only.
    pub namespace: Option<String>,
    /// This one object.
    pub name: Option<String>,
    /// Its `status` subresource.
    pub status: bool,
}

impl Path {
    /// Takes a path apart; `None`: nothing is there.
    pub fn parse(path: &str) -> Option<Path> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let (plural, rest) = rest.split_first()?;
        let resource =
            RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == *plural)?;
        let (name, status) = match rest {
            [] => (None, false),
            [name] => (Some((*name).to_owned()), false),
            [name, "status"] => (Some((*name).to_owned()), true),
            _ => return None,
        };
        Some(Path { resource, namespace, name, status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let path = Path::parse("/api/v1/namespaces/shop/pods").unwrap();
        assert_eq!((path.resource.kind, path.namespace.as_deref(), path.name), ("Pod", Some("shop"), None));
        let path = Path::parse("/api/v1/namespaces/shop").unwrap();
        assert_eq!((path.resource.kind, path.name.as_deref()), ("Namespace", Some("shop")));
        let path = Path::parse("/apis/manx.dev/v1alpha1/bgppeers/tor-a/status").unwrap();
        assert_eq!((path.resource.kind, path.name.as_deref(), path.status), ("BGPPeer", Some("tor-a"), true));
        assert_eq!(Path::parse("/apis/manx.dev/v2/bgppeers"), None);
        assert_eq!(Path::parse("/version"), None);
    }
}
