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

mod garbage {
    use proptest::prelude::*;

    /// JSON that looks like a configuration, with anything anywhere.
    fn json() -> impl Strategy<Value = serde_json::Value> {
        let keys = prop::sample::select(vec![
            "name",
            "Name",
            "cniVersion",
            "prevResult",
            "runtimeConfig",
            "args",
            "cni",
            "ips",
            "mac",
            "mtu",
            "dns",
            "interfaces",
            "address",
            "interface",
            "routes",
            "dst",
            "policyTimeout",
            "cni.dev/valid-attachments",
            "containerID",
            "ifname",
            "ip4",
            "io.kubernetes.cri.pod-annotations",
            "manx.dev/ips",
        ]);
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            prop::sample::select(vec![
                "manx",
                "1.0.0",
                "1.1.0",
                "10.0.0.1/24",
                "fd00::1",
                "",
                "10s",
                "02:00:00:00:00:01"
            ])
            .prop_map(Into::into),
            ".*".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::hash_map(keys.clone().prop_map(str::to_owned), inner, 0..6)
                    .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
            ]
        })
    }

    fn is_answered(verb: &str, input: &[u8]) {
        let text = String::from_utf8_lossy(input);
        let said = super::call(verb, super::CALL, &text);
        match said.split_once(' ').unwrap() {
            ("0", "") => {}
            (_, answer) => assert!(serde_json::from_str::<serde_json::Value>(answer).is_ok(), "{said}"),
        }
    }

    proptest! {
        /// Whatever comes in, what goes out is JSON or nothing.
        #[test]
        fn any_configuration_is_answered_with_json(mut conf in json(), verb in prop::sample::select(super::VERBS.to_vec())) {
            if let Some(conf) = conf.as_object_mut() {
                conf.insert("runDir".to_owned(), "/nonexistent/manx".into());
            }
            is_answered(verb, conf.to_string().as_bytes());
        }

        #[test]
        fn any_bytes_are_answered_with_json(input in prop::collection::vec(any::<u8>(), 0..64)) {
            is_answered("ADD", &input);
        }
    }
}
