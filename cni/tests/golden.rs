//! Every verb in every version with everything that can be wrong before the kernel is asked: what stdout holds, and the
//! exit status. Regenerate with `INSTA_UPDATE=always` and read the difference.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fmt::Write;

use manx_cni::spec::VERSIONS;

const VERBS: [&str; 6] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];

const CALL: &[(&str, &str)] = &[
    ("CNI_CONTAINERID", "golden"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_NETNS", "/nonexistent/netns"),
    ("CNI_PATH", "/bin"),
];

fn call(verb: &str, variables: &[(&str, &str)], input: &str) -> String {
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some(verb.to_owned()),
        _ => variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()),
    };
    let mut stdout = Vec::new();
    let status = manx_cni::plugin::run(variable, input.as_bytes(), &mut stdout, 1_000_000);
    format!("{status} {}", String::from_utf8(stdout).unwrap().trim_end())
}

/// One line for each version and verb; lines that say the same are told together.
fn table(variables: &[(&str, &str)], input: impl Fn(&str) -> String) -> String {
    let mut out = String::new();
    for verb in VERBS {
        let mut last: Option<(String, Vec<&str>)> = None;
        for version in VERSIONS {
            let said = call(verb, variables, &input(version))
                .replace(&format!("\"cniVersion\":\"{version}\""), "\"cniVersion\":\"{version}\"")
                .replace(&format!("CNI {version}\""), "CNI {version}\"");
            match &mut last {
                Some((text, versions)) if *text == said => versions.push(version),
                _ => {
                    flush(&mut out, verb, last.take());
                    last = Some((said, vec![version]));
                }
            }
        }
        flush(&mut out, verb, last);
    }
    out
}

fn flush(out: &mut String, verb: &str, group: Option<(String, Vec<&str>)>) {
    if let Some((text, versions)) = group {
        writeln!(out, "{verb} {}..{}: {text}", versions[0], versions[versions.len() - 1]).unwrap();
    }
}

fn conf(version: &str, fields: &str) -> String {
    format!(
        r#"{{"cniVersion":"{version}","name":"manx","type":"manx","runDir":"/nonexistent/manx"{fields}}}"#
    )
}

#[test]
fn without_an_agent() {
    insta::assert_snapshot!(table(CALL, |version| conf(version, "")));
}

#[test]
fn without_variables() {
    insta::assert_snapshot!(table(&[], |version| conf(version, "")));
}

#[test]
fn with_dummies_as_libcni_sends_them_to_version() {
    let dummies = [
        ("CNI_CONTAINERID", "dummy"),
        ("CNI_IFNAME", "dummy"),
        ("CNI_NETNS", "dummy"),
        ("CNI_PATH", "dummy"),
    ];
    insta::assert_snapshot!(table(&dummies, |version| conf(version, "")));
}

#[test]
fn with_a_bad_container_id() {
    let bad = [("CNI_CONTAINERID", "../x"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/nonexistent/netns")];
    insta::assert_snapshot!(table(&bad, |version| conf(version, "")));
}

#[test]
fn with_bad_args() {
    let bad = [CALL, &[("CNI_ARGS", "K8S_POD_NAME")]].concat();
    insta::assert_snapshot!(table(&bad, |version| conf(version, "")));
}

#[test]
fn without_a_network_name() {
    insta::assert_snapshot!(table(CALL, |version| format!(r#"{{"cniVersion":"{version}","type":"manx"}}"#)));
}

#[test]
fn with_broken_json() {
    insta::assert_snapshot!(table(CALL, |version| format!(r#"{{"cniVersion":"{version}","name":"manx""#)));
}

#[test]
fn with_a_prev_result_that_cannot_be_read() {
    insta::assert_snapshot!(table(CALL, |version| conf(
        version,
        r#","prevResult":{"ips":[{"address":"x"}]}"#
    )));
}

#[test]
fn with_a_gc_list_that_cannot_be_read() {
    insta::assert_snapshot!(table(CALL, |version| conf(version, r#","cni.dev/valid-attachments":[{}]"#)));
}

#[test]
fn with_a_version_from_the_future() {
    let said: String = VERBS.iter().map(|verb| call(verb, CALL, &conf("9.9.9", "")) + "\n").collect();
    insta::assert_snapshot!(said);
}

#[test]
fn without_a_command() {
    let mut stdout = Vec::new();
    assert_eq!(manx_cni::plugin::run(|_| None, std::io::empty(), &mut stdout, 0), 1);
    insta::assert_snapshot!(String::from_utf8(stdout).unwrap());
}

#[test]
fn version_answers_in_the_version_it_is_asked_in() {
    insta::assert_snapshot!(call("VERSION", &[], r#"{"cniVersion":"0.4.0"}"#));
}
