//! OpenBGPD's spelling.

use std::fmt::Write as _;
use std::net::IpAddr;

use manx_tests::routers::openbgpd::Openbgpd;
use serde_json::Value;

use super::{Config, Network, Seen, router_id};
use crate::rack::{Over, address};

pub(super) fn config(n: u8, config: &Config) -> String {
    let mut text = format!(
        "AS {}\nrouter-id {}\nlisten on {}\nlisten on {}\nfib-update no\nconnect-retry 1\n{}\n",
        config.asn,
        router_id(n),
        address(n, Over::V4),
        address(n, Over::V6),
        config.extra,
    );
    for network in &config.networks {
        // On Linux it gives ::1 as next hop of the family that the session does not run over, unless it is told and
        // the session is a multihop one or internal.
        let next_hop = address(n, if network.is_v4() { Over::V4 } else { Over::V6 });
        let _ = writeln!(text, "network {} set {{ nexthop {next_hop} {} }}", network.prefix, set(network));
    }
    for session in &config.sessions {
        let remote = session.remote();
        let _ = writeln!(
            text,
            "neighbor {remote} {{\n remote-as {}\n holdtime {}",
            session.remote_as, session.hold
        );
        let _ = writeln!(text, " announce IPv4 unicast\n announce IPv6 unicast");
        let mut line = |wanted: bool, words: &str| {
            if wanted {
                let _ = writeln!(text, " {words}");
            }
        };
        line(
            session.password.is_some(),
            &format!("tcp md5sig password \"{}\"", session.password.unwrap_or_default()),
        );
        line(session.ttl_security, "ttl-security yes");
        let external = session.remote_as != config.asn;
        line(external && !session.ttl_security && !config.networks.is_empty(), "multihop 2");
        line(session.passive, "passive");
        line(session.client, "route-reflector");
        session.lines.lines().chain(session.extra.lines()).for_each(|words| line(true, words));
        text.push_str("}\n");
    }
    text.push_str("allow from any\nallow to any\n");
    if !config.networks.is_empty() {
        text.push_str("match to any set nexthop no-modify\n");
    }
    text
}

fn set(network: &Network) -> String {
    let mut words = Vec::new();
    words.extend(network.med.map(|v| format!("med {v}")));
    words.extend(network.local_pref.map(|v| format!("localpref {v}")));
    words.extend(network.community.map(|c| format!("community {c}")));
    words.extend(network.large_community.map(|c| format!("large-community {c}")));
    words.join(" ")
}

pub(super) fn is_up(openbgpd: &Openbgpd, remote: IpAddr) -> bool {
    openbgpd.ask(&format!("show neighbor {remote}")).unwrap().contains("BGP state = Established")
}

pub(super) fn route(openbgpd: &Openbgpd, prefix: &str) -> Option<Seen> {
    let shown = openbgpd.ask_json(&format!("show rib detail {prefix}")).ok()?;
    let path = shown["rib"].as_array()?.iter().find(|p| p["best"] == true && p["source"] != "announced")?;
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|c| c.as_str().map(str::to_owned)).collect()
    };
    let further = |name: &str| {
        let attributes = path["attributes"].as_array().into_iter().flatten();
        attributes.map(|a| a[name].clone()).find(|v| !v.is_null()).unwrap_or_default()
    };
    Some(Seen {
        as_path: path["aspath"].as_str().unwrap_or_default().to_owned(),
        next_hops: path["exit_nexthop"].as_str().and_then(|h| h.parse().ok()).into_iter().collect(),
        med: number(&path["metric"]),
        local_pref: number(&path["localpref"]),
        communities: strings(&path["communities"]).into_iter().collect(),
        large_communities: strings(&path["large_communities"]).into_iter().collect(),
        originator: further("originator").as_str().map(str::to_owned),
        clusters: strings(&further("cluster_list")),
        stale: path["stale"] == true,
    })
}
