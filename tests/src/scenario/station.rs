//! A pod's end of the probes: its sockets, which answer and which ask.
//!
//! SCTP without the kernel's help: a raw socket sends an INIT with a valid CRC32c and a tag of its own (else conntrack calls it
//! INVALID and every probe would look denied), and a raw socket in the other pod sees it or does not.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

const SCTP: i32 = 132;

/// The sockets with which a pod answers: listeners for TCP and UDP, a capture for SCTP.
#[derive(Debug)]
pub struct Station {
    /// Where it is.
    pub netns: Netns,
    /// One of each family.
    pub addresses: Vec<IpAddr>,
    /// Listeners.
    pub tcp: Vec<Socket>,
    /// Echoes.
    pub udp: Vec<UdpSocket>,
    /// Captures.
    pub sctp: Vec<Socket>,
}

impl Station {
    /// Listens in a namespace on these ports of both families.
    ///
    /// # Errors
    /// When a port is taken, or without the privilege.
    pub fn open(netns: &Netns, addresses: &[IpAddr], ports: &[u16]) -> Result<Self> {
        let sockets = netns.enter(|| -> std::io::Result<_> {
            let (mut tcp, mut udp, mut sctp) = (Vec::new(), Vec::new(), Vec::new());
            for v6 in [false, true] {
                for port in ports {
                    let address = SocketAddr::new(unspecified(v6), *port);
                    let listener = socket(address, Type::STREAM)?;
                    listener.listen(1024)?;
                    tcp.push(listener);
                    udp.push(UdpSocket::from(socket(address, Type::DGRAM)?));
                }
                sctp.push(raw(v6)?);
            }
            Ok((tcp, udp, sctp))
        })?;
        let (tcp, udp, sctp) = sockets.with_context(|| format!("cannot listen in {}", netns.name()))?;
        Ok(Self { netns: netns.clone(), addresses: addresses.to_vec(), tcp, udp, sctp })
    }

    /// Its address of one family.
    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| a.is_ipv6() == v6)
    }

    /// Takes and ends all connections that wait: the handshake was the answer.
    pub fn take_connections(&self) {
        for listener in &self.tcp {
            while listener.accept().is_ok() {}
        }
    }

    /// Sends all datagrams that wait back to where they came from.
    pub fn echo(&self) {
        let mut buffer = [0; 64];
        for socket in &self.udp {
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], peer);
            }
        }
    }

    /// The tags of all INITs that have come.
    pub fn inits(&self) -> Vec<u32> {
        let mut tags = Vec::new();
        let mut buffer = [0; 256];
        for socket in &self.sctp {
            let v6 = socket.domain().is_ok_and(|domain| domain == Domain::IPV6);
            while let Ok(length) = (&*socket).read(&mut buffer) {
                tags.extend(init_tag(&buffer[..length], v6));
            }
        }
        tags
    }
}

/// The unspecified address of a family.
pub fn unspecified(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// A socket that does not block, bound to `address`.
///
/// # Errors
/// When the port is taken.
pub fn socket(address: SocketAddr, kind: Type) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A raw SCTP socket that does not block.
///
/// # Errors
/// Without the privilege.
pub fn raw(v6: bool) -> std::io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)))?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(1 << 20)?;
    Ok(socket)
}

/// An INIT (RFC 9260 3.3.2) with its common header.
pub fn init(source: u16, destination: u16, tag: u32) -> Vec<u8> {
    let mut packet = Vec::with_capacity(32);
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend([0; 8]); // no verification tag in an INIT; the checksum follows
    packet.extend([1, 0, 0, 20]); // chunk INIT, no flags, its length
    packet.extend(tag.to_be_bytes());
    packet.extend(65536u32.to_be_bytes()); // receiver window
    packet.extend([0, 1, 0, 1]); // a stream each way
    packet.extend(1u32.to_be_bytes()); // first TSN
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

/// The tag of an INIT, which a raw IPv4 socket gives with the header before it and an IPv6 one without. The octets do not
/// tell which: a port may look like a version.
fn init_tag(packet: &[u8], v6: bool) -> Option<u32> {
    let header = if v6 { 0 } else { usize::from(packet.first()? & 0x0f) * 4 };
    let sctp = packet.get(header..)?;
    (sctp.get(12) == Some(&1)).then_some(())?;
    Some(u32::from_be_bytes(sctp.get(16..20)?.try_into().ok()?))
}

/// RFC 9260 appendix A.
fn crc32c(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720 B.4.
    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn an_init_is_known_by_its_tag_with_and_without_an_ip_header() {
        let packet = init(0x4001, 80, 77);
        assert_eq!(init_tag(&packet, true), Some(77));
        let mut with_header = vec![0x45, 0, 0, 52, 0, 0, 0, 0, 64, 132, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        with_header.extend(&packet);
        assert_eq!(init_tag(&with_header, false), Some(77));
        assert_eq!(init_tag(&packet[..16], true), None);
        // Its port begins like IPv4, and where IPv4 has the protocol its checksum says SCTP.
        let deceptive = (0..).find(|tag| init(0x4567, 80, *tag)[9] == 132).unwrap();
        assert_eq!(init_tag(&init(0x4567, 80, deceptive), true), Some(deceptive));
    }
}
