//! The shell: looks at the agent every few seconds, asks the pure rooms what to write, writes it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::events::{About, Recorder, Write};
use super::lease::{self, Act, Election, Seen};
use super::node_state::{self, NodeNow, rfc3339};
use super::verdict::{self, Counts, FOREIGN, JUDGED};
use crate::api::facts::epoch_now;
use crate::crd::status::NodeStateStatus;
use crate::source::kube::kinds::CALICO;
use crate::source::kube::{Api, Call, encode};

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON: &str = "application/json";
/// Objects in a page of the leader's reading.
const PAGE: u32 = 200;
/// Where Events on cluster-scoped objects live.
const EVENTS: &str = "/api/v1/namespaces/default/events";
/// An Event lives for an hour, unless the API server was told otherwise: what is still true is said again before.
const SAY_AGAIN: Duration = Duration::from_secs(50 * 60);
/// Patches in one round of the leader; the rest waits for the next.
const ROUND: usize = 100;

/// Whose agent this is and how often it writes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this node's Node.
    pub node: String,
    /// The agent's own namespace: that of the Lease.
    pub namespace: String,
    /// Whether this agent is the one that makes pods' network: it alone says when it is there.
    pub cni: bool,
    /// How often.
    pub timing: Timing,
}

/// How often to do what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Look at the agent.
    pub look: Duration,
    /// As the Lease's holder, look at the cluster.
    pub judge: Duration,
    /// The Lease.
    pub lease: lease::Timing,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            look: Duration::from_secs(2),
            judge: Duration::from_secs(30),
            lease: lease::Timing::default(),
        }
    }
}

/// Writes until the agent ends. `view` tells how the node stands; `None`: it cannot tell now.
pub async fn run<F>(api: Arc<Api>, settings: Settings, view: impl Fn() -> F)
where
    F: Future<Output = Option<NodeNow>>,
{
    let (held, holds) = watch::channel(None);
    let (seen, sees) = watch::channel(BTreeMap::new());
    let leader = Leader {
        api: api.clone(),
        told: HashMap::new(),
        holds,
        misunderstood: sees,
        told_of_policies: HashMap::new(),
        timing: settings.timing,
    };
    let candidate = Candidate { api: api.clone(), settings: settings.clone(), held };
    let node = Node::new(api, settings, seen);
    tokio::join!(node.run(view), candidate.run(), leader.run());
}

/// A write that was refused or had no answer is tried again at the next turn; the log hears of it once.
fn report(what: &'static str, failing: &mut bool, result: Result<(u16, Value), String>) -> Option<Value> {
    let error = match result {
        Ok((200..=299, value)) => {
            if std::mem::take(failing) {
                tracing::info!(what, "written again");
            }
            return Some(value);
        }
        Ok((code, value)) => format!("{code}: {}", value["message"].as_str().unwrap_or_default()),
        Err(error) => error,
    };
    if !std::mem::replace(failing, true) {
        tracing::warn!(what, error, "cannot be written to the API; tried again");
    }
    None
}

/// What a node says of itself.
struct Node {
    api: Arc<Api>,
    settings: Settings,
    recorder: Recorder,
    before: Option<NodeNow>,
    written: Option<(NodeStateStatus, Instant)>,
    tried: Option<Instant>,
    /// The condition was written, and is not taken back: what is there stays when a peer goes.
    network: bool,
    network_tried: Option<Instant>,
    /// What the Lease's holder tells of policies.
    misunderstood: watch::Sender<BTreeMap<String, String>>,
    failing: Failing,
}

#[derive(Default)]
struct Failing {
    condition: bool,
    state: bool,
    events: bool,
}

impl Node {
    fn new(
        api: Arc<Api>,
        settings: Settings,
        misunderstood: watch::Sender<BTreeMap<String, String>>,
    ) -> Self {
        let prefix = format!("{}.{:x}", settings.node, epoch_now());
        Node {
            api,
            settings,
            recorder: Recorder::new(prefix, Instant::now()),
            before: None,
            written: None,
            tried: None,
            network: false,
            network_tried: None,
            misunderstood,
            failing: Failing::default(),
        }
    }

    async fn run<F: Future<Output = Option<NodeNow>>>(mut self, view: impl Fn() -> F) {
        let mut tick = tokio::time::interval(self.settings.timing.look);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(now) = view().await else { continue };
            self.condition(&now).await;
            self.state(&now).await;
            self.events(&now).await;
            self.misunderstood.send_if_modified(|told| {
                let news = *told != now.misunderstood;
                told.clone_from(&now.misunderstood);
                news
            });
            self.before = Some(now);
        }
    }

    /// NetworkUnavailable=False, once CNI, policy and a required peer are there.
    async fn condition(&mut self, now: &NodeNow) {
        let rested = self.network_tried.is_none_or(|at| at.elapsed() >= node_state::APART);
        if self.network || !self.settings.cni || now.network_missing.is_some() || !rested {
            return;
        }
        self.network_tried = Some(Instant::now());
        let at = rfc3339(epoch_now());
        let patch = json!({"status": {"conditions": [{
            "type": "NetworkUnavailable", "status": "False", "reason": "ManxIsUp",
            "message": "pods can be attached, their policy is in the kernel, and a required peer is Established",
            "lastHeartbeatTime": at, "lastTransitionTime": at}]}});
        let path = format!("/api/v1/nodes/{}/status", self.settings.node);
        let call = Call { content_type: STRATEGIC, value: &patch };
        let result = self.api.call(Method::PATCH, &path, Some(call)).await;
        if report("condition NetworkUnavailable", &mut self.failing.condition, result).is_some() {
            self.network = true;
            tracing::info!("the node's network is available");
        }
    }

    async fn state(&mut self, now: &NodeNow) {
        let old = self.written.as_ref().map(|(status, _)| status);
        let status = node_state::status(now, old, epoch_now());
        let at = Instant::now();
        if !node_state::due(self.written.as_ref(), &status, self.tried, at) {
            return;
        }
        self.tried = Some(at);
        let result = self.write_state(&status).await;
        if report("BGPNodeState", &mut self.failing.state, result).is_some() {
            self.written = Some((status, at));
        }
    }

    async fn write_state(&self, status: &NodeStateStatus) -> Result<(u16, Value), String> {
        let node = &self.settings.node;
        let collection = "/apis/manx.dev/v1alpha1/bgpnodestates";
        let path = format!("{collection}/{node}/status");
        let mut fields = json!(status);
        // What is not said any more must go.
        for field in ["asNumber", "routerID", "peers"] {
            if fields.get(field).is_none() {
                fields[field] = Value::Null;
            }
        }
        let patch = json!({ "status": fields });
        let call = Call { content_type: MERGE, value: &patch };
        let answer = self.api.call(Method::PATCH, &path, Some(call)).await?;
        if answer.0 != 404 {
            return Ok(answer);
        }
        // It goes along with its Node.
        let (code, object) = self.api.call(Method::GET, &format!("/api/v1/nodes/{node}"), None).await?;
        if code != 200 {
            return Ok((code, object));
        }
        let owner =
            json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": object["metadata"]["uid"]});
        let new = json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPNodeState",
                         "metadata": {"name": node, "ownerReferences": [owner]}});
        let call = Call { content_type: JSON, value: &new };
        let created = self.api.call(Method::POST, collection, Some(call)).await?;
        match created.0 {
            200..=299 | 409 => {
                let call = Call { content_type: MERGE, value: &patch };
                self.api.call(Method::PATCH, &path, Some(call)).await
            }
            // Not installed: policy alone, say. Nobody misses it.
            404 => Ok((200, Value::Null)),
            _ => Ok(created),
        }
    }

    async fn events(&mut self, now: &NodeNow) {
        let nothing = BTreeSet::new();
        let found: Vec<_> = match &self.before {
            Some(before) => node_state::happenings(before, now),
            // What was so before this agent came is no news, but for what nobody does.
            None => node_state::not_done(&nothing, now).collect(),
        };
        for happening in found {
            let Some(write) = self.recorder.record(Instant::now(), happening) else { continue };
            let result = self.write_event(write).await;
            report("Events", &mut self.failing.events, result);
        }
    }

    async fn write_event(&self, write: Write) -> Result<(u16, Value), String> {
        let at = rfc3339(epoch_now());
        match write {
            Write::Count(name, count) => {
                let patch = json!({"count": count, "lastTimestamp": at});
                let call = Call { content_type: MERGE, value: &patch };
                self.api.call(Method::PATCH, &format!("{EVENTS}/{name}"), Some(call)).await
            }
            Write::Create(name, happening) => {
                let node = &self.settings.node;
                let event = json!({
                    "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"},
                    "involvedObject": self.involved(&happening.about).await?,
                    "reason": happening.reason, "message": happening.message,
                    "type": if happening.warning { "Warning" } else { "Normal" }, "count": 1,
                    "firstTimestamp": at, "lastTimestamp": at,
                    "source": {"component": "manx-agent", "host": node},
                    "reportingComponent": "manx.dev/agent", "reportingInstance": node,
                });
                let call = Call { content_type: JSON, value: &event };
                self.api.call(Method::POST, EVENTS, Some(call)).await
            }
        }
    }

    /// What an Event is about, with the uid by which `kubectl describe` looks for it.
    async fn involved(&self, about: &About) -> Result<Value, String> {
        let node = &self.settings.node;
        match about {
            // As the kubelet does: Events of a Node are looked for by its name as uid.
            About::Node => Ok(json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": node})),
            About::Peer(peer) => {
                let path = format!("/apis/manx.dev/v1alpha1/bgppeers/{peer}");
                let (_, object) = self.api.call(Method::GET, &path, None).await?;
                let mut involved =
                    json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer", "name": peer});
                // One that is gone has none any more.
                if let Some(uid) = object["metadata"]["uid"].as_str() {
                    involved["uid"] = json!(uid);
                }
                Ok(involved)
            }
        }
    }
}

/// Stands for election all the time.
struct Candidate {
    api: Arc<Api>,
    settings: Settings,
    held: watch::Sender<Option<Instant>>,
}

impl Candidate {
    async fn run(self) {
        let mut election = Election::new(&self.settings.node, self.settings.timing.lease);
        let mut failing = false;
        loop {
            let before = election.held_until().is_some();
            let result = self.turn(&mut election).await;
            if let Err(error) = &result {
                election.failed(Instant::now());
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        error,
                        "the Lease of cluster-wide status cannot be read or written; tried again"
                    );
                }
            } else {
                failing = false;
            }
            let held = election.held_until();
            if before != held.is_some() {
                tracing::info!(holder = held.is_some(), "the Lease of cluster-wide status");
            }
            self.held.send_replace(held);
            // Not all at once: those that started together should not look together.
            tokio::time::sleep(election.pause().mul_f64(0.75 + chance() / 2.0)).await;
        }
    }

    async fn turn(&self, election: &mut Election) -> Result<(), String> {
        let collection =
            format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.settings.namespace);
        let path = format!("{collection}/{}", lease::NAME);
        let asked = Instant::now();
        let (code, mut object) = self.api.call(Method::GET, &path, None).await?;
        let seen = match code {
            200 => Some(seen(&object)),
            404 => None,
            _ => return Err(format!("{code}: {}", object["message"].as_str().unwrap_or_default())),
        };
        let Some(act) = election.look(asked, seen) else { return Ok(()) };
        let identity = &self.settings.node;
        let at = format!("{:.6}", k8s_openapi::jiff::Timestamp::now());
        let seconds = self.settings.timing.lease.duration.as_secs().max(1);
        let (method, path) = match act {
            Act::Create => {
                object = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                                "metadata": {"name": lease::NAME, "namespace": self.settings.namespace},
                                "spec": {"acquireTime": at, "leaseTransitions": 0}});
                (Method::POST, collection)
            }
            Act::Update { version, transitions, taken } => {
                object["metadata"]["resourceVersion"] = json!(version);
                object["spec"]["leaseTransitions"] = json!(transitions);
                if taken {
                    object["spec"]["acquireTime"] = json!(at);
                }
                (Method::PUT, path)
            }
        };
        object["spec"]["holderIdentity"] = json!(identity);
        object["spec"]["leaseDurationSeconds"] = json!(seconds);
        object["spec"]["renewTime"] = json!(at);
        let call = Call { content_type: JSON, value: &object };
        match self.api.call(method, &path, Some(call)).await? {
            (200..=299, _) => {
                election.written(asked);
                Ok(())
            }
            // Somebody was faster.
            (409, _) => {
                election.failed(Instant::now());
                Ok(())
            }
            (code, answer) => Err(format!("{code}: {}", answer["message"].as_str().unwrap_or_default())),
        }
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    f64::from(RandomState::new().hash_one(()) as u32) / f64::from(u32::MAX)
}

fn seen(object: &Value) -> Seen {
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Seen {
        holder: text(&spec["holderIdentity"]),
        duration: Duration::from_secs(spec["leaseDurationSeconds"].as_u64().unwrap_or(0)),
        transitions: spec["leaseTransitions"].as_i64().unwrap_or(0),
        version: text(&object["metadata"]["resourceVersion"]),
    }
}

/// Writes cluster-wide status while this agent holds the Lease.
struct Leader {
    api: Arc<Api>,
    /// Events that were written, by name, and when.
    told: HashMap<String, Instant>,
    holds: watch::Receiver<Option<Instant>>,
    /// Policies that cannot be understood, and why: every agent sees those of the whole cluster.
    misunderstood: watch::Receiver<BTreeMap<String, String>>,
    /// The same, as they were told, and when.
    told_of_policies: HashMap<(String, String), Instant>,
    timing: Timing,
}

impl Leader {
    async fn run(mut self) {
        let mut failing = false;
        loop {
            if self.holds.wait_for(Option::is_some).await.is_err() {
                return;
            }
            match self.round().await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(error, "cluster-wide status cannot be written; tried again");
                    }
                }
            }
            tokio::time::sleep(self.timing.judge).await;
        }
    }

    /// Whether we may still write.
    fn holds(&self) -> bool {
        self.holds.borrow().is_some_and(|until| Instant::now() < until)
    }

    async fn round(&mut self) -> Result<(), String> {
        let mut counts = Counts::default();
        self.each("manx.dev/v1alpha1", "bgpnodestates", |object| {
            if let Ok(state) = serde_json::from_value(object["status"].clone()) {
                counts.add(&state);
            }
        })
        .await?;
        self.tell_of_foreign().await?;
        self.tell_of_policies().await?;
        let mut left = ROUND;
        for (kind, api_version, plural) in JUDGED {
            let mut patches = Vec::new();
            let now = epoch_now();
            self.each(api_version, plural, |object| {
                if let Some(patch) = verdict::patch(*kind, &object, &counts, now)
                    && patches.len() < left
                {
                    let name = object["metadata"]["name"].as_str().unwrap_or_default();
                    patches.push((format!("/apis/{api_version}/{plural}/{name}/status"), patch));
                }
            })
            .await?;
            left -= patches.len();
            for (path, patch) in patches {
                if !self.holds() {
                    return Ok(());
                }
                let call = Call { content_type: MERGE, value: &patch };
                let (code, answer) = self.api.call(Method::PATCH, &path, Some(call)).await?;
                // Gone meanwhile is as good as written.
                if !matches!(code, 200..=299 | 404) {
                    let message = answer["message"].as_str().unwrap_or_default();
                    return Err(format!("{path}: {code}: {message}"));
                }
            }
        }
        Ok(())
    }

    /// Says by Events what of Calico's objects is not done: their kinds have no status to say it in.
    async fn tell_of_foreign(&mut self) -> Result<(), String> {
        self.told.retain(|_, at| at.elapsed() < SAY_AGAIN);
        let mut events = Vec::new();
        for (kind, plural) in FOREIGN {
            for (group, version) in CALICO {
                let installed = self
                    .each(&format!("{group}/{version}"), plural, |object| {
                        events.extend(verdict::not_done(*kind, &object).map(|text| (object, text)));
                    })
                    .await?;
                // The others are the same objects under another name.
                if installed {
                    break;
                }
            }
        }
        let at = rfc3339(epoch_now());
        for (object, message) in events {
            let event = verdict::event(&object, "NotSupported", &message, &at);
            let name = event["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if self.told.contains_key(&name) || self.told.len() >= ROUND || !self.holds() {
                continue;
            }
            self.warn(&event).await?;
            self.told.insert(name, Instant::now());
        }
        Ok(())
    }

    /// Says by Events on them which policies cannot be understood. They are read one by one, for there are few.
    async fn tell_of_policies(&mut self) -> Result<(), String> {
        self.told_of_policies.retain(|_, at| at.elapsed() < SAY_AGAIN);
        let misunderstood = self.misunderstood.borrow_and_update().clone();
        let at = rfc3339(epoch_now());
        for policy in misunderstood {
            if self.told_of_policies.contains_key(&policy)
                || self.told_of_policies.len() >= ROUND
                || !self.holds()
            {
                continue;
            }
            for path in verdict::paths(&policy.0) {
                let (code, object) = self.api.call(Method::GET, &path, None).await?;
                // Gone meanwhile, or known under the other name of its group.
                if code == 200 {
                    self.warn(&verdict::event(&object, "NotUnderstood", &policy.1, &at)).await?;
                    break;
                }
            }
            self.told_of_policies.insert(policy, Instant::now());
        }
        Ok(())
    }

    async fn warn(&self, event: &Value) -> Result<(), String> {
        let [name, namespace] =
            ["name", "namespace"].map(|field| event["metadata"][field].as_str().unwrap_or_default());
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let call = Call { content_type: JSON, value: event };
        match self.api.call(Method::POST, &path, Some(call)).await? {
            // There already: the Lease's last holder has told it.
            (200..=299 | 409, _) => Ok(()),
            (code, answer) => {
                Err(format!("Event {name}: {code}: {}", answer["message"].as_str().unwrap_or_default()))
            }
        }
    }

    /// Reads all objects of a resource, page by page; whether it is installed.
    async fn each(
        &self,
        api_version: &str,
        plural: &str,
        mut take: impl FnMut(Value),
    ) -> Result<bool, String> {
        let mut next = String::new();
        loop {
            let more = if next.is_empty() { String::new() } else { format!("&continue={}", encode(&next)) };
            let path = format!("/apis/{api_version}/{plural}?limit={PAGE}{more}");
            let (code, mut page) = self.api.call(Method::GET, &path, None).await?;
            match code {
                200 => {}
                404 => return Ok(false),
                _ => {
                    return Err(format!(
                        "{plural}: {code}: {}",
                        page["message"].as_str().unwrap_or_default()
                    ));
                }
            }
            let kind =
                page["kind"].as_str().and_then(|k| k.strip_suffix("List")).unwrap_or_default().to_owned();
            if let Value::Array(items) = page["items"].take() {
                for mut item in items {
                    // Items of a list do not say what they are.
                    if item.get("kind").is_none() {
                        (item["apiVersion"], item["kind"]) = (json!(api_version), json!(kind));
                    }
                    take(item);
                }
            }
            match page["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() => token.clone_into(&mut next),
                _ => return Ok(true),
            }
        }
    }
}
