//! Finds and removes all that is ours in this namespace's kernel: rules of both back ends, sets, routes, pod links.
//!
//! What is ours says so: chains `MANX-`, sets `manx4-` and `manx6-`, route protocol 77, links that begin with the prefix of
//! pod interfaces. Nothing else is looked at, and what fails does not stop the rest.

use std::time::Duration;

use super::Family;
use super::fib::{Fib, FibConfig};
use super::ipset::Ipsets;
use super::iptables::{self, Backend};
use super::link::Links;

/// What begins the names of our chains.
const CHAIN_PREFIX: &str = "MANX-";
/// What begins the names of our sets.
const SET_PREFIXES: [&str; 2] = ["manx4-", "manx6-"];
/// Deleting a million routes takes two seconds on a quiet machine.
const ROUTES_DEADLINE: Duration = Duration::from_secs(60);

/// One thing that was removed, or that could not be, in words.
pub type Removal = Result<String, String>;

/// The pod links of this namespace by name, sorted: those that begin with `prefix` and 11 hexadecimal digits.
///
/// # Errors
/// The links can't be read, in words.
pub fn pod_links(prefix: &str) -> Result<Vec<String>, String> {
    let (links, _events) = Links::spawn().map_err(|e| e.to_string())?;
    let ours = |name: &String| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.len() == 11 && rest.chars().all(|c| c.is_ascii_hexdigit()))
    };
    Ok(links.names().into_iter().filter(ours).collect())
}

/// Removes everything but pod links. Rules go before the sets that they speak of.
pub fn remove() -> Vec<Removal> {
    let mut done = Vec::new();
    for backend in Backend::BOTH {
        for family in Family::BOTH {
            // Asking iptables-legacy would load its modules; where none of its tables is there, nothing of ours is.
            let absent =
                backend == Backend::Legacy && iptables::legacy_tables(family).is_none_or(|t| t.is_empty());
            if !absent {
                done.extend(remove_rules(backend, family));
            }
        }
    }
    done.extend(remove_sets());
    done.extend(remove_routes());
    done
}

/// Removes pod links, each with its peer, its routes and its neighbours.
pub fn remove_links(names: &[String]) -> Vec<Removal> {
    names
        .iter()
        .map(|name| super::link::delete(name).map(|()| format!("link {name}")).map_err(|e| e.to_string()))
        .collect()
}

fn remove_rules(backend: Backend, family: Family) -> Option<Removal> {
    let save = match iptables::save(backend, family) {
        Ok(save) => save,
        // A back end that is not installed holds nothing that we could remove.
        Err(iptables::IptablesError::Missing(_)) => return None,
        Err(e) => return Some(Err(e.to_string())),
    };
    let text = removal(&save)?;
    let chains = text.lines().filter(|l| l.starts_with("-X ")).count();
    let what = format!("{chains} {family} chains ({backend})");
    Some(iptables::restore(backend, family, &text).map(|()| what).map_err(|e| e.to_string()))
}

/// What takes our jumps and chains out of the tables of `save`; `None`: there are none.
fn removal(save: &str) -> Option<String> {
    let mut out = String::new();
    let mut tables = save.split_inclusive("COMMIT\n");
    for table in tables.by_ref() {
        let name = table.lines().find_map(|l| l.strip_prefix('*')).unwrap_or_default();
        let chain =
            |line: &str| line.split_whitespace().nth(0).and_then(|c| c.strip_prefix(':')).map(str::to_owned);
        let chains: Vec<String> =
            table.lines().filter_map(chain).filter(|c| c.starts_with(CHAIN_PREFIX)).collect();
        let jump = |line: &&str| {
            line.strip_prefix("-A ").is_some_and(|rest| !rest.starts_with(CHAIN_PREFIX))
                && line.contains(CHAIN_PREFIX)
        };
        let jumps: Vec<&str> = table.lines().filter(jump).collect();
        if chains.is_empty() && jumps.is_empty() {
            continue;
        }
        out.push_str(&format!("*{name}\n"));
        chains.iter().for_each(|c| out.push_str(&format!(":{c} - [0:0]\n")));
        jumps.iter().for_each(|j| out.push_str(&format!("-D {}\n", &j[3..])));
        chains.iter().for_each(|c| out.push_str(&format!("-X {c}\n")));
        out.push_str("COMMIT\n");
    }
    (!out.is_empty()).then_some(out)
}

fn remove_sets() -> Vec<Removal> {
    let mut sets = match Ipsets::open() {
        Ok(sets) => sets,
        Err(e) => return vec![Err(e.to_string())],
    };
    let found = match sets.list(&SET_PREFIXES) {
        Ok(found) => found,
        Err(e) => return vec![Err(e.to_string())],
    };
    found
        .into_iter()
        .map(|set| sets.destroy(&set.name).map(|()| format!("set {}", set.name)).map_err(|e| e.to_string()))
        .collect()
}

fn remove_routes() -> Option<Removal> {
    let fib = match Fib::spawn(FibConfig::default()) {
        Ok(fib) => fib,
        Err(e) => return Some(Err(e.to_string())),
    };
    let timely = fib.wait_idle(ROUTES_DEADLINE);
    let count: usize = Family::BOTH.into_iter().map(|f| fib.stats().installed(f)).sum();
    if timely && count == 0 {
        return None;
    }
    fib.flush_all();
    Some(match fib.wait_idle(ROUTES_DEADLINE) {
        true => Ok(format!("{count} routes")),
        false => Err(format!("{count} routes are not gone after {} s", ROUTES_DEADLINE.as_secs())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_jumps_and_chains_go_and_nothing_else_is_named() {
        let save = "# generated\n*raw\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n:KUBE-FORWARD - [0:0]\n:MANX-FORWARD - [0:0]\n-A FORWARD -m comment --comment \"manx:x\" -j MANX-FORWARD\n-A FORWARD -j KUBE-FORWARD\n-A MANX-FORWARD -j DROP\nCOMMIT\n";
        assert_eq!(
            removal(save).unwrap(),
            "*filter\n:MANX-FORWARD - [0:0]\n-D FORWARD -m comment --comment \"manx:x\" -j MANX-FORWARD\n-X MANX-FORWARD\nCOMMIT\n"
        );
        assert_eq!(removal("*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j KUBE-FORWARD\nCOMMIT\n"), None);
    }
}
