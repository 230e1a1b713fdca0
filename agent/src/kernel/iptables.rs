//! The iptables programs: which of the two back ends, restoring without disturbing others, saving.
//!
//! Text in, text out: what the rules mean is the policy engine's business. Calls block and fork; the policy thread makes
//! them.

mod standing;

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Family;
use standing::Standing;

/// How long the programs wait for the xtables lock, in seconds, before they give up and we try again later.
const LOCK_WAIT: &str = "10";

/// Which implementation holds the rules. A host must use one only: the kernel runs both, in an order of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// iptables-nft: rules in nf_tables.
    Nft,
    /// iptables-legacy: the old x_tables.
    Legacy,
}

impl Backend {
    /// Both.
    pub const BOTH: [Backend; 2] = [Backend::Nft, Backend::Legacy];

    /// The one that the host's own rules are in: where two lists of rules hold, ours belong with the others. nft where
    /// there are none.
    ///
    /// Asking iptables-legacy would load its modules; /proc says which of its tables are there already.
    ///
    /// # Errors
    /// The programs are missing or refuse to work.
    pub fn detect() -> Result<Self, IptablesError> {
        let mut legacy = 0;
        for family in Family::BOTH {
            if legacy_tables(family).is_some_and(|tables| !tables.is_empty()) {
                legacy += foreign_rules(&save(Backend::Legacy, family)?);
            }
        }
        if legacy == 0 {
            return Ok(Backend::Nft);
        }
        let mut nft = 0;
        for family in Family::BOTH {
            nft += foreign_rules(&save(Backend::Nft, family)?);
        }
        Ok(if legacy > nft { Backend::Legacy } else { Backend::Nft })
    }

    /// The one that is not this.
    pub fn other(self) -> Self {
        match self {
            Backend::Nft => Backend::Legacy,
            Backend::Legacy => Backend::Nft,
        }
    }

    fn program(self, family: Family, verb: &str) -> String {
        let tool = match family {
            Family::Ipv4 => "iptables",
            Family::Ipv6 => "ip6tables",
        };
        format!("{tool}-{self}-{verb}")
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Nft => "nft",
            Backend::Legacy => "legacy",
        })
    }
}

/// A program of iptables could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// Not installed.
    #[error("{0} is not installed: install the package iptables (1.8 or later)")]
    Missing(String),
    /// No privilege.
    #[error(
        "{0} may not change the packet filter: run as root, or with the capabilities NET_ADMIN and NET_RAW"
    )]
    Denied(String),
    /// It refused; with the line it refused, where it says which.
    #[error("{program} failed: {message}")]
    Refused {
        /// Which program.
        program: String,
        /// Its words, and the line of input that it speaks of.
        message: String,
    },
    /// It could not be run.
    #[error("{program} cannot be run: {source}")]
    Run {
        /// Which program.
        program: String,
        /// Why.
        source: io::Error,
    },
}

/// Feeds `text` to `iptables-restore --noflush`: chains that it does not name stay as they are. Each table of it takes
/// effect as a whole or not at all.
///
/// # Errors
/// With the line that was refused.
pub fn restore(backend: Backend, family: Family, text: &str) -> Result<(), IptablesError> {
    let program = backend.program(family, "restore");
    counted(|| run(&program, &mut restoring(&program), Some(text)).map(drop))
}

fn restoring(program: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["--noflush", "--wait", LOCK_WAIT]);
    command
}

fn counted<T>(change: impl FnOnce() -> T) -> T {
    BEGUN.fetch_add(1, Ordering::SeqCst);
    let result = change();
    ENDED.fetch_add(1, Ordering::SeqCst);
    result
}

/// Restores that have begun, and those that have ended.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);

/// How often we have changed rules; `None`: we are at it.
pub fn writes() -> Option<u64> {
    let ended = ENDED.load(Ordering::SeqCst);
    (BEGUN.load(Ordering::SeqCst) == ended).then_some(ended)
}

/// Restores again and again: on nft with a program of each family that stays between changes. On legacy most of a change is
/// the kernel's copying of whole tables, and the program holds a lock that others wait for: there it is started each time.
#[derive(Debug)]
pub struct Restorer {
    backend: Backend,
    standing: [Mutex<Option<Standing>>; 2],
}

impl Restorer {
    /// Nothing runs before the first change.
    pub fn new(backend: Backend) -> Self {
        Restorer { backend, standing: Default::default() }
    }

    /// As [`restore`], in the network namespace of the thread that made the first change of this family.
    ///
    /// # Errors
    /// As those of [`restore`].
    pub fn restore(&self, family: Family, text: &str) -> Result<(), IptablesError> {
        if self.backend == Backend::Legacy {
            return restore(self.backend, family, text);
        }
        let slot = &self.standing[usize::from(family == Family::Ipv6)];
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let program = self.backend.program(family, "restore");
        let running = match slot.take().and_then(Standing::alive) {
            Some(running) => running,
            None => match Standing::start(&mut restoring(&program)) {
                Ok(started) => started,
                Err(error) => {
                    tracing::debug!(program, %error, "no program can stay: one is started for each change");
                    return restore(self.backend, family, text);
                }
            },
        };
        remember_writer(running.id());
        match counted(|| running.change(text)) {
            Ok(running) => {
                *slot = Some(running);
                Ok(())
            }
            Err(ended) => {
                let how = ended.status.map_or("it did not answer".to_owned(), |status| status.to_string());
                Err(refusal(&program, ended.words, &how, |words| {
                    refused_line(words, ended.lines_before, text)
                }))
            }
        }
    }
}

/// Processes that have lately changed rules for us.
static WRITERS: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());
/// More than can have written since a notification was sent.
const WRITERS_KEPT: usize = 64;

fn remember_writer(pid: u32) {
    let mut writers = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
    if writers.len() == WRITERS_KEPT {
        writers.pop_front();
    }
    writers.push_back(pid);
}

/// Has this process lately changed rules for us? A process that was given the same id much later is not meant.
pub fn is_own_writer(pid: u32) -> bool {
    WRITERS.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
}

/// The rules of all tables that are there, as `iptables-save` prints them.
///
/// # Errors
/// The program is missing or fails, or a table holds what iptables cannot represent.
pub fn save(backend: Backend, family: Family) -> Result<String, IptablesError> {
    let program = backend.program(family, "save");
    let output = run(&program, &mut Command::new(&program), None)?;
    whole(&program, String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same with the counters of each rule.
///
/// # Errors
/// As those of [`save`].
pub fn save_counters(backend: Backend, family: Family) -> Result<String, IptablesError> {
    let program = backend.program(family, "save");
    let output = run(&program, Command::new(&program).arg("-c"), None)?;
    whole(&program, String::from_utf8_lossy(&output.stdout).into_owned())
}

/// It leaves a table out, says so in a comment and calls that success: rules would be taken for gone.
fn whole(program: &str, saved: String) -> Result<String, IptablesError> {
    match saved.lines().find(|line| line.starts_with("# Table") && line.contains("incompatible")) {
        Some(line) => Err(IptablesError::Refused {
            program: program.to_owned(),
            message: format!(
                "{}: rules that another nft program put there must go to a table of their own",
                line.trim_start_matches("# ")
            ),
        }),
        None => Ok(saved),
    }
}

/// One table, as `iptables-save -t` prints it; a table that is not there is empty.
///
/// # Errors
/// As those of [`save`].
pub fn save_table(backend: Backend, family: Family, table: &str) -> Result<String, IptablesError> {
    // iptables-legacy-save makes the table where there is none.
    if backend == Backend::Legacy
        && legacy_tables(family).is_none_or(|tables| !tables.iter().any(|t| t == table))
    {
        return Ok(String::new());
    }
    let program = backend.program(family, "save");
    let output = run(&program, Command::new(&program).args(["-t", table]), None)?;
    whole(&program, String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The tables of iptables-legacy that are loaded in this namespace; `None`: its modules are not.
pub fn legacy_tables(family: Family) -> Option<Vec<String>> {
    let path = match family {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let text = fs::read_to_string(path).ok()?;
    Some(text.lines().map(str::to_owned).collect())
}

/// Rules that are not ours.
fn foreign_rules(save: &str) -> usize {
    save.lines().filter(|line| line.starts_with("-A ") && !line.contains("MANX-")).count()
}

fn run(program: &str, command: &mut Command, input: Option<&str>) -> Result<Output, IptablesError> {
    let failed = |source| match io::Error::kind(&source) {
        io::ErrorKind::NotFound => IptablesError::Missing(program.to_owned()),
        _ => IptablesError::Run { program: program.to_owned(), source },
    };
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child =
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    if input.is_some() {
        remember_writer(child.id());
    }
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that stops reading says why on stderr, which is worth more than our broken pipe.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(output);
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let line_of = |words: &str| refused_line(words, 0, input?);
    Err(refusal(program, words, &output.status.to_string(), line_of))
}

/// What a program's last words mean; without any, how it ended.
fn refusal<'a>(
    program: &str,
    words: String,
    how: &str,
    line_of: impl FnOnce(&str) -> Option<&'a str>,
) -> IptablesError {
    if words.contains("Permission denied") || words.contains("you must be root") {
        return IptablesError::Denied(program.to_owned());
    }
    let message = match line_of(&words) {
        Some(line) => format!("{words}: {line}"),
        None if words.is_empty() => how.to_owned(),
        None => words,
    };
    IptablesError::Refused { program: program.to_owned(), message }
}

/// The line of input that an error of iptables-restore speaks of ("line 7 failed", "line: 7"); it counts those of earlier
/// input as well.
fn refused_line<'a>(words: &str, lines_before: usize, input: &'a str) -> Option<&'a str> {
    let after = &words[words.find("line")? + 4..];
    let digits: String =
        after.trim_start_matches([':', ' ']).chars().take_while(char::is_ascii_digit).collect();
    let number: usize = digits.parse().ok()?;
    input.lines().nth(number.checked_sub(lines_before + 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_the_line_it_speaks_of() {
        let input = "*filter\n-A NOWHERE -j ACCEPT\nCOMMIT\n";
        assert_eq!(refused_line("iptables-restore: line 2 failed", 0, input), Some("-A NOWHERE -j ACCEPT"));
        assert_eq!(
            refused_line("iptables-restore v1.8.9 (nf_tables): \nline 3: X failed", 0, input),
            Some("COMMIT")
        );
        assert_eq!(refused_line("line 12 failed", 10, input), Some("-A NOWHERE -j ACCEPT"));
        assert_eq!(refused_line("line 10 failed", 10, input), None);
        assert_eq!(refused_line("Another app is currently holding the xtables lock", 0, input), None);
    }

    #[test]
    fn a_missing_tool_names_the_package_to_install() {
        let e = run("iptables-none-save", &mut Command::new("iptables-none-save"), None).unwrap_err();
        assert_eq!(
            e.to_string(),
            "iptables-none-save is not installed: install the package iptables (1.8 or later)"
        );
    }

    #[test]
    fn only_rules_of_others_decide_about_the_back_end() {
        let save = "*filter\n:MANX-FORWARD - [0:0]\n-A FORWARD -j MANX-FORWARD\n-A FORWARD -j KUBE-FORWARD\nCOMMIT\n";
        assert_eq!(foreign_rules(save), 1);
    }
}
