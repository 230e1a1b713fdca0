//! One link of the dual-homed node goes down: traffic goes on over the other, with at most two seconds lost.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;

use super::routing;
use crate::lab::Lab;
use crate::netns::Netns;
use crate::probe::PORTS;
use crate::probe::stream::{Summary, UdpStream};
use crate::report::{Ms, Report};
use crate::wait;

const LIMIT: Duration = Duration::from_secs(2);
const PACE: Duration = Duration::from_millis(5);
/// How long the link is down under traffic.
const DOWN: Duration = Duration::from_secs(4);

/// See the module.
///
/// # Errors
/// When a stream cannot be started.
pub fn check(lab: &Lab, report: &mut Report) -> Result<()> {
    super::policy::set(lab, &[])?;
    // Seen from the node a shut switch port is a carrier that goes; seen from the switch so is the node's own link set down.
    for (title, machine, port, neighbour) in [
        ("tor-a shuts its port to node-2", "tor-a", "node-2", "front/client-1"),
        ("node-2 sets its link to tor-b down", "node-2", "tor-b", "front/client-3"),
    ] {
        wait::until(routing::CONVERGED, || routing::converged(lab)).map_err(anyhow::Error::msg)?;
        let (streams, _) = wait::until(Duration::from_secs(5), || start_streams(lab, neighbour))?;
        let netns = lab.netns(machine);
        netns.ip(&format!("link set {port} down"))?;
        std::thread::sleep(DOWN);
        judge(title, streams, report)?;

        let streams = start_streams(lab, neighbour)?;
        netns.ip(&format!("link set {port} up"))?;
        lab.restore_default_routes("node-2")?;
        let again = wait::until(routing::CONVERGED, || routing::converged(lab));
        report.check(
            &format!("{title}, and opens it again: sessions and routes are back"),
            again.is_ok(),
            match again {
                Ok(((), took)) => format!("after {}", Ms(took)),
                Err(complaint) => complaint,
            },
        );
        judge(&format!("{title}, and opens it again"), streams, report)?;
    }
    Ok(())
}

/// Streams into and out of node-2's pods: with a pod in the rack that loses its link, and with the host outside, whose flows
/// are spread over both links.
fn start_streams(lab: &Lab, neighbour: &str) -> Result<Vec<(&'static str, Vec<UdpStream>)>> {
    let start = |from: &Netns, to: IpAddr| UdpStream::start(from, to, PORTS[0], PACE);
    let web = &lab.pods["back/web-2"];
    let neighbour = &lab.pods[neighbour];
    let outside = lab.outside();
    let (mut inwards, mut outwards, mut spread) = (Vec::new(), Vec::new(), Vec::new());
    for v6 in [false, true] {
        inwards.push(start(&neighbour.netns, web.address(v6))?);
        outwards.push(start(&web.netns, neighbour.address(v6))?);
        for _ in 0..3 {
            spread.push(start(&outside.netns, web.address(v6))?);
        }
    }
    Ok(vec![
        ("from a pod of that rack", inwards),
        ("to a pod of that rack", outwards),
        ("6 flows from outside", spread),
    ])
}

fn judge(title: &str, streams: Vec<(&'static str, Vec<UdpStream>)>, report: &mut Report) -> Result<()> {
    let counts: Vec<(&str, usize)> = streams.iter().map(|(name, group)| (*name, group.len())).collect();
    let mut all = UdpStream::stop_all(streams.into_iter().flat_map(|(_, group)| group).collect())?;
    for (name, count) in counts {
        let summaries: Vec<Summary> = all.drain(..count).collect();
        let sum = Summary::sum(&summaries);
        let worst = summaries.iter().map(|s| PACE * u32::try_from(s.lost).unwrap_or(u32::MAX)).max();
        let worst = worst.unwrap_or_default();
        report.check(
            &format!("{title}: at most 2 s lost, {name}"),
            worst <= LIMIT && sum.longest_gap <= LIMIT && sum.sent > count as u64,
            format_args!("{sum}; the worst flow lost {}", Ms(worst)),
        );
    }
    Ok(())
}
