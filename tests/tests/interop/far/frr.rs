//! FRR's spelling.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::Result;
use manx_tests::routers::Router as _;
use manx_tests::routers::frr::Frr;
use serde_json::Value;

use super::{Config, Network, Seen, router_id};

pub(super) fn config(n: u8, config: &Config) -> String {
    let mut text = format!("hostname n{n}\n{}\n", config.extra);
    for (number, network) in config.networks.iter().enumerate() {
        let _ = writeln!(text, "route-map NET{number} permit 10\n{}exit", set(network));
    }
    let _ = writeln!(
        text,
        "router bgp {}\n bgp router-id {}\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n no bgp network import-check",
        config.asn,
        router_id(n)
    );
    if config.sessions.iter().any(|s| s.graceful) {
        text.push_str(" bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n");
    }
    for session in &config.sessions {
        let remote = session.remote();
        let mut line = |wanted: bool, words: &str| {
            if wanted {
                let _ = writeln!(text, " neighbor {remote} {words}");
            }
        };
        line(true, &format!("remote-as {}", session.remote_as));
        line(true, "timers connect 1");
        line(true, &format!("timers {} {}", session.hold / 3, session.hold));
        line(session.password.is_some(), &format!("password {}", session.password.unwrap_or_default()));
        line(session.ttl_security, "ttl-security hops 1");
        line(session.passive, "passive");
        session.lines.lines().for_each(|words| line(true, words));
    }
    for (family, v4) in [("ipv4", true), ("ipv6", false)] {
        let _ = writeln!(text, " address-family {family} unicast");
        for (number, network) in
            config.networks.iter().enumerate().filter(|(_, network)| network.is_v4() == v4)
        {
            let _ = writeln!(text, "  network {} route-map NET{number}", network.prefix);
        }
        for session in &config.sessions {
            let remote = session.remote();
            let _ = writeln!(text, "  neighbor {remote} activate");
            if session.client {
                let _ = writeln!(text, "  neighbor {remote} route-reflector-client");
            }
            for extra in session.extra.lines() {
                let _ = writeln!(text, "  neighbor {remote} {extra}");
            }
        }
        text.push_str(" exit-address-family\n");
    }
    text
}

fn set(network: &Network) -> String {
    let mut text = String::new();
    let mut add = |words: String| {
        let _ = writeln!(text, " set {words}");
    };
    network.med.into_iter().for_each(|med| add(format!("metric {med}")));
    network.local_pref.into_iter().for_each(|pref| add(format!("local-preference {pref}")));
    network.prepend.into_iter().for_each(|asn| add(format!("as-path prepend {asn}")));
    network.community.into_iter().for_each(|c| add(format!("community {c}")));
    network.large_community.into_iter().for_each(|c| add(format!("large-community {c}")));
    text
}

/// Gives it a line of configuration inside its BGP.
pub(super) fn configure(frr: &Frr, line: &str) -> Result<()> {
    let running = frr.ask("show running-config")?;
    let bgp = running.lines().find(|l| l.starts_with("router bgp ")).unwrap_or_default();
    frr.order(&["configure terminal", bgp, line]).map(drop)
}

pub(super) fn is_up(frr: &Frr, remote: IpAddr) -> bool {
    let sessions = frr.sessions().unwrap();
    sessions.iter().any(|s| s.peer == remote.to_string() && s.is_established())
}

pub(super) fn paths(frr: &Frr, prefix: &str) -> BTreeSet<String> {
    let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
    let shown = frr.ask_json(&format!("show bgp {family} unicast {prefix}")).unwrap_or_default();
    let paths = shown["paths"].as_array().cloned().unwrap_or_default();
    paths.iter().filter_map(|path| path["aspath"]["string"].as_str()).map(str::to_owned).collect()
}

pub(super) fn route(frr: &Frr, prefix: &str) -> Option<Seen> {
    let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
    let shown = frr.ask_json(&format!("show bgp {family} unicast {prefix}")).ok()?;
    let paths = shown["paths"].as_array()?;
    let path = paths.iter().find(|p| p["bestpath"]["overall"] == true && p["sourced"] != true)?;
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let words = |value: &Value| {
        value["string"].as_str().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    Some(Seen {
        as_path: path["aspath"]["string"].as_str().filter(|p| *p != "Local").unwrap_or_default().to_owned(),
        next_hops: path["nexthops"]
            .as_array()?
            .iter()
            .filter_map(|hop| hop["ip"].as_str()?.parse().ok())
            .collect(),
        med: number(&path["metric"]),
        local_pref: number(&path["locPrf"]),
        communities: words(&path["community"]),
        large_communities: words(&path["largeCommunity"]),
        originator: path["originatorId"].as_str().map(str::to_owned),
        clusters: path["clusterList"]["list"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c.as_str().map(str::to_owned))
            .collect(),
        stale: path["stale"] == true,
    })
}
