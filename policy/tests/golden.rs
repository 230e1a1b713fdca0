//! The text that goes to the kernel, reviewed by eye. `INSTA_UPDATE=always cargo test -p manx-policy --test golden` writes it
//! anew; read the diff.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::time::SystemTime;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use manx_policy::engine::JumpPosition;
use manx_policy::model::{Endpoint, EndpointId, PodRef, Update};
use manx_policy::plan::{Observed, Outcome, Plan, Step, StepResult};
use manx_policy::{Engine, EngineConfig, k8s};

/// Node agents on an empty kernel.
fn started(config: EngineConfig) -> Engine {
    let mut engine = Engine::new(config).unwrap();
    let rules = manx_policy::model::Family::ALL.map(|family| (family, String::new()));
    engine.observe(Observed { at: SystemTime::UNIX_EPOCH, rules: rules.into(), sets: Some(Vec::new()) });
    engine
}

/// Carries the next plan out, in thought, and prints it.
fn next(engine: &mut Engine) -> String {
    let plan = engine.plan();
    let results = vec![StepResult::Done; plan.steps.len()];
    let text = print(&plan);
    engine.applied(plan.id, Outcome { at: SystemTime::UNIX_EPOCH, results });
    text
}

fn print(plan: &Plan) -> String {
    let mut text = String::new();
    for step in &plan.steps {
        match step {
            Step::CreateSet { name, kind, max_elements, .. } => {
                writeln!(text, "create {name} {} maxelem {max_elements}", kind.as_str())
            }
            Step::AddMembers { set, members, .. } => writeln!(text, "add {set} {members:?}"),
            Step::DeleteMembers { set, members, .. } => writeln!(text, "delete {set} {members:?}"),
            Step::DestroySet { name, .. } => writeln!(text, "destroy {name}"),
            Step::Restore { family, text: rules } => write!(text, "---- restore {family:?}\n{rules}----\n"),
        }
        .unwrap();
    }
    text
}

fn pod(engine: &mut Engine, name: &str, labels: &str, last: u8) {
    let text = format!(
        "{{metadata: {{namespace: default, name: {name}, uid: {name}, labels: {labels}}}, \
         spec: {{containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]}}, \
         status: {{podIPs: [{{ip: 10.0.0.{last}}}, {{ip: 'fd00::{last}'}}]}}}}"
    );
    let object: core::Pod = serde_saphyr::from_str(&text).unwrap();
    engine.apply(Update::SetPod(k8s::pod(&object).unwrap()));
}

fn attach(engine: &mut Engine, name: &str, last: u8) {
    engine.apply(Update::SetEndpoint(Endpoint {
        id: EndpointId { container_id: name.into(), ifname: "eth0".into() },
        interface: format!("manx{last:011x}"),
        pod: Some(PodRef { namespace: Some("default".into()), name: name.into(), uid: Some(name.into()) }),
        addresses: [format!("10.0.0.{last}").parse().unwrap(), format!("fd00::{last}").parse().unwrap()]
            .into_iter()
            .collect(),
    }));
}

fn policy(engine: &mut Engine, name: &str, spec: &str) {
    let text = format!("{{metadata: {{namespace: default, name: {name}}}, spec: {spec}}}");
    let object: networking::NetworkPolicy = serde_saphyr::from_str(&text).unwrap();
    engine.apply(Update::SetPolicy(k8s::network_policy(&object).unwrap()));
}

#[test]
fn closing_dispatch() {
    insta::assert_snapshot!(next(&mut started(EngineConfig::new("node-1"))));
}

#[test]
fn appended_without_guard() {
    let config = EngineConfig { jumps: JumpPosition::Append, ..EngineConfig::new("node-1") };
    insta::assert_snapshot!(next(&mut started(config)));
}

#[test]
fn a_pod_from_its_attachment_to_its_end() {
    let mut engine = started(EngineConfig::new("node-1"));
    next(&mut engine);
    engine.set_in_sync(true);
    attach(&mut engine, "web", 7);
    let mut text = format!("## its pod is not known\n{}", next(&mut engine));
    pod(&mut engine, "web", "{app: web}", 7);
    write!(text, "## its pod is known\n{}", next(&mut engine)).unwrap();
    policy(
        &mut engine,
        "web",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    );
    write!(text, "## a policy selects it\n{}", next(&mut engine)).unwrap();
    pod(&mut engine, "client", "{app: client}", 9);
    write!(text, "## a peer appears elsewhere\n{}", next(&mut engine)).unwrap();
    engine.apply(Update::RemoveEndpoint(EndpointId { container_id: "web".into(), ifname: "eth0".into() }));
    write!(text, "## it is gone\n{}", next(&mut engine)).unwrap();
    insta::assert_snapshot!(text);
}

#[test]
fn every_kind_of_peer_and_port() {
    let mut engine = started(EngineConfig::new("node-1"));
    next(&mut engine);
    engine.set_in_sync(true);
    attach(&mut engine, "web", 7);
    pod(&mut engine, "web", "{app: web}", 7);
    next(&mut engine);
    policy(
        &mut engine,
        "kinds",
        "{podSelector: {}, policyTypes: [Ingress, Egress], \
          ingress: [{ports: [{port: http}, {port: 80}, {port: 443}, {port: 8000, endPort: 8999}, {port: 53, protocol: UDP}]}, \
                    {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}}, {ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]}, \
                    {from: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: '2001:db8::/32'}}], ports: [{protocol: SCTP}]}], \
          egress: [{to: [{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: db}}}], ports: [{port: http}, {port: 5432}]}, \
                   {to: [{ipBlock: {cidr: '::/0'}}], ports: [{port: 443}]}]}",
    );
    insta::assert_snapshot!(next(&mut engine));
}

#[test]
fn a_pod_that_comes_and_goes_elsewhere_touches_sets_only() {
    let mut engine = started(EngineConfig::new("node-1"));
    next(&mut engine);
    engine.set_in_sync(true);
    attach(&mut engine, "web", 7);
    pod(&mut engine, "web", "{app: web}", 7);
    policy(
        &mut engine,
        "web",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    );
    next(&mut engine);
    for labels in ["{app: client}", "{app: other}"] {
        pod(&mut engine, "client", labels, 9);
        let plan = engine.plan();
        assert_eq!(plan.steps.len(), 2, "{plan:#?}");
        assert!(
            plan.steps
                .iter()
                .all(|step| matches!(step, Step::AddMembers { .. } | Step::DeleteMembers { .. }))
        );
        let results = vec![StepResult::Done; 2];
        engine.applied(plan.id, Outcome { at: SystemTime::UNIX_EPOCH, results });
    }
}

#[test]
fn what_holds_for_a_pod_in_words() {
    let mut engine = started(EngineConfig::new("node-1"));
    next(&mut engine);
    engine.set_in_sync(true);
    attach(&mut engine, "web", 7);
    pod(&mut engine, "web", "{app: web}", 7);
    policy(
        &mut engine,
        "web",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}, {namespaceSelector: {}}], ports: [{port: 80}, {port: http}]}, \
                                     {ports: [{port: 9, endPort: 3}]}, {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}",
    );
    let before = engine.policy_for("default", "web").unwrap();
    next(&mut engine);
    let after = engine.policy_for("default", "web").unwrap();
    insta::assert_json_snapshot!((before, after));
}
