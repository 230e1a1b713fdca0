//! Who paths come from: this node, a peer, or one of the several paths that a peer gives of a prefix (Add-Path, RFC 7911).
//!
//! A path in the table names its source by one number. That of a peer without Add-Path is the peer's own; a path
//! identifier costs an entry here, so that nobody else's paths are larger for it.

use std::net::Ipv4Addr;

use rustc_hash::FxHashMap;

use crate::speaker::PeerAddr;
use crate::types::PeerType;

/// Who a path comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct SourceId(pub(crate) u32);

/// Set in the numbers that stand for a peer and a path identifier.
const WITH_PATH_ID: u32 = 1 << 31;

impl SourceId {
    /// This node itself.
    pub(crate) const LOCAL: SourceId = SourceId(0);

    fn path_index(self) -> Option<usize> {
        (self.0 & WITH_PATH_ID != 0).then_some((self.0 & !WITH_PATH_ID) as usize)
    }

    /// The identifier under which a path of this source goes out on sessions with Add-Path: stable as long as the path is
    /// there, different for all paths of a prefix, and never 0, which some speakers take for none.
    pub(crate) fn outgoing_path_id(self) -> u32 {
        self.0.wrapping_add(1)
    }
}

/// What the decision process needs to know of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) peer_type: PeerType,
    pub(crate) router_id: Ipv4Addr,
    pub(crate) address: PeerAddr,
    /// It is our reflection client (RFC 4456).
    pub(crate) client: bool,
}

/// A peer and a path identifier of its.
#[derive(Clone, Copy, Debug)]
struct PathSource {
    peer: SourceId,
    path_id: u32,
    uses: u32,
}

/// All sources in use.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// By peer number; 0, this node, is none.
    peers: Vec<Option<Source>>,
    paths: Vec<PathSource>,
    by_path: FxHashMap<(SourceId, u32), SourceId>,
    free: Vec<SourceId>,
}

impl Sources {
    /// Notes what a peer is. Whether it was known as something else.
    pub(crate) fn set(&mut self, peer: SourceId, source: Source) -> bool {
        let at = peer.0 as usize;
        if self.peers.len() <= at {
            self.peers.resize(at + 1, None);
        }
        let changed = self.peers[at].as_ref().is_some_and(|old| *old != source);
        self.peers[at] = Some(source);
        changed
    }

    /// Forgets a peer.
    pub(crate) fn forget(&mut self, peer: SourceId) {
        if let Some(slot) = self.peers.get_mut(peer.0 as usize) {
            *slot = None;
        }
    }

    pub(crate) fn get_mut(&mut self, peer: SourceId) -> Option<&mut Source> {
        self.peers.get_mut(peer.0 as usize)?.as_mut()
    }

    /// What is known of the peer behind a source; `None` for this node.
    #[inline]
    pub(crate) fn get(&self, source: SourceId) -> Option<&Source> {
        self.peers.get(self.peer(source).0 as usize)?.as_ref()
    }

    /// The peer behind a source.
    #[inline]
    pub(crate) fn peer(&self, source: SourceId) -> SourceId {
        source.path_index().map_or(source, |i| self.paths[i].peer)
    }

    /// The path identifier that the peer gave, if it gives any.
    pub(crate) fn path_id(&self, source: SourceId) -> Option<u32> {
        source.path_index().map(|i| self.paths[i].path_id)
    }

    /// The source for a path of a peer, used once more.
    pub(crate) fn intern(&mut self, peer: SourceId, path_id: Option<u32>) -> SourceId {
        let Some(path_id) = path_id else { return peer };
        if let Some(source) = self.by_path.get(&(peer, path_id)) {
            self.paths[source.path_index().expect("it has a path identifier")].uses += 1;
            return *source;
        }
        let entry = PathSource { peer, path_id, uses: 1 };
        let source = match self.free.pop() {
            Some(source) => {
                self.paths[source.path_index().expect("it has a path identifier")] = entry;
                source
            }
            None => {
                self.paths.push(entry);
                let index = u32::try_from(self.paths.len() - 1).expect("fewer paths fit into memory");
                SourceId(index | WITH_PATH_ID)
            }
        };
        self.by_path.insert((peer, path_id), source);
        source
    }

    /// The source for a path of a peer, if one is in use.
    pub(crate) fn find(&self, peer: SourceId, path_id: Option<u32>) -> Option<SourceId> {
        match path_id {
            None => Some(peer),
            Some(id) => self.by_path.get(&(peer, id)).copied(),
        }
    }

    /// One use less.
    pub(crate) fn release(&mut self, source: SourceId) {
        let Some(index) = source.path_index() else { return };
        let entry = &mut self.paths[index];
        entry.uses -= 1;
        if entry.uses == 0 {
            self.by_path.remove(&(entry.peer, entry.path_id));
            self.free.push(source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_identifier_has_a_number_as_long_as_a_path_uses_it() {
        let mut all = Sources::default();
        let peer = SourceId(3);
        assert_eq!(all.intern(peer, None), peer);
        let a = all.intern(peer, Some(7));
        assert_eq!(all.intern(peer, Some(7)), a);
        assert_ne!(all.intern(SourceId(4), Some(7)), a);
        assert_eq!((all.peer(a), all.path_id(a)), (peer, Some(7)));
        assert_eq!((all.peer(peer), all.path_id(peer)), (peer, None));
        all.release(a);
        assert_eq!(all.find(peer, Some(7)), Some(a));
        all.release(a);
        assert_eq!(all.find(peer, Some(7)), None);
        assert_eq!(all.intern(peer, Some(8)), a, "the number is free again");
        all.release(peer);
        assert_eq!(all.find(peer, None), Some(peer), "a peer's own number needs no counting");
    }

    #[test]
    fn outgoing_path_identifiers_are_distinct_and_not_0() {
        let mut all = Sources::default();
        let ids = [
            SourceId::LOCAL,
            SourceId(1),
            all.intern(SourceId(1), Some(0)),
            all.intern(SourceId(1), Some(1)),
        ];
        let mut out: Vec<u32> = ids.iter().map(|s| s.outgoing_path_id()).collect();
        out.sort_unstable();
        out.dedup();
        assert_eq!(out.len(), 4);
        assert!(!out.contains(&0));
    }
}
