//! The environment of a call: CNI_COMMAND and its companions, validated. Pure: variables come from a function.

use std::path::PathBuf;

use super::{Error, Verb, code};
use crate::names::Key;
use crate::store::MAX_CONTAINER_ID;

/// Longest interface name, bytes: IFNAMSIZ without the closing NUL.
const MAX_IFNAME: usize = 15;

/// One call with what its verb needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Attach.
    Add {
        /// Which attachment.
        key: Key,
        /// CNI_NETNS.
        netns: PathBuf,
        /// CNI_ARGS.
        args: Args,
    },
    /// Detach. CNI_NETNS may be empty and is of no use here: links are found by the attachment's identity.
    Del {
        /// Which attachment.
        key: Key,
    },
    /// Compare.
    Check {
        /// Which attachment.
        key: Key,
        /// CNI_NETNS.
        netns: PathBuf,
    },
    /// Collect garbage.
    Gc,
    /// Ready?
    Status,
    /// Versions; needs no other variable, and ignores dummies in them.
    Version,
}

/// CNI_ARGS, as far as it concerns us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// K8S_POD_NAMESPACE; podman sends none.
    pub namespace: Option<String>,
    /// K8S_POD_NAME.
    pub pod: Option<String>,
    /// K8S_POD_UID.
    pub uid: Option<String>,
    /// IP: fixed addresses.
    pub ips: Vec<String>,
    /// MAC.
    pub mac: Option<String>,
}

impl Call {
    /// The verb.
    pub fn verb(&self) -> Verb {
        match self {
            Self::Add { .. } => Verb::Add,
            Self::Del { .. } => Verb::Del,
            Self::Check { .. } => Verb::Check,
            Self::Gc => Verb::Gc,
            Self::Status => Verb::Status,
            Self::Version => Verb::Version,
        }
    }

    /// Reads the variables that the verb needs.
    ///
    /// # Errors
    /// Code 4, naming the variables that are missing or wrong.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let Some(command) = variable("CNI_COMMAND") else {
            return Err(Error::new(
                code::ENVIRONMENT,
                "environment variables are missing: CNI_COMMAND",
                "this is a CNI plugin, to be started by a container runtime",
            ));
        };
        let Some(verb) = Verb::parse(&command) else {
            return Err(invalid("CNI_COMMAND", &command, "ADD, DEL, CHECK, GC, STATUS or VERSION"));
        };
        let needed: &[&str] = match verb {
            Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Verb::Gc | Verb::Status | Verb::Version => &[],
        };
        let missing: Vec<&str> = needed.iter().filter(|name| variable(name).is_none()).copied().collect();
        if !missing.is_empty() {
            return Err(Error::new(
                code::ENVIRONMENT,
                format!("environment variables are missing: {}", missing.join(", ")),
                format!("{command} needs them"),
            ));
        }
        let required = |name: &str| variable(name).unwrap_or_default();
        match verb {
            Verb::Add => Ok(Self::Add {
                key: key(&required("CNI_CONTAINERID"), &required("CNI_IFNAME"))?,
                netns: required("CNI_NETNS").into(),
                args: Args::parse(&variable("CNI_ARGS").unwrap_or_default())?,
            }),
            Verb::Check => Ok(Self::Check {
                key: key(&required("CNI_CONTAINERID"), &required("CNI_IFNAME"))?,
                netns: required("CNI_NETNS").into(),
            }),
            Verb::Del => Ok(Self::Del { key: key(&required("CNI_CONTAINERID"), &required("CNI_IFNAME"))? }),
            Verb::Gc => Ok(Self::Gc),
            Verb::Status => Ok(Self::Status),
            Verb::Version => Ok(Self::Version),
        }
    }
}

impl Args {
    /// Reads `K=V;K=V`. Keys that we do not know are ignored, with or without IgnoreUnknown.
    ///
    /// # Errors
    /// Code 4 for a part without `=`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut args = Self::default();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(invalid("CNI_ARGS", text, "of the form KEY=VALUE;KEY=VALUE"));
            };
            let given = Some(value.to_owned()).filter(|v| !v.is_empty());
            match key {
                "K8S_POD_NAMESPACE" => args.namespace = given,
                "K8S_POD_NAME" => args.pod = given,
                "K8S_POD_UID" => args.uid = given,
                "IP" => args.ips = value.split(',').filter(|ip| !ip.is_empty()).map(str::to_owned).collect(),
                "MAC" => args.mac = given,
                _ => {}
            }
        }
        Ok(args)
    }
}

/// Validates the identity of an attachment.
///
/// # Errors
/// Code 4.
pub fn key(container_id: &str, ifname: &str) -> Result<Key, Error> {
    if !is_identifier(container_id) || container_id.len() > MAX_CONTAINER_ID {
        return Err(invalid(
            "CNI_CONTAINERID",
            container_id,
            &format!(
                "letters, digits, '_', '.', '-', beginning with a letter or digit, at most {MAX_CONTAINER_ID} bytes"
            ),
        ));
    }
    // The kernel takes a name with '%' as a template for a number.
    let foreign = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if ifname.is_empty() || ifname.len() > MAX_IFNAME || ifname == "." || ifname == ".." || ifname.contains(foreign) {
        return Err(invalid(
            "CNI_IFNAME",
            ifname,
            &format!("an interface name: at most {MAX_IFNAME} bytes without '/', ':', '%' and spaces"),
        ));
    }
    Ok(Key::new(container_id, ifname))
}

/// `^[a-zA-Z0-9][\w.-]*$`: container ids and names of networks.
pub fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn invalid(variable: &str, value: &str, wanted: &str) -> Error {
    Error::new(code::ENVIRONMENT, format!("{variable} is invalid"), format!("{value:?} is not {wanted}"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Call, Error> {
        Call::read(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn missing_variables_are_named_all_at_once() {
        let error = read(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", "")]).unwrap_err();
        assert_eq!(error.code, 4);
        assert_eq!(error.msg, "environment variables are missing: CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME");
    }

    #[test]
    fn del_needs_no_netns() {
        let call = read(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")]).unwrap();
        assert_eq!(call, Call::Del { key: Key::new("a", "eth0") });
    }

    #[test]
    fn version_comes_with_dummies() {
        let dummies = [("CNI_COMMAND", "VERSION"), ("CNI_IFNAME", "dummy"), ("CNI_NETNS", "dummy"), ("CNI_PATH", "dummy")];
        assert_eq!(read(&dummies).unwrap(), Call::Version);
        assert_eq!(read(&[("CNI_COMMAND", "VERSION")]).unwrap(), Call::Version);
    }

    #[rstest]
    #[case("a")]
    #[case("0b")]
    #[case("A_.-z")]
    fn container_ids_that_the_specification_allows(#[case] id: &str) {
        assert!(key(id, "eth0").is_ok());
    }

    #[rstest]
    #[case("-a")]
    #[case(".a")]
    #[case("_a")]
    #[case("a/b")]
    #[case("a:b")]
    #[case("a b")]
    #[case("ä")]
    #[case("a\n")]
    fn container_ids_that_it_does_not(#[case] id: &str) {
        assert_eq!(key(id, "eth0").unwrap_err().code, 4);
    }

    #[test]
    fn a_container_id_has_to_fit_a_file_name() {
        assert!(key(&"a".repeat(239), "eth0").is_ok());
        assert_eq!(key(&"a".repeat(240), "eth0").unwrap_err().code, 4);
    }

    #[rstest]
    #[case("")]
    #[case(".")]
    #[case("..")]
    #[case("a/b")]
    #[case("a:b")]
    #[case("a b")]
    #[case("eth%d")]
    #[case("a\tb")]
    #[case("sixteen_bytes_ab")]
    fn interface_names_that_the_kernel_does_not_take(#[case] ifname: &str) {
        assert_eq!(key("a", ifname).unwrap_err().code, 4);
    }

    #[test]
    fn fifteen_bytes_are_an_interface_name() {
        assert!(key("a", "fifteen_bytes_a").is_ok());
    }

    #[test]
    fn containerds_args_are_read_in_any_order() {
        let args = Args::parse(
            "K8S_POD_UID=u-1;IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop",
        );
        let wanted = Args {
            namespace: Some("shop".to_owned()),
            pod: Some("web".to_owned()),
            uid: Some("u-1".to_owned()),
            ..Args::default()
        };
        assert_eq!(args.unwrap(), wanted);
    }

    #[test]
    fn podmans_args_have_no_namespace() {
        let args = Args::parse("IgnoreUnknown=1;K8S_POD_NAME=web").unwrap();
        assert_eq!((args.namespace, args.pod.as_deref()), (None, Some("web")));
    }

    #[test]
    fn fixed_addresses_and_mac_come_in_args() {
        let args = Args::parse("IP=10.0.0.5,fd00::5;MAC=02:00:00:00:00:01;K8S_POD_NAMESPACE=").unwrap();
        assert_eq!(args.ips, ["10.0.0.5", "fd00::5"]);
        assert_eq!(args.mac.as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!(args.namespace, None);
        assert_eq!(Args::parse("IP").unwrap_err().code, 4);
    }
}
