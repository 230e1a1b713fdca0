//! `<run-dir>/node.json`: what the agent tells the plugin about this node.
//!
//! The file appears only when the closing dispatch is in the kernel and goes away before that does: its presence is the
//! permission to attach pods. It is replaced by rename, so a reader sees the old text or the new, never a part.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::names;

/// Its name in the run directory.
pub const FILE_NAME: &str = "node.json";

/// What holds for every attachment on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// The node's name, for messages.
    pub node_name: String,
    /// Ranges that pods of this node get their addresses from; several per family may be given.
    #[serde(default)]
    pub pod_cidrs: Vec<IpNetwork>,
    /// MTU of pod interfaces in bytes, 68 to 65535 (at least 1280 with IPv6); 0: 1500.
    #[serde(default)]
    pub mtu: u32,
    /// Prefix of host interfaces, at most [`names::MAX_PREFIX`] bytes.
    #[serde(default = "default_prefix")]
    pub interface_prefix: String,
    /// Ranges outside the pod CIDRs from which a pod may ask for a fixed address.
    #[serde(default)]
    pub pools: Vec<AddressPool>,
}

/// A range that the operator declared for fixed addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressPool {
    /// Its name, for messages.
    pub name: String,
    /// Its ranges.
    #[serde(default)]
    pub cidrs: Vec<IpNetwork>,
}

/// Why node.json could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The agent has not written it (yet), or has taken it back.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// The file system's complaint.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something else than the agent wrote it, or an agent of another version.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A value that no attachment could use.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            pod_cidrs: Vec::new(),
            mtu: 0,
            interface_prefix: default_prefix(),
            pools: Vec::new(),
        }
    }
}

impl NodeConfig {
    /// Reads and validates `<run_dir>/node.json`; host bits of ranges are cleared.
    ///
    /// # Errors
    /// [`NodeError::Missing`] without the file, the others as they say.
    pub fn read(run_dir: &Path) -> Result<Self, NodeError> {
        let path = run_dir.join(FILE_NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(NodeError::Missing(path)),
            Err(source) => return Err(NodeError::Io { path, source }),
        };
        let mut config: Self = match serde_json::from_slice(&text) {
            Ok(config) => config,
            Err(source) => return Err(NodeError::Json { path, source }),
        };
        if let Some(reason) = config.fault() {
            return Err(NodeError::Invalid { path, reason });
        }
        let pools = config.pools.iter_mut().flat_map(|pool| pool.cidrs.iter_mut());
        for cidr in config.pod_cidrs.iter_mut().chain(pools) {
            *cidr = without_host_bits(*cidr);
        }
        Ok(config)
    }

    /// Writes `<run_dir>/node.json` by a temporary file and rename within the directory. Only one process may do so.
    ///
    /// # Errors
    /// [`NodeError::Io`].
    pub fn write(&self, run_dir: &Path) -> Result<(), NodeError> {
        let path = run_dir.join(FILE_NAME);
        let temporary = run_dir.join(format!(".{FILE_NAME}.tmp"));
        let mut text = serde_json::to_vec_pretty(self).expect("a struct of strings and numbers is JSON");
        text.push(b'\n');
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
            file.write_all(&text)?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| NodeError::Io { path, source })
    }

    fn fault(&self) -> Option<String> {
        let prefix = &self.interface_prefix;
        if prefix.is_empty()
            || prefix.len() > names::MAX_PREFIX
            || !prefix.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            return Some(format!(
                "interfacePrefix {prefix:?} is not one to {} ASCII letters and digits",
                names::MAX_PREFIX
            ));
        }
        if self.mtu != 0 && !(68..=65535).contains(&self.mtu) {
            return Some(format!("mtu {} is not within 68 and 65535", self.mtu));
        }
        None
    }
}

/// Removes `<run_dir>/node.json`: no pod is attached from now on. No error when there is none.
///
/// # Errors
/// [`NodeError::Io`].
pub fn remove(run_dir: &Path) -> Result<(), NodeError> {
    let path = run_dir.join(FILE_NAME);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(NodeError::Io { path, source }),
        _ => Ok(()),
    }
}

fn default_prefix() -> String {
    names::DEFAULT_PREFIX.to_owned()
}

fn without_host_bits(cidr: IpNetwork) -> IpNetwork {
    IpNetwork::new(cidr.network(), cidr.prefix()).unwrap_or(cidr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NodeConfig {
        NodeConfig {
            node_name: "n1".to_owned(),
            pod_cidrs: vec!["10.200.1.0/24".parse().unwrap(), "fd00:200:1::/64".parse().unwrap()],
            mtu: 1450,
            interface_prefix: "manx".to_owned(),
            pools: vec![AddressPool {
                name: "fixed".to_owned(),
                cidrs: vec!["10.250.0.0/24".parse().unwrap()],
            }],
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_lies_there() {
        let dir = tempfile::tempdir().unwrap();
        config().write(dir.path()).unwrap();
        assert_eq!(NodeConfig::read(dir.path()).unwrap(), config());
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [FILE_NAME]);
    }

    #[test]
    fn fields_are_camel_case() {
        let text = serde_json::to_string(&config()).unwrap();
        for key in ["nodeName", "podCidrs", "mtu", "interfacePrefix", "pools", "cidrs"] {
            assert!(text.contains(&format!("\"{key}\":")), "{text}");
        }
    }

    #[test]
    fn a_missing_file_is_told_from_a_broken_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(NodeConfig::read(dir.path()), Err(NodeError::Missing(_))));
        fs::write(dir.path().join(FILE_NAME), "{").unwrap();
        assert!(matches!(NodeConfig::read(dir.path()), Err(NodeError::Json { .. })));
    }

    #[test]
    fn remove_is_idempotent() {
        let dir = tempfile::tempdir().unwrap();
        config().write(dir.path()).unwrap();
        remove(dir.path()).unwrap();
        remove(dir.path()).unwrap();
        assert!(matches!(NodeConfig::read(dir.path()), Err(NodeError::Missing(_))));
    }

    #[test]
    fn host_bits_of_ranges_are_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let mut written = config();
        written.pod_cidrs = vec!["10.200.1.7/24".parse().unwrap()];
        written.write(dir.path()).unwrap();
        assert_eq!(NodeConfig::read(dir.path()).unwrap().pod_cidrs, ["10.200.1.0/24".parse().unwrap()]);
    }

    #[test]
    fn a_prefix_that_leaves_no_room_for_the_hash_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for prefix in ["", "manxx", "ma/x", "a b"] {
            let mut written = config();
            written.interface_prefix = prefix.to_owned();
            written.write(dir.path()).unwrap();
            assert!(matches!(NodeConfig::read(dir.path()), Err(NodeError::Invalid { .. })), "{prefix:?}");
        }
    }
}
