//! NetworkConfiguration: address ranges, egress NAT and MTU of the whole cluster.

use manx_bgp::types::Prefix;
use schemars::JsonSchema;
use serde::Deserialize;

use super::issue::{Issue, Issues};
use super::values;

/// The fields as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfigurationSpec {
    /// Ranges that the nodes' pod CIDRs are cut from.
    #[serde(default, rename = "clusterCIDRs")]
    cluster_cidrs: Option<Vec<String>>,
    /// Translation of what pods send out of the cluster.
    #[serde(default, rename = "egressNat")]
    egress_nat: Option<EgressNatSpec>,
    /// Ranges from which pods may ask for fixed addresses.
    #[serde(default, rename = "addressPools")]
    address_pools: Option<Vec<AddressPoolSpec>>,
    /// MTU of pod interfaces; 0: that of the uplinks.
    #[serde(default)]
    mtu: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EgressNatSpec {
    /// Off, or Masquerade: what leaves the cluster carries the node's address.
    #[serde(default)]
    mode: Option<String>,
    /// Destinations that are not translated, besides the cluster's own.
    #[serde(default, rename = "excludeCIDRs")]
    exclude_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddressPoolSpec {
    /// Name of the pool.
    name: String,
    /// Its ranges.
    cidrs: Vec<String>,
}

/// The validated object; its default is what holds without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkConfiguration {
    /// Ranges that pod CIDRs are cut from.
    pub cluster_cidrs: Vec<Prefix>,
    /// Translation of what leaves the cluster; `None`: off.
    pub egress_nat: Option<EgressNat>,
    /// Ranges that pods may ask fixed addresses from.
    pub address_pools: Vec<AddressPool>,
    /// MTU of pod interfaces, 1280 to 65535; `None`: that of the uplinks.
    pub mtu: Option<u32>,
}

/// Egress NAT that is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressNat {
    /// Destinations that are not translated, besides the cluster's own.
    pub exclude: Vec<Prefix>,
}

/// A named set of ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPool {
    /// Its name.
    pub name: String,
    /// Its ranges.
    pub cidrs: Vec<Prefix>,
}

impl NetworkConfiguration {
    /// Validates; the defaults fill what is not written.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn validate(spec: NetworkConfigurationSpec) -> Result<Self, Vec<Issue>> {
        let mut issues = Issues::default();
        let cluster = spec.cluster_cidrs.unwrap_or_default();
        let cluster_cidrs = issues.each("spec.clusterCIDRs", &cluster, |p| values::prefix(p));

        let nat = spec.egress_nat.unwrap_or_default();
        let exclude = nat.exclude_cidrs.unwrap_or_default();
        let exclude = issues.each("spec.egressNat.excludeCIDRs", &exclude, |p| values::prefix(p));
        let egress_nat = match nat.mode.as_deref() {
            None | Some("Off") => None,
            Some("Masquerade") => Some(EgressNat { exclude }),
            Some(other) => {
                issues.add("spec.egressNat.mode", format!("{other}: must be \"Off\" or Masquerade"));
                None
            }
        };

        let mut address_pools: Vec<AddressPool> = Vec::new();
        for (i, pool) in spec.address_pools.unwrap_or_default().into_iter().enumerate() {
            let path = format!("spec.addressPools[{i}]");
            let name = issues.take(format!("{path}.name"), values::name(&pool.name)).unwrap_or_default();
            if address_pools.iter().any(|p| p.name == name) {
                issues.add(format!("{path}.name"), format!("{name}: another pool has this name"));
            }
            let cidrs = issues.each(&format!("{path}.cidrs"), &pool.cidrs, |p| values::prefix(p));
            address_pools.push(AddressPool { name, cidrs });
        }

        let mtu = match spec.mtu {
            None | Some(0) => None,
            // IPv6 needs 1280 (RFC 8200 5).
            Some(n) => issues.take("spec.mtu", values::number_within(n, 1280, 65535)).map(|n| n as u32),
        };
        issues.finish(NetworkConfiguration { cluster_cidrs, egress_nat, address_pools, mtu })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn validate(spec: serde_json::Value) -> Result<NetworkConfiguration, Vec<Issue>> {
        NetworkConfiguration::validate(serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn the_written_defaults_are_the_default() {
        let spec = json!({"clusterCIDRs": [], "egressNat": {"mode": "Off", "excludeCIDRs": []}, "mtu": 0});
        assert_eq!(validate(spec).unwrap(), NetworkConfiguration::default());
    }

    #[rstest]
    #[case(json!({"clusterCIDRs": ["10.244.0.0"]}), "spec.clusterCIDRs[0]")]
    #[case(json!({"egressNat": {"mode": "Snat"}}), "spec.egressNat.mode")]
    #[case(json!({"egressNat": {"excludeCIDRs": ["x"]}}), "spec.egressNat.excludeCIDRs[0]")]
    #[case(json!({"addressPools": [{"name": "a", "cidrs": ["10.0.0.1/8"]}]}), "spec.addressPools[0].cidrs[0]")]
    #[case(json!({"addressPools": [{"name": "a", "cidrs": []}, {"name": "a", "cidrs": []}]}), "spec.addressPools[1].name")]
    #[case(json!({"mtu": 576}), "spec.mtu")]
    fn what_is_wrong_is_named_by_its_path(#[case] spec: serde_json::Value, #[case] path: &str) {
        let issues = validate(spec).unwrap_err();
        assert_eq!(issues.iter().map(|i| i.path.as_str()).collect::<Vec<_>>(), [path]);
    }
}
