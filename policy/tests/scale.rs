//! A large cluster: what a change costs follows what it changes. Times are printed with `--nocapture`; what is asserted is
//! counted, not timed.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "it reads the clock and its own memory to print them")]

use std::time::{Instant, SystemTime};

use manx_policy::live::LiveFlow;
use manx_policy::model::{
    Action, Addresses, Endpoint, EndpointId, Family, Labels, NamedPort, Namespace, NamespaceScope, Order,
    Payload, Peer, Pod, PodId, PodRef, PodSelector, Policy, PolicyId, PolicyKind, Port, Protocol, Rule, Tier,
    Update,
};
use manx_policy::plan::{Observed, Outcome, Plan, Step, StepResult};
use manx_policy::selector::Selector;
use manx_policy::{Engine, EngineConfig};

const PODS: usize = 10_000;
const POLICIES: usize = 1_000;
const NAMESPACES: usize = 100;
const LOCAL: usize = 110;
const WIDE: usize = 60;

fn pod(i: usize, color: &str) -> Pod {
    let namespace = format!("ns-{}", i % NAMESPACES);
    let name = format!("pod-{i}-7d9f8b6c5d-x2k4z");
    let labels = [
        ("app", format!("app-{}", i / NAMESPACES % 20)),
        ("color", color.to_string()),
        ("pod-template-hash", format!("{:x}", i / 50)),
        ("tier", format!("tier-{}", i % 3)),
        ("statefulset.kubernetes.io/pod-name", name.clone()),
    ];
    Pod {
        id: PodId::new(&namespace, &name),
        uid: format!("0a1b2c3d-0000-0000-0000-{i:012}").into(),
        mirror_hash: None,
        labels: Labels::from_iter(labels.iter().map(|(k, v)| (*k, v))),
        node: Some(format!("node-{}", i % 90).into()),
        host_network: false,
        finished: false,
        terminating: false,
        addresses: addresses(i),
        ports: [NamedPort { name: "http".into(), protocol: Protocol::Tcp, number: 8080 }].into(),
    }
}

fn addresses(i: usize) -> Addresses {
    Addresses::from_iter([
        format!("10.{}.{}.{}", i >> 16, (i >> 8) & 255, i & 255).parse().unwrap(),
        format!("fd00::{i:x}").parse().unwrap(),
    ])
}

fn endpoint(i: usize) -> Endpoint {
    let pod = pod(i, "red");
    Endpoint {
        id: EndpointId { container_id: format!("{i:064x}"), ifname: "eth0".into() },
        interface: format!("manx{:011x}", (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20),
        pod: Some(PodRef {
            namespace: Some(pod.id.namespace.to_string()),
            name: pod.id.name.to_string(),
            uid: Some(pod.uid.to_string()),
        }),
        addresses: addresses(i),
    }
}

/// Ten in each namespace: by app in the namespace, by namespace label, by port.
fn policy(i: usize, port: u16) -> Policy {
    let namespace = format!("ns-{}", i % NAMESPACES);
    let app = |n: usize| Selector::of_labels([("app", format!("app-{n}"))]);
    let n = i / NAMESPACES;
    let own = Peer::Pods(PodSelector {
        namespaces: NamespaceScope::Named(namespace.as_str().into()),
        pods: app(n + 1),
    });
    let team = Selector::of_labels([("team", format!("team-{}", i % 10))]);
    let others = Peer::Pods(PodSelector { namespaces: NamespaceScope::Matching(team), pods: app(n) });
    let rule = |peer, port| Rule {
        action: Action::Accept,
        peers: Some(vec![peer]),
        ports: Some(vec![port]),
        more: None,
        name: None,
        refused: false,
    };
    Policy {
        id: PolicyId::network_policy(&namespace, &format!("policy-{n}")),
        tier: Tier::NetworkPolicy,
        order: Order::NETWORK_POLICY,
        generation: 1,
        staged: false,
        subject: vec![PodSelector {
            namespaces: NamespaceScope::Named(namespace.as_str().into()),
            pods: if n.is_multiple_of(5) { Selector::everything() } else { app(n) },
        }],
        ingress: Some(vec![
            rule(own, Port::Range(Protocol::Tcp, port, port)),
            rule(others.clone(), Port::Named(Protocol::Tcp, "http".into())),
        ]),
        egress: Some(vec![rule(others, Port::Range(Protocol::Tcp, 443, 443))]),
        problems: Vec::new(),
    }
}

/// Cluster-wide ones: of an administrator, of Calico's kind, and a baseline, each of which governs every tenth namespace.
fn wide(i: usize, port: u16) -> Policy {
    let team = Selector::of_labels([("team", format!("team-{}", i % 10))]);
    let subject = PodSelector { namespaces: NamespaceScope::Matching(team), pods: Selector::everything() };
    let tier = Selector::of_labels([("tier", format!("tier-{}", i % 3))]);
    let pods = PodSelector { namespaces: NamespaceScope::Matching(Selector::everything()), pods: tier };
    let rule = |action, peers| Rule {
        action,
        peers: Some(peers),
        ports: Some(vec![Port::Range(Protocol::Tcp, port, port)]),
        more: None,
        name: None,
        refused: false,
    };
    let (kind, tier, rules) = match i % 3 {
        0 => {
            let rules = vec![
                rule(Action::Deny, vec![Peer::Nodes(Selector::everything())]),
                rule(Action::Pass, vec![Peer::Pods(pods)]),
            ];
            (PolicyKind::ClusterNetworkPolicy, Tier::Admin, rules)
        }
        1 => {
            let rules = vec![rule(Action::Accept, vec![Peer::Entities(pods)])];
            (PolicyKind::CalicoGlobalNetworkPolicy, Tier::NetworkPolicy, rules)
        }
        _ => {
            let rules = vec![rule(Action::Deny, vec![Peer::Pods(pods)])];
            (PolicyKind::ClusterNetworkPolicy, Tier::Baseline, rules)
        }
    };
    Policy {
        id: PolicyId { kind, namespace: None, name: format!("wide-{i}").into() },
        tier,
        order: Order::new(i as f64),
        generation: 1,
        staged: i % 7 == 6,
        subject: vec![subject],
        ingress: Some(rules.clone()),
        egress: Some(rules),
        problems: Vec::new(),
    }
}

fn carry_out(engine: &mut Engine) -> Plan {
    let plan = engine.plan();
    let results = vec![StepResult::Done; plan.steps.len()];
    engine.applied(plan.id, Outcome { at: SystemTime::UNIX_EPOCH, results });
    plan
}

fn resident() -> u64 {
    let status = std::fs::read("/proc/self/status").unwrap_or_default();
    let status = String::from_utf8_lossy(&status).into_owned();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[test]
fn in_a_large_cluster_a_change_costs_what_it_changes() {
    let mut engine = Engine::new(EngineConfig::new("node-0")).unwrap();
    let rules = Family::ALL.map(|family| (family, String::new()));
    engine.observe(Observed { at: SystemTime::UNIX_EPOCH, rules: rules.into(), sets: Some(Vec::new()) });
    let (start, before) = (Instant::now(), resident());
    for i in 0..NAMESPACES {
        let labels =
            [("team", format!("team-{}", i % 10)), ("kubernetes.io/metadata.name", format!("ns-{i}"))];
        let name = format!("ns-{i}").as_str().into();
        engine.apply(Update::SetNamespace(Namespace { name, labels: Labels::from_iter(labels) }));
    }
    (0..PODS).for_each(|i| engine.apply(Update::SetPod(pod(i, "red"))));
    (0..POLICIES).for_each(|i| engine.apply(Update::SetPolicy(policy(i, 80))));
    (0..WIDE).for_each(|i| engine.apply(Update::SetPolicy(wide(i, 80))));
    (0..LOCAL).for_each(|i| engine.apply(Update::SetEndpoint(endpoint(i))));
    engine.set_in_sync(true);
    let applied = start.elapsed();
    let cold = carry_out(&mut engine);
    let bytes: usize = cold
        .steps
        .iter()
        .map(|step| if let Step::Restore { text, .. } = step { text.len() } else { 0 })
        .sum();
    println!("cold start: {applied:?} to apply, {:?} to the first plan of {bytes} bytes", start.elapsed());
    println!("{:?}", engine.status());
    println!("memory: {} kB", resident() - before);
    assert_eq!(engine.status().endpoints_in_force, LOCAL);

    // A pod elsewhere changes a label that no policy looks at, and one that some look at.
    let mut times = Vec::new();
    for i in 5000..6000 {
        let start = Instant::now();
        engine.apply(Update::SetPod(pod(i, "blue")));
        let plan = carry_out(&mut engine);
        times.push(start.elapsed());
        assert!(plan.is_empty(), "{plan:#?}");
    }
    times.sort();
    println!("label that nobody selects: median {:?}, p99 {:?}", times[500], times[990]);
    let mut times = Vec::new();
    for i in 5000..6000 {
        let mut moved = pod(i, "blue");
        moved.labels = Labels::from_iter([("app", format!("app-{}", i % 7))]);
        let start = Instant::now();
        engine.apply(Update::SetPod(moved));
        let plan = carry_out(&mut engine);
        times.push(start.elapsed());
        assert!(plan.steps.iter().all(|step| !matches!(step, Step::Restore { .. })), "{plan:#?}");
        assert!(plan.steps.len() <= 16, "{plan:#?}");
    }
    times.sort();
    println!("membership: median {:?}, p99 {:?}", times[500], times[990]);

    // A policy that governs local pods changes a port: its chain and nothing else, in each family.
    let mut times = Vec::new();
    for i in 0..100 {
        let start = Instant::now();
        engine.apply(Update::SetPolicy(policy(i, 8443)));
        let plan = carry_out(&mut engine);
        times.push(start.elapsed());
        assert_eq!(plan.steps.len(), 2, "{plan:#?}");
        for step in &plan.steps {
            let Step::Restore { text, .. } = step else { panic!("{step:?}") };
            assert_eq!(
                text.lines().filter(|line| line.starts_with('-')).count(),
                2,
                "one rule out, one in: {text}"
            );
        }
    }
    times.sort();
    println!("policy: median {:?}, worst {:?}", times[50], times[99]);
    let mut times = Vec::new();
    for i in (0..WIDE).filter(|i| i % 7 != 6) {
        let start = Instant::now();
        engine.apply(Update::SetPolicy(wide(i, 8443)));
        let plan = carry_out(&mut engine);
        times.push(start.elapsed());
        for step in &plan.steps {
            let Step::Restore { text, .. } = step else { panic!("{step:?}") };
            let chains = text.lines().filter_map(|line| line.strip_prefix('-')?.split(' ').nth(1));
            let chains: std::collections::BTreeSet<&str> = chains.collect();
            assert!(
                chains.iter().all(|chain| chain.starts_with("MANX-P")),
                "its own chains alone: {chains:?}"
            );
        }
    }
    times.sort();
    println!("cluster-wide policy: median {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1]);

    // Every flow of conntrack is asked once: of local pods with everyone.
    let start = Instant::now();
    let mut judge = engine.judge([]);
    let flows = 10_000;
    let allowed = (0..flows).filter(|i| {
        let (source, destination) = (addresses(i % LOCAL)[0], addresses(i * 7 % PODS)[0]);
        judge.allows(&LiveFlow { source, destination, payload: Payload::opening(Protocol::Tcp, 443) })
    });
    let allowed = allowed.count();
    println!("{flows} live flows judged in {:?}, {allowed} allowed", start.elapsed());
    assert!(allowed > 0 && allowed < flows);
    assert_eq!(engine.status().endpoints_in_force, LOCAL);
}
