//! Pods, policies, and who reaches whom.

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use manx_policy::Engine;
use manx_policy::k8s::{self, network_policy};
use manx_policy::model::{
    Addresses, Endpoint, EndpointId, Labels, NamedPort, Namespace, Payload, Pod, PodId, PodRef, Protocol,
    Update,
};
use manx_policy::state::claimed_pod;
use manx_policy::verdict::{End, Flow, Place};

use crate::agent::{Backend, converge, engine};
use crate::lab::{Host, Lab, NODE_ADDRESSES, PORTS};

const NODE: &str = "node-1";

/// Namespace, name, labels.
type PodSpec = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const PODS: [PodSpec; 4] = [
    ("default", "web", &[("app", "web")]),
    ("default", "client", &[("app", "client")]),
    ("other", "client", &[("app", "client")]),
    ("other", "db", &[("app", "db"), ("tier", "back")]),
];

pub(crate) struct Rack {
    pub(crate) lab: Lab,
    pub(crate) pods: Vec<Host>,
    pub(crate) stranger: Host,
    pub(crate) engine: Engine,
    pub(crate) backend: Backend,
}

pub(crate) fn addresses(i: usize) -> [IpAddr; 2] {
    [format!("10.0.0.{}", 10 + i).parse().unwrap(), format!("fd00::{:x}", 16 + i).parse().unwrap()]
}

impl Rack {
    pub(crate) fn new(backend: Backend) -> Self {
        let lab = Lab::new();
        let stranger = lab.join("eth0", ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()]);
        let mut engine = engine();
        for (name, team) in [("default", "a"), ("other", "b")] {
            engine.apply(Update::SetNamespace(namespace(name, team)));
        }
        let mut pods = Vec::new();
        for (i, (namespace, name, labels)) in PODS.iter().enumerate() {
            let host = lab.join(&format!("manx{i:011x}"), addresses(i));
            engine.apply(Update::SetPod(pod(i, namespace, name, labels)));
            engine.apply(Update::SetEndpoint(endpoint(i, namespace, name, &host)));
            pods.push(host);
        }
        engine.set_in_sync(true);
        Rack { lab, pods, stranger, engine, backend }
    }

    pub(crate) fn converge(&mut self) {
        converge(&mut self.engine, &self.lab.node, self.backend);
    }

    /// Who stands at an address, as the oracle wants to know it.
    fn end(&self, ip: IpAddr) -> End {
        let endpoint = self.engine.state().endpoints().find(|endpoint| endpoint.addresses.contains(&ip));
        let place = match endpoint {
            Some(endpoint) => Place::Pod(claimed_pod(endpoint), Some(NODE.into())),
            None if NODE_ADDRESSES.contains(&ip.to_string().as_str()) => Place::Node(NODE.into()),
            None => Place::Elsewhere,
        };
        End { ip, place }
    }

    /// Probes every pair on every port and compares with the oracle.
    pub(crate) fn assert_agreement(&self, scenario: &str) {
        let node: [IpAddr; 2] = NODE_ADDRESSES.map(|address| address.parse().unwrap());
        let mut hosts: Vec<_> = self.pods.iter().map(|host| (&host.netns, host.addresses)).collect();
        hosts.push((&self.stranger.netns, self.stranger.addresses));
        hosts.push((&self.lab.node, node));
        let mut probes = Vec::new();
        for (i, (from, sources)) in hosts.iter().enumerate() {
            for (j, (_, destinations)) in hosts.iter().enumerate() {
                // To oneself a packet never leaves; stranger and node are nobody's pods.
                if i == j || (i >= self.pods.len() && j >= self.pods.len()) {
                    continue;
                }
                for (source, destination) in sources.iter().zip(destinations) {
                    for (protocol, port) in
                        PORTS.into_iter().flat_map(|p| [(Protocol::Tcp, p), (Protocol::Udp, p)])
                    {
                        let flow = Flow {
                            source: self.end(*source),
                            destination: self.end(*destination),
                            payload: Payload::opening(protocol, port),
                        };
                        let ask = move || from.reaches(*destination, protocol, port);
                        probes.push((flow, ask(), ask));
                    }
                }
            }
        }
        let mut wrong = Vec::new();
        for (flow, probe, again) in probes {
            let mut reached = probe.join().unwrap();
            let verdict = self.engine.verdict(&flow);
            // Hundreds ask at once: an answer may be late. What is closed stays so.
            reached |= verdict.allowed && !reached && (0..5).any(|_| again().join().unwrap());
            if reached != verdict.allowed {
                wrong.push(format!("{flow:?}\n  reached: {reached}, oracle: {verdict:?}"));
            }
        }
        assert!(wrong.is_empty(), "{scenario}: {} wrong\n{}", wrong.len(), wrong.join("\n"));
    }
}

pub(crate) fn namespace(name: &str, team: &str) -> Namespace {
    let labels = [("kubernetes.io/metadata.name", name), ("team", team)];
    Namespace { name: name.into(), labels: Labels::from_iter(labels) }
}

pub(crate) fn pod(i: usize, namespace: &str, name: &str, labels: &[(&str, &str)]) -> Pod {
    // One name, different numbers on different pods.
    let number = if i.is_multiple_of(2) { 8080 } else { 80 };
    Pod {
        id: PodId::new(namespace, name),
        uid: format!("uid-{i}").into(),
        mirror_hash: None,
        labels: Labels::from_iter(labels.iter().copied()),
        node: Some(NODE.into()),
        host_network: false,
        finished: false,
        terminating: false,
        addresses: Addresses::new(),
        ports: [NamedPort { name: "http".into(), protocol: Protocol::Tcp, number }].into(),
    }
}

pub(crate) fn endpoint(i: usize, namespace: &str, name: &str, host: &Host) -> Endpoint {
    Endpoint {
        id: EndpointId { container_id: format!("c{i}"), ifname: "eth0".into() },
        interface: host.interface.clone(),
        pod: Some(PodRef {
            namespace: Some(namespace.into()),
            name: name.into(),
            uid: Some(format!("uid-{i}")),
        }),
        addresses: Addresses::from_slice(&host.addresses),
    }
}

pub(crate) fn policy(namespace: &str, name: &str, spec: &str) -> Update {
    let spec = serde_saphyr::from_str(spec).unwrap_or_else(|error| panic!("{error}\n{spec}"));
    let mut object = NetworkPolicy { spec: Some(spec), ..NetworkPolicy::default() };
    object.metadata.namespace = Some(namespace.into());
    object.metadata.name = Some(name.into());
    Update::SetPolicy(network_policy(&object).unwrap())
}

/// A ClusterNetworkPolicy where the place of its namespace says so, one of Calico's that are global, or a NetworkPolicy.
fn of_any_kind(place: &str, name: &str, spec: &str) -> Update {
    let text = format!("{{metadata: {{name: {name}}}, spec: {spec}}}");
    let policy = match place {
        "cluster" => k8s::cluster_network_policy(&serde_saphyr::from_str(&text).unwrap()),
        "calico" => k8s::calico_policy(&serde_saphyr::from_str(&text).unwrap(), false),
        namespace => return policy(namespace, name, spec),
    };
    let policy = policy.unwrap();
    assert_eq!(policy.problems, [], "{spec}");
    Update::SetPolicy(policy)
}

/// Scenario, and its policies: namespace (or kind), name, spec.
type Scenario = (&'static str, &'static [(&'static str, &'static str, &'static str)]);

const SCENARIOS: &[Scenario] = &[
    ("no policy", &[]),
    ("default deny ingress", &[("default", "deny", "{podSelector: {}}")]),
    (
        "default deny both ways, and dns-like egress by port",
        &[
            ("default", "deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"),
            (
                "default",
                "dns",
                "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 5353, protocol: UDP}]}]}",
            ),
        ],
    ),
    (
        "by pod label, by namespace label, by both at once",
        &[
            (
                "default",
                "web",
                "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]}",
            ),
            (
                "default",
                "client",
                "{podSelector: {matchLabels: {app: client}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}",
            ),
            (
                "other",
                "db",
                "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: web}}}]}]}",
            ),
        ],
    ),
    (
        "named ports resolve on the destination pod, in both directions",
        &[
            ("default", "in", "{podSelector: {}, ingress: [{ports: [{port: http}]}]}"),
            (
                "other",
                "out",
                "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: http}]}]}",
            ),
        ],
    ),
    (
        "blocks with holes, a /0, port ranges",
        &[
            (
                "default",
                "in",
                "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.12/32]}}, {ipBlock: {cidr: 'fd00::/64', except: ['fd00::13/128']}}], ports: [{port: 80, endPort: 5353}]}]}",
            ),
            (
                "other",
                "out",
                "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/24]}}]}]}",
            ),
        ],
    ),
    (
        "many blocks and many ports",
        &[(
            "default",
            "in",
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.12/32}}, {ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: 198.51.100.0/24}}], ports: [{port: 1}, {port: 3}, {port: 5}, {port: 7}, {port: 9}, {port: 11}, {port: 13}, {port: 15}, {port: 17}, {port: 19}, {port: 21}, {port: 23}, {port: 25}, {port: 27, endPort: 30}, {port: 80}, {port: 8080}, {port: 5353, protocol: UDP}]}]}",
        )],
    ),
    (
        "selected by SCTP rules only, still isolated for TCP and UDP",
        &[("default", "sctp", "{podSelector: {}, ingress: [{ports: [{port: 80, protocol: SCTP}]}]}")],
    ),
    (
        "egress and ingress are both asked on one node",
        &[
            (
                "default",
                "out",
                "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}",
            ),
            (
                "default",
                "in",
                "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 8080}]}]}",
            ),
        ],
    ),
    (
        "tiers around a network policy, with every action",
        &[
            (
                "cluster",
                "admin",
                "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [\
                  {action: Accept, from: [{pods: {podSelector: {matchLabels: {tier: back}}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}, \
                  {action: Pass, from: [{namespaces: {matchLabels: {team: a}}}]}, \
                  {action: Deny, from: [{namespaces: {}}], protocols: [{destinationNamedPort: http}, {udp: {}}]}]}",
            ),
            (
                "default",
                "web",
                "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}]}]}",
            ),
            (
                "cluster",
                "base",
                "{tier: Baseline, priority: 1, subject: {pods: {podSelector: {matchLabels: {app: client}}}}, egress: [\
                  {action: Accept, to: [{networks: [10.0.0.10/32]}]}, {action: Deny, to: [{networks: [10.0.0.0/8, '::/0']}]}]}",
            ),
        ],
    ),
    (
        "Calico's policies before and after a network policy",
        &[
            (
                "calico",
                "early",
                "{order: 10, selector: has(app), types: [Ingress, Egress], ingress: [\
                  {action: Deny, protocol: UDP, source: {selector: \"app == 'db' || tier == 'back'\"}, destination: {notPorts: ['5000:6000']}}, \
                  {action: Log, protocol: TCP}, {action: Pass, protocol: TCP, destination: {ports: [5353]}}, \
                  {action: Allow, protocol: ICMP, notICMP: {type: 3, code: 1}}, {action: Allow, protocol: 112, notProtocol: 6}], \
                  egress: [{action: Allow, ipVersion: 4, destination: {notNets: [192.0.2.0/24], notSelector: app == 'db'}}, \
                  {action: Allow, ipVersion: 6, protocol: TCP, source: {ports: ['1024:65535'], notPorts: [9]}}]}",
            ),
            ("default", "web", "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}"),
            (
                "calico",
                "late",
                "{selector: app == 'web' || app == 'db', ingress: [{action: Allow, source: {nets: [10.0.0.0/24]}}]}",
            ),
        ],
    ),
    (
        "a policy that cannot be understood isolates and opens nothing",
        &[(
            "default",
            "bad",
            "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 79}]}, {ports: [{port: 8080}]}]}",
        )],
    ),
];

#[test]
fn kernel_agrees_with_the_oracle_in_every_scenario_on_nft() {
    let mut rack = Rack::new(Backend::Nft);
    for scenario in SCENARIOS {
        play(&mut rack, scenario);
    }
}

#[test]
fn kernel_agrees_with_the_oracle_in_a_sample_of_scenarios_on_legacy() {
    let mut rack = Rack::new(Backend::Legacy);
    for scenario in SCENARIOS.iter().skip(3).take(3) {
        play(&mut rack, scenario);
    }
}

fn play(rack: &mut Rack, (name, policies): &Scenario) {
    let mut ids = Vec::new();
    for (namespace, name, spec) in *policies {
        let update = of_any_kind(namespace, name, spec);
        if let Update::SetPolicy(policy) = &update {
            ids.push(policy.id.clone());
        }
        rack.engine.apply(update);
    }
    rack.converge();
    rack.assert_agreement(name);
    for id in ids {
        rack.engine.apply(Update::RemovePolicy(id));
    }
    rack.converge();
}
