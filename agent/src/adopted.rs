//! Pods that another plugin attached, where this agent enforces policy alone.
//!
//! Nothing tells which interface such a pod has but the kernel's route to its address. A plugin that routes to each pod (ptp,
//! Calico's, the clouds' own) has one that leads out of the pod's interface; one that bridges has not, and what its pods are
//! reached by is told, since nothing can be enforced there. Pure: objects and an answer to "where does this address leave" in,
//! updates of the policy engine out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use manx_policy::model::{Endpoint, EndpointId, Pod, PodId, PodRef, Update};

use crate::attachments::{Endpoints, difference};
use crate::source::{Kind, Object, ObjectKey};
use crate::view::StatusProblem;

/// Stands for the container id, which only the runtime knows.
const CONTAINER: &str = "pod";
/// What every plugin calls a pod's first interface.
const IFNAME: &str = "eth0";
/// Pods that are named one by one; more are counted.
const NAMED: usize = 20;

/// The pods of this node and what was found of them.
#[derive(Debug)]
pub struct Adopted {
    node: String,
    /// Begins the names of pods' interfaces.
    prefix: String,
    pods: BTreeMap<PodId, Pod>,
    known: Endpoints,
    lost: BTreeSet<PodId>,
}

impl Adopted {
    /// No pod is known yet.
    pub fn new(node: &str, prefix: &str) -> Self {
        Adopted {
            node: node.to_owned(),
            prefix: prefix.to_owned(),
            pods: BTreeMap::new(),
            known: Endpoints::new(),
            lost: BTreeSet::new(),
        }
    }

    /// Takes in an object; only pods of this node with addresses of their own matter.
    pub fn set(&mut self, object: &Object) {
        let Object::Pod(pod) = object else { return };
        let here = pod.node.as_deref() == Some(self.node.as_str());
        match here && !pod.host_network && !pod.finished && !pod.addresses.is_empty() {
            true => drop(self.pods.insert(pod.id.clone(), pod.clone())),
            false => drop(self.pods.remove(&pod.id)),
        }
    }

    /// Forgets one.
    pub fn remove(&mut self, key: &ObjectKey) {
        if key.kind == Kind::Pod {
            self.pods.remove(&PodId::new(&key.namespace, &key.name));
        }
    }

    /// What has changed since the last turn. `way`: the name of the interface out of which an address is reached; `held`:
    /// whether an attachment of our own plugin holds it, so that its interface is known already.
    pub fn turn(
        &mut self,
        way: impl Fn(IpAddr) -> Option<String>,
        held: impl Fn(IpAddr) -> bool,
    ) -> Vec<Update> {
        let mut found = Endpoints::new();
        self.lost.clear();
        for pod in self.pods.values().filter(|pod| !pod.addresses.iter().any(|ip| held(*ip))) {
            let mut interfaces: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
            for ip in pod.addresses.iter() {
                if let Some(interface) = way(*ip).filter(|name| name.starts_with(&self.prefix)) {
                    interfaces.entry(interface).or_default().push(*ip);
                }
            }
            if interfaces.is_empty() {
                self.lost.insert(pod.id.clone());
            }
            for (number, (interface, addresses)) in interfaces.into_iter().enumerate() {
                let endpoint = endpoint(pod, number, interface, addresses);
                found.insert(endpoint.id.clone(), endpoint);
            }
        }
        let updates = difference(&self.known, &found);
        self.known = found;
        updates
    }

    /// Pods of this node for which nothing can be enforced.
    pub fn problems(&self) -> Vec<StatusProblem> {
        let problem = |object: String| StatusProblem {
            object: Some(object),
            reason: format!(
                "no route to its address leads out of an interface {}*: its policy is not enforced; see --pod-interface-prefix, \
                 and whether its plugin routes to pods (a bridge does not)",
                self.prefix
            ),
            ..StatusProblem::default()
        };
        let mut problems: Vec<_> =
            self.lost.iter().take(NAMED).map(|pod| problem(format!("Pod {pod}"))).collect();
        if self.lost.len() > NAMED {
            problems.push(problem(format!("{} more pods", self.lost.len() - NAMED)));
        }
        problems
    }

    /// How many interfaces were found.
    pub fn count(&self) -> usize {
        self.known.len()
    }
}

fn endpoint(pod: &Pod, number: usize, interface: String, addresses: Vec<IpAddr>) -> Endpoint {
    let ifname = match number {
        0 => IFNAME.to_owned(),
        _ => format!("{IFNAME}-{number}"),
    };
    Endpoint {
        id: EndpointId { container_id: format!("{CONTAINER}/{}", pod.id), ifname },
        interface,
        pod: Some(PodRef {
            namespace: Some(pod.id.namespace.to_string()),
            name: pod.id.name.to_string(),
            uid: Some(pod.uid.to_string()),
        }),
        addresses: addresses.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::manifest;

    fn pod(name: &str, node: &str, ip: &str, more: &str) -> Object {
        let yaml = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, uid: u-{name}}},
              spec: {{nodeName: {node}, containers: []{more}}},
              status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}]}}}}"
        );
        (*manifest::parse(&yaml).unwrap().objects[0].object).clone()
    }

    /// 10.0.0.N is reached by vethN, the even ones only.
    fn way(ip: IpAddr) -> Option<String> {
        let IpAddr::V4(ip) = ip else { return None };
        let last = ip.octets()[3];
        (last % 2 == 0).then(|| format!("veth{last}"))
    }

    fn nobody(_: IpAddr) -> bool {
        false
    }

    fn said(updates: &[Update]) -> Vec<String> {
        let say = |update: &Update| match update {
            Update::SetEndpoint(e) => format!("{} {}", e.id, e.interface),
            Update::RemoveEndpoint(id) => format!("gone {id}"),
            other => panic!("{other:?}"),
        };
        updates.iter().map(say).collect()
    }

    #[test]
    fn pods_of_this_node_are_found_by_the_routes_to_them() {
        let mut adopted = Adopted::new("n1", "veth");
        adopted.set(&pod("a", "n1", "10.0.0.2", ""));
        adopted.set(&pod("b", "n2", "10.0.0.4", ""));
        adopted.set(&pod("host", "n1", "10.0.0.6", ", hostNetwork: true"));
        assert_eq!(said(&adopted.turn(way, nobody)), ["pod/shop/a/eth0 veth2"]);
        assert!(adopted.turn(way, nobody).is_empty());
        // Another address, another interface.
        adopted.set(&pod("a", "n1", "10.0.0.8", ""));
        assert_eq!(said(&adopted.turn(way, nobody)), ["pod/shop/a/eth0 veth8"]);
        assert_eq!(said(&adopted.turn(way, |_| true)), ["gone pod/shop/a/eth0"]);
        assert!(adopted.problems().is_empty(), "our own plugin has attached it");
        adopted.turn(way, nobody);
        adopted.remove(&ObjectKey { kind: Kind::Pod, namespace: "shop".into(), name: "a".into() });
        assert_eq!(said(&adopted.turn(way, nobody)), ["gone pod/shop/a/eth0"]);
        assert_eq!((adopted.count(), adopted.problems().len()), (0, 0));
    }

    #[test]
    fn a_pod_without_an_interface_of_the_prefix_is_told() {
        let mut adopted = Adopted::new("n1", "cali");
        adopted.set(&pod("a", "n1", "10.0.0.2", ""));
        assert!(adopted.turn(way, nobody).is_empty());
        let problems = adopted.problems();
        assert_eq!(problems[0].object.as_deref(), Some("Pod shop/a"));
        assert!(problems[0].reason.contains("interface cali*"), "{problems:?}");
        let mut many = Adopted::new("n1", "cali");
        for i in 0..30 {
            many.set(&pod(&format!("p{i}"), "n1", "10.0.0.2", ""));
        }
        many.turn(way, nobody);
        assert_eq!(many.problems().len(), 21);
        assert_eq!(many.problems()[20].object.as_deref(), Some("10 more pods"));
    }
}
