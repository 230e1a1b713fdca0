//! Documents about one thing, in words: a line for each aspect, its name in front.

use manx_agent::view::{
    Bfd, Direction, DrainPhase, FibState, NodeDrain, Peer, PodPolicy, Route, RouteExplanation, RouteLookup,
    Status,
};

use crate::output::{Exit, Show, Style};
use crate::show::{age, as_path, dash, fib, printable, routes};

impl Show for Status {
    fn text(&self, style: &Style) -> String {
        let mut page = Page::default();
        let up = age(self.started, style.now);
        page.line("node", format!("{} (manx-agent {}, up {up})", self.node, self.version));
        let source = &self.source;
        let sync = match (source.in_sync, source.stale) {
            (false, _) => "not in sync: nothing new is written to the kernel",
            (true, true) => "in sync, partly stale",
            (true, false) => "in sync",
        };
        page.line("source", format!("{} {}: {sync}", source.kind, source.location));
        match &self.bgp {
            None => page.line("bgp", "not enabled"),
            Some(bgp) => {
                let restarting = match (bgp.drain, bgp.restarting) {
                    (DrainPhase::Drained, _) => ", drained",
                    (DrainPhase::Draining, _) => ", being drained",
                    (DrainPhase::Serving, true) => ", restarting gracefully",
                    (DrainPhase::Serving, false) => "",
                };
                page.line("bgp", format!(
                    "AS {}, router id {}: {} of {} peers Established, {} prefixes, {} of our own, {} of Services{restarting}",
                    known(bgp.asn.as_ref()),
                    known(bgp.router_id.as_ref()),
                    known(bgp.established.as_ref()),
                    known(bgp.peers.as_ref()),
                    known(bgp.prefixes.as_ref()),
                    bgp.originated.len(),
                    bgp.services.len(),
                ));
            }
        }
        match &self.policy {
            None => page.line("policy", "not enabled"),
            Some(policy) => {
                let pending = if policy.pending { ", changes pending" } else { "" };
                page.line(
                    "policy",
                    format!(
                        "iptables {}: {} policies, {} of {} pods in force, last change {}{pending}",
                        known(policy.backend.as_ref()),
                        known(policy.policies.as_ref()),
                        known(policy.endpoints_in_force.as_ref()),
                        known(policy.endpoints.as_ref()),
                        age(policy.last_applied, style.now)
                    ),
                );
            }
        }
        match &self.cni {
            None => page.line("cni", "not enabled"),
            Some(cni) => {
                let ready = match (&cni.reason, cni.ready) {
                    (_, true) => "ready".to_owned(),
                    (Some(reason), false) => format!("not ready: {reason}"),
                    (None, false) => "not ready".to_owned(),
                };
                let cidrs = dash(&cni.pod_cidrs.join(" "));
                let egress = match cni.egress_nat.as_deref() {
                    None | Some("Off") => String::new(),
                    Some(mode) => format!("; egress NAT: {mode}"),
                };
                let pods = known(cni.attachments.as_ref());
                page.line("cni", format!("{ready}; {pods} pods in {cidrs}{egress}"));
            }
        }
        page.line(
            "kernel",
            match self.kernel.routes_wanted {
                None => "no routes written".to_owned(),
                Some(wanted) => format!(
                    "{} of {wanted} routes installed, {} put back",
                    known(self.kernel.routes_installed.as_ref()),
                    known(self.kernel.repairs.as_ref())
                ),
            },
        );
        if let Some(objects) = self.kernel.next_hop_objects {
            let mode = known(self.kernel.next_hop_compat_mode.as_ref());
            page.line("next hops", format!("{objects} nexthop objects, compat mode {mode}"));
        }
        for notice in &self.kernel.notices {
            page.line("notice", notice);
        }
        let complaints = self.complaints();
        if complaints.is_empty() {
            page.coloured("health", "healthy", GREEN, "", style);
        } else {
            page.coloured("health", &format!("{} wrong", complaints.len()), RED, "", style);
            for complaint in complaints {
                page.line("", complaint);
            }
        }
        page.finish()
    }

    fn names(&self) -> Vec<String> {
        vec![self.node.clone()]
    }

    fn exit(&self) -> Exit {
        if self.complaints().is_empty() { Exit::Yes } else { Exit::No }
    }
}

impl Show for Peer {
    fn text(&self, style: &Style) -> String {
        let mut page = Page::default();
        let row = &self.row;
        let kind = self.peer_type.as_deref().map_or(String::new(), |t| format!(", {t}"));
        page.line(
            "peer",
            format!("{} ({}), AS {}{kind}", row.name, row.address, known(row.remote_as.as_ref())),
        );
        let colour = if row.established() { GREEN } else { RED };
        let rest = format!(" for {}, {} flaps", age(row.since, style.now), row.flaps);
        page.coloured("state", &row.state, colour, &rest, style);
        if let Some(reason) = &row.reason {
            page.line("reason", reason);
        }
        if let Some(at) = self.next_connect {
            page.line("next try", format!("in {}s", at.saturating_sub(style.now)));
        }
        page.line(
            "local",
            format!(
                "{} on {}, AS {}",
                self.local_address.as_deref().unwrap_or("no connection"),
                row.node,
                known(row.local_as.as_ref())
            ),
        );
        page.line("router id", known(self.router_id.as_ref()));
        page.line(
            "timers",
            match self.hold_time {
                Some(0) => "no hold timer".to_owned(),
                hold => format!("hold {}, keepalive {}", seconds(hold), seconds(self.keepalive_time)),
            },
        );
        if let Some(bfd) = &row.bfd {
            page.line("bfd", bfd_line(bfd));
        }
        for f in &row.families {
            page.line(
                &f.family,
                format!(
                    "received {}, accepted {}, filtered {}, advertised {}",
                    known(f.received.as_ref()),
                    known(f.accepted.as_ref()),
                    known(f.filtered.as_ref()),
                    known(f.advertised.as_ref())
                ),
            );
        }
        for c in &self.capabilities {
            let by = match (c.sent, c.received) {
                (true, Some(true)) => "both",
                (true, Some(false)) => "we offer it, the peer does not",
                (true, None) => "we offer it",
                (false, Some(true)) => "the peer offers it, we do not",
                (false, _) => "neither",
            };
            page.line("can", format!("{}: {by}", c.name));
        }
        let m = &self.messages;
        page.line(
            "messages",
            format!(
                "{} sent ({} UPDATE), {} received ({} UPDATE)",
                known(m.sent.as_ref()),
                known(m.updates_sent.as_ref()),
                known(m.received.as_ref()),
                known(m.updates_received.as_ref())
            ),
        );
        if let Some(n) = &self.last_notification {
            page.line(
                "last word",
                format!(
                    "NOTIFICATION {} {}/{} {}, {} ago",
                    n.direction,
                    n.code,
                    n.subcode,
                    n.text,
                    age(n.at, style.now)
                ),
            );
        }
        self.settings(&mut page);
        page.finish()
    }

    fn names(&self) -> Vec<String> {
        vec![self.row.address.clone()]
    }

    fn exit(&self) -> Exit {
        if self.row.established() { Exit::Yes } else { Exit::No }
    }
}

/// `Up, peer Up; detects in 300 ms, sends every 100 ms; left Up 2 times`.
fn bfd_line(bfd: &Bfd) -> String {
    let mut line = format!("{}, peer {}", bfd.state, bfd.remote_state.as_deref().unwrap_or("not heard"));
    if let (Some(detects), Some(sends)) = (bfd.detection_time_ms, bfd.interval_ms) {
        line += &format!("; detects in {detects} ms, sends every {sends} ms");
    }
    if bfd.flaps > 0 {
        line += &format!("; left Up {} times", bfd.flaps);
    }
    if let Some(reason) = &bfd.reason {
        line += &format!(" ({reason})");
    }
    line
}

trait Settings {
    fn settings(&self, page: &mut Page);
}

impl Settings for Peer {
    /// The settings that differ from what most peers have.
    fn settings(&self, page: &mut Page) {
        let s = &self.settings;
        let mut words = Vec::new();
        words.extend(s.port.filter(|p| *p != 179).map(|p| format!("port {p}")));
        words.extend(s.passive.then(|| "passive".to_owned()));
        words.extend(s.password.then(|| "TCP MD5".to_owned()));
        words.extend(s.ttl_security.then(|| "TTL security".to_owned()));
        words.extend(s.ebgp_multihop.map(|hops| format!("up to {hops} hops")));
        words.extend(s.route_reflector_client.then(|| "reflection client".to_owned()));
        words.extend((!self.row.required).then(|| "not required".to_owned()));
        words.extend(s.max_prefixes.map(|n| format!("at most {n} prefixes")));
        page.line("settings", dash(&words.join(", ")));
        page.line("import", dash(&s.import_filters.join(", ")));
        page.line("export", dash(&s.export_filters.join(", ")));
    }
}

impl Show for RouteLookup {
    fn text(&self, _: &Style) -> String {
        let mut page = Page::default();
        page.line("to", &self.ip);
        let Some(prefix) = &self.prefix else {
            page.line("route", "none: the kernel has no route to it");
            return page.finish();
        };
        page.line("route", prefix);
        page.line("via", dash(&self.next_hops.join(", ")));
        page.line("interface", dash(&self.interfaces.join(", ")));
        page.line("owner", self.owner.as_deref().unwrap_or("-"));
        if let Some(route) = &self.route {
            page.line("bgp", describe(route));
        }
        page.finish()
    }

    fn names(&self) -> Vec<String> {
        self.prefix.clone().into_iter().collect()
    }

    fn exit(&self) -> Exit {
        if self.prefix.is_some() { Exit::Yes } else { Exit::No }
    }
}

impl Show for RouteExplanation {
    fn text(&self, style: &Style) -> String {
        let mut page = Page::default();
        let peers: Vec<&str> = self.paths.iter().map(who).collect();
        page.line(
            "received",
            match peers.as_slice() {
                [] => "no path".to_owned(),
                [one] => format!("1 path ({one})"),
                many => format!("{} paths ({})", many.len(), many.join(", ")),
            },
        );
        let best = self.paths.iter().find(|p| p.best);
        let mut words = vec![match best {
            Some(path) => {
                let beside: Vec<&str> =
                    self.paths.iter().filter(|p| p.multipath && !p.best).map(who).collect();
                if beside.is_empty() {
                    who(path).to_owned()
                } else {
                    format!("{} and {}", who(path), beside.join(", "))
                }
            }
            None => "none".to_owned(),
        }];
        for loser in self.paths.iter().filter(|p| !p.best && !p.multipath) {
            let reason = loser.reason.as_deref().or(loser.lost_at.as_deref()).unwrap_or("-");
            let how = if loser.filtered { "refused" } else { "lost" };
            words.push(format!("{} {how}: {reason}", who(loser)));
        }
        page.line("best", words.join("; "));
        page.line(
            "policy",
            self.filter.as_deref().unwrap_or("no filter decided: the default of the direction"),
        );
        let state = self.fib.map_or("-", fib);
        let reason = self.reason.as_ref().map_or(String::new(), |r| format!(": {r}"));
        match self.fib {
            Some(FibState::Missing) => page.coloured("fib", state, RED, &reason, style),
            _ => page.line("fib", format!("{state}{reason}")),
        }
        for export in &self.exports {
            let told = if export.advertised { "told" } else { "not told" };
            page.line("export", format!("{} {told}: {}", export.peer, export.reason));
        }
        if style.wide {
            return format!("{}\n{}", page.finish(), routes(&self.paths, style));
        }
        page.finish()
    }

    fn names(&self) -> Vec<String> {
        vec![self.prefix.clone()]
    }

    fn exit(&self) -> Exit {
        if self.paths.iter().any(|p| p.best) { Exit::Yes } else { Exit::No }
    }
}

impl Show for NodeDrain {
    fn text(&self, style: &Style) -> String {
        let message = self.message.as_deref().unwrap_or("-");
        let line = match self.phase {
            DrainPhase::Serving => format!("serving, {} of {} sessions up", self.established, self.peers),
            DrainPhase::Draining => format!(
                "being drained: peers are asked to prefer other ways; {} sessions end in {}s ({message})",
                self.established,
                self.until.unwrap_or(style.now).saturating_sub(style.now)
            ),
            DrainPhase::Drained => format!(
                "drained for {} ({message}): {} of {} sessions up; `manxctl node undrain` brings it back",
                age(self.since, style.now),
                self.established,
                self.peers
            ),
        };
        printable(&format!("{}: {line}", self.node)) + "\n"
    }

    fn names(&self) -> Vec<String> {
        vec![self.node.clone()]
    }
}

impl Show for PodPolicy {
    fn text(&self, style: &Style) -> String {
        let mut page = Page::default();
        page.line("pod", &self.pod);
        page.line("ingress", direction(&self.ingress));
        page.line("egress", direction(&self.egress));
        page.line(
            "in force",
            match self.in_force_since {
                Some(since) => format!("for {}", age(Some(since), style.now)),
                None => "not on this node, or not yet".to_owned(),
            },
        );
        page.finish()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.ingress.policies.iter().chain(&self.egress.policies).cloned().collect();
        names.sort();
        names.dedup();
        names
    }
}

fn direction(d: &Direction) -> String {
    match (d.isolated, d.policies.is_empty()) {
        (false, _) => "open: no policy selects the pod".to_owned(),
        (true, true) => "isolated: nothing passes".to_owned(),
        (true, false) => format!("isolated by {}", d.policies.join(", ")),
    }
}

/// Who told us, as a person calls it.
fn who(route: &Route) -> &str {
    route.peer.as_deref().unwrap_or(&route.from)
}

fn describe(route: &Route) -> String {
    let mut text = format!("from {}", who(route));
    if !route.as_path.is_empty() {
        text += &format!(", AS path {}", as_path(&route.as_path));
    }
    text
}

fn known<T: ToString>(value: Option<&T>) -> String {
    value.map_or("-".to_owned(), T::to_string)
}

fn seconds(value: Option<u64>) -> String {
    value.map_or("-".to_owned(), |s| format!("{s}s"))
}

pub(crate) const GREEN: u8 = 32;
pub(crate) const RED: u8 = 31;

/// Lines with a name in front, the names in one column.
#[derive(Default)]
pub(crate) struct Page(Vec<(String, String)>);

impl Page {
    /// What comes from peers and files is shown, never obeyed.
    pub(crate) fn line(&mut self, name: &str, text: impl AsRef<str>) {
        self.0.push((name.to_owned(), printable(text.as_ref())));
    }

    /// A line whose first word is in colour, where there is colour.
    pub(crate) fn coloured(&mut self, name: &str, word: &str, colour: u8, rest: &str, style: &Style) {
        let (word, rest) = (printable(word), printable(rest));
        let word = if style.colour { format!("\x1b[{colour}m{word}\x1b[0m") } else { word };
        self.0.push((name.to_owned(), word + &rest));
    }

    pub(crate) fn finish(self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.0.iter().map(|(name, text)| format!("{name:width$}  {text}\n")).collect()
    }
}
