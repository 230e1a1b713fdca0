//! `manxctl bundle`: what helps, and nothing that is secret.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::process::Command;

use flate2::read::GzDecoder;

use super::world::*;

const PASSWORD: &str = "Sesame-4711-open";
/// The same in base64, as a Secret has it.
const ENCODED: &str = "U2VzYW1lLTQ3MTEtb3Blbg==";

fn bundle(node: &Node) -> (Answer, BTreeMap<String, Vec<u8>>) {
    let file = node.path("bundle.tar.gz");
    let mut command = Command::new(env!("CARGO_BIN_EXE_manxctl"));
    command.arg("--run-dir").arg(node.run_dir()).arg("bundle").arg(&file);
    command.arg("--cni-conf-dir").arg(node.path("net.d"));
    let answer: Answer = node.net.output(&mut command).into();
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(GzDecoder::new(File::open(&file).unwrap())).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(name, bytes);
    }
    (answer, files)
}

#[test]
fn it_holds_what_agent_and_kernel_say_and_no_password() {
    let (node, _tor) = Node::wired();
    let peer = PEER.replace("connectRetry", "password: {secretKeyRef: {name: tor, key: md5}}, connectRetry");
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: tor, namespace: manx-system}}\ndata: {{md5: {ENCODED}}}\n"
    );
    node.manifest("peer.yaml", &format!("{peer}---\n{secret}"));
    std::fs::create_dir_all(node.path("net.d")).unwrap();
    std::fs::write(node.path("net.d/99-other.conf"), format!("{{\"token\": \"{PASSWORD}\"}}")).unwrap();
    let _agent = node.start();
    eventually("the peer has its key", || {
        node.try_json(&["peer", "show", "tor"]).is_some_and(|p| p["settings"]["password"] == true)
    });
    let (answer, files) = bundle(&node);
    assert!([0, 4].contains(&answer.code), "{}", answer.err);
    for name in [
        "bundle.json",
        "doctor.json",
        "agent/status.json",
        "agent/peers.json",
        "agent/peers/tor/why.json",
        "agent/peers/tor/history.json",
        "agent/routes.json",
        "agent/policies.json",
        "agent/ipam.json",
        "kernel/route-4.txt",
        "kernel/rule-4.txt",
        "kernel/nexthop.txt",
        "kernel/iptables-nft.txt",
        "kernel/ipset.txt",
        "kernel/sysctl.json",
        "cni/node.json",
        "cni/conflist.json",
    ] {
        assert!(files.contains_key(&format!("manx/{name}")), "{name} is not in {:?}", files.keys());
    }
    let text = |name: &str| String::from_utf8_lossy(&files[name]).into_owned();
    assert!(text("manx/kernel/iptables-nft.txt").contains("MANX-"));
    assert!(text("manx/cni/configurations.json").contains("99-other.conf"));
    for (name, bytes) in &files {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains(PASSWORD) && !text.contains(ENCODED), "{name} holds the password");
    }
}

#[test]
fn without_an_agent_it_holds_the_kernel_and_says_what_is_missing() {
    let node = Node::alone();
    let (answer, files) = bundle(&node);
    assert_eq!(answer.code, 4);
    assert!(answer.out.contains("without agent: no agent at"), "{}", answer.out);
    assert!(files.contains_key("manx/kernel/route-4.txt") && files.contains_key("manx/doctor.json"));
    let about: serde_json::Value = serde_json::from_slice(&files["manx/bundle.json"]).unwrap();
    assert!(about["missing"][0]["reason"].as_str().unwrap().contains("no agent"));
}
