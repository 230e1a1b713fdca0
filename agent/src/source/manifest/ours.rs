//! The kinds of `manx.dev`: decoded field by field, then validated by `config`.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Metadata, Outcome, ReadResult, fault, faults, issue};
use crate::config::{self, BgpConfiguration, BgpFilter, BgpPeer, Issue, NetworkConfiguration, SINGLETON};
use crate::source::decode::decode;
use crate::source::object::Object;
use crate::source::tree::Tree;

/// Reads an object of our group.
pub(super) fn read(tree: &Tree, version: &str, kind: &str) -> Outcome {
    let result = match (version, kind) {
        (config::VERSION, "BGPConfiguration") => singleton(tree, |spec| {
            BgpConfiguration::validate(spec).map(|o| (Vec::new(), Object::BgpConfiguration(o)))
        }),
        (config::VERSION, "NetworkConfiguration") => singleton(tree, |spec| {
            NetworkConfiguration::validate(spec).map(|o| (Vec::new(), Object::NetworkConfiguration(o)))
        }),
        (config::VERSION, "BGPPeer") => configured(tree, |name, spec| {
            BgpPeer::validate(name, &spec).map(|o| (Vec::new(), Object::BgpPeer(Box::new(o))))
        }),
        (config::VERSION, "BGPFilter") => configured(tree, |name, spec| {
            BgpFilter::validate(name, &spec).map(|o| (Vec::new(), Object::BgpFilter(o)))
        }),
        // Status that an agent wrote: nobody's wish.
        (config::VERSION, "BGPNodeState") => return Outcome::Foreign,
        _ => {
            return Outcome::NotDone(format!(
                "{kind} of {}/{version} is not known to this version: it has no effect",
                config::GROUP
            ));
        }
    };
    result.map_or_else(Outcome::Faults, |(object, notes)| Outcome::Object(object, notes))
}

type Validated = Result<(Vec<Issue>, Object), Vec<Issue>>;

/// One of our kinds. Status and what the API server adds are let through; a misspelt `spec` is not.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configured<S> {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default = "none")]
    spec: Option<S>,
    #[serde(default, rename = "status")]
    _status: Option<IgnoredAny>,
}

fn none<T>() -> Option<T> {
    None
}

fn configured<'a, S: Deserialize<'a> + Default>(
    tree: &'a Tree,
    validate: impl FnOnce(&str, S) -> Validated,
) -> ReadResult {
    let (raw, _) = decode::<Configured<S>>(tree).map_err(|e| fault(&e))?;
    let name = raw.metadata.name(tree)?;
    finish(tree, validate(&name, raw.spec.unwrap_or_default()))
}

/// A kind of which there is one object, so that its name may be left out.
fn singleton<'a, S: Deserialize<'a> + Default>(
    tree: &'a Tree,
    validate: impl FnOnce(S) -> Validated,
) -> ReadResult {
    let (raw, _) = decode::<Configured<S>>(tree).map_err(|e| fault(&e))?;
    match raw.metadata.name.as_deref() {
        None | Some(SINGLETON) => finish(tree, validate(raw.spec.unwrap_or_default())),
        Some(other) => {
            let reason = format!("{other}: there is one object of this kind, and its name is {SINGLETON}");
            Err(faults(tree, &[issue("metadata.name", reason)]))
        }
    }
}

fn finish(tree: &Tree, validated: Validated) -> ReadResult {
    let (notes, object) = validated.map_err(|issues| faults(tree, &issues))?;
    Ok((object, notes))
}
