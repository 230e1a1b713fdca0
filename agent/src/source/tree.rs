//! YAML and JSON as a tree of values that know their lines.
//!
//! Objects are decoded from this tree and not from the text, so that every complaint (of the decoder, of validation, of
//! the policy model) can name the line of its field. Knows YAML's scalars; nothing of Kubernetes.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Error as YamlError, MessageFormatter, Spanned};

/// The largest file that is read, in bytes.
pub(super) const MAX_FILE_BYTES: u64 = 32 << 20;

/// Maps and lists within each other; the deepest objects in use, schemas of custom resources, stay below half of it.
pub(super) const MAX_DEPTH: usize = 64;

/// Stack that a thread needs for reading the deepest text that is let through, with room to spare in builds without
/// optimisation.
pub(super) const STACK_BYTES: usize = 8 << 20;

/// A value and the line, from 1, where it begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tree {
    pub(super) line: u32,
    pub(super) value: Value,
}

/// What JSON can say.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(Box<str>),
    List(Vec<Tree>),
    /// In the order of the file; keys are unique.
    Map(Vec<Entry>),
}

/// A key of a map, its line, and what it stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: Box<str>,
    pub(super) line: u32,
    pub(super) tree: Tree,
}

/// A text that is no YAML: what is wrong, and where if that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: Option<u32>,
    pub(super) reason: String,
}

/// Reads all documents of a text; empty ones are left out.
pub(super) fn documents(text: &str) -> Result<Vec<Tree>, SyntaxError> {
    let options = serde_saphyr::options! {
        // As the API server's own reader: yes and no are words, 0644 is octal, a key given twice is a mistake.
        strict_booleans: true,
        legacy_octal_numbers: true,
        duplicate_keys: DuplicateKeyPolicy::Error,
        with_snippet: false,
        emit_comments: false,
        // A file may hold a whole cluster, yet neither depth nor aliases may blow it up further.
        budget: serde_saphyr::budget! {
            max_events: 20_000_000,
            max_nodes: 20_000_000,
            max_depth: MAX_DEPTH,
            max_total_scalar_bytes: MAX_FILE_BYTES as usize * 2,
            max_aliases: 10_000,
            max_anchors: 10_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 200_000,
            max_replay_stack_depth: 16,
        },
    };
    serde_saphyr::from_multiple_with_options::<Tree>(text, options).map_err(|e| syntax_error(&e))
}

impl Tree {
    /// The value of a key, if this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Tree> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| &*e.key == key).map(|e| &e.tree),
            _ => None,
        }
    }

    /// The text of a key, if this is a map in which it is a text.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The line of a field by its path, such as `spec.ingress[0].ports`, or of the nearest thing above it that is there.
    pub(super) fn line_of(&self, path: &str) -> u32 {
        let mut at = self;
        let mut line = self.line;
        for step in steps(path) {
            let next = match (&at.value, step) {
                (Value::Map(entries), Step::Key(key)) => {
                    entries.iter().find(|e| *e.key == *key).map(|e| (e.line, &e.tree))
                }
                (Value::List(items), Step::Index(i)) => items.get(i).map(|t| (t.line, t)),
                // Annotations are written metadata.annotations[manx.dev/asn]: their keys have dots.
                _ => None,
            };
            let Some((found, tree)) = next else { break };
            (line, at) = (found, tree);
        }
        line
    }
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

fn steps(path: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let Some((index, after)) = inside.split_once(']') else { break };
            steps.push(index.parse().map_or(Step::Key(index), Step::Index));
            rest = after;
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end == 0 {
                break;
            }
            steps.push(Step::Key(&rest[..end]));
            rest = &rest[end..];
        }
    }
    steps
}

fn syntax_error(error: &YamlError) -> SyntaxError {
    let line = error.location().map(|l| l.line()).filter(|l| *l > 0).map(narrow);
    let mut inner = error;
    while let YamlError::AliasError { error, .. } | YamlError::WithSnippet { error, .. } = inner {
        inner = error;
    }
    let reason = serde_saphyr::DefaultMessageFormatter.format_message(inner);
    // One line, whatever the file holds.
    SyntaxError { line, reason: reason.split_whitespace().collect::<Vec<_>>().join(" ") }
}

/// Files are too small for more lines than that.
fn narrow(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(d)?;
        Ok(Tree { line: narrow(spanned.referenced.line()), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Unsigned(v))
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        Ok(u64::try_from(v).map_or(Value::Signed(v), Value::Unsigned))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Text(v.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let tree = map.next_value()?;
            entries.push(Entry {
                key: key.value.into_boxed_str(),
                line: narrow(key.referenced.line()),
                tree,
            });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use rstest::rstest;

    use super::*;

    fn one(text: &str) -> Tree {
        let mut all = documents(text).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn lines_are_those_of_the_keys() {
        let tree =
            one("# comment\nkind: Pod\nspec:\n  ports:\n  - name: web\n    port: 80\n  - port:\n      81\n");
        assert_eq!(tree.line, 2);
        assert_eq!(tree.line_of("kind"), 2);
        assert_eq!(tree.line_of("spec"), 3);
        assert_eq!(tree.line_of("spec.ports"), 4);
        assert_eq!(tree.line_of("spec.ports[0].port"), 6);
        assert_eq!(tree.line_of("spec.ports[1]"), 7);
        assert_eq!(tree.line_of("spec.ports[1].missing"), 7);
        assert_eq!(tree.line_of("elsewhere"), 2);
    }

    #[test]
    fn keys_with_dots_are_found_in_brackets() {
        let tree = one("metadata:\n  annotations:\n    a: b\n    manx.dev/asn: 1\n");
        assert_eq!(tree.line_of("metadata.annotations[manx.dev/asn]"), 4);
    }

    #[test]
    fn documents_are_told_apart_and_empty_ones_left_out() {
        let all = documents("---\n---\na: 1\n---\n# nothing\n---\nb: 2\n...\n").unwrap();
        assert_eq!(all.iter().map(|t| t.line).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(documents("").unwrap(), []);
    }

    #[test]
    fn json_is_read_as_well() {
        let tree = one("{\"a\": [1, -2, 3.5, \"x\\n\", null, true],\n \"b\": {}}");
        let Value::List(items) = &tree.get("a").unwrap().value else { panic!("a list") };
        let values: Vec<_> = items.iter().map(|t| t.value.clone()).collect();
        assert_eq!(
            values,
            [
                Value::Unsigned(1),
                Value::Signed(-2),
                Value::Float(3.5),
                Value::Text("x\n".into()),
                Value::Null,
                Value::Bool(true)
            ]
        );
        assert_eq!(tree.line_of("b"), 2);
    }

    #[test]
    fn words_that_other_readers_take_for_booleans_stay_words() {
        let tree = one("mode: Off\nanswer: no\nreal: false\nmode2: 0644\nversion: '1'\n");
        assert_eq!(tree.text("mode"), Some("Off"));
        assert_eq!(tree.text("answer"), Some("no"));
        assert_eq!(tree.get("real").unwrap().value, Value::Bool(false));
        assert_eq!(tree.get("mode2").unwrap().value, Value::Unsigned(0o644));
        assert_eq!(tree.text("version"), Some("1"));
    }

    #[rstest]
    #[case("a: 1\nb: [1,\nc: 2\n", 2)]
    #[case("a: 1\n b: 2\n", 2)]
    #[case("a: 'never closed\n", 2)]
    #[case("a: 1\na: 2\n", 2)]
    #[case("ok: 1\n---\nx: *nowhere\n", 3)]
    #[case("a:\n\t- tab\n", 2)]
    #[case("{\"a\": 1,\n\"b\": }}\n", 2)]
    fn a_mistake_is_told_with_its_line(#[case] text: &str, #[case] line: u32) {
        let error = documents(text).unwrap_err();
        assert_eq!(error.line, Some(line), "{}", error.reason);
        assert!(!error.reason.is_empty() && !error.reason.contains('\n'), "{}", error.reason);
    }

    #[test]
    fn a_bomb_of_aliases_is_defused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            writeln!(text, "a{i}: &a{i} [{refs}]").unwrap();
        }
        assert!(documents(&text).is_err());
    }

    #[test]
    fn depth_is_bounded_and_the_readers_stack_suffices_for_it() {
        let test = || {
            let flow = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
            let block = |depth| (0..depth).map(|i| format!("{}a:\n", " ".repeat(i))).collect::<String>();
            assert!(documents(&flow(MAX_DEPTH)).is_ok());
            assert!(documents(&block(MAX_DEPTH)).is_ok());
            assert!(documents(&flow(MAX_DEPTH + 1)).is_err());
            assert!(documents(&block(MAX_DEPTH + 1)).is_err());
            assert!(documents(&"[".repeat(100_000)).is_err());
            assert!(documents(&"- ".repeat(100_000)).is_err());
        };
        std::thread::Builder::new().stack_size(STACK_BYTES).spawn(test).unwrap().join().unwrap();
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-:#\\[\\]{}&*!|>'\"%@`a-c0-2 \\n\\t,?~]{0,200}") {
            let _ = documents(&text);
        }
    }
}
