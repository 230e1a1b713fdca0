//! Tables, words and JSON of fixed documents, as golden text. `INSTA_UPDATE=always cargo test -p manx-agent --bin manxctl`
//! writes them anew; the difference is for a person to read.

use manx_agent::view::*;

use crate::output::{Exit, Show, Style};
use crate::show::age;

const NOW: EpochSeconds = 1_800_000_000;
const TABLE: Style = Style { wide: false, colour: false, now: NOW };
const WIDE: Style = Style { wide: true, ..TABLE };
const COLOUR: Style = Style { colour: true, ..TABLE };

/// All formats of a document in one text.
fn all<T: Show>(document: &T) -> String {
    format!(
        "{}\n--- wide\n{}\n--- name\n{}\n--- json\n{}\n",
        document.text(&TABLE),
        document.text(&WIDE),
        document.names().join("\n"),
        serde_json::to_string_pretty(document).unwrap()
    )
}

fn up() -> PeerRow {
    PeerRow {
        node: "n1".into(),
        address: "10.0.1.1".into(),
        name: "tor-a".into(),
        local_as: Some(65011),
        remote_as: Some(64512),
        state: "Established".into(),
        since: Some(NOW - 183_600),
        required: true,
        families: vec![
            FamilyCounts {
                family: "ipv4".into(),
                received: Some(3),
                accepted: Some(2),
                filtered: Some(1),
                advertised: Some(1),
            },
            FamilyCounts {
                family: "ipv6".into(),
                received: Some(2),
                accepted: Some(2),
                filtered: Some(0),
                advertised: Some(0),
            },
        ],
        ..Default::default()
    }
}

fn down() -> PeerRow {
    PeerRow {
        address: "10.0.2.1".into(),
        name: "tor-b".into(),
        remote_as: None,
        state: "Connect".into(),
        since: Some(NOW - 12),
        flaps: 3,
        reason: Some("TCP-MD5: peer sends unsigned segments".into()),
        families: Vec::new(),
        ..up()
    }
}

fn path(peer: &str, from: &str, path: &[u32]) -> Route {
    Route {
        prefix: "10.250.0.0/16".into(),
        from: from.into(),
        peer: Some(peer.into()),
        next_hop: Some(from.into()),
        as_path: path.iter().copied().map(AsPathItem::Asn).collect(),
        origin: Some("igp".into()),
        fib: Some(FibState::Unselected),
        ..Default::default()
    }
}

fn paths() -> Vec<Route> {
    vec![
        Route { best: true, fib: Some(FibState::Missing), ..path("tor-a", "10.0.1.1", &[65001]) },
        Route {
            lost_at: Some("a".into()),
            reason: Some("AS path longer (2 > 1)".into()),
            med: Some(5),
            communities: vec!["65001:7".into(), "no-export".into()],
            ..path("tor-b", "10.0.2.1", &[65002, 65001])
        },
    ]
}

fn bfd() -> Bfd {
    Bfd {
        state: "Up".into(),
        remote_state: Some("Up".into()),
        since: Some(NOW - 60),
        detection_time_ms: Some(300),
        interval_ms: Some(100),
        multiplier: 3,
        flaps: 2,
        reason: None,
    }
}

#[test]
fn peers() {
    let range =
        PeerRange { name: "rack".into(), range: "10.0.3.0/24".into(), peers: 2, max_peers: 100, refused: 1 };
    insta::assert_snapshot!(all(&PeerList {
        items: vec![up(), down()],
        ranges: vec![range],
        ..Default::default()
    }));
}

#[test]
fn no_peers() {
    insta::assert_snapshot!(PeerList::default().text(&TABLE));
}

#[test]
fn peer() {
    let peer = Peer {
        row: PeerRow { bfd: Some(bfd()), ..up() },
        router_id: Some("10.0.1.1".into()),
        local_address: Some("10.0.1.11:40000".into()),
        peer_type: Some("External".into()),
        hold_time: Some(90),
        keepalive_time: Some(30),
        capabilities: vec![
            Advertised { name: "4-octet AS".into(), sent: true, received: Some(true) },
            Advertised { name: "graceful restart".into(), sent: true, received: Some(false) },
        ],
        messages: MessageCounts {
            sent: Some(9),
            received: Some(8),
            updates_sent: Some(2),
            updates_received: Some(3),
            sent_by_type: [("keepalive".to_owned(), 10), ("update".to_owned(), 2)].into(),
            received_by_type: [("open".to_owned(), 1)].into(),
        },
        last_notification: Some(Notification {
            direction: "received".into(),
            code: 6,
            subcode: 2,
            text: "Cease, administrative shutdown: \"maintenance\u{1b}[2J\"".into(),
            at: Some(NOW - 3600),
        }),
        settings: PeerSettings {
            password: true,
            port: Some(179),
            import_filters: vec!["racks".into()],
            ..Default::default()
        },
        ..Default::default()
    };
    insta::assert_snapshot!(all(&peer));
    assert_eq!(peer.exit(), Exit::Yes);
}

#[test]
fn peer_that_is_down() {
    let peer = Peer { row: down(), next_connect: Some(NOW + 4), ..Default::default() };
    insta::assert_snapshot!(peer.text(&TABLE));
    assert_eq!(peer.exit(), Exit::No);
}

#[test]
fn routes() {
    let mut items = paths();
    items.push(Route {
        prefix: "10.244.1.0/24".into(),
        from: "local".into(),
        best: true,
        fib: Some(FibState::Local),
        ..Default::default()
    });
    items.push(Route {
        prefix: "fd00:244:2::/64".into(),
        multipath: true,
        stale: true,
        fib: Some(FibState::Installed),
        local_pref: Some(100),
        as_path: vec![AsPathItem::Asn(65001), AsPathItem::Set(vec![65002, 65003])],
        large_communities: vec!["1:2:3".into()],
        ..path("tor-a", "fd00:1::1", &[])
    });
    items.push(Route {
        prefix: "0.0.0.0/0".into(),
        from: "10.0.1.1".into(),
        filtered: true,
        reason: Some("default: no default route".into()),
        ..Default::default()
    });
    items.push(Route {
        prefix: "192.0.2.1/32".into(),
        blackhole: true,
        best: true,
        path_id: Some(7),
        extended_communities: vec!["rt:65001:7".into()],
        originator_id: Some("10.0.9.9".into()),
        cluster_list: vec!["10.0.9.1".into()],
        accepted_by: Some("import default".into()),
        ..path("tor-a", "10.0.1.1", &[65001])
    });
    let all_of_it = RouteList { items, ..Default::default() };
    assert_eq!(all_of_it.exit(), Exit::Yes);
    insta::assert_snapshot!(all(&all_of_it));
    let part = RouteList { unlisted: Some(3), ..Default::default() };
    assert_eq!(part.exit(), Exit::Partial);
    assert!(part.text(&TABLE).ends_with("and 3 refused routes more, which are only counted\n"));
}

#[test]
fn route_why() {
    let explanation = RouteExplanation {
        prefix: "10.250.0.0/16".into(),
        paths: paths(),
        filter: Some("import filter default#2 accept".into()),
        exports: vec![Export {
            peer: "tor-b".into(),
            advertised: false,
            reason: "default: not our own".into(),
        }],
        fib: Some(FibState::Missing),
        reason: Some("removed 3 s ago by another process, reinstalling".into()),
        ..Default::default()
    };
    insta::assert_snapshot!(all(&explanation));
    assert_eq!(explanation.exit(), Exit::Yes);
    assert_eq!(RouteExplanation::default().exit(), Exit::No);
}

#[test]
fn route_get() {
    let lookup = RouteLookup {
        ip: "10.250.1.1".into(),
        prefix: Some("10.250.0.0/16".into()),
        next_hops: vec!["10.0.1.1".into(), "10.0.2.1".into()],
        interfaces: vec!["eth1".into(), "eth2".into()],
        owner: Some("manx".into()),
        route: Some(paths().remove(0)),
        ..Default::default()
    };
    insta::assert_snapshot!(all(&lookup));
    let none = RouteLookup { ip: "192.0.2.1".into(), ..Default::default() };
    insta::assert_snapshot!("route_get_without_a_route", all(&none));
    assert_eq!((lookup.exit(), none.exit()), (Exit::Yes, Exit::No));
}

fn healthy() -> Status {
    Status {
        node: "n1".into(),
        version: "0.1.0".into(),
        started: Some(NOW - 90),
        source: SourceStatus {
            kind: "manifests".into(),
            location: "/etc/manx/manifests".into(),
            in_sync: true,
            ..Default::default()
        },
        bgp: Some(BgpStatus {
            asn: Some(65011),
            router_id: Some("10.1.0.11".into()),
            listening: vec!["10.1.0.11:179".into()],
            peers: Some(2),
            established: Some(2),
            prefixes: Some(6),
            node_addresses: vec!["10.1.0.11".into()],
            originated: vec!["10.244.1.0/24".into()],
            services: vec!["10.96.0.0/12".into()],
            ..Default::default()
        }),
        policy: Some(PolicyStatus {
            backend: Some("nft".into()),
            policies: Some(3),
            endpoints: Some(4),
            endpoints_in_force: Some(4),
            last_applied: Some(NOW - 12),
            ..Default::default()
        }),
        cni: Some(CniStatus {
            ready: true,
            pod_cidrs: vec!["10.244.1.0/24".into(), "fd00:244:1::/64".into()],
            attachments: Some(4),
            ..Default::default()
        }),
        kernel: KernelStatus {
            routes_wanted: Some(5),
            routes_installed: Some(5),
            repairs: Some(0),
            next_hop_objects: Some(2),
            next_hop_compat_mode: Some(1),
            notices: vec!["net.ipv4.nexthop_compat_mode is not 0".into()],
            ..Default::default()
        },
        ..Default::default()
    }
}

#[test]
fn status_of_a_healthy_agent() {
    insta::assert_snapshot!(all(&healthy()));
    assert_eq!(healthy().exit(), Exit::Yes);
}

#[test]
fn status_with_all_that_can_be_wrong() {
    let mut status = healthy();
    status.source.stale = true;
    status.source.errors.push(StatusProblem {
        file: Some("20-policies.yaml".into()),
        line: Some(7),
        object: Some("NetworkPolicy shop/web".into()),
        reason: "spec.ingress[0].ports[0].endPort: below port".into(),
    });
    if let Some(bgp) = &mut status.bgp {
        bgp.established = Some(1);
        bgp.required_down.push("tor-b".into());
    }
    if let Some(policy) = &mut status.policy {
        policy.endpoints_in_force = Some(3);
        policy.pending = true;
        policy.errors.push(StatusProblem { file: None, line: None, ..status.source.errors[0].clone() });
    }
    if let Some(cni) = &mut status.cni {
        cni.ready = false;
        cni.reason = Some("no pod CIDR: Node n1 is not in the source".into());
    }
    status.kernel.errors.push(StatusProblem {
        reason: "ipset is not installed: apt-get install ipset".into(),
        ..Default::default()
    });
    insta::assert_snapshot!(status.text(&TABLE));
    assert_eq!(status.exit(), Exit::No);
}

#[test]
fn status_with_nothing_enabled() {
    let status = Status { node: "n1".into(), version: "0.1.0".into(), ..Default::default() };
    insta::assert_snapshot!(all(&status));
}

#[test]
fn policy_for_a_pod() {
    let policy = PodPolicy {
        pod: "shop/web".into(),
        ingress: Direction { isolated: true, policies: vec!["shop/allow-web".into(), "shop/deny".into()] },
        in_force_since: Some(NOW - 61),
        ..Default::default()
    };
    insta::assert_snapshot!(all(&policy));
    let closed = PodPolicy {
        pod: "shop/db".into(),
        egress: Direction { isolated: true, policies: Vec::new() },
        ..Default::default()
    };
    insta::assert_snapshot!(
        "policy_for_a_namespace",
        all(&PodPolicyList { items: vec![closed, policy], ..Default::default() })
    );
}

#[test]
fn a_history_shows_each_way_down_and_counts_the_vain_attempts() {
    let step = |ago: u64, from: &str, to: &str| Transition {
        at: NOW - ago,
        first_at: NOW - ago,
        count: 1,
        from: from.into(),
        to: to.into(),
        ..Default::default()
    };
    let history = PeerHistory {
        node: "n1".into(),
        name: "tor-b".into(),
        address: Some("10.0.2.1".into()),
        configured: true,
        state: Some("Active".into()),
        since: Some(NOW - 3),
        flaps: 1,
        items: vec![
            step(90_000, "OpenConfirm", "Established"),
            Transition {
                cause: Some("notification-received".into()),
                reason: Some("received Cease/Administrative Shutdown: rack B at 10:00".into()),
                notification: Some(Notification {
                    direction: "received".into(),
                    code: 6,
                    subcode: 2,
                    text: "Cease/Administrative Shutdown: rack B at 10:00".into(),
                    at: Some(NOW - 3700),
                }),
                ..step(3700, "Established", "Idle")
            },
            Transition {
                first_at: NOW - 3699,
                count: 719,
                cause: Some("tcp-refused".into()),
                reason: Some("connect: Connection refused (os error 111)".into()),
                ..step(3, "Connect", "Active")
            },
        ],
        ..Default::default()
    };
    insta::assert_snapshot!(all(&history));
    let gone = PeerHistory { name: "old".into(), ..Default::default() };
    assert_eq!(gone.text(&TABLE), "old: not configured any more, 0 flaps\nnothing has happened yet\n");
}

#[test]
fn an_order_says_what_was_done_and_how_things_stand() {
    let disabled = PeerAction {
        name: "tor-b".into(),
        address: "10.0.2.1".into(),
        action: Action::Disable,
        message: Some("optics".into()),
        state: "Disabled".into(),
        reason: Some("administratively down by an operator: optics".into()),
        ..Default::default()
    };
    insta::assert_snapshot!(all(&disabled));
}

fn rung(name: &str, result: RungResult, observed: &str, remedy: Option<&str>) -> Rung {
    Rung { name: name.into(), result, observed: observed.into(), remedy: remedy.map(Into::into) }
}

#[test]
fn a_diagnosis_gives_the_answer_first_and_the_ladder_below() {
    let answer = "TCP-MD5: peer sends unsigned segments (4 dropped within a minute)";
    let remedy = "set the same password on the peer; a port that is closed there answers unsigned as well";
    let diagnosis = PeerDiagnosis {
        node: "n1".into(),
        asked: "10.0.2.1".into(),
        name: Some("tor-b".into()),
        address: Some("10.0.2.1".into()),
        state: Some("Connect".into()),
        since: Some(NOW - 12),
        answer: Some(answer.into()),
        remedy: Some(remedy.into()),
        rungs: vec![
            rung("selected", RungResult::Ok, "BGPPeer tor-b names 10.0.2.1 and selects every node", None),
            rung("local-address", RungResult::Ok, "10.0.2.2 is there", None),
            rung("tcp", RungResult::Failed, answer, Some(remedy)),
            rung("open", RungResult::Unknown, "not reached", None),
        ],
        ..Default::default()
    };
    insta::assert_snapshot!(all(&diagnosis));
    assert_eq!(diagnosis.exit(), Exit::No);
    assert!(diagnosis.text(&COLOUR).contains("\u{1b}[31mFAILED"));
}

#[test]
fn an_address_that_is_no_peer_is_told_what_nearly_makes_it_one() {
    let answer = "no BGPPeer makes 10.0.2.9 a peer of node n1";
    let diagnosis = PeerDiagnosis {
        node: "n1".into(),
        asked: "10.0.2.9".into(),
        answer: Some(answer.into()),
        remedy: Some("compare with the objects that nearly do".into()),
        rungs: vec![rung("selected", RungResult::Failed, answer, None)],
        nearly: vec!["BGPPeer tor-b names 10.0.2.1".into()],
        ..Default::default()
    };
    insta::assert_snapshot!(diagnosis.text(&TABLE));
}

#[test]
fn events_are_a_line_each() {
    let problem = StatusProblem {
        file: Some("peer.yaml".into()),
        line: Some(3),
        object: Some("BGPPeer tor-b".into()),
        reason: "spec.peerIP: not an address".into(),
    };
    let happenings = [
        Happening::Start { version: "0.1.0".into() },
        Happening::Peer {
            peer: "tor-b".into(),
            from: "Established".into(),
            to: "Idle".into(),
            cause: Some("hold-timer".into()),
            reason: Some("hold timer expired waiting for any message\u{1b}[2J".into()),
        },
        Happening::Route {
            prefix: "10.9.0.0/16".into(),
            next_hops: vec!["10.0.1.1".into(), "10.0.2.1".into()],
        },
        Happening::Route { prefix: "10.9.0.0/16".into(), next_hops: Vec::new() },
        Happening::RoutesOmitted { count: 900 },
        Happening::NextHop { address: "10.0.1.1".into(), reachable: false },
        Happening::Repair { prefix: "10.9.0.0/16".into(), cause: "removed by ip (pid 7)".into() },
        Happening::RepairsOmitted { count: 3 },
        Happening::Policy { applied: true, took: Some(41), error: None },
        Happening::Policy { applied: false, took: None, error: Some("iptables-restore: line 3".into()) },
        Happening::Config { solved: false, problem: problem.clone() },
        Happening::Config { solved: true, problem },
        Happening::Missed { count: 12 },
    ];
    let events = happenings.map(|what| Event {
        api_version: ApiVersion,
        kind: EventKind::Event,
        node: "n1".into(),
        at: NOW,
        what,
    });
    let lines = |style: &Style| events.iter().map(|e| e.text(style) + "\n").collect::<String>();
    let json = events.iter().map(|e| serde_json::to_string(e).unwrap() + "\n").collect::<String>();
    insta::assert_snapshot!(format!("{}--- wide\n{}--- json\n{json}", lines(&TABLE), lines(&WIDE)));
    for event in &events {
        let back: Event = serde_json::from_str(&serde_json::to_string(event).unwrap()).unwrap();
        assert_eq!(back, *event);
    }
}

#[test]
fn a_drain_says_how_far_it_has_come() {
    let serving = NodeDrain { node: "n1".into(), peers: 2, established: 2, ..Default::default() };
    let draining = NodeDrain {
        phase: DrainPhase::Draining,
        since: Some(NOW - 6),
        until: Some(NOW + 24),
        message: Some("new disks".into()),
        ..serving.clone()
    };
    let drained = NodeDrain { phase: DrainPhase::Drained, until: None, established: 0, ..draining.clone() };
    let text: String = [&serving, &draining, &drained].map(|d| d.text(&TABLE)).concat();
    insta::assert_snapshot!(format!("{text}{}", serde_json::to_string_pretty(&draining).unwrap()));
}

#[test]
fn drift_says_what_should_be_and_what_is() {
    let item =
        |prefix: &str, drift: Drift, wanted: &[&str], found: &[&str], reason: Option<&str>| DriftItem {
            prefix: prefix.into(),
            drift,
            wanted: wanted.iter().map(|w| (*w).to_owned()).collect(),
            found: found.iter().map(|f| (*f).to_owned()).collect(),
            reason: reason.map(Into::into),
        };
    let drift = RouteDrift {
        node: "n1".into(),
        wanted: 12,
        agreeing: 10,
        items: vec![
            item(
                "10.9.0.0/16",
                Drift::Missing,
                &["10.0.1.1 dev eth0", "10.0.2.1 dev eth1"],
                &[],
                Some("removed by ip (pid 7) 3 s ago, reinstalling"),
            ),
            item("10.10.0.0/16", Drift::Changed, &["10.0.1.1 dev eth0"], &["blackhole"], None),
            item("10.11.0.0/16", Drift::Extra, &[], &["10.0.1.1 dev eth0"], None),
        ],
        ..Default::default()
    };
    insta::assert_snapshot!(all(&drift));
    assert_eq!(drift.exit(), Exit::No);
    let none = RouteDrift { wanted: 12, agreeing: 12, ..Default::default() };
    assert_eq!((none.text(&TABLE).lines().count(), none.exit()), (1, Exit::Yes));
}

#[test]
fn ipam() {
    let ipam = Ipam {
        pools: vec![
            Pool { cidr: "10.244.1.0/24".into(), total: 254, used: 1, cooling: 2, free: 251 },
            Pool {
                cidr: "fd00:244:1::/64".into(),
                total: (1 << 64) - 1,
                used: 1,
                cooling: 0,
                free: (1 << 64) - 2,
            },
        ],
        allocations: vec![
            Allocation {
                ip: "10.244.1.2".into(),
                namespace: Some("shop".into()),
                pod: Some("web".into()),
                container_id: "0123456789ab".into(),
                ifname: "eth0".into(),
                since: Some(NOW - 3700),
            },
            Allocation {
                ip: "10.244.1.3".into(),
                container_id: "ff".into(),
                ifname: "eth0".into(),
                ..Default::default()
            },
        ],
        cooling: vec![Cooling { ip: "10.244.1.4".into(), until: NOW + 12 }],
        leaked: vec![Leaked { ip: "10.244.1.9".into(), container_id: "dead".into(), ifname: "eth0".into() }],
        ..Default::default()
    };
    insta::assert_snapshot!(all(&ipam));
    let back: Ipam = serde_json::from_str(&serde_json::to_string(&ipam).unwrap()).unwrap();
    assert_eq!(back, ipam);
}

#[test]
fn pods() {
    let pod = PodRow {
        namespace: Some("shop".into()),
        name: Some("web".into()),
        uid: Some("u-1".into()),
        node: "n1".into(),
        ips: vec!["10.244.1.2".into(), "fd00:244:1::2".into()],
        interface: "manx0123456789a".into(),
        container_id: "0123456789ab".into(),
        policy_in_force_since: Some(NOW - 7),
    };
    let bare = PodRow {
        namespace: None,
        name: None,
        uid: None,
        ips: Vec::new(),
        policy_in_force_since: None,
        container_id: "ff".into(),
        ..pod.clone()
    };
    insta::assert_snapshot!(all(&PodList { items: vec![pod, bare], ..Default::default() }));
}

#[test]
fn colour_is_used_for_what_matters_and_only_where_it_is_wanted() {
    let list = PeerList { items: vec![up(), down()], ..Default::default() };
    let coloured = list.text(&COLOUR);
    assert!(coloured.contains("\u{1b}["));
    assert!(!list.text(&TABLE).contains('\u{1b}'));
    let status = healthy().text(&COLOUR);
    assert!(status.contains("\u{1b}[32mhealthy"), "{status}");
}

#[test]
fn what_a_peer_says_cannot_command_the_terminal() {
    let mut row = down();
    row.reason = Some("Cease: \u{1b}[2J\u{7}gone\n".into());
    let text = PeerList { items: vec![row], ..Default::default() }.text(&TABLE);
    assert!(!text.contains('\u{1b}') && !text.contains('\u{7}') && text.lines().count() == 2, "{text:?}");
}

#[test]
fn ages_have_two_units() {
    let of = |seconds| age(Some(NOW - seconds), NOW);
    assert_eq!([of(0), of(59), of(61), of(3661), of(90_000)], ["0s", "59s", "1m1s", "1h1m", "1d1h"]);
    assert_eq!(age(None, NOW), "-");
    // A clock that was set back.
    assert_eq!(age(Some(NOW + 5), NOW), "0s");
}
