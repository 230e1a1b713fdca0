//! Links that go down, as the kernel counts it: one that comes back at once looks as if nothing had been, and is told of as
//! being up, while the router behind it may be another one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Several messages of RTM_NEWLINK, each of one to two kilobytes.
const BUFFER: usize = 16 << 10;
/// `sizeof(struct nlmsghdr)`; `struct ifinfomsg` follows, with the index at 4 and the flags at 8.
const HEADER: usize = 16;
/// Where attributes begin.
const ATTRIBUTES: usize = HEADER + 16;
/// How often the link lost its carrier (linux/if_link.h); no kernel before 4.16 tells.
const IFLA_CARRIER_DOWN_COUNT: u16 = 48;
/// The group of RTM_NEWLINK and RTM_DELLINK, as a bit (linux/rtnetlink.h).
const RTMGRP_LINK: u32 = 1;

/// What the kernel said of links.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// These are, or were for a moment, without carrier or switched off.
    Down(Vec<u32>),
    /// More than could be kept: any link may have been down.
    Lost,
}

/// The kernel's notifications of links.
#[derive(Debug)]
pub(super) struct LinkMonitor {
    /// A netlink socket, with a datagram socket's manners.
    socket: UdpSocket,
    /// How often each link lost its carrier.
    counts: BTreeMap<u32, u32>,
}

impl LinkMonitor {
    /// Follows the links of the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no such socket to be had.
    pub(super) fn open() -> io::Result<LinkMonitor> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK))?;
        // The answer comes among the notifications, and looks like them.
        send(socket.as_raw_fd(), &all_links(), MsgFlags::empty())?;
        Ok(LinkMonitor { socket: UdpSocket::from_std(socket.into())?, counts: BTreeMap::new() })
    }

    /// Until the kernel has something to tell.
    pub(super) async fn readable(&self) {
        // An error shows itself when reading.
        let _ = self.socket.readable().await;
    }

    /// All that waits; `None` when nothing does.
    pub(super) fn read(&mut self) -> Option<Told> {
        let mut octets = [0; BUFFER];
        let mut down = Vec::new();
        let fd = self.socket.as_raw_fd();
        let mut any = false;
        loop {
            let read = || Ok(recv(fd, &mut octets, MsgFlags::MSG_DONTWAIT)?);
            match self.socket.try_io(Interest::READABLE, read) {
                Ok(len) => {
                    any = true;
                    down.extend(links_down(&mut self.counts, &octets[..len]));
                }
                Err(e) if e.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Some(Told::Lost),
                Err(_) => return any.then_some(Told::Down(down)),
            }
        }
    }
}

/// RTM_GETLINK for all of them.
fn all_links() -> Vec<u8> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    let mut octets = Vec::with_capacity(ATTRIBUTES);
    octets.extend(u32::try_from(ATTRIBUTES).expect("small").to_ne_bytes());
    octets.extend(libc::RTM_GETLINK.to_ne_bytes());
    octets.extend(u16::try_from(flags).expect("flags have 16 bits").to_ne_bytes());
    octets.resize(ATTRIBUTES, 0);
    octets
}

/// The indexes of the links that are, by these messages, unusable or gone, or have been since the last ones.
fn links_down(counts: &mut BTreeMap<u32, u32>, mut octets: &[u8]) -> Vec<u32> {
    let usable = u32::try_from(libc::IFF_UP | libc::IFF_LOWER_UP).expect("flags are positive");
    let mut down = Vec::new();
    while let Some(len) = word(octets, 0).map(|len| len as usize).filter(|len| *len >= HEADER) {
        let message = &octets[..len.min(octets.len())];
        if let (Some(ifindex), Some(flags)) = (word(message, HEADER + 4), word(message, HEADER + 8)) {
            match u16::from_ne_bytes([message[4], message[5]]) {
                libc::RTM_NEWLINK => {
                    let count = carrier_down_count(message);
                    let before = count.and_then(|count| counts.insert(ifindex, count));
                    if flags & usable != usable || before.is_some_and(|before| Some(before) != count) {
                        down.push(ifindex);
                    }
                }
                libc::RTM_DELLINK => {
                    counts.remove(&ifindex);
                    down.push(ifindex);
                }
                _ => {}
            }
        }
        octets = octets.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    down
}

fn carrier_down_count(message: &[u8]) -> Option<u32> {
    let mut attributes = message.get(ATTRIBUTES..)?;
    loop {
        let header = attributes.get(..4)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]])).max(4);
        if u16::from_ne_bytes([header[2], header[3]]) == IFLA_CARRIER_DOWN_COUNT {
            return word(attributes, 4);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

fn word(octets: &[u8], offset: usize) -> Option<u32> {
    let word = octets.get(offset..offset + 4)?;
    Some(u32::from_ne_bytes(word.try_into().expect("four octets")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: i32 = libc::IFF_UP | libc::IFF_LOWER_UP;

    fn message(kind: u16, ifindex: u32, flags: i32, count: Option<u32>) -> Vec<u8> {
        let mut octets = vec![0; 4];
        octets.extend(kind.to_ne_bytes());
        octets.extend([0; 14]);
        octets.extend(ifindex.to_ne_bytes());
        octets.extend(flags.to_ne_bytes());
        octets.extend([0; 4]);
        if let Some(count) = count {
            // A name of three octets goes before it, padded to four.
            for attribute in [&[7, 0, 3, 0, b'u', b'0', 0, 0][..], &[8, 0, 48, 0], &count.to_ne_bytes()] {
                octets.extend(attribute);
            }
        }
        let len = u32::try_from(octets.len()).unwrap();
        octets[..4].copy_from_slice(&len.to_ne_bytes());
        octets
    }

    #[test]
    fn links_without_carrier_switched_off_or_gone_are_down() {
        let octets = [
            message(libc::RTM_NEWLINK, 1, UP, None),
            message(libc::RTM_NEWLINK, 2, libc::IFF_UP, Some(1)),
            message(libc::RTM_NEWLINK, 3, 0, None),
            message(libc::RTM_DELLINK, 4, UP, None),
            message(libc::RTM_NEWADDR, 5, 0, None),
        ]
        .concat();
        assert_eq!(links_down(&mut BTreeMap::new(), &octets), [2, 3, 4]);
    }

    #[test]
    fn one_that_was_down_between_two_messages_is_told_by_its_count() {
        let mut counts = BTreeMap::new();
        let mut told = |ifindex, count| {
            !links_down(&mut counts, &message(libc::RTM_NEWLINK, ifindex, UP, Some(count))).is_empty()
        };
        assert!(!told(7, 1), "nothing is known of before");
        assert!(!told(7, 1));
        assert!(told(7, 2));
        assert!(!told(7, 2));
        assert!(!told(8, 5), "each has its own count");
        assert!(told(7, 4));
        links_down(&mut counts, &message(libc::RTM_DELLINK, 7, 0, None));
        assert!(!counts.contains_key(&7), "nothing is kept of what is gone");
    }

    #[test]
    fn what_is_cut_short_is_not_read_beyond_its_end() {
        let whole = message(libc::RTM_NEWLINK, 7, 0, Some(1));
        for len in 0..whole.len() {
            let found = links_down(&mut BTreeMap::new(), &whole[..len]);
            assert!(found.is_empty() || found == [7], "{len}: {found:?}");
        }
        assert!(links_down(&mut BTreeMap::new(), &[0; 64]).is_empty(), "a length of 0 leads nowhere");
    }
}
