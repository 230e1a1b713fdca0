//! What the engine tells people about flows and policies: traces over the rendered rules, proposals, what is in force.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use manx_policy::drops::prefix;
use manx_policy::model::{Endpoint, EndpointId, Entity, Family, PodRef, Update};
use manx_policy::plan::{Observed, Outcome, StepResult};
use manx_policy::trace::{self, Question};
use manx_policy::{Engine, EngineConfig, k8s};
use rstest::rstest;

const T0: SystemTime = SystemTime::UNIX_EPOCH;

fn at(seconds: u64) -> SystemTime {
    T0 + Duration::from_secs(seconds)
}

/// An engine on node-1 with an empty kernel.
fn engine() -> Engine {
    let mut engine = Engine::new(EngineConfig::new("node-1")).unwrap();
    let rules = Family::ALL.map(|family| (family, String::new()));
    engine.observe(Observed { at: T0, rules: rules.into(), sets: Some(Vec::new()) });
    engine.set_in_sync(true);
    for (name, ip) in [("node-1", "172.16.0.1"), ("node-2", "172.16.0.2")] {
        engine.apply(Update::SetEntity(Entity {
            id: Entity::node(name),
            labels: [("role", "worker")].into_iter().collect(),
            addresses: [ip.parse().unwrap()].into_iter().collect(),
            nets: [].into(),
        }));
    }
    engine
}

fn pod(engine: &mut Engine, name: &str, last: u8, node: &str) {
    let text = format!(
        "{{metadata: {{namespace: default, name: {name}, uid: {name}, labels: {{app: {name}}}}}, \
         spec: {{nodeName: {node}, containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]}}, \
         status: {{podIPs: [{{ip: 10.0.0.{last}}}, {{ip: 'fd00::{last}'}}]}}}}"
    );
    let object: core::Pod = serde_saphyr::from_str(&text).unwrap();
    engine.apply(Update::SetPod(k8s::pod(&object).unwrap()));
    if node == "node-1" {
        engine.apply(Update::SetEndpoint(Endpoint {
            id: EndpointId { container_id: name.into(), ifname: "eth0".into() },
            interface: format!("manx{last:011x}"),
            pod: Some(PodRef {
                namespace: Some("default".into()),
                name: name.into(),
                uid: Some(name.into()),
            }),
            addresses: [format!("10.0.0.{last}").parse().unwrap(), format!("fd00::{last}").parse().unwrap()]
                .into_iter()
                .collect(),
        }));
    }
}

fn network_policy(name: &str, spec: &str) -> Update {
    let text = format!("{{metadata: {{namespace: default, name: {name}, generation: 3}}, spec: {spec}}}");
    let object: networking::NetworkPolicy = serde_saphyr::from_str(&text).unwrap();
    Update::SetPolicy(k8s::network_policy(&object).unwrap())
}

fn cluster_policy(name: &str, annotations: &str, spec: &str) -> Update {
    let text = format!("{{metadata: {{name: {name}, annotations: {annotations}}}, spec: {spec}}}");
    let object: k8s::ClusterNetworkPolicy = serde_saphyr::from_str(&text).unwrap();
    Update::SetPolicy(k8s::cluster_network_policy(&object).unwrap())
}

fn carry_out(engine: &mut Engine, seconds: u64) {
    let plan = engine.plan();
    let results = vec![StepResult::Done; plan.steps.len()];
    engine.applied(plan.id, Outcome { at: at(seconds), results });
}

/// web and client here, db on node-2.
fn cluster() -> Engine {
    let mut engine = engine();
    pod(&mut engine, "web", 1, "node-1");
    pod(&mut engine, "client", 2, "node-1");
    pod(&mut engine, "db", 3, "node-2");
    engine
}

fn ask(engine: &Engine, from: &str, to: &str) -> trace::Explanation {
    engine.explain(&Question::parse(from, to).unwrap()).unwrap()
}

/// Each step in short: node, direction, policy and rule, result.
fn short(explanation: &trace::Explanation) -> Vec<String> {
    let step = |step: &trace::Step| {
        let policy = step.policy.as_deref().unwrap_or("-");
        let rule = step.rule.map(|rule| format!("#{rule}")).unwrap_or_default();
        let computed = if step.computed { " computed" } else { "" };
        format!(
            "{} {} {policy}{rule} {}{computed}",
            step.node.as_deref().unwrap_or("?"),
            step.direction.as_str(),
            step.result
        )
    };
    explanation.steps.iter().map(step).collect()
}

#[test]
fn a_trace_names_every_policy_that_was_asked_and_ends_in_a_rule_of_the_kernel() {
    let mut engine = cluster();
    engine.apply(network_policy(
        "web",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 443}]}, {from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    ));
    engine.apply(cluster_policy(
        "first",
        "{}",
        "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, name: pods first, from: [{namespaces: {}}]}]}",
    ));
    engine.apply(cluster_policy(
        "tried",
        "{manx.dev/staged: 'true'}",
        "{tier: Admin, priority: 9, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}",
    ));
    carry_out(&mut engine, 1);
    let allowed = ask(&engine, "default/client", "default/web:80");
    assert_eq!(
        short(&allowed),
        [
            "node-1 egress - Allow",
            "node-1 ingress ClusterNetworkPolicy:tried#0 Staged",
            "node-1 ingress ClusterNetworkPolicy:first#0 Pass",
            "node-1 ingress default/web#1 Allow",
        ]
    );
    assert!(allowed.allowed && allowed.steps.iter().all(|step| step.counter.is_some()));
    assert!(allowed.steps[2].reason.contains("pods first"), "{:?}", allowed.steps[2]);
    let denied = ask(&engine, "192.0.2.7", "default/web:80/udp");
    assert!(!denied.allowed);
    assert_eq!(
        short(&denied),
        [
            "node-1 ingress ClusterNetworkPolicy:tried NoMatch",
            "node-1 ingress ClusterNetworkPolicy:first NoMatch",
            "node-1 ingress default/web NoMatch",
            "node-1 ingress - Deny",
        ]
        .map(|text| text.replace("tried NoMatch", "tried Staged"))
    );
    assert!(denied.steps[3].reason.contains("no policy allows it"));
}

#[test]
fn what_another_node_enforces_is_compiled_for_it_and_marked_computed() {
    let mut engine = cluster();
    engine.apply(network_policy("db", "{podSelector: {matchLabels: {app: db}}, ingress: []}"));
    carry_out(&mut engine, 1);
    let trace = ask(&engine, "default/client", "default/db:5432");
    assert!(!trace.allowed);
    assert_eq!(
        short(&trace),
        [
            "node-1 egress - Allow",
            "node-2 ingress default/db NoMatch computed",
            "node-2 ingress - Deny computed",
        ]
    );
    assert!(trace.steps[1].counter.is_none());
    assert!(ask(&engine, "default/db", "default/web:80").allowed);
    assert!(ask(&engine, "172.16.0.2", "default/db:5432").allowed, "a node and its own pod");
    assert!(!ask(&engine, "172.16.0.1", "default/db:5432").allowed, "another node");
}

#[test]
fn a_trace_without_a_port_is_a_ping_and_takes_any_common_family() {
    let mut engine = cluster();
    engine.apply(network_policy(
        "web",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}",
    ));
    carry_out(&mut engine, 1);
    assert!(!ask(&engine, "default/client", "default/web").allowed);
    let v6 = ask(&engine, "fd00::2", "[fd00::1]:80");
    assert!(v6.allowed && v6.addresses.1.is_ipv6());
    for (from, to) in [("fd00::2", "10.0.0.1"), ("default/nobody", "default/web")] {
        assert!(engine.explain(&Question::parse(from, to).unwrap()).is_err(), "{from} {to}");
    }
}

#[test]
fn what_the_kernel_refused_is_traced_as_it_stands_there() {
    let mut engine = cluster();
    engine.apply(network_policy(
        "web",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}",
    ));
    for _ in 0..20 {
        if !engine.wants().is_empty() {
            let rules = Family::ALL.map(|family| (family, String::new()));
            engine.observe(Observed { at: T0, rules: rules.into(), sets: Some(Vec::new()) });
        }
        let plan = engine.plan();
        let refuses = |step: &manx_policy::plan::Step| matches!(step, manx_policy::plan::Step::Restore { text, .. } if text.contains("default/web ingress rule"));
        let results = plan.steps.iter().map(|step| match refuses(step) {
            true => StepResult::Failed("no such module".into()),
            false => StepResult::Done,
        });
        engine.applied(plan.id, Outcome { at: T0, results: results.collect() });
    }
    assert!(!ask(&engine, "default/client", "default/web:80").allowed);
}

#[test]
fn a_policy_is_in_force_since_its_generation_came_to_the_kernel() {
    let mut engine = cluster();
    engine.apply(network_policy("web", "{podSelector: {matchLabels: {app: web}}, ingress: []}"));
    engine.apply(network_policy("db", "{podSelector: {matchLabels: {app: db}}, ingress: []}"));
    let of = |engine: &Engine, name: &str| {
        let found = engine.policies().into_iter().find(|policy| *policy.id.name == *name).unwrap();
        (found.endpoints, found.generation, found.in_force_since, found.reason.is_some())
    };
    assert_eq!(of(&engine, "web"), (1, 3, None, true));
    carry_out(&mut engine, 5);
    assert_eq!(of(&engine, "web"), (1, 3, Some(at(5)), false));
    assert_eq!(of(&engine, "db"), (0, 3, None, true));
    engine.apply(network_policy("db", "{podSelector: {matchLabels: {app: client}}, ingress: []}"));
    carry_out(&mut engine, 9);
    assert_eq!(of(&engine, "web").2, Some(at(5)), "untouched by another's change");
    assert_eq!(of(&engine, "db"), (1, 3, Some(at(9)), false));
    engine.apply(network_policy("web", "{podSelector: {matchLabels: {app: web}}, ingress: [{}]}"));
    assert_eq!(of(&engine, "web").2, None);
}

#[test]
fn every_log_prefix_in_the_rules_leads_back_to_policy_and_rule() {
    let mut engine = cluster();
    engine.apply(network_policy("web", "{podSelector: {matchLabels: {app: web}}, ingress: []}"));
    engine.apply(cluster_policy(
        "no-db",
        "{}",
        "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{pods: {podSelector: {matchLabels: {app: db}}}}]}]}",
    ));
    let points = engine.log_points();
    let text = engine.render("default", "web").unwrap();
    let mut seen = 0;
    for prefix in text.split("--nflog-prefix ").skip(1).map(|rest| rest.split_whitespace().next().unwrap()) {
        let point = &points[prefix];
        assert_eq!(manx_policy::drops::prefix(point), prefix);
        seen += 1;
    }
    assert!(seen >= 6, "{text}");
    let rule = points.values().find(|point| point.policy.is_some()).unwrap();
    assert_eq!((rule.policy.as_deref(), rule.rule), (Some("ClusterNetworkPolicy:no-db"), Some(0)));
    assert!(points.contains_key(&prefix(rule)));
    assert!(
        points
            .values()
            .any(|point| point.pod.as_deref() == Some("default/web") && point.reason.contains("no policy"))
    );
}

#[rstest]
#[case::cut(
    "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]}",
    true
)]
#[case::no_change("{podSelector: {matchLabels: {app: web}}, ingress: [{}]}", false)]
fn a_proposal_tells_which_flows_it_cuts(#[case] spec: &str, #[case] cuts: bool) {
    let mut engine = cluster();
    carry_out(&mut engine, 1);
    let own = ["172.16.0.1".parse().unwrap()];
    let comparison = engine.proposal(vec![network_policy("new", spec)]).calculate();
    let found = comparison.changes(&own);
    assert!(found.flows > 0 && !found.truncated);
    assert_eq!(found.changes.is_empty(), !cuts, "{found:#?}");
    let mut cutter = comparison.cutter(&own);
    for change in &found.changes {
        assert!(change.cut && change.pod.to_string() == "default/web" && change.by == "no policy allows it");
        let cut = cutter.cut(&change.example).unwrap();
        assert_eq!((cut.direction, &cut.pod, &cut.by), (change.direction, &change.pod, &change.by));
    }
    let from_client_to_80 =
        |c: &manx_policy::diff::Change| c.peer.contains("app=client") && c.port == "80/TCP";
    assert!(!found.changes.iter().any(from_client_to_80));
    assert_eq!(engine.policies().len(), 0, "nothing has changed");
}

#[test]
fn suspects_are_those_whose_rules_or_peers_changed() {
    let mut engine = cluster();
    engine.apply(network_policy(
        "web",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    ));
    let flow = |source: &str, destination: &str| manx_policy::live::LiveFlow {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        payload: manx_policy::model::Payload::opening(manx_policy::model::Protocol::Tcp, 80),
    };
    let first = engine.take_suspects();
    assert!(
        first.concerns(&flow("198.51.100.1", "198.51.100.2")),
        "after a start nobody knows what held before"
    );
    assert!(engine.take_suspects().is_empty());
    pod(&mut engine, "db", 3, "node-2");
    assert!(engine.take_suspects().is_empty(), "nothing new");
    let stripped = serde_saphyr::from_str::<core::Pod>(
        "{metadata: {namespace: default, name: client, uid: client}, spec: {nodeName: node-1, containers: []}, status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}}",
    );
    engine.apply(Update::SetPod(k8s::pod(&stripped.unwrap()).unwrap()));
    let suspects = engine.take_suspects();
    assert!(
        suspects.concerns(&flow("10.0.0.2", "10.0.0.1")) && !suspects.concerns(&flow("10.0.0.3", "10.0.0.1"))
    );
    assert!(!engine.still_allowed(&flow("10.0.0.2", "10.0.0.1"), []));
    assert!(engine.still_allowed(&flow("10.0.0.1", "10.0.0.2"), []));
    engine.apply(network_policy("web", "{podSelector: {matchLabels: {app: web}}, ingress: []}"));
    assert!(
        engine.take_suspects().concerns(&flow("10.0.0.3", "10.0.0.1")),
        "every flow of a pod whose policy changed"
    );
}

#[test]
fn a_pod_to_its_own_address_is_asked_nothing() {
    let mut engine = cluster();
    engine.apply(network_policy("none", "{podSelector: {}, policyTypes: [Ingress, Egress]}"));
    for (from, to) in [
        ("default/web", "default/web:80"),
        ("default/web", "10.0.0.1:80"),
        ("fd00::3", "[fd00::3]:53/udp"),
        ("default/db", "default/db"),
    ] {
        let explained = ask(&engine, from, to);
        assert!(explained.allowed, "{from} -> {to}");
        assert_eq!(explained.steps.len(), 1, "{from} -> {to}: {:?}", short(&explained));
    }
    assert!(!ask(&engine, "default/client", "default/web:80").allowed, "others are");
}
