//! Connection tracking over nfnetlink, through a socket that stays open: which flows there are, ending some, marking others.
//!
//! ```text
//! dump    every entry of a family, read as policy sees it; the caller keeps those that concern it
//! end     deletes entries by their own tuple, zone and id: never a flow that came later with the same addresses
//! mark    replaces some bits of entries' marks
//! ```
//! What to end is decided elsewhere. Batched: a message is some 80 bytes, and the kernel works a batch off in one system call.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use manx_policy::live::{LiveFlow, Transport, Tuple};
use manx_policy::model::Protocol;

use super::Family;
use super::netlink::{Attrs, Batch, NLA_F_NESTED, NLM_F_DUMP, Netlink, NetlinkError};

/// NFNL_SUBSYS_CTNETLINK, in the high byte of the message type.
const SUBSYSTEM: u16 = 1 << 8;
/// struct nfgenmsg.
const NFGENMSG: usize = 4;
/// Messages in one batch: their refusals fit the socket's buffer many times over.
const CHUNK: usize = 128;

/// IPCTNL_MSG_CT_ numbers.
mod command {
    pub(super) const NEW: u16 = 0;
    pub(super) const GET: u16 = 1;
    pub(super) const DELETE: u16 = 2;
}

/// CTA_ numbers.
mod attribute {
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const MARK: u16 = 8;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const MARK_MASK: u16 = 21;
    // Within a tuple.
    pub(super) const TUPLE_IP: u16 = 1;
    pub(super) const TUPLE_PROTO: u16 = 2;
    // Within TUPLE_IP.
    pub(super) const V4_SOURCE: u16 = 1;
    pub(super) const V4_DESTINATION: u16 = 2;
    pub(super) const V6_SOURCE: u16 = 3;
    pub(super) const V6_DESTINATION: u16 = 4;
    // Within TUPLE_PROTO.
    pub(super) const NUMBER: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const DESTINATION_PORT: u16 = 3;
    pub(super) const ICMP_TYPE: u16 = 5;
    pub(super) const ICMP_CODE: u16 = 6;
    pub(super) const ICMP6_TYPE: u16 = 8;
    pub(super) const ICMP6_CODE: u16 = 9;
}

/// A flow that the kernel tracks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As policy sees it.
    pub flow: LiveFlow,
    /// Its mark (`connmark`).
    pub mark: u32,
    family: Family,
    /// CTA_TUPLE_ORIG as the kernel gave it: what names the entry, whatever its protocol.
    original: Box<[u8]>,
    /// In network order, as the kernel gave it; `None`: zone 0.
    zone: Option<[u8; 2]>,
    /// In network order: tells this flow from a later one with the same tuple.
    id: Option<[u8; 4]>,
}

/// The connection tracking of a network namespace.
pub struct Conntrack {
    socket: Netlink,
}

impl Conntrack {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// No privilege.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Conntrack { socket: Netlink::netfilter()? })
    }

    /// The entries of a family that `wanted` picks. Entries that come or go meanwhile may be missing.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn dump(
        &mut self,
        family: Family,
        wanted: impl Fn(&LiveFlow) -> bool,
    ) -> Result<Vec<Entry>, NetlinkError> {
        let mut entries = Vec::new();
        let mut batch = Batch::new();
        message(&mut batch, command::GET, NLM_F_DUMP, family, |_| {});
        // An interrupted dump is as good as any: the table changes all the time.
        self.socket.dump(
            &mut batch,
            || format!("reading {family} flows"),
            |_, payload| {
                let attributes = payload.get(NFGENMSG..).unwrap_or_default();
                entries.extend(Entry::parse(family, attributes).filter(|entry| wanted(&entry.flow)));
            },
        )?;
        Ok(entries)
    }

    /// Deletes entries. Returns how many were still there.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn end<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) -> Result<usize, NetlinkError> {
        self.each(entries, |batch, entry| {
            message(batch, command::DELETE, 0, entry.family, |m| {
                entry.name(m);
                if let Some(id) = entry.id {
                    m.attr(attribute::ID, &id);
                }
            });
        })
    }

    /// Replaces the bits under `mask` of entries' marks by those of `value`. Returns how many were still there.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn mark<'a>(
        &mut self,
        entries: impl IntoIterator<Item = &'a Entry>,
        value: u32,
        mask: u32,
    ) -> Result<usize, NetlinkError> {
        self.each(entries, |batch, entry| {
            message(batch, command::NEW, 0, entry.family, |m| {
                entry.name(m);
                m.attr(attribute::MARK, &value.to_be_bytes());
                m.attr(attribute::MARK_MASK, &mask.to_be_bytes());
            });
        })
    }

    fn each<'a>(
        &mut self,
        entries: impl IntoIterator<Item = &'a Entry>,
        put: impl Fn(&mut Batch, &Entry),
    ) -> Result<usize, NetlinkError> {
        let mut done = 0;
        let mut batch = Batch::new();
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            batch.clear();
            entries.by_ref().take(CHUNK).for_each(|entry| put(&mut batch, entry));
            let mut refused = None;
            done += batch.len();
            self.socket.exchange(&mut batch, |_, refusal| {
                done -= 1;
                // ENOENT: it ended by itself. EBUSY: it is being ended.
                if ![libc::ENOENT, libc::EBUSY].contains(&refusal.errno) {
                    refused.get_or_insert(refusal);
                }
            })?;
            if let Some(refusal) = refused {
                return Err(NetlinkError::Refused { what: "changing a flow".to_owned(), refusal });
            }
        }
        Ok(done)
    }
}

impl Entry {
    fn parse(family: Family, attributes: &[u8]) -> Option<Self> {
        let (mut original, mut reply, mut mark, mut zone, mut id) = (None, None, 0, None, None);
        for (kind, value) in Attrs::new(attributes) {
            match kind {
                attribute::TUPLE_ORIG => original = Some(value),
                attribute::TUPLE_REPLY => reply = Some(value),
                attribute::MARK => mark = u32::from_be_bytes(value.try_into().ok()?),
                attribute::ZONE => zone = Some(value.try_into().ok()?),
                attribute::ID => id = Some(value.try_into().ok()?),
                _ => {}
            }
        }
        let original = original?;
        let flow = LiveFlow::of_entry(&tuple(original)?, &tuple(reply?)?);
        Some(Entry { flow, mark, family, original: original.into(), zone, id })
    }

    fn name(&self, m: &mut Batch) {
        m.attr(NLA_F_NESTED | attribute::TUPLE_ORIG, &self.original);
        if let Some(zone) = self.zone {
            m.attr(attribute::ZONE, &zone);
        }
    }
}

fn message(batch: &mut Batch, command: u16, flags: u16, family: Family, body: impl FnOnce(&mut Batch)) {
    batch.message(SUBSYSTEM | command, flags, |m| {
        m.fixed(&[family.number(), 0, 0, 0]);
        body(m);
    });
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut source, mut destination, mut transport) = (None, None, None);
    for (kind, value) in Attrs::new(bytes) {
        match kind {
            attribute::TUPLE_IP => {
                for (kind, value) in Attrs::new(value) {
                    match kind {
                        attribute::V4_SOURCE | attribute::V6_SOURCE => source = address(value),
                        attribute::V4_DESTINATION | attribute::V6_DESTINATION => destination = address(value),
                        _ => {}
                    }
                }
            }
            attribute::TUPLE_PROTO => transport = parse_transport(value),
            _ => {}
        }
    }
    Some(Tuple { source: source?, destination: destination?, transport: transport? })
}

fn parse_transport(bytes: &[u8]) -> Option<Transport> {
    let (mut number, mut ports, mut icmp) = (None, (0, 0), (0, 0));
    for (kind, value) in Attrs::new(bytes) {
        let port = || Some(u16::from_be_bytes(value.try_into().ok()?));
        match kind {
            attribute::NUMBER => number = value.first().copied(),
            attribute::SOURCE_PORT => ports.0 = port()?,
            attribute::DESTINATION_PORT => ports.1 = port()?,
            attribute::ICMP_TYPE | attribute::ICMP6_TYPE => icmp.0 = *value.first()?,
            attribute::ICMP_CODE | attribute::ICMP6_CODE => icmp.1 = *value.first()?,
            _ => {}
        }
    }
    let number = number?;
    let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == number);
    Some(match (known, i32::from(number)) {
        (Some(protocol), _) => Transport::Ports { protocol, source: ports.0, destination: ports.1 },
        (None, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => Transport::Icmp(icmp.0, icmp.1),
        (None, _) => Transport::Other(number),
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}
