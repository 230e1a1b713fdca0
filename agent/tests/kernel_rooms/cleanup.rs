//! Taking everything of ours out, and nothing else.

use manx_agent::kernel::Family;
use manx_agent::kernel::cleanup;
use manx_agent::kernel::iptables::{Backend, restore};

use crate::netns::{ip, run, with_two_links};

/// All that the kernel holds, as its own tools print it.
fn everything() -> String {
    let mut all = String::new();
    for program in
        ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"]
    {
        let text = run(program, &[]);
        // Time stamps and counters move by themselves.
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        all.extend(lines.map(|line| format!("{program} {}\n", line.split('[').next().unwrap_or_default())));
    }
    all.push_str(&run("ipset", &["list", "-n"]));
    for table in ["main", "50"] {
        all.push_str(&ip(&format!("-4 route show table {table}")));
        all.push_str(&ip(&format!("-6 route show table {table}")));
    }
    all.push_str(&ip("nexthop"));
    all.push_str(&ip("-br link"));
    all
}

#[test]
fn all_of_ours_goes_and_nothing_else() {
    with_two_links(|| {
        // What others have.
        for backend in Backend::BOTH {
            for tool in ["iptables", "ip6tables"] {
                let program = format!("{tool}-{backend}");
                run(&program, &["-N", "KUBE-X"]);
                run(
                    &program,
                    &["-A", "FORWARD", "-m", "comment", "--comment", "like MANX-A", "-j", "KUBE-X"],
                );
            }
        }
        run("ipset", &["create", "manx", "hash:ip"]);
        ip("route add 10.50.0.0/24 via 192.0.2.2 table 50");
        ip("-6 route add 2001:db8:50::/64 via fe80::2 dev v0 table 50");
        ip("route add 10.1.0.0/24 via 192.0.2.2 metric 77 proto static");
        ip("nexthop add id 7 via 192.0.2.2 dev v0");
        ip("link add manx-else type veth peer name other");
        let before = everything();

        // What is ours, and what a predecessor may have left.
        ip("link add manx0123456789a type veth peer name pod");
        ip("link set manx0123456789a up");
        ip("route add 10.7.0.1/32 dev manx0123456789a proto 77 metric 76");
        ip("route add blackhole 10.2.0.0/24 proto 77 metric 77");
        ip("route add 10.2.1.0/24 via 192.0.2.2 proto 77 table 50");
        ip(
            "-6 route add 2001:db8:2::/64 proto 77 metric 77 nexthop via fe80::2 dev v0 nexthop via fe80::2 dev v1",
        );
        ip("nexthop add id 1291845633 via 192.0.2.2 dev v0 proto 77");
        ip("nexthop add id 1291845634 group 1291845633 proto 77");
        ip("route add 10.2.2.0/24 nhid 1291845634 proto 77 metric 77");
        run("ipset", &["create", "manx4-p", "hash:ip"]);
        run("ipset", &["create", "manx6-p", "hash:ip", "family", "inet6"]);
        for (family, set) in [(Family::Ipv4, "manx4-p"), (Family::Ipv6, "manx6-p")] {
            for backend in Backend::BOTH {
                let text = format!(
                    "*raw\n:MANX-RAW - [0:0]\n-A PREROUTING -m comment --comment \"manx:x anti spoofing\" -j MANX-RAW\nCOMMIT\n\
                     *filter\n:MANX-A - [0:0]\n:MANX-B - [0:0]\n-A MANX-A -m set --match-set {set} src -j MANX-B\n\
                     -I FORWARD -m comment --comment manx:y -j MANX-A\n-A INPUT -m comment --comment \"manx:z guard\" -j DROP\nCOMMIT\n"
                );
                restore(backend, family, &text).unwrap();
            }
        }

        let links = cleanup::pod_links("manx").unwrap();
        assert_eq!(links, ["manx0123456789a"]);
        let done: Vec<_> = cleanup::remove_links(&links).into_iter().chain(cleanup::remove()).collect();
        let removed: Vec<String> = done.into_iter().map(|removal| removal.unwrap()).collect();
        let said = removed.join("\n");
        for what in [
            "link manx0123456789a",
            "set manx4-p",
            "set manx6-p",
            "next hop 1291845634",
            "3 IPv4 routes",
            "1 IPv6 routes",
            "(legacy)",
            "(nft)",
        ] {
            assert!(said.contains(what), "{what} in:\n{said}");
        }
        // Empty built-in chains of tables that we were the first to use remain.
        let after = everything();
        let builtin = |line: &&str| {
            line.contains("*raw")
                || line.contains(":PREROUTING")
                || line.contains(":OUTPUT")
                || line.ends_with("COMMIT")
        };
        let rest =
            |text: &str| text.lines().filter(|line| !builtin(line)).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(rest(&after), rest(&before));

        assert_eq!(cleanup::remove(), [], "a second time there is nothing to do");
    });
}
