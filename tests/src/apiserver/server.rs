//! The HTTP side: paths and queries in, JSON out, watches as chunked streams that faults can reach.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::resources::{Path, Resource};
use super::store::{Place, Stored, patch};
use super::{Cut, Shared};

/// As a real server, which tells its watchers now and then how far it has come.
const BOOKMARK: Duration = Duration::from_millis(500);
/// Larger bodies are no objects.
const MAX_BODY: usize = 4 << 20;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(answer).with_state(shared)
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Infallible> {
    Ok(match try_answer(&shared, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    })
}

/// A Status that says no.
struct Refusal {
    code: u16,
    reason: &'static str,
    message: String,
    retry_after: Option<u64>,
}

fn refuse<T>(code: u16, reason: &'static str, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code, reason, message: message.into(), retry_after: None })
}

impl Refusal {
    fn status(&self) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.code, "reason": self.reason,
               "message": self.message})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.code).expect("a status code");
        let mut response = (code, self.status().to_string()).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        Query(pairs.map(|(k, v)| (k.to_owned(), decode(v))).collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn is(&self, key: &str) -> bool {
        self.get(key) == Some("true")
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let hex =
                    std::str::from_utf8(&[*high, *low]).ok().and_then(|h| u8::from_str_radix(h, 16).ok());
                bytes.push(hex.unwrap_or(b'?'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn try_answer(shared: &Arc<Shared>, request: Request) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    shared.count(head.method.as_str(), head.uri.path());
    if let Some(token) = shared.token() {
        let given = head.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        if given != Some(format!("Bearer {token}").as_str()) {
            return refuse(401, "Unauthorized", "Unauthorized");
        }
    }
    if let Some((code, retry_after)) = shared.take_refusal() {
        let message = "injected".to_owned();
        return Err(Refusal { code, reason: "InternalError", message, retry_after });
    }
    if shared.take_hang() {
        std::future::pending::<()>().await;
    }
    let Some(path) = Path::parse(head.uri.path()) else { return refuse(404, "NotFound", "no such path") };
    let resource = path.resource;
    let installed = !resource.custom || shared.store().definitions().contains(resource.definition().as_str());
    if !installed {
        return refuse(404, "NotFound", "the server could not find the requested resource");
    }
    if shared.forbidden(resource) {
        return refuse(403, "Forbidden", format!("{} is forbidden", resource.plural));
    }
    let query = Query::parse(head.uri.query().unwrap_or_default());
    match (head.method, &path.name) {
        (Method::GET, None) if query.is("watch") => watch_resource(shared, &path, &query),
        (Method::GET, None) => list(shared, &path, &query),
        (Method::GET, Some(_)) => {
            let store = shared.store();
            let Some(object) = store.get(resource, &place(&path)?) else { return not_found() };
            Ok(json_response(object.text.to_string()))
        }
        (method, _) => {
            let body = axum::body::to_bytes(body, MAX_BODY).await;
            let body = body.or_else(|e| refuse(400, "BadRequest", e.to_string()))?;
            let body: Value =
                serde_json::from_slice(&body).or_else(|e| refuse(400, "BadRequest", e.to_string()))?;
            let kind =
                head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
            write(shared, &path, &method, kind, body)
        }
    }
}

fn not_found<T>() -> Result<T, Refusal> {
    refuse(404, "NotFound", "not found")
}

fn place(path: &Path) -> Result<Place, Refusal> {
    let Some(name) = path.name.clone() else { return refuse(405, "MethodNotAllowed", "no name") };
    match (path.resource.namespaced, &path.namespace) {
        (true, None) => refuse(400, "BadRequest", "no namespace"),
        (_, namespace) => Ok((namespace.clone().unwrap_or_default(), name)),
    }
}

fn write(
    shared: &Arc<Shared>,
    path: &Path,
    method: &Method,
    content_type: &str,
    body: Value,
) -> Result<Response, Refusal> {
    let resource = path.resource;
    let mut store = shared.store();
    let stored = match *method {
        Method::POST => {
            let Some(name) = body["metadata"]["name"].as_str() else {
                return refuse(422, "Invalid", "metadata.name: Required value");
            };
            let place = (path.namespace.clone().unwrap_or_default(), name.to_owned());
            if store.get(resource, &place).is_some() {
                return refuse(409, "AlreadyExists", format!("{name} already exists"));
            }
            store.put(resource, place, body)
        }
        Method::PUT => {
            let place = place(path)?;
            let Some(old) = store.get(resource, &place) else { return not_found() };
            let versions = (&old.value["metadata"]["resourceVersion"], &body["metadata"]["resourceVersion"]);
            if !versions.1.is_null() && versions.0 != versions.1 {
                return refuse(409, "Conflict", "the object has been modified");
            }
            store.put(resource, place, body)
        }
        Method::PATCH => {
            let place = place(path)?;
            let Some(old) = store.get(resource, &place) else { return not_found() };
            let strategic = match content_type {
                "application/strategic-merge-patch+json" if resource.custom => {
                    return refuse(
                        415,
                        "UnsupportedMediaType",
                        "custom resources take no strategic merge patch",
                    );
                }
                "application/strategic-merge-patch+json" => true,
                "application/merge-patch+json" => false,
                other => return refuse(415, "UnsupportedMediaType", other),
            };
            let mut object = (*old.value).clone();
            // The status subresource takes nothing but status, and the object itself no status where it has one.
            let narrowed = match path.status {
                true => json!({"status": body["status"]}),
                false => body,
            };
            patch(&mut object, &narrowed, strategic);
            if object == *old.value { old.clone() } else { store.put(resource, place, object) }
        }
        _ => return refuse(405, "MethodNotAllowed", method.to_string()),
    };
    let text = stored.text.to_string();
    shared.changed(store);
    Ok(json_response(text))
}

fn json_response(text: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text.into()).into_response()
}

/// Whether the question is about this object.
#[derive(Clone)]
struct Wanted {
    namespace: Option<String>,
    name: Option<String>,
}

impl Wanted {
    fn new(path: &Path, query: &Query) -> Self {
        let name = query.get("fieldSelector").and_then(|s| s.strip_prefix("metadata.name="));
        Wanted { namespace: path.namespace.clone(), name: name.map(str::to_owned) }
    }

    fn includes(&self, (namespace, name): &Place) -> bool {
        self.namespace.as_ref().is_none_or(|n| n == namespace) && self.name.as_ref().is_none_or(|n| n == name)
    }
}

fn list(shared: &Arc<Shared>, path: &Path, query: &Query) -> Result<Response, Refusal> {
    let resource = path.resource;
    let wanted = Wanted::new(path, query);
    let mut store = shared.store();
    let limit = query.get("limit").and_then(|l| l.parse().ok()).unwrap_or(usize::MAX);
    let (version, from, all) = match query.get("continue") {
        None => {
            let all: Vec<Stored> = store
                .all(resource)
                .filter(|(place, _)| wanted.includes(place))
                .map(|(_, o)| o.clone())
                .collect();
            (store.version(), 0, Arc::new(all))
        }
        Some(token) => {
            let known = token.split_once('+').and_then(|(version, from)| {
                let (version, from) = (version.parse().ok()?, from.parse::<usize>().ok()?);
                Some((version, from, store.kept(resource, version)?))
            });
            let Some(known) = known else { return refuse(410, "Expired", "the continue token is too old") };
            known
        }
    };
    let upto = from.saturating_add(limit).min(all.len());
    let next = (upto < all.len()).then(|| {
        if from == 0 {
            store.keep(resource, all.clone());
        }
        format!("{version}+{upto}")
    });
    drop(store);
    let mut text = format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{{"resourceVersion":"{version}","continue":"{}"}},"items":["#,
        resource.kind,
        resource.api_version(),
        next.unwrap_or_default()
    );
    for (i, object) in all[from..upto].iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(&object.text);
    }
    text.push_str("]}");
    Ok(json_response(text))
}

fn watch_resource(shared: &Arc<Shared>, path: &Path, query: &Query) -> Result<Response, Refusal> {
    let resource = path.resource;
    let initial = query.is("sendInitialEvents");
    if initial && !shared.streams() {
        let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList \
                       feature gate is enabled";
        return refuse(422, "Invalid", message);
    }
    let from = query.get("resourceVersion").and_then(|v| v.parse().ok());
    let store = shared.store();
    let mut opening = String::new();
    let after = match (initial, from) {
        (true, _) => {
            let wanted = Wanted::new(path, query);
            for (_, object) in store.all(resource).filter(|(place, _)| wanted.includes(place)) {
                push_event(&mut opening, "ADDED", &object.text);
            }
            opening += &bookmark(resource, store.version(), true);
            store.version()
        }
        (false, Some(version)) if version < store.compacted() => {
            return refuse(
                410,
                "Expired",
                format!("too old resource version: {version} ({})", store.compacted()),
            );
        }
        // A version of the future is waited for, without a word, as the real server's storage does.
        (false, Some(version)) => version,
        (false, None) => return refuse(400, "BadRequest", "resourceVersion is missing"),
    };
    drop(store);
    let seconds = query.get("timeoutSeconds").and_then(|s| s.parse().ok()).unwrap_or(3600);
    let (sender, receiver) = mpsc::channel(16);
    let watching = Watching {
        shared: shared.clone(),
        resource,
        wanted: Wanted::new(path, query),
        after,
        ends: Instant::now() + Duration::from_secs(seconds),
        sender,
        changes: shared.changes(),
        cuts: shared.cuts(),
    };
    tokio::spawn(watching.run(opening));
    let pieces = stream::unfold(receiver, |mut receiver: mpsc::Receiver<_>| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    Ok(json_response(Body::from_stream(pieces)))
}

fn push_event(text: &mut String, word: &str, object: &str) {
    *text += &format!("{{\"type\":\"{word}\",\"object\":{object}}}\n");
}

fn bookmark(resource: &Resource, version: u64, initial_end: bool) -> String {
    let mut object = json!({"kind": resource.kind, "apiVersion": resource.api_version(),
                            "metadata": {"resourceVersion": version.to_string()}});
    if initial_end {
        object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let mut text = String::new();
    push_event(&mut text, "BOOKMARK", &object.to_string());
    text
}

/// An open watch.
struct Watching {
    shared: Arc<Shared>,
    resource: &'static Resource,
    wanted: Wanted,
    /// Everything up to this version has been told.
    after: u64,
    ends: Instant,
    sender: mpsc::Sender<Result<Bytes, std::io::Error>>,
    changes: watch::Receiver<u64>,
    cuts: watch::Receiver<(u64, Cut)>,
}

impl Watching {
    async fn run(mut self, opening: String) {
        self.cuts.mark_unchanged();
        if !opening.is_empty() && self.say(opening).await.is_err() {
            return;
        }
        let mut marks = tokio::time::interval(BOOKMARK);
        loop {
            let mut text = String::new();
            if !self.shared.held(self.resource) {
                let store = self.shared.store();
                for happening in store.since(self.resource, self.after) {
                    if self.wanted.includes(&happening.place) {
                        push_event(&mut text, happening.word, &happening.object.text);
                    }
                    self.after = happening.version;
                }
            }
            if !text.is_empty() && self.say(text).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(self.ends.into()) => return,
                () = self.sender.closed() => return,
                _ = self.cuts.changed() => {
                    let (_, cut) = *self.cuts.borrow_and_update();
                    return self.cut(cut).await;
                }
                _ = self.changes.changed() => {
                    self.changes.mark_unchanged();
                }
                _ = marks.tick() => {
                    let version = {
                        let store = self.shared.store();
                        // What has happened since is told first, or a bookmark would pass over it.
                        let told = store.since(self.resource, self.after).is_empty();
                        told.then(|| store.version())
                    };
                    // One that waits for the future says nothing.
                    let version = version.filter(|version| self.after <= *version);
                    if let Some(version) = version.filter(|_| !self.shared.held(self.resource)) {
                        self.after = version;
                        let mark = bookmark(self.resource, version, false);
                        if self.say(mark).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
    }

    async fn say(&self, text: String) -> Result<(), ()> {
        self.sender.send(Ok(text.into())).await.map_err(|_| ())
    }

    async fn cut(self, cut: Cut) {
        match cut {
            Cut::End => {}
            Cut::Break => {
                let half = r#"{"type":"ADDED","object":{"metadata":{"name":"ha"#;
                let _ = self.say(half.to_owned()).await;
                let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                let _ = self.sender.send(Err(reset)).await;
            }
            Cut::Expire => {
                let mut text = String::new();
                let refusal = Refusal {
                    code: 410,
                    reason: "Expired",
                    message: "too old".to_owned(),
                    retry_after: None,
                };
                push_event(&mut text, "ERROR", &refusal.status().to_string());
                let _ = self.say(text).await;
            }
            Cut::Stall => self.sender.closed().await,
        }
    }
}
