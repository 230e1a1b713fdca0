//! `peer why`: climbs a fixed ladder from a peer's configuration to its routes. Pure: facts in, rungs out.
//!
//! ```text
//! selected -> enabled -> secret -> filters -> local-address -> route -> neighbour      what is there
//!          -> tcp -> open -> families -> notification -> bfd -> prefix-limit           what the session said
//! ```
//!
//! A rung says what was observed and, where it failed, what to do. The causes are those that the session kept where it
//! judged the event; nothing is read out of words.

use std::net::IpAddr;

use manx_bgp::session::{Cause, Direction};
use manx_bgp::speaker::PeerView;
use manx_bgp::types::PeerType;

use super::bgp::{self, PeerInfo, SecretState};
use crate::desired::PeerObject;
use crate::kernel::neighbour::Neighbour;
use crate::kernel::netstat::Dropped;
use crate::view::{Rung, RungResult};

/// All that a diagnosis is made from.
pub(super) struct Evidence<'a> {
    pub(super) peer: &'a PeerView,
    pub(super) info: &'a PeerInfo,
    pub(super) objects: &'a [PeerObject],
    pub(super) kernel: &'a Kernel,
    /// Our AS.
    pub(super) asn: Option<u32>,
}

/// What the kernel says below BGP.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    /// The address that we dial from is this node's; `None`: the kernel chooses.
    pub(super) source_present: Option<bool>,
    /// Why the kernel could not be asked.
    pub(super) error: Option<String>,
    /// The route to the peer.
    pub(super) route: Option<Path>,
    /// The on-link neighbour on that route, if there is an entry for it.
    pub(super) neighbour: Option<Neighbour>,
    /// Whom packets for the peer are handed to on the link.
    pub(super) next: Option<IpAddr>,
    /// Segments dropped lately in the whole namespace.
    pub(super) dropped: Dropped,
    /// Down peers that have a key, have none, and use TTL security: a counter names a peer only where it is alone.
    pub(super) suspects: Suspects,
}

/// How many peers that are down a dropped segment may have come from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Suspects {
    pub(super) with_key: usize,
    pub(super) without_key: usize,
    pub(super) near: usize,
}

/// A route to the peer.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// In words: `10.1.0.0/24 on eth0`.
    pub(super) shown: String,
    /// Through a router.
    pub(super) gateway: Option<IpAddr>,
    /// One that we have learned ourselves.
    pub(super) ours: bool,
}

/// A rung before it has a name.
struct Step {
    result: RungResult,
    observed: String,
    remedy: Option<String>,
}

fn ok(observed: impl Into<String>) -> Step {
    Step { result: RungResult::Ok, observed: observed.into(), remedy: None }
}

fn failed(observed: impl Into<String>, remedy: impl Into<String>) -> Step {
    Step { result: RungResult::Failed, observed: observed.into(), remedy: Some(remedy.into()) }
}

fn unknown(observed: impl Into<String>) -> Step {
    Step { result: RungResult::Unknown, observed: observed.into(), remedy: None }
}

/// All rungs, from the configuration upwards.
pub(super) fn climb(e: &Evidence<'_>) -> Vec<Rung> {
    let steps: [(&str, Step); 13] = [
        ("selected", selected(e)),
        ("enabled", enabled(e)),
        ("secret", secret(e)),
        ("filters", filters(e)),
        ("local-address", local_address(e)),
        ("route", route(e)),
        ("neighbour", neighbour(e)),
        ("tcp", tcp(e)),
        ("open", open(e)),
        ("families", families(e)),
        ("notification", notification(e)),
        ("bfd", bfd(e)),
        ("prefix-limit", prefix_limit(e)),
    ];
    steps
        .into_iter()
        .map(|(name, s)| Rung {
            name: name.to_owned(),
            result: s.result,
            observed: s.observed,
            remedy: s.remedy,
        })
        .collect()
}

/// What the counters of dropped segments say of a peer that is down, where they can only mean this one.
pub(super) fn signature_trouble(peer: &PeerView, has_key: bool, kernel: &Kernel) -> Option<&'static str> {
    if reached_open(peer) {
        return None;
    }
    let Dropped { unsigned, signed, wrong_key, .. } = kernel.dropped;
    let alone = if has_key { kernel.suspects.with_key == 1 } else { kernel.suspects.without_key == 1 };
    match (alone, has_key) {
        (false, _) => None,
        (true, true) if wrong_key > 0 => Some("TCP-MD5: peer signs with another key"),
        (true, true) if unsigned > 0 => Some("TCP-MD5: peer sends unsigned segments"),
        (true, false) if signed > 0 => Some("TCP-MD5: peer signs its segments, no password is set here"),
        _ => None,
    }
}

fn selected(e: &Evidence<'_>) -> Step {
    let object = e.objects.iter().find(|o| format!("BGPPeer {}", o.name) == e.info.origin);
    match object {
        Some(o) => ok(format!("BGPPeer {} names {} and selects {}", o.name, o.target, o.selector)),
        None if e.info.origin.is_empty() => unknown("the configuration is just being read"),
        None => ok(format!("{}, by the mesh of all nodes", e.info.origin)),
    }
}

fn enabled(e: &Evidence<'_>) -> Step {
    let reason = e.peer.reason.clone().unwrap_or_default();
    match (e.peer.state, e.peer.cause) {
        ("Disabled", _) => failed(
            reason,
            format!("`manxctl peer enable {}`, or spec.shutdown.enabled: false in its BGPPeer", e.peer.name),
        ),
        // An address that another peer has: configuration that cannot stand as it is.
        ("Idle", Some(Cause::ConfigBlocked))
            if e.info.missing.is_empty() && !matches!(e.info.secret, SecretState::Missing(_)) =>
        {
            failed(reason, "give each BGPPeer of this node an address of its own")
        }
        _ => ok("not shut down"),
    }
}

fn secret(e: &Evidence<'_>) -> Step {
    match &e.info.secret {
        SecretState::Unused => ok("no password is asked for"),
        SecretState::Found(place) => ok(format!("{place}: the key is there")),
        SecretState::Missing(reason) => failed(
            reason.clone(),
            "create the Secret in the agent's namespace (--namespace), or take spec.password away",
        ),
    }
}

fn filters(e: &Evidence<'_>) -> Step {
    match e.info.missing.as_slice() {
        [] => ok("all that it names are there"),
        missing => failed(
            missing.join(", "),
            "create the BGPFilter, or take its name out of importFilters and exportFilters",
        ),
    }
}

fn local_address(e: &Evidence<'_>) -> Step {
    if let Some(address) = e.peer.local_address {
        return ok(format!("the session uses {address}"));
    }
    match (e.info.source, e.kernel.source_present) {
        (Some(source), Some(false)) => failed(
            format!("{source} is on no interface of this node"),
            "add the address to an interface, or mend spec.sourceAddress",
        ),
        (Some(source), _) => ok(format!("{source} is there")),
        (None, _) => ok("the kernel chooses"),
    }
}

fn route(e: &Evidence<'_>) -> Step {
    let Some(address) = bgp::address(e.peer) else {
        let interface = e.peer.interface.as_deref().unwrap_or("its interface");
        return failed(
            e.peer.reason.clone().unwrap_or_else(|| format!("nobody is known on {interface}")),
            "bring the interface up, and have the router send router advertisements on it",
        );
    };
    if let Some(error) = &e.kernel.error {
        return unknown(format!("the kernel cannot be asked: {error}"));
    }
    let Some(path) = &e.kernel.route else {
        return failed(
            format!("the kernel has no route to {address}"),
            "bring the interface up, or add an address of the peer's subnet or a static route",
        );
    };
    let shown = format!("{address} by {}", path.shown);
    let direct = e.peer.peer_type == PeerType::External && e.info.settings.ebgp_multihop.is_none();
    match (path.gateway, direct) {
        (Some(gateway), true) => failed(
            format!("{shown}: through {gateway}, but an external peer has to be on a connected subnet"),
            "mend the address or the subnet, or set spec.ebgpMultihop to the number of hops",
        ),
        _ if path.ours => ok(format!("{shown}; learned by BGP itself, so that it goes with its session")),
        _ => ok(shown),
    }
}

fn neighbour(e: &Evidence<'_>) -> Step {
    let Some(next) = e.kernel.next else { return unknown("not reached: there is no route") };
    let protocol = if next.is_ipv4() { "ARP" } else { "neighbour discovery" };
    match &e.kernel.neighbour {
        Some(n) if n.state.usable() => {
            let link = n.link_address.as_deref().map_or(String::new(), |a| format!(" at {a}"));
            ok(format!("{next}{link} is {}", n.state))
        }
        Some(n) => failed(
            format!("{next} does not answer {protocol} ({})", n.state),
            "its host is down, the cable or VLAN is another one, or the address is wrong",
        ),
        None => unknown(format!("no {protocol} entry for {next}: nothing was sent to it lately")),
    }
}

/// An OPEN went over the present or the last connection.
fn reached_open(peer: &PeerView) -> bool {
    let late = ["OpenSent", "OpenConfirm", "Established"].contains(&peer.state);
    late || peer.cause.is_some_and(|cause| match cause {
        Cause::HoldTimer
        | Cause::OpenRefused
        | Cause::Malformed
        | Cause::Unexpected
        | Cause::NotificationReceived
        | Cause::PeerRestarted
        | Cause::PrefixLimit => true,
        Cause::TcpRefused
        | Cause::TcpTimeout
        | Cause::TcpUnreachable
        | Cause::NoLocalAddress
        | Cause::TcpFailed
        | Cause::TcpClosed
        | Cause::TcpLost
        | Cause::InterfaceDown
        | Cause::NoNeighbor
        | Cause::BfdDown
        | Cause::AdminDown
        | Cause::AdminReset
        | Cause::ConfigChanged
        | Cause::Deconfigured
        | Cause::ConfigBlocked => false,
    })
}

fn tcp(e: &Evidence<'_>) -> Step {
    let peer = e.peer;
    let port = e.info.settings.port.unwrap_or(179);
    let address = bgp::address(peer).unwrap_or_default();
    let to = format!("{address} port {port}");
    if reached_open(peer) {
        return ok(match peer.state {
            "OpenSent" | "OpenConfirm" | "Established" => format!("connected with {address}"),
            _ => format!("{to} was connected at the last attempt"),
        });
    }
    if let Some(step) = dropped(e) {
        return step;
    }
    let reason = peer.reason.clone().unwrap_or_default();
    let ours = peer.local_address.or(e.info.source);
    let ours = ours.map_or("this node".to_owned(), |address| address.to_string());
    match peer.cause {
        Some(Cause::TcpRefused) => failed(
            format!("{to} refuses connections"),
            format!(
                "start the BGP daemon there and let it listen on port {port}; a firewall that rejects looks the same"
            ),
        ),
        Some(Cause::TcpTimeout) => failed(
            format!("{to} does not answer"),
            "look at firewalls on the way, at the peer's address and at the hops between (spec.ebgpMultihop); a TCP MD5 \
             key on one side only looks the same",
        ),
        Some(Cause::TcpUnreachable) => {
            failed(reason, "a router on the way, or this node, has no route to it")
        }
        Some(Cause::NoLocalAddress | Cause::TcpFailed) => {
            failed(reason, "see the agent's log and spec.sourceAddress")
        }
        Some(Cause::TcpClosed) => failed(
            reason,
            format!(
                "the peer takes the connection and hangs up: let it know {ours} as a neighbour in AS {}",
                e.asn.map_or("-".to_owned(), |asn| asn.to_string())
            ),
        ),
        Some(Cause::TcpLost) => {
            failed(reason, "the peer's daemon or host went away without a word: look at its log")
        }
        Some(Cause::InterfaceDown) => failed(reason, "look at the interface, its cable and the switch port"),
        _ if e.info.settings.passive => failed(
            "passive: we wait for the peer to connect, and it has not",
            format!("let the peer dial {ours}, or set spec.passive: false"),
        ),
        _ => unknown("not tried yet"),
    }
}

/// Segments that the kernel dropped before a socket saw them.
fn dropped(e: &Evidence<'_>) -> Option<Step> {
    let has_key = e.info.settings.password;
    let Dropped { unsigned, signed, wrong_key, too_far } = e.kernel.dropped;
    if let Some(trouble) = signature_trouble(e.peer, has_key, e.kernel) {
        let (count, remedy) = if wrong_key > 0 && has_key {
            (wrong_key, "set the same password on both sides")
        } else if has_key {
            (
                unsigned,
                "set the same password on the peer; a port that is closed there answers unsigned as well",
            )
        } else {
            (signed, "name the peer's password in spec.password, or take it away there")
        };
        return Some(failed(format!("{trouble} ({count} dropped within a minute)"), remedy));
    }
    if e.info.settings.ttl_security && too_far > 0 && e.kernel.suspects.near == 1 {
        return Some(failed(
            format!("TTL security: {too_far} segments from farther away were dropped within a minute"),
            "switch TTL security (GTSM) on at the peer too, or set spec.ebgpMultihop to the hops between",
        ));
    }
    let (suspects, count) = match has_key {
        true => (e.kernel.suspects.with_key, unsigned + wrong_key),
        false => (e.kernel.suspects.without_key, signed),
    };
    (suspects > 1 && count > 0 && e.peer.cause == Some(Cause::TcpTimeout)).then(|| {
        failed(
            format!("no answer, and {count} segments with a wrong or missing TCP MD5 signature came from one of {suspects} peers"),
            "compare the passwords of the peers that are down",
        )
    })
}

fn open(e: &Evidence<'_>) -> Step {
    let peer = e.peer;
    let reason = peer.reason.clone().unwrap_or_default();
    if ["OpenConfirm", "Established"].contains(&peer.state) {
        let asn = peer.remote_as.map_or("-".to_owned(), |asn| asn.to_string());
        let id = peer.router_id.map_or("-".to_owned(), |id| id.to_string());
        return ok(format!("AS {asn}, identifier {id}"));
    }
    let last = peer.last_notification.as_ref().filter(|n| n.code == 2);
    match peer.cause {
        Some(Cause::OpenRefused) => {
            failed(format!("we refuse its OPEN: {reason}"), open_remedy(last.map_or(0, |n| n.subcode), true))
        }
        Some(Cause::NotificationReceived) if last.is_some_and(|n| n.direction == Direction::Received) => {
            failed(
                format!("it refuses our OPEN: {reason}"),
                open_remedy(last.map_or(0, |n| n.subcode), false),
            )
        }
        Some(Cause::HoldTimer) if peer.flaps == 0 => {
            failed(reason, "the peer takes connections and says nothing: look at its daemon")
        }
        Some(Cause::HoldTimer | Cause::PrefixLimit | Cause::PeerRestarted | Cause::NotificationReceived) => {
            ok("was agreed on in the last session")
        }
        _ if peer.state == "OpenSent" => unknown("ours is out, the peer's has not come yet"),
        _ => unknown("not reached"),
    }
}

fn open_remedy(subcode: u8, we_refuse: bool) -> &'static str {
    match (subcode, we_refuse) {
        (2, true) => "mend spec.asNumber, or the AS that the peer speaks as",
        (2, false) => {
            "mend the AS that the peer expects of this node, or this node's own (BGPConfiguration, manx.dev/asn)"
        }
        (3, _) => "give each router of an AS a BGP identifier of its own (manx.dev/router-id)",
        (6, true) => "the peer offers a hold time of 1 or 2 s: 0, or 3 and more, are legal",
        (6, false) => "the peer does not like our hold time: mend spec.holdTime",
        (7, false) => "the peer wants a capability that we do not offer: its own log names it",
        _ => "compare both sides' configuration: AS, identifier, hold time",
    }
}

fn families(e: &Evidence<'_>) -> Step {
    if e.peer.state != "Established" {
        return unknown("not reached");
    }
    let names = |negotiated: bool| {
        let some = e.peer.families.iter().filter(|f| f.negotiated == negotiated);
        some.map(|f| f.family.to_string()).collect::<Vec<_>>().join(", ")
    };
    let (common, lacking) = (names(true), names(false));
    match (common.is_empty(), lacking.is_empty()) {
        (true, _) => failed(
            format!("none in common: the peer does not offer {lacking}"),
            "enable the family on the peer, or mend spec.families",
        ),
        (false, true) => ok(common),
        (false, false) => ok(format!("{common}; the peer does not offer {lacking}")),
    }
}

fn notification(e: &Evidence<'_>) -> Step {
    let Some(last) = &e.peer.last_notification else { return ok("none was sent or received") };
    let shown = format!("{} {}", last.direction.name(), last.text);
    let over = match e.peer.cause {
        _ if e.peer.state == "Established" => false,
        Some(Cause::NotificationReceived) => last.code != 2,
        Some(Cause::Malformed | Cause::Unexpected | Cause::HoldTimer) => true,
        _ => false,
    };
    if !over {
        return ok(format!("the last one is past: {shown}"));
    }
    let remedy = match (last.direction, last.code, last.subcode) {
        (Direction::Received, 6, 1) => {
            "we send more prefixes than the peer lets in: raise its limit, or filter exports"
        }
        (Direction::Received, 6, 2) => "its operator has shut the session down: ask there",
        (Direction::Received, 6, 3 | 5) => {
            "the peer has no such neighbour, or refuses it: configure this node there"
        }
        (Direction::Received, 6, _) => "the peer ends the session of its own accord: its log says more",
        (Direction::Received, 4, _) => {
            "our messages do not get through in time: look at loss, MTU and this node's load"
        }
        (Direction::Sent, 4, _) => {
            "its messages do not get through in time: look at loss, MTU and the peer's load"
        }
        (Direction::Received, ..) => "the peer cannot understand us: its log says more",
        (Direction::Sent, ..) => "the peer breaks the protocol: the agent's log has the details",
    };
    failed(shown, remedy)
}

fn bfd(e: &Evidence<'_>) -> Step {
    match e.peer.cause {
        Some(Cause::BfdDown) if e.peer.state != "Established" => failed(
            e.peer.reason.clone().unwrap_or_default(),
            "the path or the peer's BFD is down: look at the link, and at its BFD session",
        ),
        _ => match &e.peer.bfd {
            Some(bfd) if e.peer.state == "Established" && bfd.remote_state.is_none() => failed(
                format!(
                    "{}: nothing is heard of the peer's BFD, so that only the hold timer watches it",
                    bfd.state
                ),
                "enable BFD for this session on the peer, and let UDP port 3784 through",
            ),
            Some(bfd) => ok(match &bfd.reason {
                Some(reason) => format!("{}: {reason}", bfd.state),
                None => bfd.state.to_owned(),
            }),
            None => ok("not asked for"),
        },
    }
}

fn prefix_limit(e: &Evidence<'_>) -> Step {
    let limit =
        e.info.settings.max_prefixes.map_or("no limit".to_owned(), |n| format!("at most {n} a family"));
    match e.peer.cause {
        Some(Cause::PrefixLimit) if e.peer.state != "Established" => failed(
            e.peer.reason.clone().unwrap_or_default(),
            format!(
                "let the peer send less or raise spec.maxPrefixes.limit, then `manxctl peer reset {}`",
                e.peer.name
            ),
        ),
        _ => ok(limit),
    }
}

/// BGPPeer objects that nearly make `asked` a peer of this node, and what is in the way.
pub(super) fn nearly(asked: &str, objects: &[PeerObject]) -> Vec<String> {
    let address: Option<IpAddr> = asked.parse().ok();
    let mut found = Vec::new();
    for o in objects {
        let named = o.name == asked || address.is_some() && o.address == address;
        let alike = o.name.eq_ignore_ascii_case(asked) || one_edit_apart(&o.name, asked);
        let near = address.zip(o.address).is_some_and(|(a, b)| same_subnet(a, b));
        let within = address.zip(o.range).is_some_and(|(address, range)| range.contains_addr(address));
        match &o.unmet {
            None if within => found.push(format!(
                "BGPPeer {} takes {}: that one has not connected, or not lately",
                o.name, o.target
            )),
            Some(unmet) if named => found.push(format!("BGPPeer {} names {}: {unmet}", o.name, o.target)),
            None if named => found.push(format!("BGPPeer {} names {}", o.name, o.target)),
            None if alike => found.push(format!("BGPPeer {} is written otherwise", o.name)),
            None if near => found.push(format!("BGPPeer {} names {}", o.name, o.target)),
            _ => {}
        }
    }
    found
}

/// As far as it matters for a slip of the finger: a /24, a /64.
fn same_subnet(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.octets()[..8] == b.octets()[..8],
        _ => false,
    }
}

/// One character more, less or other.
fn one_edit_apart(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let (short, long) = if a.len() <= b.len() { (&a, &b) } else { (&b, &a) };
    let head = short.iter().zip(long.iter()).take_while(|(x, y)| x == y).count();
    match long.len() - short.len() {
        0 => a != b && short[(head + 1).min(short.len())..] == long[(head + 1).min(long.len())..],
        1 => short[head..] == long[head + 1..],
        _ => false,
    }
}

#[cfg(test)]
mod tests;
