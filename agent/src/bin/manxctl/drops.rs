//! Dropped packets: the latest as a table, new ones a line each.

use manx_agent::view::{DropEvent, DropList, DroppedPacket, Dropping, PacketEnd};

use crate::history::utc;
use crate::output::{Show, Style};
use crate::show::{left, printable, table, text};
use crate::text::RED;

impl Show for DropList {
    fn text(&self, style: &Style) -> String {
        if self.items.is_empty() {
            return "nothing has been dropped by a rule that logs\n".to_owned();
        }
        let mut columns =
            vec![left("TIME"), left("DIRECTION"), left("FROM"), left("TO"), left("PROTOCOL"), left("POLICY")];
        if style.wide {
            columns.extend([left("IN"), left("OUT")]);
        }
        columns.push(left("REASON"));
        let rows = self.items.iter().map(|packet| {
            let dash = |value: &Option<String>| text(value.as_deref().unwrap_or("-"));
            let mut row = vec![
                text(&time(packet.at, style)),
                dash(&packet.direction),
                text(&end(&packet.source)),
                text(&end(&packet.destination)),
                dash(&packet.protocol),
                text(&policy(packet).unwrap_or_else(|| "-".to_owned())),
            ];
            if style.wide {
                row.extend([dash(&packet.in_interface), dash(&packet.out_interface)]);
            }
            row.push(text(&packet.reason));
            row
        });
        table(&columns, rows, style)
    }

    fn names(&self) -> Vec<String> {
        self.items.iter().filter_map(policy).collect()
    }
}

impl Show for DropEvent {
    fn text(&self, style: &Style) -> String {
        match &self.what {
            Dropping::Start { at } => format!("{}  what is dropped from now on", time(*at, style)),
            Dropping::Missed { count } => format!("{count} packets left out: this reader is too slow"),
            Dropping::Packet(packet) => {
                let words = printable(&line(packet, style.wide));
                let at = time(packet.at, style);
                match style.colour && packet.result == "Drop" {
                    true => format!("{at}  \x1b[{RED}m{words}\x1b[0m"),
                    false => format!("{at}  {words}"),
                }
            }
        }
    }

    fn names(&self) -> Vec<String> {
        match &self.what {
            Dropping::Packet(packet) => policy(packet).into_iter().collect(),
            Dropping::Start { .. } | Dropping::Missed { .. } => Vec::new(),
        }
    }
}

fn line(packet: &DroppedPacket, wide: bool) -> String {
    let mut words = vec![packet.result.to_lowercase()];
    words.extend(packet.protocol.clone());
    words.push(format!("{} -> {}", end(&packet.source), end(&packet.destination)));
    let interfaces = [("in", &packet.in_interface), ("out", &packet.out_interface)];
    for (side, interface) in interfaces.into_iter().filter(|_| wide) {
        words.extend(interface.as_ref().map(|interface| format!("{side} {interface}")));
    }
    let of_pod = match (&packet.direction, &packet.pod) {
        (Some(direction), Some(pod)) => format!("{direction} of {pod}: "),
        _ => String::new(),
    };
    let by = policy(packet).map_or(String::new(), |policy| format!(" ({policy})"));
    format!("{}  {of_pod}{}{by}", words.join(" "), packet.reason)
}

/// The policy that decided and its rule, or those that isolate the pod.
fn policy(packet: &DroppedPacket) -> Option<String> {
    match (&packet.policy, packet.rule) {
        (Some(policy), Some(rule)) => Some(format!("{policy} rule {rule}")),
        (Some(policy), None) => Some(policy.clone()),
        (None, _) if packet.isolated_by.is_empty() => None,
        (None, _) => Some(packet.isolated_by.join(", ")),
    }
}

pub(crate) fn end(end: &PacketEnd) -> String {
    let Some(address) = &end.address else { return "?".to_owned() };
    let place = match end.port {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address.clone(),
    };
    match &end.pod {
        Some(pod) => format!("{pod} {place}"),
        None => place,
    }
}

/// The day is known to who watches.
fn time(at: u64, style: &Style) -> String {
    let at = utc(at);
    if style.wide { at } else { at.split_once(' ').map_or(at.clone(), |(_, time)| time.to_owned()) }
}
