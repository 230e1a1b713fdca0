//! Questions to the API server, as paths. Pure.

use std::fmt::Write as _;
use std::sync::Arc;

use super::kinds::{Watched, What};
use super::reflector::Ask;
use crate::source::Kind;

/// Objects in a page: enough that thousands of nodes take a few round trips, few enough that a page of Pods stays small.
const PAGE: u32 = 500;

/// Whose objects are asked for, under which of the names that the resource may have.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) watched: &'static Watched,
    /// Namespace and name of the one object that is meant; `None`: all.
    pub(super) one: Option<(String, String)>,
}

impl Target {
    /// `apiVersion` of its objects under one of its names.
    pub(super) fn api_version(&self, api: usize) -> Arc<str> {
        match self.watched.apis[api] {
            ("", version) => version.into(),
            (group, version) => format!("{group}/{version}").into(),
        }
    }

    /// `kind` of its objects.
    pub(super) fn kind(&self) -> &'static str {
        match self.watched.what {
            What::Definitions => "CustomResourceDefinition",
            What::Objects(Kind::CalicoNetworkPolicy) => "NetworkPolicy",
            What::Objects(Kind::CalicoGlobalNetworkPolicy) => "GlobalNetworkPolicy",
            What::Objects(kind) => kind.as_str(),
        }
    }

    /// Path and query; `seconds`: after which a watch shall end by itself.
    pub(super) fn path(&self, api: usize, ask: &Ask, seconds: u64) -> String {
        let mut path = match self.watched.apis[api] {
            ("", version) => format!("/api/{version}"),
            (group, version) => format!("/apis/{group}/{version}"),
        };
        if let Some((namespace, _)) = &self.one {
            write!(path, "/namespaces/{namespace}").expect("writing to a String cannot fail");
        }
        write!(path, "/{}?", self.watched.plural).expect("writing to a String cannot fail");
        if let Some((_, name)) = &self.one {
            write!(path, "fieldSelector=metadata.name%3D{name}&").expect("writing to a String cannot fail");
        }
        let watch = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}");
        path + &match ask {
            Ask::Stream => format!("{watch}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
            Ask::Watch(version) => format!("{watch}&resourceVersion={}", encode(version)),
            Ask::Page(None) => format!("limit={PAGE}"),
            Ask::Page(Some(next)) => format!("limit={PAGE}&continue={}", encode(next)),
            Ask::Probe => "limit=1".to_owned(),
        }
    }

    /// What we want to read. Of definitions, whose schemas are large, the metadata alone.
    pub(super) fn accept(&self, ask: &Ask) -> &'static str {
        match (self.watched.what, ask) {
            (What::Objects(_), _) => "application/json",
            (What::Definitions, Ask::Stream | Ask::Watch(_)) => {
                "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
            }
            (What::Definitions, Ask::Page(_) | Ask::Probe) => {
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
            }
        }
    }
}

/// For a query's value. Names need none: they are DNS labels.
pub(crate) fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => write!(out, "%{byte:02X}").expect("writing to a String cannot fail"),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::super::kinds::WATCHED;
    use super::*;

    fn target(kind: Kind, one: Option<(&str, &str)>) -> Target {
        let watched = WATCHED.iter().find(|w| w.what == What::Objects(kind)).unwrap();
        Target { watched, one: one.map(|(namespace, name)| (namespace.into(), name.into())) }
    }

    #[test]
    fn questions_are_spelt_as_the_api_has_them() {
        let nodes = target(Kind::Node, None);
        assert_eq!(nodes.path(0, &Ask::Page(None), 0), "/api/v1/nodes?limit=500");
        assert_eq!(
            nodes.path(0, &Ask::Page(Some("a=b/+".into())), 0),
            "/api/v1/nodes?limit=500&continue=a%3Db%2F%2B"
        );
        assert_eq!(
            nodes.path(0, &Ask::Watch("17".into()), 290),
            "/api/v1/nodes?watch=true&allowWatchBookmarks=true&timeoutSeconds=290&resourceVersion=17"
        );
        let calico = target(Kind::CalicoGlobalNetworkPolicy, None);
        assert_eq!(
            calico.path(1, &Ask::Stream, 9),
            "/apis/projectcalico.org/v3/globalnetworkpolicies?watch=true&allowWatchBookmarks=true&timeoutSeconds=9\
             &sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        );
        assert_eq!((&*calico.api_version(1), calico.kind()), ("projectcalico.org/v3", "GlobalNetworkPolicy"));
    }

    #[test]
    fn a_secret_is_asked_for_by_name_within_its_namespace() {
        let secret = target(Kind::Secret, Some(("manx-system", "tor-a")));
        assert_eq!(
            secret.path(0, &Ask::Probe, 0),
            "/api/v1/namespaces/manx-system/secrets?fieldSelector=metadata.name%3Dtor-a&limit=1"
        );
    }
}
