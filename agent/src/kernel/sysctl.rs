//! Settings under /proc/sys, as the calling thread's network namespace has them.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// Not in this kernel or namespace.
    #[error("{0}: there is no such setting in this kernel or network namespace")]
    Missing(String),
    /// /proc/sys is read-only or we are not privileged.
    #[error("{0}: may not be changed from here: set it on the host, or in an init container")]
    Denied(String),
    /// Something else.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

/// The value of a setting such as `net.ipv4.ip_forward`, without the newline. A `/` in a part stands for itself, so
/// that interface names with dots can be given: `net/ipv4/conf/eth0.7/forwarding`.
///
/// # Errors
/// The setting does not exist or can't be read.
pub fn read(name: &str) -> Result<String, SysctlError> {
    let text = fs::read_to_string(path(name)).map_err(|e| error(name, e))?;
    Ok(text.trim_end().to_owned())
}

/// Sets a setting.
///
/// # Errors
/// The setting does not exist, or this process may not change it.
pub fn write(name: &str, value: &str) -> Result<(), SysctlError> {
    fs::write(path(name), value).map_err(|e| error(name, e))
}

/// The thread's own view: /proc/sys/net belongs to the namespace of whoever opens it.
fn path(name: &str) -> PathBuf {
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    PathBuf::from("/proc/sys").join(relative)
}

fn error(name: &str, e: io::Error) -> SysctlError {
    match e.kind() {
        io::ErrorKind::NotFound => SysctlError::Missing(name.to_owned()),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            SysctlError::Denied(name.to_owned())
        }
        _ => SysctlError::Io(name.to_owned(), e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_read_by_its_dotted_name_and_a_missing_one_is_named() {
        assert!(["0", "1"].contains(&read("net.ipv4.ip_forward").unwrap().as_str()));
        assert_eq!(read("net/ipv4/ip_forward").unwrap(), read("net.ipv4.ip_forward").unwrap());
        assert!(read("net.ipv4.no_such_thing").unwrap_err().to_string().contains("net.ipv4.no_such_thing"));
    }
}
