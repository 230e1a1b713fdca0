//! The agent as a whole: what it follows, what it does, what is wrong.

use serde::{Deserialize, Serialize};

use super::{ApiVersion, DrainPhase, EpochSeconds, kind};

kind!(
    /// `kind` of [`Status`].
    StatusKind = Status
);

/// The agent's state in one document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `Status`.
    pub kind: StatusKind,
    /// This node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// When the agent started.
    pub started: Option<EpochSeconds>,
    /// Where cluster state comes from.
    pub source: SourceStatus,
    /// The speaker; null when it is not enabled.
    pub bgp: Option<BgpStatus>,
    /// Policy enforcement; null when it is not enabled.
    pub policy: Option<PolicyStatus>,
    /// Service to the CNI plugin; null when it is not enabled.
    pub cni: Option<CniStatus>,
    /// What we keep in the kernel.
    pub kernel: KernelStatus,
}

/// Where cluster state comes from, and whether it can be believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// `manifests` or `kubernetes`.
    pub kind: String,
    /// The directory, or the API server.
    pub location: String,
    /// All of it has been read once. Before that nothing is written to the kernel.
    pub in_sync: bool,
    /// Something in it cannot be read at present, so that an older version of it is in force.
    pub stale: bool,
    /// What is wrong with it.
    pub errors: Vec<StatusProblem>,
}

/// A file or an object with which something is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusProblem {
    /// Name of the file within the manifest directory.
    pub file: Option<String>,
    /// Line in that file, from 1.
    pub line: Option<u32>,
    /// The object, such as `NetworkPolicy shop/web`.
    pub object: Option<String>,
    /// What is wrong and what is done about it.
    pub reason: String,
}

/// The BGP speaker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpStatus {
    /// Our AS.
    pub asn: Option<u32>,
    /// Our BGP identifier.
    pub router_id: Option<String>,
    /// Addresses that we listen on, `ADDRESS:PORT`.
    pub listening: Vec<String>,
    /// Peers configured for this node.
    pub peers: Option<u64>,
    /// Of these, Established.
    pub established: Option<u64>,
    /// Names of required peers that are not Established.
    pub required_down: Vec<String>,
    /// Prefixes in the Loc-RIB.
    pub prefixes: Option<u64>,
    /// Addresses of the node by its Node object (InternalIP).
    #[serde(default)]
    pub node_addresses: Vec<String>,
    /// Prefixes of our own that we advertise.
    pub originated: Vec<String>,
    /// Prefixes of Services that this node advertises.
    pub services: Vec<String>,
    /// Whether the node is drained, or about to be.
    pub drain: DrainPhase,
    /// A graceful restart of our own is going on: old routes are not swept yet.
    pub restarting: bool,
    /// What is wrong.
    pub errors: Vec<StatusProblem>,
}

/// Policy enforcement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// `nft` or `legacy`.
    pub backend: Option<String>,
    /// Policies known, of all kinds.
    pub policies: Option<u64>,
    /// Pod interfaces on this node.
    pub endpoints: Option<u64>,
    /// Of these, those whose policy is in the kernel.
    pub endpoints_in_force: Option<u64>,
    /// When the kernel last took a change.
    pub last_applied: Option<EpochSeconds>,
    /// A change waits to be applied, or failed and is tried again.
    pub pending: bool,
    /// What is wrong: policies that cannot be understood and close what they would have opened, failed applications.
    pub errors: Vec<StatusProblem>,
}

/// Service to the CNI plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniStatus {
    /// Pods can be attached.
    pub ready: bool,
    /// Why not; null when they can.
    pub reason: Option<String>,
    /// The CNI configuration that we wrote.
    pub conflist: Option<String>,
    /// The pod CIDRs that addresses come from.
    pub pod_cidrs: Vec<String>,
    /// Attachments held.
    pub attachments: Option<u64>,
    /// What pods send out of the cluster: `Off` or `Masquerade`.
    pub egress_nat: Option<String>,
}

/// What we keep in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelStatus {
    /// Routes that should be there; null when we write none.
    pub routes_wanted: Option<u64>,
    /// Of these, those that are.
    pub routes_installed: Option<u64>,
    /// Routes put back because somebody else had removed them.
    pub repairs: Option<u64>,
    /// Nexthop objects that our routes use; null where there are none.
    pub next_hop_objects: Option<u64>,
    /// net.ipv4.nexthop_compat_mode of this network namespace.
    pub next_hop_compat_mode: Option<u32>,
    /// What costs something and is no fault.
    pub notices: Vec<String>,
    /// What is wrong: missing tools or privileges, failed writes, settings of the namespace that cost something.
    pub errors: Vec<StatusProblem>,
}

impl Status {
    /// What keeps this agent from being healthy, one line each; empty when it is.
    pub fn complaints(&self) -> Vec<String> {
        let mut out = Vec::new();
        if !self.source.in_sync {
            out.push("source: not in sync, so nothing new is written to the kernel".to_owned());
        }
        out.extend(self.source.errors.iter().map(|e| format!("source: {e}")));
        if let Some(bgp) = &self.bgp {
            match bgp.drain {
                DrainPhase::Serving => {}
                DrainPhase::Draining => {
                    out.push("bgp: the node is being drained: its sessions end soon".to_owned());
                }
                DrainPhase::Drained => {
                    out.push("bgp: the node is drained: `manxctl node undrain` brings it back".to_owned());
                }
            }
            if !bgp.required_down.is_empty() {
                out.push(format!("bgp: not Established: {}", bgp.required_down.join(", ")));
            }
            out.extend(bgp.errors.iter().map(|e| format!("bgp: {e}")));
        }
        if let Some(policy) = &self.policy {
            // The source has told the same with file and line.
            let told = |e: &&StatusProblem| {
                self.source.errors.iter().any(|s| s.object == e.object && s.reason == e.reason)
            };
            out.extend(policy.errors.iter().filter(|e| !told(e)).map(|e| format!("policy: {e}")));
            match (policy.endpoints, policy.endpoints_in_force) {
                (Some(all), Some(done)) if done < all => {
                    out.push(format!("policy: {} of {all} pods wait for their policy", all - done));
                }
                _ => {}
            }
        }
        if let Some(cni) = self.cni.as_ref().filter(|cni| !cni.ready) {
            out.push(format!("cni: {}", cni.reason.as_deref().unwrap_or("not ready")));
        }
        out.extend(self.kernel.errors.iter().map(|e| format!("kernel: {e}")));
        out
    }
}

impl std::fmt::Display for StatusProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(file) = &self.file {
            f.write_str(file)?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.reason)
    }
}
