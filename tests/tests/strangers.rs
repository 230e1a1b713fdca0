//! Another program changes our rules: nothing opens, and the rules are back at once. Needs root.

use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use manx_tests::agent::built_binaries;
use manx_tests::netns::Netns;
use manx_tests::probe::torrent::Torrent;
use manx_tests::scenario::rack::{PORTS, Rack, World};
use manx_tests::scenario::sweep::{Seen, sweep};
use manx_tests::scenario::table::Question;
use manx_tests::wait;
use serde_json::json;

/// Far below the audit's 30 seconds, far above what it takes.
const AT_ONCE: Duration = Duration::from_secs(10);

/// x/a takes packets from nobody.
fn closed(name: &str, backend: &str) -> Rack {
    let name = format!("{name}{}", std::process::id());
    let mut rack = Rack::up(&name, 1, backend, &built_binaries()).expect("the rack comes up");
    rack.apply(&closed_world()).expect("the agents follow");
    rack
}

fn closed_world() -> World {
    let mut world = World::new();
    let spec = json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"]});
    let metadata = json!({"name": "closed", "namespace": "x"});
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec});
    world.objects.insert("NetworkPolicy/x/closed".to_owned(), object);
    world
}

/// How many datagrams come through from x/b to x/a while `work` runs.
fn leaked_during(rack: &Rack, work: impl FnOnce()) -> u64 {
    let torrent = Torrent::open(&rack.pods["x/b"], &rack.pods["x/a"]).expect("sockets");
    work();
    torrent.close().1
}

fn run(rack: &Rack, line: &str) -> String {
    rack.node_of("x/a").agent.netns.run(line).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Who is to reach whom is what the sweep finds.
fn agrees(rack: &Rack, open: impl Fn(&Question) -> bool) {
    let answers = sweep(&rack.stations, &PORTS, &open).expect("the sweep runs");
    let wrong: Vec<_> = answers
        .into_iter()
        .filter(|(question, seen)| open(question) != (*seen == Seen::Reached))
        .map(|(question, seen)| format!("{question}: {seen:?}"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

fn all_is_as_it_should_be(rack: &Rack) {
    agrees(rack, |question| question.to != "x/a");
}

/// What is there before must be there again; counters and the order of chains aside.
fn rules(rack: &Rack, backend: &str) -> Vec<String> {
    let saved = ["iptables", "ip6tables"].map(|program| run(rack, &format!("{program}-{backend}-save")));
    let mut rules: Vec<String> = saved
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| line.contains("MANX-"))
        .map(str::to_owned)
        .collect();
    for rule in &mut rules {
        if let Some((chain, _)) = rule.split_once(" [") {
            *rule = chain.to_owned();
        }
    }
    rules.sort();
    rules
}

fn mended(rack: &Rack, backend: &str, wanted: &[String]) -> Duration {
    let mended = wait::until(AT_ONCE, || {
        let found = rules(rack, backend);
        if found == wanted { Ok(()) } else { Err(format!("{} rules of {}", found.len(), wanted.len())) }
    });
    mended.unwrap_or_else(|complaint| panic!("not mended after {AT_ONCE:?}: {complaint}")).1
}

/// A stranger does these one after the other, in both families: x/a stays shut to all, and everything is as it was soon.
fn nothing_opens(rack: &Rack, backend: &str, deeds: &[&str]) {
    let wanted = rules(rack, backend);
    all_is_as_it_should_be(rack);
    for deed in deeds {
        let leaked = leaked_during(rack, || {
            for program in ["iptables", "ip6tables"] {
                run(rack, &format!("{program}-{backend} {deed}"));
            }
            println!("{backend}: {deed}: mended after {:?}", mended(rack, backend, &wanted));
        });
        assert_eq!(leaked, 0, "{deed} opened x/a");
        all_is_as_it_should_be(rack);
    }
}

/// `iptables -F` leaves the guard, which closes until the rules are back; deleting single rules and jumps is mended as well.
#[test]
fn kernel_rules_that_a_stranger_deletes_are_back_at_once_and_nothing_opens_nft() {
    let deeds = ["-F", "-F FORWARD", "-D MANX-FORWARD 2", "-t mangle -F"];
    nothing_opens(&closed("mxsf", "nft"), "nft", &deeds);
}

/// iptables-legacy tells nobody: the tables' sizes tell.
#[test]
fn kernel_rules_that_a_stranger_deletes_are_back_at_once_and_nothing_opens_legacy() {
    let deeds = ["-F", "-F FORWARD", "-t mangle -F"];
    nothing_opens(&closed("mxsl", "legacy"), "legacy", &deeds);
}

/// Rules that a program like kube-proxy rewrites as a whole, with one transaction each time.
fn rules_of_a_stranger(turn: u32) -> String {
    let rules = (0..50).map(|i| format!("-A KUBE-SERVICES -m comment --comment turn-{turn}-{i} -j RETURN\n"));
    format!("*filter\n:KUBE-SERVICES - [0:0]\n{}COMMIT\n", rules.collect::<String>())
}

/// Restores rules of its own in both families as fast as it can until `done`, and returns how often it did.
fn keep_writing(node: &Netns, backend: &str, done: &AtomicBool) -> u32 {
    let mut turn = 0;
    while !done.load(Ordering::Relaxed) {
        turn += 1;
        for program in ["iptables", "ip6tables"] {
            let mut restore = node.command(format!("{program}-{backend}-restore"));
            restore.args(["--noflush", "--wait", "10"]).stdin(Stdio::piped());
            let mut child = restore.spawn().expect("it starts");
            let mut stdin = child.stdin.take().expect("it is piped");
            stdin.write_all(rules_of_a_stranger(turn).as_bytes()).expect("it reads");
            drop(stdin);
            assert!(child.wait().expect("it ends").success(), "turn {turn} of {program}-{backend}-restore");
        }
    }
    turn
}

/// A program that writes rules of its own all the time, as kube-proxy does, neither stops ours nor is stopped, nothing opens, and
/// the agent does not take its rules for changes of ours.
fn a_program_with_rules_of_its_own(name: &str, backend: &str) {
    let mut rack = closed(name, backend);
    let repairs = |rack: &Rack| {
        let text = rack.node_of("x/a").agent.metrics().expect("metrics");
        let line = text.lines().find(|line| line.starts_with("manx_policy_repairs_total "));
        line.map(str::to_owned).expect("the metric is there")
    };
    let before = repairs(&rack);
    let node = rack.node_of("x/a").agent.netns.clone();
    let torrent = Torrent::open(&rack.pods["x/b"], &rack.pods["x/a"]).expect("sockets");
    let done = AtomicBool::new(false);
    let (turns, took) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| keep_writing(&node, backend, &done));
        let changes =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change_all_the_time(&mut rack)));
        done.store(true, Ordering::Relaxed);
        let turns = writer.join().expect("the stranger's rules go in");
        (turns, changes.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (sent, leaked) = torrent.close();
    println!(
        "{backend}: {turns} times a stranger's 50 rules meanwhile; our changes in force after {:?} (median), {:?} (worst)",
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert!(turns > 3 && sent > 100, "{turns}, {sent}");
    assert_eq!(leaked, 0);
    for program in ["iptables", "ip6tables"] {
        let saved = run(&rack, &format!("{program}-{backend}-save"));
        let kept = saved.lines().filter(|line| line.contains(&format!("--comment turn-{turns}-")));
        assert_eq!(kept.count(), 50, "the stranger's last rules are there: {saved}");
    }
    assert_eq!(before, repairs(&rack));
}

/// Who may reach y changes ten times. Returns how long each change took to be in force, sorted.
fn change_all_the_time(rack: &mut Rack) -> Vec<Duration> {
    let mut took = Vec::new();
    for turn in 0..10 {
        let from = ["/a", "/b", "/c"][turn % 3];
        let mut world = closed_world();
        let peers = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": &from[1..]}}}]);
        let spec = json!({"podSelector": {}, "ingress": [{"from": peers}]});
        let metadata = json!({"name": "turns", "namespace": "y"});
        let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec});
        world.objects.insert("turns".to_owned(), object);
        let started = Instant::now();
        rack.apply(&world).expect("the agent follows");
        took.push(started.elapsed());
        agrees(rack, |q| q.to != "x/a" && (!q.to.starts_with("y/") || q.from.ends_with(from)));
    }
    took.sort();
    took
}

#[test]
fn kernel_a_program_with_rules_of_its_own_goes_unnoticed_nft() {
    a_program_with_rules_of_its_own("mxskn", "nft");
}

#[test]
fn kernel_a_program_with_rules_of_its_own_goes_unnoticed_legacy() {
    a_program_with_rules_of_its_own("mxskl", "legacy");
}

/// Emptied sets are found by their sizes within a second or two: one that allows closes until then, one that denies opens.
#[test]
fn kernel_sets_that_a_stranger_empties_are_filled_again() {
    let mut rack = closed("mxse", "nft");
    let mut world = World::new();
    let spec = json!({
        "tier": "Admin", "priority": 10, "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "a"}}}},
        "ingress": [{"action": "Deny", "from": [{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "b"}}}}]}],
    });
    let version = "policy.networking.k8s.io/v1alpha2";
    let object = json!({"apiVersion": version, "kind": "ClusterNetworkPolicy", "metadata": {"name": "not-b"}, "spec": spec});
    world.objects.insert("not-b".to_owned(), object);
    rack.apply(&world).expect("the agents follow");
    let members = |rack: &Rack| {
        let saved = run(rack, "ipset save");
        let mut lines: Vec<_> =
            saved.lines().filter(|line| line.starts_with("add manx")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let wanted = members(&rack);
    let sets: Vec<String> = run(&rack, "ipset list -n").lines().map(str::to_owned).collect();
    assert!(wanted.len() >= 6 && sets.len() >= 2, "{wanted:?}");
    let mut windows = Vec::new();
    for _ in 0..3 {
        let leaked = leaked_during(&rack, || {
            sets.iter().for_each(|set| _ = run(&rack, &format!("ipset flush {set}")));
            let found = wait::until(AT_ONCE, || if members(&rack) == wanted { Ok(()) } else { Err(()) });
            windows.push(found.expect("they are filled again").1);
        });
        println!("emptied sets were filled after {:?}; {leaked} datagrams came through", windows.last());
        let open = |q: &Question| !(q.to.ends_with("/a") && q.from.ends_with("/b"));
        agrees(&rack, open);
    }
}

/// A set that cannot be had keeps its own policy closed, by name; all others go in, and it does when the set can be had.
#[test]
fn kernel_a_set_that_a_stranger_holds_closes_its_policy_alone() {
    let mut rack = closed("mxst", "nft");
    let policy = |namespace: &str, from: &str| {
        let peers = json!([{"podSelector": {"matchLabels": {"pod": from}}}]);
        let spec = json!({"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [{"from": peers}]});
        let metadata = json!({"name": "few", "namespace": namespace});
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
    };
    let mut world = World::new();
    let sets = |rack: &Rack| run(rack, "ipset list -n").lines().map(str::to_owned).collect::<Vec<_>>();
    let without = sets(&rack);
    world.objects.insert("few-x".to_owned(), policy("x", "b"));
    rack.apply(&world).expect("the agent follows");
    let name = sets(&rack).into_iter().find(|set| !without.contains(set) && set.starts_with("manx4-"));
    let name = name.expect("the policy has a set");
    rack.apply(&World::new()).expect("the agent follows");
    wait::until(AT_ONCE, || if sets(&rack).contains(&name) { Err("the set is still there") } else { Ok(()) })
        .expect("it goes with its policy");
    run(&rack, &format!("ipset create {name} hash:net"));
    run(&rack, &format!("iptables-nft -A INPUT -m set --match-set {name} src"));

    world.objects.insert("few-y".to_owned(), policy("y", "c"));
    let objects: Vec<_> = world.objects.values().cloned().collect();
    rack.cluster.put("objects", &objects).expect("manifests can be written");
    let listed = |rack: &Rack, namespace: &str| {
        let list = rack.node_of("x/a").agent.manxctl_json(&["policy", "ls"]).unwrap_or_default();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.into_iter().find(|policy| policy["namespace"] == namespace).unwrap_or_default()
    };
    let stands = |rack: &Rack| {
        let (x, y) = (listed(rack, "x"), listed(rack, "y"));
        let held = x["reason"].as_str().is_some_and(|reason| reason.contains("set"));
        if held && !y["inForceSince"].is_null() { Ok(()) } else { Err(format!("{x}\n{y}")) }
    };
    wait::until(AT_ONCE, || stands(&rack)).unwrap_or_else(|complaint| panic!("{complaint}"));
    let check = |rack: &Rack, v4_of_x_a: bool| {
        agrees(rack, |question| match question.to.as_str() {
            "x/a" => question.from == "x/b" && (v4_of_x_a || question.v6),
            "y/a" => question.from == "y/c",
            _ => true,
        });
    };
    check(&rack, false);
    let status = rack.node_of("x/a").agent.manxctl_json(&["status"]);
    // It is not well: exit status 1, which the helper takes for a failure.
    assert!(status.is_err(), "{status:?}");

    run(&rack, "iptables-nft -F INPUT");
    wait::until(AT_ONCE, || {
        if listed(&rack, "x")["inForceSince"].is_null() { Err(listed(&rack, "x")) } else { Ok(()) }
    })
    .unwrap_or_else(|complaint| panic!("{complaint}"));
    check(&rack, true);
}
