//! Takes everything of ours out of this namespace's kernel, and nothing else: routes and next hops by their protocol
//! number, chains and rules by name and comment in both families and both back ends, sets and pod links by name.
//!
//! What is ours is told by the names alone, so that it works without state, after a crash, and on what another version
//! left. What fails does not stop the rest.

use std::collections::BTreeSet;

use super::Family;
use super::fib::object::KernelObject;
use super::fib::{KernelRoute, Ownership, PROTOCOL, RTM_GETROUTE, RTM_NEWROUTE, object};
use super::ipset::Ipsets;
use super::iptables::{self, Backend, IptablesError};
use super::link::Links;
use super::netlink::{Batch, NLM_F_DUMP, Netlink, NetlinkError};

/// The name of a host veth is the prefix and this many hexadecimal digits.
const LINK_DIGITS: usize = 11;
/// How our sets begin.
const SET_PREFIXES: [&str; 2] = ["manx4-", "manx6-"];
/// How our chains begin.
const CHAIN_PREFIX: &str = "MANX-";
/// How the comments of our rules begin, as `iptables-save` prints them with quotes and without.
const COMMENTS: [&str; 2] = ["--comment \"manx:", "--comment manx:"];
/// Requests in one `sendmsg`.
const BATCH: usize = 256;

/// One thing that was removed, or that could not be, in words.
pub type Removal = Result<String, String>;

/// The pod links of this namespace by name, sorted: those that begin with `prefix` and 11 hexadecimal digits.
///
/// # Errors
/// The links can't be read, in words.
pub fn pod_links(prefix: &str) -> Result<Vec<String>, String> {
    let (links, _events) = Links::spawn().map_err(|e| e.to_string())?;
    Ok(links.names().into_iter().filter(|name| is_pod_link(name, prefix)).collect())
}

/// Removes pod links, each with its peer, its routes and its neighbours.
pub fn remove_links(names: &[String]) -> Vec<Removal> {
    names
        .iter()
        .map(|name| super::link::delete(name).map(|()| format!("link {name}")).map_err(|e| e.to_string()))
        .collect()
}

/// Removes everything but pod links; their host routes go as well. Rules go before the sets that they speak of.
pub fn remove() -> Vec<Removal> {
    let mut done = Vec::new();
    for backend in Backend::BOTH {
        for family in Family::BOTH {
            done.extend(remove_rules(backend, family, |_| true));
        }
    }
    done.extend(remove_sets());
    done.extend(super::service_guard::set(&BTreeSet::new()).err().map(|e| Err(e.to_string())));
    match Netlink::route() {
        Ok(mut socket) => {
            for family in Family::BOTH {
                done.extend(remove_routes(&mut socket, family).unwrap_or_else(|e| vec![Err(e.to_string())]));
            }
            done.extend(remove_next_hops(&mut socket).unwrap_or_else(|e| vec![Err(e.to_string())]));
        }
        Err(e) => done.push(Err(e.to_string())),
    }
    done
}

/// Removes our rules and chains from one back end's tables, those that are `wanted` by name. `None`: nothing of ours is
/// there.
pub fn remove_rules(backend: Backend, family: Family, wanted: impl Fn(&str) -> bool) -> Option<Removal> {
    // Asking iptables-legacy would load its modules; where none of its tables is there, nothing of ours is.
    if backend == Backend::Legacy && iptables::legacy_tables(family).is_none_or(|tables| tables.is_empty()) {
        return None;
    }
    let save = match iptables::save(backend, family) {
        Ok(save) => save,
        // A back end that is not installed holds nothing that we could remove.
        Err(IptablesError::Missing(_)) => return None,
        Err(e) => return Some(Err(e.to_string())),
    };
    let text = removal(&save, wanted)?;
    let count = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    let what = format!("{} {family} chains and {} jumps ({backend})", count("-X "), count("-D "));
    Some(iptables::restore(backend, family, &text).map(|()| what).map_err(|e| e.to_string()))
}

/// What takes our rules and chains out of the `wanted` tables of `save`; `None`: there are none.
fn removal(save: &str, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let mut out = String::new();
    for table in save.split_inclusive("COMMIT\n") {
        let name = table.lines().find_map(|line| line.strip_prefix('*')).unwrap_or_default();
        let chains: Vec<&str> = table
            .lines()
            .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
            .filter(|chain| chain.starts_with(CHAIN_PREFIX))
            .collect();
        // Rules in our own chains go with them.
        let rules: Vec<&str> = table
            .lines()
            .filter_map(|line| line.strip_prefix("-A "))
            .filter(|rule| !rule.starts_with(CHAIN_PREFIX) && is_ours(rule))
            .collect();
        if !wanted(name) || (chains.is_empty() && rules.is_empty()) {
            continue;
        }
        out.push_str(&format!("*{name}\n"));
        chains.iter().for_each(|chain| out.push_str(&format!(":{chain} - [0:0]\n")));
        rules.iter().for_each(|rule| out.push_str(&format!("-D {rule}\n")));
        chains.iter().for_each(|chain| out.push_str(&format!("-X {chain}\n")));
        out.push_str("COMMIT\n");
    }
    (!out.is_empty()).then_some(out)
}

/// By comment or by target; not by what somebody else's comment may speak of.
fn is_ours(rule: &str) -> bool {
    let target = ["-j ", "-g "].iter().any(|jump| {
        rule.rsplit_once(jump)
            .is_some_and(|(_, target)| target.starts_with(CHAIN_PREFIX) && !target.contains('"'))
    });
    target || COMMENTS.iter().any(|comment| rule.contains(comment))
}

fn remove_sets() -> Vec<Removal> {
    let found = Ipsets::open().and_then(|mut sets| Ok((sets.list(&SET_PREFIXES)?, sets)));
    match found {
        Err(e) => vec![Err(e.to_string())],
        Ok((found, mut sets)) => found
            .into_iter()
            .map(|set| {
                sets.destroy(&set.name).map(|()| format!("set {}", set.name)).map_err(|e| e.to_string())
            })
            .collect(),
    }
}

/// In every table and at every metric.
fn remove_routes(socket: &mut Netlink, family: Family) -> Result<Vec<Removal>, NetlinkError> {
    let mut found = Vec::new();
    let mut request = Batch::new();
    request.message(RTM_GETROUTE, NLM_F_DUMP, |m| {
        m.fixed(&[family.number(), 0, 0, 0, 0, PROTOCOL, 0, 0, 0, 0, 0, 0]);
    });
    let read = socket.dump(
        &mut request,
        || format!("reading {family} routes"),
        |kind, payload| {
            if kind == RTM_NEWROUTE
                && let Some(route) = KernelRoute::parse(payload)
                && route.protocol == PROTOCOL
            {
                found.push((route.prefix, route.metric, route.table));
            }
        },
    );
    match read {
        // A namespace has no main table before its first route.
        Err(NetlinkError::Refused { refusal, .. }) if refusal.errno == libc::ENOENT => {}
        read => drop(read?),
    }
    let mut done = Vec::new();
    let mut gone = found.len();
    for chunk in found.chunks(BATCH) {
        let mut batch = Batch::new();
        for &(prefix, metric, table) in chunk {
            Ownership { protocol: PROTOCOL, metric, table }.delete(&mut batch, prefix);
        }
        socket.exchange(&mut batch, |index, refusal| {
            gone -= 1;
            done.push(Err(format!("deleting route {}: {refusal}", chunk[index].0)));
        })?;
    }
    if gone > 0 {
        done.push(Ok(format!("{gone} {family} routes")));
    }
    Ok(done)
}

fn remove_next_hops(socket: &mut Netlink) -> Result<Vec<Removal>, NetlinkError> {
    let mut found = BTreeSet::new();
    let mut request = Batch::new();
    object::dump(&mut request);
    let read = socket.dump(
        &mut request,
        || "reading next hops".to_owned(),
        |kind, payload| {
            if kind == object::RTM_NEWNEXTHOP {
                let object = KernelObject::parse(payload).filter(|object| object.protocol == PROTOCOL);
                found.extend(object.map(|object| object.id));
            }
        },
    );
    match read {
        // A kernel before 5.3 has no such objects.
        Err(NetlinkError::Refused { refusal, .. }) if refusal.errno == libc::EOPNOTSUPP => {
            return Ok(Vec::new());
        }
        read => drop(read?),
    }
    // Groups were made after their members.
    let remove = |id: u32| {
        let mut batch = Batch::new();
        object::delete(&mut batch, id);
        let removed = socket.request(&mut batch, || format!("deleting next hop {id}"));
        removed.map(|()| format!("next hop {id}")).map_err(|e| e.to_string())
    };
    Ok(found.into_iter().rev().map(remove).collect())
}

fn is_pod_link(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|digits| {
        digits.len() == LINK_DIGITS
            && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_jumps_and_chains_go_and_nothing_else_is_named() {
        let save = "# generated
*raw
:PREROUTING ACCEPT [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:KUBE-FORWARD - [0:0]
:MANX-FORWARD - [0:0]
-A INPUT -m comment --comment \"before -j MANX-FORWARD, not manx: ours\" -j ACCEPT
-A FORWARD -m comment --comment \"manx:x pods\" -j MANX-FORWARD
-A FORWARD -m comment --comment manx:guard -j DROP
-A FORWARD -j KUBE-FORWARD
-A MANX-FORWARD -j DROP
COMMIT
";
        let expected = "*filter
:MANX-FORWARD - [0:0]
-D FORWARD -m comment --comment \"manx:x pods\" -j MANX-FORWARD
-D FORWARD -m comment --comment manx:guard -j DROP
-X MANX-FORWARD
COMMIT
";
        assert_eq!(removal(save, |_| true).unwrap(), expected);
        assert_eq!(removal(save, |table| table != "filter"), None);
        let foreign = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j KUBE-FORWARD\nCOMMIT\n";
        assert_eq!(removal(foreign, |_| true), None);
    }

    #[test]
    fn a_pod_link_is_told_by_the_form_of_its_name() {
        assert!(is_pod_link("manx0123456789a", "manx"));
        for other in ["manx", "manx0", "manx0123456789g", "manx0123456789ab", "eth0", "manx-bridge-00"] {
            assert!(!is_pod_link(other, "manx"), "{other}");
        }
    }
}
