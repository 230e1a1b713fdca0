//! What the run loop knows and the API shows: the one place where the two meet.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::api::bgp::PeerInfo;
use crate::desired::{BgpIntent, PeerObject};
use crate::policy_worker;
use crate::view::{EpochSeconds, Setting, StatusProblem};

/// The loop's facts, written by it alone.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Everything has been read once.
    pub in_sync: bool,
    /// Something in the source is unreadable, so that an older version is in force.
    pub stale: bool,
    /// What is wrong with the source.
    pub source_problems: Vec<StatusProblem>,
    /// What is wrong with the configuration of BGP, or unsupported in it.
    pub bgp_problems: Vec<StatusProblem>,
    /// How long peers have to find other ways when the node is drained.
    pub drain_delay: Duration,
    /// Our AS, once known.
    pub asn: Option<u32>,
    /// Our BGP identifier, once known.
    pub router_id: Option<String>,
    /// Where we listen, and why it does not work.
    pub listeners: BTreeMap<SocketAddr, Option<String>>,
    /// The InternalIPs of the Node object.
    pub node_addresses: Vec<String>,
    /// What we originate.
    pub originated: Vec<String>,
    /// Service addresses that we advertise.
    pub services: Vec<String>,
    /// Configured peers.
    pub peers: BTreeMap<String, PeerInfo>,
    /// What the peers of a range are, by name of the range.
    pub ranges: BTreeMap<String, PeerInfo>,
    /// BGPPeer objects, those of other nodes too.
    pub peer_objects: Vec<PeerObject>,
    /// All that the speaker should be and do.
    pub intent: Arc<BgpIntent>,
    /// What is in force of the network's settings.
    pub network: Vec<Setting>,
    /// A predecessor's routes are kept until its peers have told all.
    pub restarting: bool,
    /// The policy thread's own.
    pub policy: policy_worker::Kernel,
    /// Ranges of pod addresses.
    pub pod_cidrs: Vec<String>,
    /// Path of the conflist that was written.
    pub conflist: Option<String>,
    /// Why pods cannot be attached; `None`: they can.
    pub cni_blocked: Option<String>,
    /// Attachments held.
    pub attachments: u64,
    /// What pods send out of the cluster is translated.
    pub egress_nat: bool,
    /// Why that is not in the kernel as it should be; `None`: it is.
    pub egress_error: Option<String>,
    /// Settings of the namespace that cost something, failed kernel work.
    pub kernel_problems: Vec<StatusProblem>,
}

impl Facts {
    /// What a peer is by its configuration: its own, or that of the range from which it came.
    pub fn info(&self, peer: &str) -> Option<&PeerInfo> {
        let range = || peer.split_once('@').and_then(|(range, _)| self.ranges.get(range));
        self.peers.get(peer).or_else(range)
    }
}

/// Shared between the loop and the API.
#[derive(Clone, Debug, Default)]
pub struct SharedFacts(Arc<Mutex<Facts>>);

impl SharedFacts {
    /// Changes or reads facts. Short: the API waits meanwhile.
    pub fn with<R>(&self, f: impl FnOnce(&mut Facts) -> R) -> R {
        let mut facts: MutexGuard<'_, Facts> = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut facts)
    }

    /// A copy of all.
    pub fn get(&self) -> Facts {
        self.with(|f| f.clone())
    }
}

/// Seconds since the epoch, now.
pub fn epoch_now() -> EpochSeconds {
    epoch(std::time::SystemTime::now())
}

/// Seconds since the epoch; 0 for a clock before it.
pub fn epoch(at: std::time::SystemTime) -> EpochSeconds {
    at.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
