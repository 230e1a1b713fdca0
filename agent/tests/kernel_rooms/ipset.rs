//! Sets.

use std::net::{IpAddr, Ipv4Addr};

use manx_agent::kernel::Family;
use manx_agent::kernel::ipset::Ipsets;
use manx_policy::ir::{Member, SetKind};
use manx_policy::model::Protocol;

use crate::netns::{in_namespace, run};

fn ip(text: &str) -> Member {
    Member::Ip(text.parse().unwrap())
}

fn net(text: &str) -> Member {
    Member::Net(text.parse().unwrap())
}

fn port(address: &str, protocol: Protocol, port: u16) -> Member {
    Member::IpPort(address.parse().unwrap(), protocol, port)
}

/// The members as `ipset save` prints them, sorted.
fn saved(set: &str) -> Vec<String> {
    let text = run("ipset", &["save", set]);
    let prefix = format!("add {set} ");
    let mut members: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect();
    members.sort();
    members
}

#[test]
fn sets_of_every_kind_hold_what_was_put_into_them() {
    in_namespace(|| {
        let mut sets = Ipsets::open().unwrap();
        for (name, kind, family, members, expected) in [
            (
                "manx4-p",
                SetKind::Ip,
                Family::Ipv4,
                vec![ip("192.0.2.1"), ip("192.0.2.2")],
                vec!["192.0.2.1", "192.0.2.2"],
            ),
            ("manx6-p", SetKind::Ip, Family::Ipv6, vec![ip("2001:db8::1")], vec!["2001:db8::1"]),
            (
                "manx4-n",
                SetKind::Net,
                Family::Ipv4,
                vec![net("192.0.2.0/24"), net("10.0.0.1/32")],
                vec!["10.0.0.1", "192.0.2.0/24"],
            ),
            ("manx6-n", SetKind::Net, Family::Ipv6, vec![net("2001:db8::/32")], vec!["2001:db8::/32"]),
            (
                "manx4-q",
                SetKind::IpPort,
                Family::Ipv4,
                vec![
                    port("192.0.2.1", Protocol::Tcp, 80),
                    port("192.0.2.1", Protocol::Udp, 53),
                    port("192.0.2.1", Protocol::Sctp, 7),
                ],
                vec!["192.0.2.1,sctp:7", "192.0.2.1,tcp:80", "192.0.2.1,udp:53"],
            ),
            (
                "manx6-q",
                SetKind::IpPort,
                Family::Ipv6,
                vec![port("2001:db8::1", Protocol::Tcp, 443)],
                vec!["2001:db8::1,tcp:443"],
            ),
        ] {
            sets.create(name, kind, family, 64).unwrap();
            sets.create(name, kind, family, 64).unwrap();
            sets.add(name, &members).unwrap();
            sets.add(name, &members).unwrap();
            assert_eq!(saved(name), expected, "{name}");
            assert!(members.iter().all(|member| sets.contains(name, member).unwrap()), "{name}");
            let header = run("ipset", &["save", name]);
            assert!(header.contains(kind.as_str()) && header.contains("maxelem 64"), "{header}");
        }
        sets.delete("manx4-p", &[ip("192.0.2.1"), ip("192.0.2.99")]).unwrap();
        assert_eq!(saved("manx4-p"), ["192.0.2.2"]);

        run("ipset", &["create", "KUBE-SRC", "hash:ip"]);
        let listed = sets.list(&["manx4-", "manx6-"]).unwrap();
        let names: Vec<_> = listed.iter().map(|set| set.name.as_str()).collect();
        assert_eq!(names, ["manx4-n", "manx4-p", "manx4-q", "manx6-n", "manx6-p", "manx6-q"]);
        let mut ports = listed[2].members.clone();
        ports.sort();
        assert_eq!(listed[2].kind, Some(SetKind::IpPort));
        assert_eq!(
            ports,
            [
                port("192.0.2.1", Protocol::Tcp, 80),
                port("192.0.2.1", Protocol::Udp, 53),
                port("192.0.2.1", Protocol::Sctp, 7)
            ]
        );
        let mut nets = listed[0].members.clone();
        nets.sort();
        assert_eq!(nets, [net("10.0.0.1/32"), net("192.0.2.0/24")]);

        for name in names {
            sets.destroy(name).unwrap();
            sets.destroy(name).unwrap();
        }
        assert_eq!(run("ipset", &["list", "-n"]), "KUBE-SRC\n");
    });
}

#[test]
fn ten_thousand_members_go_in_and_out_and_are_read_back() {
    in_namespace(|| {
        let mut sets = Ipsets::open().unwrap();
        sets.create("manx4-p", SetKind::Ip, Family::Ipv4, 1 << 16).unwrap();
        let member = |i: u32| Member::Ip(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + i)));
        let all: Vec<_> = (0..10_000).map(member).collect();
        sets.add("manx4-p", &all).unwrap();
        assert_eq!(saved("manx4-p").len(), 10_000);
        let mut listed = sets.list(&["manx4-"]).unwrap().remove(0).members;
        listed.sort();
        assert_eq!(listed, all);
        sets.delete("manx4-p", &all[1..]).unwrap();
        assert_eq!(saved("manx4-p"), ["10.0.0.0"]);
    });
}

/// Policy trap 9.
#[test]
fn a_set_that_overflows_is_loud() {
    in_namespace(|| {
        let mut sets = Ipsets::open().unwrap();
        sets.create("manx4-p", SetKind::Ip, Family::Ipv4, 2).unwrap();
        let all: Vec<_> = (0..100).map(|i| Member::Ip(IpAddr::V4(Ipv4Addr::new(10, 0, 0, i)))).collect();
        let error = sets.add("manx4-p", &all).unwrap_err().to_string();
        assert!(error.contains("manx4-p") && error.contains("full"), "{error}");
        assert!(saved("manx4-p").len() < all.len());
    });
}

/// Policy trap 8: the caller must split a /0.
#[test]
fn what_a_set_cannot_hold_is_refused_by_name() {
    in_namespace(|| {
        let mut sets = Ipsets::open().unwrap();
        sets.create("manx4-n", SetKind::Net, Family::Ipv4, 64).unwrap();
        let error = sets.add("manx4-n", &[net("0.0.0.0/0")]).unwrap_err().to_string();
        assert!(error.contains("manx4-n") && error.contains("prefix length"), "{error}");
        let error = sets.add("manx4-gone", &[net("10.0.0.0/8")]).unwrap_err().to_string();
        assert!(error.contains("manx4-gone"), "{error}");
        let error = sets.create("manx4-n", SetKind::Ip, Family::Ipv4, 64).unwrap_err().to_string();
        assert!(error.contains("manx4-n"), "{error}");
        assert!(run("ipset", &["save", "manx4-n"]).contains("hash:net"), "it stays as it was");
    });
}

#[test]
fn a_set_that_a_rule_speaks_of_is_not_destroyed() {
    in_namespace(|| {
        let mut sets = Ipsets::open().unwrap();
        sets.create("manx4-p", SetKind::Ip, Family::Ipv4, 64).unwrap();
        let rule = ["FORWARD", "-m", "set", "--match-set", "manx4-p", "src", "-j", "DROP"];
        run("iptables-nft", &[&["-A"], &rule[..]].concat());
        let error = sets.destroy("manx4-p").unwrap_err().to_string();
        assert!(error.contains("manx4-p") && error.contains("uses it"), "{error}");
        run("iptables-nft", &[&["-D"], &rule[..]].concat());
        sets.destroy("manx4-p").unwrap();
        assert_eq!(run("ipset", &["list", "-n"]), "");
    });
}
