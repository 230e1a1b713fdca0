//! What a manifest's text means: objects, faults with file positions, notes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use manx_agent::source::manifest::{Note, parse};
use manx_agent::source::{Kind, Object};
use rstest::rstest;

fn objects(text: &str) -> Vec<Object> {
    parse(text).unwrap().objects.iter().map(|f| (*f.object).clone()).collect()
}

fn one(text: &str) -> Object {
    let mut all = objects(text);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn a_node_as_kubectl_prints_it() {
    let Object::Node(node) = one(r#"
apiVersion: v1
kind: Node
metadata:
  annotations:
    manx.dev/asn: "65011"
    volumes.kubernetes.io/controller-managed-attach-detach: "true"
  creationTimestamp: "2025-01-01T00:00:00Z"
  labels: {rack: a, kubernetes.io/hostname: node-1}
  name: node-1
  resourceVersion: "5"
  uid: 0a1b
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs: [10.244.1.0/24, "fd00:244:1::/64"]
  providerID: kind://docker
  taints: [{effect: NoSchedule, key: a}]
status:
  addresses:
  - {address: 10.1.0.11, type: InternalIP}
  - {address: "fd00:1::11", type: InternalIP}
  - {address: 192.0.2.1, type: ExternalIP}
  - {address: node-1, type: Hostname}
  allocatable: {cpu: "8"}
"#)
    else {
        panic!("a node")
    };
    assert_eq!(node.name, "node-1");
    assert_eq!(node.labels["rack"], "a");
    assert_eq!(node.annotations.asn.unwrap().0, 65011);
    assert_eq!(
        node.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.244.1.0/24", "fd00:244:1::/64"]
    );
    assert_eq!(node.internal_ips.len(), 2);
    assert_eq!(node.external_ips, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    assert!(!node.unschedulable);
}

#[test]
fn the_old_single_pod_cidr_is_read_too() {
    let Object::Node(node) =
        one("{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {podCIDR: 10.244.1.7/24}}")
    else {
        panic!("a node")
    };
    assert_eq!(node.pod_cidrs[0].to_string(), "10.244.1.0/24");
}

#[test]
fn several_documents_lists_and_typed_lists() {
    let found = parse(
        r#"
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: a}
- apiVersion: v1
  kind: List
  items:
  - {apiVersion: v1, kind: Namespace, metadata: {name: b}}
metadata: {resourceVersion: ""}
---
apiVersion: v1
kind: PodList
items:
- metadata: {name: p, namespace: a, uid: u1}
  spec: {nodeName: n1, containers: [{name: c, image: i, ports: [{name: web, containerPort: 80}]}]}
  status: {phase: Running, podIPs: [{ip: 10.244.1.2}, {ip: "fd00::2"}]}
---
{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
 "metadata": {"name": "deny", "namespace": "a"}, "spec": {"podSelector": {}}}
"#,
    )
    .unwrap();
    let keys: Vec<_> = found.objects.iter().map(|f| (f.key.to_string(), f.line)).collect();
    let keys: Vec<_> = keys.iter().map(|(k, l)| (k.as_str(), *l)).collect();
    assert_eq!(
        keys,
        [("Namespace a", 5), ("Namespace b", 11), ("Pod a/p", 17), ("NetworkPolicy a/deny", 21)]
    );
    assert_eq!(found.notes, []);
}

#[test]
fn a_pod_as_people_write_it() {
    let Object::Pod(pod) = one(r#"
apiVersion: v1
kind: Pod
metadata: {name: p, creationTimestamp: null}
spec:
  initContainers:
  - {name: side, image: i, restartPolicy: Always, ports: [{name: admin, containerPort: 9000}]}
  containers:
  - name: c
    image: i
    command: ["/bin/sh", "-c", "sleep 1"]
    resources: {limits: {cpu: 1, memory: 64Mi}, requests: {cpu: 0.5}}
    livenessProbe: {httpGet: {path: /, port: http}, periodSeconds: 5}
    ports: [{name: http, containerPort: 80}]
    env: [{name: A, value: "1"}]
    volumeMounts: [{name: v, mountPath: /v}]
  volumes:
  - {name: v, configMap: {name: x, defaultMode: 0644}}
  tolerations: [{operator: Exists}]
"#)
    else {
        panic!("a pod")
    };
    assert_eq!(
        pod.ports.iter().map(|p| (&*p.name, p.number)).collect::<Vec<_>>(),
        [("admin", 9000), ("http", 80)]
    );
    assert!(pod.addresses.is_empty() && !pod.finished);
}

#[test]
fn marks_and_line_ends_of_other_systems_are_no_obstacle() {
    let text = "\u{feff}apiVersion: v1\r\nkind: Namespace\r\nmetadata:\r\n  name: a\r\n---\r\napiVersion: v1\r\nkind: Pod\r\n";
    let faults = parse(text).unwrap_err();
    assert_eq!((faults.len(), faults[0].line), (1, Some(6)));
    assert_eq!(objects(&text[..text.len() - "---\r\napiVersion: v1\r\nkind: Pod\r\n".len()]).len(), 1);
}

#[test]
fn objects_without_a_namespace_are_in_the_default_one() {
    for kind in [Kind::Pod, Kind::Secret, Kind::Service] {
        let text = format!("{{apiVersion: v1, kind: {}, metadata: {{name: x}}}}", kind.as_str());
        assert_eq!(one(&text).key().namespace, "default");
    }
}

#[test]
fn kinds_that_do_not_concern_us_are_passed_over_in_silence() {
    let found = parse(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}\n---\n\
         {apiVersion: v1, kind: ConfigMap, data: {x: y}}\n---\n\
         {apiVersion: manx.dev/v1alpha1, kind: BGPNodeState, metadata: {name: n}, status: {x: 1}}\n",
    )
    .unwrap();
    assert_eq!((found.objects.len(), found.notes.len()), (0, 0));
}

#[rstest]
#[case("projectcalico.org/v3", "BGPPeer")]
#[case("crd.projectcalico.org/v1", "BGPPeer")]
#[case("projectcalico.org/v3", "BGPConfiguration")]
#[case("crd.projectcalico.org/v1", "BGPFilter")]
fn what_calico_says_of_bgp_is_an_object(#[case] api_version: &str, #[case] kind: &str) {
    let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{}}\n");
    assert_eq!(one(&text).key().name, "x");
}

#[rstest]
#[case("manx.dev/v1alpha1", "BGPPear", "not known to this version")]
#[case("manx.dev/v1", "BGPPeer", "not known to this version")]
#[case("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", "does not enforce")]
#[case("projectcalico.org/v3", "StagedNetworkPolicy", "does not enforce")]
#[case("cilium.io/v2", "CiliumNetworkPolicy", "does not enforce")]
fn what_would_concern_us_and_is_not_known_is_told(
    #[case] api_version: &str,
    #[case] kind: &str,
    #[case] reason: &str,
) {
    let found =
        parse(&format!("\napiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x}}\n")).unwrap();
    assert_eq!(found.objects, []);
    assert_eq!(found.notes[0].line, Some(2));
    assert_eq!(found.notes[0].object, Some(format!("{kind} x")));
    assert!(found.notes[0].reason.contains(reason), "{}", found.notes[0].reason);
}

const PEER: &str = "apiVersion: manx.dev/v1alpha1\nkind: BGPPeer\nmetadata: {name: tor-a}\nspec:\n";

#[rstest]
#[case("a: [1\n", 1, None, "not YAML")]
#[case("just text\n", 1, None, "not a Kubernetes object")]
#[case("- a\n- b\n", 1, None, "not a Kubernetes object")]
#[case("apiVersion: v1\nmetadata: {name: x}\n", 1, None, "apiVersion and kind are missing")]
#[case(
    "\n\napiVersion: v1\nkind: Pod\nmetadata: {namespace: a}\n",
    5,
    Some("Pod a/without a name"),
    "metadata.name: missing"
)]
#[case("apiVersion: v2\nkind: Pod\nmetadata: {name: x}\n", 1, Some("Pod default/x"), "v2: Pod is read as v1")]
#[case(
    "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: x}\n",
    1,
    Some("NetworkPolicy default/x"),
    "networking.k8s.io/v1"
)]
#[case(
    "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  hostNetwork: perhaps\n",
    5,
    Some("Pod default/x"),
    "spec.hostNetwork: invalid type"
)]
#[case(
    "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nstatus:\n  podIPs:\n  - ip: 10.0.0.1\n  - ip: 10.0.0\n",
    5,
    Some("Pod default/x"),
    "not an IP address"
)]
#[case(
    "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: x\n  labels:\n    version: 1\n",
    6,
    Some("Namespace x"),
    "metadata.labels.version"
)]
#[case(
    "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nspec:\n  podCIDRs:\n  - 10.0.0.0/24\n  - 10.0.0.0\n",
    7,
    Some("Node n"),
    "spec.podCIDRs[1]"
)]
#[case(
    "apiVersion: v1\nkind: Node\nmetadata:\n  name: n\n  annotations:\n    manx.dev/asn: \"0\"\n",
    6,
    Some("Node n"),
    "reserved"
)]
#[case("apiVersion: v1\nkind: List\nitems: {a: b}\n", 1, None, "must be a list")]
#[case("apiVersion: v1\nkind: List\nitems:\n- 5\n", 4, None, "not a Kubernetes object")]
#[case(
    "apiVersion: manx.dev/v1alpha1\nkind: BGPConfiguration\nmetadata:\n  name: other\n",
    4,
    Some("BGPConfiguration other"),
    "its name is default"
)]
#[case(
    "apiVersion: manx.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {name: default}\nspce: {}\n",
    4,
    Some("BGPConfiguration default"),
    "unknown field `spce`"
)]
fn a_fault_is_told_with_line_object_and_reason(
    #[case] text: &str,
    #[case] line: u32,
    #[case] object: Option<&str>,
    #[case] reason: &str,
) {
    let faults = parse(text).unwrap_err();
    assert_eq!((faults[0].line, faults[0].object.as_deref()), (Some(line), object), "{faults:?}");
    assert!(faults[0].reason.contains(reason), "{}", faults[0].reason);
}

#[rstest]
#[case(
    "  peerIP: 10.1.0.1\n  asNumber: 65001\n  holdtime: 90s\n",
    7,
    "spec.holdtime: unknown field `holdtime`"
)]
#[case(
    "  peerIP: 10.1.0.1\n  asNumber: 65001\n  holdTime: 2s\n",
    7,
    "spec.holdTime: 2s: must be 0 (no hold timer)"
)]
#[case(
    "  asNumber: 65001\n",
    4,
    "exactly one of peerIP, interface, autoDiscover, peerRange and peerSelector"
)]
#[case(
    "  peerIP: 10.1.0.1\n  asNumber: 65001\n  families:\n  - ipv4\n  - ipx\n",
    9,
    "spec.families[1]: ipx: must be ipv4 or ipv6"
)]
#[case(
    "  peerIP: 10.1.0.1\n  asNumber: 65001\n  password:\n    secretKeyRef: {name: x}\n",
    8,
    "missing field `key`"
)]
#[case(
    "  peerIP: 10.1.0.1\n  asNumber: 65001\n  passive: \"yes\"\n",
    7,
    "spec.passive: invalid type: string \"yes\", expected a boolean"
)]
fn a_peer_is_checked_to_the_line(#[case] spec: &str, #[case] line: u32, #[case] reason: &str) {
    let faults = parse(&format!("{PEER}{spec}")).unwrap_err();
    assert_eq!(faults.len(), 1);
    assert_eq!(
        (faults[0].line, faults[0].object.as_deref()),
        (Some(line), Some("BGPPeer tor-a")),
        "{faults:?}"
    );
    assert!(faults[0].reason.contains(reason), "{}", faults[0].reason);
}

#[test]
fn all_faults_of_a_file_are_told_at_once() {
    let text = format!(
        "{PEER}  peerIP: nowhere\n  asNumber: 0\n---\n{PEER}  peerIP: 10.0.0.1\n  asNumber: 65001\n---\napiVersion: v1\nkind: Pod\n"
    );
    let lines: Vec<_> = parse(&text).unwrap_err().iter().map(|f| f.line.unwrap()).collect();
    assert_eq!(lines, [5, 6, 15]);
}

#[test]
fn a_policy_that_cannot_be_understood_stays_and_closes() {
    let found = parse(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec:\n  \
         podSelector: {}\n  ingress:\n  - ports:\n    - {port: 80, endPort: 79}\n  - {}\n",
    )
    .unwrap();
    let Object::Policy(policy) = &*found.objects[0].object else { panic!("a policy") };
    let refused: Vec<_> = policy.ingress.as_ref().unwrap().iter().map(|r| r.refused).collect();
    assert_eq!(refused, [true, false]);
    let Note { line, object, reason } = &found.notes[0];
    assert_eq!((*line, object.as_deref()), (Some(8), Some("NetworkPolicy shop/web")));
    assert!(reason.contains("spec.ingress[0].ports[0]"), "{reason}");
}

#[rstest]
#[case("  podSelector: {}\n  ingress:\n  - ports:\n    - prot: 80\n  - {}\n", 8, [true, false])]
#[case("  podSelector: {}\n  ingress:\n  - form: []\n  - {}\n", 7, [true, false])]
#[case("  podSelector: {matchLabel: {a: b}}\n  ingress: [{}, {}]\n", 5, [true, true])]
#[case("  podSelector: {}\n  egres: [{}]\n  ingress: [{}, {}]\n", 6, [true, true])]
fn a_misspelt_field_of_a_policy_opens_nothing(
    #[case] spec: &str,
    #[case] line: u32,
    #[case] refused: [bool; 2],
) {
    let found = parse(&format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web, namespace: shop}}\nspec:\n{spec}"
    ))
    .unwrap();
    let Object::Policy(policy) = &*found.objects[0].object else { panic!("a policy") };
    let got: Vec<_> = policy.ingress.as_ref().unwrap().iter().map(|r| r.refused).collect();
    assert_eq!(got, refused);
    assert_eq!(found.notes.len(), 1);
    assert_eq!(found.notes[0].line, Some(line));
    assert!(found.notes[0].reason.contains("no such field"), "{}", found.notes[0].reason);
    assert_eq!(policy.problems.len(), 1);
}

#[rstest]
#[case(
    "policy.networking.k8s.io/v1alpha2",
    "ClusterNetworkPolicy",
    "{tier: Admin, priority: 1, subject: {namespaces: {}}}",
    Kind::ClusterNetworkPolicy
)]
#[case("projectcalico.org/v3", "NetworkPolicy", "{order: 10, selector: all()}", Kind::CalicoNetworkPolicy)]
#[case(
    "crd.projectcalico.org/v1",
    "GlobalNetworkPolicy",
    "{order: 10.5, performanceHints: [AssumeNeededOnEveryNode]}",
    Kind::CalicoGlobalNetworkPolicy
)]
#[case("projectcalico.org/v3", "NetworkSet", "{nets: [10.0.0.0/8]}", Kind::NetworkSet)]
#[case("projectcalico.org/v3", "GlobalNetworkSet", "{nets: [10.0.0.1]}", Kind::GlobalNetworkSet)]
#[case("v1", "ServiceAccount", "{}", Kind::ServiceAccount)]
fn policies_of_every_kind_are_read_and_mean_something_to_the_engine(
    #[case] api_version: &str,
    #[case] kind: &str,
    #[case] spec: &str,
    #[case] expected: Kind,
) {
    let spec = if spec == "{}" { String::new() } else { format!("spec: {spec}\n") };
    let found =
        parse(&format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x}}\n{spec}")).unwrap();
    assert_eq!(found.notes, []);
    let key = &found.objects[0].key;
    assert_eq!((key.kind, key.name.as_str()), (expected, "x"));
    assert_eq!(key.namespace, if expected.namespaced() { "default" } else { "" });
    assert!(manx_agent::desired::policy::update(&found.objects[0].object).is_some());
    assert!(manx_agent::desired::policy::removal(key).is_some());
}

#[rstest]
#[case::cluster(
    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: x}\nspec:\n  tier: Admin\n  \
     priority: 1\n  subject: {namespaces: {}}\n  ingress:\n  - action: Accept\n    from: [{namespaces: {}}]\n    \
     protocol: [{tcp: {}}]\n",
    11
)]
#[case::calico(
    "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: x}\nspec:\n  selector: all()\n  ingress:\n  \
     - action: Allow\n    sources: {nets: [10.0.0.0/8]}\n",
    8
)]
fn a_misspelt_field_of_another_kind_of_policy_opens_nothing(#[case] text: &str, #[case] line: u32) {
    let found = parse(text).unwrap();
    let Object::Policy(policy) = &*found.objects[0].object else { panic!("a policy") };
    assert!(policy.ingress.as_ref().unwrap()[0].refused);
    assert_eq!(found.notes[0].line, Some(line), "{:?}", found.notes);
}

#[test]
fn a_misspelt_section_isolates_both_directions() {
    let found = parse(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\nspec:\n  podSelector: {}\n  egres: []\n",
    )
    .unwrap();
    let Object::Policy(policy) = &*found.objects[0].object else { panic!("a policy") };
    assert_eq!((policy.ingress.as_deref(), policy.egress.as_deref()), (Some(&[][..]), Some(&[][..])));
}

/// Every field of our own kinds, as the documentation shows them.
const EVERY_FIELD: &str = r#"
apiVersion: manx.dev/v1alpha1
kind: BGPConfiguration            # one, named default
spec: {asNumber: 64512, nodeToNodeMesh: Auto, listenPort: 179, multipath: {maxPaths: 16, asPathRelax: true},
       gracefulRestart: {enabled: true, restartTime: 120s}, drain: {mode: GracefulShutdown, delay: 30s},
       serviceAdvertisement: {clusterIPs: [], externalIPs: [], loadBalancerIPs: []}}      # CIDRs
---
apiVersion: manx.dev/v1alpha1
kind: BGPPeer
metadata: {name: tor-a}
spec:
  nodeSelector: {matchLabels: {rack: a}}
  peerIP: 10.1.0.1
  port: 179
  asNumber: 65001
  localASNumber: 65101
  holdTime: 90s
  keepaliveTime: 30s
  connectRetry: 5s
  passive: false
  sourceAddress: UseNodeIP
  ebgpMultihop: 2
  ttlSecurity: false
  families: [ipv4, ipv6]
  addPath: {receive: false, send: false}
  extendedNextHop: false
  nextHop: Self
  allowAsIn: 0
  asOverride: false
  routeReflectorClient: false
  password: {secretKeyRef: {name: tor-a, key: password}}
  maxPrefixes: {limit: 10000, action: Warn}
  bfd: {minTx: 100ms, minRx: 100ms, multiplier: 3}
  importFilters: [racks]
  exportFilters: []
  required: true
  shutdown: {enabled: false, message: ""}
---
apiVersion: manx.dev/v1alpha1
kind: BGPFilter
metadata: {name: racks}
spec:
  ipv4:
  - {name: only-pods, cidr: 10.200.0.0/16, ge: 24, le: 28, action: Accept, set: {localPref: 200, addCommunities: ["65001:7"]}}
  - {name: rest, action: Reject}
  ipv6: []
---
apiVersion: manx.dev/v1alpha1
kind: NetworkConfiguration        # one, named default
metadata: {name: default}
spec: {clusterCIDRs: [], egressNat: {mode: "Off", excludeCIDRs: []}, addressPools: [{name: fixed, cidrs: [10.250.0.0/24]}], mtu: 0}
"#;

#[test]
fn every_documented_field_is_read() {
    let found = parse(EVERY_FIELD).unwrap();
    let keys: Vec<_> = found.objects.iter().map(|f| f.key.to_string()).collect();
    assert_eq!(
        keys,
        ["BGPConfiguration default", "BGPPeer tor-a", "BGPFilter racks", "NetworkConfiguration default"]
    );
    let told: Vec<_> = found.notes.iter().map(|n| n.reason.split(':').next().unwrap()).collect();
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn a_secret_is_decoded_and_never_shown() {
    let found = parse(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: tor-a, namespace: manx-system}\ndata: {password: aHVudGVyMg==}\nstringData: {other: plain}\n",
    )
    .unwrap();
    let Object::Secret(secret) = &*found.objects[0].object else { panic!("a secret") };
    assert_eq!(secret.data["password"], b"hunter2");
    assert_eq!(secret.data["other"], b"plain");
    let shown = format!("{found:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("plain") && shown.contains("password"), "{shown}");
}

#[rstest]
#[case("data: {password: 31337}")]
#[case("data: {password: \"hunter2 is no base64\"}")]
#[case("stringData: {password: 31337}")]
#[case("data: hunter2")]
fn a_fault_in_a_secret_does_not_tell_its_value(#[case] data: &str) {
    let faults =
        parse(&format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: tor-a}}\n{data}\n")).unwrap_err();
    assert_eq!(faults[0].line, Some(4));
    assert!(
        !faults[0].reason.contains("hunter2") && !faults[0].reason.contains("31337"),
        "{}",
        faults[0].reason
    );
}

#[test]
fn services_and_their_endpoints() {
    let all = objects(
        r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.5
  clusterIPs: [10.96.0.5, "fd00:96::5"]
  externalIPs: [192.0.2.9]
  externalTrafficPolicy: Local
status: {loadBalancer: {ingress: [{ip: 198.51.100.1}, {hostname: lb.example}]}}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.244.1.2], nodeName: n1, conditions: {ready: true, serving: true, terminating: false}}
- {addresses: [10.244.2.2], nodeName: n2, conditions: {ready: false}}
"#,
    );
    let Object::Service(service) = &all[0] else { panic!("a service") };
    assert_eq!(
        (service.cluster_ips.len(), service.external_ips.len(), service.load_balancer_ips.len()),
        (2, 1, 1)
    );
    assert!(service.external_local && !service.internal_local);
    let Object::Service(headless) = &all[1] else { panic!("a service") };
    assert!(headless.cluster_ips.is_empty());
    let Object::EndpointSlice(slice) = &all[2] else { panic!("a slice") };
    assert_eq!(slice.service.as_deref(), Some("web"));
    assert_eq!(
        slice.endpoints.iter().map(|e| (e.ready, e.serving)).collect::<Vec<_>>(),
        [(true, true), (false, false)]
    );
}
