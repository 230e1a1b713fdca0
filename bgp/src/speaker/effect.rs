//! What goes between the speaker and its shell: connections, endpoints, effects, next hops, route changes. Plain data.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use serde::Serialize;
use smallvec::SmallVec;

use crate::bfd::{BfdConfig, BfdEnds};
use crate::session::Cause;
use crate::types::{Family, Prefix};

/// A transport connection. Never reused; events for a connection that is gone are ignored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// Where a peer is: its address, with the interface that a link-local one says nothing without.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerAddr {
    /// The address.
    pub ip: IpAddr,
    /// The interface of a link-local IPv6 address; 0 for any other.
    pub ifindex: u32,
}

impl PeerAddr {
    /// Drops the interface where the address does not need it, and the mapped form of IPv4 addresses that a dual-stack
    /// listener shows.
    pub fn new(ip: IpAddr, ifindex: u32) -> Self {
        let ip = ip.to_canonical();
        PeerAddr { ip, ifindex: if is_link_local(ip) { ifindex } else { 0 } }
    }

    /// The remote end of a socket.
    pub fn of(socket: SocketAddr) -> Self {
        let scope = match socket {
            SocketAddr::V6(v6) => v6.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        PeerAddr::new(socket.ip(), scope)
    }

    /// With a port, to dial or to send to.
    pub fn socket(self, port: u16) -> SocketAddr {
        match self.ip {
            IpAddr::V4(ip) => SocketAddr::new(ip.into(), port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.ifindex).into(),
        }
    }
}

impl Serialize for PeerAddr {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl From<IpAddr> for PeerAddr {
    /// An address that is not link-local.
    fn from(ip: IpAddr) -> Self {
        PeerAddr::new(ip, 0)
    }
}

impl fmt::Display for PeerAddr {
    /// `10.0.0.1`, `fe80::1%3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ifindex {
            0 => self.ip.fmt(f),
            ifindex => write!(f, "{}%{ifindex}", self.ip),
        }
    }
}

/// Whether an address is an IPv6 link-local one.
pub(crate) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// The two ends of an established TCP connection and what else the carrying interface offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Our end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
    /// Interface that holds the local address; 0 if unknown.
    pub ifindex: u32,
    /// IPv4 address to give as next hop.
    pub ipv4: Option<Ipv4Addr>,
    /// Global IPv6 address to give as next hop.
    pub ipv6: Option<Ipv6Addr>,
    /// Link-local address of the interface, sent beside the global one on a shared link (RFC 2545 3).
    pub link_local: Option<Ipv6Addr>,
    /// The peer's address lies in a subnet of that interface.
    pub connected: bool,
    /// The subnets of that interface, host bits cleared: tells which third-party next hops the peer reaches by itself.
    pub subnets: SmallVec<[Prefix; 2]>,
}

/// How to dial a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Where to.
    pub remote: SocketAddr,
    /// Local address to bind, if the configuration names one.
    pub source: Option<IpAddr>,
    /// What the socket needs.
    pub options: SocketOptions,
}

/// Socket options of a session, for dialled and accepted connections alike.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SocketOptions {
    /// TCP MD5 key (RFC 2385), 1 to 80 bytes. Never printed.
    pub md5: Option<Secret>,
    /// TTL to send with: 1 for a directly connected external peer, 255 with GTSM.
    pub ttl: Option<u8>,
    /// Lowest TTL to accept (RFC 5082 GTSM: 255).
    pub min_ttl: Option<u8>,
}

/// A key that does not show itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// What the shell must do or may tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Dial; answer with `connected` or `connect_failed`.
    Connect(ConnId, ConnectRequest),
    /// Flush what `poll_transmit` still gives, then close. No `closed` is expected back.
    Close(ConnId),
    /// `poll_transmit` has bytes for this connection.
    Transmit(ConnId),
    /// Options that listeners need for this remote address (TCP MD5 lives on the listener); `None` takes them away.
    Listen(PeerAddr, Option<SocketOptions>),
    /// The same for all addresses of a range that have no options of their own.
    ListenRange(Prefix, Option<SocketOptions>),
    /// The TCP MD5 key of an open connection is another one from now on (RFC 2385 4.5). What the peer signs with the old one
    /// is dropped and comes again, so that the session lasts if the peer follows within the hold time.
    ChangeKey(ConnId, Secret),
    /// Resolve and keep watching this next hop; answer with `set_next_hop`, now and at each change.
    TrackNextHop(FibNextHop),
    /// No path uses it any more.
    UntrackNextHop(FibNextHop),
    /// Look for a neighbour by router advertisements on the interface of this name, and show ourselves to it; answer with
    /// `set_neighbor`. `false`: not any more.
    Discover(String, bool),
    /// Watch the path to a peer by BFD; answer with `bfd_changed`.
    Bfd(BfdEnds, BfdConfig),
    /// Not any more; the peer hears AdminDown.
    BfdEnd(PeerAddr),
    /// Graceful restart of our own is over for this family: routes that we did not renew may be swept.
    RestartComplete(Family),
    /// Something that a person would notice; for logs and events.
    Peer(PeerFact),
}

/// A session changed state, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFact {
    /// Peer name.
    pub peer: String,
    /// The state it came from.
    pub from: &'static str,
    /// The state it is in.
    pub to: &'static str,
    /// The reason in words, "-" for none.
    pub reason: String,
    /// What kind of reason that is.
    pub cause: Option<Cause>,
}

/// Whether and how a next hop is reachable, as the kernel sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHopState {
    /// No route leads to it.
    Unreachable,
    /// Reachable with this interior cost.
    Reachable {
        /// IGP cost (RFC 4271 9.1.2.2 e); 0 for a connected one.
        metric: u32,
        /// On a connected subnet.
        connected: bool,
    },
}

/// A Loc-RIB change for the FIB: all equal-cost next hops of the prefix, sorted. None and no blackhole means remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteChange {
    /// The prefix.
    pub prefix: Prefix,
    /// Forward to any of these.
    pub next_hops: SmallVec<[FibNextHop; 1]>,
    /// Where there is one next hop only: the next hop of the path that would be chosen without it, as far as the last decision
    /// tells. For the moment in which the next hop dies and the decision has not been made again.
    pub backup: Option<FibNextHop>,
    /// Discard what goes there (RFC 7999); there are no next hops then.
    pub blackhole: bool,
}

/// A next hop as the FIB needs it, and as it is tracked: the same link-local address on two interfaces is two neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FibNextHop {
    /// Gateway address; its family may differ from the prefix's (RFC 8950).
    pub gateway: IpAddr,
    /// Interface of a link-local gateway; 0 for any other: whichever leads there.
    pub ifindex: u32,
}

impl From<IpAddr> for FibNextHop {
    /// A gateway that is not link-local.
    fn from(gateway: IpAddr) -> Self {
        FibNextHop { gateway, ifindex: 0 }
    }
}
