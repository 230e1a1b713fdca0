//! A watched directory: whatever way files change, what is in force follows within a second.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use manx_agent::source::{Object, Problem, Update, manifest_dir};
use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;

/// The promise: changes take effect within a second.
const PROMISE: Duration = Duration::from_secs(1);

/// One who receives the updates and holds what they add up to.
struct Follower {
    updates: Receiver<Vec<Update>>,
    objects: BTreeMap<String, Arc<Object>>,
    problems: Vec<Problem>,
    in_sync: bool,
}

impl Follower {
    fn of(dir: impl Into<PathBuf>) -> Self {
        let updates = manifest_dir::spawn(dir.into()).unwrap();
        Follower { updates, objects: BTreeMap::new(), problems: Vec::new(), in_sync: false }
    }

    /// Follows until the condition holds. How long that took.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let start = Instant::now();
        while !holds(self) {
            let batch = tokio::time::timeout(Duration::from_secs(20), self.updates.recv()).await;
            let Ok(Some(batch)) = batch else {
                panic!("never came: {what}; objects {:?}, problems {:?}", self.objects.keys(), self.problems);
            };
            for update in batch {
                match update {
                    Update::Set(object) => _ = self.objects.insert(object.key().to_string(), object),
                    Update::Remove(key) => assert!(self.objects.remove(&key.to_string()).is_some(), "{key}"),
                    Update::Problems(problems) => self.problems = problems,
                    Update::InSync => {
                        assert!(!self.in_sync, "told once");
                        self.in_sync = true;
                    }
                }
            }
        }
        start.elapsed()
    }

    fn team(&self, name: &str) -> Option<&str> {
        match &**self.objects.get(&format!("Namespace {name}"))? {
            Object::Namespace(ns) => ns.labels.get("team").map(|t| &**t),
            _ => None,
        }
    }

    fn problem(&self, file: &str, reason: &str) -> bool {
        self.problems.iter().any(|p| p.file.as_deref() == Some(file) && p.reason.contains(reason))
    }
}

fn namespace(name: &str, team: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{team: {team}}}}}\n")
}

async fn following(files: &[(&str, &str)]) -> (TempDir, Follower) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let mut follower = Follower::of(dir.path());
    follower.until("in sync", |f| f.in_sync).await;
    (dir, follower)
}

fn replace(path: &Path, text: &str) {
    let temporary = path.with_file_name(".new");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, path).unwrap();
}

#[tokio::test]
async fn what_is_there_at_the_start_is_told_and_only_manifests_are_read() {
    let (_dir, f) = following(&[
        ("a.yaml", &namespace("a", "red")),
        ("b.yml", &namespace("b", "red")),
        ("c.json", r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"c"}}"#),
        ("d.txt", &namespace("d", "red")),
        (".e.yaml", &namespace("e", "red")),
        ("f.yaml~", "nonsense"),
    ])
    .await;
    assert_eq!(f.objects.keys().collect::<Vec<_>>(), ["Namespace a", "Namespace b", "Namespace c"]);
    assert_eq!(f.problems, []);
}

#[tokio::test]
async fn every_way_to_change_a_file_takes_effect_within_a_second() {
    let (dir, mut f) = following(&[("a.yaml", &namespace("x", "t0"))]).await;
    let file = dir.path().join("a.yaml");
    type Way<'a> = (&'a str, &'a dyn Fn(&str));
    let ways: [Way<'_>; 4] = [
        ("written over", &|text| fs::write(&file, text).unwrap()),
        ("renamed into place", &|text| replace(&file, text)),
        ("removed and made anew", &|text| {
            fs::remove_file(&file).unwrap();
            fs::write(&file, text).unwrap();
        }),
        ("as vim does: the old one becomes a backup", &|text| {
            let backup = file.with_file_name("a.yaml~");
            fs::rename(&file, &backup).unwrap();
            fs::write(&file, text).unwrap();
            fs::remove_file(backup).unwrap();
        }),
    ];
    for (i, (how, change)) in ways.iter().enumerate() {
        let team = format!("t{}", i + 1);
        change(&namespace("x", &team));
        let took = f.until(how, |f| f.team("x") == Some(&team)).await;
        assert!(took < PROMISE, "{how}: {took:?}");
    }
    fs::remove_file(&file).unwrap();
    let took = f.until("removed", |f| f.objects.is_empty()).await;
    assert!(took < PROMISE, "{took:?}");
}

#[tokio::test]
async fn many_files_changed_at_once_all_come_through() {
    let (dir, mut f) = following(&[("a.yaml", &namespace("x", "red"))]).await;
    for i in 0..500 {
        fs::write(dir.path().join(format!("n{i}.yaml")), namespace(&format!("n{i}"), "blue")).unwrap();
    }
    f.until("all of them", |f| f.objects.len() == 501).await;
    assert_eq!(f.team("n499"), Some("blue"));
}

#[tokio::test]
async fn a_busy_directory_is_still_followed() {
    let (dir, mut f) = following(&[("a.yaml", &namespace("x", "red"))]).await;
    let busy = dir.path().join("busy.yaml");
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let done = done.clone();
        move || {
            for i in 0.. {
                if done.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                replace(&busy, &namespace("busy", &format!("t{i}")));
                std::thread::yield_now();
            }
        }
    });
    fs::write(dir.path().join("a.yaml"), namespace("x", "blue")).unwrap();
    let took = f.until("blue", |f| f.team("x") == Some("blue")).await;
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    assert!(took < PROMISE, "{took:?}");
}

#[tokio::test]
async fn an_unreadable_file_is_told_by_line_and_changes_nothing() {
    let (dir, mut f) =
        following(&[("a.yaml", &namespace("x", "red")), ("b.yaml", &namespace("y", "red"))]).await;
    fs::write(dir.path().join("a.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: [}\n").unwrap();
    let took = f.until("a problem", |f| f.problem("a.yaml", "not YAML")).await;
    assert!(took < PROMISE, "{took:?}");
    assert_eq!((f.problems[0].line, f.problems[0].stale), (Some(3), true));
    assert_eq!(f.team("x"), Some("red"));

    fs::write(dir.path().join("a.yaml"), namespace("x", "blue")).unwrap();
    f.until("mended", |f| f.team("x") == Some("blue") && f.problems.is_empty()).await;
}

#[tokio::test]
async fn a_file_unreadable_at_the_start_keeps_the_source_out_of_sync() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), namespace("x", "red")).unwrap();
    fs::write(dir.path().join("b.yaml"), "kind: [\n").unwrap();
    let mut f = Follower::of(dir.path());
    f.until("a problem", |f| f.problem("b.yaml", "not YAML")).await;
    assert_eq!((f.team("x"), f.in_sync), (Some("red"), false));
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    f.until("in sync", |f| f.in_sync && f.problems.is_empty()).await;
}

#[tokio::test]
async fn the_same_object_in_two_files_names_both() {
    let (dir, mut f) = following(&[("b.yaml", &namespace("x", "blue"))]).await;
    fs::write(dir.path().join("a.yaml"), namespace("x", "red")).unwrap();
    f.until("red", |f| f.team("x") == Some("red")).await;
    assert!(f.problem("a.yaml", "this one is in force") && f.problem("b.yaml", "this one has no effect"));
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    f.until("blue again", |f| f.team("x") == Some("blue") && f.problems.is_empty()).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_swapped_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let version = |n: u32, team: &str| {
        let data = dir.path().join(format!("..2025_{n}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("a.yaml"), namespace("x", team)).unwrap();
        symlink(data.file_name().unwrap(), dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    version(1, "red");
    symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
    let mut f = Follower::of(dir.path());
    f.until("red", |f| f.team("x") == Some("red") && f.in_sync).await;
    version(2, "blue");
    fs::remove_dir_all(dir.path().join("..2025_1")).unwrap();
    let took = f.until("blue", |f| f.team("x") == Some("blue")).await;
    assert!(took < PROMISE, "{took:?}");
}

#[tokio::test]
async fn a_link_that_leads_out_of_the_directory_is_followed_too() {
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("real.yaml");
    fs::write(&target, namespace("x", "red")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    symlink(&target, dir.path().join("a.yaml")).unwrap();
    let mut f = Follower::of(dir.path());
    f.until("red", |f| f.team("x") == Some("red")).await;
    fs::write(&target, namespace("x", "crimson")).unwrap();
    let took = f.until("crimson", |f| f.team("x") == Some("crimson")).await;
    assert!(took < PROMISE, "{took:?}");
    fs::remove_file(&target).unwrap();
    f.until("a problem", |f| f.problem("a.yaml", "a link into nothing")).await;
    assert_eq!(f.team("x"), Some("crimson"));
}

#[tokio::test]
async fn a_missing_directory_is_told_and_waited_for() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("manifests");
    let mut f = Follower::of(&dir);
    f.until("a problem", |f| !f.problems.is_empty()).await;
    assert!(f.problems[0].reason.contains("no such directory; create it, or correct --manifests"));
    assert!(!f.in_sync);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), namespace("x", "red")).unwrap();
    f.until("in sync", |f| f.in_sync && f.team("x") == Some("red") && f.problems.is_empty()).await;
}

#[tokio::test]
async fn an_empty_directory_is_told_and_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut f = Follower::of(dir.path());
    f.until("a problem", |f| !f.problems.is_empty()).await;
    assert!(f.problems[0].reason.contains("no manifest in the directory yet"));
    fs::write(dir.path().join("a.yaml"), namespace("x", "red")).unwrap();
    f.until("in sync", |f| f.in_sync && f.problems.is_empty()).await;
}

#[tokio::test]
async fn a_directory_replaced_by_another_is_followed() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("manifests");
    for (name, team) in [("one", "red"), ("two", "blue")] {
        fs::create_dir(parent.path().join(name)).unwrap();
        fs::write(parent.path().join(name).join("a.yaml"), namespace("x", team)).unwrap();
    }
    symlink("one", &dir).unwrap();
    let mut f = Follower::of(&dir);
    f.until("red", |f| f.team("x") == Some("red")).await;
    symlink("two", parent.path().join("tmp")).unwrap();
    fs::rename(parent.path().join("tmp"), &dir).unwrap();
    let took = f.until("blue", |f| f.team("x") == Some("blue")).await;
    assert!(took < PROMISE, "{took:?}");
    // And the new one is watched.
    fs::write(dir.join("a.yaml"), namespace("x", "green")).unwrap();
    f.until("green", |f| f.team("x") == Some("green")).await;
}

#[tokio::test]
async fn a_directory_that_goes_away_leaves_everything_in_force() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), namespace("x", "red")).unwrap();
    let mut f = Follower::of(&dir);
    f.until("in sync", |f| f.in_sync).await;
    fs::rename(&dir, parent.path().join("away")).unwrap();
    f.until("a problem", |f| !f.problems.is_empty()).await;
    assert!(f.problems[0].stale);
    assert_eq!(f.team("x"), Some("red"));
    fs::rename(parent.path().join("away"), &dir).unwrap();
    f.until("well again", |f| f.problems.is_empty()).await;
    assert_eq!(f.team("x"), Some("red"));
}

#[tokio::test]
async fn files_that_are_no_text_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("binary.yaml"), b"a: 1\nb: \xff\xfe\n").unwrap();
    fs::File::create(path("huge.yaml")).unwrap().set_len((32 << 20) + 1).unwrap();
    nix::unistd::mkfifo(&path("pipe.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::create_dir(path("dir.yaml")).unwrap();
    symlink("nowhere", path("link.yaml")).unwrap();
    let mut f = Follower::of(dir.path());
    f.until("problems", |f| !f.problems.is_empty()).await;
    assert!(f.problem("binary.yaml", "not UTF-8"));
    assert_eq!(f.problems.iter().find(|p| p.file.as_deref() == Some("binary.yaml")).unwrap().line, Some(2));
    assert!(f.problem("huge.yaml", "larger than 32 MiB"));
    assert!(f.problem("pipe.yaml", "not a regular file"));
    assert!(f.problem("link.yaml", "a link into nothing"));
    assert_eq!(f.problems.len(), 4);
    assert!(!f.in_sync);
}
