//! The kernel's settings, modules, and the programs beside it.

use super::snapshot::Snapshot;
use super::{ok, problem, unknown, warning};
use crate::view::Check;

pub(super) fn forwarding(node: &Snapshot) -> Check {
    const NAME: &str = "forwarding";
    let v4 = node.sysctl("net.ipv4.ip_forward");
    let v6 = node.sysctl("net.ipv6.conf.all.forwarding");
    let show = |value: Option<&str>| value.unwrap_or("not there").to_owned();
    let observed = format!("net.ipv4.ip_forward = {}, net.ipv6.conf.all.forwarding = {}", show(v4), show(v6));
    let needs_v6 = node.pod_cidrs.iter().any(|c| c.is_ipv6());
    let mut missing = Vec::new();
    missing.extend((v4 == Some("0")).then_some("net.ipv4.ip_forward=1"));
    missing.extend((needs_v6 && v6 == Some("0")).then_some("net.ipv6.conf.all.forwarding=1"));
    match missing.as_slice() {
        [] if v4.is_none() => unknown(NAME, observed),
        [] => ok(NAME, observed),
        missing => problem(
            NAME,
            observed,
            format!(
                "packets of pods are not forwarded: sysctl -w {}, and keep it in /etc/sysctl.d",
                missing.join(" ")
            ),
        ),
    }
}

/// Strict reverse-path filtering drops what comes in by another uplink than the one that leads back.
pub(super) fn rp_filter(node: &Snapshot) -> Check {
    const NAME: &str = "rp_filter";
    let value = |name: &str| {
        node.sysctl(&format!("net/ipv4/conf/{name}/rp_filter")).and_then(|v| v.parse::<u8>().ok())
    };
    let all = node.sysctl("net.ipv4.conf.all.rp_filter").and_then(|v| v.parse::<u8>().ok());
    let Some(all) = all else { return unknown(NAME, "net.ipv4.conf.all.rp_filter is not there") };
    let uplinks: Vec<&str> = node.uplinks().map(|(name, _)| name).collect();
    // The kernel takes the higher of the two (ip-sysctl, rp_filter).
    let strict: Vec<&str> =
        uplinks.iter().copied().filter(|name| value(name).unwrap_or(0).max(all) == 1).collect();
    let observed = match strict.as_slice() {
        [] => format!("net.ipv4.conf.all.rp_filter = {all}, strict on no uplink"),
        strict => format!("strict (1) on {}", strict.join(", ")),
    };
    if strict.is_empty() || uplinks.len() < 2 {
        return ok(NAME, observed);
    }
    problem(
        NAME,
        observed,
        "packets that come back over another uplink are dropped: sysctl -w net.ipv4.conf.all.rp_filter=2 (loose)",
    )
}

pub(super) fn multipath_hash(node: &Snapshot) -> Check {
    const NAME: &str = "multipath-hash";
    const SETTINGS: [&str; 2] = ["net.ipv4.fib_multipath_hash_policy", "net.ipv6.fib_multipath_hash_policy"];
    let known: Vec<(&str, &str)> = SETTINGS.into_iter().filter_map(|s| Some((s, node.sysctl(s)?))).collect();
    if known.is_empty() {
        return unknown(NAME, format!("{} is not there", SETTINGS[0]));
    }
    let observed = known.iter().map(|(s, value)| format!("{s} = {value}")).collect::<Vec<_>>().join(", ");
    let coarse: Vec<String> =
        known.iter().filter(|(_, value)| *value == "0").map(|(s, _)| format!("{s}=1")).collect();
    if coarse.is_empty() || node.uplinks().count() < 2 {
        return ok(NAME, observed);
    }
    warning(
        NAME,
        observed,
        format!(
            "all flows between two addresses take one of several equal paths: sysctl -w {}",
            coarse.join(" ")
        ),
    )
}

/// With 1, which kernels have by default, a nexthop object that changes is told for each of its routes.
pub(super) fn next_hop_compat_mode(node: &Snapshot) -> Check {
    const NAME: &str = "nexthop-compat-mode";
    const SETTING: &str = "net.ipv4.nexthop_compat_mode";
    let Some(value) = node.sysctl(SETTING) else { return ok(NAME, format!("{SETTING} is not there")) };
    let observed = format!("{SETTING} = {value}");
    if value == "0" {
        return ok(NAME, observed);
    }
    warning(
        NAME,
        observed,
        format!(
            "a next hop that fails under many routes is replaced late, by 0.6 ms a thousand: sysctl -w {SETTING}=0"
        ),
    )
}

/// A host that forwards ignores router advertisements unless accept_ra is 2, and loses its default route with the last one.
pub(super) fn router_advertisements(node: &Snapshot) -> Check {
    const NAME: &str = "router-advertisements";
    if node.sysctl("net.ipv6.conf.all.forwarding") != Some("1") {
        return ok(NAME, "IPv6 is not forwarded, so that they are taken");
    }
    let learned: Vec<&str> = node
        .routes
        .iter()
        .flatten()
        .filter(|r| r.protocol == "ra" && r.prefix.is_ipv6())
        .flat_map(|r| r.devices.iter().map(String::as_str))
        .filter(|device| node.sysctl(&format!("net/ipv6/conf/{device}/accept_ra")) == Some("1"))
        .collect();
    match learned.first() {
        None => ok(NAME, "no route depends on them where they are ignored"),
        Some(device) => problem(
            NAME,
            format!(
                "routes over {device} were learned from them, and accept_ra is 1 while IPv6 is forwarded"
            ),
            format!("they run out and do not come again: sysctl -w net.ipv6.conf.{device}.accept_ra=2"),
        ),
    }
}

/// Frames on a bridge that go through iptables are judged there, though nobody routes them.
pub(super) fn bridge_netfilter(node: &Snapshot) -> Check {
    const NAME: &str = "bridge-nf-call";
    let Some(value) = node.sysctl("net.bridge.bridge-nf-call-iptables") else {
        return ok(NAME, "br_netfilter is not loaded");
    };
    let bridges: Vec<&str> = node
        .interfaces
        .iter()
        .filter(|(name, i)| {
            let has_port = node.interfaces.values().any(|port| port.master.as_deref() == Some(name.as_str()));
            i.kind.as_deref() == Some("bridge") && has_port
        })
        .map(|(name, _)| name.as_str())
        .collect();
    let observed =
        format!("net.bridge.bridge-nf-call-iptables = {value}, bridges with ports: {}", none_or(&bridges));
    if value != "1" || bridges.is_empty() {
        return ok(NAME, observed);
    }
    warning(
        NAME,
        observed,
        "frames between the ports of these bridges pass the rules for routed packets: sysctl -w \
         net.bridge.bridge-nf-call-iptables=0, unless another network plugin wants it",
    )
}

pub(super) fn conntrack_table(node: &Snapshot) -> Check {
    const NAME: &str = "conntrack-table";
    let number = |name: &str| node.sysctl(name).and_then(|v| v.parse::<u64>().ok());
    let (Some(count), Some(max)) =
        (number("net.netfilter.nf_conntrack_count"), number("net.netfilter.nf_conntrack_max"))
    else {
        return ok(NAME, "no connection is tracked");
    };
    let observed = format!("{count} of {max} entries");
    if max == 0 || count * 10 < max * 9 {
        return ok(NAME, observed);
    }
    problem(
        NAME,
        observed,
        format!(
            "new flows are dropped when it is full: sysctl -w net.netfilter.nf_conntrack_max={}",
            max * 2
        ),
    )
}

pub(super) fn tools(node: &Snapshot) -> Check {
    const NAME: &str = "tools";
    let missing: Vec<&str> = node.tools.iter().filter(|(_, there)| !**there).map(|(name, _)| *name).collect();
    if node.tools.is_empty() {
        return unknown(NAME, "not looked for");
    }
    if missing.is_empty() {
        return ok(NAME, format!("{} programs are there", node.tools.len()));
    }
    // The agent's own image has them; on the host they are for people.
    let remedy = "install the packages iptables (1.8 or later) and iproute2 where the agent runs";
    match node.status() {
        Some(_) => {
            ok(NAME, format!("not on this host: {}; the agent works with its own", missing.join(", ")))
        }
        None => problem(NAME, format!("not found: {}", missing.join(", ")), remedy),
    }
}

pub(super) fn modules(node: &Snapshot) -> Check {
    const NAME: &str = "modules";
    let missing: Vec<&str> =
        node.modules.iter().filter(|(_, there)| !**there).map(|(name, _)| *name).collect();
    if node.modules.is_empty() {
        return unknown(NAME, "not looked for");
    }
    if missing.is_empty() {
        return ok(
            NAME,
            format!("{} are there", node.modules.keys().copied().collect::<Vec<_>>().join(", ")),
        );
    }
    warning(
        NAME,
        format!("not loaded: {}", missing.join(", ")),
        format!("modprobe -a {}, and keep them in /etc/modules-load.d", missing.join(" ")),
    )
}

fn none_or(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::healthy;
    use super::super::snapshot::{Interface, Route};
    use super::*;
    use crate::view::CheckResult;

    fn set(node: &mut Snapshot, name: &str, value: &str) {
        node.sysctls.insert(name.to_owned(), value.to_owned());
    }

    fn second_uplink(node: &mut Snapshot) {
        let uplink =
            Interface { addresses: vec!["10.2.0.11/24".parse().unwrap()], ..node.interfaces["eth0"].clone() };
        node.interfaces.insert("eth1".to_owned(), uplink);
    }

    #[test]
    fn forwarding_that_is_off_is_a_problem_for_the_families_of_the_pods() {
        let mut node = healthy();
        set(&mut node, "net.ipv6.conf.all.forwarding", "0");
        assert_eq!(forwarding(&node).result, CheckResult::Ok, "no pod has an IPv6 address");
        node.pod_cidrs.push("fd00:200:1::/64".parse().unwrap());
        let check = forwarding(&node);
        assert_eq!(check.result, CheckResult::Problem);
        assert!(check.remedy.unwrap().contains("net.ipv6.conf.all.forwarding=1"));
        set(&mut node, "net.ipv4.ip_forward", "0");
        assert!(forwarding(&node).observed.contains("net.ipv4.ip_forward = 0"));
    }

    #[test]
    fn strict_reverse_paths_hurt_where_there_are_two_uplinks() {
        let mut node = healthy();
        set(&mut node, "net/ipv4/conf/eth0/rp_filter", "1");
        assert_eq!(rp_filter(&node).result, CheckResult::Ok);
        second_uplink(&mut node);
        let check = rp_filter(&node);
        assert_eq!((check.result, check.observed.as_str()), (CheckResult::Problem, "strict (1) on eth0"));
        set(&mut node, "net.ipv4.conf.all.rp_filter", "2");
        assert_eq!(rp_filter(&node).result, CheckResult::Ok, "the higher one holds, and 2 is loose");
    }

    #[test]
    fn one_hash_for_two_addresses_is_told_where_there_are_two_uplinks() {
        let mut node = healthy();
        set(&mut node, "net.ipv4.fib_multipath_hash_policy", "0");
        assert_eq!(multipath_hash(&node).result, CheckResult::Ok);
        second_uplink(&mut node);
        assert_eq!(multipath_hash(&node).result, CheckResult::Warning);
        set(&mut node, "net.ipv4.fib_multipath_hash_policy", "1");
        assert_eq!(multipath_hash(&node).result, CheckResult::Ok);
        set(&mut node, "net.ipv6.fib_multipath_hash_policy", "0");
        assert!(
            multipath_hash(&node).remedy.unwrap().ends_with("sysctl -w net.ipv6.fib_multipath_hash_policy=1")
        );
    }

    #[test]
    fn next_hops_that_are_told_for_each_route_are_told() {
        let mut node = healthy();
        assert_eq!(next_hop_compat_mode(&node).result, CheckResult::Ok, "a kernel without objects");
        set(&mut node, "net.ipv4.nexthop_compat_mode", "1");
        assert_eq!(next_hop_compat_mode(&node).result, CheckResult::Warning);
        set(&mut node, "net.ipv4.nexthop_compat_mode", "0");
        assert_eq!(next_hop_compat_mode(&node).result, CheckResult::Ok);
    }

    #[test]
    fn routes_from_router_advertisements_run_out_on_a_router() {
        let mut node = healthy();
        node.routes.as_mut().unwrap().push(Route {
            prefix: "::/0".parse().unwrap(),
            kind: "unicast".to_owned(),
            devices: vec!["eth0".to_owned()],
            protocol: "ra".to_owned(),
        });
        set(&mut node, "net/ipv6/conf/eth0/accept_ra", "1");
        assert!(router_advertisements(&node).remedy.unwrap().contains("eth0.accept_ra=2"));
        set(&mut node, "net/ipv6/conf/eth0/accept_ra", "2");
        assert_eq!(router_advertisements(&node).result, CheckResult::Ok);
    }

    #[test]
    fn bridges_and_rules_for_routed_packets_do_not_go_together() {
        let mut node = healthy();
        set(&mut node, "net.bridge.bridge-nf-call-iptables", "1");
        assert_eq!(bridge_netfilter(&node).result, CheckResult::Ok, "there is no bridge");
        let bridge = Interface { kind: Some("bridge".to_owned()), ..Interface::default() };
        let port = Interface { master: Some("br0".to_owned()), ..Interface::default() };
        node.interfaces.extend([("br0".to_owned(), bridge), ("vnet0".to_owned(), port)]);
        let check = bridge_netfilter(&node);
        assert!(check.result == CheckResult::Warning && check.observed.contains("br0"));
    }

    #[test]
    fn a_full_conntrack_table_is_a_problem() {
        let mut node = healthy();
        set(&mut node, "net.netfilter.nf_conntrack_count", "900");
        set(&mut node, "net.netfilter.nf_conntrack_max", "1000");
        let check = conntrack_table(&node);
        assert_eq!((check.result, check.observed.as_str()), (CheckResult::Problem, "900 of 1000 entries"));
    }

    #[test]
    fn tools_are_missed_only_where_no_agent_runs_with_its_own() {
        let mut node = healthy();
        node.tools.insert("iptables-legacy-save", false);
        assert_eq!(tools(&node).result, CheckResult::Ok);
        node.agent = None;
        assert!(tools(&node).observed.contains("iptables-legacy-save"));
        assert_eq!(tools(&node).result, CheckResult::Problem);
    }

    #[test]
    fn missing_modules_come_with_the_command_that_loads_them() {
        let mut node = healthy();
        node.modules.insert("nfnetlink_log", false);
        assert!(modules(&node).remedy.unwrap().starts_with("modprobe -a nfnetlink_log"));
    }
}
