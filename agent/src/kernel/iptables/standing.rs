//! A restore program that stays between changes.
//!
//! It commits what it has read whenever it reads `COMMIT`, so that one process can carry out any number of changes. Starting
//! one for each costs two milliseconds, and ending it much more: where a change has deleted rules, the kernel lets a closing
//! nf_tables socket wait for their end, an RCU grace period of some 15 ms, and holds up meanwhile every other writer and
//! every interface that comes or goes. A socket that stays open waits for nothing.
//!
//! The program says nothing when it is done, but with `--verbose` it repeats comments, and on a terminal it does so at once:
//! each change is followed by a comment of its own, and when that comes back the change is in the kernel.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;

/// More than any change takes: a cold start with a hundred thousand rules is a matter of seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is kept of its words.
const MAX_WORDS: usize = 16 << 10;

/// A running restore program.
#[derive(Debug)]
pub(super) struct Standing {
    child: Child,
    stdin: ChildStdin,
    stderr: ChildStderr,
    /// Our end of the terminal that it writes to.
    terminal: File,
    changes: u64,
    /// What it has read so far: it counts lines from its start.
    lines: usize,
}

/// The program has ended, or had to be ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// What it said.
    pub(super) words: String,
    /// How it ended; `None`: it did not answer.
    pub(super) status: Option<ExitStatus>,
    /// Lines that it had read before this change.
    pub(super) lines_before: usize,
}

impl Standing {
    /// Starts it, in the calling thread's network namespace.
    ///
    /// # Errors
    /// It cannot be run, or there is no terminal to be had.
    pub(super) fn start(command: &mut Command) -> io::Result<Standing> {
        let (terminal, its_end) = open_terminal()?;
        let mut child =
            command.arg("--verbose").stdin(Stdio::piped()).stdout(its_end).stderr(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().expect("stdin is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        for fd in [stdin.as_fd(), stderr.as_fd(), terminal.as_fd()] {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Standing { child, stdin, stderr, terminal, changes: 0, lines: 0 })
    }

    /// Its process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Itself, unless somebody has ended it meanwhile.
    pub(super) fn alive(mut self) -> Option<Standing> {
        matches!(self.child.try_wait(), Ok(None)).then_some(self)
    }

    /// Carries out a change, which ends with a `COMMIT`.
    ///
    /// # Errors
    /// It was refused; the program has ended.
    pub(super) fn change(mut self, text: &str) -> Result<Standing, Ended> {
        self.changes += 1;
        let token = format!("# change {}.", self.changes);
        let input = format!("{}\n{token}\n", text.trim_end());
        let mut unsent = input.as_bytes();
        let (mut said, mut words) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.last_words(&words, None));
            }
            let [writable, readable, spoken] = self.wait(!unsent.is_empty(), left);
            if spoken {
                // It closes its stderr by ending.
                if take(&mut self.stderr, &mut words).is_err() {
                    return Err(self.ended(&words));
                }
                words.truncate(MAX_WORDS);
            }
            if readable {
                // An error is its end, which stderr shows as well.
                let _ = take(&mut self.terminal, &mut said);
                if contains(&said, token.as_bytes()) {
                    self.lines += input.lines().count();
                    return Ok(self);
                }
                // Of what else it says only the end is kept: the comment may come in parts.
                said.drain(..said.len().saturating_sub(token.len()));
            }
            if writable {
                match self.stdin.write(unsent) {
                    Ok(len) => unsent = &unsent[len..],
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    // It stopped reading, and says why on stderr.
                    Err(_) => unsent = &[],
                }
            }
        }
    }

    /// Waits for room in its stdin, if there is something to send, for a comment, or for words.
    fn wait(&self, sending: bool, left: Duration) -> [bool; 3] {
        let mut fds = [
            PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stderr.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stdin.as_fd(), PollFlags::POLLOUT),
        ];
        let watched = if sending { &mut fds[..] } else { &mut fds[..2] };
        let _ = poll(watched, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        [sending && ready(&fds[2]), ready(&fds[0]), ready(&fds[1])]
    }

    /// Its stderr is closed: it is on its way out, and its status is there in a moment.
    fn ended(mut self, words: &[u8]) -> Ended {
        let status = self.child.wait().ok();
        self.last_words(words, status)
    }

    fn last_words(&self, words: &[u8], status: Option<ExitStatus>) -> Ended {
        let words = String::from_utf8_lossy(words).trim().to_owned();
        Ended { words, status, lines_before: self.lines }
    }
}

/// Between changes it holds nothing that could be lost.
impl Drop for Standing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes some of what there is to read; whether there was anything.
///
/// # Errors
/// The other side has closed it.
fn take(from: &mut impl Read, into: &mut Vec<u8>) -> io::Result<bool> {
    let mut octets = [0; 4096];
    match from.read(&mut octets) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(len) => {
            into.extend_from_slice(&octets[..len]);
            Ok(true)
        }
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        Err(e) => Err(e),
    }
}

fn contains(text: &[u8], token: &[u8]) -> bool {
    text.windows(token.len()).any(|window| window == token)
}

/// Both ends of a terminal that controls nobody: ours and the program's.
fn open_terminal() -> io::Result<(File, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let ours = posix_openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let its = open(ptsname_r(&ours)?.as_str(), flags, Mode::empty())?;
    Ok((File::from(OwnedFd::from(ours)), its))
}
