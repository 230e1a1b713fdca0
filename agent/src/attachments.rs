//! Which pods are attached to this node: the plugin's store, followed.
//!
//! The directory is the truth, before, during and after the agent's own life: a DEL that came while no agent ran is seen
//! at the next start. Every look compares all of it with what the engine was told last; a node has some hundred pods, and
//! looking at their entries, of which only new ones are read, takes a tenth of a millisecond.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use manx_cni::reader::Reader;
use manx_cni::store::Attachment;
use manx_policy::model::{Endpoint, EndpointId, PodRef, Update};
use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::api::facts::SharedFacts;
use crate::delta::{Change, changes};
use crate::metrics::{Answered, CniCounters, Request};
use crate::policy_worker::PolicyHandle;

/// A look without being told to: for the event that the kernel dropped.
const AT_LEAST_EVERY: Duration = Duration::from_secs(10);

/// Asks for a look; the answer comes when what was found has been handed to the policy thread.
pub type Look = oneshot::Sender<()>;

/// Looks that were asked for and not made yet. Who asks beyond that waits.
const LOOKS: usize = 64;

/// Tells the policy thread of attachments that come and go.
pub struct Follower {
    reader: Reader,
    known: Endpoints,
    policy: Option<PolicyHandle>,
    facts: SharedFacts,
    counters: CniCounters,
    addresses: watch::Sender<Addresses>,
    asking: mpsc::Sender<Look>,
    asked: mpsc::Receiver<Look>,
}

impl Follower {
    /// A follower; the policy thread has been told of `known`.
    pub fn new(
        reader: Reader,
        known: Endpoints,
        policy: Option<PolicyHandle>,
        facts: SharedFacts,
        counters: CniCounters,
    ) -> Self {
        let (asking, asked) = mpsc::channel(LOOKS);
        let (addresses, _) = watch::channel(held(&known));
        Follower { reader, known, policy, facts, counters, addresses, asking, asked }
    }

    /// The addresses that attached pods hold, now and whenever they change.
    pub fn addresses(&self) -> watch::Receiver<Addresses> {
        self.addresses.subscribe()
    }

    /// The way to ask for a look.
    pub fn look(&self) -> mpsc::Sender<Look> {
        self.asking.clone()
    }

    /// Follows until the store cannot be watched any more.
    ///
    /// # Errors
    /// The directory can't be watched.
    pub async fn follow(mut self) -> anyhow::Result<()> {
        let dir = self.reader.store().watch_dir();
        let changed = Arc::new(Notify::new());
        let wake = changed.clone();
        let on_event = move |event: notify::Result<notify::Event>| {
            // Our own reading is an access, and no news.
            if !event.is_ok_and(|e| e.kind.is_access()) {
                wake.notify_one();
            }
        };
        let mut watcher = notify::recommended_watcher(on_event).with_context(|| {
            format!("cannot watch {}: raise fs.inotify.max_user_instances", dir.display())
        })?;
        watcher
            .watch(&dir, RecursiveMode::NonRecursive)
            .with_context(|| format!("cannot watch {}: raise fs.inotify.max_user_watches", dir.display()))?;
        let mut waiting = Vec::new();
        loop {
            if self.turn() {
                for asker in waiting.drain(..) {
                    // One that hung up meanwhile does not care.
                    let _ = Look::send(asker, ());
                }
            }
            tokio::select! {
                () = changed.notified() => {}
                Some(first) = self.asked.recv() => {
                    waiting.push(first);
                    waiting.extend(std::iter::from_fn(|| self.asked.try_recv().ok()));
                }
                () = tokio::time::sleep(AT_LEAST_EVERY) => {}
            }
            waiting.retain(|asker: &Look| !asker.is_closed());
        }
    }

    /// One look; whether it could be made.
    fn turn(&mut self) -> bool {
        let now = match read(&mut self.reader) {
            Ok(now) => now,
            // What is known stays; the pods that it speaks of keep their rules.
            Err(e) => {
                tracing::warn!(error = %e, "attachments cannot be read");
                return false;
            }
        };
        self.facts.with(|f| f.attachments = now.len() as u64);
        for _ in self.known.keys().filter(|id| !now.contains_key(*id)) {
            self.counters.count(Request::Del, Answered::Ok);
        }
        if let Some(policy) = &self.policy {
            policy.update(difference(&self.known, &now));
        }
        let addresses = held(&now);
        self.addresses.send_if_modified(|told| {
            let changed = *told != addresses;
            *told = addresses;
            changed
        });
        self.known = now;
        true
    }
}

/// Addresses of pods.
pub type Addresses = BTreeSet<IpAddr>;

fn held(endpoints: &Endpoints) -> Addresses {
    endpoints.values().flat_map(|e| e.addresses.iter().copied()).collect()
}

/// Attachments by container id and interface, as the policy engine knows them.
pub type Endpoints = BTreeMap<EndpointId, Endpoint>;

/// All attachments, as the policy engine knows them.
///
/// # Errors
/// The store's.
pub fn read(reader: &mut Reader) -> Result<Endpoints, manx_cni::store::StoreError> {
    Ok(reader.read()?.map(endpoint).map(|e| (e.id.clone(), e)).collect())
}

/// The updates that lead from one set of attachments to another; from none, for a start.
pub fn difference(known: &Endpoints, now: &Endpoints) -> Vec<Update> {
    changes(known, now)
        .map(|change| match change {
            Change::Set(_, endpoint) => Update::SetEndpoint(endpoint.clone()),
            Change::Remove(id) => Update::RemoveEndpoint(id.clone()),
        })
        .collect()
}

fn endpoint(attachment: &Attachment) -> Endpoint {
    let pod = attachment.pod.as_ref().map(|name| PodRef {
        namespace: attachment.namespace.clone(),
        name: name.clone(),
        uid: attachment.uid.clone(),
    });
    Endpoint {
        id: EndpointId { container_id: attachment.container_id.clone(), ifname: attachment.ifname.clone() },
        interface: attachment.interface.clone(),
        pod,
        addresses: attachment.ips.iter().copied().collect(),
    }
}
