//! ClusterNetworkPolicy and Calico's policies where it is easy to get wrong: objects go through their door, and oracle, live
//! judge and compiled rules are asked alike.
#![allow(clippy::unwrap_used)]

#[path = "generate/world.rs"]
mod world;

use manx_policy::model::{Family, Labels, Payload, PodId, Protocol, Update};
use rstest::rstest;
use world::{CLIENT, OTHER, STRANGER, THIS_NODE, WEB, three};

const EVERYONE: &str = "subject: {namespaces: {}}";

fn cnp(tier: &str, priority: u32, rest: &str) -> String {
    format!("{{tier: {tier}, priority: {priority}, {EVERYONE}, {rest}}}")
}

/// A rule about pods with a label `app`.
fn ingress(action: &str, app: &str) -> String {
    format!(
        "ingress: [{{action: {action}, from: [{{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: {app}}}}}}}}}]}}]"
    )
}

const DENY_ALL: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";
const ALLOW_ALL: &str = "{podSelector: {}, ingress: [{}], egress: [{}]}";

#[test]
fn admin_accept_overrules_a_network_policy_that_denies() {
    let mut world = three();
    world.policy("default", "deny", "{podSelector: {matchLabels: {app: web}}}");
    assert!(!world.tcp(CLIENT, WEB, 80));
    world.cluster("allow", &cnp("Admin", 10, &ingress("Accept", "client")));
    assert!(world.tcp(CLIENT, WEB, 80));
    assert!(!world.tcp(STRANGER, WEB, 80));
}

#[test]
fn admin_deny_overrules_a_network_policy_that_allows() {
    let mut world = three();
    world.policy("default", "allow", ALLOW_ALL);
    world.cluster("deny", &cnp("Admin", 10, &ingress("Deny", "client")));
    assert!(!world.tcp(CLIENT, WEB, 80));
    assert!(world.tcp(STRANGER, WEB, 80));
}

#[test]
fn lower_priority_number_goes_first_and_equal_ones_go_by_name() {
    let mut world = three();
    world.cluster("a-deny", &cnp("Admin", 20, &ingress("Deny", "client")));
    world.cluster("b-allow", &cnp("Admin", 10, &ingress("Accept", "client")));
    assert!(world.tcp(CLIENT, WEB, 80));
    world.cluster("b-allow", &cnp("Admin", 20, &ingress("Accept", "client")));
    assert!(!world.tcp(CLIENT, WEB, 80), "of one priority: a-deny before b-allow");
    world.cluster("b-allow", &cnp("Admin", 19, &ingress("Accept", "client")));
    assert!(world.tcp(CLIENT, WEB, 80));
}

#[test]
fn pass_is_not_accept_and_skips_only_its_tier() {
    let mut world = three();
    world.cluster("pass", &cnp("Admin", 1, &ingress("Pass", "client")));
    world.cluster("deny", &cnp("Admin", 2, &ingress("Deny", "client")));
    assert!(world.tcp(CLIENT, WEB, 80), "nobody else has anything against it");
    world.policy("default", "deny", "{podSelector: {}}");
    assert!(!world.tcp(CLIENT, WEB, 80), "the network policy decides");
}

#[test]
fn network_policy_is_final_for_the_pods_that_it_selects_alone() {
    let mut world = three();
    world.cluster("base", &cnp("Baseline", 1, &ingress("Deny", "client")));
    assert!(!world.tcp(CLIENT, WEB, 80));
    world.policy("default", "allow", "{podSelector: {matchLabels: {app: web}}, ingress: [{}]}");
    assert!(world.tcp(CLIENT, WEB, 80));
    assert!(!world.tcp(OTHER, CLIENT, 80), "the client is not selected: the baseline holds");
}

#[test]
fn a_policy_without_egress_rules_does_not_touch_egress() {
    let mut world = three();
    world.cluster("in", &cnp("Admin", 1, &format!("{}, egress: []", ingress("Deny", "nobody"))));
    assert!(world.tcp(CLIENT, STRANGER, 80) && world.tcp(CLIENT, WEB, 80));
}

#[test]
fn a_policy_may_move_to_another_tier_and_leaves_nothing_behind() {
    let mut world = three();
    world.policy("default", "allow", ALLOW_ALL);
    world.cluster("p", &cnp("Admin", 1, &ingress("Deny", "client")));
    assert!(!world.tcp(CLIENT, WEB, 80));
    world.cluster("p", &cnp("Baseline", 1, &ingress("Deny", "client")));
    assert!(world.tcp(CLIENT, WEB, 80));
}

#[test]
fn networks_reach_pods_too_and_say_nothing_of_the_other_family() {
    let mut world = three();
    let egress =
        |net: &str| cnp("Admin", 1, &format!("egress: [{{action: Deny, to: [{{networks: ['{net}']}}]}}]"));
    world.cluster("p", &egress("0.0.0.0/0"));
    assert!(!world.tcp(CLIENT, WEB, 80) && !world.tcp(CLIENT, STRANGER, 80));
    assert!(world.tcp("fd00::2", "fd00::1", 80));
    world.cluster("p", &egress("192.0.2.0/24"));
    assert!(world.tcp(CLIENT, WEB, 80) && !world.tcp(CLIENT, STRANGER, 80));
}

#[test]
fn nodes_peers_hold_for_the_pods_own_node_too() {
    let mut world = three();
    world.node("node-1", &[("role", "worker")], &[THIS_NODE]);
    world.node("node-2", &[("role", "db")], &["172.16.0.2"]);
    let deny =
        |labels: &str| cnp("Admin", 1, &format!("egress: [{{action: Deny, to: [{{nodes: {labels}}}]}}]"));
    world.cluster("p", &deny("{matchLabels: {role: db}}"));
    assert!(world.tcp(CLIENT, THIS_NODE, 80) && !world.tcp(CLIENT, "172.16.0.2", 80));
    world.cluster("p", &deny("{}"));
    assert!(!world.tcp(CLIENT, THIS_NODE, 80), "enforced in INPUT");
    assert!(world.tcp(THIS_NODE, CLIENT, 80), "what the node sends is not policed");
    world.node("node-1", &[("role", "worker")], &["172.16.0.9"]);
    assert!(world.tcp(CLIENT, THIS_NODE, 80), "no longer an address of a node");
}

#[test]
fn baseline_reaches_the_own_node_unless_a_network_policy_selects_the_pod() {
    let mut world = three();
    world.node("node-1", &[], &[THIS_NODE]);
    world.cluster("p", &cnp("Baseline", 1, "egress: [{action: Deny, to: [{nodes: {}}]}]"));
    assert!(!world.tcp(CLIENT, THIS_NODE, 80));
    world.policy("default", "deny", DENY_ALL);
    assert!(
        world.tcp(CLIENT, THIS_NODE, 80),
        "under NetworkPolicy a pod and its own node always reach each other"
    );
}

#[rstest]
#[case::number("{tcp: {destinationPort: {number: 80}}}", [true, false, false])]
#[case::range("{tcp: {destinationPort: {range: {start: 80, end: 90}}}}", [true, true, false])]
#[case::all("{tcp: {}}", [true, true, false])]
#[case::udp("{udp: {destinationPort: {number: 80}}}", [false, false, true])]
#[case::named("{destinationNamedPort: http}", [false, false, false])]
fn every_form_of_port(#[case] protocol: &str, #[case] expected: [bool; 3]) {
    let mut world = three();
    let rules = format!(
        "ingress: [{{action: Accept, from: [{{namespaces: {{}}}}], protocols: [{protocol}]}}, {{action: Deny, from: [{{namespaces: {{}}}}]}}]"
    );
    assert_eq!(world.cluster("p", &cnp("Admin", 1, &rules)), [""; 0]);
    let found = [
        world.tcp(CLIENT, WEB, 80),
        world.tcp(CLIENT, WEB, 90),
        world.allows(CLIENT, WEB, Protocol::Udp, 80),
    ];
    assert_eq!(found, expected);
    assert_eq!(world.tcp(CLIENT, WEB, 8080), protocol.contains("http") || protocol.contains("tcp: {}"));
}

/// "For Accept rules, fail closed means: treat the rule as matching no traffic. For Deny and Pass rules, fail closed means:
/// treat the rule as a 'Deny all' rule."
#[rstest]
#[case::no_kind_of_peer("{}", "")]
#[case::an_unknown_operator("{namespaces: {matchExpressions: [{key: a, operator: Near}]}}", "")]
#[case::names("{domainNames: [example.org]}", "")]
#[case::two_kinds("{namespaces: {}, nodes: {}}", "")]
#[case::bad_network("{networks: [10.0.0.300/8]}", "")]
#[case::port_out_of_range("{namespaces: {}}", "protocols: [{tcp: {destinationPort: {number: 70000}}}]")]
#[case::range_the_wrong_way(
    "{namespaces: {}}",
    "protocols: [{tcp: {destinationPort: {range: {start: 9, end: 3}}}}]"
)]
#[case::no_protocol("{namespaces: {}}", "protocols: [{}]")]
#[case::named_port_of_a_node("{nodes: {}}", "protocols: [{destinationNamedPort: http}]")]
fn a_rule_that_cannot_be_understood_fails_closed(#[case] peer: &str, #[case] protocols: &str) {
    let mut world = three();
    world.policy("default", "deny", DENY_ALL);
    let rule =
        |action: &str| cnp("Admin", 1, &format!("egress: [{{action: {action}, to: [{peer}], {protocols}}}]"));
    let refused = world.cluster("p", &rule("Accept"));
    assert!(
        !refused.is_empty() && refused.iter().all(|field| field.starts_with("spec.egress[0]")),
        "{refused:?}"
    );
    assert!(!world.tcp(CLIENT, STRANGER, 80));
    world.policy("default", "deny", ALLOW_ALL);
    assert!(world.tcp(CLIENT, STRANGER, 80), "an accept that matches nothing leaves the others their word");
    for action in ["Deny", "Pass"] {
        world.cluster("p", &rule(action));
        assert!(!world.tcp(CLIENT, STRANGER, 80), "{action}");
    }
}

#[rstest]
#[case::no_tier("{priority: 1, subject: {namespaces: {}}, RULES}", "spec.tier")]
#[case::tier_in_small("{tier: admin, priority: 1, subject: {namespaces: {}}, RULES}", "spec.tier")]
#[case::priority_too_high("{tier: Admin, priority: 1001, subject: {namespaces: {}}, RULES}", "spec.priority")]
#[case::no_subject("{tier: Admin, priority: 1, RULES}", "spec.subject")]
#[case::both_subjects(
    "{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}, RULES}",
    "spec.subject"
)]
fn a_frame_in_doubt_opens_nothing(#[case] spec: &str, #[case] field: &str) {
    let mut world = three();
    world.policy("default", "deny", DENY_ALL);
    let with = |action: &str| {
        spec.replace("RULES", &format!("egress: [{{action: {action}, to: [{{networks: [0.0.0.0/0]}}]}}]"))
    };
    assert_eq!(world.cluster("p", &with("Accept")), [field]);
    assert!(!world.tcp(CLIENT, STRANGER, 80));
    world.policy("default", "deny", ALLOW_ALL);
    assert!(world.tcp(CLIENT, STRANGER, 80));
    world.cluster("p", &with("Deny"));
    assert!(!world.tcp(CLIENT, STRANGER, 80), "what denies goes on denying");
}

#[test]
fn host_network_pods_are_no_peers_and_no_subjects() {
    let mut world = three();
    world.pod("default", "host", "{app: client}", &[THIS_NODE], "spec: {hostNetwork: true, containers: []}");
    world.cluster("deny", &cnp("Admin", 1, &ingress("Deny", "client")));
    assert!(world.tcp(THIS_NODE, WEB, 80));
    assert!(world.tcp("172.16.0.2", WEB, 80));
}

fn calico(order: &str, rest: &str) -> String {
    format!("{{order: {order}, {rest}}}")
}

#[test]
fn calico_of_lower_order_goes_before_network_policies_the_rest_after_them() {
    let mut world = three();
    world.policy("default", "allow", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}");
    let deny =
        "selector: all(), types: [Ingress], ingress: [{action: Deny, source: {selector: app == 'client'}}]";
    world.calico(None, "deny", &calico("10", deny));
    assert!(!world.tcp(CLIENT, WEB, 80));
    world.calico(None, "deny", &calico("1000", deny));
    assert!(world.tcp(CLIENT, WEB, 80), "the network policy has allowed it before");
    assert!(!world.tcp(OTHER, WEB, 80));
    let allow =
        "selector: all(), types: [Ingress], ingress: [{action: Allow, source: {selector: app == 'client'}}]";
    world.calico(None, "deny", &calico("2000", allow));
    assert!(world.tcp(OTHER, WEB, 80), "one closing deny, after the last");
    assert!(!world.tcp(STRANGER, WEB, 80));
}

#[test]
fn calico_rules_go_in_order_and_what_none_matches_is_denied() {
    let mut world = three();
    world.calico(
        Some("default"),
        "p",
        "{selector: app == 'web', ingress: [{action: Deny, protocol: TCP, destination: {ports: [81]}}, \
          {action: Allow, protocol: TCP, destination: {ports: ['80:90', http]}}]}",
    );
    assert!(world.tcp(CLIENT, WEB, 80) && world.tcp(CLIENT, WEB, 90) && world.tcp(CLIENT, WEB, 8080));
    assert!(!world.tcp(CLIENT, WEB, 81) && !world.tcp(CLIENT, WEB, 443));
    assert!(!world.allows(CLIENT, WEB, Protocol::Udp, 80));
    assert!(world.tcp(WEB, CLIENT, 80), "egress is not spoken of");
}

#[test]
fn calico_pass_skips_network_policies_and_the_closing_deny() {
    let mut world = three();
    world.policy("default", "deny", "{podSelector: {}}");
    world.calico(
        None,
        "p",
        &calico("1", "selector: all(), ingress: [{action: Pass, source: {selector: app == 'client'}}]"),
    );
    assert!(world.tcp(CLIENT, WEB, 80));
    assert!(!world.tcp(STRANGER, WEB, 80));
    world.cluster("base", &cnp("Baseline", 1, &ingress("Deny", "client")));
    assert!(!world.tcp(CLIENT, WEB, 80), "the next tier is the baseline");
}

#[test]
fn calico_log_goes_on_with_the_next_rule() {
    let mut world = three();
    world.calico(
        None,
        "p",
        "{selector: all(), ingress: [{action: Log}, {action: Allow, source: {nets: [10.0.0.2]}}]}",
    );
    assert!(world.tcp(CLIENT, WEB, 80) && !world.tcp(OTHER, WEB, 80));
}

#[rstest]
#[case::own_namespace_only("source: {selector: app == 'client'}", [true, false, false])]
#[case::another_namespace("source: {namespaceSelector: team == 'b'}", [false, true, false])]
#[case::all_namespaces("source: {namespaceSelector: all(), selector: has(app)}", [true, true, false])]
#[case::by_name("source: {namespaceSelector: projectcalico.org/name == 'other'}", [false, true, false])]
#[case::lent_label("source: {namespaceSelector: all(), selector: projectcalico.org/namespace == 'other'}", [false, true, false])]
#[case::namespace_label_at_the_pod("source: {namespaceSelector: all(), selector: pcns.team != 'a'}", [false, true, false])]
#[case::alternatives("source: {namespaceSelector: all(), selector: pcns.team == 'b' || app == 'nobody'}", [false, true, false])]
#[case::orchestrator("source: {selector: projectcalico.org/orchestrator == 'k8s'}", [true, false, false])]
#[case::no_orchestrator("source: {selector: projectcalico.org/orchestrator != 'k8s'}", [false, false, false])]
#[case::not_selector("source: {notSelector: app == 'nobody'}", [true, false, false])]
#[case::not_nets("source: {notNets: [10.0.0.2/32]}", [false, true, true])]
#[case::nets_and_selector("source: {nets: [10.0.0.0/31], selector: app == 'client'}", [false, false, false])]
#[case::global_sets("source: {namespaceSelector: global(), selector: kind == 'partners'}", [false, false, true])]
#[case::not_protocol("notProtocol: UDP", [true, true, true])]
#[case::ip_version("ipVersion: 6", [false, false, false])]
#[case::source_ports("protocol: TCP, source: {ports: ['40000:50000']}", [true, true, true])]
#[case::not_source_ports("protocol: TCP, source: {notPorts: ['40000:50000']}", [false, false, false])]
#[case::not_ports("protocol: TCP, destination: {notPorts: [80]}", [false, false, false])]
#[case::destination("destination: {selector: app == 'web'}", [true, true, true])]
#[case::other_destination("destination: {nets: [10.9.0.0/16]}", [false, false, false])]
fn every_match_of_calico(#[case] rule: &str, #[case] expected: [bool; 3]) {
    let mut world = three();
    world.network_set(None, "partners", "{kind: partners}", "[192.0.2.0/24]");
    let spec = format!("{{selector: app == 'web', ingress: [{{action: Allow, {rule}}}]}}");
    assert_eq!(world.calico(Some("default"), "p", &spec), [""; 0]);
    assert_eq!([CLIENT, OTHER, STRANGER].map(|source| world.tcp(source, WEB, 80)), expected);
}

#[test]
fn network_sets_follow_their_labels_and_their_namespace() {
    let mut world = three();
    let spec = "{selector: all(), ingress: [{action: Allow, source: {selector: kind == 'partners'}}]}";
    world.calico(Some("default"), "p", spec);
    world.network_set(Some("other"), "set", "{kind: partners}", "[192.0.2.0/24, 0.0.0.0/0]");
    assert!(!world.tcp(STRANGER, WEB, 80));
    world.network_set(Some("default"), "set", "{kind: partners}", "[192.0.2.0/24]");
    assert!(world.tcp(STRANGER, WEB, 80));
    world.network_set(Some("default"), "set", "{kind: foes}", "[192.0.2.0/24]");
    assert!(!world.tcp(STRANGER, WEB, 80));
    world.calico(None, "global", spec);
    world.network_set(None, "set", "{kind: partners}", "[192.0.2.0/24]");
    assert!(world.tcp(STRANGER, WEB, 80));
}

#[test]
fn service_accounts_are_matched_by_name_and_by_their_labels() {
    let mut world = three();
    let account = "spec: {serviceAccountName: robot, containers: []}";
    world.pod("default", "client", "{app: client}", &[CLIENT], account);
    world.calico(
        Some("default"),
        "p",
        "{selector: app == 'web', ingress: [{action: Allow, source: {serviceAccounts: {names: [robot]}}}]}",
    );
    assert!(world.tcp(CLIENT, WEB, 80) && !world.tcp(OTHER, WEB, 80));
    world.calico(Some("default"), "p", "{selector: app == 'web', ingress: [{action: Allow, source: {serviceAccounts: {selector: trusted == 'yes'}}}]}");
    assert!(!world.tcp(CLIENT, WEB, 80));
    let labels = Labels::from_iter([("trusted", "yes")]);
    world.calc.apply(Update::SetServiceAccount(PodId::new("default", "robot"), labels));
    assert!(world.tcp(CLIENT, WEB, 80));
    world.calico(None, "q", "{serviceAccountSelector: trusted == 'yes', types: [Egress]}");
    assert!(!world.tcp(CLIENT, WEB, 80), "the policy selects the client by its account");
    world.calc.apply(Update::SetServiceAccount(PodId::new("default", "robot"), Labels::default()));
    assert!(!world.tcp(CLIENT, WEB, 80) && world.tcp(CLIENT, OTHER, 80));
}

#[test]
fn icmp_by_type_and_code() {
    let mut world = three();
    world.calico(None, "p", "{selector: app == 'web', ingress: [{action: Allow, protocol: ICMP, icmp: {type: 8, code: 0}}, \
                              {action: Allow, protocol: ICMPv6, notICMP: {type: 128}}, {action: Allow, protocol: 112}]}");
    let icmp = |family, kind, code| Payload::Icmp { family, kind, code };
    assert!(world.carries(CLIENT, WEB, icmp(Family::Ipv4, 8, 0)));
    assert!(!world.carries(CLIENT, WEB, icmp(Family::Ipv4, 8, 1)));
    assert!(!world.carries("fd00::2", "fd00::1", icmp(Family::Ipv6, 128, 0)));
    assert!(world.carries("fd00::2", "fd00::1", icmp(Family::Ipv6, 1, 0)));
    assert!(
        world.carries(CLIENT, WEB, Payload::Other(112)) && !world.carries(CLIENT, WEB, Payload::Other(113))
    );
}

#[rstest]
#[case::tier("tier: security", "spec.tier")]
#[case::untracked("doNotTrack: true", "spec.doNotTrack")]
#[case::before_nat("preDNAT: true", "spec.preDNAT")]
#[case::on_forward("applyOnForward: true", "spec.applyOnForward")]
#[case::selector("selector: 'app = web'", "spec.selector")]
fn a_calico_policy_that_cannot_be_carried_over_closes(#[case] frame: &str, #[case] field: &str) {
    let mut world = three();
    let spec = format!("{{{frame}, ingress: [{{action: Allow}}]}}");
    assert_eq!(world.calico(None, "p", &spec), [field]);
    assert!(!world.tcp(CLIENT, WEB, 80));
}

#[rstest]
#[case::http("http: {methods: [GET]}")]
#[case::services("source: {services: {name: x}}")]
#[case::ports_without_protocol("destination: {ports: [80]}")]
#[case::unknown_protocol("protocol: QUIC")]
#[case::bad_port("protocol: TCP, destination: {ports: ['90:80']}")]
#[case::bad_net("source: {nets: [10.0.0.0/40]}")]
#[case::bad_selector("source: {selector: 'app =='}")]
#[case::named_source_port("protocol: TCP, source: {ports: [http]}")]
#[case::icmp_of_tcp("protocol: TCP, icmp: {type: 8}")]
fn a_calico_rule_that_cannot_be_carried_over_closes(#[case] rule: &str) {
    let mut world = three();
    let with = |action: &str| {
        format!("{{selector: all(), ingress: [{{action: {action}, {rule}}}, {{action: Allow}}]}}")
    };
    let refused = world.calico(None, "p", &with("Allow"));
    assert!(
        refused.iter().all(|field| field.starts_with("spec.ingress[0].")) && !refused.is_empty(),
        "{refused:?}"
    );
    assert!(world.tcp(CLIENT, WEB, 80), "the next rule allows");
    world.calico(None, "p", &with("Deny"));
    assert!(!world.tcp(CLIENT, WEB, 80));
    world.calico(None, "p", &format!("{{selector: all(), ingress: [{{action: Allow, {rule}}}]}}"));
    assert!(!world.tcp(CLIENT, WEB, 80));
}

#[test]
fn a_calico_policy_lets_a_pod_reach_its_own_node_unless_it_says_otherwise() {
    let mut world = three();
    world.calico(None, "p", "{order: 1, selector: all(), types: [Egress]}");
    assert!(world.tcp(CLIENT, THIS_NODE, 80) && !world.tcp(CLIENT, WEB, 80));
    world.calico(
        None,
        "p",
        "{order: 1, selector: all(), egress: [{action: Deny, destination: {nets: [172.16.0.0/16]}}]}",
    );
    assert!(!world.tcp(CLIENT, THIS_NODE, 80));
}
