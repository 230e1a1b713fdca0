//! The floor of route writing: raw rtnetlink, 256 messages a `send`, an acknowledgement for the last one only. No bookkeeping,
//! no notifications read, nothing known about what is there: nobody who must know can be faster.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

const BATCH: usize = 256;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_NH_ID: u16 = 30;
const RTM_NEWNEXTHOP: u16 = 104;
const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const AF_INET: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;

/// A protocol number that is nobody's.
const PROTOCOL: u8 = 201;
const METRIC: u32 = 77;
/// The id of the floor's own nexthop object.
const NEXT_HOP_ID: u32 = 201;

/// What a route points at.
#[derive(Clone, Copy)]
enum Via {
    Gateway(Ipv4Addr, u32),
    Id(u32),
}

/// A raw route socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Floor {
    socket: OwnedFd,
    sequence: u32,
}

impl Floor {
    /// Opens it.
    ///
    /// # Errors
    /// When there is no such socket to be had.
    pub fn open() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
            .context("rtnetlink")?;
        setsockopt(&socket, sockopt::SndBufForce, &(8 << 20))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Adds IPv4 routes by a gateway on a link.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn add(&mut self, prefixes: &[(Ipv4Addr, u8)], gateway: Ipv4Addr, ifindex: u32) -> Result<()> {
        self.write(prefixes, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, Some(Via::Gateway(gateway, ifindex)))
    }

    /// The same by a nexthop object, which is made first.
    ///
    /// # Errors
    /// As [`Floor::add`].
    pub fn add_by_id(&mut self, prefixes: &[(Ipv4Addr, u8)], gateway: Ipv4Addr, ifindex: u32) -> Result<()> {
        let mut batch = Vec::new();
        self.sequence += 1;
        let flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
        message(&mut batch, self.sequence, RTM_NEWNEXTHOP, flags, |b| {
            b.extend([AF_INET, 0, PROTOCOL, 0, 0, 0, 0, 0]);
            attribute(b, NHA_ID, &NEXT_HOP_ID.to_ne_bytes());
            attribute(b, NHA_OIF, &ifindex.to_ne_bytes());
            attribute(b, NHA_GATEWAY, &gateway.octets());
        });
        send(self.socket.as_raw_fd(), &batch, MsgFlags::empty()).context("send")?;
        self.wait_for(self.sequence)?;
        self.write(prefixes, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, Some(Via::Id(NEXT_HOP_ID)))
    }

    /// Deletes IPv4 routes.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn delete(&mut self, prefixes: &[(Ipv4Addr, u8)]) -> Result<()> {
        self.write(prefixes, RTM_DELROUTE, 0, None)
    }

    fn write(&mut self, prefixes: &[(Ipv4Addr, u8)], kind: u16, flags: u16, via: Option<Via>) -> Result<()> {
        let mut batch = Vec::with_capacity(BATCH * 64);
        for chunk in prefixes.chunks(BATCH) {
            batch.clear();
            for (index, (address, length)) in chunk.iter().enumerate() {
                self.sequence += 1;
                let ack = if index + 1 == chunk.len() { NLM_F_ACK } else { 0 };
                message(&mut batch, self.sequence, kind, NLM_F_REQUEST | flags | ack, |b| {
                    let scope = 0;
                    b.extend([
                        AF_INET,
                        *length,
                        0,
                        0,
                        RT_TABLE_MAIN,
                        PROTOCOL,
                        scope,
                        RTN_UNICAST,
                        0,
                        0,
                        0,
                        0,
                    ]);
                    attribute(b, RTA_DST, &address.octets());
                    attribute(b, RTA_PRIORITY, &METRIC.to_ne_bytes());
                    match via {
                        Some(Via::Gateway(gateway, ifindex)) => {
                            attribute(b, RTA_GATEWAY, &gateway.octets());
                            attribute(b, RTA_OIF, &ifindex.to_ne_bytes());
                        }
                        Some(Via::Id(id)) => attribute(b, RTA_NH_ID, &id.to_ne_bytes()),
                        None => {}
                    }
                });
            }
            send(self.socket.as_raw_fd(), &batch, MsgFlags::empty()).context("send")?;
            self.wait_for(self.sequence)?;
        }
        Ok(())
    }

    /// Reads until the acknowledgement of this message; a refusal of an earlier one comes before it.
    fn wait_for(&self, sequence: u32) -> Result<()> {
        let mut buffer = [0; 65536];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("recv")?;
            let mut rest = &buffer[..length];
            while let Some((head, tail)) = rest.split_at_checked(20) {
                let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes"));
                let kind = u16::from_ne_bytes([head[4], head[5]]);
                let error = word(16).cast_signed();
                if kind == NLMSG_ERROR && error != 0 {
                    bail!("the kernel refused a route: {}", std::io::Error::from_raw_os_error(-error));
                }
                if kind == NLMSG_ERROR && word(8) == sequence {
                    return Ok(());
                }
                let message = (usize::try_from(word(0))?.max(20) + 3) & !3;
                rest = tail.get(message - 20..).unwrap_or_default();
            }
        }
    }
}

fn message(batch: &mut Vec<u8>, sequence: u32, kind: u16, flags: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = batch.len();
    batch.extend([0; 4]);
    batch.extend(kind.to_ne_bytes());
    batch.extend(flags.to_ne_bytes());
    batch.extend(sequence.to_ne_bytes());
    batch.extend([0; 4]);
    body(batch);
    let length = u32::try_from(batch.len() - start).expect("a route message is small");
    batch[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

fn attribute(batch: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("an attribute is small");
    batch.extend(length.to_ne_bytes());
    batch.extend(kind.to_ne_bytes());
    batch.extend(value);
    batch.resize(batch.len().next_multiple_of(4), 0);
}

/// This many distinct /24s from 20.0.0.0 on, in an order that looks random and is always the same.
pub fn prefixes(count: u32) -> Vec<(Ipv4Addr, u8)> {
    let mut all: Vec<_> = (0..count).map(|i| (Ipv4Addr::from(0x1400_0000 + (i << 8)), 24)).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for i in (1..all.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.swap(i, usize::try_from(state % (i as u64 + 1)).expect("less than i"));
    }
    all
}

/// The same as networks.
pub fn networks(prefixes: &[(Ipv4Addr, u8)]) -> Vec<ipnetwork::IpNetwork> {
    let network =
        |(address, length): &(Ipv4Addr, u8)| ipnetwork::IpNetwork::new(IpAddr::V4(*address), *length);
    prefixes.iter().map(|p| network(p).expect("24 is a length")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefixes_are_distinct_and_shuffled() {
        let all = prefixes(1000);
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), 1000);
        assert!(!all.is_sorted());
    }
}
