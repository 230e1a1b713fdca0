use super::*;
use crate::config::{BgpPeer, BgpPeerSpec, NodeAnnotations};

pub(super) fn node(name: &str, ips: &[&str], cidrs: &[&str]) -> Node {
    Node {
        name: name.to_owned(),
        labels: BTreeMap::from([("rack".to_owned(), "a".to_owned())]),
        annotations: NodeAnnotations::default(),
        kube_router: None,
        pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        internal_ips: ips.iter().map(|c| c.parse().unwrap()).collect(),
        external_ips: Vec::new(),
        unschedulable: false,
    }
}

pub(super) fn peer(name: &str, yaml: &str) -> Object {
    let spec: BgpPeerSpec = serde_saphyr::from_str(yaml).unwrap();
    Object::BgpPeer(Box::new(BgpPeer::validate(name, &spec).unwrap()))
}

pub(super) fn desired(objects: impl IntoIterator<Item = Object>) -> Desired {
    let mut desired = Desired::new("n1", "manx-system");
    for object in objects {
        desired.set(&object);
    }
    desired
}

fn nets(list: &[&str]) -> Vec<IpNetwork> {
    list.iter().map(|n| n.parse().unwrap()).collect()
}

#[test]
fn without_its_node_object_a_node_says_nothing_and_says_so() {
    let intent = desired([Object::Node(node("n2", &["10.0.0.2"], &[]))]).bgp(&[]);
    assert_eq!(intent.speaker, None);
    assert!(intent.peers.is_empty() && intent.originate.is_empty());
    assert!(intent.problems[0].to_string().starts_with("Node n1: there is no such object"));
}

#[test]
fn what_changes_most_often_changes_no_intent() {
    let mut d = desired([]);
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {nodeName: n1, containers: []}\n";
    for yaml in [namespace, pod] {
        let object = crate::source::manifest::parse(yaml).unwrap().objects.remove(0).object;
        assert!(!d.set(&object) && !d.remove(&object.key()), "{yaml}");
    }
    let node = Object::Node(node("n2", &["10.0.0.2"], &[]));
    assert!(d.set(&node) && d.remove(&node.key()));
}

#[test]
fn router_id_is_the_annotation_else_the_internal_ip_else_a_hash_that_is_never_zero() {
    let mut n = node("n1", &["fd00::1", "10.0.0.1"], &[]);
    assert_eq!(router_id_of(&n).to_string(), "10.0.0.1");
    n.annotations.router_id = RouterId::new("9.9.9.9".parse().unwrap());
    assert_eq!(router_id_of(&n).to_string(), "9.9.9.9");
    let v6_only = node("n1", &["fd00::1"], &[]);
    assert_eq!(router_id_of(&v6_only), router_id_of(&v6_only));
    assert_ne!(router_id_of(&v6_only), router_id_of(&node("n2", &["fd00::1"], &[])));
}

#[test]
fn the_mesh_is_there_only_while_no_peer_is_declared_and_one_side_is_passive() {
    let nodes = || {
        [
            Object::Node(node("n1", &["10.0.0.1", "fd00::1"], &["10.200.1.0/24"])),
            Object::Node(node("n2", &["10.0.0.2", "fd00::2"], &["10.200.2.0/24"])),
        ]
    };
    let here = desired(nodes()).bgp(&[]);
    let mut there = Desired::new("n2", "manx-system");
    for node in nodes() {
        there.set(&node);
    }
    let there = there.bgp(&[]);
    assert_eq!(here.peers.keys().collect::<Vec<_>>(), ["n2"]);
    assert_ne!(here.peers["n2"].config.passive, there.peers["n1"].config.passive);
    assert_eq!(here.peers["n2"].config.families, manx_bgp::types::Family::ALL);

    let mut declared = desired(nodes());
    declared.set(&peer("tor", "{peerIP: 10.0.0.254, asNumber: 65001}"));
    assert_eq!(declared.bgp(&[]).peers.keys().collect::<Vec<_>>(), ["tor"]);
}

/// What `name` has of this cluster: n1 and n2 reflect, n3 and n4 are plain nodes, n5 has an AS of its own.
fn by_label_on(name: &str, object: &str) -> BgpIntent {
    let mut d = Desired::new(name, "manx-system");
    for number in 1..=5 {
        let mut one = node(&format!("n{number}"), &[&format!("10.0.0.{number}")], &[]);
        if number <= 2 {
            one.labels.insert("role".to_owned(), "reflector".to_owned());
        }
        one.annotations.asn = (number == 5).then_some(Asn(65105));
        d.set(&Object::Node(one));
    }
    d.set(&peer("rr", object));
    d.bgp(&[])
}

#[test]
fn reflectors_are_found_by_label_from_both_ends() {
    let object = "{peerSelector: {matchLabels: {role: reflector}}, routeReflectorClient: true}";
    let names = |intent: &BgpIntent| intent.peers.keys().cloned().collect::<Vec<_>>();
    let (reflector, plain) = (by_label_on("n1", object), by_label_on("n3", object));
    assert_eq!(names(&reflector), ["rr@n2", "rr@n3", "rr@n4", "rr@n5"]);
    assert_eq!(names(&plain), ["rr@n1", "rr@n2"], "plain nodes have nothing to do with each other");
    let client = |intent: &BgpIntent, name: &str| intent.peers[name].config.route_reflector_client;
    assert!(client(&reflector, "rr@n3") && !client(&reflector, "rr@n2") && !client(&plain, "rr@n1"));
    let required = |intent: &BgpIntent, name: &str| intent.peers[name].info.required;
    assert!(required(&plain, "rr@n1") && !required(&reflector, "rr@n3") && !required(&reflector, "rr@n2"));
    assert_ne!(reflector.peers["rr@n3"].config.passive, plain.peers["rr@n1"].config.passive);
    assert_eq!(plain.peers["rr@n1"].config.remote_as, manx_bgp::speaker::RemoteAs::Asn(Asn(64512)));
    // n5 has an AS of its own: an external peer, and so no client.
    let foreign = &reflector.peers["rr@n5"].config;
    assert_eq!(foreign.remote_as, manx_bgp::speaker::RemoteAs::Asn(Asn(65105)));
    assert!(!foreign.route_reflector_client && foreign.ebgp_multihop.is_some());

    // Only one rack looks for them: from the others there is no session either.
    let narrow = "{nodeSelector: {matchLabels: {rack: b}}, peerSelector: {matchLabels: {role: reflector}}}";
    let plain = by_label_on("n3", narrow);
    assert!(plain.peers.is_empty());
    assert!(plain.objects[0].unmet.as_ref().unwrap().contains("rack=b"), "{:?}", plain.objects);
    let reflector = by_label_on("n1", narrow);
    assert!(reflector.peers.is_empty() && reflector.objects[0].unmet.is_none());
}

#[test]
fn all_nodes_by_label_are_a_mesh_in_which_nobody_is_a_client_or_waited_for() {
    let intent = by_label_on("n4", "{peerSelector: {}, routeReflectorClient: true, families: [ipv4]}");
    assert_eq!(intent.peers.len(), 4);
    assert!(intent.peers.values().all(|p| !p.config.route_reflector_client && !p.info.required));
    assert!(by_label_on("n4", "{peerSelector: {}, families: [ipv6]}").peers.is_empty(), "no address of it");
}

#[test]
fn a_peer_is_had_by_the_nodes_that_its_selector_picks() {
    let mut d = desired([Object::Node(node("n1", &["10.0.0.1"], &[]))]);
    d.set(&peer("a", "{peerIP: 10.0.0.254, asNumber: 65001, nodeSelector: {matchLabels: {rack: a}}}"));
    d.set(&peer("b", "{peerIP: 10.0.0.253, asNumber: 65001, nodeSelector: {matchLabels: {rack: b}}}"));
    assert_eq!(d.bgp(&[]).peers.keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_range_is_no_peer_by_itself_and_has_what_its_object_says() {
    let mut d = desired([Object::Node(node("n1", &["10.0.0.1"], &[]))]);
    d.set(&peer("rack", "{peerRange: 10.0.0.0/24, maxPeers: 3, remoteAS: External, holdTime: 30s}"));
    let intent = d.bgp(&[]);
    assert!(intent.peers.is_empty(), "and no mesh either, since there is a BGPPeer");
    let range = &intent.ranges["rack"].config;
    assert_eq!((range.range.to_string(), range.max_peers), ("10.0.0.0/24".to_owned(), 3));
    assert_eq!(range.template.hold_time.unwrap().seconds(), 30);
}

#[test]
fn default_gateways_are_peers_of_the_families_that_are_carried_but_for_those_that_have_a_name() {
    let mut d = desired([Object::Node(node("n1", &["10.0.0.1"], &[]))]);
    d.set(&peer("gw", "{autoDiscover: DefaultGateway, remoteAS: External, holdTime: 30s}"));
    let intent = d.bgp(&nets(&["10.0.0.1/24"]));
    assert_eq!((intent.peers.len(), &intent.absent[..]), (0, &["gw".to_owned()][..]));
    assert!(
        intent.problems[0]
            .to_string()
            .contains("BGPPeer gw: spec.autoDiscover: this node has no default route")
    );

    let gateway = |family, address: &str, interface: &str| Gateway {
        family,
        address: address.parse().unwrap(),
        interface: interface.to_owned(),
    };
    let (v4, v6) = (manx_bgp::types::Family::Ipv4Unicast, manx_bgp::types::Family::Ipv6Unicast);
    d.set_gateways([gateway(v4, "10.0.0.254", "eth0"), gateway(v6, "fe80::1", "eth1")].into());
    let intent = d.bgp(&nets(&["10.0.0.1/24"]));
    assert_eq!((intent.problems.len(), intent.absent.len()), (0, 0));
    assert_eq!(intent.peers.keys().collect::<Vec<_>>(), ["gw@10.0.0.254", "gw@eth1"]);
    let config = |name: &str| &intent.peers[name].config;
    assert_eq!(config("gw@10.0.0.254").source, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(config("gw@eth1").hold_time.unwrap().seconds(), 30);
    assert_eq!(config("gw@eth1").target, manx_bgp::speaker::PeerTarget::Interface("eth1".to_owned()));

    d.set(&peer("tor", "{peerIP: 10.0.0.254, asNumber: 65001}"));
    d.set(&peer(
        "gw",
        "{autoDiscover: DefaultGateway, remoteAS: External, families: [ipv4], required: false}",
    ));
    let intent = d.bgp(&[]);
    assert_eq!(
        intent.peers.keys().collect::<Vec<_>>(),
        ["tor"],
        "a peer of its own, and a family that is not carried"
    );
    assert_eq!((intent.problems.len(), intent.absent.len()), (1, 0));
}

#[test]
fn a_missing_secret_keeps_the_session_down_and_never_means_an_empty_password() {
    let mut d = desired([Object::Node(node("n1", &["10.0.0.1"], &[]))]);
    d.set(&peer(
        "tor",
        "{peerIP: 10.0.0.254, asNumber: 65001, password: {secretKeyRef: {name: tor, key: password}}}",
    ));
    let config = |d: &Desired| d.bgp(&[]).peers["tor"].config.clone();
    assert!(config(&d).admin_blocked.unwrap().starts_with("Secret manx-system/tor does not exist"));
    let secret = |namespace: &str, value: &str| {
        Object::Secret(Secret {
            namespace: namespace.to_owned(),
            name: "tor".to_owned(),
            data: BTreeMap::from([("password".to_owned(), value.as_bytes().to_vec())]),
        })
    };
    d.set(&secret("elsewhere", "stolen"));
    assert!(config(&d).admin_blocked.is_some(), "only the agent's own namespace counts");
    d.set(&secret("manx-system", ""));
    assert!(config(&d).admin_blocked.unwrap().contains("0 bytes"));
    d.set(&secret("manx-system", "s3cret"));
    assert_eq!(config(&d).admin_blocked, None);
    assert_eq!(config(&d).password.unwrap().0, b"s3cret");
}

#[test]
fn a_filter_that_does_not_exist_keeps_the_session_down() {
    let mut d = desired([Object::Node(node("n1", &["10.0.0.1"], &[]))]);
    d.set(&peer("tor", "{peerIP: 10.0.0.254, asNumber: 65001, importFilters: [racks]}"));
    assert_eq!(
        d.bgp(&[]).peers["tor"].config.admin_blocked.as_deref(),
        Some("BGPFilter racks does not exist")
    );
}

#[test]
fn a_node_with_an_address_in_each_rack_dials_from_the_one_on_the_peers_subnet() {
    let mut d = desired([Object::Node(node("n1", &["10.1.0.2", "10.2.0.2"], &[]))]);
    d.set(&peer("tor-b", "{peerIP: 10.2.0.1, asNumber: 65002}"));
    let local = nets(&["10.1.0.2/24", "10.2.0.2/24"]);
    assert_eq!(d.bgp(&local).peers["tor-b"].config.source, Some("10.2.0.2".parse().unwrap()));
    // An address that the kernel does not have cannot be bound.
    assert_eq!(d.bgp(&nets(&["192.0.2.1/24"])).peers["tor-b"].config.source, None);
}

#[test]
fn the_order_in_which_objects_arrive_does_not_matter() {
    let objects = [
        Object::Node(node("n1", &["10.0.0.1"], &["10.200.1.0/24"])),
        peer("tor", "{peerIP: 10.0.0.254, asNumber: 65001}"),
        peer("tor2", "{peerIP: 10.0.0.253, asNumber: 65001}"),
    ];
    let forward = desired(objects.clone()).bgp(&[]);
    assert_eq!(forward, desired(objects.into_iter().rev()).bgp(&[]));
}

#[test]
fn pod_addresses_need_a_pod_cidr_and_take_the_uplinks_mtu() {
    let mut d = desired([Object::Node(node("n1", &["10.0.0.1"], &[]))]);
    assert_eq!(d.node(Some(9000)), None);
    d.set(&Object::Node(node("n1", &["10.0.0.1"], &["10.200.1.0/24"])));
    assert_eq!(d.node(Some(9000)).unwrap().mtu, 9000);
    assert_eq!(d.node(None).unwrap().mtu, 1500);
    d.remove(&ObjectKey { kind: Kind::Node, namespace: String::new(), name: "n1".to_owned() });
    assert_eq!(d.node(Some(9000)), None);
}

fn network(yaml: &str) -> Object {
    let spec: crate::config::NetworkConfigurationSpec = serde_saphyr::from_str(yaml).unwrap();
    Object::NetworkConfiguration(crate::config::NetworkConfiguration::validate(spec).unwrap())
}

fn shown<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

#[test]
fn a_fixed_address_is_advertised_only_from_a_declared_pool_and_while_a_pod_holds_it() {
    let pools = network("addressPools: [{name: fixed, cidrs: [10.250.0.0/24, 'fd00:250::/64']}]");
    let mut d = desired([Object::Node(node("n1", &["10.0.0.1"], &["10.200.1.0/24"])), pools]);
    assert_eq!(d.node(None).unwrap().pools[0].name, "fixed");
    let held = ["10.200.1.7", "10.250.0.5", "fd00:250::5", "192.0.2.1"];
    d.set_attached(held.iter().map(|ip| ip.parse().unwrap()).collect());
    assert_eq!(shown(d.bgp(&[]).originate), ["10.200.1.0/24", "10.250.0.5/32", "fd00:250::5/128"]);
    d.set_attached(BTreeSet::new());
    assert_eq!(shown(d.bgp(&[]).originate), ["10.200.1.0/24"]);
}

#[test]
fn egress_nat_is_off_until_asked_for_and_never_meets_pods_or_nodes() {
    let nodes = || {
        let mut far = node("n2", &["10.0.0.2", "fd00::2"], &["10.200.2.0/24", "fd00:200:2::/64"]);
        far.external_ips = vec!["203.0.113.2".parse().unwrap()];
        [Object::Node(node("n1", &["10.0.0.1"], &["10.200.1.0/24", "fd00:200:1::/64"])), Object::Node(far)]
    };
    assert_eq!(desired(nodes()).egress_nat(), None);
    let pools = "addressPools: [{name: fixed, cidrs: [10.250.0.0/24]}]\nclusterCIDRs: [10.200.0.0/16]\n";
    let on = format!("{pools}egressNat: {{mode: Masquerade, excludeCIDRs: [192.168.0.0/16]}}");
    let mut d = desired(nodes().into_iter().chain([network(&on)]));
    d.set_attached(["10.200.1.7", "10.250.0.5"].iter().map(|ip| ip.parse().unwrap()).collect());
    let intent = d.egress_nat().unwrap();
    assert_eq!(shown(&intent.sources), ["10.200.1.0/24", "10.250.0.5/32", "fd00:200:1::/64"]);
    let inside = shown(&intent.inside);
    for prefix in [
        "10.200.0.0/16",
        "10.200.2.0/24",
        "10.0.0.1/32",
        "10.0.0.2/32",
        "203.0.113.2/32",
        "10.250.0.0/24",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "fd00:200:2::/64",
        "fd00::2/128",
        "fe80::/10",
    ] {
        assert!(inside.iter().any(|p| p == prefix), "{prefix}: {inside:?}");
    }
}
