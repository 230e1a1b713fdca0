//! Defaults, limits and CEL rules, a row for each field that has any. The same checks as `config` makes, in the API's words.
//!
//! Lengths of lists and texts are bounded because the API server refuses rules whose cost it cannot bound. Rules see an
//! object with its defaults filled in.

use serde_json::{Value, json};

/// A field's path and the words to add to its schema.
pub(super) type Bound = (&'static str, Value);

/// A number of 16 bits.
const U16: &str = "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[0-9]{1,4})";
/// A number of 32 bits.
const U32: &str = "(429496729[0-5]|42949672[0-8][0-9]|4294967[01][0-9]{2}|429496[0-6][0-9]{3}|42949[0-5][0-9]{4}|\
                   4294[0-8][0-9]{5}|429[0-3][0-9]{6}|42[0-8][0-9]{7}|4[01][0-9]{8}|[1-3][0-9]{9}|[0-9]{1,9})";

/// Rules with the message of each.
fn rules(all: &[(&str, &str)]) -> Value {
    all.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect()
}

fn within(least: i64, most: i64) -> Value {
    json!({"minimum": least, "maximum": most})
}

fn one_of(values: &[&str]) -> Value {
    json!({"enum": values})
}

fn with(mut bound: Value, word: &str, value: Value) -> Value {
    bound[word] = value;
    bound
}

fn default(value: impl Into<Value>) -> Value {
    json!({"default": value.into()})
}

/// What `config::values::asn` lets through.
fn asn() -> Value {
    json!({"type": "integer", "format": "int64", "minimum": 1, "maximum": 4_294_967_294_i64,
           "x-kubernetes-validations": rules(&[("!(self in [23456, 65535])", "this AS number is reserved")])})
}

/// A duration of numbers with units h, m, s, ms for which a rule holds.
fn duration(rule: &str, message: &str) -> Value {
    json!({"pattern": "^(0|([0-9]{1,9}(h|m|s|ms))+)$", "maxLength": 20,
           "x-kubernetes-validations": rules(&[(rule, message)])})
}

/// A prefix with its length written and no host bits set.
fn prefix() -> Value {
    json!({"maxLength": 43, "x-kubernetes-validations": rules(&[
        ("isCIDR(self) && cidr(self).masked() == cidr(self)",
         "must be an IPv4 or IPv6 prefix without bits set behind its length, such as 10.200.0.0/16")])})
}

fn list_of_prefixes(most: usize) -> Value {
    json!({"maxItems": most, "x-kubernetes-list-type": "atomic"})
}

/// What `config::values::name` lets through.
fn name() -> Value {
    json!({"minLength": 1, "maxLength": 253, "pattern": "^[A-Za-z0-9._/-]+$"})
}

fn conditions(path: &'static str) -> Vec<Bound> {
    vec![(
        path,
        json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "maxItems": 16}),
    )]
}

pub(super) fn bgp_configuration() -> Vec<Bound> {
    let whole = "duration(self) == duration(string(duration(self).getSeconds()) + 's')";
    let mut bounds = vec![
        ("spec.asNumber", with(asn(), "default", json!(64512))),
        (
            "spec.nodeToNodeMesh",
            with(one_of(&["Auto", "On", "Off", "Enabled", "Disabled"]), "default", json!("Auto")),
        ),
        ("spec.listenPort", with(within(1, 65535), "default", json!(179))),
        ("spec.multipath", default(json!({}))),
        ("spec.multipath.maxPaths", with(within(1, 128), "default", json!(16))),
        ("spec.multipath.asPathRelax", default(true)),
        ("spec.gracefulRestart", default(json!({}))),
        ("spec.gracefulRestart.enabled", default(true)),
        (
            "spec.gracefulRestart.restartTime",
            with(
                duration(
                    &format!(
                        "{whole} && duration(self) >= duration('1s') && duration(self) <= duration('4095s')"
                    ),
                    "must be whole seconds from 1s to 4095s",
                ),
                "default",
                json!("120s"),
            ),
        ),
        (
            "spec.gracefulRestart.longLivedTime",
            duration(
                &format!("{whole} && duration(self) <= duration('16777215s')"),
                "must be whole seconds up to 16777215s",
            ),
        ),
        ("spec.drain", default(json!({}))),
        ("spec.drain.mode", with(one_of(&["GracefulShutdown"]), "default", json!("GracefulShutdown"))),
        (
            "spec.drain.delay",
            with(
                duration("duration(self) <= duration('3600s')", "must be from 0s to 3600s"),
                "default",
                json!("30s"),
            ),
        ),
    ];
    for (list, items) in [
        ("spec.serviceAdvertisement.clusterIPs", "spec.serviceAdvertisement.clusterIPs[]"),
        ("spec.serviceAdvertisement.externalIPs", "spec.serviceAdvertisement.externalIPs[]"),
        ("spec.serviceAdvertisement.loadBalancerIPs", "spec.serviceAdvertisement.loadBalancerIPs[]"),
    ] {
        bounds.extend([(list, list_of_prefixes(256)), (items, prefix())]);
    }
    bounds.extend(conditions("status.conditions"));
    bounds
}

pub(super) fn bgp_peer() -> Vec<Bound> {
    let ttl =
        "!(has(self.ttlSecurity) && self.ttlSecurity && has(self.ebgpMultihop) && self.ebgpMultihop > 1)";
    let keepalive = "!has(self.keepaliveTime) || !has(self.holdTime) || (duration(self.holdTime) == duration('0s') \
                     ? duration(self.keepaliveTime) == duration('0s') \
                     : duration(self.keepaliveTime) >= duration('1s') && duration(self.keepaliveTime) < duration(self.holdTime))";
    let spec = rules(&[
        (
            "[has(self.peerIP), has(self.interface), has(self.autoDiscover), has(self.peerRange), has(self.peerSelector)]\
             .filter(x, x).size() == 1",
            "exactly one of peerIP, interface, autoDiscover, peerRange and peerSelector names the peer",
        ),
        (
            "has(self.peerSelector) || has(self.asNumber) != has(self.remoteAS)",
            "exactly one of asNumber and remoteAS names the peer's AS",
        ),
        (
            "!has(self.peerSelector) || !(has(self.asNumber) || has(self.remoteAS) || has(self.localASNumber))",
            "no AS number can go with peerSelector: that of each node is known; leave it out",
        ),
        (
            "!has(self.peerSelector) || !has(self.port) || self.port == 179",
            "port cannot go with peerSelector: nodes listen on BGPConfiguration's listenPort",
        ),
        (
            "!has(self.peerSelector) || !has(self.passive) || !self.passive",
            "passive cannot go with peerSelector: of two nodes one dials; leave it out",
        ),
        (
            "!has(self.peerSelector) || !has(self.sourceAddress) || self.sourceAddress in ['UseNodeIP', 'None']",
            "an address as sourceAddress cannot go with peerSelector, as each node has its own",
        ),
        ("!has(self.maxPeers) || has(self.peerRange)", "maxPeers goes with peerRange only"),
        (keepalive, "keepaliveTime must be at least 1s and less than holdTime; with holdTime 0 leave it out"),
        (
            ttl,
            "ttlSecurity cannot go with ebgpMultihop, which lets packets through that ttlSecurity stops; drop one",
        ),
        (
            "!has(self.interface) || !has(self.ebgpMultihop) || self.ebgpMultihop <= 1",
            "a peer by interface is one hop away; leave ebgpMultihop out",
        ),
        (
            "!has(self.interface) || !has(self.sourceAddress) || self.sourceAddress in ['UseNodeIP', 'None']",
            "a peer by interface is dialled from the link-local address; leave sourceAddress out",
        ),
        (
            "!has(self.peerIP) || !has(self.sourceAddress) || self.sourceAddress in ['UseNodeIP', 'None'] || \
             self.sourceAddress.contains(':') == self.peerIP.contains(':')",
            "sourceAddress must be of the same family as peerIP",
        ),
        (
            "!(has(self.routeReflectorClient) && self.routeReflectorClient && has(self.remoteAS) && self.remoteAS == 'External')",
            "only internal peers are reflection clients",
        ),
    ]);
    let hold = "duration(self) == duration('0s') || (duration(self) >= duration('3s') && duration(self) <= duration('65535s') && \
                duration(self) == duration(string(duration(self).getSeconds()) + 's'))";
    let bfd = |value: &str| {
        with(
            duration(
                "duration(self) >= duration('10ms') && duration(self) <= duration('60s')",
                "must be from 10ms to 60s",
            ),
            "default",
            json!(value),
        )
    };
    let filters = json!({"maxItems": 32, "x-kubernetes-list-type": "atomic"});
    let mut bounds = vec![
        ("spec", json!({"x-kubernetes-validations": spec})),
        (
            "spec.peerIP",
            json!({"maxLength": 45, "x-kubernetes-validations": rules(&[(
                "isIP(self) && (ip(self).isGlobalUnicast() || ip(self).isLoopback() || \
                 (ip(self).isLinkLocalUnicast() && !self.contains(':')))",
                "must be an IPv4 or IPv6 address that a peer can have; a link-local one says nothing without its link: use interface",
            )])}),
        ),
        ("spec.peerRange", prefix()),
        ("spec.maxPeers", within(1, 10_000)),
        // What the kernel accepts (dev_valid_name): no slash, colon or white space, not . or ..
        (
            "spec.interface",
            json!({"minLength": 1, "maxLength": 15, "pattern": "^[!-.0-9;-~]+$",
                   "x-kubernetes-validations": rules(&[("!(self in ['.', '..'])", "must be the name of an interface")])}),
        ),
        ("spec.autoDiscover", one_of(&["DefaultGateway"])),
        ("spec.port", with(within(1, 65535), "default", json!(179))),
        ("spec.asNumber", asn()),
        ("spec.remoteAS", one_of(&["Internal", "External"])),
        ("spec.localASNumber", asn()),
        (
            "spec.holdTime",
            with(
                duration(hold, "must be 0 (no hold timer) or whole seconds from 3s to 65535s"),
                "default",
                json!("90s"),
            ),
        ),
        ("spec.keepaliveTime", json!({"pattern": "^(0|([0-9]{1,9}(h|m|s|ms))+)$", "maxLength": 20})),
        (
            "spec.connectRetry",
            with(
                duration(
                    "duration(self) >= duration('100ms') && duration(self) <= duration('3600s')",
                    "must be from 100ms to 3600s",
                ),
                "default",
                json!("5s"),
            ),
        ),
        ("spec.passive", default(false)),
        (
            "spec.sourceAddress",
            json!({"default": "UseNodeIP", "maxLength": 45, "x-kubernetes-validations": rules(&[(
                "self in ['UseNodeIP', 'None'] || isIP(self)",
                "must be UseNodeIP, None or an address of the node",
            )])}),
        ),
        ("spec.ebgpMultihop", within(1, 255)),
        ("spec.ttlSecurity", default(false)),
        (
            "spec.families",
            json!({"default": ["ipv4", "ipv6"], "minItems": 1, "maxItems": 2, "x-kubernetes-list-type": "atomic"}),
        ),
        ("spec.families[]", one_of(&["ipv4", "ipv6"])),
        (
            "spec.addPath",
            json!({"x-kubernetes-validations": rules(&[(
                "!has(self.sendMax) || (has(self.send) && self.send)",
                "sendMax bounds what send sends, which is not on; set send: true or leave it out",
            )])}),
        ),
        ("spec.addPath.receive", default(false)),
        ("spec.addPath.send", default(false)),
        ("spec.addPath.sendMax", within(1, 255)),
        ("spec.extendedNextHop", default(false)),
        ("spec.nextHop", with(one_of(&["Self", "Keep", "Auto"]), "default", json!("Self"))),
        ("spec.allowAsIn", with(within(0, 10), "default", json!(0))),
        ("spec.asOverride", default(false)),
        ("spec.removePrivateAS", default(false)),
        ("spec.blackhole", default(false)),
        ("spec.routeReflectorClient", default(false)),
        ("spec.password.secretKeyRef.name", name()),
        ("spec.password.secretKeyRef.key", name()),
        (
            "spec.maxPrefixes",
            with(
                default(json!({})),
                "x-kubernetes-validations",
                rules(&[(
                    "!has(self.restartTime) || (has(self.action) && self.action == 'Disable')",
                    "nothing is stopped that could be tried again; set action: Disable or leave it out",
                )]),
            ),
        ),
        ("spec.maxPrefixes.limit", with(within(1, 4_294_967_295), "default", json!(10_000))),
        ("spec.maxPrefixes.action", with(one_of(&["Warn", "Reject", "Disable"]), "default", json!("Warn"))),
        (
            "spec.maxPrefixes.restartTime",
            duration(
                "duration(self) >= duration('1s') && duration(self) <= duration('86400s')",
                "must be from 1s to 86400s",
            ),
        ),
        ("spec.bfd.minTx", bfd("100ms")),
        ("spec.bfd.minRx", bfd("100ms")),
        ("spec.bfd.multiplier", with(within(2, 255), "default", json!(3))),
        ("spec.importFilters", filters.clone()),
        ("spec.importFilters[]", name()),
        ("spec.exportFilters", filters),
        ("spec.exportFilters[]", name()),
        ("spec.required", default(true)),
        ("spec.shutdown.enabled", default(false)),
        // RFC 9003: the text has one octet for its length.
        (
            "spec.shutdown.message",
            json!({"maxLength": 255, "x-kubernetes-validations": rules(&[(
                "bytes(self).size() <= 255",
                "at most 255 bytes can be sent",
            )])}),
        ),
    ];
    macro_rules! label_selector {
        ($field:literal) => {
            bounds.extend([
                ($field, json!({"x-kubernetes-map-type": "atomic"})),
                (
                    concat!($field, ".matchExpressions"),
                    json!({"maxItems": 64, "x-kubernetes-list-type": "atomic"}),
                ),
                (
                    concat!($field, ".matchExpressions[]"),
                    json!({"x-kubernetes-validations": rules(&[(
                        "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
                        "In and NotIn need values, Exists and DoesNotExist take none",
                    )])}),
                ),
                (concat!($field, ".matchExpressions[].key"), json!({"minLength": 1, "maxLength": 317})),
                (
                    concat!($field, ".matchExpressions[].operator"),
                    one_of(&["In", "NotIn", "Exists", "DoesNotExist"]),
                ),
                (
                    concat!($field, ".matchExpressions[].values"),
                    json!({"maxItems": 1024, "x-kubernetes-list-type": "atomic"}),
                ),
            ]);
        };
    }
    label_selector!("spec.nodeSelector");
    label_selector!("spec.peerSelector");
    bounds.extend(conditions("status.conditions"));
    bounds
}

pub(super) fn bgp_filter() -> Vec<Bound> {
    // Patterns, not rules: a rule on each of so many texts would cost more than the API server allows.
    let word = "[A-Za-z][A-Za-z0-9_-]*";
    let of_two = format!("{U16}:{U16}");
    let of_three = format!("{U32}:{U32}:{U32}");
    let known = "[A-Za-z]+:[0-9.]+:[0-9]+|0x[0-9a-fA-F]{16}";
    let text = |pattern: String| json!({"maxLength": 40, "pattern": pattern});
    let standard = text(format!("^({of_two}|{word})$"));
    let large = text(format!("^{of_three}$"));
    let extended = text(format!("^({known})$"));
    let either = text(format!("^({of_two}|{of_three}|{known}|{word})$"));
    let few = json!({"maxItems": 64, "x-kubernetes-list-type": "atomic"});
    let mut bounds = Vec::new();
    macro_rules! family {
        ($list:literal, $longest:literal, $own:literal, $name:literal) => {
            bounds.extend([
                ($list, json!({"maxItems": 512, "x-kubernetes-list-type": "atomic"})),
                (
                    concat!($list, "[]"),
                    json!({"x-kubernetes-validations": rules(&[
                        ("has(self.cidr) || (!has(self.ge) && !has(self.le))",
                         "ge and le bound the lengths within cidr, which is not there"),
                        (concat!("!has(self.cidr) || ", $own, "self.cidr.contains(':')"),
                         concat!("cidr must be an ", $name, " prefix; it belongs in the other list")),
                        ("!has(self.cidr) || !isCIDR(self.cidr) || \
                          ((!has(self.ge) || self.ge >= cidr(self.cidr).prefixLength()) && \
                           (!has(self.le) || self.le >= (has(self.ge) ? self.ge : cidr(self.cidr).prefixLength())))",
                         "no prefix fits: the length of cidr <= ge <= le must hold"),
                        ("self.action != 'Reject' || !has(self.set) || \
                          !(has(self.set.localPref) || has(self.set.med) || has(self.set.nextHop) || has(self.set.setCommunities) || \
                            (has(self.set.prepend) && self.set.prepend > 0) || \
                            (has(self.set.addCommunities) && self.set.addCommunities.size() > 0) || \
                            (has(self.set.removeCommunities) && self.set.removeCommunities.size() > 0))",
                         "a rejected route is not changed; leave set out, or accept"),
                        (concat!("!has(self.set) || !has(self.set.nextHop) || ", $own, "self.set.nextHop.contains(':')"),
                         "set.nextHop must be of the rule's family"),
                    ])}),
                ),
                (concat!($list, "[].name"), name()),
                (concat!($list, "[].cidr"), prefix()),
                (concat!($list, "[].ge"), within(0, $longest)),
                (concat!($list, "[].le"), within(0, $longest)),
                (concat!($list, "[].communities"), few.clone()),
                (concat!($list, "[].communities[]"), standard.clone()),
                (concat!($list, "[].largeCommunities"), few.clone()),
                (concat!($list, "[].largeCommunities[]"), large.clone()),
                (concat!($list, "[].extendedCommunities"), few.clone()),
                (concat!($list, "[].extendedCommunities[]"), extended.clone()),
                (concat!($list, "[].asPathRegex"), json!({"maxLength": 256})),
                (
                    concat!($list, "[].nextHop"),
                    json!({"maxLength": 45, "x-kubernetes-validations": rules(&[(
                        "self.contains('/') ? isCIDR(self) && cidr(self).masked() == cidr(self) : isIP(self)",
                        "must be an address or a prefix without bits set behind its length",
                    )])}),
                ),
                (
                    concat!($list, "[].neighbor"),
                    json!({"minLength": 1, "maxLength": 253, "x-kubernetes-validations": rules(&[(
                        "self.contains('/') ? isCIDR(self) && cidr(self).masked() == cidr(self) \
                         : isIP(self) || self.matches('^[A-Za-z0-9._-]+$')",
                        "must be an address, a prefix without bits set behind its length, or the name of a peer",
                    )])}),
                ),
                (concat!($list, "[].action"), one_of(&["Accept", "Reject"])),
                (concat!($list, "[].set.localPref"), within(0, 4_294_967_295)),
                (concat!($list, "[].set.med"), within(0, 4_294_967_295)),
                (concat!($list, "[].set.prepend"), within(0, 32)),
                (
                    concat!($list, "[].set.nextHop"),
                    json!({"maxLength": 45, "x-kubernetes-validations": rules(&[(
                        "isIP(self)", "must be an IPv4 or IPv6 address",
                    )])}),
                ),
                (concat!($list, "[].set.addCommunities"), few.clone()),
                (concat!($list, "[].set.addCommunities[]"), either.clone()),
                (concat!($list, "[].set.removeCommunities"), few.clone()),
                (concat!($list, "[].set.removeCommunities[]"), either.clone()),
                (concat!($list, "[].set.setCommunities"), few.clone()),
                (concat!($list, "[].set.setCommunities[]"), either.clone()),
            ]);
        };
    }
    family!("spec.ipv4", 32, "!", "ipv4");
    family!("spec.ipv6", 128, "", "ipv6");
    bounds.extend(conditions("status.conditions"));
    bounds
}

pub(super) fn network_configuration() -> Vec<Bound> {
    let mut bounds = vec![
        ("spec.clusterCIDRs", list_of_prefixes(64)),
        ("spec.clusterCIDRs[]", prefix()),
        ("spec.egressNat", default(json!({}))),
        ("spec.egressNat.mode", with(one_of(&["Off", "Masquerade"]), "default", json!("Off"))),
        ("spec.egressNat.excludeCIDRs", list_of_prefixes(256)),
        ("spec.egressNat.excludeCIDRs[]", prefix()),
        (
            "spec.addressPools",
            json!({"maxItems": 64, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
        ),
        ("spec.addressPools[].name", name()),
        ("spec.addressPools[].cidrs", list_of_prefixes(64)),
        ("spec.addressPools[].cidrs[]", prefix()),
        (
            "spec.mtu",
            // IPv6 needs 1280 (RFC 8200 5).
            json!({"minimum": 0, "maximum": 65535, "default": 0, "x-kubernetes-validations": rules(&[(
                "self == 0 || self >= 1280", "must be 0 (that of the uplinks) or from 1280 to 65535",
            )])}),
        ),
    ];
    bounds.extend(conditions("status.conditions"));
    bounds
}

pub(super) fn bgp_node_state() -> Vec<Bound> {
    let mut bounds = vec![(
        "status.peers",
        json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "address"], "maxItems": 16384}),
    )];
    bounds.extend(conditions("status.conditions"));
    bounds
}
