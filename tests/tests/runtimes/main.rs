//! Real container runtimes with Manx as their network: containerd by its CRI socket, one on each of two nodes, and podman
//! with its CNI back end. Pods run busybox; what they say comes from inside of them.
//!
//! Needs root, the release binaries of `make build`, and Debian's containerd, podman, runc and busybox-static. Every
//! directory, image and network namespace is this test's own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod containerd;
mod cri;
mod image;
mod podman;
mod site;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use manx_tests::wait;

use containerd::{Containerd, Pod};
use podman::Podman;
use site::{NODES, Site};

/// Longer than anything here takes on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(40);

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let met = wait::until(PATIENCE, || if condition() { Ok(()) } else { Err(()) });
    assert!(met.is_ok(), "not within {PATIENCE:?}: {what}");
}

/// Where every pod here serves its own name.
const PORT: u16 = 8080;

/// That server as its own pod sees it.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);

/// Both addresses of a pod's server.
fn servers(pod: &Pod) -> Vec<SocketAddr> {
    assert_eq!(pod.addresses.len(), 2, "{:?}", pod.addresses);
    pod.addresses.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect()
}

/// A line of shell that prints the page of a web server, or fails. busybox's wget looks names up, for which a static binary
/// needs libraries that are not in the image.
fn fetching(server: SocketAddr) -> String {
    format!(
        "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {} {} | grep -v : | grep -v HTTP | grep '[a-z]'",
        server.ip(),
        server.port()
    )
}

#[test]
fn pods_of_two_containerds_talk_obey_policy_serve_a_host_port_and_leave_nothing() {
    let site = Site::new("cd");
    let runtimes = NODES.map(|node| Containerd::start(&site, node));
    let [near, far] = &runtimes;
    let web = near.run(&site, "web", &[("role", "web")], &[(18080, 8080)]);
    let client = far.run(&site, "client", &[("role", "client")], &[]);
    let stranger = far.run(&site, "stranger", &[], &[]);

    eventually("routes between the nodes", || servers(&web).iter().all(|s| client.fetch(*s).is_some()));
    for server in servers(&web) {
        assert_eq!(client.fetch(server).as_deref(), Some("web"), "{server}");
        assert_eq!(stranger.fetch(server).as_deref(), Some("web"), "{server}");
    }
    for server in servers(&client) {
        assert_eq!(web.fetch(server).as_deref(), Some("client"), "{server}");
    }
    let host_port = SocketAddr::from((NODES[0].ipv4, 18080));
    assert_eq!(client.fetch(host_port).as_deref(), Some("web"));

    site.cluster.put_text("policy", ONLY_CLIENTS).unwrap();
    for server in servers(&web).into_iter().chain([host_port]) {
        eventually("strangers are kept out", || stranger.fetch(server).is_none());
        assert_eq!(client.fetch(server).as_deref(), Some("web"), "{server}");
    }

    near.delete(&site, web);
    far.delete(&site, client);
    far.delete(&site, stranger);
    for node in NODES {
        site.assert_nothing_left(node);
    }
    assert!(site.fetch(NODES[1], host_port).is_none());
}

const ONLY_CLIENTS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {role: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {role: client}}}]
    ports: [{port: 8080}]
";

/// The first packet of a pod meets its policy: containerd starts the container only after ADD.
#[test]
fn a_pod_that_policy_isolates_never_reaches_anybody_from_its_first_moment() {
    let site = Site::new("first");
    let runtime = Containerd::start(&site, NODES[0]);
    let web = runtime.run(&site, "web", &[], &[]);
    site.cluster
        .put_text(
            "policy",
            "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shut, namespace: default}
spec: {podSelector: {matchLabels: {role: shut}}, policyTypes: [Egress]}
",
        )
        .unwrap();
    for round in 0..3 {
        let command = servers(&web)
            .into_iter()
            .map(|server| format!("{} >>/www/reached\n", fetching(server)))
            .collect::<String>();
        let name = format!("shut-{round}");
        let pod = runtime.run_with(&site, &name, &[("role", "shut")], &[], &command);
        eventually("it has tried", || pod.exec("cat /www/index.html").is_some());
        assert_eq!(pod.exec("cat /www/reached").unwrap_or_default(), "", "round {round}");
        runtime.delete(&site, pod);
    }
    runtime.delete(&site, web);
    site.assert_nothing_left(NODES[0]);
}

/// The plugin's file is replaced while pods come and go, and the agent is replaced as well.
#[test]
fn plugin_and_agent_are_upgraded_in_place_while_pods_come_and_go() {
    let mut site = Site::new("up");
    let runtime = Containerd::start(&site, NODES[0]);
    let keep = runtime.run(&site, "keep", &[], &[]);
    let before = site.installed_plugin(NODES[0]);
    std::thread::scope(|scope| {
        let (runtime, shared) = (&runtime, site.shared());
        let pods = scope.spawn(move || {
            for n in 0..8 {
                let pod = runtime.run(&shared, &format!("short-{n}"), &[], &[]);
                runtime.delete(&shared, pod);
            }
        });
        site.replace_plugin();
        eventually("the new plugin is there", || site.installed_plugin(NODES[0]) != before);
        site.restart_agent(NODES[0]);
        site.replace_plugin();
        pods.join().unwrap();
    });
    eventually("the pod that stayed is served", || {
        servers(&keep).into_iter().all(|s| site.fetch(NODES[0], s).as_deref() == Some("keep"))
    });
    runtime.delete(&site, keep);
    site.assert_nothing_left(NODES[0]);
}

#[test]
fn podmans_containers_talk_across_nodes_publish_a_port_and_leave_nothing() {
    let site = Site::new("pm");
    let [near, far] = NODES.map(|node| Podman::new(&site, node));
    let web = near.run("web", &["-p", "18081:8080"]);
    let client = far.run("client", &[]);
    eventually("routes between the nodes", || client.fetch(SocketAddr::from((web.ipv4, PORT))).is_some());
    assert_eq!(client.fetch(SocketAddr::from((web.ipv4, PORT))).as_deref(), Some("web"));
    assert_eq!(web.fetch(SocketAddr::from((client.ipv4, PORT))).as_deref(), Some("client"));
    let published = SocketAddr::from((NODES[0].ipv4, 18081));
    assert_eq!(client.fetch(published).as_deref(), Some("web"));

    // A container has the labels of the Pod of its name in `default`.
    site.put_pod(NODES[0], "web", "podman", &[("role", "web")], &[web.ipv4]);
    site.cluster.put_text("policy", ONLY_CLIENTS).unwrap();
    eventually("strangers are kept out", || client.fetch(SocketAddr::from((web.ipv4, PORT))).is_none());

    near.restart(&web);
    near.remove("web");
    far.remove("client");
    for node in NODES {
        site.assert_nothing_left(node);
    }
}
