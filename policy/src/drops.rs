//! How a logged packet names the rule that dropped it: the NFLOG prefix, and back.
//!
//! A prefix is `manx:` and a hash of [`Point`]: it fits the kernel's 63 characters whatever names policies have, stays the
//! same over restarts, and tells nothing to whoever cannot ask the agent. The engine turns it back.

use serde::Serialize;

use crate::model::{Direction, Tier};
use crate::names::hash;

/// The NFLOG group of our log rules.
pub const NFLOG_GROUP: u16 = 77;
/// How our prefixes begin.
pub const PREFIX: &str = "manx:";
/// At most so many packets a second for each rule are logged, after a burst of [`BURST`].
pub const PER_SECOND: u16 = 10;
/// See [`PER_SECOND`].
pub const BURST: u16 = 20;

/// Where in our rules a packet is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// The pod whose chain it is, `NAMESPACE/NAME`; `None` in chains that pods share.
    pub pod: Option<String>,
    /// To the pod or from it; `None` where neither was asked.
    pub direction: Option<Direction>,
    /// The policy that decided, as people write it; `None`: no single one.
    pub policy: Option<String>,
    /// Its tier.
    pub tier: Option<Tier>,
    /// Which of its rules in this direction, counted from 0.
    pub rule: Option<usize>,
    /// What happened, in words: "denied by a rule", "no policy allows it", "source address is not the pod's".
    pub reason: String,
}

/// The prefix of packets that are logged here.
pub fn prefix(point: &Point) -> String {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let direction = point.direction.map_or("", Direction::as_str);
    let rule = point.rule.map(|rule| rule.to_string()).unwrap_or_default();
    let (pod, policy) = (text(&point.pod), text(&point.policy));
    format!("{PREFIX}{}", hash(&["log", &pod, direction, &policy, &rule, &point.reason], 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_fits_the_kernel_and_tells_points_apart() {
        let point = Point {
            pod: Some("x".repeat(300)),
            direction: Some(Direction::Ingress),
            policy: Some("y".repeat(300)),
            tier: Some(Tier::Admin),
            rule: Some(7),
            reason: "denied by a rule".into(),
        };
        assert!(prefix(&point).len() <= 63);
        assert_ne!(prefix(&point), prefix(&Point { rule: Some(8), ..point.clone() }));
        assert_ne!(prefix(&point), prefix(&Point { direction: Some(Direction::Egress), ..point.clone() }));
    }
}
