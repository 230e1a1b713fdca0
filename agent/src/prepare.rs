//! `manx-agent prepare`: what a node needs and the agent itself may not do, for a privileged init container.
//!
//! Kernel modules, settings of the host's network namespace, the name of our route protocol for `ip route`, the CNI plugin. All of it
//! can be done again at any time. What is not vital is told and left: a setting that an older kernel does not have, a
//! module that is built in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::cni_config;
use crate::kernel::fib::PROTOCOL;
use crate::kernel::sysctl::{self, SysctlError};
use crate::options::Feature;

/// The file in which `ip` finds the name of our route protocol, within iproute2's directory.
pub const PROTOCOL_NAME: &str = "rt_protos.d/manx.conf";

/// What is loaded on demand only by those who may load modules.
const MODULES: &[&str] = &[
    "nf_tables",
    "nft_compat",
    "ip_tables",
    "ip6_tables",
    "nf_conntrack_netlink",
    "nfnetlink_log",
    "ip_set",
    "ip_set_hash_ip",
    "ip_set_hash_net",
    "ip_set_hash_ipport",
    "xt_set",
    "xt_comment",
    "xt_mark",
    "xt_conntrack",
    "xt_NFLOG",
    "veth",
];

/// Settings of a router with several equal paths: name, value, and whether nothing works without it.
const SETTINGS: &[(&str, &str, bool)] = &[
    ("net.ipv4.ip_forward", "1", true),
    ("net.ipv6.conf.all.forwarding", "1", false),
    // Layer 4, so that flows between the same two addresses use all paths.
    ("net.ipv4.fib_multipath_hash_policy", "1", false),
    ("net.ipv6.fib_multipath_hash_policy", "1", false),
    // Without, every change of a next hop is told for each route that uses it: 58 ms instead of 0.03 for 100,000 routes.
    ("net.ipv4.nexthop_compat_mode", "0", false),
];

/// Prepares the node for what is enabled; says on standard output what it changed.
///
/// # Errors
/// IPv4 forwarding cannot be switched on, or a file cannot be written.
pub fn run(
    enable: &[Feature],
    plugin: Option<&Path>,
    cni_bin_dir: &Path,
    iproute2_dir: Option<&Path>,
) -> anyhow::Result<()> {
    if enable.contains(&Feature::Policy) {
        load_modules();
    }
    if enable.contains(&Feature::Bgp) || enable.contains(&Feature::Cni) {
        keep_router_advertisements();
        for (name, value, vital) in SETTINGS {
            match set(name, value) {
                Ok(false) => {}
                Ok(true) => println!("{name} = {value}"),
                Err(e) if *vital => return Err(e.into()),
                Err(e) => println!("left as it is: {e}"),
            }
        }
        if let Some(dir) = iproute2_dir {
            name_protocol(dir)?;
        }
    }
    if let Some(plugin) = plugin.filter(|_| enable.contains(&Feature::Cni))
        && cni_config::install(plugin, cni_bin_dir)?
    {
        println!("installed the CNI plugin in {}", cni_bin_dir.display());
    }
    Ok(())
}

/// Sets it unless it is so already. Whether it was changed.
fn set(name: &str, value: &str) -> Result<bool, SysctlError> {
    if sysctl::read(name)? == value {
        return Ok(false);
    }
    sysctl::write(name, value).map(|()| true)
}

/// A host that forwards forgets what it learned from router advertisements, its default route first, unless accept_ra is 2
/// (kernel: ip-sysctl, accept_ra). Interfaces that listen go on listening.
fn keep_router_advertisements() {
    if sysctl::read("net.ipv6.conf.all.forwarding").is_ok_and(|value| value == "1") {
        return;
    }
    let Ok(interfaces) = fs::read_dir("/proc/sys/net/ipv6/conf") else { return };
    for interface in interfaces.flatten() {
        let interface = interface.file_name().to_string_lossy().into_owned();
        let name = format!("net/ipv6/conf/{interface}/accept_ra");
        if interface != "all" && sysctl::read(&name).is_ok_and(|value| value == "1") {
            match sysctl::write(&name, "2") {
                Ok(()) => println!("{name} = 2, so that its routes outlive forwarding"),
                Err(e) => println!("left as it is: {e}"),
            }
        }
    }
}

fn load_modules() {
    let out = Command::new("modprobe").arg("-a").args(MODULES).output();
    match out {
        Ok(out) if out.status.success() => {}
        Ok(out) => {
            let words = String::from_utf8_lossy(&out.stderr);
            println!(
                "not all modules were loaded; where they are built in, nothing is lost: {}",
                words.trim()
            );
        }
        Err(e) => println!("no modules were loaded, modprobe cannot be run: {e}"),
    }
}

/// Tells `ip route` the name of our protocol.
fn name_protocol(iproute2_dir: &Path) -> anyhow::Result<()> {
    let path = iproute2_dir.join(PROTOCOL_NAME);
    let text = format!("{PROTOCOL}\tmanx\n");
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(iproute2_dir))?;
        fs::write(&path, text)
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

/// Takes the name back, with its directory where nothing else is in it. The file, if there was one.
pub fn forget_protocol(iproute2_dir: &Path) -> Option<PathBuf> {
    let path = iproute2_dir.join(PROTOCOL_NAME);
    fs::remove_file(&path).ok()?;
    if let Some(dir) = path.parent() {
        _ = fs::remove_dir(dir);
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_prepared_in_a_namespace_of_its_own_and_again_without_harm() {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace needs root");
            let dir = tempfile::tempdir().unwrap();
            let (plugin, bin, iproute2) =
                (dir.path().join("manx-cni"), dir.path().join("bin"), dir.path().join("iproute2"));
            fs::write(&plugin, "#!/bin/sh\n").unwrap();
            sysctl::write("net.ipv4.ip_forward", "0").unwrap();
            sysctl::write("net/ipv6/conf/default/accept_ra", "1").unwrap();
            for _ in 0..2 {
                run(&[Feature::Bgp, Feature::Cni], Some(&plugin), &bin, Some(&iproute2)).unwrap();
                for (name, value, _) in SETTINGS {
                    assert_eq!(sysctl::read(name).unwrap(), *value, "{name}");
                }
                assert_eq!(sysctl::read("net/ipv6/conf/default/accept_ra").unwrap(), "2");
                assert_eq!(fs::read(bin.join("manx")).unwrap(), fs::read(&plugin).unwrap());
                assert_eq!(fs::read_to_string(iproute2.join(PROTOCOL_NAME)).unwrap(), "77\tmanx\n");
            }
            assert!(forget_protocol(&iproute2).is_some() && forget_protocol(&iproute2).is_none());
        });
        thread.join().unwrap();
    }

    #[test]
    fn policy_alone_installs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = dir.path().join("manx-cni");
        fs::write(&plugin, "").unwrap();
        run(&[Feature::Policy], Some(&plugin), &dir.path().join("bin"), Some(dir.path())).unwrap();
        assert!(!dir.path().join("bin").exists() && !dir.path().join(PROTOCOL_NAME).exists());
    }
}
