//! Pods that come never wait for rules that go: a node that fills up only ever gets rules, and what pods leave behind stays,
//! harmless and right, until it is tidied away.

use std::sync::Arc;

use manx_policy::model::{
    Action, Addresses, Endpoint, EndpointId, Family, Labels, NamespaceScope, Order, Peer, Pod, PodId, PodRef,
    PodSelector, Policy, PolicyId, Rule, Tier, Update,
};
use manx_policy::plan::{Plan, Step};
use manx_policy::selector::Selector;
use manx_policy::verdict::verdict;
use manx_policy::{Engine, EngineConfig, sim};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::cluster::update;
use crate::fake::FakeKernel;
use crate::flows::{seen_here, wire_flow};
use crate::{config, converge, look};

fn engine() -> Engine {
    let mut engine =
        Engine::new(EngineConfig { names_are_unique: true, ..EngineConfig::new("node-1") }).unwrap();
    engine.set_in_sync(true);
    engine
}

fn name(i: u64) -> String {
    format!("manx{:011x}", (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20)
}

fn id(i: u64) -> EndpointId {
    EndpointId { container_id: format!("c{i}"), ifname: "eth0".into() }
}

fn address(i: u64) -> Addresses {
    Addresses::from_slice(&[[10, 200, (i >> 8) as u8, i as u8].into()])
}

/// A pod and its attachment.
fn comes(engine: &mut Engine, i: u64) {
    engine.apply(Update::SetPod(Pod {
        id: PodId::new("default", &format!("p{i}")),
        uid: "u1".into(),
        mirror_hash: None,
        labels: Labels::from_iter([("app", "web")]),
        node: None,
        host_network: false,
        finished: false,
        terminating: false,
        addresses: address(i),
        ports: Arc::default(),
    }));
    engine.apply(Update::SetEndpoint(Endpoint {
        id: id(i),
        interface: name(i),
        pod: Some(PodRef {
            namespace: Some("default".into()),
            name: format!("p{i}"),
            uid: Some("u1".into()),
        }),
        addresses: address(i),
    }));
}

fn goes(engine: &mut Engine, i: u64) {
    engine.apply(Update::RemoveEndpoint(id(i)));
}

/// Pods of the application hear from nobody but each other.
fn among_themselves() -> Policy {
    let pods = || PodSelector {
        namespaces: NamespaceScope::Named("default".into()),
        pods: Selector::of_labels([("app", "web")]),
    };
    let rule = Rule {
        action: Action::Accept,
        peers: Some(vec![Peer::Pods(pods())]),
        ports: None,
        more: None,
        name: None,
        refused: false,
    };
    Policy {
        id: PolicyId::network_policy("default", "among-themselves"),
        tier: Tier::NetworkPolicy,
        order: Order::NETWORK_POLICY,
        generation: 1,
        staged: false,
        subject: vec![pods()],
        ingress: Some(vec![rule]),
        egress: None,
        problems: Vec::new(),
    }
}

fn texts(plan: &Plan) -> impl Iterator<Item = &str> {
    plan.steps.iter().filter_map(|step| match step {
        Step::Restore { text, .. } => Some(text.as_str()),
        _ => None,
    })
}

fn deletes(plan: &Plan) -> bool {
    texts(plan)
        .flat_map(str::lines)
        .any(|line| ["-D ", "-X ", "-F "].iter().any(|verb| line.starts_with(verb)))
}

#[test]
fn a_node_that_fills_up_gets_rules_and_loses_none() {
    let (mut engine, mut kernel) = (engine(), FakeKernel::default());
    engine.apply(Update::SetPolicy(among_themselves()));
    converge(&mut engine, &mut kernel);
    // One after the other, and several at a time.
    let batches = (0..50).map(|i| i..i + 1).chain((50..110).step_by(6).map(|i| i..i + 6));
    for i in batches {
        let before = kernel.clone();
        i.clone().for_each(|i| comes(&mut engine, i));
        let plan = converge(&mut engine, &mut kernel);
        assert!(!deletes(&plan), "pods {i:?}: {plan:#?}");
        // To declare a chain that is there would be to empty it.
        for chain in texts(&plan).flat_map(str::lines).filter_map(|line| line.strip_prefix(':')) {
            let chain = chain.split(' ').next().unwrap();
            let known = Family::ALL
                .iter()
                .any(|family| before.program(*family).chains.keys().any(|(_, name)| name.as_str() == chain));
            assert!(!known, "pods {i:?} empty {chain}");
        }
    }
}

#[test]
fn what_a_pod_leaves_behind_costs_its_deletion_nothing_and_is_tidied_away() {
    let (mut engine, mut kernel) = (engine(), FakeKernel::default());
    engine.apply(Update::SetPolicy(among_themselves()));
    converge(&mut engine, &mut kernel);
    let empty = kernel.clone();
    comes(&mut engine, 1);
    converge(&mut engine, &mut kernel);
    assert_eq!(engine.left(), 0);
    let full = kernel.clone();

    goes(&mut engine, 1);
    assert_eq!(converge(&mut engine, &mut kernel), Plan::default());
    assert!(engine.left() > 0);
    assert_eq!(kernel, full);

    engine.tidy();
    converge(&mut engine, &mut kernel);
    assert_eq!(engine.left(), 0);
    assert_eq!(kernel, empty);
}

/// As podman starts a container again under its old id.
#[test]
fn a_pod_that_comes_back_finds_its_rules() {
    let (mut engine, mut kernel) = (engine(), FakeKernel::default());
    engine.apply(Update::SetPolicy(among_themselves()));
    comes(&mut engine, 1);
    converge(&mut engine, &mut kernel);
    let full = kernel.clone();
    goes(&mut engine, 1);
    converge(&mut engine, &mut kernel);
    comes(&mut engine, 1);
    assert_eq!(converge(&mut engine, &mut kernel), Plan::default());
    assert_eq!(engine.left(), 0);
    engine.tidy();
    converge(&mut engine, &mut kernel);
    assert_eq!(kernel, full);
}

/// The set of a policy that governs nobody for a moment is kept right: when a pod comes, its members are today's.
#[test]
fn a_set_that_was_left_behind_has_not_aged() {
    let (mut engine, mut kernel) = (engine(), FakeKernel::default());
    engine.apply(Update::SetPolicy(among_themselves()));
    comes(&mut engine, 1);
    converge(&mut engine, &mut kernel);
    goes(&mut engine, 1);
    converge(&mut engine, &mut kernel);
    engine.apply(Update::RemovePod(PodId::new("default", "p1"), None));
    converge(&mut engine, &mut kernel);
    comes(&mut engine, 2);
    converge(&mut engine, &mut kernel);

    let (mut fresh, mut other) = (self::engine(), FakeKernel::default());
    fresh.apply(Update::SetPolicy(among_themselves()));
    comes(&mut fresh, 2);
    converge(&mut fresh, &mut other);
    engine.tidy();
    converge(&mut engine, &mut kernel);
    assert_eq!(kernel, other);
}

/// Whatever comes and goes, and whenever it is tidied: live pods have the verdicts that they should have, and nothing is left
/// in the end.
#[test]
fn what_is_left_behind_changes_no_verdict() {
    let rounds = vec((vec(update(), 0..8), any::<bool>()), 1..10);
    proptest!(config(200), |(rounds in rounds, wires in vec(wire_flow(), 1..50))| {
        let (mut engine, mut kernel) = (engine(), FakeKernel::default());
        let mut all = Vec::new();
        for (round, tidies) in rounds {
            for update in round {
                all.push(update.clone());
                engine.apply(update);
            }
            if tidies {
                engine.tidy();
            }
            converge(&mut engine, &mut kernel);
            let programs = Family::ALL.map(|family| kernel.program(family));
            for wire in &wires {
                let Some((packet, flow, unknown)) = seen_here(engine.state(), *wire) else { continue };
                // What the node itself sends nobody polices, not even to a pod that is not known.
                if packet.input.is_none() {
                    continue;
                }
                let passed = sim::run(&programs[packet.family() as usize], &packet).unwrap().passed;
                let allowed = verdict(engine.state(), &flow).allowed && !unknown;
                prop_assert_eq!(passed, allowed, "{:?}", flow);
            }
        }
        engine.tidy();
        converge(&mut engine, &mut kernel);
        let mut fresh = self::engine();
        all.into_iter().for_each(|update| fresh.apply(update));
        // What came and went before it has looked is left, too.
        fresh.tidy();
        look(&mut fresh, &kernel);
        prop_assert_eq!(fresh.plan(), Plan::default());
    });
}
