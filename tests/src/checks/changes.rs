//! A change of a label or a policy takes effect within a second, measured from the moment the file was renamed into place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::policy::{DENY_INGRESS, FROM_TEAM, FROM_ZONE, set};
use crate::cluster;
use crate::lab::Lab;
use crate::netns::Netns;
use crate::probe::{PORTS, fresh_number};
use crate::report::Report;

const LIMIT: Duration = Duration::from_secs(1);
/// A probe goes out this often, each a new flow: an established one would tell nothing.
const PACE: Duration = Duration::from_millis(4);
/// How long is watched after a change.
const WATCH: Duration = Duration::from_millis(1400);
/// A probe without an answer by then has been dropped.
const ANSWER: Duration = Duration::from_millis(200);

/// See the module.
///
/// # Errors
/// When an object cannot be written.
pub fn check(lab: &mut Lab, report: &mut Report) -> Result<()> {
    let deny = ("back", "deny", DENY_INGRESS);
    let by_zone = ("back", "allow", FROM_ZONE);
    let by_team = ("back", "allow", FROM_TEAM);

    let mut pod = lab.pods["back/web-2"].clone();
    for (zone, opens) in [("east", true), ("west", false)] {
        settle(lab, &[deny, by_zone])?;
        let took = measure(lab, "back/web-2", "back/web-3", opens, || {
            pod.labels.insert("zone".into(), zone.into());
            lab.kubelet(&pod.node).update_pod(&pod)
        });
        report.within(&format!("a pod's label {}", verb(opens)), LIMIT, took);
    }
    for (team, opens) in [("other", false), ("front", true)] {
        settle(lab, &[deny, by_team])?;
        let took = measure(lab, "front/client-1", "back/web-3", opens, || {
            lab.cluster.put("namespace-front", &[cluster::namespace("front", &[("team", team)])])
        });
        report.within(&format!("a namespace's label {}", verb(opens)), LIMIT, took);
    }
    for (policies, opens) in [(&[deny][..], false), (&[deny, by_team][..], true)] {
        let took = measure(lab, "front/client-3", "back/web-1", opens, || set(lab, policies));
        report.within(&format!("a policy {}", verb(opens)), LIMIT, took);
    }
    set(lab, &[])
}

fn verb(opens: bool) -> &'static str {
    if opens { "opens" } else { "closes" }
}

/// Puts policies in and gives them the time that they are allowed to take.
fn settle(lab: &Lab, policies: &[(&str, &str, &str)]) -> Result<()> {
    set(lab, policies)?;
    std::thread::sleep(LIMIT);
    Ok(())
}

/// Makes a change and returns how long after it the last probe went the wrong way, in the slower of both families.
fn measure(
    lab: &Lab,
    from: &str,
    to: &str,
    opens: bool,
    change: impl FnOnce() -> Result<()>,
) -> Result<Duration, String> {
    let (from, to) = (&lab.pods[from], &lab.pods[to]);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let watches: Vec<_> = [false, true]
            .map(|v6| {
                let address = to.address(v6);
                scope.spawn(move || watch(&from.netns, address, started + ANSWER + WATCH))
            })
            .into();
        // The state before is watched too: it must be the opposite one, or the change has shown nothing.
        std::thread::sleep(ANSWER);
        let changed = change().map(|()| Instant::now());
        let mut slowest = Duration::ZERO;
        for watch in watches {
            let probes = watch.join().map_err(|_| "the watch panicked".to_owned())?;
            let probes = probes.map_err(|e| format!("{e:#}"))?;
            let changed = changed.as_ref().map_err(|e| format!("{e:#}"))?;
            slowest = slowest.max(judge(&probes, *changed, opens)?);
        }
        Ok(slowest)
    })
}

/// A probe: when it was sent and whether it was answered.
type Sent = (Instant, bool);

fn judge(probes: &[Sent], changed: Instant, opens: bool) -> Result<Duration, String> {
    if !probes.iter().any(|(sent, answered)| *sent < changed && *answered != opens) {
        return Err(format!("it was {} before the change", if opens { "open" } else { "closed" }));
    }
    let last_wrong = probes.iter().rev().find(|(_, answered)| *answered != opens);
    let Some((last_wrong, _)) = last_wrong else { return Ok(Duration::ZERO) };
    let Some((last, _)) = probes.last() else { return Err("no probe was sent".into()) };
    if *last - *last_wrong < ANSWER {
        return Err(format!("not in effect after {:?}", *last - changed));
    }
    Ok(last_wrong.saturating_duration_since(changed) + PACE)
}

/// Sends a datagram from a fresh socket every [`PACE`] until `end`, and tells which were answered.
fn watch(netns: &Netns, to: IpAddr, end: Instant) -> Result<Vec<Sent>> {
    netns.enter(|| {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let mut waiting: Vec<(usize, UdpSocket)> = Vec::new();
        let mut probes: Vec<Sent> = Vec::new();
        let mut next = Instant::now();
        while Instant::now() < end + ANSWER {
            if Instant::now() < end {
                let socket = UdpSocket::bind((any, fresh_number()))?;
                socket.set_nonblocking(true)?;
                socket.connect((to, PORTS[0]))?;
                socket.send(b"change")?;
                waiting.push((probes.len(), socket));
                probes.push((Instant::now(), false));
            }
            next += PACE;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            waiting.retain(|(index, socket)| {
                if socket.recv(&mut [0; 256]).is_ok() {
                    probes[*index].1 = true;
                    return false;
                }
                probes[*index].0.elapsed() < ANSWER
            });
        }
        if probes.is_empty() {
            bail!("no time to send a probe");
        }
        Ok(probes)
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes(start: Instant, answered: &[bool]) -> Vec<Sent> {
        let every = Duration::from_millis(100);
        answered.iter().zip(0..).map(|(answered, i)| (start + every * i, *answered)).collect()
    }

    #[test]
    fn the_last_probe_that_went_the_wrong_way_tells_the_time() {
        let start = Instant::now();
        let changed = start + Duration::from_millis(150);
        let seen = probes(start, &[false, false, false, true, false, true, true, true, true]);
        assert_eq!(judge(&seen, changed, true), Ok(Duration::from_millis(250) + PACE));
    }

    #[test]
    fn a_change_that_never_comes_is_an_error() {
        let start = Instant::now();
        let seen = probes(start, &[true; 8]);
        assert!(judge(&seen, start + Duration::from_millis(50), false).is_err());
    }

    #[test]
    fn a_change_from_what_was_already_so_shows_nothing() {
        let start = Instant::now();
        let seen = probes(start, &[true; 8]);
        assert!(judge(&seen, start + Duration::from_millis(50), true).unwrap_err().contains("before"));
    }
}
