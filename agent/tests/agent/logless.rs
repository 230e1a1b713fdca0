//! A kernel that cannot log: its rules go in without, and the status says so.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::world::*;

/// Stands before the real iptables-restore and lets no rule through that logs: the table that it is in is refused, as by a kernel
/// without the target.
const REFUSES: &str = r#"#!/bin/sh
PATH=${PATH#*:}
while IFS= read -r line; do
    case "$line" in *"-j NFLOG"*)
        echo "Couldn't load target NFLOG" >&2
        break ;;
    esac
    printf '%s\n' "$line"
done | "$(basename "$0")" "$@"
"#;

#[test]
fn rules_go_in_without_their_logs_where_the_kernel_has_none() {
    let node = Node::alone();
    let tools = node.path("tools");
    fs::create_dir_all(&tools).unwrap();
    for program in ["iptables-nft-restore", "ip6tables-nft-restore"] {
        fs::write(tools.join(program), REFUSES).unwrap();
        fs::set_permissions(tools.join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    node.manifest("shop.yaml", &format!("{SHOP}---{POLICY}"));
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    node.attach(&attachment("web", Some("u1"), 5));
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let _agent = node.spawn(node.agent_command().args(["--iptables-backend", "nft"]).env("PATH", path));
    eventually("in force without logs", || {
        node.try_json(&["status"]).is_some_and(|status| {
            let policy = &status["policy"];
            policy["pending"] == false && policy["endpoints"] == 1 && policy["endpointsInForce"] == 1
        })
    });
    let rules = node.net.rules();
    assert!(rules.contains("no policy allows it") && !rules.contains("NFLOG"), "{rules}");
    let status = node.json(&["status"]);
    let errors = status["policy"]["errors"].to_string();
    assert!(errors.contains("not logged") && errors.contains("Couldn't load target NFLOG"), "{errors}");
}
