//! `bundle`: one file for whoever is to help. Nothing in it comes from where secrets are: the agent's sockets have none, the
//! manifests and the configurations of other programs are left out.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use manx_agent::doctor::{self, collect};
use manx_agent::view::{self, ApiVersion, paths};
use manx_cni::conflist;
use serde::Serialize;
use serde_json::Value;

use crate::cli::DoctorArgs;
use crate::client::{Client, Failure, encode};
use crate::output::{Exit, Printer, Show, Style};

/// A table with more prefixes than this is left out: it would be hundreds of megabytes.
const MAX_PREFIXES: u64 = 200_000;
/// Lines of the log.
const LOG_LINES: &str = "5000";

/// What the kernel and its tools say: file, program, arguments.
const COMMANDS: &[(&str, &str, &[&str])] = &[
    ("kernel/uname.txt", "uname", &["-a"]),
    ("kernel/address.txt", "ip", &["-d", "address", "show"]),
    ("kernel/rule-4.txt", "ip", &["-4", "rule", "show"]),
    ("kernel/rule-6.txt", "ip", &["-6", "rule", "show"]),
    ("kernel/route-4.txt", "ip", &["-4", "route", "show", "table", "all"]),
    ("kernel/route-6.txt", "ip", &["-6", "route", "show", "table", "all"]),
    ("kernel/nexthop.txt", "ip", &["nexthop", "show"]),
    ("kernel/neighbour.txt", "ip", &["neighbour", "show"]),
    ("kernel/iptables-nft.txt", "iptables-nft-save", &["-c"]),
    ("kernel/ip6tables-nft.txt", "ip6tables-nft-save", &["-c"]),
    ("kernel/nft-tables.txt", "nft", &["list", "tables"]),
    ("kernel/ipset.txt", "ipset", &["list"]),
    ("kernel/sockets.txt", "ss", &["-Htnap", "sport = :179 or dport = :179"]),
    ("log/agent.txt", "journalctl", &["-q", "--no-pager", "-u", "manx-agent", "-n", LOG_LINES]),
];

/// What became of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    api_version: ApiVersion,
    kind: &'static str,
    file: String,
    entries: Vec<String>,
    missing: Vec<Missing>,
}

#[derive(Debug, Serialize)]
struct Missing {
    name: String,
    reason: String,
}

/// Collects everything and writes the file.
pub(crate) async fn pack(
    client: &Client,
    file: Option<&Path>,
    places: &DoctorArgs,
    printer: &Printer,
) -> Result<Exit, Failure> {
    let mut content = Content::default();
    let snapshot = crate::doctor::observe(client, places).await;
    let status = snapshot.status().cloned();
    let found = doctor::examine(&snapshot);
    content.document("doctor.json", &found);
    content.document("kernel/sysctl.json", &snapshot.sysctls);
    match &status {
        Some(status) => ask_agent(client, status, &mut content).await,
        None => {
            let reason = snapshot.agent.and_then(Result::err).unwrap_or_default();
            content.miss("agent", reason);
        }
    }
    for (name, program, arguments) in COMMANDS {
        match collect::output(program, arguments) {
            Some(text) => content.add(name, text.into_bytes()),
            None => content.miss(name, format!("{program} is not there or does not answer")),
        }
    }
    // Of other networks' configurations the names alone: they may hold keys.
    content.document("cni/configurations.json", &snapshot.conflists);
    content.file("cni/conflist.json", &places.cni_conf_dir.join(conflist::FILE_NAME));
    content.file("cni/node.json", &client.run_dir().join(manx_cni::node::FILE_NAME));

    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let node = found.node.as_deref().unwrap_or("node");
    let path = file.map_or_else(|| PathBuf::from(format!("manx-{node}-{now}.tar.gz")), Path::to_owned);
    let about = serde_json::json!({
        "client": env!("CARGO_PKG_VERSION"), "agent": status.map(|s| s.version), "node": node, "time": now,
        "missing": content.missing,
    });
    content.document("bundle.json", &about);
    let unwritten = |e: io::Error| Failure::Usage(format!("{}: {e}", path.display()));
    let bytes = content.archive(now).map_err(unwritten)?;
    if path.as_os_str() == "-" {
        io::stdout().lock().write_all(&bytes).map_err(unwritten)?;
        return Ok(if content.missing.is_empty() { Exit::Yes } else { Exit::Partial });
    }
    write(&path, &bytes).map_err(unwritten)?;
    printer.print(&Bundle {
        api_version: ApiVersion,
        kind: "Bundle",
        file: path.display().to_string(),
        entries: content.entries.into_iter().map(|(name, _)| name).collect(),
        missing: content.missing,
    })
}

/// What the agent says of everything that it knows.
async fn ask_agent(client: &Client, status: &view::Status, content: &mut Content) {
    content.document("agent/status.json", status);
    let documents = [
        ("agent/ipam.json", paths::IPAM, status.cni.is_some()),
        ("agent/pods.json", paths::PODS, status.cni.is_some()),
        ("agent/policies.json", paths::POLICIES, status.policy.is_some()),
        ("agent/drain.json", paths::NODE_DRAIN, status.bgp.is_some()),
        ("agent/drift.json", paths::ROUTE_DRIFT, status.kernel.routes_wanted.is_some()),
    ];
    for (name, path, _) in documents.iter().filter(|(.., wanted)| *wanted) {
        content.answer(name, client.get(path, &[]).await);
    }
    let Some(bgp) = &status.bgp else { return };
    match bgp.prefixes {
        Some(n) if n > MAX_PREFIXES => {
            content.miss("agent/routes.json", format!("{n} prefixes, more than {MAX_PREFIXES}"));
        }
        _ => content.answer("agent/routes.json", client.get(paths::ROUTES, &[("table", "loc")]).await),
    }
    let peers = match client.get::<view::PeerList>(paths::PEERS, &[]).await {
        Ok(peers) => peers,
        Err(failure) => return content.miss("agent/peers.json", failure.to_string()),
    };
    content.document("agent/peers.json", &peers);
    for peer in peers.items {
        let name = encode(&peer.name);
        let path = format!("{}/{name}", paths::PEERS);
        for (file, below) in [("peer", ""), ("why", paths::PEER_WHY), ("history", paths::PEER_HISTORY)] {
            let answer = client.get(&format!("{path}{below}"), &[]).await;
            content.answer(&format!("agent/peers/{name}/{file}.json"), answer);
        }
    }
}

#[derive(Default)]
struct Content {
    entries: Vec<(String, Vec<u8>)>,
    missing: Vec<Missing>,
}

impl Content {
    fn add(&mut self, name: &str, bytes: Vec<u8>) {
        self.entries.push((name.to_owned(), bytes));
    }

    fn miss(&mut self, name: &str, reason: impl Into<String>) {
        self.missing.push(Missing { name: name.to_owned(), reason: reason.into() });
    }

    fn document(&mut self, name: &str, document: &impl Serialize) {
        match serde_json::to_vec_pretty(document) {
            Ok(bytes) => self.add(name, bytes),
            Err(e) => self.miss(name, e.to_string()),
        }
    }

    fn answer(&mut self, name: &str, answer: Result<Value, Failure>) {
        match answer {
            Ok(document) => self.document(name, &document),
            Err(failure) => self.miss(name, failure.to_string()),
        }
    }

    fn file(&mut self, name: &str, path: &Path) {
        match fs::read(path) {
            Ok(bytes) => self.add(name, bytes),
            Err(e) => self.miss(name, format!("{}: {e}", path.display())),
        }
    }

    /// A folder `manx` with all of it.
    fn archive(&self, now: u64) -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        for (name, bytes) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(now);
            archive.append_data(&mut header, Path::new("manx").join(name), bytes.as_slice())?;
        }
        archive.into_inner()?.finish()
    }
}

/// For its owner's eyes: addresses and names are not secret, and not for everybody either.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

impl Show for Bundle {
    fn text(&self, _: &Style) -> String {
        let mut lines: Vec<String> =
            self.missing.iter().map(|m| format!("without {}: {}", m.name, m.reason)).collect();
        lines.push(format!("{}: {} files", self.file, self.entries.len()));
        lines.join("\n")
    }

    fn names(&self) -> Vec<String> {
        vec![self.file.clone()]
    }

    fn exit(&self) -> Exit {
        if self.missing.is_empty() { Exit::Yes } else { Exit::Partial }
    }
}
