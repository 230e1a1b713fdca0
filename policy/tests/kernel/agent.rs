//! A small agent: executes plans with the real tools, and reads back what they print.

use std::time::SystemTime;

use manx_policy::ir::{Member, SetKind};
use manx_policy::model::{Family, Protocol};
use manx_policy::plan::{Observed, ObservedSet, Outcome, Plan, Step, StepResult};
use manx_policy::{Engine, EngineConfig};

use crate::lab::{Netns, run, try_run};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Nft,
    Legacy,
}

impl Backend {
    fn tool(self, family: Family, action: &str) -> String {
        let version = if family == Family::Ipv4 { "" } else { "6" };
        let backend = if self == Backend::Nft { "nft" } else { "legacy" };
        format!("ip{version}tables-{backend}-{action}")
    }
}

/// A new engine that has seen nothing.
pub(crate) fn engine() -> Engine {
    Engine::new(EngineConfig::new("node-1")).unwrap()
}

/// Reads everything that the engine may want.
pub(crate) fn observe(node: &Netns, backend: Backend) -> Observed {
    let rules = Family::ALL.map(|family| {
        let tables = ["filter", "mangle", "raw"];
        let texts = tables.map(|t| run(&mut node.command(&backend.tool(family, "save"), &["-t", t]), None));
        (family, texts.concat())
    });
    let sets = parse_sets(&run(&mut node.command("ipset", &["save"]), None));
    Observed { at: SystemTime::UNIX_EPOCH, rules: rules.into(), sets: Some(sets) }
}

/// Lets the engine look where it wants to and carries out its plans until there is none. Returns every plan.
pub(crate) fn converge(engine: &mut Engine, node: &Netns, backend: Backend) -> Vec<Plan> {
    let mut plans = Vec::new();
    loop {
        if !engine.wants().is_empty() {
            engine.observe(observe(node, backend));
        }
        let plan = engine.plan();
        if plan.is_empty() {
            return plans;
        }
        assert!(plans.len() < 5, "no end of plans: {plans:#?}");
        let results = execute(&plan, node, backend);
        for (step, result) in plan.steps.iter().zip(&results) {
            assert_eq!(*result, StepResult::Done, "{step:#?}");
        }
        engine.applied(plan.id, Outcome { at: SystemTime::UNIX_EPOCH, results });
        plans.push(plan);
    }
}

/// Carries out one plan.
pub(crate) fn execute(plan: &Plan, node: &Netns, backend: Backend) -> Vec<StepResult> {
    let mut failed: Vec<Family> = Vec::new();
    let mut results = Vec::new();
    for step in &plan.steps {
        if failed.contains(&step.family()) {
            results.push(StepResult::Skipped);
            continue;
        }
        results.push(match step_of(step, node, backend) {
            Ok(_) => StepResult::Done,
            Err(reason) => {
                failed.push(step.family());
                StepResult::Failed(reason)
            }
        });
    }
    results
}

fn step_of(step: &Step, node: &Netns, backend: Backend) -> Result<String, String> {
    let ipset = |text: String| try_run(&mut node.command("ipset", &["-exist", "restore"]), Some(&text));
    let each = |verb: &str, set: &str, members: &[Member]| {
        ipset(members.iter().map(|m| format!("{verb} {set} {}\n", member_text(m))).collect())
    };
    match step {
        Step::CreateSet { family, name, kind, max_elements } => {
            let family = if *family == Family::Ipv4 { "inet" } else { "inet6" };
            ipset(format!("create {name} {} family {family} maxelem {max_elements}\n", kind.as_str()))
        }
        Step::AddMembers { set, members, .. } => each("add", set, members),
        Step::DeleteMembers { set, members, .. } => each("del", set, members),
        Step::DestroySet { name, .. } => ipset(format!("destroy {name}\n")),
        Step::Restore { family, text } => {
            let tool = backend.tool(*family, "restore");
            try_run(&mut node.command(&tool, &["--noflush", "--test"]), Some(text))
                .and_then(|_| try_run(&mut node.command(&tool, &["--noflush", "--wait"]), Some(text)))
        }
    }
}

fn member_text(member: &Member) -> String {
    match member {
        Member::Ip(ip) => ip.to_string(),
        Member::Net(net) => net.to_string(),
        Member::IpPort(ip, protocol, port) => format!("{ip},{}:{port}", protocol.lower()),
    }
}

fn parse_sets(text: &str) -> Vec<ObservedSet> {
    let mut sets: Vec<ObservedSet> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["create", name, kind, ..] => {
                sets.push(ObservedSet {
                    name: (*name).into(),
                    kind: SetKind::parse(kind),
                    members: Vec::new(),
                });
            }
            ["add", name, member, ..] => {
                let set = sets.iter_mut().find(|set| set.name == *name).unwrap();
                let kind = set.kind.unwrap();
                set.members.push(parse_member(member, kind));
            }
            _ => {}
        }
    }
    sets
}

fn parse_member(text: &str, kind: SetKind) -> Member {
    match kind {
        SetKind::Ip => Member::Ip(text.parse().unwrap()),
        SetKind::Net => Member::Net(text.parse().unwrap()),
        SetKind::IpPort => {
            let (ip, rest) = text.split_once(',').unwrap();
            let (protocol, port) = rest.split_once(':').unwrap();
            let protocol = Protocol::ALL.into_iter().find(|p| p.lower() == protocol).unwrap();
            Member::IpPort(ip.parse().unwrap(), protocol, port.parse().unwrap())
        }
    }
}
