//! The result of ADD, in memory in one shape, on the wire in that of each CNI version.
//!
//! 0.1.0 and 0.2.0 know one address per family and no interfaces; 0.3.0 to 0.4.0 write a `version` beside each address;
//! 1.0.0 does not; 1.1.0 adds the MTU of interfaces and the attributes of routes. Pure.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use crate::json::Json;
use crate::spec::{Error, Version, code};

/// What one plugin or a chain of them has made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddResult {
    /// Interfaces, host ends among them.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<Address>,
    /// Routes inside the sandbox.
    pub routes: Vec<Route>,
    /// Name service.
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address; empty: unknown.
    pub mac: String,
    /// Its MTU, bytes.
    pub mtu: Option<u32>,
    /// Path of its network namespace; empty: the host's.
    pub sandbox: String,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// With its prefix length.
    pub address: IpNetwork,
    /// Gateway of its subnet.
    pub gateway: Option<IpAddr>,
    /// Index in `interfaces`.
    pub interface: Option<u32>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpNetwork,
    /// Gateway.
    pub gw: Option<IpAddr>,
    /// `mtu`, `advmss`, `priority`, `table`, `scope`, in this order.
    pub attributes: [Option<u32>; 5],
}

const ROUTE_ATTRIBUTES: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];

/// Name service, handed on and never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of servers.
    pub nameservers: Vec<String>,
    /// Local domain.
    pub domain: String,
    /// Search list.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl AddResult {
    /// Reads a `prevResult` of any version.
    ///
    /// # Errors
    /// Code 6 with what is wrong in it.
    pub fn parse(json: &Json) -> Result<Self, Error> {
        let mut out = Self {
            dns: json.object("dns").map_err(|e| bad(&e))?.map(Dns::parse).transpose()?.unwrap_or_default(),
            ..Self::default()
        };
        for interface in json.array("interfaces").map_err(|e| bad(&e))? {
            out.interfaces.push(Interface {
                name: text(interface, "name")?,
                mac: text(interface, "mac")?,
                mtu: interface.u32("mtu").map_err(|e| bad(&e))?,
                sandbox: text(interface, "sandbox")?,
            });
        }
        for ip in json.array("ips").map_err(|e| bad(&e))? {
            out.ips.push(Address {
                address: parsed(ip, "address")?.ok_or_else(|| invalid("an address without address"))?,
                gateway: parsed(ip, "gateway")?,
                interface: ip.u32("interface").map_err(|e| bad(&e))?,
            });
        }
        for route in json.array("routes").map_err(|e| bad(&e))? {
            out.routes.push(Route::parse(route)?);
        }
        for family in ["ip4", "ip6"] {
            let Some(ip) = json.object(family).map_err(|e| bad(&e))? else { continue };
            let address = parsed(ip, "ip")?.ok_or_else(|| invalid("an address without ip"))?;
            out.ips.push(Address { address, gateway: parsed(ip, "gateway")?, interface: None });
            for route in ip.array("routes").map_err(|e| bad(&e))? {
                out.routes.push(Route::parse(route)?);
            }
        }
        Ok(out)
    }

    /// Adds what a later plugin made; indices of its interfaces move along.
    pub fn extend(&mut self, later: Self) {
        let shift = u32::try_from(self.interfaces.len()).expect("interfaces are few");
        self.interfaces.extend(later.interfaces);
        self.ips.extend(
            later.ips.into_iter().map(|ip| Address { interface: ip.interface.map(|i| i + shift), ..ip }),
        );
        self.routes.extend(later.routes);
        if self.dns == Dns::default() {
            self.dns = later.dns;
        }
    }

    /// The text of a version.
    pub fn to_json(&self, version: Version) -> Value {
        let mut out = Map::new();
        out.insert("cniVersion".to_owned(), json!(version.as_str()));
        if version < Version::V0_3_0 {
            for (key, v4) in [("ip4", true), ("ip6", false)] {
                if let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == v4) {
                    out.insert(key.to_owned(), self.family(ip, v4));
                }
            }
        } else {
            let interfaces: Vec<Value> = self.interfaces.iter().map(|i| i.to_json(version)).collect();
            let ips: Vec<Value> = self.ips.iter().map(|ip| ip.to_json(version)).collect();
            let routes: Vec<Value> = self.routes.iter().map(|r| r.to_json(version)).collect();
            for (key, list) in [("interfaces", interfaces), ("ips", ips), ("routes", routes)] {
                if !list.is_empty() {
                    out.insert(key.to_owned(), Value::Array(list));
                }
            }
        }
        out.insert("dns".to_owned(), self.dns.to_json());
        Value::Object(out)
    }

    /// `ip4` or `ip6` of the first versions.
    fn family(&self, ip: &Address, v4: bool) -> Value {
        let mut out = Map::new();
        out.insert("ip".to_owned(), json!(ip.address.to_string()));
        if let Some(gateway) = ip.gateway {
            out.insert("gateway".to_owned(), json!(gateway.to_string()));
        }
        let routes = self.routes.iter().filter(|r| r.dst.is_ipv4() == v4);
        let routes: Vec<Value> = routes.map(|r| r.to_json(Version::V0_2_0)).collect();
        if !routes.is_empty() {
            out.insert("routes".to_owned(), Value::Array(routes));
        }
        Value::Object(out)
    }
}

impl Interface {
    fn to_json(&self, version: Version) -> Value {
        let mut out = Map::new();
        out.insert("name".to_owned(), json!(self.name));
        for (key, value) in [("mac", &self.mac), ("sandbox", &self.sandbox)] {
            if !value.is_empty() {
                out.insert(key.to_owned(), json!(value));
            }
        }
        if let Some(mtu) = self.mtu.filter(|_| version >= Version::V1_1_0) {
            out.insert("mtu".to_owned(), json!(mtu));
        }
        Value::Object(out)
    }
}

impl Address {
    fn to_json(&self, version: Version) -> Value {
        let mut out = Map::new();
        if version < Version::V1_0_0 {
            out.insert("version".to_owned(), json!(if self.address.is_ipv4() { "4" } else { "6" }));
        }
        if let Some(interface) = self.interface {
            out.insert("interface".to_owned(), json!(interface));
        }
        out.insert("address".to_owned(), json!(self.address.to_string()));
        if let Some(gateway) = self.gateway {
            out.insert("gateway".to_owned(), json!(gateway.to_string()));
        }
        Value::Object(out)
    }
}

impl Route {
    /// A route without attributes.
    pub fn new(dst: IpNetwork, gw: IpAddr) -> Self {
        Self { dst, gw: Some(gw), attributes: [None; 5] }
    }

    fn parse(json: &Json) -> Result<Self, Error> {
        let mut attributes = [None; 5];
        for (value, key) in attributes.iter_mut().zip(ROUTE_ATTRIBUTES) {
            *value = json.u32(key).map_err(|e| bad(&e))?;
        }
        let dst = parsed(json, "dst")?.ok_or_else(|| invalid("a route without dst"))?;
        Ok(Self { dst, gw: parsed(json, "gw")?, attributes })
    }

    fn to_json(&self, version: Version) -> Value {
        let mut out = Map::new();
        out.insert("dst".to_owned(), json!(self.dst.to_string()));
        if let Some(gw) = self.gw {
            out.insert("gw".to_owned(), json!(gw.to_string()));
        }
        if version >= Version::V1_1_0 {
            for (value, key) in self.attributes.iter().zip(ROUTE_ATTRIBUTES) {
                if let Some(value) = value {
                    out.insert(key.to_owned(), json!(value));
                }
            }
        }
        Value::Object(out)
    }
}

impl Dns {
    /// Reads a `dns` object.
    ///
    /// # Errors
    /// Code 6 with what is wrong in it.
    pub fn parse(json: &Json) -> Result<Self, Error> {
        let list = |key| -> Result<Vec<String>, Error> {
            Ok(json.strings(key).map_err(|e| bad(&e))?.into_iter().map(str::to_owned).collect())
        };
        Ok(Self {
            nameservers: list("nameservers")?,
            domain: text(json, "domain")?,
            search: list("search")?,
            options: list("options")?,
        })
    }

    fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (key, list) in
            [("nameservers", &self.nameservers), ("search", &self.search), ("options", &self.options)]
        {
            if !list.is_empty() {
                out.insert(key.to_owned(), json!(list));
            }
        }
        if !self.domain.is_empty() {
            out.insert("domain".to_owned(), json!(self.domain));
        }
        Value::Object(out)
    }
}

fn text(json: &Json, key: &str) -> Result<String, Error> {
    Ok(json.str(key).map_err(|e| bad(&e))?.unwrap_or_default().to_owned())
}

fn parsed<T: std::str::FromStr>(json: &Json, key: &str) -> Result<Option<T>, Error> {
    let Some(text) = json.str(key).map_err(|e| bad(&e))? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| invalid(&format!("{key} {text:?} is not an address")))
}

fn bad(error: &crate::json::WrongType) -> Error {
    invalid(&error.to_string())
}

fn invalid(details: &str) -> Error {
    Error::new(code::DECODING, "a result of another plugin cannot be read", details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::VERSIONS;

    fn dual_stack() -> AddResult {
        AddResult {
            interfaces: vec![
                Interface {
                    name: "manxd887cd28687".to_owned(),
                    mac: "ee:ee:ee:ee:ee:ee".to_owned(),
                    mtu: Some(1450),
                    sandbox: String::new(),
                },
                Interface {
                    name: "eth0".to_owned(),
                    mac: "02:00:00:00:00:01".to_owned(),
                    mtu: Some(1450),
                    sandbox: "/run/netns/a".to_owned(),
                },
            ],
            ips: vec![
                Address {
                    address: "10.0.0.5/32".parse().unwrap(),
                    gateway: Some("169.254.1.1".parse().unwrap()),
                    interface: Some(1),
                },
                Address {
                    address: "fd00::5/128".parse().unwrap(),
                    gateway: Some("fe80::1".parse().unwrap()),
                    interface: Some(1),
                },
            ],
            routes: vec![
                Route::new("0.0.0.0/0".parse().unwrap(), "169.254.1.1".parse().unwrap()),
                Route::new("::/0".parse().unwrap(), "fe80::1".parse().unwrap()),
            ],
            dns: Dns::default(),
        }
    }

    #[test]
    fn results_of_each_version() {
        for version in VERSIONS {
            let json = dual_stack().to_json(Version::parse(version).unwrap());
            insta::assert_json_snapshot!(format!("result-{version}"), json);
        }
    }

    #[test]
    fn each_version_reads_back_what_it_can_hold() {
        for version in VERSIONS {
            let version = Version::parse(version).unwrap();
            let text = serde_json::to_vec(&dual_stack().to_json(version)).unwrap();
            let read = AddResult::parse(&Json::parse(&text).unwrap()).unwrap();
            assert_eq!(read.to_json(version), dual_stack().to_json(version));
        }
    }

    #[test]
    fn a_later_plugin_is_appended_and_its_indices_move() {
        let mut first = dual_stack();
        first.extend(dual_stack());
        assert_eq!(first.interfaces.len(), 4);
        assert_eq!(
            first.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(),
            [Some(1), Some(1), Some(3), Some(3)]
        );
    }

    #[test]
    fn route_attributes_survive_in_1_1_0_only() {
        let text = br#"{"routes":[{"dst":"10.0.0.0/8","gw":"10.0.0.1","mtu":1400,"Priority":5,"table":0}]}"#;
        let result = AddResult::parse(&Json::parse(text).unwrap()).unwrap();
        insta::assert_json_snapshot!(result.to_json(Version::V1_1_0));
        insta::assert_json_snapshot!(result.to_json(Version::V1_0_0));
    }

    #[test]
    fn a_result_that_cannot_be_read_is_code_6() {
        for text in [
            r#"{"ips":[{"address":"10.0.0.300/24"}]}"#,
            r#"{"ips":[{}]}"#,
            r#"{"ips":{}}"#,
            r#"{"routes":[{"gw":"10.0.0.1"}]}"#,
            r#"{"dns":7}"#,
            r#"{"interfaces":[{"name":7}]}"#,
        ] {
            let error = AddResult::parse(&Json::parse(text.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.code, code::DECODING, "{text}");
        }
    }
}
