//! Taking attachments away: DEL, GC, and what a failed or crashed ADD leaves.
//!
//! Link first, addresses last: an address is free only when nothing answers to it any more. All of it can be repeated,
//! needs no namespace, no agent and no earlier result, and goes by container id and interface name alone.

use std::time::{Duration, Instant};

use crate::conf::NetConf;
use crate::link;
use crate::names::{self, Key};
use crate::node::NodeConfig;
use crate::spec::{Error, code};
use crate::store::Store;

/// Detaches a pod; what is not there is no error. `now` in epoch seconds.
///
/// # Errors
/// The link could not be removed, and then its addresses stay held; or the store is broken.
pub(crate) fn del(key: &Key, conf: &NetConf, now: u64) -> Result<(), Error> {
    let store = Store::existing(&conf.run_dir);
    let known = store.as_ref().and_then(|store| interface(store, key));
    // The state may be lost while the link is not.
    let interface = known.unwrap_or_else(|| {
        let prefix = NodeConfig::read(&conf.run_dir).map(|node| node.interface_prefix);
        let prefix = prefix.as_deref().unwrap_or(names::DEFAULT_PREFIX);
        names::host_interface(prefix, &key.container_id, &key.ifname)
    });
    match store {
        Some(store) => {
            interrupt_add(&store, key, &interface, conf)?;
            everything(&store, key, Some(&interface), now)
        }
        None => Ok(link::delete_detached(&interface).map(drop)?),
    }
}

/// Ends an ADD of the same attachment that still runs: while it does, it may make a link whose addresses would be free by
/// then. Without its link and its attachment it fails at the next step, at the latest when the agent has answered.
///
/// # Errors
/// It has not ended in the time that an ADD may take, and nothing is released.
fn interrupt_add(store: &Store, key: &Key, interface: &str, conf: &NetConf) -> Result<(), Error> {
    let Some(running) = store.interrupt(key)? else { return Ok(()) };
    let patience = conf.policy_timeout + Duration::from_secs(5);
    let deadline = Instant::now() + patience;
    while !running.ended() {
        link::delete_detached(interface)?;
        store.retract(key)?;
        if Instant::now() > deadline {
            return Err(Error::new(
                code::TRY_AGAIN_LATER,
                format!("an ADD of {key} is still running"),
                format!("it was told to end {} s ago", patience.as_secs()),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Removes what the runtime does not know any more, of this network only; without a list, nothing. `now` in epoch
/// seconds.
///
/// # Errors
/// Of the first attachment that could not be removed; the others are.
pub(crate) fn gc(conf: &NetConf, now: u64) -> Result<(), Error> {
    let (Some(valid), Some(store)) = (&conf.valid_attachments, Store::existing(&conf.run_dir)) else {
        return Ok(());
    };
    let mut gone = Vec::new();
    let mut interfaces = Vec::new();
    for key in store.keys()? {
        let network = store.owned(&key).map(|o| o.network).or_else(|| store.attachment(&key)?.network);
        if valid.contains(&key) || network.as_deref() != Some(conf.name.as_str()) || store.is_busy(&key) {
            continue;
        }
        store.condemn(&key)?;
        interfaces.extend(interface(&store, &key));
        gone.push(key);
    }
    link::delete_all(&interfaces)?;
    let mut outcome = Ok(());
    for key in gone {
        outcome = outcome.and(everything(&store, &key, None, now));
    }
    outcome
}

/// Takes all of an attachment away; `interface`: the host end, if there may be one. `now` in epoch seconds.
///
/// # Errors
/// The link could not be removed, and then all else stays for the next try; or the store is broken.
pub(crate) fn everything(store: &Store, key: &Key, interface: Option<&str>, now: u64) -> Result<(), Error> {
    store.condemn(key)?;
    if let Some(interface) = interface {
        link::delete_detached(interface)?;
    }
    let retracted = store.retract(key);
    let released = store.release(key, now);
    let abandoned = store.abandon(key);
    Ok(retracted.and(released).and(abandoned)?)
}

/// Takes away what an ADD that crashed has left; its successor's mark stays.
///
/// # Errors
/// As those of [`everything`].
pub(crate) fn leftovers(store: &Store, key: &Key, now: u64) -> Result<(), Error> {
    if let Some(interface) = interface(store, key) {
        link::delete_detached(&interface)?;
    }
    store.retract(key)?;
    Ok(store.release(key, now)?)
}

/// The host end, as ADD has noted it.
fn interface(store: &Store, key: &Key) -> Option<String> {
    store.owned(key).map(|owned| owned.interface).or_else(|| Some(store.attachment(key)?.interface))
}
