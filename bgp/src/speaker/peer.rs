//! A peer as the speaker holds it: configuration, session, what its last OPEN said, counters.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::BytesMut;

use crate::bfd::{BfdEnds, BfdStatus};
use crate::session::{Cause, Negotiated, Reason, Session};
use crate::speaker::helper::Helping;
use crate::speaker::history::{DISABLED, History};
use crate::speaker::ranges::Membership;
use crate::speaker::refresh::Refreshing;
use crate::speaker::{
    ConnId, Endpoints, MessagesView, PeerAddr, PeerConfig, PeerTarget, RemoteAs, SocketOptions,
};
use crate::types::{Asn, PeerType, PerFamily};
use crate::wire::header::Framer;
use crate::wire::iana::cease;
use crate::wire::message::Notification;

/// A configured peer.
pub(super) struct Peer {
    pub(super) config: PeerConfig,
    /// Where it is; `None`: nobody was found on its interface yet.
    pub(super) remote: Option<PeerAddr>,
    /// Why nobody was found.
    pub(super) missing: String,
    pub(super) bfd: Option<Watch>,
    pub(super) session: Session,
    /// Over the configuration's `shutdown`: enabled (`None` inside), or disabled with a text.
    pub(super) admin_override: Option<Option<String>>,
    /// Another peer holds the address.
    pub(super) conflict: Option<String>,
    /// Stopped by itself, for too many prefixes.
    pub(super) held: Option<Held>,
    /// What the last Established session agreed on.
    pub(super) negotiated: Option<Negotiated>,
    /// Of the session that is up.
    pub(super) endpoints: Option<Endpoints>,
    pub(super) end_of_rib: PerFamily<bool>,
    /// KEEPALIVEs on the session that is up, beyond the one that brought it up.
    pub(super) keepalives: u64,
    pub(super) helping: Option<Helping>,
    /// On the session that is up, people know of refused prefixes beyond the limit.
    pub(super) limit_told: PerFamily<bool>,
    pub(super) refreshing: Refreshing,
    /// To be asked for again once the peer's End-of-RIB is there.
    pub(super) ask_after_end_of_rib: PerFamily<bool>,
    /// It came from a range.
    pub(super) member: Option<Membership>,
    pub(super) messages: MessagesView,
    pub(super) history: History,
    /// Connections that `Effect::Close` has named and whose last words were not fetched yet, or were.
    pub(super) closing: VecDeque<ConnId>,
    /// The entry in the speaker's timers.
    pub(super) scheduled: Option<Instant>,
}

/// A stop for too many prefixes.
pub(super) struct Held {
    pub(super) reason: String,
    /// When it ends by itself; `None`: when somebody resets the peer.
    pub(super) until: Option<Instant>,
}

/// BFD watches over the peer.
pub(super) struct Watch {
    pub(super) ends: BfdEnds,
    /// As it last stood; `None`: nothing was heard of it yet.
    pub(super) status: Option<BfdStatus>,
}

/// Why a peer must not have a session.
pub(super) struct Blocked {
    pub(super) cease: Notification,
    pub(super) reason: Reason,
    /// By an administrator: shown as "Disabled".
    pub(super) disabled: bool,
}

impl Peer {
    pub(super) fn new(config: PeerConfig, session: Session) -> Self {
        Peer {
            remote: match config.target {
                PeerTarget::Address(ip) => Some(ip.into()),
                PeerTarget::Interface(_) => None,
            },
            missing: match &config.target {
                PeerTarget::Address(_) => String::new(),
                PeerTarget::Interface(name) => format!("no router advertisement on {name} yet"),
            },
            bfd: None,
            config,
            session,
            admin_override: None,
            conflict: None,
            held: None,
            negotiated: None,
            endpoints: None,
            end_of_rib: PerFamily::both(false),
            keepalives: 0,
            helping: None,
            limit_told: PerFamily::both(false),
            refreshing: PerFamily::both(None),
            ask_after_end_of_rib: PerFamily::both(false),
            member: None,
            messages: MessagesView::default(),
            history: History::new(),
            closing: VecDeque::new(),
            scheduled: None,
        }
    }

    /// Why it must stay down, the administrator's will first.
    pub(super) fn blocked(&self, stopping: Option<&str>) -> Option<Blocked> {
        let (disabled, by) = match (&self.admin_override, stopping) {
            (_, Some(text)) => (Some(text), ""),
            (Some(message), None) => (message.as_deref(), " by an operator"),
            (None, None) => (self.config.shutdown.as_deref(), ""),
        };
        if let Some(text) = disabled {
            let colon = if text.is_empty() { "" } else { ": " };
            let reason = Reason::new(Cause::AdminDown, format!("administratively down{by}{colon}{text}"));
            let cease = Notification::cease_with_text(cease::ADMINISTRATIVE_SHUTDOWN, text);
            return Some(Blocked { cease, reason, disabled: true });
        }
        let configured = self.config.admin_blocked.as_ref().or(self.conflict.as_ref());
        let missing = self.remote.is_none().then_some(&self.missing);
        let (cause, text) = match (configured, missing) {
            (Some(text), _) => (Cause::ConfigBlocked, text),
            (None, Some(text)) => (Cause::NoNeighbor, text),
            (None, None) => (Cause::PrefixLimit, &self.held.as_ref()?.reason),
        };
        let cease = Notification::cease(cease::CONFIGURATION_CHANGE);
        Some(Blocked { cease, reason: Reason::new(cause, text.clone()), disabled: false })
    }

    /// The state as people see it.
    pub(super) fn state_name(&self, stopping: Option<&str>) -> &'static str {
        match self.blocked(stopping) {
            Some(Blocked { disabled: true, .. }) => DISABLED,
            _ => self.session.state().name(),
        }
    }

    /// Internal or external.
    pub(super) fn peer_type(&self, speaker_as: Asn) -> PeerType {
        peer_type(&self.config, speaker_as)
    }

    /// What its sockets need.
    pub(super) fn socket_options(&self, speaker_as: Asn) -> SocketOptions {
        socket_options(&self.config, speaker_as)
    }

    /// When a peer of a range that has gone and left no routes is forgotten.
    pub(super) fn leaving_at(&self) -> Option<Instant> {
        self.member.as_ref().and_then(|m| m.leaves).filter(|_| self.helping.is_none())
    }

    /// The earliest of its timers.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let helping = self.helping.as_ref().and_then(Helping::deadline);
        let refreshing = [self.refreshing.ipv4, self.refreshing.ipv6].into_iter().flatten();
        let stopped = self.held.as_ref().and_then(|held| held.until);
        let session = self.session.deadline().into_iter();
        session.chain(helping).chain(refreshing).chain(stopped).chain(self.leaving_at()).min()
    }
}

/// Internal or external. The configuration tells, since an OPEN that disagrees with it is refused.
fn peer_type(config: &PeerConfig, speaker_as: Asn) -> PeerType {
    match config.remote_as {
        RemoteAs::Internal => PeerType::Internal,
        RemoteAs::External => PeerType::External,
        RemoteAs::Asn(asn) if asn == config.local_as.unwrap_or(speaker_as) => PeerType::Internal,
        RemoteAs::Asn(_) => PeerType::External,
    }
}

/// What the sockets of such a peer need (RFC 4271 leaves TTLs open; external peers are taken to be one hop away unless
/// configured otherwise, internal ones anywhere).
pub(super) fn socket_options(config: &PeerConfig, speaker_as: Asn) -> SocketOptions {
    let external = peer_type(config, speaker_as) == PeerType::External;
    let (ttl, min_ttl) = match (config.ttl_security, config.ebgp_multihop) {
        // RFC 5082 3, trap 25: 255 out, and nothing that a router has touched comes in; n hops may take n - 1 off.
        (true, hops) => (Some(255), Some(255 - hops.unwrap_or(1).saturating_sub(1))),
        (false, Some(hops)) if external => (Some(hops), None),
        (false, None) if external => (Some(1), None),
        (false, _) => (None, None),
    };
    SocketOptions { md5: config.password.clone(), ttl, min_ttl }
}

/// A connection or a dial.
pub(super) struct Conn {
    pub(super) peer: u32,
    /// `None` while dialling.
    pub(super) endpoints: Option<Endpoints>,
    pub(super) framer: Framer,
    /// Messages of the session; UPDATEs are made when they are fetched.
    pub(super) outbox: BytesMut,
    /// `Effect::Close` has been given.
    pub(super) closing: bool,
    /// `Effect::Transmit` has been given and not been answered to the end.
    pub(super) notified: bool,
}

impl Conn {
    pub(super) fn new(peer: u32, endpoints: Option<Endpoints>) -> Self {
        Conn {
            peer,
            endpoints,
            framer: Framer::new(),
            outbox: BytesMut::new(),
            closing: false,
            notified: false,
        }
    }
}
