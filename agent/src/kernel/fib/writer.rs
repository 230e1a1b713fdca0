//! The FIB writer's thread: batches out, answers and notifications in. What to do is in the table's books.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustc_hash::FxHashMap;
use socket2::SockFilter;

use super::message::{KernelRoute, Ownership, RTM_DELROUTE, RTM_NEWROUTE};
use super::nexthops::{ObjectJob, ObjectOperation};
use super::object::{self, KernelObject, RTM_DELNEXTHOP, RTM_NEWNEXTHOP};
use super::table::{Job, Operation, Table};
use super::{Cause, FibConfig, FibError, Shared};
use crate::kernel::Family;
use crate::kernel::netlink::{
    Batch, Header, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink, NetlinkError, Refusal, u32_at,
};

/// Messages a `sendmsg`: from 64 on the kernel's own work decides, beyond 256 nothing is gained.
const BATCH: usize = 256;
/// Messages taken from the books at once: the lock is had seldom, and no news waits for longer than these take (2 ms).
const TURN: usize = 1024;
/// A burst of link events is one cause; and the event is sent shortly before the kernel takes the routes.
const LINK_SETTLE: Duration = Duration::from_millis(20);
/// A second look for what the kernel did late.
const LINK_SETTLE_AGAIN: Duration = Duration::from_millis(400);
/// At least this long between two readings of the whole table because of a conflict.
const CONFLICT_PAUSE: Duration = Duration::from_secs(1);
/// How long after a failed dump or exchange to try again.
const ERROR_PAUSE: Duration = Duration::from_millis(500);
/// How often a torn dump is repeated at once.
const DUMP_TRIES: u32 = 4;
/// Buffers of notifications read before work goes on.
const DRAIN_MAX: usize = 256;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_NEXTHOP: u32 = 32;
/// IFF_UP | IFF_RUNNING | IFF_LOWER_UP: what decides whether a link carries routes.
const CARRIES: u32 = 0x1 | 0x40 | 0x10000;

pub(super) struct Writer {
    ownership: Ownership,
    shared: Arc<Shared>,
    wake: UnixStream,
    requests: Netlink,
    monitor: Netlink,
    /// Messages that wait to be sent, [`BATCH`] in each.
    batches: Vec<Batch>,
    jobs: Vec<Job>,
    object_jobs: Vec<ObjectJob>,
    /// The kernel has nexthop objects.
    objects: bool,
    /// When to read them again: a link that goes takes its own along without a word.
    objects_at: Vec<Instant>,
    /// The flags of links as last told.
    links: FxHashMap<u32, u32>,
    resync_at: Vec<(Instant, Cause)>,
    conflicts_at: Instant,
}

impl Writer {
    /// Opens the sockets in the caller's namespace.
    pub(super) fn new(config: FibConfig, shared: Arc<Shared>, wake: UnixStream) -> Result<Self, FibError> {
        let ownership = Ownership { protocol: config.protocol, metric: config.metric, table: config.table };
        let mut requests = Netlink::route()?;
        may_write(&mut requests, ownership)?;
        let objects = config.objects && has_objects(&mut requests)?;
        if !objects {
            shared.lock().table.without_objects();
        }
        let mut groups = vec![
            RTNLGRP_LINK,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ];
        groups.extend(objects.then_some(RTNLGRP_NEXTHOP));
        let monitor = Netlink::route_monitor(&groups, &not_caused_by(requests.port()), config.socket_buffer)?;
        Ok(Self {
            ownership,
            shared,
            wake,
            requests,
            monitor,
            batches: Vec::new(),
            jobs: Vec::with_capacity(TURN),
            object_jobs: Vec::new(),
            objects,
            objects_at: Vec::new(),
            links: FxHashMap::default(),
            resync_at: Vec::new(),
            conflicts_at: Instant::now(),
        })
    }

    /// Until all handles are gone.
    pub(super) fn run(mut self) {
        loop {
            self.hear();
            self.look_again();
            if self.write() {
                continue;
            }
            if !self.sleep() {
                return;
            }
        }
    }

    /// Writes what a turn has room for, objects before the routes that use them. Returns whether there may be more to do
    /// at once.
    fn write(&mut self) -> bool {
        let mut any = false;
        loop {
            // Members first, then the groups that waited for them; and what was resolved while routes were written.
            while self.write_objects() {
                any = true;
            }
            if !self.write_routes() {
                return any;
            }
            any = true;
            if !self.shared.lock().table.has_objects() {
                return true;
            }
        }
    }

    fn write_objects(&mut self) -> bool {
        let mut books = self.shared.lock();
        books.table.retry_due(Instant::now());
        if !books.table.has_objects() {
            return false;
        }
        books.table.next_objects(&mut self.object_jobs);
        drop(books);
        let protocol = self.ownership.protocol;
        let put = |batch: &mut Batch, job: &ObjectJob| match (job.operation, &job.content) {
            (ObjectOperation::Create, Some(content)) => {
                object::put(batch, NLM_F_CREATE | NLM_F_EXCL, protocol, job.id, content);
            }
            (ObjectOperation::Replace, Some(content)) => {
                object::put(batch, NLM_F_REPLACE, protocol, job.id, content);
            }
            _ => object::delete(batch, job.id),
        };
        let mut batches: Vec<Batch> = Vec::new();
        for jobs in self.object_jobs.chunks(BATCH) {
            let mut batch = Batch::new();
            jobs.iter().for_each(|job| put(&mut batch, job));
            batches.push(batch);
        }
        let sent = self.exchange(&mut batches);
        let mut books = self.shared.lock();
        match sent {
            Ok(refusals) => books.table.complete_objects(&mut self.object_jobs, &refusals, Instant::now()),
            Err(error) => {
                books.table.give_back_objects(&mut self.object_jobs);
                drop(books);
                self.failed(&error);
                return false;
            }
        }
        true
    }

    fn write_routes(&mut self) -> bool {
        let mut batches = std::mem::take(&mut self.batches);
        batches.iter_mut().for_each(Batch::clear);
        let mut books = self.shared.lock();
        let ownership = self.ownership;
        let mut written = 0;
        books.table.next_batch(TURN, &mut self.jobs, |prefix, operation, route| {
            let at = written / BATCH;
            if at == batches.len() {
                batches.push(Batch::new());
            }
            written += 1;
            let batch = &mut batches[at];
            match (operation, route) {
                (Operation::Add, Some(route)) => {
                    ownership.put(batch, NLM_F_CREATE | NLM_F_EXCL, prefix, &route);
                }
                (Operation::Replace, Some(route)) => {
                    ownership.put(batch, NLM_F_CREATE | NLM_F_REPLACE, prefix, &route);
                }
                _ => ownership.delete(batch, prefix),
            }
        });
        drop(books);
        let sent = match self.jobs.is_empty() {
            true => Ok(Vec::new()),
            false => self.exchange(&mut batches),
        };
        self.batches = batches;
        if self.jobs.is_empty() {
            return false;
        }
        let mut books = self.shared.lock();
        match sent {
            Ok(refusals) => books.table.complete(&mut self.jobs, &refusals, Instant::now()),
            Err(error) => {
                books.table.give_back(&mut self.jobs);
                drop(books);
                self.failed(&error);
            }
        }
        true
    }

    /// Sends batches that are full but for the last; the refused messages by their number over all of them.
    fn exchange(&mut self, batches: &mut [Batch]) -> Result<Vec<(usize, Refusal)>, NetlinkError> {
        let mut refusals = Vec::new();
        for (at, batch) in batches.iter_mut().enumerate() {
            self.requests.exchange(batch, |index, refusal| refusals.push((at * BATCH + index, refusal)))?;
        }
        Ok(refusals)
    }

    /// Reads notifications until there are none.
    fn hear(&mut self) {
        for _ in 0..DRAIN_MAX {
            let mut books = self.shared.lock();
            let mut link_events = Vec::new();
            let ownership = self.ownership;
            let heard = self.monitor.drain(|header, payload| match header.kind {
                RTM_NEWROUTE | RTM_DELROUTE => route_event(ownership, &mut books.table, header, payload),
                RTM_NEWNEXTHOP | RTM_DELNEXTHOP => object_event(ownership, &mut books.table, header, payload),
                RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR => {
                    link_events.push((header.kind, u32_at(payload, 4), u32_at(payload, 8)));
                }
                _ => {}
            });
            let mut matters = false;
            for (kind, ifindex, flags) in link_events {
                matters |= links_changed(&mut self.links, &books.table, kind, ifindex, flags);
            }
            if matters {
                books.table.retry_all();
                books.idle = false;
                let now = Instant::now();
                self.resync_at = vec![(now + LINK_SETTLE_AGAIN, Cause::Link)];
                if self.objects {
                    // What became of the objects tells what became of the routes, at no cost.
                    self.objects_at = vec![now, now + LINK_SETTLE];
                } else {
                    self.resync_at.push((now + LINK_SETTLE, Cause::Link));
                }
            }
            match heard {
                Ok(true) => {}
                Ok(false) => return,
                Err(NetlinkError::Overrun { .. }) => {
                    books.table.stats_mut().overruns += 1;
                    books.resync = Some(Cause::Resync);
                }
                Err(error) => {
                    drop(books);
                    self.failed(&error);
                    return;
                }
            }
        }
    }

    /// Reads the kernel's table again where that is due.
    fn look_again(&mut self) {
        let now = Instant::now();
        let mut cause = self.shared.lock().resync.take();
        self.resync_at.retain(|(at, why)| {
            if *at <= now {
                cause.get_or_insert(why.clone());
            }
            *at > now
        });
        let objects_due = self.objects_at.iter().any(|at| *at <= now);
        self.objects_at.retain(|at| *at > now);
        if self.objects && (objects_due || cause.is_some()) {
            let why = cause.as_ref().unwrap_or(&Cause::Link);
            if let Err(error) = self.read_objects(why) {
                self.failed(&error);
            }
        }
        if let Some(cause) = cause {
            for family in Family::BOTH {
                if let Err(error) = self.read(family, &cause) {
                    self.failed(&error);
                }
            }
            // What happened while we read is newer than what we read.
            self.hear();
        }
        if now >= self.conflicts_at {
            for family in Family::BOTH {
                if self.shared.lock().table.conflicting(family) {
                    self.conflicts_at = now + CONFLICT_PAUSE;
                    if let Err(error) = self.look_at_conflicts(family) {
                        self.failed(&error);
                    }
                }
            }
        }
    }

    fn read_objects(&mut self, cause: &Cause) -> Result<(), NetlinkError> {
        let (shared, protocol) = (self.shared.clone(), self.ownership.protocol);
        let now = Instant::now();
        shared.lock().table.begin_objects();
        for _ in 0..DUMP_TRIES {
            let mut request = Batch::new();
            object::dump(&mut request);
            let whole = self.requests.dump(
                &mut request,
                || "reading nexthop objects".to_owned(),
                |kind, payload| {
                    if kind == RTM_NEWNEXTHOP
                        && let Some(found) = KernelObject::parse(payload)
                    {
                        let ours = found.protocol == protocol;
                        shared.lock().table.object_seen(found, ours, cause.clone(), now);
                    }
                },
            )?;
            if whole {
                shared.lock().table.end_objects();
                return Ok(());
            }
        }
        Err(NetlinkError::Unstable { family: "nexthop" })
    }

    fn read(&mut self, family: Family, cause: &Cause) -> Result<(), NetlinkError> {
        let ownership = self.ownership;
        let shared = self.shared.clone();
        let now = Instant::now();
        shared.lock().table.begin_dump(family);
        for _ in 0..DUMP_TRIES {
            let whole = self.dump(family, false, |route| {
                if route.metric == ownership.metric && route.protocol == ownership.protocol {
                    shared.lock().table.seen(&route, cause.clone(), now);
                }
            })?;
            if whole {
                shared.lock().table.end_dump(family, cause, now);
                return Ok(());
            }
        }
        Err(NetlinkError::Unstable { family: "route" })
    }

    /// The kernel says that a route exists where we know of none: ours after all, or whose?
    fn look_at_conflicts(&mut self, family: Family) -> Result<(), NetlinkError> {
        let ownership = self.ownership;
        let mut found = Vec::new();
        let shared = self.shared.clone();
        self.dump(family, true, |route| {
            if route.metric == ownership.metric && shared.lock().table.is_conflict(route.prefix) {
                found.push(route);
            }
        })?;
        let mut books = shared.lock();
        for route in &found {
            if route.protocol == ownership.protocol {
                books.table.adopt(route, Instant::now());
            } else {
                let reason = format!(
                    "a route of protocol {} holds it at our metric {}; delete or move that route",
                    route.protocol, ownership.metric
                );
                tracing::warn!(prefix = %route.prefix, protocol = route.protocol, "another owner's route is in the way");
                books.table.blame(route.prefix, &reason);
            }
        }
        books.table.conflicts_seen(family);
        Ok(())
    }

    fn dump(
        &mut self,
        family: Family,
        every_protocol: bool,
        mut each: impl FnMut(KernelRoute),
    ) -> Result<bool, NetlinkError> {
        let ownership = self.ownership;
        let mut request = Batch::new();
        ownership.dump(&mut request, family, every_protocol);
        let read = self.requests.dump(
            &mut request,
            || format!("reading {family} routes"),
            |kind, payload| {
                if kind == RTM_NEWROUTE
                    && let Some(route) = KernelRoute::parse(payload)
                    && route.table == ownership.table
                {
                    each(route);
                }
            },
        );
        match read {
            // A namespace has no main table before its first route.
            Err(NetlinkError::Refused { refusal, .. }) if refusal.errno == libc::ENOENT => Ok(true),
            read => read,
        }
    }

    /// Keeps the reason and tries all again in a while.
    fn failed(&mut self, error: &NetlinkError) {
        tracing::warn!(error = %error, "the FIB writer failed and will read the kernel's table again");
        let mut books = self.shared.lock();
        books.table.stats_mut().last_error = Some(error.to_string());
        drop(books);
        self.resync_at.push((Instant::now() + ERROR_PAUSE, Cause::Resync));
    }

    /// Waits for orders, notifications or the next deadline. False when all handles are gone.
    fn sleep(&mut self) -> bool {
        let now = Instant::now();
        let mut books = self.shared.lock();
        if books.resync.is_some() || !books.table.idle() {
            return true;
        }
        let mut deadline = books.table.retry_due(now);
        if !books.table.idle() {
            return true;
        }
        let conflicts = Family::BOTH.into_iter().any(|family| books.table.conflicting(family));
        let resyncs = self.resync_at.iter().map(|(at, _)| *at);
        let others =
            resyncs.chain(conflicts.then_some(self.conflicts_at)).chain(self.objects_at.iter().copied());
        deadline = deadline.into_iter().chain(others).min();
        books.idle = true;
        self.shared.idle.notify_all();
        drop(books);
        let timeout = deadline.map_or(PollTimeout::NONE, |at| {
            let wait = at.saturating_duration_since(now).as_millis() + 1;
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN),
        ];
        // A signal or an early return only means to look once more.
        let _ = poll(&mut fds, timeout);
        let mut bytes = [0; 64];
        loop {
            match self.wake.read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        true
    }
}

/// Deleting a route that cannot exist tells whether we may write at all, without changing anything.
fn may_write(requests: &mut Netlink, ownership: Ownership) -> Result<(), NetlinkError> {
    let broadcast = ipnetwork::IpNetwork::from(std::net::IpAddr::from([255; 4]));
    let mut batch = Batch::new();
    ownership.delete(&mut batch, broadcast);
    match requests.request(&mut batch, || "writing routes".to_owned()) {
        Err(NetlinkError::Refused { refusal, .. }) if refusal.errno != libc::EPERM => Ok(()),
        other => other,
    }
}

/// Whether this kernel has nexthop objects (Linux 5.3).
fn has_objects(requests: &mut Netlink) -> Result<bool, NetlinkError> {
    let mut request = Batch::new();
    object::dump(&mut request);
    match requests.dump(&mut request, || "reading nexthop objects".to_owned(), |_, _| {}) {
        Ok(_) => Ok(true),
        Err(NetlinkError::Refused { refusal, .. }) if refusal.errno == libc::EOPNOTSUPP => Ok(false),
        Err(error) => Err(error),
    }
}

/// A kernel-side filter that drops the notifications of what this socket port caused: our own echoes.
fn not_caused_by(port: u32) -> [SockFilter; 4] {
    // The machine loads in network order, the header is in host order.
    let port = u32::from_be_bytes(port.to_ne_bytes());
    const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const NLMSG_PORT: u32 = 12;
    [
        SockFilter::new(LOAD_WORD, 0, 0, NLMSG_PORT),
        SockFilter::new(JUMP_EQUAL, 0, 1, port),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

/// Whether an event can have taken routes of ours or can let refused ones in. Pods come and go without either.
fn links_changed(
    links: &mut FxHashMap<u32, u32>,
    table: &Table,
    kind: u16,
    ifindex: Option<u32>,
    flags: Option<u32>,
) -> bool {
    // struct ifinfomsg: family, type, index, flags. struct ifaddrmsg: family, prefix length, flags, scope, index.
    let (Some(ifindex), Some(flags)) = (ifindex, flags) else { return false };
    let changed = match kind {
        RTM_NEWLINK => links.insert(ifindex, flags & CARRIES) != Some(flags & CARRIES),
        RTM_DELLINK => {
            links.remove(&ifindex);
            true
        }
        _ => true,
    };
    changed && table.uses_link(ifindex)
}

fn route_event(ownership: Ownership, table: &mut Table, header: Header, payload: &[u8]) {
    let Some(route) = KernelRoute::parse(payload) else { return };
    if route.metric != ownership.metric || route.table != ownership.table {
        return;
    }
    let ours = route.protocol == ownership.protocol;
    let replaced = header.flags & NLM_F_REPLACE != 0;
    let now = Instant::now();
    match (header.kind, ours) {
        (RTM_NEWROUTE, true) => table.changed(route.prefix, Some(&route), cause(header, true), now),
        (RTM_NEWROUTE, false) if replaced => table.changed(route.prefix, None, cause(header, true), now),
        (RTM_NEWROUTE, false) => table.contest(route.prefix, true),
        // IPv6 takes single next hops out of a multipath route: what is left is not what we wrote.
        (_, true) if !table.holds(&route) => {
            let rest = KernelRoute { unicast: false, hops: Vec::new(), next_hop: None, ..route };
            table.changed(rest.prefix, Some(&rest), cause(header, true), now);
        }
        (_, true) => table.changed(route.prefix, None, cause(header, false), now),
        (_, false) => table.contest(route.prefix, false),
    }
}

fn object_event(ownership: Ownership, table: &mut Table, header: Header, payload: &[u8]) {
    let Some(found) = KernelObject::parse(payload) else { return };
    let ours = found.protocol == ownership.protocol;
    let now = Instant::now();
    match header.kind {
        RTM_NEWNEXTHOP => table.object_seen(found, ours, cause(header, true), now),
        _ if ours => table.object_gone(found.id, cause(header, false), now),
        _ => {}
    }
}

/// Names who did it. The port is the kernel's 0, or a number that is most often the process id.
fn cause(header: Header, changed: bool) -> Cause {
    if header.port == 0 {
        return Cause::Link;
    }
    let port = header.port;
    let by = match std::fs::read_to_string(format!("/proc/{port}/comm")) {
        Ok(name) => format!("process {port} ({})", name.trim_end()),
        Err(_) => format!("process {port}, gone since"),
    };
    if changed { Cause::Changed { by } } else { Cause::Removed { by } }
}
