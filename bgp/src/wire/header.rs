//! Framing: marker, length, type (RFC 4271 4.1), and the errors of RFC 4271 6.1. Cuts a byte stream into message bodies.

use bytes::{Buf, BufMut, BytesMut};

use crate::wire::error::WireError;
use crate::wire::iana::{error::HEADER, header_error};

/// Octets of the header.
pub const LEN: usize = 19;
/// The longest message without RFC 8654.
pub const MAX_LEN: usize = 4096;
/// The longest message with RFC 8654.
pub const MAX_LEN_EXTENDED: usize = 65535;

const MARKER: [u8; 16] = [0xff; 16];

/// The type octet of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageKind {
    /// Type 1.
    Open = 1,
    /// Type 2.
    Update = 2,
    /// Type 3.
    Notification = 3,
    /// Type 4.
    Keepalive = 4,
    /// Type 5 (RFC 2918).
    RouteRefresh = 5,
}

impl MessageKind {
    fn from_wire(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => MessageKind::Open,
            2 => MessageKind::Update,
            3 => MessageKind::Notification,
            4 => MessageKind::Keepalive,
            5 => MessageKind::RouteRefresh,
            _ => return None,
        })
    }

    /// The whole lengths that RFC 4271 4.2 to 4.5 (RFC 2918 3) allow, `max` being what was negotiated; RFC 8654 4 exempts OPEN and KEEPALIVE.
    fn lengths(self, max: usize) -> std::ops::RangeInclusive<usize> {
        match self {
            MessageKind::Open => 29..=MAX_LEN,
            MessageKind::Update => 23..=max,
            MessageKind::Notification => 21..=max,
            MessageKind::Keepalive => LEN..=LEN,
            MessageKind::RouteRefresh => 23..=max,
        }
    }
}

/// One message, still as bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// Which message it is.
    pub kind: MessageKind,
    /// What follows the header.
    pub body: &'a [u8],
}

/// Looks at the start of a stream: `Ok(None)` means that more bytes are needed. `max` is 4096 or 65535.
///
/// # Errors
/// 1/1 for a bad marker, 1/2 with the Length field for a length that the type does not allow, 1/3 with the type octet.
/// They are found as soon as the header is there, whatever the announced length.
pub fn frame(buf: &[u8], max: usize) -> Result<Option<Frame<'_>>, WireError> {
    let have = buf.len().min(MARKER.len());
    if buf[..have] != MARKER[..have] {
        return Err(WireError::new(HEADER, header_error::NOT_SYNCHRONIZED, [], "marker is not all ones"));
    }
    let Some(&[high, low, kind]) = buf.get(16..LEN) else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([high, low]));
    if !(LEN..=max).contains(&len) {
        return Err(bad_length(len));
    }
    let kind = MessageKind::from_wire(kind)
        .ok_or_else(|| WireError::new(HEADER, header_error::BAD_TYPE, [kind], "unknown message type"))?;
    if !kind.lengths(max).contains(&len) {
        return Err(bad_length(len));
    }
    Ok(buf.get(LEN..len).map(|body| Frame { kind, body }))
}

/// Bad Message Length with the offending Length field as data.
pub(crate) fn bad_length(len: usize) -> WireError {
    let field = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    WireError::new(HEADER, header_error::BAD_LENGTH, field, "message length not allowed for its type")
}

/// Appends a header for a body of `body_len` octets.
pub(crate) fn put(out: &mut BytesMut, kind: MessageKind, body_len: usize) {
    let len = u16::try_from(LEN + body_len).expect("encoders stay within 65535");
    out.reserve(usize::from(len));
    out.put_slice(&MARKER);
    out.put_u16(len);
    out.put_u8(kind as u8);
}

/// Appends a header whose length is not known yet; `finish` sets it.
pub(crate) fn begin(out: &mut BytesMut, kind: MessageKind) -> usize {
    let start = out.len();
    put(out, kind, 0);
    start
}

/// Sets the length of the message that began at `start`.
pub(crate) fn finish(out: &mut BytesMut, start: usize) {
    let len = u16::try_from(out.len() - start).expect("encoders stay within 65535");
    out[start + 16..start + 18].copy_from_slice(&len.to_be_bytes());
}

/// Collects received bytes and gives whole messages. Holds less than one message plus what was pushed last.
#[derive(Debug)]
pub struct Framer {
    buffer: BytesMut,
    /// Bytes of the message given out last, dropped when the next one is asked for.
    taken: usize,
    max: usize,
}

impl Default for Framer {
    fn default() -> Self {
        Framer { buffer: BytesMut::new(), taken: 0, max: MAX_LEN }
    }
}

impl Framer {
    /// A framer for a fresh connection: 4096 octets a message.
    pub fn new() -> Self {
        Framer::default()
    }

    /// Accepts messages up to 65535 octets from now on: we offered RFC 8654 and so did the peer.
    pub fn allow_extended_messages(&mut self) {
        self.max = MAX_LEN_EXTENDED;
    }

    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.drop_taken();
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that wait for the rest of their message, or to be asked for.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.taken
    }

    /// The next whole message. After an error the stream is lost: close the connection.
    ///
    /// # Errors
    /// As `frame`.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, WireError> {
        self.drop_taken();
        if self.buffer.is_empty() {
            // What a burst has needed is given back: there may be thousands of sessions, most of them silent.
            self.buffer = BytesMut::new();
            return Ok(None);
        }
        let frame = frame(&self.buffer, self.max)?;
        self.taken = frame.map_or(0, |f| LEN + f.body.len());
        Ok(frame)
    }

    fn drop_taken(&mut self) {
        self.buffer.advance(std::mem::take(&mut self.taken));
    }
}
