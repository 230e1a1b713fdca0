//! UPDATE (RFC 4271 4.3, RFC 4760): decoding with the error handling of RFC 7606, encoding with packing.

pub(crate) mod attributes;
pub(crate) mod decode;
pub mod encode;
