//! Metrics for Prometheus, made from the rooms' own views at the moment of the scrape: nothing is counted twice, nothing
//! can drift. No label ever holds a prefix or a pod.

mod bgp;
mod classic;
mod cni;
mod policy;

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::api::server::{self, Api};
use crate::kernel;
use crate::kernel::fib::FibStats;

pub use cni::{Answered, CniCounters, Request};
pub use policy::ApplyTimes;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// How a scraper wants its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, 0.0.4.
    Classic,
}

impl Format {
    /// By the `Accept` header: OpenMetrics where it is named, and where nothing is.
    pub fn accepted(header: Option<&str>) -> Self {
        match header {
            Some(accept) if !accept.contains("openmetrics") && accept.contains("text/plain") => Self::Classic,
            _ => Self::OpenMetrics,
        }
    }

    /// For the answer's header.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The text of a scrape.
///
/// # Errors
/// The text could not be made; it is memory that failed then.
pub async fn render(api: &Api, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("manx");
    let facts = api.facts.get();
    gauge(
        &mut registry,
        "config_stale",
        "The source is not in sync, or an older version of it is in force",
        !facts.in_sync || facts.stale,
    );
    if let Some(handle) = api.bgp.get() {
        bgp::register(&mut registry, handle).await;
    }
    if let Some(fib) = &api.fib {
        register_fib(&mut registry, &fib.stats());
    }
    if let Some(policy) = &api.policy
        && let Ok(Some((status, kernel))) = Api::ask_policy(policy, |e, k| (e.status(), k.clone())).await
    {
        policy::register(&mut registry, &status, &kernel, &api.applied);
    }
    if let Some(ipam) = server::addresses(api).await {
        api.cni.register(&mut registry);
        cni::addresses(&mut registry, &ipam);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(match format {
        Format::OpenMetrics => text,
        Format::Classic => classic::from_openmetrics(&text),
    })
}

fn register_fib(registry: &mut Registry, stats: &FibStats) {
    let routes = Family::<StateLabels, Gauge>::default();
    let installed: usize = kernel::Family::BOTH.into_iter().map(|f| stats.installed(f)).sum();
    for (state, count) in [("installed", installed), ("missing", stats.missing), ("queued", stats.queued)] {
        routes.get_or_create(&StateLabels { state }).set(count as i64);
    }
    registry.register("fib_routes", "Routes of ours in the kernel by state", routes);
    let counters = [
        ("fib_repairs", "Routes put back after somebody else had removed or changed them", stats.repairs),
        ("fib_reinstalled", "Routes put back after a link or an address took them along", stats.reinstalled),
        ("fib_refusals", "Requests that the kernel refused", stats.refusals),
        ("fib_resyncs", "Times that the kernel's table was read again", stats.resyncs),
        ("fib_overruns", "Times that the kernel's notifications were lost", stats.overruns),
    ];
    for (name, help, value) in counters {
        registry.register(name, help, counter(value));
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: impl TryInto<i64> + Copy) {
    let gauge = Gauge::<i64>::default();
    gauge.set(value.try_into().unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn counter(value: u64) -> Counter<u64, AtomicU64> {
    let counter = Counter::<u64, AtomicU64>::default();
    counter.inc_by(value);
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_the_format_that_it_can_read() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("text/plain")), Format::Classic);
        assert_eq!(Format::accepted(Some("*/*")), Format::OpenMetrics);
        assert_eq!(Format::accepted(None), Format::OpenMetrics);
    }
}
