//! What is left of a wiring in the kernel: CHECK's eyes.
//!
//! Looks at every link, address, route and neighbour that [`Wiring`] makes and names those that are missing. What else
//! there is, or an MTU that another plugin has changed, is not its business.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;

use crate::link::{IFINFOMSG, LinkError, failed, family_byte, ifinfomsg, index_by, octets, open};
use crate::netlink::{Batch, Reply, Socket, u32_at};
use crate::netns::Netns;
use crate::plan::{HOST_MAC, Op, Route, Wiring};
use crate::spec::format_mac;

/// Lengths of struct ifaddrmsg, rtmsg and ndmsg.
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;
const NDMSG: usize = 12;

/// rtm_flags: the entry of the table instead of what follows from it.
const RTM_F_FIB_MATCH: u32 = 0x2000;

/// All that is missing, as sentences; empty: it is as ADD has made it.
///
/// # Errors
/// The kernel could not be asked.
pub fn missing(wiring: &Wiring, netns: &Netns) -> Result<Vec<String>, LinkError> {
    let mut out = Vec::new();
    end(&wiring.interface, HOST_MAC, &wiring.host(), "on the node", &mut out)?;
    let inside = || end(&wiring.ifname, wiring.mac, &wiring.pod(), "in the pod", &mut out);
    netns.inside(inside).map_err(|e| failed("enter the namespace of the pod", e))??;
    Ok(out)
}

fn end(name: &str, mac: [u8; 6], ops: &[Op], place: &str, out: &mut Vec<String>) -> Result<(), LinkError> {
    let mut socket = open(0)?;
    let Some(index) = index_by(&mut socket, name)? else {
        out.push(format!("{place}: there is no interface {name}"));
        return Ok(());
    };
    let link = link(&mut socket, index)?;
    if link.mac != Some(mac) {
        let has = link.mac.map_or_else(|| "none".to_owned(), format_mac);
        out.push(format!("{place}: {name} has the MAC address {has} instead of {}", format_mac(mac)));
    }
    let addresses = addresses(&mut socket, index)?;
    for op in ops {
        let there = match op {
            // Settings; that packets flow is seen by the rest.
            Op::NoAutomaticAddress | Op::ForwardV4 => true,
            Op::Up => link.up,
            Op::LoopbackUp => self::link(&mut socket, 1)?.up,
            Op::Address { ip, prefix } => addresses.get(ip) == Some(prefix),
            Op::Route(route) => has_route(&mut socket, index, route)?,
            Op::Neighbour { ip, mac } => neighbour(&mut socket, index, *ip)? == Some(*mac),
        };
        if !there {
            out.push(format!("{place}: {name}: {op} is missing"));
        }
    }
    Ok(())
}

struct Link {
    up: bool,
    mac: Option<[u8; 6]>,
}

fn link(socket: &mut Socket, index: u32) -> Result<Link, LinkError> {
    let mut batch = Batch::default();
    batch.message(libc::RTM_GETLINK, libc::NLM_F_ACK, &ifinfomsg(index, 0));
    let replies = ask(socket, &batch, "a link")?;
    let reply = replies.first();
    Ok(Link {
        up: reply
            .and_then(|r| u32_at(&r.body, 8))
            .is_some_and(|flags| flags & libc::IFF_UP.cast_unsigned() != 0),
        mac: reply
            .and_then(|r| r.attribute(IFINFOMSG, libc::IFLA_ADDRESS))
            .and_then(|mac| mac.try_into().ok()),
    })
}

/// Address -> prefix length.
fn addresses(socket: &mut Socket, index: u32) -> Result<BTreeMap<IpAddr, u8>, LinkError> {
    let mut batch = Batch::default();
    batch.message(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; IFADDRMSG]);
    let replies = ask(socket, &batch, "addresses")?;
    let mine = replies.iter().filter(|r| u32_at(&r.body, 4) == Some(index));
    Ok(mine
        .filter_map(|reply| {
            // IPv6 has no IFA_LOCAL unless there is a peer.
            let bytes = reply
                .attribute(IFADDRMSG, libc::IFA_LOCAL)
                .or_else(|| reply.attribute(IFADDRMSG, libc::IFA_ADDRESS))?;
            Some((address(bytes)?, *reply.body.get(1)?))
        })
        .collect())
}

/// The table's entry for the destination is this one. Asked for one by one: the node's table may hold a million.
fn has_route(socket: &mut Socket, index: u32, route: &Route) -> Result<bool, LinkError> {
    let (v6, dst) = octets(representative(route));
    let mut header = [0; RTMSG];
    header[0] = family_byte(v6);
    header[1] = if v6 { 128 } else { 32 };
    header[8..12].copy_from_slice(&RTM_F_FIB_MATCH.to_ne_bytes());
    let mut batch = Batch::default();
    batch.message(libc::RTM_GETROUTE, libc::NLM_F_ACK, &header).attribute(libc::RTA_DST, &dst);
    let replies = match socket.request(&batch) {
        Ok(replies) => replies,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ESRCH)) => {
            return Ok(false);
        }
        Err(e) => return Err(failed("ask for a route", e)),
    };
    let number = |r: &Reply, kind| r.attribute(RTMSG, kind).and_then(|v| u32_at(v, 0)).unwrap_or(0);
    Ok(replies.iter().any(|r| {
        let via = r.attribute(RTMSG, libc::RTA_GATEWAY).and_then(address);
        let metric = number(r, libc::RTA_PRIORITY);
        r.body.get(1) == Some(&route.prefix)
            && r.body.get(5) == Some(&route.protocol)
            && number(r, libc::RTA_OIF) == index
            && via == route.via
            && (route.metric == 0 || metric == route.metric)
    }))
}

/// An address that only the route in question leads to: of the default route, one of documentation (RFC 5737, RFC 3849).
fn representative(route: &Route) -> IpAddr {
    match (route.prefix, route.dst) {
        (0, IpAddr::V4(_)) => Ipv4Addr::new(192, 0, 2, 1).into(),
        (0, IpAddr::V6(_)) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        (_, dst) => dst,
    }
}

/// MAC address of a permanent entry.
fn neighbour(socket: &mut Socket, index: u32, ip: IpAddr) -> Result<Option<[u8; 6]>, LinkError> {
    const NUD_PERMANENT: u8 = 0x80;
    let (v6, dst) = octets(ip);
    let mut header = [0; NDMSG];
    header[0] = family_byte(v6);
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut batch = Batch::default();
    batch.message(libc::RTM_GETNEIGH, libc::NLM_F_ACK, &header).attribute(libc::NDA_DST, &dst);
    let replies = match socket.request(&batch) {
        Ok(replies) => replies,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(e) => return Err(failed("ask for a neighbour", e)),
    };
    let permanent = replies.iter().find(|r| r.body.get(8).is_some_and(|state| state & NUD_PERMANENT != 0));
    Ok(permanent.and_then(|r| r.attribute(NDMSG, libc::NDA_LLADDR)).and_then(|mac| mac.try_into().ok()))
}

fn ask(socket: &mut Socket, batch: &Batch, what: &str) -> Result<Vec<Reply>, LinkError> {
    socket.request(batch).map_err(|e: io::Error| failed(format!("ask for {what}"), e))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}
