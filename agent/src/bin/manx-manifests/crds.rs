//! The CustomResourceDefinitions, a file each.

use std::collections::BTreeMap;

use crate::yaml;

/// Their texts by file name.
pub(crate) fn files() -> BTreeMap<String, String> {
    manx_agent::crd::definitions()
        .iter()
        .map(|definition| {
            let name = definition["metadata"]["name"].as_str().expect("a definition has a name");
            (format!("{name}.yaml"), yaml::document(definition))
        })
        .collect()
}
