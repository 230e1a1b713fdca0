//! What the kernel knows of an on-link neighbour: ARP for IPv4, neighbour discovery for IPv6.

use std::net::IpAddr;

use super::Family;
use super::netlink::{Attrs, Batch, Netlink, NetlinkError, u16_at};

const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
/// `struct ndmsg`, and where its state lies.
const NDMSG: usize = 12;
const NDM_STATE: usize = 8;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// NUD_ states of linux/neighbour.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The first question is out.
    Incomplete,
    /// Confirmed within the last half minute.
    Reachable,
    /// Confirmed once; asked again when it is used.
    Stale,
    /// Used, and about to be asked.
    Delay,
    /// Being asked.
    Probe,
    /// It does not answer.
    Failed,
    /// A link without ARP, or an address of this host.
    NoArp,
    /// Set by hand.
    Permanent,
}

impl State {
    fn from_bits(bits: u16) -> Option<Self> {
        Some(match bits {
            0x01 => Self::Incomplete,
            0x02 => Self::Reachable,
            0x04 => Self::Stale,
            0x08 => Self::Delay,
            0x10 => Self::Probe,
            0x20 => Self::Failed,
            0x40 => Self::NoArp,
            0x80 => Self::Permanent,
            _ => return None,
        })
    }

    /// Packets for it leave with a link-layer address.
    pub fn usable(self) -> bool {
        !matches!(self, Self::Incomplete | Self::Failed)
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Incomplete => "INCOMPLETE",
            Self::Reachable => "REACHABLE",
            Self::Stale => "STALE",
            Self::Delay => "DELAY",
            Self::Probe => "PROBE",
            Self::Failed => "FAILED",
            Self::NoArp => "NOARP",
            Self::Permanent => "PERMANENT",
        })
    }
}

/// A neighbour on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Whether it answers.
    pub state: State,
    /// Its link-layer address, where one is known.
    pub link_address: Option<String>,
}

/// Asks the kernel, in the network namespace of the calling thread; `None`: nobody has sent anything to it lately. Asking
/// sends nothing.
///
/// # Errors
/// The kernel cannot be asked.
pub fn find(address: IpAddr, ifindex: u32) -> Result<Option<Neighbour>, NetlinkError> {
    let mut batch = Batch::new();
    batch.message(RTM_GETNEIGH, 0, |m| {
        m.fixed(&[Family::of(address).number(), 0, 0, 0]);
        m.fixed(&ifindex.to_ne_bytes());
        m.fixed(&[0; 4]);
        match address {
            IpAddr::V4(a) => m.attr(NDA_DST, &a.octets()),
            IpAddr::V6(a) => m.attr(NDA_DST, &a.octets()),
        }
    });
    let mut found = None;
    let asked = Netlink::route()?.dump(
        &mut batch,
        || format!("looking up the neighbour {address}"),
        |kind, payload| {
            if kind == RTM_NEWNEIGH {
                found = parse(payload);
            }
        },
    );
    match asked {
        Ok(_) => Ok(found),
        Err(NetlinkError::Refused { refusal, .. })
            if [libc::ENOENT, libc::ENODEV].contains(&refusal.errno) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn parse(payload: &[u8]) -> Option<Neighbour> {
    let state = State::from_bits(u16_at(payload, NDM_STATE)?)?;
    let address = Attrs::new(payload.get(NDMSG..)?).find(|(kind, _)| *kind == NDA_LLADDR);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    Some(Neighbour { state, link_address: address.map(|(_, bytes)| hex(bytes)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_read_and_nonsense_is_not() {
        let mut message = vec![2, 0, 0, 0, 3, 0, 0, 0];
        message.extend_from_slice(&0x20u16.to_ne_bytes());
        message.extend_from_slice(&[0, 1]);
        assert_eq!(parse(&message).unwrap(), Neighbour { state: State::Failed, link_address: None });
        message[8..10].copy_from_slice(&0x04u16.to_ne_bytes());
        message.extend_from_slice(&10u16.to_ne_bytes());
        message.extend_from_slice(&NDA_LLADDR.to_ne_bytes());
        message.extend_from_slice(&[2, 0, 0, 0, 0xab, 1, 0, 0]);
        let found = parse(&message).unwrap();
        assert_eq!((found.state, found.link_address.as_deref()), (State::Stale, Some("02:00:00:00:ab:01")));
        assert!(found.state.usable() && !State::Incomplete.usable());
        for length in 0..NDMSG {
            assert!(parse(&message[..length]).is_none() || length >= 10);
        }
    }
}
