//! `sim(compile(calc(state)))` is `verdict(state)`; the incremental calculation is the one from scratch.

#![allow(clippy::unwrap_used)]

#[path = "generate/cluster.rs"]
mod cluster;
#[path = "generate/flows.rs"]
mod flows;

use std::sync::atomic::{AtomicUsize, Ordering};

use cluster::update;
use flows::{cluster, layout, seen_here, wire_flow};
use manx_policy::calc::{Calc, from_scratch};
use manx_policy::live::{Judge, LiveFlow};
use manx_policy::model::{Family, Update};
use manx_policy::sim;
use manx_policy::verdict::Oracle;
use proptest::collection::vec;
use proptest::prelude::*;

fn calc(updates: impl IntoIterator<Item = Update>) -> Calc {
    let mut calc = Calc::new("manx");
    for update in updates {
        calc.apply(update);
    }
    calc
}

#[test]
fn sim_of_compile_of_calc_is_the_verdict() {
    static PAIRS: AtomicUsize = AtomicUsize::new(0);
    static DENIED: AtomicUsize = AtomicUsize::new(0);
    let config =
        ProptestConfig { cases: cases(1400), failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(updates in cluster(), flows in vec(wire_flow(), 1..400))| {
        let calc = calc(updates);
        let snapshot = calc.snapshot();
        let programs = Family::ALL.map(|family| layout().program(&snapshot, family));
        let oracle = Oracle::new(calc.state());
        let mut judge = Judge::new(&calc, flows::NODE_ADDRESSES.map(|text| text.parse().unwrap()));
        for wire in flows {
            let Some((packet, flow, unknown)) = seen_here(calc.state(), wire) else { continue };
            let trace = sim::run(&programs[packet.family() as usize], &packet).expect("a complete program");
            let expected = oracle.verdict(&flow);
            let allowed = expected.allowed && !unknown;
            let live = LiveFlow { source: wire.0, destination: wire.1, payload: flow.payload };
            prop_assert_eq!(judge.allows(&live), allowed, "{:?}\noracle: {:?}", flow, expected);
            prop_assert_eq!(trace.passed, allowed, "{:?}\noracle: {:?}\nsim: {:#?}", flow, expected, trace.steps);
            prop_assert_eq!(trace.passed && trace.mark & 0x0f00_0000 != 0, false, "mark bits are left: {:#?}", trace);
            PAIRS.fetch_add(1, Ordering::Relaxed);
            DENIED.fetch_add(usize::from(!allowed), Ordering::Relaxed);
        }
    });
    let (pairs, denied) = (PAIRS.load(Ordering::Relaxed), DENIED.load(Ordering::Relaxed));
    assert!(pairs > 100_000, "only {pairs} pairs");
    assert!(
        denied > pairs / 10 && denied < pairs * 9 / 10,
        "{denied} of {pairs} denied: the generator is lopsided"
    );
}

#[test]
fn incremental_calculation_equals_the_one_from_scratch_after_every_update() {
    let config = ProptestConfig { cases: cases(500), failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(updates in vec(update(), 1..60))| {
        let mut calc = Calc::new("manx");
        for update in updates {
            calc.apply(update);
            prop_assert_eq!(calc.snapshot(), from_scratch(calc.state(), "manx"));
        }
    });
}

/// How many cases to try: `make soak` asks for more by PROPTEST_CASES.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").map_or(usual, |_| ProptestConfig::default().cases)
}
