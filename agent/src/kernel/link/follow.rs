//! The thread that keeps the snapshot: notifications in, events out.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockFilter;
use tokio::sync::mpsc;

use super::snapshot::{News, Snapshot};
use super::{LinkEvent, RTM_DELLINK};
use crate::kernel::Family;
use crate::kernel::fib::object::{self, KernelObject, RTM_DELNEXTHOP, RTM_NEWNEXTHOP};
use crate::kernel::fib::{KernelRoute, PROTOCOL, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE, TABLE_MAIN};
use crate::kernel::netlink::{
    Batch, Header, MONITOR_SOCKET_BUFFER, NLM_F_DUMP, NLM_F_REPLACE, Netlink, NetlinkError,
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
/// RTNLGRP_ numbers: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];
/// RTNLGRP_NEXTHOP, which a kernel before 5.3 has not.
const NEXTHOP_GROUP: u32 = 32;
/// Where rtm_protocol lies in `struct rtmsg`.
const RTM_PROTOCOL: usize = 5;
/// The loop hears of what is not urgent at most so often: changes come in bursts.
const PAUSE: Duration = Duration::from_millis(5);
/// After something that the kernel does not tell all about, everything is read again so much later, once for a burst.
const READ_AGAIN: Duration = Duration::from_millis(100);
/// And in any case so often.
const AUDIT: Duration = Duration::from_secs(300);
/// A reading that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Follower {
    monitor: Netlink,
    requests: Netlink,
    /// The kernel has nexthop objects.
    objects: bool,
    snapshot: Arc<RwLock<Snapshot>>,
    events: mpsc::Sender<LinkEvent>,
    end: UnixStream,
    /// When to read everything again.
    read_at: Instant,
    /// The loop has to hear that something changed.
    changed: bool,
    told_at: Instant,
}

impl Follower {
    /// Opens the sockets in the caller's namespace and reads everything.
    pub(super) fn open(events: mpsc::Sender<LinkEvent>, end: UnixStream) -> Result<Self, NetlinkError> {
        let mut groups = GROUPS.to_vec();
        groups.push(NEXTHOP_GROUP);
        let (monitor, objects) =
            match Netlink::route_monitor(&groups, &not_our_routes(), MONITOR_SOCKET_BUFFER) {
                Ok(monitor) => (monitor, true),
                // No such group.
                Err(_) => (Netlink::route_monitor(&GROUPS, &not_our_routes(), MONITOR_SOCKET_BUFFER)?, false),
            };
        let mut requests = Netlink::route()?;
        let snapshot = read(&mut requests, objects)?;
        let now = Instant::now();
        Ok(Self {
            monitor,
            requests,
            objects,
            snapshot: Arc::new(RwLock::new(snapshot)),
            events,
            end,
            read_at: now + AUDIT,
            changed: false,
            told_at: now,
        })
    }

    pub(super) fn snapshot(&self) -> Arc<RwLock<Snapshot>> {
        self.snapshot.clone()
    }

    /// Until nobody is interested any more.
    pub(super) fn run(mut self) {
        while self.wait() {
            self.hear();
            if Instant::now() >= self.read_at {
                self.read_again();
            }
            self.tell();
        }
    }

    fn wait(&mut self) -> bool {
        let deadline = if self.changed { self.read_at.min(self.told_at + PAUSE) } else { self.read_at };
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        // Rounded up: a deadline that is not quite there would be waited for in vain.
        let timeout = PollTimeout::try_from(left + 1).unwrap_or(PollTimeout::MAX);
        let mut fds = [
            PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.end.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) => !fds[1].any().unwrap_or(false),
            Err(nix::Error::EINTR) => true,
            Err(e) => {
                tracing::error!(error = %e, "links cannot be followed any more");
                false
            }
        }
    }

    /// Takes over what has been told.
    fn hear(&mut self) {
        loop {
            let mut all: Vec<News> = Vec::new();
            let snapshot = self.snapshot.clone();
            let mut held = None;
            let heard = self.monitor.drain(|header, payload| {
                let snapshot =
                    held.get_or_insert_with(|| snapshot.write().unwrap_or_else(PoisonError::into_inner));
                all.push(apply(snapshot, header, payload));
            });
            drop(held);
            all.into_iter().for_each(|news| self.note(news));
            match heard {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) => {
                    // What was lost is found by reading.
                    tracing::debug!(error = %e, "link notifications were lost");
                    self.read_at = Instant::now();
                    if !matches!(e, NetlinkError::Overrun { .. }) {
                        self.read_at += RETRY;
                        return;
                    }
                }
            }
        }
    }

    fn note(&mut self, news: News) {
        if let Some(link) = news.down {
            let _ = self.events.blocking_send(LinkEvent::LinkDown(link));
        }
        self.changed |= news.relevant;
        if news.read_again {
            self.read_at = self.read_at.min(Instant::now() + READ_AGAIN);
        }
    }

    fn read_again(&mut self) {
        match read(&mut self.requests, self.objects) {
            Ok(new) => {
                self.read_at = Instant::now() + AUDIT;
                let mut held = self.snapshot.write().unwrap_or_else(PoisonError::into_inner);
                let old = std::mem::replace(&mut *held, new);
                let down = old.gone_down(&held);
                self.changed |= old.relevant_change(&held);
                drop(held);
                for link in down {
                    let _ = self.events.blocking_send(LinkEvent::LinkDown(link));
                }
            }
            Err(e) => {
                tracing::warn!(error = %e, "links and routes cannot be read; this is tried again");
                self.read_at = Instant::now() + RETRY;
            }
        }
    }

    fn tell(&mut self) {
        let now = Instant::now();
        if self.changed && now >= self.told_at + PAUSE {
            self.changed = false;
            self.told_at = now;
            let _ = self.events.blocking_send(LinkEvent::Changed);
        }
    }
}

fn apply(snapshot: &mut Snapshot, header: Header, payload: &[u8]) -> News {
    let replace = header.flags & NLM_F_REPLACE != 0;
    match header.kind {
        RTM_NEWLINK => snapshot.add_link(payload),
        RTM_DELLINK => snapshot.remove_link(payload),
        RTM_NEWADDR => snapshot.add_address(payload),
        RTM_DELADDR => snapshot.remove_address(payload),
        RTM_NEWROUTE => {
            KernelRoute::parse(payload).map(|r| snapshot.add_route(&r, replace)).unwrap_or_default()
        }
        RTM_DELROUTE => KernelRoute::parse(payload).map(|r| snapshot.remove_route(&r)).unwrap_or_default(),
        RTM_NEWNEXTHOP => KernelObject::parse(payload).map(|o| snapshot.add_object(o)).unwrap_or_default(),
        RTM_DELNEXTHOP => {
            KernelObject::parse(payload).map(|o| snapshot.remove_object(o.id)).unwrap_or_default()
        }
        _ => News::default(),
    }
}

/// The kernel's tables as they are now.
fn read(socket: &mut Netlink, objects: bool) -> Result<Snapshot, NetlinkError> {
    let mut snapshot = Snapshot::default();
    let mut batch = Batch::new();
    batch.message(RTM_GETLINK, NLM_F_DUMP, |m| m.fixed(&[0; 16]));
    let link = |_, payload: &[u8]| {
        snapshot.add_link(payload);
    };
    socket.dump(&mut batch, || "reading links".to_owned(), link)?;
    let mut batch = Batch::new();
    batch.message(RTM_GETADDR, NLM_F_DUMP, |m| m.fixed(&[0; 8]));
    let address = |_, payload: &[u8]| {
        snapshot.add_address(payload);
    };
    socket.dump(&mut batch, || "reading addresses".to_owned(), address)?;
    if objects {
        let mut batch = Batch::new();
        object::dump(&mut batch);
        let object = |_, payload: &[u8]| {
            if let Some(object) = KernelObject::parse(payload) {
                snapshot.add_object(object);
            }
        };
        socket.dump(&mut batch, || "reading nexthop objects".to_owned(), object)?;
    }
    for family in Family::BOTH {
        let mut batch = Batch::new();
        batch.message(RTM_GETROUTE, NLM_F_DUMP, |m| {
            m.fixed(&[family.number(), 0, 0, 0, TABLE_MAIN as u8, 0, 0, 0, 0, 0, 0, 0]);
        });
        socket.dump(
            &mut batch,
            || format!("reading {family} routes"),
            |_, payload| {
                // Ours may be a million: told by one byte before anything is parsed.
                if payload.get(RTM_PROTOCOL) != Some(&PROTOCOL)
                    && let Some(route) = KernelRoute::parse(payload)
                {
                    snapshot.add_route(&route, false);
                }
            },
        )?;
    }
    Ok(snapshot)
}

/// A kernel-side filter: of routes, only those of other owners are told.
fn not_our_routes() -> [SockFilter; 7] {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    // nlmsg_type is in host order and its numbers here fit a byte; rtm_protocol follows the 16 bytes of the header.
    let kind_at = if cfg!(target_endian = "little") { 4 } else { 5 };
    let protocol_at = 16 + RTM_PROTOCOL as u32;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, kind_at),
        SockFilter::new(JUMP_EQUAL, 1, 0, u32::from(RTM_NEWROUTE)),
        SockFilter::new(JUMP_EQUAL, 0, 2, u32::from(RTM_DELROUTE)),
        SockFilter::new(LOAD_BYTE, 0, 0, protocol_at),
        SockFilter::new(JUMP_EQUAL, 1, 0, u32::from(PROTOCOL)),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
