//! One probe: from a namespace to an address, with an end.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Answer, Outcome, Proto};
use crate::netns::Netns;

/// Probes `to` from inside `from`. A ping has no use for the port.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn probe(from: &Netns, proto: Proto, to: IpAddr, port: u16, limit: Duration) -> Result<Outcome> {
    let outcome = from.enter(|| probe_here(proto, to, port, limit))?;
    Ok(outcome)
}

/// Probes from the namespace that the calling thread is in.
pub fn probe_here(proto: Proto, to: IpAddr, port: u16, limit: Duration) -> Outcome {
    let started = Instant::now();
    let result = match proto {
        Proto::Tcp => tcp(SocketAddr::new(to, port), limit),
        Proto::Udp => udp(SocketAddr::new(to, port), limit),
        Proto::Ping => ping(to, limit),
    };
    match result {
        Ok((seen_as, ttl)) => Outcome::Answered(Answer { seen_as, ttl, took: started.elapsed() }),
        Err(error) if is_timeout(&error) => Outcome::TimedOut,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

type Seen = (Option<IpAddr>, Option<u8>);

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock)
}

fn garbled(text: &str) -> std::io::Error {
    std::io::Error::other(format!("the answer makes no sense: {text:?}"))
}

fn tcp(to: SocketAddr, limit: Duration) -> std::io::Result<Seen> {
    let stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let seen_as = line.trim().parse().map_err(|_| garbled(&line))?;
    Ok((Some(seen_as), None))
}

fn udp(to: SocketAddr, limit: Duration) -> std::io::Result<Seen> {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, super::fresh_number()))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(limit))?;
    socket.send(b"probe")?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    let mut words = text.split(' ').skip(1);
    let seen_as = words.next().and_then(|w| w.parse().ok()).ok_or_else(|| garbled(&text))?;
    let ttl = words.next().and_then(|w| w.parse().ok()).ok_or_else(|| garbled(&text))?;
    Ok((Some(seen_as), Some(ttl)))
}

const ECHO_BODY: &[u8; 16] = b"manx lab is here";

/// ICMP echo over a raw socket, since unprivileged ping sockets are off in a new namespace.
fn ping(to: IpAddr, limit: Duration) -> std::io::Result<Seen> {
    let (domain, protocol, request, answer) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    if to.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
    }
    // The identifier tells our echo from that of a probe beside us, and for connection tracking it makes a flow of its own.
    let [high, low] = super::fresh_number().to_be_bytes();
    let id = [high, low, 0, 1];
    let mut packet = vec![request, 0, 0, 0];
    packet.extend(id);
    packet.extend(ECHO_BODY);
    if to.is_ipv4() {
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum); // the kernel fills in ICMPv6's
    }
    socket.send(&packet)?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let (packet, ttl) = receive(&socket, to.is_ipv4())?;
        if packet.first() == Some(&answer)
            && packet.get(4..8) == Some(&id)
            && packet.get(8..) == Some(ECHO_BODY)
        {
            return Ok((None, ttl));
        }
    }
}

/// The ICMP message and its TTL. A raw IPv4 socket gives the IP header too, an IPv6 one tells the hop limit beside.
fn receive(socket: &Socket, v4: bool) -> std::io::Result<(Vec<u8>, Option<u8>)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
    use std::os::fd::AsRawFd;

    let mut buffer = [0; 512];
    let mut space = nix::cmsg_space!(i32);
    let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
    let got =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    let mut ttl = got.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv6HopLimit(limit) => u8::try_from(limit).ok(),
        _ => None,
    });
    let length = got.bytes;
    let mut message = buffer[..length].to_vec();
    if v4 {
        ttl = message.get(8).copied();
        let header = usize::from(message.first().copied().unwrap_or(0x45) & 0x0f) * 4;
        message = message.split_off(header.min(message.len()));
    }
    Ok((message, ttl))
}

/// RFC 1071.
fn checksum(data: &[u8]) -> u16 {
    let words =
        data.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_message_with_its_checksum_is_zero() {
        let mut packet = vec![8, 0, 0, 0, 0, 1, 0, 2, 3];
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&packet), 0);
    }
}
