//! BGPConfiguration: what holds for the speakers of all nodes.

use std::time::Duration;

use manx_bgp::types::{Asn, Prefix};
use schemars::JsonSchema;
use serde::Deserialize;

use super::issue::{Issue, Issues};
use super::values::{self, Scalar};

/// The fields as written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BgpConfigurationSpec {
    /// AS number of all nodes; the annotation `manx.dev/asn` of a Node goes over it.
    as_number: Option<Scalar>,
    /// Sessions between all nodes: Auto (only where there is no BGPPeer), "On" or "Off" (quoted; Enabled and Disabled need no quotes).
    node_to_node_mesh: Option<String>,
    /// TCP port on which the speaker listens.
    listen_port: Option<i64>,
    /// Equal-cost multipath.
    multipath: Option<MultipathSpec>,
    /// Graceful restart (RFC 4724).
    graceful_restart: Option<GracefulRestartSpec>,
    /// What draining a node does.
    drain: Option<DrainSpec>,
    /// Service addresses to advertise: those within these ranges.
    service_advertisement: Option<ServiceAdvertisementSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MultipathSpec {
    /// At most so many paths of a prefix are used.
    max_paths: Option<i64>,
    /// Paths through different neighbour ASes count as equal when their AS_PATHs are equally long.
    as_path_relax: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct GracefulRestartSpec {
    /// Advertise and honour it.
    enabled: Option<bool>,
    /// For how long peers keep our routes while the agent is away, whole seconds up to 4095s.
    restart_time: Option<Scalar>,
    /// For how long after it they are kept as the last choice (RFC 9494), whole seconds; 0s: not at all.
    long_lived_time: Option<Scalar>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct DrainSpec {
    /// GracefulShutdown: the community GRACEFUL_SHUTDOWN (RFC 8326) first, the end of the sessions after the delay.
    mode: Option<String>,
    /// From the community to the end of the sessions.
    delay: Option<Scalar>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ServiceAdvertisementSpec {
    /// Ranges for `spec.clusterIPs`.
    #[serde(default, rename = "clusterIPs")]
    cluster: Option<Vec<String>>,
    /// Ranges for `spec.externalIPs`.
    #[serde(default, rename = "externalIPs")]
    external: Option<Vec<String>>,
    /// Ranges for `status.loadBalancer.ingress[].ip`.
    #[serde(default, rename = "loadBalancerIPs")]
    load_balancer: Option<Vec<String>>,
}

/// The validated object; its default is what holds without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpConfiguration {
    /// Our AS, where a node's annotation does not say otherwise.
    pub asn: Asn,
    /// Sessions between all nodes.
    pub mesh: Mesh,
    /// TCP port to listen on.
    pub listen_port: u16,
    /// Equal-cost multipath.
    pub multipath: Multipath,
    /// Graceful restart, unless it is off.
    pub graceful_restart: Option<GracefulRestart>,
    /// What draining a node does.
    pub drain: Drain,
    /// Service addresses to advertise.
    pub service_advertisement: ServiceAdvertisement,
}

/// Whether every node peers with every other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mesh {
    /// Only when there is no BGPPeer object.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Equal-cost multipath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multipath {
    /// At most so many paths of a prefix are used; 1 to 128.
    pub max_paths: usize,
    /// Paths through different neighbour ASes count as equal when their AS_PATH lengths are.
    pub as_path_relax: bool,
}

/// Graceful restart, the same for all peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GracefulRestart {
    /// Restart time to advertise (RFC 4724), whole seconds up to 4095.
    pub restart_time: Duration,
    /// For how long after it routes are kept as the last choice (RFC 9494), whole seconds below 2^24; `None`: not at all.
    pub long_lived_time: Option<Duration>,
}

/// Draining: the pod CIDR is tagged with GRACEFUL_SHUTDOWN (RFC 8326), and after the delay the sessions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// From the tag to the Cease.
    pub delay: Duration,
}

/// Ranges; a Service address within one of its kind is advertised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAdvertisement {
    /// For `spec.clusterIPs`.
    pub cluster: Vec<Prefix>,
    /// For `spec.externalIPs`.
    pub external: Vec<Prefix>,
    /// For `status.loadBalancer.ingress[].ip`.
    pub load_balancer: Vec<Prefix>,
}

impl Default for BgpConfiguration {
    fn default() -> Self {
        BgpConfiguration {
            asn: Asn(64512),
            mesh: Mesh::Auto,
            listen_port: 179,
            multipath: Multipath { max_paths: 16, as_path_relax: true },
            graceful_restart: Some(GracefulRestart {
                restart_time: Duration::from_secs(120),
                long_lived_time: None,
            }),
            drain: Drain { delay: Duration::from_secs(30) },
            service_advertisement: ServiceAdvertisement::default(),
        }
    }
}

impl BgpConfiguration {
    /// Validates; the defaults fill what is not written.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn validate(spec: BgpConfigurationSpec) -> Result<Self, Vec<Issue>> {
        let mut issues = Issues::default();
        let default = BgpConfiguration::default();
        let asn = issues.or("spec.asNumber", spec.as_number.map(|n| values::asn(&n.0)), default.asn);
        let mesh = issues.or("spec.nodeToNodeMesh", spec.node_to_node_mesh.map(|m| mesh(&m)), default.mesh);
        let listen_port = spec.listen_port.map(|p| values::number_within(p, 1, 65535).map(|p| p as u16));
        let listen_port = issues.or("spec.listenPort", listen_port, default.listen_port);

        let raw = spec.multipath.unwrap_or_default();
        let max_paths = raw.max_paths.map(|n| values::number_within(n, 1, 128).map(|n| n as usize));
        let multipath = Multipath {
            max_paths: issues.or("spec.multipath.maxPaths", max_paths, default.multipath.max_paths),
            as_path_relax: raw.as_path_relax.unwrap_or(default.multipath.as_path_relax),
        };

        let raw = spec.graceful_restart.unwrap_or_default();
        let time = raw.restart_time.map(|t| restart_time(&t));
        let time = issues.or("spec.gracefulRestart.restartTime", time, Duration::from_secs(120));
        let long = raw.long_lived_time.map(|t| long_lived_time(&t));
        let long_lived_time = issues.or("spec.gracefulRestart.longLivedTime", long, None);
        let graceful_restart =
            raw.enabled.unwrap_or(true).then_some(GracefulRestart { restart_time: time, long_lived_time });

        let raw = spec.drain.unwrap_or_default();
        if let Some(mode) = raw.mode.filter(|m| m != "GracefulShutdown") {
            issues.add("spec.drain.mode", format!("{mode}: must be GracefulShutdown"));
        }
        let delay = raw.delay.map(|d| values::duration_within(&d, Duration::ZERO, Duration::from_secs(3600)));
        let drain = Drain { delay: issues.or("spec.drain.delay", delay, default.drain.delay) };

        let raw = spec.service_advertisement.unwrap_or_default();
        let mut ranges = |field: &str, list: Option<Vec<String>>| {
            let path = format!("spec.serviceAdvertisement.{field}");
            issues.each(&path, &list.unwrap_or_default(), |p| service_range(p))
        };
        let service_advertisement = ServiceAdvertisement {
            cluster: ranges("clusterIPs", raw.cluster),
            external: ranges("externalIPs", raw.external),
            load_balancer: ranges("loadBalancerIPs", raw.load_balancer),
        };
        issues.finish(BgpConfiguration {
            asn,
            mesh,
            listen_port,
            multipath,
            graceful_restart,
            drain,
            service_advertisement,
        })
    }
}

impl ServiceAdvertisement {
    /// The ranges of every kind.
    pub fn all(&self) -> impl Iterator<Item = Prefix> {
        [&self.cluster, &self.external, &self.load_balancer].into_iter().flatten().copied()
    }
}

/// What a range has and no Service is dropped, so that it cannot be everything.
fn service_range(text: &str) -> Result<Prefix, String> {
    match values::prefix(text)? {
        range if range.len() == 0 => {
            Err(format!("{text}: must be a range of Service addresses, not all there are"))
        }
        range => Ok(range),
    }
}

fn mesh(text: &str) -> Result<Mesh, String> {
    match text {
        "Auto" => Ok(Mesh::Auto),
        "On" | "Enabled" => Ok(Mesh::On),
        "Off" | "Disabled" => Ok(Mesh::Off),
        other => Err(format!("{other}: must be Auto, On or Off")),
    }
}

fn restart_time(text: &Scalar) -> Result<Duration, String> {
    whole_seconds(text, Duration::from_secs(1), Duration::from_secs(4095))
}

/// 0 is off, as on the wire (RFC 9494 3.1, a field of 24 bits).
fn long_lived_time(text: &Scalar) -> Result<Option<Duration>, String> {
    let time = whole_seconds(text, Duration::ZERO, Duration::from_secs((1 << 24) - 1))?;
    Ok((!time.is_zero()).then_some(time))
}

fn whole_seconds(text: &Scalar, least: Duration, most: Duration) -> Result<Duration, String> {
    let time = values::duration_within(text, least, most)?;
    if time.subsec_nanos() == 0 { Ok(time) } else { Err(format!("{text}: must be whole seconds")) }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn validate(spec: serde_json::Value) -> Result<BgpConfiguration, Vec<Issue>> {
        BgpConfiguration::validate(serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn an_empty_one_is_the_default() {
        assert_eq!(validate(json!({})).unwrap(), BgpConfiguration::default());
    }

    #[test]
    fn the_defaults_written_out_are_the_default() {
        let spec = json!({
            "asNumber": 64512, "nodeToNodeMesh": "Auto", "listenPort": 179,
            "multipath": {"maxPaths": 16, "asPathRelax": true},
            "gracefulRestart": {"enabled": true, "restartTime": "120s", "longLivedTime": "0s"},
            "drain": {"mode": "GracefulShutdown", "delay": "30s"},
            "serviceAdvertisement": {"clusterIPs": [], "externalIPs": [], "loadBalancerIPs": []}
        });
        assert_eq!(validate(spec).unwrap(), BgpConfiguration::default());
    }

    #[rstest]
    #[case(json!({"asNumber": 0}), "spec.asNumber")]
    #[case(json!({"nodeToNodeMesh": "Sometimes"}), "spec.nodeToNodeMesh")]
    #[case(json!({"listenPort": 65536}), "spec.listenPort")]
    #[case(json!({"multipath": {"maxPaths": 0}}), "spec.multipath.maxPaths")]
    #[case(json!({"gracefulRestart": {"restartTime": "4096s"}}), "spec.gracefulRestart.restartTime")]
    #[case(json!({"gracefulRestart": {"restartTime": "1s500ms"}}), "spec.gracefulRestart.restartTime")]
    #[case(json!({"gracefulRestart": {"longLivedTime": "4661h"}}), "spec.gracefulRestart.longLivedTime")]
    #[case(json!({"gracefulRestart": {"longLivedTime": "100ms"}}), "spec.gracefulRestart.longLivedTime")]
    #[case(json!({"drain": {"mode": "Abrupt"}}), "spec.drain.mode")]
    #[case(json!({"serviceAdvertisement": {"externalIPs": ["10.0.0.0/8", "10.0.0.1/8"]}}),
           "spec.serviceAdvertisement.externalIPs[1]")]
    #[case(json!({"serviceAdvertisement": {"clusterIPs": ["0.0.0.0/0"]}}), "spec.serviceAdvertisement.clusterIPs[0]")]
    fn what_is_wrong_is_named_by_its_path(#[case] spec: serde_json::Value, #[case] path: &str) {
        let issues = validate(spec).unwrap_err();
        assert_eq!(issues.iter().map(|i| i.path.as_str()).collect::<Vec<_>>(), [path]);
    }

    #[test]
    fn graceful_restart_can_be_switched_off() {
        let config = validate(json!({"gracefulRestart": {"enabled": false}})).unwrap();
        assert_eq!(config.graceful_restart, None);
    }

    #[test]
    fn routes_can_be_kept_for_long() {
        let config = validate(json!({"gracefulRestart": {"longLivedTime": "24h"}})).unwrap();
        let long = config.graceful_restart.unwrap().long_lived_time;
        assert_eq!(long, Some(Duration::from_secs(86400)));
    }
}
