//! Two hundred changes a second under traffic, in a cluster of 10,000 pods and 1,000 policies: no packet is wrongly let through or
//! wrongly dropped. `make soak` runs it for a minute on either back end (`MANX_CHURN_SECONDS=60`). Needs root.

use std::time::Duration;

use manx_agent::kernel::iptables::Backend;
use manx_tests::churn::crowd::Size;
use manx_tests::churn::{Plan, run};

fn nothing_is_wrong(name: &str, backend: Backend, usual: u64, changes: u32) {
    let seconds =
        std::env::var("MANX_CHURN_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let plan = Plan {
        size: Size { pods: 10_000, policies: 1_000 },
        speaking: 20,
        elsewhere: 30,
        changes,
        lasts: Duration::from_secs(seconds),
        seed: u64::from(std::process::id()),
    };
    let outcome = run(&format!("{name}{}", std::process::id()), &plan, backend).expect("the stage stands");
    let at = |per_mille: usize| outcome.confirmed[(outcome.confirmed.len() - 1) * per_mille / 1000];
    println!(
        "{backend}: {} changes, in force after {:?} (median), {:?} (p99); {} datagrams, {} of them came through; seed {}",
        outcome.changes,
        at(500),
        at(990),
        outcome.sent,
        outcome.arrived,
        plan.seed,
    );
    for wrong in outcome.wrong.iter().take(5) {
        println!("{:?} by the changes {:?}: {:#?}", wrong.probe, wrong.versions, wrong.story);
    }
    assert!(
        outcome.wrong.is_empty(),
        "{} of {} datagrams are not explained",
        outcome.wrong.len(),
        outcome.sent
    );
    let share = outcome.arrived as f64 / outcome.sent as f64;
    assert!((0.05..0.95).contains(&share), "a test in which all or nothing is open shows nothing: {share}");
}

#[test]
fn kernel_no_packet_is_wrongly_judged_while_everything_changes_nft() {
    nothing_is_wrong("mxcn", Backend::Nft, 10, 200);
}

#[test]
fn kernel_no_packet_is_wrongly_judged_while_everything_changes_legacy() {
    nothing_is_wrong("mxcl", Backend::Legacy, 5, 200);
}
