//! The words of CNI (specification 1.1.0): verbs, versions, error codes; and the doors through which a runtime's input
//! comes in: [`environment`], [`conf`], and [`result`] for what earlier plugins of the chain did. Pure.
//!
//! Every verb, version and code that the specification knows is here; what the plugin does about them is not.

pub mod conf;
pub mod environment;
pub mod json;
pub mod result;

use serde::Serialize;

/// Versions of configuration and result, ascending.
pub const VERSIONS: &[&str] = &["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Error codes. 1 to 99 are the specification's, from 100 on they are this plugin's.
pub mod code {
    /// Incompatible CNI version.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The container does not exist: the runtime has nothing to clean up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A necessary environment variable is missing or invalid.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// The input is not the JSON it should be.
    pub const DECODING: u32 = 6;
    /// The configuration is JSON but says something impossible.
    pub const INVALID_CONFIG: u32 = 7;
    /// CNI_NETNS is the plugin's own namespace.
    pub const INVALID_NETNS: u32 = 8;
    /// The same call may succeed later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: no ADD can be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: no ADD can be served, and containers that run may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// A bug of this plugin.
    pub const INTERNAL: u32 = 100;
    /// An address was asked for that this node may not give.
    pub const ADDRESS_REFUSED: u32 = 101;
    /// ADD of an attachment that is there already.
    pub const ALREADY_ATTACHED: u32 = 102;
    /// CHECK: the attachment is not what it should be.
    pub const CHECK_FAILED: u32 = 103;
    /// The kernel refused a link operation.
    pub const KERNEL: u32 = 104;
}

/// What a runtime asks for.
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
    /// Reads CNI_COMMAND: capitals only, as in the reference implementation.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "ADD" => Some(Self::Add),
            "DEL" => Some(Self::Del),
            "CHECK" => Some(Self::Check),
            "GC" => Some(Self::Gc),
            "STATUS" => Some(Self::Status),
            "VERSION" => Some(Self::Version),
            _ => None,
        }
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

/// A version of configuration and result, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
#[allow(non_camel_case_types, reason = "dots are not allowed in names")]
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
    /// The newest.
    pub const CURRENT: Self = Self::V1_1_0;

    const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// Reads `cniVersion`; an empty one means 0.1.0.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" => Some(Self::V0_1_0),
            _ => Self::ALL.into_iter().find(|v| v.name() == text),
        }
    }

    /// As in `cniVersion`.
    pub fn name(self) -> &'static str {
        VERSIONS[self as usize]
    }
}

/// What a failed call prints: an error of the specification's form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct Error {
    /// One of [`code`].
    pub code: u32,
    /// What is wrong, one sentence without a full stop.
    pub msg: String,
    /// Which value it was, and what to do about it.
    pub details: String,
}

impl Error {
    /// An error with both sentences.
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// The JSON for standard output.
    pub fn render(&self, version: Version) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            cni_version: &'static str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let wire =
            Wire { cni_version: version.name(), code: self.code, msg: &self.msg, details: &self.details };
        line(&wire)
    }
}

/// The answer to VERSION.
pub fn render_versions(version: Version) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Wire {
        cni_version: &'static str,
        supported_versions: &'static [&'static str],
    }
    line(&Wire { cni_version: version.name(), supported_versions: VERSIONS })
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(value).expect("structs of strings and numbers are JSON");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_version_means_0_1_0() {
        assert_eq!(Version::parse(""), Some(Version::V0_1_0));
    }

    #[test]
    fn every_version_is_read_back_and_no_other() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.name()), Some(version));
        }
        assert_eq!(VERSIONS.len(), Version::ALL.len());
        for other in ["1", "1.0", "1.0.1", "2.0.0", "v1.0.0", " 1.0.0"] {
            assert_eq!(Version::parse(other), None, "{other}");
        }
    }

    #[test]
    fn verbs_are_read_in_capitals_only() {
        for verb in [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status, Verb::Version] {
            assert_eq!(Verb::parse(verb.name()), Some(verb));
            assert_eq!(Verb::parse(&verb.name().to_lowercase()), None);
        }
    }

    #[test]
    fn errors_are_json_with_version_code_and_sentences() {
        let error = Error::new(code::TRY_AGAIN_LATER, "agent not ready", "no node.json");
        assert_eq!(
            String::from_utf8(error.render(Version::V0_4_0)).unwrap(),
            "{\"cniVersion\":\"0.4.0\",\"code\":11,\"msg\":\"agent not ready\",\"details\":\"no node.json\"}\n"
        );
    }
}
