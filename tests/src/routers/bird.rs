//! BIRD 2 as a ToR and as a spine: IPv4 and IPv6 in a session each, as BIRD's users have it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;

use super::{Router, Session};
use crate::command;
use crate::netns::Netns;
use crate::process::Process;
use crate::topology::{CLUSTER_V4, CLUSTER_V6, Machine, Port, Role, Topology};

/// A BIRD in a namespace.
#[derive(Clone, Debug)]
pub struct Bird {
    netns: Netns,
    dir: PathBuf,
}

impl Bird {
    /// The BIRD whose files are in `dir`.
    pub fn new(netns: Netns, dir: PathBuf) -> Self {
        Self { netns, dir }
    }

    /// Writes its configuration and starts it.
    ///
    /// # Errors
    /// When BIRD does not like it; BIRD's own words are in the error.
    pub fn start(&self, config: &str) -> Result<Process> {
        std::fs::create_dir_all(&self.dir)?;
        let conf = self.dir.join("bird.conf");
        std::fs::write(&conf, config).with_context(|| format!("cannot write {}", conf.display()))?;
        self.launch(&[])
    }

    /// Starts it again with the configuration that it had, in recovery mode: by graceful restart, after a crash.
    ///
    /// # Errors
    /// As [`Bird::start`].
    pub fn recover(&self) -> Result<Process> {
        // A crashed BIRD leaves its pid file, which names nobody that runs.
        let _ = std::fs::remove_file(self.pid_file());
        self.launch(&["-R"])
    }

    fn launch(&self, args: &[&str]) -> Result<Process> {
        let mut bird = self.netns.command("bird");
        bird.arg("-c")
            .arg(self.dir.join("bird.conf"))
            .arg("-s")
            .arg(self.socket())
            .arg("-P")
            .arg(self.pid_file());
        command::output(bird.args(args))?;
        Process::from_pid_file(&self.pid_file())
    }

    /// Gives a running one another configuration, as for a change of it.
    ///
    /// # Errors
    /// When BIRD does not like it.
    pub fn reconfigure(&self, config: &str) -> Result<()> {
        let conf = self.dir.join("bird.conf");
        std::fs::write(&conf, config).with_context(|| format!("cannot write {}", conf.display()))?;
        let answer = self.order("configure")?;
        if answer.contains("Reconfigur") { Ok(()) } else { bail!("BIRD says {answer}") }
    }

    /// Asks `birdc`.
    ///
    /// # Errors
    /// When BIRD does not answer.
    pub fn ask(&self, question: &str) -> Result<String> {
        let mut birdc = command::words("birdc -r -s");
        let answer = command::output(birdc.arg(self.socket()).arg(question))?;
        // Two lines of greeting come first: the version, and that access is restricted.
        Ok(answer.lines().skip(2).map(|line| format!("{line}\n")).collect())
    }

    /// Orders something by `birdc`: reload, disable, enable.
    ///
    /// # Errors
    /// When BIRD does not answer.
    pub fn order(&self, order: &str) -> Result<String> {
        command::output(command::words("birdc -s").arg(self.socket()).arg(order))
    }

    /// A counter of `show protocols all`, such as `Import withdraws`, as received: the sum over the families of one protocol, or
    /// of all where `protocol` is empty.
    ///
    /// # Errors
    /// When BIRD does not answer, or has no such counter.
    pub fn count(&self, protocol: &str, name: &str) -> Result<u64> {
        count(&self.ask(&format!("show protocols all {protocol}"))?, name)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("bird.ctl")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("bird.pid")
    }
}

impl Router for Bird {
    fn version(&self) -> Result<String> {
        let status = self.ask("show status")?;
        Ok(status.lines().next().unwrap_or_default().to_owned())
    }

    fn sessions(&self) -> Result<Vec<Session>> {
        Ok(sessions(&self.ask("show protocols all")?))
    }

    fn routes(&self) -> Result<BTreeMap<IpNetwork, Vec<String>>> {
        let mut found = routes(&self.ask("show route primary table master4 where source = RTS_BGP")?)?;
        found.extend(routes(&self.ask("show route primary table master6 where source = RTS_BGP")?)?);
        Ok(found)
    }

    fn table(&self) -> Result<String> {
        self.ask("show route primary where source = RTS_BGP")
    }

    fn summary(&self) -> Result<String> {
        let all = self.ask("show protocols")?;
        Ok(all
            .lines()
            .filter(|l| l.starts_with("Name") || l.split_whitespace().nth(1) == Some("BGP"))
            .map(|l| format!("{l}\n"))
            .collect())
    }
}

/// Adds up a counter of `show protocols all`: the first number behind its name.
fn count(protocols: &str, name: &str) -> Result<u64> {
    let rest = |line: &str| Some(line.trim().strip_prefix(name)?.strip_prefix(':')?.trim().to_owned());
    let counts: Vec<String> = protocols.lines().filter_map(rest).collect();
    if counts.is_empty() {
        bail!("BIRD has no counter {name:?}: {protocols}");
    }
    let first =
        |counts: &String| counts.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    let sum: Option<u64> = counts.iter().map(first).sum();
    sum.with_context(|| format!("{name} of BIRD are no numbers: {counts:?}"))
}

/// Reads `show protocols all`.
fn sessions(text: &str) -> Vec<Session> {
    let mut found = Vec::new();
    let mut current: Option<Session> = None;
    for line in text.lines() {
        if !line.starts_with(' ') {
            found.extend(current.take());
            if line.split_whitespace().nth(1) == Some("BGP") {
                current = Some(Session { peer: String::new(), state: "Down".into(), received: 0, sent: 0 });
            }
            continue;
        }
        let Some(session) = current.as_mut() else { continue };
        let line = line.trim();
        if let Some(state) = line.strip_prefix("BGP state:") {
            session.state = state.trim().to_owned();
        } else if let Some(peer) = line.strip_prefix("Neighbor address:") {
            session.peer = peer.split('%').next().unwrap_or_default().trim().to_owned();
        } else if let Some(counts) = line.strip_prefix("Routes:") {
            let count = |what: &str| {
                let before = counts.split(what).next().filter(|_| counts.contains(what));
                before.and_then(|t| t.split_whitespace().last()?.parse::<u64>().ok()).unwrap_or(0)
            };
            session.received += count("imported");
            session.sent += count("exported");
        }
    }
    found.extend(current);
    found
}

/// Reads `show route`: a prefix in the first column, its next hops on lines of their own below.
fn routes(text: &str) -> Result<BTreeMap<IpNetwork, Vec<String>>> {
    let mut found: BTreeMap<IpNetwork, Vec<String>> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if line.starts_with(|c: char| c.is_ascii_hexdigit()) {
            let word = line.split_whitespace().next().unwrap_or_default();
            let prefix: IpNetwork =
                word.parse().with_context(|| format!("birdc printed no prefix in {line:?}"))?;
            found.entry(prefix).or_default();
            current = Some(prefix);
        } else if let Some(via) = line.trim().strip_prefix("via ") {
            let Some(prefix) = current else { bail!("birdc printed a next hop before a prefix: {line:?}") };
            let gateway = via.split_whitespace().next().unwrap_or_default().to_owned();
            found.entry(prefix).or_default().push(gateway);
        }
    }
    Ok(found)
}

/// The configuration of one of the topology's BIRDs.
pub fn config(topology: &Topology, machine: &Machine, log: &Path) -> String {
    let id = machine.router_id.expect("a router of the plan has a router id");
    let asn = machine.asn.expect("a router of the plan has an AS number");
    let mut text = format!(
        r#"# {name}: AS {asn}
log "{log}" all;
router id {id};

protocol device {{ }}

# BGP's routes and the rack's aggregates go to the kernel, equal ones together.
protocol kernel kernel4 {{ merge paths yes limit 16; ipv4 {{ import none; export where source ~ [ RTS_BGP, RTS_STATIC ]; }}; }}
protocol kernel kernel6 {{ merge paths yes limit 16; ipv6 {{ import none; export where source ~ [ RTS_BGP, RTS_STATIC ]; }}; }}

# A node may announce pod blocks, and nothing else.
filter from_node4 {{ if net ~ [ {CLUSTER_V4}{{24,32}} ] then accept; reject; }}
filter from_node6 {{ if net ~ [ {CLUSTER_V6}{{64,128}} ] then accept; reject; }}

filter to_peers {{ if source ~ [ RTS_BGP, RTS_STATIC, RTS_DEVICE ] then accept; reject; }}

template bgp node4 {{ local as {asn}; connect retry time 5; ipv4 {{ import filter from_node4; export filter to_peers; }}; }}
template bgp node6 {{ local as {asn}; connect retry time 5; ipv6 {{ import filter from_node6; export filter to_peers; }}; }}
template bgp fabric4 {{ local as {asn}; connect retry time 5; ipv4 {{ import all; export filter to_peers; }}; }}
template bgp fabric6 {{ local as {asn}; connect retry time 5; ipv6 {{ import all; export filter to_peers; }}; }}
"#,
        name = machine.name,
        log = log.display(),
    );
    for (family, want_v4) in [("4", true), ("6", false)] {
        let rack: Vec<String> = machine
            .prefixes
            .iter()
            .filter(|p| p.is_ipv4() == want_v4)
            .map(|p| format!(" route {p} blackhole;"))
            .collect();
        if !rack.is_empty() {
            let _ = writeln!(text, "\nprotocol static rack{family} {{ ipv{family};{} }}", rack.concat());
        }
    }
    let hosts: Vec<String> = topology
        .ports(machine.name)
        .filter(|(_, far)| topology.machine(far.machine).role == Role::Host)
        .map(|(near, _)| format!("\"{}\"", near.interface))
        .collect();
    if !hosts.is_empty() {
        let _ = writeln!(text, "\nprotocol direct {{ ipv4; ipv6; interface {}; }}", hosts.join(", "));
    }
    for (near, far) in topology.ports(machine.name) {
        let Some(peer_asn) = topology.machine(far.machine).asn else { continue };
        text.push('\n');
        text.push_str(&neighbor(near, far, peer_asn, topology.is_node(far.machine)));
    }
    text
}

fn neighbor(near: &Port, far: &Port, asn: u32, is_node: bool) -> String {
    let template = if is_node { "node" } else { "fabric" };
    let name = far.machine.replace('-', "_");
    format!(
        "protocol bgp {name}_v4 from {template}4 {{ local {}; neighbor {} as {asn}; }}\n\
         protocol bgp {name}_v6 from {template}6 {{ local {}; neighbor {} as {asn}; }}\n",
        near.v4.ip(),
        far.v4.ip(),
        near.v6.ip(),
        far.v6.ip(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_from_show_protocols_all() {
        let text = "\
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     08:00:00.000  
node_1_v4  BGP        ---        up     08:00:01.000  Established   
  BGP state:          Established
    Neighbor address: 10.1.0.3
    Neighbor AS:      65101
  Channel ipv4
    State:          UP
    Routes:         1 imported, 4 exported, 1 preferred
node_2_v4  BGP        ---        start  08:00:01.000  Connect       
  BGP state:          Connect
    Neighbor address: 10.1.0.5
";
        let found = sessions(text);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0],
            Session { peer: "10.1.0.3".into(), state: "Established".into(), received: 1, sent: 4 }
        );
        assert!(!found[1].is_established());
    }

    #[test]
    fn routes_have_their_next_hops_on_the_lines_below() {
        let text = "\
Table master4:
10.200.1.0/26        unicast [node_1_v4 08:00:01.000] * (100) [AS65101i]
\tvia 10.1.0.3 on node-1
10.200.2.0/26        unicast [tor_a_v4 08:00:01.000] * (100) [AS65102i]
\tvia 10.0.0.3 on tor-a
\tvia 10.0.0.5 on tor-b
";
        let found = routes(text).unwrap();
        assert_eq!(found[&"10.200.1.0/26".parse().unwrap()], ["10.1.0.3"]);
        assert_eq!(found[&"10.200.2.0/26".parse().unwrap()], ["10.0.0.3", "10.0.0.5"]);
    }
}
