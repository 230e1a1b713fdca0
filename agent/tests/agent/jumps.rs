//! Where our jumps stand among the host's own rules.

use nix::sys::signal::Signal;

use super::world::*;

/// The rules of filter FORWARD of both families, in their order.
fn forward(node: &Node) -> Vec<String> {
    let saved = ["iptables-nft-save", "ip6tables-nft-save"].map(|save| node.net.run(save, &["-t", "filter"]));
    let saved = saved.concat();
    saved.lines().filter(|line| line.starts_with("-A FORWARD")).map(str::to_owned).collect()
}

fn places(node: &Node) -> Vec<bool> {
    forward(node).iter().map(|rule| rule.contains("-j MANX-FORWARD")).collect()
}

fn with_rules_of_the_host() -> Node {
    let node = Node::alone();
    for program in ["iptables-nft", "ip6tables-nft"] {
        node.net.sh(&format!("{program} -A FORWARD -p 47 -j ACCEPT"));
    }
    node
}

#[test]
fn jumps_are_inserted_before_the_rules_of_the_host_unless_told_otherwise() {
    let node = with_rules_of_the_host();
    let _agent = node.start_with(&[]);
    node.settled();
    assert_eq!(places(&node), [true, false, true, false], "{:?}", forward(&node));
    assert!(node.net.rules().contains("-j MANX-GUARD"));
}

#[test]
fn appended_jumps_leave_the_first_word_to_the_host_and_stay_where_they_are() {
    let node = with_rules_of_the_host();
    let agent = node.start_with(&["--iptables-jumps", "append"]);
    node.settled();
    assert_eq!(places(&node), [false, true, false, true], "{:?}", forward(&node));
    // What the host accepts has no verdict of ours, and a guard would drop it.
    assert!(!node.net.rules().contains("MANX-GUARD"));

    let anew = "*filter\\n-F FORWARD\\n-A FORWARD -p 50 -j ACCEPT\\nCOMMIT\\n";
    node.net.run("sh", &["-c", &format!("printf '{anew}' | iptables-nft-restore --noflush")]);
    eventually("the jump is back, behind the host's rule", || places(&node) == [false, true, false, true]);
    node.net.sh("iptables-nft -A FORWARD -p 51 -j ACCEPT");
    agent.stop(Signal::SIGTERM);
    let filter = Ear::filter(&node.net);
    let _agent = node.start_with(&["--iptables-jumps", "append"]);
    node.settled();
    assert_eq!(filter.heard(), Vec::<String>::new(), "a rule that came behind ours moves nothing");
    assert_eq!(places(&node), [false, true, false, false, true]);
}

#[test]
fn jumps_move_when_their_place_is_to_be_another() {
    let node = with_rules_of_the_host();
    for (option, expected) in [
        ("insert", [true, false, true, false]),
        ("append", [false, true, false, true]),
        ("insert", [true, false, true, false]),
    ] {
        let agent = node.start_with(&["--iptables-jumps", option]);
        node.settled();
        assert_eq!(places(&node), expected, "{option}: {:?}", forward(&node));
        assert_eq!(node.net.rules().contains("-j MANX-GUARD"), option == "insert");
        agent.stop(Signal::SIGTERM);
    }
}
