//! Hears from nf_tables when somebody else changes rules of ours, so that they are mended at once and not at the next audit.
//!
//! The kernel sends a message for every rule and chain that changes and, after those of one transaction, one with its new
//! generation. What other programs do in chains of their own passes by unnoticed, however often they write.
//!
//! iptables-legacy tells nobody of its changes: see [`super::legacy_watch`].

use std::io;

use super::iptables;
use super::netlink::{Attrs, Header, Netlink, NetlinkError, text, u32_at};

/// NFNLGRP_NFTABLES.
const GROUP: u32 = 7;
/// NFNL_SUBSYS_NFTABLES, in the high byte of the message type.
const SUBSYSTEM: u16 = 10;
/// struct nfgenmsg.
const NFGENMSG: usize = 4;
/// How the names of our chains begin.
const OURS: &str = "MANX-";
/// The built-in chains in which jumps of ours are.
const BUILT_IN: [&str; 4] = ["FORWARD", "INPUT", "PREROUTING", "POSTROUTING"];

/// NFT_MSG_ numbers.
mod message {
    pub(super) const DELETE_TABLE: u8 = 2;
    pub(super) const DELETE_CHAIN: u8 = 5;
    pub(super) const NEW_RULE: u8 = 6;
    pub(super) const DELETE_RULE: u8 = 8;
    pub(super) const NEW_GENERATION: u8 = 15;
}

/// NFTA_ numbers.
mod attribute {
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const GENERATION_PID: u16 = 2;
}

/// The watch can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The socket.
    #[error("changes of rules cannot be followed: {0}")]
    Netlink(#[from] NetlinkError),
    /// The thread.
    #[error("changes of rules cannot be followed: {0}")]
    Thread(#[from] io::Error),
}

/// Starts a thread that calls `disturbed` whenever another program has changed rules of ours in the network namespace of the
/// caller, until `disturbed` returns false.
///
/// # Errors
/// The socket or the thread can't be had.
pub fn spawn(disturbed: impl Fn() -> bool + Send + 'static) -> Result<(), WatchError> {
    let mut socket = Netlink::netfilter_monitor(GROUP)?;
    std::thread::Builder::new().name("nft-watch".into()).spawn(move || {
        let mut transaction = Transaction::default();
        loop {
            let mut strangers = false;
            match socket.drain(|header, payload| strangers |= transaction.take(header, payload)) {
                Ok(_) => {}
                // What was missed may have been about us.
                Err(NetlinkError::Overrun { .. }) => strangers = true,
                Err(error) => {
                    tracing::warn!(%error, "changes of rules are only found by audits from now on");
                    return;
                }
            }
            if strangers && !disturbed() {
                return;
            }
        }
    })?;
    Ok(())
}

/// What has been heard of a transaction so far.
#[derive(Debug, Default)]
struct Transaction {
    ours: bool,
    by_us: bool,
}

impl Transaction {
    /// Takes in a message. True: a transaction of a stranger that changed something of ours has ended.
    fn take(&mut self, header: Header, payload: &[u8]) -> bool {
        let [kind, subsystem] = header.kind.to_le_bytes();
        if u16::from(subsystem) != SUBSYSTEM {
            return false;
        }
        let find = |wanted| {
            let mut attributes = Attrs::new(payload.get(NFGENMSG..).unwrap_or_default());
            attributes.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
        };
        let chain = |attribute| find(attribute).map(text).unwrap_or_default();
        let is_ours = |name: &str| name.starts_with(OURS);
        // The port of a process's first netlink socket is its id.
        self.by_us |= iptables::is_own_writer(header.port);
        match kind {
            message::DELETE_TABLE => self.ours = true,
            message::DELETE_CHAIN => self.ours |= is_ours(&chain(attribute::CHAIN_NAME)),
            message::NEW_RULE => self.ours |= is_ours(&chain(attribute::RULE_CHAIN)),
            message::DELETE_RULE => {
                let name = chain(attribute::RULE_CHAIN);
                self.ours |= is_ours(&name) || BUILT_IN.contains(&name.as_str());
            }
            message::NEW_GENERATION => {
                let pid =
                    find(attribute::GENERATION_PID).and_then(|value| u32_at(value, 0)).map(u32::from_be);
                let done = std::mem::take(self);
                return done.ours && !done.by_us && !pid.is_some_and(iptables::is_own_writer);
            }
            _ => {}
        }
        false
    }
}
