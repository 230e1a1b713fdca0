//! JSON as Go's `encoding/json` reads it, since that is what all other plugins do: keys in any case (containerd writes
//! `HostPort`, podman `hostPort`), `null` for "not given", of duplicate keys the last, invalid UTF-8 replaced.
//!
//! Knows nothing of what the keys mean.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// A value; objects keep the order of the text, which decides between spellings of one key.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// Any number.
    Number(serde_json::Number),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object.
    Object(Vec<(String, Json)>),
}

/// A value of another type than the key wants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is not {expected}")]
pub struct WrongType {
    /// The key.
    pub key: String,
    /// What it should be.
    pub expected: &'static str,
}

impl Json {
    /// Reads a whole text.
    ///
    /// # Errors
    /// It is not JSON, or more follows.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_str(&String::from_utf8_lossy(text))
    }

    /// The value of a key; `None` for absent, null, and for anything that is not an object.
    pub fn get(&self, key: &str) -> Option<&Json> {
        let Json::Object(members) = self else { return None };
        // Go assigns in the order of the text, and null assigns nothing.
        members
            .iter()
            .rev()
            .find(|(name, value)| name.eq_ignore_ascii_case(key) && *value != Json::Null)
            .map(|(_, value)| value)
    }

    /// The string of a map's key, where Go does not overlook case; `None` for anything else.
    pub fn exactly(&self, key: &str) -> Option<&str> {
        let Json::Object(members) = self else { return None };
        match members.iter().rfind(|(name, _)| name == key) {
            Some((_, Json::String(text))) => Some(text),
            _ => None,
        }
    }

    /// A string; empty counts as absent, as in a Go struct.
    ///
    /// # Errors
    /// It is no string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, WrongType> {
        match self.get(key) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text).filter(|t| !t.is_empty()).map(String::as_str)),
            Some(_) => Err(wrong(key, "a string")),
        }
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// It is something else.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, WrongType> {
        match self.get(key) {
            None => Ok(None),
            Some(Json::Number(n)) => match n.as_u64().and_then(|n| u32::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(wrong(key, "a whole number of 32 bits")),
            },
            Some(_) => Err(wrong(key, "a number")),
        }
    }

    /// An array; absent is empty.
    ///
    /// # Errors
    /// It is something else.
    pub fn array(&self, key: &str) -> Result<&[Json], WrongType> {
        match self.get(key) {
            None => Ok(&[]),
            Some(Json::Array(items)) => Ok(items),
            Some(_) => Err(wrong(key, "an array")),
        }
    }

    /// An array of strings; absent is empty.
    ///
    /// # Errors
    /// It is something else.
    pub fn strings(&self, key: &str) -> Result<Vec<&str>, WrongType> {
        let items = self.array(key)?.iter().filter(|item| **item != Json::Null);
        items
            .map(|item| match item {
                Json::String(text) => Ok(text.as_str()),
                _ => Err(wrong(key, "an array of strings")),
            })
            .collect()
    }

    /// An object.
    ///
    /// # Errors
    /// It is something else.
    pub fn object(&self, key: &str) -> Result<Option<&Json>, WrongType> {
        match self.get(key) {
            None => Ok(None),
            Some(value @ Json::Object(_)) => Ok(Some(value)),
            Some(_) => Err(wrong(key, "an object")),
        }
    }
}

fn wrong(key: &str, expected: &'static str) -> WrongType {
    WrongType { key: key.to_owned(), expected }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(serde_json::Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element()? {
            out.push(item);
        }
        Ok(Json::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut out = Vec::new();
        while let Some(member) = members.next_entry()? {
            out.push(member);
        }
        Ok(Json::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Json {
        Json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn keys_match_in_any_case() {
        assert_eq!(parse(r#"{"HostPort":80}"#).u32("hostPort"), Ok(Some(80)));
        assert_eq!(parse(r#"{"CNIVERSION":"1.0.0"}"#).str("cniVersion"), Ok(Some("1.0.0")));
    }

    #[test]
    fn keys_of_maps_have_a_case() {
        let map = parse(r#"{"a/B":"1","a/b":"2"}"#);
        assert_eq!(
            (map.exactly("a/B"), map.exactly("a/b"), map.exactly("A/b")),
            (Some("1"), Some("2"), None)
        );
    }

    #[test]
    fn the_last_of_duplicate_keys_counts_whatever_its_case() {
        assert_eq!(parse(r#"{"name":"a","Name":"b"}"#).str("name"), Ok(Some("b")));
        assert_eq!(parse(r#"{"Name":"b","name":"a"}"#).str("name"), Ok(Some("a")));
    }

    #[test]
    fn null_is_not_given_and_assigns_nothing() {
        assert_eq!(parse(r#"{"name":null}"#).str("name"), Ok(None));
        assert_eq!(parse(r#"{"name":"a","name":null}"#).str("name"), Ok(Some("a")));
        assert_eq!(parse(r#"{"ips":null}"#).strings("ips"), Ok(vec![]));
        assert_eq!(parse(r#"{"ips":[null,"a"]}"#).strings("ips"), Ok(vec!["a"]));
        assert_eq!(parse("null").get("name"), None);
    }

    #[test]
    fn a_wrong_type_is_named() {
        let error = parse(r#"{"mtu":"x"}"#).u32("mtu").unwrap_err();
        assert_eq!(error.to_string(), "mtu is not a number");
        assert!(parse(r#"{"mtu":-1}"#).u32("mtu").is_err());
        assert!(parse(r#"{"mtu":1.5}"#).u32("mtu").is_err());
        assert!(parse(r#"{"name":1}"#).str("name").is_err());
        assert!(parse(r#"{"ips":"10.0.0.1"}"#).strings("ips").is_err());
        assert!(parse(r#"{"args":[]}"#).object("args").is_err());
    }

    #[test]
    fn invalid_utf8_is_replaced_and_trailing_text_is_refused() {
        assert!(Json::parse(b"{\"name\":\"\xff\"}").is_ok());
        assert!(Json::parse(b"{} {}").is_err());
        assert!(Json::parse(b"").is_err());
    }
}
