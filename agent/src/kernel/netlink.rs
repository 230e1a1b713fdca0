//! A netlink socket and its messages: what the FIB writer, the link monitor and the ipset writer share.
//!
//! This room knows framing, sequence numbers, acknowledgements and dumps. It must not know what a route or a set is.
//! Batches carry many requests in one `sendmsg` and ask for an acknowledgement of the last one only; the kernel
//! answers in order and sends an error for each request that it refuses, so one exchange tells the fate of all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use socket2::{SockFilter, SockRef};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Requests carry this flag (linux/netlink.h).
pub const NLM_F_REQUEST: u16 = 0x1;
/// Asks for an acknowledgement.
pub const NLM_F_ACK: u16 = 0x4;
/// In a dump's answer: the table changed meanwhile, what was read may be torn.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// NLM_F_ROOT | NLM_F_MATCH: give everything.
pub const NLM_F_DUMP: u16 = 0x300;
/// Replace the existing object.
pub const NLM_F_REPLACE: u16 = 0x100;
/// Refuse when the object exists.
pub const NLM_F_EXCL: u16 = 0x200;
/// Create when it does not exist.
pub const NLM_F_CREATE: u16 = 0x400;
/// In an error answer: the failed request is not repeated in full.
const NLM_F_CAPPED: u16 = 0x100;
/// In an error answer: attributes with the kernel's reason follow.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The nested bit and the byte-order bit of an attribute's type.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Marks an attribute that holds attributes.
pub const NLA_F_NESTED: u16 = 0x8000;
/// Marks an attribute in network byte order.
pub const NLA_F_NET_BYTEORDER: u16 = 0x4000;

/// The kernel answers a request before `sendmsg` returns; a wait this long means that the answer was lost.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// The kernel fills at most 32 KiB in one dump answer.
const RECEIVE_BUFFER: usize = 64 << 10;
/// Socket buffer for answers: 256 error answers with texts fit many times over.
const REQUEST_SOCKET_BUFFER: usize = 4 << 20;
/// Socket buffer for notifications: a burst of tens of thousands fits; what does not fit is told by ENOBUFS.
pub const MONITOR_SOCKET_BUFFER: usize = 32 << 20;

/// Why a netlink exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be had.
    #[error(
        "cannot open a netlink {family} socket: {source}; the kernel must have it and seccomp must allow it"
    )]
    Open {
        /// `route` or `netfilter`.
        family: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Sending failed.
    #[error("cannot send to netlink {family}: {source}")]
    Send {
        /// `route` or `netfilter`.
        family: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Receiving failed.
    #[error("no answer from netlink {family}: {source}")]
    Receive {
        /// `route` or `netfilter`.
        family: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel dropped messages for want of buffer (ENOBUFS): what was missed must be read again by a dump.
    #[error("netlink {family} messages were lost for want of socket buffer")]
    Overrun {
        /// `route` or `netfilter`.
        family: &'static str,
    },
    /// The kernel refused a request.
    #[error("{what}: {refusal}")]
    Refused {
        /// What was asked.
        what: String,
        /// The kernel's reason.
        refusal: Refusal,
    },
    /// The table kept changing while it was read.
    #[error("a netlink {family} dump was interrupted by changes again and again")]
    Unstable {
        /// `route` or `netfilter`.
        family: &'static str,
    },
}

/// The kernel's refusal of one request: the error number, and its own words where it gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Positive errno; ipset's own errors start at 4096.
    pub errno: i32,
    /// The extended acknowledgement's text.
    pub message: Option<Box<str>>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = nix::errno::Errno::from_raw(self.errno);
        match &self.message {
            Some(text) => write!(f, "{} ({name:?})", text.trim_end_matches('.')),
            None => write!(f, "{} ({name:?})", name.desc()),
        }?;
        if self.errno == libc::EPERM {
            f.write_str("; CAP_NET_ADMIN is needed")?;
        }
        Ok(())
    }
}

/// A netlink message's header as far as readers need it.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Message type.
    pub kind: u16,
    /// NLM_F_ flags.
    pub flags: u16,
    /// Sequence number of the request that caused it.
    pub seq: u32,
    /// Port of the socket that caused it; often, not always, a process id.
    pub port: u32,
}

/// Bytes of one or more messages under construction; attributes are appended to the message begun last.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    last: usize,
    count: u32,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all messages, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.last = 0;
        self.count = 0;
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it holds no message.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The messages so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes its messages take.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends one message; `body` writes the fixed header and the attributes.
    pub fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.last = start;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(self);
        let length = u32::try_from(self.bytes.len() - start).expect("a message is far below 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.count += 1;
    }

    /// Appends raw bytes: the family header that follows `nlmsghdr`. The length must be a multiple of four.
    pub fn fixed(&mut self, bytes: &[u8]) {
        debug_assert_eq!(bytes.len() % 4, 0);
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends one attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
    }

    /// Appends one attribute holding a string with its terminating zero.
    pub fn attr_str(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }

    /// Appends an attribute that `body` fills with attributes. The caller sets [`NLA_F_NESTED`] where the kernel wants it.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.open(kind);
        body(self);
        self.close(start);
    }

    /// Appends a block that begins with its own 16-bit length and two bytes of the caller's (`struct rtnexthop`).
    pub fn length_prefixed(&mut self, second: [u8; 2], body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&second);
        body(self);
        self.close(start);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start).expect("callers keep an attribute below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Numbers the messages from `first` on and asks for an acknowledgement of the last.
    fn seal(&mut self, first: u32) {
        let mut at = 0;
        for index in 0..self.count {
            let length = u32_at(&self.bytes, at).expect("we wrote the header") as usize;
            self.bytes[at + 8..at + 12].copy_from_slice(&first.wrapping_add(index).to_ne_bytes());
            at += length.next_multiple_of(4);
        }
        let flags = u16_at(&self.bytes, self.last + 6).expect("we wrote the header") | NLM_F_ACK;
        self.bytes[self.last + 6..self.last + 8].copy_from_slice(&flags.to_ne_bytes());
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    family: &'static str,
    port: u32,
    seq: u32,
    buffer: Box<[u8]>,
}

impl Netlink {
    /// A socket for rtnetlink requests: strict checks (so that dumps filter in the kernel), texts with errors.
    pub fn route() -> Result<Self, NetlinkError> {
        let this = Self::open(netlink_sys::protocols::NETLINK_ROUTE, "route")?;
        let open = |source| NetlinkError::Open { family: "route", source };
        this.socket.set_netlink_get_strict_chk(true).map_err(open)?;
        this.for_requests()
    }

    /// A socket for nfnetlink requests (ipset, conntrack).
    pub fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(netlink_sys::protocols::NETLINK_NETFILTER, "netfilter")?.for_requests()
    }

    /// A non-blocking socket that receives the notifications of these rtnetlink groups (RTNLGRP_ numbers).
    /// `filter` is a classic BPF program over the message, run in the kernel: what it drops costs nothing here. What does not
    /// fit into `socket_buffer`, in bytes, is lost and told as [`NetlinkError::Overrun`].
    pub fn route_monitor(
        groups: &[u32],
        filter: &[SockFilter],
        socket_buffer: usize,
    ) -> Result<Self, NetlinkError> {
        let open = |source| NetlinkError::Open { family: "route", source };
        let this = Self::open(netlink_sys::protocols::NETLINK_ROUTE, "route")?;
        this.size_buffer(socket_buffer)?;
        if !filter.is_empty() {
            SockRef::from(&this.socket).attach_filter(filter).map_err(open)?;
        }
        for group in groups {
            this.socket.add_membership(*group).map_err(open)?;
        }
        this.socket.set_non_blocking(true).map_err(open)?;
        Ok(this)
    }

    /// A socket that receives the notifications of this nfnetlink group (NFNLGRP_ number). It waits for them:
    /// [`Netlink::drain`] returns when there are some.
    pub fn netfilter_monitor(group: u32) -> Result<Self, NetlinkError> {
        let this = Self::open(netlink_sys::protocols::NETLINK_NETFILTER, "netfilter")?;
        this.size_buffer(MONITOR_SOCKET_BUFFER)?;
        let joined = this.socket.add_membership(group);
        joined.map_err(|source| NetlinkError::Open { family: "netfilter", source })?;
        Ok(this)
    }

    /// The socket's own port, as it stands in notifications of what it caused.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends a batch and reads the answers. `refused` hears of each message that the kernel refused, by its index in
    /// the batch. An error means that the fate of the whole batch is unknown.
    pub fn exchange(
        &mut self,
        batch: &mut Batch,
        mut refused: impl FnMut(usize, Refusal),
    ) -> Result<(), NetlinkError> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.seq;
        let last = batch.count - 1;
        self.seq = self.seq.wrapping_add(batch.count);
        batch.seal(first);
        self.send(&batch.bytes)?;
        loop {
            let received = self.receive()?;
            for (header, payload) in Messages::new(&self.buffer[..received]) {
                let index = header.seq.wrapping_sub(first);
                if header.kind != NLMSG_ERROR || index > last {
                    continue; // An answer to an exchange that was given up.
                }
                if let Some(refusal) = refusal(header, payload) {
                    refused(index as usize, refusal);
                }
                if index == last {
                    return Ok(());
                }
            }
        }
    }

    /// Sends one request and waits for its acknowledgement.
    pub fn request(&mut self, batch: &mut Batch, what: impl FnOnce() -> String) -> Result<(), NetlinkError> {
        let mut first = None;
        self.exchange(batch, |_, refusal| {
            first.get_or_insert(refusal);
        })?;
        match first {
            None => Ok(()),
            Some(refusal) => Err(NetlinkError::Refused { what: what(), refusal }),
        }
    }

    /// Sends one dump request and hands over each answer. Returns false when the table changed meanwhile and the
    /// answers may be torn. A table that is not there is empty: a host without any route has none.
    pub fn dump(
        &mut self,
        request: &mut Batch,
        what: impl FnOnce() -> String,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<bool, NetlinkError> {
        let seq = self.seq;
        self.seq = self.seq.wrapping_add(1);
        request.seal(seq);
        self.send(&request.bytes)?;
        let mut consistent = true;
        loop {
            let received = self.receive()?;
            for (header, payload) in Messages::new(&self.buffer[..received]) {
                if header.seq != seq {
                    continue;
                }
                consistent &= header.flags & NLM_F_DUMP_INTR == 0;
                match header.kind {
                    NLMSG_DONE => {
                        // The payload of DONE is the dump's own return value.
                        return match refusal(header, payload).filter(|r| r.errno != libc::ENOENT) {
                            None => Ok(consistent),
                            Some(refusal) => Err(NetlinkError::Refused { what: what(), refusal }),
                        };
                    }
                    NLMSG_ERROR => {
                        return match refusal(header, payload).filter(|r| r.errno != libc::ENOENT) {
                            None => Ok(consistent),
                            Some(refusal) => Err(NetlinkError::Refused { what: what(), refusal }),
                        };
                    }
                    kind => each(kind, payload),
                }
            }
        }
    }

    /// Reads notifications that are there, without waiting. Returns false when there were none.
    pub fn drain(&mut self, mut each: impl FnMut(Header, &[u8])) -> Result<bool, NetlinkError> {
        let received = match self.receive() {
            Ok(received) => received,
            Err(NetlinkError::Receive { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        for (header, payload) in Messages::new(&self.buffer[..received]) {
            each(header, payload);
        }
        Ok(true)
    }

    fn open(protocol: isize, family: &'static str) -> Result<Self, NetlinkError> {
        let open = |source| NetlinkError::Open { family, source };
        let mut socket = Socket::new(protocol).map_err(open)?;
        let address = socket.bind_auto().map_err(open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(open)?;
        let buffer = vec![0; RECEIVE_BUFFER].into_boxed_slice();
        Ok(Self { socket, family, port: address.port_number(), seq: 1, buffer })
    }

    fn for_requests(self) -> Result<Self, NetlinkError> {
        let open = |source| NetlinkError::Open { family: self.family, source };
        self.socket.set_ext_ack(true).map_err(open)?;
        self.socket.set_cap_ack(true).map_err(open)?;
        self.size_buffer(REQUEST_SOCKET_BUFFER)?;
        let deadline = TimeVal::seconds(ANSWER_DEADLINE.as_secs() as i64);
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &deadline).map_err(|e| open(e.into()))?;
        Ok(self)
    }

    /// Beyond `net.core.rmem_max` where we may, as far as it goes where we may not.
    fn size_buffer(&self, bytes: usize) -> Result<(), NetlinkError> {
        if setsockopt(&self.socket, sockopt::RcvBufForce, &bytes).is_err() {
            self.socket
                .set_rx_buf_sz(i32::try_from(bytes).expect("our own constants fit"))
                .map_err(|source| NetlinkError::Open { family: self.family, source })?;
        }
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NetlinkError::Send { family: self.family, source }),
            }
        }
    }

    fn receive(&mut self) -> Result<usize, NetlinkError> {
        let family = self.family;
        loop {
            match self.socket.recv(&mut &mut self.buffer[..], libc::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => return Err(NetlinkError::Overrun { family }),
                Ok(length) => return Ok(length),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Err(NetlinkError::Overrun { family });
                }
                Err(source) => return Err(NetlinkError::Receive { family, source }),
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn refusal(header: Header, payload: &[u8]) -> Option<Refusal> {
    let code = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    let message = (header.flags & NLM_F_ACK_TLVS != 0).then(|| extended_text(header, payload)).flatten();
    Some(Refusal { errno: -code, message })
}

fn extended_text(header: Header, payload: &[u8]) -> Option<Box<str>> {
    let skip = match header.kind {
        NLMSG_DONE => 4,
        _ if header.flags & NLM_F_CAPPED != 0 => 4 + HEADER,
        _ => 4 + (u32_at(payload, 4)? as usize).next_multiple_of(4),
    };
    let text = Attrs::new(payload.get(skip..)?).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)?.1;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').into())
}

/// The messages in a received buffer; stops at the first malformed one.
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Over the bytes of one `recv`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32_at(self.0, 0)? as usize;
        let payload = self.0.get(HEADER..length)?;
        let header = Header {
            kind: u16_at(self.0, 4)?,
            flags: u16_at(self.0, 6)?,
            seq: u32_at(self.0, 8)?,
            port: u32_at(self.0, 12)?,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, payload))
    }
}

/// The attributes in a message or in a nested attribute: type without its flag bits, and value.
pub struct Attrs<'a>(&'a [u8]);

impl<'a> Attrs<'a> {
    /// Over the bytes that follow the family header.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u16_at(self.0, 0)? as usize;
        let kind = u16_at(self.0, 2)? & NLA_TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The 16-bit number in host order at `at`.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The 32-bit number in host order at `at`.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A NUL-terminated string attribute.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut batch = Batch::new();
        batch.message(24, 0, |m| {
            m.fixed(&[0; 12]);
            m.attr(1, &[10, 0, 0, 0, 7]);
            m.nest(NLA_F_NESTED | 9, |m| m.attr_str(2, "eth0"));
        });
        batch.message(25, 0, |m| m.fixed(&[0; 12]));
        batch.seal(40);
        let messages: Vec<_> = Messages::new(&batch.bytes).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!((messages[0].0.kind, messages[0].0.seq, messages[0].0.flags), (24, 40, NLM_F_REQUEST));
        assert_eq!((messages[1].0.seq, messages[1].0.flags), (41, NLM_F_REQUEST | NLM_F_ACK));
        let attrs: Vec<_> = Attrs::new(&messages[0].1[12..]).collect();
        assert_eq!(attrs[0], (1, &[10, 0, 0, 0, 7][..]));
        assert_eq!(attrs[1].0, 9);
        let inner: Vec<_> = Attrs::new(attrs[1].1).map(|(k, v)| (k, text(v))).collect();
        assert_eq!(inner, [(2, "eth0".to_owned())]);
    }

    #[test]
    fn malformed_messages_end_the_iteration() {
        assert_eq!(Messages::new(&[1, 2, 3]).count(), 0);
        assert_eq!(Messages::new(&[0; 16]).count(), 0, "a length of zero would never advance");
        assert_eq!(Attrs::new(&[3, 0, 1, 0]).count(), 0, "shorter than its own header");
        assert_eq!(Attrs::new(&[40, 0, 1, 0]).count(), 0, "longer than what is there");
    }
}
