//! What the server has of one resource, followed: what to ask next, and what each answer changes.
//!
//! Pure. Of each object only a fingerprint is kept, enough to tell a change from a repetition; the objects themselves live
//! behind the source. Reading all again (the server has forgotten our version, or is not the one it was) compares with
//! what is held: nothing is swept before the last page is in.
//!
//! ```text
//!            sendInitialEvents refused
//!   Stream ----------------------------> List (page after page)
//!     | initial-events-end                 | last page
//!     +---------------> Watch <------------+
//!                       |   ^
//!     connection lost   v   | its version is not older than ours
//!                       Probe ----> it is: read all again
//!   410 Gone, or a version that runs backwards: read all again
//! ```

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::wire::{Event, Item, Page, Refusal};
use crate::source::tree::{Tree, Value};

/// What to ask the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// A watch that begins with all objects.
    Stream,
    /// A page of the list; the first, or the one behind this token.
    Page(Option<String>),
    /// What happens from this version on.
    Watch(String),
    /// The version that the server is at: a page of one object.
    Probe,
}

/// What an answer changes.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    /// New, or not as it was; `known`: an older version of it was held.
    Set { item: Item, known: bool },
    /// Gone.
    Gone { namespace: String, name: String },
}

/// What came of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Go on reading.
    More,
    /// All that the server has is known now.
    CaughtUp,
    /// The rest of this watch is of no use: ask again.
    AskAgain,
    /// The server ends the watch for a reason that waiting may mend.
    Refused(Refusal),
}

/// One resource as far as it is known.
#[derive(Debug)]
pub(super) struct Reflector {
    held: HashMap<Box<str>, Held>,
    /// Objects found in the present reading bear its number; the others go when it is complete.
    reading: u32,
    phase: Phase,
    /// The server is not known to lack streaming lists.
    streams: bool,
    hasher: RandomState,
}

#[derive(Debug)]
struct Held {
    print: u64,
    reading: u32,
}

#[derive(Debug)]
enum Phase {
    Stream,
    List { next: Option<String> },
    Watch { version: String, suspect: bool },
}

impl Reflector {
    /// A resource of which nothing is known.
    pub(super) fn new() -> Self {
        Reflector {
            held: HashMap::new(),
            reading: 0,
            phase: Phase::Stream,
            streams: true,
            hasher: RandomState::new(),
        }
    }

    pub(super) fn ask(&self) -> Ask {
        match &self.phase {
            Phase::Stream => Ask::Stream,
            Phase::List { next } => Ask::Page(next.clone()),
            Phase::Watch { suspect: true, .. } => Ask::Probe,
            Phase::Watch { version, .. } => Ask::Watch(version.clone()),
        }
    }

    /// Whether anything is held.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes a page of the list.
    pub(super) fn page(&mut self, page: Page, changes: &mut Vec<Change>) -> Told {
        let Phase::List { next } = &mut self.phase else { return Told::AskAgain };
        next.clone_from(&page.next);
        for item in page.items {
            self.set(item, changes);
        }
        if page.next.is_some() {
            return Told::More;
        }
        self.complete(page.version, changes);
        Told::CaughtUp
    }

    /// Takes an event of a watch, with or without initial events.
    pub(super) fn event(&mut self, event: Event, changes: &mut Vec<Change>) -> Told {
        if let Phase::Watch { version: ours, .. } = &mut self.phase
            && let Some(theirs) = event.version()
        {
            if runs_backwards(ours, theirs) {
                // Another history than the one that we know: a server restored from a backup, say.
                self.read_all();
                return Told::AskAgain;
            }
            theirs.clone_into(ours);
        }
        match event {
            Event::Set(item) => self.set(item, changes),
            Event::Gone { namespace, name, .. } => {
                if self.held.remove(&*place(&namespace, &name)).is_some() {
                    changes.push(Change::Gone { namespace, name });
                }
            }
            Event::Bookmark { version, initial_end: true } => {
                self.complete(version, changes);
                return Told::CaughtUp;
            }
            Event::Bookmark { .. } => {}
            Event::Error(refusal) if expired(&refusal) => {
                self.read_all();
                return Told::AskAgain;
            }
            Event::Error(refusal) => return Told::Refused(refusal),
        }
        Told::More
    }

    /// Takes the server's version, asked for by [`Ask::Probe`].
    pub(super) fn probed(&mut self, theirs: &str) {
        let Phase::Watch { version, suspect } = &mut self.phase else { return };
        *suspect = false;
        if runs_backwards(version, theirs) {
            self.read_all();
        }
    }

    /// The connection broke, or ended sooner than agreed: the server may be another one when it is back. One whose
    /// history is shorter than ours would keep a watch from our version waiting without a word.
    pub(super) fn interrupted(&mut self) {
        match &mut self.phase {
            Phase::Watch { suspect, .. } => *suspect = true,
            // Initial events come from the start again; pages go on where they were.
            Phase::Stream => self.read_all(),
            Phase::List { .. } => {}
        }
    }

    /// The server said no to what [`Self::ask`] asked. True: ask again at once, something else.
    pub(super) fn refused(&mut self, refusal: &Refusal) -> bool {
        if matches!(self.phase, Phase::Stream) && matches!(refusal.code, 400 | 422) {
            self.streams = false;
            self.read_all();
            return true;
        }
        // A server that is behind the version that we ask for is another one too, or will catch up: reading all tells.
        if expired(refusal) || refusal.reason == "ResourceVersionTooLarge" {
            let reading = matches!(self.phase, Phase::Stream | Phase::List { next: None });
            self.read_all();
            return !reading;
        }
        false
    }

    /// The resource is gone from the server, and all its objects with it.
    pub(super) fn absent(&mut self, changes: &mut Vec<Change>) {
        self.read_all();
        self.sweep(changes);
    }

    fn read_all(&mut self) {
        self.reading = self.reading.wrapping_add(1);
        self.phase = if self.streams { Phase::Stream } else { Phase::List { next: None } };
    }

    fn complete(&mut self, version: String, changes: &mut Vec<Change>) {
        if !matches!(self.phase, Phase::Watch { .. }) {
            self.sweep(changes);
            self.phase = Phase::Watch { version, suspect: false };
        }
    }

    fn sweep(&mut self, changes: &mut Vec<Change>) {
        let reading = self.reading;
        self.held.retain(|place, held| {
            let stays = held.reading == reading;
            if !stays {
                let (namespace, name) = place.split_once('/').expect("a place has a slash");
                changes.push(Change::Gone { namespace: namespace.to_owned(), name: name.to_owned() });
            }
            stays
        });
        // A million objects that are gone should not keep their room.
        if self.held.capacity() > 4 * self.held.len() {
            self.held.shrink_to_fit();
        }
    }

    fn set(&mut self, item: Item, changes: &mut Vec<Change>) {
        let print = print(&self.hasher, &item.tree);
        let held = Held { print, reading: self.reading };
        let old = self.held.insert(place(&item.namespace, &item.name), held);
        if old.as_ref().is_none_or(|old| old.print != print) {
            changes.push(Change::Set { item, known: old.is_some() });
        }
    }
}

impl Event {
    /// The version that the server was at when it said this; `None`: it does not say.
    fn version(&self) -> Option<&str> {
        let version = match self {
            Event::Set(item) => &item.version,
            Event::Gone { version, .. } | Event::Bookmark { version, .. } => version,
            Event::Error(_) => return None,
        };
        (!version.is_empty()).then_some(version)
    }
}

/// Neither names nor namespaces have a slash.
fn place(namespace: &str, name: &str) -> Box<str> {
    format!("{namespace}/{name}").into_boxed_str()
}

/// 410 Gone, in an answer or in an event.
fn expired(refusal: &Refusal) -> bool {
    refusal.code == 410 || matches!(&*refusal.reason, "Expired" | "Gone")
}

/// Versions are opaque, but those of Kubernetes' own storage are numbers that grow; others are not judged.
fn runs_backwards(ours: &str, theirs: &str) -> bool {
    matches!((ours.parse::<u64>(), theirs.parse::<u64>()), (Ok(ours), Ok(theirs)) if theirs < ours)
}

/// 64 bits of a keyed hash: nobody outside can choose two versions of an object that look alike.
fn print(state: &RandomState, tree: &Tree) -> u64 {
    fn walk(hasher: &mut impl Hasher, tree: &Tree) {
        let text = |hasher: &mut _, text: &str| {
            Hasher::write_usize(hasher, text.len());
            Hasher::write(hasher, text.as_bytes());
        };
        match &tree.value {
            Value::Null => hasher.write_u8(0),
            Value::Bool(v) => hasher.write_u16(1 | u16::from(*v) << 8),
            Value::Unsigned(v) => (hasher.write_u8(2), hasher.write_u64(*v)).1,
            Value::Signed(v) => (hasher.write_u8(3), hasher.write_i64(*v)).1,
            Value::Float(v) => (hasher.write_u8(4), hasher.write_u64(v.to_bits())).1,
            Value::Text(v) => (hasher.write_u8(5), text(hasher, v)).1,
            Value::List(items) => {
                hasher.write_u8(6);
                hasher.write_usize(items.len());
                items.iter().for_each(|item| walk(hasher, item));
            }
            Value::Map(entries) => {
                hasher.write_u8(7);
                hasher.write_usize(entries.len());
                for entry in entries {
                    text(hasher, &entry.key);
                    walk(hasher, &entry.tree);
                }
            }
        }
    }
    let mut hasher = state.build_hasher();
    walk(&mut hasher, tree);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, team: &str, version: u64) -> Item {
        let value = Value::Text(team.into());
        let tree = Tree { line: 0, value };
        Item { namespace: "ns".into(), name: name.into(), version: version.to_string(), tree }
    }

    fn bookmark(version: u64, initial_end: bool) -> Event {
        Event::Bookmark { version: version.to_string(), initial_end }
    }

    fn refusal(code: u16) -> Refusal {
        Refusal { code, ..Refusal::default() }
    }

    fn words(changes: Vec<Change>) -> Vec<String> {
        let word = |change| match change {
            Change::Set { item, known } => format!("{} {}", if known { "change" } else { "new" }, item.name),
            Change::Gone { name, .. } => format!("gone {name}"),
        };
        let mut words: Vec<_> = changes.into_iter().map(word).collect();
        words.sort();
        words
    }

    /// Plays events and tells what they changed and what the last one led to.
    fn play(reflector: &mut Reflector, events: Vec<Event>) -> (Vec<String>, Told) {
        let mut changes = Vec::new();
        let mut told = Told::More;
        for event in events {
            told = reflector.event(event, &mut changes);
        }
        (words(changes), told)
    }

    /// A reflector that holds `a` and `b` as of version 10.
    fn caught_up() -> Reflector {
        let mut reflector = Reflector::new();
        let events =
            vec![Event::Set(item("a", "red", 3)), Event::Set(item("b", "red", 9)), bookmark(10, true)];
        assert_eq!(play(&mut reflector, events), (vec!["new a".to_owned(), "new b".into()], Told::CaughtUp));
        assert_eq!(reflector.ask(), Ask::Watch("10".into()));
        reflector
    }

    #[test]
    fn a_stream_catches_up_at_its_marked_bookmark_and_goes_on_as_a_watch() {
        let mut reflector = caught_up();
        let gone = Event::Gone { namespace: "ns".into(), name: "b".into(), version: "13".into() };
        let (changes, _) =
            play(&mut reflector, vec![Event::Set(item("a", "blue", 12)), gone, bookmark(20, false)]);
        assert_eq!(changes, ["change a", "gone b"]);
        assert_eq!(reflector.ask(), Ask::Watch("20".into()));
    }

    #[test]
    fn a_repetition_is_no_change() {
        let mut reflector = caught_up();
        assert!(play(&mut reflector, vec![Event::Set(item("a", "red", 11))]).0.is_empty());
    }

    #[test]
    fn after_410_all_is_read_again_and_only_the_difference_is_told() {
        let mut reflector = caught_up();
        let (_, told) = play(&mut reflector, vec![Event::Error(refusal(410))]);
        assert_eq!((told, reflector.ask()), (Told::AskAgain, Ask::Stream));
        let again = vec![Event::Set(item("a", "red", 30)), Event::Set(item("c", "red", 31))];
        assert_eq!(play(&mut reflector, again).0, ["new c"], "nothing is swept before the end");
        assert_eq!(play(&mut reflector, vec![bookmark(32, true)]).0, ["gone b"]);
    }

    #[test]
    fn a_server_without_streaming_lists_is_read_in_pages() {
        let mut reflector = Reflector::new();
        assert!(reflector.refused(&refusal(422)));
        assert_eq!(reflector.ask(), Ask::Page(None));
        let mut changes = Vec::new();
        let first = Page { items: vec![item("a", "red", 1)], next: Some("t".into()), version: "5".into() };
        assert_eq!(reflector.page(first, &mut changes), Told::More);
        assert_eq!(reflector.ask(), Ask::Page(Some("t".into())));
        // The connection breaks: the same page is asked for again.
        reflector.interrupted();
        assert_eq!(reflector.ask(), Ask::Page(Some("t".into())));
        let last = Page { items: vec![item("b", "red", 2)], next: None, version: "5".into() };
        assert_eq!(reflector.page(last, &mut changes), Told::CaughtUp);
        assert_eq!(words(changes), ["new a", "new b"]);
        assert_eq!(reflector.ask(), Ask::Watch("5".into()));
    }

    #[test]
    fn a_page_token_that_expired_begins_the_list_again() {
        let mut reflector = Reflector::new();
        reflector.refused(&refusal(400));
        let first = Page { items: vec![item("a", "red", 1)], next: Some("t".into()), version: "5".into() };
        reflector.page(first, &mut Vec::new());
        assert!(reflector.refused(&refusal(410)));
        assert_eq!(reflector.ask(), Ask::Page(None));
        // A server that answers 410 to a first page is asked again, but not at once.
        assert!(!reflector.refused(&refusal(410)));
        let mut changes = Vec::new();
        reflector.page(Page { items: vec![], next: None, version: "9".into() }, &mut changes);
        assert_eq!(words(changes), ["gone a"]);
    }

    #[test]
    fn a_stream_that_breaks_begins_again_and_sweeps_by_the_second_reading_alone() {
        let mut reflector = Reflector::new();
        play(&mut reflector, vec![Event::Set(item("a", "red", 1))]);
        reflector.interrupted();
        assert_eq!(reflector.ask(), Ask::Stream);
        let (changes, _) = play(&mut reflector, vec![Event::Set(item("b", "red", 2)), bookmark(3, true)]);
        assert_eq!(changes, ["gone a", "new b"]);
    }

    #[test]
    fn after_a_break_the_servers_version_is_compared() {
        let mut reflector = caught_up();
        reflector.interrupted();
        assert_eq!(reflector.ask(), Ask::Probe);
        reflector.probed("11");
        assert_eq!(reflector.ask(), Ask::Watch("10".into()));
        reflector.interrupted();
        reflector.probed("4");
        assert_eq!(reflector.ask(), Ask::Stream);
    }

    #[test]
    fn an_event_from_before_our_version_is_another_history() {
        for event in [Event::Set(item("a", "blue", 4)), bookmark(4, false)] {
            let mut reflector = caught_up();
            assert_eq!(play(&mut reflector, vec![event]), (vec![], Told::AskAgain));
            assert_eq!(reflector.ask(), Ask::Stream);
        }
    }

    #[test]
    fn versions_that_are_no_numbers_are_not_judged() {
        let mut reflector = Reflector::new();
        let mark = |text: &str, initial_end| Event::Bookmark { version: text.into(), initial_end };
        play(&mut reflector, vec![mark("x9", true), mark("x1", false)]);
        assert_eq!(reflector.ask(), Ask::Watch("x1".into()));
    }

    #[test]
    fn other_refusals_change_nothing() {
        let mut reflector = caught_up();
        assert!(!reflector.refused(&refusal(500)));
        let (_, told) = play(&mut reflector, vec![Event::Error(refusal(500))]);
        assert_eq!(told, Told::Refused(refusal(500)));
        assert_eq!(reflector.ask(), Ask::Watch("10".into()));
    }

    #[test]
    fn a_resource_that_is_gone_takes_its_objects_along() {
        let mut reflector = caught_up();
        let mut changes = Vec::new();
        reflector.absent(&mut changes);
        assert_eq!(words(changes), ["gone a", "gone b"]);
        assert!(reflector.is_empty());
    }
}
