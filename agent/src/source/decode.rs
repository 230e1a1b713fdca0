//! A serde deserializer over [`Tree`]: errors name field and line, and fields that nobody read are remembered.

use std::cell::RefCell;
use std::fmt::{self, Write as _};

use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::tree::{Entry, Tree, Value};

/// Why a tree is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DecodeError {
    /// Line of the field; `None` only until the error has left the field that it arose in.
    pub(super) line: Option<u32>,
    /// Path of the field, empty for the object itself.
    pub(super) path: String,
    pub(super) reason: String,
}

/// A field that the type does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ignored {
    pub(super) line: u32,
    pub(super) path: String,
}

/// Decodes a tree. Also tells which fields the type had no use for.
pub(super) fn decode<'a, T: de::Deserialize<'a>>(tree: &'a Tree) -> Result<(T, Vec<Ignored>), DecodeError> {
    let trail = Trail::default();
    let value = T::deserialize(Decoder { tree, trail: &trail })?;
    Ok((value, trail.ignored.into_inner()))
}

/// Where in the tree the decoder is.
#[derive(Default)]
struct Trail<'a> {
    steps: RefCell<Vec<Step<'a>>>,
    ignored: RefCell<Vec<Ignored>>,
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Trail<'_> {
    fn path(&self) -> String {
        let mut path = String::new();
        for step in self.steps.borrow().iter() {
            match step {
                Step::Index(i) => write!(path, "[{i}]"),
                Step::Key(key) if path.is_empty() => write!(path, "{key}"),
                Step::Key(key) if key.contains('.') => write!(path, "[{key}]"),
                Step::Key(key) => write!(path, ".{key}"),
            }
            .expect("writing to a String cannot fail");
        }
        path
    }
}

#[derive(Clone, Copy)]
struct Decoder<'a, 't> {
    tree: &'a Tree,
    trail: &'t Trail<'a>,
}

impl Decoder<'_, '_> {
    /// Gives an error that has no place yet the place where the decoder is.
    fn place(&self, mut error: DecodeError) -> DecodeError {
        if error.line.is_none() {
            error.line = Some(self.tree.line);
            error.path = self.trail.path();
        }
        error
    }
}

impl<'a> Deserializer<'a> for Decoder<'a, '_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.tree.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(v) => visitor.visit_bool(*v),
            Value::Unsigned(v) => visitor.visit_u64(*v),
            Value::Signed(v) => visitor.visit_i64(*v),
            Value::Float(v) => visitor.visit_f64(*v),
            Value::Text(v) => visitor.visit_borrowed_str(v),
            Value::List(items) => {
                visitor.visit_seq(Items { items: items.iter().enumerate(), trail: self.trail })
            }
            Value::Map(entries) => {
                visitor.visit_map(Entries { entries: entries.iter(), current: None, trail: self.trail })
            }
        }
        .map_err(|e| self.place(e))
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.tree.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
        .map_err(|e| self.place(e))
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        // Kubernetes takes `cpu: 1` for `cpu: "1"`; its Rust types do not.
        let quantity = match &self.tree.value {
            Value::Unsigned(v) if name == "Quantity" => Some(v.to_string()),
            Value::Signed(v) if name == "Quantity" => Some(v.to_string()),
            Value::Float(v) if name == "Quantity" => Some(v.to_string()),
            _ => None,
        };
        match quantity {
            Some(text) => {
                let text: StringDeserializer<DecodeError> = text.into_deserializer();
                visitor.visit_newtype_struct(text)
            }
            None => visitor.visit_newtype_struct(self),
        }
        .map_err(|e| self.place(e))
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.tree.value {
            Value::Text(text) => visitor.visit_enum((&**text).into_deserializer()),
            _ => Err(de::Error::custom("must be one word")),
        }
        .map_err(|e| self.place(e))
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.trail.ignored.borrow_mut().push(Ignored { line: self.tree.line, path: self.trail.path() });
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        <W: Visitor<'a>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map struct identifier
    }
}

struct Items<'a, 't> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Tree>>,
    trail: &'t Trail<'a>,
}

impl<'a> de::SeqAccess<'a> for Items<'a, '_> {
    type Error = DecodeError;

    fn next_element_seed<S: DeserializeSeed<'a>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, DecodeError> {
        let Some((i, tree)) = self.items.next() else { return Ok(None) };
        self.trail.steps.borrow_mut().push(Step::Index(i));
        let value = seed.deserialize(Decoder { tree, trail: self.trail });
        self.trail.steps.borrow_mut().pop();
        value.map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'a, 't> {
    entries: std::slice::Iter<'a, Entry>,
    current: Option<&'a Entry>,
    trail: &'t Trail<'a>,
}

impl<'a> de::MapAccess<'a> for Entries<'a, '_> {
    type Error = DecodeError;

    fn next_key_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>, DecodeError> {
        self.current = self.entries.next();
        let Some(entry) = self.current else { return Ok(None) };
        let key: StrDeserializer<'a, DecodeError> = (&*entry.key).into_deserializer();
        // An unknown field is refused here.
        seed.deserialize(key).map(Some).map_err(|mut e| {
            self.trail.steps.borrow_mut().push(Step::Key(&entry.key));
            e.line = Some(entry.line);
            e.path = self.trail.path();
            self.trail.steps.borrow_mut().pop();
            e
        })
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, DecodeError> {
        let entry = self.current.take().expect("serde asks for a key before its value");
        self.trail.steps.borrow_mut().push(Step::Key(&entry.key));
        // The line of the key is where a person looks, also when the value begins on the next one.
        let value = seed.deserialize(Decoder { tree: &entry.tree, trail: self.trail }).map_err(|mut e| {
            if e.line.is_none() || (e.line == Some(entry.tree.line) && e.path == self.trail.path()) {
                e.line = Some(entry.line);
            }
            e
        });
        self.trail.steps.borrow_mut().pop();
        value
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        DecodeError { line: None, path: String::new(), reason: reason.to_string() }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;
    use serde::Deserialize;

    use super::super::tree::documents;
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Outer {
        name: Option<String>,
        labels: BTreeMap<String, String>,
        inner: Vec<Inner>,
        mode: Option<Mode>,
        weight: Option<i32>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        port: u16,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    enum Mode {
        Fast,
    }

    fn read(text: &str) -> Result<(Outer, Vec<Ignored>), DecodeError> {
        decode(&documents(text).unwrap()[0])
    }

    #[test]
    fn values_of_all_kinds_are_decoded() {
        let (outer, ignored) =
            read("name: x\nlabels: {a: b}\ninner:\n- port: 80\n- {port: 81}\nmode: Fast\nweight: -3\n")
                .unwrap();
        assert_eq!(outer.inner, [Inner { port: 80 }, Inner { port: 81 }]);
        assert_eq!((outer.mode, outer.weight), (Some(Mode::Fast), Some(-3)));
        assert_eq!(outer.labels["a"], "b");
        assert_eq!(ignored, []);
        assert_eq!(read("name: null\n").unwrap().0.name, None);
    }

    #[rstest]
    #[case("name: 5\n", 1, "name", "invalid type: integer `5`, expected a string")]
    #[case("name: x\nlabels:\n  a: b\n  c: 1\n", 4, "labels.c", "expected a string")]
    #[case("labels:\n  manx.dev/asn: 65001\n", 2, "labels[manx.dev/asn]", "expected a string")]
    #[case("inner:\n- port: 80\n- port: 65536\n", 3, "inner[1].port", "expected u16")]
    #[case("inner:\n- port: 80\n  prt: 81\n", 3, "inner[0].prt", "unknown field `prt`")]
    #[case("name: x\ninner:\n- {}\n", 3, "inner[0]", "missing field `port`")]
    #[case("name: x\ninner:\n  port: 80\n", 2, "inner", "invalid type: map")]
    #[case("inner:\n- prt: 80\n", 2, "inner[0].prt", "unknown field `prt`")]
    #[case("mode: Slow\n", 1, "mode", "unknown variant `Slow`")]
    #[case("mode: [Fast]\n", 1, "mode", "one word")]
    fn an_error_names_field_and_line(
        #[case] text: &str,
        #[case] line: u32,
        #[case] path: &str,
        #[case] reason: &str,
    ) {
        let error = read(text).unwrap_err();
        assert_eq!((error.line, error.path.as_str()), (Some(line), path), "{error}");
        assert!(error.reason.contains(reason), "{error}");
    }

    #[test]
    fn fields_without_use_are_remembered() {
        let (_, ignored) = read("name: x\nnmae: y\nlabels: {}\nextra:\n  deep: 1\n").unwrap();
        let found: Vec<_> = ignored.iter().map(|i| (i.line, i.path.as_str())).collect();
        assert_eq!(found, [(2, "nmae"), (5, "extra")]);
    }
}
