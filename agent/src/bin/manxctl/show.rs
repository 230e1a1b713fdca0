//! Documents as tables: no borders, a line for each item, numbers to the right.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use manx_agent::view::{
    AsPathItem, Drift, EpochSeconds, FibState, Ipam, PeerList, PodList, PodPolicyList, Route, RouteDrift,
    RouteList,
};
use serde::Serialize;

use crate::output::{Exit, Show, Style};

impl Show for PeerList {
    fn text(&self, style: &Style) -> String {
        let mut columns = vec![
            left("NODE"),
            left("PEER"),
            left("NAME"),
            right("AS"),
            left("STATE"),
            left("SINCE"),
            right("RX"),
            right("ACC"),
            right("FLT"),
            right("TX"),
            right("FLAPS"),
        ];
        if style.wide {
            columns.extend([right("LOCAL-AS"), left("FAMILIES"), left("REQUIRED")]);
        }
        columns.push(left("REASON"));
        let rows = self.items.iter().map(|peer| {
            let sum = |count: fn(&manx_agent::view::FamilyCounts) -> Option<u64>| {
                let known: Vec<u64> = peer.families.iter().filter_map(count).collect();
                (!known.is_empty()).then(|| known.iter().sum::<u64>())
            };
            let colour = if peer.established() { Color::Green } else { Color::Red };
            let mut row = vec![
                text(&peer.node),
                text(&peer.address),
                text(&peer.name),
                number(peer.remote_as),
                text(&peer.state).fg(colour),
                text(&age(peer.since, style.now)),
                number(sum(|f| f.received)),
                number(sum(|f| f.accepted)),
                number(sum(|f| f.filtered)),
                number(sum(|f| f.advertised)),
                number(Some(peer.flaps)),
            ];
            if style.wide {
                let families: Vec<_> = peer.families.iter().map(|f| f.family.as_str()).collect();
                row.extend([
                    number(peer.local_as),
                    text(&dash(&families.join(","))),
                    text(if peer.required { "yes" } else { "no" }),
                ]);
            }
            row.push(text(peer.reason.as_deref().unwrap_or("-")));
            row
        });
        let peers = table(&columns, rows, style);
        if self.ranges.is_empty() {
            return peers;
        }
        let columns = vec![left("RANGE"), left("NAME"), right("PEERS"), right("MAX"), right("REFUSED")];
        let rows = self.ranges.iter().map(|range| {
            vec![
                text(&range.range),
                text(&range.name),
                number(Some(range.peers)),
                number(Some(range.max_peers)),
                number(Some(range.refused)),
            ]
        });
        format!("{peers}\n{}", table(&columns, rows, style))
    }

    fn names(&self) -> Vec<String> {
        self.items.iter().map(|p| p.address.clone()).collect()
    }
}

impl Show for RouteList {
    fn text(&self, style: &Style) -> String {
        let table = routes(&self.items, style);
        match self.unlisted {
            Some(more @ 1..) => format!("{table}and {more} refused routes more, which are only counted\n"),
            _ => table,
        }
    }

    fn exit(&self) -> Exit {
        if self.unlisted.unwrap_or(0) > 0 { Exit::Partial } else { Exit::Yes }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.items.iter().map(|r| r.prefix.clone()).collect();
        names.dedup();
        names
    }
}

impl Show for RouteDrift {
    fn text(&self, style: &Style) -> String {
        let title =
            format!("{} of {} prefixes are in the kernel as they should be\n", self.agreeing, self.wanted);
        if self.items.is_empty() {
            return title;
        }
        let columns = vec![left("PREFIX"), left("DRIFT"), left("SHOULD-LEAD"), left("LEADS"), left("REASON")];
        let rows = self.items.iter().map(|item| {
            let drift = match item.drift {
                Drift::Missing => "MISSING",
                Drift::Changed => "CHANGED",
                Drift::Extra => "EXTRA",
            };
            vec![
                text(&item.prefix),
                text(drift).fg(Color::Red),
                text(&dash(&item.wanted.join(", "))),
                text(&dash(&item.found.join(", "))),
                text(item.reason.as_deref().unwrap_or("-")),
            ]
        });
        title + &table(&columns, rows, style)
    }

    fn names(&self) -> Vec<String> {
        self.items.iter().map(|item| item.prefix.clone()).collect()
    }

    fn exit(&self) -> Exit {
        if self.items.is_empty() { Exit::Yes } else { Exit::No }
    }
}

/// Paths as a table. The mark before a prefix: `>` best, `=` multipath beside it, `x` refused, `s` stale, `b` discarded.
pub(crate) fn routes(items: &[Route], style: &Style) -> String {
    let mut columns = vec![
        left(""),
        left("PREFIX"),
        left("NEXT-HOP"),
        left("FROM"),
        left("AS-PATH"),
        right("LP"),
        right("MED"),
        left("FIB"),
    ];
    if style.wide {
        columns.extend([
            left("PEER"),
            right("PATH-ID"),
            left("ORIGIN"),
            left("COMMUNITIES"),
            left("LOST-AT"),
        ]);
    }
    columns.push(left("REASON"));
    let rows = items.iter().map(|r| {
        let mut marks = String::new();
        marks.push(match (r.best, r.multipath, r.filtered) {
            (true, ..) => '>',
            (_, true, _) => '=',
            (.., true) => 'x',
            _ => ' ',
        });
        if r.stale {
            marks.push('s');
        }
        if r.blackhole {
            marks.push('b');
        }
        let fib = match r.fib {
            Some(state @ FibState::Missing) => text(fib(state)).fg(Color::Red),
            Some(state) => text(fib(state)),
            None => text("-"),
        };
        let mut row = vec![
            text(&marks),
            text(&r.prefix),
            text(r.next_hop.as_deref().unwrap_or("-")),
            text(&r.from),
            text(&dash(&as_path(&r.as_path))),
            number(r.local_pref),
            number(r.med),
            fib,
        ];
        if style.wide {
            let communities = r.communities.iter().chain(&r.large_communities).chain(&r.extended_communities);
            let communities: Vec<_> = communities.map(String::as_str).collect();
            row.extend([
                text(r.peer.as_deref().unwrap_or("-")),
                number(r.path_id),
                text(r.origin.as_deref().unwrap_or("-")),
                text(&dash(&communities.join(","))),
                text(r.lost_at.as_deref().unwrap_or("-")),
            ]);
        }
        row.push(text(r.reason.as_deref().unwrap_or("-")));
        row
    });
    table(&columns, rows, style)
}

impl Show for Ipam {
    fn text(&self, style: &Style) -> String {
        let columns = vec![left("POOL"), right("TOTAL"), right("USED"), right("COOLING"), right("FREE")];
        let pools = self.pools.iter().map(|p| {
            vec![
                text(&p.cidr),
                number(Some(p.total)),
                number(Some(p.used)),
                number(Some(p.cooling)),
                number(Some(p.free)),
            ]
        });
        let pools = table(&columns, pools, style);
        let mut columns = vec![left("IP"), left("NAMESPACE"), left("POD"), left("IFNAME"), right("SINCE")];
        if style.wide {
            columns.push(left("CONTAINER"));
        }
        let allocations = self.allocations.iter().map(|a| {
            let mut row = vec![
                text(&a.ip),
                text(a.namespace.as_deref().unwrap_or("-")),
                text(a.pod.as_deref().unwrap_or("-")),
                text(&a.ifname),
                text(&age(a.since, style.now)),
            ];
            if style.wide {
                row.push(text(&a.container_id));
            }
            row
        });
        let mut out = format!("{pools}\n{}", table(&columns, allocations, style));
        if !self.cooling.is_empty() {
            let rows = self
                .cooling
                .iter()
                .map(|c| vec![text(&c.ip), text(&format!("{}s", c.until.saturating_sub(style.now)))]);
            out.push_str(&format!("\n{}", table(&[left("COOLING"), right("FREE IN")], rows, style)));
        }
        if !self.leaked.is_empty() {
            let rows = self.leaked.iter().map(|l| vec![text(&l.ip), text(&l.container_id), text(&l.ifname)]);
            let columns = [left("LEAKED"), left("CONTAINER"), left("IFNAME")];
            out.push_str(&format!("\n{}", table(&columns, rows, style)));
        }
        out
    }

    fn names(&self) -> Vec<String> {
        self.allocations.iter().map(|a| a.ip.clone()).collect()
    }
}

impl Show for PodList {
    fn text(&self, style: &Style) -> String {
        let mut columns =
            vec![left("NAMESPACE"), left("NAME"), left("IPS"), left("INTERFACE"), left("POLICY")];
        if style.wide {
            columns.extend([left("NODE"), left("UID"), left("CONTAINER")]);
        }
        let rows = self.items.iter().map(|p| {
            let policy = match p.policy_in_force_since {
                Some(since) => text(&format!("in force {}", age(Some(since), style.now))),
                None => text("waiting").fg(Color::Yellow),
            };
            let mut row = vec![
                text(p.namespace.as_deref().unwrap_or("-")),
                text(p.name.as_deref().unwrap_or("-")),
                text(&dash(&p.ips.join(","))),
                text(&p.interface),
                policy,
            ];
            if style.wide {
                row.extend([text(&p.node), text(p.uid.as_deref().unwrap_or("-")), text(&p.container_id)]);
            }
            row
        });
        table(&columns, rows, style)
    }

    fn names(&self) -> Vec<String> {
        self.items
            .iter()
            .map(|p| match (&p.namespace, &p.name) {
                (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
                _ => p.container_id.clone(),
            })
            .collect()
    }
}

impl Show for PodPolicyList {
    fn text(&self, style: &Style) -> String {
        let columns = vec![left("POD"), left("INGRESS"), left("EGRESS"), left("IN-FORCE")];
        let direction = |d: &manx_agent::view::Direction| match (d.isolated, d.policies.is_empty()) {
            (false, _) => text("open"),
            (true, true) => text("isolated"),
            (true, false) => text(&d.policies.join(",")),
        };
        let rows = self.items.iter().map(|p| {
            vec![
                text(&p.pod),
                direction(&p.ingress),
                direction(&p.egress),
                text(&age(p.in_force_since, style.now)),
            ]
        });
        table(&columns, rows, style)
    }

    fn names(&self) -> Vec<String> {
        self.items.iter().map(|p| p.pod.clone()).collect()
    }

    fn exit(&self) -> Exit {
        if self.items.is_empty() { Exit::No } else { Exit::Yes }
    }
}

/// Who is who.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Version {
    api_version: manx_agent::view::ApiVersion,
    kind: &'static str,
    client: &'static str,
    agent: Option<String>,
}

impl Version {
    pub(crate) fn new(agent: Option<String>) -> Self {
        Version {
            api_version: manx_agent::view::ApiVersion,
            kind: "Version",
            client: env!("CARGO_PKG_VERSION"),
            agent,
        }
    }
}

impl Show for Version {
    fn text(&self, _: &Style) -> String {
        format!("manxctl     {}\nmanx-agent  {}", self.client, self.agent.as_deref().unwrap_or("-"))
    }

    fn names(&self) -> Vec<String> {
        vec![self.client.to_owned()]
    }
}

/// AS_PATH as routers print it.
pub(crate) fn as_path(path: &[AsPathItem]) -> String {
    let items: Vec<String> = path
        .iter()
        .map(|item| match item {
            AsPathItem::Asn(asn) => asn.to_string(),
            AsPathItem::Set(set) => {
                let set: Vec<String> = set.iter().map(ToString::to_string).collect();
                format!("{{{}}}", set.join(","))
            }
        })
        .collect();
    items.join(" ")
}

pub(crate) fn fib(state: FibState) -> &'static str {
    match state {
        FibState::Installed => "installed",
        FibState::Missing => "MISSING",
        FibState::Local => "local",
        FibState::Unselected => "-",
    }
}

/// How long ago, in the two largest units; `-` if not known.
pub(crate) fn age(since: Option<EpochSeconds>, now: EpochSeconds) -> String {
    let Some(since) = since else { return "-".to_owned() };
    let s = now.saturating_sub(since);
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

pub(crate) fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

pub(crate) struct Column {
    title: &'static str,
    alignment: CellAlignment,
}

pub(crate) fn left(title: &'static str) -> Column {
    Column { title, alignment: CellAlignment::Left }
}

pub(crate) fn right(title: &'static str) -> Column {
    Column { title, alignment: CellAlignment::Right }
}

/// What comes from peers and files is shown, never obeyed: control characters are spelled out.
pub(crate) fn text(text: &str) -> Cell {
    Cell::new(printable(text))
}

/// The text with control characters spelled out, so that it cannot command the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
}

pub(crate) fn number<N: ToString>(value: Option<N>) -> Cell {
    Cell::new(value.map_or("-".to_owned(), |n| n.to_string()))
}

pub(crate) fn table(columns: &[Column], rows: impl Iterator<Item = Vec<Cell>>, style: &Style) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if style.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let titles = columns.iter().map(|c| {
        let title = Cell::new(c.title).set_alignment(c.alignment);
        if style.colour { title.add_attribute(Attribute::Bold) } else { title }
    });
    table.set_header(titles);
    for row in rows {
        let cells = row.into_iter().zip(columns).map(|(cell, c)| cell.set_alignment(c.alignment));
        table.add_row(cells);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}
