//! What stands for a policy that cannot be read: one that selects all that it might select and opens nothing.
//!
//! Doubt about policy closes the door. Of other kinds, what was said before stays in force. Pure.

use manx_policy::model::Problem;

use crate::source::manifest;
use crate::source::tree::{Entry, Tree, Value};
use crate::source::{Kind, Object};

/// The closed policy in place of this one; `None` for kinds that cannot close anything by themselves.
///
/// A ClusterNetworkPolicy denies only what its rules name, so that one without readable rules has nothing to say.
pub(super) fn policy(
    kind: Kind,
    api_version: &str,
    namespace: &str,
    name: &str,
    reason: &str,
) -> Option<Object> {
    let (word, types) = match kind {
        Kind::NetworkPolicy => ("NetworkPolicy", "policyTypes"),
        Kind::CalicoNetworkPolicy => ("NetworkPolicy", "types"),
        Kind::CalicoGlobalNetworkPolicy => ("GlobalNetworkPolicy", "types"),
        _ => return None,
    };
    let mut metadata = vec![entry("name", text(name))];
    if kind.namespaced() {
        metadata.push(entry("namespace", text(namespace)));
    }
    let both = Value::List(["Ingress", "Egress"].map(|direction| tree(text(direction))).into());
    let object = Value::Map(vec![
        entry("apiVersion", text(api_version)),
        entry("kind", text(word)),
        entry("metadata", Value::Map(metadata)),
        entry("spec", Value::Map(vec![entry(types, both)])),
    ]);
    let understood = manifest::object(&tree(object)).expect("a policy of a name alone is well-formed");
    let Object::Policy(mut policy) = understood.object else { unreachable!("{word} is a policy") };
    policy.problems.push(Problem {
        object: format!(
            "{} {}",
            policy.id.kind.as_str(),
            [namespace, name].join("/").trim_start_matches('/')
        ),
        field: "spec".to_owned(),
        reason: format!("{reason}: all pods that it might select are isolated until it can be read"),
    });
    Some(Object::Policy(policy))
}

fn tree(value: Value) -> Tree {
    Tree { line: 0, value }
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn entry(key: &str, value: Value) -> Entry {
    Entry { key: key.into(), line: 0, tree: tree(value) }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Kind::NetworkPolicy, "networking.k8s.io/v1")]
    #[case(Kind::CalicoNetworkPolicy, "crd.projectcalico.org/v1")]
    #[case(Kind::CalicoGlobalNetworkPolicy, "crd.projectcalico.org/v1")]
    fn a_policy_that_cannot_be_read_isolates_in_both_directions(#[case] kind: Kind, #[case] api: &str) {
        let Some(Object::Policy(policy)) = policy(kind, api, "shop", "web", "spec: must be a map") else {
            panic!("a policy")
        };
        assert_eq!((policy.ingress.as_deref(), policy.egress.as_deref()), (Some(&[][..]), Some(&[][..])));
        assert_eq!(policy.subject.len(), 1);
        assert_eq!(&*policy.id.name, "web");
        assert!(policy.problems[0].reason.starts_with("spec: must be a map"), "{:?}", policy.problems);
    }

    #[test]
    fn other_kinds_close_nothing() {
        assert!(policy(Kind::Pod, "v1", "shop", "web", "x").is_none());
        assert!(
            policy(Kind::ClusterNetworkPolicy, "policy.networking.k8s.io/v1alpha2", "", "x", "x").is_none()
        );
    }
}
