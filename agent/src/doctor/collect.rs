//! Looks at this node: /proc, the tools that are there, the agent's files. Changes nothing; what cannot be looked at is left out.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use ipnetwork::IpNetwork;
use manx_cni::conflist::PLUGIN;
use manx_cni::node::NodeConfig;
use serde_json::Value;

use super::snapshot::{Interface, Route, Snapshot};
use crate::kernel::sysctl;
use crate::view::Status;

const SETTINGS: &[&str] = &[
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.fib_multipath_hash_policy",
    "net.ipv6.fib_multipath_hash_policy",
    "net.ipv4.nexthop_compat_mode",
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
];
const TOOLS: &[&str] =
    &["iptables-nft-restore", "ip6tables-nft-restore", "iptables-legacy-save", "ip6tables-legacy-save", "ip"];
/// A part of the kernel and a file that is there when it is.
const MODULES: &[(&str, &str)] = &[
    ("nf_conntrack", "/proc/sys/net/netfilter/nf_conntrack_max"),
    ("nfnetlink_log", "/proc/net/netfilter/nfnetlink_log"),
];

/// Where to look.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The agent's run directory.
    pub run_dir: &'a Path,
    /// Where the container runtime looks for configurations.
    pub cni_conf_dir: &'a Path,
    /// Where it looks for plugins.
    pub cni_bin_dir: &'a Path,
}

/// Observes this node; `agent` is its agent's status, or why that cannot be had.
pub fn observe(places: &Places<'_>, agent: Result<Status, String>) -> Snapshot {
    let told = NodeConfig::read(places.run_dir).ok();
    let interfaces = interfaces();
    let mut sysctls: BTreeMap<String, String> =
        SETTINGS.iter().filter_map(|name| Some(((*name).to_owned(), sysctl::read(name).ok()?))).collect();
    for name in interfaces.keys() {
        for setting in [format!("net/ipv4/conf/{name}/rp_filter"), format!("net/ipv6/conf/{name}/accept_ra")]
        {
            sysctls.extend(sysctl::read(&setting).ok().map(|value| (setting, value)));
        }
    }
    let tables = output("nft", &["list", "tables"])
        .map(|text| text.lines().map(|l| l.trim_start_matches("table ").to_owned()).collect::<Vec<_>>());
    let nft_proxy = tables.iter().flatten().filter(|t| t.ends_with(" kube-proxy")).filter_map(|table| {
        let (family, name) = table.split_once(' ')?;
        output("nft", &["list", "table", family, name])
    });
    let node = agent.as_ref().map(|status| status.node.clone()).ok();
    Snapshot {
        node: node.or(told.as_ref().map(|t| t.node_name.clone())),
        sysctls,
        interfaces,
        routes: routes(),
        filters: filters(),
        nft_proxy: nft_proxy.collect::<Vec<_>>().join("\n"),
        nft_tables: tables,
        tools: TOOLS.iter().map(|tool| (*tool, installed(tool))).collect(),
        modules: modules(),
        ufw_enabled: fs::read_to_string("/etc/ufw/ufw.conf")
            .is_ok_and(|text| text.lines().any(|l| l.trim().eq_ignore_ascii_case("enabled=yes"))),
        conflists: conflists(places.cni_conf_dir),
        plugin_installed: places.cni_bin_dir.join(PLUGIN).is_file(),
        pod_mtu: told.as_ref().map(|t| t.mtu),
        pod_prefix: told.as_ref().map_or_else(|| "manx".to_owned(), |t| t.interface_prefix.clone()),
        pod_cidrs: told.map(|t| t.pod_cidrs).unwrap_or_default(),
        port_179: output("ss", &["-Hltnp", "sport = :179"]).map(|text| listeners(&text)),
        md5: md5(),
        next_hop_objects: installed("ip").then(|| output("ip", &["nexthop", "list"]).is_some()),
        agent: Some(agent),
    }
}

/// What a program prints; `None`: it is not there, or says no.
pub fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let out = Command::new(program).args(arguments).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn installed(program: &str) -> bool {
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(std::path::PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(usual).any(|dir| dir.join(program).is_file())
}

fn modules() -> BTreeMap<&'static str, bool> {
    let mut modules: BTreeMap<_, _> =
        MODULES.iter().map(|(name, file)| (*name, Path::new(file).exists())).collect();
    if installed("ipset") {
        modules.insert("ip_set", output("ipset", &["list", "-n"]).is_some());
    }
    modules
}

/// Rules of both back ends. iptables-legacy is asked only where it has tables: asking would load its modules.
fn filters() -> BTreeMap<&'static str, Option<String>> {
    let tables = |file: &str| fs::read_to_string(file).is_ok_and(|text| !text.trim().is_empty());
    let mut filters = BTreeMap::from([
        ("nft4", output("iptables-nft-save", &[])),
        ("nft6", output("ip6tables-nft-save", &[])),
    ]);
    if tables("/proc/net/ip_tables_names") {
        filters.insert("legacy4", output("iptables-legacy-save", &[]));
    }
    if tables("/proc/net/ip6_tables_names") {
        filters.insert("legacy6", output("ip6tables-legacy-save", &[]));
    }
    filters
}

fn json(arguments: &[&str]) -> Option<Vec<Value>> {
    let text = output("ip", arguments)?;
    serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).ok()
}

fn interfaces() -> BTreeMap<String, Interface> {
    let mut all = BTreeMap::new();
    for link in json(&["-j", "-d", "address", "show"]).unwrap_or_default() {
        let Some(name) = link["ifname"].as_str() else { continue };
        let addresses = link["addr_info"].as_array().into_iter().flatten().filter_map(|a| {
            let ip = a["local"].as_str()?.parse::<IpAddr>().ok()?;
            let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            let length = u8::try_from(a["prefixlen"].as_u64()?).ok()?;
            IpNetwork::new(ip, length).ok().filter(|_| !link_local)
        });
        let flags = link["flags"].as_array().cloned().unwrap_or_default();
        let interface = Interface {
            up: flags.contains(&"UP".into()) && flags.contains(&"LOWER_UP".into()),
            mtu: link["mtu"].as_u64().and_then(|mtu| u32::try_from(mtu).ok()).unwrap_or_default(),
            kind: link["linkinfo"]["info_kind"].as_str().map(str::to_owned),
            master: link["master"].as_str().map(str::to_owned),
            addresses: addresses.collect(),
        };
        all.insert(name.to_owned(), interface);
    }
    all
}

fn routes() -> Option<Vec<Route>> {
    let mut all = Vec::new();
    for (family, everywhere) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        for route in json(&["-j", "-N", family, "route", "show"])? {
            all.extend(self::route(&route, everywhere));
        }
    }
    Some(all)
}

/// Numbers in place of names, but for the protocols that the kernel itself uses.
fn route(route: &Value, everywhere: &str) -> Option<Route> {
    let prefix = match route["dst"].as_str()? {
        "default" => everywhere,
        text => text,
    };
    let kind = match route["type"].as_str() {
        None | Some("unicast" | "1") => "unicast",
        Some("blackhole" | "6") => "blackhole",
        Some("unreachable" | "7") => "unreachable",
        Some("prohibit" | "8") => "prohibit",
        Some(other) => other,
    };
    let protocol = match route["protocol"].as_str().unwrap_or_default() {
        "2" => "kernel",
        "3" => "boot",
        "4" => "static",
        "9" => "ra",
        other => other,
    };
    let hops = route["nexthops"].as_array().into_iter().flatten();
    let devices = hops.chain([route]).filter_map(|hop| hop["dev"].as_str()).map(str::to_owned);
    Some(Route {
        prefix: prefix.parse().ok()?,
        kind: kind.to_owned(),
        devices: devices.collect(),
        protocol: protocol.to_owned(),
    })
}

fn conflists(dir: &Path) -> Option<Vec<String>> {
    let names = fs::read_dir(dir).ok()?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let configuration = |name: &String| {
        Path::new(name)
            .extension()
            .and_then(|e| e.to_str())
            .is_some_and(|e| ["conf", "conflist", "json"].contains(&e))
    };
    let mut names: Vec<String> = names.filter(configuration).collect();
    names.sort();
    Some(names)
}

/// `LISTEN 0 8 10.1.0.1:179 0.0.0.0:* users:(("bird",pid=1,fd=2))`; without privilege there is no program.
fn listeners(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let address = line.split_whitespace().nth(3)?;
            let program = line.split_once("users:((\"").and_then(|(_, rest)| rest.split('"').next());
            Some((address.to_owned(), program.unwrap_or_default().to_owned()))
        })
        .collect()
}

/// Whether this kernel takes a key, tried on a socket that goes nowhere.
fn md5() -> Option<Result<(), String>> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    let nobody = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let tried = manx_bgp::net::sockopt::set_md5(&socket, nobody, None, Some(b"doctor"));
    Some(tried.map_err(|e| e.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn routes_are_read_with_numbers_and_with_names() {
        let read = |value: Value| route(&value, "0.0.0.0/0").unwrap();
        let multipath =
            read(json!({"dst": "default", "protocol": "77", "nexthops": [{"dev": "a"}, {"dev": "b"}]}));
        assert_eq!((multipath.prefix.to_string().as_str(), multipath.devices.len()), ("0.0.0.0/0", 2));
        assert_eq!(read(json!({"type": "6", "dst": "10.0.0.0/24", "protocol": "77"})).kind, "blackhole");
        assert_eq!(read(json!({"dst": "10.0.0.1", "protocol": "2", "dev": "x"})).prefix.prefix(), 32);
        assert!(route(&json!({"dst": "x"}), "::/0").is_none());
    }

    #[test]
    fn listeners_are_read_with_their_program() {
        let text =
            "LISTEN 0 8 0.0.0.0:179 0.0.0.0:* users:((\"bird\",pid=1,fd=7))\nLISTEN 0 8 [::]:179 [::]:*\n";
        let all = listeners(text);
        assert_eq!(all[0], ("0.0.0.0:179".to_owned(), "bird".to_owned()));
        assert_eq!(all[1].1, "");
    }
}
