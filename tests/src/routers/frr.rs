//! FRR as a ToR: one session for each node that carries both families, as FRR's users have it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use serde_json::Value;

use super::{Router, Session};
use crate::command;
use crate::netns::Netns;
use crate::process::Process;
use crate::topology::{CLUSTER_V4, CLUSTER_V6, Machine, Topology};

/// An FRR in a namespace.
#[derive(Clone, Debug)]
pub struct Frr {
    netns: Netns,
    dir: PathBuf,
}

impl Frr {
    /// The FRR of this namespace, with its configuration in `dir`.
    pub fn new(netns: Netns, dir: PathBuf) -> Self {
        Self { netns, dir }
    }

    /// Writes its configuration and starts its daemons, bgpd last; bfdd where there is a block `bfd`.
    ///
    /// # Errors
    /// When a daemon does not start.
    pub fn start(&self, config: &str) -> Result<Vec<Process>> {
        std::fs::create_dir_all(&self.dir)?;
        let conf = self.dir.join("frr.conf");
        std::fs::write(&conf, config).with_context(|| format!("cannot write {}", conf.display()))?;
        command::output(command::words("install -d -o frr -g frr").arg(self.socket_dir()))?;
        // BFD has a daemon of its own. bgpd comes last: it registers with all the others.
        let bfd = config.lines().any(|line| line.trim() == "bfd");
        let daemons = ["zebra", "staticd"].into_iter().chain(bfd.then_some("bfdd")).chain(["bgpd"]);
        daemons.map(|daemon| self.start_daemon(daemon)).collect()
    }

    /// Starts one of its daemons, with the configuration as it is on disk: again, after it was ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_daemon(&self, daemon: &str) -> Result<Process> {
        let mut start = self.netns.command(format!("/usr/lib/frr/{daemon}"));
        start.args(["-d", "-P", "0", "-N", self.netns.name(), "-f"]).arg(self.dir.join("frr.conf"));
        command::output(&mut start)?;
        Process::from_pid_file(&self.socket_dir().join(format!("{daemon}.pid")))
    }

    /// Asks `vtysh`.
    ///
    /// # Errors
    /// When FRR does not answer.
    pub fn ask(&self, question: &str) -> Result<String> {
        let mut vtysh = command::words("vtysh --vty_socket");
        command::output(vtysh.arg(self.socket_dir()).args(["-c", question]))
    }

    /// Gives `vtysh` these commands one after the other, as for a change of the configuration.
    ///
    /// # Errors
    /// When FRR does not answer, or refuses one.
    pub fn order(&self, commands: &[&str]) -> Result<String> {
        let mut vtysh = command::words("vtysh --vty_socket");
        vtysh.arg(self.socket_dir());
        command::output(vtysh.args(commands.iter().flat_map(|c| ["-c", *c])))
    }

    /// Asks `vtysh` for JSON.
    ///
    /// # Errors
    /// When FRR does not answer, or not in JSON.
    pub fn ask_json(&self, question: &str) -> Result<Value> {
        let answer = self.ask(&format!("{question} json"))?;
        serde_json::from_str(&answer).with_context(|| format!("vtysh {question}: no JSON in {answer:?}"))
    }

    /// Where `-N` puts sockets and pid files; removed with the lab.
    pub fn socket_dir(&self) -> PathBuf {
        PathBuf::from("/run/frr").join(self.netns.name())
    }
}

impl Router for Frr {
    fn version(&self) -> Result<String> {
        let text = self.ask("show version")?;
        let first = text.lines().next().unwrap_or_default();
        Ok(first.split(" (").next().unwrap_or_default().replace("FRRouting", "FRR"))
    }

    fn sessions(&self) -> Result<Vec<Session>> {
        Ok(sessions(&self.ask_json("show bgp summary")?))
    }

    fn routes(&self) -> Result<BTreeMap<IpNetwork, Vec<String>>> {
        let mut found = BTreeMap::new();
        for family in ["ipv4", "ipv6"] {
            found.extend(routes(&self.ask_json(&format!("show bgp {family} unicast"))?)?);
        }
        Ok(found)
    }

    fn table(&self) -> Result<String> {
        Ok(self.ask("show ip route bgp")? + &self.ask("show ipv6 route bgp")?)
    }

    fn summary(&self) -> Result<String> {
        self.ask("show bgp summary")
    }
}

/// Reads `show bgp summary json`: an object for each family, with the same peer in both.
fn sessions(summary: &Value) -> Vec<Session> {
    let mut found: BTreeMap<String, Session> = BTreeMap::new();
    for family in summary.as_object().into_iter().flat_map(|o| o.values()) {
        for (peer, facts) in family["peers"].as_object().into_iter().flatten() {
            let session = found.entry(peer.clone()).or_insert_with(|| Session {
                peer: peer.clone(),
                state: facts["state"].as_str().unwrap_or("unknown").to_owned(),
                received: 0,
                sent: 0,
            });
            session.received += facts["pfxRcd"].as_u64().unwrap_or(0);
            session.sent += facts["pfxSnt"].as_u64().unwrap_or(0);
        }
    }
    found.into_values().collect()
}

/// Reads `show bgp … json`, keeping for each prefix the next hops that are best or multipath.
fn routes(table: &Value) -> Result<BTreeMap<IpNetwork, Vec<String>>> {
    let mut found = BTreeMap::new();
    for (prefix, paths) in table["routes"].as_object().into_iter().flatten() {
        let used = paths.as_array().into_iter().flatten().filter(|p| {
            p["valid"] == true && (p["bestpath"] == true || p["multipath"] == true) && p["weight"] != 32768
        });
        let hops: Vec<String> = used
            .filter_map(|path| path["nexthops"].as_array()?.first()?["ip"].as_str().map(str::to_owned))
            .collect();
        if !hops.is_empty() {
            found.insert(prefix.parse().with_context(|| format!("FRR printed no prefix: {prefix}"))?, hops);
        }
    }
    Ok(found)
}

/// The configuration of one of the topology's FRRs.
pub fn config(topology: &Topology, machine: &Machine) -> String {
    let id = machine.router_id.expect("a router of the plan has a router id");
    let asn = machine.asn.expect("a router of the plan has an AS number");
    let mut statics = String::new();
    let (mut networks4, mut networks6) = (String::new(), String::new());
    for prefix in &machine.prefixes {
        let (ip, networks) = if prefix.is_ipv4() { ("ip", &mut networks4) } else { ("ipv6", &mut networks6) };
        let _ = writeln!(statics, "{ip} route {prefix} blackhole");
        let _ = writeln!(networks, "  network {prefix}");
    }
    let mut neighbors = String::new();
    let mut fabric6 = String::new();
    for (_, far) in topology.ports(machine.name) {
        let Some(peer_asn) = topology.machine(far.machine).asn else { continue };
        let (v4, v6) = (far.v4.ip(), far.v6.ip());
        if topology.is_node(far.machine) {
            let _ = writeln!(neighbors, " ! {}: both families in one session", far.machine);
            let _ = writeln!(
                neighbors,
                " neighbor {v4} remote-as {peer_asn}\n neighbor {v4} peer-group NODES\n neighbor {v4} description {}",
                far.machine
            );
        } else {
            let _ = writeln!(
                neighbors,
                " neighbor {v4} remote-as {peer_asn}\n neighbor {v4} peer-group FABRIC4\n neighbor {v4} description {}",
                far.machine
            );
            let _ = writeln!(
                neighbors,
                " neighbor {v6} remote-as {peer_asn}\n neighbor {v6} peer-group FABRIC6\n neighbor {v6} description {}",
                far.machine
            );
            let _ = writeln!(fabric6, "  neighbor {v6} activate");
        }
    }
    format!(
        "\
hostname {name}
log file {name}.log
!
{statics}!
! A node may announce pod blocks, and nothing else.
ip prefix-list PODS4 permit {CLUSTER_V4} ge 24
ipv6 prefix-list PODS6 permit {CLUSTER_V6} ge 64
!
route-map FROM-NODE permit 10
 match ip address prefix-list PODS4
route-map FROM-NODE permit 20
 match ipv6 address prefix-list PODS6
!
route-map ALL permit 10
!
router bgp {asn}
 bgp router-id {id}
 bgp bestpath as-path multipath-relax
 no bgp default ipv4-unicast
 !
 neighbor NODES peer-group
 neighbor NODES timers connect 5
 neighbor FABRIC4 peer-group
 neighbor FABRIC4 timers connect 5
 neighbor FABRIC6 peer-group
 neighbor FABRIC6 timers connect 5
{neighbors} !
 address-family ipv4 unicast
{networks4}  maximum-paths 16
  neighbor NODES activate
  neighbor NODES route-map FROM-NODE in
  neighbor NODES route-map ALL out
  neighbor FABRIC4 activate
  neighbor FABRIC4 route-map ALL in
  neighbor FABRIC4 route-map ALL out
 exit-address-family
 !
 address-family ipv6 unicast
{networks6}  maximum-paths 16
  neighbor NODES activate
  neighbor NODES route-map FROM-NODE in
  neighbor NODES route-map ALL out
  neighbor FABRIC6 activate
{fabric6}  neighbor FABRIC6 route-map ALL in
  neighbor FABRIC6 route-map ALL out
 exit-address-family
!
",
        name = machine.name,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_session_with_two_families_is_one_session() {
        let summary = json!({
            "ipv4Unicast": {"peers": {"10.2.0.3": {"state": "Established", "pfxRcd": 1, "pfxSnt": 5}}},
            "ipv6Unicast": {"peers": {"10.2.0.3": {"state": "Established", "pfxRcd": 1, "pfxSnt": 4}}},
        });
        assert_eq!(
            sessions(&summary),
            [Session { peer: "10.2.0.3".into(), state: "Established".into(), received: 2, sent: 9 }]
        );
    }

    #[test]
    fn only_used_paths_count_as_routes() {
        let table = json!({"routes": {
            "10.200.2.0/26": [
                {"valid": true, "bestpath": true, "nexthops": [{"ip": "10.2.0.3"}]},
                {"valid": true, "nexthops": [{"ip": "10.0.0.4"}]},
            ],
            "10.200.9.0/26": [{"valid": false, "nexthops": [{"ip": "10.2.0.9"}]}],
        }});
        let found = routes(&table).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[&"10.200.2.0/26".parse().unwrap()], ["10.2.0.3"]);
    }
}
