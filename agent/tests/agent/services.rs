//! Service addresses: told to a router, by endpoints and cordon, and guarded against packets that go in circles.

use super::world::*;

const CONFIG: &str = "
apiVersion: manx.dev/v1alpha1
kind: BGPConfiguration
metadata: {name: default}
spec: {serviceAdvertisement: {clusterIPs: [10.96.0.0/16, 'fd00:96::/112'], loadBalancerIPs: [198.51.100.0/24]}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: LoadBalancer, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], externalTrafficPolicy: Local}
status: {loadBalancer: {ingress: [{ip: 198.51.100.7}]}}
";

/// The Service's endpoint on a node, ready or not.
fn endpoint(node: &str, ready: bool) -> String {
    format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{{addresses: [10.200.1.5], nodeName: {node}, conditions: {{ready: {ready}}}}}]
"
    )
}

const RANGES: [&str; 3] = ["10.96.0.0/16", "fd00:96::/112", "198.51.100.0/24"];
const HOST: &str = "198.51.100.7/32";

fn eventually_told(bird: &Bird, prefixes: &[&str], not: &[&str]) {
    let told = |prefix: &&str| bird.ask(&format!("show route {prefix}")).contains(*prefix);
    eventually(&format!("{prefixes:?} are told, {not:?} are not"), || {
        prefixes.iter().all(told) && !not.iter().any(told)
    });
}

#[test]
fn ranges_and_local_addresses_are_told_as_endpoints_and_cordon_say() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", PEER);
    node.manifest("config.yaml", CONFIG);
    node.manifest("slice.yaml", &endpoint("n2", true));
    let bird = Bird::start(&tor, &[], "");
    let _agent = node.start();
    node.established("tor");
    // The cluster address is within a block, but traffic for it is taken where there is an endpoint.
    eventually_told(&bird, &RANGES, &[HOST, "10.96.0.7/32"]);
    node.manifest("slice.yaml", &endpoint("n1", true));
    eventually_told(&bird, &[HOST, "10.96.0.7/32"], &[]);
    let services = node.json(&["status"])["bgp"]["services"].to_string();
    assert!(services.contains(HOST), "{services}");
    node.manifest("slice.yaml", &endpoint("n1", false));
    eventually_told(&bird, &RANGES, &[HOST]);
    node.manifest("slice.yaml", &endpoint("n1", true));
    eventually_told(&bird, &[HOST], &[]);

    // No route of ours is in the node's own way to a Service; what it forwards has to be translated before.
    node.net.ip("route add default via 10.1.0.1");
    assert!(node.net.ip("route get 10.96.0.99").contains("via 10.1.0.1"), "this node connects to Services");
    let forwarded = |to: &str| {
        let question = format!("ip route get {to} from 10.1.0.1 iif eth0 2>&1 || true");
        node.net.run("sh", &["-c", &question])
    };
    for address in ["10.96.0.99", "198.51.100.99"] {
        let answer = forwarded(address);
        assert!(answer.contains("Invalid argument"), "a packet for {address} would go in circles: {answer}");
    }
    assert!(forwarded("192.0.2.1").contains("via 10.1.0.1"), "others pass");

    // Pods are taken no more, and traffic for Services neither; the pods that are here keep theirs.
    node.manifest("node.yaml", &NODE.replace("spec: {", "spec: {unschedulable: true, "));
    eventually_told(&bird, &["10.200.1.0/24"], &[&RANGES[..], &[HOST]].concat());
    node.remove_manifest("config.yaml");
    eventually("nothing is guarded any more", || !node.net.ip("rule").contains("blackhole"));
    assert!(!node.net.ip("rule").contains("iif lo"), "{}", node.net.ip("rule"));
}

#[test]
fn rules_of_a_predecessor_go_and_cleanup_takes_ours_only() {
    let node = Node::alone();
    node.net.ip("rule add to 10.99.0.0/16 blackhole pref 32765 protocol 77");
    node.net.ip("rule add to 10.98.0.0/16 blackhole pref 32765 protocol 99");
    node.manifest("config.yaml", CONFIG);
    let agent = node.start();
    let guarded = |ranges: &[&str]| {
        eventually(&format!("{ranges:?} are guarded"), || {
            let rules = node.net.ip("rule") + &node.net.ip("-6 rule");
            rules.matches("blackhole").count() == ranges.len()
                && ranges.iter().all(|range| rules.contains(&format!("to {range} blackhole")))
        });
    };
    guarded(&[&RANGES[..], &["10.98.0.0/16"]].concat());
    agent.stop(nix::sys::signal::Signal::SIGTERM);
    guarded(&[&RANGES[..], &["10.98.0.0/16"]].concat());
    assert_eq!(node.cleanup(&[]).code, 0);
    guarded(&["10.98.0.0/16"]);
}
