//! A node in a network namespace: run directory, a stand-in for the agent on cni.sock, sandboxes, and the real plugin.
//! Everything is removed on drop. What the kernel holds is asked from ip(8), never from our own code.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use manx_cni::agent::{self, Request, Response};
use manx_cni::node::{AddressPool, NodeConfig};
use manx_cni::store::Store;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The node's own addresses.
pub(crate) const NODE_V4: &str = "10.99.0.1";
pub(crate) const NODE_V6: &str = "fd99::1";

static COUNTER: AtomicUsize = AtomicUsize::new(0);

/// A network namespace that goes with its owner.
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    pub(crate) fn new(kind: &str) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("mcni-{}-{number}-{kind}", std::process::id());
        ip(&["netns", "add", &name]);
        Self(name)
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// ip(8) inside.
    pub(crate) fn ip(&self, args: &[&str]) -> String {
        ip(&[&["-n", &self.0], args].concat())
    }

    pub(crate) fn ip_json(&self, args: &[&str]) -> Vec<Value> {
        let text = self.ip(&[&["-j"], args].concat());
        if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() }
    }

    /// A program inside; it has to succeed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        succeed(self.command(program).args(args))
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    /// Rust code inside, on a thread of its own.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        thread::scope(|scope| {
            let enter = move || {
                setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(enter).join().unwrap()
        })
    }

    /// Names of all interfaces but lo.
    pub(crate) fn links(&self) -> Vec<String> {
        let names = self.ip_json(&["link"]).into_iter().map(|l| l["ifname"].as_str().unwrap().to_owned());
        names.filter(|name| name != "lo").collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["netns", "del", &self.0]).output());
    }
}

fn ip(args: &[&str]) -> String {
    succeed(Command::new("ip").args(args))
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What the stand-in for the agent does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Manner {
    Agree,
    Refuse(u32),
    HangUp,
    /// Answers after this time.
    Slow(Duration),
}

pub(crate) struct Node {
    pub(crate) ns: Namespace,
    pub(crate) dir: TempDir,
    manner: Arc<Mutex<Manner>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(&["10.211.0.0/24", "fd00:211::/64"])
    }

    pub(crate) fn with(cidrs: &[&str]) -> Self {
        let ns = Namespace::new("node");
        ns.ip(&["link", "set", "lo", "up"]);
        ns.ip(&["addr", "add", &format!("{NODE_V4}/32"), "dev", "lo"]);
        ns.ip(&["addr", "add", &format!("{NODE_V6}/128"), "dev", "lo"]);
        ns.run("sysctl", &["-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
        let node = Self {
            ns,
            dir: tempfile::tempdir().unwrap(),
            manner: Arc::new(Mutex::new(Manner::Agree)),
            requests: Arc::default(),
        };
        node.configure(cidrs);
        node.start_agent();
        node
    }

    pub(crate) fn configure(&self, cidrs: &[&str]) {
        let config = NodeConfig {
            node_name: "n1".to_owned(),
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            mtu: 1450,
            interface_prefix: "manx".to_owned(),
            pools: vec![AddressPool {
                name: "fixed".to_owned(),
                cidrs: vec!["10.250.0.0/24".parse().unwrap()],
            }],
        };
        config.write(self.run_dir()).unwrap();
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.run_dir()).unwrap()
    }

    pub(crate) fn start_agent(&self) {
        let socket = self.run_dir().join(agent::SOCKET);
        drop(fs::remove_file(&socket));
        let listener = UnixListener::bind(socket).unwrap();
        let (manner, requests) = (self.manner.clone(), self.requests.clone());
        thread::spawn(move || {
            agent::serve_blocking(&listener, move |request| {
                requests.lock().unwrap().push(request);
                let manner = manner.lock().unwrap().clone();
                match manner {
                    Manner::Agree => Some(Response::Ok {}),
                    Manner::Refuse(code) => {
                        Some(Response::Error { code, msg: "no".to_owned(), details: "because".to_owned() })
                    }
                    Manner::HangUp => None,
                    Manner::Slow(time) => {
                        thread::sleep(time);
                        Some(Response::Ok {})
                    }
                }
            })
        });
    }

    pub(crate) fn stop_agent(&self) {
        fs::remove_file(self.run_dir().join(agent::SOCKET)).unwrap();
    }

    pub(crate) fn agent(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// A configuration of this node's network with more fields.
    pub(crate) fn conf(&self, fields: &Value) -> Value {
        let mut conf =
            json!({ "cniVersion": "1.0.0", "name": "manx", "type": "manx", "runDir": self.run_dir() });
        for (key, value) in fields.as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    }

    /// The plugin, ready to start on the node, with its input on stdin as soon as it runs.
    pub(crate) fn plugin(&self, binary: &Path, verb: &str, pod: Option<&Pod>) -> Command {
        let mut command = self.ns.command(binary.to_str().unwrap());
        command.env("CNI_COMMAND", verb).env("CNI_PATH", "/usr/lib/cni");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(pod) = pod {
            command.env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0").env("CNI_NETNS", pod.ns.path());
            command.env("CNI_ARGS", &pod.args);
        }
        command
    }

    pub(crate) fn spawn(&self, verb: &str, pod: &Pod, conf: &Value) -> Child {
        let mut child = self.plugin(&binary(), verb, Some(pod)).spawn().unwrap();
        feed(&mut child, conf);
        child
    }

    /// Runs the plugin and waits.
    pub(crate) fn call(&self, verb: &str, pod: Option<&Pod>, conf: &Value) -> Outcome {
        self.call_binary(&binary(), verb, pod, conf)
    }

    pub(crate) fn call_binary(&self, binary: &Path, verb: &str, pod: Option<&Pod>, conf: &Value) -> Outcome {
        let mut child = self.plugin(binary, verb, pod).spawn().unwrap();
        feed(&mut child, conf);
        Outcome::of(child)
    }

    pub(crate) fn add(&self, pod: &Pod) -> Value {
        self.call("ADD", Some(pod), &self.conf(&json!({}))).ok()
    }

    pub(crate) fn del(&self, pod: &Pod) {
        self.call("DEL", Some(pod), &self.conf(&json!({}))).silent();
    }

    /// No link, no route, no address, no attachment, no mark.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.ns.links(), [""; 0], "links");
        for family in ["-4", "-6"] {
            let routes = self.ns.ip_json(&[family, "route", "show", "proto", "77"]);
            assert!(routes.is_empty(), "{routes:?}");
        }
        for room in ["attachments", "pending", "owners", "addresses"] {
            let path = self.run_dir().join("ipam").join(room);
            let names: Vec<_> =
                fs::read_dir(path).map(|d| d.map(|e| e.unwrap().file_name()).collect()).unwrap_or_default();
            assert!(names.is_empty(), "{room}: {names:?}");
        }
    }
}

/// A sandbox.
pub(crate) struct Pod {
    pub(crate) ns: Namespace,
    pub(crate) id: String,
    pub(crate) args: String,
}

impl Pod {
    pub(crate) fn new(name: &str) -> Self {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID=uid-{name};K8S_POD_INFRA_CONTAINER_ID=c"
        );
        let ns = Namespace::new("pod");
        Self { id: format!("id{}-{name}", COUNTER.fetch_add(1, Ordering::Relaxed)), ns, args }
    }
}

/// How a plugin ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn of(mut child: Child) -> Self {
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        Self {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The result.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert!(self.success, "{self:?}");
        assert_eq!(self.stderr, "", "nothing to say beside the result");
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// Success without a word.
    #[track_caller]
    pub(crate) fn silent(&self) {
        assert!(self.success && self.stdout.is_empty() && self.stderr.is_empty(), "{self:?}");
    }

    /// Code and all text of an error.
    #[track_caller]
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.success, "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).unwrap();
        assert!(error["cniVersion"].is_string(), "{error}");
        (
            error["code"].as_u64().unwrap(),
            format!("{}: {}", error["msg"].as_str().unwrap(), error["details"].as_str().unwrap()),
        )
    }
}

pub(crate) fn feed(child: &mut Child, conf: &Value) {
    let mut stdin = child.stdin.take().unwrap();
    // A plugin that was killed or has refused already does not read.
    drop(stdin.write_all(conf.to_string().as_bytes()));
}

pub(crate) fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_manx-cni"))
}

/// The address of a family in a result.
pub(crate) fn address(result: &Value, v4: bool) -> String {
    let ips = result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap());
    let ip =
        ips.filter(|ip| ip.contains('.') == v4).map(|ip| ip.split('/').next().unwrap().to_owned()).next();
    ip.unwrap_or_else(|| panic!("no address in {result}"))
}

/// Waits for something that is about to happen.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen within 10 s");
        thread::sleep(Duration::from_millis(5));
    }
}

/// One echo over TCP from one namespace to another: time to connect, first packet included.
pub(crate) fn tcp(from: &Namespace, to: &Namespace, address: &str) -> Duration {
    let ip: std::net::IpAddr = address.parse().unwrap();
    let listener = to.inside(|| std::net::TcpListener::bind((ip, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut word = [0; 5];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(&word).unwrap();
        peer
    });
    let took = from.inside(|| {
        let start = Instant::now();
        let mut stream =
            std::net::TcpStream::connect_timeout(&(ip, port).into(), Duration::from_secs(5)).unwrap();
        let took = start.elapsed();
        stream.write_all(b"hello").unwrap();
        let mut word = [0; 5];
        stream.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"hello");
        took
    });
    server.join().unwrap();
    took
}
