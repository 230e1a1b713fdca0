//! Packet filters of others, beside ours.

use super::snapshot::Snapshot;
use super::{ok, problem, unknown, warning};
use crate::view::Check;

/// A policy of DROP stops what nobody has accepted by a rule, above all between pods and the world.
pub(super) fn forward_policy(node: &Snapshot) -> Check {
    const NAME: &str = "forward-policy";
    let mut dropping = Vec::new();
    let mut seen = 0;
    for (which, text) in &node.filters {
        let Some(text) = text else { continue };
        seen += 1;
        let policy = text.lines().filter_map(|l| l.strip_prefix(":FORWARD ")).find(|l| l.starts_with("DROP"));
        dropping.extend(policy.map(|_| program(which)));
    }
    match (seen, dropping.first()) {
        (0, _) => unknown(NAME, "no iptables program can be asked"),
        (_, None) => ok(NAME, "the policy of FORWARD drops nothing"),
        (_, Some(first)) => problem(
            NAME,
            format!("FORWARD has the policy DROP in {}", dropping.join(", ")),
            format!(
                "what Manx lets through and no other rule accepts is dropped: {first} -P FORWARD ACCEPT (Docker sets it: \
                 \"ip-forward-no-drop\": true in its daemon.json)"
            ),
        ),
    }
}

fn program(which: &str) -> &'static str {
    match which {
        "nft4" => "iptables-nft",
        "nft6" => "ip6tables-nft",
        "legacy4" => "iptables-legacy",
        _ => "ip6tables-legacy",
    }
}

/// Programs that take the whole filter for theirs: they drop forwarded packets, and rewrite the rules when they reload.
pub(super) fn firewalls(node: &Snapshot) -> Check {
    const NAME: &str = "firewalls";
    let mut found = Vec::new();
    let firewalld = node.nft_tables.iter().flatten().any(|t| t.ends_with(" firewalld"))
        || node
            .filters
            .values()
            .flatten()
            .any(|text| text.contains(":FWDI_") || text.contains(":FORWARD_direct "));
    found.extend(firewalld.then_some("firewalld"));
    let ufw = node
        .filters
        .values()
        .flatten()
        .any(|text| text.lines().any(|l| l.starts_with("-A FORWARD") && l.contains("-j ufw")));
    found.extend((ufw || node.ufw_enabled).then_some("ufw"));
    if found.is_empty() {
        return ok(NAME, "neither firewalld nor ufw is active");
    }
    problem(
        NAME,
        format!("{} is active", found.join(" and ")),
        "it drops forwarded packets of pods: stop and disable it on nodes (systemctl disable --now firewalld; ufw disable), or \
         let it forward between pods and uplinks",
    )
}

/// Two lists of rules, both of which hold.
pub(super) fn back_ends(node: &Snapshot) -> Check {
    const NAME: &str = "iptables-back-ends";
    let rules = |which: [&str; 2]| -> usize {
        let texts = which.into_iter().filter_map(|w| node.filters.get(w)?.as_deref());
        texts.map(|t| t.lines().filter(|l| l.starts_with("-A ")).count()).sum()
    };
    let (nft, legacy) = (rules(["nft4", "nft6"]), rules(["legacy4", "legacy6"]));
    let observed = format!("{nft} rules through iptables-nft, {legacy} through iptables-legacy");
    if nft == 0 || legacy == 0 {
        return ok(NAME, observed);
    }
    warning(
        NAME,
        observed,
        "both lists hold, in an order of the kernel's: move all programs to one (update-alternatives --config iptables), or tell \
         Manx which is right with --iptables-backend",
    )
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::healthy;
    use super::*;
    use crate::view::CheckResult;

    #[test]
    fn a_forward_policy_of_drop_is_found_in_any_list() {
        let mut node = healthy();
        node.filters.insert("legacy6", Some("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n".to_owned()));
        let check = forward_policy(&node);
        assert_eq!(check.observed, "FORWARD has the policy DROP in ip6tables-legacy");
        assert!(check.remedy.unwrap().contains("ip6tables-legacy -P FORWARD ACCEPT"));
        node.filters.clear();
        assert_eq!(forward_policy(&node).result, CheckResult::Unknown);
    }

    #[test]
    fn firewalls_are_known_by_their_tables_chains_and_configuration() {
        let mut node = healthy();
        node.nft_tables = Some(vec!["inet firewalld".to_owned()]);
        assert_eq!(firewalls(&node).observed, "firewalld is active");
        node.nft_tables = None;
        node.filters.insert("nft4", Some("-A FORWARD -j ufw-before-forward\n".to_owned()));
        assert_eq!(firewalls(&node).observed, "ufw is active");
        node.filters.clear();
        node.ufw_enabled = true;
        assert_eq!(firewalls(&node).result, CheckResult::Problem);
    }

    #[test]
    fn rules_in_both_back_ends_are_told() {
        let mut node = healthy();
        node.filters.insert("nft4", Some("-A INPUT -j ACCEPT\n".to_owned()));
        assert_eq!(back_ends(&node).result, CheckResult::Ok);
        node.filters.insert("legacy4", Some("-A INPUT -j ACCEPT\n-A INPUT -j DROP\n".to_owned()));
        assert_eq!(back_ends(&node).observed, "1 rules through iptables-nft, 2 through iptables-legacy");
    }
}
