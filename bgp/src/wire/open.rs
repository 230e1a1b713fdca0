//! OPEN (RFC 4271 4.2, 6.2), optional parameters in both forms (RFC 5492, RFC 9072), the 4-octet AS number (RFC 6793).

use std::net::Ipv4Addr;

use bytes::{BufMut, BytesMut};
use nom::bytes::complete::take;
use nom::combinator::rest;
use nom::multi::length_data;
use nom::number::complete::{be_u8, be_u16, be_u32};
use nom::{IResult, Parser};

use crate::types::{Asn, RouterId};
use crate::wire::capability::{self, BadCapabilities};
use crate::wire::error::WireError;
use crate::wire::header::{self, MessageKind};
use crate::wire::iana::{error::OPEN, open_error};
use crate::wire::message::{Capability, Open};

/// The only version there is (RFC 4271).
const VERSION: u8 = 4;
/// Optional parameter type: capabilities (RFC 5492).
const CAPABILITIES: u8 = 2;
/// Optional parameter type that marks the extended form (RFC 9072).
const EXTENDED: u8 = 255;

impl Open {
    /// Decodes the body. Hold time and AS are judged by the session, but for AS 0, which nobody may use.
    ///
    /// # Errors
    /// 2/1 with the version that we speak, 2/2 for AS 0 (RFC 7607), 2/3 for identifier 0 (RFC 6286), 2/4 for an unknown
    /// parameter, 2/0 for what cannot be parsed.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let malformed = |_| error(open_error::UNSPECIFIC, [], "OPEN ends within a field");
        let (input, version) = be_u8::<_, nom::error::Error<&[u8]>>(body).map_err(malformed)?;
        if version != VERSION {
            return Err(error(open_error::VERSION, u16::from(VERSION).to_be_bytes(), "BGP version is not 4"));
        }
        let (_, (my_as, hold_time, id, parameters)) = fixed_part(input).map_err(malformed)?;
        let router_id = RouterId::new(Ipv4Addr::from_bits(id))
            .ok_or_else(|| error(open_error::BAD_IDENTIFIER, [], "BGP identifier is 0.0.0.0"))?;
        let (extended, capabilities) = decode_parameters(parameters)?;
        let asn = four_octet_as(&capabilities).unwrap_or(Asn(my_as.into()));
        if asn == Asn(0) || my_as == 0 {
            return Err(error(open_error::BAD_PEER_AS, [], "AS number is 0"));
        }
        Ok(Open { asn, hold_time, router_id, capabilities, extended })
    }

    /// Appends the whole message. All capabilities go into one parameter; more than 253 octets of them take the form of RFC 9072,
    /// fewer where `extended` asks for it.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut capabilities = Vec::with_capacity(64);
        for capability in &self.capabilities {
            capability.encode(&mut capabilities);
        }
        let start = header::begin(out, MessageKind::Open);
        out.put_u8(VERSION);
        out.put_u16(self.asn.to_two_octets());
        out.put_u16(self.hold_time);
        out.put_u32(self.router_id.addr().to_bits());
        let octets = capabilities.len();
        let total = u8::try_from(octets + 2).ok().filter(|_| !self.extended);
        if octets == 0 {
            out.put_u8(0);
        } else if let Some(total) = total {
            out.put_slice(&[total, CAPABILITIES, total - 2]);
        } else {
            out.put_slice(&[EXTENDED, EXTENDED]);
            out.put_u16(u16::try_from(octets + 3).expect("a few capabilities of 257 octets at most"));
            out.put_u8(CAPABILITIES);
            out.put_u16(u16::try_from(octets).expect("a few capabilities of 257 octets at most"));
        }
        out.put_slice(&capabilities);
        header::finish(out, start);
    }
}

/// My AS, hold time, identifier, and the rest from the optional parameter length on.
fn fixed_part(input: &[u8]) -> IResult<&[u8], (u16, u16, u32, &[u8])> {
    (be_u16, be_u16, be_u32, rest).parse(input)
}

/// Reads the parameters in the form that RFC 9072 2 tells by their first type octet; and whether that is the extended one.
fn decode_parameters(input: &[u8]) -> Result<(bool, Vec<Capability>), WireError> {
    let malformed = |_| error(open_error::UNSPECIFIC, [], "optional parameters do not fill their length");
    let extended = matches!(input, [len, EXTENDED, ..] if *len != 0);
    let (after, mut parameters) =
        if extended { extended_parameters(input) } else { length_data(be_u8).parse(input) }
            .map_err(malformed)?;
    if !after.is_empty() {
        return Err(error(open_error::UNSPECIFIC, [], "octets after the optional parameters"));
    }
    let mut capabilities = Vec::new();
    while !parameters.is_empty() {
        let (rest, (kind, value)) = parameter(parameters, extended).map_err(malformed)?;
        if kind != CAPABILITIES {
            return Err(error(open_error::OPTIONAL_PARAMETER, [], "unknown optional parameter"));
        }
        capability::decode_all(value, &mut capabilities).map_err(|bad| match bad {
            BadCapabilities::Cut => {
                error(open_error::UNSPECIFIC, [], "capability is longer than its parameter")
            }
            BadCapabilities::Value(data) => {
                error(open_error::UNSPECIFIC, data, "capability value has the wrong length")
            }
        })?;
        parameters = rest;
    }
    Ok((extended, capabilities))
}

/// Non-extended length and type (both 255), then the length in two octets.
fn extended_parameters(input: &[u8]) -> IResult<&[u8], &[u8]> {
    (take(2usize), length_data(be_u16)).map(|(_, parameters)| parameters).parse(input)
}

fn parameter(input: &[u8], extended: bool) -> IResult<&[u8], (u8, &[u8])> {
    if extended {
        (be_u8, length_data(be_u16)).parse(input)
    } else {
        (be_u8, length_data(be_u8)).parse(input)
    }
}

fn four_octet_as(capabilities: &[Capability]) -> Option<Asn> {
    capabilities.iter().find_map(|c| match c {
        Capability::FourOctetAs(asn) => Some(*asn),
        _ => None,
    })
}

fn error(subcode: u8, data: impl Into<Vec<u8>>, reason: &'static str) -> WireError {
    WireError::new(OPEN, subcode, data, reason)
}
