//! Routes a second into the kernel: the agent's FIB writer against the floor.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use manx_agent::kernel::fib::{Fib, FibConfig, NextHop, Route};

use super::floor::{self, Floor};
use super::{Comparison, time_here};
use crate::netns::{End, Guard, Netns, connect};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
const LIMIT: Duration = Duration::from_secs(120);

/// Adds and deletes `count` routes in each of `rounds` rounds and prints both tables.
///
/// # Errors
/// When a namespace cannot be made or the kernel refuses a route.
pub fn run(prefix: &str, rounds: u32, count: u32) -> Result<()> {
    let mut adding = Comparison::new(&format!("{count} routes into the kernel"), count);
    let mut deleting = Comparison::new(&format!("{count} routes out of the kernel"), count);
    let prefixes = floor::prefixes(count);
    let networks = floor::networks(&prefixes);
    for round in 0..rounds {
        let _guard = Guard::new(prefix)?;
        // Whoever comes second finds a warmer machine: they take turns.
        for who in if round % 2 == 0 { ["floor", "manx"] } else { ["manx", "floor"] } {
            let netns = link(&format!("{prefix}{who}"))?;
            if who == "floor" {
                let (added, deleted) = netns.enter(|| -> Result<_> {
                    let mut floor = Floor::open()?;
                    let ifindex = ifindex()?;
                    let ((), added) = time_here(|| floor.add(&prefixes, GATEWAY, ifindex))?;
                    expect_routes(count)?;
                    let ((), deleted) = time_here(|| floor.delete(&prefixes))?;
                    expect_routes(0)?;
                    Ok((added, deleted))
                })??;
                adding.add("raw netlink, 256 a send", added);
                deleting.add("raw netlink, 256 a send", deleted);
            } else {
                let (added, deleted) = netns.enter(|| -> Result<_> {
                    let fib = Fib::spawn(FibConfig::default())?;
                    let hop = NextHop { gateway: IpAddr::V4(GATEWAY), ifindex: ifindex()? };
                    let route = Route::via([hop]).context("a route with a next hop")?;
                    if !fib.wait_idle(LIMIT) {
                        bail!("the FIB writer does not come to rest at its start");
                    }
                    let settle = |route: Option<Route>| {
                        fib.set(networks.iter().map(|network| (*network, route.clone())));
                        if fib.wait_idle(LIMIT) {
                            Ok(())
                        } else {
                            bail!("the FIB writer is busy after {LIMIT:?}")
                        }
                    };
                    let ((), added) = time_here(|| settle(Some(route)))?;
                    expect_routes(count)?;
                    let ((), deleted) = time_here(|| settle(None))?;
                    expect_routes(0)?;
                    Ok((added, deleted))
                })??;
                adding.add("manx FIB writer", added);
                deleting.add("manx FIB writer", deleted);
            }
        }
    }
    adding.print();
    deleting.print();
    Ok(())
}

/// A namespace with a link that has a neighbour at [`GATEWAY`].
fn link(name: &str) -> Result<Netns> {
    let netns = Netns::create(name)?;
    let far = Netns::create(&format!("{name}-far"))?;
    connect(
        &End { netns: &netns, interface: "near", addresses: vec!["192.168.0.1/24".into()] },
        &End { netns: &far, interface: "far", addresses: vec![format!("{GATEWAY}/24")] },
    )?;
    Ok(netns)
}

fn ifindex() -> Result<u32> {
    nix::net::if_::if_nametoindex("near").context("the link is there")
}

/// The kernel's own count, give or take the few routes of the link.
fn expect_routes(count: u32) -> Result<()> {
    let held = kernel_prefixes()?;
    if (count..count + 16).contains(&held) {
        Ok(())
    } else {
        bail!("the kernel holds {held} routes, not {count}")
    }
}

/// How many IPv4 prefixes the kernel holds in the main table of the calling thread's namespace.
///
/// # Errors
/// When the kernel does not tell.
pub fn kernel_prefixes() -> Result<u32> {
    let text = std::fs::read_to_string("/proc/thread-self/net/fib_triestat").context("no fib_triestat")?;
    let main = text.split("Main:").nth(1).unwrap_or(&text);
    let line = main.lines().find_map(|line| line.trim().strip_prefix("Prefixes:"));
    line.context("fib_triestat has no count")?.trim().parse().context("fib_triestat's count is a number")
}
