//! BIRD's spelling.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use manx_tests::routers::Router as _;
use manx_tests::routers::bird::Bird;

use super::{Config, Network, Seen, Session, parts, router_id};
use crate::rack::address;

pub(super) fn config(n: u8, config: &Config, dir: &Path) -> String {
    let mut text = format!(
        "log \"{}\" all;\nrouter id {};\n{}\nprotocol device {{}}\nprotocol direct {{ ipv4; ipv6; }}\n",
        dir.join("bird.log").display(),
        router_id(n),
        config.extra,
    );
    for v4 in [true, false] {
        let family = if v4 { "ipv4" } else { "ipv6" };
        let _ = writeln!(text, "protocol static {{ {family};");
        for network in config.networks.iter().filter(|network| network.is_v4() == v4) {
            let _ = writeln!(text, " route {} blackhole;", network.prefix);
        }
        text.push_str("}\n");
    }
    // An attribute that is to leave the AS has to be set on the way out: BIRD strips a MED that came from elsewhere.
    text.push_str("filter to_peer {\n");
    for network in &config.networks {
        let _ = writeln!(text, " if net = {} then {{ {} }}", network.prefix, attributes(network));
    }
    text.push_str(" if source ~ [ RTS_STATIC, RTS_BGP ] then accept;\n reject;\n}\n");
    for (number, session) in config.sessions.iter().enumerate() {
        text.push_str(&protocol(number, n, config.asn, session));
    }
    text
}

fn attributes(network: &Network) -> String {
    let mut text = String::new();
    let mut add = |attribute: String| text.push_str(&attribute);
    network.med.into_iter().for_each(|med| add(format!("bgp_med = {med}; ")));
    network.local_pref.into_iter().for_each(|pref| add(format!("bgp_local_pref = {pref}; ")));
    network.prepend.into_iter().for_each(|asn| add(format!("bgp_path.prepend({asn}); ")));
    if let Some(community) = network.community {
        add(format!("bgp_community.add(({})); ", parts(community).join(",")));
    }
    if let Some(community) = network.large_community {
        add(format!("bgp_large_community.add(({})); ", parts(community).join(",")));
    }
    text
}

fn protocol(number: usize, n: u8, asn: u32, session: &Session) -> String {
    let local = address(n, session.over);
    let mut text = format!(
        "protocol bgp s{number} {{ local {local} as {asn}; neighbor {} as {}; hold time {};\n \
         connect delay time 1; connect retry time 1; error wait time 1, 2;\n",
        session.remote(),
        session.remote_as,
        session.hold,
    );
    let mut line = |wanted: bool, words: &str| {
        if wanted {
            let _ = writeln!(text, " {words};");
        }
    };
    line(session.password.is_some(), &format!("password \"{}\"", session.password.unwrap_or_default()));
    line(session.ttl_security, "ttl security on");
    line(session.passive, "passive on");
    line(session.client, "rr client");
    line(session.graceful, "graceful restart on");
    // Internal peers are on the switch as well: no next hop is to be looked up.
    line(session.remote_as == asn, "direct");
    text.push_str(&session.lines);
    for family in ["ipv4", "ipv6"] {
        let _ = writeln!(text, " {family} {{ import all; export filter to_peer; {} }};", session.extra);
    }
    text.push_str("}\n");
    text
}

pub(super) fn is_up(bird: &Bird, remote: IpAddr) -> bool {
    let sessions = bird.sessions().unwrap();
    sessions.iter().any(|s| s.peer == remote.to_string() && s.is_established())
}

pub(super) fn paths(bird: &Bird, prefix: &str) -> BTreeSet<String> {
    let text = bird.ask(&format!("show route for {prefix} all where source = RTS_BGP")).unwrap_or_default();
    text.lines().filter_map(|line| line.trim().strip_prefix("BGP.as_path: ")).map(str::to_owned).collect()
}

pub(super) fn route(bird: &Bird, prefix: &str) -> Option<Seen> {
    let text = bird.ask(&format!("show route for {prefix} primary all where source = RTS_BGP")).ok()?;
    let attribute = |name: &str| {
        let marker = format!("BGP.{name}: ");
        text.lines().find_map(|l| l.trim().strip_prefix(&marker)).map(str::trim)
    };
    let number = |name| attribute(name).and_then(|v| v.parse().ok());
    // (65010,7) or (65010, 1, 2), separated by blanks.
    let tuples = |name| {
        let list = attribute(name).unwrap_or_default();
        list.split(')')
            .filter_map(|t| Some(t.trim().strip_prefix('(')?.replace(", ", ":").replace(',', ":")))
            .collect()
    };
    // 10.200.0.0/24  unicast [s0 10:19:28.516] * (100) [AS64512i]
    let first = text.lines().find(|l| l.starts_with(&format!("{prefix} ")))?;
    let protocol = first.split('[').nth(1)?.split_whitespace().next()?;
    // Routes do not show it: the session tells while all that came before has not come again.
    let session = bird.ask(&format!("show protocols all {protocol}")).ok()?;
    Some(Seen {
        as_path: attribute("as_path").unwrap_or_default().to_owned(),
        next_hops: attribute("next_hop")
            .unwrap_or_default()
            .split(' ')
            .filter_map(|a| a.parse().ok())
            .collect(),
        med: number("med"),
        local_pref: number("local_pref"),
        communities: tuples("community"),
        large_communities: tuples("large_community"),
        originator: attribute("originator_id").map(str::to_owned),
        clusters: attribute("cluster_list")
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
        stale: session.contains("Neighbor graceful restart active"),
    })
}
