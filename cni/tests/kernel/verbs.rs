//! The real plugin in throwaway namespaces: what each verb does to the kernel and to the store, and that failures leave
//! nothing.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use manx_cni::agent::Request;
use manx_cni::sweep::Sweeper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::node::{self, Manner, NODE_V4, NODE_V6, Namespace, Node, Outcome, Pod, address, eventually, tcp};

/// Proxy ARP costs 125 to 727 ms on the first packet, detection of duplicates two seconds; a loaded machine some ms.
const FAST: Duration = Duration::from_millis(100);

/// A busy machine stands still for once; what is wrong with a link is wrong with those of three fresh pods. `slowest`: the
/// slowest first packet of one.
fn first_packets_are_fast(slowest: impl Fn() -> Duration) {
    let mut took = Vec::new();
    while took.len() < 3 {
        took.push(slowest());
        if took.last() < Some(&FAST) {
            return;
        }
    }
    panic!("the first packet took {took:?}");
}

#[test]
fn add_connects_both_families_and_the_first_packet_is_fast() {
    first_packets_are_fast(|| {
        let node = Node::new();
        let pod = Pod::new("web");
        let start = Instant::now();
        let result = node.add(&pod);
        let first = [(false, NODE_V6), (true, NODE_V4)].map(|(v4, node_ip)| {
            let ip = address(&result, v4);
            let first = tcp(&node.ns, &pod.ns, &ip);
            tcp(&pod.ns, &node.ns, node_ip);
            node.ns.run("ping", &["-c1", "-W1", &ip]);
            pod.ns.run("ping", &["-c1", "-W1", node_ip]);
            first
        });
        assert!(start.elapsed() < Duration::from_secs(2), "no address is tentative for long");
        first.into_iter().max().expect("two families")
    });
}

#[test]
fn pods_of_one_node_reach_each_other() {
    first_packets_are_fast(|| {
        let node = Node::new();
        let (a, b) = (Pod::new("a"), Pod::new("b"));
        node.add(&a);
        let result = node.add(&b);
        let first = [true, false].map(|v4| tcp(&a.ns, &b.ns, &address(&result, v4)));
        first.into_iter().max().expect("two families")
    });
}

#[test]
fn the_result_says_what_the_kernel_has() {
    let node = Node::new();
    let pod = Pod::new("web");
    let result = node.add(&pod);
    let [host, eth0] = result["interfaces"].as_array().unwrap().as_slice() else { panic!("{result}") };
    assert_eq!(host.get("sandbox"), None, "bandwidth knows the host end by its empty sandbox");
    assert_eq!(eth0["sandbox"], pod.ns.path());
    let link = &pod.ns.ip_json(&["link", "show", "eth0"])[0];
    assert_eq!((&link["address"], &link["mtu"]), (&eth0["mac"], &json!(1450)));
    let link = &node.ns.ip_json(&["link", "show", host["name"].as_str().unwrap()])[0];
    assert_eq!(
        (&link["address"], &link["mtu"], &link["operstate"]),
        (&host["mac"], &json!(1450), &json!("UP"))
    );
    let attachment = &node.store().attachments().unwrap()[0];
    assert_eq!(attachment.interface, host["name"].as_str().unwrap());
    assert_eq!(
        attachment.ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [address(&result, true), address(&result, false)]
    );
    assert_eq!(
        (
            attachment.namespace.as_deref(),
            attachment.pod.as_deref(),
            attachment.uid.as_deref(),
            attachment.network.as_deref()
        ),
        (Some("shop"), Some("web"), Some("uid-web"), Some("manx"))
    );
    assert_eq!(attachment.netns.as_deref(), Some(pod.ns.path().as_str()));
    // The agent was asked about this very attachment.
    assert_eq!(node.requests(), [Request::Confirm { attachment: attachment.clone() }]);
}

#[test]
fn host_routes_and_neighbours_are_as_the_link_model_says() {
    let node = Node::new();
    let pod = Pod::new("web");
    let result = node.add(&pod);
    for (family, v4) in [("-4", true), ("-6", false)] {
        let routes = node.ns.ip_json(&[family, "route", "show", &address(&result, v4)]);
        assert_eq!((&routes[0]["protocol"], &routes[0]["metric"]), (&json!("77"), &json!(76)), "{routes:?}");
    }
    let permanent = |ns: &Namespace| -> BTreeSet<String> {
        let all = ns.ip_json(&["neigh", "show", "nud", "permanent"]);
        all.iter().map(|n| n["dst"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(permanent(&node.ns), BTreeSet::from([address(&result, true), address(&result, false)]));
    assert_eq!(permanent(&pod.ns), BTreeSet::from(["169.254.1.1".to_owned(), "fe80::1".to_owned()]));
    let host = result["interfaces"][0]["name"].as_str().unwrap();
    let has = |key: &str| {
        node.ns.run("sysctl", &["-n", &format!("net.{key}").replace("IF", host)]).trim().to_owned()
    };
    assert_eq!(has("ipv4.conf.IF.forwarding"), "1");
    assert_eq!(
        (has("ipv6.conf.IF.forwarding"), has("ipv6.conf.IF.accept_ra")),
        ("1".to_owned(), "0".to_owned())
    );
    assert_eq!(has("ipv4.conf.IF.proxy_arp"), "0");
    let tentative =
        pod.ns.ip(&["-6", "addr", "show", "tentative"]) + &node.ns.ip(&["-6", "addr", "show", "tentative"]);
    assert_eq!(tentative, "");
}

#[test]
fn del_leaves_nothing_and_can_be_repeated_bare() {
    let node = Node::new();
    let pod = Pod::new("web");
    node.add(&pod);
    let host = node.ns.links();
    assert_eq!(host.len(), 1);
    node.del(&pod);
    node.assert_nothing_left();
    assert_eq!(pod.ns.links(), [""; 0]);
    // containerd: three DELs a pod, two of them bare.
    for _ in 0..2 {
        let mut bare = node.plugin(&node::binary(), "DEL", Some(&pod));
        bare.env("CNI_NETNS", "").env_remove("CNI_ARGS");
        let mut child = bare.spawn().unwrap();
        node::feed(&mut child, &node.conf(&json!({})));
        Outcome::of(child).silent();
    }
}

#[test]
fn del_needs_neither_agent_nor_node_json_nor_namespace() {
    let node = Node::new();
    let pod = Pod::new("web");
    node.add(&pod);
    node.stop_agent();
    manx_cni::node::remove(node.run_dir()).unwrap();
    let Pod { ns, id, args } = pod;
    let path = ns.path();
    drop(ns);
    let mut command = node.plugin(&node::binary(), "DEL", None);
    command.env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0").env("CNI_NETNS", path).env("CNI_ARGS", args);
    let mut child = command.spawn().unwrap();
    node::feed(&mut child, &node.conf(&json!({})));
    Outcome::of(child).silent();
    // Its namespace took the link along, after a while.
    eventually("the end of the link", || node.ns.links().is_empty());
    node.assert_nothing_left();
}

#[test]
fn del_does_not_wait_for_the_kernels_grace_period() {
    let node = Node::new();
    let mut times: Vec<Duration> = (0..9)
        .map(|i| {
            let pod = Pod::new(&format!("p{i}"));
            node.add(&pod);
            let start = Instant::now();
            node.del(&pod);
            let took = start.elapsed();
            assert_eq!(node.ns.links(), [""; 0], "the link is unlisted when DEL returns");
            took
        })
        .collect();
    times.sort();
    // The kernel's own wait is 20 ms and more.
    assert!(times[4] < Duration::from_millis(20), "{times:?}");
}

#[test]
fn del_finds_the_link_when_all_state_is_lost() {
    let node = Node::new();
    let pod = Pod::new("web");
    node.add(&pod);
    fs::remove_dir_all(node.run_dir().join("ipam")).unwrap();
    node.del(&pod);
    node.assert_nothing_left();
}

#[test]
fn add_repairs_a_link_whose_state_is_lost() {
    let node = Node::new();
    let pod = Pod::new("web");
    node.add(&pod);
    fs::remove_dir_all(node.run_dir().join("ipam")).unwrap();
    let result = node.add(&pod);
    tcp(&node.ns, &pod.ns, &address(&result, true));
    node.del(&pod);
    node.assert_nothing_left();
}

#[test]
fn second_add_of_an_attachment_is_an_error_and_harms_nothing() {
    let node = Node::new();
    let pod = Pod::new("web");
    let result = node.add(&pod);
    let (code, text) = node.call("ADD", Some(&pod), &node.conf(&json!({}))).error();
    assert_eq!(code, 101, "{text}");
    tcp(&node.ns, &pod.ns, &address(&result, true));
    check(&node, &pod, &result).silent();
}

#[test]
fn a_new_sandbox_of_a_pod_may_come_before_the_old_ones_del() {
    let node = Node::new();
    let (old, new) = (Pod::new("web"), Pod::new("web"));
    node.add(&old);
    let result = node.add(&new);
    node.del(&old);
    tcp(&node.ns, &new.ns, &address(&result, true));
    assert_eq!(node.store().attachments().unwrap().len(), 1);
}

#[test]
fn without_node_json_add_is_code_11_with_a_remedy() {
    let node = Node::new();
    let pod = Pod::new("web");
    manx_cni::node::remove(node.run_dir()).unwrap();
    let (code, text) = node.call("ADD", Some(&pod), &node.conf(&json!({}))).error();
    assert!(
        code == 11 && text.contains("the agent is not ready") && text.contains("manxctl status"),
        "{code} {text}"
    );
    node.assert_nothing_left();
    assert_eq!(pod.ns.links(), [""; 0]);
}

#[test]
fn an_agent_that_refuses_hangs_up_is_slow_or_absent_is_code_11_and_leaves_nothing() {
    let node = Node::new();
    let pod = Pod::new("web");
    let short = node.conf(&json!({ "policyTimeout": "200ms" }));
    for manner in
        [Manner::Refuse(11), Manner::Refuse(50), Manner::HangUp, Manner::Slow(Duration::from_secs(5))]
    {
        node.agent(manner.clone());
        let start = Instant::now();
        let (code, text) = node.call("ADD", Some(&pod), &short).error();
        assert_eq!(code, 11, "{manner:?}: {text}");
        assert!(start.elapsed() < Duration::from_secs(3), "{manner:?}");
        node.assert_nothing_left();
        assert_eq!(pod.ns.links(), [""; 0], "{manner:?}");
    }
    node.stop_agent();
    let (code, text) = node.call("ADD", Some(&pod), &short).error();
    assert!(code == 11 && text.contains("manx-agent"), "{code} {text}");
    node.assert_nothing_left();
    assert_eq!(pod.ns.links(), [""; 0]);
}

#[test]
fn an_agent_that_comes_back_within_the_deadline_is_enough() {
    let node = Node::new();
    let pod = Pod::new("web");
    node.stop_agent();
    let child = node.spawn("ADD", &pod, &node.conf(&json!({})));
    eventually("the attachment", || node.store().attachments().is_ok_and(|a| a.len() == 1));
    node.start_agent();
    Outcome::of(child).ok();
}

#[test]
fn a_del_during_add_wins() {
    let node = Node::new();
    let pod = Pod::new("web");
    node.agent(Manner::Slow(Duration::from_secs(2)));
    let child = node.spawn("ADD", &pod, &node.conf(&json!({})));
    eventually("the question to the agent", || !node.requests().is_empty());
    let (code, _) = node.call("ADD", Some(&pod), &node.conf(&json!({}))).error();
    assert_eq!(code, 11, "one ADD of an attachment at a time");
    node.agent(Manner::Slow(Duration::from_secs(60)));
    let begin = Instant::now();
    node.del(&pod);
    // Not after the ten seconds that the ADD would have waited for the agent.
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    node.assert_nothing_left();
    let (code, text) = Outcome::of(child).error();
    assert!(code == 11 && text.contains("deleted"), "{code} {text}");
    node.assert_nothing_left();
}

#[test]
fn addresses_are_free_only_when_the_add_that_a_del_ends_is_over() {
    let node = Node::with(&["10.211.0.0/31"]);
    let pods = [Pod::new("a"), Pod::new("b"), Pod::new("c")];
    node.agent(Manner::Slow(Duration::from_secs(60)));
    let add = node.spawn("ADD", &pods[0], &node.conf(&json!({})));
    eventually("the link", || !node.ns.links().is_empty());
    let id = Pid::from_raw(i32::try_from(add.id()).unwrap());
    kill(id, Signal::SIGSTOP).unwrap();
    let del = node.spawn("DEL", &pods[0], &node.conf(&json!({})));
    eventually("the link to go", || node.ns.links().is_empty());
    node.agent(Manner::Agree);
    node.add(&pods[1]);
    let (code, text) = node.call("ADD", Some(&pods[2]), &node.conf(&json!({}))).error();
    assert!(code == 11 && text.contains("all 2 IPv4 addresses"), "{code} {text}");
    kill(id, Signal::SIGCONT).unwrap();
    Outcome::of(del).silent();
    assert_eq!(Outcome::of(add).error().0, 11);
    node.add(&pods[2]);
    node.del(&pods[1]);
    node.del(&pods[2]);
    node.assert_nothing_left();
}

#[test]
fn a_runtime_that_has_gone_gets_no_pod() {
    let node = Node::new();
    let pod = Pod::new("web");
    let mut command = node.plugin(&node::binary(), "ADD", Some(&pod));
    command.stdout(Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap()));
    let mut child = command.spawn().unwrap();
    node::feed(&mut child, &node.conf(&json!({})));
    assert!(!Outcome::of(child).success);
    node.assert_nothing_left();
}

#[test]
fn a_host_route_of_somebody_else_is_not_taken_over() {
    let node = Node::with(&["10.211.0.0/31"]);
    let pod = Pod::new("web");
    node.ns.ip(&["route", "add", "10.211.0.0/32", "dev", "lo", "metric", "76", "proto", "static"]);
    let (code, text) = node.call("ADD", Some(&pod), &node.conf(&json!({}))).error();
    assert!(code == 100 && text.contains("route 10.211.0.0/32"), "{code} {text}");
    let routes = node.ns.ip_json(&["route", "show", "10.211.0.0"]);
    assert_eq!((routes.len(), &routes[0]["protocol"]), (1, &json!("static")));
    node.assert_nothing_left();
    assert_eq!(pod.ns.links(), [""; 0]);
}

#[test]
fn an_interface_that_the_sandbox_has_already_is_not_touched() {
    let node = Node::new();
    let pod = Pod::new("web");
    pod.ns.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "other"]);
    let (code, text) = node.call("ADD", Some(&pod), &node.conf(&json!({}))).error();
    assert!(code == 100 && text.contains("eth0"), "{code} {text}");
    node.assert_nothing_left();
    assert_eq!(pod.ns.links().len(), 2);
}

#[test]
fn a_namespace_that_is_none_or_the_nodes_own_is_code_8() {
    let node = Node::new();
    let pod = Pod::new("web");
    let file = node.run_dir().join("file");
    fs::write(&file, "").unwrap();
    for path in ["/nonexistent/netns", file.to_str().unwrap(), "/dev/null", &node.ns.path()] {
        let mut command = node.plugin(&node::binary(), "ADD", Some(&pod));
        command.env("CNI_NETNS", path);
        let mut child = command.spawn().unwrap();
        node::feed(&mut child, &node.conf(&json!({})));
        let (code, text) = Outcome::of(child).error();
        assert!(code == 8 && text.contains(path), "{code} {text}");
    }
    node.assert_nothing_left();
}

#[test]
fn a_sandbox_with_ipv6_off_gets_it_on_its_interface() {
    let node = Node::new();
    let pod = Pod::new("web");
    pod.ns.run("sysctl", &["-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
    let result = node.add(&pod);
    tcp(&node.ns, &pod.ns, &address(&result, false));
}

#[test]
fn a_node_of_one_family_gives_addresses_of_that_family() {
    for (cidr, v4, node_ip) in [("10.211.0.0/24", true, NODE_V4), ("fd00:211::/64", false, NODE_V6)] {
        let node = Node::with(&[cidr]);
        let pod = Pod::new("web");
        let result = node.add(&pod);
        assert_eq!(result["ips"].as_array().unwrap().len(), 1);
        tcp(&node.ns, &pod.ns, &address(&result, v4));
        tcp(&pod.ns, &node.ns, node_ip);
        check(&node, &pod, &result).silent();
        if v4 {
            let inet6 = pod.ns.ip_json(&["-6", "addr", "show", "dev", "eth0"]);
            assert!(inet6.is_empty(), "{inet6:?}");
        }
        // Nor does the node follow what such a pod advertises.
        let interface = result["interfaces"][0]["name"].as_str().unwrap();
        let key = format!("net.ipv6.conf.{interface}.accept_ra");
        assert_eq!(node.ns.run("sysctl", &["-n", &key]).trim(), "0");
        node.del(&pod);
        node.assert_nothing_left();
    }
}

#[test]
fn mac_mtu_and_fixed_addresses_are_as_asked_for() {
    let node = Node::new();
    let pod = Pod::new("web");
    let conf = node.conf(&json!({
        "mtu": 1400,
        "runtimeConfig": {
            "mac": "02:11:22:33:44:55",
            "io.kubernetes.cri.pod-annotations": { "manx.dev/ips": "10.250.0.7" },
        },
        "dns": { "nameservers": ["10.96.0.10"] },
    }));
    let result = node.call("ADD", Some(&pod), &conf).ok();
    assert_eq!(address(&result, true), "10.250.0.7", "from the pool");
    assert_eq!(address(&result, false), "fd00:211::1", "the other family as usual");
    assert_eq!(result["dns"], json!({ "nameservers": ["10.96.0.10"] }));
    let link = &pod.ns.ip_json(&["link", "show", "eth0"])[0];
    assert_eq!((&link["address"], &link["mtu"]), (&json!("02:11:22:33:44:55"), &json!(1400)));
    tcp(&node.ns, &pod.ns, "10.250.0.7");
}

#[test]
fn a_fixed_address_outside_the_ranges_is_refused_and_one_in_use_is_retried_later() {
    let node = Node::new();
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    for foreign in ["192.0.2.1", "10.211.0.0", "10.211.0.255", "10.250.1.1", "fd00:212::1"] {
        let conf = node.conf(&json!({ "runtimeConfig": { "ips": [foreign] } }));
        let (code, text) = node.call("ADD", Some(&a), &conf).error();
        assert!(code == 102 && text.contains(foreign), "{code} {text}");
    }
    let conf = node.conf(&json!({ "runtimeConfig": { "ips": ["10.211.0.9/24"] } }));
    node.call("ADD", Some(&a), &conf).ok();
    let (code, text) = node.call("ADD", Some(&b), &conf).error();
    assert!(code == 11 && text.contains(&a.id), "{code} {text}");
    node.del(&a);
    node.call("ADD", Some(&b), &conf).ok();
}

#[test]
fn ipv6_with_an_mtu_that_it_cannot_have_is_refused() {
    let node = Node::new();
    let pod = Pod::new("web");
    let (code, _) = node.call("ADD", Some(&pod), &node.conf(&json!({ "mtu": 1279 }))).error();
    assert_eq!(code, 7);
    node.assert_nothing_left();
}

#[test]
fn exhaustion_is_code_11_and_status_50_and_a_del_ends_it() {
    let node = Node::with(&["10.211.0.0/31", "fd00:211::/64"]);
    let pods = [Pod::new("a"), Pod::new("b"), Pod::new("c")];
    node.add(&pods[0]);
    node.add(&pods[1]);
    let (code, text) = node.call("ADD", Some(&pods[2]), &node.conf(&json!({}))).error();
    assert!(code == 11 && text.contains("all 2 IPv4 addresses"), "{code} {text}");
    assert_eq!(pods[2].ns.links(), [""; 0]);
    let status = node.conf(&json!({ "cniVersion": "1.1.0" }));
    let (code, text) = node.call("STATUS", None, &status).error();
    assert!(code == 50 && text.contains("all 2 IPv4 addresses"), "{code} {text}");
    node.del(&pods[0]);
    node.call("STATUS", None, &status).silent();
    node.add(&pods[2]);
}

#[test]
fn ranges_may_change_under_live_pods() {
    let node = Node::with(&["10.211.0.0/24"]);
    let (old, new) = (Pod::new("old"), Pod::new("new"));
    let before = node.add(&old);
    node.configure(&["10.212.0.0/24"]);
    let after = node.add(&new);
    assert_eq!(address(&after, true), "10.212.0.1");
    tcp(&node.ns, &old.ns, &address(&before, true));
    node.del(&old);
    node.del(&new);
    node.assert_nothing_left();
}

#[test]
fn check_names_what_is_missing() {
    let node = Node::new();
    let pod = Pod::new("web");
    let result = node.add(&pod);
    let host = result["interfaces"][0]["name"].as_str().unwrap();
    let (v4, v6) = (address(&result, true), address(&result, false));
    check(&node, &pod, &result).silent();
    let harm: [(&Namespace, &[&str], &str); 9] = [
        (&node.ns, &["route", "del", &v4], "route 10.211.0.1/32"),
        (&node.ns, &["-6", "route", "del", &v6], "route fd00:211::1/128"),
        (&node.ns, &["neigh", "del", &v4, "dev", host], "neighbour 10.211.0.1"),
        (&node.ns, &["-6", "addr", "del", "fe80::1/64", "dev", host], "address fe80::1/64"),
        (&pod.ns, &["route", "del", "default"], "IPv4 default route"),
        (&pod.ns, &["-6", "route", "del", "default"], "IPv6 default route"),
        (&pod.ns, &["neigh", "del", "fe80::1", "dev", "eth0"], "neighbour fe80::1"),
        (&pod.ns, &["addr", "del", &format!("{v6}/128"), "dev", "eth0"], "address fd00:211::1/128"),
        (&pod.ns, &["link", "set", "lo", "down"], "loopback up"),
    ];
    for (ns, args, missing) in harm {
        let (_, before) = check(&node, &pod, &result).text();
        assert!(!before.contains(missing), "{before}");
        ns.ip(args);
        let (code, text) = check(&node, &pod, &result).error();
        assert!(code == 103 && text.contains(missing), "{missing}: {code} {text}");
    }
    pod.ns.ip(&["link", "set", "eth0", "address", "02:00:00:00:00:99"]);
    let (_, text) = check(&node, &pod, &result).error();
    assert!(text.contains("02:00:00:00:00:99"), "{text}");
    node.ns.ip(&["link", "del", host]);
    let (_, text) = check(&node, &pod, &result).error();
    assert!(text.contains("there is no interface eth0"), "{text}");
    node.del(&pod);
    let (code, _) = check(&node, &pod, &result).error();
    assert_eq!(code, 103);
}

#[test]
fn check_compares_the_result() {
    let node = Node::new();
    let pod = Pod::new("web");
    let mut result = node.add(&pod);
    result["ips"][0]["address"] = json!("10.211.0.77/32");
    let (code, text) = check(&node, &pod, &result).error();
    assert!(code == 103 && text.contains("prevResult: address 10.211.0.1"), "{code} {text}");
    let (code, _) = node.call("CHECK", Some(&pod), &node.conf(&json!({}))).error();
    assert_eq!(code, 7, "CHECK needs a prevResult");
}

#[test]
fn gc_removes_what_the_runtime_does_not_know_of_its_own_network_only() {
    let node = Node::new();
    let pods = [Pod::new("a"), Pod::new("b"), Pod::new("c")];
    for pod in &pods {
        node.add(pod);
    }
    let other = Pod::new("other");
    node.call("ADD", Some(&other), &node.conf(&json!({ "name": "othernet" }))).ok();
    let gc = |fields: Value| {
        let mut conf = node.conf(&json!({ "cniVersion": "1.1.0" }));
        for (key, value) in fields.as_object().unwrap() {
            conf[key] = value.clone();
        }
        node.call("GC", None, &conf).silent();
        node.store().attachments().unwrap().into_iter().map(|a| a.pod.unwrap()).collect::<BTreeSet<_>>()
    };
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(gc(json!({})), names(&["a", "b", "c", "other"]), "absent deletes nothing");
    assert_eq!(gc(json!({ "cni.dev/valid-attachments": null })), names(&["a", "b", "c", "other"]));
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": pods[1].id, "ifname": "eth0" }] });
    assert_eq!(gc(valid), names(&["b", "other"]));
    assert_eq!(node.ns.links().len(), 2);
    assert_eq!(gc(json!({ "cni.dev/valid-attachments": [] })), names(&["other"]));
    node.del(&other);
    node.assert_nothing_left();
}

#[test]
fn gc_leaves_an_add_that_runs_alone() {
    let node = Node::new();
    let pod = Pod::new("web");
    node.agent(Manner::Slow(Duration::from_secs(1)));
    let child = node.spawn("ADD", &pod, &node.conf(&json!({})));
    eventually("the question to the agent", || !node.requests().is_empty());
    let conf = node.conf(&json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": [] }));
    node.call("GC", None, &conf).silent();
    Outcome::of(child).ok();
}

#[test]
fn status_tells_whether_the_agent_is_ready() {
    let node = Node::new();
    let conf = node.conf(&json!({ "cniVersion": "1.1.0" }));
    node.call("STATUS", None, &conf).silent();
    for (said, code) in [(50, 50), (51, 51), (11, 50)] {
        node.agent(Manner::Refuse(said));
        assert_eq!(node.call("STATUS", None, &conf).error().0, code);
    }
    node.stop_agent();
    assert_eq!(node.call("STATUS", None, &conf).error().0, 50);
    manx_cni::node::remove(node.run_dir()).unwrap();
    let (code, text) = node.call("STATUS", None, &conf).error();
    assert!(code == 50 && text.contains("node.json"), "{code} {text}");
}

#[test]
fn results_have_the_shape_of_their_version() {
    let node = Node::new();
    for version in manx_cni::spec::VERSIONS {
        let pod = Pod::new("web");
        let result = node.call("ADD", Some(&pod), &node.conf(&json!({ "cniVersion": version }))).ok();
        assert_eq!(result["cniVersion"], *version);
        assert_eq!(result.get("ip4").is_some(), *version < "0.3.0", "{result}");
        assert_eq!(
            result["ips"][0].get("version").is_some(),
            ("0.3.0".."1.0.0").contains(version),
            "{result}"
        );
        assert_eq!(result["interfaces"][0].get("mtu").is_some(), *version >= "1.1.0", "{result}");
    }
}

/// 200 attachments, 16 at a time, every third of them gone again at once, while the agent goes away and comes back.
#[test]
fn parallel_adds_and_dels_never_share_an_address_whatever_the_agent_does() {
    let node = Node::with(&["10.211.0.0/24", "fd00:211::/64"]);
    let pods: Vec<Pod> = (0..200).map(|i| Pod::new(&format!("p{i}"))).collect();
    let next = AtomicUsize::new(0);
    let results: Vec<Value> = thread::scope(|scope| {
        let workers: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let mut out = Vec::new();
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(pod) = pods.get(i) else { return out };
                        let result = node.add(pod);
                        if i % 3 == 2 { node.del(pod) } else { out.push(result) }
                    }
                })
            })
            .collect();
        for at in [40, 90, 140] {
            eventually("the next agent's turn", || next.load(Ordering::Relaxed) >= at);
            node.stop_agent();
            thread::sleep(Duration::from_millis(100));
            node.start_agent();
        }
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    assert_eq!(results.len(), 134);
    let addresses: BTreeSet<String> =
        results.iter().flat_map(|r| [address(r, true), address(r, false)]).collect();
    assert_eq!(addresses.len(), 2 * 134);
    assert_eq!(node.ns.links().len(), 134);
    thread::scope(|scope| {
        for some in pods.chunks(13) {
            let node = &node;
            scope.spawn(move || some.iter().for_each(|pod| node.del(pod)));
        }
    });
    node.assert_nothing_left();
}

#[test]
fn the_sweep_takes_what_is_leaked_after_a_minute_and_two_looks() {
    let node = Node::new();
    let (live, dead) = (Pod::new("live"), Pod::new("dead"));
    node.add(&live);
    node.add(&dead);
    let Pod { ns, id, .. } = dead;
    drop(ns);
    eventually("the end of the dead pod's link", || node.ns.links().len() == 1);
    let store = node.store();
    let now = store.attachments().unwrap()[0].created;
    let mut sweeper = Sweeper::default();
    node.ns.inside(|| {
        assert!(sweeper.round(&store, now + 59).unwrap().is_empty());
        assert!(sweeper.round(&store, now + 61).unwrap().is_empty(), "one look is not enough");
        let swept = sweeper.round(&store, now + 62).unwrap();
        assert_eq!(swept.iter().map(|key| key.container_id.clone()).collect::<Vec<_>>(), [id]);
        assert!(sweeper.round(&store, now + 63).unwrap().is_empty());
        assert!(sweeper.round(&store, now + 64).unwrap().is_empty());
    });
    assert_eq!(store.attachments().unwrap().len(), 1);
}

#[test]
fn a_run_directory_with_a_long_path_is_no_obstacle() {
    let node = Node::new();
    let long = node.run_dir().join("x".repeat(120));
    fs::create_dir(&long).unwrap();
    fs::copy(node.run_dir().join("node.json"), long.join("node.json")).unwrap();
    fs::rename(node.run_dir().join("cni.sock"), long.join("cni.sock")).unwrap();
    let pod = Pod::new("web");
    let conf = node.conf(&json!({ "runDir": long }));
    node.call("ADD", Some(&pod), &conf).ok();
    node.call("DEL", Some(&pod), &conf).silent();
}

/// CHECK with the result of ADD.
fn check(node: &Node, pod: &Pod, result: &Value) -> Outcome {
    node.call("CHECK", Some(pod), &node.conf(&json!({ "prevResult": result })))
}

trait Text {
    /// What it said, if anything.
    fn text(&self) -> (bool, String);
}

impl Text for Outcome {
    fn text(&self) -> (bool, String) {
        (self.success, self.stdout.clone())
    }
}

#[test]
fn a_runtime_without_umask_gets_no_directory_that_all_can_write() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    let pod = Pod::new("web");
    fs::create_dir(node.run_dir().join("sub")).unwrap();
    fs::copy(node.run_dir().join("node.json"), node.run_dir().join("sub/node.json")).unwrap();
    fs::rename(node.run_dir().join("cni.sock"), node.run_dir().join("sub/cni.sock")).unwrap();
    let mut command = node.ns.command("sh");
    command.args(["-c", "umask 0; exec \"$0\""]).arg(node::binary());
    command.envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", &pod.id), ("CNI_IFNAME", "eth0")]);
    command
        .env("CNI_NETNS", pod.ns.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    node::feed(&mut child, &node.conf(&json!({ "runDir": node.run_dir().join("sub") })));
    Outcome::of(child).ok();
    let mut open = vec![node.run_dir().join("sub/ipam")];
    let mut seen = 0;
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_symlink() {
            continue;
        }
        seen += 1;
        assert_eq!(metadata.permissions().mode() & 0o022, 0, "{}", path.display());
        if metadata.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    assert!(seen > 6, "{seen}");
}
