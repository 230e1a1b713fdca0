//! Answers probes inside a namespace and tells each sender which address it was seen with.
//!
//! TCP: a line with the peer's address, then everything that comes is sent back. UDP: the datagram is sent back, followed by
//! ` ADDRESS TTL`. Separate sockets for both families, so that nothing is seen as an IPv4-mapped address.

use std::io::{IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use super::PORTS;
use crate::netns::Netns;

/// A running server; it ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    // Closing this end tells the thread to stop.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on [`PORTS`] of all addresses of a namespace.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start(netns: &Netns) -> Result<Self> {
        let (tcp, udp) = netns
            .enter(|| -> Result<_> {
                let (mut tcp, mut udp) = (Vec::new(), Vec::new());
                for port in PORTS {
                    for address in [
                        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
                        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
                    ] {
                        tcp.push(TcpListener::from(bound(address, Type::STREAM)?));
                        udp.push(UdpSocket::from(bound(address, Type::DGRAM)?));
                    }
                }
                Ok((tcp, udp))
            })?
            .with_context(|| format!("cannot listen in {}", netns.name()))?;
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::spawn(move || serve(&tcp, &udp, &stopped));
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bound(address: SocketAddr, kind: Type) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::DGRAM {
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?,
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(128)?;
    }
    Ok(socket)
}

fn serve(tcp: &[TcpListener], udp: &[UdpSocket], stopped: &UnixStream) {
    loop {
        let fds = tcp.iter().map(AsFd::as_fd).chain(udp.iter().map(AsFd::as_fd)).chain([stopped.as_fd()]);
        let mut waiting: Vec<PollFd> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if poll(&mut waiting, PollTimeout::NONE).is_err() {
            continue;
        }
        let ready: Vec<bool> = waiting.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        if ready[tcp.len() + udp.len()] {
            return;
        }
        for listener in tcp {
            while let Ok((stream, peer)) = listener.accept() {
                std::thread::spawn(move || echo_stream(stream, peer));
            }
        }
        for socket in udp {
            while answer_datagram(socket).is_some() {}
        }
    }
}

fn echo_stream(mut stream: TcpStream, peer: SocketAddr) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_nodelay(true);
    if writeln!(stream, "{}", peer.ip()).is_err() {
        return;
    }
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// Answers one datagram; none when there is none.
fn answer_datagram(socket: &UdpSocket) -> Option<()> {
    let mut buffer = [0; 2048];
    let mut space = nix::cmsg_space!(i32);
    let (length, peer, ttl) = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let got =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())
                .ok()?;
        let ttl = got.cmsgs().ok()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => Some(ttl),
            _ => None,
        });
        (got.bytes, address_of(&got.address?)?, ttl)
    };
    let mut answer = buffer[..length].to_vec();
    let _ = write!(answer, " {} {}", peer.ip(), ttl.unwrap_or(0));
    let _ = socket.send_to(&answer, peer);
    Some(())
}

fn address_of(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))))
}
