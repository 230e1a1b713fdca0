//! `config effective` as tables. Of peers, only what differs from the default is shown, unless the output is wide.

use manx_agent::view::{Effective, Setting};
use serde_json::Value;

use crate::output::{Show, Style};
use crate::show::{left, printable, table, text};

/// Where a setting comes from that no object has changed.
const DEFAULT: &str = "default";

impl Show for Effective {
    fn text(&self, style: &Style) -> String {
        let mut out = Vec::new();
        out.push(format!("BGP on {}\n{}", self.node, settings(self.bgp.iter(), style)));
        for peer in &self.peers {
            let shown = peer.settings.iter().filter(|s| style.wide || s.from != DEFAULT);
            let blocked = peer.blocked.as_ref().map_or(String::new(), |why| format!(", stays down: {why}"));
            let title = printable(&format!("peer {}, from {}{blocked}", peer.name, peer.from));
            out.push(format!("{title}\n{}", settings(shown, style)));
        }
        let filters = self.filters.iter().map(|f| format!("  {}, from {}", f.name, f.from));
        lines(&mut out, "filters", filters);
        out.push(format!("network\n{}", settings(self.network.iter(), style)));
        lines(&mut out, "said in vain", self.unheard.iter().map(|u| format!("  {}: {}", u.object, u.reason)));
        let elsewhere = self.elsewhere.iter().filter(|_| style.wide);
        lines(&mut out, "for other nodes", elsewhere.map(|e| format!("  {}: {}", e.object, e.reason)));
        lines(&mut out, "not done", self.problems.iter().map(|p| format!("  {p}")));
        out.join("\n")
    }

    fn names(&self) -> Vec<String> {
        self.peers.iter().map(|peer| peer.name.clone()).collect()
    }
}

fn settings<'a>(settings: impl Iterator<Item = &'a Setting>, style: &Style) -> String {
    let rows = settings.map(|s| vec![text(&s.field), text(&value(&s.value)), text(&s.from)]);
    table(&[left("SETTING"), left("VALUE"), left("FROM")], rows, style)
}

fn lines(out: &mut Vec<String>, title: &str, lines: impl Iterator<Item = String>) {
    let lines: Vec<_> = lines.map(|line| printable(&line)).collect();
    if !lines.is_empty() {
        out.push(format!("{title}\n{}\n", lines.join("\n")));
    }
}

/// A word as it is, a list apart by commas, anything else as JSON.
fn value(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(self::value).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use manx_agent::view::{EffectivePeer, NotInForce, Sourced};
    use serde_json::json;

    use super::*;

    fn setting(field: &str, value: Value, from: &str) -> Setting {
        Setting { field: field.into(), value, from: from.into() }
    }

    fn document() -> Effective {
        Effective {
            node: "n1".into(),
            bgp: vec![
                setting("asNumber", json!(64513), "Calico BGPConfiguration default"),
                setting("multipath.maxPaths", json!(16), "default"),
            ],
            network: vec![setting("clusterCIDRs", json!([]), "default")],
            peers: vec![EffectivePeer {
                name: "tor".into(),
                from: "BGPPeer tor".into(),
                settings: vec![
                    setting("families", json!(["ipv4", "ipv6"]), "default"),
                    setting("importFilters", json!(["racks", "rest"]), "BGPPeer tor"),
                ],
                blocked: Some("BGPFilter rest does not exist".into()),
            }],
            filters: vec![Sourced { name: "racks".into(), from: "BGPFilter racks".into() }],
            unheard: vec![NotInForce {
                object: "Calico BGPPeer old".into(),
                reason: "BGPPeer tor names the same address on this node and is heard instead".into(),
            }],
            elsewhere: vec![NotInForce {
                object: "BGPPeer far".into(),
                reason: "it wants rack=b, this node has rack=a".into(),
            }],
            ..Effective::default()
        }
    }

    #[test]
    fn what_is_changed_is_shown_with_its_source_and_all_of_it_when_wide() {
        let style = Style { wide: false, colour: false, now: 0 };
        let narrow = document().text(&style);
        for words in [
            "BGP on n1",
            "Calico BGPConfiguration default",
            "peer tor, from BGPPeer tor, stays down: BGPFilter rest does not exist",
            "racks,rest",
            "said in vain\n  Calico BGPPeer old: BGPPeer tor names",
        ] {
            assert!(narrow.contains(words), "{words}:\n{narrow}");
        }
        assert!(!narrow.contains("families") && !narrow.contains("BGPPeer far"), "{narrow}");
        let wide = document().text(&Style { wide: true, ..style });
        assert!(wide.contains("ipv4,ipv6") && wide.contains("BGPPeer far: it wants rack=b"), "{wide}");
        assert_eq!(document().names(), ["tor"]);
    }
}
