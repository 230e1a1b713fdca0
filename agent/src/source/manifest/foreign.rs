//! Calico's kinds for BGP: said in our words by `foreign`, and what cannot be said noted.

use serde_json::Value;

use super::{Metadata, ReadResult, fault};
use crate::foreign;
use crate::source::decode::decode;
use crate::source::object::{Kind, Object};
use crate::source::tree::Tree;

/// Reads one of them. Nothing in it is a fault: what cannot be taken over is a note, as it would be for Calico's own reader.
pub(super) fn read(tree: &Tree, kind: Kind) -> ReadResult {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Named {
        metadata: Metadata,
    }
    let (named, _) = decode::<Named>(tree).map_err(|e| fault(&e))?;
    let name = named.metadata.name(tree)?;
    let (raw, _) = decode::<Value>(tree).map_err(|e| fault(&e))?;
    let (object, notes) = foreign::calico_object(kind, &name, &raw);
    Ok((Object::Foreign(object), notes))
}
