//! rtnetlink by hand: messages in one growing buffer, a batch per send, replies as slices.
//!
//! A pod's wiring is twenty messages in three system calls. The netlink crates bring an allocation per attribute and an
//! async runtime, which cost more than the kernel's own work. Knows the framing and no meaning.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

/// struct nlmsghdr
const HEADER: usize = 16;

/// Flag of attributes that hold attributes.
const NESTED: u16 = 1 << 15;

/// Requests, one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Where each message begins.
    starts: Vec<usize>,
}

impl Batch {
    /// Begins a request; the one before is complete with this. `header` is the family's, e.g. struct ifinfomsg.
    pub(crate) fn message(&mut self, kind: u16, flags: i32, header: &[u8]) -> &mut Self {
        self.starts.push(self.bytes.len());
        let sequence = u32::try_from(self.starts.len()).expect("a batch is some dozen messages");
        let flags = u16::try_from(libc::NLM_F_REQUEST | flags).expect("netlink flags have 16 bits");
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        self.close()
    }

    /// An attribute of the last request.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).expect("attributes are short");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.close()
    }

    /// A name with the NUL that the kernel wants.
    pub(crate) fn name(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// An attribute of attributes; `header` goes before them (VETH_INFO_PEER holds a struct ifinfomsg).
    pub(crate) fn nested(&mut self, kind: u16, header: &[u8], content: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        self.bytes.extend_from_slice(header);
        content(self);
        let length = u16::try_from(self.bytes.len() - start).expect("attributes are short");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.close()
    }

    /// How many requests there are.
    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Aligns, and writes the length of the last message.
    fn close(&mut self) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let start = *self.starts.last().expect("attributes belong to a message");
        let length = u32::try_from(self.bytes.len() - start).expect("messages are short");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

/// A reply: its type and what follows the header.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// nlmsg_type
    pub(crate) kind: u16,
    /// The family's header and the attributes.
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// The attributes behind a header of `header` bytes.
    pub(crate) fn attributes(&self, header: usize) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = self.body.get(header.next_multiple_of(4)..).unwrap_or_default();
        std::iter::from_fn(move || {
            let (length, kind) = (u16_at(rest, 0)?, u16_at(rest, 2)?);
            let value = rest.get(4..usize::from(length))?;
            rest = rest.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
            Some((kind & !(NESTED | 1 << 14), value))
        })
    }

    /// An attribute's value.
    pub(crate) fn attribute(&self, header: usize, kind: u16) -> Option<&[u8]> {
        self.attributes(header).find(|(k, _)| *k == kind).map(|(_, value)| value)
    }
}

/// A request that the kernel refused: which of the batch, from 0, and why.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) index: usize,
    pub(crate) error: io::Error,
}

/// What a batch brought.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// In the order of the requests.
    pub(crate) replies: Vec<Reply>,
    /// In the order of the requests.
    pub(crate) refusals: Vec<Refusal>,
}

/// A socket of the namespace that the thread was in when it was made; it stays there.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket that also hears what happens to `groups` (a mask).
    pub(crate) fn open(groups: u32) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // A dump fills 32 kB at most when the reader offers as much, netlink(7).
        Ok(Self { fd, buffer: vec![0; 32 * 1024] })
    }

    /// Sends a batch and waits until each request is answered.
    ///
    /// Requests have to ask for an acknowledgement or be dumps. Every request is tried, also after one failed.
    ///
    /// # Errors
    /// The socket's; what the kernel refuses is in the answer.
    pub(crate) fn send(&mut self, batch: &Batch) -> io::Result<Answer> {
        let mut answer = Answer::default();
        if batch.len() == 0 {
            return Ok(answer);
        }
        send(self.fd.as_raw_fd(), &batch.bytes, MsgFlags::empty())?;
        let mut open = batch.len();
        while open > 0 {
            for (sequence, reply) in messages(self.receive(MsgFlags::empty())?) {
                // The end of a dump carries its error, if any.
                if !matches!(i32::from(reply.kind), libc::NLMSG_ERROR | libc::NLMSG_DONE) {
                    answer.replies.push(reply);
                    continue;
                }
                open -= 1;
                let error = i32_at(&reply.body, 0).unwrap_or(0);
                if error < 0 {
                    let index = usize::try_from(sequence).unwrap_or(1).saturating_sub(1);
                    answer.refusals.push(Refusal { index, error: io::Error::from_raw_os_error(-error) });
                }
            }
        }
        Ok(answer)
    }

    /// Sends a batch of which nothing may be refused.
    ///
    /// # Errors
    /// The socket's, or the first refusal.
    pub(crate) fn request(&mut self, batch: &Batch) -> io::Result<Vec<Reply>> {
        let answer = self.send(batch)?;
        match answer.refusals.into_iter().next() {
            Some(refusal) => Err(refusal.error),
            None => Ok(answer.replies),
        }
    }

    /// Waits for news of the groups, at most `milliseconds`. Empty: none came; news that were lost count as none.
    pub(crate) fn news(&mut self, milliseconds: u16) -> io::Result<Vec<Reply>> {
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.fd), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(milliseconds)) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        match self.receive(MsgFlags::MSG_DONTWAIT) {
            Ok(bytes) => Ok(messages(bytes).map(|(_, reply)| reply).collect()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    fn receive(&mut self, flags: MsgFlags) -> io::Result<&[u8]> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, flags) {
                Ok(n) => return Ok(&self.buffer[..n]),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The messages of one datagram, with their sequence numbers.
fn messages(bytes: &[u8]) -> impl Iterator<Item = (u32, Reply)> + '_ {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let kind = u16_at(rest, 4)?;
        let sequence = u32_at(rest, 8)?;
        let body = rest.get(HEADER..length)?.to_vec();
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((sequence, Reply { kind, body }))
    })
}

/// A number in the kernel's structures; `None` behind the end.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A number in the kernel's structures; `None` behind the end.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A number in the kernel's structures; `None` behind the end.
pub(crate) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(u32::cast_signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_cover_nested_attributes_and_are_aligned() {
        let mut batch = Batch::default();
        batch.message(16, 0, &[0; 16]).name(3, "ab").nested(18, &[], |b| {
            b.name(1, "veth");
        });
        batch.message(17, 0, &[1; 4]);
        // 16 + 16, 4 + "ab\0" + 1, 4 + (4 + "veth\0" + 3)
        assert_eq!(u32_at(&batch.bytes, 0), Some(32 + 8 + 16));
        assert_eq!(u32_at(&batch.bytes, 56), Some(20));
        assert_eq!(batch.bytes.len(), 76);
        assert_eq!(u16_at(&batch.bytes, 40), Some(16));
        assert_eq!(u16_at(&batch.bytes, 42), Some(18 | NESTED));
    }

    #[test]
    fn replies_are_cut_by_their_lengths_and_garbage_ends_them() {
        let mut batch = Batch::default();
        batch.message(16, 0, &[0; 16]).name(3, "eth0").attribute(4, &7_u32.to_ne_bytes());
        batch.message(20, 0, &[9; 8]);
        let replies: Vec<_> = messages(&batch.bytes).collect();
        assert_eq!(replies.iter().map(|(s, r)| (*s, r.kind)).collect::<Vec<_>>(), [(1, 16), (2, 20)]);
        assert_eq!(replies[0].1.attribute(16, 3), Some(&b"eth0\0"[..]));
        assert_eq!(replies[0].1.attribute(16, 4).and_then(|v| u32_at(v, 0)), Some(7));
        assert_eq!(replies[0].1.attribute(16, 5), None);
        for cut in 0..batch.bytes.len() {
            // No slice panics, whatever is missing.
            messages(&batch.bytes[..cut]).for_each(|(_, r)| assert!(r.attributes(16).count() <= 2));
        }
    }

    #[test]
    fn a_zero_length_attribute_ends_the_walk() {
        let reply = Reply { kind: 16, body: vec![0; 32] };
        assert_eq!(reply.attributes(16).count(), 0);
    }
}
