//! Formats, exit status, colour: how a document leaves the program.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use manx_agent::view::EpochSeconds;
use serde::Serialize;

use crate::cli::Format;
use crate::client::Failure;

/// What the exit status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Yes, healthy, allowed.
    Yes,
    /// No: down, absent, wrong.
    No,
    /// The command line makes no sense.
    Usage,
    /// The agent cannot be asked.
    Unreachable,
    /// Something of the answer is missing.
    Partial,
    /// We may not ask.
    Permission,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Yes => 0,
            Exit::No => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::Partial => 4,
            Exit::Permission => 5,
        })
    }
}

/// A document that can be shown.
pub(crate) trait Show: Serialize {
    /// For people.
    fn text(&self, style: &Style) -> String;
    /// Names of what is in it.
    fn names(&self) -> Vec<String>;
    /// What it answers.
    fn exit(&self) -> Exit {
        Exit::Yes
    }
}

/// How to write for people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// With more columns.
    pub(crate) wide: bool,
    /// In colour.
    pub(crate) colour: bool,
    /// The time from which ages are counted.
    pub(crate) now: EpochSeconds,
}

/// Writes documents in the format that was asked for.
pub(crate) struct Printer {
    format: Format,
    watching: Cell<bool>,
    /// What the last round of a watch wrote.
    last: RefCell<String>,
    closed: Cell<bool>,
}

impl Printer {
    pub(crate) fn new(format: Format) -> Self {
        Printer {
            format,
            watching: Cell::new(false),
            last: RefCell::new(String::new()),
            closed: Cell::new(false),
        }
    }

    /// A round of a watch begins.
    pub(crate) fn next_round(&self) {
        self.watching.set(true);
    }

    /// Nobody reads any more.
    pub(crate) fn closed(&self) -> bool {
        self.closed.get()
    }

    pub(crate) fn print<T: Show>(&self, document: &T) -> Result<Exit, Failure> {
        let unprintable = |e: &dyn std::fmt::Display| Failure::Usage(format!("cannot be printed: {e}"));
        let mut text = match self.format {
            Format::Table | Format::Wide => document.text(&self.style()),
            Format::Json if self.watching.get() => {
                serde_json::to_string(document).map_err(|e| unprintable(&e))?
            }
            Format::Json => serde_json::to_string_pretty(document).map_err(|e| unprintable(&e))?,
            Format::Yaml => serde_saphyr::to_string(document).map_err(|e| unprintable(&e))?,
            Format::Name => document.names().join("\n"),
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        self.put(text);
        Ok(document.exit())
    }

    /// One of many documents, as they come: a line, or what takes the place of one.
    pub(crate) fn line<T: Show>(&self, document: &T) -> Result<(), Failure> {
        let unprintable = |e: &dyn std::fmt::Display| Failure::Usage(format!("cannot be printed: {e}"));
        let mut text = match self.format {
            Format::Table | Format::Wide => document.text(&self.style()),
            Format::Json => serde_json::to_string(document).map_err(|e| unprintable(&e))?,
            Format::Yaml => {
                format!("---\n{}", serde_saphyr::to_string(document).map_err(|e| unprintable(&e))?)
            }
            Format::Name => document.names().join("\n"),
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        if !write(text.as_bytes()) {
            self.closed.set(true);
        }
        Ok(())
    }

    /// The reason goes to standard error; who reads JSON gets the error document as well.
    pub(crate) fn failure(&self, failure: &Failure) {
        if let (Format::Json, Failure::Refused(error)) = (self.format, failure) {
            let text = serde_json::to_string(error).expect("an error document is plain data");
            self.put(text + "\n");
        }
        _ = writeln!(io::stderr(), "manxctl: {failure}");
    }

    fn put(&self, text: String) {
        if self.watching.get() {
            if *self.last.borrow() == text && self.format != Format::Table && self.format != Format::Wide {
                return;
            }
            let screen = matches!(self.format, Format::Table | Format::Wide) && io::stdout().is_terminal();
            if screen && !write(b"\x1b[H\x1b[2J") {
                self.closed.set(true);
            }
        }
        if !write(text.as_bytes()) {
            self.closed.set(true);
        }
        *self.last.borrow_mut() = text;
    }

    fn style(&self) -> Style {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Style { wide: self.format == Format::Wide, colour: wanted && io::stdout().is_terminal(), now }
    }
}

/// Writes to standard output. Whether anybody reads it: a closed pipe (`| head`) is no error.
pub(crate) fn write(bytes: &[u8]) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).is_ok()
}
