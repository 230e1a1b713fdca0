//! The agent's end of `cni.sock`: an ADD that has wired its pod waits here until the pod's policy is in the kernel.
//!
//! One JSON line comes in, one goes out, the plugin holds the clock: when it hangs up, the question is withdrawn. Which
//! attachments there are is read from the plugin's store, by [`crate::attachments`]; a request only says that it is time
//! to look.

use std::sync::Arc;
use std::time::Duration;

use manx_cni::agent::{Request, Response};
use manx_cni::store::Attachment;
use manx_policy::model::EndpointId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::api::facts::SharedFacts;
use crate::attachments::Look;
use crate::metrics::{Answered, CniCounters, Request as Counted};
use crate::policy_worker::PolicyHandle;

/// A request is one attachment: names, addresses, an id. More is not ours.
const MAX_REQUEST: u64 = 64 * 1024;
/// A plugin sends its line at once.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Plugins that wait at the same time: more than a node starts pods at once, and a bound on memory.
const MAX_WAITING: usize = 1024;
/// Before a connection is tried to be taken again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
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
    /// Has the store looked at.
    pub look: mpsc::Sender<Look>,
    /// What was asked, and how it was answered.
    pub counters: CniCounters,
}

/// Serves plugins for ever.
pub async fn serve(listener: UnixListener, server: CniServer) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_WAITING));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // No descriptors or no memory left: that passes, and the plugin waits in the queue of the socket.
            Err(e) => {
                tracing::warn!(error = %e, "cannot take a CNI plugin's connection, trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
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
                answer = respond(request, server) => match answer {
                    Some(answer) => answer,
                    None => return Ok(()),
                },
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

/// `None`: this agent is stopping. A plugin whose agent hangs up asks the next one, for as long as its own deadline
/// allows; an answer would be final.
async fn respond(request: Request, server: &CniServer) -> Option<Response> {
    match request {
        Request::Status => Some(match server.facts.with(|facts| facts.cni_blocked.clone()) {
            None => {
                server.counters.count(Counted::Status, Answered::Ok);
                Response::Ok {}
            }
            Some(reason) => {
                server.counters.count(Counted::Status, Answered::Refused);
                Response::Error {
                    code: NOT_AVAILABLE,
                    msg: "pods cannot be attached now".to_owned(),
                    details: reason,
                }
            }
        }),
        Request::Confirm { attachment } => {
            let waiting = server.counters.waiting();
            let answer = confirm(attachment, server).await;
            waiting.done(if answer.is_some() { Answered::Ok } else { Answered::Refused });
            answer
        }
    }
}

/// Waits until the policy of this very attachment is in the kernel.
async fn confirm(attachment: Attachment, server: &CniServer) -> Option<Response> {
    let Some(policy) = &server.policy else { return Some(Response::Ok {}) };
    // The question comes after the look: else an attachment made anew under its old name (podman starts a
    // container again) would be answered for by the rules of the old one.
    let (look, looked) = oneshot::channel();
    server.look.send(look).await.ok()?;
    looked.await.ok()?;
    let id = EndpointId { container_id: attachment.container_id, ifname: attachment.ifname };
    policy.confirm(id).await.ok()?;
    Some(Response::Ok {})
}
