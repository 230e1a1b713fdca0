//! The policy scenarios of `tests/scenarios`, on racks of one and of three nodes, dual-stack. Needs root and the binaries.
//!
//! `make test` plays every scenario on nft, the end-to-end suite of Kubernetes on one and on three nodes, and a fixed tenth of all on
//! legacy. With `MANX_SCENARIOS=all` every scenario runs on every rack and back end; any other value picks those whose title
//! holds it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use manx_tests::agent::built_binaries;
use manx_tests::scenario::file::{self, Scenario};
use manx_tests::scenario::rack::Rack;
use manx_tests::scenario::run;

#[test]
fn kernel_scenarios_hold_on_three_nodes_with_nft() {
    play_all("mxs3n", 3, "nft", |number, suite| suite || number % 2 == 0);
}

#[test]
fn kernel_scenarios_hold_on_one_node_with_nft() {
    play_all("mxs1n", 1, "nft", |number, suite| suite || number % 2 == 1);
}

#[test]
fn kernel_scenarios_hold_on_three_nodes_with_legacy() {
    play_all("mxs3l", 3, "legacy", |number, _| number % 10 == 0);
}

/// Only where everything is asked for: a rack whose share is empty is not brought up.
#[test]
fn kernel_scenarios_hold_on_one_node_with_legacy() {
    play_all("mxs1l", 1, "legacy", |_, _| false);
}

#[test]
fn every_case_of_the_kubernetes_suite_is_there_once() {
    let suite = file::scenarios(&directory().join("e2e.yaml")).unwrap();
    let titles: std::collections::BTreeSet<_> = suite.iter().map(|scenario| &scenario.title).collect();
    assert_eq!((suite.len(), titles.len()), (48, 48));
    assert!(own().len() >= 200, "{} of our own", own().len());
}

/// Plays the scenarios that are this rack's share, all of them, and tells of every one that fails.
fn play_all(name: &str, nodes: u8, backend: &str, share: impl Fn(usize, bool) -> bool) {
    let wanted = std::env::var("MANX_SCENARIOS").unwrap_or_default();
    let suite = file::scenarios(&directory().join("e2e.yaml")).expect("the suite can be read");
    let of_suite = suite.len();
    let chosen: Vec<Scenario> = suite
        .into_iter()
        .chain(own())
        .enumerate()
        .filter(|(number, scenario)| match wanted.as_str() {
            "" => share(*number, *number < of_suite),
            "all" => true,
            part => scenario.title.contains(part),
        })
        .map(|(_, scenario)| scenario)
        .collect();
    if chosen.is_empty() {
        return;
    }
    let name = format!("{name}{}", std::process::id());
    let mut rack = Rack::up(&name, nodes, backend, &built_binaries()).expect("the rack comes up");
    let started = Instant::now();
    let (mut asked, mut failures) = (0, Vec::new());
    for scenario in &chosen {
        match run::play(&mut rack, scenario) {
            Ok(questions) => asked += questions,
            Err(failure) => failures.push(format!("{failure:#}")),
        }
    }
    let took = started.elapsed().as_secs_f64();
    println!("{} scenarios, {asked} questions in {took:.1} s", chosen.len());
    assert!(
        failures.is_empty(),
        "{} of {} scenarios fail\n{}",
        failures.len(),
        chosen.len(),
        failures.join("\n")
    );
}

/// Those that are not of the suite of Kubernetes.
fn own() -> Vec<Scenario> {
    let mut all =
        file::combinations(&directory().join("combinations.yaml")).expect("combinations can be read");
    for name in ["conflicts.yaml", "tiers.yaml", "calico.yaml"] {
        all.extend(file::scenarios(&directory().join(name)).expect("scenarios can be read"));
    }
    all
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}
