//! Neighbour discovery's socket: one raw ICMPv6 socket for all links, open while there is one, that sees router solicitations
//! and advertisements only.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::discovery::{Discovery, HOP_LIMIT, Heard, LinkState, Outgoing};
use crate::net::link::Report;
use crate::net::link::monitor::{LinkMonitor, Told};
use crate::net::sockopt::set_icmp6_filter;
use crate::speaker::Neighbor;

/// Links are looked at so often, whatever the kernel and the driver tell of changes.
const LOOK: Duration = Duration::from_secs(1);
/// Longer than an advertisement with all its options on any usual link.
const BUFFER: usize = 2048;
/// Messages taken in one turn.
const MAX_BATCH: usize = 32;

/// Discovery with its socket.
pub(super) struct NeighborIo {
    discovery: Discovery,
    /// A raw socket, with a datagram socket's manners.
    socket: Option<UdpSocket>,
    trouble: Option<String>,
    /// Open as long as the socket; without it only the looks tell.
    monitor: Option<LinkMonitor>,
    /// Our own link-local addresses: another interface of this node may be on the same link.
    own: BTreeSet<Ipv6Addr>,
    /// Links on which the all-routers group has been joined.
    joined: BTreeSet<u32>,
    /// The links that were up at the last look.
    up: BTreeMap<String, u32>,
    look_at: Option<Instant>,
}

impl NeighborIo {
    pub(super) fn new(seed: u64) -> Self {
        NeighborIo {
            discovery: Discovery::new(seed),
            socket: None,
            trouble: None,
            monitor: None,
            own: BTreeSet::new(),
            joined: BTreeSet::new(),
            up: BTreeMap::new(),
            look_at: None,
        }
    }

    pub(super) fn add(&mut self, interface: String) {
        self.discovery.add(interface);
        self.look_at = Some(super::now());
    }

    pub(super) fn remove(&mut self, interface: &str) {
        self.discovery.remove(interface);
        if self.discovery.interfaces().next().is_none() {
            (self.socket, self.trouble, self.look_at) = (None, None, None);
            self.monitor = None;
            self.joined.clear();
        }
    }

    pub(super) fn turn(&mut self, now: Instant) {
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_at_links(now);
        }
        while let Some((ifindex, what)) = self.discovery.poll_transmit(now) {
            self.send(ifindex, what);
        }
    }

    pub(super) fn deadline(&self, waiting: bool) -> Option<Instant> {
        // What waits for room with the driver is not due before there is.
        let due = self.discovery.poll_timeout().filter(|_| !waiting);
        due.into_iter().chain(self.look_at).min()
    }

    pub(super) fn poll_report(&mut self, now: Instant) -> Option<Report> {
        let (interface, mut neighbor) = self.discovery.poll_news(now)?;
        if let (Neighbor::Gone(reason), Some(trouble)) = (&mut neighbor, &self.trouble) {
            reason.clone_from(trouble);
        }
        Some(Report::Neighbor(interface, neighbor))
    }

    pub(super) async fn readable(&self) {
        match &self.socket {
            Some(socket) => {
                // An error shows itself when reading.
                let _ = socket.readable().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Until the kernel tells of links.
    pub(super) async fn links_told(&self) {
        match &self.monitor {
            Some(monitor) => monitor.readable().await,
            None => std::future::pending().await,
        }
    }

    /// A link that was down for a moment only is looked at twice: as it was, and as it is.
    pub(super) fn heed_links(&mut self, now: Instant) {
        let Some(told) = self.monitor.as_mut().and_then(LinkMonitor::read) else { return };
        for (name, ifindex) in std::mem::take(&mut self.up) {
            let was_down = match &told {
                Told::Down(links) => links.contains(&ifindex),
                Told::Lost => true,
            };
            if was_down {
                self.joined.remove(&ifindex);
                self.discovery.set_link(now, &name, LinkState::Down);
            }
        }
        self.look_at_links(now);
    }

    pub(super) fn receive(&mut self, now: Instant) {
        let Some(socket) = &self.socket else { return };
        for _ in 0..MAX_BATCH {
            match socket.try_io(Interest::READABLE, || receive(socket)) {
                Ok(Some((from, ifindex, heard))) if !self.own.contains(&from) => {
                    self.discovery.heard(now, from, ifindex, heard);
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {}
            }
        }
    }

    /// Asks the kernel for the links in question, and opens the socket where there is none yet.
    pub(super) fn look_at_links(&mut self, now: Instant) {
        let names: Vec<String> = self.discovery.interfaces().map(str::to_owned).collect();
        if names.is_empty() {
            return;
        }
        self.look_at = Some(now + LOOK);
        if self.socket.is_none() {
            match open() {
                Ok(socket) => (self.socket, self.trouble) = (Some(socket), None),
                Err(e) => {
                    self.trouble = Some(format!("router advertisements cannot be heard (CAP_NET_RAW?): {e}"));
                }
            }
        }
        if self.monitor.is_none() {
            self.monitor = LinkMonitor::open().ok();
        }
        let Ok(addresses) = getifaddrs() else { return };
        let usable = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_LOWER_UP;
        let mut up = BTreeSet::new();
        self.up.clear();
        let mut known = BTreeSet::new();
        self.own.clear();
        for entry in addresses {
            let ip = entry.address.as_ref().and_then(|a| a.as_sockaddr_in6()).map(SockaddrIn6::ip);
            self.own.extend(ip.filter(Ipv6Addr::is_unicast_link_local));
            if names.contains(&entry.interface_name) {
                if entry.flags.contains(usable) {
                    up.insert(entry.interface_name.clone());
                }
                known.insert(entry.interface_name);
            }
        }
        for name in names {
            let state = match if_nametoindex(name.as_str()) {
                Ok(ifindex) if up.contains(&name) && self.socket.is_some() => {
                    self.join(ifindex);
                    self.up.insert(name.clone(), ifindex);
                    LinkState::Up(ifindex)
                }
                Ok(_) if known.contains(&name) => LinkState::Down,
                _ => LinkState::Missing,
            };
            if !matches!(state, LinkState::Up(_)) {
                // A link that comes back, or a new one of the same name, has to join again.
                self.joined.clear();
            }
            self.discovery.set_link(now, &name, state);
        }
    }

    fn join(&mut self, ifindex: u32) {
        if let Some(socket) = self.socket.as_ref().filter(|_| !self.joined.contains(&ifindex)) {
            let routers = Outgoing::Solicitation.destination();
            // Joined already is as good as joined.
            let _ = SockRef::from(socket).join_multicast_v6(&routers, ifindex);
            self.joined.insert(ifindex);
        }
    }

    fn send(&self, ifindex: u32, what: Outgoing) {
        if let Some(socket) = &self.socket {
            let to = SocketAddrV6::new(what.destination(), 0, 0, ifindex);
            // What is lost here comes again at its interval.
            let _ = SockRef::from(socket).send_to(&what.octets(), &to.into());
        }
    }
}

fn open() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    set_icmp6_filter(
        &socket,
        &[crate::discovery::ROUTER_SOLICITATION, crate::discovery::ROUTER_ADVERTISEMENT],
    )?;
    socket.set_multicast_hops_v6(HOP_LIMIT.into())?;
    socket.set_multicast_loop_v6(false)?;
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
    UdpSocket::from_std(socket.into())
}

/// The next message; `None`: not one that counts.
fn receive(socket: &UdpSocket) -> io::Result<Option<(Ipv6Addr, u32, Heard)>> {
    let mut octets = [0; BUFFER];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
    let mut parts = [IoSliceMut::new(&mut octets)];
    let message =
        recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let (mut hop_limit, mut ifindex) = (0, 0);
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv6HopLimit(limit) => hop_limit = u8::try_from(limit).unwrap_or(0),
            ControlMessageOwned::Ipv6PacketInfo(info) => ifindex = info.ipi6_ifindex,
            _ => {}
        }
    }
    let (from, len) = (message.address.map(|a| a.ip()), message.bytes);
    Ok(from.and_then(|from| Some((from, ifindex, Heard::read(from, hop_limit, &octets[..len])?))))
}
