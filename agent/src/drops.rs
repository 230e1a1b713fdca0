//! Dropped packets as they are told: one thread reads what our rules log, a ring holds the latest, readers hear of new ones.
//!
//! Nobody is ever waited for: rules log a few packets a second each ([`manx_policy::drops::PER_SECOND`]), and a reader that is
//! slower than all of them together loses the oldest and is told how many. Which rule a packet was dropped by is looked up
//! when somebody wants to know ([`crate::api`]).

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use manx_policy::drops::{NFLOG_GROUP, PREFIX};
use nix::net::if_::if_indextoname;
use tokio::sync::broadcast;

use crate::kernel::netlink::NetlinkError;
use crate::kernel::nflog::{Headers, Logged, Nflog};

/// Packets that are remembered for whoever comes later.
const RECENT: usize = 256;
/// Packets that a reader may be behind.
const RING: usize = 1024;
/// How long until the group is asked for again, which a predecessor may hold for a moment.
const RETRY: Duration = Duration::from_secs(2);

/// A packet that one of our rules has logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// When we heard of it.
    pub at: SystemTime,
    /// Names the place in our rules, see [`manx_policy::drops`].
    pub prefix: String,
    /// The interface that it came in by.
    pub input: Option<String>,
    /// The interface that it would have left by.
    pub output: Option<String>,
    /// What its headers say.
    pub headers: Option<Headers>,
}

/// What is known of dropped packets. Clones share it; the thread ends after the last one.
#[derive(Clone, Debug)]
pub struct Drops {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    news: broadcast::Sender<Arc<Dropped>>,
    recent: Mutex<VecDeque<Arc<Dropped>>>,
    problem: Mutex<Option<String>>,
}

impl Drops {
    /// Starts the thread in the network namespace of the caller.
    ///
    /// # Errors
    /// No thread. That the kernel gives nothing to read is no error but a [`Drops::problem`].
    pub fn spawn() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            news: broadcast::channel(RING).0,
            recent: Mutex::default(),
            problem: Mutex::default(),
        });
        let to = Arc::downgrade(&shared);
        std::thread::Builder::new().name("drops".into()).spawn(move || read(&to))?;
        Ok(Drops { shared })
    }

    /// The latest, oldest first.
    pub fn recent(&self) -> Vec<Arc<Dropped>> {
        self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Those to come.
    pub fn follow(&self) -> broadcast::Receiver<Arc<Dropped>> {
        self.shared.news.subscribe()
    }

    /// Why nothing can be read; `None`: it can.
    pub fn problem(&self) -> Option<String> {
        self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(shared: &Weak<Shared>) {
    let mut reader = None;
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let nflog = match &mut reader {
            Some(nflog) => nflog,
            None => match Nflog::open(NFLOG_GROUP) {
                Ok(nflog) => {
                    shared.report(None);
                    reader.insert(nflog)
                }
                Err(error) => {
                    shared.report(Some(explain(&error)));
                    drop(shared);
                    std::thread::sleep(RETRY);
                    continue;
                }
            },
        };
        match nflog.read(|logged| shared.take(logged)) {
            Ok(()) => {}
            // The rules count what they drop whether we hear of it or not.
            Err(NetlinkError::Overrun { .. }) => tracing::debug!("dropped packets were not all heard of"),
            Err(error) => {
                shared.report(Some(explain(&error)));
                reader = None;
            }
        }
    }
}

fn explain(error: &NetlinkError) -> String {
    let why = match error {
        NetlinkError::Refused { refusal, .. } if refusal.errno == libc::EPERM => {
            "another process reads it, or this one may not (NET_ADMIN)".to_owned()
        }
        NetlinkError::Refused { refusal, .. } if refusal.errno == libc::EINVAL => {
            "the kernel has no nfnetlink_log".to_owned()
        }
        error => error.to_string(),
    };
    format!("dropped packets cannot be shown, NFLOG group {NFLOG_GROUP} cannot be read: {why}; tried again")
}

impl Shared {
    fn take(&self, logged: Logged) {
        // Who else logs to this group is not our business.
        if !logged.prefix.starts_with(PREFIX) {
            return;
        }
        let name = |index: Option<u32>| Some(if_indextoname(index?).ok()?.to_string_lossy().into_owned());
        let dropped = Arc::new(Dropped {
            at: SystemTime::now(),
            prefix: logged.prefix,
            input: name(logged.input),
            output: name(logged.output),
            headers: logged.headers,
        });
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(dropped.clone());
        drop(recent);
        // Nobody may be listening.
        let _ = self.news.send(dropped);
    }

    fn report(&self, problem: Option<String>) {
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == problem {
            return;
        }
        if let Some(problem) = &problem {
            tracing::warn!(%problem, "drops are not told");
        }
        *known = problem;
    }
}
