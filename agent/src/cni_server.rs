//! The agent's end of `cni.sock`: an ADD that has wired its pod waits here until the pod's policy is in the kernel.
//!
//! One JSON line comes in, one goes out, the plugin holds the clock: when it hangs up, the question is withdrawn. Which
//! attachments there are is read from the plugin's store, by [`crate::attachments`]; a request only says that it is time
//! to look.

use std::sync::Arc;
use std::time::Duration;

use manx_cni::agent::{Request, Response};
use manx_policy::model::EndpointId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};

use crate::api::facts::SharedFacts;
use crate::policy_worker::PolicyHandle;

/// A request is one attachment: names, addresses, an id. More is not ours.
const MAX_REQUEST: u64 = 64 * 1024;
/// A plugin sends its line at once.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Plugins that wait at the same time: more than a node starts pods at once, and a bound on memory.
const MAX_WAITING: usize = 1024;
/// CNI error code "try again later".
const TRY_AGAIN_LATER: u32 = 11;
/// CNI error code of STATUS: not available now.
const NOT_AVAILABLE: u32 = 50;

/// What answers need.
#[derive(Clone)]
pub struct CniServer {
    /// The policy thread; `None`: policy is not enabled, and there is nothing to wait for.
    pub policy: Option<PolicyHandle>,
    /// Whether pods can be attached.
    pub facts: SharedFacts,
    /// Wakes [`crate::attachments::follow`].
    pub look: Arc<Notify>,
}

/// Serves plugins until the listener breaks.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: UnixListener, server: CniServer) -> std::io::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_WAITING));
    loop {
        let (stream, _) = listener.accept().await?;
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            // Closed without an answer: the plugin undoes its work and the runtime tries again.
            continue;
        };
        let server = server.clone();
        tokio::spawn(async move {
            if let Err(e) = converse(stream, &server).await {
                tracing::debug!(error = %e, "a CNI plugin went away");
            }
            drop(slot);
        });
    }
}

async fn converse(stream: UnixStream, server: &CniServer) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    let mut line = String::new();
    tokio::time::timeout(READ_TIMEOUT, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => {
            // The plugin says no more; an end of its stream means that it gave up.
            let mut rest = [0; 1];
            tokio::select! {
                answer = respond(request, server) => answer,
                _ = reader.read(&mut rest) => return Ok(()),
            }
        }
        Err(e) => Response::Error {
            code: TRY_AGAIN_LATER,
            msg: "the agent does not understand this plugin".to_owned(),
            details: format!("{e}: are the plugin and the agent of different versions?"),
        },
    };
    let mut text = serde_json::to_vec(&answer).map_err(std::io::Error::other)?;
    text.push(b'\n');
    writer.write_all(&text).await
}

async fn respond(request: Request, server: &CniServer) -> Response {
    match request {
        Request::Status => match server.facts.get().cni_blocked {
            None => Response::Ok {},
            Some(reason) => Response::Error {
                code: NOT_AVAILABLE,
                msg: "pods cannot be attached now".to_owned(),
                details: reason,
            },
        },
        Request::Confirm { attachment } => {
            let Some(policy) = &server.policy else { return Response::Ok {} };
            server.look.notify_one();
            let id = EndpointId { container_id: attachment.container_id, ifname: attachment.ifname };
            match policy.confirm(id).await {
                Ok(_) => Response::Ok {},
                Err(_) => Response::Error {
                    code: TRY_AGAIN_LATER,
                    msg: "the agent is stopping".to_owned(),
                    details: "the policy of this pod could not be confirmed".to_owned(),
                },
            }
        }
    }
}
