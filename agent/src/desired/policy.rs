//! Objects that concern the policy engine, in its own words.

use manx_policy::model::{Entity, Labels, PodId, PolicyId, PolicyKind, Update};

use crate::source::{Kind, Node, Object, ObjectKey};

/// What a new or changed object means for the engine; `None`: nothing.
pub fn update(object: &Object) -> Option<Update> {
    match object {
        Object::Pod(o) => Some(Update::SetPod(o.clone())),
        Object::Namespace(o) => Some(Update::SetNamespace(o.clone())),
        Object::Policy(o) => Some(Update::SetPolicy(o.clone())),
        Object::NetworkSet(o) => Some(Update::SetEntity(o.clone())),
        Object::ServiceAccount(id, labels) => Some(Update::SetServiceAccount(id.clone(), labels.clone())),
        Object::Node(o) => Some(Update::SetEntity(node(o))),
        _ => None,
    }
}

/// What an object that is gone means for the engine.
pub fn removal(key: &ObjectKey) -> Option<Update> {
    let policy = |kind| {
        let namespace = (!key.namespace.is_empty()).then(|| key.namespace.as_str().into());
        Some(Update::RemovePolicy(PolicyId { kind, namespace, name: key.name.as_str().into() }))
    };
    match key.kind {
        Kind::Pod => Some(Update::RemovePod(PodId::new(&key.namespace, &key.name), None)),
        Kind::Namespace => Some(Update::RemoveNamespace(key.name.as_str().into())),
        Kind::NetworkPolicy => policy(PolicyKind::NetworkPolicy),
        Kind::ClusterNetworkPolicy => policy(PolicyKind::ClusterNetworkPolicy),
        Kind::CalicoNetworkPolicy => policy(PolicyKind::CalicoNetworkPolicy),
        Kind::CalicoGlobalNetworkPolicy => policy(PolicyKind::CalicoGlobalNetworkPolicy),
        Kind::NetworkSet => Some(Update::RemoveEntity(Entity::network_set(Some(&key.namespace), &key.name))),
        Kind::GlobalNetworkSet => Some(Update::RemoveEntity(Entity::network_set(None, &key.name))),
        Kind::ServiceAccount => {
            Some(Update::SetServiceAccount(PodId::new(&key.namespace, &key.name), Labels::default()))
        }
        Kind::Node => Some(Update::RemoveEntity(Entity::node(&key.name))),
        _ => None,
    }
}

/// What a peer that selects nodes finds: every address in the node's status.
fn node(node: &Node) -> Entity {
    Entity {
        id: Entity::node(&node.name),
        labels: node.labels.iter().collect(),
        addresses: node.internal_ips.iter().chain(&node.external_ips).copied().collect(),
        nets: [].into(),
    }
}
