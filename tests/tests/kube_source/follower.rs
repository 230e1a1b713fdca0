//! What an agent would know by the source, and what the server has.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use manx_agent::source::kube::{self, Access, Settings, Timing};
use manx_agent::source::manifest;
use manx_agent::source::{Kind, Object, ObjectKey, Problem, Update};
use manx_tests::apiserver::ApiServer;
use tempfile::TempDir;
use tokio::sync::mpsc;

/// For anything to happen, on a machine that is busy with other things.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const TIMING: Timing = Timing {
    answer: Duration::from_secs(2),
    watch: Duration::from_secs(60),
    recheck: Duration::from_millis(300),
    settle: Duration::from_millis(500),
    haste: 20,
};

/// What an agent would know.
pub(crate) struct Follower {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) updates: mpsc::Receiver<Vec<Update>>,
    pub(crate) objects: BTreeMap<ObjectKey, Arc<Object>>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) in_sync: bool,
    pub(crate) removed: usize,
    _files: TempDir,
}

impl Follower {
    pub(crate) fn new(server: &ApiServer) -> Self {
        Self::with_token(server, None)
    }

    pub(crate) fn with_token(server: &ApiServer, token: Option<&Path>) -> Self {
        let files = TempDir::new().unwrap();
        let file = files.path().join("kubeconfig");
        server.write_kubeconfig(&file, token).unwrap();
        Self::by(&file, files)
    }

    /// One whose waits between attempts are so many times shorter than they are.
    pub(crate) fn hasty(server: &ApiServer, haste: u32) -> Self {
        let files = TempDir::new().unwrap();
        let file = files.path().join("kubeconfig");
        server.write_kubeconfig(&file, None).unwrap();
        Self::with_timing(&file, files, Timing { haste, ..TIMING })
    }

    /// Follows the server of a kubeconfig.
    pub(crate) fn by(file: &Path, files: TempDir) -> Self {
        Self::with_timing(file, files, TIMING)
    }

    fn with_timing(file: &Path, files: TempDir, timing: Timing) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let settings = Settings { node_name: "n1".into(), namespace: "manx-system".into(), timing };
        let (_, updates) =
            runtime.block_on(kube::spawn(Access::Kubeconfig(file.to_owned()), settings)).unwrap();
        Follower {
            runtime,
            updates,
            objects: BTreeMap::new(),
            problems: Vec::new(),
            in_sync: false,
            removed: 0,
            _files: files,
        }
    }

    pub(crate) fn in_sync(server: &ApiServer) -> Self {
        let mut follower = Self::new(server);
        follower.until("in sync", |f| f.in_sync);
        follower
    }

    pub(crate) fn take(&mut self, wait: Duration) {
        let updates = &mut self.updates;
        let batch = self.runtime.block_on(async { tokio::time::timeout(wait, updates.recv()).await });
        let Ok(batch) = batch else { return };
        for update in batch.expect("the source goes on") {
            match update {
                Update::Set(object) => _ = self.objects.insert(object.key(), object),
                Update::Remove(key) => {
                    self.removed += 1;
                    self.objects.remove(&key);
                }
                Update::Problems(problems) => self.problems = problems,
                Update::InSync => self.in_sync = true,
            }
        }
    }

    pub(crate) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            let count = self.objects.len();
            assert!(start.elapsed() < LIMIT, "{what}: not yet; {count} objects, {:?}", self.problems);
            self.take(Duration::from_millis(100));
        }
    }

    /// Until what is known is what the server has, Secrets aside: of them only those referred to.
    pub(crate) fn until_equal(&mut self, server: &ApiServer) {
        let start = Instant::now();
        loop {
            let expected = objects(server);
            let known = |f: &Self| -> BTreeMap<_, _> {
                f.objects
                    .iter()
                    .filter(|(k, _)| k.kind != Kind::Secret)
                    .map(|(k, o)| (k.clone(), o.clone()))
                    .collect()
            };
            if self.in_sync && known(self) == expected {
                return;
            }
            if start.elapsed() > LIMIT {
                let (theirs, ours) = (expected.keys().collect::<Vec<_>>(), known(self));
                panic!(
                    "server: {theirs:?}\nknown: {:?}\n{:?}",
                    ours.keys().collect::<Vec<_>>(),
                    self.problems
                );
            }
            self.take(Duration::from_millis(100));
        }
    }

    pub(crate) fn has(&self, kind: Kind, name: &str) -> bool {
        self.objects.keys().any(|key| key.kind == kind && key.name == name)
    }

    pub(crate) fn says(&self, text: &str) -> bool {
        self.problems
            .iter()
            .any(|p| p.reason.contains(text) || p.object.as_deref().is_some_and(|o| o.contains(text)))
    }

    pub(crate) fn stale(&self) -> bool {
        self.problems.iter().any(|p| p.stale)
    }
}

/// What the server has, read as the manifest directory would read it.
pub(crate) fn objects(server: &ApiServer) -> BTreeMap<ObjectKey, Arc<Object>> {
    let manifest = manifest::parse(&server.dump()).expect("the server holds good objects");
    let found = manifest.objects.into_iter().filter(|found| found.key.kind != Kind::Secret);
    found.map(|found| ((*found.key).clone(), found.object)).collect()
}
