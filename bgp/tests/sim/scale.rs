//! Whole clusters on one virtual clock: meshes and reflectors with delay, loss, partition and restart. Converged means that
//! every node has every other one's block through its owner, and nothing else.
//!
//! `MANX_SOAK=1` takes the sizes that a reflector is for, and prints what they cost.

use std::time::Duration;

use manx_bgp::speaker::*;

use crate::bench::{OUR_AS, secs};
use crate::net::*;

/// The long version is wanted.
fn soak() -> bool {
    std::env::var_os("MANX_SOAK").is_some()
}

/// As many clients as are wanted, or as memory has room for: each holds a route to each other one from both reflectors, and
/// its network of this test another. A share is left to the rest of the machine.
fn fitting(wanted: usize) -> usize {
    const BYTES_A_PAIR: f64 = 400.0;
    const SHARE: f64 = 0.6;
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let available = line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0;
    wanted.min((available * SHARE / BYTES_A_PAIR).sqrt() as usize)
}

fn restartable(config: &mut SpeakerConfig) {
    config.graceful_restart =
        Some(GracefulRestartConfig { restart_time: secs(120), restarting: false, long_lived_time: None });
}

fn wan() -> Net {
    let mut net = Net::new();
    net.loss = 5;
    net.spread = Duration::from_millis(20);
    net
}

/// As the agent configures a mesh: of two nodes the lower one waits.
fn join(net: &mut Net, a: N, b: N) {
    net.peer(a, b, |me, config| config.passive = me == a.min(b));
}

/// What it has taken since a fault, for people.
struct Cost {
    what: &'static str,
    cpu: Duration,
    bytes: u64,
    messages: u64,
}

impl Cost {
    fn of(what: &'static str, net: &Net) -> Self {
        Cost { what, cpu: cpu_time(), bytes: net.bytes, messages: net.messages }
    }

    /// The machine's part is that of speakers and network together.
    #[expect(clippy::print_stdout, reason = "the soak is there to be read")]
    fn print(self, net: &Net, took: Duration) {
        let nodes = net.nodes.len();
        let each = |of: f64| of / nodes as f64;
        // The test's own name stands on the line.
        println!(
            "\n  {}: {nodes} nodes, converged after {:.1} s of virtual time; a node: {:.0} messages, {:.0} bytes, {:.2} ms CPU, {:.2} MB; \
             in all {:.1} s CPU, {:.0} MB",
            self.what,
            took.as_secs_f64(),
            each((net.messages - self.messages) as f64),
            each((net.bytes - self.bytes) as f64),
            each((cpu_time() - self.cpu).as_secs_f64() * 1e3),
            each(megabytes()),
            (cpu_time() - self.cpu).as_secs_f64(),
            megabytes(),
        );
    }
}

/// What this thread has had of a processor: the first number of schedstat, in nanoseconds.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}

/// What the process holds.
fn megabytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// Runs until all of `of` reach each other exactly.
fn converge(net: &mut Net, cost: Cost, of: &[N], limit: Duration) {
    let took = net.run_until(limit, |net| net.all_reach_exactly(of));
    let took = took.unwrap_or_else(|| panic!("{}: not within {limit:?}", cost.what));
    cost.print(net, took);
}

fn reconfigure(net: &mut Net, node: N, peers: &[N], adjust: impl Fn(N, &mut PeerConfig)) {
    for other in peers.iter().filter(|o| **o != node) {
        let remote_as = RemoteAs::Internal;
        let mut config = PeerConfig::new(name(*other), address(*other).into(), remote_as);
        adjust(*other, &mut config);
        net.with(node, |s, now| s.set_peer(now, config));
    }
}

#[test]
fn a_mesh_of_two_hundred_nodes_converges_after_every_fault() {
    let size = if soak() { 1000 } else { 200 };
    let mut net = wan();
    let all: Vec<N> = (0..size).map(|_| net.add(OUR_AS, restartable)).collect();
    for a in &all {
        for b in &all[..*a] {
            join(&mut net, *a, *b);
        }
    }
    let cost = Cost::of("mesh, start", &net);
    converge(&mut net, cost, &all, secs(120));

    // Agents die and are replaced: their routes stay meanwhile.
    let cost = Cost::of("mesh, five restarts", &net);
    let killed = &all[3..8];
    killed.iter().for_each(|n| net.kill(*n));
    net.run(secs(3));
    assert!(net.all_reach_all(&all[10..]) && net.all_reach_all(killed), "fail static");
    for n in killed {
        net.revive(*n, true);
        reconfigure(&mut net, *n, &all, |other, config| config.passive = *n < other);
    }
    converge(&mut net, cost, &all, secs(180));

    // A rack is cut off, for longer than the restart time.
    let cost = Cost::of("mesh, partition healed", &net);
    let (rack, rest) = all.split_at(10);
    let across = || rack.iter().flat_map(|a| rest.iter().map(move |b| (*a, *b)));
    across().for_each(|(a, b)| net.cut(a, b));
    net.run(secs(125));
    assert!(net.all_reach_exactly(rack) && net.all_reach_exactly(rest));
    across().for_each(|(a, b)| net.heal(a, b));
    converge(&mut net, cost, &all, secs(180));

    // A node goes for good.
    let cost = Cost::of("mesh, a node gone", &net);
    let gone = all[20];
    net.with(gone, |s, now| s.shutdown(now, "decommissioned"));
    let rest: Vec<N> = all.iter().copied().filter(|n| *n != gone).collect();
    converge(&mut net, cost, &rest, secs(10));
}

#[test]
fn five_hundred_clients_of_two_reflectors_converge_after_every_fault() {
    let size = if soak() { fitting(5000) } else { 500 };
    let mut net = wan();
    let reflectors = [net.add(OUR_AS, restartable), net.add(OUR_AS, restartable)];
    // Reflectors carry no pods.
    for r in reflectors {
        net.with(r, |s, now| s.withdraw(now, block(r)));
    }
    let clients: Vec<N> = (0..size).map(|_| net.add(OUR_AS, restartable)).collect();
    let client_of = move |me: N, config: &mut PeerConfig| {
        config.route_reflector_client = reflectors.contains(&me);
        config.passive = reflectors.contains(&me);
    };
    net.peer(reflectors[0], reflectors[1], |_, _| {});
    for client in &clients {
        for r in reflectors {
            net.peer(r, *client, client_of);
        }
    }
    let cost = Cost::of("reflectors, start", &net);
    converge(&mut net, cost, &clients, secs(120));

    // A reflector dies and does not come back in time: the other one carries all.
    let cost = Cost::of("reflectors, one lost", &net);
    net.kill(reflectors[0]);
    net.run(secs(125));
    converge(&mut net, cost, &clients, secs(1));
    let cost = Cost::of("reflectors, the lost one back", &net);
    net.revive(reflectors[0], false);
    net.with(reflectors[0], |s, now| s.withdraw(now, block(reflectors[0])));
    let everybody: Vec<N> = clients.iter().copied().chain([reflectors[1]]).collect();
    let (first, second) = (reflectors[0], reflectors[1]);
    reconfigure(&mut net, first, &everybody, |other, config| {
        config.route_reflector_client = other != second;
        config.passive = other != second;
    });
    net.run(secs(60));
    converge(&mut net, cost, &clients, secs(120));
    let up = |net: &Net, n: N| {
        let peers = net.nodes[n].speaker.as_ref().unwrap().peers(net.now);
        peers.iter().filter(|p| p.state == "Established").count()
    };
    assert_eq!((up(&net, first), up(&net, second)), (size + 1, size + 1));

    // Clients lose one reflector each, silently: no route is lost, since the other one has all of them.
    let cost = Cost::of("reflectors, a tenth of the links to one silent and healed", &net);
    let silenced = &clients[..size / 10];
    silenced.iter().for_each(|c| net.silence(first, *c));
    net.run(secs(100));
    assert!(net.all_reach_exactly(&clients));
    silenced.iter().for_each(|c| net.heal(first, *c));
    net.run_until(secs(120), |net| up(net, first) == size + 1).expect("their sessions come back");
    converge(&mut net, cost, &clients, secs(120));
    let cost = Cost::of("reflectors, a client gone", &net);
    net.with(clients[7], |s, now| s.shutdown(now, "decommissioned"));
    let rest: Vec<N> = clients.iter().copied().filter(|n| *n != clients[7]).collect();
    converge(&mut net, cost, &rest, secs(10));
}
