//! One table of objects, good and bad, for the definitions (as the API server applies them) and for `config`.

use std::collections::BTreeSet;
use std::sync::Arc;

use cel::extractors::This;
use cel::{Context, Env, Program, Value as Cel};
use rstest::rstest;
use serde_json::{Value, json};

use super::definitions;
use crate::source::manifest;

/// What the API server does with an object of a custom kind: fills in defaults, checks the schema, runs the rules.
struct Server {
    schema: Value,
}

impl Server {
    fn of(kind: &str) -> Self {
        let all = definitions();
        let definition = all.iter().find(|d| d["spec"]["names"]["kind"] == kind).expect("a kind of ours");
        Server { schema: definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone() }
    }

    /// The object with its defaults, or what is wrong with it, a path and a reason each.
    fn admit(&self, object: &Value) -> Result<Value, Vec<String>> {
        let mut object = object.clone();
        fill(&self.schema, &mut object);
        let mut wrong = Vec::new();
        check(&self.schema, &object, "", &mut wrong);
        if wrong.is_empty() {
            run_rules(&self.schema, &object, "", &mut wrong);
        }
        if wrong.is_empty() { Ok(object) } else { Err(wrong) }
    }
}

fn fill(schema: &Value, value: &mut Value) {
    if let (Some(properties), Some(object)) = (schema["properties"].as_object(), value.as_object_mut()) {
        for (name, schema) in properties {
            if let (None, Some(default)) = (object.get(name), schema.get("default")) {
                object.insert(name.clone(), default.clone());
            }
            if let Some(value) = object.get_mut(name) {
                fill(schema, value);
            }
        }
    }
    for item in value.as_array_mut().into_iter().flatten() {
        fill(&schema["items"], item);
    }
}

fn check(schema: &Value, value: &Value, path: &str, wrong: &mut Vec<String>) {
    let mut say = |reason: String| wrong.push(format!("{path}: {reason}"));
    let fits = match schema["type"].as_str().unwrap_or_else(|| panic!("{path}: a schema has a type")) {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64(),
        "boolean" => value.is_boolean(),
        other => panic!("{path}: type {other}"),
    };
    if !fits {
        return say(format!("must be of type {}", schema["type"]));
    }
    if let Some(all) = schema["enum"].as_array()
        && !all.contains(value)
    {
        say(format!("must be one of {all:?}"));
    }
    if let Some(n) = value.as_i64() {
        let within = schema["minimum"].as_i64().is_none_or(|least| n >= least)
            && schema["maximum"].as_i64().is_none_or(|most| n <= most);
        if !within {
            say("out of range".to_owned());
        }
    }
    let bounded = |size: usize, least: &str, most: &str| {
        schema[least].as_u64().is_none_or(|n| size as u64 >= n)
            && schema[most].as_u64().is_none_or(|n| size as u64 <= n)
    };
    if let Some(text) = value.as_str() {
        if !bounded(text.chars().count(), "minLength", "maxLength") {
            say("too long or too short".to_owned());
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && !matches(text, pattern)
        {
            say(format!("must match {pattern}"));
        }
    }
    if let Some(items) = value.as_array() {
        if !bounded(items.len(), "minItems", "maxItems") {
            say("too many or too few".to_owned());
        }
        for (i, item) in items.iter().enumerate() {
            check(&schema["items"], item, &format!("{path}[{i}]"), wrong);
        }
        if let Some(keys) = schema["x-kubernetes-list-map-keys"].as_array() {
            let key =
                |item: &Value| keys.iter().map(|k| item[k.as_str().unwrap()].clone()).collect::<Vec<_>>();
            let twice = items.iter().enumerate().any(|(i, a)| items[..i].iter().any(|b| key(a) == key(b)));
            if twice {
                wrong.push(format!("{path}: two items with one key"));
            }
        }
    }
    let Some(object) = value.as_object().filter(|_| path != ".metadata") else { return };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !object.contains_key(name.as_str().unwrap()) {
            wrong.push(format!("{path}: {name} is required"));
        }
    }
    for (name, value) in object {
        let below = format!("{path}.{name}");
        match schema["properties"].get(name).or(schema.get("additionalProperties")) {
            Some(schema) => check(schema, value, &below, wrong),
            None => wrong.push(format!("{below}: unknown field")),
        }
    }
}

fn run_rules(schema: &Value, value: &Value, path: &str, wrong: &mut Vec<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let text = rule["rule"].as_str().expect("a rule has a text");
        if !holds(text, value) {
            wrong.push(format!("{path}: {}", rule["message"].as_str().expect("a rule has a message")));
        }
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(name) {
            run_rules(schema, value, &format!("{path}.{name}"), wrong);
        }
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        run_rules(&schema["items"], item, &format!("{path}[{i}]"), wrong);
    }
}

/// Runs a rule; the functions of Kubernetes' own that rules use are `isIP`, `ip`, `isCIDR` and `cidr`.
fn holds(rule: &str, value: &Value) -> bool {
    let env = Arc::new(Env::stdlib());
    let program = env.compile(rule).unwrap_or_else(|e| panic!("{rule}: {e}"));
    run(&program, env, value).unwrap_or_else(|e| panic!("{rule} of {value}: {e}"))
}

fn matches(text: &str, pattern: &str) -> bool {
    let rule = format!("self.matches('{}')", pattern.replace('\\', "\\\\"));
    holds(&rule, &json!(text))
}

fn run(program: &Program, env: Arc<Env>, value: &Value) -> Result<bool, String> {
    let mut context = Context::with_env(env);
    let address = |text: &str| {
        text.parse::<std::net::IpAddr>().ok().filter(|ip| match ip {
            std::net::IpAddr::V4(_) => true,
            // Kubernetes refuses IPv4-mapped addresses.
            std::net::IpAddr::V6(ip) => ip.to_ipv4_mapped().is_none(),
        })
    };
    let prefix = |text: &str| {
        let (ip, length) = text.split_once('/')?;
        let ip = ip.parse::<std::net::IpAddr>().ok()?;
        let length = length.parse::<u8>().ok().filter(|_| !length.starts_with('+'))?;
        ipnetwork::IpNetwork::new(ip, length).ok()
    };
    let add = "a function with a new name";
    context.add_function("isIP", move |text: Arc<String>| address(&text).is_some()).expect(add);
    context.add_function("ip", move |text: Arc<String>| text).expect(add);
    context.add_function("isCIDR", move |text: Arc<String>| prefix(&text).is_some()).expect(add);
    context.add_function("cidr", move |text: Arc<String>| text).expect(add);
    context
        .add_function("masked", move |This(text): This<Arc<String>>| {
            prefix(&text).map_or(String::new(), |p| format!("{}/{}", p.network(), p.prefix()))
        })
        .expect(add);
    context
        .add_function("prefixLength", move |This(text): This<Arc<String>>| {
            prefix(&text).map_or(-1, |p| i64::from(p.prefix()))
        })
        .expect(add);
    context
        .add_function("isLoopback", move |This(text): This<Arc<String>>| {
            address(&text).is_some_and(|ip| ip.is_loopback())
        })
        .expect(add);
    let link_local = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    context
        .add_function("isLinkLocalUnicast", move |This(text): This<Arc<String>>| {
            address(&text).is_some_and(link_local)
        })
        .expect(add);
    // As Go's net/netip has it.
    context
        .add_function("isGlobalUnicast", move |This(text): This<Arc<String>>| {
            address(&text).is_some_and(|ip| {
                let broadcast = matches!(ip, std::net::IpAddr::V4(ip) if ip.is_broadcast());
                !(broadcast || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local(ip))
            })
        })
        .expect(add);
    context.add_variable("self", value).map_err(|e| e.to_string())?;
    match program.execute(&context).map_err(|e| e.to_string())? {
        Cel::Bool(verdict) => Ok(verdict),
        other => Err(format!("is {other:?}, not a verdict")),
    }
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "manx.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// What `manxctl config validate` says.
fn offline(object: &Value) -> Result<manifest::Manifest, Vec<manifest::Note>> {
    manifest::parse(&object.to_string())
}

fn both(kind: &str, name: &str, spec: &Value) -> (Result<Value, Vec<String>>, bool) {
    let object = object(kind, name, spec);
    (Server::of(kind).admit(&object), offline(&object).is_ok())
}

#[track_caller]
fn agree(kind: &str, name: &str, spec: &Value, good: bool) {
    let (server, offline_good) = both(kind, name, spec);
    assert_eq!(server.is_ok(), good, "the API server: {server:?}");
    assert_eq!(offline_good, good, "config validate: {:?}", offline(&object(kind, name, spec)));
}

/// A peer with an address and an AS, but for what is said.
fn peer(over: Value) -> Value {
    let mut spec = json!({"peerIP": "10.1.0.1", "asNumber": 65001});
    let Value::Object(over) = over else { panic!("an object") };
    for (key, value) in over {
        match value {
            Value::Null => spec.as_object_mut().unwrap().remove(&key),
            value => spec.as_object_mut().unwrap().insert(key, value),
        };
    }
    spec
}

#[rstest]
#[case(true, json!({}))]
#[case(true, json!({"peerIP": "fd00:1::1", "sourceAddress": "fd00:1::2"}))]
#[case(true, json!({"peerIP": "127.0.0.1"}))]
#[case(true, json!({"peerIP": "169.254.1.1"}))]
#[case(true, json!({"peerIP": null, "interface": "eth1", "bfd": {}}))]
#[case(true, json!({"peerIP": null, "autoDiscover": "DefaultGateway"}))]
#[case(true, json!({"peerIP": null, "peerRange": "10.1.0.0/24", "maxPeers": 3}))]
#[case(true, json!({"asNumber": null, "remoteAS": "Internal", "routeReflectorClient": true}))]
#[case(true, json!({"peerIP": null, "asNumber": null, "peerSelector": {"matchLabels": {"role": "reflector"}}, "routeReflectorClient": true}))]
#[case(true, json!({"peerIP": null, "asNumber": null, "peerSelector": {}, "sourceAddress": "None", "port": 179, "passive": false}))]
#[case(true, json!({"holdTime": "0", "keepaliveTime": "0"}))]
#[case(true, json!({"holdTime": "1m30s", "keepaliveTime": "30s"}))]
#[case(true, json!({"holdTime": "3000ms"}))]
#[case(true, json!({"addPath": {"send": true, "sendMax": 4}}))]
#[case(true, json!({"ebgpMultihop": 1, "ttlSecurity": true}))]
#[case(true, json!({"ebgpMultihop": 255}))]
#[case(true, json!({"nodeSelector": {"matchLabels": {"rack": "a"}, "matchExpressions": [{"key": "a", "operator": "Exists"}]}}))]
#[case(true, json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}}))]
#[case(true, json!({"password": {"secretKeyRef": {"name": "tor-a", "key": "password"}}}))]
#[case(true, json!({"shutdown": {"enabled": true, "message": "maintenance"}}))]
#[case(false, json!({"peerIP": null}))]
#[case(false, json!({"interface": "eth1"}))]
#[case(false, json!({"peerRange": "10.1.0.0/24"}))]
#[case(false, json!({"peerIP": null, "autoDiscover": "Magic"}))]
#[case(false, json!({"peerIP": null, "interface": "an-interface-name"}))]
#[case(false, json!({"peerIP": null, "interface": "eth/1"}))]
#[case(false, json!({"peerIP": null, "interface": ".."}))]
#[case(false, json!({"peerIP": null, "interface": "eth1", "ebgpMultihop": 2}))]
#[case(false, json!({"peerIP": null, "interface": "eth1", "sourceAddress": "fd00::1"}))]
#[case(false, json!({"peerIP": null, "peerRange": "10.1.0.1/24"}))]
#[case(false, json!({"peerIP": null, "peerRange": "10.1.0.0"}))]
#[case(false, json!({"peerIP": null, "peerRange": "10.1.0.0/24", "maxPeers": 0}))]
#[case(false, json!({"maxPeers": 3}))]
#[case(false, json!({"peerSelector": {}}))]
#[case(false, json!({"asNumber": null, "peerSelector": {}}))]
#[case(false, json!({"peerIP": null, "peerSelector": {}}))]
#[case(false, json!({"peerIP": null, "asNumber": null, "remoteAS": "Internal", "peerSelector": {}}))]
#[case(false, json!({"peerIP": null, "asNumber": null, "localASNumber": 65101, "peerSelector": {}}))]
#[case(false, json!({"peerIP": null, "asNumber": null, "port": 1179, "peerSelector": {}}))]
#[case(false, json!({"peerIP": null, "asNumber": null, "passive": true, "peerSelector": {}}))]
#[case(false, json!({"peerIP": null, "asNumber": null, "sourceAddress": "10.0.0.1", "peerSelector": {}}))]
#[case(false, json!({"peerIP": null, "asNumber": null, "peerSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}))]
#[case(false, json!({"peerIP": "10.1.0"}))]
#[case(false, json!({"peerIP": "tor-a.example"}))]
#[case(false, json!({"peerIP": "0.0.0.0"}))]
#[case(false, json!({"peerIP": "255.255.255.255"}))]
#[case(false, json!({"peerIP": "224.0.0.5"}))]
#[case(false, json!({"peerIP": "ff02::1"}))]
#[case(false, json!({"peerIP": "fe80::1"}))]
#[case(false, json!({"peerIP": "::ffff:10.0.0.1"}))]
#[case(false, json!({"asNumber": null}))]
#[case(false, json!({"remoteAS": "External"}))]
#[case(false, json!({"asNumber": null, "remoteAS": "Other"}))]
#[case(false, json!({"asNumber": 0}))]
#[case(false, json!({"asNumber": 23456}))]
#[case(false, json!({"asNumber": 65535}))]
#[case(false, json!({"asNumber": 4294967295_u32}))]
#[case(false, json!({"localASNumber": 0}))]
#[case(false, json!({"holdTime": "2s"}))]
#[case(false, json!({"holdTime": "65536s"}))]
#[case(false, json!({"holdTime": "3500ms"}))]
#[case(false, json!({"holdTime": "90"}))]
#[case(false, json!({"holdTime": "1.5m"}))]
#[case(false, json!({"holdTime": ""}))]
#[case(false, json!({"keepaliveTime": "90s"}))]
#[case(false, json!({"keepaliveTime": "100ms"}))]
#[case(false, json!({"holdTime": "9s", "keepaliveTime": "10s"}))]
#[case(false, json!({"holdTime": "0", "keepaliveTime": "30s"}))]
#[case(false, json!({"connectRetry": "0s"}))]
#[case(false, json!({"connectRetry": "2h"}))]
#[case(false, json!({"port": 0}))]
#[case(false, json!({"port": 65536}))]
#[case(false, json!({"sourceAddress": "eth0"}))]
#[case(false, json!({"sourceAddress": "fd00::1"}))]
#[case(false, json!({"ebgpMultihop": 0}))]
#[case(false, json!({"ebgpMultihop": 2, "ttlSecurity": true}))]
#[case(false, json!({"families": []}))]
#[case(false, json!({"families": ["ipv4", "vpnv4"]}))]
#[case(false, json!({"addPath": {"send": true, "sendMax": 0}}))]
#[case(false, json!({"addPath": {"receive": true, "sendMax": 2}}))]
#[case(false, json!({"nextHop": "Other"}))]
#[case(false, json!({"allowAsIn": 11}))]
#[case(false, json!({"allowAsIn": -1}))]
#[case(false, json!({"password": {"secretKeyRef": {"name": "", "key": "k"}}}))]
#[case(false, json!({"password": {"secretKeyRef": {"name": "a"}}}))]
#[case(false, json!({"password": {}}))]
#[case(false, json!({"maxPrefixes": {"limit": 0}}))]
#[case(false, json!({"maxPrefixes": {"action": "Drop"}}))]
#[case(true, json!({"maxPrefixes": {"action": "Disable", "restartTime": "5m"}}))]
#[case(false, json!({"maxPrefixes": {"action": "Disable", "restartTime": "25h"}}))]
#[case(false, json!({"maxPrefixes": {"action": "Reject", "restartTime": "5m"}}))]
#[case(false, json!({"maxPrefixes": {"restartTime": "5m"}}))]
#[case(false, json!({"bfd": {"minTx": "1ms"}}))]
#[case(false, json!({"bfd": {"minRx": "61s"}}))]
#[case(false, json!({"bfd": {"multiplier": 1}}))]
#[case(false, json!({"importFilters": ["a b"]}))]
#[case(false, json!({"exportFilters": [""]}))]
#[case(false, json!({"shutdown": {"message": "x".repeat(256)}}))]
#[case(false, json!({"shutdown": {"message": "ß".repeat(128)}}))]
#[case(false, json!({"asNumber": null, "remoteAS": "External", "routeReflectorClient": true}))]
#[case(false, json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}))]
#[case(false, json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}))]
#[case(false, json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}))]
#[case(false, json!({"nodeSelector": {"matchNames": ["a"]}}))]
#[case(false, json!({"peerIp": "10.1.0.1"}))]
fn a_peer_is_judged_alike_by_the_api_server_and_offline(#[case] good: bool, #[case] over: Value) {
    agree("BGPPeer", "tor-a", &peer(over), good);
}

#[rstest]
#[case(true, json!({"cidr": "10.0.0.0/8", "ge": 16, "le": 24, "action": "Accept"}))]
#[case(true, json!({"cidr": "10.0.0.0/8", "ge": 8, "action": "Accept"}))]
#[case(true, json!({"action": "Reject"}))]
#[case(true, json!({"action": "Reject", "set": {}}))]
#[case(true, json!({"action": "Accept", "communities": ["65001:7", "no-export", "NO_EXPORT"], "largeCommunities": ["4294967295:1:2"], "extendedCommunities": ["rt:65001:7"]}))]
#[case(true, json!({"action": "Accept", "nextHop": "10.0.0.1", "neighbor": "tor-a"}))]
#[case(true, json!({"action": "Accept", "nextHop": "10.0.0.0/8", "neighbor": "10.0.0.0/8"}))]
#[case(true, json!({"action": "Accept", "set": {"localPref": 0, "med": 4294967295_u32, "prepend": 32, "nextHop": "10.0.0.1", "addCommunities": ["1:2:3", "1:2", "soo:1:2"], "setCommunities": []}}))]
#[case(false, json!({"action": "Deny"}))]
#[case(false, json!({"name": "x"}))]
#[case(false, json!({"name": "a b", "action": "Accept"}))]
#[case(false, json!({"action": "Accept", "ge": 24}))]
#[case(false, json!({"action": "Accept", "le": 24}))]
#[case(false, json!({"action": "Accept", "cidr": "10.0.0.0/16", "ge": 28, "le": 24}))]
#[case(false, json!({"action": "Accept", "cidr": "10.0.0.0/16", "ge": 8}))]
#[case(false, json!({"action": "Accept", "cidr": "10.0.0.0/16", "le": 8}))]
#[case(false, json!({"action": "Accept", "cidr": "10.0.0.0/16", "le": 33}))]
#[case(false, json!({"action": "Accept", "cidr": "10.0.0.1/16"}))]
#[case(false, json!({"action": "Accept", "cidr": "10.0.0.0"}))]
#[case(false, json!({"action": "Accept", "cidr": "fd00::/8"}))]
#[case(false, json!({"action": "Accept", "communities": ["65536:1"]}))]
#[case(false, json!({"action": "Accept", "communities": ["1:2:3"]}))]
#[case(false, json!({"action": "Accept", "largeCommunities": ["1:2"]}))]
#[case(false, json!({"action": "Accept", "largeCommunities": ["1:2:4294967296"]}))]
#[case(false, json!({"action": "Accept", "extendedCommunities": ["1:2"]}))]
#[case(false, json!({"action": "Accept", "nextHop": "x"}))]
#[case(false, json!({"action": "Accept", "neighbor": "10.0.0.1/8"}))]
#[case(false, json!({"action": "Accept", "set": {"prepend": 33}}))]
#[case(false, json!({"action": "Accept", "set": {"med": -1}}))]
#[case(false, json!({"action": "Accept", "set": {"nextHop": "fd00::1"}}))]
#[case(false, json!({"action": "Accept", "set": {"addCommunities": ["65536:1"]}}))]
#[case(false, json!({"action": "Reject", "set": {"med": 1}}))]
#[case(false, json!({"action": "Reject", "set": {"setCommunities": []}}))]
fn a_filter_rule_is_judged_alike_by_the_api_server_and_offline(#[case] good: bool, #[case] rule: Value) {
    agree("BGPFilter", "racks", &json!({"ipv4": [{"action": "Accept"}, rule]}), good);
}

/// Each of these needs a parser that CEL does not have; the agent says so in its status.
#[rstest]
#[case(json!({"action": "Accept", "asPathRegex": "("}))]
#[case(json!({"action": "Accept", "communities": ["seven"]}))]
#[case(json!({"action": "Accept", "extendedCommunities": ["rt:65536:65536"]}))]
fn what_only_the_agent_can_judge_is_this_and_nothing_else(#[case] rule: Value) {
    let (server, offline) = both("BGPFilter", "racks", &json!({"ipv6": [rule]}));
    assert!(server.is_ok() && !offline, "{server:?}");
}

#[rstest]
#[case(true, "default", json!({}))]
#[case(true, "default", json!({"asNumber": 4200000001_u32, "nodeToNodeMesh": "Disabled", "listenPort": 1179}))]
#[case(true, "default", json!({"gracefulRestart": {"restartTime": "2m", "longLivedTime": "24h"}}))]
#[case(true, "default", json!({"serviceAdvertisement": {"clusterIPs": ["10.96.0.0/12", "fd00::/108"]}}))]
#[case(false, "other", json!({}))]
#[case(false, "default", json!({"asNumber": 0}))]
#[case(false, "default", json!({"nodeToNodeMesh": "Sometimes"}))]
#[case(false, "default", json!({"listenPort": 65536}))]
#[case(false, "default", json!({"multipath": {"maxPaths": 129}}))]
#[case(false, "default", json!({"gracefulRestart": {"restartTime": "4096s"}}))]
#[case(false, "default", json!({"gracefulRestart": {"restartTime": "0s"}}))]
#[case(false, "default", json!({"gracefulRestart": {"restartTime": "1s500ms"}}))]
#[case(false, "default", json!({"gracefulRestart": {"longLivedTime": "4661h"}}))]
#[case(false, "default", json!({"gracefulRestart": {"longLivedTime": "100ms"}}))]
#[case(false, "default", json!({"drain": {"mode": "Abrupt"}}))]
#[case(false, "default", json!({"drain": {"delay": "3601s"}}))]
#[case(false, "default", json!({"serviceAdvertisement": {"externalIPs": ["10.0.0.0/8", "10.0.0.1/8"]}}))]
fn a_bgp_configuration_is_judged_alike(#[case] good: bool, #[case] name: &str, #[case] spec: Value) {
    agree("BGPConfiguration", name, &spec, good);
}

#[rstest]
#[case(true, "default", json!({}))]
#[case(true, "default", json!({"clusterCIDRs": ["10.244.0.0/16"], "egressNat": {"mode": "Masquerade", "excludeCIDRs": ["10.0.0.0/8"]}, "mtu": 1500}))]
#[case(true, "default", json!({"addressPools": [{"name": "a", "cidrs": ["10.0.0.0/24"]}, {"name": "b", "cidrs": []}], "mtu": 0}))]
#[case(false, "second", json!({}))]
#[case(false, "default", json!({"clusterCIDRs": ["10.244.0.0"]}))]
#[case(false, "default", json!({"egressNat": {"mode": "Snat"}}))]
#[case(false, "default", json!({"egressNat": {"excludeCIDRs": ["x"]}}))]
#[case(false, "default", json!({"addressPools": [{"name": "a", "cidrs": ["10.0.0.1/8"]}]}))]
#[case(false, "default", json!({"addressPools": [{"name": "a", "cidrs": []}, {"name": "a", "cidrs": []}]}))]
#[case(false, "default", json!({"addressPools": [{"name": "a"}]}))]
#[case(false, "default", json!({"mtu": 576}))]
#[case(false, "default", json!({"mtu": 65536}))]
fn a_network_configuration_is_judged_alike(#[case] good: bool, #[case] name: &str, #[case] spec: Value) {
    agree("NetworkConfiguration", name, &spec, good);
}

/// What the API server fills in is what the agent would have taken anyway.
#[rstest]
#[case("BGPConfiguration", "default", json!({}))]
#[case("BGPConfiguration", "default", json!({"serviceAdvertisement": {}}))]
#[case("NetworkConfiguration", "default", json!({}))]
#[case("BGPPeer", "tor-a", peer(json!({})))]
#[case("BGPPeer", "tor-a", peer(json!({"bfd": {}, "addPath": {}, "shutdown": {}})))]
#[case("BGPPeer", "tor-a", peer(json!({"peerIP": null, "peerRange": "10.1.0.0/24"})))]
#[case("BGPPeer", "tor-a", peer(json!({"peerIP": null, "interface": "eth1"})))]
#[case("BGPPeer", "rr", peer(json!({"peerIP": null, "asNumber": null, "peerSelector": {}})))]
fn defaults_change_nothing(#[case] kind: &str, #[case] name: &str, #[case] spec: Value) {
    let short = object(kind, name, &spec);
    let full = Server::of(kind).admit(&short).unwrap();
    assert_ne!(short, full, "the definition has defaults");
    let read = |object: &Value| offline(object).unwrap().objects.remove(0).object;
    assert_eq!(read(&short), read(&full));
}

#[test]
fn every_rule_has_been_broken_by_one_of_these() {
    let bad = [
        ("BGPPeer", peer(json!({"peerIP": null}))),
        ("BGPPeer", peer(json!({"asNumber": null}))),
        ("BGPPeer", peer(json!({"maxPeers": 3}))),
        ("BGPPeer", peer(json!({"keepaliveTime": "90s"}))),
        ("BGPPeer", peer(json!({"ebgpMultihop": 2, "ttlSecurity": true}))),
        (
            "BGPPeer",
            peer(
                json!({"peerIP": null, "interface": "eth1", "ebgpMultihop": 2, "sourceAddress": "10.0.0.1"}),
            ),
        ),
        ("BGPPeer", peer(json!({"sourceAddress": "fd00::1"}))),
        ("BGPPeer", peer(json!({"asNumber": null, "remoteAS": "External", "routeReflectorClient": true}))),
        (
            "BGPPeer",
            peer(json!({"asNumber": 65535, "localASNumber": 23456, "holdTime": "1s", "connectRetry": "0"})),
        ),
        ("BGPPeer", peer(json!({"bfd": {"minTx": "1ms", "minRx": "2m"}, "addPath": {"sendMax": 2}}))),
        ("BGPPeer", peer(json!({"maxPrefixes": {"restartTime": "0"}}))),
        (
            "BGPPeer",
            peer(
                json!({"peerIP": "fe80::1", "sourceAddress": "eth0", "shutdown": {"message": "ß".repeat(200)}}),
            ),
        ),
        ("BGPPeer", peer(json!({"peerIP": null, "peerRange": "10.0.0.1/8"}))),
        ("BGPPeer", peer(json!({"peerIP": null, "interface": ".."}))),
        (
            "BGPPeer",
            peer(json!({"port": 1179, "passive": true, "sourceAddress": "10.0.0.1",
                        "peerSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}})),
        ),
        ("BGPPeer", peer(json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}))),
        (
            "BGPConfiguration",
            json!({"asNumber": 65535, "gracefulRestart": {"restartTime": "2h", "longLivedTime": "1ms"},
            "drain": {"delay": "2h"}, "serviceAdvertisement": {"clusterIPs": ["x"], "externalIPs": ["x"], "loadBalancerIPs": ["x"]}}),
        ),
        (
            "NetworkConfiguration",
            json!({"clusterCIDRs": ["x"], "egressNat": {"excludeCIDRs": ["x"]},
            "addressPools": [{"name": "a", "cidrs": ["x"]}], "mtu": 3}),
        ),
        ("BGPFilter", filters("10.0.0.0/8", "fd00::1", "fd00::/8")),
        ("BGPFilter", filters("fd00::/8", "10.0.0.1", "10.0.0.0/8")),
    ];
    let mut unbroken = BTreeSet::new();
    let mut broken = Vec::new();
    for kind in ["BGPConfiguration", "BGPFilter", "BGPPeer", "NetworkConfiguration"] {
        rules_of(&Server::of(kind).schema, kind, &mut unbroken);
    }
    for (kind, spec) in bad {
        let name = if kind.ends_with("Configuration") { "x" } else { "default" };
        let server = Server::of(kind);
        let mut object = object(kind, name, &spec);
        fill(&server.schema, &mut object);
        let mut wrong = Vec::new();
        check(&server.schema, &object, "", &mut wrong);
        assert_eq!(wrong, [] as [&str; 0], "rules are asked only of what fits its schema: {object}");
        run_rules(&server.schema, &object, "", &mut wrong);
        broken.extend(wrong.iter().map(|w| format!("{kind}{}", without_indices(w))));
    }
    for broken in &broken {
        unbroken.remove(broken);
    }
    assert_eq!(unbroken.iter().collect::<Vec<_>>(), [] as [&String; 0]);
}

/// Two rules of one family each: what is wrong with both lists at once.
fn filters(cidr: &str, hop: &str, other: &str) -> Value {
    let rules = json!([
        {"action": "Accept", "ge": 1},
        {"action": "Accept", "cidr": cidr},
        {"action": "Accept", "cidr": other, "ge": 9, "le": 8},
        {"action": "Reject", "set": {"med": 1}},
        {"action": "Accept", "set": {"nextHop": hop}},
        {"action": "Accept", "set": {"nextHop": "x"}},
        {"action": "Accept", "cidr": "x", "nextHop": "x", "neighbor": "10.0.0.1/8"},
    ]);
    json!({"ipv4": rules, "ipv6": rules})
}

fn rules_of(schema: &Value, path: &str, all: &mut BTreeSet<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        all.insert(format!("{path}: {}", rule["message"].as_str().unwrap()));
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        rules_of(schema, &format!("{path}.{name}"), all);
    }
    if schema["items"].is_object() {
        rules_of(&schema["items"], &format!("{path}[]"), all);
    }
}

/// `.spec.ipv4[3].cidr: no` -> `.spec.ipv4[].cidr: no`
fn without_indices(text: &str) -> String {
    let mut out = String::new();
    for (i, part) in text.split('[').enumerate() {
        if i > 0 {
            out.push('[');
        }
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        out.push_str(if i > 0 && rest.starts_with(']') { rest } else { part });
    }
    out
}

#[test]
fn every_field_is_described_and_typed() {
    fn walk(schema: &Value, path: &str) {
        for word in schema.as_object().expect("a schema").keys() {
            assert!(
                !["$ref", "anyOf", "allOf", "oneOf", "not", "nullable", "title", "$schema"]
                    .contains(&word.as_str()),
                "{path}: {word} is not structural"
            );
        }
        assert!(schema["type"].is_string(), "{path} has no type");
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let told = [".apiVersion", ".kind", ".metadata", ".spec", ".status"].contains(&path.as_str());
            let list_of_labels = path.contains("matchLabels") || path.contains("matchExpressions");
            assert!(told || list_of_labels || schema["description"].is_string(), "{path} has no description");
            walk(schema, &path);
        }
        if schema["items"].is_object() {
            walk(&schema["items"], &format!("{path}[]"));
        }
    }
    for definition in definitions() {
        walk(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "");
    }
}
