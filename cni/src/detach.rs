//! Work that outlives the plugin: a forked child, out of the runtime's sight.
//!
//! Deleting a link keeps the caller in the kernel for 20 ms after the link is gone. A thread would keep the process; a
//! child with its standard streams on /dev/null keeps nobody. It gets no session of its own: setsid(2) makes a scheduling
//! group, which costs milliseconds on a busy node, and a child that is killed before the kernel has its request is seen
//! by its parent. This is the crate's only `unsafe`.

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;

use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork};

/// A child at work.
#[derive(Debug)]
pub(crate) struct Child(Pid);

impl Child {
    /// Has it ended, and with success? `None` while it works.
    pub(crate) fn ended(&self) -> Option<bool> {
        match waitpid(self.0, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, status)) => Some(status == 0),
            Ok(WaitStatus::Signaled(..)) | Err(_) => Some(false),
            Ok(_) => None,
        }
    }
}

/// Does `work` in a child; its answer becomes the exit status. Only from a process of one thread.
///
/// # Errors
/// fork(2)'s, or the process has more threads than one.
pub(crate) fn run(work: impl FnOnce() -> bool) -> io::Result<Child> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("fork with {threads} threads")));
    }
    // SAFETY: the process has one thread, so no lock of the allocator or of std is held by a thread that the child
    // does not have.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Child(child)),
        ForkResult::Child => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| alone().is_ok() && work()));
            // SAFETY: _exit(2) is always allowed; unlike exit(3) it flushes no buffer that the parent will flush, too.
            unsafe { libc::_exit(i32::from(!done.unwrap_or(false))) }
        }
    }
}

/// Lets go of what the parent has open: the runtime waits for the end of stdout, not only of the plugin, and locks of the
/// store would outlive the plugin by the kernel's 20 ms.
fn alone() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    // SAFETY: nothing in this process uses these descriptors any more: `work` opens its own, and _exit(2) drops no owner.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
