//! A node with pods, made from the YAML of Kubernetes objects, that asks oracle, live judge and compiled rules alike.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use manx_policy::calc::Calc;
use manx_policy::compile::{Layout, Marks};
use manx_policy::k8s;
use manx_policy::live::{Judge, LiveFlow};
use manx_policy::model::{Endpoint, EndpointId, Entity, Labels, Payload, PodRef, Policy, Protocol, Update};
use manx_policy::sim::{self, Packet};
use manx_policy::state::claimed_pod;
use manx_policy::verdict::{End, Flow, Place, verdict};

const NODE: &str = "node-1";

/// A cluster of one node whose pods all have attachments here, unless told otherwise.
pub(crate) struct World {
    pub(crate) calc: Calc,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = World { calc: Calc::new("manx") };
        world.namespace("default", "{team: a}");
        world.namespace("other", "{team: b}");
        world
    }

    pub(crate) fn namespace(&mut self, name: &str, labels: &str) {
        let text = format!("{{metadata: {{name: {name}, labels: {labels}}}}}");
        let object: core::Namespace = serde_saphyr::from_str(&text).unwrap();
        self.calc.apply(Update::SetNamespace(k8s::namespace(&object).unwrap()));
    }

    /// Sets a pod from the parts of its YAML. `rest` is more YAML at the top level.
    pub(crate) fn pod(&mut self, namespace: &str, name: &str, labels: &str, ips: &[&str], rest: &str) {
        let ips: Vec<String> = ips.iter().map(|ip| format!("{{ip: '{ip}'}}")).collect();
        let text = format!(
            "metadata: {{namespace: {namespace}, name: {name}, uid: uid-{name}, labels: {labels}}}\n\
             status: {{podIPs: [{}]}}\n{rest}\n",
            ips.join(", ")
        );
        let object: core::Pod = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        self.calc.apply(Update::SetPod(k8s::pod(&object).unwrap()));
    }

    /// An attachment on this node.
    pub(crate) fn attach(&mut self, namespace: &str, name: &str, ips: &[&str]) {
        self.calc.apply(Update::SetEndpoint(Endpoint {
            id: EndpointId { container_id: name.into(), ifname: "eth0".into() },
            interface: format!("manx{name}"),
            pod: Some(PodRef {
                namespace: Some(namespace.into()),
                name: name.into(),
                uid: Some(format!("uid-{name}")),
            }),
            addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        }));
    }

    /// A pod of this node with labels, addresses and the port `http` = 8080/TCP.
    pub(crate) fn local(&mut self, namespace: &str, name: &str, labels: &str, ips: &[&str]) {
        let ports = "spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}";
        self.pod(namespace, name, labels, ips, ports);
        self.attach(namespace, name, ips);
    }

    /// A policy from its spec; returns what was refused.
    pub(crate) fn policy(&mut self, namespace: &str, name: &str, spec: &str) -> Vec<String> {
        let text = format!("metadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n");
        let object: networking::NetworkPolicy =
            serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let policy = k8s::network_policy(&object).unwrap();
        let problems = policy.problems.iter().map(|p| p.field.clone()).collect();
        self.calc.apply(Update::SetPolicy(policy));
        problems
    }

    /// Sets a policy; returns the fields that were refused.
    pub(crate) fn set(&mut self, policy: Policy) -> Vec<String> {
        let problems = policy.problems.iter().map(|p| p.field.clone()).collect();
        self.calc.apply(Update::SetPolicy(policy));
        problems
    }

    /// A ClusterNetworkPolicy from its spec; returns the fields that were refused.
    pub(crate) fn cluster(&mut self, name: &str, spec: &str) -> Vec<String> {
        let text = format!("metadata: {{name: {name}}}\nspec: {spec}\n");
        let object: k8s::ClusterNetworkPolicy =
            serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        self.set(k8s::cluster_network_policy(&object).unwrap())
    }

    /// One of Calico's policies from its spec, global without a namespace; returns the fields that were refused.
    pub(crate) fn calico(&mut self, namespace: Option<&str>, name: &str, spec: &str) -> Vec<String> {
        let place = namespace.map(|namespace| format!("namespace: {namespace}, ")).unwrap_or_default();
        let text = format!("metadata: {{{place}name: {name}}}\nspec: {spec}\n");
        let object: k8s::CalicoPolicy =
            serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        self.set(k8s::calico_policy(&object, namespace.is_some()).unwrap())
    }

    /// One of Calico's sets of networks, global without a namespace.
    pub(crate) fn network_set(&mut self, namespace: Option<&str>, name: &str, labels: &str, nets: &str) {
        let place = namespace.map(|namespace| format!("namespace: {namespace}, ")).unwrap_or_default();
        let text = format!("{{metadata: {{{place}name: {name}, labels: {labels}}}, spec: {{nets: {nets}}}}}");
        let object: k8s::NetworkSet = serde_saphyr::from_str(&text).unwrap();
        let (set, problems) = k8s::network_set(&object, namespace.is_some()).unwrap();
        assert_eq!(problems, []);
        self.calc.apply(Update::SetEntity(set));
    }

    /// A node.
    pub(crate) fn node(&mut self, name: &str, labels: &[(&str, &str)], ips: &[&str]) {
        self.calc.apply(Update::SetEntity(Entity {
            id: Entity::node(name),
            labels: labels.iter().copied().collect::<Labels>(),
            addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            nets: [].into(),
        }));
    }

    pub(crate) fn place(&self, ip: IpAddr) -> Place {
        let endpoint = self.calc.state().endpoints().find(|endpoint| endpoint.addresses.contains(&ip));
        match endpoint {
            Some(endpoint) => Place::Pod(claimed_pod(endpoint), Some(NODE.into())),
            None if ip.to_string() == "172.16.0.1" => Place::Node(NODE.into()),
            None => Place::Elsewhere,
        }
    }

    pub(crate) fn packet(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Packet {
        let interface = |ip: IpAddr| match self.place(ip) {
            Place::Pod(pod, _) => Some(format!("manx{}", pod.name)),
            Place::Node(_) => None,
            Place::Elsewhere => Some("eth0".into()),
        };
        Packet {
            input: interface(source),
            output: interface(destination),
            ..Packet::opening(source, destination, protocol, port)
        }
    }

    pub(crate) fn sim(&self, packet: &Packet) -> bool {
        let layout =
            Layout { prefix: "manx".into(), marks: Marks::new(0x0f00_0000).unwrap(), guard: true, log: true };
        let program = layout.program(&self.calc.snapshot(), packet.family());
        sim::run(&program, packet).unwrap().passed
    }

    /// Is the flow to a port allowed?
    pub(crate) fn allows(&self, source: &str, destination: &str, protocol: Protocol, port: u16) -> bool {
        self.carries(source, destination, Payload::opening(protocol, port))
    }

    /// Is the flow allowed? Oracle, live judge and rules must agree.
    pub(crate) fn carries(&self, source: &str, destination: &str, payload: Payload) -> bool {
        let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
        let flow = Flow {
            source: End { ip: source, place: self.place(source) },
            destination: End { ip: destination, place: self.place(destination) },
            payload,
        };
        let oracle = verdict(self.calc.state(), &flow);
        let packet = Packet { payload, ..self.packet(source, destination, Protocol::Tcp, 1) };
        let passed = self.sim(&packet);
        assert_eq!(passed, oracle.allowed, "{flow:?}: {oracle:?}");
        let live = LiveFlow { source, destination, payload };
        let mut judge = Judge::new(&self.calc, [THIS_NODE.parse().unwrap()]);
        assert_eq!(judge.allows(&live), passed, "{flow:?}: {oracle:?}");
        passed
    }

    pub(crate) fn tcp(&self, source: &str, destination: &str, port: u16) -> bool {
        self.allows(source, destination, Protocol::Tcp, port)
    }
}

pub(crate) const WEB: &str = "10.0.0.1";
pub(crate) const WEB6: &str = "fd00::1";
pub(crate) const CLIENT: &str = "10.0.0.2";
pub(crate) const OTHER: &str = "10.0.0.3";
pub(crate) const STRANGER: &str = "192.0.2.7";
pub(crate) const THIS_NODE: &str = "172.16.0.1";

/// default/web, default/client and other/client.
pub(crate) fn three() -> World {
    let mut world = World::new();
    world.local("default", "web", "{app: web}", &[WEB, WEB6]);
    world.local("default", "client", "{app: client}", &[CLIENT, "fd00::2"]);
    world.local("other", "outsider", "{app: client}", &[OTHER, "fd00::3"]);
    world
}
