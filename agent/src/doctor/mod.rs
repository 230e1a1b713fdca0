//! What breaks networks like this one, and how to mend it: checks over what was observed of a node.
//!
//! ```text
//! collect (IO: /proc, ip, iptables-save, nft, ss, the agent's status) -> Snapshot
//! Snapshot -> settings, filters, plugin, speaker, services (pure)      -> Check: observed value and remedy
//! ```
//!
//! A check knows nothing but the snapshot, so that each has its tests without a kernel; none needs the agent, which may be
//! what is broken.

pub mod collect;
mod filters;
mod plugin;
mod services;
mod settings;
pub mod snapshot;
mod speaker;

use crate::view::{Check, CheckResult, Doctor};
use snapshot::Snapshot;

/// Runs every check.
pub fn examine(snapshot: &Snapshot) -> Doctor {
    let checks: Vec<Check> = [
        speaker::agent(snapshot),
        settings::forwarding(snapshot),
        settings::rp_filter(snapshot),
        settings::multipath_hash(snapshot),
        settings::next_hop_compat_mode(snapshot),
        settings::router_advertisements(snapshot),
        settings::bridge_netfilter(snapshot),
        settings::conntrack_table(snapshot),
        settings::tools(snapshot),
        settings::modules(snapshot),
        filters::forward_policy(snapshot),
        filters::firewalls(snapshot),
        filters::back_ends(snapshot),
        plugin::conflist(snapshot),
        plugin::binary(snapshot),
        plugin::mtu(snapshot),
        speaker::port(snapshot),
        speaker::md5(snapshot),
        speaker::next_hop_objects(snapshot),
        speaker::addresses(snapshot),
        speaker::pod_cidrs(snapshot),
        services::targets(snapshot),
        services::host_network(snapshot),
    ]
    .into_iter()
    .collect();
    let found = |check: &Check| matches!(check.result, CheckResult::Warning | CheckResult::Problem);
    Doctor { node: snapshot.node.clone(), healthy: !checks.iter().any(found), checks, ..Doctor::default() }
}

fn ok(name: &str, observed: impl Into<String>) -> Check {
    Check { name: name.to_owned(), result: CheckResult::Ok, observed: observed.into(), remedy: None }
}

fn unknown(name: &str, observed: impl Into<String>) -> Check {
    Check { name: name.to_owned(), result: CheckResult::Unknown, observed: observed.into(), remedy: None }
}

fn warning(name: &str, observed: impl Into<String>, remedy: impl Into<String>) -> Check {
    let remedy = Some(remedy.into());
    Check { name: name.to_owned(), result: CheckResult::Warning, observed: observed.into(), remedy }
}

fn problem(name: &str, observed: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { result: CheckResult::Problem, ..warning(name, observed, remedy) }
}
