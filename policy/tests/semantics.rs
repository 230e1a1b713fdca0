//! What NetworkPolicy means where it is easy to get wrong: each test bears the sentence that it holds us to, runs objects
//! through the Kubernetes door, and asks oracle and compiled rules alike.
#![allow(clippy::unwrap_used)]

#[path = "generate/world.rs"]
mod world;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use manx_policy::ir::Member;
use manx_policy::model::{
    Endpoint, EndpointId, Family, Labels, Payload, PodId, PodRef, PolicyId, Protocol, Update,
};
use manx_policy::sim::Packet;
use manx_policy::{grants, k8s};
use rstest::rstest;
use world::{CLIENT, OTHER, STRANGER, THIS_NODE, WEB, WEB6, World, three};

#[rstest]
#[case::absent("{podSelector: {}}", false)]
#[case::empty("{podSelector: {}, ingress: []}", false)]
#[case::one_empty_rule("{podSelector: {}, ingress: [{}]}", true)]
#[case::from_empty_is_all_sources("{podSelector: {}, ingress: [{from: []}]}", true)]
#[case::ports_empty_is_all_ports("{podSelector: {}, ingress: [{ports: []}]}", true)]
fn ingress_absent_or_empty_denies_all_and_one_empty_rule_allows_all(
    #[case] spec: &str,
    #[case] allowed: bool,
) {
    let mut world = three();
    world.policy("default", "p", spec);
    for source in [CLIENT, OTHER, STRANGER] {
        assert_eq!(world.tcp(source, WEB, 80), allowed, "{source}");
    }
    assert!(world.tcp(WEB, STRANGER, 80), "egress is not isolated");
}

#[test]
fn two_peers_are_or_and_one_peer_with_both_selectors_is_and() {
    let mut world = three();
    world.local("other", "db", "{app: db}", &["10.0.0.4"]);
    let web = "podSelector: {matchLabels: {app: web}}";
    let (client, team) =
        ("podSelector: {matchLabels: {app: client}}", "namespaceSelector: {matchLabels: {team: b}}");
    world.policy("default", "p", &format!("{{{web}, ingress: [{{from: [{{{client}}}, {{{team}}}]}}]}}"));
    assert_eq!([CLIENT, OTHER, "10.0.0.4"].map(|ip| world.tcp(ip, WEB, 80)), [true, true, true]);
    world.policy("default", "p", &format!("{{{web}, ingress: [{{from: [{{{client}, {team}}}]}}]}}"));
    assert_eq!([CLIENT, OTHER, "10.0.0.4"].map(|ip| world.tcp(ip, WEB, 80)), [false, true, false]);
}

#[rstest]
#[case::absent("{podSelector: {}}", [true, false])]
#[case::absent_with_egress("{podSelector: {}, egress: [{ports: [{port: 1}]}]}", [true, true])]
#[case::absent_with_empty_egress("{podSelector: {}, egress: []}", [true, false])]
#[case::egress_only("{podSelector: {}, policyTypes: [Egress]}", [false, true])]
#[case::ingress_only_whatever_egress_says("{podSelector: {}, policyTypes: [Ingress], egress: [{}]}", [true, false])]
#[case::both("{podSelector: {}, policyTypes: [Ingress, Egress]}", [true, true])]
fn policy_types_absent_means_ingress_always_and_egress_only_with_an_egress_section(
    #[case] spec: &str,
    #[case] isolated: [bool; 2],
) {
    let mut world = three();
    world.policy("default", "p", spec);
    assert_eq!(!world.tcp(STRANGER, WEB, 80), isolated[0], "ingress");
    assert_eq!(!world.tcp(WEB, STRANGER, 80), isolated[1], "egress");
}

#[test]
fn a_named_port_that_resolves_to_nothing_matches_nothing() {
    let mut world = three();
    world.pod("default", "web", "{app: web}", &[WEB], "");
    world.policy("default", "p", "{podSelector: {}, ingress: [{ports: [{port: http}]}]}");
    assert!(!world.tcp(CLIENT, WEB, 8080) && !world.tcp(CLIENT, WEB, 80));
    assert!(world.tcp(STRANGER, CLIENT, 8080), "the other pod has one of that name");
}

#[test]
fn a_named_port_resolves_on_the_destination_pod_with_its_protocol() {
    let mut world = three();
    let ports = "spec: {containers: [{name: c, ports: [{name: http, containerPort: 81}, {name: dns, containerPort: 53, protocol: UDP}]}]}";
    world.pod("other", "outsider", "{app: client}", &[OTHER], ports);
    world.policy(
        "default",
        "p",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{ports: [{port: http}, {port: dns}]}]}",
    );
    assert_eq!([80, 81, 8080].map(|port| world.tcp(CLIENT, WEB, port)), [false, false, true]);
    assert_eq!([80, 81, 8080].map(|port| world.tcp(CLIENT, OTHER, port)), [false, true, false]);
    assert!(!world.tcp(CLIENT, OTHER, 53), "dns without protocol is TCP, the pod's is UDP");
    assert!(!world.tcp(CLIENT, STRANGER, 8080), "nobody's pod has no port names");
}

#[test]
fn a_named_port_behind_an_address_block_resolves_on_whoever_has_the_address() {
    let mut world = three();
    world.policy(
        "default",
        "p",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/31}}], ports: [{port: http}]}]}",
    );
    assert!(world.tcp(CLIENT, WEB, 8080));
    assert!(!world.tcp(CLIENT, OTHER, 8080), "outside the block");
    assert!(!world.tcp(CLIENT, WEB, 80));
}

#[test]
fn ports_of_init_containers_with_restart_policy_always_count() {
    let mut world = World::new();
    let spec = "spec: {containers: [{name: c}], initContainers: [\
                {name: sidecar, restartPolicy: Always, ports: [{name: proxy, containerPort: 15001}]},\
                {name: once, ports: [{name: setup, containerPort: 15002}]}]}";
    world.pod("default", "web", "{app: web}", &[WEB], spec);
    world.attach("default", "web", &[WEB]);
    world.policy("default", "p", "{podSelector: {}, ingress: [{ports: [{port: proxy}, {port: setup}]}]}");
    assert!(world.tcp(STRANGER, WEB, 15001));
    assert!(!world.tcp(STRANGER, WEB, 15002));
}

#[test]
fn a_port_without_protocol_is_tcp_and_a_protocol_without_port_is_all_its_ports() {
    let mut world = three();
    world.policy("default", "p", "{podSelector: {}, ingress: [{ports: [{port: 53}, {protocol: SCTP}]}]}");
    assert!(world.tcp(CLIENT, WEB, 53) && !world.allows(CLIENT, WEB, Protocol::Udp, 53));
    assert!(world.allows(CLIENT, WEB, Protocol::Sctp, 1) && world.allows(CLIENT, WEB, Protocol::Sctp, 65535));
}

#[rstest]
#[case::below("{port: 80, endPort: 79}", "spec.ingress[0].ports[0].endPort")]
#[case::named("{port: http, endPort: 90}", "spec.ingress[0].ports[0].endPort")]
#[case::alone("{endPort: 90}", "spec.ingress[0].ports[0].endPort")]
#[case::too_high("{port: 80, endPort: 70000}", "spec.ingress[0].ports[0].endPort")]
#[case::zero("{port: 0}", "spec.ingress[0].ports[0].port")]
#[case::a_number_in_quotes("{port: '80'}", "spec.ingress[0].ports[0].port")]
#[case::unknown_protocol("{port: 80, protocol: ICMP}", "spec.ingress[0].ports[0].protocol")]
fn an_invalid_port_is_reported_its_rule_opens_nothing_and_the_pods_stay_isolated(
    #[case] port: &str,
    #[case] field: &str,
) {
    let mut world = three();
    let spec = format!(
        "{{podSelector: {{}}, ingress: [{{ports: [{port}, {{port: 443}}]}}, {{ports: [{{port: 22}}]}}]}}"
    );
    assert_eq!(world.policy("default", "p", &spec), [field]);
    for (ports, allowed) in [(79, false), (80, false), (85, false), (443, false), (22, true)] {
        assert_eq!(world.tcp(CLIENT, WEB, ports), allowed, "{ports}");
    }
    world.policy("default", "q", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}");
    assert!(world.tcp(CLIENT, WEB, 80), "another policy is not disturbed");
}

#[rstest]
#[case::no_prefix("{ipBlock: {cidr: 10.0.0.2}}", "spec.ingress[0].from[0].ipBlock.cidr")]
#[case::nonsense("{ipBlock: {cidr: 10.0.0.0/33}}", "spec.ingress[0].from[0].ipBlock.cidr")]
#[case::except_outside(
    "{ipBlock: {cidr: 10.0.0.0/24, except: [10.1.0.0/24]}}",
    "spec.ingress[0].from[0].ipBlock.except[0]"
)]
#[case::except_is_all(
    "{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/24]}}",
    "spec.ingress[0].from[0].ipBlock.except[0]"
)]
#[case::except_of_other_family(
    "{ipBlock: {cidr: 0.0.0.0/0, except: ['fd00::/8']}}",
    "spec.ingress[0].from[0].ipBlock.except[0]"
)]
#[case::block_and_selector("{ipBlock: {cidr: 10.0.0.0/24}, podSelector: {}}", "spec.ingress[0].from[0]")]
#[case::empty_peer("{}", "spec.ingress[0].from[0]")]
#[case::unknown_operator(
    "{podSelector: {matchExpressions: [{key: app, operator: Near, values: [x]}]}}",
    "spec.ingress[0].from[0].podSelector.matchExpressions[0]"
)]
#[case::in_without_values(
    "{podSelector: {matchExpressions: [{key: app, operator: In}]}}",
    "spec.ingress[0].from[0].podSelector.matchExpressions[0]"
)]
#[case::exists_with_values(
    "{namespaceSelector: {matchExpressions: [{key: team, operator: Exists, values: [x]}]}}",
    "spec.ingress[0].from[0].namespaceSelector.matchExpressions[0]"
)]
fn an_invalid_peer_is_reported_its_rule_opens_nothing_and_the_pods_stay_isolated(
    #[case] peer: &str,
    #[case] field: &str,
) {
    let mut world = three();
    assert_eq!(
        world.policy("default", "p", &format!("{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}")),
        [field]
    );
    assert!(!world.tcp(CLIENT, WEB, 80) && !world.tcp(OTHER, WEB, 80) && !world.tcp(STRANGER, WEB, 80));
}

#[test]
fn a_pod_selector_that_cannot_be_understood_isolates_what_the_rest_of_it_selects_and_opens_nothing() {
    let mut world = three();
    let selector = "{matchLabels: {app: web}, matchExpressions: [{key: x, operator: Gt, values: ['1']}]}";
    let problems = world.policy("default", "p", &format!("{{podSelector: {selector}, ingress: [{{}}]}}"));
    assert_eq!(problems, ["spec.podSelector.matchExpressions[0]"]);
    assert!(!world.tcp(CLIENT, WEB, 80));
    assert!(world.tcp(WEB, CLIENT, 80), "the rest of it does not select the client");
}

#[test]
fn an_unknown_policy_type_isolates_both_directions() {
    let mut world = three();
    let spec = "{podSelector: {}, policyTypes: [Ingress, Exgress], ingress: [{}]}";
    assert_eq!(world.policy("default", "p", spec), ["spec.policyTypes[1]"]);
    assert!(world.tcp(STRANGER, WEB, 80) && !world.tcp(WEB, STRANGER, 80));
}

#[test]
fn a_pod_selected_only_by_sctp_rules_is_still_isolated_for_tcp_and_udp() {
    let mut world = three();
    world.policy("default", "p", "{podSelector: {}, ingress: [{ports: [{port: 80, protocol: SCTP}]}]}");
    assert!(!world.tcp(CLIENT, WEB, 80) && !world.allows(CLIENT, WEB, Protocol::Udp, 80));
    assert!(world.allows(CLIENT, WEB, Protocol::Sctp, 80));
}

#[test]
fn except_belongs_to_its_own_ip_block() {
    let mut world = three();
    world.policy(
        "default",
        "p",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.2/31]}}, {ipBlock: {cidr: 10.0.0.2/32}}]}]}",
    );
    assert!(world.tcp(CLIENT, WEB, 80), "the other block has it");
    assert!(!world.tcp(OTHER, WEB, 80), "no block has it");
}

#[test]
fn a_zero_prefix_block_matches_pods_too_and_says_nothing_about_the_other_family() {
    let mut world = three();
    world.policy("default", "p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}");
    assert!(world.tcp(CLIENT, WEB, 80) && world.tcp(STRANGER, WEB, 80));
    assert!(!world.tcp("fd00::2", WEB6, 80) && !world.tcp("2001:db8::7", WEB6, 80));
}

#[test]
fn no_set_ever_holds_a_zero_prefix() {
    let spec = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [0.0.0.0/1, 128.0.0.0/2]}}, {ipBlock: {cidr: '::/0'}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]}";
    let mut world = three();
    world.policy("default", "p", spec);
    let snapshot = world.calc.snapshot();
    let nets = snapshot.sets.values().flatten().filter_map(|member| match member {
        Member::Net(net) => Some(net.prefix()),
        Member::Ip(_) | Member::IpPort(..) => None,
    });
    assert!(nets.clone().count() > 0 && nets.clone().all(|prefix| prefix > 0));
}

#[rstest]
#[case::not_in("{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}", [false, true, true])]
#[case::does_not_exist("{matchExpressions: [{key: tier, operator: DoesNotExist}]}", [true, false, true])]
#[case::exists("{matchExpressions: [{key: tier, operator: Exists}]}", [false, true, false])]
#[case::values_are_or("{matchExpressions: [{key: app, operator: In, values: [web, client]}]}", [true, true, false])]
#[case::expressions_are_and("{matchLabels: {app: client}, matchExpressions: [{key: tier, operator: DoesNotExist}]}", [false, false, false])]
#[case::empty_selects_all("{}", [true, true, true])]
fn not_in_and_does_not_exist_match_when_the_label_is_absent(
    #[case] selector: &str,
    #[case] expected: [bool; 3],
) {
    let mut world = three();
    world.local("default", "client", "{app: client, tier: front}", &[CLIENT]);
    world.local("default", "bare", "{}", &["10.0.0.5"]);
    world.local("default", "target", "{target: ''}", &["10.0.0.9"]);
    let target = "podSelector: {matchExpressions: [{key: target, operator: Exists}]}";
    world.policy(
        "default",
        "p",
        &format!("{{{target}, ingress: [{{from: [{{podSelector: {selector}}}]}}]}}"),
    );
    assert_eq!([WEB, CLIENT, "10.0.0.5"].map(|source| world.tcp(source, "10.0.0.9", 80)), expected);
}

#[test]
fn a_namespace_label_edit_changes_membership_though_no_pod_event_arrives() {
    let mut world = three();
    world.policy(
        "default",
        "p",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {trusted: 'yes'}}}]}]}",
    );
    assert!(!world.tcp(OTHER, WEB, 80));
    world.namespace("other", "{trusted: 'yes'}");
    assert!(world.tcp(OTHER, WEB, 80));
    world.namespace("other", "{trusted: 'no'}");
    assert!(!world.tcp(OTHER, WEB, 80));
}

#[test]
fn the_name_label_of_a_namespace_is_there_though_the_file_leaves_it_out() {
    let mut world = three();
    let by_name = "{matchLabels: {kubernetes.io/metadata.name: other}}";
    world.policy(
        "default",
        "p",
        &format!("{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {by_name}}}]}}]}}"),
    );
    assert!(world.tcp(OTHER, WEB, 80) && !world.tcp(CLIENT, WEB, 80));
}

#[test]
fn a_namespace_that_is_not_known_is_selected_by_its_name_only() {
    let mut world = three();
    world.local("unseen", "ghost", "{}", &["10.0.0.6"]);
    let from = |selector: &str| {
        format!("{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {selector}}}]}}]}}")
    };
    for (selector, allowed) in [
        ("{}", true),
        ("{matchLabels: {kubernetes.io/metadata.name: unseen}}", true),
        ("{matchExpressions: [{key: team, operator: NotIn, values: [a]}]}", false),
        ("{matchExpressions: [{key: team, operator: DoesNotExist}]}", false),
    ] {
        world.policy("default", "p", &from(selector));
        assert_eq!(world.tcp("10.0.0.6", WEB, 80), allowed, "{selector}");
    }
}

#[rstest]
#[case("Succeeded")]
#[case("Failed")]
fn finished_pods_keep_their_address_while_it_is_reused_and_do_not_count(#[case] phase: &str) {
    let mut world = three();
    world.policy(
        "default",
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: job}}}]}]}",
    );
    let object: core::Pod = serde_saphyr::from_str(&format!(
        "{{metadata: {{namespace: default, name: job, labels: {{app: job}}}}, status: {{phase: {phase}, podIPs: [{{ip: {OTHER}}}]}}}}"
    ))
    .unwrap();
    world.calc.apply(Update::SetPod(k8s::pod(&object).unwrap()));
    assert!(!world.tcp(OTHER, WEB, 80), "the address is another pod's by now");
}

#[test]
fn terminating_pods_still_own_their_address() {
    let mut world = three();
    world.policy(
        "default",
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: job}}}]}]}",
    );
    let object: core::Pod = serde_saphyr::from_str(
        "{metadata: {namespace: default, name: job, labels: {app: job}, deletionTimestamp: '2024-01-01T00:00:00Z'}, status: {phase: Running, podIPs: [{ip: 10.9.9.9}]}}",
    )
    .unwrap();
    world.calc.apply(Update::SetPod(k8s::pod(&object).unwrap()));
    assert!(world.tcp("10.9.9.9", WEB, 80));
}

#[test]
fn two_pods_may_share_an_address_and_one_of_them_leaving_does_not_take_it() {
    let mut world = three();
    world.policy(
        "default",
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: twin}}}]}]}",
    );
    world.pod("default", "old", "{app: twin}", &["10.9.9.9"], "");
    world.pod("default", "new", "{app: twin}", &["10.9.9.9"], "");
    world.calc.apply(Update::RemovePod(PodId::new("default", "old"), None));
    assert!(world.tcp("10.9.9.9", WEB, 80));
    world.calc.apply(Update::RemovePod(PodId::new("default", "new"), None));
    assert!(!world.tcp("10.9.9.9", WEB, 80));
}

#[test]
fn host_network_pods_are_never_in_a_set_and_never_isolated() {
    let mut world = three();
    world.pod(
        "default",
        "host",
        "{app: client}",
        &["172.16.0.9"],
        "spec: {hostNetwork: true, containers: []}",
    );
    world.policy(
        "default",
        "p",
        "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}]}",
    );
    assert!(!world.tcp("172.16.0.9", WEB, 80), "the node's address stands for no pod");
    let in_sets = world
        .calc
        .snapshot()
        .sets
        .values()
        .flatten()
        .any(|m| *m == Member::Ip("172.16.0.9".parse().unwrap()));
    assert!(!in_sets);
}

#[test]
fn every_pod_address_counts_not_the_first() {
    let mut world = three();
    world.policy(
        "default",
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: multi}}}]}]}",
    );
    let ips = ["10.9.9.1", "10.9.9.2", "fd09::1"];
    world.pod("default", "multi", "{app: multi}", &ips, "");
    assert!(world.tcp(ips[0], WEB, 80) && world.tcp(ips[1], WEB, 80) && world.tcp(ips[2], WEB6, 80));
}

#[test]
fn a_node_always_reaches_its_own_pods_and_they_it() {
    let mut world = three();
    world.policy("default", "p", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    assert!(world.tcp(THIS_NODE, WEB, 80), "kubelet probes");
    assert!(world.tcp(WEB, THIS_NODE, 80), "whatever the address of the node");
    assert!(!world.tcp(WEB, "172.16.0.2", 80), "another node is not its own");
}

#[test]
fn a_pod_to_a_service_that_lands_on_itself_is_policed_like_any_other_flow() {
    let mut world = three();
    world.policy("default", "p", "{podSelector: {matchLabels: {app: web}}}");
    assert!(!world.tcp(WEB, WEB, 80));
}

#[test]
fn overlapping_grants_a_revocation_removes_only_what_the_last_granter_gave() {
    let mut world = three();
    for name in ["a", "b"] {
        world.policy(
            "default",
            name,
            "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
        );
    }
    world.calc.apply(Update::RemovePolicy(PolicyId::network_policy("default", "a")));
    assert!(world.tcp(CLIENT, WEB, 80));
    world.policy("default", "b", "{podSelector: {}}");
    assert!(!world.tcp(CLIENT, WEB, 80));
}

#[test]
fn equal_selectors_share_one_set_however_they_are_written() {
    let mut world = three();
    world.policy(
        "default",
        "a",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client, tier: x}}}]}]}",
    );
    let expressions =
        "[{key: tier, operator: In, values: [x]}, {key: app, operator: In, values: [client, client]}]";
    world.policy("default", "b", &format!("{{podSelector: {{}}, ingress: [{{from: [{{podSelector: {{matchExpressions: {expressions}}}}}]}}]}}"));
    assert_eq!(world.calc.snapshot().sets.len(), 1);
}

#[test]
fn staged_policies_are_not_enforced() {
    let mut world = three();
    let object: networking::NetworkPolicy = serde_saphyr::from_str(
        "{metadata: {namespace: default, name: p, annotations: {manx.dev/staged: 'true'}}, spec: {podSelector: {}}}",
    )
    .unwrap();
    world.calc.apply(Update::SetPolicy(k8s::network_policy(&object).unwrap()));
    assert!(world.tcp(CLIENT, WEB, 80));
    assert_eq!(world.calc.active_policies().len(), 1, "its rules are in the kernel, and count");
}

#[test]
fn an_attachment_gets_the_policy_of_the_pod_with_its_uid_and_of_no_namesake() {
    let mut world = World::new();
    world.attach("default", "web", &[WEB]);
    assert!(
        !world.sim(&world.packet(STRANGER.parse().unwrap(), WEB.parse().unwrap(), Protocol::Tcp, 80)),
        "unknown"
    );
    let namesake: core::Pod =
        serde_saphyr::from_str("{metadata: {namespace: default, name: web, uid: another, labels: {}}}")
            .unwrap();
    world.calc.apply(Update::SetPod(k8s::pod(&namesake).unwrap()));
    assert!(
        !world.sim(&world.packet(STRANGER.parse().unwrap(), WEB.parse().unwrap(), Protocol::Tcp, 80)),
        "a namesake"
    );
    world.pod("default", "web", "{}", &[], "");
    assert!(world.tcp(STRANGER, WEB, 80));
}

#[test]
fn a_static_pods_attachment_is_found_by_the_mirror_pods_hash() {
    let mut world = World::new();
    world.attach("default", "web", &[WEB]);
    let mirror: core::Pod = serde_saphyr::from_str(
        "{metadata: {namespace: default, name: web, uid: api-uid, annotations: {kubernetes.io/config.mirror: uid-web}}}",
    )
    .unwrap();
    world.calc.apply(Update::SetPod(k8s::pod(&mirror).unwrap()));
    assert!(world.tcp(STRANGER, WEB, 80));
}

#[test]
fn an_attachment_without_pod_arguments_is_a_workload_of_namespace_default_without_labels() {
    let mut world = three();
    world.calc.apply(Update::SetEndpoint(Endpoint {
        id: EndpointId { container_id: "podman1".into(), ifname: "eth0".into() },
        interface: "manxpodman1".into(),
        pod: None,
        addresses: ["10.0.0.7".parse().unwrap()].into_iter().collect(),
    }));
    assert!(world.tcp(STRANGER, "10.0.0.7", 80));
    world.policy("default", "p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}");
    assert!(!world.tcp(STRANGER, "10.0.0.7", 80), "policies of the namespace select it");
    assert!(world.tcp("10.0.0.7", WEB, 80), "and count it among the namespace's pods");
    world.policy("default", "p", "{podSelector: {matchLabels: {app: web}}}");
    assert!(world.tcp(STRANGER, "10.0.0.7", 80), "it has no labels");
}

#[test]
fn an_attachment_with_a_name_alone_has_the_labels_of_the_pod_of_that_name_in_default_while_there_is_one() {
    let mut world = three();
    world.calc.apply(Update::SetEndpoint(Endpoint {
        id: EndpointId { container_id: "podman1".into(), ifname: "eth0".into() },
        interface: "manxcache".into(),
        pod: Some(PodRef { namespace: None, name: "cache".into(), uid: None }),
        addresses: ["10.0.0.7".parse().unwrap()].into_iter().collect(),
    }));
    world.policy("default", "p", "{podSelector: {matchLabels: {app: cache}}}");
    assert!(world.tcp(STRANGER, "10.0.0.7", 80), "there is no such Pod: it has no labels");
    world.pod("default", "cache", "{app: cache}", &[], "");
    assert!(!world.tcp(STRANGER, "10.0.0.7", 80), "it has those of the Pod");
}

#[test]
fn a_pods_attachment_tells_its_address_before_its_status_does_and_against_it() {
    let mut world = three();
    world.policy(
        "default",
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: fresh}}}]}]}",
    );
    world.pod("default", "fresh", "{app: fresh}", &["10.8.8.8"], "");
    world.attach("default", "fresh", &["10.0.0.8"]);
    assert!(world.tcp("10.0.0.8", WEB, 80));
    assert!(!world.tcp("10.8.8.8", WEB, 80), "the address of a sandbox that is no more");
}

#[test]
fn host_bits_of_a_block_are_not_part_of_it() {
    let mut world = three();
    assert!(
        world
            .policy(
                "default",
                "p",
                "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.200/24}}]}]}"
            )
            .is_empty()
    );
    assert!(world.tcp(CLIENT, WEB, 80));
}

#[test]
fn a_removal_with_another_uid_leaves_the_successor() {
    let mut world = three();
    world.calc.apply(Update::RemovePod(PodId::new("default", "web"), Some("older".into())));
    assert!(world.tcp(STRANGER, WEB, 80));
    world.calc.apply(Update::RemovePod(PodId::new("default", "web"), Some("uid-web".into())));
    let packet = world.packet(STRANGER.parse().unwrap(), WEB.parse().unwrap(), Protocol::Tcp, 80);
    assert!(!world.sim(&packet), "closed: the pod is gone, its interface not yet");
}

#[rstest]
#[case::vxlan(Payload::opening(Protocol::Udp, 4789))]
#[case::linux_vxlan(Payload::opening(Protocol::Udp, 8472))]
#[case::geneve(Payload::opening(Protocol::Udp, 6081))]
#[case::ipip(Payload::Other(4))]
#[case::ipv6_in_ip(Payload::Other(41))]
#[case::gre(Payload::Other(47))]
fn tunnels_out_of_pods_are_dropped(#[case] payload: Payload) {
    let world = three();
    let opening = world.packet(WEB.parse().unwrap(), STRANGER.parse().unwrap(), Protocol::Tcp, 80);
    assert!(world.sim(&opening));
    assert!(!world.sim(&Packet { payload, ..opening.clone() }));
    assert!(!world.sim(&Packet { payload, output: None, ..opening }), "not to the node either");
}

#[rstest]
#[case::router_solicitation(133, 255, true)]
#[case::neighbour_solicitation(135, 255, true)]
#[case::neighbour_advertisement(136, 255, true)]
#[case::from_beyond_the_link(135, 254, false)]
#[case::mld_report(131, 1, true)]
#[case::mld_done(132, 1, true)]
#[case::mld_report_v2(143, 1, true)]
#[case::router_advertisement(134, 255, false)]
#[case::redirect(137, 255, false)]
fn icmpv6_from_pods_neighbour_discovery_bypasses_policy_and_advertisements_are_dropped(
    #[case] icmp6: u8,
    #[case] hop_limit: u8,
    #[case] allowed: bool,
) {
    let mut world = three();
    world.policy("default", "p", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    let packet = Packet {
        input: Some("manxweb".into()),
        output: None,
        payload: Payload::Icmp { family: Family::Ipv6, kind: icmp6, code: 0 },
        state: manx_policy::ir::ConnState::Untracked,
        hop_limit,
        ..Packet::opening("fe80::1".parse().unwrap(), "ff02::1".parse().unwrap(), Protocol::Tcp, 0)
    };
    // From a pod to its own node only what is forbidden is stopped: solicitations from afar are merely not exempt.
    let expected = allowed || icmp6 == 135;
    assert_eq!(world.sim(&packet), expected);
    let forwarded = Packet { output: Some("eth0".into()), ..packet };
    assert!(!world.sim(&forwarded), "nothing of it goes beyond the node when egress is isolated");
}

#[test]
fn labels_with_strange_bytes_cannot_end_a_comment() {
    let line = manx_policy::render::line(
        "MANX-X",
        &manx_policy::ir::Rule {
            matches: Default::default(),
            verdict: manx_policy::ir::Verdict::Drop,
            comment: "x\" -j ACCEPT\n\u{e9}'".repeat(40),
            origin: None,
        },
    );
    let comment = line.spec.split('"').nth(1).unwrap();
    assert!(comment.len() <= 255 && comment.is_ascii() && !line.spec.contains('\n'));
    assert!(line.spec.ends_with("\" -j DROP"));
}

#[test]
fn a_policy_with_many_ports_fits_into_rules_of_15_slots() {
    let ports: Vec<String> = (0..40).map(|i| format!("{{port: {}}}", 1000 + 2 * i)).collect();
    let mut world = three();
    world.policy(
        "default",
        "p",
        &format!("{{podSelector: {{}}, ingress: [{{ports: [{}]}}]}}", ports.join(", ")),
    );
    let policy = world.calc.active(&PolicyId::network_policy("default", "p")).unwrap();
    let rule = &policy.ingress.as_ref().unwrap()[0];
    assert_eq!(grants::grants(rule, manx_policy::model::Direction::Ingress).len(), 3);
    assert!(world.tcp(CLIENT, WEB, 1078) && !world.tcp(CLIENT, WEB, 1079));
}

#[test]
fn labels_are_found_whatever_order_they_came_in() {
    let one = Labels::from_iter([("b", "2"), ("a", "1")]);
    assert_eq!(one, Labels::from_iter([("a", "1"), ("b", "2")]));
    assert_eq!(Family::ALL.map(Family::bits), [32, 128]);
}
