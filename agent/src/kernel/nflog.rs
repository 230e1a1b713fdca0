//! Packets that our rules log (target NFLOG), over nfnetlink: binds the group, asks for the packets' beginnings, hands them on.
//!
//! Knows attributes and headers; which rule a prefix stands for is decided elsewhere. One process at a time may read a group in
//! a network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::{Attrs, Batch, Netlink, NetlinkError, text, u32_at};

/// NFNL_SUBSYS_ULOG, in the high byte of the message type.
const SUBSYSTEM: u16 = 4 << 8;
/// struct nfgenmsg.
const NFGENMSG: usize = 4;
/// So much of each packet: the headers, with the options and extensions that are usual.
const COPY_BYTES: u32 = 128;
/// Packets wait for each other so long at most, in hundredths of a second: one message then carries many.
const FLUSH_AFTER: u32 = 5;

/// NFULNL_MSG_ numbers.
mod message {
    pub(super) const PACKET: u16 = 0;
    pub(super) const CONFIG: u16 = 1;
}

/// NFULA_ numbers.
mod attribute {
    // Of a packet.
    pub(super) const INPUT: u16 = 4;
    pub(super) const OUTPUT: u16 = 5;
    pub(super) const PAYLOAD: u16 = 9;
    pub(super) const PREFIX: u16 = 10;
    // Of a configuration.
    pub(super) const COMMAND: u16 = 1;
    pub(super) const MODE: u16 = 2;
    pub(super) const TIMEOUT: u16 = 4;
}

/// NFULNL_CFG_CMD_BIND.
const BIND: u8 = 1;
/// NFULNL_COPY_PACKET.
const COPY_PACKET: u8 = 2;

/// A packet that a rule has logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The rule's `--nflog-prefix`.
    pub prefix: String,
    /// Index of the interface that it came in by.
    pub input: Option<u32>,
    /// Index of the interface that it would have left by.
    pub output: Option<u32>,
    /// What its headers say; `None`: they are no IP headers, or cut off.
    pub headers: Option<Headers>,
}

/// Addresses, protocol, ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number; in IPv6 that of the last extension header that could be read.
    pub protocol: u8,
    /// Source and destination port, where the protocol has them and this is a first fragment.
    pub ports: Option<(u16, u16)>,
}

/// The reader of one group in the network namespace of the thread that opened it.
pub struct Nflog {
    socket: Netlink,
}

impl Nflog {
    /// Begins to read a group.
    ///
    /// # Errors
    /// The kernel has no nfnetlink_log, another process reads the group (EPERM), or no privilege.
    pub fn open(group: u16) -> Result<Self, NetlinkError> {
        let mut socket = Netlink::netfilter()?;
        let mut batch = Batch::new();
        let mut configure = |kind, value: &[u8]| {
            batch.message(SUBSYSTEM | message::CONFIG, 0, |m| {
                let [high, low] = group.to_be_bytes();
                m.fixed(&[libc::AF_UNSPEC as u8, 0, high, low]);
                m.attr(kind, value);
            });
        };
        configure(attribute::COMMAND, &[BIND]);
        // struct nfulnl_msg_config_mode.
        let [a, b, c, d] = COPY_BYTES.to_be_bytes();
        configure(attribute::MODE, &[a, b, c, d, COPY_PACKET, 0]);
        configure(attribute::TIMEOUT, &FLUSH_AFTER.to_be_bytes());
        socket.request(&mut batch, || format!("reading NFLOG group {group}"))?;
        Ok(Nflog { socket })
    }

    /// Waits for packets, some seconds at most, and hands them on.
    ///
    /// # Errors
    /// [`NetlinkError::Overrun`]: some were lost, others follow. All else: this reader is of no use any more.
    pub fn read(&mut self, mut each: impl FnMut(Logged)) -> Result<(), NetlinkError> {
        self.socket.drain(|header, payload| {
            if header.kind == SUBSYSTEM | message::PACKET {
                each(Logged::parse(payload.get(NFGENMSG..).unwrap_or_default()));
            }
        })?;
        Ok(())
    }
}

impl Logged {
    fn parse(attributes: &[u8]) -> Self {
        let mut logged = Logged { prefix: String::new(), input: None, output: None, headers: None };
        for (kind, value) in Attrs::new(attributes) {
            match kind {
                attribute::INPUT => logged.input = u32_at(value, 0).map(u32::from_be),
                attribute::OUTPUT => logged.output = u32_at(value, 0).map(u32::from_be),
                attribute::PAYLOAD => logged.headers = Headers::parse(value),
                attribute::PREFIX => logged.prefix = text(value),
                _ => {}
            }
        }
        logged
    }
}

impl Headers {
    /// Of a packet that begins with its IP header.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    /// RFC 791 3.1.
    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?).into());
        let length = usize::from(packet[0] & 0x0f) * 4;
        let first_fragment = u16_be(packet, 6)? & 0x1fff == 0;
        let protocol = *packet.get(9)?;
        Some(Headers {
            source: address(12)?,
            destination: address(16)?,
            protocol,
            ports: packet.get(length..).filter(|_| first_fragment).and_then(|rest| ports(protocol, rest)),
        })
    }

    /// RFC 8200 3 and 4.
    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let address = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?).into());
        let (mut protocol, mut at) = (*packet.get(6)?, 40);
        let mut first_fragment = true;
        while first_fragment && let Some([next, length, ..]) = packet.get(at..) {
            let length = match i32::from(protocol) {
                libc::IPPROTO_HOPOPTS | libc::IPPROTO_ROUTING | libc::IPPROTO_DSTOPTS => {
                    8 + usize::from(*length) * 8
                }
                libc::IPPROTO_FRAGMENT => {
                    first_fragment = u16_be(packet, at + 2)? >> 3 == 0;
                    8
                }
                libc::IPPROTO_AH => 8 + usize::from(*length) * 4,
                _ => break,
            };
            protocol = *next;
            at += length;
        }
        Some(Headers {
            source: address(8)?,
            destination: address(24)?,
            protocol,
            ports: packet.get(at..).filter(|_| first_fragment).and_then(|rest| ports(protocol, rest)),
        })
    }
}

fn ports(protocol: u8, transport: &[u8]) -> Option<(u16, u16)> {
    let has_ports = [libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_SCTP].contains(&i32::from(protocol));
    has_ports.then(|| Some((u16_be(transport, 0)?, u16_be(transport, 2)?)))?
}

fn u16_be(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(fragment: u16, protocol: u8, rest: &[u8]) -> Vec<u8> {
        let [high, low] = fragment.to_be_bytes();
        let mut packet = vec![0x46, 0, 0, 0, 0, 0, high, low, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([1; 4]); // an option: the header is 24 bytes long
        packet.extend(rest);
        packet
    }

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(rest);
        packet
    }

    #[test]
    fn ports_are_found_behind_options_and_extension_headers() {
        let udp = [0x30, 0x39, 0, 53, 0, 8, 0, 0];
        let headers = Headers::parse(&v4(0, 17, &udp)).unwrap();
        assert_eq!((headers.protocol, headers.ports), (17, Some((12345, 53))));
        assert_eq!(
            (headers.source, headers.destination),
            ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap())
        );

        let hop_by_hop: Vec<u8> = [17, 1].into_iter().chain([0; 14]).chain(udp).collect();
        let headers = Headers::parse(&v6(0, &hop_by_hop)).unwrap();
        assert_eq!((headers.protocol, headers.ports), (17, Some((12345, 53))));
        let fragment = |offset: u8| [vec![17, 0, 0, offset, 0, 0, 0, 1], udp.to_vec()].concat();
        assert_eq!(Headers::parse(&v6(44, &fragment(1))).unwrap().ports, Some((12345, 53)));
    }

    #[test]
    fn later_fragments_and_protocols_without_ports_have_none() {
        let bytes = [0x30, 0x39, 0, 53];
        assert_eq!(Headers::parse(&v4(185, 17, &bytes)).unwrap().ports, None);
        assert_eq!(Headers::parse(&v4(0, 1, &bytes)).unwrap().ports, None);
        let later = [vec![17, 0, 0, 8, 0, 0, 0, 1], bytes.to_vec()].concat();
        assert_eq!(Headers::parse(&v6(44, &later)).unwrap().ports, None);
    }

    #[test]
    fn packets_that_are_cut_off_are_read_as_far_as_they_go() {
        for packet in [v4(0, 6, &[1, 2, 3, 4]), v6(0, &[6, 200, 0, 0, 0, 0, 0, 0])] {
            for length in 0..packet.len() {
                let headers = Headers::parse(&packet[..length]);
                assert!(headers.is_none_or(|headers| headers.ports.is_none()), "{length}");
            }
        }
    }
}
