//! The folder is up to date, all ways of installing are one, and every object is one that its API takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use manx_agent::source::manifest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::kustomize::{self, documents};
use super::{generate, helm};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

fn read(path: &str) -> String {
    fs::read_to_string(folder().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Objects by kind and name, so that their order does not matter.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let count = objects.len();
    let name = |o: &Value| {
        let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
        format!("{} {}/{}", text(&o["kind"]), text(&o["metadata"]["namespace"]), text(&o["metadata"]["name"]))
    };
    let map: BTreeMap<_, _> = objects.into_iter().map(|o| (name(&o), o)).collect();
    assert_eq!(map.len(), count, "no object twice");
    map
}

fn base() -> BTreeMap<String, Value> {
    by_name(kustomize::build(&folder().join("base")))
}

/// The chart's objects with values over its defaults, the definitions among them; of the base's namespace nothing.
fn chart(over: &Value) -> BTreeMap<String, Value> {
    let mut values: Value = serde_saphyr::from_str(&read("chart/values.yaml")).unwrap();
    merge(&mut values, over);
    let mut objects = Vec::new();
    for (dir, template) in [("chart/crds", false), ("chart/templates", true)] {
        for path in yaml_files(&folder().join(dir)) {
            let text = fs::read_to_string(&path).unwrap();
            objects.extend(documents(&if template { helm::render(&text, &values) } else { text }));
        }
    }
    by_name(objects)
}

fn merge(values: &mut Value, over: &Value) {
    for (key, value) in over.as_object().unwrap() {
        match (&mut values[key], value) {
            (Value::Object(below), Value::Object(over)) if !below.is_empty() => {
                merge(&mut values[key], &Value::Object(over.clone()));
            }
            (slot, value) => *slot = value.clone(),
        }
    }
}

fn yaml_files(dir: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let files = entries.map(|e| e.unwrap().path());
    files.filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect()
}

#[test]
fn the_folder_holds_what_is_generated() {
    let generated = generate(&folder()).unwrap();
    for (path, text) in &generated {
        let there = fs::read_to_string(folder().join(path)).unwrap_or_default();
        assert!(there == *text, "{} is not up to date: run `make install-yaml`", path.display());
    }
    for dir in ["base/crds", "chart/crds"] {
        let there = yaml_files(&folder().join(dir)).len();
        let wanted = generated.keys().filter(|p| p.starts_with(dir)).count();
        assert_eq!(there, wanted, "{dir} holds a definition of no kind of ours");
    }
}

#[test]
fn one_file_the_base_and_the_chart_install_the_same() {
    let base = base();
    assert_eq!(by_name(documents(&read("install.yaml"))), base);
    let mut without_namespace = base;
    without_namespace.remove("Namespace /manx-system").expect("the base makes its namespace");
    assert_eq!(chart(&json!({})), without_namespace);
}

/// What an overlay changes, a line each.
fn changes(overlay: &str) -> Vec<String> {
    let base = base();
    let mut out = Vec::new();
    for (name, object) in by_name(kustomize::build(&folder().join("overlays").join(overlay))) {
        match base.get(&name) {
            None => out.push(format!("+ {name}")),
            Some(before) => difference(before, &object, &name, &mut out),
        }
    }
    out
}

fn difference(before: &Value, after: &Value, path: &str, out: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let none = Value::Null;
                let (a, b) = (a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none));
                difference(a, b, &format!("{path} {key}"), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                difference(a, b, &format!("{path} {i}"), out);
            }
        }
        // The API's types have limits as floating point numbers.
        (a, b) if a == b || (a.is_number() && a.as_f64() == b.as_f64()) => {}
        (a, b) => out.push(format!("{path}: {a} -> {b}")),
    }
}

#[test]
fn overlays_change_what_they_say_and_nothing_else() {
    let enable = |value: &str| {
        format!("ConfigMap manx-system/manx-agent data MANX_ENABLE: \"bgp,policy,cni\" -> \"{value}\"")
    };
    let prefix = "ConfigMap manx-system/manx-agent data MANX_POD_INTERFACE_PREFIX: \"manx\" -> \"veth\"";
    assert_eq!(changes("policy-only"), [enable("policy"), prefix.to_owned()]);
    assert_eq!(changes("bgp-only"), [enable("bgp")]);
    assert_eq!(changes("dual-stack"), ["+ NetworkConfiguration /default"]);
    assert_eq!(
        changes("monitoring"),
        [
            "ConfigMap manx-system/manx-agent data MANX_METRICS_ADDR: \"127.0.0.1:9474\" -> \"0.0.0.0:9474\"",
            "+ ConfigMap manx-system/manx-dashboard",
            "DaemonSet manx-system/manx-agent spec template spec containers 0 ports: null -> \
             [{\"containerPort\":9474,\"name\":\"metrics\",\"protocol\":\"TCP\"}]",
            "+ PodMonitor manx-system/manx-agent",
            "+ PrometheusRule manx-system/manx",
        ]
    );
}

#[test]
fn the_charts_values_do_what_the_overlays_do() {
    let without_namespace = |overlay: &str| {
        let mut objects = by_name(kustomize::build(&folder().join("overlays").join(overlay)));
        objects.remove("Namespace /manx-system");
        objects
    };
    let network = kustomize::documents(&read("overlays/dual-stack/network.yaml")).remove(0)["spec"].clone();
    for (values, overlay) in [
        (json!({"enable": ["policy"], "podInterfacePrefix": "veth"}), "policy-only"),
        (json!({"enable": ["bgp"]}), "bgp-only"),
        (json!({"networkConfiguration": network}), "dual-stack"),
        (json!({"monitoring": {"enabled": true}}), "monitoring"),
    ] {
        assert_eq!(chart(&values), without_namespace(overlay), "{overlay}");
    }
}

#[test]
fn every_value_of_the_chart_reaches_an_object() {
    let all = chart(&json!({
        "image": {"repository": "registry.example/manx", "tag": "9.9.9", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "podInterfacePrefix": "cali",
        "iptablesBackend": "nft",
        "log": {"filter": "manx_bgp=debug", "format": "text"},
        "cni": {"confDir": "/var/lib/cni/net.d", "binDir": "/usr/lib/cni"},
        "resources": {"requests": {"cpu": "1"}},
        "nodeSelector": {"rack": "a"},
        "podAnnotations": {"note": "x"},
        "maxUnavailable": "10%",
        "bgpConfiguration": {"asNumber": 64999},
        "bgpPeers": {"tor-a": {"peerIP": "10.1.0.1", "asNumber": 65001}},
        "bgpFilters": {"racks": {"ipv4": [{"action": "Accept"}]}},
    }));
    let agent = &all["DaemonSet manx-system/manx-agent"]["spec"];
    let pod = &agent["template"]["spec"];
    for container in [&pod["initContainers"][0], &pod["containers"][0]] {
        assert_eq!(container["image"], "registry.example/manx:9.9.9");
        assert_eq!(container["imagePullPolicy"], "Always");
    }
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]));
    assert_eq!(pod["containers"][0]["resources"], json!({"requests": {"cpu": "1", "memory": "64Mi"}}));
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux", "rack": "a"}));
    assert_eq!(agent["template"]["metadata"]["annotations"]["note"], "x");
    assert_eq!(agent["updateStrategy"]["rollingUpdate"]["maxUnavailable"], "10%");
    let volumes = pod["volumes"].to_string();
    assert!(volumes.contains("/var/lib/cni/net.d") && volumes.contains("/usr/lib/cni"));
    let config = &all["ConfigMap manx-system/manx-agent"]["data"];
    assert_eq!(config["MANX_IPTABLES_BACKEND"], "nft");
    assert_eq!(config["MANX_POD_INTERFACE_PREFIX"], "cali");
    assert_eq!((&config["MANX_LOG"], &config["MANX_LOG_FORMAT"]), (&json!("manx_bgp=debug"), &json!("text")));
    assert_eq!(all["BGPConfiguration /default"]["spec"], json!({"asNumber": 64999}));
    assert_eq!(all["BGPPeer /tor-a"]["spec"]["asNumber"], 65001);
    assert_eq!(all["BGPFilter /racks"]["spec"]["ipv4"], json!([{"action": "Accept"}]));
}

#[test]
fn the_charts_schema_knows_every_value_and_no_other() {
    let schema: Value = serde_json::from_str(&read("chart/values.schema.json")).unwrap();
    let values: Value = serde_saphyr::from_str(&read("chart/values.yaml")).unwrap();
    fn compare(schema: &Value, values: &Value, path: &str) {
        let Some(values) = values.as_object() else { return };
        let Some(known) = schema["properties"].as_object() else { return };
        assert_eq!(schema["additionalProperties"], false, "{path}");
        let known: BTreeSet<_> = known.keys().filter(|k| *k != "global").collect();
        assert_eq!(known, values.keys().collect(), "{path}");
        for (name, value) in values {
            compare(&schema["properties"][name], value, &format!("{path}.{name}"));
        }
    }
    compare(&schema, &values, "values");
}

/// An object read by its API's type and written again is the same: no field that the type does not know.
fn known_to_its_api(object: &Value) {
    fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
        let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e}: {object}"));
        serde_json::to_value(typed).unwrap()
    }
    let again = match (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap()) {
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            through::<CustomResourceDefinition>(object)
        }
        ("apps/v1", "DaemonSet") => through::<DaemonSet>(object),
        ("v1", "ConfigMap") => through::<ConfigMap>(object),
        ("v1", "Namespace") => through::<Namespace>(object),
        ("v1", "ServiceAccount") => through::<ServiceAccount>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => through::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => through::<ClusterRoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => through::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => through::<RoleBinding>(object),
        ("manx.dev/v1alpha1", _) => {
            let read = manifest::parse(&object.to_string());
            assert!(read.as_ref().is_ok_and(|m| m.notes.is_empty()), "{read:?}");
            return;
        }
        // The Prometheus operator's; their rules are played by promtool.
        ("monitoring.coreos.com/v1", "PodMonitor" | "PrometheusRule") => return,
        other => panic!("{other:?}: nobody knows whether this is right"),
    };
    let mut out = Vec::new();
    difference(object, &again, object["kind"].as_str().unwrap(), &mut out);
    assert_eq!(out, [] as [&str; 0]);
}

#[test]
fn every_object_is_one_that_its_api_knows() {
    for kustomization in ["overlays/monitoring", "overlays/dual-stack", "uninstall"] {
        kustomize::build(&folder().join(kustomization)).iter().for_each(known_to_its_api);
    }
}

#[test]
fn only_the_init_container_is_privileged_and_the_agent_has_three_capabilities() {
    let pod = base()["DaemonSet manx-system/manx-agent"]["spec"]["template"]["spec"].clone();
    let agent = &pod["containers"][0]["securityContext"];
    assert_eq!(agent["privileged"], false);
    assert_eq!(agent["allowPrivilegeEscalation"], false);
    assert_eq!(agent["readOnlyRootFilesystem"], true);
    assert_eq!(agent["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(
        agent["capabilities"],
        json!({"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE"]})
    );
    assert_eq!((&pod["hostNetwork"], &pod["hostPID"]), (&json!(true), &Value::Null));
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["containers"][0]["resources"], json!({"requests": {"cpu": "50m", "memory": "64Mi"}}));
    assert_eq!(pod["initContainers"][0]["command"], json!(["manx-agent", "prepare"]));
    let uninstall = kustomize::build(&folder().join("uninstall"));
    assert!(!serde_json::to_string(&uninstall).unwrap().contains("\"privileged\":true"));
}

/// Host directories that a pod's containers may write, with where they are mounted and by what variables they are named.
fn writable(pod: &Value) -> BTreeMap<String, String> {
    let containers =
        ["initContainers", "containers"].into_iter().filter_map(|list| pod[list].as_array()).flatten();
    let mounts = containers.flat_map(|c| c["volumeMounts"].as_array().into_iter().flatten());
    let path = |mount: &Value| {
        let volumes = pod["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|v| v["name"] == mount["name"]).unwrap();
        volume["hostPath"]["path"].as_str().unwrap().to_owned()
    };
    let writable = mounts.filter(|mount| mount["readOnly"] != true);
    writable.map(|mount| (path(mount), mount["mountPath"].as_str().unwrap().to_owned())).collect()
}

#[test]
fn uninstalling_reaches_all_that_installing_may_write() {
    let base = base()["DaemonSet manx-system/manx-agent"]["spec"]["template"]["spec"].clone();
    let uninstall = kustomize::build(&folder().join("uninstall"));
    let cleanup = &uninstall[0]["spec"]["template"]["spec"];
    assert_eq!(writable(&base), writable(cleanup));
    // The same host network, and the same words for the same directories.
    assert_eq!((&base["hostNetwork"], &cleanup["hostNetwork"]), (&json!(true), &json!(true)));
    for variable in cleanup["initContainers"][0]["env"].as_array().unwrap() {
        assert!(base["initContainers"][0]["env"].as_array().unwrap().contains(variable), "{variable}");
    }
    assert_eq!(cleanup["initContainers"][0]["command"], json!(["manx-agent", "cleanup", "--force"]));
}

/// What the manifests set is a flag that the agent has.
#[test]
fn every_environment_variable_is_one_of_the_agents() {
    use clap::CommandFactory;
    let command = manx_agent::options::Cli::command();
    let known: BTreeSet<String> = std::iter::once(&command)
        .chain(command.get_subcommands())
        .flat_map(clap::Command::get_arguments)
        .filter_map(|arg| arg.get_env().map(|e| e.to_string_lossy().into_owned()))
        .collect();
    for file in ["install.yaml", "uninstall/daemonset.yaml"] {
        for word in read(file).split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')) {
            assert!(!word.starts_with("MANX_") || known.contains(word), "{file}: {word}");
        }
    }
}

/// The words that a program prints, or why it cannot be asked, which is said aloud.
fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).current_dir(folder()).output() {
        Ok(out) if out.status.success() => Some(String::from_utf8(out.stdout).unwrap()),
        Ok(out) => panic!("{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr)),
        Err(e) => {
            eprintln!("SKIPPED: {program} {arguments:?}: {e}");
            None
        }
    }
}

/// Debian's kubectl is of a time when kustomize took no patches like these.
fn recent_kubectl() -> bool {
    let Some(text) = ask("kubectl", &["version", "--client", "-o", "json"]) else { return false };
    let version: Value = serde_json::from_str(&text).unwrap();
    let recent = version["kustomizeVersion"].as_str().is_some_and(|v| v.starts_with("v5"));
    if !recent {
        eprintln!("SKIPPED: kubectl has no kustomize of version 5");
    }
    recent
}

#[test]
fn the_real_kustomize_builds_the_same_where_it_is_at_hand() {
    if !recent_kubectl() {
        return;
    }
    for dir in [
        "base",
        "uninstall",
        "overlays/policy-only",
        "overlays/bgp-only",
        "overlays/dual-stack",
        "overlays/monitoring",
    ] {
        let Some(text) = ask("kubectl", &["kustomize", dir]) else { return };
        assert_eq!(by_name(documents(&text)), by_name(kustomize::build(&folder().join(dir))), "{dir}");
    }
}

#[test]
fn the_real_helm_renders_the_same_where_it_is_at_hand() {
    let template = |set: &[&str]| {
        let mut arguments = vec![
            "template",
            "manx",
            "chart",
            "--namespace",
            "manx-system",
            "--include-crds",
            "--kube-version",
            "1.33.0",
        ];
        arguments.extend(set);
        ask("helm", &arguments).map(|text| by_name(documents(&text)))
    };
    let Some(rendered) = template(&[]) else { return };
    assert_eq!(rendered, chart(&json!({})));
    let lint = ask("helm", &["lint", "chart", "--strict"]).unwrap();
    assert!(lint.contains("0 chart(s) failed"), "{lint}");
    for wrong in ["enable={magic}", "iptablesBackend=pf", "logg.filter=x", "maxUnavailable=-1"] {
        let out = Command::new("helm")
            .args(["template", "manx", "chart", "--set", wrong])
            .current_dir(folder())
            .output();
        assert!(!out.unwrap().status.success(), "values.schema.json lets {wrong} through");
    }
    let over = json!({"monitoring": {"enabled": true}, "bgpPeers": {"tor-a": {"peerIP": "10.1.0.1", "asNumber": 65001}}});
    let set = [
        "--set",
        "monitoring.enabled=true",
        "--set",
        "bgpPeers.tor-a.peerIP=10.1.0.1,bgpPeers.tor-a.asNumber=65001",
    ];
    assert_eq!(template(&set).unwrap(), chart(&over));
}

#[test]
fn promtool_plays_the_alerts_where_it_is_at_hand() {
    let Some(text) = ask("promtool", &["test", "rules", "monitoring/alerts.test.yaml"]) else { return };
    assert!(text.contains("SUCCESS"), "{text}");
}

#[test]
fn every_alert_has_a_test_a_severity_and_words() {
    let alerts: Value = serde_saphyr::from_str(&read("monitoring/alerts.yaml")).unwrap();
    let tests: Value = serde_saphyr::from_str(&read("monitoring/alerts.test.yaml")).unwrap();
    let tested: BTreeSet<&str> =
        tests["tests"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    let mut names = BTreeSet::new();
    for rule in alerts["groups"][0]["rules"].as_array().unwrap() {
        names.insert(rule["alert"].as_str().unwrap());
        assert!(["info", "warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()));
        assert!(rule["annotations"]["summary"].is_string() && rule["annotations"]["description"].is_string());
    }
    assert_eq!(names, tested);
}
