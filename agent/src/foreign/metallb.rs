//! MetalLB's BGPPeer with its BFDProfile, IPAddressPool and BGPAdvertisement.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{Translation, is_empty, is_of, name, text};

const GROUPS: &[&str] = &["metallb.io"];

pub(super) fn translate(objects: &[&Value], out: &mut Translation) {
    let of = |kind: &'static str| objects.iter().copied().filter(move |o| is_of(o, GROUPS, kind));
    let mut ranges: Vec<String> = Vec::new();
    for pool in of("IPAddressPool") {
        for range in pool["spec"]["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            match prefixes(range) {
                Some(prefixes) => ranges.extend(prefixes),
                None => out.remark(pool, format!("spec.addresses: {range} is neither a prefix nor a range")),
            }
        }
        out.remark(
            pool,
            "Manx advertises addresses and hands none out: something else must assign them to Services",
        );
    }
    if !ranges.is_empty() {
        let mut spec = Map::new();
        spec.insert("serviceAdvertisement".to_owned(), json!({"loadBalancerIPs": ranges}));
        out.object("BGPConfiguration", "default", spec);
    }
    for advertisement in of("BGPAdvertisement") {
        out.unknown(advertisement, &["ipAddressPools", "ipAddressPoolSelectors"]);
    }
    for advertisement in of("L2Advertisement") {
        out.remark(advertisement, "not taken over: Manx answers for no address by ARP or ND");
    }
    for object in of("BGPPeer") {
        peer(object, &of("BFDProfile").collect::<Vec<_>>(), out);
    }
}

fn peer(object: &Value, profiles: &[&Value], out: &mut Translation) {
    let from = &object["spec"];
    if let Some(vrf) = text(&from["vrf"]) {
        return out.remark(object, format!("not taken over: spec.vrf {vrf} has no equal here"));
    }
    let mut spec = Map::new();
    let mut set = |field: &str, value: Value| spec.insert(field.to_owned(), value);
    match (text(&from["peerAddress"]), text(&from["interface"])) {
        (Some(ip), _) => set("peerIP", json!(ip)),
        (None, Some(interface)) => set("interface", json!(interface)),
        (None, None) => {
            return out.remark(object, "not taken over: it has neither peerAddress nor interface");
        }
    };
    match text(&from["dynamicASN"]) {
        Some("internal") => set("remoteAS", json!("Internal")),
        Some(_) => set("remoteAS", json!("External")),
        None => set("asNumber", from["peerASN"].clone()),
    };
    for (theirs, ours) in [("myASN", "localASNumber"), ("peerPort", "port")] {
        if from[theirs].as_i64().is_some_and(|n| n > 0) {
            set(ours, from[theirs].clone());
        }
    }
    for (theirs, ours) in [
        ("holdTime", "holdTime"),
        ("keepaliveTime", "keepaliveTime"),
        ("connectTime", "connectRetry"),
        ("sourceAddress", "sourceAddress"),
    ] {
        if let Some(value) = text(&from[theirs]) {
            set(ours, json!(value));
        }
    }
    if from["ebgpMultiHop"] == true {
        set("ebgpMultihop", json!(255));
    }
    if let Some(secret) = text(&from["passwordSecret"]["name"]) {
        set("password", json!({"secretKeyRef": {"name": secret, "key": "password"}}));
        out.remark(
            object,
            format!("copy Secret {secret} to the namespace of Manx; until then the session stays down"),
        );
    } else if text(&from["password"]).is_some() {
        let secret = format!("bgp-{}", name(object));
        set("password", json!({"secretKeyRef": {"name": secret, "key": "password"}}));
        out.remark(object, format!("its password stands in the object: put it into Secret {secret}, key password, in the namespace of Manx"));
    }
    if let Some(profile) = text(&from["bfdProfile"]) {
        let found = profiles.iter().find(|p| name(p) == profile);
        if found.is_none() {
            out.remark(object, format!("BFDProfile {profile} is not among the objects: our defaults hold"));
        }
        set("bfd", found.map_or_else(|| json!({}), |profile| bfd(profile)));
    }
    out.unknown(
        object,
        &[
            "peerAddress",
            "interface",
            "dynamicASN",
            "peerASN",
            "myASN",
            "peerPort",
            "holdTime",
            "keepaliveTime",
            "connectTime",
            "sourceAddress",
            "ebgpMultiHop",
            "passwordSecret",
            "password",
            "bfdProfile",
            "nodeSelectors",
            "enableGracefulRestart",
        ],
    );
    // Any of several selectors picks a node; one of ours has a single one.
    let selectors = from["nodeSelectors"].as_array().filter(|list| !list.is_empty());
    match selectors.map(Vec::as_slice) {
        None => out.object("BGPPeer", name(object), spec),
        Some([selector]) => {
            spec.insert("nodeSelector".to_owned(), selector.clone());
            out.object("BGPPeer", name(object), spec);
        }
        Some(selectors) => {
            for (i, selector) in selectors.iter().enumerate() {
                let mut spec = spec.clone();
                spec.insert("nodeSelector".to_owned(), selector.clone());
                out.object("BGPPeer", &format!("{}-{i}", name(object)), spec);
            }
            out.remark(
                object,
                "has several nodeSelectors and becomes a peer for each: no node may be picked by two",
            );
        }
    }
}

fn bfd(profile: &Value) -> Value {
    let mut spec = Map::new();
    for (theirs, ours) in [("transmitInterval", "minTx"), ("receiveInterval", "minRx")] {
        if let Some(ms) = profile["spec"][theirs].as_i64() {
            spec.insert(ours.to_owned(), json!(format!("{ms}ms")));
        }
    }
    if !is_empty(&profile["spec"]["detectMultiplier"]) {
        spec.insert("multiplier".to_owned(), profile["spec"]["detectMultiplier"].clone());
    }
    Value::Object(spec)
}

/// The prefixes that make up `10.0.0.0/24` or `10.0.0.10-10.0.0.20`, the fewest there are.
fn prefixes(range: &str) -> Option<Vec<String>> {
    let Some((first, last)) = range.split_once('-') else {
        let net: ipnetwork::IpNetwork = range.trim().parse().ok()?;
        return Some(vec![format!("{}/{}", net.network(), net.prefix())]);
    };
    let (first, last): (IpAddr, IpAddr) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let bits: u32 = if first.is_ipv4() { 32 } else { 128 };
    if first.is_ipv4() != last.is_ipv4() || number(first) > number(last) {
        return None;
    }
    let (mut at, last) = (number(first), number(last));
    let mut out = Vec::new();
    loop {
        // The largest block that begins here and does not reach beyond the end.
        let aligned = at.trailing_zeros().min(bits);
        let size =
            (0..=aligned).rev().find(|n| *n < 128 && last - at >= (1_u128 << n) - 1).unwrap_or_default();
        let ip = if bits == 32 { IpAddr::V4((at as u32).into()) } else { IpAddr::V6(at.into()) };
        out.push(format!("{ip}/{}", bits - size));
        match at.checked_add(1 << size) {
            Some(next) if next <= last => at = next,
            _ => return Some(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::super::tests::import;
    use super::*;

    #[test]
    fn peers_pools_and_profiles_are_taken_over() {
        let (objects, remarks) = import(
            Origin::MetalLb,
            "
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system}
spec:
  myASN: 64500
  peerASN: 64501
  peerAddress: 10.0.0.1
  peerPort: 1179
  holdTime: 30s
  keepaliveTime: 10s
  ebgpMultiHop: true
  bfdProfile: fast
  passwordSecret: {name: tor}
  nodeSelectors: [{matchLabels: {rack: a}}, {matchLabels: {rack: b}}]
---
apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata: {name: fast}
spec: {transmitInterval: 150, receiveInterval: 200, detectMultiplier: 4}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: pool}
spec: {addresses: [203.0.113.0/28, 198.51.100.10-198.51.100.15, 'fd00::-fd00::3']}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: all}
spec: {ipAddressPools: [pool], communities: ['65535:65282'], localPref: 100}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: l2}
",
        );
        assert_eq!(
            objects[0]["spec"]["serviceAdvertisement"]["loadBalancerIPs"],
            json!(["203.0.113.0/28", "198.51.100.10/31", "198.51.100.12/30", "fd00::/126"])
        );
        assert_eq!(
            objects[1]["spec"],
            json!({
                "peerIP": "10.0.0.1", "asNumber": 64501, "localASNumber": 64500, "port": 1179, "holdTime": "30s",
                "keepaliveTime": "10s", "ebgpMultihop": 255, "bfd": {"minTx": "150ms", "minRx": "200ms", "multiplier": 4},
                "password": {"secretKeyRef": {"name": "tor", "key": "password"}}, "nodeSelector": {"matchLabels": {"rack": "a"}},
            })
        );
        assert_eq!(objects[2]["metadata"]["name"], "tor-1");
        for word in [
            "hands none out",
            "spec.communities",
            "spec.localPref",
            "ARP",
            "copy Secret tor",
            "several nodeSelectors",
        ] {
            assert!(remarks.iter().any(|r| r.contains(word)), "{word}: {remarks:?}");
        }
    }

    #[test]
    fn a_range_is_cut_into_the_fewest_prefixes() {
        assert_eq!(prefixes("10.0.0.0-10.0.0.255").unwrap(), ["10.0.0.0/24"]);
        assert_eq!(prefixes("10.0.0.7-10.0.0.7").unwrap(), ["10.0.0.7/32"]);
        assert_eq!(prefixes("0.0.0.0-255.255.255.255").unwrap(), ["0.0.0.0/0"]);
        assert_eq!(prefixes("10.0.0.9-10.0.0.1"), None);
        assert_eq!(prefixes("10.0.0.9-fd00::1"), None);
    }
}
