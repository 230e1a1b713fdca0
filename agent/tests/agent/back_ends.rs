//! Where our rules are when the host's move from one back end of iptables to the other.

use nix::sys::signal::Signal;

use super::world::*;

const MASQUERADE: &str = "
apiVersion: manx.dev/v1alpha1
kind: NetworkConfiguration
metadata: {name: default}
spec: {egressNat: {mode: Masquerade}}
";

/// Of both families.
fn saved(node: &Node, back_end: &str) -> String {
    ["iptables", "ip6tables"].map(|tool| node.net.sh(&format!("{tool}-{back_end}-save"))).concat()
}

/// The tables in which a jump leads to a chain of ours, once for each family and jump.
fn ours(node: &Node, back_end: &str) -> Vec<String> {
    let saved = saved(node, back_end);
    let mut table = "";
    let mut found = Vec::new();
    for line in saved.lines() {
        table = line.strip_prefix('*').unwrap_or(table);
        if line.starts_with("-A ") && !line.starts_with("-A MANX-") && line.contains("MANX-") {
            found.push(table.to_owned());
        }
    }
    found.sort();
    found
}

#[test]
fn one_back_end_holds_our_rules_and_the_other_is_swept() {
    let node = Node::alone();
    for back_end in ["nft", "legacy"] {
        for tool in ["iptables", "ip6tables"] {
            node.net.sh(&format!("{tool}-{back_end} -A FORWARD -p 47 -j ACCEPT"));
        }
    }
    node.manifest("nat.yaml", MASQUERADE);
    node.manifest("policy.yaml", POLICY);
    node.manifest("web.yaml", &(SHOP.to_owned() + "\n---" + &pod("web", "u1", "{role: web}", "10.200.1.5")));
    node.attach(&attachment("web", Some("u1"), 5));
    let jumps = ["filter", "filter", "mangle", "mangle", "nat", "raw"];
    let jumps: Vec<&str> = jumps.into_iter().flat_map(|table| [table, table]).collect();
    // The last start has nothing that needs sets any more: they go too, though rules of the other back end still name them.
    for (back_end, other, needs_sets) in
        [("legacy", "nft", true), ("nft", "legacy", true), ("legacy", "nft", true), ("nft", "legacy", false)]
    {
        if !needs_sets {
            node.remove_manifest("nat.yaml");
            node.remove_manifest("policy.yaml");
        }
        let agent = node.start_with(&["--iptables-backend", back_end]);
        let expected: Vec<&str> =
            jumps.iter().copied().filter(|table| needs_sets || *table != "nat").collect();
        eventually(&format!("all of ours is in {back_end}"), || ours(&node, back_end) == expected);
        eventually(&format!("nothing of ours is in {other}"), || !saved(&node, other).contains("MANX-"));
        eventually("no set is left without use", || needs_sets != node.net.sets().is_empty());
        let policy = node.json(&["status"])["policy"].take();
        assert_eq!(policy["backend"], back_end, "{policy}");
        assert_eq!(
            saved(&node, other).matches("-A FORWARD -p gre -j ACCEPT").count(),
            2,
            "others keep theirs"
        );
        agent.stop(Signal::SIGTERM);
    }
}
