//! Policies and what they do with flows, as the admin API shows them.

use serde::{Deserialize, Serialize};

use super::{ApiVersion, EpochSeconds, PacketEnd, StatusProblem, kind};

kind!(
    /// `kind` of [`Verdict`].
    VerdictKind = Verdict
);
kind!(
    /// `kind` of [`PolicyList`].
    PolicyListKind = PolicyList
);
kind!(
    /// `kind` of [`PolicyDiff`].
    PolicyDiffKind = PolicyDiff
);
kind!(
    /// `kind` of [`PolicyRendering`].
    PolicyRenderingKind = PolicyRendering
);

/// What happens to a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `Verdict`.
    pub kind: VerdictKind,
    /// The source address that was used.
    pub source: String,
    /// The destination address that was used.
    pub destination: String,
    /// `Allow` or `Deny`.
    pub verdict: String,
    /// Every rule that was asked, in the order in which the packet meets them.
    pub steps: Vec<VerdictStep>,
}

/// What one policy, or what ended a direction, did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerdictStep {
    /// On which node; null: nobody knows where the pod runs.
    pub node: Option<String>,
    /// `egress` at the source, `ingress` at the destination.
    pub direction: String,
    /// `Admin`, `NetworkPolicy` or `Baseline`; null: no policy's doing.
    pub tier: Option<String>,
    /// The policy: `NAMESPACE/NAME`, kinds other than NetworkPolicy with a word and a colon before it.
    pub policy: Option<String>,
    /// Which of its rules of this direction, counted from 0; null: its end, or no policy.
    pub rule: Option<u64>,
    /// `Allow`, `Deny`, `Pass`, `Log`, `NoMatch`, or `Staged`: counted, not enforced.
    pub result: String,
    /// In words.
    pub reason: String,
    /// Packets that this very rule of the kernel has matched; null: not known, or another node's.
    pub counter: Option<u64>,
    /// Compiled here for another node, which enforces it.
    pub computed: bool,
}

/// Every policy of the cluster, in the order in which they are asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyList {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `PolicyList`.
    pub kind: PolicyListKind,
    /// By tier, order and name.
    pub items: Vec<PolicyRow>,
}

/// One policy, and how it stands on this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRow {
    /// Kind of the object; Calico's with that word before it.
    pub kind: String,
    /// Null for cluster-wide kinds.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// `Admin`, `NetworkPolicy` or `Baseline`.
    pub tier: String,
    /// Its place in the tier, lower first; null: none.
    pub order: Option<f64>,
    /// `metadata.generation`.
    pub generation: i64,
    /// Counted, not enforced.
    pub staged: bool,
    /// Pods of this node that it governs.
    pub pods: u64,
    /// Rules for ingress; null: it does not speak of ingress.
    pub ingress_rules: Option<u64>,
    /// Rules for egress; null: it does not speak of egress.
    pub egress_rules: Option<u64>,
    /// Since when this generation is in the kernel of this node; null: it is not.
    pub in_force_since: Option<EpochSeconds>,
    /// Why it is not.
    pub reason: Option<String>,
    /// Packets that opened a flow and that one of its rules matched; null: not known.
    pub matched: Option<u64>,
    /// Packets that opened a flow and that none of its rules matched; null: not known.
    pub unmatched: Option<u64>,
    /// What could not be understood.
    pub errors: Vec<StatusProblem>,
}

/// What proposed objects would change for flows of this node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDiff {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `PolicyDiff`.
    pub kind: PolicyDiffKind,
    /// What would be cut, then what would be opened.
    pub changes: Vec<FlowChange>,
    /// Flows that were tried: every pod with each kind of peer on each port that a rule names.
    pub flows_tried: u64,
    /// There were more flows than were tried.
    pub truncated: bool,
    /// Flows that live now (entries of conntrack) and would be ended.
    pub connections: Vec<LiveCut>,
    /// Live flows that were looked at; null: conntrack could not be read.
    pub connections_tried: Option<u64>,
    /// More of them would be ended than are listed.
    pub connections_omitted: u64,
    /// What is wrong with the proposed objects.
    pub errors: Vec<StatusProblem>,
}

/// A live flow that would be ended. Where it was translated: as policy sees it, between the opener and whom it reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveCut {
    /// The pod of this node that would deny it, `NAMESPACE/NAME`.
    pub pod: String,
    /// `ingress` or `egress` of the pod.
    pub direction: String,
    /// Who opened it.
    pub source: PacketEnd,
    /// Whom it reached.
    pub destination: PacketEnd,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or a number.
    pub protocol: String,
    /// What would decide: a policy and its rule, or words.
    pub by: String,
}

/// A change for flows of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowChange {
    /// `cut` or `opened`.
    pub change: String,
    /// `ingress` or `egress` of the pod.
    pub direction: String,
    /// The pod of this node, `NAMESPACE/NAME`.
    pub pod: String,
    /// Who is on the other side, in words.
    pub peer: String,
    /// Port and protocol.
    pub port: String,
    /// What would decide: a policy and its rule, or words.
    pub by: String,
    /// Source address of one such flow.
    pub source: String,
    /// Destination address of one such flow.
    pub destination: String,
}

/// The rules of one pod in the spelling of iptables-save.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRendering {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `PolicyRendering`.
    pub kind: PolicyRenderingKind,
    /// `NAMESPACE/NAME`.
    pub pod: String,
    /// Chains and, as comments, the sets that they name.
    pub text: String,
}
