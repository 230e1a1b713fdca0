//! `config import`: other networks' objects as ours.

use std::path::PathBuf;

use manx_agent::foreign::{self, Origin};
use manx_agent::view::ApiVersion;
use serde::Serialize;
use serde_json::Value;

use crate::cli::ImportFrom;
use crate::client::Failure;
use crate::output::{Exit, Printer, Show, Style};
use crate::policy;
use crate::show::printable;

/// What they mean here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Import {
    api_version: ApiVersion,
    kind: &'static str,
    objects: Vec<Value>,
    remarks: Vec<Remark>,
}

#[derive(Debug, Serialize)]
struct Remark {
    object: String,
    reason: String,
}

pub(crate) fn run(origin: ImportFrom, files: &[PathBuf], printer: &Printer) -> Result<Exit, Failure> {
    let mut documents = Vec::new();
    for file in files {
        let text = policy::read(file)?;
        let read: Vec<Value> = serde_saphyr::from_multiple(&text)
            .map_err(|e| Failure::Usage(format!("{}: not YAML: {e}", file.display())))?;
        documents.extend(read);
    }
    let origin = match origin {
        ImportFrom::Calico => Origin::Calico,
        ImportFrom::KubeRouter => Origin::KubeRouter,
        ImportFrom::Metallb => Origin::MetalLb,
    };
    let translation = foreign::translate(origin, &documents);
    let remarks = translation.remarks.into_iter();
    printer.print(&Import {
        api_version: ApiVersion,
        kind: "Import",
        objects: translation.objects,
        remarks: remarks.map(|r| Remark { object: r.object, reason: r.reason }).collect(),
    })
}

impl Show for Import {
    /// A manifest, with what could not be taken over as comments at its head.
    fn text(&self, _: &Style) -> String {
        let mut text: String = self
            .remarks
            .iter()
            .map(|r| format!("# {}: {}\n", printable(&r.object), printable(&r.reason)))
            .collect();
        for object in &self.objects {
            text += "---\n";
            text += &serde_saphyr::to_string(object).expect("plain data has a text");
        }
        text
    }

    fn names(&self) -> Vec<String> {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.objects
            .iter()
            .map(|o| format!("{}/{}", word(&o["kind"]), word(&o["metadata"]["name"])))
            .collect()
    }

    fn exit(&self) -> Exit {
        if self.remarks.is_empty() { Exit::Yes } else { Exit::Partial }
    }
}
