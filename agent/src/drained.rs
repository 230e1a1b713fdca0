//! The order to drain this node, kept in the run directory: a node in maintenance stays drained when its agent restarts or
//! is upgraded, and comes back with a reboot, which empties the directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

pub(crate) const FILE: &str = "drained.json";

/// An order as it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// When, in seconds since the epoch.
    pub since: u64,
    /// The sessions end so many seconds later.
    pub delay: u64,
    /// What peers are told with the Cease.
    pub message: String,
}

impl Order {
    /// How long the sessions still have.
    pub fn remaining(&self, now: u64) -> Duration {
        // A clock that was set back must not put the end off.
        Duration::from_secs((self.since + self.delay).saturating_sub(now).min(self.delay))
    }
}

/// Where the order is kept.
#[derive(Clone, Debug)]
pub struct OrderFile(PathBuf);

impl OrderFile {
    /// In a run directory.
    pub fn new(run_dir: &Path) -> Self {
        OrderFile(run_dir.join(FILE))
    }

    /// The order that is in force.
    ///
    /// # Errors
    /// There is one that cannot be read.
    pub fn load(&self) -> anyhow::Result<Option<Order>> {
        let text = match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", self.0.display())),
        };
        let order = serde_json::from_str(&text);
        order.map(Some).with_context(|| {
            format!("{}: not an order to drain; remove it, or drain again", self.0.display())
        })
    }

    /// Keeps an order; all of it or nothing.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, order: &Order) -> anyhow::Result<()> {
        let hidden = self.0.with_extension("new");
        let text = serde_json::to_vec(order).expect("an order is plain data");
        fs::write(&hidden, text)
            .and_then(|()| fs::rename(&hidden, &self.0))
            .with_context(|| format!("cannot write {}", self.0.display()))
    }

    /// Forgets it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn clear(&self) -> anyhow::Result<()> {
        match fs::remove_file(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_kept_and_forgotten_and_what_is_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = OrderFile::new(dir.path());
        assert_eq!(file.load().unwrap(), None);
        let order = Order { since: 1000, delay: 30, message: "disks".to_owned() };
        file.save(&order).unwrap();
        assert_eq!(file.load().unwrap(), Some(order));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(file.load().unwrap_err().to_string().contains("drained.json"));
        file.clear().unwrap();
        file.clear().unwrap();
        assert_eq!(file.load().unwrap(), None);
    }

    #[test]
    fn the_delay_runs_on_while_no_agent_does() {
        let order = Order { since: 1000, delay: 30, message: String::new() };
        assert_eq!(order.remaining(1010).as_secs(), 20);
        assert_eq!(order.remaining(2000).as_secs(), 0);
        assert_eq!(order.remaining(10).as_secs(), 30, "the clock was set back");
    }
}
