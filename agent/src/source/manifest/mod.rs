//! The text of a manifest -> objects: what `kubectl get -o yaml` prints, several documents and lists included.
//!
//! The file is the unit: one object that cannot be read is a fault of the whole file, so that a half-written edit changes
//! nothing. A policy that can be read but not understood is no fault: it stays, opens nothing, and a note says why.
//! Pure: knows no files, only their text.

mod foreign;
mod kubernetes;
mod ours;
mod policies;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::decode::DecodeError;
use super::object::{Kind, Object, ObjectKey};
use super::tree::{self, Tree, Value};
use crate::config::{self, Issue};

/// Lists in lists deeper than this are nobody's honest work.
const MAX_LIST_DEPTH: usize = 4;

/// What a text says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// The objects, in the order of the text.
    pub objects: Vec<Found>,
    /// What the reader should know about; none of it keeps the text from being used.
    pub notes: Vec<Note>,
}

/// An object and where it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What makes it this object.
    pub key: Arc<ObjectKey>,
    /// The line where it begins.
    pub line: u32,
    /// The object.
    pub object: Arc<Object>,
}

/// Something to tell about a place in a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// Line, from 1, if it is known.
    pub line: Option<u32>,
    /// The object, such as `BGPPeer tor-a`, if it is known.
    pub object: Option<String>,
    /// One line, without the values of secrets.
    pub reason: String,
}

/// Reads a manifest.
///
/// # Errors
/// Everything for which the text cannot be used: bad syntax, or objects that cannot be read.
pub fn parse(text: &str) -> Result<Manifest, Vec<Note>> {
    let documents = tree::documents(text)
        .map_err(|e| vec![Note { line: e.line, object: None, reason: format!("not YAML: {}", e.reason) }])?;
    let mut reader = Reader::default();
    for document in &documents {
        reader.document(document, None, 0);
    }
    if reader.faults.is_empty() { Ok(reader.manifest) } else { Err(reader.faults) }
}

/// One object, understood.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::source) struct Understood {
    pub(in crate::source) object: Object,
    /// What the reader should know about, without lines; none of it keeps the object from being used.
    pub(in crate::source) notes: Vec<String>,
}

/// Reads one object that says what it is, as the API has it.
///
/// # Errors
/// Why it cannot be used, one reason a line.
pub(in crate::source) fn object(tree: &Tree) -> Result<Understood, Vec<String>> {
    let (Some(api_version), Some(kind)) = (tree.text("apiVersion"), tree.text("kind")) else {
        return Err(vec!["not a Kubernetes object: apiVersion and kind are missing".to_owned()]);
    };
    match read(tree, api_version, kind) {
        Outcome::Object(object, notes) => {
            Ok(Understood { object, notes: notes.iter().map(ToString::to_string).collect() })
        }
        Outcome::Faults(faults) => Err(faults.into_iter().map(|fault| fault.reason).collect()),
        Outcome::Foreign => Err(vec![format!("{kind} of {api_version} is nothing that is read")]),
        Outcome::NotDone(reason) => Err(vec![reason]),
    }
}

#[derive(Default)]
struct Reader {
    manifest: Manifest,
    faults: Vec<Note>,
}

/// The `apiVersion` and `kind` that items of a typed list leave out.
#[derive(Clone, Copy)]
struct Implied<'a> {
    api_version: &'a str,
    kind: &'a str,
}

impl Reader {
    fn document(&mut self, tree: &Tree, implied: Option<Implied<'_>>, depth: usize) {
        let fault = |reader: &mut Self, reason: &str| {
            reader.faults.push(Note { line: Some(tree.line), object: None, reason: reason.to_owned() });
        };
        let api_version = tree.text("apiVersion").or(implied.map(|i| i.api_version));
        let kind = tree.text("kind").or(implied.map(|i| i.kind));
        let (Some(api_version), Some(kind)) = (api_version, kind) else {
            return fault(self, "not a Kubernetes object: apiVersion and kind are missing");
        };
        if let Some(item_kind) = kind.strip_suffix("List")
            && let Some(items) = tree.get("items")
        {
            let Value::List(items) = &items.value else {
                return fault(self, "items of a list must be a list");
            };
            if depth == MAX_LIST_DEPTH {
                return fault(self, "lists within lists, too deep");
            }
            // A plain List has items of any kind; those of a PodList need not say that they are Pods.
            let implied = (!item_kind.is_empty()).then_some(Implied { api_version, kind: item_kind });
            for item in items {
                self.document(item, implied, depth + 1);
            }
            return;
        }
        self.object(tree, api_version, kind);
    }

    fn object(&mut self, tree: &Tree, api_version: &str, kind: &str) {
        let label = label(tree, kind);
        match read(tree, api_version, kind) {
            Outcome::Object(object, notes) => {
                let key = Arc::new(object.key());
                let text = key.to_string();
                self.manifest.notes.extend(notes.into_iter().map(|issue| note(tree, text.clone(), &issue)));
                self.manifest.objects.push(Found { key, line: tree.line, object: Arc::new(object) });
            }
            Outcome::Faults(faults) => {
                self.faults
                    .extend(faults.into_iter().map(|fault| Note { object: Some(label.clone()), ..fault }));
            }
            Outcome::Foreign => {}
            Outcome::NotDone(reason) => {
                self.manifest.notes.push(Note { line: Some(tree.line), object: Some(label), reason });
            }
        }
    }
}

enum Outcome {
    Object(Object, Vec<Issue>),
    Faults(Vec<Note>),
    /// An object that does not concern us.
    Foreign,
    /// An object that would concern us, if this version knew it.
    NotDone(String),
}

fn read(tree: &Tree, api_version: &str, kind: &str) -> Outcome {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let result = match (group, kind) {
        ("", "Node" | "Namespace" | "Pod" | "Secret" | "Service") if version != "v1" => {
            wrong_version(tree, kind, api_version, "v1")
        }
        ("", "Node") => kubernetes::node(tree),
        ("", "Namespace") => kubernetes::namespace(tree),
        ("", "Pod") => kubernetes::pod(tree),
        ("", "Secret") => kubernetes::secret(tree),
        ("", "Service") => kubernetes::service(tree),
        ("discovery.k8s.io", "EndpointSlice") if version != "v1" => {
            wrong_version(tree, kind, api_version, "discovery.k8s.io/v1")
        }
        ("discovery.k8s.io", "EndpointSlice") => kubernetes::endpoint_slice(tree),
        ("networking.k8s.io", "NetworkPolicy") if version == "v1" => policies::network_policy(tree),
        ("networking.k8s.io" | "extensions", "NetworkPolicy") => {
            wrong_version(tree, kind, api_version, "networking.k8s.io/v1")
        }
        (config::GROUP, _) => return ours::read(tree, version, kind),
        ("", "ServiceAccount") => policies::service_account(tree),
        ("policy.networking.k8s.io", "ClusterNetworkPolicy") if version == "v1alpha2" => {
            policies::cluster_network_policy(tree)
        }
        ("projectcalico.org" | "crd.projectcalico.org", "NetworkPolicy") => {
            policies::calico_network_policy(tree)
        }
        ("projectcalico.org" | "crd.projectcalico.org", "GlobalNetworkPolicy") => {
            policies::calico_global_network_policy(tree)
        }
        ("projectcalico.org" | "crd.projectcalico.org", "NetworkSet") => policies::network_set(tree, true),
        ("projectcalico.org" | "crd.projectcalico.org", "GlobalNetworkSet") => {
            policies::network_set(tree, false)
        }
        ("projectcalico.org" | "crd.projectcalico.org", "BGPConfiguration") => {
            foreign::read(tree, Kind::CalicoBgpConfiguration)
        }
        ("projectcalico.org" | "crd.projectcalico.org", "BGPFilter") => {
            foreign::read(tree, Kind::CalicoBgpFilter)
        }
        ("projectcalico.org" | "crd.projectcalico.org", "BGPPeer") => {
            foreign::read(tree, Kind::CalicoBgpPeer)
        }
        (
            "policy.networking.k8s.io",
            "ClusterNetworkPolicy" | "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy",
        )
        | (
            "projectcalico.org" | "crd.projectcalico.org",
            "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy" | "StagedKubernetesNetworkPolicy",
        )
        | ("cilium.io", "CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy") => {
            return Outcome::NotDone(format!("this version does not enforce {kind} of {api_version}"));
        }
        _ => return Outcome::Foreign,
    };
    result.map_or_else(Outcome::Faults, |(object, notes)| Outcome::Object(object, notes))
}

type ReadResult = Result<(Object, Vec<Issue>), Vec<Note>>;

/// The metadata of kinds that we decode ourselves.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Metadata {
    fn name(&self, tree: &Tree) -> Result<String, Vec<Note>> {
        match self.name.as_deref() {
            Some(name) if !name.is_empty() => Ok(name.to_owned()),
            _ => Err(faults(tree, &[issue("metadata.name", "missing")])),
        }
    }

    /// As kubectl has it.
    fn namespace(&self) -> String {
        self.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned())
    }
}

fn wrong_version(tree: &Tree, kind: &str, api_version: &str, right: &str) -> ReadResult {
    Err(faults(tree, &[issue("apiVersion", format!("{api_version}: {kind} is read as {right}"))]))
}

fn issue(path: impl Into<String>, reason: impl Into<String>) -> Issue {
    Issue { path: path.into(), reason: reason.into() }
}

fn fault(error: &DecodeError) -> Vec<Note> {
    vec![Note { line: error.line, object: None, reason: error.to_string() }]
}

fn faults(tree: &Tree, issues: &[Issue]) -> Vec<Note> {
    issues
        .iter()
        .map(|i| Note { line: Some(tree.line_of(&i.path)), object: None, reason: i.to_string() })
        .collect()
}

fn note(tree: &Tree, object: String, issue: &Issue) -> Note {
    Note { line: Some(tree.line_of(&issue.path)), object: Some(object), reason: issue.to_string() }
}

/// How to call an object that may be too broken to have a key.
fn label(tree: &Tree, kind: &str) -> String {
    let metadata = tree.get("metadata");
    let name = metadata.and_then(|m| m.text("name")).unwrap_or("without a name");
    let known = [
        Kind::Secret,
        Kind::Pod,
        Kind::NetworkPolicy,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::NetworkSet,
        Kind::ServiceAccount,
    ];
    let given = metadata.and_then(|m| m.text("namespace"));
    let namespaced = known.iter().any(|k| k.as_str() == kind);
    match given.or(namespaced.then_some("default")) {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}
