//! The lab's promises, one file for each: every check is a line with what was observed.

use std::time::Duration;

use anyhow::Result;

use crate::lab::Lab;
use crate::probe::matrix::Outcomes;
use crate::report::Report;

pub mod changes;
pub mod delete;
pub mod failover;
pub mod policy;
pub mod reach;
pub mod restart;
pub mod routing;

/// How long a probe that ought to be answered may take; also how long one that ought to be denied is waited for.
pub const PROBE_LIMIT: Duration = Duration::from_millis(700);

/// Makes all checks. `open` is the matrix of the lab without policies. A check that cannot be made has failed.
pub fn run(lab: &mut Lab, open: &Outcomes, report: &mut Report) {
    let section = |title: &str, report: &mut Report, result: &mut dyn FnMut(&mut Report) -> Result<()>| {
        report.section(title);
        if let Err(error) = result(report) {
            report.error(title, &error);
        }
    };
    section("Routing", report, &mut |report| routing::check(lab, report));
    section("Reachability", report, &mut |report| reach::check(lab, open, report));
    section("Network policy", report, &mut |report| policy::check(lab, report));
    section("Changes take effect", report, &mut |report| changes::check(lab, report));
    section("The agent is killed", report, &mut |report| restart::check(lab, report));
    section("A link goes down", report, &mut |report| failover::check(lab, report));
    section("A pod is deleted", report, &mut |report| delete::check(lab, report));
}
