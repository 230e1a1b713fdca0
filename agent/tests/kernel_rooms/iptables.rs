//! The iptables programs.

use manx_agent::kernel::Family;
use manx_agent::kernel::iptables::{Backend, Restorer, is_own_writer, legacy_tables, restore, save};

use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::netns::{in_namespace, run};

const OURS: &str = "*filter\n:MANX-A - [0:0]\n-A MANX-A -s 192.0.2.0/24 -j DROP\nCOMMIT\n";

/// Rules as the back end's own program prints them, counters and comments left out.
fn rules(program: &str) -> Vec<String> {
    run(program, &[]).lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect()
}

/// Policy trap 12: foreign rules are never rewritten.
#[test]
fn a_restore_leaves_other_owners_rules_alone_in_both_back_ends() {
    in_namespace(|| {
        for backend in Backend::BOTH {
            let program = format!("iptables-{backend}");
            run(&program, &["-N", "KUBE-X"]);
            run(&program, &["-A", "KUBE-X", "-p", "tcp", "-j", "ACCEPT"]);
            run(&program, &["-A", "FORWARD", "-j", "KUBE-X"]);
            let foreign = ["-A FORWARD -j KUBE-X", "-A KUBE-X -p tcp -j ACCEPT"];
            assert_eq!(rules(&format!("{program}-save")), foreign);
            restore(backend, Family::Ipv4, OURS).unwrap();
            let both =
                ["-A FORWARD -j KUBE-X", "-A KUBE-X -p tcp -j ACCEPT", "-A MANX-A -s 192.0.2.0/24 -j DROP"];
            assert_eq!(rules(&format!("{program}-save")), both);
            restore(backend, Family::Ipv4, "*filter\n:MANX-A - [0:0]\nCOMMIT\n").unwrap();
            assert_eq!(rules(&format!("{program}-save")), foreign, "naming a chain empties that one only");
            assert!(save(backend, Family::Ipv4).unwrap().contains(":MANX-A - [0:0]"));
        }
    });
}

#[test]
fn the_families_do_not_mix() {
    in_namespace(|| {
        restore(
            Backend::Nft,
            Family::Ipv6,
            "*filter\n:MANX-6 - [0:0]\n-A MANX-6 -s 2001:db8::/32 -j DROP\nCOMMIT\n",
        )
        .unwrap();
        assert_eq!(rules("ip6tables-nft-save"), ["-A MANX-6 -s 2001:db8::/32 -j DROP"]);
        assert!(!run("iptables-nft-save", &[]).contains("MANX-6"));
    });
}

#[test]
fn a_refused_restore_names_the_line_and_changes_nothing() {
    in_namespace(|| {
        for backend in Backend::BOTH {
            restore(backend, Family::Ipv4, OURS).unwrap();
            let before = rules(&format!("iptables-{backend}-save"));
            let bad =
                "*filter\n:MANX-A - [0:0]\n-A MANX-A -m set --match-set manx4-none src -j DROP\nCOMMIT\n";
            let error = restore(backend, Family::Ipv4, bad).unwrap_err().to_string();
            assert!(error.contains("manx4-none"), "{error}");
            assert_eq!(rules(&format!("iptables-{backend}-save")), before);
        }
    });
}

#[test]
fn a_restorer_changes_rules_as_often_as_asked_whatever_others_do_between() {
    in_namespace(|| {
        for backend in Backend::BOTH {
            let restorer = Restorer::new(backend);
            let save = format!("iptables-{backend}-save");
            for round in 0..20 {
                let text = format!("*raw\n:MANX-R{round} - [0:0]\nCOMMIT\n{OURS}");
                restorer.restore(Family::Ipv4, &text).unwrap();
                assert_eq!(rules(&save), ["-A MANX-A -s 192.0.2.0/24 -j DROP"], "the table is there at once");
                restorer.restore(Family::Ipv6, "*filter\n:MANX-6 - [0:0]\nCOMMIT\n").unwrap();
                // A stranger removes all, and with it what the last change left.
                for table in ["filter", "raw"] {
                    run(&format!("iptables-{backend}"), &["-t", table, "-F"]);
                    run(&format!("iptables-{backend}"), &["-t", table, "-X"]);
                }
            }
        }
    });
}

#[test]
fn a_restorer_names_the_refused_line_of_a_later_change_and_goes_on() {
    in_namespace(|| {
        for backend in Backend::BOTH {
            let restorer = Restorer::new(backend);
            let restore = |text: &str| restorer.restore(Family::Ipv4, text);
            restore(OURS).unwrap();
            restore(OURS).unwrap();
            let error = restore("*filter\n-A MANX-A -j DROP\n-A MANX-NONE -j DROP\nCOMMIT\n").unwrap_err();
            assert!(error.to_string().ends_with(": -A MANX-NONE -j DROP"), "{error}");
            let save = format!("iptables-{backend}-save");
            assert_eq!(rules(&save), ["-A MANX-A -s 192.0.2.0/24 -j DROP"], "all of a table or nothing");
            restore("*filter\n:MANX-B - [0:0]\n-A MANX-B -j DROP\nCOMMIT\n").unwrap();
            assert!(rules(&save).contains(&"-A MANX-B -j DROP".to_owned()));
        }
    });
}

/// More than pipe and terminal hold at once.
#[test]
fn a_change_may_be_of_any_size() {
    in_namespace(|| {
        let restorer = Restorer::new(Backend::Nft);
        let mut text = "*filter\n:MANX-A - [0:0]\n".to_owned();
        for i in 0..5000 {
            text += &format!(
                "-A MANX-A -s 10.1.{}.{}/32 -m comment --comment \"number {i}\" -j DROP\n",
                i / 250,
                i % 250
            );
        }
        restorer.restore(Family::Ipv4, &(text + "COMMIT\n")).unwrap();
        assert_eq!(rules("iptables-nft-save").len(), 5000);
    });
}

#[test]
fn a_program_that_somebody_ended_is_replaced() {
    in_namespace(|| {
        let restorer = Restorer::new(Backend::Nft);
        let programs = || -> Vec<u32> {
            let processes =
                std::fs::read_dir("/proc").unwrap().filter_map(|p| p.ok()?.file_name().into_string().ok());
            processes.filter_map(|p| p.parse().ok()).filter(|pid| is_own_writer(*pid)).collect()
        };
        let before = programs();
        restorer.restore(Family::Ipv4, OURS).unwrap();
        let program: Vec<_> = programs().into_iter().filter(|pid| !before.contains(pid)).collect();
        let [program] = program[..] else { panic!("one program stays: {program:?}") };
        let pid = nix::unistd::Pid::from_raw(program.try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        // It is dead, and its parent has not looked yet.
        let died = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(pid), died).unwrap();
        restorer.restore(Family::Ipv4, "*filter\n:MANX-B - [0:0]\n-A MANX-B -j DROP\nCOMMIT\n").unwrap();
        assert_eq!(rules("iptables-nft-save").len(), 2);
        assert!(!programs().contains(&program), "nothing is left of it");
    });
}

/// Policy trap 13: decide once, by what the host uses; looking does not make tables.
#[test]
fn the_back_end_is_the_one_with_the_hosts_rules() {
    in_namespace(|| {
        assert_eq!(Backend::detect().unwrap(), Backend::Nft, "an empty host");
        for family in Family::BOTH {
            assert_eq!(
                legacy_tables(family).unwrap_or_default(),
                Vec::<String>::new(),
                "looking left no table"
            );
        }
    });
    in_namespace(|| {
        run("iptables-nft", &["-A", "FORWARD", "-j", "ACCEPT"]);
        assert_eq!(Backend::detect().unwrap(), Backend::Nft);
    });
    in_namespace(|| {
        run("ip6tables-legacy", &["-A", "FORWARD", "-j", "ACCEPT"]);
        assert_eq!(Backend::detect().unwrap(), Backend::Legacy);
        restore(Backend::Nft, Family::Ipv4, OURS).unwrap();
        assert_eq!(Backend::detect().unwrap(), Backend::Legacy, "our own rules do not count");
    });
}

/// Policy trap 14: the program prints a comment and exits 0; what it left out would be taken for gone.
#[test]
fn a_table_that_iptables_cannot_represent_is_an_error() {
    in_namespace(|| {
        run("nft", &["add table ip filter"]);
        run("nft", &["add chain ip filter FORWARD { type filter hook forward priority 17; }"]);
        assert!(run("iptables-nft-save", &[]).contains("incompatible"), "the trap is still one");
        let error = save(Backend::Nft, Family::Ipv4).unwrap_err().to_string();
        assert!(error.contains("filter") && error.contains("incompatible"), "{error}");
        save(Backend::Nft, Family::Ipv6).unwrap();
    });
}
