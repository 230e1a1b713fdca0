//! The thread that ends live flows which a policy change has denied. It reads and writes conntrack; the policy thread judges.
//!
//! ```text
//! policy thread --- whose flows to look at ---> this thread: dump
//!               <-- those flows ---------------
//!               --- end, block, release ------> delete, mark, unmark
//! ```
//! Deleting an entry does not end a flow: the next packet makes a new one, in whichever direction is still allowed, and replies
//! of that are ESTABLISHED. So:
//!
//! * TCP entries are deleted; the rules of isolated endpoints drop what is NEW and no SYN, so nothing brings them back.
//! * All others (UDP, SCTP, ICMP) stay and get a bit in their mark that the rules drop, in both directions. As long as either end
//!   sends, the entry lives and blocks; when both have fallen silent it expires. When policy allows the flow again, the bit goes.

use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use manx_policy::live::Suspects;
use manx_policy::model::{Payload, Protocol};

use crate::kernel::Family;
use crate::kernel::conntrack::{Conntrack, Entry};
use crate::kernel::netlink::NetlinkError;

/// What the policy thread wants done.
enum Job {
    Look(Suspects),
    Carry(Sentence),
}

/// The suspects' flows, and the node's own addresses at that time.
#[derive(Debug, Default)]
pub struct Found {
    /// Flows that concern the suspects.
    pub entries: Vec<Entry>,
    /// Addresses of the node itself.
    pub own: Vec<IpAddr>,
    /// What the search took.
    pub took: Duration,
}

/// What becomes of flows that were looked at.
#[derive(Debug, Default)]
pub struct Sentence {
    end: Vec<Entry>,
    block: Vec<Entry>,
    release: Vec<Entry>,
}

impl Sentence {
    /// Sorts flows by whether they are still allowed. `blocked`: the bit of blocked flows.
    pub fn pass(entries: Vec<Entry>, blocked: u32, mut allows: impl FnMut(&Entry) -> bool) -> Self {
        let mut sentence = Sentence::default();
        for entry in entries {
            let tcp = matches!(entry.flow.payload, Payload::Ports { protocol: Protocol::Tcp, .. });
            match (allows(&entry), entry.mark & blocked != 0) {
                (true, true) => sentence.release.push(entry),
                (false, false) if tcp => sentence.end.push(entry),
                (false, false) => sentence.block.push(entry),
                (true, false) | (false, true) => {}
            }
        }
        sentence
    }

    /// How many flows are cut.
    pub fn cut(&self) -> usize {
        self.end.len() + self.block.len()
    }

    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.cut() == 0 && self.release.is_empty()
    }
}

/// The way to the thread. It ends when this is dropped.
#[derive(Debug)]
pub struct Flows {
    jobs: Sender<Job>,
}

impl Flows {
    /// Starts the thread in the network namespace of the caller. `blocked`: the bit of the conntrack mark that the rules drop.
    /// `report` gets what each [`Flows::look`] found.
    ///
    /// # Errors
    /// The thread can't be started, or conntrack can't be reached.
    pub fn spawn(blocked: u32, report: impl Fn(Found) + Send + 'static) -> Result<Self, FlowsError> {
        let mut conntrack = Conntrack::open()?;
        let (jobs, inbox) = channel();
        std::thread::Builder::new()
            .name("flows".into())
            .spawn(move || work(&mut conntrack, blocked, &inbox, report))?;
        Ok(Flows { jobs })
    }

    /// Has the flows of these suspects looked for.
    pub fn look(&self, suspects: Suspects) {
        // A thread that has ended said why.
        let _ = self.jobs.send(Job::Look(suspects));
    }

    /// Has a sentence carried out.
    pub fn carry_out(&self, sentence: Sentence) {
        let _ = self.jobs.send(Job::Carry(sentence));
    }
}

/// Live flows can't be ended.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// Conntrack can't be reached.
    #[error("live flows cannot be followed: {0}")]
    Netlink(#[from] NetlinkError),
    /// No thread.
    #[error("live flows cannot be followed: {0}")]
    Thread(#[from] std::io::Error),
}

fn work(conntrack: &mut Conntrack, blocked: u32, inbox: &Receiver<Job>, report: impl Fn(Found)) {
    for job in inbox {
        let started = Instant::now();
        let outcome = match job {
            Job::Look(suspects) => {
                let (found, outcome) = look(conntrack, &suspects);
                tracing::debug!(flows = found.entries.len(), elapsed = ?started.elapsed(), "live flows looked at");
                report(Found { took: started.elapsed(), ..found });
                outcome
            }
            Job::Carry(sentence) => carry_out(conntrack, blocked, &sentence),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "live flows may go on that policy denies, until the next audit");
        }
    }
}

/// What could be read, and what went wrong: an answer is owed in any case.
fn look(conntrack: &mut Conntrack, suspects: &Suspects) -> (Found, Result<(), NetlinkError>) {
    let mut found = Found { own: own_addresses(), ..Found::default() };
    for family in Family::BOTH {
        match conntrack.dump(family, |flow| suspects.concerns(flow)) {
            Ok(entries) => found.entries.extend(entries),
            Err(error) => return (found, Err(error)),
        }
    }
    (found, Ok(()))
}

fn carry_out(conntrack: &mut Conntrack, blocked: u32, sentence: &Sentence) -> Result<(), NetlinkError> {
    let ended = conntrack.end(&sentence.end)?;
    let marked = conntrack.mark(&sentence.block, blocked, blocked)?;
    let released = conntrack.mark(&sentence.release, 0, blocked)?;
    tracing::info!(ended, blocked = marked, released, "live flows follow the policy");
    Ok(())
}

/// The addresses of the namespace that this is called in.
pub fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| a.ip().into()))
        })
        .collect()
}
