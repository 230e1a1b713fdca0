//! What the container runtime and the plugin read: node.json in the run directory, the conflist in the runtime's.
//!
//! Order matters: node.json comes first and only once no pod interface is open by omission; then the plugin itself, where
//! the agent is to install it; the conflist comes last, since it is what makes the runtime call the plugin. All of them
//! appear whole, by rename within their directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use manx_cni::conflist;
use manx_cni::node::{self, NodeConfig};

use crate::desired::NodeIntent;

/// Where things are.
#[derive(Clone, Debug)]
pub struct CniConfig {
    /// Run directory of this agent.
    pub run_dir: PathBuf,
    /// Where the runtime looks for network configurations.
    pub conf_dir: PathBuf,
    /// Where the runtime looks for plugins.
    pub bin_dir: PathBuf,
    /// The plugin to keep installed there; `None`: somebody else does.
    pub plugin: Option<PathBuf>,
    /// Name of this node.
    pub node_name: String,
    /// First letters of the host ends of pods.
    pub interface_prefix: String,
}

impl CniConfig {
    /// Tells the plugin what pods get.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_node(&self, intent: &NodeIntent) -> anyhow::Result<()> {
        let config = NodeConfig {
            node_name: self.node_name.clone(),
            pod_cidrs: intent.pod_cidrs.clone(),
            mtu: intent.mtu,
            interface_prefix: self.interface_prefix.clone(),
            pools: intent.pools.clone(),
        };
        config.write(&self.run_dir).context("cannot tell the CNI plugin about this node")
    }

    /// Puts the plugin in place, where the agent is to do that; see [`install`].
    ///
    /// # Errors
    /// As [`install`].
    pub fn install_plugin(&self) -> anyhow::Result<bool> {
        match &self.plugin {
            Some(plugin) => install(plugin, &self.bin_dir),
            None => Ok(false),
        }
    }

    fn plugin_is_installed(&self) -> bool {
        self.plugin.as_deref().is_none_or(|plugin| is_installed(plugin, &self.bin_dir))
    }

    /// Tells the runtime about the plugin; returns the path. A file that says the same already is left alone, since
    /// runtimes reload on every change.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_conflist(&self) -> anyhow::Result<PathBuf> {
        let text = conflist::conflist(&self.run_dir, &self.bin_dir);
        let path = self.conf_dir.join(conflist::FILE_NAME);
        if fs::read(&path).is_ok_and(|have| have == text.as_bytes()) {
            return Ok(path);
        }
        fs::create_dir_all(&self.conf_dir)
            .with_context(|| format!("cannot make {}", self.conf_dir.display()))?;
        replace(&path, text.as_bytes())?;
        Ok(path)
    }

    /// No pod can be attached any more, and ADD says so.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn withdraw_node(&self) -> anyhow::Result<()> {
        node::remove(&self.run_dir).context("cannot take back what the CNI plugin was told")
    }

    /// All files are there.
    pub fn is_written(&self) -> bool {
        self.plugin_is_installed()
            && self.run_dir.join(node::FILE_NAME).exists()
            && self.conf_dir.join(conflist::FILE_NAME).exists()
    }

    /// Another network's configuration that the runtime prefers, because its name sorts before ours.
    pub fn overshadowed_by(&self) -> Option<PathBuf> {
        let mut names: Vec<PathBuf> =
            fs::read_dir(&self.conf_dir).ok()?.filter_map(|e| e.ok().map(|e| e.path())).collect();
        names.sort();
        let configuration = |p: &Path| {
            p.extension().and_then(|e| e.to_str()).is_some_and(|e| ["conf", "conflist", "json"].contains(&e))
        };
        let first = names.into_iter().find(|p| configuration(p))?;
        (first.file_name()? != conflist::FILE_NAME).then_some(first)
    }
}

/// Puts a plugin where the runtime looks for it, if it is another one than lies there. Returns whether it was.
///
/// The new file takes the old one's place by rename: an ADD that runs goes on with the old one, which could not be written
/// to anyway (ETXTBSY).
///
/// # Errors
/// It can't be read, or not be written there.
pub fn install(plugin: &Path, bin_dir: &Path) -> anyhow::Result<bool> {
    if is_installed(plugin, bin_dir) {
        return Ok(false);
    }
    let to = bin_dir.join(conflist::PLUGIN);
    let install = || -> io::Result<()> {
        let mut source = File::open(plugin)?;
        fs::create_dir_all(bin_dir)?;
        let hidden = bin_dir.join(format!(".{}.new", conflist::PLUGIN));
        // One that a killed agent left may have another mode.
        match fs::remove_file(&hidden) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o755).open(&hidden)?;
        io::copy(&mut source, &mut file)?;
        // Its age is how the next look knows it.
        file.set_modified(source.metadata()?.modified()?)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&hidden, &to)
    };
    install()
        .with_context(|| format!("cannot install the CNI plugin {} as {}", plugin.display(), to.display()))?;
    Ok(true)
}

/// By size and age: this is looked at every few seconds.
fn is_installed(plugin: &Path, bin_dir: &Path) -> bool {
    let of = |path: &Path| fs::metadata(path).and_then(|m| Ok((m.len(), m.modified()?))).ok();
    of(plugin).is_some() && of(plugin) == of(&bin_dir.join(conflist::PLUGIN))
}

/// A half-written file that sorts first would make the node NotReady, and a rename from another directory is not noticed
/// by everyone: written under a name that nobody reads, in the same directory, then renamed.
fn replace(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let hidden = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&hidden)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&hidden, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
