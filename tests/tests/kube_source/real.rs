//! The same against the real thing, where `KUBEBUILDER_ASSETS` names a folder with `kube-apiserver` and `etcd`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hyper::Method;
use manx_agent::source::Kind;
use manx_agent::source::kube::{Access, Api, Call};
use manx_agent::status::{self, node_state::NodeNow};
use manx_agent::view::PeerRow;
use manx_tests::wait;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::follower::{Follower, LIMIT};

const TOKEN: &str = "manx-test";
/// Where the definitions of our kinds are.
const DEFINITIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/base/crds");

#[test]
fn a_real_server_is_followed_and_checks_our_kinds_as_they_are_defined() {
    let Some(assets) = assets() else { return };
    let mut real = Real::start(&assets);
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    real.create("/api/v1/namespaces", &namespace("shop"));
    let mut follower = real.follow();
    follower.until("in sync", |f| f.in_sync && f.has(Kind::Namespace, "shop"));

    // Kinds that appear are noticed.
    real.define();
    let filters = "/apis/manx.dev/v1alpha1/bgpfilters";
    let filter = json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPFilter", "metadata": {"name": "racks"},
                        "spec": {"ipv4": [{"action": "Accept"}]}});
    real.create(filters, &filter);
    follower.until("the filter", |f| f.has(Kind::BgpFilter, "racks"));
    let peer = json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer", "metadata": {"name": "both"},
                      "spec": {"peerIP": "192.0.2.1", "interface": "eth0", "asNumber": 65001}});
    let (code, answer) = real.call(Method::POST, "/apis/manx.dev/v1alpha1/bgppeers", Some(&peer));
    assert_eq!(code, 422, "exactly one of peerIP and interface: {answer}");

    // The server restarts: what happened meanwhile is caught up with.
    real.call(Method::DELETE, &format!("{filters}/racks"), None);
    real.restart();
    real.create("/api/v1/namespaces", &namespace("late"));
    follower.until("caught up", |f| f.has(Kind::Namespace, "late") && !f.has(Kind::BgpFilter, "racks"));
}

/// The agent under its own service account, with the rights of the manifests: what it reads and writes is allowed to it.
#[test]
fn an_agent_with_the_rights_of_the_manifests_is_forbidden_nothing() {
    let Some(assets) = assets() else { return };
    let real = Real::start(&assets);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "manx-system"}});
    real.create("/api/v1/namespaces", &namespace);
    real.define();
    for file in ["serviceaccount.yaml", "rbac.yaml"] {
        let text = std::fs::read_to_string(Path::new(DEFINITIONS).with_file_name(file)).unwrap();
        for object in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
            let namespace = object["metadata"]["namespace"].as_str();
            let within = namespace.map_or(String::new(), |name| format!("/namespaces/{name}"));
            let path = match object["kind"].as_str().unwrap() {
                "ServiceAccount" => format!("/api/v1{within}/serviceaccounts"),
                kind => format!("/apis/rbac.authorization.k8s.io/v1{within}/{}s", kind.to_lowercase()),
            };
            real.create(&path, &object);
        }
    }
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    real.create("/api/v1/nodes", &node);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tor-a"}, "stringData": {"key": "k"}});
    real.create("/api/v1/namespaces/manx-system/secrets", &secret);
    let peers = "/apis/manx.dev/v1alpha1/bgppeers";
    let peer = json!({"apiVersion": "manx.dev/v1alpha1", "kind": "BGPPeer", "metadata": {"name": "tor-a"},
                      "spec": {"peerIP": "192.0.2.1", "asNumber": 65001,
                               "password": {"secretKeyRef": {"name": "tor-a", "key": "key"}}}});
    real.create(peers, &peer);
    let made = real.get(&format!("{peers}/tor-a"));
    assert_eq!((&made["spec"]["holdTime"], &made["spec"]["port"]), (&json!("90s"), &json!(179)), "defaults");

    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = "/api/v1/namespaces/manx-system/serviceaccounts/manx-agent/token";
    let (code, answer) = real.call(Method::POST, path, Some(&request));
    assert_eq!(code, 201, "{answer}");
    let kubeconfig = real.kubeconfig("agent", answer["status"]["token"].as_str().unwrap());
    let mut follower = Follower::by(&kubeconfig, TempDir::new().unwrap());
    follower.until("in sync", |f| f.in_sync && f.has(Kind::Secret, "tor-a"));
    assert!(follower.problems.is_empty(), "{:?}", follower.problems);

    let row = |state: &str| PeerRow { name: "tor-a".into(), state: state.into(), ..PeerRow::default() };
    let up = NodeNow {
        peers: vec![row("Established")],
        declared: ["tor-a".to_owned()].into(),
        drain: "Serving".into(),
        ..NodeNow::default()
    };
    let down = NodeNow { peers: vec![row("Connect")], ..up.clone() };
    let looks = std::sync::atomic::AtomicUsize::new(0);
    let api = real.runtime.block_on(Api::new(Access::Kubeconfig(kubeconfig))).unwrap();
    let settings = status::Settings {
        node: "n1".into(),
        namespace: "manx-system".into(),
        cni: true,
        timing: status::Timing { judge: std::time::Duration::from_secs(1), ..status::Timing::default() },
    };
    real.runtime.spawn(status::run(std::sync::Arc::new(api), settings, move || {
        // Down at first: the change is an Event.
        let first = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
        let now = if first { down.clone() } else { up.clone() };
        async move { Some(now) }
    }));
    let written = || {
        let peer = real.get(&format!("{peers}/tor-a"));
        let node = real.get("/api/v1/nodes/n1");
        let state = real.get("/apis/manx.dev/v1alpha1/bgpnodestates/n1");
        let events = real.get("/api/v1/namespaces/default/events");
        let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        let all = [
            peer["status"]["conditions"][0]["status"] == "True",
            conditions.any(|c| c["type"] == "NetworkUnavailable" && c["status"] == "False"),
            state["status"]["establishedCount"] == json!(1),
            events["items"]
                .as_array()
                .is_some_and(|items| items.iter().any(|e| e["reason"] == "SessionEstablished")),
        ];
        if all == [true; 4] { Ok(()) } else { Err(format!("{all:?}: {peer} {node} {state} {events}")) }
    };
    wait::until(4 * LIMIT, written).expect("all of it is written");

    // Only its subresource takes a status.
    let mut body = real.get(&format!("{peers}/tor-a"));
    body["status"]["nodes"] = json!(99);
    real.call(Method::PUT, &format!("{peers}/tor-a"), Some(&body));
    assert_ne!(real.get(&format!("{peers}/tor-a"))["status"]["nodes"], json!(99));

    let audit = std::fs::read_to_string(real.file("audit.log")).unwrap();
    let lines = audit.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let own = lines.filter(|l| l["user"]["username"] == "system:serviceaccount:manx-system:manx-agent");
    let (forbidden, allowed): (Vec<_>, Vec<_>) = own.partition(|l| l["responseStatus"]["code"] == 403);
    assert!(!allowed.is_empty(), "the agent's requests are in the log");
    assert_eq!(forbidden, [] as [Value; 0]);
}

/// Where the real programs are; it is said where they are not.
fn assets() -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    if assets.is_none() {
        eprintln!("skipped: KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd");
    }
    assets
}

/// A server with its storage.
struct Real {
    assets: PathBuf,
    files: TempDir,
    port: u16,
    etcd: String,
    processes: Vec<Child>,
    runtime: tokio::runtime::Runtime,
}

impl Real {
    fn start(assets: &Path) -> Self {
        let files = TempDir::new().unwrap();
        let etcd = format!("http://127.0.0.1:{}", free_port());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut real = Real {
            assets: assets.to_owned(),
            port: free_port(),
            etcd,
            processes: Vec::new(),
            runtime,
            files,
        };
        let peer = format!("http://127.0.0.1:{}", free_port());
        let data = real.file("etcd");
        let storage = [
            ("data-dir", data.as_str()),
            ("listen-client-urls", &real.etcd),
            ("advertise-client-urls", &real.etcd),
            ("listen-peer-urls", &peer),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", &format!("default={peer}")),
        ];
        real.processes.push(real.spawn("etcd", &storage));
        std::fs::write(real.file("tokens.csv"), format!("{TOKEN},admin,1,system:masters\n")).unwrap();
        let made = Command::new("openssl").args(["genrsa", "-out", &real.file("sa.key"), "2048"]).status();
        assert!(made.is_ok_and(|status| status.success()), "openssl makes a key for service accounts");
        let audit = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
                           "rules": [{"level": "Metadata"}]});
        std::fs::write(real.file("audit.yaml"), audit.to_string()).unwrap();
        real.kubeconfig("kubeconfig", TOKEN);
        real.start_server();
        real
    }

    /// Writes the kubeconfig of whoever has this token.
    fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "real",
            "clusters": [{"name": "real", "cluster": {"server": format!("https://127.0.0.1:{}", self.port),
                          "insecure-skip-tls-verify": true}}],
            "users": [{"name": "real", "user": {"token": token}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "real"}}]});
        let file = PathBuf::from(self.file(name));
        std::fs::write(&file, config.to_string()).unwrap();
        file
    }

    /// Installs our kinds.
    fn define(&self) {
        for file in std::fs::read_dir(DEFINITIONS).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let definition: Value = serde_saphyr::from_str(&text).unwrap();
            self.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition);
        }
    }

    fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).1
    }

    fn start_server(&mut self) {
        let key = self.file("sa.key");
        let options = [
            ("etcd-servers", self.etcd.as_str()),
            ("bind-address", "127.0.0.1"),
            ("secure-port", &self.port.to_string()),
            ("cert-dir", &self.file("certificates")),
            ("token-auth-file", &self.file("tokens.csv")),
            ("authorization-mode", "RBAC"),
            ("service-account-issuer", "https://kubernetes.default.svc"),
            ("service-account-key-file", &key),
            ("service-account-signing-key-file", &key),
            ("service-cluster-ip-range", "10.96.0.0/24"),
            ("disable-admission-plugins", "ServiceAccount"),
            ("audit-policy-file", &self.file("audit.yaml")),
            ("audit-log-path", &self.file("audit.log")),
        ];
        let server = self.spawn("kube-apiserver", &options);
        self.processes.push(server);
        let ready = || match self.try_call(Method::GET, "/readyz", None) {
            Some((200, _)) => Ok(()),
            other => Err(other),
        };
        wait::until(4 * LIMIT, ready).expect("kube-apiserver is ready");
    }

    fn restart(&mut self) {
        let mut server = self.processes.pop().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
        self.start_server();
    }

    fn spawn(&self, program: &str, options: &[(&str, &str)]) -> Child {
        let mut command = Command::new(self.assets.join(program));
        command.args(options.iter().map(|(name, value)| format!("--{name}={value}")));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn follow(&self) -> Follower {
        Follower::by(&PathBuf::from(self.file("kubeconfig")), TempDir::new().unwrap())
    }

    fn create(&self, path: &str, object: &Value) {
        // A kind that was defined just now is not served yet.
        let served = || match self.call(Method::POST, path, Some(object)) {
            (404, answer) => Err(answer),
            other => Ok(other),
        };
        let ((code, answer), _) = wait::until(LIMIT, served).expect("the kind is served");
        assert_eq!(code, 201, "{path}: {answer}");
    }

    fn call(&self, method: Method, path: &str, object: Option<&Value>) -> (u16, Value) {
        self.try_call(method, path, object).expect("the server answers")
    }

    fn try_call(&self, method: Method, path: &str, object: Option<&Value>) -> Option<(u16, Value)> {
        let access = Access::Kubeconfig(PathBuf::from(self.file("kubeconfig")));
        self.runtime.block_on(async {
            let api = Api::new(access).await.unwrap();
            let call = object.map(|value| Call { content_type: "application/json", value });
            api.call(method, path, call).await.ok()
        })
    }

    fn file(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
