//! What is in a namespace's kernel, read with the system's own tools and never with ours.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::netns::Netns;

/// The kernel's number for routes that Manx wrote.
pub const PROTOCOL: &str = "77";

/// A route as `ip route` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `blackhole`, or empty for an ordinary one.
    pub kind: String,
    /// Gateways in order; empty when it goes straight to a device.
    pub via: Vec<String>,
    /// Interfaces, in the order of the gateways.
    pub devices: Vec<String>,
    /// Metric.
    pub metric: u64,
}

/// The routes that bear Manx's protocol number, of both families.
///
/// # Errors
/// When `ip` fails.
pub fn routes(netns: &Netns) -> Result<BTreeMap<IpNetwork, Route>> {
    let mut found = BTreeMap::new();
    let objects = objects(netns)?;
    for family in ["-4", "-6"] {
        let table = crate::command::json(&mut crate::command::words(&format!(
            "ip -j -N {family} -n {} route show protocol {PROTOCOL}",
            netns.name()
        )))?;
        for route in table.as_array().into_iter().flatten() {
            let destination = route["dst"].as_str().unwrap_or_default();
            let prefix = match destination {
                "default" => "::/0".parse(),
                text => text.parse(),
            };
            let prefix: IpNetwork =
                prefix.with_context(|| format!("ip route printed the prefix {destination:?}"))?;
            // An IPv6 multipath route may be printed as one line for each next hop.
            let read = read_route(route, &objects);
            found
                .entry(prefix)
                .and_modify(|known: &mut Route| {
                    known.via.extend(read.via.clone());
                    known.devices.extend(read.devices.clone());
                })
                .or_insert(read);
        }
    }
    Ok(found)
}

/// The ways of each nexthop object, by its number: its own, or those of its members.
fn objects(netns: &Netns) -> Result<BTreeMap<u64, Vec<Value>>> {
    let list = format!("ip -j -n {} nexthop show", netns.name());
    let shown = crate::command::json(&mut crate::command::words(&list))?;
    let id = |object: &Value| object["id"].as_u64();
    let objects = shown.as_array().map(Vec::as_slice).unwrap_or_default();
    let singles: BTreeMap<u64, &Value> = objects.iter().filter_map(|o| Some((id(o)?, o))).collect();
    let ways = |object: &Value| match object["group"].as_array() {
        Some(members) => members.iter().filter_map(|m| Some((*singles.get(&id(m)?)?).clone())).collect(),
        None => vec![object.clone()],
    };
    Ok(singles.iter().map(|(id, object)| (*id, ways(object))).collect())
}

/// With nexthop_compat_mode 0 the kernel names the object of a route and nothing of what it does.
fn read_route(route: &Value, objects: &BTreeMap<u64, Vec<Value>>) -> Route {
    let gateway = |hop: &Value| {
        let via = hop["gateway"].as_str().or_else(|| hop["via"]["host"].as_str());
        via.map(str::to_owned)
    };
    let device = |hop: &Value| hop["dev"].as_str().map(str::to_owned);
    let alone = route["dev"].is_null() && route["nexthops"].is_null();
    let object = route["nhid"].as_u64().filter(|_| alone).and_then(|id| objects.get(&id));
    let hops: Vec<&Value> = match (route["nexthops"].as_array(), object) {
        (Some(hops), _) | (None, Some(hops)) => hops.iter().collect(),
        (None, None) => vec![route],
    };
    let kind = route["type"].as_str().unwrap_or_default();
    Route {
        // With -N types are numbers: 6 is RTN_BLACKHOLE.
        kind: if kind == "6" || kind == "blackhole" { "blackhole".into() } else { String::new() },
        via: hops.iter().filter_map(|hop| gateway(hop)).collect(),
        devices: hops.iter().filter_map(|hop| device(hop)).collect(),
        metric: route["metric"].as_u64().unwrap_or(0),
    }
}

/// Everything that Manx has in a namespace's kernel, as text that can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `ip route show protocol 77`, both families, sorted.
    pub routes: Vec<String>,
    /// Rules and chain declarations of both families without counters, in order.
    pub rules: Vec<String>,
    /// Packet counter of each rule line, in the same order; absent for chain declarations.
    pub counters: Vec<Option<u64>>,
    /// Every rule with the handle that nf_tables gave it when it was written; empty where rules are in legacy tables.
    pub handles: Vec<String>,
    /// Sets and members, sorted.
    pub sets: Vec<String>,
}

impl Snapshot {
    /// Takes one.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn take(netns: &Netns) -> Result<Self> {
        let mut routes = Vec::new();
        for family in ["-4", "-6"] {
            let text = crate::command::run(&format!(
                "ip {family} -n {} route show protocol {PROTOCOL}",
                netns.name()
            ))?;
            routes.extend(text.lines().map(|line| line.trim().to_owned()));
        }
        routes.sort();
        let (mut rules, mut counters) = (Vec::new(), Vec::new());
        for tool in ["iptables-save", "ip6tables-save"] {
            for line in netns.run(&format!("{tool} -c"))?.lines() {
                if line.starts_with('#') || !line.contains("MANX") {
                    continue;
                }
                let (rule, count) = split_counter(line);
                rules.push(format!("{tool}: {rule}"));
                counters.push(count);
            }
        }
        let text = netns.run("ipset save")?;
        let mut sets: Vec<String> =
            text.lines().filter(|line| line.contains("manx")).map(str::to_owned).collect();
        sets.sort();
        let handles = handles(&netns.run("nft -a list ruleset")?);
        Ok(Self { routes, rules, counters, handles, sets })
    }

    /// The lines that are in one of the two only, each with a sign; empty when they say the same.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (before, after) in
            [(&self.routes, &later.routes), (&self.rules, &later.rules), (&self.sets, &later.sets)]
        {
            found.extend(before.iter().filter(|l| !after.contains(l)).map(|l| format!("- {l}")));
            found.extend(after.iter().filter(|l| !before.contains(l)).map(|l| format!("+ {l}")));
        }
        if found.is_empty() && self.rules != later.rules {
            found.push("the rules are the same in another order".into());
        }
        found
    }

    /// Rules whose counter went back or whose handle is another, which means that they were written again. Only for snapshots
    /// with the same rules.
    pub fn rewritten<'a>(&'a self, later: &'a Self) -> Vec<&'a str> {
        let both = self.counters.iter().zip(&later.counters).zip(&self.rules);
        let reset = both.filter(|((before, after), _)| after < before).map(|(_, rule)| rule);
        let renewed = later.handles.iter().filter(|rule| !self.handles.contains(rule));
        reset.chain(renewed).map(String::as_str).collect()
    }
}

/// The rules of our chains, and those that jump there, from `nft -a list ruleset`; counters left out.
fn handles(text: &str) -> Vec<String> {
    let (mut found, mut table, mut ours) = (Vec::new(), "", false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("table ") {
            table = line.split(" {").next().unwrap_or(line);
        } else if line.starts_with("chain ") {
            ours = line.contains("MANX");
        } else if (ours || line.contains("MANX")) && line.contains("# handle") {
            found.push(format!("{table}: {}", without_counters(line)));
        }
    }
    found
}

/// `… counter packets 5 bytes 300 …` without the two numbers.
fn without_counters(line: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in line.split_whitespace() {
        if matches!(words.last(), Some(&"packets" | &"bytes")) && word.chars().all(|c| c.is_ascii_digit()) {
            continue;
        }
        words.push(word);
    }
    words.join(" ")
}

/// `[packets:bytes] -A …` or `:CHAIN - [packets:bytes]`; a chain of ours has no policy and so no counter that means anything.
fn split_counter(line: &str) -> (String, Option<u64>) {
    let counted = || {
        let (counter, rule) = line.strip_prefix('[')?.split_once("] ")?;
        let packets = counter.split(':').next()?.parse().ok()?;
        Some((rule.to_owned(), Some(packets)))
    };
    counted().unwrap_or_else(|| (line.split(" [").next().unwrap_or(line).to_owned(), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(rules: &[(&str, u64)]) -> Snapshot {
        Snapshot {
            routes: vec![],
            rules: rules.iter().map(|(r, _)| (*r).to_owned()).collect(),
            counters: rules.iter().map(|(_, c)| Some(*c)).collect(),
            handles: vec![],
            sets: vec![],
        }
    }

    #[test]
    fn a_rule_written_again_has_another_handle() {
        let ruleset = |handle, packets| {
            format!(
                "table ip filter {{ # handle 1\n\tchain MANX-FORWARD {{ # handle 5\n\t\tcounter packets {packets} bytes 9 drop \
                 # handle {handle}\n\t}}\n\tchain FORWARD {{ # handle 2\n\t\tcounter packets 1 bytes 9 jump OTHER # handle 3\n"
            )
        };
        assert_eq!(handles(&ruleset(6, 1)), ["table ip filter: counter packets bytes drop # handle 6"]);
        assert_eq!(handles(&ruleset(6, 1)), handles(&ruleset(6, 2)));
        assert_ne!(handles(&ruleset(6, 1)), handles(&ruleset(7, 1)));
    }

    #[test]
    fn counters_are_split_from_rules() {
        assert_eq!(split_counter("[12:3400] -A MANX-FWD -j DROP"), ("-A MANX-FWD -j DROP".into(), Some(12)));
        assert_eq!(split_counter(":MANX-FWD - [0:0]"), (":MANX-FWD -".into(), None));
    }

    #[test]
    fn a_counter_that_went_back_is_a_rule_written_again() {
        let before = snapshot(&[("-A A", 5), ("-A B", 7)]);
        let after = snapshot(&[("-A A", 9), ("-A B", 0)]);
        assert!(before.differences(&after).is_empty());
        assert_eq!(before.rewritten(&after), ["-A B"]);
    }

    #[test]
    fn rules_in_another_order_are_not_the_same() {
        let before = snapshot(&[("-A A", 0), ("-A B", 0)]);
        let after = snapshot(&[("-A B", 0), ("-A A", 0)]);
        assert_eq!(before.differences(&after).len(), 1);
    }

    #[test]
    fn a_multipath_route_has_all_its_gateways() {
        let route = serde_json::json!({"dst": "10.9.0.0/24", "metric": 77, "nexthops": [
            {"gateway": "10.1.0.4", "dev": "tor-a"}, {"via": {"family": "inet6", "host": "fe80::1"}, "dev": "tor-b"}]});
        let read = read_route(&route, &BTreeMap::new());
        assert_eq!(read.via, ["10.1.0.4", "fe80::1"]);
        assert_eq!(read.devices, ["tor-a", "tor-b"]);
    }

    #[test]
    fn a_route_that_names_an_object_alone_has_the_ways_of_the_object() {
        let ways = [("10.1.0.4", "tor-a"), ("10.2.0.4", "tor-b")]
            .map(|(gateway, dev)| serde_json::json!({"gateway": gateway, "dev": dev}));
        let objects = BTreeMap::from([(7, ways.to_vec())]);
        let read = |route: Value| read_route(&route, &objects).devices;
        assert_eq!(read(serde_json::json!({"dst": "10.9.0.0/24", "nhid": 7})), ["tor-a", "tor-b"]);
        assert_eq!(read(serde_json::json!({"dst": "10.9.0.0/24", "nhid": 7, "dev": "tor-a"})), ["tor-a"]);
    }
}
