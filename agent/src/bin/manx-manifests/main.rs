//! `manx-manifests DIR`: writes what is generated of the folder `manifests`; without DIR it prints the definitions of our kinds.
//!
//! ```text
//! config::*Spec ------------> base/crds/*.yaml -----+
//! source::kube::kinds ------> base/rbac.yaml -------+--> install.yaml
//! base/*.yaml (by hand) ----------------------------+--> chart/templates, chart/crds
//! ```
//!
//! The tests compare the folder with what this would write, so that a change of a type, of a right or of the base without
//! `make install-yaml` does not pass.
#![forbid(unsafe_code)]

mod crds;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Generated files by their paths within `manifests`.
type Files = BTreeMap<PathBuf, String>;

fn main() -> ExitCode {
    match std::env::args_os().nth(1).map(PathBuf::from) {
        None => {
            print!("{}", crds::files().into_values().collect::<Vec<_>>().join("---\n"));
            ExitCode::SUCCESS
        }
        Some(dir) => match write(&dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("manx-manifests: {e}");
                ExitCode::FAILURE
            }
        },
    }
}

fn write(dir: &Path) -> Result<(), String> {
    for (path, text) in generate(dir)? {
        let path = dir.join(path);
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        std::fs::write(&path, text).map_err(failed)?;
    }
    Ok(())
}

/// All generated files, from the types and from the files by hand in `dir`.
fn generate(_dir: &Path) -> Result<Files, String> {
    let mut files = Files::new();
    for (name, text) in crds::files() {
        files.insert(Path::new("base/crds").join(name), text);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_holds_what_is_generated() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
        for (path, text) in generate(&dir).unwrap() {
            let there = std::fs::read_to_string(dir.join(&path)).unwrap_or_default();
            assert!(there == text, "{} is not up to date: run `make install-yaml`", path.display());
        }
    }
}
