//! Policies: the list, what happens to a flow, what a proposal would change.

use std::io::Read as _;
use std::path::Path;

use manx_agent::view::{PolicyDiff, PolicyList, PolicyRendering, Verdict};

use crate::client::Failure;
use crate::output::{Exit, Show, Style};
use crate::show::{age, dash, left, number, right, table, text};

impl Show for Verdict {
    fn text(&self, style: &Style) -> String {
        let columns = [
            left("NODE"),
            left("DIRECTION"),
            left("TIER"),
            left("POLICY"),
            right("RULE"),
            left("RESULT"),
            right("PACKETS"),
            left("REASON"),
        ];
        let rows = self.steps.iter().map(|step| {
            let node = step.node.as_deref().unwrap_or("?");
            vec![
                text(&if step.computed { format!("{node} (computed)") } else { node.to_owned() }),
                text(&step.direction),
                text(step.tier.as_deref().unwrap_or("-")),
                text(step.policy.as_deref().unwrap_or("-")),
                number(step.rule),
                text(&step.result),
                number(step.counter),
                text(&step.reason),
            ]
        });
        let steps = table(&columns, rows, style);
        format!("{} -> {}: {}\n\n{steps}", self.source, self.destination, self.verdict)
    }

    fn names(&self) -> Vec<String> {
        vec![self.verdict.clone()]
    }

    fn exit(&self) -> Exit {
        if self.verdict == "Allow" { Exit::Yes } else { Exit::No }
    }
}

impl Show for PolicyList {
    fn text(&self, style: &Style) -> String {
        let mut columns = vec![
            left("TIER"),
            right("ORDER"),
            left("KIND"),
            left("NAMESPACE"),
            left("NAME"),
            right("GENERATION"),
            right("PODS"),
            left("IN-FORCE"),
        ];
        if style.wide {
            columns.extend([right("INGRESS"), right("EGRESS"), right("MATCHED"), right("UNMATCHED")]);
        }
        columns.push(left("REMARK"));
        let rows = self.items.iter().map(|policy| {
            let mut row = vec![
                text(&policy.tier),
                number(policy.order),
                text(&policy.kind),
                text(policy.namespace.as_deref().unwrap_or("-")),
                text(&policy.name),
                number(Some(policy.generation)),
                number(Some(policy.pods)),
                text(&age(policy.in_force_since, style.now)),
            ];
            if style.wide {
                row.extend([
                    number(policy.ingress_rules),
                    number(policy.egress_rules),
                    number(policy.matched),
                    number(policy.unmatched),
                ]);
            }
            let mut remarks: Vec<&str> = Vec::new();
            remarks.extend(policy.staged.then_some("staged: counted, not enforced"));
            remarks.extend(policy.errors.iter().map(|error| error.reason.as_str()));
            remarks.extend(policy.reason.as_deref());
            row.push(text(&dash(&remarks.join("; "))));
            row
        });
        table(&columns, rows, style)
    }

    fn names(&self) -> Vec<String> {
        let name = |policy: &manx_agent::view::PolicyRow| match &policy.namespace {
            Some(namespace) => format!("{namespace}/{}", policy.name),
            None => policy.name.clone(),
        };
        self.items.iter().map(name).collect()
    }
}

impl Show for PolicyDiff {
    fn text(&self, style: &Style) -> String {
        let columns = [
            left("CHANGE"),
            left("POD"),
            left("DIRECTION"),
            left("PEER"),
            left("PORT"),
            left("BY"),
            left("EXAMPLE"),
        ];
        let rows = self.changes.iter().map(|change| {
            vec![
                text(&change.change),
                text(&change.pod),
                text(&change.direction),
                text(&change.peer),
                text(&change.port),
                text(&change.by),
                text(&format!("{} -> {}", change.source, change.destination)),
            ]
        });
        let mut out = match self.changes.is_empty() {
            true => "no flow of a pod of this node changes\n".to_owned(),
            false => table(&columns, rows, style),
        };
        out += &format!(
            "\n{} flows tried{}\n",
            self.flows_tried,
            if self.truncated { ", more were left out" } else { "" }
        );
        out += &live(self, style);
        for error in &self.errors {
            out += &format!("{}: {}\n", error.object.as_deref().unwrap_or("-"), error.reason);
        }
        out
    }

    fn names(&self) -> Vec<String> {
        self.changes.iter().map(|change| change.pod.clone()).collect()
    }

    /// Something would be cut: no.
    fn exit(&self) -> Exit {
        let cut = self.changes.iter().any(|change| change.change == "cut") || !self.connections.is_empty();
        if cut { Exit::No } else { Exit::Yes }
    }
}

/// The flows that live now and would be ended.
fn live(diff: &PolicyDiff, style: &Style) -> String {
    let Some(tried) = diff.connections_tried else { return String::new() };
    let columns = [left("ENDS"), left("FROM"), left("TO"), left("POD"), left("DIRECTION"), left("BY")];
    let rows = diff.connections.iter().map(|flow| {
        let ends = [&flow.source, &flow.destination].map(crate::drops::end);
        [&flow.protocol, &ends[0], &ends[1], &flow.pod, &flow.direction, &flow.by]
            .map(|cell| text(cell))
            .into()
    });
    let mut out = match diff.connections.is_empty() {
        true => String::new(),
        false => format!("\n{}", table(&columns, rows, style)),
    };
    let ended = diff.connections.len() as u64 + diff.connections_omitted;
    out += &format!("\n{ended} of {tried} live flows would be ended");
    if diff.connections_omitted > 0 {
        out += &format!(", {} of them are not listed", diff.connections_omitted);
    }
    out + "\n"
}

impl Show for PolicyRendering {
    fn text(&self, _: &Style) -> String {
        self.text.clone()
    }

    fn names(&self) -> Vec<String> {
        vec![self.pod.clone()]
    }
}

/// The text of a file, `-` is standard input.
pub(crate) fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().read_to_string(&mut text).map(|_| text),
        false => std::fs::read_to_string(file),
    };
    read.map_err(|e| Failure::Usage(format!("{}: {e}", file.display())))
}
