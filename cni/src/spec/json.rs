//! JSON as Go reads it, which is how every other plugin reads what runtimes write: a struct's keys match without regard
//! to case, `null` leaves a field as it was, of two equal keys the later one wins and objects under equal keys merge,
//! and bytes that are not UTF-8 become U+FFFD. Pure.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Error, code};

/// A value with every key of every object, in the order of the text.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true`, `false`.
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

impl Json {
    /// Reads a whole text.
    ///
    /// # Errors
    /// Code 6 with the position.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        serde_json::from_str(&String::from_utf8_lossy(text))
            .map_err(|e| Error::new(code::DECODING, "the network configuration is not JSON", e.to_string()))
    }

    /// The members of an object; `path` names it in errors.
    ///
    /// # Errors
    /// Code 6 when it is something else.
    pub fn fields(&self, path: &str) -> Result<Fields<'_>, Error> {
        match self {
            Self::Object(members) => Ok(Fields { path: path.to_owned(), members: members.iter().collect() }),
            other => Err(wrong(path, other, "an object")),
        }
    }

    /// The text of a string; `path` names it in errors.
    ///
    /// # Errors
    /// Code 6 when it is something else.
    pub fn text(&self, path: &str) -> Result<&str, Error> {
        match self {
            Self::String(text) => Ok(text),
            other => Err(wrong(path, other, "a string")),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

/// The members of an object (or of several under one key), looked up as Go fills a struct.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    path: String,
    members: Vec<&'a (String, Json)>,
}

impl<'a> Fields<'a> {
    /// The last value of `key` that is not null.
    pub fn value(&self, key: &str) -> Option<&'a Json> {
        self.values(key).last()
    }

    /// A string.
    ///
    /// # Errors
    /// Code 6 when one of its values is something else; so with the others.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.last(key, |value| value.text(&self.path_of(key)))
    }

    /// An array.
    ///
    /// # Errors
    /// Code 6.
    pub fn array(&self, key: &str) -> Result<Option<&'a [Json]>, Error> {
        self.last(key, |value| match value {
            Json::Array(items) => Ok(items.as_slice()),
            other => Err(wrong(&self.path_of(key), other, "an array")),
        })
    }

    /// An array of strings; null among them is an empty string, as in Go.
    ///
    /// # Errors
    /// Code 6.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, Error> {
        let Some(items) = self.array(key)? else { return Ok(None) };
        let path = self.path_of(key);
        let text = |item: &'a Json| if *item == Json::Null { Ok("") } else { item.text(&path) };
        items.iter().map(text).collect::<Result<_, _>>().map(Some)
    }

    /// A whole number.
    ///
    /// # Errors
    /// Code 6.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, Error> {
        self.last(key, |value| match value {
            Json::Number(n) if n.is_i64() => Ok(n.as_i64().unwrap_or_default()),
            other => Err(wrong(&self.path_of(key), other, "a whole number")),
        })
    }

    /// An object: the members of all objects under the key.
    ///
    /// # Errors
    /// Code 6.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>, Error> {
        let path = self.path_of(key);
        let mut found: Option<Vec<&'a (String, Json)>> = None;
        for value in self.values(key) {
            found.get_or_insert_default().extend(value.fields(&path)?.members);
        }
        Ok(found.map(|members| Fields { path, members }))
    }

    /// A value of a map (not a struct): there the case of keys counts.
    pub fn exactly(&self, key: &str) -> Option<&'a Json> {
        self.members.iter().rfind(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Where a member is, for errors.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn values(&self, key: &str) -> impl Iterator<Item = &'a Json> {
        self.members
            .iter()
            .filter(move |(name, value)| name.eq_ignore_ascii_case(key) && *value != Json::Null)
            .map(|(_, value)| value)
    }

    /// Go stops at the first value of a wrong type, also where a later one would be right.
    fn last<T>(&self, key: &str, read: impl Fn(&'a Json) -> Result<T, Error>) -> Result<Option<T>, Error> {
        self.values(key).try_fold(None, |_, value| read(value).map(Some))
    }
}

fn wrong(path: &str, value: &Json, wanted: &str) -> Error {
    let name = if path.is_empty() { "the network configuration" } else { path };
    Error::new(
        code::DECODING,
        "the network configuration is not understood",
        format!("{name} is {}, not {wanted}", value.kind()),
    )
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

    fn visit_bool<E>(self, v: bool) -> Result<Json, E> {
        Ok(Json::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Json, E> {
        Ok(Json::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Json, E> {
        Ok(Json::Number(v.into()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Json, E> {
        Ok(serde_json::Number::from_f64(v).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, v: &str) -> Result<Json, E> {
        Ok(Json::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Json, E> {
        Ok(Json::String(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn keys_match_without_regard_to_case() {
        let value = json(r#"{"HostPort": "a"}"#);
        assert_eq!(value.fields("").unwrap().string("hostPort").unwrap(), Some("a"));
    }

    #[test]
    fn null_leaves_a_field_as_it_was() {
        let value = json(r#"{"name": "a", "NAME": null, "dns": null}"#);
        let fields = value.fields("").unwrap();
        assert_eq!(fields.string("name").unwrap(), Some("a"));
        assert!(fields.object("dns").unwrap().is_none());
    }

    #[test]
    fn the_later_of_two_equal_keys_wins_and_objects_merge() {
        let value = json(r#"{"n": "a", "N": "b", "o": {"x": "1", "y": "2"}, "o": {"y": "3"}}"#);
        let fields = value.fields("").unwrap();
        assert_eq!(fields.string("n").unwrap(), Some("b"));
        let object = fields.object("o").unwrap().unwrap();
        assert_eq!((object.string("x").unwrap(), object.string("y").unwrap()), (Some("1"), Some("3")));
    }

    #[test]
    fn a_wrong_type_is_named_with_its_path() {
        let value = json(r#"{"runtimeConfig": {"mac": 5}}"#);
        let error = value.fields("").unwrap().object("runtimeConfig").unwrap().unwrap().string("mac").unwrap_err();
        assert_eq!((error.code, error.details.as_str()), (6, "runtimeConfig.mac is a number, not a string"));
    }

    #[test]
    fn keys_of_maps_keep_their_case() {
        let value = json(r#"{"a": "1", "A": "2"}"#);
        assert_eq!(value.fields("").unwrap().exactly("a"), Some(&Json::String("1".to_owned())));
    }

    #[test]
    fn bytes_that_are_not_utf8_become_replacement_characters() {
        let value = Json::parse(b"{\"a\": \"\xff\"}").unwrap();
        assert_eq!(value.fields("").unwrap().string("a").unwrap(), Some("\u{fffd}"));
    }

    #[test]
    fn nesting_without_end_is_an_error_not_a_crash() {
        assert_eq!(Json::parse("[".repeat(100_000).as_bytes()).unwrap_err().code, 6);
    }

    #[test]
    fn a_fraction_is_no_whole_number() {
        let value = json(r#"{"a": 1.5, "b": 2}"#);
        assert!(value.fields("").unwrap().integer("a").is_err());
        assert_eq!(value.fields("").unwrap().integer("b").unwrap(), Some(2));
    }
}
