//! Peers that are found as gateways of the kernel's default routes.

use nix::sys::signal::Signal;

use super::world::*;

const GATEWAY: &str = "
apiVersion: manx.dev/v1alpha1
kind: BGPPeer
metadata: {name: gw}
spec: {autoDiscover: DefaultGateway, asNumber: 65001, connectRetry: 1s, families: [ipv4]}
";

fn errors(node: &Node) -> String {
    node.json(&["status"])["bgp"]["errors"].to_string()
}

#[test]
fn the_default_gateway_is_a_peer_and_is_followed_as_the_route_changes() {
    let (node, tor) = Node::wired();
    node.manifest("peer.yaml", GATEWAY);
    tor.address("eth0", "10.1.0.9/24");
    let _bird = Bird::start(&tor, &["10.210.0.0/24"], "");
    let agent = node.start();
    eventually("it is said that there is none", || errors(&node).contains("has no default route (ipv4)"));
    eventually("readiness waits for it", || {
        node.http("/readyz?verbose").is_some_and(|(_, text)| text.contains("gw finds no"))
    });
    let (status, text) = node.http("/readyz?verbose").unwrap();
    assert!(status.contains("503"), "{status}");
    assert!(text.contains("gw finds no default gateway"), "{text}");
    let why = node.manxctl(&["peer", "why", "gw"]);
    assert!(why.code == 1 && why.out.contains("BGPPeer gw names the default gateway"), "{}", why.out);

    node.net.ip("route add default via 10.1.0.1");
    node.established("gw@10.1.0.1");
    eventually("nothing is missing any more", || errors(&node) == "[]");
    eventually("its route is installed", || node.net.route("10.210.0.0/24").is_some());

    // A default route that is taken away and put back, as network managers do, disturbs nobody.
    node.net.ip("route del default");
    node.net.ip("route add default via 10.1.0.1 metric 50");
    // One that is worse is none, and a better one takes its place.
    node.net.ip("route add default via 10.1.0.8 metric 60");
    node.net.ip("route replace default via 10.1.0.9 metric 40");
    eventually("the other gateway is a peer", || node.peers().iter().any(|p| p["name"] == "gw@10.1.0.9"));
    eventually("the first one is none any more", || !node.peers().iter().any(|p| p["name"] == "gw@10.1.0.1"));
    let history = node.json(&["peer", "history", "gw@10.1.0.1"]);
    let lines = history["items"].as_array().unwrap();
    let lost: Vec<_> = lines.iter().filter(|l| l["from"] == "Established").collect();
    assert_eq!((lost.len(), &lost[0]["cause"]), (1, &serde_json::json!("deconfigured")), "{history}");
    assert_eq!(node.peers().len(), 1);
    assert_eq!(agent.stop(Signal::SIGTERM), Some(0));
}
