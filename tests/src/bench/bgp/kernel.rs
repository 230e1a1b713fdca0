//! What the kernel would do with a packet, asked without disturbing it: a look at one route takes a microsecond and no lock, while
//! counting a million of them holds up whoever writes them.

use std::net::Ipv4Addr;

use anyhow::Result;
use manx_agent::kernel::netlink::{Attrs, Batch, NLM_F_CREATE, Netlink, NetlinkError};

use super::table::Prefix;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
/// Answer with the table entry that matched.
const RTM_F_FIB_MATCH: u32 = 0x2000;
const AF_INET: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
/// `struct rtmsg`.
const RTMSG: usize = 12;

/// A socket to ask by, in the namespace of the thread that opened it.
pub(super) struct Kernel(Netlink);

impl Kernel {
    /// Opens it.
    ///
    /// # Errors
    /// When there is no such socket to be had.
    pub(super) fn open() -> Result<Self> {
        Ok(Self(Netlink::route()?))
    }

    /// The table has this very prefix.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub(super) fn holds(&mut self, (address, length): Prefix) -> Result<bool> {
        let found = self.ask(address, RTM_F_FIB_MATCH, |payload| {
            let destination = attribute(payload, RTA_DST);
            payload.get(1) == Some(&length) && destination == Some(address)
        })?;
        Ok(found == Some(true))
    }

    /// The gateway that a packet for this address is handed to now.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub(super) fn gateway(&mut self, address: Ipv4Addr) -> Result<Option<Ipv4Addr>> {
        Ok(self.ask(address, 0, |payload| attribute(payload, RTA_GATEWAY))?.flatten())
    }

    /// Adds a static route to one address, or takes it away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn set_static(
        &mut self,
        to: Ipv4Addr,
        gateway: Ipv4Addr,
        link: u32,
        there: bool,
    ) -> Result<()> {
        let mut batch = Batch::new();
        let (kind, flags) = if there { (RTM_NEWROUTE, NLM_F_CREATE) } else { (RTM_DELROUTE, 0) };
        batch.message(kind, flags, |m| {
            m.fixed(&[AF_INET, 32, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0]);
            m.attr(RTA_DST, &to.octets());
            m.attr(RTA_GATEWAY, &gateway.octets());
            m.attr(RTA_OIF, &link.to_ne_bytes());
        });
        Ok(self.0.request(&mut batch, || format!("the static route to {to}"))?)
    }

    fn ask<T>(&mut self, address: Ipv4Addr, flags: u32, read: impl Fn(&[u8]) -> T) -> Result<Option<T>> {
        let mut batch = Batch::new();
        batch.message(RTM_GETROUTE, 0, |m| {
            m.fixed(&[AF_INET, 32, 0, 0, 0, 0, 0, 0]);
            m.fixed(&flags.to_ne_bytes());
            m.attr(RTA_DST, &address.octets());
        });
        let mut answer = None;
        let each = |kind, payload: &[u8]| {
            if kind == RTM_NEWROUTE {
                answer = Some(read(payload));
            }
        };
        match self.0.dump(&mut batch, || format!("the route to {address}"), each) {
            // There is none.
            Ok(_) | Err(NetlinkError::Refused { .. }) => Ok(answer),
            Err(error) => Err(error.into()),
        }
    }
}

fn attribute(payload: &[u8], wanted: u16) -> Option<Ipv4Addr> {
    let (_, value) = Attrs::new(payload.get(RTMSG..)?).find(|(kind, _)| *kind == wanted)?;
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}
