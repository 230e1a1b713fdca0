//! NOTIFICATION (RFC 4271 4.5): codec, names for people, shutdown texts (RFC 9003), Hard Reset (RFC 8538).

use std::fmt;

use bytes::{BufMut, BytesMut};

use crate::wire::error::WireError;
use crate::wire::header::{self, MAX_LEN, MessageKind};
use crate::wire::iana;
use crate::wire::message::Notification;

/// The longest shutdown text in octets (RFC 9003 2).
const MAX_TEXT: usize = 255;
/// Data that still fits a NOTIFICATION without extended messages.
const MAX_DATA: usize = MAX_LEN - header::LEN - 2;

impl Notification {
    /// A NOTIFICATION with code, subcode and data (see `iana` for the names).
    pub fn new(code: u8, subcode: u8, data: impl Into<Vec<u8>>) -> Self {
        Notification { code, subcode, data: data.into() }
    }

    /// A Cease without data.
    pub fn cease(subcode: u8) -> Self {
        Notification::new(iana::error::CEASE, subcode, [])
    }

    /// A Cease with a text for the peer's operator (RFC 9003): Administrative Shutdown or Administrative Reset.
    /// A text over 255 octets is cut at a character boundary; an empty one is left out.
    pub fn cease_with_text(subcode: u8, text: &str) -> Self {
        let text = cut(text, MAX_TEXT);
        let mut data = Vec::with_capacity(1 + text.len());
        if !text.is_empty() {
            data.push(u8::try_from(text.len()).expect("cut to 255"));
            data.extend_from_slice(text.as_bytes());
        }
        Notification::new(iana::error::CEASE, subcode, data)
    }

    /// Wraps a NOTIFICATION into Cease/Hard Reset, which ends graceful restart where the N bit was negotiated (RFC 8538 3).
    pub fn hard_reset(inner: &Notification) -> Self {
        let mut data = Vec::with_capacity(2 + inner.data.len());
        data.extend_from_slice(&[inner.code, inner.subcode]);
        data.extend_from_slice(&inner.data);
        Notification::new(iana::error::CEASE, iana::cease::HARD_RESET, data)
    }

    /// Whether this is Cease/Hard Reset.
    pub fn is_hard_reset(&self) -> bool {
        (self.code, self.subcode) == (iana::error::CEASE, iana::cease::HARD_RESET)
    }

    /// What a Hard Reset carries, if it carries anything.
    pub fn inner(&self) -> Option<Notification> {
        match self.data.as_slice() {
            [code, subcode, data @ ..] if self.is_hard_reset() => {
                Some(Notification::new(*code, *subcode, data))
            }
            _ => None,
        }
    }

    /// The shutdown text (RFC 9003), made fit to print: malformed UTF-8 and control characters are replaced, so that a peer
    /// cannot write into our logs. A length octet that lies is cut to what is there.
    pub fn text(&self) -> Option<String> {
        let carries_text = self.code == iana::error::CEASE
            && matches!(
                self.subcode,
                iana::cease::ADMINISTRATIVE_SHUTDOWN | iana::cease::ADMINISTRATIVE_RESET
            );
        let (len, rest) = self.data.split_first().filter(|_| carries_text)?;
        let text = String::from_utf8_lossy(&rest[..rest.len().min(usize::from(*len))]);
        let text: String =
            text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
        (!text.is_empty()).then_some(text)
    }

    /// Appends the whole message. Data that would not fit 4096 octets is cut.
    pub fn encode(&self, out: &mut BytesMut) {
        let data = &self.data[..self.data.len().min(MAX_DATA)];
        header::put(out, MessageKind::Notification, 2 + data.len());
        out.put_u8(self.code);
        out.put_u8(self.subcode);
        out.put_slice(data);
    }

    /// Decodes the body of a NOTIFICATION. Unknown codes are kept: they are for people to read.
    pub(crate) fn decode(body: &[u8]) -> Result<Self, WireError> {
        match body {
            [code, subcode, data @ ..] => Ok(Notification::new(*code, *subcode, data)),
            _ => Err(header::bad_length(header::LEN + body.len())),
        }
    }
}

/// As much of the text as fits `max` octets, whole characters only.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    let end = (0..=text.len().min(max)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.expect("0 is a boundary")]
}

impl fmt::Display for Notification {
    /// `Cease/Administrative Shutdown: text`, or numbers where there is no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match iana::error_name(self.code) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "error {}", self.code)?,
        }
        match iana::subcode_name(self.code, self.subcode) {
            Some(name) => write!(f, "/{name}")?,
            None if self.subcode != 0 => write!(f, "/{}", self.subcode)?,
            None => {}
        }
        if let Some(inner) = self.inner() {
            // One level only: a Hard Reset within a Hard Reset is nonsense, and nesting must not recurse.
            let plain = Notification::new(inner.code, inner.subcode, []);
            write!(f, " ({plain})")?;
            return inner.text().map_or(Ok(()), |text| write!(f, ": {text}"));
        }
        self.text().map_or(Ok(()), |text| write!(f, ": {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iana::cease::{ADMINISTRATIVE_RESET, ADMINISTRATIVE_SHUTDOWN};

    #[test]
    fn a_shutdown_text_is_shown_after_the_names() {
        let n = Notification::cease_with_text(ADMINISTRATIVE_SHUTDOWN, "rack B goes down at 10:00");
        assert_eq!(n.to_string(), "Cease/Administrative Shutdown: rack B goes down at 10:00");
        assert_eq!(Notification::new(3, 1, []).to_string(), "UPDATE Message Error/Malformed Attribute List");
        assert_eq!(Notification::new(4, 0, []).to_string(), "Hold Timer Expired");
        assert_eq!(Notification::new(99, 7, [1]).to_string(), "error 99/7");
    }

    #[test]
    fn rfc9003_2_a_text_is_at_most_255_octets_and_cut_between_characters() {
        let long = "ä".repeat(200);
        let n = Notification::cease_with_text(ADMINISTRATIVE_RESET, &long);
        assert_eq!(n.data[0], 254);
        assert_eq!(n.text().unwrap(), "ä".repeat(127));
        assert!(Notification::cease_with_text(ADMINISTRATIVE_RESET, "").data.is_empty());
    }

    #[test]
    fn a_text_that_lies_about_its_length_or_hides_control_characters_is_made_harmless() {
        let n = Notification::new(6, 2, [200, b'h', b'i', b'\n', 0x1b, 0xff]);
        assert_eq!(n.text().unwrap(), "hi\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(Notification::new(6, 2, [0]).text(), None);
        assert_eq!(
            Notification::new(6, 7, [2, b'h', b'i']).text(),
            None,
            "only shutdown and reset carry a text"
        );
    }

    #[test]
    fn rfc8538_3_a_hard_reset_carries_the_reason_inside() {
        let inner = Notification::cease_with_text(ADMINISTRATIVE_SHUTDOWN, "bye");
        let hard = Notification::hard_reset(&inner);
        assert_eq!(hard.inner(), Some(inner));
        assert_eq!(hard.to_string(), "Cease/Hard Reset (Cease/Administrative Shutdown): bye");
        let deep = Notification::hard_reset(&hard);
        assert_eq!(deep.to_string(), "Cease/Hard Reset (Cease/Hard Reset)");
    }
}
