//! Plans against a kernel made of text: they arrive, they say nothing twice, they open nothing on the way, and what was
//! rendered reads back as what was meant.
#![allow(clippy::unwrap_used)]

#[path = "generate/cluster.rs"]
mod cluster;
#[path = "generate/fake.rs"]
mod fake;
#[path = "generate/flows.rs"]
mod flows;
#[path = "planning/leaving.rs"]
mod leaving;

use std::sync::Arc;
use std::time::SystemTime;

use cluster::update;
use fake::FakeKernel;
use flows::{cluster as whole_cluster, layout, seen_here, wire_flow};
use manx_policy::engine::InForce;
use manx_policy::model::{
    Action, Addresses, Direction, Endpoint, EndpointId, Family, Labels, NamespaceScope, Order, Payload, Peer,
    Pod, PodId, PodRef, PodSelector, Policy, PolicyId, Protocol, Rule, Tier, Update,
};
use manx_policy::plan::{Outcome, Plan, Step, StepResult};
use manx_policy::selector::Selector;
use manx_policy::state::{Owner, State};
use manx_policy::verdict::{FlowVerdict, verdict};
use manx_policy::{Engine, EngineConfig, sim};
use proptest::collection::vec;
use proptest::prelude::*;

fn engine() -> Engine {
    Engine::new(EngineConfig::new("node-1")).unwrap()
}

/// One that changes rules in one step or in two.
fn engine_of(deletions_apart: bool) -> Engine {
    Engine::new(EngineConfig { deletions_apart, ..EngineConfig::new("node-1") }).unwrap()
}

/// `make soak` asks for more cases by PROPTEST_CASES.
fn config(usual: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").map_or(usual, |_| ProptestConfig::default().cases);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn done(plan: &Plan) -> Outcome {
    Outcome { at: SystemTime::UNIX_EPOCH, results: vec![StepResult::Done; plan.steps.len()] }
}

fn look(engine: &mut Engine, kernel: &FakeKernel) {
    if !engine.wants().is_empty() {
        engine.observe(kernel.observed());
    }
}

/// Carries out the next plan, and returns it.
fn converge(engine: &mut Engine, kernel: &mut FakeKernel) -> Plan {
    look(engine, kernel);
    let plan = engine.plan();
    plan.steps.iter().for_each(|step| kernel.execute(step));
    if !plan.is_empty() {
        engine.applied(plan.id, done(&plan));
    }
    assert!(engine.plan().is_empty(), "one plan is enough");
    plan
}

#[test]
fn what_is_rendered_reads_back_as_what_was_meant() {
    proptest!(config(300), |(updates in whole_cluster())| {
        let mut engine = engine();
        engine.set_in_sync(true);
        updates.into_iter().for_each(|update| engine.apply(update));
        let mut kernel = FakeKernel::default();
        converge(&mut engine, &mut kernel);
        for family in Family::ALL {
            let (mut found, mut meant) = (kernel.program(family), engine.program(family));
            fake::as_printed(&mut meant);
            fake::as_printed(&mut found);
            let by_place = |hook: &manx_policy::ir::Hook| (hook.table, hook.chain);
            found.hooks.sort_by_key(by_place);
            meant.hooks.sort_by_key(by_place);
            prop_assert_eq!(found.hooks, meant.hooks);
            prop_assert_eq!(found.sets, meant.sets);
            prop_assert!(found.chains.keys().eq(meant.chains.keys()));
            for (key, chain) in found.chains {
                prop_assert_eq!(&chain, &meant.chains[&key]);
            }
        }
    });
}

#[test]
fn any_sequence_of_updates_and_plans_leaves_what_a_fresh_engine_wants() {
    let rounds = vec(vec(update(), 0..8), 1..10);
    proptest!(config(300), |(rounds in rounds, apart: bool)| {
        let (mut engine, mut kernel) = (engine_of(apart), FakeKernel::default());
        let mut all = Vec::new();
        converge(&mut engine, &mut kernel);
        engine.set_in_sync(true);
        for round in rounds {
            for update in round {
                all.push(update.clone());
                engine.apply(update);
            }
            converge(&mut engine, &mut kernel);
        }
        let mut fresh = self::engine();
        all.into_iter().for_each(|update| fresh.apply(update));
        look(&mut fresh, &kernel);
        prop_assert_eq!(fresh.plan(), Plan::default(), "before the source is in sync");
        fresh.set_in_sync(true);
        prop_assert_eq!(fresh.plan(), Plan::default());
        for endpoint in fresh.state().endpoints() {
            let open = fresh.state().owner(endpoint) != Owner::Unknown;
            for engine in [&fresh, &engine] {
                let in_force = matches!(engine.in_force(&endpoint.id), Some(InForce::Since(_)));
                prop_assert_eq!(in_force, open, "{:?}: {:?}", endpoint, engine.in_force(&endpoint.id));
            }
        }
    });
}

/// Reversed, duplicated, split and squashed: the kernel ends up the same, byte for byte.
#[test]
fn the_order_in_which_objects_arrive_leaves_no_trace() {
    proptest!(config(200), |(updates in whole_cluster(), splits in vec(any::<bool>(), 64))| {
        // Of an object the last word counts: keep that one, so that any order means the same cluster.
        let key = |update: &Update| match update {
            Update::SetPod(pod) => format!("pod {}", pod.id),
            Update::SetNamespace(namespace) => format!("ns {}", namespace.name),
            Update::SetPolicy(policy) => format!("policy {}", policy.id),
            Update::SetEndpoint(endpoint) => format!("endpoint {}", endpoint.id),
            Update::SetEntity(entity) => format!("entity {}", entity.id),
            Update::SetServiceAccount(id, _) => format!("account {id}"),
            other => format!("{other:?}"),
        };
        let latest: std::collections::BTreeMap<String, Update> =
            updates.iter().map(|update| (key(update), update.clone())).collect();
        let forward: Vec<Update> = latest.into_values().collect();
        let reversed: Vec<Update> = forward.iter().rev().cloned().collect();
        let doubled: Vec<Update> = forward.iter().chain(&reversed).cloned().collect();
        let mut kernels = Vec::new();
        for (order, squash) in [(&forward, true), (&reversed, false), (&doubled, true)] {
            let (mut engine, mut kernel) = (engine(), FakeKernel::default());
            engine.set_in_sync(true);
            for (update, split) in order.iter().zip(splits.iter().cycle()) {
                engine.apply(update.clone());
                if !squash || *split {
                    converge(&mut engine, &mut kernel);
                }
            }
            converge(&mut engine, &mut kernel);
            kernels.push(kernel);
        }
        prop_assert_eq!(&kernels[0], &kernels[1]);
        prop_assert_eq!(&kernels[0], &kernels[2]);
    });
}

/// A cluster, and changes of what is in it: pods with other labels, policies of the same name that say something else.
fn cluster_and_changes() -> impl Strategy<Value = (Vec<Update>, Vec<Update>)> {
    whole_cluster().prop_flat_map(|updates| {
        let change = prop::sample::select(updates.clone()).prop_flat_map(|update| match update {
            Update::SetPod(pod) => cluster::labels()
                .prop_map(move |labels| Update::SetPod(Pod { labels, ..pod.clone() }))
                .boxed(),
            Update::SetPolicy(old) => cluster::policy()
                .prop_map(move |new| {
                    // Of the same kind: rules of another one would be none that a door lets in.
                    let same = new.id.kind == old.id.kind;
                    let (id, tier, subject) = (old.id.clone(), old.tier, old.subject.clone());
                    Update::SetPolicy(match same {
                        true => Policy { id, tier, subject, ..new },
                        false => Policy { staged: !old.staged, ..old.clone() },
                    })
                })
                .boxed(),
            other => update_like(other).boxed(),
        });
        (Just(updates), vec(change, 1..5))
    })
}

fn update_like(like: Update) -> impl Strategy<Value = Update> {
    prop_oneof![3 => Just(like), 1 => update()]
}

/// One direction of a verdict; where nobody polices it, it is open.
fn open(verdict: &FlowVerdict, direction: Direction) -> bool {
    verdict.decisions.iter().all(|d| d.direction != direction || d.allowed)
}

/// What the oracle says of a flow, or deny where an endpoint in it is closed.
fn judged(state: &State, wire: flows::Wire) -> [bool; 2] {
    let Some((_, flow, unknown)) = seen_here(state, wire) else { return [true, true] };
    let verdict = verdict(state, &flow);
    [Direction::Egress, Direction::Ingress].map(|direction| open(&verdict, direction) && !unknown)
}

/// Between any two steps of a plan a packet that passes is one that the old or the new policy lets out, and lets in.
#[test]
fn no_moment_of_a_plan_allows_what_neither_the_old_nor_the_new_policy_allows() {
    let config = config(200);
    proptest!(config, |((before, changes) in cluster_and_changes(), wires in vec(wire_flow(), 1..300), apart: bool)| {
        let (mut engine, mut kernel) = (engine_of(apart), FakeKernel::default());
        engine.set_in_sync(true);
        before.into_iter().for_each(|update| engine.apply(update));
        converge(&mut engine, &mut kernel);
        let old = engine.state().clone();
        changes.iter().cloned().for_each(|update| engine.apply(update));
        let new = engine.state();
        // Interfaces that come or go within the plan are another matter: their packets begin or end with it.
        let known: Vec<_> = wires
            .into_iter()
            .filter_map(|wire| {
                let (packet, ..) = seen_here(&old, wire)?;
                let (after, ..) = seen_here(new, wire)?;
                (packet == after).then(|| (wire, packet, judged(&old, wire), judged(new, wire)))
            })
            .collect();
        let plan = engine.plan();
        for (at, step) in plan.steps.iter().enumerate() {
            kernel.execute(step);
            let programs = Family::ALL.map(|family| kernel.program(family));
            for (wire, packet, old, new) in &known {
                let passed = sim::run(&programs[packet.family() as usize], packet).unwrap().passed;
                let allowed = (old[0] || new[0]) && (old[1] || new[1]);
                prop_assert!(!passed || allowed, "after step {}: {:?} passes\n{:#?}", at, wire, plan.steps);
                if let ([_], true, true) = (changes.as_slice(), *old == [true, true], *new == [true, true]) {
                    prop_assert!(passed, "one change, after step {}: {:?} is dropped\n{:#?}", at, wire, plan.steps);
                }
            }
        }
    });
}

/// A policy and a pod that change at the same time go in one after the other: at no moment is anything dropped that is allowed
/// before, between and after, or open that is shut all along.
#[test]
fn a_policy_and_who_it_is_about_do_not_change_in_one_plan() {
    let config = config(200);
    proptest!(config, |((before, mut changes) in cluster_and_changes(), wires in vec(wire_flow(), 1..300), apart: bool)| {
        changes.dedup_by_key(|update| update.is_of_policy());
        changes.truncate(2);
        let (mut engine, mut kernel) = (engine_of(apart), FakeKernel::default());
        engine.set_in_sync(true);
        before.into_iter().for_each(|update| engine.apply(update));
        converge(&mut engine, &mut kernel);
        let mut states = vec![engine.state().clone()];
        let mut moments = Vec::new();
        let mut carry_out = |engine: &mut Engine| {
            let plan = engine.plan();
            for step in &plan.steps {
                kernel.execute(step);
                moments.push(Family::ALL.map(|family| kernel.program(family)));
            }
            if !plan.is_empty() {
                engine.applied(plan.id, done(&plan));
            }
        };
        for change in changes {
            if engine.must_go_first(&change) {
                carry_out(&mut engine);
            }
            engine.apply(change);
            states.push(engine.state().clone());
        }
        carry_out(&mut engine);
        for wire in wires {
            let seen: Vec<_> = states.iter().map(|state| seen_here(state, wire).map(|(packet, ..)| packet)).collect();
            let (Some(packet), true) = (&seen[0], seen.iter().all(|packet| *packet == seen[0])) else { continue };
            let said: Vec<_> = states.iter().map(|state| judged(state, wire)).collect();
            for programs in &moments {
                let passed = sim::run(&programs[packet.family() as usize], packet).unwrap().passed;
                let (out, within) = (said.iter().any(|s| s[0]), said.iter().any(|s| s[1]));
                prop_assert!(!passed || (out && within), "{wire:?} passes");
                prop_assert!(passed || said.iter().any(|s| *s != [true, true]), "{wire:?} is dropped");
            }
        }
    });
}

#[test]
fn a_plan_that_is_never_reported_makes_the_engine_look_again() {
    let mut engine = engine();
    engine.set_in_sync(true);
    let kernel = FakeKernel::default();
    look(&mut engine, &kernel);
    let lost = engine.plan();
    assert!(!lost.is_empty());
    assert!(engine.plan().is_empty(), "nothing is planned on a guess");
    assert!(engine.wants().ipv4_rules && engine.wants().ipv6_rules && engine.wants().sets);
    engine.applied(lost.id, done(&lost));
    assert!(!engine.wants().is_empty(), "its outcome comes too late");
    look(&mut engine, &kernel);
    assert_eq!(engine.plan().steps, lost.steps);
}

#[test]
fn a_failure_in_one_family_leaves_the_other_alone() {
    let mut engine = engine();
    engine.set_in_sync(true);
    look(&mut engine, &FakeKernel::default());
    let plan = engine.plan();
    let results = plan.steps.iter().map(|step| match step.family() {
        Family::Ipv4 => StepResult::Done,
        Family::Ipv6 => StepResult::Failed("ip6tables is missing".into()),
    });
    engine.applied(plan.id, Outcome { at: SystemTime::UNIX_EPOCH, results: results.collect() });
    assert!(!engine.wants().ipv4_rules && engine.wants().ipv6_rules);
    assert_eq!(engine.status().problems.len(), 1);
    assert!(engine.plan().is_empty());
}

/// Looks and carries out plans until there are none, in a kernel that refuses any rule with these words.
fn converge_refused(engine: &mut Engine, kernel: &mut FakeKernel, refused: &str) {
    let bad = |step: &Step| matches!(step, Step::Restore { text, .. } if text.contains(refused));
    converge_but_for(engine, kernel, bad);
}

/// The same in a kernel that refuses such steps.
fn converge_but_for(engine: &mut Engine, kernel: &mut FakeKernel, bad: impl Fn(&Step) -> bool) {
    for _ in 0..40 {
        look(engine, kernel);
        let plan = engine.plan();
        if plan.is_empty() && engine.wants().is_empty() {
            return;
        }
        let mut failed = Vec::new();
        let results = plan.steps.iter().map(|step| {
            if failed.contains(&step.family()) {
                return StepResult::Skipped;
            }
            if bad(step) {
                failed.push(step.family());
                return StepResult::Failed("no such module".into());
            }
            kernel.execute(step);
            StepResult::Done
        });
        let results = results.collect();
        engine.applied(plan.id, Outcome { at: SystemTime::UNIX_EPOCH, results });
    }
    panic!("no end of plans");
}

#[test]
fn one_policy_that_the_kernel_refuses_is_closed_and_named_and_keeps_no_other_out() {
    let (mut engine, mut kernel) = (engine(), FakeKernel::default());
    engine.set_in_sync(true);
    for i in 0..6 {
        engine.apply(pod(i, "friend"));
        engine.apply(endpoint(i));
        engine.apply(friends_only(i, true));
    }
    let refused = "default/to-p3 ingress rule";
    converge_refused(&mut engine, &mut kernel, refused);
    let reaches = |kernel: &FakeKernel, engine: &Engine, i: usize| {
        let [source, destination] = [(i + 1) % 6, i].map(|i| cluster::pod_addresses(i)[0]);
        let (packet, ..) =
            seen_here(engine.state(), (source, destination, Payload::opening(Protocol::Tcp, 80))).unwrap();
        sim::run(&kernel.program(Family::Ipv4), &packet).unwrap().passed
    };
    assert_eq!(
        [0, 1, 2, 3, 4, 5].map(|i| reaches(&kernel, &engine, i)),
        [true, true, true, false, true, true]
    );
    let objects: Vec<String> = engine.status().problems.into_iter().map(|problem| problem.object).collect();
    assert_eq!(objects, ["np default/to-p3"; 2], "in each family");
    let in_force = |engine: &Engine, i: usize| {
        let id = EndpointId { container_id: format!("p{i}"), ifname: "eth0".into() };
        matches!(engine.in_force(&id), Some(InForce::Since(_)))
    };
    assert!(in_force(&engine, 2) && !in_force(&engine, 3));

    engine.observe(kernel.observed());
    converge_refused(&mut engine, &mut kernel, refused);
    assert!(!in_force(&engine, 3), "an audit tries again, in vain");
    engine.observe(kernel.observed());
    converge_refused(&mut engine, &mut kernel, "nothing");
    assert!(reaches(&kernel, &engine, 3) && in_force(&engine, 3), "and again, when the module is there");
    assert_eq!(engine.status().problems, []);
}

#[test]
fn a_set_that_the_kernel_refuses_closes_its_policies_and_blocks_nothing_else() {
    let (mut engine, mut kernel) = (engine(), FakeKernel::default());
    engine.set_in_sync(true);
    for i in 0..4 {
        engine.apply(pod(i, "friend"));
        engine.apply(endpoint(i));
    }
    engine.apply(friends_only(0, true));
    let Update::SetPolicy(mut other) = friends_only(1, true) else { panic!() };
    let strangers = NamespaceScope::Named("elsewhere".into());
    let stranger = PodSelector { namespaces: strangers, pods: Selector::everything() };
    other.ingress.as_mut().unwrap()[0].peers.as_mut().unwrap().push(Peer::Pods(stranger.clone()));
    engine.apply(Update::SetPolicy(other));
    let suffix = manx_policy::grants::SetKey::Pods(stranger).suffix();
    let bad = |step: &Step| step.set().is_some_and(|set| set.ends_with(&suffix));
    converge_but_for(&mut engine, &mut kernel, bad);
    let reaches = |engine: &Engine, kernel: &FakeKernel, i: usize| {
        let [source, destination] = [3, i].map(|i| cluster::pod_addresses(i)[0]);
        let (packet, ..) =
            seen_here(engine.state(), (source, destination, Payload::opening(Protocol::Tcp, 80))).unwrap();
        sim::run(&kernel.program(Family::Ipv4), &packet).unwrap().passed
    };
    assert!(reaches(&engine, &kernel, 0) && !reaches(&engine, &kernel, 1));
    let objects: Vec<String> = engine.status().problems.into_iter().map(|problem| problem.object).collect();
    assert_eq!(objects, ["np default/to-p1"; 2], "in each family");

    engine.apply(friends_only(2, true));
    converge_but_for(&mut engine, &mut kernel, bad);
    assert!(reaches(&engine, &kernel, 2), "what comes later is not blocked either");

    engine.observe(kernel.observed());
    converge_but_for(&mut engine, &mut kernel, |_| false);
    assert!(reaches(&engine, &kernel, 1), "an audit tries again");
    assert_eq!(engine.status().problems, []);
}

#[test]
fn a_kernel_without_a_log_gets_the_same_rules_without_it() {
    let (mut engine, mut kernel) = (engine(), FakeKernel::default());
    engine.set_in_sync(true);
    for i in 0..3 {
        engine.apply(pod(i, "friend"));
        engine.apply(endpoint(i));
        engine.apply(friends_only(i, true));
    }
    let refused = |step: &Step| matches!(step, Step::Restore { text, .. } if text.contains("-j NFLOG"));
    for _ in 0..5 {
        look(&mut engine, &kernel);
        let plan = engine.plan();
        let result = |step| {
            if refused(step) { StepResult::Failed("no such target".into()) } else { StepResult::Skipped }
        };
        let results = plan.steps.iter().map(result).collect();
        engine.applied(plan.id, Outcome { at: SystemTime::UNIX_EPOCH, results });
    }
    assert!(!engine.status().problems.is_empty(), "as long as they are to log");
    engine.stop_logging();
    converge_but_for(&mut engine, &mut kernel, refused);
    assert_eq!(engine.status().problems, []);
    assert_eq!((engine.status().endpoints_in_force, engine.log_points().len()), (3, 0));

    let mut without = Engine::new(EngineConfig { log_drops: false, ..EngineConfig::new("node-1") }).unwrap();
    without.set_in_sync(true);
    for i in 0..3 {
        without.apply(pod(i, "friend"));
        without.apply(endpoint(i));
        without.apply(friends_only(i, true));
    }
    without.observe(kernel.observed());
    assert!(without.plan().is_empty(), "nothing tells the two apart");
}

#[test]
fn a_kernel_that_refuses_everything_holds_no_policy_to_blame() {
    let (mut engine, mut kernel) = (engine(), FakeKernel::default());
    engine.set_in_sync(true);
    engine.apply(pod(WEB, "friend"));
    engine.apply(endpoint(WEB));
    engine.apply(friends_only(WEB, true));
    for _ in 0..7 {
        look(&mut engine, &kernel);
        let plan = engine.plan();
        let results = vec![StepResult::Failed("the lock is held".into()); plan.steps.len()];
        engine.applied(plan.id, Outcome { at: SystemTime::UNIX_EPOCH, results });
    }
    converge_refused(&mut engine, &mut kernel, "nothing");
    assert_eq!(engine.status().problems, []);
}

#[test]
fn dispatch_grows_as_a_tree_with_few_rules_at_each_step() {
    let interfaces =
        |n: u64| (0..n).map(|i| format!("manx{:011x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20));
    for n in [0, 1, 16, 17, 110, 2000] {
        let names = interfaces(n).collect();
        for (_, chain) in layout().dispatch(&names) {
            assert!(chain.rules.len() <= 17, "{n} pods: {} has {} rules", chain.name, chain.rules.len());
            assert!(chain.name.len() <= 28);
            let last = chain.rules.last().unwrap();
            assert_eq!(
                (last.matches.len(), &last.verdict),
                (0, &manx_policy::ir::Verdict::Drop),
                "{}",
                chain.name
            );
        }
    }
}

const WEB: usize = 0;
const OTHER: usize = 1;
const MOVER: usize = 2;

fn pod(i: usize, app: &str) -> Update {
    Update::SetPod(Pod {
        id: PodId::new("default", &format!("p{i}")),
        uid: "u1".into(),
        mirror_hash: None,
        labels: Labels::from_iter([("app", app), ("name", &format!("p{i}"))]),
        node: None,
        host_network: false,
        finished: false,
        terminating: false,
        addresses: Addresses::from_slice(&cluster::pod_addresses(i)),
        ports: Arc::default(),
    })
}

fn endpoint(i: usize) -> Update {
    Update::SetEndpoint(Endpoint {
        id: EndpointId { container_id: format!("p{i}"), ifname: "eth0".into() },
        interface: cluster::interface(i),
        pod: Some(PodRef {
            namespace: Some("default".into()),
            name: format!("p{i}"),
            uid: Some("u1".into()),
        }),
        addresses: Addresses::from_slice(&cluster::pod_addresses(i)),
    })
}

/// Pods with the label `app: friend` reach pod `i`, or nobody does.
fn friends_only(i: usize, friends: bool) -> Update {
    let pods = |key: &str, value: &str| PodSelector {
        namespaces: NamespaceScope::Named("default".into()),
        pods: Selector::of_labels([(key, value)]),
    };
    let rule = Rule {
        action: Action::Accept,
        peers: Some(vec![Peer::Pods(pods("app", "friend"))]),
        ports: None,
        more: None,
        name: None,
        refused: false,
    };
    Update::SetPolicy(Policy {
        id: PolicyId::network_policy("default", &format!("to-p{i}")),
        tier: Tier::NetworkPolicy,
        order: Order::NETWORK_POLICY,
        generation: 1,
        staged: false,
        subject: vec![pods("name", &format!("p{i}"))],
        ingress: Some(if friends { vec![rule] } else { vec![] }),
        egress: None,
        problems: Vec::new(),
    })
}

/// Does the mover reach the web pod at any moment while these changes are carried out?
fn moments(friend_before: &str, open_before: bool, friend_after: &str, open_after: bool) -> Vec<bool> {
    let (mut engine, mut kernel) = (engine(), FakeKernel::default());
    engine.set_in_sync(true);
    for i in [WEB, OTHER, MOVER] {
        engine.apply(pod(i, if i == MOVER { friend_before } else { "none" }));
        engine.apply(endpoint(i));
    }
    engine.apply(friends_only(WEB, open_before));
    // The same set stays in use whatever becomes of the web pod's policy.
    engine.apply(friends_only(OTHER, true));
    converge(&mut engine, &mut kernel);
    engine.apply(pod(MOVER, friend_after));
    engine.apply(friends_only(WEB, open_after));
    let [source, destination] = [MOVER, WEB].map(|i| cluster::pod_addresses(i)[0]);
    let (packet, ..) =
        seen_here(engine.state(), (source, destination, Payload::opening(Protocol::Tcp, 80))).unwrap();
    let plan = engine.plan();
    let passes = plan.steps.iter().map(|step| {
        kernel.execute(step);
        sim::run(&kernel.program(Family::Ipv4), &packet).unwrap().passed
    });
    passes.collect()
}

#[test]
fn a_rule_that_goes_does_not_meet_a_member_that_comes() {
    let moments = moments("none", true, "friend", false);
    assert!(moments.iter().all(|passed| !passed), "{moments:?}");
}

#[test]
fn a_rule_that_comes_does_not_meet_a_member_that_goes() {
    let moments = moments("friend", false, "none", true);
    assert!(moments.iter().all(|passed| !passed), "{moments:?}");
}

#[test]
fn a_rule_and_a_member_that_both_come_are_both_there_in_the_end() {
    let moments = moments("none", false, "friend", true);
    assert_eq!(moments.last(), Some(&true), "{moments:?}");
}
