//! Objects that concern the policy engine, in its own words.

use manx_policy::model::{PodId, PolicyId, Update};

use crate::source::{Kind, Object, ObjectKey};

/// What a new or changed object means for the engine; `None`: nothing.
pub fn update(object: &Object) -> Option<Update> {
    match object {
        Object::Pod(o) => Some(Update::SetPod(o.clone())),
        Object::Namespace(o) => Some(Update::SetNamespace(o.clone())),
        Object::NetworkPolicy(o) => Some(Update::SetPolicy(o.clone())),
        _ => None,
    }
}

/// What an object that is gone means for the engine.
pub fn removal(key: &ObjectKey) -> Option<Update> {
    match key.kind {
        Kind::Pod => Some(Update::RemovePod(PodId::new(&key.namespace, &key.name), None)),
        Kind::Namespace => Some(Update::RemoveNamespace(key.name.as_str().into())),
        Kind::NetworkPolicy => {
            Some(Update::RemovePolicy(PolicyId::network_policy(&key.namespace, &key.name)))
        }
        _ => None,
    }
}
