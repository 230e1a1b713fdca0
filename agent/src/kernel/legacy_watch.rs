//! Notices that somebody else has changed the tables of iptables-legacy, which tells nobody: asks the kernel four times a second how
//! large each table is and where its built-in chains end. That costs microseconds and reads no rule.
//!
//! A built-in chain that holds a jump of ours and is empty was flushed: told at once. Any other change of size may be about
//! rules of others: told as such, and worth a look now and then. A change that keeps every size is left to the audit. Our own
//! writes are known by their count ([`iptables::writes`]); what a stranger does at the same moment is left to the audit, too.
//!
//! This is the agent's only unsafe code: no safe interface offers IPT_SO_GET_INFO, whose answer is written over the question.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use manx_policy::ir::Table;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::{Family, iptables};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(250);
/// IPT_SO_GET_INFO and IP6T_SO_GET_INFO: both are XT_BASE_CTL.
const GET_INFO: libc::c_int = 64;
/// NF_INET_FORWARD and its neighbours: indices of `hook_entry` and `underflow`.
const PREROUTING: usize = 0;
const INPUT: usize = 1;
const FORWARD: usize = 2;
const POSTROUTING: usize = 4;

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// A chain that held a jump of ours is empty.
    Flushed,
    /// Some table has another size: somebody's rules have changed, perhaps ours.
    Resized,
}

/// struct ipt_getinfo, which is struct ip6t_getinfo as well.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Info {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

impl Info {
    /// No rule before the chain's policy.
    fn is_empty(&self, hook: usize) -> bool {
        self.hook_entry[hook] == self.underflow[hook]
    }
}

/// Starts a thread that calls `disturbed` when somebody else has changed a table in the network namespace of the caller, until
/// that returns false.
///
/// # Errors
/// No socket, or no thread.
pub fn spawn(disturbed: impl Fn(Disturbance) -> bool + Send + 'static) -> io::Result<()> {
    let mut watch = Watch::open()?;
    std::thread::Builder::new().name("legacy-watch".into()).spawn(move || {
        loop {
            std::thread::sleep(PERIOD);
            if let Some(found) = watch.look()
                && !disturbed(found)
            {
                return;
            }
        }
    })?;
    Ok(())
}

/// The hooks at which a table has a jump of ours.
fn hooks(table: Table) -> &'static [usize] {
    match table {
        Table::Filter => &[INPUT, FORWARD],
        Table::Mangle => &[FORWARD, POSTROUTING],
        Table::Raw => &[PREROUTING],
    }
}

struct Watch {
    sockets: [OwnedFd; 2],
    /// Tables of both families as they were, and how often we had written by then. `None`: not looked at yet.
    known: Option<(u64, Vec<(Table, Info)>)>,
}

impl Watch {
    fn open() -> io::Result<Self> {
        let raw = |family| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp);
        Ok(Watch { sockets: [raw(AddressFamily::Inet)?, raw(AddressFamily::Inet6)?], known: None })
    }

    fn look(&mut self) -> Option<Disturbance> {
        let writes = iptables::writes()?;
        let mut now = Vec::new();
        for (family, socket) in Family::BOTH.into_iter().zip(&self.sockets) {
            for table in Table::ALL {
                // One that is not there yet is as good as empty.
                now.push((table, info(socket, family, table).unwrap_or_default()));
            }
        }
        if iptables::writes() != Some(writes) {
            return None; // Half of it was ours.
        }
        let (known, before) = self.known.replace((writes, now.clone()))?;
        let emptied = |((table, before), (_, now)): (&(Table, Info), &(Table, Info))| {
            hooks(*table).iter().any(|hook| !before.is_empty(*hook) && now.is_empty(*hook))
        };
        if before.iter().zip(&now).any(emptied) {
            return Some(Disturbance::Flushed);
        }
        // Since we wrote last: what has changed before is taken for ours.
        (known == writes && before != now).then_some(Disturbance::Resized)
    }
}

fn info(socket: &OwnedFd, family: Family, table: Table) -> nix::Result<Info> {
    let level = match family {
        Family::Ipv4 => libc::IPPROTO_IP,
        Family::Ipv6 => libc::IPPROTO_IPV6,
    };
    let mut info = Info::default();
    info.name[..table.as_str().len()].copy_from_slice(table.as_str().as_bytes());
    let mut length = size_of::<Info>() as libc::socklen_t;
    // SAFETY: the kernel reads the name and writes no more than `length` bytes, which is the size of `info`; every bit pattern
    // is a valid `Info`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, (&raw mut info).cast(), &raw mut length)
    };
    Errno::result(result).map(|_| info)
}
