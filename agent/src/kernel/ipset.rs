//! IP sets over nfnetlink, through a socket that stays open: a change costs microseconds where a process costs
//! milliseconds.
//!
//! All changes are idempotent (no NLM_F_EXCL): creating what is there with the same type, adding a member that is there and
//! deleting one that is not are successes, so that a plan can be carried out again after it broke in the middle.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use manx_policy::ir::{Member, SetKind};
use manx_policy::model::Protocol;
use manx_policy::plan::ObservedSet;

use super::Family;
use super::netlink::{
    Attrs, Batch, NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLM_F_DUMP, Netlink, NetlinkError, Refusal, text,
};

/// NFNL_SUBSYS_IPSET, in the high byte of the message type.
const SUBSYSTEM: u16 = 6 << 8;
/// IPSET_PROTOCOL: what the kernel has spoken since 4.20.
const PROTOCOL: u8 = 7;
/// struct nfgenmsg.
const NFGENMSG: usize = 4;
/// Members in one message: some 30 kB, far below the 64 kB of an attribute.
const CHUNK: usize = 500;

/// IPSET_CMD_ numbers.
mod command {
    pub(super) const CREATE: u16 = 2;
    pub(super) const DESTROY: u16 = 3;
    pub(super) const LIST: u16 = 7;
    pub(super) const ADD: u16 = 9;
    pub(super) const DELETE: u16 = 10;
    pub(super) const TEST: u16 = 11;
    pub(super) const TYPE: u16 = 13;
}

/// IPSET_ATTR_ numbers.
mod attribute {
    pub(super) const PROTOCOL: u16 = 1;
    pub(super) const SET_NAME: u16 = 2;
    pub(super) const TYPE_NAME: u16 = 3;
    pub(super) const REVISION: u16 = 4;
    pub(super) const FAMILY: u16 = 5;
    pub(super) const FLAGS: u16 = 6;
    pub(super) const DATA: u16 = 7;
    pub(super) const ADT: u16 = 8;
    pub(super) const LINE_NUMBER: u16 = 9;
    // Within DATA.
    pub(super) const IP: u16 = 1;
    pub(super) const CIDR: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const PROTO: u16 = 7;
    pub(super) const MAX_ELEMENTS: u16 = 19;
    pub(super) const ELEMENTS: u16 = 24;
    // Within IP.
    pub(super) const IPV4: u16 = 1;
    pub(super) const IPV6: u16 = 2;
}

/// IPSET_ERR_EXIST: the member that was asked for is not in the set.
const NOT_THERE: i32 = 4103;
/// IPSET_ERR_BUSY: a rule or another set speaks of it.
const IN_USE: i32 = 4100;
/// Several times an RCU grace period, which is what the kernel needs to be through with a deleted rule.
const RULES_GO: Duration = Duration::from_millis(300);
/// How often to look meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(3);

/// IPSET_FLAG_LIST_SETNAME: names only.
const LIST_NAMES: u32 = 1 << 1;
/// IPSET_FLAG_LIST_HEADER: no members.
const LIST_HEADERS: u32 = 1 << 2;

/// Sets could not be had.
#[derive(Debug, thiserror::Error)]
pub enum IpsetError {
    /// The socket.
    #[error("IP sets cannot be programmed: {0}")]
    Netlink(#[from] NetlinkError),
    /// The kernel refused; with the set that it was about.
    #[error("{what}: {reason}")]
    Refused {
        /// What was tried.
        what: String,
        /// The kernel's answer in words.
        reason: String,
    },
}

/// The sets of a network namespace.
pub struct Ipsets {
    socket: Netlink,
    /// The newest revision that the kernel has of each type.
    revisions: BTreeMap<&'static str, u8>,
}

impl std::fmt::Debug for Ipsets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ipsets").field("revisions", &self.revisions).finish_non_exhaustive()
    }
}

impl Ipsets {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// No privilege, or the kernel lacks ip_set or one of the types.
    pub fn open() -> Result<Self, IpsetError> {
        let mut sets = Ipsets { socket: Netlink::netfilter()?, revisions: BTreeMap::new() };
        for kind in [SetKind::Ip, SetKind::Net, SetKind::IpPort] {
            let revision = sets.revision(kind)?;
            sets.revisions.insert(kind.as_str(), revision);
        }
        Ok(sets)
    }

    /// Creates an empty set, or finds that it is there.
    ///
    /// # Errors
    /// One of that name and another type is there, or the kernel is out of sets.
    pub fn create(
        &mut self,
        name: &str,
        kind: SetKind,
        family: Family,
        max_elements: u32,
    ) -> Result<(), IpsetError> {
        let mut batch = Batch::new();
        let revision = self.revisions[kind.as_str()];
        message(&mut batch, command::CREATE, 0, Some(name), |m| {
            m.attr_str(attribute::TYPE_NAME, kind.as_str());
            m.attr(attribute::REVISION, &[revision]);
            m.attr(attribute::FAMILY, &[family.number()]);
            m.nest(NLA_F_NESTED | attribute::DATA, |m| {
                m.attr(NLA_F_NET_BYTEORDER | attribute::MAX_ELEMENTS, &max_elements.to_be_bytes());
            });
        });
        self.exchange(&mut batch, || format!("creating set {name} ({}, {family})", kind.as_str()), &[])
    }

    /// Adds members; those that are there already are left alone.
    ///
    /// # Errors
    /// The set is full or missing, or a member is not of its type.
    pub fn add(&mut self, name: &str, members: &[Member]) -> Result<(), IpsetError> {
        self.change(command::ADD, name, members)
    }

    /// Deletes members; those that are not there are left alone.
    ///
    /// # Errors
    /// The set is missing, or a member is not of its type.
    pub fn delete(&mut self, name: &str, members: &[Member]) -> Result<(), IpsetError> {
        self.change(command::DELETE, name, members)
    }

    /// Whether a set has a member. A look of microseconds, for those who wait for one.
    ///
    /// # Errors
    /// The set is missing, or the member is not of its type.
    pub fn contains(&mut self, name: &str, member: &Member) -> Result<bool, IpsetError> {
        let mut batch = Batch::new();
        message(&mut batch, command::TEST, 0, Some(name), |m| {
            m.nest(NLA_F_NESTED | attribute::DATA, |m| put(m, member));
        });
        let mut refused = None;
        self.socket.exchange(&mut batch, |_, refusal| refused = Some(refusal))?;
        match refused {
            None => Ok(true),
            Some(refusal) if refusal.errno == NOT_THERE => Ok(false),
            Some(refusal) => {
                let what = format!("looking into set {name}");
                Err(IpsetError::Refused { what, reason: reason(&refusal) })
            }
        }
    }

    /// Destroys a set; one that is not there is no error. A rule that has just been deleted holds its sets until the kernel
    /// is through with it, which is waited for.
    ///
    /// # Errors
    /// A rule speaks of it still.
    pub fn destroy(&mut self, name: &str) -> Result<(), IpsetError> {
        let deadline = Instant::now() + RULES_GO;
        loop {
            let mut batch = Batch::new();
            message(&mut batch, command::DESTROY, 0, Some(name), |_| {});
            let mut refused = None;
            self.socket.exchange(&mut batch, |_, refusal| refused = Some(refusal))?;
            match refused {
                Some(refusal) if refusal.errno == IN_USE && Instant::now() < deadline => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                Some(refusal) if refusal.errno != libc::ENOENT => {
                    let what = format!("destroying set {name}");
                    return Err(IpsetError::Refused { what, reason: reason(&refusal) });
                }
                _ => return Ok(()),
            }
        }
    }

    /// The sets whose names begin with one of `prefixes`, with their members; others are not even read.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn list(&mut self, prefixes: &[&str]) -> Result<Vec<ObservedSet>, IpsetError> {
        let mut names = BTreeSet::new();
        let mut batch = Batch::new();
        message(&mut batch, command::LIST, NLM_F_DUMP, None, |m| {
            m.attr(NLA_F_NET_BYTEORDER | attribute::FLAGS, &LIST_NAMES.to_be_bytes());
        });
        self.socket.dump(
            &mut batch,
            || "listing sets".to_owned(),
            |_, payload| {
                for (kind, value) in Attrs::new(payload.get(NFGENMSG..).unwrap_or_default()) {
                    if kind == attribute::SET_NAME {
                        names.insert(text(value));
                    }
                }
            },
        )?;
        names.retain(|name| prefixes.iter().any(|p| name.starts_with(p)));
        let mut sets = Vec::new();
        for name in names {
            sets.extend(self.read(name)?);
        }
        Ok(sets)
    }

    /// How many members each set has whose name begins with one of `prefixes`. Reads no member: a thousand sets take a
    /// millisecond or two.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn count(&mut self, prefixes: &[&str]) -> Result<BTreeMap<String, u32>, IpsetError> {
        let mut counts = BTreeMap::new();
        let mut batch = Batch::new();
        message(&mut batch, command::LIST, NLM_F_DUMP, None, |m| {
            m.attr(NLA_F_NET_BYTEORDER | attribute::FLAGS, &LIST_HEADERS.to_be_bytes());
        });
        self.socket.dump(
            &mut batch,
            || "counting the members of sets".to_owned(),
            |_, payload| {
                let (mut name, mut count) = (None, None);
                for (kind, value) in Attrs::new(payload.get(NFGENMSG..).unwrap_or_default()) {
                    match kind {
                        attribute::SET_NAME => name = Some(text(value)),
                        attribute::DATA => {
                            let mut header = Attrs::new(value);
                            let found = header.find(|(kind, _)| *kind == attribute::ELEMENTS);
                            count = found.and_then(|(_, v)| v.first_chunk()).map(|v| u32::from_be_bytes(*v));
                        }
                        _ => {}
                    }
                }
                if let (Some(name), Some(count)) = (name, count) {
                    counts.insert(name, count);
                }
            },
        )?;
        counts.retain(|name, _| prefixes.iter().any(|p| name.starts_with(p)));
        Ok(counts)
    }

    /// One set; `None`: it is gone meanwhile. A large one comes in several messages, its type in the first.
    fn read(&mut self, name: String) -> Result<Option<ObservedSet>, IpsetError> {
        let mut kind = None;
        let mut elements = Vec::new();
        let mut batch = Batch::new();
        message(&mut batch, command::LIST, NLM_F_DUMP, Some(&name), |_| {});
        let read = self.socket.dump(
            &mut batch,
            || format!("reading set {name}"),
            |_, payload| {
                for (attribute, value) in Attrs::new(payload.get(NFGENMSG..).unwrap_or_default()) {
                    match attribute {
                        attribute::TYPE_NAME => kind = SetKind::parse(&text(value)),
                        attribute::ADT => {
                            elements.extend(Attrs::new(value).filter_map(|(_, data)| Element::parse(data)));
                        }
                        _ => {}
                    }
                }
            },
        );
        match read {
            Ok(_) => {}
            Err(NetlinkError::Refused { refusal, .. }) if refusal.errno == libc::ENOENT => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        let members = kind.map(|kind| elements.iter().filter_map(|e| e.member(kind)).collect());
        Ok(Some(ObservedSet { name, kind, members: members.unwrap_or_default() }))
    }

    fn change(&mut self, command: u16, name: &str, members: &[Member]) -> Result<(), IpsetError> {
        let mut batch = Batch::new();
        for chunk in members.chunks(CHUNK) {
            batch.clear();
            message(&mut batch, command, 0, Some(name), |m| {
                // Its presence makes the kernel say which member it refused.
                m.attr(NLA_F_NET_BYTEORDER | attribute::LINE_NUMBER, &1u32.to_be_bytes());
                m.nest(NLA_F_NESTED | attribute::ADT, |m| {
                    for (line, member) in (1u32..).zip(chunk) {
                        m.nest(NLA_F_NESTED | attribute::DATA, |m| {
                            put(m, member);
                            m.attr(NLA_F_NET_BYTEORDER | attribute::LINE_NUMBER, &line.to_be_bytes());
                        });
                    }
                });
            });
            let verb = if command == command::ADD { "adding to" } else { "deleting from" };
            self.exchange(&mut batch, || format!("{verb} set {name}"), &[])?;
        }
        Ok(())
    }

    /// The newest revision of a type; asking also loads its module.
    fn revision(&mut self, kind: SetKind) -> Result<u8, IpsetError> {
        let mut batch = Batch::new();
        message(&mut batch, command::TYPE, 0, None, |m| {
            m.attr_str(attribute::TYPE_NAME, kind.as_str());
            m.attr(attribute::FAMILY, &[Family::Ipv4.number()]);
        });
        let mut revision = None;
        let asked = self.socket.dump(
            &mut batch,
            || kind.as_str().to_owned(),
            |_, payload| {
                let attributes = Attrs::new(payload.get(NFGENMSG..).unwrap_or_default());
                revision = revision
                    .or(attributes.into_iter().find(|(k, _)| *k == attribute::REVISION).map(|(_, v)| v[0]));
            },
        );
        match (asked, revision) {
            (Ok(_), Some(revision)) => Ok(revision),
            (Err(NetlinkError::Refused { refusal, .. }), _) => Err(IpsetError::Refused {
                what: format!("set type {}", kind.as_str()),
                reason: match refusal.errno {
                    libc::EPERM => "not permitted: run as root, or with the capability NET_ADMIN".to_owned(),
                    _ => {
                        format!("{}: load the modules ip_set and ip_set_hash_* on the host", reason(&refusal))
                    }
                },
            }),
            (Err(e), _) => Err(e.into()),
            (Ok(_), None) => Err(IpsetError::Refused {
                what: format!("set type {}", kind.as_str()),
                reason: "the kernel does not name its revision".to_owned(),
            }),
        }
    }

    fn exchange(
        &mut self,
        batch: &mut Batch,
        what: impl FnOnce() -> String,
        accepted: &[i32],
    ) -> Result<(), IpsetError> {
        let mut refused = None;
        self.socket.exchange(batch, |_, refusal| refused = Some(refusal))?;
        match refused.filter(|r| !accepted.contains(&r.errno)) {
            None => Ok(()),
            Some(refusal) => Err(IpsetError::Refused { what: what(), reason: reason(&refusal) }),
        }
    }
}

fn message(batch: &mut Batch, command: u16, flags: u16, set: Option<&str>, body: impl FnOnce(&mut Batch)) {
    batch.message(SUBSYSTEM | command, flags, |m| {
        m.fixed(&[libc::AF_INET as u8, 0, 0, 0]);
        m.attr(attribute::PROTOCOL, &[PROTOCOL]);
        if let Some(name) = set {
            m.attr_str(attribute::SET_NAME, name);
        }
        body(m);
    });
}

fn put(m: &mut Batch, member: &Member) {
    match *member {
        Member::Ip(ip) => put_ip(m, ip),
        Member::Net(net) => {
            put_ip(m, net.network());
            m.attr(attribute::CIDR, &[net.prefix()]);
        }
        Member::IpPort(ip, protocol, port) => {
            put_ip(m, ip);
            m.attr(attribute::PROTO, &[protocol.number()]);
            m.attr(NLA_F_NET_BYTEORDER | attribute::PORT, &port.to_be_bytes());
        }
    }
}

fn put_ip(m: &mut Batch, ip: IpAddr) {
    m.nest(NLA_F_NESTED | attribute::IP, |m| match ip {
        IpAddr::V4(ip) => m.attr(NLA_F_NET_BYTEORDER | attribute::IPV4, &ip.octets()),
        IpAddr::V6(ip) => m.attr(NLA_F_NET_BYTEORDER | attribute::IPV6, &ip.octets()),
    });
}

/// An element as the kernel lists it, whatever the type of its set.
struct Element {
    ip: IpAddr,
    cidr: Option<u8>,
    port: Option<u16>,
    protocol: Option<u8>,
}

impl Element {
    fn parse(data: &[u8]) -> Option<Self> {
        let mut ip = None;
        let mut element = Element { ip: IpAddr::from([0; 4]), cidr: None, port: None, protocol: None };
        for (kind, value) in Attrs::new(data) {
            match kind {
                attribute::IP => ip = Attrs::new(value).find_map(|(_, address)| super::fib::address(address)),
                attribute::CIDR => element.cidr = value.first().copied(),
                attribute::PORT => element.port = value.first_chunk().map(|p| u16::from_be_bytes(*p)),
                attribute::PROTO => element.protocol = value.first().copied(),
                _ => {}
            }
        }
        element.ip = ip?;
        Some(element)
    }

    fn member(&self, kind: SetKind) -> Option<Member> {
        Some(match kind {
            SetKind::Ip => Member::Ip(self.ip),
            SetKind::Net => {
                let full = if self.ip.is_ipv4() { 32 } else { 128 };
                Member::Net(IpNetwork::new(self.ip, self.cidr.unwrap_or(full)).ok()?)
            }
            SetKind::IpPort => {
                let protocol = Protocol::ALL.into_iter().find(|p| Some(p.number()) == self.protocol)?;
                Member::IpPort(self.ip, protocol, self.port?)
            }
        })
    }
}

/// The kernel's own error numbers for sets (include/uapi/linux/netfilter/ipset/ip_set.h), in words.
fn reason(refusal: &Refusal) -> String {
    match refusal.errno {
        4098 => "the kernel does not know this type of set".to_owned(),
        4099 => "the kernel's limit of sets is reached".to_owned(),
        IN_USE => "a rule or another set still uses it".to_owned(),
        4102 => "a set of this name has another type".to_owned(),
        NOT_THERE => "already there, or not there".to_owned(),
        4104 => "not a usable prefix length".to_owned(),
        4106 | 4109 | 4110 => "an address of the wrong family".to_owned(),
        4352 => "the set is full (maxelem)".to_owned(),
        _ => refusal.to_string(),
    }
}
