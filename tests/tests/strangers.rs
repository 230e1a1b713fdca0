//! Another program changes our rules: nothing opens, and the rules are back at once. Needs root.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use manx_tests::agent::built_binaries;
use manx_tests::probe::fresh_number;
use manx_tests::scenario::rack::{PORTS, Rack, World};
use manx_tests::scenario::station::{socket, unspecified};
use manx_tests::scenario::sweep::{Seen, sweep};
use manx_tests::wait;
use serde_json::json;
use socket2::Type;

/// Far below the audit's 30 seconds, far above what it takes.
const AT_ONCE: Duration = Duration::from_secs(5);

/// x/a takes packets from nobody.
fn closed(name: &str, backend: &str) -> Rack {
    let name = format!("{name}{}", std::process::id());
    let mut rack = Rack::up(&name, 1, backend, &built_binaries()).expect("the rack comes up");
    let mut world = World::new();
    let spec = json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"]});
    let metadata = json!({"name": "closed", "namespace": "x"});
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec});
    world.objects.insert("NetworkPolicy/x/closed".to_owned(), object);
    rack.apply(&world).expect("the agents follow");
    rack
}

/// Sends to x/a while `work` runs, each datagram as a flow of its own, and returns how many came through.
fn leaked_during(rack: &Rack, work: impl FnOnce()) -> usize {
    let (from, to) = (&rack.pods["x/b"], &rack.pods["x/a"]);
    let listeners: Vec<UdpSocket> = [false, true]
        .map(|v6| {
            let address = SocketAddr::new(to.address(v6), 7000);
            to.netns.enter(|| socket(address, Type::DGRAM)).expect("a namespace").expect("a free port").into()
        })
        .into();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for v6 in [false, true] {
                    let own = SocketAddr::new(unspecified(v6), fresh_number());
                    let near = from.netns.enter(|| socket(own, Type::DGRAM)).expect("a namespace");
                    let target = SocketAddr::new(to.address(v6), 7000);
                    // No answer is awaited, and a refusal to send is no leak.
                    let _ = UdpSocket::from(near.expect("a free port")).send_to(b"x", target);
                }
            }
        });
        work();
        done.store(true, Ordering::Relaxed);
    });
    listeners.iter().map(|listener| std::iter::from_fn(|| listener.recv(&mut [0; 8]).ok()).count()).sum()
}

fn run(rack: &Rack, line: &str) -> String {
    rack.node_of("x/a").agent.netns.run(line).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Who is to reach whom is what the sweep finds.
fn all_is_as_it_should_be(rack: &Rack) {
    let answers = sweep(&rack.stations, &PORTS, |question| question.to != "x/a").expect("the sweep runs");
    let wrong: Vec<_> = answers
        .into_iter()
        .filter(|(question, seen)| (question.to != "x/a") != (*seen == Seen::Reached))
        .map(|(question, seen)| format!("{question}: {seen:?}"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
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

fn mended(rack: &Rack, wanted: &[String]) -> Duration {
    let mended = wait::until(AT_ONCE, || {
        let found = rules(rack, "nft");
        if found == wanted { Ok(()) } else { Err(format!("{} rules of {}", found.len(), wanted.len())) }
    });
    mended.unwrap_or_else(|complaint| panic!("not mended after {AT_ONCE:?}: {complaint}")).1
}

/// `iptables -F` leaves the guard, which closes until the rules are back; deleting single rules and jumps is mended as well.
#[test]
fn kernel_rules_that_a_stranger_deletes_are_back_at_once_and_nothing_opens() {
    let rack = closed("mxsf", "nft");
    let wanted = rules(&rack, "nft");
    all_is_as_it_should_be(&rack);
    for deed in [
        &["iptables-nft -F", "ip6tables-nft -F"][..],
        &["iptables-nft -F FORWARD", "ip6tables-nft -F FORWARD"],
        &["iptables-nft -D MANX-FORWARD 2", "ip6tables-nft -D MANX-FORWARD 2"],
        &["iptables-nft -t mangle -F", "ip6tables-nft -t mangle -F"],
    ] {
        let leaked = leaked_during(&rack, || {
            deed.iter().for_each(|line| _ = run(&rack, line));
            let took = mended(&rack, &wanted);
            println!("{deed:?}: mended after {took:?}");
        });
        assert_eq!(leaked, 0, "{deed:?} opened x/a");
        all_is_as_it_should_be(&rack);
    }
}

/// A program that writes rules of its own all the time, as kube-proxy does, neither stops ours nor makes the agent read them.
#[test]
fn kernel_a_program_with_rules_of_its_own_goes_unnoticed() {
    let mut rack = closed("mxsk", "nft");
    run(&rack, "iptables-nft -N KUBE-SERVICES");
    let started = Instant::now();
    let text = |turn: u32| format!("iptables-nft -A KUBE-SERVICES -d 10.96.0.{turn} -j RETURN");
    let before = rack.node_of("x/a").agent.metrics().expect("metrics");
    for turn in 1..=40 {
        run(&rack, &text(turn));
        run(&rack, "iptables-nft -D KUBE-SERVICES 1");
    }
    println!("80 changes of a stranger in {:?}", started.elapsed());
    rack.wait_until_in_force().expect("the agent follows");
    all_is_as_it_should_be(&rack);
    let repairs = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("manx_policy_repairs_total "));
        line.map(str::to_owned).expect("the metric is there")
    };
    assert_eq!(repairs(&before), repairs(&rack.node_of("x/a").agent.metrics().expect("metrics")));
}
