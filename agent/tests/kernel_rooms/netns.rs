//! A namespace per test. It belongs to the test's own thread and goes with it, however the test ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

/// Longer than any of these kernels takes for anything asked for here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test body in a new network namespace with two links, `v0` and `v1`, each with an address of both families
/// and a peer in the same namespace: 192.0.2.1/24 and 2001:db8:0:1::1/64 on `v0`, 198.51.100.1/24 and
/// 2001:db8:0:2::1/64 on `v1`.
pub(crate) fn with_two_links(body: impl FnOnce() + Send + 'static) {
    in_namespace(|| {
        for (link, peer, v4, v6) in [
            ("v0", "p0", "192.0.2.1/24", "2001:db8:0:1::1/64"),
            ("v1", "p1", "198.51.100.1/24", "2001:db8:0:2::1/64"),
        ] {
            ip(&format!("link add {link} type veth peer name {peer}"));
            ip(&format!("link set {peer} up"));
            ip(&format!("link set {link} up"));
            ip(&format!("addr add {v4} dev {link}"));
            ip(&format!("addr add {v6} dev {link} nodad"));
        }
        body();
    });
}

/// Runs a test body in a new network namespace where only `lo` is up.
pub(crate) fn in_namespace(body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs root");
        ip("link set lo up");
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a program in the namespace; what it wrote to stdout. Panics with its stderr when it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
    String::from_utf8(output.stdout).unwrap()
}

/// `ip` with arguments separated by spaces.
pub(crate) fn ip(arguments: &str) -> String {
    run("ip", &arguments.split_whitespace().collect::<Vec<_>>())
}

/// The same as JSON.
pub(crate) fn ip_json(arguments: &str) -> Vec<Value> {
    let text = ip(&format!("-j {arguments}"));
    serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
}

/// The index of a link.
pub(crate) fn ifindex(link: &str) -> u32 {
    let shown = ip_json(&format!("link show dev {link}"));
    u32::try_from(shown[0]["ifindex"].as_u64().unwrap()).unwrap()
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    within(PATIENCE, what, &mut condition);
}

/// Waits until `condition` holds, at most so long; returns how long it took.
pub(crate) fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// `ip monitor route`: what the kernel tells of routes, as a third party hears it.
pub(crate) struct RouteMonitor {
    child: Child,
    lines: Receiver<String>,
}

impl RouteMonitor {
    /// Returns once it hears.
    pub(crate) fn start() -> Self {
        let mut child = Command::new("ip").args(["monitor", "route"]).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let this = Self { child, lines };
        this.mark();
        this
    }

    /// Everything told since the last call, without the marks.
    pub(crate) fn heard(&self) -> Vec<String> {
        self.mark()
    }

    /// A route that nobody uses comes and goes until it is heard of: all that was told before has arrived then.
    fn mark(&self) -> Vec<String> {
        const MARK: &str = "203.0.113.255";
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        loop {
            assert!(Instant::now() < deadline, "ip monitor hears nothing");
            ip(&format!("route replace {MARK} dev lo"));
            ip(&format!("route del {MARK} dev lo"));
            let mut marked = 0;
            while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(200)) {
                if line.contains(MARK) {
                    marked += 1;
                } else {
                    heard.push(line);
                }
                if marked == 2 {
                    return heard;
                }
            }
        }
    }
}

impl Drop for RouteMonitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
