//! Dropped packets: the latest, and the stream of `drops -f`.

use serde::{Deserialize, Serialize};

use super::{ApiVersion, EpochSeconds, kind};

kind!(
    /// `kind` of [`DropList`].
    DropListKind = DropList
);
kind!(
    /// `kind` of [`DropEvent`].
    DropEventKind = DropEvent
);

/// The latest packets that rules of this node have logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropList {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `DropList`.
    pub kind: DropListKind,
    /// Oldest first.
    pub items: Vec<DroppedPacket>,
}

/// A line of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropEvent {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `DropEvent`.
    pub kind: DropEventKind,
    /// This node.
    pub node: String,
    /// What it is: the fields of `type`.
    #[serde(flatten)]
    pub what: Dropping,
}

/// What a line of the stream is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Dropping {
    /// The stream begins: what is dropped from here on is told.
    Start {
        /// When.
        at: EpochSeconds,
    },
    /// A packet.
    Packet(Box<DroppedPacket>),
    /// This reader was too slow.
    Missed {
        /// So many packets were left out.
        count: u64,
    },
}

/// A packet that a rule has logged. Each rule logs ten a second at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DroppedPacket {
    /// When.
    pub at: EpochSeconds,
    /// `Drop`, or `Log` where a policy asks for no more.
    pub result: String,
    /// `ingress` of a pod or `egress`; null: neither was asked.
    pub direction: Option<String>,
    /// The pod whose policy it is, `NAMESPACE/NAME`.
    pub pod: Option<String>,
    /// Where it came from.
    pub source: PacketEnd,
    /// Where it was to go.
    pub destination: PacketEnd,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or a number.
    pub protocol: Option<String>,
    /// The policy whose rule decided; null: no single one.
    pub policy: Option<String>,
    /// Where no policy allows it: the policies that isolate the pod.
    pub isolated_by: Vec<String>,
    /// Tier of `policy`.
    pub tier: Option<String>,
    /// Which of its rules in this direction, counted from 0.
    pub rule: Option<u64>,
    /// What happened, in words.
    pub reason: String,
    /// The interface that it came in by.
    pub in_interface: Option<String>,
    /// The interface that it would have left by.
    pub out_interface: Option<String>,
}

/// One end of the way of a packet or a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketEnd {
    /// Its address.
    pub address: Option<String>,
    /// Its port, where the protocol has ports.
    pub port: Option<u16>,
    /// The pod that has the address.
    pub pod: Option<String>,
}
