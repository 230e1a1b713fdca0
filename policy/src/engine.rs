//! The one door for the agent: cluster changes and kernel observations in, plans and explanations out.
//!
//! Pure: no process, no socket, no clock. The agent calls [`Engine::apply`] for every change, executes what
//! [`Engine::plan`] returns and reports back with [`Engine::applied`]; [`Engine::wants`] says what of the kernel must be read
//! before more can be planned.

use std::time::SystemTime;

use serde::Serialize;

use crate::model::{Endpoint, EndpointId, PodId, Problem, Update};
use crate::plan::{Observed, Outcome, Plan, PlanId, Wants};
use crate::state::State;
use crate::verdict::{Flow, FlowVerdict, verdict};

/// Where our jumps go in the built-in chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum JumpPosition {
    /// At the top: ours is the first word on pod traffic.
    #[default]
    Insert,
    /// At the end: the host's own rules come first, and what they accept escapes us. The guard is left out.
    Append,
}

/// What does not change while the agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// This node's name.
    pub node: String,
    /// All interfaces that begin so are pods': 1 to 13 bytes, as iptables takes a name of 15 bytes and a `+`.
    pub interface_prefix: String,
    /// Mark bits that are ours: four at least.
    pub mark_mask: u32,
    /// Where our jumps go.
    pub jumps: JumpPosition,
}

impl EngineConfig {
    /// The defaults for a node.
    pub fn new(node: impl Into<String>) -> Self {
        EngineConfig {
            node: node.into(),
            interface_prefix: "manx".into(),
            mark_mask: 0x0f00_0000,
            jumps: JumpPosition::Insert,
        }
    }
}

/// The configuration cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Too few mark bits.
    #[error(
        "mark mask {0:#010x} has fewer than four bits: give --mark-mask four bits that nothing else on this host uses"
    )]
    MarkMask(u32),
    /// A prefix that is empty, too long or not a part of an interface name.
    #[error("pod interface prefix {0:?}: give 1 to 13 letters, digits, '-', '_' or '.'")]
    InterfacePrefix(String),
}

/// Whether an endpoint's policy is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InForce {
    /// In force, the current one, since then.
    Since(SystemTime),
    /// Not (yet), and why: a sentence for the person who waits.
    Not(String),
}

/// What holds for one pod, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodPolicyView {
    /// `namespace/name`.
    pub pod: String,
    /// Host-network pods are never policed.
    pub host_network: bool,
    /// To the pod.
    pub ingress: DirectionView,
    /// From the pod.
    pub egress: DirectionView,
    /// The pod's interfaces on this node.
    pub endpoints: Vec<EndpointView>,
}

/// One direction of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DirectionView {
    /// Some policy selects the pod in this direction.
    pub isolated: bool,
    /// Every policy that selects it, staged ones too, by name.
    pub policies: Vec<PolicyView>,
}

/// One policy's part in a direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyView {
    /// `namespace/name`.
    pub name: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// Reported, not enforced.
    pub staged: bool,
    /// The rules in words, in their order.
    pub rules: Vec<String>,
    /// What could not be understood.
    pub problems: Vec<Problem>,
}

/// One interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointView {
    /// Name on the host.
    pub interface: String,
    /// Addresses from the attachment.
    pub addresses: Vec<std::net::IpAddr>,
    /// Since when its current policy is in the kernel; `None`: it is not.
    pub in_force_since: Option<SystemTime>,
    /// Why it is not.
    pub reason: Option<String>,
}

/// Figures and complaints for the status page.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct EngineStatus {
    /// The source has said that it is in sync.
    pub in_sync: bool,
    /// Attachments of this node.
    pub endpoints: usize,
    /// Of those, how many have their current policy in the kernel.
    pub endpoints_in_force: usize,
    /// Policies that select a pod of this node.
    pub active_policies: usize,
    /// Sets desired, both families.
    pub sets: usize,
    /// Members of those sets.
    pub set_members: usize,
    /// Steps of the last outcome that failed, and everything in objects that was refused.
    pub problems: Vec<Problem>,
}

/// The policy engine of one node.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    state: State,
    in_sync: bool,
}

impl Engine {
    /// An engine that knows nothing yet, neither of the cluster nor of the kernel.
    ///
    /// # Errors
    /// The configuration cannot work.
    pub fn new(config: EngineConfig) -> Result<Self, ConfigError> {
        if config.mark_mask.count_ones() < 4 {
            return Err(ConfigError::MarkMask(config.mark_mask));
        }
        let prefix = &config.interface_prefix;
        let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if prefix.is_empty() || prefix.len() > 13 || !prefix.chars().all(valid) {
            return Err(ConfigError::InterfacePrefix(prefix.clone()));
        }
        Ok(Engine { config, state: State::default(), in_sync: false })
    }

    /// Takes in a change of the cluster or of this node's attachments.
    pub fn apply(&mut self, update: Update) {
        self.state.apply(update);
    }

    /// The source has said that it is in sync: from now on the kernel is brought to the desired state and strangers among
    /// our names are swept. Before, only the closing dispatch is put where nothing is.
    pub fn set_in_sync(&mut self, in_sync: bool) {
        self.in_sync |= in_sync;
    }

    /// What of the kernel must be read and given to [`Engine::observe`] before [`Engine::plan`] can go on.
    pub fn wants(&self) -> Wants {
        Wants::default()
    }

    /// Takes in what the kernel holds: at start, after a failure, and whenever an audit has looked.
    pub fn observe(&mut self, observed: Observed) {
        drop(observed);
    }

    /// The next steps. Call again after [`Engine::applied`]; a plan that was never reported is made again.
    pub fn plan(&mut self) -> Plan {
        Plan::default()
    }

    /// Reports what became of a plan.
    pub fn applied(&mut self, plan: PlanId, outcome: Outcome) {
        drop((plan, outcome));
    }

    /// Is the current policy of this endpoint in the kernel? `None`: no such endpoint.
    pub fn in_force(&self, endpoint: &EndpointId) -> Option<InForce> {
        self.state.endpoint(endpoint).map(|_: &Endpoint| InForce::Not("nothing has been planned yet".into()))
    }

    /// What holds for a pod, wherever it runs. `None`: no such pod.
    pub fn policy_for(&self, namespace: &str, name: &str) -> Option<PodPolicyView> {
        let pod = self.state.pod(&PodId::new(namespace, name))?;
        let direction = || DirectionView { isolated: false, policies: Vec::new() };
        Some(PodPolicyView {
            pod: pod.id.to_string(),
            host_network: pod.host_network,
            ingress: direction(),
            egress: direction(),
            endpoints: Vec::new(),
        })
    }

    /// The oracle's word on a flow, from the definition and not from the rules in the kernel.
    pub fn verdict(&self, flow: &Flow) -> FlowVerdict {
        verdict(&self.state, flow)
    }

    /// The snapshot, for views.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Figures and complaints.
    pub fn status(&self) -> EngineStatus {
        EngineStatus { in_sync: self.in_sync, ..EngineStatus::default() }
    }

    /// The configuration.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }
}
