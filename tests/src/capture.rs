//! A capture on the fabric: frames as they pass a router, read far enough to tell whether the pods' own addresses stand in the
//! outer and only header.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

/// `ETH_P_ALL` in network byte order, as `socket(2)` wants it.
const EVERY_PROTOCOL: i32 = 0x0003_u16.to_be() as i32;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const UDP: u8 = 17;

/// A packet seen on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source of the header that stands right behind the Ethernet one.
    pub source: IpAddr,
    /// Destination of that header.
    pub destination: IpAddr,
    /// What follows that header: 6 TCP, 17 UDP; 4, 41 or 47 would be a tunnel.
    pub protocol: u8,
    /// Bytes after that header.
    pub payload: Vec<u8>,
}

impl Packet {
    /// The data of a UDP datagram right behind the outer header.
    pub fn udp_data(&self) -> Option<&[u8]> {
        (self.protocol == UDP).then(|| self.payload.get(8..)).flatten()
    }
}

/// A running capture of every interface of a namespace.
#[derive(Debug)]
pub struct Capture {
    socket: Socket,
}

impl Capture {
    /// Starts to listen; what passes from now on is kept until it is read.
    ///
    /// # Errors
    /// Without the privilege.
    pub fn start(netns: &Netns) -> Result<Self> {
        let socket = netns
            .enter(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL))))?
            .with_context(|| format!("cannot capture in {}", netns.name()))?;
        socket.set_recv_buffer_size(8 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self { socket })
    }

    /// The IP packets that `wanted` picks, until `limit` is over or `enough` of them are there.
    pub fn read(&mut self, enough: usize, limit: Duration, wanted: impl Fn(&Packet) -> bool) -> Vec<Packet> {
        let end = Instant::now() + limit;
        let mut found = Vec::new();
        let mut frame = [0; 65536];
        while found.len() < enough && Instant::now() < end {
            if let Ok(length) = self.socket.read(&mut frame) {
                found.extend(parse(&frame[..length]).filter(|packet| wanted(packet)));
            }
        }
        found
    }
}

fn parse(frame: &[u8]) -> Option<Packet> {
    let ethertype = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
    let ip = frame.get(14..)?;
    match ethertype {
        ETHERTYPE_IPV4 => {
            let header = usize::from(ip.first()? & 0x0f) * 4;
            Some(Packet {
                source: IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(12..16)?).ok()?)),
                destination: IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(16..20)?).ok()?)),
                protocol: *ip.get(9)?,
                payload: ip.get(header..)?.to_vec(),
            })
        }
        ETHERTYPE_IPV6 => Some(Packet {
            source: IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(8..24)?).ok()?)),
            destination: IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(24..40)?).ok()?)),
            protocol: *ip.get(6)?,
            payload: ip.get(40..)?.to_vec(),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_datagram_is_told_from_a_tunnelled_one() {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 32, 0, 0, 0, 0, 60, UDP, 0, 0]);
        frame.extend([10, 200, 1, 2, 10, 200, 3, 2]);
        frame.extend([0x10, 0, 0x1f, 0x90, 0, 12, 0, 0]);
        frame.extend(b"data");
        let packet = parse(&frame).unwrap();
        assert_eq!(packet.source, "10.200.1.2".parse::<IpAddr>().unwrap());
        assert_eq!(packet.udp_data(), Some(&b"data"[..]));
        frame[23] = 4; // IP in IP
        assert_eq!(parse(&frame).unwrap().udp_data(), None);
    }

    #[test]
    fn half_a_frame_is_no_packet() {
        assert_eq!(parse(&[0; 20]), None);
        assert_eq!(parse(&[]), None);
    }
}
