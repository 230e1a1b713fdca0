//! Checked reads of big-endian numbers: the value must have exactly the size asked for.

/// The value of an attribute that is one 4-octet number.
pub(crate) fn exactly_u32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// The value of an attribute that is a list of one or more N-octet items (RFC 7606: "a non-zero multiple of N").
pub(crate) fn items<const N: usize>(value: &[u8]) -> Option<&[[u8; N]]> {
    match value.as_chunks::<N>() {
        ([], _) => None,
        (items, []) => Some(items),
        _ => None,
    }
}
