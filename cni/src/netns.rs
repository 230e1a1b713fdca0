//! Network namespaces by path, and being in one for a moment.
//!
//! The plugin has one thread; a library user that has more calls this on a thread of its own. Knows nothing of links.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::O_NONBLOCK;
use nix::sched::{CloneFlags, setns};

/// Where the process is now.
const OWN: &str = "/proc/thread-self/ns/net";

/// Why a path is not the namespace of a pod.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// It can't be opened.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A file, but no namespace: its bind mount is gone, or never was.
    #[error("it is not a namespace")]
    NotANamespace,
    /// The plugin's own: wiring it would take the node off the network.
    #[error("it is the namespace of the node itself")]
    Own,
}

/// An open network namespace and the way back.
#[derive(Debug)]
pub struct Netns {
    target: File,
    own: File,
}

impl Netns {
    /// Opens a path as CNI_NETNS gives it.
    ///
    /// # Errors
    /// See [`NetnsError`].
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        // Whatever the path is, opening it does not wait.
        let target = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
        let own = File::open(OWN)?;
        let (theirs, ours) = (target.metadata()?, own.metadata()?);
        // All namespaces lie on one file system, nsfs.
        if theirs.dev() != ours.dev() {
            return Err(NetnsError::NotANamespace);
        }
        if theirs.ino() == ours.ino() {
            return Err(NetnsError::Own);
        }
        Ok(Self { target, own })
    }

    /// Does the path lead to a namespace? A path that can't be looked at counts as one.
    pub fn exists(path: &Path) -> bool {
        match (fs::metadata(path), fs::metadata(OWN)) {
            (Ok(theirs), Ok(ours)) => theirs.dev() == ours.dev(),
            (Err(e), _) => e.kind() != io::ErrorKind::NotFound,
            (_, Err(_)) => true,
        }
    }

    /// Does `work` with the calling thread inside.
    ///
    /// # Errors
    /// setns(2)'s, on the way in (`work` is not done) or on the way back.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        setns(&self.target, CloneFlags::CLONE_NEWNET)?;
        let done = work();
        setns(&self.own, CloneFlags::CLONE_NEWNET)?;
        Ok(done)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.target.as_fd()
    }
}
