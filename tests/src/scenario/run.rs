//! Plays scenarios on a rack and tells where what was seen is not what was expected.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::blame;
use super::file::{Scenario, Step};
use super::rack::{PORTS, Rack, World, namespace_labels, pod_labels, relabel};
use super::sweep::{Seen, sweep};
use super::table::Question;

/// So many wrong answers are told of in full.
const TOLD: usize = 12;
/// For so many of them the rules that counted the packet are looked for.
const BLAMED: usize = 2;

/// Plays a scenario from a fresh world, and says how many questions were asked.
///
/// # Errors
/// The first step after which the table is not as expected, with pair, port, expected, seen and the rules that decided.
pub fn play(rack: &mut Rack, scenario: &Scenario) -> Result<usize> {
    let mut world = World::new();
    let mut asked = 0;
    for (number, step) in scenario.steps.iter().enumerate() {
        let place = || format!("{}, after step {}", scenario.title, number + 1);
        advance(&mut world, step).with_context(place)?;
        rack.apply(&world).with_context(place)?;
        if step.nodes {
            rack.open_nodes().with_context(place)?;
        }
        let answers = sweep(&rack.stations, &PORTS, |question| step.expect.open(question));
        rack.close_nodes();
        let answers = answers.with_context(place)?;
        asked += answers.len();
        let wrong: Vec<(Question, Seen)> = answers
            .into_iter()
            .filter(|(question, seen)| !agrees(step.expect.open(question), seen))
            .collect();
        if !wrong.is_empty() {
            bail!("{}", report(rack, &place(), &wrong));
        }
    }
    Ok(asked)
}

/// What is shut is silent: Kubernetes counts a refusal as a failure.
fn agrees(open: bool, seen: &Seen) -> bool {
    matches!((open, seen), (true, Seen::Reached) | (false, Seen::Nothing))
}

/// Puts an object into the world, or takes it out.
fn put(world: &mut World, kind: &str, version: &str, metadata: &Value, spec: Option<&Value>) -> Result<()> {
    let key = format!("{kind} {version} {metadata}");
    match spec {
        Some(spec) => {
            let object = json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec});
            world.objects.insert(key, object);
        }
        None => drop(world.objects.remove(&key).with_context(|| format!("there is no {key} to delete"))?),
    }
    Ok(())
}

/// Makes the world what it is after a step.
fn advance(world: &mut World, step: &Step) -> Result<()> {
    for (name, spec) in &step.policies {
        let (namespace, short) = name.split_once('/').context("a policy is NAMESPACE/NAME")?;
        let key = format!("NetworkPolicy/{name}");
        match spec {
            Some(spec) => {
                let metadata = json!({"name": short, "namespace": namespace});
                let object = json!({
                    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec,
                });
                world.objects.insert(key, object);
            }
            None => {
                world.objects.remove(&key).with_context(|| format!("there is no {key} to delete"))?;
            }
        }
    }
    for (name, spec) in &step.cluster {
        let version = "policy.networking.k8s.io/v1alpha2";
        put(world, "ClusterNetworkPolicy", version, &json!({"name": name}), spec.as_ref())?;
    }
    for (name, spec) in &step.calico {
        let (kind, metadata) = match name.split_once('/') {
            Some((namespace, short)) => ("NetworkPolicy", json!({"name": short, "namespace": namespace})),
            None => ("GlobalNetworkPolicy", json!({"name": name})),
        };
        put(world, kind, "projectcalico.org/v3", &metadata, spec.as_ref())?;
    }
    for object in &step.objects {
        world.objects.insert(key_of(object)?, object.clone());
    }
    for key in &step.delete {
        world.objects.remove(key).with_context(|| format!("there is no {key} to delete"))?;
    }
    for (name, changes) in &step.namespaces {
        relabel(world.namespaces.entry(name.clone()).or_insert_with(|| namespace_labels(name)), changes);
    }
    for (name, changes) in &step.pods {
        let (_, short) = name.split_once('/').context("a pod is NAMESPACE/NAME")?;
        relabel(world.pods.entry(name.clone()).or_insert_with(|| pod_labels(short)), changes);
    }
    for name in &step.gone {
        world.pods.remove(name).with_context(|| format!("there is no pod {name} to delete"))?;
    }
    Ok(())
}

fn key_of(object: &Value) -> Result<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let kind = text(&object["kind"]).context("an object has a kind")?;
    let name = text(&object["metadata"]["name"]).context("an object has a name")?;
    Ok(match text(&object["metadata"]["namespace"]) {
        Some(namespace) => format!("{kind}/{namespace}/{name}"),
        None => format!("{kind}/{name}"),
    })
}

fn report(rack: &Rack, place: &str, wrong: &[(Question, Seen)]) -> String {
    let mut text = format!("{place}: {} answers are wrong", wrong.len());
    for (number, (question, seen)) in wrong.iter().take(TOLD).enumerate() {
        let (expected, seen) = match seen {
            Seen::Reached => ("shut", "it was reached".to_owned()),
            Seen::Nothing => ("open", "nothing came back".to_owned()),
            Seen::Refused(reason) => ("open, or shut in silence", reason.clone()),
        };
        let _ = write!(text, "\n  {question}: expected {expected}, but {seen}");
        if number < BLAMED {
            match blame::rules(rack, question) {
                Ok(rules) => rules.iter().for_each(|rule| _ = write!(text, "\n      {rule}")),
                Err(error) => _ = write!(text, "\n      no rules to blame: {error:#}"),
            }
        }
    }
    if wrong.len() > TOLD {
        let mut pairs: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (question, _) in &wrong[TOLD..] {
            *pairs.entry((&question.from, &question.to)).or_default() += 1;
        }
        for ((from, to), count) in pairs {
            let _ = write!(text, "\n  and {count} of {from} -> {to}");
        }
    }
    text
}
