//! HTTP over the agent's unix sockets: one request, one answer.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use manx_agent::view::{ApiError, ErrorCode, paths};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::output::Exit;

/// An agent that has not answered by then hangs.
const DEADLINE: Duration = Duration::from_secs(30);
/// A table of a million routes is some 400 MB of JSON.
const MAX_BODY: usize = 1 << 30;

/// Why there is no document to show.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No agent, or none that answers; the sentence says what to do.
    Unreachable(String),
    /// The sockets are there, but not for us.
    Permission(String),
    /// The agent says no.
    Refused(ApiError),
    /// What was asked cannot be understood, or read.
    Usage(String),
}

impl Failure {
    pub(crate) fn unreachable(message: String) -> Self {
        Failure::Unreachable(message)
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Unreachable(_) => Exit::Unreachable,
            Failure::Permission(_) => Exit::Permission,
            Failure::Usage(_) => Exit::Usage,
            Failure::Refused(error) => match error.code {
                ErrorCode::NotFound => Exit::No,
                ErrorCode::BadRequest => Exit::Usage,
                ErrorCode::Forbidden => Exit::Permission,
                ErrorCode::Unavailable => Exit::Unreachable,
            },
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Unreachable(m) | Failure::Permission(m) | Failure::Usage(m) => f.write_str(m),
            Failure::Refused(error) => f.write_str(&error.message),
        }
    }
}

/// Asks one agent.
pub(crate) struct Client {
    run_dir: PathBuf,
}

impl Client {
    pub(crate) fn new(run_dir: &Path) -> Self {
        Client { run_dir: run_dir.to_owned() }
    }

    /// The agent's run directory.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Gets a document.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        self.ask(Method::GET, path, query, String::new()).await
    }

    /// Orders something; the document says how things stand then.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        self.ask(Method::POST, path, query, String::new()).await
    }

    /// Sends a text and gets what it means for the agent.
    pub(crate) async fn send<T: DeserializeOwned>(&self, path: &str, text: String) -> Result<T, Failure> {
        self.ask(Method::POST, path, &[], text).await
    }

    /// Gets documents, a line each, until `each` has enough.
    ///
    /// # Errors
    /// Also when the agent ends the stream: what would happen next is not known then.
    pub(crate) async fn stream<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        mut each: impl FnMut(T) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let target = target(path, query);
        let begin = self.begin(Method::GET, &target, String::new());
        let (socket, mut response) = match tokio::time::timeout(DEADLINE, begin).await {
            Ok(answer) => answer?,
            Err(_) => return Err(self.silent()),
        };
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|e| broken(&socket, &e))?;
            return Err(refusal(status, &body.to_bytes()));
        }
        let mut rest = Vec::new();
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|e| broken(&socket, &e))?;
            let Ok(data) = frame.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let document = serde_json::from_slice(&line).map_err(|e| strange(&socket, &e))?;
                if !each(document)? {
                    return Ok(());
                }
            }
        }
        Err(Failure::Unreachable(format!("the agent at {} has ended", self.run_dir.display())))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        text: String,
    ) -> Result<T, Failure> {
        let target = target(path, query);
        let exchange = self.exchange(method, &target, text);
        let (socket, status, body) = match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(answer) => answer?,
            Err(_) => return Err(self.silent()),
        };
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|e| strange(&socket, &e));
        }
        Err(refusal(status, &body))
    }

    fn silent(&self) -> Failure {
        Failure::Unreachable(format!(
            "the agent at {} does not answer: no word for {} s; look at its log",
            self.run_dir.display(),
            DEADLINE.as_secs()
        ))
    }

    async fn exchange(
        &self,
        method: Method,
        target: &str,
        text: String,
    ) -> Result<(PathBuf, StatusCode, Bytes), Failure> {
        let (socket, response) = self.begin(method, target, text).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|e| broken(&socket, &*e))?;
        Ok((socket, status, body.to_bytes()))
    }

    /// Sends a request; the body of the answer is still to be read.
    async fn begin(
        &self,
        method: Method,
        target: &str,
        text: String,
    ) -> Result<(PathBuf, Response<Incoming>), Failure> {
        let (socket, stream) = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(&socket, &e))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(hyper::header::HOST, "manx")
            .body(Full::new(Bytes::from(text)))
            .map_err(|e| Failure::Usage(format!("{target}: {e}")))?;
        let response = sender.send_request(request).await.map_err(|e| broken(&socket, &e))?;
        Ok((socket, response))
    }

    /// The socket that answers everything, or where we may not, the one for reading.
    async fn connect(&self) -> Result<(PathBuf, UnixStream), Failure> {
        let admin = self.run_dir.join(paths::ADMIN_SOCKET);
        let first = match UnixStream::connect(&admin).await {
            Ok(stream) => return Ok((admin, stream)),
            Err(e) => e,
        };
        if !matches!(first.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) {
            return Err(no_agent(&admin, &first));
        }
        let read_only = self.run_dir.join(paths::READ_ONLY_SOCKET);
        match UnixStream::connect(&read_only).await {
            Ok(stream) => Ok((read_only, stream)),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(Failure::Permission(format!(
                "permission denied: {}; run as root, or as a member of the group of {}",
                admin.display(),
                read_only.display()
            ))),
            Err(_) if first.kind() == io::ErrorKind::PermissionDenied => {
                Err(Failure::Permission(format!("permission denied: {}; run as root", admin.display())))
            }
            Err(_) => Err(no_agent(&admin, &first)),
        }
    }
}

fn no_agent(socket: &Path, error: &io::Error) -> Failure {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "no such socket".to_owned(),
        io::ErrorKind::ConnectionRefused => "nobody listens".to_owned(),
        _ => error.to_string(),
    };
    Failure::Unreachable(format!(
        "no agent at {}: {why}; start manx-agent, or name its run directory with --run-dir",
        socket.display()
    ))
}

fn broken(socket: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::Unreachable(format!("{} broke off: {error}; look at the agent's log", socket.display()))
}

fn strange(socket: &Path, error: &serde_json::Error) -> Failure {
    Failure::Unreachable(format!(
        "the answer of {} cannot be understood ({error}); is manxctl of the agent's version?",
        socket.display()
    ))
}

fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    serde_json::from_slice::<ApiError>(body)
        .map_or_else(|_| bare(status, &String::from_utf8_lossy(body)), Failure::Refused)
}

/// An answer that did not come from the agent's own hand, such as the HTTP layer's.
fn bare(status: StatusCode, body: &str) -> Failure {
    let message = format!("the agent answers {status}: {}", body.lines().next().unwrap_or_default());
    match status {
        StatusCode::BAD_REQUEST => Failure::Usage(message),
        StatusCode::NOT_FOUND => Failure::Refused(ApiError::new(ErrorCode::NotFound, message)),
        _ => Failure::Unreachable(message),
    }
}

fn target(path: &str, query: &[(&str, &str)]) -> String {
    let mut target = path.to_owned();
    for (i, (key, value)) in query.iter().enumerate() {
        target.push(if i == 0 { '?' } else { '&' });
        target.push_str(key);
        target.push('=');
        target.push_str(&encode(value));
    }
    target
}

/// Percent-encodes all but RFC 3986's unreserved characters.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a String cannot fail");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_and_keys_joined() {
        let query = [("target", "shop/web"), ("x", "a&b=c d")];
        assert_eq!(target("/v1/policy/for", &query), "/v1/policy/for?target=shop%2Fweb&x=a%26b%3Dc%20d");
        assert_eq!(target("/v1/status", &[]), "/v1/status");
        assert_eq!(encode("fd00::1"), "fd00%3A%3A1");
    }
}
