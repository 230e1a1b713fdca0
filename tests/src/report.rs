//! Check lines: what was checked, whether it holds, and what was observed; with a count at the end.

use std::fmt::Display;
use std::time::Duration;

/// Prints check lines as they come and counts them.
#[derive(Debug, Default)]
pub struct Report {
    passed: usize,
    failed: Vec<String>,
}

impl Report {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prints a heading.
    pub fn section(&self, title: &str) {
        println!("\n== {title}");
    }

    /// One check: it holds or it does not, and this is what was seen.
    pub fn check(&mut self, what: &str, holds: bool, observed: impl Display) {
        if holds {
            self.passed += 1;
            println!("  pass  {what}: {observed}");
        } else {
            self.failed.push(what.to_owned());
            println!("  FAIL  {what}: {observed}");
        }
    }

    /// One check of a time against its limit.
    pub fn within(&mut self, what: &str, limit: Duration, observed: Result<Duration, String>) {
        match observed {
            Ok(took) => {
                self.check(what, took <= limit, format_args!("{} (limit {})", Ms(took), Ms(limit)));
            }
            Err(complaint) => self.check(what, false, format_args!("{complaint} (limit {})", Ms(limit))),
        }
    }

    /// A check that could not be made is one that failed.
    pub fn error(&mut self, what: &str, error: &anyhow::Error) {
        self.check(what, false, format_args!("{error:#}"));
    }

    /// How many failed.
    pub fn failed(&self) -> usize {
        self.failed.len()
    }

    /// Prints the last line: `lab: N passed, N failed`.
    pub fn finish(&self, name: &str) {
        if !self.failed.is_empty() {
            println!("\nfailed:");
            for what in &self.failed {
                println!("  {what}");
            }
        }
        println!("\n{name}: {} passed, {} failed", self.passed, self.failed.len());
    }
}

/// A duration in milliseconds, with a digit or two where they mean something.
#[derive(Clone, Copy, Debug)]
pub struct Ms(pub Duration);

impl Display for Ms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = self.0.as_secs_f64() * 1000.0;
        match ms {
            _ if ms >= 100.0 => write!(f, "{ms:.0} ms"),
            _ if ms >= 10.0 => write!(f, "{ms:.1} ms"),
            _ => write!(f, "{ms:.2} ms"),
        }
    }
}
