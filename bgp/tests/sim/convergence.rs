//! Many speakers: convergence, death and return, partition.

use std::net::IpAddr;
use std::time::Duration;

use manx_bgp::speaker::*;
use manx_bgp::types::*;

use crate::bench::{OUR_AS, secs};
use crate::net::*;

fn with_graceful_restart(config: &mut SpeakerConfig) {
    config.graceful_restart =
        Some(GracefulRestartConfig { restart_time: secs(120), long_lived_time: None, restarting: false });
}

/// A full internal mesh; both ends dial, so that every pair collides.
fn mesh(nodes: usize) -> (Net, Vec<N>) {
    let mut net = Net::new();
    let all: Vec<N> = (0..nodes).map(|_| net.add(OUR_AS, with_graceful_restart)).collect();
    for a in &all {
        for b in &all[..*a] {
            net.peer(*a, *b, |_, _| {});
        }
    }
    (net, all)
}

/// Clients of one reflector, which is node 0.
fn reflected(clients: usize) -> (Net, Vec<N>) {
    let mut net = Net::new();
    let reflector = net.add(OUR_AS, with_graceful_restart);
    let all: Vec<N> = (0..clients).map(|_| net.add(OUR_AS, with_graceful_restart)).collect();
    for client in &all {
        net.peer(reflector, *client, |me, config| config.route_reflector_client = me == reflector);
    }
    (net, all)
}

fn next_hops(net: &Net, at: N, to: N) -> Vec<IpAddr> {
    net.nodes[at].fib.get(&block(to)).cloned().unwrap_or_default().to_vec()
}

#[test]
fn twenty_nodes_in_full_mesh_converge_although_every_pair_collides() {
    let (mut net, all) = mesh(20);
    let took = net.run_until(secs(60), |n| n.all_reach_all(&all)).expect("converges");
    assert!(took < secs(30), "{took:?}");
    net.run(secs(60));
    for a in &all {
        for b in all.iter().filter(|b| *b != a) {
            assert_eq!(next_hops(&net, *a, *b), [IpAddr::from(address(*b))]);
        }
    }
    let flaps: u64 = net.nodes.iter().map(|n| n.flaps).sum();
    assert_eq!(flaps, 0, "collisions are resolved before anything is Established");
}

#[test]
fn trap_8_in_a_node_mesh_one_side_is_passive_by_rule() {
    let mut net = Net::new();
    let all: Vec<N> = (0..12).map(|_| net.add(OUR_AS, |_| {})).collect();
    for a in &all {
        for b in &all[..*a] {
            net.peer(*a, *b, |me, config| config.passive = me == *a);
        }
    }
    net.run_until(secs(30), |n| n.all_reach_all(&all)).expect("converges");
    assert!(net.nodes.iter().all(|n| n.flaps == 0));
}

#[test]
fn thirty_clients_behind_a_reflector_converge_to_each_others_own_next_hops() {
    let (mut net, all) = reflected(30);
    net.run_until(secs(60), |n| n.all_reach_all(&all)).expect("converges");
    for a in &all {
        for b in all.iter().filter(|b| *b != a) {
            assert_eq!(next_hops(&net, *a, *b), [IpAddr::from(address(*b))]);
        }
    }
}

#[test]
fn an_agent_that_is_killed_and_comes_back_loses_nobody_a_route_and_rewrites_none() {
    let (mut net, all) = mesh(8);
    net.run_until(secs(60), |n| n.all_reach_all(&all)).expect("converges");
    net.run(secs(60));
    let writes: Vec<u64> = net.nodes.iter().map(|n| n.fib_writes).collect();
    let fib = net.nodes[3].fib.clone();
    net.kill(3);
    net.run(secs(5));
    net.revive(3, true);
    for other in all.iter().filter(|o| **o != 3) {
        net.with(3, |s, now| {
            s.set_peer(now, PeerConfig::new(name(*other), address(*other).into(), RemoteAs::Internal));
        });
    }
    net.run_until(secs(60), |n| n.nodes[3].restart_complete.len() == 2).expect("before the deadline");
    net.run(secs(200));
    assert_eq!(net.nodes[3].fib, fib);
    assert_eq!(net.nodes.iter().map(|n| n.fib_writes).collect::<Vec<_>>(), writes);
}

#[test]
fn an_agent_that_does_not_come_back_is_forgotten_after_its_restart_time() {
    let (mut net, all) = mesh(5);
    net.run_until(secs(60), |n| n.all_reach_all(&all)).expect("converges");
    net.kill(2);
    net.run(secs(119));
    assert!(!next_hops(&net, 0, 2).is_empty());
    net.run(secs(3));
    assert!(all.iter().filter(|n| **n != 2).all(|n| next_hops(&net, *n, 2).is_empty()));
}

#[test]
fn a_whole_mesh_that_restarts_at_once_does_not_wait_for_the_deadline() {
    let (mut net, all) = mesh(6);
    net.run_until(secs(60), |n| n.all_reach_all(&all)).expect("converges");
    net.run(secs(60));
    let writes: Vec<u64> = net.nodes.iter().map(|n| n.fib_writes).collect();
    for n in &all {
        net.kill(*n);
    }
    net.run(secs(1));
    for n in &all {
        net.revive(*n, true);
    }
    for a in &all {
        for b in &all[..*a] {
            net.peer(*a, *b, |_, _| {});
        }
    }
    let done = |net: &Net| net.nodes.iter().all(|n| n.restart_complete.len() == 2);
    let took = net.run_until(secs(200), done).expect("completes");
    assert!(took < secs(60), "{took:?}");
    assert!(net.all_reach_all(&all));
    assert_eq!(net.nodes.iter().map(|n| n.fib_writes).collect::<Vec<_>>(), writes);
}

#[test]
fn a_partition_takes_the_routes_across_it_and_healing_brings_them_back() {
    let (mut net, all) = mesh(10);
    net.run_until(secs(60), |n| n.all_reach_all(&all)).expect("converges");
    let (left, right) = all.split_at(4);
    for a in left {
        for b in right {
            net.cut(*a, *b);
        }
    }
    // Helpers keep the routes for the restart time: a cut looks like a restart.
    net.run(secs(125));
    assert!(net.all_reach_all(left) && net.all_reach_all(right));
    for a in left {
        assert!(right.iter().all(|b| next_hops(&net, *a, *b).is_empty()));
    }
    for a in left {
        for b in right {
            net.heal(*a, *b);
        }
    }
    net.run_until(secs(120), |n| n.all_reach_all(&all)).expect("heals");
}

#[test]
fn a_silent_link_is_found_by_the_hold_timer() {
    let (mut net, all) = mesh(4);
    net.run_until(secs(60), |n| n.all_reach_all(&all)).expect("converges");
    net.silence(0, 1);
    net.run(secs(60));
    assert_eq!(net.nodes[0].flaps, 0);
    net.run(secs(40));
    assert_eq!(net.nodes[0].flaps, 1);
    // RFC 8538: an expired hold timer may be a peer that is too busy, so that its routes stay for its restart time.
    assert!(!next_hops(&net, 0, 1).is_empty());
    net.run(secs(120));
    assert!(next_hops(&net, 0, 1).is_empty() && next_hops(&net, 1, 0).is_empty());
    net.heal(0, 1);
    net.run_until(secs(120), |n| n.all_reach_all(&all)).expect("heals");
}

#[test]
fn a_node_that_leaves_is_withdrawn_everywhere() {
    let (mut net, all) = reflected(12);
    net.run_until(secs(60), |n| n.all_reach_all(&all)).expect("converges");
    net.with(all[5], |s, now| s.shutdown(now, "decommissioned"));
    net.run(secs(1));
    let rest: Vec<N> = all.iter().copied().filter(|n| *n != all[5]).collect();
    assert!(net.all_reach_all(&rest));
    assert!(rest.iter().all(|n| next_hops(&net, *n, all[5]).is_empty()));
}

#[test]
fn each_node_its_own_as_behind_two_tors_shares_the_load_of_a_dual_homed_one() {
    // Two ToRs that pass everything on, one node on each, one node on both.
    let mut net = Net::new();
    let tors = [net.add(Asn(65001), |_| {}), net.add(Asn(65002), |_| {})];
    let nodes: Vec<N> = (0..3).map(|i| net.add(Asn(64601 + i), with_graceful_restart)).collect();
    let all = vec![std::sync::Arc::new(manx_bgp::filter::Filter::accept_all("transit"))];
    for (tor, node) in [(0, 0), (0, 1), (1, 1), (1, 2)] {
        net.peer(tors[tor], nodes[node], |me, config| {
            if me == tors[tor] {
                config.export.clone_from(&all);
            }
        });
    }
    net.peer(tors[0], tors[1], |_, config| config.export.clone_from(&all));
    net.run_until(secs(60), |n| n.all_reach_all(&nodes)).expect("converges");
    net.run(secs(5));
    let via = |a: N| IpAddr::from(address(a));
    assert_eq!(next_hops(&net, nodes[1], nodes[0]), [via(tors[0])]);
    assert_eq!(next_hops(&net, nodes[0], nodes[1]), [via(tors[0])]);
    assert_eq!(next_hops(&net, nodes[0], nodes[2]), [via(tors[0])]);
    // A prefix of ToR 0 reaches the dual-homed node directly and, longer, through ToR 1.
    assert_eq!(next_hops(&net, nodes[1], tors[0]), [via(tors[0])]);
    // One uplink of the dual-homed node fails, by fast fall-over: traffic moves to the other at once.
    net.cut(tors[0], nodes[1]);
    net.with(nodes[1], |s, now| s.reset(now, &name(tors[0]), Reset::Hard).then_some(()).expect("a peer"));
    net.run(Duration::from_secs(1));
    assert_eq!(next_hops(&net, nodes[1], nodes[0]), [via(tors[1])]);
}
