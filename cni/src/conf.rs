//! The network configuration: bytes from standard input become a validated [`NetConf`]. Pure.
//!
//! What holds for the whole node comes from node.json; here is what one network and one pod want.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::environment::PodArgs;
use crate::json::Json;
use crate::names::Key;
use crate::result::{AddResult, Dns};
use crate::spec::{Error, Verb, Version, code, is_identifier, parse_mac};

/// Annotation of a pod with its fixed addresses: a JSON array or a list with commas.
pub const IPS_ANNOTATION: &str = "manx.dev/ips";

/// Capability by which containerd hands a pod's annotations on.
pub const ANNOTATIONS_CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";

/// Key of GC's list.
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

const DEFAULT_RUN_DIR: &str = "/run/manx";

/// How long ADD waits for the policy of its pod: runtimes give up after some minutes, people after some seconds.
const DEFAULT_POLICY_TIMEOUT: Duration = Duration::from_secs(10);

/// The validated network configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// Of configuration and result.
    pub version: Version,
    /// Name of the network.
    pub name: String,
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// How long ADD waits for the policy of its pod.
    pub policy_timeout: Duration,
    /// MTU of the pod's interface over the node's, bytes.
    pub mtu: Option<u32>,
    /// Name service for the result.
    pub dns: Dns,
    /// What earlier plugins made.
    pub prev_result: Option<AddResult>,
    /// GC: what the runtime still knows. Absent is not an empty list.
    pub valid_attachments: Option<BTreeSet<Key>>,
    /// Fixed addresses by annotation, runtimeConfig and args, in falling precedence; the first that is not empty counts.
    fixed: [Vec<String>; 3],
    /// MAC address by runtimeConfig or args.
    mac: Option<String>,
}

impl NetConf {
    /// Reads the configuration of a call of `verb`.
    ///
    /// # Errors
    /// Code 6 for what is not JSON or of a wrong type, 1 for the version, 7 for the rest.
    pub fn parse(text: &[u8], verb: Verb) -> Result<Self, Error> {
        let json = Json::parse(text).map_err(|e| {
            Error::new(
                code::DECODING,
                "the network configuration cannot be read",
                format!("standard input: {e}"),
            )
        })?;
        let version = Version::of(&json)?;
        if version < verb.since() {
            let msg = format!("{} is not part of CNI {}", verb.name(), version.as_str());
            return Err(Error::new(
                code::VERSION,
                msg,
                format!("set cniVersion to {} or later", verb.since().as_str()),
            ));
        }
        let name =
            json.str("name")?.ok_or_else(|| Error::configuration("the network has no \"name\""))?.to_owned();
        if !is_identifier(&name) {
            return Err(Error::configuration(format!("{name:?} is not a network name")));
        }
        let mut conf = Self {
            version,
            name,
            run_dir: json.str("runDir")?.unwrap_or(DEFAULT_RUN_DIR).into(),
            policy_timeout: policy_timeout(&json)?,
            mtu: None,
            dns: Dns::default(),
            prev_result: None,
            valid_attachments: None,
            fixed: Default::default(),
            mac: None,
        };
        match verb {
            Verb::Add | Verb::Check => conf.read_attachment(&json)?,
            Verb::Gc => conf.valid_attachments = valid_attachments(&json)?,
            // Best effort: what others have written does not matter.
            Verb::Del | Verb::Status | Verb::Version => {}
        }
        Ok(conf)
    }

    fn read_attachment(&mut self, json: &Json) -> Result<(), Error> {
        let empty = Json::Object(Vec::new());
        let runtime = json.object("runtimeConfig")?.unwrap_or(&empty);
        let args = json.object("args")?.unwrap_or(&empty).object("cni")?.unwrap_or(&empty);
        let annotation = match runtime.object(ANNOTATIONS_CAPABILITY)? {
            Some(annotations) => annotation_ips(annotations.exactly(IPS_ANNOTATION).unwrap_or_default())?,
            None => Vec::new(),
        };
        let owned = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect();
        self.mtu = json.u32("mtu")?.filter(|mtu| *mtu != 0);
        if let Some(mtu) = self.mtu.filter(|mtu| !(68..=65535).contains(mtu)) {
            return Err(Error::configuration(format!("mtu {mtu} is not within 68 and 65535")));
        }
        self.dns = json.object("dns")?.map(Dns::parse).transpose()?.unwrap_or_default();
        self.prev_result = json.object("prevResult")?.map(AddResult::parse).transpose()?;
        self.fixed = [annotation, owned(runtime.strings("ips")?), owned(args.strings("ips")?)];
        self.mac = runtime.str("mac")?.or(args.str("mac")?).map(str::to_owned);
        Ok(())
    }

    /// The fixed addresses that the pod asks for: annotation > runtimeConfig.ips > args.cni.ips > CNI_ARGS IP. A prefix
    /// length is allowed and means nothing here.
    ///
    /// # Errors
    /// Code 7 for what is no address, and for two of one family.
    pub fn fixed_ips(&self, args: &PodArgs) -> Result<Vec<IpAddr>, Error> {
        let Some(list) = self.fixed.iter().chain([&args.ips]).find(|list| !list.is_empty()) else {
            return Ok(Vec::new());
        };
        let mut out: Vec<IpAddr> = Vec::new();
        for text in list {
            let network = text
                .parse::<IpNetwork>()
                .map_err(|_| Error::configuration(format!("the fixed address {text:?} is not an address")))?;
            let ip = network.ip();
            if let Some(other) = out.iter().find(|other| other.is_ipv4() == ip.is_ipv4()) {
                let details =
                    format!("{other} and {ip} are fixed addresses of one family, and a pod has one of each");
                return Err(Error::configuration(details));
            }
            out.push(ip);
        }
        Ok(out)
    }

    /// The MAC address that the pod asks for: runtimeConfig.mac > args.cni.mac > CNI_ARGS MAC.
    ///
    /// # Errors
    /// Code 7 for what is no MAC address of one interface.
    pub fn fixed_mac(&self, args: &PodArgs) -> Result<Option<[u8; 6]>, Error> {
        let Some(text) = self.mac.as_ref().or(args.mac.as_ref()) else { return Ok(None) };
        match parse_mac(text).filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]) {
            Some(mac) => Ok(Some(mac)),
            None => Err(Error::configuration(format!("{text:?} is not the MAC address of an interface"))),
        }
    }
}

/// Seconds as a number, or a text such as `10s` or `500ms`.
fn policy_timeout(json: &Json) -> Result<Duration, Error> {
    let seconds = match json.get("policyTimeout") {
        None => return Ok(DEFAULT_POLICY_TIMEOUT),
        Some(Json::Number(n)) => n.as_f64(),
        Some(Json::String(text)) => match text.strip_suffix("ms") {
            Some(number) => number.parse().ok().map(|ms: f64| ms / 1000.0),
            None => text.strip_suffix('s').unwrap_or(text).parse().ok(),
        },
        Some(_) => None,
    };
    seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).ok_or_else(|| {
        Error::configuration("policyTimeout is not a duration: write seconds, or a text such as \"10s\"")
    })
}

fn annotation_ips(text: &str) -> Result<Vec<String>, Error> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|e| {
            Error::configuration(format!("annotation {IPS_ANNOTATION} is not an array of addresses: {e}"))
        });
    }
    Ok(text.split(',').map(|ip| ip.trim().to_owned()).filter(|ip| !ip.is_empty()).collect())
}

fn valid_attachments(json: &Json) -> Result<Option<BTreeSet<Key>>, Error> {
    if json.get(VALID_ATTACHMENTS).is_none() {
        return Ok(None);
    }
    let mut out = BTreeSet::new();
    for entry in json.array(VALID_ATTACHMENTS)? {
        let (Some(container_id), Some(ifname)) = (entry.str("containerID")?, entry.str("ifname")?) else {
            // What cannot be read may be a living pod.
            return Err(Error::configuration(format!(
                "{VALID_ATTACHMENTS}: an entry lacks containerID or ifname, and nothing was removed"
            )));
        };
        out.insert(Key::new(container_id, ifname));
    }
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parse(verb: Verb, text: &str) -> Result<NetConf, Error> {
        NetConf::parse(text.as_bytes(), verb)
    }

    fn add(fields: &str) -> NetConf {
        parse(Verb::Add, &format!(r#"{{"cniVersion":"1.0.0","name":"n"{fields}}}"#)).unwrap()
    }

    #[rstest]
    #[case::not_json("{", 6)]
    #[case::nothing("", 6)]
    #[case::name_missing(r#"{"cniVersion":"1.0.0"}"#, 7)]
    #[case::name_empty(r#"{"cniVersion":"1.0.0","name":""}"#, 7)]
    #[case::name_is_a_path(r#"{"cniVersion":"1.0.0","name":"../a"}"#, 7)]
    #[case::name_is_a_number(r#"{"cniVersion":"1.0.0","name":1}"#, 6)]
    #[case::version_unknown(r#"{"cniVersion":"1.2.0","name":"n"}"#, 1)]
    #[case::mtu_too_small(r#"{"name":"n","mtu":67}"#, 7)]
    #[case::timeout_negative(r#"{"name":"n","policyTimeout":-1}"#, 7)]
    #[case::timeout_a_word(r#"{"name":"n","policyTimeout":"soon"}"#, 7)]
    #[case::runtime_config_a_list(r#"{"name":"n","runtimeConfig":[]}"#, 6)]
    #[case::prev_result_broken(r#"{"name":"n","prevResult":{"ips":[{}]}}"#, 6)]
    fn what_cannot_be_used_has_its_code(#[case] text: &str, #[case] code: u32) {
        assert_eq!(parse(Verb::Add, text).unwrap_err().code, code);
    }

    #[rstest]
    fn check_needs_0_4_0_and_gc_and_status_need_1_1_0(
        #[values("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")] version: &str,
    ) {
        let text = format!(r#"{{"cniVersion":"{version}","name":"n"}}"#);
        for (verb, since) in [
            (Verb::Add, "0.1.0"),
            (Verb::Del, "0.1.0"),
            (Verb::Check, "0.4.0"),
            (Verb::Gc, "1.1.0"),
            (Verb::Status, "1.1.0"),
        ] {
            match parse(verb, &text) {
                Ok(_) => assert!(version >= since, "{} {version}", verb.name()),
                Err(e) => assert!(version < since && e.code == 1, "{} {version}: {e}", verb.name()),
            }
        }
    }

    #[test]
    fn a_configuration_of_a_name_alone_has_defaults() {
        let conf = parse(Verb::Add, r#"{"name":"n"}"#).unwrap();
        assert_eq!(conf.version, Version::V0_1_0);
        assert_eq!(conf.run_dir, PathBuf::from("/run/manx"));
        assert_eq!(conf.policy_timeout, Duration::from_secs(10));
        assert_eq!((conf.mtu, conf.prev_result, conf.valid_attachments), (None, None, None));
    }

    #[rstest]
    #[case("5", 5_000)]
    #[case("0.25", 250)]
    #[case("\"10s\"", 10_000)]
    #[case("\"300ms\"", 300)]
    #[case("\"2\"", 2_000)]
    #[case("null", 10_000)]
    fn policy_timeout_is_seconds_or_a_text(#[case] value: &str, #[case] milliseconds: u64) {
        let conf = add(&format!(r#","policyTimeout":{value}"#));
        assert_eq!(conf.policy_timeout, Duration::from_millis(milliseconds));
    }

    #[test]
    fn fixed_addresses_come_from_the_first_source_that_has_any() {
        let annotation = r#""io.kubernetes.cri.pod-annotations":{"manx.dev/ips":"10.0.0.1, fd00::1"}"#;
        let array = r#""io.kubernetes.cri.pod-annotations":{"manx.dev/ips":"[\"10.0.0.9\"]","other":"x"}"#;
        let args = PodArgs { ips: vec!["10.0.0.4".to_owned()], ..PodArgs::default() };
        let ips = |fields: &str| -> Vec<String> {
            add(fields).fixed_ips(&args).unwrap().iter().map(ToString::to_string).collect()
        };
        let by_args = r#","args":{"cni":{"ips":["10.0.0.3/16"]}}"#;
        assert_eq!(
            ips(&format!(r#","runtimeConfig":{{"ips":["10.0.0.2/24"],{annotation}}}{by_args}"#)),
            ["10.0.0.1", "fd00::1"]
        );
        assert_eq!(ips(&format!(r#","runtimeConfig":{{"ips":["10.0.0.2/24"],{array}}}"#)), ["10.0.0.9"]);
        assert_eq!(ips(&format!(r#","runtimeConfig":{{"ips":["10.0.0.2/24"]}}{by_args}"#)), ["10.0.0.2"]);
        assert_eq!(ips(&format!(r#","runtimeConfig":{{"ips":[]}}{by_args}"#)), ["10.0.0.3"]);
        assert_eq!(ips(""), ["10.0.0.4"]);
        assert!(add("").fixed_ips(&PodArgs::default()).unwrap().is_empty());
    }

    #[rstest]
    #[case("10.0.0.300")]
    #[case("10.0.0.1,10.0.0.2")]
    #[case("host")]
    fn fixed_addresses_that_make_no_sense_are_code_7(#[case] list: &str) {
        let args = PodArgs { ips: list.split(',').map(str::to_owned).collect(), ..PodArgs::default() };
        assert_eq!(add("").fixed_ips(&args).unwrap_err().code, 7);
    }

    #[test]
    fn the_mac_address_of_the_runtime_goes_before_that_of_args() {
        let args = PodArgs { mac: Some("02:00:00:00:00:03".to_owned()), ..PodArgs::default() };
        let by_args = r#","args":{"cni":{"mac":"02:00:00:00:00:02"}}"#;
        let last = |fields: &str| add(fields).fixed_mac(&args).unwrap().unwrap()[5];
        assert_eq!(last(&format!(r#","runtimeConfig":{{"mac":"02:00:00:00:00:01"}}{by_args}"#)), 1);
        assert_eq!(last(by_args), 2);
        assert_eq!(last(""), 3);
        assert_eq!(add("").fixed_mac(&PodArgs::default()), Ok(None));
    }

    #[rstest]
    #[case("01:00:5e:00:00:01")]
    #[case("00:00:00:00:00:00")]
    #[case("ff:ff:ff:ff:ff:ff")]
    #[case("02:00")]
    fn a_mac_address_of_many_or_none_is_code_7(#[case] mac: &str) {
        let args = PodArgs { mac: Some(mac.to_owned()), ..PodArgs::default() };
        assert_eq!(add("").fixed_mac(&args).unwrap_err().code, 7);
    }

    #[test]
    fn gc_without_the_key_is_not_gc_with_an_empty_list() {
        let gc = |fields: &str| parse(Verb::Gc, &format!(r#"{{"cniVersion":"1.1.0","name":"n"{fields}}}"#));
        assert_eq!(gc("").unwrap().valid_attachments, None);
        assert_eq!(gc(r#","cni.dev/valid-attachments":null"#).unwrap().valid_attachments, None);
        assert_eq!(
            gc(r#","cni.dev/valid-attachments":[]"#).unwrap().valid_attachments,
            Some(BTreeSet::new())
        );
        let one = gc(r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]"#).unwrap();
        assert_eq!(one.valid_attachments, Some(BTreeSet::from([Key::new("a", "eth0")])));
        assert_eq!(gc(r#","cni.dev/valid-attachments":[{"containerID":"a"}]"#).unwrap_err().code, 7);
    }

    #[test]
    fn del_does_not_look_at_what_others_have_written() {
        let text = r#"{"cniVersion":"1.0.0","name":"n","prevResult":{"ips":7},"runtimeConfig":[]}"#;
        assert!(parse(Verb::Del, text).is_ok());
    }
}
