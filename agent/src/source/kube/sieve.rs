//! JSON -> [`Tree`], without what nobody will read.
//!
//! A Pod as the API server sends it takes tens of kilobytes in memory; what the agent needs of it, some hundred bytes.
//! What is not kept is skipped while it is read, so that it is never held. Pure; knows which fields matter, not what they
//! mean.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::source::Kind;
use crate::source::tree::{Entry, MAX_DEPTH, Tree, Value};

use super::kinds::What;

/// What to keep of a value. Lists are kept item by item, by the same rule.
#[derive(Debug)]
pub(super) enum Keep {
    All,
    Nothing,
    /// Of a map: these fields by their own rules, the others by `rest`.
    Fields {
        of: &'static [(&'static str, &'static Keep)],
        rest: &'static Keep,
    },
    /// Of a map: the keys that the function names, whole.
    Keys(fn(&str) -> bool),
}

impl Keep {
    /// What is kept of an object.
    pub(super) fn of(what: What) -> &'static Keep {
        match what {
            What::Definitions => &DEFINITION,
            What::Objects(Kind::Pod) => &POD,
            What::Objects(Kind::Node) => &NODE,
            What::Objects(Kind::Service) => &SERVICE,
            What::Objects(_) => &OBJECT,
        }
    }

    fn field(&'static self, key: &str) -> &'static Keep {
        match self {
            Keep::All | Keep::Nothing => self,
            Keep::Fields { of, rest } => {
                of.iter().find(|(name, _)| *name == key).map_or(rest, |(_, keep)| keep)
            }
            Keep::Keys(wanted) if wanted(key) => &Keep::All,
            Keep::Keys(_) => &Keep::Nothing,
        }
    }
}

const fn only(of: &'static [(&'static str, &'static Keep)]) -> Keep {
    Keep::Fields { of, rest: &Keep::Nothing }
}

const METADATA: Keep = only(&[
    ("name", &Keep::All),
    ("namespace", &Keep::All),
    ("uid", &Keep::All),
    ("resourceVersion", &Keep::All),
    ("generation", &Keep::All),
    ("deletionTimestamp", &Keep::All),
    ("labels", &Keep::All),
    ("annotations", &Keep::Keys(annotation)),
]);

static OBJECT: Keep =
    Keep::Fields { of: &[("metadata", &METADATA), ("status", &Keep::Nothing)], rest: &Keep::All };
static SERVICE: Keep = Keep::Fields { of: &[("metadata", &METADATA)], rest: &Keep::All };
static DEFINITION: Keep =
    only(&[("metadata", &only(&[("name", &Keep::All), ("resourceVersion", &Keep::All)]))]);
static NODE: Keep = only(&[
    ("apiVersion", &Keep::All),
    ("kind", &Keep::All),
    ("metadata", &METADATA),
    ("spec", &Keep::All),
    ("status", &only(&[("addresses", &Keep::All)])),
]);
/// What `manx_policy::k8s::pod` reads.
static POD: Keep = only(&[
    ("apiVersion", &Keep::All),
    ("kind", &Keep::All),
    ("metadata", &METADATA),
    (
        "spec",
        &only(&[
            ("nodeName", &Keep::All),
            ("hostNetwork", &Keep::All),
            ("serviceAccountName", &Keep::All),
            ("containers", &CONTAINER),
            ("initContainers", &CONTAINER),
        ]),
    ),
    ("status", &only(&[("phase", &Keep::All), ("podIP", &Keep::All), ("podIPs", &Keep::All)])),
]);
const CONTAINER: Keep = only(&[("name", &Keep::All), ("ports", &Keep::All), ("restartPolicy", &Keep::All)]);

/// Annotations that somebody reads; kubectl keeps whole objects in one of the others.
fn annotation(key: &str) -> bool {
    ["manx.dev/", "kubernetes.io/config.", "kube-router.io/", "projectcalico.org/"]
        .iter()
        .any(|prefix| key.starts_with(prefix))
}

/// Reads one value by its rule. Lines are not counted: an object of the API is named, its JSON seen by nobody.
#[derive(Clone, Copy)]
pub(super) struct Sieve {
    pub(super) keep: &'static Keep,
    depth: usize,
}

impl Sieve {
    pub(super) fn new(keep: &'static Keep) -> Self {
        Sieve { keep, depth: 0 }
    }

    fn below(self, keep: &'static Keep) -> Self {
        Sieve { keep, depth: self.depth + 1 }
    }
}

fn tree(value: Value) -> Tree {
    Tree { line: 0, value }
}

impl<'de> DeserializeSeed<'de> for Sieve {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Tree, D::Error> {
        if self.depth > MAX_DEPTH {
            // No schema asks for such depth: whoever decodes this finds a text where there should be none and names it.
            d.deserialize_ignored_any(IgnoredAny)?;
            return Ok(tree(Value::Text("(nested too deeply)".into())));
        }
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Sieve {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Tree, E> {
        Ok(tree(Value::Null))
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Tree, E> {
        Ok(tree(Value::Bool(v)))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Tree, E> {
        Ok(tree(Value::Unsigned(v)))
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Tree, E> {
        Ok(tree(u64::try_from(v).map_or(Value::Signed(v), Value::Unsigned)))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Tree, E> {
        Ok(tree(Value::Float(v)))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Tree, E> {
        Ok(tree(Value::Text(v.into())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.below(self.keep))? {
            items.push(item);
        }
        Ok(tree(Value::List(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Box<str>>()? {
            match self.keep.field(&key) {
                Keep::Nothing => _ = map.next_value::<IgnoredAny>()?,
                keep => {
                    let tree = map.next_value_seed(self.below(keep))?;
                    entries.push(Entry { key, line: 0, tree });
                }
            }
        }
        Ok(tree(Value::Map(entries)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::manifest;
    use crate::source::tree::documents;

    fn read(what: What, json: &str) -> Tree {
        let mut d = serde_json::Deserializer::from_str(json);
        Sieve::new(Keep::of(what)).deserialize(&mut d).unwrap()
    }

    const POD_JSON: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"shop","uid":"u1",
        "managedFields":[{"manager":"kubelet","fieldsV1":{"f:a":{}}}],"labels":{"app":"web"},"generation":2,
        "annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}","kubernetes.io/config.mirror":"m1"},
        "deletionTimestamp":"2026-01-01T00:00:00Z"},
        "spec":{"nodeName":"n1","hostNetwork":true,"serviceAccountName":"robot","volumes":[{"name":"v"}],
        "initContainers":[{"name":"side","restartPolicy":"Always","ports":[{"name":"s","containerPort":81}]}],
        "containers":[{"name":"c","image":"i","env":[{"name":"A","value":"b"}],
        "ports":[{"name":"http","containerPort":80,"protocol":"TCP"}]}]},
        "status":{"phase":"Succeeded","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}],
        "containerStatuses":[{"name":"c","image":"i","imageID":"x","ready":true,"restartCount":0}]}}"#;

    #[test]
    fn what_is_kept_of_a_pod_is_all_that_is_read_of_it() {
        let kept = read(What::Objects(Kind::Pod), POD_JSON);
        let whole = documents(POD_JSON).unwrap().remove(0);
        assert_eq!(manifest::object(&kept).unwrap().object, manifest::object(&whole).unwrap().object);
        let text = format!("{kept:?}");
        for gone in ["managedFields", "image", "env", "volumes", "containerStatuses", "last-applied"] {
            assert!(!text.contains(gone), "{gone}: {text}");
        }
    }

    #[test]
    fn what_is_kept_of_a_node_is_all_that_is_read_of_it() {
        let json = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","labels":{"rack":"a"},
            "annotations":{"manx.dev/asn":"65001","volumes.kubernetes.io/x":"true"}},
            "spec":{"podCIDR":"10.1.0.0/24","podCIDRs":["10.1.0.0/24"],"unschedulable":true},
            "status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}],"images":[{"names":["x"]}],
            "conditions":[{"type":"Ready","lastHeartbeatTime":"2026-01-01T00:00:00Z"}]}}"#;
        let kept = read(What::Objects(Kind::Node), json);
        let whole = documents(json).unwrap().remove(0);
        assert_eq!(manifest::object(&kept).unwrap().object, manifest::object(&whole).unwrap().object);
        assert!(!format!("{kept:?}").contains("Heartbeat"));
    }

    #[test]
    fn a_policy_keeps_every_field_of_its_spec() {
        let json = r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p","namespace":"a",
            "managedFields":[]},"spec":{"podSelector":{},"ingress":[{"prot":80}]},"status":{}}"#;
        let kept = read(What::Objects(Kind::NetworkPolicy), json);
        assert!(kept.get("spec").unwrap().get("ingress").is_some());
        assert!(kept.get("status").is_none());
        assert!(format!("{kept:?}").contains("prot"));
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{{\"spec\":{}{}}}", "[".repeat(100), "]".repeat(100));
        let tree = read(What::Objects(Kind::NetworkPolicy), &deep);
        assert!(format!("{tree:?}").contains("nested too deeply"));
    }
}
