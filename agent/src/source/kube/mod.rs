//! The Kubernetes API as a source: every resource of [`kinds::WATCHED`] listed and watched, as one stream of updates.
//!
//! The agent reads the API and never leans on it: with the server away everything stays as it is, and
//! [`Problem::stale`](super::Problem::stale) says so. A thread of its own follows the server, so that a large list never
//! keeps the agent's loop waiting. Nothing of an object is held here but a fingerprint.
//!
//! ```text
//! follow (one task a resource, IO) --News--> Cluster --Vec<Update>--> agent
//!   request -> server -> wire -> sieve -> Reflector -+
//! ```

mod backoff;
mod client;
mod closed;
mod cluster;
mod follow;
pub mod kinds;
mod lines;
mod reflector;
mod request;
mod sieve;
mod wire;

pub use client::{Access, Api, Call};
pub use follow::Timing;
pub(crate) use request::encode;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::de::DeserializeSeed;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

use self::backoff::Backoff;
use self::cluster::{Cluster, Follower, News, State};
use self::follow::{Definitions, Follow};
use self::kinds::{Scope, WATCHED, What};
use self::reflector::{Change, Reflector};
use self::request::Target;
use self::sieve::{Keep, Sieve};
use super::tree::STACK_BYTES;
use super::{Kind, Problem, Update, manifest};

/// News that wait for the cluster: a few, so that a list that comes faster than it is understood waits at the server.
const NEWS: usize = 4;
/// Updates that go out together at most, so that the agent is never busy with one batch for long.
const BATCH: usize = 500;
/// How often to look whether what is wrong has lasted long enough to be told.
const TICK: Duration = Duration::from_secs(1);

/// Whose agent this is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this node's Node.
    pub node_name: String,
    /// The agent's own namespace: that of its Secrets.
    pub namespace: String,
    /// How patient to be.
    pub timing: Timing,
}

/// Follows the API server until the receiver is dropped.
///
/// # Errors
/// The configuration cannot be read, or no thread could be started. A server that cannot be reached is none: it is
/// reported as a problem and tried again.
pub async fn spawn(
    access: Access,
    settings: Settings,
) -> anyhow::Result<(Arc<Api>, mpsc::Receiver<Vec<Update>>)> {
    let (updates, receiver) = mpsc::channel(16);
    let (ready, api) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = move || {
        runtime.block_on(async move {
            let api = Api::new(access).await.map(Arc::new);
            let mine = api.as_ref().ok().cloned();
            if ready.send(api).is_ok()
                && let Some(api) = mine
            {
                Source::new(api, settings, updates).run().await;
            }
        });
    };
    std::thread::Builder::new().name("kube".to_owned()).stack_size(STACK_BYTES).spawn(work)?;
    let api = api.await.context("the thread that follows the API server has ended")??;
    Ok((api, receiver))
}

/// Judges an object as the source would: what to tell about it, or why it cannot be used.
pub(crate) fn judge(kind: Kind, object: &serde_json::Value) -> Result<Vec<String>, Vec<String>> {
    let sieve = Sieve::new(Keep::of(What::Objects(kind)));
    let tree = sieve.deserialize(object).map_err(|error| vec![error.to_string()])?;
    manifest::object(&tree).map(|understood| understood.notes)
}

struct Source {
    api: Arc<Api>,
    settings: Settings,
    updates: mpsc::Sender<Vec<Update>>,
    cluster: Cluster,
    definitions: watch::Sender<Definitions>,
    defined: BTreeSet<String>,
    followers: JoinSet<()>,
    secrets: BTreeMap<String, AbortHandle>,
    /// Problems that the log knows of.
    told: Vec<Problem>,
}

impl Source {
    fn new(api: Arc<Api>, settings: Settings, updates: mpsc::Sender<Vec<Update>>) -> Self {
        let kinds = WATCHED.iter().filter(|w| w.scope == Scope::Cluster).map(|w| w.what);
        Source {
            cluster: Cluster::new(api.server(), &settings.node_name, &settings.namespace, kinds),
            api,
            settings,
            updates,
            definitions: watch::Sender::new(Definitions::Unknown),
            defined: BTreeSet::new(),
            followers: JoinSet::new(),
            secrets: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    async fn run(mut self) {
        let (sender, mut inbox) = mpsc::channel(NEWS);
        for watched in WATCHED.iter().filter(|w| w.scope == Scope::Cluster) {
            self.follow(Follower::Of(watched.what), Target { watched, one: None }, &sender);
        }
        let mut tick = tokio::time::interval(TICK);
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                news = inbox.recv() => match news {
                    Some(news) => self.take(news, &mut batch),
                    None => return,
                },
                _ = tick.tick() => {}
                () = self.updates.closed() => return,
            }
            self.reap();
            while batch.len() < BATCH
                && let Ok(news) = inbox.try_recv()
            {
                self.take(news, &mut batch);
            }
            self.follow_secrets(&sender, &mut batch);
            self.cluster.settle(Instant::now(), &mut batch);
            if !batch.is_empty() {
                self.tell(&batch);
                if self.updates.send(batch).await.is_err() {
                    return;
                }
            }
        }
    }

    fn follow(&mut self, who: Follower, target: Target, news: &mpsc::Sender<News>) -> AbortHandle {
        let seed = RandomState::new().hash_one(&self.settings.node_name);
        let follow = Follow {
            api: self.api.clone(),
            who,
            target,
            timing: self.settings.timing,
            definitions: self.definitions.subscribe(),
            news: news.clone(),
            reflector: Reflector::new(),
            backoff: Backoff::new(seed, self.settings.timing.haste),
        };
        self.followers.spawn(follow.run())
    }

    /// Followers of Secrets that nobody wants any more have ended; one that broke takes the source, and so the agent, along.
    fn reap(&mut self) {
        while let Some(ended) = self.followers.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    fn take(&mut self, news: News, batch: &mut Vec<Update>) {
        if news.from == Follower::Of(What::Definitions) {
            self.define(&news);
        }
        self.cluster.take(news, Instant::now(), batch);
    }

    fn define(&mut self, news: &News) {
        for change in &news.changes {
            match change {
                Change::Set { item, .. } => _ = self.defined.insert(item.name.clone()),
                Change::Gone { name, .. } => _ = self.defined.remove(name),
            }
        }
        let before = self.definitions.borrow().clone();
        let now = match (&news.state, &before) {
            (Some(State::Current), _) | (_, Definitions::Known(_)) => {
                Definitions::Known(Arc::new(self.defined.clone()))
            }
            (Some(State::Failing { refused: true, .. }), Definitions::Unknown) => Definitions::Unreadable,
            _ => return,
        };
        // Tells those that wait only what is new to them.
        self.definitions.send_if_modified(|known| {
            let modified = *known != now;
            *known = now;
            modified
        });
    }

    fn follow_secrets(&mut self, news: &mpsc::Sender<News>, batch: &mut Vec<Update>) {
        let wanted = self.cluster.wanted_secrets();
        let unwanted: Vec<_> = self.secrets.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        for name in unwanted {
            if let Some(task) = self.secrets.remove(&name) {
                task.abort();
            }
            self.cluster.drop_secret(&name, batch);
        }
        let watched = WATCHED
            .iter()
            .find(|w| w.what == What::Objects(Kind::Secret))
            .expect("Secrets stand in the table");
        for name in wanted {
            if !self.secrets.contains_key(&name) {
                self.cluster.add_secret(&name);
                let one = Some((self.settings.namespace.clone(), name.clone()));
                let task = self.follow(Follower::Secret(name.clone()), Target { watched, one }, news);
                self.secrets.insert(name, task);
            }
        }
    }

    /// Logs what a person would notice: each problem when it comes and when it goes.
    fn tell(&mut self, batch: &[Update]) {
        for update in batch {
            let Update::Problems(now) = update else { continue };
            for Problem { object, reason, effect, .. } in now.iter().filter(|p| !self.told.contains(p)) {
                warn!(object, reason, effect, "API problem");
            }
            for Problem { object, reason, .. } in self.told.iter().filter(|p| !now.contains(p)) {
                info!(object, reason, "API problem is over");
            }
            self.told.clone_from(now);
        }
    }
}
