//! Attachments that nobody will DEL: their sandbox and link are gone, and they still hold addresses.
//!
//! For the agent, every minute or so. In doubt nothing is taken: no link, namespace gone, older than a minute, no ADD
//! running, and all of that twice in a row.

use std::collections::BTreeSet;
use std::path::Path;

use crate::link::{self, LinkError};
use crate::names::Key;
use crate::netns::Netns;
use crate::store::{Store, StoreError};

/// An ADD that is slower than this was killed or is still holding its lock.
const GRACE: u64 = 60;

/// Remembers what looked leaked at the last round.
#[derive(Debug, Default)]
pub struct Sweeper {
    suspects: BTreeSet<Key>,
}

/// Why a round could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The store's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel could not be asked.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl Sweeper {
    /// Releases what the last round suspected and this one confirms, and returns it. `now` in epoch seconds. Blocks for
    /// some system calls per attachment.
    ///
    /// # Errors
    /// See [`SweepError`]; suspicions stay then.
    pub fn round(&mut self, store: &Store, now: u64) -> Result<Vec<Key>, SweepError> {
        let mut suspects = BTreeSet::new();
        let mut swept = Vec::new();
        for key in store.keys()? {
            if !is_leaked(store, &key, now)? {
                continue;
            }
            if self.suspects.contains(&key) {
                store.condemn(&key)?;
                store.retract(&key)?;
                store.release(&key, now)?;
                store.abandon(&key)?;
                swept.push(key);
            } else {
                suspects.insert(key);
            }
        }
        self.suspects = suspects;
        Ok(swept)
    }
}

fn is_leaked(store: &Store, key: &Key, now: u64) -> Result<bool, SweepError> {
    let attachment = store.attachment(key);
    let since = attachment.as_ref().map(|a| a.created).or_else(|| store.owned_since(key));
    if since.is_none_or(|since| now.saturating_sub(since) < GRACE) || store.is_busy(key) {
        return Ok(false);
    }
    let netns = attachment.as_ref().and_then(|a| a.netns.as_deref());
    if netns.is_some_and(|path| Netns::exists(Path::new(path))) {
        return Ok(false);
    }
    let interface = attachment.map(|a| a.interface).or_else(|| store.owned(key).map(|o| o.interface));
    match interface {
        Some(interface) => Ok(link::index(&interface)?.is_none()),
        None => Ok(true),
    }
}
