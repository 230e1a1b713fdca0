//! Unix sockets in the run directory: who may connect is decided by the file mode, before a single byte is read.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::net::UnixListener;

/// The run directory, ours for as long as this lives.
#[derive(Debug)]
pub struct RunDir {
    _lock: File,
}

/// A predecessor that was killed holds its files until its last thread is gone, which its supervisor may not wait for.
const DYING: Duration = Duration::from_secs(1);

/// Makes the run directory if it is missing, with mode 0755, and takes it: two agents on one run directory would fight
/// over sockets and kernel. The lock ends with the process, however that ends.
///
/// # Errors
/// When it can't be made, the path is something else than a directory, or another agent still has it after a second.
pub fn take_run_dir(dir: &Path) -> anyhow::Result<RunDir> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the run directory {}", dir.display()))?;
    let lock = File::open(dir).with_context(|| format!("cannot open the run directory {}", dir.display()))?;
    let deadline = Instant::now() + DYING;
    let locked = loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(DYING / 50),
            other => break other,
        }
    };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!(
            "the run directory {} is another agent's: stop it, or give this one its own --run-dir",
            dir.display()
        ),
        Err(TryLockError::Error(e)) => {
            return Err(e).with_context(|| format!("cannot lock the run directory {}", dir.display()));
        }
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot set the mode of {}", dir.display()))?;
    Ok(RunDir { _lock: lock })
}

/// Listens on `path`, in a run directory that is ours, with exactly `mode`. What a dead predecessor left is replaced.
///
/// # Errors
/// When the socket can't be made.
pub fn listen(_: &RunDir, path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
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
    async fn a_living_agents_run_directory_is_not_taken_but_a_dead_ones_is_with_its_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let run_dir = take_run_dir(dir.path()).unwrap();
        let first = listen(&run_dir, &path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(take_run_dir(dir.path()).unwrap_err().to_string().contains("another agent"));
        drop((first, run_dir));
        assert!(path.exists());
        listen(&take_run_dir(dir.path()).unwrap(), &path, 0o600).unwrap();
    }
}
