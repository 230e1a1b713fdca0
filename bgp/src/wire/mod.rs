//! Messages as types: what RFC 4271 and its extensions put on the wire. Knows bytes, nothing of sessions or routes.

pub mod attribute;
pub mod message;
