//! The agent is killed at any moment, or somebody keeps the lock of iptables: what is shut stays shut, and in the end all is as it
//! should be. Real agent, real packets. Needs root.

use std::collections::BTreeSet;
use std::fs::File;
use std::time::{Duration, Instant};

use manx_tests::agent::built_binaries;
use manx_tests::probe::torrent::Torrent;
use manx_tests::scenario::rack::{PORTS, Rack, World};
use manx_tests::scenario::sweep::{Seen, sweep};
use manx_tests::wait;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
/// iptables-legacy takes it for each change.
const LOCK: &str = "/run/xtables.lock";

fn policy(namespace: &str, name: &str, spec: &Value) -> (String, Value) {
    let metadata = json!({"name": name, "namespace": namespace});
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec});
    (format!("{namespace}/{name}"), object)
}

/// Nobody reaches x/a.
fn closed(name: &str, backend: &str) -> (Rack, World) {
    let mut rack = Rack::up(&format!("{name}{}", std::process::id()), 1, backend, &built_binaries())
        .expect("the rack comes up");
    let mut world = World::new();
    let spec = json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"]});
    world.objects.extend([policy("x", "closed", &spec)]);
    rack.apply(&world).expect("the agent follows");
    (rack, world)
}

/// Policies and labels that change who reaches y, and whom x/a reaches, in one of four ways; x/a stays shut in each.
fn change(world: &mut World, turn: usize) {
    let from = ["a", "b", "c", "nobody"][turn % 4];
    let peers = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": from}}}]);
    let ingress = json!({"podSelector": {}, "ingress": [{"from": peers, "ports": [{"port": 80}]}]});
    world.objects.extend([policy("y", "turns", &ingress)]);
    let also =
        json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"], "ingress": []});
    match turn % 2 {
        0 => world.objects.extend([policy("x", "also", &also)]),
        _ => _ = world.objects.remove("x/also"),
    }
    let labels = world.namespaces.get_mut("z").expect("it is there");
    labels.insert("turn".into(), turn.to_string());
}

fn put(rack: &Rack, world: &World) {
    let objects: Vec<Value> = world.objects.values().cloned().collect();
    rack.cluster.put("objects", &objects).expect("manifests can be written");
}

/// By hand: the last turn's policies.
fn all_is_as_it_should_be(rack: &Rack, turn: usize) {
    let from = ["/a", "/b", "/c", "/nobody"][turn % 4];
    let open = |to: &str, by: &str, port: u16, tcp: bool| match to.split_once('/') {
        Some(("x", "a")) => false,
        Some(("y", _)) => by.ends_with(from) && port == 80 && tcp,
        _ => true,
    };
    let tcp = |transport| transport == manx_tests::scenario::table::Transport::Tcp;
    let answers = sweep(&rack.stations, &PORTS, |q| open(&q.to, &q.from, q.port, tcp(q.transport)));
    let wrong: Vec<_> = answers
        .expect("the sweep runs")
        .into_iter()
        .filter(|(q, seen)| open(&q.to, &q.from, q.port, tcp(q.transport)) != (*seen == Seen::Reached))
        .map(|(question, seen)| format!("{question}: {seen:?}"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

fn is_killed_at_any_moment(name: &str, backend: &str) {
    let rounds: usize = std::env::var("MANX_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let (mut rack, mut world) = closed(name, backend);
    let torrent = Torrent::open(&rack.pods["x/b"], &rack.pods["x/a"]).expect("sockets");
    let mut moments = BTreeSet::new();
    for turn in 0..rounds {
        change(&mut world, turn);
        put(&rack, &world);
        // From before the change is read until after it is in the kernel, another moment each time.
        let moment = Duration::from_millis((turn as u64 * 89 + 23) % 241);
        std::thread::sleep(moment);
        let node = rack.nodes.get_mut("node-1").expect("it is there");
        node.process.end(Signal::SIGKILL).expect("it dies");
        moments.insert(moment);
        node.process = node.agent.start().expect("it starts");
    }
    rack.apply(&world).expect("the agent follows");
    all_is_as_it_should_be(&rack, rounds - 1);
    let (sent, came) = torrent.close();
    println!(
        "{backend}: killed {rounds} times, at {} moments from {:?} to {:?} after a change; {sent} datagrams sent to a closed pod, {came} came",
        moments.len(),
        moments.first().expect("there are rounds"),
        moments.last().expect("there are rounds")
    );
    assert!(sent > 100);
    assert_eq!(came, 0);
}

#[test]
fn kernel_an_agent_that_is_killed_at_any_moment_opens_nothing_nft() {
    is_killed_at_any_moment("mxrn", "nft");
}

#[test]
fn kernel_an_agent_that_is_killed_at_any_moment_opens_nothing_legacy() {
    is_killed_at_any_moment("mxrl", "legacy");
}

/// The change waits for the lock, the status says so, and nothing opens meanwhile; a killed agent that finds it taken neither.
#[test]
fn kernel_a_lock_that_is_held_for_seconds_delays_and_opens_nothing() {
    let (mut rack, mut world) = closed("mxrk", "legacy");
    let torrent = Torrent::open(&rack.pods["x/b"], &rack.pods["x/a"]).expect("sockets");
    let file = File::options().create(true).append(true).open(LOCK).expect("it can be opened");
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap_or_else(|(_, error)| panic!("{error}"));
    let held = Instant::now();
    change(&mut world, 0);
    put(&rack, &world);
    let pending = || {
        let (_, status) = rack.node_of("x/a").agent.ask("/v1/status").map_err(|e| e.to_string())?;
        let policy = &status["policy"];
        if policy["pending"] == true { Ok(()) } else { Err(policy.to_string()) }
    };
    wait::until(PATIENCE, pending)
        .unwrap_or_else(|complaint| panic!("it does not say that it waits: {complaint}"));
    std::thread::sleep(Duration::from_secs(2).saturating_sub(held.elapsed()));
    drop(lock);
    println!("the lock was held for {:?}", held.elapsed());
    rack.apply(&world).expect("the agent follows");
    all_is_as_it_should_be(&rack, 0);
    let (sent, came) = torrent.close();
    assert!(sent > 100);
    assert_eq!(came, 0);
}
