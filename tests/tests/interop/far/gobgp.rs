//! GoBGP's spelling.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use manx_tests::routers::gobgp::Gobgp;
use serde_json::Value;

use super::{Config, Seen, router_id};
use crate::rack::{Over, address};

pub(super) fn config(n: u8, config: &Config) -> String {
    let mut text = format!(
        "[global.config]\n as = {}\n router-id = \"{}\"\n local-address-list = [\"{}\", \"{}\"]\n",
        config.asn,
        router_id(n),
        address(n, Over::V4),
        address(n, Over::V6),
    );
    for session in &config.sessions {
        let _ = writeln!(
            text,
            "[[neighbors]]\n [neighbors.config]\n  neighbor-address = \"{}\"\n  peer-as = {}",
            session.remote(),
            session.remote_as
        );
        if let Some(password) = session.password {
            let _ = writeln!(text, "  auth-password = \"{password}\"");
        }
        let _ = writeln!(
            text,
            " [neighbors.timers.config]\n  connect-retry = 1\n  idle-hold-time-after-reset = 1\n  hold-time = {}\n  keepalive-interval = {}",
            session.hold,
            session.hold / 3
        );
        let _ = writeln!(
            text,
            " [neighbors.transport.config]\n  local-address = \"{}\"",
            address(n, session.over)
        );
        if session.passive {
            let _ = writeln!(text, "  passive-mode = true");
        }
        if session.ttl_security {
            let _ = writeln!(text, " [neighbors.ttl-security.config]\n  enabled = true\n  ttl-min = 255");
        }
        if session.client {
            let id = router_id(n);
            let _ = writeln!(
                text,
                " [neighbors.route-reflector.config]\n  route-reflector-client = true\n  route-reflector-cluster-id = \"{id}\""
            );
        }
        if session.graceful {
            let _ =
                writeln!(text, " [neighbors.graceful-restart.config]\n  enabled = true\n  restart-time = 60");
        }
        for family in ["ipv4", "ipv6"] {
            let _ = writeln!(
                text,
                " [[neighbors.afi-safis]]\n  [neighbors.afi-safis.config]\n   afi-safi-name = \"{family}-unicast\""
            );
            if session.graceful {
                let _ =
                    writeln!(text, "  [neighbors.afi-safis.mp-graceful-restart.config]\n   enabled = true");
            }
        }
        text.push_str(&session.lines);
        text.push_str(&session.extra);
    }
    text.push_str(&config.extra);
    text
}

/// Its routes are told on the command line.
pub(super) fn announce(gobgp: &Gobgp, n: u8, config: &Config) {
    for network in &config.networks {
        let (family, over) = if network.is_v4() { ("ipv4", Over::V4) } else { ("ipv6", Over::V6) };
        let mut words = format!("global rib -a {family} add {} nexthop {}", network.prefix, address(n, over));
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                let _ = write!(words, " {name} {value}");
            }
        };
        add("med", network.med.map(|v| v.to_string()));
        add("local-pref", network.local_pref.map(|v| v.to_string()));
        add("community", network.community.map(str::to_owned));
        add("large-community", network.large_community.map(str::to_owned));
        add("aspath", network.prepend.map(|v| v.to_string()));
        gobgp.ask(&words).unwrap();
    }
}

pub(super) fn is_up(gobgp: &Gobgp, remote: IpAddr) -> bool {
    gobgp.ask(&format!("neighbor {remote}")).unwrap().contains("BGP state = ESTABLISHED")
}

pub(super) fn route(gobgp: &Gobgp, prefix: &str) -> Option<Seen> {
    seen(shown(gobgp, prefix).first()?)
}

pub(super) fn paths(gobgp: &Gobgp, prefix: &str) -> BTreeSet<String> {
    shown(gobgp, prefix).iter().filter_map(seen).map(|seen| seen.as_path).collect()
}

fn shown(gobgp: &Gobgp, prefix: &str) -> Vec<Value> {
    let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
    let shown = gobgp.ask_json(&format!("global rib -a {family} {prefix}")).unwrap_or_default();
    // {"prefix": [path, ...]} or [path, ...], by version.
    shown.as_array().or_else(|| shown.get(prefix)?.as_array()).cloned().unwrap_or_default()
}

fn seen(path: &Value) -> Option<Seen> {
    let mut seen = Seen { stale: path["stale"] == true, ..Seen::default() };
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    for attribute in path["attrs"].as_array()? {
        let value = &attribute["value"];
        match attribute["type"].as_u64()? {
            2 => {
                let segments = attribute["as_paths"].as_array()?.iter();
                let asns = segments.flat_map(|s| s["asns"].as_array().cloned().unwrap_or_default());
                seen.as_path = asns.map(|a| a.to_string()).collect::<Vec<_>>().join(" ");
            }
            3 | 14 => {
                let hop = attribute["nexthop"].as_str()?.split('%').next()?;
                seen.next_hops.insert(hop.parse().ok()?);
            }
            4 => seen.med = number(&attribute["metric"]),
            5 => seen.local_pref = number(value),
            8 => {
                let all = attribute["communities"].as_array()?.iter().filter_map(Value::as_u64);
                seen.communities = all.map(|c| format!("{}:{}", c >> 16, c & 0xffff)).collect();
            }
            9 => seen.originator = value.as_str().map(str::to_owned),
            10 => {
                let all = value.as_array()?.iter().filter_map(Value::as_str);
                seen.clusters = all.map(str::to_owned).collect();
            }
            32 => {
                let all = value.as_array()?.iter();
                seen.large_communities =
                    all.map(|c| format!("{}:{}:{}", c["ASN"], c["LocalData1"], c["LocalData2"])).collect();
            }
            _ => {}
        }
    }
    // What it originates itself has no path.
    let own = seen.next_hops.contains(&IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    (!own).then_some(seen)
}
