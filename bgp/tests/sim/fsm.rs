//! The state machine of RFC 4271 8.2.2 as a table: every event of 8.1 in every state.
//!
//! What differs from the RFC, and why:
//! - Where a connection fails in Connect, OpenSent or Established the RFC goes to Idle or Active; here the peer's own
//!   dial is let in at once (Active), which with AutomaticStart is the same but for a refused connection.
//! - Events 4, 5 (passive start) differ from 1, 3 by the configured `passive` and lead to Active; events 6 and 7
//!   (DampPeerOscillations) are always on: the hold-down after failures grows (`trap_9`, IdleHoldTimer).
//! - Event 8 (AutomaticStop) is the prefix limit. Events 12 and 20 (DelayOpen) have tests of their own in `session`.
//! - Event 14 (Tcp_CR_Valid) and 15 (Tcp_CR_Invalid) are the listener's: strangers are refused in every state.
//! - Event 23 (OpenCollisionDump) is what the tests of trap 8 are about.

use manx_bgp::speaker::*;
use manx_bgp::wire::message::*;

use crate::bench::*;

const PEER: &str = "10.0.0.2";
/// Columns of the table.
const STATES: [&str; 6] = ["Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established"];

/// A speaker whose peer is in that state, and the connection where there is one.
fn in_state(state: &str) -> (Bench, Option<ConnId>) {
    let mut b = Bench::new();
    b.peer(PeerConfig::new("tor", ip(PEER), RemoteAs::External));
    let dial = (state != "Idle").then(|| b.dials[0].0);
    match state {
        // Held down: a NOTIFICATION has just come.
        "Idle" => {
            let conn = b.connect(PEER);
            b.send(conn, &Message::Notification(Notification::cease(4)));
        }
        "Connect" => {}
        "Active" => {
            let dial = b.dial();
            b.speaker.connect_failed(b.now, dial, "refused");
            b.pump();
        }
        _ => {
            let conn = b.connect(PEER);
            if state != "OpenSent" {
                b.send(conn, &Message::Open(open(TOR_AS, PEER)));
            }
            if state == "Established" {
                b.send(conn, &Message::Keepalive);
            }
        }
    }
    assert_eq!(b.state("tor"), state);
    let connected = dial.filter(|_| state.starts_with("Open") || state == "Established");
    connected.into_iter().for_each(|c| drop(b.messages(c)));
    (b, dial)
}

type Event = fn(&mut Bench, ConnId);

/// `-`: the event cannot happen there, since its timer does not run or there is no connection. Else the next state, and the
/// NOTIFICATION that is sent. One row an event, one column a state.
const TABLE: &[(&str, Event, [&str; 6])] = &[
    (
        "1 ManualStart, 3 AutomaticStart",
        |b, _| assert!(b.speaker.set_enabled(b.now, "tor", true, "")),
        ["Connect", "Connect", "Active", "OpenSent", "OpenConfirm", "Established"],
    ),
    (
        "2 ManualStop",
        |b, _| assert!(b.speaker.set_enabled(b.now, "tor", false, "")),
        ["Disabled", "Disabled", "Disabled", "Disabled 6/2", "Disabled 6/2", "Disabled 6/2"],
    ),
    (
        "4, 5 start with PassiveTcpEstablishment, after a stop",
        |b, _| {
            b.peer(PeerConfig { shutdown: Some(String::new()), ..Bench::tor("tor", PEER) });
            b.peer(Bench::tor("tor", PEER));
        },
        ["Active", "Active", "Active", "Active 6/2", "Active 6/2", "Active 6/2"],
    ),
    (
        "8 AutomaticStop",
        |b, _| {
            let limit = MaxPrefixes { limit: 0, action: MaxPrefixesAction::Disable { restart: None } };
            let config = PeerConfig::new("tor", ip(PEER), RemoteAs::External);
            b.peer(PeerConfig { max_prefixes: Some(limit), ..config });
            if let Some(conn) = b.up() {
                b.announce(conn, &["10.9.0.0/16"], &attributes(&[65001]), PEER);
            }
        },
        ["Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Idle 6/1"],
    ),
    (
        "9 ConnectRetryTimer_Expires, 13 IdleHoldTimer_Expires",
        |b, _| b.advance(secs(5)),
        ["Connect", "Connect", "Connect", "OpenSent", "OpenConfirm", "Established"],
    ),
    ("10 HoldTimer_Expires", |b, _| b.silence(), ["-", "-", "-", "Idle 4/0", "Idle 4/0", "Idle 4/0"]),
    (
        "11 KeepaliveTimer_Expires",
        |b, _| b.advance(secs(31)),
        ["-", "-", "-", "OpenSent", "OpenConfirm", "Established"],
    ),
    (
        "16 Tcp_CR_Acked",
        |b, conn| {
            let endpoints = b.endpoints(ip(PEER));
            b.speaker.connected(b.now, conn, endpoints);
        },
        // For a connection that is up already it says nothing new.
        ["-", "OpenSent", "Active", "OpenSent", "OpenConfirm", "Established"],
    ),
    (
        "17 TcpConnectionConfirmed",
        |b, _| {
            b.accept(PEER);
        },
        ["Idle", "OpenSent", "OpenSent", "OpenSent", "OpenConfirm", "Established"],
    ),
    (
        "18 TcpConnectionFails",
        |b, conn| {
            if b.state("tor") == "Connect" {
                b.speaker.connect_failed(b.now, conn, "refused");
            } else {
                b.speaker.closed(b.now, conn, "reset");
            }
        },
        ["-", "Active", "Active", "Active", "Idle", "Active"],
    ),
    (
        "19 BGPOpen",
        |b, conn| b.send(conn, &Message::Open(open(TOR_AS, PEER))),
        ["-", "-", "-", "OpenConfirm", "Idle 5/2", "Idle 5/3"],
    ),
    (
        "21 BGPHeaderErr",
        |b, conn| b.send_bytes(conn, &[0; 19]),
        ["-", "-", "-", "Idle 1/1", "Idle 1/1", "Idle 1/1"],
    ),
    (
        "22 BGPOpenMsgErr",
        |b, conn| {
            let mut version_5 = vec![0xff; 16];
            version_5.extend_from_slice(&[0, 29, 1, 5, 0, 1, 0, 90, 1, 1, 1, 1, 0]);
            b.send_bytes(conn, &version_5);
        },
        ["-", "-", "-", "Idle 2/1", "Idle 2/1", "Idle 2/1"],
    ),
    (
        "24 NotifMsgVerErr, 25 NotifMsg",
        |b, conn| b.send(conn, &Message::Notification(Notification::new(2, 1, [0, 4]))),
        ["-", "-", "-", "Idle", "Idle", "Idle"],
    ),
    (
        "26 KeepAliveMsg",
        |b, conn| b.send(conn, &Message::Keepalive),
        ["-", "-", "-", "Idle 5/1", "Established", "Established"],
    ),
    (
        "27 UpdateMsg",
        |b, conn| b.announce(conn, &["10.9.0.0/16"], &attributes(&[65001]), PEER),
        ["-", "-", "-", "Idle 5/1", "Idle 5/2", "Established"],
    ),
    (
        "28 UpdateMsgErr",
        |b, conn| {
            let mut bad_prefix = vec![0xff; 16];
            bad_prefix.extend_from_slice(&[0, 25, 2, 0, 2, 33, 10, 0, 0]);
            b.send_bytes(conn, &bad_prefix);
        },
        ["-", "-", "-", "Idle 5/1", "Idle 5/2", "Idle 3/10"],
    ),
];

impl Bench {
    /// The connection of the session that is up.
    fn up(&self) -> Option<ConnId> {
        (self.state("tor") == "Established").then_some(ConnId(1))
    }

    /// Lets time pass until a hold timer expires.
    fn silence(&mut self) {
        let before = self.state("tor");
        for _ in 0..250 {
            if self.state("tor") != before {
                return;
            }
            self.advance(secs(1));
        }
    }
}

#[test]
fn rfc4271_8_2_2_every_event_in_every_state() {
    for (event, act, expected) in TABLE {
        for (state, expected) in STATES.into_iter().zip(expected) {
            if *expected == "-" {
                continue;
            }
            let (mut b, conn) = in_state(state);
            let conn = conn.unwrap_or(ConnId(u64::MAX));
            act(&mut b, conn);
            b.pump();
            let mut outcome = b.state("tor").to_owned();
            let connected = !matches!(state, "Idle" | "Connect" | "Active");
            if let Some((code, subcode)) = connected.then(|| b.notification(conn)).flatten() {
                outcome += &format!(" {code}/{subcode}");
            }
            assert_eq!(outcome, *expected, "event {event} in {state}");
        }
    }
}
