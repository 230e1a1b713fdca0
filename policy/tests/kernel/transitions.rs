//! Starts, restarts, strangers and changes.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use manx_policy::engine::InForce;
use manx_policy::model::{Family, Protocol, Update};
use manx_policy::plan::{Outcome, Step};
use proptest::collection::vec;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use crate::agent::{Backend, converge, engine, execute, observe};
use crate::cluster::update;
use crate::lab::{NODE_ADDRESSES, Netns, run};
use crate::scenarios::{Rack, addresses, endpoint, pod, policy};

const WEB: usize = 0;
const CLIENT: usize = 1;

fn reaches(rack: &Rack, from: usize, to: IpAddr, port: u16) -> bool {
    rack.pods[from].netns.reaches(to, Protocol::Tcp, port).join().unwrap()
}

fn each_address(rack: &Rack, from: usize, to: usize, port: u16) -> [bool; 2] {
    rack.pods[to].addresses.map(|ip| reaches(rack, from, ip, port))
}

#[test]
fn a_fresh_engine_that_wants_what_the_kernel_holds_writes_nothing() {
    for backend in [Backend::Nft, Backend::Legacy] {
        let node = Netns::new("node");
        let mut runner = TestRunner::deterministic();
        let mut all = Vec::new();
        let mut old = engine();
        old.set_in_sync(true);
        for round in 0..6 {
            let updates = vec(update(), 1..12).new_tree(&mut runner).unwrap().current();
            for update in updates {
                all.push(update.clone());
                old.apply(update);
            }
            converge(&mut old, &node, backend);
            let mut fresh = engine();
            for update in all.clone() {
                fresh.apply(update);
            }
            let before_sync = converge(&mut fresh, &node, backend);
            assert!(before_sync.is_empty(), "round {round} on {backend:?}, not in sync: {before_sync:#?}");
            fresh.set_in_sync(true);
            let after_sync = converge(&mut fresh, &node, backend);
            assert!(after_sync.is_empty(), "round {round} on {backend:?}: {after_sync:#?}");
        }
    }
}

#[test]
fn the_closing_dispatch_closes_every_pod_interface_before_the_source_is_in_sync() {
    let mut rack = Rack::new(Backend::Nft);
    let mut young = engine();
    converge(&mut young, &rack.lab.node, Backend::Nft);
    assert_eq!(each_address(&rack, CLIENT, WEB, 80), [false, false]);
    let node = rack.lab.node.reaches(addresses(WEB)[0], Protocol::Tcp, 80).join().unwrap();
    assert!(!node, "a pod that is closed does not even answer its node");

    rack.converge();
    assert_eq!(each_address(&rack, CLIENT, WEB, 80), [true, true]);
    let mut restarted = engine();
    assert!(converge(&mut restarted, &rack.lab.node, Backend::Nft).is_empty(), "yesterday's rules stay");
    assert_eq!(each_address(&rack, CLIENT, WEB, 80), [true, true]);
}

#[test]
fn an_interface_of_ours_without_policy_is_closed_and_opens_when_its_pod_is_known() {
    let mut rack = Rack::new(Backend::Nft);
    let late = rack.lab.join("manx0000000000a", addresses(10));
    rack.converge();
    rack.pods.push(late);
    let last = rack.pods.len() - 1;
    assert_eq!(each_address(&rack, last, WEB, 80), [false, false], "no attachment is known");
    assert_eq!(each_address(&rack, WEB, last, 80), [false, false]);

    rack.engine.apply(Update::SetEndpoint(endpoint(10, "default", "late", &rack.pods[last])));
    rack.converge();
    assert_eq!(each_address(&rack, last, WEB, 80), [false, false], "its pod is not known");

    rack.engine.apply(Update::SetPod(pod(10, "default", "late", &[])));
    rack.converge();
    rack.assert_agreement("the late pod is known");
}

/// The trap: an emptied filter table is an open one, were there no guard outside it.
#[test]
fn a_flushed_filter_table_closes_pods_until_it_is_repaired() {
    for (backend, tool) in [(Backend::Nft, "nft"), (Backend::Legacy, "legacy")] {
        let mut rack = Rack::new(backend);
        rack.converge();
        assert_eq!(each_address(&rack, CLIENT, WEB, 80), [true, true]);
        for version in ["", "6"] {
            run(&mut rack.lab.node.command(&format!("ip{version}tables-{tool}"), &["-F"]), None);
        }
        assert_eq!(each_address(&rack, CLIENT, WEB, 80), [false, false], "{backend:?}: closed, not open");
        let stranger = rack.stranger.addresses[0];
        assert!(!reaches(&rack, CLIENT, stranger, 80), "{backend:?}: nor does a pod get out");
        let inward = rack.stranger.netns.reaches(addresses(WEB)[0], Protocol::Tcp, 80).join().unwrap();
        assert!(!inward, "{backend:?}: nor does anyone get in");
        let node = rack.lab.node.reaches(addresses(WEB)[0], Protocol::Tcp, 80).join().unwrap();
        assert!(node, "{backend:?}: the node itself still reaches its pods");

        rack.engine.observe(observe(&rack.lab.node, backend));
        rack.converge();
        assert_eq!(each_address(&rack, CLIENT, WEB, 80), [true, true], "{backend:?}: repaired");
    }
}

#[test]
fn a_jump_that_a_stranger_pushed_down_is_put_back_on_top_and_foreign_rules_stay() {
    let mut rack = Rack::new(Backend::Nft);
    rack.engine.apply(policy("default", "deny", "{podSelector: {}}"));
    rack.converge();
    let foreign = ["-I", "FORWARD", "1", "-m", "comment", "--comment", "foreign", "-j", "ACCEPT"];
    run(&mut rack.lab.node.command("iptables-nft", &foreign), None);
    assert!(!reaches(&rack, CLIENT, addresses(WEB)[0], 80), "what skips our chains is stopped by the guard");

    rack.engine.observe(observe(&rack.lab.node, Backend::Nft));
    let plans = converge(&mut rack.engine, &rack.lab.node, Backend::Nft);
    assert_eq!(plans.len(), 1, "{plans:#?}");
    let [Step::Restore { family: Family::Ipv4, text }] = plans[0].steps.as_slice() else {
        panic!("{plans:#?}")
    };
    assert!(!text.contains("foreign"), "{text}");
    let saved = run(&mut rack.lab.node.command("iptables-nft-save", &["-t", "filter"]), None);
    let forward: Vec<&str> = saved.lines().filter(|line| line.starts_with("-A FORWARD")).collect();
    assert!(forward[0].ends_with("-j MANX-FORWARD") && forward[1].contains("foreign"), "{forward:#?}");
    rack.assert_agreement("jump back on top");
}

/// kube-proxy and portmap keep bits of their own in the same mark, and somebody may have set ours before we see a packet.
#[test]
fn marks_of_others_pass_untouched_and_bits_of_ours_that_others_set_open_nothing() {
    for (backend, tool) in [(Backend::Nft, "nft"), (Backend::Legacy, "legacy")] {
        let mut rack = Rack::new(backend);
        rack.engine.apply(policy("default", "deny", "{podSelector: {matchLabels: {app: web}}}"));
        rack.converge();
        let iptables = |version: &str, rule: &str| {
            let words: Vec<&str> = rule.split(' ').collect();
            run(&mut rack.lab.node.command(&format!("ip{version}tables-{tool}"), &words), None);
        };
        for (version, node) in ["", "6"].into_iter().zip(NODE_ADDRESSES) {
            iptables(version, "-t mangle -A PREROUTING -j MARK --set-mark 0x0f00e000");
            // What the node itself sends passes no PREROUTING.
            let forwarded = format!("-t mangle -A POSTROUTING ! -s {node}");
            for place in [forwarded.as_str(), "-A INPUT -i manx+"] {
                for negated in ["", "! "] {
                    iptables(version, &format!("{place} -p tcp -m mark {negated}--mark 0xe000/0xffffffff"));
                }
            }
        }
        assert_eq!(each_address(&rack, CLIENT, WEB, 80), [false, false], "{backend:?}");
        assert_eq!(each_address(&rack, WEB, CLIENT, 80), [true, true], "{backend:?}");
        for to in [rack.stranger.addresses, NODE_ADDRESSES.map(|ip| ip.parse().unwrap())].concat() {
            assert!(reaches(&rack, CLIENT, to, 80), "{backend:?}: {to}");
        }
        for version in ["", "6"] {
            let save = format!("ip{version}tables-{tool}-save");
            let saved = run(&mut rack.lab.node.command(&save, &["-c"]), None);
            let counted: Vec<&str> = saved.lines().filter(|line| line.contains("mark 0xe000")).collect();
            assert_eq!(counted.len(), 4, "{counted:#?}");
            for rule in counted {
                assert_eq!(rule.starts_with("[0:0]"), rule.contains("! --mark"), "{backend:?}: {rule}");
            }
        }
    }
}

#[test]
fn a_pod_may_send_from_its_own_addresses_only() {
    let mut rack = Rack::new(Backend::Nft);
    rack.converge();
    let heard = |rack: &Rack, source: &str, destination: IpAddr| {
        let (ready, is_ready) = mpsc::channel();
        let listener = rack.stranger.netns.inside(move || {
            let socket = UdpSocket::bind("[::]:7777").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            ready.send(()).unwrap();
            socket.recv(&mut [0; 16]).is_ok()
        });
        is_ready.recv().unwrap();
        let source: IpAddr = source.parse().unwrap();
        let sender = rack.pods[CLIENT].netns.inside(move || {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            socket.send_to(b"it is me", (destination, 7777)).unwrap();
        });
        sender.join().unwrap();
        listener.join().unwrap()
    };
    let netns = &rack.pods[CLIENT].netns;
    netns.ip(&["addr", "add", "10.0.0.99/32", "dev", "lo"]);
    netns.ip(&["addr", "add", "fd00::99/128", "dev", "lo", "nodad"]);
    let [v4, v6] = rack.stranger.addresses;
    assert!(heard(&rack, &addresses(CLIENT)[0].to_string(), v4));
    assert!(heard(&rack, &addresses(CLIENT)[1].to_string(), v6));
    assert!(!heard(&rack, "10.0.0.99", v4), "a spoofed IPv4 source got out");
    assert!(!heard(&rack, "fd00::99", v6), "a spoofed IPv6 source got out");
}

/// Packets that have passed the rule whose comment contains these words.
fn counted(rack: &Rack, words: &str) -> u64 {
    let save = if rack.backend == Backend::Nft { "iptables-nft-save" } else { "iptables-legacy-save" };
    let saved = run(&mut rack.lab.node.command(save, &["-c", "-t", "filter"]), None);
    let line = saved.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}\n{saved}"));
    line[1..].split(':').next().unwrap().parse().unwrap()
}

#[test]
fn a_rules_counter_survives_updates_of_other_rules() {
    for backend in [Backend::Nft, Backend::Legacy] {
        a_counter_survives(backend);
    }
}

fn a_counter_survives(backend: Backend) {
    let mut rack = Rack::new(backend);
    let first =
        "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 8080}]}]}";
    rack.engine.apply(policy("default", "web", first));
    rack.converge();
    let web = addresses(WEB)[0];
    assert!(reaches(&rack, CLIENT, web, 80) && reaches(&rack, CLIENT, web, 8080));
    assert_eq!(counted(&rack, "np default/web ingress rule 0"), 1);
    assert_eq!(counted(&rack, "np default/web ingress rule 1"), 1);

    let more = "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 5353}]}, {ports: [{port: 8080}]}]}";
    rack.engine.apply(policy("default", "web", more));
    rack.engine.apply(policy("default", "other", "{podSelector: {matchLabels: {app: client}}}"));
    rack.converge();
    assert_eq!(counted(&rack, "np default/web ingress rule 0"), 1);
    assert_eq!(counted(&rack, "np default/web ingress rule 1"), 0, "another rule stands there now");
    assert!(reaches(&rack, CLIENT, web, 80));
    assert_eq!(counted(&rack, "np default/web ingress rule 0"), 2);
}

/// The trap: with loose tracking the server's next packet would bring a cut flow back as NEW, in the allowed direction.
#[test]
fn a_cut_tcp_flow_stays_dead_while_the_server_keeps_sending() {
    let mut rack = Rack::new(Backend::Nft);
    rack.converge();
    let web = addresses(WEB)[0];
    let (ready, is_ready) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let server = rack.pods[WEB].netns.inside(move || {
        let listener = TcpListener::bind((web, 9000)).unwrap();
        ready.send(()).unwrap();
        let (mut connection, _) = listener.accept().unwrap();
        connection.write_all(b"before").unwrap();
        may_go_on.recv().unwrap();
        _ = connection.write_all(b"after");
        connection
    });
    is_ready.recv().unwrap();
    let (connected, is_connected) = mpsc::channel();
    let client = rack.pods[CLIENT].netns.inside(move || {
        let mut connection = TcpStream::connect((web, 9000)).unwrap();
        let mut buffer = [0; 6];
        connection.read_exact(&mut buffer).unwrap();
        connected.send(()).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        connection.read(&mut buffer).is_ok()
    });
    is_connected.recv().unwrap();
    rack.engine.apply(policy("default", "deny", "{podSelector: {matchLabels: {app: web}}}"));
    rack.converge();
    run(&mut rack.lab.node.command("conntrack", &["-D", "-f", "ipv4", "-p", "tcp"]), None);
    go_on.send(()).unwrap();
    assert!(!client.join().unwrap(), "the server's packet came through");
    drop(server.join().unwrap());
}

#[test]
fn a_refused_step_is_reported_and_retried_after_a_new_look() {
    let node = Netns::new("node");
    let mut engine = engine();
    engine.set_in_sync(true);
    engine.apply(Update::SetPod(pod(0, "default", "web", &[("app", "web")])));
    converge(&mut engine, &node, Backend::Nft);
    engine.apply(policy("default", "from", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"));
    let host = crate::lab::Lab::new().join("manx00000000000", addresses(0));
    engine.apply(Update::SetEndpoint(endpoint(0, "default", "web", &host)));
    let id = endpoint(0, "default", "web", &host).id;

    // A stranger's set of another type stands where ours should.
    let plan = engine.plan();
    let Some(Step::CreateSet { name, .. }) = plan.steps.first().cloned() else { panic!("{plan:#?}") };
    run(&mut node.command("ipset", &["create", &name, "hash:net"]), None);
    let results = execute(&plan, &node, Backend::Nft);
    engine.applied(plan.id, Outcome { at: SystemTime::UNIX_EPOCH, results });
    assert!(!engine.wants().is_empty(), "uncertain: it must look again");
    assert_eq!(engine.status().problems.len(), 1);
    let not_yet = engine.in_force(&id);
    assert!(matches!(&not_yet, Some(InForce::Not(reason)) if reason.contains("refused")), "{not_yet:?}");

    converge(&mut engine, &node, Backend::Nft);
    assert_eq!(engine.in_force(&id), Some(InForce::Since(SystemTime::UNIX_EPOCH)));
    assert_eq!(engine.status().problems, []);
    assert!(engine.plan().is_empty());
}

#[test]
fn strangers_under_our_names_are_swept_once_the_source_is_in_sync() {
    let node = Netns::new("node");
    run(
        &mut node.command("iptables-nft-restore", &["--noflush"]),
        Some(
            "*filter\n:MANX-OLD - [0:0]\n:MANX-OLDER - [0:0]\n:KEEP - [0:0]\n-A MANX-OLD -j MANX-OLDER\n-A OUTPUT -j MANX-OLD\n-A OUTPUT -j KEEP\nCOMMIT\n",
        ),
    );
    run(&mut node.command("ipset", &["create", "manx4-p-old", "hash:ip"]), None);
    run(&mut node.command("ipset", &["create", "keep", "hash:ip"]), None);
    let mut engine = engine();
    converge(&mut engine, &node, Backend::Nft);
    let look = |node: &Netns| {
        let filter = run(&mut node.command("iptables-nft-save", &["-t", "filter"]), None);
        (filter, run(&mut node.command("ipset", &["list", "-n"]), None))
    };
    let (filter, sets) = look(&node);
    assert!(filter.contains("MANX-OLD") && sets.contains("manx4-p-old"), "not before the source is in sync");

    engine.set_in_sync(true);
    converge(&mut engine, &node, Backend::Nft);
    let (filter, sets) = look(&node);
    assert!(!filter.contains("MANX-OLD") && filter.contains("-A OUTPUT -j KEEP"), "{filter}");
    assert_eq!(sets.trim(), "keep");
}

#[test]
fn a_deleted_pod_leaves_nothing_behind() {
    let mut rack = Rack::new(Backend::Nft);
    rack.engine.apply(policy(
        "default",
        "web",
        "{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]}",
    ));
    rack.converge();
    for i in 0..rack.pods.len() {
        let id = rack.engine.state().endpoints().next().unwrap().id.clone();
        let pod = rack.engine.state().pods().next().unwrap().id.clone();
        rack.engine.apply(Update::RemoveEndpoint(id));
        rack.engine.apply(Update::RemovePod(pod, None));
        rack.converge();
        let sets = run(&mut rack.lab.node.command("ipset", &["save"]), None);
        let tables = run(&mut rack.lab.node.command("iptables-nft-save", &[]), None);
        let left = rack.pods.len() - i - 1;
        assert_eq!(tables.matches(":MANX-FE-").count(), left);
        if left == 0 {
            assert_eq!(sets, "");
            assert!(!tables.contains("10.0.0."), "{tables}");
        }
    }
}
