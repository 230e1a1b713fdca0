//! `manx-agent cleanup`: removes what Manx put into this namespace's kernel and onto this node, and nothing else.

use std::fs;
use std::path::Path;

use anyhow::bail;
use manx_cni::{conflist, node};

use crate::kernel::cleanup;

/// What begins the names of pod interfaces, unless the agent was told otherwise.
const INTERFACE_PREFIX: &str = "manx";

/// The plugin's store within the run directory.
const ATTACHMENTS: &str = "ipam";

/// Removes everything of ours; lists it on standard output, a line each. With live pods it wants `force`.
///
/// # Errors
/// Pods are attached and `force` was not given; or something could not be removed, after all else was tried.
pub fn run(force: bool, run_dir: &Path, cni_conf_dir: &Path) -> anyhow::Result<()> {
    let links = cleanup::pod_links(INTERFACE_PREFIX).map_err(anyhow::Error::msg)?;
    if !links.is_empty() && !force {
        bail!(
            "{} pods are attached ({}): delete them first, or give --force, which cuts them off",
            links.len(),
            links.join(", ")
        );
    }
    // The runtime stops calling the plugin before the plugin's state goes.
    for file in [cni_conf_dir.join(conflist::FILE_NAME), run_dir.join(node::FILE_NAME)] {
        if fs::remove_file(&file).is_ok() {
            println!("removed {}", file.display());
        }
    }
    let mut failures = Vec::new();
    for removal in cleanup::remove_links(&links).into_iter().chain(cleanup::remove()) {
        match removal {
            Ok(what) => println!("removed {what}"),
            Err(reason) => failures.push(reason),
        }
    }
    let attachments = run_dir.join(ATTACHMENTS);
    if fs::remove_dir_all(&attachments).is_ok() {
        println!("removed {}", attachments.display());
    }
    if !failures.is_empty() {
        bail!("not everything could be removed: {}", failures.join("; "));
    }
    Ok(())
}
