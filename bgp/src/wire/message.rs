//! The five BGP messages as values.

use crate::types::{Asn, Family, Prefix, RouterId};
use crate::wire::attribute::{NextHop, PathAttributes};

/// A whole message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// RFC 4271 4.2.
    Open(Open),
    /// RFC 4271 4.3.
    Update(Box<Update>),
    /// RFC 4271 4.5.
    Notification(Notification),
    /// RFC 4271 4.4.
    Keepalive,
    /// RFC 2918, RFC 7313.
    RouteRefresh(RouteRefresh),
    /// Well-formed, but about something that is not carried here, which RFC 7313 5 and RFC 2918 4 say to ignore.
    Ignored(&'static str),
}

/// OPEN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// The speaker's AS: from the 4-octet capability where it is present, else the 2-octet field.
    pub asn: Asn,
    /// Seconds as on the wire; judged by the session.
    pub hold_time: u16,
    /// BGP identifier.
    pub router_id: RouterId,
    /// All capabilities in wire order.
    pub capabilities: Vec<Capability>,
    /// In the form of RFC 9072, which is also written where the form of old has no room.
    pub extended: bool,
}

/// A capability (RFC 5492).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Capability {
    /// Code 1; families that we do not carry are kept as `Unknown`.
    Multiprotocol(Family),
    /// Code 2.
    RouteRefresh,
    /// Code 5 (RFC 8950): IPv4 NLRI with IPv6 next hops.
    ExtendedNextHop,
    /// Code 6 (RFC 8654).
    ExtendedMessage,
    /// Code 64 (RFC 4724, RFC 8538).
    GracefulRestart(GracefulRestart),
    /// Code 65 (RFC 6793).
    FourOctetAs(Asn),
    /// Code 69 (RFC 7911).
    AddPath(Vec<(Family, AddPathMode)>),
    /// Code 70 (RFC 7313).
    EnhancedRouteRefresh,
    /// Code 71 (RFC 9494): family, F bit, stale time in seconds.
    LongLivedGracefulRestart(Vec<(Family, bool, u32)>),
    /// Code 73: host name and domain name.
    Fqdn {
        /// Host name.
        host: String,
        /// Domain name, may be empty.
        domain: String,
    },
    /// Everything else, carried for display.
    Unknown {
        /// Capability code.
        code: u8,
        /// Its value.
        value: Vec<u8>,
    },
}

/// The graceful restart capability (RFC 4724 3).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GracefulRestart {
    /// R bit: this speaker has restarted.
    pub restarting: bool,
    /// N bit (RFC 8538): NOTIFICATION does not end graceful restart.
    pub notification: bool,
    /// Seconds, 0 to 4095.
    pub restart_time: u16,
    /// Families and their F (forwarding state preserved) bits.
    pub families: Vec<(Family, bool)>,
}

/// Direction of Add-Path (RFC 7911 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddPathMode {
    /// Able to receive.
    Receive,
    /// Able to send.
    Send,
    /// Both.
    Both,
}

/// A prefix with its Add-Path identifier; 0 where Add-Path was not negotiated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Nlri {
    /// The prefix, host bits cleared.
    pub prefix: Prefix,
    /// Path identifier (RFC 7911).
    pub path_id: u32,
}

/// Reachable prefixes of one family with their next hop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reach {
    /// Family of the NLRI.
    pub family: Family,
    /// Their next hop.
    pub next_hop: NextHop,
    /// The prefixes.
    pub nlri: Vec<Nlri>,
}

/// UPDATE after RFC 7606 has had its say: what is left to act upon.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Update {
    /// Withdrawn in any form: WITHDRAWN ROUTES, MP_UNREACH_NLRI, and NLRI treated as withdrawn.
    /// Never holds a prefix that `reach` announces (RFC 4271 4.3: the announcement wins).
    pub withdrawn: Vec<Nlri>,
    /// Classic NLRI first, then MP_REACH_NLRI; a peer may use both for IPv4, with different next hops.
    pub reach: Vec<Reach>,
    /// Present whenever `reach` is not empty.
    pub attributes: Option<PathAttributes>,
    /// The family whose End-of-RIB this is (RFC 4724 2).
    pub end_of_rib: Option<Family>,
    /// Malformations that were survived, for counters and logs.
    pub faults: Vec<Fault>,
}

/// A malformed attribute that did not end the session (RFC 7606 2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Attribute type code.
    pub code: u8,
    /// What was done.
    pub outcome: FaultOutcome,
    /// What was wrong, in words.
    pub reason: &'static str,
}

/// RFC 7606 2, without session reset, which is an error instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// All routes of the UPDATE were turned into withdrawals.
    TreatAsWithdraw,
    /// Only the attribute was dropped.
    AttributeDiscard,
}

/// NOTIFICATION: error code, subcode, data (RFC 4271 4.5, RFC 4486, RFC 9003).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notification {
    /// Error code.
    pub code: u8,
    /// Error subcode.
    pub subcode: u8,
    /// Diagnostic data.
    pub data: Vec<u8>,
}

/// ROUTE-REFRESH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteRefresh {
    /// Which family.
    pub family: Family,
    /// Normal request or a marker of RFC 7313.
    pub kind: RefreshKind,
}

/// The message subtype of RFC 7313 3.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefreshKind {
    /// Please send again.
    Request,
    /// Beginning of route refresh.
    Begin,
    /// End of route refresh.
    End,
}
