//! Which rules decided about a packet: those whose counters grow when it is sent once more. Their comments name policy and rule.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};

use super::rack::{Node, Rack};
use super::station::{init, raw};
use super::table::{Question, Transport};
use crate::probe::{self, Proto, fresh_number};

/// How long the packet is given.
const LIMIT: Duration = Duration::from_millis(300);

/// The rules that count the question's packet, node by node.
///
/// # Errors
/// When it cannot be sent or the rules cannot be read.
pub fn rules(rack: &Rack, question: &Question) -> Result<Vec<String>> {
    let mut nodes: BTreeMap<&str, &Node> = BTreeMap::new();
    for pod in [&question.from, &question.to] {
        let node = rack.node_of(pod);
        nodes.insert(&node.agent.node, node);
    }
    let read = || nodes.values().map(|node| counters(node, question.v6)).collect::<Result<Vec<_>>>();
    let before = read()?;
    send(rack, question)?;
    let after = read()?;
    let mut found = Vec::new();
    for ((name, before), after) in nodes.keys().zip(before).zip(after) {
        found
            .extend(after.difference(&before).map(|(_, rule, packets)| format!("{name} [{packets}] {rule}")));
    }
    Ok(found)
}

fn send(rack: &Rack, question: &Question) -> Result<()> {
    let (from, to) = (&rack.stations[&question.from], &rack.stations[&question.to]);
    let target = to.address(question.v6).context("the target has an address")?;
    let proto = match question.transport {
        Transport::Tcp => Proto::Tcp,
        Transport::Udp => Proto::Udp,
        Transport::Sctp => {
            let packet = init(fresh_number(), question.port, 1);
            let to = std::net::SocketAddr::new(target, 0);
            from.netns.enter(|| raw(question.v6)?.send_to(&packet, &to.into()))??;
            return Ok(());
        }
    };
    // The kernel of the target answers the handshake; nobody echoes datagrams now, and nobody needs to.
    probe::client::probe(&from.netns, proto, target, question.port, LIMIT).map(drop)
}

/// Our rules with their counters, in their order.
fn counters(node: &Node, v6: bool) -> Result<BTreeSet<(usize, String, String)>> {
    let program = if v6 { "ip6tables" } else { "iptables" };
    let saved = node.agent.netns.run(&format!("{program}-{}-save -c", node.backend))?;
    let rules = saved.lines().enumerate().filter(|(_, line)| line.contains("-A MANX-"));
    Ok(rules
        .filter_map(|(number, line)| {
            let (counter, rule) = line.strip_prefix('[')?.split_once("] ")?;
            Some((number, rule.to_owned(), counter.split(':').next()?.to_owned()))
        })
        .collect())
}
