//! `config validate`: what the agent would say of manifests, without an agent.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use manx_agent::source::directory::{Change, Directory};
use manx_agent::source::{Problem, Update};
use manx_agent::view::{ApiVersion, StatusProblem};
use serde::Serialize;

use crate::client::Failure;
use crate::output::{Exit, Printer, Show, Style};

/// The verdict on some manifests.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Validation {
    api_version: ApiVersion,
    kind: &'static str,
    valid: bool,
    objects: usize,
    errors: Vec<StatusProblem>,
}

/// Reads the files as one directory, so that objects given twice are found as well.
pub(crate) fn run(files: &[PathBuf], printer: &Printer) -> Result<Exit, Failure> {
    let mut changes = BTreeMap::new();
    for file in files {
        collect(file, &mut changes)?;
    }
    let mut objects = 0;
    let mut problems = Vec::new();
    for update in Directory::new().turn(Ok(changes)) {
        match update {
            Update::Set(_) => objects += 1,
            Update::Problems(all) => problems = all,
            Update::Remove(_) | Update::InSync => {}
        }
    }
    // What would follow for an agent does not matter here.
    let errors: Vec<StatusProblem> =
        problems.into_iter().map(|p| StatusProblem::from(&Problem { effect: "", ..p })).collect();
    printer.print(&Validation {
        api_version: ApiVersion,
        kind: "Validation",
        valid: errors.is_empty(),
        objects,
        errors,
    })
}

fn collect(file: &Path, changes: &mut BTreeMap<String, Change>) -> Result<(), Failure> {
    let unreadable = |e: io::Error| Failure::Usage(format!("{}: {e}", file.display()));
    if file.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(unreadable)?;
        changes.insert("-".to_owned(), Change::Text(text));
    } else if file.is_dir() {
        for entry in fs::read_dir(file).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            let manifest = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            if manifest && !hidden && path.is_file() {
                collect(&path, changes)?;
            }
        }
    } else {
        let text = fs::read(file).map_err(unreadable)?;
        let change =
            String::from_utf8(text).map_or(Change::Unreadable(None, "not UTF-8".to_owned()), Change::Text);
        changes.insert(file.display().to_string(), change);
    }
    Ok(())
}

impl Show for Validation {
    fn text(&self, _: &Style) -> String {
        let mut lines: Vec<String> = self.errors.iter().map(ToString::to_string).collect();
        lines.push(match (self.valid, self.objects) {
            (true, 1) => "1 object, nothing wrong".to_owned(),
            (true, n) => format!("{n} objects, nothing wrong"),
            (false, _) => format!("{} wrong", self.errors.len()),
        });
        lines.join("\n")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.errors.iter().filter_map(|e| e.file.clone()).collect();
        names.dedup();
        names
    }

    fn exit(&self) -> Exit {
        if self.valid { Exit::Yes } else { Exit::No }
    }
}
