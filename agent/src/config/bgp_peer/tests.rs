use rstest::rstest;
use serde_json::{Value, json};

use super::*;

fn validate(mut over: Value) -> Result<BgpPeer, Vec<Issue>> {
    let mut spec = json!({"peerIP": "10.1.0.1", "asNumber": 65001});
    let target = spec.as_object_mut().unwrap();
    for (key, value) in over.as_object_mut().unwrap() {
        match value {
            Value::Null => target.remove(key),
            other => target.insert(key.clone(), other.take()),
        };
    }
    BgpPeer::validate("tor-a", &serde_json::from_value(spec).unwrap())
}

#[test]
fn address_and_as_are_enough() {
    let peer = validate(json!({})).unwrap();
    assert_eq!(peer.target, PeerTarget::Address("10.1.0.1".parse().unwrap()));
    assert_eq!(peer.remote_as, Some(RemoteAs::Asn(Asn(65001))));
    assert_eq!(peer.hold_time.unwrap().seconds(), 90);
    assert_eq!(peer.connect_retry, Duration::from_secs(5));
    assert_eq!(peer.families, Family::ALL);
    assert_eq!(peer.max_prefixes, MaxPrefixes { limit: 10_000, action: MaxPrefixesAction::Warn });
    assert_eq!((peer.port, peer.required, peer.bfd, peer.shutdown), (179, true, None, None));
    assert_eq!(peer.source_address, SourceAddress::NodeIp);
}

#[test]
fn a_peer_with_too_many_prefixes_may_be_tried_again_after_a_time() {
    let action = |limit: Value| validate(json!({"maxPrefixes": limit})).unwrap().max_prefixes.action;
    let disable = |restart| MaxPrefixesAction::Disable { restart };
    assert_eq!(action(json!({"action": "Disable"})), disable(None));
    let five_minutes = disable(Some(Duration::from_secs(300)));
    assert_eq!(action(json!({"action": "Disable", "restartTime": "5m"})), five_minutes);
}

#[test]
fn peers_may_come_from_a_range() {
    let range = "10.1.0.0/24".parse().unwrap();
    let target = |spec| validate(spec).unwrap().target;
    let of_100 = target(json!({"peerIP": null, "peerRange": "10.1.0.0/24"}));
    assert_eq!(of_100, PeerTarget::Range { range, max_peers: 100 });
    let of_3 = target(json!({"peerIP": null, "peerRange": "10.1.0.0/24", "maxPeers": 3}));
    assert_eq!(of_3, PeerTarget::Range { range, max_peers: 3 });
}

#[test]
fn peers_may_be_nodes_by_their_labels() {
    let of = |over: Value| validate(over);
    let nodes =
        json!({"peerIP": null, "asNumber": null, "peerSelector": {"matchLabels": {"role": "reflector"}}});
    let peer = of(nodes.clone()).unwrap();
    let PeerTarget::Nodes(selector) = &peer.target else { panic!("{peer:?}") };
    assert_eq!((selector.to_string().as_str(), peer.remote_as), ("role=reflector", None));
    for (field, value) in [
        ("asNumber", json!(65001)),
        ("remoteAS", json!("Internal")),
        ("localASNumber", json!(65101)),
        ("port", json!(1179)),
        ("passive", json!(true)),
        ("sourceAddress", json!("10.0.0.1")),
    ] {
        let mut over = nodes.clone();
        over[field] = value;
        let issues = of(over).unwrap_err();
        assert_eq!((issues.len(), issues[0].path.as_str()), (1, format!("spec.{field}").as_str()));
    }
}

#[test]
fn every_field_of_the_interface_is_read() {
    let peer = validate(json!({
        "nodeSelector": {"matchLabels": {"rack": "a"}}, "port": 1179, "localASNumber": 65101,
        "holdTime": "1m30s", "keepaliveTime": "30s", "connectRetry": "5s", "passive": true,
        "sourceAddress": "10.1.0.11", "ebgpMultihop": 2, "ttlSecurity": false, "families": ["ipv6", "ipv4"],
        "addPath": {"receive": true, "send": true, "sendMax": 4}, "extendedNextHop": true, "nextHop": "Keep", "allowAsIn": 1,
        "asOverride": true, "removePrivateAS": true, "blackhole": true, "routeReflectorClient": false,
        "password": {"secretKeyRef": {"name": "tor-a", "key": "password"}},
        "maxPrefixes": {"limit": 5, "action": "Disable"},
        "bfd": {"minTx": "100ms", "minRx": "200ms", "multiplier": 3},
        "importFilters": ["racks"], "exportFilters": [], "required": false,
        "shutdown": {"enabled": true, "message": "maintenance"}
    }))
    .unwrap();
    assert_eq!(peer.shutdown.as_deref(), Some("maintenance"));
    assert_eq!(peer.import_filters, ["racks"]);
    assert_eq!(peer.bfd.unwrap().min_rx, Duration::from_millis(200));
}

#[rstest]
#[case(json!({"peerIP": null}), "spec", "none is there")]
#[case(json!({"interface": "eth1"}), "spec", "more than one is there")]
#[case(json!({"peerIP": null, "autoDiscover": "Magic"}), "spec.autoDiscover", "must be DefaultGateway")]
#[case(json!({"peerIP": null, "interface": "an-interface-name"}), "spec.interface", "at most 15")]
#[case(json!({"peerRange": "10.1.0.0/24"}), "spec", "more than one is there")]
#[case(json!({"peerIP": null, "peerRange": "10.1.0.1/24"}), "spec.peerRange", "10.1.0.1")]
#[case(json!({"peerIP": null, "peerRange": "10.1.0.0/24", "maxPeers": 0}), "spec.maxPeers", "0")]
#[case(json!({"maxPeers": 3}), "spec.maxPeers", "peerRange only")]
#[case(json!({"asNumber": null, "peerSelector": {}}), "spec", "more than one is there")]
#[case(json!({"peerIP": null, "asNumber": null, "peerSelector": {"matchExpressions": [{"key": "a", "operator": "Gt"}]}}), "spec.peerSelector.matchExpressions[0]", "must be In")]
#[case(json!({"peerIP": "10.1.0"}), "spec.peerIP", "must be an IPv4 or IPv6 address")]
#[case(json!({"peerIP": "224.0.0.5"}), "spec.peerIP", "no peer can have")]
#[case(json!({"peerIP": "fe80::1"}), "spec.peerIP", "use interface")]
#[case(json!({"asNumber": null}), "spec", "none is there")]
#[case(json!({"remoteAS": "External"}), "spec", "both are there")]
#[case(json!({"asNumber": null, "remoteAS": "65001"}), "spec.remoteAS", "goes into asNumber")]
#[case(json!({"asNumber": 0}), "spec.asNumber", "reserved")]
#[case(json!({"localASNumber": 4294967295_u32}), "spec.localASNumber", "reserved")]
#[case(json!({"holdTime": "2s"}), "spec.holdTime", "3s to 65535s")]
#[case(json!({"holdTime": "65536s"}), "spec.holdTime", "3s to 65535s")]
#[case(json!({"holdTime": 90}), "spec.holdTime", "with its unit")]
#[case(json!({"keepaliveTime": "90s"}), "spec.keepaliveTime", "less than holdTime")]
#[case(json!({"keepaliveTime": "100ms"}), "spec.keepaliveTime", "at least 1s")]
#[case(json!({"holdTime": "0", "keepaliveTime": "30s"}), "spec.keepaliveTime", "leave it out")]
#[case(json!({"connectRetry": "0s"}), "spec.connectRetry", "from 100ms")]
#[case(json!({"port": 0}), "spec.port", "from 1 to 65535")]
#[case(json!({"sourceAddress": "eth0"}), "spec.sourceAddress", "must be UseNodeIP")]
#[case(json!({"sourceAddress": "fd00::1"}), "spec.sourceAddress", "same family")]
#[case(json!({"ebgpMultihop": 0}), "spec.ebgpMultihop", "from 1 to 255")]
#[case(json!({"ebgpMultihop": 2, "ttlSecurity": true}), "spec.ttlSecurity", "drop one")]
#[case(json!({"families": []}), "spec.families", "names no family")]
#[case(json!({"families": ["ipv4", "vpnv4"]}), "spec.families[1]", "must be ipv4 or ipv6")]
#[case(json!({"addPath": {"send": true, "sendMax": 0}}), "spec.addPath.sendMax", "from 1 to 255")]
#[case(json!({"addPath": {"receive": true, "sendMax": 2}}), "spec.addPath.sendMax", "which is not on")]
#[case(json!({"nextHop": "Other"}), "spec.nextHop", "must be Self")]
#[case(json!({"allowAsIn": 11}), "spec.allowAsIn", "from 0 to 10")]
#[case(json!({"password": {"secretKeyRef": {"name": "", "key": "k"}}}), "spec.password.secretKeyRef.name", "must be 1")]
#[case(json!({"maxPrefixes": {"limit": 0}}), "spec.maxPrefixes.limit", "from 1")]
#[case(json!({"maxPrefixes": {"action": "Drop"}}), "spec.maxPrefixes.action", "must be Warn")]
#[case(json!({"maxPrefixes": {"action": "Disable", "restartTime": "25h"}}), "spec.maxPrefixes.restartTime", "from 1s")]
#[case(json!({"maxPrefixes": {"restartTime": "5m"}}), "spec.maxPrefixes.restartTime", "set action: Disable")]
#[case(json!({"peerIP": null, "interface": "eth1", "ebgpMultihop": 2}), "spec.ebgpMultihop", "one hop away")]
#[case(json!({"peerIP": null, "interface": "eth1", "sourceAddress": "fd00::1"}), "spec.sourceAddress", "link-local")]
#[case(json!({"bfd": {"minTx": "1ms"}}), "spec.bfd.minTx", "from 10ms")]
#[case(json!({"bfd": {"multiplier": 1}}), "spec.bfd.multiplier", "from 2")]
#[case(json!({"importFilters": ["a b"]}), "spec.importFilters[0]", "must be 1")]
#[case(json!({"shutdown": {"message": "x".repeat(256)}}), "spec.shutdown.message", "at most 255")]
#[case(json!({"asNumber": null, "remoteAS": "External", "routeReflectorClient": true}), "spec.routeReflectorClient", "internal")]
#[case(json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}), "spec.nodeSelector.matchExpressions[0]", "needs values")]
fn what_is_wrong_is_named_with_its_remedy(#[case] over: Value, #[case] path: &str, #[case] reason: &str) {
    let issues = validate(over).unwrap_err();
    assert_eq!(issues.len(), 1, "{issues:?}");
    assert_eq!(issues[0].path, path);
    assert!(issues[0].reason.contains(reason), "{}", issues[0]);
}

#[test]
fn all_issues_come_at_once() {
    let issues = validate(json!({"holdTime": "1s", "port": 0, "nextHop": "x"})).unwrap_err();
    assert_eq!(issues.len(), 3);
}

#[test]
fn a_peer_by_interface_needs_no_address_and_bfd_without_values_detects_in_300_ms() {
    let peer = validate(json!({"peerIP": null, "interface": "eth1", "bfd": {}})).unwrap();
    assert_eq!(peer.target, PeerTarget::Interface("eth1".to_owned()));
    let bfd = peer.bfd.unwrap();
    assert_eq!(bfd.min_rx * u32::from(bfd.multiplier), Duration::from_millis(300));
}

#[test]
fn hold_time_zero_means_no_timer() {
    let peer = validate(json!({"holdTime": "0s", "keepaliveTime": "0"})).unwrap();
    assert_eq!((peer.hold_time, peer.keepalive), (None, None));
}
