//! What is wrong with a field, and the collection in which validation gathers it.

use std::fmt;

/// Something wrong with a field, worded for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Issue {
    /// Path of the field from the object's root, such as `spec.families[1]`.
    pub path: String,
    /// The value and what it should be.
    pub reason: String,
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// Issues found so far in one object.
#[derive(Debug, Default)]
pub(super) struct Issues(Vec<Issue>);

impl Issues {
    /// Adds one.
    pub(super) fn add(&mut self, path: impl Into<String>, reason: impl fmt::Display) {
        self.0.push(Issue { path: path.into(), reason: reason.to_string() });
    }

    /// The value, or `None` with the error noted.
    pub(super) fn take<T, E: fmt::Display>(
        &mut self,
        path: impl Into<String>,
        value: Result<T, E>,
    ) -> Option<T> {
        match value {
            Ok(v) => Some(v),
            Err(e) => {
                self.add(path, e);
                None
            }
        }
    }

    /// The value in force: what the field says, or the default where it says nothing or nothing usable.
    pub(super) fn or<T, E: fmt::Display>(
        &mut self,
        path: &str,
        value: Option<Result<T, E>>,
        default: T,
    ) -> T {
        value.and_then(|v| self.take(path, v)).unwrap_or(default)
    }

    /// Each element of a list, its index in the path.
    pub(super) fn each<R, T, E: fmt::Display>(
        &mut self,
        path: &str,
        raw: &[R],
        parse: impl Fn(&R) -> Result<T, E>,
    ) -> Vec<T> {
        raw.iter().enumerate().filter_map(|(i, r)| self.take(format!("{path}[{i}]"), parse(r))).collect()
    }

    /// The object, if nothing was wrong.
    pub(super) fn finish<T>(self, object: T) -> Result<T, Vec<Issue>> {
        if self.0.is_empty() { Ok(object) } else { Err(self.0) }
    }
}
