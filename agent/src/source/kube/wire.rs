//! What the API server says: pages of a list, events of a watch, refusals. Bytes -> values; pure.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::kinds::What;
use super::sieve::{Keep, Sieve};
use crate::source::tree::{Entry, Tree, Value};

/// Annotation of the bookmark that ends the initial events of a streaming list.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// An object as it arrived, trimmed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    /// Empty for kinds without one.
    pub(super) namespace: String,
    pub(super) name: String,
    /// Its resourceVersion; opaque but for its order.
    pub(super) version: String,
    pub(super) tree: Tree,
}

/// A page of a list.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Page {
    pub(super) items: Vec<Item>,
    /// What to ask for the next page with; `None`: this was the last.
    pub(super) next: Option<String>,
    /// Of the list as a whole: where to watch from.
    pub(super) version: String,
}

/// An event of a watch.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    /// ADDED or MODIFIED.
    Set(Item),
    /// DELETED.
    Gone { namespace: String, name: String, version: String },
    /// Everything up to this version has been told.
    Bookmark { version: String, initial_end: bool },
    /// The server ends the watch with a Status.
    Error(Refusal),
}

/// A Status that says no.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    /// HTTP status code; 0: the server gave none.
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
}

/// Something that is not what an API server says.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server's answer cannot be read: {0}")]
pub(super) struct Malformed(pub(super) String);

impl From<serde_json::Error> for Malformed {
    fn from(e: serde_json::Error) -> Self {
        // Its place in the text says nothing to anybody; its words might quote a secret, so only the category stays.
        Malformed(format!("{:?} error in its JSON", e.classify()).to_lowercase())
    }
}

/// Reads a page of a list. `api_version` and `kind` are those that its items leave out.
pub(super) fn page(bytes: &[u8], what: What, api_version: &str, kind: &str) -> Result<Page, Malformed> {
    let mut d = serde_json::Deserializer::from_slice(bytes);
    let mut page = PageSeed { sieve: Sieve::new(Keep::of(what)) }.deserialize(&mut d)?;
    d.end()?;
    for item in &mut page.items {
        imply(&mut item.tree, api_version, kind);
    }
    Ok(page)
}

/// Reads a line of a watch.
pub(super) fn event(line: &[u8], what: What, api_version: &str, kind: &str) -> Result<Event, Malformed> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(rename = "type", borrow)]
        word: std::borrow::Cow<'a, str>,
    }
    #[derive(Deserialize)]
    struct Body<T> {
        object: T,
    }
    // The type may stand behind the object, and says how to read it: skipping is cheap.
    let head: Head<'_> = serde_json::from_slice(line)?;
    match &*head.word {
        "ADDED" | "MODIFIED" | "DELETED" => {
            let mut d = serde_json::Deserializer::from_slice(line);
            let mut item = EventSeed { sieve: Sieve::new(Keep::of(what)) }.deserialize(&mut d)?;
            if head.word == "DELETED" {
                return Ok(Event::Gone { namespace: item.namespace, name: item.name, version: item.version });
            }
            imply(&mut item.tree, api_version, kind);
            Ok(Event::Set(item))
        }
        "BOOKMARK" => {
            #[derive(Deserialize)]
            struct Marked {
                metadata: Mark,
            }
            #[derive(Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Mark {
                resource_version: String,
                #[serde(default)]
                annotations: Option<std::collections::BTreeMap<String, String>>,
            }
            let mark = serde_json::from_slice::<Body<Marked>>(line)?.object.metadata;
            let initial_end =
                mark.annotations.is_some_and(|a| a.get(INITIAL_END).is_some_and(|v| v == "true"));
            Ok(Event::Bookmark { version: mark.resource_version, initial_end })
        }
        "ERROR" => Ok(Event::Error(serde_json::from_slice::<Body<Refusal>>(line)?.object)),
        other => Err(Malformed(format!("{other:?} is no event of a watch"))),
    }
}

/// Reads the body of an answer that is no success.
pub(super) fn refusal(code: u16, body: &[u8]) -> Refusal {
    let mut refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
    refusal.code = code;
    refusal
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if !self.reason.is_empty() {
            write!(f, " {}", self.reason)?;
        }
        match self.message.lines().next() {
            Some(line) if !line.is_empty() => write!(f, ": {}", line.chars().take(300).collect::<String>()),
            _ => Ok(()),
        }
    }
}

/// Items of a typed list do not say what they are.
fn imply(tree: &mut Tree, api_version: &str, kind: &str) {
    let Value::Map(entries) = &mut tree.value else { return };
    for (key, text) in [("apiVersion", api_version), ("kind", kind)] {
        if !entries.iter().any(|e| &*e.key == key) {
            let tree = Tree { line: 0, value: Value::Text(text.into()) };
            entries.push(Entry { key: key.into(), line: 0, tree });
        }
    }
}

impl Item {
    /// `None`: it has no name.
    fn new(mut tree: Tree) -> Option<Self> {
        let text = |key: &str| tree.get("metadata").and_then(|m| m.text(key)).map(str::to_owned);
        let name = text("name").filter(|name| !name.is_empty())?;
        let namespace = text("namespace").unwrap_or_default();
        let version = text("resourceVersion").unwrap_or_default();
        // Told apart from the rest: a version that moves is no change of the object.
        if let Value::Map(entries) = &mut tree.value
            && let Some(metadata) = entries.iter_mut().find(|e| &*e.key == "metadata")
            && let Value::Map(fields) = &mut metadata.tree.value
        {
            fields.retain(|e| &*e.key != "resourceVersion");
        }
        Some(Item { namespace, name, version, tree })
    }
}

struct PageSeed {
    sieve: Sieve,
}

impl<'de> DeserializeSeed<'de> for PageSeed {
    type Value = Page;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Page, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PageSeed {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page, A::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Meta {
            resource_version: Option<String>,
            #[serde(rename = "continue")]
            next: Option<String>,
        }
        let mut page = Page::default();
        let mut listed = false;
        while let Some(key) = map.next_key::<Box<str>>()? {
            match &*key {
                "metadata" => {
                    let meta: Meta = map.next_value()?;
                    page.version = meta.resource_version.unwrap_or_default();
                    page.next = meta.next.filter(|next| !next.is_empty());
                }
                "items" => {
                    listed = true;
                    map.next_value_seed(Items { sieve: self.sieve, items: &mut page.items })?;
                }
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        if !listed {
            return Err(A::Error::custom("no items"));
        }
        Ok(page)
    }
}

struct Items<'a> {
    sieve: Sieve,
    items: &'a mut Vec<Item>,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    /// `items: null` is how Go writes none.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(tree) = seq.next_element_seed(self.sieve)? {
            self.items.push(Item::new(tree).ok_or_else(|| A::Error::custom("an object without a name"))?);
        }
        Ok(())
    }
}

struct EventSeed {
    sieve: Sieve,
}

impl<'de> DeserializeSeed<'de> for EventSeed {
    type Value = Item;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Item, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EventSeed {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        let mut item = None;
        while let Some(key) = map.next_key::<Box<str>>()? {
            match &*key {
                "object" => item = Item::new(map.next_value_seed(self.sieve)?),
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        item.ok_or_else(|| A::Error::custom("an event without a named object"))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::source::Kind;

    const WHAT: What = What::Objects(Kind::Namespace);

    fn read(line: &str) -> Result<Event, Malformed> {
        event(line.as_bytes(), WHAT, "v1", "Namespace")
    }

    #[test]
    fn a_page_gives_its_items_and_where_to_go_on() {
        let text = r#"{"kind":"NamespaceList","apiVersion":"v1","metadata":{"resourceVersion":"7","continue":"abc"},
            "items":[{"metadata":{"name":"a","resourceVersion":"3"}},{"metadata":{"name":"b","resourceVersion":"5"}}]}"#;
        let page = page(text.as_bytes(), WHAT, "v1", "Namespace").unwrap();
        assert_eq!((page.version.as_str(), page.next.as_deref()), ("7", Some("abc")));
        assert_eq!(
            page.items.iter().map(|i| (&*i.name, &*i.version)).collect::<Vec<_>>(),
            [("a", "3"), ("b", "5")]
        );
        assert_eq!(page.items[0].tree.text("kind"), Some("Namespace"));
        assert_eq!(page.items[0].tree.get("metadata").unwrap().text("resourceVersion"), None);
    }

    #[rstest]
    #[case(r#"{"metadata":{"resourceVersion":"7","continue":""},"items":null}"#)]
    #[case(r#"{"metadata":{"resourceVersion":"7"},"items":[]}"#)]
    fn an_empty_page_is_the_last(#[case] text: &str) {
        let page = page(text.as_bytes(), WHAT, "v1", "Namespace").unwrap();
        assert_eq!((page.items.len(), page.next, page.version.as_str()), (0, None, "7"));
    }

    #[rstest]
    #[case("{}")]
    #[case("")]
    #[case("<html>")]
    #[case(r#"{"metadata":{},"items":[{"metadata":{}}]}"#)]
    #[case(r#"{"metadata":{},"items":[]} trailing"#)]
    fn what_is_no_page_is_refused(#[case] text: &str) {
        assert!(page(text.as_bytes(), WHAT, "v1", "Namespace").is_err());
    }

    #[test]
    fn events_of_every_type_are_read() {
        let object =
            r#"{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"a","resourceVersion":"9"}}"#;
        for word in ["ADDED", "MODIFIED"] {
            let line = format!(r#"{{"object":{object},"type":"{word}"}}"#);
            assert!(matches!(read(&line), Ok(Event::Set(item)) if item.name == "a" && item.version == "9"));
        }
        let line = format!(r#"{{"type":"DELETED","object":{object}}}"#);
        let gone = Event::Gone { namespace: String::new(), name: "a".into(), version: "9".into() };
        assert_eq!(read(&line), Ok(gone));
        let mark = |more: &str| {
            format!(r#"{{"type":"BOOKMARK","object":{{"metadata":{{"resourceVersion":"12"{more}}}}}}}"#)
        };
        assert_eq!(read(&mark("")), Ok(Event::Bookmark { version: "12".into(), initial_end: false }));
        let end = mark(r#","annotations":{"k8s.io/initial-events-end":"true"}"#);
        assert_eq!(read(&end), Ok(Event::Bookmark { version: "12".into(), initial_end: true }));
        let error = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#;
        assert!(
            matches!(read(error), Ok(Event::Error(refusal)) if refusal.to_string() == "410 Expired: too old")
        );
        assert!(read(r#"{"type":"SURPRISE","object":{}}"#).is_err());
    }

    #[test]
    fn a_complaint_quotes_nothing_of_what_was_read() {
        let line = r#"{"type":"ADDED","object":{"metadata":{"name":"a"},"data":{"password":"hunter2"#;
        let error = event(line.as_bytes(), What::Objects(Kind::Secret), "v1", "Secret").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(text in r#"[\{\}\[\]":,a-e0-9 \\]{0,120}"#) {
            let _ = read(&text);
            let _ = page(text.as_bytes(), WHAT, "v1", "Namespace");
        }
    }
}
