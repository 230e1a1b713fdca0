//! Unix sockets in the run directory: who may connect is decided by the file mode, before a single byte is read.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use tokio::net::UnixListener;

/// Makes the run directory if it is missing, with mode 0755.
///
/// # Errors
/// When it can't be made, or the path is something else than a directory.
pub fn prepare_run_dir(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the run directory {}", dir.display()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot set the mode of {}", dir.display()))
}

/// Listens on `path` with exactly `mode`.
///
/// A socket that a dead predecessor left is replaced. One that still answers belongs to a living agent, and two agents
/// on one run directory would fight over the kernel: that is refused.
///
/// # Errors
/// When another agent answers there, or the socket can't be made.
pub fn listen(path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!(
            "{} is served by another agent: stop it, or give this one its own --run-dir",
            path.display()
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(_) => fs::remove_file(path)
            .with_context(|| format!("cannot remove the stale socket {}", path.display()))?,
    }
    // Bound under a name that nobody looks for and moved into place once its mode is right: no instant at which a
    // stranger could connect.
    let hidden = path.with_extension("new");
    let _ = fs::remove_file(&hidden);
    let listener =
        UnixListener::bind(&hidden).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(mode))
        .and_then(|()| fs::rename(&hidden, path))
        .with_context(|| format!("cannot put {} in place", path.display()))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_living_agents_socket_is_not_taken_but_a_dead_ones_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = listen(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&path, 0o600).unwrap_err().to_string().contains("another agent"));
        drop(first);
        assert!(path.exists());
        listen(&path, 0o600).unwrap();
    }
}
