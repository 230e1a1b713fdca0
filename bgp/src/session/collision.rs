//! Connection collision (RFC 4271 6.8, RFC 6286 2.3): which of two connections to the same peer stays.

use crate::types::{Asn, RouterId};

/// One of two connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Contender {
    /// We dialled it.
    pub(super) outbound: bool,
}

/// Which connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Loser {
    /// The one that was there first.
    Old,
    /// The one whose OPEN has just come.
    New,
}

/// Both sides come to the same answer: the connection dialled by the speaker with the higher identifier stays, and with
/// equal identifiers the one dialled from the higher AS (RFC 6286 2.3).
///
/// Two connections in the same direction are no collision in the RFC's sense: their dialler has given up the older one.
pub(super) fn loser(old: Contender, new: Contender, ours: (RouterId, Asn), theirs: (RouterId, Asn)) -> Loser {
    if old.outbound == new.outbound {
        return Loser::Old;
    }
    let ours_stays = ours > theirs;
    if new.outbound == ours_stays { Loser::Old } else { Loser::New }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn side(id: u8, asn: u32) -> (RouterId, Asn) {
        (RouterId::new(Ipv4Addr::new(10, 0, 0, id)).unwrap(), Asn(asn))
    }

    const OUT: Contender = Contender { outbound: true };
    const IN: Contender = Contender { outbound: false };

    #[test]
    fn the_connection_dialled_by_the_higher_identifier_stays() {
        assert_eq!(loser(OUT, IN, side(1, 1), side(2, 1)), Loser::Old);
        assert_eq!(loser(IN, OUT, side(1, 1), side(2, 1)), Loser::New);
        assert_eq!(loser(OUT, IN, side(2, 1), side(1, 1)), Loser::New);
        assert_eq!(loser(IN, OUT, side(2, 1), side(1, 1)), Loser::Old);
    }

    #[test]
    fn rfc6286_equal_identifiers_are_decided_by_the_as() {
        assert_eq!(loser(OUT, IN, side(1, 65001), side(1, 65002)), Loser::Old);
        assert_eq!(loser(OUT, IN, side(1, 65002), side(1, 65001)), Loser::New);
    }

    #[test]
    fn both_sides_keep_the_same_connection() {
        for (a, b) in [(side(1, 1), side(2, 2)), (side(9, 1), side(2, 2)), (side(3, 1), side(3, 2))] {
            // X is dialled by A, Y by B; each side sees them in its own order.
            let a_keeps_x = loser(OUT, IN, a, b) == Loser::New;
            let b_keeps_x = loser(IN, OUT, b, a) == Loser::New;
            let b_keeps_x_other_order = loser(OUT, IN, b, a) == Loser::Old;
            assert_eq!((a_keeps_x, a_keeps_x), (b_keeps_x, b_keeps_x_other_order));
        }
    }

    #[test]
    fn of_two_connections_from_the_same_side_the_newer_stays() {
        assert_eq!(loser(IN, IN, side(1, 1), side(2, 2)), Loser::Old);
    }
}
