//! Dialling a peer: a socket with all options set before the first segment leaves.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::net::sockopt;
use crate::speaker::{ConnectRequest, SocketOptions};

/// A peer that does not answer is given up after so long. The session's ConnectRetry timer is usually shorter; this is
/// what the kernel's two minutes are cut to where it is not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// DSCP CS6, network control, where BGP belongs (RFC 4594 3.1).
pub(super) const TOS_CS6: u32 = 0xc0;

/// Connects as requested.
///
/// # Errors
/// With words that say which step failed.
pub(super) async fn dial(request: ConnectRequest) -> io::Result<TcpStream> {
    let socket = prepare(&request)?;
    match timeout(CONNECT_TIMEOUT, socket.connect(request.remote)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to connection attempts")),
    }
}

fn prepare(request: &ConnectRequest) -> io::Result<TcpSocket> {
    let remote = request.remote;
    let socket = Socket::new(Domain::for_address(remote), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    apply(&socket, remote.is_ipv6(), &request.options)?;
    if let Some(secret) = &request.options.md5 {
        sockopt::set_md5(&socket, remote.ip(), None, Some(&secret.0))
            .map_err(|e| named("TCP MD5 key", &e))?;
    }
    if let Some(source) = request.source {
        let local = with_scope_of(source, remote);
        socket.bind(&local.into()).map_err(|e| named(&format!("source address {source}"), &e))?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// A link-local source lies on the interface that leads to the link-local peer.
fn with_scope_of(source: IpAddr, remote: SocketAddr) -> SocketAddr {
    match (source, remote) {
        (IpAddr::V6(a), SocketAddr::V6(remote)) if a.is_unicast_link_local() => {
            std::net::SocketAddrV6::new(a, 0, 0, remote.scope_id()).into()
        }
        _ => SocketAddr::new(source, 0),
    }
}

/// What dialled and accepted connections have in common. The MD5 key is not here: accepted sockets have it from their listener.
///
/// # Errors
/// When a TTL cannot be set: GTSM would be off without anybody knowing.
pub(super) fn apply<'a>(
    socket: impl Into<SockRef<'a>>,
    ipv6: bool,
    options: &SocketOptions,
) -> io::Result<()> {
    let socket = socket.into();
    if let Some(ttl) = options.ttl {
        set_ttl(&socket, ipv6, ttl).map_err(|e| named("TTL", &e))?;
    }
    if let Some(min_ttl) = options.min_ttl {
        sockopt::set_min_ttl(&*socket, ipv6, min_ttl).map_err(|e| named("minimum TTL", &e))?;
    }
    // Only matters of comfort from here on.
    let _ = socket.set_tcp_nodelay(true);
    let _ = if ipv6 { socket.set_tclass_v6(TOS_CS6) } else { socket.set_tos_v4(TOS_CS6) };
    Ok(())
}

/// TTL or hop limit of what we send.
pub(super) fn set_ttl(socket: &SockRef<'_>, ipv6: bool, ttl: u8) -> io::Result<()> {
    if ipv6 { socket.set_unicast_hops_v6(ttl.into()) } else { socket.set_ttl_v4(ttl.into()) }
}

/// The error with the name of what it is about.
pub(super) fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
