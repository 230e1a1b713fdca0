//! Links, addresses and other owners' routes: a snapshot that is read without waiting, and events when it changed.
//!
//! BGP next hops are resolved here against what the kernel knows from anybody but us: resolving them through our own
//! routes would be a loop, and so would a default route (any address "resolves" through one, dead neighbours too), so
//! neither counts.
//!
//! ```text
//! notifications -> thread -> snapshot (shared) -> events
//! ```
//!
//! The snapshot follows the notifications one by one. Where the kernel says nothing (a link that goes takes its IPv4 routes
//! and nexthop objects along without a message) the thread draws the same conclusions as the kernel and reads all again a
//! moment later; it does so too when notifications were lost, and now and then in any case. Notifications of our own routes
//! never reach the thread.

mod follow;
mod snapshot;

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use ipnetwork::IpNetwork;
use tokio::sync::mpsc;

use super::Family;
use super::fib::{KernelRoute, Neighbors, NextHop, RTM_GETROUTE, RTM_NEWROUTE};
use super::netlink::{Batch, Netlink, NetlinkError};
use follow::Follower;
use snapshot::Snapshot;

const RTM_DELLINK: u16 = 17;
const IFLA_IFNAME: u16 = 3;
/// Answer a route request with the table entry that matched, not with a clone for the address.
const RTM_F_FIB_MATCH: u32 = 0x2000;
const RTA_DST: u16 = 1;
/// Events that wait for the loop.
const QUEUE: usize = 64;

/// Where packets for an address leave this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// On-link neighbours, at least one: several where the kernel's own route spreads flows over several gateways. The weights
    /// of that route are not taken over.
    pub neighbors: Neighbors,
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
        let (events, received) = mpsc::channel(QUEUE);
        let open = |source| NetlinkError::Open { family: "route", source };
        let (life, end) = UnixStream::pair().map_err(open)?;
        let follower = Follower::open(events, end)?;
        let lookups = Arc::new(Mutex::new(Netlink::route()?));
        let handle = LinksHandle { snapshot: follower.snapshot(), lookups, _life: Arc::new(life) };
        std::thread::Builder::new().name("links".into()).spawn(move || follower.run()).map_err(open)?;
        Ok((handle, received))
    }
}

/// Reads the snapshot; cheap to clone. The thread ends with the last one.
#[derive(Clone)]
pub struct LinksHandle {
    snapshot: Arc<RwLock<Snapshot>>,
    lookups: Arc<Mutex<Netlink>>,
    /// Its other end tells the thread when nobody holds this any more.
    _life: Arc<UnixStream>,
}

impl LinksHandle {
    /// Where packets for this address leave, by anybody's routes but ours and a default route. `None`: nowhere.
    pub fn egress(&self, address: IpAddr) -> Option<Egress> {
        self.read().egress(address)
    }

    /// The name of the link out of which another owner's route for this very address leads, without a gateway.
    pub fn host_route(&self, address: IpAddr) -> Option<String> {
        self.read().host_route(address)
    }

    /// A neighbour known by its interface: a link-local address, which no route leads to. `None`: the link is down or gone.
    pub fn neighbor(&self, hop: NextHop) -> Option<Egress> {
        self.read().neighbor(hop)
    }

    /// All addresses of this node with their subnets, without link-local ones.
    pub fn addresses(&self) -> Vec<IpNetwork> {
        self.read().addresses()
    }

    /// Routers that this node's best default routes lead to, of each family, with the name of their link; not those of our own
    /// routes.
    pub fn default_gateways(&self) -> Vec<(Family, IpAddr, String)> {
        self.read().default_gateways()
    }

    /// The name of a link, or its number where it is gone.
    pub fn name(&self, link: u32) -> String {
        self.read().name(link)
    }

    /// The names of all links, sorted.
    pub fn names(&self) -> Vec<String> {
        self.read().names()
    }

    /// The smallest MTU of the links that hold one of these addresses; `None`: none does.
    pub fn mtu_of(&self, addresses: &[IpAddr]) -> Option<u32> {
        self.read().mtu_of(addresses)
    }

    fn read(&self) -> RwLockReadGuard<'_, Snapshot> {
        // Whoever panicked while writing left the tables as whole as a lost notification would; they are read again.
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner)
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
            Ok(_) => Ok(answer.map(|route| self.read().describe(&route))),
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
