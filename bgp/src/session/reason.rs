//! Why a session is down, or went: made where the event is judged and kept as a value, so that people, metrics and scripts
//! need not read it out of a sentence afterwards.

use std::fmt;
use std::io;

use serde::{Serialize, Serializer};

use crate::wire::iana::error;
use crate::wire::message::Notification;

/// What kind of event it was. The names are a contract: labels of metrics, and `cause` in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cause {
    /// The peer's host answers, its port does not (RST).
    TcpRefused,
    /// Nobody answers.
    TcpTimeout,
    /// The kernel has no way to the peer, or a router says so.
    TcpUnreachable,
    /// The source address is not this node's.
    NoLocalAddress,
    /// Dialling failed otherwise.
    TcpFailed,
    /// The connection ended before the session was up.
    TcpClosed,
    /// The connection of a session that was up ended without a NOTIFICATION.
    TcpLost,
    /// The peer was silent for the hold time.
    HoldTimer,
    /// The peer's OPEN was refused.
    OpenRefused,
    /// The peer sent what cannot be understood.
    Malformed,
    /// The peer sent a message that its state does not allow.
    Unexpected,
    /// The peer ended the session by a NOTIFICATION.
    NotificationReceived,
    /// The interface went down.
    InterfaceDown,
    /// Nobody was found on the peer's interface, or somebody else.
    NoNeighbor,
    /// BFD says that the peer does not answer.
    BfdDown,
    /// The peer opened a new session beside the old one.
    PeerRestarted,
    /// Disabled by configuration or by an operator.
    AdminDown,
    /// Reset by an operator.
    AdminReset,
    /// The configuration changed in a way that a session cannot follow.
    ConfigChanged,
    /// The peer was removed from the configuration.
    Deconfigured,
    /// The configuration does not allow a session: a missing secret, an address that another peer has.
    ConfigBlocked,
    /// More prefixes than allowed.
    PrefixLimit,
}

impl Cause {
    /// As it stands in metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Cause::TcpRefused => "tcp-refused",
            Cause::TcpTimeout => "tcp-timeout",
            Cause::TcpUnreachable => "tcp-unreachable",
            Cause::NoLocalAddress => "no-local-address",
            Cause::TcpFailed => "tcp-failed",
            Cause::TcpClosed => "tcp-closed",
            Cause::TcpLost => "tcp-lost",
            Cause::HoldTimer => "hold-timer",
            Cause::OpenRefused => "open-refused",
            Cause::Malformed => "malformed",
            Cause::Unexpected => "unexpected",
            Cause::NotificationReceived => "notification-received",
            Cause::InterfaceDown => "interface-down",
            Cause::NoNeighbor => "no-neighbor",
            Cause::BfdDown => "bfd-down",
            Cause::PeerRestarted => "peer-restarted",
            Cause::AdminDown => "admin-down",
            Cause::AdminReset => "admin-reset",
            Cause::ConfigChanged => "config-changed",
            Cause::Deconfigured => "deconfigured",
            Cause::ConfigBlocked => "config-blocked",
            Cause::PrefixLimit => "prefix-limit",
        }
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

/// Who sent a NOTIFICATION.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// The peer.
    Received,
    /// We.
    Sent,
}

impl Direction {
    /// `received` or `sent`.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Received => "received",
            Direction::Sent => "sent",
        }
    }
}

impl Serialize for Direction {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

/// Why a session is down or changed its state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reason {
    /// What kind of event it was.
    pub cause: Cause,
    /// The same in words, with what was observed.
    pub text: String,
    /// The NOTIFICATION that went over the connection, if one did.
    pub notification: Option<(Direction, Notification)>,
}

impl Reason {
    /// Without a NOTIFICATION.
    pub fn new(cause: Cause, text: impl Into<String>) -> Self {
        Reason { cause, text: text.into(), notification: None }
    }

    /// The dial failed.
    pub(super) fn connect(failure: &TransportError) -> Self {
        let cause = match failure.kind {
            io::ErrorKind::ConnectionRefused => Cause::TcpRefused,
            io::ErrorKind::TimedOut => Cause::TcpTimeout,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Cause::TcpUnreachable,
            io::ErrorKind::AddrNotAvailable => Cause::NoLocalAddress,
            _ => Cause::TcpFailed,
        };
        Reason::new(cause, format!("connect: {failure}"))
    }

    /// The peer ended it.
    pub(super) fn received(notification: &Notification) -> Self {
        Reason {
            cause: Cause::NotificationReceived,
            text: format!("received {notification}"),
            notification: Some((Direction::Received, notification.clone())),
        }
    }

    /// With the NOTIFICATION that we sent for it.
    #[must_use]
    pub fn and_sent(self, notification: &Notification) -> Self {
        Reason { notification: Some((Direction::Sent, notification.clone())), ..self }
    }

    /// What a NOTIFICATION of ours stands for: the peer's OPEN or another message was not as it should be.
    pub(super) fn fault_of(notification: &Notification) -> Cause {
        match notification.code {
            error::OPEN => Cause::OpenRefused,
            error::FSM => Cause::Unexpected,
            error::HOLD_TIMER => Cause::HoldTimer,
            _ => Cause::Malformed,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What the shell says of a dial or a connection that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportError {
    /// What the system calls it.
    pub kind: io::ErrorKind,
    /// In words.
    pub text: String,
}

impl From<io::Error> for TransportError {
    fn from(error: io::Error) -> Self {
        TransportError { kind: error.kind(), text: error.to_string() }
    }
}

impl From<&str> for TransportError {
    fn from(text: &str) -> Self {
        TransportError { kind: io::ErrorKind::Other, text: text.to_owned() }
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_error_decides_what_kind_of_failure_a_dial_is() {
        let cause = |kind| Reason::connect(&io::Error::from(kind).into()).cause;
        assert_eq!(cause(io::ErrorKind::ConnectionRefused), Cause::TcpRefused);
        assert_eq!(cause(io::ErrorKind::TimedOut), Cause::TcpTimeout);
        assert_eq!(cause(io::ErrorKind::HostUnreachable), Cause::TcpUnreachable);
        assert_eq!(cause(io::ErrorKind::AddrNotAvailable), Cause::NoLocalAddress);
        assert_eq!(Reason::connect(&"odd".into()).cause, Cause::TcpFailed);
    }
}
