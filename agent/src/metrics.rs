//! Metrics for Prometheus, made from the rooms' own views at the moment of the scrape: nothing is counted twice, nothing
//! can drift. No label ever holds a prefix or a pod.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::api::server::Api;
use crate::kernel;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    peer: String,
    asn: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PrefixLabels {
    peer: String,
    family: String,
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// The text of a scrape.
///
/// # Errors
/// The text could not be made; it is memory that failed then.
pub async fn render(api: &Api) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("manx");
    let facts = api.facts.get();
    gauge(
        &mut registry,
        "config_stale",
        "The source is not in sync, or an older version of it is in force",
        !facts.in_sync || facts.stale,
    );
    if let Some(handle) = api.bgp.get()
        && let Ok(peers) = handle.with(|speaker, now| speaker.peers(now)).await
    {
        let up = Family::<PeerLabels, Gauge>::default();
        let prefixes = Family::<PrefixLabels, Gauge>::default();
        for peer in &peers {
            let labels = PeerLabels { peer: peer.name.clone(), asn: peer.remote_as.map_or(0, |a| a.0) };
            up.get_or_create(&labels).set(i64::from(peer.state == "Established"));
            for family in &peer.families {
                let stages = [
                    ("received", family.received),
                    ("accepted", family.accepted),
                    ("filtered", family.filtered),
                    ("advertised", family.advertised),
                ];
                for (stage, count) in stages {
                    let labels =
                        PrefixLabels { peer: peer.name.clone(), family: family.family.to_string(), stage };
                    prefixes.get_or_create(&labels).set(count as i64);
                }
            }
        }
        registry.register("bgp_session_up", "1 when the session is Established", up);
        registry.register("bgp_prefixes", "Prefixes by peer, family and stage", prefixes);
    }
    if let Some(fib) = &api.fib {
        let stats = fib.stats();
        let routes = Family::<StateLabels, Gauge>::default();
        let installed: usize = kernel::Family::BOTH.into_iter().map(|f| stats.installed(f)).sum();
        for (state, count) in [("installed", installed), ("missing", stats.missing), ("queued", stats.queued)]
        {
            routes.get_or_create(&StateLabels { state }).set(count as i64);
        }
        registry.register("fib_routes", "Routes of ours in the kernel by state", routes);
        let repairs = Counter::<u64, AtomicU64>::default();
        repairs.inc_by(stats.repairs);
        registry.register(
            "fib_repairs",
            "Routes put back after somebody else had removed or changed them",
            repairs,
        );
    }
    if let Some(policy) = &api.policy
        && let Ok(Some((status, kernel))) = Api::ask_policy(policy, |e, k| (e.status(), k.clone())).await
    {
        gauge(&mut registry, "policy_endpoints", "Pod interfaces on this node", status.endpoints);
        gauge(
            &mut registry,
            "policy_endpoints_in_force",
            "Of these, those whose policy is in the kernel",
            status.endpoints_in_force,
        );
        let took = Gauge::<f64, AtomicU64>::default();
        took.set(kernel.last_applied.map_or(0.0, |(_, took)| took.as_secs_f64()));
        registry.register("policy_apply_seconds", "What the last application took", took);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: impl TryInto<i64> + Copy) {
    let gauge = Gauge::<i64>::default();
    gauge.set(value.try_into().unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}
