//! The environment of a call: CNI_COMMAND and its companions, validated. Pure: variables come from a function.

use crate::names::Key;
use crate::spec::{Error, Verb, code, is_identifier};
use crate::store::MAX_CONTAINER_ID;

/// Longest interface name, bytes: IFNAMSIZ without the closing NUL.
const MAX_IFNAME: usize = 15;

/// One call, with what its verb needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Attach.
    Add {
        /// Which attachment.
        key: Key,
        /// CNI_NETNS.
        netns: String,
        /// CNI_ARGS.
        args: PodArgs,
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
        netns: String,
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
pub struct PodArgs {
    /// K8S_POD_NAMESPACE; podman sends none.
    pub namespace: Option<String>,
    /// K8S_POD_NAME.
    pub name: Option<String>,
    /// K8S_POD_UID.
    pub uid: Option<String>,
    /// IP: fixed addresses, as written.
    pub ips: Vec<String>,
    /// MAC, as written.
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

    /// Reads the variables that the verb needs; an empty one is a missing one.
    ///
    /// # Errors
    /// Code 4, naming the variables that are missing or wrong.
    pub fn parse(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let Some(command) = variable("CNI_COMMAND") else {
            return Err(missing(
                &["CNI_COMMAND"],
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
        let absent: Vec<&str> = needed.iter().filter(|name| variable(name).is_none()).copied().collect();
        if !absent.is_empty() {
            return Err(missing(&absent, &format!("{command} needs them")));
        }
        let given = |name: &str| variable(name).unwrap_or_default();
        let key = || key(&given("CNI_CONTAINERID"), &given("CNI_IFNAME"));
        Ok(match verb {
            Verb::Add => Self::Add {
                key: key()?,
                netns: given("CNI_NETNS"),
                args: PodArgs::parse(&given("CNI_ARGS"))?,
            },
            Verb::Check => Self::Check { key: key()?, netns: given("CNI_NETNS") },
            Verb::Del => Self::Del { key: key()? },
            Verb::Gc => Self::Gc,
            Verb::Status => Self::Status,
            Verb::Version => Self::Version,
        })
    }
}

impl PodArgs {
    /// Reads `K=V;K=V` in any order. Keys that we do not know are somebody else's, with or without IgnoreUnknown.
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
                "K8S_POD_NAME" => args.name = given,
                "K8S_POD_UID" => args.uid = given,
                "IP" => {
                    args.ips =
                        value.split(',').map(|ip| ip.trim().to_owned()).filter(|ip| !ip.is_empty()).collect();
                }
                "MAC" => args.mac = given,
                _ => {}
            }
        }
        Ok(args)
    }
}

/// Validates the identity of an attachment.
fn key(container_id: &str, ifname: &str) -> Result<Key, Error> {
    if !is_identifier(container_id) || container_id.len() > MAX_CONTAINER_ID {
        let wanted = format!(
            "letters, digits, '_', '.', '-', beginning with a letter or digit, at most {MAX_CONTAINER_ID} bytes"
        );
        return Err(invalid("CNI_CONTAINERID", container_id, &wanted));
    }
    // The kernel takes a name with '%' as a template for a number.
    let foreign = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
    if ifname.len() > MAX_IFNAME || ifname == "." || ifname == ".." || ifname.contains(foreign) {
        let wanted =
            format!("an interface name: at most {MAX_IFNAME} bytes without '/', ':', '%' and spaces");
        return Err(invalid("CNI_IFNAME", ifname, &wanted));
    }
    Ok(Key::new(container_id, ifname))
}

fn missing(variables: &[&str], details: &str) -> Error {
    let msg = format!("environment variables are missing: {}", variables.join(", "));
    Error::new(code::ENVIRONMENT, msg, details)
}

fn invalid(variable: &str, value: &str, wanted: &str) -> Error {
    Error::new(code::ENVIRONMENT, format!("{variable} is invalid"), format!("{value:?} is not {wanted}"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Call, Error> {
        Call::parse(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn missing_variables_are_named_all_at_once() {
        let error = parse(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", "")]).unwrap_err();
        assert_eq!(error.code, 4);
        assert_eq!(error.msg, "environment variables are missing: CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME");
        assert_eq!(parse(&[]).unwrap_err().msg, "environment variables are missing: CNI_COMMAND");
        assert_eq!(parse(&[("CNI_COMMAND", "add")]).unwrap_err().code, 4);
    }

    #[test]
    fn del_needs_no_netns_and_does_not_look_at_args() {
        let call =
            [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", "x")];
        assert_eq!(parse(&call), Ok(Call::Del { key: Key::new("a", "eth0") }));
    }

    #[test]
    fn version_may_come_with_dummies() {
        let dummies = [
            ("CNI_COMMAND", "VERSION"),
            ("CNI_IFNAME", "dummy"),
            ("CNI_NETNS", "dummy"),
            ("CNI_PATH", "dummy"),
        ];
        assert_eq!(parse(&dummies), Ok(Call::Version));
        assert_eq!(parse(&dummies[..1]), Ok(Call::Version));
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
    #[case("aä")]
    #[case("a\n")]
    fn container_ids_that_it_does_not(#[case] id: &str) {
        assert_eq!(key(id, "eth0").unwrap_err().code, 4);
    }

    #[test]
    fn a_container_id_has_to_fit_a_file_name() {
        assert!(key(&"a".repeat(239), "fifteen_bytes_a").is_ok());
        assert_eq!(key(&"a".repeat(240), "eth0").unwrap_err().code, 4);
    }

    #[rstest]
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
    fn containerds_args_come_in_any_order() {
        let mut parts = [
            "K8S_POD_UID=u-1",
            "IgnoreUnknown=1",
            "K8S_POD_INFRA_CONTAINER_ID=c",
            "K8S_POD_NAME=web",
            "K8S_POD_NAMESPACE=shop",
        ];
        let wanted = PodArgs {
            namespace: Some("shop".to_owned()),
            name: Some("web".to_owned()),
            uid: Some("u-1".to_owned()),
            ..PodArgs::default()
        };
        for _ in 0..parts.len() {
            parts.rotate_left(1);
            assert_eq!(PodArgs::parse(&parts.join(";")).unwrap(), wanted);
        }
    }

    #[test]
    fn podmans_args_have_no_namespace() {
        let args = PodArgs::parse("IgnoreUnknown=1;K8S_POD_NAME=web").unwrap();
        assert_eq!((args.namespace, args.name.as_deref()), (None, Some("web")));
    }

    #[test]
    fn fixed_addresses_and_mac_come_in_args() {
        let args = PodArgs::parse("IP=10.0.0.5, fd00::5;MAC=02:00:00:00:00:01;K8S_POD_NAMESPACE=").unwrap();
        assert_eq!(args.ips, ["10.0.0.5", "fd00::5"]);
        assert_eq!(args.mac.as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!(args.namespace, None);
        assert_eq!(PodArgs::parse("IP").unwrap_err().code, 4);
    }
}
