//! Names that are derived, never stored: the host end of a pod's veth, and MAC addresses.
//!
//! Both come from container id and interface name: a new sandbox of the same pod may come before the old one's DEL, so
//! a pod's name would name two links.

use std::fmt;

use sha2::{Digest, Sha256};

/// Prefix of host interfaces unless the node's configuration says otherwise.
pub const DEFAULT_PREFIX: &str = "manx";

/// Longest prefix that leaves room for the hash: IFNAMSIZ is 16 with the closing NUL.
pub const MAX_PREFIX: usize = 4;

const HASH_DIGITS: usize = 11;

/// Container id and interface name: the identity of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

impl Key {
    /// Of validated parts: neither holds ':' or '/'.
    pub fn new(container_id: &str, ifname: &str) -> Self {
        Self { container_id: container_id.to_owned(), ifname: ifname.to_owned() }
    }

    /// Of its text.
    pub fn parse(text: &str) -> Option<Self> {
        text.split_once(':').map(|(container_id, ifname)| Self::new(container_id, ifname))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.container_id, self.ifname)
    }
}

/// The host end's name: `prefix` and 11 hex digits of SHA-256(container id, NUL, ifname).
///
/// Fits IFNAMSIZ for prefixes of at most [`MAX_PREFIX`] bytes. 44 bits: two of 4,000 live attachments meet with a
/// probability of 5e-7, and then the second ADD fails; it never takes the first one's link.
pub fn host_interface(prefix: &str, container_id: &str, ifname: &str) -> String {
    let mut name = String::with_capacity(prefix.len() + HASH_DIGITS + 1);
    name.push_str(prefix);
    for byte in &digest(container_id, ifname)[..HASH_DIGITS.div_ceil(2)] {
        name.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        name.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
    }
    name.truncate(prefix.len() + HASH_DIGITS);
    name
}

/// The pod end's MAC address unless the runtime asks for one: unicast, locally administered, the same on every try.
pub fn pod_mac(container_id: &str, ifname: &str) -> [u8; 6] {
    let digest = digest(container_id, ifname);
    let mut mac = [0; 6];
    // The bytes behind those in the interface's name.
    mac.copy_from_slice(&digest[8..14]);
    mac[0] = (mac[0] | 0x02) & 0xfe;
    mac
}

fn digest(container_id: &str, ifname: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(container_id.as_bytes());
    hash.update([0]);
    hash.update(ifname.as_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_interface_is_the_prefix_and_eleven_digits_of_the_hash() {
        // printf 'abc\0eth0' | sha256sum
        assert_eq!(host_interface("manx", "abc", "eth0"), "manxd887cd28687");
        assert_eq!(host_interface("manx", "abc", "eth0").len(), 15);
    }

    #[test]
    fn container_id_and_ifname_do_not_run_into_each_other() {
        assert_ne!(host_interface("manx", "abc", "eth0"), host_interface("manx", "abce", "th0"));
        assert_ne!(host_interface("manx", "abc", "eth0"), host_interface("manx", "abc", "eth1"));
    }

    #[test]
    fn pod_mac_is_unicast_and_locally_administered() {
        for id in ["a", "b", "c", "d", "e"] {
            let mac = pod_mac(id, "eth0");
            assert_eq!(mac[0] & 0x03, 0x02, "{mac:02x?}");
        }
        assert_ne!(pod_mac("a", "eth0"), pod_mac("b", "eth0"));
    }
}
