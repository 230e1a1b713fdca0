//! `<run-dir>/cni.sock`: what the plugin asks the agent. One JSON line each way, then the connection closes.
//!
//! ```text
//! plugin: {"request":"confirm","attachment":{…}}      agent: {"response":"ok"}
//! plugin: {"request":"status"}                        agent: {"response":"error","code":50,"msg":"…","details":"…"}
//! ```
//!
//! The plugin owns the deadline: the agent answers when the policy is in force, however long that takes, and withdraws
//! the question when the plugin hangs up. Knows nothing of what the agent does to answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::store::Attachment;

/// Name of the socket in the run directory.
pub const SOCKET: &str = "cni.sock";

/// An agent that restarts is back within about a second: ask again at this pace.
const RETRY_PACE: Duration = Duration::from_millis(50);

/// How soon a question that nobody wants an answer to any more is withdrawn.
const DOUBT_PACE: Duration = Duration::from_millis(50);

/// An answer is a few sentences; more is not an agent's.
const MAX_ANSWER: u64 = 64 * 1024;

/// Longest path of a unix socket with its closing NUL, unix(7).
const SUN_PATH: usize = 108;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase")]
#[allow(clippy::large_enum_variant, reason = "one is made per process")]
pub enum Request {
    /// Answer when the policy of this very attachment is in the kernel.
    Confirm {
        /// The attachment, as it lies in the store.
        attachment: Attachment,
    },
    /// Could a pod be attached now?
    Status,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "camelCase")]
pub enum Response {
    /// It is so.
    Ok {},
    /// It is not, and will not be by waiting.
    Error {
        /// A code of the CNI specification, handed on to the runtime.
        code: u32,
        /// What is wrong, one sentence.
        msg: String,
        /// What to do about it.
        #[serde(default)]
        details: String,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The deadline came while the agent was thinking.
    #[error("the agent did not answer within {0:?}")]
    TimedOut(Duration),
    /// The deadline came and nobody listens.
    #[error("the agent cannot be reached: {0}")]
    Unreachable(io::Error),
    /// The asker's own reason has gone.
    #[error("the question was withdrawn")]
    Withdrawn,
    /// The agent said something else.
    #[error("the agent's answer is not understood: {0}")]
    Garbled(String),
}

/// Asks the agent and waits for its answer until `patience` is over; tries again while nobody listens.
///
/// # Errors
/// See [`AskError`].
pub fn ask(run_dir: &Path, request: &Request, patience: Duration) -> Result<Response, AskError> {
    Question::put(run_dir, request, patience).answer(|| true)
}

/// A question on its way: the agent may think while the asker does something else.
#[derive(Debug)]
pub struct Question {
    run_dir: PathBuf,
    line: Vec<u8>,
    patience: Duration,
    deadline: Instant,
    /// Where it has been put, or why it could not be.
    put: io::Result<UnixStream>,
}

impl Question {
    /// Asks, for an answer within `patience` from now. That nobody listens shows in [`Question::answer`].
    pub fn put(run_dir: &Path, request: &Request, patience: Duration) -> Question {
        let mut line = serde_json::to_vec(request).expect("a struct of strings is JSON");
        line.push(b'\n');
        let deadline = Instant::now() + patience;
        let put = put(run_dir, &line, deadline);
        Question { run_dir: run_dir.to_owned(), line, patience, deadline, put }
    }

    /// Waits for the answer for as long as `wanted` says so, which is looked at every 50 ms; asks again while nobody listens.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn answer(self, wanted: impl Fn() -> bool) -> Result<Response, AskError> {
        let Question { run_dir, line, patience, deadline, put: mut stream } = self;
        loop {
            let error = match stream.and_then(|stream| read(stream, deadline, &wanted)) {
                Ok(answer) if answer.is_empty() => io::ErrorKind::UnexpectedEof.into(),
                Ok(answer) => {
                    return serde_json::from_slice(&answer).map_err(|e| AskError::Garbled(e.to_string()));
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(AskError::TimedOut(patience));
                }
                Err(e) => e,
            };
            if !wanted() {
                return Err(AskError::Withdrawn);
            }
            // No socket, no listener, or hung up without a word: an agent that is being replaced looks like this.
            if deadline.saturating_duration_since(Instant::now()) <= RETRY_PACE {
                return Err(AskError::Unreachable(error));
            }
            thread::sleep(RETRY_PACE);
            stream = put(&run_dir, &line, deadline);
        }
    }
}

fn put(run_dir: &Path, line: &[u8], deadline: Instant) -> io::Result<UnixStream> {
    let mut stream = connect(run_dir)?;
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    stream.write_all(line)?;
    Ok(stream)
}

fn read(mut stream: UnixStream, deadline: Instant, wanted: &impl Fn() -> bool) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.ends_with(b"\n") && (answer.len() as u64) < MAX_ANSWER {
        stream.set_read_timeout(Some(remaining(deadline)?.min(DOUBT_PACE)))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The deadline itself is looked at above.
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if !wanted() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(answer)
}

/// A zero timeout means "for ever" to the kernel, so the end of time is an error here.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn connect(run_dir: &Path) -> io::Result<UnixStream> {
    let path = run_dir.join(SOCKET);
    if path.as_os_str().len() < SUN_PATH {
        return UnixStream::connect(path);
    }
    // Too long for a socket address; by way of the directory's descriptor it is not.
    let dir = std::fs::File::open(run_dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

/// Answers each connection to `listener` with `handler`, one thread per connection, until the listener fails.
/// A stand-in for the agent in tests and benchmarks; a handler that returns `None` hangs up without an answer.
///
/// # Errors
/// The listener's.
pub fn serve_blocking<H>(listener: &UnixListener, handler: H) -> io::Result<()>
where
    H: Fn(Request) -> Option<Response> + Clone + Send + 'static,
{
    loop {
        let (stream, _) = listener.accept()?;
        let handler = handler.clone();
        thread::spawn(move || {
            // A plugin that went away has nobody to tell.
            drop(answer(stream, &handler));
        });
    }
}

fn answer(mut stream: UnixStream, handler: &impl Fn(Request) -> Option<Response>) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let response = match serde_json::from_str(&line) {
        Ok(request) => handler(request),
        Err(e) => Some(Response::Error { code: 6, msg: "not a request".to_owned(), details: e.to_string() }),
    };
    let Some(response) = response else { return Ok(()) };
    let mut text = serde_json::to_vec(&response)?;
    text.push(b'\n');
    stream.write_all(&text)
}
