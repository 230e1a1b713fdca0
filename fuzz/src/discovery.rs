//! Router solicitations and advertisements as anybody on the link can send them.
use std::net::Ipv6Addr;

use manx_bgp::discovery::{HOP_LIMIT, Heard};

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((from, octets)) = data.split_first_chunk::<16>() else { return };
    let from = Ipv6Addr::from(*from);
    assert_eq!(Heard::read(from, HOP_LIMIT - 1, octets), None, "a router has touched it");
    match Heard::read(from, HOP_LIMIT, octets) {
        Some(Heard::Advertisement) => assert!(from.is_unicast_link_local() && octets.len() >= 16),
        Some(Heard::Solicitation) => assert!(octets.len() >= 8),
        None => {}
    }
}
