//! The agent is killed with SIGKILL under running traffic, and its successor as well while the peers still help: no packet is
//! lost, the next agent finds its tables right and leaves them alone, and the spine behind the ToRs hears of nothing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::policy::{DENY_INGRESS, FROM_TEAM, set};
use super::routing;
use crate::lab::Lab;
use crate::netns::Netns;
use crate::observe::Snapshot;
use crate::probe::PORTS;
use crate::probe::stream::{TcpFlow, UdpStream};
use crate::process::Process;
use crate::report::{Ms, Report};
use crate::routers::bird::Bird;
use crate::wait;

const NODE: &str = "node-2";
const PACE: Duration = Duration::from_millis(4);
/// How long the node is without its agent, and how long the next one is watched once it is ready.
const APART: Duration = Duration::from_secs(3);
/// BIRD's counter of withdrawals that it has received.
const WITHDRAWALS: &str = "Import withdraws";

/// See the module.
///
/// # Errors
/// When a stream cannot be started or the agent does not come back.
pub fn check(lab: &mut Lab, report: &mut Report) -> Result<()> {
    set(lab, &[("back", "deny", DENY_INGRESS), ("back", "allow", FROM_TEAM)])?;
    std::thread::sleep(Duration::from_secs(1));
    wait::until(routing::CONVERGED, || routing::converged(lab)).map_err(anyhow::Error::msg)?;

    let streams = start_streams(lab)?;
    let flows: Vec<TcpFlow> = [("front/client-1", "back/web-2"), ("front/client-3", "back/web-2")]
        .map(|(from, to)| TcpFlow::start(&lab.pods[from].netns, lab.pods[to].address(false), PORTS[0], PACE))
        .into_iter()
        .collect::<Result<_>>()?;

    let node = lab.netns(NODE);
    let before = Snapshot::take(&node)?;
    let spine = Bird::new(lab.netns("spine"), lab.dir().join("spine"));
    let withdrawn = spine.count("", WITHDRAWALS)?;
    let monitors: Vec<RouteMonitor> = [NODE, "tor-a", "tor-b", "spine"]
        .into_iter()
        .map(|machine| RouteMonitor::start(machine, &lab.netns(machine), &lab.dir()))
        .collect::<Result<_>>()?;

    lab.processes[NODE].end(Signal::SIGKILL)?;
    std::thread::sleep(APART);
    let apart = Snapshot::take(&node)?;
    let differences = before.differences(&apart);
    report.check(
        "without an agent routes, rules and sets stay as they are",
        differences.is_empty() && !before.routes.is_empty() && !before.rules.is_empty(),
        describe(&before, &differences),
    );

    // The first successor dies within the peers' restart time: what it has not swept must outlive it, too.
    for (agent, outlived) in [("the next agent", false), ("the one after it", true)] {
        lab.start_agent(NODE)?;
        let back = wait::until(routing::CONVERGED, || {
            lab.agents[NODE].ready().and_then(|()| established_again(lab))
        });
        report.check(
            &format!("{agent} is ready and its sessions are Established"),
            back.is_ok(),
            match &back {
                Ok(((), took)) => format!("after {}", Ms(*took)),
                Err(error) => format!("{error:#}"),
            },
        );
        if !outlived {
            lab.processes[NODE].end(Signal::SIGKILL)?;
        }
    }
    // Whatever it would sweep or rewrite, it does soon after it has heard from all its peers.
    std::thread::sleep(APART);

    let after = Snapshot::take(&node)?;
    let (names, streams): (Vec<String>, Vec<UdpStream>) = streams.into_iter().unzip();
    let summaries = UdpStream::stop_all(streams)?;
    for (name, summary) in names.iter().zip(&summaries) {
        report.check(
            &format!("not one packet is lost: {name}"),
            summary.lost == 0 && summary.sent > 0,
            summary,
        );
    }
    for (flow, name) in flows.into_iter().zip(["client-1 (over BIRD)", "client-3 (over FRR)"]) {
        let what = format!("a TCP connection from {name} to web-2 goes on");
        match flow.stop() {
            Ok((lines, slowest)) => {
                let fluent = slowest < Duration::from_millis(200); // the least that a retransmission takes
                report.check(
                    &what,
                    fluent && lines > 0,
                    format_args!("{lines} lines, the slowest {}", Ms(slowest)),
                );
            }
            Err(error) => report.error(&what, &error),
        }
    }

    let differences = before.differences(&after);
    report.check(
        "after the restart routes, rules and sets are the same",
        differences.is_empty(),
        describe(&after, &differences),
    );
    let rewritten = before.rewritten(&after);
    report.check(
        "no rule was written again that was right",
        rewritten.is_empty(),
        match rewritten.first() {
            None => format!("{} rules kept their counters and handles", before.rules.len()),
            Some(rule) => format!("{} rules, first {rule}", rewritten.len()),
        },
    );
    let heard = spine.count("", WITHDRAWALS)? - withdrawn;
    report.check(
        "the spine, a third router, has received no withdrawal",
        heard == 0,
        format_args!("{heard} by BIRD's counters, {withdrawn} before"),
    );
    for monitor in monitors {
        let machine = monitor.machine;
        let lines = monitor.stop()?;
        report.check(
            &format!("no route was touched on {machine} meanwhile (ip monitor route)"),
            lines.is_empty(),
            match lines.first() {
                None => "nothing".to_owned(),
                Some(first) => format!("{} events, first {first:?}", lines.len()),
            },
        );
    }
    set(lab, &[])
}

fn established_again(lab: &Lab) -> Result<()> {
    routing::established(lab).map_err(anyhow::Error::msg)
}

fn start_streams(lab: &Lab) -> Result<Vec<(String, UdpStream)>> {
    let pod = |name: &str| &lab.pods[name];
    let mut streams = Vec::new();
    for v6 in [false, true] {
        for (from, to) in [
            ("front/client-1", "back/web-2"),
            ("front/client-3", "back/web-2"),
            ("front/client-2", "back/web-2"),
            ("front/client-2", "back/web-1"),
            ("front/client-2", "back/web-3"),
        ] {
            let stream = UdpStream::start(&pod(from).netns, pod(to).address(v6), PORTS[0], PACE)?;
            streams.push((format!("{from} to {to}, {}", if v6 { "IPv6" } else { "IPv4" }), stream));
        }
        // This one takes either ToR.
        let outside = lab.outside();
        let stream = UdpStream::start(&outside.netns, pod("front/client-2").address(v6), PORTS[0], PACE)?;
        streams.push((format!("outside to front/client-2, {}", if v6 { "IPv6" } else { "IPv4" }), stream));
    }
    Ok(streams)
}

fn describe(snapshot: &Snapshot, differences: &[String]) -> String {
    match differences.first() {
        None => format!(
            "{} routes, {} rules and chains, {} sets and members",
            snapshot.routes.len(),
            snapshot.rules.len(),
            snapshot.sets.len()
        ),
        Some(first) => format!("{} differences, first {first}", differences.len()),
    }
}

/// `ip monitor route` of a namespace, into a file.
struct RouteMonitor {
    machine: &'static str,
    child: Child,
    file: PathBuf,
}

impl RouteMonitor {
    fn start(machine: &'static str, netns: &Netns, dir: &Path) -> Result<Self> {
        let file = dir.join(format!("{machine}-routes.log"));
        let out = File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
        let mut monitor = std::process::Command::new("ip");
        monitor.args(["-n", netns.name(), "monitor", "route"]);
        let child = monitor.stdin(Stdio::null()).stdout(out).spawn().context("cannot run ip monitor")?;
        let monitor = Self { machine, child, file };
        monitor.prove(netns)?;
        Ok(monitor)
    }

    /// Waits until the monitor has seen a route that comes and goes: what is not seen from now on has not happened.
    fn prove(&self, netns: &Netns) -> Result<()> {
        wait::until(Duration::from_secs(5), || {
            netns.ip("route add blackhole 192.0.2.1/32 metric 9")?;
            netns.ip("route del blackhole 192.0.2.1/32 metric 9")?;
            let seen = std::fs::read_to_string(&self.file)?;
            if seen.contains(PROOF) { Ok(()) } else { Err(anyhow::anyhow!("ip monitor sees nothing")) }
        })
        .map(drop)
    }

    /// What it has seen but for the proof.
    fn stop(mut self) -> Result<Vec<String>> {
        let pid = i32::try_from(self.child.id()).context("a pid fits")?;
        Process::from_pid(pid)?.end(Signal::SIGTERM)?;
        let _ = self.child.wait();
        let text = std::fs::read_to_string(&self.file)?;
        Ok(text.lines().filter(|l| !l.contains(PROOF)).map(|l| l.trim().to_owned()).collect())
    }
}

const PROOF: &str = "192.0.2.1";

impl Drop for RouteMonitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
