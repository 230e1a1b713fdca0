//! `manx-cni`, the CNI plugin of Manx. See the library for what it does.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() -> ExitCode {
    // A clock before 1970 is a clock like any other here: addresses rest a little longer or shorter.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    // Unbuffered, so that a runtime that hung up is noticed while the pod can still be detached.
    ExitCode::from(manx_cni::plugin::run(variable, std::io::stdin(), &mut std::io::stdout(), now))
}
