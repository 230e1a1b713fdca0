//! The vocabulary that every room of the crate shares: AS numbers, identifiers, families, prefixes, next hops.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::time::Duration;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

/// A 4-octet Autonomous System number (RFC 6793).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Asn(pub u32);

impl Asn {
    /// AS_TRANS (RFC 6793): stands for a 4-octet AS number in a 2-octet field.
    pub const TRANS: Asn = Asn(23456);

    /// The 2-octet form: the number itself if it fits, else AS_TRANS.
    pub fn to_two_octets(self) -> u16 {
        u16::try_from(self.0).unwrap_or(Asn::TRANS.0 as u16)
    }

    /// Reserved for private use (RFC 6996 5).
    pub fn is_private(self) -> bool {
        matches!(self.0, 64_512..=65_534 | 4_200_000_000..=4_294_967_294)
    }
}

impl fmt::Display for Asn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Asn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AS{}", self.0)
    }
}

/// A BGP identifier: a non-zero 4-octet number, written like an IPv4 address (RFC 6286).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId(std::num::NonZeroU32);

impl RouterId {
    /// `None` for 0.0.0.0, which RFC 6286 forbids.
    pub fn new(id: Ipv4Addr) -> Option<Self> {
        std::num::NonZeroU32::new(id.to_bits()).map(RouterId)
    }

    /// The identifier in dotted form.
    pub fn addr(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.0.get())
    }
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr().fmt(f)
    }
}

impl fmt::Debug for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr().fmt(f)
    }
}

/// The address families that Manx carries (AFI/SAFI pairs of RFC 4760).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Family {
    /// AFI 1, SAFI 1.
    #[serde(rename = "ipv4")]
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    #[serde(rename = "ipv6")]
    Ipv6Unicast,
}

impl Family {
    /// Both families, in wire order.
    pub const ALL: [Family; 2] = [Family::Ipv4Unicast, Family::Ipv6Unicast];

    /// The (AFI, SAFI) pair.
    pub fn afi_safi(self) -> (u16, u8) {
        match self {
            Family::Ipv4Unicast => (1, 1),
            Family::Ipv6Unicast => (2, 1),
        }
    }

    /// The family of an (AFI, SAFI) pair, if Manx carries it.
    pub fn from_afi_safi(afi: u16, safi: u8) -> Option<Self> {
        match (afi, safi) {
            (1, 1) => Some(Family::Ipv4Unicast),
            (2, 1) => Some(Family::Ipv6Unicast),
            _ => None,
        }
    }

    /// The longest prefix length of the family, in bits.
    pub fn max_len(self) -> u8 {
        match self {
            Family::Ipv4Unicast => 32,
            Family::Ipv6Unicast => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4Unicast => "ipv4",
            Family::Ipv6Unicast => "ipv6",
        })
    }
}

/// One value for each family, indexed by it: `map[family]`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PerFamily<T> {
    /// The IPv4 unicast value.
    pub ipv4: T,
    /// The IPv6 unicast value.
    pub ipv6: T,
}

impl<T> PerFamily<T> {
    /// Fills both families from a function.
    pub fn from_fn(mut f: impl FnMut(Family) -> T) -> Self {
        PerFamily { ipv4: f(Family::Ipv4Unicast), ipv6: f(Family::Ipv6Unicast) }
    }
}

impl<T: Clone> PerFamily<T> {
    /// The same value for both families.
    pub fn both(value: T) -> Self {
        PerFamily { ipv4: value.clone(), ipv6: value }
    }
}

impl<T> std::ops::Index<Family> for PerFamily<T> {
    type Output = T;

    fn index(&self, family: Family) -> &T {
        match family {
            Family::Ipv4Unicast => &self.ipv4,
            Family::Ipv6Unicast => &self.ipv6,
        }
    }
}

impl<T> std::ops::IndexMut<Family> for PerFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::Ipv4Unicast => &mut self.ipv4,
            Family::Ipv6Unicast => &mut self.ipv6,
        }
    }
}

/// A hold time as negotiated: seconds, at least 3 (RFC 4271 4.2). "No hold timer" is `None` around it, never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HoldTime(NonZeroU16);

impl HoldTime {
    /// `Ok(None)` for 0 (timers off), `Err` for 1 and 2, which RFC 4271 forbids.
    pub fn from_wire(seconds: u16) -> Result<Option<Self>, UnacceptableHoldTime> {
        match NonZeroU16::new(seconds) {
            None => Ok(None),
            Some(s) if s.get() >= 3 => Ok(Some(HoldTime(s))),
            Some(_) => Err(UnacceptableHoldTime(seconds)),
        }
    }

    /// Seconds, 3 to 65535.
    pub fn seconds(self) -> u16 {
        self.0.get()
    }

    /// As a duration.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.get().into())
    }
}

/// A hold time of 1 or 2 seconds (RFC 4271 6.2: Unacceptable Hold Time).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("hold time {0} s is not acceptable: 0 (off) or at least 3")]
pub struct UnacceptableHoldTime(pub u16);

/// How a peer relates to us.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PeerType {
    /// Another AS.
    External,
    /// Our own AS.
    Internal,
}

/// An IPv4 or IPv6 prefix without host bits: the RIB's key and the NLRI's content.
///
/// Ordered by family, address, then length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// An IPv4 prefix.
    V4(Ipv4Prefix),
    /// An IPv6 prefix.
    V6(Ipv6Prefix),
}

/// Eight bytes: address bits and a length of 0 to 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4Prefix {
    bits: u32,
    len: u8,
}

/// An IPv6 address as two words (alignment 8, not 16) and a length of 0 to 128.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv6Prefix {
    high: u64,
    low: u64,
    len: u8,
}

impl Ipv4Prefix {
    /// Clears host bits; `None` if `len` is over 32.
    pub fn new(addr: Ipv4Addr, len: u8) -> Option<Self> {
        Self::from_bits(addr.to_bits(), len)
    }

    /// As `new`, from the address as a number.
    #[inline]
    pub fn from_bits(bits: u32, len: u8) -> Option<Self> {
        if len > 32 {
            return None;
        }
        let mask = (u64::from(u32::MAX) << (32 - len)) as u32;
        Some(Ipv4Prefix { bits: bits & mask, len })
    }

    /// The network address.
    pub fn addr(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.bits)
    }

    /// The length in bits, 0 to 32.
    #[expect(clippy::len_without_is_empty, reason = "a prefix length, not a count")]
    pub fn len(self) -> u8 {
        self.len
    }
}

impl Ipv6Prefix {
    /// Clears host bits; `None` if `len` is over 128.
    pub fn new(addr: Ipv6Addr, len: u8) -> Option<Self> {
        Self::from_bits(addr.to_bits(), len)
    }

    /// As `new`, from the address as a number.
    #[inline]
    pub fn from_bits(bits: u128, len: u8) -> Option<Self> {
        let mask = match len {
            0 => 0,
            1..=128 => u128::MAX << (128 - len),
            _ => return None,
        };
        let bits = bits & mask;
        Some(Ipv6Prefix { high: (bits >> 64) as u64, low: bits as u64, len })
    }

    /// The network address.
    pub fn addr(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(u128::from(self.high) << 64 | u128::from(self.low))
    }

    /// The length in bits, 0 to 128.
    #[expect(clippy::len_without_is_empty, reason = "a prefix length, not a count")]
    pub fn len(self) -> u8 {
        self.len
    }
}

impl Prefix {
    /// Clears host bits; `None` if `len` is too long for the family.
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        match addr {
            IpAddr::V4(a) => Ipv4Prefix::new(a, len).map(Prefix::V4),
            IpAddr::V6(a) => Ipv6Prefix::new(a, len).map(Prefix::V6),
        }
    }

    /// The network address.
    pub fn addr(self) -> IpAddr {
        match self {
            Prefix::V4(p) => p.addr().into(),
            Prefix::V6(p) => p.addr().into(),
        }
    }

    /// The length in bits.
    #[expect(clippy::len_without_is_empty, reason = "a prefix length, not a count")]
    pub fn len(self) -> u8 {
        match self {
            Prefix::V4(p) => p.len,
            Prefix::V6(p) => p.len,
        }
    }

    /// The family it belongs to.
    pub fn family(self) -> Family {
        match self {
            Prefix::V4(_) => Family::Ipv4Unicast,
            Prefix::V6(_) => Family::Ipv6Unicast,
        }
    }

    /// Whether `other` is this prefix or lies within it.
    pub fn contains(self, other: Prefix) -> bool {
        self.family() == other.family()
            && self.len() <= other.len()
            && Prefix::new(other.addr(), self.len()) == Some(self)
    }

    /// Whether the address lies within.
    pub fn contains_addr(self, addr: IpAddr) -> bool {
        Prefix::new(addr, if addr.is_ipv4() { 32 } else { 128 }).is_some_and(|host| self.contains(host))
    }
}

impl From<IpNetwork> for Prefix {
    /// Clears host bits.
    fn from(net: IpNetwork) -> Self {
        Prefix::new(net.ip(), net.prefix()).expect("IpNetwork bounds its prefix length")
    }
}

impl From<Prefix> for IpNetwork {
    fn from(p: Prefix) -> Self {
        match p {
            Prefix::V4(p) => IpNetwork::V4(Ipv4Network::new(p.addr(), p.len).expect("length is at most 32")),
            Prefix::V6(p) => IpNetwork::V6(Ipv6Network::new(p.addr(), p.len).expect("length is at most 128")),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.len())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Prefix {
    type Err = ipnetwork::IpNetworkError;

    /// Reads `ADDRESS/LENGTH` or a bare address; host bits are cleared.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse::<IpNetwork>().map(Prefix::from)
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_cleared_before_a_prefix_becomes_a_key() {
        assert_eq!("10.0.0.5/24".parse::<Prefix>().unwrap().to_string(), "10.0.0.0/24");
        assert_eq!("fd00::5/64".parse::<Prefix>().unwrap().to_string(), "fd00::/64");
        assert_eq!(Prefix::new("1.2.3.4".parse().unwrap(), 33), None);
        assert_eq!("0.0.0.0/0".parse::<Prefix>().unwrap().len(), 0);
    }

    #[test]
    fn containment_respects_family_and_length() {
        let p = |s: &str| s.parse::<Prefix>().unwrap();
        assert!(p("10.0.0.0/8").contains(p("10.1.0.0/16")));
        assert!(!p("10.1.0.0/16").contains(p("10.0.0.0/8")));
        assert!(p("0.0.0.0/0").contains(p("10.0.0.0/8")));
        assert!(!p("0.0.0.0/0").contains(p("fd00::/8")));
        assert!(p("fd00::/8").contains_addr("fd12::1".parse().unwrap()));
    }

    #[test]
    fn a_prefix_key_is_small() {
        assert_eq!(size_of::<Ipv4Prefix>(), 8);
        assert!(size_of::<Prefix>() <= 32);
    }

    #[test]
    fn hold_times_of_one_and_two_seconds_are_refused() {
        assert_eq!(HoldTime::from_wire(0), Ok(None));
        assert!(HoldTime::from_wire(1).is_err());
        assert!(HoldTime::from_wire(2).is_err());
        assert_eq!(HoldTime::from_wire(3).unwrap().unwrap().seconds(), 3);
    }
}
