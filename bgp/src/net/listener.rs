//! Listening sockets: bound with the options that BGP needs, with words for what people get wrong.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::net::{dial, sockopt};
use crate::speaker::{PeerAddr, SocketOptions};
use crate::types::Prefix;

/// Connections that wait to be accepted, for the peers of a large rack at once.
const BACKLOG: i32 = 512;
/// The wait after the first failure to bind, doubled up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(15);

/// A place to listen at, whether or not it works at the moment.
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) socket: Option<Arc<TcpListener>>,
    /// Ends the futures that wait for this listener.
    pub(super) cancel: CancellationToken,
    /// How long to wait before the next attempt to bind.
    pub(super) retry: Duration,
    /// Peers whose MD5 key could not be set here: what comes from them is not authenticated and must be refused.
    pub(super) unprotected: Vec<PeerAddr>,
    /// Ranges of which the same is true.
    pub(super) unprotected_ranges: Vec<Prefix>,
}

impl Listener {
    pub(super) fn new(address: SocketAddr) -> Self {
        Listener {
            address,
            socket: None,
            cancel: CancellationToken::new(),
            retry: FIRST_RETRY,
            unprotected: Vec::new(),
            unprotected_ranges: Vec::new(),
        }
    }

    /// Binds, and sets the keys of all peers before anybody can connect. Gives the address, with the port that was found for 0.
    pub(super) fn open(
        &mut self,
        peers: &HashMap<PeerAddr, SocketOptions>,
        ranges: &BTreeMap<Prefix, SocketOptions>,
    ) -> Result<SocketAddr, String> {
        let opened = bind(self.address).and_then(|socket| {
            self.unprotected.clear();
            self.unprotected_ranges.clear();
            for (peer, options) in peers.iter().filter(|(_, options)| options.md5.is_some()) {
                // A key that cannot be set concerns its peer alone.
                let _ = self.protect(&socket, *peer, Some(options));
            }
            for (range, options) in ranges.iter().filter(|(_, options)| options.md5.is_some()) {
                let _ = self.protect_range(&socket, *range, Some(options));
            }
            self.floor(&socket, peers, ranges)?;
            socket.listen(BACKLOG)?;
            let listener = TcpListener::from_std(socket.into())?;
            let local = listener.local_addr()?;
            Ok((listener, local))
        });
        match opened {
            Ok((listener, local)) => {
                self.socket = Some(Arc::new(listener));
                self.retry = FIRST_RETRY;
                Ok(local)
            }
            Err(e) => {
                self.retry = (self.retry * 2).min(LAST_RETRY);
                Err(explain(self.address, &e))
            }
        }
    }

    /// Sets or removes the MD5 key of a peer on the open socket.
    pub(super) fn set_options(
        &mut self,
        peer: PeerAddr,
        options: Option<&SocketOptions>,
    ) -> Result<(), String> {
        let Some(socket) = self.socket.clone() else { return Ok(()) };
        self.protect(&*socket, peer, options).map_err(|e| format!("TCP MD5 key for {peer}: {e}"))
    }

    /// Sets or removes the MD5 key of a range on the open socket.
    pub(super) fn set_range(&mut self, range: Prefix, options: Option<&SocketOptions>) -> Result<(), String> {
        let Some(socket) = self.socket.clone() else { return Ok(()) };
        self.protect_range(&*socket, range, options).map_err(|e| format!("TCP MD5 key for {range}: {e}"))
    }

    /// What comes from there must be authenticated and cannot be.
    pub(super) fn is_unprotected(&self, remote: PeerAddr) -> bool {
        self.unprotected.contains(&remote)
            || self.unprotected_ranges.iter().any(|r| r.contains_addr(remote.ip))
    }

    /// Sets the minimum TTL of the open socket.
    pub(super) fn set_floor(
        &self,
        peers: &HashMap<PeerAddr, SocketOptions>,
        ranges: &BTreeMap<Prefix, SocketOptions>,
    ) -> Result<(), String> {
        let Some(socket) = &self.socket else { return Ok(()) };
        self.floor(&**socket, peers, ranges).map_err(|e| format!("minimum TTL: {e}"))
    }

    /// Where all peers of the family use GTSM, the listener does so too: what arrives before a connection is accepted, and
    /// has its own minimum, is then checked as well.
    fn floor(
        &self,
        socket: &impl std::os::fd::AsFd,
        peers: &HashMap<PeerAddr, SocketOptions>,
        ranges: &BTreeMap<Prefix, SocketOptions>,
    ) -> io::Result<()> {
        let ipv6 = self.address.is_ipv6();
        let same_family =
            peers.iter().filter(|(peer, _)| peer.ip.is_ipv6() == ipv6).map(|(_, options)| options);
        let in_ranges = ranges.iter().filter(|(range, _)| range.addr().is_ipv6() == ipv6);
        let all = same_family.chain(in_ranges.map(|(_, options)| options));
        let lowest = all.map(|options| options.min_ttl.unwrap_or(0)).min();
        sockopt::set_min_ttl(socket, ipv6, lowest.unwrap_or(0))
    }

    fn protect(
        &mut self,
        socket: &impl std::os::fd::AsFd,
        peer: PeerAddr,
        options: Option<&SocketOptions>,
    ) -> io::Result<()> {
        self.unprotected.retain(|p| *p != peer);
        if peer.ip.is_ipv6() != self.address.is_ipv6() {
            return Ok(());
        }
        let key = options.and_then(|o| o.md5.as_ref());
        // A changed key replaces the old one in the kernel; without a key there may be nothing to take away.
        let result = sockopt::set_md5(socket, peer.ip, None, key.map(|k| k.0.as_slice()));
        match (result, key) {
            (Ok(()), _) => Ok(()),
            (Err(e), None) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            (Err(e), None) => Err(e),
            (Err(e), Some(_)) => {
                self.unprotected.push(peer);
                Err(e)
            }
        }
    }
}

impl Listener {
    fn protect_range(
        &mut self,
        socket: &impl std::os::fd::AsFd,
        range: Prefix,
        options: Option<&SocketOptions>,
    ) -> io::Result<()> {
        self.unprotected_ranges.retain(|r| *r != range);
        if range.addr().is_ipv6() != self.address.is_ipv6() {
            return Ok(());
        }
        let key = options.and_then(|o| o.md5.as_ref());
        match sockopt::set_md5(socket, range.addr(), Some(range.len()), key.map(|k| k.0.as_slice())) {
            Err(e) if key.is_none() && e.kind() == io::ErrorKind::Unsupported => Ok(()),
            Err(e) if key.is_some() => {
                self.unprotected_ranges.push(range);
                Err(e)
            }
            result => result,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            // The future that waits for connections still holds the socket; nobody shall connect until it lets go.
            let _ = SockRef::from(&**socket).shutdown(std::net::Shutdown::Both);
        }
        self.cancel.cancel();
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // A predecessor's connections in TIME_WAIT must not keep us from its port.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // SYN-ACKs are sent with the listener's TTL, and a peer with GTSM takes 255 only (RFC 5082 3).
    dial::set_ttl(&SockRef::from(&socket), address.is_ipv6(), 255)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn explain(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "port {} is taken by another program (BIRD, FRR, another agent?): stop it or choose another port",
                address.port()
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "no permission to listen on port {}: grant CAP_NET_BIND_SERVICE or run as root",
                address.port()
            )
        }
        io::ErrorKind::AddrNotAvailable => format!("{} is not an address of this host (yet)", address.ip()),
        _ => error.to_string(),
    }
}
