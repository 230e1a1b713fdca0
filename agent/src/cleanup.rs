//! `manx-agent cleanup`: removes what Manx put into this namespace's kernel and onto this node, and nothing else.

use std::fs;
use std::path::Path;

use anyhow::bail;
use manx_cni::node::NodeConfig;
use manx_cni::{agent, conflist, node};

use crate::kernel::cleanup;
use crate::view::paths;
use crate::{drained, prepare};

/// The plugin's store within the run directory.
const ATTACHMENTS: &str = "ipam";

/// Removes everything of ours; lists it on standard output, a line each. With live pods it wants `force`. Pod interfaces
/// begin with `prefix`, or with what the agent has told the plugin.
///
/// # Errors
/// Pods are attached and `force` was not given; or something could not be removed, after all else was tried.
pub fn run(
    force: bool,
    run_dir: &Path,
    cni_conf_dir: &Path,
    cni_bin_dir: Option<&Path>,
    iproute2_dir: Option<&Path>,
    prefix: &str,
) -> anyhow::Result<()> {
    let mut links = cleanup::pod_links(prefix).map_err(anyhow::Error::msg)?;
    if let Ok(node) = NodeConfig::read(run_dir)
        && node.interface_prefix != prefix
    {
        links.extend(cleanup::pod_links(&node.interface_prefix).map_err(anyhow::Error::msg)?);
    }
    if !links.is_empty() && !force {
        bail!(
            "{} ({}): delete them first, or give --force, which cuts them off",
            if links.len() == 1 {
                "1 pod is attached".to_owned()
            } else {
                format!("{} pods are attached", links.len())
            },
            links.join(", ")
        );
    }
    // The runtime stops calling the plugin before the plugin and its state go.
    let plugin = cni_bin_dir.map(|dir| dir.join(conflist::PLUGIN));
    let files = [cni_conf_dir.join(conflist::FILE_NAME), run_dir.join(node::FILE_NAME)];
    for file in files.into_iter().chain(plugin) {
        if fs::remove_file(&file).is_ok() {
            println!("removed {}", file.display());
        }
    }
    if let Some(file) = iproute2_dir.and_then(prepare::forget_protocol) {
        println!("removed {}", file.display());
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
    // What a stopped agent leaves behind; the directory itself goes where nothing else is in it.
    for left in [paths::ADMIN_SOCKET, paths::READ_ONLY_SOCKET, agent::SOCKET, drained::FILE] {
        _ = fs::remove_file(run_dir.join(left));
    }
    if fs::remove_dir(run_dir).is_ok() {
        println!("removed {}", run_dir.display());
    }
    if !failures.is_empty() {
        bail!("not everything could be removed: {}", failures.join("; "));
    }
    Ok(())
}
