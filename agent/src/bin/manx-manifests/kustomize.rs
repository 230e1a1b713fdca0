//! As much of kustomize as the overlays use: `resources`, and JSON patches on targets by kind and name.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    resources: Vec<String>,
    #[serde(default)]
    patches: Vec<Patch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    target: Target,
    patch: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    kind: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    op: String,
    path: String,
    value: Value,
}

/// The objects of a kustomization.
pub(crate) fn build(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("kustomization.yaml")).unwrap();
    let all: Kustomization = serde_saphyr::from_str(&text).unwrap();
    let mut objects = Vec::new();
    for resource in &all.resources {
        let path = dir.join(resource);
        if path.is_dir() {
            objects.extend(build(&path));
        } else {
            objects.extend(documents(&std::fs::read_to_string(&path).unwrap()));
        }
    }
    for patch in &all.patches {
        let Target { kind, name } = &patch.target;
        let object = objects
            .iter_mut()
            .find(|o| o["kind"] == **kind && o["metadata"]["name"] == **name)
            .unwrap_or_else(|| panic!("{}: there is no {kind} {name} to patch", dir.display()));
        let operations: Vec<Operation> = serde_saphyr::from_str(&patch.patch).unwrap();
        operations.into_iter().for_each(|operation| apply(object, operation));
    }
    objects
}

fn apply(object: &mut Value, Operation { op, path, value }: Operation) {
    let (parent, name) = path.rsplit_once('/').expect("a path has a slash");
    let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("{path} leads nowhere"));
    let parent = parent.as_object_mut().expect("patches here change fields");
    let there = parent.insert(name.to_owned(), value).is_some();
    assert_eq!(there, op == "replace", "{op} {path}");
}

/// The documents of a text, empty ones left out.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    all.into_iter().filter(|d| !d.is_null()).collect()
}
