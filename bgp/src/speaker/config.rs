//! What the operator wants, as validated values: the speaker itself, its peers, the routes it originates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

use crate::bfd::BfdConfig;
use crate::filter::Filter;
use crate::speaker::effect::Secret;
use crate::types::{Asn, Family, HoldTime, Prefix, RouterId};
use crate::wire::attribute::LargeCommunity;

/// What the speaker itself is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeakerConfig {
    /// Our AS.
    pub asn: Asn,
    /// Our BGP identifier.
    pub router_id: RouterId,
    /// Cluster id when reflecting (RFC 4456); the router id if `None`.
    pub cluster_id: Option<Ipv4Addr>,
    /// At most so many equal paths go to the FIB; at least 1.
    pub max_paths: usize,
    /// Paths through different neighbour ASes count as equal when their AS_PATH lengths are.
    pub as_path_relax: bool,
    /// Graceful restart (RFC 4724), if enabled.
    pub graceful_restart: Option<GracefulRestartConfig>,
    /// Seed for timer jitter.
    pub seed: u64,
    /// Host name for the FQDN capability, of which 64 octets are sent; empty: the capability is not sent.
    pub hostname: String,
}

impl SpeakerConfig {
    /// A speaker with 16-way multipath across ASes, no graceful restart, no host name.
    pub fn new(asn: Asn, router_id: RouterId) -> Self {
        SpeakerConfig {
            asn,
            router_id,
            cluster_id: None,
            max_paths: 16,
            as_path_relax: true,
            graceful_restart: None,
            seed: 0,
            hostname: String::new(),
        }
    }
}

/// Graceful restart as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GracefulRestartConfig {
    /// Advertised restart time, whole seconds, at most 4095.
    pub restart_time: Duration,
    /// Long-lived graceful restart (RFC 9494): for how long after the restart time routes are kept as the last choice, whole
    /// seconds, at most 16777215 (24 bits). Peers are asked to keep ours so long, and we keep theirs for the smaller of this
    /// and what they ask for. `None`: the capability is not sent.
    pub long_lived_time: Option<Duration>,
    /// This process found forwarding state of a predecessor: set R and F until each peer sent End-of-RIB or the time is over.
    /// Read by [`Speaker::new`](crate::speaker::Speaker::new) only; a later `configure` does not start a restart.
    pub restarting: bool,
}

/// Who the far end has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteAs {
    /// Exactly this AS.
    Asn(Asn),
    /// Our own AS, whichever that is.
    Internal,
    /// Any AS but our own.
    External,
}

/// The next hop that we advertise for routes that we learned ourselves (locally originated ones always carry our own).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NextHopMode {
    /// Our own address, but for reflected routes, whose next hop stays (RFC 4456 10).
    #[default]
    Self_,
    /// As received.
    Keep,
    /// RFC 4271 5.1.3: a third-party next hop on the subnet shared with the peer stays, and internal peers see it as
    /// received; else our own.
    Auto,
}

/// Several paths of a prefix on one session (RFC 7911), by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddPath {
    /// Take them.
    pub receive: bool,
    /// Send them.
    pub send: bool,
    /// Send at most so many of a prefix, the best ones; `None`: all that are eligible. A path that the peer gave itself
    /// counts, and is not sent.
    pub send_max: Option<NonZeroU8>,
}

/// A cap on the prefixes received from a peer, per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPrefixes {
    /// So many are all right.
    pub limit: u32,
    /// What happens with the next one.
    pub action: MaxPrefixesAction,
}

/// What happens at the prefix limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxPrefixesAction {
    /// Say so, once for each time it is crossed.
    Warn,
    /// Accept no prefix beyond it.
    Reject,
    /// Cease (6/1) and stay down until `reset` or `set_enabled`, or for `restart` where it is given.
    Disable {
        /// Time until the next attempt.
        restart: Option<Duration>,
    },
}

/// How a neighbour is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerTarget {
    /// At this address.
    Address(IpAddr),
    /// Whoever sends router advertisements on the interface of this name: an unnumbered peer.
    Interface(String),
}

/// A BGP neighbour as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Unique name; the key of all operations on the peer.
    pub name: String,
    /// Where it is. One peer per address: the first one holds it, others stay down and say so.
    pub target: PeerTarget,
    /// Its TCP port, usually 179.
    pub port: u16,
    /// Its AS.
    pub remote_as: RemoteAs,
    /// Our AS towards this peer instead of the speaker's; external peers see both, this one first.
    pub local_as: Option<Asn>,
    /// Hold time to offer; `None`: no hold timer and no keepalives (0 on the wire).
    pub hold_time: Option<HoldTime>,
    /// Keepalive interval; a third of the negotiated hold time if `None`. Never more than that third.
    pub keepalive: Option<Duration>,
    /// Time between attempts to connect, jittered downwards by up to a quarter.
    pub connect_retry: Duration,
    /// Wait so long for the peer's OPEN before sending ours (RFC 4271 8.1.1, DelayOpen).
    pub delay_open: Option<Duration>,
    /// Never dial, only accept.
    pub passive: bool,
    /// Local address to bind when dialling.
    pub source: Option<IpAddr>,
    /// External peer up to so many hops away; `None`: directly connected (TTL 1).
    pub ebgp_multihop: Option<u8>,
    /// GTSM (RFC 5082): send with TTL 255 and accept nothing less.
    pub ttl_security: bool,
    /// Families to negotiate; never empty.
    pub families: Vec<Family>,
    /// Several paths of a prefix, in all families.
    pub add_path: AddPath,
    /// Offer IPv4 routes with IPv6 next hops (RFC 8950). A peer by interface is always offered them: it has no other address.
    pub extended_next_hop: bool,
    /// Next hop of the routes that we pass on.
    pub next_hop: NextHopMode,
    /// Accept our own AS so many times in a received AS_PATH.
    pub allow_as_in: u8,
    /// Replace the peer's AS by ours in AS_PATHs sent to it.
    pub as_override: bool,
    /// Take private AS numbers (RFC 6996) out of AS_PATHs sent to it, wherever they stand, but for its own.
    pub remove_private_as: bool,
    /// Honour BLACKHOLE (RFC 7999) in its routes to single addresses: traffic to them is discarded.
    pub blackhole: bool,
    /// This internal peer is our reflection client (RFC 4456).
    pub route_reflector_client: bool,
    /// TCP MD5 key (RFC 2385).
    pub password: Option<Secret>,
    /// Watch the path by BFD (RFC 5882). The session does not wait for it to come up, and ends when it goes down.
    pub bfd: Option<BfdConfig>,
    /// Cap on received prefixes.
    pub max_prefixes: Option<MaxPrefixes>,
    /// Import filters, in order; the first rule that decides ends the walk. Then the protective default.
    pub import: Vec<Arc<Filter>>,
    /// Export filters, likewise.
    pub export: Vec<Arc<Filter>>,
    /// Administratively down, with the text for the peer (RFC 9003; may be empty).
    pub shutdown: Option<String>,
    /// Offer graceful restart to this peer, where the speaker has it, and help it in its own restarts.
    pub graceful_restart: bool,
    /// Why the session must not come up at all, e.g. a missing secret. It stays down and shows this reason.
    pub admin_blocked: Option<String>,
}

impl PeerConfig {
    /// A peer with the defaults of the configuration objects: port 179, hold time 90 s, connect retry 5 s, both families.
    pub fn new(name: impl Into<String>, address: IpAddr, remote_as: RemoteAs) -> Self {
        PeerConfig {
            name: name.into(),
            target: PeerTarget::Address(address),
            port: 179,
            remote_as,
            local_as: None,
            hold_time: HoldTime::from_wire(90).expect("90 s is a legal hold time"),
            keepalive: None,
            connect_retry: Duration::from_secs(5),
            delay_open: None,
            passive: false,
            source: None,
            ebgp_multihop: None,
            ttl_security: false,
            families: Family::ALL.to_vec(),
            add_path: AddPath::default(),
            extended_next_hop: false,
            next_hop: NextHopMode::Self_,
            allow_as_in: 0,
            as_override: false,
            remove_private_as: false,
            blackhole: false,
            route_reflector_client: false,
            password: None,
            bfd: None,
            max_prefixes: None,
            import: Vec::new(),
            export: Vec::new(),
            shutdown: None,
            graceful_restart: true,
            admin_blocked: None,
        }
    }

    /// An unnumbered peer with the same defaults.
    pub fn on_interface(name: impl Into<String>, interface: impl Into<String>, remote_as: RemoteAs) -> Self {
        let target = PeerTarget::Interface(interface.into());
        PeerConfig { target, ..PeerConfig::new(name, Ipv6Addr::UNSPECIFIED.into(), remote_as) }
    }

    /// Whether IPv4 routes with IPv6 next hops are offered.
    pub fn offers_extended_next_hop(&self) -> bool {
        self.extended_next_hop || matches!(self.target, PeerTarget::Interface(_))
    }
}

/// A route that this node originates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRoute {
    /// What is reachable here.
    pub prefix: Prefix,
    /// Standard communities, AS in the high half. GRACEFUL_SHUTDOWN also lowers LOCAL_PREF to 0 (RFC 8326 4).
    pub communities: Vec<u32>,
    /// Large communities.
    pub large_communities: Vec<LargeCommunity>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF towards internal peers; 100 if `None`.
    pub local_pref: Option<u32>,
}

impl LocalRoute {
    /// A route without any attribute of choice.
    pub fn new(prefix: Prefix) -> Self {
        LocalRoute {
            prefix,
            communities: Vec::new(),
            large_communities: Vec::new(),
            med: None,
            local_pref: None,
        }
    }
}

/// How to reset a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Cease, administrative reset (6/4), then start again; also lifts a hold-down or a prefix-limit stop.
    Hard,
    /// Ask for all routes again (RFC 2918) and judge them anew.
    SoftIn,
    /// Send all routes again.
    SoftOut,
}
