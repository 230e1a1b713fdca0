//! The FIB writer: routes we own, in bulk, on a thread of its own.
//!
//! Callers state what each prefix should be; the last word wins. The writer brings the kernel there in batches of 256
//! messages a `sendmsg`, keeps what the kernel refused with its reason, and repairs what somebody else changed. It must
//! not know why a route is wanted.
//!
//! ```text
//! set()     --> Table { books, queue ----------> batches --> rtnetlink
//! resolve() -->         next hops, sets, objects }  ^            |
//!                         ^ answers, notifications, dumps <------+
//! ```
//!
//! Routes name next hops; where those lead is said apart. In the kernel a next hop is an object, and so is a set of them,
//! so that news of one costs a message or two, whether ten routes lead there or a million.
//!
//! An object is ours by its number and its protocol number. A route is ours by its protocol number, its metric and its table together; nothing else is ever replaced or deleted:
//! new routes are created exclusively, deletions name the protocol, and a replacement happens only where we know that
//! the route is ours. Routes stay in the kernel when the writer ends (fail static).

mod books;
mod message;
mod nexthops;
pub(crate) mod object;
mod queue;
mod route;
mod table;
mod writer;

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

pub(crate) use message::{
    KernelHop, KernelRoute, Ownership, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE, address,
};
pub use route::{Neighbor, Neighbors, NextHop, NextHops, Route};
use table::Table;

use super::Family;
use super::netlink::{MONITOR_SOCKET_BUFFER, NetlinkError};

/// The routing protocol number of our routes (`manx` in rt_protos.d).
pub const PROTOCOL: u8 = 77;
/// The metric of learned routes and blackholes.
pub const METRIC: u32 = 77;
/// The metric of pod host routes; they are the CNI plugin's and never touched here.
pub const POD_METRIC: u32 = 76;
/// RT_TABLE_MAIN.
pub const TABLE_MAIN: u32 = 254;

/// How many prefixes are taken over per lock: the writer's next batch waits no longer than this takes.
const SET_CHUNK: usize = 1024;

/// Which routes are ours.
#[derive(Clone, Copy, Debug)]
pub struct FibConfig {
    /// rtm_protocol, 1-255, used by nobody else.
    pub protocol: u8,
    /// Route metric; together with the protocol it separates us from other owners.
    pub metric: u32,
    /// Routing table number.
    pub table: u32,
    /// Nexthop objects where the kernel has them; without, each route names its neighbours itself.
    pub objects: bool,
    /// Room for the kernel's notifications, in bytes. When there is too little the tables are read again.
    pub socket_buffer: usize,
}

impl Default for FibConfig {
    fn default() -> Self {
        Self {
            protocol: PROTOCOL,
            metric: METRIC,
            table: TABLE_MAIN,
            objects: true,
            socket_buffer: MONITOR_SOCKET_BUFFER,
        }
    }
}

/// Why the FIB writer could not start.
#[derive(Debug, thiserror::Error)]
pub enum FibError {
    /// A socket could not be had or a request failed.
    #[error("routes cannot be programmed: {0}")]
    Netlink(#[from] NetlinkError),
    /// No thread, pipe or the like.
    #[error("the FIB writer cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// What became of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteState {
    /// Nobody asked for it and the kernel holds nothing of ours.
    Unknown,
    /// As asked for.
    Installed,
    /// On its way.
    Pending,
    /// Asked for and not there.
    Missing {
        /// The kernel's refusal, the owner in the way, or who took it away.
        reason: String,
        /// How often it was tried in vain.
        attempts: u32,
    },
    /// On its way out.
    Removing,
    /// A predecessor's, kept until the sweep.
    Inherited,
}

/// Who or what took a route of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Another process deleted it. Its name where it could be found.
    Removed {
        /// The process, as far as known.
        by: String,
    },
    /// Another process changed it or put its own in its place.
    Changed {
        /// The process, as far as known.
        by: String,
    },
    /// A link or an address went away, and the kernel took the route along.
    Link,
    /// Found missing or different when the table was read again; nobody was seen doing it.
    Resync,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Removed { by } => write!(f, "removed by {by}"),
            Self::Changed { by } => write!(f, "changed by {by}"),
            Self::Link => f.write_str("taken along by a link or address that went away"),
            Self::Resync => f.write_str("found missing or changed"),
        }
    }
}

/// A route or a nexthop object that was put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The prefix, or the object in words.
    pub what: String,
    /// Why it was needed.
    pub cause: Cause,
    /// When it was noticed.
    pub at: Instant,
    /// How long it was missing after that.
    pub took: Duration,
}

/// Counters and gauges of the writer.
#[derive(Clone, Debug, Default)]
pub struct FibStats {
    /// Routes in the kernel as asked for: IPv4, IPv6 (index by [`Family`] `as usize`).
    pub installed: [usize; 2],
    /// Nexthop objects of ours in the kernel; `None`: this kernel has none, routes name their neighbours themselves.
    pub objects: Option<usize>,
    /// Differences not yet written.
    pub queued: usize,
    /// Refused and waiting for their next try, or without a next hop that resolves.
    pub missing: usize,
    /// Routes added or replaced since the start.
    pub written: u64,
    /// Routes deleted since the start.
    pub deleted: u64,
    /// Requests that the kernel refused.
    pub refusals: u64,
    /// Routes put back after somebody else removed or changed them.
    pub repairs: u64,
    /// Routes put back after a link or address took them along.
    pub reinstalled: u64,
    /// Times that the kernel's table was read again.
    pub resyncs: u64,
    /// Times that notifications were lost for want of buffer.
    pub overruns: u64,
    /// The last repairs, oldest first, at most 32.
    pub recent_repairs: VecDeque<Repair>,
    /// The last refusal: prefix and reason.
    pub last_refusal: Option<String>,
    /// The last failure of the writer itself (socket, dump).
    pub last_error: Option<String>,
}

impl FibStats {
    /// Routes in the kernel as asked for, of one family.
    pub fn installed(&self, family: Family) -> usize {
        self.installed[family as usize]
    }
}

/// The FIB writer.
pub struct Fib;

impl Fib {
    /// Starts the writer in the network namespace of the calling thread. What is there under our name is read first:
    /// what is right will not be rewritten, what is not asked for stays until [`FibHandle::sweep`].
    ///
    /// # Errors
    /// When netlink sockets or CAP_NET_ADMIN are not to be had.
    pub fn spawn(config: FibConfig) -> Result<FibHandle, FibError> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let shared = Arc::new(Shared::new());
        let writer = writer::Writer::new(config, shared.clone(), wake)?;
        let thread = std::thread::Builder::new().name("fib".to_owned()).spawn(move || writer.run())?;
        Ok(FibHandle(Arc::new(Inner { shared, waker: Some(waker), thread: Some(thread) })))
    }
}

/// What the handles and the writer share.
pub(crate) struct Shared {
    books: Mutex<Books>,
    idle: Condvar,
}

struct Books {
    table: Table,
    /// Read the kernel's table again, for this cause.
    resync: Option<Cause>,
    /// Nothing left to do but what waits for a retry.
    idle: bool,
}

impl Shared {
    fn new() -> Self {
        let books = Books { table: Table::new(), resync: Some(Cause::Resync), idle: false };
        Self { books: Mutex::new(books), idle: Condvar::new() }
    }

    /// A panic while the lock was held leaves counters at worst; the kernel's table is read again on resync.
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Inner {
    shared: Arc<Shared>,
    waker: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    /// The writer ends when the last handle goes. Routes stay.
    fn drop(&mut self) {
        drop(self.waker.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the FIB writer panicked");
        }
    }
}

/// Speaks to the FIB writer; cheap to clone. All calls return at once but [`Self::wait_idle`].
#[derive(Clone)]
pub struct FibHandle(Arc<Inner>);

impl FibHandle {
    /// States what these prefixes should be; `None` removes. Host bits must be zero.
    pub fn set(&self, routes: impl IntoIterator<Item = (IpNetwork, Option<Route>)>) {
        let mut routes = routes.into_iter().peekable();
        while routes.peek().is_some() {
            let mut chunk: Vec<_> = Vec::with_capacity(routes.size_hint().0.min(SET_CHUNK));
            chunk.extend(routes.by_ref().take(SET_CHUNK));
            self.tell(|books| {
                for (prefix, route) in chunk {
                    books.table.set(prefix, route.as_ref());
                }
            });
        }
    }

    /// Says where packets for next hops leave. All routes that name one follow at once: it is one message to the kernel for
    /// each neighbor that is another, and one for each distinct set of next hops that it is in. Only routes that lead to a
    /// single neighbor are written anew when it becomes several.
    pub fn resolve(&self, hops: impl IntoIterator<Item = (NextHop, Neighbors)>) {
        self.tell(|books| books.table.resolve(hops));
    }

    /// The next hop is not resolved any more by anybody. One that names its link stands for itself again.
    pub fn forget(&self, hop: NextHop) {
        self.tell(|books| books.table.forget(hop));
    }

    /// Deletes what a predecessor left in this family and nobody has asked for since. Only after the source is in sync
    /// and all peers have said what they have to say.
    pub fn sweep(&self, family: Family) {
        self.tell(|books| books.table.sweep(family));
    }

    /// Forgets every wish and deletes every route that is ours, the inherited ones too.
    pub fn flush_all(&self) {
        self.tell(|books| books.table.flush_all());
    }

    /// Reads the kernel's table again and repairs what differs. The writer does it by itself on link and address
    /// events and when notifications were lost.
    pub fn resync(&self) {
        self.tell(|books| books.resync = Some(Cause::Resync));
    }

    /// Tries all refused routes again at once: something changed that may help.
    pub fn retry(&self) {
        self.tell(|books| books.table.retry_all());
    }

    /// What became of a prefix.
    pub fn state(&self, prefix: IpNetwork) -> RouteState {
        self.0.shared.lock().table.state(prefix, Instant::now())
    }

    /// Whether there are routes of a predecessor that nobody has asked for yet.
    pub fn inherited(&self) -> bool {
        self.0.shared.lock().table.inherited()
    }

    /// Counters and gauges.
    pub fn stats(&self) -> FibStats {
        self.0.shared.lock().table.stats()
    }

    /// Blocks until nothing is left to write but what waits after a refusal; false after `timeout`.
    pub fn wait_idle(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut books = self.0.shared.lock();
        while !books.idle {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            let idle = &self.0.shared.idle;
            books = idle.wait_timeout(books, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn tell(&self, order: impl FnOnce(&mut Books)) {
        let mut books = self.0.shared.lock();
        order(&mut books);
        let was_idle = std::mem::replace(&mut books.idle, false);
        drop(books);
        if was_idle && let Some(waker) = &self.0.waker {
            // Full means that a wake-up is under way already.
            let _ = (&mut &*waker).write(&[0]);
        }
    }
}
