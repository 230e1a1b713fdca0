//! Carrying out plans.

use std::time::UNIX_EPOCH;

use manx_agent::kernel::iptables::Backend;
use manx_agent::kernel::policy::PolicyKernel;
use manx_policy::ir::{Member, SetKind};
use manx_policy::model::Family;
use manx_policy::plan::{Plan, PlanId, Step, StepResult, Wants};

use crate::netns::{in_namespace, run};

fn create(family: Family, name: &str) -> Step {
    Step::CreateSet { family, name: name.to_owned(), kind: SetKind::Ip, max_elements: 64 }
}

fn add(family: Family, name: &str, address: &str) -> Step {
    let members = vec![Member::Ip(address.parse().unwrap())];
    Step::AddMembers { family, set: name.to_owned(), kind: SetKind::Ip, members }
}

fn restore(family: Family, set: &str) -> Step {
    let text = format!("*filter\n:MANX-A - [0:0]\n-A MANX-A -m set --match-set {set} src -j DROP\nCOMMIT\n");
    Step::Restore { family, text }
}

fn plan(steps: Vec<Step>) -> Plan {
    Plan { id: PlanId(1), steps }
}

const EVERYTHING: Wants = Wants { ipv4_rules: true, ipv6_rules: true, sets: true };

/// Promise 3, policy trap 8: sets exist before the rules that speak of them, and go after them.
#[test]
fn sets_come_before_their_rules_and_go_after_them() {
    in_namespace(|| {
        let mut kernel = PolicyKernel::open(Backend::Nft).unwrap();
        let outcome = kernel.execute(&plan(vec![
            create(Family::Ipv4, "manx4-p"),
            add(Family::Ipv4, "manx4-p", "192.0.2.1"),
            create(Family::Ipv6, "manx6-p"),
            add(Family::Ipv6, "manx6-p", "2001:db8::1"),
            restore(Family::Ipv4, "manx4-p"),
            restore(Family::Ipv6, "manx6-p"),
        ]));
        assert_eq!(outcome.results, vec![StepResult::Done; 6]);
        assert!(outcome.at > UNIX_EPOCH);
        assert!(run("iptables-nft-save", &[]).contains("-A MANX-A -m set --match-set manx4-p src -j DROP"));
        assert!(run("ip6tables-nft-save", &[]).contains("-A MANX-A -m set --match-set manx6-p src -j DROP"));
        assert!(run("ipset", &["save"]).contains("add manx6-p 2001:db8::1"));

        let observed = kernel.observe(EVERYTHING).unwrap();
        assert_eq!(observed.rules.len(), 2);
        assert!(observed.rules.iter().all(|(_, text)| text.contains("MANX-A")));
        let sets = observed.sets.unwrap();
        let names: Vec<_> = sets.iter().map(|set| set.name.as_str()).collect();
        assert_eq!(names, ["manx4-p", "manx6-p"]);
        let rules_only = kernel.observe(Wants { ipv4_rules: true, ..Wants::default() }).unwrap();
        assert_eq!((rules_only.rules.len(), rules_only.sets), (1, None));

        let text = "*filter\n:MANX-A - [0:0]\n-X MANX-A\nCOMMIT\n".to_owned();
        let outcome = kernel.execute(&plan(vec![
            Step::Restore { family: Family::Ipv4, text },
            Step::DestroySet { family: Family::Ipv4, name: "manx4-p".to_owned() },
        ]));
        assert_eq!(outcome.results, vec![StepResult::Done; 2]);
        assert_eq!(run("ipset", &["list", "-n"]), "manx6-p\n");
        assert!(!run("iptables-nft-save", &[]).contains("MANX"));
    });
}

#[test]
fn after_a_failure_the_rest_of_that_family_waits_and_the_other_family_proceeds() {
    in_namespace(|| {
        for backend in Backend::BOTH {
            let mut kernel = PolicyKernel::open(backend).unwrap();
            let outcome = kernel.execute(&plan(vec![
                create(Family::Ipv4, "manx4-p"),
                restore(Family::Ipv4, "manx4-none"),
                create(Family::Ipv6, "manx6-p"),
                add(Family::Ipv4, "manx4-p", "192.0.2.1"),
                restore(Family::Ipv6, "manx6-p"),
                add(Family::Ipv6, "manx6-p", "2001:db8::1"),
            ]));
            let results = &outcome.results;
            assert_eq!(results[0], StepResult::Done);
            assert!(
                matches!(&results[1], StepResult::Failed(reason) if reason.contains("manx4-none")),
                "{results:?}"
            );
            assert_eq!(results[2], StepResult::Done);
            assert_eq!(results[3], StepResult::Skipped);
            assert_eq!(results[4..], [StepResult::Done, StepResult::Done]);
            assert!(!run("ipset", &["save"]).contains("192.0.2.1"));
            assert!(run("ipset", &["save"]).contains("2001:db8::1"));
            assert!(run(&format!("ip6tables-{backend}-save"), &[]).contains("manx6-p"));
        }
    });
}
