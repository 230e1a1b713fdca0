//! A Kubernetes API server for tests: lists, watches and writes over real HTTP on loopback, with faults on demand.
//!
//! It keeps what the real one promises (one growing version, history from a version on, 410 for what is forgotten,
//! bookmarks, streaming lists, optimistic locking) and none of its validation. What it is told to do wrong, it does to
//! everybody.

pub mod resources;
mod server;
mod store;
pub mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use self::resources::{RESOURCES, Resource, of_object};
use self::store::Store;

/// What happens to all watches that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// They end in order.
    End,
    /// The connection breaks within an event.
    Break,
    /// 410 Gone as an event.
    Expire,
    /// They stay open and say nothing more.
    Stall,
}

/// A server that runs until it is dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Option<Running>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("address", &self.address).finish_non_exhaustive()
    }
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// What connections share.
struct Shared {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    changed: watch::Sender<u64>,
    cut: watch::Sender<(u64, Cut)>,
}

#[derive(Default)]
struct Faults {
    /// The next requests are answered with this code, and with Retry-After.
    refuse: Option<(u32, u16, Option<u64>)>,
    /// The next requests are not answered.
    hang: u32,
    /// Resources, by plural name, whose events wait.
    held: BTreeSet<String>,
    forbidden: BTreeSet<String>,
    lists_only: bool,
    token: Option<String>,
    requests: BTreeMap<(String, String), u64>,
}

impl ApiServer {
    /// Starts an empty server on a port of its own. All custom resources are installed.
    ///
    /// # Errors
    /// There is no port.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Shared {
            store: Mutex::default(),
            faults: Mutex::default(),
            changed: watch::Sender::new(0),
            cut: watch::Sender::new((0, Cut::End)),
        };
        let mut server = ApiServer { shared: Arc::new(shared), address, running: None };
        for resource in RESOURCES.iter().filter(|r| r.custom) {
            server.install(resource.group, resource.plural);
        }
        server.serve(vec![listener])?;
        Ok(server)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig that leads here; with the path of a file for the bearer token, if there is one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, file: &Path, token_file: Option<&Path>) -> Result<()> {
        Self::write_kubeconfig_for(&self.url(), file, token_file)
    }

    /// The same for a server that is reached under another URL.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig_for(url: &str, file: &Path, token_file: Option<&Path>) -> Result<()> {
        let user = token_file.map_or(json!({}), |token| json!({"tokenFile": token}));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(file, config.to_string()).with_context(|| file.display().to_string())
    }

    /// Serves on another listener too, such as one from another network namespace.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn serve_also(&self, listener: TcpListener) -> Result<Extra> {
        Ok(Extra(Some(serve(vec![listener], self.shared.clone())?)))
    }

    /// Creates or replaces an object that says what it is.
    ///
    /// # Panics
    /// Nobody knows its kind.
    pub fn set(&self, object: Value) {
        let mut store = self.shared.store();
        let kind = object["kind"].clone();
        assert!(store.set(object).is_ok(), "the server knows no {kind}");
        self.shared.changed(store);
    }

    /// Creates or replaces objects that say what they are, all at one moment.
    ///
    /// # Panics
    /// Nobody knows the kind of one.
    pub fn set_all(&self, objects: Vec<Value>) {
        let mut store = self.shared.store();
        for object in objects {
            let kind = object["kind"].clone();
            assert!(store.set(object).is_ok(), "the server knows no {kind}");
        }
        self.shared.changed(store);
    }

    /// Follows a text of YAML documents that has changed: what it says now is set, what it said only before is removed.
    ///
    /// # Errors
    /// It is no YAML, or holds kinds that the server does not know.
    pub fn replace(&self, before: &str, now: &str) -> Result<()> {
        let (before, now) = (objects(before)?, objects(now)?);
        let mut store = self.shared.store();
        let mut places = BTreeSet::new();
        for object in now {
            let kind = object["kind"].clone();
            let place = store.set(object).map_err(|_| anyhow::anyhow!("the server knows no {kind}"))?;
            places.insert(identity(&place.value));
        }
        for object in before.iter().map(identity).filter(|old| !places.contains(old)) {
            let (api_version, kind, namespace, name) = object;
            if let Some(resource) = of_object(&api_version, &kind) {
                store.remove(resource, &(namespace, name));
            }
        }
        self.shared.changed(store);
        Ok(())
    }

    /// Removes an object. Whether it was there.
    pub fn remove(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> bool {
        let Some(resource) = of_object(api_version, kind) else { return false };
        let mut store = self.shared.store();
        let found = store.remove(resource, &(namespace.to_owned(), name.to_owned()));
        self.shared.changed(store);
        found
    }

    /// One object.
    pub fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let resource = of_object(api_version, kind)?;
        let store = self.shared.store();
        store.get(resource, &(namespace.to_owned(), name.to_owned())).map(|o| (*o.value).clone())
    }

    /// All objects of a kind.
    pub fn all(&self, api_version: &str, kind: &str) -> Vec<Value> {
        let Some(resource) = of_object(api_version, kind) else { return Vec::new() };
        self.shared.store().all(resource).map(|(_, o)| (*o.value).clone()).collect()
    }

    /// Everything that it holds, as one JSON list.
    pub fn dump(&self) -> String {
        let store = self.shared.store();
        let all: Vec<_> =
            RESOURCES.iter().flat_map(|r| store.all(r)).map(|(_, o)| (*o.value).clone()).collect();
        json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string()
    }

    /// The version that it is at.
    pub fn version(&self) -> u64 {
        self.shared.store().version()
    }

    /// Installs a custom resource.
    pub fn install(&self, group: &str, plural: &str) {
        let name = format!("{plural}.{group}");
        self.set(json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                        "metadata": {"name": name}, "spec": {"group": group}}));
    }

    /// Removes a custom resource with all its objects.
    pub fn uninstall(&self, group: &str, plural: &str) {
        if let Some(resource) = RESOURCES.iter().find(|r| r.group == group && r.plural == plural) {
            let mut store = self.shared.store();
            store.clear(resource);
            store.remove(&RESOURCES[0], &(String::new(), resource.definition()));
            self.shared.changed(store);
        }
    }

    /// Does this to every open watch.
    pub fn cut(&self, cut: Cut) {
        self.shared.cut.send_modify(|(count, what)| {
            *count += 1;
            *what = cut;
        });
    }

    /// Forgets its history: watches from older versions and unfinished lists answer 410.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Answers the next requests with this code, and a Retry-After of so many seconds.
    pub fn refuse(&self, requests: u32, code: u16, retry_after: Option<u64>) {
        self.shared.faults().refuse = Some((requests, code, retry_after));
    }

    /// Leaves the next requests without an answer.
    pub fn hang(&self, requests: u32) {
        self.shared.faults().hang = requests;
    }

    /// Holds back the events of a resource until [`Self::release`].
    pub fn hold(&self, plural: &str) {
        self.shared.faults().held.insert(plural.to_owned());
    }

    /// Lets all events through again.
    pub fn release(&self) {
        self.shared.faults().held.clear();
        self.shared.changed.send_modify(|count| *count += 1);
    }

    /// Answers 403 for a resource; or not any more.
    pub fn forbid(&self, plural: &str, forbid: bool) {
        let forbidden = &mut self.shared.faults().forbidden;
        if forbid {
            forbidden.insert(plural.to_owned())
        } else {
            forbidden.remove(plural)
        };
    }

    /// Whether it has streaming lists; it does unless told otherwise.
    pub fn set_streams(&self, streams: bool) {
        self.shared.faults().lists_only = !streams;
    }

    /// Asks for this bearer token from now on.
    pub fn set_token(&self, token: &str) {
        self.shared.faults().token = Some(token.to_owned());
    }

    /// How often this was asked: `method` and the beginning of a path.
    pub fn requests(&self, method: &str, path: &str) -> u64 {
        let faults = self.shared.faults();
        faults.requests.iter().filter(|((m, p), _)| m == method && p.starts_with(path)).map(|(_, n)| n).sum()
    }

    /// Every path that was asked for with this method.
    pub fn paths(&self, method: &str) -> Vec<String> {
        self.shared
            .faults()
            .requests
            .keys()
            .filter(|(m, _)| m == method)
            .map(|(_, path)| path.clone())
            .collect()
    }

    /// Goes away: connections break, new ones are refused.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }

    /// Comes back on the same port; with `version` as a server whose versions begin there.
    ///
    /// # Errors
    /// The port is taken.
    pub fn come_back(&mut self, version: Option<u64>) -> Result<()> {
        self.stop();
        if let Some(version) = version {
            self.shared.store().move_to(version);
        }
        let listener = TcpListener::bind(self.address).context("the port is taken")?;
        self.serve(vec![listener])
    }

    fn serve(&mut self, listeners: Vec<TcpListener>) -> Result<()> {
        self.running = Some(serve(listeners, self.shared.clone())?);
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The documents of a text, and the items of its lists.
fn objects(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
    let items = |document: Value| match &document["items"] {
        Value::Array(items) => items.clone(),
        _ => vec![document],
    };
    Ok(documents.into_iter().filter(|d| !d.is_null()).flat_map(items).collect())
}

/// What makes an object the same one, for kinds in the default namespace too.
fn identity(object: &Value) -> (String, String, String, String) {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let api_version = text("/apiVersion");
    let kind = text("/kind");
    let namespaced = of_object(&api_version, &kind).is_some_and(|r| r.namespaced);
    let namespace = match text("/metadata/namespace") {
        none if none.is_empty() && namespaced => "default".to_owned(),
        namespace => namespace,
    };
    (api_version, kind, namespace, text("/metadata/name"))
}

/// A further listener, served until it is dropped.
pub struct Extra(Option<Running>);

impl Drop for Extra {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            running.end();
        }
    }
}

impl Running {
    fn end(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// A thread with a runtime of its own, whose end takes all connections along.
fn serve(listeners: Vec<TcpListener>, shared: Arc<Shared>) -> Result<Running> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let router = server::router(shared);
    for listener in &listeners {
        listener.set_nonblocking(true)?;
    }
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("apiserver".to_owned()).spawn(move || {
        runtime.block_on(async move {
            for listener in listeners {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let router = router.clone();
                tokio::spawn(async move { axum::serve(listener, router).await });
            }
            let _ = stopped.await;
        });
        runtime.shutdown_background();
    })?;
    Ok(Running { stop, thread })
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the watches that there may be something for them.
    fn changed(&self, store: MutexGuard<'_, Store>) {
        drop(store);
        self.changed.send_modify(|count| *count += 1);
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn cuts(&self) -> watch::Receiver<(u64, Cut)> {
        self.cut.subscribe()
    }

    fn count(&self, method: &str, path: &str) {
        *self.faults().requests.entry((method.to_owned(), path.to_owned())).or_default() += 1;
    }

    fn token(&self) -> Option<String> {
        self.faults().token.clone()
    }

    fn streams(&self) -> bool {
        !self.faults().lists_only
    }

    fn held(&self, resource: &Resource) -> bool {
        self.faults().held.contains(resource.plural)
    }

    fn forbidden(&self, resource: &Resource) -> bool {
        self.faults().forbidden.contains(resource.plural)
    }

    fn take_refusal(&self) -> Option<(u16, Option<u64>)> {
        let mut faults = self.faults();
        let (left, code, after) = faults.refuse.take()?;
        if left > 1 {
            faults.refuse = Some((left - 1, code, after));
        }
        Some((code, after))
    }

    fn take_hang(&self) -> bool {
        let hang = &mut self.faults().hang;
        let taken = *hang > 0;
        *hang = hang.saturating_sub(1);
        taken
    }
}
