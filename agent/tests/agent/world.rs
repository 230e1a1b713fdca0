//! Namespaces, agents and BIRD for one test. All of it goes with the values here, also when a test panics; a namespace
//! has no name and goes with the last process in it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use manx_cni::names::{Key, host_interface};
use manx_cni::store::{Attachment, Store};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes on a machine that does other things as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// What the documentation promises for a change; checked where nothing else competes for the time.
pub(crate) const A_SECOND: Duration = Duration::from_secs(1);

/// Waits until `condition` holds; how long that took.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    start.elapsed()
}

/// A network namespace without a name.
pub(crate) struct Netns {
    file: File,
}

impl Netns {
    /// With `lo` up.
    pub(crate) fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs root");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let this = Netns { file };
        this.ip("link set lo up");
        // Link-local addresses are there at once, and not in the middle of a test.
        this.sh("sysctl -q -w net.ipv6.conf.default.accept_dad=0");
        this
    }

    /// What names it to ip(8), by its path below /proc.
    pub(crate) fn descriptor(&self) -> &File {
        &self.file
    }

    /// Runs `f` on a thread in the namespace; processes that it starts stay there.
    pub(crate) fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
            f()
        };
        let joined = std::thread::scope(|scope| scope.spawn(inside).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub(crate) fn output(&self, command: &mut Command) -> Output {
        self.enter(|| command.stdin(Stdio::null()).output().unwrap())
    }

    /// What the program wrote; panics with its complaint when it fails.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.output(Command::new(program).args(arguments));
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {words}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command line of plain words.
    pub(crate) fn sh(&self, line: &str) -> String {
        let words: Vec<_> = line.split_whitespace().collect();
        self.run(words[0], &words[1..])
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.sh(&format!("ip {arguments}"))
    }

    /// A veth between two namespaces, called `eth0` here and `theirs` there, both up.
    pub(crate) fn wire(&self, other: &Netns, theirs: &str) {
        self.wire_as("eth0", other, theirs);
    }

    /// A veth between two namespaces, both ends up.
    pub(crate) fn wire_as(&self, ours: &str, other: &Netns, theirs: &str) {
        let there = format!("/proc/{}/fd/{}", std::process::id(), other.file.as_raw_fd());
        self.ip(&format!("link add {ours} type veth peer name {theirs} netns {there}"));
        self.ip(&format!("link set {ours} up"));
        other.ip(&format!("link set {theirs} up"));
    }

    /// A link with its other end in the same namespace.
    pub(crate) fn link(&self, name: &str) {
        self.ip(&format!("link add {name} type veth peer name {}", name.chars().rev().collect::<String>()));
    }

    pub(crate) fn address(&self, link: &str, address: &str) {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        self.ip(&format!("addr add {address} dev {link} {nodad}"));
    }

    /// Routes of one family as `ip -j` tells them, those of protocol 77 only.
    pub(crate) fn routes(&self, family: &str) -> Vec<Value> {
        let text = self.ip(&format!("-j {family} route show proto 77"));
        serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
    }

    pub(crate) fn route(&self, prefix: &str) -> Option<Value> {
        let family = if prefix.contains(':') { "-6" } else { "-4" };
        self.routes(family).into_iter().find(|r| r["dst"] == prefix)
    }

    pub(crate) fn sets(&self) -> String {
        self.sh("ipset save")
    }

    pub(crate) fn rules(&self) -> String {
        self.saved("iptables-nft-save") + &self.saved("ip6tables-nft-save")
    }

    /// A set that goes between two of the program's questions makes it fail: it is asked again.
    fn saved(&self, program: &str) -> String {
        let saved = || Some(self.output(&mut Command::new(program))).filter(|o| o.status.success());
        let output = (0..50).find_map(|_| saved()).unwrap_or_else(|| panic!("{program} fails 50 times"));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Rules, sets and routes of both families: all that Manx may write. Counters are as they are, time stamps are not.
    pub(crate) fn everything(&self) -> String {
        let counted = self.sh("iptables-nft-save -c") + &self.sh("ip6tables-nft-save -c");
        let mut text: String =
            counted.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
        text += &self.sets();
        for family in ["-4", "-6"] {
            text += &self.ip(&format!("{family} route show table all proto 77"));
        }
        text
    }
}

/// A process that ends with this value.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    /// Sends a signal and waits for the end; the exit code.
    pub(crate) fn stop(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        eventually("the agent ends", || !self.alive());
        self.0.wait().unwrap().code()
    }

    pub(crate) fn alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Its environment, `NAME=VALUE` each.
    pub(crate) fn environment(&self) -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{}/environ", self.0.id())).unwrap();
        text.split('\0').map(str::to_owned).collect()
    }

    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().count()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a monitor of the kernel says line by line, for as long as this lives.
pub(crate) struct Ear<'a> {
    _process: Running,
    lines: Receiver<String>,
    net: &'a Netns,
    /// Causes a line that holds its argument.
    mark: fn(&Netns, &str),
}

impl<'a> Ear<'a> {
    /// `ip monitor route`.
    pub(crate) fn routes(net: &'a Netns) -> Self {
        Self::new(net, &["ip", "monitor", "route"], |net, mark| {
            net.ip(&format!("route add {mark} dev lo"));
            net.ip(&format!("route del {mark} dev lo"));
        })
    }

    /// `nft monitor`.
    pub(crate) fn filter(net: &'a Netns) -> Self {
        Self::new(net, &["nft", "monitor"], |net, mark| {
            // A table's name may hold dots behind its first letter.
            net.sh(&format!("nft add table ip m{mark}"));
            net.sh(&format!("nft delete table ip m{mark}"));
        })
    }

    /// Returns once it hears.
    fn new(net: &'a Netns, words: &[&str], mark: fn(&Netns, &str)) -> Self {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = net.enter(|| command.spawn().unwrap());
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let this = Ear { _process: Running(child), lines, net, mark };
        this.until("203.0.113.1");
        this
    }

    /// All that was said up to now, without our own marks, the comments of `nft` and what the kernel does
    /// by itself with its addresses.
    pub(crate) fn heard(&self) -> Vec<String> {
        let heard = self.until("203.0.113.2").into_iter();
        let noise = |line: &String| {
            line.contains("203.0.113.") || line.starts_with('#') || line.contains("proto kernel")
        };
        heard.filter(|line| !noise(line)).collect()
    }

    /// Everything said up to a line that speaks of `mark`.
    fn until(&self, mark: &str) -> Vec<String> {
        let start = Instant::now();
        let mut heard = Vec::new();
        loop {
            assert!(start.elapsed() < PATIENCE, "nothing is heard of {mark}");
            (self.mark)(self.net, mark);
            loop {
                match self.lines.recv_timeout(Duration::from_millis(300)) {
                    Ok(line) if line.contains(mark) => return heard,
                    Ok(line) => heard.push(line),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => panic!("the monitor has ended"),
                }
            }
        }
    }
}

/// A node: a namespace, a directory with manifests and the agent's files.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) net: Netns,
    dir: TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent of {} said:\n{}", self.name, self.log());
        }
    }
}

/// What a program of ours answered.
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {} {}", self.out, self.err))
    }

    /// Its complaint is one line and names all of these.
    pub(crate) fn complains(&self, words: &[&str]) {
        assert_ne!(self.code, 0, "{}", self.err);
        let lines: Vec<_> = self.err.lines().filter(|l| l.starts_with("manx-agent: ")).collect();
        assert_eq!(lines.len(), 1, "one line: {}", self.err);
        assert_eq!(self.err.trim_end().lines().last(), Some(lines[0]), "the last line");
        for word in words {
            assert!(lines[0].contains(word), "{word:?} is not in {:?}", lines[0]);
        }
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Answer {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The Node object of `n1` in the examples of these tests: 10.1.0.2, 10.200.1.0/24, both families.
pub(crate) const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {rack: a}}
spec: {podCIDRs: [10.200.1.0/24, 'fd00:200:1::/64']}
status:
  addresses: [{type: InternalIP, address: 10.1.0.2}, {type: InternalIP, address: 'fd00:1::2'}]
";

/// BIRD at 10.1.0.1 as a peer of that node, which is in AS 64512.
pub(crate) const PEER: &str = "
apiVersion: manx.dev/v1alpha1
kind: BGPPeer
metadata: {name: tor}
spec: {peerIP: 10.1.0.1, asNumber: 65001, connectRetry: 1s}
";

impl Node {
    /// A node without links and manifests.
    pub(crate) fn bare(name: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("manx-agent-").tempdir().unwrap();
        for sub in ["manifests", "bin"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        Node { name, net: Netns::new(), dir }
    }

    /// `n1` with its Node object, without links.
    pub(crate) fn alone() -> Self {
        let node = Node::bare("n1");
        node.manifest("node.yaml", NODE);
        node
    }

    /// `n1` with its Node object and its addresses on `eth0`, and a namespace at the other end of it with 10.1.0.1/24
    /// and fd00:1::1/64.
    pub(crate) fn wired() -> (Self, Netns) {
        let (node, tor) = (Node::alone(), Netns::new());
        node.net.wire(&tor, "eth0");
        for (net, last) in [(&node.net, 2), (&tor, 1)] {
            net.address("eth0", &format!("10.1.0.{last}/24"));
            net.address("eth0", &format!("fd00:1::{last}/64"));
        }
        (node, tor)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    pub(crate) fn conflist(&self) -> PathBuf {
        self.path("net.d/10-manx.conflist")
    }

    pub(crate) fn node_json(&self) -> PathBuf {
        self.path("run/node.json")
    }

    /// Writes a manifest whole, as an editor or a controller does.
    pub(crate) fn manifest(&self, file: &str, text: &str) {
        let hidden = self.path("manifests").join(format!(".{file}.new"));
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, self.path("manifests").join(file)).unwrap();
    }

    pub(crate) fn remove_manifest(&self, file: &str) {
        fs::remove_file(self.path("manifests").join(file)).unwrap();
    }

    /// The agent's command line for this node.
    pub(crate) fn agent_command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_manx-agent"));
        command.arg("--node-name").arg(self.name).arg("--manifests").arg(self.path("manifests"));
        command.arg("--run-dir").arg(self.run_dir()).arg("--cni-conf-dir").arg(self.path("net.d"));
        command.arg("--cni-bin-dir").arg(self.path("bin"));
        clean(&mut command);
        command
    }

    pub(crate) fn spawn(&self, command: &mut Command) -> Running {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Running(self.net.enter(|| command.spawn().unwrap()))
    }

    /// Starts the agent with more arguments.
    pub(crate) fn start_with(&self, arguments: &[&str]) -> Running {
        self.spawn(self.agent_command().args(arguments))
    }

    /// Starts the agent and waits until it is in sync and its closing dispatch, or more, is in the kernel.
    pub(crate) fn start(&self) -> Running {
        let agent = self.start_with(&[]);
        self.settled();
        agent
    }

    pub(crate) fn settled(&self) {
        eventually("in sync and applied", || {
            self.try_json(&["status"]).is_some_and(|status| {
                let policy = &status["policy"];
                status["source"]["inSync"] == true
                    && (policy.is_null()
                        || (policy["pending"] == false && self.net.rules().contains("MANX-")))
                    && status["cni"]["ready"] != false
            })
        });
    }

    /// Runs the agent to its end, which has to come by itself.
    pub(crate) fn fails(&self, command: &mut Command) -> Answer {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
        let child = self.net.enter(|| command.spawn().unwrap());
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let (sender, done) = channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        let output = child.wait_with_output().unwrap();
        drop(sender);
        watchdog.join().unwrap();
        output.into()
    }

    pub(crate) fn cleanup(&self, arguments: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_manx-agent"));
        clean(&mut command);
        command.arg("cleanup").arg("--run-dir").arg(self.run_dir());
        command.arg("--cni-conf-dir").arg(self.path("net.d")).args(arguments);
        self.net.output(&mut command).into()
    }

    pub(crate) fn manxctl(&self, arguments: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_manxctl"));
        clean(&mut command);
        command.arg("--run-dir").arg(self.run_dir()).args(arguments);
        command.output().unwrap().into()
    }

    /// The document that `manxctl -o json` prints; `None`: the agent does not answer (yet).
    pub(crate) fn try_json(&self, arguments: &[&str]) -> Option<Value> {
        let answer = self.manxctl(&[arguments, &["-o", "json"]].concat());
        (answer.code != 3).then(|| answer.json())
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        self.try_json(arguments).unwrap_or_else(|| panic!("{arguments:?} is not answered: {}", self.log()))
    }

    /// The line of `manxctl peers` for a peer.
    pub(crate) fn peers(&self) -> Vec<Value> {
        let peers = self.try_json(&["peers"]).unwrap_or_default();
        peers["items"].as_array().cloned().unwrap_or_default()
    }

    pub(crate) fn peer(&self, name: &str) -> Value {
        self.peers().into_iter().find(|p| p["name"] == name).unwrap_or_default()
    }

    pub(crate) fn established(&self, name: &str) {
        eventually(&format!("{name} is Established"), || self.peer(name)["state"] == "Established");
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Status line and body of a GET on the health and metrics port.
    pub(crate) fn http(&self, path: &str) -> Option<(String, String)> {
        self.net.enter(|| {
            let stream = TcpStream::connect("127.0.0.1:9474").ok()?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            exchange(stream, "GET", path)
        })
    }

    /// The metrics for a scraper that accepts this.
    pub(crate) fn scrape_as(&self, accept: &str) -> String {
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: manx\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
        self.net.enter(|| {
            let mut stream = TcpStream::connect("127.0.0.1:9474").unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer.split_once("\r\n\r\n").unwrap().1.to_owned()
        })
    }

    /// The same on a socket of the run directory.
    pub(crate) fn ask(&self, socket: &str, method: &str, path: &str) -> (String, String) {
        let stream = UnixStream::connect(self.run_dir().join(socket)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        exchange(stream, method, path).unwrap()
    }

    /// How many plugins talk to the agent. The kernel lists the agent's end of such a connection in the namespace of the
    /// plugin, which is ours, under the path that the listener was bound to before its rename.
    pub(crate) fn plugins(&self) -> usize {
        let path = self.run_dir().join("cni.new").display().to_string();
        let sockets = fs::read_to_string("/proc/self/net/unix").unwrap();
        sockets.lines().filter(|line| line.ends_with(&path)).count()
    }

    /// Puts an attachment into the plugin's store as a finished ADD does, and makes its host link.
    pub(crate) fn attach(&self, attachment: &Attachment) {
        let link = &attachment.interface;
        if !self.net.output(Command::new("ip").args(["link", "show", link])).status.success() {
            self.net.link(link);
        }
        let store = Store::open(&self.run_dir()).unwrap();
        let mut pending = store.begin(&Key::new(&attachment.container_id, &attachment.ifname)).unwrap();
        pending.publish(attachment).unwrap();
        assert!(pending.finish().unwrap());
    }

    /// Takes it away again, as a DEL does.
    pub(crate) fn detach(&self, attachment: &Attachment) {
        let path = self.run_dir().join("ipam/attachments");
        fs::remove_file(path.join(format!("{}:{}", attachment.container_id, attachment.ifname))).unwrap();
    }
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str) -> Option<(String, String)> {
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: manx\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_owned(), body.to_owned()))
}

/// No setting of the machine's counts.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars() {
        if name.starts_with("MANX_") {
            command.env_remove(name);
        }
    }
}

/// An attachment of pod `namespace/pod`, which ends in this digit.
pub(crate) fn attachment(pod: &str, uid: Option<&str>, digit: u8) -> Attachment {
    let id = format!("{digit}f00");
    Attachment {
        interface: host_interface("manx", &id, "eth0"),
        container_id: id,
        ifname: "eth0".to_owned(),
        network: Some("manx".to_owned()),
        netns: None,
        namespace: Some("shop".to_owned()),
        pod: Some(pod.to_owned()),
        uid: uid.map(str::to_owned),
        ips: vec![
            format!("10.200.1.{digit}").parse().unwrap(),
            format!("fd00:200:1::{digit}").parse().unwrap(),
        ],
        created: 1_700_000_000,
    }
}

/// Namespace `shop`.
pub(crate) const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: shop}}
";

/// A running Pod of namespace `shop` on `n1`.
pub(crate) fn pod(name: &str, uid: &str, labels: &str, address: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, uid: {uid}, labels: {labels}}}
spec: {{nodeName: n1, containers: []}}
status: {{phase: Running, podIPs: [{{ip: {address}}}]}}
---"
    )
}

/// Lets only pods with `role: client` in to pods with `role: web`, by port 80.
pub(crate) const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {role: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {role: client}}}]
    ports: [{port: 80, protocol: TCP}]
";

/// BIRD as the router at the other end: 10.1.0.1, AS 65001, both families over one IPv4 session.
pub(crate) struct Bird {
    dir: TempDir,
    options: String,
    _process: Running,
}

impl Bird {
    /// Announces `routes`; `options` go into the protocol.
    pub(crate) fn start(net: &Netns, routes: &[&str], options: &str) -> Self {
        Bird { options: options.to_owned(), ..Bird::configured(net, &config(routes, options)) }
    }

    /// With a configuration of the test's own.
    pub(crate) fn configured(net: &Netns, config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("manx-bird-").tempdir().unwrap();
        fs::write(dir.path().join("bird.conf"), config).unwrap();
        let mut command = Command::new("bird");
        command.arg("-f").arg("-c").arg(dir.path().join("bird.conf"));
        command.arg("-s").arg(dir.path().join("ctl")).arg("-P").arg(dir.path().join("pid"));
        command.stdin(Stdio::null()).stderr(File::create(dir.path().join("log")).unwrap());
        let process = Running(net.enter(|| command.spawn().expect("bird is installed")));
        let this = Bird { dir, options: String::new(), _process: process };
        eventually("BIRD answers", || this.path("ctl").exists() && this.ask("show status").contains("BIRD"));
        this
    }

    /// Announces these routes and no others from now on.
    pub(crate) fn announce(&self, routes: &[&str]) {
        fs::write(self.path("bird.conf"), config(routes, &self.options)).unwrap();
        let answer = self.ask("configure");
        assert!(answer.contains("Reconfigur"), "{answer}");
    }

    pub(crate) fn ask(&self, question: &str) -> String {
        let mut birdc = Command::new("birdc");
        let output = birdc.arg("-s").arg(self.path("ctl")).arg(question).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// BIRD's configuration as `Bird::start` has it.
pub(crate) fn config(routes: &[&str], options: &str) -> String {
    let mut text = "router id 10.1.0.1;\nlog stderr all;\nprotocol device {}\n".to_owned();
    for (family, name) in [("ipv4", "s4"), ("ipv6", "s6")] {
        let of = routes.iter().filter(|r| r.contains(':') == (family == "ipv6"));
        let lines: String = of.map(|r| format!("  route {r} blackhole;\n")).collect();
        write!(text, "protocol static {name} {{\n  {family};\n{lines}}}\n").unwrap();
    }
    write!(
        text,
        "protocol bgp node {{
  local 10.1.0.1 as 65001;
  neighbor 10.1.0.2 as 64512;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
  ipv6 {{ import all; export where source = RTS_STATIC; next hop address fd00:1::1; }};
  {options}
}}
"
    )
    .unwrap();
    text
}

/// A directory of wrappers around `iptables-*-restore`, first in an agent's PATH: while it is shut, nothing reaches the
/// kernel; while it is broken, each attempt fails.
pub(crate) struct Gate {
    dir: TempDir,
}

impl Gate {
    /// Open.
    pub(crate) fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::Builder::new().prefix("manx-gate-").tempdir().unwrap();
        for tool in ["iptables-nft-restore", "ip6tables-nft-restore"] {
            let real = ["/usr/sbin", "/sbin", "/usr/bin"].map(|d| Path::new(d).join(tool));
            let real = real.iter().find(|p| p.exists()).expect("iptables is installed");
            let here = dir.path().display();
            // The program may stay for many changes: each of their tables has to pass.
            let script = format!(
                "#!/bin/bash\nexec {} \"$@\" < <(while IFS= read -r line; do\n\
                 if [[ $line == '*'* ]]; then\n\
                 [ -e {here}/broken ] && {{ echo 'the gate is broken' >&2; echo '*broken'; exit; }}\n\
                 : > {here}/knocked; while [ -e {here}/shut ]; do sleep 0.02; done\n\
                 fi\nprintf '%s\\n' \"$line\"\ndone)\n",
                real.display()
            );
            fs::write(dir.path().join(tool), script).unwrap();
            fs::set_permissions(dir.path().join(tool), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Gate { dir }
    }

    /// Puts it in front of what the command would find.
    pub(crate) fn guard<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.dir.path().display()))
    }

    pub(crate) fn shut(&self) {
        let _ = fs::remove_file(self.dir.path().join("knocked"));
        fs::write(self.dir.path().join("shut"), "").unwrap();
    }

    /// Somebody has come to the gate since it was shut.
    pub(crate) fn knocked(&self) {
        eventually("a restore is tried", || self.dir.path().join("knocked").exists());
    }

    pub(crate) fn open(&self) {
        fs::remove_file(self.dir.path().join("shut")).unwrap();
    }

    pub(crate) fn breaks(&self) {
        fs::write(self.dir.path().join("broken"), "").unwrap();
    }

    pub(crate) fn mended(&self) {
        fs::remove_file(self.dir.path().join("broken")).unwrap();
    }
}
