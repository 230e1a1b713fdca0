//! Messages as types: what RFC 4271 and its extensions put on the wire. Knows bytes, nothing of sessions or routes.
//!
//! ```text
//! received bytes -> Framer -> Frame -> decode(ctx) -> Message | WireError { notification }
//! Open, Notification, RouteRefresh::encode, keepalive, EncodedAttributes + reach / withdraw / end_of_rib -> bytes
//! ```
//!
//! Decoding never panics and holds no more memory than a small multiple of the message, which framing bounds.

pub mod as_path;
pub mod attribute;
pub mod capability;
pub mod codec;
pub mod community;
pub mod error;
pub mod header;
pub mod iana;
pub mod message;
pub mod nlri;
pub mod notification;
pub mod open;
mod read;
pub mod route_refresh;
pub mod update;

pub use codec::{DecodeContext, EncodeContext, decode, keepalive};
pub use error::WireError;
pub use header::{Frame, Framer, MessageKind};
pub use update::encode::{EncodeError, EncodedAttributes, end_of_rib, reach, withdraw};
