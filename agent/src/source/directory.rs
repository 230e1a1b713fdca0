//! What a directory of manifests says as a whole: the files' objects merged, and the difference from what was said before.
//!
//! Pure: the files' texts come in, updates go out. Only objects that really changed go out, and what goes out depends on
//! the files as they are now and were at the last turn, not on the order in which they changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::manifest::{self, Manifest, Note};
use super::{Object, ObjectKey, Problem, Update};

/// A file as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has this text.
    Text(String),
    /// It is there, but cannot be read, for this reason; the line is of what cannot be read in it, if anything.
    Unreadable(Option<u32>, String),
    /// It is gone.
    Gone,
}

/// The merged state of a directory.
#[derive(Debug, Default)]
pub struct Directory {
    files: BTreeMap<Arc<str>, File>,
    objects: BTreeMap<Arc<ObjectKey>, Claims>,
    /// Objects claimed more than once.
    contested: BTreeSet<Arc<ObjectKey>>,
    /// Why the directory itself cannot be read, if so.
    trouble: Option<String>,
    problems: Vec<Problem>,
    read_once: bool,
    in_sync: bool,
}

/// Who claims an object, by file name and position; the first one wins.
type Claims = BTreeMap<(Arc<str>, usize), Claim>;

#[derive(Debug)]
struct Claim {
    line: u32,
    object: Arc<Object>,
}

#[derive(Debug, Default)]
struct File {
    /// Keys of its objects, by position: those of its last readable text.
    keys: Vec<Arc<ObjectKey>>,
    /// What to tell about its last readable text.
    notes: Vec<Note>,
    /// Why its present text cannot be used; empty: it can.
    faults: Vec<Note>,
    /// It has been readable before, so that what it said then is in force.
    read_once: bool,
}

impl Directory {
    /// A directory of which nothing is known yet.
    pub fn new() -> Self {
        Directory::default()
    }

    /// Takes in what happened to files since the last turn (at the first turn: all files) and tells what follows.
    /// `Err`: the directory itself cannot be read; what it said stays in force.
    pub fn turn(&mut self, changes: Result<BTreeMap<String, Change>, String>) -> Vec<Update> {
        let mut before: BTreeMap<Arc<ObjectKey>, Option<Arc<Object>>> = BTreeMap::new();
        match changes {
            Ok(changes) => {
                self.trouble = None;
                self.read_once = true;
                for (name, change) in changes {
                    self.change(Arc::from(name), change, &mut before);
                }
            }
            Err(reason) => self.trouble = Some(reason),
        }
        let mut removed = Vec::new();
        let mut set = Vec::new();
        for (key, old) in before {
            match (old, self.winner(&key)) {
                (Some(_), None) => removed.push(Update::Remove((*key).clone())),
                (old, Some(new)) if old.as_ref() != Some(new) => set.push(Update::Set(new.clone())),
                _ => {}
            }
        }
        let mut updates = removed;
        updates.append(&mut set);
        let problems = self.collect_problems();
        if problems != self.problems {
            self.problems.clone_from(&problems);
            updates.push(Update::Problems(problems));
        }
        if !self.in_sync && self.complete() {
            self.in_sync = true;
            updates.push(Update::InSync);
        }
        updates
    }

    /// Everything there is has been readable once. A directory without a single manifest is more often a mount that is
    /// not there yet than a wish for nothing: acting on it would sweep all that a predecessor left in the kernel.
    fn complete(&self) -> bool {
        self.read_once && !self.files.is_empty() && self.files.values().all(|f| f.read_once)
    }

    fn winner(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)?.values().next().map(|claim| &claim.object)
    }

    fn change(
        &mut self,
        name: Arc<str>,
        change: Change,
        before: &mut BTreeMap<Arc<ObjectKey>, Option<Arc<Object>>>,
    ) {
        let faults = match change {
            Change::Gone => {
                if let Some(file) = self.files.remove(&name) {
                    self.retract(&name, &file.keys, before);
                }
                return;
            }
            Change::Text(text) => match manifest::parse(&text) {
                Ok(manifest) => return self.replace(name, manifest, before),
                Err(faults) => faults,
            },
            Change::Unreadable(line, reason) => vec![Note { line, object: None, reason }],
        };
        self.files.entry(name).or_default().faults = faults;
    }

    fn replace(
        &mut self,
        name: Arc<str>,
        manifest: Manifest,
        before: &mut BTreeMap<Arc<ObjectKey>, Option<Arc<Object>>>,
    ) {
        if let Some(old) = self.files.remove(&name) {
            self.retract(&name, &old.keys, before);
        }
        let mut keys = Vec::with_capacity(manifest.objects.len());
        for (position, found) in manifest.objects.into_iter().enumerate() {
            before.entry(found.key.clone()).or_insert_with(|| {
                self.objects.get(&found.key).and_then(|c| c.values().next()).map(|c| c.object.clone())
            });
            let claims = self.objects.entry(found.key.clone()).or_default();
            claims.insert((name.clone(), position), Claim { line: found.line, object: found.object });
            if claims.len() > 1 {
                self.contested.insert(found.key.clone());
            }
            keys.push(found.key);
        }
        self.files.insert(name, File { keys, notes: manifest.notes, faults: Vec::new(), read_once: true });
    }

    fn retract(
        &mut self,
        name: &Arc<str>,
        keys: &[Arc<ObjectKey>],
        before: &mut BTreeMap<Arc<ObjectKey>, Option<Arc<Object>>>,
    ) {
        for (position, key) in keys.iter().enumerate() {
            before.entry(key.clone()).or_insert_with(|| self.winner(key).cloned());
            let claims = self.objects.get_mut(key).expect("every key of a file has its claim");
            claims.remove(&(name.clone(), position));
            if claims.len() < 2 {
                self.contested.remove(key);
            }
            if claims.is_empty() {
                self.objects.remove(key);
            }
        }
    }

    fn collect_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let of_all = |reason: &str, stale: bool| Problem {
            file: None,
            line: None,
            object: None,
            reason: reason.to_owned(),
            effect: if stale { "what it said before stays in force" } else { "" },
            stale,
        };
        if let Some(reason) = &self.trouble {
            problems.push(of_all(reason, self.in_sync));
        } else if self.read_once && self.files.is_empty() && !self.in_sync {
            let reason = "no manifest in the directory yet: waiting for the first *.yaml, *.yml or *.json";
            problems.push(of_all(reason, false));
        }
        for (name, file) in &self.files {
            let problem = |note: &Note, effect: &'static str, stale: bool| Problem {
                file: Some(name.to_string()),
                line: note.line,
                object: note.object.clone(),
                reason: note.reason.clone(),
                effect,
                stale,
            };
            let effect = if file.read_once {
                "what the file said before stays in force"
            } else {
                "nothing in the file is in force"
            };
            problems.extend(file.faults.iter().map(|n| problem(n, effect, file.read_once)));
            problems.extend(file.notes.iter().map(|n| problem(n, "", false)));
        }
        for key in &self.contested {
            problems.extend(contest(key, &self.objects[key]));
        }
        problems.sort();
        problems
    }
}

/// An object with several claims: each place is named, the losers say who won.
fn contest(key: &ObjectKey, claims: &Claims) -> Vec<Problem> {
    let place = |((file, _), claim): (&(Arc<str>, usize), &Claim)| format!("{file}:{}", claim.line);
    let places: Vec<String> = claims.iter().map(place).collect();
    let (winner, losers) = places.split_first().expect("contested objects have claims");
    let reason = |i: usize| match i {
        0 => format!("also in {}; this one is in force", losers.join(", ")),
        _ => format!("also in {winner}, which is in force: this one has no effect; remove one"),
    };
    claims
        .iter()
        .enumerate()
        .map(|(i, ((file, _), claim))| Problem {
            file: Some(file.to_string()),
            line: Some(claim.line),
            object: Some(key.to_string()),
            reason: reason(i),
            effect: "",
            stale: false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn namespace(name: &str, team: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{team: {team}}}}}\n"
        )
    }

    fn turn(dir: &mut Directory, changes: &[(&str, Option<&str>)]) -> Vec<String> {
        let changes = changes.iter().map(|(name, text)| {
            ((*name).to_owned(), text.map_or(Change::Gone, |t| Change::Text(t.to_owned())))
        });
        describe(&dir.turn(Ok(changes.collect())))
    }

    fn describe(updates: &[Update]) -> Vec<String> {
        updates
            .iter()
            .map(|u| match u {
                Update::Set(object) => match &**object {
                    Object::Namespace(ns) => {
                        format!("set {} {}", ns.name, ns.labels.get("team").map_or("-", |t| &**t))
                    }
                    other => format!("set {}", other.key()),
                },
                Update::Remove(key) => format!("remove {}", key.name),
                Update::Problems(problems) => {
                    let mut line = "problems".to_owned();
                    for p in problems {
                        let file = p.file.as_deref().unwrap_or("-");
                        let at = p.line.map_or("-".to_owned(), |l| l.to_string());
                        write!(line, " {file}:{at}{}", if p.stale { " stale" } else { "" }).unwrap();
                    }
                    line
                }
                Update::InSync => "in sync".to_owned(),
            })
            .collect()
    }

    #[test]
    fn the_first_turn_tells_all_and_that_this_was_all() {
        let mut dir = Directory::new();
        assert_eq!(turn(&mut dir, &[("a.yaml", Some(&namespace("x", "red")))]), ["set x red", "in sync"]);
    }

    #[test]
    fn only_what_changed_is_told_later() {
        let mut dir = Directory::new();
        let two = |x: &str, y: &str| namespace("x", x) + &namespace("y", y);
        turn(&mut dir, &[("a.yaml", Some(&two("red", "red")))]);
        assert!(turn(&mut dir, &[("a.yaml", Some(&two("red", "red")))]).is_empty());
        assert_eq!(turn(&mut dir, &[("a.yaml", Some(&two("red", "blue")))]), ["set y blue"]);
        assert_eq!(turn(&mut dir, &[("a.yaml", Some(&namespace("y", "blue")))]), ["remove x"]);
        assert_eq!(turn(&mut dir, &[("a.yaml", None)]), ["remove y"]);
    }

    #[test]
    fn a_renamed_file_changes_nothing() {
        let mut dir = Directory::new();
        let text = namespace("x", "red");
        turn(&mut dir, &[("b.yaml", Some(&text))]);
        assert!(turn(&mut dir, &[("a.yaml", Some(&text)), ("b.yaml", None)]).is_empty());
        assert!(turn(&mut dir, &[("a.yaml", None), ("b.yaml", Some(&text))]).is_empty());
    }

    #[test]
    fn a_file_that_becomes_unreadable_stays_in_force_as_it_was() {
        let mut dir = Directory::new();
        turn(&mut dir, &[("a.yaml", Some(&namespace("x", "red"))), ("b.yaml", Some(&namespace("y", "red")))]);
        assert_eq!(turn(&mut dir, &[("a.yaml", Some("kind: [\n"))]), ["problems a.yaml:1 stale"]);
        assert_eq!(turn(&mut dir, &[("a.yaml", Some(&namespace("x", "blue")))]), ["set x blue", "problems"]);
        turn(&mut dir, &[("a.yaml", Some("nonsense"))]);
        assert_eq!(turn(&mut dir, &[("a.yaml", None)]), ["remove x", "problems"]);
    }

    #[test]
    fn one_bad_object_keeps_its_whole_file_as_it_was() {
        let mut dir = Directory::new();
        turn(&mut dir, &[("a.yaml", Some(&(namespace("x", "red") + &namespace("y", "red"))))]);
        let edited =
            namespace("x", "blue") + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: y, labels: 5}\n";
        assert_eq!(turn(&mut dir, &[("a.yaml", Some(&edited))]), ["problems a.yaml:8 stale"]);
    }

    #[test]
    fn a_file_unreadable_from_the_start_keeps_the_source_out_of_sync() {
        let mut dir = Directory::new();
        assert_eq!(
            turn(&mut dir, &[("a.yaml", Some(&namespace("x", "red"))), ("b.yaml", Some("kind: [\n"))]),
            ["set x red", "problems b.yaml:1"]
        );
        assert_eq!(turn(&mut dir, &[("b.yaml", None)]), ["problems", "in sync"]);
        // In sync is for good: a new bad file is a problem and no more.
        assert_eq!(turn(&mut dir, &[("c.yaml", Some("kind: [\n"))]), ["problems c.yaml:1"]);
    }

    #[test]
    fn an_empty_directory_is_waited_for() {
        let mut dir = Directory::new();
        assert_eq!(turn(&mut dir, &[]), ["problems -:-"]);
        assert_eq!(
            turn(&mut dir, &[("a.json", Some("{\"apiVersion\":\"v1\",\"kind\":\"Event\"}"))]),
            ["problems", "in sync"]
        );
        assert!(turn(&mut dir, &[("a.json", None)]).is_empty());
    }

    #[test]
    fn a_directory_that_cannot_be_read_changes_nothing() {
        let mut dir = Directory::new();
        assert_eq!(describe(&dir.turn(Err("gone".to_owned()))), ["problems -:-"]);
        turn(&mut dir, &[("a.yaml", Some(&namespace("x", "red")))]);
        assert_eq!(describe(&dir.turn(Err("gone".to_owned()))), ["problems -:- stale"]);
        assert!(describe(&dir.turn(Err("gone".to_owned()))).is_empty());
        assert_eq!(turn(&mut dir, &[]), ["problems"]);
    }

    #[test]
    fn the_first_file_name_wins_and_both_are_named() {
        let mut dir = Directory::new();
        assert_eq!(turn(&mut dir, &[("b.yaml", Some(&namespace("x", "blue")))]), ["set x blue", "in sync"]);
        assert_eq!(
            turn(&mut dir, &[("a.yaml", Some(&namespace("x", "red")))]),
            ["set x red", "problems a.yaml:2 b.yaml:2"]
        );
        assert!(turn(&mut dir, &[("b.yaml", Some(&namespace("x", "green")))]).is_empty());
        assert_eq!(turn(&mut dir, &[("a.yaml", None)]), ["set x green", "problems"]);
    }

    #[test]
    fn a_contest_names_the_other_place_and_who_won() {
        let mut dir = Directory::new();
        turn(
            &mut dir,
            &[("a.yaml", Some(&namespace("x", "red"))), ("b.yaml", Some(&namespace("x", "blue")))],
        );
        let reasons: Vec<_> = dir.problems.iter().map(|p| p.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "also in b.yaml:2; this one is in force",
                "also in a.yaml:2, which is in force: this one has no effect; remove one"
            ]
        );
        assert_eq!(dir.problems[0].object.as_deref(), Some("Namespace x"));
    }

    #[test]
    fn an_object_twice_in_one_file_is_a_contest_too() {
        let mut dir = Directory::new();
        let text = namespace("x", "red") + &namespace("x", "blue");
        assert_eq!(
            turn(&mut dir, &[("a.yaml", Some(&text))]),
            ["set x red", "problems a.yaml:2 a.yaml:6", "in sync"]
        );
        assert_eq!(turn(&mut dir, &[("a.yaml", None)]), ["remove x", "problems"]);
    }

    /// What a receiver of all updates holds.
    #[derive(Debug, Default, PartialEq)]
    struct Receiver {
        objects: BTreeMap<ObjectKey, Arc<Object>>,
        problems: Vec<Problem>,
    }

    impl Receiver {
        fn take(&mut self, updates: Vec<Update>) {
            for update in updates {
                match update {
                    Update::Set(object) => {
                        let old = self.objects.insert(object.key(), object.clone());
                        assert_ne!(old, Some(object), "only changes are told");
                    }
                    Update::Remove(key) => {
                        assert!(self.objects.remove(&key).is_some(), "only what was set is removed");
                    }
                    Update::Problems(problems) => {
                        assert_ne!(self.problems, problems, "only changes are told");
                        self.problems = problems;
                    }
                    Update::InSync => {}
                }
            }
        }
    }

    fn texts() -> impl Strategy<Value = String> {
        let namespaces = proptest::collection::vec((0..4_u8, 0..3_u8), 0..4).prop_map(|all| {
            all.iter().map(|(n, team)| namespace(&format!("n{n}"), &format!("t{team}"))).collect()
        });
        let bad = Just("kind: [\n".to_owned());
        let noted = Just("apiVersion: manx.dev/v9\nkind: BGPPeer\nmetadata: {name: p}\n".to_owned());
        prop_oneof![5 => namespaces, 1 => bad, 1 => noted]
    }

    proptest! {
        /// Whatever happened on the way, in however many turns: the receiver ends where a fresh reader of the last
        /// readable text of each file would.
        #[test]
        fn the_end_depends_on_the_files_and_not_on_the_way(
            steps in proptest::collection::vec((0..4_u8, proptest::option::of(texts()), any::<bool>()), 1..24)
        ) {
            let mut dir = Directory::new();
            let mut receiver = Receiver::default();
            let mut pending = BTreeMap::new();
            let mut readable: BTreeMap<String, Change> = BTreeMap::new();
            let last = steps.len() - 1;
            for (i, (file, text, flush)) in steps.into_iter().enumerate() {
                pending.insert(format!("f{file}.yaml"), text.map_or(Change::Gone, Change::Text));
                if !flush && i < last {
                    continue;
                }
                for (name, change) in &pending {
                    match change {
                        Change::Text(text) if manifest::parse(text).is_ok() => {
                            readable.insert(name.clone(), change.clone());
                        }
                        Change::Gone => _ = readable.remove(name),
                        Change::Text(_) | Change::Unreadable(..) => {}
                    }
                }
                receiver.take(dir.turn(Ok(std::mem::take(&mut pending))));
            }

            let mut fresh = Directory::new();
            let mut expected = Receiver::default();
            expected.take(fresh.turn(Ok(readable)));
            prop_assert_eq!(receiver.objects, expected.objects);
        }

        /// A permutation of the same changes, each its own turn, ends in the same state with the same problems.
        #[test]
        fn the_order_of_file_events_does_not_matter(
            (files, order) in proptest::collection::btree_map("[a-d]", texts(), 1..5)
                .prop_flat_map(|files| {
                    let order: Vec<_> = files.keys().cloned().collect();
                    (Just(files), Just(order).prop_shuffle())
                })
        ) {
            let run = |names: &[String]| {
                let mut dir = Directory::new();
                let mut receiver = Receiver::default();
                for name in names {
                    let change = BTreeMap::from([(name.clone(), Change::Text(files[name].clone()))]);
                    receiver.take(dir.turn(Ok(change)));
                }
                receiver
            };
            let sorted: Vec<_> = files.keys().cloned().collect();
            let one_by_one = run(&sorted);
            prop_assert_eq!(&run(&order), &one_by_one);
            let mut at_once = Receiver::default();
            let all = files.iter().map(|(n, t)| (n.clone(), Change::Text(t.clone()))).collect();
            at_once.take(Directory::new().turn(Ok(all)));
            prop_assert_eq!(at_once, one_by_one);
        }
    }
}
