//! Watches a directory of manifests and turns what happens in it into updates.
//!
//! inotify says when to look; what is looked at is always the directory itself, so that a missed, doubled or reordered
//! event costs time and never correctness. A thread of its own reads the files; nothing here decides what they mean.
//!
//! ```text
//! inotify --+
//!           +--> wait until writers are done --> read what changed --> Directory::turn --> channel
//! clock ----+
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, DataChange, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tracing::{info, warn};

use super::directory::{Change, Directory};
use super::tree::{MAX_FILE_BYTES, STACK_BYTES};
use super::{Problem, Update};

/// An editor's save is a handful of events: wait until they are through.
const QUIET: Duration = Duration::from_millis(50);
/// A file that was written to and not closed yet may be half a file.
const WRITING: Duration = Duration::from_millis(300);
/// However busy the directory is, look at it that often: changes take effect within a second.
const AT_LATEST: Duration = Duration::from_millis(500);
/// How often to look for what inotify cannot tell: the directory replaced by another, links that lead out of it.
const TICK: Duration = Duration::from_millis(250);
/// How often to compare everything, in case an event was lost.
const AUDIT: Duration = Duration::from_secs(10);
/// A file changed so shortly before it was read may change again without a new time stamp.
const STAMP_GRAIN: Duration = Duration::from_millis(100);

/// Follows the directory until the receiver is dropped. The first batch comes when it has been read once.
///
/// The directory need not exist yet: that is a problem to report, and is looked at again four times a second.
///
/// # Errors
/// No thread could be started.
pub fn spawn(dir: PathBuf) -> io::Result<tokio::sync::mpsc::Receiver<Vec<Update>>> {
    let (updates, receiver) = tokio::sync::mpsc::channel(16);
    std::thread::Builder::new()
        .name("manifests".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || Follower::new(dir, updates).run())?;
    Ok(receiver)
}

struct Follower {
    dir: PathBuf,
    updates: tokio::sync::mpsc::Sender<Vec<Update>>,
    state: Directory,
    seen: BTreeMap<String, Seen>,
    events: Receiver<notify::Result<notify::Event>>,
    sender: Sender<notify::Result<notify::Event>>,
    /// Problems that the log knows of.
    told: Vec<Problem>,
    /// The watch, and device and inode of the directory that it is on.
    watch: Option<(RecommendedWatcher, (u64, u64))>,
}

/// A file as it was when it was last read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// `None`: a link into nothing.
    stamp: Option<Stamp>,
    /// A later change would certainly show in the stamp.
    sure: bool,
    /// It lies outside of the directory: inotify is silent about it.
    outside: bool,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Which files to read again even if their stamps have not changed.
enum Look {
    /// Those that events named.
    At(BTreeSet<String>),
    /// None: trust the stamps.
    Around,
}

impl Follower {
    fn new(dir: PathBuf, updates: tokio::sync::mpsc::Sender<Vec<Update>>) -> Self {
        let (sender, events) = channel();
        Follower {
            dir,
            updates,
            state: Directory::new(),
            seen: BTreeMap::new(),
            events,
            sender,
            watch: None,
            told: Vec::new(),
        }
    }

    fn run(mut self) {
        let mut look = Look::Around;
        let mut last_audit = Instant::now();
        loop {
            // The watch comes first: what happens while we read is then an event.
            self.keep_watch();
            let changes = self.changes(&look);
            if matches!(look, Look::Around) {
                last_audit = Instant::now();
            }
            let updates = self.state.turn(changes);
            if !updates.is_empty() {
                self.tell(&updates);
                if self.updates.blocking_send(updates).is_err() {
                    return;
                }
            }
            look = loop {
                if self.updates.is_closed() {
                    return;
                }
                match self.events.recv_timeout(TICK) {
                    Ok(first) => {
                        if let Some(names) = self.settle(first) {
                            break Look::At(names);
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                if self.watch.is_none()
                    || last_audit.elapsed() >= AUDIT
                    || self.moved()
                    || self.outside_changed()
                {
                    break Look::Around;
                }
            };
        }
    }

    /// Gathers the events that belong together. `None`: nothing of interest.
    fn settle(&self, first: notify::Result<notify::Event>) -> Option<BTreeSet<String>> {
        let start = Instant::now();
        let mut names = BTreeSet::new();
        let mut writing = BTreeSet::new();
        let mut interesting = note_event(first, &mut names, &mut writing);
        loop {
            let wait = if !interesting {
                Duration::ZERO
            } else if writing.is_empty() {
                QUIET
            } else {
                WRITING
            };
            let wait = wait.min((start + AT_LATEST).saturating_duration_since(Instant::now()));
            match self.events.recv_timeout(wait) {
                Ok(event) => interesting |= note_event(event, &mut names, &mut writing),
                Err(_) => return interesting.then_some(names),
            }
        }
    }

    /// Watches the directory that the path names now, if it is not watched already.
    fn keep_watch(&mut self) {
        let Ok(identity) = identity(&self.dir) else {
            self.watch = None;
            return;
        };
        if self.watch.as_ref().is_some_and(|(_, watched)| *watched == identity) {
            return;
        }
        self.watch = None;
        let watcher = notify::recommended_watcher(self.sender.clone()).and_then(|mut watcher| {
            watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => self.watch = Some((watcher, identity)),
            Err(error) => {
                warn!(dir = %self.dir.display(), %error, "manifests cannot be watched, looking four times a second instead");
            }
        }
    }

    fn moved(&self) -> bool {
        let watched = self.watch.as_ref().map(|(_, watched)| *watched);
        identity(&self.dir).ok() != watched
    }

    fn outside_changed(&self) -> bool {
        self.seen
            .iter()
            .filter(|(_, seen)| seen.outside)
            .any(|(name, seen)| !seen.sure || stamp(&self.dir.join(name)) != seen.stamp)
    }

    /// What has changed since the last look.
    fn changes(&mut self, look: &Look) -> Result<BTreeMap<String, Change>, String> {
        let names = list(&self.dir).map_err(|e| describe_dir_error(&self.dir, &e))?;
        let inside = fs::canonicalize(&self.dir).ok();
        let mut changes = BTreeMap::new();
        for name in self.seen.keys().filter(|name| !names.contains(*name)) {
            changes.insert(name.clone(), Change::Gone);
        }
        self.seen.retain(|name, _| names.contains(name));
        for name in names {
            let path = self.dir.join(&name);
            let before = stamp(&path);
            let named = matches!(look, Look::At(names) if names.contains(&name));
            let known = self.seen.get(&name).is_some_and(|seen| seen.sure && seen.stamp == before);
            if known && !named {
                continue;
            }
            let change = match read(&path) {
                Ok(change) => change,
                // Gone between the listing and now; if it was known, the next listing tells.
                Err(e) if e.kind() == io::ErrorKind::NotFound && !path.is_symlink() => continue,
                Err(e) => Change::Unreadable(None, describe_file_error(&e)),
            };
            let stamp = stamp(&path);
            let sure = stamp == before && stamp.is_none_or(settled);
            let outside = leads_outside(&path, inside.as_deref());
            self.seen.insert(name.clone(), Seen { stamp, sure, outside });
            changes.insert(name, change);
        }
        Ok(changes)
    }

    /// Logs what a person would notice: each problem when it comes and when it goes.
    fn tell(&mut self, updates: &[Update]) {
        let (mut set, mut removed) = (0_usize, 0_usize);
        for update in updates {
            match update {
                Update::Set(_) => set += 1,
                Update::Remove(_) => removed += 1,
                Update::Problems(now) => {
                    for Problem { file, line, object, reason, effect, .. } in
                        now.iter().filter(|p| !self.told.contains(p))
                    {
                        warn!(file, line, object, reason, effect, "manifest problem");
                    }
                    for Problem { file, line, object, reason, .. } in
                        self.told.iter().filter(|p| !now.contains(p))
                    {
                        info!(file, line, object, reason, "manifest problem is over");
                    }
                    self.told.clone_from(now);
                }
                Update::InSync => info!(dir = %self.dir.display(), "manifests read"),
            }
        }
        if set + removed > 0 {
            info!(set, removed, "manifests changed");
        }
    }
}

/// Notes what an event is about. Whether it is of any interest.
fn note_event(
    event: notify::Result<notify::Event>,
    names: &mut BTreeSet<String>,
    writing: &mut BTreeSet<String>,
) -> bool {
    let Ok(event) = event else { return true };
    if event.need_rescan() {
        return true;
    }
    let written = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(false),
        // Our own reading makes such events.
        EventKind::Access(_) => return false,
        EventKind::Modify(ModifyKind::Data(DataChange::Any)) => Some(true),
        _ => None,
    };
    for path in &event.paths {
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { continue };
        match written {
            Some(true) => _ = writing.insert(name.to_owned()),
            Some(false) => _ = writing.remove(name),
            None => {}
        }
        names.insert(name.to_owned());
    }
    true
}

/// Names of the manifests. Hidden files are none: editors' swap files, and the `..data` of a mounted ConfigMap.
fn list(dir: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            warn!(file = %name.to_string_lossy(), "a manifest whose name is not UTF-8 is left out");
            continue;
        };
        let manifest = Path::new(name).extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if manifest && !name.starts_with('.') && !entry.path().is_dir() {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

fn read(path: &Path) -> io::Result<Change> {
    // A named pipe would hang the open.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Ok(Change::Unreadable(None, "not a regular file".to_owned()));
    }
    let mut bytes = Vec::with_capacity(metadata.len().min(MAX_FILE_BYTES) as usize + 1);
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(content(bytes))
}

fn content(bytes: Vec<u8>) -> Change {
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let reason = format!("larger than {} MiB; split it", MAX_FILE_BYTES >> 20);
        return Change::Unreadable(None, reason);
    }
    match String::from_utf8(bytes) {
        Ok(text) => Change::Text(text),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|b| **b == b'\n').count() + 1;
            Change::Unreadable(u32::try_from(line).ok(), "not UTF-8".to_owned())
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let m = fs::metadata(path).ok()?;
    Some(Stamp {
        device: m.dev(),
        inode: m.ino(),
        size: m.size(),
        modified: (m.mtime(), m.mtime_nsec()),
        changed: (m.ctime(), m.ctime_nsec()),
    })
}

/// Whether another change would certainly show in the stamp.
fn settled(stamp: Stamp) -> bool {
    let changed = Duration::new(
        u64::try_from(stamp.changed.0).unwrap_or(0),
        u32::try_from(stamp.changed.1).unwrap_or(0),
    );
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH + changed)
        .is_ok_and(|age| age > STAMP_GRAIN)
}

fn leads_outside(path: &Path, inside: Option<&Path>) -> bool {
    path.is_symlink()
        && match (fs::canonicalize(path), inside) {
            (Ok(target), Some(inside)) => !target.starts_with(inside),
            // A link into nothing, or no directory to compare with: look again later.
            _ => true,
        }
}

fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(dir).map(|m| (m.dev(), m.ino()))
}

fn describe_dir_error(dir: &Path, error: &io::Error) -> String {
    let dir = dir.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("{dir}: no such directory; create it, or correct --manifests"),
        io::ErrorKind::NotADirectory => {
            format!("{dir}: not a directory; --manifests takes the directory, not a file")
        }
        io::ErrorKind::PermissionDenied => format!("{dir}: permission denied; let the agent's user read it"),
        _ => format!("{dir}: {error}"),
    }
}

fn describe_file_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "a link into nothing".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied; let the agent's user read it".to_owned(),
        _ => error.to_string(),
    }
}
