//! The agent itself, and what BGP stands on: port, keys, addresses, pod CIDRs.

use super::snapshot::Snapshot;
use super::{ok, problem, unknown, warning};
use crate::view::Check;

/// The program that may listen on port 179.
const AGENT: &str = "manx-agent";

pub(super) fn agent(node: &Snapshot) -> Check {
    const NAME: &str = "agent";
    match &node.agent {
        None => unknown(NAME, "was not asked"),
        Some(Err(reason)) => problem(
            NAME,
            reason.clone(),
            "start it, and look at its log; routes and policy stay as they were meanwhile",
        ),
        Some(Ok(status)) => match status.complaints() {
            complaints if complaints.is_empty() => ok(NAME, "healthy by its own account"),
            complaints => {
                problem(NAME, complaints.join("; "), "manxctl status and manxctl peer why say more")
            }
        },
    }
}

pub(super) fn port(node: &Snapshot) -> Check {
    const NAME: &str = "port-179";
    let Some(listeners) = &node.port_179 else { return unknown(NAME, "ss cannot say who listens") };
    let others: Vec<String> = listeners
        .iter()
        .filter(|(_, program)| program != AGENT && !program.is_empty())
        .map(|(address, program)| format!("{program} on {address}"))
        .collect();
    if let Some(first) = others.first() {
        return problem(
            NAME,
            format!("taken by {}", others.join(", ")),
            format!(
                "stop {} or give it another port; two speakers on one node also fight over routes",
                first.split(' ').next().unwrap_or_default()
            ),
        );
    }
    let wanted = node.status().is_some_and(|s| s.bgp.as_ref().is_some_and(|b| !b.listening.is_empty()));
    match listeners.first() {
        Some((address, _)) => ok(NAME, format!("the agent listens on {address}")),
        None if wanted => ok(NAME, "the agent listens on another port"),
        None => ok(NAME, "free"),
    }
}

pub(super) fn md5(node: &Snapshot) -> Check {
    const NAME: &str = "tcp-md5";
    match &node.md5 {
        None => unknown(NAME, "was not tried"),
        Some(Ok(())) => ok(NAME, "a socket takes a key"),
        Some(Err(reason)) => warning(
            NAME,
            format!("a socket takes no key: {reason}"),
            "sessions with a password stay down: a kernel with CONFIG_TCP_MD5SIG is needed",
        ),
    }
}

pub(super) fn next_hop_objects(node: &Snapshot) -> Check {
    const NAME: &str = "nexthop-objects";
    match node.next_hop_objects {
        None => unknown(NAME, "ip cannot say"),
        Some(true) => ok(NAME, "the kernel has them"),
        Some(false) => warning(
            NAME,
            "the kernel does not have them",
            "every route is written anew when a next hop changes: Linux 5.3 or later does it at once",
        ),
    }
}

pub(super) fn addresses(node: &Snapshot) -> Check {
    const NAME: &str = "node-addresses";
    let Some(bgp) = node.status().and_then(|s| s.bgp.as_ref()) else {
        return unknown(NAME, "the agent does not say what the Node object has");
    };
    let missing: Vec<&str> = bgp
        .node_addresses
        .iter()
        .filter(|text| text.parse().is_ok_and(|ip| !node.is_local(ip)))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        return problem(
            NAME,
            format!("the Node object says {}, which no interface has", missing.join(", ")),
            "BGP cannot listen there: mend the address of the interface, or the kubelet's --node-ip",
        );
    }
    ok(NAME, format!("{} on an interface", bgp.node_addresses.join(", ")))
}

/// Another network's bridge or route in our pods' range takes their packets.
pub(super) fn pod_cidrs(node: &Snapshot) -> Check {
    const NAME: &str = "pod-cidrs";
    if node.pod_cidrs.is_empty() {
        return unknown(NAME, "this node's pod CIDRs are not known here");
    }
    let shown = node.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    for (name, interface) in node.interfaces.iter().filter(|(name, _)| !node.is_pods(name)) {
        let inside = interface.addresses.iter().find(|a| node.pod_cidrs.iter().any(|c| c.contains(a.ip())));
        if let Some(address) = inside {
            return problem(
                NAME,
                format!("{name} has {address}, within this node's pod CIDR"),
                format!("left over from another network? ip link delete {name}, or move its range"),
            );
        }
    }
    let own = |protocol: &str| protocol == "77" || protocol == "manx";
    let within = |cidr: &ipnetwork::IpNetwork, r: &super::snapshot::Route| {
        cidr.contains(r.prefix.ip()) && r.prefix.prefix() >= cidr.prefix()
    };
    let foreign = node
        .routes
        .iter()
        .flatten()
        .find(|r| !own(&r.protocol) && node.pod_cidrs.iter().any(|cidr| within(cidr, r)));
    if let Some(route) = foreign {
        return problem(
            NAME,
            format!("{} by protocol {} lies within this node's pod CIDR", route.prefix, route.protocol),
            "another program routes our pods: take its route away (ip route show proto ...)",
        );
    }
    let bgp = node.status().is_some_and(|s| s.bgp.is_some() && s.source.in_sync);
    let missing = node
        .pod_cidrs
        .iter()
        .find(|cidr| !node.routes.iter().flatten().any(|r| r.prefix == **cidr && own(&r.protocol)));
    match missing {
        Some(cidr) if bgp && node.routes.is_some() => problem(
            NAME,
            format!("{cidr} has no route of ours in the kernel"),
            "packets to pods that are gone may loop: manxctl routes --drift says why it is missing",
        ),
        _ => ok(NAME, shown),
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::healthy;
    use super::super::snapshot::{Interface, Route};
    use super::*;
    use crate::view::CheckResult;

    #[test]
    fn an_agent_that_is_away_or_complains_is_told_in_its_own_words() {
        let mut node = healthy();
        node.agent.as_mut().unwrap().as_mut().unwrap().source.in_sync = false;
        assert!(agent(&node).observed.contains("not in sync"));
        node.agent = Some(Err("no agent at /run/manx".to_owned()));
        assert_eq!(
            (agent(&node).result, agent(&node).observed.as_str()),
            (CheckResult::Problem, "no agent at /run/manx")
        );
    }

    #[test]
    fn another_speaker_on_the_port_is_named() {
        let mut node = healthy();
        node.port_179 = Some(vec![("0.0.0.0:179".to_owned(), "bird".to_owned())]);
        let check = port(&node);
        assert_eq!(check.observed, "taken by bird on 0.0.0.0:179");
        assert!(check.remedy.unwrap().starts_with("stop bird"));
        node.port_179 = Some(Vec::new());
        assert_eq!(port(&node).result, CheckResult::Ok);
    }

    #[test]
    fn kernels_without_keys_or_nexthop_objects_cost_something() {
        let mut node = healthy();
        node.md5 = Some(Err("Protocol not available".to_owned()));
        node.next_hop_objects = Some(false);
        assert_eq!(
            (md5(&node).result, next_hop_objects(&node).result),
            (CheckResult::Warning, CheckResult::Warning)
        );
    }

    #[test]
    fn a_node_address_that_no_interface_has_is_a_problem() {
        let mut node = healthy();
        let status = node.agent.as_mut().unwrap().as_mut().unwrap();
        status.bgp.as_mut().unwrap().node_addresses.push("10.9.9.9".to_owned());
        assert_eq!(addresses(&node).observed, "the Node object says 10.9.9.9, which no interface has");
    }

    #[test]
    fn what_others_left_in_the_pods_range_is_found() {
        let mut node = healthy();
        let bridge = Interface { addresses: vec!["10.200.1.1/24".parse().unwrap()], ..Interface::default() };
        node.interfaces.insert("cni0".to_owned(), bridge);
        assert_eq!(pod_cidrs(&node).observed, "cni0 has 10.200.1.1/24, within this node's pod CIDR");
        node.interfaces.remove("cni0");
        node.routes.as_mut().unwrap().push(Route {
            prefix: "10.200.1.128/25".parse().unwrap(),
            kind: "unicast".to_owned(),
            devices: vec!["flannel.1".to_owned()],
            protocol: "static".to_owned(),
        });
        assert!(pod_cidrs(&node).observed.starts_with("10.200.1.128/25 by protocol static"));
    }

    #[test]
    fn a_pod_cidr_without_our_route_is_a_problem_while_we_route() {
        let mut node = healthy();
        node.routes.as_mut().unwrap().retain(|r| r.kind != "blackhole");
        assert_eq!(pod_cidrs(&node).result, CheckResult::Problem);
        node.agent = Some(Err("down".to_owned()));
        assert_eq!(pod_cidrs(&node).result, CheckResult::Ok);
    }
}
