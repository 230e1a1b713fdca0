//! Services over BGP: which of their addresses this node takes traffic for.
//!
//! The configured ranges are advertised whole by every node, so that ten thousand Services cost as many routes as there are
//! ranges. Beside them go host routes where the addresses of a range differ by node or come and go: external addresses and
//! those of load balancers while the Service has a ready endpoint, and any address whose traffic only nodes with an endpoint
//! of their own take (`externalTrafficPolicy: Local`, for cluster addresses `internalTrafficPolicy: Local` as well). A range
//! of a single address is a host route. Filters decide who is told what of these.
//!
//! A cordoned node advertises none (its pod CIDR stays), and one that is excluded from load balancers only cluster addresses.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use manx_bgp::types::Prefix;

use crate::config::ServiceAdvertisement;
use crate::source::{EndpointSlice, Node, Service};

/// The label by which a node says that no traffic from load balancers shall come to it (Kubernetes, well-known labels).
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Namespace and name.
type Name = (String, String);

/// The Services of the cluster and where their endpoints are.
#[derive(Debug, Default)]
pub(super) struct Services {
    services: BTreeMap<Name, Service>,
    slices: BTreeMap<Name, Slice>,
    /// Slices by their Service.
    of_service: BTreeMap<Name, BTreeSet<Name>>,
    /// Grows with every change.
    version: u64,
    /// The last answer: the question comes with every change of anything.
    answered: RefCell<Option<(Question, BTreeSet<Prefix>)>>,
}

/// All that an answer depends on.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    version: u64,
    ranges: ServiceAdvertisement,
    cordoned: bool,
    excluded: bool,
}

/// What counts of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slice {
    service: Name,
    /// Has a ready endpoint.
    ready: bool,
    /// Has one on this node.
    ready_here: bool,
}

impl Services {
    pub(super) fn set_service(&mut self, service: &Service) {
        let name = (service.namespace.clone(), service.name.clone());
        if self.services.get(&name) != Some(service) {
            self.services.insert(name, service.clone());
            self.version += 1;
        }
    }

    pub(super) fn remove_service(&mut self, namespace: &str, name: &str) {
        if self.services.remove(&(namespace.to_owned(), name.to_owned())).is_some() {
            self.version += 1;
        }
    }

    /// Takes in a slice as seen from the node `here`.
    pub(super) fn set_slice(&mut self, here: &str, slice: &EndpointSlice) {
        let name = (slice.namespace.clone(), slice.name.clone());
        let new = slice.service.as_ref().map(|service| Slice {
            service: (slice.namespace.clone(), service.clone()),
            ready: slice.endpoints.iter().any(|e| e.ready),
            ready_here: slice.endpoints.iter().any(|e| e.ready && e.node.as_deref() == Some(here)),
        });
        if self.slices.get(&name) == new.as_ref() {
            return;
        }
        self.remove_slice(&name.0, &name.1);
        if let Some(new) = new {
            self.of_service.entry(new.service.clone()).or_default().insert(name.clone());
            self.slices.insert(name, new);
            self.version += 1;
        }
    }

    pub(super) fn remove_slice(&mut self, namespace: &str, name: &str) {
        let name = (namespace.to_owned(), name.to_owned());
        let Some(old) = self.slices.remove(&name) else { return };
        if let Some(slices) = self.of_service.get_mut(&old.service) {
            slices.remove(&name);
            if slices.is_empty() {
                self.of_service.remove(&old.service);
            }
        }
        self.version += 1;
    }

    /// What `node` advertises.
    pub(super) fn advertised(&self, ranges: &ServiceAdvertisement, node: &Node) -> BTreeSet<Prefix> {
        let question = Question {
            version: self.version,
            ranges: ranges.clone(),
            cordoned: node.unschedulable,
            excluded: node.labels.contains_key(EXCLUDED),
        };
        let mut answered = self.answered.borrow_mut();
        match &*answered {
            Some((before, answer)) if *before == question => answer.clone(),
            _ => {
                let answer = self.answer(&question);
                *answered = Some((question, answer.clone()));
                answer
            }
        }
    }

    fn answer(&self, question: &Question) -> BTreeSet<Prefix> {
        let mut prefixes = BTreeSet::new();
        let ranges = &question.ranges;
        if question.cordoned || ranges.all().next().is_none() {
            return prefixes;
        }
        let external =
            [&ranges.external, &ranges.load_balancer].map(|r| if question.excluded { &[] } else { &r[..] });
        prefixes
            .extend(ranges.cluster.iter().chain(external.into_iter().flatten()).copied().filter(is_block));
        for (name, service) in &self.services {
            let slices =
                || self.of_service.get(name).into_iter().flatten().filter_map(|slice| self.slices.get(slice));
            let ready_here = slices().any(|slice| slice.ready_here);
            let taken = |local: bool| if local { ready_here } else { slices().any(|slice| slice.ready) };
            let within = |ranges: &[Prefix], ip: IpAddr| {
                let mut holding = ranges.iter().filter(|range| IpNetwork::from(**range).contains(ip));
                holding
                    .next()
                    .map(|first| holding.fold(*first, |a, b| if b.len() > a.len() { *b } else { a }))
            };
            let local = service.external_local || service.internal_local;
            for ip in &service.cluster_ips {
                // Within a block only what differs by node needs a route of its own.
                if within(&ranges.cluster, *ip).is_some_and(|range| local || !is_block(&range))
                    && taken(local)
                {
                    prefixes.insert(host(*ip));
                }
            }
            for (ips, ranges) in
                [(&service.external_ips, external[0]), (&service.load_balancer_ips, external[1])]
            {
                let ours = ips.iter().filter(|ip| within(ranges, **ip).is_some());
                prefixes.extend(ours.filter(|_| taken(service.external_local)).map(|ip| host(*ip)));
            }
        }
        prefixes
    }
}

/// More than one address.
fn is_block(prefix: &Prefix) -> bool {
    let net = IpNetwork::from(*prefix);
    u32::from(net.prefix()) < if net.is_ipv4() { 32 } else { 128 }
}

fn host(ip: IpAddr) -> Prefix {
    Prefix::from(IpNetwork::from(ip))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::config::NodeAnnotations;
    use crate::source::{Endpoint, ServiceKind};

    fn ranges() -> ServiceAdvertisement {
        let list = |l: &[&str]| l.iter().map(|p| Prefix::from(p.parse::<IpNetwork>().unwrap())).collect();
        ServiceAdvertisement {
            cluster: list(&["10.96.0.0/16", "10.97.0.1/32", "fd00:96::/112"]),
            external: list(&["192.0.2.0/24"]),
            load_balancer: list(&["198.51.100.0/24", "198.51.100.64/26", "2001:db8:1b::/64"]),
        }
    }

    fn node(name: &str) -> Node {
        Node {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            annotations: NodeAnnotations::default(),
            kube_router: None,
            pod_cidrs: Vec::new(),
            internal_ips: Vec::new(),
            external_ips: Vec::new(),
            unschedulable: false,
        }
    }

    fn service(name: &str, change: impl FnOnce(&mut Service)) -> Service {
        let mut service = Service {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::new(),
            kind: ServiceKind::LoadBalancer,
            cluster_ips: BTreeSet::new(),
            external_ips: BTreeSet::new(),
            load_balancer_ips: BTreeSet::new(),
            external_local: false,
            internal_local: false,
        };
        change(&mut service);
        service
    }

    fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    /// A slice with an endpoint on each of these nodes; those with a minus are not ready.
    fn slice(name: &str, of: &str, nodes: &[&str]) -> EndpointSlice {
        let endpoint = |node: &&str| Endpoint {
            addresses: Vec::new(),
            node: Some(node.trim_start_matches('-').to_owned()),
            ready: !node.starts_with('-'),
            serving: true,
            terminating: node.starts_with('-'),
        };
        EndpointSlice {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            service: Some(of.to_owned()),
            endpoints: nodes.iter().map(endpoint).collect(),
        }
    }

    /// Host routes only, as text.
    fn hosts(services: &Services, node: &Node) -> Vec<String> {
        let all = services.advertised(&ranges(), node);
        all.into_iter().filter(|p| !is_block(p)).map(|p| p.to_string()).collect()
    }

    #[test]
    fn blocks_are_advertised_whole_by_every_node_that_takes_pods() {
        let services = Services::default();
        let all: Vec<_> =
            services.advertised(&ranges(), &node("n1")).into_iter().map(|p| p.to_string()).collect();
        let blocks = [
            "10.96.0.0/16",
            "192.0.2.0/24",
            "198.51.100.0/24",
            "198.51.100.64/26",
            "2001:db8:1b::/64",
            "fd00:96::/112",
        ];
        assert_eq!(all, blocks, "a single address is no block");
        assert_eq!(services.advertised(&ServiceAdvertisement::default(), &node("n1")), BTreeSet::new());
    }

    #[test]
    fn a_cordoned_node_advertises_no_service_and_an_excluded_one_only_cluster_addresses() {
        let mut services = Services::default();
        services.set_service(&service("web", |s| {
            s.cluster_ips = ips(&["10.97.0.1"]);
            s.load_balancer_ips = ips(&["198.51.100.7"]);
        }));
        services.set_slice("n1", &slice("web-1", "web", &["n2"]));
        assert_eq!(hosts(&services, &node("n1")), ["10.97.0.1/32", "198.51.100.7/32"]);
        let cordoned = Node { unschedulable: true, ..node("n1") };
        assert_eq!(services.advertised(&ranges(), &cordoned), BTreeSet::new());
        let mut excluded = node("n1");
        excluded.labels.insert(EXCLUDED.to_owned(), String::new());
        let left = services.advertised(&ranges(), &excluded);
        let left: Vec<_> = left.into_iter().map(|p| p.to_string()).collect();
        assert_eq!(left, ["10.96.0.0/16", "10.97.0.1/32", "fd00:96::/112"]);
    }

    #[rstest]
    #[case::nowhere(&[], &[], &[])]
    #[case::only_unready(&["-n1", "-n2"], &[], &[])]
    #[case::elsewhere(&["n2", "-n1"], &["198.51.100.7/32"], &[])]
    #[case::here(&["n1"], &["198.51.100.7/32"], &["198.51.100.7/32"])]
    fn a_load_balancers_address_follows_ready_endpoints(
        #[case] nodes: &[&str],
        #[case] cluster: &[&str],
        #[case] local: &[&str],
    ) {
        for (policy_local, expected) in [(false, cluster), (true, local)] {
            let mut services = Services::default();
            services.set_service(&service("web", |s| {
                s.load_balancer_ips = ips(&["198.51.100.7", "203.0.113.1"]);
                s.external_local = policy_local;
            }));
            services.set_slice("n1", &slice("web-1", "web", nodes));
            services.set_slice("n1", &slice("other-1", "other", &["n1"]));
            assert_eq!(hosts(&services, &node("n1")), expected, "Local: {policy_local}");
        }
    }

    #[test]
    fn an_address_is_taken_from_the_ranges_of_its_own_kind_only() {
        let mut services = Services::default();
        services.set_service(&service("web", |s| {
            s.cluster_ips = ips(&["192.0.2.1"]);
            s.external_ips = ips(&["198.51.100.1", "192.0.2.9"]);
            s.load_balancer_ips = ips(&["10.97.0.1"]);
        }));
        services.set_slice("n1", &slice("web-1", "web", &["n1"]));
        assert_eq!(hosts(&services, &node("n1")), ["192.0.2.9/32"]);
    }

    #[test]
    fn cluster_addresses_within_a_block_need_host_routes_only_where_nodes_differ() {
        let mut services = Services::default();
        services.set_service(&service("even", |s| s.cluster_ips = ips(&["10.96.0.5", "fd00:96::5"])));
        services.set_service(&service("local", |s| {
            s.cluster_ips = ips(&["10.96.0.6", "fd00:96::6"]);
            s.internal_local = true;
        }));
        for name in ["even", "local"] {
            services.set_slice("n1", &slice(&format!("{name}-1"), name, &["n1"]));
        }
        assert_eq!(hosts(&services, &node("n1")), ["10.96.0.6/32", "fd00:96::6/128"]);
    }

    #[test]
    fn what_comes_and_goes_in_any_order_leaves_what_is_there() {
        let web = service("web", |s| s.load_balancer_ips = ips(&["198.51.100.7"]));
        let mut services = Services::default();
        services.set_slice("n1", &slice("web-1", "web", &["n1"]));
        services.set_slice("n1", &slice("web-2", "web", &["n2"]));
        services.set_service(&web);
        let version = services.version;
        services.set_service(&web);
        services.set_slice("n1", &slice("web-2", "web", &["n2"]));
        assert_eq!(services.version, version, "nothing has changed");
        // A slice moves to another Service.
        services.set_slice("n1", &slice("web-1", "other", &["n1"]));
        assert_eq!(hosts(&services, &node("n1")), ["198.51.100.7/32"]);
        services.remove_slice("shop", "web-2");
        assert!(hosts(&services, &node("n1")).is_empty());
        services.remove_slice("shop", "web-1");
        services.remove_service("shop", "web");
        assert!(services.services.is_empty() && services.slices.is_empty() && services.of_service.is_empty());
    }
}
