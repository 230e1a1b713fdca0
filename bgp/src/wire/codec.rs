//! What was negotiated and changes the bytes, and the one door from a frame to a message.

use bytes::BytesMut;

use crate::types::{PeerType, PerFamily};
use crate::wire::error::WireError;
use crate::wire::header::{self, Frame, MAX_LEN, MAX_LEN_EXTENDED, MessageKind};
use crate::wire::message::{Message, Notification, Open, RouteRefresh};
use crate::wire::update;

/// How to read what a peer sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodeContext {
    /// Internal or external: RFC 7606 7.5, 7.9, 7.10 discard some attributes from external peers.
    pub peer: PeerType,
    /// Families in use; NLRI of others are skipped.
    pub families: PerFamily<bool>,
    /// Both sides have 4-octet AS numbers (RFC 6793).
    pub four_octet_as: bool,
    /// NLRI carry path identifiers in this direction (RFC 7911).
    pub add_path: PerFamily<bool>,
    /// IPv4 NLRI may have an IPv6 next hop (RFC 8950).
    pub extended_next_hop: bool,
}

impl DecodeContext {
    /// A modern session without options: both families, 4-octet AS numbers.
    pub fn modern(peer: PeerType) -> Self {
        DecodeContext {
            peer,
            families: PerFamily::both(true),
            four_octet_as: true,
            add_path: PerFamily::both(false),
            extended_next_hop: false,
        }
    }
}

/// How to write for a peer. Equal contexts give equal bytes: it can be part of an update group's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EncodeContext {
    /// External peers get no LOCAL_PREF, ORIGINATOR_ID and CLUSTER_LIST, whatever the attributes hold.
    pub peer: PeerType,
    /// Both sides have 4-octet AS numbers (RFC 6793).
    pub four_octet_as: bool,
    /// NLRI carry path identifiers in this direction (RFC 7911).
    pub add_path: PerFamily<bool>,
    /// The peer takes messages up to 65535 octets (RFC 8654).
    pub extended_message: bool,
    /// IPv4 NLRI may have an IPv6 next hop (RFC 8950).
    pub extended_next_hop: bool,
}

impl EncodeContext {
    /// A modern session without options: 4-octet AS numbers, 4096 octets.
    pub fn modern(peer: PeerType) -> Self {
        EncodeContext {
            peer,
            four_octet_as: true,
            add_path: PerFamily::both(false),
            extended_message: false,
            extended_next_hop: false,
        }
    }

    /// The longest message the peer takes, in octets.
    pub fn max_len(&self) -> usize {
        if self.extended_message { MAX_LEN_EXTENDED } else { MAX_LEN }
    }
}

/// Decodes one message.
///
/// # Errors
/// The NOTIFICATION to send before closing: RFC 4271 6.1 to 6.3 as far as RFC 7606 has left session resets, RFC 7313 5.
pub fn decode(frame: Frame<'_>, ctx: &DecodeContext) -> Result<Message, WireError> {
    Ok(match frame.kind {
        MessageKind::Open => Message::Open(Open::decode(frame.body)?),
        MessageKind::Update => Message::Update(Box::new(update::decode::decode(frame.body, ctx)?)),
        MessageKind::Notification => Message::Notification(Notification::decode(frame.body)?),
        MessageKind::Keepalive => Message::Keepalive,
        MessageKind::RouteRefresh => RouteRefresh::decode(frame.body)?,
    })
}

/// Appends a KEEPALIVE.
pub fn keepalive(out: &mut BytesMut) {
    header::put(out, MessageKind::Keepalive, 0);
}
