//! Pods, their addresses and what polices them, as the admin API shows them.

use serde::{Deserialize, Serialize};

use super::{ApiVersion, EpochSeconds, kind};

kind!(
    /// `kind` of [`PodPolicy`].
    PodPolicyKind = PodPolicy
);
kind!(
    /// `kind` of [`PodPolicyList`].
    PodPolicyListKind = PodPolicyList
);
kind!(
    /// `kind` of [`Ipam`].
    IpamKind = Ipam
);
kind!(
    /// `kind` of [`PodList`].
    PodListKind = PodList
);

/// The policies that hold for one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodPolicy {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `PodPolicy`.
    pub kind: PodPolicyKind,
    /// `NAMESPACE/NAME`.
    pub pod: String,
    /// What may come in.
    pub ingress: Direction,
    /// What may go out.
    pub egress: Direction,
    /// Since when the kernel enforces just this; null: not yet, or another node enforces it.
    pub in_force_since: Option<EpochSeconds>,
}

/// One direction of a pod's traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Direction {
    /// Some policy selects the pod for this direction: what none of them allows is dropped.
    pub isolated: bool,
    /// The policies that select it, `NAMESPACE/NAME`, in order.
    pub policies: Vec<String>,
}

/// The policies that hold for the pods of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodPolicyList {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `PodPolicyList`.
    pub kind: PodPolicyListKind,
    /// In the order of pod names.
    pub items: Vec<PodPolicy>,
}

/// Addresses of this node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipam {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `Ipam`.
    pub kind: IpamKind,
    /// The ranges that addresses come from.
    pub pools: Vec<Pool>,
    /// The addresses in use.
    pub allocations: Vec<Allocation>,
    /// Addresses that were given back and are not given out again yet.
    #[serde(default)]
    pub cooling: Vec<Cooling>,
    /// Addresses held by attachments whose ADD or DEL crashed; given back once nothing of them is left in the kernel.
    #[serde(default)]
    pub leaked: Vec<Leaked>,
}

/// An address that rests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cooling {
    /// The address.
    pub ip: String,
    /// When it can be given out again; it is earlier when nothing else is free.
    pub until: EpochSeconds,
}

/// An address that nobody who finished holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leaked {
    /// The address.
    pub ip: String,
    /// The runtime's sandbox id.
    pub container_id: String,
    /// Interface name inside the pod.
    pub ifname: String,
}

/// A range of pod addresses. Counts may exceed 64 bits in IPv6.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The range.
    pub cidr: String,
    /// Addresses that pods can have.
    pub total: u128,
    /// Of these, held by pods.
    pub used: u128,
    /// Of these, given back a short while ago and not given out again yet.
    pub cooling: u128,
    /// Of these, free now.
    pub free: u128,
}

/// An address and the attachment that holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Allocation {
    /// The address.
    pub ip: String,
    /// The pod's namespace; null for an attachment without pod arguments.
    pub namespace: Option<String>,
    /// The pod's name; null for an attachment without pod arguments.
    pub pod: Option<String>,
    /// The runtime's sandbox id.
    pub container_id: String,
    /// Interface name inside the pod.
    pub ifname: String,
    /// Since when.
    #[serde(default)]
    pub since: Option<EpochSeconds>,
}

/// Pods attached to this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodList {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `PodList`.
    pub kind: PodListKind,
    /// In the order of namespace and name.
    pub items: Vec<PodRow>,
}

/// A pod in one line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRow {
    /// Namespace; null for an attachment without pod arguments.
    pub namespace: Option<String>,
    /// Name; null for an attachment without pod arguments.
    pub name: Option<String>,
    /// The pod's UID, where the runtime gave it.
    pub uid: Option<String>,
    /// The node it runs on.
    pub node: String,
    /// Its addresses, IPv4 first.
    pub ips: Vec<String>,
    /// Its interface on the host.
    pub interface: String,
    /// The runtime's sandbox id.
    pub container_id: String,
    /// Since when its policy is in the kernel; null: not yet.
    pub policy_in_force_since: Option<EpochSeconds>,
}
