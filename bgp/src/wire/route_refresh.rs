//! ROUTE-REFRESH (RFC 2918) with the subtypes of RFC 7313.

use bytes::{BufMut, BytesMut};

use crate::types::Family;
use crate::wire::error::WireError;
use crate::wire::header::{self, MessageKind};
use crate::wire::iana;
use crate::wire::message::{Message, RefreshKind, RouteRefresh};

impl RouteRefresh {
    /// Decodes the body; other families and unknown subtypes are to be ignored (RFC 2918 4, RFC 7313 5).
    ///
    /// # Errors
    /// 7/1 with the whole message for a marker of the wrong length (RFC 7313 5). A longer plain request carries ORF entries
    /// (RFC 5291), which are never negotiated here: the request itself counts.
    pub fn decode(body: &[u8]) -> Result<Message, WireError> {
        let &[afi_high, afi_low, subtype, safi, ref more @ ..] = body else {
            return Err(header::bad_length(header::LEN + body.len()));
        };
        let kind = match subtype {
            0 => RefreshKind::Request,
            1 => RefreshKind::Begin,
            2 => RefreshKind::End,
            _ => return Ok(Message::Ignored("ROUTE-REFRESH of unknown subtype")),
        };
        if kind != RefreshKind::Request && !more.is_empty() {
            let mut whole = BytesMut::new();
            header::put(&mut whole, MessageKind::RouteRefresh, body.len());
            whole.put_slice(body);
            return Err(WireError::new(
                iana::error::ROUTE_REFRESH,
                iana::ROUTE_REFRESH_BAD_LENGTH,
                whole,
                "ROUTE-REFRESH marker of the wrong length",
            ));
        }
        Ok(match Family::from_afi_safi(u16::from_be_bytes([afi_high, afi_low]), safi) {
            Some(family) => Message::RouteRefresh(RouteRefresh { family, kind }),
            None => Message::Ignored("ROUTE-REFRESH for a family that is not carried"),
        })
    }

    /// Appends the whole message.
    pub fn encode(&self, out: &mut BytesMut) {
        let (afi, safi) = self.family.afi_safi();
        header::put(out, MessageKind::RouteRefresh, 4);
        out.put_u16(afi);
        out.put_u8(match self.kind {
            RefreshKind::Request => 0,
            RefreshKind::Begin => 1,
            RefreshKind::End => 2,
        });
        out.put_u8(safi);
    }
}
