//! `manx-agent cleanup`: all of ours and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use super::world::*;

/// What others have put beside ours, chosen to look alike.
fn strangers(node: &Node) {
    node.net.ip("route add 10.77.0.0/24 dev lo proto static metric 77");
    node.net.ip("route add blackhole 10.77.1.0/24 proto bird metric 77");
    node.net.ip("-6 route add fd00:77::/64 dev lo proto static metric 77");
    node.net.sh("iptables-nft -N KUBE-FORWARD");
    node.net.sh("iptables-nft -A FORWARD -m comment --comment notmanx:jump -j KUBE-FORWARD");
    node.net.sh("ip6tables-nft -A INPUT -s fd00:77::/64 -j ACCEPT");
    node.net.sh("ipset create manxish hash:ip");
    node.net.link("manxbridge");
}

fn theirs(node: &Node) -> String {
    // Counters move and empty tables of iptables-nft stay, both without meaning. Link-local addresses come when they
    // like, anycast ones with forwarding.
    let rules = node.net.rules();
    let rules = rules.lines().filter(|l| l.starts_with("-A") || l.starts_with("-N"));
    let routes = node.net.ip("-4 route show table all") + &node.net.ip("-6 route show table all");
    let routes = routes.lines().filter(|l| !l.contains("fe80") && !l.contains("anycast"));
    let text: String = rules.chain(routes).map(|l| format!("{l}\n")).collect();
    text + &node.net.sets() + &node.net.ip("-br link")
}

#[test]
fn cleanup_removes_all_of_ours_and_nothing_else() {
    let (node, tor) = Node::wired();
    strangers(&node);
    node.net.link("manx0123456789a");
    node.net.ip("link del manx0123456789a");
    let before = theirs(&node);
    node.manifest("peer.yaml", PEER);
    node.manifest("shop.yaml", &format!("{SHOP}---{POLICY}"));
    let nat = "apiVersion: manx.dev/v1alpha1\nkind: NetworkConfiguration\nmetadata: {name: default}\nspec: {egressNat: {mode: Masquerade}}\n";
    node.manifest("network.yaml", nat);
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let _bird = Bird::start(&tor, &["10.200.7.0/24", "fd00:200:7::/64"], "");
    let web = attachment("web", Some("u1"), 5);
    node.attach(&web);
    let agent = node.start_with(&[]);
    node.settled();
    eventually("routes, rules and sets are there", || {
        node.net.route("fd00:200:7::/64").is_some()
            && node.net.rules().contains(&web.interface)
            && node.net.sets().contains("manx4-")
            && node.net.rules().contains("MASQUERADE")
    });
    agent.stop(Signal::SIGTERM);

    let all = node.net.everything();
    let refused = node.cleanup(&[]);
    refused.complains(&["1 pod", &web.interface, "--force"]);
    assert_eq!(node.net.everything(), all, "refused means untouched");
    assert!(node.conflist().exists() && node.node_json().exists());

    let answer = node.cleanup(&["--force"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert_eq!(theirs(&node), before);
    assert!(!node.conflist().exists() && !node.node_json().exists() && !node.path("run/ipam").exists());
    for what in ["routes", "chains", "set manx4-", &web.interface, "10-manx.conflist"] {
        assert!(answer.out.contains(what), "{what} is not in: {}", answer.out);
    }

    // A second time there is nothing to do.
    let again = node.cleanup(&[]);
    assert_eq!((again.code, again.out.as_str()), (0, ""), "{}", again.err);
}

/// Every file below a directory and what is in it; sockets by name alone.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.insert(entry.path(), b"/".to_vec());
            found.extend(files(&entry.path()));
        } else {
            found.insert(entry.path(), fs::read(entry.path()).unwrap_or_default());
        }
    }
    found
}

/// What the init container, the agent and the plugin have done to a host, as `manifests/` has them do it.
#[test]
fn uninstalling_leaves_the_host_as_it_was_before_installing() {
    let (node, tor) = Node::wired();
    strangers(&node);
    for (dir, file) in
        [("net.d", "99-other.conflist"), ("bin", "loopback"), ("iproute2/rt_protos.d", "README")]
    {
        fs::create_dir_all(node.path(dir)).unwrap();
        fs::write(node.path(dir).join(file), file).unwrap();
    }
    node.manifest("peer.yaml", PEER);
    node.manifest("shop.yaml", &format!("{SHOP}---{POLICY}"));
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let network = "apiVersion: manx.dev/v1alpha1\nkind: NetworkConfiguration\nmetadata: {name: default}\nspec: {egressNat: {mode: Masquerade}}\n---\n\
                   apiVersion: manx.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {name: default}\nspec: {serviceAdvertisement: {clusterIPs: [10.96.0.0/16]}}\n";
    node.manifest("network.yaml", network);
    let image = tempfile::tempdir().unwrap();
    let plugin = image.path().join("manx-cni");
    fs::write(&plugin, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    let _bird = Bird::start(&tor, &["10.200.7.0/24", "fd00:200:7::/64"], "");
    let rules = |node: &Node| node.net.ip("-4 rule") + &node.net.ip("-6 rule") + &node.net.ip("nexthop");
    // Forwarding brings anycast routes along and stays, as docs/operations.md says.
    node.net.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
    let before = (files(&node.path("")), theirs(&node), rules(&node));

    let mut prepare = Command::new(env!("CARGO_BIN_EXE_manx-agent"));
    prepare.arg("prepare").args(["--enable", "bgp,cni"]).arg("--cni-plugin").arg(&plugin);
    prepare.arg("--cni-bin-dir").arg(node.path("bin")).arg("--iproute2-dir").arg(node.path("iproute2"));
    let prepared = node.net.output(&mut prepare);
    assert!(prepared.status.success(), "{prepared:?}");
    assert!(node.path("bin/manx").exists() && node.path("iproute2/rt_protos.d/manx.conf").exists());
    let agent = node.start_with(&["--cni-plugin", plugin.to_str().unwrap()]);
    node.settled();
    let web = attachment("web", Some("u1"), 5);
    node.attach(&web);
    eventually("all of it is on the host", || {
        node.net.route("fd00:200:7::/64").is_some()
            && node.net.rules().contains(&web.interface)
            && node.net.rules().contains("MASQUERADE")
            && node.net.sets().contains("manx4-")
            && node.net.ip("nexthop").contains("proto")
            && node.net.ip("-4 rule").contains("10.96.0.0/16")
            && node.conflist().exists()
            && node.node_json().exists()
    });
    agent.stop(Signal::SIGTERM);

    let (bin, iproute2) = (node.path("bin"), node.path("iproute2"));
    let directories = ["--cni-bin-dir", bin.to_str().unwrap(), "--iproute2-dir", iproute2.to_str().unwrap()];
    let answer = node.cleanup(&[&["--force"], &directories[..]].concat());
    assert_eq!(answer.code, 0, "{}", answer.err);
    let mut left = files(&node.path(""));
    left.remove(&node.path("log"));
    assert_eq!(left.keys().collect::<Vec<_>>(), before.0.keys().collect::<Vec<_>>());
    assert_eq!((left, theirs(&node), rules(&node)), before);
}

#[test]
fn cleanup_knows_pods_by_the_prefix_that_the_agent_was_given() {
    let node = Node::alone();
    let agent = node.start_with(&["--pod-interface-prefix", "px"]);
    node.settled();
    agent.stop(Signal::SIGTERM);
    node.net.link("px0123456789a");
    node.cleanup(&[]).complains(&["px0123456789a", "--force"]);
    let answer = node.cleanup(&["--force"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(!node.net.ip("-br link").contains("px0123456789a"));
}

#[test]
fn cleanup_of_a_namespace_that_never_had_an_agent_does_nothing() {
    let node = Node::bare("n1");
    strangers(&node);
    let before = theirs(&node);
    let answer = node.cleanup(&[]);
    assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{}", answer.err);
    assert_eq!(theirs(&node), before);
}

#[test]
fn cleanup_leaves_other_networks_configurations_and_the_run_directory_of_others() {
    let node = Node::alone();
    fs::create_dir(node.path("net.d")).unwrap();
    fs::write(node.path("net.d/99-other.conflist"), "{}").unwrap();
    node.start().stop(Signal::SIGTERM);
    fs::write(node.path("run/somebody.elses"), "x").unwrap();
    assert_eq!(node.cleanup(&[]).code, 0);
    assert!(node.path("net.d/99-other.conflist").exists());
    assert!(node.path("run/somebody.elses").exists());
    assert!(!node.conflist().exists());
}
