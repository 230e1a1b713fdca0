//! Without a policy everybody reaches everybody, with their own addresses, over routers only.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;

use crate::capture::{Capture, Packet};
use crate::lab::Lab;
use crate::netns::Netns;
use crate::probe::matrix::{Outcomes, Question};
use crate::probe::{FIRST_TTL, Outcome, PORTS, Proto};
use crate::report::Report;

/// See the module.
///
/// # Errors
/// When a capture cannot be made.
pub fn check(lab: &Lab, open: &Outcomes, report: &mut Report) -> Result<()> {
    // The machine that a party is on, and the addresses that it has.
    let place = |party: &str| lab.pods.get(party).map_or("outside", |pod| pod.node.as_str()).to_owned();
    let addresses = |party: &str| match lab.pods.get(party) {
        Some(pod) => pod.addresses.clone(),
        None => lab.outside().addresses,
    };
    for (title, wanted) in [
        ("pods on one node", &(|from: &str, to: &str| from == to) as &dyn Fn(&str, &str) -> bool),
        ("pods on different nodes", &|from, to| from != to && from != "outside" && to != "outside"),
        ("pods and a host outside the cluster", &|from, to| from == "outside" || to == "outside"),
    ] {
        for question in Question::usual() {
            let pairs: Vec<_> = open
                .iter()
                .filter(|((from, to, q), _)| *q == question && wanted(&place(from), &place(to)))
                .collect();
            let answered = pairs.iter().filter(|(_, outcome)| outcome.is_answered()).count();
            let first_bad = pairs.iter().find(|(_, outcome)| !outcome.is_answered());
            let family = if question.v6 { "IPv6" } else { "IPv4" };
            report.check(
                &format!("{title} reach each other over {family}: {}", question.proto),
                answered == pairs.len() && !pairs.is_empty(),
                match first_bad {
                    None => format!("{answered} of {} pairs", pairs.len()),
                    Some(((from, to, _), outcome)) => {
                        format!("{answered} of {} pairs; {from} to {to} {outcome}", pairs.len())
                    }
                },
            );
        }
    }

    for v6 in [false, true] {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let (mut seen, mut own, mut example) = (0, 0, String::new());
        let (mut measured, mut right, mut wrong_ttl) = (0, 0, String::new());
        let mut drops = std::collections::BTreeSet::new();
        for ((from, to, question), outcome) in open.iter().filter(|((_, _, q), _)| q.v6 == v6) {
            let Outcome::Answered(answer) = outcome else { continue };
            if let Some(address) = answer.seen_as {
                seen += 1;
                if addresses(from).contains(&address) {
                    own += 1;
                } else {
                    example = format!("; {to} saw {from} as {address} over {}", question.proto);
                }
            }
            if let Some(ttl) = answer.ttl {
                let routers = lab.topology.routers_between(&place(from), &place(to));
                measured += 1;
                if ttl == FIRST_TTL - routers {
                    right += 1;
                    drops.insert(routers);
                } else {
                    wrong_ttl = format!(
                        "; {from} to {to} over {}: TTL {ttl}, not {}",
                        question.proto,
                        FIRST_TTL - routers
                    );
                }
            }
        }
        report.check(
            &format!("the receiver sees the sender's own address, {family}"),
            seen > 0 && own == seen,
            format_args!("{own} of {seen} TCP and UDP probes{example}"),
        );
        report.check(
            &format!("the TTL has dropped by exactly the routers on the way, {family}"),
            measured > 0 && right == measured,
            format_args!("{right} of {measured} UDP probes and pings, by {drops:?}{wrong_ttl}"),
        );
    }

    for (machine, from, to) in
        [("tor-a", "front/client-1", "back/web-2"), ("spine", "front/client-1", "back/web-3")]
    {
        for v6 in [false, true] {
            capture(lab, machine, from, to, v6, report)?;
        }
    }
    Ok(())
}

/// Sends a marked datagram and looks at every packet on the router that holds the mark, wherever in the packet it stands.
fn capture(lab: &Lab, machine: &str, from: &str, to: &str, v6: bool, report: &mut Report) -> Result<()> {
    let mark = format!("manx-capture-on-{machine}-{v6}");
    let (from, to) = (&lab.pods[from], &lab.pods[to]);
    let (source, destination) = (from.address(v6), to.address(v6));
    let mut capture = Capture::start(&lab.netns(machine))?;
    send(&from.netns, source, destination, mark.as_bytes())?;
    // It comes in by one port and leaves by another; the echo does the same.
    let holds_mark = |packet: &Packet| packet.payload.windows(mark.len()).any(|w| w == mark.as_bytes());
    let packets = capture.read(4, Duration::from_secs(1), holds_mark);
    let plain = packets.iter().filter(|packet| {
        let ends = [(source, destination), (destination, source)];
        ends.contains(&(packet.source, packet.destination))
            && packet.udp_data().is_some_and(|data| data.starts_with(mark.as_bytes()))
    });
    let plain = plain.count();
    report.check(
        &format!(
            "a capture on {machine} shows the pods' own addresses in the outer and only header, {}",
            if v6 { "IPv6" } else { "IPv4" }
        ),
        plain == 4 && packets.len() == 4,
        match packets.first() {
            Some(first) => format!(
                "{plain} of {} packets, first {} > {} protocol {}",
                packets.len(),
                first.source,
                first.destination,
                first.protocol
            ),
            None => "nothing seen".to_owned(),
        },
    );
    Ok(())
}

fn send(netns: &Netns, source: IpAddr, destination: IpAddr, data: &[u8]) -> Result<()> {
    let socket = netns.enter(|| UdpSocket::bind((source, 0)))??;
    socket.send_to(data, (destination, PORTS[0]))?;
    Ok(())
}

/// Whether this question is one that only a policy by port tells apart.
pub fn is_first_tcp_port(question: &Question) -> bool {
    question.proto == Proto::Tcp && question.port == PORTS[0]
}
