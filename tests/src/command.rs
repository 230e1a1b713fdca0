//! Running tools: their output, or an error that holds the command line and what the tool said.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// A command from words separated by white space, for tools whose arguments hold none.
pub fn words(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or its status is not zero; the error names the command and holds its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("cannot run {}", line(command)))?;
    if !out.status.success() {
        bail!("{} ended with {}: {}", line(command), out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs words separated by white space, see [`output`].
///
/// # Errors
/// As [`output`].
pub fn run(line: &str) -> Result<String> {
    output(&mut words(line))
}

/// Runs `command` and reads its standard output as JSON; no output at all is `null`.
///
/// # Errors
/// As [`output`], and when the output is not JSON.
pub fn json(command: &mut Command) -> Result<serde_json::Value> {
    let text = output(command)?;
    if text.trim().is_empty() {
        return Ok(serde_json::Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("{} did not print JSON: {text}", line(command)))
}

/// The command as one would type it.
pub fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
