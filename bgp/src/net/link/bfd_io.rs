//! BFD's sockets (RFC 5881): packets come in on UDP port 3784 with TTL 255, and go out from a port of each session's own.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Instant;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::bfd::{BfdConfig, BfdEnds, Sessions};
use crate::net::dial::{TOS_CS6, named, set_ttl};
use crate::net::link::{RETRY, Report};
use crate::net::sockopt::receive_ttl;
use crate::speaker::PeerAddr;

/// Where single hop control packets go (RFC 5881 4).
const PORT: u16 = 3784;
/// Source ports, unique among sessions (RFC 5881 4).
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;
/// Ports tried for a session before it waits for its next packet.
const PORT_ATTEMPTS: usize = 64;
/// What single hop packets must arrive with: no router has touched them (RFC 5881 5).
const TTL: u8 = 255;
/// Datagrams taken in one turn: a flood must not keep our own packets waiting.
const MAX_BATCH: usize = 64;
/// Longer than any control packet, authenticated ones included.
const BUFFER: usize = 128;

/// All sessions with their sockets.
pub(super) struct BfdIo {
    sessions: Sessions,
    receivers: [Receiver; 2],
    senders: BTreeMap<PeerAddr, Sender>,
    ports: SmallRng,
}

/// The listening socket of a family, while a session of the family wants it.
struct Receiver {
    ipv6: bool,
    socket: Option<UdpSocket>,
    retry_at: Option<Instant>,
    trouble: Option<String>,
}

/// A session's way out.
struct Sender {
    local: IpAddr,
    socket: Option<std::net::UdpSocket>,
    trouble: Option<String>,
}

impl BfdIo {
    pub(super) fn new(seed: u64) -> Self {
        let receiver = |ipv6| Receiver { ipv6, socket: None, retry_at: None, trouble: None };
        BfdIo {
            sessions: Sessions::new(seed),
            receivers: [receiver(false), receiver(true)],
            senders: BTreeMap::new(),
            ports: SmallRng::seed_from_u64(seed),
        }
    }

    pub(super) fn set(&mut self, now: Instant, ends: BfdEnds, config: BfdConfig) {
        self.sessions.set(now, ends, config);
        if self.senders.get(&ends.remote).is_none_or(|s| s.local != ends.local) {
            self.senders.insert(ends.remote, Sender { local: ends.local, socket: None, trouble: None });
        }
        self.want_receivers(now);
    }

    /// AdminDown to a peer or to all, then forgets the sessions.
    pub(super) fn end(&mut self, now: Instant, remote: Option<PeerAddr>) {
        self.sessions.admin_down(now, remote);
        self.transmit(now);
        let gone: Vec<PeerAddr> =
            self.senders.keys().filter(|key| remote.is_none_or(|r| r == **key)).copied().collect();
        for remote in gone {
            self.sessions.remove(remote);
            self.senders.remove(&remote);
        }
        self.want_receivers(now);
    }

    /// What is due: expired detection times, packets, sockets that were not to be had.
    pub(super) fn turn(&mut self, now: Instant) {
        self.sessions.handle_timeout(now);
        self.transmit(now);
        if self.receivers.iter().any(|r| r.retry_at.is_some_and(|at| at <= now)) {
            self.want_receivers(now);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let retry = self.receivers.iter().filter_map(|r| r.retry_at);
        self.sessions.poll_timeout().into_iter().chain(retry).min()
    }

    /// A session that stands otherwise than it was told. What our sockets lack is shown where the peer shows no reason.
    pub(super) fn poll_report(&mut self) -> Option<Report> {
        let (remote, mut status) = self.sessions.poll_status()?;
        let sender = self.senders.get(&remote).and_then(|s| s.trouble.clone());
        let receiver = self.receivers[usize::from(remote.ip.is_ipv6())].trouble.clone();
        status.reason = receiver.or(sender).or(status.reason);
        Some(Report::Bfd(remote, status))
    }

    /// Until a socket has something.
    pub(super) async fn readable(&self) {
        let [v4, v6] = &self.receivers;
        tokio::select! {
            () = v4.readable() => {}
            () = v6.readable() => {}
        }
    }

    pub(super) fn receive(&mut self, now: Instant) {
        for receiver in &self.receivers {
            let Some(socket) = &receiver.socket else { continue };
            for _ in 0..MAX_BATCH {
                let mut octets = [0; BUFFER];
                match socket.try_io(Interest::READABLE, || receive(socket, &mut octets)) {
                    Ok(Some(got)) => {
                        // What is not as it must be changes nothing; the sessions count it.
                        let _ = self.sessions.receive(now, got.from, got.ifindex, &octets[..got.len]);
                    }
                    Ok(None) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    // An ICMP error for an earlier packet of ours: the peer does not listen (yet).
                    Err(_) => {}
                }
            }
        }
    }

    fn transmit(&mut self, now: Instant) {
        while let Some((ends, packet)) = self.sessions.poll_transmit(now) {
            let Some(sender) = self.senders.get_mut(&ends.remote) else { continue };
            let before = sender.trouble.is_some();
            sender.trouble =
                sender.send(ends, &packet.encode(), &mut self.ports).err().map(|e| e.to_string());
            if before != sender.trouble.is_some() {
                self.sessions.touch(ends.remote);
            }
        }
    }

    /// Opens and closes the listening sockets as sessions want them.
    fn want_receivers(&mut self, now: Instant) {
        for receiver in &mut self.receivers {
            let wanted = self.senders.keys().any(|remote| remote.ip.is_ipv6() == receiver.ipv6);
            let before = receiver.trouble.is_some();
            if !wanted {
                (receiver.socket, receiver.retry_at, receiver.trouble) = (None, None, None);
            } else if receiver.socket.is_none() {
                let opened = listen(receiver.ipv6);
                receiver.retry_at = opened.is_err().then(|| now + RETRY);
                receiver.trouble = opened.as_ref().err().map(explain);
                receiver.socket = opened.ok();
            }
            if before != receiver.trouble.is_some() {
                let of_family = |remote: &&PeerAddr| remote.ip.is_ipv6() == receiver.ipv6;
                self.senders.keys().filter(of_family).for_each(|remote| self.sessions.touch(*remote));
            }
        }
    }
}

impl Receiver {
    async fn readable(&self) {
        match &self.socket {
            Some(socket) => {
                // An error shows itself when reading.
                let _ = socket.readable().await;
            }
            None => std::future::pending().await,
        }
    }
}

impl Sender {
    fn send(&mut self, ends: BfdEnds, octets: &[u8], ports: &mut SmallRng) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => {
                let opened = open_sender(ends, ports)
                    .map_err(|e| named(&format!("cannot send BFD from {}", ends.local), &e))?;
                self.socket.insert(opened)
            }
        };
        // A path that does not take packets is what BFD is there to find; it is not our trouble.
        let _ = socket.send_to(octets, ends.remote.socket(PORT));
        Ok(())
    }
}

/// A datagram as it came.
struct Datagram {
    len: usize,
    from: IpAddr,
    ifindex: u32,
}

/// Takes a datagram; `None`: it came from farther than this link, or from nowhere.
fn receive(socket: &UdpSocket, octets: &mut [u8]) -> io::Result<Option<Datagram>> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
    let mut parts = [IoSliceMut::new(octets)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let (mut ttl, mut ifindex) = (None, 0);
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv4Ttl(t) | ControlMessageOwned::Ipv6HopLimit(t) => ttl = Some(t),
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                ifindex = u32::try_from(info.ipi_ifindex).unwrap_or(0);
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => ifindex = info.ipi6_ifindex,
            _ => {}
        }
    }
    let from = message.address.and_then(|a| {
        let v4 = a.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| a.as_sockaddr_in6().map(|v6| v6.ip().into()))
    });
    let direct = ttl == Some(i32::from(TTL));
    Ok(from.filter(|_| direct).map(|from| Datagram { len: message.bytes, from, ifindex }))
}

fn listen(ipv6: bool) -> io::Result<UdpSocket> {
    let (domain, any): (_, IpAddr) = match ipv6 {
        false => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
        true => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if ipv6 {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        receive_ttl(&socket)?;
    }
    socket.bind(&SocketAddr::new(any, PORT).into())?;
    UdpSocket::from_std(socket.into())
}

fn open_sender(ends: BfdEnds, ports: &mut SmallRng) -> io::Result<std::net::UdpSocket> {
    let local = PeerAddr::new(ends.local, ends.remote.ifindex);
    let socket = Socket::new(Domain::for_address(local.socket(0)), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    let ipv6 = local.ip.is_ipv6();
    set_ttl(&SockRef::from(&socket), ipv6, TTL)?;
    // Only a matter of comfort: a full link drops other packets first.
    let _ = if ipv6 { socket.set_tclass_v6(TOS_CS6) } else { socket.set_tos_v4(TOS_CS6) };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_ATTEMPTS {
        match socket.bind(&local.socket(ports.random_range(SOURCE_PORTS)).into()) {
            Ok(()) => return Ok(socket.into()),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "UDP port {PORT} is taken by another program (bfdd, BIRD?): stop it, or leave bfd out here"
            )
        }
        _ => format!("cannot listen for BFD on UDP port {PORT}: {error}"),
    }
}
