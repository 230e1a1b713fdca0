//! Capabilities (RFC 5492) and the values of those we know.

use bytes::BufMut;
use nom::combinator::all_consuming;
use nom::multi::{length_data, many0};
use nom::number::complete::{be_u8, be_u16, be_u24, be_u32};
use nom::{IResult, Parser};

use crate::types::{Asn, Family};
use crate::wire::iana::capability as code;
use crate::wire::message::{AddPathMode, Capability, GracefulRestart};
use crate::wire::notification::cut;

/// Why the capabilities of an OPEN cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum BadCapabilities {
    /// The list ends within a capability.
    Cut,
    /// A capability that changes how every UPDATE is read has a value of the wrong size: guessing would be worse than closing.
    Value(Vec<u8>),
}

/// Appends all capabilities of one optional parameter.
///
/// A capability whose value makes no sense is kept as `Unknown`, which amounts to not having received it (RFC 5492 4, RFC 7911 4),
/// but for Multiprotocol and 4-octet AS.
pub(crate) fn decode_all(mut input: &[u8], out: &mut Vec<Capability>) -> Result<(), BadCapabilities> {
    while !input.is_empty() {
        let (rest, (code, value)) = raw(input).map_err(|_| BadCapabilities::Cut)?;
        let known = match code {
            code::MULTIPROTOCOL if value.len() != 4 => Err(()),
            code::FOUR_OCTET_AS if value.len() != 4 => Err(()),
            _ => Ok(known(code, value)),
        };
        let known = known.map_err(|()| BadCapabilities::Value(input[..2 + value.len()].to_vec()))?;
        out.push(known.unwrap_or_else(|| Capability::Unknown { code, value: value.to_vec() }));
        input = rest;
    }
    Ok(())
}

fn raw(input: &[u8]) -> IResult<&[u8], (u8, &[u8])> {
    (be_u8, length_data(be_u8)).parse(input)
}

fn known(code: u8, value: &[u8]) -> Option<Capability> {
    Some(match code {
        code::MULTIPROTOCOL => {
            let (afi, (_reserved, safi)) = whole((be_u16, (be_u8, be_u8)), value)?;
            Capability::Multiprotocol(Family::from_afi_safi(afi, safi)?)
        }
        code::ROUTE_REFRESH if value.is_empty() => Capability::RouteRefresh,
        code::EXTENDED_NEXT_HOP => {
            // AFI, SAFI in two octets, AFI of the next hop (RFC 8950 4). Only IPv4 unicast over IPv6 matters here.
            let entries = whole(many0((be_u16, be_u16, be_u16)), value)?;
            return entries.contains(&(1, 1, 2)).then_some(Capability::ExtendedNextHop);
        }
        code::EXTENDED_MESSAGE if value.is_empty() => Capability::ExtendedMessage,
        code::GRACEFUL_RESTART => {
            let (flags, entries) = whole((be_u16, many0((be_u16, be_u8, be_u8))), value)?;
            Capability::GracefulRestart(GracefulRestart {
                restarting: flags & 0x8000 != 0,
                notification: flags & 0x4000 != 0,
                restart_time: flags & 0x0fff,
                families: carried(entries, |flags| flags & 0x80 != 0),
            })
        }
        code::FOUR_OCTET_AS => Capability::FourOctetAs(Asn(whole(be_u32, value)?)),
        code::ADD_PATH => {
            let entries = whole(many0((be_u16, be_u8, be_u8)), value)?;
            // RFC 7911 4: with any other mode the capability counts as not understood.
            if !entries.iter().all(|(_, _, mode)| matches!(mode, 1..=3)) {
                return None;
            }
            Capability::AddPath(carried(entries, |mode| match mode {
                1 => AddPathMode::Receive,
                2 => AddPathMode::Send,
                _ => AddPathMode::Both,
            }))
        }
        code::ENHANCED_ROUTE_REFRESH if value.is_empty() => Capability::EnhancedRouteRefresh,
        code::LONG_LIVED_GRACEFUL_RESTART => {
            let entries = whole(many0(((be_u16, be_u8), (be_u8, be_u24))), value)?;
            let carried = entries.into_iter().filter_map(|((afi, safi), (flags, stale))| {
                Some((Family::from_afi_safi(afi, safi)?, flags & 0x80 != 0, stale))
            });
            Capability::LongLivedGracefulRestart(carried.collect())
        }
        code::FQDN => {
            // Some speakers leave the domain out altogether.
            let (rest, host) = text(value).ok()?;
            let domain = if rest.is_empty() { String::new() } else { whole(text, rest)? };
            Capability::Fqdn { host, domain }
        }
        _ => return None,
    })
}

/// Runs a parser over all of the value; `None` if it fails or leaves something.
fn whole<'a, O>(
    parser: impl Parser<&'a [u8], Output = O, Error = nom::error::Error<&'a [u8]>>,
    value: &'a [u8],
) -> Option<O> {
    all_consuming(parser).parse(value).ok().map(|(_, output)| output)
}

fn text(input: &[u8]) -> IResult<&[u8], String> {
    length_data(be_u8).map(|name: &[u8]| String::from_utf8_lossy(name).into_owned()).parse(input)
}

/// Drops the families that are not carried here and reads the octet that follows each of the others.
fn carried<T>(entries: Vec<(u16, u8, u8)>, read: impl Fn(u8) -> T) -> Vec<(Family, T)> {
    entries
        .into_iter()
        .filter_map(|(afi, safi, octet)| Some((Family::from_afi_safi(afi, safi)?, read(octet))))
        .collect()
}

impl Capability {
    /// Appends code, length and value. Texts and unknown values that no length octet can announce are cut.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[self.code(), 0]);
        self.put_value(out);
        out.truncate(start + 2 + 255);
        out[start + 1] = u8::try_from(out.len() - start - 2).expect("cut to 255");
    }

    /// The capability code.
    pub fn code(&self) -> u8 {
        match self {
            Capability::Multiprotocol(_) => code::MULTIPROTOCOL,
            Capability::RouteRefresh => code::ROUTE_REFRESH,
            Capability::ExtendedNextHop => code::EXTENDED_NEXT_HOP,
            Capability::ExtendedMessage => code::EXTENDED_MESSAGE,
            Capability::GracefulRestart(_) => code::GRACEFUL_RESTART,
            Capability::FourOctetAs(_) => code::FOUR_OCTET_AS,
            Capability::AddPath(_) => code::ADD_PATH,
            Capability::EnhancedRouteRefresh => code::ENHANCED_ROUTE_REFRESH,
            Capability::LongLivedGracefulRestart(_) => code::LONG_LIVED_GRACEFUL_RESTART,
            Capability::Fqdn { .. } => code::FQDN,
            Capability::Unknown { code, .. } => *code,
        }
    }

    fn put_value(&self, out: &mut Vec<u8>) {
        match self {
            Capability::Multiprotocol(family) => {
                let (afi, safi) = family.afi_safi();
                out.put_u16(afi);
                out.put_u16(safi.into());
            }
            Capability::RouteRefresh | Capability::ExtendedMessage | Capability::EnhancedRouteRefresh => {}
            Capability::ExtendedNextHop => out.put_slice(&[0, 1, 0, 1, 0, 2]),
            Capability::GracefulRestart(gr) => {
                let flags = if gr.restarting { 0x8000 } else { 0 } | if gr.notification { 0x4000 } else { 0 };
                out.put_u16(flags | gr.restart_time.min(0x0fff));
                for (family, preserved) in &gr.families {
                    put_family(out, *family);
                    out.put_u8(if *preserved { 0x80 } else { 0 });
                }
            }
            Capability::FourOctetAs(asn) => out.put_u32(asn.0),
            Capability::AddPath(families) => {
                for (family, mode) in families {
                    put_family(out, *family);
                    out.put_u8(match mode {
                        AddPathMode::Receive => 1,
                        AddPathMode::Send => 2,
                        AddPathMode::Both => 3,
                    });
                }
            }
            Capability::LongLivedGracefulRestart(families) => {
                for (family, preserved, stale) in families {
                    put_family(out, *family);
                    // Flags and a 24-bit time.
                    out.put_u32(if *preserved { 0x8000_0000 } else { 0 } | (*stale).min(0x00ff_ffff));
                }
            }
            Capability::Fqdn { host, domain } => {
                // Host names have at most 63 octets a label; 126 each keeps the capability within its length octet.
                for name in [host, domain] {
                    let name = cut(name, 126);
                    out.put_u8(u8::try_from(name.len()).expect("cut to 126"));
                    out.put_slice(name.as_bytes());
                }
            }
            Capability::Unknown { value, .. } => out.put_slice(value),
        }
    }
}

fn put_family(out: &mut Vec<u8>, family: Family) {
    let (afi, safi) = family.afi_safi();
    out.put_u16(afi);
    out.put_u8(safi);
}
