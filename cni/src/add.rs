//! ADD: node.json, addresses, attachment, link, the agent's word, result. SIGKILL may come between any two of them, so
//! each step is found and undone by DEL, or repaired by the next ADD of the same attachment.
//!
//! ```text
//! pending -> owner, addresses -> attachment -> veth pair -> routes, neighbours -> pending gone -> result
//!                                     `-> agent: policy into the kernel ------------^
//! ```
//!
//! The agent needs names and addresses only, so it is asked before there is a link, and both work at the same time.

use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;

use crate::agent::{AskError, Question, Request, Response};
use crate::conf::NetConf;
use crate::environment::PodArgs;
use crate::ipam::Pool;
use crate::link::{self, Ends, LinkError};
use crate::names;
use crate::names::Key;
use crate::netns::Netns;
use crate::node::{NodeConfig, NodeError};
use crate::plan::{HOST_MAC, Wiring, gateway, whole};
use crate::remove;
use crate::result::{AddResult, Address, Interface, Route};
use crate::spec::{Error, code, format_mac};
use crate::store::{Attachment, Pending, Store, Wanted};

/// What Ethernet carries, where the agent does not say.
const DEFAULT_MTU: u32 = 1500;

/// RFC 8200 section 5.
const MIN_MTU_V6: u32 = 1280;

/// An attachment that is complete but for the runtime's knowing of it.
#[derive(Debug)]
pub(crate) struct Attached {
    /// What to print.
    pub(crate) result: AddResult,
    store: Store,
    key: Key,
    interface: String,
}

impl Attached {
    /// Takes it back: the runtime could not be told.
    pub(crate) fn undo(self, now: u64) {
        drop(remove::everything(&self.store, &self.key, Some(&self.interface), now));
    }
}

/// Attaches a pod; `now` in epoch seconds.
///
/// # Errors
/// As the runtime gets them; nothing is left then.
pub(crate) fn add(key: Key, path: &str, args: PodArgs, conf: &NetConf, now: u64) -> Result<Attached, Error> {
    let fixed = conf.fixed_ips(&args)?;
    let mac = conf.fixed_mac(&args)?.unwrap_or_else(|| names::pod_mac(&key.container_id, &key.ifname));
    let node = NodeConfig::read(&conf.run_dir).map_err(|e| not_ready(&e))?;
    let pools = pools(&node, &fixed)?;
    let netns = Netns::open(Path::new(path)).map_err(|e| {
        Error::new(code::NETNS, "CNI_NETNS is not the network namespace of a pod", format!("{path}: {e}"))
    })?;
    let mtu = conf.mtu.or(Some(node.mtu).filter(|mtu| *mtu != 0)).unwrap_or(DEFAULT_MTU);
    let v6 = fixed.iter().any(IpAddr::is_ipv6)
        || pools.iter().any(|p| p.after(None).is_some_and(|ip| ip.is_ipv6()));
    if v6 && mtu < MIN_MTU_V6 {
        return Err(Error::configuration(format!("the MTU is {mtu}, and IPv6 needs {MIN_MTU_V6}")));
    }

    let store = Store::open(&conf.run_dir)?;
    let mut pending = store.begin(&key)?;
    if pending.crashed() {
        remove::leftovers(&store, &key, now)?;
    }
    let interface = names::host_interface(&node.interface_prefix, &key.container_id, &key.ifname);
    let wanted =
        Wanted { key: &key, network: &conf.name, interface: &interface, fixed: &fixed, pools: &pools };
    let ips = match store.reserve(&wanted, now) {
        Ok(ips) => ips,
        Err(e) => {
            drop(store.abandon(&key));
            return Err(e.into());
        }
    };
    let wiring = Wiring { interface: interface.clone(), ifname: key.ifname.clone(), mac, mtu, ips };
    let attachment = Attachment {
        container_id: key.container_id.clone(),
        ifname: key.ifname.clone(),
        network: Some(conf.name.clone()),
        netns: Some(path.to_owned()),
        namespace: args.namespace,
        pod: args.name,
        uid: args.uid,
        interface: interface.clone(),
        ips: wiring.ips.clone(),
        created: now,
    };
    if let Err(e) = pending.publish(&attachment) {
        drop(remove::everything(&store, &key, None, now));
        return Err(e.into());
    }
    let question = Question::put(&conf.run_dir, &Request::Confirm { attachment }, conf.policy_timeout);
    let ends = match create(&store, &key, &wiring, &netns) {
        Ok(ends) => ends,
        Err(e) => {
            // The pair is made whole or not at all: a host end of this name is not ours.
            drop(remove::everything(&store, &key, None, now));
            return Err(e.into());
        }
    };
    let attached = Attached { result: result(conf, &wiring, path), store, key, interface };
    let wired = link::set_up(&wiring, &netns, ends).map_err(Error::from);
    let done = match wired.and_then(|()| confirmed(question, conf, &pending)) {
        Ok(()) => pending.finish().map_err(Error::from),
        // Whatever it is that fails: a DEL has taken it away.
        Err(_) if !pending.is_wanted() => Ok(false),
        Err(e) => Err(e),
    };
    match done {
        Ok(true) => Ok(attached),
        Ok(false) => {
            attached.undo(now);
            Err(deleted())
        }
        Err(e) => {
            attached.undo(now);
            Err(e)
        }
    }
}

/// The ranges to take addresses from: of each family of the node that has no fixed address.
fn pools(node: &NodeConfig, fixed: &[IpAddr]) -> Result<Vec<Pool>, Error> {
    let declared: Vec<IpNetwork> = node.pools.iter().flat_map(|pool| pool.cidrs.iter().copied()).collect();
    for ip in fixed {
        let allowed = |cidrs: &[IpNetwork]| Pool::new(cidrs, ip.is_ipv4()).contains(*ip);
        // Any tenant could put an address into BGP otherwise.
        if !allowed(&node.pod_cidrs) && !allowed(&declared) {
            return Err(Error::new(
                code::ADDRESS_REFUSED,
                format!("the fixed address {ip} is refused"),
                "it is neither in this node's pod CIDRs nor in a pool of NetworkConfiguration spec.addressPools",
            ));
        }
    }
    let pools: Vec<Pool> = [true, false]
        .into_iter()
        .filter(|v4| !fixed.iter().any(|ip| ip.is_ipv4() == *v4))
        .map(|v4| Pool::new(&node.pod_cidrs, v4))
        .filter(|pool| !pool.is_empty())
        .collect();
    if pools.is_empty() && fixed.is_empty() {
        let details = format!("node {} has no pod CIDR: set spec.podCIDRs of its Node", node.node_name);
        return Err(Error::new(code::TRY_AGAIN_LATER, "there are no addresses for pods", details));
    }
    Ok(pools)
}

fn create(store: &Store, key: &Key, wiring: &Wiring, netns: &Netns) -> Result<Ends, LinkError> {
    match link::create(wiring, netns) {
        // Of an ADD whose state is lost, or two attachments whose hashes meet: those keep their links.
        Err(e) if e.already_exists() && !is_anothers(store, key, &wiring.interface) => {
            if !link::delete(&wiring.interface)? {
                // Then it is the pod's end whose name is taken.
                return Err(e);
            }
            link::create(wiring, netns)
        }
        other => other,
    }
}

fn is_anothers(store: &Store, key: &Key, interface: &str) -> bool {
    let Ok(keys) = store.keys() else { return true };
    keys.iter()
        .any(|other| other != key && store.owned(other).is_some_and(|owned| owned.interface == interface))
}

/// Waits for the agent's word that the policy of this very pod is in force.
fn confirmed(question: Question, conf: &NetConf, pending: &Pending) -> Result<(), Error> {
    match question.answer(|| pending.is_wanted()) {
        Ok(Response::Ok {}) => Ok(()),
        Ok(Response::Error { msg, details, .. }) => Err(Error::new(code::TRY_AGAIN_LATER, msg, details)),
        Err(AskError::Withdrawn) => Err(deleted()),
        Err(e @ AskError::TimedOut(_)) => Err(Error::new(
            code::TRY_AGAIN_LATER,
            "the policy of the pod is not in force",
            format!("{e}; `manxctl status` tells what it waits for"),
        )),
        Err(e @ (AskError::Unreachable(_) | AskError::Garbled(_))) => Err(Error::new(
            code::TRY_AGAIN_LATER,
            "the policy of the pod is not in force",
            format!("{e}; is manx-agent running on this node with --run-dir {}?", conf.run_dir.display()),
        )),
    }
}

fn deleted() -> Error {
    Error::new(code::TRY_AGAIN_LATER, "the pod was deleted while it was attached", "a DEL of it has run")
}

fn result(conf: &NetConf, wiring: &Wiring, netns: &str) -> AddResult {
    let interface = |name: &str, mac, sandbox: &str| Interface {
        name: name.to_owned(),
        mac: format_mac(mac),
        mtu: Some(wiring.mtu),
        sandbox: sandbox.to_owned(),
    };
    let network = |ip, prefix| IpNetwork::new(ip, prefix).expect("a prefix length of the family");
    let default = |ip: IpAddr| {
        let everything = if ip.is_ipv4() { [0; 4].into() } else { IpAddr::from([0; 16]) };
        Route::new(network(everything, 0), gateway(ip))
    };
    let own = AddResult {
        // The host end has no sandbox: that is how bandwidth knows it.
        interfaces: vec![
            interface(&wiring.interface, HOST_MAC, ""),
            interface(&wiring.ifname, wiring.mac, netns),
        ],
        ips: wiring
            .ips
            .iter()
            .map(|ip| Address {
                address: network(*ip, whole(*ip)),
                gateway: Some(gateway(*ip)),
                interface: Some(1),
            })
            .collect(),
        routes: wiring.ips.iter().map(|ip| default(*ip)).collect(),
        dns: conf.dns.clone(),
    };
    let mut result = conf.prev_result.clone().unwrap_or_default();
    result.extend(own);
    result
}

fn not_ready(error: &NodeError) -> Error {
    let details = match error {
        NodeError::Missing(_) => format!(
            "{error}: manx-agent is not running on this node, or has not closed the dispatch yet; see `manxctl status`"
        ),
        NodeError::Io { .. } | NodeError::Json { .. } | NodeError::Invalid { .. } => {
            format!("{error}: are the agent and the plugin of one version?")
        }
    };
    Error::new(code::TRY_AGAIN_LATER, "the agent is not ready", details)
}
