//! The driver against BIRD, each in a network namespace of its own that goes with its last process.
//!
//! Needs root and `bird`; says so and leaves it at that where they are missing.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use manx_bgp::net::{self, NetConfig, Shutdown, system_interfaces};
use manx_bgp::speaker::{GracefulRestartConfig, PeerConfig, RemoteAs, Secret, SpeakerConfig};
use manx_bgp::types::{Asn, RouterId};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::support::{Node, prefix};

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split_whitespace()));
}

/// BIRD at 10.9.0.2 and fd00:9::2, linked to the calling thread's namespace as 10.9.0.1 and fd00:9::1.
struct Bird {
    dir: TempDir,
    daemon: Option<Process>,
    holder: Process,
}

impl Bird {
    /// Moves the calling thread to a namespace of its own. `None` where this cannot be done.
    fn start(protocol: &str) -> Option<Bird> {
        let installed = Command::new("bird").arg("--version").output().is_ok();
        if !installed || unshare(CloneFlags::CLONE_NEWNET).is_err() {
            eprintln!("skipped: needs root and bird");
            return None;
        }
        // Two minutes at most, should this process not live to end it.
        let mut holder = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo ready; exec sleep 120"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let holder = Process(holder);
        let pid = holder.0.id();
        ip("link set lo up");
        ip(&format!("link add v0 type veth peer name v1 netns {pid}"));
        let near = ["addr add 10.9.0.1/24 dev v0", "addr add fd00:9::1/64 dev v0 nodad", "link set v0 up"];
        near.into_iter().for_each(ip);
        let mut bird = Bird { dir: TempDir::new().unwrap(), daemon: None, holder };
        for arguments in
            ["addr add 10.9.0.2/24 dev v1", "addr add fd00:9::2/64 dev v1 nodad", "link set v1 up"]
        {
            run(bird.inside("ip").args(arguments.split_whitespace()));
        }
        let config = format!(
            "router id 10.9.0.2;
             protocol device {{}}
             protocol static {{ ipv4; route 10.50.0.0/16 blackhole; route 10.51.0.0/24 blackhole; }}
             protocol static {{ ipv6; route fd50::/32 blackhole; }}
             {protocol}"
        );
        std::fs::write(bird.dir.path().join("bird.conf"), config).unwrap();
        let (config, socket) = (bird.path("bird.conf"), bird.path("bird.ctl"));
        let daemon = bird.inside("bird").args(["-f", "-c", &config, "-s", &socket]).spawn().unwrap();
        bird.daemon = Some(Process(daemon));
        Some(bird)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.0.id().to_string(), "-n", program]);
        command
    }

    /// What birdc answers.
    fn show(&self, what: &str) -> String {
        let socket = self.path("bird.ctl");
        assert!(Path::new(&socket).exists(), "BIRD runs");
        run(Command::new("birdc").args(["-s", &socket, "show"]).args(what.split_whitespace()))
    }

    /// Asks until the answer has it: BIRD tells nobody when it is done.
    async fn shows(&self, what: &str, expected: &[&str]) -> String {
        for _ in 0..100 {
            let answer = self.show(what);
            if expected.iter().all(|e| answer.contains(e)) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{expected:?} not in\n{}", self.show(what));
    }
}

/// Runs a test on a thread of its own, whose namespace can be left.
fn on_own_thread(test: impl Future<Output = ()> + Send + 'static) {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn start() -> Node {
    let listens: SocketAddr = "0.0.0.0:179".parse().unwrap();
    let config = NetConfig {
        listen: vec![listens, "[::]:179".parse().unwrap()],
        interfaces: system_interfaces(),
        paths: None,
    };
    let restart = GracefulRestartConfig {
        restart_time: Duration::from_secs(60),
        long_lived_time: None,
        restarting: false,
    };
    let speaker = SpeakerConfig {
        graceful_restart: Some(restart),
        ..SpeakerConfig::new(Asn(4_200_000_001), RouterId::new([10, 9, 0, 1].into()).unwrap())
    };
    let (handle, events) = net::spawn(config, speaker).unwrap();
    Node { n: 1, handle, events, listens }
}

/// Waits until so many prefixes have come; gives them with their next hops.
async fn learned(node: &mut Node, count: usize) -> Vec<String> {
    let mut routes = Vec::new();
    while routes.len() < count {
        let changes = node.routes().await;
        routes.extend(changes.iter().map(|c| format!("{} via {}", c.prefix, c.next_hops[0].gateway)));
    }
    routes.sort();
    routes
}

/// What BIRD originates, as we should see it.
const ROUTES: [&str; 3] =
    ["10.50.0.0/16 via 10.9.0.2", "10.51.0.0/24 via 10.9.0.2", "fd50::/32 via fd00:9::2"];

const CHANNELS: &str = "ipv4 { import all; export where source = RTS_STATIC; };
    ipv6 { import all; export where source = RTS_STATIC; };";

#[test]
fn bird_over_ipv4_with_md5_and_ttl_security_keeps_our_routes_over_a_restart() {
    on_own_thread(async {
        let protocol = format!(
            "protocol bgp m {{ local 10.9.0.2 as 65002; neighbor 10.9.0.1 as 4200000001; password \"s3cret\";
              ttl security on; graceful restart on; connect delay time 1; connect retry time 1;
              error wait time 1, 2; {CHANNELS} }}"
        );
        let Some(bird) = Bird::start(&protocol) else { return };
        let mut node = start();
        let peer = PeerConfig {
            password: Some(Secret(b"s3cret".to_vec())),
            ttl_security: true,
            ..PeerConfig::new("bird", "10.9.0.2".parse().unwrap(), RemoteAs::Asn(Asn(65002)))
        };
        node.originate([prefix("10.200.1.0/24"), prefix("fd20:1::/64")]).await;
        node.set_peer(peer.clone()).await;
        assert_eq!(learned(&mut node, 3).await, ROUTES);
        bird.shows("protocols all m", &["BGP state:          Established", "10.9.0.1"]).await;
        bird.shows("route all 10.200.1.0/24", &["via 10.9.0.1 on v1", "BGP.as_path: 4200000001"]).await;
        bird.shows("route all fd20:1::/64", &["via fd00:9::1 on v1"]).await;

        node.handle.shutdown(Shutdown::Silent).await;
        bird.shows("protocols all m", &["Neighbor graceful restart active"]).await;
        assert!(bird.show("route").contains("10.200.1.0/24"), "kept without us");
        let mut node = start();
        node.originate([prefix("10.200.1.0/24"), prefix("fd20:1::/64")]).await;
        node.set_peer(peer).await;
        assert_eq!(learned(&mut node, 3).await, ROUTES);
        bird.shows("protocols all m", &["BGP state:          Established"]).await;
        assert!(bird.show("route").contains("10.200.1.0/24"));

        node.handle.shutdown(Shutdown::Cease("the node is drained".into())).await;
        bird.shows("protocols all m", &["Received: Administrative shutdown"]).await;
        assert!(!bird.show("route").contains("10.200.1.0/24"), "a Cease ends it");
    });
}

#[test]
fn bird_over_ipv6_that_dials_us() {
    on_own_thread(async {
        let protocol = format!(
            "protocol bgp m {{ local fd00:9::2 as 65002; neighbor fd00:9::1 as 4200000001;
              connect delay time 1; connect retry time 1; error wait time 1, 2; {CHANNELS} }}"
        );
        let Some(bird) = Bird::start(&protocol) else { return };
        let mut node = start();
        node.originate([prefix("10.200.1.0/24"), prefix("fd20:1::/64")]).await;
        let peer = PeerConfig::new("bird", "fd00:9::2".parse().unwrap(), RemoteAs::External);
        node.set_peer(PeerConfig { passive: true, ..peer }).await;
        assert_eq!(learned(&mut node, 3).await, ROUTES);
        bird.shows("route all fd20:1::/64", &["via fd00:9::1 on v1", "fe80::"]).await;
        bird.shows("route all 10.200.1.0/24", &["via 10.9.0.1 on v1"]).await;
    });
}
