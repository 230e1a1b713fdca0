//! Sessions are up; every ToR and every node's kernel hold what they should.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::lab::Lab;
use crate::observe;
use crate::report::Report;
use crate::routers::Session;
use crate::topology::Role;
use crate::wait;

/// From a cold start: connect retries of both sides fit in.
pub const CONVERGED: Duration = Duration::from_secs(30);

/// See the module.
///
/// # Errors
/// When a tool fails.
pub fn check(lab: &Lab, report: &mut Report) -> Result<()> {
    let sessions = wait::until(CONVERGED, || established(lab));
    for node in lab.topology.nodes() {
        let name = node.name;
        let expected = expected_sessions(lab, name);
        let states = node_sessions(lab, name)?;
        let up = states.iter().filter(|(_, state)| state == "Established").count();
        let text: Vec<String> = states.iter().map(|(peer, state)| format!("{peer} {state}")).collect();
        report.check(
            &format!("{name}: its {expected} sessions are Established (manxctl)"),
            up == expected && states.len() == expected,
            text.join(", "),
        );
    }
    for (machine, router) in &lab.routers {
        let expected = expected_sessions(lab, machine);
        let sessions = router.sessions()?;
        let up = sessions.iter().filter(|s| s.is_established()).count();
        report.check(
            &format!("{machine} ({}): its {expected} sessions are Established", router.version()?),
            up == expected && sessions.len() == expected,
            describe(&sessions),
        );
    }
    if let Err(complaint) = sessions {
        println!("        after {CONVERGED:?}: {complaint}");
    }

    for tor in lab.topology.tors() {
        let held = wait::until(CONVERGED, || missing_on_router(lab, tor.name));
        report.check(
            &format!("{} holds every pod CIDR", tor.name),
            held.is_ok(),
            match held {
                Ok((count, _)) => format!("{count} pod CIDRs"),
                Err(complaint) => complaint,
            },
        );
    }
    for node in lab.topology.nodes() {
        let held = wait::until(CONVERGED, || misrouted_in_kernel(lab, node.name));
        report.check(
            &format!("{}: its kernel holds every remote pod CIDR", node.name),
            held.is_ok(),
            match held {
                Ok((text, _)) => text,
                Err(complaint) => complaint,
            },
        );
        let own = observe::routes(&lab.netns(node.name))?;
        let blackholes =
            node.prefixes.iter().filter(|p| own.get(p).is_some_and(|r| r.kind == "blackhole")).count();
        report.check(
            &format!("{}: its own pod CIDRs are backed by blackhole routes", node.name),
            blackholes == node.prefixes.len(),
            format_args!("{blackholes} of {}", node.prefixes.len()),
        );
    }

    let routes = observe::routes(&lab.netns("node-2"))?;
    for (near, _) in lab.topology.ports("outside") {
        for subnet in [
            format!("{}/{}", near.v4.network(), near.v4.prefix()),
            format!("{}/{}", near.v6.network(), near.v6.prefix()),
        ] {
            let route = subnet.parse().ok().and_then(|prefix| routes.get(&prefix));
            let mut devices = route.map(|r| r.devices.clone()).unwrap_or_default();
            devices.sort();
            report.check(
                &format!("node-2 reaches {subnet} over both ToRs (multipath)"),
                devices == ["tor-a", "tor-b"],
                format_args!("over {devices:?}"),
            );
        }
    }
    Ok(())
}

/// Whether every session is up, as everybody sees it; else who is not there yet.
///
/// # Errors
/// Who lacks a session.
pub fn established(lab: &Lab) -> Result<(), String> {
    for node in lab.agents.keys() {
        let states = node_sessions(lab, node).map_err(|e| format!("{e:#}"))?;
        let up = states.iter().filter(|(_, state)| state == "Established").count();
        if up != expected_sessions(lab, node) {
            return Err(format!("{node}: {states:?}"));
        }
    }
    for (machine, router) in &lab.routers {
        let sessions = router.sessions().map_err(|e| format!("{e:#}"))?;
        if sessions.iter().filter(|s| s.is_established()).count() != expected_sessions(lab, machine) {
            return Err(format!("{machine}: {}", describe(&sessions)));
        }
    }
    Ok(())
}

/// Whether every node's kernel and every ToR hold what they should.
///
/// # Errors
/// Who lacks what.
pub fn converged(lab: &Lab) -> Result<(), String> {
    established(lab)?;
    for tor in lab.topology.tors() {
        missing_on_router(lab, tor.name)?;
    }
    for node in lab.topology.nodes() {
        misrouted_in_kernel(lab, node.name)?;
    }
    Ok(())
}

/// With a BIRD at the other end there is a session for each family; FRR and a node share one.
fn expected_sessions(lab: &Lab, machine: &str) -> usize {
    lab.topology
        .ports(machine)
        .filter(|(_, far)| lab.topology.machine(far.machine).asn.is_some())
        .map(|(near, far)| {
            let roles = [near, far].map(|port| lab.topology.machine(port.machine).role);
            if roles.contains(&Role::Node) && roles.contains(&Role::Frr) { 1 } else { 2 }
        })
        .sum()
}

/// Name (or address) and state of each session, from `manxctl peers`.
fn node_sessions(lab: &Lab, node: &str) -> Result<Vec<(String, String)>> {
    let peers = lab.agents[node].manxctl_json(&["peers"])?;
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    Ok(peers["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|peer| (text(&peer["address"]), text(&peer["state"])))
        .collect())
}

fn describe(sessions: &[Session]) -> String {
    let one = |s: &Session| format!("{} {} ({} received, {} sent)", s.peer, s.state, s.received, s.sent);
    sessions.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn missing_on_router(lab: &Lab, router: &str) -> Result<usize, String> {
    let held = lab.routers[router].routes().map_err(|e| format!("{e:#}"))?;
    let wanted: Vec<_> = lab.topology.nodes().flat_map(|n| n.prefixes.clone()).collect();
    let missing: Vec<String> =
        wanted.iter().filter(|p| !held.contains_key(p)).map(ToString::to_string).collect();
    if missing.is_empty() { Ok(wanted.len()) } else { Err(format!("missing {}", missing.join(", "))) }
}

/// Every remote pod CIDR leaves by the interface that leads towards its node.
fn misrouted_in_kernel(lab: &Lab, node: &str) -> Result<String, String> {
    let routes = observe::routes(&lab.netns(node)).map_err(|e| format!("{e:#}"))?;
    let mut held = Vec::new();
    for far in lab.topology.nodes().filter(|far| far.name != node) {
        let towards = lab.topology.way(node, far.name)[1];
        for prefix in &far.prefixes {
            match routes.get(prefix) {
                None => return Err(format!("no route to {prefix}")),
                Some(route) if route.devices != [towards] => {
                    return Err(format!("{prefix} leaves by {:?}, not by {towards}", route.devices));
                }
                Some(route) if route.metric != 77 => {
                    return Err(format!("{prefix} has metric {}, not 77", route.metric));
                }
                Some(route) => held.push(format!("{prefix} via {}", route.via.join(" "))),
            }
        }
    }
    Ok(held.join(", "))
}
