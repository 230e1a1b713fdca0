//! Calico's BGPPeer, BGPConfiguration and BGPFilter.

use serde_json::{Map, Value, json};

use super::selector::label_selector;
use super::{Translation, address_and_port, is_empty, is_of, name, node_named, text};

/// Its own API server's group, and that of its CRDs.
const GROUPS: &[&str] = &["projectcalico.org", "crd.projectcalico.org"];

pub(super) fn translate(objects: &[&Value], out: &mut Translation) {
    for object in objects {
        if is_of(object, GROUPS, "BGPConfiguration") {
            configuration(object, out);
        } else if is_of(object, GROUPS, "BGPFilter") {
            filter(object, out);
        } else if is_of(object, GROUPS, "BGPPeer") {
            peer(object, out);
        }
    }
}

fn configuration(object: &Value, out: &mut Translation) {
    if name(object) != "default" {
        return out.remark(
            object,
            "only the one named default is read; give Nodes the annotation manx.dev/asn instead",
        );
    }
    let from = &object["spec"];
    let mut spec = Map::new();
    if !from["asNumber"].is_null() {
        spec.insert("asNumber".to_owned(), from["asNumber"].clone());
    }
    // Calico's mesh is there unless it is switched off.
    let mesh = if from["nodeToNodeMeshEnabled"] == false { "Disabled" } else { "Enabled" };
    spec.insert("nodeToNodeMesh".to_owned(), json!(mesh));
    if !from["listenPort"].is_null() {
        spec.insert("listenPort".to_owned(), from["listenPort"].clone());
    }
    if let Some(time) = text(&from["nodeMeshMaxRestartTime"]) {
        spec.insert("gracefulRestart".to_owned(), json!({"restartTime": time}));
    }
    let mut services = Map::new();
    let lists = [
        ("serviceClusterIPs", "clusterIPs"),
        ("serviceExternalIPs", "externalIPs"),
        ("serviceLoadBalancerIPs", "loadBalancerIPs"),
    ];
    for (theirs, ours) in lists {
        let cidrs: Vec<&Value> =
            from[theirs].as_array().into_iter().flatten().map(|block| &block["cidr"]).collect();
        if !cidrs.is_empty() {
            services.insert(ours.to_owned(), json!(cidrs));
        }
    }
    if !services.is_empty() {
        spec.insert("serviceAdvertisement".to_owned(), Value::Object(services));
    }
    out.unknown(
        object,
        &[
            "asNumber",
            "nodeToNodeMeshEnabled",
            "listenPort",
            "nodeMeshMaxRestartTime",
            "serviceClusterIPs",
            "serviceExternalIPs",
            "serviceLoadBalancerIPs",
            "logSeverityScreen",
        ],
    );
    out.object("BGPConfiguration", "default", spec);
}

fn peer(object: &Value, out: &mut Translation) {
    let from = &object["spec"];
    let whole =
        |out: &mut Translation, reason: String| out.remark(object, format!("not taken over: {reason}"));
    if let Some(selector) = text(&from["localWorkloadSelector"]) {
        return whole(out, format!("spec.localWorkloadSelector {selector} has no equal here"));
    }
    let mut spec = Map::new();
    let mut port = None;
    match text(&from["peerSelector"]) {
        Some(_) if !is_empty(&from["peerIP"]) || !is_empty(&from["asNumber"]) => {
            return whole(out, "spec.peerSelector goes with neither peerIP nor asNumber".to_owned());
        }
        Some(expression) => match label_selector(expression) {
            Ok(selector) => {
                spec.insert("peerSelector".to_owned(), selector.unwrap_or_else(|| json!({})));
                // Whoever is picked there is a reflector, or all are picked and nobody is a client.
                spec.insert("routeReflectorClient".to_owned(), json!(true));
            }
            Err(part) => {
                return whole(out, format!("spec.peerSelector: `{part}` cannot be said by a LabelSelector"));
            }
        },
        None => match text(&from["peerIP"]).and_then(address_and_port) {
            Some((ip, of_peer)) => {
                spec.insert("peerIP".to_owned(), json!(ip));
                port = of_peer;
            }
            None => return whole(out, "spec.peerIP is no address".to_owned()),
        },
    }
    let mut set = |field: &str, value: Value| spec.insert(field.to_owned(), value);
    match (text(&from["node"]), text(&from["nodeSelector"])) {
        (Some(node), _) => {
            set("nodeSelector", node_named(node));
        }
        (None, Some(expression)) => match label_selector(expression) {
            Ok(Some(selector)) => {
                set("nodeSelector", selector);
            }
            Ok(None) => {}
            Err(part) => {
                return whole(out, format!("spec.nodeSelector: `{part}` cannot be said by a LabelSelector"));
            }
        },
        (None, None) => {}
    }
    if let Some(port) = port {
        set("port", json!(port));
    }
    for field in ["asNumber", "localASNumber"] {
        if !is_empty(&from[field]) {
            set(field, from[field].clone());
        }
    }
    for field in ["keepaliveTime", "sourceAddress"] {
        if let Some(value) = text(&from[field]) {
            set(field, json!(value));
        }
    }
    match (text(&from["nextHopMode"]), from["keepOriginalNextHop"].as_bool()) {
        (Some(mode), _) => {
            set("nextHop", json!(mode));
        }
        (None, Some(true)) => {
            set("nextHop", json!("Keep"));
        }
        (None, _) => {}
    }
    if let Some(n) = from["numAllowedLocalASNumbers"].as_i64() {
        set("allowAsIn", json!(n));
    }
    match from["ttlSecurity"].as_i64() {
        None | Some(0) => {}
        Some(1) => {
            set("ttlSecurity", json!(true));
        }
        Some(hops) => {
            out.remark(
                object,
                format!("spec.ttlSecurity over {hops} hops has no equal here and is left out"),
            );
        }
    }
    let reference = &from["password"]["secretKeyRef"];
    if let (Some(secret), Some(key)) = (text(&reference["name"]), text(&reference["key"])) {
        set("password", json!({"secretKeyRef": {"name": secret, "key": key}}));
        out.by_hand(
            object,
            format!("copy Secret {secret} to the namespace of Manx; until then the session stays down"),
        );
    }
    let filters: Vec<&str> =
        from["filters"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !filters.is_empty() {
        let named = |direction: &str| filters.iter().map(|f| format!("{f}-{direction}")).collect::<Vec<_>>();
        set("importFilters", json!(named("import")));
        set("exportFilters", json!(named("export")));
    }
    out.unknown(
        object,
        &[
            "peerIP",
            "peerSelector",
            "node",
            "nodeSelector",
            "asNumber",
            "localASNumber",
            "keepaliveTime",
            "sourceAddress",
            "nextHopMode",
            "keepOriginalNextHop",
            "numAllowedLocalASNumbers",
            "ttlSecurity",
            "password",
            "filters",
        ],
    );
    out.object("BGPPeer", name(object), spec);
}

/// One of ours for each direction, since ours are named by the direction in which a peer uses them.
fn filter(object: &Value, out: &mut Translation) {
    for direction in ["import", "export"] {
        let mut spec = Map::new();
        let mut wrong = None;
        for (theirs, ours, longest) in [("V4", "ipv4", 32), ("V6", "ipv6", 128)] {
            let list = object["spec"][format!("{direction}{theirs}")].as_array().cloned().unwrap_or_default();
            let mut rules = Vec::new();
            for (i, raw) in list.iter().enumerate() {
                match rule(raw, longest) {
                    Ok(rule) => rules.push(rule),
                    Err(reason) => wrong = wrong.or(Some(format!("spec.{direction}{theirs}[{i}]: {reason}"))),
                }
            }
            if !rules.is_empty() {
                spec.insert(ours.to_owned(), json!(rules));
            }
        }
        match wrong {
            None => out.object("BGPFilter", &format!("{}-{direction}", name(object)), spec),
            Some(reason) => out.remark(
                object,
                format!("not taken over for {direction}, so that peers that name it stay down: {reason}"),
            ),
        }
    }
}

fn rule(raw: &Value, longest: i64) -> Result<Value, String> {
    let mut rule = Map::new();
    rule.insert("action".to_owned(), raw["action"].clone());
    for field in ["source", "interface", "peerType", "priority"] {
        if !is_empty(&raw[field]) {
            return Err(format!("{field} cannot be matched"));
        }
    }
    if let Some(cidr) = text(&raw["cidr"]) {
        rule.insert("cidr".to_owned(), json!(cidr));
        let length = &raw["prefixLength"];
        match raw["matchOperator"].as_str() {
            Some("Equal") => {}
            Some("In") => {
                if let Some(least) = length["min"].as_i64() {
                    rule.insert("ge".to_owned(), json!(least));
                }
                rule.insert("le".to_owned(), json!(length["max"].as_i64().unwrap_or(longest)));
            }
            other => {
                return Err(format!("matchOperator {} cannot be said", other.unwrap_or("without a value")));
            }
        }
    }
    if let Some(community) = text(&raw["communities"]["values"][0]) {
        let field = if community.matches(':').count() == 2 { "largeCommunities" } else { "communities" };
        rule.insert(field.to_owned(), json!([community]));
    }
    let path: Vec<String> =
        raw["asPathPrefix"].as_array().into_iter().flatten().map(ToString::to_string).collect();
    if !path.is_empty() {
        rule.insert("asPathRegex".to_owned(), json!(format!("^{}_", path.join("_"))));
    }
    let mut add = Vec::new();
    for operation in raw["operations"].as_array().into_iter().flatten() {
        match text(&operation["addCommunity"]["value"]) {
            Some(community) => add.push(community),
            None => {
                let names: Vec<&String> =
                    operation.as_object().into_iter().flatten().map(|(name, _)| name).collect();
                return Err(format!("operation {names:?} cannot be said"));
            }
        }
    }
    if !add.is_empty() {
        rule.insert("set".to_owned(), json!({"addCommunities": add}));
    }
    Ok(Value::Object(rule))
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::super::tests::import;
    use super::*;

    #[test]
    fn a_peer_is_taken_over_with_what_has_an_equal() {
        let (objects, remarks) = import(
            Origin::Calico,
            "
apiVersion: crd.projectcalico.org/v1
kind: BGPPeer
metadata: {name: tor-a}
spec:
  nodeSelector: rack == 'a'
  peerIP: '[fd00:1::1]:1179'
  asNumber: 65001
  localASNumber: 65101
  keepaliveTime: 20s
  sourceAddress: None
  nextHopMode: Keep
  numAllowedLocalASNumbers: 2
  ttlSecurity: 1
  password: {secretKeyRef: {name: bgp, key: tor-a}}
  filters: [racks]
  maxRestartTime: 60s
",
        );
        assert_eq!(
            objects[0]["spec"],
            json!({
                "nodeSelector": {"matchExpressions": [{"key": "rack", "operator": "In", "values": ["a"]}]},
                "peerIP": "fd00:1::1", "port": 1179, "asNumber": 65001, "localASNumber": 65101, "keepaliveTime": "20s",
                "sourceAddress": "None", "nextHop": "Keep", "allowAsIn": 2, "ttlSecurity": true,
                "password": {"secretKeyRef": {"name": "bgp", "key": "tor-a"}},
                "importFilters": ["racks-import"], "exportFilters": ["racks-export"],
            })
        );
        assert_eq!(remarks.len(), 2, "{remarks:?}");
        assert!(remarks[1].contains("spec.maxRestartTime has no equal here"));
    }

    #[test]
    fn peers_that_would_be_others_are_not_taken_over() {
        for spec in [
            "{peerSelector: has(rr), asNumber: 1}",
            "{peerSelector: has(rr) || has(other)}",
            "{localWorkloadSelector: all(), asNumber: 1}",
            "{peerIP: 10.0.0.1, asNumber: 65001, nodeSelector: a == 'b' || c == 'd'}",
            "{asNumber: 65001}",
        ] {
            let yaml = format!(
                "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: x}}\nspec: {spec}\n"
            );
            let (objects, remarks) = import(Origin::Calico, &yaml);
            assert!(objects.is_empty() && remarks[0].starts_with("BGPPeer x: not taken over"), "{remarks:?}");
        }
    }

    #[test]
    fn reflectors_by_label_are_taken_over() {
        let yaml = "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: rr}\n\
                    spec: {nodeSelector: all(), peerSelector: route-reflector == 'true'}\n";
        let (objects, remarks) = import(Origin::Calico, yaml);
        let selector =
            json!({"matchExpressions": [{"key": "route-reflector", "operator": "In", "values": ["true"]}]});
        assert_eq!(objects[0]["spec"], json!({"peerSelector": selector, "routeReflectorClient": true}));
        assert!(remarks.is_empty(), "{remarks:?}");
    }

    #[test]
    fn a_configuration_is_taken_over_and_what_has_no_equal_named() {
        let (objects, remarks) = import(
            Origin::Calico,
            "
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec:
  asNumber: 64513
  nodeToNodeMeshEnabled: false
  listenPort: 178
  nodeMeshMaxRestartTime: 90s
  serviceClusterIPs: [{cidr: 10.96.0.0/12}]
  serviceLoadBalancerIPs: [{cidr: 203.0.113.0/24}]
  logSeverityScreen: Info
  communities: [{name: x, value: '1:2'}]
",
        );
        assert_eq!(
            objects[0]["spec"],
            json!({"asNumber": 64513, "nodeToNodeMesh": "Disabled", "listenPort": 178, "gracefulRestart": {"restartTime": "90s"},
                   "serviceAdvertisement": {"clusterIPs": ["10.96.0.0/12"], "loadBalancerIPs": ["203.0.113.0/24"]}})
        );
        assert_eq!(remarks, ["BGPConfiguration default: spec.communities has no equal here and is left out"]);
    }

    #[test]
    fn a_filter_becomes_one_for_each_direction_or_is_refused_as_a_whole() {
        let (objects, remarks) = import(
            Origin::Calico,
            "
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: racks}
spec:
  importV4:
  - {action: Accept, cidr: 10.0.0.0/8, matchOperator: In, prefixLength: {min: 16, max: 24}, communities: {values: ['1:2:3']}}
  - {action: Reject, cidr: 0.0.0.0/0, matchOperator: In}
  importV6:
  - {action: Accept, asPathPrefix: [65001, 65002], operations: [{addCommunity: {value: '65001:7'}}]}
  exportV4:
  - {action: Reject, cidr: 10.0.0.0/8, matchOperator: NotIn}
",
        );
        assert_eq!(objects.len(), 1);
        assert_eq!(
            objects[0]["spec"],
            json!({
                "ipv4": [{"action": "Accept", "cidr": "10.0.0.0/8", "ge": 16, "le": 24, "largeCommunities": ["1:2:3"]},
                         {"action": "Reject", "cidr": "0.0.0.0/0", "le": 32}],
                "ipv6": [{"action": "Accept", "asPathRegex": "^65001_65002_", "set": {"addCommunities": ["65001:7"]}}],
            })
        );
        assert!(remarks[0].contains("spec.exportV4[0]: matchOperator NotIn cannot be said"), "{remarks:?}");
    }
}
