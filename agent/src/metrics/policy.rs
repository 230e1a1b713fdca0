//! The packet filter: whose policy is in force, how long the kernel takes for a change, what rules have dropped.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use manx_policy::drops;
use manx_policy::engine::EngineStatus;
use manx_policy::model::Direction;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{counter, gauge};
use crate::policy_worker::Kernel;

/// Seconds; members of sets take a tenth of a millisecond, a large cluster at the start half a second.
const APPLY_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// How long the kernel took for each change that it was given; cheap to clone.
#[derive(Clone, Debug)]
pub struct ApplyTimes(Histogram);

impl Default for ApplyTimes {
    fn default() -> Self {
        ApplyTimes(Histogram::new(APPLY_BUCKETS))
    }
}

impl ApplyTimes {
    /// One more.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// Policies that deny are few; all other drops are told by reason alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    kind: &'static str,
    namespace: String,
    policy: String,
    direction: &'static str,
    reason: &'static str,
}

impl DropLabels {
    fn of(kind: &drops::Kind) -> Self {
        let policy = kind.policy.as_ref();
        DropLabels {
            kind: policy.map_or("", |policy| policy.kind.as_str()),
            namespace: policy
                .and_then(|policy| policy.namespace.as_ref())
                .map_or(String::new(), ToString::to_string),
            policy: policy.map_or(String::new(), |policy| policy.name.to_string()),
            direction: kind.direction.map_or("", Direction::as_str),
            reason: kind.reason.as_str(),
        }
    }
}

pub(super) fn register(registry: &mut Registry, status: &EngineStatus, kernel: &Kernel, times: &ApplyTimes) {
    gauge(registry, "policy_endpoints", "Pod interfaces on this node", status.endpoints);
    gauge(
        registry,
        "policy_endpoints_in_force",
        "Of these, those whose policy is in the kernel",
        status.endpoints_in_force,
    );
    let help = "Time that the kernel took for a change of rules and sets";
    registry.register("policy_apply_seconds", help, times.0.clone());
    let drops = Family::<DropLabels, Counter<u64, AtomicU64>>::default();
    for (kind, packets) in kernel.dropped.iter() {
        drops.get_or_create(&DropLabels::of(kind)).inc_by(*packets);
    }
    let help =
        "Packets of pods dropped, by policy and reason; read from the counters of rules every 30 seconds";
    registry.register("policy_drops", help, drops);
    let help = "Times that rules of ours were put right after another program had changed them";
    registry.register("policy_repairs", help, counter(kernel.repairs));
}
