//! What the plugin asks of the agent, what its pods wait for, and which addresses they hold.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::view::Ipam;

/// Seconds; a pod's rules take a few milliseconds, and after ten seconds the plugin gives up.
const ENFORCE_BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    op: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AddressLabels {
    state: &'static str,
    family: &'static str,
}

/// What the plugin asked, as it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// An ADD that waits for its pod's policy.
    Add,
    /// A DEL, seen by the attachment that is gone.
    Del,
    /// A runtime that wants to know whether pods can be attached.
    Status,
}

/// How it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Done, or yes.
    Ok,
    /// Not now, with a reason.
    Refused,
    /// Nobody waited for the answer any more: the plugin's time was over.
    GivenUp,
}

/// Counted where it happens; cheap to clone.
#[derive(Clone, Debug)]
pub struct CniCounters {
    requests: Family<RequestLabels, Counter>,
    enforced: Histogram,
}

impl Default for CniCounters {
    fn default() -> Self {
        let counters = CniCounters { requests: Family::default(), enforced: Histogram::new(ENFORCE_BUCKETS) };
        // There from the start, so that a rate over them has a beginning.
        for op in ["ADD", "DEL", "STATUS"] {
            drop(counters.requests.get_or_create(&RequestLabels { op, result: "ok" }));
        }
        counters
    }
}

impl CniCounters {
    /// One more.
    pub fn count(&self, request: Request, answered: Answered) {
        let op = match request {
            Request::Add => "ADD",
            Request::Del => "DEL",
            Request::Status => "STATUS",
        };
        let result = match answered {
            Answered::Ok => "ok",
            Answered::Refused => "refused",
            Answered::GivenUp => "timeout",
        };
        self.requests.get_or_create(&RequestLabels { op, result }).inc();
    }

    /// From an ADD's question until its pod's policy was in the kernel.
    pub fn enforced(&self, took: Duration) {
        self.enforced.observe(took.as_secs_f64());
    }

    /// An ADD that waits. One that is dropped before its answer was given up.
    pub fn waiting(&self) -> Waiting {
        Waiting { counters: self.clone(), since: Instant::now(), answered: None }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Requests of the CNI plugin by verb and result; DEL by the attachments that are gone";
        registry.register("cni_requests", help, self.requests.clone());
        let help = "Time from an ADD's question until the policy of its pod was in the kernel";
        registry.register("pod_enforce_seconds", help, self.enforced.clone());
    }
}

/// Counts itself when it ends.
#[derive(Debug)]
pub struct Waiting {
    counters: CniCounters,
    since: Instant,
    answered: Option<Answered>,
}

impl Waiting {
    /// It has its answer.
    pub fn done(mut self, answered: Answered) {
        if answered == Answered::Ok {
            self.counters.enforced(self.since.elapsed());
        }
        self.answered = Some(answered);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.counters.count(Request::Add, self.answered.unwrap_or(Answered::GivenUp));
    }
}

/// Addresses of this node's pods by state and family: a /64 has so many that a sum over both would hide an IPv4 range that is full.
pub(super) fn addresses(registry: &mut Registry, ipam: &Ipam) {
    let by_state = Family::<AddressLabels, Gauge<f64, AtomicU64>>::default();
    for pool in &ipam.pools {
        let family = if pool.cidr.contains(':') { "ipv6" } else { "ipv4" };
        for (state, count) in [("used", pool.used), ("cooling", pool.cooling), ("free", pool.free)] {
            by_state.get_or_create(&AddressLabels { state, family }).inc_by(count as f64);
        }
    }
    registry.register("ipam_addresses", "Addresses for pods of this node by state and family", by_state);
}
