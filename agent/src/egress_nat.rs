//! The thread that keeps the translation of egress at what it should be: the loop never waits for `iptables-restore`.
//!
//! Decides nothing: takes the last word of the loop, tries again after a failure, looks now and then whether somebody else
//! has flushed what was written.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::api::facts::SharedFacts;
use crate::desired::EgressIntent;
use crate::kernel::egress_nat::EgressNat;
use crate::kernel::iptables::Backend;

/// How often the kernel is compared while translation is on. Without the rules connections leave with addresses that
/// nobody outside can answer: worse than slow, but not open.
const AUDIT: Duration = Duration::from_secs(30);
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);

/// The way to the thread.
#[derive(Clone, Debug)]
pub struct EgressHandle(Sender<Option<EgressIntent>>);

impl EgressHandle {
    /// What should be; `None`: no translation.
    pub fn set(&self, intent: Option<EgressIntent>) {
        // A thread that has ended takes nothing more; the status keeps its last error.
        let _ = self.0.send(intent);
    }
}

/// Starts the thread in the network namespace of the caller. It ends with the last handle and leaves the kernel as it is.
///
/// # Errors
/// The thread can't be started.
pub fn spawn(backend: Backend, facts: SharedFacts) -> std::io::Result<EgressHandle> {
    let (inbox, outbox) = channel();
    let work = move || run(backend, &outbox, &facts);
    std::thread::Builder::new().name("egress-nat".into()).spawn(work)?;
    Ok(EgressHandle(inbox))
}

fn run(backend: Backend, inbox: &Receiver<Option<EgressIntent>>, facts: &SharedFacts) {
    // Nothing is written before the loop has said what should be.
    let Ok(mut wanted) = inbox.recv() else { return };
    let mut kernel: Option<EgressNat> = None;
    loop {
        while let Ok(newer) = inbox.try_recv() {
            wanted = newer;
        }
        let failure = converge(&mut kernel, backend, wanted.as_ref()).err();
        let news = facts.with(|f| {
            let news = f.egress_error != failure;
            f.egress_error.clone_from(&failure);
            f.egress_nat = wanted.is_some();
            news
        });
        if let (true, Some(reason)) = (news, &failure) {
            tracing::warn!(%reason, "egress NAT could not be applied, trying again");
        }
        let next = match (&failure, &wanted) {
            (Some(_), _) => inbox.recv_timeout(RETRY),
            (None, Some(_)) => inbox.recv_timeout(AUDIT),
            (None, None) => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(newer) => wanted = newer,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn converge(
    kernel: &mut Option<EgressNat>,
    backend: Backend,
    wanted: Option<&EgressIntent>,
) -> Result<(), String> {
    let opened = match kernel.take() {
        Some(kernel) => kernel,
        None => EgressNat::open(backend).map_err(|e| e.to_string())?,
    };
    let changed = kernel.insert(opened).converge(wanted).map_err(|e| e.to_string())?;
    if changed {
        tracing::info!(on = wanted.is_some(), "egress NAT written");
    }
    Ok(())
}
