//! What is wrong with a message, and what the RFCs want done about it.
//!
//! RFC 7606 knows four outcomes. Session reset is `Err(WireError)` and carries the NOTIFICATION that the peer deserves;
//! treat-as-withdraw and attribute discard do not end the decoding and are reported in `Update::faults`;
//! "AFI/SAFI disable" is not used (RFC 7606 2 leaves the choice, and a reset tells the peer's operator).

use crate::wire::message::Notification;

/// The message cannot be used and the session must end with this NOTIFICATION.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason} ({notification})")]
pub struct WireError {
    /// What to send before closing.
    pub notification: Notification,
    /// What was wrong, in words.
    pub reason: &'static str,
}

impl WireError {
    /// An error whose NOTIFICATION has this code, subcode and data.
    pub fn new(code: u8, subcode: u8, data: impl Into<Vec<u8>>, reason: &'static str) -> Self {
        WireError { notification: Notification::new(code, subcode, data), reason }
    }
}
