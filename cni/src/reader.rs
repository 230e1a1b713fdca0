//! The attachments of a node, read again and again: an attachment is written once, so that one whose file is still the same
//! need not be opened a second time. A look at a hundred pods of which one is new costs a hundred `stat`s and one read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::store::{Attachment, Store, StoreError, read_attachment};

/// Reads the attachments and remembers them.
#[derive(Debug)]
pub struct Reader {
    store: Store,
    /// By file name. `None`: what it holds can't be read as an attachment.
    known: BTreeMap<String, (Stamp, Option<Attachment>)>,
}

/// What two files under one name do not share: an attachment that has gone and come back has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl Reader {
    /// A reader that remembers nothing yet.
    pub fn new(store: Store) -> Self {
        Reader { store, known: BTreeMap::new() }
    }

    /// Where it reads.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// As [`Store::attachments`].
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory can't be read.
    pub fn read(&mut self) -> Result<impl Iterator<Item = &Attachment>, StoreError> {
        let dir = self.store.watch_dir();
        let mut before = std::mem::take(&mut self.known);
        for name in self.store.names("attachments")? {
            let path = dir.join(&name);
            // One that has gone since the directory was read.
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            let stamp = Stamp {
                inode: found.ino(),
                modified: (found.mtime(), found.mtime_nsec()),
                size: found.size(),
            };
            let same = before.remove(&name).filter(|(known, _)| *known == stamp);
            let entry = same.unwrap_or_else(|| (stamp, read_attachment(&path)));
            self.known.insert(name, entry);
        }
        Ok(self.known.values().filter_map(|(_, attachment)| attachment.as_ref()))
    }
}
