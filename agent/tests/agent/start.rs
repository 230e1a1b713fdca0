//! What an agent needs in order to start, and what it says when it does not get it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use super::world::*;

const NOBODY: u32 = 65534;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_run_directory_is_0755_and_each_socket_has_its_mode() {
    let node = Node::alone();
    let _agent = node.start();
    assert_eq!(mode(&node.run_dir()), 0o755);
    for (socket, expected) in [("admin.sock", 0o600), ("cni.sock", 0o600), ("ro.sock", 0o660)] {
        assert_eq!(mode(&node.run_dir().join(socket)), expected, "{socket}");
    }
}

#[test]
fn a_second_agent_on_the_same_run_directory_is_refused_and_the_first_goes_on() {
    let node = Node::alone();
    let mut first = node.start();
    let before = node.net.everything();
    let second = node.fails(node.agent_command().args(["--metrics-addr", "127.0.0.1:9475"]));
    second.complains(&["another agent", "--run-dir"]);
    assert!(first.alive());
    assert_eq!(node.json(&["status"])["source"]["inSync"], true);
    assert_eq!(node.net.everything(), before);
}

#[test]
fn of_two_agents_that_start_together_on_one_run_directory_one_is_refused() {
    for round in 0..3 {
        let node = Node::alone();
        let mut agents =
            [9480, 9481].map(|port| node.start_with(&["--metrics-addr", &format!("127.0.0.1:{port}")]));
        eventually("one of them has ended", || agents.iter_mut().any(|a| !a.alive()));
        node.settled();
        let alive = agents.each_mut().map(|agent| agent.alive());
        assert!(alive[0] != alive[1], "round {round}: {alive:?} {}", node.log());
        assert!(node.log().contains("another agent"), "{}", node.log());
    }
}

#[test]
fn what_a_killed_agent_left_in_the_run_directory_is_no_obstacle() {
    let node = Node::alone();
    node.start().stop(Signal::SIGKILL);
    assert!(node.run_dir().join("admin.sock").exists());
    let _agent = node.start();
}

#[test]
fn every_flag_has_an_environment_variable() {
    let help = Command::new(env!("CARGO_BIN_EXE_manx-agent")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let flags: Vec<_> = help
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("--"))
        .filter(|flag| flag.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !flag.is_empty())
        .filter(|flag| !["help", "version"].contains(flag))
        .collect();
    for documented in [
        "node-name",
        "manifests",
        "enable",
        "namespace",
        "run-dir",
        "cni-conf-dir",
        "bgp-listen",
        "iptables-backend",
        "mark-mask",
        "pod-interface-prefix",
        "no-fib",
        "metrics-addr",
        "log",
        "log-format",
    ] {
        assert!(flags.contains(&documented), "--{documented} is not in the help");
    }
    for flag in flags {
        let variable = format!("[env: MANX_{}=", flag.to_uppercase().replace('-', "_"));
        assert!(help.contains(&variable), "{variable} is not in the help");
    }
}

#[test]
fn an_agent_takes_all_its_settings_from_the_environment() {
    let (node, _tor) = Node::wired();
    let mut command = Command::new(env!("CARGO_BIN_EXE_manx-agent"));
    command
        .env("MANX_NODE_NAME", node.name)
        .env("MANX_MANIFESTS", node.path("manifests"))
        .env("MANX_ENABLE", "bgp,policy")
        .env("MANX_NAMESPACE", "elsewhere")
        .env("MANX_RUN_DIR", node.run_dir())
        .env("MANX_CNI_CONF_DIR", node.path("net.d"))
        .env("MANX_CNI_BIN_DIR", node.path("bin"))
        .env("MANX_BGP_LISTEN", "127.0.0.1:1790,[::1]:1790")
        .env("MANX_IPTABLES_BACKEND", "nft")
        .env("MANX_MARK_MASK", "0xf0000000")
        .env("MANX_POD_INTERFACE_PREFIX", "px")
        .env("MANX_NO_FIB", "1")
        .env("MANX_METRICS_ADDR", "127.0.0.1:9474")
        .env("MANX_LOG", "debug")
        .env("MANX_LOG_FORMAT", "json");
    let _agent = node.spawn(&mut command);
    node.settled();
    eventually("it listens where it was told", || {
        let bgp = &node.json(&["status"])["bgp"];
        bgp["listening"] == serde_json::json!(["127.0.0.1:1790", "[::1]:1790"])
    });
    let status = node.json(&["status"]);
    assert_eq!(status["node"], "n1");
    assert_eq!(status["cni"], serde_json::Value::Null);
    assert_eq!(status["kernel"]["routesWanted"], serde_json::Value::Null, "--no-fib");
    assert_eq!(node.net.routes("-4").len(), 0);
    let rules = node.net.rules();
    assert!(rules.contains("-i px+") && rules.contains("/0xf0000000"), "{rules}");
    assert!(!rules.contains("manx+"), "{rules}");
    let line = node.log().lines().next().unwrap().to_owned();
    assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok(), "{line}");
    assert!(node.log().contains(r#""level":"DEBUG""#));
}

#[test]
fn an_empty_or_false_no_fib_variable_writes_routes() {
    let (node, _tor) = Node::wired();
    for value in ["", "0", "false"] {
        let agent = node.spawn(node.agent_command().env("MANX_NO_FIB", value));
        eventually("the own blackhole", || node.net.route("10.200.1.0/24").is_some());
        agent.stop(Signal::SIGTERM);
    }
}

#[test]
fn cleanup_runs_with_the_agents_environment() {
    let node = Node::alone();
    let mut command = Command::new(env!("CARGO_BIN_EXE_manx-agent"));
    command.arg("cleanup").env("MANX_RUN_DIR", node.run_dir()).env("MANX_CNI_CONF_DIR", node.path("net.d"));
    command
        .env("MANX_NODE_NAME", "n1")
        .env("MANX_MANIFESTS", node.path("manifests"))
        .env("MANX_NO_FIB", "true");
    let answer: Answer = node.net.output(&mut command).into();
    assert_eq!(answer.code, 0, "{}", answer.err);
}

#[test]
fn a_command_line_that_makes_no_sense_is_status_2() {
    let node = Node::bare("n1");
    for (wrong, says) in [
        (vec!["--mark-mask", "0x1"], "at least 4"),
        (vec!["--enable", "bgp,tea"], "tea"),
        (vec!["--bgp-listen", "here"], "--bgp-listen"),
        (vec!["--pod-interface-prefix", "manxman"], "1 to 4"),
        (vec!["--no-such-flag"], "--no-such-flag"),
    ] {
        let answer = node.fails(node.agent_command().args(&wrong));
        assert_eq!(answer.code, 2, "{wrong:?}");
        assert!(answer.err.contains(says), "{wrong:?}: {}", answer.err);
    }
    let mut bare = Command::new(env!("CARGO_BIN_EXE_manx-agent"));
    let answer = node.fails(bare.env_remove("MANX_NODE_NAME"));
    assert_eq!(answer.code, 2);
    assert!(answer.err.contains("--node-name"), "{}", answer.err);
}

#[test]
fn a_log_filter_that_cannot_be_read_is_one_clear_line() {
    let node = Node::bare("n1");
    node.fails(node.agent_command().args(["--log", "=,=!"])).complains(&["--log", "manx_bgp=debug"]);
}

#[test]
fn missing_iptables_is_one_line_that_names_the_package() {
    let node = Node::alone();
    let answer = node.fails(node.agent_command().env("PATH", node.path("bin")));
    answer.complains(&["iptables", "not installed", "install the package iptables"]);
    assert!(!node.node_json().exists() && !node.conflist().exists());
}

#[test]
fn iptables_is_not_missed_where_policy_is_not_enabled() {
    let node = Node::alone();
    let _agent = node.spawn(node.agent_command().args(["--enable", "bgp"]).env("PATH", node.path("bin")));
    node.settled();
}

#[test]
fn missing_privilege_is_one_line_that_names_what_to_grant() {
    let node = Node::alone();
    // A binary and directories that nobody may use: the privilege alone is missing.
    fs::set_permissions(node.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = node.path("manx-agent");
    // By another process: a descriptor that is open for writing, and inherited by what another test starts at this
    // moment, would keep the copy from being run.
    node.net.run("cp", &[env!("CARGO_BIN_EXE_manx-agent"), binary.to_str().unwrap()]);
    fs::create_dir(node.run_dir()).unwrap();
    std::os::unix::fs::chown(node.run_dir(), Some(NOBODY), Some(NOBODY)).unwrap();
    for features in ["policy", "bgp", "bgp,policy,cni"] {
        let mut command = Command::new(&binary);
        command.args(node.agent_command().get_args()).args(["--enable", features]);
        command.uid(NOBODY).gid(NOBODY);
        node.fails(&mut command).complains(&["NET_ADMIN"]);
    }
}

#[test]
fn a_run_directory_that_cannot_be_made_is_one_line_with_its_path() {
    let node = Node::alone();
    fs::write(node.path("run"), "a file").unwrap();
    node.fails(&mut node.agent_command()).complains(&["run directory", node.run_dir().to_str().unwrap()]);
}

#[test]
fn a_metrics_address_that_is_taken_is_one_line_that_names_the_flag() {
    let node = Node::alone();
    let _taken = node.net.enter(|| std::net::TcpListener::bind("127.0.0.1:9474").unwrap());
    node.fails(&mut node.agent_command()).complains(&["127.0.0.1:9474", "--metrics-addr"]);
}

#[test]
fn forwarding_is_enabled_and_its_absence_told() {
    let node = Node::alone();
    let sysctl = |value: &str| {
        node.net.sh(&format!("sysctl -q -w net.ipv4.ip_forward={value}"));
    };
    sysctl("0");
    let _agent = node.start();
    eventually("forwarding is on", || node.net.sh("sysctl -n net.ipv4.ip_forward").trim() == "1");
    sysctl("0");
    eventually("the status says so", || {
        let errors = node.json(&["status"])["kernel"]["errors"].to_string();
        errors.contains("net.ipv4.ip_forward") && errors.contains("not forwarded")
    });
}
