//! What two OPENs agree on, and which NOTIFICATION a bad one deserves (RFC 4271 6.2, RFC 5492, RFC 6286, RFC 6793).

use std::time::Duration;

use crate::speaker::{AddPath, PeerConfig, RemoteAs, SpeakerConfig};
use crate::types::{Asn, Family, HoldTime, PeerType, PerFamily, RouterId};
use crate::wire::iana::{error, open_error};
use crate::wire::message::{AddPathMode, Capability, GracefulRestart, Notification, Open};
use crate::wire::{DecodeContext, EncodeContext};

/// The longest Long-Lived Stale Time, in seconds: 24 bits (RFC 9494 3.1).
const MAX_STALE_TIME: u32 = 0x00ff_ffff;

/// What this side brings into a session: derived from the speaker's and the peer's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The OPEN that we send.
    pub open: Open,
    /// Who the peer has to be.
    pub remote_as: RemoteAs,
    /// Configured keepalive interval.
    pub keepalive: Option<Duration>,
    /// Time between attempts to connect, before jitter.
    pub connect_retry: Duration,
    /// DelayOpenTime, if DelayOpen is on.
    pub delay_open: Option<Duration>,
    /// Never dial.
    pub passive: bool,
}

/// Our own restart as the OPEN shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartFlags {
    /// R and F: this process found its predecessor's forwarding state and has not finished learning. Outside a restart
    /// neither is set: F would promise a state that nobody preserved.
    pub restarting: bool,
    /// F alone: the last session ended by a NOTIFICATION or the hold timer under the N bit, and we still forward by what
    /// it had brought (RFC 8538 4.1: without F the peer would flush what it keeps for us).
    pub preserved: PerFamily<bool>,
}

impl Settings {
    /// Settings for a peer.
    pub fn new(speaker: &SpeakerConfig, peer: &PeerConfig, flags: RestartFlags) -> Self {
        let asn = peer.local_as.unwrap_or(speaker.asn);
        let mut capabilities: Vec<Capability> = Family::ALL
            .into_iter()
            .filter(|f| peer.families.contains(f))
            .map(Capability::Multiprotocol)
            .collect();
        if peer.offers_extended_next_hop() && peer.families.contains(&Family::Ipv4Unicast) {
            capabilities.push(Capability::ExtendedNextHop);
        }
        capabilities.push(Capability::RouteRefresh);
        capabilities.push(Capability::ExtendedMessage);
        if let Some(gr) = speaker.graceful_restart.as_ref().filter(|_| peer.graceful_restart) {
            // Only along with graceful restart: a peer that sends no End-of-RIB otherwise may wait for it with its answer,
            // and FRR does so for ever.
            capabilities.push(Capability::EnhancedRouteRefresh);
            capabilities.push(Capability::GracefulRestart(GracefulRestart {
                restarting: flags.restarting,
                notification: true,
                restart_time: gr.restart_time.as_secs().min(4095) as u16,
                families: Family::ALL
                    .into_iter()
                    .filter(|f| peer.families.contains(f))
                    .map(|f| (f, flags.restarting || flags.preserved[f]))
                    .collect(),
            }));
        }
        let long_lived = speaker.graceful_restart.as_ref().filter(|_| peer.graceful_restart);
        if let Some(time) = long_lived.and_then(|gr| gr.long_lived_time) {
            let time = time.as_secs().min(MAX_STALE_TIME.into()) as u32;
            let offered = |f: &Family| peer.families.contains(f);
            capabilities.push(Capability::LongLivedGracefulRestart(
                Family::ALL
                    .into_iter()
                    .filter(offered)
                    .map(|f| (f, flags.restarting || flags.preserved[f], time))
                    .collect(),
            ));
        }
        if let Some(mode) = add_path_mode(peer.add_path) {
            let families = Family::ALL.into_iter().filter(|f| peer.families.contains(f));
            capabilities.push(Capability::AddPath(families.map(|f| (f, mode)).collect()));
        }
        capabilities.push(Capability::FourOctetAs(asn));
        if !speaker.hostname.is_empty() {
            let host = readable_by_all(&speaker.hostname).to_owned();
            capabilities.push(Capability::Fqdn { host, domain: String::new() });
        }
        Settings {
            open: Open {
                asn,
                hold_time: peer.hold_time.map_or(0, HoldTime::seconds),
                router_id: speaker.router_id,
                capabilities,
                extended: false,
            },
            remote_as: peer.remote_as,
            keepalive: peer.keepalive,
            connect_retry: peer.connect_retry,
            delay_open: peer.delay_open,
            passive: peer.passive,
        }
    }

    /// Whether a session that came up with `other` has to start again to follow these settings. Timers of connecting
    /// and the restart flags of graceful restart have no say in a session that is up.
    pub fn needs_reset(&self, other: &Settings) -> bool {
        let lasting = |s: &Settings| {
            let mut open = s.open.clone();
            for capability in &mut open.capabilities {
                if let Capability::GracefulRestart(gr) = capability {
                    gr.restarting = false;
                    gr.families.iter_mut().for_each(|(_, forwarding)| *forwarding = false);
                }
                if let Capability::LongLivedGracefulRestart(families) = capability {
                    families.iter_mut().for_each(|(_, forwarding, _)| *forwarding = false);
                }
            }
            (open, s.keepalive)
        };
        lasting(self) != lasting(other)
    }
}

/// As much of a host name as others read: GoBGP and FRR keep 64 octets, while names of nodes have up to 253, which would need the
/// long form of optional parameters (RFC 9072) that not every speaker knows.
fn readable_by_all(hostname: &str) -> &str {
    const MOST: usize = 64;
    let end = (0..=MOST.min(hostname.len())).rev().find(|at| hostname.is_char_boundary(*at));
    &hostname[..end.unwrap_or(0)]
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The peer's AS, from its capability where it has one.
    pub remote_as: Asn,
    /// Internal or external.
    pub peer_type: PeerType,
    /// The peer's identifier.
    pub router_id: RouterId,
    /// The smaller of both hold times; `None` if either side switched it off.
    pub hold_time: Option<HoldTime>,
    /// Keepalive interval before jitter; `None` with the hold timer off.
    pub keepalive: Option<Duration>,
    /// Families that both offered.
    pub families: PerFamily<bool>,
    /// NLRI that we receive carry path identifiers (RFC 7911): we take them and the peer sends them.
    pub add_path_receive: PerFamily<bool>,
    /// NLRI that we send carry path identifiers: the other direction is agreed upon by itself.
    pub add_path_send: PerFamily<bool>,
    /// Both have 4-octet AS numbers.
    pub four_octet_as: bool,
    /// Both take messages up to 65535 octets (RFC 8654).
    pub extended_message: bool,
    /// For how long the peer's routes may be kept as the last choice after its restart time (RFC 9494): the smaller of both
    /// sides' stale times.
    pub long_lived: PerFamily<Option<Duration>>,
    /// Both mark the beginning and the end of a refresh (RFC 7313).
    pub enhanced_refresh: bool,
    /// IPv4 routes may have IPv6 next hops (RFC 8950): both said so.
    pub extended_next_hop: bool,
    /// The peer understands ROUTE-REFRESH.
    pub route_refresh: bool,
    /// The peer's graceful restart capability, if we offered ours too.
    pub graceful_restart: Option<GracefulRestart>,
    /// The peer's capabilities, for display.
    pub remote_capabilities: Vec<Capability>,
}

impl Negotiated {
    /// How to read what the peer sends.
    pub fn decode_context(&self) -> DecodeContext {
        DecodeContext {
            families: self.families,
            four_octet_as: self.four_octet_as,
            add_path: self.add_path_receive,
            extended_next_hop: self.extended_next_hop,
            ..DecodeContext::modern(self.peer_type)
        }
    }

    /// How to write for the peer.
    pub fn encode_context(&self) -> EncodeContext {
        EncodeContext {
            four_octet_as: self.four_octet_as,
            extended_message: self.extended_message,
            add_path: self.add_path_send,
            extended_next_hop: self.extended_next_hop,
            ..EncodeContext::modern(self.peer_type)
        }
    }

    /// The family's F bit in the peer's OPEN: `None` if its graceful restart does not cover the family.
    pub fn forwarding_preserved(&self, family: Family) -> Option<bool> {
        let gr = self.graceful_restart.as_ref()?;
        gr.families.iter().find(|(f, _)| *f == family).map(|(_, preserved)| *preserved)
    }

    /// The family's F bit in the peer's long-lived graceful restart (RFC 9494 4.2); `false` too where it is not covered.
    pub fn long_lived_preserved(&self, family: Family) -> bool {
        self.remote_capabilities.iter().any(|c| match c {
            Capability::LongLivedGracefulRestart(families) => {
                families.iter().any(|(f, preserved, _)| *f == family && *preserved)
            }
            _ => false,
        })
    }

    /// Both sides keep routes over NOTIFICATIONs and expired hold timers too (N bit, RFC 8538). We offer it with graceful
    /// restart itself.
    pub fn graceful_notification(&self) -> bool {
        self.graceful_restart.as_ref().is_some_and(|gr| gr.notification)
    }

    /// The peer's own restart is under way (R bit).
    pub fn peer_restarting(&self) -> bool {
        self.graceful_restart.as_ref().is_some_and(|gr| gr.restarting)
    }
}

/// Why an OPEN is refused: the NOTIFICATION for the peer and the words for our operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the peer.
    pub notification: Notification,
    /// For the operator.
    pub reason: String,
}

fn refuse(subcode: u8, data: impl Into<Vec<u8>>, reason: String) -> Refusal {
    Refusal { notification: Notification::new(error::OPEN, subcode, data), reason }
}

/// Judges the peer's OPEN (RFC 4271 6.2).
///
/// # Errors
/// 2/2 for the wrong AS (compared as a 4-octet number from the capability, RFC 6793 4.1), 2/3 for an identifier that
/// cannot be (RFC 6286 2.2), 2/6 for a hold time of 1 or 2 seconds. A peer that lacks a family is not refused: without a
/// common one the session is up and carries nothing, and says so.
pub fn negotiate(ours: &Settings, theirs: &Open) -> Result<Negotiated, Refusal> {
    let peer_type =
        expects(ours, theirs.asn).map_err(|reason| refuse(open_error::BAD_PEER_AS, [], reason))?;
    // RFC 6286 2.2: identifiers are unique within an AS; across ASes equal ones are legal.
    if peer_type == PeerType::Internal && theirs.router_id == ours.open.router_id {
        let reason = format!("internal peer has our own BGP identifier {}", theirs.router_id);
        return Err(refuse(open_error::BAD_IDENTIFIER, [], reason));
    }
    let their_hold = HoldTime::from_wire(theirs.hold_time)
        .map_err(|e| refuse(open_error::HOLD_TIME, [], format!("peer offers an unacceptable {e}")))?;
    let our_hold = HoldTime::from_wire(ours.open.hold_time).expect("our hold time was validated by its type");
    // RFC 4271 4.2: the smaller one; 0 on either side means no keepalives at all.
    let hold_time = our_hold.zip(their_hold).map(|(a, b)| a.min(b));
    let keepalive = hold_time.map(|hold| {
        let third = hold.duration() / 3;
        ours.keepalive.map_or(third, |configured| configured.min(third))
    });

    let has = |open: &Open, wanted: fn(&Capability) -> bool| open.capabilities.iter().any(wanted);
    let both = |wanted: fn(&Capability) -> bool| has(&ours.open, wanted) && has(theirs, wanted);
    let four_octet = |c: &Capability| matches!(c, Capability::FourOctetAs(_));
    let families =
        PerFamily::from_fn(|family| offers_family(&ours.open, family) && offers_family(theirs, family));
    let remote_gr = theirs.capabilities.iter().find_map(|c| match c {
        Capability::GracefulRestart(gr) => Some(gr),
        _ => None,
    });
    let local_gr = has(&ours.open, |c| matches!(c, Capability::GracefulRestart(_)));
    Ok(Negotiated {
        remote_as: theirs.asn,
        peer_type,
        router_id: theirs.router_id,
        hold_time,
        keepalive,
        families,
        add_path_receive: PerFamily::from_fn(|f| {
            families[f] && takes_paths(&ours.open, f) && gives_paths(theirs, f)
        }),
        add_path_send: PerFamily::from_fn(|f| {
            families[f] && gives_paths(&ours.open, f) && takes_paths(theirs, f)
        }),
        four_octet_as: has(theirs, four_octet),
        extended_message: both(|c| matches!(c, Capability::ExtendedMessage)),
        // RFC 7313 3: it builds on plain route refresh.
        enhanced_refresh: both(|c| matches!(c, Capability::RouteRefresh))
            && both(|c| matches!(c, Capability::EnhancedRouteRefresh)),
        extended_next_hop: families.ipv4 && both(|c| matches!(c, Capability::ExtendedNextHop)),
        route_refresh: has(theirs, |c| matches!(c, Capability::RouteRefresh)),
        graceful_restart: remote_gr.filter(|_| local_gr).cloned(),
        long_lived: PerFamily::from_fn(|family| {
            // RFC 9494 3.1: without graceful restart itself the capability means nothing.
            remote_gr.filter(|_| local_gr)?;
            let time = stale_time(&ours.open, family)?.min(stale_time(theirs, family)?);
            (time > 0).then_some(Duration::from_secs(time.into()))
        }),
        remote_capabilities: theirs.capabilities.clone(),
    })
}

/// Whether a peer of this AS is the one configured, and of which kind it is then.
///
/// # Errors
/// In words, what it is and what it should be.
pub fn expects(ours: &Settings, remote_as: Asn) -> Result<PeerType, String> {
    let local_as = ours.open.asn;
    let peer_type = if remote_as == local_as { PeerType::Internal } else { PeerType::External };
    let (expected, wanted) = match ours.remote_as {
        RemoteAs::Asn(asn) => (remote_as == asn, asn.to_string()),
        RemoteAs::Internal => (peer_type == PeerType::Internal, format!("{local_as} (internal)")),
        RemoteAs::External => (peer_type == PeerType::External, format!("any but {local_as} (external)")),
    };
    if expected { Ok(peer_type) } else { Err(format!("peer is AS {remote_as}, configured is {wanted}")) }
}

/// The Long-Lived Stale Time of a family in an OPEN, in seconds.
fn stale_time(open: &Open, family: Family) -> Option<u32> {
    let families = open.capabilities.iter().find_map(|c| match c {
        Capability::LongLivedGracefulRestart(families) => Some(families),
        _ => None,
    })?;
    families.iter().find(|(f, ..)| *f == family).map(|(_, _, time)| *time)
}

fn add_path_mode(config: AddPath) -> Option<AddPathMode> {
    match (config.receive, config.send) {
        (true, true) => Some(AddPathMode::Both),
        (true, false) => Some(AddPathMode::Receive),
        (false, true) => Some(AddPathMode::Send),
        (false, false) => None,
    }
}

fn takes_paths(open: &Open, family: Family) -> bool {
    add_path_of(open, family).is_some_and(|mode| mode != AddPathMode::Send)
}

fn gives_paths(open: &Open, family: Family) -> bool {
    add_path_of(open, family).is_some_and(|mode| mode != AddPathMode::Receive)
}

/// RFC 7911 4: of several entries for a family the first counts.
fn add_path_of(open: &Open, family: Family) -> Option<AddPathMode> {
    let entries = open.capabilities.iter().filter_map(|c| match c {
        Capability::AddPath(entries) => Some(entries),
        _ => None,
    });
    entries.flatten().find(|(f, _)| *f == family).map(|(_, mode)| *mode)
}

/// RFC 4760 8: a speaker without any multiprotocol capability carries IPv4 unicast.
fn offers_family(open: &Open, family: Family) -> bool {
    let mut explicit = false;
    for capability in &open.capabilities {
        match capability {
            Capability::Multiprotocol(f) if *f == family => return true,
            Capability::Multiprotocol(_) => explicit = true,
            // Multiprotocol for a family that is not ours (VPN, EVPN, ...) is kept as unknown with code 1.
            Capability::Unknown { code: 1, .. } => explicit = true,
            _ => {}
        }
    }
    !explicit && family == Family::Ipv4Unicast
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speaker::GracefulRestartConfig;
    use rstest::rstest;
    use std::net::Ipv4Addr;

    fn id(last: u8) -> RouterId {
        RouterId::new(Ipv4Addr::new(10, 0, 0, last)).unwrap()
    }

    fn flags(restarting: bool) -> RestartFlags {
        RestartFlags { restarting, preserved: PerFamily::both(false) }
    }

    fn settings(remote_as: RemoteAs) -> Settings {
        let speaker = SpeakerConfig::new(Asn(64512), id(1));
        let peer = PeerConfig::new("p", "10.0.0.2".parse().unwrap(), remote_as);
        Settings::new(&speaker, &peer, flags(false))
    }

    fn open(asn: u32, hold_time: u16) -> Open {
        Open {
            asn: Asn(asn),
            hold_time,
            router_id: id(2),
            capabilities: vec![
                Capability::Multiprotocol(Family::Ipv4Unicast),
                Capability::Multiprotocol(Family::Ipv6Unicast),
                Capability::FourOctetAs(Asn(asn)),
            ],
            extended: false,
        }
    }

    /// RFC 9072 is for longer ones, and not everybody knows it.
    #[test]
    fn all_that_we_can_say_fits_the_form_that_everybody_reads() {
        let long_lived_time = Some(std::time::Duration::from_secs(3600));
        let restart_time = std::time::Duration::from_secs(120);
        let gr = GracefulRestartConfig { restart_time, long_lived_time, restarting: true };
        let mut speaker = SpeakerConfig::new(Asn(4_200_000_001), id(1));
        speaker.graceful_restart = Some(gr);
        speaker.hostname = "long-name.".repeat(25);
        let mut peer = PeerConfig::new("p", "10.0.0.2".parse().unwrap(), RemoteAs::External);
        peer.extended_next_hop = true;
        peer.add_path = AddPath { receive: true, send: true, send_max: None };
        let open = Settings::new(&speaker, &peer, flags(true)).open;
        // Every kind but `Unknown`.
        assert_eq!(open.capabilities.len(), 11, "{:?}", open.capabilities);
        let mut out = bytes::BytesMut::new();
        open.encode(&mut out);
        assert!(out[28] < 255, "{} octets", out.len() - 29);
    }

    fn subcode(result: Result<Negotiated, Refusal>) -> (u8, u8) {
        let n = result.unwrap_err().notification;
        (n.code, n.subcode)
    }

    #[rstest]
    #[case(RemoteAs::Asn(Asn(65001)), 65001, true)]
    #[case(RemoteAs::Asn(Asn(65001)), 65002, false)]
    #[case(RemoteAs::Internal, 64512, true)]
    #[case(RemoteAs::Internal, 65001, false)]
    #[case(RemoteAs::External, 65001, true)]
    #[case(RemoteAs::External, 64512, false)]
    fn bad_peer_as_is_refused_with_2_2(#[case] expected: RemoteAs, #[case] actual: u32, #[case] ok: bool) {
        let result = negotiate(&settings(expected), &open(actual, 90));
        assert_eq!(result.is_ok(), ok);
        if !ok {
            assert_eq!(subcode(result), (2, 2));
        }
    }

    #[test]
    fn a_host_name_is_cut_where_some_receivers_end_and_never_within_a_character() {
        assert_eq!(readable_by_all("node-1.example.org"), "node-1.example.org");
        assert_eq!(readable_by_all(&"n".repeat(253)), "n".repeat(64));
        assert_eq!(readable_by_all(&"ü".repeat(33)), "ü".repeat(32));
        assert_eq!(readable_by_all(&format!("n{}", "ü".repeat(33))), format!("n{}", "ü".repeat(31)));
    }

    #[test]
    fn trap_10_a_peer_as_over_65535_is_compared_by_its_capability() {
        let wanted = settings(RemoteAs::Asn(Asn(4_200_000_001)));
        assert_eq!(negotiate(&wanted, &open(4_200_000_001, 90)).unwrap().remote_as, Asn(4_200_000_001));
        assert_eq!(subcode(negotiate(&wanted, &open(Asn::TRANS.0, 90))), (2, 2));
    }

    #[test]
    fn rfc6286_equal_identifiers_are_refused_from_internal_peers_only() {
        let mut theirs = open(64512, 90);
        theirs.router_id = id(1);
        assert_eq!(subcode(negotiate(&settings(RemoteAs::Internal), &theirs)), (2, 3));
        let mut theirs = open(65001, 90);
        theirs.router_id = id(1);
        assert!(negotiate(&settings(RemoteAs::External), &theirs).is_ok());
    }

    #[test]
    fn trap_7_hold_time_0_switches_both_timers_off_and_1_and_2_are_refused() {
        let s = settings(RemoteAs::External);
        for refused in [1, 2] {
            assert_eq!(subcode(negotiate(&s, &open(65001, refused))), (2, 6));
        }
        let off = negotiate(&s, &open(65001, 0)).unwrap();
        assert_eq!((off.hold_time, off.keepalive), (None, None));
        let nine = negotiate(&s, &open(65001, 9)).unwrap();
        assert_eq!(nine.hold_time.unwrap().seconds(), 9);
        assert_eq!(nine.keepalive, Some(Duration::from_secs(3)));
        let ours = negotiate(&s, &open(65001, 180)).unwrap();
        assert_eq!(ours.hold_time.unwrap().seconds(), 90, "the smaller one counts");
    }

    #[test]
    fn a_configured_keepalive_never_exceeds_a_third_of_the_hold_time() {
        let mut s = settings(RemoteAs::External);
        s.keepalive = Some(Duration::from_secs(10));
        assert_eq!(negotiate(&s, &open(65001, 90)).unwrap().keepalive, Some(Duration::from_secs(10)));
        assert_eq!(negotiate(&s, &open(65001, 9)).unwrap().keepalive, Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_missing_family_is_negotiated_away_and_never_refused() {
        let mut theirs = open(65001, 90);
        theirs.capabilities = vec![Capability::Multiprotocol(Family::Ipv6Unicast)];
        let n = negotiate(&settings(RemoteAs::External), &theirs).unwrap();
        assert_eq!(n.families, PerFamily { ipv4: false, ipv6: true });
        theirs.capabilities = vec![Capability::Unknown { code: 1, value: vec![0, 25, 0, 70] }];
        let n = negotiate(&settings(RemoteAs::External), &theirs).unwrap();
        assert_eq!(n.families, PerFamily::both(false));
    }

    #[test]
    fn rfc4760_8_a_peer_without_capabilities_carries_ipv4_with_2_octet_numbers() {
        let mut theirs = open(65001, 90);
        theirs.capabilities.clear();
        let n = negotiate(&settings(RemoteAs::External), &theirs).unwrap();
        assert_eq!(n.families, PerFamily { ipv4: true, ipv6: false });
        assert!(!n.four_octet_as && !n.route_refresh && n.graceful_restart.is_none());
    }

    #[test]
    fn trap_17_add_path_is_agreed_upon_by_family_and_by_direction() {
        let speaker = SpeakerConfig::new(Asn(64512), id(1));
        let mut peer = PeerConfig::new("p", "10.0.0.2".parse().unwrap(), RemoteAs::External);
        let none = PerFamily::both(false);
        let agreed = |peer: &PeerConfig, theirs: &[(Family, AddPathMode)]| {
            let settings = Settings::new(&speaker, peer, flags(false));
            let mut open = open(65001, 90);
            open.capabilities.push(Capability::AddPath(theirs.to_vec()));
            let n = negotiate(&settings, &open).unwrap();
            (n.add_path_receive, n.add_path_send)
        };
        let v4 = |mode| [(Family::Ipv4Unicast, mode)];
        let only_v4 = PerFamily { ipv4: true, ipv6: false };
        assert_eq!(agreed(&peer, &v4(AddPathMode::Both)), (none, none), "we did not offer it");
        peer.add_path = AddPath { receive: true, ..AddPath::default() };
        assert_eq!(agreed(&peer, &v4(AddPathMode::Both)), (only_v4, none));
        assert_eq!(agreed(&peer, &v4(AddPathMode::Send)), (only_v4, none));
        assert_eq!(agreed(&peer, &v4(AddPathMode::Receive)), (none, none), "nobody sends");
        peer.add_path = AddPath { receive: true, send: true, send_max: None };
        assert_eq!(agreed(&peer, &v4(AddPathMode::Both)), (only_v4, only_v4));
        assert_eq!(agreed(&peer, &v4(AddPathMode::Receive)), (none, only_v4));
        let twice = [(Family::Ipv6Unicast, AddPathMode::Send), (Family::Ipv6Unicast, AddPathMode::Both)];
        assert_eq!(
            agreed(&peer, &twice),
            (PerFamily { ipv4: false, ipv6: true }, none),
            "the first one counts"
        );
        peer.families = vec![Family::Ipv6Unicast];
        assert_eq!(agreed(&peer, &v4(AddPathMode::Both)), (none, none), "the family is not in use");
    }

    #[test]
    fn trap_4_f_is_set_in_a_restart_only_and_with_r_for_every_family() {
        let mut speaker = SpeakerConfig::new(Asn(64512), id(1));
        speaker.graceful_restart = Some(crate::speaker::GracefulRestartConfig {
            restart_time: Duration::from_secs(120),
            restarting: true,
            long_lived_time: None,
        });
        let peer = PeerConfig::new("p", "10.0.0.2".parse().unwrap(), RemoteAs::External);
        let gr = |restarting| {
            let s = Settings::new(&speaker, &peer, flags(restarting));
            s.open.capabilities.into_iter().find_map(|c| match c {
                Capability::GracefulRestart(gr) => Some(gr),
                _ => None,
            })
        };
        let during = gr(true).unwrap();
        assert!(during.restarting && during.restart_time == 120);
        assert_eq!(during.families, [(Family::Ipv4Unicast, true), (Family::Ipv6Unicast, true)]);
        let outside = gr(false).unwrap();
        assert!(!outside.restarting);
        assert_eq!(outside.families, [(Family::Ipv4Unicast, false), (Family::Ipv6Unicast, false)]);
    }

    #[test]
    fn the_end_of_a_restart_needs_no_session_reset_but_a_new_as_does() {
        let mut speaker = SpeakerConfig::new(Asn(64512), id(1));
        speaker.graceful_restart = Some(crate::speaker::GracefulRestartConfig {
            restart_time: Duration::from_secs(120),
            restarting: true,
            long_lived_time: None,
        });
        let peer = PeerConfig::new("p", "10.0.0.2".parse().unwrap(), RemoteAs::External);
        let during = Settings::new(&speaker, &peer, flags(true));
        let after = Settings::new(&speaker, &peer, flags(false));
        assert!(!after.needs_reset(&during));
        speaker.asn = Asn(64513);
        assert!(Settings::new(&speaker, &peer, flags(false)).needs_reset(&after));
    }
}
