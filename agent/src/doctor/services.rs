//! What kube-proxy has put into the kernel for Services, against the routes that its targets need.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::snapshot::Snapshot;
use super::{ok, problem, unknown, warning};
use crate::view::Check;

/// More names than this say nothing more.
const SHOWN: usize = 5;

/// An address to which packets are translated, and for which Service as far as the rule says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    ip: IpAddr,
    service: String,
}

/// From `iptables-save`: `-j DNAT --to-destination`; from nft: `dnat to`.
fn dnat_targets(node: &Snapshot) -> BTreeSet<Target> {
    let iptables = node.filters.values().flatten().flat_map(|text| text.lines()).filter_map(|line| {
        let to = word_after(line, "--to-destination ").filter(|_| line.contains("-j DNAT"))?;
        Some(Target { ip: address(to)?, service: comment(line) })
    });
    let nft = node.nft_proxy.lines().filter_map(|line| {
        let to = word_after(line, "dnat to ")
            .or_else(|| word_after(line, "dnat ip to "))
            .or_else(|| word_after(line, "dnat ip6 to "))?;
        Some(Target { ip: address(to)?, service: String::new() })
    });
    iptables.chain(nft).collect()
}

fn word_after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.split_once(mark)?.1.split_whitespace().next()
}

/// `10.0.0.1:80`, `[fd00::1]:80`, or the address alone.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim_end_matches([';', ',']);
    let socket = text.parse::<std::net::SocketAddr>().map(|s| s.ip());
    socket.or_else(|_| text.trim_matches(['[', ']']).parse()).ok()
}

/// kube-proxy writes NAMESPACE/NAME:PORT.
fn comment(line: &str) -> String {
    let Some((_, rest)) = line.split_once("--comment ") else { return String::new() };
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default().to_owned(),
        None => rest.split_whitespace().next().unwrap_or_default().to_owned(),
    }
}

/// Whether an address lies near this node's pods, so that only routes of pods can lead there: the default route is no way.
fn among_pods(node: &Snapshot, ip: IpAddr) -> bool {
    node.pod_cidrs.iter().any(|cidr| match (cidr.network(), ip) {
        (IpAddr::V4(pods), IpAddr::V4(ip)) => pods.octets()[..2] == ip.octets()[..2],
        (IpAddr::V6(pods), IpAddr::V6(ip)) => pods.octets()[..6] == ip.octets()[..6],
        _ => false,
    })
}

pub(super) fn targets(node: &Snapshot) -> Check {
    const NAME: &str = "service-targets";
    if node.routes.is_none() {
        return unknown(NAME, "the kernel's routes cannot be read");
    }
    let targets = dnat_targets(node);
    let lost: Vec<String> = targets
        .iter()
        .filter(|target| !node.is_local(target.ip))
        .filter_map(|target| {
            let why = match node.route(target.ip) {
                None => "no route".to_owned(),
                Some(route) if route.kind != "unicast" => format!("{} {}", route.kind, route.prefix),
                Some(route) if route.prefix.prefix() == 0 && among_pods(node, target.ip) => {
                    "only the default route".to_owned()
                }
                Some(_) => return None,
            };
            let of =
                if target.service.is_empty() { String::new() } else { format!(" of {}", target.service) };
            Some(format!("{}{of}: {why}", target.ip))
        })
        .collect();
    if lost.is_empty() {
        return ok(NAME, format!("{} targets, a route leads to each", targets.len()));
    }
    problem(
        NAME,
        format!("{} of {} targets: {}", lost.len(), targets.len(), some(&lost)),
        "packets to these Services are lost: manxctl route why PREFIX says why there is no route; is the node that has \
         the pod up, and its session?",
    )
}

/// Behind a NodePort, a host-network pod is the node itself: policies for pods do not hold for it.
pub(super) fn host_network(node: &Snapshot) -> Check {
    const NAME: &str = "node-port-host-network";
    let lines = || node.filters.values().flatten().flat_map(|text| text.lines());
    let node_ports: BTreeSet<String> = lines()
        .filter(|l| l.starts_with("-A KUBE-NODEPORTS "))
        .map(comment)
        .filter(|c| !c.is_empty())
        .collect();
    let found: Vec<String> = dnat_targets(node)
        .into_iter()
        .filter(|target| node_ports.contains(&target.service) && node.is_local(target.ip))
        .map(|target| format!("{} leads to {}", target.service, target.ip))
        .collect();
    if found.is_empty() {
        return ok(NAME, format!("{} NodePorts, none leads to this host itself", node_ports.len()));
    }
    warning(
        NAME,
        some(&found),
        "no NetworkPolicy holds for a host-network pod: guard its port with the host's own firewall, or move it off the host network",
    )
}

fn some(all: &[String]) -> String {
    match all.len() {
        n if n > SHOWN => format!("{} and {} more", all[..SHOWN].join("; "), n - SHOWN),
        _ => all.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::healthy;
    use super::*;
    use crate::view::CheckResult;

    /// As kube-proxy in iptables mode writes it.
    fn proxy(target: &str) -> Option<String> {
        Some(format!(
            "*nat\n-A KUBE-NODEPORTS -p tcp -m comment --comment \"shop/web:http\" -m tcp --dport 30080 -j KUBE-EXT-A\n\
             -A KUBE-SEP-A -p tcp -m comment --comment \"shop/web:http\" -m tcp -j DNAT --to-destination {target}\nCOMMIT\n"
        ))
    }

    fn with_target(target: &str) -> Snapshot {
        let mut node = healthy();
        node.filters.insert("nft4", proxy(target));
        node
    }

    #[test]
    fn targets_that_a_route_leads_to_are_fine() {
        for target in ["10.200.1.5:8080", "10.200.2.9:8080", "10.1.0.11:80", "192.0.2.1:443"] {
            assert_eq!(targets(&with_target(target)).result, CheckResult::Ok, "{target}");
        }
    }

    #[test]
    fn targets_without_a_route_are_named_with_their_service() {
        let gone = targets(&with_target("10.200.1.77:8080"));
        assert_eq!(gone.observed, "1 of 1 targets: 10.200.1.77 of shop/web:http: blackhole 10.200.1.0/24");
        let elsewhere = targets(&with_target("10.200.3.7:8080"));
        assert!(elsewhere.observed.ends_with("10.200.3.7 of shop/web:http: only the default route"));
        let mut node = with_target("192.0.2.1:80");
        node.routes.as_mut().unwrap().remove(0);
        assert!(targets(&node).observed.ends_with("no route"));
    }

    #[test]
    fn kube_proxys_nft_mode_is_read_too() {
        let mut node = healthy();
        node.nft_proxy =
            "chain endpoint-A { meta l4proto tcp dnat to 10.200.3.7:8080 }\n dnat ip6 to [fd00:9::7]:80"
                .to_owned();
        assert!(targets(&node).observed.starts_with("2 of 2 targets: 10.200.3.7"));
    }

    #[test]
    fn a_host_network_back_end_behind_a_node_port_is_told() {
        assert_eq!(host_network(&with_target("10.200.1.5:8080")).result, CheckResult::Ok);
        let check = host_network(&with_target("10.1.0.11:8080"));
        assert_eq!(
            (check.result, check.observed.as_str()),
            (CheckResult::Warning, "shop/web:http leads to 10.1.0.11")
        );
    }
}
