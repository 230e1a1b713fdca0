//! Executes a [`Wiring`] by netlink: one message makes the pair with the peer born inside the pod's namespace and with
//! both MAC addresses (later is too late: udev sets them too), one batch sets up each end.
//!
//! Decides nothing. What it leaves after an error is removed by deleting the host end, which takes all else along.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use nix::libc;

use crate::detach;
use crate::netlink::{Batch, Reply, Socket, u32_at};
use crate::netns::Netns;
use crate::plan::{HOST_MAC, Op, Route, Sysctl, Wiring};

/// Attributes that libc does not name: linux/veth.h, linux/if_link.h, linux/ip.h, linux/if_addr.h.
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFA_F_NODAD: u8 = 0x02;
const NUD_PERMANENT: u16 = 0x80;
const RTMGRP_LINK: u32 = 1;

/// Length of struct ifinfomsg.
pub(crate) const IFINFOMSG: usize = 16;

/// The loopback interface of every namespace.
const LOOPBACK: u32 = 1;

/// A request that changes something: acknowledged, and never over what exists.
const CREATE: i32 = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;

/// Why a link could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct LinkError {
    /// The operation and its interface.
    pub what: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl LinkError {
    /// Is there something by the same name, address or destination?
    pub fn already_exists(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EEXIST)
    }
}

/// Both ends of a pair that was just made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    host: u32,
    pod: u32,
}

/// Makes the pair; both ends or none.
///
/// # Errors
/// The kernel's refusal: [`LinkError::already_exists`] when either name is taken.
pub fn create(wiring: &Wiring, netns: &Netns) -> Result<Ends, LinkError> {
    create_by(&mut open(0)?, wiring, netns)
}

/// Sets up both ends.
///
/// # Errors
/// The first operation that the kernel refused; the rest may be done.
pub fn set_up(wiring: &Wiring, netns: &Netns, ends: Ends) -> Result<(), LinkError> {
    write_sysctls(&wiring.host_sysctls())?;
    apply(&mut open(0)?, ends.host, &wiring.interface, &wiring.host())?;
    let inside = || {
        write_sysctls(&wiring.pod_sysctls())?;
        apply(&mut open(0)?, ends.pod, &wiring.ifname, &wiring.pod())
    };
    netns.inside(inside).map_err(|source| failed("enter the namespace of the pod", source))?
}

/// Index of an interface of this namespace.
///
/// # Errors
/// The socket's.
pub fn index(interface: &str) -> Result<Option<u32>, LinkError> {
    index_by(&mut open(0)?, interface)
}

/// Removes a link and waits until the kernel is done with it, some 20 ms. `false`: there is none.
///
/// # Errors
/// The kernel's refusal.
pub fn delete(interface: &str) -> Result<bool, LinkError> {
    let mut socket = open(0)?;
    match index_by(&mut socket, interface)? {
        Some(index) => delete_by(&mut socket, index, interface),
        None => Ok(false),
    }
}

/// Removes a link and returns as soon as it is unlisted: the kernel's wait after that is left to a detached child.
/// `false`: there is none. Only for a process of one thread. Takes as long as others hold rtnl: the kernel answers the
/// child in the end.
///
/// # Errors
/// The kernel's refusal.
pub fn delete_detached(interface: &str) -> Result<bool, LinkError> {
    let mut news = open(RTMGRP_LINK)?;
    let Some(index) = index(interface)? else { return Ok(false) };
    // No child, no haste.
    let by_index = || delete_by(&mut open(0)?, index, interface);
    let Ok(child) = detach::run(|| by_index().is_ok()) else { return by_index() };
    loop {
        let heard = news.news(50).map_err(|e| failed("listen for the end of a link", e))?;
        let gone = |r: &Reply| r.kind == libc::RTM_DELLINK && u32_at(&r.body, 4) == Some(index);
        if heard.iter().any(gone) {
            return Ok(true);
        }
        if heard.is_empty() {
            let ended = child.ended();
            if self::index(interface)? != Some(index) {
                return Ok(true);
            }
            if ended.is_some() {
                // Once more, for the reason.
                return by_index();
            }
        }
    }
}

/// Removes many links with one wait for all: they are put into a group of this process's own, which then goes.
///
/// # Errors
/// The kernel's refusal.
pub fn delete_all(interfaces: &[String]) -> Result<(), LinkError> {
    // "M" and the process id: no administrator numbers groups like this.
    let group = (0x4d00_0000 | (std::process::id() & 0x00ff_ffff)).to_ne_bytes();
    let mut socket = open(0)?;
    let mut any = false;
    for some in interfaces.chunks(64) {
        let mut batch = Batch::default();
        for interface in some {
            let message = batch.message(libc::RTM_SETLINK, libc::NLM_F_ACK, &ifinfomsg(0, 0));
            message.name(libc::IFLA_IFNAME, interface).attribute(libc::IFLA_GROUP, &group);
        }
        let answer = socket.send(&batch).map_err(|e| failed("group links", e))?;
        any |= answer.refusals.len() < some.len();
        for refusal in answer.refusals {
            if refusal.error.raw_os_error() != Some(libc::ENODEV) {
                return Err(failed(format!("group {}", some[refusal.index]), refusal.error));
            }
        }
    }
    if !any {
        return Ok(());
    }
    let mut batch = Batch::default();
    batch.message(libc::RTM_DELLINK, libc::NLM_F_ACK, &ifinfomsg(0, 0)).attribute(libc::IFLA_GROUP, &group);
    socket.request(&batch).map(drop).map_err(|e| failed("delete a group of links", e))
}

pub(crate) fn open(groups: u32) -> Result<Socket, LinkError> {
    Socket::open(groups).map_err(|e| failed("open a netlink socket", e))
}

pub(crate) fn failed(what: impl Into<String>, source: io::Error) -> LinkError {
    LinkError { what: what.into(), source }
}

pub(crate) fn index_by(socket: &mut Socket, interface: &str) -> Result<Option<u32>, LinkError> {
    let mut batch = Batch::default();
    batch.message(libc::RTM_GETLINK, libc::NLM_F_ACK, &ifinfomsg(0, 0)).name(libc::IFLA_IFNAME, interface);
    match socket.request(&batch) {
        Ok(replies) => Ok(replies.first().and_then(|reply| u32_at(&reply.body, 4))),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(failed(format!("look for {interface}"), e)),
    }
}

/// By index, never by name: the child of a DEL that was killed may come late, when the next ADD has made a link of the
/// same name. Indices are not given twice.
fn delete_by(socket: &mut Socket, index: u32, interface: &str) -> Result<bool, LinkError> {
    let mut batch = Batch::default();
    batch.message(libc::RTM_DELLINK, libc::NLM_F_ACK, &ifinfomsg(index, 0));
    match socket.request(&batch) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(e) => Err(failed(format!("delete {interface}"), e)),
    }
}

fn create_by(socket: &mut Socket, wiring: &Wiring, netns: &Netns) -> Result<Ends, LinkError> {
    let mtu = wiring.mtu.to_ne_bytes();
    let namespace = netns.as_fd().as_raw_fd().to_ne_bytes();
    let mut batch = Batch::default();
    let message = batch.message(libc::RTM_NEWLINK, CREATE | libc::NLM_F_ECHO, &ifinfomsg(0, 0));
    message
        .name(libc::IFLA_IFNAME, &wiring.interface)
        .attribute(libc::IFLA_ADDRESS, &HOST_MAC)
        .attribute(libc::IFLA_MTU, &mtu)
        .nested(libc::IFLA_LINKINFO, &[], |info| {
            info.name(libc::IFLA_INFO_KIND, "veth").nested(libc::IFLA_INFO_DATA, &[], |data| {
                data.nested(VETH_INFO_PEER, &ifinfomsg(0, 0), |peer| {
                    peer.name(libc::IFLA_IFNAME, &wiring.ifname)
                        .attribute(libc::IFLA_NET_NS_FD, &namespace)
                        .attribute(libc::IFLA_ADDRESS, &wiring.mac)
                        .attribute(libc::IFLA_MTU, &mtu);
                });
            });
        });
    let what = || format!("create {} with {} in the pod", wiring.interface, wiring.ifname);
    let replies = socket.request(&batch).map_err(|e| failed(what(), e))?;
    // The echo: struct ifinfomsg holds the host end's index, IFLA_LINK that of its peer.
    let echo = replies.iter().find(|reply| reply.kind == libc::RTM_NEWLINK);
    let indices = echo.and_then(|reply| {
        let peer = u32_at(reply.attribute(IFINFOMSG, libc::IFLA_LINK)?, 0)?;
        Some(Ends { host: u32_at(&reply.body, 4)?, pod: peer })
    });
    indices.ok_or_else(|| failed(what(), io::Error::other("the kernel did not tell the indices")))
}

fn apply(socket: &mut Socket, index: u32, name: &str, ops: &[Op]) -> Result<(), LinkError> {
    let mut batch = Batch::default();
    for op in ops {
        encode(&mut batch, index, op);
    }
    let answer = socket.send(&batch).map_err(|e| failed(format!("set up {name}"), e))?;
    for refusal in answer.refusals {
        let op = &ops[refusal.index];
        // A kernel without IPv6, or an MTU below its minimum, makes no address by itself either.
        if *op == Op::NoAutomaticAddress && refusal.error.raw_os_error() == Some(libc::EAFNOSUPPORT) {
            continue;
        }
        return Err(failed(format!("{name}: {op}"), refusal.error));
    }
    Ok(())
}

fn encode(batch: &mut Batch, index: u32, op: &Op) {
    match op {
        Op::NoAutomaticAddress => {
            batch.message(libc::RTM_SETLINK, libc::NLM_F_ACK, &ifinfomsg(index, 0)).nested(
                libc::IFLA_AF_SPEC,
                &[],
                |families| {
                    families.nested(family(true), &[], |v6| {
                        v6.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
                    });
                },
            );
        }
        Op::Up => {
            batch.message(libc::RTM_SETLINK, libc::NLM_F_ACK, &ifinfomsg(index, libc::IFF_UP));
        }
        Op::LoopbackUp => {
            batch.message(libc::RTM_SETLINK, libc::NLM_F_ACK, &ifinfomsg(LOOPBACK, libc::IFF_UP));
        }
        Op::ForwardV4 => {
            batch.message(libc::RTM_SETLINK, libc::NLM_F_ACK, &ifinfomsg(index, 0)).nested(
                libc::IFLA_AF_SPEC,
                &[],
                |families| {
                    families.nested(family(false), &[], |v4| {
                        v4.nested(IFLA_INET_CONF, &[], |conf| {
                            conf.attribute(IPV4_DEVCONF_FORWARDING, &1_u32.to_ne_bytes());
                        });
                    });
                },
            );
        }
        Op::Address { ip, prefix } => {
            let (v6, bytes) = octets(*ip);
            let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            let scope = if link_local { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
            let mut header = vec![family_byte(v6), *prefix, if v6 { IFA_F_NODAD } else { 0 }, scope];
            header.extend_from_slice(&index.to_ne_bytes());
            batch
                .message(libc::RTM_NEWADDR, CREATE, &header)
                .attribute(libc::IFA_LOCAL, &bytes)
                .attribute(libc::IFA_ADDRESS, &bytes);
        }
        Op::Route(route) => encode_route(batch, index, route),
        Op::Neighbour { ip, mac } => {
            let (v6, bytes) = octets(*ip);
            let mut header = vec![family_byte(v6), 0, 0, 0];
            header.extend_from_slice(&index.to_ne_bytes());
            header.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
            header.extend_from_slice(&[0, 0]);
            let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
            batch
                .message(libc::RTM_NEWNEIGH, flags, &header)
                .attribute(libc::NDA_DST, &bytes)
                .attribute(libc::NDA_LLADDR, mac);
        }
    }
}

fn encode_route(batch: &mut Batch, index: u32, route: &Route) {
    let (v6, dst) = octets(route.dst);
    let header = [
        family_byte(v6),
        route.prefix,
        0,
        0,
        libc::RT_TABLE_MAIN,
        route.protocol,
        route.scope,
        libc::RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    // EXCL, never REPLACE: that has stolen another pod's route.
    let message = batch.message(libc::RTM_NEWROUTE, CREATE, &header);
    message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
    if route.prefix > 0 {
        message.attribute(libc::RTA_DST, &dst);
    }
    if let Some(via) = route.via {
        message.attribute(libc::RTA_GATEWAY, &octets(via).1);
    }
    if route.metric > 0 {
        message.attribute(libc::RTA_PRIORITY, &route.metric.to_ne_bytes());
    }
}

fn write_sysctls(sysctls: &[Sysctl]) -> Result<(), LinkError> {
    for Sysctl { file, value, optional } in sysctls {
        let path = PathBuf::from("/proc/sys/net").join(file);
        // Most have the value by inheritance, and reading takes no lock.
        let has = fs::read_to_string(&path);
        if has.as_ref().is_ok_and(|has| has.trim_end() == *value) {
            continue;
        }
        if *optional && has.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            continue;
        }
        let written = has.and_then(|_| fs::write(&path, value));
        written.map_err(|e| failed(format!("write {value} to {}", path.display()), e))?;
    }
    Ok(())
}

/// struct ifinfomsg; flags are set, never cleared.
pub(crate) fn ifinfomsg(index: u32, flags: i32) -> [u8; IFINFOMSG] {
    let mut out = [0; IFINFOMSG];
    out[4..8].copy_from_slice(&index.to_ne_bytes());
    out[8..12].copy_from_slice(&flags.to_ne_bytes());
    out[12..16].copy_from_slice(&flags.to_ne_bytes());
    out
}

/// Is it IPv6, and its bytes in network order.
pub(crate) fn octets(ip: IpAddr) -> (bool, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (false, ip.octets().to_vec()),
        IpAddr::V6(ip) => (true, ip.octets().to_vec()),
    }
}

pub(crate) fn family_byte(v6: bool) -> u8 {
    u8::try_from(if v6 { libc::AF_INET6 } else { libc::AF_INET }).expect("address families are small")
}

fn family(v6: bool) -> u16 {
    u16::from(family_byte(v6))
}
