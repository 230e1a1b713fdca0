//! Words of the CNI specification 1.1.0: verbs, versions, error codes. Pure.
//!
//! What a runtime sends is read by `environment` and `conf`; what it gets is `result` or [`Error`].

use serde_json::{Value, json};

use crate::json::{Json, WrongType};

/// Versions of configuration and result, ascending.
pub const VERSIONS: &[&str] = &["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Error codes. Up to 99 they are the specification's, from 100 on they are this plugin's.
pub mod code {
    /// The configuration's version, or a verb that it does not have.
    pub const VERSION: u32 = 1;
    /// A variable is missing or wrong.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading the configuration or writing the result failed.
    pub const IO: u32 = 5;
    /// Not JSON, or a value of a wrong type.
    pub const DECODING: u32 = 6;
    /// The configuration is missing something or says something impossible.
    pub const CONFIGURATION: u32 = 7;
    /// CNI_NETNS is not the network namespace of a pod.
    pub const NETNS: u32 = 8;
    /// Nothing was changed; the same call may succeed later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: no pod could be attached.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: no pod could be attached, and those that are may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// The kernel refused.
    pub const KERNEL: u32 = 100;
    /// The attachment exists.
    pub const ATTACHED: u32 = 101;
    /// A fixed address that the pod may not have.
    pub const ADDRESS_REFUSED: u32 = 102;
    /// CHECK found something else than ADD had made.
    pub const CHECK: u32 = 103;
    /// The plugin's own state can't be read or changed.
    pub const STATE: u32 = 104;
}

/// A version of configuration and result, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// Of its text; `None`: not one of [`VERSIONS`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }

    /// Of a configuration; an empty or absent `cniVersion` means 0.1.0.
    ///
    /// # Errors
    /// Code 1, or 6 when it is no text.
    pub fn of(configuration: &Json) -> Result<Self, Error> {
        let text = configuration.str("cniVersion")?.unwrap_or("0.1.0");
        Self::parse(text).ok_or_else(|| {
            let details = format!("supported versions are {}", VERSIONS.join(", "));
            Error::new(code::VERSION, format!("CNI {text} is not supported"), details)
        })
    }

    /// To answer in: that of the configuration as far as it can be read, else the newest. Old runtimes send nothing or
    /// `dummy` to VERSION and get an answer all the same.
    pub fn to_answer(input: &[u8]) -> Self {
        Json::parse(input).ok().and_then(|json| Self::of(&json).ok()).unwrap_or(Self::V1_1_0)
    }

    /// As in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        VERSIONS[self as usize]
    }
}

/// CNI_COMMAND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Is the attachment as ADD left it?
    Check,
    /// Remove what belongs to no living attachment.
    Gc,
    /// Could an ADD be served?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Verb {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// Capitals only, as in the reference implementation.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.name() == text)
    }

    /// The version that brought the verb.
    pub fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    /// As in CNI_COMMAND.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// An error as the runtime gets it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct Error {
    /// See [`code`].
    pub code: u32,
    /// What is wrong, short.
    pub msg: String,
    /// Which value it was, and what to do about it.
    pub details: String,
}

impl Error {
    /// An error.
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// Code 7.
    pub(crate) fn configuration(details: impl Into<String>) -> Self {
        Self::new(code::CONFIGURATION, "the network configuration is not valid", details)
    }

    /// For stdout.
    pub fn to_json(&self, version: Version) -> Value {
        json!({ "cniVersion": version.as_str(), "code": self.code, "msg": self.msg, "details": self.details })
    }
}

impl From<WrongType> for Error {
    fn from(error: WrongType) -> Self {
        Self::new(code::DECODING, "the network configuration cannot be read", error.to_string())
    }
}

/// The answer to VERSION.
pub fn version_report(version: Version) -> Value {
    json!({ "cniVersion": version.as_str(), "supportedVersions": VERSIONS })
}

/// `^[a-zA-Z0-9][\w.-]*$`: container ids and names of networks. `\w` is ASCII to Go.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// `aa:bb:cc:dd:ee:ff`, or with `-`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// As ip(8) writes it.
pub fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_of(text: &str) -> Result<Version, Error> {
        Version::of(&Json::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn empty_cni_version_means_0_1_0() {
        for text in [r#"{"cniVersion":""}"#, "{}", r#"{"cniVersion":null}"#] {
            assert_eq!(version_of(text), Ok(Version::V0_1_0), "{text}");
        }
    }

    #[test]
    fn every_version_is_read_back_and_no_other() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()), Some(version));
        }
        assert_eq!(VERSIONS.len(), Version::ALL.len());
        for other in ["1", "1.0", "1.0.1", "2.0.0", "v1.0.0", " 1.0.0"] {
            assert_eq!(version_of(&format!(r#"{{"cniVersion":"{other}"}}"#)).unwrap_err().code, 1, "{other}");
        }
    }

    #[test]
    fn errors_are_told_in_the_version_of_the_configuration_where_it_has_one() {
        assert_eq!(Version::to_answer(br#"{"cniVersion":"0.3.1"}"#), Version::V0_3_1);
        for input in [&b""[..], b"{", br#"{"cniVersion":"9.9.9"}"#, br#"{"cniVersion":1}"#] {
            assert_eq!(Version::to_answer(input), Version::V1_1_0);
        }
    }

    #[test]
    fn verbs_are_read_in_capitals_only() {
        for verb in Verb::ALL {
            assert_eq!(Verb::parse(verb.name()), Some(verb));
            assert_eq!(Verb::parse(&verb.name().to_lowercase()), None);
        }
    }

    #[test]
    fn mac_addresses_are_read_with_colons_or_dashes() {
        assert_eq!(parse_mac("02:42:ac:11:00:FF"), Some([0x02, 0x42, 0xac, 0x11, 0, 0xff]));
        assert_eq!(parse_mac("02-42-ac-11-00-ff").map(format_mac).as_deref(), Some("02:42:ac:11:00:ff"));
        for bad in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:ff:00",
            "2:42:ac:11:00:ff",
            "+2:42:ac:11:00:ff",
            "zz:42:ac:11:00:ff",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
