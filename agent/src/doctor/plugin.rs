//! What the container runtime and the CNI plugin need.

use manx_cni::conflist::{FILE_NAME, PLUGIN};

use super::snapshot::Snapshot;
use super::{ok, problem, unknown, warning};
use crate::view::Check;

/// Unless an agent says that CNI is somebody else's business.
fn serves_cni(node: &Snapshot) -> bool {
    node.status().is_none_or(|status| status.cni.is_some())
}

/// The runtime uses the configuration whose name sorts first.
pub(super) fn conflist(node: &Snapshot) -> Check {
    const NAME: &str = "cni-configuration";
    if !serves_cni(node) {
        return ok(NAME, "this agent does not serve CNI");
    }
    let Some(names) = &node.conflists else { return unknown(NAME, "the CNI directory cannot be read") };
    match names.first().map(String::as_str) {
        Some(FILE_NAME) => ok(NAME, format!("{FILE_NAME} comes first")),
        Some(first) if names.iter().any(|n| n == FILE_NAME) => problem(
            NAME,
            format!("{first} sorts before {FILE_NAME}"),
            format!("the runtime attaches pods to that network: remove {first} from the CNI directory"),
        ),
        Some(first) => problem(
            NAME,
            format!("there is {first} and no {FILE_NAME}"),
            "pods go to another network: remove it; the agent writes its own once it is in sync (manxctl status says what it waits for)",
        ),
        None => problem(
            NAME,
            format!("there is no {FILE_NAME}"),
            "no pod can be attached: manxctl status says what the agent waits for",
        ),
    }
}

pub(super) fn binary(node: &Snapshot) -> Check {
    const NAME: &str = "cni-plugin";
    if !serves_cni(node) {
        return ok(NAME, "this agent does not serve CNI");
    }
    if node.plugin_installed {
        return ok(NAME, format!("{PLUGIN} is where the runtime looks for it"));
    }
    problem(
        NAME,
        format!("{PLUGIN} is not in the directory of CNI plugins"),
        "the runtime cannot attach pods: give the agent --cni-plugin, or let its init container (manx-agent prepare) install it",
    )
}

/// A pod's packet that does not fit the uplink is dropped or cut up.
pub(super) fn mtu(node: &Snapshot) -> Check {
    const NAME: &str = "mtu";
    let uplinks: Vec<(&str, u32)> = node.uplinks().map(|(name, i)| (name, i.mtu)).collect();
    let shown = uplinks.iter().map(|(name, mtu)| format!("{name} {mtu}")).collect::<Vec<_>>().join(", ");
    let (Some(pods), Some((narrowest, least))) = (node.pod_mtu, uplinks.iter().min_by_key(|(_, mtu)| *mtu))
    else {
        return unknown(NAME, format!("pods: unknown; uplinks: {shown}"));
    };
    let observed = format!("pods {pods}; uplinks: {shown}");
    if pods > *least {
        return problem(
            NAME,
            observed,
            format!(
                "set mtu {least} in NetworkConfiguration, or raise that of {narrowest} along the whole path"
            ),
        );
    }
    if uplinks.iter().any(|(_, mtu)| mtu != least) {
        return warning(
            NAME,
            observed,
            "uplinks differ: give them one MTU, so that paths are equal in this as well",
        );
    }
    ok(NAME, observed)
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::Interface;
    use super::super::snapshot::tests::healthy;
    use super::*;
    use crate::view::{CheckResult, CniStatus};

    fn with_cni() -> Snapshot {
        let mut node = healthy();
        node.agent.as_mut().unwrap().as_mut().unwrap().cni = Some(CniStatus::default());
        node
    }

    #[test]
    fn another_networks_configuration_in_front_is_a_problem() {
        let mut node = with_cni();
        assert_eq!(conflist(&node).result, CheckResult::Ok);
        node.conflists = Some(vec!["05-cilium.conflist".to_owned(), FILE_NAME.to_owned()]);
        let check = conflist(&node);
        assert!(
            check.result == CheckResult::Problem
                && check.observed.starts_with("05-cilium.conflist sorts before")
        );
        node.conflists = Some(Vec::new());
        assert_eq!(conflist(&node).observed, "there is no 10-manx.conflist");
        node.agent = Some(Err("down".to_owned()));
        assert_eq!(conflist(&node).result, CheckResult::Problem, "also while the agent is down");
    }

    #[test]
    fn a_missing_plugin_is_a_problem_where_cni_is_served() {
        let mut node = with_cni();
        node.plugin_installed = false;
        assert_eq!(binary(&node).result, CheckResult::Problem);
        node.agent.as_mut().unwrap().as_mut().unwrap().cni = None;
        assert_eq!(binary(&node).result, CheckResult::Ok);
    }

    #[test]
    fn pods_packets_must_fit_the_narrowest_uplink() {
        let mut node = healthy();
        node.pod_mtu = Some(9000);
        let check = mtu(&node);
        assert_eq!(
            (check.result, check.observed.as_str()),
            (CheckResult::Problem, "pods 9000; uplinks: eth0 1500")
        );
        node.pod_mtu = Some(1500);
        let wide = Interface { mtu: 9000, ..node.interfaces["eth0"].clone() };
        node.interfaces.insert("eth1".to_owned(), wide);
        assert_eq!(mtu(&node).result, CheckResult::Warning);
    }
}
