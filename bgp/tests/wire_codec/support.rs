//! Builders of raw messages for the wire tests: bytes as another speaker might send them, right or wrong.

use manx_bgp::types::PeerType;
use manx_bgp::wire::message::{Message, Update};
use manx_bgp::wire::{DecodeContext, WireError, decode, header};

pub(crate) use crate::table::{attribute, hex, message};

/// Decodes the first message of the bytes, which must be whole.
pub(crate) fn read(bytes: &[u8], ctx: &DecodeContext) -> Result<Message, WireError> {
    let frame = header::frame(bytes, header::MAX_LEN_EXTENDED)?.expect("a whole message");
    assert_eq!(frame.body.len() + header::LEN, bytes.len(), "one message");
    decode(frame, ctx)
}

/// Decodes an UPDATE.
pub(crate) fn read_update(bytes: &[u8], ctx: &DecodeContext) -> Result<Update, WireError> {
    match read(bytes, ctx)? {
        Message::Update(update) => Ok(*update),
        other => panic!("not an UPDATE: {other:?}"),
    }
}

/// An UPDATE body from its three fields.
pub(crate) fn update(withdrawn: &[u8], attributes: &[Vec<u8>], nlri: &[u8]) -> Vec<u8> {
    let attributes = attributes.concat();
    let mut body = u16::try_from(withdrawn.len()).unwrap().to_be_bytes().to_vec();
    body.extend_from_slice(withdrawn);
    body.extend_from_slice(&u16::try_from(attributes.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&attributes);
    body.extend_from_slice(nlri);
    message(2, &body)
}

/// ORIGIN IGP, AS_PATH 65001 and NEXT_HOP 192.0.2.1: what every announcement has.
pub(crate) fn mandatory() -> Vec<Vec<u8>> {
    vec![
        attribute(0x40, 1, &[0]),
        attribute(0x40, 2, &[2, 1, 0, 0, 0xfd, 0xe9]),
        attribute(0x40, 3, &[192, 0, 2, 1]),
    ]
}

/// 10.0.0.0/8 on the wire.
pub(crate) const TEN: &[u8] = &[8, 10];

/// Sessions without options.
pub(crate) fn external() -> DecodeContext {
    DecodeContext::modern(PeerType::External)
}

/// The same within an AS.
pub(crate) fn internal() -> DecodeContext {
    DecodeContext::modern(PeerType::Internal)
}

/// Prefixes as text, in the order they have.
pub(crate) fn prefixes(nlri: &[manx_bgp::wire::message::Nlri]) -> Vec<String> {
    nlri.iter().map(|n| n.prefix.to_string()).collect()
}
