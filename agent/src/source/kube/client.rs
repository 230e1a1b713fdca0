//! The way to the API server: where it is, who we are there, and connections that notice when nobody is at the far end.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use http_body_util::{BodyExt, Limited};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;
use tower::{BoxError, ServiceExt};

/// A server that does not take a connection within this time is not there.
const CONNECT: Duration = Duration::from_secs(10);
/// A silent connection is probed after this time...
const KEEPALIVE: Duration = Duration::from_secs(15);
/// ...and again after this...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// ...so often, before it counts as dead: a server that lost its power is noticed within half a minute.
const KEEPALIVE_RETRIES: u32 = 3;
/// The same for what we have sent and nobody has acknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failure files are read again, yet not more often than this: a changed kubeconfig, another server, a new CA.
const RENEW: Duration = Duration::from_secs(10);

/// For a question and its whole answer.
const CALL: Duration = Duration::from_secs(10);
/// The largest answer to one: a page of some hundred objects.
const MAX_ANSWER: usize = 64 << 20;

/// What is sent along with a question.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// `application/json`, or a kind of patch.
    pub content_type: &'static str,
    /// The object or the patch.
    pub value: &'a Value,
}

/// How to find the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// From inside a pod: the environment, the service account's token (read again as it is rotated) and CA.
    InCluster,
    /// A kubeconfig file and its current context.
    Kubeconfig(PathBuf),
}

/// The API server, as far as a request needs to know.
pub struct Api {
    access: Access,
    server: String,
    client: Mutex<(Client, Instant)>,
}

impl Api {
    /// Reads the configuration; connects to nobody yet.
    ///
    /// # Errors
    /// There is none, or it cannot be used; in words for the person who started the agent.
    pub async fn new(access: Access) -> anyhow::Result<Api> {
        let config = config(&access).await?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = client(config)?;
        Ok(Api { access, server, client: Mutex::new((client, Instant::now())) })
    }

    /// Its URL.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// What sends requests.
    pub fn client(&self) -> Client {
        self.lock().0.clone()
    }

    /// Asks once and reads the whole answer: its status code, and its JSON where it has some.
    ///
    /// # Errors
    /// No answer within ten seconds; in words.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Call<'_>>,
    ) -> Result<(u16, Value), String> {
        let mut request = Request::builder().method(method).uri(path).header(ACCEPT, "application/json");
        if let Some(call) = &body {
            request = request.header(CONTENT_TYPE, call.content_type);
        }
        let bytes = body.map_or_else(Vec::new, |call| call.value.to_string().into_bytes());
        let request = request.body(Body::from(bytes)).map_err(|e| e.to_string())?;
        let answer = async {
            let answer = self.client().send(request).await.map_err(|e| chain(&e))?;
            let code = answer.status().as_u16();
            let bytes =
                Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| chain(&*e))?;
            Ok((code, serde_json::from_slice(&bytes.to_bytes()).unwrap_or_default()))
        };
        match tokio::time::timeout(CALL, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", CALL.as_secs())),
        }
    }

    /// Reads the configuration again, if that was not just done. What cannot be read leaves things as they are: the next
    /// failure leads here again.
    pub(super) async fn renew(&self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.lock().1) < RENEW {
            return;
        }
        self.lock().1 = now;
        match config(&self.access).await.and_then(client) {
            Ok(client) => self.lock().0 = client,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the API server's configuration cannot be read");
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Client, Instant)> {
        self.client.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn config(access: &Access) -> anyhow::Result<Config> {
    match access {
        Access::InCluster => Config::incluster().context(
            "cannot find the Kubernetes API from here: outside of a pod, give --kubeconfig FILE, or --manifests DIR",
        ),
        Access::Kubeconfig(file) => {
            let called = || format!("--kubeconfig {}", file.display());
            let read = Kubeconfig::read_from(file).with_context(called)?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.with_context(called)
        }
    }
}

fn client(config: Config) -> anyhow::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let connector = config
        .rustls_https_connector_with_connector(tcp)
        .context("the API server's certificates cannot be used")?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let http = http.map_err(BoxError::from);
    let base = config.base_uri_layer();
    let headers = config.extra_headers_layer().context("the headers for the API server cannot be used")?;
    let auth = config.auth_layer().context("the credentials for the API server cannot be used")?;
    let builder = ClientBuilder::new(http, config.default_namespace).with_layer(&base).with_layer(&headers);
    Ok(match auth {
        Some(auth) => builder.with_layer(&auth).build(),
        None => builder.build(),
    })
}

/// An error with what caused it, in one line without repetitions.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
