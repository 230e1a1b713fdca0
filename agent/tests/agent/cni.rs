//! The agent's side of CNI: node.json, the conflist, the confirmation of policy, attachments that come and go.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use manx_cni::agent::{self, AskError, Request, Response};
use manx_cni::node::NodeConfig;
use manx_cni::store::Attachment;
use nix::sys::signal::Signal;
use serde_json::json;

use super::world::*;

const SHORT: Duration = Duration::from_millis(700);

fn confirm(node: &Node, attachment: &Attachment, patience: Duration) -> Result<Response, AskError> {
    agent::ask(&node.run_dir(), &Request::Confirm { attachment: attachment.clone() }, patience)
}

fn confirmed(node: &Node, attachment: &Attachment) {
    let answer = confirm(node, attachment, PATIENCE);
    assert!(matches!(answer, Ok(Response::Ok {})), "{answer:?}");
}

fn unanswered(node: &Node, attachment: &Attachment) {
    let answer = confirm(node, attachment, SHORT);
    assert!(matches!(answer, Err(AskError::TimedOut(_))), "{answer:?}");
}

/// A node with namespace `shop` and the agent running.
fn shop() -> (Node, Running) {
    let node = Node::alone();
    node.manifest("shop.yaml", SHOP);
    let agent = node.start();
    (node, agent)
}

#[test]
fn node_json_says_what_pods_get_and_the_conflist_how_to_call_the_plugin() {
    let (node, _tor) = Node::wired();
    node.net.ip("link set eth0 mtu 1400");
    let _agent = node.start();
    let config = NodeConfig::read(&node.run_dir()).unwrap();
    assert_eq!(config.node_name, "n1");
    assert_eq!(config.mtu, 1400);
    assert_eq!(config.interface_prefix, "manx");
    let cidrs: Vec<_> = config.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.200.1.0/24", "fd00:200:1::/64"]);
    let conflist: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(node.conflist()).unwrap()).unwrap();
    assert_eq!(conflist["plugins"][0]["type"], "manx");
    assert_eq!(conflist["plugins"][0]["runDir"], json!(node.run_dir()));
    assert_eq!(node.json(&["status"])["cni"]["conflist"], json!(node.conflist()));

    node.net.ip("link set eth0 mtu 1300");
    eventually("a changed MTU reaches new pods", || NodeConfig::read(&node.run_dir()).unwrap().mtu == 1300);
    let port = "apiVersion: manx.dev/v1alpha1\nkind: NetworkConfiguration\nmetadata: {name: default}\nspec: {mtu: 1280}\n";
    node.manifest("network.yaml", port);
    eventually("a configured one as well", || NodeConfig::read(&node.run_dir()).unwrap().mtu == 1280);
}

#[test]
fn portmap_and_bandwidth_are_chained_where_they_are_installed() {
    let node = Node::alone();
    let plugin = node.path("bin/portmap");
    fs::write(
        &plugin,
        "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}'\n",
    )
    .unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    let _agent = node.start();
    let conflist: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(node.conflist()).unwrap()).unwrap();
    let types: Vec<_> = conflist["plugins"].as_array().unwrap().iter().map(|p| p["type"].clone()).collect();
    assert_eq!(types, ["manx", "portmap"]);
    assert_eq!(conflist["cniVersions"], json!(["0.4.0", "1.0.0"]));
}

#[test]
fn the_plugin_is_installed_kept_in_step_by_rename_and_taken_away_by_cleanup() {
    let node = Node::alone();
    let (source, installed) = (node.path("manx-cni"), node.path("bin/manx"));
    fs::write(&source, "#!/bin/sh\nexec sleep 600\n").unwrap();
    let arguments = ["--cni-plugin", source.to_str().unwrap()];
    let agent = node.start_with(&arguments);
    node.settled();
    assert_eq!(fs::metadata(&installed).unwrap().permissions().mode() & 0o777, 0o755);
    let same = || fs::read(&installed).ok() == fs::read(&source).ok();
    assert!(same());

    // One that runs keeps its file; the next call gets the new one.
    let mut running = Running(std::process::Command::new(&installed).spawn().unwrap());
    let before = fs::metadata(&installed).unwrap().ino();
    fs::write(&source, "#!/bin/sh\necho new\n").unwrap();
    eventually("the new plugin is there", same);
    assert_ne!(fs::metadata(&installed).unwrap().ino(), before, "by rename");
    assert!(running.alive());
    fs::remove_file(&installed).unwrap();
    eventually("what somebody removed is there again", || installed.exists());

    // The same one is left alone by the next agent.
    let before = fs::metadata(&installed).unwrap().ino();
    agent.stop(Signal::SIGTERM);
    let agent = node.start_with(&arguments);
    node.settled();
    assert_eq!(fs::metadata(&installed).unwrap().ino(), before);
    let only_it = fs::read_dir(node.path("bin")).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(only_it, ["manx"]);

    agent.stop(Signal::SIGTERM);
    assert_eq!(node.cleanup(&[]).code, 0);
    assert!(installed.exists(), "not without being told where");
    assert_eq!(node.cleanup(&["--cni-bin-dir", node.path("bin").to_str().unwrap()]).code, 0);
    assert!(!installed.exists());
}

#[test]
fn a_plugin_that_cannot_be_installed_keeps_the_conflist_back_and_is_told() {
    let node = Node::alone();
    let source = node.path("manx-cni");
    let _agent = node.start_with(&["--cni-plugin", source.to_str().unwrap()]);
    eventually("it is told", || {
        node.try_json(&["status"]).is_some_and(|s| {
            s["cni"]["reason"].as_str().is_some_and(|r| r.contains("cannot install the CNI plugin"))
        })
    });
    assert!(!node.conflist().exists());
    fs::write(&source, "#!/bin/sh\n").unwrap();
    eventually("and then done", || node.conflist().exists() && node.path("bin/manx").exists());
}

#[test]
fn a_conflist_that_cannot_be_written_is_told_and_written_when_it_can() {
    let node = Node::alone();
    fs::write(node.path("net.d"), "in the way").unwrap();
    let _agent = node.start_with(&[]);
    eventually("the status says why", || {
        let cni = node.try_json(&["status"]).unwrap_or_default()["cni"].clone();
        cni["ready"] == false && cni["reason"].to_string().contains("net.d")
    });
    fs::remove_file(node.path("net.d")).unwrap();
    eventually("written without another reason to", || node.conflist().exists());
    eventually("ready", || node.json(&["status"])["cni"]["ready"] == true);
}

#[test]
fn a_conflist_or_node_json_that_somebody_removed_is_written_again() {
    let (node, _agent) = shop();
    fs::remove_file(node.conflist()).unwrap();
    fs::remove_file(node.node_json()).unwrap();
    eventually("both are back", || node.conflist().exists() && node.node_json().exists());
}

#[test]
fn another_networks_configuration_that_sorts_first_is_told() {
    let (node, _agent) = shop();
    fs::write(node.path("net.d/05-other.conflist"), "{}").unwrap();
    eventually("told", || {
        node.json(&["status"])["kernel"]["errors"].to_string().contains("05-other.conflist")
    });
}

#[test]
fn the_plugins_status_question_is_answered_with_the_reason() {
    let node = Node::alone();
    node.manifest("broken.yaml", "kind: [\n");
    let _agent = node.start_with(&[]);
    eventually("it answers", || node.run_dir().join("cni.sock").exists());
    let answer = agent::ask(&node.run_dir(), &Request::Status, PATIENCE).unwrap();
    let Response::Error { code, details, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(code, 50);
    assert!(details.contains("not in sync"), "{details}");
    node.remove_manifest("broken.yaml");
    node.settled();
    assert_eq!(agent::ask(&node.run_dir(), &Request::Status, PATIENCE).unwrap(), Response::Ok {});
}

#[test]
fn add_is_confirmed_when_the_pod_of_that_very_uid_is_known_and_its_policy_in_the_kernel() {
    let (node, _agent) = shop();
    node.manifest("policy.yaml", POLICY);
    let web = attachment("web", Some("u1"), 5);
    node.attach(&web);
    // The pod is not known.
    unanswered(&node, &web);
    // A pod of that name that is another one.
    node.manifest("web.yaml", &pod("web", "u0", "{role: web}", "10.200.1.4"));
    eventually("known", || node.manxctl(&["policy", "for", "shop/web"]).code == 0);
    unanswered(&node, &web);
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    confirmed(&node, &web);
    let rules = node.net.rules();
    assert!(rules.contains(&web.interface) && rules.contains("--dport 80"), "{rules}");
}

/// The runtime knows a static pod by the hash of its manifest; the API knows its mirror, under a uid of its own.
#[test]
fn add_of_a_static_pod_is_confirmed_by_its_mirror_pods_hash_and_no_other() {
    let (node, _agent) = shop();
    node.manifest("policy.yaml", POLICY);
    let web = attachment("web", Some("0123456789abcdef0123456789abcdef"), 5);
    node.attach(&web);
    let mirror = |hash: &str| {
        let annotations = format!("uid: u1, annotations: {{kubernetes.io/config.mirror: {hash}}}");
        pod("web", "u1", "{role: web}", "10.200.1.5").replace("uid: u1", &annotations)
    };
    node.manifest("web.yaml", &mirror("fedcba9876543210fedcba9876543210"));
    eventually("known", || node.manxctl(&["policy", "for", "shop/web"]).code == 0);
    unanswered(&node, &web);
    node.manifest("web.yaml", &mirror("0123456789abcdef0123456789abcdef"));
    confirmed(&node, &web);
    assert!(node.net.rules().contains("--dport 80"));
}

#[test]
fn policies_of_every_kind_take_effect_and_are_explained_to_the_live_counter() {
    let (node, _agent) = shop();
    node.manifest("policy.yaml", POLICY);
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let web = attachment("web", Some("u1"), 5);
    node.attach(&web);
    confirmed(&node, &web);
    let trace = |to: &str| node.manxctl(&["-o", "json", "policy", "trace", "192.0.2.7", to]);
    assert_eq!(trace("shop/web:81").code, 1);
    node.manifest(
        "cluster.yaml",
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: first, generation: 4}\n\
         spec:\n  tier: Admin\n  priority: 5\n  subject: {namespaces: {}}\n  egress:\n  \
         - {action: Deny, to: [{networks: [192.0.2.0/24]}]}\n---\n\
         apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: late}\nspec:\n  selector: role == 'web'\n  \
         ingress:\n  - {action: Allow, protocol: TCP, destination: {ports: [81]}}\n",
    );
    eventually("the late policy allows it", || trace("shop/web:81").code == 0);
    let verdict = trace("shop/web:81").json();
    assert_eq!((&verdict["kind"], &verdict["verdict"]), (&json!("Verdict"), &json!("Allow")));
    let last = verdict["steps"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["policy"], &last["rule"]), (&json!("Calico:late"), &json!(0)), "{verdict}");
    assert!(last["counter"].is_u64() && last["computed"] == false, "{last}");
    let denied = node.manxctl(&["-o", "json", "policy", "trace", "shop/web", "192.0.2.7:443/tcp"]);
    assert_eq!(
        (denied.code, denied.json()["steps"][0]["policy"].clone()),
        (1, json!("ClusterNetworkPolicy:first"))
    );
    assert_eq!(node.manxctl(&["policy", "trace", "shop/nobody", "shop/web"]).code, 1);
    assert_eq!(node.manxctl(&["policy", "trace", "shop/web", "shop/web:80/quic"]).code, 2);

    let list = node.json(&["policy", "ls"]);
    let find = |name: &str| {
        let items = list["items"].as_array().unwrap();
        items.iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("{list}")).clone()
    };
    let first = find("first");
    assert_eq!(
        (&first["tier"], &first["order"], &first["generation"]),
        (&json!("Admin"), &json!(5.0), &json!(4))
    );
    assert!(first["inForceSince"].is_u64() && first["matched"].is_u64(), "{first}");
    assert_eq!(find("late")["kind"], "Calico GlobalNetworkPolicy");

    let text = node.json(&["policy", "render", "shop/web"])["text"].as_str().unwrap().to_owned();
    assert!(
        text.contains(&format!("MANX-TE-{}", web.interface)) && text.contains("cnp first egress rule 0"),
        "{text}"
    );

    let proposal = node.path("proposal.yaml");
    std::fs::write(&proposal, "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: late}\nspec:\n  selector: role == 'web'\n").unwrap();
    let diff = node.manxctl(&["-o", "json", "policy", "diff", "-f", proposal.to_str().unwrap()]);
    assert_eq!(diff.code, 1, "something is cut");
    let change = &diff.json()["changes"][0];
    assert_eq!(
        (&change["change"], &change["pod"], &change["port"]),
        (&json!("cut"), &json!("shop/web"), &json!("81/TCP"))
    );
    assert_eq!(trace("shop/web:81").code, 0, "nothing was changed");
}

#[test]
fn an_attachment_without_a_uid_is_confirmed_by_its_name_and_one_without_a_pod_counts_as_default() {
    let (node, _agent) = shop();
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let by_name = attachment("web", None, 5);
    node.attach(&by_name);
    confirmed(&node, &by_name);
    let stray = Attachment { namespace: None, pod: None, ..attachment("", None, 6) };
    node.attach(&stray);
    confirmed(&node, &stray);
    // As podman calls: a name, and perhaps no Pod of that name.
    let podman = Attachment { namespace: None, ..attachment("cache", None, 7) };
    node.attach(&podman);
    confirmed(&node, &podman);
    let rows = node.json(&["pods"]);
    let row = rows["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["interface"] == json!(stray.interface))
        .unwrap()
        .clone();
    assert_eq!((&row["namespace"], &row["name"], &row["uid"]), (&json!(null), &json!(null), &json!(null)));
    assert!(row["policyInForceSince"].is_u64());
}

#[test]
fn while_the_kernel_has_not_taken_the_rules_nothing_is_confirmed() {
    let gate = Gate::new();
    let node = Node::alone();
    node.manifest("shop.yaml", SHOP);
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let _agent = node.spawn(gate.guard(&mut node.agent_command()));
    node.settled();
    gate.shut();
    let web = attachment("web", Some("u1"), 5);
    node.attach(&web);
    gate.knocked();
    unanswered(&node, &web);
    gate.open();
    confirmed(&node, &web);
}

#[test]
fn an_attachment_made_anew_under_its_old_name_is_not_confirmed_by_the_old_ones_rules() {
    let gate = Gate::new();
    let node = Node::alone();
    node.manifest("shop.yaml", SHOP);
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let _agent = node.spawn(gate.guard(&mut node.agent_command()));
    node.settled();
    let old = attachment("web", Some("u1"), 5);
    node.attach(&old);
    confirmed(&node, &old);
    for last in 6..12 {
        // podman starts a container again under its id: DEL, ADD, and the question at once.
        let new = Attachment { ips: vec![format!("10.200.1.{last}").parse().unwrap()], ..old.clone() };
        gate.shut();
        node.detach(&old);
        node.attach(&new);
        let answer = confirm(&node, &new, Duration::from_millis(150));
        assert!(matches!(answer, Err(AskError::TimedOut(_))), "{answer:?}: rules of another address");
        gate.open();
        confirmed(&node, &new);
        assert!(node.net.rules().contains(&format!("10.200.1.{last}/32")));
    }
}

#[test]
fn a_question_whose_asker_hung_up_is_forgotten() {
    let (node, _agent) = shop();
    let web = attachment("web", Some("u1"), 5);
    node.attach(&web);
    let line = serde_json::to_string(&Request::Confirm { attachment: web.clone() }).unwrap() + "\n";
    let ask = |text: &str| {
        let mut stream = UnixStream::connect(node.run_dir().join("cni.sock")).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let waiting: Vec<_> = (0..40).map(|_| ask(&line)).collect();
    eventually("they wait", || node.plugins() == 40);
    drop(waiting);
    eventually("they are forgotten", || node.plugins() == 0);
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    confirmed(&node, &web);
}

#[test]
fn what_is_no_request_is_answered_so_and_harms_nobody() {
    let (node, mut agent) = shop();
    let talk = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(node.run_dir().join("cni.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may have had enough before all is said.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = String::new();
        let _ = BufReader::new(stream.take(1 << 20)).read_line(&mut answer);
        answer
    };
    for garbage in [&b"{}\n"[..], b"hello\n", b"\n", b"[1,2]\n", b"{\"request\":\"dance\"}\n"] {
        let answer = talk(garbage);
        let answer: Response = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
        assert!(matches!(answer, Response::Error { code: 11, .. }), "{answer:?}");
    }
    talk(&[0xff, 0xfe, b'\n']);
    talk(&vec![b'x'; 1 << 20]);
    talk(b"");
    assert!(agent.alive());
    assert_eq!(agent::ask(&node.run_dir(), &Request::Status, PATIENCE).unwrap(), Response::Ok {});
}

#[test]
fn an_attachment_that_vanishes_takes_its_rules_and_sets_along() {
    let (node, _agent) = shop();
    node.manifest("policy.yaml", POLICY);
    node.manifest("client.yaml", &pod("client", "u2", "{role: client}", "10.200.9.9"));
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let empty = (node.net.rules().lines().filter(|l| l.starts_with('-')).count(), node.net.sets());
    let web = attachment("web", Some("u1"), 5);
    node.attach(&web);
    confirmed(&node, &web);
    assert!(node.net.rules().contains(&web.interface) && node.net.sets().contains("10.200.9.9"));
    node.detach(&web);
    eventually("all of it is gone", || {
        (node.net.rules().lines().filter(|l| l.starts_with('-')).count(), node.net.sets()) == empty
    });
    assert!(!node.net.rules().contains(&web.interface));
    assert_eq!(node.json(&["pods"])["items"], json!([]));
    assert_eq!(node.json(&["status"])["cni"]["attachments"], 0);
}

#[test]
fn an_attachment_that_vanished_while_no_agent_ran_or_while_one_started_is_gone() {
    let (node, agent) = shop();
    node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
    let web = attachment("web", Some("u1"), 5);
    node.attach(&web);
    confirmed(&node, &web);
    agent.stop(Signal::SIGTERM);
    // The new agent reads its attachments before its first plan; the DEL comes while that plan hangs.
    let gate = Gate::new();
    node.net.sh("iptables-nft -F MANX-FORWARD");
    gate.shut();
    let _agent = node.spawn(gate.guard(&mut node.agent_command()));
    gate.knocked();
    node.detach(&web);
    gate.open();
    node.settled();
    eventually("its rules are gone", || !node.net.rules().contains(&web.interface));
}

#[test]
fn confirmations_that_wait_when_the_agent_stops_are_asked_of_the_next_one() {
    let (node, agent) = shop();
    let web = attachment("web", Some("u1"), 5);
    node.attach(&web);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| confirm(&node, &web, PATIENCE));
        eventually("it waits", || node.plugins() == 1);
        agent.stop(Signal::SIGTERM);
        node.manifest("web.yaml", &pod("web", "u1", "{role: web}", "10.200.1.5"));
        let _next = node.start();
        let answer = asking.join().unwrap();
        assert!(matches!(answer, Ok(Response::Ok {})), "{answer:?}");
    });
}

#[test]
fn without_policy_there_is_nothing_to_wait_for() {
    let node = Node::alone();
    let _agent = node.start_with(&["--enable", "cni"]);
    node.settled();
    let web = attachment("web", Some("u1"), 5);
    node.attach(&web);
    confirmed(&node, &web);
}
