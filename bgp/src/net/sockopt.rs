//! Socket options that no safe interface offers: TCP MD5 (RFC 2385), minimum TTL (RFC 5082), ICMPv6 filter (RFC 3542). The only unsafe code of
//! the crate: calls of setsockopt(2) with values that live on the stack.
#![allow(unsafe_code)]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_void, socklen_t};

/// The longest TCP MD5 key the kernel takes, in octets.
pub const MAX_KEY: usize = 80;

/// `struct tcp_md5sig` of linux/tcp.h; libc has it not.
#[repr(C)]
struct TcpMd5Sig {
    addr: SockAddrStorage,
    flags: u8,
    prefixlen: u8,
    keylen: u16,
    ifindex: c_int,
    key: [u8; MAX_KEY],
}

/// `struct sockaddr_storage`, as bytes.
#[repr(C, align(8))]
struct SockAddrStorage([u8; 128]);

/// linux/icmpv6.h; libc has it not for all targets.
const ICMPV6_FILTER: c_int = 1;
const TCP_MD5SIG_EXT: c_int = 32;
const TCP_MD5SIG_FLAG_PREFIX: u8 = 1;
/// IPv6's counterpart of IP_MINTTL (linux/in6.h); libc has it not for all targets.
const IPV6_MINHOPCOUNT: c_int = 73;

/// Sets the TCP MD5 key for segments from and to `peer`; `None` takes it away. On a listener it holds for the connections
/// that come in, so it must be there before the peer dials; on a dialling socket it must be set before connecting.
/// `prefix_len` widens it to a range of peers.
///
/// # Errors
/// `InvalidInput` for a key that is empty or over 80 octets; `Unsupported` where the kernel has no TCP MD5.
pub fn set_md5(
    socket: &impl AsFd,
    peer: IpAddr,
    prefix_len: Option<u8>,
    key: Option<&[u8]>,
) -> io::Result<()> {
    let key = match key {
        None => &[][..],
        Some(key) if (1..=MAX_KEY).contains(&key.len()) => key,
        Some(_) => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a TCP MD5 key has 1 to 80 octets"));
        }
    };
    let (name, flags) = match prefix_len {
        None => (libc::TCP_MD5SIG, 0),
        Some(_) => (TCP_MD5SIG_EXT, TCP_MD5SIG_FLAG_PREFIX),
    };
    let mut value = TcpMd5Sig {
        addr: storage(peer),
        flags,
        prefixlen: prefix_len.unwrap_or(0),
        keylen: u16::try_from(key.len()).expect("at most 80"),
        ifindex: 0,
        key: [0; MAX_KEY],
    };
    value.key[..key.len()].copy_from_slice(key);
    match set(socket, libc::IPPROTO_TCP, name, &value) {
        // The kernel had no such key: then there is nothing to take away.
        Err(e) if key.is_empty() && e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel has no TCP MD5 (CONFIG_TCP_MD5SIG)"))
        }
        result => result,
    }
}

/// `sockaddr_in` (family, port, address) or `sockaddr_in6` (family, port, flow, address), port 0.
fn storage(address: IpAddr) -> SockAddrStorage {
    let mut octets = [0; 128];
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    octets[..2].copy_from_slice(&u16::try_from(family).expect("2 or 10").to_ne_bytes());
    match address {
        IpAddr::V4(a) => octets[4..8].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => octets[8..24].copy_from_slice(&a.octets()),
    }
    SockAddrStorage(octets)
}

/// Drops packets that arrive with a lower TTL or hop limit (RFC 5082 3).
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_min_ttl(socket: &impl AsFd, ipv6: bool, min_ttl: u8) -> io::Result<()> {
    let (level, name) =
        if ipv6 { (libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT) } else { (libc::IPPROTO_IP, libc::IP_MINTTL) };
    set(socket, level, name, &c_int::from(min_ttl))
}

/// Received IPv4 datagrams come with their TTL.
///
/// # Errors
/// Those of setsockopt(2).
pub fn receive_ttl(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_RECVTTL, &c_int::from(true))
}

/// Lets only these ICMPv6 types through to a raw socket (RFC 3542 3.2).
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_icmp6_filter(socket: &impl AsFd, pass: &[u8]) -> io::Result<()> {
    // struct icmp6_filter: a bit for each type, set to block.
    let mut blocked = [u32::MAX; 8];
    for kind in pass {
        blocked[usize::from(kind >> 5)] &= !(1 << (kind & 31));
    }
    set(socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &blocked)
}

fn set<T>(socket: &impl AsFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let len = socklen_t::try_from(size_of::<T>()).expect("options are small");
    let pointer: *const c_void = std::ptr::from_ref(value).cast();
    // SAFETY: the descriptor is borrowed and thus open; pointer and length describe a value that outlives the call, and the
    // kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, pointer, len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(size_of::<TcpMd5Sig>(), 216);
        assert_eq!(std::mem::offset_of!(TcpMd5Sig, key), 136);
    }

    #[test]
    fn keys_have_1_to_80_octets() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for key in [&[][..], &[1; 81]] {
            let error = set_md5(&socket, [127, 0, 0, 9].into(), None, Some(key)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_minimum_ttl_can_be_set_in_both_families() {
        let v4 = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        set_min_ttl(&v4, false, 255).unwrap();
        if let Ok(v6) = std::net::TcpListener::bind("[::1]:0") {
            set_min_ttl(&v6, true, 255).unwrap();
        }
    }
}
