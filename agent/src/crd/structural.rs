//! What schemars says of a type -> a structural schema, the subset of OpenAPI that the API server takes.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The schema of a type, with nothing but types, names and descriptions in it.
pub(super) fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| s.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    clean(&mut schema);
    // What serde needs to know of the type as a whole is nothing for its users.
    if let Some(root) = schema.as_object_mut() {
        root.remove("description");
    }
    schema
}

/// Takes out what is not structural, or says nothing: titles, nulls, widths of integers, closed objects (the API server
/// prunes and, asked strictly, refuses unknown fields by itself).
fn clean(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for word in ["$schema", "title", "nullable", "format", "components", "default"] {
        map.remove(word);
    }
    if map.get("additionalProperties") == Some(&Value::Bool(false)) {
        map.remove("additionalProperties");
    }
    if map.get("type").and_then(Value::as_str) == Some("integer") {
        map.insert("format".to_owned(), json!("int64"));
        map.remove("minimum");
    }
    for value in
        map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
    {
        clean(value);
    }
    for word in ["items", "additionalProperties"] {
        map.get_mut(word).map(clean);
    }
}

/// Adds the words of `bound` to the schema at `path`: names of fields, `[]` for the items of a list, as in `spec.ipv4[].cidr`.
///
/// # Panics
/// When nothing is there: the table of bounds names a field that the type does not have.
pub(super) fn bind(schema: &mut Value, path: &str, bound: &Value) {
    let mut at = schema;
    for word in path.split('.') {
        let (name, items) = word.split_once("[]").map_or((word, false), |(name, _)| (name, true));
        at = at["properties"].get_mut(name).unwrap_or_else(|| panic!("{path}: there is no field {name}"));
        if items {
            at = at.get_mut("items").unwrap_or_else(|| panic!("{path}: {name} is no list"));
        }
    }
    let target = at.as_object_mut().unwrap_or_else(|| panic!("{path}: no schema"));
    for (word, value) in bound.as_object().into_iter().flatten() {
        target.insert(word.clone(), value.clone());
    }
    if target.get("type") == Some(&json!("string")) {
        target.remove("format");
    }
}
