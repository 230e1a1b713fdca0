//! Links, addresses and other owners' routes: a snapshot that is read without waiting, and events when it changed.
//!
//! BGP next hops are resolved here against what the kernel knows from anybody but us: resolving them through our own
//! routes would be a loop, and so would a default route (any address "resolves" through one, dead neighbours too), so
//! neither counts.
//!
//! ```text
//! notifications -> thread: read all again -> snapshot (shared) -> what differs -> events
//! ```
//!
//! Reading all again costs a fraction of a millisecond and is right also where the kernel says nothing: a link that goes
//! down takes its IPv4 routes along without a message. Notifications of our own routes never reach the thread.

mod snapshot;

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnetwork::IpNetwork;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockFilter;
use tokio::sync::mpsc;

use super::Family;
use super::fib::{KernelRoute, NextHop, PROTOCOL, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE};
use super::netlink::{Batch, NLM_F_DUMP, Netlink, NetlinkError};
use snapshot::Snapshot;

const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const RTM_GETADDR: u16 = 22;
/// RTNLGRP_ numbers: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];
/// Answer a route request with the table entry that matched, not with a clone for the address.
const RTM_F_FIB_MATCH: u32 = 0x2000;
const RTA_DST: u16 = 1;
/// Where rtm_protocol lies in `struct rtmsg`.
const RTM_PROTOCOL: usize = 5;
/// Changes come in bursts (a link that goes down, a pod that is made): one reading for a burst.
const SETTLE: Duration = Duration::from_millis(5);
/// Events that wait for the loop.
const QUEUE: usize = 64;

/// Where packets for an address leave this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// The on-link neighbour.
    pub hop: NextHop,
    /// Metric of the kernel route that leads there; 0 for a connected one.
    pub metric: u32,
    /// The address itself is on a connected subnet.
    pub connected: bool,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A link lost its carrier, was set down or is gone.
    LinkDown(u32),
    /// Links, addresses or other owners' routes changed otherwise.
    Changed,
}

/// The kernel's routing decision for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The table entry; `None`: a local or otherwise unprefixed one.
    pub prefix: Option<IpNetwork>,
    /// Gateways, in the kernel's order; empty: on-link, or not forwarded.
    pub gateways: Vec<IpAddr>,
    /// Interface names, in the order of the next hops.
    pub interfaces: Vec<String>,
    /// Their numbers.
    pub ifindexes: Vec<u32>,
    /// `manx`, or whose it is by its protocol number.
    pub owner: String,
}

/// Starts the thread that follows the kernel.
pub struct Links;

impl Links {
    /// Reads everything once, then follows it, in the network namespace of the calling thread. Each event comes after the
    /// snapshot that it speaks of.
    ///
    /// # Errors
    /// Netlink sockets are not to be had, or the thread can't be started.
    pub fn spawn() -> Result<(LinksHandle, mpsc::Receiver<LinkEvent>), NetlinkError> {
        let monitor = Netlink::route_monitor(&GROUPS, &not_our_routes())?;
        let mut requests = Netlink::route()?;
        let snapshot = Arc::new(ArcSwap::from_pointee(read(&mut requests)?));
        let lookups = Arc::new(Mutex::new(Netlink::route()?));
        let (events, received) = mpsc::channel(QUEUE);
        let open = |source| NetlinkError::Open { family: "route", source };
        let (life, end) = UnixStream::pair().map_err(open)?;
        let handle = LinksHandle { snapshot: snapshot.clone(), lookups, _life: Arc::new(life) };
        let follower = Follower { monitor, requests, snapshot, events, end };
        std::thread::Builder::new().name("links".into()).spawn(move || follower.run()).map_err(open)?;
        Ok((handle, received))
    }
}

/// Reads the snapshot; cheap to clone. The thread ends with the last one.
#[derive(Clone)]
pub struct LinksHandle {
    snapshot: Arc<ArcSwap<Snapshot>>,
    lookups: Arc<Mutex<Netlink>>,
    /// Its other end tells the thread when nobody holds this any more.
    _life: Arc<UnixStream>,
}

impl LinksHandle {
    /// Where packets for this address leave, by anybody's routes but ours and a default route. `None`: nowhere.
    pub fn egress(&self, address: IpAddr) -> Option<Egress> {
        self.snapshot.load().egress(address)
    }

    /// A neighbour known by its interface: a link-local address, which no route leads to. `None`: the link is down or gone.
    pub fn neighbor(&self, hop: NextHop) -> Option<Egress> {
        self.snapshot.load().neighbor(hop)
    }

    /// All addresses of this node with their subnets, without link-local ones.
    pub fn addresses(&self) -> Vec<IpNetwork> {
        self.snapshot.load().addresses()
    }

    /// The name of a link, or its number where it is gone.
    pub fn name(&self, link: u32) -> String {
        self.snapshot.load().name(link)
    }

    /// The names of all links, sorted.
    pub fn names(&self) -> Vec<String> {
        self.snapshot.load().names()
    }

    /// The smallest MTU of the links that hold one of these addresses; `None`: none does.
    pub fn mtu_of(&self, addresses: &[IpAddr]) -> Option<u32> {
        self.snapshot.load().mtu_of(addresses)
    }

    /// Asks the kernel where it would send a packet; `None`: nowhere.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn lookup(&self, address: IpAddr) -> Result<Option<Found>, NetlinkError> {
        let mut batch = Batch::new();
        let (family, bits) = (Family::of(address), if address.is_ipv4() { 32 } else { 128 });
        batch.message(RTM_GETROUTE, 0, |m| {
            m.fixed(&[family.number(), bits, 0, 0, 0, 0, 0, 0]);
            m.fixed(&RTM_F_FIB_MATCH.to_ne_bytes());
            match address {
                IpAddr::V4(a) => m.attr(RTA_DST, &a.octets()),
                IpAddr::V6(a) => m.attr(RTA_DST, &a.octets()),
            }
        });
        let mut answer = None;
        let mut socket = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = socket.dump(
            &mut batch,
            || format!("looking up {address}"),
            |kind, payload| {
                if kind == RTM_NEWROUTE {
                    answer = KernelRoute::parse(payload);
                }
            },
        );
        match asked {
            Ok(_) => Ok(answer.map(|route| self.snapshot.load().describe(&route))),
            // No route to host, or a route that refuses: both are the answer "nowhere".
            Err(NetlinkError::Refused { refusal, .. })
                if [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL, libc::EACCES]
                    .contains(&refusal.errno) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// Deletes a link. One that is not there is no error.
///
/// # Errors
/// The kernel refuses.
pub fn delete(name: &str) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    batch.message(RTM_DELLINK, 0, |m| {
        m.fixed(&[0; 16]);
        m.attr_str(IFLA_IFNAME, name);
    });
    match Netlink::route()?.request(&mut batch, || format!("deleting link {name}")) {
        Err(NetlinkError::Refused { refusal, .. }) if refusal.errno == libc::ENODEV => Ok(()),
        other => other,
    }
}

struct Follower {
    monitor: Netlink,
    requests: Netlink,
    snapshot: Arc<ArcSwap<Snapshot>>,
    events: mpsc::Sender<LinkEvent>,
    end: UnixStream,
}

impl Follower {
    fn run(mut self) {
        while self.wait() {
            if let Err(e) = self.refresh() {
                tracing::warn!(error = %e, "links and routes cannot be read; the next change tries again");
            }
        }
    }

    /// Until something has changed and settled; false: nobody is interested any more.
    fn wait(&mut self) -> bool {
        let mut fds = [
            PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.end.as_fd(), PollFlags::POLLIN),
        ];
        if let Err(e) = poll(&mut fds, PollTimeout::NONE)
            && e != nix::Error::EINTR
        {
            tracing::error!(error = %e, "links cannot be followed any more");
            return false;
        }
        if fds[1].any().unwrap_or(false) {
            return false;
        }
        loop {
            // Lost messages (ENOBUFS) are as good a reason to read all again as any that arrived.
            while self.monitor.drain(|_, _| {}).unwrap_or(true) {}
            let mut fds = [PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN)];
            let settle = PollTimeout::try_from(SETTLE).expect("a few milliseconds fit");
            if !matches!(poll(&mut fds, settle), Ok(n) if n > 0) {
                return true;
            }
        }
    }

    fn refresh(&mut self) -> Result<(), NetlinkError> {
        let new = read(&mut self.requests)?;
        let old = self.snapshot.load_full();
        if *old == new {
            return Ok(());
        }
        let down = old.gone_down(&new);
        let relevant = old.relevant_change(&new);
        self.snapshot.store(Arc::new(new));
        for link in down {
            let _ = self.events.blocking_send(LinkEvent::LinkDown(link));
        }
        if relevant {
            let _ = self.events.blocking_send(LinkEvent::Changed);
        }
        Ok(())
    }
}

/// The kernel's tables as they are now.
fn read(socket: &mut Netlink) -> Result<Snapshot, NetlinkError> {
    let mut snapshot = Snapshot::default();
    let mut batch = Batch::new();
    batch.message(RTM_GETLINK, NLM_F_DUMP, |m| m.fixed(&[0; 16]));
    socket.dump(&mut batch, || "reading links".to_owned(), |_, payload| snapshot.add_link(payload))?;
    let mut batch = Batch::new();
    batch.message(RTM_GETADDR, NLM_F_DUMP, |m| m.fixed(&[0; 8]));
    socket.dump(&mut batch, || "reading addresses".to_owned(), |_, payload| snapshot.add_address(payload))?;
    for family in Family::BOTH {
        let mut batch = Batch::new();
        batch.message(RTM_GETROUTE, NLM_F_DUMP, |m| {
            m.fixed(&[family.number(), 0, 0, 0, super::fib::TABLE_MAIN as u8, 0, 0, 0, 0, 0, 0, 0]);
        });
        socket.dump(
            &mut batch,
            || format!("reading {family} routes"),
            |_, payload| {
                // Ours may be a million: told by one byte before anything is parsed.
                if payload.get(RTM_PROTOCOL) != Some(&PROTOCOL)
                    && let Some(route) = KernelRoute::parse(payload)
                {
                    snapshot.add_route(&route);
                }
            },
        )?;
    }
    snapshot.finish();
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
