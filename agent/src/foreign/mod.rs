//! Configuration that was written for others, in our words: Calico's BGP kinds, kube-router's node annotations, MetalLB's kinds.
//!
//! Pure: objects in, objects of `manx.dev/v1alpha1` out, and a remark for each thing that has no equal here. What would mean less
//! than its author meant (a filter with a rule that cannot be said, a selector that would pick other nodes) is not translated at
//! all: a peer whose filter is missing stays down, which is seen, where half a filter lets routes through, which is not.

mod calico;
mod kube_router;
mod live;
mod metallb;
mod selector;

use std::fmt;

pub(crate) use live::{calico_object, kube_router_node};
use serde_json::{Value, json};

use crate::config::{GROUP, VERSION};

/// Whose configuration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `projectcalico.org` BGPPeer, BGPConfiguration and BGPFilter.
    Calico,
    /// Annotations of Nodes.
    KubeRouter,
    /// `metallb.io` BGPPeer, BFDProfile, IPAddressPool and BGPAdvertisement.
    MetalLb,
}

/// What has no equal here, or needs somebody's hand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remark {
    /// The object, such as `BGPPeer tor-a`.
    pub object: String,
    /// What about it.
    pub reason: String,
    /// Something to do once, by who takes it over; not something that is left out.
    pub by_hand: bool,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.reason)
    }
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translation {
    /// Objects of ours, and Nodes with annotations of ours, in the order of what they came from.
    pub objects: Vec<Value>,
    /// What could not be taken over.
    pub remarks: Vec<Remark>,
}

/// Translates all objects of `origin`; others are passed over. Lists are read as their items.
pub fn translate(origin: Origin, documents: &[Value]) -> Translation {
    let mut objects = Vec::new();
    documents.iter().for_each(|document| flatten(document, &mut objects));
    let mut out = Translation::default();
    match origin {
        Origin::Calico => calico::translate(&objects, &mut out),
        Origin::KubeRouter => kube_router::translate(&objects, &mut out),
        Origin::MetalLb => metallb::translate(&objects, &mut out),
    }
    out
}

fn flatten<'a>(document: &'a Value, out: &mut Vec<&'a Value>) {
    match (document["kind"].as_str(), document["items"].as_array()) {
        (Some(kind), Some(items)) if kind.ends_with("List") => {
            items.iter().for_each(|item| flatten(item, out));
        }
        _ => out.push(document),
    }
}

impl Translation {
    fn remark(&mut self, object: &Value, reason: impl Into<String>) {
        self.note(object, reason.into(), false);
    }

    /// Something that somebody has to do once.
    fn by_hand(&mut self, object: &Value, reason: impl Into<String>) {
        self.note(object, reason.into(), true);
    }

    fn note(&mut self, object: &Value, reason: String, by_hand: bool) {
        let kind = object["kind"].as_str().unwrap_or("object");
        let remark = Remark { object: format!("{kind} {}", name(object)), reason, by_hand };
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    fn object(&mut self, kind: &str, name: &str, spec: impl Into<Value>) {
        self.objects.push(json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": kind, "metadata": {"name": name}, "spec": spec.into(),
        }));
    }

    /// Says of each field that is set and not in `known` that it has no equal here.
    fn unknown(&mut self, object: &Value, known: &[&str]) {
        for (field, value) in object["spec"].as_object().into_iter().flatten() {
            if !known.contains(&field.as_str()) && !is_empty(value) {
                self.remark(object, format!("spec.{field} has no equal here and is left out"));
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) | Value::Bool(true) => false,
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or("without a name")
}

/// Whether an object is of a group, in any version.
fn is_of(object: &Value, groups: &[&str], kind: &str) -> bool {
    let group = object["apiVersion"].as_str().and_then(|v| v.split_once('/')).map_or("", |(group, _)| group);
    object["kind"] == kind && groups.contains(&group)
}

/// A text that says something.
fn text(value: &Value) -> Option<&str> {
    value.as_str().filter(|t| !t.is_empty())
}

/// `10.1.0.1`, `10.1.0.1:1179`, `fd00::1`, `[fd00::1]:1179`.
fn address_and_port(text: &str) -> Option<(String, Option<u16>)> {
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        return Some((socket.ip().to_string(), Some(socket.port())));
    }
    let ip: std::net::IpAddr = text.trim_matches(['[', ']']).parse().ok()?;
    Some((ip.to_string(), None))
}

/// A selector that picks one node by its name.
fn node_named(name: &str) -> Value {
    json!({"matchLabels": {"kubernetes.io/hostname": name}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::manifest;

    /// The objects of one YAML text, and the remarks; the objects are ones that the agent takes.
    pub(super) fn import(origin: Origin, yaml: &str) -> (Vec<Value>, Vec<String>) {
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap();
        let out = translate(origin, &documents);
        for object in &out.objects {
            if let Err(faults) = manifest::parse(&object.to_string()) {
                panic!("{faults:?} in {object}");
            }
        }
        (out.objects, out.remarks.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn lists_are_read_and_other_peoples_objects_passed_over() {
        let yaml = "
kind: List
apiVersion: v1
items:
- {apiVersion: v1, kind: Pod, metadata: {name: x}}
- {apiVersion: manx.dev/v1alpha1, kind: BGPPeer, metadata: {name: ours}, spec: {peerIP: 10.0.0.1, asNumber: 1}}
- {apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: theirs}, spec: {peerIP: 10.0.0.1, asNumber: 65001}}
";
        let (objects, remarks) = import(Origin::Calico, yaml);
        assert_eq!(objects.len(), 1);
        assert_eq!((objects[0]["metadata"]["name"].as_str(), remarks.len()), (Some("theirs"), 0));
        assert_eq!(import(Origin::MetalLb, yaml).0, [] as [Value; 0]);
    }

    #[test]
    fn addresses_come_with_ports_and_without() {
        let read = |text| address_and_port(text).map(|(ip, port)| (ip, port.unwrap_or_default()));
        assert_eq!(read("10.1.0.1:1179"), Some(("10.1.0.1".to_owned(), 1179)));
        assert_eq!(read("fd00::1"), Some(("fd00::1".to_owned(), 0)));
        assert_eq!(read("[fd00::1]:1179"), Some(("fd00::1".to_owned(), 1179)));
        assert_eq!(read("tor-a"), None);
    }
}
