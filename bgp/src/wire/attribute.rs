//! Path attributes as values (RFC 4271 5, 4456, 1997, 4360, 8092, 6793).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smallvec::SmallVec;

use crate::types::{Asn, RouterId};

/// ORIGIN (RFC 4271 5.1.1); lower is preferred.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// Interior to the originating AS.
    Igp = 0,
    /// Learned by EGP.
    Egp = 1,
    /// By other means.
    Incomplete = 2,
}

/// The kinds of AS_PATH segment (RFC 4271 4.3, RFC 5065).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SegmentKind {
    /// AS_SET.
    Set = 1,
    /// AS_SEQUENCE.
    Sequence = 2,
    /// AS_CONFED_SEQUENCE.
    ConfedSequence = 3,
    /// AS_CONFED_SET.
    ConfedSet = 4,
}

/// One AS_PATH segment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Segment {
    /// Set or sequence.
    pub kind: SegmentKind,
    /// Never empty, at most 255 on the wire.
    pub asns: SmallVec<[Asn; 6]>,
}

/// AS_PATH with 4-octet numbers, AS4_PATH already merged in (RFC 6793 4.2.3).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AsPath {
    /// In wire order: the neighbour's AS comes first.
    pub segments: SmallVec<[Segment; 1]>,
}

/// A next hop as received or to be sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum NextHop {
    /// NEXT_HOP, or a 4-byte MP_REACH next hop.
    V4(Ipv4Addr),
    /// An MP_REACH next hop of 16 or 32 bytes (RFC 2545; RFC 8950 for IPv4 NLRI).
    V6 {
        /// The global address; link-local itself where the speaker has no other (16 bytes of fe80::/10).
        global: Ipv6Addr,
        /// The link-local address of the 32-byte form.
        link_local: Option<Ipv6Addr>,
    },
}

impl NextHop {
    /// The address by which the next hop is known (the global one where there are two).
    pub fn addr(self) -> IpAddr {
        match self {
            NextHop::V4(a) => a.into(),
            NextHop::V6 { global, .. } => global.into(),
        }
    }
}

/// AGGREGATOR, AS4_AGGREGATOR merged in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Aggregator {
    /// The aggregating AS.
    pub asn: Asn,
    /// The aggregating speaker.
    pub id: Ipv4Addr,
}

/// A large community (RFC 8092).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LargeCommunity {
    /// The AS that gives the two others their meaning.
    pub global: u32,
    /// First operator-defined part.
    pub local1: u32,
    /// Second operator-defined part.
    pub local2: u32,
}

/// An attribute that this speaker does not know (RFC 4271 5: optional transitive ones travel on, with Partial set).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UnknownAttribute {
    /// Flag bits with the low four cleared.
    pub flags: u8,
    /// Type code.
    pub code: u8,
    /// The value as received.
    pub value: Box<[u8]>,
}

/// The attributes that paths share, whatever prefix and next hop they go with. Interned by the RIB: equal sets are one.
///
/// Communities are sorted and without duplicates. The next hop is kept beside this, since MP_REACH gives each family its own.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PathAttributes {
    /// ORIGIN.
    pub origin: Origin,
    /// AS_PATH.
    pub as_path: AsPath,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF; ignored when received from an external peer.
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE.
    pub atomic_aggregate: bool,
    /// AGGREGATOR.
    pub aggregator: Option<Aggregator>,
    /// Standard communities, AS in the high half (RFC 1997).
    pub communities: SmallVec<[u32; 2]>,
    /// Extended communities as 8-byte values (RFC 4360).
    pub extended_communities: Vec<u64>,
    /// Large communities.
    pub large_communities: Vec<LargeCommunity>,
    /// ORIGINATOR_ID (RFC 4456).
    pub originator_id: Option<RouterId>,
    /// CLUSTER_LIST (RFC 4456), nearest first.
    pub cluster_list: Vec<Ipv4Addr>,
    /// Optional transitive attributes that we do not know, by type code.
    pub unknown: Vec<UnknownAttribute>,
}
