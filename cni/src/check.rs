//! CHECK: is the attachment still what its result says? And STATUS: could one be made?

use std::path::Path;
use std::time::Duration;

use crate::agent::{self, Request, Response};
use crate::conf::NetConf;
use crate::ipam::Pool;
use crate::names::{self, Key};
use crate::netns::Netns;
use crate::node::NodeConfig;
use crate::observe;
use crate::plan::Wiring;
use crate::result::AddResult;
use crate::spec::{Error, code, parse_mac};
use crate::store::{Attachment, Store};

/// STATUS is asked every few seconds: an agent that is slower than this is not ready.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// Compares kernel, store and result.
///
/// # Errors
/// Code 103 with all that differs.
pub(crate) fn check(key: &Key, path: &str, conf: &NetConf) -> Result<(), Error> {
    let result = conf.prev_result.as_ref().ok_or_else(|| Error::configuration("CHECK needs a prevResult"))?;
    let attachment = Store::existing(&conf.run_dir)
        .and_then(|store| store.attachment(key))
        .ok_or_else(|| differs(&[format!("{key} is not attached")]))?;
    let netns = Netns::open(Path::new(path)).map_err(|e| {
        Error::new(code::NETNS, "CNI_NETNS is not the network namespace of a pod", format!("{path}: {e}"))
    })?;
    let mut differences = compare(&attachment, result);
    let mac = result.interfaces.iter().find(|i| i.name == key.ifname && !i.sandbox.is_empty());
    let wiring = Wiring {
        interface: attachment.interface,
        ifname: key.ifname.clone(),
        mac: mac
            .and_then(|i| parse_mac(&i.mac))
            .unwrap_or_else(|| names::pod_mac(&key.container_id, &key.ifname)),
        // Another plugin may have changed it, and it is not looked at.
        mtu: 0,
        ips: attachment.ips,
    };
    differences.extend(observe::missing(&wiring, &netns)?);
    if differences.is_empty() { Ok(()) } else { Err(differs(&differences)) }
}

/// Would an ADD find an agent, and addresses of every family?
///
/// # Errors
/// Code 50 (or what the agent says) with the reason; `now` in epoch seconds.
pub(crate) fn status(conf: &NetConf, now: u64) -> Result<(), Error> {
    let unavailable =
        |details: String| Error::new(code::NOT_AVAILABLE, "pods cannot be attached now", details);
    let node = NodeConfig::read(&conf.run_dir).map_err(|e| unavailable(e.to_string()))?;
    if node.pod_cidrs.is_empty() {
        return Err(unavailable(format!("node {} has no pod CIDR", node.node_name)));
    }
    if let Some(store) = Store::existing(&conf.run_dir) {
        let usage = store.pools(&node.pod_cidrs, now)?;
        for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
            let pool = Pool::new(&node.pod_cidrs, v4);
            let used =
                usage.iter().filter(|u| u.cidr.is_ipv4() == v4).fold(0_u128, |n, u| n.saturating_add(u.used));
            if !pool.is_empty() && used >= pool.total() {
                return Err(unavailable(format!(
                    "all {} {family} addresses of this node are held",
                    pool.total()
                )));
            }
        }
    }
    match agent::ask(&conf.run_dir, &Request::Status, STATUS_PATIENCE) {
        Ok(Response::Ok {}) => Ok(()),
        Ok(Response::Error { code: said, msg, details }) => {
            let code = if matches!(said, 50 | 51) { said } else { code::NOT_AVAILABLE };
            Err(Error::new(code, msg, details))
        }
        Err(e) => Err(unavailable(e.to_string())),
    }
}

/// What the result lacks of the attachment.
fn compare(attachment: &Attachment, result: &AddResult) -> Vec<String> {
    let mut out = Vec::new();
    for name in [&attachment.interface, &attachment.ifname] {
        if !result.interfaces.iter().any(|i| i.name == *name) {
            out.push(format!("prevResult: interface {name} is missing"));
        }
    }
    for ip in &attachment.ips {
        if !result.ips.iter().any(|address| address.address.ip() == *ip) {
            out.push(format!("prevResult: address {ip} is missing"));
        }
    }
    out
}

fn differs(differences: &[String]) -> Error {
    Error::new(code::CHECK, "the pod's network is not as it was made", differences.join("; "))
}
